//go:build e2e

package e2e

import (
	"context"
	"testing"
	"time"

	"trunkline/test/lab"
)

// backWithin is how soon after its join a reloaded client must hear and be heard.
const backWithin = 2 * time.Second

// A page is loaded again in mid-call: the same device, a new session. The phone and the other client talk on.
func TestReloadedClientIsBackInAudio(t *testing.T) {
	for _, role := range []struct{ name, first, second string }{{"callees", "alice", "bob"}, {"inviters", "0alice", "0bob"}} {
		t.Run(role.name, func(t *testing.T) {
			s, alice, bob, phone := steadyCall(t, role.first, role.second)
			for _, pair := range [][2]*lab.Client{{alice, bob}, {bob, alice}} {
				reloads, other := pair[0], pair[1]
				t.Run(string(reloads.Kind), func(t *testing.T) {
					s := s.in(t)
					began := time.Now()
					s.must(reloads.Reload(s.ctx))
					call, err := reloads.AwaitCall(s.ctx, s.room.ID)
					s.must(err)
					joins := time.Now()
					s.must(reloads.Join(s.ctx, s.room.ID, call))
					hears := s.clientHearsAgain(reloads, phone, joins, 10*time.Second)
					heard := s.phoneHearsAgain(phone, reloads, joins, 10*time.Second)
					t.Logf("loaded after %d ms; hears %d ms and is heard %d ms after it joined", joins.Sub(began).Milliseconds(),
						hears.Milliseconds(), heard.Milliseconds())
					if max(hears, heard) > backWithin {
						t.Errorf("back %s after joining, want within %s", max(hears, heard), backWithin)
					}
					s.noGap(phone, began, other)
					s.noGapAt(other, began, phone)
				})
			}
		})
	}
}

// Entries live for ten seconds here, and an hour elsewhere. The ghost renews its own in time: js-sdk stops sending to a device
// whose entry has expired, and the call is heard without a gap beyond the end of the first entry.
func TestGhostsEntryIsRenewedInTime(t *testing.T) {
	const life = 10 * time.Second
	s, users := newScene(t, lab.RoomOptions{}, "alice", "bob")
	undo, err := bed.Bridge().RestartWith(s.ctx, "calls", "entry_life", life.String())
	s.must(err)
	defer func() { s.must(undo(context.Background())) }()
	alice, bob := s.pageSaying(lab.JSSDK, users[0], bed.Steady(0)), s.pageSaying(lab.Hydrogen, users[1], bed.Steady(1))
	phone := s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
	s.startCall(alice)
	s.joinCall(bob)
	s.dial(phone)
	s.allHearAll(phone, 10*time.Second)
	heard, before := time.Now(), s.ghosts()
	time.Sleep(life + 2*time.Second)
	if now := s.ghosts(); len(before) != 1 || len(now) != 1 || !now[0].Expires.After(before[0].Expires) || now[0].Session != before[0].Session {
		t.Errorf("ghosts %v before and %v after, want the same session with a later end", before, now)
	}
	s.noGap(phone, heard, alice, bob)
	for _, c := range s.pages {
		s.noGapAt(c, heard, phone)
	}
	s.must(phone.Hangup(s.ctx)) // before the bridge is restarted
	s.eventually("the ghost has left", 5*time.Second, func() bool { return len(s.ghosts()) == 0 })
}

// Two clients die without a word. The ghost gives them up once ICE has failed, and talks on with the one that is left.
func TestClientsThatDieSilentlyAreDroppedAndOthersHearOn(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "alice", "bob", "carol")
	alice := s.pageSaying(lab.Hydrogen, users[0], bed.Steady(0))
	bob, carol := s.page(lab.JSSDK, users[1]), s.page(lab.Hydrogen, users[2])
	phone := s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
	s.startCall(alice)
	s.joinCall(bob)
	s.joinCall(carol)
	s.dial(phone)
	s.listen(1)
	died := time.Now()
	bob.Crash()
	carol.Crash()
	s.pages = s.pages[:1]
	for _, c := range []*lab.Client{bob, carol} {
		s.eventually("the ghost has given up the dead client", 50*time.Second, func() bool {
			return bed.Bridge().Logged(died, "peer lost", string(c.User.UserID))
		})
		t.Logf("%s dropped %.1f s after it died", c.Kind, time.Since(died).Seconds())
	}
	if !phone.InCall() || s.legs(alice) != 1 {
		t.Errorf("phone in call: %t, legs of the client that is left: %d; want both to go on", phone.InCall(), s.legs(alice))
	}
	s.noGap(phone, died, alice)
	s.noGapAt(alice, died, phone)
}
