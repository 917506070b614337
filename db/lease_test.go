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
	pair(t, func(t *testing.T, first, second *Store) {
		one := leaseOf(t, first, LeaseOptions{Run: "run-1", Node: "host"})
		fillRows(t, first, "run-1")
		ctx, cancel := context.WithTimeout(t.Context(), 10*acquirePause)
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
		one := leaseOf(t, first, LeaseOptions{Run: "run-1", Node: "host-1", Life: short})
		two := leaseOf(t, second, LeaseOptions{Run: "run-2", Node: "host-2", Life: short})
		fillRows(t, first, "run-1")
		time.Sleep(2 * short)
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
