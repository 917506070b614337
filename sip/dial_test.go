package sip

import (
	"crypto/md5"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/icholy/digest"
	"github.com/pion/rtp"
)

// outbound makes the lab trunk one that can be called.
func outbound(c *Config) {
	c.Trunks[0].Proxy = "192.0.2.20"
	c.Trunks[0].Domain = "carrier.example"
	c.Limits.MediaTimeout = -1
}

// dials begins a call to 200 and returns the INVITE the peer got.
func (b *bubble) dials(change ...func(*DialRequest)) (*Call, string) {
	b.Helper()
	r := DialRequest{Trunk: "lab", Number: "+49 200", From: Caller{Number: "1000", DisplayName: `Room "A"`}}
	for _, f := range change {
		f(&r)
	}
	c, err := b.stack.Dial(b.Context(), r)
	if err != nil {
		b.Fatal(err)
	}
	b.Invite(c) // listens to its events
	if err := c.SendInvite(); err != nil {
		b.Fatal(err)
	}
	synctest.Wait()
	return <-b.calls, b.peer.last()
}

const peerAnswer = `v=0
o=- 1 1 IN IP4 192.0.2.20
s=-
c=IN IP4 192.0.2.20
t=0 0
m=audio 4000 RTP/AVP 8 101
a=rtpmap:101 telephone-event/8000
`

// answers writes a response of the peer to a request of ours.
func (p *rawPeer) answers(req, status, tag, body string, headers ...string) {
	out := "SIP/2.0 " + status + "\n"
	for _, name := range []string{"Via", "From", "To", "Call-ID", "CSeq"} {
		value := headerIn(req, name)
		if name == "To" && tag != "" && !strings.Contains(value, "tag=") {
			value += ";tag=" + tag
		}
		out += name + ": " + value + "\n"
	}
	contact := "Contact: <sip:200@192.0.2.20:5060>\n"
	for _, h := range headers {
		if strings.HasPrefix(h, "Contact:") {
			contact = ""
		}
		out += h + "\n"
	}
	out += contact
	body = crlf(body)
	if body != "" {
		out += "Content-Type: application/sdp\n"
	}
	p.send(out + fmt.Sprintf("Content-Length: %d\n\n%s", len(body), body))
}

// called is a request of the peer inside the dialog of a call that we dialled with invite.
func (p *rawPeer) called(invite, method, branch string, cseq int, body string, edit ...string) string {
	return request(method, "sip:trunkline@192.0.2.1:5060", headerIn(invite, "From"), branch, cseq, body, append([]string{
		"From: " + headerIn(invite, "To") + ";tag=b1", "Call-ID: " + headerIn(invite, "Call-ID"),
	}, edit...)...)
}

func TestDialledPhoneRingsAnswersAndHangsUp(t *testing.T) {
	inBubble(t, outbound, nil, func(b *bubble) {
		phone := b.phoneMedia()
		call, inv := b.dials()
		if !strings.HasPrefix(inv, "INVITE sip:+49%20200@carrier.example SIP/2.0\r\n") {
			t.Errorf("INVITE = %q", inv)
		}
		for name, want := range map[string]string{
			"To": "<sip:+49%20200@carrier.example>", "Contact": "<sip:trunkline@192.0.2.1:5060>", "CSeq": "1 INVITE",
			"Max-Forwards": "70", "Content-Type": "application/sdp",
		} {
			if got := headerIn(inv, name); got != want {
				t.Errorf("INVITE has %s: %s, want %s", name, got, want)
			}
		}
		if from := headerIn(inv, "From"); !strings.HasPrefix(from, `"Room A" <sip:1000@carrier.example>;tag=`) {
			t.Errorf("From = %s", from)
		}
		if !strings.Contains(inv, " RTP/AVP 0 8 101\r\n") {
			t.Errorf("offer = %q", inv)
		}
		b.peer.answers(inv, "100 Trying", "", "")
		time.Sleep(2 * time.Second)
		b.peer.answers(inv, "180 Ringing", "b1", "")
		b.peer.answers(inv, "180 Ringing", "b1", "") // repeated: nothing new
		time.Sleep(3 * time.Second)
		b.peer.answers(inv, "200 OK", "b1", peerAnswer, "Record-Route: <sip:192.0.2.20:5060;lr;x=1>, <sip:192.0.2.20;lr;x=2>")
		ack := b.peer.last()
		b.peer.answers(inv, "200 OK", "b1", peerAnswer, "Record-Route: <sip:192.0.2.20:5060;lr;x=1>, <sip:192.0.2.20;lr;x=2>") // our ACK was lost
		if again := b.peer.last(); again != ack || !strings.HasPrefix(ack, "ACK sip:200@192.0.2.20:5060 SIP/2.0\r\n") {
			t.Errorf("ACK %q, repeated %q", ack, again)
		}
		if got, want := headersIn(ack, "Route"), "<sip:192.0.2.20;lr;x=2>|<sip:192.0.2.20:5060;lr;x=1>"; got != want {
			t.Errorf("ACK has Route %s, want %s", got, want) // RFC 3261 §12.1.2: in reverse
		}
		if cseq := headerIn(ack, "CSeq"); cseq != "1 ACK" {
			t.Errorf("ACK has CSeq %s", cseq)
		}
		if f := call.media.Load().Format(); f.Codec != "PCMA" || f.DTMF != 101 {
			t.Errorf("format = %+v, want the answer's first", f)
		}
		_ = call.media.Load().WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5}})
		if len(phone.rtp.in) != 1 {
			t.Errorf("sent %d packets, want 1", len(phone.rtp.in))
		}
		if d := call.Dialog(); !d.Confirmed || d.Role != UAC || d.RemoteTag != "b1" || d.Since.IsZero() {
			t.Errorf("dialog = %+v", d)
		}
		time.Sleep(time.Minute)
		b.peer.send(b.peer.called(inv, "INVITE", "r1", 7, peerOffer+"a=sendonly\n")) // it holds
		if !strings.Contains(b.peer.last(), "a=recvonly") {
			t.Errorf("hold answered with %q", b.peer.last())
		}
		b.peer.send(b.peer.called(inv, "ACK", "k1", 7, ""))
		b.peer.send(b.peer.called(inv, "BYE", "y1", 8, "", "Reason: Q.850;cause=16"))
		wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "5s ACK", "5s ACK", "1m5s 200 OK", "1m5s 200 OK"})
		said := withoutChanges(b.said())
		wantLines(t, "application heard", said, []string{"2s Provisional", "5s Answered", "1m5s Hold", "1m5s Bye", "1m5s Ended"})
		if s := b.stack.Stats(); s.Dialled != 1 || s.DialAnswered != 1 || s.Calls != 0 || s.RTPPorts != 0 {
			t.Errorf("stats = %+v", s)
		}
	})
}

