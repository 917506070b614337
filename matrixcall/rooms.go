package matrixcall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

var (
	eventMessage    = event.EventMessage
	membershipTypes = event.StateMember.Type
)

// RoomProblem is why a ghost cannot be in a room.
type RoomProblem uint8

// The problems of a RoomError.
const (
	RoomUnknown      RoomProblem = iota + 1 // no such room or alias
	BotNotInRoom                            // the room needs an invitation and the bot is not there to send one
	BotMayNotInvite                         // the bot is there but may not invite
	GhostBanned                             // the ghost is banned
	RoomIncompatible                        // the homeserver cannot join it
)

// RoomError says why a ghost cannot be in a room, in one plain sentence with
// the remedy.
type RoomError struct {
	Room    string // id or alias as it was asked for
	Problem RoomProblem
	User    id.UserID // whom it concerns: ghost or bot
	Err     error     // what the homeserver said
}

// Error implements error.
func (e *RoomError) Error() string {
	switch e.Problem {
	case RoomUnknown:
		return fmt.Sprintf("the homeserver knows no room %s: check the route, or invite %s to the room", e.Room, e.User)
	case BotNotInRoom:
		return fmt.Sprintf("the bridge cannot enter room %s: invite %s to it", e.Room, e.User)
	case BotMayNotInvite:
		return fmt.Sprintf("%s may not invite phones to room %s: give it the power level for inviting people", e.User, e.Room)
	case GhostBanned:
		return fmt.Sprintf("%s is banned from room %s: lift the ban if this caller shall join", hideDigits(string(e.User)), e.Room)
	}
	return fmt.Sprintf("the homeserver cannot join room %s: %v", e.Room, tidy(e.Err))
}

// Unwrap returns what the homeserver said.
func (e *RoomError) Unwrap() error { return e.Err }

// ResolveRoom returns the room an alias points to; an id is returned as it is.
// Ids of room version 12 have no server part.
func (s *Service) ResolveRoom(ctx context.Context, aliasOrID string) (id.RoomID, error) {
	switch {
	case strings.HasPrefix(aliasOrID, "!") && len(aliasOrID) > 1:
		return id.RoomID(aliasOrID), nil
	case !strings.HasPrefix(aliasOrID, "#") || !strings.Contains(aliasOrID, ":"):
		return "", fmt.Errorf("%q is neither a room id (!…) nor an alias (#…:server)", aliasOrID)
	}
	answer, err := s.bot.ResolveAlias(ctx, id.RoomAlias(aliasOrID))
	switch {
	case isNotFound(err), errors.Is(err, mautrix.MInvalidParam):
		return "", &RoomError{Room: aliasOrID, Problem: RoomUnknown, User: s.bot.UserID, Err: err}
	case err != nil:
		return "", fmt.Errorf("resolve %s: %w", aliasOrID, tidy(err))
	}
	return answer.RoomID, nil
}

// Aliases are the names that a room has on our homeserver. The bot must be in the room.
func (s *Service) Aliases(ctx context.Context, room id.RoomID) ([]id.RoomAlias, error) {
	answer, err := s.bot.GetAliases(ctx, room)
	if err != nil {
		return nil, fmt.Errorf("list aliases of %s: %w", room, tidy(err))
	}
	return answer.Aliases, nil
}

// EnterRoom makes the ghost a member of the room: it joins, and if that is
// refused the bot invites it first. Its profile in the room is its display
// name. The error is a *RoomError when somebody must do something about it.
func (g *Ghost) EnterRoom(ctx context.Context, room id.RoomID) error {
	release, err := g.service.states.acquire(ctx, stateSlot{room}) // see putState
	if err != nil {
		return err
	}
	defer release()
	err = g.join(ctx, room)
	if err == nil {
		return nil
	}
	if isTransient(err) {
		return fmt.Errorf("join %s: %w", room, tidy(err))
	}
	s := g.service
	if err := s.inviteGhost(ctx, g.user, room); err != nil {
		return tidy(err)
	}
	if err = g.join(ctx, room); err != nil {
		return s.explainRefusal(ctx, g.user, room, err)
	}
	return nil
}

func (g *Ghost) join(ctx context.Context, room id.RoomID) error {
	_, err := g.asUser.JoinRoomByID(ctx, room)
	return err
}

// inviteGhost lets the bot invite a ghost, after it has joined itself if it
// was invited or the room is public.
func (s *Service) inviteGhost(ctx context.Context, ghost id.UserID, room id.RoomID) error {
	err := s.invite(ctx, ghost, room)
	if err == nil || isTransient(err) {
		return err
	}
	if _, joinErr := s.bot.JoinRoomByID(ctx, room); joinErr != nil {
		if isTransient(joinErr) {
			return fmt.Errorf("bot joins %s: %w", room, tidy(joinErr))
		}
		return s.explainBot(room, joinErr)
	}
	if err = s.invite(ctx, ghost, room); err == nil || isTransient(err) {
		return err
	}
	return s.explainRefusal(ctx, ghost, room, err)
}

