package matrixcall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
	"trunkline/matrixcall/mesh"
)

func candidates(n int) map[string]any {
	return map[string]any{"conf_id": "conf", "call_id": "c", "seq": n}
}

func to(kind string, content any, people ...*person) []OutMessage {
	var batch []OutMessage
	for _, p := range people {
		batch = append(batch, OutMessage{User: p.user, Device: p.device, Type: kind, Content: content})
	}
	return batch
}

// TestTwelveGhostsReachTwelveClientsInOrder: one request in flight over all
// ghosts, so that no client's long poll misses its wake-up.
func TestTwelveGhostsReachTwelveClientsInOrder(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		const many = 12
		rounds := 12
		if b.fake == nil {
			rounds = 5 // a real homeserver takes its time
		}
		var people []*person
		for n := range many {
			p := b.person(fmt.Sprintf("client%d", n), n%3 != 0) // every third speaks plain
			p.listen()
			people = append(people, p)
		}
		var ghosts []*Ghost
		var names []id.UserID
		for n := range many {
			g := b.ghost(fmt.Sprintf("_sip_many%d", n))
			ghosts, names = append(ghosts, g), append(names, g.user)
		}
		began := time.Now()
		var wg sync.WaitGroup
		for _, g := range ghosts {
			wg.Go(func() {
				for n := range rounds {
					if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(n), people...)); err != nil {
						t.Errorf("%s, round %d: %v", g.user, n, err)
					}
				}
			})
		}
		wg.Wait()
		sent := time.Since(began)
		for n, p := range people {
			b.eventually(time.Minute, func() string {
				if missing := sequence(p.hears(), names, rounds); missing != "" {
					return p.user.String() + ": " + missing
				}
				return ""
			})
			for _, h := range p.hears() {
				if h.encrypted != (n%3 != 0) {
					t.Errorf("%s got a message with encryption %v", p.user, h.encrypted)
				}
			}
		}
		m := &b.service.metrics
		t.Logf("%d messages in %d requests sent in %v, all heard after %v", m.MessagesSent.Load(), m.SendRequests.Load(), sent, time.Since(began))
		if got, want := m.SendRequests.Load(), 2*many*uint64(rounds); got != want {
			t.Errorf("%d requests, want %d: two per ghost and round, one olm and one plain", got, want)
		}
	})
}

func TestOnlyOneSendIsInFlight(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		p, g, _ := oneCall(b)
		second := b.ghost("_sip_two")
		b.fake.Break(&homeserver.Fault{Path: "/sendToDevice/", Delay: time.Second})
		began := time.Now()
		var wg sync.WaitGroup
		for _, ghost := range []*Ghost{g, second} {
			wg.Go(func() {
				if err := b.service.SendToDevice(t.Context(), ghost, to("m.call.invite", candidates(0), p)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(began); took < 2*time.Second {
			t.Errorf("two sends of 1 s took %v: they were in flight together", took)
		}
	})
}

func TestMessagesForOneDeviceNeverShareARound(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, _ := oneCall(b)
		carol := b.person("carol", false)
		alice.listen()
		carol.listen()
		batch := slices.Concat(to("m.call.invite", candidates(0), alice, carol),
			to("m.call.candidates", candidates(1), alice), to("m.call.hangup", candidates(2), alice, carol))
		if err := b.service.SendToDevice(t.Context(), g, batch); err != nil {
			t.Fatal(err)
		}
		b.eventually(10*time.Second, func() string { return sequence(alice.hears(), []id.UserID{g.user}, 3) })
		var kinds []string
		for _, request := range sends(b) {
			kinds = append(kinds, strings.Split(request.Path, "/")[5])
		}
		// Carol's hangup does not wait for Alice's.
		want := []string{"m.call.invite", "m.call.candidates", "m.call.hangup", "m.call.hangup"}
		if !slices.Equal(kinds, want) {
			t.Errorf("requests %v, want %v", kinds, want)
		}
	})
}

// sends returns the sendToDevice requests so far.
func sends(b *bed) []homeserver.Request {
	return slices.DeleteFunc(b.fake.Requests(), func(r homeserver.Request) bool {
		return r.Method != http.MethodPut || !strings.Contains(r.Path, "/sendToDevice/")
	})
}

