package transcode

import (
	"errors"
	"fmt"

	"github.com/pion/rtp"
)

// PhoneConfig is what signalling agreed on for one phone.
type PhoneConfig struct {
	Codec          Codec
	PayloadType    uint8
	Ptime          int    // milliseconds in a packet towards the phone, 10 to 60; 0: 20
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

// opusQuietByte is a packet without a frame in it: CELT, 20 ms, mono. Receivers take such a packet for the start of a
// pause.
func opusQuietByte(b band) byte {
	if b == wide {
		return 23 << 3 // RFC 6716 table 2
	}
	return 19 << 3
}

// Phone is a phone's place at a desk.
type Phone struct {
	desk   *Desk
	slot   int
	config PhoneConfig

	stream  stream
	decoder phoneDecoder
	source  source
	voice   voice
	mixed   [wideSamples]int16
	ear     narrower // of a narrow-band phone at a wide-band desk
	player  Player
	tone    overlay

	prompter Prompter
	prompt   overlay
	gain     int // of the others, of fullGain

	detector DigitDetector
	thin     narrower // for it
	pressed  [8]rune  // digits heard, the oldest first
	presses  int

	outlet outlet // towards the phone

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
	p := &Phone{config: c, resting: true, quiet: keepAlive - 1, gain: fullGain}
	p.source.init(&p.decoder, c.Codec.band())
	if err := p.agree(c); err != nil {
		return nil, err
	}
	p.peerPacket.Header = firstPeerHeader(c)
	return p, nil
}

// agree takes what signalling agreed on. What may fail comes first, so that nothing has changed if it does.
func (p *Phone) agree(c PhoneConfig) error {
	if c.Codec > Opus {
		return fmt.Errorf("codec %d: %w", c.Codec, errors.ErrUnsupported)
	}
	if err := p.outlet.prepare(c.Codec); err != nil {
		return err
	}
	b := c.Codec.band()
	clean := p.clean
	if b != p.voice.band {
		var err error
		if clean, err = newCleanEncoder(b); err != nil {
			return err
		}
	}
	if b == wide && c.Codec != p.decoder.codec || b != p.voice.band {
		if err := p.decoder.agree(c.Codec); err != nil {
			return err
		}
		p.stream.forget() // what is held was meant for another decoder
		p.source.use(&p.stream)
		p.source.retune(&p.decoder, b)
	}
	if b != p.voice.band {
		p.clean, p.lossy, p.usingLossy, p.wantLossy = clean, nil, false, false
		p.voice.band = b
		p.voice.hush()
	}
	p.outlet.agree(c)
	p.stream.clock = c.Codec.clock()
	return nil
}

// Mute makes the phone unheard by everyone, or heard again. It goes on hearing.
func (p *Phone) Mute(mute bool) {
	p.voice.muted = mute
}

// SetFormat changes what the phone is sent and expected to send, as after a re-INVITE (RFC 3264 §8.3.2): codec, payload
// type, ptime, and whether its sound is listened to for digits. The stream goes on with its SSRC, sequence numbers and timestamps, unless its clock changes (RFC 7160
// §4.1): then the one in c begins.
func (p *Phone) SetFormat(c PhoneConfig) error {
	if p.desk == nil {
		return nil
	}
	if err := p.agree(c); err != nil {
		return fmt.Errorf("change format: %w", err)
	}
	p.config.Codec, p.config.PayloadType, p.config.Ptime = c.Codec, c.PayloadType, c.Ptime
	if c.InBandDigits != p.config.InBandDigits {
		p.config.InBandDigits = c.InBandDigits
		p.detector, p.presses = DigitDetector{}, 0 // half a key of before must not be the first
	}
	return p.desk.retune()
}

// skip lets time pass in both streams, if they have begun.
func (p *Phone) skip(frames uint32) {
	if !p.outlet.begun {
		return
	}
	p.outlet.skip(frames)
	p.peerPacket.Timestamp += frames * FrameSamples * opusClock
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
	c := p.outlet.goOn(p.config)
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
// payload types alone, and send comfort noise (RFC 3389) in pauses, as long as the clock is that of the stream.
func (p *Phone) classify(pkt *rtp.Packet) (packetKind, int) {
	agreed := pkt.PayloadType == p.config.PayloadType
	switch n := len(pkt.Payload); {
	case n == 0:
	case agreed && p.config.Codec == Opus:
		return classifyOpus(pkt.Payload)
	case p.config.Codec == Opus:
	case agreed && p.config.Codec == G722:
		return classifyBytes(kindG722, n)
	case agreed && p.config.Codec == PCMA, !agreed && pkt.PayloadType == payloadPCMA:
		return classifyBytes(kindALaw, n)
	case agreed, pkt.PayloadType == payloadPCMU:
		return classifyBytes(kindULaw, n)
	case pkt.PayloadType == payloadComfortNoise:
		return kindNoise, FrameSamples
	}
	return 0, 0
}

// classifyBytes takes the codecs of 64 kb/s: each byte is a tick.
func classifyBytes(kind packetKind, n int) (packetKind, int) {
	const shortest, longest = Rate * 5 / 1000, maxOpusSamples
	if n < shortest || n > longest {
		return 0, 0
	}
	return kind, n
}

func classifyOpus(payload []byte) (packetKind, int) {
	samples, ok := opusSamples(payload)
	switch {
	case !ok || len(payload) > maxPeerPayload:
		return 0, 0
	case opusQuiet(payload):
		return kindQuiet, samples
	}
	return kindOpus, samples
}

// pull plays the next frame of the phone into its voice.
func (p *Phone) pull(now int64) {
	if p.voice.muted && !p.config.InBandDigits {
		p.source.pause()
		p.voice.hush()
		return
	}
	p.voice.heard = p.source.pull(now, p.voice.pcm())
	p.voice.listen()
	if p.config.InBandDigits { // of muted ones, too: a key ends that
		p.hearDigits()
	}
	if p.voice.muted {
		p.voice.hush()
	}
}

func (p *Phone) hearDigits() {
	pcm := p.voice.pcm()
	if p.voice.band == wide {
		var thin [FrameSamples]int16
		p.thin.narrow(thin[:], pcm)
		pcm = thin[:]
	}
	digit, ok := p.detector.Hear(pcm)
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

// toPhone takes a frame for the phone; no frame is silence.
func (p *Phone) toPhone(pcm []int16) {
	p.stats.Heard = minLevel
	if pcm != nil {
		p.stats.Heard = levelOf(energy(pcm), len(pcm))
	}
	p.outlet.put(pcm)
}

// overlay is a frame of sound at 8 kHz that one phone hears with the others.
type overlay struct {
	pcm   [FrameSamples]int16
	widen widener
	wide  [wideSamples]int16
}

// in returns the frame in a band, which is to be asked for once for each frame.
func (o *overlay) in(b band) []int16 {
	if b == narrow {
		return o.pcm[:]
	}
	o.widen.widen(o.wide[:], o.pcm[:])
	return o.wide[:]
}
