package lab

import (
	"testing"
	"time"
)

// A line is dead for a second, and later a burst comes that was only held up: the first is silence in the recording, the
// second is none.
func TestSilenceIsPutWhereALineWasDead(t *testing.T) {
	start := time.Now()
	w := &pace{file: "call.wav"}
	r := Recording{Rate: judgeRate, Start: start}
	frame := func(at time.Duration) {
		for range judgeRate / 50 {
			r.PCM = append(r.PCM, 1000)
		}
		w.marks = append(w.marks, mark{start.Add(at), len(r.PCM)})
	}
	at := 20 * time.Millisecond
	for range 50 {
		frame(at)
		at += 20 * time.Millisecond
	}
	at += time.Second
	for i := range 50 {
		if i >= 20 && i < 30 {
			frame(at + time.Duration(30-i)*20*time.Millisecond) // all at once, when the hold-up is over
		} else {
			frame(at)
		}
		at += 20 * time.Millisecond
	}
	got := w.stretch(r, "call.wav")
	if d := got.Duration(); d < 2990*time.Millisecond || d > 3010*time.Millisecond {
		t.Errorf("the recording is %s long, want 3 s", d)
	}
	silent := 0
	for i, v := range got.PCM {
		if v != 0 {
			continue
		}
		silent++
		if second := float64(i) / judgeRate; second < 1 || second > 2 {
			t.Fatalf("silence after %.3f s, want it between 1 and 2 s", second)
		}
	}
	if silent < judgeRate*99/100 || silent > judgeRate*101/100 {
		t.Errorf("%d samples of silence, want a second", silent)
	}
	if other := w.stretch(r, "another.wav"); other.Duration() != r.Duration() {
		t.Errorf("a recording that was not followed is %s long, want it as it is", other.Duration())
	}
}