func TestLostAnswerDoesNotDoubleTheMessage(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, g, _ := oneCall(b)
		people := []*person{b.person("plain", false), b.person("olm", true)}
		for _, p := range people {
			p.listen()
		}
		b.fake.Break(&homeserver.Fault{Path: "/sendToDevice/", Late: true, Drop: true, Times: 2})
		for n := range 3 {
			if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(n), people...)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		for _, p := range people {
			if wrong := sequence(p.hears(), []id.UserID{g.user}, 3); wrong != "" {
				t.Errorf("%s: %s", p.user, wrong)
			}
		}
		ids := make(map[string]int)
		for _, r := range sends(b) {
			ids[r.Path]++
		}
		if len(ids) != 6 {
			t.Errorf("%d different requests, want 6: %v", len(ids), ids)
		}
	})
}

func TestSendOutlastsAnOutageButNotItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		p, g, _ := oneCall(b)
		outage := b.fake.Break(&homeserver.Fault{Path: "/sendToDevice/", Error: &homeserver.Error{Status: 502, Code: "M_UNKNOWN"}})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		err := b.service.SendToDevice(ctx, g, to("m.call.hangup", candidates(0), p))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 3*time.Second {
			t.Errorf("send during an outage ended after %v with %v, want after 3 s with the deadline", time.Since(began), err)
		}
		done := make(chan error, 1)
		go func() { done <- b.service.SendToDevice(t.Context(), g, to("m.call.hangup", candidates(1), p)) }()
		time.Sleep(20 * time.Second)
		outage.Mend()
		if err := <-done; err != nil {
			t.Errorf("send over an outage: %v, want success when it is over", err)
		}
	})
}

func TestRefusedMessageDoesNotSpoilTheOthers(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, _ := oneCall(b)
		carol := b.person("carol", false)
		b.fake.Break(&homeserver.Fault{Path: "/sendToDevice/", Times: 2, Error: &homeserver.Error{Status: 400, Code: "M_UNKNOWN"}})
		err := b.service.SendToDevice(t.Context(), g, to("m.call.invite", candidates(0), alice, carol))
		if err == nil || !strings.Contains(err.Error(), "alice") || strings.Contains(err.Error(), "carol") {
			t.Errorf("error %v, want one about alice only", err)
		}
	})
}

// A device that gives out no one-time key gets plain messages only if it speaks plain itself.
func TestDeviceWithoutOneTimeKeysGetsPlainIfItSpeaksPlain(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		p := b.person("drained", true)
		drain(b, p.user, p.device)
		room := p.room(b.service.Bot())
		g := b.ghost("_sip_lonely")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		startCall(t, p, room, "conf")
		p.memberOf(room, "conf", time.Hour)
		e := b.attach(g, room, "conf")
		b.eventually(time.Minute, func() string { return notListed(b, e, p) })
		err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(0), p))
		if !errors.Is(err, errNoOneTimeKey) {
			t.Errorf("send to a device nobody has heard = %v, want %v", err, errNoOneTimeKey)
		}
		keys := p.olm
		p.olm = nil
		p.signal("conf", 0, g)
		p.olm = keys
		b.eventually(time.Minute, func() string { return sequence(e.heard(), []id.UserID{p.user}, 1) })
		if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(0), p)); err != nil {
			t.Fatal(err)
		}
		p.listen()
		b.eventually(time.Minute, func() string { return sequence(p.hears(), []id.UserID{g.user}, 1) })
		if h := p.hears()[0]; h.encrypted {
			t.Error("message was encrypted without a key")
		}
	})
}

func TestEncryptionThatFailsSendsNothingPlain(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, g, _ := oneCall(b)
		p := b.person("olm", true)
		b.fake.Break(&homeserver.Fault{Path: "/keys/claim", Error: &homeserver.Error{Status: 400, Code: "M_UNKNOWN"}})
		if err := b.service.SendToDevice(t.Context(), g, to("m.call.invite", candidates(0), p)); err == nil {
			t.Error("sent without a key")
		}
		if n := len(sends(b)); n != 0 {
			t.Errorf("%d requests were sent, want none", n)
		}
	})
}

