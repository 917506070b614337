package mesh

import "time"

// Event is what the caller tells the mesh.
type Event interface{ isEvent() }

type (
	// Join starts everything: the member entry is written.
	Join struct{}
	// Leave ends everything.
	Leave struct{ Reason string }
	// Abandon ends everything without a word: another process will take over.
	Abandon struct{}
	// Tick says that Deadline has come.
	Tick struct{}
	// RoomState is a reading of the room's state.
	RoomState struct {
		ConfID  string // the conference it is about; we may have moved on meanwhile
		Members []Member
		Ended   bool // the call was terminated or redacted
		Out     bool // our ghost is no longer in the room

		Elsewhere Conference // another call of the room that has people in it; zero: none

		// Unsure says that the membership may be another process's by now, and that this one cannot find out.
		Unsure bool
	}
	// Received is a to-device signal. From is the sender, proved by olm or claimed by the content.
	Received struct {
		From   Device
		Signal Signal
	}
	// Mute says whether the phone can be heard.
	Mute struct{ Muted bool }
	// Assert says who the phone is now.
	Assert struct{ Identity Identity }

	// MemberWritten is the result of PutMember or RemoveMember.
	MemberWritten struct {
		Session string // of PutMember
		Removed bool
		Err     string
		Fatal   bool // no use trying again
	}
	// CallWritten is the result of TerminateCall.
	CallWritten struct{ Err string }
	// SendFailed says that a signal will never arrive.
	SendFailed struct {
		To     Device
		CallID string
	}

	// AnsweredLate says that our answer reached the homeserver only now, so late that the caller may have given up. That the
	// homeserver is there again follows.
	AnsweredLate struct {
		To     Device
		CallID string
	}

	// OfferReady is the result of CreateOffer: an offer with all candidates that were found in time.
	OfferReady struct {
		Conn Conn
		SDP  string
	}
	// AnswerReady is the result of CreateAnswer.
	AnswerReady struct {
		Conn  Conn
		SDP   string
		Audio Audio
	}
	// AnswerApplied is the result of ApplyAnswer.
	AnswerApplied struct {
		Conn  Conn
		Audio Audio
	}
	// ConnFailed is the result of any operation on a connection that did not work.
	ConnFailed struct {
		Conn Conn
		Err  string
	}
	// ConnState is what ICE and DTLS are doing.
	ConnState struct {
		Conn Conn
		Now  Transport
	}
)

// Transport is the state of a connection's transport.
type Transport uint8

// The states of a transport.
const (
	Up Transport = iota
	Disconnected
	Failed
)

func (t Transport) String() string { return [...]string{"up", "disconnected", "failed"}[t] }

func (Join) isEvent()          {}
func (Leave) isEvent()         {}
func (Abandon) isEvent()       {}
func (Tick) isEvent()          {}
func (RoomState) isEvent()     {}
func (Received) isEvent()      {}
func (Mute) isEvent()          {}
func (Assert) isEvent()        {}
func (MemberWritten) isEvent() {}
func (CallWritten) isEvent()   {}
func (SendFailed) isEvent()    {}
func (AnsweredLate) isEvent()  {}
func (OfferReady) isEvent()    {}
func (AnswerReady) isEvent()   {}
func (AnswerApplied) isEvent() {}
func (ConnFailed) isEvent()    {}
func (ConnState) isEvent()     {}

// Effect is what the caller must do. Effects are performed in order; those of one Conn strictly one after the other;
// state writes strictly one after the other; signals to one device strictly one after the other.
type Effect interface{ isEffect() }

