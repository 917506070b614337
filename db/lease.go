package db

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.mau.fi/util/dbutil"
)

// LeaseLife is how long a process that says nothing keeps its rows. Renewing it five times as often lets it miss a few.
const LeaseLife = 10 * time.Second

// acquirePause is how long Acquire waits between two looks at a node that is in use.
const acquirePause = 100 * time.Millisecond

// Lease is the right of one process run to own rows. It has a life by the database's clock, and holds the lock of its node
// while the process lives: who gets the lock of a node knows that the process before is dead, without waiting for its
// lease to lapse.
//
//	Acquire ---> held --Renew in time--> held
//	               |
//	               +--- no Renew for a life --> lapsed --Renew--> held (since anew)
//	                                              |
//	                                              +--- Adopt by another run --> gone: every write is ErrFenced
type Lease struct {
	store     *Store
	run, node string
	life      time.Duration

	mu   sync.Mutex // one question at a time: the lock's connection has room for one
	lock nodeLock
}

// LeaseOptions say who wants a lease.
type LeaseOptions struct {
	Run  string        // the process run: the owner of its rows
	Node string        // the place that a successor of the process has, too: a host, a name in the config
	Life time.Duration // 0 = LeaseLife
}

// Acquire takes a lease. While another process holds the node's lock and renews its lease, it waits, and returns
// [ErrTaken] when ctx ends.
func (s *Store) Acquire(ctx context.Context, o LeaseOptions) (*Lease, error) {
	l := &Lease{store: s, run: o.Run, node: o.Node, life: cmp.Or(o.Life, LeaseLife), lock: s.newNodeLock(o.Node)}
	for seen := error(nil); ; {
		locked, err := l.lock.take(ctx)
		if err == nil && !locked {
			var taken bool
			if taken, err = l.nodeLives(ctx); err == nil && taken {
				err = ErrTaken
			}
		}
		if err == nil {
			err = l.enter(ctx)
		}
		if err == nil {
			return l, nil
		}
		if ctx.Err() != nil && seen != nil { // the time ran out while it was asked once more
			err = seen
		}
		if !errors.Is(err, ErrTaken) {
			return nil, errors.Join(fmt.Errorf("acquire lease: %w", err), l.lock.release())
		}
		seen = err
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("acquire lease: node %s: %w", o.Node, ErrTaken), l.lock.release())
		case <-time.After(acquirePause):
		}
	}
}

// nodeLives tells whether a lease of the node has not lapsed. Its holder may hang or its host be gone: then the lock
// stays behind for a while, but the lease does not.
func (l *Lease) nodeLives(ctx context.Context) (bool, error) {
	var n int
	err := l.store.db.QueryRow(ctx, "SELECT COUNT(*) FROM lease WHERE node = $1 AND NOT "+l.store.lapsed(), l.node).Scan(&n)
	return n > 0, err
}

func (l *Lease) enter(ctx context.Context) error {
	now := l.store.now
	// Puts wait for removals at this row, which must be there before the first.
	_, err := l.store.db.Exec(ctx, "INSERT INTO removal (owner, version) VALUES ($1, 0) ON CONFLICT (owner) DO NOTHING", l.run)
	if err != nil {
		return err
	}
	_, err = l.store.db.Exec(ctx, "INSERT INTO lease (owner, node, since, lease_until) VALUES ($1, $2, "+now+", "+now+" + $3) "+
		"ON CONFLICT (owner) DO UPDATE SET since = excluded.since, lease_until = excluded.lease_until", // the first answer may be lost
		l.run, l.node, l.life.Milliseconds())
	return err
}

// Renew must be called several times in a life. It returns [ErrFenced] when another run has adopted this one's rows: the
// process must stop acting on them at once. Other errors mean that the database did not answer; the lease may still live.
func (l *Lease) Renew(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.lock.take(ctx); err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	now := l.store.now
	result, err := l.store.db.Exec(ctx, "UPDATE lease SET since = CASE WHEN since > "+now+" OR "+l.store.lapsed()+" THEN "+now+" ELSE since END, "+
		"lease_until = "+now+" + $2 WHERE owner = $1", l.run, l.life.Milliseconds())
	return affected(result, err, "renew lease")
}

