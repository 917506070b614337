package menu

import (
	"fmt"
	"slices"
	"time"
)

// Phase is where the phone is; see the diagram in the package comment.
type Phase uint8

const (
	Idle Phase = iota
	Asking
	Checking
	Refused
	Lobby
	InCall
	Leaving
	Over
)

var phaseNames = [...]string{"idle", "asking", "checking", "refused", "lobby", "in call", "leaving", "over"}

func (p Phase) String() string { return name(phaseNames[:], int(p)) }

// MarshalText writes the name, so that a stored state outlives a new order of phases.
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads a name.
func (p *Phase) UnmarshalText(text []byte) error {
	i := slices.Index(phaseNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("there is no phase %q", text)
	}
	*p = Phase(i)
	return nil
}

// State is all that Step knows. The zero value with Rules set is a phone that is not answered yet. As JSON it lacks what
// was typed.
type State struct {
	Rules  Rules `json:"rules"`
	Phase  Phase `json:"phase"`
	Tries  int   `json:"tries"` // wrong PINs so far
	Muted  bool  `json:"muted"`
	Hand   bool  `json:"hand"`
	People int   `json:"people"` // others in the conference
	Cause  Cause `json:"cause,omitempty"`

	Typed   Secret    `json:"-"` // of the PIN, or of a sequence of keys in the call
	Verdict EventKind `json:"-"` // Checking: the answer, not told yet; 0 = none
	Counted bool      `json:"-"` // InCall: People is known
	Greet   bool      `json:"-"` // InCall: how many there are is to be said
	Playing int       `json:"-"` // the ID of the Play that sounds; 0 = none
	Plays   int       `json:"-"` // so far

	EndBy    time.Time `json:"end_by"` // of the entry, or of the lobby
	KeyAt    time.Time `json:"-"`      // of the last key
	Since    time.Time `json:"-"`      // of what is waited on now: a sound begun or ended, a verdict
	Deadline time.Time `json:"-"`      // when Tick is due; zero = never
}

func (s State) String() string {
	text := fmt.Sprintf("%v tries=%d playing=%d", s.Phase, s.Tries, s.Playing)
	if s.Phase == InCall {
		text += fmt.Sprintf(" mute=%s hand=%s people=%d", onOff(s.Muted), onOff(s.Hand), s.People)
	}
	return text
}

// Step decides. It never blocks, and any event is allowed in any state.
func Step(s State, now time.Time, ev Event) (State, []Effect) {
	m := machine{State: s, now: now}
	switch {
	case s.Phase == Over:
		return s, nil
	case ev.Kind == HungUp:
		m.Phase, m.Typed, m.Playing = Over, "", 0
	default:
		m.handle(ev)
	}
	m.schedule()
	if m.lasting() != (&machine{State: s}).lasting() && m.Phase != Over {
		m.effects = append([]Effect{{Kind: Save}}, m.effects...)
	}
	return m.State, m.effects
}

// machine is a State on its way to the next one.
type machine struct {
	State
	now     time.Time
	effects []Effect
}

func (m *machine) handle(ev Event) {
	if ev.Kind == Played && (ev.N != m.Playing || m.Playing == 0) {
		return // of a Play that was stopped or replaced
	}
	if ev.Kind == PeopleAre {
		m.People, m.Counted = max(0, ev.N), true
	}
	switch m.Phase {
	case Idle:
		if ev.Kind == Began || ev.Kind == Resumed {
			m.begin()
		}
	case Asking, Checking, Refused:
		m.entry(ev)
	case Lobby:
		m.lobby(ev)
	case InCall:
		m.call(ev)
	case Leaving:
		switch {
		case ev.Kind == Played:
			m.Playing = 0
			m.over()
		case ev.Kind == Resumed, ev.Kind == Tick && m.due():
			m.over()
		}
	}
}

func (m *machine) begin() {
	if m.Rules.PIN {
		m.EndBy = m.now.Add(m.Rules.Entry)
		m.ask()
		return
	}
	m.pass()
}

