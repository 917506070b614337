package db

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/postgres"
)

// journal runs one for s until the test ends.
func journal(t *testing.T, s *Store) *Journal {
	t.Helper()
	j := NewJournal(s, "run-1", slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- j.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-over; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return j
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func flush(t *testing.T, j *Journal) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := j.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

// legNamed has few fields, so that a failure is readable.
func legNamed(id, phase string) Leg {
	return Leg{ID: id, Owner: "run-1", Epoch: 1, Phase: phase, Created: morning, Options: "{}", State: "{}"}
}

// outage is what a database may do: each way makes one that is there, gone, and back.
type outage struct {
	address     string
	begin, over func()
}

func outages(t *testing.T, test func(t *testing.T, o outage)) {
	t.Run("stopped", func(t *testing.T) {
		c := postgres.New(t)
		address, err := c.CreateDatabase("calls")
		if err != nil {
			t.Fatal(err)
		}
		test(t, outage{address, func() { must(t, c.StopServer()) }, func() { must(t, c.StartServer(context.Background())) }})
	})
	t.Run("hanging", func(t *testing.T) {
		p := postgres.NewProxy(t, freshDatabase(t))
		test(t, outage{p.Address, p.Hang, p.GoOn})
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCallsGoOnWhileTheDatabaseIsAway(t *testing.T) {
	outages(t, func(t *testing.T, o outage) {
		s, ctx := open(t, o.address), t.Context()
		lease(t, s, "run-1")
		j := journal(t, s)
		must(t, j.SaveLeg(ctx, legNamed("talks", "answered")))
		must(t, j.SaveLeg(ctx, legNamed("ends", "answered")))
		if fresh, err := j.MarkTransaction(ctx, "1"); !fresh || err != nil {
			t.Errorf("MarkTransaction = %t, %v", fresh, err)
		}
		o.begin()
		for i := range 5 {
			must(t, j.PutLeg(legNamed("talks", fmt.Sprint("hold ", i))))
		}
		must(t, j.PutLeg(legNamed("ends", "hold")))
		must(t, j.DeleteLeg("ends", Hold{"run-1", 1}, "phone hung up", morning))
		must(t, j.SaveSyncToken(ctx, "@g:x", "t1"))
		await(t, "the outage to be noticed", j.Away)
		begun := time.Now()
		if err := j.SaveLeg(ctx, legNamed("new", "answered")); !errors.Is(err, ErrAway) || time.Since(begun) >= attemptPatience {
			t.Errorf("SaveLeg while the database is away = %v after %v, want ErrAway at once", err, time.Since(begun))
		}
		for txn, want := range map[string]bool{"1": false, "2": true} {
			if fresh, err := j.MarkTransaction(ctx, txn); fresh != want || err != nil {
				t.Errorf("MarkTransaction(%s) = %t, %v; want %t", txn, fresh, err, want)
			}
		}
		if st := j.Stats(); st.Merged < 3 || st.Waiting > 6 || st.Away == 0 || st.Outages != 1 {
			t.Errorf("Stats = %+v; want puts of one row merged, one outage", st)
		}
		o.over()
		flush(t, j)
		if j.Away() {
			t.Error("still away after everything was written")
		}
		legs, err := s.Legs(ctx, "run-1")
		if diff := cmp.Diff([]Leg{legNamed("talks", "hold 4")}, legs); err != nil || diff != "" {
			t.Errorf("legs: %v (-want +got):\n%s", err, diff)
		}
		if h, err := s.History(ctx, 9); len(h) != 1 || h[0].LegID != "ends" || err != nil {
			t.Errorf("History = %+v, %v; want the leg that ended", h, err)
		}
		if fresh, err := s.MarkTransaction(ctx, "2"); fresh || err != nil {
			t.Errorf("the database does not know transaction 2: %v", err)
		}
		must(t, j.SaveLeg(ctx, legNamed("new", "answered")))
	})
}

// Writes of tables that are not ours (olm's) are done at once, or wait behind what waits of the same row.
func TestForeignWritesWaitForTheDatabase(t *testing.T) {
	outages(t, func(t *testing.T, o outage) {
		s, ctx := open(t, o.address), t.Context()
		lease(t, s, "run-1")
		j := journal(t, s)
		must(t, j.SaveGhostDevice(ctx, "@g:x", "DEV"))
		put := func(token string) {
			t.Helper()
			must(t, j.Write(ctx, "foreign", func(ctx context.Context) error { return s.SaveSyncToken(ctx, "@g:x", token) }))
		}
		put("1")
		if token, err := s.SyncToken(ctx, "@g:x"); token != "1" || err != nil {
			t.Errorf("a write while the database is there is not done when it returns: %q, %v", token, err)
		}
		o.begin()
		for _, token := range []string{"2", "3", "4"} {
			put(token)
		}
		if !j.Away() {
			t.Error("the outage went unnoticed")
		}
		if st := j.Stats(); st.Waiting > 2 {
			t.Errorf("%d writes of one row wait", st.Waiting)
		}
		o.over()
		put("5")
		flush(t, j)
		if token, err := s.SyncToken(ctx, "@g:x"); token != "5" || err != nil {
			t.Errorf("after the outage the table has %q, %v; want the last", token, err)
		}
		refused := errors.New("refused")
		if err := j.Write(ctx, "foreign", func(context.Context) error { return fmt.Errorf("%w: %w", refused, ErrFenced) }); !errors.Is(err, refused) {
			t.Errorf("Write = %v, want why it is not done", err)
		}
	})
}

// A save under way when the database goes is refused, too, and sooner than a phone loses patience.
func TestSaveIntoAnOutageIsRefused(t *testing.T) {
	outages(t, func(t *testing.T, o outage) {
		s := open(t, o.address)
		lease(t, s, "run-1")
		j := journal(t, s)
		must(t, j.SaveLeg(t.Context(), legNamed("a", "answered")))
		o.begin()
		begun := time.Now()
		err := j.SaveLeg(t.Context(), legNamed("b", "answered"))
		if took := time.Since(begun); !errors.Is(err, ErrAway) || took > 4*attemptPatience {
			t.Errorf("SaveLeg = %v after %v, want ErrAway within %v", err, took, 4*attemptPatience)
		}
		o.over()
		flush(t, j)
	})
}

// Merging must not change what the database holds in the end: random writes, all at once or one by one, end alike.
func TestMergedWritesEndAsIfDoneOneByOne(t *testing.T) {
	direct := open(t, "sqlite:"+filepath.Join(t.TempDir(), "direct.db"))
	queued := open(t, "sqlite:"+filepath.Join(t.TempDir(), "queued.db"))
	lease(t, direct, "run-1")
	lease(t, queued, "run-1")
	chance := rand.New(rand.NewPCG(1, 2))
	ctx := t.Context()
	j := NewJournal(queued, "run-1", slog.New(slog.DiscardHandler))
	for round := range 30 {
		merged := j.Stats().Merged
		for step := range 40 {
			id := fmt.Sprint("leg ", chance.IntN(4))
			if chance.IntN(3) > 0 {
				l := legNamed(id, fmt.Sprint(round, ".", step))
				must(t, errors.Join(direct.PutLeg(ctx, l), j.PutLeg(l)))
			} else {
				hold, why := Hold{"run-1", 1}, fmt.Sprint("cause ", round, step)
				must(t, errors.Join(direct.DeleteLeg(ctx, id, hold, why, morning), j.DeleteLeg(id, hold, why, morning)))
			}
		}
		if j.Stats().Merged == merged {
			t.Errorf("round %d: nothing was merged", round)
		}
		run, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { j.Run(run) })
		flush(t, j)
		stop()
		wg.Wait()
		want, err1 := direct.Legs(ctx, "run-1")
		got, err2 := queued.Legs(ctx, "run-1")
		wantH, err3 := direct.History(ctx, 1000)
		gotH, err4 := queued.History(ctx, 1000)
		must(t, errors.Join(err1, err2, err3, err4))
		if diff := cmp.Diff(want, got) + cmp.Diff(wantH, gotH); diff != "" {
			t.Fatalf("round %d (-one by one +merged):\n%s", round, diff)
		}
	}
}

func TestJournalIsBounded(t *testing.T) {
	j := NewJournal(nil, "run-1", slog.New(slog.DiscardHandler))
	for i := range maxWaiting {
		must(t, j.PutLeg(legNamed(fmt.Sprint(i), "")))
	}
	if err := j.PutLeg(legNamed("one more", "")); !errors.Is(err, ErrFull) {
		t.Errorf("one more = %v, want ErrFull", err)
	}
	must(t, j.PutLeg(legNamed("7", "again"))) // takes the place of one that waits
	if st := j.Stats(); st.Refused != 1 || st.Waiting != maxWaiting {
		t.Errorf("Stats = %+v", st)
	}
}

// A transaction that was answered with an error comes again: then it is new, even if the database has gone away meanwhile.
func TestTransactionThatWasNotTakenIsNewWhenRepeated(t *testing.T) {
	t.Run("request given up", func(t *testing.T) {
		p := postgres.NewProxy(t, freshDatabase(t))
		s := open(t, p.Address)
		lease(t, s, "run-1")
		j := journal(t, s)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if fresh, err := j.MarkTransaction(gone, "9"); fresh || err == nil {
			t.Errorf("MarkTransaction of a request that is over = %t, %v; want an error", fresh, err)
		}
		p.Hang()
		must(t, j.PutLeg(legNamed("x", "y")))
		await(t, "the outage to be noticed", j.Away)
		for _, want := range []bool{true, false} {
			if fresh, err := j.MarkTransaction(t.Context(), "9"); fresh != want || err != nil {
				t.Errorf("MarkTransaction while the database is away = %t, %v; want %t", fresh, err, want)
			}
		}
		p.GoOn()
	})
	t.Run("too many writes wait", func(t *testing.T) {
		j := NewJournal(nil, "run-1", slog.New(slog.DiscardHandler)) // nobody runs it
		j.Report(errors.New("no answer"))
		for i := range maxWaiting {
			must(t, j.PutLeg(legNamed(fmt.Sprint(i), "")))
		}
		for range 2 {
			if fresh, err := j.MarkTransaction(t.Context(), "9"); fresh || !errors.Is(err, ErrFull) {
				t.Errorf("MarkTransaction = %t, %v; want ErrFull", fresh, err)
			}
		}
	})
}

// What the database refuses for good must not stop the writes behind it.
func TestRefusedWriteDoesNotBlock(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		lease(t, s, "run-1")
		_, err := s.db.Exec(t.Context(), "CREATE UNIQUE INDEX one_caller ON leg (caller)")
		must(t, err)
		j := journal(t, s)
		must(t, errors.Join(j.PutLeg(legNamed("a", "")), j.PutLeg(legNamed("b", ""))))
		c := legNamed("c", "")
		c.Caller = "another"
		must(t, j.SaveLeg(t.Context(), c))
		if st := j.Stats(); st.Rejected != 1 || st.Written != 2 || j.Away() {
			t.Errorf("Stats = %+v, away %t; want one rejected", st, j.Away())
		}
	})
}

func TestFlushDoesNotWaitForWhatComesLater(t *testing.T) {
	s := open(t, "sqlite:"+filepath.Join(t.TempDir(), "busy.db"))
	lease(t, s, "run-1")
	j := journal(t, s)
	done := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			if j.Stats().Waiting < 100 { // never none
				if err := j.SaveSyncToken(t.Context(), id.UserID(fmt.Sprint("@g", i, ":x")), "t"); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	await(t, "the queue to fill", func() bool { return j.Stats().Waiting > 50 })
	flush(t, j)
	close(done)
	busy.Wait()
	flush(t, j)
}

func TestFencedWriteEndsTheJournal(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		j := NewJournal(s, "run-1", slog.New(slog.DiscardHandler))
		must(t, j.PutLeg(legNamed("a", ""))) // by a run without a lease
		if err := j.Run(t.Context()); !errors.Is(err, ErrFenced) {
			t.Errorf("Run = %v, want ErrFenced", err)
		}
	})
}

// late is the write that the journal took last, done when it is called: its statement had been given up, lay in the network, and arrives.
func late(t *testing.T, j *Journal) (arrives func()) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	w := *j.queue[len(j.queue)-1]
	return func() {
		t.Helper()
		if err := w.do(t.Context(), j.store, w.number); err != nil {
			t.Errorf("a write of %s that arrives late = %v, want nothing: it was done in time", w.row, err)
		}
	}
}

