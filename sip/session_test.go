package sip

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func quiet10h(c *Config) { outbound(c); c.Limits.MediaTimeout = -1 }

func TestSessionTimerIsNegotiated(t *testing.T) { // RFC 4028 §9
	for _, tt := range []struct {
		name string
		edit []string
		want string // Session-Expires of the 200, or a refusal
	}{
		{"the phone refreshes", []string{"Supported: timer", "Session-Expires: 600"}, "600;refresher=uac"},
		{"we refresh", []string{"Supported: timer", "Session-Expires: 600;refresher=uas"}, "600;refresher=uas"},
		{"compact form", []string{"k: timer", "x: 600"}, "600;refresher=uac"},
		{"longer than ours", []string{"Supported: timer", "Session-Expires: 90000"}, "1800;refresher=uac"},
		{"not wanted, but known", []string{"Supported: timer"}, "1800;refresher=uac"},
		{"a proxy wants it, the phone does not know it", []string{"Session-Expires: 600"}, "600;refresher=uas"},
		{"too brief", []string{"Supported: timer", "Session-Expires: 60"}, "422 Session Interval Too Small, Min-SE: 90"},
		{"too brief for a proxy", []string{"Session-Expires: 60"}, "90;refresher=uas"},
		{"nobody knows it", nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, quiet10h, answerAtOnce, func(b *bubble) {
				b.peer.send(invite(tt.edit...))
				m := b.peer.last()
				got := headerIn(m, "Session-Expires")
				if strings.HasPrefix(m, "SIP/2.0 422") {
					got = "422 Session Interval Too Small, Min-SE: " + headerIn(m, "Min-SE")
				}
				if got != tt.want {
					t.Errorf("Session-Expires = %q, want %q", got, tt.want)
				}
				if known := strings.Contains(fmt.Sprint(tt.edit), "timer"); known != (headerIn(m, "Require") == "timer") && !strings.HasPrefix(m, "SIP/2.0 422") {
					t.Errorf("Require = %q", headerIn(m, "Require"))
				}
			})
		})
	}
}

func TestSessionIsRefreshedByThePhone(t *testing.T) {
	inBubble(t, quiet10h, answerAtOnce, func(b *bubble) {
		b.peer.send(invite("Supported: timer", "Session-Expires: 300"))
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		time.Sleep(2 * time.Minute)
		b.peer.send(b.peer.within("UPDATE", "u1", 2, "", "Supported: timer", "Session-Expires: 300;refresher=uac"))
		if got := headerIn(b.peer.last(), "Session-Expires"); got != "300;refresher=uac" {
			t.Errorf("200 of the UPDATE has Session-Expires %q", got)
		}
		b.peer.forget()
		time.Sleep(10 * time.Minute) // and then no more: 300 s less min(32, 100) after the refresh
		b.peer.send(replyTo(b.peer.last(), "200 OK"))
		if got := b.peer.lines()[0]; got != "6m28s BYE" {
			t.Errorf("peer received %v first, want 6m28s BYE", got)
		}
		if got, want := headerIn(b.peer.last(), "Reason"), `SIP;cause=408;text="Session timer expired"`; got != want {
			t.Errorf("Reason = %s, want %s", got, want)
		}
	})
}

