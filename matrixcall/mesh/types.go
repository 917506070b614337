package mesh

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"maunium.net/go/mautrix/id"
)

// Device is one device of one user.
type Device struct {
	User id.UserID
	ID   id.DeviceID
}

func (d Device) String() string { return string(d.User) + "/" + string(d.ID) }

func compareDevices(a, b Device) int {
	return cmp.Or(strings.Compare(string(a.User), string(b.User)), strings.Compare(string(a.ID), string(b.ID)))
}

// invites says whether we call the peer or wait for its call: the lower user id calls, for the same user the lower
// device id (MSC3401). Both clients compare as JavaScript does, by UTF-16 code units.
func invites(self, peer Device) bool {
	if c := compareUTF16(string(self.User), string(peer.User)); c != 0 {
		return c < 0
	}
	return compareUTF16(string(self.ID), string(peer.ID)) < 0
}

// compareUTF16 orders strings by UTF-16 code units. It differs from the order of bytes only where a character beyond
// the basic plane (surrogates, U+D800…) meets one of U+E000…U+FFFF.
func compareUTF16(a, b string) int {
	ua, ub := utf16.Encode([]rune(a)), utf16.Encode([]rune(b))
	for i := range min(len(ua), len(ub)) {
		if c := cmp.Compare(ua[i], ub[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(ua), len(ub))
}

// Peer is one session of one device: what we connect to.
type Peer struct {
	Device
	Session string
}

func (p Peer) String() string { return p.Device.String() + "/" + p.Session }

// Member is a device entry of the conference's member state.
type Member struct {
	Peer
	Expires time.Time // zero counts as expired
	Ours    bool      // belongs to a ghost of this bridge
}

// Conference is a call of the room, named by its state key.
type Conference struct {
	ID   string
	Ours bool // ours to terminate
}

// Conn names a PeerConnection. Numbers are never used again.
type Conn int

// Kind is the kind of a to-device signal.
type Kind uint8

// The kinds of signals.
const (
	Other Kind = iota // a type we know nothing about; counted, not acted upon
	Invite
	Answer
	Candidates
	Negotiate
	Metadata // sdp_stream_metadata_changed
	Hangup
	Reject
	SelectAnswer
	AssertedIdentity
	Replaces
)

var kindNames = [...]string{
	"other", "invite", "answer", "candidates", "negotiate", "metadata", "hangup", "reject", "select-answer",
	"asserted-identity", "replaces",
}

func (k Kind) String() string { return kindNames[k] }

// numbered says whether we put a seq on a signal of this kind: only on those hydrogen puts in its queue. A number on
// any other would leave a hole there for ever (rule).
func (k Kind) numbered() bool { return k >= Invite && k <= Hangup }

// NoSeq is the Seq of a signal without one.
const NoSeq = -1

// Signal is a to-device message of the call, without the parts that are the same in all of them.
type Signal struct {
	Kind          Kind
	ConfID        string
	CallID        string
	SenderSession string
	DestSession   string
	Seq           int // NoSeq when absent

	SDP        SDP               // Invite, Answer, Negotiate
	Invitee    id.UserID         // Invite; may be empty
	Candidates []Candidate       // Candidates
	Streams    map[string]Stream // Invite, Answer, Negotiate, Metadata
	Reason     string            // Hangup, Reject
	Selected   string            // SelectAnswer: the chosen party id
	Identity   Identity          // AssertedIdentity, ours only
}

// Identity is who the far end of a call is besides its Matrix user (MSC3086). Each part may be missing.
type Identity struct{ ID, DisplayName, AvatarURL string }

// SDP is a session description. Type is "offer" or "answer".
type SDP struct{ Type, Text string }

// Stream is an entry of sdp_stream_metadata (MSC3077). A missing flag means unmuted (MSC3291).
type Stream struct {
	Purpose    string
	AudioMuted *bool
	VideoMuted *bool
}

// UserMedia is the purpose of a microphone and camera stream.
const UserMedia = "m.usermedia"

// Candidate is an ICE candidate. The end marker has an empty Line and neither Mid nor MLine.
type Candidate struct {
	Line  string
	Mid   *string
	MLine *uint16
	Ufrag *string
}

// Audio says in which directions audio may flow after a negotiation, seen from us.
type Audio struct{ In, Out bool }

// Hang-up reasons (MSC2746 and what both clients know).
const (
	ReasonUserHangup    = "user_hangup"
	ReasonInviteTimeout = "invite_timeout"
	ReasonICEFailed     = "ice_failed"
	ReasonReplaced      = "replaced"
	ReasonUserBusy      = "user_busy"
	ReasonBadOffer      = "set_remote_description"
	ReasonCreateOffer   = "create_offer"
	ReasonCreateAnswer  = "create_answer"
	ReasonSignalling    = "signalling_timeout"
	ReasonNewSession    = "new_session"
	ReasonElsewhere     = "answered_elsewhere"
	ReasonTransferred   = "transferred"
	ReasonAbandoned     = "abandoned" // never sent
)

// IsFailure says whether a link that ended for this reason ended by mishap.
func IsFailure(reason string) bool {
	switch reason {
	case ReasonICEFailed, ReasonInviteTimeout, ReasonBadOffer, ReasonCreateOffer, ReasonCreateAnswer, ReasonSignalling:
		return true
	}
	return false
}

// KnownReason says whether a reason is one of those the clients know, or of ours. A peer can send any.
func KnownReason(reason string) bool {
	return IsFailure(reason) || stays(reason) || slices.Contains(clientReasons, reason)
}

// clientReasons are those that only clients give (MSC2746, and both clients' lists).
var clientReasons = []string{
	"local_offer_failed", "no_user_media", "unknown_devices", "send_invite", "send_answer", "set_local_description",
	"ice_timeout", "user_media_failed", "unknown_error",
}

// stays says whether a link that ended for this reason is left alone: the other side did it on purpose.
func stays(reason string) bool {
	switch reason {
	case ReasonUserHangup, ReasonElsewhere, ReasonReplaced, ReasonUserBusy, ReasonTransferred, ReasonNewSession, "":
		return true
	}
	return false
}
