package lab

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Voice is somebody's speech as files: a loop for pages and a long recording for phones.
type Voice struct {
	Name string
	Loop string // 48 kHz mono, played for ever by a page
	Long string // the same at 8 kHz, repeated: a baresip call ends when its file ends

	// Low and High bound a steady voice, in Hz; zero for speech.
	Low, High float64

	once   sync.Once
	source []float64 // the loop as the judge compares it: telephone band, judgeRate
	err    error
}

// longFor is how long a phone can speak before its file ends and the call with it.
const longFor = 9 * time.Minute

// cast lists who speaks: an espeak-ng voice, its speed and a text. Texts differ in every word that can differ, for
// correlation must tell the speakers apart.
var cast = []struct{ name, voice, speed, text string }{
	{"harbour", "en-gb", "150", "The harbour wakes before the town does. Two grey boats push out past the light, and behind them " +
		"the gulls argue about breakfast. A woman in yellow boots counts crates of ice, forty, forty one, forty two, " +
		"and writes the sum on the back of her hand because the paper blew away on Tuesday."},
	{"orchard", "en-us+f3", "160", "My uncle grafted seven kinds of apple onto one old trunk. Visitors never believed him until autumn, " +
		"when red, russet and green hung side by side. Pick slowly, he used to say, every bruise is a " +
		"small theft from January, and nobody enjoys cider that tastes of regret."},
	{"railway", "en-gb-scotland+m5", "140", "This is the slow train to the north, calling at every quarry, chapel and cattle market on the line. " +
		"Passengers for the islands should change where the platform ends and the sheep begin. " +
		"Hot soup is served in the rear carriage as long as the driver's thermos holds out."},
	{"kitchen", "en-us+f5", "165", "Warm half a litre of milk, whisk in three eggs, a pinch of nutmeg and the zest of one lemon. " +
		"Do not let it boil. Fold the flour through a sieve, cover the bowl with a cloth, " +
		"then leave it alone for an hour while you wash up, feed the cat and answer the telephone."},
	{"workshop", "en-gb+m7", "155", "Never trust a clock that has been repaired by a philosopher. He will explain why noon is relative and hand you " +
		"back a box of springs. Give me a pair of tweezers, good daylight and an afternoon without questions, " +
		"and I shall show you a pendulum that knows its job."},
}

// hums lists the steady voices: tones that glide within a band of their own and never pause. A gap in one is a gap of
// the line, not of the speaker, and the bands tell them apart in a mix.
var hums = []struct {
	name      string
	low, high float64 // whole numbers of cycles fit into a loop
}{
	{"hum-low", 400, 600}, {"hum-middle", 1000, 1300}, {"hum-high", 1900, 2300},
}

// speech makes the files of everybody who can speak in dir.
func speech(ctx context.Context, dir string) (speakers, steady []*Voice, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, fmt.Errorf("make speech: %w", err)
	}
	for _, c := range cast {
		v, raw := newVoice(dir, c.name), filepath.Join(dir, c.name+"-raw.wav")
		for _, args := range [][]string{
			{"espeak-ng", "-v", c.voice, "-s", c.speed, "-g", "1", "-w", raw, c.text},
			{"sox", "-R", raw, "-r", "48000", "-c", "1", "-b", "16", v.Loop, "norm", "-4"},
		} {
			if err := runTool(ctx, args...); err != nil {
				return nil, nil, fmt.Errorf("make speech %s: %w", c.name, err)
			}
		}
		speakers = append(speakers, v)
	}
	for _, h := range hums {
		v := newVoice(dir, h.name)
		v.Low, v.High = h.low, h.high
		if err := hum(h.low, h.high).WriteWAV(v.Loop); err != nil {
			return nil, nil, fmt.Errorf("make speech %s: %w", h.name, err)
		}
		steady = append(steady, v)
	}
	for _, v := range slices.Concat(speakers, steady) {
		if err := v.lengthen(ctx, dir); err != nil {
			return nil, nil, fmt.Errorf("make speech %s: %w", v.Name, err)
		}
	}
	return speakers, steady, nil
}

func newVoice(dir, name string) *Voice {
	return &Voice{Name: name, Loop: filepath.Join(dir, name+".wav"), Long: filepath.Join(dir, name+"-long.wav")}
}

// lengthen makes the phone's file from the loop.
func (v *Voice) lengthen(ctx context.Context, dir string) error {
	short := filepath.Join(dir, v.Name+"-short.wav")
	if err := runTool(ctx, "sox", "-R", v.Loop, "-r", "8000", "-c", "1", "-b", "16", short); err != nil {
		return err
	}
	once, err := ReadWAV(short)
	if err != nil {
		return err
	}
	return runTool(ctx, "sox", short, v.Long, "repeat", fmt.Sprint(int(longFor/once.Duration())))
}

// hum is a tone that wanders through its band, twelve seconds without a seam. It swells a little several times a
// second, as speech does, so that no codec takes it for noise.
func hum(low, high float64) Recording {
	const rate, seconds = 48000, 12
	r := Recording{Rate: rate, PCM: make([]int16, rate*seconds)}
	turn := func(cycles, i int) float64 { return 2 * math.Pi * float64(cycles) * float64(i) / float64(len(r.PCM)) }
	phase := 0.0
	for i := range r.PCM {
		hz := (low+high)/2 + (high-low)/4*(math.Sin(turn(5, i))+math.Sin(turn(13, i)))
		phase += 2 * math.Pi * hz / rate
		r.PCM[i] = int16(5500 * (1 + 0.25*math.Sin(turn(53, i))) * math.Sin(phase))
	}
	return r
}

func runTool(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", args[0], err, out[max(0, len(out)-1000):])
	}
	return nil
}

// Saying is a voice with the moment its file's first sample left the mouth; from then on the file repeats.
type Saying struct {
	Voice *Voice
	Start time.Time
}
