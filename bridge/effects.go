package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/pion/rtp"
	"maunium.net/go/mautrix/id"

	"trunkline/bridge/leg"
	"trunkline/db"
	"trunkline/matrixcall"
	"trunkline/sip"
)

const (
	databasePatience = 5 * time.Second        // a query that takes longer counts as failed
	saveFirst        = 200 * time.Millisecond // what a phone in a call waits for its row: before it asks again, T1 (RFC 3261 §17)
	leavePatience    = 30 * time.Second       // shorter than leg.Rules.Release
	countPatience    = 5 * time.Second        // to learn who is in a call that was joined
	retryAfter       = 10                     // seconds, told to phones that are refused for now
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
	case leg.AskPhone:
		a.askPhone()
	case leg.StartMedia:
		a.startMedia()
	case leg.StopMedia:
		a.stopMedia()
	case leg.Ask:
		a.ask()
	case leg.Enter:
		a.enter()
	case leg.PlayTone:
		a.playTone(e.Tone)
	case leg.StopTone:
		a.stopTone()
	case leg.RingRoom:
		a.ringRoom()
	case leg.RingOver:
		a.ringOver(e.Cause)
	case leg.DialPhone:
		a.dialPhone()
	case leg.NextLine:
		a.nextLine()
	case leg.AckPhone:
		a.note("acknowledge", a.call.Acknowledge())
	case leg.Report:
		a.report(e.Cause)
	case leg.RefusePhone:
		a.bridge.refuse(a.call, e.Cause)
	case leg.HangUpPhone:
		code, text := e.Cause.Q850()
		a.note("hang up phone", a.call.Hangup(sip.Cause{Protocol: "Q.850", Code: code, Text: text}))
	case leg.LeaveRoom:
		a.leaveRoom()
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

	localpart  string                                    // of the ghost, reserved for this leg
	ghost      *matrixcall.Ghost                         // nil when there is none yet
	saved      atomic.Pointer[matrixcall.MembershipInfo] // what was stored before the room could see it, nil = nothing
	membership *matrixcall.Membership                    // nil when joining failed
}

// errLegEnds cancels a join that is no longer wanted.
var errLegEnds = errors.New("leg ends")

// joinRoom takes a few round trips to the homeserver, so it runs beside the actor.
func (a *actor) joinRoom() {
	if a.before == nil && !a.park() {
		close(a.join.over)
		return
	}
	a.dialin.parked = false // leaveRoom sees to it
	ctx, cancel := context.WithCancelCause(a.ctx)
	a.join.cancel = cancel
	wide := a.mayBeWide()
	a.wg.Go(func() {
		defer cancel(nil)
		var err error
		if a.before != nil {
			err = a.rejoinCall(ctx, wide)
		} else {
			err = a.enterCall(ctx, wide)
		}
		close(a.join.over)
		switch {
		case err == nil:
			a.tell(leg.RoomJoined)
		case ctx.Err() != nil: // the leg ends already
			a.log.Debug("joining given up", "cause", context.Cause(ctx))
		default:
			cause := joinCause(err)
			a.log.Warn("room not joined", "room", a.target, "err", err, "cause", cause)
			a.tellEvent(leg.Event{Kind: leg.RoomRefused, Cause: cause})
		}
		a.complain(err)
	})
}

// complain lets the room know if it is rights that phones lack there: its administrators can do something about it.
func (a *actor) complain(err error) {
	rights, ok := errors.AsType[*matrixcall.RightsError](err)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), noticePatience)
	defer cancel()
	<-a.join.over // until then the ghost may not be known
	a.note("tell the room which rights phones lack", a.bridge.tellOnce(ctx, rights.Room, a.join.ghost, rights.Error()))
}

// park reserves a ghost for the leg, unless it has one.
func (a *actor) park() bool {
	if a.join.localpart != "" {
		return true
	}
	name, err := a.bridge.reserveGhost(a.party, a.info.Trunk)
	if err != nil {
		a.log.Warn("no ghost for the phone", "err", err)
		a.tellEvent(leg.Event{Kind: leg.RoomRefused, Cause: joinCause(err)})
		return false
	}
	a.join.localpart, a.dialin.parked = name, true
	return true
}

// mayBeWide says whether the phone may play more than 4 kHz, on the trunk in use or one that may take its place.
func (a *actor) mayBeWide() bool {
	wide := a.bridge.wideBand[a.info.Trunk]
	if a.order != nil {
		wide = wide || slices.ContainsFunc(a.order.ways, func(w way) bool { return a.bridge.wideBand[w.trunk.Name] })
	}
	return wide
}

