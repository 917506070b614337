package sip

import "testing"

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
