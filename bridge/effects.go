package bridge

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"trunkline/bridge/leg"
	"trunkline/matrixcall"
	"trunkline/sip"
	"trunkline/transcode"
)

const (
	databasePatience = 5 * time.Second // a query that takes longer counts as failed
	leavePatience    = 8 * time.Second // shorter than leg.Rules.Release
	retryAfter       = 10              // seconds, told to phones that are refused for now
)

// perform does what the leg decided. It never waits for the far ends: their answers come back as events.
func (a *actor) perform(e leg.Effect) {
	switch e.Kind {
	case leg.Ring:
		a.note("ring", a.call.Ring())
	case leg.JoinRoom:
		a.joinRoom()
	case leg.AcceptPhone:
		a.acceptPhone()
	case leg.Save:
		a.save()
	case leg.SendAnswer:
		a.sendAnswer()
	case leg.StartMedia:
		a.startMedia()
	case leg.StopMedia:
		a.stopMedia()
	case leg.RefusePhone:
		a.refusePhone(e.Cause)
	case leg.HangUpPhone:
		code, text := e.Cause.Q850()
		a.note("hang up phone", a.call.Hangup(sip.Cause{Protocol: "Q.850", Code: code, Text: text}))
	case leg.LeaveRoom:
		a.leaveRoom(e.Cause)
	case leg.DeleteRow:
		a.deleteRow(e.Cause)
	case leg.Forget:
		a.bridge.forget(a, e.Cause)
	}
}

// note logs what could not be done; the leg hears of it by the event that follows or its deadline.
func (a *actor) note(what string, err error) {
	if err != nil {
		a.log.Warn("could not "+what, "err", err)
	}
}

// joining is one attempt to enter the room's call. Its results may be read once over is closed.
type joining struct {
	cancel context.CancelCauseFunc
	over   chan struct{}

	membership *matrixcall.Membership // nil when it failed
	ghost      string                 // localpart reserved for this leg
}

// errLegEnds cancels a join that is no longer wanted.
var errLegEnds = errors.New("leg ends")

// joinRoom takes a few round trips to the homeserver, so it runs beside the actor.
func (a *actor) joinRoom() {
	ctx, cancel := context.WithCancelCause(a.ctx)
	a.join.cancel = cancel
	a.wg.Go(func() {
		defer cancel(nil)
		err := a.enterCall(ctx)
		close(a.join.over)
		if err == nil {
			a.tell(leg.RoomJoined)
			return
		}
		cause := joinCause(err)
		a.log.Warn("room not joined", "room", a.target, "err", err, "cause", cause)
		a.inbox.Put(report{event: leg.Event{Kind: leg.RoomRefused, Cause: cause}})
	})
}

// enterCall makes the caller's ghost, brings it into the room, and into the room's call.
func (a *actor) enterCall(ctx context.Context) error {
	b := a.bridge
	room, err := b.matrix.ResolveRoom(ctx, a.target)
	if err != nil {
		return fmt.Errorf("find room %s: %w", a.target, err)
	}
	a.join.ghost = b.reserveGhost(a.info)
	name := ghostName(a.info.Caller, b.showNumbers[a.info.Trunk])
	ghost, err := b.matrix.Ghost(ctx, a.join.ghost, name)
	if err != nil {
		return fmt.Errorf("make ghost: %w", err)
	}
	if err := ghost.EnterRoom(ctx, room); err != nil {
		return fmt.Errorf("enter room %s: %w", room, err)
	}
	if err := b.matrix.CheckRights(ctx, ghost, room); err != nil {
		if rights, ok := errors.AsType[*matrixcall.RightsError](err); ok {
			a.note("tell the room", b.matrix.Notice(ctx, room, rights.Error()))
		}
		return fmt.Errorf("check rights in %s: %w", room, err)
	}
	m, err := ghost.JoinCall(ctx, room, matrixcall.CallOptions{
		CreateType: "m.voice", Intent: "m.ring", Name: "Call from " + name,
		OnEvent: a.fromRoom, OnPacket: a.fromPeer,
	})
	if err != nil {
		return fmt.Errorf("join call in %s: %w", room, err)
	}
	a.join.membership = m
	b.gather(a, room)
	return b.putMembership(ctx, a)
}

