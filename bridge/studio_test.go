package bridge

import (
	"bytes"
	"context"
	"math/bits"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/rtp"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
	"trunkline/matrixcall"
	"trunkline/sip"
	"trunkline/transcode"
)

// toULaw and fromULaw are ITU-T G.711 written from its definition, independent of the tables they help to test.
func toULaw(s int16) byte {
	const bias, clip = 132, 32635
	sign, x := byte(0), int(s)
	if x < 0 {
		sign, x = 0x80, -x
	}
	x = min(x, clip) + bias
	exponent := bits.Len(uint(x)) - 8
	return ^(sign | byte(exponent<<4) | byte(x>>(exponent+3)&15))
}

func fromULaw(b byte) int16 {
	b = ^b
	x := (int(b&15)<<3+132)<<(b>>4&7) - 132
	if b&0x80 != 0 {
		x = -x
	}
	return int16(x)
}

// handset is the far end of a voice in these tests: it talks G.711 and keeps what it hears, with gaps as long as they were.
type handset struct {
	voice *voice

	mu    sync.Mutex
	heard []int16
	first time.Time
}

func (h *handset) hear(p *rtp.Packet) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.first.IsZero() {
		h.first = time.Now()
	}
	for _, b := range p.Payload {
		h.heard = append(h.heard, fromULaw(b))
	}
	return nil
}

func (h *handset) join(t *testing.T, s *studio, room string) {
	t.Helper()
	v, err := s.Join(voiceOptions{
		Room: id.RoomID(room), Phone: phoneConfig(sip.Format{Codec: "PCMU"}),
		ToPhone: h.hear, ToPeers: func(*rtp.Packet) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	h.voice = v
}

func (h *handset) recording() []int16 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.heard)
}

// talk sends pcm in real time.
func (h *handset) talk(pcm []int16) {
	next := time.Now()
	for i := 0; i+160 <= len(pcm); i += 160 {
		payload := make([]byte, 160)
		for j, s := range pcm[i : i+160] {
			payload[j] = toULaw(s)
		}
		h.voice.FromPhone(&rtp.Packet{
			Header:  rtp.Header{Version: 2, SequenceNumber: uint16(i / 160), Timestamp: uint32(i), SSRC: 7},
			Payload: payload,
		})
		next = next.Add(20 * time.Millisecond)
		time.Sleep(time.Until(next))
	}
}

func runStudio(t *testing.T) *studio {
	t.Helper()
	s := newStudio(2)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

func TestTwoPhonesOfARoomHearEachOtherAndNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := runStudio(t)
		var alice, bob, stranger handset
		alice.join(t, s, "!a")
		bob.join(t, s, "!a")
		stranger.join(t, s, "!b")
		voices := map[*handset][]int16{
			&alice: speech.Alice.PCM(8000, 6*time.Second), &bob: speech.Bob.PCM(8000, 6*time.Second),
		}
		var wg sync.WaitGroup
		for h, pcm := range voices {
			wg.Go(func() { h.talk(pcm) })
		}
		wg.Wait()
		for who, c := range map[string]struct {
			listener   *handset
			right, own []int16
		}{
			"alice": {&alice, voices[&bob], voices[&alice]},
			"bob":   {&bob, voices[&alice], voices[&bob]},
		} {
			heard := c.listener.recording()
			if m := listen.Compare(heard, c.right, 8000); m.Correlation < 0.95 || m.Delay > 60*time.Millisecond {
				t.Errorf("%s hears the other: %v", who, m)
			}
			if m := listen.Compare(heard, c.own, 8000); m.Correlation > 0.2 {
				t.Errorf("%s hears itself: %v", who, m)
			}
		}
		if level := listen.Level(stranger.recording()); level > -60 {
			t.Errorf("a phone in another room hears %v dB", level)
		}
		// 6 s are 300 frames; the phone gets one every 20 ms whether somebody speaks or not.
		if got := len(stranger.recording()) / 160; got < 298 || got > 302 {
			t.Errorf("a lonely phone got %d frames in 6 s", got)
		}
		if st := s.Stats(); st != (studioStats{}) {
			t.Errorf("stats = %+v, want none late, skipped or dropped", st)
		}
		for _, h := range []*handset{&alice, &bob, &stranger} {
			h.voice.Leave()
			h.voice.Leave() // leaving twice is leaving once
		}
		for _, w := range s.workers {
			w.do(func() {
				if len(w.conferences) != 0 {
					t.Errorf("%d conferences left", len(w.conferences))
				}
			})
		}
	})
}

func TestPacketsForAPhoneThatLeftAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := runStudio(t)
		var a, b handset
		a.join(t, s, "!a")
		b.join(t, s, "!a")
		a.voice.Leave()
		a.talk(speech.Alice.PCM(8000, time.Second))
		a.voice.PeerGone(deviceKey{"@x:y", "D"})
		a.voice.PeerMuted(deviceKey{"@x:y", "D"}, true)
		time.Sleep(time.Second)
		if level := listen.Level(b.recording()); level > -60 {
			t.Errorf("the other hears %v dB", level)
		}
	})
}

func TestAFloodedInboxDropsAndCounts(t *testing.T) {
	s := newStudio(1) // its loop does not run
	v := &voice{worker: s.workers[0]}
	p := &rtp.Packet{Payload: bytes.Repeat([]byte{1}, 160)}
	for range maxWaiting + 10 {
		v.FromPhone(p)
	}
	if got := s.Stats().Overflow; got != 10 {
		t.Errorf("Overflow = %d, want 10", got)
	}
}

