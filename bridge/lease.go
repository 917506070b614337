package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"trunkline/db"
)

const (
	renewEvery    = 2 * time.Second // a fifth of a lease's life
	flushPatience = 5 * time.Second
)

// node is where this process runs, as its successor there will call it, too.
func (b *Bridge) node() string {
	host, err := os.Hostname()
	if err != nil {
		b.log.Warn("the host has no name", "err", err)
	}
	return cmp.Or(b.cfg.Database.Node, host, "trunkline")
}

// takeLease makes this process the owner of what its predecessor on the same node left behind, and returns those legs.
// When another process runs here it waits for a little more than a lease's life, in case that one is about to end.
func (b *Bridge) takeLease(ctx context.Context) ([]db.Leg, error) {
	ctx, cancel := context.WithTimeout(ctx, db.LeaseLife+renewEvery)
	defer cancel()
	lease, err := b.store.Acquire(ctx, db.LeaseOptions{Run: b.run, Node: b.node()})
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", b.node(), err)
	}
	b.lease = lease
	return b.adopt(ctx)
}

// adopt takes over what dead processes left behind, and looks which ghosts living ones have.
func (b *Bridge) adopt(ctx context.Context) ([]db.Leg, error) {
	legs, err := b.lease.Adopt(ctx)
	if err != nil {
		return nil, err
	}
	elsewhere, err := b.store.GhostsElsewhere(ctx, b.run)
	if err == nil {
		b.mu.Lock()
		b.elsewhere = elsewhere
		b.mu.Unlock()
	} else {
		b.log.Warn("ghosts of other processes are not known", "err", err)
	}
	return legs, nil
}

// keepLease renews the lease, and takes over what others have left whose lease lapsed. It returns when ctx ends, or with
// db.ErrFenced when somebody else has taken over what is ours.
func (b *Bridge) keepLease(ctx context.Context) error {
	ticker := time.NewTicker(renewEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		legs, err := b.renew(ctx)
		switch {
		case errors.Is(err, db.ErrFenced):
			return err
		case ctx.Err() != nil:
			return nil
		}
		b.journal.Report(err)
		if len(legs) > 0 {
			b.log.Warn("took over legs of a process that is gone", "legs", len(legs))
			if err := b.resumeLegs(ctx, legs); err != nil {
				b.log.Error("legs of a process that is gone stay as they are", "err", err)
			}
		}
	}
}

func (b *Bridge) renew(ctx context.Context) ([]db.Leg, error) {
	ctx, cancel := context.WithTimeout(ctx, renewEvery)
	defer cancel()
	if err := b.lease.Renew(ctx); err != nil {
		return nil, err
	}
	return b.adopt(ctx)
}

// flush waits until what was noted is in the database.
func (b *Bridge) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), flushPatience)
	defer cancel()
	if err := b.journal.Flush(ctx); err != nil {
		b.log.Error("the database does not get what happened last", "err", err)
	}
}
