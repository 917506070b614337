package sip

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/rtp"
)

// The ringback of a carrier comes from one machine after the other: they tell us by UPDATE (RFC 3311) before anybody answers.

// serverAt describes another machine of the carrier.
func serverAt(host string, port int, codec uint8) string {
	return fmt.Sprintf("v=0\no=- 9 2 IN IP4 %s\ns=-\nc=IN IP4 %[1]s\nt=0 0\nm=audio %d RTP/AVP %d\n", host, port, codec)
}

// sound is where one machine of the far end sends and hears.
type sound struct {
	b    *bubble
	conn *memConn
	seq  uint16
}

func (b *bubble) soundAt(at string) *sound {
	s := &sound{b: b, conn: b.world.listen(addr(at))}
	b.Cleanup(func() { _ = s.conn.Close() })
	return s
}

// talksTo sends a few packets of its own stream, as the lock wants to see them.
func (s *sound) talksTo(m *Media, pt uint8) {
	for range 5 {
		s.seq++
		p := rtp.Packet{
			Header:  rtp.Header{Version: 2, PayloadType: pt, SSRC: uint32(s.conn.addr.Port()), SequenceNumber: s.seq, Timestamp: uint32(s.seq) * 160},
			Payload: make([]byte, 160),
		}
		data, _ := p.Marshal()
		_, _ = s.conn.WriteToUDPAddrPort(data, m.LocalAddr())
	}
	synctest.Wait()
}

// hears sends one packet of ours and says whether it came here.
func (s *sound) hears(m *Media) bool {
	drain(s.conn)
	_ = m.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5, PayloadType: m.Format().PayloadType}, Payload: make([]byte, 160)})
	return len(drain(s.conn)) == 1
}

// progresses sends a reliable 183 of the far end with this tag, and takes its PRACK.
func (p *rawPeer) progresses(inv, tag string, rseq int, body string) {
	p.answers(inv, "183 Session Progress", tag, body, "Require: 100rel", fmt.Sprint("RSeq: ", rseq))
	if prack := p.last(); strings.HasPrefix(prack, "PRACK ") {
		p.answers(prack, "200 OK", "", "")
	} else {
		p.b.Errorf("after the 183 of %s: %.40q, want PRACK", tag, prack)
	}
}

func ofTag(inv, tag string) string { return "From: " + headerIn(inv, "To") + ";tag=" + tag }

func originOf(m string) string {
	_, rest, _ := strings.Cut(m, "\r\no=")
	line, _, _ := strings.Cut(rest, "\r\n")
	return line
}

func versionOf(m string) string {
	if f := strings.Fields(originOf(m)); len(f) > 2 {
		return f[2]
	}
	return ""
}

