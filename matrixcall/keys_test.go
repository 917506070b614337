package matrixcall

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/rs/zerolog"
	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/postgres"
)

// TestGhostsShareOneDatabase runs ten ghosts whose olm tables are in one
// database, all sending and receiving at the same time. SQLite has a single
// connection: whoever waits for it with a lock in hand stops everybody.
func TestGhostsShareOneDatabase(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { shareOneDatabase(t, fakeBed(t)) })
	t.Run("postgres", func(t *testing.T) {
		uri, err := postgres.New(t).CreateDatabase("olm")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := sql.Open("pgx", uri)
		if err != nil {
			t.Fatal(err)
		}
		b := fakeBed(t)
		if b.olm, err = dbutil.NewWithDB(raw, "pgx"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.olm.Close() })
		shareOneDatabase(t, b)
	})
}

func shareOneDatabase(t *testing.T, b *bed) {
	t.Helper()
	b.start()
	people := []*person{b.person("alice", true), b.person("bob", true), b.person("carol", true)}
	room := people[0].room(b.service.Bot())
	for _, p := range people[1:] {
		p.enter(people[0], room)
	}
	ghosts, ears := make([]*Ghost, 10), make([]*ear, 10)
	var wg sync.WaitGroup
	for n := range ghosts {
		wg.Go(func() {
			ghosts[n] = b.ghost(fmt.Sprintf("_sip_pg%d", n))
			if err := ghosts[n].EnterRoom(t.Context(), room); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for n, g := range ghosts {
		ears[n] = b.attach(g, room, "conf")
	}
	for _, p := range people {
		p.listen()
		wg.Go(func() {
			for n := range 10 {
				p.signal("conf", n, ghosts...)
			}
		})
	}
	var names []id.UserID
	for _, g := range ghosts {
		names = append(names, g.user)
		wg.Go(func() {
			for n := range 10 {
				if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(n), people...)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, e := range ears {
		b.eventually(20*time.Second, func() string {
			return sequence(e.heard(), []id.UserID{people[0].user, people[1].user, people[2].user}, 10)
		})
	}
	for _, p := range people {
		b.eventually(20*time.Second, func() string { return sequence(p.hears(), names, 10) })
	}
}

// TestCallsOutliveTheDatabasesAbsence stops the database under a ghost that
// speaks olm: it hears and speaks all the same, to people it never spoke to as
// well, and what it must remember of that is written later.
func TestCallsOutliveTheDatabasesAbsence(t *testing.T) {
	cluster := postgres.New(t)
	uri, err := cluster.CreateDatabase("olm_away")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := sql.Open("pgx", uri)
	if err != nil {
		t.Fatal(err)
	}
	b := fakeBed(t)
	if b.olm, err = dbutil.NewWithDB(raw, "pgx"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.olm.Close() })
	b.store.patient = true
	b.start()
	alice, bob := b.person("alice", true), b.person("bob", true)
	alice.listen()
	bob.listen()
	room := alice.room(b.service.Bot())
	bob.enter(alice, room)
	g := b.ghost("_sip_away")
	if err := g.EnterRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	e := b.attach(g, room, "conf")
	say := func(first, n int, p *person, e *ear) {
		t.Helper()
		for seq := first; seq < first+n; seq++ {
			p.signal("conf", seq, g)
			if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(seq), p)); err != nil {
				t.Fatalf("message %d to %s: %v", seq, p.user, err)
			}
		}
		b.eventually(time.Minute, func() string { return sequence(p.hears(), []id.UserID{g.user}, first+n) })
		b.eventually(time.Minute, func() string { return sequence(e.heard(), []id.UserID{p.user}, first+n) })
	}
	say(0, 4, alice, e)
	if err := cluster.StopServer(); err != nil {
		t.Fatal(err)
	}
	say(4, 4, alice, e)
	say(0, 4, bob, e) // with whom it has no session, and cannot store one
	if !b.store.Away() {
		t.Error("nothing waits for the database")
	}
	if err := cluster.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.store.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The next process goes on in the sessions that were made and used meanwhile.
	n := b.service.metrics.MessagesUndecryptable.Load()
	b.stop(b.service)
	b.start()
	g = b.ghost("_sip_away")
	after := b.attach(g, room, "conf")
	for _, p := range []*person{alice, bob} {
		p.signal("conf", 0, g)
		b.eventually(time.Minute, func() string { return sequence(after.heard(), []id.UserID{p.user}, 1) })
		before := len(p.hears())
		if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(before), p)); err != nil {
			t.Fatal(err)
		}
		b.eventually(time.Minute, func() string { return sequence(p.hears(), []id.UserID{g.user}, before+1) })
	}
	if n += b.service.metrics.MessagesUndecryptable.Load(); n != 0 {
		t.Errorf("%d messages undecryptable, want none", n)
	}
}

// TestOlmPayloadIsChecked sends hand-made olm messages: hydrogen's, which
// carries no sender_device_keys, and forgeries.
func TestOlmPayloadIsChecked(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", true)
		room := alice.room(b.service.Bot())
		g := b.ghost("_sip_checked")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		e := b.attach(g, room, "conf")
		own, ghost := alice.olm.OwnIdentity(), g.keys.machine.OwnIdentity()
		for n, test := range []struct {
			name   string
			change func(payload map[string]any)
			taken  bool
		}{
			{"as hydrogen writes it", func(map[string]any) {}, true},
			{"another sender", func(p map[string]any) { p["sender"] = "@bob:" + b.domain }, false},
			{"no sender", func(p map[string]any) { delete(p, "sender") }, false},
			{"another recipient", func(p map[string]any) { p["recipient"] = "@bob:" + b.domain }, false},
			{"another recipient's key", func(p map[string]any) { p["recipient_keys"] = map[string]any{"ed25519": "x"} }, false},
			{"no recipient's key", func(p map[string]any) { delete(p, "recipient_keys") }, false},
			{"another signing key", func(p map[string]any) { p["keys"] = map[string]any{"ed25519": ghost.SigningKey} }, false},
			{"no keys", func(p map[string]any) { delete(p, "keys") }, false},
			{"device keys of another user", func(p map[string]any) {
				p["sender_device_keys"] = map[string]any{"user_id": "@bob:" + b.domain, "device_id": alice.device}
			}, false},
			{"content that is no object", func(p map[string]any) { p["content"] = "x" }, false},
			{"again as hydrogen writes it", func(map[string]any) {}, true},
		} {
			payload := map[string]any{
				"type": "m.call.candidates", "sender": alice.user, "recipient": g.user,
				"keys": map[string]any{"ed25519": own.SigningKey}, "recipient_keys": map[string]any{"ed25519": ghost.SigningKey},
				"content": map[string]any{"conf_id": "conf", "device_id": alice.device, "seq": n},
			}
			test.change(payload)
			m := &b.service.metrics
			counted := func() uint64 { return m.MessagesUndecryptable.Load() + m.MessagesRefused.Load() }
			before, countedBefore := len(e.heard()), counted()
			alice.whisper(g, payload)
			b.eventually(time.Minute, func() string {
				if len(e.heard()) == before && counted() == countedBefore {
					return test.name + ": neither taken nor counted as refused"
				}
				return ""
			})
			if taken := len(e.heard()) > before; taken != test.taken {
				t.Errorf("%s: taken %v, want %v", test.name, taken, test.taken)
			}
		}
	})
}

