package sound

import "math"

// taps on each side of a sample, in periods of the slower of the two rates.
const taps = 16

// resample brings sound to 8 kHz with a windowed sinc, at most most samples of it.
func resample(pcm []int16, rate, most int) []int16 {
	if rate == Rate {
		return pcm[:min(len(pcm), most)]
	}
	kernels, reach := kernelsFor(rate)
	step := Rate / len(kernels) // between two places that have a kernel, in 1/Rate of a sample
	out := make([]int16, min(len(pcm)*Rate/rate, most))
	for i := range out {
		at, place := i*rate/Rate, i*rate%Rate/step
		sum := 0.0
		for j, weight := range kernels[place] {
			if k := at + j - reach; k >= 0 && k < len(pcm) {
				sum += weight * float64(pcm[k])
			}
		}
		out[i] = int16(math.Round(min(32767, max(-32768, sum))))
	}
	return out
}

// kernelsFor computes the weights for each place that a new sample can have between two old ones.
func kernelsFor(rate int) (kernels [][]float64, reach int) {
	cut := 0.95 * min(1, Rate/float64(rate)) // of the source's Nyquist frequency: nothing may fold back
	width := taps / cut
	reach = int(math.Ceil(width))
	kernels = make([][]float64, Rate/gcd(rate, Rate))
	for place := range kernels {
		kernels[place] = make([]float64, 2*reach+1)
		for j := range kernels[place] {
			d := float64(j-reach) - float64(place)/float64(len(kernels))
			if math.Abs(d) < width {
				kernels[place][j] = cut * sinc(cut*d) * (0.5 + 0.5*math.Cos(math.Pi*d/width))
			}
		}
	}
	return kernels, reach
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func sinc(x float64) float64 {
	if x == 0 {
		return 1
	}
	return math.Sin(math.Pi*x) / (math.Pi * x)
}
