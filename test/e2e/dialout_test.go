//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

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

// Messages are encrypted: a command is answered by what works instead, which does: an invitation calls, a reaction hangs up.
func TestEncryptedRoomCallsAPhoneAndHangsUp(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{Encrypted: true}, "alice")
	alice := s.page(lab.JSSDKRust, users[0])
	phone := s.phone("desk", lab.PhoneOptions{Number: "701", Called: true})
	s.startCall(alice)
	s.must(alice.Say(s.ctx, s.room.ID, "!sip call 701"))
	s.notified("I can't read them")
	if phone.InCall() {
		t.Error("the phone was called by a message that is encrypted")
	}
	begun := time.Now()
	s.must(bed.Invite(s.ctx, users[0], s.room.ID, bed.Bridge().GhostOf("701")))
	var notice id.EventID
	s.eventually("the room is told of the call", 10*time.Second, func() bool {
		notices, err := bed.Notices(s.ctx, s.owner, s.room.ID)
		s.must(err)
		i := slices.IndexFunc(notices, func(n lab.Notice) bool { return strings.HasPrefix(n.Body, "Calling 701") })
		if i >= 0 {
			notice = notices[i].ID
		}
		return i >= 0
	})
	s.await(phone, lab.CallEstablished, begun, 10*time.Second)
	s.notified("701 has answered.")
	over := time.Now()
	s.must(alice.React(s.ctx, s.room.ID, notice, "❌"))
	s.await(phone, lab.CallClosed, over, 10*time.Second)
	s.notified("hung up in the room")
	s.eventually("the ghost has left", 5*time.Second, func() bool { return len(s.ghosts()) == 0 })
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
