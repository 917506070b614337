package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/command"
	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/bridge/number"
	"trunkline/bridge/quota"
	"trunkline/db"
	"trunkline/sip"
)

// order is a telephone that somebody in a room wants called. What a leg knows of it does not change, but for its notice.
type order struct {
	by     id.UserID
	room   id.RoomID
	number string // as [destination] has it
	day    string // on which it counts
	most   time.Duration

	board *board // what the room is told

	// Only the actor touches these.
	ways    []way     // that are left, when the trunk in use can't place the call
	booked  string    // the trunk that the call counts for
	why     leg.Cause // of the last refusal
	refused int       // its status; 0 = none
	over    *sip.Call // the call over the trunk before, which has nothing more to say; nil = there was none
}

// refusal is why somebody's wish is not carried out, in words for the room.
type refusal struct {
	text   string
	reason string // in a few words for the log and metrics, where it is about an order; "" = it is not counted
}

func (r *refusal) Error() string { return r.text }

// needsConfirmation is a call that wants a second word of who ordered it.
type needsConfirmation struct{ text string }

func (n *needsConfirmation) Error() string { return n.text }

// sipGrace lets the leg's own deadline be the one that ends a call nobody answers.
const sipGrace = 30 * time.Second

// place calls a telephone into a room's call. Its error is for the room ([plainWords]); without one the leg goes its way, and
// tells the room by itself.
func (b *Bridge) place(ctx context.Context, by id.UserID, room id.RoomID, typed string, confirmed bool) error {
	to, err := b.plan.Find(typed)
	if err != nil {
		return err
	}
	return b.placeTo(ctx, to, order{by: by, room: room, number: to.number}, placing{confirmed: confirmed, notice: "Calling "})
}

// placing is what else there is to know of a call that begins.
type placing struct {
	confirmed bool
	notice    string // what the room is told first, before the number
	instead   leg.ID // whose phone has asked for the call, and is let go for it; "" = nobody's
}

// placeTo is place where it is known whom to call.
func (b *Bridge) placeTo(ctx context.Context, to destination, o order, p placing) error {
	if err := b.takesOrders(); err != nil {
		return err
	}
	if err := b.followSwitch(ctx); err != nil {
		return fmt.Errorf("ask whether calls are switched off: %w", err)
	}
	call, left, err := b.prepare(ctx, to.ways)
	if err != nil {
		return cmp.Or(b.takesOrders(), err) // lines that are closed because a drain has begun are not in use
	}
	trunk := call.Info().Trunk
	o.ways, o.booked = left, trunk
	a := b.ordered(call, o)
	a.move.instead = p.instead
	if err := a.reserve(ctx, quota.Request{
		User: string(o.by), Room: string(o.room), Trunk: trunk, Number: to.number, Confirmed: p.confirmed,
	}); err != nil {
		a.note("put a prepared call away", call.Hangup(sip.Cause{}))
		return err
	}
	defer b.holdReactions(o.room)() // one to the notice is meant for a leg that is not taken in yet
	a.order.board.post(ctx, p.notice+a.name+" …")
	a.note("save leg", b.journal.SaveLeg(ctx, a.row())) // now it names the notice
	if why, err := b.takeIn(a); err != nil {
		a.note("put a prepared call away", call.Hangup(sip.Cause{}))
		a.deleteRow(why)
		return err
	}
	return nil
}

// takeIn lets a prepared call begin. Much may have happened while it was prepared, which takes as long as the homeserver wants: the
// error is why it may not any more, for the room, and the cause is that for the history.
func (b *Bridge) takeIn(a *actor) (leg.Cause, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch stopped := b.quotas().Stopped; {
	case b.closing || !b.ready:
		return leg.ShuttingDown, errGoesDown
	case !b.drain.since.IsZero():
		return leg.ShuttingDown, errDrains
	case stopped != "":
		_, err := decide(quota.Rules{Stopped: stopped}, time.Now(), quota.Request{}, nil)
		return leg.SwitchedOff, err
	case len(b.legs) >= b.cfg.Calls.MaxLegs:
		return leg.Busy, errTooMany
	}
	a.tell(leg.Ordered)
	a.listen()
	b.legs[a.id] = a
	b.wg.Go(a.run)
	return "", nil
}

var (
	errGoesDown = &refusal{text: "The bridge is being restarted. Try again in a minute.", reason: "restart"}
	errDrains   = &refusal{text: "The bridge is about to be restarted and places no more calls. Try again later.", reason: "restart"}
	errTooMany  = &refusal{text: "All telephone lines are in use. Try again later.", reason: string(leg.Busy)}
)

// trunkSilence is how long a trunk may say nothing at all where another one leads to the number, too. It says 100 within 0.2 s if it is
// well (RFC 3261 §17.2.1), and has had the INVITE four times by then.
const trunkSilence = 6 * time.Second

