package leg

import (
	"encoding/json"
	"slices"
	"testing"
	"time"
)

// journey is a reachable state with what was done on the way there, reduced to what the invariants need.
type journey struct {
	state State
	done  tally
}

// tally counts effects whose order or number matters.
type tally struct {
	answers, starts, stops, forgets, deletes, saves int
	releases                                        int // RefusePhone or HangUpPhone
	leaves, joins, enters                           int
	plays, stopped                                  bool // a tone was begun, and the last one is over
	rings, rung                                     int  // RingRoom, RingOver
	dials, acks                                     int
	told                                            Cause // by the last Report
}

func (t tally) add(e Effect) tally {
	switch e.Kind {
	case SendAnswer:
		t.answers++
	case StartMedia, Ask:
		t.starts++
	case Enter:
		t.enters++
	case StopMedia:
		t.stops++
	case Forget:
		t.forgets++
	case DeleteRow:
		t.deletes++
	case Save:
		t.saves++
	case RefusePhone, HangUpPhone:
		t.releases++
	case LeaveRoom:
		t.leaves++
	case JoinRoom:
		t.joins++
	case PlayTone:
		t.plays, t.stopped = true, false
	case StopTone:
		t.stopped = true
	case RingRoom:
		t.rings++
	case RingOver:
		t.rung++
	case DialPhone:
		t.dials++
	case NextLine: // the call before is over
		t.dials = 0
	case AckPhone:
		t.acks++
	case Report:
		t.told = e.Cause
	}
	t.saves = min(t.saves, 2) // DialogChanged may save without end
	return t
}

// TestEveryReachableStateKeepsThePromises walks breadth-first through all states that any sequence of events can reach,
// with every event in every state, and checks the sentences below in each.
func TestEveryReachableStateKeepsThePromises(t *testing.T) {
	for name, rules := range map[string]Rules{
		"conference":          {},
		"ringing with tones":  {Ring: 4 * time.Second, Tones: true, Refusal: time.Second},
		"ringing without":     {Ring: 4 * time.Second},
		"ringing, no refusal": {Ring: 4 * time.Second, Tones: true},
		"asking":              {Asks: true, Refusal: time.Second},
		"asking, no ring":     {Asks: true, Ring: 4 * time.Second, Tones: true},
	} {
		rules.Setup, rules.Alone, rules.Empty = 2*time.Second, 3*time.Second, time.Second
		rules.Longest, rules.Release = 5*time.Second, time.Second
		t.Run(name, func(t *testing.T) { explore(t, rules) })
	}
}

func explore(t *testing.T, rules Rules) {
	starts := []journey{{state: State{Rules: rules}}, {state: State{Rules: rules, Out: true}}} // the second one resumes a call of ours
	seen, events := map[journey]bool{}, everyEvent()
	for frontier := starts; len(frontier) > 0; {
		var next []journey
		for _, j := range frontier {
			for _, ev := range events {
				to := walk(t, j, ev)
				if !seen[to] {
					seen[to] = true
					next = append(next, to)
				}
			}
		}
		frontier = next
	}
	t.Logf("%d reachable states", len(seen))
	if len(seen) < 200 {
		t.Errorf("only %d reachable states: the exploration does not explore", len(seen))
	}
}

// walk takes one step at the deadline (for ticks) or at the start (for all else): time matters only by deadlines.
func walk(t *testing.T, from journey, ev Event) journey {
	t.Helper()
	now := epoch
	if ev.Kind == Tick && !from.state.Deadline.IsZero() {
		now = from.state.Deadline
	}
	to := journey{done: from.done}
	if from.state.Phase == Idle && slices.Contains([]EventKind{Resumed, Interrupted, ResumedAsking}, ev.Kind) {
		to.done.saves++ // by the process before
		if ev.Kind == Interrupted {
			to.done.joins++
		}
	}
	var effects []Effect
	to.state, effects = Step(from.state, now, ev)
	for _, e := range effects {
		to.done = to.done.add(e)
	}
	if ev.Kind == PhoneReleased && to.state.Phase != Idle && to.state.Phase < Refusing {
		t.Fatalf("the phone has ended and the leg goes on: from %v to %v", from, to)
	}
	for _, broken := range promises(from, to, effects) {
		t.Fatalf("%s\nfrom %v\nby   %v\nto   %v\ndid  %v", broken, from, ev, to, effects)
	}
	return to
}

