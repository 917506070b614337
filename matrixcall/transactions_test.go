package matrixcall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
)

// ask puts one request to the service's handler.
func ask(s *Service, method, path, token, body string) (int, string) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	s.HTTPHandler().ServeHTTP(w, r)
	var answer struct {
		Code string `json:"errcode"`
	}
	_ = json.Unmarshal(w.Body.Bytes(), &answer)
	return w.Code, answer.Code
}

func TestHomeserverIsAnsweredByTheBook(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		s := b.start()
		b.ghost("_sip_1")
		const right, wrong = "hs-token-of-the-test", "as-token-of-the-test"
		for _, test := range []struct {
			method, path, token, body string
			status                    int
			code                      string
		}{
			{"PUT", "/_matrix/app/v1/transactions/1", right, `{"events":[]}`, 200, ""},
			{"PUT", "/_matrix/app/v1/transactions/1", "", `{"events":[]}`, 401, "M_MISSING_TOKEN"},
			{"PUT", "/_matrix/app/v1/transactions/1", wrong, `{"events":[]}`, 403, "M_FORBIDDEN"},
			{"PUT", "/_matrix/app/v1/transactions/1", right + "x", `{"events":[]}`, 403, "M_FORBIDDEN"},
			{"PUT", "/_matrix/app/v1/transactions/1?access_token=" + right, right, `{"events":[]}`, 200, ""},
			{"PUT", "/_matrix/app/v1/transactions/1?access_token=" + wrong, right, `{"events":[]}`, 403, "M_FORBIDDEN"},
			{"PUT", "/_matrix/app/v1/transactions/1?access_token=" + right, "", `{"events":[]}`, 401, "M_MISSING_TOKEN"},
			{"PUT", "/_matrix/app/v1/transactions/2", right, `{"events":`, 400, "M_NOT_JSON"},
			{"PUT", "/_matrix/app/v1/transactions/3", right, `{"events":[7,"x",null,{"type":5},{}]}`, 200, ""},
			{"PUT", "/_matrix/app/v1/transactions/4", right, `{}`, 200, ""},
			{"GET", "/_matrix/app/v1/transactions/1", right, "", 405, "M_UNRECOGNIZED"},
			{"POST", "/_matrix/app/v1/ping", right, `{"transaction_id":"x"}`, 200, ""},
			{"POST", "/_matrix/app/v1/ping", wrong, `{}`, 403, "M_FORBIDDEN"},
			{"POST", "/_matrix/app/v1/ping", right, strings.Repeat("x", maxSmallBody+1), 413, "M_TOO_LARGE"},
			{"GET", "/_matrix/app/v1/users/@_sip_1:hs.test", right, "", 200, ""},
			{"GET", "/_matrix/app/v1/users/@phonebot:hs.test", right, "", 200, ""},
			{"GET", "/_matrix/app/v1/users/@_sip_2:hs.test", right, "", 404, "M_NOT_FOUND"},
			{"GET", "/_matrix/app/v1/rooms/%23x:hs.test", right, "", 404, "M_NOT_FOUND"},
			{"GET", "/_matrix/app/v1/thirdparty/protocol/x", right, "", 404, "M_UNRECOGNIZED"},
			{"GET", "/", "", "", 404, "M_UNRECOGNIZED"},
		} {
			status, code := ask(s, test.method, test.path, test.token, test.body)
			if status != test.status || code != test.code {
				t.Errorf("%s %s with token %q = %d %s, want %d %s", test.method, test.path, test.token, status, code, test.status, test.code)
			}
		}
	})
}

func TestTransactionIsHandledOnce(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, _, e := oneCall(b)
		room := e.info.Room
		event := func(n int) string {
			return fmt.Sprintf(`{"type":%q,"state_key":"conf","room_id":%q,"event_id":"$%d","sender":"@alice:hs.test",`+
				`"origin_server_ts":%d,"content":{"m.intent":"m.ring","m.type":"m.voice"},"unsigned":{"age":%d}}`,
				callType, room, n, time.Now().UnixMilli(), time.Now().UnixNano()%1000)
		}
		put := func(txn, events string) {
			t.Helper()
			if status, _ := ask(b.service, "PUT", "/_matrix/app/v1/transactions/"+txn, "hs-token-of-the-test", `{"events":[`+events+`]}`); status != 200 {
				t.Fatalf("transaction %s: %d", txn, status)
			}
			synctest.Wait()
		}
		m := &b.service.metrics
		before := m.RoomEvents.Load()
		put("1000", event(1))
		time.Sleep(time.Millisecond)
		put("1000", event(1)) // a retry, its ages are new
		put("1001", event(1)) // the event again in another transaction
		put("1002", event(2)+","+event(3))
		if got := m.RoomEvents.Load() - before; got != 3 {
			t.Errorf("%d events handled, want 3", got)
		}
		if got := m.TransactionsRepeated.Load(); got != 1 {
			t.Errorf("%d transactions repeated, want 1", got)
		}
		// A homeserver that was set up anew counts from 1 again.
		put("1000", event(4))
		if got := m.RoomEvents.Load() - before; got != 4 {
			t.Errorf("%d events handled after the homeserver's ids began anew, want 4", got)
		}
	})
}