// joinCause says in the leg's terms why the room could not be joined.
func joinCause(err error) leg.Cause {
	if _, ok := errors.AsType[*matrixcall.RightsError](err); ok {
		return leg.NoRights
	}
	if _, ok := errors.AsType[*matrixcall.RoomError](err); ok {
		return leg.NoSuchRoom
	}
	return leg.NoHomeserver
}

// leaveRoom undoes joinRoom, wherever that is.
func (a *actor) leaveRoom(cause leg.Cause) {
	if a.join.cancel != nil {
		a.join.cancel(errLegEnds)
	}
	a.wg.Go(func() {
		<-a.join.over
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), leavePatience)
		defer cancel()
		if m := a.join.membership; m != nil {
			a.bridge.scatter(a)
			if err := m.Leave(ctx, leaveReason(cause)); err != nil {
				a.log.Warn("left the call only half", "err", err) // the row stays: the next start sweeps it
			} else {
				a.note("delete membership", a.bridge.deleteMembership(ctx, m.Info()))
			}
		}
		a.bridge.releaseGhost(a.join.ghost)
		a.tell(leg.RoomLeft)
	})
}

// leaveReason is the reason of the hangups to the peers. user_hangup keeps clients from calling back; a process that goes
// down wants them to be called again by its successor.
func leaveReason(leg.Cause) string { return "user_hangup" }

func (a *actor) acceptPhone() {
	_, media, err := a.call.Accept()
	if err != nil {
		a.log.Info("phone's offer not accepted", "err", err)
		a.tell(leg.PhoneFailed)
		return
	}
	a.media = media
	a.tell(leg.PhoneReady)
}

func (a *actor) sendAnswer() {
	if err := a.call.SendAnswer(); err != nil {
		a.note("answer", err)
		a.tell(leg.PhoneFailed)
		return
	}
	a.bridge.metrics.setup.Observe(time.Since(a.begun).Seconds())
	a.log.Info("leg began", "room", a.target, "after", time.Since(a.begun).Round(time.Millisecond))
}

func (a *actor) startMedia() {
	format := a.media.Format()
	codec := transcode.PCMU
	if format.Codec == "PCMA" {
		codec = transcode.PCMA
	}
	v, err := a.bridge.studio.Join(voiceOptions{
		Room: a.join.membership.Info().Room, Phone: phoneConfig(codec, format.PayloadType),
		ToPhone: a.media.WriteRTP, ToPeers: a.join.membership.WriteRTP,
	})
	if err != nil {
		a.note("start media", err)
		a.tell(leg.PhoneFailed)
		return
	}
	a.voice.Store(v)
	a.media.OnPacket(v.FromPhone)
}

func (a *actor) stopMedia() {
	if v := a.voice.Swap(nil); v != nil {
		a.media.OnPacket(nil)
		v.Leave()
	}
}

func (a *actor) refusePhone(cause leg.Cause) {
	code, reason := cause.Refusal()
	var headers []string
	if code == 503 {
		headers = []string{"Retry-After: " + strconv.Itoa(retryAfter)}
	}
	a.note("refuse phone", a.call.Reject(code, reason, headers...))
}

// hold mutes the phone towards the peers while it is on hold: no hold music for the room.
func (a *actor) hold(on bool) {
	if v := a.voice.Load(); v != nil {
		v.Mute(on)
		a.join.membership.Mute(on)
	}
}

func (a *actor) save() {
	ctx, cancel := context.WithTimeout(a.ctx, databasePatience)
	defer cancel()
	if err := a.bridge.store.PutLeg(ctx, a.row()); err != nil {
		a.log.Error("leg not saved", "err", err)
		a.tell(leg.SaveFailed)
		return
	}
	a.tell(leg.Saved)
}

func (a *actor) deleteRow(cause leg.Cause) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), databasePatience)
	defer cancel()
	a.note("delete row", a.bridge.store.DeleteLeg(ctx, string(a.id), a.bridge.run, string(cause), time.Now()))
}
