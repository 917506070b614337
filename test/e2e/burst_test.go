//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	"trunkline/test/lab"
)

// A round is short: two pieces of a second are judged, and some more if these were not heard well. A message that is
// lost stays lost; a machine that is busy for a moment does not.
const (
	rounds       = 20
	roundSettles = 700 * time.Millisecond
	roundListens = 2200 * time.Millisecond
	roundTries   = 3
)

// TestTwoPhonesJoinInTheSameInstant repeats the burst in which to-device messages by transaction get lost: one client
// signals two ghosts at once. Every round must be heard, both phones by the client and the client by both phones.
func TestTwoPhonesJoinInTheSameInstant(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "alice")
	alice := s.page(lab.Hydrogen, users[0])
	phones := []*lab.Phone{s.phone("desk", lab.PhoneOptions{}), s.phone("hall", lab.PhoneOptions{Codecs: "PCMA"})}
	s.startCall(alice)
	heard := 0
	var slowest time.Duration
	for round := range rounds {
		s.dial(phones...)
		s.eventually("the client is connected to both ghosts", 10*time.Second, func() bool { return s.legs(alice) == 2 })
		connected := time.Now()
		slowest = max(slowest, connected.Sub(s.dialed))
		if s.roundHeard(alice, phones, round, connected.Add(roundSettles)) {
			heard++
		}
		for _, p := range phones {
			s.must(p.Hangup(s.ctx))
		}
		s.eventually("both ghosts have left", 5*time.Second, func() bool { return len(s.ghosts()) == 0 && s.members(alice) == 0 })
	}
	t.Logf("%d of %d rounds heard; slowest INVITE to connected %d ms", heard, rounds, slowest.Milliseconds())
	if heard != rounds {
		t.Errorf("%d rounds heard, want %d", heard, rounds)
	}
}

// roundHeard listens from the given moment on until everybody has heard everybody.
func (s *scene) roundHeard(alice *lab.Client, phones []*lab.Phone, round int, from time.Time) bool {
	s.t.Helper()
	var report string
	for range roundTries {
		time.Sleep(time.Until(from.Add(roundListens + 200*time.Millisecond)))
		var good bool
		if report, good = s.roundReport(alice, phones, from); good {
			s.t.Logf("round %d: %s", round, report)
			return true
		}
		s.t.Logf("round %d, listening again: %s", round, report)
		from = time.Now()
	}
	s.t.Errorf("round %d was not heard, want correlations of at least %.2f: %s", round, rightVoice, report)
	return false
}

// roundReport judges what was heard from the given moment on.
func (s *scene) roundReport(alice *lab.Client, phones []*lab.Phone, from time.Time) (report string, good bool) {
	s.t.Helper()
	tracks, err := alice.Heard(s.ctx, from)
	s.must(err)
	good = true
	for i, p := range phones {
		here := lab.Match{Voice: "nobody"}
		for _, track := range tracks {
			if m := track.Cut(from, roundListens).Match(p.Saying()); m.Correlation > here.Correlation {
				here = m
			}
		}
		heard, err := p.Heard()
		s.must(err)
		there, _ := heard.Cut(from, roundListens).MatchMixed(s.said(alice), phones[1-i].Saying())
		report += fmt.Sprintf("client hears %s, %s hears %s; ", here, p.Name, there)
		good = good && here.Correlation >= rightVoice && there.Correlation >= rightVoice
	}
	return report, good
}
