package bridge

import (
	"io"
	"sync"
	"time"

	"trunkline/bridge/leg"
)

// traceLength is how many steps of a leg are kept.
const traceLength = 512

// trace keeps the last steps of a leg, written in the format of bridge/leg/testdata: a failure in production becomes a
// test by moving a file.
type trace struct {
	begun time.Time

	mu    sync.Mutex // guards steps and next
	steps []step
	next  int // where the next one goes once steps is full
}

type step struct {
	at      time.Time
	event   leg.Event
	effects []leg.Effect
	state   leg.State
}

func newTrace() *trace { return &trace{begun: time.Now()} }

func (t *trace) add(at time.Time, ev leg.Event, effects []leg.Effect, state leg.State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := step{at, ev, effects, state}
	if len(t.steps) < traceLength {
		t.steps = append(t.steps, s)
		return
	}
	t.steps[t.next] = s
	t.next = (t.next + 1) % traceLength
}

// WriteTo writes the trace, oldest step first.
func (t *trace) WriteTo(w io.Writer) (int64, error) {
	t.mu.Lock()
	steps := append(append([]step(nil), t.steps[t.next:]...), t.steps[:t.next]...)
	t.mu.Unlock()
	var total int64
	if len(steps) > 0 && steps[0].state.Rules != leg.DefaultRules() {
		n, err := io.WriteString(w, leg.FormatRules(steps[0].state.Rules))
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
	for _, s := range steps {
		n, err := io.WriteString(w, leg.FormatStep(t.begun, s.at, s.event, s.effects, s.state))
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}
