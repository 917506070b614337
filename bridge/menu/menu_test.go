package menu

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// afterRestart is what a successor reads from the database.
func afterRestart(t testing.TB, s State) State {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var read State
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return read
}

// types feeds keys, one every 200 ms, and returns the time of the last.
func types(s State, now time.Time, keys string) (State, time.Time, []Effect) {
	var all []Effect
	for _, key := range []byte(keys) {
		now = now.Add(200 * time.Millisecond)
		var effects []Effect
		s, effects = Step(s, now, Event{Kind: Digit, Key: Key(key)})
		all = append(all, effects...)
	}
	return s, now, all
}

func askedForPIN(t testing.TB) State {
	t.Helper()
	rules := DefaultRules()
	rules.PIN = true
	s, _ := Step(State{Rules: rules}, epoch, Event{Kind: Began})
	return s
}

func TestThePINReachesTheCheckAndNothingElse(t *testing.T) {
	const pin = "8675309"
	s := askedForPIN(t)
	before, _, _ := types(s, epoch, pin)
	s, _, effects := types(s, epoch, pin+"#")
	got := ""
	for _, e := range effects {
		if e.Kind == CheckPIN {
			got += e.PIN.Reveal()
		}
	}
	if got != pin {
		t.Errorf("CheckPIN got %q, want %q", got, pin)
	}
	var logged strings.Builder
	for _, log := range []*slog.Logger{slog.New(slog.NewTextHandler(&logged, nil)), slog.New(slog.NewJSONHandler(&logged, nil))} {
		log.Info("test", "state", before, "effects", effects, "pin", Secret(pin), "event", Event{Kind: Digit, Key: '8'})
	}
	for _, text := range []string{
		fmt.Sprint(before, s, effects), fmt.Sprintf("%+v %#v %s %q", before, before, before, before.Typed),
		fmt.Sprintf("%+v %#v %v", effects, effects, effects), fmt.Sprintf("%#v %v %+v", Event{Kind: Digit, Key: '8'}, Event{Kind: Digit, Key: '8'}, Key('8')),
		FormatStep(epoch, epoch, Event{Kind: Digit, Key: '8'}, effects, before), mustJSON(t, before), mustJSON(t, effects), logged.String(),
	} {
		for _, secret := range []string{pin, pin[:3], "'8'", "Key:56", "Key:0x38"} {
			if strings.Contains(text, secret) {
				t.Errorf("%q can be read in %s", secret, text)
			}
		}
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A caller must not learn from the time whether the room exists: an unknown room is found sooner than a wrong PIN.
func TestVerdictComesAtTheSameTimeHoweverLongTheCheckTook(t *testing.T) {
	for _, verdict := range []EventKind{PINWrong, PINRight} {
		var want time.Time
		for _, took := range []time.Duration{0, time.Millisecond, 80 * time.Millisecond, 499 * time.Millisecond} {
			s, at, _ := types(askedForPIN(t), epoch, "123456#")
			s, effects := Step(s, at.Add(took), Event{Kind: verdict})
			if len(effects) != 0 {
				t.Fatalf("%v after %v: told at once: %v", verdict, took, effects)
			}
			told := s.Deadline
			if want.IsZero() {
				want = told
			}
			if !told.Equal(want) || !told.After(at.Add(took)) {
				t.Errorf("%v after %v: told at %v, want %v", verdict, took, told.Sub(at), want.Sub(at))
			}
			if _, effects = Step(s, told, Event{Kind: Tick}); len(effects) == 0 {
				t.Errorf("%v after %v: not told at its time", verdict, took)
			}
		}
	}
}

func TestTheWaitAfterEachWrongPINGrows(t *testing.T) {
	s, now := askedForPIN(t), epoch
	s.Rules.Tries, s.Rules.Entry = 6, time.Hour
	s.EndBy = epoch.Add(time.Hour)
	var waits []time.Duration
	for range 5 {
		s, now, _ = types(s, now, "1#")
		s, _ = Step(s, now, Event{Kind: PINWrong})
		now = s.Deadline
		s, _ = Step(s, now, Event{Kind: Tick})
		s, _ = Step(s, now, Event{Kind: Played, N: s.Playing})
		waits = append(waits, s.Deadline.Sub(now))
		now = s.Deadline
		s, _ = Step(s, now, Event{Kind: Tick})
	}
	if got, want := fmt.Sprint(waits), "[2s 4s 8s 16s 32s]"; got != want {
		t.Errorf("waits %s, want %s", got, want)
	}
}

func TestARestartDoesNotGiveTriesBack(t *testing.T) {
	s, now, _ := types(askedForPIN(t), epoch, "1#")
	s, _ = Step(s, now, Event{Kind: PINWrong})
	s, _ = Step(s, s.Deadline, Event{Kind: Tick})
	s = afterRestart(t, s)
	s, effects := Step(s, epoch.Add(time.Minute), Event{Kind: Resumed})
	if s.Phase != Asking || s.Tries != 1 || s.Typed != "" {
		t.Errorf("after a restart: %v typed=%d", s, len(s.Typed))
	}
	if got := fmt.Sprint(effects); !strings.Contains(got, "conf-getpin") {
		t.Errorf("after a restart: %s, want the prompt", got)
	}
}

func TestKeysOfTheConfigurationAreChecked(t *testing.T) {
	for _, c := range []struct {
		keys string
		do   Action
		ok   bool
	}{
		{"*6", ToggleMute, true},
		{"1", LeaveCall, true},
		{"*#06", SayPeople, true},
		{"", ToggleMute, false},
		{"*12345", ToggleMute, false},
		{"x", ToggleMute, false},
		{"*6", "explode", false},
	} {
		if err := CheckKeys(map[string]Action{c.keys: c.do}); (err == nil) != c.ok {
			t.Errorf("CheckKeys(%q: %q) = %v, want ok=%t", c.keys, c.do, err, c.ok)
		}
	}
	if err := CheckKeys(DefaultRules().Keys); err != nil {
		t.Error(err)
	}
}

func TestSequencesOfKeysAreFoundAmongOthers(t *testing.T) {
	keys := map[string]Action{"*6": ToggleMute, "*61": LeaveCall, "#": ToggleHand}
	for _, c := range []struct {
		typed string
		want  string
	}{
		{"*61", "[save play 1: vm-goodbye]"},
		{"*6", "[save set mute on play 1: conf-muted]"}, // after the pause
		{"*62", "[]"}, // begins like two, is none
		{"123*6", "[save set mute on play 1: conf-muted]"},
		{"**6", "[save set mute on play 1: conf-muted]"},
		{"#", "[save raise hand on play 1: beep]"},
		{"*#", "[save raise hand on play 1: beep]"},
	} {
		rules := DefaultRules()
		rules.Keys = keys
		s, _ := Step(State{Rules: rules}, epoch, Event{Kind: Began})
		s, _, effects := types(s, epoch, c.typed)
		if !s.Deadline.IsZero() && len(effects) == 0 {
			_, effects = Step(s, s.Deadline, Event{Kind: Tick})
		}
		if got := fmt.Sprint(effects); got != c.want {
			t.Errorf("%q: %s, want %s", c.typed, got, c.want)
		}
	}
}
