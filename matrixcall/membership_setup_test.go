package matrixcall

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"
)

// Set-up that does not go by the book: invites that cross, an answer that is an offer, a client that has died.

// Both sides invite, and each invite is sent before the other has arrived. The lower call id wins, whosever it is; ours begin
// with "c".
func TestCrossingInvitesLeaveOneConnection(t *testing.T) {
	for theirs, wantRefused := range map[string]int{"z-theirs": 1, "a-theirs": 0} {
		t.Run(theirs, func(t *testing.T) {
			inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
				bed.delay = 300 * time.Millisecond
				alice := bed.browser("@alice:x", "10.1.0.2", func(br *browser) { br.mute = true })
				alice.enter()
				p := bed.join("@_sip_1:x")
				time.Sleep(200 * time.Millisecond) // our invite is under way
				alice.do(func() {
					to, _ := alice.ghost("@_sip_1:x")
					alice.invite(to, theirs)
				})
				if n := alice.received(typeInvite); n != 0 {
					t.Errorf("%d of our invites had arrived before hers left: they did not cross", n)
				}
				time.Sleep(10 * time.Second)
				if n := alice.received(typeInvite); n == 0 {
					t.Error("ours had not been sent: they did not cross")
				}
				bed.hearEachOther(p, alice)
				if connected, gone := p.count(isConnected), p.count(isGone); connected != 1 || gone != 0 {
					t.Errorf("%d PeerConnected and %d PeerGone, want 1 and none", connected, gone)
				}
				var survivor string
				alice.do(func() { survivor = alice.calls["@_sip_1:x"].id })
				refused := 0
				for _, c := range bed.sentTo(alice.user, typeHangup) {
					if c.Reason != "replaced" {
						t.Errorf("hangup of %s: %q", c.CallID, c.Reason)
					}
					if c.CallID == theirs {
						refused++
					}
				}
				if refused != wantRefused || (survivor == theirs) != (wantRefused == 0) {
					t.Errorf("her invite was refused %d times, %s survived; want %d times", refused, survivor, wantRefused)
				}
				leave(t, p)
			})
		})
	}
}

// Hydrogen reads its description 200 ms after it has answered. If its user has pressed the microphone meanwhile, the answer it
// sends is of type "offer", and the same description follows as an offer.
func TestAnswerThatIsAnOfferConnects(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", func(br *browser) { br.noMic, br.late = true, true })
		alice.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(3 * time.Second)
		bed.hearEachOther(p, alice)
		if connected, gone := p.count(isConnected), p.count(isGone); connected != 1 || gone != 0 {
			t.Errorf("%d PeerConnected and %d PeerGone, want 1 and none", connected, gone)
		}
		leave(t, p)
	})
}

// A client dies without a word; nobody removes its entry. It is dropped when ICE has failed, called three times more, and then
// left alone until its entry moves. Who is left hears on all the while.
func TestSilentClientIsCalledThreeTimesMore(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		bob := bed.browser("@bob:x", "10.1.0.3", nil)
		alice.enter()
		bob.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(2 * time.Second)
		bed.hearEachOther(p, alice)
		bed.off.Store("10.1.0.2")
		alice.silent.Store(true)
		died := time.Now()
		var dropped time.Duration
		var called []time.Duration // again, since she was dropped
		for time.Since(died) < 10*time.Minute {
			time.Sleep(500 * time.Millisecond)
			synctest.Wait()
			if p.count(isGone) > 0 && dropped == 0 {
				dropped = time.Since(died)
			}
			if n := len(bed.callsTo(alice.user)) - 1; n > len(called) {
				called = append(called, time.Since(died)-dropped)
			}
		}
		if dropped < 30*time.Second || dropped > 45*time.Second {
			t.Errorf("dropped after %v, want when ICE has been lost for 30 s", dropped)
		}
		// Each call lasts a minute, for nobody answers; the pauses before them are 1, 5 and 15 s.
		want := []time.Duration{time.Second, 66 * time.Second, 141 * time.Second}
		near := func(a, b time.Duration) bool { return a-b > -time.Second && a-b < time.Second }
		if !slices.EqualFunc(called, want, near) {
			t.Errorf("called again %v after she was dropped, want %v", called, want)
		}
		t.Logf("dropped after %v, called again %v later", dropped, called)
		bed.hearEachOther(p, bob)
		if n := p.count(isConnected); n != 2 {
			t.Errorf("%d PeerConnected, want one of each", n)
		}
		bed.off.Store("")
		alice.silent.Store(false)
		alice.do(func() { alice.session = "s-second" })
		alice.enter()
		time.Sleep(3 * time.Second)
		bed.hearEachOther(p, alice)
		leave(t, p)
	})
}

// sentTo is what was sent to a user of one kind.
func (b *callBed) sentTo(user id.UserID, kind string) (contents []*signalContent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, msg := range b.sent {
		if c, ok := msg.Content.(*signalContent); ok && msg.User == user && msg.Type == kind {
			contents = append(contents, c)
		}
	}
	return contents
}

// callsTo is the ids of the calls that were placed to a user; an invite is repeated until it is answered.
func (b *callBed) callsTo(user id.UserID) (calls []string) {
	for _, c := range b.sentTo(user, typeInvite) {
		if !slices.Contains(calls, c.CallID) {
			calls = append(calls, c.CallID)
		}
	}
	return calls
}
