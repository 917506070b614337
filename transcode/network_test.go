package transcode_test

import (
	"testing"
	"time"

	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

const talk = 12 * time.Second

// fromPhone plays a voice from a phone through a link and returns what its peers hear and the counters.
func fromPhone(t *testing.T, l link, ptime time.Duration) (*bed, *transcode.Phone, []int16) {
	t.Helper()
	b := newBed(t, transcode.Options{})
	phone := b.phone(transcode.PCMA)
	bob := said(speech.Bob, 8000)
	b.send(l, g711(transcode.PCMA, bob, ptime), ptime, b.toPhoneSide(phone))
	b.run(talk)
	return b, phone, bob
}

func TestPhonesOfAnyPacketLengthAreHeardWithoutGaps(t *testing.T) {
	for _, ptime := range []time.Duration{10, 20, 30, 40, 60} {
		ptime *= time.Millisecond
		b, phone, bob := fromPhone(t, link{delay: 10 * time.Millisecond, jitter: 3 * time.Millisecond}, ptime)
		m := b.same(ptime.String(), b.heard[phone].peers, bob, 8000, 0.98)
		in := phone.Stats().In
		if in.Concealed+in.Lost+in.Late+in.Bad > 0 {
			t.Errorf("%v: %+v, want nothing lost, late or concealed", ptime, in)
		}
		if added := m.Delay - ptime - 10*time.Millisecond; added < 0 || added > 60*time.Millisecond {
			t.Errorf("%v: the bridge adds %v, want less than 60ms", ptime, added)
		}
	}
}

func TestSpeechSurvivesBadNetworks(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name            string
		link            link
		phone, device   float64       // correlation at least
		delay           time.Duration // held at the end, at most
		lost, concealed uint64        // at most, of 600 packets
	}{
		{"jitter 20ms", link{seed: 1, jitter: 20 * ms}, 0.97, 0.97, 65 * ms, 0, 6},
		{"jitter 60ms", link{seed: 2, jitter: 60 * ms}, 0.9, 0.9, 110 * ms, 8, 20},
		{"jitter 60ms in order", link{seed: 3, jitter: 60 * ms, ordered: true}, 0.9, 0.9, 110 * ms, 0, 20},
		{"loss 3%", link{seed: 4, loss: 0.03, jitter: 5 * ms}, 0.95, 0.95, 50 * ms, 30, 30},
		{"loss 10%", link{seed: 5, loss: 0.10, jitter: 5 * ms}, 0.85, 0.85, 60 * ms, 80, 80},
		{"duplicates", link{seed: 6, twice: 0.3, jitter: 2 * ms}, 0.98, 0.99, 40 * ms, 0, 0},
		{"all at once", link{seed: 7, twice: 0.05, jitter: 40 * ms, loss: 0.05}, 0.85, 0.85, 110 * ms, 60, 70},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, phone, bob := fromPhone(t, c.link, 20*ms)
			b.same("phone", b.heard[phone].peers, bob, 8000, c.phone)
			in := phone.Stats()
			t.Logf("%+v", in)
			if in.In.Lost > c.lost || in.In.Concealed > c.concealed || in.Delay.Held > c.delay {
				t.Errorf("phone: %+v, want at most %d lost, %d concealed, %v held", in, c.lost, c.concealed, c.delay)
			}

			b = newBed(t, transcode.Options{})
			phone = b.phone(transcode.PCMU)
			device := b.device()
			sent := opusPackets{fec: true}.pack(t, said(speech.Alice, 48000))
			b.send(c.link, sent, 20*ms, b.toPeerSide(device, phone))
			b.run(talk)
			b.same("device", b.heard[phone].phone, decoded(t, sent), 8000, c.device)
			t.Logf("%+v", device.Stats())
			if c.link.loss > 0 && device.Stats().In.Recovered == 0 && c.link.jitter > 10*ms {
				t.Errorf("device: %+v, want some frames recovered from FEC", device.Stats())
			}
		})
	}
}

