package sip

import (
	"net/netip"
	"time"
)

// sourceLock decides whose RTP is the phone's ("RTP bleed": whoever sprays our ports must neither be heard nor be sent
// the call). It starts from the address in the SDP, may learn another one if the trunk is symmetric, and then holds fast.
// It is a plain value.
//
//	expecting --packet from the SDP address------------------> locked
//	expecting --4 sane packets from an allowed other source--> locked (learned)
//	locked    --re-INVITE with another address---------------> expecting
//	locked    --silence, then its stream from another port---> locked (learned)
//	locked    --silence, then a stream from the SDP address---> locked (learned)
//	locked    --silence, then the stream of before that one---> locked (learned)
//	locked    --a description that ends a hold----------------> expecting, and the source of before at once
//
// The fourth from below is a NAT that has given the phone another port: same host, same SSRC, 4 sane packets, and nothing from the port
// before for a second. The one after it is a phone that was not heard first: a machine beside it made the ringback; or else a machine at
// the SDP address made an announcement, and the phone itself comes back by the one after that.
//
// Expecting has no end: a phone may be muted, or ring for minutes, before its first packet, and one behind NAT that was
// not learned in time would be dumb and deaf for the whole call. What that leaves to an attacker stands in docs/sip.md.
type sourceLock struct {
	remote  netip.AddrPort // from the SDP
	allowed func(netip.Addr) bool
	locked  netip.AddrPort // the source believed; after a hold, where the phone was
	open    bool           // a hold has ended, and it has not been heard since

	talker uint32    // SSRC heard from there last
	heard  time.Time // and when

	host netip.Addr // believed before the SDP address was heard
	left uint32     // SSRC heard from there last

	candidate netip.AddrPort
	ssrc      uint32
	seq       uint16
	run       int
}

// learnPackets is how many sane packets in a row make another source believed.
const learnPackets = 4

// moveAfter is how long a phone must be silent before another port of its host can be its new one.
const moveAfter = time.Second

// expect takes the address of a description, and which other hosts may be learned; nil means none. The lock stays if the
// address did not change.
func (l *sourceLock) expect(remote netip.AddrPort, allowed func(netip.Addr) bool) {
	l.allowed = allowed
	if remote != l.remote {
		*l = sourceLock{remote: remote, allowed: allowed}
	}
}

// accept says whether a packet from this source is the phone's, and whether the lock has just learned an address.
func (l *sourceLock) accept(from netip.AddrPort, ssrc uint32, seq uint16, now time.Time) (ok, learned bool) {
	switch {
	case l.locked.IsValid() && from == l.locked:
	case l.expecting() && from == l.remote:
		learned = l.locked.IsValid()
	case !l.expecting() && !l.mayMove(from, ssrc, now), l.expecting() && !l.mayLearn(from.Addr()):
		return false, false
	default:
		if learned = l.sane(from, ssrc, seq); !learned {
			return false, false
		}
	}
	l.hold(from, ssrc, now)
	return true, learned
}

// hold takes a source for the phone's.
func (l *sourceLock) hold(from netip.AddrPort, ssrc uint32, now time.Time) {
	if from == l.remote && from != l.locked {
		l.host, l.left = l.locked.Addr(), l.talker
	}
	l.locked, l.talker, l.heard, l.open = from, ssrc, now, false
}

// reopen: the phone comes back from a hold, perhaps with another stream from elsewhere, for a NAT may have forgotten it.
func (l *sourceLock) reopen() { l.open, l.run = true, 0 }

func (l *sourceLock) expecting() bool { return l.open || !l.locked.IsValid() }

// learned is where the phone of a symmetric trunk really is, once it was heard.
func (l *sourceLock) learned() netip.AddrPort {
	if l.allowed == nil {
		return netip.AddrPort{}
	}
	return l.locked
}

// sane says that enough packets in a row came from one source that is not believed yet.
func (l *sourceLock) sane(from netip.AddrPort, ssrc uint32, seq uint16) bool {
	if from != l.candidate || ssrc != l.ssrc || seq-l.seq-1 > 3 { // unsigned: late and repeated ones count as insane
		l.candidate, l.ssrc, l.run = from, ssrc, 0
	}
	l.seq = seq
	l.run++
	return l.run >= learnPackets
}

// mayMove: when the source that is believed is silent, the phone's stream from another port of that host, any from where the phone
// has said that it is, or the stream that was left for one from there.
func (l *sourceLock) mayMove(from netip.AddrPort, ssrc uint32, now time.Time) bool {
	if l.heard.IsZero() || now.Sub(l.heard) < moveAfter {
		return false
	}
	return from == l.remote || from.Addr() == l.locked.Addr() && ssrc == l.talker || from.Addr() == l.host && ssrc == l.left
}

// mayLearn: another port of the host in the SDP is ordinary (sending and receiving ports may differ), another host only
// when the trunk allows it.
func (l *sourceLock) mayLearn(from netip.Addr) bool {
	return from == l.remote.Addr() || l.allowed != nil && l.allowed(from)
}