func TestRingbackGoesOnFromAnotherMachine(t *testing.T) {
	inBubble(t, quiet10h, nil, func(b *bubble) {
		first, second := b.soundAt("192.0.2.20:4000"), b.soundAt("192.0.2.30:5000")
		call, inv := b.dials()
		m := call.Media()
		heard := 0
		m.OnPacket(func(*rtp.Packet) { heard++ })
		b.peer.progresses(inv, "b1", 40, peerAnswer)
		first.talksTo(m, 8)
		if heard == 0 || !first.hears(m) {
			t.Errorf("heard %d packets of the first machine, want some", heard)
		}
		time.Sleep(time.Second)

		b.peer.send(b.peer.called(inv, "UPDATE", "u1", 1, serverAt("192.0.2.30", 5000, 0)))
		ok := b.peer.last()
		if !strings.HasPrefix(ok, "SIP/2.0 200") || !strings.Contains(ok, " RTP/AVP 0\r\n") || versionOf(ok) != "2" || headerIn(ok, "Content-Type") != sdpType {
			t.Errorf("the offer is answered with %q", ok)
		}
		if originOf(inv)[:8] != originOf(ok)[:8] {
			t.Errorf("the session is %q in the INVITE and %q now", originOf(inv), originOf(ok))
		}
		if f := m.Format(); f.Codec != "PCMU" {
			t.Errorf("format = %+v, want PCMU", f)
		}
		heard = 0
		first.talksTo(m, 8)
		if heard != 0 {
			t.Errorf("heard %d packets of the machine that is out", heard)
		}
		second.talksTo(m, 0)
		if heard == 0 || !second.hears(m) {
			t.Errorf("heard %d packets of the second machine, want some", heard)
		}

		b.peer.answers(inv, "183 Session Progress", "b1", peerAnswer) // describes what was before
		b.peer.answers(inv, "200 OK", "b1", "")
		if !second.hears(m) || m.Format().Codec != "PCMU" {
			t.Errorf("after the answer the sound goes elsewhere, in %s", m.Format().Codec)
		}
		if d := call.Dialog(); d.EarlyTag != "" || d.RemoteCSeq != 1 || !d.Confirmed {
			t.Errorf("dialog = %+v", d)
		}
		b.peer.send(b.peer.called(inv, "UPDATE", "u2", 2, serverAt("192.0.2.20", 4000, 8)))
		if ok := b.peer.last(); versionOf(ok) != "3" || !first.hears(m) {
			t.Errorf("once it is answered: %q", ok)
		}
		b.peer.send(b.peer.called(inv, "BYE", "y1", 3, ""))
		wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "0s PRACK", "1s 200 OK", "1s ACK", "1s 200 OK", "1s 200 OK"})
		wantLines(t, "application heard", b.said(), []string{
			"0s DialogChanged", "0s Provisional", "1s MediaChanged", "1s DialogChanged", "1s DialogChanged", "1s Answered",
			"1s MediaChanged", "1s DialogChanged", "1s Bye", "1s Ended",
		})
	})
}

func TestOffersBeforeTheAnswerOfTheCalledSide(t *testing.T) { // RFC 3311 §5.2
	for _, tt := range []struct {
		name  string
		begin func(*rawPeer, string)
		offer string
		want  string
	}{
		{"nothing is agreed", func(p *rawPeer, inv string) { p.answers(inv, "180 Ringing", "b1", "") }, peerOffer, "491 Request Pending"},
		{"an answer that may be lost is none", func(p *rawPeer, inv string) { p.answers(inv, "183 Session Progress", "b1", peerAnswer) }, peerOffer, "491 Request Pending"},
		{"what comes for sure says nothing of sound", func(p *rawPeer, inv string) { p.progresses(inv, "b1", 1, "") }, peerOffer, "491 Request Pending"},
		{"an answer nobody can use", func(p *rawPeer, inv string) { p.progresses(inv, "b1", 1, serverAt("192.0.2.20", 4000, 18)) }, peerOffer, "491 Request Pending"},
		{"another far end's answer", func(p *rawPeer, inv string) {
			p.progresses(inv, "b2", 1, peerAnswer)
			p.answers(inv, "180 Ringing", "b1", "")
		}, peerOffer, "491 Request Pending"},
		{"agreed", func(p *rawPeer, inv string) { p.progresses(inv, "b1", 1, peerAnswer) }, peerOffer, "200 OK"},
		{"the same description, first lost, then for sure", func(p *rawPeer, inv string) {
			p.answers(inv, "183 Session Progress", "b1", peerAnswer)
			p.progresses(inv, "b1", 1, peerAnswer)
		}, peerOffer, "200 OK"},
		{"two far ends describe the same", func(p *rawPeer, inv string) {
			p.progresses(inv, "b2", 1, peerAnswer)
			p.progresses(inv, "b1", 7, peerAnswer)
		}, peerOffer, "200 OK"},
		{"agreed, but the offer has nothing for us", func(p *rawPeer, inv string) { p.progresses(inv, "b1", 1, peerAnswer) }, serverAt("192.0.2.20", 4000, 18), "488 Not Acceptable Here"},
		{"agreed, but the offer is broken", func(p *rawPeer, inv string) { p.progresses(inv, "b1", 1, peerAnswer) }, "v=0\nm=audio x\n", "400 Malformed SDP"},
		{"a timer too brief", func(p *rawPeer, inv string) { p.progresses(inv, "b1", 1, peerAnswer) }, peerOffer, "422 Session Interval Too Small"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, quiet10h, nil, func(b *bubble) {
				call, inv := b.dials()
				tt.begin(b.peer, inv)
				before := call.Dialog()
				var edit []string
				if strings.HasPrefix(tt.want, "422") {
					edit = []string{"Supported: timer", "Session-Expires: 30"}
				}
				b.peer.send(b.peer.called(inv, "UPDATE", "u1", 1, tt.offer, edit...))
				if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 "+tt.want) || headerIn(got, "CSeq") != "1 UPDATE" {
					t.Errorf("the offer got %.50q, want %s", got, tt.want)
				}
				after := call.Dialog()
				if tt.want != "200 OK" && (after.Media != before.Media || after.EarlyTag != "") {
					t.Errorf("media = %+v, want it as before: %+v", after.Media, before.Media)
				}
				if tt.want == "200 OK" && (after.Media.Remote != peerRTP || after.Media.Format.Codec != "PCMU" || after.EarlyTag != "b1") {
					t.Errorf("media = %+v of %q, want PCMU of b1", after.Media, after.EarlyTag)
				}
				b.peer.answers(inv, "200 OK", "b1", peerAnswer)
				if said := b.said(); said[len(said)-1] != "0s Answered" {
					t.Errorf("said %v, want Answered at last", said)
				}
				b.peer.send(b.peer.called(inv, "BYE", "y1", 2, ""))
			})
		})
	}
}