// enterRoom makes the caller's ghost, for which a name must be reserved, and brings it into the leg's room. The ghost is not nil
// where an error is about the room.
func (a *actor) enterRoom(ctx context.Context) (*matrixcall.Ghost, id.RoomID, error) {
	b := a.bridge
	b.mu.Lock()
	target := a.target
	b.mu.Unlock()
	room, err := b.matrix.ResolveRoom(ctx, target)
	if err != nil {
		return nil, "", fmt.Errorf("find room %s: %w", target, err)
	}
	ghost, err := b.matrix.Ghost(ctx, a.join.localpart, a.name)
	if err != nil {
		return nil, "", fmt.Errorf("make ghost: %w", err)
	}
	if err := ghost.EnterRoom(ctx, room); err != nil {
		return ghost, "", fmt.Errorf("enter room %s: %w", room, err)
	}
	if err := b.matrix.CheckRights(ctx, ghost, room); err != nil {
		return ghost, "", fmt.Errorf("check rights in %s: %w", room, err)
	}
	return ghost, room, nil
}

// enterCall makes the caller's ghost, brings it into the room, and into the room's call.
func (a *actor) enterCall(ctx context.Context, wide bool) error {
	ghost, room, err := a.enterRoom(ctx)
	a.join.ghost = ghost
	if err != nil {
		return err
	}
	m, err := ghost.JoinCall(ctx, room, matrixcall.CallOptions{
		CreateType: "m.voice", Intent: a.options.Intent, Name: a.callName(), EntryLife: a.bridge.cfg.Calls.EntryLife,
		OnEvent: a.fromRoom, OnPacket: a.fromPeer, Save: a.saveMembership, Unsure: a.bridge.unsure,
		WideBand: wide,
	})
	if err != nil {
		return err
	}
	a.enteredCall(ctx, m)
	return nil
}

// callName is what a call is called that the ghost makes.
func (a *actor) callName() string {
	if a.order != nil {
		return "Call to " + a.name
	}
	return "Call from " + a.name
}

// enteredCall counts the leg in once it is known who is there.
func (a *actor) enteredCall(ctx context.Context, m *matrixcall.Membership) {
	a.join.membership = m
	a.outlet.Store(m)
	if errors.Is(context.Cause(ctx), matrixcall.ErrAbandoned) {
		m.Abandon()
		return
	}
	select { // a room must not be rung where somebody is there already
	case <-a.counted:
	case <-time.After(countPatience): // the homeserver is slow to tell: whoever is there is noticed later
	case <-ctx.Done():
	}
	a.bridge.gather(a, m.Info().Room)
}

// errNotStored says that the database is the reason.
var errNotStored = errors.New("not stored")

// saveMembership runs while the call is joined, and again beside the actor when the ghost moves to another call.
func (a *actor) saveMembership(ctx context.Context, info matrixcall.MembershipInfo) error {
	if err := a.putMembership(ctx, info); err != nil {
		return fmt.Errorf("%w: %w", errNotStored, err)
	}
	a.join.saved.Store(&info)
	return nil
}

// joinCause says in the leg's terms why the room could not be joined.
func joinCause(err error) leg.Cause {
	if _, ok := errors.AsType[*matrixcall.RightsError](err); ok {
		return leg.NoRights
	}
	if _, ok := errors.AsType[*matrixcall.RoomError](err); ok {
		return leg.NoSuchRoom
	}
	switch {
	case errors.Is(err, errNotStored):
		return leg.NotStored
	case errors.Is(err, matrixcall.ErrCallOver):
		return leg.EndedInRoom
	case errors.Is(err, errCrowded):
		return leg.Busy
	}
	return leg.NoHomeserver
}

// leaveRoom undoes joinRoom, wherever that is.
func (a *actor) leaveRoom() {
	if a.join.cancel != nil {
		a.join.cancel(errLegEnds)
	}
	a.wg.Go(func() {
		<-a.join.over
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), leavePatience)
		defer cancel()
		a.bridge.scatter(a)
		if err := a.leaveCall(ctx); err != nil {
			a.log.Warn("left the call only half; the next start sweeps it", "err", err)
		}
		a.bridge.releaseGhost(a.join.localpart)
		a.tell(leg.RoomLeft)
	})
}

// leaveCall leaves the call, or what a failed attempt to join left of it. Its row goes only when nothing is left.
func (a *actor) leaveCall(ctx context.Context) error {
	saved := a.join.saved.Load()
	if saved == nil {
		return nil
	}
	var err error
	if m := a.join.membership; m != nil {
		err = m.Leave(ctx, userHangup)
	} else {
		err = a.sweep(ctx, *saved)
	}
	if err != nil {
		return err
	}
	return a.bridge.deleteMembership(*a.join.saved.Load(), a.epoch)
}

// lateEntry is how long a homeserver may take over what a process said before it died.
const lateEntry = 3 * time.Second

