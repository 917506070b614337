package leg

import (
	"fmt"
	"strings"
	"time"
)

// FormatStep writes one step as the golden traces in testdata have it, so that a trace from production becomes a test by
// moving a file: what happened and when, what was done, and what the leg is then. start is when the leg began.
func FormatStep(start, at time.Time, ev Event, effects []Effect, s State) string {
	var b strings.Builder
	fmt.Fprintf(&b, "@%v %v\n", at.Sub(start).Round(time.Millisecond), ev)
	for _, e := range effects {
		fmt.Fprintf(&b, "    do %v\n", e)
	}
	deadline := "none"
	if !s.Deadline.IsZero() {
		deadline = "@" + s.Deadline.Sub(start).Round(time.Millisecond).String()
	}
	fmt.Fprintf(&b, "    is %v deadline=%s\n", s, deadline)
	return b.String()
}

// FormatRules writes the line that a trace begins with where its rules are not [DefaultRules].
func FormatRules(r Rules) string {
	return fmt.Sprintf("rules asks=%t setup=%v ring=%v tones=%t refusal=%v alone=%v empty=%v longest=%v release=%v\n",
		r.Asks, r.Setup, r.Ring, r.Tones, r.Refusal, r.Alone, r.Empty, r.Longest, r.Release)
}