// Adopt makes this run the owner of the legs and memberships of dead runs, and returns the legs, oldest first. Dead is:
// a run of the same node, when this one has the node's lock; a run whose lease lapsed, when this run's own was never
// late for a whole life, for else the database was away for all of them; a run without a lease. The dead run's lease is
// gone then, so should it come back it is fenced. A leg that somebody is just writing is left for the next time.
func (l *Lease) Adopt(ctx context.Context) ([]Leg, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	locked, err := l.lock.take(ctx)
	if err != nil {
		return nil, fmt.Errorf("adopt: %w", err)
	}
	var legs []Leg
	err = l.store.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		if err := l.bury(ctx, locked); err != nil {
			return err
		}
		legs, err = l.adoptRows(ctx)
		return err
	})
	slices.SortFunc(legs, func(a, b Leg) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return legs, err
}

// adoptRows adopts a leg with all its memberships or not at all, for without them it could not go on, and they without it would
// pass for stale. A process that froze or lost its power in the middle of a transaction holds the locks of its rows for a while:
// these are passed over, for the others' sake.
func (l *Lease) adoptRows(ctx context.Context) ([]Leg, error) {
	unlocked := "" // a transaction has SQLite for itself
	if l.store.db.Dialect == dbutil.Postgres {
		unlocked = " FOR UPDATE SKIP LOCKED"
	}
	const orphaned = "owner NOT IN (SELECT owner FROM lease)"
	const adopt = " SET owner = $1, epoch = epoch + 1, version = 0 WHERE " // this run's writes are numbered anew
	rows, err := l.store.db.Query(ctx, "WITH free AS (SELECT ghost, room_id FROM membership WHERE "+orphaned+unlocked+") UPDATE leg"+adopt+
		"id IN (SELECT id FROM leg WHERE "+orphaned+" AND NOT EXISTS (SELECT 1 FROM membership m WHERE m.leg_id = leg.id AND m."+orphaned+
		" AND NOT EXISTS (SELECT 1 FROM free WHERE free.ghost = m.ghost AND free.room_id = m.room_id))"+unlocked+") RETURNING "+columnList, l.run)
	if err != nil {
		return nil, fmt.Errorf("adopt legs: %w", err)
	}
	legs, err := dbutil.ConvertRowFn[Leg](scanLeg).NewRowIter(rows, nil).AsList()
	if err != nil {
		return nil, fmt.Errorf("adopt legs: %w", err)
	}
	_, err = l.store.db.Exec(ctx, "UPDATE membership"+adopt+"(ghost, room_id) IN (SELECT ghost, room_id FROM membership WHERE "+orphaned+
		" AND NOT EXISTS (SELECT 1 FROM leg WHERE leg.id = membership.leg_id AND leg."+orphaned+")"+unlocked+")", l.run)
	if err != nil {
		return nil, fmt.Errorf("adopt memberships: %w", err)
	}
	return legs, nil
}

// bury removes the leases of dead runs. Who removes one adopts its rows: of two that try, one waits and finds nothing.
// This run must live itself, else it is fenced.
func (l *Lease) bury(ctx context.Context, locked bool) error {
	now := l.store.now
	var steady bool
	err := l.store.db.QueryRow(ctx, "SELECT since + $2 <= "+now+" AND NOT "+l.store.lapsed()+" FROM lease WHERE owner = $1",
		l.run, l.life.Milliseconds()).Scan(&steady)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("adopt: %w", ErrFenced)
	}
	if err != nil {
		return fmt.Errorf("read own lease: %w", err)
	}
	if locked {
		if _, err := l.store.db.Exec(ctx, "DELETE FROM lease WHERE owner <> $1 AND node = $2", l.run, l.node); err != nil {
			return fmt.Errorf("bury namesakes: %w", err)
		}
	}
	if steady {
		if _, err := l.store.db.Exec(ctx, "DELETE FROM lease WHERE owner <> $1 AND "+l.store.lapsed(), l.run); err != nil {
			return fmt.Errorf("bury the dead: %w", err)
		}
	}
	return nil
}