func TestOversizedMessageDoesNotHoldBackTheOthers(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, _ := oneCall(b)
		carol := b.person("carol", false)
		alice.listen()
		carol.listen()
		batch := slices.Concat(to("m.call.invite", candidates(0), alice), to("m.call.invite", strings.Repeat("x", maxMessage), carol))
		err := b.service.SendToDevice(t.Context(), g, batch)
		some, ok := errors.AsType[*SendError](err)
		if !ok || len(some.Failed) != 1 || !errors.Is(some.Failed[1], errTooLarge) {
			t.Errorf("send = %v, want %v for message 1 only", err, errTooLarge)
		}
		b.eventually(5*time.Second, func() string { return sequence(alice.hears(), []id.UserID{g.user}, 1) })
	})
}

func TestNobodyGetsPlainWhenForbidden(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.plain = false
		p, g, _ := oneCall(b)
		err := b.service.SendToDevice(t.Context(), g, to("m.call.invite", candidates(0), p))
		if !errors.Is(err, errPlainForbidden) {
			t.Errorf("send to a device without keys: %v, want %v", err, errPlainForbidden)
		}
		if n := len(sends(b)); n != 0 {
			t.Errorf("%d requests were sent, want none", n)
		}
	})
}

func TestUnansweredInviteGoesPlainToWhoSpeaksPlain(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, e := oneCall(b)
		p := b.person("oldlife", true)
		p.listen()
		p.enterCall(alice, e)
		keys := p.olm
		p.olm = nil // speaks plain, although its device has keys
		p.signal("conf", 0, g)
		p.olm = keys
		time.Sleep(time.Second)
		for n := range 4 {
			if err := b.service.SendToDevice(t.Context(), g, to("m.call.invite", candidates(n), p)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second)
		}
		var how []bool
		for _, h := range p.hears() {
			how = append(how, h.encrypted)
		}
		if want := []bool{true, true, false, false}; !slices.Equal(how, want) {
			t.Errorf("invites were encrypted: %v, want %v", how, want)
		}
	})
}

// notListed says that the room's state, as the service knows it, does not list
// the person's device.
func notListed(b *bed, e *ear, p *person) string {
	if !b.service.tracker.lists(e.info, deviceName{p.user, p.device}) {
		return p.user.String() + " is not known as a member of the call"
	}
	return ""
}

// enterCall makes the person a member of the call, whose room host has made.
func (p *person) enterCall(host *person, e *ear) {
	p.bed.Helper()
	p.enter(host, e.info.Room)
	p.memberOf(e.info.Room, e.info.ConfID, time.Hour)
	p.bed.eventually(5*time.Second, func() string { return notListed(p.bed, e, p) })
}

// TestDeviceWithKeysOfAnEarlierLifeIsReached: a client without crypto keeps the
// device of one that had it, and nobody has heard it yet.
func TestDeviceWithKeysOfAnEarlierLifeIsReached(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, e := oneCall(b)
		p := b.person("oldlife", true)
		p.listen()
		p.enterCall(alice, e)
		say := func(kind string, n int) {
			t.Helper()
			if err := b.service.SendToDevice(t.Context(), g, to(kind, candidates(n), p)); err != nil {
				t.Fatal(err)
			}
		}
		for n := range 8 { // as the mesh does
			say(typeInvite, n)
			time.Sleep(4 * time.Second)
		}
		say(typeCandidates, 8)                                                         // it might still be one that reads olm
		answering := &person{bed: b, user: p.user, device: p.device, client: p.client} // without olm
		answering.signal("conf", 0, g)
		time.Sleep(5 * time.Second)
		say(typeHangup, 9)
		time.Sleep(time.Second)
		var how []bool
		for _, h := range p.hears() {
			how = append(how, h.encrypted)
		}
		if want := []bool{true, true, true, true, true, false, true, false, true, false}; !slices.Equal(how, want) {
			t.Errorf("messages were encrypted: %v, want %v", how, want)
		}
	})
}

// TestDeviceThatReadsOlmGetsNothingPlain, however often its invite is repeated.
func TestDeviceThatReadsOlmGetsNothingPlain(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, e := oneCall(b)
		p := b.person("olm", true)
		p.listen()
		p.enterCall(alice, e)
		p.signal("conf", 0, g)
		time.Sleep(time.Second)
		for n := range 15 {
			if err := b.service.SendToDevice(t.Context(), g, to(typeInvite, candidates(n), p)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(4 * time.Second)
		}
		if got := p.hears(); len(got) != 15 || slices.ContainsFunc(got, func(h heard) bool { return !h.encrypted }) {
			t.Errorf("%d messages heard, some plain, want 15 by olm: %v", len(got), got)
		}
	})
}

