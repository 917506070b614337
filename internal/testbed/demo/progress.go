package main

import (
	"fmt"
	"io"
	"time"
)

// progress prints the steps as they happen and remembers those of the timeline.
type progress struct {
	out   io.Writer
	began time.Time
	marks []mark
}

// mark is one line of the timeline.
type mark struct {
	at   time.Time
	what string
}

func newProgress(out io.Writer) *progress { return &progress{out: out, began: time.Now()} }

func (p *progress) say(format string, args ...any) {
	fmt.Fprintf(p.out, "%6.1f s  %s\n", time.Since(p.began).Seconds(), fmt.Sprintf(format, args...))
}

// mark says it and puts it on the timeline.
func (p *progress) mark(what string) time.Time { return p.markAt(time.Now(), what) }

func (p *progress) markAt(at time.Time, what string) time.Time {
	p.marks = append(p.marks, mark{at, what})
	p.say("%s", what)
	return at
}

// timeline prints all marks in ms since the first.
func (p *progress) timeline() {
	fmt.Fprintln(p.out, "\nTimeline (ms since the INVITE):")
	for _, m := range p.marks {
		fmt.Fprintf(p.out, "  %7d  %s\n", m.at.Sub(p.marks[0].at).Milliseconds(), m.what)
	}
}

// Write lets installers report through the same lines.
func (p *progress) Write(b []byte) (int, error) {
	p.say("%s", trimLine(b))
	return len(b), nil
}

func trimLine(b []byte) string {
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return string(b)
}
