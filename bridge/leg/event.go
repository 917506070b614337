package leg

import (
	"fmt"
	"strings"
)

// Event is one thing that happened to a leg.
type Event struct {
	Kind  EventKind
	N     int   // CompanyIs: how many others there are
	Cause Cause // RoomRefused, PhoneRefused, LineRefused, Dismissed: why; PhoneCancelled, PhoneHungUp: the same, "" = for no special reason
}

func (e Event) String() string {
	switch e.Kind {
	case CompanyIs:
		return fmt.Sprint(e.Kind, " ", e.N)
	case RoomRefused, PhoneRefused, LineRefused, Dismissed:
		return fmt.Sprint(e.Kind, " ", e.Cause)
	case PhoneCancelled, PhoneHungUp:
		return strings.TrimSpace(fmt.Sprint(e.Kind, " ", e.Cause))
	}
	return e.Kind.String()
}

// EventKind says what happened.
type EventKind uint8

const (
	Invited        EventKind = iota // an INVITE with a route
	Resumed                         // the process before had answered the phone: go on
	Interrupted                     // the process before had not answered it: it is refused
	ResumedAsking                   // the process before had answered the phone, which was not in the room yet
	RoomJoined                      // the ghost is in the room's call
	RoomRefused                     // it can't be; Cause says why
	RoomDeclined                    // somebody in the room does not want the call
	PhoneReady                      // the answer to the phone is prepared: ports bound, SDP made
	Saved                           // the row is in the database
	SaveFailed                      // it is not
	PhoneAcked                      // the phone confirmed the answer
	PhoneCancelled                  // CANCEL before the answer
	PhoneHungUp                     // BYE
	PhoneFailed                     // no ACK, no media, no transport
	PhoneReleased                   // our refusal or BYE is done
	ToneFailed                      // the phone can't be played tones before the answer
	Passed                          // the menu lets the phone in
	Dismissed                       // the menu ends the call; Cause says why
	DialogChanged                   // hold, target refresh, learned address: the row must follow
	CompanyIs                       // N others are in the conference: people, and phones that are answered
	CallEnded                       // the room's call was terminated
	RoomFailed                      // the membership can't be kept
	RoomLeft                        // the ghost is out of the call
	Shutdown                        // the process goes
	Ordered                         // somebody in the room wants a phone called; the row is written
	PhoneRings                      // the phone that we call rings
	PhoneSounds                     // there is something to hear before its answer
	PhoneAnswered                   // it is up
	PhoneRefused                    // it is not to be had; Cause says why
	LineRefused                     // its trunk can't place the call, and another one may; Cause says why
	Rerouted                        // the call is prepared over another trunk
	TakesOver                       // another leg hands over a phone that is answered: it wants to be in this one's room
	HandedOver                      // another leg has the phone now
	HungUpByRoom                    // somebody in the room wants the phone to go
	Tick                            // the deadline may have passed
)

var eventNames = [...]string{
	"invited", "resumed", "interrupted", "asking again", "room joined", "room refused", "room declined", "phone ready", "saved",
	"save failed", "phone acked", "phone cancelled", "phone hung up", "phone failed", "phone released", "tone failed", "passed",
	"dismissed", "dialog changed", "company is", "call ended", "room failed", "room left", "shutdown",
	"ordered", "phone rings", "phone sounds", "phone answered", "phone refused", "line refused", "rerouted", "takes over", "handed over", "hung up by room",
	"tick",
}

func (k EventKind) String() string { return name(eventNames[:], int(k)) }

// Effect is one thing the shell must do. Any may be performed twice.
type Effect struct {
	Kind  EffectKind
	Cause Cause // of RefusePhone, HangUpPhone, LeaveRoom, RingOver, Report, DeleteRow, Forget
	Tone  Tone  // of PlayTone
}

