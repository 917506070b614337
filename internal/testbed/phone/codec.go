package phone

import (
	"fmt"

	"gopkg.in/hraban/opus.v2"
)

// codec is one a phone speaks.
type codec struct {
	name   string
	pt     uint8  // in offers of ours
	rtpmap string // what follows the number
	rate   int    // of its sound
	clock  int    // of RTP
	encode func(int16) byte
	decode func(byte) int16 // nil for Opus
}

var codecs = []codec{
	{"PCMU", 0, "PCMU/8000", Rate, 8000, encodeMuLaw, decodeMuLaw},
	{"PCMA", 8, "PCMA/8000", Rate, 8000, encodeALaw, decodeALaw},
	{"opus", 98, "opus/48000/2", WideRate, 48000, nil, nil},
}

func codecOf(name string) (codec, bool) {
	for _, c := range codecs {
		if c.name == name {
			return c, true
		}
	}
	return codec{}, false
}

// frameSamples is how much sound is in a packet of ours, frameTicks how much of the RTP clock.
func (c codec) frameSamples() int  { return c.rate / 50 }
func (c codec) frameTicks() uint32 { return uint32(c.clock / 50) }

// coder is a codec at work.
type coder struct {
	codec
	encoder *opus.Encoder
	decoder *opus.Decoder
}

func (c codec) start() (coder, error) {
	k := coder{codec: c}
	if c.decode != nil {
		return k, nil
	}
	var err error
	if k.encoder, err = opus.NewEncoder(c.rate, 1, opus.AppVoIP); err != nil {
		return k, fmt.Errorf("opus encoder: %w", err)
	}
	if k.decoder, err = opus.NewDecoder(c.rate, 1); err != nil {
		return k, fmt.Errorf("opus decoder: %w", err)
	}
	return k, nil
}

// pack encodes a frame.
func (k coder) pack(pcm []int16) []byte {
	payload := make([]byte, len(pcm))
	if k.encoder != nil {
		n, err := k.encoder.Encode(pcm, payload)
		if err != nil {
			n = 0 // an empty packet is heard as such by the other side
		}
		return payload[:n]
	}
	for i, x := range pcm {
		payload[i] = k.encode(x)
	}
	return payload
}

// unpack decodes a packet, of 120 ms at most.
func (k coder) unpack(payload []byte) []int16 {
	if k.decoder != nil {
		pcm := make([]int16, k.rate*120/1000)
		n, err := k.decoder.Decode(payload, pcm)
		if err != nil {
			return nil
		}
		return pcm[:n]
	}
	pcm := make([]int16, len(payload))
	for i, b := range payload {
		pcm[i] = k.decode(b)
	}
	return pcm
}
