package homeserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/appservice"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client returns a mautrix client of an ordinary user.
func client(t *testing.T, hs *homeserver.Server, u homeserver.User) *mautrix.Client {
	t.Helper()
	c, err := mautrix.NewClient(hs.URL(), u.UserID, u.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	c.DeviceID, c.Client = u.DeviceID, hs.Net().Client()
	return c
}

func sync0(t *testing.T, c *mautrix.Client, since string, timeout time.Duration) *mautrix.RespSync {
	t.Helper()
	resp, err := c.SyncRequest(t.Context(), int(timeout.Milliseconds()), since, "", false, event.PresenceOffline)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func whisper(t *testing.T, from *mautrix.Client, to homeserver.User, body string) {
	t.Helper()
	_, err := from.SendToDevice(t.Context(), event.Type{Type: "m.call.invite", Class: event.ToDeviceEventType}, &mautrix.ReqSendToDevice{
		Messages: map[id.UserID]map[id.DeviceID]*event.Content{
			to.UserID: {to.DeviceID: {Raw: map[string]any{"body": body}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func bodies(resp *mautrix.RespSync) []string {
	var list []string
	for _, e := range resp.ToDevice.Events {
		list = append(list, fmt.Sprint(e.Content.Raw["body"]))
	}
	return list
}

func TestToDeviceStaysUntilALaterSinceConfirmsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := homeserver.Start(t, homeserver.Config{})
		a, b := hs.User("alice"), hs.User("bob")
		alice, bob := client(t, hs, a), client(t, hs, b)
		start := sync0(t, bob, "", 0).NextBatch
		whisper(t, alice, b, "one")
		first := sync0(t, bob, start, 0)
		again := sync0(t, bob, start, 0)
		if got, want := bodies(again), []string{"one"}; !slices.Equal(got, want) || !slices.Equal(bodies(first), want) {
			t.Errorf("with the same since: %v, then %v, want %v twice", bodies(first), got, want)
		}
		if got := bodies(sync0(t, bob, again.NextBatch, 0)); got != nil {
			t.Errorf("after confirmation: %v, want nothing", got)
		}
		if got := hs.Inbox(b.UserID, b.DeviceID); got != 0 {
			t.Errorf("%d messages left in the inbox, want 0", got)
		}
	})
}

func TestToDeviceComesHundredAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := homeserver.Start(t, homeserver.Config{})
		a, b := hs.User("alice"), hs.User("bob")
		alice, bob := client(t, hs, a), client(t, hs, b)
		for i := range 205 {
			whisper(t, alice, b, fmt.Sprint(i))
		}
		var sizes []int
		since := ""
		for range 4 {
			resp := sync0(t, bob, since, 0)
			sizes = append(sizes, len(resp.ToDevice.Events))
			since = resp.NextBatch
		}
		if want := []int{100, 100, 5, 0}; !slices.Equal(sizes, want) {
			t.Errorf("answers of %v messages, want %v", sizes, want)
		}
	})
}

func TestLongPollWakesAtOnceAndSleepsItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := homeserver.Start(t, homeserver.Config{})
		a, b := hs.User("alice"), hs.User("bob")
		alice, bob := client(t, hs, a), client(t, hs, b)
		since := sync0(t, bob, "", 0).NextBatch
		began := time.Now()
		since = sync0(t, bob, since, 5*time.Second).NextBatch
		if got := time.Since(began); got != 5*time.Second {
			t.Errorf("the empty poll took %v, want 5s", got)
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { time.Sleep(time.Second); whisper(t, alice, b, "now") })
		began = time.Now()
		got := bodies(sync0(t, bob, since, 5*time.Second))
		if d := time.Since(began); d != time.Second || !slices.Equal(got, []string{"now"}) {
			t.Errorf("the poll got %v after %v, want [now] after 1s", got, d)
		}
	})
}

func TestLostWakeUpIsFoundByTimeoutZeroOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := homeserver.Start(t, homeserver.Config{})
		a, b := hs.User("alice"), hs.User("bob")
		alice, bob := client(t, hs, a), client(t, hs, b)
		since := sync0(t, bob, "", 0).NextBatch
		hs.LoseWakeUps(1)
		whisper(t, alice, b, "quiet")
		for range 2 {
			resp := sync0(t, bob, since, 3*time.Second)
			if got := bodies(resp); got != nil {
				t.Errorf("the long poll found %v, want nothing", got)
			}
			since = resp.NextBatch
		}
		if got, want := bodies(sync0(t, bob, since, 0)), []string{"quiet"}; !slices.Equal(got, want) {
			t.Errorf("timeout=0 found %v, want %v", got, want)
		}
	})
}

