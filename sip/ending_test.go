package sip

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/rtp"
)

func cancelRequest() string {
	return request("CANCEL", bridgeURI, bridgeTo, "i1", 1, "", `Reason: SIP;cause=200;text="elsewhere"`)
}

func TestCancelThatBeatsTheAnswerEndsTheCall(t *testing.T) {
	accept := func(c *Call) { _, _, _ = c.Accept() }
	inBubble(t, nil, accept, func(b *bubble) {
		b.peer.send(invite())
		call := <-b.calls
		busy := make(chan struct{})
		call.inbox.put(func() { <-busy }) // the call is slow: SendAnswer waits, and the CANCEL behind it
		answered := make(chan error, 1)
		go func() { answered <- call.SendAnswer() }()
		synctest.Wait()
		b.peer.send(cancelRequest())
		close(busy)
		if err := <-answered; !errors.Is(err, ErrEnded) {
			t.Errorf("SendAnswer after CANCEL = %v, want ErrEnded", err)
		}
		time.Sleep(600 * time.Millisecond)
		// RFC 3261 §17.1.1.3: the ACK of the 487 has the branch and the CSeq of the INVITE.
		b.peer.send(b.peer.within("ACK", "i1", 1, ""))
		time.Sleep(time.Minute)
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s 200 OK", "0s 487 Request Terminated", "500ms 487 Request Terminated",
		})
		wantLines(t, "application heard", b.said(), []string{"0s Cancelled", "0s Ended"})
		if e := b.event(0).(Cancelled); e.Cause != (Cause{"SIP", 200, "elsewhere"}) {
			t.Errorf("cause = %+v", e.Cause)
		}
		if s := b.stack.Stats(); s.Answered != 0 || s.Calls != 0 || s.RTPPorts != 0 {
			t.Errorf("stats = %+v", s)
		}
	})
}

func TestRingAfterCancelDoesNotReplaceThe487(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		b.peer.send(invite())
		call := <-b.calls
		busy := make(chan struct{})
		call.inbox.put(func() { <-busy })
		go func() { _ = call.Ring() }()
		synctest.Wait()
		b.peer.send(cancelRequest())
		close(busy)
		time.Sleep(600 * time.Millisecond)
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s 200 OK", "0s 487 Request Terminated", "500ms 487 Request Terminated",
		})
	})
}

// slowListener asks for events only when it is told to.
type slowListener chan *Call

func (l slowListener) Invite(c *Call) { l <- c }

func TestEventsWaitForTheirListener(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		calls := make(slowListener, 1)
		b.stack.handler = calls
		b.peer.send(invite())
		call := <-calls
		b.peer.send(cancelRequest())
		<-call.Done()
		var heard []string
		call.OnEvent(func(e Event) { heard = append(heard, fmt.Sprintf("%T", e)) })
		wantLines(t, "application heard", heard, []string{"sip.Cancelled", "sip.Ended"})
	})
}

func TestOutboxIsBoundedAndNothingFollowsEnded(t *testing.T) {
	var o outbox
	for i := range 3 * outboxSize {
		o.put(Digit{Key: byte(i)})
	}
	o.put(Ended{})
	o.put(Bye{})
	o.put(Ended{})
	var heard []Event
	o.listen(func(e Event) { heard = append(heard, e) })
	if len(heard) != outboxSize || heard[0] != Event(Digit{Key: byte(2*outboxSize + 1)}) || heard[outboxSize-1] != Event(Ended{}) {
		t.Errorf("heard %d events, from %#v to %#v; want the last %d up to Ended", len(heard), heard[0], heard[len(heard)-1], outboxSize)
	}
}

func TestNobodyWaitsForAnEventThatIsDropped(t *testing.T) {
	var o outbox
	early, late := make(chan struct{}), make(chan struct{})
	o.put(DialogChanged{Saved: early})
	for range outboxSize {
		o.put(DialogChanged{})
	}
	o.put(Ended{})
	o.put(DialogChanged{Saved: late})
	for name, saved := range map[string]chan struct{}{"there was no room for": early, "followed Ended": late} {
		select {
		case <-saved:
		default:
			t.Errorf("who waits for a change that %s waits on", name)
		}
	}
}

func TestLateOfferWithoutUsableAnswerFails(t *testing.T) {
	refused := strings.ReplaceAll(peerOffer, "m=audio 4000", "m=audio 0")
	for name, body := range map[string]string{"none": "", "not SDP": "hello", "audio refused": refused} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, answerAtOnce, func(b *bubble) {
				b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, ""))
				b.peer.send(b.peer.within("ACK", "k1", 1, body))
				bye := b.peer.last()
				if got, want := headerIn(bye, "Reason"), `SIP;cause=488;text="No usable answer in ACK"`; got != want {
					t.Errorf("Reason of BYE = %q, want %q", got, want)
				}
				b.peer.send(replyTo(bye, "200 OK"))
				wantLines(t, "application heard", b.said(), []string{"0s Failed", "0s Ended"})
			})
		})
	}
}

// An offer of ours names every codec of the trunk: who called late, or was connected in place of another by an empty
// re-INVITE, may have another one than our first.
func TestOffersOfOursNameEveryCodec(t *testing.T) {
	pcma := strings.ReplaceAll(peerOffer, "RTP/AVP 0 101", "RTP/AVP 8 101")
	offered := func(b *bubble, want string) {
		b.Helper()
		if !strings.Contains(b.peer.last(), want) {
			b.Errorf("offered %q, want %q", b.peer.last(), want)
		}
	}
	codec := func(b *bubble, call *Call, want string) {
		b.Helper()
		if f := call.Media().Format(); f.Codec != want || call.Dialog().Media.Format != f {
			b.Errorf("codec %+v, want %s", f, want)
		}
	}
	t.Run("late offer", func(t *testing.T) {
		inBubble(t, nil, answerAtOnce, func(b *bubble) {
			phone := b.phoneMedia()
			b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, ""))
			offered(b, "RTP/AVP 0 8 101\r\n")
			call := <-b.calls
			b.peer.send(b.peer.within("ACK", "k1", 1, pcma))
			codec(b, call, "PCMA")
			heard := 0
			call.Media().OnPacket(func(*rtp.Packet) { heard++ })
			phone.send(call.Media().LocalAddr(), 8)
			phone.send(call.Media().LocalAddr(), 0) // a static number means what it says
			synctest.Wait()
			if heard != 2 {
				t.Errorf("heard %d packets, want 2", heard)
			}
			wantLines(t, "application heard", b.said(), []string{"0s MediaChanged", "0s DialogChanged", "0s Acked"})
		})
	})
	t.Run("transferred by an empty re-INVITE", func(t *testing.T) {
		inBubble(t, nil, answerAtOnce, func(b *bubble) {
			b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, pcma))
			b.peer.send(b.peer.within("ACK", "k1", 1, ""))
			call := <-b.calls
			codec(b, call, "PCMA")
			b.peer.send(b.peer.within("INVITE", "r1", 2, ""))
			offered(b, "RTP/AVP 8 0 101\r\n")
			answer := b.peer.last()
			b.peer.send(b.peer.within("INVITE", "r2", 3, peerOffer)) // before our offer is answered
			if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 491 ") {
				t.Errorf("an offer that crosses ours got %q, want 491", got)
			}
			b.peer.send(b.peer.within("ACK", "r2", 3, ""))
			b.peer.send(b.peer.within("ACK", "r1k", 2, peerOffer))
			codec(b, call, "PCMU")
			wantLines(t, "application heard", b.said(), []string{"0s Acked", "0s DialogChanged", "0s MediaChanged", "0s DialogChanged"})
			if !strings.HasPrefix(answer, "SIP/2.0 200 OK") {
				t.Errorf("answer %q", answer)
			}
		})
	})
	t.Run("in a call with a refused video", func(t *testing.T) {
		inBubble(t, nil, answerAtOnce, func(b *bubble) {
			video := "m=video 5000 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
			b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, sdpHead+video+"m=audio 4000 RTP/AVP 0\n"))
			b.peer.send(b.peer.within("ACK", "k1", 1, ""))
			b.peer.send(b.peer.within("INVITE", "r1", 2, ""))
			offered(b, "m=video 0 RTP/AVP 96\r\nm=audio 2")
			b.peer.send(b.peer.within("ACK", "r1k", 2, sdpHead+strings.ReplaceAll(video, "5000", "0")+"m=audio 4010 RTP/AVP 0\n"))
			if got := (<-b.calls).Dialog().Media.Remote; got != addr("192.0.2.20:4010") {
				t.Errorf("the phone hears at %v, want port 4010", got)
			}
			for _, said := range b.said() {
				if strings.HasSuffix(said, "Failed") {
					t.Errorf("application heard %v", b.said())
				}
			}
		})
	})
}

