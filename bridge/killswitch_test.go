package bridge

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"trunkline/bridge/config"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
)

func TestKillSwitchTellsWhy(t *testing.T) {
	t.Parallel()
	b, _ := dialBed(t, func(c *config.Config) { c.Dialling.Stopped = "the bill is being looked into." })
	alice := b.person("alice", member.JSSDK, false)
	b.says(alice, "!sip call 1001")
	b.told("Calls to telephones are switched off at present: the bill is being looked into.")
}

// switches is an admin who throws the switch, or asks how it stands.
func (b *bed) switches(method, path string, want diallingView) {
	b.t.Helper()
	w := httptest.NewRecorder()
	b.process.bridge.admin().ServeHTTP(w, httptest.NewRequest(method, path, nil))
	var got diallingView
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got != want {
		b.t.Errorf("%s %s: %d %s, want %+v", method, path, w.Code, w.Body, want)
	}
}

// holds lets one request of the bot, or of a ghost that joins, wait until Hold is closed.
func (b *bed) holds(path string) *homeserver.Fault {
	f := &homeserver.Fault{Path: path, Times: 1, Hold: make(chan struct{})}
	if path == "/join" {
		f.Method = "POST" // not the question who has joined
	} else {
		f.User = b.bot() // people say something, too
	}
	return b.hs.Break(f)
}

func TestAnAdminSwitchesCallsOffAndOn(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.switches("GET", "/dialling", diallingView{})
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("1001 has answered.")
	b.switches("POST", "/dialling/stop", diallingView{Stopped: stoppedByAdmin})
	for i, wish := range []string{"!sip call 1002", "!sip transfer 1003"} {
		b.says(alice, wish)
		b.await("an answer", func() bool { return len(b.boards()) > i+1 })
		if got := b.boards()[i+1]; got != "Calls to telephones are switched off at present: "+stoppedByAdmin {
			t.Errorf("%q is answered with %q", wish, got)
		}
	}
	if call.Ended() != "" {
		t.Error("the call that was up has ended")
	}
	b.switches("POST", "/dialling/stop?why=fraud.&calls=end", diallingView{Stopped: "fraud.", Ended: 1})
	<-call.Done()
	b.told("calls to telephones were switched off.")
	b.clear()
	b.switches("POST", "/dialling/start", diallingView{})
	b.says(alice, "!sip call 1004")
	again := b.called(p)
	if err := again.Refuse(486, "Busy Here"); err != nil {
		t.Fatal(err)
	}
	b.told("Call to 1004: busy.")
	b.clear()
}

func TestKillSwitchEndsACallThatRings(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.Ring(); err != nil {
		t.Fatal(err)
	}
	b.told("1001 rings.")
	b.switches("POST", "/dialling/stop?calls=end", diallingView{Stopped: stoppedByAdmin, Ended: 1})
	<-call.Done()
	if why := call.Ended(); !strings.Contains(why, "cancelled") {
		t.Errorf("the phone was ended by %q, want CANCEL", why)
	}
	b.told("Call to 1001: calls to telephones were switched off.")
	b.clear()
}

// A call may be long on its way to the phone. None gets there once the switch is thrown, whether or not those that are up shall end.
func TestKillSwitchStopsACallThatIsBeingPlaced(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		held  string // the path of what takes so long
		stop  string
		ended int
		told  string
	}{
		"before the room is told": {
			"/send/m.room.message", "/dialling/stop?calls=end", 0,
			"Calls to telephones are switched off at present: " + stoppedByAdmin,
		},
		"before the ghost is in the call": {
			"/join", "/dialling/stop", 0, "Call to 1001: calls to telephones were switched off.",
		},
		"before the ghost is in the call, and all shall end": {
			"/join", "/dialling/stop?calls=end", 1, "Call to 1001: calls to telephones were switched off.",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, p := dialBed(t, nil)
			alice := b.person("alice", member.JSSDK, true)
			b.says(alice, "!sip who") // the bot is in the room, and in no need of joining it
			b.told("There is no phone here.")
			held := b.holds(c.held)
			b.says(alice, "!sip call 1001")
			b.await("the call to be on its way", func() bool { return held.Hits() == 1 })
			b.switches("POST", c.stop, diallingView{Stopped: stoppedByAdmin, Ended: c.ended})
			close(held.Hold)
			b.told(c.told)
			b.clear()
			b.settled(1)
			if n := p.Rung(); n != 0 {
				t.Errorf("the phone has heard of %d calls", n)
			}
		})
	}
}

