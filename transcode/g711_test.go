package transcode

import "testing"

// Values of ITU-T G.711 tables 1a to 2b (positive and negative ends of the segments).
func TestG711DecodesAsTheTablesSay(t *testing.T) {
	for _, c := range []struct {
		codec Codec
		code  byte
		want  int16
	}{
		{PCMU, 0x80, 32124},
		{PCMU, 0x00, -32124},
		{PCMU, 0xFF, 0},
		{PCMU, 0x7F, 0},
		{PCMU, 0xFE, 8},
		{PCMU, 0xEF, 132},
		{PCMU, 0x8F, 16764},
		{PCMU, 0x9F, 8316},
		{PCMA, 0xAA, 32256},
		{PCMA, 0x2A, -32256},
		{PCMA, 0xD5, 8},
		{PCMA, 0x55, -8},
		{PCMA, 0xD4, 24},
		{PCMA, 0xC5, 264},
	} {
		var got [1]int16
		c.codec.decode(got[:], []byte{c.code})
		if got[0] != c.want {
			t.Errorf("%v decodes %#02x to %d, want %d", c.codec, c.code, got[0], c.want)
		}
	}
}

func TestG711ComesBackAsTheNearestCode(t *testing.T) {
	for _, codec := range []Codec{PCMU, PCMA} {
		var payload, again [1]byte
		var pcm [1]int16
		for code := range 256 {
			codec.decode(pcm[:], []byte{byte(code)})
			codec.encode(again[:], pcm[:])
			if again[0] != byte(code) && (codec != PCMU || code != 0x7F) { // µ-law has two zeros
				t.Errorf("%v: %#02x comes back as %#02x", codec, code, again[0])
			}
		}
		for x := -32768; x <= 32767; x++ {
			codec.encode(payload[:], []int16{int16(x)})
			codec.decode(pcm[:], payload[:])
			limit := 8 + abs(x)/28 // half a step: steps are a 16th of the segment
			if codec == PCMU {
				limit = 8 + (abs(x)+132)/30
			}
			if d := abs(int(pcm[0]) - x); d > limit && abs(x) < 32125 {
				t.Fatalf("%v: %d comes back as %d, off by %d, want at most %d", codec, x, pcm[0], d, limit)
			}
		}
	}
}

func TestSilenceIsWhatZeroEncodesTo(t *testing.T) {
	for _, codec := range []Codec{PCMU, PCMA} {
		var payload [1]byte
		codec.encode(payload[:], []int16{0})
		if payload[0] != codec.silence() {
			t.Errorf("%v: zero is %#02x, silence is %#02x", codec, payload[0], codec.silence())
		}
	}
	if got := Codec(9).String(); got != "unknown" {
		t.Errorf("Codec(9) = %q", got)
	}
}

func abs(x int) int { return max(x, -x) }
