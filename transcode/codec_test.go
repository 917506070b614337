package transcode_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pion/rtp"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

func TestBrowsersMaySendOpusOfAnyKind(t *testing.T) {
	const ms = time.Millisecond
	alice := said(speech.Alice, 48000)[:5*48000]
	for name, o := range map[string]opusPackets{
		"10ms":                 {ptime: 10 * ms},
		"40ms":                 {ptime: 40 * ms},
		"60ms":                 {ptime: 60 * ms},
		"60ms FEC narrow":      {ptime: 60 * ms, bitrate: 16000, fec: true},
		"stereo":               {channels: 2, bitrate: 64000},
		"high rate":            {bitrate: 128000},
		"5ms CELT":             {ptime: 5 * ms, bitrate: 96000},
		"2.5ms CELT":           {ptime: 2500 * time.Microsecond, bitrate: 128000},
		"narrow with FEC, DTX": {bitrate: 24000, fec: true, dtx: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, transcode.Options{})
			phone, device := b.phone(transcode.PCMA), b.device()
			sent := o.pack(t, alice)
			ptime := max(o.ptime, 2500*time.Microsecond)
			if o.ptime == 0 {
				ptime = frame
			}
			b.send(link{seed: 4, delay: 10 * ms, jitter: 4 * ms}, sent, ptime, b.toPeerSide(device, phone))
			b.run(5 * time.Second)
			m := b.same("phone", b.heard[phone].phone, decoded(t, sent), 8000, 0.97)
			s := device.Stats().In
			if s.Bad+s.Lost+s.Late+s.Concealed > 0 || m.Delay > 130*ms {
				t.Errorf("%v, %+v, want nothing bad, lost, late or concealed", m, s)
			}
		})
	}
}

func TestLevelsAreTrueOverTheWholeRange(t *testing.T) {
	for _, level := range []float64{-9, -12, -30, -45} {
		b := newBed(t, transcode.Options{})
		phone, other, device := b.phone(transcode.PCMU), b.phone(transcode.PCMA), b.device()
		b.send(link{}, g711(transcode.PCMU, listen.Sine(8000, 700, level, 2*time.Second), frame), frame, b.toPhoneSide(phone))
		b.send(link{}, opusPackets{bitrate: 64000}.pack(t, listen.Sine(48000, 1100, level, 2*time.Second)), frame, b.toPeerSide(device, phone))
		b.run(1900 * time.Millisecond)
		peers := b.heard[phone].peers
		for who, got := range map[string]float64{
			"other phone hears phone":  listen.Tone(b.heard[other].phone[8000:], 8000, 700),
			"other phone hears device": listen.Tone(b.heard[other].phone[8000:], 8000, 1100),
			"peers hear phone":         listen.Tone(peers[8000:], 8000, 700),
			"counter of phone":         float64(phone.Stats().Level),
			"counter of device":        float64(device.Stats().Level),
		} {
			if math.Abs(got-level) > 1 {
				t.Errorf("%s at %.1f dB, want %.1f within 1", who, got, level)
			}
		}
	}
}

// Packets that were damaged or made up must be counted, not crash, and not keep what follows from being heard.
func TestDeskLivesThroughCorruptPackets(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 9))
	b := newBed(t, transcode.Options{})
	phone, device := b.phone(transcode.PCMU), b.device()
	sent := opusPackets{fec: true}.pack(t, said(speech.Alice, 48000))
	voice := g711(transcode.PCMU, said(speech.Bob, 8000), frame)
	for _, packets := range [][]*rtp.Packet{sent, voice} {
		for i := range packets {
			if i > 350 {
				break
			}
			switch p := packets[i]; rng.IntN(6) {
			case 0:
				p.Payload = p.Payload[:rng.IntN(len(p.Payload))]
			case 1:
				for range 4 {
					p.Payload[rng.IntN(len(p.Payload))] = byte(rng.Uint32())
				}
			case 2:
				p.Payload = make([]byte, rng.IntN(1500))
				for k := range p.Payload {
					p.Payload[k] = byte(rng.Uint32())
				}
			case 3:
				p.PayloadType = uint8(rng.IntN(128))
			}
		}
	}
	b.send(link{delay: 10 * time.Millisecond}, sent, frame, b.toPeerSide(device, phone))
	b.send(link{delay: 10 * time.Millisecond}, voice, frame, b.toPhoneSide(phone))
	b.run(talk)
	t.Logf("device %+v", device.Stats())
	t.Logf("phone %+v", phone.Stats())
	if device.Stats().In.Bad == 0 || phone.Stats().In.Bad == 0 {
		t.Error("no packet was counted as bad")
	}
	b.same("phone", b.heard[phone].phone[8*8000:], decoded(t, opusPackets{fec: true}.pack(t, said(speech.Alice, 48000))), 8000, 0.97)
	b.same("peers", b.heard[phone].peers[8*8000:], said(speech.Bob, 8000), 8000, 0.97)
}
