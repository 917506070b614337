package db

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.mau.fi/util/dbutil"

	"trunkline/internal/testbed/postgres"
)

// stores runs the test against SQLite and against a real PostgreSQL.
func stores(t *testing.T, test func(t *testing.T, address string)) {
	t.Run("sqlite", func(t *testing.T) {
		test(t, "sqlite:"+filepath.Join(t.TempDir(), "trunkline.db"))
	})
	t.Run("postgres", func(t *testing.T) {
		test(t, freshDatabase(t))
	})
}

// cluster is one PostgreSQL server for all tests of the package, started by the first that needs it.
var cluster = sync.OnceValues(func() (*postgres.Cluster, error) {
	return postgres.Start(context.Background(), nil)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if c, err := cluster(); err == nil {
		if err := c.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

var databases atomic.Int64

func freshDatabase(t *testing.T) string {
	t.Helper()
	c, err := cluster()
	if errors.Is(err, postgres.ErrNotInstalled) && os.Getenv("CI") == "" {
		t.Skip("reason: ", err) // `make test` installs it, and CI must have it
	}
	if err != nil {
		t.Fatal(err)
	}
	address, err := c.CreateDatabase(fmt.Sprint("store", databases.Add(1)))
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func open(t *testing.T, address string) *Store {
	t.Helper()
	s, err := Open(t.Context(), address, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// lease is what a process takes first. Its node is its own unless a test says otherwise.
func lease(t *testing.T, s *Store, run string) *Lease {
	t.Helper()
	return leaseOf(t, s, LeaseOptions{Run: run, Node: "node of " + run})
}

func leaseOf(t *testing.T, s *Store, o LeaseOptions) *Lease {
	t.Helper()
	l, err := s.Acquire(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Release() })
	return l
}

var morning = time.Date(2026, 11, 22, 8, 0, 0, 123e6, time.Local)

// fullLeg has every field set, so that a forgotten column shows.
func fullLeg() Leg {
	var l Leg
	fill(reflect.ValueOf(&l).Elem(), new(int64))
	l.ID, l.Owner = "leg-1", "run-1"
	return l
}

func fill(v reflect.Value, n *int64) {
	*n++
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprint("text ", *n))
	case reflect.Int, reflect.Int64:
		v.SetInt(*n * int64(time.Millisecond))
		if v.Kind() == reflect.Int {
			v.SetInt(*n)
		}
	case reflect.Uint32:
		v.SetUint(uint64(1<<32 - *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Slice:
		v.Set(reflect.ValueOf([]string{fmt.Sprint("a", *n), fmt.Sprint("b", *n)}))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(morning.Add(time.Duration(*n) * time.Millisecond)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	}
}

func TestLegComesBackAsItWasStored(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		lease(t, s, "run-1")
		want := fullLeg()
		for range 2 { // writing twice is the same as once
			if err := s.PutLeg(t.Context(), want); err != nil {
				t.Fatal(err)
			}
		}
		s.Close()
		got, err := open(t, address).Legs(t.Context(), "run-1")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]Leg{want}, got); diff != "" {
			t.Errorf("leg changed in the database (-want +got):\n%s", diff)
		}
	})
}

func TestEndedLegBecomesHistory(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		lease(t, s, "run-1")
		leg := fullLeg()
		if err := s.PutLeg(t.Context(), leg); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.DeleteLeg(t.Context(), leg.ID, leg.hold(), "phone hung up", morning); err != nil {
				t.Fatal(err)
			}
		}
		legs, err := s.Legs(t.Context(), leg.Owner)
		if err != nil || len(legs) != 0 {
			t.Errorf("Legs = %v, %v; want none", legs, err)
		}
		want := []Ended{{
			LegID: leg.ID, Direction: leg.Direction, Trunk: leg.Trunk, Caller: leg.Caller, Dialled: leg.Dialled, RoomID: leg.RoomID,
			Ghost: leg.Ghost, Created: leg.Created, Answered: leg.Answered, Ended: morning, Cause: "phone hung up",
		}}
		got, err := s.History(t.Context(), 10)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("History: %v (-want +got):\n%s", err, diff)
		}
		kept := s.Forget(t.Context(), morning, morning)
		if got, err := s.History(t.Context(), 10); len(got) != 1 || errors.Join(err, kept) != nil {
			t.Errorf("Forget removed what is not older: %v, %v", got, errors.Join(err, kept))
		}
		gone := s.Forget(t.Context(), morning.Add(time.Second), morning)
		if got, err := s.History(t.Context(), 10); len(got) != 0 || errors.Join(err, gone) != nil {
			t.Errorf("after Forget: %v, %v", got, errors.Join(err, gone))
		}
	})
}

