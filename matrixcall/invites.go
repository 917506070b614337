package matrixcall

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// GhostInvite says that a person has invited one of our ghosts to a room.
type GhostInvite struct {
	Room   id.RoomID
	Ghost  id.UserID // need not exist yet: inviting does not ask for that
	Sender id.UserID
}

// ghostInvite tells of an invitation of a ghost that is not one of our own.
func (s *Service) ghostInvite(e roomEvent) {
	var member event.MemberEventContent
	ghost := id.UserID(*e.StateKey)
	if json.Unmarshal(e.Content, &member) != nil || member.Membership != event.MembershipInvite ||
		e.Sender == s.bot.UserID || s.OwnGhost(e.Sender) || e.age(time.Now()) > liveAge {
		return
	}
	s.opts.OnInvite(GhostInvite{Room: e.Room, Ghost: ghost, Sender: e.Sender})
}

// AnswerInvite lets a ghost that was invited bring the bot into the room if it is not there, and leave again: who is meant by
// the invitation comes as another ghost.
func (s *Service) AnswerInvite(ctx context.Context, i GhostInvite) error {
	localpart, _, err := i.Ghost.Parse()
	if err != nil {
		return fmt.Errorf("invited ghost: %w", err)
	}
	if err := s.registerUser(ctx, localpart); err != nil {
		return fmt.Errorf("register invited ghost: %w", tidy(err))
	}
	ghost, err := s.client(i.Ghost)
	if err != nil {
		return err
	}
	if s.membershipOf(ctx, s.bot.UserID, i.Room) != event.MembershipJoin {
		if _, err := ghost.JoinRoomByID(ctx, i.Room); err != nil {
			return fmt.Errorf("invited ghost joins %s: %w", i.Room, tidy(err))
		}
		if _, err := s.bot.JoinRoomByID(ctx, i.Room); err != nil {
			_, inviteErr := ghost.InviteUser(ctx, i.Room, &mautrix.ReqInviteUser{UserID: s.bot.UserID})
			if _, err := s.bot.JoinRoomByID(ctx, i.Room); err != nil {
				s.log.Info("bot stays outside", "room", i.Room, "invite", tidy(inviteErr), "err", tidy(err))
			}
		}
	}
	if _, err := ghost.LeaveRoom(ctx, i.Room); err != nil {
		return fmt.Errorf("invited ghost leaves %s: %w", i.Room, tidy(err))
	}
	return nil
}
