package matrixcall

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// TestBurstsThroughGoodAndBadDays lets five clients signal five ghosts at once, and the ghosts all the clients, again
// and again: at rest, while the homeserver stands still for three seconds, while it dies and comes back, and while the
// bridge restarts on the same store. Every message must come once and in order. (Bursts are what loses messages when
// they are read by transaction: see ADR 2.)
func TestBurstsThroughGoodAndBadDays(t *testing.T) {
	b := realBed(t)
	w := newAssembly(b, 5, 5)

	w.judgeRest()

	slow := w.rounds(12, 300*time.Millisecond, func() {
		if err := b.synapse.Pause(); err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Second)
		if err := b.synapse.Resume(); err != nil {
			t.Error(err)
		}
	})
	w.allIsThere()
	toGhosts, toClients := w.latencies(slow)
	t.Logf("homeserver stands still for 3 s: to ghosts %s, to clients %s", spread(toGhosts), spread(toClients))

	dead := w.rounds(12, 300*time.Millisecond, func() {
		if err := b.synapse.Kill(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if err := b.synapse.StartProcess(t.Context()); err != nil {
			t.Error(err)
		}
	})
	w.allIsThere()
	toGhosts, toClients = w.latencies(dead)
	t.Logf("homeserver dies and comes back: to ghosts %s, to clients %s", spread(toGhosts), spread(toClients))
	m := &b.service.metrics
	t.Logf("%d polls, %d kicks, %d rescued, %d poll failures, %d send retries", m.Polls.Load(), m.Kicks.Load(), m.PollRescues.Load(), m.PollFailures.Load(), m.SendRetries.Load())
	if m.PollFailures.Load() == 0 || m.SendRetries.Load() == 0 {
		t.Error("the outage was not noticed: the test does not test")
	}

	w.silent = true // a ghost cannot send while there is no bridge
	again := w.rounds(12, 300*time.Millisecond, func() {
		for range 2 {
			b.stop(b.service)
			time.Sleep(500 * time.Millisecond)
			w.enter()
			time.Sleep(500 * time.Millisecond)
		}
	})
	w.allIsThere()
	toGhosts, _ = w.latencies(again)
	t.Logf("bridge restarts twice: to ghosts %s", spread(toGhosts))
}

// What is asserted of 95 of 100 messages at rest. CI shares its two cores with Synapse and the clients, which a burst keeps
// busy for a quarter of a second: so the speed that is wanted must show in the best of some tries, two bursts each. All of
// them together have more time: later than that means that something waits for a time-out.
const (
	atRest    = 300 * time.Millisecond
	atRestAll = 2 * time.Second
	restTries = 12
)

// judgeRest measures bursts at rest, each direction for itself: 25 messages at once keep a homeserver busy for most of it.
func (w *assembly) judgeRest() {
	t := w.bed
	t.Helper()
	for _, way := range []struct {
		name              string
		silent, listening bool
	}{{"to ghosts", true, false}, {"to clients", false, true}} {
		w.silent, w.listening = way.silent, way.listening
		began, best, tries := time.Now(), time.Hour, 0
		for ; tries < 4 || tries < restTries && best > atRest; tries++ {
			since := w.rounds(2, 500*time.Millisecond, nil)
			w.allIsThere()
			best = min(best, percentile(w.latest(since), 95))
		}
		all := w.latest(began)
		t.Logf("at rest, %s, %d messages: %s; best of %d tries p95 %d ms", way.name, len(all), spread(all), tries, best.Milliseconds())
		if late := percentile(all, 95); best > atRest || late > atRestAll {
			t.Errorf("at rest, %s, 95 of 100 messages came within %v, at best within %v; want %v and %v", way.name, late, best, atRestAll, atRest)
		}
	}
	w.silent, w.listening = false, false
}

// latest is how long each message took since some moment, whichever way it went.
func (w *assembly) latest(since time.Time) []time.Duration {
	toGhosts, toClients := w.latencies(since)
	return append(toGhosts, toClients...)
}

// assembly is some clients and ghosts in one call, all talking to all.
type assembly struct {
	bed    *bed
	room   id.RoomID
	people []*person
	names  []string // of the ghosts
	ears   [][]*ear // of each ghost, one per life of the bridge

	silent    bool        // ghosts say nothing
	listening bool        // people say nothing
	byPeople  []time.Time // when they spoke
	byGhosts  []time.Time

	mu     sync.Mutex
	ghosts []*Ghost // guarded by mu
}

