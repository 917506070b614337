package mesh

import (
	"cmp"
	"slices"
	"strconv"
)

// receive takes a signal in: is it for us, from whom, in which order.
func (m *machine) receive(from Device, sig Signal) {
	switch {
	case sig.CallID == "":
		m.drop(from, sig, "no call id")
	case sig.ConfID != m.cfg.ConfID:
		m.drop(from, sig, "another conference")
	case sig.DestSession != "" && sig.DestSession != m.session:
		m.drop(from, sig, "for another session of ours")
	case from.User == m.cfg.Self.User:
		m.drop(from, sig, "from ourselves")
	default:
		m.receiveFromMember(from, sig)
	}
}

func (m *machine) drop(from Device, sig Signal, why string) {
	m.do(Dropped{From: from, Kind: sig.Kind, Why: why})
}

func (m *machine) receiveFromMember(from Device, sig Signal) {
	mem, listed := m.members[from]
	if listed && mem.Ours {
		m.drop(from, sig, "from a ghost of ours")
		return
	}
	if listed && (sig.SenderSession == "" || sig.SenderSession == mem.Session) {
		m.heard(mem.Peer)
		m.reconcilePeers() // there may be room for it now
	}
	p := m.peers[from]
	switch {
	case p != nil && (sig.SenderSession == "" || sig.SenderSession == p.Session):
		if !p.signals.take(signalPace, m.now) {
			m.drop(from, sig, "too many signals")
			return
		}
		if p.silent { // a laptop that slept: what it says belongs to links that are over, but it is back
			m.wake(p)
		}
		p.spoke = true
		m.inOrder(p, sig)
	case p != nil && sig.SenderSession == p.former && sig.Kind != Invite && sig.Kind != Candidates:
		m.drop(from, sig, "of a past session")
	case p == nil && listed && m.wanted(mem) && !m.roomFor(mem.User):
		m.drop(from, sig, "too many peers")
		if sig.Kind == Invite && m.refused[mem.Peer] < maxRefusals && m.mayLink(mem.User) {
			if m.refused == nil {
				m.refused = make(map[Peer]int)
			}
			m.refused[mem.Peer]++
			m.decline(mem.Peer, sig.CallID, ReasonUserBusy)
		}
	default:
		m.holdEarly(from, sig)
	}
}

// holdEarly keeps a signal that is faster than its sender's member entry: matrix-js-sdk sends both in parallel.
func (m *machine) holdEarly(from Device, sig Signal) {
	same := 0
	for _, e := range m.early {
		if e.from.User == from.User {
			same++
		}
	}
	if same >= maxEarlyUser {
		m.drop(from, sig, "too many early signals")
		return
	}
	m.early = append(m.early, early{from: from, sig: sig, until: m.now.Add(earlyPatience)})
	m.evictEarly()
	m.readAgain()
}

// readAgain asks for the room's state, but not all the time.
func (m *machine) readAgain() {
	if m.readNext.IsZero() || m.due(m.readNext) {
		m.readNext = m.now.Add(readAgainAfter)
		m.do(ReadState{})
	}
}

// replayEarly takes in what was held for devices that are members now.
func (m *machine) replayEarly() {
	held := m.early
	m.early = nil
	for _, e := range held {
		p := m.peers[e.from]
		if p == nil || e.sig.SenderSession != "" && e.sig.SenderSession != p.Session {
			m.early = append(m.early, e)
			continue
		}
		m.heard(p.Peer)
		m.inOrder(p, e.sig)
	}
}

// inOrder puts a signal in the order of its call id. The numbers are a hint (rule): hydrogen counts per connection, so
// its second call begins anywhere; matrix-js-sdk per call; others do not count. The first number seen is the start, a
// gap is waited for but not for long, a repetition is dropped, and what comes late is still used.
func (m *machine) inOrder(p *peer, sig Signal) {
	t := p.track(sig.CallID)
	if t.over {
		m.drop(p.Device, sig, "call is over")
		return
	}
	if sig.Seq < 0 {
		m.dispatch(p, sig)
		return
	}
	mark := strconv.Itoa(sig.Seq) + sig.Kind.String()
	if slices.Contains(t.seen, mark) {
		m.drop(p.Device, sig, "repeated")
		return
	}
	if len(t.seen) >= maxSeen {
		t.seen = t.seen[1:]
	}
	t.seen = append(t.seen, mark)
	if !t.started {
		t.started, t.next = true, sig.Seq
	}
	if sig.Seq > t.next && len(t.held) < maxHeld && p.mayKeep(sig) {
		i, _ := slices.BinarySearchFunc(t.held, sig, func(a, b Signal) int { return cmp.Compare(a.Seq, b.Seq) })
		t.held = slices.Insert(t.held, i, sig)
		if t.gap.IsZero() {
			t.gap = m.now.Add(gapPatience)
		}
		return
	}
	t.next = max(t.next, sig.Seq+1)
	m.dispatch(p, sig)
	m.drainTrack(p, sig.CallID)
}