// visible is what the phone, the room or its members notice.
var visible = map[EffectKind]bool{
	Ring: true, JoinRoom: true, SendAnswer: true, AskPhone: true, Enter: true, PlayTone: true, RingRoom: true, RingOver: true,
	DialPhone: true, AckPhone: true, Report: true, RefusePhone: true, HangUpPhone: true, LeaveRoom: true,
}

func promises(from, to journey, effects []Effect) []string {
	var broken []string
	check := func(kept bool, sentence string) {
		if !kept {
			broken = append(broken, sentence)
		}
	}
	s, d := to.state, to.done
	ended := s.Phase == Ended
	check(d.answers <= 1, "a phone is answered at most once")
	check(d.starts-d.stops == btoi(s.Media), "media is started and stopped in pairs")
	check(d.releases <= 1 && d.leaves <= 1 && d.joins <= 1, "each side is told to go at most once")
	check(d.forgets == btoi(ended), "forget is done exactly once, on reaching the end")
	check(d.answers == 0 || d.saves > 1, "a phone is answered only after the row was saved")
	check(!ended || d.deletes == btoi(s.Stored && !s.Unsure), "a row is deleted at the end if it was written, unless somebody may still be there")
	check(!ended || !s.Media, "no media after the end")
	check(!ended || d.joins == d.leaves, "a room that was joined is left")
	check(s.Phase == Idle || ended || !s.Deadline.IsZero(), "every phase that waits has a deadline")
	check(s.Phase != Talking || s.Phone == Up && s.Room == Up && s.Media, "talking means: phone up, room joined, media on")
	check(s.Phase != Resuming || s.Phone == Up && s.Media && s.Stored, "a phone that was answered hears us before the ghost is back")
	check(s.Phase == Idle || s.Stored, "whatever began has a row")
	check(from.state.Phase != Ended || len(effects) == 0, "nothing is done after the end")
	check(s.Phase >= from.state.Phase, "a leg never goes back to an earlier phase")
	check(s.Phase < Refusing || s.Cause != "" || from.state.Phase == Idle, "whatever ends has a cause")
	check((d.plays && !d.stopped) == (s.Tone != NoTone), "a tone that began ends, and nothing else ends one")
	check(s.Tone == NoTone || s.Phase == Ringing || s.Phase == Refusing, "tones are for phones that ring or are being refused")
	check(s.Tone == NoTone || s.Rules.Tones || s.Media, "no tone without early media, unless the phone was answered to be asked")
	check(s.Phase != Asking || s.Phone == Up && s.Room == Absent && s.Media, "a phone that is asked is answered, and the room does not know it")
	check(s.Phase != Entering || s.Phone == Up && s.Room == Coming && s.Media, "a phone that may enter goes on hearing us")
	check(d.enters <= 1 && (d.enters == 0 || d.joins == 1), "a phone enters once, after the room was joined")
	check(s.Phase != Ringing || s.Room == Up && !s.Media && s.Rules.Ring > 0 && s.Stored, "ringing means: room joined, no sound, a row")
	check(s.Phase != Ringing || s.Company == 0 || s.Wanted, "whoever comes to a ringing phone is answered")
	check(s.Phase != Refusing || s.Room != Coming && s.Room != Up && (s.Phone != Up || s.Media && d.enters == 0), "a phone that hears why is out of the room")
	check(d.rings <= 1 && d.rung <= 1 && d.rings-d.rung == btoi(s.Rung), "the room is told of a ring at most once, and once how it ended")
	check(!s.Rung || s.Phase == Ringing, "a ring is over once the phone stops ringing")
	check(d.answers == 0 || s.Rules.Ring == 0 || s.Rules.Asks || s.Met, "a phone that rings is answered only after somebody came")
	save := slices.IndexFunc(effects, func(e Effect) bool { return e.Kind == Save })
	seen := slices.IndexFunc(effects, func(e Effect) bool { return visible[e.Kind] })
	check(save < 0 || seen < 0 || save < seen, "the row is saved before what others can see")
	last := slices.IndexFunc(effects, func(e Effect) bool { return e.Kind == Forget })
	check(last < 0 || last == len(effects)-1, "forget is the last effect")
	check(d.dials <= 1 && (d.dials == 0 || d.saves > 0 && d.joins == 1), "a phone is called at most once, after that was saved, and from within the room's call")
	check(d.acks <= 1 && (d.acks == 0 || d.dials == 0 || d.saves > 1), "the answer of a phone is confirmed at most once, after that was saved")
	check(s.Phase != Talking || d.dials == 0 || s.Acked || from.state.OwesAck() || len(effects) > 0 && effects[0].Kind == Save, "a phone that has answered waits for its row, and for nothing else")
	check(s.Phase != Dialling || s.Out && s.Room != Absent && (s.Phone != Coming || s.Room == Up && d.dials == 1), "dialling means: the ghost first, then the phone")
	check(s.Phase != Dialling || !s.Media || s.Phone == Coming, "the line is heard only while the phone is called")
	check(d.dials == 0 || s.Phase < Ending || d.releases == 1 || s.Phone == Gone, "a phone that was called is told to go, or is gone by itself")
	check(!s.Out || s.Phase < Ending || d.told == s.Cause, "the room that ordered a call is told why it is over")
	check(s.Out || d.told == "", "nobody is told of a call that was not ordered")
	return broken
}

