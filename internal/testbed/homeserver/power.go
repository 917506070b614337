package homeserver

import (
	"encoding/json"
	"math"

	"maunium.net/go/mautrix/id"
)

// powerLevels is m.room.power_levels with the defaults of
// https://spec.matrix.org/v1.17/client-server-api/#mroompower_levels
type powerLevels struct {
	Users         map[id.UserID]int `json:"users"`
	UsersDefault  int               `json:"users_default"`
	Events        map[string]int    `json:"events"`
	EventsDefault int               `json:"events_default"`
	StateDefault  int               `json:"state_default"`
	Invite        int               `json:"invite"`
	Kick          int               `json:"kick"`
	Ban           int               `json:"ban"`
	Redact        int               `json:"redact"`
}

func (r *room) power() powerLevels {
	p := powerLevels{Kick: 50, Ban: 50, Redact: 50}
	if e := r.state[stateKey{"m.room.power_levels", ""}]; e != nil {
		p.StateDefault = 50
		_ = json.Unmarshal(e.Content, &p)
	}
	return p
}

// level returns a user's power. From version 12 on the creators' is infinite and not in the event (MSC4289).
func (r *room) level(uid id.UserID) int {
	if r.privilegedCreators() && r.creators[uid] {
		return math.MaxInt
	}
	p := r.power()
	if l, ok := p.Users[uid]; ok {
		return l
	}
	if r.state[stateKey{"m.room.power_levels", ""}] == nil && r.creators[uid] {
		return 100
	}
	return p.UsersDefault
}

// mayPost checks the power to send an event of a type.
func (r *room) mayPost(uid id.UserID, eventType string, isState bool) error {
	if r.membership(uid) != "join" {
		return forbidden("User %s not in room %s", uid, r.id)
	}
	p := r.power()
	needed, ok := p.Events[eventType]
	if !ok && isState {
		needed = p.StateDefault
	} else if !ok {
		needed = p.EventsDefault
	}
	if have := r.level(uid); have < needed {
		return forbidden("You don't have permission to post that to the room. user_level (%d) < send_level (%d)", have, needed)
	}
	return nil
}

// mayChange checks a change of membership: https://spec.matrix.org/v1.17/rooms/v12/#authorization-rules
func (r *room) mayChange(sender, target id.UserID, to string) error {
	p, from := r.power(), r.membership(target)
	if sender != target && r.membership(sender) != "join" {
		return forbidden("%s not in room %s.", sender, r.id)
	}
	outranked := r.level(sender) <= r.level(target)
	switch {
	case from == "ban" && (to == "join" || to == "invite"):
		return forbidden("%s is banned from the room", target)
	case to == "join" && sender != target:
		return forbidden("Cannot force another user to join.")
	case to == "join" && from != "join" && from != "invite" && r.joinRule() != "public":
		return forbidden("You are not invited to this room.")
	case to == "invite" && from == "join":
		return forbidden("%s is already in the room.", target)
	case to == "invite" && r.level(sender) < p.Invite:
		return forbidden("You don't have permission to invite users")
	case to == "leave" && sender == target && from != "join" && from != "invite":
		return forbidden("%s not in room %s.", target, r.id)
	case to == "leave" && sender != target && from != "join" && from != "invite" && from != "ban":
		return forbidden("The target user is not in the room")
	case to == "leave" && sender != target && (r.level(sender) < p.Kick || outranked):
		return forbidden("You cannot kick user %s.", target)
	case to == "ban" && (r.level(sender) < p.Ban || outranked):
		return forbidden("You don't have permission to ban")
	}
	return nil
}

func (r *room) joinRule() string {
	var c struct {
		JoinRule string `json:"join_rule"`
	}
	if e := r.state[stateKey{"m.room.join_rules", ""}]; e != nil {
		_ = json.Unmarshal(e.Content, &c)
	}
	return c.JoinRule
}
