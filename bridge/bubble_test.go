package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/db"
)

// These tests run in bubbles, where time passes at once and exactly. The database is one in memory; package db tests the real one's
// leases at exact times, too.

// ledger is the database that two processes share: their leases, and whose the rows are.
type ledger struct {
	*testing.T
	begun  time.Time
	bridge *Bridge // of run "ours"
	wg     sync.WaitGroup

	mu          sync.Mutex // guards what follows
	since       map[string]time.Time
	until       map[string]time.Time
	rows        []db.Leg
	from, back  time.Duration // away in between
	hangs       bool          // it does not answer then, instead of refusing
	losesAnswer bool          // of the next adoption
	asked       []string
}

// inLedger runs a test with a bridge that has a lease, and nothing that needs a network.
func inLedger(t *testing.T, test func(l *ledger)) {
	synctest.Test(t, func(t *testing.T) {
		l := &ledger{T: t, begun: time.Now(), since: make(map[string]time.Time), until: make(map[string]time.Time)}
		log := slog.New(slog.DiscardHandler)
		b := &Bridge{
			run: "ours", log: log, journal: db.NewJournal(nil, "ours", log), rows: l, lease: l, legs: make(map[leg.ID]*actor),
			drain: drain{over: make(chan struct{})}, awayPatience: awayPatience, orders: newOrders(),
		}
		b.ctx, b.stop = context.WithCancelCause(t.Context())
		b.metrics = &metrics{resumed: prometheus.NewCounter(prometheus.CounterOpts{Name: "resumed"})}
		b.confirmed.Store(&l.begun)
		l.bridge = b
		l.enter("ours")
		l.enter("theirs")
		l.rows = []db.Leg{{ID: "row", Owner: "theirs", Epoch: 1, Direction: "in", State: "unreadable, so that no phone is needed"}}
		test(l)
		b.stop(errShutdown)
		l.wg.Wait()
	})
}

func (l *ledger) now() time.Duration { return time.Since(l.begun) }

func (l *ledger) enter(run string) {
	l.since[run], l.until[run] = time.Now(), time.Now().Add(db.LeaseLife)
}

func (l *ledger) lapsed(run string) bool { return l.until[run].Before(time.Now()) }

// at waits until a moment of the test, and until all that is due then is done.
func (l *ledger) at(moment time.Duration) {
	l.Helper()
	time.Sleep(moment - l.now())
	synctest.Wait()
}

// answers is nil while the database is there. Whoever gets it holds mu.
func (l *ledger) answers(ctx context.Context, what string) error {
	l.mu.Lock()
	l.asked = append(l.asked, fmt.Sprint(what, " ", l.now()))
	if l.now() < l.from || l.now() >= l.back {
		return nil
	}
	hangs := l.hangs
	l.mu.Unlock()
	if !hangs {
		return errors.New("connection refused")
	}
	<-ctx.Done()
	return ctx.Err()
}

func (l *ledger) Renew(ctx context.Context) error { return l.renew(ctx, "ours") }

func (l *ledger) renew(ctx context.Context, run string) error {
	if err := l.answers(ctx, "renew "+run); err != nil {
		return err
	}
	defer l.mu.Unlock()
	switch _, there := l.until[run]; {
	case !there:
		return db.ErrFenced
	case l.lapsed(run):
		l.enter(run)
	default:
		l.until[run] = time.Now().Add(db.LeaseLife)
	}
	return nil
}

func (l *ledger) Adopt(ctx context.Context) ([]db.Leg, error) {
	if err := l.answers(ctx, "adopt"); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	if _, there := l.until["ours"]; !there {
		return nil, db.ErrFenced
	}
	if steady := !l.lapsed("ours") && time.Since(l.since["ours"]) >= db.LeaseLife; steady && l.lapsed("theirs") {
		delete(l.until, "theirs")
	}
	var adopted []db.Leg
	for i, r := range l.rows {
		if _, owned := l.until[r.Owner]; !owned {
			l.rows[i].Owner, l.rows[i].Epoch = "ours", r.Epoch+1
			adopted = append(adopted, l.rows[i])
		}
	}
	if l.losesAnswer && len(adopted) > 0 {
		l.losesAnswer = false
		return nil, errors.New("connection reset")
	}
	return adopted, nil
}

func (l *ledger) HandOver(context.Context) error { return nil }
func (l *ledger) Release() error                 { return nil }

func (l *ledger) Legs(ctx context.Context, owner string) ([]db.Leg, error) {
	if err := l.answers(ctx, "legs"); err != nil {
		return nil, err
	}
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.rows), func(r db.Leg) bool { return r.Owner != owner }), nil
}

