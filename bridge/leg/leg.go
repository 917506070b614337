package leg

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// ID names a leg in the database, the log and the traces.
type ID string

// Phase is the coarse state; see the diagram in the package comment.
type Phase uint8

const (
	Idle      Phase = iota
	Setup           // the ghost goes into the call; the phone is answered unless the room must be rung first
	Ringing         // the ghost is in the call, and nobody else
	Answering       // the phone is answered before the room, because it is asked first
	Dialling        // the room calls the phone
	Asking          // an answered phone hears a menu: a PIN is asked for, or the room whether it may enter
	Entering        // it may: the ghost goes into the call
	Resuming        // the process before had answered the phone; the ghost goes back into the call
	Talking
	Refusing // the phone hears a tone that says why
	Ending
	Ended
)

var phaseNames = [...]string{
	"idle", "setup", "ringing", "answering", "dialling", "asking", "entering", "resuming", "talking", "refusing", "ending", "ended",
}

func (p Phase) String() string { return name(phaseNames[:], int(p)) }

// MarshalText writes the name, so that a stored state outlives a new order of phases; the same of sides and tones.
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads a name.
func (p *Phase) UnmarshalText(text []byte) error { return parse(p, phaseNames[:], text) }

// Side is what is known of one of the leg's two sides.
type Side uint8

const (
	Absent Side = iota // nothing was begun
	Coming             // the phone rings, the room is being joined
	Ready              // the phone's answer, or the INVITE to it, is prepared and saved, but not sent
	Up                 // answered, joined
	Going              // told to go; its confirmation is awaited
	Gone
)

var sideNames = [...]string{"absent", "coming", "ready", "up", "going", "gone"}

func (s Side) String() string { return name(sideNames[:], int(s)) }

// MarshalText writes the name.
func (s Side) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a name.
func (s *Side) UnmarshalText(text []byte) error { return parse(s, sideNames[:], text) }

// Rules are the limits of a leg, in wall-clock time.
type Rules struct {
	Asks    bool          // the phone is answered first and asked: for a PIN, or the room whether it may enter
	Setup   time.Duration // from the INVITE to the room, and from the first one who comes to the answer
	Ring    time.Duration // how long an empty room is rung before the phone is answered, 0: it is answered and waits; or a phone that we call
	Tones   bool          // early media: the phone hears our tones before it is answered
	Refusal time.Duration // how long it hears why it is refused
	Alone   time.Duration // how long a phone may wait for somebody to come
	Empty   time.Duration // how long it stays after the last one left (a reload of a client is shorter)
	Longest time.Duration // of the whole call
	Release time.Duration // how long tearing down may take before the leg is forgotten regardless; a BYE takes up to 64 s
}

// DefaultRules are those of the example config.
func DefaultRules() Rules {
	return Rules{
		Setup: 30 * time.Second, Ring: time.Minute, Tones: true, Refusal: 4 * time.Second,
		Alone: 10 * time.Minute, Empty: 3 * time.Second, Longest: 4 * time.Hour, Release: 70 * time.Second,
	}
}

// State is all that Step knows. The zero value with Rules set is a leg that has not begun.
type State struct {
	Rules   Rules
	Phase   Phase
	Out     bool // we call the phone
	Phone   Side
	Room    Side
	Media   bool  // packets flow between the desk and the phone
	Acked   bool  // the phone confirmed our answer, or we confirmed its
	Stored  bool  // a row exists
	Alerted bool  // the phone was told that it rings
	Unsure  bool  // the end was forced: a side did not confirm it
	Company int   // people and other answered phones in the conference, without this one
	Met     bool  // Company was above zero at some time
	Tone    Tone  // being played
	Wanted  bool  // somebody came while the room was rung: the phone is being answered
	Rung    bool  // the room was told of the call and not yet how that ended
	Told    Cause // how the room was told that the call stands which it ordered
	Cause   Cause

	RingBy     time.Time // a phone that we call has to answer until then
	AloneSince time.Time // zero while others are there
	EndBy      time.Time // the longest call ends here
	Deadline   time.Time // when Tick is due; zero = never
}

func (s State) String() string {
	text := fmt.Sprintf("%v phone=%v room=%v media=%t company=%d", s.Phase, s.Phone, s.Room, s.Media, s.Company)
	if s.Out {
		text += " out"
	}
	if s.Tone != NoTone {
		text += fmt.Sprint(" tone=", s.Tone)
	}
	return text
}

