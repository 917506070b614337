package matrixcall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// RightsError says what a ghost may not do in a room that it must to take part
// in its calls. In a room made with today's defaults ordinary members may not.
type RightsError struct {
	Room  id.RoomID
	Ghost id.UserID
	Types []string // event types the ghost may not send
	Have  int      // its power level
	Need  int      // the highest level one of the types asks for
}

// Error is one plain sentence with the remedy, fit to be shown in the room.
func (e *RightsError) Error() string {
	quoted := make([]string, 0, len(e.Types))
	for _, kind := range e.Types {
		quoted = append(quoted, strconv.Quote(kind))
	}
	what := "join"
	if !slices.Contains(e.Types, memberType) {
		what = "start"
	}
	return fmt.Sprintf("Phones cannot %s calls in this room, because members with power level %d may not send %s events (level %d is needed): "+
		"an administrator can change that in the room's permissions by setting these events to level %d.",
		what, e.Have, strings.Join(quoted, " and "), e.Need, e.Have)
}

// CheckRights says whether the ghost, who must be in the room, may take part
// in a call there: send its membership and, unless there is a call to join,
// make one. The error is a *RightsError when it may not.
func (s *Service) CheckRights(ctx context.Context, g *Ghost, room id.RoomID) error {
	needed := []string{memberType}
	state, err := s.readState(ctx, g, room)
	if err != nil {
		return fmt.Errorf("read state of %s: %w", room, tidy(err))
	}
	if state.activeCall(s).ConfID == "" {
		needed = append(needed, callType)
	}
	return state.rights.check(room, g.user, needed)
}

// MayTakePart says whether a user is in the room, which the ghost must be in,
// too, and may be in its calls.
func (g *Ghost) MayTakePart(ctx context.Context, room id.RoomID, user id.UserID) (bool, error) {
	state, err := g.service.readState(ctx, g, room, user)
	if err != nil {
		return false, fmt.Errorf("read state of %s: %w", room, tidy(err))
	}
	return state.joined[user] == event.MembershipJoin && state.rights.check(room, user, []string{memberType}) == nil, nil
}

// roomRights is what m.room.create and m.room.power_levels say.
type roomRights struct {
	create      *roomEvent
	powerLevels *roomEvent
}

func (r roomRights) check(room id.RoomID, user id.UserID, types []string) error {
	levels := r.levels()
	e := &RightsError{Room: room, Ghost: user, Have: levels.of(user)}
	for _, kind := range types {
		if need := levels.toSend(kind); need > e.Have {
			e.Types = append(e.Types, kind)
			e.Need = max(e.Need, need)
		}
	}
	if len(e.Types) > 0 {
		return e
	}
	return nil
}

// powerLevels is the content of m.room.power_levels with who created the room.
type powerLevels struct {
	present  bool // there is such an event
	creators []id.UserID
	infinite bool // creators may do everything (room version 12)

	Users        map[id.UserID]level `json:"users"`
	UsersDefault level               `json:"users_default"`
	Events       map[string]level    `json:"events"`
	StateDefault *level              `json:"state_default"`
}

// level is a power level: an integer, in old rooms also a string with one.
type level int

// UnmarshalJSON implements json.Unmarshaler. What is no number counts as 0.
func (l *level) UnmarshalJSON(data []byte) error {
	text := strings.TrimSpace(strings.Trim(string(data), `"`))
	if n, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(n) {
		*l = level(max(min(n, math.MaxInt32), math.MinInt32))
	}
	return nil
}

func (r roomRights) levels() powerLevels {
	var p powerLevels
	if r.powerLevels != nil {
		p.present = json.Unmarshal(r.powerLevels.Content, &p) == nil
	}
	if r.create != nil {
		var create struct {
			Version    id.RoomVersion `json:"room_version"`
			Additional []id.UserID    `json:"additional_creators"`
		}
		// An event without room_version is of version 1.
		create.Version = id.RoomV1
		_ = json.Unmarshal(r.create.Content, &create) // unreadable: a room without additional creators
		p.creators = append(p.creators, r.create.Sender)
		if create.Version.PrivilegedRoomCreators() {
			p.infinite = true
			p.creators = append(p.creators, create.Additional...)
		}
	}
	return p
}

// of returns the power level of a user (authorization rules of the
// specification; MSC4289 for creators in version 12).
func (p powerLevels) of(user id.UserID) int {
	creator := slices.Contains(p.creators, user)
	switch {
	case creator && p.infinite:
		return math.MaxInt
	case !p.present && creator:
		return 100
	case !p.present:
		return 0
	}
	if l, named := p.Users[user]; named {
		return int(l)
	}
	return int(p.UsersDefault)
}

// toSend returns the level a state event of that type needs.
func (p powerLevels) toSend(kind string) int {
	if l, named := p.Events[kind]; named {
		return int(l)
	}
	switch {
	case p.StateDefault != nil:
		return int(*p.StateDefault)
	case p.present:
		return 50
	}
	return 0
}

// explainForbidden turns the homeserver's refusal of a call event into a
// *RightsError where that is what it is.
func (s *Service) explainForbidden(ctx context.Context, g *Ghost, room id.RoomID, kind string, err error) error {
	if !errors.Is(err, mautrix.MForbidden) {
		return err
	}
	state, readErr := s.readState(ctx, g, room)
	if readErr != nil {
		return err
	}
	if rights := state.rights.check(room, g.user, []string{kind}); rights != nil {
		return rights
	}
	if state.joined[g.user] != event.MembershipJoin {
		return fmt.Errorf("%s is not in the room any more: %w", userName(g.user), err)
	}
	return err
}
