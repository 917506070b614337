package sip

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/rtp"
)

// voice writes packets of 20 ms as the desk does.
type voice struct {
	m  *Media
	p  rtp.Packet
	to *memConn
}

func (v *voice) write(n int) {
	for range n {
		v.p.SequenceNumber++
		v.p.Timestamp += 160
		_ = v.m.WriteRTP(&v.p)
		time.Sleep(20 * time.Millisecond)
	}
}

// sent lists what the phone got: payload type, timestamp in packets, and of events the key, duration, mark and end.
func (v *voice) sent(t *testing.T) []string {
	t.Helper()
	var out []string
	var p rtp.Packet
	for seq := uint16(0); len(v.to.in) > 0; {
		if err := p.Unmarshal((<-v.to.in).b); err != nil {
			t.Fatal(err)
		}
		if seq++; p.SequenceNumber != seq || p.SSRC != 5 {
			t.Errorf("packet %d has sequence number %d, SSRC %d", seq, p.SequenceNumber, p.SSRC)
		}
		line := fmt.Sprintf("%d @%d", p.PayloadType, p.Timestamp)
		if p.PayloadType == 101 {
			line += fmt.Sprintf(" key %d for %d", p.Payload[0], int(p.Payload[2])<<8|int(p.Payload[3]))
			if p.Marker {
				line += " begin"
			}
			if p.Payload[1]&0x80 != 0 {
				line += " end"
			}
			if p.Payload[1]&0x3f != 10 {
				t.Errorf("volume %d", p.Payload[1]&0x3f)
			}
		}
		out = append(out, line)
	}
	return out
}

func established(b *bubble, offer string) (*Call, *voice) {
	b.Helper()
	phone := b.phoneMedia()
	b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, offer))
	b.peer.send(b.peer.within("ACK", "k1", 1, ""))
	call := <-b.calls
	return call, &voice{m: call.media.Load(), p: rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5}, Payload: make([]byte, 160)}, to: phone.rtp}
}

func TestKeysTakeThePlaceOfVoice(t *testing.T) { // RFC 4733 §2.5.1
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		_, v := established(b, peerOffer)
		v.write(1)
		v.m.SendDigit('5')
		v.m.SendDigit('#')
		v.m.SendDigit('x') // no key
		v.write(17)
		wantLines(t, "phone received", v.sent(t), []string{
			"0 @160",
			"101 @320 key 5 for 160 begin", "101 @320 key 5 for 320", "101 @320 key 5 for 480", "101 @320 key 5 for 640",
			"101 @320 key 5 for 800 end", "101 @320 key 5 for 800 end", "101 @320 key 5 for 800 end",
			"0 @1440", // the event ended at 1120; 50 ms later is 1520, so voice until the packet of 1600
			"101 @1600 key 11 for 160 begin", "101 @1600 key 11 for 320", "101 @1600 key 11 for 480", "101 @1600 key 11 for 640",
			"101 @1600 key 11 for 800 end", "101 @1600 key 11 for 800 end", "101 @1600 key 11 for 800 end",
			"0 @2720", "0 @2880",
		})
	})
}

func TestKeysAreReadAsTheyAreWritten(t *testing.T) { // by our own reader
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		_, v := established(b, peerOffer)
		read := func(keys string) {
			t.Helper()
			for _, k := range keys {
				v.m.SendDigit(byte(k))
				v.write(3)
			}
			v.write(8 * len(keys))
			var r digitReader
			var p rtp.Packet
			got := ""
			for len(v.to.in) > 0 {
				if err := p.Unmarshal((<-v.to.in).b); err != nil {
					t.Fatal(err)
				}
				if p.PayloadType != 101 {
					continue
				}
				if key, ok := r.read(p.SSRC, p.Timestamp, p.Payload); ok {
					got += string(key)
				}
			}
			if got != keys {
				t.Errorf("keys = %q, want %q", got, keys)
			}
		}
		read("0123456789*#ABCD")
		v.m.SendDigit('1')
		v.write(8)
		for len(v.to.in) > 0 {
			<-v.to.in
		}
		v.p.Timestamp -= 5_000_000 // a stream that begins anew in a pause does not make keys wait
		read("77")
	})
}

func TestKeysOfHoldAreForgotten(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		_, v := established(b, peerOffer)
		b.peer.send(b.peer.within("INVITE", "r1", 2, peerOffer+"a=sendonly\n"))
		b.peer.send(b.peer.within("ACK", "k2", 2, ""))
		v.m.SendDigit('1')
		v.write(3)
		b.peer.send(b.peer.within("INVITE", "r2", 3, peerOffer))
		b.peer.send(b.peer.within("ACK", "k3", 3, ""))
		v.p.SequenceNumber = 0
		v.write(2)
		wantLines(t, "phone received", v.sent(t), []string{"0 @640", "0 @800"})
	})
}

