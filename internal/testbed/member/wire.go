package member

import (
	"encoding/json"
	"strings"

	"github.com/pion/webrtc/v4"
	"maunium.net/go/mautrix/id"
)

// Event types on the wire: state unstable, to-device stable (MSC3401).
const (
	typeCall   = "org.matrix.msc3401.call"
	typeMember = "org.matrix.msc3401.call.member"

	typeInvite     = "m.call.invite"
	typeAnswer     = "m.call.answer"
	typeCandidates = "m.call.candidates"
	typeNegotiate  = "m.call.negotiate"
	typeHangup     = "m.call.hangup"
	typeReject     = "m.call.reject"
	typeSelect     = "m.call.select_answer"
	typeIdentity   = "m.call.asserted_identity"
	typeMetadata   = "m.call.sdp_stream_metadata_changed"
	typeMetadataU  = "org.matrix.call.sdp_stream_metadata_changed"
)

// callContent is the call state event.
type callContent struct {
	Intent     string `json:"m.intent,omitempty"`
	Type       string `json:"m.type,omitempty"`
	Name       string `json:"m.name,omitempty"`
	Terminated any    `json:"m.terminated,omitempty"`
}

func (c callContent) over() bool {
	return c.Terminated != nil && c.Terminated != false && c.Terminated != ""
}

// memberContent is the member state event. Pointers and raw values show what is missing.
type memberContent struct {
	Calls []memberCall `json:"m.calls"`
}

type memberCall struct {
	ID      string         `json:"m.call_id"`
	Devices []memberDevice `json:"m.devices"`
	Foci    any            `json:"m.foci.active,omitempty"`
}

type memberDevice struct {
	ID      id.DeviceID `json:"device_id"`
	Session string      `json:"session_id"`
	Expires json.Number `json:"expires_ts"`
	Feeds   *[]feed     `json:"feeds,omitempty"`
}

type feed struct {
	Purpose string `json:"purpose"`
}

// content is every to-device call message: the envelope and the fields of all types.
type content struct {
	CallID        string      `json:"call_id"`
	ConfID        string      `json:"conf_id"`
	Version       any         `json:"version"`
	PartyID       string      `json:"party_id"`
	DeviceID      id.DeviceID `json:"device_id"`
	SenderSession string      `json:"sender_session_id"`
	DestSession   string      `json:"dest_session_id"`
	Seq           *int        `json:"seq,omitempty"`

	Lifetime    int                        `json:"lifetime,omitempty"`
	Invitee     *id.UserID                 `json:"invitee,omitempty"`
	Offer       *webrtc.SessionDescription `json:"offer,omitempty"`
	Answer      *webrtc.SessionDescription `json:"answer,omitempty"`
	Description *webrtc.SessionDescription `json:"description,omitempty"`
	Candidates  []candidate                `json:"candidates,omitempty"`
	Metadata    metadata                   `json:"sdp_stream_metadata,omitempty"`
	MetadataU   metadata                   `json:"org.matrix.msc3077.sdp_stream_metadata,omitempty"`
	Selected    string                     `json:"selected_party_id,omitempty"`
	Reason      string                     `json:"reason,omitempty"`
	Capable     map[string]bool            `json:"capabilities,omitempty"`
}

// candidate is an ICE candidate; the end marker has an empty string and nothing else.
type candidate struct {
	Candidate     string  `json:"candidate"`
	SDPMid        *string `json:"sdpMid,omitempty"`
	SDPMLineIndex *uint16 `json:"sdpMLineIndex,omitempty"`
	Ufrag         *string `json:"usernameFragment,omitempty"`
}

// metadata tells by stream id what a stream is (MSC3077) and whether it is muted (MSC3291).
type metadata map[string]streamInfo

type streamInfo struct {
	Purpose    string `json:"purpose"`
	AudioMuted bool   `json:"audio_muted"`
	VideoMuted bool   `json:"video_muted"`
}

// message is one to-device message on its way to the run loop.
type message struct {
	kind   string
	sender id.UserID
	olm    bool
	owner  id.DeviceID // olm: the device that owns the sender's key
	content
}

// known: the six types that hydrogen numbers and queues.
func (m message) known() bool {
	switch m.kind {
	case typeInvite, typeAnswer, typeCandidates, typeNegotiate, typeHangup, typeMetadata, typeMetadataU:
		return true
	}
	return false
}

func (m message) key() peerKey { return peerKey{m.sender, m.DeviceID} }

// streams returns the metadata as this kind of client reads it: hydrogen only the unstable key, js-sdk the stable one
// before the unstable one.
func (m message) streams(k Kind) metadata {
	if k.hydrogen() || m.Metadata == nil {
		return m.MetadataU
	}
	return m.Metadata
}

// setStreams writes the metadata as this kind of client does.
func (c *content) setStreams(k Kind, md metadata) {
	if k.hydrogen() {
		c.MetadataU = md
	} else {
		c.Metadata = md
	}
}

// withoutCandidates is an SDP as a browser has it at the moment of the invite: gathering has not begun.
func withoutCandidates(sdp string) string {
	var b strings.Builder
	for line := range strings.Lines(sdp) {
		if !strings.HasPrefix(line, "a=candidate:") && !strings.HasPrefix(line, "a=end-of-candidates") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// setupOf returns the DTLS role of a description.
func setupOf(sdp string) string {
	for line := range strings.Lines(sdp) {
		if role, found := strings.CutPrefix(strings.TrimSpace(line), "a=setup:"); found {
			return role
		}
	}
	return ""
}

// streamIDs returns the ids of all streams of a description: the first word of a=msid.
func streamIDs(sdp string) []string {
	var list []string
	for line := range strings.Lines(sdp) {
		if msid, found := strings.CutPrefix(strings.TrimSpace(line), "a=msid:"); found {
			stream, _, _ := strings.Cut(msid, " ")
			list = append(list, stream)
		}
	}
	return list
}

func hasMedia(sdp, kind string) bool { return strings.Contains(sdp, "m="+kind+" ") }
