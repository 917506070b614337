package db

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.mau.fi/util/dbutil"
)

func TestAPINLeadsToOneRoomUntilItIsTakenAway(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s, ctx := open(t, address), t.Context()
		add := func(sum, room string) bool {
			t.Helper()
			added, err := s.AddPIN(ctx, PIN{Sum: sum, RoomID: room, CreatedBy: "@anna:example.org", Created: time.UnixMilli(1)})
			if err != nil {
				t.Fatal(err)
			}
			return added
		}
		leads := func(sum, want string) {
			t.Helper()
			if got, err := s.RoomOfPIN(ctx, sum); got != want || err != nil {
				t.Errorf("RoomOfPIN(%s) = %q, %v, want %q", sum, got, err, want)
			}
		}
		leads("a", "")
		if !add("a", "!one") || !add("b", "!one") || !add("c", "!two") {
			t.Error("a new PIN was not added")
		}
		if add("a", "!two") {
			t.Error("a PIN was given to a second room")
		}
		leads("a", "!one")
		leads("c", "!two")
		if n, err := s.PINs(ctx, "!one"); n != 2 || err != nil {
			t.Errorf("PINs = %d, %v, want 2", n, err)
		}
		replace := func(sum string) bool {
			t.Helper()
			added, err := s.ReplacePINs(ctx, PIN{Sum: sum, RoomID: "!one", Created: time.UnixMilli(1)})
			if err != nil {
				t.Fatal(err)
			}
			return added
		}
		if replace("c") {
			t.Error("a PIN of another room took the place of others")
		}
		leads("b", "!one")
		leads("c", "!two")
		if !replace("d") {
			t.Error("a new PIN was not put in the place of others")
		}
		for sum, room := range map[string]string{"a": "", "b": "", "c": "!two", "d": "!one"} {
			leads(sum, room)
		}
		if err := s.DeletePINs(ctx, "!one"); err != nil {
			t.Fatal(err)
		}
		leads("d", "")
		leads("c", "!two")
	})
}

// Each wrong PIN counts, however many calls guess at once, and on whichever node; what is over counts no more.
func TestGuessesAddUpInTheDatabase(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		nodes := []*Store{open(t, address), open(t, address)}
		now := time.UnixMilli(1_800_000_000_000)
		spend := []PINSpending{{"number", time.Minute}, {"trunk", time.Second}}
		var group sync.WaitGroup
		for i := range 20 {
			group.Go(func() {
				if err := nodes[i%2].SpendPINBudget(t.Context(), now, spend); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		must(t, nodes[0].KnowNumber(t.Context(), now, "known", KnownNumber{"!room", now.Add(time.Hour)}, 1))
		want := func(stored map[string]time.Time) {
			t.Helper()
			got, err := nodes[1].PINBudget(t.Context(), []string{"number", "trunk", "known", "nobody"})
			if diff := cmp.Diff(stored, got); diff != "" || err != nil {
				t.Errorf("PINBudget: %v (-want +got):\n%s", err, diff)
			}
		}
		want(map[string]time.Time{"number": now.Add(20 * time.Minute), "trunk": now.Add(20 * time.Second), "known": now.Add(time.Hour)})
		must(t, nodes[0].SpendPINBudget(t.Context(), now.Add(time.Minute), spend))
		want(map[string]time.Time{"number": now.Add(21 * time.Minute), "trunk": now.Add(61 * time.Second), "known": now.Add(time.Hour)})
		must(t, nodes[0].Forget(t.Context(), now, now.Add(30*time.Minute)))
		want(map[string]time.Time{"known": now.Add(time.Hour)})
	})
}

// A database far away is slow to answer, and a caller waits: whatever counts for one is asked for at once.
func TestWhatCountsForACallerIsAskedForAtOnce(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s, now := open(t, address), time.UnixMilli(1_800_000_000_000)
		must(t, s.SpendPINBudget(t.Context(), now, []PINSpending{{"number", time.Minute}, {"trunk", time.Second}}))
		asked := &questions{DatabaseLogger: dbutil.NoopLogger}
		s.db.Log = asked
		got, err := s.PINBudget(t.Context(), []string{"number", "trunk", "all", "room"})
		want := map[string]time.Time{"number": now.Add(time.Minute), "trunk": now.Add(time.Second)}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("PINBudget: %v (-want +got):\n%s", err, diff)
		}
		if asked.n != 1 {
			t.Errorf("asked the database %d times, want once", asked.n)
		}
	})
}

// questions counts what a database is asked.
type questions struct {
	dbutil.DatabaseLogger
	n int
}

func (q *questions) QueryTiming(_ context.Context, method, _ string, _ []any, _ int, _ time.Duration, _ error) {
	if strings.HasPrefix(method, "Query") { // not the end of its rows
		q.n++
	}
}

// Only so many numbers are kept that know a room's PIN, whoever forges more; and none becomes one of another room's while that lasts.
func TestNumbersThatKnowAPINAreKeptByRoom(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s, now := open(t, address), time.UnixMilli(1_800_000_000_000)
		soon, late := now.Add(time.Minute), now.Add(time.Hour)
		for _, c := range []struct {
			at         time.Time
			name, room string
			until      time.Time
			want       KnownNumber
		}{
			{now, "anna", "!one", soon, KnownNumber{"!one", soon}},
			{now, "ben", "!one", late, KnownNumber{"!one", late}},
			{now, "carl", "!one", late, KnownNumber{}}, // two are as many as may
			{now, "carl", "!two", late, KnownNumber{"!two", late}},
			{now, "ben", "!two", late.Add(1), KnownNumber{"!one", late}},
			{now, "anna", "!one", soon.Add(time.Second), KnownNumber{"!one", soon.Add(time.Second)}},
			{soon.Add(time.Minute), "dora", "!one", late, KnownNumber{"!one", late}}, // anna's time is over
			{soon.Add(time.Minute), "anna", "!two", late, KnownNumber{"!two", late}},
		} {
			must(t, s.KnowNumber(t.Context(), c.at, c.name, KnownNumber{c.room, c.until}, 2))
			if got, err := s.KnownNumber(t.Context(), c.name); err != nil || got.Room != c.want.Room || !got.Until.Equal(c.want.Until) {
				t.Errorf("%s of %s: %v, %v, want %v", c.name, c.room, got, err, c.want)
			}
		}
	})
}
