package mesh

import (
	"maps"
	"time"
)

var zero time.Time

// farewell says whether the other side hears that a link ended.
type farewell bool

const (
	quietly  farewell = false
	politely farewell = true
)

// send sends a signal of the peer's link.
func (m *machine) send(p *peer, sig Signal) Signal {
	p.link.repeat = zero // what was said before must not come again after this: hydrogen would wait for it for ever
	sig.CallID = p.link.call
	sig.Seq = NoSeq
	if sig.Kind.numbered() {
		sig.Seq = p.link.seq
		p.link.seq++
	}
	return m.sendAs(p.Peer, sig)
}

func (m *machine) sendAs(to Peer, sig Signal) Signal {
	sig.ConfID = m.cfg.ConfID
	sig.SenderSession = m.session
	sig.DestSession = to.Session
	m.do(Send{To: to.Device, Signal: sig})
	return sig
}

// ourStreams is our stream metadata: exactly one stream, for hydrogen plays the last and matrix-js-sdk the first.
func (m *machine) ourStreams() map[string]Stream {
	return map[string]Stream{m.cfg.StreamID: {Purpose: UserMedia, AudioMuted: new(m.muted), VideoMuted: new(true)}}
}

// invite begins a link to a peer that waits for our call.
func (m *machine) invite(p *peer) {
	l := m.newLink(p, m.newCallID(), offering)
	l.inviter = true
	m.do(Open{Conn: l.conn, Peer: p.Peer, Call: l.call, Inviter: true}, CreateOffer{Conn: l.conn})
}

func (m *machine) newLink(p *peer, call string, ph linkPhase) *link {
	p.next, p.warn, p.watch, p.resting, p.gaveUp = zero, zero, zero, false, false
	p.silent = false
	p.link = &link{conn: m.newConn(), call: call, phase: ph, deadline: m.now.Add(shellPatience)}
	return p.link
}

// offerReady sends our invite, or our offer in a call that stands.
func (m *machine) offerReady(p *peer, sdp string) {
	l := p.link
	switch {
	case l.phase == offering:
		l.phase = invited
		l.deadline = m.now.Add(inviteLifetime)
		l.said = m.send(p, Signal{
			Kind: Invite, Invitee: p.User, SDP: SDP{"offer", sdp}, Streams: m.ourStreams(),
		})
		l.repeat = m.now.Add(repeatPause)
	case l.neg == makingOffer:
		l.neg = offerSent
		l.negUntil = m.now.Add(reofferPatience)
		m.send(p, Signal{Kind: Negotiate, SDP: SDP{"offer", sdp}, Streams: m.ourStreams()})
	}
}

// inviteReceived answers the peer's invite. Whoever should have called: an invite that is here is the best link there
// is, except when ours is under way and wins (glare).
func (m *machine) inviteReceived(p *peer, sig Signal) {
	if sig.Invitee != "" && sig.Invitee != m.cfg.Self.User {
		m.drop(p.Device, sig, "for someone else")
		return
	}
	if p.link != nil && p.link.call == sig.CallID {
		m.drop(p.Device, sig, "repeated")
		return
	}
	if !p.calls.take(invitePace, m.now) || !m.mayLink(p.User) {
		m.drop(p.Device, sig, "too many invites")
		return
	}
	if l := p.link; l != nil {
		switch {
		case l.phase == invited && l.call < sig.CallID:
			// Both clients: the lower call id wins.
			m.decline(p.Peer, sig.CallID, ReasonReplaced)
			p.finish(sig.CallID)
			return
		case l.phase == invited:
			m.end(p, ReasonReplaced, politely)
		default:
			// Not sent yet, or up: the peer begins anew, as matrix-js-sdk does.
			m.end(p, ReasonReplaced, quietly)
		}
	}
	if sig.SDP.Text == "" || sig.SDP.Type != "offer" || countMedia(sig.SDP.Text) > maxMedia {
		m.decline(p.Peer, sig.CallID, ReasonBadOffer)
		p.finish(sig.CallID)
		m.expectAgain(p, calleePatience)
		return
	}
	l := m.newLink(p, sig.CallID, answering)
	l.describe(sig.SDP.Text) // a single one is bounded by the size of a message
	l.describeStreams(sig.Streams)
	m.do(Open{Conn: l.conn, Peer: p.Peer, Call: l.call}, CreateAnswer{Conn: l.conn, Offer: sig.SDP.Text})
	t := p.track(sig.CallID)
	orphans := t.orphans
	t.orphans = nil
	for _, o := range orphans {
		if p.link == l {
			m.dispatch(p, o)
		}
	}
}

