package bridge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/leg"
	"trunkline/db"
	"trunkline/matrixcall"
	"trunkline/sip"
)

// A call outlives the process: rows of a process that is gone become legs of this one. Sound first: the phone's ports are
// opened and silence goes out, before SIP is served and long before the ghost is back in its call. Phones are asked only
// then whether they are still there, a few at a time.

const (
	rejoinPause     = 250 * time.Millisecond
	longestRejoin   = 5 * time.Second
	suspendPatience = 2 * time.Second
	soundPatience   = 50 * time.Millisecond // for the first packets of all resumed calls
)

// resumeLegs makes legs of adopted rows. Those that cannot go on are ended on both sides.
func (b *Bridge) resumeLegs(ctx context.Context, rows []db.Leg) error {
	b.mu.Lock()
	closing := b.closing
	b.mu.Unlock()
	if len(rows) == 0 || closing { // the rows wait for the next process
		return nil
	}
	var memberships []db.Membership
	err := b.rows.Patiently(ctx, func(ctx context.Context) (err error) {
		memberships, err = b.rows.Memberships(ctx, b.run)
		return err
	})
	if err != nil {
		return err
	}
	byLeg := make(map[string]matrixcall.MembershipInfo)
	for _, m := range memberships {
		byLeg[m.LegID] = membershipOf(m)
	}
	begun := time.Now()
	resumed := 0
	if rows, err = b.heirs(rows); err != nil {
		return err
	}
	called := calledInstead(rows)
	for _, row := range rows {
		if b.isClosing() {
			return errShutdown // the rows stay, for the next process to adopt
		}
		before, known := byLeg[row.ID]
		if err := b.resumeLeg(row, before, known, called[row.ID]); err != nil {
			if bug, ok := errors.AsType[*bugError](err); ok {
				b.log.Error("a leg cannot be resumed because of a bug", "leg", row.ID, "bug", bug.what, "stack", bug.stack)
			} else {
				b.log.Warn("a leg cannot be resumed", "leg", row.ID, "err", err)
			}
			if err := b.dismiss(row); err != nil {
				return err
			}
			continue
		}
		resumed++
	}
	b.metrics.resumed.Add(float64(resumed))
	b.log.Info("legs resumed", "legs", resumed, "lost", len(rows)-resumed, "after", time.Since(begun).Round(time.Millisecond))
	return nil
}

// calledInstead are the legs of rows in whose phone's place somebody is being called.
func calledInstead(rows []db.Leg) map[string]bool {
	called := make(map[string]bool)
	for _, row := range rows {
		var state storedState
		if row.Direction == "out" && json.Unmarshal([]byte(row.State), &state) == nil && state.Instead != "" {
			called[string(state.Instead)] = true
		}
	}
	return called
}

// resumeWish has the phone told that nothing comes of its wish to be elsewhere (REFER), which the process before has died over: it stays,
// unless somebody is being called in its place. Who is in the other room already hears so there.
func (a *actor) resumeWish(called bool) {
	a.inbox.Put(func() {
		if a.move.busy = called; !called {
			a.wishIsLost()
		}
	})
}

// awaitSound waits until every resumed call has been sent its first packet, or for soundPatience in all.
func (b *Bridge) awaitSound(ctx context.Context) {
	begun := time.Now()
	patience := time.NewTimer(b.soundPatience)
	defer patience.Stop()
	for _, a := range b.liveLegs() {
		if a.sounding == nil {
			continue
		}
		select {
		case <-a.sounding:
		case <-a.ctx.Done(): // it has ended meanwhile
		case <-ctx.Done():
			return
		case <-patience.C:
			b.log.Warn("SIP is served before all resumed calls have sound", "after", time.Since(begun).Round(time.Millisecond))
			return
		}
	}
}

