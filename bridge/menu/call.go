package menu

import "fmt"

// enter connects the phone. How many others there are is said once the conference has settled.
func (m *machine) enter() {
	m.stop()
	m.Phase, m.Typed = InCall, ""
	m.Greet = m.Rules.Announce
	m.EndBy = m.now.Add(m.Rules.Settle)
	m.do(Enter)
}

func (m *machine) call(ev Event) {
	switch ev.Kind {
	case Digit:
		m.key(ev.Key)
	case Played:
		m.Playing = 0
	case RoomMutes:
		if ev.On != m.Muted {
			m.mute(ev.On)
		}
	case Resumed: // the new process starts with an open microphone
		if m.Muted {
			m.effects = append(m.effects, Effect{Kind: SetMute, On: true})
		}
	case Tick:
		switch {
		case !m.due():
		case m.soundIsOver():
			m.Playing = 0
		case m.pauseIsOver():
			m.endSequence()
		case m.Greet:
			m.Greet = false
			m.play(m.company()...)
		}
	}
}

// key takes a key of a sequence like *6. Keys that begin no sequence mean nothing.
func (m *machine) key(key Key) {
	m.Typed += Secret(key)
	m.KeyAt = m.now
	action, more := m.Rules.action(string(m.Typed))
	switch {
	case more: // a longer sequence may follow; a pause decides
	case action != "":
		m.endSequence()
	case len(m.Typed) > 1: // nothing begins like that: perhaps the last key begins a new one
		m.Typed = ""
		m.key(key)
	default:
		m.Typed = ""
	}
}

func (m *machine) endSequence() {
	action := m.Rules.Keys[string(m.Typed)]
	m.Typed = ""
	if m.Phase != InCall && action != LeaveCall {
		return
	}
	switch action {
	case ToggleMute:
		m.mute(!m.Muted)
	case ToggleHand:
		m.Hand = !m.Hand
		m.effects = append(m.effects, Effect{Kind: RaiseHand, On: m.Hand})
		m.play("beep")
	case SayPeople:
		m.Greet = false
		m.play(m.company()...)
	case LeaveCall:
		m.leave(ByKey, "vm-goodbye")
	}
}

func (m *machine) mute(on bool) {
	m.Muted = on
	m.effects = append(m.effects, Effect{Kind: SetMute, On: on})
	if on {
		m.play("conf-muted")
	} else {
		m.play("conf-unmuted")
	}
}

// company says how many others there are, in the words that Asterisk's conferences have.
func (m *machine) company() []string {
	switch m.People {
	case 0:
		return []string{"conf-onlyperson"}
	case 1:
		return []string{"conf-onlyone"}
	}
	return []string{"conf-thereare", fmt.Sprintf("number/%d", m.People), "conf-otherinparty"}
}
