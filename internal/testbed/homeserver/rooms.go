package homeserver

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"
)

// Event is a room event in the format clients see.
type Event struct {
	ID       id.EventID      `json:"event_id"`
	Type     string          `json:"type"`
	RoomID   id.RoomID       `json:"room_id,omitempty"`
	Sender   id.UserID       `json:"sender"`
	StateKey *string         `json:"state_key,omitempty"`
	Redacts  id.EventID      `json:"redacts,omitempty"`
	Content  json.RawMessage `json:"content"`
	At       int64           `json:"origin_server_ts"`
	Unsigned map[string]any  `json:"unsigned,omitempty"`

	position int64
}

type stateKey struct{ eventType, key string }

// room is a room's current state and whole timeline.
type room struct {
	id       id.RoomID
	version  string
	creators map[id.UserID]bool
	timeline []*Event
	state    map[stateKey]*Event
}

func (r *room) membership(uid id.UserID) string {
	var c struct {
		Membership string `json:"membership"`
	}
	if e := r.state[stateKey{"m.room.member", string(uid)}]; e != nil {
		_ = json.Unmarshal(e.Content, &c)
	}
	return c.Membership
}

func (r *room) privilegedCreators() bool {
	n, err := strconv.Atoi(r.version)
	return err == nil && n >= 12
}

// append puts an event into the room and tells whom it concerns. Caller holds mu.
func (s *Server) append(r *room, sender id.UserID, eventType string, key *string, content any) *Event {
	raw, ok := content.(json.RawMessage)
	if !ok {
		raw, _ = json.Marshal(content)
	}
	e := &Event{
		ID:   id.EventID(fmt.Sprintf("$%043d", s.position+1)),
		Type: eventType, RoomID: r.id, Sender: sender, StateKey: key, Content: raw,
		At: time.Now().UnixMilli(), Unsigned: map[string]any{},
	}
	if key != nil {
		k := stateKey{eventType, *key}
		if old := r.state[k]; old != nil {
			e.Unsigned["replaces_state"], e.Unsigned["prev_content"] = old.ID, old.Content
		}
		r.state[k] = e
	}
	r.timeline = append(r.timeline, e)
	e.position = s.advance()
	for _, as := range s.services {
		if as.interested(r, e) {
			as.push(e, r.strippedFor(e))
		}
	}
	return e
}

// strippedFor returns the state that goes with an invite, nil for any other event.
func (r *room) strippedFor(e *Event) []any {
	if e.Type != "m.room.member" || r.membership(id.UserID(*e.StateKey)) != "invite" {
		return nil
	}
	var list []any
	add := func(e *Event) {
		if e != nil {
			list = append(list, map[string]any{"type": e.Type, "state_key": e.StateKey, "sender": e.Sender, "content": e.Content})
		}
	}
	for _, eventType := range []string{"create", "join_rules", "canonical_alias", "encryption", "name"} {
		add(r.state[stateKey{"m.room." + eventType, ""}])
	}
	add(r.state[stateKey{"m.room.member", string(e.Sender)}])
	add(e)
	return list
}

