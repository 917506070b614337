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
	began := time.Now()
	r := recorder{began: began, rate: Rate}
	muLaw, err := codecs[0].start()
	if err != nil {
		t.Fatal(err)
	}
	packet := func(at time.Duration, ssrc, ts uint32) {
		payload := make([]byte, codecs[0].frameSamples())
		for i := range payload {
			payload[i] = encodeMuLaw(1000)
		}
		r.write(&rtp.Packet{Header: rtp.Header{SSRC: ssrc, Timestamp: ts}, Payload: payload}, muLaw, began.Add(at))
	}
	packet(120*time.Millisecond, 1, 5000)
	packet(145*time.Millisecond, 1, 5160)  // late by 5 ms: laid out by its timestamp
	packet(400*time.Millisecond, 1, 7240)  // after a gap of 240 ms
	packet(1000*time.Millisecond, 2, 1)    // another sender: laid out by its arrival
	packet(1020*time.Millisecond, 1, 7240) // an old one, far too late
	heard := r.heard(began.Add(1500 * time.Millisecond))
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