// sweep removes the ghost's entry. One that the process before was just writing when it died is not there yet, and comes.
func (a *actor) sweep(ctx context.Context, info matrixcall.MembershipInfo) error {
	sure, err := a.bridge.matrix.SweepMembership(ctx, info)
	if sure || err != nil || a.before == nil {
		return err
	}
	select {
	case <-time.After(lateEntry):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	_, err = a.bridge.matrix.SweepMembership(ctx, info)
	return err
}

// userHangup is the reason of the hangups to the peers: clients do not call back after it.
const userHangup = "user_hangup"

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

// startMedia seats the phone at the desk of its room.
func (a *actor) startMedia() { a.sit(voiceOptions{Room: a.room(), ToPeers: a.writePeers}) }

// sit connects the phone with a desk.
func (a *actor) sit(where voiceOptions) bool {
	if a.stream.SSRC == 0 { // else it has begun with tones
		a.stream = phoneConfig(a.media.Format())
	}
	media := a.media
	where.Phone, where.ToPhone, where.Sounds = a.stream, media.WriteRTP, a.sounds
	where.Press = func(digit rune) { media.SendDigit(byte(digit)) }
	where.Phone.InBandDigits = a.keysInSound(media.Format())
	where.Key = func(digit rune) { a.key(byte(digit)) }
	v, err := a.bridge.studio.Join(where)
	if err != nil {
		a.note("start media", err)
		a.tell(leg.PhoneFailed)
		return false
	}
	a.bridge.seat(a, v)
	media.OnPacket(v.FromPhone)
	if a.silenced() {
		v.Mute(true)
	}
	return true
}

// room is where the leg's conference is. Its join must be over, or have been over in the process before.
func (a *actor) room() id.RoomID {
	if a.before != nil {
		return a.before.Room
	}
	return a.join.membership.Info().Room
}

// writePeers sends the phone's sound to the room. While the ghost is on its way back, nobody hears it.
func (a *actor) writePeers(p *rtp.Packet) error {
	if m := a.outlet.Load(); m != nil {
		return m.WriteRTP(p)
	}
	return nil
}

// keysInSound tells whether the phone's keys have to be heard in its sound.
func (a *actor) keysInSound(f sip.Format) bool { return a.bridge.inBand[a.info.Trunk] && f.DTMF == 0 }

// setFormat follows a re-INVITE, or the answer to our offer, that changed the codec, the length of packets or how keys come.
func (a *actor) setFormat(f sip.Format) {
	c := phoneConfig(f)
	if a.early != nil { // before the answer (RFC 3311)
		a.early.SetFormat(c)
	}
	if v := a.voice.Load(); v != nil {
		c.InBandDigits = a.keysInSound(f)
		v.SetFormat(c)
	}
}

// stopMedia takes the phone off the desk where it sits, if it does. Its stream can go on at another one.
func (a *actor) stopMedia() {
	if v := a.voice.Swap(nil); v != nil {
		a.media.OnPacket(nil)
		a.stream = v.Leave()
		a.count(v)
	}
}

// count takes over what a voice that has left the desk counted.
func (a *actor) count(v *voice) {
	a.unsent += v.unsent.Load()
	a.lost, a.concealed = a.lost+v.heard.Lost, a.concealed+v.heard.Concealed
}

// hold mutes the phone towards the peers while it is on hold: no hold music for the room.
func (a *actor) hold(on bool) {
	a.held = on
	a.mutePhone()
}

// dialogChanged saves the dialog, and calls saved when that is done or there is nothing to save.
func (a *actor) dialogChanged(saved func()) {
	a.unsaved = append(a.unsaved, saved)
	a.step(leg.Event{Kind: leg.DialogChanged})
	a.whoWaits()()
}

// whoWaits returns what tells those who wait for the next save that it is done.
func (a *actor) whoWaits() (tell func()) {
	waiting := a.unsaved
	a.unsaved = nil
	return func() {
		for _, saved := range waiting {
			saved()
		}
	}
}

// save writes the row. The answer to a phone waits until it is there, and so does the ACK of a phone's; a call in progress goes
// on without waiting, but for an answer to its phone, which waits a little.
func (a *actor) save() {
	row := a.row()
	saved := a.whoWaits()
	if a.state.Phase >= leg.Asking && !a.state.OwesAck() {
		done, err := a.bridge.journal.PutLegThen(row)
		a.note("save leg", err)
		a.wg.Go(func() {
			select {
			case <-done:
			case <-a.ctx.Done():
			}
			saved()
		})
		return
	}
	a.saves++
	number := a.saves
	var wait func(context.Context) leg.EventKind // the row has its place among all others, which are older or newer
	if a.order != nil && a.order.booked != row.Trunk {
		wait = a.saveRerouted(row)
	} else {
		wait = a.saveLeg(row)
	}
	a.wg.Go(func() {
		ctx, cancel := context.WithTimeout(a.ctx, databasePatience)
		defer cancel()
		result := wait(ctx)
		saved()
		a.inbox.Put(func() {
			switch {
			case number != a.saves: // a later one is under way, which is the one that counts
			case result == leg.LineRefused:
				a.passOver()
			default:
				a.step(leg.Event{Kind: result})
			}
		})
	})
}

func (a *actor) saveLeg(row db.Leg) (wait func(context.Context) leg.EventKind) {
	written := a.bridge.journal.BeginSave(row)
	return func(ctx context.Context) leg.EventKind {
		if err := written(ctx); err != nil {
			a.log.Error("leg not saved", "err", err)
			return leg.SaveFailed
		}
		return leg.Saved
	}
}

func (a *actor) deleteRow(cause leg.Cause) {
	a.note("delete row", a.bridge.journal.DeleteLeg(string(a.id), a.bridge.hold(a.epoch), string(cause), time.Now()))
}
