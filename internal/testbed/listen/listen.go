// Package listen judges sound: is it there, whose is it, how loud, how late, with how many gaps.
//
// Tests that only count packets prove little; these functions listen to the samples that came out. All sound is 16 bit
// mono; levels are root mean squares in dB below overload (a full-scale sine is −3).
package listen

import (
	"math"
	"time"
)

// Silence is the level of digital silence.
const Silence = -127.0

// Level is the root mean square level of pcm.
func Level(pcm []int16) float64 {
	sum := 0.0
	for _, x := range pcm {
		sum += float64(x) * float64(x)
	}
	return decibels(sum / float64(max(1, len(pcm))))
}

// decibels turns a mean square into a level.
func decibels(meanSquare float64) float64 {
	if meanSquare <= 0 {
		return Silence
	}
	return max(Silence, 10*math.Log10(meanSquare/(32768*32768)))
}

// Tone is the level of one frequency in pcm, after Goertzel. A pure tone measures the same as [Level].
func Tone(pcm []int16, rate int, hz float64) float64 {
	if len(pcm) == 0 {
		return Silence
	}
	w := 2 * math.Pi * hz / float64(rate)
	c := 2 * math.Cos(w)
	var a, b float64
	for _, x := range pcm {
		a, b = float64(x)+c*a-b, a
	}
	n := float64(len(pcm))
	power := (a*a + b*b - c*a*b) * 2 / (n * n)
	return decibels(power)
}

// Sine is a test tone of the given level.
func Sine(rate int, hz, level float64, d time.Duration) []int16 {
	peak := 32768 * math.Sqrt2 * math.Pow(10, level/20)
	pcm := make([]int16, int(d.Seconds()*float64(rate)))
	for i := range pcm {
		pcm[i] = int16(math.Round(min(max(peak*math.Sin(2*math.Pi*hz*float64(i)/float64(rate)), -32767), 32767)))
	}
	return pcm
}

// Gap is a stretch of silence.
type Gap struct{ From, Length time.Duration }

// Gaps finds stretches of at least the given length in which no sample is louder than peak. Silence before the first
// and after the last sound is no gap.
func Gaps(pcm []int16, rate int, peak int16, atLeast time.Duration) []Gap {
	var gaps []Gap
	at := func(samples int) time.Duration { return time.Duration(samples) * time.Second / time.Duration(rate) }
	last := -1
	for i, x := range pcm {
		if x <= peak && x >= -peak {
			continue
		}
		if d := at(i - last - 1); last >= 0 && d >= atLeast {
			gaps = append(gaps, Gap{at(last + 1), d})
		}
		last = i
	}
	return gaps
}

// Onset is the time of the first sample louder than peak, or false when there is none.
func Onset(pcm []int16, rate int, peak int16) (time.Duration, bool) {
	for i, x := range pcm {
		if x > peak || x < -peak {
			return time.Duration(i) * time.Second / time.Duration(rate), true
		}
	}
	return 0, false
}

// Jumps counts clicks: steps between neighbouring samples larger than limit.
func Jumps(pcm []int16, limit int) int {
	n := 0
	for i := 1; i < len(pcm); i++ {
		if d := int(pcm[i]) - int(pcm[i-1]); d > limit || d < -limit {
			n++
		}
	}
	return n
}
