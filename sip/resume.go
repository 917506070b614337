package sip

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// Resume rebuilds a call from its saved dialog after a restart, or on another machine with the same addresses. The call
// is up at once: it answers requests of the phone and can hang up. [Call.OpenMedia] brings its audio back. A call we
// dialled and nobody had answered goes on with [Call.SendInvite], or ends with [Call.Hangup].
func (s *Stack) Resume(d Dialog) (*Call, error) {
	l, ok := s.listenerFor(d)
	if !ok {
		return nil, fmt.Errorf("resume %s: not listening on %s any more", shortID(d.CallID), d.Transport)
	}
	return s.resume(d, l, s.trunkNamed(d.Info.Trunk))
}

// Dismiss tells the phone of a saved dialog, which [Stack.Resume] cannot go on with, that the call is over: by BYE, CANCEL or a
// refusal, whichever fits. Where nobody listens on its transport any more it tries another one, and where its trunk is not
// known any more it asks where the phone was. A call that is resumed already is hung up.
func (s *Stack) Dismiss(d Dialog, cause Cause) error {
	s.mu.Lock()
	here := s.byID[dialogID{d.CallID, d.LocalTag}]
	s.mu.Unlock()
	if here != nil {
		return here.Hangup(cause)
	}
	l, ok := s.listenerFor(d)
	if !ok {
		l = s.listeners[0]
		d.Transport = l.transport
	}
	trunk := s.trunkNamed(d.Info.Trunk)
	if trunk == nil || trunk.Proxy == "" {
		stand := Trunk{} // without a name: what is found of it is no trunk's
		if trunk != nil {
			stand.Advertise, stand.AdvertiseRTP = trunk.Advertise, trunk.AdvertiseRTP
		}
		stand.Proxy, stand.Transport = d.peer(), d.Transport
		trunk = &stand
	}
	call, err := s.resume(d, l, trunk)
	if err != nil {
		return err
	}
	return call.Hangup(cause)
}

// hearingTime is how long a resumed call with an overdue session timer does nothing about it: the phone's own refresh may wait to be
// read, and the application asks the phone anyway ([Call.Refresh]).
const hearingTime = 10 * time.Second

func (s *Stack) resume(d Dialog, l listener, trunk *Trunk) (*Call, error) {
	if d.CallID == "" || d.LocalTag == "" || d.RemoteTarget == "" {
		return nil, fmt.Errorf("resume %s: the dialog is not complete", shortID(d.CallID))
	}
	c := &Call{
		stack: s, trunk: trunk, id: dialogID{d.CallID, d.LocalTag}, info: d.Info, inbox: newInbox(), done: make(chan struct{}),
		state: confirmed, dialog: d.clone(), cseq: d.LocalCSeq + cseqBlock, leap: true,
	}
	c.dialog.RemoteNumbered = d.RemoteNumbered || d.Role == UAS || d.RemoteCSeq > 0
	c.unheard = c.dialog.RemoteNumbered
	c.dialog.LocalSocket = l.addr
	c.dialog.Contact = s.contact(trunk, d.Transport, l.addr)
	if strings.HasPrefix(d.Contact, "<sips:") {
		c.dialog.Contact = s.secureContact(trunk, l.addr)
	}
	c.dialog.Confirmed = true
	c.dialog.LocalCSeq += 2 * cseqBlock
	c.hasMoved = c.moved(d)
	if d.Role == UAC && !d.Confirmed {
		if c.trunk == nil || c.trunk.Proxy == "" {
			return nil, fmt.Errorf("resume %s: %w", shortID(d.CallID), ErrNoTrunk)
		}
		c.state, c.dialog.Confirmed = dialling, false
		c.out = newOutgoingState(DialRequest{Trunk: d.Info.Trunk, Number: d.Info.Dialled, From: d.Info.Caller}, c.trunk)
		c.out.resume(d)
	}
	c.nextRefresh = d.Session.next()
	if heard := time.Now().Add(hearingTime); !c.nextRefresh.IsZero() && c.nextRefresh.Before(heard) {
		c.nextRefresh = heard
	}
	c.referring, c.unsure = d.Transfer.CSeq != 0, d.Transfer.Branch != ""
	c.hold = d.Held()
	c.log = s.log.With("call", shortID(d.CallID), "trunk", d.Info.Trunk)
	if d.Role == UAS && !d.Confirmed && len(d.Vias) > 0 {
		c.dialog.Confirmed = false
		if err := c.revive(); err != nil {
			return nil, fmt.Errorf("resume %s: %w", shortID(d.CallID), err)
		}
	}
	c.publish()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.byID[c.id] != nil {
		return nil, fmt.Errorf("resume %s: the stack is closed or has this call already", shortID(d.CallID))
	}
	if trunk != nil && trunk.Proxy != "" && d.Remote.IsValid() && !trunk.contains(d.Remote.Addr()) {
		c.heardAt = d.Remote.Addr().Unmap() // as before: the call must not wait for DNS
		s.neighbours.hold(c.heardAt, trunk)
	}
	s.enter(c)
	c.resumeReferral()
	if old := c.dialog.Displaced; old != nil {
		old.LocalSocket, old.Contact = l.addr, c.dialog.Contact
		old.LocalCSeq += maxAsk
		c.letGo()
	}
	if c.invite != nil {
		s.byInvite[inviteOf(c.invite.req)] = c
	}
	s.calls.Go(c.run)
	return c, nil
}

