package sip

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
		if int32(ts-r.ts) < 0 {
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
	if r.duration == 0xffff && ts == r.ts+0xffff {
		return true // §2.5.1.3: a long press goes on as a new segment
	}
	// Some gateways advance the timestamp in each packet of one press; there the duration still grows.
	return duration > r.duration && ts-r.ts <= uint32(duration)
}