// whisper sends an olm message with any payload, each in a session of its own.
func (p *person) whisper(g *Ghost, payload map[string]any) {
	p.bed.Helper()
	claimed, err := claim(p, g.user, g.device)
	if err != nil {
		p.bed.Fatal(err)
	}
	var key mautrix.OneTimeKey
	for _, raw := range claimed {
		if err := json.Unmarshal(raw, &key); err != nil {
			p.bed.Fatal(err)
		}
	}
	theirs := g.keys.machine.OwnIdentity().IdentityKey
	session, err := p.olm.GetAccount().Internal.NewOutboundSession(theirs, key.Key)
	if err != nil {
		p.bed.Fatal(err)
	}
	text, err := json.Marshal(payload)
	if err != nil {
		p.bed.Fatal(err)
	}
	kind, sealed, err := session.Encrypt(text)
	if err != nil {
		p.bed.Fatal(err)
	}
	_, err = p.client.SendToDevice(p.bed.Context(), event.ToDeviceEncrypted, &mautrix.ReqSendToDevice{
		Messages: map[id.UserID]map[id.DeviceID]*event.Content{g.user: {g.device: {Raw: map[string]any{
			"algorithm": id.AlgorithmOlmV1, "sender_key": p.olm.OwnIdentity().IdentityKey,
			"ciphertext": map[string]any{string(theirs): map[string]any{"type": kind, "body": string(sealed)}},
		}}}},
	})
	if err != nil {
		p.bed.Fatal(err)
	}
}

