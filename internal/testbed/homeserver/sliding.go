package homeserver

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"
)

// slidingFeature is where simplified sliding sync (MSC4186) lives and how /versions announces it.
const slidingFeature = "org.matrix.simplified_msc3575"

// slidingBody is the part of a request that is obeyed: the extensions for to-device messages (MSC3885) and keys
// (MSC3884), and the required state of rooms in a request without position. Lists are refused, and so are subscriptions
// that go on.
type slidingBody struct {
	Lists         map[string]any               `json:"lists"`
	Subscriptions map[id.RoomID]slidingRequest `json:"room_subscriptions"`
	Extensions    struct {
		ToDevice struct {
			Enabled bool   `json:"enabled"`
			Since   string `json:"since"`
		} `json:"to_device"`
		Keys struct {
			Enabled bool `json:"enabled"`
		} `json:"e2ee"`
	} `json:"extensions"`
}

type slidingRequest struct {
	State [][2]string `json:"required_state"`
}

type slidingAnswer struct {
	Position   string                     `json:"pos"`
	Rooms      map[id.RoomID]*slidingRoom `json:"rooms"`
	Extensions slidingExtensions          `json:"extensions"`
}

type slidingRoom struct {
	Initial bool     `json:"initial"`
	State   []*Event `json:"required_state"`
}

type slidingExtensions struct {
	ToDevice *slidingInbox `json:"to_device,omitempty"`
	Keys     *slidingKeys  `json:"e2ee,omitempty"`
}

type slidingInbox struct {
	NextBatch string     `json:"next_batch"`
	Events    []toDevice `json:"events"`
}

type slidingKeys struct {
	Counts      map[string]int         `json:"device_one_time_keys_count"`
	Fallback    []string               `json:"device_unused_fallback_key_types"`
	DeviceLists map[string][]id.UserID `json:"device_lists,omitempty"`
}

// slidingSync answers at once if there is something or the request has no position; else it waits. Unlike in /sync
// every request looks before it waits, so that it finds a message whose wake-up was lost.
func (s *Server) slidingSync(c *call) (any, error) {
	var body slidingBody
	if err := c.decode(&body, false); err != nil {
		return nil, err
	}
	query := c.URL.Query()
	if len(body.Lists) > 0 || len(body.Subscriptions) > 0 && query.Get("pos") != "" {
		return nil, fmt.Errorf("sliding sync tells the state of rooms once only")
	}
	req := syncRequest{from: c.from}
	if ms, err := strconv.Atoi(query.Get("timeout")); err == nil {
		req.timeout = time.Duration(ms) * time.Millisecond
	}
	position := query.Get("pos")
	req.initial = position == ""
	if !req.initial {
		if n, err := fmt.Sscanf(position, "0/s%d", &req.since.rooms); n != 1 || err != nil {
			return nil, bad("M_UNKNOWN", "Invalid stream token")
		}
	}
	if since := body.Extensions.ToDevice.Since; since != "" {
		n, err := strconv.ParseInt(since, 10, 64)
		if err != nil {
			return nil, bad("M_INVALID_PARAM", "since is no integer")
		}
		req.since.toDevice = n
		s.confirm(syncRequest{from: req.from, since: req.since})
	}
	return s.awaitSliding(c, req, body)
}

func (s *Server) awaitSliding(c *call, req syncRequest, body slidingBody) (any, error) {
	timer := time.NewTimer(req.timeout)
	defer timer.Stop()
	var first slidingAnswer
	for looks := 0; ; looks++ {
		s.mu.Lock()
		a, found, woken := s.collectSliding(req, body)
		changed := s.changed
		s.mu.Unlock()
		if looks == 0 {
			first = a
		}
		if woken || looks == 0 && (found || req.initial || req.timeout == 0) {
			return a, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return first, nil // its tokens are from before anything that woke nobody
		case <-c.Context().Done():
			return nil, c.Context().Err()
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		}
	}
}

// collectSliding makes the answer for this moment. found says that there is something in it, woken that it would have
// ended a long poll. Caller holds mu.
func (s *Server) collectSliding(req syncRequest, body slidingBody) (a slidingAnswer, found, woken bool) {
	a.Position = fmt.Sprintf("0/s%d", s.position)
	a.Rooms = s.requiredState(req.from.user, body.Subscriptions)
	d := s.deviceOf(req.from)
	if body.Extensions.ToDevice.Enabled {
		inbox := &slidingInbox{strconv.FormatInt(s.position, 10), []toDevice{}}
		if d != nil {
			list, next, news := d.unread(req.since.toDevice, s.position)
			if list != nil {
				inbox.Events, found, woken = list.Events, true, news
			}
			inbox.NextBatch = strconv.FormatInt(next, 10)
		}
		a.Extensions.ToDevice = inbox
	}
	if body.Extensions.Keys.Enabled {
		keys := &slidingKeys{Counts: map[string]int{}, Fallback: []string{}}
		if d != nil {
			keys.Counts, keys.Fallback = d.counts(), d.unusedFallback()
		}
		if changed := s.changedDevices(req); !req.initial {
			keys.DeviceLists = map[string][]id.UserID{"changed": append([]id.UserID{}, changed...), "left": {}}
			if len(changed) > 0 {
				found, woken = true, true
			}
		}
		a.Extensions.Keys = keys
	}
	return a, found, woken
}

// requiredState returns the state that is asked for, of rooms the user is in. Caller holds mu.
func (s *Server) requiredState(user id.UserID, asked map[id.RoomID]slidingRequest) map[id.RoomID]*slidingRoom {
	rooms := map[id.RoomID]*slidingRoom{}
	for rid, want := range asked {
		r := s.rooms[rid]
		if r == nil || r.membership(user) != "join" {
			continue
		}
		answer := &slidingRoom{Initial: true, State: []*Event{}}
		for _, e := range r.currentState() {
			if slices.ContainsFunc(want.State, func(w [2]string) bool { return w[0] == e.Type && (w[1] == "*" || w[1] == *e.StateKey) }) {
				told := e.forClient()
				told.RoomID = ""
				answer.State = append(answer.State, told)
			}
		}
		rooms[rid] = answer
	}
	return rooms
}
