package transcode

import (
	"fmt"

	"gopkg.in/hraban/opus.v2"
)

// Opus always has a 48 kHz RTP clock, RFC 7587 §4.1.
const opusClock = 48000 / Rate

// maxOpusSamples is the longest Opus packet, 120 ms (RFC 6716 §3.4, R5), in ticks.
const maxOpusSamples = Rate * 120 / 1000

// opusSamples returns how long a packet is in ticks, read from its first bytes (RFC 6716 §3.1, §3.2), or
// false when it cannot be a packet at all.
func opusSamples(payload []byte) (int, bool) {
	if len(payload) == 0 {
		return 0, false
	}
	frames := 1
	switch payload[0] & 3 {
	case 1, 2:
		frames = 2
	case 3:
		if len(payload) < 2 {
			return 0, false
		}
		frames = int(payload[1] & 0x3F)
	}
	samples := frames * opusFrameSamples(payload[0]>>3)
	return samples, samples > 0 && samples <= maxOpusSamples
}

// opusFrameSamples is the length of one frame of a configuration, RFC 6716 table 2.
func opusFrameSamples(config byte) int {
	const ms = Rate / 1000
	switch {
	case config < 12: // SILK: 10, 20, 40, 60 ms
		return [4]int{10 * ms, 20 * ms, 40 * ms, 60 * ms}[config&3]
	case config < 16: // hybrid: 10, 20 ms
		return 10 * ms << (config & 1)
	}
	return 5 * ms / 2 << (config & 3) // CELT: 2.5, 5, 10, 20 ms
}

// opusQuiet reports a packet that only says "silence goes on": one or two bytes (RFC 7587 §3.1.3; libwebrtc sends one
// such packet at the start of each pause). Decoding it would run the concealment, which costs as much as speech.
func opusQuiet(payload []byte) bool { return len(payload) <= 2 }

// opusHasFEC reports whether the first frame of a packet carries a copy of the frame before it (RFC 6716 §4.2.4: the
// LBRR flag follows the voice activity flags of the SILK layer).
func opusHasFEC(payload []byte) bool {
	if len(payload) < 2 || payload[0]&3 > 1 {
		return false
	}
	config := payload[0] >> 3
	if config >= 16 {
		return false // CELT has none
	}
	silkFrames := max(1, opusFrameSamples(config)/(Rate/50))
	return payload[1]>>(7-silkFrames)&1 == 1
}

// opusDecoder decodes into one band, mono.
type opusDecoder struct{ lib *opus.Decoder }

func newOpusDecoder(b band) (*opusDecoder, error) {
	lib, err := opus.NewDecoder(int(b)*Rate, 1)
	if err != nil {
		return nil, fmt.Errorf("opus decoder: %w", err)
	}
	return &opusDecoder{lib}, nil
}

// The binding takes the *capacity* of a slice as the length wanted, hence the full slice expressions below.

func (d *opusDecoder) decode(pcm []int16, p *packet) int {
	n, err := d.lib.Decode(p.payload, pcm[:len(pcm):len(pcm)])
	if err != nil {
		return 0
	}
	return n
}

func (d *opusDecoder) recover(pcm []int16, p *packet) bool {
	return opusHasFEC(p.payload) && d.lib.DecodeFEC(p.payload, pcm[:len(pcm):len(pcm)]) == nil
}

func (d *opusDecoder) conceal(pcm []int16) {
	if d.lib.DecodePLC(pcm[:len(pcm):len(pcm)]) != nil {
		clear(pcm)
	}
}

func (d *opusDecoder) heard([]int16) {}

// bridge is not needed: libopus smooths the return from its own concealment.
func (d *opusDecoder) bridge([]int16) {}

// opusEncoder makes what the peers of one phone hear, or a phone that speaks Opus.
//
// On clean links that is the phone's band in, CELT only ("restricted low delay"), complexity 0 at 48 kb/s: next to G.711
// this is transparent, costs a twentieth of a browser's settings and delays by 2.5 ms. CELT carries no forward error
// correction; while peers report loss the phone is encoded in SILK with FEC instead, at 24 kb/s, because below that
// libopus leaves the FEC out.
type opusEncoder struct{ lib *opus.Encoder }

const (
	cleanBitrate    = 48000
	lossyBitrate    = 24000 // 32000 in the wide band
	lossyComplexity = 3
)

func newCleanEncoder(b band) (*opusEncoder, error) {
	return newOpusEncoder(b, opus.AppRestrictedLowdelay, cleanBitrate, 0)
}

func newLossyEncoder(b band) (*opusEncoder, error) {
	e, err := newOpusEncoder(b, opus.AppVoIP, lossyBitrate+(int(b)-1)*lossyBitrate/3, lossyComplexity)
	if err != nil {
		return nil, err
	}
	if err := e.lib.SetInBandFEC(true); err != nil {
		return nil, fmt.Errorf("opus encoder: error correction: %w", err)
	}
	return e, nil
}

func newOpusEncoder(b band, app opus.Application, bitrate, complexity int) (*opusEncoder, error) {
	lib, err := opus.NewEncoder(int(b)*Rate, 1, app)
	if err != nil {
		return nil, fmt.Errorf("opus encoder: %w", err)
	}
	if err := lib.SetBitrate(bitrate); err != nil {
		return nil, fmt.Errorf("opus encoder: bit rate: %w", err)
	}
	if err := lib.SetComplexity(complexity); err != nil {
		return nil, fmt.Errorf("opus encoder: complexity: %w", err)
	}
	return &opusEncoder{lib}, nil
}

// expect tells the encoder how much is lost, in percent: how much it spends on FEC.
func (e *opusEncoder) expect(percent int) error { return e.lib.SetPacketLossPerc(percent) }

// encode returns the number of bytes written, 0 when libopus refused.
func (e *opusEncoder) encode(payload []byte, pcm []int16) int {
	n, err := e.lib.Encode(pcm, payload[:len(payload):len(payload)])
	if err != nil {
		return 0
	}
	return n
}
