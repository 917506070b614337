package matrixcall

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/transport/v4/vnet"
	"github.com/pion/turn/v5"

	"trunkline/internal/testbed/homeserver"
)

// turnAnswer is what the homeserver says about TURN: other credentials every time.
type turnAnswer struct {
	mu    sync.Mutex
	asked int
	ttl   int
	uris  []string
}

func (a *turnAnswer) MarshalJSON() ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	return json.Marshal(map[string]any{"username": fmt.Sprint("u", a.asked), "password": "p", "ttl": a.ttl, "uris": a.uris})
}

// breakable is a network that can be cut.
type breakable struct {
	http.RoundTripper
	cut bool
}

func (b *breakable) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.cut {
		return nil, errors.New("cut")
	}
	return b.RoundTripper.RoundTrip(r)
}

func TestTURNCredentialsAreRenewedBeforeTheyExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := &turnAnswer{ttl: 3600, uris: []string{"turn:r.example:3478", "turn:r.example:notaport", "turns:[::1", "stun:"}}
		hs := homeserver.Start(t, homeserver.Config{TURN: answer})
		web := &breakable{RoundTripper: hs.Net().Client().Transport}
		config := Config{
			HomeserverURL: hs.URL(), Domain: hs.Domain(), ASToken: "as-token-of-the-test", HSToken: "h", ID: "i",
			BotLocalpart: "phonebot", GhostPrefix: "_sip_", Transport: web,
			ICE: ICEConfig{ExtraServers: []TURNServer{{URIs: []string{"turn:extra"}, Username: "static", Password: "p"}}},
		}
		hs.AppService(registration("", hs.Domain()), hs.Net().Client())
		s, err := New(config, newMemory(), openOlm(t), Options{}, testLog(t))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.registerBot(t.Context()); err != nil {
			t.Fatal(err)
		}
		users := func() (users []string) {
			servers, err := s.turnServers(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, server := range servers {
				users = append(users, server.Username)
			}
			if servers[0].Username != "static" && !slices.Equal(servers[0].URIs, []string{"turn:r.example:3478"}) {
				t.Errorf("URIs %q, want the one that is well formed", servers[0].URIs)
			}
			return users
		}
		for _, step := range []struct {
			name  string
			after time.Duration
			cut   bool
			want  []string
		}{
			{"first", 0, false, []string{"u1", "static"}},
			{"kept", 49 * time.Minute, false, []string{"u1", "static"}},
			{"ten minutes before the end", 2 * time.Minute, false, []string{"u2", "static"}},
			{"homeserver away, still good", 51 * time.Minute, true, []string{"u2", "static"}},
			{"homeserver away, expired", 10 * time.Minute, true, []string{"static"}},
			{"not asked again at once", 30 * time.Second, false, []string{"static"}},
			{"back", time.Minute, false, []string{"u3", "static"}},
		} {
			time.Sleep(step.after)
			web.cut = step.cut
			if got := users(); !slices.Equal(got, step.want) {
				t.Errorf("%s: %q, want %q", step.name, got, step.want)
			}
		}
		if asked, failed := s.metrics.TURNRequests.Load(), s.metrics.TURNFailures.Load(); asked != 5 || failed != 2 {
			t.Errorf("asked %d times, %d in vain, want 5 and 2", asked, failed)
		}
		answer.ttl = 30 // as short as they come
		time.Sleep(time.Hour)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { users() })
		}
		wg.Wait()
		time.Sleep(16 * time.Second)
		if got := users()[0]; got != "u5" {
			t.Errorf("after half of 30 s: %s, want u5: one question for twenty conferences, and another one", got)
		}
	})
}

func TestStaticServersThatCannotWorkAreRefusedAtStart(t *testing.T) {
	for _, server := range []TURNServer{
		{URIs: []string{"turn:r.example"}},
		{URIs: []string{"turn:r.example"}, Username: "u"},
		{URIs: []string{"stun:ok", "http://r.example"}},
		{URIs: []string{"turn:r.example:x"}, Username: "u", Password: "p"},
	} {
		if e, err := newEngine(ICEConfig{ExtraServers: []TURNServer{server}}, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%+v was accepted", server)
			_ = e.Close()
		}
	}
}

// turnBed is a call whose members reach each other through a relay only, and what the relay has seen.
type turnBed struct {
	mu    sync.Mutex
	users map[string]int // requests by user name
	dead  map[string]bool
	relay *turn.Server
}

const relayAddress = "10.1.0.9"