func withoutChanges(said []string) (out []string) {
	for _, s := range said {
		if !strings.HasSuffix(s, "Changed") {
			out = append(out, s)
		}
	}
	return out
}

// headersIn joins all values of a header.
func headersIn(m, name string) string {
	var out []string
	for line := range strings.SplitSeq(m, "\r\n") {
		if n, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(n, name) {
			out = append(out, strings.TrimSpace(v))
		}
	}
	return strings.Join(out, "|")
}

func TestDialledPhoneIsHeardBeforeItAnswers(t *testing.T) {
	inBubble(t, outbound, nil, func(b *bubble) {
		phone := b.phoneMedia()
		call, inv := b.dials()
		heard := 0
		call.media.Load().OnPacket(func(*rtp.Packet) { heard++ })
		phone.send(call.media.Load().LocalAddr(), 8) // before any description: from nobody we know
		synctest.Wait()
		b.peer.answers(inv, "183 Session Progress", "b1", peerAnswer)
		phone.send(call.media.Load().LocalAddr(), 8)
		synctest.Wait()
		if heard != 1 {
			t.Errorf("heard %d packets of early media, want 1", heard)
		}
		if e := b.event(1).(Provisional); e != (Provisional{183, true}) { // behind that of the target
			t.Errorf("said %+v", e)
		}
		time.Sleep(time.Second)
		b.peer.answers(inv, "200 OK", "b1", "") // RFC 3261 §13.2.1: the answer was in the 183
		if err := call.Hangup(CauseNormal); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.peer.answers(b.peer.last(), "200 OK", "", "")
		wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "1s ACK", "1s BYE"})
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Provisional", "1s Answered", "1s Ended"})
	})
}

func TestDialledPhoneRefuses(t *testing.T) {
	for _, tt := range []struct {
		status  string
		headers []string
		want    Refused
	}{
		{"486 Busy Here", nil, Refused{Code: 486, Reason: "Busy Here"}},
		{"404 Not Found", []string{`Reason: Q.850;cause=1;text="Unallocated number"`}, Refused{Code: 404, Reason: "Not Found", Cause: Cause{"Q.850", 1, "Unallocated number"}}},
		{"503 Service Unavailable", []string{"Retry-After: 120 (maintenance)"}, Refused{Code: 503, Reason: "Service Unavailable", RetryAfter: 2 * time.Minute}},
		{"603 Decline", nil, Refused{Code: 603, Reason: "Decline"}},
		{"302 Moved", []string{"Contact: <sip:900@premium.example>"}, Refused{Code: 302, Reason: "Moved"}},
		{"401 Unauthorized", []string{`WWW-Authenticate: Digest realm="x", nonce="y"`}, Refused{Code: 401, Reason: "Unauthorized"}},
		{"380 Alternative Service", []string{"Contact: <sip:200@emergency.example>"}, Refused{Code: 380, Reason: "Alternative Service"}},
		{"403 Forbidden", nil, Refused{Code: 403, Reason: "Forbidden"}},
		{"413 Request Entity Too Large", nil, Refused{Code: 413, Reason: "Request Entity Too Large"}},
		{"414 Request-URI Too Long", nil, Refused{Code: 414, Reason: "Request-URI Too Long"}},
		{"415 Unsupported Media Type", []string{"Accept: application/isup"}, Refused{Code: 415, Reason: "Unsupported Media Type"}},
		{"420 Bad Extension", []string{"Unsupported: timer"}, Refused{Code: 420, Reason: "Bad Extension"}},
		{"421 Extension Required", []string{"Require: precondition"}, Refused{Code: 421, Reason: "Extension Required"}},
		{"422 Session Interval Too Small", nil, Refused{Code: 422, Reason: "Session Interval Too Small"}}, // without Min-SE
		{"480 Temporarily Unavailable", []string{"Retry-After: 30"}, Refused{Code: 480, Reason: "Temporarily Unavailable", RetryAfter: 30 * time.Second}},
		{"482 Loop Detected", nil, Refused{Code: 482, Reason: "Loop Detected"}},
		{"483 Too Many Hops", nil, Refused{Code: 483, Reason: "Too Many Hops"}},
		{"484 Address Incomplete", nil, Refused{Code: 484, Reason: "Address Incomplete"}},
		{"488 Not Acceptable Here", []string{`Warning: 305 carrier.example "No common codec"`}, Refused{Code: 488, Reason: "Not Acceptable Here"}},
		{"491 Request Pending", nil, Refused{Code: 491, Reason: "Request Pending"}},
		{"606 Not Acceptable", []string{`Warning: 399 carrier.example "Bandwidth"`}, Refused{Code: 606, Reason: "Not Acceptable"}},
	} {
		t.Run(tt.status, func(t *testing.T) {
			inBubble(t, outbound, nil, func(b *bubble) {
				_, inv := b.dials()
				b.peer.answers(inv, "180 Ringing", "b1", "")
				time.Sleep(time.Second)
				b.peer.answers(inv, tt.status, "b1", "", tt.headers...)
				time.Sleep(time.Minute)
				wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "1s ACK"})
				wantLines(t, "application heard", b.said(), []string{"0s DialogChanged", "0s Provisional", "1s Refused", "1s Ended"})
				if got := b.event(2).(Refused); got != tt.want {
					t.Errorf("said %+v, want %+v", got, tt.want)
				}
				if s := b.stack.Stats(); s.DialRefused[tt.want.Code] != 1 || s.RTPPorts != 0 || s.Calls != 0 {
					t.Errorf("stats = %+v", s)
				}
			})
		})
	}
}

