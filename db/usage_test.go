package db

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var errUsedUp = errors.New("used up")

// wanted is a leg that somebody has ordered, and what it counts under.
func wanted(name string) (Leg, []UsageKey) {
	l := Leg{
		ID: name, Owner: "run-1", Epoch: 1, Direction: "out", Trunk: "carrier", DialledBy: "@anna:x", RoomID: "!room", Created: morning,
		Dialog: "{}", Options: "{}", State: "{}",
	}
	return l, []UsageKey{{"2026-11-22", "user", "@anna:x"}, {"2026-11-22", "room", "!room"}, {"2026-11-22", "trunk", "carrier"}, {"2026-11-22", "all", ""}}
}

// used reads what counts under the keys.
func used(t *testing.T, s *Store, keys []UsageKey) (list []Usage) {
	t.Helper()
	for _, key := range keys {
		rows, err := s.usage(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, rows...)
	}
	return list
}

func TestCallIsCountedWhileItRunsAndSettledOnceWhenItsRowGoes(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		lease(t, s, "run-1")
		l, keys := wanted("leg-1")
		longest, err := s.Reserve(t.Context(), l, keys, func(before []Usage) (time.Duration, error) {
			for _, u := range before {
				if u.Calls+u.Running != 0 || u.Talked+u.Reserved != 0 {
					t.Errorf("used before the first call: %+v", u)
				}
			}
			return time.Hour, nil
		})
		if err != nil || longest != time.Hour {
			t.Fatalf("Reserve = %v, %v", longest, err)
		}
		want := make([]Usage, 0, 4)
		for _, key := range keys {
			want = append(want, Usage{key, 1, 0, 1, time.Hour})
		}
		if diff := cmp.Diff(want, used(t, s, keys)); diff != "" {
			t.Errorf("while it runs (-want +got):\n%s", diff)
		}
		l.UsageDay, l.Reserved, l.Answered = keys[0].Day, time.Hour, morning
		if err := s.PutLeg(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		other, _ := wanted("leg-2")
		other.DialledBy = "@ben:x"
		if err := s.PutLeg(t.Context(), other); err != nil { // it does not count, and settles nothing
			t.Fatal(err)
		}
		for _, gone := range []Leg{other, l, l} { // deleting twice is not an error, and settles once
			if err := s.DeleteLeg(t.Context(), gone.ID, gone.hold(), "phone hung up", morning.Add(7*time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range want {
			want[i] = Usage{keys[i], 1, 7 * time.Minute, 0, 0}
		}
		if diff := cmp.Diff(want, used(t, s, keys)); diff != "" {
			t.Errorf("when it is over (-want +got):\n%s", diff)
		}
	})
}

func TestRefusedCallIsNotCounted(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		lease(t, s, "run-1")
		l, keys := wanted("leg-1")
		if _, err := s.Reserve(t.Context(), l, keys, func([]Usage) (time.Duration, error) { return 0, errUsedUp }); !errors.Is(err, errUsedUp) {
			t.Fatalf("Reserve = %v, want what decide said", err)
		}
		if list := used(t, s, keys); len(list) != 0 {
			t.Errorf("counted although it was refused: %+v", list)
		}
		legs, err := s.Legs(t.Context(), "run-1")
		if err != nil || len(legs) != 0 {
			t.Errorf("rows of a refused call: %v, %v", legs, err)
		}
		l.Owner = "run-2" // a process without a lease may not count either
		if _, err := s.Reserve(t.Context(), l, keys, func([]Usage) (time.Duration, error) { return 0, nil }); !errors.Is(err, ErrFenced) {
			t.Errorf("Reserve without a lease = %v, want %v", err, ErrFenced)
		}
		if list := used(t, s, keys); len(list) != 0 {
			t.Errorf("counted although it was fenced: %+v", list)
		}
	})
}

func TestCallOfYesterdayThatRunsIsSeenAndEndsOnItsDay(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		lease(t, s, "run-1")
		l, keys := wanted("leg-1")
		allow := func([]Usage) (time.Duration, error) { return time.Hour, nil }
		if _, err := s.Reserve(t.Context(), l, keys, allow); err != nil {
			t.Fatal(err)
		}
		next, later := wanted("leg-2")
		for i := range later {
			later[i].Day = "2026-11-23"
		}
		running := 0
		_, err := s.Reserve(t.Context(), next, later, func(before []Usage) (time.Duration, error) {
			for _, u := range before {
				running += u.Running
			}
			return 0, nil
		})
		if err != nil || running != 4 {
			t.Errorf("of yesterday's call %d scopes are seen, %v; want 4", running, err)
		}
		if err := s.DeleteLeg(t.Context(), "leg-1", l.hold(), "", morning); err != nil {
			t.Fatal(err)
		}
		for _, u := range used(t, s, later) {
			if u.Day != "2026-11-23" || u.Running != 1 {
				t.Errorf("after yesterday's call has ended: %+v", u)
			}
		}
		if err := s.Forget(t.Context(), morning.AddDate(0, 0, 3), morning); err != nil {
			t.Fatal(err)
		}
		if left := used(t, s, append(keys, later...)); len(left) != 8 { // each key finds the one row that runs
			t.Errorf("after Forget: %+v", left)
		}
	})
}

