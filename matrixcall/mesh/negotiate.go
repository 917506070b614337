package mesh

import (
	"maps"
	"slices"
)

// negotiateReceived takes a later offer, or the answer to one of ours. When offers cross, the callee is polite and
// takes its own back, the inviter ignores the peer's (perfect negotiation, as both clients do).
func (m *machine) negotiateReceived(p *peer, sig Signal) {
	l := p.link
	switch {
	case sig.SDP.Text == "":
		m.drop(p.Device, sig, "no description")
	case countMedia(sig.SDP.Text) > maxMedia:
		m.drop(p.Device, sig, "too many media sections")
	case l.phase == answering || l.neg == makingAnswer:
		if len(l.queue) >= maxQueue || !p.mayKeep(sig) {
			m.drop(p.Device, sig, "too many offers")
			return
		}
		l.queue = append(l.queue, sig)
	case l.phase != connecting && l.phase != connected:
		m.drop(p.Device, sig, "nothing to negotiate yet")
	case sig.SDP.Type == "answer" && l.neg == offerSent:
		l.describeStreams(sig.Streams)
		m.tellMuted(p)
		l.neg, l.negUntil = stable, zero
		l.asked = true
		if !l.describe(sig.SDP.Text) {
			m.tooManyCandidates(p)
			return
		}
		m.do(ApplyAnswer{Conn: l.conn, Answer: sig.SDP.Text})
	case sig.SDP.Type != "offer":
		m.drop(p.Device, sig, "answer to nothing")
	case l.neg != stable && l.inviter:
		m.drop(p.Device, sig, "offers crossed")
	case !p.offers.take(offerPace, m.now):
		m.drop(p.Device, sig, "too many offers")
	default:
		m.offerReceived(p, sig)
	}
}

func (m *machine) offerReceived(p *peer, sig Signal) {
	l := p.link
	if !l.describe(sig.SDP.Text) {
		m.tooManyCandidates(p)
		return
	}
	crossed := l.neg != stable
	if crossed {
		l.asked = false // ask again afterwards
	}
	before := l.audible()
	l.describeStreams(sig.Streams)
	if l.audible() && !before {
		l.asked = false
	}
	m.tellMuted(p)
	l.neg = makingAnswer
	l.negUntil = m.now.Add(shellPatience)
	l.reoffer = zero
	if !l.restart.IsZero() {
		l.restart = m.now.Add(restartAfter) // this may be the peer's restart: do not spoil it with ours
	}
	m.do(CreateAnswer{Conn: l.conn, Offer: sig.SDP.Text, Rollback: crossed})
}

// negotiationDue gives up what takes too long, and makes an offer of ours when one is needed.
func (m *machine) negotiationDue(p *peer) {
	l := p.link
	if m.due(l.negUntil) {
		m.negotiationOverdue(p)
		if p.link != l {
			return
		}
	}
	if l.phase != connected || l.neg != stable {
		l.reoffer = zero
		if m.due(l.restart) {
			l.restart = m.now.Add(restartAfter)
		}
		return
	}
	restart := m.due(l.restart)
	switch {
	case restart:
		l.restart = zero
	case !l.lacksAudio() || l.asked || l.reoffers >= maxReoffers:
		l.reoffer = zero
		return
	case l.reoffer.IsZero():
		l.reoffer = m.now.Add(reofferAfter)
		return
	case !m.due(l.reoffer):
		return
	}
	l.reoffer = zero
	l.reoffers++
	l.neg = makingOffer
	l.negUntil = m.now.Add(shellPatience)
	m.do(CreateOffer{Conn: l.conn, RestartICE: restart})
}

// lacksAudio says that the peer should be offered audio: it cannot hear us, because its invite had a camera only
// (hydrogen's way to join), or it says that its microphone is on and has no way to send it. The latter is hydrogen as
// inviter: for a minute after its invite it cannot make the offer itself (rule).
func (l *link) lacksAudio() bool {
	return !l.audio.Out || l.audible() && !l.audio.In
}

func (m *machine) negotiationOverdue(p *peer) {
	l := p.link
	switch l.neg {
	case makingOffer, makingAnswer:
		m.end(p, ReasonSignalling, politely) // the connection is stuck
	case offerSent:
		l.neg, l.negUntil = stable, zero
		l.reoffer = m.now.Add(reofferPause) // its answer, should it come yet, is to an offer that is no more
		m.do(Rollback{Conn: l.conn})
	case stable:
		l.negUntil = zero
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
