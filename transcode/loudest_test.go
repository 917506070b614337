package transcode_test

import (
	"testing"
	"time"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

// announced sends a microphone whose packets carry a level.
func (b *bed) announced(d *transcode.Device, via *transcode.Phone, pcm []int16, level uint8) {
	b.t.Helper()
	packets := opusPackets{}.pack(b.t, pcm)
	for _, p := range packets {
		if err := p.SetExtension(3, []byte{0x80 | level}); err != nil {
			b.t.Fatal(err)
		}
	}
	d.AnnouncesLevel(via, 3)
	b.send(link{delay: 5 * time.Millisecond}, packets, frame, b.toPeerSide(d, via))
}

func TestOnlyTheLoudestAreDecoded(t *testing.T) {
	b := newBed(t, transcode.Options{Loudest: 1})
	phone := b.phone(transcode.PCMU)
	quiet, loud, mute := b.device(), b.device(), b.device()
	b.announced(quiet, phone, listen.Sine(48000, 500, -30, 4*time.Second), 30)
	b.announced(mute, phone, make([]int16, 4*48000), 127)
	b.run(time.Second)
	ear := b.heard[phone]
	if got := listen.Tone(ear.phone[4000:], 8000, 500); got < -31 {
		t.Errorf("the only speaker is heard at %.1f dB", got)
	}
	if mute.Stats().Chosen || !quiet.Stats().Chosen {
		t.Error("silence was chosen, or the only speaker was not")
	}
	b.announced(loud, phone, listen.Sine(48000, 1100, -20, time.Second), 20)
	b.run(time.Second)
	last := ear.phone[12000:]
	if q, l := listen.Tone(last, 8000, 500), listen.Tone(last, 8000, 1100); q > -60 || l < -21 {
		t.Errorf("quiet at %.1f, loud at %.1f dB; want the loud one alone", q, l)
	}
	b.run(1500 * time.Millisecond)
	last = ear.phone[len(ear.phone)-4000:]
	if q := listen.Tone(last, 8000, 500); q < -31 {
		t.Errorf("after the loud one stopped the quiet one is heard at %.1f dB", q)
	}
	if s := quiet.Stats().In; s.Concealed > 0 || s.Lost > 0 {
		t.Errorf("%+v, want nothing concealed or lost by not being chosen", s)
	}
}

func TestWhoBeginsToSpeakIsHeardFromTheBeginning(t *testing.T) {
	b := newBed(t, transcode.Options{Loudest: 1})
	phone := b.phone(transcode.PCMU)
	first, second, old := b.device(), b.device(), b.device()
	b.announced(first, phone, make([]int16, 3*48000), 60)
	b.run(500 * time.Millisecond)
	alice := said(speech.Alice, 48000)[:2*48000]
	b.announced(second, phone, alice, 20)
	// a device that announces nothing is always decoded
	b.send(link{}, opusPackets{}.pack(t, listen.Sine(48000, 3000, -40, 2*time.Second)), frame, b.toPeerSide(old, phone))
	b.run(2 * time.Second)
	b.same("second", b.heard[phone].phone, decoded(t, opusPackets{}.pack(t, alice)), 8000, 0.95)
	if got := listen.Tone(b.heard[phone].phone[8000:], 8000, 3000); got < -41 || got > -39 {
		t.Errorf("a device without levels is heard at %.1f dB, want -40", got)
	}
	from, ok := listen.Onset(b.heard[phone].phone, 8000, 400)
	if !ok || from > 640*time.Millisecond {
		t.Errorf("the speaker is heard after %v, want within 140ms of speaking at 500ms", from)
	}
	for _, d := range []*transcode.Device{first, second, old} {
		d.AnnouncesLevel(nil, 3)
		b.desk.DropDevice(d)
		d.AnnouncesLevel(phone, 3)
	}
	b.run(100 * time.Millisecond)
}
