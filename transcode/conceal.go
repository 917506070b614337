package transcode

const (
	historySamples = Rate * 50 / 1000
	pitchLow       = Rate * 5 / 1000 // ITU-T G.711 Appendix I: 5 to 15 ms
	pitchHigh      = maxPitch
	pitchWindow    = Rate * 20 / 1000
	joinSamples    = Rate * 5 / 1000
)

// g711Decoder decodes both laws and conceals after ITU-T G.711 Appendix I: the last pitch period goes on and fades
// within 60 ms.
type g711Decoder struct {
	history [historySamples]int16
	period  [pitchHigh]int16
	lag     int // length of the period; 0 when not concealing
	played  int // samples concealed
	step    int // difference at the seam, worn off over the first samples
}

func (d *g711Decoder) decode(pcm []int16, p *packet) int {
	if p.kind == kindALaw {
		return PCMA.decode(pcm, p.payload)
	}
	return PCMU.decode(pcm, p.payload)
}

func (d *g711Decoder) recover([]int16, *packet) bool { return false }

func (d *g711Decoder) heard(pcm []int16) {
	d.lag = 0
	if n := len(pcm); n >= historySamples {
		copy(d.history[:], pcm[n-historySamples:])
	} else {
		copy(d.history[:], d.history[n:])
		copy(d.history[historySamples-n:], pcm)
	}
}

func (d *g711Decoder) conceal(pcm []int16) {
	if d.lag == 0 {
		d.learn()
	}
	const full, fade = Rate * 10 / 1000, Rate * 50 / 1000
	for i := range pcm {
		x := int(d.period[d.played%d.lag])
		if d.played < rampSamples {
			x += d.step * (rampSamples - d.played) / rampSamples
		}
		gain := min(fade, max(0, full+fade-d.played))
		pcm[i] = saturate(x * gain / fade)
		d.played++
	}
}

// bridge lets the made-up sound turn into the real one.
func (d *g711Decoder) bridge(pcm []int16) {
	var more [joinSamples]int16
	n := min(joinSamples, len(pcm))
	d.conceal(more[:n])
	blend(pcm[:n], more[:n], pcm[:n])
	d.lag = 0
}

// learn takes the last pitch period of the history, its end turned towards what came before it so that it can repeat.
func (d *g711Decoder) learn() {
	h := d.history[:]
	recent := h[historySamples-pitchWindow:]
	best := -2.0
	for lag := pitchLow; lag <= pitchHigh; lag++ {
		from := historySamples - pitchWindow - lag
		if c := likeness(recent, h[from:from+pitchWindow]); c > best {
			best, d.lag = c, lag
		}
	}
	start := historySamples - d.lag
	period := d.period[:d.lag]
	copy(period, h[start:])
	quarter := d.lag / 4
	blend(period[d.lag-quarter:], h[historySamples-quarter:], h[start-quarter:start])
	d.played = 0
	d.step = int(h[historySamples-1]) - int(h[start-1])
}

func saturate(x int) int16 { return int16(min(max(x, -32768), 32767)) }