func TestWeRefreshTheSession(t *testing.T) {
	t.Run("with UPDATE", func(t *testing.T) {
		inBubble(t, quiet10h, nil, func(b *bubble) {
			call, inv := b.dials()
			if headerIn(inv, "Session-Expires") != "1800" || headerIn(inv, "Min-SE") != "90" || !strings.Contains(headerIn(inv, "Supported"), "timer") {
				t.Errorf("INVITE = %q", inv)
			}
			b.peer.answers(inv, "422 Session Interval Too Small", "b1", "", "Min-SE: 2000")
			inv = b.peer.last()
			if headerIn(inv, "Session-Expires") != "2000" || headerIn(inv, "Min-SE") != "2000" || headerIn(inv, "CSeq") != "2 INVITE" {
				t.Errorf("second INVITE = %q", inv)
			}
			b.peer.answers(inv, "200 OK", "b1", peerAnswer, "Session-Expires: 2000;refresher=uac", "Require: timer", "Allow: INVITE, UPDATE, BYE, ACK")
			b.peer.forget()
			time.Sleep(1000 * time.Second)
			synctest.Wait()
			update := b.peer.last()
			if !strings.HasPrefix(update, "UPDATE ") || headerIn(update, "Session-Expires") != "2000;refresher=uac" || strings.Contains(update, "v=0") {
				t.Errorf("refresh = %q", update)
			}
			b.peer.answers(update, "200 OK", "", "", "Session-Expires: 2000;refresher=uac")
			if s := call.Dialog().Session; !s.Ours || time.Until(s.Until) != 2000*time.Second {
				t.Errorf("session = %+v", s)
			}
			b.peer.forget()
			time.Sleep(1000 * time.Second)
			synctest.Wait()
			b.peer.answers(b.peer.last(), "481 Call/Transaction Does Not Exist", "", "")
			if said := b.said(); !strings.HasSuffix(said[len(said)-1], "Failed") {
				t.Errorf("said %v, want Failed last", said)
			}
		})
	})
	t.Run("with re-INVITE and a password", func(t *testing.T) {
		change := func(c *Config) { quiet10h(c); c.Trunks[0].Auth = Credentials{Username: "bob", Password: "secret"} }
		inBubble(t, change, nil, func(b *bubble) {
			call, inv := b.dials()
			b.peer.answers(inv, "200 OK", "b1", peerAnswer, "Session-Expires: 600;refresher=uac")
			time.Sleep(300 * time.Second)
			synctest.Wait()
			again := b.peer.last()
			if !strings.HasPrefix(again, "INVITE sip:200@192.0.2.20:5060") || headerIn(again, "CSeq") != "2 INVITE" {
				t.Fatalf("refresh = %q", again)
			}
			b.peer.send(b.peer.called(inv, "INVITE", "glare", 7, peerOffer))
			if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 491") {
				t.Errorf("an offer that crosses ours got %.30q", got)
			}
			b.peer.send(b.peer.called(inv, "UPDATE", "glare2", 8, peerOffer)) // RFC 3311 §5.2
			if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 491") {
				t.Errorf("an offer in an UPDATE that crosses ours got %.30q", got)
			}
			b.peer.answers(again, "401 Unauthorized", "", "", `WWW-Authenticate: Digest realm="x", nonce="n"`)
			again = b.peer.last()
			if headerIn(again, "CSeq") != "3 INVITE" || headerIn(again, "Authorization") == "" {
				t.Fatalf("after 401: %q", again)
			}
			b.peer.answers(again, "200 OK", "", peerAnswer, "Session-Expires: 600;refresher=uac")
			ack := b.peer.last()
			if !strings.HasPrefix(ack, "ACK ") || headerIn(ack, "CSeq") != "3 ACK" || headerIn(ack, "Authorization") != headerIn(again, "Authorization") {
				t.Errorf("after 200: %q", ack) // RFC 3261 §13.2.2.4: with the credentials of its INVITE
			}
			if s := call.Dialog().Session; time.Until(s.Until) != 600*time.Second {
				t.Errorf("session = %+v", s)
			}
			b.peer.send(b.peer.called(inv, "BYE", "y1", 9, ""))
		})
	})
}

// The phone called, and has left the refreshing to us; later it takes that over.
func TestWeRefreshTheSessionOfACallToUs(t *testing.T) { // RFC 4028 §9, §10
	for _, method := range []string{"UPDATE", "INVITE"} {
		t.Run(method, func(t *testing.T) {
			inBubble(t, quiet10h, answerAtOnce, func(b *bubble) {
				b.peer.send(invite("Supported: timer", "Session-Expires: 200;refresher=uas", "Allow: INVITE, ACK, BYE, "+method))
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				call := <-b.calls
				tagged := headerIn(b.peer.messages()[0], "To")
				target := "2001"
				for i := range 3 { // each at half, counted from the answer to the one before
					b.peer.forget()
					time.Sleep(time.Until(call.Dialog().Session.Until) - 100*time.Second)
					synctest.Wait()
					got := b.peer.last()
					if !strings.HasPrefix(got, method+" sip:"+target+"@192.0.2.20:5060 ") || headerIn(got, "Session-Expires") != "200;refresher=uac" ||
						headerIn(got, "From") != tagged || headerIn(got, "To") != `"Ann" <sip:2001@192.0.2.20>;tag=a1` {
						t.Fatalf("refresh %d = %q", i, got)
					}
					target = fmt.Sprint("edge", i) // the 2xx refreshes the target
					body := ""
					if method == "INVITE" {
						body = peerOffer
					}
					b.peer.answers(got, "200 OK", "", body, "Session-Expires: 200;refresher=uac", "Contact: <sip:"+target+"@192.0.2.20:5060>")
				}
				within := func(method, branch string, cseq int, edit ...string) string {
					return request(method, "sip:trunkline@192.0.2.1:5060", tagged, branch, cseq, "", edit...)
				}
				b.peer.send(within("UPDATE", "u1", 2, "Supported: timer", "Session-Expires: 300;refresher=uac"))
				if s := call.Dialog().Session; s.Ours || time.Until(s.Until) != 300*time.Second {
					t.Errorf("session = %+v, want the phone to refresh it", s)
				}
				b.peer.forget()
				time.Sleep(200 * time.Second)
				wantLines(t, "peer received", b.peer.lines(), nil)
				b.peer.send(within("BYE", "y1", 3))
			})
		})
	}
}

