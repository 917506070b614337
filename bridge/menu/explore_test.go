package menu

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// journey is a reachable state with what was done on the way there.
type journey struct {
	state State
	done  tally
}

type tally struct {
	enters, leaves, checks, asks int
	muted                        bool // as the conference was told
}

func (t tally) add(e Effect) tally {
	switch e.Kind {
	case Enter:
		t.enters++
	case Leave:
		t.leaves++
	case CheckPIN:
		t.checks = min(t.checks+1, 3)
	case AskAdmission:
		t.asks++
	case SetMute:
		t.muted = e.On
	}
	return t
}

func littleRules() Rules {
	r := DefaultRules()
	r.Tries, r.MaxDigits = 2, 2
	r.Keys = map[string]Action{"*6": ToggleMute, "*5": ToggleHand, "*4": SayPeople, "*0": LeaveCall}
	r.FirstDigit, r.BetweenDigits, r.Entry = 2*time.Second, time.Second, 4*time.Second
	r.LobbyLongest, r.Settle, r.LongestSound = 4*time.Second, time.Second, 2*time.Second
	r.Check, r.Penalty = 2*time.Second, time.Second
	return r
}

// TestEveryReachableStateKeepsThePromises walks breadth-first through all states that any sequence of events can reach.
func TestEveryReachableStateKeepsThePromises(t *testing.T) {
	for _, route := range []struct{ pin, lobby, announce bool }{
		{false, false, false}, {true, false, true}, {false, true, true}, {true, true, false},
	} {
		rules := littleRules()
		rules.PIN, rules.Lobby, rules.Announce = route.pin, route.lobby, route.announce
		seen := map[string]bool{}
		for frontier := []journey{{state: State{Rules: rules}}}; len(frontier) > 0; {
			var next []journey
			for _, j := range frontier {
				for _, ev := range everyEvent(j.state) {
					to := walk(t, j, ev)
					if key := keyOf(to); !seen[key] {
						seen[key] = true
						next = append(next, to)
					}
				}
			}
			frontier = next
		}
		t.Logf("%+v: %d reachable states", route, len(seen))
		if len(seen) < 50 {
			t.Errorf("only %d reachable states: the exploration does not explore", len(seen))
		}
	}
}

// keyOf tells states apart; the number of a Play does not matter, only whether it sounds.
func keyOf(j journey) string {
	s := j.state
	return fmt.Sprint(s.Phase, s.Tries, s.Muted, s.Hand, s.People, s.Cause, s.Typed.Reveal(), s.Verdict, s.Counted, s.Greet, s.Playing != 0,
		s.EndBy, s.KeyAt, s.Since, s.Deadline, j.done)
}

// walk takes one step at the deadline (for ticks) or at the start (for all else): time matters only by deadlines.
func walk(t testing.TB, from journey, ev Event) journey {
	t.Helper()
	now := epoch
	if ev.Kind == Tick && !from.state.Deadline.IsZero() {
		now = from.state.Deadline
	}
	to := journey{done: from.done}
	var effects []Effect
	to.state, effects = Step(from.state, now, ev)
	for _, e := range effects {
		to.done = to.done.add(e)
	}
	for _, broken := range promises(from, to, ev, effects) {
		t.Fatalf("%s\nfrom %v\nby   %v\nto   %v\ndid  %v", broken, from.state, ev, to.state, effects)
	}
	return to
}

