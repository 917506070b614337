package transcode

import "github.com/pion/rtp"

// Packets to a phone are from 10 to 60 ms long, as it asked for.
const (
	shortestPacket = Rate * 10 / 1000
	longestPacket  = Rate * 60 / 1000
	maxOutlet      = longestPacket + FrameSamples // ticks waiting at most
)

// outlet encodes what a phone hears, frame by frame, and packs it into packets of the length it wants.
type outlet struct {
	codec   Codec
	ticks   int // in a packet
	waiting int // ticks encoded, or for Opus to be encoded, and not yet sent
	packed  int // of them, those in the packet handed out last
	packet  rtp.Packet
	begun   bool
	step    uint32 // from the timestamp of the last packet to the next one
	skipped bool   // something is missing between them

	payload [maxOutlet]byte // one for each tick: G.711 and G.722 have 64 kb/s
	g722    g722Encoder
	opus    *opusEncoder
	pcm     [int(wide) * maxOutlet]int16 // Opus encodes whole packets
	coded   [3 * maxOpusPayload]byte
}

// packetTicks is the length of a packet for the asked-for number of milliseconds, 0 = 20. Opus has no frames of 30 or 50
// ms; a shorter packet never harms (RFC 8866 §6.4: ptime is a recommendation).
func packetTicks(c Codec, ptime int) int {
	ticks := ptime / 10 * shortestPacket
	switch {
	case ticks == 0:
		return FrameSamples
	case ticks > longestPacket:
		ticks = longestPacket
	}
	if c == Opus && ticks > FrameSamples && ticks < longestPacket {
		ticks = ticks / FrameSamples * FrameSamples
	}
	return ticks
}

// prepare makes what is needed for a codec.
func (o *outlet) prepare(c Codec) error {
	if c != Opus || o.opus != nil {
		return nil
	}
	var err error
	o.opus, err = newCleanEncoder(wide)
	return err
}

// agree takes what signalling agreed on. Only a codec with another RTP clock begins a new stream: RFC 7160 §4.1.
func (o *outlet) agree(c PhoneConfig) {
	if c.Codec != o.codec || o.packet.Version == 0 {
		o.waiting, o.packed = 0, 0
		o.g722.reset()
	}
	if o.packet.Version == 0 || c.Codec.clock() != o.codec.clock() {
		o.packet.Header = rtp.Header{
			Version: 2, Marker: true, SSRC: c.SSRC, SequenceNumber: c.FirstSeq, Timestamp: c.FirstTimestamp,
		}
		o.begun, o.step = false, 0
	}
	o.packet.PayloadType = c.PayloadType
	o.codec, o.ticks = c.Codec, packetTicks(c.Codec, c.Ptime)
}

// put takes a frame of the codec's band; nil is silence.
func (o *outlet) put(pcm []int16) {
	o.drop()
	if o.codec == Opus {
		room := o.pcm[int(wide)*o.waiting:][:wideSamples]
		if pcm == nil {
			clear(room)
		}
		copy(room, pcm)
	} else {
		o.encode(o.payload[o.waiting:][:FrameSamples], pcm)
	}
	o.waiting += FrameSamples
}

func (o *outlet) encode(payload []byte, pcm []int16) {
	switch {
	case o.codec == G722 && pcm == nil:
		o.g722.encode(payload, noSound[:])
	case o.codec == G722:
		o.g722.encode(payload, pcm)
	case pcm == nil:
		b := o.codec.silence()
		for i := range payload {
			payload[i] = b
		}
	default:
		o.codec.encode(payload, pcm)
	}
}

// next returns the next packet, nil when not enough waits. It is valid until the next call.
func (o *outlet) next() *rtp.Packet {
	o.drop()
	if o.waiting < o.ticks {
		return nil
	}
	o.packed = o.ticks
	o.packet.Payload = o.payload[:o.ticks]
	if o.codec == Opus {
		n := o.opus.encode(o.coded[:], o.pcm[:int(wide)*o.ticks])
		o.packet.Payload = o.coded[:n]
	}
	h := &o.packet.Header
	if o.begun {
		h.Marker, o.skipped = o.skipped, false
		h.SequenceNumber++
		h.Timestamp += o.step
	}
	o.begun = true
	o.step = uint32(o.ticks) * uint32(o.codec.clock())
	return &o.packet
}

// skip lets the time of frames pass that were never made: whoever sends on as if nothing were missing is late from then on (RFC 3550 §5.1).
// The marker says where sound begins again (RFC 3551 §4.1).
func (o *outlet) skip(frames uint32) {
	o.step += frames * FrameSamples * uint32(o.codec.clock())
	o.skipped = true
}

// drop forgets what the last packet carried.
func (o *outlet) drop() {
	if o.packed == 0 {
		return
	}
	if o.codec == Opus {
		copy(o.pcm[:], o.pcm[int(wide)*o.packed:int(wide)*o.waiting])
	} else {
		copy(o.payload[:], o.payload[o.packed:o.waiting])
	}
	o.waiting -= o.packed
	o.packed = 0
}

// goOn is how another desk continues the stream.
func (o *outlet) goOn(c PhoneConfig) PhoneConfig {
	c.SSRC, c.FirstSeq, c.FirstTimestamp = o.packet.SSRC, o.packet.SequenceNumber, o.packet.Timestamp
	if o.begun {
		c.FirstSeq++
		c.FirstTimestamp += o.step
	}
	return c
}