// takesOrders says why no call can be placed now.
func (b *Bridge) takesOrders() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closing || !b.ready:
		return errGoesDown
	case !b.drain.since.IsZero():
		return errDrains
	case b.journal.Away():
		return &refusal{text: "The bridge can't reach its database. Try again later.", reason: string(leg.NotStored)}
	case len(b.legs) >= b.cfg.Calls.MaxLegs:
		return errTooMany
	}
	return nil
}

// prepare binds the ports of a call over the first trunk that takes one, and says which ways are left then. Nothing is sent yet.
func (b *Bridge) prepare(ctx context.Context, ways []way) (*sip.Call, []way, error) {
	var errs []error
	for i, w := range ways {
		if !b.plan.AwaitTurn(ctx, w.trunk.Name) {
			errs = append(errs, errTooMany)
			continue
		}
		silence := time.Duration(0)
		if i+1 < len(ways) {
			silence = trunkSilence
		}
		call, err := b.phones.Dial(ctx, sip.DialRequest{
			Silence: silence,
			Trunk:   w.trunk.Name, Number: w.dial, From: callerOf(w.trunk),
			RingTimeout: b.cfg.Dialling.RingTimeout + sipGrace,
			HoldAck:     true,
			Replaces:    w.replaces, ReferredBy: w.referredBy,
			Redirect: func(to sip.Number) sip.Number {
				if b.quotas().Stopped != "" {
					return ""
				}
				return b.plan.Redirected(w.trunk.Name, to)
			},
		})
		if err == nil {
			return call, ways[i+1:], nil
		}
		b.log.Warn("a trunk does not take a call", "trunk", w.trunk.Name, "err", err)
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	switch {
	case errors.Is(err, sip.ErrFull), errors.Is(err, errTooMany):
		return nil, nil, errTooMany
	case errors.Is(err, sip.ErrDown):
		return nil, nil, &refusal{text: "The telephone line is out of order at present. Try again later.", reason: string(leg.TrunkAway)}
	}
	return nil, nil, fmt.Errorf("dial: %w", err)
}

// callerOf is who calls over a trunk. Neither the room nor who ordered the call is named: phones need not know of them.
func callerOf(t config.Trunk) sip.Caller {
	return sip.Caller{Number: sip.Number(t.Number), DisplayName: t.DisplayName, Private: t.HideNumber}
}

// ordered makes the leg of an order.
func (b *Bridge) ordered(call *sip.Call, o order) *actor {
	a := makeActor(b, newLegID(), call)
	o.board = &board{actor: a, room: o.room}
	a.order, a.target = &o, string(o.room)
	a.party = sip.Caller{Number: sip.Number(o.number)}
	a.name = ghostName(a.party, b.showNumbers[a.info.Trunk])
	a.log = b.log.With("leg", a.id, "out", true) // without the trunk, which may be another one in the end
	a.options = config.Options{                  // who is called is asked for nothing, and its notice tells the room
		Intent: config.IntentPrompt, PIN: config.PINNone, Lobby: new(false), Announce: new(false), SayPeople: new(false),
	}.Over(b.routes.defaults)
	a.dialin.menu.Rules = menuRules(a.options)
	a.state.Out = true
	a.state.Rules = b.rulesFor(a.options)
	a.state.Rules.Ring, a.state.Rules.Alone = b.cfg.Dialling.RingTimeout, b.cfg.Dialling.AloneTimeout
	return a
}

// reserve counts the call, if its limits allow it, and writes its row.
func (a *actor) reserve(ctx context.Context, q quota.Request) error {
	rules, now := a.bridge.quotas(), time.Now()
	day := rules.Day(now)
	keys := usageKeys(q, day)
	a.order.day = day
	ctx, cancel := context.WithTimeout(ctx, databasePatience)
	defer cancel()
	var refused error
	longest, err := a.bridge.store.Reserve(ctx, a.row(), keys, func(used []db.Usage) (longest time.Duration, err error) {
		longest, refused = decide(rules, now, q, used)
		return longest, refused
	})
	switch {
	case refused != nil:
		return refused
	case err != nil:
		a.bridge.journal.Report(err)
		// It may have been counted all the same, or be yet: what the database does not hear of for 5 s it undoes by itself.
		a.deleteRow(leg.NotStored)
		a.bridge.refusals.Go(func() {
			select {
			case <-time.After(2 * databasePatience):
				a.deleteRow(leg.NotStored)
			case <-a.bridge.ctx.Done(): // the next process ends what has no leg
			}
		})
		return fmt.Errorf("count the call: %w", err)
	}
	a.order.most = longest
	a.limitTalk(longest)
	a.bridge.meter.counted()
	return nil
}

func usageKeys(q quota.Request, day string) (keys []db.UsageKey) {
	for _, k := range quota.Keys(q, day) {
		keys = append(keys, db.UsageKey{Day: k.Day, Scope: string(k.Scope), Name: k.Name})
	}
	return keys
}

// quotaRows are the database's rows in the terms of package quota.
func quotaRows(used []db.Usage) []quota.Row {
	rows := make([]quota.Row, 0, len(used))
	for _, u := range used {
		rows = append(rows, quota.Row{
			Key:   quota.Key{Day: u.Day, Scope: quota.Scope(u.Scope), Name: u.Name},
			Calls: u.Calls, Talked: u.Talked, Running: u.Running, Reserved: u.Reserved,
		})
	}
	return rows
}

// decide asks package quota.
func decide(rules quota.Rules, now time.Time, q quota.Request, used []db.Usage) (time.Duration, error) {
	switch d := quota.Decide(rules, now, q, quotaRows(used)); d.Verdict {
	case quota.Allowed:
		return d.Longest, nil
	case quota.Confirm:
		return 0, &needsConfirmation{d.Text}
	default:
		return 0, &refusal{text: d.Text, reason: string(d.Scope) + ": " + string(d.Reason)}
	}
}

// plainWords says an error to the room; ok is false for one that tells people there nothing.
func plainWords(err error) (text string, ok bool) {
	if e, ok := errors.AsType[*refusal](err); ok {
		return e.text, true
	}
	if e, ok := errors.AsType[*number.Refusal](err); ok {
		return e.Text, true
	}
	if e, ok := errors.AsType[*command.Error](err); ok {
		return e.Text, true
	}
	return "That did not work, and the reason is in the bridge's log. Try again, or ask who runs this bridge.", false
}

// notPermitted is the reason why somebody's order is refused who may not place any.
const notPermitted = "not permitted"

// reasonOf is why an order is refused; "" for what is no refusal, or only a slip of the pen.
func reasonOf(err error) string {
	if e, ok := errors.AsType[*refusal](err); ok {
		return e.reason
	}
	if e, ok := errors.AsType[*number.Refusal](err); ok {
		return string(e.Reason)
	}
	return ""
}

// refusedOrder lets who watches over the bill know of a call that somebody wanted and was not allowed.
func (b *Bridge) refusedOrder(by id.UserID, room id.RoomID, reason string) {
	b.metrics.ordersRefused.WithLabelValues(reason).Inc()
	b.log.Info("an order is refused", "by", by, "room", room, "reason", reason)
}

// dialPhone sends the INVITE, unless calls were switched off while the ghost was on its way into the room's call.
func (a *actor) dialPhone() {
	if a.bridge.quotas().Stopped != "" {
		a.tellEvent(leg.Event{Kind: leg.Dismissed, Cause: leg.SwitchedOff})
		return
	}
	if err := a.call.SendInvite(); err != nil {
		a.note("dial", err)
		a.tell(leg.PhoneFailed)
		return
	}
	a.media = a.call.Media()
	a.log.Info("phone is called", "room", a.target, "trunk", a.info.Trunk, "call", a.info.CallID, "after", time.Since(a.begun).Round(time.Millisecond))
}

// fromDialled translates what a call of ours reports.
func (a *actor) fromDialled(ev sip.Event) {
	switch ev := ev.(type) {
	case sip.Provisional:
		if ev.Early {
			a.step(leg.Event{Kind: leg.PhoneSounds})
		}
		if ev.Code >= 180 && ev.Code <= 182 {
			a.step(leg.Event{Kind: leg.PhoneRings})
		}
	case sip.Answered:
		a.setFormat(a.media.Format()) // it may differ from that of early media
		a.step(leg.Event{Kind: leg.PhoneAnswered})
	case sip.Refused:
		a.refusedBy(ev)
	}
}

// codes are those of a Reason (RFC 3326): one is 0.
func codes(c sip.Cause) (status, q850 int) {
	switch strings.ToUpper(c.Protocol) {
	case "SIP":
		return c.Code, 0
	case "Q.850":
		return 0, c.Code
	}
	return 0, 0
}

// resumeOrder gives a leg of ours back what its row says of the order.
func (a *actor) resumeOrder(row db.Leg, notice id.EventID) {
	a.order = &order{
		by: id.UserID(row.DialledBy), room: id.RoomID(row.RoomID), number: row.Dialled, day: row.UsageDay, most: row.Reserved,
		booked: row.Trunk,
	}
	a.order.board = &board{actor: a, room: a.order.room, notice: notice}
	a.party = sip.Caller{Number: sip.Number(row.Dialled)}
	a.log = a.log.With("out", true)
}

// errNotDialled says that the process before had not called the phone yet.
var errNotDialled = errors.New("the process before died before it called the phone")

// forgetOrder tells the room of a call that the process before had not begun. It may have died before it knew its own notice.
func (b *Bridge) forgetOrder(row db.Leg, notice id.EventID) {
	name, room := ghostName(sip.Caller{Number: sip.Number(row.Dialled)}, b.showNumbers[row.Trunk]), id.RoomID(row.RoomID)
	text := callOver(name, leg.ProcessDied, 0)
	b.refusals.Go(func() {
		ctx, cancel := context.WithTimeout(b.ctx, noticePatience)
		defer cancel()
		var err error
		if notice == "" {
			_, err = b.matrix.NoticeID(ctx, room, nil, text)
		} else {
			err = b.matrix.EditNotice(ctx, room, notice, text)
		}
		if err != nil {
			b.log.Warn("could not tell the room that its call was not placed", "leg", row.ID, "err", err)
		}
	})
}