func TestKillSwitchStopsRedirectsAndTransfersUnderWay(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call "+berlin)
	forwards := b.called(p)
	b.switches("POST", "/dialling/stop", diallingView{Stopped: stoppedByAdmin})
	if b.process.bridge.plan.Redirected("lab", berlin) == "" {
		t.Error("the call could not be forwarded anyway")
	}
	if err := forwards.Refuse(302, "Moved Temporarily"); err != nil { // to the phone's own number
		t.Fatal(err)
	}
	b.told("the number is forwarded to another one, which is not called for you.")
	b.clear()
	if n := p.Rung(); n != 1 {
		t.Errorf("the phone has heard of %d calls", n)
	}
	b.switches("POST", "/dialling/start", diallingView{})
	b.says(alice, "!sip call "+berlin)
	call := b.called(p)
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("has answered.")
	held := b.holds("/send/m.room.message")
	b.says(alice, "!sip transfer 1002")
	b.await("the transfer to be on its way", func() bool { return held.Hits() == 1 })
	b.switches("POST", "/dialling/stop", diallingView{Stopped: stoppedByAdmin})
	close(held.Hold)
	b.told("could not be transferred to 1002 and stays: calls to telephones were switched off.")
	if call.Ended() != "" {
		t.Errorf("the call ended: %q", call.Ended())
	}
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
}

// An admin in a hurry must not take calls for ended that are not.
func TestKillSwitchRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	b, _ := dialBed(t, nil)
	for _, wish := range []string{"calls=all", "calls=END", "call=end", "why=fraud.;calls=end"} {
		w := httptest.NewRecorder()
		b.process.bridge.admin().ServeHTTP(w, httptest.NewRequest("POST", "/dialling/stop?"+wish, nil))
		if w.Code != http.StatusBadRequest || !strings.HasSuffix(w.Body.String(), "; nothing is switched off\n") {
			t.Errorf("POST /dialling/stop?%s = %d %s, want 400", wish, w.Code, w.Body)
		}
		b.switches("GET", "/dialling", diallingView{})
	}
}

// Who has switched calls off must not find them on again because of a crash, nor a restart, nor on another node.
func TestKillSwitchOutlivesTheProcess(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	off := diallingView{Stopped: "fraud."}
	b.switches("POST", "/dialling/stop?why=fraud.", off)
	b.stop()
	b.start()
	b.switches("GET", "/dialling", off)
	b.says(alice, "!sip call 1001")
	b.told("Calls to telephones are switched off at present: fraud.")
	b.switches("POST", "/dialling/start", diallingView{})
	b.stop()
	b.start()
	b.switches("GET", "/dialling", diallingView{})
	if err := b.process.bridge.store.PutSetting(b.ctx(), switchSetting, "another node says so.", time.Now()); err != nil {
		t.Fatal(err)
	}
	b.says(alice, "!sip call 1002")
	b.told("Calls to telephones are switched off at present: another node says so.")
	b.switches("GET", "/dialling", diallingView{Stopped: "another node says so."})
	if n := p.Rung(); n != 0 {
		t.Errorf("the phone has heard of %d calls", n)
	}
}

// The switch must work when the database does not, and be there when that is back.
func TestKillSwitchIsStoredWhenTheDatabaseIsBack(t *testing.T) {
	t.Parallel()
	b, _ := dialBed(t, nil)
	exec := func(query string) {
		t.Helper()
		if _, err := b.process.bridge.store.Shared().Exec(b.ctx(), query); err != nil {
			t.Fatal(err)
		}
	}
	exec("ALTER TABLE setting RENAME TO away")
	w := httptest.NewRecorder()
	b.process.bridge.admin().ServeHTTP(w, httptest.NewRequest("POST", "/dialling/stop?why=fraud.", nil))
	var got diallingView
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Stopped != "fraud." || got.Problem == "" {
		t.Errorf("POST /dialling/stop = %d %s, want it to be stopped, and a problem", w.Code, w.Body)
	}
	exec("ALTER TABLE away RENAME TO setting")
	alice := b.person("alice", member.JSSDK, false)
	b.says(alice, "!sip call 1001") // as does the next upkeep
	b.told("Calls to telephones are switched off at present: fraud.")
	b.switches("GET", "/dialling", diallingView{Stopped: "fraud."})
	if why, err := b.process.bridge.store.Setting(b.ctx(), switchSetting); why != "fraud." || err != nil {
		t.Errorf("the database says %q, %v", why, err)
	}
}
