//go:build e2e

package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/phone"
	"trunkline/test/lab"
)

// A call is transferred behind the PBX, which tells who is on the phone now. js-sdk tells its application, both clients
// show the ghost's new name, and the sound goes on. What js-sdk may offer to do with a phone: press keys, not transfer it.
func TestClientsSeeWhoIsOnThePhoneAfterATransfer(t *testing.T) {
	const masked = "Dana Field (+493••••••17)"
	s, users := newScene(t, lab.RoomOptions{}, "alice", "bob")
	alice, bob := s.pageSaying(lab.Hydrogen, users[0], bed.Steady(0)), s.pageSaying(lab.JSSDK, users[1], bed.Steady(1))
	s.startCall(alice)
	s.joinCall(bob)
	call := s.scriptedCall(bed.Steady(2))
	s.eventually("everybody hears everybody", 10*time.Second, func() bool { return s.scriptedHears(call, s.dialed) && s.hearScripted(s.dialed) })
	ghost := s.ghosts()[0].User
	if peer := s.peer(bob, ghost); !peer.DTMF || peer.Transferable || peer.Asserted != nil {
		t.Errorf("js-sdk sees %+v, want a peer that takes keys, cannot be transferred, and has asserted nothing yet", peer)
	}
	changed := time.Now()
	s.must(call.Assert(s.ctx, `"Dana Field" <sip:+49305550017@pbx.example>`))
	s.eventually("js-sdk knows who is on the phone", 5*time.Second, func() bool { return s.peer(bob, ghost).Asserted != nil })
	t.Logf("js-sdk knows after %d ms", time.Since(changed).Milliseconds())
	if got := s.peer(bob, ghost).Asserted.DisplayName; got != masked {
		t.Errorf("js-sdk shows %q as the asserted identity, want %q", got, masked)
	}
	for _, c := range s.pages {
		s.eventually("the client shows the ghost's new name", 5*time.Second, func() bool {
			name, err := c.MemberName(s.ctx, s.room.ID, ghost)
			return err == nil && strings.HasPrefix(name, masked)
		})
		t.Logf("%s shows the new name after %d ms", c.Kind, time.Since(changed).Milliseconds())
	}
	time.Sleep(3 * time.Second)
	until := time.Now().Add(-recordingLags)
	for _, c := range s.pages {
		s.judgeGap(c.User.Name, s.heardBy(c), bed.Steady(2), changed, until, maxGap)
		s.judgeGap("the phone", scriptedHeard(call), c.Voice(), changed, until, maxGap)
	}
	s.must(call.Hangup(s.ctx))
}

// scriptedCall dials the room with the scripted phone, which can say what baresip cannot, and speaks for half a minute.
func (s *scene) scriptedCall(voice *lab.Voice) *phone.Call {
	s.t.Helper()
	long, err := lab.ReadWAV(voice.Long)
	s.must(err)
	p, err := phone.Open(phone.Config{Local: netip.MustParseAddr("127.0.0.1"), User: "+49305550142", Name: "Sam Reed"})
	s.must(err)
	s.t.Cleanup(func() { _ = p.Close() })
	s.dialed = time.Now()
	call, err := p.Dial(s.ctx, bed.SIPAddress(), s.room.Number)
	s.must(err)
	call.Play(long.Cut(long.Start, 30*time.Second).PCM)
	return call
}

// scriptedHeard is what the scripted phone has heard since it was answered.
func scriptedHeard(call *phone.Call) lab.Recording {
	r := lab.Recording{Rate: phone.Rate, PCM: call.Heard()}
	r.Start = time.Now().Add(-r.Duration())
	return r
}

// scriptedHears reports whether the scripted phone hears all pages.
func (s *scene) scriptedHears(call *phone.Call, since time.Time) bool {
	heard := scriptedHeard(call)
	for _, c := range s.pages {
		if _, ok := heard.FirstHeard(c.Voice(), since); !ok {
			return false
		}
	}
	return true
}

// hearScripted reports whether all pages hear the scripted phone.
func (s *scene) hearScripted(since time.Time) bool {
	for _, c := range s.pages {
		if _, ok := s.heardBy(c).FirstHeard(bed.Steady(2), since); !ok {
			return false
		}
	}
	return true
}

// peer is how a user looks from the client.
func (s *scene) peer(c *lab.Client, user id.UserID) lab.Peer {
	s.t.Helper()
	state, err := c.Call(s.ctx)
	s.must(err)
	for _, m := range state.Members {
		if m.User == string(user) {
			return m
		}
	}
	s.t.Fatalf("%s knows no %s in its call: %+v", c.User.Name, user, state)
	return lab.Peer{}
}
