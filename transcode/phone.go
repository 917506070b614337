package transcode

import "github.com/pion/rtp"

// PhoneConfig is what signalling agreed on for one phone.
type PhoneConfig struct {
	Codec          Codec
	PayloadType    uint8
	SSRC           uint32 // of the stream towards the phone
	FirstSeq       uint16
	FirstTimestamp uint32

	PeerPayloadType    uint8 // of Opus towards the peers of the phone's ghost
	PeerSSRC           uint32
	PeerFirstSeq       uint16
	PeerFirstTimestamp uint32

	// InBandDigits listens for DTMF in the sound of phones whose trunk carries digits in no better way; see
	// [Phone.Digit]. Off by default: music and voices can now and then sound like a digit.
	InBandDigits bool
}

// A phone that is silent is not encoded, like a browser with usedtx: after the hangover, which lets a receiver's
// concealment learn silence, one packet says so and then only a sign of life goes out now and then, because NATs,
// "no media" timers and browsers' track state want one.
const (
	gateRMS      = 16 // −66 dBFS: idle A-law is 8, idle lines are below
	gateHangover = 10 // frames
	keepAlive    = 20 // frames between signs of life

	maxOpusPayload = 400
)

// opusQuietByte is a packet without a frame in it: CELT, narrow band, 20 ms, mono. Receivers take such a packet for the
// start of a pause.
const opusQuietByte = 0x98

// Phone is a phone's place at a desk.
type Phone struct {
	desk   *Desk
	slot   int
	config PhoneConfig

	stream  stream
	decoder g711Decoder
	source  source
	voice   voice
	mixed   [FrameSamples]int16
	player  Player
	tone    [FrameSamples]int16

	prompter Prompter
	prompt   [FrameSamples]int16
	gain     int // of the others, of fullGain

	detector DigitDetector
	pressed  [8]rune // digits heard, the oldest first
	presses  int

	packet  rtp.Packet // towards the phone
	payload [FrameSamples]byte

	clean, lossy *opusEncoder // lossy is made when first wanted
	wantLossy    bool
	usingLossy   bool
	waited       int     // frames since wantLossy changed
	calm         int     // frames of little loss
	loss         float64 // last reported

	peerPacket  rtp.Packet // towards the peers
	peerPayload [maxOpusPayload]byte
	quiet       int // frames in a row
	resting     bool

	stats PhoneStats
}

// PhoneStats are the counters of one phone.
type PhoneStats struct {
	In         StreamStats
	Delay      Delay
	Level      int8   // of what it says, dBov
	Heard      int8   // level of what it hears, dBov
	Frames     uint64 // packets sent to the phone
	PeerFrames uint64 // packets sent to its peers
	Gated      uint64 // frames not encoded because the phone was silent
	PeerFEC    bool   // encoded with forward error correction, because peers report loss
	Muted      bool
}

func newPhone(c PhoneConfig) (*Phone, error) {
	clean, err := newCleanEncoder()
	if err != nil {
		return nil, err
	}
	p := &Phone{config: c, clean: clean, resting: true, quiet: keepAlive - 1, gain: fullGain}
	p.stream.clock = 1
	p.source.init(&p.decoder)
	p.source.use(&p.stream)
	p.voice.hush()
	p.packet.Header = rtp.Header{
		Version: 2, Marker: true, PayloadType: c.PayloadType, SSRC: c.SSRC,
		SequenceNumber: c.FirstSeq, Timestamp: c.FirstTimestamp,
	}
	p.peerPacket.Header = firstPeerHeader(c)
	return p, nil
}

// Mute makes the phone unheard by everyone, or heard again. It goes on hearing.
func (p *Phone) Mute(mute bool) {
	p.voice.muted = mute
}

// SetFormat changes what the phone is sent and expected to send, as after a re-INVITE (RFC 3264 §8.3.2). The stream goes
// on with its SSRC, sequence numbers and timestamps.
func (p *Phone) SetFormat(codec Codec, payloadType uint8) {
	p.config.Codec, p.config.PayloadType = codec, payloadType
	p.packet.PayloadType = payloadType
}

// Play lets the phone, and nobody else, hear a tone above all others; it replaces the one before.
func (p *Phone) Play(t Tone) { p.player.Play(t) }