// Each far end goes on from what it was told, whoever else has made offers meanwhile.
func TestFarEndsHaveOffersOfTheirOwn(t *testing.T) {
	one, two := serverAt("192.0.2.30", 5000, 0), serverAt("192.0.2.40", 6000, 8)
	for _, tt := range []struct {
		answers, body string
		at            string
		version       string // of our answer to its next offer
	}{
		{"b1", "", "192.0.2.30:5000", "3"},
		{"b1", peerAnswer, "192.0.2.30:5000", "3"},
		{"b2", "", "192.0.2.40:6000", "2"},
		{"b2", serverAt("192.0.2.50", 7000, 8), "192.0.2.50:7000", "2"},
		{"b3", serverAt("192.0.2.50", 7000, 8), "192.0.2.50:7000", "2"}, // never heard of before
		{"b3", "", "192.0.2.40:6000", "2"},                              // the one that was heard last, under another tag
	} {
		t.Run(tt.answers+" at "+tt.at, func(t *testing.T) {
			inBubble(t, quiet10h, nil, func(b *bubble) {
				call, inv := b.dials()
				b.peer.progresses(inv, "b1", 40, peerAnswer)
				b.peer.send(b.peer.called(inv, "UPDATE", "u1", 1, one))
				b.peer.progresses(inv, "b2", 90, two)
				if got := call.Dialog(); got.Media.Remote != addr("192.0.2.40:6000") || got.EarlyTag != "" {
					t.Errorf("media = %+v, want that of who was heard last", got.Media)
				}
				b.peer.answers(inv, "200 OK", tt.answers, tt.body)
				if got := call.Dialog().Media.Remote; got != addr(tt.at) {
					t.Errorf("the sound goes to %v, want %s", got, tt.at)
				}
				b.peer.send(b.peer.called(inv, "UPDATE", "u2", 9, peerOffer+"a=sendonly\n", ofTag(inv, tt.answers)))
				if ok := b.peer.last(); !strings.HasPrefix(ok, "SIP/2.0 200") || versionOf(ok) != tt.version {
					t.Errorf("its next offer is answered with version %s, want %s: %q", versionOf(ok), tt.version, ok)
				}
				b.peer.send(b.peer.called(inv, "BYE", "y1", 10, "", ofTag(inv, tt.answers)))
				if said := b.said(); said[len(said)-1] != "0s Ended" {
					t.Errorf("said %v, want Ended at last", said)
				}
			})
		})
	}
}

