package mesh

import (
	"hash/fnv"
	"slices"
	"strconv"
	"time"
)

// machine is one Step under way: the new state, the moment, what to do.
type machine struct {
	State
	now time.Time
	out []Effect
}

// Step says what follows from an event.
func Step(s State, now time.Time, ev Event) (State, []Effect) {
	m := &machine{State: s.clone(), now: now}
	m.handle(ev)
	m.reconcile()
	return m.State, m.out
}

func (m *machine) do(effects ...Effect) { m.out = append(m.out, effects...) }

func (m *machine) due(t time.Time) bool { return !t.IsZero() && !m.now.Before(t) }

func (m *machine) active() bool { return m.phase == joining || m.phase == joined }

func (m *machine) handle(ev Event) {
	switch ev := ev.(type) {
	case Join:
		if m.phase == idle {
			m.phase = joining
			m.writeEntry()
		}
	case Leave:
		m.leave(ev.Reason)
	case Abandon:
		m.abandon()
	case MemberWritten:
		m.memberWritten(ev)
	case CallWritten:
		m.callWritten(ev)
	}
	if state, ok := ev.(RoomState); ok && m.phase == leaving {
		m.roomStateLeaving(state)
	}
	if !m.active() {
		return
	}
	switch ev := ev.(type) {
	case RoomState:
		m.roomState(ev)
	case Received:
		m.receive(ev.From, ev.Signal)
	case Mute:
		m.mute(ev.Muted)
	case Assert:
		m.assert(ev.Identity)
	case SendFailed:
		if p := m.peers[ev.To]; p != nil && p.link != nil && p.link.call == ev.CallID {
			m.unsent(p)
		}
	case AnsweredLate:
		if p := m.peers[ev.To]; p != nil {
			m.answeredLate(p, ev.CallID)
		}
	case OfferReady:
		m.withLink(ev.Conn, func(p *peer) { m.offerReady(p, ev.SDP) })
	case AnswerReady:
		m.withLink(ev.Conn, func(p *peer) { m.answerReady(p, ev.SDP, ev.Audio) })
	case AnswerApplied:
		m.withLink(ev.Conn, func(p *peer) { p.link.audio = ev.Audio })
	case ConnFailed:
		m.withLink(ev.Conn, func(p *peer) { m.connFailed(p, ev.Err) })
	case ConnState:
		m.withLink(ev.Conn, func(p *peer) { m.connState(p, ev.Now) })
	}
}

// withLink calls f for the peer whose link uses the connection. Results for connections that were closed meanwhile
// are late, not wrong.
func (m *machine) withLink(conn Conn, f func(*peer)) {
	for _, p := range m.peers {
		if p.link != nil && p.link.conn == conn {
			f(p)
			return
		}
	}
}

// writeEntry asks for our member entry to be written with the present session.
func (m *machine) writeEntry() {
	m.entry.writing = true
	m.entry.next, m.entry.failed = time.Time{}, time.Time{}
	m.entry.expires = m.now.Add(m.cfg.EntryLife)
	m.do(PutMember{Session: m.session, Expires: m.entry.expires})
}

func (m *machine) memberWritten(ev MemberWritten) {
	if ev.Removed && m.phase == leaving {
		m.entryRemoved(ev)
		return
	}
	if ev.Removed || !m.active() || ev.Session != m.session {
		return // of a session we gave up; the next result is on its way
	}
	m.entry.writing = false
	switch {
	case ev.Err == "":
		m.entry.tries = 0
		m.entry.session = m.session
		m.entry.written = m.now
		m.entry.stands = m.entry.expires
		m.entry.next = m.now.Add(m.cfg.EntryLife*3/4 - m.jitter())
		m.endLeftBehind()
		if m.phase == joining {
			m.phase = joined
			m.do(Joined{})
		}
	case m.phase == joining && (ev.Fatal || m.entry.tries >= len(backoff)):
		m.phase = left
		m.closeAll(ev.Err)
		m.do(Done{Err: ev.Err})
	case m.phase == joining:
		m.entry.next = m.now.Add(backoff[m.entry.tries])
		m.entry.tries++
	case ev.Fatal:
		m.fail(ev.Err)
	case m.entry.session != m.session:
		m.entry.next = m.now.Add(sessionRetry) // nobody can reach us until it is written
	default:
		m.entry.failed = m.now
		m.entry.next = m.now.Add(min(entryRetry, m.cfg.EntryLife/40))
	}
}

