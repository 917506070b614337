//go:build e2e

package e2e

import (
	"context"
	"net/http"
	"testing"
	"time"

	"trunkline/test/lab"
)

// outage is how long the homeserver is away.
const outage = 9 * time.Second

// The homeserver freezes in a call that has settled: nobody hears anything of it. Who mutes meanwhile is not heard at
// once, and that the phone went on hold is seen when the homeserver is back.
func TestSoundGoesOnWhileHomeserverIsAway(t *testing.T) {
	s, alice, bob, phone := steadyCall(t, "alice", "0bob")
	time.Sleep(15 * time.Second) // clients send candidates until then
	away := time.Now()
	s.must(bed.Synapse.Pause())
	back := s.later(outage, bed.Synapse.Resume)
	time.Sleep(outage / 2)
	s.noGap(phone, away, alice, bob)
	for _, c := range s.pages {
		s.noGapAt(c, away, phone)
	}
	held := time.Now()
	s.must(phone.Hold(s.ctx))
	s.must(<-back)
	returned := time.Now()
	for _, c := range s.pages {
		s.eventually("the client sees the phone muted", 10*time.Second, func() bool { return s.seesMuted(c) })
		t.Logf("%s sees the phone muted %.1f s after the homeserver's return", c.Kind, time.Since(returned).Seconds())
		if at, ok := s.heardBy(c).FirstHeard(phone.Voice(), held.Add(time.Second)); ok {
			t.Errorf("%s still hears the phone %s after it went on hold", c.User.Name, at.Sub(held))
		}
	}
	s.must(phone.Resume(s.ctx))
	for _, c := range s.pages {
		resumed := time.Now()
		t.Logf("%s hears the phone again after %d ms", c.Kind, s.clientHearsAgain(c, phone, resumed, 5*time.Second).Milliseconds())
	}
}

// The homeserver goes away right after clients that are the inviters have joined, while their candidates still go out:
// both clients give their connection up although it carries sound, and neither calls the same session again (hydrogen
// never, js-sdk seldom). A new session of the ghost makes them.
func TestClientsThatGaveUpInOutageAreHeardAgain(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "0alice", "0bob")
	alice, bob := s.pageSaying(lab.Hydrogen, users[0], bed.Steady(0)), s.pageSaying(lab.JSSDK, users[1], bed.Steady(1))
	phone := s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
	bed.SilenceSTUN(true) // so that candidates go out for long
	t.Cleanup(func() { bed.SilenceSTUN(false) })
	s.startCall(alice)
	s.joinCall(bob)
	s.dial(phone)
	s.allHearAll(phone, 15*time.Second)
	s.must(bed.Synapse.Stop())
	bed.SilenceSTUN(false)
	time.Sleep(outage)
	for _, c := range s.pages {
		t.Logf("when the homeserver comes back %s has %d legs to the ghost", c.Kind, s.legs(c))
	}
	s.must(bed.Synapse.StartProcess(s.ctx))
	returned := time.Now()
	time.Sleep(healsWithin)
	from := time.Now()
	for _, c := range s.pages {
		late := max(s.phoneHearsAgain(phone, c, from, 60*time.Second), s.clientHearsAgain(c, phone, from, 5*time.Second))
		t.Logf("%s is heard and hears %.1f s after the homeserver's return", c.Kind, from.Add(late).Sub(returned).Seconds())
		if late > time.Second {
			t.Errorf("%s: sound is back %s after the homeserver, want within %s", c.Kind, from.Add(late).Sub(returned), healsWithin)
		}
	}
}

// The only client leaves while the homeserver is away. As soon as it is back the phone is released.
func TestPhoneIsReleasedWhenClientLeftInOutage(t *testing.T) {
	for _, kind := range []lab.Kind{lab.Hydrogen, lab.JSSDK} {
		t.Run(string(kind), func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{}, "alice")
			alice := s.pageSaying(kind, users[0], bed.Steady(0))
			phone := s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
			s.startCall(alice)
			s.dial(phone)
			s.allHearAll(phone, 10*time.Second)
			s.must(bed.Synapse.Pause())
			back := s.later(5*time.Second, bed.Synapse.Resume)
			left := time.Now()
			gone := s.later(0, func() error { return alice.Leave(s.ctx) })
			s.must(<-back)
			returned := time.Now()
			s.must(<-gone)
			closed := s.await(phone, lab.CallClosed, left, 5*time.Second)
			t.Logf("the phone was released %d ms after the homeserver's return", closed.At.Sub(returned).Milliseconds())
			s.eventually("the ghost has left", 5*time.Second, func() bool { return len(s.ghosts()) == 0 })
		})
	}
}

// The phone hangs up while the homeserver is away. The ghost is gone when it is back, for the room and for both clients,
// which go on with their call.
func TestGhostIsGoneAfterOutageInWhichPhoneHungUp(t *testing.T) {
	s, alice, bob, phone := steadyCall(t, "alice", "0bob")
	s.must(bed.Synapse.Pause())
	back := s.later(5*time.Second, bed.Synapse.Resume)
	s.must(phone.Hangup(s.ctx))
	s.must(<-back)
	left := s.eventually("the ghost has left the room's call", 5*time.Second, func() bool { return len(s.ghosts()) == 0 })
	for _, c := range s.pages {
		s.eventually("the client has ended its leg", 5*time.Second, func() bool { return s.legs(c) == 0 && s.members(c) == 0 })
	}
	t.Logf("the ghost has left the room %d ms after the homeserver's return", left.Milliseconds())
	if n := s.inCall(alice.User) + s.inCall(bob.User); n != 2 {
		t.Errorf("%d clients are in the call, want both to go on", n)
	}
}

// A homeserver without TURN answers the question for it with an empty object, on which hydrogen cannot make a connection
// at all. js-sdk can, and so can the ghost.
func TestPhoneAndJSSDKHearEachOtherWithoutTURN(t *testing.T) {
	ctx := t.Context()
	if err := bed.Synapse.WithoutTURN(ctx, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bed.Synapse.WithoutTURN(context.Background(), false); err != nil {
			t.Error(err)
		}
	})
	s, users := newScene(t, lab.RoomOptions{}, "alice")
	var turn map[string]any
	s.must(bed.API(s.ctx, users[0], http.MethodGet, "/v3/voip/turnServer", nil, &turn))
	if len(turn) != 0 {
		t.Fatalf("the homeserver has TURN servers: %v, want none", turn)
	}
	alice, phone := s.page(lab.JSSDK, users[0]), s.phone("desk", lab.PhoneOptions{})
	s.startCall(alice)
	s.dial(phone)
	s.listen(1)
	s.clientHears(alice, phone.Saying())
	s.phoneHears(phone, s.said(alice))
}

// healsWithin is how soon after the homeserver's return everybody must hear everybody.
const healsWithin = 15 * time.Second

// later does something after a while and hands over how it went.
func (s *scene) later(after time.Duration, do func() error) <-chan error {
	done := make(chan error, 1)
	timer := time.AfterFunc(after, func() { done <- do() })
	s.t.Cleanup(func() {
		if timer.Stop() {
			_ = do()
		}
	})
	return done
}