// Step decides. It never blocks, and any event is allowed in any state: libraries may report late, twice or never.
func Step(s State, now time.Time, ev Event) (State, []Effect) {
	m := machine{State: s, now: now}
	switch s.Phase {
	case Idle:
		m.idle(ev)
	case Setup:
		m.setup(ev)
	case Ringing:
		m.ringing(ev)
	case Dialling:
		m.dialling(ev)
	case Answering:
		m.answerFirst(ev)
	case Asking:
		m.asking(ev)
	case Entering:
		m.entering(ev)
	case Resuming:
		m.resuming(ev)
	case Talking:
		m.talking(ev)
	case Refusing:
		m.refusing(ev)
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

// Successor is where the leg begins in the process that comes after, with [Resumed] if the phone was answered, else with
// [Interrupted].
func (s State) Successor() State {
	return State{Rules: s.Rules, Out: s.Out, Acked: s.Acked, Met: s.Met, Told: s.Told, EndBy: s.EndBy}
}

// Answered tells whether the phone was answered, or may have been: the answer was saved and about to be sent.
func (s State) Answered() bool { return s.Phone == Ready && !s.Out || s.Phone == Up }

// Asked tells whether the phone was answered, or was about to be, and is not in its room yet.
func (s State) Asked() bool {
	return s.Phase == Answering || s.Phase == Asking || s.Phase == Entering
}

// OwesAck tells whether a phone that we called is up and not told yet that we know: that waits for [Saved].
func (s State) OwesAck() bool { return s.Out && s.Phone == Up && !s.Acked }

func (m *machine) idle(ev Event) {
	switch ev.Kind {
	case Invited:
		m.Phase, m.Phone, m.Stored = Setup, Coming, true
		m.EndBy = m.now.Add(m.Rules.Longest)
		m.Deadline = m.now.Add(m.Rules.Setup)
		m.do(Save)
		if m.Rules.Asks {
			m.Phase = Answering
			m.do(AcceptPhone)
			return
		}
		m.Room = Coming
		m.do(JoinRoom)
	case Ordered:
		m.order()
	case Resumed:
		m.resume()
	case ResumedAsking:
		m.askAgain()
	case TakesOver:
		m.takeOver()
	case Interrupted:
		m.Phone, m.Room, m.Stored = Coming, Up, true
		m.end(ProcessDied)
	}
}

// startClock counts the longest call from now, unless that was begun before.
func (m *machine) startClock() {
	if m.EndBy.IsZero() {
		m.EndBy = m.now.Add(m.Rules.Longest)
	}
}

// within sets the deadline of what is waited for, which is never after the longest call's.
func (m *machine) within(patience time.Duration) {
	m.Deadline = m.now.Add(patience)
	if m.EndBy.Before(m.Deadline) {
		m.Deadline = m.EndBy
	}
}

// resume goes on with a phone that the process before had answered. It hears us at once, if only silence.
func (m *machine) resume() {
	m.Phase, m.Phone, m.Room, m.Media, m.Stored = Resuming, Up, Coming, true, true
	m.startClock()
	m.within(m.Rules.Alone)
	m.do(StartMedia)
	m.acknowledge()
	m.do(AskPhone)
	m.do(JoinRoom)
}

func (m *machine) resuming(ev Event) {
	switch ev.Kind {
	case RoomJoined:
		m.Phase, m.Room = Talking, Up
		m.do(Save)
		m.watchCompany()
	case PhoneAcked, DialogChanged, SaveFailed:
		m.followPhone(ev)
	case CompanyIs:
		m.setCompany(ev.N)
	case Tick:
		switch {
		case !m.due():
		case !m.now.Before(m.EndBy):
			m.end(LongestReached)
		default:
			m.end(NoHomeserver)
		}
	default:
		m.anyEnd(ev)
	}
}

func (m *machine) setup(ev Event) {
	switch ev.Kind {
	case RoomJoined:
		m.Room = Up
		if m.Rules.Ring > 0 && m.Company == 0 {
			m.ring()
			return
		}
		m.do(AcceptPhone)
	case CompanyIs:
		m.setCompany(ev.N)
	case Saved:
		if m.Phone == Coming {
			m.alert()
			return
		}
		m.answering(ev)
	case Tick:
		if m.due() {
			m.refuse(TookTooLong)
		}
	default:
		m.answering(ev)
	}
}

// ring waits for the first one to come.
func (m *machine) ring() {
	m.Phase, m.Rung = Ringing, true
	m.Deadline = m.now.Add(m.Rules.Ring)
	m.do(Save)
	if m.Rules.Tones {
		m.play(Ringback)
	} else {
		m.alert() // the row was written before the membership
	}
	m.do(RingRoom)
}

// alert is the first that the phone hears of us. It waits for the row: a phone that has heard nothing asks again, the next
// process if need be, and one that has heard something waits.
func (m *machine) alert() {
	if !m.Alerted {
		m.Alerted = true
		m.do(Ring)
	}
}

func (m *machine) ringing(ev Event) {
	switch ev.Kind {
	case CompanyIs:
		m.setCompany(ev.N)
		if m.Company > 0 && !m.Wanted {
			m.Wanted = true
			m.Deadline = m.now.Add(m.Rules.Setup)
			m.do(AcceptPhone)
		}
	case RoomDeclined:
		if !m.Wanted { // else the one who came was faster
			m.refuse(Declined)
		}
	case Tick:
		switch {
		case !m.due():
		case m.Wanted:
			m.refuse(TookTooLong)
		default:
			m.refuse(NobodyAnswered)
		}
	case PhoneReady:
		if m.Wanted {
			m.answering(ev)
		}
	default:
		m.answering(ev)
	}
}

// answering is the way to the answer: prepared, saved, sent.
func (m *machine) answering(ev Event) {
	switch ev.Kind {
	case PhoneReady:
		m.Phone = Ready
		m.do(Save)
	case Saved:
		if m.Phone != Ready || m.Room != Up || m.Phase == Ringing && !m.Wanted {
			return
		}
		m.Phone, m.Media, m.Phase = Up, true, Talking
		m.do(SendAnswer)
		m.hush()
		m.do(StartMedia)
		m.ringOver(Answered)
		m.watchCompany()
	default:
		m.anyEnd(ev)
	}
}

func (m *machine) talking(ev Event) {
	switch ev.Kind {
	case Saved:
		m.acknowledge()
	case PhoneAcked, DialogChanged, SaveFailed:
		m.followPhone(ev)
	case CompanyIs:
		m.setCompany(ev.N)
		m.watchCompany()
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

// followPhone keeps the row of a phone that is answered true. One that can't be written ends nothing: a call in progress
// outlives the database's absence.
func (m *machine) followPhone(ev Event) {
	if ev.Kind == SaveFailed {
		if m.OwesAck() {
			m.do(Save) // when the database is back
			m.acknowledge()
		}
		return
	}
	m.Acked = m.Acked || ev.Kind == PhoneAcked
	m.do(Save)
}

// anyEnd is every way in which a leg can be told to end.
func (m *machine) anyEnd(ev Event) {
	switch ev.Kind {
	case PhoneCancelled:
		m.Phone = Gone
		m.end(cmp.Or(ev.Cause, Cancelled))
	case PhoneHungUp:
		m.Phone = Gone
		m.end(cmp.Or(ev.Cause, PhoneLeft))
	case HandedOver:
		m.Phone = Gone
		m.end(Moved)
	case PhoneFailed:
		m.end(PhoneLost)
	case PhoneReleased: // the phone side ended by itself and has nothing more to say
		m.Phone = Gone
		m.end(PhoneLost)
	case RoomRefused:
		m.refuse(ev.Cause)
	case CallEnded:
		m.refuse(EndedInRoom)
	case RoomFailed:
		m.refuse(RoomLost)
	case SaveFailed:
		m.refuse(NotStored)
	case HungUpByRoom:
		m.refuse(HungUp)
	case Dismissed:
		m.end(ev.Cause)
	case Shutdown:
		m.end(ShuttingDown)
	}
}

// refuse ends the leg. A phone that is not in the room yet hears why, where it can and there is a tone for it; the room is
// left meanwhile.
func (m *machine) refuse(cause Cause) {
	if m.Out { // nobody waits there to hear why
		m.end(cause)
		return
	}
	tone := cause.Tone()
	if m.Phone == Up && tone == NoTone {
		tone = Congestion // it can't be sent another way any more
	}
	if !m.hears() || m.Rules.Refusal <= 0 || tone == NoTone {
		m.end(cause)
		return
	}
	m.Phase, m.Cause = Refusing, cause
	m.Deadline = m.now.Add(m.Rules.Refusal)
	m.play(tone)
	m.ringOver(cause)
	m.leave()
}

// refusing waits until the tone was heard long enough. Whatever else happens shortens that, and changes the cause no more.
func (m *machine) refusing(ev Event) {
	switch ev.Kind {
	case PhoneCancelled, PhoneHungUp, PhoneReleased:
		m.Phone = Gone
		m.end(m.Cause)
	case PhoneFailed, ToneFailed, Shutdown:
		m.end(m.Cause)
	case RoomLeft:
		m.Room = Gone
	case Tick:
		if m.due() {
			m.end(m.Cause)
		}
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
	m.hush()
	m.ringOver(cause)
	m.report(cause)
	switch {
	case m.Phone == Up, m.Out && (m.Phone == Coming || m.Phone == Ready):
		m.Phone = Going
		m.tell(HangUpPhone)
	case m.Phone == Coming, m.Phone == Ready:
		m.Phone = Going
		m.tell(RefusePhone)
	}
	m.leave()
	m.finish()
}

func (m *machine) leave() {
	if m.Room == Coming || m.Room == Up {
		m.Room = Going
		m.tell(LeaveRoom)
	}
}

func (m *machine) play(t Tone) {
	m.Tone = t
	m.effects = append(m.effects, Effect{Kind: PlayTone, Tone: t})
}

func (m *machine) hush() {
	if m.Tone != NoTone {
		m.Tone = NoTone
		m.do(StopTone)
	}
}

func (m *machine) ringOver(how Cause) {
	if m.Rung {
		m.Rung = false
		m.effects = append(m.effects, Effect{Kind: RingOver, Cause: how})
	}
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

// parse is the reverse of name.
func parse[T ~uint8](into *T, names []string, text []byte) error {
	i := slices.Index(names, string(text))
	if i < 0 {
		return fmt.Errorf("there is no %T %q", *into, text)
	}
	*into = T(i)
	return nil
}

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprint("unknown ", i)
}
