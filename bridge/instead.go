package bridge

import (
	"context"
	"errors"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/command"
	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/matrixcall"
	"trunkline/sip"
)

// A phone's REFER may be about two calls. Either both are ours (RFC 5589 §7): then the call with the REFER goes on in the room of the
// other one, whose phone is let go. Or, where the trunk's `transfers` allows it, somebody else is to be in the room in the phone's
// place: then we call them over the same trunk, with the numbers and limits of orders. Nobody has shown who is on a phone: the caller's
// number, of which its ghost is made, is what the caller writes. So the room itself must allow such calls, and they count for the
// phones of the trunk together. The phone stays until they have answered. Rows name the leg whose phone is
// let go, so that the next process does that if this one can't.

// somebodyIsCalled is no status: what to tell the phone is known later.
const somebodyIsCalled = -1

// goodbyePatience is how long a phone whose place is taken may take to hang up by itself, as it should (RFC 5589 §6.1).
const goodbyePatience = 2 * time.Second

// legOf is the leg of a call that talks; nil = there is none.
func (b *Bridge) legOf(call *sip.Call) *actor {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range b.legs {
		if a.phase == leg.Talking && a.call == call {
			return a
		}
	}
	return nil
}

// takesPlaceOf makes the leg in which the phone goes on in the room of another one, which has been let in there.
func (a *actor) takesPlaceOf(ctx context.Context, other *actor) (heir *actor, code int) {
	var there route
	err := other.do(func() error {
		if other.state.Phase != leg.Talking {
			return errPhoneLeft
		}
		there = route{room: string(other.room()), options: other.options}
		return nil
	})
	if err != nil {
		return nil, 480
	}
	heir, code = a.heir(ctx, other.info.Dialled, there)
	if heir != nil {
		heir.move.instead = other.id
	}
	return heir, code
}

// nowhere says that a route which is made of any name leads to no room.
func (b *Bridge) nowhere(ctx context.Context, found route) bool {
	if b.routes.domain == "" || !strings.HasPrefix(found.room, "#") {
		return false
	}
	_, err := b.matrix.ResolveRoom(ctx, found.room)
	_, unknown := errors.AsType[*matrixcall.RoomError](err)
	return unknown
}

// placeHere is the order of a call in this phone's place.
func (a *actor) placeHere() order {
	return order{room: a.room(), by: id.UserID(config.PhonesOf + a.info.Trunk)}
}

// callInstead calls somebody in the phone's place. It returns what to tell the phone.
func (a *actor) callInstead(ctx context.Context, wish sip.TransferWanted, o order) (code int) {
	b := a.bridge
	to, err := b.plan.Referred(a.info.Trunk, wish.To)
	if err == nil && b.cfg.Permissions.OfRoom(string(o.room)) < command.LevelCall {
		err = &refusal{text: "That phone may not place calls.", reason: notPermitted}
	}
	if err == nil {
		if err := a.call.AcceptTransfer(); err != nil {
			return 0 // the call is over
		}
		var cancel context.CancelFunc // the phone may hang up from now on, as some do at once
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), movePatience)
		defer cancel()
		a.wg.Go(func() { // a stop of ours must not wait for the homeserver
			select {
			case <-b.suspended:
			case <-b.abandoned:
			case <-ctx.Done():
			}
			cancel()
		})
		o.number = to.number
		to.ways[0].replaces, to.ways[0].referredBy = wish.Replaces, wish.ReferredBy
		err = b.placeTo(ctx, to, o, placing{notice: a.name + " hands the call over to ", instead: a.id})
	}
	if err == nil {
		return somebodyIsCalled
	}
	a.log.Info("nobody is called in the phone's place", "to", wish.To, "err", err)
	reason := reasonOf(err)
	if reason != "" {
		b.refusedOrder(o.by, o.room, reason)
	}
	_, dear := errors.AsType[*needsConfirmation](err)
	switch {
	case errors.Is(err, errGoesDown), errors.Is(err, errDrains), errors.Is(err, errTooMany):
		return 503 // later, or of another bridge
	case dear, reason != "" && reason != string(leg.NotStored) && reason != string(leg.TrunkAway):
		return 403
	}
	return 503
}

// succeeds tells the leg in whose place this one is how that gets on.
func (a *actor) succeeds(code int) {
	if a.move.instead == "" {
		return
	}
	a.bridge.mu.Lock()
	before := a.bridge.legs[a.move.instead]
	a.bridge.mu.Unlock()
	if before != nil {
		wished := a.order != nil // else the phone has taken another one's place, which may wish for something else
		before.inbox.Put(func() { before.succeeded(code, wished) })
	}
}

// lost tells the leg in whose place somebody was being called that nobody comes, because the process has died that was calling.
func (b *Bridge) lost(waiting leg.ID) {
	b.mu.Lock()
	before := b.legs[waiting]
	b.mu.Unlock()
	if before != nil {
		before.inbox.Put(before.wishIsLost)
	}
}

// wishIsLost ends the subscription of the phone's REFER without an outcome: the call is as it was. Phones that are told of a failure may
// hang up for it (baresip does), and it is not theirs.
func (a *actor) wishIsLost() {
	a.move.busy = false
	if a.call.Dialog().Wish.Event != "" {
		a.note("tell the phone that no more comes of its transfer", a.call.TransferOver(100))
	}
}

// succeeded hears how it gets on with who is to be here in the phone's place, as this phone has wished or another one.
func (a *actor) succeeded(code int, wished bool) {
	waited := a.move.busy && wished
	switch {
	case !wished && a.move.busy: // it will not be fulfilled
		a.step(leg.Event{Kind: leg.Dismissed, Cause: leg.Transferred})
		return
	case code < 200 && waited:
		a.note("tell the phone how its transfer gets on", a.call.TransferProgress(code))
		return
	case code < 200:
		return
	}
	a.move.busy = false
	if waited {
		a.moveEnds(code)
	}
	if code < 300 {
		a.wg.Go(func() {
			select {
			case <-time.After(goodbyePatience):
				a.tellEvent(leg.Event{Kind: leg.Dismissed, Cause: leg.Transferred})
			case <-a.ctx.Done():
			}
		})
	}
}

// refusedWith is the status for a phone that waits for what has become of this leg.
func (a *actor) refusedWith() (code int) {
	if a.order != nil && a.order.refused != 0 {
		return a.order.refused
	}
	code, _ = a.state.Cause.Refusal()
	return code
}
