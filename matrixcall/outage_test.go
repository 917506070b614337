package matrixcall

import (
	"fmt"
	"net/http"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
)

// TestHomeserverIsAwayForMinutes: what was to be sent waits in order, what was
// sent to the ghosts is caught up with, and nothing happens twice.
func TestHomeserverIsAwayForMinutes(t *testing.T) {
	bothWays(t, func(t *testing.T, b *bed) {
		p, g, e := oneCall(b)
		p.memberOf(e.info.Room, "conf", time.Hour) // as clients do before they signal
		second := b.ghost("_sip_two")
		if err := second.EnterRoom(t.Context(), e.info.Room); err != nil {
			t.Fatal(err)
		}
		other := b.attach(second, e.info.Room, "conf")
		people := []*person{p, b.person("olm", true), b.person("plain", false)}
		for _, each := range people {
			each.listen()
		}
		// All that the bridge asks fails, half of it after it was done.
		var outage []*homeserver.Fault
		for _, user := range []id.UserID{g.user, second.user, b.service.Bot()} {
			outage = append(outage, b.fake.Break(&homeserver.Fault{User: user, Late: user == second.user, Drop: true}))
		}
		var wg sync.WaitGroup
		for n := range 20 {
			for _, ghost := range []*Ghost{g, second} {
				wg.Go(func() {
					if err := b.service.SendToDevice(t.Context(), ghost, to("m.call.candidates", candidates(n), people...)); err != nil {
						t.Error(err)
					}
				})
			}
			p.signal("conf", n, g, second)
			time.Sleep(15 * time.Second)
		}
		for _, fault := range outage {
			fault.Mend()
		}
		wg.Wait()
		time.Sleep(15 * time.Second)
		for _, ear := range []*ear{e, other} {
			if wrong := sequence(ear.heard(), []id.UserID{p.user}, 20); wrong != "" {
				t.Errorf("%s: %s", ear.info.Ghost, wrong)
			}
		}
		for _, each := range people {
			if wrong := sequence(each.hears(), []id.UserID{g.user, second.user}, 20); wrong != "" {
				t.Errorf("%s: %s", each.user, wrong)
			}
		}
		if n := b.service.metrics.MessagesFailed.Load(); n != 0 {
			t.Errorf("%d messages given up", n)
		}
	})
}

