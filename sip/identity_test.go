package sip

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
)

func TestTrunkIsTheOneThatIsCalled(t *testing.T) {
	number := func(own Number) func(Number) bool { return func(n Number) bool { return n == own } }
	first := &Trunk{Name: "first"}
	a := &Trunk{Name: "a", Auth: Credentials{Username: "111"}, Has: number("+4930111")}
	b := &Trunk{Name: "b", Auth: Credentials{Username: "222"}, Has: number("+4930222")}
	sealed := &Trunk{Name: "sealed", Auth: Credentials{Username: "333"}, ClientCAs: x509.NewCertPool()}
	for _, tt := range []struct {
		name    string
		trunks  []*Trunk
		uri, to Number
		want    *Trunk
	}{
		{"one trunk", []*Trunk{a}, "222", "222", a},
		{"the Contact of an account", []*Trunk{a, b}, "222", "+4930999", b},
		{"the account in To", []*Trunk{a, b}, "+4930999", "222", b},
		{"the Contact before To", []*Trunk{b, a}, "111", "222", a},
		{"the number of a trunk", []*Trunk{a, b}, "+4930222", "+4930999", b},
		{"the number in To", []*Trunk{a, b}, "trunkline", "+4930222", b},
		{"an account before a number", []*Trunk{a, b}, "+4930111", "222", b},
		{"neither", []*Trunk{first, a, b}, "+4930999", "+4930999", first},
		{"nobody in particular", []*Trunk{first, a, b}, "", "", first}, // a trunk without account is not called by ""
		{"one that asks for a certificate", []*Trunk{a, sealed}, "333", "333", a},
		{"one whose certificate was asked for", []*Trunk{{ClientCAs: x509.NewCertPool()}, sealed}, "333", "333", sealed},
	} {
		if got := addressed(tt.trunks, tt.uri, tt.to); got != tt.want {
			t.Errorf("%s: addressed(%q, %q) = %q, want %q", tt.name, tt.uri, tt.to, got.Name, tt.want.Name)
		}
	}
}

// Gateways write a word where a number should be when the network has told none: that is nobody's name, and all who are called so are
// not one caller. Who wants to be hidden is, whether or not the trunk's word is taken for anything else.
func TestCallersWithoutANumberHaveNone(t *testing.T) {
	nobody, hidden := Caller{}, Caller{Private: true}
	ann := Caller{Number: "2001", DisplayName: "Ann"}
	for _, trusted := range []bool{false, true} {
		inBubble(t, func(c *Config) { c.Trunks[0].TrustIdentity = trusted }, answerAtOnce, func(b *bubble) {
			for i, tt := range []struct {
				headers []string
				want    Caller
			}{
				{nil, ann},
				{[]string{`From: "Unavailable" <sip:Unavailable@192.0.2.20>;tag=a1`}, nobody},
				{[]string{`From: <sip:unknown@192.0.2.20>;tag=a1`}, nobody},
				{[]string{`From: <sip:192.0.2.20>;tag=a1`}, nobody},
				{[]string{`From: "Bob" <sip:unknown@192.0.2.20>;tag=a1`}, Caller{DisplayName: "Bob"}},
				{[]string{`From: "Unknown" <sip:2001@192.0.2.20>;tag=a1`}, Caller{Number: "2001"}},
				{[]string{`From: "Unknown Pleasures" <sip:unknown.p@192.0.2.20>;tag=a1`}, Caller{Number: "unknown.p", DisplayName: "Unknown Pleasures"}},
				{[]string{`From: "x" <sip:Restricted@192.0.2.20>;tag=a1`}, hidden},
				{[]string{`From: "x" <sip:ANONYMOUS@192.0.2.20>;tag=a1`}, hidden},
				{[]string{`Remote-Party-ID: "Ann" <sip:2001@192.0.2.20>;party=calling;privacy=full`}, hidden},
				{[]string{`Remote-Party-ID: "Ann" <sip:2001@192.0.2.20>;privacy=full`}, hidden},
				{[]string{`Remote-Party-ID: "We" <sip:1000@192.0.2.1>;party=called;privacy=full`}, ann},
				{[]string{`Remote-Party-ID: "Ann" <sip:2001@192.0.2.20>;party=calling;privacy=off`}, ann},
				{[]string{`P-Asserted-Identity: "Unknown" <sip:unavailable@192.0.2.20>`}, ann},
			} {
				b.peer.send(request("INVITE", "sip:1000@192.0.2.1", "<sip:1000@192.0.2.1>", fmt.Sprint("i", i), 1, peerOffer,
					append(tt.headers, fmt.Sprint("Call-ID: call-", i))...))
				if got := (<-b.calls).Info().Caller; got != tt.want {
					t.Errorf("trusted %t, %q: caller %q %q, private %t, want %q %q, %t", trusted, tt.headers,
						string(got.Number), got.DisplayName, got.Private, string(tt.want.Number), tt.want.DisplayName, tt.want.Private)
				}
			}
		})
	}
}