// invite lets the bot invite. A ghost that is in the room already is fine.
func (s *Service) invite(ctx context.Context, ghost id.UserID, room id.RoomID) error {
	_, err := s.bot.InviteUser(ctx, room, &mautrix.ReqInviteUser{UserID: ghost})
	if err != nil && s.membershipOf(ctx, ghost, room) == event.MembershipJoin {
		return nil
	}
	return err
}

// membershipOf returns the membership of a user as far as the bot can see it.
func (s *Service) membershipOf(ctx context.Context, user id.UserID, room id.RoomID) event.Membership {
	var member event.MemberEventContent
	if err := s.bot.StateEvent(mautrix.WithMaxRetries(ctx, 0), room, event.StateMember, user.String(), &member); err != nil {
		return ""
	}
	return member.Membership
}

// explainBot says why the bot could not join.
func (s *Service) explainBot(room id.RoomID, err error) error {
	e := &RoomError{Room: room.String(), Problem: BotNotInRoom, User: s.bot.UserID, Err: err}
	var response mautrix.HTTPError
	switch {
	case errors.Is(err, mautrix.MIncompatibleRoomVersion):
		e.Problem = RoomIncompatible
	case errors.As(err, &response) && (response.IsStatus(http.StatusNotFound) || response.IsStatus(http.StatusBadRequest)):
		// Synapse: 404 "no known servers" for ids it has never seen.
		e.Problem = RoomUnknown
	}
	return e
}

// explainRefusal says why a ghost cannot be invited or join although the bot
// is in the room.
func (s *Service) explainRefusal(ctx context.Context, ghost id.UserID, room id.RoomID, err error) error {
	e := &RoomError{Room: room.String(), User: s.bot.UserID, Err: err}
	switch {
	case s.membershipOf(ctx, ghost, room) == event.MembershipBan:
		e.Problem, e.User = GhostBanned, ghost
	case errors.Is(err, mautrix.MForbidden):
		e.Problem = BotMayNotInvite
	default:
		return fmt.Errorf("bring %s into %s: %w", userName(ghost), room, tidy(err))
	}
	return e
}

// wanted says whether a room event is of any interest here.
func (s *Service) wanted(e roomEvent) bool {
	switch e.Type {
	case callType, callTypeStable, memberType, memberTypeStable:
		return e.StateKey != nil
	case membershipTypes:
		return e.StateKey != nil
	case event.EventRedaction.Type:
		return s.tracker.follows(e.Room)
	case event.EventMessage.Type:
		return s.opts.OnMessage != nil && s.fromPerson(e)
	case event.EventReaction.Type:
		return s.opts.OnReaction != nil && s.fromPerson(e)
	case event.EventEncrypted.Type:
		return (s.opts.OnMessage != nil || s.opts.OnEncrypted != nil) && s.fromPerson(e)
	case event.StateEncryption.Type:
		return e.StateKey != nil && *e.StateKey == ""
	}
	return false
}

// handleRoomEvent handles an event of a room after all earlier ones of that
// room. Only the room's queue calls it.
func (s *Service) handleRoomEvent(e roomEvent) {
	s.metrics.RoomEvents.Add(1)
	switch e.Type {
	case membershipTypes:
		if *e.StateKey == s.bot.UserID.String() {
			s.botMembership(e)
		} else if s.opts.OnInvite != nil && s.OwnGhost(id.UserID(*e.StateKey)) {
			s.ghostInvite(e)
		}
		s.secretary.moved(e.Room)
		s.tracker.event(e)
	case event.EventRedaction.Type:
		s.tracker.refresh(e.Room)
	case event.EventMessage.Type:
		s.message(e)
	case event.EventReaction.Type:
		s.reaction(e)
	case event.EventEncrypted.Type:
		s.secretary.put(e)
	case event.StateEncryption.Type:
		s.secretary.encryption(e)
	default:
		s.tracker.event(e)
	}
}

// botMembership joins rooms the bot is invited to: that is how people let the
// bridge in.
func (s *Service) botMembership(e roomEvent) {
	var member event.MemberEventContent
	if json.Unmarshal(e.Content, &member) != nil || member.Membership != event.MembershipInvite {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	s.secretary.beforeJoining(ctx, e)
	_, err := s.bot.JoinRoomByID(ctx, e.Room)
	if errors.Is(err, mautrix.MForbidden) && s.registerBot(ctx) == nil { // invited before it was: transactions come as soon as we listen
		_, err = s.bot.JoinRoomByID(ctx, e.Room)
	}
	if err != nil {
		s.log.Warn("bot could not accept an invitation", "room", e.Room, "from", userName(e.Sender), "err", tidy(err))
		return
	}
	s.log.Info("bot joined a room it was invited to", "room", e.Room, "from", userName(e.Sender))
}
