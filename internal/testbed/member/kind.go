package member

// Kind is which client the member imitates.
type Kind int

// The clients that can speak this protocol.
const (
	Hydrogen    Kind = iota // hydrogen 0.3.1: reads only olm, sends olm, numbers messages per connection
	JSSDK                   // matrix-js-sdk ≥ 37 without crypto: plain both ways, no device keys
	JSSDKKeys               // matrix-js-sdk ≥ 37 with rust crypto: has keys, sends plain, reads both
	JSSDKLegacy             // matrix-js-sdk 36.2 with legacy olm: sends olm, reads both
)

func (k Kind) String() string {
	return [...]string{"hydrogen", "js-sdk", "js-sdk with keys", "js-sdk 36"}[k]
}

func (k Kind) hydrogen() bool   { return k == Hydrogen }
func (k Kind) hasKeys() bool    { return k != JSSDK }
func (k Kind) sendsOlm() bool   { return k == Hydrogen || k == JSSDKLegacy }
func (k Kind) readsPlain() bool { return k != Hydrogen }

// terminated is what the client writes into m.terminated.
func (k Kind) terminated() any {
	if k.hydrogen() {
		return true
	}
	return "call_ended"
}
