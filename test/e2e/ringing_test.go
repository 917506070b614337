//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"

	"trunkline/internal/testbed/listen"
	"trunkline/test/lab"
)

// toneHz is what European ringback and busy tones are made of; they differ in their rhythm (ITU-T E.180).
const toneHz = 425

// A phone dials into a room where nobody is in a call: it hears ringback before it is answered, and is answered when
// the first member joins. Both then hear each other.
func TestPhoneHearsRingbackUntilClientJoins(t *testing.T) {
	for _, kind := range []lab.Kind{lab.Hydrogen, lab.JSSDK} {
		t.Run(string(kind), func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{}, "alice")
			alice, phone := s.page(kind, users[0]), s.phone("desk", lab.PhoneOptions{})
			s.ring(phone)
			call, err := alice.AwaitCall(s.ctx, s.room.ID)
			s.must(err)
			time.Sleep(3 * time.Second)
			on, off := s.toneHeard(phone, s.dialed, 3*time.Second)
			t.Logf("ringback: %d ms on in three seconds, %d ms of other sound", on.Milliseconds(), off.Milliseconds())
			if on < 700*time.Millisecond || on > 1500*time.Millisecond || off > 100*time.Millisecond {
				t.Errorf("%s of tone and %s of other sound in three seconds of ringing, want the second of ringback", on, off)
			}
			if phone.InCall() {
				t.Error("the phone is answered while nobody is there")
			}
			joins := time.Now()
			s.must(alice.Join(s.ctx, s.room.ID, call))
			s.answered(phone)
			t.Logf("answered %d ms after the client joined", time.Since(joins).Milliseconds())
			s.listen(1)
			s.clientHears(alice, phone.Saying())
			s.phoneHears(phone, s.said(alice))
		})
	}
}

// Nobody comes: after the time that the route allows the phone hears busy tone and is refused, and the call that rang
// is gone from the room.
func TestPhoneIsRefusedWhenNobodyAnswers(t *testing.T) {
	s, _ := newScene(t, lab.RoomOptions{}, "alice")
	phone := s.phone("desk", lab.PhoneOptions{})
	s.ring(phone)
	s.refusedWithBusyTone(phone, "480", 8*time.Second)
}

// A member reacts to the notice that says who calls: the ring ends for all.
func TestPhoneIsRefusedWhenMemberDeclines(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "alice", "bob")
	phone := s.phone("desk", lab.PhoneOptions{})
	s.ring(phone)
	notice := s.ringNotice()
	s.must(bed.React(s.ctx, users[1], s.room.ID, notice.ID, "❌"))
	s.refusedWithBusyTone(phone, "603", time.Since(s.dialed))
	s.eventually("the notice says who declined", 5*time.Second, func() bool {
		now, err := bed.LastNotice(s.ctx, s.owner, s.room.ID)
		return err == nil && strings.Contains(now.Body, string(users[1].UserID))
	})
}

// A person declines by a message, written in the client.
func TestPhoneIsRefusedWhenMemberWritesThatTheyDecline(t *testing.T) {
	for name, c := range map[string]struct {
		kind lab.Kind
		room lab.RoomOptions
	}{
		"hydrogen": {lab.Hydrogen, lab.RoomOptions{}}, "js-sdk": {lab.JSSDK, lab.RoomOptions{}},
		"hydrogen in an encrypted room": {lab.Hydrogen, lab.RoomOptions{Encrypted: true}},
	} {
		t.Run(name, func(t *testing.T) {
			s, users := newScene(t, c.room, "alice")
			alice, phone := s.page(c.kind, users[0]), s.phone("desk", lab.PhoneOptions{})
			s.ring(phone)
			_, err := alice.AwaitCall(s.ctx, s.room.ID)
			s.must(err)
			s.must(alice.Say(s.ctx, s.room.ID, "!sip decline"))
			s.refusedWithBusyTone(phone, "603", time.Since(s.dialed))
		})
	}
}

