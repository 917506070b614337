package matrixcall

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
)

// LevelExtension is the id under which packets handed to OnPacket carry the level of their sound (RFC 6464), if the
// peer tells it. They have no other header extension.
const LevelExtension = 1

// trackAdded reads a track of the peer's until it ends.
func (c *peerConn) trackAdded(track *webrtc.TrackRemote, receiver *webrtc.RTPReceiver) {
	if track.Kind() != webrtc.RTPCodecTypeAudio {
		return
	}
	r := &trackReader{conn: c, track: track}
	if transceiver := receiver.RTPTransceiver(); transceiver != nil {
		r.mid = transceiver.Mid()
	}
	negotiated := receiver.GetParameters()
	for _, codec := range negotiated.Codecs {
		switch codec.MimeType {
		case webrtc.MimeTypeOpus:
			r.opus[codec.PayloadType] = true
		case mimeTelephone:
			r.tones[codec.PayloadType] = true
		}
	}
	for _, ext := range negotiated.HeaderExtensions {
		if ext.URI == audioLevelURI {
			r.levelID = uint8(ext.ID)
		}
	}
	c.read(r.run)
	c.read(func() { discardReports(receiver) })
}

func discardReports(receiver *webrtc.RTPReceiver) {
	buf := make([]byte, 1500)
	for {
		if _, _, err := receiver.Read(buf); err != nil {
			return
		}
	}
}

// trackReader passes a peer's audio on.
type trackReader struct {
	conn    *peerConn
	track   *webrtc.TrackRemote
	mid     string    // of its section
	opus    [128]bool // payload types
	tones   [128]bool
	tone    toneReader
	levelID uint8 // of the header extension with the level, as negotiated; 0: none
	level   [1]byte
	speech  speechMeter
}

// maxReadErrors in a row end a track: something is wrong with it that will not get better.
const maxReadErrors = 100

func (r *trackReader) run() {
	defer r.hush()
	buf := make([]byte, 1500)
	packet := &rtp.Packet{}
	for failed := 0; failed < maxReadErrors; {
		n, _, err := r.track.Read(buf)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) || r.conn.ctx.Err() != nil:
			return
		case isTimeout(err):
			r.pause(time.Now())
			continue
		case err != nil: // a payload type nobody agreed on, say
			failed++
			continue
		}
		failed = 0
		if err := packet.Unmarshal(buf[:n]); err == nil {
			r.pass(packet)
		}
	}
	r.conn.log.Debug("track given up", "peer", r.conn.peer)
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

func (r *trackReader) pass(packet *rtp.Packet) {
	r.conn.metrics.PacketsReceived.Add(1)
	if voice := r.conn.voice.Load(); voice != nil && *voice != r.mid {
		return // the sound of a shared screen, say, of somebody who sends it unasked
	}
	switch payload := packet.PayloadType & 0x7f; {
	case r.opus[payload]:
		r.weigh(packet)
		r.conn.packet(r.conn.peer, packet)
	case r.tones[payload]:
		if digit, ok := r.tone.read(packet); ok {
			r.conn.event(Digit{Peer: r.conn.peer, Digit: digit})
		}
	}
}

// weigh takes note of the level of a packet, and leaves it the packet's only header extension.
func (r *trackReader) weigh(packet *rtp.Packet) {
	var level []byte
	if r.levelID != 0 {
		level = packet.GetExtension(r.levelID)
	}
	packet.Extension, packet.Extensions = false, packet.Extensions[:0]
	if len(level) == 0 {
		return
	}
	r.level[0] = level[0]
	_ = packet.SetExtension(LevelExtension, r.level[:]) // one byte fits
	now := time.Now()
	// RFC 6464 §3: the upper bit is a guess whether it is voice, and not all senders make it.
	if r.speech.hear(level[0]&0x7F, packet.Timestamp, now) {
		// A user who falls silent may send nothing at all, so the end of speech is a matter of reading in vain.
		if err := r.track.SetReadDeadline(now.Add(speechHang)); err != nil {
			r.speech = speechMeter{}
			return
		}
		r.conn.speaks(true)
	}
}

