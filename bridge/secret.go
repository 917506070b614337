package bridge

import (
	"context"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/command"
	"trunkline/bridge/leg"
	"trunkline/matrixcall"
)

// Where messages are encrypted the bot's device must have been given their keys. A message whose key never comes can't be read, but
// reactions and invitations are in the clear there, too, so what costs money or ends a call can be said by them.

// secretSetting begins the names under which the database has which rooms were told of that. Under told.encrypted. it has which were
// told, by versions before the bot had keys, that commands do nothing there.
const secretSetting = "told.unreadable."

// reads tells whether what somebody says in a room may count: they have some permission, or somebody rings or waits there, whom all
// that may take part in the call can decline or admit. Others are told at most that they may not.
func (b *Bridge) reads(user id.UserID, room id.RoomID) bool {
	if b.cfg.Permissions.Level(string(user), string(room)) != command.LevelNone {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if g := b.rooms[room]; g != nil {
		for a := range g.legs {
			if a.ring.on {
				return true
			}
		}
	}
	for _, a := range b.legs {
		if a.lobby.on && a.lobby.room == room {
			return true
		}
	}
	return false
}

// unreadable hears of every encrypted message that could not be read. The first time that one comes from somebody whose commands
// would count, the room is told what works instead; once, over restarts, too. It must not block.
func (b *Bridge) unreadable(s matrixcall.RoomSecret) {
	if b.cfg.Permissions.Level(string(s.Sender), string(s.Room)) == command.LevelNone {
		return
	}
	b.mu.Lock()
	_, asked := b.orders.secret[s.Room]
	if !asked {
		b.orders.secret[s.Room] = time.Now()
	}
	b.mu.Unlock()
	if !asked {
		b.inTurn(s.Room, func(ctx context.Context) { b.tellSecret(ctx, s.Room) })
	}
}

func (b *Bridge) tellSecret(ctx context.Context, room id.RoomID) {
	told, err := b.store.Setting(ctx, secretSetting+string(room))
	if err != nil || told != "" {
		if err != nil {
			b.log.Warn("could not ask whether a room was told that a message can't be read", "room", room, "err", err)
		}
		return
	}
	ghost := id.NewUserID(b.cfg.AppService.GhostPrefix+"+4930123456", b.cfg.Homeserver.Domain)
	text := fmt.Sprintf("There is an encrypted message here that I can't read, for I was not given its key. If it was a command (%s …), write it "+
		"once more. If that does not help, your client may give no keys to devices that nobody has verified. What works without: invite %s, "+
		"with the number that you want, to call a telephone; react to my notices with ✅ to confirm or let in, with ❌ to decline or hang up.",
		b.grammar.Prefix, ghost)
	if err := b.matrix.HarmlessNotice(ctx, room, nil, text); err != nil {
		b.log.Warn("could not tell a room that a message can't be read", "room", room, "err", err)
		return
	}
	if err := b.store.PutSetting(ctx, secretSetting+string(room), "yes", time.Now()); err != nil {
		b.log.Warn("a room that was told that a message can't be read may be told again", "room", room, "err", err)
	}
}

// answerQuestion takes a reaction to the question whether an expensive number is to be called. The question may be on its way still to who
// has read it already, so its answer waits for its turn. Who may not answer gets none: turns are few.
func (b *Bridge) answerQuestion(r matrixcall.RoomReaction, yes bool) {
	if b.cfg.Permissions.Level(string(r.Sender), string(r.Room)) < (command.Command{Verb: command.Confirm}).Needs() {
		return
	}
	who := speaker{r.Sender, r.Room}
	b.mu.Lock()
	_, asked := b.orders.pending[who]
	_, busy := b.orders.waiting[r.Room]
	b.mu.Unlock()
	if !asked && !busy {
		return
	}
	b.inTurn(r.Room, func(ctx context.Context) {
		b.mu.Lock()
		p, asked := b.orders.pending[who]
		meant := asked && p.question == r.Target
		if meant && !yes {
			delete(b.orders.pending, who)
		}
		b.mu.Unlock()
		if meant && yes {
			b.carryOut(ctx, command.Command{Verb: command.Confirm}, r.Sender, r.Room)
		}
	})
}

// endOrder hangs up the phone whose notice somebody has put that reaction under, if they may hang up phones.
func (b *Bridge) endOrder(r matrixcall.RoomReaction) {
	b.mu.Lock()
	meant := b.oldestFirst(func(a *actor) bool {
		return a.order != nil && a.order.room == r.Room && a.order.board.event() == r.Target
	})
	b.mu.Unlock()
	if len(meant) == 0 {
		return
	}
	if b.cfg.Permissions.Level(string(r.Sender), string(r.Room)) < (command.Command{Verb: command.HangUp}).Needs() {
		b.log.Info("a member who may not hang up wants to, by a reaction", "member", r.Sender, "room", r.Room)
		return
	}
	for _, a := range meant {
		a.log.Info("hung up by a reaction", "member", r.Sender)
		a.tell(leg.HungUpByRoom)
	}
}
