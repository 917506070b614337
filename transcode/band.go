package transcode

import "math"

// band is how many samples sound has in each tick of media time, of which there are always 8000 a second ([Rate]):
// one in the narrow band of the telephone network, two in the wide band.
type band int

const (
	narrow band = 1
	wide   band = 2

	wideRate    = int(wide) * Rate
	wideSamples = int(wide) * FrameSamples // in a frame
)

// Sound changes its band through a half-band filter: of its 47 taps at 16 kHz, every second but the middle one is zero,
// and the others are symmetric. It passes 3.4 kHz whole, stops by 60 dB from 4.7 kHz on, and delays by 1.5 ms.
const halfTaps = 12

// halfBand has the taps at odd distances from the middle, which together with their mirror images make a half, Q15.
var halfBand = func() (taps [halfTaps]int32) {
	const beta = 5.65 // Kaiser's window, 60 dB
	var exact [halfTaps]float64
	sum := 0.0
	for k := range exact {
		at := float64(2*k + 1)
		x := at / (2 * halfTaps)
		exact[k] = math.Sin(math.Pi*at/2) / (math.Pi * at) * bessel(beta*math.Sqrt(1-x*x)) / bessel(beta)
		sum += 2 * exact[k]
	}
	for k := range taps {
		taps[k] = int32(math.Round(exact[k] / sum * (1 << 14)))
	}
	return taps
}()

// bessel is I0, the modified function of the first kind.
func bessel(x float64) float64 {
	sum, term := 1.0, 1.0
	for k := 1.0; k < 30; k++ {
		term *= x * x / (4 * k * k)
		sum += term
	}
	return sum
}

// widener turns 8 kHz into 16 kHz. Its zero value is ready.
type widener struct {
	past [2*halfTaps - 1 + maxOpusSamples]int16
}

// widen writes two samples for each of pcm.
func (w *widener) widen(out, pcm []int16) {
	const reach = 2*halfTaps - 1
	copy(w.past[reach:], pcm)
	for i := range pcm {
		x := (*[2 * halfTaps]int16)(w.past[i:])
		sum := int32(0)
		for k, tap := range &halfBand {
			sum += tap * (int32(x[halfTaps-1-k]) + int32(x[halfTaps+k]))
		}
		out[2*i] = x[halfTaps-1]
		out[2*i+1] = saturate(int(sum >> 14))
	}
	copy(w.past[:reach], w.past[len(pcm):])
}

// narrower turns 16 kHz into 8 kHz. Its zero value is ready.
type narrower struct {
	past [4*halfTaps - 2 + wideSamples]int16
}

// narrow writes one sample for each two of pcm, of a frame at most. out may be the beginning of pcm.
func (n *narrower) narrow(out, pcm []int16) {
	const reach, middle = 4*halfTaps - 2, 2*halfTaps - 1
	copy(n.past[reach:], pcm)
	for i := range out[:len(pcm)/2] {
		x := (*[reach + 1]int16)(n.past[2*i:])
		sum := int32(x[middle]) << 14
		for k, tap := range &halfBand {
			sum += tap * (int32(x[middle-1-2*k]) + int32(x[middle+1+2*k]))
		}
		out[i] = saturate(int(sum >> 15))
	}
	copy(n.past[:reach], n.past[len(pcm):])
}