func newAssembly(b *bed, people, ghosts int) *assembly {
	b.Helper()
	w := &assembly{bed: b, ears: make([][]*ear, ghosts)}
	for n := range people {
		p := b.person(fmt.Sprintf("client%d", n), n%2 == 0) // the others speak plain
		p.client.DefaultHTTPRetries, p.client.DefaultHTTPBackoff = 10, 200*time.Millisecond
		p.listen()
		w.people = append(w.people, p)
	}
	for n := range ghosts {
		w.names = append(w.names, fmt.Sprintf("_sip_burst%d", n))
	}
	w.enter()
	for _, p := range w.people {
		p.memberOf(w.room, "conf", time.Hour) // as clients do before they signal
	}
	return w
}

// enter starts the bridge and brings all ghosts into the call.
func (w *assembly) enter() {
	b := w.bed
	b.Helper()
	b.start()
	if w.room == "" {
		w.room = w.people[0].room(b.service.Bot())
		for _, p := range w.people[1:] {
			p.enter(w.people[0], w.room)
		}
	}
	var ghosts []*Ghost
	for n, name := range w.names {
		g := b.ghost(name)
		if err := g.EnterRoom(b.Context(), w.room); err != nil {
			b.Fatal(err)
		}
		ghosts = append(ghosts, g)
		w.ears[n] = append(w.ears[n], b.attach(g, w.room, "conf"))
	}
	w.mu.Lock()
	w.ghosts = ghosts
	w.mu.Unlock()
}

func (w *assembly) present() []*Ghost {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ghosts
}

// rounds lets everybody speak to everybody n times; in the middle something happens.
func (w *assembly) rounds(n int, pause time.Duration, middle func()) (began time.Time) {
	began = time.Now()
	var event sync.WaitGroup
	for round := range n {
		if round == n/3 && middle != nil {
			event.Go(middle)
		}
		w.round()
		time.Sleep(pause)
	}
	event.Wait()
	return began
}

func (w *assembly) round() {
	b, ghosts := w.bed, w.present()
	var wg sync.WaitGroup
	if !w.listening {
		n := len(w.byPeople)
		w.byPeople = append(w.byPeople, time.Now())
		for _, p := range w.people {
			wg.Go(func() { p.signal("conf", n, ghosts...) })
		}
	}
	if !w.silent {
		n := len(w.byGhosts)
		w.byGhosts = append(w.byGhosts, time.Now())
		for _, g := range ghosts {
			wg.Go(func() {
				if err := b.service.SendToDevice(b.Context(), g, to("m.call.candidates", candidates(n), w.people...)); err != nil {
					b.Errorf("%s, round %d: %v", g.user, n, err)
				}
			})
		}
	}
	wg.Wait()
}

// allIsThere waits until everybody has heard everything, once and in order.
func (w *assembly) allIsThere() {
	b := w.bed
	b.Helper()
	var people, ghosts []id.UserID
	for _, p := range w.people {
		people = append(people, p.user)
	}
	for n, g := range w.present() {
		ghosts = append(ghosts, g.user)
		b.eventually(20*time.Second, func() string {
			if wrong := sequence(w.heardBy(n), people, len(w.byPeople)); wrong != "" {
				return g.user.String() + ": " + wrong
			}
			return ""
		})
	}
	for _, p := range w.people {
		b.eventually(20*time.Second, func() string {
			if wrong := sequence(p.hears(), ghosts, len(w.byGhosts)); wrong != "" {
				return p.user.String() + ": " + wrong
			}
			return ""
		})
	}
}

func (w *assembly) heardBy(ghost int) (all []heard) {
	for _, e := range w.ears[ghost] {
		all = append(all, e.heard()...)
	}
	return all
}

// latencies returns how long each message took that was sent after some moment, from when its sender began.
func (w *assembly) latencies(since time.Time) (toGhosts, toClients []time.Duration) {
	for n := range w.ears {
		toGhosts = append(toGhosts, w.late(w.heardBy(n), w.byPeople, since)...)
	}
	for _, p := range w.people {
		toClients = append(toClients, w.late(p.hears(), w.byGhosts, since)...)
	}
	return toGhosts, toClients
}

func (w *assembly) late(messages []heard, began []time.Time, since time.Time) (late []time.Duration) {
	for _, h := range messages {
		var content struct{ Seq int }
		if err := json.Unmarshal(h.content, &content); err != nil {
			w.bed.Fatal(err)
		}
		if !began[content.Seq].Before(since) {
			late = append(late, h.at.Sub(began[content.Seq]))
		}
	}
	return late
}

func percentile(durations []time.Duration, percent int) time.Duration {
	if len(durations) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(durations))
	return sorted[min(len(sorted)*percent/100, len(sorted)-1)]
}

func spread(durations []time.Duration) string {
	ms := func(percent int) int64 { return percentile(durations, percent).Milliseconds() }
	return fmt.Sprintf("p50 %d, p95 %d, max %d ms", ms(50), ms(95), ms(100))
}
