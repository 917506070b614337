package matrixcall

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"

	"trunkline/matrixcall/mesh"
)

// mautrix models only the first version of Matrix calls, so the contents of group-call signals are ours. Incoming
// numbers may be anything JSON allows; what is not understood is left out, not refused.

// Types of to-device call events.
const (
	typeInvite             = "m.call.invite"
	typeAnswer             = "m.call.answer"
	typeCandidates         = "m.call.candidates"
	typeNegotiate          = "m.call.negotiate"
	typeMetadata           = "m.call.sdp_stream_metadata_changed"
	typeMetadataUnstable   = "org.matrix.call.sdp_stream_metadata_changed" // hydrogen sends this one
	typeHangup             = "m.call.hangup"
	typeReject             = "m.call.reject"
	typeSelectAnswer       = "m.call.select_answer"
	typeAssertedID         = "m.call.asserted_identity"
	typeAssertedIDUnstable = "org.matrix.call.asserted_identity"
	typeReplaces           = "m.call.replaces"
)

var signalKinds = map[string]mesh.Kind{
	typeInvite:             mesh.Invite,
	typeAnswer:             mesh.Answer,
	typeCandidates:         mesh.Candidates,
	typeNegotiate:          mesh.Negotiate,
	typeMetadata:           mesh.Metadata,
	typeMetadataUnstable:   mesh.Metadata,
	typeHangup:             mesh.Hangup,
	typeReject:             mesh.Reject,
	typeSelectAnswer:       mesh.SelectAnswer,
	typeAssertedID:         mesh.AssertedIdentity,
	typeAssertedIDUnstable: mesh.AssertedIdentity,
	typeReplaces:           mesh.Replaces,
}

var signalTypes = map[mesh.Kind]string{
	mesh.Invite:           typeInvite,
	mesh.Answer:           typeAnswer,
	mesh.Candidates:       typeCandidates,
	mesh.Negotiate:        typeNegotiate,
	mesh.Metadata:         typeMetadata,
	mesh.Hangup:           typeHangup,
	mesh.Reject:           typeReject,
	mesh.AssertedIdentity: typeAssertedID,
}

// Limits of what one signal may carry; a browser's are far below.
const (
	maxSDP              = 48 << 10
	maxSignalCandidates = 64
	maxSignalStreams    = 16
	maxLine             = 1 << 10
	maxWord             = 255
)

// signalContent is the content of every to-device call event: the envelope, and the fields of each type.
type signalContent struct {
	CallID        string       `json:"call_id"`
	ConfID        string       `json:"conf_id"`
	Version       any          `json:"version,omitempty"` // hydrogen writes 1, matrix-js-sdk "1"
	PartyID       string       `json:"party_id,omitempty"`
	DeviceID      id.DeviceID  `json:"device_id"`
	SenderSession string       `json:"sender_session_id"`
	DestSession   string       `json:"dest_session_id"`
	Seq           *looseNumber `json:"seq,omitempty"`
	MessageID     string       `json:"org.matrix.msgid,omitempty"`

	Lifetime     *looseNumber       `json:"lifetime,omitempty"`
	Invitee      id.UserID          `json:"invitee,omitempty"`
	Offer        *sessionContent    `json:"offer,omitempty"`
	Answer       *sessionContent    `json:"answer,omitempty"`
	Description  *sessionContent    `json:"description,omitempty"`
	Capabilities *callCapabilities  `json:"capabilities,omitempty"`
	Candidates   []candidateContent `json:"candidates,omitempty"`
	Reason       string             `json:"reason,omitempty"`
	Selected     string             `json:"selected_party_id,omitempty"`
	Identity     *identityContent   `json:"asserted_identity,omitempty"`

	// Both keys are sent: hydrogen reads only the unstable one, matrix-js-sdk writes only the stable one.
	Streams         map[string]streamContent `json:"sdp_stream_metadata,omitempty"`
	StreamsUnstable map[string]streamContent `json:"org.matrix.msc3077.sdp_stream_metadata,omitempty"`
}

type sessionContent struct {
	Type string `json:"type"`
	SDP  string `json:"sdp"`
}

type callCapabilities struct {
	Transferee bool `json:"m.call.transferee"`
	DTMF       bool `json:"m.call.dtmf"`
}

// candidateContent keeps absent apart from zero: the end marker has neither sdpMid nor sdpMLineIndex.
type candidateContent struct {
	Candidate string  `json:"candidate"`
	Mid       *string `json:"sdpMid,omitempty"`
	MLine     *uint16 `json:"sdpMLineIndex,omitempty"`
	Ufrag     *string `json:"usernameFragment,omitempty"`
}

type streamContent struct {
	Purpose    string `json:"purpose,omitempty"`
	AudioMuted *bool  `json:"audio_muted,omitempty"`
	VideoMuted *bool  `json:"video_muted,omitempty"`
}

// identityContent is asserted_identity (MSC3086).
type identityContent struct {
	ID          string `json:"id,omitempty"`
	DisplayName string `json:"display_name,omitempty"`
	AvatarURL   string `json:"avatar_url,omitempty"`
}

// looseNumber decodes from a number or from a string with a number in it (MSC3077's own example has one); anything
// else counts as absent.
type looseNumber struct {
	N  int
	OK bool
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *looseNumber) UnmarshalJSON(data []byte) error {
	var f float64
	if err := json.Unmarshal([]byte(strings.Trim(string(data), `"`)), &f); err != nil || f != float64(int32(f)) {
		return nil
	}
	n.N, n.OK = int(f), true
	return nil
}

