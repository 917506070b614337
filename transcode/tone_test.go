package transcode_test

import (
	"math"
	"testing"
	"time"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

// play reads a tone in frames, as a desk does.
func play(tone transcode.Tone, d time.Duration) []int16 {
	var p transcode.Player
	p.Play(tone)
	var out []int16
	for len(out) < int(d.Seconds()*transcode.Rate) {
		var pcm [transcode.FrameSamples]int16
		p.Read(pcm[:])
		out = append(out, pcm[:]...)
	}
	return out
}

func TestTonesHaveTheirFrequenciesAndCadence(t *testing.T) {
	for _, c := range []struct {
		name   string
		tone   transcode.Tone
		hz     []float64
		on, of time.Duration
	}{
		{"ringback Europe", transcode.Ringback(transcode.Europe), []float64{425}, time.Second, 4 * time.Second},
		{"ringback America", transcode.Ringback(transcode.NorthAmerica), []float64{440, 480}, 2 * time.Second, 4 * time.Second},
		{"busy Europe", transcode.Busy(transcode.Europe), []float64{425}, 500 * time.Millisecond, 500 * time.Millisecond},
		{"busy America", transcode.Busy(transcode.NorthAmerica), []float64{480, 620}, 500 * time.Millisecond, 500 * time.Millisecond},
		{"congestion Europe", transcode.Congestion(transcode.Europe), []float64{425}, 250 * time.Millisecond, 250 * time.Millisecond},
		{"congestion America", transcode.Congestion(transcode.NorthAmerica), []float64{480, 620}, 250 * time.Millisecond, 250 * time.Millisecond},
	} {
		pcm := play(c.tone, 3*(c.on+c.of))
		on := pcm[:int(c.on.Seconds()*8000)]
		for _, hz := range c.hz {
			want := transcode.ToneLevel - 10*math.Log10(float64(len(c.hz)))
			if got := listen.Tone(on, 8000, hz); math.Abs(got-want) > 1 {
				t.Errorf("%s: %v Hz at %.1f dB, want %.1f", c.name, hz, got, want)
			}
		}
		if got := listen.Level(on); math.Abs(got-transcode.ToneLevel) > 1 {
			t.Errorf("%s: %.1f dB in all, want %v: is there another frequency?", c.name, got, transcode.ToneLevel)
		}
		gaps := listen.Gaps(pcm, 8000, 5, 100*time.Millisecond)
		if len(gaps) != 2 || (gaps[0].Length-c.of).Abs() > 5*time.Millisecond || (gaps[0].From-c.on).Abs() > 5*time.Millisecond {
			t.Errorf("%s: gaps %v, want two of %v, the first after %v", c.name, gaps, c.of, c.on)
		}
	}
}

func TestDigitsSoundOnce(t *testing.T) {
	for digit, hz := range map[rune][2]float64{'1': {697, 1209}, '5': {770, 1336}, '#': {941, 1477}, '0': {941, 1336}, 'D': {941, 1633}} {
		tone, ok := transcode.DTMF(digit, 100*time.Millisecond)
		if !ok {
			t.Fatalf("DTMF(%c) is no digit", digit)
		}
		pcm := play(tone, 400*time.Millisecond)
		for _, f := range hz {
			if got := listen.Tone(pcm[80:720], 8000, f); math.Abs(got-transcode.ToneLevel+3) > 1 {
				t.Errorf("%c: %v Hz at %.1f dB, want %.1f", digit, f, got, transcode.ToneLevel-3)
			}
		}
		if got := listen.Level(pcm[1200:]); got > listen.Silence {
			t.Errorf("%c sounds on at %.1f dB", digit, got)
		}
	}
	if _, ok := transcode.DTMF('x', time.Second); ok {
		t.Error("x is a digit")
	}
}

func TestToneWithoutLengthIsOverAtOnce(t *testing.T) {
	for _, tone := range []transcode.Tone{{}, {Beats: []transcode.Beat{{}, {For: -5}}}, {Beats: []transcode.Beat{{Hz: [2]float64{5000, -1}}}}} {
		var p transcode.Player
		p.Play(tone)
		if pcm := make([]int16, 160); p.Playing() || p.Read(pcm) {
			t.Errorf("%v is playing", tone)
		}
	}
}

func TestToneIsHeardByItsPhoneAlone(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone, other := b.phone(transcode.PCMA), b.phone(transcode.PCMU)
	b.send(link{}, g711(transcode.PCMU, said(speech.Bob, 8000), frame), frame, b.toPhoneSide(other))
	phone.Play(transcode.Information())
	b.run(2 * time.Second)
	if !phone.Playing() {
		t.Error("the tone is over")
	}
	pcm := b.heard[phone].phone
	for i, hz := range []float64{950, 1400, 1800} {
		from := i * 2640
		if got := listen.Tone(pcm[from+100:from+2500], 8000, hz); math.Abs(got-transcode.ToneLevel) > 1.5 {
			t.Errorf("%v Hz at %.1f dB, want %v", hz, got, transcode.ToneLevel)
		}
	}
	if got := listen.Level(b.heard[other].phone); got > -70 {
		t.Errorf("the other phone hears something at %.1f dB", got)
	}
	if n := len(b.heard[phone].sizes); n > 7 {
		t.Errorf("peers got %d packets, want signs of life only", n)
	}
	phone.StopTone()
	b.run(2 * time.Second)
	after := b.heard[phone].phone[16000:]
	if m := listen.Compare(after, said(speech.Bob, 8000), 8000); m.Correlation < 0.99 {
		t.Errorf("after the tone: %v", m)
	}
}