// decline refuses an invite. Hydrogen knows only the hangup; matrix-js-sdk, before an answer, only the reject (rule).
func (m *machine) decline(to Peer, call, reason string) {
	m.sendAs(to, Signal{Kind: Hangup, CallID: call, Seq: 0, Reason: reason})
	m.sendAs(to, Signal{Kind: Reject, CallID: call, Seq: NoSeq, Reason: reason})
}

// answerReady sends our answer to an invite or to a later offer.
func (m *machine) answerReady(p *peer, sdp string, audio Audio) {
	l := p.link
	switch {
	case l.phase == answering:
		l.phase = connecting
		l.deadline = m.now.Add(connectPatience)
		l.said = m.send(p, Signal{Kind: Answer, SDP: SDP{"answer", sdp}, Streams: m.ourStreams()})
		l.repeat = m.now.Add(repeatPause)
	case l.neg == makingAnswer:
		l.neg = stable
		l.negUntil = zero
		m.send(p, Signal{Kind: Negotiate, SDP: SDP{"answer", sdp}, Streams: m.ourStreams()})
	default:
		return
	}
	l.audio = audio
	m.drainQueue(p)
}

// drainQueue takes up the signals that had to wait for our answer.
func (m *machine) drainQueue(p *peer) {
	l := p.link
	queue := l.queue
	l.queue = nil
	for i, sig := range queue {
		if p.link != l {
			return
		}
		if l.neg == makingAnswer {
			l.queue = append(l.queue, queue[i:]...)
			return
		}
		m.dispatch(p, sig)
	}
}

// answerReceived completes our invite. A second answer is ignored.
func (m *machine) answerReceived(p *peer, sig Signal) {
	l := p.link
	if l.phase != invited || sig.SDP.Text == "" || countMedia(sig.SDP.Text) > maxMedia {
		m.drop(p.Device, sig, "no answer wanted")
		return
	}
	answer := sig.SDP.Text
	if sig.SDP.Type == "offer" {
		// Hydrogen reads its description late and may send its next offer in place of the answer.
		answer = AnswerFromOffer(answer, countMedia(l.said.SDP.Text))
		m.do(Note{Device: p.Device, Text: "answer of type offer"})
	}
	if !l.describe(answer) {
		m.tooManyCandidates(p)
		return
	}
	l.phase = connecting
	l.deadline = m.now.Add(connectPatience)
	l.describeStreams(sig.Streams)
	m.do(ApplyAnswer{Conn: l.conn, Answer: answer})
	if len(l.waiting) > 0 {
		m.do(AddCandidates{Conn: l.conn, Candidates: l.waiting})
		l.waiting = nil
	}
	if l.dirty {
		l.dirty = false
		m.sendMetadata(p)
	}
}

// candidatesReceived passes candidates on, once there is a remote description they belong to.
func (m *machine) candidatesReceived(p *peer, sig Signal) {
	l := p.link
	if l.candidates+len(sig.Candidates) > maxCandidates {
		m.drop(p.Device, sig, "too many candidates")
		return
	}
	if l.inAll += len(sig.Candidates); l.inAll > maxConnection {
		m.tooManyCandidates(p)
		return
	}
	l.candidates += len(sig.Candidates)
	if l.phase != offering && l.phase != invited {
		if len(sig.Candidates) > 0 {
			m.do(AddCandidates{Conn: l.conn, Candidates: sig.Candidates})
		}
		return
	}
	l.waiting = append(l.waiting, sig.Candidates...)
}

// tooManyCandidates ends a connection that would keep and try ever more addresses.
func (m *machine) tooManyCandidates(p *peer) {
	m.do(Note{Device: p.Device, Text: "too many candidates for one connection"})
	m.end(p, ReasonICEFailed, politely)
}

