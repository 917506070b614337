package db

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"modernc.org/sqlite"
)

// These tests run in bubbles, where time passes at once and exactly: the database's clock is the bubble's there.

// bubbleClock makes bubble_now() known to SQLite.
var bubbleClock = sync.OnceFunc(func() {
	sqlite.MustRegisterScalarFunction("bubble_now", 0, func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) {
		return time.Now().UnixMilli(), nil
	})
})

// timed is what a test in a bubble has.
type timed struct {
	*testing.T
	begun time.Time
	path  string
}

func inBubble(t *testing.T, test func(t *timed)) {
	bubbleClock()
	path := filepath.Join(t.TempDir(), "t.db") // made outside, for it is removed outside
	synctest.Test(t, func(t *testing.T) { test(&timed{T: t, begun: time.Now(), path: path}) })
}

// open is a process's way to the one database of the test.
func (t *timed) open() *Store {
	t.Helper()
	s, err := Open(t.Context(), "sqlite:"+t.path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.now = "bubble_now()"
	return s
}

// at sleeps until a moment of the test, and until all that is due then is done.
func (t *timed) at(moment time.Duration) {
	t.Helper()
	if late := time.Since(t.begun) - moment; late > 0 {
		t.Fatalf("it is %v already, at %v", moment+late, moment)
	}
	time.Sleep(moment - time.Since(t.begun))
	synctest.Wait()
}

// adopts looks once, and fails unless it adopts as many legs.
func (t *timed) adopts(l *Lease, want int) {
	t.Helper()
	legs, err := l.Adopt(t.Context())
	if err != nil || len(legs) != want {
		t.Errorf("at %v: adopted %d legs, %v; want %d", time.Since(t.begun), len(legs), err, want)
	}
}

const rhythm = 2 * time.Second // in which processes renew their leases

func TestLeaseLapsesExactlyALifeAfterItsLastRenewal(t *testing.T) {
	inBubble(t, func(t *timed) {
		first, second := t.open(), t.open()
		one, two := lease(t.T, first, "run-1"), lease(t.T, second, "run-2")
		fillRows(t.T, first, "run-1")
		for now := rhythm; now <= 20*time.Second; now += rhythm {
			t.at(now)
			must(t.T, errors.Join(one.Renew(t.Context()), two.Renew(t.Context())))
			t.adopts(two, 0)
		}
		for now := 22 * time.Second; now <= 30*time.Second; now += rhythm { // the first one is silent
			t.at(now)
			must(t.T, two.Renew(t.Context()))
			t.adopts(two, 0)
		}
		t.at(30*time.Second + time.Millisecond)
		t.adopts(two, 2)
		t.adopts(two, 0)
		if err := one.Renew(t.Context()); !errors.Is(err, ErrFenced) {
			t.Errorf("Renew of the run that was silent = %v, want ErrFenced", err)
		}
	})
}

// While the database was away nobody could renew, so nobody is dead. Who does not come back within a life then is.
func TestAfterAnOutageNobodyIsAdoptedForALife(t *testing.T) {
	const back = time.Minute
	for name, returns := range map[string]time.Duration{"in time": back + LeaseLife - time.Millisecond, "never": 0} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *timed) {
				first, second := t.open(), t.open()
				one, two := lease(t.T, first, "run-1"), lease(t.T, second, "run-2")
				fillRows(t.T, first, "run-1")
				t.at(back - time.Millisecond)
				t.adopts(two, 0) // its own lease has lapsed
				for now := back; now < back+LeaseLife; now += rhythm {
					t.at(now)
					must(t.T, two.Renew(t.Context()))
					t.adopts(two, 0)
				}
				t.at(back + LeaseLife - time.Millisecond)
				t.adopts(two, 0)
				want := 2
				if returns > 0 {
					must(t.T, one.Renew(t.Context()))
					want = 0
				}
				t.at(back + LeaseLife)
				t.adopts(two, want)
			})
		})
	}
}

