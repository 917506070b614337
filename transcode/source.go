package transcode

import (
	"math"
	"time"
)

const (
	frameTime  = int64(FrameDuration)
	sampleTime = int64(time.Second / Rate)

	maxConcealed = 3                     // frames in a row; then silence
	maxBridged   = Rate * 200 / 1000     // samples: longer holes are not concealed but waited out
	maxRecovered = Rate * 60 / 1000      // samples: a hole this long may be filled from the FEC of the packet after it
	maxCatchUp   = maxTarget + frameTime // held longer than that after a stall, packets are left out
	maxExcess    = 2 * maxTarget         // the same while playing: the clock of the source has jumped
	maxStale     = 2 * maxTarget         // never begin with a packet that came longer ago
	warmUp       = 5 * frameTime
	forgetAnchor = 25                  // frames of silence after which any packet may begin
	rampSamples  = Rate * 5 / 2 / 1000 // 2.5 ms: begin and end without a click

	slackBand    = 5 * int64(time.Millisecond)
	wasteSamples = Rate * 5 / 1000
	hurryAt      = 60 * int64(time.Millisecond)
	adaptEvery   = 10 // packets between two changes of the delay
	adaptHurried = 5
	adaptRetry   = 3 // packets until the next look when nothing could be done
)

// decoder turns held packets into sound at the desk's rate.
type decoder interface {
	decode(pcm []int16, p *packet) int      // returns 0 when the payload is refused
	recover(pcm []int16, next *packet) bool // fill what came just before next from its FEC
	conceal(pcm []int16)                    // make something up that goes on as the sound did
	heard(pcm []int16)                      // pcm was decoded and will be played
	bridge(pcm []int16)                     // pcm is the first sound after conceal: join them
}

// source plays a stream: a frame each time pull is called. It counts in ticks of media time, whatever the band.
//
//	         due (slack >= target)
//	silent ------------------------> playing
//	  ^                                 |  next packet missing: recover or conceal, at most 3 frames
//	  +---------------------------------+
//	    DTX packet, pause, or 3 frames concealed
//
// Slack is by how much later than the fastest packet the next one could have come and still have made its turn. It is
// the delay of the buffer, measured without noise; drift of the far clock and a changing target both show as slack that
// leaves its band, and are answered by cutting or stretching sound, in silence if possible.
type source struct {
	stream  *stream
	decoder decoder
	fifo    fifo
	playing bool
	next    int64 // media time the next packet should begin with
	owed    int64 // samples concealed while nothing was there, not yet counted in next
	missing int   // frames concealed in a row
	silence int   // frames of silence in a row
	behind  int   // packets in a row whose media time was over
	broken  bool  // the last packet was refused by the codec: what follows it is not a pause
	fadeIn  bool  // the next sound begins after silence
	eager   bool  // begin as near to the target as possible: a copy just chosen, not a stall just over

	measured  int   // packets since the last change of delay
	least     int64 // slack, since the last change of delay
	leastLeft int   // least number of samples still in the fifo when a packet was taken

	held int64 // delay of the packet taken last

	comfort comfort
	decoded int // samples of the last packet, still in scratch

	scratch [int(wide) * maxOpusSamples]int16
}

func (s *source) init(d decoder, b band) {
	s.decoder = d
	s.fifo.band = b
	s.measureAgain()
}

// retune goes on in another band, with a decoder that begins anew.
func (s *source) retune(d decoder, b band) {
	s.decoder = d
	s.fifo.retune(b)
	s.comfort.stop()
	s.decoded = 0
}

// sound is the scratch memory for so many ticks.
func (s *source) sound(ticks int64) []int16 { return s.scratch[:int(ticks)*int(s.fifo.band)] }

// use switches to another stream, or back to the same one after a pause in which it was not played.
func (s *source) use(stream *stream) {
	if s.stream != nil {
		s.stream.anchor = false
	}
	s.stop()
	s.comfort.stop()
	s.stream = stream
	s.eager = true
	if stream != nil {
		stream.anchor = false
	}
}

// pause stops playing while packets go on being filed.
func (s *source) pause() {
	if s.playing || !s.eager {
		s.use(s.stream)
		s.fifo = fifo{band: s.fifo.band}
	}
}

