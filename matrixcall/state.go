package matrixcall

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// The state events of a group call. Clients write and read the unstable
// names; a client that writes the stable ones is understood as well.
const (
	callType         = "org.matrix.msc3401.call"
	memberType       = "org.matrix.msc3401.call.member"
	callTypeStable   = "m.call"
	memberTypeStable = "m.call.member"
)

// callEnded is what m.terminated says.
const callEnded = "call_ended"

// callSnapshot is what a room's state says about calls.
type callSnapshot struct {
	calls   map[string]roomEvent           // by conf id
	members map[id.UserID]roomEvent        // call member events, by user
	joined  map[id.UserID]event.Membership // m.room.member
	joinTS  map[id.UserID]int64            // when that was said, ms
	rights  roomRights
}

func newSnapshot() *callSnapshot {
	return &callSnapshot{
		calls: make(map[string]roomEvent), members: make(map[id.UserID]roomEvent),
		joined: make(map[id.UserID]event.Membership), joinTS: make(map[id.UserID]int64),
	}
}

// put applies a state event. Late events, which a homeserver delivers after
// newer ones when it was away, do nothing; put says so.
func (c *callSnapshot) put(e roomEvent) (late bool) {
	if e.StateKey == nil {
		return false
	}
	key := *e.StateKey
	switch e.Type {
	case callType, callTypeStable:
		if old, known := c.calls[key]; known && old.Time > e.Time {
			return true
		}
		c.calls[key] = e
	case memberType, memberTypeStable:
		// MatrixRTC uses the same type with other state keys.
		if id.UserID(key) != e.Sender {
			return false
		}
		// … or of its own stable name with the same ones, beside which the user's entry of our kind stands.
		if e.Type == memberTypeStable && c.members[e.Sender].Type != memberTypeStable && len(memberCalls(e.Content)) == 0 {
			return false
		}
		if old, known := c.members[e.Sender]; known && old.Time > e.Time {
			return true
		}
		c.members[e.Sender] = e
	case membershipTypes:
		user := id.UserID(key)
		if c.joinTS[user] > e.Time {
			return true
		}
		var member event.MemberEventContent
		if json.Unmarshal(e.Content, &member) != nil {
			return false
		}
		c.joined[user], c.joinTS[user] = member.Membership, e.Time
	case event.StateCreate.Type:
		c.rights.create = &e
	case event.StatePowerLevels.Type:
		c.rights.powerLevels = &e
	}
	return false
}

// isOut says whether a user who was in the room is there no more. An
// invitation that is delivered late does not count.
func (c *callSnapshot) isOut(user id.UserID) bool {
	membership := c.joined[user]
	return membership != event.MembershipJoin && membership != event.MembershipInvite
}

// call returns the call with that id; ConfID is "" when there is none.
func (c *callSnapshot) call(s *Service, confID string) CallState {
	e, known := c.calls[confID]
	if !known {
		return CallState{}
	}
	var content struct {
		Intent     string `json:"m.intent"`
		Type       string `json:"m.type"`
		Name       string `json:"m.name"`
		Terminated any    `json:"m.terminated"`
	}
	err := json.Unmarshal(e.Content, &content)
	// A redacted event has lost its content; js-sdk takes that for the end,
	// too.
	redacted := err != nil || bytes.Equal(bytes.Join(bytes.Fields(e.Content), nil), []byte("{}"))
	return CallState{
		ConfID: confID, Event: e.Event, Type: content.Type, Intent: content.Intent, Name: content.Name,
		Sender: e.Sender, Ours: s.OwnGhost(e.Sender), Ended: redacted || truthy(content.Terminated),
	}
}

// valid says whether all clients take it for a call.
func (c CallState) valid() bool {
	return slices.Contains([]string{"m.voice", "m.video"}, c.Type) && slices.Contains([]string{"m.ring", "m.prompt", "m.room"}, c.Intent)
}

