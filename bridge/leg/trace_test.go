package leg

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden traces with what Step does now")

var epoch = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

// A trace is a scenario with what the leg did in it. Lines that begin with "@" are input: the time since the start and an
// event. What follows them is output. "#" lines are the story, a "rules" line changes the default ones.
func TestTraces(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.trace")
	if err != nil || len(paths) < 8 {
		t.Fatalf("found %d traces, %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".trace"), func(t *testing.T) {
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(want))
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(want) {
				t.Errorf("%s: Step did otherwise (run with -update if that is right):\n%s", path, got)
			}
		})
	}
}

func replay(t *testing.T, text string) string {
	t.Helper()
	var out strings.Builder
	state := State{Rules: DefaultRules()}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "#"), line == "":
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "rules "):
			parseRules(t, line, &state.Rules)
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "@"):
			after, ev := parseInput(t, line)
			var effects []Effect
			state, effects = Step(state, epoch.Add(after), ev)
			out.WriteString(FormatStep(epoch, epoch.Add(after), ev, effects, state))
		}
	}
	return out.String()
}

func parseRules(t *testing.T, line string, r *Rules) {
	t.Helper()
	durations := map[string]*time.Duration{
		"setup": &r.Setup, "ring": &r.Ring, "refusal": &r.Refusal, "alone": &r.Alone, "empty": &r.Empty,
		"longest": &r.Longest, "release": &r.Release,
	}
	for _, field := range strings.Fields(line)[1:] {
		key, value, _ := strings.Cut(field, "=")
		var err error
		switch d := durations[key]; {
		case key == "asks":
			r.Asks, err = strconv.ParseBool(value)
		case key == "tones":
			r.Tones, err = strconv.ParseBool(value)
		case d != nil:
			*d, err = time.ParseDuration(value)
		default:
			err = errors.New("no such rule")
		}
		if err != nil {
			t.Fatalf("%q: %s: %v", line, field, err)
		}
	}
}

func TestRulesOfATraceAreReadAsTheyAreWritten(t *testing.T) {
	want := Rules{Asks: true, Setup: 1, Ring: 2, Tones: true, Refusal: 3, Alone: 4, Empty: 5, Longest: 6, Release: 7}
	var got Rules
	parseRules(t, FormatRules(want), &got)
	if got != want {
		t.Errorf("parseRules(%q) = %+v", FormatRules(want), got)
	}
}

func parseInput(t *testing.T, line string) (time.Duration, Event) {
	t.Helper()
	at, what, _ := strings.Cut(strings.TrimPrefix(line, "@"), " ")
	after, err := time.ParseDuration(at)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	for k := Invited; k <= Tick; k++ {
		rest, ok := strings.CutPrefix(what, k.String())
		if !ok {
			continue
		}
		ev := Event{Kind: k}
		switch rest = strings.TrimSpace(rest); k {
		case CompanyIs:
			if ev.N, err = strconv.Atoi(rest); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		case RoomRefused, PhoneRefused, LineRefused, Dismissed, PhoneCancelled, PhoneHungUp:
			ev.Cause = Cause(rest)
		}
		return after, ev
	}
	t.Fatalf("%q: no such event", line)
	return 0, Event{}
}
