package transcode_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

func TestSilentPhoneIsNotEncodedAndTimeGoesOn(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone := b.phone(transcode.PCMA)
	tone := listen.Sine(8000, 700, -20, time.Second)
	pcm := slices.Concat(tone, make([]int16, 3*8000), tone, make([]int16, 8000))
	b.send(link{delay: 5 * time.Millisecond}, g711(transcode.PCMA, pcm, frame), frame, b.toPhoneSide(phone))
	b.run(6 * time.Second)

	ear := b.heard[phone]
	var marked []uint32
	quiet := 0
	for i, h := range ear.sent {
		if h.Marker {
			marked = append(marked, (h.Timestamp-ear.first)/960)
		}
		if ear.sizes[i] <= 2 {
			quiet++
		}
	}
	// the first frame is played in tick 1, the second tone comes 200 frames later
	if len(marked) != 2 || marked[1]-marked[0] != 200 {
		t.Errorf("marked frames %v, want two, 200 apart", marked)
	}
	if n := len(ear.sent) - quiet; n > 130 || n < 100 {
		t.Errorf("%d frames encoded, want the 100 of the tones and some hangover", n)
	}
	if quiet < 8 || quiet > 14 {
		t.Errorf("%d signs of life, want one each 400 ms of 4 s and two at pauses", quiet)
	}
	if gaps := listen.Gaps(ear.peers, 8000, 20, 100*time.Millisecond); len(gaps) != 1 ||
		(gaps[0].Length-3*time.Second).Abs() > 30*time.Millisecond {
		t.Errorf("peers hear gaps %v, want one of 3s", gaps)
	}
	if s := phone.Stats(); s.PeerFrames != uint64(len(ear.sent)) || s.Gated+s.PeerFrames != 300 {
		t.Errorf("Stats = %+v, want %d sent and the rest of 300 gated", s, len(ear.sent))
	}
}

func TestPausesOfDevicesAreSilentWithoutConcealment(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone, device := b.phone(transcode.PCMU), b.device()
	talk := said(speech.Alice, 48000)[:2*48000]
	pcm := slices.Concat(talk, make([]int16, 4*48000), talk)
	packets := opusPackets{dtx: true, bitrate: 24000}.pack(t, pcm)
	sent := 0
	for _, p := range packets {
		if p != nil {
			sent++
		}
	}
	if sent > len(packets)-120 {
		t.Fatalf("the encoder sent %d of %d packets, want pauses", sent, len(packets))
	}
	b.send(link{delay: 5 * time.Millisecond, jitter: 8 * time.Millisecond, seed: 5}, packets, frame, b.toPeerSide(device, phone))
	b.run(8 * time.Second)
	s := device.Stats()
	if s.In.Concealed > 0 || s.In.Lost > 0 || s.In.Late > 0 {
		t.Errorf("device: %+v, want nothing concealed, lost or late", s)
	}
	ear := b.heard[phone].phone
	if got := listen.Level(ear[3*8000 : 5*8000]); got > -70 {
		t.Errorf("the pause sounds at %.1f dB, want silence", got)
	}
	b.same("before and after", slices.Concat(ear[:2*8000], ear[6*8000:]), decoded(t, packets), 8000, 0.97)
}

// The background of a room must not chop on and off between the frames that refresh it.
func TestBackgroundGoesOnInPauses(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone, device := b.phone(transcode.PCMU), b.device()
	rng := rand.New(rand.NewPCG(3, 4))
	pcm := make([]int16, 6*48000)
	low := 0.0
	for i := range pcm {
		low += 0.2 * (rng.NormFloat64()*150 - low)
		pcm[i] = int16(low)
	}
	copy(pcm, said(speech.Alice, 48000)[:2*48000])
	packets := opusPackets{bitrate: 24000}.pack(t, pcm)
	seq := packets[100].SequenceNumber
	for i := 100; i < len(packets); i++ { // as libwebrtc: one packet in 400 ms, then one that says "pause"
		switch i % 20 {
		case 0:
		case 1:
			packets[i].Payload = packets[i].Payload[:1]
		default:
			packets[i] = nil
			continue
		}
		packets[i].SequenceNumber = seq
		seq++
	}
	b.send(link{delay: 5 * time.Millisecond}, packets, frame, b.toPeerSide(device, phone))
	b.run(6 * time.Second)
	ear := b.heard[phone].phone
	room := listen.Level(listen.Resample(pcm[3*48000:], 48000, 8000))
	for at := 3 * 8000; at+1600 <= len(ear); at += 1600 {
		if got := listen.Level(ear[at : at+1600]); math.Abs(got-room) > 6 {
			t.Errorf("at %d ms the background is at %.1f dB, want %.1f within 6", at/8, got, room)
		}
	}
	if s := device.Stats().In; s.Concealed > 0 {
		t.Errorf("%+v, want nothing concealed", s)
	}
	b.run(3 * time.Second) // nothing comes any more
	if got := listen.Level(b.heard[phone].phone[len(ear)+2*8000:]); got > listen.Silence {
		t.Errorf("without any packet the background goes on at %.1f dB", got)
	}
}

// A phone with silence suppression stops sending, marks the next packet and may say so with comfort noise.
func TestPhoneWithSilenceSuppressionPauses(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone, other := b.phone(transcode.PCMU), b.phone(transcode.PCMU)
	tone := listen.Sine(8000, 700, -20, time.Second)
	packets := g711(transcode.PCMU, slices.Concat(tone, make([]int16, 8000), tone), frame)
	packets[50].PayloadType, packets[50].Payload = 13, []byte{70} // RFC 3389
	for i := 51; i < 100; i++ {
		packets[i] = nil
	}
	for i := 100; i < 150; i++ {
		packets[i].SequenceNumber -= 49
		packets[i].Marker = i == 100
	}
	b.send(link{delay: 5 * time.Millisecond}, packets, frame, b.toPhoneSide(phone))
	b.run(3 * time.Second)
	if s := phone.Stats().In; s.Concealed > 0 && s.Lost > 0 || s.Bad > 0 || s.Restarts > 0 {
		t.Errorf("phone: %+v, want a plain pause", s)
	}
	gaps := listen.Gaps(b.heard[other].phone, 8000, 30, 50*time.Millisecond)
	if len(gaps) != 1 || (gaps[0].Length-time.Second).Abs() > 25*time.Millisecond {
		t.Errorf("gaps %v, want one of a second", gaps)
	}
}
