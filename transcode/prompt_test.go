package transcode_test

import (
	"math"
	"testing"
	"time"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

// cut cuts sound at places that are no frames.
func cut(pcm []int16) [][]int16 { return [][]int16{pcm[:1001], nil, pcm[1001:1002], pcm[1002:]} }

func TestAPhoneIsToldSomethingThatNobodyElseHears(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone, other := b.phone(transcode.PCMU), b.phone(transcode.PCMA)
	prompt := speech.Alice.PCM(8000, 3*time.Second)
	b.run(200 * time.Millisecond)
	phone.Say(cut(prompt))
	b.run(2980 * time.Millisecond)
	if !phone.Saying() {
		t.Error("it is over before its end")
	}
	b.run(40 * time.Millisecond)
	if phone.Saying() {
		t.Error("it goes on after its end")
	}
	b.same("the phone", b.heard[phone].phone, prompt, 8000, 0.99)
	for who, pcm := range map[string][]int16{"another phone": b.heard[other].phone, "the phone's peers": b.heard[phone].peers} {
		if level := listen.Level(pcm); level > -60 {
			t.Errorf("%s heard %.0f dB", who, level)
		}
	}
}

func TestTheOthersAreTurnedDownWhileAPhoneIsTold(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone, other := b.phone(transcode.PCMU), b.phone(transcode.PCMU)
	b.send(link{delay: 10 * time.Millisecond}, g711(transcode.PCMU, listen.Sine(8000, 440, -20, 6*time.Second), frame), frame, b.toPhoneSide(other))
	b.run(2 * time.Second)
	phone.Say([][]int16{listen.Sine(8000, 1000, -30, 4*time.Second)})
	b.run(2 * time.Second)
	phone.StopSaying()
	b.run(time.Second)
	heard := b.heard[phone].phone
	second := func(n int) []int16 { return heard[n*8000+1600 : n*8000+8000] }
	for _, c := range []struct {
		when     int
		hz, want float64
	}{{1, 440, -20}, {3, 440, -32}, {3, 1000, -30}, {4, 440, -20}} {
		if got := listen.Tone(second(c.when), 8000, c.hz); math.Abs(got-c.want) > 1 {
			t.Errorf("in second %d the phone hears %v Hz at %.1f dB, want %v", c.when, c.hz, got, c.want)
		}
	}
	if got := listen.Tone(second(4), 8000, 1000); got > -60 {
		t.Errorf("the prompt goes on after it was stopped, at %.0f dB", got)
	}
	if n := listen.Jumps(heard[8000:], 3000); n > 0 {
		t.Errorf("%d clicks", n)
	}
}

func TestPromptsAreMixedWithoutAllocating(t *testing.T) {
	m, out := newTreadmill(t, 2, 1, opusPackets{fec: true}), &nowhere{}
	for range 600 {
		m.step(out)
	}
	prompt := [][]int16{make([]int16, 30*transcode.Rate), make([]int16, 30*transcode.Rate)}
	m.phones[0].Say(prompt)
	if got := testing.AllocsPerRun(1000, func() { m.step(out) }); got != 0 || !m.phones[0].Saying() {
		t.Errorf("%v allocations a frame, want 0", got)
	}
}
