package listen

import "math"

// Resample changes the rate of pcm with a windowed sinc: slow and good, without delay.
func Resample(pcm []int16, from, to int) []int16 {
	if from == to {
		return append([]int16(nil), pcm...)
	}
	const wings = 24 // zero crossings on each side
	cut := min(1, float64(to)/float64(from))
	reach := wings / cut
	out := make([]int16, len(pcm)*to/from)
	g := gcd(from, to)
	up, down := to/g, from/g // output sample k lies at input position k*down/up
	taps := int(reach)*2 + 2
	kernels := make([][]float64, up)
	for phase := range kernels {
		kernels[phase] = kernel(float64(phase)/float64(up), cut, reach, taps)
	}
	for k := range out {
		at := k * down / up
		h := kernels[k*down%up]
		sum := 0.0
		first := at - taps/2 + 1
		for i, w := range h {
			if j := first + i; j >= 0 && j < len(pcm) {
				sum += w * float64(pcm[j])
			}
		}
		out[k] = int16(math.Round(min(max(sum, -32768), 32767)))
	}
	return out
}

// kernel is the filter for outputs that lie the given fraction after an input sample.
func kernel(fraction, cut, reach float64, taps int) []float64 {
	h := make([]float64, taps)
	for i := range h {
		x := float64(i-taps/2+1) - fraction
		if math.Abs(x) >= reach {
			continue
		}
		window := 0.5 + 0.5*math.Cos(math.Pi*x/reach)
		h[i] = cut * sinc(cut*x) * window
	}
	return h
}

func sinc(x float64) float64 {
	if x == 0 {
		return 1
	}
	return math.Sin(math.Pi*x) / (math.Pi * x)
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
