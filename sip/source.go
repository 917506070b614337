package sip

import (
	"net/netip"
	"time"
)

// sourceLock decides whose RTP is the phone's ("RTP bleed": whoever sprays our ports must neither be heard nor be sent
// the call). It starts from the address in the SDP, may learn another one for a short while if the trunk is symmetric,
// and then holds fast. It is a plain value and reads no clock.
//
//	expecting --packet from the SDP address------------------> locked
//	expecting --4 sane packets from an allowed other source--> locked (learned)
//	locked    --re-INVITE with another address---------------> expecting
type sourceLock struct {
	remote  netip.AddrPort // from the SDP
	allowed func(netip.Addr) bool
	until   time.Time // learning ends
	locked  netip.AddrPort

	candidate netip.AddrPort
	ssrc      uint32
	seq       uint16
	run       int
}

const (
	learnWindow  = 10 * time.Second // after start or re-INVITE; ringing phones may be slow to send
	learnPackets = 4                // sane packets in a row before another source is believed
)

// newSourceLock expects remote. allowed says which other hosts may be learned; nil means none.
func newSourceLock(remote netip.AddrPort, allowed func(netip.Addr) bool, now time.Time) sourceLock {
	return sourceLock{remote: remote, allowed: allowed, until: now.Add(learnWindow)}
}

// expect takes a new address from a later description. The lock stays if the address did not change.
func (l *sourceLock) expect(remote netip.AddrPort, now time.Time) {
	if remote == l.remote {
		return
	}
	*l = newSourceLock(remote, l.allowed, now)
}

// accept says whether a packet from this source is the phone's, and whether the lock has just learned an address.
func (l *sourceLock) accept(from netip.AddrPort, ssrc uint32, seq uint16, now time.Time) (ok, learned bool) {
	switch {
	case l.locked.IsValid():
		return from == l.locked, false
	case from == l.remote:
		l.locked = from
		return true, false
	case !l.mayLearn(from, now):
		return false, false
	}
	if from != l.candidate || ssrc != l.ssrc || seq-l.seq-1 > 3 { // unsigned: late and repeated ones count as insane
		l.candidate, l.ssrc, l.run = from, ssrc, 0
	}
	l.seq = seq
	if l.run++; l.run < learnPackets {
		return false, false
	}
	l.locked = from
	return true, true
}

// mayLearn: another port of the host in the SDP is ordinary (sending and receiving ports may differ), another host only
// when the trunk allows it.
func (l *sourceLock) mayLearn(from netip.AddrPort, now time.Time) bool {
	if now.After(l.until) && !(from.Addr() == l.remote.Addr()) {
		return false
	}
	return from.Addr() == l.remote.Addr() || l.allowed != nil && l.allowed(from.Addr())
}
