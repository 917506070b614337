package phone

import (
	"testing"
	"time"

	"github.com/pion/rtp"
)

func TestG711RoundTrip(t *testing.T) {
	for _, c := range codecs[:2] {
		for b := range 256 {
			s := c.decode(byte(b))
			if got := c.decode(c.encode(s)); got != s {
				t.Errorf("%s: octet %#x is %d, comes back as %d", c.name, b, s, got)
			}
		}
		for s := -32768; s < 32768; s += 7 {
			got := int(c.decode(c.encode(int16(s))))
			if d := max(got-s, s-got); d > max(s, -s)/16+16 && max(s, -s) < 32000 {
				t.Errorf("%s: %d becomes %d", c.name, s, got)
			}
		}
	}
	// ITU-T G.711 tables 1a and 2a: the octets of silence and of the largest values.
	for _, tt := range []struct {
		c    codec
		s    int16
		want byte
	}{
		{codecs[0], 0, 0xff},
		{codecs[0], 32767, 0x80},
		{codecs[0], -32768, 0x00},
		{codecs[1], 0, 0xd5},
		{codecs[1], 32767, 0xaa},
		{codecs[1], -32768, 0x2a},
	} {
		if got := tt.c.encode(tt.s); got != tt.want {
			t.Errorf("%s: %d is %#x, want %#x", tt.c.name, tt.s, got, tt.want)
		}
	}
}

func TestRecorderKeepsGaps(t *testing.T) {
	r, packet := record(t)
	packet(120*time.Millisecond, 1, 1, 5000)
	packet(145*time.Millisecond, 1, 2, 5160)  // late by 5 ms: laid out by its timestamp
	packet(400*time.Millisecond, 1, 3, 7240)  // after a gap of 240 ms
	packet(1000*time.Millisecond, 2, 1, 1)    // another sender: laid out by its arrival
	packet(1020*time.Millisecond, 1, 3, 7240) // an old one, far too late
	heard := r.heard(r.began.Add(1500 * time.Millisecond))
	if len(heard) != 12000 {
		t.Fatalf("recording has %d samples, want 12000", len(heard))
	}
	sound := func(ms int) bool { return heard[ms*8] != 0 }
	for ms, want := range map[int]bool{0: false, 99: false, 101: true, 139: true, 141: false, 379: false, 381: true, 399: true, 401: false, 981: true, 1400: false} {
		if sound(ms) != want {
			t.Errorf("sound at %d ms: %v, want %v", ms, sound(ms), want)
		}
	}
}

// A machine without time delivers what was sent in order late, and then all at once: nothing is missing in it.
func TestRecorderBelievesTheClockOfWhoCatchesUp(t *testing.T) {
	r, packet := record(t)
	at := func(n int) time.Duration { return time.Duration(n) * 20 * time.Millisecond }
	for n := range 100 {
		arrives := at(n + 1)
		if n >= 10 && n < 60 {
			arrives = at(61) // held up for a second
		}
		packet(arrives, 1, uint16(n), uint32(160*n))
	}
	// Who pauses and goes on as if nothing had been is believed for two seconds.
	const pause = 100
	for n := 100; n < 250; n++ {
		packet(at(n+pause+1), 1, uint16(n), uint32(160*n))
	}
	heard := r.heard(r.began.Add(at(250 + pause)))
	for frame, want := range map[int]bool{0: true, 9: true, 10: true, 59: true, 60: true, 99: true, 100: true, 199: true, 200: false, 299: false, 301: true, 349: true} {
		if got := heard[frame*160+80] != 0; got != want {
			t.Errorf("sound in frame %d: %t, want %t", frame, got, want)
		}
	}
}

// Who reads late finds many packets of the beginning at once: they are one after the other all the same.
func TestRecorderKeepsABeginningThatIsReadLate(t *testing.T) {
	r, packet := record(t)
	at := func(n int) time.Duration { return time.Duration(n) * 20 * time.Millisecond }
	for n := range 100 {
		packet(at(max(n, 40)+1), 1, uint16(n), uint32(160*n))
	}
	heard, sound := r.heard(r.began.Add(at(101))), 0
	for frame := range len(heard) / 160 {
		if heard[frame*160+80] != 0 {
			sound++
		}
	}
	if sound != 100 {
		t.Errorf("%d frames of sound, want 100", sound)
	}
}

// record is a recorder, and what gives it a packet of sound that arrives so long after its beginning.
func record(t *testing.T) (*recorder, func(at time.Duration, ssrc uint32, seq uint16, ts uint32)) {
	t.Helper()
	r := &recorder{began: time.Now(), rate: Rate}
	muLaw, err := codecs[0].start()
	if err != nil {
		t.Fatal(err)
	}
	return r, func(at time.Duration, ssrc uint32, seq uint16, ts uint32) {
		payload := make([]byte, codecs[0].frameSamples())
		for i := range payload {
			payload[i] = encodeMuLaw(1000)
		}
		r.write(&rtp.Packet{Header: rtp.Header{SSRC: ssrc, SequenceNumber: seq, Timestamp: ts}, Payload: payload}, muLaw, r.began.Add(at))
	}
}
