package menu

import (
	"fmt"
	"strings"
)

// Event is one thing that happened to the menu of a phone.
type Event struct {
	Kind EventKind
	Key  Key  // Digit: which
	N    int  // PeopleAre: how many others there are; Played: the ID of the effect
	On   bool // RoomMutes
}

// String hides the key.
func (e Event) String() string {
	switch e.Kind {
	case PeopleAre, Played:
		return fmt.Sprint(e.Kind, " ", e.N)
	case RoomMutes:
		return fmt.Sprint(e.Kind, " ", onOff(e.On))
	}
	return e.Kind.String()
}

// GoString hides the key.
func (e Event) GoString() string { return e.String() }

// EventKind says what happened.
type EventKind uint8

const (
	Began     EventKind = iota // the phone is answered
	Resumed                    // the process was replaced; the phone hears nothing at present
	Digit                      // a key was pressed
	Played                     // the sounds of Play N are over
	PINRight                   // what CheckPIN asked
	PINWrong                   // wrong, or there is no such room
	PINFailed                  // can't be known at present
	Admitted                   // somebody in the room lets the phone in
	Declined                   // somebody in the room does not
	PeopleAre                  // N others are in the conference
	RoomMutes                  // somebody in the room mutes or unmutes the phone
	HungUp                     // the phone is gone, or the leg ends for its own reasons
	Tick                       // the deadline may have passed
)

var eventNames = [...]string{
	"began", "resumed", "digit", "played", "PIN right", "PIN wrong", "PIN failed", "admitted", "declined", "people are", "room mutes",
	"hung up", "tick",
}

func (k EventKind) String() string { return name(eventNames[:], int(k)) }

// Effect is one thing the shell must do.
type Effect struct {
	Kind   EffectKind
	Sounds []string // Play: one after the other
	ID     int      // Play: comes back as N of Played
	PIN    Secret   // CheckPIN
	On     bool     // SetMute, RaiseHand
	Cause  Cause    // Leave
}

func (e Effect) String() string {
	switch e.Kind {
	case Play:
		return fmt.Sprintf("%v %d: %s", e.Kind, e.ID, strings.Join(e.Sounds, " "))
	case SetMute, RaiseHand:
		return fmt.Sprint(e.Kind, " ", onOff(e.On))
	case Leave:
		return fmt.Sprintf("%v (%v)", e.Kind, e.Cause)
	}
	return e.Kind.String()
}

// EffectKind says what to do.
type EffectKind uint8

const (
	Save         EffectKind = iota // write the state down
	Play                           // to this phone only; replaces what plays
	StopPlaying                    // at once
	CheckPIN                       // answer with PINRight, PINWrong or PINFailed
	AskAdmission                   // tell the room who waits
	Enter                          // connect the phone with the conference
	SetMute                        // and tell the room's call
	RaiseHand                      // tell the room
	Leave                          // hang up; at most once, and last
)

var effectNames = [...]string{"save", "play", "stop playing", "check PIN", "ask admission", "enter", "set mute", "raise hand", "leave"}

func (k EffectKind) String() string { return name(effectNames[:], int(k)) }

// Cause is why the menu ends the call.
type Cause string

const (
	ByKey        Cause = "left by key"
	WrongPIN     Cause = "wrong PIN too often"
	NoPIN        Cause = "no PIN in time"
	CheckFailed  Cause = "PIN can't be checked"
	RoomDeclined Cause = "declined by the room"
	NotAdmitted  Cause = "nobody let the phone in"
)

// Key is a key of a telephone: 0-9 * # A-D. It does not show itself.
type Key byte

func (Key) String() string   { return masked }
func (Key) GoString() string { return masked }

// Secret is what somebody typed. It does not show itself, not even its length.
type Secret string

const masked = "•••"

func (Secret) String() string               { return masked }
func (Secret) GoString() string             { return masked }
func (Secret) MarshalText() ([]byte, error) { return []byte(masked), nil }

// Reveal returns what was typed, for the check and nothing else.
func (s Secret) Reveal() string { return string(s) }

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func name(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprint("unknown ", i)
}
