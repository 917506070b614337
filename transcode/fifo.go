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
	buf        [2 * maxFifo]int16
	head, tail int
	last       int16 // last sample put
}

// maxFifo bounds what is ever held: less than a frame, the longest packet, and what shortening looks ahead.
const maxFifo = 2 * maxOpusSamples

func (f *fifo) len() int { return f.tail - f.head }

func (f *fifo) put(pcm []int16) {
	if len(pcm) == 0 {
		return
	}
	if f.len()+len(pcm) > maxFifo {
		f.head = f.tail + len(pcm) - maxFifo // cannot happen with packets that were checked
	}
	if f.tail+len(pcm) > len(f.buf) {
		f.tail = copy(f.buf[:], f.buf[f.head:f.tail])
		f.head = 0
	}
	f.tail += copy(f.buf[f.tail:], pcm)
	f.last = pcm[len(pcm)-1]
}

// take moves the oldest samples to out and returns their number.
func (f *fifo) take(out []int16) int {
	n := copy(out, f.buf[f.head:f.tail])
	f.head += n
	return n
}

// fadeOut adds a short slope from the last sample to zero.
func (f *fifo) fadeOut() {
	var slope [rampSamples]int16
	if f.last == 0 {
		return
	}
	for i := range slope {
		slope[i] = int16(int(f.last) * (rampSamples - 1 - i) / rampSamples)
	}
	f.put(slope[:])
}

// shorten cuts at most the given number of samples and returns how many it cut: all in silence, one pitch period in
// speech, none where it would be heard.
func (f *fifo) shorten(most int) int {
	x := f.buf[f.head:f.tail]
	most = min(most, len(x)-stretchWindow)
	if most < minPitch {
		return 0
	}
	lag := most
	if !quiet(x[:most+stretchWindow]) {
		lag = bestLag(x, min(most, maxPitch))
	}
	if lag == 0 {
		return 0
	}
	blend(x[lag:lag+stretchWindow], x[:stretchWindow], x[lag:lag+stretchWindow])
	f.head += lag
	return lag
}

// lengthen puts in at most the given number of samples.
func (f *fifo) lengthen(most int) int {
	n := f.len()
	most = min(most, n-stretchWindow, maxFifo-n)
	if most < minPitch {
		return 0
	}
	x := f.buf[f.head:f.tail]
	lag := most
	if !quiet(x) {
		lag = bestLag(x, min(most, maxPitch))
	}
	if lag == 0 {
		return 0
	}
	// x[0:lag], then x[lag:] turning into x[0:], then the rest of x from stretchWindow on.
	var y [2 * maxFifo]int16
	m := copy(y[:], x[:lag])
	blend(y[m:m+stretchWindow], x[lag:lag+stretchWindow], x[:stretchWindow])
	m += stretchWindow
	m += copy(y[m:], x[stretchWindow:])
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