func TestEachRefreshMayBeChallenged(t *testing.T) { // by a trunk whose nonces live shorter than the session
	change := func(c *Config) { quiet10h(c); c.Trunks[0].Auth = Credentials{Username: "bob", Password: "secret"} }
	inBubble(t, change, nil, func(b *bubble) {
		call, inv := b.dials()
		b.peer.answers(inv, "200 OK", "b1", peerAnswer, "Session-Expires: 600;refresher=uac", "Allow: UPDATE")
		for i := range 6 {
			time.Sleep(time.Until(call.Dialog().Session.Until) - 300*time.Second)
			synctest.Wait()
			b.peer.answers(b.peer.last(), "407 Proxy Authentication Required", "", "", fmt.Sprintf(`Proxy-Authenticate: Digest realm="x", nonce="n%d", stale=true`, i))
			update := b.peer.last()
			if !strings.HasPrefix(update, "UPDATE ") || !strings.Contains(headerIn(update, "Proxy-Authorization"), fmt.Sprintf(`nonce="n%d"`, i)) {
				t.Fatalf("refresh %d = %q", i, update)
			}
			b.peer.answers(update, "200 OK", "", "", "Session-Expires: 600;refresher=uac")
		}
		b.peer.send(b.peer.called(inv, "BYE", "y1", 8, ""))
	})
}

func TestReliableProvisionalResponses(t *testing.T) { // RFC 3262, as the called side
	inBubble(t, quiet10h, nil, func(b *bubble) {
		b.peer.send(invite("Require: 100rel"))
		call := <-b.calls
		_ = call.Ring()
		_, _, _ = call.Progress() // waits for the PRACK of the 180
		synctest.Wait()
		ringing := b.peer.last()
		rseq := headerIn(ringing, "RSeq")
		if headerIn(ringing, "Require") != "100rel" || rseq == "" {
			t.Fatalf("180 = %q", ringing)
		}
		time.Sleep(1600 * time.Millisecond)
		b.peer.send(b.peer.within("PRACK", "p0", 2, "", "RAck: 1 7 INVITE")) // of something else
		b.peer.send(b.peer.within("PRACK", "p1", 3, "", "RAck: "+rseq+" 1 INVITE"))
		progress := b.peer.last()
		if next := headerIn(progress, "RSeq"); next <= rseq && len(next) == len(rseq) || !strings.Contains(progress, "v=0") {
			t.Errorf("after 180 with RSeq %s: %q", rseq, progress)
		}
		if err := call.SendAnswer(); err == nil {
			t.Error("SendAnswer before Accept worked")
		}
		_, _, _ = call.Accept()
		if err := call.SendAnswer(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // not before the phone has the description
		b.peer.send(b.peer.within("PRACK", "p2", 4, "", "RAck: "+headerIn(progress, "RSeq")+" 1 INVITE"))
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		b.peer.send(b.peer.within("BYE", "y1", 5, ""))
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s 180 Ringing", "500ms 180 Ringing", "1.5s 180 Ringing", "1.6s 481 Call/Transaction Does Not Exist",
			"1.6s 200 OK", "1.6s 183 Session Progress", "2.1s 183 Session Progress", "2.6s 200 OK", "2.6s 200 OK", "2.6s 200 OK",
		})
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"2.6s Acked", "2.6s Bye", "2.6s Ended"})
	})
}

func TestPrackThatCrossesTheAnswerIsTaken(t *testing.T) { // RFC 3262 §3
	inBubble(t, quiet10h, nil, func(b *bubble) {
		b.peer.send(invite("Require: 100rel"))
		call := <-b.calls
		_ = call.Ring()
		synctest.Wait()
		prack := b.peer.within("PRACK", "p1", 2, "", "RAck: "+headerIn(b.peer.last(), "RSeq")+" 1 INVITE") // on its way
		answerAtOnce(call)
		b.peer.send(prack)
		if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 200") || headerIn(got, "CSeq") != "2 PRACK" {
			t.Errorf("the PRACK got %.60q, want 200", got)
		}
		b.peer.send(strings.ReplaceAll(strings.ReplaceAll(prack, "bKp1", "bKp2"), "CSeq: 2", "CSeq: 3")) // there is nothing else to acknowledge
		if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 481") {
			t.Errorf("a second PRACK got %.60q, want 481", got)
		}
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		time.Sleep(time.Minute)
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s 180 Ringing", "0s 200 OK", "0s 200 OK", "0s 481 Call/Transaction Does Not Exist",
		})
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Acked"})
	})
}

func TestNoPrackEverComes(t *testing.T) {
	inBubble(t, quiet10h, func(c *Call) { _ = c.Ring() }, func(b *bubble) {
		b.peer.send(invite("Require: 100rel"))
		time.Sleep(40 * time.Second)
		b.peer.send(b.peer.within("ACK", "i1", 1, ""))
		wantLines(t, "peer received", b.peer.lines()[:8], []string{
			"0s 180 Ringing", "500ms 180 Ringing", "1.5s 180 Ringing", "3.5s 180 Ringing", "7.5s 180 Ringing",
			"15.5s 180 Ringing", "31.5s 180 Ringing", "32s 504 Server Time-out",
		})
		wantLines(t, "application heard", b.said(), []string{"32s Failed", "32s Ended"})
	})
}

