package listen_test

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
)

func TestToneIsMeasuredAtItsFrequencyOnly(t *testing.T) {
	for _, level := range []float64{-3.1, -20, -50} {
		pcm := listen.Sine(8000, 440, level, time.Second)
		if got := listen.Tone(pcm, 8000, 440); math.Abs(got-level) > 0.1 {
			t.Errorf("Tone at its frequency = %.2f, want %.2f", got, level)
		}
		if got := listen.Level(pcm); math.Abs(got-level) > 0.1 {
			t.Errorf("Level = %.2f, want %.2f", got, level)
		}
		if got := listen.Tone(pcm, 8000, 1000); got > level-40 {
			t.Errorf("Tone elsewhere = %.2f, want far below %.2f", got, level)
		}
	}
	if got := listen.Level(nil); got != listen.Silence {
		t.Errorf("Level(nil) = %v, want %v", got, listen.Silence)
	}
}

func TestWAVComesBackAsItWasWritten(t *testing.T) {
	want := listen.Sound{Rate: 8000, PCM: speech.Bob.PCM(8000, time.Second)}
	var b bytes.Buffer
	if err := listen.WriteWAV(&b, want); err != nil {
		t.Fatal(err)
	}
	got, err := listen.ReadWAV(bytes.NewReader(b.Bytes()))
	if err != nil || got.Rate != want.Rate || !slices.Equal(got.PCM, want.PCM) {
		t.Errorf("ReadWAV = %d Hz, %d samples, %v; want what was written", got.Rate, len(got.PCM), err)
	}
	for n := range 44 {
		if _, err := listen.ReadWAV(bytes.NewReader(b.Bytes()[:n])); !errors.Is(err, listen.ErrFormat) {
			t.Errorf("ReadWAV of %d bytes: %v, want %v", n, err, listen.ErrFormat)
		}
	}
}

func TestResampledToneKeepsItsLevel(t *testing.T) {
	for _, to := range []int{16000, 48000, 11025, 4000} {
		pcm := listen.Resample(listen.Sine(8000, 1000, -10, time.Second), 8000, to)
		middle := pcm[to/10 : to*9/10]
		if got := listen.Tone(middle, to, 1000); math.Abs(got+10) > 0.1 {
			t.Errorf("8000 to %d: level %.2f, want -10", to, got)
		}
	}
}

func TestGapsAreFoundInsideTheSoundOnly(t *testing.T) {
	tone := listen.Sine(8000, 400, -10, 100*time.Millisecond)
	pcm := slices.Concat(make([]int16, 800), tone, make([]int16, 400), tone, make([]int16, 800))
	gaps := listen.Gaps(pcm, 8000, 10, 40*time.Millisecond)
	if len(gaps) != 1 || gaps[0].Length < 49*time.Millisecond || gaps[0].Length > 52*time.Millisecond {
		t.Errorf("Gaps = %v, want one of 50ms", gaps)
	}
}

func TestSourceIsFoundThroughDelayLevelNoiseAndStretching(t *testing.T) {
	const rate = 16000
	source := speech.Alice.PCM(rate, 8*time.Second)
	rng := rand.New(rand.NewPCG(1, 2))
	heard := make([]int16, rate/2, rate*14)
	for i := range rate * 12 {
		x := float64(source[(i+3*rate)%len(source)])*0.5 + rng.NormFloat64()*30
		heard = append(heard, int16(x))
		if i%(3*rate) == 0 { // a jitter buffer puts in 10 ms
			heard = append(heard, heard[len(heard)-rate/100:]...)
		}
	}
	m := listen.Compare(heard, source, rate)
	if m.Correlation < 0.95 || math.Abs(m.Gain+6) > 1 || m.Pieces < 10 {
		t.Errorf("Compare = %v, want correlation above 0.95 and -6 dB", m)
	}
	// half a second late, begun three seconds into a loop of eight
	want := 500*time.Millisecond - 3*time.Second
	if d := m.Delay - want; d < 0 || d > 60*time.Millisecond {
		t.Errorf("Compare = %v, want a delay of %v to 60ms more", m, want)
	}
	if m.Drift < 20*time.Millisecond || m.Drift > 40*time.Millisecond {
		t.Errorf("Compare = %v, want a drift of about 30ms", m)
	}
}

func TestNothingHeardIsNoMatch(t *testing.T) {
	source := speech.Alice.PCM(8000, 5*time.Second)
	for _, heard := range [][]int16{nil, make([]int16, 80000), {1, 2, 3}, make([]int16, 10)} {
		if m := listen.Compare(heard, source, 8000); m.Correlation != 0 {
			t.Errorf("Compare with silence = %v, want nothing", m)
		}
	}
}
