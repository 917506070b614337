package member

import (
	"slices"
	"strings"
	"time"
)

// peer is our connection with one session of one device: what the numbers count in hydrogen, and what the retries are
// counted for. Only run touches it.
type peer struct {
	c        *groupCall
	key      peerKey
	session  string
	queue    sequencer
	outbox   *outbox
	leg      *leg // the current or last attempt, nil before the first
	seq      int  // hydrogen: next number, for the whole connection
	attempts int
	allowed  bool // js-sdk sends sound only to devices that the member state shows
	dead     bool // hydrogen after three attempts: nothing of this session is read any more
}

func (c *groupCall) newPeer(key peerKey, session string) *peer {
	p := &peer{c: c, key: key, session: session, outbox: newOutbox(c.m, key), allowed: true}
	if c.m.cfg.Kind.hydrogen() {
		p.queue = &hydrogenQueue{last: -1}
	} else {
		p.queue = newJSQueue()
	}
	c.peers[key] = p
	return p
}

// take reads a message, and those that waited for it.
func (p *peer) take(msg message) {
	if p.dead {
		p.c.m.log.Debug("message is ignored: three attempts have failed", "type", msg.kind)
		return
	}
	for _, ready := range p.queue.take(msg) {
		p.read(ready)
	}
}

func (p *peer) read(msg message) {
	if msg.kind == typeInvite {
		p.invited(msg)
		return
	}
	if p.leg == nil || p.leg.callID != msg.CallID || p.leg.state == stateEnded {
		return
	}
	switch msg.kind {
	case typeAnswer:
		p.leg.answered(msg)
	case typeCandidates:
		p.leg.candidates(msg)
	case typeNegotiate:
		p.leg.negotiated(msg)
	case typeMetadata, typeMetadataU:
		p.leg.describe(msg.streams(p.c.m.cfg.Kind))
	case typeHangup:
		p.leg.hungUp(msg)
	case typeReject:
		if !p.c.m.cfg.Kind.hydrogen() && p.leg.state == stateInvited && p.leg.inviter {
			p.ended("rejected")
		}
	}
}

// invite starts an attempt.
func (p *peer) invite() {
	p.attempts++
	l, err := p.newLeg(newID("c"), true)
	if err != nil {
		p.c.m.complain("own leg to %s: %v", p.key, err)
		return
	}
	if err := l.invite(); err != nil {
		p.c.m.complain("own offer to %s: %v", p.key, err)
		p.hangUp("create_offer")
		p.drop()
	}
}

// invited decides what becomes of an invite.
func (p *peer) invited(msg message) {
	m := p.c.m
	if p.leg != nil && p.leg.callID == msg.CallID {
		return // a repeat
	}
	if p.c.mustCall(p.key) {
		m.complain("invite from %s out of turn: we must call", p.key)
	}
	if p.leg != nil && p.leg.state != stateEnded && !p.giveWay(msg) {
		return
	}
	if !p.readable(msg) {
		return
	}
	p.drop()
	p.session = msg.SenderSession // js-sdk answers the session that invited, whatever the member state says
	l, err := p.newLeg(msg.CallID, false)
	if err == nil {
		err = l.accept(msg)
	}
	if err != nil {
		m.complain("invite from %s cannot be answered: %v", p.key, err)
		p.drop()
	}
}

// giveWay settles an invite that meets a leg.
func (p *peer) giveWay(msg message) bool {
	hydrogen := p.c.m.cfg.Kind.hydrogen()
	switch {
	case p.leg.state != stateInvited || !p.leg.inviter:
		if !hydrogen {
			p.hangUp("replaced")
		}
		return true
	case !hydrogen:
		p.c.m.complain("invite from %s meets our own: js-sdk loses track of both", p.key)
		return false
	case p.leg.callID > msg.CallID: // the lower call id wins
		p.hangUp("replaced")
		return true
	default:
		lost := p.leg.envelope(typeHangup)
		lost.CallID, lost.Reason = msg.CallID, "replaced"
		p.outbox.send(typeHangup, lost)
		return false
	}
}