// drained has the journal write what waits.
func drained(t *testing.T, j *Journal) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- j.Run(ctx) }()
	flush(t, j)
	stop()
	must(t, <-over)
}

func TestWriteThatArrivesLateChangesNothing(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s, ctx := open(t, address), t.Context()
		lease(t, s, "run-1")
		j := NewJournal(s, "run-1", slog.New(slog.DiscardHandler))
		phase := func(want ...string) {
			t.Helper()
			legs, err := s.Legs(ctx, "run-1")
			must(t, err)
			var got []string
			for _, l := range legs {
				got = append(got, l.ID+" "+l.Phase)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("legs (-want +got):\n%s", diff)
			}
		}
		rooms := func(want ...string) {
			t.Helper()
			list, err := s.Memberships(ctx, "run-1")
			must(t, err)
			var got []string
			for _, m := range list {
				got = append(got, m.RoomID+" "+m.SessionID)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("memberships (-want +got):\n%s", diff)
			}
		}
		save := func(room, session string) func() {
			t.Helper()
			m := Membership{Ghost: "@g:x", RoomID: room, SessionID: session, LegID: "a", Owner: "run-1", Epoch: 1}
			saved := make(chan error, 1)
			waiting := j.Stats().Waiting
			go func() { saved <- j.SaveMembership(ctx, m) }()
			await(t, "it to wait", func() bool { return j.Stats().Waiting > waiting })
			arrives := late(t, j)
			drained(t, j)
			must(t, <-saved)
			return arrives
		}
		must(t, j.PutLeg(legNamed("a", "one")))
		first := late(t, j)
		drained(t, j)
		first() // what is written twice is written once
		phase("a one")
		must(t, j.PutLeg(legNamed("a", "two")))
		second := late(t, j)
		drained(t, j)
		first()
		phase("a two")
		inOne := save("!one", "s1")
		again := save("!one", "s2")
		inOne()
		rooms("!one s2")
		must(t, j.DeleteMembership("@g:x", "!one", Hold{"run-1", 1}))
		leave := late(t, j)
		drained(t, j)
		inOne()
		again()
		rooms()
		save("!two", "s3")
		inOne() // the leg has moved on, and would be in two rooms for the next process
		leave()
		rooms("!two s3")
		must(t, j.DeleteLeg("a", Hold{"run-1", 1}, "phone hung up", morning))
		end := late(t, j)
		drained(t, j)
		second()
		end()
		phase()
		must(t, j.PutLeg(legNamed("b", "one"))) // other rows are written as ever
		drained(t, j)
		first()
		phase("b one")
	})
}

