package transcode

// Codec is what a phone speaks.
type Codec uint8

// What phones speak: the two laws of ITU-T G.711, ITU-T G.722 at 64 kb/s, and Opus. The last two are wide-band.
const (
	PCMU Codec = iota
	PCMA
	G722
	Opus
)

// String returns the name the codec has in SDP.
func (c Codec) String() string {
	switch c {
	case PCMU:
		return "PCMU"
	case PCMA:
		return "PCMA"
	case G722:
		return "G722"
	case Opus:
		return "opus"
	}
	return "unknown"
}

// WideBand says that the codec carries more than 4 kHz.
func (c Codec) WideBand() bool { return c.band() == wide }

// band is what the codec carries. Opus is used up to 8 kHz of sound, as G.722 is.
func (c Codec) band() band {
	if c == G722 || c == Opus {
		return wide
	}
	return narrow
}

// clock is how many ticks of the RTP clock are one of media time. G.722's clock runs at 8000 Hz though it has 16000
// samples a second: RFC 3551 §4.5.2 keeps an old mistake.
func (c Codec) clock() int64 {
	if c == Opus {
		return opusClock
	}
	return 1
}

// Static payload types, RFC 3551 §6.
const (
	payloadPCMU         = 0
	payloadPCMA         = 8
	payloadComfortNoise = 13
)