// as hydrogen writes it: without sender_device_keys.
func (p *person) hydrogenSays(g *Ghost, n int) map[string]any {
	return map[string]any{
		"type": "m.call.candidates", "sender": p.user, "recipient": g.user,
		"keys":           map[string]any{"ed25519": p.olm.OwnIdentity().SigningKey},
		"recipient_keys": map[string]any{"ed25519": g.keys.machine.OwnIdentity().SigningKey},
		"content":        map[string]any{"conf_id": "conf", "device_id": p.device, "seq": n},
	}
}

// TestDeviceThatLogsInLaterIsFound: the first messages of a device nobody has
// heard of come without its keys, right after the ghost was told the user's
// devices.
func TestDeviceThatLogsInLaterIsFound(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, e := oneCall(b)
		stranger := b.person("stranger", false) // has a device without keys
		stranger.enter(alice, e.info.Room)
		if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(0), stranger)); err != nil {
			t.Fatal(err)
		}
		late := b.person("stranger", true) // another device of the same user, with keys
		for n := range 3 {
			late.whisper(g, late.hydrogenSays(g, n))
		}
		b.eventually(5*time.Second, func() string { return sequence(e.heard(), []id.UserID{late.user}, 3) })
		// And it is written to with olm.
		plain := b.service.metrics.MessagesSentPlain.Load()
		if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(0), late)); err != nil {
			t.Fatal(err)
		}
		if b.service.metrics.MessagesSentPlain.Load() != plain {
			t.Error("a device with keys got a plain message")
		}
	})
}

// TestUnknownSenderWaitsForItsKeys: olm reads a message once, so one that came
// while the homeserver could not tell whose it is must be kept.
func TestUnknownSenderWaitsForItsKeys(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		p, g, e := oneCall(b)
		bob := b.person("bob", true)
		bob.enter(p, e.info.Room)
		outage := b.fake.Break(&homeserver.Fault{Path: "/keys/query", Error: &homeserver.Error{Status: 502, Code: "M_UNKNOWN"}})
		for n := range 3 {
			bob.whisper(g, bob.hydrogenSays(g, n))
		}
		time.Sleep(15 * time.Second)
		if n := len(e.heard()); n != 0 {
			t.Errorf("%d messages of a device nobody knows were taken", n)
		}
		p.signal("conf", 0, g)
		b.eventually(time.Second, func() string { return sequence(e.heard(), []id.UserID{p.user}, 1) })
		outage.Mend()
		b.eventually(10*time.Second, func() string { return sequence(e.heard()[1:], []id.UserID{bob.user}, 3) })
		if n := b.service.metrics.MessagesRefused.Load(); n != 0 {
			t.Errorf("%d messages refused", n)
		}
	})
}

// TestDeviceWithoutPublishedKeysIsRefused: its keys never come.
func TestDeviceWithoutPublishedKeysIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, g, e := oneCall(b)
		mallory := b.person("mallory", false)
		nop := zerolog.Nop()
		mallory.olm = crypto.NewOlmMachine(mallory.client, &nop, crypto.NewMemoryStore(nil), noRooms{})
		if err := mallory.olm.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer mallory.olm.Destroy()
		const messages = maxStrange + 3
		for n := range messages {
			mallory.whisper(g, mallory.hydrogenSays(g, n))
		}
		time.Sleep(time.Second)
		if n := b.service.metrics.MessagesRefused.Load(); n != messages-maxStrange {
			t.Errorf("%d messages refused at once, want %d: no more than %d may wait", n, messages-maxStrange, maxStrange)
		}
		queries := b.service.metrics.KeyQueries.Load()
		time.Sleep(strangerPatience + time.Second)
		if n := b.service.metrics.MessagesRefused.Load(); n != messages {
			t.Errorf("%d messages refused in the end, want all %d", n, messages)
		}
		if n := b.service.metrics.KeyQueries.Load() - queries; n > 10 {
			t.Errorf("%d key queries for one stranger", n)
		}
		if len(e.heard()) != 0 {
			t.Error("a device nobody knows was heard")
		}
	})
}