// truthy is JavaScript's idea of yes: clients write true or "call_ended".
func truthy(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case bool:
		return v
	case string:
		return v != ""
	case float64:
		return v != 0
	}
	return true
}

// activeCall returns the call a phone should join. A room has one call, and clients that find several when they start take
// the newest; but one that has people in it is better than a newer one without.
func (c *callSnapshot) activeCall(s *Service) CallState {
	calls := c.activeCalls(s)
	for _, call := range calls {
		if c.hasPeople(s, call.ConfID) {
			return call
		}
	}
	return append(calls, CallState{})[0]
}

// elsewhere returns another call than that one, the newest that has people in it; nil when there is none.
func (c *callSnapshot) elsewhere(s *Service, confID string) *CallState {
	for _, call := range c.activeCalls(s) {
		if call.ConfID != confID && c.hasPeople(s, call.ConfID) {
			return &call
		}
	}
	return nil
}

// activeCalls returns the calls that have not ended, the newest first. One without a known type and intent is none to
// matrix-js-sdk: in it a phone would wait for people who cannot see it.
func (c *callSnapshot) activeCalls(s *Service) (calls []CallState) {
	newest := slices.SortedFunc(maps.Keys(c.calls), func(a, b string) int {
		return cmp.Or(-cmp.Compare(c.calls[a].Time, c.calls[b].Time), cmp.Compare(a, b))
	})
	for _, confID := range newest {
		if call := c.call(s, confID); !call.Ended && call.valid() {
			calls = append(calls, call)
		}
	}
	return calls
}

// hasPeople says whether anybody but our ghosts is in a call.
func (c *callSnapshot) hasPeople(s *Service, confID string) bool {
	now := time.Now()
	return slices.ContainsFunc(c.devices(s, confID), func(d MemberDevice) bool { return !d.Ours && d.Expires.After(now) })
}

// devices lists the devices of a call, of users who are in the room.
func (c *callSnapshot) devices(s *Service, confID string) []MemberDevice {
	var devices []MemberDevice
	for _, user := range slices.Sorted(maps.Keys(c.members)) {
		if c.joined[user] != event.MembershipJoin {
			continue
		}
		for _, call := range memberCalls(c.members[user].Content) {
			if call.CallID != confID {
				continue
			}
			for _, device := range call.Devices {
				if device.DeviceID == "" || device.SessionID == "" {
					continue
				}
				devices = append(devices, MemberDevice{
					User: user, Device: device.DeviceID, Session: device.SessionID,
					Expires: device.expires(), Ours: s.OwnGhost(user),
				})
			}
		}
	}
	return devices
}

// readCall is one call in a member event, as anybody may have written it.
type readCall struct {
	CallID  string       `json:"m.call_id"`
	Devices []readDevice `json:"m.devices"`
}

type readDevice struct {
	DeviceID  id.DeviceID `json:"device_id"`
	SessionID string      `json:"session_id"`
	ExpiresTS any         `json:"expires_ts"` // ms

	raw json.RawMessage // all of it
}

// expires returns the zero time unless expires_ts is a safe integer: neither
// client takes anything else.
func (d readDevice) expires() time.Time {
	ms, ok := d.ExpiresTS.(float64)
	if !ok || ms != math.Trunc(ms) || math.Abs(ms) > 1<<53-1 {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms))
}

// memberCalls reads the m.calls array, each part on its own: one bad entry
// must not hide the others. Content without such an array is MatrixRTC's.
func memberCalls(content json.RawMessage) []readCall {
	var outer struct {
		Calls []json.RawMessage `json:"m.calls"`
	}
	if json.Unmarshal(content, &outer) != nil {
		return nil
	}
	var calls []readCall
	for _, raw := range outer.Calls {
		var call struct {
			CallID  string            `json:"m.call_id"`
			Devices []json.RawMessage `json:"m.devices"`
		}
		if json.Unmarshal(raw, &call) != nil {
			continue
		}
		read := readCall{CallID: call.CallID}
		for _, raw := range call.Devices {
			var device readDevice
			if json.Unmarshal(raw, &device) == nil {
				device.raw = raw
				read.Devices = append(read.Devices, device)
			}
		}
		calls = append(calls, read)
	}
	return calls
}

