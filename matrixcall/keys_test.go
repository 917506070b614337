package matrixcall

import (
	"bytes"
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
	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

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
			before := len(e.heard())
			alice.whisper(g, payload)
			time.Sleep(300 * time.Millisecond)
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

// TestDeviceThatLogsInLaterIsFound: the first message of a device nobody has
// heard of comes without its keys, and before the ghost knew of them.
func TestDeviceThatLogsInLaterIsFound(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, g, e := oneCall(b)
		stranger := b.person("stranger", false) // has a device without keys
		if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(0), stranger)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		late := b.person("stranger", true) // another device of the same user, with keys
		ghost := g.keys.machine.OwnIdentity()
		late.whisper(g, map[string]any{
			"type": "m.call.candidates", "sender": late.user, "recipient": g.user,
			"keys": map[string]any{"ed25519": late.olm.OwnIdentity().SigningKey}, "recipient_keys": map[string]any{"ed25519": ghost.SigningKey},
			"content": map[string]any{"conf_id": "conf", "device_id": late.device, "seq": 0},
		})
		b.eventually(5*time.Second, func() string { return sequence(e.heard(), []id.UserID{late.user}, 1) })
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

func TestOneTimeKeysAreToppedUp(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false)
		room := alice.room(b.service.Bot())
		g := b.ghost("_sip_topup")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		b.attach(g, room, "conf")
		for range 3 {
			for range fullPool / 2 {
				if _, err := claim(alice, g.user, g.device); err != nil {
					t.Fatal(err)
				}
			}
			alice.signal("conf", 0, g) // an answer to the poll tells the count
			b.eventually(15*time.Second, func() string {
				count, err := g.keys.client.UploadKeys(t.Context(), &mautrix.ReqUploadKeys{})
				if err != nil {
					t.Fatal(err)
				}
				if n := count.OneTimeKeyCounts.SignedCurve25519; n < lowPool || n > fullPool {
					return fmt.Sprintf("%d one-time keys, want about %d", n, fullPool)
				}
				return ""
			})
		}
	})
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
		b.web = slowQueries{b.web, "far.test"}
		p, g, _ := oneCall(b)
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
		carol := b.person("carol", false)
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

// slowQueries delays key queries that name a homeserver.
type slowQueries struct {
	http.RoundTripper
	server string
}

func (s slowQueries) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/keys/query") {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(body))
		if bytes.Contains(body, []byte(s.server)) {
			select {
			case <-time.After(time.Minute):
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		}
	}
	return s.RoundTripper.RoundTrip(r)
}
