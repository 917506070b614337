package lab

import (
	"math"
	"time"

	"trunkline/internal/testbed/listen"
)

// How a steady voice is followed: its band is measured in frames, and it is there in a frame that is loud enough and not
// much softer than usual.
const (
	steadyFrame = judgeRate / 100
	steadyReach = 0.012 // of the band's filter, seconds: bands are 400 Hz apart
	steadyDrop  = 15    // dB below the median
	steadyFloor = -50   // dB below overload
)

// SteadyResolution is how exactly it is told when a steady voice is first heard: a frame, and the filter's reach.
const SteadyResolution = 20 * time.Millisecond

// LongestGap returns the longest time between the two moments in which the steady voice was not heard, and when that
// began. What is missing in the recording was not heard.
func (r Recording) LongestGap(v *Voice, from, to time.Time) (gap time.Duration, at time.Time) {
	there := r.Cut(from, to.Sub(from)).presence(v)
	for range int(to.Sub(from).Seconds()*judgeRate)/steadyFrame - len(there) {
		there = append(there, false)
	}
	const frame = steadyFrame * time.Second / judgeRate
	longest, end, now := 0, 0, 0
	for i, ok := range there {
		now++
		if ok {
			now = 0
		}
		if now > longest {
			longest, end = now, i+1
		}
	}
	return time.Duration(longest) * frame, from.Add(time.Duration(end-longest) * frame)
}

// FirstHeard returns when the steady voice was first heard after that moment, and whether it ever was.
func (r Recording) FirstHeard(v *Voice, after time.Time) (time.Time, bool) {
	r = r.Cut(after, time.Hour)
	before := false
	for i, ok := range r.presence(v) {
		if ok && before {
			return r.Start.Add(time.Duration(i-1) * steadyFrame * time.Second / judgeRate), true
		}
		before = ok
	}
	return time.Time{}, false
}

// HeardAgain returns when the steady voice came back after it had fallen silent some time after that moment, or was silent
// then, and whether it did. What is still in buffers at that moment does not count.
func (r Recording) HeardAgain(v *Voice, after time.Time) (time.Time, bool) {
	r = r.Cut(after, time.Hour)
	const silence = 6 // frames: shorter ones are no silence
	if lead := r.Start.Sub(after); lead > silence*steadyFrame*time.Second/judgeRate {
		return r.FirstHeard(v, after)
	}
	absent := 0
	for i, ok := range r.presence(v) {
		switch {
		case !ok:
			absent++
		case absent < silence:
			absent = 0
		default:
			return r.FirstHeard(v, r.Start.Add(time.Duration(i)*steadyFrame*time.Second/judgeRate))
		}
	}
	return time.Time{}, false
}

// VoiceLevel returns how loud the steady voice's band is between the two moments, in dB below overload.
func (r Recording) VoiceLevel(v *Voice, from, to time.Time) float64 {
	return r.bandLevel(v.Low-60, v.High+60, from, to)
}

// DirtLevel returns how loud it is above all steady voices. What is there is made of them: Opus may overshoot for seconds on a tone of
// which it lost a packet, and then it clips.
func (r Recording) DirtLevel(from, to time.Time) float64 { return r.bandLevel(2500, 3400, from, to) }

func (r Recording) bandLevel(low, high float64, from, to time.Time) float64 {
	r = r.Cut(from, to.Sub(from))
	if len(r.PCM) == 0 {
		return listen.Silence
	}
	return max(listen.Silence, 20*math.Log10(max(rms(bandPass(r.PCM, r.Rate, low, high, steadyReach)), 1e-9)/32768))
}

// presence tells for each frame whether the steady voice is in it.
func (r Recording) presence(v *Voice) []bool {
	if r.Rate == 0 || len(r.PCM) == 0 {
		return nil
	}
	sound := bandPass(r.PCM, r.Rate, v.Low-60, v.High+60, steadyReach)
	var levels, heard []float64
	for i := 0; i+steadyFrame <= len(sound); i += steadyFrame {
		level := max(listen.Silence, 20*math.Log10(max(rms(sound[i:i+steadyFrame]), 1e-9)/32768))
		levels = append(levels, level)
		if level > steadyFloor {
			heard = append(heard, level)
		}
	}
	there := make([]bool, len(levels))
	if len(heard) == 0 {
		return there
	}
	usual := median(heard)
	for i, level := range levels {
		there[i] = level > steadyFloor && level > usual-steadyDrop
	}
	return there
}
