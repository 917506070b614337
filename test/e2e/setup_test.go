//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"trunkline/test/lab"
)

// Whoever has the lower user id invites. Ghosts begin with "_", below which hardly anything sorts; a digit does.
func TestClientWithLowerUserIDInvitesTheGhost(t *testing.T) {
	for _, kind := range []lab.Kind{lab.Hydrogen, lab.JSSDK, lab.JSSDK36} {
		t.Run(string(kind), func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{}, "0alice")
			alice, phone := s.page(kind, users[0]), s.phone("desk", lab.PhoneOptions{})
			s.startCall(alice)
			s.dial(phone)
			s.listen(1)
			invites, err := alice.Sent(s.ctx, "m.call.invite")
			if err != nil || invites == 0 {
				t.Errorf("the client has sent %d invites, %v; want it to be the inviter", invites, err)
			}
			s.clientHears(alice, phone.Saying())
			s.phoneHears(phone, s.said(alice))
		})
	}
}

// A user with two devices has two connections to the ghost, each with a session of its own.
func TestTwoDevicesOfOneUserHearAndAreHeard(t *testing.T) {
	for _, kind := range []lab.Kind{lab.Hydrogen, lab.JSSDK} {
		t.Run(string(kind), func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{}, "alice")
			second, err := bed.NewDevice(s.ctx, users[0])
			s.must(err)
			laptop, tablet := s.page(kind, users[0]), s.page(kind, second)
			phone := s.phone("desk", lab.PhoneOptions{})
			s.startCall(laptop)
			// Both write the same state event: the second must have seen the first, or it takes it out again.
			time.Sleep(time.Second)
			s.joinCall(tablet)
			s.eventually("both devices are in the call", 3*time.Second, func() bool { return s.inCall(users[0]) == 2 })
			s.dial(phone)
			s.listen(1)
			s.clientHears(laptop, phone.Saying())
			s.clientHears(tablet, phone.Saying())
			s.phoneHears(phone, s.said(laptop), s.said(tablet))
		})
	}
}

// The phone comes first, makes the call and waits in it; the client joins later.
func TestPhoneStartsTheCallAndClientJoins(t *testing.T) {
	for _, kind := range []lab.Kind{lab.Hydrogen, lab.JSSDK} {
		t.Run(string(kind), func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{}, "alice")
			alice := s.page(kind, users[0])
			phone := s.phone("desk", lab.PhoneOptions{})
			s.dial(phone)
			s.joinCall(alice)
			s.listen(1)
			s.clientHears(alice, phone.Saying())
			s.phoneHears(phone, s.said(alice))
		})
	}
}

// A client calls the ghost that is calling it: the two invites cross, and the lower call id wins. The ghost's begin with "c",
// js-sdk's with a digit.
func TestInvitesCross(t *testing.T) {
	for _, c := range []struct {
		name  string
		kind  lab.Kind
		call  string
		loses bool
	}{
		{"hydrogen wins", lab.Hydrogen, "a-client", false},
		{"hydrogen loses", lab.Hydrogen, "z-client", true},
		{"js-sdk wins", lab.JSSDK, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{}, "alice")
			alice := s.pageSaying(c.kind, users[0], bed.Steady(0))
			phone := s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
			s.startCall(alice)
			s.must(alice.CrossInvites(s.ctx, c.call))
			s.dial(phone)
			t.Logf("both hear each other %d ms after the INVITE", s.allHearAll(phone, 10*time.Second).Milliseconds())
			invites, err := alice.Sent(s.ctx, "m.call.invite")
			s.must(err)
			replaced, err := alice.Hangups(s.ctx, "replaced")
			s.must(err)
			if invites != 1 || len(replaced) != 1 || strings.HasPrefix(replaced[0], "c-") == c.loses {
				t.Errorf("the client has sent %d invites and given up %q, want 1, and its own to be given up: %t", invites, replaced, c.loses)
			}
		})
	}
}

// Somebody who has joined with the camera only presses the microphone in the very moment in which hydrogen answers. What it
// sends as its answer is the offer that adds the microphone.
func TestMicrophoneIsPressedWhileHydrogenAnswers(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "alice")
	alice := s.pageSaying(lab.Hydrogen, users[0], bed.Steady(0))
	phone := s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
	call, err := alice.CreateCall(s.ctx, s.room.ID)
	s.must(err)
	s.must(alice.JoinWith(s.ctx, s.room.ID, call, false, true))
	s.must(alice.PressWhileAnswering(s.ctx))
	s.dial(phone)
	t.Logf("both hear each other %d ms after the INVITE", s.allHearAll(phone, 10*time.Second).Milliseconds())
	if types, err := alice.AnswerTypes(s.ctx); err != nil || len(types) != 1 || types[0] != "offer" {
		t.Errorf("the client's answers were of type %q, %v; want one offer", types, err)
	}
}

// A client joins in the same instant in which the ghost does, or a moment earlier or later: hydrogen loses an invite that
// reaches it in the middle of its own join.
func TestClientJoinsWhileTheGhostDoes(t *testing.T) {
	for _, round := range []struct {
		kind  lab.Kind
		after int // the INVITE, ms
	}{
		{lab.Hydrogen, -100},
		{lab.Hydrogen, 0},
		{lab.Hydrogen, 100},
		{lab.Hydrogen, 200},
		{lab.Hydrogen, 300},
		{lab.JSSDK, 0},
		{lab.JSSDK, 150},
	} {
		t.Run(fmt.Sprintf("%s %d ms after the INVITE", round.kind, round.after), func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{}, "alice")
			alice := s.pageSaying(round.kind, users[0], bed.Steady(0))
			phone := s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
			call, err := alice.CreateCall(s.ctx, s.room.ID)
			s.must(err)
			dials := time.Now().Add(max(0, -time.Duration(round.after)) * time.Millisecond)
			joins := s.later(time.Until(dials)+time.Duration(round.after)*time.Millisecond, func() error {
				return alice.Join(s.ctx, s.room.ID, call)
			})
			time.Sleep(time.Until(dials))
			s.dial(phone)
			s.must(<-joins)
			t.Logf("both hear each other %d ms after the INVITE", s.allHearAll(phone, 10*time.Second).Milliseconds())
		})
	}
}
