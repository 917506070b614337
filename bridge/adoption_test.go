package bridge

import (
	"context"
	"testing"
	"time"

	"trunkline/bridge/leg"
	"trunkline/db"
	"trunkline/internal/testbed/member"
	"trunkline/sip"
)

// sql changes the database behind the bridge's back.
func (b *bed) sql(statement string, args ...any) {
	b.t.Helper()
	s, err := db.Open(b.t.Context(), b.cfg.Database.Address, b.log)
	if err != nil {
		b.t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Shared().Exec(b.ctx(), statement, args...); err != nil {
		b.t.Fatal(err)
	}
}

// left leaves a call behind whose process is gone, but not known to be until orphan is called.
func (b *bed) left() (w *talkers, orphan func()) {
	b.t.Helper()
	w = b.talkers(member.JSSDK)
	run := b.process.bridge.run
	b.fence()
	b.sql("INSERT INTO lease (owner, node, since, lease_until) VALUES ($1, 'elsewhere', 0, $2)",
		run, time.Now().Add(50*time.Second).UnixMilli())
	b.start()
	w.silence()
	return w, func() { b.sql("DELETE FROM lease WHERE owner = $1", run) }
}

func TestSweepLeavesLegsThatAreLetGo(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	w := b.talkers(member.JSSDK)
	first := b.process.bridge
	first.suspendLegs()
	if err := first.sweepRooms(b.ctx()); err != nil {
		t.Error(err)
	}
	if n := len(b.ghosts()); n != 1 || w.call.Ended() != "" {
		t.Errorf("%d ghosts after the sweep, the call ended: %q; want both to wait for the next process", n, w.call.Ended())
	}
	b.fence() // suspending twice is not a thing
	w.silence()
	begun := time.Now()
	b.start()
	w.back(begun)
	w.clean()
}

// The database commits the adoption, its answer is lost, and the minute's sweep comes before the next round.
func TestAdoptionWhoseAnswerIsLostIsMadeUpFor(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	w, _ := b.left()
	next := b.process.bridge
	for _, table := range []string{"leg", "membership"} {
		b.sql("UPDATE "+table+" SET owner = $1, epoch = epoch + 1", next.run)
	}
	if err := next.sweepRooms(b.ctx()); err != nil {
		t.Error(err)
	}
	if n := len(b.ghosts()); n != 1 {
		t.Fatalf("%d ghosts after the sweep, want the one of the leg that is not resumed yet", n)
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := next.takeOver(ctx, false); err != nil {
		t.Fatal(err)
	}
	w.back(begun)
	w.clean()
}

// The memberships cannot be read in the round that adopts the leg.
func TestAdoptedLegIsResumedInALaterRound(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	w, orphan := b.left()
	next := b.process.bridge
	b.sql(`INSERT INTO membership (ghost, room_id, conf_id, device_id, session_id, created_by_us, expires_at, leg_id, owner, epoch)
		VALUES ('@bad:x', '!bad:x', '', '', '', FALSE, 'no number', 'bad', $1, 1)`, next.run)
	orphan()
	b.await("the row to be adopted", func() bool {
		rows, err := next.store.Legs(b.ctx(), next.run)
		return err == nil && len(rows) == 1
	})
	time.Sleep(renewEvery) // a round that fails
	if n := len(next.liveLegs()); n != 0 {
		t.Errorf("%d legs although the memberships cannot be read", n)
	}
	begun := time.Now()
	b.sql("DELETE FROM membership WHERE leg_id = 'bad'")
	w.back(begun)
	w.clean()
}

// A row that meets a bug must not end the process, for it would do so at every start, and with it all other calls.
func TestRowThatMeetsABugEndsItsLegOnly(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]func(*Bridge){
		"before its leg is there": func(b *Bridge) { b.routes = nil },
		"in its leg's first step": func(b *Bridge) { b.performed = func(leg.Effect) { panic("a bug") } },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			w := b.talkers(member.JSSDK)
			b.stop()
			b.startWith(plant)
			b.await("the phone to be told", func() bool { return w.call.Ended() != "" })
			b.await("rows and ghosts to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
			b.await("the ports to be given back", func() bool { return b.process.bridge.phones.Stats().RTPPorts == 0 })
			if n := len(b.process.bridge.liveLegs()); n != 0 {
				t.Errorf("%d legs are left", n)
			}
		})
	}
}

// A phone waits for the change of its call to be saved, but not for a leg that will not read of it.
func TestNobodyWaitsForALegThatDoesNotHear(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, after func(*bed, *actor) // what the leg does before the event and after it; it reads all at once
	}{
		"that goes on": {func(*bed, *actor) {}, func(*bed, *actor) {}},
		"that another process has taken over": {
			func(_ *bed, a *actor) { a.inbox.Put(func() { a.displaced = true }) }, func(*bed, *actor) {},
		},
		"whose trunk has refused the call": {
			func(_ *bed, a *actor) { a.inbox.Put(func() { a.order = &order{over: a.call} }) },
			func(_ *bed, a *actor) { a.inbox.Put(func() { a.order = nil }) },
		},
		"of a process that is stopped": {
			func(b *bed, a *actor) { b.process.stop(); <-b.process.bridge.suspended }, func(*bed, *actor) {},
		},
		"that ends": {
			func(_ *bed, a *actor) { a.tell(leg.PhoneHungUp) }, func(*bed, *actor) {},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			b.person("alice", member.JSSDK, true)
			b.dial(b.phone("2"), goodNumber)
			a := b.onlyLeg()
			reads, waits := make(chan struct{}), make(chan struct{})
			a.inbox.Put(func() { close(waits); <-reads })
			<-waits
			c.before(b, a)
			saved := make(chan struct{})
			a.hear(a.call, sip.DialogChanged{Saved: saved})
			c.after(b, a)
			close(reads)
			select {
			case <-saved:
			case <-time.After(patience):
				t.Error("the phone waits")
			}
		})
	}
}