func TestFarEndsDoNotGrowWithoutEnd(t *testing.T) {
	inBubble(t, quiet10h, nil, func(b *bubble) {
		call, inv := b.dials()
		for i := range 4 * maxForks {
			b.peer.answers(inv, "180 Ringing", fmt.Sprint("b", i), "")
		}
		last := fmt.Sprint("b", 4*maxForks-1)
		b.peer.send(b.peer.called(inv, "OPTIONS", "o1", 1, "", ofTag(inv, "b1")))
		b.peer.send(b.peer.called(inv, "OPTIONS", "o2", 1, "", ofTag(inv, last)))
		lines := b.peer.lines()
		wantLines(t, "the first and the last far end got", lines[len(lines)-2:], []string{"0s 200 OK", "0s 481 Call/Transaction Does Not Exist"})
		b.peer.answers(inv, "183 Session Progress", last, peerAnswer)
		b.peer.answers(inv, "200 OK", last, peerAnswer)
		if n, d := len(call.out.forks), call.Dialog(); n != maxForks || d.RemoteTag != last || d.Media.Remote != peerRTP {
			t.Errorf("%d far ends are remembered, want %d; the call is with %q", n, maxForks, d.RemoteTag)
		}
		b.peer.send(b.peer.called(inv, "BYE", "y1", 2, "", ofTag(inv, last)))
	})
}

// An INVITE that is sent anew has the offer of the first, whatever was agreed with who is out.
func TestNextInviteOffersEverythingAgain(t *testing.T) {
	change := func(c *Config) { quiet10h(c); c.Trunks[0].Auth = Credentials{Username: "bob", Password: "secret"} }
	inBubble(t, change, nil, func(b *bubble) {
		call, inv := b.dials()
		b.peer.progresses(inv, "b1", 40, peerAnswer)
		b.peer.send(b.peer.called(inv, "UPDATE", "u1", 1, serverAt("192.0.2.30", 5000, 0)))
		b.peer.answers(inv, "407 Proxy Authentication Required", "b1", "", `Proxy-Authenticate: Digest realm="x", nonce="n"`)
		again := b.peer.last()
		if originOf(again) != originOf(inv) || !strings.Contains(again, " RTP/AVP 0 8 101\r\n") {
			t.Errorf("second INVITE = %q", again)
		}
		b.peer.send(b.peer.called(inv, "UPDATE", "u2", 2, peerOffer)) // of who is out
		if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 481") {
			t.Errorf("a far end of the first INVITE got %.40q, want 481", got)
		}
		b.peer.answers(again, "200 OK", "b2", peerAnswer)
		if d := call.Dialog(); d.Media.Remote != peerRTP || d.Media.SDPVersion != 1 || d.EarlyTag != "" {
			t.Errorf("dialog = %+v", d)
		}
		b.peer.send(b.peer.called(inv, "BYE", "y1", 3, "", ofTag(inv, "b2")))
	})
}

