package bridge

import (
	"context"
	"fmt"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/leg"
)

// board is the one notice of a call or transfer that was ordered: it is edited as that gets on. The latest text wins.
type board struct {
	actor *actor
	room  id.RoomID

	mu     sync.Mutex // guards what follows
	notice id.EventID // "" = could not be posted
	next   string     // to be shown after what is under way, "" = none
	busy   bool       // keepUp runs
}

// post says the first thing. The call waits for it: a process that dies leaves word of what it began.
func (p *board) post(ctx context.Context, text string) {
	a := p.actor
	ctx, cancel := context.WithTimeout(ctx, noticePatience)
	defer cancel()
	notice, err := a.bridge.matrix.NoticeID(ctx, p.room, nil, text)
	a.note("tell the room that a phone is called", err)
	p.mu.Lock()
	p.notice = notice
	p.mu.Unlock()
}

// event names the notice.
func (p *board) event() id.EventID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.notice
}

// show lets the notice say something else, if there is one. Only the actor calls it.
func (p *board) show(text string) {
	if p.event() != "" {
		p.tell(text)
	}
}

// tell is show, and a notice of its own where there is none to edit. Only the actor calls it.
func (p *board) tell(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = text
	if !p.busy {
		p.busy = true
		p.actor.wg.Go(p.keepUp)
	}
}

// keepUp lets the notice say what is wanted, until it does.
func (p *board) keepUp() {
	a := p.actor
	for {
		p.mu.Lock()
		notice, text := p.notice, p.next
		p.next, p.busy = "", text != ""
		p.mu.Unlock()
		if text == "" {
			return
		}
		if notice == "" {
			p.post(context.WithoutCancel(a.ctx), text)
			continue
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), noticePatience)
		a.note("tell the room how its call is getting on", a.bridge.matrix.EditNotice(ctx, p.room, notice, text))
		cancel()
	}
}

// report tells the room how the call that it ordered is getting on, or why it is over.
func (a *actor) report(how leg.Cause) {
	switch how {
	case leg.PhoneRinging:
		a.order.board.show(a.name + " rings.")
		a.succeeds(180)
	case leg.LineHeard:
		a.order.board.show("Calling " + a.name + ": the line can be heard.")
	case leg.AnotherLine:
		a.order.board.show("Calling " + a.name + " over another line …")
	case leg.Answered:
		a.order.board.show(a.name + " has answered.")
	default:
		a.order.board.show(callOver(a.name, how, a.talked()))
	}
}

// talked is how long the phone has been up.
func (a *actor) talked() time.Duration {
	if a.answered.IsZero() {
		return 0
	}
	return time.Since(a.answered)
}

// callOver says why a call that was ordered is over, and what to do about it.
func callOver(name string, how leg.Cause, talked time.Duration) string {
	text, known := overWords[how]
	if !known {
		text = string(how)
	}
	if talked > 0 {
		return fmt.Sprintf("Call to %s: over after %s, %s.", name, spoken(talked), text)
	}
	return fmt.Sprintf("Call to %s: %s.", name, text)
}

// spoken is a duration for people.
func spoken(d time.Duration) string {
	d = d.Round(time.Second)
	if d < time.Hour {
		return fmt.Sprintf("%d:%02d", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60)
}

// overWords are the causes that a call from a room may end with.
var overWords = map[leg.Cause]string{
	leg.PhoneBusy:      "busy",
	leg.PhoneSilent:    "no answer",
	leg.PhoneDeclined:  "declined",
	leg.PhoneAway:      "the phone can't be reached; it may be switched off",
	leg.NoSuchNumber:   "the number is not in use; check it",
	leg.NumberChanged:  "the number has changed",
	leg.BadNumber:      "the number is not complete, or has too many digits; check it",
	leg.NetworkBusy:    "the telephone network is busy; try again later",
	leg.NetworkFailed:  "the telephone network failed; try again later",
	leg.NotPermitted:   "the telephone line does not permit it; ask who runs this bridge",
	leg.NoCommonCodec:  "the phone and this bridge have no codec in common; ask who runs this bridge",
	leg.Forwarded:      "the number is forwarded to another one, which is not called for you",
	leg.TrunkAway:      "the telephone line does not answer; try again later, or ask who runs this bridge",
	leg.HungUp:         "hung up in the room",
	leg.Transferred:    "the phone was transferred",
	leg.SwitchedOff:    "calls to telephones were switched off",
	leg.PhoneLeft:      "the phone hung up",
	leg.PhoneElsewhere: "another phone has the call",
	leg.PhoneLost:      "the phone was lost",
	leg.RoomEmptied:    "everybody has left the room's call",
	leg.NobodyCame:     "nobody has joined the room's call",
	leg.EndedInRoom:    "the room's call was ended",
	leg.RoomLost:       "the phone could not stay in the room's call",
	leg.NoRights:       "phones may not join calls in this room",
	leg.NoSuchRoom:     "the bridge can't bring a phone into this room; invite the bot, and let it invite others",
	leg.NoHomeserver:   "the homeserver does not answer; try again later",
	leg.NotStored:      "the bridge can't reach its database; try again later",
	leg.TookTooLong:    "it took too long to join the room's call; try again",
	leg.LongestReached: "it has lasted as long as a call may",
	leg.ShuttingDown:   "the bridge is being restarted; try again in a minute",
	leg.ProcessDied:    "the bridge was restarted; try again",
	leg.Busy:           "the number is in as many calls as it may be",
}
