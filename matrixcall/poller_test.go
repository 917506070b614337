package matrixcall

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
)

// TestBurstsFromTwoClientsReachFiveGhosts is what loses messages when they are
// read by transaction: clients that signal several ghosts at once. With
// Synapse: TestBurstsThroughGoodAndBadDays.
func TestBurstsFromTwoClientsReachFiveGhosts(t *testing.T) {
	b := fakeBed(t)
	b.start()
	alice, carol := b.person("alice", true), b.person("carol", true)
	room := alice.room(b.service.Bot())
	carol.enter(alice, room)
	for _, p := range []*person{alice, carol} {
		p.memberOf(room, "conf", time.Hour) // as clients do before they signal
	}
	var ghosts []*Ghost
	var ears []*ear
	for n := range 5 {
		g := b.ghost(fmt.Sprintf("_sip_burst%d", n))
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		ghosts = append(ghosts, g)
		ears = append(ears, b.attach(g, room, "conf"))
	}
	const rounds = 40
	began := time.Now()
	var wg sync.WaitGroup
	for _, p := range []*person{alice, carol} {
		wg.Go(func() {
			for n := range rounds {
				p.signal("conf", n, ghosts...)
			}
		})
	}
	wg.Wait()
	sent := time.Since(began)
	for _, e := range ears {
		b.eventually(time.Minute, func() string {
			return sequence(e.heard(), []id.UserID{alice.user, carol.user}, rounds)
		})
	}
	m := &b.service.metrics
	t.Logf("%d messages sent in %v, all there after %v; %d polls, %d kicks, %d rescued", 2*rounds*len(ghosts),
		sent, time.Since(began), m.Polls.Load(), m.Kicks.Load(), m.PollRescues.Load())
}

// bubble runs a test with the fake homeserver where time stands still while
// anybody is busy.
func bubble(t *testing.T, test func(t *testing.T, b *bed)) {
	synctest.Test(t, func(t *testing.T) { test(t, fakeBed(t)) })
}

// bothWays runs a test in bubbles beside homeservers with and without sliding sync.
func bothWays(t *testing.T, test func(t *testing.T, b *bed)) {
	for _, without := range []bool{false, true} {
		name := "sliding"
		if without {
			name = "sync"
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, fakeBedWith(t, homeserver.Config{NoSliding: without})) })
		})
	}
}

// oneCall is a started service with a ghost in a call and a client without
// encryption in the same room.
func oneCall(b *bed) (p *person, g *Ghost, e *ear) {
	b.Helper()
	b.start()
	p = b.person("alice", false)
	room := p.room(b.service.Bot())
	g = b.ghost("_sip_one")
	if err := g.EnterRoom(b.Context(), room); err != nil {
		b.Fatal(err)
	}
	e = b.attach(g, room, "conf")
	synctest.Wait()
	return p, g, e
}

func TestMessageThatWokeNobodyIsFoundAfterOnePoll(t *testing.T) {
	bothWays(t, func(t *testing.T, b *bed) {
		p, g, e := oneCall(b)
		for n := range 10 {
			b.fake.LoseWakeUps(1)
			began := time.Now()
			p.signal("conf", n, g)
			b.eventually(time.Minute, func() string { return sequence(e.heard(), []id.UserID{p.user}, n+1) })
			if late := time.Since(began); late > pollWait+50*time.Millisecond {
				t.Errorf("message %d came after %v, want at most one poll's wait, %v", n, late, pollWait)
			}
		}
		if !b.service.sliding.usable() && b.service.metrics.PollRescues.Load() == 0 {
			t.Error("no message was found by a look without waiting: the test does not test")
		}
	})
}

// TestSlidingSyncThatIsThereNoMore: a homeserver can be changed under a running bridge, or a proxy before it lets only
// the paths of the specification pass.
func TestSlidingSyncThatIsThereNoMore(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, e := oneCall(b)
		p := b.person("olm", true) // what came by the last request of the one kind comes again by the first of the other
		p.enter(alice, e.info.Room)
		if !b.service.sliding.usable() {
			t.Fatal("the homeserver's announcement was not seen")
		}
		p.signal("conf", 0, g)
		time.Sleep(time.Second)
		gone := b.fake.Break(&homeserver.Fault{Path: slidingFeature, Error: &homeserver.Error{Status: 404, Code: "M_UNRECOGNIZED"}})
		for n := range 3 {
			p.signal("conf", n+1, g)
			time.Sleep(time.Second)
		}
		b.eventually(10*time.Second, func() string { return sequence(e.heard(), []id.UserID{p.user}, 4) })
		if b.service.sliding.usable() {
			t.Error("still asking by sliding sync")
		}
		b.service.detachConference(e)
		b.stop(b.service)
		p.signal("conf", 4, g)
		gone.Mend()
		b.start()
		again := b.attach(b.ghost("_sip_one"), e.info.Room, "conf")
		b.eventually(10*time.Second, func() string {
			return sequence(append(e.heard(), again.heard()...), []id.UserID{p.user}, 5)
		})
		if !b.service.sliding.usable() {
			t.Error("not asking by sliding sync, which is there again")
		}
	})
}