// TestPayloadsCarryTheGhostsKeys: js-sdk with rust crypto drops what comes
// from a device it does not know, unless the payload has the device's keys.
func TestPayloadsCarryTheGhostsKeys(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, g, _ := oneCall(b)
		bob := b.person("bob", true)
		if err := b.service.SendToDevice(t.Context(), g, to("m.call.invite", candidates(0), bob)); err != nil {
			t.Fatal(err)
		}
		answer, err := bob.client.FullSyncRequest(t.Context(), mautrix.ReqSync{FilterID: pollFilter})
		if err != nil || len(answer.ToDevice.Events) != 1 {
			t.Fatalf("bob's inbox: %v, %v", answer, err)
		}
		sealed := answer.ToDevice.Events[0]
		sealed.Type.Class = event.ToDeviceEventType
		if err := sealed.Content.ParseRaw(sealed.Type); err != nil {
			t.Fatal(err)
		}
		opened := bob.olm.HandleEncryptedEvent(t.Context(), sealed)
		if opened == nil || opened.SenderDeviceKeys == nil {
			t.Fatalf("payload %+v has no sender_device_keys", opened)
		}
		keys, own := opened.SenderDeviceKeys, g.keys.machine.OwnIdentity()
		if keys.UserID != g.user || keys.DeviceID != g.device || keys.Keys.GetCurve25519(g.device) != own.IdentityKey ||
			keys.Keys.GetEd25519(g.device) != own.SigningKey {
			t.Errorf("sender_device_keys %+v are not the ghost's", keys)
		}
		if ok, err := signatures.VerifySignatureJSON(keys, g.user, g.device.String(), own.SigningKey); !ok || err != nil {
			t.Errorf("sender_device_keys are not signed: %v, %v", ok, err)
		}
	})
}

// TestOneTimeKeysNeverFallBelowHalf has a ghost in call after call: 500 with
// the stand-in, 100 with Synapse. In each of them a client begins an olm session
// with it, in every tenth call five clients two each. It watches what the
// homeserver has left.
func TestOneTimeKeysNeverFallBelowHalf(t *testing.T) {
	t.Run("fake", func(t *testing.T) { bubble(t, func(t *testing.T, b *bed) { keysLast(t, b, 500) }) })
	t.Run("synapse", func(t *testing.T) { keysLast(t, commonBed(t), 100) })
}

func keysLast(t *testing.T, b *bed, calls int) {
	b.start()
	people := make([]*person, 5)
	for n := range people {
		people[n] = b.person(fmt.Sprintf("caller%d", n), true)
	}
	room := people[0].room(b.service.Bot())
	for _, p := range people {
		if p != people[0] {
			p.enter(people[0], room)
		}
		p.memberOf(room, "conf", time.Hour)
	}
	g := b.ghost("_sip_topup")
	if err := g.EnterRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	least, sessions := fullPool, 0
	for call := range calls {
		callers, each := people[call%len(people):][:1], 1
		if call%10 == 0 {
			callers, each = people, 2
		}
		e := &ear{info: MembershipInfo{Ghost: g.user, Device: g.device, Room: room, ConfID: "conf"}}
		if err := b.service.attachConference(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for _, p := range callers {
			wg.Go(func() {
				for n := range each {
					p.whisper(g, p.hydrogenSays(g, n))
				}
			})
		}
		wg.Wait()
		least = min(least, oneTimeKeys(g))
		b.eventually(20*time.Second, func() string {
			if n := len(e.heard()); n != len(callers)*each {
				return fmt.Sprintf("call %d: %d messages heard, want %d", call, n, len(callers)*each)
			}
			return ""
		})
		b.service.detachConference(e)
		sessions += len(callers) * each
	}
	t.Logf("%d sessions in %d calls: the homeserver never had less than %d one-time keys, %d uploads, fallback key used %d times",
		sessions, calls, least, b.service.metrics.OneTimeKeyUploads.Load(), b.service.metrics.FallbackKeyUploads.Load()-1)
	if least < fullPool/2 {
		t.Errorf("%d one-time keys were left, want never less than %d", least, fullPool/2)
	}
	if n := b.service.metrics.FallbackKeyUploads.Load(); n != 1 {
		t.Errorf("%d fallback keys were uploaded, want only the first: it was never needed", n)
	}
}

// oneTimeKeys asks the homeserver how many it has.
func oneTimeKeys(g *Ghost) int {
	count, err := g.keys.client.UploadKeys(context.Background(), &mautrix.ReqUploadKeys{})
	if err != nil {
		return -1
	}
	return count.OneTimeKeyCounts.SignedCurve25519
}

func TestTwoDevicesNeverShareKeys(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.start()
		seen := make(map[id.IdentityKey]bool)
		for n := range 10 {
			key := b.ghost(fmt.Sprintf("_sip_own%d", n)).keys.machine.OwnIdentity().IdentityKey
			if raw, err := base64.RawStdEncoding.DecodeString(string(key)); err != nil || len(raw) != 32 || seen[key] {
				t.Errorf("ghost %d: key %q is not its own", n, key)
			}
			seen[key] = true
		}
	})
}