type (
	// PutMember writes our member entry. Result: MemberWritten.
	PutMember struct {
		Session string
		Expires time.Time
	}
	// RemoveMember removes our member entry. Result: MemberWritten.
	RemoveMember struct{}
	// Moved says that we are in another conference now: the next PutMember is for it, and takes us out of the old one.
	Moved struct {
		From string
		To   Conference
	}
	// EndEmpty terminates a call that we moved away from, if nobody is in it. No result.
	EndEmpty struct{ ConfID string }
	// TerminateCall writes m.terminated. Result: CallWritten.
	TerminateCall struct{}
	// ReadState asks for a fresh RoomState, soon.
	ReadState struct{}

	// Send sends a signal to a device.
	Send struct {
		To     Device
		Signal Signal
		Repeat bool // identical to an earlier one: leave it out when that one is still on its way
	}

	// Open makes a connection. Inviter says that ours is the first offer (which fixes the DTLS roles).
	Open struct {
		Conn    Conn
		Peer    Peer
		Call    string // for the log
		Inviter bool
	}
	// CreateOffer makes a local offer; the first of a connection is set at once, later ones when the peer answers. Result: OfferReady.
	CreateOffer struct {
		Conn       Conn
		RestartICE bool
	}
	// CreateAnswer sets the remote offer, makes and sets an answer. Result: AnswerReady.
	CreateAnswer struct {
		Conn     Conn
		Offer    string
		Rollback bool // first take back our own offer (perfect negotiation, polite side)
	}
	// ApplyAnswer sets the remote answer. Result: AnswerApplied.
	ApplyAnswer struct {
		Conn   Conn
		Answer string
	}
	// Rollback takes back our own offer. No result.
	Rollback struct{ Conn Conn }
	// AddCandidates adds remote candidates. No result.
	AddCandidates struct {
		Conn       Conn
		Candidates []Candidate
	}
	// Close ends a connection; nothing more is asked of it. No result.
	Close struct {
		Conn   Conn
		Reason string // for the log
	}

	// Joined says that we are a member now.
	Joined struct{}
	// PeerConnected says that a peer's media flows.
	PeerConnected struct{ Peer Peer }
	// PeerGone follows each PeerConnected, once.
	PeerGone struct {
		Peer   Peer
		Reason string
	}
	// PeerMuted says that a connected peer's microphone was switched. A peer begins unmuted.
	PeerMuted struct {
		Peer  Peer
		Muted bool
	}
	// People is the number of users in the conference that are not ours, when it is known and when it changed. Whose
	// connection broke a minute ago and who has shown no sign of life since does not count, nor does whoever was listed
	// before we came and has not been heard of.
	People struct{ N int }
	// CallEnded says that the conference is over for us; leaving follows by itself.
	CallEnded struct{ Reason string }
	// CannotStay says that our member entry cannot be kept up; leaving follows by itself.
	CannotStay struct{ Err string }
	// Displaced says that another process is our device by now, with this session. All was dropped as by Abandon.
	Displaced struct{ Session string }
	// Done is the last effect.
	Done struct{ Err string }

	// Note is for the log: something to wonder about.
	Note struct {
		Device Device
		Text   string
	}
	// Dropped is for a counter: a signal that was not used.
	Dropped struct {
		From Device
		Kind Kind
		Why  string
	}
)

func (PutMember) isEffect()     {}
func (RemoveMember) isEffect()  {}
func (Moved) isEffect()         {}
func (EndEmpty) isEffect()      {}
func (TerminateCall) isEffect() {}
func (ReadState) isEffect()     {}
func (Send) isEffect()          {}
func (Open) isEffect()          {}
func (CreateOffer) isEffect()   {}
func (CreateAnswer) isEffect()  {}
func (ApplyAnswer) isEffect()   {}
func (Rollback) isEffect()      {}
func (AddCandidates) isEffect() {}
func (Close) isEffect()         {}
func (Joined) isEffect()        {}
func (PeerConnected) isEffect() {}
func (PeerGone) isEffect()      {}
func (PeerMuted) isEffect()     {}
func (People) isEffect()        {}
func (CallEnded) isEffect()     {}
func (CannotStay) isEffect()    {}
func (Displaced) isEffect()     {}
func (Done) isEffect()          {}
func (Note) isEffect()          {}
func (Dropped) isEffect()       {}