// startRelay puts a TURN server on the bed's network, and takes away the direct ways between ghost and browsers.
func startRelay(t *testing.T, bed *callBed) *turnBed {
	t.Helper()
	r := &turnBed{users: make(map[string]int), dead: make(map[string]bool)}
	network := bed.network(relayAddress)
	socket, err := network.ListenPacket("udp4", relayAddress+":3478")
	if err != nil {
		t.Fatal(err)
	}
	r.relay, err = turn.NewServer(turn.ServerConfig{
		Realm: "test", LoggerFactory: pionLoggers{bed.log},
		AuthHandler: func(a *turn.RequestAttributes) (string, []byte, bool) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.users[a.Username]++
			return a.Username, turn.GenerateAuthKey(a.Username, a.Realm, "secret of "+a.Username), !r.dead[a.Username]
		},
		PacketConnConfigs: []turn.PacketConnConfig{{
			PacketConn: socket,
			RelayAddressGenerator: &turn.RelayAddressGeneratorStatic{
				RelayAddress: net.ParseIP(relayAddress), Address: relayAddress, Net: network,
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	bed.router.AddChunkFilter(func(c vnet.Chunk) bool {
		return strings.HasPrefix(c.SourceAddr().String(), relayAddress+":") || strings.HasPrefix(c.DestinationAddr().String(), relayAddress+":")
	})
	return r
}

// give has the bed hand out credentials.
func (r *turnBed) give(bed *callBed, user string) {
	bed.mu.Lock()
	defer bed.mu.Unlock()
	bed.relays = []TURNServer{{URIs: []string{"turn:" + relayAddress + ":3478?transport=udp"}, Username: user, Password: "secret of " + user}}
}

// expire has the relay accept a user no more.
func (r *turnBed) expire(user string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead[user] = true
}

func (r *turnBed) requests(user string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.users[user]
}

func TestSoundFlowsThroughARelay(t *testing.T) {
	for _, port := range []int{0, 7000} {
		inBubble(t, ICEConfig{UDPPort: port}, func(t *testing.T, bed *callBed) {
			book := newLogbook()
			bed.log = slog.New(book)
			relay := startRelay(t, bed)
			defer relay.relay.Close()
			relay.give(bed, "first")
			alice := bed.browser("@alice:x", "10.1.0.2", nil)
			bob := bed.browser("@bob:x", "10.1.0.3", nil)
			alice.enter()
			p := bed.join("@_sip_1:x")
			time.Sleep(4 * time.Second)
			bed.hearEachOther(p, alice)
			book.says(t, "INFO peer connected", "pair=relay private IPv4 > ")

			// New credentials are for new connections: the one that stands is not touched.
			relay.give(bed, "second")
			before := alice.received(typeNegotiate)
			bob.enter()
			time.Sleep(4 * time.Second)
			bed.hearEachOther(p, alice)
			bed.hearEachOther(p, bob)
			if relay.requests("first") == 0 || relay.requests("second") == 0 || alice.received(typeNegotiate) != before {
				t.Errorf("requests %v, %d offers to alice, want both users and no offer", relay.users, alice.received(typeNegotiate)-before)
			}
			leave(t, p)
		})
	}
}

// What becomes of a connection whose credentials expire depends on the server. This one, as strict as can be, takes no
// request with them any more: neither to keep the allocation nor the permissions. pion only logs that; the sound stops when
// the permission ends, ICE notices, and its restart brings the new credentials.
func TestExpiredCredentialsOfARunningConnection(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		relay := startRelay(t, bed)
		defer relay.relay.Close()
		relay.give(bed, "first")
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		alice.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(4 * time.Second)
		bed.hearEachOther(p, alice)
		relay.give(bed, "second")
		relay.expire("first")
		began, silent := time.Now(), time.Time{}
		for time.Since(began) < 15*time.Minute {
			before := p.heard(alice.user)
			bed.talk(200*time.Millisecond, p)
			time.Sleep(800 * time.Millisecond)
			switch heard := p.heard(alice.user) > before; {
			case !heard && silent.IsZero():
				silent = time.Now()
			case heard && !silent.IsZero():
				t.Logf("expired credentials: silent after %v, for %v", silent.Sub(began).Round(time.Second), time.Since(silent).Round(time.Second))
				if gap := time.Since(silent); gap > 20*time.Second {
					t.Errorf("silent for %v", gap)
				}
				silent, began = time.Time{}, time.Now().Add(-15*time.Minute)
			}
		}
		if !silent.IsZero() {
			t.Errorf("silent after %v, for good", silent.Sub(began))
		}
		bed.hearEachOther(p, alice)
		if got := p.count(isGone); got != 0 {
			t.Errorf("%d PeerGone, want none", got)
		}
		if relay.requests("second") == 0 {
			t.Error("the new credentials were never used")
		}
		leave(t, p)
	})
}