// service is an application service that notes its transactions.
type service struct {
	mu     sync.Mutex
	fail   bool
	txns   []string
	events []string
	times  []time.Time
	asked  []string
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if r.Method == http.MethodPut {
		var body struct{ Events []struct{ Type string } }
		content, _ := io.ReadAll(r.Body)
		_ = json.Unmarshal(content, &body)
		s.txns = append(s.txns, r.URL.Path[len("/_matrix/app/v1/transactions/"):])
		s.times = append(s.times, time.Now())
		for _, e := range body.Events {
			s.events = append(s.events, e.Type)
		}
	}
	if r.Method == http.MethodGet {
		s.asked = append(s.asked, r.URL.Path)
	}
	fmt.Fprint(w, "{}")
}

func (s *service) setFail(fail bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

func (s *service) seen() (txns, events []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.txns), slices.Clone(s.events)
}

// withService starts a homeserver with an application service.
func withService(t *testing.T) (*homeserver.Server, *homeserver.AppService, *service, *mautrix.Client) {
	t.Helper()
	hs := homeserver.Start(t, homeserver.Config{})
	svc := &service{}
	l, err := hs.Net().Listen("bridge:29400")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: svc}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	reg := &appservice.Registration{
		ID: "bridge", URL: "http://bridge:29400", AppToken: "as", ServerToken: "hs", SenderLocalpart: "sender",
		Namespaces: appservice.Namespaces{UserIDs: appservice.NamespaceList{{Regex: `^@_sip_.*:hs\.test$`, Exclusive: true}}},
	}
	as := hs.AppService(reg, hs.Net().Client())
	c, err := mautrix.NewClient(hs.URL(), "@_sip_1:hs.test", "as")
	if err != nil {
		t.Fatal(err)
	}
	c.Client = hs.Net().Client()
	_, _, err = c.Register(t.Context(), &mautrix.ReqRegister[any]{
		Username: "_sip_1", Type: mautrix.AuthTypeAppservice, InhibitLogin: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	c.SetAppServiceUserID = true
	return hs, as, svc, c
}

func TestTransactionsAreRepeatedInOrderUntilTheServiceIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs, as, svc, ghost := withService(t)
		alice := hs.User("alice")
		svc.setFail(true)
		began := time.Now()
		room := hs.Room(alice.UserID, homeserver.CallRoom(ghost.UserID))
		hs.Join(room, ghost.UserID)
		for i := range 3 {
			time.Sleep(time.Second)
			hs.SetState(room, alice.UserID, "m.test", "", map[string]int{"n": i})
		}
		svc.setFail(false)
		time.Sleep(20 * time.Second)
		txns, events := svc.seen()
		want := []string{"m.room.member", "m.room.member", "m.test", "m.test", "m.test"}
		if diff := slices.Compare(events, want); diff != 0 {
			t.Errorf("events %v, want %v", events, want)
		}
		if len(txns) == 0 || txns[0] != "1" || as.Pending() != 0 {
			t.Errorf("transactions %v, pending %d, want them to begin with 1 and nothing to wait", txns, as.Pending())
		}
		if got := svc.times[0].Sub(began); got != 6*time.Second {
			t.Errorf("the first repeat that got through came after %v, want 6s (2+4)", got)
		}
	})
}

func TestPingMakesTheServerRetryAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs, _, svc, ghost := withService(t)
		svc.setFail(true)
		hs.Room(hs.User("alice").UserID, homeserver.CallRoom(ghost.UserID))
		time.Sleep(100 * time.Second)
		svc.setFail(false)
		began := time.Now()
		bot, err := mautrix.NewClient(hs.URL(), "@sender:hs.test", "as")
		if err != nil {
			t.Fatal(err)
		}
		bot.Client = hs.Net().Client()
		if _, err := bot.AppservicePing(t.Context(), "bridge", "1"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, events := svc.seen(); len(events) != 1 || time.Since(began) != 0 {
			t.Errorf("after the ping: %v after %v, want the invite at once", events, time.Since(began))
		}
	})
}

func TestGhostsShareTransactionIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs, _, _, one := withService(t)
		bob := hs.User("bob")
		two, err := mautrix.NewClient(hs.URL(), "@_sip_2:hs.test", "as")
		if err != nil {
			t.Fatal(err)
		}
		two.Client = hs.Net().Client()
		if _, _, err := two.Register(t.Context(), &mautrix.ReqRegister[any]{
			Username: "_sip_2", Type: mautrix.AuthTypeAppservice, InhibitLogin: true,
		}); err != nil {
			t.Fatal(err)
		}
		two.SetAppServiceUserID = true
		for _, c := range []*mautrix.Client{one, two} {
			_, err := c.MakeRequest(t.Context(), http.MethodPut, c.BuildClientURL("v3", "sendToDevice", "m.x", "7"),
				map[string]any{"messages": map[id.UserID]any{bob.UserID: map[id.DeviceID]any{bob.DeviceID: struct{}{}}}}, nil)
			if err != nil {
				t.Fatal(err)
			}
		}
		if got := len(hs.ToDevice()); got != 1 {
			t.Errorf("two ghosts with one transaction id sent %d messages, want 1 (the trap)", got)
		}
	})
}