// Killed while the phone rings: the far end repeats its 183, which describes the first machine, and answers without a description.
func TestRingbackOfAnotherMachineGoesOnAfterARestart(t *testing.T) {
	var saved []byte
	inBubble(t, quiet10h, nil, func(b *bubble) {
		_, inv := b.dials()
		b.peer.progresses(inv, "b1", 40, peerAnswer)
		b.peer.send(b.peer.called(inv, "UPDATE", "u1", 1, serverAt("192.0.2.30", 5000, 0)))
		saved, _ = json.Marshal(b.saved())
	})
	inBubble(t, quiet10h, nil, func(b *bubble) {
		second := b.soundAt("192.0.2.30:5000")
		var d Dialog
		if err := json.Unmarshal(saved, &d); err != nil {
			t.Fatal(err)
		}
		call := b.resumes(d)
		m := call.Media()
		if !second.hears(m) {
			t.Error("the second machine does not hear us any more")
		}
		if err := call.SendInvite(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		inv := b.peer.last()
		b.peer.progresses(inv, "b1", 40, peerAnswer)
		b.peer.answers(inv, "200 OK", "b1", "")
		if !second.hears(m) || m.Format().Codec != "PCMU" {
			t.Errorf("after the answer the sound goes elsewhere, in %s", m.Format().Codec)
		}
		b.peer.send(b.peer.called(inv, "UPDATE", "u2", 9, serverAt("192.0.2.20", 4000, 8)))
		if ok := b.peer.last(); versionOf(ok) != "3" {
			t.Errorf("the next offer is answered with %q, want version 3", ok)
		}
		b.peer.send(b.peer.called(inv, "BYE", "y1", 10, ""))
		if said := b.said(); !strings.Contains(strings.Join(said, " "), "Answered") || said[len(said)-1] != "0s Ended" {
			t.Errorf("said %v", said)
		}
	})
}

func TestDialledPhoneMayAnswerWithOtherNumbers(t *testing.T) { // RFC 3264 §6.1
	inBubble(t, outbound, nil, func(b *bubble) {
		phone := b.phoneMedia()
		call, inv := b.dials()
		b.peer.answers(inv, "200 OK", "b1", strings.ReplaceAll(peerAnswer, "101", "97"))
		phone.press(call.Media().LocalAddr(), '5', 160) // as our offer numbers it
		synctest.Wait()
		b.peer.send(b.peer.called(inv, "BYE", "y1", 3, ""))
		if got := strings.Join(b.said(), " "); !strings.Contains(got, "Digit") {
			t.Errorf("said %s, want a Digit", got)
		}
	})
}

// hearsProgress is a phone that can do reliable responses and has heard ours, with our description.
func (b *bubble) hearsProgress(body string) (*Call, *Media, string) {
	b.Helper()
	b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, body, "Supported: 100rel"))
	call := <-b.calls
	_, m, err := call.Progress()
	if err != nil {
		b.Fatal(err)
	}
	synctest.Wait()
	return call, m, "RAck: " + headerIn(b.peer.last(), "RSeq") + " 1 INVITE"
}