// TestOneOddAnswerDoesNotEndSlidingSync: a proxy says 404 while what is behind it starts. One that always does is believed,
// for an hour.
func TestOneOddAnswerDoesNotEndSlidingSync(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, e := oneCall(b)
		p := b.person("olm", true)
		p.enter(alice, e.info.Room)
		odd := &homeserver.Error{Status: 404, Code: "M_NOT_FOUND"}
		b.fake.Break(&homeserver.Fault{Path: slidingFeature, Error: odd, Times: maxMissing - 1})
		time.Sleep(10 * time.Second)
		p.signal("conf", 0, g)
		b.eventually(5*time.Second, func() string { return sequence(e.heard(), []id.UserID{p.user}, 1) })
		if !b.service.sliding.usable() {
			t.Errorf("sliding sync was given up after %d odd answers", maxMissing-1)
		}
		gone := b.fake.Break(&homeserver.Fault{Path: slidingFeature, Error: odd})
		time.Sleep(10 * time.Second)
		p.signal("conf", 1, g)
		b.eventually(5*time.Second, func() string { return sequence(e.heard(), []id.UserID{p.user}, 2) })
		if b.service.sliding.usable() {
			t.Error("still asking by sliding sync, which is never there")
		}
		time.Sleep(slidingRetry) // it is tried again, and still not there
		p.signal("conf", 2, g)
		b.eventually(5*time.Second, func() string { return sequence(e.heard(), []id.UserID{p.user}, 3) })
		gone.Mend()
		time.Sleep(slidingRetry + time.Minute)
		p.signal("conf", 3, g)
		b.eventually(5*time.Second, func() string { return sequence(e.heard(), []id.UserID{p.user}, 4) })
		if !b.service.sliding.usable() {
			t.Error("not asking by sliding sync, which is there again")
		}
		last := "" // the others are the sender's, perhaps
		for _, r := range b.fake.Requests() {
			if strings.Contains(r.Path, slidingFeature) || strings.HasSuffix(r.Path, "/sync") {
				last = r.Path
			}
		}
		if !strings.Contains(last, slidingFeature) {
			t.Errorf("the last poll is %q", last)
		}
	})
}

func TestKickFindsTheOtherGhostsMessage(t *testing.T) {
	bothWays(t, func(t *testing.T, b *bed) {
		p, first, e := oneCall(b)
		second := b.ghost("_sip_two")
		room := e.info.Room
		if err := second.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		other := b.attach(second, room, "conf")
		time.Sleep(time.Second)
		began := time.Now()
		b.fake.LoseWakeUps(1)
		p.signal("conf", 0, second)
		p.signal("conf", 0, first)
		b.eventually(time.Minute, func() string { return sequence(other.heard(), []id.UserID{p.user}, 1) })
		if late := time.Since(began); late > kickDelay+50*time.Millisecond {
			t.Errorf("message came after %v, want %v: the first ghost's message kicks both pollers", late, kickDelay)
		}
	})
}

func TestJunkDoesNotMakeAllGhostsLook(t *testing.T) {
	bothWays(t, func(t *testing.T, b *bed) {
		p, g, e := oneCall(b)
		second := b.ghost("_sip_two")
		if err := second.EnterRoom(t.Context(), e.info.Room); err != nil {
			t.Fatal(err)
		}
		b.attach(second, e.info.Room, "conf")
		time.Sleep(time.Second)
		before := b.service.metrics.Kicks.Load()
		p.signal("another conference", 0, g)
		time.Sleep(time.Second)
		if n := b.service.metrics.Kicks.Load() - before; n != 0 {
			t.Errorf("%d kicks for a message no conference wants, want none", n)
		}
		p.signal("conf", 0, g)
		time.Sleep(time.Second)
		if n := b.service.metrics.Kicks.Load() - before; n != 1 {
			t.Errorf("%d kicks for a signal, want 1", n)
		}
	})
}

func TestPollerSleepsLongerInAQuietCall(t *testing.T) {
	bothWays(t, func(t *testing.T, b *bed) {
		_, _, _ = oneCall(b)
		time.Sleep(quietAge + time.Minute)
		before := b.service.metrics.Polls.Load()
		time.Sleep(time.Minute)
		if polls := b.service.metrics.Polls.Load() - before; polls > 13 {
			t.Errorf("%d polls in a quiet minute, want a poll and a look every %v", polls, quietWait)
		}
	})
}