func TestMembershipLivesUntilDeleted(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		lease(t, s, "run-1")
		want := Membership{
			Ghost: "@_sip_1:x", RoomID: "!r", ConfID: "c", DeviceID: "D", SessionID: "s", CreatedByUs: true, CallEvent: "$call",
			Expires: morning, LegID: "leg-1", Owner: "run-1", Epoch: 1,
		}
		for range 2 {
			if err := s.PutMembership(t.Context(), want); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.Memberships(t.Context(), "run-1")
		if diff := cmp.Diff([]Membership{want}, got); err != nil || diff != "" {
			t.Errorf("Memberships: %v (-want +got):\n%s", err, diff)
		}
		for range 2 {
			if err := s.DeleteMembership(t.Context(), want.Ghost, want.RoomID, Hold{"run-1", 1}); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := s.Memberships(t.Context(), "run-1"); err != nil || len(got) != 0 {
			t.Errorf("Memberships = %v, %v; want none", got, err)
		}
	})
}

func TestNewDeviceStartsWithoutSyncToken(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s, ctx := open(t, address), t.Context()
		if device, err := s.GhostDevice(ctx, "@g:x"); device != "" || err != nil {
			t.Fatalf("GhostDevice of a stranger = %q, %v", device, err)
		}
		steps := errors.Join(s.SaveGhostDevice(ctx, "@g:x", "ONE"), s.SaveSyncToken(ctx, "@g:x", "t1"))
		if token, err := s.SyncToken(ctx, "@g:x"); token != "t1" || err != nil || steps != nil {
			t.Errorf("SyncToken = %q, %v, %v; want t1", token, err, steps)
		}
		steps = s.SaveGhostDevice(ctx, "@g:x", "TWO")
		device, err := s.GhostDevice(ctx, "@g:x")
		if token, err2 := s.SyncToken(ctx, "@g:x"); device != "TWO" || token != "" || errors.Join(err, err2, steps) != nil {
			t.Errorf("after a new device: device %q, token %q, %v", device, token, errors.Join(err, err2, steps))
		}
	})
}

func TestTransactionIsFreshOnce(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		first, err1 := s.MarkTransaction(t.Context(), "7")
		second, err2 := s.MarkTransaction(t.Context(), "7")
		if !first || second || errors.Join(err1, err2) != nil {
			t.Errorf("MarkTransaction twice = %v, %v, %v; want true, false", first, second, errors.Join(err1, err2))
		}
		later := time.Now().Add(keepTransactions + time.Minute)
		err := s.Forget(t.Context(), later, later)
		if again, err2 := s.MarkTransaction(t.Context(), "7"); !again || errors.Join(err, err2) != nil {
			t.Errorf("MarkTransaction of a forgotten id = %v, %v; want it fresh", again, errors.Join(err, err2))
		}
	})
}

func TestRoutesAreReplacedAndRemoved(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s, ctx := open(t, address), t.Context()
		for _, step := range []struct{ put, want Route }{
			{Route{"100", "#a:x", "", morning}, Route{"100", "#a:x", "{}", morning}},
			{Route{"100", "!b", `{"intent":"m.ring"}`, morning.Add(time.Hour)}, Route{"100", "!b", `{"intent":"m.ring"}`, morning}},
			{Route{Number: "100"}, Route{Number: "100"}},
		} {
			if err := s.PutRoute(ctx, step.put); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Route(ctx, "100"); !cmp.Equal(got, step.want) || err != nil {
				t.Errorf("Route after putting %+v = %+v, %v; want %+v", step.put, got, err, step.want)
			}
			want := []Route{step.want}
			if step.want.Room == "" {
				want = nil
			}
			if got, err := s.Routes(ctx); !cmp.Equal(got, want) || err != nil {
				t.Errorf("Routes after putting %+v = %+v, %v; want %+v", step.put, got, err, want)
			}
		}
	})
}

