package transcode_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/pion/rtp"
	"gopkg.in/hraban/opus.v2"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

// chord is two tones at once.
func chord(rate int, low, high float64, d time.Duration) []int16 {
	pcm := listen.Sine(rate, low, -20, d)
	for i, x := range listen.Sine(rate, high, -20, d) {
		pcm[i] += x
	}
	return pcm
}

// packPhone packs sound as a phone with this codec does: 8 kHz for the laws, 16 kHz for the others.
func packPhone(t testing.TB, codec transcode.Codec, pcm []int16, ptime time.Duration) []*rtp.Packet {
	t.Helper()
	var out []*rtp.Packet
	switch codec {
	case transcode.Opus:
		enc := opusPackets{rate: 16000, ptime: ptime, bitrate: 64000, ssrc: 0xA}
		out = enc.pack(t, pcm)
	case transcode.G722:
		n := int(ptime / time.Millisecond * 8)
		code := transcode.EncodeG722(pcm)
		for i := 0; i+n <= len(code); i += n {
			out = append(out, &rtp.Packet{Payload: code[i : i+n], Header: rtp.Header{
				Version: 2, SSRC: 0xA, SequenceNumber: uint16(65500 + i/n), Timestamp: uint32(1<<32 - 8000 + i),
			}})
		}
	default:
		out = g711(codec, pcm, ptime)
	}
	for _, p := range out {
		p.PayloadType = payloadTypes[codec]
	}
	return out
}

func rateOf(codec transcode.Codec) int {
	if codec > transcode.PCMA {
		return 16000
	}
	return 8000
}

var allCodecs = []transcode.Codec{transcode.PCMU, transcode.PCMA, transcode.G722, transcode.Opus}

// level checks one tone in the second half of what was heard.
func (b *bed) level(who string, pcm []int16, rate int, hz, from, to float64) {
	b.t.Helper()
	if got := listen.Tone(pcm[len(pcm)/2:], rate, hz); got < from || got > to {
		b.t.Errorf("%s hears %v Hz at %.1f dB, want %v to %v", who, hz, got, from, to)
	}
}

const nothing = -127

// The source of what is above 4 kHz is a device, then another phone; a phone of the narrow band listens, too, and must
// not hear it turned into something lower.
func TestWideBandPhonesHearWhatIsAboveFourKilohertz(t *testing.T) {
	const d = 3 * time.Second
	for _, codec := range []transcode.Codec{transcode.G722, transcode.Opus} {
		t.Run(codec.String(), func(t *testing.T) {
			b := newBed(t, transcode.Options{})
			old, device := b.phone(transcode.PCMU), b.device()
			phone, other := b.phone(codec), b.phone(codec)
			mic := opusPackets{bitrate: 64000}.pack(t, chord(48000, 1000, 6000, d))
			for _, p := range []*transcode.Phone{old, phone, other} {
				b.send(link{delay: 5 * time.Millisecond}, mic, frame, b.toPeerSide(device, p))
			}
			b.send(link{}, packPhone(t, codec, chord(16000, 700, 5000, d), frame), frame, b.toPhoneSide(phone))
			b.send(link{}, packPhone(t, transcode.PCMU, listen.Sine(8000, 2500, -20, d), frame), frame, b.toPhoneSide(old))
			b.run(d - 100*time.Millisecond)
			wide, narrow, peers := b.heard[other].pcm(), b.heard[old].pcm(), b.heard[phone].peers
			for _, hz := range []float64{1000, 6000, 700, 5000, 2500} {
				b.level("wide-band phone", wide, 16000, hz, -21.5, -18.5)
			}
			for _, hz := range []float64{1000, 700} {
				b.level("narrow-band phone", narrow, 8000, hz, -21.5, -18.5)
			}
			for _, hz := range []float64{2000, 3000, 2500} { // 6 and 5 kHz folded at 4 kHz; itself
				b.level("narrow-band phone", narrow, 8000, hz, nothing, -55)
			}
			b.level("narrow-band phone folded in itself", wide, 16000, 5500, nothing, -55)
			b.level("peer of the wide-band phone", peers, 16000, 5000, -21.5, -18.5)
			b.level("peer of the wide-band phone", peers, 16000, 6000, nothing, -50)
		})
	}
}

