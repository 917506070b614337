package bridge

import (
	"context"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/leg"
	"trunkline/bridge/menu"
)

// A phone in the lobby has a ghost that is a member of the room and not in its call. The room is told by a notice, and answers by
// a reaction to it or by a command.

// admitKeys are the reactions that let a phone in, without variation selectors.
var admitKeys = map[string]bool{"✅": true, "✔": true, "☑": true, "👍": true, "🆗": true, "👌": true}

// lobbyPatience is how long it may take to tell the room who waits.
const lobbyPatience = 30 * time.Second

// lobby is where a phone waits. The bridge's mutex guards it, but for what only the actor touches.
type lobby struct {
	on     bool
	room   id.RoomID
	notice id.EventID // ours that says who waits; "" = not posted, or it says already how that ended

	posted chan struct{} // closed when the notice is posted or could not be; nil = never waited; only the actor touches it
	asked  int           // questions under way whether somebody may answer; only the actor touches it
	by     id.UserID     // who let the phone in, or sent it away; only the actor touches it
}

// askAdmission brings the ghost into the room and tells the room who waits.
func (a *actor) askAdmission() {
	if !a.park() {
		return
	}
	posted, caller := make(chan struct{}), a.caller()
	a.lobby.posted = posted
	a.wg.Go(func() {
		defer close(posted)
		ctx, cancel := context.WithTimeout(a.ctx, lobbyPatience)
		defer cancel()
		ghost, room, err := a.enterRoom(ctx)
		if err != nil {
			a.log.Warn("the lobby's room is out of reach", "err", err)
			a.tellEvent(leg.Event{Kind: leg.RoomRefused, Cause: joinCause(err)})
			return
		}
		a.waitIn(room, "")
		prefix := a.bridge.grammar.Prefix
		text := fmt.Sprintf("%s waits in the lobby: react with ✅ to let the phone in, with ❌ to send it away. "+
			"%s and %s answer all that wait.", caller, prefix+" admit", prefix+" decline")
		defer a.bridge.holdReactions(room)()
		notice, err := a.bridge.matrix.NoticeID(ctx, room, ghost, text)
		a.note("tell the room who waits in the lobby", err)
		a.waitIn(room, notice)
		a.inbox.Put(func() {
			if a.state.Phase == leg.Asking {
				a.save()
			}
		})
	})
}

// waitIn opens the lobby to reactions and commands of its room.
func (a *actor) waitIn(room id.RoomID, notice id.EventID) {
	a.bridge.mu.Lock()
	defer a.bridge.mu.Unlock()
	a.lobby.on, a.lobby.room, a.lobby.notice = true, room, notice
}

// lobbyOver lets the notice say how the wait ended; an empty cause means that the phone may enter.
func (a *actor) lobbyOver(how leg.Cause) {
	b, posted := a.bridge, a.lobby.posted
	if posted == nil {
		return
	}
	a.lobby.posted = nil
	text := a.caller() + " waited in the lobby: " + lobbyOutcome(how, a.lobby.by) + "."
	a.wg.Go(func() {
		<-posted
		b.mu.Lock()
		room, notice := a.lobby.room, a.lobby.notice
		a.lobby.on, a.lobby.notice = false, ""
		b.mu.Unlock()
		if notice == "" {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), noticePatience)
		defer cancel()
		a.note("tell the room how the wait ended", b.matrix.EditNotice(ctx, room, notice, text))
	})
}

func lobbyOutcome(how leg.Cause, by id.UserID) string {
	switch how {
	case "":
		return "let in by " + string(by)
	case leg.Declined:
		return "sent away by " + string(by)
	case leg.PhoneLeft, leg.LeftByKey:
		return "hung up"
	case leg.NotAdmitted:
		return "nobody answered"
	}
	return "failed, " + string(how)
}

// attend tells the legs that wait in the lobby of a room, and are meant, that a member lets them in or sends them away.
func (b *Bridge) attend(room id.RoomID, member id.UserID, admit bool, meant func(*lobby) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range b.legs {
		if a.lobby.on && a.lobby.room == room && meant(&a.lobby) {
			a.inbox.Put(func() { a.attendFor(member, admit) })
		}
	}
}

// attendFor asks whether the member may take part in the call at all, and if so ends the wait.
func (a *actor) attendFor(member id.UserID, admit bool) {
	if a.state.Phase != leg.Asking || a.dialin.menu.Phase != menu.Lobby || a.lobby.asked >= maxAsked {
		return
	}
	a.lobby.asked++
	a.bridge.mu.Lock()
	room := a.lobby.room
	a.bridge.mu.Unlock()
	a.wg.Go(func() {
		ctx, cancel := context.WithTimeout(a.ctx, noticePatience)
		defer cancel()
		may, err := a.mayAttend(ctx, room, member)
		a.inbox.Put(func() {
			a.lobby.asked--
			switch {
			case err != nil:
				a.log.Warn("could not ask whether a member may answer for the lobby", "member", member, "err", err)
			case !may:
				a.log.Info("a member who may not take part answers for the lobby", "member", member)
			case a.dialin.menu.Phase == menu.Lobby:
				a.attended(member, admit)
			}
		})
	})
}

func (a *actor) mayAttend(ctx context.Context, room id.RoomID, member id.UserID) (bool, error) {
	ghost, err := a.bridge.matrix.Ghost(ctx, a.join.localpart, a.name)
	if err != nil {
		return false, fmt.Errorf("find ghost: %w", err)
	}
	return ghost.MayTakePart(ctx, room, member)
}

func (a *actor) attended(member id.UserID, admit bool) {
	a.log.Info("the lobby is answered", "member", member, "admit", admit)
	a.lobby.by = member
	if !admit {
		a.stepMenu(menu.Event{Kind: menu.Declined})
		return
	}
	a.stepMenu(menu.Event{Kind: menu.Admitted})
	a.lobbyOver("")
}

// resumeLobby goes on with a phone that waited in the lobby of the process before.
func (a *actor) resumeLobby(s storedLobby) {
	if s.Room == "" {
		return
	}
	a.lobby.posted = make(chan struct{})
	close(a.lobby.posted)
	a.waitIn(s.Room, s.Notice)
}

// storedLobby is what a row holds of a lobby.
type storedLobby struct {
	Room   id.RoomID  `json:",omitempty"`
	Notice id.EventID `json:",omitempty"`
}
