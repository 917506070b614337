package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"time"
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
	last := min(first+int(d.Seconds()*float64(r.Rate)), len(r.PCM))
	r.Start = r.Start.Add(time.Duration(float64(first) / float64(r.Rate) * float64(time.Second)))
	r.PCM = r.PCM[first:last]
	return r
}

// Level returns the RMS level in dB below full scale; silence is -100.
func (r Recording) Level() float64 {
	var sum float64
	for _, v := range r.PCM {
		sum += float64(v) * float64(v)
	}
	if sum == 0 {
		return -100
	}
	return max(-100, 10*math.Log10(sum/float64(len(r.PCM))/(32768*32768)))
}

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

// ReadWAV reads a mono 16-bit file. A file that is still being written is fine: sizes in its header are not believed.
func ReadWAV(path string) (Recording, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Recording{}, err
	}
	r, err := parseWAV(b)
	if err != nil {
		return Recording{}, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

func parseWAV(b []byte) (Recording, error) {
	if len(b) < 12 || string(b[:4]) != "RIFF" || string(b[8:12]) != "WAVE" {
		return Recording{}, errors.New("not a RIFF WAVE file")
	}
	var rec Recording
	for b = b[12:]; len(b) >= 8; {
		name, size := string(b[:4]), int(binary.LittleEndian.Uint32(b[4:8]))
		b = b[8:]
		if name == "data" {
			if size == 0 || size > len(b) {
				size = len(b)
			}
			rec.PCM = make([]int16, size/2)
			for i := range rec.PCM {
				rec.PCM[i] = int16(binary.LittleEndian.Uint16(b[2*i:]))
			}
			break
		}
		if name == "fmt " && len(b) >= 16 {
			channels, bits := binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint16(b[14:])
			if channels != 1 || bits != 16 {
				return Recording{}, fmt.Errorf("%d channels of %d bits, want one of 16", channels, bits)
			}
			rec.Rate = int(binary.LittleEndian.Uint32(b[4:]))
		}
		b = b[min(len(b), size+size%2):]
	}
	if rec.Rate == 0 {
		return Recording{}, errors.New("no format chunk")
	}
	return rec, nil
}

// WriteWAV writes the recording for a person to listen to.
func (r Recording) WriteWAV(path string) error {
	b := make([]byte, 44+2*len(r.PCM))
	le := binary.LittleEndian
	copy(b, "RIFF")
	le.PutUint32(b[4:], uint32(36+2*len(r.PCM)))
	copy(b[8:], "WAVEfmt ")
	le.PutUint32(b[16:], 16)
	le.PutUint16(b[20:], 1)
	le.PutUint16(b[22:], 1)
	le.PutUint32(b[24:], uint32(r.Rate))
	le.PutUint32(b[28:], uint32(2*r.Rate))
	le.PutUint16(b[32:], 2)
	le.PutUint16(b[34:], 16)
	copy(b[36:], "data")
	le.PutUint32(b[40:], uint32(2*len(r.PCM)))
	for i, v := range r.PCM {
		le.PutUint16(b[44+2*i:], uint16(v))
	}
	return os.WriteFile(path, b, 0o644)
}
