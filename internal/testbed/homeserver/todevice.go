package homeserver

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"
)

// toDevice is a message in a device's inbox.
type toDevice struct {
	Type    string          `json:"type"`
	Sender  id.UserID       `json:"sender"`
	Content json.RawMessage `json:"content"`

	position int64
	lost     bool // its wake-up was lost: a long poll does not see it by itself
}

// ToDevice is one message of the server's log, whether it was delivered or not.
type ToDevice struct {
	At       time.Time
	Sender   id.UserID
	Device   id.DeviceID // the sender's
	To       id.UserID
	ToDevice id.DeviceID
	Type     string
	Content  json.RawMessage
	Dropped  bool // no such device: Synapse says 200 and forgets it
}

// maxToDevice is SOFT_MAX_EVENT_SIZE (synapse/api/constants.py).
const maxToDevice = 65536

func (s *Server) sendToDevice(c *call) (any, error) {
	var req struct {
		Messages map[id.UserID]map[id.DeviceID]json.RawMessage `json:"messages"`
	}
	if err := c.decode(&req, false); err != nil {
		return nil, err
	}
	if req.Messages == nil {
		return nil, bad("M_MISSING_PARAM", "Missing params: ['messages']")
	}
	for _, devices := range req.Messages {
		for _, content := range devices {
			if len(content) > maxToDevice {
				return nil, &Error{Status: http.StatusRequestEntityTooLarge, Code: "M_TOO_LARGE", Text: "To-device message too large"}
			}
		}
	}
	return s.once(c, func() (any, error) {
		lost := s.lostWakes > 0
		if lost {
			s.lostWakes--
		}
		for _, uid := range slices.Sorted(maps.Keys(req.Messages)) {
			for _, dev := range slices.Sorted(maps.Keys(req.Messages[uid])) {
				s.deliver(c, uid, dev, req.Messages[uid][dev], lost)
			}
		}
		return nil, nil
	})
}

// deliver puts one message into one inbox, or into all of a user's for "*".
func (s *Server) deliver(c *call, uid id.UserID, dev id.DeviceID, content json.RawMessage, lost bool) {
	u := s.users[uid]
	if dev == "*" && u != nil {
		for _, each := range slices.Sorted(maps.Keys(u.devices)) {
			s.deliver(c, uid, each, content, lost)
		}
		return
	}
	log := ToDevice{
		At: time.Now(), Sender: c.from.user, Device: c.from.device, To: uid, ToDevice: dev,
		Type: c.PathValue("type"), Content: content, Dropped: u == nil || u.devices[dev] == nil,
	}
	s.sent = append(s.sent, log)
	if log.Dropped {
		return
	}
	d := u.devices[dev]
	d.inbox = append(d.inbox, toDevice{log.Type, log.Sender, content, s.advance(), lost})
}

// ToDevice returns all to-device messages sent so far, oldest first.
func (s *Server) ToDevice() []ToDevice {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sent)
}

// Inbox returns how many messages a device has not confirmed yet.
func (s *Server) Inbox(uid id.UserID, dev id.DeviceID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.users[uid]; u != nil && u.devices[dev] != nil {
		return len(u.devices[dev].inbox)
	}
	return 0
}