// TestHomeserverThatDoesNotLetUsWait: a proxy may cut long polls short.
func TestHomeserverThatDoesNotLetUsWait(t *testing.T) {
	bothWays(t, func(t *testing.T, b *bed) {
		b.web = impatient{b.web}
		p, g, e := oneCall(b)
		before := b.service.metrics.Polls.Load()
		time.Sleep(time.Minute)
		if n := b.service.metrics.Polls.Load() - before; n > 2*uint64(time.Minute/kickDelay) {
			t.Errorf("%d polls in a minute, want no more than two per %v", n, kickDelay)
		}
		p.signal("conf", 0, g)
		b.eventually(time.Second, func() string { return sequence(e.heard(), []id.UserID{p.user}, 1) })
	})
}

// impatient makes long polls short.
type impatient struct{ http.RoundTripper }

func (i impatient) RoundTrip(r *http.Request) (*http.Response, error) {
	if query := r.URL.Query(); query.Has("timeout") {
		r = r.Clone(r.Context())
		query.Set("timeout", "0")
		r.URL.RawQuery = query.Encode()
	}
	return i.RoundTripper.RoundTrip(r)
}

func TestMessagesSurviveHomeserverOutage(t *testing.T) {
	bothWays(t, func(t *testing.T, b *bed) {
		p, g, e := oneCall(b)
		p.signal("conf", 0, g)
		outage := b.fake.Break(&homeserver.Fault{Path: "/sync", User: g.user, Drop: true})
		time.Sleep(time.Second)
		p.signal("conf", 1, g)
		time.Sleep(20 * time.Second)
		reads := b.service.metrics.StateReads.Load()
		outage.Mend()
		b.eventually(6*time.Second, func() string { return sequence(e.heard(), []id.UserID{p.user}, 2) })
		b.eventually(10*time.Second, func() string {
			if b.service.metrics.StateReads.Load() == reads {
				return "room state was not read again after the outage: events may be missing"
			}
			return ""
		})
	})
}

func TestMessageIsNotLostWithTheAnswerThatCarriedIt(t *testing.T) {
	bothWays(t, func(t *testing.T, b *bed) {
		p, g, e := oneCall(b)
		late := b.fake.Break(&homeserver.Fault{Path: "/sync", User: g.user, Late: true, Drop: true, Times: 3})
		b.eventually(30*time.Second, func() string {
			if late.Hits() == 0 {
				return "no answer was lost"
			}
			return ""
		})
		p.signal("conf", 0, g)
		b.eventually(30*time.Second, func() string { return sequence(e.heard(), []id.UserID{p.user}, 1) })
		if late.Hits() != 3 {
			t.Errorf("the answer was lost %d times, want 3", late.Hits())
		}
		time.Sleep(10 * time.Second)
		if n := b.fake.Inbox(g.user, g.device); n != 0 {
			t.Errorf("%d messages are still in the inbox, want all confirmed", n)
		}
	})
}

// TestUnreadableMessageDoesNotStopTheOthers: a client may send anything.
func TestUnreadableMessageDoesNotStopTheOthers(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", true)
		room := alice.room(b.service.Bot())
		g := b.ghost("_sip_nasty")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		e := b.attach(g, room, "conf")
		olm := g.keys.machine.OwnIdentity().IdentityKey
		for n, nasty := range []struct{ kind, content string }{
			{"m.call.invite", `"text"`},
			{"m.call.invite", `[1,2]`},
			{"m.call.invite", `null`},
			{"m.call.invite", `{"conf_id":7,"device_id":{}}`},
			{"m.call.invite", `{"conf_id":"conf"}`},
			{"m.room.encrypted", `"text"`},
			{"m.room.encrypted", `{}`},
			{"m.room.encrypted", `{"algorithm":"m.olm.v1.curve25519-aes-sha2","ciphertext":"x","sender_key":"y"}`},
			{"m.room.encrypted", `{"algorithm":"m.olm.v1.curve25519-aes-sha2","ciphertext":{"` + string(olm) + `":{"type":0,"body":"AAAA"}},"sender_key":"y"}`},
			{"m.room.encrypted", `{"algorithm":"m.olm.v1.curve25519-aes-sha2","ciphertext":{"` + string(olm) + `":{"type":1,"body":""}},"sender_key":""}`},
			{"m.room.encrypted", `{"algorithm":"m.olm.v1.curve25519-aes-sha2","ciphertext":{"` + string(olm) + `":{"type":9,"body":"!!"}},"sender_key":"y"}`},
			{"m.room.encrypted", `{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"x","session_id":"s"}`},
			{"m.room_key_request", `{"action":4}`},
		} {
			// The homeserver may refuse some of them; then nobody can send them.
			_, err := alice.client.MakeFullRequest(t.Context(), mautrix.FullRequest{
				Method: http.MethodPut, MaxAttempts: 1,
				URL:         alice.client.BuildClientURL("v3", "sendToDevice", nasty.kind, fmt.Sprintf("nasty%d", n)),
				RequestJSON: map[string]any{"messages": map[id.UserID]map[id.DeviceID]json.RawMessage{g.user: {g.device: json.RawMessage(nasty.content)}}},
			})
			if err != nil {
				t.Logf("homeserver refuses %s %s: %v", nasty.kind, nasty.content, err)
			}
		}
		alice.signal("conf", 0, g)
		b.eventually(time.Minute, func() string { return sequence(e.heard(), []id.UserID{alice.user}, 1) })
		m := &b.service.metrics
		t.Logf("%d refused, %d undecryptable", m.MessagesRefused.Load(), m.MessagesUndecryptable.Load())
		if m.MessagesRefused.Load() == 0 || m.MessagesUndecryptable.Load() == 0 {
			t.Errorf("refused %d, undecryptable %d: want some of both", m.MessagesRefused.Load(), m.MessagesUndecryptable.Load())
		}
	})
}

