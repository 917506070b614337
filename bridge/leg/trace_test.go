package leg

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

// A trace is a scenario with what the leg did in it. Lines that begin with "@" are input: the time since the start and an
// event. What follows them is output. "#" lines are the story.
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
		case strings.HasPrefix(line, "@"):
			after, ev := parseInput(t, line)
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
		case RoomRefused:
			ev.Cause = Cause(rest)
		}
		return after, ev
	}
	t.Fatalf("%q: no such event", line)
	return 0, Event{}
}
