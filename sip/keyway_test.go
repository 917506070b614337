package sip

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestKeysThatComeTwoWaysCountOnce(t *testing.T) {
	type key struct {
		at   int // ms
		from DigitSource
		key  byte
		want bool
	}
	const rtp, info = FromRTP, FromINFO
	for _, tt := range []struct {
		name string
		info bool // the trunk's way
		keys []key
	}{
		{"events alone", false, []key{{0, rtp, '1', true}, {200, rtp, '1', true}, {400, rtp, '2', true}}},
		{"INFO alone, although events were agreed on", false, []key{{0, info, '1', true}, {200, info, '1', true}, {9000, info, '2', true}}},
		{"both, the event first", false, []key{{0, rtp, '1', true}, {100, info, '1', false}, {300, rtp, '1', true}, {400, info, '1', false}}},
		{"both, INFO first", false, []key{{0, info, '1', true}, {50, rtp, '1', false}, {300, info, '1', false}, {350, rtp, '1', true}}},
		{"both, INFO two keys ahead", false, []key{{0, info, '1', true}, {100, info, '1', true}, {150, rtp, '1', false}, {250, rtp, '1', false}, {400, rtp, '1', true}}},
		{"an INFO long before is no copy", false, []key{{0, info, '1', true}, {2000, rtp, '1', true}, {2100, info, '1', false}}},
		{"another key is no copy", false, []key{{0, info, '1', true}, {50, rtp, '2', true}}},
		{"one INFO among events is a key", false, []key{{0, rtp, '1', true}, {100, rtp, '2', true}, {300, info, '7', true}}},
		{"both, and a press longer than a copy may wait", false, []key{{0, rtp, '1', true}, {100, info, '1', false}, {300, rtp, '2', true}, {5000, info, '2', false}}},
		{"both, on a trunk with INFO", true, []key{{0, rtp, '1', true}, {100, info, '1', false}, {300, rtp, '1', false}, {400, info, '1', true}}},
		{"events alone, on a trunk with INFO", true, []key{{0, rtp, '1', true}, {100, rtp, '1', true}}},
	} {
		w := keyWay{info: tt.info}
		for i, k := range tt.keys {
			if got := w.counts(k.key, k.from, time.Unix(0, 0).Add(time.Duration(k.at)*time.Millisecond)); got != k.want {
				t.Errorf("%s: key %d, %c as %s after %d ms, counts: %v, want %v", tt.name, i, k.key, k.from, k.at, got, k.want)
			}
		}
		if len(w.recent) > 3 {
			t.Errorf("%s: %d keys are remembered", tt.name, len(w.recent))
		}
	}
}

func TestPhoneThatSendsKeysTwoWaysPressesOnce(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		phone := b.phoneMedia()
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		call := <-b.calls
		pressed := func() (keys string) {
			for i := range b.said() {
				if d, ok := b.event(i).(Digit); ok {
					keys += string(d.Key)
				}
			}
			return keys
		}
		press := func(key byte, cseq int, also bool) {
			phone.press(call.media.Load().LocalAddr(), key, uint32(cseq)*4000)
			synctest.Wait()
			if also {
				b.peer.send(b.peer.within("INFO", fmt.Sprint("n", cseq), cseq, "Signal="+string(key)+"\n", "Content-Type: application/dtmf-relay"))
			}
			time.Sleep(300 * time.Millisecond)
		}
		for i, key := range "1123" {
			press(byte(key), 2+i, true)
		}
		if got := pressed(); got != "1123" {
			t.Errorf("pressed %q, want 1123", got)
		}
		// Another phone may take over in the same dialog, and its keys are INFO.
		b.peer.send(b.peer.within("INVITE", "r1", 20, peerOffer))
		b.peer.send(b.peer.within("ACK", "r1k", 20, ""))
		b.peer.send(b.peer.within("INFO", "x", 21, "Signal=9\n", "Content-Type: application/dtmf-relay"))
		if got := pressed(); got != "11239" {
			t.Errorf("pressed %q, want 11239", got)
		}
	})
}
