package listen

import (
	"fmt"
	"math"
	"math/cmplx"
	"slices"
	"time"
)

// Match says how much of a source was heard.
type Match struct {
	Correlation float64       // median over pieces of a second: 1 is the same sound, unrelated voices stay below 0.16
	Delay       time.Duration // median; of a looped source it is known up to the length of the loop
	Drift       time.Duration // delay of the last piece less that of the first
	Gain        float64       // level heard less level of the source, dB
	Pieces      int           // how many pieces were judged; 0: nothing was heard
}

func (m Match) String() string {
	return fmt.Sprintf("correlation %.3f, delay %v, drift %v, gain %+.1f dB (%d pieces)",
		m.Correlation, m.Delay.Round(100*time.Microsecond), m.Drift.Round(100*time.Microsecond), m.Gain, m.Pieces)
}

// How to judge: after the first second, in pieces, each with some freedom, because jitter buffers stretch and shrink
// speech and move later parts by tens of milliseconds, which would halve the figure of the whole.
const (
	judged     = 8000 // everything is judged at a phone's rate
	piece      = judged
	freedom    = judged * 60 / 1000
	coarse     = 2 * judged
	skipFirst  = judged
	soundAbove = 30 // peak that counts as sound
	inaudible  = -55.0
	certain    = 0.8 // a correlation that cannot be chance
)

// Compare looks for a source, which may have been played in a loop, in what was heard.
func Compare(heard, source []int16, rate int) Match {
	heard, source = Resample(heard, rate, judged), Resample(source, rate, judged)
	onset, ok := Onset(heard, judged, soundAbove)
	if !ok || len(source) < piece {
		return Match{}
	}
	start := int(onset.Seconds()*judged) + skipFirst
	if start+piece > len(heard) {
		start = max(0, len(heard)-piece)
	}
	shift, ok := align(heard[start:], source)
	if !ok {
		return Match{}
	}
	return pieces(heard, source, start, shift+start)
}

// pieces judges second after second, where heard[i] should be source[i−shift].
func pieces(heard, source []int16, start, shift int) Match {
	var m Match
	var likes, delays, gains []float64
	for at := start; at+piece <= len(heard); at += piece {
		h := heard[at : at+piece]
		s := looped(source, at-shift-freedom, piece+2*freedom)
		if Level(h) < inaudible && Level(s) < inaudible {
			continue
		}
		like, lag := best(h, s)
		likes = append(likes, like)
		delays = append(delays, float64(shift+freedom-lag))
		gains = append(gains, Level(h)-Level(s[lag:lag+piece]))
	}
	if m.Pieces = len(likes); m.Pieces == 0 {
		return m
	}
	m.Drift = duration(delays[len(delays)-1] - delays[0])
	m.Correlation, m.Gain = median(likes), median(gains)
	m.Delay = duration(wrap(median(delays), float64(len(source))))
	return m
}

// best slides h over the longer s and returns the highest correlation and where it is.
func best(h, s []int16) (like float64, lag int) { return newHaystack(s).search(h) }

// align finds by how much heard lags behind the looped source: the best correlation of any two seconds.
func align(heard, source []int16) (shift int, ok bool) {
	loop := newHaystack(looped(source, 0, len(source)+coarse))
	top := 0.0
	for at := 0; at == 0 || at+coarse <= len(heard); at += coarse {
		h := heard[at:min(len(heard), at+coarse)]
		if like, lag := loop.search(h); like > top {
			top, shift, ok = like, at-lag, true
		}
		if top > certain {
			break
		}
	}
	return shift, ok
}

// haystack is sound to be searched: its spectrum and its running energy.
type haystack struct {
	spectrum []complex128
	turns    []complex128
	sums     []float64
}

func newHaystack(pcm []int16) haystack {
	n := 1
	for n < len(pcm) {
		n *= 2
	}
	sums := make([]float64, len(pcm)+1)
	for i, x := range pcm {
		sums[i+1] = sums[i] + square(x)
	}
	w := Turns(n)
	return haystack{transform(pcm, w), w, sums}
}

// search correlates h with every place it fits into.
func (s haystack) search(h []int16) (like float64, lag int) {
	x := transform(h, s.turns)
	for i := range x {
		x[i] *= cmplx.Conj(s.spectrum[i])
	}
	FFT(x, s.turns) // of the conjugate, which for real sound is the inverse
	hh := energy(h)
	for l := 0; l+len(h) < len(s.sums); l++ {
		ss := s.sums[l+len(h)] - s.sums[l]
		if ss <= 0 || hh <= 0 {
			continue
		}
		if c := real(x[l]) / float64(len(x)) / math.Sqrt(hh*ss); c > like {
			like, lag = c, l
		}
	}
	return like, lag
}

// looped reads n samples of the endlessly repeated source.
func looped(source []int16, from, n int) []int16 {
	out := make([]int16, n)
	for i := range out {
		out[i] = source[((from+i)%len(source)+len(source))%len(source)]
	}
	return out
}

// transform returns the spectrum of pcm; turns are those of its length.
func transform(pcm []int16, turns []complex128) []complex128 {
	x := make([]complex128, 2*len(turns))
	for i, v := range pcm {
		x[i] = complex(float64(v), 0)
	}
	FFT(x, turns)
	return x
}

// FFT transforms in place; len(x) is a power of two, turns are those of that length.
func FFT(x, turns []complex128) {
	n := len(x)
	for i, j := 1, 0; i < n; i++ {
		bit := n >> 1
		for ; j&bit != 0; bit >>= 1 {
			j ^= bit
		}
		j ^= bit
		if i < j {
			x[i], x[j] = x[j], x[i]
		}
	}
	for size := 2; size <= n; size *= 2 {
		half, stride := size/2, n/size
		for start := 0; start < n; start += size {
			for k := range half {
				a, b := x[start+k], x[start+k+half]*turns[k*stride]
				x[start+k], x[start+k+half] = a+b, a-b
			}
		}
	}
}

// Turns are the roots of unity of half a circle, for a transform of length n.
func Turns(n int) []complex128 {
	w := make([]complex128, n/2)
	for i := range w {
		w[i] = cmplx.Rect(1, -2*math.Pi*float64(i)/float64(n))
	}
	return w
}

func energy(pcm []int16) float64 {
	sum := 0.0
	for _, x := range pcm {
		sum += square(x)
	}
	return sum
}

func square(x int16) float64 { return float64(x) * float64(x) }

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

// wrap brings x into the half-open stretch of the given length around zero.
func wrap(x, length float64) float64 { return x - length*math.Round(x/length) }

func duration(samples float64) time.Duration {
	return time.Duration(samples * float64(time.Second) / judged)
}

// Find tells where in what was heard a source is that was played once, both at a phone's rate, and how alike the two are there.
func Find(heard, source []int16) (from int, correlation float64) {
	if len(heard) < len(source) {
		return 0, 0
	}
	correlation, from = newHaystack(heard).search(source)
	return from, correlation
}
