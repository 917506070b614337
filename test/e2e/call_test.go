//go:build e2e

package e2e

import (
	"context"
	"testing"
	"time"

	"trunkline/test/lab"
)

func TestPhoneAndHydrogenHearEachOther(t *testing.T) {
	phoneAndPage(t, lab.Hydrogen, lab.RoomOptions{}, lab.PhoneOptions{})
}

func TestPhoneAndHydrogenHearEachOtherInEncryptedRoom(t *testing.T) {
	phoneAndPage(t, lab.Hydrogen, lab.RoomOptions{Encrypted: true}, lab.PhoneOptions{Codecs: "PCMA"})
}

func TestPhoneAndJSSDKHearEachOther(t *testing.T) {
	phoneAndPage(t, lab.JSSDK, lab.RoomOptions{}, lab.PhoneOptions{Transport: "tcp"})
}

// phoneAndPage: a client is in a call, a phone dials in.
func phoneAndPage(t *testing.T, kind lab.Kind, room lab.RoomOptions, opts lab.PhoneOptions) {
	s, users := newScene(t, room, "alice")
	alice := s.page(kind, users[0])
	phone := s.phone("desk", opts)
	s.startCall(alice)
	s.dial(phone)
	s.listen(1)
	s.clientHears(alice, phone.Saying())
	s.phoneHears(phone, s.said(alice))
}

func TestTwoPhonesAndClientHearEachOther(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "alice")
	alice := s.page(lab.Hydrogen, users[0])
	desk, hall := s.phone("desk", lab.PhoneOptions{}), s.phone("hall", lab.PhoneOptions{Codecs: "PCMA"})
	s.startCall(alice)
	s.dial(desk)
	s.dial(hall)
	s.listen(2)
	s.clientHears(alice, desk.Saying(), hall.Saying())
	s.phoneHears(desk, hall.Saying(), s.said(alice))
	s.phoneHears(hall, desk.Saying(), s.said(alice))
}

func TestGhostLeavesWhenPhoneHangsUp(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "alice", "bob")
	alice, bob := s.page(lab.Hydrogen, users[0]), s.page(lab.JSSDK, users[1])
	phone := s.phone("desk", lab.PhoneOptions{})
	s.startCall(alice)
	s.joinCall(bob)
	s.dial(phone)
	s.eventually("both clients are connected to the ghost", 10*time.Second, func() bool { return s.legs(alice) == 1 && s.legs(bob) == 1 })
	if n := len(s.ghosts()); n != 1 {
		t.Fatalf("%d ghosts in the call, want 1", n)
	}
	s.must(phone.Hangup(s.ctx))
	gone := s.eventually("the ghost has left the room's call", 5*time.Second, func() bool { return len(s.ghosts()) == 0 })
	ended := s.eventually("both clients have ended their leg", 5*time.Second, func() bool { return s.legs(alice) == 0 && s.legs(bob) == 0 })
	t.Logf("membership gone %d ms after the phone hung up, legs ended %d ms later", gone.Milliseconds(), ended.Milliseconds())
	if calls, _, err := bed.CallState(s.ctx, s.owner, s.room.ID); err != nil || len(calls) != 1 {
		t.Errorf("calls in the room: %v, %v; want the clients' call to go on", calls, err)
	}
}

func TestPhoneIsReleasedWhenLastClientLeaves(t *testing.T) {
	for _, kind := range []lab.Kind{lab.Hydrogen, lab.JSSDK} {
		t.Run(string(kind), func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{}, "alice")
			alice := s.page(kind, users[0])
			phone := s.phone("desk", lab.PhoneOptions{})
			s.startCall(alice)
			s.dial(phone)
			s.eventually("the client is connected to the ghost", 10*time.Second, func() bool { return s.legs(alice) == 1 })
			left := time.Now()
			s.must(alice.Leave(s.ctx))
			ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
			defer cancel()
			closed, err := phone.Await(ctx, lab.CallClosed, left)
			s.must(err)
			t.Logf("the phone was released %d ms after the client left", closed.At.Sub(left).Milliseconds())
			s.eventually("the ghost has left", 5*time.Second, func() bool { return len(s.ghosts()) == 0 })
		})
	}
}

// A client ends the call for everyone: the phone gets its BYE although another client was there.
func TestPhoneIsReleasedWhenClientEndsTheCall(t *testing.T) {
	for _, kinds := range [][]lab.Kind{{lab.Hydrogen, lab.JSSDK}, {lab.JSSDK, lab.Hydrogen}} {
		t.Run(string(kinds[0]), func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{}, "alice", "bob")
			alice, bob := s.page(kinds[0], users[0]), s.page(kinds[1], users[1])
			phone := s.phone("desk", lab.PhoneOptions{})
			s.startCall(alice)
			s.joinCall(bob)
			s.dial(phone)
			s.eventually("both clients are connected to the ghost", 10*time.Second, func() bool { return s.legs(alice) == 1 && s.legs(bob) == 1 })
			ended := time.Now()
			s.must(alice.End(s.ctx))
			ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
			defer cancel()
			closed, err := phone.Await(ctx, lab.CallClosed, ended)
			s.must(err)
			t.Logf("the phone was released %d ms after the client had ended the call", closed.At.Sub(ended).Milliseconds())
			s.eventually("the ghost has left", 5*time.Second, func() bool { return len(s.ghosts()) == 0 })
		})
	}
}

func TestPhoneIsRefusedWhereGhostsMayNotCall(t *testing.T) {
	s, _ := newScene(t, lab.RoomOptions{Defaults: true}, "alice")
	phone := s.phone("desk", lab.PhoneOptions{})
	s.dialed = time.Now()
	s.must(phone.Dial(s.ctx, s.room.Number))
	ctx, cancel := context.WithTimeout(s.ctx, 15*time.Second)
	defer cancel()
	closed, err := phone.Await(ctx, lab.CallClosed, s.dialed)
	s.must(err)
	if phone.InCall() {
		t.Error("the phone is in a call, want a refusal")
	}
	var notice lab.Notice
	s.eventually("the bot has said why in the room", 5*time.Second, func() bool {
		notice, err = bed.LastNotice(s.ctx, s.owner, s.room.ID)
		return err == nil && notice.Body != ""
	})
	t.Logf("refused with %q, notice %q", closed.Param, notice.Body)
}