func TestBugEndsOnlyItsCallAndSaysSo(t *testing.T) {
	bug := func() { panic("a bug") }
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		b.bugs = 1
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		call := <-b.calls
		if err := call.do(func() error { bug(); return nil }); !errors.Is(err, ErrEnded) {
			t.Errorf("a method that panics = %v, want ErrEnded", err)
		}
		synctest.Wait()
		b.peer.send(replyTo(b.peer.last(), "200 OK"))
		wantLines(t, "peer received", b.peer.lines(), []string{"0s 200 OK", "0s BYE"})
		wantLines(t, "application heard", b.said(), []string{"0s Acked", "0s Failed", "0s Ended"})
	})
	inBubble(t, nil, answerAtOnce, func(b *bubble) { // not acknowledged, and the bug comes again
		b.bugs = 2
		b.peer.send(invite())
		call := <-b.calls
		call.inbox.put(bug)
		call.inbox.put(bug)
		<-call.Done()
		wantLines(t, "application heard", b.said(), []string{"0s Failed", "0s Ended"})
	})
	inBubble(t, nil, func(c *Call) { c.inbox.put(bug) }, func(b *bubble) {
		b.bugs = 1
		b.peer.send(invite())
		wantLines(t, "peer received", b.peer.lines(), []string{"0s 500 Server Internal Error"})
		wantLines(t, "application heard", b.said(), []string{"0s Failed", "0s Ended"})
	})
}

func TestListenerThatPanicsStillHearsEnded(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		b.bugs = 3 // at Bye, at Failed and at Ended
		calls := make(slowListener, 1)
		b.stack.handler = calls
		b.peer.send(invite())
		call := <-calls
		var heard []string
		call.OnEvent(func(e Event) {
			if heard = append(heard, fmt.Sprintf("%T", e)); len(heard) > 1 {
				panic("a bug")
			}
		})
		answerAtOnce(call)
		synctest.Wait()
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		b.peer.send(b.peer.within("BYE", "b1", 2, ""))
		<-call.Done()
		wantLines(t, "application heard", heard, []string{"sip.Acked", "sip.Bye", "sip.Failed", "sip.Ended"})
	})
}

func TestInviteOnHold(t *testing.T) {
	for name, offer := range map[string]string{
		"sendonly": peerOffer + "a=sendonly\n",
		"inactive": peerOffer + "a=inactive\n",
		"0.0.0.0":  strings.ReplaceAll(peerOffer, "c=IN IP4 192.0.2.20", "c=IN IP4 0.0.0.0"),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, answerAtOnce, func(b *bubble) {
				b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, offer))
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				b.peer.send(b.peer.within("INVITE", "r1", 2, peerOffer))
				b.peer.send(b.peer.within("ACK", "k2", 2, ""))
				said := slices.DeleteFunc(b.said(), func(s string) bool { return strings.Contains(s, "Changed") })
				wantLines(t, "application heard", said, []string{"0s Hold", "0s Acked", "0s Hold"})
				if e := b.event(0).(Hold); !e.On {
					t.Errorf("first %+v, want on", e)
				}
				b.peer.send(b.peer.within("BYE", "b1", 3, ""))
			})
		})
	}
}

// A phone that switches its sound off and nothing else on (to fax, say) hears no, and the call goes on as it was: RFC 3264 §8.2 says
// how such an offer is accepted, RFC 3261 §14.2 that it need not be.
func TestLaterOfferWithoutSoundChangesNothing(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		call := <-b.calls
		before := call.Dialog().Media
		for i, offer := range []string{
			strings.ReplaceAll(peerOffer, "audio 4000", "audio 0") + "m=image 4002 udptl t38\n",
			strings.ReplaceAll(peerOffer, "m=audio 4000 RTP/AVP 0 101", "m=image 4002 udptl t38"),
		} {
			for j, method := range []string{"INVITE", "UPDATE"} {
				n := 2 + 2*i + j
				b.peer.send(b.peer.within(method, fmt.Sprint("r", n), n, offer))
				if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 488") || !strings.HasPrefix(headerIn(got, "Warning"), "304 ") {
					t.Errorf("%s %d got %.60q, want 488 with warning 304", method, n, got)
				}
				if method == "INVITE" {
					b.peer.send(b.peer.within("ACK", fmt.Sprint("r", n), n, ""))
				}
			}
		}
		if now := call.Dialog().Media; now != before {
			t.Errorf("media = %+v, want it as before: %+v", now, before)
		}
		b.peer.send(b.peer.within("BYE", "b1", 9, ""))
		wantLines(t, "application heard", b.said(), []string{"0s Acked", "0s Bye", "0s Ended"})
	})
}