func TestTrunksAreReplacedAndRemoved(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s, ctx := open(t, address), t.Context()
		other := Trunk{"a-pbx", `{"proxy":"b"}`, morning}
		for _, step := range []struct {
			put  Trunk
			want []Trunk
		}{
			{Trunk{"carrier", `{"proxy":"a"}`, morning}, []Trunk{{"carrier", `{"proxy":"a"}`, morning}}},
			{other, []Trunk{other, {"carrier", `{"proxy":"a"}`, morning}}},
			{Trunk{"carrier", `{"proxy":"c"}`, morning.Add(time.Hour)}, []Trunk{other, {"carrier", `{"proxy":"c"}`, morning}}},
			{Trunk{Name: "carrier"}, []Trunk{other}},
		} {
			if err := s.PutTrunk(ctx, step.put); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Trunks(ctx); !cmp.Equal(got, step.want) || err != nil {
				t.Errorf("Trunks after putting %+v = %+v, %v; want %+v", step.put, got, err, step.want)
			}
		}
	})
}

// A database that an earlier version of the program filled keeps its rows, with defaults for what is new.
func TestRowsOfAnEarlierVersionAreKept(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		raw, dialect, err := connect(address)
		if err != nil {
			t.Fatal(err)
		}
		wrapped, err := dbutil.NewWithDB(raw, dialect)
		if err != nil {
			t.Fatal(err)
		}
		old := &Store{db: wrapped, log: slog.New(slog.DiscardHandler)}
		steps, err := readMigrations()
		if err != nil {
			t.Fatal(err)
		}
		if err := old.migrateTo(t.Context(), steps[:1]); err != nil {
			t.Fatal(err)
		}
		_, err = wrapped.Exec(t.Context(), "INSERT INTO route (number, room, created_at) VALUES ('100', '#a:x', $1)", millis(morning))
		if err := errors.Join(err, old.Close()); err != nil {
			t.Fatal(err)
		}
		want := Route{"100", "#a:x", "{}", morning}
		if got, err := open(t, address).Route(t.Context(), "100"); !cmp.Equal(got, want) || err != nil {
			t.Errorf("Route = %+v, %v; want %+v", got, err, want)
		}
	})
}

func TestDatabaseOfANewerProgramIsRefused(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		if _, err := s.db.Exec(t.Context(), "INSERT INTO schema_version (version) VALUES (999)"); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), address, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrNewer) {
			t.Errorf("Open = %v, want ErrNewer", err)
		}
		if err := Check(t.Context(), address); !errors.Is(err, ErrNewer) {
			t.Errorf("Check = %v, want ErrNewer", err)
		}
	})
}

func TestCheckChangesNothing(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		if err := Check(t.Context(), address); err != nil {
			t.Errorf("Check of an empty database = %v", err)
		}
		if path, ok := strings.CutPrefix(address, "sqlite:"); ok {
			if _, err := os.Stat(path); err == nil {
				t.Error("Check made the database file")
			}
		}
		s := open(t, address) // migrates all steps, as on an untouched database
		if err := Check(t.Context(), address); err != nil {
			t.Errorf("Check = %v", err)
		}
		if n, err := s.schemaVersion(t.Context()); n < 1 || err != nil {
			t.Errorf("schema %d, %v", n, err)
		}
	})
}

func TestOnlyTheOwnerMayReadANewDatabaseFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trunkline.db")
	open(t, "sqlite:"+path)
	for _, name := range []string{path, path + "-wal"} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600: it holds the ghosts' keys", filepath.Base(name), info, err)
		}
	}
}

func TestAddressesAreChecked(t *testing.T) {
	for _, address := range []string{"", "mysql://x", "trunkline.db"} {
		if _, err := Open(t.Context(), address, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrScheme) {
			t.Errorf("Open(%q) = %v, want ErrScheme", address, err)
		}
	}
}