// activeCall implements callHost.
func (s *Service) activeCall(ctx context.Context, ghost *Ghost, room id.RoomID) (CallState, error) {
	state, err := s.readState(ctx, ghost, room)
	if err != nil {
		return CallState{}, fmt.Errorf("read state of %s: %w", room, tidy(err))
	}
	return state.activeCall(s), nil
}

// callState implements callHost.
func (s *Service) callState(ctx context.Context, ghost *Ghost, room id.RoomID, confID string) (CallState, error) {
	state, err := s.readState(ctx, ghost, room)
	if err != nil {
		return CallState{}, fmt.Errorf("read state of %s: %w", room, tidy(err))
	}
	return state.call(s, confID), nil
}

// PutMember implements stateWriter.
func (s *Service) PutMember(ctx context.Context, ghost *Ghost, room id.RoomID, edit MemberEdit) error {
	release, err := s.states.acquire(ctx, stateSlot{room})
	if err != nil {
		return err
	}
	defer release()
	old, err := readMember(ctx, ghost, room)
	if err != nil {
		return fmt.Errorf("read %s in %s: %w", memberType, room, tidy(s.explainForbidden(ctx, ghost, room, memberType, err)))
	}
	content, _ := edit.apply(old, time.Now())
	_, err = s.putState(ctx, ghost, room, memberType, ghost.user.String(), content)
	return err
}

// readMember reads the ghost's own member event; nil when there is none.
func readMember(ctx context.Context, g *Ghost, room id.RoomID) (content json.RawMessage, err error) {
	err = g.asUser.StateEvent(ctx, room, event.Type{Type: memberType, Class: event.StateEventType}, g.user.String(), &content)
	if isNotFound(err) {
		return nil, nil
	}
	return content, err
}

// apply returns the member content that follows from the old one, and whether a device was taken out. Calls and
// devices that are not ours stay as they are until they expire, as both clients do it.
func (e MemberEdit) apply(old json.RawMessage, now time.Time) (content MemberContent, found bool) {
	content.Calls = []MemberCall{} // clients want the array
	ours := MemberCall{CallID: e.ConfID}
	for _, call := range memberCalls(old) {
		kept := MemberCall{CallID: call.CallID}
		for _, device := range call.Devices {
			if e.covers(call.CallID) && slices.Contains(e.Drop, device.DeviceID) {
				found = true
			} else if device.expires().After(now) {
				kept.Devices = append(kept.Devices, device.raw)
			}
		}
		switch {
		case call.CallID == e.ConfID:
			ours.Devices = append(ours.Devices, kept.Devices...)
		case len(kept.Devices) > 0:
			content.Calls = append(content.Calls, kept)
		}
	}
	if e.Add != nil {
		ours.Devices = append(ours.Devices, e.Add.raw())
	}
	if len(ours.Devices) > 0 {
		content.Calls = append(content.Calls, ours)
	}
	return content, found
}

func (e MemberEdit) covers(confID string) bool {
	return confID == e.ConfID || slices.Contains(e.Former, confID)
}

// PutCall implements stateWriter.
func (s *Service) PutCall(ctx context.Context, ghost *Ghost, room id.RoomID, confID string, content CallContent) (id.EventID, error) {
	release, err := s.states.acquire(ctx, stateSlot{room})
	if err != nil {
		return "", err
	}
	defer release()
	return s.putState(ctx, ghost, room, callType, confID, content)
}