func TestFaultsHitWhatTheyShould(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := homeserver.Start(t, homeserver.Config{})
		a, b := hs.User("alice"), hs.User("bob")
		c := client(t, hs, a)
		c.DefaultHTTPRetries = 0
		msg := func(txn string) error {
			_, err := c.MakeRequest(context.Background(), http.MethodPut, c.BuildClientURL("v3", "sendToDevice", "m.x", txn),
				map[string]any{"messages": map[id.UserID]any{b.UserID: map[id.DeviceID]any{b.DeviceID: struct{}{}}}}, nil)
			return err
		}
		limited := hs.Break(&homeserver.Fault{
			Method: "PUT", Path: "sendToDevice", Times: 2,
			Error: &homeserver.Error{Status: 502, Code: "M_UNKNOWN", Text: "gateway"},
		})
		for i, wantErr := range []bool{true, true, false} {
			if err := msg(fmt.Sprint(i)); (err != nil) != wantErr {
				t.Errorf("request %d: %v, want error: %v", i, err, wantErr)
			}
		}
		if limited.Hits() != 2 {
			t.Errorf("%d hits, want 2", limited.Hits())
		}
		hs.Break(&homeserver.Fault{Path: "sendToDevice", Times: 1, Drop: true, Late: true})
		if err := msg("late"); err == nil {
			t.Error("the dropped answer came")
		}
		if err := msg("late"); err != nil {
			t.Errorf("the repeat: %v", err)
		}
		if got := hs.Inbox(b.UserID, b.DeviceID); got != 2 {
			t.Errorf("%d messages arrived, want 2: the repeated transaction counts once", got)
		}
		slow := hs.Break(&homeserver.Fault{Path: "sendToDevice", Delay: 7 * time.Second})
		began := time.Now()
		if err := msg("slow"); err != nil || time.Since(began) != 7*time.Second {
			t.Errorf("the slow request: %v after %v, want success after 7s", err, time.Since(began))
		}
		slow.Mend()
	})
}

// Synapse answers an equal request for two minutes with the same answer. A poller that does not take over next_batch
// hears nothing new for so long.
func TestEqualRequestGetsTheOldAnswerForTwoMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := homeserver.Start(t, homeserver.Config{})
		a, b := hs.User("alice"), hs.User("bob")
		alice, bob := client(t, hs, a), client(t, hs, b)
		for _, body := range []string{"one", "two"} {
			whisper(t, alice, b, body)
			if got, want := bodies(sync0(t, bob, "", 0)), []string{"one"}; !slices.Equal(got, want) {
				t.Errorf("%v, want %v", got, want)
			}
		}
		time.Sleep(2 * time.Minute)
		if got, want := bodies(sync0(t, bob, "", 0)), []string{"one", "two"}; !slices.Equal(got, want) {
			t.Errorf("two minutes later %v, want %v", got, want)
		}
	})
}

func TestServiceIsAskedForAnUnknownGhost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs, _, svc, _ := withService(t)
		alice := client(t, hs, hs.User("alice"))
		room := hs.Room(alice.UserID, homeserver.CallRoom())
		if _, err := alice.InviteUser(t.Context(), room, &mautrix.ReqInviteUser{UserID: "@_sip_7:hs.test"}); err != nil {
			t.Fatal(err)
		}
		svc.mu.Lock()
		defer svc.mu.Unlock()
		if want := []string{"/_matrix/app/v1/users/@_sip_7:hs.test"}; !slices.Equal(svc.asked, want) {
			t.Errorf("asked for %q, want %q", svc.asked, want)
		}
	})
}

func TestRoomComesBySync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := homeserver.Start(t, homeserver.Config{})
		a, b := hs.User("alice"), hs.User("bob")
		bob := client(t, hs, b)
		room := hs.Room(a.UserID, homeserver.CallRoom(b.UserID))
		first := sync0(t, bob, "", 0)
		if len(first.Rooms.Invite) != 1 {
			t.Fatalf("%d invites, want 1", len(first.Rooms.Invite))
		}
		if _, err := bob.JoinRoomByID(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		joined := sync0(t, bob, first.NextBatch, 0)
		r := joined.Rooms.Join[room]
		if r == nil || len(r.State.Events)+len(r.Timeline.Events) < 7 {
			t.Fatalf("after the join: %+v, want the whole state", r)
		}
		if got, want := joined.DeviceLists.Changed, []id.UserID{a.UserID, b.UserID}; !slices.Equal(got, want) {
			t.Errorf("device lists changed %v, want %v", got, want)
		}
		hs.SetState(room, a.UserID, "org.matrix.msc3401.call", "c1", map[string]string{"m.type": "m.voice"})
		next := sync0(t, bob, joined.NextBatch, time.Minute)
		if got := next.Rooms.Join[room].Timeline.Events; len(got) != 1 || got[0].Type.Type != "org.matrix.msc3401.call" {
			t.Errorf("timeline %v, want the call", got)
		}
	})
}