// setState puts a state event unless it says what is already there: Synapse then answers with the old event.
func (s *Server) setState(r *room, sender id.UserID, eventType, key string, content any) *Event {
	raw, err := json.Marshal(content)
	if err != nil {
		panic(err)
	}
	if old := r.state[stateKey{eventType, key}]; old != nil && old.Sender == sender && sameJSON(old.Content, raw) {
		return old
	}
	return s.append(r, sender, eventType, &key, json.RawMessage(raw))
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// setMember puts a membership with the target's global profile.
func (s *Server) setMember(r *room, sender, target id.UserID, membership, reason string) *Event {
	content := map[string]any{"membership": membership}
	if u := s.users[target]; u != nil && (membership == "join" || membership == "invite") {
		for field, value := range u.profile {
			content[field] = value
		}
	}
	if reason != "" {
		content["reason"] = reason
	}
	return s.setState(r, sender, "m.room.member", string(target), content)
}

// CreateRoom is the request body of createRoom, as far as it is understood.
type CreateRoom struct {
	Preset        string         `json:"preset,omitempty"` // "" = private_chat
	Name          string         `json:"name,omitempty"`
	Alias         string         `json:"room_alias_name,omitempty"`
	Invite        []id.UserID    `json:"invite,omitempty"`
	Version       string         `json:"room_version,omitempty"` // "" = 12
	PowerOverride map[string]any `json:"power_level_content_override,omitempty"`
	InitialState  []struct {
		Type     string `json:"type"`
		StateKey string `json:"state_key"`
		Content  any    `json:"content"`
	} `json:"initial_state,omitempty"`
}

// CallRoom asks for a private room in which every member may send call events, with the given users invited.
func CallRoom(invite ...id.UserID) CreateRoom {
	return CreateRoom{Invite: invite, PowerOverride: map[string]any{"events": map[string]any{
		"org.matrix.msc3401.call": 0, "org.matrix.msc3401.call.member": 0,
	}}}
}

// Room makes a room. It panics on a request that the server refuses.
func (s *Server) Room(creator id.UserID, req CreateRoom) id.RoomID {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.addRoom(creator, req)
	if err != nil {
		panic(err)
	}
	return r.id
}

// Join lets a user in, invited or not.
func (s *Server) Join(rid id.RoomID, uid id.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setMember(s.rooms[rid], uid, uid, "join", "")
}

func (s *Server) createRoom(c *call) (any, error) {
	var req CreateRoom
	if err := c.decode(&req, true); err != nil {
		return nil, err
	}
	for _, uid := range req.Invite {
		s.queryUser(uid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.addRoom(c.from.user, req)
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_id": r.id}, nil
}

// addRoom makes a room in Synapse's order: create, creator, power levels, the preset, initial state, name, invites.
func (s *Server) addRoom(creator id.UserID, req CreateRoom) (*room, error) {
	r := &room{
		version: cmp.Or(req.Version, "12"), creators: map[id.UserID]bool{creator: true}, state: map[stateKey]*Event{},
	}
	r.id = id.RoomID(fmt.Sprintf("!%043d", s.position+1))
	if !r.privilegedCreators() {
		r.id = id.RoomID(fmt.Sprintf("!%018d:%s", s.position+1, s.cfg.Domain))
	}
	preset := cmp.Or(req.Preset, "private_chat")
	create := map[string]any{"room_version": r.version}
	if preset == "trusted_private_chat" && r.privilegedCreators() {
		create["additional_creators"] = req.Invite
		for _, uid := range req.Invite {
			r.creators[uid] = true
		}
	}
	power, err := r.initialPower(creator, preset, req)
	if err != nil {
		return nil, err
	}
	alias := id.NewRoomAlias(req.Alias, s.cfg.Domain)
	if req.Alias != "" && s.aliases[alias] != "" {
		return nil, bad("M_ROOM_IN_USE", "Room alias already taken")
	}
	s.rooms[r.id] = r
	s.append(r, creator, "m.room.create", new(string), create)
	s.setMember(r, creator, creator, "join", "")
	s.setState(r, creator, "m.room.power_levels", "", power)
	if req.Alias != "" {
		s.aliases[alias] = r.id
		s.setState(r, creator, "m.room.canonical_alias", "", map[string]any{"alias": alias})
	}
	rule := map[string]string{"public_chat": "public"}[preset]
	s.setState(r, creator, "m.room.join_rules", "", map[string]any{"join_rule": cmp.Or(rule, "invite")})
	s.setState(r, creator, "m.room.history_visibility", "", map[string]any{"history_visibility": "shared"})
	if rule == "" {
		s.setState(r, creator, "m.room.guest_access", "", map[string]any{"guest_access": "can_join"})
	}
	for _, e := range req.InitialState {
		s.setState(r, creator, e.Type, e.StateKey, e.Content)
	}
	if req.Name != "" {
		s.setState(r, creator, "m.room.name", "", map[string]any{"name": req.Name})
	}
	for _, uid := range req.Invite {
		s.setMember(r, creator, uid, "invite", "")
	}
	return r, nil
}

// initialPower is what Synapse 1.163 makes; an override replaces whole top-level keys, "events" too.
// (synapse/handlers/room.py)
func (r *room) initialPower(creator id.UserID, preset string, req CreateRoom) (map[string]any, error) {
	users := map[string]any{}
	tombstone := 150
	if !r.privilegedCreators() {
		users[string(creator)], tombstone = 100, 100
		if preset == "trusted_private_chat" {
			for _, uid := range req.Invite {
				users[string(uid)] = 100
			}
		}
	}
	power := map[string]any{
		"users": users, "users_default": 0, "events_default": 0, "state_default": 50,
		"events": map[string]any{
			"m.room.name": 50, "m.room.power_levels": 100, "m.room.history_visibility": 100,
			"m.room.canonical_alias": 50, "m.room.avatar": 50, "m.room.tombstone": tombstone,
			"m.room.server_acl": 100, "m.room.encryption": 100,
		},
		"ban": 50, "kick": 50, "redact": 50, "invite": 0, "historical": 100,
	}
	if preset == "public_chat" {
		power["invite"] = 50
		power["events"].(map[string]any)["m.call.invite"] = 50
	}
	maps.Copy(power, req.PowerOverride)
	if override, ok := power["users"].(map[string]any); ok && r.privilegedCreators() && override[string(creator)] != nil {
		return nil, bad("M_UNKNOWN", "Creator user %s must not appear in content.users", creator)
	}
	return power, nil
}

// member finds the room of a request that only members may make. Caller holds mu.
func (s *Server) member(c *call) (*room, error) {
	rid := id.RoomID(c.PathValue("room"))
	r := s.rooms[rid]
	if r == nil || r.membership(c.from.user) != "join" {
		return nil, forbidden("User %s not in room %s", c.from.user, rid)
	}
	return r, nil
}

// reader finds the room of a request that former members may make, too.
func (s *Server) reader(c *call) (*room, error) {
	rid := id.RoomID(c.PathValue("room"))
	r := s.rooms[rid]
	if r == nil || !slices.Contains([]string{"join", "leave", "ban"}, r.membership(c.from.user)) {
		return nil, forbidden("User %s not in room %s, and room previews are disabled", c.from.user, rid)
	}
	return r, nil
}

func (s *Server) join(c *call) (any, error) {
	target := c.PathValue("room")
	if strings.HasPrefix(target, "#") {
		s.queryAlias(id.RoomAlias(target))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rid := id.RoomID(target)
	if strings.HasPrefix(target, "#") {
		if rid = s.aliases[id.RoomAlias(target)]; rid == "" {
			return nil, notFound("Room alias %s not found", target)
		}
	}
	r := s.rooms[rid]
	if r == nil {
		return nil, notFound("Can't join remote room because no servers that are in the room have been provided.")
	}
	if r.membership(c.from.user) != "join" {
		if err := r.mayChange(c.from.user, c.from.user, "join"); err != nil {
			return nil, err
		}
		s.setMember(r, c.from.user, c.from.user, "join", "")
	}
	return map[string]any{"room_id": rid}, nil
}

func (s *Server) leave(c *call) (any, error)  { return s.changeMember(c, "leave", true) }
func (s *Server) invite(c *call) (any, error) { return s.changeMember(c, "invite", false) }
func (s *Server) kick(c *call) (any, error)   { return s.changeMember(c, "leave", false) }
func (s *Server) ban(c *call) (any, error)    { return s.changeMember(c, "ban", false) }

// changeMember changes the membership of the requester or of the user in the body.
func (s *Server) changeMember(c *call, to string, self bool) (any, error) {
	var req struct {
		UserID id.UserID `json:"user_id"`
		Reason string    `json:"reason"`
	}
	if err := c.decode(&req, true); err != nil {
		return nil, err
	}
	if self {
		req.UserID = c.from.user
	}
	if to == "invite" {
		s.queryUser(req.UserID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rooms[id.RoomID(c.PathValue("room"))]
	if r == nil {
		return nil, notFound("Not a known room")
	}
	if err := r.mayChange(c.from.user, req.UserID, to); err != nil {
		return nil, err
	}
	s.setMember(r, c.from.user, req.UserID, to, req.Reason)
	return nil, nil
}

func (s *Server) joinedRooms(c *call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []id.RoomID{}
	for _, rid := range slices.Sorted(maps.Keys(s.rooms)) {
		if s.rooms[rid].membership(c.from.user) == "join" {
			list = append(list, rid)
		}
	}
	return map[string]any{"joined_rooms": list}, nil
}

func (s *Server) joinedMembers(c *call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.member(c)
	if err != nil {
		return nil, err
	}
	joined := map[string]any{}
	for k, e := range r.state {
		if k.eventType != "m.room.member" || r.membership(id.UserID(k.key)) != "join" {
			continue
		}
		var profile struct {
			Name   *string `json:"displayname"`
			Avatar *string `json:"avatar_url"`
		}
		_ = json.Unmarshal(e.Content, &profile)
		joined[k.key] = map[string]any{"display_name": profile.Name, "avatar_url": profile.Avatar}
	}
	return map[string]any{"joined": joined}, nil
}

func (s *Server) members(c *call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.reader(c)
	if err != nil {
		return nil, err
	}
	list := []any{}
	for _, e := range r.currentState() {
		if e.Type == "m.room.member" {
			list = append(list, e.forClient())
		}
	}
	return map[string]any{"chunk": list}, nil
}

// currentState returns the state in the order in which it was set.
func (r *room) currentState() []*Event {
	list := slices.Collect(maps.Values(r.state))
	slices.SortFunc(list, func(a, b *Event) int { return cmp.Compare(a.position, b.position) })
	return list
}

// forClient returns a copy with the age of this moment.
func (e *Event) forClient() *Event {
	c := *e
	c.Unsigned = maps.Clone(e.Unsigned)
	c.Unsigned["age"] = time.Now().UnixMilli() - e.At
	return &c
}

func (s *Server) getAllState(c *call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.reader(c)
	if err != nil {
		return nil, err
	}
	list := []*Event{}
	for _, e := range r.currentState() {
		list = append(list, e.forClient())
	}
	return list, nil
}

func (s *Server) getState(c *call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.reader(c)
	if err != nil {
		return nil, err
	}
	e := r.state[stateKey{c.PathValue("type"), c.PathValue("key")}]
	switch {
	case e == nil:
		return nil, notFound("Event not found.")
	case c.URL.Query().Get("format") == "event":
		return e.forClient(), nil
	default:
		return e.Content, nil
	}
}

func (s *Server) putState(c *call) (any, error) {
	var content map[string]any
	if err := c.decode(&content, false); err != nil {
		return nil, err
	}
	eventType, key, from := c.PathValue("type"), c.PathValue("key"), c.from.user
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rooms[id.RoomID(c.PathValue("room"))]
	if r == nil {
		return nil, forbidden("User %s not in room %s", from, c.PathValue("room"))
	}
	if eventType == "m.room.member" {
		to, _ := content["membership"].(string)
		if err := r.mayChange(from, id.UserID(key), to); err != nil {
			return nil, err
		}
		return map[string]any{"event_id": s.setState(r, from, eventType, key, content).ID}, nil
	}
	if err := r.mayPost(from, eventType, true); err != nil {
		return nil, err
	}
	if strings.HasPrefix(key, "@") && key != string(from) {
		return nil, forbidden("You are not allowed to set others state")
	}
	return map[string]any{"event_id": s.setState(r, from, eventType, key, content).ID}, nil
}

func (s *Server) getEvent(c *call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.reader(c)
	if err != nil {
		return nil, err
	}
	for _, e := range r.timeline {
		if e.ID == id.EventID(c.PathValue("event")) {
			return e.forClient(), nil
		}
	}
	return nil, notFound("Event not found.")
}

func (s *Server) send(c *call) (any, error) {
	var content map[string]any
	if err := c.decode(&content, false); err != nil {
		return nil, err
	}
	return s.once(c, func() (any, error) {
		r, err := s.member(c)
		if err != nil {
			return nil, err
		}
		if err := r.mayPost(c.from.user, c.PathValue("type"), false); err != nil {
			return nil, err
		}
		return map[string]any{"event_id": s.append(r, c.from.user, c.PathValue("type"), nil, content).ID}, nil
	})
}

// redact empties an event of the sender, or of anybody with enough power.
func (s *Server) redact(c *call) (any, error) {
	return s.once(c, func() (any, error) {
		r, err := s.member(c)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(r.timeline, func(e *Event) bool { return e.ID == id.EventID(c.PathValue("event")) })
		if i < 0 {
			return nil, notFound("Event not found.")
		}
		target := r.timeline[i]
		if target.Sender != c.from.user && r.level(c.from.user) < r.power().Redact {
			return nil, forbidden("You don't have permission to redact events")
		}
		target.Content = json.RawMessage("{}")
		e := s.append(r, c.from.user, "m.room.redaction", nil, map[string]any{"redacts": target.ID})
		e.Redacts = target.ID
		target.Unsigned["redacted_because"] = e.forClient()
		return map[string]any{"event_id": e.ID}, nil
	})
}

func (s *Server) getAlias(c *call) (any, error) {
	alias := id.RoomAlias(c.PathValue("alias"))
	s.queryAlias(alias)
	s.mu.Lock()
	defer s.mu.Unlock()
	if rid := s.aliases[alias]; rid != "" {
		return map[string]any{"room_id": rid, "servers": []string{s.cfg.Domain}}, nil
	}
	return nil, notFound("Room alias %s not found", alias)
}

func (s *Server) putAlias(c *call) (any, error) {
	var req struct {
		RoomID id.RoomID `json:"room_id"`
	}
	if err := c.decode(&req, false); err != nil {
		return nil, err
	}
	alias := id.RoomAlias(c.PathValue("alias"))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aliases[alias] != "" {
		return nil, &Error{Status: http.StatusConflict, Code: "M_UNKNOWN", Text: fmt.Sprintf("Room alias %s already exists", alias)}
	}
	s.aliases[alias] = req.RoomID
	return nil, nil
}

// getAliases tells members what a room is called here.
func (s *Server) getAliases(c *call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.member(c)
	if err != nil {
		return nil, err
	}
	names := []id.RoomAlias{}
	for alias, rid := range s.aliases {
		if rid == r.id {
			names = append(names, alias)
		}
	}
	slices.Sort(names)
	return map[string]any{"aliases": names}, nil
}

// State returns the content of a state event as the room has it now, nil if there is none.
func (s *Server) State(rid id.RoomID, eventType, key string) json.RawMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.rooms[rid]; r != nil && r.state[stateKey{eventType, key}] != nil {
		return slices.Clone(r.state[stateKey{eventType, key}].Content)
	}
	return nil
}

// SetState is somebody who sets a state event whatever the room's rules.
func (s *Server) SetState(rid id.RoomID, sender id.UserID, eventType, key string, content any) id.EventID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.setState(s.rooms[rid], sender, eventType, key, content).ID
}

// Timeline returns all events of a room, oldest first.
func (s *Server) Timeline(rid id.RoomID) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Event
	if r := s.rooms[rid]; r != nil {
		for _, e := range r.timeline {
			list = append(list, *e.forClient())
		}
	}
	return list
}