// TestSlowForeignHomeserverHoldsUpNobodyElse: keys of its users take a minute.
func TestSlowForeignHomeserverHoldsUpNobodyElse(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.web = slowQueries{b.web, "far.test", time.Minute}
		p, g, _ := oneCall(b)
		p.listen()
		second := b.ghost("_sip_two")
		far := OutMessage{User: "@fay:far.test", Device: "FAR", Type: "m.call.invite", Content: candidates(0)}
		var wg sync.WaitGroup
		wg.Go(func() {
			began := time.Now()
			err := b.service.SendToDevice(t.Context(), g, append(to("m.call.invite", candidates(0), p), far))
			some, ok := errors.AsType[*SendError](err)
			if !ok || len(some.Failed) != 1 || !errors.Is(some.Failed[1], errKeysUnknown) {
				t.Errorf("send = %v, want %v for the far device", err, errKeysUnknown)
			}
			if took := time.Since(began); took > awayPatience+time.Second {
				t.Errorf("send took %v", took)
			}
		})
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		// Of the same round, and of the same ghost.
		b.eventually(time.Second, func() string { return sequence(p.hears(), []id.UserID{g.user}, 1) })
		carol := b.person("carol", false)
		if err := b.service.SendToDevice(t.Context(), g, to("m.call.invite", candidates(0), carol)); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("another message of the ghost took %v", took)
		}
		if err := b.service.SendToDevice(t.Context(), second, to("m.call.invite", candidates(0), carol)); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("another ghost's message took %v", took)
		}
		wg.Wait()
		// Remembered: the next one does not wait.
		began = time.Now()
		if err := b.service.SendToDevice(t.Context(), g, []OutMessage{far}); !errors.Is(err, errKeysUnknown) || time.Since(began) > time.Second {
			t.Errorf("second send = %v after %v, want %v at once", err, time.Since(began), errKeysUnknown)
		}
	})
}

// TestSlowClaimHoldsUpNobodyWhoseSessionStands: the homeserver of one device
// takes its time to give out a one-time key.
func TestSlowClaimHoldsUpNobodyWhoseSessionStands(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, g, _ := oneCall(b)
		bob, slow := b.person("bob", true), b.person("slow", true)
		bob.listen()
		slow.listen()
		if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(0), bob)); err != nil {
			t.Fatal(err)
		}
		b.fake.Break(&homeserver.Fault{Path: "/keys/claim", Delay: 10 * time.Second, Times: 1})
		var wg sync.WaitGroup
		wg.Go(func() {
			for n := range 2 {
				if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(n), slow)); err != nil {
					t.Error(err)
				}
			}
		})
		time.Sleep(100 * time.Millisecond)
		for n := 1; n < 5; n++ {
			began := time.Now()
			if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(n), bob)); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("message %d took %v", n, took)
			}
		}
		wg.Wait()
		for p, n := range map[*person]int{bob: 5, slow: 2} {
			b.eventually(10*time.Second, func() string { return sequence(p.hears(), []id.UserID{g.user}, n) })
		}
	})
}