// RFC 3264 §8.2: a stream that is switched off gets nothing, not even what keeps a NAT's mind, and may come back.
func TestSoundIsSwitchedOffAndOnAgain(t *testing.T) {
	symmetric := func(c *Config) { c.Limits.MediaTimeout = -1; c.Trunks[0].Symmetric = true }
	inBubble(t, symmetric, answerAtOnce, func(b *bubble) {
		phone := b.phoneMedia()
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		call := <-b.calls
		m := call.Media()
		speak := func() {
			_ = m.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5}, Payload: make([]byte, 160)})
		}
		for range 5 {
			phone.send(m.LocalAddr(), 0)
		}
		speak()
		synctest.Wait()
		off := strings.ReplaceAll(peerOffer, "audio 4000", "audio 0")
		b.peer.send(b.peer.within("INVITE", "r2", 2, off, "Supported: timer", "Session-Expires: 120;refresher=uas"))
		ok := b.peer.last()
		if !strings.HasPrefix(ok, "SIP/2.0 200") || !strings.Contains(ok, "\r\nm=audio 0 RTP/AVP 0\r\n") {
			t.Errorf("switched off with %q", ok)
		}
		b.peer.send(b.peer.within("ACK", "k2", 2, ""))
		drain(phone.rtp)
		drain(phone.rtcp)
		speak()
		time.Sleep(50 * time.Second)
		if n := len(drain(phone.rtp)) + len(drain(phone.rtcp)); n != 0 {
			t.Errorf("%d packets sent to a stream that is off", n)
		}
		if d := call.Dialog(); !d.Held() || d.Media.Format.Codec != "PCMU" {
			t.Errorf("dialog = %+v, want it held", d)
		}
		time.Sleep(10 * time.Second) // we refresh the session at half of it, with what was agreed
		synctest.Wait()
		again := b.peer.last()
		if !strings.HasPrefix(again, "INVITE ") || !strings.Contains(again, "\r\nm=audio 0 RTP/AVP 0\r\n") || originOf(again) != originOf(ok) {
			t.Errorf("refresh = %q", again)
		}
		b.peer.answers(again, "200 OK", "", off, "Session-Expires: 120;refresher=uac", "Require: timer")
		speak()
		b.peer.send(b.peer.within("UPDATE", "u3", 3, peerOffer)) // and on again
		if ok := b.peer.last(); !strings.HasPrefix(ok, "SIP/2.0 200") || !strings.Contains(ok, "a=sendrecv") || versionOf(ok) != "3" {
			t.Errorf("switched on with %q", ok)
		}
		drain(phone.rtp)
		speak()
		if n := len(drain(phone.rtp)); n != 1 {
			t.Errorf("%d packets sent to a stream that is on again, want 1", n)
		}
		b.peer.send(b.peer.within("BYE", "y1", 9, ""))
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Acked", "0s Hold", "1m0s Hold", "1m0s Bye", "1m0s Ended"})
	})
}

// Whatever else a description has in it, sound goes where it says, in the codec that it says, both ways.
func TestDescriptionsOfEveryKindAreHeard(t *testing.T) {
	const browser = "a=group:BUNDLE 0 1\na=msid-semantic: WMS *\na=ice-options:trickle\na=fingerprint:sha-256 AA:BB\n"
	const candidates = "a=ice-ufrag:u\na=ice-pwd:p\na=candidate:1 1 udp 1 10.0.0.9 9999 typ host\na=setup:actpass\na=mid:0\n"
	for _, tt := range []struct {
		name, offer string
		answered    string // the m= lines, without our port
		at          string
		codec       string
		number      uint8
		events      bool
	}{
		{"two streams of audio", sdpHead + "m=audio 4000 RTP/AVP 8\nm=audio 4002 RTP/AVP 0\n", "audio RTP/AVP 8|audio off", "192.0.2.20:4000", "PCMA", 8, false},
		{"the first stream is off", sdpHead + "m=audio 0 RTP/AVP 0\nm=audio 4002 RTP/AVP 0\n", "audio off|audio RTP/AVP 0", "192.0.2.20:4002", "PCMU", 0, false},
		{"pictures first", sdpHead + "m=video 4004 RTP/AVP 96\na=rtpmap:96 H264/90000\nm=audio 4002 RTP/AVP 0\n", "video off|audio RTP/AVP 0", "192.0.2.20:4002", "PCMU", 0, false},
		{
			"a browser's stream, and one for telephones", sdpHead + browser + "m=audio 4006 UDP/TLS/RTP/SAVPF 111 0\n" + candidates + "m=audio 4002 RTP/AVP 0 101\na=rtpmap:101 telephone-event/8000\n",
			"audio off|audio RTP/AVP 0 101", "192.0.2.20:4002", "PCMU", 0, true,
		},
		{"attributes of browsers", sdpHead + browser + "m=audio 4000 RTP/AVP 0\n" + candidates, "audio RTP/AVP 0", "192.0.2.20:4000", "PCMU", 0, false},
		{"with feedback, and without", sdpHead + "m=audio 4006 RTP/AVPF 0\nm=audio 4002 RTP/AVP 8\n", "audio off|audio RTP/AVP 8", "192.0.2.20:4002", "PCMA", 8, false},
		{"a fax beside the sound", sdpHead + "m=audio 4000 RTP/AVP 0\nm=image 4008 udptl t38\n", "audio RTP/AVP 0|image off", "192.0.2.20:4000", "PCMU", 0, false},
		{"codecs that nobody here knows first", sdpHead + "m=audio 4000 RTP/AVP 18 4 97 8\na=rtpmap:97 AMR/8000\na=fmtp:18 annexb=no\n", "audio RTP/AVP 8", "192.0.2.20:4000", "PCMA", 8, false},
		{"G.722 by the clock it really has", sdpHead + "m=audio 4000 RTP/AVP 9\na=rtpmap:9 G722/16000\n", "audio RTP/AVP 9", "192.0.2.20:4000", "G722", 9, false},
	} {
		wide := func(c *Config) { quiet10h(c); c.Trunks[0].Codecs = []string{"PCMU", "PCMA", "G722"} }
		check := func(t *testing.T, b *bubble, m *Media, far *sound, answer string) {
			t.Helper()
			var lines []string
			for line := range strings.SplitSeq(answer, "\r\n") {
				if f := strings.Fields(strings.TrimPrefix(line, "m=")); strings.HasPrefix(line, "m=") && f[1] == "0" {
					lines = append(lines, f[0]+" off")
				} else if strings.HasPrefix(line, "m=") {
					lines = append(lines, strings.Join(slices.Delete(f, 1, 2), " "))
				}
			}
			if got := strings.Join(lines, "|"); got != tt.answered {
				t.Errorf("answered with %s, want %s", got, tt.answered)
			}
			heard := 0
			m.OnPacket(func(p *rtp.Packet) { heard++ })
			far.talksTo(m, tt.number)
			if f := m.Format(); f.Codec != tt.codec || f.PayloadType != tt.number || f.DTMF != 0 != tt.events || heard != 5 || !far.hears(m) {
				t.Errorf("format %+v, %d packets heard of 5; and the phone is to hear us at %s", f, heard, tt.at)
			}
		}
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, wide, answerAtOnce, func(b *bubble) {
				far := b.soundAt(tt.at)
				b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, tt.offer))
				answer := b.peer.last()
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				check(t, b, (<-b.calls).Media(), far, answer)
				b.peer.send(b.peer.within("BYE", "y1", 2, ""))
			})
			inBubble(t, wide, answerAtOnce, func(b *bubble) { // in a call that is up, by a description that says it is the same (o=)
				far := b.soundAt(tt.at)
				b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, serverAt("192.0.2.40", 5000, 0)))
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				m := (<-b.calls).Media()
				if far.hears(m) {
					t.Error("the sound is there before the offer")
				}
				b.peer.send(b.peer.within("UPDATE", "u1", 2, strings.Replace(tt.offer, "o=- 1 1 IN IP4 192.0.2.20", "o=- 9 2 IN IP4 192.0.2.40", 1)))
				answer := b.peer.last()
				if tt.codec == "PCMU" || !strings.Contains(tt.answered, "off") { // else the codec in use stays
					check(t, b, m, far, answer)
				}
				b.peer.send(b.peer.within("BYE", "y1", 3, ""))
			})
		})
	}
}

