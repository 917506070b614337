package sip

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

func TestReplacesNamesADialog(t *testing.T) {
	for _, tt := range []struct {
		lines []string
		want  *replaces
		code  int
	}{
		{nil, nil, 0},
		{[]string{"a@b;to-tag=1;from-tag=2"}, &replaces{"a@b", "1", "2", false}, 0},
		{[]string{"a@b ; From-Tag=2;early-only; to-tag = 1"}, &replaces{"a@b", "1", "2", true}, 0},
		{[]string{"a@b;to-tag=1;from-tag=0"}, &replaces{"a@b", "1", "", false}, 0}, // a phone of RFC 2543
		{[]string{"a@b;to-tag=1;from-tag=2;x=y"}, &replaces{"a@b", "1", "2", false}, 0},
		{[]string{"a@b;to-tag=1"}, nil, 400},
		{[]string{";to-tag=1;from-tag=2"}, nil, 400},
		{[]string{"a;to-tag=1;from-tag=2", "b;to-tag=1;from-tag=2"}, nil, 400},
		{[]string{"a;to-tag=1;from-tag=2, b;to-tag=1;from-tag=2"}, nil, 400},
	} {
		req := gosip.NewRequest(gosip.INVITE, gosip.Uri{Scheme: "sip", Host: "x"})
		for _, line := range tt.lines {
			req.AppendHeader(gosip.NewHeader("Replaces", line))
		}
		got, bad := replacesOf(req)
		code := 0
		if bad != nil {
			code = bad.code
		}
		if code != tt.code || (got == nil) != (tt.want == nil) || got != nil && *got != *tt.want {
			t.Errorf("replacesOf(%q) = %+v, %d, want %+v, %d", tt.lines, got, code, tt.want, tt.code)
		}
	}
}

func TestStatusOfASipfrag(t *testing.T) {
	for body, want := range map[string]int{
		"SIP/2.0 100 Trying\r\n": 100, "SIP/2.0 200 OK": 200, "sip/2.0 486\r\nTo: <sip:x@y>\r\n": 486,
		"": 0, "200 OK": 0, "SIP/2.0 OK": 0, "SIP/2.0 99 Low": 0, "SIP/2.0 700 High": 0, "SIP/3.0 200 OK": 0,
	} {
		if got := fragStatus(body); got != want {
			t.Errorf("fragStatus(%q) = %d, want %d", body, got, want)
		}
	}
}

// up brings a call of the peer up and returns it.
func (b *bubble) up() *Call {
	b.Helper()
	b.peer.send(invite())
	b.peer.send(b.peer.within("ACK", "k1", 1, ""))
	return <-b.calls
}

// sends answers requests of ours with 200 until the peer gets something else, and lists them.
func (p *rawPeer) obliges() (got []string) {
	for {
		m := p.last()
		if strings.HasPrefix(m, "SIP/2.0") || m == "" {
			return got
		}
		got = append(got, m)
		p.forget()
		p.send(replyTo(m, "200 OK"))
	}
}

