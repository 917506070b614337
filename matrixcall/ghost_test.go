package matrixcall

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
)

func TestGhostIsTheSameAfterRestart(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", true)
		alice.listen()
		room := alice.room(b.service.Bot())
		g := b.ghost("_sip_15550100")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		keys := g.keys.machine.OwnIdentity()
		e := b.attach(g, room, "conf")
		// Two messages each way, so that the olm session is established.
		for n := range 2 {
			alice.signal("conf", n, g)
			b.eventually(time.Minute, func() string { return sequence(e.heard(), []id.UserID{alice.user}, n+1) })
			if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(n), alice)); err != nil {
				t.Fatal(err)
			}
		}
		b.stop(b.service)
		alice.signal("conf", 2, g)

		b.start()
		again := b.ghost("_sip_15550100")
		if b.ghost("_sip_15550100") != again {
			t.Error("asking twice made two ghosts")
		}
		if again.device != g.device {
			t.Errorf("device after restart %s, want %s", again.device, g.device)
		}
		if got := again.keys.machine.OwnIdentity(); got.IdentityKey != keys.IdentityKey || got.SigningKey != keys.SigningKey {
			t.Error("keys after restart differ: clients would drop the ghost")
		}
		if n := b.service.metrics.GhostsCreated.Load(); n != 0 {
			t.Errorf("%d devices were made after the restart, want none", n)
		}
		e = b.attach(again, room, "conf")
		b.eventually(time.Minute, func() string {
			if n := len(e.heard()); n != 1 {
				return fmt.Sprintf("%d messages heard after the restart, want only the one sent meanwhile", n)
			}
			return ""
		})
		if err := b.service.SendToDevice(t.Context(), again, to("m.call.candidates", candidates(2), alice)); err != nil {
			t.Fatal(err)
		}
		b.eventually(time.Minute, func() string { return sequence(alice.hears(), []id.UserID{g.user}, 3) })
	})
}

func TestGhostPublishesItsKeysAtOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		g := b.ghost("_sip_keys")
		count, err := g.keys.client.UploadKeys(t.Context(), &mautrix.ReqUploadKeys{})
		if err != nil {
			t.Fatal(err)
		}
		if got := count.OneTimeKeyCounts.SignedCurve25519; got != fullPool {
			t.Errorf("%d one-time keys, want %d", got, fullPool)
		}
		if n := b.service.metrics.FallbackKeyUploads.Load(); n != 1 {
			t.Errorf("%d fallback keys uploaded, want 1", n)
		}
		name, err := b.service.bot.GetDisplayName(t.Context(), g.user)
		if err != nil || name.DisplayName != "Phone _sip_keys" {
			t.Errorf("display name %v, %v", name, err)
		}
	})
}

func TestFallbackKeyAnswersWhenOneTimeKeysAreDrained(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", true)
		room := alice.room(b.service.Bot())
		g := b.ghost("_sip_drained")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		drain(b, g.user, g.device)
		alice.signal("conf", 0, g)
		bob := b.person("bob", true)
		bob.enter(alice, room)
		bob.signal("conf", 0, g)
		e := b.attach(g, room, "conf")
		b.eventually(time.Minute, func() string {
			return sequence(e.heard(), []id.UserID{alice.user, bob.user}, 1)
		})
		b.eventually(time.Minute, func() string {
			if n := b.service.metrics.FallbackKeyUploads.Load(); n != 2 {
				return fmt.Sprintf("%d fallback keys uploaded, want 2: the used one must be replaced", n)
			}
			return ""
		})
		// The pool is full again, and whoever claimed the old fallback
		// key is still understood.
		carol := b.person("carol", true)
		carol.enter(alice, room)
		carol.signal("conf", 0, g)
		b.eventually(time.Minute, func() string {
			return sequence(e.heard(), []id.UserID{alice.user, bob.user, carol.user}, 1)
		})
		count, err := g.keys.client.UploadKeys(t.Context(), &mautrix.ReqUploadKeys{})
		if err != nil {
			t.Fatal(err)
		}
		if got := count.OneTimeKeyCounts.SignedCurve25519; got < lowPool {
			t.Errorf("%d one-time keys after the drain, want at least %d", got, lowPool)
		}
	})
}

func TestManyGhostsMadeAtOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		var wg sync.WaitGroup
		for n := range 20 {
			wg.Go(func() {
				// Every ghost is asked for twice at the same moment.
				if _, err := b.service.Ghost(t.Context(), fmt.Sprintf("_sip_at_once_%d", n/2), "Phone"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := b.service.metrics.GhostsCreated.Load(); n != 10 {
			t.Errorf("%d devices made for 10 ghosts", n)
		}
	})
}

func TestGhostGetsNewDeviceWhenItsKeysAreLost(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		g := b.ghost("_sip_amnesia")
		b.stop(b.service)
		b.olm = openOlm(t)
		b.start()
		again := b.ghost("_sip_amnesia")
		if again.device == g.device {
			t.Errorf("device is still %s: its keys would have to change, which clients refuse", g.device)
		}
		if _, err := again.asUser.GetDeviceInfo(t.Context(), g.device); !isNotFound(err) {
			t.Errorf("old device: %v, want it deleted", err)
		}
	})
}

func TestGhostGetsNewDeviceWhenTheHomeserverLostIt(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		g := b.ghost("_sip_lost")
		if err := g.asUser.DeleteDevice(t.Context(), g.device, &mautrix.ReqDeleteDevice[any]{}); err != nil {
			t.Fatal(err)
		}
		b.stop(b.service)
		b.start()
		again := b.ghost("_sip_lost")
		if again.device == g.device {
			t.Error("device that was deleted is used again")
		}
		count, err := again.keys.client.UploadKeys(t.Context(), &mautrix.ReqUploadKeys{})
		if err != nil || count.OneTimeKeyCounts.SignedCurve25519 != fullPool {
			t.Errorf("new device has %v one-time keys, %v", count, err)
		}
	})
}

func TestGhostThatWasHalfMadeIsFinished(t *testing.T) {
	for _, fault := range []*homeserver.Fault{
		{Method: http.MethodPost, Path: "/register", Drop: true},
		{Method: http.MethodPut, Path: "/devices/", Drop: true},
		{Method: http.MethodPut, Path: "/devices/", Drop: true, Late: true},
		{Method: http.MethodPost, Path: "/keys/upload", Drop: true},
		{Method: http.MethodPost, Path: "/keys/upload", Drop: true, Late: true},
		{Method: http.MethodPut, Path: "/displayname", Drop: true},
	} {
		t.Run(fmt.Sprintf("%s late=%v", strings.Trim(fault.Path, "/"), fault.Late), func(t *testing.T) {
			bubble(t, func(t *testing.T, b *bed) {
				b.start()
				b.fake.Break(fault)
				if g, err := b.service.Ghost(t.Context(), "_sip_half", "Half"); err == nil {
					t.Fatalf("ghost was made: %v", g)
				}
				fault.Mend()
				b.stop(b.service)
				b.start()
				g := b.ghost("_sip_half")
				if n := b.fake.OneTimeKeys(g.user, g.device); n < fullPool {
					t.Errorf("%d one-time keys, want %d", n, fullPool)
				}
				devices, err := g.asUser.GetDevicesInfo(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if len(devices.Devices) != 1 {
					t.Errorf("%d devices, want 1: %v", len(devices.Devices), devices.Devices)
				}
				alice := b.person("alice", true)
				room := alice.room(b.service.Bot())
				if err := g.EnterRoom(t.Context(), room); err != nil {
					t.Fatal(err)
				}
				e := b.attach(g, room, "conf")
				drain(b, g.user, g.device)
				alice.signal("conf", 0, g)
				b.eventually(10*time.Second, func() string { return sequence(e.heard(), []id.UserID{alice.user}, 1) })
			})
		})
	}
}

func TestUploadWhoseAnswerWasLostIsRepeated(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.start()
		b.fake.Break(&homeserver.Fault{Method: http.MethodPost, Path: "/keys/upload", Drop: true, Late: true, Times: 2})
		g := b.ghost("_sip_repeat")
		if n := b.fake.OneTimeKeys(g.user, g.device); n != fullPool {
			t.Errorf("%d one-time keys, want %d", n, fullPool)
		}
	})
}

