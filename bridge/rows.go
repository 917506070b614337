package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/leg"
	"trunkline/bridge/menu"
	"trunkline/db"
	"trunkline/matrixcall"
)

// row is the leg as the next process will need it. Only the actor's goroutine calls it.
func (a *actor) row() db.Leg {
	d := a.call.Dialog()
	a.bridge.mu.Lock()
	state := storedState{
		State: a.state, Notice: a.ring.notice, Target: a.target, Menu: a.dialin.menu, Joined: a.dialin.joined,
		Lobby: storedLobby{Room: a.lobby.room, Notice: a.lobby.notice}, Instead: a.move.instead, Moving: a.move.in,
	}
	a.bridge.mu.Unlock()
	if a.away != nil {
		state.Away = &storedAway{Room: a.away.room, Notice: a.away.event(), To: a.away.to, Arrived: a.away.arrived}
	}
	l := db.Leg{
		ID: string(a.id), Owner: a.bridge.run, Epoch: a.epoch, Phase: a.state.Phase.String(),
		Created: a.begun, Answered: a.answered, Updated: time.Now(),
		Direction: "in", Trunk: a.info.Trunk, Dialled: string(a.info.Dialled),
		Caller: string(a.info.Caller.Number), CallerName: a.info.Caller.DisplayName,
		Ghost: a.join.localpart, EndBy: a.state.EndBy,
		Muted: a.dialin.menu.Muted, PromptStep: a.dialin.menu.Phase.String(),
		CallID: d.CallID, LocalTag: d.LocalTag, Dialog: a.bridge.vault.dialog(string(a.id), d), Options: encode(a.options), State: encode(state),
	}
	switch m := a.outlet.Load(); {
	case m != nil:
		l.RoomID = string(m.Info().Room)
	case a.before != nil:
		l.RoomID = string(a.before.Room)
	}
	if a.order != nil {
		a.rowOfOrder(&l, state)
	}
	return l
}

// rowOfOrder fills in what is different in a call of ours. Before the INVITE may be out there is no dialog: nobody is to be
// told that the call is over.
func (a *actor) rowOfOrder(l *db.Leg, state storedState) {
	o := a.order
	state.Notice = o.board.event()
	l.Direction, l.Dialled, l.DialledBy, l.RoomID, l.State = "out", o.number, string(o.by), string(o.room), encode(state)
	l.UsageDay, l.Reserved = o.day, o.most
	if !state.Dialled() {
		l.Dialog = "{}"
	}
}

// storedState is the machine's state, and what else of the leg has no column of its own.
type storedState struct {
	leg.State
	Notice id.EventID `json:",omitempty"` // of the ring or order; "" = none, or it says how the ring ended
	Target string     // the room's alias or id
	Menu   menu.State
	Lobby  storedLobby
	Joined bool        // the room was told that the phone has joined
	Away   *storedAway `json:",omitempty"`

	Instead leg.ID `json:",omitempty"` // the leg whose phone is let go when this one talks
	Moving  bool   `json:",omitempty"` // the phone has asked to be here, and is to be told how that went
}

func encode(document any) string {
	text, err := json.Marshal(document)
	if err != nil {
		panic(fmt.Sprintf("%T is plain data, yet: %v", document, err))
	}
	return string(text)
}

// membershipOf is a stored membership in matrixcall's terms.
func membershipOf(m db.Membership) matrixcall.MembershipInfo {
	return matrixcall.MembershipInfo{
		Ghost: id.UserID(m.Ghost), Device: id.DeviceID(m.DeviceID), Room: id.RoomID(m.RoomID), ConfID: m.ConfID,
		CallEvent: id.EventID(m.CallEvent), SessionID: m.SessionID, Created: m.CreatedByUs, Expires: m.Expires,
	}
}

// putMembership returns when the membership is in the database.
func (a *actor) putMembership(ctx context.Context, i matrixcall.MembershipInfo) error {
	return a.bridge.journal.SaveMembership(ctx, db.Membership{
		Ghost: string(i.Ghost), RoomID: string(i.Room), ConfID: i.ConfID, DeviceID: string(i.Device), SessionID: i.SessionID,
		CreatedByUs: i.Created, CallEvent: string(i.CallEvent), Expires: i.Expires, LegID: string(a.id), Owner: a.bridge.run, Epoch: a.epoch,
	})
}

func (b *Bridge) deleteMembership(i matrixcall.MembershipInfo, epoch int64) error {
	return b.journal.DeleteMembership(string(i.Ghost), string(i.Room), b.hold(epoch))
}

// hold says in the database's terms that a row is ours.
func (b *Bridge) hold(epoch int64) db.Hold { return db.Hold{Owner: b.run, Epoch: epoch} }
