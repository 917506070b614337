package matrixcall

import (
	"context"
	"encoding/json"

	"github.com/pion/rtp"
	"maunium.net/go/mautrix/id"
)

// Membership is one ghost in one conference.
type Membership struct{ info MembershipInfo }

func joinCall(ctx context.Context, host callHost, ghost *Ghost, room id.RoomID, opts CallOptions) (*Membership, error) {
	panic("being written")
}

// Info describes the membership as it is now.
func (m *Membership) Info() MembershipInfo { return m.info }

// WriteRTP sends one Opus packet to all connected peers.
func (m *Membership) WriteRTP(packet *rtp.Packet) error { return nil }

// Mute tells the peers whether the phone can be heard.
func (m *Membership) Mute(muted bool) {}

// Leave leaves the conference.
func (m *Membership) Leave(ctx context.Context, reason string) error { return nil }

func (m *Membership) deliverToDevice(sender id.UserID, senderDevice id.DeviceID, evtType string, content json.RawMessage, encrypted bool) {
}

func (m *Membership) deliverState(members []MemberDevice, call CallState) {}