// Both are under way at once, as when a network heals: the put has seen the row, and no removal, when the row goes.
func TestWriteThatMeetsARemovalBringsNothingBack(t *testing.T) {
	t.Parallel()
	s, ctx := open(t, freshDatabase(t)), t.Context()
	lease(t, s, "run-1")
	by := Hold{"run-1", 1}
	m := Membership{Ghost: "@g:x", RoomID: "!r", SessionID: "s", LegID: "a", Owner: "run-1", Epoch: 1}
	for name, tt := range map[string]struct {
		put    func(ctx context.Context, number int64) error
		remove func(ctx context.Context, number int64) error
	}{
		"leg": {
			func(ctx context.Context, number int64) error { return s.putLeg(ctx, legNamed("a", "one"), number) },
			func(ctx context.Context, number int64) error {
				return s.deleteLeg(ctx, "a", by, "over", morning, number)
			},
		},
		"membership": {
			func(ctx context.Context, number int64) error { return s.putMembership(ctx, m, number) },
			func(ctx context.Context, number int64) error {
				return s.deleteMembership(ctx, "@g:x", "!r", by, number)
			},
		},
	} {
		must(t, tt.put(ctx, unnumbered))
		put := make(chan error, 1)
		must(t, s.db.DoTxn(ctx, nil, func(inside context.Context) error {
			err := tt.remove(inside, 8)
			go func() { put <- tt.put(ctx, 7) }()
			await(t, "the put to wait", func() bool {
				var waiting int
				must(t, s.db.QueryRow(ctx, `SELECT COUNT(*) FROM pg_stat_activity
					WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting))
				return waiting == 1
			})
			return err
		}))
		must(t, <-put)
		legs, err := s.Legs(ctx, "run-1")
		must(t, err)
		rooms, err := s.Memberships(ctx, "run-1")
		must(t, err)
		if len(legs)+len(rooms) > 0 {
			t.Errorf("%s: %v and %v are back", name, legs, rooms)
		}
	}
}

// The writes of a run that has adopted a row are numbered by themselves.
func TestAdoptedRowIsWrittenByItsNewOwner(t *testing.T) {
	pair(t, func(t *testing.T, first, second *Store) {
		ctx := t.Context()
		one := lease(t, first, "run-1")
		j := NewJournal(first, "run-1", slog.New(slog.DiscardHandler))
		for i := range 5 {
			must(t, j.PutLeg(legNamed("a", fmt.Sprint(i))))
			drained(t, j)
		}
		must(t, one.Release())
		two := leaseOf(t, second, LeaseOptions{Run: "run-2", Node: "node of run-1"})
		legs, err := two.Adopt(ctx)
		if err != nil || len(legs) != 1 {
			t.Fatalf("Adopt = %+v, %v; want the leg", legs, err)
		}
		next := NewJournal(second, "run-2", slog.New(slog.DiscardHandler))
		legs[0].Phase = "resumed"
		must(t, next.PutLeg(legs[0]))
		drained(t, next)
		if legs, err := second.Legs(ctx, "run-2"); err != nil || len(legs) != 1 || legs[0].Phase != "resumed" {
			t.Errorf("legs of the new owner: %+v, %v", legs, err)
		}
		must(t, second.Forget(ctx, morning, morning))
	})
}

// A node that was cut off comes back: what waited there is older than what its successor has written.
func TestWritesOfAFormerOwnerAreRefused(t *testing.T) {
	pair(t, func(t *testing.T, first, second *Store) {
		ctx := t.Context()
		lease(t, first, "run-1")
		lease(t, second, "run-2")
		must(t, second.SaveGhostDevice(ctx, "@g:x", "DEV"))
		olm := func(ctx context.Context) error { return first.SaveSyncToken(ctx, "@g:x", "olm of run-1") }
		for what, put := range map[string]func(*Journal) error{
			"token":   func(j *Journal) error { return j.SaveSyncToken(ctx, "@g:x", "token of run-1") },
			"foreign": func(j *Journal) error { j.Report(errors.New("no answer")); return j.Write(ctx, "foreign", olm) },
			"device": func(j *Journal) error {
				go func() { _ = j.SaveGhostDevice(ctx, "@g:x", "LATE") }()
				await(t, "it to wait", func() bool { return j.Stats().Waiting == 1 })
				return nil
			},
		} {
			j := NewJournal(first, "run-1", slog.New(slog.DiscardHandler))
			must(t, put(j))
			_, err := second.db.Exec(ctx, "DELETE FROM lease WHERE owner = 'run-1'") // as an adoption does
			must(t, err)
			must(t, second.SaveSyncToken(ctx, "@g:x", "newer"))
			if err := j.Run(ctx); !errors.Is(err, ErrFenced) {
				t.Errorf("%s: Run = %v, want ErrFenced", what, err)
			}
			token, err1 := second.SyncToken(ctx, "@g:x")
			device, err2 := second.GhostDevice(ctx, "@g:x")
			if token != "newer" || device != "DEV" || err1 != nil || err2 != nil {
				t.Errorf("%s: token %q, device %q, %v, %v; want the successor's", what, token, device, err1, err2)
			}
			lease(t, first, "run-1")
		}
		j := NewJournal(first, "run-3", slog.New(slog.DiscardHandler))
		if err := j.Write(ctx, "foreign", olm); !errors.Is(err, ErrFenced) {
			t.Errorf("Write without a lease = %v, want ErrFenced", err)
		}
	})
}

func TestStartWaitsForTheDatabase(t *testing.T) {
	c := postgres.New(t)
	address, err := c.CreateDatabase("calls")
	must(t, err)
	must(t, c.StopServer())
	var said sayings
	opened := make(chan error, 1)
	go func() {
		s, err := OpenPatiently(t.Context(), address, slog.New(slog.NewTextHandler(&said, nil)))
		if err == nil {
			err = s.Close()
		}
		opened <- err
	}()
	await(t, "a word about the waiting", func() bool { return strings.Contains(said.String(), "waiting for the database") })
	must(t, c.StartServer(t.Context()))
	select {
	case err := <-opened:
		must(t, err)
	case <-time.After(20 * time.Second):
		t.Error("the database is back and OpenPatiently still waits")
	}
	if _, err := OpenPatiently(t.Context(), c.URI("no such database"), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a database that does not exist was opened")
	}
}

type sayings struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *sayings) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *sayings) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// Whoever waits for a write does so beside others: the order is that in which they were begun, not that in which they are waited for.
func TestWritesAreDoneInTheOrderInWhichTheyBegan(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s := open(t, address)
		lease(t, s, "run-1")
		j := journal(t, s)
		first, second := j.BeginSave(legNamed("a", "dialling")), j.BeginSave(legNamed("a", "talking"))
		if err := errors.Join(second(t.Context()), first(t.Context())); err != nil {
			t.Fatal(err)
		}
		legs, err := s.Legs(t.Context(), "run-1")
		if err != nil || len(legs) != 1 || legs[0].Phase != "talking" {
			t.Errorf("%+v, %v, want the leg as it was begun to be saved last", legs, err)
		}
	})
}

// A machine that is busy for a moment, as at the first start, is no reason to call anybody.
func TestDatabaseThatIsAwayForLongIsAnErrorOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		j := NewJournal(nil, "run-1", slog.New(slog.NewTextHandler(&log, nil)))
		gone := errors.New("connection refused")
		for range 2 {
			log.Reset()
			j.Report(gone)
			time.Sleep(longAway - time.Millisecond)
			j.Report(gone)
			if got := log.String(); strings.Count(got, "level=WARN") != 1 || strings.Contains(got, "level=ERROR") {
				t.Errorf("before %v the log has\n%s", longAway, got)
			}
			time.Sleep(time.Millisecond)
			j.Report(gone)
			time.Sleep(time.Minute)
			j.Report(gone)
			if got := log.String(); strings.Count(got, "level=ERROR") != 1 {
				t.Errorf("after it the log has\n%s", got)
			}
			j.Report(nil)
		}
		if n := j.Stats().Outages; n != 2 {
			t.Errorf("%d outages, want 2", n)
		}
	})
}
