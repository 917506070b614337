package homeserver

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"
)

// syncFilter is the part of a filter that is obeyed: which rooms.
type syncFilter struct {
	Room struct {
		Rooms *[]id.RoomID `json:"rooms"`
	} `json:"room"`
}

func (f syncFilter) wants(rid id.RoomID) bool {
	return f.Room.Rooms == nil || slices.Contains(*f.Room.Rooms, rid)
}

func (s *Server) postFilter(c *call) (any, error) {
	var f syncFilter
	if err := c.decode(&f, false); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filters = append(s.filters, f)
	return map[string]string{"filter_id": strconv.Itoa(len(s.filters) - 1)}, nil
}

// batch is a sync token: how far the client has got in room events and keys, and in to-device messages.
type batch struct{ rooms, toDevice int64 }

func (b batch) String() string { return fmt.Sprintf("s%d_%d", b.rooms, b.toDevice) }

// syncRequest is a parsed /sync.
type syncRequest struct {
	key     string // equal requests have equal keys
	from    requester
	initial bool
	since   batch
	timeout time.Duration
	filter  syncFilter
}

// syncAnswer is the body of a /sync answer.
type syncAnswer struct {
	NextBatch   string              `json:"next_batch"`
	ToDevice    *events[toDevice]   `json:"to_device,omitempty"`
	Counts      map[string]int      `json:"device_one_time_keys_count"`
	Fallback    []string            `json:"device_unused_fallback_key_types"`
	DeviceLists *deviceLists        `json:"device_lists,omitempty"`
	Rooms       map[string]roomList `json:"rooms,omitempty"`
}

type events[T any] struct {
	Events []T `json:"events"`
}

type deviceLists struct {
	Changed []id.UserID `json:"changed,omitempty"`
	Left    []id.UserID `json:"left,omitempty"`
}

type roomList map[id.RoomID]any

// sync is the long poll: https://spec.matrix.org/v1.17/client-server-api/#get_matrixclientv3sync
func (s *Server) sync(c *call) (any, error) {
	req, err := s.parseSync(c)
	if err != nil {
		return nil, err
	}
	if a, ok := s.remembered(req.key); ok {
		return a, nil
	}
	timer := time.NewTimer(req.timeout)
	defer timer.Stop()
	s.confirm(req)
	for {
		s.mu.Lock()
		a, news := s.collect(req)
		changed := s.changed
		s.mu.Unlock()
		if news || req.initial || req.timeout == 0 {
			s.remember(req, a)
			return a, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			// A message whose wake-up was lost is not seen, and the old token lets it be found later.
			a.ToDevice, a.NextBatch = nil, req.since.String()
			return a, nil
		case <-c.Context().Done():
			return nil, c.Context().Err()
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		}
	}
}

// syncMemory is how long Synapse answers an equal request with the same answer, however old that is by then
// (sync_response_cache_duration). Who asks again with an old since, or twice without any, gets it.
const syncMemory = 2 * time.Minute

// syncMemo is a remembered answer.
type syncMemo struct {
	answer syncAnswer
	at     time.Time
}

func (s *Server) remembered(key string) (syncAnswer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.memos, func(_ string, m syncMemo) bool { return time.Since(m.at) >= syncMemory })
	m, ok := s.memos[key]
	return m.answer, ok
}

// remember keeps an answer unless it says that nothing has happened.
func (s *Server) remember(req syncRequest, a syncAnswer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.NextBatch != req.since.String() {
		s.memos[req.key] = syncMemo{a, time.Now()}
	}
}

func (s *Server) parseSync(c *call) (syncRequest, error) {
	query := c.URL.Query()
	req := syncRequest{from: c.from}
	req.key = strings.Join([]string{
		string(c.from.user), string(c.from.device),
		query.Get("timeout"), query.Get("since"), query.Get("filter"), query.Get("full_state"),
	}, "\x00")
	if ms, err := strconv.Atoi(query.Get("timeout")); err == nil {
		req.timeout = time.Duration(ms) * time.Millisecond
	}
	since := query.Get("since")
	req.initial = since == ""
	if !req.initial {
		if n, err := fmt.Sscanf(since, "s%d_%d", &req.since.rooms, &req.since.toDevice); n != 2 || err != nil {
			return req, bad("M_UNKNOWN", "Invalid stream token")
		}
	}
	filter := query.Get("filter")
	if i, err := strconv.Atoi(filter); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if i < 0 || i >= len(s.filters) {
			return req, notFound("No such filter")
		}
		req.filter = s.filters[i]
	} else if filter != "" {
		if err := json.Unmarshal([]byte(filter), &req.filter); err != nil {
			return req, bad("M_NOT_JSON", "Invalid filter JSON")
		}
	}
	return req, nil
}

// confirm deletes what the client says it has got. An answer alone deletes nothing: a client that dies before it has
// stored next_batch asks again with the old token and gets the same messages.
func (s *Server) confirm(req syncRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.deviceOf(req.from); d != nil && !req.initial {
		d.inbox = slices.DeleteFunc(d.inbox, func(m toDevice) bool { return m.position <= req.since.toDevice })
	}
}

func (s *Server) deviceOf(from requester) *device {
	if u := s.users[from.user]; u != nil && from.device != "" {
		return u.devices[from.device]
	}
	return nil
}

