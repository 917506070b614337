package bridge

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

func TestDrainLetsCallsEndAndTakesNoNewOnes(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	w := b.talkers(member.JSSDK)
	admin := httptest.NewServer(b.process.bridge.admin())
	defer admin.Close()
	res, err := http.Post(admin.URL+"/drain", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		t.Errorf("POST /drain = %s", res.Status)
	}
	_, err = b.phone("2").Dial(b.ctx(), b.sip, goodNumber)
	var refused *phone.StatusError
	if !errors.As(err, &refused) || refused.Code != 503 || refused.RetryAfter != "10" {
		t.Errorf("a new call while draining = %v, want 503 with Retry-After: 10", err)
	}
	if err := b.process.bridge.Ready(b.ctx()); err == nil {
		t.Error("ready while draining")
	}
	view := httptest.NewRecorder()
	b.process.bridge.showDrain(view, nil)
	if !strings.Contains(view.Body.String(), `"draining":true`) || !strings.Contains(view.Body.String(), `"legs":1`) {
		t.Errorf("progress = %s", view.Body.String())
	}
	w.alice.Forget()
	w.await("the call that is up to be heard on", w.hearing)
	if err := w.call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.endsByItself()
}

// endsByItself waits for the end of a process that nobody stops.
func (b *bed) endsByItself() {
	b.t.Helper()
	select {
	case err := <-b.process.over:
		if err != nil {
			b.t.Errorf("Run = %v", err)
		}
		b.process.over <- nil
	case <-time.After(patience):
		b.t.Error("the process has no call any more and stays")
	}
}

const drainWords = "The bridge is about to be restarted and places no more calls. Try again later."

// Who orders a call while the bridge drains is told that there will be none, however it is ordered. The call that is up goes on.
func TestDrainRefusesOrders(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("1001 has answered.")
	b.process.bridge.Drain()
	ghost := id.NewUserID(b.cfg.AppService.GhostPrefix+berlin, b.hs.Domain())
	for how, order := range map[string]func(){
		"by command": func() { b.says(alice, "!sip call 1002") },
		"by inviting the number": func() {
			if _, err := alice.Client().InviteUser(b.ctx(), b.room, &mautrix.ReqInviteUser{UserID: ghost}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		before := len(b.boards())
		order()
		b.await("an answer to an order "+how, func() bool { return len(b.boards()) > before })
		if got := b.boards()[before]; got != drainWords {
			t.Errorf("an order %s is answered with %q", how, got)
		}
	}
	b.await("the invitation to be declined", func() bool { return b.membership(ghost) == "leave" })
	if n := p.Rung(); n != 1 || call.Ended() != "" {
		t.Errorf("the phone has heard of %d calls, want the first only; that one ended: %q", n, call.Ended())
	}
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.endsByItself()
	b.told("the phone hung up.")
}

// A drain begins while a call is being placed, and no other one is up: the process stays until the room knows.
func TestDrainStopsACallThatIsBeingPlaced(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip who") // the bot is in the room, and in no need of joining it
	b.told("There is no phone here.")
	held := b.holds("/send/m.room.message")
	b.says(alice, "!sip call 1001")
	b.await("the call to be on its way", func() bool { return held.Hits() == 1 })
	b.process.bridge.Drain()
	select {
	case <-b.process.over:
		t.Fatal("the process is gone, and the room not told")
	case <-time.After(500 * time.Millisecond):
	}
	close(held.Hold)
	b.told(drainWords)
	b.endsByItself()
	if n := p.Rung(); n != 0 {
		t.Errorf("the phone has heard of %d calls", n)
	}
	if n := b.stored(); n != 0 {
		t.Errorf("%d rows stay", n)
	}
}

// An admin drains one of two nodes, and does not want to wait for the last call: SIGTERM hands it over to the other one at once.
func TestDrainThatIsCutShortHandsItsCallsOver(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.onPostgres()
	other := b.neighbour("elsewhere")
	w := b.talkers(member.JSSDK)
	b.process.bridge.Drain()
	if err := other.bridge.Ready(b.ctx()); err != nil {
		t.Errorf("the other node is not ready: %v", err)
	}
	b.stop()
	stopped, leases := time.Now(), 0
	lease := other.bridge.store.Shared().QueryRow(b.ctx(), "SELECT COUNT(*) FROM lease WHERE owner = $1", b.process.bridge.run)
	if err := lease.Scan(&leases); err != nil || leases != 0 {
		t.Errorf("%d leases, %v; want none, else the call waits as if the process had died", leases, err)
	}
	b.process = other // whose rows and ports are looked at from here on
	w.silence()
	b.await("the other node to have the call", func() bool { return len(other.bridge.liveLegs()) == 1 })
	w.await("the phone to be told the new address", func() bool { return w.call.Reinvited() == 1 })
	w.back(stopped)
	w.clean()
}