func TestCallerMovesItsSoundBeforeWeAnswer(t *testing.T) { // RFC 3311 §5.2, RFC 3262 §5
	for _, method := range []string{"UPDATE", "PRACK"} {
		t.Run(method, func(t *testing.T) {
			inBubble(t, quiet10h, nil, func(b *bubble) {
				other := b.soundAt("192.0.2.30:5000")
				call, m, rack := b.hearsProgress(peerOffer)
				progress := b.peer.last()
				offer := serverAt("192.0.2.30", 5000, 8)
				if method == "UPDATE" {
					b.peer.send(b.peer.within("UPDATE", "u0", 2, offer)) // the 183 may be lost as yet
					if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 500") || headerIn(got, "Retry-After") == "" {
						t.Errorf("before its PRACK an offer got %.60q, want 500 with Retry-After", got)
					}
					b.peer.send(b.peer.within("PRACK", "p1", 3, "", rack))
					b.peer.send(b.peer.within("UPDATE", "u1", 4, offer, "Contact: <sip:moved@192.0.2.20:5060>"))
				} else {
					b.peer.send(b.peer.within("PRACK", "p1", 4, offer, rack))
				}
				ok := b.peer.last()
				if !strings.HasPrefix(ok, "SIP/2.0 200") || headerIn(ok, "CSeq") != "4 "+method || !strings.Contains(ok, " RTP/AVP 8\r\n") ||
					versionOf(ok) != "2" || headerIn(ok, "Content-Type") != sdpType || strings.Contains(ok, "Session-Expires") {
					t.Errorf("%s with an offer got %q", method, ok)
				}
				if !other.hears(m) || m.Format().Codec != "PCMA" {
					t.Errorf("the sound goes elsewhere, in %s", m.Format().Codec)
				}
				b.peer.forget()
				time.Sleep(earlyInterval + time.Second) // the 183 again, so that nobody on the way gives up
				again := b.peer.last()
				if !strings.HasPrefix(again, "SIP/2.0 183") || strings.Contains(again, "v=0") || headerIn(again, "Content-Length") != "0" {
					t.Errorf("183 = %q, want no description: it was %q", again, progress)
				}
				b.peer.send(b.peer.within("PRACK", "p2", 5, "", "RAck: "+headerIn(again, "RSeq")+" 1 INVITE", "To: "+headerIn(again, "To")))
				answerAtOnce(call)
				synctest.Wait()
				final := b.peer.last()
				if !strings.HasPrefix(final, "SIP/2.0 200") || headerIn(final, "CSeq") != "1 INVITE" || strings.Contains(final, "v=0") {
					t.Errorf("200 = %q, want no description", final)
				}
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				if !other.hears(m) {
					t.Error("after the answer the sound goes elsewhere")
				}
				b.peer.send(b.peer.within("UPDATE", "u2", 6, peerOffer))
				if ok := b.peer.last(); versionOf(ok) != "3" {
					t.Errorf("the next offer is answered with %q, want version 3", ok)
				}
				b.peer.send(b.peer.within("BYE", "y1", 7, ""))
				if said := withoutChanges(b.said()); len(said) != 3 || !strings.HasSuffix(said[0], "Acked") {
					t.Errorf("said %v", said)
				}
			})
		})
	}
}

// Our offer in the 200 to a re-INVITE without one waits for the ACK: until then there is no other (RFC 3261 §14.2, RFC 3311 §5.2).
func TestOffersBeforeTheAnswerToOurs(t *testing.T) {
	inBubble(t, quiet10h, nil, func(b *bubble) {
		b.peer.send(invite())
		call := <-b.calls
		_ = call.Ring()
		synctest.Wait()
		b.peer.send(b.peer.within("INVITE", "r0", 2, peerOffer)) // the first one is not answered yet
		if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 500") || headerIn(got, "Retry-After") == "" {
			t.Errorf("an INVITE inside an INVITE got %.60q, want 500 with Retry-After", got)
		}
		b.peer.send(b.peer.within("ACK", "r0", 2, ""))
		answerAtOnce(call)
		synctest.Wait()
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		b.peer.send(b.peer.within("INVITE", "r1", 3, ""))
		if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 200") || !strings.Contains(got, "m=audio 2") {
			t.Errorf("a re-INVITE without an offer got %q, want ours", got)
		}
		for i, tt := range []struct{ method, body, want string }{
			{"INVITE", peerOffer, "491"},
			{"UPDATE", peerOffer, "491"},
			{"INVITE", "", "491"},
			{"UPDATE", "", "200"}, // no offer
			{"OPTIONS", "", "200"},
		} {
			branch := fmt.Sprint("x", i)
			b.peer.send(b.peer.within(tt.method, branch, 4+i, tt.body))
			if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 "+tt.want) {
				t.Errorf("%s %d got %.40q, want %s", tt.method, i, got, tt.want)
			}
			if tt.method == "INVITE" {
				b.peer.send(b.peer.within("ACK", branch, 4+i, ""))
			}
		}
		b.peer.send(b.peer.within("ACK", "k3", 3, serverAt("192.0.2.20", 4000, 8)))
		if f := call.Media().Format(); f.Codec != "PCMA" {
			t.Errorf("format = %+v, want that of the ACK", f)
		}
		b.peer.send(b.peer.within("UPDATE", "u9", 10, peerOffer))
		if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 200") {
			t.Errorf("an offer after that got %.40q, want 200", got)
		}
		b.peer.send(b.peer.within("BYE", "y1", 11, ""))
	})
}