func TestOlmMessageThatNamesAnotherDeviceIsRefused(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", true)
		room := alice.room(b.service.Bot())
		g := b.ghost("_sip_strict")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		e := b.attach(g, room, "conf")
		honest := alice.device
		alice.device = "BOBSDEVICE"
		alice.signal("conf", 0, g)
		alice.device = honest
		alice.signal("conf", 0, g)
		b.eventually(time.Minute, func() string { return sequence(e.heard(), []id.UserID{alice.user}, 1) })
		if n := b.service.metrics.MessagesRefused.Load(); n != 1 {
			t.Errorf("%d messages refused, want 1", n)
		}
	})
}

func TestReplayedOlmMessageIsDropped(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice, mallory := b.person("alice", true), b.person("mallory", false)
		room := alice.room(b.service.Bot())
		g := b.ghost("_sip_replay")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		e := b.attach(g, room, "conf")
		sealed, err := alice.seal(g, map[string]any{"conf_id": "conf", "device_id": alice.device, "seq": 0})
		if err != nil {
			t.Fatal(err)
		}
		// Mallory's copy comes first and must not do harm: it is read,
		// and refused, because alice is named inside.
		for _, p := range []*person{mallory, alice, alice} {
			if _, err := p.client.SendToDevice(t.Context(), event.ToDeviceEncrypted, sealed); err != nil {
				t.Fatal(err)
			}
		}
		m := &b.service.metrics
		b.eventually(time.Minute, func() string {
			if got := m.MessagesRepeated.Load() + m.MessagesUndecryptable.Load(); got < 2 {
				return fmt.Sprintf("%d messages handled", got)
			}
			return ""
		})
		if n := len(e.heard()); n > 1 {
			t.Errorf("the message was delivered %d times, want once at most", n)
		}
	})
}

func TestPlainMessagesAreTakenOnlyIfAllowed(t *testing.T) {
	for _, allowed := range []bool{true, false} {
		t.Run(fmt.Sprint(allowed), func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bed) {
				b.plain = allowed
				p, g, e := oneCall(b)
				p.signal("conf", 0, g)
				p.signal("another conference", 0, g)
				time.Sleep(5 * time.Second)
				want := 0
				if allowed {
					want = 1
				}
				if got := len(e.heard()); got != want {
					t.Errorf("AllowPlain %v: %d messages delivered, want %d", allowed, got, want)
				}
			})
		})
	}
}

func TestGhostOutsideCallsDoesNotPoll(t *testing.T) {
	bothWays(t, func(t *testing.T, b *bed) {
		p, g, e := oneCall(b)
		b.service.detachConference(e)
		p.signal("conf", 0, g)
		before := b.service.metrics.Polls.Load()
		time.Sleep(time.Minute)
		if got := b.service.metrics.Polls.Load(); got != before {
			t.Errorf("%d polls after the call, want none", got-before)
		}
		again := b.attach(g, e.info.Room, "conf")
		b.eventually(5*time.Second, func() string { return sequence(again.heard(), []id.UserID{p.user}, 1) })
		if len(e.heard()) != 0 {
			t.Error("a conference that was detached heard something")
		}
	})
}

func TestLostDeviceEndsTheConference(t *testing.T) {
	bothWays(t, func(t *testing.T, b *bed) {
		_, g, e := oneCall(b)
		b.fake.RemoveDevice(g.user, g.device)
		b.eventually(30*time.Second, func() string {
			if state, _ := e.state(); !state.call.Out {
				return "the conference still thinks it is in the room"
			}
			return ""
		})
		again := b.ghost("_sip_one")
		if again.device == g.device || again == g {
			t.Errorf("ghost after its device was lost: device %s, want another than %s", again.device, g.device)
		}
	})
}
