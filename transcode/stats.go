package transcode

import "time"

// StreamStats are the counters of what came from one phone or one device.
type StreamStats struct {
	Packets    uint64 // accepted
	Bad        uint64 // refused: unknown payload type, impossible payload, refused by the codec
	Lost       uint64 // never came, or came too late to be held
	Late       uint64 // came after their turn
	Duplicate  uint64
	Reordered  uint64 // came after a younger one and still in time
	Stray      uint64 // of a second source that did not take over
	Restarts   uint64 // new SSRC, or a jump of sequence number or timestamp
	Concealed  uint64 // frames made up because nothing was there
	Recovered  uint64 // frames recovered from forward error correction
	Skipped    uint64 // packets left out to catch up after a stall
	Shortened  uint64 // times sound was cut out to shorten the delay or follow a fast clock
	Lengthened uint64 // times sound was put in to lengthen the delay or follow a slow clock
}

// Delay is what the jitter buffer of a source adds.
type Delay struct {
	Target time.Duration // how long the fastest packets should be held
	Held   time.Duration // how long the sound played last was held, against the fastest packets
}

func (s *source) delay() Delay {
	if s.stream == nil {
		return Delay{}
	}
	return Delay{Target: time.Duration(s.stream.pace.target), Held: time.Duration(s.held)}
}

// add sums the counters of several streams.
func (t *StreamStats) add(s *stream) {
	t.Packets += s.stats.Packets
	t.Bad += s.stats.Bad
	t.Lost += s.lost()
	t.Late += s.stats.Late
	t.Duplicate += s.stats.Duplicate
	t.Reordered += s.stats.Reordered
	t.Stray += s.stats.Stray
	t.Restarts += s.stats.Restarts
	t.Concealed += s.stats.Concealed
	t.Recovered += s.stats.Recovered
	t.Skipped += s.stats.Skipped
	t.Shortened += s.stats.Shortened
	t.Lengthened += s.stats.Lengthened
}
