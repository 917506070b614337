package leg

import "slices"

// A phone whose route wants a PIN, or has a lobby, is answered before the room knows of it. It hears a menu (package
// bridge/menu), which says [Passed] or [Dismissed]; only then is the room joined, as it is for others in Setup.

// answerFirst is the way to the answer of a phone that is asked before it may enter: prepared, saved, sent.
func (m *machine) answerFirst(ev Event) {
	switch ev.Kind {
	case PhoneReady:
		m.Phone = Ready
		m.do(Save)
	case Saved:
		if m.Phone != Ready {
			return
		}
		m.do(SendAnswer)
		m.ask()
	case Tick:
		if m.due() {
			m.refuse(TookTooLong)
		}
	default:
		m.anyEnd(ev)
	}
}

// ask lets the menu begin, or go on. It has deadlines of its own; here only the longest call counts.
func (m *machine) ask() {
	m.Phase, m.Phone, m.Media = Asking, Up, true
	m.Deadline = m.EndBy
	m.do(Ask)
}

// askAgain goes on with a phone that the process before had answered and asked.
func (m *machine) askAgain() {
	m.Stored = true
	m.startClock()
	m.ask()
	m.do(AskPhone)
}

// takeOver begins with a phone that was in another room, has passed the menu there, and wants to be in this one. It waits for
// the ghost at a desk of its own.
func (m *machine) takeOver() {
	m.Phase, m.Phone, m.Room, m.Media, m.Stored = Entering, Up, Coming, true, true
	m.startClock()
	m.within(m.Rules.Setup)
	m.do(Save)
	m.do(Ask)
	m.do(JoinRoom)
}

func (m *machine) asking(ev Event) {
	switch ev.Kind {
	case Passed:
		m.Phase, m.Room = Entering, Coming
		m.within(m.Rules.Setup)
		m.do(Save)
		m.do(JoinRoom)
	default:
		m.besideTheRoom(ev)
	}
}

// entering waits for the ghost. The phone hears why if it does not come.
func (m *machine) entering(ev Event) {
	switch ev.Kind {
	case RoomJoined:
		m.Phase, m.Room = Talking, Up
		m.do(Save)
		m.do(Enter)
		m.watchCompany()
	case CompanyIs:
		m.setCompany(ev.N)
	default:
		m.besideTheRoom(ev)
	}
}

// besideTheRoom is what may happen to a phone that is answered and not in the room yet.
func (m *machine) besideTheRoom(ev Event) {
	switch ev.Kind {
	case PhoneAcked, DialogChanged, SaveFailed:
		m.followPhone(ev)
	case Tick:
		switch {
		case !m.due():
		case !m.now.Before(m.EndBy):
			m.end(LongestReached)
		default:
			m.refuse(TookTooLong)
		}
	default:
		m.anyEnd(ev)
	}
}

// hears reports whether the phone can be played a tone: it is up and not in the room, or early media is allowed.
func (m *machine) hears() bool {
	switch m.Phone {
	case Coming, Ready:
		return m.Rules.Tones
	case Up:
		return slices.Contains([]Phase{Asking, Entering}, m.Phase)
	}
	return false
}
