package transcode

import "math"

// Comfort noise lies between these levels, root mean square: quieter is silence, louder was no background.
const (
	comfortLeast = 16  // −66 dBFS
	comfortMost  = 330 // −40 dBFS
	comfortLasts = 60  // frames without any packet: browsers refresh theirs every 20
	noiseLasts   = 500 // the same for phones that say how loud it is
)

// comfort is background noise for pauses. Of a device that stops sending (usedtx, RFC 7587 §3.1.3) the decoder would
// make it too, at the price of speech; here it is noise of the level and tilt of the last frame before the pause, so
// that the refreshing frames do not stand out from silence. A phone says the level itself (RFC 3389).
type comfort struct {
	gain, tilt float64
	last       float64
	seed       uint32
	left       int // frames
}

// learn takes the level and tilt of the last sound before a pause.
func (c *comfort) learn(pcm []int16) {
	*c = comfort{seed: c.seed}
	if len(pcm) == 0 {
		return
	}
	pcm = pcm[max(0, len(pcm)-FrameSamples):]
	power, next := 0.0, 0.0
	for i, x := range pcm {
		power += float64(x) * float64(x)
		if i > 0 {
			next += float64(x) * float64(pcm[i-1])
		}
	}
	rms := math.Sqrt(power / float64(len(pcm)))
	if rms < comfortLeast {
		return
	}
	c.tilt = min(max(next/power, -0.95), 0.95)
	c.gain = min(rms, comfortMost) * math.Sqrt(1-c.tilt*c.tilt) * math.Sqrt(12)
	c.left = comfortLasts
}

// make begins noise of the given level without a tilt: a phone says anew how loud it is when that changes, which may be
// never in a pause.
func (c *comfort) make(rms float64) {
	*c = comfort{seed: c.seed}
	if rms >= comfortLeast {
		c.gain = min(rms, comfortMost) * math.Sqrt(12)
		c.left = noiseLasts
	}
}

// noiseRMS is the level in the payload of comfort noise: dB below overload, RFC 3389 §3.1. The spectrum that may follow
// is left out: nobody listens to background.
func noiseRMS(payload []byte) float64 {
	return 32768 * math.Pow(10, -float64(payload[0]&0x7F)/20)
}

// fill writes noise and reports false when it is over.
func (c *comfort) fill(pcm []int16) bool {
	if c.left == 0 {
		return false
	}
	c.left--
	for i := range pcm {
		c.seed = c.seed*1664525 + 1013904223
		white := float64(c.seed>>8)/(1<<24) - 0.5
		c.last = c.tilt*c.last + c.gain*white
		pcm[i] = int16(c.last)
	}
	return true
}

func (c *comfort) stop() { c.left = 0 }