func TestLateOfferInReliableProgress(t *testing.T) { // RFC 3262 §5
	inBubble(t, quiet10h, nil, func(b *bubble) {
		b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, "", "Supported: 100rel"))
		call := <-b.calls
		_, m, _ := call.Progress()
		synctest.Wait()
		offer := b.peer.last()
		if !strings.Contains(offer, "m=audio") {
			t.Fatalf("183 = %q", offer)
		}
		b.peer.send(b.peer.within("PRACK", "p1", 2, strings.ReplaceAll(peerOffer, " 101\n", "\n"), "RAck: "+headerIn(offer, "RSeq")+" 1 INVITE"))
		if to := m.neg.Remote; to != peerRTP {
			t.Errorf("early media goes to %v, want %v", to, peerRTP)
		}
		answerAtOnce(call)
		synctest.Wait()
		if ok := b.peer.last(); !strings.HasPrefix(ok, "SIP/2.0 200") || strings.Contains(ok, "v=0") {
			t.Errorf("200 = %q, want no description", ok)
		}
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		b.peer.send(b.peer.within("BYE", "y1", 5, ""))
		if said := withoutChanges(b.said()); len(said) != 3 || said[0] != "0s Acked" {
			t.Errorf("said %v", said)
		}
	})
}

func TestReliableResponsesAreAcknowledged(t *testing.T) { // RFC 3262, as the calling side
	inBubble(t, quiet10h, nil, func(b *bubble) {
		call, inv := b.dials()
		if !strings.Contains(headerIn(inv, "Supported"), "100rel") {
			t.Errorf("INVITE supports %q", headerIn(inv, "Supported"))
		}
		b.peer.answers(inv, "183 Session Progress", "b1", peerAnswer, "Require: 100rel", "RSeq: 40", "Record-Route: <sip:192.0.2.20;lr>")
		prack := b.peer.last()
		if !strings.HasPrefix(prack, "PRACK sip:200@192.0.2.20:5060") || headerIn(prack, "RAck") != "40 1 INVITE" || headerIn(prack, "CSeq") != "2 PRACK" ||
			headerIn(prack, "Route") != "<sip:192.0.2.20;lr>" || !strings.HasSuffix(headerIn(prack, "To"), ";tag=b1") {
			t.Errorf("PRACK = %q", prack)
		}
		b.peer.answers(prack, "200 OK", "", "")
		b.peer.answers(inv, "183 Session Progress", "b1", peerAnswer, "Require: 100rel", "RSeq: 40") // again
		b.peer.answers(inv, "180 Ringing", "b1", "", "Require: 100rel", "RSeq: 42")                  // 41 is missing
		b.peer.answers(inv, "180 Ringing", "b1", "", "Require: 100rel", "RSeq: 41")
		if prack := b.peer.last(); headerIn(prack, "RAck") != "41 1 INVITE" {
			t.Errorf("PRACK = %q", prack)
		}
		b.peer.answers(b.peer.last(), "200 OK", "", "")
		b.peer.answers(inv, "200 OK", "b1", "")
		if ack := b.peer.last(); headerIn(ack, "CSeq") != "1 ACK" {
			t.Errorf("ACK = %q", ack)
		}
		_ = call.Hangup(CauseNormal)
		synctest.Wait()
		if bye := b.peer.last(); headerIn(bye, "CSeq") != "4 BYE" {
			t.Errorf("BYE = %q", bye)
		}
		wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "0s PRACK", "0s PRACK", "0s ACK", "0s BYE"})
	})
}

