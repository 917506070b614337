package db

import (
	"context"
	"errors"
	"testing"
	"time"
)

// short is a lease's life where a test waits for its end.
const short = 400 * time.Millisecond

// pair opens two stores on one database, as two processes do.
func pair(t *testing.T, test func(t *testing.T, first, second *Store)) {
	stores(t, func(t *testing.T, address string) {
		test(t, open(t, address), open(t, address))
	})
}

// fillRows gives run two legs and a membership.
func fillRows(t *testing.T, s *Store, run string) (legs [2]Leg, m Membership) {
	t.Helper()
	legs = [2]Leg{fullLeg(), fullLeg()}
	legs[1].ID, legs[1].Created = "leg-2", legs[0].Created.Add(time.Second)
	m = Membership{Ghost: "@_sip_1:x", RoomID: "!r", LegID: "leg-1", Owner: run, Epoch: 1}
	for i := range legs {
		legs[i].Owner, legs[i].Epoch = run, 1
		if err := s.PutLeg(t.Context(), legs[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutMembership(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return legs, m
}

// adopted fails unless legs are both legs of fillRows in their second epoch, owned by run.
func adopted(t *testing.T, s *Store, run string, legs []Leg) {
	t.Helper()
	if len(legs) != 2 || legs[0].ID != "leg-1" || legs[1].ID != "leg-2" {
		t.Fatalf("adopted %+v, want both legs, oldest first", legs)
	}
	for _, l := range legs {
		if l.Owner != run || l.Epoch != 2 {
			t.Errorf("leg %s has owner %s and epoch %d, want %s and 2", l.ID, l.Owner, l.Epoch, run)
		}
	}
	ms, err := s.Memberships(t.Context(), run)
	if err != nil || len(ms) != 1 || ms[0].Epoch != 2 {
		t.Errorf("memberships of %s: %+v, %v; want one in its second epoch", run, ms, err)
	}
}

// fenced fails unless everything that run could write is refused, and leaves no trace.
func fenced(t *testing.T, s *Store, legs [2]Leg, m Membership) {
	t.Helper()
	ctx := t.Context()
	zombie, fresh, other := legs[0], fullLeg(), m
	zombie.Phase = "zombie"
	fresh.ID, fresh.Owner = "leg-3", zombie.Owner
	other.Ghost = "@_sip_2:x"
	for what, err := range map[string]error{
		"PutLeg":                s.PutLeg(ctx, zombie),
		"PutLeg of a new leg":   s.PutLeg(ctx, fresh),
		"DeleteLeg":             s.DeleteLeg(ctx, zombie.ID, zombie.hold(), "zombie", morning),
		"PutMembership":         s.PutMembership(ctx, m),
		"PutMembership, new":    s.PutMembership(ctx, other),
		"DeleteMembership":      s.DeleteMembership(ctx, m.Ghost, m.RoomID, Hold{m.Owner, m.Epoch}),
		"DeleteLeg, gone since": s.DeleteLeg(ctx, "leg-0", zombie.hold(), "", morning),
	} {
		if want := what != "DeleteLeg, gone since"; errors.Is(err, ErrFenced) != want {
			t.Errorf("%s by the old owner = %v; ErrFenced wanted: %t", what, err, want)
		}
	}
	if history, err := s.History(ctx, 9); len(history) != 0 || err != nil {
		t.Errorf("the old owner wrote history: %+v, %v", history, err)
	}
}

func TestSecondProcessByMistakeGetsNothing(t *testing.T) {
	t.Parallel() // it waits
	pair(t, func(t *testing.T, first, second *Store) {
		one := leaseOf(t, first, LeaseOptions{Run: "run-1", Node: "host"})
		fillRows(t, first, "run-1")
		ctx, cancel := context.WithTimeout(t.Context(), 50*acquirePause)
		defer cancel()
		if _, err := second.Acquire(ctx, LeaseOptions{Run: "run-2", Node: "host"}); !errors.Is(err, ErrTaken) {
			t.Errorf("Acquire of the same node = %v, want ErrTaken", err)
		}
		two := leaseOf(t, second, LeaseOptions{Run: "run-2", Node: "elsewhere"})
		if legs, err := two.Adopt(t.Context()); len(legs) != 0 || err != nil {
			t.Errorf("Adopt beside a living process = %v, %v; want nothing", legs, err)
		}
		if err := one.Renew(t.Context()); err != nil {
			t.Errorf("Renew of the first = %v", err)
		}
		if legs, err := first.Legs(t.Context(), "run-1"); len(legs) != 2 || err != nil {
			t.Errorf("the first has %d legs, %v; want 2", len(legs), err)
		}
	})
}

func TestSuccessorOnTheSameNodeAdoptsAtOnce(t *testing.T) {
	pair(t, func(t *testing.T, first, second *Store) {
		one := leaseOf(t, first, LeaseOptions{Run: "run-1", Node: "host"})
		legs, m := fillRows(t, first, "run-1")
		if err := one.Release(); err != nil { // as the end of its process does
			t.Fatal(err)
		}
		two := leaseOf(t, second, LeaseOptions{Run: "run-2", Node: "host"})
		got, err := two.Adopt(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		adopted(t, second, "run-2", got)
		fenced(t, first, legs, m)
		if again, err := two.Adopt(t.Context()); len(again) != 0 || err != nil {
			t.Errorf("a second Adopt = %v, %v; want nothing more", again, err)
		}
	})
}

func TestLapsedLeaseIsAdoptedAndItsHolderFenced(t *testing.T) {
	pair(t, func(t *testing.T, first, second *Store) {
		ctx := t.Context()
		begun := time.Now()
		one := leaseOf(t, first, LeaseOptions{Run: "run-1", Node: "host-1", Life: short})
		two := leaseOf(t, second, LeaseOptions{Run: "run-2", Node: "host-2", Life: short})
		legs, m := fillRows(t, first, "run-1")
		var got []Leg
		for len(got) == 0 {
			if time.Since(begun) > 20*time.Second {
				t.Fatal("the lapsed lease was never adopted")
			}
			time.Sleep(short / 8)
			if err := two.Renew(ctx); err != nil {
				t.Fatal(err)
			}
			var err error
			if got, err = two.Adopt(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begun); took < short {
			t.Errorf("adopted after %v, before the lease of %v had lapsed", took, short)
		}
		adopted(t, second, "run-2", got)
		if err := one.Renew(ctx); !errors.Is(err, ErrFenced) {
			t.Errorf("Renew of the one that returns = %v, want ErrFenced", err)
		}
		if _, err := one.Adopt(ctx); !errors.Is(err, ErrFenced) {
			t.Errorf("Adopt of the one that returns = %v, want ErrFenced", err)
		}
		fenced(t, first, legs, m)
	})
}

// After an outage of the database all leases have lapsed. Who comes first must not take the others' legs.
func TestLeaseThatLapsedForEverybodyIsNobodysProof(t *testing.T) {
	pair(t, func(t *testing.T, first, second *Store) {
		ctx := t.Context()
		one := leaseOf(t, first, LeaseOptions{Run: "run-1", Node: "host-1"})
		two := leaseOf(t, second, LeaseOptions{Run: "run-2", Node: "host-2"})
		fillRows(t, first, "run-1")
		_, err := second.db.Exec(ctx, "UPDATE lease SET since = since - $1, lease_until = lease_until - $1", (2 * LeaseLife).Milliseconds()) // so long it was away
		must(t, err)
		err1 := two.Renew(ctx)
		if legs, err := two.Adopt(ctx); len(legs) != 0 || errors.Join(err, err1) != nil {
			t.Errorf("Adopt right after the outage = %v, %v; want nothing", legs, errors.Join(err, err1))
		}
		if err := one.Renew(ctx); err != nil {
			t.Errorf("Renew after the outage = %v", err)
		}
	})
}

// Rows that an earlier version of the program left have owners that never had a lease.
func TestRowsWithoutLeaseAreAdopted(t *testing.T) {
	pair(t, func(t *testing.T, first, second *Store) {
		leaseOf(t, first, LeaseOptions{Run: "run-1", Node: "host-1"})
		fillRows(t, first, "run-1")
		if _, err := first.db.Exec(t.Context(), "DELETE FROM lease"); err != nil {
			t.Fatal(err)
		}
		two := leaseOf(t, second, LeaseOptions{Run: "run-2", Node: "host-2"})
		got, err := two.Adopt(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		adopted(t, second, "run-2", got)
	})
}

// A process that hangs keeps its node's lock; its lease lapses all the same.
func TestNodeOfAHangingProcessIsFreeWhenItsLeaseLapses(t *testing.T) {
	pair(t, func(t *testing.T, first, second *Store) {
		begun := time.Now()
		leaseOf(t, first, LeaseOptions{Run: "run-1", Node: "host", Life: short})
		leaseOf(t, second, LeaseOptions{Run: "run-2", Node: "host", Life: short})
		if took := time.Since(begun); took < short {
			t.Errorf("the node was free after %v, want %v at least", took, short)
		}
	})
}

// lock holds the lock of a row as a process does that froze in the middle of a transaction. What it returns ends that.
func lock(t *testing.T, address string, statements ...string) (thaw func()) {
	t.Helper()
	tx, err := open(t, address).db.RawDB.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range statements {
		if _, err := tx.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = tx.Rollback() }) // the server may have ended it
	return func() {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
}

// orphans leaves the rows of fillRows behind with a run that has no lease any more.
func orphans(t *testing.T, address string) {
	t.Helper()
	s := open(t, address)
	lease(t, s, "run-1")
	fillRows(t, s, "run-1")
	if _, err := s.db.Exec(t.Context(), "DELETE FROM lease"); err != nil {
		t.Fatal(err)
	}
}

func TestLockedRowDoesNotKeepOthersFromBeingAdopted(t *testing.T) {
	for name, tt := range map[string]struct {
		statement   string
		first       string // the leg that is adopted although another row is locked
		memberships int    // with it
	}{
		"a leg without membership": {"UPDATE leg SET phase = '' WHERE id = 'leg-2'", "leg-1", 1},
		"a leg with one":           {"UPDATE leg SET phase = '' WHERE id = 'leg-1'", "leg-2", 0},
		"a membership":             {"UPDATE membership SET conf_id = ''", "leg-2", 0},
	} {
		t.Run(name, func(t *testing.T) {
			address := freshDatabase(t)
			orphans(t, address)
			thaw := lock(t, address, "SET LOCAL idle_in_transaction_session_timeout = 0", tt.statement)
			s := open(t, address)
			two := lease(t, s, "run-2")
			legs, err := two.Adopt(t.Context())
			if err != nil || len(legs) != 1 || legs[0].ID != tt.first {
				t.Fatalf("Adopt = %+v, %v; want %s, which nobody locks", legs, err, tt.first)
			}
			if ms, err := s.Memberships(t.Context(), "run-2"); err != nil || len(ms) != tt.memberships {
				t.Errorf("memberships beside it: %+v, %v; want %d", ms, err, tt.memberships)
			}
			thaw()
			rest, err := two.Adopt(t.Context())
			if err != nil || len(rest) != 1 {
				t.Fatalf("Adopt = %+v, %v; want the other leg, too", rest, err)
			}
			legs, err = s.Legs(t.Context(), "run-2")
			if err != nil {
				t.Fatal(err)
			}
			adopted(t, s, "run-2", legs)
		})
	}
}

// The process never comes back, and the server hears nothing of its end, as when a host loses its power.
func TestLocksOfAFrozenProcessEnd(t *testing.T) {
	t.Parallel()
	address := freshDatabase(t)
	orphans(t, address)
	lock(t, address, "UPDATE leg SET phase = ''")
	s := open(t, address)
	two := lease(t, s, "run-2")
	begun := time.Now()
	var legs []Leg
	for len(legs) == 0 {
		if time.Since(begun) > time.Minute {
			t.Fatal("the rows stay locked")
		}
		time.Sleep(short)
		var err error
		if legs, err = two.Adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	adopted(t, s, "run-2", legs)
}

// A server whose clock is twenty minutes behind takes over from one that failed.
func TestClockThatIsSetBackDelaysNoAdoption(t *testing.T) {
	pair(t, func(t *testing.T, first, second *Store) {
		ctx := t.Context()
		leaseOf(t, first, LeaseOptions{Run: "run-1", Node: "host-1", Life: short})
		two := leaseOf(t, second, LeaseOptions{Run: "run-2", Node: "host-2", Life: short})
		living := leaseOf(t, second, LeaseOptions{Run: "run-3", Node: "host-3", Life: time.Minute / 2})
		fillRows(t, first, "run-1")
		if _, err := second.db.Exec(ctx, "UPDATE lease SET since = since + $1, lease_until = lease_until + $1", (20 * time.Minute).Milliseconds()); err != nil {
			t.Fatal(err)
		}
		if err := living.Renew(ctx); err != nil {
			t.Fatal(err)
		}
		var got []Leg
		for begun := time.Now(); len(got) == 0; time.Sleep(short / 8) {
			if time.Since(begun) > 20*time.Second {
				t.Fatal("the dead process's legs were never adopted")
			}
			if err := two.Renew(ctx); err != nil {
				t.Fatal(err)
			}
			var err error
			if got, err = two.Adopt(ctx); err != nil {
				t.Fatal(err)
			}
			if len(got) > 0 && time.Since(begun) < short/2 {
				t.Error("adopted by a process that is not known to be steady by the new clock")
			}
		}
		adopted(t, second, "run-2", got)
		if err := living.Renew(ctx); err != nil {
			t.Errorf("Renew of one that lives = %v", err)
		}
	})
}
