package matrixcall

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// TestNothingIsLostWhenSynapseDies kills the homeserver, twice, while messages
// go both ways.
func TestNothingIsLostWhenSynapseDies(t *testing.T) {
	b := realBed(t)
	b.start()
	alice := b.person("alice", true)
	alice.client.DefaultHTTPRetries, alice.client.DefaultHTTPBackoff = 10, 200*time.Millisecond
	alice.listen()
	room := alice.room(b.service.Bot())
	g := b.ghost("_sip_outage")
	if err := g.EnterRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	e := b.attach(g, room, "conf")
	const messages = 60
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range messages {
			if err := b.service.SendToDevice(t.Context(), g, to("m.call.candidates", candidates(n), alice)); err != nil {
				t.Errorf("message %d: %v", n, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	wg.Go(func() {
		for n := range messages {
			// An ordinary client, with its own retries and a transaction id for each try.
			alice.signal("conf", n, g)
			time.Sleep(100 * time.Millisecond)
		}
	})
	for range 2 {
		time.Sleep(2 * time.Second)
		if err := b.synapse.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := b.synapse.StartProcess(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	b.eventually(30*time.Second, func() string { return sequence(e.heard(), []id.UserID{alice.user}, messages) })
	b.eventually(30*time.Second, func() string { return sequence(alice.hears(), []id.UserID{g.user}, messages) })
	m := &b.service.metrics
	t.Logf("%d poll failures, %d send retries", m.PollFailures.Load(), m.SendRetries.Load())
	if m.PollFailures.Load() == 0 || m.SendRetries.Load() == 0 {
		t.Error("the outage was not noticed: the test does not test")
	}
}

// TestBridgeRestartsUnderFire restarts our side while clients signal.
func TestBridgeRestartsUnderFire(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", true)
		room := alice.room(b.service.Bot())
		if err := b.ghost("_sip_fire").EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
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
		b.eventually(10*time.Second, func() string {
			if missing := sequence(append(all[:len(all):len(all)], e.heard()...), []id.UserID{alice.user}, messages); missing != "" {
				return fmt.Sprintf("%s (%d before the last restart)", missing, len(all))
			}
			return ""
		})
	})
}