func TestDiversionsAreKept(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit []string
		want string
	}{
		{"Diversion, the latest first", []string{"Diversion: <sip:200@pbx>;reason=no-answer, \"A, B\" <sip:+49-30-100@pbx>;reason=unconditional"}, "[+4930100 200]"},
		{"History-Info, the latest last", []string{"History-Info: <sip:100@pbx>;index=1, <sip:200@pbx?Reason=SIP%3Bcause%3D302>;index=1.1, <sip:1000@192.0.2.1>;index=1.1.1"}, "[100 200]"},
		{"not diverted", []string{"History-Info: <sip:1000@192.0.2.1>;index=1"}, "[]"},
		{"hidden", []string{"Diversion: <sip:200@pbx>;privacy=\"full\", <sip:100@pbx>;privacy=off"}, "[100]"},
		{"hidden history", []string{"History-Info: <sip:100@pbx?Privacy=history>;index=1, <sip:200@pbx>;index=1.1, <sip:1@192.0.2.1>;index=1.1.1"}, "[200]"},
		{"named, whatever its display name says", []string{"Diversion: \"x;privacy=full\" <sip:200@pbx>;privacy=off"}, "[200]"},
		{"hidden, whatever its display name says", []string{"Diversion: \"x;privacy=off\" <sip:200@pbx>;privacy=full"}, "[]"},
		{"hidden with blanks and in capitals", []string{"Diversion: <sip:200@pbx> ; Privacy = \"Full\" , <sip:100@pbx>;privacy= off"}, "[100]"},
		{"hidden by Diversion, named by History-Info", []string{"Diversion: <sip:200@pbx>;privacy=full", "History-Info: <sip:200@pbx>;index=1, <sip:1000@192.0.2.1>;index=1.1"}, "[]"},
		{"hidden by the whole request", []string{"History-Info: <sip:200@pbx>;index=1, <sip:1000@192.0.2.1>;index=1.1", "Privacy: id; History"}, "[]"},
		{"not hidden by the whole request", []string{"History-Info: <sip:200@pbx>;index=1, <sip:1000@192.0.2.1>;index=1.1", "Privacy: id"}, "[200]"},
		{"named by its headers", []string{"History-Info: <sip:200@pbx?privacy=none>;index=1, <sip:1000@192.0.2.1>;index=1.1"}, "[200]"},
		{"hidden where the call is now", []string{"History-Info: <sip:100@pbx>;index=1, <sip:200@pbx>;index=1.1, <sip:1@192.0.2.1?Privacy=history>;index=1.1.1"}, "[100 200]"},
		{"a hop, and nobody forwarded", []string{"History-Info: <sip:1000@pbx>;index=1, <sip:1000@192.0.2.1>;index=1.1"}, "[]"},
		{"forwarded, with a hop", []string{"History-Info: <sip:200@pbx>;index=1, <sip:1000@pbx>;index=1.1, <sip:1000@192.0.2.1>;index=1.1.1"}, "[200]"},
		{"nonsense", []string{"Diversion: ,,<"}, "[]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, nil, answerAtOnce, func(b *bubble) {
				b.peer.send(invite(tt.edit...))
				var got []string
				for _, n := range (<-b.calls).Info().Diverted {
					got = append(got, string(n))
				}
				if fmt.Sprint(got) != tt.want {
					t.Errorf("diverted from %v, want %s", got, tt.want)
				}
			})
		})
	}
}

// RFC 4028 §7.2, §9: a refresh that says nothing of a timer, or is answered so, ends it. The call has no expiry any more, also
// for the process after this one.
func TestTimerThatIsSwitchedOffEndsNoCall(t *testing.T) {
	timed := []string{"Session-Expires: 600;refresher=uac", "Require: timer"}
	for name, tt := range map[string]struct {
		invite    func(*Call)
		switchOff func(*bubble) (bye string)
	}{
		"by a re-INVITE of the phone": {answerAtOnce, func(b *bubble) string {
			b.peer.send(invite("Supported: timer", "Session-Expires: 300"))
			b.peer.send(b.peer.within("ACK", "k1", 1, ""))
			time.Sleep(time.Minute)
			b.peer.send(b.peer.within("INVITE", "i2", 2, peerOffer))
			b.peer.send(b.peer.within("ACK", "k2", 2, ""))
			return b.peer.within("BYE", "y1", 9, "")
		}},
		"by an UPDATE of the phone": {answerAtOnce, func(b *bubble) string {
			b.peer.send(invite("Supported: timer", "Session-Expires: 300"))
			b.peer.send(b.peer.within("ACK", "k1", 1, ""))
			time.Sleep(time.Minute)
			b.peer.send(b.peer.within("UPDATE", "u2", 2, ""))
			return b.peer.within("BYE", "y1", 9, "")
		}},
		"in the answer to our UPDATE": {nil, func(b *bubble) string {
			_, inv := b.dials()
			b.peer.answers(inv, "200 OK", "b1", peerAnswer, append(timed, "Allow: INVITE, UPDATE, BYE, ACK")...)
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			b.peer.answers(b.peer.last(), "200 OK", "", "")
			return b.peer.called(inv, "BYE", "y1", 9, "")
		}},
		"in the answer to our re-INVITE": {nil, func(b *bubble) string {
			_, inv := b.dials()
			b.peer.answers(inv, "200 OK", "b1", peerAnswer, timed...)
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			b.peer.answers(b.peer.last(), "200 OK", "", peerAnswer)
			return b.peer.called(inv, "BYE", "y1", 9, "")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var saved Dialog
			inBubble(t, quiet10h, tt.invite, func(b *bubble) {
				bye := tt.switchOff(b)
				saved = b.saved()
				if saved.Session != (SessionTimer{}) {
					t.Errorf("saved with %+v, want no timer", saved.Session)
				}
				b.peer.forget()
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				wantLines(t, "peer received", b.peer.lines(), nil)
				b.peer.send(bye)
			})
			inBubble(t, quiet10h, nil, func(b *bubble) { // another process
				call, err := b.stack.Resume(saved)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				wantLines(t, "peer received", b.peer.lines(), nil)
				_ = call.Hangup(CauseNormal)
				synctest.Wait()
				b.peer.send(replyTo(b.peer.last(), "200 OK"))
			})
		})
	}
}