// pull plays one frame into out and reports false when it is silence without any sound.
func (s *source) pull(now int64, out []int16) bool {
	for s.fifo.len() < FrameSamples && s.refill(now) {
	}
	if s.playing {
		s.adapt()
		s.silence = 0
	} else if s.silence++; s.silence == forgetAnchor && s.stream != nil {
		s.stream.anchor = false
	}
	n := s.fifo.take(out)
	if !s.playing && s.comfort.fill(out[n:]) {
		return true
	}
	clear(out[n:])
	return n > 0
}

// refill adds sound to the fifo and reports false when there is none to add for now.
func (s *source) refill(now int64) bool {
	if s.stream == nil {
		return false
	}
	p := s.due()
	switch {
	case !s.playing:
		return s.resume(p, now)
	case p == nil:
		return s.starve()
	case p.at-s.next <= s.owed:
		s.measure(p, now)
		return s.play(p)
	}
	s.next += s.owed
	s.owed = 0
	return s.cross(p, now)
}

// due returns the oldest packet whose turn is not over.
func (s *source) due() *packet {
	for {
		p := s.stream.oldest()
		if p == nil || !s.stream.anchor || p.at+p.samples/2 >= s.next {
			return p
		}
		s.stream.take(p)
		s.stream.stats.Late++
		if s.behind++; s.behind >= lateInARow { // its clock stepped back, or the path became much longer
			s.behind = 0
			s.stream.stats.Restarts++
			s.stream.anchor = false
			s.stream.rebase(p)
		}
	}
}

// resume begins to play when the packet is due.
func (s *source) resume(p *packet, now int64) bool {
	limit := maxCatchUp
	if s.eager {
		limit = s.stream.pace.target + frameTime
	}
	for ; p != nil; p = s.due() {
		slack := s.slack(p, now)
		switch {
		case p.quiet():
			s.stream.take(p)
			if p.kind == kindNoise {
				s.comfort.make(noiseRMS(p.payload))
			}
		case now-p.came > maxStale:
			s.skip(p, now)
		case slack < s.stream.pace.target:
			return false
		case slack <= limit:
			s.begin(p)
			s.measure(p, now)
			return s.play(p)
		case p.seq < s.stream.high:
			s.skip(p, now)
		default: // even the youngest is too late: the path has become longer
			s.stream.rebase(p)
			return false
		}
	}
	return false
}

// skip leaves a packet out. Of a stream not played until now the last ones go through the decoder unheard, so that it
// knows the voice when it begins.
func (s *source) skip(p *packet, now int64) {
	s.stream.take(p)
	if !s.eager {
		s.stream.stats.Skipped++
	} else if now-p.came <= warmUp {
		s.decoder.decode(s.sound(p.samples), p)
		s.decoded = 0
	}
}

func (s *source) begin(p *packet) {
	s.playing, s.stream.anchor = true, true
	s.next, s.owed, s.missing = p.at, 0, 0
	s.eager, s.broken = false, false
	s.fadeIn = true
	s.measureAgain()
}

// stop ends the sound; what was played last fades instead of breaking off.
func (s *source) stop() {
	if s.playing {
		s.fifo.fadeOut()
	}
	s.playing = false
	s.silence = 0
}

// play decodes a packet whose turn it is.
func (s *source) play(p *packet) bool {
	s.stream.take(p)
	s.behind = 0
	if p.quiet() {
		s.next = p.at + p.samples
		s.owed = 0
		s.stop()
		if p.kind == kindNoise {
			s.comfort.make(noiseRMS(p.payload))
		} else {
			s.comfort.learn(s.scratch[:s.decoded])
		}
		s.decoded = 0
		return true
	}
	pcm := s.sound(p.samples)
	if s.decoder.decode(pcm, p) != len(pcm) {
		s.stream.stats.Bad++
		s.broken = true
		return true
	}
	s.next = p.at + p.samples
	s.owed = 0
	s.broken = false
	if s.missing > 0 {
		s.decoder.bridge(pcm)
		s.missing = 0
	}
	s.decoder.heard(pcm)
	s.put(pcm)
	s.comfort.stop()
	if p.kind == kindOpus {
		s.decoded = len(pcm)
	}
	return true
}