// Two processes, and many orders at once: no more are taken than there is room for.
func TestOrdersAtOnceCannotShareTheLastCall(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		const limit, tries = 5, 20
		first := open(t, address)
		lease(t, first, "run-1")
		second := first
		if first.path == "" { // SQLite has one process only
			second = open(t, address)
		}
		var taken atomic.Int64
		var group sync.WaitGroup
		for i := range tries {
			s := []*Store{first, second}[i%2]
			group.Go(func() {
				l, keys := wanted(fmt.Sprint("leg-", i))
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				_, err := s.Reserve(ctx, l, keys, func(before []Usage) (time.Duration, error) {
					for _, u := range before {
						if u.Running >= limit {
							return 0, errUsedUp
						}
					}
					return time.Minute, nil
				})
				switch {
				case err == nil:
					taken.Add(1)
				case !errors.Is(err, errUsedUp):
					t.Errorf("Reserve: %v", err)
				}
			})
		}
		group.Wait()
		if n := taken.Load(); n != limit {
			t.Errorf("%d orders taken, want %d", n, limit)
		}
	})
}

func TestLegThatGoesOverAnotherTrunkCountsThere(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		lease(t, s, "run-1")
		l, keys := wanted("leg-1")
		if _, err := s.Reserve(t.Context(), l, keys, func([]Usage) (time.Duration, error) { return time.Hour, nil }); err != nil {
			t.Fatal(err)
		}
		l.UsageDay, l.Reserved, l.Trunk = keys[0].Day, time.Hour, "another"
		there := UsageKey{keys[0].Day, "trunk", "another"}
		if _, err := s.MoveLeg(t.Context(), l, func([]Usage) (time.Duration, error) { return 0, errUsedUp }); !errors.Is(err, errUsedUp) {
			t.Fatalf("MoveLeg to a trunk that is used up: %v", err)
		}
		want := []Usage{{keys[0], 1, 0, 1, time.Hour}, {keys[1], 1, 0, 1, time.Hour}, {keys[2], 1, 0, 1, time.Hour}, {keys[3], 1, 0, 1, time.Hour}}
		if diff := cmp.Diff(want, used(t, s, keys)); diff != "" {
			t.Errorf("after a move that may not be (-want +got):\n%s", diff)
		}
		for _, allowed := range []time.Duration{20 * time.Minute, 10 * time.Minute} { // the second one finds it moved already
			longest, err := s.MoveLeg(t.Context(), l, func(before []Usage) (time.Duration, error) {
				if len(before) != 1 || before[0].UsageKey != there || before[0].Running != 0 {
					t.Errorf("used there before: %+v", before)
				}
				return allowed, nil
			})
			if err != nil || longest != 20*time.Minute {
				t.Fatalf("MoveLeg = %v, %v, want 20 minutes", longest, err)
			}
		}
		keys = append(keys, there)
		want = []Usage{
			{keys[0], 1, 0, 1, 20 * time.Minute},
			{keys[1], 1, 0, 1, 20 * time.Minute},
			{keys[2], 0, 0, 0, 0},
			{keys[3], 1, 0, 1, 20 * time.Minute},
			{there, 1, 0, 1, 20 * time.Minute},
		}
		if diff := cmp.Diff(want, used(t, s, keys)); diff != "" {
			t.Errorf("after the move (-want +got):\n%s", diff)
		}
		if err := s.DeleteLeg(t.Context(), l.ID, l.hold(), "phone busy", morning); err != nil {
			t.Fatal(err)
		}
		for i := range want {
			want[i].Running, want[i].Reserved = 0, 0
		}
		if diff := cmp.Diff(want, used(t, s, keys)); diff != "" {
			t.Errorf("when it is over (-want +got):\n%s", diff)
		}
		if _, err := s.MoveLeg(t.Context(), l, func([]Usage) (time.Duration, error) { return 0, nil }); !errors.Is(err, ErrFenced) {
			t.Errorf("MoveLeg of a row that is gone: %v, want %v", err, ErrFenced)
		}
	})
}

func TestUsageOfADayHasCallsThatStillRun(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		lease(t, s, "run-1")
		l, keys := wanted("leg-1")
		if _, err := s.Reserve(t.Context(), l, keys, func([]Usage) (time.Duration, error) { return time.Hour, nil }); err != nil {
			t.Fatal(err)
		}
		read := func(want ...Usage) {
			t.Helper()
			got, err := s.UsageOn(t.Context(), keys[0].Day, morning.Add(9*time.Minute))
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("UsageOn, %v (-want +got):\n%s", err, diff)
			}
		}
		all := func(talked time.Duration, running int, reserved time.Duration) (list []Usage) {
			for _, i := range []int{3, 1, 2, 0} {
				list = append(list, Usage{keys[i], 1, talked, running, reserved})
			}
			return list
		}
		read(all(0, 1, time.Hour)...)
		l.UsageDay, l.Reserved, l.Answered = keys[0].Day, time.Hour, morning.Add(2*time.Minute)
		if err := s.PutLeg(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		read(all(7*time.Minute, 1, time.Hour)...)
		if err := s.DeleteLeg(t.Context(), l.ID, l.hold(), "phone hung up", morning.Add(8*time.Minute)); err != nil {
			t.Fatal(err)
		}
		read(all(6*time.Minute, 0, 0)...)
		if other, err := s.UsageOn(t.Context(), "2026-11-23", morning); len(other) != 0 || err != nil {
			t.Errorf("another day: %v, %v", other, err)
		}
	})
}