func TestNobodyIsThere(t *testing.T) { // timer B
	inBubble(t, outbound, nil, func(b *bubble) {
		b.dials()
		time.Sleep(time.Minute)
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s INVITE", "500ms INVITE", "1.5s INVITE", "3.5s INVITE", "7.5s INVITE", "15.5s INVITE", "31.5s INVITE",
		})
		wantLines(t, "application heard", b.said(), []string{"0s DialogChanged", "32s Refused", "32s Ended"})
		if e := b.event(1).(Refused); e.Code != 408 || !e.Local {
			t.Errorf("said %+v", e)
		}
	})
}

func TestNobodyAnswers(t *testing.T) {
	inBubble(t, outbound, nil, func(b *bubble) {
		_, inv := b.dials(func(r *DialRequest) { r.RingTimeout = 30 * time.Second })
		b.peer.answers(inv, "180 Ringing", "b1", "")
		time.Sleep(30 * time.Second)
		synctest.Wait()
		cancel := b.peer.last()
		for _, name := range []string{"Via", "From", "To", "Call-ID"} { // RFC 3261 §9.1
			if headerIn(cancel, name) != headerIn(inv, name) {
				t.Errorf("CANCEL has %s: %s, INVITE %s", name, headerIn(cancel, name), headerIn(inv, name))
			}
		}
		if headerIn(cancel, "CSeq") != "1 CANCEL" || headerIn(cancel, "Reason") != `SIP;cause=408;text="No answer"` {
			t.Errorf("CANCEL = %q", cancel)
		}
		b.peer.answers(cancel, "200 OK", "b1", "")
		b.peer.answers(inv, "487 Request Terminated", "b1", "")
		time.Sleep(time.Minute)
		wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "30s CANCEL", "30s ACK"})
		wantLines(t, "application heard", b.said(), []string{"0s DialogChanged", "0s Provisional", "30s Refused", "30s Ended"})
	})
}

// A trunk that is dead is not waited for; one that was slow only must not have a phone ring for a call that goes elsewhere.
func TestTrunkThatSaysNothingIsNotWaitedFor(t *testing.T) {
	within := func(r *DialRequest) { r.Silence = 6 * time.Second }
	for _, tt := range []struct {
		name  string
		story func(b *bubble, inv string)
		lines []string
		said  []string
	}{
		{"for good", func(*bubble, string) {}, []string{
			"0s INVITE", "500ms INVITE", "1.5s INVITE", "3.5s INVITE", "7.5s INVITE", "15.5s INVITE", "31.5s INVITE",
		}, []string{"6s Refused", "32s Ended"}},
		{"until later", func(b *bubble, inv string) {
			time.Sleep(8 * time.Second)
			b.peer.answers(inv, "180 Ringing", "b1", "")
			cancel := b.peer.last()
			b.peer.answers(cancel, "200 OK", "b1", "")
			b.peer.answers(inv, "487 Request Terminated", "b1", "")
		}, []string{"0s INVITE", "500ms INVITE", "1.5s INVITE", "3.5s INVITE", "7.5s INVITE", "8s CANCEL", "8s ACK"}, []string{"6s Refused", "8s Ended"}},
		{"until it is answered", func(b *bubble, inv string) {
			time.Sleep(8 * time.Second)
			b.peer.answers(inv, "200 OK", "b1", peerAnswer)
			b.peer.answers(b.peer.last(), "200 OK", "", "")
		}, []string{"0s INVITE", "500ms INVITE", "1.5s INVITE", "3.5s INVITE", "7.5s INVITE", "8s ACK", "8s BYE"}, []string{"6s Refused", "8s Ended"}},
		{"but that it tries", func(b *bubble, inv string) {
			time.Sleep(5 * time.Second)
			b.peer.answers(inv, "100 Trying", "", "")
			time.Sleep(20 * time.Second)
			b.peer.answers(inv, "486 Busy Here", "b1", "")
		}, []string{"0s INVITE", "500ms INVITE", "1.5s INVITE", "3.5s INVITE", "25s ACK"}, []string{"25s Refused", "25s Ended"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, outbound, nil, func(b *bubble) {
				_, inv := b.dials(within)
				tt.story(b, inv)
				time.Sleep(2 * time.Minute)
				wantLines(t, "peer received", b.peer.lines(), tt.lines)
				wantLines(t, "application heard", withoutChanges(b.said()), tt.said)
				if s := b.stack.Stats(); s.RTPPorts != 0 || s.Calls != 0 {
					t.Errorf("stats = %+v", s)
				}
			})
		})
	}
}

func TestHangupOfACallNotAnswered(t *testing.T) {
	for _, tt := range []struct {
		name  string
		story func(b *bubble, call *Call, inv string)
		lines []string
		said  []string
	}{
		{"before a response: CANCEL waits for it", func(b *bubble, call *Call, inv string) {
			_ = call.Hangup(CauseNormal)
			time.Sleep(600 * time.Millisecond)
			b.peer.answers(inv, "100 Trying", "", "")
			b.peer.answers(b.peer.last(), "200 OK", "", "")
			b.peer.answers(inv, "487 Request Terminated", "b1", "")
		}, []string{"0s INVITE", "500ms INVITE", "600ms CANCEL", "600ms ACK"}, []string{"600ms Ended"}},
		{"the answer crosses the CANCEL", func(b *bubble, call *Call, inv string) {
			b.peer.answers(inv, "180 Ringing", "b1", "")
			_ = call.Hangup(CauseNormal)
			synctest.Wait()
			cancel := b.peer.last()
			b.peer.answers(inv, "200 OK", "b1", peerAnswer)
			bye := b.peer.last()
			b.peer.answers(cancel, "481 Call/Transaction Does Not Exist", "b1", "")
			b.peer.answers(bye, "200 OK", "", "")
		}, []string{"0s INVITE", "0s CANCEL", "0s ACK", "0s BYE"}, []string{"0s Provisional", "0s Ended"}},
		{"the 487 never comes", func(b *bubble, call *Call, inv string) {
			b.peer.answers(inv, "180 Ringing", "b1", "")
			_ = call.Hangup(CauseNormal)
			synctest.Wait()
			b.peer.answers(b.peer.last(), "200 OK", "b1", "")
		}, []string{"0s INVITE", "0s CANCEL"}, []string{"0s Provisional", "32s Ended"}},
		{"nothing ever comes", func(_ *bubble, call *Call, _ string) { _ = call.Hangup(CauseNormal) }, []string{
			"0s INVITE", "500ms INVITE", "1.5s INVITE", "3.5s INVITE", "7.5s INVITE", "15.5s INVITE", "31.5s INVITE",
		}, []string{"32s Ended"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, outbound, nil, func(b *bubble) {
				call, inv := b.dials()
				tt.story(b, call, inv)
				time.Sleep(2 * time.Minute)
				wantLines(t, "peer received", b.peer.lines(), tt.lines)
				wantLines(t, "application heard", withoutChanges(b.said()), tt.said)
				if s := b.stack.Stats(); s.RTPPorts != 0 || s.Calls != 0 {
					t.Errorf("stats = %+v", s)
				}
			})
		})
	}
}