// In an encrypted room a client reads who calls, and does not encrypt its reaction.
func TestPhoneIsRefusedWhenMemberReactsInEncryptedRoom(t *testing.T) {
	for _, kind := range []lab.Kind{lab.Hydrogen, lab.JSSDKRust} {
		t.Run(string(kind), func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{Encrypted: true}, "alice")
			alice, phone := s.page(kind, users[0]), s.phone("desk", lab.PhoneOptions{})
			s.ring(phone)
			_, err := alice.AwaitCall(s.ctx, s.room.ID)
			s.must(err)
			s.must(alice.React(s.ctx, s.room.ID, s.confided(alice, "Call from").ID, "❌"))
			s.refusedWithBusyTone(phone, "603", time.Since(s.dialed))
		})
	}
}

// A number that leads into a conference does not ring: the phone is answered at once, and waits for the people.
func TestPhoneWaitsInConferenceWithoutRinging(t *testing.T) {
	for _, kind := range []lab.Kind{lab.Hydrogen, lab.JSSDK} {
		t.Run(string(kind), func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{}, "alice")
			alice := s.pageSaying(kind, users[0], bed.Steady(0))
			phone := s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
			s.dial(phone)
			answered := s.await(phone, lab.CallEstablished, s.dialed, time.Second).At.Sub(s.dialed)
			t.Logf("answered after %d ms, with nobody there", answered.Milliseconds())
			if answered > 3*time.Second {
				t.Errorf("answered after %s, want at once", answered)
			}
			time.Sleep(4 * time.Second)
			if notice, err := bed.LastNotice(s.ctx, s.owner, s.room.ID); err != nil || notice.ID != "" || !phone.InCall() {
				t.Errorf("notice %q, %v, phone in call: %t; want no ring, and a phone that waits", notice.Body, err, phone.InCall())
			}
			joins := time.Now()
			s.joinCall(alice)
			if state, err := alice.Call(s.ctx); err != nil || state.Intent != "m.prompt" {
				t.Errorf("the client sees intent %q, %v; want m.prompt", state.Intent, err)
			}
			s.allHearAll(phone, 10*time.Second)
			t.Logf("both hear each other %d ms after the client joined", time.Since(joins).Milliseconds())
		})
	}
}

// ringNotice waits until the room is told who calls.
func (s *scene) ringNotice() (notice lab.Notice) {
	s.t.Helper()
	s.eventually("the room is told who calls", 5*time.Second, func() bool {
		var err error
		notice, err = bed.LastNotice(s.ctx, s.owner, s.room.ID)
		return err == nil && notice.ID != ""
	})
	return notice
}

// refusedWithBusyTone checks how a ring ends that has lasted for a while: no call is left in the room, the phone hears
// busy tone, then gets the status.
func (s *scene) refusedWithBusyTone(phone *lab.Phone, status string, rung time.Duration) {
	s.t.Helper()
	s.eventually("no call is left in the room", rung+5*time.Second, func() bool {
		calls, members, err := bed.CallState(s.ctx, s.owner, s.room.ID)
		return err == nil && len(calls) == 0 && len(members) == 0 && time.Since(s.dialed) > rung
	})
	over := time.Now()
	closed := s.await(phone, lab.CallClosed, s.dialed, 10*time.Second)
	on, off := s.toneHeard(phone, over, 2*time.Second)
	s.t.Logf("busy tone: %d ms on in two seconds, %d ms of other sound; refused with %q %.1f s after the INVITE", on.Milliseconds(),
		off.Milliseconds(), closed.Param, closed.At.Sub(s.dialed).Seconds())
	if on < 700*time.Millisecond || on > 1300*time.Millisecond || off > 100*time.Millisecond {
		s.t.Errorf("%s of tone and %s of other sound in two seconds, want half of it busy tone", on, off)
	}
	if !strings.HasPrefix(closed.Param, status) {
		s.t.Errorf("refused with %q, want %s", closed.Param, status)
	}
}

// toneHeard tells for how long the phone heard the tone, and for how long something else that was loud.
func (s *scene) toneHeard(phone *lab.Phone, from time.Time, d time.Duration) (tone, other time.Duration) {
	s.t.Helper()
	heard := s.heardOn(phone).Cut(from, d)
	const frame = 20 * time.Millisecond
	for at := heard.Start; at.Sub(heard.Start) < heard.Duration()-frame; at = at.Add(frame) {
		piece := heard.Cut(at, frame)
		level := piece.Level()
		switch {
		case level < -45:
		case listen.Tone(piece.PCM, piece.Rate, toneHz) > level-2:
			tone += frame
		default:
			other += frame
		}
	}
	return tone, other
}