// RFC 6337 §5.3: what we offer is what we want, not what the phone has wanted before. So PBXs take calls back that they have connected
// with their own music.
func TestEmptyReinviteTakesACallBackFromHold(t *testing.T) {
	inBubble(t, quiet10h, answerAtOnce, func(b *bubble) {
		far := b.soundAt(peerRTP.String())
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		m := (<-b.calls).Media()
		for i, hold := range []string{peerOffer + "a=sendonly\n", peerOffer + "a=inactive\n", strings.ReplaceAll(peerOffer, "c=IN IP4 192.0.2.20", "c=IN IP4 0.0.0.0")} {
			n := 10 * (i + 1)
			b.peer.send(b.peer.within("INVITE", fmt.Sprint("h", i), n, hold))
			b.peer.send(b.peer.within("ACK", fmt.Sprint("hk", i), n, ""))
			if far.hears(m) {
				t.Errorf("hold %d: the phone hears us", i)
			}
			b.peer.send(b.peer.within("INVITE", fmt.Sprint("e", i), n+1, ""))
			if offer := b.peer.last(); !strings.Contains(offer, " RTP/AVP 0 8 101\r\n") || !strings.Contains(offer, "\r\na=sendrecv\r\n") {
				t.Errorf("hold %d: an empty re-INVITE got %q, want everything again", i, offer)
			}
			b.peer.send(b.peer.within("ACK", fmt.Sprint("ek", i), n+1, peerOffer))
			heard := 0
			m.OnPacket(func(*rtp.Packet) { heard++ })
			far.talksTo(m, 0)
			if !far.hears(m) || heard != 5 {
				t.Errorf("hold %d: taken back, but the phone does not hear us, or we have %d packets of 5", i, heard)
			}
		}
		b.peer.send(b.peer.within("BYE", "y1", 99, ""))
	})
}

func TestPhoneOnHoldIsAskedNowAndThen(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, peerOffer+"a=inactive\n"))
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		b.peer.forget()
		time.Sleep(5*time.Minute + time.Second)
		wantLines(t, "peer received", b.peer.lines(), []string{"5m0s OPTIONS", "5m0.5s OPTIONS"})
		b.peer.send(replyTo(b.peer.last(), "200 OK"))
		b.peer.answers(b.peer.last(), "200 OK", "", peerOffer+"a=inactive\n") // of a re-INVITE
		b.peer.forget()
		time.Sleep(5*time.Minute + 4*time.Second + time.Millisecond)
		if got := b.peer.lines(); len(got) == 0 || got[0] != "10m5s OPTIONS" {
			t.Errorf("peer received %v, want OPTIONS at 10m5s", got)
		}
		time.Sleep(time.Minute) // no answer: it is gone
		if said := b.said(); !strings.HasSuffix(said[len(said)-1], "MediaTimeout") {
			t.Errorf("said %v, want MediaTimeout last", said)
		}
	})
}

// A PBX that was restarted answers OPTIONS as before, but knows nothing of the call.
func TestSilentPhoneThatHasLostTheCallIsFoundOut(t *testing.T) {
	for _, tt := range []struct {
		allow, method, answer, said string
	}{
		{"INVITE", "INVITE", "481 Gone", "1m0s Failed"},
		{"INVITE", "INVITE", "408 Request Timeout", "1m0s Failed"},
		{"INVITE", "INVITE", "", "1m32s Failed"},
		{"INVITE, UPDATE", "UPDATE", "481 Gone", "1m0s Failed"},
		{"INVITE", "INVITE", "488 Not Acceptable Here", "0s Acked"}, // it has the call
		{"INVITE, UPDATE", "UPDATE", "200 OK", "0s Acked"},
	} {
		t.Run(tt.method+" "+tt.answer, func(t *testing.T) {
			inBubble(t, nil, answerAtOnce, func(b *bubble) {
				b.peer.send(invite("Allow: " + tt.allow))
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				b.peer.forget()
				time.Sleep(time.Minute)
				synctest.Wait()
				b.peer.send(replyTo(b.peer.last(), "200 OK"))
				ask := b.peer.last()
				if !strings.HasPrefix(ask, tt.method+" ") {
					t.Fatalf("after OPTIONS the phone got %q, want %s", ask, tt.method)
				}
				if tt.answer != "" {
					b.peer.send(replyTo(ask, tt.answer))
				}
				time.Sleep(33 * time.Second)
				synctest.Wait()
				said := withoutChanges(b.said())
				if last := said[len(said)-1]; last != tt.said {
					t.Errorf("application heard %v, want %s last", said, tt.said)
				}
			})
		})
	}
}

func TestPeerThatStopsReadingLosesItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		left := 0
		conn := newGuardedConn(near, nil, func() { left++ })
		began := time.Now()
		written := make(chan error, 2)
		go func() { _, err := conn.Write([]byte("one")); written <- err }()
		time.Sleep(3 * time.Second)
		go func() { _, err := conn.Write([]byte("two")); written <- err }()
		for range 2 { // the second does not give the first more time
			if err := <-written; err == nil {
				t.Error("a write nobody reads succeeded")
			}
			if d := time.Since(began); d != writeTimeout {
				t.Errorf("write returned after %v, want %v", d, writeTimeout)
			}
		}
		if _, err := far.Read(make([]byte, 8)); !errors.Is(err, io.EOF) || left != 1 {
			t.Errorf("peer reads %v, left %d times; want EOF and once", err, left)
		}
	})
}