// peer is where the other side was, as a proxy's address is written: where it was heard, else what its address says.
func (d *Dialog) peer() string {
	var target gosip.Uri
	if d.Remote.IsValid() || gosip.ParseUri(d.RemoteTarget, &target) != nil {
		return d.Remote.String()
	}
	return target.HostPort()
}

// listenerFor finds the socket of a dialog: the same address, else any with its transport.
func (s *Stack) listenerFor(d Dialog) (listener, bool) {
	var found listener
	ok := false
	for _, l := range s.listeners {
		if l.transport != d.Transport {
			continue
		}
		if l.addr == d.LocalSocket {
			return l, true
		}
		if !ok {
			found, ok = l, true
		}
	}
	return found, ok
}

// OpenMedia opens the media of a resumed call on its stored ports. The phone's learned address is used at once; the
// caller must send with another SSRC than Dialog().Media.LocalSSRC ([NewSSRC]): after a restart a known one with other
// sequence numbers sounds like loss.
func (c *Call) OpenMedia() (*Media, error) {
	err := c.do(c.reopenMedia)
	if err != nil {
		return nil, err
	}
	return c.media.Load(), nil
}

func (c *Call) reopenMedia() error {
	if c.media.Load() != nil {
		return nil
	}
	if c.state != confirmed && c.state != dialling && c.state != accepted {
		return c.stateError()
	}
	d := c.dialog.Media
	rtpc, rtcpc, err := c.stack.ports.reopen(d.Local)
	if err != nil && c.state == confirmed { // another call's by now: the phone is told of other ports
		c.log.Warn("media gets other ports", "err", err)
		c.hasMoved = true
		rtpc, rtcpc, err = c.stack.ports.open()
	}
	if err != nil {
		return err
	}
	m := c.newMedia(rtpc, rtcpc)
	now := time.Now()
	m.apply(d.negotiated(), c.learnable(), now)
	m.searchRollover(now.Sub(c.dialog.Since))
	m.relock(d.Learned, d.RemoteSSRC, now)
	c.media.Store(m)
	m.start()
	c.nextRTCP = now.Add(rtcpInterval)
	return nil
}

// relock goes back to the address learned before the restart instead of learning afresh (§8: RTP injection).
func (m *Media) relock(learned netip.AddrPort, ssrc uint32, now time.Time) {
	if !learned.IsValid() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lock.hold(learned, ssrc, now)
	if m.lock.allowed != nil && m.sendTo.IsValid() {
		m.sendTo = learned
	}
}

// searchRollover allows for as many turns of the phone's sequence numbers as a call of this age may have seen. The age is negative
// where the clock is behind the one by which the call began.
func (m *Media) searchRollover(age time.Duration) {
	const shortestTurn = 65536 * 10 * time.Millisecond
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secure.rollovers = uint32(min(max(0, age/shortestTurn), 1000)) + 1
	m.secure.tries = maxRolloverTries
}

// NewSSRC returns a random SSRC that is not in not.
func NewSSRC(not ...uint32) uint32 {
	for {
		n := rand.Uint32() // RFC 3550 §8.1 asks for uniqueness
		if n != 0 && !slices.Contains(not, n) {
			return n
		}
	}
}
