package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"maunium.net/go/mautrix/id"

	"trunkline/bridge/command"
	"trunkline/bridge/leg"
	"trunkline/bridge/menu"
	"trunkline/bridge/quota"
	"trunkline/matrixcall"
)

const (
	// maxOrders is how many commands of one room may wait; more are dropped.
	maxOrders       = 10
	commandPatience = 30 * time.Second
	// repliesPerMinute bounds what one room gets to read in answer to commands.
	repliesPerMinute = 20
	commaPause       = 500 * time.Millisecond // in a row of keys
	keyPause         = 150 * time.Millisecond // what a key takes, see sip.Media.SendDigit
)

// orders is what the bridge remembers of commands. The bridge's mutex guards it.
type orders struct {
	waiting map[id.RoomID][]func(context.Context) // of rooms whose commands are being carried out, in order
	pending map[speaker]pendingCall               // calls that wait for a second word
	replies map[id.RoomID]*rate.Limiter
	secret  map[id.RoomID]time.Time // rooms with messages that can't be read, and when they were last told so, or asked for whether they were
}

// speaker is somebody in a room.
type speaker struct {
	user id.UserID
	room id.RoomID
}

// pendingCall is an expensive call, as it was typed.
type pendingCall struct {
	quota.Pending
	typed    string
	question id.EventID // a reaction to it counts as the second word; "" = it is not posted
}

func newOrders() orders {
	return orders{
		waiting: make(map[id.RoomID][]func(context.Context)), pending: make(map[speaker]pendingCall),
		replies: make(map[id.RoomID]*rate.Limiter), secret: make(map[id.RoomID]time.Time),
	}
}

// message hears of every text message in every room. It must not block.
func (b *Bridge) message(m matrixcall.RoomMessage) {
	cmd, ok, err := b.grammar.Parse(m.Body)
	switch {
	case !ok:
	case err != nil:
		b.inTurn(m.Room, func(ctx context.Context) { b.reply(ctx, m.Room, err.Error()) })
	case cmd.Verb == command.Decline: // who may take part may decline, and admit
		b.decline(m.Room, m.Sender, func(*ring) bool { return true })
		b.attend(m.Room, m.Sender, false, func(*lobby) bool { return true })
	case cmd.Verb == command.Admit:
		b.attend(m.Room, m.Sender, true, func(*lobby) bool { return true })
	default:
		b.inTurn(m.Room, func(ctx context.Context) { b.carryOut(ctx, cmd, m.Sender, m.Room) })
	}
}

// invited hears of every ghost that a person invites to a room: one that is named by a number is to be called. It must not block.
func (b *Bridge) invited(i matrixcall.GhostInvite) {
	localpart, _, _ := i.Ghost.Parse()
	typed := strings.TrimPrefix(localpart, b.cfg.AppService.GhostPrefix)
	if strings.Trim(strings.TrimPrefix(typed, "+"), "0123456789") != "" || typed == "" {
		return // the ghost of some caller
	}
	if b.cfg.Permissions.Level(string(i.Sender), string(i.Room)) == command.LevelNone {
		b.log.Info("a stranger invites the ghost of a number", "by", i.Sender, "room", i.Room)
		return // and no user is made for what they made up
	}
	b.inTurn(i.Room, func(ctx context.Context) {
		if err := b.matrix.AnswerInvite(ctx, i); err != nil {
			b.log.Warn("could not answer an invitation", "room", i.Room, "err", err)
		}
		b.carryOut(ctx, command.Command{Verb: command.Call, Number: typed}, i.Sender, i.Room)
	})
}

// inTurn carries out what is wished in a room after what was wished there before.
func (b *Bridge) inTurn(room id.RoomID, do func(context.Context)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	queue, busy := b.orders.waiting[room]
	if b.closing || len(queue) >= maxOrders {
		b.log.Warn("a command is not carried out", "room", room, "closing", b.closing, "waiting", len(queue))
		return
	}
	b.orders.waiting[room] = append(queue, do)
	if !busy {
		b.commands.Go(func() { b.carryOutAll(room) })
	}
}

func (b *Bridge) carryOutAll(room id.RoomID) {
	for {
		b.mu.Lock()
		queue := b.orders.waiting[room]
		if len(queue) == 0 || b.closing {
			delete(b.orders.waiting, room)
			b.mu.Unlock()
			return
		}
		do := queue[0]
		b.orders.waiting[room] = queue[1:]
		b.mu.Unlock()
		ctx, cancel := context.WithTimeout(b.ctx, commandPatience)
		do(ctx)
		cancel()
	}
}