// drainTrack dispatches the held signals that are next. Dispatching may forget tracks: look them up again each time.
func (m *machine) drainTrack(p *peer, call string) {
	for {
		t := p.findTrack(call)
		if t == nil || t.over || len(t.held) == 0 {
			return
		}
		sig := t.held[0]
		if sig.Seq > t.next {
			t.gap = m.now.Add(gapPatience)
			return
		}
		t.held = slices.Delete(t.held, 0, 1)
		t.next = max(t.next, sig.Seq+1)
		if len(t.held) == 0 {
			t.gap = zero
		}
		m.dispatch(p, sig)
	}
}

// flushTrack stops waiting for a missing number.
func (m *machine) flushTrack(p *peer, call string) {
	t := p.findTrack(call)
	t.gap = zero
	if len(t.held) > 0 {
		t.next = t.held[0].Seq
		m.drainTrack(p, call)
	}
}

func (p *peer) findTrack(call string) *track {
	i := slices.IndexFunc(p.tracks, func(t track) bool { return t.call == call })
	if i < 0 {
		return nil
	}
	return &p.tracks[i]
}

// track finds or begins the order of a call id, forgetting the oldest that is not in use if there are too many.
func (p *peer) track(call string) *track {
	if t := p.findTrack(call); t != nil {
		return t
	}
	if len(p.tracks) >= maxTracks {
		i := slices.IndexFunc(p.tracks, func(t track) bool { return p.link == nil || t.call != p.link.call })
		p.tracks = slices.Delete(p.tracks, i, i+1)
	}
	p.tracks = append(p.tracks, track{call: call})
	return &p.tracks[len(p.tracks)-1]
}

// finish remembers that a call id is used up: whatever comes for it is late.
func (p *peer) finish(call string) {
	t := p.track(call)
	*t = track{call: call, over: true}
}

// dispatch acts on a signal whose turn it is.
func (m *machine) dispatch(p *peer, sig Signal) {
	if sig.Kind == Invite {
		m.inviteReceived(p, sig)
		return
	}
	if p.link == nil || p.link.call != sig.CallID {
		m.orphan(p, sig)
		return
	}
	if p.link.inviter || sig.Kind == SelectAnswer {
		p.link.repeat = zero // the peer knows our invite, or our answer
	}
	switch sig.Kind {
	case Answer:
		m.answerReceived(p, sig)
	case Candidates:
		m.candidatesReceived(p, sig)
	case Negotiate:
		m.negotiateReceived(p, sig)
	case Metadata:
		m.metadataReceived(p, sig)
	case Hangup, Reject:
		m.end(p, cmp.Or(sig.Reason, ReasonUserHangup), quietly)
	case SelectAnswer:
		if sig.Selected != "" && sig.Selected != string(m.cfg.Self.ID) {
			m.end(p, ReasonElsewhere, quietly)
		}
	case Replaces:
		// matrix-js-sdk's transfer ends its side without a hangup. We do not offer to be transferred.
		m.do(Note{Device: p.Device, Text: "peer transfers itself away"})
		m.end(p, ReasonTransferred, politely)
	case Other, AssertedIdentity, Invite:
	}
}

// orphan deals with a signal for a call we do not have: its invite is late, or it is of the past.
func (m *machine) orphan(p *peer, sig Signal) {
	switch sig.Kind {
	case Hangup, Reject:
		p.finish(sig.CallID)
	case Candidates, Negotiate, Metadata:
		if t := p.track(sig.CallID); len(t.orphans) < maxOrphans && p.mayKeep(sig) {
			t.orphans = append(t.orphans, sig)
			return
		}
		m.drop(p.Device, sig, "no such call")
	default:
		m.drop(p.Device, sig, "no such call")
	}
}