func TestPacketsEnterTheInboxWithoutAllocation(t *testing.T) {
	w := newWorker()
	v := &voice{worker: w}
	p := &rtp.Packet{Payload: bytes.Repeat([]byte{1}, 160)}
	fromPeer := &rtp.Packet{Payload: bytes.Repeat([]byte{1}, 60)}
	if err := fromPeer.SetExtension(matrixcall.LevelExtension, []byte{30}); err != nil {
		t.Fatal(err)
	}
	round := func() {
		for range 100 {
			v.FromPhone(p)
			v.FromPeer(deviceKey{"@x:y", "D"}, fromPeer)
		}
		w.deliver()
	}
	round()
	round() // both buffers have grown
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations per 200 packets", n)
	}
}

// microphone sends n packets of a device; the sound is garbage that a decoder refuses, so what is decoded is counted.
func microphone(v *voice, key deviceKey, first, n int, level ...byte) {
	for i := first; i < first+n; i++ {
		p := &rtp.Packet{
			Header:  rtp.Header{Version: 2, SequenceNumber: uint16(i), Timestamp: uint32(i) * 960, SSRC: 9},
			Payload: []byte{1<<3 | 2, 200, 0, 0}, // SILK, two frames, the first longer than the packet (RFC 6716 §3.2.4)
		}
		if len(level) > 0 {
			p.SetExtension(matrixcall.LevelExtension, level)
		}
		v.FromPeer(key, p)
		time.Sleep(20 * time.Millisecond)
	}
}

func deviceStats(v *voice, key deviceKey) (st transcode.DeviceStats) {
	v.worker.do(func() { st = v.conf.devices[key].device.Stats() })
	return st
}

func TestMutedPeerIsNotDecoded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := runStudio(t)
		var h handset
		h.join(t, s, "!a")
		key := deviceKey{"@x:y", "D"}
		h.voice.PeerMuted(key, true) // as told when it connected, before its first packet
		microphone(h.voice, key, 0, 50)
		if st := deviceStats(h.voice, key); st.In.Bad != 0 || st.In.Packets != 50 || !st.Muted {
			t.Errorf("muted: %+v, want 50 packets, none decoded", st)
		}
		h.voice.PeerMuted(key, false)
		microphone(h.voice, key, 50, 50)
		if st := deviceStats(h.voice, key); st.In.Bad < 40 || st.Muted {
			t.Errorf("unmuted: %+v, want the packets decoded, and refused", st)
		}
		before := deviceStats(h.voice, key).In.Bad
		h.voice.PeerMuted(key, true)
		microphone(h.voice, key, 100, 50)
		if st := deviceStats(h.voice, key); st.In.Bad > before+1 || !st.Muted {
			t.Errorf("muted again: %+v after %d bad, want no more", st, before)
		}
		h.voice.PeerGone(key)
		h.voice.worker.do(func() {
			if n := len(h.voice.conf.muted); n != 0 {
				t.Errorf("%d devices are remembered as muted after they went", n)
			}
		})
		h.voice.Leave()
	})
}

func TestQuietPeerIsNotDecoded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := runStudio(t)
		var h handset
		h.join(t, s, "!a")
		key := deviceKey{"@x:y", "D"}
		microphone(h.voice, key, 0, 50, 127)
		if st := deviceStats(h.voice, key); st.In.Bad != 0 || st.Chosen {
			t.Errorf("digital silence: %+v, want nothing decoded", st)
		}
		microphone(h.voice, key, 50, 50, 30)
		if st := deviceStats(h.voice, key); st.In.Bad < 40 || !st.Chosen {
			t.Errorf("speech: %+v, want it decoded, and refused", st)
		}
		h.voice.Leave()
	})
}

func TestWhatStreamsLostIsCountedWhenTheyEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := runStudio(t)
		var alice, bob handset
		alice.join(t, s, "!a")
		bob.join(t, s, "!a")
		carol := deviceKey{User: "@carol:example.org", Device: "PHONE"}
		silence := []byte{0xf8, 0xff, 0xfe} // an Opus packet of 20 ms (RFC 6716 §3.1)
		for i := range 100 {
			if i < 40 || i >= 45 {
				alice.voice.FromPhone(&rtp.Packet{
					Header: rtp.Header{Version: 2, SequenceNumber: uint16(i), Timestamp: uint32(160 * i), SSRC: 7}, Payload: make([]byte, 160),
				})
			}
			if i%10 != 5 {
				for _, ghost := range []*handset{&alice, &bob} {
					ghost.voice.FromPeer(carol, &rtp.Packet{
						Header: rtp.Header{Version: 2, PayloadType: 111, SequenceNumber: uint16(i), Timestamp: uint32(960 * i), SSRC: 9}, Payload: silence,
					})
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(time.Second)
		alice.voice.Leave()
		bob.voice.PeerGone(carol)
		bob.voice.Leave()
		fromPhones := s.Streams(func(w *worker) *tally { return &w.fromPhones })
		if fromPhones["packets"] != 95 || fromPhones["lost"] != 5 || fromPhones["concealed"] < 5 || alice.voice.heard.Lost != 5 {
			t.Errorf("of phones %v (alice alone %+v), want 95 packets, 5 lost", fromPhones, alice.voice.heard)
		}
		fromDevices := s.Streams(func(w *worker) *tally { return &w.fromDevices })
		if fromDevices["packets"] != 180 || fromDevices["lost"] != 20 {
			t.Errorf("of devices %v, want 180 packets, 20 lost: both ghosts' copies", fromDevices)
		}
	})
}