func TestOffersBeforeOurAnswer(t *testing.T) { // RFC 3311 §5.2
	rackOf := func(p *rawPeer) string { return "RAck: " + headerIn(p.last(), "RSeq") + " 1 INVITE" }
	bad := serverAt("192.0.2.20", 4000, 18)
	for _, tt := range []struct {
		name  string
		offer string   // of the INVITE
		edit  []string // of the INVITE
		begin func(*bubble, *Call)
		send  func(*bubble) string
		want  string
	}{
		{
			"nothing is answered", peerOffer, nil, func(_ *bubble, c *Call) { _ = c.Ring() },
			func(b *bubble) string { return b.peer.within("UPDATE", "u1", 5, peerOffer) }, "500 Server Internal Error",
		},
		{
			"an answer that may be lost", peerOffer, nil, func(_ *bubble, c *Call) { _, _, _ = c.Progress() },
			func(b *bubble) string { return b.peer.within("UPDATE", "u1", 5, peerOffer) }, "500 Server Internal Error",
		},
		{
			"our offer waits", "",
			[]string{"Supported: 100rel"},
			func(_ *bubble, c *Call) { _, _, _ = c.Progress() },
			func(b *bubble) string { return b.peer.within("UPDATE", "u1", 5, peerOffer) }, "491 Request Pending",
		},
		{"our offer is answered", "", []string{"Supported: 100rel"}, func(b *bubble, c *Call) {
			_, _, _ = c.Progress()
			synctest.Wait()
			b.peer.send(b.peer.within("PRACK", "p1", 2, peerAnswer, rackOf(b.peer)))
		}, func(b *bubble) string { return b.peer.within("UPDATE", "u1", 5, peerOffer) }, "200 OK"},
		{"answered, but the offer has nothing for us", peerOffer, []string{"Supported: 100rel"}, func(b *bubble, c *Call) {
			_, _, _ = c.Progress()
			synctest.Wait()
			b.peer.send(b.peer.within("PRACK", "p1", 2, "", rackOf(b.peer)))
		}, func(b *bubble) string { return b.peer.within("UPDATE", "u1", 5, bad) }, "488 Not Acceptable Here"},
		{
			"PRACK with an offer inside the INVITE's", peerOffer,
			[]string{"Require: 100rel"},
			func(_ *bubble, c *Call) { _ = c.Ring() },
			func(b *bubble) string { return b.peer.within("PRACK", "p1", 5, peerOffer, rackOf(b.peer)) }, "488 Not Acceptable Here",
		},
		{
			"PRACK with what is no description", peerOffer,
			[]string{"Supported: 100rel"},
			func(_ *bubble, c *Call) { _, _, _ = c.Progress() },
			func(b *bubble) string {
				return b.peer.within("PRACK", "p1", 5, "hello", rackOf(b.peer), "Content-Type: text/plain")
			}, "200 OK",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, quiet10h, nil, func(b *bubble) {
				b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, tt.offer, tt.edit...))
				call := <-b.calls
				tt.begin(b, call)
				synctest.Wait()
				m := tt.send(b)
				b.peer.send(m)
				got := b.peer.last()
				if !strings.HasPrefix(got, "SIP/2.0 "+tt.want) || !strings.HasPrefix(headerIn(got, "CSeq"), "5 ") {
					t.Errorf("the offer got %.60q, want %s", got, tt.want)
				}
				if after := headerIn(got, "Retry-After"); (after != "") != strings.HasPrefix(tt.want, "500") {
					t.Errorf("Retry-After: %q with %s", after, tt.want)
				}
				answerAtOnce(call) // whatever it was, the call can be answered
				synctest.Wait()
				if tt.want[:3] == "491" { // once its answer is here
					b.peer.send(b.peer.within("PRACK", "p1", 6, peerAnswer, "RAck: "+headerIn(b.peer.messages()[0], "RSeq")+" 1 INVITE"))
				}
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				b.peer.send(b.peer.within("BYE", "y1", 7, ""))
				if said := strings.Join(withoutChanges(b.said()), ", "); said != "0s Acked, 0s Bye, 0s Ended" {
					t.Errorf("said %s", said)
				}
			})
		})
	}
}

