package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"trunkline/db"
)

const (
	renewEvery    = 2 * time.Second // a fifth of a lease's life
	flushPatience = 5 * time.Second
	lastQuestion  = time.Second // for whose the legs are, before they are let go
	awayPatience  = 10 * time.Second
	lookEvery     = 10 * time.Second // into the rooms, for as long as it is not known whether the lease stands
)

// claim is what the bridge needs of its [db.Lease].
type claim interface {
	Renew(ctx context.Context) error
	Adopt(ctx context.Context) ([]db.Leg, error)
	HandOver(ctx context.Context) error
	Release() error
}

// legRows is what it asks a [db.Store] about legs, which other processes have there, too.
type legRows interface {
	Legs(ctx context.Context, owner string) ([]db.Leg, error)
	Memberships(ctx context.Context, owner string) ([]db.Membership, error)
	GhostsElsewhere(ctx context.Context, owner string) ([]string, error)
	Patiently(ctx context.Context, f func(context.Context) error) error
}

// node is where this process runs, as its successor there will call it, too.
func (b *Bridge) node() string {
	host, err := os.Hostname()
	if err != nil {
		b.log.Warn("the host has no name", "err", err)
	}
	return cmp.Or(b.cfg.Database.Node, host, "trunkline")
}

// takeLease makes this process the owner of what its predecessor on the same node left behind, and returns those legs.
// When another process runs here it waits for a little more than a lease's life, in case that one is about to end. A database that
// went away again since it was opened is waited for.
func (b *Bridge) takeLease(ctx context.Context) (rows []db.Leg, err error) {
	sure := true // that every leg of ours in the database is known here
	err = b.store.Patiently(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, db.LeaseLife+renewEvery)
		defer cancel()
		if b.lease == nil {
			asked := time.Now()
			lease, err := b.store.Acquire(ctx, db.LeaseOptions{Run: b.run, Node: b.node()})
			if err != nil {
				return fmt.Errorf("node %s: %w", b.node(), err)
			}
			b.lease = lease
			b.confirmed.Store(&asked)
		}
		rows, err = b.orphans(ctx, sure)
		sure = err == nil
		return err
	})
	return rows, err
}

// orphans are the rows that this process has to make legs of: those it adopts now and, unless the last adoption is sure to have made
// legs of all, those that no leg here stands for.
func (b *Bridge) orphans(ctx context.Context, sure bool) ([]db.Leg, error) {
	rows, err := b.adopt(ctx)
	if err == nil && !sure {
		rows, err = b.strayRows(ctx)
	}
	return rows, err
}

// adopt takes over what dead processes left behind, and looks which ghosts living ones have.
func (b *Bridge) adopt(ctx context.Context) ([]db.Leg, error) {
	legs, err := b.lease.Adopt(ctx)
	if err != nil {
		return nil, err
	}
	elsewhere, err := b.rows.GhostsElsewhere(ctx, b.run)
	if err == nil {
		b.mu.Lock()
		b.elsewhere = elsewhere
		b.mu.Unlock()
	} else {
		b.log.Warn("ghosts of other processes are not known", "err", err)
	}
	return legs, nil
}

// keepLease renews the lease. It returns when ctx ends, or with db.ErrFenced when somebody else has taken over what is ours. Once
// that may be so without the database being there to say it, look asks the homeserver: who takes a leg over enters its room's call.
func (b *Bridge) keepLease(ctx context.Context, look func()) error {
	var looked time.Time
	return b.eachRound(ctx, func(round context.Context) error {
		asked := time.Now()
		err := b.lease.Renew(round)
		switch {
		case err == nil:
			b.confirmed.Store(&asked)
		case b.unsure() && time.Since(looked) >= lookEvery:
			looked = time.Now()
			look()
		}
		return err
	})
}

// unsure tells whether the lease may have lapsed, by the one clock that does not depend on the database. It says so no later than
// another process can adopt what is ours: the lease's life began after it was asked for.
func (b *Bridge) unsure() bool {
	confirmed := b.confirmed.Load()
	return confirmed == nil || time.Since(*confirmed) >= db.LeaseLife
}

// adoptLegs takes over what others have left whose lease lapsed. It returns as keepLease does.
func (b *Bridge) adoptLegs(ctx context.Context) error {
	sure := true // that every leg of ours in the database lives here
	return b.eachRound(ctx, func(round context.Context) error {
		err := b.takeOver(round, sure)
		if err != nil && sure && ctx.Err() == nil {
			b.log.Warn("legs of processes that are gone cannot be taken over for now", "err", err)
		}
		sure = err == nil
		return err
	})
}

// eachRound asks the database something every renewEvery, until ctx ends or the answer is db.ErrFenced.
func (b *Bridge) eachRound(ctx context.Context, ask func(context.Context) error) error {
	ticker := time.NewTicker(renewEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		attempt, cancel := context.WithTimeout(ctx, renewEvery)
		err := ask(attempt)
		cancel()
		switch {
		case errors.Is(err, db.ErrFenced):
			return err
		case ctx.Err() != nil:
			return nil
		}
		b.journal.Report(err)
	}
}

// takeOver takes one look. Unless the last one is sure to have made legs of all rows, those it left are made up for.
func (b *Bridge) takeOver(ctx context.Context, sure bool) error {
	rows, err := b.orphans(ctx, sure)
	if err != nil || len(rows) == 0 {
		return err
	}
	b.log.Warn("took over legs of a process that is gone", "legs", len(rows))
	return b.resumeLegs(ctx, rows)
}

// strayRows are the rows adopted by this process that no leg here stands for.
func (b *Bridge) strayRows(ctx context.Context) ([]db.Leg, error) {
	here := make(map[string]bool)
	for _, a := range b.liveLegs() {
		here[string(a.id)] = true
	}
	if err := b.journal.Flush(ctx); err != nil { // legs that ended before now have rows no longer
		return nil, err
	}
	rows, err := b.rows.Legs(ctx, b.run)
	return slices.DeleteFunc(rows, func(l db.Leg) bool { return !l.Adopted() || here[l.ID] }), err
}

// awaitDatabase gives a database that is away some time to come back before legs are let go: their calls live meanwhile, and the
// process that is to resume them could not start either.
func (b *Bridge) awaitDatabase() {
	if !b.journal.Away() {
		return
	}
	b.log.Warn("calls are not let go yet, because the database is away", "for", b.awayPatience.String())
	ticker := time.NewTicker(renewEvery / 10)
	defer ticker.Stop()
	for begun := time.Now(); b.journal.Away() && time.Since(begun) < b.awayPatience; {
		<-ticker.C
	}
}

// flush waits until what was noted is in the database.
func (b *Bridge) flush(patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.journal.Flush(ctx); err != nil {
		b.log.Error("the database does not get what happened last", "err", err)
	}
}
