package matrixcall

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
)

// TestStrangersCannotCrowdOutAnEarlyInvite: a thousand users who are not in the room send the ghost a message each. None gets
// to the conference; what a member of the room says is there at once, and so is what somebody says who has entered the room
// a moment ago, while as many strangers' messages wait as may.
func TestStrangersCannotCrowdOutAnEarlyInvite(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, e := oneCall(b)
		bob := b.person("bob", false)
		var strangers []*person
		for n := range 1000 {
			strangers = append(strangers, b.person(fmt.Sprint("stranger", n), false))
		}
		reads := b.service.metrics.StateReads.Load()
		for n, p := range strangers {
			p.signal("conf", 0, g)
			if n%100 == 0 {
				time.Sleep(time.Second)
			}
			if n == 550 {
				bob.enter(alice, e.info.Room)
				synctest.Wait()
				bob.signal("conf", 0, g)
				alice.signal("conf", 0, g)
			}
		}
		b.eventually(time.Second, func() string { return sequence(e.heard(), []id.UserID{alice.user, bob.user}, 1) })
		time.Sleep(10 * time.Second)
		if n := len(e.heard()); n != 2 {
			t.Errorf("%d messages reached the conference, want those of the two members", n)
		}
		if n := b.service.metrics.MessagesRefused.Load(); n != 1000 {
			t.Errorf("%d messages were refused, want one of each stranger", n)
		}
		if n := b.service.metrics.StateReads.Load() - reads; n > 30 {
			t.Errorf("the room's state was read %d times for them", n)
		}
		if n := waitingNewcomers(b.service.tracker.find(e.info.Room)); n != 0 {
			t.Errorf("%d messages still wait", n)
		}
	})
}

// TestNewcomerIsHeardWhenTheStateIsRead: the room's event that says so got lost, as it does when a homeserver dies.
func TestNewcomerIsHeardWhenTheStateIsRead(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, e := oneCall(b)
		bob := b.person("bob", true)
		b.handler.set(nil) // no transactions
		bob.enter(alice, e.info.Room)
		for n := range 3 {
			bob.signal("conf", n, g)
		}
		b.eventually(2*time.Second, func() string { return sequence(e.heard(), []id.UserID{bob.user}, 3) })
	})
}

// TestNewcomersAreBounded, each and all together, while the room's state cannot be read.
func TestNewcomersAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, g, e := oneCall(b)
		b.fake.Break(&homeserver.Fault{Path: "/sync", Error: &homeserver.Error{Status: 502, Code: "M_UNKNOWN"}})
		b.fake.Break(&homeserver.Fault{Path: "/state", Error: &homeserver.Error{Status: 502, Code: "M_UNKNOWN"}})
		say := func(user string) {
			g.route(callMessage{sender: id.UserID(user), kind: typeInvite, content: []byte(`{"conf_id":"conf","device_id":"D"}`)})
		}
		r := b.service.tracker.find(e.info.Room)
		for range 100 {
			say("@mallory:x")
		}
		synctest.Wait()
		if n := waitingNewcomers(r); n != maxNewcomer {
			t.Errorf("%d messages of one user wait, want %d", n, maxNewcomer)
		}
		for n := range 1000 {
			say(fmt.Sprintf("@mallory%d:x", n))
		}
		if n := waitingNewcomers(r); n != maxNewcomers {
			t.Errorf("%d messages wait, want %d", n, maxNewcomers)
		}
		b.service.detachConference(e)
		if n := waitingNewcomers(r); n != 0 {
			t.Errorf("%d messages for a conference that is gone still wait", n)
		}
	})
}

func waitingNewcomers(r *trackedRoom) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.newcomers)
}
