package menu

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"trunkline/bridge/pin"
	"trunkline/bridge/sound"
)

// shell is a bridge in miniature: it plays real prompts, checks PINs and keeps one timer, all in time that costs nothing.
type shell struct {
	t      testing.TB
	state  State
	now    time.Time
	sounds *sound.Library
	check  func(now time.Time, typed string) (EventKind, time.Duration) // the answer, and how long it takes

	soon  []due
	heard []string // what was played and when
	ended Cause
}

// due is an event that will happen.
type due struct {
	at time.Time
	ev Event
}

func (s *shell) later(after time.Duration, ev Event) {
	s.soon = append(s.soon, due{s.now.Add(after), ev})
}

func (s *shell) feed(ev Event) {
	var effects []Effect
	s.state, effects = Step(s.state, s.now, ev)
	for _, e := range effects {
		switch e.Kind {
		case Play:
			s.heard = append(s.heard, fmt.Sprint(s.now.Sub(epoch), e.Sounds))
			samples := 0
			for _, piece := range s.sounds.Prompt("en", e.Sounds...) {
				samples += len(piece)
			}
			s.later(time.Duration(samples)*time.Second/sound.Rate, Event{Kind: Played, N: e.ID})
		case CheckPIN:
			answer, took := s.check(s.now, e.PIN.Reveal())
			s.later(took, Event{Kind: answer})
		case Leave:
			s.ended = e.Cause
		}
	}
}

// run lets the call go on until it ends or enters. Whenever the caller is asked, he types after a second.
func (s *shell) run(types func() string) {
	s.feed(Event{Kind: Began})
	asked := 0
	for s.state.Phase != Over && s.state.Phase != InCall {
		if s.state.Phase == Asking && s.state.Playing != 0 && s.state.Plays != asked {
			asked = s.state.Plays
			for i, key := range []byte(types()) {
				s.later(time.Second+time.Duration(i)*100*time.Millisecond, Event{Kind: Digit, Key: Key(key)})
			}
		}
		next := due{s.state.Deadline, Event{Kind: Tick}}
		at := -1
		for i, d := range s.soon {
			if next.at.IsZero() || d.at.Before(next.at) {
				next, at = d, i
			}
		}
		if at >= 0 {
			s.soon = slices.Delete(s.soon, at, at+1)
		}
		if next.at.IsZero() {
			s.t.Fatalf("nothing will happen any more: %v", s.state)
		}
		s.now = next.at
		s.feed(next.ev)
	}
}

func newShell(t testing.TB, at time.Time, sounds *sound.Library) *shell {
	rules := DefaultRules()
	rules.PIN = true
	return &shell{t: t, state: State{Rules: rules}, now: at, sounds: sounds}
}

func TestAnUnknownRoomSoundsLikeAWrongPIN(t *testing.T) {
	sounds := sound.Open(sound.Options{System: t.TempDir()})
	var heard [2][]string
	for i, took := range []time.Duration{200 * time.Microsecond, 120 * time.Millisecond} { // nothing to look up; a slow database
		s := newShell(t, epoch, sounds)
		s.check = func(time.Time, string) (EventKind, time.Duration) { return PINWrong, took }
		s.run(func() string { return "482915#" })
		if s.ended != WrongPIN {
			t.Errorf("ended: %s", s.ended)
		}
		heard[i] = s.heard
	}
	if !slices.Equal(heard[0], heard[1]) || len(heard[0]) < 6 {
		t.Errorf("unknown room: %q\nwrong PIN:    %q", heard[0], heard[1])
	}
}

func TestTheRightPINOpens(t *testing.T) {
	key, err := pin.LoadKey(t.TempDir() + "/pin.key")
	if err != nil {
		t.Fatal(err)
	}
	stored := key.Sum("!room:example.org", "482915")
	s := newShell(t, epoch, sound.Open(sound.Options{System: t.TempDir()}))
	s.check = func(_ time.Time, typed string) (EventKind, time.Duration) {
		if key.Matches(stored, "!room:example.org", typed) {
			return PINRight, time.Millisecond
		}
		return PINWrong, time.Millisecond
	}
	tries := []string{"482916#", "48291548*482915#"}
	s.run(func() string { first := tries[0]; tries = tries[1:]; return first })
	if s.state.Phase != InCall || s.state.Tries != 1 {
		t.Errorf("after %q: %v", s.heard, s.state)
	}
}

// Ten lines call for six hours without a pause, each call from another number. They get to try no more PINs than the
// budgets have, and an honest caller on another trunk comes in.
func TestAThiefWithManyLinesTriesFewPINs(t *testing.T) {
	const hours = 6
	rates := pin.DefaultRates()
	budget := pin.NewBudget(rates)
	sounds := sound.Open(sound.Options{System: t.TempDir()})
	calls, tries := 0, 0
	lines := make([]time.Time, 10)
	for i := range lines {
		lines[i] = epoch
	}
	for {
		line := 0 // who is free first calls next
		for i, at := range lines {
			if at.Before(lines[line]) {
				line = i
			}
		}
		if lines[line].Sub(epoch) >= hours*time.Hour {
			break
		}
		calls++
		number := fmt.Sprint("+4930", calls)
		s := newShell(t, lines[line], sounds)
		s.check = func(now time.Time, _ string) (EventKind, time.Duration) {
			if budget.Take(now, "carrier", number) != nil {
				tries++
			}
			return PINWrong, time.Millisecond
		}
		s.run(func() string { return "482915#" })
		lines[line] = s.now.Add(time.Second)
	}
	if most := rates.Trunk.Burst + hours*60 + 1; tries > most || tries < most/2 {
		t.Errorf("%d tries in %d calls, want at most %d", tries, calls, most)
	}
	if budget.Take(epoch.Add(hours*time.Hour), "other", "+4930") == nil {
		t.Error("an honest caller on another trunk may not try")
	}
	t.Logf("%d calls, %d tries in %d hours", calls, tries, hours)
}
