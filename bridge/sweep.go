package bridge

import (
	"context"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/leg"
	"trunkline/db"
	"trunkline/matrixcall"
	"trunkline/sip"
)

// A process that died leaves ghosts in calls and phones in dialogs. Until calls can be resumed, the next start ends both:
// first it adopts the rows, removes the memberships, and, once SIP is open, hangs up the phones.

// sweepRooms adopts everything a dead process left and removes its ghosts from their calls.
func (b *Bridge) sweepRooms(ctx context.Context) error {
	legs, err := b.store.Adopt(ctx, b.run)
	if err != nil {
		return fmt.Errorf("adopt legs: %w", err)
	}
	memberships, err := b.store.Memberships(ctx, b.run)
	if err != nil {
		return err
	}
	b.orphans = legs
	for _, m := range memberships {
		info := matrixcall.MembershipInfo{
			Ghost: id.UserID(m.Ghost), Device: id.DeviceID(m.DeviceID), Room: id.RoomID(m.RoomID), ConfID: m.ConfID,
			SessionID: m.SessionID, Created: m.CreatedByUs, Expires: m.Expires,
		}
		if err := b.matrix.SweepMembership(ctx, info); err != nil {
			b.log.Warn("stale membership stays until it expires", "room", m.RoomID, "ghost", m.Ghost, "err", err)
		}
		if err := b.deleteMembership(ctx, info); err != nil {
			return err
		}
	}
	if len(legs)+len(memberships) > 0 {
		b.log.Info("swept what a dead process left", "legs", len(legs), "memberships", len(memberships))
	}
	return nil
}

// sweepPhones hangs up the phones whose process died.
func (b *Bridge) sweepPhones() {
	for _, l := range b.orphans {
		b.wg.Go(func() {
			if err := b.hangUpOrphan(l); err != nil {
				b.log.Warn("could not hang up an orphaned phone", "leg", l.ID, "err", err)
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), databasePatience)
			defer cancel()
			if err := b.store.DeleteLeg(ctx, l.ID, b.run, string(leg.ProcessDied), time.Now()); err != nil {
				b.log.Warn("orphaned leg stays in the database", "leg", l.ID, "err", err)
			}
		})
	}
	b.orphans = nil
}

// orphanPatience is how long a BYE may be retransmitted (RFC 3261 §17.1.2.2, timer F) before the phone counts as gone.
const orphanPatience = 33 * time.Second

func (b *Bridge) hangUpOrphan(l db.Leg) error {
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
	case <-b.ctx.Done():
	}
	return nil
}