func TestSecondAnswerIsHungUp(t *testing.T) { // RFC 3261 §13.2.2.4: a proxy had two phones ring
	inBubble(t, outbound, nil, func(b *bubble) {
		_, inv := b.dials()
		b.peer.answers(inv, "180 Ringing", "b1", "")
		b.peer.answers(inv, "180 Ringing", "b2", "")
		b.peer.answers(inv, "200 OK", "b1", peerAnswer)
		b.peer.answers(inv, "200 OK", "b2", peerAnswer, "Contact: <sip:other@192.0.2.20:5060>")
		bye := b.peer.last()
		if !strings.HasPrefix(bye, "BYE sip:other@192.0.2.20:5060 SIP/2.0\r\n") || !strings.HasSuffix(headerIn(bye, "To"), ";tag=b2") {
			t.Errorf("second phone got %q", bye)
		}
		b.peer.answers(bye, "200 OK", "", "")
		b.peer.answers(inv, "200 OK", "b2", peerAnswer) // its ACK was lost
		wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "0s ACK", "0s ACK", "0s BYE", "0s ACK"})
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Provisional", "0s Answered"})
		b.peer.send(b.peer.called(inv, "BYE", "y1", 8, ""))
		if s := b.stack.Stats(); s.Forks != 1 || s.Calls != 0 {
			t.Errorf("stats = %+v", s)
		}
	})
}

// Both have had PRACKs, whose numbers the BYE must not repeat (RFC 3261 §12.2.2); and each hop may ask who we are.
func TestSecondAnswerOfAPhoneThatHasHadPracksIsHungUp(t *testing.T) {
	change := func(c *Config) { outbound(c); c.Trunks[0].Auth = Credentials{Username: "bob", Password: "secret"} }
	for _, tt := range []struct {
		name string
		end  func(b *bubble, call *Call, inv string) // why only b2's answer counts no more
	}{
		{"the other one has answered", func(b *bubble, _ *Call, inv string) { b.peer.answers(inv, "200 OK", "b1", peerAnswer) }},
		{"the call is over", func(b *bubble, call *Call, inv string) {
			_ = call.Hangup(CauseNormal)
			synctest.Wait()
			b.peer.answers(b.peer.last(), "200 OK", "b1", "")
			b.peer.answers(inv, "487 Request Terminated", "b1", "")
			<-call.Done()
		}},
		{"another phone has the call", func(b *bubble, call *Call, _ string) {
			next := b.successor()
			d := call.Dialog()
			next.send(wantsPlace(fmt.Sprintf("%s;to-tag=%s;from-tag=b1", d.CallID, d.LocalTag)))
			b.peer.answers(b.peer.last(), "200 OK", "b1", "")
			next.send(next.its("ACK", "k2", 1))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, change, nil, func(b *bubble) {
				call, inv := b.dials()
				last, rseq := map[string]uint32{}, map[string]int{}
				for _, tag := range []string{"b1", "b2", "b1", "b2", "b2"} {
					rseq[tag]++
					b.peer.answers(inv, "180 Ringing", tag, "", "Require: 100rel", fmt.Sprint("RSeq: ", rseq[tag]))
					prack := b.peer.last()
					if !strings.HasPrefix(prack, "PRACK ") {
						t.Fatalf("180 of %s got %q", tag, prack)
					}
					last[tag] = cseqOf(t, prack)
					b.peer.answers(prack, "200 OK", "", "")
				}
				tt.end(b, call, inv)
				b.peer.answers(inv, "200 OK", "b2", peerAnswer)
				bye := b.peer.last()
				if !strings.HasPrefix(bye, "BYE ") || !strings.HasSuffix(headerIn(bye, "To"), ";tag=b2") || cseqOf(t, bye) <= last["b2"] {
					t.Fatalf("after PRACK %d the second phone got %q", last["b2"], bye)
				}
				b.peer.answers(bye, "407 Proxy Authentication Required", "", "", `Proxy-Authenticate: Digest realm="p", nonce="n1"`)
				again := b.peer.last()
				if !strings.HasPrefix(again, "BYE ") || !strings.Contains(headerIn(again, "Proxy-Authorization"), `nonce="n1"`) || cseqOf(t, again) <= cseqOf(t, bye) {
					t.Errorf("challenged, it got %q", again)
				}
				b.peer.answers(again, "407 Proxy Authentication Required", "", "", `Proxy-Authenticate: Digest realm="p", nonce="n2"`)
				if refused := b.peer.last(); refused != again {
					t.Errorf("a BYE whose credentials are refused is sent again: %q", refused)
				}
				b.peer.forget()
				_ = call.Hangup(CauseNormal)
				time.Sleep(time.Minute)
			})
		})
	}
}

// A proxy has had two phones ring, and our CANCEL came too late for one of them.
func TestAnswerAfterTheEndIsHungUp(t *testing.T) {
	for name, tt := range map[string]struct {
		wait  time.Duration
		lines []string
	}{
		"the refusal is still acknowledged": {0, []string{"0s INVITE", "0s CANCEL", "0s ACK", "0s ACK", "0s BYE", "0s ACK"}},
		"long after":                        {31 * time.Second, []string{"0s INVITE", "0s CANCEL", "0s ACK", "31s ACK", "31s BYE", "31s ACK"}},
		"too long after":                    {33 * time.Second, []string{"0s INVITE", "0s CANCEL", "0s ACK"}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, outbound, nil, func(b *bubble) {
				call, inv := b.dials()
				b.peer.answers(inv, "180 Ringing", "b1", "")
				b.peer.answers(inv, "180 Ringing", "b2", "")
				_ = call.Hangup(CauseNormal)
				synctest.Wait()
				b.peer.answers(b.peer.last(), "200 OK", "b1", "")
				b.peer.answers(inv, "487 Request Terminated", "b1", "")
				<-call.Done()
				time.Sleep(tt.wait)
				b.peer.answers(inv, "200 OK", "b2", peerAnswer, "Contact: <sip:other@192.0.2.20:5060>")
				if bye := b.peer.last(); strings.HasPrefix(bye, "BYE ") {
					if !strings.HasPrefix(bye, "BYE sip:other@192.0.2.20:5060 ") || !strings.HasSuffix(headerIn(bye, "To"), ";tag=b2") {
						t.Errorf("the phone got %q", bye)
					}
					b.peer.answers(bye, "200 OK", "", "")
				}
				b.peer.answers(inv, "200 OK", "b2", peerAnswer) // our ACK was lost
				wantLines(t, "peer received", b.peer.lines(), tt.lines)
				wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Provisional", "0s Ended"})
				time.Sleep(time.Minute)
				b.stack.mu.Lock()
				defer b.stack.mu.Unlock()
				if n := len(b.stack.parted); n != 0 {
					t.Errorf("%d calls are still remembered", n)
				}
			})
		})
	}
}