// stateSlot is the room whose state we are writing: state events of a room go one after the other. Two at once fork the
// room's history, and Synapse then shows clients in the second sync the state before the fork: two ghosts that leave in
// the same instant, and hydrogen has one of them back in the call for ever; two that join, and it throws one out.
type stateSlot struct{ room id.RoomID }

// putState writes a state event; its caller holds the room's slot.
func (s *Service) putState(ctx context.Context, g *Ghost, room id.RoomID, kind, key string, content any) (id.EventID, error) {
	answer, err := g.asUser.SendStateEvent(ctx, room, event.Type{Type: kind, Class: event.StateEventType}, key, content)
	if err != nil {
		return "", fmt.Errorf("put %s in %s: %w", kind, room, tidy(s.explainForbidden(ctx, g, room, kind, err)))
	}
	return answer.EventID, nil
}

// SweepMembership removes what a membership has left in its room when the
// program died: the ghost's entry, and the call if we made it and nobody is
// in it any more. Peers that were connected find out by themselves. What the
// ghost may not remove counts as swept, and so does an entry that has expired,
// whether it can be removed or not: asking again would help nobody.
// It is not sure where there was no entry: that of a process that has just died may
// be on its way to the homeserver still.
func (s *Service) SweepMembership(ctx context.Context, info MembershipInfo) (sure bool, err error) {
	if !s.OwnGhost(info.Ghost) {
		return false, fmt.Errorf("sweep %s: not a ghost of this bridge", userName(info.Ghost))
	}
	asUser, err := s.client(info.Ghost)
	if err != nil {
		return false, err
	}
	g := &Ghost{service: s, log: s.log, user: info.Ghost, device: info.Device, asUser: asUser}
	state, err := s.readState(ctx, g, info.Room)
	switch {
	case isNotFound(err), isForbidden(err):
		return true, nil // the ghost is not in the room any more, so neither is its entry
	case err != nil:
		return false, fmt.Errorf("read state of %s: %w", info.Room, tidy(err))
	}
	edit := MemberEdit{ConfID: info.ConfID, Drop: []id.DeviceID{info.Device}}
	// Its session may have been renewed since it was stored, so only the device counts.
	_, found := edit.apply(state.members[info.Ghost].Content, time.Now())
	if found {
		err := s.PutMember(ctx, g, info.Room, edit)
		if mayNot(err) || err != nil && !info.live(state.devices(s, info.ConfID), time.Now()) {
			s.log.Info("a ghost's entry stays until it expires", "room", info.Room, "ghost", userName(info.Ghost), "err", err)
		} else if err != nil {
			return false, err
		}
	}
	if !info.Created {
		return found, nil
	}
	err = s.endEmptyCall(ctx, g, info)
	if mayNot(err) {
		s.log.Info("a call without people stays", "room", info.Room, "err", err)
		return found, nil
	}
	return found, err
}

// live says whether clients still believe in the membership's entry.
func (i MembershipInfo) live(devices []MemberDevice, now time.Time) bool {
	return slices.ContainsFunc(devices, func(d MemberDevice) bool {
		return d.User == i.Ghost && d.Device == i.Device && d.Expires.After(now)
	})
}

// mayNot says whether a ghost lacks the right to write what it should.
func mayNot(err error) bool {
	_, rights := errors.AsType[*RightsError](err)
	return rights || isForbidden(err)
}

// endIfEmpty ends the call of a membership unless somebody is in it.
func (s *Service) endIfEmpty(ctx context.Context, g *Ghost, info MembershipInfo, state *callSnapshot) error {
	call := state.call(s, info.ConfID)
	if call.ConfID == "" || call.Ended {
		return nil
	}
	now := time.Now()
	for _, device := range state.devices(s, info.ConfID) {
		if device.Expires.After(now) {
			return nil
		}
	}
	_, err := s.PutCall(ctx, g, info.Room, info.ConfID, CallContent{
		Intent: call.Intent, Type: call.Type, Name: call.Name, Terminated: callEnded,
	})
	return err
}
