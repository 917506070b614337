package menu

import (
	"bufio"
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

// A trace is a scenario with what the menu did in it. "@" lines are input: the time since the start and an event. What
// follows them is output. "#" lines are the story. Because traces do not show keys, "! keys" lines tell the test which
// ones the next digit events are; "! rules" lines set what the route wants.
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
	keys := ""
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "! keys "):
			keys = strings.TrimPrefix(line, "! keys ")
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "! rules"):
			state.Rules.PIN = strings.Contains(line, " pin")
			state.Rules.Lobby = strings.Contains(line, " lobby")
			state.Rules.Announce = strings.Contains(line, " announce")
			fmt.Fprintln(&out, line)
		case line == "! restart":
			state = afterRestart(t, state)
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "#"), line == "":
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "@"):
			after, ev := parseInput(t, line)
			if ev.Kind == Digit {
				if keys == "" {
					t.Fatalf("%q: no keys left", line)
				}
				ev.Key, keys = Key(keys[0]), keys[1:]
			}
			var effects []Effect
			state, effects = Step(state, epoch.Add(after), ev)
			out.WriteString(FormatStep(epoch, epoch.Add(after), ev, effects, state))
		}
	}
	return out.String()
}

func parseInput(t *testing.T, line string) (time.Duration, Event) {
	t.Helper()
	at, what, _ := strings.Cut(strings.TrimPrefix(line, "@"), " ")
	after, err := time.ParseDuration(at)
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	for k := Began; k <= Tick; k++ {
		rest, ok := strings.CutPrefix(what, k.String())
		if !ok {
			continue
		}
		ev := Event{Kind: k}
		switch rest = strings.TrimSpace(rest); k {
		case PeopleAre, Played:
			if ev.N, err = strconv.Atoi(rest); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		case RoomMutes:
			ev.On = rest == "on"
		}
		return after, ev
	}
	t.Fatalf("%q: no such event", line)
	return 0, Event{}
}