// RFC 3262 §3 wants a 2xx for each PRACK that acknowledges something, RFC 6337 §3.1 an answer for each offer: one that has nothing for us
// is answered with port 0, and the call goes on without sound until the next one.
func TestPrackWithAnOfferThatHasNothingForUs(t *testing.T) {
	for _, tt := range []struct{ name, offer, want string }{
		{"no codec of ours", serverAt("192.0.2.30", 5000, 18), "m=audio 0 RTP/AVP 18\r\n"},
		{"keys that we do not take", strings.ReplaceAll(serverAt("192.0.2.30", 5000, 0), "RTP/AVP", "RTP/SAVP"), "m=audio 0 RTP/SAVP 0\r\n"},
		{"a fax and pictures", sdpHead + "m=image 4002 udptl t38\nm=video 4004 RTP/AVP 96\n", "m=image 0 udptl t38\r\nm=video 0 RTP/AVP 96\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, quiet10h, nil, func(b *bubble) {
				far := b.soundAt(peerRTP.String())
				call, m, rack := b.hearsProgress(peerOffer)
				if !far.hears(m) {
					t.Error("there is no ringback before the PRACK")
				}
				b.peer.send(b.peer.within("PRACK", "p1", 2, tt.offer, rack))
				ok := b.peer.last()
				if !strings.HasPrefix(ok, "SIP/2.0 200") || headerIn(ok, "CSeq") != "2 PRACK" || !strings.HasSuffix(ok, "t=0 0\r\n"+tt.want) || versionOf(ok) != "2" {
					t.Errorf("the PRACK got %q, want 200 with all streams off", ok)
				}
				if far.hears(m) {
					t.Error("there is sound although there is no stream")
				}
				answerAtOnce(call)
				synctest.Wait()
				if final := b.peer.last(); !strings.HasPrefix(final, "SIP/2.0 200") || strings.Contains(final, "v=0") {
					t.Errorf("200 = %q, want no description", final)
				}
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				b.peer.send(b.peer.within("UPDATE", "u1", 3, peerOffer))
				if ok := b.peer.last(); !strings.HasPrefix(ok, "SIP/2.0 200") || versionOf(ok) != "3" {
					t.Errorf("the next offer got %q", ok)
				}
				if !far.hears(m) {
					t.Error("there is no sound after the next offer")
				}
				b.peer.send(b.peer.within("BYE", "y1", 4, ""))
				if said := strings.Join(withoutChanges(b.said()), ", "); !strings.Contains(said, "0s Hold, 0s Acked") || !strings.HasSuffix(said, "0s Hold, 0s Bye, 0s Ended") {
					t.Errorf("said %s, want hold until there is sound", said)
				}
			})
		})
	}
}

// Our offer in a reliable response wants its answer in the PRACK; without one the call could never have sound.
func TestPrackWithoutAUsableAnswerEndsTheCall(t *testing.T) {
	for name, body := range map[string]string{"none": "", "no codec of ours": serverAt("192.0.2.30", 5000, 18), "sound refused": sdpHead + "m=audio 0 RTP/AVP 0\n"} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, quiet10h, nil, func(b *bubble) {
				_, _, rack := b.hearsProgress("")
				prack := b.peer.within("PRACK", "p1", 2, body, rack)
				ack := b.peer.within("ACK", "i1", 1, "")
				b.peer.forget()
				b.peer.send(prack)
				b.peer.send(ack)
				time.Sleep(time.Minute)
				wantLines(t, "peer received", b.peer.lines(), []string{"0s 200 OK", "0s 488 Not Acceptable Here"})
				wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Failed", "0s Ended"})
			})
		})
	}
}
