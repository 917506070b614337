package sip

import (
	"time"

	"github.com/pion/rtp"
)

// digitReader turns RFC 4733 telephone-events into key presses: one per press, told at its first packet, so that lost
// end packets cannot lose a key. Its zero value is ready.
type digitReader struct {
	started  bool
	ssrc     uint32
	ts       uint32
	event    byte
	duration uint16
	ended    bool
}

// lateCopy is how far, in units of the clock, a packet of an earlier event may lie back: 8 s at 8 kHz, 1.4 s at 48 kHz. What lies further
// back comes from a stream that has begun anew under its old SSRC, as gateways send it that keep theirs while the phone behind changes.
const lateCopy = 1 << 16

const dtmfKeys = "0123456789*#ABCD"

// read takes the payload of one telephone-event packet and says whether it is a new press of key.
func (r *digitReader) read(ssrc, ts uint32, payload []byte) (key byte, pressed bool) {
	if len(payload) < 4 {
		return 0, false
	}
	event, end := payload[0], payload[1]&0x80 != 0
	duration := uint16(payload[2])<<8 | uint16(payload[3])
	if int(event) >= len(dtmfKeys) {
		return 0, false // flash, tones of modems: not keys
	}
	if r.started && ssrc == r.ssrc {
		if back := r.ts - ts; back != 0 && back <= lateCopy {
			return 0, false // late copy of an earlier event
		}
		if r.continues(ts, event, duration) {
			r.ts, r.duration, r.ended = ts, duration, r.ended || end
			return 0, false
		}
	}
	*r = digitReader{started: true, ssrc: ssrc, ts: ts, event: event, duration: duration, ended: end}
	return dtmfKeys[event], true
}

// continues says whether a packet belongs to the event before it.
func (r *digitReader) continues(ts uint32, event byte, duration uint16) bool {
	if ts == r.ts {
		return true // RFC 4733 §2.5.1.2: one timestamp per event; the three end packets, too
	}
	if event != r.event || r.ended {
		return false
	}
	if ts == r.ts+0xffff {
		return true // §2.5.1.3: a long press goes on as a new segment, the end of the one before may be lost
	}
	// Some gateways advance the timestamp in each packet of one press; there the duration still grows.
	return duration > r.duration && ts-r.ts <= uint32(duration)
}

const (
	digitLength = 100 * time.Millisecond
	digitPause  = 50 * time.Millisecond
	digitEnds   = 3  // RFC 4733 §2.5.1.4: the last packet is sent three times
	digitVolume = 10 // -10 dBm0, what keypads send
	maxDigits   = 32 // waiting; more is no human being
)

// digitWriter turns key presses into RFC 4733 packets. Each takes the place of one voice packet and has its sequence
// number, so the phone sees one stream without gaps: voice, event, event, voice. Its zero value is ready.
type digitWriter struct {
	queue   [maxDigits]byte
	waiting int
	on      bool   // an event is being sent
	event   byte   // the one being sent
	start   uint32 // its timestamp: of the first packet for all of them
	ends    int    // end packets sent
	pause   bool   // until resume
	resume  uint32 // the timestamp at which the next event may begin

	packet  rtp.Packet
	payload [4]byte
}

func (w *digitWriter) put(event byte) {
	if w.waiting < len(w.queue) {
		w.queue[w.waiting] = event
		w.waiting++
	}
}

func (w *digitWriter) active() bool { return w.on || w.waiting > 0 }

// clear forgets everything; an event the phone knows only the beginning of ends there by itself.
func (w *digitWriter) clear() { w.waiting, w.on, w.pause = 0, false, false }

// replace returns what is sent in place of voice packet p: itself in the pause between two keys.
func (w *digitWriter) replace(p *rtp.Packet, f Format) *rtp.Packet {
	rate := uint32(f.ClockRate)
	if f.DTMF == 0 { // a later offer took telephone-event away
		w.clear()
		return p
	}
	first := false
	if !w.on {
		if w.pause && w.resume-p.Timestamp-1 < rate*uint32(digitPause/time.Millisecond)/1000 { // unsigned: a stream that begins anew does not wait
			return p
		}
		w.on, first = true, true
		w.event, w.start, w.ends, w.pause = w.queue[0], p.Timestamp, 0, false
		copy(w.queue[:], w.queue[1:w.waiting])
		w.waiting--
	}
	length := rate * uint32(digitLength/time.Millisecond) / 1000 // all times in the clock of the stream
	packet := rate * uint32(f.Ptime) / 1000
	duration := min(p.Timestamp-w.start+packet, length) // §2.5.1.2: up to the end of this packet
	flags := byte(digitVolume)
	if duration == length {
		flags |= 0x80
		if w.ends++; w.ends == digitEnds {
			w.on, w.pause = false, true
			w.resume = w.start + length + rate*uint32(digitPause/time.Millisecond)/1000
		}
	}
	if f.DTMFRate != 0 {
		duration = duration * uint32(f.DTMFRate) / rate
	}
	w.payload = [4]byte{w.event, flags, byte(duration >> 8), byte(duration)}
	w.packet = rtp.Packet{
		Header: rtp.Header{
			Version: 2, Marker: first, PayloadType: f.DTMF, SSRC: p.SSRC, SequenceNumber: p.SequenceNumber, Timestamp: w.start,
		},
		Payload: w.payload[:],
	}
	return &w.packet
}