func TestPhoneIsTransferredToANumberOfOurs(t *testing.T) {
	for _, tt := range []struct {
		name   string
		refer  []string // header lines of the REFER
		decide func(*Call) error
		status string
		notes  []string // Event, Subscription-State and status of each NOTIFY
	}{
		{
			"and arrives",
			[]string{"Refer-To: <sip:200@192.0.2.1>"},
			func(c *Call) error { _ = c.AcceptTransfer(); return c.TransferOver(200) }, "202 Accepted",
			[]string{"refer, active;expires=180, SIP/2.0 100 Trying", "refer, terminated;reason=noresource, SIP/2.0 200 OK"},
		},
		{
			"and does not arrive",
			[]string{"r: sip:200@192.0.2.1"},
			func(c *Call) error { _ = c.AcceptTransfer(); return c.TransferOver(503) }, "202 Accepted",
			[]string{"refer, active;expires=180, SIP/2.0 100 Trying", "refer, terminated;reason=noresource, SIP/2.0 503 Service Unavailable"},
		},
		{
			"and wants no reports",
			[]string{"Refer-To: <sip:200@192.0.2.1>", "Refer-Sub: false"},
			func(c *Call) error { _ = c.AcceptTransfer(); return c.TransferOver(200) }, "202 Accepted", nil,
		},
		{
			"which leads nowhere",
			[]string{"Refer-To: <tel:200>"},
			func(c *Call) error { return c.RefuseTransfer(404) }, "404 Not Found", nil,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, nil, answerAtOnce, func(b *bubble) {
				c := b.up()
				b.peer.forgetAfter(1)
				b.peer.send(b.peer.within("REFER", "r1", 2, "", tt.refer...))
				if e, ok := b.event(len(b.said()) - 1).(TransferWanted); !ok || e.To != "200" {
					t.Fatalf("application heard %v, want a transfer to 200", b.said())
				}
				b.peer.send(b.peer.within("REFER", "r2", 3, "", "Refer-To: <sip:300@192.0.2.1>"))
				if !strings.HasPrefix(b.peer.last(), "SIP/2.0 491 ") {
					t.Errorf("a second wish got %q, want 491", b.peer.last())
				}
				b.peer.forgetAfter(1)
				if err := tt.decide(c); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				answer := b.peer.messages()[1]
				if !strings.HasPrefix(answer, "SIP/2.0 "+tt.status+"\r\n") {
					t.Errorf("REFER got %q, want %s", answer, tt.status)
				}
				if silent := headerIn(answer, "Refer-Sub"); (silent == "false") != (len(tt.refer) > 1) {
					t.Errorf("Refer-Sub: %q", silent)
				}
				var notes []string
				for _, m := range b.peer.obliges() {
					_, body, _ := strings.Cut(m, "\r\n\r\n")
					if typ := headerIn(m, "Content-Type"); typ != "message/sipfrag;version=2.0" {
						t.Errorf("NOTIFY carries %q", typ)
					}
					notes = append(notes, fmt.Sprintf("%s, %s, %s", headerIn(m, "Event"), headerIn(m, "Subscription-State"), strings.TrimSpace(body)))
				}
				wantLines(t, "NOTIFYs", notes, tt.notes)
				if err := c.TransferOver(200); err == nil {
					t.Error("a transfer ended twice")
				}
				if c.Dialog().RemoteTarget == "" || b.stack.Stats().Calls != 1 {
					t.Error("the call did not go on")
				}
			})
		})
	}
}

// attended is a REFER's wish to have the place of a dialog, at an address.
func attended(address, callID, toTag, fromTag string) string {
	return "Refer-To: <" + address + "?Replaces=" + url.QueryEscape(callID+";to-tag="+toTag+";from-tag="+fromTag) + ">"
}

