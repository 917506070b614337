package leg

import (
	"fmt"
	"time"
)

// ID names a leg in the database, the log and the traces.
type ID string

// Phase is the coarse state; see the diagram in the package comment.
type Phase uint8

const (
	Idle Phase = iota
	Setup
	Talking
	Ending
	Ended
)

var phaseNames = [...]string{"idle", "setup", "talking", "ending", "ended"}

func (p Phase) String() string { return name(phaseNames[:], int(p)) }

// Side is what is known of one of the leg's two sides.
type Side uint8

const (
	Absent Side = iota // nothing was begun
	Coming             // the phone rings, the room is being joined
	Ready              // the phone's answer is prepared and saved, but not sent
	Up                 // answered, joined
	Going              // told to go; its confirmation is awaited
	Gone
)

var sideNames = [...]string{"absent", "coming", "ready", "up", "going", "gone"}

func (s Side) String() string { return name(sideNames[:], int(s)) }

// Rules are the limits of a leg, in wall-clock time.
type Rules struct {
	Setup   time.Duration // from the INVITE to the answer
	Alone   time.Duration // how long a phone may wait for somebody to come
	Empty   time.Duration // how long it stays after the last one left (a reload of a client is shorter)
	Longest time.Duration // of the whole call
	Release time.Duration // how long tearing down may take before the leg is forgotten regardless; a BYE takes up to 64 s
}

// DefaultRules are those of the example config.
func DefaultRules() Rules {
	return Rules{Setup: 30 * time.Second, Alone: 10 * time.Minute, Empty: 3 * time.Second, Longest: 4 * time.Hour, Release: 70 * time.Second}
}

// State is all that Step knows. The zero value with Rules set is a leg that has not begun.
type State struct {
	Rules   Rules
	Phase   Phase
	Phone   Side
	Room    Side
	Media   bool // packets flow between the desk and the phone
	Acked   bool // the phone confirmed our answer
	Stored  bool // a row exists
	Unsure  bool // the end was forced: a side did not confirm it
	Company int  // people and other phones in the conference, without this one
	Met     bool // Company was above zero at some time
	Cause   Cause

	AloneSince time.Time // zero while others are there
	EndBy      time.Time // the longest call ends here
	Deadline   time.Time // when Tick is due; zero = never
}

func (s State) String() string {
	return fmt.Sprintf("%v phone=%v room=%v media=%t company=%d", s.Phase, s.Phone, s.Room, s.Media, s.Company)
}

// Step decides. It never blocks, and any event is allowed in any state: libraries may report late, twice or never.
func Step(s State, now time.Time, ev Event) (State, []Effect) {
	m := machine{State: s, now: now}
	switch s.Phase {
	case Idle:
		m.idle(ev)
	case Setup:
		m.setup(ev)
	case Talking:
		m.talking(ev)
	case Ending:
		m.ending(ev)
	case Ended: // late reports of a leg that is gone
	}
	return m.State, m.effects
}

// machine is a State on its way to the next one.
type machine struct {
	State
	now     time.Time
	effects []Effect
}

func (m *machine) do(kind EffectKind) { m.effects = append(m.effects, Effect{Kind: kind}) }

// tell is do for effects that carry the cause.
func (m *machine) tell(kind EffectKind) {
	m.effects = append(m.effects, Effect{Kind: kind, Cause: m.Cause})
}

func (m *machine) idle(ev Event) {
	if ev.Kind != Invited {
		return
	}
	m.Phase, m.Phone, m.Room = Setup, Coming, Coming
	m.EndBy = m.now.Add(m.Rules.Longest)
	m.Deadline = m.now.Add(m.Rules.Setup)
	m.do(Ring)
	m.do(JoinRoom)
}

func (m *machine) setup(ev Event) {
	switch ev.Kind {
	case RoomJoined:
		m.Room = Up
		m.do(AcceptPhone)
	case PhoneReady:
		m.Phone, m.Stored = Ready, true
		m.do(Save)
	case Saved:
		if m.Phone != Ready || m.Room != Up {
			return
		}
		m.Phone, m.Media, m.Phase = Up, true, Talking
		m.do(SendAnswer)
		m.do(StartMedia)
		m.watchCompany()
	case CompanyIs:
		m.setCompany(ev.N)
	case Tick:
		if m.due() {
			m.end(TookTooLong)
		}
	default:
		m.anyEnd(ev)
	}
}

