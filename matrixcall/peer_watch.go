package matrixcall

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pion/webrtc/v4"

	"trunkline/matrixcall/mesh"
)

// This file is what is said of a connection: to the mesh, in the log, in the metrics.

// peerTimes are when a connection got where; only run touches them.
type peerTimes struct{ opened, described, ice, up time.Time }

// closeReason is why the mesh closes a connection: the cause of its context.
type closeReason string

func (r closeReason) Error() string { return string(r) }

// closedFor is the reason of a connection's end. Without one its membership was given up.
func (c *peerConn) closedFor() string {
	reason, _ := errors.AsType[closeReason](context.Cause(c.ctx))
	return cmp.Or(string(reason), "given_up")
}

// stateChanged is called by pion.
func (c *peerConn) stateChanged(s webrtc.PeerConnectionState) {
	now := time.Now()
	switch s {
	case webrtc.PeerConnectionStateConnected:
		c.tasks.put(func() { c.cameUp(now) })
		c.report(mesh.ConnState{Conn: c.id, Now: mesh.Up})
	case webrtc.PeerConnectionStateDisconnected:
		c.tasks.put(c.wentQuiet)
		c.report(mesh.ConnState{Conn: c.id, Now: mesh.Disconnected})
	case webrtc.PeerConnectionStateFailed, webrtc.PeerConnectionStateClosed:
		if s == webrtc.PeerConnectionStateClosed {
			c.closing.Store(true)
		}
		c.report(mesh.ConnState{Conn: c.id, Now: mesh.Failed})
	}
}

// iceChanged is called by pion, too.
func (c *peerConn) iceChanged(s webrtc.ICEConnectionState) {
	if now := time.Now(); s == webrtc.ICEConnectionStateConnected {
		c.tasks.put(func() {
			if c.times.ice.IsZero() {
				c.times.ice = now
			}
		})
	}
}

// enter counts the connection under what it does now.
func (c *peerConn) enter(s PeerState) {
	c.metrics.Peers[c.state].Add(-1)
	c.metrics.Peers[s].Add(1)
	c.state = s
}

// isDescribed notes that both descriptions are there: from now on it is for ICE and DTLS.
func (c *peerConn) isDescribed() {
	if c.times.described.IsZero() {
		c.times.described = time.Now()
		c.enter(PeerConnecting)
	}
}

func (c *peerConn) cameUp(now time.Time) {
	again := !c.times.up.IsZero()
	c.enter(PeerUp)
	c.pairs = c.chosenPair()
	if again {
		c.log.Info("peer is back", "state", c.state, "pair", c.pairs.chosen)
		return
	}
	t := &c.times
	t.up = now
	c.metrics.PeersConnected.Add(1)
	c.metrics.ConnectTime.Add(now.Sub(t.opened))
	c.log.Info("peer connected", "state", c.state, "pair", c.pairs.chosen, "inviter", c.inviter,
		"total", since(t.opened, now), "described", since(t.opened, t.described), "ice", since(t.described, t.ice), "dtls", since(t.ice, now))
}

// since is a duration for the log; what has not happened took none.
func since(from, to time.Time) time.Duration {
	if from.IsZero() || to.IsZero() {
		return 0
	}
	return to.Sub(from).Round(time.Millisecond)
}

// wentQuiet keeps what is known of the candidate pairs: when ICE fails it forgets them before it says so.
func (c *peerConn) wentQuiet() {
	c.enter(PeerDisconnected)
	c.pairs = c.describePairs()
	c.log.Debug("peer is quiet", "state", c.state, "pair", c.pairs.chosen)
}

// ended is the last word about a connection.
func (c *peerConn) ended() {
	reason := c.closedFor()
	label := reasonLabel(reason)
	switch {
	case c.times.up.IsZero():
		c.metrics.PeersFailed.Add(label)
	default:
		c.metrics.PeersGone.Add(label)
	}
	lasted := since(cmp.Or(c.times.up, c.times.opened), time.Now())
	if !mesh.IsFailure(reason) {
		c.log.Info("peer gone", "state", c.state, "reason", reason, "after", lasted)
		return
	}
	pairs := c.pairs
	if fresh := c.describePairs(); len(fresh.all) > 0 { // after an ICE restart those of the restart
		pairs = candidatePairs{chosen: cmp.Or(fresh.chosen, pairs.chosen), all: fresh.all}
	}
	ice := webrtc.ICEConnectionStateNew
	if c.pc != nil {
		ice = c.pc.ICEConnectionState()
	}
	c.log.Warn("peer lost", "state", c.state, "reason", reason, "after", lasted, "ice", ice, "pair", pairs.chosen, "pairs", pairs.all)
}

