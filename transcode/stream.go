package transcode

import (
	"math"
	"time"

	"github.com/pion/rtp"
)

// Limits of what is taken for one uninterrupted stream.
const (
	ringSize = 64 // packets held at most: more than a second

	maxDropout  = 3000 // RFC 3550 A.1: larger jumps of the sequence number are a restart
	maxMisorder = 100

	maxShift   = int64(time.Second) // larger jumps of the timestamp against the clock are a restart
	takeOver   = int64(50 * time.Millisecond)
	lateInARow = 5
)

// packetKind says what to do with a payload.
type packetKind uint8

const (
	kindULaw packetKind = iota
	kindALaw
	kindG722
	kindOpus
	kindQuiet // "silence from here": never decoded
	kindNoise // the same, with the level of the background
)

// packet is one slot of a stream's ring. The payload's memory is kept and used again.
type packet struct {
	full    bool
	kind    packetKind
	seq     int64 // extended sequence number
	at      int64 // media time of its first sample, in ticks
	samples int64 // how many ticks it lasts
	came    int64 // time of arrival
	payload []byte
}

// quiet says that the packet has no sound in it.
func (p *packet) quiet() bool { return p.kind >= kindQuiet }

// stream puts the packets of one RTP source in order and holds them: packets, not sound, so that it costs nothing to
// hold the copies that are not decoded.
type stream struct {
	clock   int64 // RTP clock ticks in one of media time
	started bool
	ssrc    uint32
	high    int64 // highest extended sequence number seen
	highTS  int64 // extended timestamp of the youngest packet, in RTP clock ticks
	low     int64 // lower ones have been taken or given up
	anchor  bool  // low counts: the stream is being played
	ring    [ringSize]packet
	pace    pace
	arrived int64 // time of the last accepted packet
	lateRun int

	candidate  rtp.Header // of the packet that did not fit; a second one in a row that fits it is a restart
	candidates int

	received uint64 // since the restart, duplicates not counted
	first    int64  // extended sequence number at the restart
	lostPast uint64 // of earlier sources
	stats    StreamStats
}

// put files a packet. It reports false when the packet was refused.
func (s *stream) put(h *rtp.Header, kind packetKind, samples int, payload []byte, now int64) bool {
	if !s.started {
		s.restart(h, now)
	}
	seq, ts := s.extend(h)
	if h.SSRC != s.ssrc || !s.plausible(seq, ts, now) {
		if !s.suspect(h, now) {
			return false
		}
		s.stats.Restarts++
		s.restart(h, now)
		seq, ts = s.extend(h)
	}
	s.candidates = 0
	p := packet{kind: kind, seq: seq, at: floorDiv(ts, s.clock), samples: int64(samples), came: now}
	if s.anchor && seq < s.low || seq <= s.high-ringSize {
		if old := s.slot(seq); old.seq == seq && old.at == p.at {
			s.stats.Duplicate++
			return false
		}
		if !s.late(p.at, now) {
			return false
		}
		s.restart(h, now) // the far end stepped its sequence numbers back a little
		p.seq, ts = s.extend(h)
		p.at = floorDiv(ts, s.clock)
	}
	return s.file(p, ts, payload, now)
}

// extend unrolls sequence number and timestamp around the youngest packet.
func (s *stream) extend(h *rtp.Header) (seq, ts int64) {
	seq = s.high + int64(int16(h.SequenceNumber-uint16(s.high)))
	ts = s.highTS + int64(int32(h.Timestamp-uint32(s.highTS)))
	return seq, ts
}

// plausible reports whether a packet can belong to the stream as it is known.
func (s *stream) plausible(seq, ts, now int64) bool {
	if seq > s.high+maxDropout || seq < s.high-maxMisorder {
		return false
	}
	if s.pace.packets == 0 {
		return true
	}
	shift := delayOf(floorDiv(ts, s.clock), now) - s.pace.floor
	return -maxShift < shift && shift < maxShift
}