func TestUnacceptableInviteReachesNobody(t *testing.T) {
	for _, tt := range []struct{ invite, want string }{
		{invite("Contact:"), "400 Missing Contact"},
		{invite("Contact: <tel:+4930123>"), "400 Bad Contact"},
		{invite("Content-Type: text/plain"), "415 Unsupported Media Type"},
		{request("INVITE", bridgeURI, bridgeTo, "i1", 1, "v=0\nnonsense\n"), "400 Malformed SDP"},
		{request("INVITE", bridgeURI, bridgeTo, "i1", 1, strings.ReplaceAll(peerOffer, "AVP 0", "AVP 9")), "488 Not Acceptable Here"},
		{request("INVITE", bridgeURI, bridgeTo, "i1", 1, strings.ReplaceAll(peerOffer, "RTP/AVP", "RTP/SAVP")), "488 Not Acceptable Here"},
	} {
		t.Run(tt.want, func(t *testing.T) {
			inBubble(t, nil, func(*Call) { t.Error("the application heard of it") }, func(b *bubble) {
				b.peer.send(tt.invite)
				wantLines(t, "peer received", b.peer.lines(), []string{"0s " + tt.want})
				b.peer.send(b.peer.within("ACK", "i1", 1, ""))
				if s := b.stack.Stats(); s.Calls != 0 || s.Invites != 0 {
					t.Errorf("stats = %+v", s)
				}
			})
		})
	}
}

func TestRefusalsAreLoggedButNotAllOfAFlood(t *testing.T) {
	unbanned := func(c *Config) { c.Limits.FailuresPerMinute = -1 }
	inBubble(t, unbanned, nil, func(b *bubble) {
		var log strings.Builder
		b.stack.log = slog.New(slog.NewTextHandler(&log, nil))
		for i := range 100 {
			b.peer.send(request("INVITE", bridgeURI, bridgeTo, fmt.Sprint("i", i), 1, peerOffer, "Contact:", fmt.Sprint("Call-ID: c", i)))
		}
		if n := strings.Count(log.String(), `msg="request refused" method=INVITE code=400 why="Missing Contact" source=192.0.2.20:5060`); n < 20 || n > 25 {
			t.Errorf("%d lines about 100 refusals, want about 20:\n%s", n, tailOf(log.String()))
		}
		if n := b.stack.Stats().Refused[400]; n != 100 {
			t.Errorf("%d refusals counted, want 100", n)
		}
	})
}

// What the guard itself refuses, and what is refused within a call, has a line in the log as it is by default, which says why.
func TestRefusalsOfTheGuardAndWithinACallHaveAReason(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		var log strings.Builder
		b.stack.log = slog.New(slog.NewTextHandler(&log, nil))
		b.stack.listeners[0].packets.(*guardedPackets).guard.log = b.stack.log
		var many []string
		for i := range 200 {
			many = append(many, fmt.Sprintf("X%d: y", i))
		}
		b.peer.send(invite())
		call := <-b.calls
		_ = call.Ring()
		synctest.Wait()
		ack := func(branch string, n int) { b.peer.send(b.peer.within("ACK", branch, n, "")) }
		for i, tt := range []struct {
			method, body, from string
			code               int
			want               string
		}{
			{"INVITE", peerOffer, "", 500, `method=INVITE code=500 why="the call is not answered yet"`},
			{"INVITE", strings.ReplaceAll(peerOffer, "AVP 0", "AVP 9"), "", 488, `method=INVITE code=488 why="offer not acceptable: 305 `},
			{"INFO", "hello", "Content-Type: text/plain", 415, `method=INFO code=415 why="Unsupported Media Type"`},
			{"MESSAGE", "hello", "Content-Type: text/plain", 405, `method=MESSAGE code=405 why="Method Not Allowed"`},
			{"BYE", "", "From: <sip:2001@192.0.2.20>;tag=wrong", 481, `method=BYE code=481 why="no such call"`},
			{"INVITE", "", "", 0, ""}, // the 200 has an offer of ours
			{"UPDATE", peerOffer, "", 491, `method=UPDATE code=491 why="an offer of ours waits for its answer"`},
			{"", "", "", 400, `msg="message refused" code=400 why="Too many header lines" source=192.0.2.20:5060`},
		} {
			branch, n := fmt.Sprint("x", i), i+2
			var headers []string
			if tt.from != "" {
				headers = append(headers, tt.from)
			}
			log.Reset()
			if tt.method == "" {
				b.peer.send(invite(many...))
			} else {
				b.peer.send(b.peer.within(tt.method, branch, n, tt.body, headers...))
			}
			if tt.method == "INVITE" && tt.code != 0 {
				ack(branch, n)
			}
			if tt.code == 500 { // and now it is answered
				answerAtOnce(call)
				synctest.Wait()
				ack("k1", 1)
			}
			if tt.code == 0 {
				continue
			}
			if strings.Count(log.String(), tt.want) != 1 || strings.Count(log.String(), " refused\" ") != 1 {
				t.Errorf("no line %s, or more than one, in the log:\n%s", tt.want, tailOf(log.String()))
			}
			if n := b.stack.Stats().Refused[tt.code]; n != 1 {
				t.Errorf("%d times %d counted, want once", n, tt.code)
			}
		}
	})
}

func tailOf(s string) string { return s[max(0, len(s)-500):] }

func TestPortsGiveUpWhenNoOtherWouldDoBetter(t *testing.T) {
	for _, tt := range []struct {
		err   error
		tries int
		want  error
	}{
		{syscall.EMFILE, 1, syscall.EMFILE},
		{syscall.EADDRNOTAVAIL, 1, syscall.EADDRNOTAVAIL},
		{syscall.EADDRINUSE, 3, errPortsExhausted},
	} {
		p := newPorts(RTPConfig{Addr: bridgeAddr.Addr(), PortMin: 20000, PortMax: 20005}, 0, ownSockets{})
		tries := 0
		p.listen = func(netip.AddrPort) (rtpConn, error) {
			tries++
			return nil, &net.OpError{Op: "listen", Err: tt.err}
		}
		_, _, err := p.open()
		if !errors.Is(err, tt.want) || tries != tt.tries || p.inUse() != 0 {
			t.Errorf("listen = %v: open = %v after %d tries, %d pairs in use; want %v after %d, 0", tt.err, err, tries, p.inUse(), tt.want, tt.tries)
		}
	}
}

// inParts is a description beside what carriers send with it (RFC 5621, RFC 3204).
func inParts(description string) (body, contentType string) {
	return "--u1\nContent-Type: application/isup;version=etsi356;base=etsi121\nContent-Disposition: signal;handling=optional\n\n" +
		"\x01\x00\x49\x00\x00\x03\x02\x00\x07\n--u1\nContent-Type: multipart/alternative;boundary=u2\n\n--u2\nContent-Type: text/plain\n\nx\n" +
		"--u2\nContent-Type: Application/SDP ; charset=utf-8\n\n" + description + "\n--u2--\n" +
		"\n--u1\nContent-Type: application/pidf+xml\n\n<presence/>\n--u1--\n", `Content-Type: multipart/mixed;boundary="u1"`
}

