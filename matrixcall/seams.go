package matrixcall

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"maunium.net/go/mautrix/id"
)

// This file is where the two halves of the package meet: memberships (group call, signalling, PeerConnections) on one
// side, the service (ghosts, keys, polling, sending, room state) on the other.
//
// In, from service to membership; all are put-only and may be called from any goroutine, in order:
//
//	m.deliverToDevice(sender, senderDevice, evtType, content, encrypted)
//	m.deliverState(members, call)
//
// Out, from membership to service: callHost.

// MemberDevice is one device in an m.call.member state event, as read from the room. The service lists every device
// entry of the conference whose user is joined to the room, ours too, expired ones too: the mesh decides who counts.
// Events without an m.calls array, or whose state key is not their sender, are MatrixRTC's and not listed.
type MemberDevice struct {
	User    id.UserID
	Device  id.DeviceID
	Session string
	Expires time.Time // zero when expires_ts is missing or no safe integer
	Ours    bool      // the user is a ghost of this bridge
}

// CallState is an m.call state event (MSC3401), as read from the room.
type CallState struct {
	ConfID string // the state key; "" means: no such call
	Event  id.EventID
	Type   string // m.type
	Intent string // m.intent
	Name   string // m.name
	Sender id.UserID
	Ours   bool // the sender is a ghost of this bridge
	Ended  bool // m.terminated is truthy, or the event is redacted
	Out    bool // the ghost itself is no longer joined to the room

	// Elsewhere is another call of the room, the newest that has people in it; nil when there is none.
	Elsewhere *CallState
}

// MemberEdit is a change of a ghost's m.call.member event: devices taken out of calls, one put in. What else is in the event
// stays.
type MemberEdit struct {
	ConfID string
	Former []string          // conferences the ghost was in before
	Drop   []id.DeviceID     // from all of them
	Add    *MemberCallDevice // nil: none
}

// MemberContent is the content of an m.call.member event.
type MemberContent struct {
	Calls []MemberCall `json:"m.calls"`
}

// MemberCall is one conference in a MemberContent. Its devices are as somebody wrote them.
type MemberCall struct {
	CallID  string            `json:"m.call_id"`
	Devices []json.RawMessage `json:"m.devices"`
}

// MemberCallDevice is our device in a MemberCall. expires_ts and feeds are mandatory: without the first hydrogen and
// js-sdk ignore the device, without the second js-sdk does.
type MemberCallDevice struct {
	DeviceID  id.DeviceID  `json:"device_id"`
	SessionID string       `json:"session_id"`
	ExpiresTS int64        `json:"expires_ts"`
	Feeds     []MemberFeed `json:"feeds"`
}

func (d MemberCallDevice) raw() json.RawMessage {
	text, err := json.Marshal(d)
	if err != nil {
		panic(fmt.Sprintf("a device entry is plain data, yet: %v", err))
	}
	return text
}

// MemberFeed announces one media stream of a device.
type MemberFeed struct {
	Purpose string `json:"purpose"`
}

// CallContent is the content of the m.call state event.
type CallContent struct {
	Intent     string `json:"m.intent"`
	Type       string `json:"m.type"`
	Name       string `json:"m.name,omitempty"`
	Terminated string `json:"m.terminated,omitempty"` // "call_ended"
}

// OutMessage is one to-device message on its way to one device.
type OutMessage struct {
	User    id.UserID
	Device  id.DeviceID
	Type    string // m.call.invite, m.call.answer, …
	Content any    // marshals to the content; not changed after it was handed over
}

// TURNServer is one server of /voip/turnServer or of the configuration.
type TURNServer struct {
	URIs     []string `yaml:"uris"`
	Username string   `yaml:"username"`
	Password string   `yaml:"password"`
}

// signalSender sends to-device messages as a ghost. toDevice takes a batch and does not block; sent, which can be
// asked once for each place of the batch, returns when the message there was accepted by the homeserver or given up, or ctx
// ends. It keeps the order of messages to the same device, never has two requests in flight in the
// whole bridge, groups messages to different devices into one request per type, encrypts for devices that published keys,
// and repeats a request with the same transaction id. (Rules 2 and 6 of the group call clients: see mesh/doc.go.)
type signalSender interface {
	toDevice(ctx context.Context, ghost *Ghost, batch []OutMessage) (sent func(place int) error)
}

// stateWriter puts the two state events of a group call, and returns when the homeserver said yes.
type stateWriter interface {
	PutMember(ctx context.Context, ghost *Ghost, room id.RoomID, edit MemberEdit) error
	PutCall(ctx context.Context, ghost *Ghost, room id.RoomID, confID string, content CallContent) (id.EventID, error)
}

// callHost is all a membership needs from the rest of the package; *Service implements it.
type callHost interface {
	signalSender
	stateWriter
	// turnServers returns the homeserver's TURN servers, cached; none is no error.
	turnServers(ctx context.Context, ghost *Ghost) ([]TURNServer, error)
	// activeCall reads the room's call: the newest that has not ended and has people in it, else the newest; ConfID is ""
	// when there is none.
	activeCall(ctx context.Context, ghost *Ghost, room id.RoomID) (CallState, error)
	// callState reads one call of the room; ConfID is "" when there is no such call.
	callState(ctx context.Context, ghost *Ghost, room id.RoomID, confID string) (CallState, error)
	// attach starts the ghost's poller and the deliveries to m: the present state soon after, whatever changes later.
	attach(ctx context.Context, m *Membership) error
	// detach ends the deliveries and the poller; it returns when no delivery is under way any more. A call of ours that is
	// empty then is ended, unless somebody else will go on with it (forsaken).
	detach(m *Membership, forsaken bool)
	// endEmptyCall ends a call of ours unless somebody is in it or about to join it.
	endEmptyCall(ctx context.Context, ghost *Ghost, info MembershipInfo) error
	// refreshState asks for a fresh read of the room's state followed by deliverState. Does not block.
	refreshState(m *Membership)
	// rtcEngine is what PeerConnections are made with; the service owns it (newEngine, Close).
	rtcEngine() *engine
	// Metrics are the counters.
	Metrics() *Metrics
	// logger is what memberships log to.
	logger() *slog.Logger
}

var _ callHost = (*Service)(nil)

func (s *Service) logger() *slog.Logger { return s.log }

// What the membership offers in return (membership.go); *Ghost has host() callHost, UserID() and DeviceID().
var _ interface {
	deliverToDevice(sender id.UserID, senderDevice id.DeviceID, evtType string, content json.RawMessage, encrypted bool)
	deliverState(members []MemberDevice, call CallState)
	Info() MembershipInfo
} = (*Membership)(nil)
