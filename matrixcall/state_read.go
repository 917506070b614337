package matrixcall

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// readState asks the homeserver, as the ghost, for what a room's state says about calls: the calls, who is in them, the
// rights, and the membership of the ghost, of everybody with an entry in a call, and of those users. By sliding sync that is
// a few kilobytes however many members the room has; where there is none the whole state is read.
func (s *Service) readState(ctx context.Context, g *Ghost, room id.RoomID, users ...id.UserID) (*callSnapshot, error) {
	s.metrics.StateReads.Add(1)
	if g.asSelf != nil && s.sliding.usable() {
		if snapshot, err := s.readBySliding(ctx, g, room, users); err == nil {
			return snapshot, nil
		}
		// A room the ghost is not in is missing from the answer. Whatever it is, the next answer is the one that counts.
	}
	snapshot := newSnapshot()
	_, err := g.asUser.MakeFullRequest(ctx, mautrix.FullRequest{
		Method: http.MethodGet, URL: g.asUser.BuildClientURL("v3", "rooms", room, "state"),
		Handler: func(_ *http.Request, response *http.Response, _ any, limit int64) ([]byte, error) {
			return nil, snapshot.decode(io.LimitReader(response.Body, limit))
		},
	})
	return snapshot, err
}

// readBySliding reads what readState says. Who is in the calls is known only with the first answer; their memberships, as
// far as users does not name them, are asked for in a second request.
func (s *Service) readBySliding(ctx context.Context, g *Ghost, room id.RoomID, users []id.UserID) (*callSnapshot, error) {
	wanted := [][2]string{
		{callType, "*"},
		{callTypeStable, "*"},
		{memberType, "*"},
		{memberTypeStable, "*"},
		{event.StateCreate.Type, ""},
		{event.StatePowerLevels.Type, ""},
		{membershipTypes, g.user.String()},
	}
	snapshot, asked := newSnapshot(), map[id.UserID]bool{g.user: true}
	for _, user := range users {
		if !asked[user] {
			asked[user] = true
			wanted = append(wanted, [2]string{membershipTypes, user.String()})
		}
	}
	for len(wanted) > 0 {
		events, err := s.requiredState(ctx, g, room, wanted)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			snapshot.put(e)
		}
		wanted = nil
		for _, user := range snapshot.callers() {
			if !asked[user] {
				asked[user] = true
				wanted = append(wanted, [2]string{membershipTypes, user.String()})
			}
		}
	}
	if snapshot.rights.create == nil {
		return nil, errors.New("the room's state has no beginning")
	}
	return snapshot, nil
}

// requiredState asks for the state events of a room with these types and state keys, by a sliding sync of one request
// (MSC4186): without a position, so that nothing is left out because it was said before.
func (s *Service) requiredState(ctx context.Context, g *Ghost, room id.RoomID, wanted [][2]string) ([]roomEvent, error) {
	var answer struct {
		Rooms map[id.RoomID]struct {
			State []json.RawMessage `json:"required_state"`
		} `json:"rooms"`
	}
	_, err := g.asSelf.MakeFullRequest(ctx, mautrix.FullRequest{
		Method: http.MethodPost,
		URL:    g.asSelf.BuildURLWithQuery(mautrix.ClientURLPath{"unstable", slidingFeature, "sync"}, map[string]string{"timeout": "0"}),
		RequestJSON: map[string]any{"conn_id": "calls", "room_subscriptions": map[id.RoomID]any{
			room: map[string]any{"required_state": wanted, "timeline_limit": 0},
		}},
		ResponseJSON: &answer, MaxAttempts: 1,
	})
	if err != nil {
		return nil, err
	}
	found, known := answer.Rooms[room]
	if !known {
		return nil, fmt.Errorf("%s is not among the ghost's rooms", room)
	}
	var events []roomEvent
	for _, raw := range found.State {
		var e roomEvent
		if json.Unmarshal(raw, &e) == nil {
			events = append(events, e)
		}
	}
	return events, nil
}

// callers returns the users with a device in a call.
func (c *callSnapshot) callers() []id.UserID {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(c.members)), func(user id.UserID) bool {
		return !slices.ContainsFunc(memberCalls(c.members[user].Content), func(call readCall) bool { return len(call.Devices) > 0 })
	})
}

// putLive is put for an event that has just been sent. Whoever sends a state event is in the room: that need not be asked.
func (c *callSnapshot) putLive(e roomEvent) (late bool) {
	if late = c.put(e); late || c.members[e.Sender].Event != e.Event {
		return late
	}
	if _, known := c.joined[e.Sender]; !known {
		c.joined[e.Sender] = event.MembershipJoin
	}
	return false
}

// decode reads an array of events one by one: a large room's state is many
// megabytes, nearly all of it members.
func (c *callSnapshot) decode(body io.Reader) error {
	decoder := json.NewDecoder(body)
	if token, err := decoder.Token(); err != nil || token != json.Delim('[') {
		return fmt.Errorf("state is no array: %v", cmp.Or[any](err, token))
	}
	for decoder.More() {
		var raw json.RawMessage
		if err := decoder.Decode(&raw); err != nil {
			return fmt.Errorf("read state: %w", err)
		}
		var e roomEvent
		if json.Unmarshal(raw, &e) == nil {
			c.put(e)
		}
	}
	// An answer that was cut off must not look like people leaving.
	if _, err := decoder.Token(); err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	return nil
}
