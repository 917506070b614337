package bridge

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"trunkline/bridge/leg"
	"trunkline/db"
	"trunkline/matrixcall"
)

// A process that died leaves ghosts in calls. Those whose leg is not resumed are removed at the next start; those that a leg
// of this process could not remove, because the homeserver was away, a little later in the same way.

// sweepPatience is how long one room may take.
const sweepPatience = 20 * time.Second

// sweepRooms removes the ghosts of memberships whose leg is over, several rooms at a time.
func (b *Bridge) sweepRooms(ctx context.Context) error {
	stale, err := b.staleMemberships(ctx)
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(8)
	for _, m := range stale {
		group.Go(func() error { return b.sweepRoom(ctx, membershipOf(m), m.Epoch) })
	}
	return group.Wait()
}

// staleMemberships are those whose leg neither lives here nor has a row. One with a row is not over: it is about to be resumed,
// here or, when this process ends, by the next. The order of the questions matters: a leg that is set up lives before it has
// a row, and one that is adopted has a row before it lives.
func (b *Bridge) staleMemberships(ctx context.Context) ([]db.Membership, error) {
	if b.isClosing() {
		return nil, nil // legs are let go: they live no more here, but will
	}
	stale, err := b.rows.Memberships(ctx, b.run)
	if err != nil {
		return nil, err
	}
	stale = slices.DeleteFunc(stale, func(m db.Membership) bool { return b.liveLeg(leg.ID(m.LegID)) })
	if len(stale) == 0 {
		return nil, nil
	}
	rows, err := b.rows.Legs(ctx, b.run)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(stale, func(m db.Membership) bool {
		return slices.ContainsFunc(rows, func(l db.Leg) bool { return l.ID == m.LegID })
	}), nil
}

func (b *Bridge) sweepRoom(ctx context.Context, m matrixcall.MembershipInfo, epoch int64) error {
	ctx, cancel := context.WithTimeout(ctx, sweepPatience)
	defer cancel()
	if _, err := b.matrix.SweepMembership(ctx, m); err != nil {
		b.log.Warn("stale membership stays for now", "room", m.Room, "ghost", m.Ghost, "err", err)
		return nil // its row stays, too: it is tried again
	}
	b.log.Info("swept a stale membership", "room", m.Room, "ghost", m.Ghost)
	return b.deleteMembership(m, epoch)
}

func (b *Bridge) liveLeg(id leg.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.legs[id] != nil
}