func (l *ledger) Memberships(context.Context, string) ([]db.Membership, error) { return nil, nil }
func (l *ledger) GhostsElsewhere(context.Context, string) ([]string, error)    { return nil, nil }

func (l *ledger) Patiently(ctx context.Context, f func(context.Context) error) error { return f(ctx) }

// neighbour renews the other process's lease up to a moment: then it dies.
func (l *ledger) neighbour(dies time.Duration) {
	l.wg.Go(func() {
		for time.Sleep(renewEvery); l.now() <= dies; time.Sleep(renewEvery) {
			if err := l.renew(l.bridge.ctx, "theirs"); err != nil {
				l.Logf("the neighbour at %v: %v", l.now(), err)
			}
		}
	})
}

// keep keeps our lease; returned tells why and when that ended.
func (l *ledger) keep(look func()) (returned func() string) {
	var why string
	l.wg.Go(func() {
		err := l.bridge.keepLease(l.bridge.ctx, look)
		why = fmt.Sprint(l.now(), " ", err)
	})
	return func() string { synctest.Wait(); return why }
}

// sees fails unless the moments of what was asked are these.
func (l *ledger) sees(what, want string) {
	l.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var got []string
	for _, asked := range l.asked {
		if moment, ok := strings.CutPrefix(asked, what+" "); ok {
			got = append(got, moment)
		}
	}
	if diff := cmp.Diff(strings.Fields(want), got); diff != "" {
		l.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// A lease is renewed every 2 s. When that has not worked for its life the process is in doubt, and looks into its rooms every 10 s.
func TestLeaseIsRenewedAndDoubtedAtItsTimes(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		t.Run(fmt.Sprint("hangs ", hangs), func(t *testing.T) {
			inLedger(t, func(l *ledger) {
				l.from, l.back, l.hangs = 7*time.Second, 39*time.Second, hangs
				var looks []string
				over := l.keep(func() { looks = append(looks, l.now().String()) })
				b := l.bridge
				l.at(6 * time.Second)
				l.sees("renew ours", "2s 4s 6s")
				noticed := 8 * time.Second
				if hangs {
					noticed += renewEvery
				}
				l.at(noticed - time.Millisecond)
				if b.journal.Away() {
					t.Error("away before a renewal failed")
				}
				l.at(noticed)
				b.setReady(true)
				if err := b.Ready(t.Context()); !errors.Is(err, db.ErrAway) {
					t.Errorf("Ready = %v, want ErrAway", err)
				}
				l.at(6*time.Second + db.LeaseLife - time.Millisecond)
				if b.unsure() {
					t.Error("in doubt while the lease stands")
				}
				l.at(6*time.Second + db.LeaseLife)
				if !b.unsure() {
					t.Error("not in doubt although the lease may have lapsed")
				}
				l.at(40*time.Second - time.Millisecond)
				if diff := cmp.Diff([]string{"16s", "26s", "36s"}, looks); diff != "" {
					t.Errorf("looked into the rooms (-want +got):\n%s", diff)
				}
				l.at(42 * time.Second)
				if b.unsure() || b.journal.Away() {
					t.Errorf("the database is back: in doubt %t, away %t", b.unsure(), b.journal.Away())
				}
				l.at(43 * time.Second)
				l.mu.Lock()
				delete(l.until, "ours") // as an adoption does
				l.mu.Unlock()
				l.at(44 * time.Second)
				if got, want := over(), fmt.Sprint("44s ", db.ErrFenced); got != want {
					t.Errorf("keepLease returned at %q, want %q", got, want)
				}
			})
		})
	}
}

// What a dead process has left is taken over at the first round after its lease has lapsed.
func TestLegsAreAdoptedAtTheirTimes(t *testing.T) {
	for name, c := range map[string]struct {
		dies        time.Duration // the other process; it renewed last at the even second before
		from, back  time.Duration // the database is away for both
		losesAnswer bool
		want        time.Duration // 0 = never
	}{
		"it lives":                         {dies: time.Hour},
		"it dies":                          {dies: 5 * time.Second, want: 16 * time.Second},
		"it dies at once":                  {dies: time.Second, want: 12 * time.Second},
		"it dies, and an answer is lost":   {dies: 5 * time.Second, losesAnswer: true, want: 18 * time.Second},
		"the database is away":             {dies: time.Hour, from: 5 * time.Second, back: 59 * time.Second},
		"the database is away for a round": {dies: 5 * time.Second, from: 15 * time.Second, back: 17 * time.Second, want: 18 * time.Second},
		"it dies while the database is":    {dies: 20 * time.Second, from: 5 * time.Second, back: 59 * time.Second, want: 70 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inLedger(t, func(l *ledger) {
				l.from, l.back, l.losesAnswer = c.from, c.back, c.losesAnswer
				l.neighbour(c.dies)
				l.keep(func() {})
				l.wg.Go(func() {
					if err := l.bridge.adoptLegs(l.bridge.ctx); err != nil {
						t.Errorf("adoptLegs = %v", err)
					}
				})
				if c.want == 0 {
					l.at(3 * time.Minute)
				} else {
					l.at(c.want - time.Millisecond)
				}
				if n := l.bridge.journal.Stats().Waiting; n != 0 {
					t.Errorf("at %v: something is written already of a leg that nobody has left", l.now())
				}
				if c.want > 0 {
					l.at(c.want)
					if n := l.bridge.journal.Stats().Waiting; n != 1 { // the leg's end, for its state makes no sense
						t.Errorf("at %v: %d writes wait, want one of the adopted leg", l.now(), n)
					}
				}
			})
		})
	}
}

