package bridge

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"trunkline/bridge/leg"
	"trunkline/db"
	"trunkline/matrixcall"
	"trunkline/sip"
)

// A process that died leaves ghosts in calls and phones in dialogs. Until calls can be resumed, the next start adopts the
// rows, hangs up the phones, and removes the memberships. Memberships that a leg of this process could not remove,
// because the homeserver was away, are swept a little later in the same way.

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
		group.Go(func() error { return b.sweepRoom(ctx, m) })
	}
	return group.Wait()
}

func (b *Bridge) sweepRoom(ctx context.Context, m db.Membership) error {
	ctx, cancel := context.WithTimeout(ctx, sweepPatience)
	defer cancel()
	info := matrixcall.MembershipInfo{
		Ghost: id.UserID(m.Ghost), Device: id.DeviceID(m.DeviceID), Room: id.RoomID(m.RoomID), ConfID: m.ConfID,
		SessionID: m.SessionID, Created: m.CreatedByUs, Expires: m.Expires,
	}
	if err := b.matrix.SweepMembership(ctx, info); err != nil {
		b.log.Warn("stale membership stays for now", "room", m.RoomID, "ghost", m.Ghost, "err", err)
		return nil // its row stays, too: it is tried again
	}
	b.log.Info("swept a stale membership", "room", m.RoomID, "ghost", m.Ghost)
	return b.deleteMembership(info, m.Epoch)
}

func (b *Bridge) liveLeg(id leg.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.legs[id] != nil
}

// sweepPhones hangs up the phones whose process died; it returns when they confirmed it, or ctx ends.
func (b *Bridge) sweepPhones(ctx context.Context, orphans []db.Leg) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, l := range orphans {
		wg.Go(func() {
			if err := b.hangUpOrphan(ctx, l); err != nil {
				b.log.Warn("could not hang up an orphaned phone", "leg", l.ID, "err", err)
			}
			if ctx.Err() != nil {
				return // its row stays for the next start
			}
			if err := b.journal.DeleteLeg(l.ID, b.hold(l.Epoch), string(leg.ProcessDied), time.Now()); err != nil {
				b.log.Warn("orphaned leg stays in the database", "leg", l.ID, "err", err)
			}
		})
	}
}

// orphanPatience is how long a BYE may be retransmitted (RFC 3261 §17.1.2.2, timer F) before the phone counts as gone.
const orphanPatience = 33 * time.Second

func (b *Bridge) hangUpOrphan(ctx context.Context, l db.Leg) error {
	if l.Answered.IsZero() {
		return nil // it was ringing: there is no dialog to end, and its INVITE can't be answered any more
	}
	dialog, err := dialogOf(l)
	if err != nil {
		return err
	}
	call, err := b.phones.Resume(dialog)
	if err != nil {
		return fmt.Errorf("resume dialog: %w", err)
	}
	over := make(chan struct{})
	call.OnEvent(func(ev sip.Event) {
		if _, ok := ev.(sip.Ended); ok {
			close(over)
		}
	})
	code, text := leg.ProcessDied.Q850()
	if err := call.Hangup(sip.Cause{Protocol: "Q.850", Code: code, Text: text}); err != nil {
		return fmt.Errorf("hang up: %w", err)
	}
	select {
	case <-over:
	case <-time.After(orphanPatience):
	case <-ctx.Done():
	}
	return nil
}