// MarshalJSON implements json.Marshaler.
func (n *looseNumber) MarshalJSON() ([]byte, error) { return json.Marshal(n.N) }

var errSignalTooBig = errors.New("signal has more than any client sends")

// decodeSignal reads a to-device call event. Device is what the content says it comes from.
func decodeSignal(evtType string, content json.RawMessage) (sig mesh.Signal, device id.DeviceID, err error) {
	var c signalContent
	// A field of another type than it should be is left out; json goes on with the rest.
	if err := json.Unmarshal(content, &c); err != nil && !isWrongType(err) {
		return sig, "", fmt.Errorf("decode %s: %w", evtType, err)
	}
	sig = mesh.Signal{
		Kind: signalKinds[evtType], ConfID: c.ConfID, CallID: c.CallID, Seq: mesh.NoSeq,
		SenderSession: c.SenderSession, DestSession: c.DestSession,
		Invitee: c.Invitee, Reason: c.Reason, Selected: c.Selected,
	}
	if c.Seq != nil && c.Seq.OK && c.Seq.N >= 0 {
		sig.Seq = c.Seq.N
	}
	switch sig.Kind {
	case mesh.Invite:
		sig.SDP = c.Offer.session()
	case mesh.Answer:
		sig.SDP = c.Answer.session()
	case mesh.Negotiate:
		sig.SDP = c.Description.session()
	}
	for _, cand := range c.Candidates {
		sig.Candidates = append(sig.Candidates, mesh.Candidate{
			Line: cand.Candidate, Mid: cand.Mid, MLine: cand.MLine, Ufrag: cand.Ufrag,
		})
	}
	streams := c.Streams
	if streams == nil {
		streams = c.StreamsUnstable
	}
	if len(streams) > 0 {
		sig.Streams = make(map[string]mesh.Stream, len(streams))
		for key, s := range streams {
			sig.Streams[key] = mesh.Stream(s)
		}
	}
	if tooBig(sig) || len(c.DeviceID) > maxDeviceID {
		return mesh.Signal{}, "", fmt.Errorf("decode %s: %w", evtType, errSignalTooBig)
	}
	return sig, c.DeviceID, nil
}

func isWrongType(err error) bool {
	_, wrongType := errors.AsType[*json.UnmarshalTypeError](err)
	return wrongType
}

func tooBig(sig mesh.Signal) bool {
	for _, word := range []string{
		sig.CallID, sig.ConfID, sig.SenderSession, sig.DestSession, sig.Reason, sig.Selected, string(sig.Invitee),
	} {
		if len(word) > maxWord {
			return true
		}
	}
	for _, c := range sig.Candidates {
		if len(c.Line) > maxLine || c.Mid != nil && len(*c.Mid) > maxWord || c.Ufrag != nil && len(*c.Ufrag) > maxLine {
			return true
		}
	}
	for key, s := range sig.Streams {
		if len(key) > maxWord || len(s.Purpose) > maxWord {
			return true
		}
	}
	return len(sig.SDP.Text) > maxSDP || len(sig.Candidates) > maxSignalCandidates || len(sig.Streams) > maxSignalStreams
}

func (s *sessionContent) session() mesh.SDP {
	if s == nil {
		return mesh.SDP{}
	}
	return mesh.SDP{Type: s.Type, Text: s.SDP}
}

// inviteLifetimeMS is written into invites and negotiations; matrix-js-sdk lets a ring without it expire at once.
const inviteLifetimeMS = 60000

// encodeSignal writes a signal of ours. The party id is the device id, always: matrix-js-sdk ignores candidates and
// hangups whose party differs from the invite's.
func encodeSignal(sig mesh.Signal, self id.DeviceID, messageID string) (evtType string, content *signalContent) {
	c := &signalContent{
		CallID: sig.CallID, ConfID: sig.ConfID, Version: "1", PartyID: string(self), DeviceID: self,
		SenderSession: sig.SenderSession, DestSession: sig.DestSession, MessageID: messageID,
		Invitee: sig.Invitee, Reason: sig.Reason,
	}
	if sig.Seq != mesh.NoSeq {
		c.Seq = &looseNumber{sig.Seq, true}
	}
	session := &sessionContent{Type: sig.SDP.Type, SDP: sig.SDP.Text}
	switch sig.Kind {
	case mesh.Invite:
		c.Offer = session
		c.Lifetime = &looseNumber{inviteLifetimeMS, true}
		c.Capabilities = &callCapabilities{DTMF: true}
	case mesh.Answer:
		c.Answer = session
		c.Capabilities = &callCapabilities{DTMF: true}
	case mesh.Negotiate:
		c.Description = session
		c.Lifetime = &looseNumber{inviteLifetimeMS, true}
	case mesh.AssertedIdentity:
		c.Identity = new(identityContent(sig.Identity))
	}
	if len(sig.Streams) > 0 {
		c.Streams = make(map[string]streamContent, len(sig.Streams))
		for key, s := range sig.Streams {
			c.Streams[key] = streamContent(s)
		}
		c.StreamsUnstable = c.Streams
	}
	return signalTypes[sig.Kind], c
}