func TestSpeechIsTheSameInEveryCodec(t *testing.T) {
	for _, codec := range allCodecs {
		for _, ptime := range []int{10, 20, 30, 40, 60} {
			if codec == transcode.Opus && ptime == 30 {
				continue // phones cannot make that; see TestPacketsAreAsLongAsAskedFor for what they are sent
			}
			t.Run(fmt.Sprint(codec, ptime), func(t *testing.T) {
				rate, length := rateOf(codec), time.Duration(ptime)*time.Millisecond
				b := newBed(t, transcode.Options{})
				phone, device := b.phoneWith(transcode.PhoneConfig{Codec: codec, Ptime: ptime}), b.device()
				alice, bob := said(speech.Alice, 48000)[:5*48000], said(speech.Bob, rate)[:5*rate]
				mic := opusPackets{bitrate: 64000}.pack(t, alice)
				want := decoded(t, mic)
				if rate == 16000 {
					want = listen.Resample(alice, 48000, rate)
				}
				b.send(link{seed: 2, jitter: 4 * time.Millisecond}, mic, frame, b.toPeerSide(device, phone))
				b.send(link{seed: 3, jitter: 4 * time.Millisecond}, packPhone(t, codec, bob, length), length, b.toPhoneSide(phone))
				b.run(5 * time.Second)
				b.same("phone", b.heard[phone].pcm(), want, rate, 0.95)
				b.same("peers", b.heard[phone].peers, bob, rate, 0.95)
				if s := phone.Stats().In; s.Bad+s.Lost+s.Late+s.Concealed > 0 {
					t.Errorf("%+v, want nothing bad, lost, late or concealed", s)
				}
			})
		}
	}
}

// The earpieces check that each packet has the length and follows the one before; here, how many there are.
func TestPacketsAreAsLongAsAskedFor(t *testing.T) {
	for _, c := range []struct {
		codec       transcode.Codec
		asked, sent int
	}{
		{transcode.PCMA, 0, 20},
		{transcode.PCMA, 15, 10},
		{transcode.PCMA, 50, 50},
		{transcode.PCMA, 200, 60},
		{transcode.Opus, 0, 20},
		{transcode.Opus, 30, 20},
		{transcode.Opus, 50, 40},
		{transcode.Opus, 60, 60},
	} {
		b := newBed(t, transcode.Options{})
		phone := b.phoneWith(transcode.PhoneConfig{Codec: c.codec, Ptime: c.asked})
		b.heard[phone].agree(c.codec, c.sent)
		b.run(1200 * time.Millisecond)
		if got, want := b.heard[phone].n, 1200/c.sent; got != want || phone.Stats().Frames != uint64(want) {
			t.Errorf("%v: asked for %d ms, %d packets in 1.2 s, want %d of %d ms", c.codec, c.asked, got, want, c.sent)
		}
	}
}

func TestCodecChangesDuringACall(t *testing.T) {
	const part = 1500 * time.Millisecond
	b := newBed(t, transcode.Options{})
	phone, other, device := b.phone(transcode.PCMU), b.phone(transcode.G722), b.device()
	b.desk.DropPhone(other) // the desk was wide-band for a moment
	mic := opusPackets{bitrate: 64000}.pack(t, chord(48000, 1000, 6000, 8*part))
	b.send(link{}, mic, frame, b.toPeerSide(device, phone))
	ssrc := uint32(0x1000)
	for i, step := range []transcode.PhoneConfig{
		{Codec: transcode.PCMA},
		{Codec: transcode.G722},
		{Codec: transcode.G722, Ptime: 40},
		{Codec: transcode.Opus},
		{Codec: transcode.Opus, Ptime: 60},
		{Codec: transcode.PCMU, Ptime: 30},
		{Codec: transcode.G722},
	} {
		e, before := b.heard[phone], b.heard[phone].codec
		step.PayloadType, step.SSRC, step.FirstSeq, step.FirstTimestamp = payloadTypes[step.Codec], uint32(0x5000+i), 900, 90000
		if err := phone.SetFormat(step); err != nil {
			t.Fatal(err)
		}
		rate := rateOf(step.Codec)
		*e = earpiece{t: t, rate: rate, opus: e.opus, first: e.first, last: e.last, step: e.step, n: e.n}
		if e.agree(step.Codec, step.Ptime); (before == transcode.Opus) != (step.Codec == transcode.Opus) {
			e.n, ssrc = 0, step.SSRC // RFC 7160: another clock, another stream
		}
		var err error
		if e.decoder, err = opus.NewDecoder(rate, 1); err != nil {
			t.Fatal(err)
		}
		e.first = 1<<32 - 5000 + uint32(b.ticks)*960
		e.sent = nil
		ptime := time.Duration(e.ptime) * time.Millisecond
		b.send(link{}, packPhone(t, step.Codec, listen.Sine(rate, 700, -20, part), ptime), ptime, b.toPhoneSide(phone))
		b.run(part)
		if e.n == 0 || e.last.SSRC != ssrc {
			t.Fatalf("%+v: %d packets, the last of SSRC %#x, want %#x", step, e.n, e.last.SSRC, ssrc)
		}
		who := fmt.Sprint("phone with ", step.Codec, step.Ptime)
		b.level(who, e.pcm(), rate, 1000, -21.5, -18.5)
		if rate == 16000 {
			b.level(who, e.pcm(), rate, 6000, -21.5, -18.5)
		}
		b.level("peer of the "+who, e.peers, rate, 700, -21.5, -18.5)
	}
}