func TestDescriptionsBesideOtherPartsAreRead(t *testing.T) {
	t.Run("of who calls", func(t *testing.T) {
		inBubble(t, quiet10h, answerAtOnce, func(b *bubble) {
			far := b.soundAt(peerRTP.String())
			body, kind := inParts(peerOffer)
			b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, body, kind))
			if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 200") || headerIn(got, "Content-Type") != sdpType {
				t.Fatalf("the INVITE got %q", got)
			}
			b.peer.send(b.peer.within("ACK", "k1", 1, ""))
			m := (<-b.calls).Media()
			if !far.hears(m) {
				t.Error("the phone hears nothing")
			}
			other := b.soundAt("192.0.2.30:5000")
			body, kind = inParts(serverAt("192.0.2.30", 5000, 0))
			b.peer.send(b.peer.within("UPDATE", "u1", 2, body, kind))
			if !other.hears(m) {
				t.Errorf("after an UPDATE the sound does not follow: %q", b.peer.last())
			}
			b.peer.send(b.peer.within("BYE", "y1", 3, ""))
		})
	})
	t.Run("of who is called", func(t *testing.T) {
		inBubble(t, quiet10h, nil, func(b *bubble) {
			far := b.soundAt(peerRTP.String())
			call, inv := b.dials()
			body, kind := inParts(peerAnswer)
			ok := strings.TrimSuffix(replyTo(inv, "200 OK"), "\n")
			ok = strings.Replace(ok, "Content-Length: 0\n", "", 1)
			b.peer.send(ok + "Contact: <sip:200@192.0.2.20>\n" + kind + fmt.Sprintf("\nContent-Length: %d\n\n", len(crlf(body))) + body)
			if got := strings.Join(withoutChanges(b.said()), ", "); got != "0s Answered" || !far.hears(call.Media()) {
				t.Errorf("said %s, and the phone is to hear us", got)
			}
			b.peer.send(b.peer.called(inv, "BYE", "y1", 9, "", "To: "+headerIn(inv, "From")))
		})
	})
	for name, tt := range map[string]struct{ body, kind, disposition string }{ // RFC 3261 §20.11: to be ignored, so the offer is ours
		"a body that need not be understood": {"\x01\x00", "application/isup;version=etsi356", "signal;handling=optional"},
		"parts that need not be":             {"--u1\nContent-Type: text/plain\nContent-Disposition: render; handling=\"Optional\"\n\nx\n--u1--\n", "multipart/mixed;boundary=u1", ""},
		"all of the parts":                   {"--u1\nContent-Type: text/plain\n\nx\n--u1--\n", "multipart/mixed;boundary=u1", "render;handling=optional"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, quiet10h, answerAtOnce, func(b *bubble) {
				edit := []string{"Content-Type: " + tt.kind}
				if tt.disposition != "" {
					edit = append(edit, "Content-Disposition: "+tt.disposition)
				}
				b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, tt.body, edit...))
				if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 200") || !strings.Contains(got, "m=audio 20") {
					t.Errorf("got %q, want our offer", got)
				}
				b.peer.send(b.peer.within("ACK", "k1", 1, peerAnswer))
				b.peer.send(b.peer.within("BYE", "y1", 2, ""))
				wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Acked", "0s Bye", "0s Ended"})
			})
		})
	}
	t.Run("of who was heard before its answer", func(t *testing.T) { // which needs none any more, and may say other things
		inBubble(t, quiet10h, nil, func(b *bubble) {
			far := b.soundAt(peerRTP.String())
			call, inv := b.dials()
			b.peer.answers(inv, "183 Session Progress", "b1", peerAnswer, "Require: 100rel", "RSeq: 1")
			b.peer.answers(b.peer.last(), "200 OK", "", "")
			ok := strings.Replace(replyTo(inv, "200 OK"), "To: "+headerIn(inv, "To"), "To: "+headerIn(inv, "To")+";tag=b1", 1)
			b.peer.send(strings.Replace(ok, "Content-Length: 0\n\n", "Contact: <sip:200@192.0.2.20>\nContent-Type: application/isup\nContent-Length: 2\n\n\x09\x00", 1))
			if got := strings.Join(withoutChanges(b.said()), ", "); got != "0s Provisional, 0s Answered" || !far.hears(call.Media()) {
				t.Errorf("said %s, and the phone is to hear us", got)
			}
			b.peer.send(b.peer.called(inv, "BYE", "y1", 9, ""))
		})
	})
	for name, body := range map[string]string{ // none of them has a description
		"one that must be understood, beside one that need not": "--u1\nContent-Type: text/plain\nContent-Disposition: render;handling=optional\n\nx\n--u1\nContent-Type: application/isup\n\nx\n--u1--\n",
		"no description": "--u1\nContent-Type: application/isup\n\nx\n--u1--\n",
		"no end":         "--u1\nContent-Type: application/sdp\n\n" + peerOffer,
		"no parts":       peerOffer,
		"too many parts": strings.Repeat("--u1\nContent-Type: text/plain\n\nx\n", maxParts) + "--u1\nContent-Type: application/sdp\n\n" + peerOffer + "\n--u1--\n",
	} {
		inBubble(t, nil, answerAtOnce, func(b *bubble) {
			b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, body, "Content-Type: multipart/mixed;boundary=u1"))
			if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 415") || headerIn(got, "Accept") != "application/sdp, multipart/mixed" {
				t.Errorf("%s: %.60q, want 415", name, got)
			}
		})
	}
}

// ringer has each call ring, unless its caller is to hear nothing yet.
type ringer struct {
	calls  chan *Call
	said   chan Event
	silent bool
}

func (r ringer) Invite(c *Call) {
	c.OnEvent(func(e Event) { r.said <- e })
	go func() {
		if !r.silent {
			_ = c.Ring()
		}
		r.calls <- c
	}()
}

// message reads a whole message; "" when the connection was closed.
func (l *line) message() string {
	l.Helper()
	var m strings.Builder
	for {
		h, err := l.r.ReadString('\n')
		if err != nil {
			return ""
		}
		if m.WriteString(h); h == "\r\n" {
			break
		}
	}
	n, _ := strconv.Atoi(headerIn(m.String(), "Content-Length"))
	body := make([]byte, n)
	if _, err := io.ReadFull(l.r, body); err != nil {
		return ""
	}
	return m.String() + string(body)
}