// hastyStore does what a database driver may do when a question is given up: the row is there, the answer is not.
type hastyStore struct{ *memory }

func (h hastyStore) MarkTransaction(ctx context.Context, txnID string) (bool, error) {
	fresh, err := h.memory.MarkTransaction(ctx, txnID)
	return fresh, errors.Join(err, ctx.Err())
}

func TestTransactionOutlivesItsRequest(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		s, err := New(b.config(), hastyStore{b.store}, b.olm, Options{}, testLog(t))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		gone, hangUp := context.WithCancel(t.Context())
		hangUp()
		r := httptest.NewRequestWithContext(gone, "PUT", "/_matrix/app/v1/transactions/1", strings.NewReader(`{"events":[]}`))
		r.Header.Set("Authorization", "Bearer hs-token-of-the-test")
		s.HTTPHandler().ServeHTTP(httptest.NewRecorder(), r)
		if n := s.metrics.Transactions.Load(); n != 1 {
			t.Errorf("%d transactions taken, want the one whose homeserver hung up: its repeat counts as seen", n)
		}
	})
}

// brokenStore cannot remember transactions.
type brokenStore struct{ *memory }

func (brokenStore) MarkTransaction(context.Context, string) (bool, error) {
	return false, errors.New("disk full")
}

func TestTransactionThatCannotBeRememberedIsNotTaken(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		s, err := New(b.config(), brokenStore{b.store}, b.olm, Options{}, testLog(t))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if status, _ := ask(s, "PUT", "/_matrix/app/v1/transactions/1", "hs-token-of-the-test", `{"events":[]}`); status != 500 {
			t.Errorf("status %d, want 500 so that the homeserver tries again", status)
		}
	})
}

func TestToDeviceInTransactionsIsIgnored(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, g, e := oneCall(b)
		body := fmt.Sprintf(`{"events":[],"de.sorunome.msc2409.to_device":[{"type":"m.call.invite","sender":"@alice:hs.test",`+
			`"to_user_id":%q,"to_device_id":%q,"content":{"conf_id":"conf","device_id":"X"}}]}`, g.user, g.device)
		if status, _ := ask(b.service, "PUT", "/_matrix/app/v1/transactions/77", "hs-token-of-the-test", body); status != 200 {
			t.Fatalf("status %d", status)
		}
		time.Sleep(time.Second)
		if n := len(e.heard()); n != 0 {
			t.Errorf("%d messages taken from a transaction, want none: they come by sync", n)
		}
	})
}

func TestRoomQueueDropsTheOldestAndReadsTheStateAgain(t *testing.T) {
	b := fakeBed(t)
	var l listener
	b.opts = l.options()
	s := b.start()
	alice := b.person("alice", false)
	room := alice.room(s.Bot())
	g := b.ghost("_sip_one")
	if err := g.EnterRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	b.attach(g, room, "conf")
	if _, err := alice.client.SendText(t.Context(), room, "last"); err != nil {
		t.Fatal(err)
	}
	b.eventually(time.Minute, func() string { // what the homeserver has sent before this is not under way any more, either
		if messages, _ := l.heard(); len(messages) == 0 {
			return "the last event did not come"
		}
		return ""
	})
	key := "conf"
	put := func(n int) {
		s.rooms.put(roomEvent{
			Type: callType, StateKey: &key, Room: room, Event: id.EventID(fmt.Sprintf("$%d", n)),
			Sender: "@alice:hs.test", Time: time.Now().UnixMilli(), Content: []byte(`{"m.type":"m.voice"}`),
		})
	}
	waiting := func() int {
		s.rooms.mu.Lock()
		defer s.rooms.mu.Unlock()
		if q := s.rooms.rooms[room]; q != nil {
			return len(q.waiting)
		}
		return -1
	}
	b.eventually(time.Minute, func() string {
		if n := waiting(); n >= 0 || s.metrics.StateReads.Load() < 1 {
			return fmt.Sprintf("%d events still wait, %d reads", n, s.metrics.StateReads.Load())
		}
		return ""
	})
	r := s.tracker.find(room)
	r.mu.Lock() // the room's goroutine waits for this while events pile up
	goOn := sync.OnceFunc(r.mu.Unlock)
	defer goOn() // or the service would never close after a fault
	put(0)
	b.eventually(time.Minute, func() string {
		if n := waiting(); n != 0 {
			return fmt.Sprintf("%d events wait, want the goroutine to be at the first", n)
		}
		return ""
	})
	for n := range maxQueuedEvents + 500 {
		put(n + 1)
	}
	reads := s.metrics.StateReads.Load()
	goOn()
	if got := s.metrics.RoomEventsDropped.Load(); got != 500 {
		t.Errorf("%d events were dropped, want 500", got)
	}
	b.eventually(time.Minute, func() string {
		if s.metrics.StateReads.Load() == reads {
			return "state was not read again after events were dropped"
		}
		return ""
	})
}

