//go:build e2e

package e2e

import (
	"testing"
	"time"
)

// resumesWithin is how soon after the bridge is up again everybody must hear everybody.
const resumesWithin = 5 * time.Second

// The bridge is killed and started again in mid-call. The phone stays, for its call is resumed; the ghost comes back with
// a new session, at which clients call it again, or are called, at once.
func TestCallGoesOnWhenBridgeIsKilledAndStarted(t *testing.T) {
	s, _, _, phone := steadyCall(t, "alice", "0bob")
	before := s.ghosts()
	killed := time.Now()
	bed.Bridge().Kill()
	recorded := s.heardOn(phone).Duration()
	s.must(bed.Bridge().Start(s.ctx))
	up := time.Now()
	for _, c := range s.pages {
		s.eventually("the phone hears the client", 3*resumesWithin, func() bool {
			heard := s.heardOn(phone) // nothing is written down while nothing comes, so its times are late
			_, ok := heard.FirstHeard(c.Voice(), heard.Start.Add(heard.Duration()-300*time.Millisecond))
			return ok && heard.Duration() > recorded+time.Second
		})
	}
	t.Logf("the bridge was away for %d ms, the phone hears all %d ms later", up.Sub(killed).Milliseconds(), time.Since(up).Milliseconds())
	if late := time.Since(up); late > resumesWithin {
		t.Errorf("the phone hears all %s after the bridge is up, want within %s", late, resumesWithin)
	}
	time.Sleep(recordingLags + time.Second)
	for _, c := range s.pages {
		until := time.Now().Add(-recordingLags)
		s.judgeGap(c.User.Name, s.heardBy(c), phone.Voice(), killed, until, resumesWithin)
	}
	if now := s.ghosts(); len(before) != 1 || len(now) != 1 || now[0].Session == before[0].Session {
		t.Errorf("ghosts %v before and %v after, want one with a new session", before, now)
	}
	if !phone.InCall() {
		t.Error("the phone is in no call any more")
	}
}