// What the row says of a timer is what the phone was told, whoever asked for it.
func TestTimerIsSavedBeforeThePhoneIsToldOfIt(t *testing.T) {
	for _, method := range []string{"INVITE", "UPDATE"} {
		t.Run(method, func(t *testing.T) {
			inBubble(t, quiet10h, answerAtOnce, func(b *bubble) {
				b.peer.send(invite("Supported: timer", "Session-Expires: 300"))
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				time.Sleep(time.Minute)
				body := map[string]string{"INVITE": peerOffer}[method]
				b.peer.send(b.peer.within(method, "r2", 2, body, "Supported: timer", "Session-Expires: 600;refresher=uac"))
				if s := b.saved().Session; s.Interval != 10*time.Minute || s.Ours || time.Until(s.Until) != 10*time.Minute {
					t.Errorf("saved with %+v, want 10 minutes from now, the phone's", s)
				}
				b.peer.send(b.peer.within("ACK", "k2", 2, ""))
				b.peer.send(b.peer.within("BYE", "y1", 9, ""))
			})
		})
	}
}

// While no process ran, the time came to give the call up, and so did the phone's refresh.
func TestOverdueTimerOfAResumedCallWaitsForThePhone(t *testing.T) {
	for _, refreshed := range []bool{true, false} {
		t.Run(fmt.Sprint("refreshed ", refreshed), func(t *testing.T) {
			var saved Dialog
			var update, bye string
			inBubble(t, quiet10h, answerAtOnce, func(b *bubble) {
				b.peer.send(invite("Supported: timer", "Session-Expires: 90;refresher=uac"))
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				saved = b.saved()
				update = b.peer.within("UPDATE", "u2", 2, "", "Supported: timer", "Session-Expires: 90;refresher=uac")
				bye = b.peer.within("BYE", "y1", 9, "")
			})
			inBubble(t, quiet10h, nil, func(b *bubble) { // another process
				saved.Session.Until = time.Now().Add(25 * time.Second)
				if _, err := b.stack.Resume(saved); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if refreshed {
					b.peer.send(update)
				}
				time.Sleep(20 * time.Second)
				synctest.Wait()
				hungUp := slices.ContainsFunc(b.peer.lines(), func(l string) bool { return strings.HasSuffix(l, " BYE") })
				if hungUp == refreshed {
					t.Errorf("peer received %v", b.peer.lines())
				}
				b.peer.send(bye)
			})
		})
	}
}

// Timers keep no pace: those of many calls, each due at half its time, would wait longer and longer.
func TestTimerIsRefreshedWhoeverIsAskedAfterARestart(t *testing.T) {
	inBubble(t, quiet10h, answerAtOnce, func(b *bubble) {
		for range 100 * refreshRate {
			b.stack.turns.Reserve() // calls of before
		}
		b.peer.send(invite("Supported: timer", "Session-Expires: 90;refresher=uas", "Allow: INVITE, ACK, BYE, UPDATE"))
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		bye := b.peer.within("BYE", "y1", 9, "")
		b.peer.forget()
		b.passes(100*time.Second, func(string) (string, []string) { return "200 OK", []string{"Session-Expires: 90;refresher=uac"} })
		wantLines(t, "peer received", b.peer.lines(), []string{"45s UPDATE", "1m30s UPDATE"})
		b.peer.send(bye)
	})
}

// Who is silent is asked whether it has the call, which asks for its time, too.
func TestTimerOfAPhoneThatIsAskedForItsSilenceWaits(t *testing.T) {
	change := func(c *Config) { outbound(c); c.Limits.MediaTimeout = 290 * time.Second }
	inBubble(t, change, answerAtOnce, func(b *bubble) {
		b.peer.send(invite("Supported: timer", "Session-Expires: 600;refresher=uas", "Allow: INVITE, ACK, BYE, UPDATE"))
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		bye := b.peer.within("BYE", "y1", 9, "")
		b.peer.forget()
		b.passes(310*time.Second, func(method string) (string, []string) {
			if method == "OPTIONS" {
				return "200 OK", nil
			}
			return "", nil // it is slow
		})
		numbers := map[string]bool{}
		for _, m := range b.peer.messages() {
			if strings.HasPrefix(m, "UPDATE ") {
				numbers[headerIn(m, "CSeq")] = true
			}
		}
		if len(numbers) != 1 {
			t.Errorf("the peer received %v, want one UPDATE, again and again", b.peer.lines())
		}
		b.peer.answers(b.peer.last(), "200 OK", "", "", "Session-Expires: 600;refresher=uac")
		b.peer.send(bye)
	})
}