// HandOver ends the lease before its time: whoever looks next adopts the rows, on whatever node. Nothing may be written after it.
func (l *Lease) HandOver(ctx context.Context) error {
	if _, err := l.store.db.Exec(ctx, "DELETE FROM lease WHERE owner = $1", l.run); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	return nil
}

// Release gives the node's lock back, so that a successor can begin at once. The rows stay its for as long as the lease lives:
// a successor of the same node adopts them at once, others when it has lapsed.
func (l *Lease) Release() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lock.release()
}

// clockOf is now in milliseconds, in SQL: the one clock that all processes share.
func clockOf(dialect dbutil.Dialect) string {
	if dialect == dbutil.Postgres {
		return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"
	}
	return "CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)"
}

// farthest is how far ahead a lease's end can be unless the database's clock has been set back since, as after a failover to a
// replica that is behind.
const farthest = time.Minute

// lapsed says in SQL that a lease has, or will say nothing for so long that its holder would have renewed it.
func (s *Store) lapsed() string {
	now := s.now
	return "(lease_until < " + now + " OR lease_until > " + now + " + " + strconv.FormatInt(farthest.Milliseconds(), 10) + ")"
}

// whileLeased does something in a transaction, or returns ErrFenced when owner has no lease. The lease is not locked, for a process
// that froze here would keep others from adopting; PostgreSQL ends its transaction before it can go on.
func (s *Store) whileLeased(ctx context.Context, owner string, do func(context.Context) error) error {
	return s.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		var leased int
		if err := s.db.QueryRow(ctx, "SELECT COUNT(*) FROM lease WHERE owner = $1", owner).Scan(&leased); err != nil {
			return fmt.Errorf("look for own lease: %w", err)
		}
		if leased == 0 {
			return fmt.Errorf("no lease: %w", ErrFenced)
		}
		return do(ctx)
	})
}

// affected turns "no row" into ErrFenced.
func affected(result sql.Result, err error, what string) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return fmt.Errorf("%s: %w", what, cmp.Or(err, ErrFenced))
	}
	return nil
}

// nodeLock is held by one process at a time, and by no dead one.
type nodeLock interface {
	// take tells whether the lock is held, taking it if it is free.
	take(ctx context.Context) (bool, error)
	release() error
}

func (s *Store) newNodeLock(node string) nodeLock {
	if s.db.Dialect == dbutil.Postgres {
		sum := fnv.New32a()
		sum.Write([]byte(node))
		return &advisoryLock{db: s.db.RawDB, key: int32(sum.Sum32())}
	}
	return &fileLock{path: s.path + "." + safeName(node) + ".lock"}
}

// advisoryLock is PostgreSQL's: it ends with the connection, and that with the process.
type advisoryLock struct {
	db   *sql.DB
	key  int32
	conn *sql.Conn // nil = not held
}

// lockClass keeps our advisory locks apart from those of other programs in the database.
const lockClass = 7248766

func (a *advisoryLock) take(ctx context.Context) (bool, error) {
	if a.conn != nil {
		if err := a.conn.PingContext(ctx); err == nil {
			return true, nil
		}
		_ = a.release() // the connection is gone, and the lock with it
	}
	conn, err := a.db.Conn(ctx)
	if err != nil {
		return false, fmt.Errorf("lock node: %w", err)
	}
	var held bool
	err = conn.QueryRowContext(ctx, "SELECT pg_try_advisory_lock($1, $2)", int32(lockClass), a.key).Scan(&held)
	if err != nil || !held {
		return false, errors.Join(err, conn.Close())
	}
	a.conn = conn
	return true, nil
}

// release ends the session: a connection that went back to the pool would keep the lock.
func (a *advisoryLock) release() error {
	conn := a.conn
	if conn == nil {
		return nil
	}
	a.conn = nil
	_ = conn.Raw(func(any) error { return errBadConn }) // tells database/sql to close it
	if err := conn.Close(); err != nil && !errors.Is(err, sql.ErrConnDone) {
		return fmt.Errorf("unlock node: %w", err)
	}
	return nil
}