// fail ends a membership that cannot be kept up.
func (m *machine) fail(err string) {
	m.do(CannotStay{Err: err})
	m.leave("")
}

// jitter spreads the renewals of ghosts that joined together over a twelfth of an entry's life: five minutes of an hour.
func (m *machine) jitter() time.Duration {
	h := fnv.New32a()
	h.Write([]byte(m.session))
	return m.cfg.EntryLife * time.Duration(h.Sum32()%300) / 3600
}

// leave says goodbye and removes our entry: hangup and state, for matrix-js-sdk keeps a call whose member vanished and
// calls again when only the hangup comes (rule).
func (m *machine) leave(reason string) {
	switch m.phase {
	case idle:
		m.phase = left
		m.do(Done{})
		return
	case leaving, left:
		return
	}
	if reason == "" {
		reason = ReasonUserHangup
	}
	for _, p := range m.sortedPeers() {
		m.end(p, reason, politely)
	}
	m.peers, m.early, m.lost, m.refused = nil, nil, nil, nil
	m.phase = leaving
	m.until = m.now.Add(leavePatience)
	m.entry.tries = 0
	m.removeEntry()
}

// abandon ends everything without a word.
func (m *machine) abandon() {
	if m.phase != left {
		m.closeAll(ReasonAbandoned)
		m.leftNow("")
	}
}

func (m *machine) removeEntry() {
	m.entry.writing = true
	m.entry.next = time.Time{}
	m.do(RemoveMember{})
}

func (m *machine) entryRemoved(ev MemberWritten) {
	if ev.Err == "" {
		m.endLeftBehind()
	}
	switch {
	case ev.Err == "" && m.empty():
		m.entry.session = ""
		m.entry.tries = 0
		m.do(TerminateCall{})
	case ev.Err == "":
		m.leftNow("")
	case ev.Fatal || m.entry.tries >= len(backoff):
		m.leftNow(ev.Err) // the entry expires by itself
	default:
		m.entry.next = m.now.Add(backoff[m.entry.tries])
		m.entry.tries++
	}
}

func (m *machine) callWritten(ev CallWritten) {
	if m.phase == leaving {
		m.leftNow(ev.Err)
	}
}

func (m *machine) leftNow(err string) {
	m.phase = left
	m.entry.next = time.Time{}
	m.do(Done{Err: err})
}

// empty says whether the call is ours to terminate and nobody is left in it.
func (m *machine) empty() bool {
	if !m.cfg.Created || !m.known && !m.cfg.Fresh {
		return false
	}
	for dev, mem := range m.members {
		if dev != m.cfg.Self && mem.Expires.After(m.now) {
			return false
		}
	}
	return true
}

// closeAll closes every link without a word.
func (m *machine) closeAll(reason string) {
	for _, p := range m.sortedPeers() {
		m.end(p, reason, quietly)
	}
	m.peers, m.early = make(map[Device]*peer), nil
}

// rotate takes a new session id: the universal reset, every peer starts anew (rule). It resets all of them, so it is
// the last resort.
func (m *machine) rotate() {
	m.closeAll(ReasonNewSession)
	m.rotated++
	m.fruitless++
	m.rotation = m.now
	m.session = m.cfg.Session + "r" + strconv.Itoa(m.rotated)
	m.writeEntry()
}

// reconcile does what is due, and what follows from who is in the conference.
func (m *machine) reconcile() {
	if m.phase == leaving {
		switch {
		case m.due(m.until):
			m.leftNow("leaving timed out")
		case m.due(m.entry.next):
			m.removeEntry()
		}
	}
	if !m.active() {
		return
	}
	if m.due(m.entry.stands) {
		m.fail("our member entry has expired")
		return
	}
	if m.due(m.entry.next) && !m.entry.writing {
		m.writeEntry()
	}
	m.reconcilePeers()
	m.early = slices.DeleteFunc(m.early, func(e early) bool {
		if m.due(e.until) {
			m.do(Dropped{From: e.from, Kind: e.sig.Kind, Why: "no such member"})
		}
		return m.due(e.until)
	})
	for _, p := range m.sortedPeers() {
		m.peerDue(p)
		if len(m.peers) == 0 {
			break // our session was renewed
		}
	}
	m.reconcilePeers()
	m.countPeople()
}