// TestTransactionIDsAreUniqueOverGhostsAndRestarts: Synapse takes two requests
// with one id for one, whichever ghosts they are from and whenever they come.
func TestTransactionIDsAreUniqueOverGhostsAndRestarts(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		people := []*person{}
		const lives, ghosts, rounds = 3, 4, 5
		b.start()
		people = append(people, b.person("olm", true), b.person("plain", false))
		room := people[0].room(b.service.Bot())
		lost := b.fake.Break(&homeserver.Fault{Path: "/sendToDevice/", Late: true, Drop: true, Times: 10})
		for range lives {
			var wg sync.WaitGroup
			for n := range ghosts {
				g := b.ghost(fmt.Sprintf("_sip_%d", n))
				wg.Go(func() {
					for n := range rounds {
						if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(n), people...)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			if err := b.service.Notice(t.Context(), room, nil, "hello"); err != nil {
				t.Error(err)
			}
			b.stop(b.service)
			b.start()
		}
		times := make(map[string]int)
		for _, r := range b.fake.Requests() {
			if r.Method == http.MethodPut && (strings.Contains(r.Path, "/sendToDevice/") || strings.Contains(r.Path, "/send/")) {
				times[path.Base(r.Path)]++
			}
		}
		retries := 0
		for _, n := range times {
			retries += n - 1
		}
		if want := lives * (ghosts*rounds*2 + 1); len(times) != want {
			t.Errorf("%d transaction ids, want %d: one per type and round", len(times), want)
		}
		if lost.Hits() != 10 || retries != lost.Hits() {
			t.Errorf("%d requests kept an earlier id, want the %d whose answer was lost", retries, lost.Hits())
		}
	})
}

// TestBridgeRestartsUnderFire restarts our side while clients signal. With
// Synapse: TestBurstsThroughGoodAndBadDays.
func TestBridgeRestartsUnderFire(t *testing.T) {
	b := fakeBed(t)
	b.start()
	alice := b.person("alice", true)
	room := alice.room(b.service.Bot())
	if err := b.ghost("_sip_fire").EnterRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	alice.memberOf(room, "conf", time.Hour) // as clients do before they signal
	g := b.ghost("_sip_fire")
	var wg sync.WaitGroup
	const messages = 60
	wg.Go(func() {
		for n := range messages {
			alice.signal("conf", n, g)
			time.Sleep(20 * time.Millisecond)
		}
	})
	var all []heard
	for range 4 {
		again := b.ghost("_sip_fire")
		e := &ear{info: MembershipInfo{Ghost: again.user, Device: again.device, Room: room, ConfID: "conf"}}
		if err := b.service.attachConference(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		b.service.detachConference(e)
		all = append(all, e.heard()...)
		b.stop(b.service)
		b.start()
	}
	wg.Wait()
	e := b.attach(b.ghost("_sip_fire"), room, "conf")
	b.eventually(time.Minute, func() string {
		if missing := sequence(append(all[:len(all):len(all)], e.heard()...), []id.UserID{alice.user}, messages); missing != "" {
			return fmt.Sprintf("%s (%d before the last restart)", missing, len(all))
		}
		return ""
	})
}

// TestRenewalThatFallsIntoAnOutageIsMadeUpForAtOnce: five minutes without homeserver, in which our entry is due to be renewed.
func TestRenewalThatFallsIntoAnOutageIsMadeUpForAtOnce(t *testing.T) {
	for name, without := range map[string]bool{"sliding": false, "sync": true} {
		t.Run(name, func(t *testing.T) {
			inCrowdWith(t, homeserver.Config{NoSliding: without}, func(t *testing.T, c *crowd) {
				g := c.phone("_sip_renews")
				m := c.call(g, CallOptions{})
				first := m.Info().Expires
				time.Sleep(time.Until(first) - 21*time.Minute) // the earliest renewal is due in a minute, the latest in six
				outage := c.fake.Break(&homeserver.Fault{User: g.user, Drop: true})
				time.Sleep(7 * time.Minute)
				tried := func() (n int) {
					for _, r := range c.fake.Requests() {
						if r.User == g.user && r.Method == http.MethodGet && strings.Contains(r.Path, "/state/"+memberType) {
							n++ // an entry is read before it is written
						}
					}
					return n
				}
				for before := tried(); tried() == before; time.Sleep(time.Second) { // right after a try the next pause is longest
				}
				time.Sleep(4 * time.Second)
				outage.Mend()
				mended := time.Now()
				var written time.Time
				for range 60 * 10 {
					if entry := c.entryOf(g); entry.After(first) {
						written = time.Now()
						break
					}
					time.Sleep(100 * time.Millisecond)
				}
				took := written.Sub(mended)
				t.Logf("our entry is valid for longer %v after the homeserver's return", took)
				if most := 6 * time.Second; took > most || written.IsZero() { // pollers ask every five seconds
					t.Errorf("our entry was written %v after the homeserver's return, want %v at most", took, most)
				}
				if left := time.Until(c.entryOf(g)); left < 59*time.Minute {
					t.Errorf("our entry is valid for %v, want an hour", left)
				}
				c.soon(m.Leave(c.shortly(), ""))
			})
		})
	}
}

// entryOf is until when the ghost's entry is valid, as the room has it.
func (c *crowd) entryOf(g *Ghost) time.Time {
	c.Helper()
	for _, call := range memberCalls(c.fake.State(c.room, memberType, string(g.user))) {
		for _, device := range call.Devices {
			return device.expires()
		}
	}
	return time.Time{}
}