// Playing reports whether a tone is being played.
func (p *Phone) Playing() bool { return p.player.Playing() }

// StopTone ends the tone.
func (p *Phone) StopTone() { p.player.Stop() }

// Level is how loud the phone was in the last frame, dBov.
func (p *Phone) Level() int8 { return p.voice.level }

// Next is the config with which another desk takes the phone over: what it and its peers are sent goes on as one stream.
func (p *Phone) Next() PhoneConfig {
	c := p.config
	c.FirstSeq, c.FirstTimestamp = p.packet.SequenceNumber, p.packet.Timestamp
	if p.stats.Frames > 0 {
		c.FirstSeq++
		c.FirstTimestamp += FrameSamples
	}
	c.PeerFirstSeq = p.peerPacket.SequenceNumber + 1
	c.PeerFirstTimestamp = p.peerPacket.Timestamp + FrameSamples*opusClock
	return c
}

// Stats returns the counters.
func (p *Phone) Stats() PhoneStats {
	s := p.stats
	s.In = p.stream.stats
	s.In.Lost = p.stream.lost()
	s.Delay = p.source.delay()
	s.Level = p.voice.level
	s.PeerFEC = p.usingLossy
	s.Muted = p.voice.muted
	return s
}

// receive checks a packet of the phone and files it.
func (p *Phone) receive(pkt *rtp.Packet, now int64) {
	kind, samples := p.classify(pkt)
	if samples == 0 {
		p.stream.stats.Bad++
		return
	}
	p.stream.put(&pkt.Header, kind, samples, pkt.Payload, now)
}

// classify returns no samples when the packet is refused. A phone may change between the two laws by the static
// payload types alone, and send comfort noise (RFC 3389) in pauses.
func (p *Phone) classify(pkt *rtp.Packet) (packetKind, int) {
	const shortest, longest = Rate * 5 / 1000, maxOpusSamples
	kind := kindULaw
	switch pkt.PayloadType {
	case p.config.PayloadType:
		if p.config.Codec == PCMA {
			kind = kindALaw
		}
	case payloadPCMU:
	case payloadPCMA:
		kind = kindALaw
	case payloadComfortNoise:
		return kindQuiet, FrameSamples
	default:
		return 0, 0
	}
	if n := len(pkt.Payload); n >= shortest && n <= longest {
		return kind, n
	}
	return 0, 0
}

// pull plays the next frame of the phone into its voice.
func (p *Phone) pull(now int64) {
	if p.voice.muted && !p.config.InBandDigits {
		p.source.pause()
		p.voice.hush()
		return
	}
	p.voice.heard = p.source.pull(now, p.voice.pcm[:])
	p.voice.listen()
	if p.config.InBandDigits { // of muted ones, too: a key ends that
		p.hearDigits()
	}
	if p.voice.muted {
		p.voice.hush()
	}
}

func (p *Phone) hearDigits() {
	digit, ok := p.detector.Hear(p.voice.pcm[:])
	if !ok {
		return
	}
	if p.presses == len(p.pressed) { // nobody asks: the oldest are forgotten
		copy(p.pressed[:], p.pressed[1:])
		p.presses--
	}
	p.pressed[p.presses] = digit
	p.presses++
}

// Digit returns the next digit heard in the phone's sound, false when there is none: to be asked after each tick where
// [PhoneConfig.InBandDigits] is set.
func (p *Phone) Digit() (rune, bool) {
	if p.presses == 0 {
		return 0, false
	}
	digit := p.pressed[0]
	copy(p.pressed[:], p.pressed[1:])
	p.presses--
	return digit, true
}

// toPhone packs a frame for the phone; no frame is silence.
func (p *Phone) toPhone(pcm []int16) *rtp.Packet {
	p.stats.Heard = minLevel
	if pcm == nil {
		b := p.config.Codec.silence()
		for i := range p.payload {
			p.payload[i] = b
		}
	} else {
		p.config.Codec.encode(p.payload[:], pcm)
		p.stats.Heard = levelOf(energy(pcm), len(pcm))
	}
	h := &p.packet.Header
	if p.stats.Frames > 0 {
		h.Marker = false
		h.SequenceNumber++
		h.Timestamp += FrameSamples
	}
	p.stats.Frames++
	p.packet.Payload = p.payload[:]
	return &p.packet
}