func TestPhoneWantsThePlaceOfItsOtherCall(t *testing.T) { // RFC 5589 §7, RFC 3891
	inBubble(t, func(c *Config) {
		c.Trunks = append(c.Trunks, Trunk{Name: "other", Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.20/32")}, Auth: Credentials{Username: "anna"}})
	}, answerAtOnce, func(b *bubble) {
		begin := func(callID, to string) *Call {
			b.peer.send(request("INVITE", to, "<"+to+">", callID, 1, peerOffer, "Call-ID: "+callID))
			b.peer.send(b.peer.within("ACK", "k"+callID, 1, "", "Call-ID: "+callID))
			return <-b.calls
		}
		first, second, foreign := begin("call-1", bridgeURI), begin("call-2", bridgeURI), begin("call-3", "sip:anna@192.0.2.1")
		d := second.Dialog()
		if f := foreign.Dialog(); f.Info.Trunk != "other" || !f.Confirmed || !d.Confirmed {
			t.Fatalf("calls %+v, %+v", d, f)
		}
		for i, tt := range []struct {
			name, refer, want string
		}{
			{"its tag is another one", attended("sip:trunkline@192.0.2.1", d.CallID, d.LocalTag, "x"), "403"},
			{"it is at another host", attended("sip:200@198.51.100.1", d.CallID, d.LocalTag, d.RemoteTag), "403"},
			{"it is the same call", attended("sip:200@192.0.2.1", first.Dialog().CallID, first.Dialog().LocalTag, "a1"), "403"},
			{"it is another trunk's", attended("sip:200@192.0.2.1", "call-3", foreign.Dialog().LocalTag, "a1"), "403"},
			{"it breaks lines", attended("sip:200@192.0.2.1", "call-2\r\nX", d.LocalTag, d.RemoteTag), "400"},
			{"it is two", attended("sip:200@192.0.2.1", "call-2,call-2", d.LocalTag, d.RemoteTag), "400"},
			{"it brings a header", strings.Replace(attended("sip:200@192.0.2.1", d.CallID, d.LocalTag, d.RemoteTag), ">", "&Subject=x>", 1), "403"},
			{"as it should be", strings.Replace(attended("sip:trunkline@192.0.2.1:5060", d.CallID, d.LocalTag, d.RemoteTag), ">", "&Require=replaces>", 1), ""},
		} {
			b.peer.forgetAfter(1)
			before := len(b.said())
			b.peer.send(b.peer.within("REFER", fmt.Sprint("r", i), 2+i, "", tt.refer, "To: "+bridgeTo+";tag="+first.Dialog().LocalTag))
			if tt.want != "" {
				if got, _ := b.peer.codes(); got[len(got)-1] != tt.want || len(b.said()) != before {
					t.Errorf("%s: got %v and the application %v, want %s", tt.name, got, b.said()[before:], tt.want)
				}
				continue
			}
			if e, ok := b.event(len(b.said()) - 1).(TransferWanted); !ok || e.Place != second || e.Outside || e.Replaces != "" {
				t.Errorf("%s: application heard %+v, want a wish for the place of the second call", tt.name, e)
			}
		}
	})
}

// Calls whose trunks are gone from the configuration are resumed without one.
func TestCallsOfFormerTrunksHaveNoPlaceToTakeOfEachOther(t *testing.T) {
	resumed := func(trunk string) *Call {
		c := &Call{info: Info{Trunk: trunk}}
		c.snapshot.Store(&Dialog{Confirmed: true, RemoteTag: "r"})
		return c
	}
	by, own, foreign := resumed("pbx"), resumed("pbx"), resumed("carrier")
	s := &Stack{byID: map[dialogID]*Call{{"own", "l"}: own, {"foreign", "l"}: foreign}}
	for callID, want := range map[string]*Call{"own": own, "foreign": nil} {
		if got := s.placeOf(&replaces{callID: callID, toTag: "l", fromTag: "r"}, by); got != want {
			t.Errorf("placeOf(%s) = %p, want %p", callID, got, want)
		}
	}
}

func TestPhoneWantsSomebodyElseToBeCalled(t *testing.T) {
	const dialog = "far@198.51.100.1;to-tag=t;from-tag=f"
	for _, tt := range []struct {
		refer  string
		policy Transfers
		want   TransferWanted
		code   string // of a refusal
	}{
		{"<sip:300@carrier.example>", TransfersTrunk, TransferWanted{To: "300", Outside: true}, ""},
		{"<tel:+4930300>", TransfersTrunk, TransferWanted{To: "+4930300", Outside: true}, ""},
		{"<sip:300@192.0.2.77:5080?Replaces=far%40198.51.100.1%3Bto-tag%3Dt%3Bfrom-tag%3Df>", TransfersTrunk, TransferWanted{To: "300", Outside: true, Replaces: dialog}, ""},
		{"<sip:300@192.0.2.1>", TransfersTrunk, TransferWanted{To: "300"}, ""},                                                       // ours
		{"<sip:300@192.0.2.1?Replaces=far%40198.51.100.1%3Bto-tag%3Dt%3Bfrom-tag%3Df>", TransfersTrunk, TransferWanted{}, "403"},     // not there
		{"<sip:300@198.51.100.1>", TransfersTrunk, TransferWanted{}, "403"},                                                          // not behind the trunk
		{"<sip:300@carrier.example>", TransfersOwn, TransferWanted{To: "300"}, ""},                                                   // perhaps a number of ours there
		{"<sip:300@192.0.2.77:5080?Replaces=far%40198.51.100.1%3Bto-tag%3Dt%3Bfrom-tag%3Df>", TransfersOwn, TransferWanted{}, "403"}, // costs money
		{"<sip:300@carrier.example?Replaces=far%40198.51.100.1%3Bto-tag%3Dt%3Bfrom-tag%3Df>", TransfersOwn, TransferWanted{}, "403"}, // the same
		{"<sip:200@192.0.2.1>", TransfersNone, TransferWanted{}, "403"},
	} {
		edit := func(c *Config) { outbound(c); c.Trunks[0].Transfers = tt.policy }
		inBubble(t, edit, answerAtOnce, func(b *bubble) {
			b.up()
			b.peer.send(b.peer.within("REFER", "r1", 2, "", "Refer-To: "+tt.refer, "Referred-By: \"Anna\" <sip:anna@carrier.example?x=y>;cid=1"))
			if tt.code != "" {
				if got, _ := b.peer.codes(); got[len(got)-1] != tt.code {
					t.Errorf("%s with policy %q: got %v, want %s", tt.refer, tt.policy, got, tt.code)
				}
				return
			}
			tt.want.ReferredBy = "<sip:anna@carrier.example>"
			if e, ok := b.event(len(b.said()) - 1).(TransferWanted); !ok || e != tt.want {
				t.Errorf("%s with policy %q: application heard %+v, want %+v", tt.refer, tt.policy, e, tt.want)
			}
		})
	}
}

func TestPhoneIsToldHowTheCallInItsPlaceGetsOn(t *testing.T) {
	inBubble(t, outbound, answerAtOnce, func(b *bubble) {
		c := b.up()
		if c.TransferProgress(180) == nil {
			t.Error("progress of nothing")
		}
		b.peer.send(b.peer.within("REFER", "r1", 2, "", "Refer-To: <sip:200@192.0.2.1>"))
		b.peer.forgetAfter(1)
		for _, do := range []func() error{
			c.AcceptTransfer, func() error { return c.TransferProgress(180) }, func() error { return c.TransferOver(486) },
		} {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		}
		if c.TransferProgress(183) == nil {
			t.Error("progress after the end")
		}
		synctest.Wait()
		var notes []string
		for _, m := range append(b.peer.obliges(), "") {
			_, body, _ := strings.Cut(m, "\r\n\r\n")
			notes = append(notes, strings.TrimSpace(body))
		}
		wantLines(t, "NOTIFYs", notes, []string{"SIP/2.0 100 Trying", "SIP/2.0 180 Ringing", "SIP/2.0 486 Busy Here", ""})
	})
}

func TestCallInThePlaceOfAnotherNamesIt(t *testing.T) { // RFC 3891 §6, RFC 3892
	var saved Dialog
	check := func(t *testing.T, inv string) {
		t.Helper()
		for name, want := range map[string]string{
			"Replaces": "far@198.51.100.1;to-tag=t;from-tag=0", "Require": "replaces", "Referred-By": "<sip:anna@carrier.example>",
		} {
			if got := headerIn(inv, name); got != want {
				t.Errorf("INVITE has %s: %q, want %q", name, got, want)
			}
		}
	}
	inBubble(t, outbound, nil, func(b *bubble) {
		_, inv := b.dials(func(r *DialRequest) {
			r.Replaces, r.ReferredBy = (&replaces{callID: "far@198.51.100.1", toTag: "t"}).String(), "<sip:anna@carrier.example>"
		})
		check(t, inv)
		b.peer.answers(inv, "180 Ringing", "b1", "")
		saved = b.saved()
	})
	inBubble(t, outbound, nil, func(b *bubble) { // another process
		call, err := b.stack.Resume(saved)
		if err != nil {
			t.Fatal(err)
		}
		if err := call.SendInvite(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		check(t, b.peer.last())
	})
}

func TestTransfersElsewhereAreRefused(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		b.up()
		cseq := 2
		for name, tt := range map[string]struct {
			headers []string
			want    string
		}{
			"another host":    {[]string{"Refer-To: <sip:200@198.51.100.1>"}, "403"},
			"another dialog":  {[]string{"Refer-To: <sip:200@192.0.2.1?Replaces=a%3Bto-tag%3D1%3Bfrom-tag%3D2>"}, "403"},
			"another method":  {[]string{"Refer-To: <sip:200@192.0.2.1;method=MESSAGE>"}, "403"},
			"a web page":      {[]string{"Refer-To: <https://example.org/200>"}, "403"},
			"nobody":          {nil, "400"},
			"nothing":         {[]string{"Refer-To: <>"}, "400"},
			"two at once":     {[]string{"Refer-To: <sip:200@192.0.2.1>", "r: <sip:300@192.0.2.1>"}, "400"},
			"outside a call":  {[]string{"Refer-To: <sip:200@192.0.2.1>", "To: <sip:1000@192.0.2.1>", "Call-ID: other"}, "403"},
			"in another call": {[]string{"Refer-To: <sip:200@192.0.2.1>", "Call-ID: other"}, "481"},
		} {
			b.peer.forgetAfter(1)
			b.peer.send(b.peer.within("REFER", fmt.Sprint("e", cseq), cseq, "", tt.headers...))
			if got, _ := b.peer.codes(); got[len(got)-1] != tt.want {
				t.Errorf("%s: got %v, want %s", name, got, tt.want)
			}
			cseq++
		}
		if n := b.stack.Stats().TransfersRefused; n != 4 {
			t.Errorf("%d transfers elsewhere counted, want 4", n)
		}
	})
}

func TestWeTransferAPhone(t *testing.T) {
	note := func(status, state string) []string {
		return []string{"Event: refer", "Subscription-State: " + state, "Content-Type: message/sipfrag;version=2.0"}
	}
	type notify struct{ status, state, want string }
	for _, tt := range []struct {
		name   string
		answer string // to the REFER
		header string
		notes  []notify
		heard  []string // Transferring
	}{
		{"and it arrives", "202 Accepted", "", []notify{
			{"SIP/2.0 100 Trying", "active;expires=60", "200"},
			{"SIP/2.0 180 Ringing", "active;expires=55", "200"},
			{"SIP/2.0 180 Ringing", "active;expires=50", "200"},
			{"SIP/2.0 200 OK", "terminated;reason=noresource", "200"},
			{"SIP/2.0 200 OK", "terminated;reason=noresource", "200"},
		}, []string{"100", "180", "200"}},
		{"and it is busy there", "202 Accepted", "", []notify{{"SIP/2.0 486 Busy Here", "terminated;reason=noresource", "200"}}, []string{"486"}},
		{"and it never says", "202 Accepted", "", nil, []string{"408"}},
		{"and it stops saying", "202 Accepted", "", []notify{{"SIP/2.0 100 Trying", "terminated;reason=timeout", "200"}}, []string{"480"}},
		{"and it will not say", "202 Accepted", "Refer-Sub: false", nil, []string{"202"}},
		{"and it does not want that", "603 Decline", "", nil, []string{"603"}},
		{"and it does not know how", "501 Not Implemented", "", nil, []string{"501"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, outbound, answerAtOnce, func(b *bubble) {
				c := b.up()
				b.peer.send(b.peer.within("NOTIFY", "n0", 2, "", note("", "active")...))
				if got, _ := b.peer.codes(); got[len(got)-1] != "481" {
					t.Errorf("a NOTIFY of nothing got %v, want 481", got)
				}
				if err := c.PrepareTransfer("+49 300"); err != nil {
					t.Fatal(err)
				}
				if c.PrepareTransfer("400") == nil {
					t.Error("two transfers at once")
				}
				if d := c.Dialog(); d.Transfer.CSeq != 1 || d.Transfer.Branch == "" {
					t.Errorf("the dialog does not name the REFER before it is sent: %+v", d.Transfer)
				}
				if err := c.SendTransfer(); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				refer := b.peer.last()
				for name, want := range map[string]string{
					"Refer-To": "<sip:+49%20300@carrier.example>", "Referred-By": "<sip:1000@192.0.2.1>", "CSeq": "1 REFER",
				} {
					if got := headerIn(refer, name); got != want {
						t.Errorf("REFER has %s: %q, want %q", name, got, want)
					}
				}
				if d := c.Dialog(); d.Transfer.CSeq != 1 || d.Transfer.Until.IsZero() {
					t.Errorf("the dialog does not say that a transfer is under way: %+v", d.Transfer)
				}
				if tt.header != "" {
					b.peer.send(strings.Replace(replyTo(refer, tt.answer), "\nContent-Length", "\n"+tt.header+"\nContent-Length", 1))
				} else {
					b.peer.send(replyTo(refer, tt.answer))
				}
				for i, n := range tt.notes {
					b.peer.forgetAfter(1)
					b.peer.send(b.peer.within("NOTIFY", fmt.Sprint("n", i+1), 3+i, n.status+"\r\n", note(n.status, n.state)...))
					if got, _ := b.peer.codes(); got[len(got)-1] != n.want {
						t.Errorf("NOTIFY %q got %v, want %s", n.status, got, n.want)
					}
				}
				time.Sleep(5 * time.Minute)
				var heard []string
				for i := range b.said() {
					if e, ok := b.event(i).(Transferring); ok {
						heard = append(heard, fmt.Sprint(e.Code))
					}
				}
				wantLines(t, "application heard", heard, tt.heard)
				if d := c.Dialog(); d.Transfer.CSeq != 0 {
					t.Errorf("the dialog still says that a transfer is under way: %+v", d.Transfer)
				}
			})
		})
	}
}

