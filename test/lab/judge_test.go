package lab

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"trunkline/internal/testbed/listen"
)

// babble is noise with a speech-like spectrum and pauses: enough for the judge, without espeak-ng.
func babble(seed uint64, seconds int) *Voice {
	r := rand.New(rand.NewPCG(seed, 1))
	v := &Voice{Name: "babble"}
	pcm := make([]int16, seconds*judgeRate)
	low, lower := 0.0, 0.0
	for i := range pcm {
		low += 0.4 * (r.NormFloat64() - low)
		lower += 0.1 * (low - lower)
		syllable := math.Abs(math.Sin(float64(i) / judgeRate * 9))
		pcm[i] = int16(12000 * syllable * (low - lower))
	}
	v.source = telephoneBand(pcm, judgeRate)
	v.once.Do(func() {})
	return v
}

// hear makes a recording of the loop that starts at position `at` seconds in it.
func hear(v *Voice, at float64, seconds int, gain float64) []int16 {
	pcm := make([]int16, seconds*judgeRate)
	for i := range pcm {
		pcm[i] = int16(gain * v.source[(int(at*judgeRate)+i)%len(v.source)])
	}
	return pcm
}

func TestRightVoiceMatchesWithItsDelayAndLevel(t *testing.T) {
	v := babble(1, 9)
	said := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	// Heard from 31 s on, 80 ms late: position 30.92 s mod 9 s.
	rec := Recording{Rate: judgeRate, Start: said.Add(31 * time.Second), PCM: hear(v, 30.92-27, 6, 0.5)}
	m := rec.Match(Saying{Voice: v, Start: said})
	if m.Correlation < 0.98 {
		t.Errorf("correlation %.3f, want > 0.98", m.Correlation)
	}
	if d := m.Delay - 80*time.Millisecond; d.Abs() > time.Millisecond {
		t.Errorf("delay %s, want 80ms", m.Delay)
	}
	if math.Abs(m.Gain+6) > 0.3 {
		t.Errorf("gain %.1f dB, want -6", m.Gain)
	}
}

func TestWrongVoiceDoesNotMatch(t *testing.T) {
	rec := Recording{Rate: judgeRate, PCM: hear(babble(1, 9), 2, 6, 0.5)}
	if m := rec.Match(Saying{Voice: babble(2, 9)}); m.Correlation > 0.2 {
		t.Errorf("correlation %.3f with a voice nobody heard, want < 0.2", m.Correlation)
	}
}

func TestTwoVoicesAtOnceAreToldApart(t *testing.T) {
	a, b, c := babble(1, 9), babble(2, 8), babble(3, 7)
	mixed := hear(a, 1, 6, 0.5)
	for i, v := range hear(b, 3.3, 6, 0.4) {
		mixed[i] += v
	}
	rec := Recording{Rate: judgeRate, PCM: mixed}
	ma, mb := rec.MatchMixed(Saying{Voice: a}, Saying{Voice: b})
	if ma.Correlation < 0.9 || mb.Correlation < 0.9 {
		t.Errorf("correlations %.3f and %.3f, want both > 0.9", ma.Correlation, mb.Correlation)
	}
	if _, mc := rec.MatchMixed(Saying{Voice: a}, Saying{Voice: c}); mc.Correlation > 0.25 {
		t.Errorf("correlation %.3f with a voice nobody heard, want < 0.25", mc.Correlation)
	}
}

func TestJitterBufferStretchIsForgiven(t *testing.T) {
	v := babble(1, 9)
	pcm := hear(v, 0, 3, 1)
	pcm = append(pcm, hear(v, 3.03, 3, 1)...) // 30 ms dropped in mid-speech
	if m := (Recording{Rate: judgeRate, PCM: pcm}).Match(Saying{Voice: v}); m.Correlation < 0.9 || m.Worst < 0.9 {
		t.Errorf("correlation %.3f (worst %.3f), want > 0.9", m.Correlation, m.Worst)
	}
}

func TestSilenceMatchesNobody(t *testing.T) {
	rec := Recording{Rate: judgeRate, PCM: make([]int16, 5*judgeRate)}
	if m := rec.Match(Saying{Voice: babble(1, 9)}); m.Correlation != 0 {
		t.Errorf("correlation %.3f in silence, want 0", m.Correlation)
	}
	if level := rec.Level(); level != listen.Silence {
		t.Errorf("level %.1f dB, want %.0f", level, listen.Silence)
	}
}

func TestMixAlignsByTime(t *testing.T) {
	start := time.Unix(0, 0)
	m := Mix(
		Recording{Rate: 1000, Start: start, PCM: []int16{1, 1, 1}},
		Recording{Rate: 1000, Start: start.Add(2 * time.Millisecond), PCM: []int16{10, 10}},
	)
	want := []int16{1, 1, 11, 10}
	for i, v := range want {
		if m.PCM[i] != v {
			t.Fatalf("mix %v, want %v…", m.PCM, want)
		}
	}
}

func TestEmptyRecordingHasNoSound(t *testing.T) {
	if at, ok := Mix().FirstSound(); ok {
		t.Errorf("first sound at %s in nothing", at)
	}
}

// steady makes a hum as the lab's phones and pages play it.
func steady(low, high float64) (*Voice, Recording) {
	r := hum(low, high)
	r.Start = time.Unix(1000, 0)
	return &Voice{Name: "hum", Low: low, High: high}, r
}

func TestGapOfSteadyVoiceIsFoundInMix(t *testing.T) {
	low, sound := steady(400, 600)
	high, other := steady(1000, 1300)
	at := func(seconds float64) time.Time { return sound.Start.Add(time.Duration(seconds * float64(time.Second))) }
	clear(sound.PCM[5*48000 : 5*48000+48000/10]) // 100 ms
	mixed := Mix(sound, other)
	gap, began := mixed.LongestGap(low, at(1), at(11))
	if (gap-100*time.Millisecond).Abs() > 20*time.Millisecond || began.Sub(at(5)).Abs() > 20*time.Millisecond {
		t.Errorf("gap %s after %s, want 100ms after 5s", gap, began.Sub(sound.Start))
	}
	if gap, _ := mixed.LongestGap(high, at(1), at(11)); gap > 0 {
		t.Errorf("gap %s in the voice that has none", gap)
	}
	if gap, _ := mixed.LongestGap(low, at(11), at(13)); (gap - time.Second).Abs() > 20*time.Millisecond {
		t.Errorf("gap %s where the recording ends a second early, want 1s", gap)
	}
}

func TestSteadyVoiceIsFirstHeardWhenItBegins(t *testing.T) {
	low, sound := steady(400, 600)
	_, other := steady(1900, 2300)
	clear(sound.PCM[:3*48000])
	mixed := Mix(sound, other)
	first, ok := mixed.FirstHeard(low, sound.Start)
	if d := first.Sub(sound.Start) - 3*time.Second; !ok || d.Abs() > SteadyResolution {
		t.Errorf("first heard after %s, %t; want 3s", first.Sub(sound.Start), ok)
	}
	if _, ok := other.FirstHeard(low, sound.Start); ok {
		t.Error("heard in a recording of somebody else")
	}
}