// pause looks, when reading took too long, whether the user has fallen silent.
func (r *trackReader) pause(now time.Time) {
	until, ended := r.speech.pause(now)
	if err := r.track.SetReadDeadline(until); err != nil || ended {
		r.hush()
	}
}

// hush says that nobody speaks any more.
func (r *trackReader) hush() {
	if r.speech.on {
		r.conn.speaks(false)
	}
	r.speech = speechMeter{}
}

// A user speaks who has been louder than speechLevel for speechOnset, until not being louder than speechStays for
// speechHang. Levels are in −dBov, RFC 6464.
const (
	speechLevel = 45
	speechStays = 50
	speechOnset = 40 * 48  // of timestamps, from the first packet's to the last one's: 60 ms of sound
	speechBreak = 120 * 48 // of timestamps: speech that begins again
	speechHang  = 400 * time.Millisecond
)

// speechMeter tells from the levels of packets whether somebody speaks. The zero value works.
type speechMeter struct {
	on    bool
	heard time.Time // the last packet loud enough for speech to go on

	rising      bool   // loud, but not for long enough
	since, last uint32 // timestamps of the first and the last loud packet
}

// hear takes the level of one packet and says whether speech begins with it.
func (s *speechMeter) hear(level uint8, timestamp uint32, now time.Time) bool {
	switch {
	case s.on:
		if level < speechStays {
			s.heard = now
		}
		return false
	case level >= speechLevel:
		s.rising = false
		return false
	case !s.rising || timestamp-s.last > speechBreak:
		s.rising, s.since = true, timestamp
	}
	s.last, s.heard = timestamp, now
	s.on = timestamp-s.since >= speechOnset
	s.rising = !s.on
	return s.on
}

// pause says whether speech has ended by now, and if it has not, when to ask again.
func (s *speechMeter) pause(now time.Time) (until time.Time, ended bool) {
	if until = s.heard.Add(speechHang); s.on && now.Before(until) {
		return until, false
	}
	return time.Time{}, true
}

// toneReader finds digits in telephone events (RFC 4733). An event is a run of packets with one timestamp, of which
// any may be lost; it counts from the first that arrives. The zero value works.
type toneReader struct {
	started  bool
	event    byte
	last     uint32 // its timestamp
	duration uint16 // the longest seen of it
}

// What is older than a key's packets can be late is not late but new: the sender's clock began anew. Timestamps are
// those of the audio: Chromium counts them at 48 kHz even under the payload type of 8 kHz.
const lateTone = 5 * 48000

func (t *toneReader) read(packet *rtp.Packet) (rune, bool) {
	const digits = "0123456789*#ABCD"
	if len(packet.Payload) < 4 || int(packet.Payload[0]) >= len(digits) {
		return 0, false
	}
	event, duration := packet.Payload[0], uint16(packet.Payload[2])<<8|uint16(packet.Payload[3])
	age := int32(t.last - packet.Timestamp)
	switch {
	case t.started && age == 0: // more of it, or its end, which is sent three times
		t.duration = max(t.duration, duration)
		return 0, false
	case t.started && age > 0 && age < lateTone: // overtaken by another
		return 0, false
	}
	held := t.started && !packet.Marker && event == t.event && t.full() && uint32(-age) <= maxToneSegment+toneStep
	t.started, t.event, t.last, t.duration = true, event, packet.Timestamp, duration
	return rune(digits[event]), !held
}

// A key that is held for longer than a duration can say goes on as another event (RFC 4733 §2.5.1.3).
const (
	maxToneSegment = 0xFFFF
	toneStep       = 5 * 960 // five packets
)

func (t *toneReader) full() bool { return t.duration >= maxToneSegment-toneStep }