// readable says whether the client would answer such an invite at all.
func (p *peer) readable(msg message) bool {
	m, hydrogen := p.c.m, p.c.m.cfg.Kind.hydrogen()
	who := "invite from " + p.key.String()
	if msg.Lifetime <= 0 {
		m.complain("%s has no lifetime", who)
		return hydrogen
	}
	if msg.Invitee != nil && *msg.Invitee != m.cfg.UserID && !hydrogen {
		m.complain("%s is for %s", who, *msg.Invitee)
		return false
	}
	if msg.Offer == nil || msg.Offer.SDP == "" {
		m.complain("%s has no offer", who)
		return false
	}
	if !hasMedia(msg.Offer.SDP, "audio") && !hasMedia(msg.Offer.SDP, "video") {
		m.complain("%s offers no media", who)
		return false
	}
	if strict(p.key.user) && !strings.Contains(msg.Offer.SDP, "a=candidate:") {
		m.complain("%s has no candidate in its offer: later ones are lost", who)
	}
	return p.knownStreams(who, msg, msg.Offer.SDP)
}

// knownStreams checks that each stream of the description is a key of the metadata. js-sdk drops an invite or answer
// where it is not; hydrogen takes it and plays nothing.
func (p *peer) knownStreams(who string, msg message, sdp string) bool {
	m := p.c.m
	if strict(p.key.user) && (msg.Metadata == nil || msg.MetadataU == nil) {
		m.complain("%s lacks one of the two metadata keys", who)
	}
	streams := msg.streams(m.cfg.Kind)
	for _, stream := range streamIDs(sdp) {
		if _, ok := streams[stream]; ok || streams == nil && !m.cfg.Kind.hydrogen() {
			continue
		}
		m.complain("%s: stream %q is not in the metadata", who, stream)
		return m.cfg.Kind.hydrogen()
	}
	return true
}

// hangUp says goodbye to the current leg and ends it.
func (p *peer) hangUp(reason string) {
	if p.leg == nil || p.leg.state == stateEnded {
		return
	}
	bye := p.leg.envelope(typeHangup)
	bye.Reason = reason
	p.outbox.send(typeHangup, bye)
	p.drop()
}

// drop ends the current leg without a word.
func (p *peer) drop() {
	if p.leg != nil {
		p.leg.close()
	}
}

// noRetry are the reasons after which hydrogen does not call again. (hydrogen src/matrix/calls/group/Member.ts)
var noRetry = []string{"user_hangup", "answered_elsewhere", "replaced", "user_busy", "transferred", "new_session"}

// ended is the end of a leg that nobody of us wanted: hydrogen calls again at once, three times in the connection's
// life; js-sdk leaves it to its tick.
func (p *peer) ended(reason string) {
	p.drop()
	p.c.m.log.Debug("leg ended", "peer", p.key, "reason", reason)
	if !p.c.m.cfg.Kind.hydrogen() || slices.Contains(noRetry, reason) || !p.c.mustCall(p.key) {
		return
	}
	if p.attempts >= attempts {
		p.dead = true
		return
	}
	p.invite()
}

// allow opens or closes the microphone for this peer.
func (p *peer) allow(on bool) {
	p.allowed = on
	if p.leg != nil && p.leg.state != stateEnded {
		p.c.m.mouth.enable(p.leg.microphone, on)
	}
}

// connectedButExpired: hydrogen keeps a connected member whose entry has expired, as long as the entry is there.
func (p *peer) connectedButExpired() bool {
	r := p.c.m.room(p.c.room)
	d, listed := r.members[p.key.user].device(p.c.conf, p.key.device)
	return listed && d.Session == p.session && r.joined[p.key.user] && p.leg != nil && p.leg.state == stateConnected
}

func (p *peer) view() PeerView {
	v := PeerView{User: p.key.user, Device: p.key.device, Session: p.session, Attempts: p.attempts, State: "waiting"}
	if p.leg != nil {
		v.CallID, v.Inviter, v.State = p.leg.callID, p.leg.inviter, p.leg.state.String()
		v.Muted, v.Direction = p.leg.peerMuted(), p.leg.direction()
	}
	return v
}

// after lets run do something later, unless the leg has ended by then.
func (l *leg) after(d time.Duration, work func()) {
	m := l.p.c.m
	m.wg.Go(func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			l.run(work)
		case <-l.done:
		case <-m.ctx.Done():
		}
	})
}

// run brings work from pion's callbacks into the run loop.
func (l *leg) run(work func()) {
	l.p.c.m.inbox.put(func() {
		if l.state != stateEnded {
			work()
		}
	})
}
