package transcode

const (
	historySamples = Rate * 50 / 1000
	pitchLow       = Rate * 5 / 1000 // ITU-T G.711 Appendix I: 5 to 15 ms
	pitchHigh      = maxPitch
	pitchWindow    = Rate * 20 / 1000
	joinSamples    = Rate * 5 / 1000
)

// concealer goes on where sound of a phone is missing, after ITU-T G.711 Appendix I: the last pitch period is repeated
// and fades within 60 ms.
type concealer struct {
	band   band
	past   [int(wide) * historySamples]int16
	period [int(wide) * pitchHigh]int16
	lag    int // length of the period in samples; 0 when not concealing
	played int // samples concealed
	step   int // difference at the seam, worn off over the first samples
}

// history is the last sound that was no concealment.
func (c *concealer) history() []int16 { return c.past[:historySamples*int(c.band)] }

func (c *concealer) heard(pcm []int16) {
	c.lag = 0
	h := c.history()
	if n := len(pcm); n >= len(h) {
		copy(h, pcm[n-len(h):])
	} else {
		copy(h, h[n:])
		copy(h[len(h)-n:], pcm)
	}
}

func (c *concealer) conceal(pcm []int16) {
	if c.lag == 0 {
		c.learn()
	}
	b := int(c.band)
	full, fade, ramp := b*Rate*10/1000, b*Rate*50/1000, b*rampSamples
	for i := range pcm {
		x := int(c.period[c.played%c.lag])
		if c.played < ramp {
			x += c.step * (ramp - c.played) / ramp
		}
		gain := min(fade, max(0, full+fade-c.played))
		pcm[i] = saturate(x * gain / fade)
		c.played++
	}
}

// bridge lets the made-up sound turn into the real one.
func (c *concealer) bridge(pcm []int16) {
	var more [int(wide) * joinSamples]int16
	n := min(joinSamples*int(c.band), len(pcm))
	c.conceal(more[:n])
	blend(pcm[:n], more[:n], pcm[:n])
	c.lag = 0
}

// learn takes the last pitch period of the history, its end turned towards what came before it so that it can repeat.
func (c *concealer) learn() {
	h := c.history()
	c.lag = c.pitch(h) * int(c.band)
	start := len(h) - c.lag
	period := c.period[:c.lag]
	copy(period, h[start:])
	quarter := c.lag / 4
	blend(period[c.lag-quarter:], h[len(h)-quarter:], h[start-quarter:start])
	c.played = 0
	c.step = int(h[len(h)-1]) - int(h[start-1])
}

// pitch is the length of the last period in ticks. Voices are found in the lower band.
func (c *concealer) pitch(h []int16) (ticks int) {
	var thin [historySamples]int16
	thinOut(thin[:], h, c.band)
	recent := thin[historySamples-pitchWindow:]
	best := -2.0
	for lag := pitchLow; lag <= pitchHigh; lag++ {
		from := historySamples - pitchWindow - lag
		if l := likeness(recent, thin[from:from+pitchWindow]); l > best {
			best, ticks = l, lag
		}
	}
	return ticks
}

// thinOut writes a sample for each tick of pcm, good enough to find periods in, and returns their number.
func thinOut(out, pcm []int16, b band) int {
	if b == narrow {
		return copy(out, pcm)
	}
	n := min(len(out), len(pcm)/2)
	for i := range out[:n] {
		out[i] = int16((int(pcm[2*i]) + int(pcm[2*i+1])) / 2)
	}
	return n
}

func saturate(x int) int16 { return int16(min(max(x, -32768), 32767)) }