// suspect remembers a packet that does not fit and reports true when it is the second in a row of the same new source.
// A source that is still being heard is not displaced by another SSRC.
func (s *stream) suspect(h *rtp.Header, now int64) bool {
	c := &s.candidate
	follows := s.candidates > 0 && h.SSRC == c.SSRC && h.SequenceNumber == c.SequenceNumber+1
	c.SSRC, c.SequenceNumber = h.SSRC, h.SequenceNumber
	s.candidates++
	if !follows {
		s.candidates = 1
	}
	if follows && (h.SSRC == s.ssrc || now-s.arrived >= takeOver) {
		return true
	}
	s.stats.Stray++
	return false
}

// restart forgets all packets and begins with the given one.
func (s *stream) restart(h *rtp.Header, now int64) {
	s.lostPast = s.lost()
	s.started = true
	s.ssrc = h.SSRC
	s.high = int64(h.SequenceNumber)
	s.first = s.high
	s.highTS = int64(h.Timestamp)
	s.received = 0
	s.arrived = now
	s.resync()
}

// resync forgets the packets and the pace but not the counters: the next packet begins anew.
func (s *stream) resync() {
	for i := range s.ring {
		s.ring[i].full = false
		s.ring[i].seq = math.MinInt64
	}
	s.low = s.high - ringSize + 1
	s.pace.reset()
	s.anchor = false
	s.lateRun = 0
}

// forget forgets the source, not what was counted of it.
func (s *stream) forget() {
	s.lostPast = s.lost()
	s.started = false
	s.resync()
}

// slot is where a packet lies, if it is held at all.
func (s *stream) slot(seq int64) *packet { return &s.ring[seq&(ringSize-1)] }

// rebase learns the pace anew from one packet: what came before it says nothing about what comes after.
func (s *stream) rebase(p *packet) {
	s.pace.reset()
	s.pace.add(p.at, p.came)
}

func (s *stream) file(p packet, ts int64, payload []byte, now int64) bool {
	slot := s.slot(p.seq)
	if slot.seq == p.seq {
		s.stats.Duplicate++
		return false
	}
	if p.seq < s.high {
		s.stats.Reordered++
	} else {
		s.high, s.highTS = p.seq, ts
	}
	p.full, p.payload = true, append(slot.payload[:0], payload...)
	*slot = p
	s.received++
	s.stats.Packets++
	s.arrived = now
	s.pace.add(p.at, now)
	return true
}

// late counts a packet whose turn is over. It reports true when there were so many in a row that the far end must have
// stepped back.
func (s *stream) late(at, now int64) bool {
	s.stats.Late++
	s.pace.add(at, now)
	s.lateRun++
	if s.lateRun < lateInARow {
		return false
	}
	s.stats.Restarts++
	return true
}

// oldest returns the packet to be played next without taking it, nil when there is none.
func (s *stream) oldest() *packet {
	s.low = max(s.low, s.high-ringSize+1)
	for seq := s.low; seq <= s.high; seq++ {
		if p := s.slot(seq); p.full && p.seq == seq {
			return p
		}
	}
	return nil
}

// take removes a packet that oldest returned. Its payload stays readable until the next put.
func (s *stream) take(p *packet) {
	p.full = false
	s.low = p.seq + 1
	s.lateRun = 0
}

// lost follows RFC 3550 A.3: expected less received, here without duplicates.
func (s *stream) lost() uint64 {
	if !s.started {
		return s.lostPast
	}
	expected := uint64(s.high - s.first + 1)
	if s.received >= expected {
		return s.lostPast
	}
	return s.lostPast + expected - s.received
}

// delayOf is the arrival of a packet less its media time.
func delayOf(at, now int64) int64 { return now - at*int64(time.Second/Rate) }

// floorDiv rounds towards minus infinity, so that media time has no seam at zero.
func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}
