//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"trunkline/test/lab"
)

// Two members create a call in the same instant, and the phone dials then, too, or later. The phone ends up in the call
// that people are in, although js-sdk knows only one of the calls.
func TestPhoneGoesToThePeopleWhenTwoCallsAreCreatedAtOnce(t *testing.T) {
	for _, round := range []struct {
		in    lab.Kind // whose call people join
		early bool     // the phone dials in the instant in which the calls are created
	}{
		{lab.Hydrogen, false},
		{lab.Hydrogen, true},
		{lab.JSSDK, true},
	} {
		t.Run(fmt.Sprintf("people in the call of %s, phone early %t", round.in, round.early), func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{}, "alice", "bob")
			alice, bob := s.pageSaying(lab.Hydrogen, users[0], bed.Steady(0)), s.pageSaying(lab.JSSDK, users[1], bed.Steady(1))
			phone := s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
			created := make(chan string, 1)
			go func() {
				call, err := bob.CreateCall(s.ctx, s.room.ID)
				if err != nil {
					t.Error(err)
				}
				created <- call
			}()
			if round.early {
				s.dialed = time.Now()
				s.must(phone.Dial(s.ctx, s.room.Number))
			}
			hers, err := alice.CreateCall(s.ctx, s.room.ID)
			s.must(err)
			call := <-created
			both := []string{hers, call}
			if call == "" || call == hers {
				t.Fatalf("calls %q and %q, want two", hers, call)
			}
			if round.in == lab.Hydrogen {
				call = hers
				t.Cleanup(bob.Close)
				s.pages = s.pages[:1] // bob's client cannot be in it
			}
			for _, c := range s.pages {
				s.must(c.Join(s.ctx, s.room.ID, call))
			}
			if round.early {
				s.answered(phone)
			} else {
				s.dial(phone)
			}
			t.Logf("all hear each other %d ms after the INVITE", s.allHearAll(phone, 10*time.Second).Milliseconds())
			s.eventually("the ghost is in the call of the people only", 5*time.Second, func() bool {
				ghosts := s.ghosts()
				return len(ghosts) == 1 && ghosts[0].Call == call
			})
			s.eventually("a call that the phone had made is over", 5*time.Second, func() bool {
				open, _, err := bed.CallState(s.ctx, s.owner, s.room.ID)
				return err == nil && len(open) == 2 && slices.Contains(open, both[0]) && slices.Contains(open, both[1])
			})
		})
	}
}

// Member events that are no members of the call: those of MatrixRTC (one per device, under a key that is no user id, and
// the older list of memberships), and an entry that has expired. They are there before the phone comes, and come again
// in mid-call. Nobody hears anything of it, and the phone does not wait for them when the people leave.
func TestEntriesOfMatrixRTCAndExpiredOnesAreIgnored(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "alice", "bob", "carol", "dave", "erin")
	alice, bob := s.pageSaying(lab.Hydrogen, users[0], bed.Steady(0)), s.pageSaying(lab.JSSDK, users[1], bed.Steady(1))
	phone := s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
	call := s.startCall(alice)
	s.joinCall(bob)
	focus := map[string]any{"type": "livekit", "livekit_service_url": "https://focus.example", "livekit_alias": s.room.ID}
	strangers := func() {
		for _, u := range []*lab.User{users[0], users[2]} { // one of them is in the call, too
			s.must(bed.PutCallMember(s.ctx, u, s.room.ID, fmt.Sprintf("_%s_%s_m.call", u.UserID, u.DeviceID), map[string]any{
				"application": "m.call", "call_id": "", "scope": "m.room", "device_id": u.DeviceID, "created_ts": time.Now().UnixMilli(), "expires": 14400000,
				"foci_preferred": []any{focus}, "focus_active": map[string]any{"type": "livekit", "focus_selection": "oldest_membership"},
			}))
		}
		s.must(bed.PutCallMember(s.ctx, users[3], s.room.ID, string(users[3].UserID), map[string]any{"memberships": []any{map[string]any{
			"application": "m.call", "call_id": "", "scope": "m.room", "device_id": users[3].DeviceID, "created_ts": time.Now().UnixMilli(),
			"expires": 14400000, "membershipID": "0", "foci_active": []any{focus},
		}}}))
		s.must(bed.PutCallMember(s.ctx, users[4], s.room.ID, string(users[4].UserID), map[string]any{"m.calls": []any{map[string]any{
			"m.call_id": call, "m.devices": []any{map[string]any{
				"device_id": users[4].DeviceID, "session_id": "gone", "expires_ts": time.Now().Add(-time.Minute).UnixMilli(),
				"feeds": []any{map[string]string{"purpose": "m.usermedia"}},
			}},
		}}}))
	}
	strangers()
	s.dial(phone)
	t.Logf("all hear each other %d ms after the INVITE", s.allHearAll(phone, 10*time.Second).Milliseconds())
	again := time.Now()
	strangers()
	time.Sleep(3 * time.Second)
	s.noGap(phone, again, alice, bob)
	s.noGapAt(alice, again, phone)
	s.noGapAt(bob, again, phone)
	left := time.Now()
	s.must(alice.Leave(s.ctx))
	s.must(bob.Leave(s.ctx))
	closed := s.await(phone, lab.CallClosed, left, 5*time.Second)
	t.Logf("the phone was released %d ms after the people began to leave", closed.At.Sub(left).Milliseconds())
}
