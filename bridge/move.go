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

// A phone may ask to be in another of our rooms (REFER), by its number or in the place of another call of its own. A leg is one phone
// in one conference, so its call is handed over to a new leg there. Whether the phone may enter is found out before it leaves; what
// fails after that ends the call.

// move is what a leg must remember of that. Only the actor touches it.
type move struct {
	busy    bool   // the phone's wish is being looked at, or somebody is called in its place
	in      bool   // the leg has the phone from another one, which is to be told how that went
	instead leg.ID // whose phone is let go when this one talks; "" = nobody's. Rows keep it: that takes a moment, and the next process may have to do it
	told    bool   // that leg knows how this one got on
}

// movePatience is how long it may take to find out whether a phone may enter another room.
const movePatience = 20 * time.Second

// wantsMove looks at the phone's wish.
func (a *actor) wantsMove(wish sip.TransferWanted) {
	if a.state.Phase != leg.Talking || a.move.busy {
		a.refuseMove(403)
		return
	}
	a.move.busy = true
	here := a.placeHere()
	a.wg.Go(func() {
		ctx, cancel := context.WithTimeout(a.ctx, movePatience)
		defer cancel()
		heir, code := a.follows(ctx, wish, here)
		taken := make(chan struct{})
		a.inbox.Put(func() {
			defer close(taken)
			switch {
			case heir != nil:
				a.move.busy = false
				a.handOver(heir)
			case code != somebodyIsCalled:
				a.move.busy = false
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

// follows begins what the phone wishes, and says with which leg that goes on. Where there is none, code is what to tell the phone.
func (a *actor) follows(ctx context.Context, wish sip.TransferWanted, here order) (heir *actor, code int) {
	b, found := a.bridge, route{}
	switch {
	case wish.Place != nil:
		other := b.legOf(wish.Place)
		if other == nil || a.order != nil {
			return nil, 403
		}
		return a.takesPlaceOf(ctx, other)
	case wish.Replaces == "":
		var err error
		found, err = b.routeOf(ctx, a.info.Trunk, wish.To)
		if err != nil && found.room == "" {
			a.log.Error("no route", "err", err)
			return nil, 503
		}
	}
	switch {
	case wish.Outside && (found.room == "" || b.nowhere(ctx, found)):
		return nil, a.callInstead(ctx, wish, here)
	case found.room == "":
		a.log.Info("phone wants to be moved to a number that leads nowhere", "to", wish.To)
		return nil, 404
	case a.order != nil, // the minutes of an ordered call are its room's
		found.room == config.AnyRoom, asks(found.options): // nobody gets past a PIN or a lobby that way
		return nil, 403
	}
	return a.heir(ctx, wish.To, found)
}

// heir makes the leg that the phone will be in, as far as that can be seen by nobody but the new room's members: its ghost is in
// the room. If that cannot be, or need not, it is nil, and code is what to tell the phone.
func (a *actor) heir(ctx context.Context, dialled sip.Number, found route) (heir *actor, code int) {
	b := a.bridge
	if err := a.call.AcceptTransfer(); err != nil {
		return nil, 0 // the call is over
	}
	heir = makeActor(b, newLegID(), a.call)
	heir.info.Dialled = dialled
	heir.party = a.call.Dialog().Info.Caller // who it is now
	heir.party.Number = b.plan.Local(a.info.Trunk, heir.party.Number)
	heir.follow(found)
	var err error
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
	heir.listen()
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

// moveFollows tells the phone how its move went, once that is known, and the leg in whose place this one is.
func (a *actor) moveFollows() {
	if a.state.Phase < leg.Talking {
		return
	}
	code := 200
	if a.state.Phase > leg.Talking {
		code = a.refusedWith()
	}
	if a.move.in {
		a.move.in = false
		a.moveEnds(code)
	}
	if a.move.told {
		return
	}
	a.move.told = true
	if a.order != nil && a.state.Cause == leg.ProcessDied {
		a.bridge.lost(a.move.instead)
		return
	}
	if code == 200 || a.order != nil { // else nobody but the phone has waited for it
		a.succeeds(code)
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
