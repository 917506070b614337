package speech_test

import (
	"errors"
	"math"
	"os/exec"
	"slices"
	"testing"
	"time"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
)

var voices = []speech.Voice{speech.Alice, speech.Bob, speech.Carol, speech.Dave}

func TestVoicesAreAlwaysTheSame(t *testing.T) {
	for _, v := range voices {
		a, b := v.PCM(8000, 3*time.Second), v.PCM(8000, 3*time.Second)
		if !slices.Equal(a, b) {
			t.Errorf("%s differs from itself", v.Name)
		}
	}
}

func TestVoicesHaveNothingInCommon(t *testing.T) {
	said := make([][]int16, len(voices))
	for i, v := range voices {
		said[i] = v.PCM(8000, 12*time.Second)
	}
	for i, v := range voices {
		for j, w := range voices {
			m := listen.Compare(said[i], said[j], 8000)
			t.Logf("%s with %s: %v", v.Name, w.Name, m)
			if i == j && m.Correlation < 0.999 {
				t.Errorf("%s with itself: %v", v.Name, m)
			}
			if i != j && m.Correlation >= 0.16 {
				t.Errorf("%s with %s: %v, want below 0.16", v.Name, w.Name, m)
			}
		}
	}
}

func TestVoiceIsTheSameAtAllRates(t *testing.T) {
	for _, rate := range []int{16000, 48000} {
		high := speech.Alice.PCM(rate, 4*time.Second)
		if got := listen.Level(high); math.Abs(got-speech.Level) > 0.3 {
			t.Errorf("level at %d = %.1f, want %.1f", rate, got, speech.Level)
		}
		m := listen.Compare(listen.Resample(high, rate, 8000), speech.Alice.PCM(8000, 4*time.Second), 8000)
		if m.Correlation < 0.99 {
			t.Errorf("at %d Hz: %v", rate, m)
		}
	}
}

func TestEspeakSpeaks(t *testing.T) {
	pcm, err := speech.Espeak(t.Context(), 8000, "en", "The quick brown fox jumps over the lazy dog.")
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("espeak-ng is not installed")
	}
	if err != nil {
		t.Fatal(err)
	}
	if d, l := len(pcm)/8000, listen.Level(pcm); d < 1 || l < -40 {
		t.Errorf("spoke for %d s at %.1f dB, want more", d, l)
	}
}
