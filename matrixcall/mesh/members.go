package mesh

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"
)

// roomState takes note of who is listed in the conference.
func (m *machine) roomState(ev RoomState) {
	if ev.ConfID != m.cfg.ConfID && !ev.Out {
		return
	}
	first := !m.known
	m.known = true
	if ev.Ended || ev.Out {
		m.ended(ev)
		return
	}
	if ev.Elsewhere.ID != "" && m.shouldMove(ev) {
		m.move(ev.Elsewhere)
		return
	}
	listed := false
	for _, mem := range ev.Members {
		if mem.Device == m.cfg.Self {
			listed = mem.Session == m.session
			if ev.Unsure && m.displacedBy(mem.Session) {
				m.do(Displaced{Session: mem.Session})
				m.abandon()
				return
			}
		}
	}
	m.setMembers(ev)
	for _, mem := range ev.Members {
		if first && !mem.Ours && mem.Device != m.cfg.Self {
			m.doubt(mem)
		}
	}
	m.closeAccounts()
	maps.DeleteFunc(m.refused, func(p Peer, _ int) bool { return m.members[p.Device].Peer != p })
	if !listed && m.entry.session == m.session && !m.entry.writing && m.due(m.entry.written.Add(entryRetry)) {
		m.do(Note{Device: m.cfg.Self, Text: "our member entry was gone"})
		m.writeEntry()
	}
	if again := m.entry.failed.Add(sessionRetry); !m.entry.failed.IsZero() && again.Before(m.entry.next) {
		m.entry.next = again // the homeserver is there, and perhaps was not when our entry was to be renewed
	}
	for _, p := range m.peers {
		// The homeserver is there, so the peer can call again. While it was away nobody could.
		if again := m.now.Add(gaveUpReturns); p.gaveUp && p.warn.IsZero() && again.Before(p.watch) {
			p.watch = again
		}
	}
	m.reconcilePeers()
	m.replayEarly()
}

// displacedBy says whether a session that our device is listed with is of another process that came after us. Our entry has stood for
// a moment, and nobody but our application service can write it: what is there now was never written here, nor by the process before
// us, whose last write may have been slow.
func (m *machine) displacedBy(session string) bool {
	ours := strings.HasPrefix(session, m.cfg.Session) || m.cfg.Former != "" && strings.HasPrefix(session, m.cfg.Former)
	return !ours && m.entry.session == m.session && !m.entry.writing && m.due(m.entry.written.Add(entrySettles))
}

func (m *machine) setMembers(ev RoomState) {
	m.members = make(map[Device]Member, len(ev.Members))
	for _, mem := range ev.Members {
		if mem.Device != m.cfg.Self {
			m.members[mem.Device] = mem
		}
	}
}

// roomStateLeaving takes note of who comes while we leave: the call must not be terminated under them.
func (m *machine) roomStateLeaving(ev RoomState) {
	switch {
	case ev.Ended || ev.Out:
		m.cfg.Created = false
	case ev.ConfID == m.cfg.ConfID:
		m.known = true
		m.setMembers(ev)
	}
}

// shouldMove says whether we are waiting in the wrong call: people are in another one of this room and nobody ever was in
// ours. That happens when a member and we create a call in the same moment. A client that made its own does not look at a
// second one (matrix-js-sdk), so we must go where the people are. An entry of somebody who is not heard of is nobody, once
// it has had its time. Later nobody is moved: who leaves a call has left it.
func (m *machine) shouldMove(ev RoomState) bool {
	patient := !m.counted || m.awaitsProof()
	return !m.met && m.moves < maxMoves && !slices.ContainsFunc(ev.Members, func(mem Member) bool {
		return m.wanted(mem) && (patient || !m.vanished(mem))
	})
}

// move changes to another conference. One request takes our entry from here to there.
func (m *machine) move(to Conference) {
	m.closeAll(ReasonNewSession)
	m.do(Moved{From: m.cfg.ConfID, To: to})
	if m.cfg.Created {
		m.leftBehind = append(m.leftBehind, m.cfg.ConfID)
	}
	m.cfg.ConfID, m.cfg.Created, m.cfg.Fresh = to.ID, to.Ours, false
	m.members, m.known, m.proof = nil, false, zero
	m.moves++
	m.session = m.cfg.Session + "m" + strconv.Itoa(m.moves)
	m.writeEntry()
}