// More phones than may wait for their turn: who hears nothing of its answer says it again.
func TestEachOfManyLateAnswersIsHungUp(t *testing.T) {
	inBubble(t, outbound, nil, func(b *bubble) {
		call, inv := b.dials()
		b.peer.answers(inv, "180 Ringing", "b1", "")
		_ = call.Hangup(CauseNormal)
		synctest.Wait()
		b.peer.answers(b.peer.last(), "200 OK", "b1", "")
		b.peer.answers(inv, "487 Request Terminated", "b1", "")
		<-call.Done()
		waiting := map[string]bool{}
		for i := range 3 * lateAnswers {
			waiting[fmt.Sprint("late", i)] = true
		}
		for range 3 {
			for tag := range waiting { // all at once
				answer := strings.NewReplacer("\nCall-ID", ";tag="+tag+"\nCall-ID", "Content-", "Contact: <sip:200@192.0.2.20:5060>\nContent-").Replace(replyTo(inv, "200 OK"))
				_, _ = b.peer.conn.WriteToUDPAddrPort([]byte(crlf(answer)), bridgeAddr)
			}
			synctest.Wait()
			for _, m := range b.peer.messages() {
				if _, tag, _ := strings.Cut(headerIn(m, "To"), ";tag="); strings.HasPrefix(m, "BYE ") {
					delete(waiting, tag)
				}
			}
			time.Sleep(t1)
		}
		if len(waiting) != 0 {
			t.Errorf("%d of %d phones that answered late are still up", len(waiting), 3*lateAnswers)
		}
	})
}

func TestUnusableAnswerEndsTheCall(t *testing.T) {
	for name, body := range map[string]string{
		"none": "", "other codec": strings.ReplaceAll(peerAnswer, "AVP 8", "AVP 9"), "audio refused": strings.ReplaceAll(peerAnswer, "audio 4000", "audio 0"),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, outbound, nil, func(b *bubble) {
				_, inv := b.dials()
				b.peer.answers(inv, "200 OK", "b1", body)
				bye := b.peer.last()
				if got, want := headerIn(bye, "Reason"), `SIP;cause=488;text="No usable answer"`; got != want {
					t.Errorf("Reason of BYE = %q, want %q", got, want)
				}
				b.peer.answers(bye, "200 OK", "", "")
				wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "0s ACK", "0s BYE"})
				wantLines(t, "application heard", b.said(), []string{"0s DialogChanged", "0s Failed", "0s Ended"})
			})
		})
	}
}

func TestRedirectionByPolicy(t *testing.T) {
	inBubble(t, outbound, nil, func(b *bubble) {
		asked := []Number{}
		_, inv := b.dials(func(r *DialRequest) {
			r.Redirect = func(n Number) Number {
				asked = append(asked, n)
				return map[Number]Number{"300": "+49300"}[n]
			}
		})
		b.peer.answers(inv, "302 Moved Temporarily", "b1", "", "Contact: <sip:300@elsewhere.example>")
		second := b.peer.last()
		if !strings.HasPrefix(second, "INVITE sip:+49300@carrier.example SIP/2.0\r\n") || headerIn(second, "CSeq") != "2 INVITE" ||
			headerIn(second, "Call-ID") != headerIn(inv, "Call-ID") || headerIn(second, "Via") == headerIn(inv, "Via") {
			t.Errorf("after 302: %q", second)
		}
		b.peer.answers(second, "301 Moved", "b2", "", "Contact: <sip:900@elsewhere.example>")
		wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "0s ACK", "0s INVITE", "0s ACK"})
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Refused", "0s Ended"})
		if len(asked) != 2 || asked[1] != "900" {
			t.Errorf("asked for %v", asked)
		}
	})
	for _, status := range []string{"305 Use Proxy", "380 Alternative Service"} { // what they name is not where this call may go
		inBubble(t, outbound, nil, func(b *bubble) {
			_, inv := b.dials(func(r *DialRequest) { r.Redirect = func(n Number) Number { return n } })
			b.peer.answers(inv, status, "b1", "", "Contact: <sip:300@elsewhere.example>")
			wantLines(t, status+": peer received", b.peer.lines(), []string{"0s INVITE", "0s ACK"})
		})
	}
}

