package menu

import "time"

// entry is everything until the PIN is right.
func (m *machine) entry(ev Event) {
	if ev.Kind == Resumed { // what was typed is lost; the tries are not
		m.EndBy = m.now.Add(m.Rules.Entry)
		m.ask()
		return
	}
	switch m.Phase {
	case Asking:
		m.asking(ev)
	case Checking:
		m.checking(ev)
	case Refused:
		m.refused(ev)
	}
}

func (m *machine) ask() {
	m.Phase, m.Typed, m.Verdict = Asking, "", 0
	m.play("conf-getpin")
}

func (m *machine) asking(ev Event) {
	switch ev.Kind {
	case Digit:
		m.press(ev.Key)
	case Played:
		m.Playing, m.Since = 0, m.now
	case Tick:
		switch {
		case !m.due():
		case !m.now.Before(m.EndBy):
			m.leave(NoPIN, "vm-goodbye")
		case m.Playing != 0:
			m.Playing, m.Since = 0, m.now
		case m.Typed != "":
			m.check()
		default:
			m.ask()
		}
	}
}

// press takes a key of the PIN: # ends, * begins anew.
func (m *machine) press(key Key) {
	m.stop()
	m.Since, m.KeyAt = m.now, m.now
	switch {
	case key == '#' && m.Typed == "":
		m.ask()
	case key == '#':
		m.check()
	case key == '*':
		m.Typed = ""
	case key >= '0' && key <= '9':
		m.Typed += Secret(key)
		if len(m.Typed) >= m.Rules.MaxDigits {
			m.check()
		}
	}
}

func (m *machine) check() {
	m.Phase, m.KeyAt, m.Verdict = Checking, m.now, 0
	m.effects = append(m.effects, Effect{Kind: CheckPIN, PIN: m.Typed})
	m.Typed = ""
}

func (m *machine) checking(ev Event) {
	switch ev.Kind {
	case PINRight, PINWrong, PINFailed:
		if m.Verdict != 0 {
			return
		}
		m.Verdict, m.Since = ev.Kind, m.now
	case Tick:
		if m.due() {
			m.tell()
		}
	}
}

// verdictDue is when the verdict may be told, or must have come. It is told at the next multiple of Rules.Verdict, so that
// its time says nothing of how it was found.
func (m *machine) verdictDue() time.Time {
	if m.Verdict == 0 {
		return m.KeyAt.Add(m.Rules.Check)
	}
	grid := max(m.Rules.Verdict, time.Nanosecond)
	return m.KeyAt.Add((max(0, m.Since.Sub(m.KeyAt))/grid + 1) * grid)
}

func (m *machine) tell() {
	switch m.Verdict {
	case PINRight:
		m.pass()
	case PINWrong:
		m.Tries++
		if m.Tries >= m.Rules.Tries {
			m.leave(WrongPIN, "conf-invalidpin", "vm-goodbye")
			return
		}
		m.Phase = Refused
		m.play("conf-invalidpin")
	default:
		m.leave(CheckFailed, "please-try-call-later", "vm-goodbye")
	}
}

func (m *machine) refused(ev Event) {
	switch ev.Kind {
	case Played:
		m.Playing, m.Since = 0, m.now
	case Tick:
		switch {
		case !m.due():
		case m.Playing != 0:
			m.Playing, m.Since = 0, m.now
		case !m.now.Before(m.EndBy):
			m.leave(NoPIN, "vm-goodbye")
		default:
			m.ask()
		}
	}
}

// penalty is the silence after a wrong PIN: it doubles each time.
func (m *machine) penalty() time.Duration {
	return m.Rules.Penalty << min(max(m.Tries-1, 0), 6)
}
