package matrixcall

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
)

// far stands for a foreign homeserver with two users, as ours tells of it: key queries and claims that name them are answered
// here.
type far struct {
	http.RoundTripper
	devices map[id.UserID]json.RawMessage            // device keys, as published
	keys    map[id.UserID]map[string]json.RawMessage // one-time keys

	mu     sync.Mutex
	mood   string // "hangs", "fails", "works"; guarded by mu
	claims int    // guarded by mu
}

const farDevice = id.DeviceID("FAR")

func newFar(t testing.TB, b *bed, users ...id.UserID) *far {
	f := &far{RoundTripper: b.web, mood: "works", devices: map[id.UserID]json.RawMessage{}, keys: map[id.UserID]map[string]json.RawMessage{}}
	for _, user := range users {
		client, err := mautrix.NewClient(b.url, user, "")
		if err != nil {
			t.Fatal(err)
		}
		client.DeviceID, client.Log, client.Client = farDevice, zerolog.Nop(), &http.Client{Transport: uploads{f, user}}
		nop := zerolog.Nop()
		machine := crypto.NewOlmMachine(client, &nop, crypto.NewMemoryStore(nil), noRooms{})
		t.Cleanup(machine.Destroy)
		if err := machine.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := machine.ShareKeys(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	b.web = f
	return f
}

// uploads takes the keys that a user of far publishes.
type uploads struct {
	far  *far
	user id.UserID
}

func (u uploads) RoundTrip(r *http.Request) (*http.Response, error) {
	var request struct {
		Device  json.RawMessage            `json:"device_keys"`
		OneTime map[string]json.RawMessage `json:"one_time_keys"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		return nil, err
	}
	u.far.devices[u.user], u.far.keys[u.user] = request.Device, request.OneTime
	return jsonAnswer(r, map[string]any{"one_time_key_counts": map[string]int{"signed_curve25519": len(request.OneTime)}})
}

func jsonAnswer(r *http.Request, content any) (*http.Response, error) {
	text, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: http.StatusOK, Request: r, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(bytes.NewReader(text)), ContentLength: int64(len(text)),
	}, nil
}

func (f *far) RoundTrip(r *http.Request) (*http.Response, error) {
	query, claim := strings.HasSuffix(r.URL.Path, "/keys/query"), strings.HasSuffix(r.URL.Path, "/keys/claim")
	if !query && !claim {
		return f.RoundTripper.RoundTrip(r)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if !bytes.Contains(body, []byte(":far.test")) {
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(body))
		return f.RoundTripper.RoundTrip(r)
	}
	if query {
		found := make(map[id.UserID]any)
		for user, device := range f.devices {
			if bytes.Contains(body, []byte(user)) {
				found[user] = map[id.DeviceID]json.RawMessage{farDevice: device}
			}
		}
		return jsonAnswer(r, map[string]any{"device_keys": found})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.claims++
	switch f.mood {
	case "hangs":
		f.mu.Unlock()
		<-r.Context().Done()
		f.mu.Lock()
		return nil, r.Context().Err()
	case "fails":
		return jsonAnswer(r, map[string]any{"one_time_keys": map[string]any{}, "failures": map[string]any{"far.test": map[string]any{}}})
	}
	found := make(map[id.UserID]any)
	for user, keys := range f.keys {
		if name := slices.Sorted(maps.Keys(keys)); bytes.Contains(body, []byte(user)) && len(name) > 0 {
			found[user] = map[id.DeviceID]any{farDevice: map[string]json.RawMessage{name[0]: keys[name[0]]}}
			delete(keys, name[0])
		}
	}
	return jsonAnswer(r, map[string]any{"one_time_keys": found})
}

func (f *far) be(mood string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mood = mood
}

func (f *far) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.claims
}

func farMessage(user id.UserID, n int) []OutMessage {
	return []OutMessage{{User: user, Device: farDevice, Type: typeCandidates, Content: candidates(n)}}
}

const (
	fay = id.UserID("@fay:far.test")
	fox = id.UserID("@fox:far.test")
)

// TestHomeserverThatGivesOutNoKeysIsAskedSeldom: one that hangs costs its own users' first message the patience we have, and the
// next ones nothing; nobody else waits. When it works again everything is as before.
func TestHomeserverThatGivesOutNoKeysIsAskedSeldom(t *testing.T) {
	for _, mood := range []string{"hangs", "fails"} {
		t.Run(mood, func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bed) {
				f := newFar(t, b, fay, fox)
				_, g, _ := oneCall(b)
				second := b.ghost("_sip_two")
				bob := b.person("bob", true)
				bob.listen()
				f.be(mood)
				began := time.Now()
				for n := range 40 { // every half a second, from two phones, as a mesh that tries again and again
					for _, ghost := range []*Ghost{g, second} {
						go func() {
							err := b.service.SendToDevice(t.Context(), ghost, append(farMessage(fay, n), farMessage(fox, n)...))
							if some, ok := errors.AsType[*SendError](err); !ok || len(some.Failed) != 2 || !errors.Is(err, errServerAway) {
								t.Errorf("message %d = %v, want %v for both devices", n, err, errServerAway)
							}
						}()
					}
					sent := time.Now()
					if err := b.service.SendToDevice(t.Context(), g, to(typeCandidates, candidates(n), bob)); err != nil {
						t.Error(err)
					}
					if took := time.Since(sent); took > 100*time.Millisecond {
						t.Errorf("message %d to somebody else took %v", n, took)
					}
					time.Sleep(time.Until(sent.Add(500 * time.Millisecond)))
				}
				b.eventually(time.Second, func() string { return sequence(bob.hears(), []id.UserID{g.user}, 40) })
				time.Sleep(30 * time.Second)
				if n := f.asked(); n > 4 {
					t.Errorf("the homeserver was asked %d times within %v, want once by each phone and once or twice later", n, time.Since(began))
				}
				f.be("works")
				time.Sleep(maxClaimPause)
				sent := time.Now()
				for n, user := range []id.UserID{fay, fox} {
					if err := b.service.SendToDevice(t.Context(), g, farMessage(user, n)); err != nil || time.Since(sent) > time.Second {
						t.Errorf("message to %s when its homeserver works again = %v after %v", user, err, time.Since(sent))
					}
				}
			})
		})
	}
}

// TestMessageThatCannotBeSentYetHoldsUpNoOther, whoever waits for it.
func TestMessageThatCannotBeSentYetHoldsUpNoOther(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		f := newFar(t, b, fay)
		f.be("hangs")
		_, g, _ := oneCall(b)
		bob := b.person("bob", true)
		bob.listen()
		away := b.service.toDevice(t.Context(), g, farMessage(fay, 0))
		near := b.service.toDevice(t.Context(), g, to(typeCandidates, candidates(0), bob))
		began := time.Now()
		if err := near(0); err != nil || time.Since(began) > 100*time.Millisecond {
			t.Errorf("what came second = %v after %v", err, time.Since(began))
		}
		if err := away(0); !errors.Is(err, errServerAway) || time.Since(began) > claimLimit+time.Second {
			t.Errorf("what came first = %v after %v, want %v", err, time.Since(began), errServerAway)
		}
	})
}

// TestBrokenSessionIsMadeAnewBesideTheOthers: the ghost cannot read a message of somebody who is in the room, so it begins a
// new olm session and says so by an empty message. The homeserver takes its time with the key for that; nobody else waits.
func TestBrokenSessionIsMadeAnewBesideTheOthers(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, e := oneCall(b)
		bob, carol := b.person("bob", true), b.person("carol", true)
		for _, p := range []*person{bob, carol} {
			p.enter(alice, e.info.Room)
			p.listen()
			p.signal("conf", 0, g)
		}
		if err := b.service.SendToDevice(t.Context(), g, to(typeCandidates, candidates(0), bob, carol)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(repairPause + time.Minute) // a session that is new is not made anew
		claims, before := b.service.metrics.KeyClaims.Load(), b.service.metrics.SendRequests.Load()
		slow := b.fake.Break(&homeserver.Fault{Path: "/keys/claim", Delay: 5 * time.Second})
		for range 3 {
			bob.garble(g)
		}
		time.Sleep(time.Second)
		if slow.Hits() != 1 {
			t.Errorf("%d claims under way, want 1", slow.Hits())
		}
		for n := range 3 {
			began := time.Now()
			if err := b.service.SendToDevice(t.Context(), g, to(typeCandidates, candidates(n+1), carol)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 100*time.Millisecond {
				t.Errorf("a message to carol took %v", took)
			}
		}
		time.Sleep(5 * time.Second)
		// An empty message is olm's own, and not heard.
		if n := b.service.metrics.SendRequests.Load() - before; n != 4 {
			t.Errorf("%d messages were sent by the ghost, want the three to carol and an empty one to bob", n)
		}
		if n := b.service.metrics.KeyClaims.Load() - claims; n != 1 {
			t.Errorf("%d keys were claimed, want 1 for three messages that cannot be read", n)
		}
		// Strangers are not worth a claim.
		mallory := b.person("mallory", true)
		mallory.garble(g)
		time.Sleep(10 * time.Second)
		if n := b.service.metrics.KeyClaims.Load() - claims; n != 1 {
			t.Errorf("%d keys were claimed, want none for a stranger", n-1)
		}
	})
}

// garble sends an olm message that nobody can read.
func (p *person) garble(g *Ghost) {
	p.bed.Helper()
	theirs := g.keys.machine.OwnIdentity().IdentityKey
	_, err := p.client.SendToDevice(p.bed.Context(), event.ToDeviceEncrypted, &mautrix.ReqSendToDevice{
		Messages: map[id.UserID]map[id.DeviceID]*event.Content{g.user: {g.device: {Raw: map[string]any{
			"algorithm": id.AlgorithmOlmV1, "sender_key": p.olm.OwnIdentity().IdentityKey,
			"ciphertext": map[string]any{string(theirs): map[string]any{"type": 1, "body": strings.Repeat("A", 40)}},
		}}}},
	})
	if err != nil {
		p.bed.Fatal(err)
	}
}