// metadataReceived merges what the peer says of its streams, key by key (MSC3291).
func (m *machine) metadataReceived(p *peer, sig Signal) {
	l := p.link
	before := l.audible()
	l.mergeStreams(sig.Streams)
	if l.audible() && !before {
		l.asked = false
	}
	m.tellMuted(p)
}

// describeStreams takes over what a description says of the peer's streams: those it does not name are no more. A client
// that changes its microphone has a new stream, and would seem unmuted by the old one.
func (l *link) describeStreams(streams map[string]Stream) {
	if len(streams) > 0 {
		l.streams = maps.Clone(l.streams)
		maps.DeleteFunc(l.streams, func(key string, _ Stream) bool { _, named := streams[key]; return !named })
	}
	l.mergeStreams(streams)
}

func (l *link) mergeStreams(streams map[string]Stream) {
	merged := maps.Clone(l.streams)
	if merged == nil {
		merged = make(map[string]Stream, len(streams))
	}
	for _, key := range sortedKeys(streams) {
		old, known := merged[key]
		if !known && len(merged) >= maxStreams {
			continue
		}
		s := streams[key]
		if s.Purpose != "" {
			old.Purpose = s.Purpose
		}
		if s.AudioMuted != nil {
			old.AudioMuted = s.AudioMuted
		}
		if s.VideoMuted != nil {
			old.VideoMuted = s.VideoMuted
		}
		merged[key] = old
	}
	l.streams = merged
}

// audible says whether the peer claims to send its microphone. No metadata at all means one unmuted stream.
func (l *link) audible() bool {
	if len(l.streams) == 0 {
		return true
	}
	for _, s := range l.streams {
		if s.Purpose == UserMedia && (s.AudioMuted == nil || !*s.AudioMuted) {
			return true
		}
	}
	return false
}

func (m *machine) tellMuted(p *peer) {
	l := p.link
	if muted := !l.audible(); l.announced && muted != l.toldMuted {
		l.toldMuted = muted
		m.do(PeerMuted{Peer: p.Peer, Muted: muted})
	}
}

// mute tells every peer whether the phone can be heard. Hydrogen switches the sound off when told so.
func (m *machine) mute(muted bool) {
	if muted == m.muted {
		return
	}
	m.muted = muted
	for _, p := range m.sortedPeers() {
		switch {
		case p.link == nil:
		case p.link.phase == connecting || p.link.phase == connected:
			m.sendMetadata(p)
		case p.link.phase == invited:
			p.link.dirty = true // nothing may follow the invite while it is repeated (rule)
		}
	}
}

func (m *machine) sendMetadata(p *peer) {
	m.send(p, Signal{Kind: Metadata, Streams: m.ourStreams()})
}

// assert tells every connected peer who the phone is; those that connect later hear it then.
func (m *machine) assert(identity Identity) {
	if identity == m.identity {
		return
	}
	m.identity = identity
	for _, p := range m.sortedPeers() {
		if p.connected() {
			m.sendIdentity(p)
		}
	}
}

func (m *machine) sendIdentity(p *peer) {
	m.send(p, Signal{Kind: AssertedIdentity, Identity: m.identity})
}

// connState follows ICE and DTLS.
func (m *machine) connState(p *peer, now Transport) {
	l := p.link
	switch {
	case now == Failed:
		// Not lost, but closed over there: by a client whose signalling failed, that is alive and should call again.
		p.gaveUp = !p.invites && l.phase == connected && l.deadline.IsZero()
		m.end(p, ReasonICEFailed, politely)
	case now == Up && (l.phase == connecting || l.phase == connected):
		l.deadline, l.restart, l.repeat = zero, zero, zero
		if l.phase == connecting {
			l.phase = connected
			l.since = m.now
			l.announced = true
			delete(m.lost, p.Peer)
			m.do(PeerConnected{Peer: p.Peer})
			m.tellMuted(p)
			if m.identity != (Identity{}) {
				m.sendIdentity(p)
			}
		}
	case now == Disconnected && l.phase == connected && l.deadline.IsZero():
		l.deadline = m.now.Add(lostPatience)
		if l.inviter {
			l.restart = m.now.Add(restartAfter)
		}
	}
}