// pass goes on behind the PIN.
func (m *machine) pass() {
	if !m.Rules.Lobby {
		m.enter()
		return
	}
	m.Phase, m.Typed = Lobby, ""
	m.EndBy = m.now.Add(m.Rules.LobbyLongest)
	m.do(AskAdmission)
	m.play("conf-waitforleader", "hold")
}

func (m *machine) lobby(ev Event) {
	switch ev.Kind {
	case Admitted:
		m.enter()
	case Declined:
		m.leave(RoomDeclined, "vm-goodbye")
	case Digit:
		m.key(ev.Key)
	case Resumed:
		m.play("conf-waitforleader", "hold")
	case Played:
		m.play("hold")
	case Tick:
		switch {
		case !m.due():
		case !m.now.Before(m.EndBy):
			m.leave(NotAdmitted, "vm-goodbye")
		case m.soundIsOver():
			m.play("hold")
		case m.pauseIsOver():
			m.endSequence()
		}
	}
}

// leave says goodbye and then hangs up.
func (m *machine) leave(cause Cause, sounds ...string) {
	m.Phase, m.Cause, m.Typed = Leaving, cause, ""
	m.play(sounds...)
}

func (m *machine) over() {
	m.stop()
	m.Phase = Over
	m.effects = append(m.effects, Effect{Kind: Leave, Cause: m.Cause})
}

func (m *machine) do(kind EffectKind) { m.effects = append(m.effects, Effect{Kind: kind}) }

func (m *machine) play(sounds ...string) {
	m.Plays++
	m.Playing, m.Since = m.Plays, m.now
	m.effects = append(m.effects, Effect{Kind: Play, ID: m.Playing, Sounds: sounds})
}

func (m *machine) stop() {
	if m.Playing != 0 {
		m.Playing = 0
		m.do(StopPlaying)
	}
}

// schedule sets the deadline from what is waited for.
func (m *machine) schedule() {
	m.Deadline = time.Time{}
	switch m.Phase {
	case Asking:
		m.wake(m.EndBy)
		switch {
		case m.Playing != 0:
			m.wake(m.Since.Add(m.Rules.LongestSound))
		case m.Typed != "":
			m.wake(m.KeyAt.Add(m.Rules.BetweenDigits))
		default:
			m.wake(m.Since.Add(m.Rules.FirstDigit))
		}
	case Checking:
		m.wake(m.verdictDue())
	case Refused:
		m.wakeAfterSound(m.penalty())
	case Lobby:
		m.wake(m.EndBy)
		m.wakeInCall()
	case InCall:
		if m.Greet && m.Counted && m.Playing == 0 {
			m.wake(m.EndBy)
		}
		m.wakeInCall()
	case Leaving:
		m.wake(m.Since.Add(m.Rules.LongestSound))
	}
}

func (m *machine) wakeInCall() {
	if m.Playing != 0 {
		m.wake(m.Since.Add(m.Rules.LongestSound))
	}
	if m.Typed != "" {
		m.wake(m.KeyAt.Add(m.Rules.BetweenDigits))
	}
}

func (m *machine) wakeAfterSound(pause time.Duration) {
	if m.Playing != 0 {
		pause = m.Rules.LongestSound
	}
	m.wake(m.Since.Add(pause))
}

// wake brings the deadline forward.
func (m *machine) wake(at time.Time) {
	if m.Deadline.IsZero() || at.Before(m.Deadline) {
		m.Deadline = at
	}
}

func (m *machine) due() bool { return !m.Deadline.IsZero() && !m.now.Before(m.Deadline) }

// soundIsOver reports whether a Play took so long that its end must have been lost.
func (m *machine) soundIsOver() bool {
	return m.Playing != 0 && !m.now.Before(m.Since.Add(m.Rules.LongestSound))
}

// pauseIsOver reports whether a sequence of keys goes on no more.
func (m *machine) pauseIsOver() bool {
	return m.Typed != "" && !m.now.Before(m.KeyAt.Add(m.Rules.BetweenDigits))
}

// lasting is what the database must hold: all that a successor goes by.
type lasting struct {
	phase       Phase
	tries       int
	muted, hand bool
}

func (m *machine) lasting() lasting { return lasting{m.Phase, m.Tries, m.Muted, m.Hand} }
