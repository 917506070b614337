package transcode_test

import (
	"errors"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

// detect feeds sound in frames and returns the digits heard.
func detect(pcm []int16) string {
	var d transcode.DigitDetector
	var out []rune
	for f := range slices.Chunk(pcm, transcode.FrameSamples) {
		if r, ok := d.Hear(f); ok {
			out = append(out, r)
		}
	}
	return string(out)
}

// dial plays digits, each with the two levels given.
func dial(number string, low, high float64, on, off time.Duration) []int16 {
	return dialOff(number, 1, low, high, on, off)
}

// dialOff plays digits whose frequencies are off by a factor.
func dialOff(number string, factor, low, high float64, on, off time.Duration) []int16 {
	hz := map[rune][2]float64{}
	for i, r := range "123A456B789C*0#D" {
		hz[r] = [2]float64{[]float64{697, 770, 852, 941}[i/4], []float64{1209, 1336, 1477, 1633}[i%4]}
	}
	var out []int16
	for _, r := range number {
		a, b := listen.Sine(8000, factor*hz[r][0], low, on), listen.Sine(8000, factor*hz[r][1], high, on)
		for i := range a {
			a[i] += b[i]
		}
		out = append(append(out, a...), make([]int16, int(off.Seconds()*8000))...)
	}
	return out
}

func TestDialledDigitsAreHeard(t *testing.T) {
	const all = "1234567890*#ABCD1122"
	const ms = time.Millisecond
	for _, c := range []struct {
		low, high float64
		on, off   time.Duration
		noise     float64
	}{
		{-10, -10, 100 * ms, 100 * ms, 0},
		{-10, -10, 45 * ms, 40 * ms, 0},
		{-9.5, -9.5, 70 * ms, 50 * ms, 0},
		{-40, -40, 80 * ms, 60 * ms, 0},
		{-20, -14, 80 * ms, 60 * ms, 0},
		{-14, -20, 80 * ms, 60 * ms, 0},
		{-15, -15, 80 * ms, 60 * ms, 400},
	} {
		pcm := dial(all, c.low, c.high, c.on, c.off)
		rng := rand.New(rand.NewPCG(1, 1))
		for i := range pcm {
			pcm[i] += int16(rng.NormFloat64() * c.noise)
		}
		for shift := range 5 { // blocks fall differently each time
			if got := detect(append(make([]int16, shift*23), pcm...)); got != all {
				t.Errorf("%+v, shift %d: heard %q, want %q", c, shift, got, all)
			}
		}
	}
}

// ITU-T Q.24: 1.5 % off must be heard, far off must not. Of the column that phones do not have, D is a little deaf.
func TestDigitsOffTheirFrequenciesAreHeardWithinLimits(t *testing.T) {
	const all = "1234567890*#ABC"
	for _, factor := range []float64{0.985, 1.015} {
		if got := detect(dialOff(all, factor, -15, -15, 80*time.Millisecond, 60*time.Millisecond)); got != all {
			t.Errorf("off by %v: heard %q, want %q", factor, got, all)
		}
	}
	for _, factor := range []float64{0.955, 1.045} {
		if got := detect(dialOff(all, factor, -15, -15, 80*time.Millisecond, 60*time.Millisecond)); got != "" {
			t.Errorf("off by %v: heard %q, want nothing", factor, got)
		}
	}
}

func TestOwnDigitsAreHeard(t *testing.T) {
	for _, digit := range "159D*" {
		tone, _ := transcode.DTMF(digit, 60*time.Millisecond)
		if got := detect(play(tone, 200*time.Millisecond)); got != string(digit) {
			t.Errorf("heard %q, want %q", got, string(digit))
		}
	}
}

func TestVoicesAreNoDigits(t *testing.T) {
	for _, v := range []speech.Voice{speech.Alice, speech.Bob, speech.Carol, speech.Dave} {
		if got := detect(v.PCM(8000, 40*time.Second)); got != "" {
			t.Errorf("%s says %q", v.Name, got)
		}
	}
	words := strings.Repeat("Peter Piper picked a peck of pickled peppers. She sells sea shells by the sea shore. One, two, three. ", 6)
	for _, v := range []string{"en", "en+f3", "de", "en+m2"} {
		pcm, err := speech.Espeak(t.Context(), 8000, v, words)
		if errors.Is(err, exec.ErrNotFound) {
			break
		}
		if got := detect(pcm); err != nil || got != "" {
			t.Errorf("espeak %s says %q, %v", v, got, err)
		}
	}
	for _, tone := range []transcode.Tone{transcode.Ringback(0), transcode.Information(), transcode.Busy(transcode.NorthAmerica)} {
		if got := detect(play(tone, 5*time.Second)); got != "" {
			t.Errorf("tone %v sounds like %q", tone, got)
		}
	}
}

func TestPhoneTellsDigitsItHears(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone, err := b.desk.AddPhone(transcode.PhoneConfig{InBandDigits: true})
	if err != nil {
		t.Fatal(err)
	}
	b.heard[phone] = b.heard[b.phone(transcode.PCMU)]
	b.heard[phone] = &earpiece{t: t, rate: 8000, ptime: 20, decoder: b.heard[b.phone(transcode.PCMU)].decoder, first: 0}
	pcm := append(make([]int16, 8000), dial("0123456789", -15, -15, 80*time.Millisecond, 80*time.Millisecond)...)
	b.send(link{seed: 1, jitter: 10 * time.Millisecond}, g711(transcode.PCMU, pcm, frame), frame, b.toPhoneSide(phone))
	b.run(3 * time.Second)
	var got []rune
	for {
		r, ok := phone.Digit()
		if !ok {
			break
		}
		got = append(got, r)
	}
	if string(got) != "23456789" { // the desk keeps eight
		t.Errorf("heard %q, want the last eight of ten digits", string(got))
	}
}

// A re-INVITE, or the answer to an offer of ours, says only later how keys come.
func TestKeysAreListenedForFromWhenThatIsAgreed(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone := b.phone(transcode.PCMU)
	parts := []struct {
		listens    bool
		keys, want string
	}{{false, "12", ""}, {true, "34", "34"}, {false, "56", ""}, {true, "78", "78"}}
	var pcm []int16
	for _, part := range parts {
		second := make([]int16, 8000)
		copy(second[2400:], dial(part.keys, -15, -15, 80*time.Millisecond, 80*time.Millisecond))
		pcm = append(pcm, second...)
	}
	b.send(link{}, g711(transcode.PCMU, pcm, frame), frame, b.toPhoneSide(phone))
	for _, part := range parts {
		if err := phone.SetFormat(transcode.PhoneConfig{Codec: transcode.PCMU, InBandDigits: part.listens}); err != nil {
			t.Fatal(err)
		}
		b.run(time.Second)
		got := ""
		for digit, ok := phone.Digit(); ok; digit, ok = phone.Digit() {
			got += string(digit)
		}
		if got != part.want {
			t.Errorf("listens: %t, keys %s: heard %q", part.listens, part.keys, got)
		}
	}
}