// RFC 3261 §18.2.2: who has lost the connection of its INVITE hears what becomes of it over one to where it listens, at once. Who does not
// listen there is dead, and rings no longer.
func TestInviteWhoseConnectionIsLostIsAnsweredOverAnother(t *testing.T) {
	for _, tt := range []struct {
		name    string
		invite  []string
		silent  bool // we have said nothing
		cancels bool // before it closes the connection
		deaf    bool // nobody listens
		story   func(c *Call, r ringer, l *rerouted)
	}{
		{name: "with 200", story: func(c *Call, r ringer, l *rerouted) {
			l.wants("SIP/2.0 180 ")
			if _, _, err := c.Answer(l.Context()); err != nil {
				l.Fatal(err)
			}
			ok := l.wants("SIP/2.0 200 OK")
			if !strings.Contains(ok, "m=audio") {
				l.Fatalf("got %q, want the answer", ok)
			}
			l.says(request("ACK", bridgeURI, headerIn(ok, "To"), "k1", 1, ""))
			if e, acked := (<-r.said).(Acked); !acked {
				l.Errorf("said %T, want Acked", e)
			}
			_ = c.Hangup(CauseNormal)
			l.says(replyTo(l.wants("BYE "), "200 OK"))
		}},
		{name: "with 180, and gives up", story: func(_ *Call, r ringer, l *rerouted) {
			l.wants("SIP/2.0 180 ")
			l.says(request("CANCEL", bridgeURI, bridgeTo, "i1", 1, "", "Reason: Q.850;cause=16"))
			var got []string
			for range 2 {
				m := l.wants("SIP/2.0 ")
				got = append(got, m[:11]+" "+headerIn(m, "CSeq"))
			}
			slices.Sort(got)
			if fmt.Sprint(got) != "[SIP/2.0 200 1 CANCEL SIP/2.0 487 1 INVITE]" {
				l.Errorf("the CANCEL got %q", got)
			}
			if e, cancelled := (<-r.said).(Cancelled); !cancelled || e.Cause.Code != 16 {
				l.Errorf("said %+v, want Cancelled", e)
			}
		}},
		{name: "with the 180 that it may have missed", invite: []string{"Require: 100rel"}, story: func(c *Call, r ringer, l *rerouted) {
			ringing := l.wants("SIP/2.0 180 ")
			l.says(request("PRACK", bridgeURI, headerIn(ringing, "To"), "p1", 2, "", "RAck: "+headerIn(ringing, "RSeq")+" 1 INVITE"))
			if ok := l.wants("SIP/2.0 200 OK"); headerIn(ok, "CSeq") != "2 PRACK" {
				l.Errorf("the PRACK got %q", ok)
			}
			_ = c.Reject(486, "")
			l.wants("SIP/2.0 486 ")
		}},
		{name: "with 100, for it has heard nothing yet", silent: true, story: func(c *Call, r ringer, l *rerouted) {
			l.wants("SIP/2.0 100 ")
			_ = c.Reject(486, "")
			l.wants("SIP/2.0 486 ")
		}},
		{name: "or need not be, for it has given up with its last word", cancels: true, story: func(_ *Call, r ringer, l *rerouted) {
			if e, cancelled := (<-r.said).(Cancelled); !cancelled || e.Cause.Code != 16 {
				l.Errorf("said %+v, want Cancelled", e)
			}
		}},
		{name: "not at all, for it does not listen", deaf: true, story: func(_ *Call, r ringer, l *rerouted) {
			if e, cancelled := (<-r.said).(Cancelled); !cancelled || e.Cause.Code != 500 {
				l.Errorf("said %+v, want Cancelled", e)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := ringer{make(chan *Call, 1), make(chan Event, 100), tt.silent}
			s := realStackFor(t, Limits{}, r)
			l := newRerouted(t)
			first := dialTCP(t, s)
			_, _ = io.WriteString(first, l.tcp(invite(tt.invite...)))
			c := <-r.calls
			if tt.deaf {
				_ = l.listener.Close()
			}
			if tt.cancels {
				for m := first.message(); !strings.HasPrefix(m, "SIP/2.0 180 "); m = first.message() {
					if m == "" {
						t.Fatal("the caller hears no ringing")
					}
				}
				_, _ = io.WriteString(first, l.tcp(request("CANCEL", bridgeURI, bridgeTo, "i1", 1, "", "Reason: Q.850;cause=16")))
			}
			_ = first.Close()
			tt.story(c, r, l)
			<-c.Done()
		})
	}
}

// rerouted is a caller over TCP that has lost its connection.
type rerouted struct {
	*testing.T
	listener net.Listener
	conn     *line           // that we have made; nil until it is waited for
	heard    map[string]bool // messages that may come again
}

func newRerouted(t *testing.T) *rerouted {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return &rerouted{T: t, listener: ln, heard: map[string]bool{}}
}

// tcp is a message of the caller as it says it over TCP.
func (l *rerouted) tcp(m string) string {
	m = strings.ReplaceAll(m, "SIP/2.0/UDP", "SIP/2.0/TCP")
	return crlf(strings.ReplaceAll(m, "192.0.2.20:5060", l.listener.Addr().String()))
}

func (l *rerouted) says(m string) { _, _ = io.WriteString(l.conn, l.tcp(m)) }

// wants reads the next message that has not come before; it must begin so.
func (l *rerouted) wants(beginning string) string {
	l.Helper()
	if l.conn == nil {
		_ = l.listener.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
		conn, err := l.listener.Accept()
		if err != nil {
			l.Fatal(err)
		}
		l.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		l.conn = &line{l.T, conn, bufio.NewReader(conn)}
	}
	m := l.conn.message()
	for m != "" && l.heard[m] {
		m = l.conn.message()
	}
	l.heard[m] = true
	if !strings.HasPrefix(m, beginning) {
		l.Fatalf("got %q, want %s", m, beginning)
	}
	return m
}

// Messages that come together may be looked at in any order: a CANCEL is then not for nothing.
func TestCancelThatOvertakesItsInvite(t *testing.T) {
	cancel := request("CANCEL", bridgeURI, bridgeTo, "i1", 1, "")
	inBubble(t, nil, func(c *Call) { _ = c.Ring() }, func(b *bubble) {
		b.peer.send(cancel)
		time.Sleep(50 * time.Millisecond)
		b.peer.send(invite())
		time.Sleep(time.Second)
		got := b.peer.lines()
		slices.Sort(got) // the 200 is the CANCEL's, and may come before or behind the 487
		wantLines(t, "peer received", got, []string{"100ms 200 OK", "100ms 487 Request Terminated", "50ms 180 Ringing", "600ms 487 Request Terminated"})
		wantLines(t, "application heard", b.said(), []string{"100ms Cancelled", "100ms Ended"})
		b.peer.send(request("ACK", bridgeURI, headerIn(b.peer.messages()[1], "To"), "i1", 1, ""))
	})
	inBubble(t, nil, nil, func(b *bubble) { // which never comes
		b.peer.send(cancel)
		time.Sleep(time.Second)
		wantLines(t, "peer received", b.peer.lines(), []string{"100ms 481 Call/Transaction Does Not Exist"})
	})
}

// RFC 3261 §8.1.1.5 begins to count wherever it likes.
func TestFirstRequestOfWhoWasCalledMayHaveTheNumberZero(t *testing.T) {
	inBubble(t, quiet10h, nil, func(b *bubble) {
		_, inv := b.dials()
		b.peer.answers(inv, "180 Ringing", "b1", "")
		b.peer.forget()
		b.peer.send(b.peer.called(inv, "OPTIONS", "o0", 0, ""))
		b.peer.send(b.peer.called(inv, "OPTIONS", "oo", 0, "")) // there is one with it
		b.peer.answers(inv, "200 OK", "b1", peerAnswer)
		b.peer.send(b.peer.called(inv, "OPTIONS", "o1", 1, ""))
		b.peer.send(b.peer.called(inv, "OPTIONS", "o2", 0, "")) // behind that
		wantLines(t, "peer received", b.peer.lines(), []string{"0s 200 OK", "0s 500 Out of order", "0s ACK", "0s 200 OK", "0s 500 Out of order"})
		b.peer.send(b.peer.called(inv, "BYE", "y1", 2, ""))
	})
	inBubble(t, quiet10h, nil, func(b *bubble) {
		_, inv := b.dials()
		b.peer.answers(inv, "200 OK", "b1", peerAnswer)
		b.peer.send(b.peer.called(inv, "BYE", "y1", 0, ""))
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Answered", "0s Bye", "0s Ended"})
	})
}

// RFC 3261 §12.2.2: of two requests with the same number, also with 0, the second one is refused, whoever has the call by then.
func TestNumberZeroIsTakenOnce(t *testing.T) {
	const taken, refused = "SIP/2.0 200", "SIP/2.0 500"
	var inv string
	var fresh, numbered Dialog // before and after the first request of who was called
	branch := 0
	asks := func(b *bubble, method, body, want string) {
		b.Helper()
		branch++
		b.peer.send(b.peer.called(inv, method, fmt.Sprint("z", branch), 0, body))
		if got := b.peer.last(); !strings.HasPrefix(got, want) {
			b.Errorf("%s with the number 0 got %.40q, want %s", method, got, want)
		}
	}
	inBubble(t, quiet10h, nil, func(b *bubble) {
		var call *Call
		call, inv = b.dials()
		b.peer.answers(inv, "200 OK", "b1", peerAnswer)
		fresh = call.Dialog()
		asks(b, "OPTIONS", "", taken)
		asks(b, "OPTIONS", "", refused)
		asks(b, "UPDATE", peerOffer, refused)
		asks(b, "INVITE", peerOffer, refused)
		numbered = call.Dialog()
	})
	old := fresh
	old.Role = UAS // of a row of before the field: who calls has a number
	for name, tt := range map[string]struct {
		saved Dialog
		first string
	}{"none yet": {fresh, taken}, "0": {numbered, refused}, "that of an INVITE": {old, refused}} {
		t.Run("resumed after "+name, func(t *testing.T) {
			inBubble(t, quiet10h, nil, func(b *bubble) {
				b.resumes(tt.saved)
				asks(b, "OPTIONS", "", tt.first)
				asks(b, "OPTIONS", "", refused)
			})
		})
	}
	t.Run("asked again after a restart", func(t *testing.T) { // the answer may not have left
		inBubble(t, quiet10h, nil, func(b *bubble) {
			b.resumes(numbered)
			asks(b, "UPDATE", peerOffer, taken)
			asks(b, "UPDATE", peerOffer, refused)
		})
	})
}

// A 481 to a key may mean that the phone has lost the call, or only that it knows no INFO: it is asked (RFC 5057 §5.1).
func TestPhoneThatAnswersAKeyWith481IsAskedWhetherItHasTheCall(t *testing.T) {
	for status, said := range map[string]string{"481 Call/Transaction Does Not Exist": "0s Answered, 0s Failed", "200 OK": "0s Answered"} {
		inBubble(t, func(c *Config) { quiet10h(c); c.Trunks[0].DTMF = DTMFInfo }, nil, func(b *bubble) {
			call, inv := b.dials()
			b.peer.answers(inv, "200 OK", "b1", peerAnswer, "Allow: UPDATE")
			call.Media().SendDigit('5')
			synctest.Wait()
			b.peer.answers(b.peer.last(), "481 Call/Transaction Does Not Exist", "", "")
			update := b.peer.last()
			if !strings.HasPrefix(update, "UPDATE ") {
				t.Fatalf("after 481 the phone got %q", update)
			}
			b.peer.answers(update, status, "", "")
			if got := strings.Join(withoutChanges(b.said()), ", "); got != said {
				t.Errorf("UPDATE answered %s: said %s, want %s", status, got, said)
			}
			b.peer.send(b.peer.called(inv, "BYE", "y1", 9, ""))
		})
	}
}

// Who sends an INVITE and is gone at once has no connection opened to it that no guard looks at. sipgo may or may not have had the call
// before.
func TestInviteWhoseConnectionIsGoneOpensNoUnguardedOne(t *testing.T) {
	r := ringer{make(chan *Call, 1), make(chan Event, 100), false}
	s := realStackFor(t, Limits{}, r)
	l := newRerouted(t)
	conn, err := net.Dial("tcp", s.Addr(TCP).String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, l.tcp(invite()))
	_ = conn.Close()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		select {
		case c := <-r.calls: // over the connection that is gone, or over another one of ours
			l.wants("SIP/2.0 ")
			if s.streamTo(target{addrPortOf(l.listener.Addr()), TCP}) == nil {
				t.Error("no guard looks at the connection over which the call is answered")
			}
			_ = c.Reject(486, "")
			return
		default:
		}
		if s.Stats().Dropped[dropUnanswerable] > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the INVITE was neither heard nor counted")
		}
	}
	_ = l.listener.(*net.TCPListener).SetDeadline(time.Now().Add(200 * time.Millisecond))
	if other, err := l.listener.Accept(); err == nil {
		_ = other.Close()
		t.Error("a connection was opened for an INVITE that was dropped")
	}
}

