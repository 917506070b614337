//go:build e2e

package e2e

import (
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/test/lab"
)

// Whoever mutes is not heard, and is heard again; the others notice nothing. A phone on hold is shown as muted.
func TestMuteIsHeardAndSeen(t *testing.T) {
	s, alice, bob, phone := steadyCall(t, "alice", "bob")
	for _, pair := range [][2]*lab.Client{{alice, bob}, {bob, alice}} {
		mutes, other := pair[0], pair[1]
		t.Run(string(mutes.Kind)+" mutes", func(t *testing.T) {
			s := s.in(t)
			muted := time.Now()
			s.must(mutes.Mute(s.ctx, true))
			time.Sleep(2500 * time.Millisecond)
			s.phoneStopsHearing(phone, mutes, muted)
			unmuted := time.Now()
			s.must(mutes.Mute(s.ctx, false))
			t.Logf("heard again %d ms after unmuting", s.phoneHearsAgain(phone, mutes, unmuted, 3*time.Second).Milliseconds())
			s.noGap(phone, muted, other)
			s.noGapAt(mutes, muted, phone)
		})
	}
	t.Run("phone holds", func(t *testing.T) {
		s := s.in(t)
		held := time.Now()
		s.must(phone.Hold(s.ctx))
		for _, c := range s.pages {
			t.Logf("%s sees the phone muted after %d ms", c.Kind, s.eventually("the client sees the phone muted", 5*time.Second, func() bool {
				return s.seesMuted(c)
			}).Milliseconds())
		}
		time.Sleep(time.Until(held.Add(2500 * time.Millisecond)))
		for _, c := range s.pages {
			if at, ok := s.heardBy(c).FirstHeard(phone.Voice(), held.Add(time.Second)); ok {
				t.Errorf("%s still hears the phone %s after it went on hold", c.User.Name, at.Sub(held))
			}
		}
		resumed := time.Now()
		s.must(phone.Resume(s.ctx))
		for _, c := range s.pages {
			s.eventually("the client sees the phone unmuted", 5*time.Second, func() bool { return !s.seesMuted(c) })
			t.Logf("%s hears the phone again after %d ms", c.Kind, s.clientHearsAgain(c, phone, resumed, 3*time.Second).Milliseconds())
		}
		// baresip writes nothing down after a hold: that the phone hears again is for the tests with a scripted phone.
	})
}

// seesMuted tells whether the client shows its ghost as muted.
func (s *scene) seesMuted(c *lab.Client) bool {
	s.t.Helper()
	state, err := c.Call(s.ctx)
	s.must(err)
	for _, m := range state.Members {
		if bed.Bridge().IsGhost(id.UserID(m.User)) {
			return m.Muted
		}
	}
	return false
}