func TestOutboxRefusesWhatIsTooMuch(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		p, g, _ := oneCall(b)
		if err := b.service.SendToDevice(t.Context(), g, to("m.call.invite", strings.Repeat("x", maxMessage), p)); !errors.Is(err, errTooLarge) {
			t.Errorf("message of %d bytes: %v, want %v", maxMessage, err, errTooLarge)
		}
		b.fake.Break(&homeserver.Fault{Path: "/sendToDevice/", Error: &homeserver.Error{Status: 503, Code: "M_UNKNOWN"}})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range maxWaiting / 100 {
			wg.Go(func() {
				_ = b.service.SendToDevice(ctx, g, slices.Repeat(to("m.call.invite", candidates(0), p), 100))
			})
		}
		synctest.Wait()
		if err := b.service.SendToDevice(ctx, g, slices.Repeat(to("m.call.invite", candidates(0), p), 200)); !errors.Is(err, errOutboxFull) {
			t.Errorf("full outbox: %v, want %v", err, errOutboxFull)
		}
		cancel()
		wg.Wait()
	})
}

func TestCloseEndsWaitingSends(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		p, g, e := oneCall(b)
		b.fake.Break(&homeserver.Fault{Path: "/sendToDevice/", Error: &homeserver.Error{Status: 503, Code: "M_UNKNOWN"}})
		done := make(chan error, 1)
		go func() { done <- b.service.SendToDevice(t.Context(), g, to("m.call.invite", candidates(0), p)) }()
		time.Sleep(time.Second)
		b.service.detachConference(e)
		b.stop(b.service)
		if err := <-done; !errors.Is(err, errClosed) {
			t.Errorf("send that waited when the service closed: %v, want %v", err, errClosed)
		}
	})
}

// drain claims all one-time keys of a device.
func drain(b *bed, user id.UserID, device id.DeviceID) {
	b.Helper()
	thief := b.person("thief"+strings.ToLower(device.String()), false)
	for range 2 * fullPool {
		answer, err := claim(thief, user, device)
		if err != nil {
			b.Fatal(err)
		}
		if len(answer) == 0 {
			return
		}
		var key struct {
			Fallback bool `json:"fallback"`
		}
		for _, raw := range answer {
			if err := json.Unmarshal(raw, &key); err != nil {
				b.Fatal(err)
			}
		}
		if key.Fallback {
			return
		}
	}
	b.Fatalf("%s has more than %d one-time keys", user, 2*fullPool)
}

func claim(p *person, user id.UserID, device id.DeviceID) (map[string]json.RawMessage, error) {
	var answer struct {
		Keys map[id.UserID]map[id.DeviceID]map[string]json.RawMessage `json:"one_time_keys"`
	}
	_, err := p.client.MakeRequest(p.bed.Context(), http.MethodPost, p.client.BuildClientURL("v3", "keys", "claim"), map[string]any{
		"one_time_keys": map[id.UserID]map[id.DeviceID]string{user: {device: "signed_curve25519"}},
	}, &answer)
	return answer.Keys[user][device], err
}

// A phone that is muted says so to everybody in one request for those that are told in the clear and one for the others.
func TestMuteToThirtyPeersIsTwoRequests(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, g, _ := oneCall(b)
		var batch []OutMessage
		for n := range 30 {
			p := b.person(fmt.Sprint("peer", n), n%2 == 0)
			_, content := encodeSignal(mesh.Signal{Kind: mesh.Metadata, CallID: fmt.Sprint("c", n), ConfID: "conf"}, g.device, "m")
			batch = append(batch, OutMessage{User: p.user, Device: p.device, Type: typeMetadata, Content: content})
		}
		for range 2 { // the second time the olm sessions are there
			before := len(sends(b))
			if err := g.service.SendToDevice(t.Context(), g, batch); err != nil {
				t.Fatal(err)
			}
			if got := len(sends(b)) - before; got > 2 {
				t.Errorf("%d requests, want at most 2", got)
			}
		}
	})
}