func TestKeysGoAsInfo(t *testing.T) {
	plain := strings.NewReplacer(" 101\n", "\n", "a=rtpmap:101 telephone-event/8000\n", "").Replace(peerOffer)
	for _, tt := range []struct {
		name, offer string
		mode        DTMF
	}{
		{"the phone has no telephone-event", plain, DTMFAuto},
		{"the trunk wants it", peerOffer, DTMFInfo},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(c *Config) { c.Trunks[0].DTMF, c.Limits.MediaTimeout = tt.mode, -1 }, answerAtOnce, func(b *bubble) {
				_, v := established(b, tt.offer)
				b.peer.forget()
				v.m.SendDigit('5')
				v.m.SendDigit('a')
				v.m.SendDigit('*')
				synctest.Wait()
				info := b.peer.last()
				if typ := headerIn(info, "Content-Type"); typ != "application/dtmf-relay" || !strings.HasSuffix(info, "\r\n\r\nSignal=5\r\nDuration=100\r\n") {
					t.Errorf("INFO = %q", info)
				}
				time.Sleep(20 * time.Millisecond)
				b.peer.send(replyTo(info, "200 OK"))
				time.Sleep(180 * time.Millisecond)
				second := b.peer.last()
				time.Sleep(time.Second) // the answer is lost, and comes to the second copy
				b.peer.send(replyTo(second, "415 Unsupported Media Type"))
				b.peer.send(replyTo(b.peer.last(), "200 OK"))
				time.Sleep(time.Minute)
				wantLines(t, "peer received", b.peer.lines(), []string{
					"0s INFO", "150ms INFO", "650ms INFO", "1.2s INFO",
				})
				if !strings.Contains(second, "Signal=A\r\n") || !strings.Contains(b.peer.last(), "Signal=*\r\n") {
					t.Errorf("keys came as %q and %q", second, b.peer.last())
				}
				v.write(3)
				for _, line := range v.sent(t) {
					if strings.HasPrefix(line, "101") {
						t.Errorf("also sent as event: %s", line)
					}
				}
			})
		})
	}
}

func TestIdentityOfTheOtherSideChanges(t *testing.T) { // RFC 4916, RFC 3325
	trusted := func(c *Config) { c.Trunks[0].TrustIdentity = true }
	type step struct {
		method string
		edit   []string
		want   Caller // zero: nothing is said
	}
	bob := Caller{Number: "+4930200", DisplayName: "Bob"}
	carol := Caller{Number: "300", DisplayName: "Carol"}
	for _, tt := range []struct {
		name   string
		change func(*Config)
		steps  []step
	}{
		{"asserted by the trunk", trusted, []step{
			{"INVITE", nil, Caller{}},
			{"INVITE", []string{`P-Asserted-Identity: "Bob" <sip:+49-30-200@pbx.example>`}, bob},
			{"UPDATE", []string{`P-Asserted-Identity: "Bob" <sip:+49-30-200@pbx.example>`}, Caller{}},
			{"INVITE", nil, Caller{}}, // a refresh that says nothing is no change
			{"UPDATE", []string{`Remote-Party-ID: "Carol" <sip:300@pbx.example>;party=calling;privacy=off`}, carol},
			{"UPDATE", []string{`Remote-Party-ID: "We" <sip:1000@pbx.example>;party=called`}, Caller{Number: "2001", DisplayName: "Ann"}},
			{"UPDATE", []string{`Remote-Party-ID: "Carol" <sip:300@pbx.example>;privacy=full`}, Caller{Private: true}},
			{"UPDATE", []string{`P-Asserted-Identity: "Bob" <sip:+4930200@pbx.example>`, "Privacy: id"}, Caller{}},
		}},
		{"another From", trusted, []step{{"UPDATE", []string{`From: "Carol" <sip:300@192.0.2.20>;tag=a1`}, carol}}},
		{"an untrusted trunk", nil, []step{
			{"INVITE", []string{`P-Asserted-Identity: "Bob" <sip:+4930200@pbx.example>`}, Caller{}},
			{"UPDATE", []string{`From: "Carol" <sip:300@192.0.2.20>;tag=a1`}, Caller{}},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, tt.change, answerAtOnce, func(b *bubble) {
				call, _ := established(b, peerOffer)
				for i, s := range tt.steps {
					heard := len(b.said())
					body := ""
					if s.method == "INVITE" {
						body = peerOffer
					}
					b.peer.send(b.peer.within(s.method, fmt.Sprint("r", i), 2+i, body, s.edit...))
					if s.method == "INVITE" {
						b.peer.send(b.peer.within("ACK", fmt.Sprint("k", i), 2+i, ""))
					}
					var got Caller
					for n := range b.said()[heard:] {
						if e, ok := b.event(heard + n).(IdentityChanged); ok {
							got = e.Caller
						}
					}
					if got != s.want {
						t.Errorf("step %d %s %v: identity changed to %+v, want %+v", i, s.method, s.edit, got, s.want)
					}
					if s.want != (Caller{}) && call.Dialog().Info.Caller != s.want {
						t.Errorf("step %d: the dialog keeps %+v", i, call.Dialog().Info.Caller)
					}
				}
				b.peer.forget()
				_ = call.Hangup(CauseNormal)
				synctest.Wait()
				if to := headerIn(b.peer.last(), "To"); tt.name == "another From" && to != `"Carol" <sip:300@192.0.2.20>;tag=a1` {
					t.Errorf("BYE has To: %s", to)
				}
			})
		})
	}
}
