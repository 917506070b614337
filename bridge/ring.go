package bridge

import (
	"context"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/leg"
)

const (
	noticePatience = 10 * time.Second
	// maxAsked bounds the questions to the homeserver whether somebody may decline, at a time for one leg.
	maxAsked = 4
	// ringNotices in ringNoticePeriod are the most that one room gets to read; more calls than that ring without a notice.
	ringNotices      = 10
	ringNoticePeriod = 10 * time.Minute
)

// declineKeys are the reactions that decline a call, without variation selectors.
var declineKeys = map[string]bool{"❌": true, "✖": true, "🚫": true, "⛔": true, "👎": true, "📵": true, "🔕": true}

// ring is what a leg that rings in its room must remember.
type ring struct {
	// The bridge's mutex guards these three.
	on     bool
	notice id.EventID // ours that says who calls; "" = not posted, or it says already how that ended
	call   id.EventID // the m.call event

	// Only the actor touches these.
	posted chan struct{} // closed when the notice was posted or could not be; nil = never rang
	asked  int           // questions under way whether somebody may decline
	by     id.UserID     // who declined
}

// ringRoom tells the room who calls, and lets its members decline.
func (a *actor) ringRoom() {
	if a.ring.posted != nil {
		return
	}
	b, info := a.bridge, a.join.membership.Info()
	b.metrics.rings.Inc()
	a.log.Info("room is rung", "room", a.target, "timeout", a.state.Rules.Ring)
	b.mu.Lock()
	a.ring.on, a.ring.call = true, info.CallEvent
	b.mu.Unlock()
	posted := make(chan struct{})
	a.ring.posted = posted
	if !*a.options.RingNotice || !b.mayAnnounce(info.Room) {
		close(posted)
		return
	}
	text := "Call from " + a.caller() + ": join the call to answer, react with ❌ to decline. " +
		b.grammar.Prefix + " decline declines all calls that ring in this room."
	ghost := a.join.ghost
	a.wg.Go(func() {
		defer close(posted)
		defer b.holdReactions(info.Room)()
		ctx, cancel := context.WithTimeout(a.ctx, noticePatience)
		defer cancel()
		notice, err := b.matrix.NoticeID(ctx, info.Room, ghost, text)
		a.note("tell the room who calls", err)
		b.mu.Lock()
		a.ring.notice = notice
		b.mu.Unlock()
		a.inbox.Put(a.saveNotice)
	})
}

// saveNotice lets the next process know which notice to edit, if this one dies while the room is rung.
func (a *actor) saveNotice() {
	if a.state.Phase == leg.Ringing {
		a.note("save leg", a.bridge.journal.PutLeg(a.row()))
	}
}

// ringOver lets the notice say how the ring ended.
func (a *actor) ringOver(how leg.Cause) {
	b := a.bridge
	b.mu.Lock()
	was := a.ring.on
	a.ring.on = false
	b.mu.Unlock()
	if !was {
		return
	}
	b.metrics.ringsEnded.WithLabelValues(string(how)).Inc()
	a.log.Info("ring is over", "how", how)
	a.editNotice(a.join.membership.Info().Room, how)
}

// resumeRing ends the ring of the process before, if its notice does not say yet how that ended.
func (a *actor) resumeRing(notice id.EventID, room id.RoomID, how leg.Cause) {
	if notice == "" {
		return
	}
	a.ring.notice, a.ring.posted = notice, make(chan struct{})
	close(a.ring.posted)
	a.editNotice(room, how)
}

// editNotice lets the notice, once it is posted, say how the ring ended.
func (a *actor) editNotice(room id.RoomID, how leg.Cause) {
	b, posted, text := a.bridge, a.ring.posted, "Call from "+a.caller()+": "+ringOutcome(how, a.ring.by)+"."
	a.wg.Go(func() {
		<-posted
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), noticePatience)
		defer cancel()
		b.mu.Lock()
		notice := a.ring.notice
		b.mu.Unlock()
		if notice == "" {
			return
		}
		if err := b.matrix.EditNotice(ctx, room, notice, text); err != nil {
			a.note("tell the room how the ring ended", err)
			return
		}
		b.mu.Lock()
		a.ring.notice = ""
		b.mu.Unlock()
	})
}

// ringOutcome is how a ring ended, for the people in the room.
func ringOutcome(how leg.Cause, by id.UserID) string {
	switch how {
	case leg.Answered:
		return "answered"
	case leg.Declined:
		return "declined by " + string(by)
	case leg.NobodyAnswered:
		return "missed, nobody answered"
	case leg.Cancelled, leg.PhoneLeft:
		return "missed, the caller hung up"
	case leg.PhoneElsewhere:
		return "answered elsewhere"
	case leg.PhoneBusy:
		return "missed, another phone was busy"
	case leg.PhoneDeclined:
		return "declined elsewhere"
	case leg.EndedInRoom:
		return "ended in the room"
	case leg.ProcessDied, leg.ShuttingDown:
		return "missed, the bridge was restarted"
	}
	return "failed, " + string(how)
}

// mayAnnounce says whether a room may be told of one more call, and counts it.
func (b *Bridge) mayAnnounce(room id.RoomID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	recent := b.announced[room][:0]
	for _, at := range b.announced[room] {
		if now.Sub(at) < ringNoticePeriod {
			recent = append(recent, at)
		}
	}
	if len(recent) >= ringNotices {
		b.announced[room] = recent
		return false
	}
	b.announced[room] = append(recent, now)
	return true
}

// decline tells the legs that ring in the room, and are meant, that a member does not want them.
func (b *Bridge) decline(room id.RoomID, member id.UserID, meant func(*ring) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.rooms[room]
	if g == nil {
		return
	}
	for a := range g.legs {
		if a.ring.on && meant(&a.ring) {
			a.inbox.Put(func() { a.declineFor(member) })
		}
	}
}

// declineFor asks whether the member may take part in the call at all, and if so ends the ring.
func (a *actor) declineFor(member id.UserID) {
	if a.state.Phase != leg.Ringing || a.ring.asked >= maxAsked {
		return
	}
	a.ring.asked++
	ghost, room := a.join.ghost, a.join.membership.Info().Room
	a.wg.Go(func() {
		ctx, cancel := context.WithTimeout(a.ctx, noticePatience)
		defer cancel()
		may, err := ghost.MayTakePart(ctx, room, member)
		a.inbox.Put(func() {
			a.ring.asked--
			switch {
			case err != nil:
				a.log.Warn("could not ask whether a member may decline", "member", member, "err", err)
			case !may:
				a.log.Info("a member who may not take part wants to decline", "member", member)
			case a.state.Phase == leg.Ringing:
				a.log.Info("call is declined", "member", member)
				a.ring.by = member
				a.step(leg.Event{Kind: leg.RoomDeclined})
			}
		})
	})
}
