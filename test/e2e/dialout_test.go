//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"trunkline/test/lab"
)

// A member writes a command, a phone rings and answers, both hear each other, and a command ends it. Then the
// ghost of the phone's number is invited: it rings again.
func TestRoomCallsAPhone(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "alice")
	alice := s.page(lab.Hydrogen, users[0])
	phone := s.phone("desk", lab.PhoneOptions{Number: "701", Called: true})
	s.startCall(alice)
	s.dialed = time.Now()
	s.must(bed.Say(s.ctx, users[0], s.room.ID, "!sip call 701"))
	s.answered(phone) // baresip picks up by itself
	t.Logf("the phone has answered %d ms after the command", time.Since(s.dialed).Milliseconds())
	s.notified("701 has answered.")
	s.listen(1)
	s.clientHears(alice, phone.Saying())
	s.phoneHears(phone, s.said(alice))
	over := time.Now()
	s.must(bed.Say(s.ctx, users[0], s.room.ID, "!sip hangup"))
	s.await(phone, lab.CallClosed, over, 10*time.Second)
	s.notified("hung up in the room")
	s.eventually("the ghost has left", 5*time.Second, func() bool { return len(s.ghosts()) == 0 })

	again := time.Now()
	s.must(bed.Invite(s.ctx, users[0], s.room.ID, bed.Bridge().GhostOf("701")))
	s.await(phone, lab.CallEstablished, again, 10*time.Second)
	t.Logf("the phone has answered %d ms after the invitation", time.Since(again).Milliseconds())
	s.must(phone.Hangup(s.ctx))
	s.eventually("the ghost has left again", 5*time.Second, func() bool { return len(s.ghosts()) == 0 })
}

// Messages are encrypted: commands work, over a kill, too, and the client reads the bot's answers, none of which is in clear. What is not
// encrypted works as everywhere: a reaction hangs up, an invitation calls.
func TestEncryptedRoomCallsAPhoneAndHangsUp(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{Encrypted: true}, "alice")
	alice := s.page(lab.JSSDKRust, users[0])
	phone := s.phone("desk", lab.PhoneOptions{Number: "701", Called: true})
	s.startCall(alice)
	begun := time.Now()
	s.must(alice.Say(s.ctx, s.room.ID, "!sip call 701"))
	s.await(phone, lab.CallEstablished, begun, 10*time.Second)
	t.Logf("the phone has answered %d ms after the command", time.Since(begun).Milliseconds())
	notice := s.confided(alice, "701 has answered.")
	bed.Bridge().Kill() // the client gives its key no second time
	s.must(bed.Bridge().Start(s.ctx))
	s.must(alice.Say(s.ctx, s.room.ID, "!sip who"))
	s.confided(alice, "1. 701 talks")
	over := time.Now()
	s.must(alice.React(s.ctx, s.room.ID, notice.ID, "❌"))
	s.await(phone, lab.CallClosed, over, 10*time.Second)
	if over := s.confided(alice, "hung up in the room"); over.ID != notice.ID {
		t.Errorf("how the call ended is told by %s, want an edit of %s", over.ID, notice.ID)
	}
	s.eventually("the ghost has left", 5*time.Second, func() bool { return len(s.ghosts()) == 0 })

	again := time.Now()
	s.must(bed.Invite(s.ctx, users[0], s.room.ID, bed.Bridge().GhostOf("701")))
	s.await(phone, lab.CallEstablished, again, 10*time.Second)
	s.must(alice.Say(s.ctx, s.room.ID, "!sip hangup"))
	s.await(phone, lab.CallClosed, again, 10*time.Second)
	s.eventually("the ghost has left again", 5*time.Second, func() bool { return len(s.ghosts()) == 0 })
	clear, err := bed.Notices(s.ctx, s.owner, s.room.ID)
	s.must(err)
	if len(clear) > 0 {
		t.Errorf("said in clear: %v", clear)
	}
}

// confided waits until the client shows an encrypted notice that says so.
func (s *scene) confided(c *lab.Client, part string) (found lab.Notice) {
	s.t.Helper()
	s.eventually("the client reads: "+part, 10*time.Second, func() bool {
		notices, err := c.Notices(s.ctx, s.room.ID)
		s.must(err)
		i := slices.IndexFunc(notices, func(n lab.Notice) bool { return n.Encrypted && strings.Contains(n.Body, part) })
		if i >= 0 {
			found = notices[i]
		}
		return i >= 0
	})
	return found
}

// notified waits until one of the bridge's latest notices says so.
func (s *scene) notified(part string) {
	s.t.Helper()
	s.eventually("the room is told: "+part, 10*time.Second, func() bool {
		notices, err := bed.Notices(s.ctx, s.owner, s.room.ID)
		s.must(err)
		for _, n := range notices {
			if strings.Contains(n.Body, part) {
				return true
			}
		}
		return false
	})
}