// Who has the node's lock need not wait; who meets a frozen process there waits for its lease's end.
func TestSuccessorWaitsOnItsNodeAsLongAsItMust(t *testing.T) {
	for name, c := range map[string]struct {
		ends bool
		want time.Duration
	}{
		"the process ends":      {true, 3100 * time.Millisecond}, // the next look after its end
		"the process is frozen": {false, LeaseLife + acquirePause},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *timed) {
				one := leaseOf(t.T, t.open(), LeaseOptions{Run: "run-1", Node: "host"})
				second := t.open()
				var wg sync.WaitGroup
				wg.Go(func() {
					l, err := second.Acquire(t.Context(), LeaseOptions{Run: "run-2", Node: "host"})
					if took := time.Since(t.begun); err != nil || took != c.want {
						t.Errorf("Acquire = %v after %v, want it after %v", err, took, c.want)
					}
					if err == nil {
						l.Release()
					}
				})
				t.at(3050 * time.Millisecond)
				if c.ends {
					one.Release()
				}
				wg.Wait()
			})
		})
	}
}

// absent is a database that is away between two moments. It notes what was tried and when.
type absent struct {
	*timed
	from, until time.Duration
	hangs       bool // it does not answer, instead of refusing
	tried, done []string
}

func (a *absent) do(what string) func(context.Context, *Store, int64) error {
	return func(ctx context.Context, _ *Store, _ int64) error {
		now := time.Since(a.begun)
		a.tried = append(a.tried, fmt.Sprint(what, " ", now))
		if now < a.from || now >= a.until {
			a.done = append(a.done, fmt.Sprint(what, " ", now))
			return nil
		}
		if a.hangs {
			<-ctx.Done()
			return ctx.Err()
		}
		return errors.New("connection refused")
	}
}

func (a *absent) put(j *Journal, row, what string) {
	a.Helper()
	must(a.T, j.put(write{row: row, put: true, do: a.do(what)}, nil))
}