// Two accounts at one carrier: the calls of each are its own, with its name, its limit and its codecs.
func TestCallsOfTwoAccountsAtOneProxy(t *testing.T) {
	change := func(c *Config) {
		lab := c.Trunks[0].Networks
		c.Trunks = []Trunk{
			{Name: "a", Networks: lab, Proxy: "192.0.2.20", Register: true, Auth: Credentials{Username: "111", Password: "x"}, Codecs: []string{"PCMU"}},
			{Name: "b", Proxy: "192.0.2.20", Register: true, Auth: Credentials{Username: "222", Password: "y"}, Codecs: []string{"PCMA"}, MaxCalls: 1},
		}
	}
	pcma := strings.ReplaceAll(peerOffer, "RTP/AVP 0", "RTP/AVP 8")
	inBubble(t, change, answerAtOnce, func(b *bubble) {
		b.peer.send(request("INVITE", "sip:222@192.0.2.1", "<sip:+49301234@carrier.example>", "i1", 1, pcma))
		call := <-b.calls
		if i := call.Info(); i.Trunk != "b" || i.Dialled != "+49301234" {
			t.Errorf("the call came over %q and dialled %q, want b and what To says", i.Trunk, string(i.Dialled))
		}
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		b.peer.forget()
		b.peer.send(request("INVITE", "sip:222@192.0.2.1", "<sip:+49301234@carrier.example>", "i2", 1, pcma, "Call-ID: call-2"))
		if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 503") || headerIn(got, "Retry-After") == "" {
			t.Errorf("one call too many over b got %.40q, want 503 with Retry-After", got)
		}
		b.peer.send(request("INVITE", "sip:111@192.0.2.1", "<sip:+49305678@carrier.example>", "i3", 1, peerOffer, "Call-ID: call-3"))
		if i := (<-b.calls).Info(); i.Trunk != "a" || i.Dialled != "+49305678" {
			t.Errorf("the other call came over %q and dialled %q", i.Trunk, string(i.Dialled))
		}
	})
}

func TestCallerIDStyles(t *testing.T) { // RFC 3323, RFC 3325
	ann := Caller{Number: "+4930100", DisplayName: `Ann "A" B`}
	hidden := Caller{Number: "+4930100", DisplayName: "Ann", Private: true}
	const anonymous = `"Anonymous" <sip:anonymous@anonymous.invalid>`
	for _, tt := range []struct {
		name string
		id   CallerID
		from Caller
		want map[string]string // "" = not there; From without its tag
	}{
		{"in From", CallerID{}, ann, map[string]string{"From": `"Ann A B" <sip:+4930100@carrier.example>`, "Privacy": "", "P-Asserted-Identity": ""}},
		{"asserted", CallerID{Header: AssertedIdentity}, ann, map[string]string{
			"From": `"Ann A B" <sip:+4930100@carrier.example>`, "P-Asserted-Identity": `"Ann A B" <sip:+4930100@carrier.example>`, "Privacy": "",
		}},
		{"account in From, preferred identity", CallerID{PreferredIdentity, true}, ann, map[string]string{
			"From": `"Ann A B" <sip:bob@carrier.example>`, "P-Preferred-Identity": `"Ann A B" <sip:+4930100@carrier.example>`,
		}},
		{"remote party", CallerID{Header: RemoteParty}, ann, map[string]string{
			"Remote-Party-ID": `"Ann A B" <sip:+4930100@carrier.example>;party=calling;screen=no;privacy=off`,
		}},
		{"private, number kept from all", CallerID{}, hidden, map[string]string{"From": anonymous, "Privacy": "id", "P-Asserted-Identity": ""}},
		{"private, number for the trunk only", CallerID{Header: AssertedIdentity}, hidden, map[string]string{
			"From": anonymous, "Privacy": "id", "P-Asserted-Identity": `"Ann" <sip:+4930100@carrier.example>`,
		}},
		{"private remote party", CallerID{Header: RemoteParty}, hidden, map[string]string{
			"From": anonymous, "Remote-Party-ID": `"Ann" <sip:+4930100@carrier.example>;party=calling;screen=no;privacy=full`,
		}},
		{"nobody", CallerID{Header: AssertedIdentity}, Caller{}, map[string]string{"From": "<sip:bob@carrier.example>", "P-Asserted-Identity": ""}},
		{"a name that would break out", CallerID{Header: AssertedIdentity}, Caller{Number: "1>\r\nX: y", DisplayName: "a\r\nVia: b"}, map[string]string{
			"From": `"aVia: b" <sip:1%3E%0D%0AX%3A%20y@carrier.example>`, "X": "", "P-Asserted-Identity": `"aVia: b" <sip:1%3E%0D%0AX%3A%20y@carrier.example>`,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			change := func(c *Config) {
				outbound(c)
				c.Trunks[0].Auth, c.Trunks[0].CallerID = Credentials{Username: "bob", Password: "secret"}, tt.id
			}
			inBubble(t, change, nil, func(b *bubble) {
				call, inv := b.dials(func(r *DialRequest) { r.From = tt.from })
				for name, want := range tt.want {
					if name == "From" {
						want += ";tag=" + call.Dialog().LocalTag
					}
					if got := headersIn(inv, name); got != want {
						t.Errorf("%s = %s, want %s", name, got, want)
					}
				}
			})
		})
	}
}
