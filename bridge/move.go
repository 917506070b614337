package bridge

import (
	"context"
	"errors"
	"strconv"
	"time"

	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/sip"
)

// A phone may ask to be in another of our rooms (REFER). A leg is one phone in one conference, so its call is handed over to a
// new leg there. Whether the phone may enter is found out before it leaves; what fails after that ends the call.

// move is what a leg must remember of that. Only the actor touches it.
type move struct {
	busy bool // the phone's wish is being looked at
	in   bool // the leg has the phone from another one, which is to be told how that went
}

// movePatience is how long it may take to find out whether a phone may enter another room.
const movePatience = 20 * time.Second

// wantsMove looks at the phone's wish.
func (a *actor) wantsMove(to sip.Number) {
	if a.state.Phase != leg.Talking || a.move.busy || a.order != nil { // the minutes of an ordered call are its room's
		a.refuseMove(403)
		return
	}
	a.move.busy = true
	a.wg.Go(func() {
		ctx, cancel := context.WithTimeout(a.ctx, movePatience)
		defer cancel()
		heir, code := a.heir(ctx, to)
		taken := make(chan struct{})
		a.inbox.Put(func() {
			defer close(taken)
			a.move.busy = false
			if heir != nil {
				a.handOver(heir)
			} else {
				a.moveEnds(code)
			}
		})
		select {
		case <-taken:
		case <-a.ctx.Done(): // the leg has ended
			if heir != nil {
				heir.discard()
			}
		}
	})
}

// heir makes the leg that the phone will be in, as far as that can be seen by nobody but the new room's members: its ghost is in
// the room. If that cannot be, or need not, it is nil, and code is what to tell the phone.
func (a *actor) heir(ctx context.Context, to sip.Number) (heir *actor, code int) {
	b := a.bridge
	found, err := b.routeOf(ctx, a.info.Trunk, to)
	switch {
	case err != nil && found.room == "":
		a.log.Error("no route", "err", err)
		return nil, 503
	case found.room == "":
		a.log.Info("phone wants to be moved to a number that leads nowhere", "to", to)
		return nil, 404
	case found.room == config.AnyRoom, asks(found.options): // nobody gets past a PIN or a lobby that way
		return nil, 403
	}
	if err := a.call.AcceptTransfer(); err != nil {
		return nil, 0 // the call is over
	}
	heir = makeActor(b, newLegID(), a.call)
	heir.info.Dialled = to
	heir.party = a.call.Dialog().Info.Caller // who it is now
	heir.party.Number = b.plan.Local(a.info.Trunk, heir.party.Number)
	heir.follow(found)
	if heir.join.localpart, err = b.reserveGhost(heir.party, a.info.Trunk); err == nil {
		heir.dialin.parked = true
		heir.join.ghost, _, err = heir.enterRoom(ctx)
	}
	if err == nil {
		return heir, 0
	}
	a.log.Warn("phone cannot be moved", "room", found.room, "err", err)
	close(heir.join.over)
	heir.complain(err)
	heir.discard()
	code, _ = joinCause(err).Refusal()
	return nil, code
}

// discard gives back what a leg that never began has reserved.
func (a *actor) discard() {
	if a.dialin.parked {
		a.bridge.releaseGhost(a.join.localpart)
	}
	a.stop(errForgotten)
}

// handOver lets the heir have the phone.
func (a *actor) handOver(heir *actor) {
	b := a.bridge
	b.mu.Lock()
	stays := b.closing || a.state.Phase != leg.Talking
	if !stays {
		b.legs[heir.id] = heir
	}
	b.mu.Unlock()
	if stays {
		heir.discard()
		a.moveEnds(480)
		return
	}
	a.log.Info("phone is handed over", "to", heir.id)
	heir.state.EndBy, heir.state.Acked = a.state.EndBy, a.state.Acked
	heir.media, heir.held, heir.move.in = a.media, a.held, true
	rules := heir.dialin.menu.Rules
	heir.dialin.menu = a.dialin.menu
	heir.dialin.menu.Rules = rules
	a.step(leg.Event{Kind: leg.HandedOver})
	heir.stream = a.stream // it goes on
	a.call.OnEvent(heir.fromPhone)
	heir.step(leg.Event{Kind: leg.TakesOver})
	heir.wg.Go(heir.watchCall)
	b.wg.Go(heir.run)
}

// watchCall notices the end of a call of which another leg may have heard first.
func (a *actor) watchCall() {
	select {
	case <-a.call.Done():
		a.tell(leg.PhoneReleased)
	case <-a.ctx.Done():
	}
}

// moveFollows tells the phone how its move went, once that is known.
func (a *actor) moveFollows() {
	switch {
	case !a.move.in:
	case a.state.Phase == leg.Talking:
		a.move.in = false
		a.moveEnds(200)
	case a.state.Phase > leg.Talking:
		a.move.in = false
		code, _ := a.state.Cause.Refusal()
		a.moveEnds(code)
	}
}

// moveEnds says what has come of the phone's wish.
func (a *actor) moveEnds(code int) {
	if code == 0 {
		return
	}
	if err := a.call.TransferOver(code); errors.Is(err, sip.ErrState) { // it was not accepted
		a.refuseMove(code)
		return
	}
	a.bridge.metrics.moves.WithLabelValues(strconv.Itoa(code)).Inc()
}

func (a *actor) refuseMove(code int) {
	a.bridge.metrics.moves.WithLabelValues(strconv.Itoa(code)).Inc()
	if err := a.call.RefuseTransfer(code); err != nil && !errors.Is(err, sip.ErrEnded) {
		a.note("refuse to move the phone", err)
	}
}