// endLeftBehind terminates the calls we moved away from once our entry there is gone.
func (m *machine) endLeftBehind() {
	for _, confID := range m.leftBehind {
		m.do(EndEmpty{ConfID: confID})
	}
	m.leftBehind = nil
}

func (m *machine) ended(ev RoomState) {
	m.cfg.Created = false // no need to terminate it, or no right
	if ev.Ended {
		m.do(CallEnded{Reason: "the call was ended"})
		m.leave("")
		return
	}
	m.do(CallEnded{Reason: "our ghost is no longer in the room"})
	for _, p := range m.sortedPeers() {
		m.end(p, ReasonUserHangup, politely)
	}
	m.peers, m.early = nil, nil
	m.leftNow("")
}

// wanted says whether we should be connected to a member. One whose entry expired while it is connected stays, as
// with hydrogen: its media proves that it is there, and our clock may differ.
func (m *machine) wanted(mem Member) bool {
	if mem.Ours || mem.User == m.cfg.Self.User {
		return false
	}
	p := m.peers[mem.Device]
	return mem.Expires.After(m.now) || p != nil && p.connected() && p.Session == mem.Session
}

// reconcilePeers closes what is not wanted any more and makes peers of those that are missing.
func (m *machine) reconcilePeers() {
	for _, p := range m.sortedPeers() {
		mem, listed := m.members[p.Device]
		switch {
		case !listed || !m.wanted(mem):
			// matrix-js-sdk keeps the call of a vanished member until it hears a hangup.
			m.end(p, ReasonUserHangup, politely)
			delete(m.peers, p.Device)
		case mem.Session != p.Session:
			m.end(p, ReasonNewSession, quietly) // a clean slate on both sides, nothing to say
			next := m.addPeer(mem)
			next.former = p.Session
			next.signals, next.calls, next.offers = p.signals, p.calls, p.offers
		case !mem.Expires.Equal(p.expires):
			p.expires = mem.Expires
			m.wake(p)
		}
	}
	for _, mem := range m.sortedMembers() {
		if m.peers[mem.Device] == nil && m.wanted(mem) && (m.roomFor(mem.User) || m.makeRoom(mem)) {
			m.addPeer(mem)
		}
	}
}

// makeRoom lets go of a device of the user that shows no sign of life in favour of one that does, and says whether it could:
// closed clients leave entries, and must not keep a live one out.
func (m *machine) makeRoom(mem Member) bool {
	if m.vanished(mem) {
		return false
	}
	for _, p := range m.sortedPeers() {
		if p.User == mem.User && !p.connected() && m.vanished(m.members[p.Device]) {
			m.end(p, ReasonInviteTimeout, politely)
			delete(m.peers, p.Device)
			return m.roomFor(mem.User)
		}
	}
	return false
}

func (m *machine) addPeer(mem Member) *peer {
	p := &peer{Peer: mem.Peer, expires: mem.Expires, invites: invites(m.cfg.Self, mem.Device)}
	m.peers[mem.Device] = p
	m.expect(p, calleePatience)
	return p
}

// wake gives a peer that moved (renewed its entry, say) another chance.
func (m *machine) wake(p *peer) {
	if p.link != nil {
		return
	}
	p.tries, p.next, p.spoke, p.silent = 0, m.now, false, false
	if p.resting || !p.invites {
		p.resting = false
		m.expect(p, calleePatience)
	}
}

// expect arranges for the peer's next link: ours now, or theirs in good time.
func (m *machine) expect(p *peer, patience time.Duration) {
	if p.invites {
		p.next = m.now
		return
	}
	p.next = time.Time{}
	p.warn = m.now.Add(calleeWarning)
	p.watch = m.now.Add(patience)
	if p.gaveUp {
		p.warn = m.now.Add(gaveUpWarning)
	}
}

// doubt takes a member who was listed before we came for gone until it is heard of. A client that was closed without a
// word leaves its entry for an hour, and a phone must not be answered because of that.
func (m *machine) doubt(mem Member) {
	if m.lost == nil {
		m.lost = make(map[Peer]loss)
	}
	l := loss{expires: mem.Expires, unheard: true}
	if m.cfg.Returns {
		l.until = m.now.Add(lostCounts)
	}
	m.lost[mem.Peer] = l
}