// carryOut does what somebody wishes, or says why not.
func (b *Bridge) carryOut(ctx context.Context, cmd command.Command, by id.UserID, room id.RoomID) {
	level := b.cfg.Permissions.Level(string(by), string(room))
	b.metrics.commands.WithLabelValues(string(cmd.Verb)).Inc()
	b.log.Info("command", "command", cmd, "by", by, "room", room, "level", level)
	if level < cmd.Needs() {
		if cmd.Needs() == command.LevelCall {
			b.refusedOrder(by, room, notPermitted)
		}
		b.reply(ctx, room, b.grammar.Denied(cmd))
		return
	}
	var text string
	var err error
	switch cmd.Verb {
	case command.Help:
		text = b.grammar.Help(cmd.About, level)
	case command.Who:
		text = b.who(room)
	case command.Call:
		err = b.order(ctx, by, room, cmd.Number)
	case command.Confirm:
		err = b.confirm(ctx, by, room)
	case command.Transfer:
		err = b.transfer(ctx, cmd, by, room)
	case command.HangUp:
		text, err = b.forPhones(room, cmd.Phone, "hung up", func(a *actor) { a.tell(leg.HungUpByRoom) })
	case command.Mute, command.Unmute:
		on := cmd.Verb == command.Mute
		text, err = b.forPhones(room, cmd.Phone, string(cmd.Verb)+"d", func(a *actor) { a.inbox.Put(func() { a.silence(on) }) })
	case command.PIN:
		text, err = b.pinOf(ctx, cmd.PIN, by, room)
	case command.DTMF:
		text, err = b.forPhones(room, cmd.Phone, "", func(a *actor) { a.inbox.Put(func() { a.press(cmd.Digits) }) })
	}
	if err != nil {
		if reason := reasonOf(err); reason != "" {
			b.refusedOrder(by, room, reason)
		}
		var known bool
		if text, known = plainWords(err); !known {
			b.log.Error("command failed", "command", cmd, "room", room, "err", err)
		}
	}
	if text != "" {
		b.reply(ctx, room, text)
	}
}

// reply says something in a room, as long as that is not flooded.
func (b *Bridge) reply(ctx context.Context, room id.RoomID, text string) {
	if !b.mayReply(room) {
		return
	}
	if err := b.matrix.Notice(ctx, room, nil, text); err != nil {
		b.log.Warn("could not answer a command", "room", room, "err", err)
	}
}

// mayReply tells whether a room may be told something more, and counts that.
func (b *Bridge) mayReply(room id.RoomID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	pace := b.orders.replies[room]
	if pace == nil {
		pace = rate.NewLimiter(rate.Every(time.Minute/repliesPerMinute), repliesPerMinute)
		b.orders.replies[room] = pace
	}
	return pace.Allow()
}

// forget drops what commands need not know any more; called with the bridge's mutex held.
func (o *orders) forget(now time.Time) {
	for who, p := range o.pending {
		if now.Sub(p.Asked) > quota.ConfirmWithin {
			delete(o.pending, who)
		}
	}
	maps.DeleteFunc(o.secret, func(_ id.RoomID, at time.Time) bool { return now.Sub(at) >= noticePause })
	for room, pace := range o.replies {
		if pace.TokensAt(now) >= repliesPerMinute {
			delete(o.replies, room)
		}
	}
}

// order calls a telephone, or asks for a second word.
func (b *Bridge) order(ctx context.Context, by id.UserID, room id.RoomID, typed string) error {
	err := b.place(ctx, by, room, typed, false)
	dear, ok := errors.AsType[*needsConfirmation](err)
	if !ok {
		return err
	}
	p := pendingCall{Pending: quota.Pending{Request: quota.Request{User: string(by), Room: string(room)}, Asked: time.Now()}, typed: typed}
	if !b.mayReply(room) { // a call that nobody was asked about must not wait for a second word
		b.refusedOrder(by, room, "room reads too much")
		return b.tellOnce(ctx, room, nil, dear.text+" This room has had too many answers to be asked about that now. Try again in a minute.")
	}
	p.question, err = b.matrix.NoticeID(ctx, room, nil, fmt.Sprintf("%s Write \"%s %s\", or react to this with ✅, within a minute if you want to call it.",
		dear.text, b.grammar.Prefix, command.Confirm))
	if err != nil {
		return fmt.Errorf("ask for a second word: %w", err)
	}
	b.mu.Lock()
	b.orders.pending[speaker{by, room}] = p
	b.mu.Unlock()
	return nil
}

// confirm is the second word.
func (b *Bridge) confirm(ctx context.Context, by id.UserID, room id.RoomID) error {
	b.mu.Lock()
	p, ok := b.orders.pending[speaker{by, room}]
	delete(b.orders.pending, speaker{by, room})
	b.mu.Unlock()
	if !ok || !p.Confirms(time.Now(), string(by), string(room)) {
		return &refusal{text: fmt.Sprintf("There is no call to confirm. Write \"%s %s\" and the number first.", b.grammar.Prefix, command.Call)}
	}
	return b.place(ctx, by, room, p.typed, true)
}

// pinOf does what is wished with the PINs of a room.
func (b *Bridge) pinOf(ctx context.Context, wish command.PINWish, by id.UserID, room id.RoomID) (string, error) {
	if wish == command.RemovePIN {
		if err := b.RemovePINs(ctx, room); err != nil {
			return "", err
		}
		return "No PIN leads into this room any more.", nil
	}
	numbers, err := b.numbersWithPINs(ctx, room)
	if err != nil {
		return "", err
	}
	if len(numbers) == 0 {
		return "", &refusal{text: "No telephone number asks for PINs of this room. Ask who runs this bridge."}
	}
	dial := "Dial " + strings.Join(numbers, " or ")
	if wish == command.NewPIN {
		return "", b.tellNewPIN(ctx, dial, by, room)
	}
	n, err := b.PINs(ctx, room)
	if err != nil || n > 0 {
		return fmt.Sprintf("%s and enter the PIN. %d lead here; what is stored can't be read back.", dial, n), err
	}
	return fmt.Sprintf("No PIN leads into this room. Write \"%s pin new\" to have one made.", b.grammar.Prefix), nil
}

