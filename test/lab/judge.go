package lab

import (
	"fmt"
	"math"
	"math/cmplx"
	"slices"
	"time"

	"trunkline/internal/testbed/listen"
)

// How sound is judged. Everything is compared at 8 kHz between 300 and 3400 Hz, for that is what a phone line carries.
// A recording is first found in the endless loop of the voice, then compared in pieces of a second with ±60 ms of
// freedom each: a browser's jitter buffer stretches and shrinks speech, which halves any figure taken over the whole.
// The median over the pieces is the correlation.
const (
	judgeRate   = 8000
	pieceLength = judgeRate
	freedom     = 60 * judgeRate / 1000
	fine        = 4 // lags are searched in quarters of a sample: half a sample is 90° at 2 kHz
)

// Match says how well a recording fits a voice.
type Match struct {
	Voice       string
	Correlation float64       // median over pieces, 0 (another voice) to 1 (the same samples)
	Worst       float64       // lowest piece
	Pieces      int           // pieces compared; pauses of the speaker are not
	Delay       time.Duration // from mouth to ear, median over pieces
	Gain        float64       // dB, heard against said
}

func (m Match) String() string {
	return fmt.Sprintf("%s: correlation %.2f (worst %.2f of %d s), delay %d ms, level %+.1f dB",
		m.Voice, m.Correlation, m.Worst, m.Pieces, m.Delay.Milliseconds(), m.Gain)
}

// Match compares the recording with one voice.
func (r Recording) Match(s Saying) Match {
	m, _ := r.compare(s, nil)
	return m
}

// MatchMixed compares a recording of two voices at once with each of them: every piece is explained as a sum of both,
// and each voice is compared with what remains when the other is taken away.
func (r Recording) MatchMixed(a, b Saying) (Match, Match) {
	ma, _ := r.compare(a, &b)
	mb, _ := r.compare(b, &a)
	return ma, mb
}

// compare compares with the voice after taking away every trace of the other.
func (r Recording) compare(s Saying, other *Saying) (Match, error) {
	m := Match{Voice: s.Voice.Name}
	heard := telephoneBand(r.PCM, r.Rate)
	loop, err := s.Voice.samples()
	if err != nil || len(heard) < pieceLength {
		return m, err
	}
	at := findInLoop(heard, loop)
	var otherLoop []float64
	var otherAt int
	if other != nil {
		if otherLoop, err = other.Voice.samples(); err != nil {
			return m, err
		}
		otherAt = findInLoop(heard, otherLoop)
	}
	loud := 0.1 * rms(loop)
	var fits, lags, gains []float64
	for first := 0; first+pieceLength <= len(heard); first += pieceLength {
		piece := heard[first : first+pieceLength]
		if rms(around(loop, at+first, pieceLength)) < loud {
			continue // the speaker paused
		}
		if other != nil {
			piece = without(piece, otherLoop, otherAt+first)
		}
		fit, lag, gain := bestFit(piece, around(loop, at+first-freedom, pieceLength+2*freedom))
		fits, lags = append(fits, fit), append(lags, lag-freedom)
		gains = append(gains, gain)
	}
	if len(fits) == 0 {
		return m, nil
	}
	m.Correlation, m.Worst, m.Pieces = median(fits), slices.Min(fits), len(fits)
	m.Gain = 20 * math.Log10(max(median(gains), 1e-5))
	m.Delay = delay(r, s, float64(at)+median(lags), len(loop))
	return m, nil
}

// delay turns the place in the loop where the recording starts into mouth-to-ear time, less than one loop.
func delay(r Recording, s Saying, at float64, loop int) time.Duration {
	length := float64(loop) / judgeRate
	seconds := math.Mod(r.Start.Sub(s.Start).Seconds()-at/judgeRate, length)
	if seconds < -0.5 {
		seconds += length
	} else if seconds > length-0.5 {
		seconds -= length
	}
	return time.Duration(seconds * float64(time.Second))
}

// samples returns the voice as the judge compares it.
func (v *Voice) samples() ([]float64, error) {
	v.once.Do(func() {
		r, err := ReadWAV(v.Loop)
		if err != nil {
			v.err = err
			return
		}
		v.source = telephoneBand(r.PCM, r.Rate)
	})
	return v.source, v.err
}

// telephoneBand filters to 300–3400 Hz without delay and resamples to judgeRate.
func telephoneBand(pcm []int16, rate int) []float64 { return bandPass(pcm, rate, 300, 3400, 0.008) }