func TestReferThatCannotBeSentIsNotUnderWay(t *testing.T) {
	inBubble(t, outbound, answerAtOnce, func(b *bubble) {
		c := b.up()
		if err := c.PrepareTransfer("300"); err != nil {
			t.Fatal(err)
		}
		target := c.Dialog().RemoteTarget
		for _, is := range []struct {
			target string
			sent   bool
		}{{"nowhere", false}, {target, true}} {
			_ = c.do(func() error { c.dialog.RemoteTarget = is.target; return nil })
			if err := c.SendTransfer(); (err == nil) != is.sent {
				t.Errorf("SendTransfer with the phone at %q: %v", is.target, err)
			}
			synctest.Wait()
			if is.sent != strings.HasPrefix(b.peer.last(), "REFER ") {
				t.Errorf("with the phone at %q the last it has heard is %q", is.target, b.peer.last())
			}
			if is.sent {
				return
			}
			if d := b.saved(); d.Transfer != (Transfer{}) {
				t.Errorf("the dialog that is saved still names the transfer: %+v", d.Transfer)
			}
			if err := c.PrepareTransfer("300"); err != nil {
				t.Errorf("the next transfer: %v", err)
			}
		}
	})
}

// The process before has died when its row named the transfer, and nobody knows whether the phone was asked.
func TestResumedCallSendsItsReferAgain(t *testing.T) {
	for _, tt := range []struct {
		answer, refresh string // of the phone, to REFER and to what comes after it
		heard           []string
		pending         bool
	}{
		{"202 Accepted", "200 OK", nil, true},
		{"500 Out of order", "200 OK", nil, true}, // it has had it
		{"401 Unauthorized", "200 OK", nil, true}, // it may have had it
		{"405 Method Not Allowed", "200 OK", []string{"Transferring"}, false},
		{"481 Gone", "481 Gone", []string{"Transferring", "Failed"}, false},
	} {
		t.Run(tt.answer, func(t *testing.T) {
			inBubble(t, outbound, answerAtOnce, func(b *bubble) {
				c := b.up()
				if err := c.PrepareTransfer("300"); err != nil {
					t.Fatal(err)
				}
				saved := c.Dialog()
				saved.PeerAllow = []string{"UPDATE"}
				saved.LocalTag = "other" // as if the first call had never been in this process
				resumed, err := b.stack.Resume(saved)
				if err != nil {
					t.Fatal(err)
				}
				var heard []string
				resumed.OnEvent(func(e Event) {
					if e != (DialogChanged{}) {
						heard = append(heard, strings.TrimPrefix(fmt.Sprintf("%T", e), "sip."))
					}
				})
				b.peer.forgetAfter(0)
				if err := resumed.Refresh(); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				refer := b.peer.last()
				via := headerIn(refer, "Via")
				if !strings.Contains(via, saved.Transfer.Branch) || headerIn(refer, "CSeq") != "1 REFER" || headerIn(refer, "Refer-To") != "<sip:300@carrier.example>" {
					t.Errorf("REFER again = %q", refer)
				}
				b.peer.forgetAfter(0)
				b.peer.send(replyTo(refer, tt.answer))
				synctest.Wait()
				next := b.peer.last()
				if cseq := headerIn(next, "CSeq"); strings.HasPrefix(cseq, "1 ") || strings.HasSuffix(cseq, "REFER") {
					t.Errorf("after the REFER: %q, want a question with a later number", next)
				}
				b.peer.send(replyTo(next, tt.refresh))
				synctest.Wait()
				wantLines(t, "application heard", heard, tt.heard)
				if d := resumed.Dialog().Transfer; (d.CSeq != 0) != tt.pending || d.Branch != "" {
					t.Errorf("the dialog then says %+v of the transfer; is one under way: %t", d, tt.pending)
				}
			})
		})
	}
}

