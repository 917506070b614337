package matrixcall

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"trunkline/internal/testbed/postgres"
	"trunkline/internal/testbed/synapse"
)

// TestClientThatMissedAMessageIsNudged: the homeserver forgets to wake a client for our answer.
func TestClientThatMissedAMessageIsNudged(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, g, _ := oneCall(b)
		alice.poll = 30 * time.Second
		alice.listen()
		for _, test := range []struct {
			kind string
			want uint64
		}{{"m.call.answer", 1}, {"m.call.negotiate", 1}, {"m.call.candidates", 0}} {
			time.Sleep(time.Minute)
			nudges, before := b.service.metrics.Nudges.Load(), len(alice.hears())
			b.fake.LoseWakeUps(1)
			if err := b.service.SendToDevice(t.Context(), g, to(test.kind, candidates(0), alice)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2*nudgeAfter + 100*time.Millisecond)
			nudges = b.service.metrics.Nudges.Load() - nudges
			if heard := uint64(len(alice.hears()) - before); nudges != test.want || heard != test.want {
				t.Errorf("%s: %d nudges, %d messages heard, want %d of each", test.kind, nudges, heard, test.want)
			}
		}
	})
}

// TestAnswersPassedByRequestsOfTheClientAreHeard has clients send as they do in a renegotiation: their candidates are under
// way while our answer is. Without nudges five in a hundred answers come when the client's poll ends, half a minute later.
func TestAnswersPassedByRequestsOfTheClientAreHeard(t *testing.T) {
	synapse.Wanted(t)
	b := realBedWith(t, postgres.New(t)) // SQLite writes one after the other
	b.start()
	const clients, rounds = 4, 60
	var people []*person
	for n := range clients {
		p := b.person(fmt.Sprintf("busy%d", n), false)
		p.poll = 30 * time.Second
		p.listen()
		people = append(people, p)
	}
	room := people[0].room(b.service.Bot())
	g := b.ghost("_sip_passed")
	if err := g.EnterRoom(t.Context(), room); err != nil {
		t.Fatal(err)
	}
	b.attach(g, room, "conf")
	worst, late := time.Duration(0), 0
	for n := range rounds {
		began := time.Now()
		var wg sync.WaitGroup
		for _, p := range people {
			for range 4 {
				wg.Go(func() { p.signal("conf", n, g) })
			}
			wg.Go(func() {
				if err := b.service.SendToDevice(t.Context(), g, to("m.call.answer", candidates(n), p)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, p := range people {
			b.eventually(35*time.Second, func() string {
				if got := len(answersAmong(p.hears())); got <= n {
					return fmt.Sprintf("%s heard %d answers, want %d", p.user, got, n+1)
				}
				return ""
			})
			took := answersAmong(p.hears())[n].at.Sub(began)
			worst = max(worst, took)
			if took > nudgeAfter {
				late++
			}
		}
	}
	t.Logf("%d answers heard, %d of them after more than %v, the last after %v", clients*rounds, late, nudgeAfter, worst)
	if worst > 5*time.Second {
		t.Errorf("an answer was heard after %v: its receiver was left asleep", worst)
	}
}

func answersAmong(all []heard) (answers []heard) {
	for _, h := range all {
		if h.kind == "m.call.answer" {
			answers = append(answers, h)
		}
	}
	return answers
}