// bandPass filters without delay and resamples to judgeRate, of which the rate must be a multiple. The impulse response
// reaches so many seconds to each side.
func bandPass(pcm []int16, rate int, low, high, reach float64) []float64 {
	step := rate / judgeRate
	half := int(reach * float64(rate))
	taps := make([]float64, 2*half+1)
	for i := range taps {
		t := float64(i-half) / float64(rate)
		hann := 0.5 + 0.5*math.Cos(math.Pi*float64(i-half)/float64(half+1))
		taps[i] = hann * (lowpass(high, t) - lowpass(low, t)) / float64(rate)
	}
	out := make([]float64, len(pcm)/step)
	for n := range out {
		var sum float64
		centre := n * step
		for i, tap := range taps {
			if k := centre + i - half; k >= 0 && k < len(pcm) {
				sum += tap * float64(pcm[k])
			}
		}
		out[n] = sum
	}
	return out
}

// lowpass is the impulse response of an ideal low-pass filter at time t.
func lowpass(hz, t float64) float64 {
	if t == 0 {
		return 2 * hz
	}
	return math.Sin(2*math.Pi*hz*t) / (math.Pi * t)
}

// findInLoop returns where in the endless loop the recording starts: the peak of the correlation of the whole.
func findInLoop(heard, loop []float64) int {
	unrolled := around(loop, 0, len(loop)+len(heard))
	best, at := math.Inf(-1), 0
	for lag, c := range crossCorrelation(unrolled, heard, 1)[:len(loop)] {
		if c > best {
			best, at = c, lag
		}
	}
	return at
}

// bestFit moves the piece along the longer source and returns the best normalised correlation, its lag in samples
// and the amplitude of the source in the piece.
func bestFit(piece, source []float64) (fit, lag, gain float64) {
	energy := dot(piece, piece)
	window := dot(source[:len(piece)], source[:len(piece)])
	c := crossCorrelation(source, piece, fine)
	for i := 0; i+len(piece) <= len(source); i++ {
		if i > 0 {
			out, in := source[i-1], source[i+len(piece)-1]
			window += in*in - out*out
		}
		if window <= 0 || energy <= 0 {
			continue
		}
		for q := range fine {
			if r := c[i*fine+q] / math.Sqrt(energy*window); r > fit {
				fit, lag, gain = r, float64(i)+float64(q)/fine, c[i*fine+q]/window
			}
		}
	}
	return fit, lag, gain
}

// without takes the best-fitting copy of a voice out of a piece.
func without(piece, loop []float64, at int) []float64 {
	source := around(loop, at-freedom-16, len(piece)+2*freedom+32)
	_, lag, _ := bestFit(piece, source[16:len(source)-16])
	copied := make([]float64, len(piece))
	whole, part := math.Modf(lag)
	for i := range copied { // windowed sinc: a copy between two samples
		for k := -15; k <= 16; k++ {
			x := float64(k) - part
			w := 0.5 + 0.5*math.Cos(math.Pi*x/17)
			copied[i] += source[16+int(whole)+i+k] * w * sinc(x)
		}
	}
	rest := make([]float64, len(piece))
	gain := dot(piece, copied) / max(dot(copied, copied), 1e-9)
	for i := range rest {
		rest[i] = piece[i] - gain*copied[i]
	}
	return rest
}

func sinc(x float64) float64 {
	if x == 0 {
		return 1
	}
	return math.Sin(math.Pi*x) / (math.Pi * x)
}

// around returns n samples of the endless loop from position at, which may be negative.
func around(loop []float64, at, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = loop[((at+i)%len(loop)+len(loop))%len(loop)]
	}
	return out
}

// crossCorrelation returns Σ source[lag+i]·piece[i] for every lag, at up points per sample.
func crossCorrelation(source, piece []float64, up int) []float64 {
	n := 1
	for n < len(source)+len(piece) {
		n *= 2
	}
	a, b := make([]complex128, n), make([]complex128, n)
	for i, v := range source {
		a[i] = complex(v, 0)
	}
	for i, v := range piece {
		b[i] = complex(v, 0)
	}
	turns := listen.Turns(n)
	listen.FFT(a, turns)
	listen.FFT(b, turns)
	// The transform of the conjugate is the inverse, for sound is real. Zeros in the middle of the spectrum interpolate.
	wide := make([]complex128, n*up)
	for i := range n / 2 {
		wide[i] = cmplx.Conj(a[i]) * b[i]
		wide[n*up-1-i] = cmplx.Conj(a[n-1-i]) * b[n-1-i]
	}
	listen.FFT(wide, listen.Turns(n*up))
	out := make([]float64, len(source)*up)
	for i := range out {
		out[i] = real(wide[i]) / float64(n)
	}
	return out
}

func dot(a, b []float64) float64 {
	var sum float64
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}

func rms(x []float64) float64 { return math.Sqrt(dot(x, x) / float64(max(1, len(x)))) }

func median(x []float64) float64 {
	s := slices.Sorted(slices.Values(x))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