func TestChallengesAreAnswered(t *testing.T) { // RFC 3261 §22
	change := func(c *Config) {
		outbound(c)
		c.Trunks[0].Auth = Credentials{Username: "bob", Password: "secret"}
	}
	inBubble(t, change, nil, func(b *bubble) {
		call, inv := b.dials()
		b.peer.answers(inv, "407 Proxy Authentication Required", "p", "", `Proxy-Authenticate: Digest realm="p", nonce="n1", qop="auth-int, auth", algorithm=MD5`)
		second := b.peer.last()
		if got := headerIn(second, "Proxy-Authorization"); !strings.Contains(got, `username="bob"`) || !strings.Contains(got, "nc=00000001") ||
			!strings.Contains(got, "qop=auth,") || !strings.Contains(got, `uri="sip:+49%20200@carrier.example"`) {
			t.Errorf("Proxy-Authorization = %s", got)
		}
		// The far end wants to know, too, with the better of two algorithms (RFC 8760).
		b.peer.answers(second, "401 Unauthorized", "f", "", `WWW-Authenticate: Digest realm="f", nonce="n2", algorithm=SHA-256`, `WWW-Authenticate: Digest realm="f", nonce="n2"`)
		third := b.peer.last()
		if got := headersIn(third, "Authorization"); !strings.Contains(got, "algorithm=SHA-256") || strings.Contains(got, "|") {
			t.Errorf("Authorization = %s", got)
		}
		b.peer.answers(third, "407 Proxy Authentication Required", "p", "", `Proxy-Authenticate: Digest realm="p", nonce="n3", stale=true, qop="auth"`)
		fourth := b.peer.last()
		if got := headersIn(fourth, "Proxy-Authorization"); !strings.Contains(got, `nonce="n3"`) || !strings.Contains(got, "nc=00000001") || headerIn(fourth, "CSeq") != "4 INVITE" {
			t.Errorf("after stale: %s, CSeq %s", got, headerIn(fourth, "CSeq"))
		}
		b.peer.answers(fourth, "200 OK", "b1", peerAnswer)
		if ack := b.peer.last(); headerIn(ack, "Proxy-Authorization") == "" || headerIn(ack, "CSeq") != "4 ACK" {
			t.Errorf("ACK = %q", ack)
		}
		_ = call.Hangup(CauseNormal)
		synctest.Wait()
		bye := b.peer.last()
		if got := headerIn(bye, "Proxy-Authorization"); !strings.Contains(got, "nc=00000002") {
			t.Errorf("BYE has %s, want the nonce again", got)
		}
		b.peer.answers(bye, "407 Proxy Authentication Required", "", "", `Proxy-Authenticate: Digest realm="p", nonce="n4", stale=true, qop="auth"`)
		bye = b.peer.last()
		if got := headersIn(bye, "Proxy-Authorization"); !strings.Contains(got, `nonce="n4"`) || headerIn(bye, "CSeq") != "6 BYE" {
			t.Errorf("second BYE has %s, CSeq %s", got, headerIn(bye, "CSeq"))
		}
		b.peer.answers(bye, "200 OK", "", "")
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Answered", "0s Ended"})
	})
	inBubble(t, change, nil, func(b *bubble) { // the body counts, too, where nothing less will do
		_, inv := b.dials()
		b.peer.answers(inv, "401 Unauthorized", "f", "", `WWW-Authenticate: Digest realm="f", nonce="n1", qop="auth-int"`)
		again := b.peer.last()
		got, err := digest.ParseCredentials(headerIn(again, "Authorization"))
		if err != nil || got.QOP != "auth-int" {
			t.Fatalf("Authorization: %s, %v", headerIn(again, "Authorization"), err)
		}
		sum := func(parts ...string) string { return fmt.Sprintf("%x", md5.Sum([]byte(strings.Join(parts, ":")))) }
		_, body, _ := strings.Cut(again, "\r\n\r\n")
		want := sum(sum("bob", "f", "secret"), "n1", "00000001", got.Cnonce, "auth-int", sum("INVITE", got.URI, sum(body)))
		if got.Response != want {
			t.Errorf("response = %s, want %s", got.Response, want)
		}
	})
	otherName := func(c *Config) { change(c); c.Trunks[0].Auth.Login = "customer 7" }
	inBubble(t, otherName, nil, func(b *bubble) {
		_, inv := b.dials(func(r *DialRequest) { r.From = Caller{} })
		b.peer.answers(inv, "401 Unauthorized", "f", "", `WWW-Authenticate: Digest realm="f", nonce="n1"`)
		again := b.peer.last()
		if got := headerIn(again, "Authorization"); !strings.Contains(got, `username="customer 7"`) || !strings.Contains(headerIn(again, "From"), "<sip:bob@") {
			t.Errorf("From %s, Authorization %s: want the account there and the login here", headerIn(again, "From"), got)
		}
	})
	inBubble(t, change, nil, func(b *bubble) { // a wrong password is not tried for ever
		_, inv := b.dials()
		for range 3 {
			if !strings.HasPrefix(inv, "INVITE") {
				break
			}
			b.peer.answers(inv, "401 Unauthorized", "f", "", `WWW-Authenticate: Digest realm="f", nonce="`+newTag()+`"`)
			inv = b.peer.last()
		}
		wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "0s ACK", "0s INVITE", "0s ACK"})
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Refused", "0s Ended"})
	})
}

func TestTrunkThatWantsAnAccountIsToldOf(t *testing.T) {
	for status, told := range map[string]bool{"407 Proxy Authentication Required": true, "403 Forbidden": false} {
		inBubble(t, outbound, nil, func(b *bubble) {
			var log strings.Builder
			b.stack.log = slog.New(slog.NewTextHandler(&log, nil))
			call, inv := b.dials()
			b.peer.answers(inv, status, "p", "", `Proxy-Authenticate: Digest realm="p", nonce="n1"`)
			<-call.Done()
			if strings.Contains(log.String(), "username_set=false") != told {
				t.Errorf("after %s the log has\n%s", status, log.String())
			}
		})
	}
}

// Requests that are under way together are each challenged, by a trunk whose nonces hold for one request and that calls none stale.
func TestRequestsUnderWayTogetherAreEachChallenged(t *testing.T) {
	change := func(c *Config) {
		quiet10h(c)
		c.Trunks[0].DTMF = DTMFInfo
		c.Trunks[0].Auth = Credentials{Username: "bob", Password: "secret"}
	}
	together := func(b *bubble, call *Call, inv string) (info, bye string) {
		b.Helper()
		b.peer.answers(inv, "200 OK", "b1", peerAnswer)
		call.Media().SendDigit('5')
		synctest.Wait()
		info = b.peer.last()
		_ = call.Hangup(CauseNormal)
		synctest.Wait()
		bye = b.peer.last()
		if !strings.HasPrefix(info, "INFO ") || !strings.HasPrefix(bye, "BYE ") {
			b.Fatalf("under way are %q and %q", info, bye)
		}
		return info, bye
	}
	inBubble(t, change, nil, func(b *bubble) {
		nonces := 0
		challenge := func(req string) string {
			nonces++
			b.peer.answers(req, "401 Unauthorized", "b1", "", fmt.Sprintf(`WWW-Authenticate: Digest realm="x", nonce="n%d"`, nonces))
			return b.peer.last()
		}
		call, inv := b.dials()
		inv = challenge(inv)
		info, bye := together(b, call, inv)
		for _, req := range []string{info, bye} {
			again := challenge(req)
			method, _, _ := strings.Cut(req, " ")
			if !strings.HasPrefix(again, method) || !strings.Contains(headerIn(again, "Authorization"), fmt.Sprintf(`nonce="n%d"`, nonces)) {
				t.Errorf("challenged, %s is followed by %q", method, again)
			}
			bye = again
		}
		challenge(bye) // its own answer is refused
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Answered", "0s Ended"})
	})
	inBubble(t, change, nil, func(b *bubble) { // with a nonce that lives for a while (RFC 7616 §3.4: each use has a number of its own)
		call, inv := b.dials()
		info, bye := together(b, call, inv)
		for i, req := range []string{info, bye} {
			b.peer.answers(req, "401 Unauthorized", "b1", "", `WWW-Authenticate: Digest realm="x", nonce="n", qop="auth"`)
			again := b.peer.last()
			if got, want := headerIn(again, "Authorization"), fmt.Sprintf("nc=%08x", i+1); methodOf(again) != methodOf(req) || !strings.Contains(got, want) {
				t.Errorf("challenged, %s is followed by %s with %q, want %s", methodOf(req), methodOf(again), got, want)
			}
			bye = again
		}
		b.peer.answers(bye, "200 OK", "b1", "")
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Answered", "0s Ended"})
	})
}

