package bridge

import (
	"context"
	"errors"
	"time"

	"trunkline/bridge/leg"
	"trunkline/bridge/quota"
	"trunkline/db"
	"trunkline/sip"
)

// A call that a trunk can't place goes over the next one: the same leg, row, notice and order, with another dialog. The machine
// decides whether (leg.LineRefused), this file does it.

// refusedBy says what the refusal of a call of ours means, and whether another trunk could do better.
func (a *actor) refusedBy(r sip.Refused) {
	_, q850 := codes(r.Cause)
	ev := leg.Event{Kind: leg.PhoneRefused, Cause: leg.WhyRefused(r.Code, q850)}
	if r.Local {
		ev.Cause = leg.TrunkAway
	}
	if (r.Local || leg.LineFault(r.Code, q850)) && len(a.order.ways) > 0 {
		ev.Kind = leg.LineRefused
	}
	a.order.why, a.order.refused = ev.Cause, r.Code
	a.step(ev)
}

// nextLine prepares the call over the next trunk that takes one, beside the actor: trunks have a pace. Without one the room is told
// what the last trunk has said that was asked.
func (a *actor) nextLine() {
	b, o := a.bridge, a.order
	ways := o.ways
	o.over, o.ways = a.call, nil
	b.metrics.rerouted.WithLabelValues(a.info.Trunk).Inc()
	a.log.Info("a trunk can't place a call; the next one is tried", "trunk", a.info.Trunk, "cause", o.why)
	a.wg.Go(func() {
		ctx, cancel := context.WithTimeout(a.ctx, commandPatience)
		defer cancel()
		call, left, err := b.prepare(ctx, ways)
		if err != nil {
			a.inbox.Put(func() { a.step(leg.Event{Kind: leg.PhoneRefused, Cause: o.why}) })
			return
		}
		if a.do(func() error { return a.takeLine(call, left) }) != nil {
			a.note("put a prepared call away", call.Hangup(sip.Cause{}))
		}
	})
}

// takeLine makes a prepared call the leg's, if that still waits for one.
func (a *actor) takeLine(call *sip.Call, left []way) error {
	if a.state.Phase != leg.Dialling || a.state.Phone != leg.Absent {
		return errPhoneLeft
	}
	a.bridge.mu.Lock()
	a.call, a.info = call, call.Info()
	a.bridge.mu.Unlock()
	a.order.ways = left
	a.listen()
	a.step(leg.Event{Kind: leg.Rerouted})
	return nil
}

// saveRerouted writes the row of a call that goes over another trunk now, and counts it there in place of the one before.
func (a *actor) saveRerouted(row db.Leg) (wait func(context.Context) leg.EventKind) {
	b, o := a.bridge, a.order
	rules, now := b.quotas(), time.Now()
	rules.Stopped = "" // looked at when the INVITE goes
	q := quota.Request{Trunk: row.Trunk, Number: o.number, Confirmed: true}
	written := b.journal.BeginMove(row, func(used []db.Usage) (time.Duration, error) { return decide(rules, now, q, used) })
	return func(ctx context.Context) leg.EventKind {
		longest, err := written(ctx)
		_, refused := errors.AsType[*refusal](err)
		switch {
		case refused:
			a.log.Warn("a trunk does not take a call", "trunk", row.Trunk, "err", err)
			return leg.LineRefused
		case err != nil:
			a.log.Error("leg not saved", "err", err)
			return leg.SaveFailed
		}
		b.meter.counted()
		a.inbox.Put(func() {
			o.booked, o.most = row.Trunk, longest
			a.limitTalk(longest)
		})
		return leg.Saved
	}
}

// limitTalk lets the talk be no longer than what was reserved for it; 0 = no limit.
func (a *actor) limitTalk(longest time.Duration) {
	if longest > 0 {
		a.state.Rules.Longest = min(a.state.Rules.Longest, longest)
	}
}

// passOver gives up a prepared call whose trunk has no minutes left for it.
func (a *actor) passOver() {
	a.note("put a prepared call away", a.call.Hangup(sip.Cause{}))
	ev := leg.Event{Kind: leg.PhoneRefused, Cause: a.order.why}
	if len(a.order.ways) > 0 {
		ev.Kind = leg.LineRefused
	}
	a.step(ev)
}
