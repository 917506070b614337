package lab

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"trunkline/internal/testbed/listen"
)

// Recording is what somebody heard: mono PCM and the time of its first sample.
type Recording struct {
	From  string // whose voice it should be, if the client knows
	Rate  int
	Start time.Time
	PCM   []int16
}

// Duration returns how long the recording is.
func (r Recording) Duration() time.Duration {
	return time.Duration(float64(len(r.PCM)) / float64(r.Rate) * float64(time.Second))
}

// Cut returns the part that starts at from and lasts at most d.
func (r Recording) Cut(from time.Time, d time.Duration) Recording {
	first := min(max(0, int(from.Sub(r.Start).Seconds()*float64(r.Rate))), len(r.PCM))
	last := min(first+max(0, int(d.Seconds()*float64(r.Rate))), len(r.PCM))
	r.Start = r.Start.Add(time.Duration(float64(first) / float64(r.Rate) * float64(time.Second)))
	r.PCM = r.PCM[first:last]
	return r
}

// Level returns the RMS level in dB below overload.
func (r Recording) Level() float64 { return listen.Level(r.PCM) }

// FirstSound returns when the recording first gets loud (10 ms above -50 dB), and whether it ever does.
func (r Recording) FirstSound() (time.Time, bool) {
	step := max(1, r.Rate/100)
	for i := 0; i+step <= len(r.PCM); i += step {
		if (Recording{Rate: r.Rate, PCM: r.PCM[i : i+step]}).Level() > -50 {
			return r.Start.Add(time.Duration(i) * time.Second / time.Duration(r.Rate)), true
		}
	}
	return time.Time{}, false
}

// Mix adds recordings up, as an ear does. All must have the same rate.
func Mix(all ...Recording) Recording {
	var mix Recording
	var end time.Time
	for _, r := range all {
		if len(r.PCM) == 0 {
			continue
		}
		if mix.Rate == 0 || r.Start.Before(mix.Start) {
			mix.Start, mix.Rate = r.Start, r.Rate
		}
		if e := r.Start.Add(r.Duration()); e.After(end) {
			end = e
		}
	}
	if mix.Rate == 0 {
		return mix
	}
	mix.PCM = make([]int16, int(end.Sub(mix.Start).Seconds()*float64(mix.Rate))+1)
	for _, r := range all {
		at := int(math.Round(r.Start.Sub(mix.Start).Seconds() * float64(mix.Rate)))
		for i, v := range r.PCM {
			if at+i < len(mix.PCM) {
				mix.PCM[at+i] = int16(max(-32768, min(32767, int(mix.PCM[at+i])+int(v))))
			}
		}
	}
	return mix
}

// ReadWAV reads a 16-bit file. A file that is still being written is fine: libsndfile leaves its sound's length at
// zero until the end, which is read as "all there is".
func ReadWAV(path string) (Recording, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Recording{}, err
	}
	unfinished, all := []byte("data\x00\x00\x00\x00"), []byte("data\xff\xff\xff\x7f")
	sound, err := listen.ReadWAV(bytes.NewReader(bytes.Replace(b, unfinished, all, 1)))
	if err != nil {
		return Recording{}, fmt.Errorf("%s: %w", path, err)
	}
	return Recording{Rate: sound.Rate, PCM: sound.PCM}, nil
}

// WriteWAV writes the recording for a person to listen to.
func (r Recording) WriteWAV(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(listen.WriteWAV(f, listen.Sound{Rate: r.Rate, PCM: r.PCM}), f.Close())
}