func TestReferNamesWhereNumbersAreCalled(t *testing.T) {
	for _, tt := range []struct{ proxy, domain, want string }{
		{"192.0.2.20:5080", "", "<sip:300@192.0.2.20:5080>"},
		{"pbx.example", "", "<sip:300@pbx.example>"},
		{"192.0.2.20:5080", "carrier.example", "<sip:300@carrier.example>"},
		{"", "", "<sip:300@192.0.2.20:5060>"}, // where the phone is
	} {
		edit := func(c *Config) {
			outbound(c)
			c.Trunks[0].Proxy, c.Trunks[0].Domain = tt.proxy, tt.domain
		}
		inBubble(t, edit, answerAtOnce, func(b *bubble) {
			c := b.up()
			if err := c.PrepareTransfer("300"); err != nil {
				t.Fatal(err)
			}
			if err := c.SendTransfer(); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := headerIn(b.peer.last(), "Refer-To"); got != tt.want {
				t.Errorf("proxy %q, domain %q: Refer-To %q, want %q", tt.proxy, tt.domain, got, tt.want)
			}
		})
	}
}

// What came of a phone's wish is told by the process that knows, and a later wish of it has an id of its own.
func TestWishOfAPhoneOutlivesItsProcess(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		c := b.up()
		b.peer.send(b.peer.within("REFER", "r1", 2, "", "Refer-To: <sip:200@192.0.2.1>"))
		if err := c.AcceptTransfer(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		saved := c.Dialog()
		saved.LocalTag = "other" // as if the first call had never been in this process
		resumed := b.resumes(saved)
		b.peer.forgetAfter(0)
		if err := resumed.TransferOver(503); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		note := b.peer.last()
		if !strings.HasPrefix(note, "NOTIFY") || headerIn(note, "Event") != "refer" ||
			!strings.HasPrefix(headerIn(note, "Subscription-State"), "terminated") || !strings.HasSuffix(note, "SIP/2.0 503 Service Unavailable\r\n") {
			t.Fatalf("the phone got %q", note)
		}
		b.peer.send(replyTo(note, "200 OK"))
		synctest.Wait()
		if d := resumed.Dialog(); d.Wish != (Wish{}) || !d.Wished {
			t.Errorf("a wish that was told of is %+v, %t", d.Wish, d.Wished)
		}
		if err := resumed.TransferOver(200); err == nil {
			t.Error("its end was told twice")
		}
	})
}