// heard takes note that a member's session sent us something.
func (m *machine) heard(p Peer) {
	if m.lost[p].unheard {
		delete(m.lost, p)
	}
}

// countPeople reports the number of users that are not ours. It says that there is nobody only when whoever is listed has
// had the time to be heard of.
func (m *machine) countPeople() {
	m.updateLost()
	users := make(map[id.UserID]bool)
	for _, mem := range m.members {
		if m.wanted(mem) && !m.vanished(mem) {
			users[mem.User] = true
		}
	}
	m.met = m.met || len(users) > 0
	if !m.known || !m.counted && len(users) == 0 && m.awaitsProof() {
		return
	}
	if len(users) != m.people || !m.counted {
		m.people, m.counted = len(users), true
		m.do(People{N: m.people})
		if len(users) == 0 && !m.met && len(m.lost) > 0 {
			m.readAgain() // people may be in another call, which shouldMove can go to only now
		}
	}
}

// awaitsProof says whether somebody may still be heard of: nobody can call us before our entry stands.
func (m *machine) awaitsProof() bool {
	unheard := slices.ContainsFunc(slices.Collect(maps.Values(m.members)), func(mem Member) bool {
		return m.wanted(mem) && m.lost[mem.Peer].unheard
	})
	if m.proof.IsZero() && m.entry.session == m.session {
		m.proof = m.now.Add(proofPatience)
	}
	return unheard && !m.due(m.proof)
}

// updateLost forgets the losses of peers that are not listed any more or have moved their entry, and ends the patience
// with the others.
func (m *machine) updateLost() {
	for _, p := range slices.Collect(maps.Keys(m.lost)) {
		l, mem := m.lost[p], m.members[p.Device]
		switch {
		case mem.Peer != p || !mem.Expires.Equal(l.expires):
			delete(m.lost, p)
		case m.due(l.until):
			l.until = zero
			m.lost[p] = l
		}
	}
}

// vanished says whether a member was connected, is not any more, and has had its time to come back, or whether it was
// listed when we came and has not been heard of.
func (m *machine) vanished(mem Member) bool {
	l, lost := m.lost[mem.Peer]
	return lost && l.until.IsZero()
}

// peerDue does what is due for one peer.
func (m *machine) peerDue(p *peer) {
	for i := range p.tracks {
		if m.due(p.tracks[i].gap) {
			m.flushTrack(p, p.tracks[i].call)
		}
	}
	if p.link != nil {
		m.linkDue(p)
	}
	if p.link != nil {
		return
	}
	switch {
	case m.due(p.next):
		switch {
		case m.entry.session != m.session:
			// Hydrogen keeps signals of an unknown session until our entry arrives, but matrix-js-sdk does not.
		case m.mayLink(p.User):
			m.invite(p)
		default:
			p.next = m.account(p.User).links.from(linkPace)
		}
	case m.due(p.warn):
		p.warn = time.Time{}
		m.do(Note{Device: p.Device, Text: "peer should have called by now"})
		m.readAgain()
	case m.due(p.watch):
		m.calleeOverdue(p)
	}
}

// calleeOverdue deals with a peer that should call us and does not. Hydrogen gives a device up for good after three
// failures; only a new session id of ours makes it try again. That resets every peer, so it is done only when there
// is none to lose, or when the peer has shown that it is alive: a second without sound for the others, so that it is not
// deaf for good.
func (m *machine) calleeOverdue(p *peer) {
	p.watch = time.Time{}
	alone := !slices.ContainsFunc(slices.Collect(maps.Values(m.peers)), (*peer).connected)
	if !alone && !p.gaveUp {
		p.watch = m.now.Add(calleePatience)
		return
	}
	if m.fruitless >= maxRotations {
		p.resting = true
		return
	}
	if again := m.rotation.Add(rotatePause); !m.rotation.IsZero() && m.now.Before(again) {
		p.watch = again
		return
	}
	if !alone && !m.account(p.User).resets.take(resetPace, m.now) {
		p.gaveUp = false // it does this too often
		p.watch = m.now.Add(calleePatience)
		return
	}
	m.do(Note{Device: p.Device, Text: "peer does not call; taking a new session"})
	m.rotate()
}