func TestDisplayNameIsWrittenOnlyWhenItChanges(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.start()
		names := func() int {
			return len(slices.DeleteFunc(b.fake.Requests(), func(r homeserver.Request) bool {
				return r.Method != http.MethodPut || !strings.HasSuffix(r.Path, "/displayname")
			}))
		}
		b.ghost("_sip_name")
		b.ghost("_sip_name")
		b.stop(b.service)
		b.start()
		b.ghost("_sip_name")
		if n := names(); n != 1 {
			t.Errorf("name written %d times, want once: each is an event in every room", n)
		}
		if _, err := b.service.Ghost(t.Context(), "_sip_name", "Another"); err != nil {
			t.Fatal(err)
		}
		if n := names(); n != 2 {
			t.Errorf("name written %d times after a change, want 2", n)
		}
	})
}

// TestIdleGhostsAreForgotten: each phone that ever called would stay in memory otherwise.
func TestIdleGhostsAreForgotten(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, talking, e := oneCall(b)
		held := b.ghost("_sip_held")
		time.Sleep(idleLife / 2)
		for n := range 5 {
			b.ghost(fmt.Sprintf("_sip_once%d", n))
		}
		known := func() int {
			b.service.mu.Lock()
			defer b.service.mu.Unlock()
			return len(b.service.ghosts)
		}
		if n := known(); n != 7 {
			t.Errorf("%d ghosts kept, want all 7", n)
		}
		time.Sleep(idleLife/2 + time.Minute)
		b.ghost("_sip_once0")
		if n := known(); n != 6 {
			t.Errorf("%d ghosts kept, want all but the one nobody asked for in %v", n, idleLife)
		}
		time.Sleep(idleLife + time.Minute)
		again := b.ghost("_sip_held")
		if n := known(); n != 2 {
			t.Errorf("%d ghosts kept, want the one in a call and the one just asked for", n)
		}
		if again == held || again.device != held.device {
			t.Errorf("ghost is %p with device %s, want another than %p with its device %s", again, again.device, held, held.device)
		}
		// Whoever still holds the old one hears of it: two of them would
		// spoil each other's olm sessions.
		if err := held.begin(t.Context(), &ear{}); !errors.Is(err, errGhostForgotten) {
			t.Errorf("begin = %v, want %v", err, errGhostForgotten)
		}
		if b.ghost("_sip_one") != talking {
			t.Error("a ghost in a call was replaced")
		}
		b.service.detachConference(e)
		b.ghost("_sip_once1")
		if known() != 3 {
			t.Error("a ghost was forgotten right after its call")
		}
	})
}

func TestNotTooManyGhostsAreKept(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.start()
		for n := range maxGhosts + 50 {
			g, err := b.service.newGhost(t.Context(), id.NewUserID(fmt.Sprintf("_sip_many%d", n), b.domain), "D")
			if err != nil {
				t.Fatal(err)
			}
			b.service.keep(g)
			time.Sleep(time.Second)
		}
		b.service.mu.Lock()
		defer b.service.mu.Unlock()
		if n := len(b.service.ghosts); n > maxGhosts {
			t.Errorf("%d ghosts kept, want %d at most", n, maxGhosts)
		}
	})
}

func TestGhostNames(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.start()
		if g := b.ghost("15550100"); g.user != "@_sip_15550100:"+id.UserID(b.domain) {
			t.Errorf("ghost %s, want the prefix before the localpart", g.user)
		}
		for _, bad := range []string{"_sip_+49 30", "_sip_ABC", "_sip_a:b", "_sip_é", "_sip_" + strings.Repeat("1", 300)} {
			if g, err := b.service.Ghost(t.Context(), bad, "x"); err == nil {
				t.Errorf("Ghost(%q) = %s, want an error", bad, g.user)
			}
		}
		for user, own := range map[id.UserID]bool{
			"@_sip_1:hs.test": true, "@_sip_1:other.test": false, "@alice:hs.test": false, "@phonebot:hs.test": false,
			"_sip_1": false, "": false, "@_sip_1:hs.test:8448": false,
		} {
			if got := b.service.OwnGhost(user); got != own {
				t.Errorf("OwnGhost(%q) = %v, want %v", user, got, own)
			}
		}
	})
}
