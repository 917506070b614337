package leg

import "fmt"

// Event is one thing that happened to a leg.
type Event struct {
	Kind  EventKind
	N     int   // CompanyIs: how many others there are
	Cause Cause // RoomRefused: why
}

func (e Event) String() string {
	switch e.Kind {
	case CompanyIs:
		return fmt.Sprint(e.Kind, " ", e.N)
	case RoomRefused:
		return fmt.Sprint(e.Kind, " ", e.Cause)
	}
	return e.Kind.String()
}

// EventKind says what happened.
type EventKind uint8

const (
	Invited        EventKind = iota // an INVITE with a route
	RoomJoined                      // the ghost is in the room's call
	RoomRefused                     // it can't be; Cause says why
	PhoneReady                      // the answer to the phone is prepared: ports bound, SDP made
	Saved                           // the row is in the database
	SaveFailed                      // it is not
	PhoneAcked                      // the phone confirmed the answer
	PhoneCancelled                  // CANCEL before the answer
	PhoneHungUp                     // BYE
	PhoneFailed                     // no ACK, no media, no transport
	PhoneReleased                   // our refusal or BYE is done
	DialogChanged                   // hold, target refresh, learned address: the row must follow
	CompanyIs                       // N others are in the conference
	CallEnded                       // the room's call was terminated
	RoomFailed                      // the membership can't be kept
	RoomLeft                        // the ghost is out of the call
	Shutdown                        // the process goes
	Tick                            // the deadline may have passed
)

var eventNames = [...]string{
	"invited", "room joined", "room refused", "phone ready", "saved", "save failed", "phone acked", "phone cancelled",
	"phone hung up", "phone failed", "phone released", "dialog changed", "company is", "call ended", "room failed", "room left",
	"shutdown", "tick",
}

func (k EventKind) String() string { return name(eventNames[:], int(k)) }

// Effect is one thing the shell must do. Any may be performed twice.
type Effect struct {
	Kind  EffectKind
	Cause Cause // of RefusePhone, HangUpPhone, LeaveRoom, DeleteRow, Forget
}

func (e Effect) String() string {
	switch e.Kind {
	case RefusePhone, HangUpPhone, LeaveRoom, DeleteRow, Forget:
		return fmt.Sprintf("%v (%v)", e.Kind, e.Cause)
	}
	return e.Kind.String()
}

// EffectKind says what to do.
type EffectKind uint8

const (
	Ring        EffectKind = iota // 180 to the phone
	JoinRoom                      // make the ghost, enter the room, join or create its call
	AcceptPhone                   // bind ports, make the SDP answer; nothing is sent
	Save                          // write the row
	SendAnswer                    // 200 with the prepared SDP
	StartMedia                    // connect the phone with the desk
	StopMedia
	RefusePhone // final response by Cause
	HangUpPhone // BYE with a Reason by Cause
	LeaveRoom   // hang up the peers, remove the member entry, end the call if it is ours and empty
	DeleteRow   // the row becomes a line of history
	Forget      // the last effect, exactly once
)

var effectNames = [...]string{
	"ring", "join room", "accept phone", "save", "send answer", "start media", "stop media", "refuse phone", "hang up phone",
	"leave room", "delete row", "forget",
}

func (k EffectKind) String() string { return name(effectNames[:], int(k)) }

// Cause is why a leg ended. Its text goes to logs, metrics and the history.
type Cause string

const (
	PhoneLeft      Cause = "phone hung up"
	Cancelled      Cause = "phone gave up before the answer"
	PhoneLost      Cause = "phone lost"
	RoomEmptied    Cause = "everybody left the room's call"
	NobodyCame     Cause = "nobody came"
	EndedInRoom    Cause = "call ended in the room"
	RoomLost       Cause = "membership lost"
	NoRights       Cause = "the room does not allow the ghost to join calls"
	NoSuchRoom     Cause = "room not reachable"
	NoHomeserver   Cause = "homeserver not reachable"
	NotStored      Cause = "database not reachable"
	TookTooLong    Cause = "set-up took too long"
	LongestReached Cause = "longest call reached"
	ShuttingDown   Cause = "shutdown"
	Busy           Cause = "too many calls"
	ProcessDied    Cause = "process died"
)

// Refusal is the SIP status (RFC 3261 §21) that tells an unanswered phone why.
func (c Cause) Refusal() (code int, reason string) {
	switch c {
	case NoRights:
		return 403, "Forbidden"
	case NoSuchRoom:
		return 404, "Not Found"
	case TookTooLong, EndedInRoom, RoomEmptied, NobodyCame:
		return 480, "Temporarily Unavailable"
	case PhoneLost:
		return 488, "Not Acceptable Here"
	}
	return 503, "Service Unavailable"
}

// Q850 is the cause of a BYE (RFC 3326, ITU-T Q.850) with its text.
func (c Cause) Q850() (code int, text string) {
	switch c {
	case PhoneLost, RoomLost, NoHomeserver, NotStored, ProcessDied:
		return 41, "Temporary failure"
	case LongestReached, NobodyCame:
		return 102, "Recovery on timer expiry"
	case ShuttingDown:
		return 41, "Service restarting"
	}
	return 16, "Normal call clearing"
}
