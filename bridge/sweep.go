package bridge

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"trunkline/bridge/leg"
	"trunkline/matrixcall"
)

// A process that died leaves ghosts in calls. Those whose leg is not resumed are removed at the next start; those that a leg
// of this process could not remove, because the homeserver was away, a little later in the same way.

// sweepPatience is how long one room may take.
const sweepPatience = 20 * time.Second

// sweepRooms removes the ghosts of memberships whose leg does not live, several rooms at a time.
func (b *Bridge) sweepRooms(ctx context.Context) error {
	memberships, err := b.store.Memberships(ctx, b.run)
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(8)
	for _, m := range memberships {
		if b.liveLeg(leg.ID(m.LegID)) {
			continue
		}
		group.Go(func() error { return b.sweepRoom(ctx, membershipOf(m), m.Epoch) })
	}
	return group.Wait()
}

func (b *Bridge) sweepRoom(ctx context.Context, m matrixcall.MembershipInfo, epoch int64) error {
	ctx, cancel := context.WithTimeout(ctx, sweepPatience)
	defer cancel()
	if err := b.matrix.SweepMembership(ctx, m); err != nil {
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