// tellNewPIN makes a PIN in place of those that the room has, and tells it what to dial. Nobody can be told of it later, so none is
// made for a room that has read all that it may for now.
func (b *Bridge) tellNewPIN(ctx context.Context, dial string, by id.UserID, room id.RoomID) error {
	if !b.mayReply(room) {
		b.log.Info("no PIN is made for a room that has read enough", "room", room, "by", by)
		return nil
	}
	made, err := b.renewPIN(ctx, room, by)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s and enter %s#. Everybody who can read this can dial in; it is not shown again.", dial, made)
	if err := b.matrix.Notice(ctx, room, nil, text); err != nil {
		b.log.Error("nobody knows the PIN of a room, for it could not be told: make another one", "room", room, "err", err)
	}
	return nil
}

// waitingIn are the legs in the lobby of a room, oldest first. Commands do not count them: they are let in or sent away.
func (b *Bridge) waitingIn(room id.RoomID) []*actor {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.oldestFirst(func(a *actor) bool { return a.lobby.on && a.lobby.room == room && a.gathered == nil })
}

// phonesIn are the legs of a room that are not over, oldest first.
func (b *Bridge) phonesIn(room id.RoomID) []*actor {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.oldestFirst(func(a *actor) bool {
		return a.gathered != nil && a.gathered.room == room || a.order != nil && a.order.room == room
	})
}

// oldestFirst lists legs that are not over; called with the bridge's mutex held.
func (b *Bridge) oldestFirst(meant func(*actor) bool) (list []*actor) {
	for _, a := range b.legs {
		if a.phase < leg.Refusing && meant(a) {
			list = append(list, a)
		}
	}
	slices.SortFunc(list, func(x, y *actor) int { return cmp.Or(x.begun.Compare(y.begun), cmp.Compare(x.id, y.id)) })
	return list
}

// who lists them, and those that wait in the lobby.
func (b *Bridge) who(room id.RoomID) string {
	var lines []string
	for i, a := range b.phonesIn(room) {
		lines = append(lines, fmt.Sprintf("%d. %s", i+1, a.described()))
	}
	for _, a := range b.waitingIn(room) {
		lines = append(lines, a.described())
	}
	if len(lines) == 0 {
		return "There is no phone here."
	}
	return strings.Join(lines, "\n")
}

// described asks the leg to describe itself.
func (a *actor) described() string {
	var text string
	if a.do(func() error { text = a.describe(); return nil }) != nil {
		return "has just left"
	}
	return text
}

// describe is the phone for people in the room.
func (a *actor) describe() string {
	what := "comes in"
	switch a.state.Phase {
	case leg.Ringing:
		what = "calls this room"
	case leg.Asking:
		if a.dialin.menu.Phase == menu.Lobby {
			what = "waits in the lobby"
		}
	case leg.Dialling:
		what = "is being called by " + string(a.order.by)
	case leg.Talking, leg.Resuming:
		what = "talks for " + spoken(a.talked())
	case leg.Refusing, leg.Ending, leg.Ended:
		what = "leaves"
	}
	text := a.name + " " + what
	if a.held {
		text += ", on hold"
	}
	if a.dialin.menu.Muted {
		text += ", muted"
	}
	return text
}

// forPhones does something with those phones of a room that are meant. What was done is said, unless it shows by itself.
func (b *Bridge) forPhones(room id.RoomID, which command.Phone, done string, do func(*actor)) (string, error) {
	phones := b.phonesIn(room)
	places, err := which.Of(len(phones))
	if err != nil {
		return "", err
	}
	for _, i := range places {
		do(phones[i])
	}
	switch {
	case done == "":
		return "", nil
	case len(places) == 1:
		return fmt.Sprintf("Phone %d is %s.", places[0]+1, done), nil
	}
	return fmt.Sprintf("%d phones are %s.", len(places), done), nil
}

// silence mutes the phone for the room, or no longer. Its own key undoes that.
func (a *actor) silence(on bool) {
	if a.dialin.menu.Phase == menu.Idle { // it does not talk yet
		a.dialin.menu.Muted = on
		return
	}
	a.stepMenu(menu.Event{Kind: menu.RoomMutes, On: on})
}

// press presses keys for the phone; a comma waits.
func (a *actor) press(keys string) {
	v := a.voice.Load()
	if v == nil {
		return
	}
	a.wg.Go(func() {
		for _, key := range keys {
			pause := keyPause
			if key == ',' {
				pause = commaPause
			} else {
				v.opts.Press(key)
			}
			select {
			case <-a.ctx.Done():
				return
			case <-time.After(pause):
			}
		}
	})
}
