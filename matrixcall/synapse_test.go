package matrixcall

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// TestGhostReceivesBurstsFromTwoClients is what loses messages when they are
// read by transaction: clients that signal several ghosts at once.
func TestGhostReceivesBurstsFromTwoClients(t *testing.T) {
	b := realBed(t)
	b.start()
	alice, carol := b.person("alice", true), b.person("carol", true)
	room := alice.room(b.service.Bot())
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
		b.eventually(10*time.Second, func() string {
			return sequence(e.heard(), []id.UserID{alice.user, carol.user}, rounds)
		})
	}
	t.Logf("%d messages sent in %v, all there after %v; polls %d, kicks %d, rescued %d", 2*rounds*len(ghosts), sent,
		time.Since(began), b.service.metrics.Polls.Load(), b.service.metrics.Kicks.Load(), b.service.metrics.PollRescues.Load())
}