func (s *source) put(pcm []int16) {
	if s.fadeIn {
		s.fadeIn = false
		ramp := rampSamples * int(s.fifo.band)
		for i := range min(ramp, len(pcm)) {
			pcm[i] = int16(int(pcm[i]) * i / ramp)
		}
	}
	s.fifo.put(pcm)
}

// starve fills a frame when there is no packet at all. Media time stands still: the packet may only be late.
func (s *source) starve() bool {
	if s.missing >= maxConcealed {
		s.stop()
		return false
	}
	s.conceal(FrameSamples)
	s.owed += FrameSamples
	return true
}

// cross gets over a hole before packet p.
func (s *source) cross(p *packet, now int64) bool {
	gap := p.at - s.next
	pause := p.seq == s.stream.low && !s.broken // RFC 3550 §5.1: time went on, numbers did not: nothing was lost
	if pause || gap > maxBridged || s.missing >= maxConcealed {
		s.stop()
		return s.resume(p, now)
	}
	if gap <= maxRecovered && s.decoder.recover(s.sound(gap), p) {
		s.stream.stats.Recovered++
		s.decoded = 0
		s.next = p.at
		s.missing = 0
		s.put(s.sound(gap))
		return true
	}
	n := min(gap, FrameSamples)
	s.conceal(n)
	s.next += n
	return true
}

func (s *source) conceal(ticks int64) {
	s.decoded = 0
	pcm := s.sound(ticks)
	s.decoder.conceal(pcm)
	s.stream.stats.Concealed++
	if s.missing++; s.missing == maxConcealed {
		for i := range pcm {
			pcm[i] = int16(int(pcm[i]) * (len(pcm) - i) / len(pcm))
		}
	}
	s.put(pcm)
}

// slack is by how much later than the fastest packet this one could come and still be played now.
func (s *source) slack(p *packet, now int64) int64 { return delayOf(p.at, now) - s.stream.pace.floor }

func (s *source) measure(p *packet, now int64) {
	slack := s.slack(p, now)
	s.held = slack + int64(s.fifo.len())*sampleTime
	s.measured++
	s.least = min(s.least, slack)
	s.leastLeft = min(s.leastLeft, s.fifo.len())
}

func (s *source) measureAgain() {
	s.measured, s.least, s.leastLeft = 0, math.MaxInt64, FrameSamples
}

// adapt keeps the slack between the target and one frame above it. Packets are taken once a frame, so nothing finer
// would help; samples that are always left over in the fifo when a packet is taken are delay for nothing.
func (s *source) adapt() {
	target := s.stream.pace.target
	every := adaptEvery
	if s.least > target+hurryAt {
		every = adaptHurried
	}
	if s.measured < every {
		return
	}
	done := true
	switch {
	case s.least > target+maxExcess:
		s.stop() // to begin again nearer: cutting so much bit by bit would take seconds
	case s.least < target-slackBand:
		room := FrameSamples - s.leastLeft
		if room < minPitch {
			room += FrameSamples // no voice has so short a period
		}
		done = s.lengthen(room)
	case s.least >= target+frameTime+slackBand:
		done = s.shorten(FrameSamples)
	case s.leastLeft > wasteSamples && s.least >= target:
		done = s.shorten(s.leastLeft)
	}
	s.measureAgain()
	if !done {
		s.measured = every - adaptRetry
	}
}

func (s *source) shorten(most int) bool {
	for s.fifo.len() < FrameSamples+most+stretchWindow {
		p := s.due()
		if p == nil || p.at != s.next || s.owed > 0 || p.quiet() || !s.play(p) {
			break
		}
	}
	most = min(most, s.fifo.len()-FrameSamples)
	if s.fifo.shorten(most) == 0 {
		return false
	}
	s.stream.stats.Shortened++
	return true
}

func (s *source) lengthen(most int) bool {
	if s.fifo.lengthen(most) == 0 {
		return false
	}
	s.stream.stats.Lengthened++
	return true
}
