package sip

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Stats are the counters of a stack since it was made. All grow only, except the gauges.
type Stats struct {
	Calls    int // gauge: calls in any state
	RTPPorts int // gauge: port pairs in use

	Messages         uint64            // SIP messages let through to the parser
	Dropped          map[string]uint64 // messages and connections dropped without an answer, by reason
	Refused          map[int]uint64    // requests refused, by status code
	TurnedAway       map[Turned]uint64 // calls that nobody was told of
	Banned           int               // gauge: addresses that are not heard for a while, because they kept failing
	Invites          uint64            // new calls
	Answered         uint64
	Dialled          uint64         // calls we began
	DialAnswered     uint64         // of these
	DialRefused      map[int]uint64 // of these, by status code; 408 and 503 may be ours
	Forks            uint64         // second answers, hung up
	RegisterFailures uint64
	Replaced         uint64 // calls that another phone has taken over
	TransfersRefused uint64 // REFERs to addresses that are not ours
	NoAck            uint64 // answers never acknowledged
	Panics           uint64 // bugs: recovered, the call concerned ended
	MediaStrangers   uint64 // RTP from sources that are not the phone
	MediaMalformed   uint64
	MediaForged      uint64 // SRTP that is not authentic, or comes again
	MediaHeld        uint64 // packets not sent because of hold
	MediaSendFails   uint64
}

// Reasons a message is dropped without an answer.
const (
	dropUnknownSource = "unknown source"
	dropOversize      = "oversize"
	dropMalformed     = "malformed"
	dropKeepalive     = "keepalive"
	dropConnections   = "too many connections"
	dropSlow          = "incomplete message"
	dropHandshake     = "TLS handshake"
	dropSilent        = "silent connection"
	dropUnanswerable  = "connection is gone"
	dropFlood         = "flood"
	dropBanned        = "banned"
)

// Turned is why calls of a trunk were refused before anybody was told of them.
type Turned struct{ Trunk, Why string }

type counters struct {
	messages, invites, answered, noAck, panics atomic.Uint64
	dialled, dialAnswered, forks               atomic.Uint64
	registerFailures                           atomic.Uint64
	replaced, transfersRefused                 atomic.Uint64
	media                                      mediaTotals

	mu      sync.Mutex
	dropped map[string]uint64
	turned  map[Turned]uint64
	refused map[int]uint64
	unhappy map[int]uint64 // dialled calls that were refused
}

func newCounters() *counters {
	return &counters{dropped: map[string]uint64{}, turned: map[Turned]uint64{}, refused: map[int]uint64{}, unhappy: map[int]uint64{}}
}

func (c *counters) drop(reason string) {
	c.mu.Lock()
	c.dropped[reason]++
	c.mu.Unlock()
}

func (c *counters) turnAway(trunk, why string) {
	c.mu.Lock()
	c.turned[Turned{trunk, why}]++
	c.mu.Unlock()
}

func (c *counters) droppedFor(reason string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped[reason]
}

func (c *counters) refuse(code int) {
	c.mu.Lock()
	c.refused[code]++
	c.mu.Unlock()
}

func (c *counters) dialRefused(code int) {
	c.mu.Lock()
	c.unhappy[code]++
	c.mu.Unlock()
}

func (c *counters) stats() Stats {
	c.mu.Lock()
	dropped, refused, unhappy, turned := maps.Clone(c.dropped), maps.Clone(c.refused), maps.Clone(c.unhappy), maps.Clone(c.turned)
	c.mu.Unlock()
	return Stats{
		Messages: c.messages.Load(), Dropped: dropped, Refused: refused, TurnedAway: turned,
		RegisterFailures: c.registerFailures.Load(),
		Replaced:         c.replaced.Load(), TransfersRefused: c.transfersRefused.Load(),
		Dialled: c.dialled.Load(), DialAnswered: c.dialAnswered.Load(), DialRefused: unhappy, Forks: c.forks.Load(),
		Invites: c.invites.Load(), Answered: c.answered.Load(), NoAck: c.noAck.Load(), Panics: c.panics.Load(),
		MediaStrangers: c.media.strangers.Load(), MediaMalformed: c.media.malformed.Load(),
		MediaForged: c.media.forged.Load(),
		MediaHeld:   c.media.held.Load(), MediaSendFails: c.media.sendFails.Load(),
	}
}