func TestSeenEventsForgetTheOldest(t *testing.T) {
	var seen seenEvents
	for n := range maxSeenEvents + 10 {
		if !seen.add(id.EventID(fmt.Sprint(n))) {
			t.Fatalf("event %d is new but was known", n)
		}
	}
	if !seen.add("0") {
		t.Error("event 0 should be forgotten")
	}
	if seen.add(id.EventID(fmt.Sprint(maxSeenEvents))) {
		t.Errorf("event %d should be known", maxSeenEvents)
	}
	if len(seen.known) != maxSeenEvents || len(seen.order) != maxSeenEvents {
		t.Errorf("%d and %d ids kept, want %d", len(seen.known), len(seen.order), maxSeenEvents)
	}
}

func FuzzTransactionBody(f *testing.F) {
	f.Add([]byte(`{"events":[{"type":"m.room.member","state_key":"@a:b","room_id":"!r","content":{}}]}`))
	f.Add([]byte(`{"events":[{"type":"org.matrix.msc3401.call.member","state_key":"@a:b","sender":"@a:b","room_id":"!r","content":{"m.calls":[{"m.call_id":"c","m.devices":[{"device_id":"d","expires_ts":1e400}]}]}}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var txn transaction
		if json.Unmarshal(body, &txn) != nil {
			return
		}
		state := newSnapshot()
		s := &Service{cfg: Config{GhostPrefix: "_sip_", Domain: "x"}}
		for _, raw := range txn.Events {
			var e roomEvent
			if json.Unmarshal(raw, &e) == nil {
				state.put(e)
			}
		}
		state.activeCall(s)
		for _, call := range []string{"c", "conf"} {
			state.devices(s, call)
			MemberEdit{ConfID: call}.apply(state.members["@a:b"].Content, time.Now())
		}
		state.rights.levels()
	})
}

func TestStartSaysWhatIsWrong(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"as_token", func(c *Config) { c.ASToken = "other" }, "does not know as_token"},
		{"domain", func(c *Config) { c.Domain = "other.test" }, `domain is "other.test"`},
		{"id", func(c *Config) { c.ID = "other" }, "id"},
		{"bot outside the namespace", func(c *Config) { c.BotLocalpart = "somebody" }, "namespaces"},
		{"hs_token", func(c *Config) { c.HSToken = "other" }, "hs_token"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bed) {
				config := b.config()
				test.change(&config)
				s, err := New(config, b.store, b.olm, Options{}, testLog(t))
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				b.handler.set(s.HTTPHandler())
				if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("Start = %v, want something about %q", err, test.want)
				}
			})
		})
	}
}

func TestStartWaitsForTheHomeserver(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		outage := b.fake.Break(&homeserver.Fault{Drop: true})
		go func() {
			time.Sleep(time.Minute)
			outage.Mend()
		}()
		began := time.Now()
		b.start()
		if took := time.Since(began); took < time.Minute || took > 75*time.Second {
			t.Errorf("Start took %v, want a minute and a little", took)
		}
	})
}

func TestStartEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.fake.Break(&homeserver.Fault{Drop: true})
		s, err := New(b.config(), b.store, b.olm, Options{}, testLog(t))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := s.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Start = %v, want the deadline", err)
		}
	})
}

func TestStartGivesUpWhenTheHomeserverCannotReachUs(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		s, err := New(b.config(), b.store, b.olm, Options{}, testLog(t))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		// Nobody answers: b.handler has no handler.
		if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot reach the bridge") {
			t.Errorf("Start = %v, want that the homeserver cannot reach us", err)
		}
	})
}

func TestStartAgainstSynapse(t *testing.T) {
	b := realBed(t)
	config := b.config()
	config.ASToken = "wrong"
	s, err := New(config, b.store, b.olm, Options{}, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "as_token") {
		t.Errorf("Start with a wrong as_token = %v", err)
	}
	config = b.config()
	config.HSToken = "wrong"
	s2, err := New(config, b.store, b.olm, Options{}, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	b.handler.set(s2.HTTPHandler())
	if err := s2.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "hs_token") {
		t.Errorf("Start with a wrong hs_token = %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{
		HomeserverURL: "http://localhost:8008", Domain: "x", ASToken: "a", HSToken: "h", ID: "i",
		BotLocalpart: "bot", GhostPrefix: "_sip_",
	}
	if err := good.check(); err != nil {
		t.Errorf("good configuration: %v", err)
	}
	for _, change := range []func(*Config){
		func(c *Config) { c.HomeserverURL = "localhost:8008" },
		func(c *Config) { c.HomeserverURL = "ftp://localhost" },
		func(c *Config) { c.HSToken = "" },
		func(c *Config) { c.BotLocalpart = "_sip_bot" },
	} {
		config := good
		change(&config)
		if err := config.check(); err == nil {
			t.Errorf("configuration %+v was accepted", config)
		}
	}
}