// A drain ends a tenth of a second after its last leg at most, and says every 10 s how many are left.
func TestDrainTakesItsSteps(t *testing.T) {
	inLedger(t, func(l *ledger) {
		b := l.bridge
		said := &lines{}
		b.log = slog.New(slog.NewTextHandler(said, nil))
		b.drain.since = time.Now()
		b.legs["a"], b.legs["b"] = nil, nil
		b.orders.waiting["!r:x"] = nil
		l.wg.Go(b.awaitEmpty)
		over := func() bool {
			select {
			case <-b.drain.over:
				return true
			default:
				return false
			}
		}
		l.at(24*time.Second + 50*time.Millisecond)
		if got := said.count("msg=draining legs=2"); got != 3 {
			t.Errorf("after 24 s it was said %d times how many legs are left, want at 0, 10 and 20 s", got)
		}
		b.mu.Lock()
		delete(b.legs, "a")
		b.mu.Unlock()
		l.at(30 * time.Second)
		if v := b.drainProgress(); v != (drainView{Draining: true, Seconds: 30, Legs: 1}) || said.count("msg=draining legs=1") != 1 {
			t.Errorf("progress %+v, log:\n%s", v, said)
		}
		b.mu.Lock()
		delete(b.legs, "b")
		b.mu.Unlock()
		l.at(31 * time.Second)
		if over() {
			t.Error("over while a command is being carried out")
		}
		b.mu.Lock()
		clear(b.orders.waiting)
		b.mu.Unlock()
		l.at(31*time.Second + 100*time.Millisecond - time.Nanosecond)
		if over() {
			t.Error("over before it was looked")
		}
		l.at(31*time.Second + 100*time.Millisecond)
		if !over() || said.count("msg=drained after=31s") != 1 {
			t.Errorf("not over after the last leg; log:\n%s", said)
		}
	})
}

// A stop waits for a database that is away for 10 s before it lets calls go, and after it has ended them.
func TestStopInAnOutageTakesItsTime(t *testing.T) {
	away := errors.New("connection refused")
	for name, c := range map[string]struct {
		back, want time.Duration
	}{"it stays away": {time.Hour, awayPatience}, "it comes back": {3300 * time.Millisecond, 3400 * time.Millisecond}} {
		t.Run(name, func(t *testing.T) {
			inLedger(t, func(l *ledger) {
				l.bridge.journal.Report(away)
				returns := time.AfterFunc(c.back, func() { l.bridge.journal.Report(nil) })
				defer returns.Stop()
				l.bridge.awaitDatabase()
				if l.now() != c.want {
					t.Errorf("waited %v, want %v", l.now(), c.want)
				}
			})
		})
	}
	t.Run("calls are ended, and some hang", func(t *testing.T) {
		inLedger(t, func(l *ledger) {
			b := l.bridge
			b.cfg.Calls.OnStop = config.StopEnds
			b.journal.Report(away)
			if err := b.journal.DeleteLeg("row", db.Hold{Owner: "ours", Epoch: 1}, "shutdown", time.Now()); err != nil {
				t.Fatal(err)
			}
			hung := make(chan struct{})
			b.wg.Go(func() { <-hung })
			b.letGo(nil)
			if want := shutdownPatience + awayPatience; l.now() != want {
				t.Errorf("the stop took %v, want %v", l.now(), want)
			}
			if !b.isClosing() {
				t.Error("new legs would be taken")
			}
			close(hung)
			b.wg.Wait()
			synctest.Wait()
		})
	})
}

// lines is a log to count in.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) count(what string) int { return strings.Count(l.String(), what) }