// A trunk that names another realm each time is not answered for ever, whatever the request; and what it has named does not make
// the requests after that ever longer.
func TestChallengesOfEverNewRealmsHaveAnEnd(t *testing.T) {
	change := func(c *Config) {
		quiet10h(c)
		c.Trunks[0].Auth = Credentials{Username: "bob", Password: "secret"}
	}
	challenged := func(b *bubble, method string) {
		b.Helper()
		asked, answers := 0, 0
		for ; asked < 30 && strings.HasPrefix(b.peer.last(), method+" "); asked++ {
			req := b.peer.last()
			answers = max(answers, len(strings.Split(headersIn(req, "Authorization"), "|")))
			b.peer.forget()
			b.peer.answers(req, "401 Unauthorized", "f", "", fmt.Sprintf(`WWW-Authenticate: Digest realm="%s", nonce="n"`, newTag()))
		}
		if asked != maxAsk || answers > maxAsk {
			b.Errorf("%s was sent %d times with up to %d credentials, want %d times with no more", method, asked, answers, maxAsk)
		}
	}
	t.Run("INVITE", func(t *testing.T) {
		inBubble(t, change, nil, func(b *bubble) {
			b.dials()
			challenged(b, "INVITE")
			wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Refused", "0s Ended"})
		})
	})
	for _, refresh := range []string{"UPDATE", "INVITE"} {
		t.Run(refresh+" inside the call, and its BYE", func(t *testing.T) {
			inBubble(t, change, nil, func(b *bubble) {
				call, inv := b.dials()
				b.peer.answers(inv, "200 OK", "b1", peerAnswer, "Session-Expires: 600;refresher=uac", "Allow: "+refresh)
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				challenged(b, refresh)
				_ = call.Hangup(CauseNormal)
				synctest.Wait()
				challenged(b, "BYE")
				wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Answered", "5m0s Ended"})
			})
		})
	}
}

// The called side may send requests as soon as it has said something, each of several that ring with its own numbers.
func TestRequestsOfTheCalledSideBeforeItsAnswer(t *testing.T) { // RFC 3261 §12.1.2, RFC 3311 §5.2, RFC 5057
	inBubble(t, quiet10h, nil, func(b *bubble) {
		call, inv := b.dials()
		b.peer.answers(inv, "183 Session Progress", "b1", peerAnswer, "Require: 100rel", "RSeq: 40")
		b.peer.answers(b.peer.last(), "200 OK", "", "")
		b.peer.answers(inv, "180 Ringing", "b2", "")
		b.peer.forget()
		second := "From: " + headerIn(inv, "To") + ";tag=b2"
		before := call.Dialog()
		for i, tt := range []struct {
			method string
			cseq   int
			body   string
			edit   []string
			want   string
		}{
			{"UPDATE", 1, "", nil, "200 OK"},
			{"UPDATE", 2, peerOffer, []string{second}, "491 Request Pending"},
			{"OPTIONS", 3, "", nil, "200 OK"},
			{"OPTIONS", 2, "", nil, "500 Out of order"},
			{"OPTIONS", 3, "", []string{second}, "200 OK"},
			{"INVITE", 4, peerOffer, nil, "500 Server Internal Error"},
			{"REFER", 5, "", []string{"Refer-To: <sip:300@carrier.example>"}, "500 Server Internal Error"},
			{"BYE", 6, "", nil, "481 Call/Transaction Does Not Exist"},
			{"OPTIONS", 7, "", []string{"From: " + headerIn(inv, "To") + ";tag=stranger"}, "481 Call/Transaction Does Not Exist"},
			{"UPDATE", 8, "", []string{"Contact: <sip:elsewhere@192.0.2.20:5060>"}, "200 OK"},
		} {
			b.peer.send(b.peer.called(inv, tt.method, fmt.Sprint("e", i), tt.cseq, tt.body, tt.edit...))
			if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 "+tt.want) || !strings.HasSuffix(headerIn(got, "CSeq"), tt.method) {
				t.Errorf("%s with CSeq %d got %.40q, want %s", tt.method, tt.cseq, got, tt.want)
			}
		}
		if d := call.Dialog(); d.RemoteTarget != before.RemoteTarget || d.Remote != before.Remote || d.RemoteTag != "" {
			t.Errorf("dialog = %+v, want it as before", d)
		}
		b.peer.answers(inv, "200 OK", "b2", peerAnswer) // the other one answers
		b.peer.forget()
		b.peer.send(b.peer.called(inv, "UPDATE", "u1", 4, peerOffer, second))
		b.peer.send(b.peer.called(inv, "BYE", "y1", 5, "", second))
		wantLines(t, "peer received", b.peer.lines(), []string{"0s 200 OK", "0s 200 OK"})
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Provisional", "0s Provisional", "0s Answered", "0s Bye", "0s Ended"})
	})
}