func TestLossOnTheWayFromAWideBandPhoneIsConcealed(t *testing.T) {
	for _, codec := range []transcode.Codec{transcode.G722, transcode.Opus} {
		b := newBed(t, transcode.Options{})
		phone := b.phone(codec)
		bob := said(speech.Bob, 16000)
		b.send(link{seed: 5, loss: 0.03, jitter: 8 * time.Millisecond}, packPhone(t, codec, bob, frame), frame, b.toPhoneSide(phone))
		b.run(talk)
		b.same("peers", b.heard[phone].peers, bob, 16000, 0.85)
		if s := phone.Stats().In; s.Concealed < 5 || s.Lost < 5 {
			t.Errorf("%v: %+v, want packets lost and concealed", codec, s)
		}
	}
}

// A phone's clock that is off makes the desk cut and stretch sound, which must not be heard in the wide band either.
func TestWideBandPhoneMayDrift(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone := b.phone(transcode.G722)
	bob := repeat(said(speech.Bob, 16000), 5)
	b.send(link{seed: 6, ppm: 2000, jitter: 5 * time.Millisecond}, packPhone(t, transcode.G722, bob, frame), frame, b.toPhoneSide(phone))
	b.run(5 * talk)
	if s := phone.Stats(); s.In.Shortened == 0 || s.Delay.Held > 80*time.Millisecond || s.In.Late > 0 {
		t.Errorf("%+v, want sound cut and the delay kept below 80ms", s)
	}
	b.same("peers", b.heard[phone].peers, bob, 16000, 0.9)
}

func TestTonesAndPromptsSoundTheSameInTheWideBand(t *testing.T) {
	for _, codec := range allCodecs {
		b := newBed(t, transcode.Options{})
		phone, _ := b.phone(codec), b.phone(transcode.G722)
		phone.Play(transcode.Tone{Beats: []transcode.Beat{{Hz: [2]float64{425}, For: time.Second}}})
		phone.Say([][]int16{listen.Sine(8000, 1100, -26, 3*time.Second)})
		b.run(2 * time.Second)
		pcm, rate := b.heard[phone].pcm(), rateOf(codec)
		b.level(codec.String(), pcm, rate, 1100, -27, -25)
		b.level(codec.String(), pcm, rate, 425, -33, -31) // turned down by 12 dB
		if rate == 16000 {
			b.level(codec.String(), pcm, rate, 8000-1100, nothing, -60)
		}
	}
}

func TestKeysAreHeardInTheSoundOfWideBandPhones(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone := b.phoneWith(transcode.PhoneConfig{Codec: transcode.G722, InBandDigits: true})
	var pcm []int16
	for _, digit := range "19#" {
		tone, _ := transcode.DTMF(digit, 100*time.Millisecond)
		low, high := tone.Beats[0].Hz[0], tone.Beats[0].Hz[1]
		pcm = append(pcm, chord(16000, low, high, 100*time.Millisecond)...)
		pcm = append(pcm, make([]int16, 1600)...)
	}
	b.send(link{}, packPhone(t, transcode.G722, pcm, frame), frame, b.toPhoneSide(phone))
	b.run(800 * time.Millisecond)
	got := ""
	for digit, ok := phone.Digit(); ok; digit, ok = phone.Digit() {
		got += string(digit)
	}
	if got != "19#" {
		t.Errorf("keys %q, want 19#", got)
	}
}

// A phone with voice activity detection says once how loud the background is (RFC 3389), and then nothing.
func TestComfortNoiseOfAPhoneIsHeard(t *testing.T) {
	for _, codec := range []transcode.Codec{transcode.PCMU, transcode.G722} {
		b := newBed(t, transcode.Options{})
		phone, other := b.phone(codec), b.phone(codec)
		rate := rateOf(codec)
		voice := packPhone(t, codec, listen.Sine(rate, 700, -20, 4*time.Second), frame)
		for i := 50; i < 150; i++ {
			noise := *voice[i]
			noise.PayloadType, noise.Payload = 13, []byte{50, 128, 3}
			if voice[i] = nil; i == 50 {
				voice[i] = &noise
			}
		}
		for i := 150; i < len(voice); i++ {
			voice[i].SequenceNumber -= 99
		}
		b.send(link{}, voice, frame, b.toPhoneSide(phone))
		b.run(3900 * time.Millisecond)
		pcm := b.heard[other].pcm()
		if got := listen.Level(pcm[rate*3/2 : rate*5/2]); got < -53 || got > -47 {
			t.Errorf("%v: the pause is heard at %.1f dB, want -50", codec, got)
		}
		if got := listen.Tone(pcm[rate*33/10:], rate, 700); got < -21 || got > -19 {
			t.Errorf("%v: after the pause the tone is heard at %.1f dB, want -20", codec, got)
		}
		if s := phone.Stats().In; s.Bad+s.Lost+s.Late > 0 {
			t.Errorf("%v: %+v, want nothing bad, lost or late", codec, s)
		}
	}
}
