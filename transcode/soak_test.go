package transcode_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pion/rtp"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

// mishap is something that happens to a source in the middle of a call, chosen by chance.
func mishap(rng *rand.Rand) func(*rtp.Header) {
	seq, ts, ssrc := uint16(rng.Uint32()), rng.Uint32(), rng.Uint32()
	switch rng.IntN(6) {
	case 0:
		return func(h *rtp.Header) { h.SequenceNumber += seq }
	case 1:
		return func(h *rtp.Header) { h.Timestamp += ts }
	case 2:
		return func(h *rtp.Header) { h.SSRC = ssrc; h.SequenceNumber += seq; h.Timestamp += ts }
	case 3:
		return func(h *rtp.Header) { h.Timestamp += ts % 16000 }
	case 4:
		return func(h *rtp.Header) { h.Timestamp -= ts % 16000 }
	}
	return func(*rtp.Header) {}
}

// After five seconds of any network and any mishap, and six of a good one, it must sound as if nothing had been.
func TestAnyTroubleIsOvercome(t *testing.T) {
	const trouble = 5 * time.Second
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 7))
		bad := func() link {
			return link{
				seed: seed, delay: time.Duration(rng.IntN(200)) * time.Millisecond, jitter: time.Duration(rng.IntN(200)) * time.Millisecond,
				loss: 0.3 * rng.Float64(), twice: 0.1 * rng.Float64(), ordered: rng.IntN(2) == 0,
				stall: time.Duration(rng.IntN(1500)) * time.Millisecond, stallAt: time.Duration(rng.IntN(4000)) * time.Millisecond,
			}
		}
		b := newBed(t, transcode.Options{})
		phone, device := b.phone(transcode.PCMU), b.device()
		mic := opusPackets{fec: true}.pack(t, repeat(said(speech.Alice, 48000), 2)[:17*48000])
		voice := g711(transcode.PCMU, repeat(said(speech.Bob, 8000), 2)[:17*8000], frame)
		clean := decoded(t, mic)[:12*8000]
		for _, packets := range [][]*rtp.Packet{mic, voice} {
			change := mishap(rng)
			for i := 100 + rng.IntN(150); i < len(packets); i++ {
				change(&packets[i].Header)
			}
		}
		n := int(trouble / frame)
		b.send(bad(), mic[:n], frame, b.toPeerSide(device, phone))
		b.send(bad(), voice[:n], frame, b.toPhoneSide(phone))
		b.run(trouble)
		good := link{seed: seed, delay: 20 * time.Millisecond, jitter: 5 * time.Millisecond}
		b.send(good, mic[n:], frame, b.toPeerSide(device, phone))
		b.send(good, voice[n:], frame, b.toPhoneSide(phone))
		b.run(11500 * time.Millisecond)

		for who, c := range map[string]struct {
			heard, source []int16
			in            transcode.StreamStats
			delay         transcode.Delay
		}{
			"device": {b.heard[phone].phone, clean, device.Stats().In, device.Stats().Delay},
			"phone":  {b.heard[phone].peers, said(speech.Bob, 8000), phone.Stats().In, phone.Stats().Delay},
		} {
			if m := listen.Compare(c.heard[11*8000:], c.source, 8000); m.Correlation < 0.95 || c.delay.Held > 45*time.Millisecond {
				t.Errorf("seed %d, %s: %v, held %v, %+v", seed, who, m, c.delay, c.in)
			}
		}
	}
}
