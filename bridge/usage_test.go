package bridge

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/config"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
)

// metric waits until /metrics has a line.
func (b *bed) metric(line string) {
	b.t.Helper()
	b.await("the metric "+line, func() bool {
		w := httptest.NewRecorder()
		b.process.bridge.admin().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return strings.Contains(w.Body.String(), "\n"+line+"\n")
	})
}

func TestSomebodyIsToldWhenALimitIsBeingUsedUp(t *testing.T) {
	t.Parallel()
	var watchers id.RoomID
	b, p := dialBed(t, func(c *config.Config) {
		c.Dialling.Limits.User = config.DialLimit{Calls: 4}
		c.Dialling.Alarm.At = []int{50, 100}
		c.Dialling.Alarm.Room = "#watchers:" + c.Homeserver.Domain
	})
	owner := b.hs.User("owner")
	watchers = b.hs.Room(owner.UserID, homeserver.CreateRoom{Invite: []id.UserID{b.bot()}})
	alice := b.person("alice", member.JSSDK, true)
	if _, err := b.person("owner", member.JSSDK, false).Client().CreateAlias(b.ctx(), id.NewRoomAlias("watchers", b.hs.Domain()), watchers); err != nil {
		t.Fatal(err)
	}
	said := func() string { return strings.Join(b.notices(string(watchers)), "\n") }
	call := func() {
		t.Helper()
		b.says(alice, "!sip call 1001")
		if err := b.called(p).Refuse(486, "Busy Here"); err != nil {
			t.Fatal(err)
		}
		b.clear()
	}
	call()
	b.metric(`trunkline_dialled_today_calls{trunk="lab"} 1`)
	b.metric(`trunkline_limit_used_ratio{scope="user"} 0.25`)
	if text := said(); text != "" {
		t.Errorf("the room is told at a quarter: %s", text)
	}
	call()
	half := "Calls of " + string(alice.UserID()) + " have used 50 % of what they may today: 2 of 4 calls."
	b.await("the alarm room to be told", func() bool { return strings.Contains(said(), half) })
	b.metric(`trunkline_limit_alarms_total{percent="50",scope="user",what="calls"} 1`)
	b.stop()
	b.start()
	call()
	b.metric(`trunkline_limit_used_ratio{scope="user"} 0.75`)
	call()
	b.await("the alarm room to be told", func() bool { return strings.Contains(said(), "have used 100 % of what they may today: 4 of 4 calls.") })
	if n := strings.Count(said(), " have used "); n != 2 {
		t.Errorf("the room was told %d times, want twice, over a restart, too: %s", n, said())
	}
}

// Minutes are counted while they are talked, not only when it is too late.
func TestMinutesOfACallThatIsUpAreSeen(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, func(c *config.Config) { c.Dialling.Limits.Trunk = config.DialLimit{Talk: 10 * time.Minute} })
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("1001 has answered.")
	b.await("the row to say so", func() bool {
		var answered int64
		row := b.process.bridge.store.Shared().QueryRow(b.t.Context(), "SELECT answered_at FROM leg")
		return row.Scan(&answered) == nil && answered > 0
	})
	used, err := b.process.bridge.store.UsageOn(b.ctx(), time.Now().UTC().Format(time.DateOnly), time.Now().Add(9*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	rules := b.process.bridge.quotas()
	shares := rules.Shares(time.Now().UTC().Format(time.DateOnly), quotaRows(used))
	if len(shares) == 0 || shares[0].Name != "lab" || shares[0].What != "minutes" || shares[0].Percent < 90 {
		t.Errorf("after nine of ten minutes: %+v, want 90 %% of the trunk's", shares)
	}
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
}
