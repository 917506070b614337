package sip

import (
	"net/netip"
	"slices"
	"time"
)

// Dialog is everything that must survive a restart for a call to go on (RFC 3261 §12 and the media beside it).
// It is a plain value: a database row, or JSON. Only [Stack.Resume] reads it back.
type Dialog struct {
	CallID    string `json:"call_id"`
	LocalTag  string `json:"local_tag"`
	RemoteTag string `json:"remote_tag"`
	Role      Role   `json:"role"`
	Confirmed bool   `json:"confirmed"` // the phone has acknowledged our 2xx, or we have had its

	// LocalURI and RemoteURI are the addresses of From and To without tags, exactly as first used.
	LocalURI  string `json:"local_uri"`
	RemoteURI string `json:"remote_uri"`
	// RemoteTarget is the Contact of the last target refresh, RouteSet is fixed for the life of the dialog.
	RemoteTarget string   `json:"remote_target"`
	RouteSet     []string `json:"route_set,omitempty"`

	// LocalCSeq is reserved ahead: when it was stored, numbers up to it were not yet used. A resumed call starts a block
	// above it, for later reservations may have been lost; gaps are legal, repeats are not.
	LocalCSeq  uint32 `json:"local_cseq"`
	RemoteCSeq uint32 `json:"remote_cseq"`
	// RemoteNumbered says that RemoteCSeq is the number of a request: who was called may have sent none yet. Rows of before there was
	// this field have it for who calls and for numbers above 0.
	RemoteNumbered bool `json:"remote_numbered,omitempty"`

	Transport   Transport      `json:"transport"`
	LocalSocket netip.AddrPort `json:"local_socket"` // the listener the call came to
	Remote      netip.AddrPort `json:"remote"`       // where the phone was last heard from
	Contact     string         `json:"contact"`      // ours, as sent

	Vias          []string `json:"vias,omitempty"` // of an INVITE whose answer is not acknowledged
	InviteBranch  string   `json:"invite_branch,omitempty"`
	InviteCSeq    uint32   `json:"invite_cseq,omitempty"`
	EarlyTag      string   `json:"early_tag,omitempty"` // of who has made offers without having answered the call: Media is as it knows it
	PeerAllow     []string `json:"peer_allow,omitempty"`
	PeerSupported []string `json:"peer_supported,omitempty"`

	// Whose place this dialog has taken (RFC 3891) and who has not answered its BYE yet: without sound. The next process sends another one.
	Displaced *Dialog `json:"displaced,omitempty"`

	Session    SessionTimer `json:"session,omitzero"`
	Transfer   Transfer     `json:"transfer,omitzero"`  // the phone was asked to call somebody else
	Wish       Wish         `json:"wish,omitzero"`      // the phone has asked to be elsewhere, and is to be told how that went
	Wished     bool         `json:"wished,omitempty"`   // it has asked before: RFC 3515 §2.4.6
	Replaces   string       `json:"replaces,omitempty"` // the dialog whose place our INVITE wants ([DialRequest])
	ReferredBy string       `json:"referred_by,omitempty"`

	Info  Info       `json:"info"`
	Since time.Time  `json:"since"` // when we prepared our answer, or the phone answered
	Media MediaState `json:"media"`
}

// Role is which side of the INVITE we are.
type Role string

// The roles of a dialog.
const (
	UAS Role = "uas" // the phone called us
	UAC Role = "uac" // we called the phone
)

// MediaState is the media half of a [Dialog].
type MediaState struct {
	Local      netip.AddrPort `json:"local"`      // our RTP socket; RTCP is one port above
	Advertised netip.AddrPort `json:"advertised"` // what our SDP says
	Remote     netip.AddrPort `json:"remote"`     // what the phone's SDP says
	RemoteRTCP netip.AddrPort `json:"remote_rtcp"`
	Learned    netip.AddrPort `json:"learned,omitzero"` // where its media really comes from, once locked
	RTCPMux    bool           `json:"rtcp_mux,omitempty"`

	Format       Format    `json:"format"`
	Direction    Direction `json:"direction"`     // ours
	RemoteSilent bool      `json:"remote_silent"` // the phone asked for no media by address 0.0.0.0
	LocalSSRC    uint32    `json:"local_ssrc"`    // last one used: a resumed call takes another
	RemoteSSRC   uint32    `json:"remote_ssrc"`   // 0 = nothing heard yet
	LocalSDP     string    `json:"local_sdp"`     // our last one, whole: its o= line must be continued
	RemoteSDP    string    `json:"remote_sdp"`    // theirs
	SessionID    uint64    `json:"session_id"`    // of our o= line
	SDPVersion   uint64    `json:"sdp_version"`   // of our o= line
	MediaIndex   int       `json:"media_index"`   // which m= line is ours
	Crypto       Crypto    `json:"crypto,omitzero"`
	PeerOffers   int       `json:"peer_offers"` // offers answered so far
	Symmetric    bool      `json:"symmetric"`   // of the trunk when the call began
}

// negotiated is what offers and answers have led to.
func (s *MediaState) negotiated() Negotiated {
	return Negotiated{
		Format: s.Format, Remote: s.Remote, RemoteRTCP: s.RemoteRTCP, RTCPMux: s.RTCPMux, Direction: s.Direction,
		RemoteSilent: s.RemoteSilent, MediaIndex: s.MediaIndex, SDPVersion: s.SDPVersion, Crypto: s.Crypto,
	}
}

// Format is how audio goes to and from the phone.
type Format struct {
	Codec       string `json:"codec"` // "PCMU", "PCMA", "G722" or "opus"
	PayloadType uint8  `json:"payload_type"`
	ClockRate   int    `json:"clock_rate"` // of RTP: 8000 for G.722, 48000 for Opus
	Ptime       int    `json:"ptime"`      // milliseconds in each packet towards the phone
	DTMF        uint8  `json:"dtmf"`       // payload type of telephone-event, 0 = none
	DTMFRate    int    `json:"dtmf_rate"`  // its clock, nearly always ClockRate

	// Under which payload types the phone sends both, where it answered an offer of ours with other numbers than that
	// (RFC 3264 §6.1): it still has to use the offer's. 0 = the same.
	HeardAs     uint8 `json:"heard_as,omitempty"`
	DTMFHeardAs uint8 `json:"dtmf_heard_as,omitempty"`
}

// cseqBlock is how many sequence numbers a stored dialog reserves ahead. More are reserved when half of them are used, so
// that a write has time to be done: with what a resumed call leaves out, up to 1½ blocks may be used in vain.
const cseqBlock = 100

// Held says that the phone has put us on hold: it does not want to hear us (RFC 3264 §8.4).
func (d Dialog) Held() bool {
	return d.Media.RemoteSilent || d.Media.Format.Codec != "" && !d.Media.Direction.Sends()
}

func (d Dialog) clone() Dialog {
	if d.Displaced != nil {
		d.Displaced = new(d.Displaced.clone())
	}
	d.RouteSet = slices.Clone(d.RouteSet)
	d.Vias = slices.Clone(d.Vias)
	d.PeerAllow = slices.Clone(d.PeerAllow)
	d.PeerSupported = slices.Clone(d.PeerSupported)
	return d
}