// collect makes the answer for this moment and says whether there is anything in it. Caller holds mu.
func (s *Server) collect(req syncRequest) (a syncAnswer, news bool) {
	next := batch{s.position, s.position}
	a = syncAnswer{Counts: map[string]int{}, Fallback: []string{}}
	if d := s.deviceOf(req.from); d != nil {
		a.Counts, a.Fallback = d.counts(), d.unusedFallback()
		a.ToDevice, next.toDevice, news = d.unread(req.since.toDevice, s.position)
	}
	if rooms := s.roomsFor(req); len(rooms) > 0 {
		a.Rooms, news = rooms, true
	}
	if changed := s.changedDevices(req); len(changed) > 0 {
		a.DeviceLists, news = &deviceLists{Changed: changed}, true
	}
	a.NextBatch = next.String()
	return a, news
}

// unread returns up to 100 messages after since, the position up to which they go, and whether one of them would have
// ended a long poll.
func (d *device) unread(since, now int64) (list *events[toDevice], next int64, news bool) {
	const limit = 100
	next = now
	for _, m := range d.inbox {
		if m.position <= since {
			continue
		}
		if list == nil {
			list = &events[toDevice]{}
		}
		list.Events = append(list.Events, m)
		news = news || !m.lost
		if len(list.Events) == limit {
			return list, m.position, news
		}
	}
	return list, next, news
}

// roomsFor returns the rooms section: join, invite, leave. Caller holds mu.
func (s *Server) roomsFor(req syncRequest) map[string]roomList {
	sections := map[string]roomList{}
	put := func(section string, rid id.RoomID, body any) {
		if sections[section] == nil {
			sections[section] = roomList{}
		}
		sections[section][rid] = body
	}
	for _, rid := range slices.Sorted(maps.Keys(s.rooms)) {
		r := s.rooms[rid]
		member := r.state[stateKey{"m.room.member", string(req.from.user)}]
		if member == nil || !req.filter.wants(rid) {
			continue
		}
		fresh := member.position > req.since.rooms
		switch r.membership(req.from.user) {
		case "join":
			if body := r.joinedSince(req, member); body != nil {
				put("join", rid, body)
			}
		case "invite":
			if fresh {
				put("invite", rid, map[string]any{"invite_state": map[string]any{"events": r.strippedFor(member)}})
			}
		default:
			if fresh && !req.initial {
				put("leave", rid, map[string]any{"timeline": map[string]any{"events": r.after(req.since.rooms)}})
			}
		}
	}
	return sections
}

// joinedSince returns a joined room's news: after an own join the whole state and the last events, else all events.
func (r *room) joinedSince(req syncRequest, member *Event) any {
	var was struct {
		Membership string `json:"membership"`
	}
	if prev, ok := member.Unsigned["prev_content"].(json.RawMessage); ok {
		_ = json.Unmarshal(prev, &was)
	}
	timeline, state, limited := r.after(req.since.rooms), []*Event{}, false
	if req.initial || member.position > req.since.rooms && was.Membership != "join" {
		const limit = 10
		timeline = r.after(0)
		limited = len(timeline) > limit
		timeline = timeline[max(0, len(timeline)-limit):]
		for _, e := range r.currentState() {
			if e.position < timeline[0].position {
				state = append(state, e.forSync())
			}
		}
	}
	if len(timeline) == 0 {
		return nil
	}
	return map[string]any{
		"timeline": map[string]any{"events": timeline, "limited": limited, "prev_batch": "s0_0"},
		"state":    events[*Event]{state}, "account_data": events[any]{[]any{}}, "ephemeral": events[any]{[]any{}},
		"summary": struct{}{},
	}
}

// after returns the events after a position.
func (r *room) after(position int64) []*Event {
	i, _ := slices.BinarySearchFunc(r.timeline, position+1, func(e *Event, p int64) int { return int(e.position - p) })
	list := []*Event{}
	for _, e := range r.timeline[i:] {
		list = append(list, e.forSync())
	}
	return list
}

// forSync leaves the room id out, except in m.room.create.
func (e *Event) forSync() *Event {
	c := e.forClient()
	if e.Type != "m.room.create" {
		c.RoomID = ""
	}
	return c
}

// changedDevices returns who of the people sharing a room has new keys, or shares a room only now.
func (s *Server) changedDevices(req syncRequest) []id.UserID {
	if req.initial {
		return nil
	}
	me, changed := req.from.user, map[id.UserID]bool{}
	if u := s.users[me]; u != nil && u.keysChanged > req.since.rooms {
		changed[me] = true
	}
	for _, r := range s.rooms {
		if r.membership(me) != "join" {
			continue
		}
		mine := r.state[stateKey{"m.room.member", string(me)}].position
		for k, e := range r.state {
			uid := id.UserID(k.key)
			if k.eventType != "m.room.member" || uid == me || r.membership(uid) != "join" {
				continue
			}
			u := s.users[uid]
			if max(mine, e.position) > req.since.rooms || u != nil && u.keysChanged > req.since.rooms {
				changed[uid] = true
			}
			if mine > req.since.rooms {
				changed[me] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(changed))
}
