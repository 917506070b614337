package sip

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Event is a fact about one call, delivered to the callback set with [Call.OnEvent] in the order it happened, also
// if it happened before that. It is one of the types below.
type Event interface{ event() }

type (
	// Acked: the phone acknowledged our answer; the call is up.
	Acked struct{}
	// Provisional: a phone we called says something before its answer: 180 it rings, 181 it is forwarded, 182 it waits in
	// a queue, 183 progress. Early says that there is something to hear. Said when either changes.
	Provisional struct {
		Code  int
		Early bool
	}
	// Answered: the phone we called is up.
	Answered struct{}
	// Refused: the phone we called is not to be had; Ended follows.
	Refused struct {
		Code       int           // SIP status: 486 busy, 404 unknown number, 408 no answer, 603 declined …
		Reason     string        // its phrase
		Cause      Cause         // of the telephone network, if it said one (RFC 6432)
		RetryAfter time.Duration // when to try again, 0 = not said
		Local      bool          // nobody said that: nothing answered (408) or the trunk cannot be reached (503)
	}
	// Cancelled: the phone gave up before we answered.
	Cancelled struct{ Cause Cause }
	// Bye: the phone hung up.
	Bye struct{ Cause Cause }
	// NoAck: the phone never acknowledged an answer (RFC 3261 §13.3.1.4); the stack has sent BYE.
	NoAck struct{}
	// Failed: the stack ends the call by itself: the phone's answer to our offer was unusable, or a bug was met. BYE or
	// a refusal is on its way.
	Failed struct{ Cause Cause }
	// MediaTimeout: nothing was heard from the phone's media address for this long, and it did not answer when asked
	// whether it still has the call. Said once per silence.
	MediaTimeout struct{ Silence time.Duration }
	// Digit: a key of the phone, once per press.
	Digit struct {
		Key  byte // '0'–'9', '*', '#', 'A'–'D'
		From DigitSource
	}
	// Hold: the phone put us on hold, or took us back.
	Hold struct{ On bool }
	// IdentityChanged: a trusted trunk says that somebody else is speaking now (RFC 4916): a transfer behind its PBX, or a
	// name that became known. Caller is who, as a whole.
	IdentityChanged struct{ Caller Caller }
	// TransferWanted: the phone wants to be elsewhere (REFER): at another number of ours, in the place of another call of ours
	// (RFC 5589 §7), or somebody else is to be called in its place. Answer with [Call.AcceptTransfer] or [Call.RefuseTransfer].
	TransferWanted struct {
		To    Number
		Place *Call // whose place it is to have, whatever number To is; nil = nobody's
		// Outside: To, where it is no number of ours, may be called over the call's trunk, as [DialRequest] with what follows.
		Outside    bool
		Replaces   string // "" = no dialog is named
		ReferredBy string
	}
	// Transferring: what a phone that was asked to call somebody else ([Call.SendTransfer]) says about that: 1xx how it is getting
	// on; 2xx it is there, and our call can be ended; others: it is not, and still ours. Nothing follows a final status.
	Transferring struct{ Code int }
	// MediaChanged: a later offer changed the format or a direction.
	MediaChanged struct{ Format Format }
	// DialogChanged: [Call.Dialog] changed and should be saved again. Where Saved is not nil the phone has to wait for that, for
	// [Config.SaveFirst] at most: it must be closed, once, when the dialog is saved or cannot be.
	DialogChanged struct{ Saved chan<- struct{} }
	// Ended is the last event of a call, said once: signalling is over and the media ports are given back. A call that
	// is dropped because the context of [Stack.Run] ended says nothing: it is not over, another process may resume it.
	Ended struct{ Cause Cause }
)

func (Acked) event()           {}
func (Provisional) event()     {}
func (Answered) event()        {}
func (Refused) event()         {}
func (Cancelled) event()       {}
func (Bye) event()             {}
func (NoAck) event()           {}
func (Failed) event()          {}
func (MediaTimeout) event()    {}
func (Digit) event()           {}
func (Hold) event()            {}
func (IdentityChanged) event() {}
func (TransferWanted) event()  {}
func (Transferring) event()    {}
func (MediaChanged) event()    {}
func (DialogChanged) event()   {}
func (Ended) event()           {}

// LogValue keeps pressed keys (PINs) out of logs.
func (d Digit) LogValue() slog.Value { return slog.StringValue("digit via " + string(d.From)) }

// String keeps pressed keys out of logs written with fmt, too.
func (d Digit) String() string { return "digit via " + string(d.From) }

// DigitSource says how a digit reached us.
type DigitSource string

// How digits come.
const (
	FromRTP  DigitSource = "rtp"  // RFC 4733 telephone-event
	FromINFO DigitSource = "info" // RFC 6086, application/dtmf-relay and application/dtmf
)

// Cause is why a call ended, as in a Reason header (RFC 3326). The zero value is an ordinary hang-up.
type Cause struct {
	Protocol string `json:"protocol,omitempty"` // "SIP" or "Q.850"
	Code     int    `json:"code,omitempty"`
	Text     string `json:"text,omitempty"`
}

// Causes the bridge itself gives.
var (
	CauseNormal   = Cause{"Q.850", 16, "Normal call clearing"}
	CauseShutdown = Cause{"SIP", 503, "Service shutting down"}
	CauseFailure  = Cause{"SIP", 500, "Bridge failure"}
)

func (c Cause) String() string {
	if c.Protocol == "" {
		return "normal"
	}
	return fmt.Sprintf("%s %d", c.Protocol, c.Code)
}

// header is the value of the Reason header, "" for none.
func (c Cause) header() string {
	if c.Protocol == "" {
		return ""
	}
	v := fmt.Sprintf("%s;cause=%d", c.Protocol, c.Code)
	if t := plainText(c.Text); t != "" {
		v += `;text="` + t + `"`
	}
	return v
}

// Number is a phone number or other user part of a SIP address. Logs show its last two characters only.
type Number string

// LogValue shortens the number for logs.
func (n Number) LogValue() slog.Value {
	if len(n) <= 4 {
		return slog.StringValue(strings.Repeat("x", len(n)))
	}
	return slog.StringValue("…" + string(n[len(n)-2:]))
}

// Caller is who the trunk says is calling.
type Caller struct {
	Number      Number `json:"number,omitempty"`
	DisplayName string `json:"display_name,omitempty"`
	Private     bool   `json:"private,omitempty"` // Privacy: id or an anonymous address: show neither name nor number
}

// Info is what an INVITE says about a call.
type Info struct {
	Trunk   string `json:"trunk"`
	Dialled Number `json:"dialled"`
	Caller  Caller `json:"caller"`
	// Diverted are the numbers the call was sent on from, the one that was dialled first at the beginning (Diversion, RFC
	// 5806, or History-Info, RFC 7044).
	Diverted []Number `json:"diverted,omitempty"`
	CallID   string   `json:"call_id"`
	Source   string   `json:"source"` // address the INVITE came from
}

// plainText makes text of others safe inside a quoted string of a header.
func plainText(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == '"' || r == '\\' || r == 0xfffd {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 80 {
		s = string(r[:80])
	}
	return strings.TrimSpace(s)
}