// connFailed deals with an operation that did not work.
func (m *machine) connFailed(p *peer, err string) {
	l := p.link
	m.do(Note{Device: p.Device, Text: err})
	switch {
	case l.phase == offering:
		m.end(p, ReasonCreateOffer, quietly)
	case l.phase == answering:
		m.end(p, ReasonCreateAnswer, politely)
	case l.neg == makingOffer:
		l.neg, l.negUntil = stable, zero
		l.asked = true
	case l.neg == makingAnswer:
		m.end(p, ReasonBadOffer, politely) // matrix-js-sdk would wait for our answer for ever
	case l.phase == connecting:
		m.end(p, ReasonBadOffer, politely)
	}
}

// end ends the peer's link, if there is one, and decides who tries next.
func (m *machine) end(p *peer, reason string, f farewell) {
	l := p.link
	if l == nil {
		return
	}
	if f == politely && l.phase != offering {
		m.send(p, Signal{Kind: Hangup, Reason: reason})
		if l.phase == invited || l.phase == answering {
			m.send(p, Signal{Kind: Reject, Reason: reason})
		}
	}
	m.do(Close{Conn: l.conn, Reason: reason})
	if l.announced {
		m.do(PeerGone{Peer: p.Peer, Reason: reason})
		m.lose(p)
		if m.now.Sub(l.since) >= steadyAfter {
			p.tries, m.fruitless = 0, 0
		}
	}
	p.link = nil
	p.finish(l.call)
	switch {
	case stays(reason):
		p.next, p.warn, p.watch = zero, zero, zero
		p.resting = true
	case l.announced:
		m.expectAgain(p, calleeReturns)
	default:
		m.expectAgain(p, calleePatience)
	}
}

// lose remembers that a peer was connected and is not now.
func (m *machine) lose(p *peer) {
	if m.lost == nil {
		m.lost = make(map[Peer]loss)
	}
	m.lost[p.Peer] = loss{expires: p.expires, until: m.now.Add(lostCounts)}
}

// expectAgain arranges for another link after one that ended by mishap.
func (m *machine) expectAgain(p *peer, patience time.Duration) {
	if !p.invites {
		p.resting = false
		m.expect(p, patience)
		return
	}
	if p.tries >= len(backoff) {
		p.next, p.resting, p.silent = zero, true, !p.spoke
		return
	}
	p.spoke = p.spoke && p.tries > 0
	p.next = m.now.Add(backoff[p.tries])
	p.tries++
}

// unsent ends a link of which a signal cannot be sent. That says nothing of the peer: its homeserver may be away, or its
// device have no key left. So it does not rest when the other tries are used up, but is tried again now and then.
func (m *machine) unsent(p *peer) {
	m.end(p, ReasonSignalling, quietly)
	if p.invites && p.resting {
		p.resting, p.next = false, m.now.Add(unsentPause)
	}
}

// answeredLate is told when an outage of the homeserver kept our answer from a caller. Who has given up meanwhile, and used up
// its tries in the outage, never calls again unless we take a new session. It gets the time to do so by itself.
func (m *machine) answeredLate(p *peer, call string) {
	returns := m.now.Add(gaveUpReturns)
	switch l := p.link; {
	case p.invites || l != nil && (l.call != call || l.phase != connecting):
	case l != nil:
		l.late = true
		l.deadline = returns
	case !p.watch.IsZero():
		p.gaveUp, p.warn, p.watch = true, zero, returns
	}
}

// linkDue does what is due for a link.
func (m *machine) linkDue(p *peer) {
	l := p.link
	if m.due(l.deadline) {
		m.linkOverdue(p)
		return
	}
	if m.due(l.repeat) {
		l.repeat = m.now.Add(repeatPause)
		m.do(Send{To: p.Device, Signal: l.said, Repeat: true})
	}
	m.negotiationDue(p)
}

func (m *machine) linkOverdue(p *peer) {
	switch p.link.phase {
	case offering:
		m.end(p, ReasonCreateOffer, quietly)
	case invited:
		m.end(p, ReasonInviteTimeout, politely)
	case answering:
		m.end(p, ReasonCreateAnswer, politely)
	case connecting, connected:
		late := p.link.late && p.link.phase == connecting
		m.end(p, ReasonICEFailed, politely)
		if late {
			p.gaveUp, p.warn, p.watch = true, zero, m.now
		}
	}
}
