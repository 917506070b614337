package transcode

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"testing"
)

// hardSound is noise of every level and a square wave as loud as can be: what drives each limit of the arithmetic.
func hardSound() []int16 {
	var pcm []int16
	seed := uint32(1)
	for i := range 160000 {
		seed = seed*1664525 + 1013904223
		pcm = append(pcm, int16((int(seed>>16)-32768)>>(i/8000%16)))
	}
	for i := range 16000 {
		pcm = append(pcm, []int16{-32768, 32767}[i/37%2])
	}
	return pcm
}

// EncodeG722 and DecodeG722 are for the tests from outside, too.
func EncodeG722(pcm []int16) []byte {
	var e g722Encoder
	e.reset()
	code := make([]byte, len(pcm)/2)
	for i := 0; i < len(code); i += FrameSamples {
		end := min(i+FrameSamples, len(code))
		e.encode(code[i:end], pcm[2*i:2*end])
	}
	return code
}

// DecodeG722 decodes pieces of odd lengths.
func DecodeG722(code []byte) []int16 {
	const odd = 777
	var d g722Decoder
	d.reset()
	pcm := make([]int16, 2*len(code))
	for i := 0; i < len(code); i += odd {
		d.decode(pcm[2*i:], code[i:min(i+odd, len(code))])
	}
	return pcm
}

func digest[T byte | int16](of []T) string {
	h := sha256.New()
	_ = binary.Write(h, binary.LittleEndian, of) // a hash takes anything
	return fmt.Sprintf("%x", h.Sum(nil))
}

// The digests are of what another implementation (spandsp 0.0.6, which passes the test sequences of the recommendation)
// makes of the same sound; for decoding, of half the level, because that one does not saturate.
func TestG722IsExactToTheBit(t *testing.T) {
	pcm := hardSound()
	if got, want := digest(EncodeG722(pcm)), "e74e24a877e6513b1ec56a2926c9cc798dfe61669ed616290f8fb22b89afb667"; got != want {
		t.Errorf("encoded: digest %s, want %s", got, want)
	}
	for i := range pcm {
		pcm[i] >>= 1
	}
	if got, want := digest(DecodeG722(EncodeG722(pcm))), "a19da9b60f98d7c8b69b7f0d0efb7ecb2d84f5559e8abadefa6da22e901382e0"; got != want {
		t.Errorf("decoded: digest %s, want %s", got, want)
	}
}

func BenchmarkG722(b *testing.B) {
	pcm := hardSound()
	code := make([]byte, FrameSamples)
	var e g722Encoder
	e.reset()
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			from := i % 550 * 2 * FrameSamples
			e.encode(code, pcm[from:from+2*FrameSamples])
		}
	})
	b.Run("decode", func(b *testing.B) {
		var d g722Decoder
		d.reset()
		out := make([]int16, 2*FrameSamples)
		e.encode(code, pcm[:2*FrameSamples])
		b.ReportAllocs()
		for b.Loop() {
			d.decode(out, code)
		}
	})
}
