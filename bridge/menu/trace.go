package menu

import (
	"fmt"
	"strings"
	"time"
)

// FormatStep writes one step as the golden traces in testdata have it: what happened and when, what was done, and what
// the menu is then. Keys are masked. start is when the phone was answered.
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