// run runs the journal until the test ends.
func (a *absent) run() *Journal {
	j := NewJournal(nil, "run-1", slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(a.Context())
	var wg sync.WaitGroup
	wg.Go(func() { must(a.T, j.Run(ctx)) })
	a.Cleanup(func() { stop(); wg.Wait() })
	return j
}

func (a *absent) triedAt(want string) {
	a.Helper()
	if diff := cmp.Diff(strings.Fields(want), strings.Fields(strings.Join(a.tried, " "))); diff != "" {
		a.Errorf("tried (-want +got):\n%s", diff)
	}
}

// A write is tried again after 0.1, 0.2, 0.4 … and at last every 2 s. What came meanwhile follows at once, in its order, rows that
// were written more than once only as they are now.
func TestWritesOfAnOutageAreTriedAtTheirTimes(t *testing.T) {
	inBubble(t, func(t *timed) {
		a := &absent{timed: t, from: time.Second, until: 10 * time.Second}
		j := a.run()
		a.put(j, "leg a", "a0")
		t.at(time.Second)
		a.put(j, "leg a", "a1")
		a.put(j, "leg b", "b1")
		synctest.Wait()
		if !j.Away() {
			t.Error("the outage is not known after the first write of it")
		}
		t.at(2 * time.Second)
		a.put(j, "leg b", "b2")
		a.put(j, "leg c", "c1")
		a.put(j, "leg a", "a2") // between two tries of a1, which it replaces
		if err := j.save(t.Context(), write{row: "leg d", do: a.do("d")}); !errors.Is(err, ErrAway) || time.Since(t.begun) != 2*time.Second {
			t.Errorf("save = %v after %v, want ErrAway at once", err, time.Since(t.begun))
		}
		t.at(9 * time.Second)
		if s := j.Stats(); s.Away != 8*time.Second || s.Waiting != 3 || s.Outages != 1 || s.Merged != 2 {
			t.Errorf("Stats = %+v", s)
		}
		t.at(20 * time.Second)
		a.triedAt(`a0 0s a1 1s a1 1.1s a1 1.3s a1 1.7s a2 2.5s a2 4.1s a2 6.1s a2 8.1s a2 10.1s b2 10.1s c1 10.1s`)
		if j.Away() || j.Stats().Waiting != 0 {
			t.Errorf("after the outage: %+v", j.Stats())
		}
		a.from, a.until = 20*time.Second, 20*time.Second+150*time.Millisecond
		a.tried = nil
		a.put(j, "leg a", "a3")
		t.at(30 * time.Second)
		a.triedAt(`a3 20s a3 20.1s a3 20.3s`) // the pauses begin anew
	})
}

// A database that hangs is given 3 s each time. Who waits for a write is told with the first of them.
func TestHangingDatabaseIsGivenUpAtItsTimes(t *testing.T) {
	inBubble(t, func(t *timed) {
		a := &absent{timed: t, until: 12 * time.Second, hangs: true}
		j := a.run()
		saved := make(chan error, 1)
		go func() { saved <- j.save(t.Context(), write{row: "leg a", put: true, do: a.do("a")}) }()
		t.at(attemptPatience - time.Millisecond)
		if j.Away() {
			t.Error("away before the first attempt is given up")
		}
		if err := <-saved; !errors.Is(err, ErrAway) || time.Since(t.begun) != attemptPatience {
			t.Errorf("save = %v after %v, want ErrAway after %v", err, time.Since(t.begun), attemptPatience)
		}
		t.at(30 * time.Second)
		a.triedAt(`a 0s a 3.1s a 6.3s a 9.7s a 13.5s`)
		if diff := cmp.Diff([]string{"a 13.5s"}, a.done); diff != "" {
			t.Errorf("done (-want +got):\n%s", diff)
		}
	})
}

// Flush waits for what waits, as long as it may.
func TestFlushInAnOutageEndsAtItsTime(t *testing.T) {
	inBubble(t, func(t *timed) {
		a := &absent{timed: t, until: 7 * time.Second}
		j := a.run()
		a.put(j, "leg a", "a")
		short, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := j.Flush(short); !errors.Is(err, ErrAway) || time.Since(t.begun) != 5*time.Second {
			t.Errorf("Flush = %v after %v, want ErrAway after 5s", err, time.Since(t.begun))
		}
		t.at(5002 * time.Millisecond) // it looks every 5 ms
		must(t.T, j.Flush(t.Context()))
		if took := time.Since(t.begun); took != 7102*time.Millisecond {
			t.Errorf("Flush returned after %v, want 2 ms after the write was done at 7.1s", took)
		}
	})
}

// A start asks again after pauses that double up to two seconds, gives a server that hangs a minute each time, and waits for nothing that
// waiting does not cure.
func TestStartAsksForTheDatabaseAtItsTimes(t *testing.T) {
	refused, broken := errors.New("connection refused"), fmt.Errorf("look: %w", ErrNewer)
	for name, c := range map[string]struct {
		server bool
		answer func(ctx context.Context, now time.Duration) error
		asked  string
		gives  error
		until  time.Duration // when the start is given up
	}{
		"away for ten seconds": {true, func(_ context.Context, now time.Duration) error {
			if now < 10*time.Second {
				return refused
			}
			return nil
		}, "0s 100ms 300ms 700ms 1.5s 3.1s 5.1s 7.1s 9.1s 11.1s", nil, time.Hour},
		"hangs": {true, func(ctx context.Context, now time.Duration) error {
			if now > 0 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}, "0s 1m0.1s", nil, time.Hour},
		"too new": {true, func(_ context.Context, now time.Duration) error {
			if now == 0 {
				return refused
			}
			return broken
		}, "0s 100ms", broken, time.Hour},
		"a file":                     {false, func(context.Context, time.Duration) error { return refused }, "0s", refused, time.Hour},
		"is not waited for any more": {true, func(context.Context, time.Duration) error { return refused }, "0s 100ms 300ms 700ms 1.5s 3.1s 5.1s 7.1s", refused, 8 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), c.until)
				defer cancel()
				begun := time.Now()
				var asked []string
				err := patiently(ctx, c.server, slog.New(slog.DiscardHandler), func(ctx context.Context) error {
					asked = append(asked, time.Since(begun).String())
					return c.answer(ctx, time.Since(begun))
				})
				if got := strings.Join(asked, " "); got != c.asked || !errors.Is(err, c.gives) {
					t.Errorf("asked at %s, and returned %v; want %s and %v", got, err, c.asked, c.gives)
				}
			})
		})
	}
}