func (m *machine) talking(ev Event) {
	switch ev.Kind {
	case PhoneAcked:
		m.Acked = true
	case CompanyIs:
		m.setCompany(ev.N)
		m.watchCompany()
	case DialogChanged:
		m.do(Save)
	case SaveFailed: // a call in progress outlives the database's absence
	case Tick:
		switch {
		case !m.due():
		case !m.now.Before(m.EndBy):
			m.end(LongestReached)
		case m.Company == 0 && m.Met:
			m.end(RoomEmptied)
		case m.Company == 0:
			m.end(NobodyCame)
		}
	default:
		m.anyEnd(ev)
	}
}

// anyEnd is every way in which a leg can be told to end.
func (m *machine) anyEnd(ev Event) {
	switch ev.Kind {
	case PhoneCancelled:
		m.Phone = Gone
		m.end(Cancelled)
	case PhoneHungUp:
		m.Phone = Gone
		m.end(PhoneLeft)
	case PhoneFailed:
		m.end(PhoneLost)
	case PhoneReleased: // the phone side ended by itself and has nothing more to say
		m.Phone = Gone
		m.end(PhoneLost)
	case RoomRefused:
		m.end(ev.Cause)
	case CallEnded:
		m.end(EndedInRoom)
	case RoomFailed:
		m.end(RoomLost)
	case SaveFailed:
		m.end(NotStored)
	case Shutdown:
		m.end(ShuttingDown)
	}
}

// end is the one path of teardown: whatever is still there is told to go, and its confirmation is awaited.
func (m *machine) end(cause Cause) {
	m.Phase, m.Cause = Ending, cause
	m.Deadline = m.now.Add(m.Rules.Release)
	if m.Media {
		m.Media = false
		m.do(StopMedia)
	}
	switch m.Phone {
	case Coming, Ready:
		m.Phone = Going
		m.tell(RefusePhone)
	case Up:
		m.Phone = Going
		m.tell(HangUpPhone)
	}
	if m.Room != Absent && m.Room != Gone {
		m.Room = Going
		m.tell(LeaveRoom)
	}
	m.finish()
}

func (m *machine) ending(ev Event) {
	switch ev.Kind {
	case PhoneReleased, PhoneHungUp, PhoneCancelled, PhoneFailed:
		m.Phone = Gone
	case RoomLeft:
		m.Room = Gone
	case Tick:
		if !m.due() {
			return
		}
		// Somebody did not confirm, and may still be there: the row stays, for the next start to sweep.
		m.Phone, m.Room, m.Unsure = Gone, Gone, true
	default:
		return
	}
	m.finish()
}

// finish forgets the leg once both sides are gone.
func (m *machine) finish() {
	if m.Phone != Gone && m.Phone != Absent || m.Room != Gone && m.Room != Absent {
		return
	}
	m.Phase, m.Deadline = Ended, time.Time{}
	if m.Stored && !m.Unsure {
		m.tell(DeleteRow)
	}
	m.tell(Forget)
}

func (m *machine) setCompany(n int) {
	m.Company = n
	m.Met = m.Met || n > 0
}

// watchCompany sets the deadline of a talk: the longest call, or sooner when nobody is there. Hearing again that nobody is
// there does not begin the wait anew.
func (m *machine) watchCompany() {
	m.Deadline = m.EndBy
	if m.Company > 0 {
		m.AloneSince = time.Time{}
		return
	}
	if m.AloneSince.IsZero() {
		m.AloneSince = m.now
	}
	wait := m.Rules.Alone
	if m.Met {
		wait = m.Rules.Empty
	}
	if alone := m.AloneSince.Add(wait); alone.Before(m.Deadline) {
		m.Deadline = alone
	}
}

func (m *machine) due() bool { return !m.Deadline.IsZero() && !m.now.Before(m.Deadline) }

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprint("unknown ", i)
}