// heirs deletes the rows of legs whose phone another one has by now, and returns the others: the process died when it had handed the
// phone over and the former leg was still leaving its room.
func (b *Bridge) heirs(rows []db.Leg) (left []db.Leg, err error) {
	type dialog struct{ call, tag string }
	heir := make(map[dialog]db.Leg)
	for _, row := range rows {
		d := dialog{row.CallID, row.LocalTag}
		if other, ok := heir[d]; !ok || row.Created.After(other.Created) {
			heir[d] = row
		}
	}
	for _, row := range rows {
		if row.CallID == "" || heir[dialog{row.CallID, row.LocalTag}].ID == row.ID {
			left = append(left, row)
			continue
		}
		b.log.Info("the phone of a leg has moved on", "leg", row.ID)
		if err := b.journal.DeleteLeg(row.ID, b.hold(row.Epoch), string(leg.Moved), time.Now()); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// bugError is a panic of ours.
type bugError struct {
	what  any
	stack string
}

func (e *bugError) Error() string { return fmt.Sprint("bug: ", e.what) }

// dismiss ends a leg that cannot be resumed: for the phone, for who ordered the call, and in the database. Its ghost is swept.
func (b *Bridge) dismiss(row db.Leg) error {
	dialog, err := b.vault.dialogOf(row)
	if dialog.CallID != "" {
		err = b.phones.Dismiss(dialog, sip.Cause{Protocol: "SIP", Code: 503, Text: "Call could not be resumed"})
	}
	if err != nil {
		b.log.Warn("the phone of a leg that cannot be resumed is not told", "leg", row.ID, "err", err)
	}
	if row.Direction == "out" {
		var state storedState
		_ = json.Unmarshal([]byte(row.State), &state) // else the room gets a new notice
		b.forgetOrder(row, state.Notice)
		b.lost(state.Instead)
	}
	return b.journal.DeleteLeg(row.ID, b.hold(row.Epoch), string(leg.ProcessDied), time.Now())
}

// resumeLeg gives a row its phone's dialog, its sound and its actor back. A row that meets a bug of ours is an error: it must not
// end the process, for it would at every start.
func (b *Bridge) resumeLeg(row db.Leg, before matrixcall.MembershipInfo, known, called bool) (err error) {
	defer func() {
		if bug := recover(); bug != nil {
			err = &bugError{what: bug, stack: string(debug.Stack())}
		}
	}()
	var state storedState
	if err := json.Unmarshal([]byte(row.State), &state); err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if state.Out && !state.Dialled() {
		return errNotDialled
	}
	dialog, err := b.vault.dialogOf(row)
	if err != nil {
		return err
	}
	call, err := b.phones.Resume(dialog)
	if err != nil {
		return fmt.Errorf("resume dialog: %w", err)
	}
	a := makeActor(b, leg.ID(row.ID), call)
	a.log = a.log.With("resumed", true)
	a.epoch, a.begun, a.answered = row.Epoch, row.Created, row.Answered
	a.state = state.Successor()
	a.held = dialog.Held()
	a.move.instead, a.move.in = state.Instead, state.Moving
	if state.Out {
		a.resumeOrder(row, state.Notice)
	}
	a.join.localpart = row.Ghost
	if known {
		a.before, a.target = &before, string(before.Room)
		a.join.saved.Store(&before)
		if a.join.localpart == "" { // written before the ghost was chosen
			a.join.localpart, _, _ = strings.Cut(strings.TrimPrefix(string(before.Ghost), "@"), ":")
		}
	}
	if err := json.Unmarshal([]byte(row.Options), &a.options); err != nil {
		a.log.Warn("options of a resumed leg make no sense; the defaults hold", "err", err)
	}
	a.options = a.options.Over(b.routes.defaults)
	a.resumeMenu(state)
	begin, goesOn := leg.Interrupted, leg.Resumed
	asked := !known && state.Asked()
	if asked {
		goesOn = leg.ResumedAsking
	}
	if (known || asked) && (state.Answered() || dialog.Confirmed) {
		media, err := call.OpenMedia()
		if err != nil {
			a.log.Warn("the phone's ports cannot be opened again", "err", err)
		} else {
			begin, a.media = goesOn, media
			a.stream = phoneConfig(media.Format())
			a.stream.SSRC = sip.NewSSRC(dialog.Media.LocalSSRC)
		}
	}
	if a.join.localpart != "" && !b.claimGhost(a.join.localpart) {
		begin = a.changeGhost(begin)
	}
	a.dialin.parked = begin == leg.ResumedAsking && a.join.localpart != ""
	if begin == leg.Interrupted {
		close(a.join.over) // there is no attempt to join
	} else {
		sounding := make(chan struct{})
		a.sounding, a.sounds = sounding, sync.OnceFunc(func() { close(sounding) })
	}
	if !state.Out {
		a.resumeRing(state.Notice, id.RoomID(cmp.Or(string(before.Room), row.RoomID)), ringEnd(begin))
	}
	a.tell(begin)
	if begin == leg.Resumed {
		a.resumeAway(state.Away)
	}
	if dialog.Wish.Event != "" && !state.Moving {
		a.resumeWish(called)
	}
	a.listen()
	b.mu.Lock()
	b.legs[a.id] = a
	b.mu.Unlock()
	if begin == leg.Resumed {
		b.gather(a, before.Room) // so that phones of one room are company before their ghosts are back
	}
	b.wg.Go(func() { a.runResumed(row) })
	return nil
}

// runResumed is run, but for a bug that ends this leg only: it may be met in each process that resumes the leg.
func (a *actor) runResumed(row db.Leg) {
	defer func() {
		bug := recover()
		if bug == nil {
			return
		}
		a.log.Error("a resumed leg is ended by a bug", "bug", bug, "stack", string(debug.Stack()))
		a.note("delete row", a.bridge.dismiss(row))
		a.bridge.scatter(a)
		a.abandon()
		a.bridge.refusals.Go(func() {
			a.bridge.flush(flushPatience)
			a.note("sweep its ghost", a.bridge.sweepRooms(a.bridge.ctx))
		})
	}()
	a.run()
}

// changeGhost gives an adopted leg another ghost, because one of ours has its own by now. Its entry in the room is removed.
func (a *actor) changeGhost(begin leg.EventKind) leg.EventKind {
	b, before := a.bridge, a.before
	a.join.localpart = "" // it is not this leg's to give back
	if begin != leg.Resumed {
		return begin
	}
	name, err := b.reserveGhost(a.party, a.info.Trunk)
	if err != nil {
		a.log.Warn("no ghost for an adopted leg", "err", err)
		return leg.Interrupted
	}
	a.join.localpart = name
	a.join.saved.Store(nil)
	b.refusals.Go(func() {
		if err := b.sweepRoom(b.ctx, *before, a.epoch); err != nil {
			a.log.Warn("an entry of an adopted leg stays until it expires", "err", err)
		}
	})
	return begin
}

// ringEnd is how a ring ended that the process before had not told the room of.
func ringEnd(begin leg.EventKind) leg.Cause {
	if begin == leg.Resumed {
		return leg.Answered
	}
	return leg.ProcessDied
}

// askPhone asks the phone of a resumed call whether it is there. When its answer was never acknowledged it gets that again.
func (a *actor) askPhone() {
	if !a.call.Dialog().Confirmed {
		a.note("answer again", a.call.SendAnswer())
		return
	}
	if err := a.call.Refresh(); err != nil && !errors.Is(err, sip.ErrEnded) {
		a.note("ask the phone", err)
	}
}

// rejoinCall brings the ghost back into the call that the process before had it in. A homeserver that is away is waited for:
// the leg's deadline ends that.
func (a *actor) rejoinCall(ctx context.Context, wide bool) error {
	for pause := rejoinPause; ; pause = min(2*pause, longestRejoin) {
		m, err := a.rejoin(ctx, wide)
		if err == nil {
			a.log.Info("ghost is back in the call", "after", time.Since(a.trace.begun).Round(time.Millisecond))
			a.enteredCall(ctx, m)
			if a.call.Dialog().Held() {
				m.Mute(true)
			}
			return nil
		}
		if joinCause(err) != leg.NoHomeserver {
			return err
		}
		a.log.Debug("call not rejoined yet", "err", err, "again_in", pause)
		select {
		case <-ctx.Done():
			return cmp.Or(context.Cause(ctx), err)
		case <-time.After(pause):
		}
	}
}

func (a *actor) rejoin(ctx context.Context, wide bool) (*matrixcall.Membership, error) {
	ghost, err := a.bridge.matrix.Ghost(ctx, a.join.localpart, a.name)
	if err != nil {
		return nil, fmt.Errorf("find ghost: %w", err)
	}
	a.join.ghost = ghost
	if ghost.UserID() != a.before.Ghost {
		if err := ghost.EnterRoom(ctx, a.before.Room); err != nil {
			return nil, fmt.Errorf("enter room %s: %w", a.before.Room, err)
		}
	}
	m, err := ghost.JoinCall(ctx, a.before.Room, matrixcall.CallOptions{
		Rejoin: a.before, EntryLife: a.bridge.cfg.Calls.EntryLife, WideBand: wide,
		OnEvent: a.fromRoom, OnPacket: a.fromPeer, Save: a.saveMembership, Unsure: a.bridge.unsure,
	})
	return m, err
}

// abandon ends the actor without a word to phone, room and database: another process acts on the leg.
func (a *actor) abandon() {
	a.stopTone()
	a.stopMedia()
	if a.join.cancel != nil { // first, so that enteredCall sees it or we see what it has stored
		a.join.cancel(matrixcall.ErrAbandoned)
	}
	if m := a.outlet.Load(); m != nil {
		m.Abandon()
	}
	a.bridge.drop(a)
	a.log.Info("leg let go", "state", a.state)
}

// yield is abandon where this process goes on, for it cannot ask the database whether the other one has taken over more than this leg.
// The ghost stays reserved: it is in use.
func (a *actor) yield() {
	a.log.Warn("another process has taken the leg over while the database could not be reached from here")
	a.abandon()
	a.stop(errForgotten) // else the call would wait for its last change to be saved
	a.call.Abandon()
	a.bridge.scatter(a)
}

// suspend is abandon after a last save: the next process resumes the leg.
func (a *actor) suspend() {
	if a.state.Phase >= leg.Asking && a.state.Phase <= leg.Talking {
		a.note("save leg", a.bridge.journal.PutLeg(a.row()))
	}
	a.abandon()
}

// suspendLegs lets go of every leg so that the next process can resume it. Phones that are not answered are told to try
// again; those that are hear a pause.
func (b *Bridge) suspendLegs() {
	b.mu.Lock()
	b.closing = true
	var unanswered []*actor
	for _, a := range b.legs {
		if a.phase < leg.Asking {
			unanswered = append(unanswered, a)
			a.tell(leg.Shutdown)
		}
	}
	b.mu.Unlock()
	patience := time.After(suspendPatience)
	for _, a := range unanswered {
		select {
		case <-a.ctx.Done():
		case <-patience:
			b.log.Warn("legs that were not answered do not end; the next start sweeps them")
			patience = nil
		}
		if patience == nil {
			break
		}
	}
	b.phones.Deafen() // the next process answers what comes from now on
	close(b.suspended)
	over := make(chan struct{})
	go func() { b.wg.Wait(); close(over) }() // outlives this function only when legs hang, which ends the process
	select {
	case <-over:
	case <-time.After(suspendPatience):
		b.log.Error("legs are not let go in time")
	}
}
