package matrixcall

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pion/rtp"
	"maunium.net/go/mautrix/id"
)

// PeerKey names one peer: one session of one device of one user. A device that comes back with a new session is a new
// peer.
type PeerKey struct {
	User    id.UserID
	Device  id.DeviceID
	Session string
}

func (k PeerKey) String() string { return fmt.Sprintf("%s/%s/%s", k.User, k.Device, k.Session) }

// Event is what a membership tells its owner. It is one of PeerConnected, PeerGone, PeerMuted, PeerLoss, Digit, Speaking,
// People, CallEnded, Displaced, Failed.
type Event interface{ isEvent() }

type (
	// PeerConnected says that audio can flow to and from the peer.
	PeerConnected struct{ Peer PeerKey }
	// PeerGone follows every PeerConnected, exactly once.
	PeerGone struct {
		Peer   PeerKey
		Reason string
	}
	// PeerMuted says that the peer's user muted or unmuted the microphone. Unmuted is what a peer starts as.
	PeerMuted struct {
		Peer  PeerKey
		Muted bool
	}
	// PeerLoss says how much of what we sent the peer it has lost since it last said so, from 0 to 1: every few seconds.
	PeerLoss struct {
		Peer     PeerKey
		Fraction float64
	}
	// Digit is a DTMF digit (0-9, *, #, A-D) the peer's user pressed, RFC 4733.
	Digit struct {
		Peer  PeerKey
		Digit rune
	}
	// Speaking says that the peer's user began or ceased to speak. Who is gone speaks no more; a last word may arrive
	// after PeerGone. Peers that do not tell their level (RFC 6464) never speak.
	Speaking struct {
		Peer PeerKey
		On   bool
	}
	// People is the number of users in the conference that are not our ghosts: sent as soon as it is known, be it 0, and
	// whenever it changes. Who was listed before the ghost came counts once heard of; for that 0 waits 3 seconds.
	People struct{ N int }
	// CallEnded says that the conference is over for this ghost without Leave; the membership has cleaned up.
	CallEnded struct{ Reason string }
	// Displaced says that another process acts as this ghost's device in the call, see CallOptions.Unsure. The membership has ended as
	// by [Membership.Abandon].
	Displaced struct{}
	// Failed says that the membership cannot go on; the membership has cleaned up as far as it could.
	Failed struct{ Err error }
)

func (PeerConnected) isEvent() {}
func (PeerGone) isEvent()      {}
func (PeerMuted) isEvent()     {}
func (PeerLoss) isEvent()      {}
func (Digit) isEvent()         {}
func (Speaking) isEvent()      {}
func (People) isEvent()        {}
func (CallEnded) isEvent()     {}
func (Displaced) isEvent()     {}
func (Failed) isEvent()        {}

// CallOptions say how a ghost joins a room's call, and who listens. The callbacks must not block and must not call
// back into the membership; OnPacket must not keep the packet. Both may be nil.
//
// Save is told the membership before anything of it can be seen in the room, so that a process that dies at any moment
// leaves nothing behind that its successor does not know; an error ends the attempt to join. It is told again, from
// another goroutine, before the ghost moves to another call of the room (two were created at once, and the people are in
// the other one). It may be nil.
type CallOptions struct {
	CreateType string // m.type of a call we create; "" means m.voice
	Intent     string // m.intent of a call we create; "" means m.ring
	Name       string // m.name of a call we create
	WideBand   bool   // devices are asked for sound up to 8 kHz, not 4: the phone can play it
	Save       func(context.Context, MembershipInfo) error
	OnEvent    func(Event)
	OnPacket   func(peer PeerKey, packet *rtp.Packet) // Opus as the peer sends it; see LevelExtension
	EntryLife  time.Duration                          // of the ghost's member entry, which is renewed in time; 0 means an hour

	// Unsure tells whether another process may have taken the membership over by now without this one being told, which is
	// believed only then: for as long as this process is sure of it, an entry with a foreign session is one that came late, and
	// ours is written again. It must not block, and may be nil: always sure.
	Unsure func() bool

	// Rejoin takes over a membership that another process has left standing (see Abandon): the same call, a new session.
	// ErrCallOver says that the call has ended meanwhile. nil joins the room's call or makes one.
	Rejoin *MembershipInfo
}

// ErrCallOver says that the call to rejoin has ended. The predecessor's entry may still stand: SweepMembership removes it.
var ErrCallOver = errors.New("the call has ended meanwhile")

// ErrAbandoned as the cause that ends JoinCall's context gives the attempt up as [Membership.Abandon] does: whatever stands
// in the room stays there, for another process goes on with it.
var ErrAbandoned = errors.New("abandoned to another process")

// MembershipInfo is a membership as a database row.
type MembershipInfo struct {
	Ghost     id.UserID
	Device    id.DeviceID
	Room      id.RoomID
	ConfID    string
	CallEvent id.EventID // of the call's state event when we joined; not known yet when Save is told of a call that we create
	SessionID string
	Created   bool      // one of our ghosts created the call
	Expires   time.Time // of the member entry as last written
}

// Identity is who a phone is besides its ghost. Each part may be missing.
type Identity struct {
	ID          string // a URI: "tel:+15550100"
	DisplayName string
	AvatarURL   id.ContentURIString
}

// JoinCall joins the room's active call, or creates one when there is none, and returns when the ghost is a member.
// The peers connect afterwards.
func (g *Ghost) JoinCall(ctx context.Context, room id.RoomID, opts CallOptions) (*Membership, error) {
	m, err := g.joinInTurn(ctx, room, opts)
	if err != nil {
		if m != nil {
			<-m.done // the ghost can be used again only when this one has left; others need not wait for that
		}
		return nil, fmt.Errorf("join call in %s: %w", room, err)
	}
	return m, nil
}

// joinInTurn lets the phones of a room join one after the other: two that find no call must not both make one.
func (g *Ghost) joinInTurn(ctx context.Context, room id.RoomID, opts CallOptions) (*Membership, error) {
	release, err := g.service.joining.acquire(ctx, room)
	if err != nil {
		return nil, err
	}
	defer release()
	if g.isIn(room) {
		return nil, ErrGhostBusy
	}
	return joinCall(ctx, g.host(), g, room, opts)
}