// A refresh that is refused because of how it was asked is asked otherwise, at once: else the timer runs out, and with it the call.
func TestRefreshIsAskedAsThePhoneWants(t *testing.T) {
	for _, tt := range []struct {
		name, allow, status string
		headers             []string
		want                string // method, Session-Expires and Min-SE of what follows
		next                string // method of the next refresh, at half of the new time
	}{
		{"UPDATE, too brief", "Allow: UPDATE", "422 Session Interval Too Small", []string{"Min-SE: 1200"}, "UPDATE 1200;refresher=uac 1200", "UPDATE"},
		{"re-INVITE, too brief", "Allow: INVITE", "422 Session Interval Too Small", []string{"Min-SE: 1200"}, "INVITE 1200;refresher=uac 1200", "INVITE"},
		{"UPDATE is not known any more", "Allow: UPDATE", "405 Method Not Allowed", []string{"Allow: INVITE, ACK, BYE"}, "INVITE 600;refresher=uac 90", "INVITE"},
		{"UPDATE is not known at all", "Allow: UPDATE", "501 Not Implemented", nil, "INVITE 600;refresher=uac 90", "INVITE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, quiet10h, nil, func(b *bubble) {
				call, inv := b.dials()
				b.peer.answers(inv, "200 OK", "b1", peerAnswer, "Session-Expires: 600;refresher=uac", tt.allow)
				time.Sleep(300 * time.Second)
				synctest.Wait()
				refused := b.peer.last()
				b.peer.answers(refused, tt.status, "", "", tt.headers...)
				again := b.peer.last()
				expires := headerIn(again, "Session-Expires")
				if got := strings.Join([]string{methodOf(again), expires, headerIn(again, "Min-SE")}, " "); got != tt.want || cseqOf(t, again) <= cseqOf(t, refused) {
					t.Fatalf("after %s: %q, CSeq %s; want %s", tt.status, got, headerIn(again, "CSeq"), tt.want)
				}
				body := ""
				if methodOf(again) == "INVITE" {
					body = peerAnswer
				}
				b.peer.answers(again, "200 OK", "", body, "Session-Expires: "+expires, tt.allow)
				b.peer.forget()
				s := call.Dialog().Session
				if left := time.Until(s.Until); left != s.Interval || !strings.HasPrefix(expires, seconds(left)) {
					t.Errorf("session = %+v, with %v left", s, left)
				}
				time.Sleep(s.Interval / 2)
				synctest.Wait()
				got := b.peer.last()
				if least := headerIn(got, "Min-SE"); methodOf(got) != tt.next || least != headerIn(again, "Min-SE") { // RFC 4028 §7.4: the largest yet
					t.Errorf("the next refresh is %.60q, at least %s, want %s", got, least, tt.next)
				}
				b.peer.send(b.peer.called(inv, "BYE", "y1", 9, ""))
			})
		})
	}
}

// No phone keeps the bridge asking, whatever time it wants; and what it has not taken is no time of the call's.
func TestPhoneThatFindsNoTimeLongEnoughIsNotAskedForEver(t *testing.T) {
	for name, tt := range map[string]struct {
		least func(asked int) string
		want  int
	}{
		"more each time":     {func(asked int) string { return strconv.Itoa(1000 + 100*asked) }, 2},
		"nothing":            {func(int) string { return "0" }, 1},
		"what it was given":  {func(int) string { return "600" }, 1},
		"no number":          {func(int) string { return "abc" }, 1},
		"more than a number": {func(int) string { return "4294967296" }, 1},
		"a year":             {func(int) string { return "31536000" }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, quiet10h, nil, func(b *bubble) {
				call, inv := b.dials()
				b.peer.answers(inv, "200 OK", "b1", peerAnswer, "Session-Expires: 600;refresher=uac", "Allow: UPDATE")
				before := call.Dialog().Session
				time.Sleep(300 * time.Second)
				synctest.Wait()
				asked := 0
				for ; asked < 10 && methodOf(b.peer.last()) == "UPDATE"; asked++ {
					update := b.peer.last()
					b.peer.forget()
					b.peer.answers(update, "422 Session Interval Too Small", "", "", "Min-SE: "+tt.least(asked))
				}
				if now := call.Dialog().Session; asked != tt.want || now != before {
					t.Errorf("asked %d times at once, and the session is %+v; want %d, and %+v", asked, now, tt.want, before)
				}
				b.peer.send(b.peer.called(inv, "BYE", "y1", 9, ""))
			})
		})
	}
}

// methodOf is what a request asks for.
func methodOf(m string) string {
	method, _, _ := strings.Cut(m, " ")
	return method
}

