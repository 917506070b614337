package matrixcall

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// Metrics counts what the Matrix side has done since the program started. All
// fields may be read at any time. The names Prometheus knows them by are the
// bridge's.
type Metrics struct {
	Transactions          atomic.Uint64 // transactions taken from the homeserver
	TransactionsRepeated  atomic.Uint64 // seen before, ignored
	TransactionsRefused   atomic.Uint64 // bad token, bad body
	RoomEvents            atomic.Uint64 // room events handled
	RoomEventsRepeated    atomic.Uint64 // event ids seen before, ignored
	RoomEventsDropped     atomic.Uint64 // a room's queue was full; its state is read again
	StateReads            atomic.Uint64 // GET /state
	Polls                 atomic.Uint64 // requests for to-device messages
	PollFailures          atomic.Uint64 // of these, failed
	PollRescues           atomic.Uint64 // messages found only by a look without waiting
	Kicks                 atomic.Uint64 // common looks of all pollers
	MessagesReceived      atomic.Uint64 // call messages handed to a conference
	MessagesRefused       atomic.Uint64 // to-device messages that failed a check
	MessagesUndecryptable atomic.Uint64 // olm could not read them
	MessagesRepeated      atomic.Uint64 // olm replays
	MessagesUnclaimed     atomic.Uint64 // call messages no conference wanted
	SignalsReceived       Counts        // by kind: of the messages received, those that could be read
	SignalsSent           Counts        // by kind: handed to the homeserver, repetitions included
	SignalsDropped        Counts        // by reason: signals a conference had no use for
	MessagesSent          atomic.Uint64 // messages accepted by the homeserver
	MessagesSentPlain     atomic.Uint64 // of these, unencrypted
	MessagesFailed        atomic.Uint64 // given up
	Nudges                atomic.Uint64 // requests that only wake clients
	SendRequests          atomic.Uint64 // PUT sendToDevice
	SendRetries           atomic.Uint64 // of these, repeated
	KeyQueries            atomic.Uint64 // users asked for by /keys/query
	KeyClaims             atomic.Uint64 // devices a one-time key was asked of
	OneTimeKeyUploads     atomic.Uint64 // top-ups of one-time keys
	FallbackKeyUploads    atomic.Uint64 // fallback keys published
	GhostsCreated         atomic.Uint64 // devices made
	GhostsPolling         atomic.Int64  // ghosts reading to-device messages now
	RoomKeys              atomic.Uint64 // keys of encrypted rooms that members gave the bot
	RoomMessagesRead      atomic.Uint64 // encrypted messages that were read
	RoomMessagesUnread    atomic.Uint64 // and that could not be
	NoticesSealed         atomic.Uint64 // notices that were encrypted
	NoticesUnsealed       atomic.Uint64 // that could not be, so that something else was said, or nothing

	Peers           [peerStates]atomic.Int64 // PeerConnections now, by PeerState
	PeersConnected  atomic.Uint64            // connections that came to stand
	PeersFailed     Counts                   // by reason: connections that ended without ever standing
	PeersGone       Counts                   // by reason: connections that stood and ended
	PeersRetried    atomic.Uint64            // further attempts to reach the same session of a peer
	ConnectTime     Histogram                // from the first look at a peer to a connection that stands
	InvitesRepeated atomic.Uint64            // and answers, identical ones, while the peer does not stir
	Renegotiations  atomic.Uint64            // later offers of ours
	ICERestarts     atomic.Uint64            // of these, with new ICE credentials
	SessionsRotated atomic.Uint64            // times the watchdog took a new session id to be called again
	PacketsReceived atomic.Uint64            // RTP of peers, sound and keys
	PacketsSent     atomic.Uint64            // RTP to peers, each counted
	TURNRequests    atomic.Uint64            // questions for TURN servers
	TURNFailures    atomic.Uint64            // of these, without an answer that can be used
}

// PeerState is what a PeerConnection is doing.
type PeerState uint8

// The states of a PeerConnection.
const (
	PeerNegotiating  PeerState = iota // descriptions are on their way
	PeerConnecting                    // ICE and DTLS are at work
	PeerUp                            // media can flow
	PeerDisconnected                  // ICE hears nothing any more
	peerStates
)

func (s PeerState) String() string {
	return [...]string{"negotiating", "connecting", "connected", "disconnected"}[s]
}

// Counts is a counter with one label, whose values are words of ours, never a stranger's: their number is bounded. The
// zero value works.
type Counts struct {
	mu sync.Mutex
	n  map[string]uint64 // guarded by mu
}

// Add counts one.
func (c *Counts) Add(label string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make(map[string]uint64)
	}
	c.n[label]++
}

// Load is the sum of all labels.
func (c *Counts) Load() uint64 {
	var sum uint64
	for _, n := range c.Snapshot() {
		sum += n
	}
	return sum
}

// Snapshot is the count of each label.
func (c *Counts) Snapshot() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.n)
}

// Histogram counts durations by their length. The zero value works.
type Histogram struct {
	mu      sync.Mutex
	buckets [len(histogramBounds)]uint64 // guarded by mu: how many are not longer than each bound
	count   uint64                       // guarded by mu
	sum     time.Duration                // guarded by mu
}

// histogramBounds are the buckets' upper bounds in seconds.
var histogramBounds = [...]float64{.1, .25, .5, 1, 2, 4, 8, 15, 30, 60}

// Add counts a duration.
func (h *Histogram) Add(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count++
	h.sum += d
	for i, bound := range histogramBounds {
		if d.Seconds() <= bound {
			h.buckets[i]++
		}
	}
}

// Snapshot returns how many durations there were, their sum in seconds, and how many were not longer than each bound.
func (h *Histogram) Snapshot() (count uint64, sum float64, buckets map[float64]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	buckets = make(map[float64]uint64, len(histogramBounds))
	for i, bound := range histogramBounds {
		buckets[bound] = h.buckets[i]
	}
	return h.count, h.sum.Seconds(), buckets
}