func (e Effect) String() string {
	switch e.Kind {
	case PlayTone:
		return fmt.Sprintf("%v (%v)", e.Kind, e.Tone)
	case RefusePhone, HangUpPhone, LeaveRoom, RingOver, Report, DeleteRow, Forget:
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
	AskPhone                      // whether it has the call still; one whose answer is not acknowledged is answered again
	StartMedia                    // connect the phone with the desk
	StopMedia
	Ask      // connect the phone with a desk of its own, and let the menu begin or go on
	Enter    // connect it with the room's desk instead; the menu goes on
	PlayTone // 183 if there was none, and the tone in the phone's ear until StopTone
	StopTone
	RingRoom    // tell the room who calls, and how to decline
	RingOver    // tell the room how that ended, Answered or why not
	DialPhone   // INVITE
	NextLine    // prepare the call over the next trunk
	AckPhone    // confirm the answer to it
	Report      // tell the room how a call that it ordered is getting on, or why it is over
	RefusePhone // final response by Cause
	HangUpPhone // BYE with a Reason by Cause; CANCEL before the answer to a call of ours
	LeaveRoom   // hang up the peers, remove the member entry, end the call if it is ours and empty
	DeleteRow   // the row becomes a line of history
	Forget      // the last effect, exactly once
)

var effectNames = [...]string{
	"ring", "join room", "accept phone", "save", "send answer", "ask phone", "start media", "stop media", "ask", "enter", "play tone",
	"stop tone", "ring room", "ring over", "dial phone", "next line", "ack phone", "report", "refuse phone", "hang up phone", "leave room", "delete row", "forget",
}

func (k EffectKind) String() string { return name(effectNames[:], int(k)) }

// Tone is what a phone hears of us while it is not answered.
type Tone uint8

const (
	NoTone      Tone = iota
	Ringback         // the room is being rung
	BusyTone         // nobody can or will take the call
	Congestion       // the call failed on its way
	Information      // the number does not lead to a call, and will not when tried again
)

var toneNames = [...]string{"none", "ringback", "busy", "congestion", "information"}

func (t Tone) String() string { return name(toneNames[:], int(t)) }

// MarshalText writes the name.
func (t Tone) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads a name.
func (t *Tone) UnmarshalText(text []byte) error { return parse(t, toneNames[:], text) }

// Cause is why a leg ended. Its text goes to logs, metrics and the history.
type Cause string

const (
	PhoneLeft      Cause = "phone hung up"
	Cancelled      Cause = "phone gave up before the answer"
	PhoneElsewhere Cause = "answered elsewhere" // another phone has the call
	PhoneLost      Cause = "phone lost"
	RoomEmptied    Cause = "everybody left the room's call"
	NobodyCame     Cause = "nobody came"
	NobodyAnswered Cause = "nobody answered"
	Declined       Cause = "declined in the room"
	Answered       Cause = "answered" // how a ring ended, never a leg
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
	HungUp         Cause = "hung up in the room"
	Moved          Cause = "phone moved to another room"
	Transferred    Cause = "phone transferred to another number"
	SwitchedOff    Cause = "calls switched off"

	// What the menu decides.
	LeftByKey   Cause = "left by key"
	WrongPIN    Cause = "wrong PIN too often"
	NoPIN       Cause = "no PIN in time"
	PINFailed   Cause = "PIN can't be checked"
	NotAdmitted Cause = "nobody let the phone in"
)

// Refusal is the SIP status (RFC 3261 §21) that tells an unanswered phone why.
func (c Cause) Refusal() (code int, reason string) {
	switch c {
	case NoRights:
		return 403, "Forbidden"
	case NoSuchRoom:
		return 404, "Not Found"
	case TookTooLong, EndedInRoom, RoomEmptied, NobodyCame, NobodyAnswered:
		return 480, "Temporarily Unavailable"
	case Declined, HungUp:
		return 603, "Decline"
	case PhoneLost:
		return 488, "Not Acceptable Here"
	}
	return 503, "Service Unavailable"
}

// Tone is what an unanswered phone hears before the refusal. Where there is none the refusal goes out at once: to what
// ends in 503, so that a trunk that knows another way can take it, and to callers who are gone.
func (c Cause) Tone() Tone {
	switch c {
	case NoRights, NoSuchRoom:
		return Information
	case Declined, HungUp, NobodyAnswered, EndedInRoom:
		return BusyTone
	case TookTooLong:
		return Congestion
	}
	return NoTone
}

// Q850 is the cause of a BYE or a refusal (RFC 3326, ITU-T Q.850) with its text.
func (c Cause) Q850() (code int, text string) {
	switch c {
	case PhoneLost, RoomLost, NoHomeserver, NotStored, ProcessDied, PINFailed:
		return 41, "Temporary failure"
	case NobodyAnswered, PhoneSilent:
		return 19, "No answer from user"
	case Declined, WrongPIN:
		return 21, "Call rejected"
	case NoRights:
		return 57, "Bearer capability not authorized"
	case NoSuchRoom:
		return 1, "Unallocated number"
	case Busy:
		return 42, "Switching equipment congestion"
	case LongestReached, NobodyCame, TookTooLong, NoPIN, NotAdmitted:
		return 102, "Recovery on timer expiry"
	case ShuttingDown:
		return 41, "Service restarting"
	}
	return 16, "Normal call clearing"
}