func everyEvent() []Event {
	var events []Event
	for k := Invited; k <= Tick; k++ {
		switch k {
		case CompanyIs:
			events = append(events, Event{Kind: k, N: 0}, Event{Kind: k, N: 1})
		case RoomRefused:
			events = append(events, Event{Kind: k, Cause: NoRights}, Event{Kind: k, Cause: NoHomeserver})
		case PhoneRefused, LineRefused:
			events = append(events, Event{Kind: k, Cause: PhoneBusy})
		case Dismissed:
			events = append(events, Event{Kind: k, Cause: WrongPIN})
		case PhoneCancelled:
			events = append(events, Event{Kind: k}, Event{Kind: k, Cause: PhoneElsewhere})
		default:
			events = append(events, Event{Kind: k})
		}
	}
	return events
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// FuzzStep feeds any sequence of events at any times; the promises must hold, and once the deadlines have passed without
// any confirmation the leg must be over.
func FuzzStep(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5})
	f.Fuzz(func(t *testing.T, script []byte) {
		events := everyEvent()
		j := journey{state: State{Rules: DefaultRules()}}
		for _, b := range script {
			j = walk(t, j, events[int(b)%len(events)])
		}
		for range 10 {
			j = walk(t, j, Event{Kind: Tick})
		}
		if j.state.Phase != Idle && j.state.Phase != Ended {
			t.Errorf("after all deadlines: %v", j.state)
		}
	})
}

func TestAStoredStateComesBackWhole(t *testing.T) {
	for p := Idle; p <= Ended; p++ {
		for side := Absent; side <= Gone; side++ {
			for tone := NoTone; tone <= Information; tone++ {
				want := State{Phase: p, Phone: side, Room: Gone - side, Tone: tone, Met: true, Cause: PhoneLost}
				text, err := json.Marshal(want)
				var got State
				if err == nil {
					err = json.Unmarshal(text, &got)
				}
				if err != nil || got != want {
					t.Fatalf("%v came back as %v, %v, from %s", want, got, err, text)
				}
			}
		}
	}
	var s State
	if err := json.Unmarshal([]byte(`{"Phase": "dancing"}`), &s); err == nil {
		t.Error("a phase that there is not was read")
	}
}
