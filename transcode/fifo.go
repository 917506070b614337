package transcode

import "math"

// Stretching works on pitch periods: voices from 67 to 400 Hz.
const (
	stretchWindow = Rate * 10 / 1000 // compared and blended over 10 ms
	minPitch      = Rate / 400
	maxPitch      = Rate * 15 / 1000

	quietRMS       = 100 // −50 dBFS: cutting here is not heard
	enoughLikeness = 0.6
)

// fifo holds sound that is decoded and not yet played.
type fifo struct {
	band       band
	buf        [2 * int(wide) * maxFifo]int16
	head, tail int
	last       int16 // last sample put
}

// maxFifo bounds what is ever held, in ticks: less than a frame, the longest packet, and what shortening looks ahead.
const maxFifo = 2 * maxOpusSamples

// len is in ticks.
func (f *fifo) len() int { return (f.tail - f.head) / int(f.band) }

// retune turns what is held into another band, roughly: it is a few milliseconds.
func (f *fifo) retune(b band) {
	held := f.buf
	x := held[f.head:f.tail]
	switch {
	case b == f.band:
		return
	case b == narrow:
		f.tail = thinOut(f.buf[:], x, f.band)
	default:
		for i, v := range x {
			next := x[min(i+1, len(x)-1)]
			f.buf[2*i], f.buf[2*i+1] = v, int16((int(v)+int(next))/2)
		}
		f.tail = 2 * len(x)
	}
	f.head, f.band = 0, b
}

func (f *fifo) put(pcm []int16) {
	if len(pcm) == 0 {
		return
	}
	if most := maxFifo * int(f.band); f.tail-f.head+len(pcm) > most {
		f.head = f.tail + len(pcm) - most // cannot happen with packets that were checked
	}
	if f.tail+len(pcm) > len(f.buf) {
		f.tail = copy(f.buf[:], f.buf[f.head:f.tail])
		f.head = 0
	}
	f.tail += copy(f.buf[f.tail:], pcm)
	f.last = pcm[len(pcm)-1]
}

// take moves the oldest sound to out and returns the number of samples.
func (f *fifo) take(out []int16) int {
	n := copy(out, f.buf[f.head:f.tail])
	f.head += n
	return n
}

// fadeOut adds a short slope from the last sample to zero.
func (f *fifo) fadeOut() {
	var slope [int(wide) * rampSamples]int16
	if f.last == 0 {
		return
	}
	n := rampSamples * int(f.band)
	for i := range n {
		slope[i] = int16(int(f.last) * (n - 1 - i) / n)
	}
	f.put(slope[:n])
}

// shorten cuts at most the given number of ticks and returns how many it cut: all in silence, one pitch period in
// speech, none where it would be heard.
func (f *fifo) shorten(most int) int {
	x := f.buf[f.head:f.tail]
	b := int(f.band)
	most = min(most, f.len()-stretchWindow)
	if most < minPitch {
		return 0
	}
	lag := most
	if !quiet(x[:b*(most+stretchWindow)]) {
		lag = f.bestLag(x, min(most, maxPitch))
	}
	if lag == 0 {
		return 0
	}
	cut, window := b*lag, b*stretchWindow
	blend(x[cut:cut+window], x[:window], x[cut:cut+window])
	f.head += cut
	return lag
}

// lengthen puts in at most the given number of ticks.
func (f *fifo) lengthen(most int) int {
	n := f.len()
	most = min(most, n-stretchWindow, maxFifo-n)
	if most < minPitch {
		return 0
	}
	x := f.buf[f.head:f.tail]
	lag := most
	if !quiet(x) {
		lag = f.bestLag(x, min(most, maxPitch))
	}
	if lag == 0 {
		return 0
	}
	more, window := int(f.band)*lag, int(f.band)*stretchWindow
	// x[0:more], then x[more:] turning into x[0:], then the rest of x from the window's end on.
	var y [int(wide) * maxFifo]int16
	m := copy(y[:], x[:more])
	blend(y[m:m+window], x[more:more+window], x[:window])
	m += window
	m += copy(y[m:], x[window:])
	f.head = 0
	f.tail = copy(f.buf[:], y[:m])
	return lag
}

// blend writes the transition from a to b.
func blend(out, from, to []int16) {
	n := len(out)
	for i := range out {
		out[i] = int16((int(from[i])*(n-i) + int(to[i])*i) / n)
	}
}

func quiet(x []int16) bool {
	sum := 0
	for _, v := range x {
		sum += int(v) * int(v)
	}
	return sum <= quietRMS*quietRMS*len(x)
}

// bestLag finds the shift in ticks: voices have their periods in the lower band.
func (f *fifo) bestLag(x []int16, most int) int {
	var thin [stretchWindow + maxPitch]int16
	return bestLag(thin[:thinOut(thin[:], x, f.band)], most)
}

// bestLag returns the shift at which x is most like itself, or 0 when it is not like itself at all.
func bestLag(x []int16, most int) int {
	a := x[:stretchWindow]
	best, lag := enoughLikeness, 0
	for l := minPitch; l <= most && l+stretchWindow <= len(x); l++ {
		if c := likeness(a, x[l:l+stretchWindow]); c > best {
			best, lag = c, l
		}
	}
	return lag
}

// likeness is the normalised correlation of two stretches of sound.
func likeness(a, b []int16) float64 {
	var ab, aa, bb float64
	for i, x := range a {
		y := float64(b[i])
		ab += float64(x) * y
		aa += float64(x) * float64(x)
		bb += y * y
	}
	if aa == 0 || bb == 0 {
		return 0
	}
	return ab / math.Sqrt(aa*bb)
}
