package transcode

import "math"

// voice is one frame of one source, as everybody else hears it.
type voice struct {
	band  band
	sound [wideSamples]int16
	widen widener
	wide  [wideSamples]int16 // the same at a desk of a wider band; only while heard
	heard bool               // false: sound is zero
	muted bool
	level int8 // dBov of the last frame, −127 to 0
}

// minLevel is what RFC 6464 §3 calls digital silence.
const minLevel = -127

// listen measures the frame.
func (v *voice) listen() {
	if !v.heard {
		v.level = minLevel
		return
	}
	v.level = levelOf(energy(v.pcm()), len(v.pcm()))
}

// pcm is the frame in the voice's own band.
func (v *voice) pcm() []int16 { return v.sound[:FrameSamples*int(v.band)] }

// in returns the frame in the band of the desk, which is not below that of the voice.
func (v *voice) in(b band) []int16 {
	if v.band == b {
		return v.pcm()
	}
	return v.wide[:]
}

func (v *voice) hush() {
	v.heard = false
	v.level = minLevel
	clear(v.sound[:])
}

func energy(pcm []int16) int64 {
	var sum int64
	for _, x := range pcm {
		sum += int64(x) * int64(x)
	}
	return sum
}

// levelOf is the root mean square in dB below overload, RFC 6464 §3.
func levelOf(energy int64, samples int) int8 {
	if energy == 0 {
		return minLevel
	}
	db := 10 * math.Log10(float64(energy)/float64(samples)/(32768*32768))
	return int8(max(minLevel, math.Round(db)))
}