// Who calls names the place to which we open connections, and may hold them: there are as many at most as may come in. A phone whose
// connection has given way hears our answer all the same.
func TestConnectionsThatWeOpenAreLimited(t *testing.T) {
	r := ringer{make(chan *Call, 1), make(chan Event, 1000), false}
	limits := Limits{ConnectionsPerHost: 5}
	s := realStackFor(t, limits, r)
	opened := func() int {
		own := s.outgoing[TCP]
		own.mu.Lock()
		defer own.mu.Unlock()
		return len(own.live)
	}
	var first *Call
	var phone *rerouted
	for i := range 20 {
		l := newRerouted(t)
		conn, err := net.Dial("tcp", s.Addr(TCP).String())
		if err != nil {
			t.Fatal(err)
		}
		m := strings.ReplaceAll(invite(), "call-1", fmt.Sprintf("call-%d", i))
		_, _ = io.WriteString(conn, l.tcp(strings.ReplaceAll(m, "branch=z9hG4bK", fmt.Sprintf("branch=z9hG4bK%d", i))))
		c := <-r.calls
		_ = conn.Close()
		l.wants("SIP/2.0 1")
		if first == nil {
			first, phone = c, l
			continue
		}
		if err := c.Reject(480, ""); err != nil {
			t.Fatal(err)
		}
		l.wants("SIP/2.0 480")
		if n := opened(); n > limits.ConnectionsPerHost {
			t.Fatalf("%d connections are open to one host, want %d at most", n, limits.ConnectionsPerHost)
		}
	}
	for m := "180"; m != ""; m = phone.conn.message() { // until the connection that has been silent for longest ends
		if strings.HasPrefix(m, "SIP/2.0 480") {
			t.Fatal("a call was refused by itself")
		}
	}
	phone.conn = nil
	if err := first.Reject(480, ""); err != nil {
		t.Fatal(err)
	}
	phone.wants("SIP/2.0 480")
}