// TestStrangersAreNotRemembered: anybody can name any conference and device.
func TestStrangersAreNotRemembered(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, e := oneCall(b)
		bob := b.person("bob", false)
		bob.enterCall(alice, e)
		say := func(sender id.UserID, conf, device string) bool {
			content, err := json.Marshal(map[string]string{"conf_id": conf, "device_id": device})
			if err != nil {
				t.Fatal(err)
			}
			return g.route(callMessage{sender: sender, kind: typeInvite, content: content})
		}
		refused := b.service.metrics.MessagesRefused.Load()
		if long := strings.Repeat("x", maxDeviceID+1); say(bob.user, "conf", long) || b.service.metrics.MessagesRefused.Load() != refused+1 {
			t.Error("a device id of 256 bytes was not refused")
		}
		say(bob.user, "conf", bob.device.String())
		for n := range 100 {
			say(bob.user, "other", fmt.Sprint("D", n))
			say(bob.user, "conf", fmt.Sprint("D", n))
			say(id.UserID(fmt.Sprintf("@mallory%d:x", n)), "conf", bob.device.String())
		}
		spoken := &b.service.directory.spoken
		spoken.mu.Lock()
		defer spoken.mu.Unlock()
		if n := len(spoken.values); n != 1 || !spoken.values[deviceName{bob.user, bob.device}].plain {
			t.Errorf("%d devices are remembered, want only the member", n)
		}
	})
}

func TestFullMapForgetsOneKeyForEachNewOne(t *testing.T) {
	var m lockedMap[int, bool]
	for n := range maxLockedMap + 100 {
		m.set(n, true)
		m.set(n, true)
	}
	kept := 0
	for n := range maxLockedMap {
		if m.get(n) {
			kept++
		}
	}
	if len(m.values) != maxLockedMap || kept < maxLockedMap-100 {
		t.Errorf("%d keys, %d of the first ones, want %d and at most 100 forgotten", len(m.values), kept, maxLockedMap)
	}
}

// TestForeignHomeserverMayTakeLongerThanAMessageWaits: what it answers late
// counts from then on, not only after another query that is as slow.
func TestForeignHomeserverMayTakeLongerThanAMessageWaits(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.web = slowQueries{b.web, "far.test", awayPatience + 2*time.Second}
		_, g, _ := oneCall(b)
		far := OutMessage{User: "@fay:far.test", Device: "FAR", Type: "m.call.invite", Content: candidates(0)}
		if err := b.service.SendToDevice(t.Context(), g, []OutMessage{far}); !errors.Is(err, errKeysUnknown) {
			t.Errorf("first send = %v, want %v", err, errKeysUnknown)
		}
		time.Sleep(3 * time.Second)
		began := time.Now()
		if err := b.service.SendToDevice(t.Context(), g, []OutMessage{far}); err != nil || time.Since(began) > time.Second {
			t.Errorf("send after the answer = %v after %v, want success at once", err, time.Since(began))
		}
		if n := b.service.metrics.KeyQueries.Load(); n != 1 {
			t.Errorf("%d key queries, want 1", n)
		}
	})
}

// slowQueries delays key queries that name a homeserver, and answers them for
// it: its users have no keys.
type slowQueries struct {
	http.RoundTripper
	server string
	delay  time.Duration
}

func (s slowQueries) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(r.URL.Path, "/keys/query") {
		return s.RoundTripper.RoundTrip(r)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(body, []byte(s.server)) {
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(body))
		return s.RoundTripper.RoundTrip(r)
	}
	select {
	case <-time.After(s.delay):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	var asked struct {
		Users map[id.UserID]any `json:"device_keys"`
	}
	if err := json.Unmarshal(body, &asked); err != nil {
		return nil, err
	}
	for user := range asked.Users {
		asked.Users[user] = struct{}{}
	}
	answer, err := json.Marshal(asked)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: http.StatusOK, Request: r, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(bytes.NewReader(answer)), ContentLength: int64(len(answer)),
	}, nil
}
