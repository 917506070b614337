//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"trunkline/test/lab"
)

// Steady voices tell when a line begins to carry sound, and whether it ever stops to.

// allHearAll waits until the phone hears each page's steady voice and each page the phone's, all since the phone
// dialled, and returns how long that took.
func (s *scene) allHearAll(phone *lab.Phone, within time.Duration) (after time.Duration) {
	s.t.Helper()
	s.eventually("all clients and the phone hear each other", within, func() bool {
		after = 0
		heard, err := phone.Heard()
		for _, c := range s.pages {
			there, ok := s.heardBy(c).FirstHeard(phone.Voice(), s.dialed)
			if !ok || err != nil {
				return false
			}
			here, ok := heard.FirstHeard(c.Voice(), s.dialed)
			if !ok {
				return false
			}
			after = max(after, there.Sub(s.dialed), here.Sub(s.dialed))
		}
		return true
	})
	return after
}

// maxGap is the longest interruption that counts as none: jitter buffers conceal some of it.
const maxGap = 80 * time.Millisecond

// recordingLags is how far recordings may lie behind the clock: what was said last is not in them yet.
const recordingLags = maxDelay + 200*time.Millisecond

// judgeable waits until a second since that moment can be judged, and returns up to when recordings are complete.
func judgeable(since time.Time) (until time.Time) {
	time.Sleep(time.Until(since.Add(time.Second + recordingLags)))
	return time.Now().Add(-recordingLags)
}

// noGap checks that the phone has heard the clients' steady voices without interruption since then.
func (s *scene) noGap(phone *lab.Phone, since time.Time, clients ...*lab.Client) {
	s.t.Helper()
	s.gapAtMost(maxGap, phone, since, clients...)
}

func (s *scene) gapAtMost(allowed time.Duration, phone *lab.Phone, since time.Time, clients ...*lab.Client) {
	s.t.Helper()
	until := judgeable(since)
	heard := s.heardOn(phone)
	for _, c := range clients {
		s.judgeGap(phone.Name, heard, c.Voice(), since, until, allowed)
	}
}

// noGapAt checks that the client has heard the phone's steady voice without interruption since then.
func (s *scene) noGapAt(c *lab.Client, since time.Time, phone *lab.Phone) {
	s.t.Helper()
	s.gapAtMostAt(maxGap, c, since, phone)
}

func (s *scene) gapAtMostAt(allowed time.Duration, c *lab.Client, since time.Time, phone *lab.Phone) {
	s.t.Helper()
	until := judgeable(since)
	s.judgeGap(c.User.Name, s.heardBy(c), phone.Voice(), since, until, allowed)
}

func (s *scene) judgeGap(listener string, heard lab.Recording, voice *lab.Voice, from, to time.Time, allowed time.Duration) {
	s.t.Helper()
	gap, at := heard.LongestGap(voice, from, to)
	s.t.Logf("%s hears %s for %.1f s, longest gap %d ms", listener, voice.Name, to.Sub(from).Seconds(), gap.Milliseconds())
	if gap > allowed {
		s.t.Errorf("%s does not hear %s for %s after %s, want no gap longer than %s", listener, voice.Name, gap, at.Sub(from), allowed)
	}
}

// phoneHearsAgain waits until the phone hears the client's steady voice after that moment, and returns how long after.
func (s *scene) phoneHearsAgain(phone *lab.Phone, c *lab.Client, after time.Time, within time.Duration) time.Duration {
	s.t.Helper()
	var first time.Time
	s.eventually(fmt.Sprintf("%s hears %s", phone.Name, c.User.Name), within, func() (ok bool) {
		first, ok = s.heardOn(phone).FirstHeard(c.Voice(), after)
		return ok
	})
	return first.Sub(after)
}

// clientHearsAgain waits until the client hears the phone's steady voice after that moment, and returns how long after.
func (s *scene) clientHearsAgain(c *lab.Client, phone *lab.Phone, after time.Time, within time.Duration) time.Duration {
	s.t.Helper()
	var first time.Time
	s.eventually(fmt.Sprintf("%s hears %s", c.User.Name, phone.Name), within, func() (ok bool) {
		first, ok = s.heardBy(c).FirstHeard(phone.Voice(), after)
		return ok
	})
	return first.Sub(after)
}

// phoneStopsHearing checks that the client's steady voice ends within a second and stays away until now.
func (s *scene) phoneStopsHearing(phone *lab.Phone, c *lab.Client, since time.Time) {
	s.t.Helper()
	if at, ok := s.heardOn(phone).FirstHeard(c.Voice(), since.Add(time.Second)); ok {
		s.t.Errorf("%s still hears %s %s after it should have ended", phone.Name, c.User.Name, at.Sub(since))
	}
}

// bothDiffer compares the two words of each text.
func bothDiffer(a, b string) bool {
	ours, theirs, _ := strings.Cut(a, " ")
	nowOurs, nowTheirs, _ := strings.Cut(b, " ")
	return ours != nowOurs && theirs != nowTheirs
}

// steadyCall is a call that has begun: hydrogen, js-sdk and a phone, each with a steady voice, hear each other as far as
// the phone goes. The users' names decide who invites the ghost: below "_" the client does.
func steadyCall(t *testing.T, first, second string) (s *scene, alice, bob *lab.Client, phone *lab.Phone) {
	t.Helper()
	s, users := newScene(t, lab.RoomOptions{}, first, second)
	alice, bob = s.pageSaying(lab.Hydrogen, users[0], bed.Steady(0)), s.pageSaying(lab.JSSDK, users[1], bed.Steady(1))
	phone = s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
	s.startCall(alice)
	s.joinCall(bob)
	s.dial(phone)
	s.allHearAll(phone, 10*time.Second)
	return s, alice, bob, phone
}