// reasonLabel is a reason as a metric's label: a peer can give any.
func reasonLabel(reason string) string {
	if mesh.KnownReason(reason) || reason == "given_up" {
		return reason
	}
	return "other"
}

// candidatePairs is what a log shall know of a connection's candidate pairs.
type candidatePairs struct {
	chosen string   // the nominated one; "" if none is
	all    []string // those that were tried, most promising first
}

// maxLoggedPairs is how many candidate pairs a log line shows.
const maxLoggedPairs = 12

// chosenPair is the pair in use. It is asked for without pion's statistics, which a peer that hangs up as soon as it is
// connected takes down under the question.
func (c *peerConn) chosenPair() (pairs candidatePairs) {
	if c.pc == nil {
		return pairs
	}
	for _, transceiver := range c.pc.GetTransceivers() {
		sender := transceiver.Sender()
		if sender == nil || sender.Transport() == nil {
			continue
		}
		if pair, err := sender.Transport().ICETransport().GetSelectedCandidatePair(); err == nil && pair != nil {
			pairs.chosen = describeEnd(pair.Local) + " > " + describeEnd(pair.Remote)
			pairs.all = []string{pairs.chosen}
		}
		break // they share one
	}
	return pairs
}

// describeEnd says of which kind one end of a pair is, as describeCandidate does.
func describeEnd(end *webrtc.ICECandidate) string {
	if end == nil {
		return "unknown"
	}
	return describeKind(end.Typ.String(), end.Address)
}

// describePairs asks pion for the pairs. A connection that the peer has closed is not asked: pion takes its statistics down
// without a lock, after it has said that it closes.
func (c *peerConn) describePairs() (pairs candidatePairs) {
	if c.pc == nil || c.closing.Load() {
		return pairs
	}
	report := c.pc.GetStats()
	var tried []webrtc.ICECandidatePairStats
	for _, stats := range report {
		if pair, ok := stats.(webrtc.ICECandidatePairStats); ok {
			tried = append(tried, pair)
		}
	}
	slices.SortFunc(tried, func(a, b webrtc.ICECandidatePairStats) int {
		return cmp.Or(
			-cmp.Compare(b2i(a.Nominated), b2i(b.Nominated)), -cmp.Compare(a.ResponsesReceived, b.ResponsesReceived),
			-cmp.Compare(a.RequestsSent, b.RequestsSent), cmp.Compare(a.ID, b.ID))
	})
	for i, pair := range tried[:min(len(tried), maxLoggedPairs)] {
		text := describePair(report, pair)
		if i == 0 && pair.Nominated {
			pairs.chosen = text
		}
		pairs.all = append(pairs.all, text)
	}
	return pairs
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// describePair writes a pair as "host private IPv4 > srflx public IPv4 succeeded nominated, …".
func describePair(report webrtc.StatsReport, pair webrtc.ICECandidatePairStats) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s > %s %s", describeCandidate(report[pair.LocalCandidateID]), describeCandidate(report[pair.RemoteCandidateID]), pair.State)
	if pair.Nominated {
		b.WriteString(" nominated")
	}
	fmt.Fprintf(&b, ", checks %d sent %d answered %d received, out %d (%d B), in %d (%d B)",
		pair.RequestsSent, pair.ResponsesReceived, pair.RequestsReceived,
		pair.PacketsSent, pair.BytesSent, pair.PacketsReceived, pair.BytesReceived)
	if pair.CurrentRoundTripTime > 0 {
		fmt.Fprintf(&b, ", rtt %.0f ms", pair.CurrentRoundTripTime*1000)
	}
	return b.String()
}

// describeCandidate says of which kind a candidate is. Its address is somebody's, and no log's business.
func describeCandidate(stats webrtc.Stats) string {
	candidate, ok := stats.(webrtc.ICECandidateStats)
	if !ok {
		return "unknown"
	}
	kind := candidate.CandidateType.String()
	if candidate.RelayProtocol != "" {
		kind += " over " + candidate.RelayProtocol
	}
	return describeKind(kind, candidate.IP)
}

func describeKind(kind, address string) string {
	if addr, err := netip.ParseAddr(address); err == nil {
		return kind + " " + addressScope(addr)
	}
	return kind
}

func addressScope(addr netip.Addr) string {
	version := "IPv6"
	if addr.Unmap().Is4() {
		version = "IPv4"
	}
	switch {
	case addr.IsLoopback():
		return "loopback " + version
	case addr.IsPrivate(), addr.IsLinkLocalUnicast(), netip.MustParsePrefix("100.64.0.0/10").Contains(addr.Unmap()):
		return "private " + version
	}
	return "public " + version
}