func TestDialErrors(t *testing.T) {
	full := func(c *Config) { outbound(c); c.Trunks[0].MaxCalls = 1 }
	inBubble(t, full, nil, func(b *bubble) {
		for _, tt := range []struct {
			r    DialRequest
			want error
		}{{DialRequest{Trunk: "none", Number: "1"}, ErrNoTrunk}, {DialRequest{Trunk: "lab"}, nil}} {
			if _, err := b.stack.Dial(t.Context(), tt.r); err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("Dial(%+v) = %v, want %v", tt.r, err, tt.want)
			}
		}
		call, _ := b.dials()
		if _, err := b.stack.Dial(t.Context(), DialRequest{Trunk: "lab", Number: "1"}); !errors.Is(err, ErrFull) {
			t.Errorf("Dial on a busy trunk = %v, want ErrFull", err)
		}
		_ = call.Hangup(CauseNormal)
		time.Sleep(time.Minute)
		b.stack.Drain(true)
		if _, err := b.stack.Dial(t.Context(), DialRequest{Trunk: "lab", Number: "1"}); !errors.Is(err, ErrFull) {
			t.Errorf("Dial while draining = %v, want ErrFull", err)
		}
		if n := b.stack.Stats().RTPPorts; n != 0 {
			t.Errorf("%d port pairs in use", n)
		}
	})
}

func TestDiallingSurvivesRestart(t *testing.T) {
	for _, answered := range []bool{false, true} {
		for _, hangup := range []bool{false, true} {
			t.Run(fmt.Sprintf("answered %v, hang up %v", answered, hangup), func(t *testing.T) {
				var saved []byte
				var first string
				inBubble(t, outbound, nil, func(b *bubble) {
					call, inv := b.dials()
					b.peer.answers(inv, "180 Ringing", "b1", "")
					saved, _ = json.Marshal(call.Dialog())
					first = inv
				})
				inBubble(t, outbound, nil, func(b *bubble) { // another process
					var d Dialog
					if err := json.Unmarshal(saved, &d); err != nil {
						t.Fatal(err)
					}
					call, err := b.stack.Resume(d)
					if err != nil {
						t.Fatal(err)
					}
					b.Invite(call)
					if hangup {
						_ = call.Hangup(CauseNormal)
					} else if err := call.SendInvite(); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					inv := b.peer.last()
					for _, name := range []string{"Via", "From", "To", "Call-ID", "CSeq"} { // the same transaction for the other side
						if headerIn(inv, name) != headerIn(first, name) {
							t.Errorf("repeated INVITE has %s: %s, want %s", name, headerIn(inv, name), headerIn(first, name))
						}
					}
					want := []string{"0s INVITE"}
					if !answered {
						b.peer.answers(inv, "180 Ringing", "b1", "")
						if hangup {
							b.peer.answers(b.peer.last(), "200 OK", "b1", "")
							b.peer.answers(inv, "487 Request Terminated", "b1", "")
							wantLines(t, "peer received", b.peer.lines(), append(want, "0s CANCEL", "0s ACK"))
							wantLines(t, "application heard", b.said(), []string{"0s Ended"})
							return
						}
					}
					b.peer.answers(inv, "200 OK", "b1", peerAnswer)
					if hangup {
						b.peer.answers(b.peer.last(), "200 OK", "", "")
						wantLines(t, "peer received", b.peer.lines(), append(want, "0s ACK", "0s BYE"))
						return
					}
					wantLines(t, "peer received", b.peer.lines(), append(want, "0s ACK"))
					b.peer.send(b.peer.called(inv, "BYE", "y1", 8, ""))
					if said := b.said(); said[len(said)-1] != "0s Ended" {
						t.Errorf("said %v", said)
					}
				})
			})
		}
	}
}

func TestHeldAckWaitsUntilTheAnswerIsSaved(t *testing.T) {
	held := func(r *DialRequest) { r.HoldAck = true }
	inBubble(t, outbound, nil, func(b *bubble) {
		call, inv := b.dials(held)
		b.peer.answers(inv, "200 OK", "b1", peerAnswer)
		time.Sleep(500 * time.Millisecond)
		b.peer.answers(inv, "200 OK", "b1", peerAnswer) // it has not heard us
		time.Sleep(100 * time.Millisecond)
		for range 2 { // the second one has nothing to send
			if err := call.Acknowledge(); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		b.peer.answers(inv, "200 OK", "b1", peerAnswer) // our ACK was lost
		b.peer.send(b.peer.called(inv, "BYE", "y1", 8, ""))
		wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "600ms ACK", "600ms ACK", "600ms 200 OK"})
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Answered", "600ms Bye", "600ms Ended"})
	})
	inBubble(t, outbound, nil, func(b *bubble) { // we hang up first
		call, inv := b.dials(held)
		b.peer.answers(inv, "200 OK", "b1", peerAnswer)
		_ = call.Hangup(CauseNormal)
		synctest.Wait()
		b.peer.send(replyTo(b.peer.last(), "200 OK"))
		wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "0s ACK", "0s BYE"})
	})
}

// The process before has died between an answer and its ACK: the phone says it again, and gets one from the next process.
func TestResumedCallAcknowledgesAnAnswerOfBefore(t *testing.T) {
	inBubble(t, outbound, nil, func(b *bubble) {
		call, inv := b.dials()
		b.peer.answers(inv, "200 OK", "b1", peerAnswer)
		b.peer.forgetAfter(0)
		saved := call.Dialog()
		before, branch := saved.LocalTag, saved.InviteBranch
		saved.LocalTag, saved.InviteBranch = "other", newBranch() // as if the first call had never been in this process
		inv = strings.ReplaceAll(strings.ReplaceAll(inv, before, "other"), branch, saved.InviteBranch)
		resumed, err := b.stack.Resume(saved)
		if err != nil {
			t.Fatal(err)
		}
		if err := resumed.Acknowledge(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		ack := b.peer.last()
		if !strings.HasPrefix(ack, "ACK sip:200@192.0.2.20:5060 SIP/2.0\r\n") || headerIn(ack, "CSeq") != "1 ACK" || !strings.HasSuffix(headerIn(ack, "To"), ";tag=b1") {
			t.Errorf("ACK = %q", ack)
		}
		b.peer.answers(inv, "200 OK", "b1", peerAnswer)
		b.peer.answers(inv, "200 OK", "stranger", peerAnswer) // not of this dialog
		wantLines(t, "peer received", b.peer.lines(), []string{"0s ACK", "0s ACK"})
	})
}
