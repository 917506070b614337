package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/command"
	"trunkline/bridge/leg"
	"trunkline/bridge/quota"
	"trunkline/db"
	"trunkline/sip"
)

// away is a phone that somebody in the room sends on to another number. Its line places that call and pays for it, which may be
// on our account: it is judged like a call of ours, and counts as one.
type away struct {
	board
	to      string // as the room may see it
	arrived bool   // and is to be let go
}

// storedAway lets the next process say how that went.
type storedAway struct {
	Room    id.RoomID
	Notice  id.EventID
	To      string
	Arrived bool `json:",omitempty"`
}

// transfer sends a phone on. Its error is for the room; without one the notice tells how it gets on.
func (b *Bridge) transfer(ctx context.Context, cmd command.Command, by id.UserID, room id.RoomID) error {
	phones := b.phonesIn(room)
	places, err := cmd.Phone.Of(len(phones))
	if err != nil {
		return err
	}
	a := phones[places[0]]
	to, err := b.plan.Find(cmd.Number)
	if err != nil {
		return err
	}
	var trunk string
	stays := func() error { trunk = a.info.Trunk; return a.staysHere() }
	if err := a.do(stays); err != nil { // before it is counted
		return err
	}
	i := slices.IndexFunc(to.ways, func(w way) bool { return w.trunk.Name == trunk })
	if i < 0 {
		return &refusal{text: "The line of that phone does not lead to this number."}
	}
	if err := b.followSwitch(ctx); err != nil {
		return fmt.Errorf("ask whether calls are switched off: %w", err)
	}
	if err := b.countTransfer(ctx, quota.Request{User: string(by), Room: string(room), Trunk: trunk, Number: to.number}); err != nil {
		return err
	}
	t := &away{board: board{actor: a, room: room}, to: ghostName(sip.Caller{Number: sip.Number(to.number)}, b.showNumbers[trunk])}
	return a.do(func() error { return a.sendAway(t, to.ways[i].dial) })
}

// countTransfer counts the call that a transfer makes, if its limits allow one.
func (b *Bridge) countTransfer(ctx context.Context, q quota.Request) error {
	rules, now := b.quotas(), time.Now()
	ctx, cancel := context.WithTimeout(ctx, databasePatience)
	defer cancel()
	var refused error
	err := b.store.Count(ctx, usageKeys(q, rules.Day(now)), func(used []db.Usage) error {
		_, refused = decide(rules, now, q, used)
		return refused
	})
	if _, dear := errors.AsType[*needsConfirmation](refused); dear {
		return &refusal{text: "That number is expensive; phones are not transferred there.", reason: "expensive"}
	}
	if err == nil {
		b.meter.counted()
	}
	return err
}

// staysHere says why the phone can't be sent on now.
func (a *actor) staysHere() error {
	switch {
	case a.state.Phase != leg.Talking:
		return &refusal{text: "That phone does not talk yet, or not any more."}
	case a.away != nil:
		return &refusal{text: "That phone is being transferred already."}
	}
	return nil
}

// sendAway asks the phone to call that number, once the room is told that it is asked. Each step is in the row before somebody
// can see it: the next process does what is left, or says that it was interrupted.
func (a *actor) sendAway(t *away, dial sip.Number) error {
	if err := a.staysHere(); err != nil {
		return err
	}
	a.away = t
	a.onceSaved(func() {
		a.wg.Go(func() {
			t.post(a.ctx, "Transferring "+a.name+" to "+t.to+" …")
			a.inbox.Put(func() { a.refer(dial) })
		})
	})
	return nil
}

// refer sends REFER, unless calls were switched off since that was wanted.
func (a *actor) refer(dial sip.Number) {
	if a.state.Phase != leg.Talking {
		return
	}
	if a.bridge.quotas().Stopped != "" {
		a.staysBecause(overWords[leg.SwitchedOff])
		return
	}
	if err := a.call.PrepareTransfer(dial); err != nil {
		a.note("prepare a transfer", err)
		a.transferring(500)
		return
	}
	a.onceSaved(func() {
		if err := a.call.SendTransfer(); err != nil {
			a.note("send a transfer", err)
			a.transferring(500)
		}
	})
}

// onceSaved does something when the row of a phone that talks is written as it is now. Without the database it is done all the
// same: a call in progress does not wait for that.
func (a *actor) onceSaved(do func()) {
	a.save()
	a.wg.Go(func() {
		ctx, cancel := context.WithTimeout(a.ctx, databasePatience)
		defer cancel()
		a.note("save a transfer", a.bridge.journal.Flush(ctx))
		a.inbox.Put(do)
	})
}

// transferring tells the room what the phone says of its transfer. One that has arrived is let go: RFC 5589 §6.1 leaves that to us.
func (a *actor) transferring(code int) {
	tell := func(string) {}
	to := "another number"
	if a.away != nil {
		tell, to = a.away.tell, a.away.to
	}
	switch {
	case code < 180:
		return
	case code < 200:
		tell("Transferring " + a.name + ": " + to + " rings.")
		return
	case code < 300:
		tell(a.name + " was transferred to " + to + ".")
		if a.away != nil {
			a.away.arrived = true
			a.saveAway()
		}
		a.tellEvent(leg.Event{Kind: leg.Dismissed, Cause: leg.Transferred})
	default:
		why, known := overWords[leg.WhyRefused(code, 0)]
		if !known {
			why = "it failed"
		}
		a.staysBecause(why)
	}
	a.bridge.metrics.transfers.WithLabelValues(strconv.Itoa(code)).Inc()
}

// staysBecause ends the phone's transfer.
func (a *actor) staysBecause(why string) {
	if a.away == nil {
		return
	}
	a.away.tell(a.name + " could not be transferred to " + a.away.to + " and stays: " + why + ".")
	a.away = nil
	a.saveAway()
}

// saveAway lets the next process know how far a transfer is, unless the call has ended meanwhile.
func (a *actor) saveAway() {
	if a.state.Phase == leg.Resuming || a.state.Phase == leg.Talking {
		a.save()
	}
}

// resumeAway goes on with the transfer of the process before, once the leg has begun again. Where the dialog names none, and the
// phone has not arrived, it was not asked yet.
func (a *actor) resumeAway(s *storedAway) {
	if s == nil {
		return
	}
	a.away = &away{board: board{actor: a, room: s.Room, notice: s.Notice}, to: s.To, arrived: s.Arrived}
	switch {
	case s.Arrived:
		a.tellEvent(leg.Event{Kind: leg.Dismissed, Cause: leg.Transferred})
	case a.call.Dialog().Transfer.CSeq == 0:
		a.inbox.Put(func() { a.staysBecause("the bridge was restarted") })
	}
}