func promises(from, to journey, ev Event, effects []Effect) []string {
	var broken []string
	check := func(kept bool, sentence string) {
		if !kept {
			broken = append(broken, sentence)
		}
	}
	s, d := to.state, to.done
	has := func(kind EffectKind) bool {
		return slices.ContainsFunc(effects, func(e Effect) bool { return e.Kind == kind })
	}
	check(d.enters <= 1, "a phone enters at most once")
	check(d.leaves <= 1, "a phone is told to leave at most once")
	check(d.asks <= 1, "the room is asked at most once")
	check(!has(Leave) || effects[len(effects)-1].Kind == Leave, "leave is the last effect")
	check(d.leaves == 0 || s.Phase == Over, "leave is the end")
	check(s.Phase != Over || d.leaves == 1 || from.state.Phase == Over || ev.Kind == HungUp, "who did not hang up is told to leave")
	check(from.state.Phase != Over || len(effects) == 0 && s.Phase == Over, "nothing is done after the end")
	check(s.Phase == Idle || s.Phase == InCall || s.Phase == Over || !s.Deadline.IsZero(), "every phase that waits has a deadline")
	check(d.enters == 0 || !s.Rules.PIN || d.checks > 0, "nobody enters without the PIN that the route wants")
	check(!has(Enter) || !s.Rules.PIN || s.Rules.Lobby || from.state.Verdict == PINRight && ev.Kind == Tick, "only a right PIN opens the room")
	check(!has(Enter) || !s.Rules.Lobby || ev.Kind == Admitted, "only the room opens a lobby")
	check(s.Phase != InCall || d.enters == 1, "who is in the call has entered")
	check(s.Phase != InCall || s.Muted == d.muted, "the conference knows who is muted")
	check(s.Tries <= s.Rules.Tries, "no more tries than allowed")
	check(s.Phase != Asking || s.Tries < s.Rules.Tries, "nobody is asked after the last try")
	check(!has(Save) || effects[0].Kind == Save, "save stands first")
	check(s.Phase == from.state.Phase || s.Phase == Over || has(Save), "a new phase is saved")
	check(s.Phase == Asking || s.Phase == InCall || s.Phase == Lobby || s.Typed == "", "what was typed is forgotten as soon as it has served")
	check(len(s.Typed) <= max(s.Rules.MaxDigits, longestSequence), "what was typed does not grow without end")
	return broken
}

func everyEvent(s State) []Event {
	var events []Event
	for k := Began; k <= Tick; k++ {
		switch k {
		case Resumed: // a successor begins from what was stored; see the test below
		case Digit:
			for _, key := range []Key{'6', '0', '*', '#'} {
				events = append(events, Event{Kind: k, Key: key})
			}
		case PeopleAre:
			events = append(events, Event{Kind: k}, Event{Kind: k, N: 2})
		case Played:
			events = append(events, Event{Kind: k, N: s.Playing}, Event{Kind: k, N: s.Plays + 1})
		case RoomMutes:
			events = append(events, Event{Kind: k}, Event{Kind: k, On: true})
		default:
			events = append(events, Event{Kind: k})
		}
	}
	return events
}

// FuzzStep feeds any sequence of events, restarts among them, at any times. The promises hold, and once nobody does
// anything any more the phone is in the call or gone.
func FuzzStep(f *testing.F) {
	f.Add(byte(1), []byte{0, 1, 2, 3, 4, 5})
	f.Add(byte(3), []byte{0, 4, 5, 7, 255, 9, 9, 12})
	f.Fuzz(func(t *testing.T, route byte, script []byte) {
		rules := littleRules()
		rules.PIN, rules.Lobby, rules.Announce = route&1 != 0, route&2 != 0, route&4 != 0
		j := journey{state: State{Rules: rules}}
		for _, b := range script {
			if b == 255 {
				j.state = afterRestart(t, j.state)
				muted := j.state.Muted
				j.done.muted = false
				j.done.asks = 0
				to, effects := Step(j.state, epoch, Event{Kind: Resumed})
				j.state = to
				for _, e := range effects {
					j.done = j.done.add(e)
				}
				if to.Phase == InCall && j.done.muted != muted {
					t.Fatalf("after a restart muted is %t, want %t: %v", j.done.muted, muted, effects)
				}
				continue
			}
			events := everyEvent(j.state)
			j = walk(t, j, events[int(b)%len(events)])
		}
		for range 30 {
			j = walk(t, j, Event{Kind: Tick})
		}
		if p := j.state.Phase; p != Idle && p != InCall && p != Over {
			t.Errorf("after all deadlines: %v", j.state)
		}
	})
}