func TestDriftingClocksAreFollowed(t *testing.T) {
	for _, ppm := range []float64{-500, -100, 100, 2000} {
		b := newBed(t, transcode.Options{})
		phone, device := b.phone(transcode.PCMU), b.device()
		bob, alice := repeat(said(speech.Bob, 8000), 3), repeat(said(speech.Alice, 8000), 3)
		l := link{seed: 9, ppm: ppm, jitter: 4 * time.Millisecond}
		b.send(l, g711(transcode.PCMU, bob, 20*time.Millisecond), 20*time.Millisecond, b.toPhoneSide(phone))
		sent := opusPackets{rate: 8000}.pack(t, alice)
		b.send(l, sent, 20*time.Millisecond, b.toPeerSide(device, phone))
		b.run(3*talk - 200*time.Millisecond)
		p, d := phone.Stats(), device.Stats()
		for who, s := range map[string]struct {
			transcode.StreamStats
			transcode.Delay
		}{"phone": {p.In, p.Delay}, "device": {d.In, d.Delay}} {
			t.Logf("%v ppm, %s: %+v", ppm, who, s)
			if s.Concealed > 4 || s.Held > 60*time.Millisecond || s.Skipped > 0 {
				t.Errorf("%v ppm, %s: %+v, want no concealment and a delay below 60ms", ppm, who, s)
			}
		}
		tail := b.heard[phone].phone[25*8000:]
		b.same("device at the end", tail, decoded(t, sent), 8000, 0.9)
		b.same("phone at the end", b.heard[phone].peers[25*8000:], said(speech.Bob, 8000), 8000, 0.9)
	}
}

func TestStallIsCaughtUp(t *testing.T) {
	l := link{seed: 3, stall: 400 * time.Millisecond, stallAt: 5 * time.Second, jitter: 3 * time.Millisecond}
	b, phone, bob := fromPhone(t, l, 20*time.Millisecond)
	peers, source := b.heard[phone].peers, bob
	before := b.same("before the stall", peers[:5*8000], source, 8000, 0.9)
	after := b.same("after it", peers[8*8000:], source, 8000, 0.9)
	grown := (after.Delay + 8*time.Second - before.Delay).Round(time.Millisecond) % talk // the source is a loop of talk
	s := phone.Stats()
	t.Logf("delay has grown by %v: %+v", grown, s)
	if grown.Abs() > 30*time.Millisecond || s.Delay.Held > 60*time.Millisecond || s.In.Concealed > 6 {
		t.Errorf("after a stall: delay grown by %v, %+v, want at most 30ms and 6 frames concealed", grown, s)
	}
}

// When the machine stands still for a while the caller's loop makes up for the ticks it missed, before or after the
// packets that waited in the sockets are handed over.
func TestHeldUpLoopCatchesUp(t *testing.T) {
	for _, ticksFirst := range []bool{true, false} {
		b := newBed(t, transcode.Options{})
		phone, device := b.phone(transcode.PCMU), b.device()
		sent := opusPackets{fec: true}.pack(t, said(speech.Alice, 48000))
		b.send(link{seed: 1, delay: 10 * time.Millisecond, jitter: 3 * time.Millisecond}, sent, frame, b.toPeerSide(device, phone))
		b.run(4 * time.Second)
		const held = 300 * time.Millisecond
		until := b.now.Add(held)
		waiting := func() {
			for len(b.flight) > 0 && b.flight[0].at.Before(until) {
				b.flight[0].deliver(b.flight[0].pkt, until)
				b.flight = b.flight[1:]
			}
		}
		if !ticksFirst {
			waiting()
		}
		for ; b.now.Before(until); b.now = b.now.Add(frame) {
			b.desk.Tick(b.now.Add(7*time.Millisecond), b)
			b.ticks++
		}
		waiting()
		b.run(7 * time.Second)
		s := device.Stats()
		t.Logf("ticks first %v: %+v", ticksFirst, s)
		if s.In.Concealed > 4 || s.Delay.Held > 60*time.Millisecond || b.heard[phone].n != b.ticks {
			t.Errorf("ticks first %v: %+v, want at most 4 frames concealed and a delay below 60ms in the end", ticksFirst, s)
		}
		b.same("at the end", b.heard[phone].phone[7*8000:], decoded(t, sent), 8000, 0.99)
	}
}