// A refusal is no end of a brief session: the phone is asked again before it is over (RFC 3261 §14.2, RFC 4028 §10).
func TestRefusedRefreshOfABriefSessionIsTriedAgain(t *testing.T) {
	for _, allow := range []string{"UPDATE", "INVITE"} {
		t.Run(allow, func(t *testing.T) {
			inBubble(t, quiet10h, nil, func(b *bubble) {
				call, inv := b.dials()
				b.peer.answers(inv, "200 OK", "b1", peerAnswer, "Session-Expires: 90;refresher=uac", "Allow: "+allow)
				b.peer.forget()
				time.Sleep(45 * time.Second)
				synctest.Wait()
				b.peer.answers(b.peer.last(), "500 Server Internal Error", "", "", "Retry-After: 2")
				time.Sleep(2 * time.Second)
				synctest.Wait()
				b.peer.answers(b.peer.last(), "503 Service Unavailable", "", "")
				time.Sleep(90 * time.Second / 8)
				synctest.Wait()
				body := map[string]string{"INVITE": peerAnswer}[allow]
				b.peer.answers(b.peer.last(), "200 OK", "", body, "Session-Expires: 90;refresher=uac")
				want := []string{"45s " + allow, "47s " + allow, "58.25s " + allow}
				if allow == "INVITE" {
					want = []string{"45s INVITE", "45s ACK", "47s INVITE", "47s ACK", "58.25s INVITE", "58.25s ACK"}
				}
				wantLines(t, "peer received", b.peer.lines(), want)
				time.Sleep(40 * time.Second)
				if s := call.Dialog().Session; time.Until(s.Until) != 50*time.Second {
					t.Errorf("session = %+v", s)
				}
				b.peer.send(b.peer.called(inv, "BYE", "y1", 9, ""))
			})
		})
	}
}

// The 200 to a re-INVITE comes again while the next offer is under way: it is acknowledged, and changes nothing.
func TestRepeatedAnswerToAReinviteIsOnlyAcknowledged(t *testing.T) {
	inBubble(t, quiet10h, nil, func(b *bubble) {
		call, inv := b.dials()
		b.peer.answers(inv, "200 OK", "b1", peerAnswer, "Session-Expires: 90;refresher=uac", "Allow: INVITE")
		time.Sleep(45 * time.Second)
		synctest.Wait()
		refresh := b.peer.last()
		answers := func() {
			b.peer.answers(refresh, "200 OK", "", peerAnswer, "Session-Expires: 90;refresher=uac", "Contact: <sip:200@192.0.2.20:5060>")
		}
		answers()
		ack := b.peer.last()
		time.Sleep(400 * time.Millisecond)
		b.peer.send(b.peer.called(inv, "INVITE", "h1", 7, strings.Replace(peerOffer, "o=- 1 1 ", "o=- 1 2 ", 1)+"a=sendonly\n"))
		b.peer.send(b.peer.called(inv, "ACK", "h2", 7, ""))
		before := call.Dialog()
		time.Sleep(100 * time.Millisecond)
		answers()
		if got := b.peer.last(); !strings.HasPrefix(got, "ACK ") || headerIn(got, "CSeq") != headerIn(ack, "CSeq") {
			t.Errorf("repeated, the 200 got %q, want its ACK", got)
		}
		now := call.Dialog()
		if now.Media.Direction != before.Media.Direction || now.Media.RemoteSDP != before.Media.RemoteSDP || now.Session != before.Session {
			t.Errorf("the call was changed: %+v, before %+v", now, before)
		}
		if said := strings.Join(withoutChanges(b.said()), ", "); said != "0s Answered, 45.4s Hold" {
			t.Errorf("said %s, want hold, and no end of it", said)
		}
		b.peer.send(b.peer.called(inv, "BYE", "y1", 9, ""))
	})
	inBubble(t, quiet10h, nil, func(b *bubble) { // and in its own dialog, when another phone has taken the call over (RFC 3891)
		call, inv := b.dials()
		b.peer.answers(inv, "200 OK", "b1", peerAnswer, "Session-Expires: 90;refresher=uac", "Allow: INVITE")
		time.Sleep(45 * time.Second)
		synctest.Wait()
		refresh := b.peer.last()
		b.peer.answers(refresh, "200 OK", "", peerAnswer, "Session-Expires: 90;refresher=uac")
		ack := b.peer.last()
		next := b.successor()
		next.send(wantsPlace(place(call)))
		next.send(next.its("ACK", "k2", 1))
		b.peer.send(replyTo(b.peer.last(), "200 OK")) // to BYE
		next.forget()
		b.peer.answers(refresh, "200 OK", "", peerAnswer, "Session-Expires: 90;refresher=uac")
		if got := b.peer.last(); got != ack || len(next.lines()) > 0 {
			t.Errorf("repeated, the 200 got %q, want %q; and the next phone %v", got, ack, next.lines())
		}
		_ = call.Hangup(CauseNormal)
		synctest.Wait()
		next.send(replyTo(next.last(), "200 OK"))
	})
}
