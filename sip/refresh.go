package sip

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// heardLately is how new a phone's last packet must be for it to count as there although it does not answer.
const heardLately = 5 * time.Second

// refreshRate is how many phones per second are asked whether they have their calls: after a restart it is all of them.
const refreshRate = 20

// Refresh asks the phone of a resumed call whether it still has the dialog, and tells it our addresses if they have
// changed: with UPDATE (RFC 3311), or re-INVITE where the phone knows no UPDATE or must hear a new address. It does not wait:
// what phones said while no process ran is heard first, for the call may be over, and then they are asked in turn.
// A phone that does not know the dialog any more (481, 408; RFC 3261 §12.2.1.2) is [Failed].
func (c *Call) Refresh() error { return c.do(c.refreshInTurn) }

// refreshInTurn is refresh when its turn comes. Of a phone that is being asked, nothing more is asked.
func (c *Call) refreshInTurn() error {
	switch {
	case c.state != confirmed:
		return c.stateError()
	case c.asking:
		return nil
	}
	c.asking, c.asked = true, time.Time{}
	c.stack.calls.Go(func() {
		if !c.stack.awaitTurn(c.done) {
			return
		}
		c.inbox.put(func() {
			if err := c.refresh(); err != nil {
				c.log.Info("phone not asked", "err", err)
			}
		})
	})
	return nil
}

// awaitTurn waits until what came over UDP before Run began has been taken in, and then for a turn to ask a phone. It is false when
// there is nothing to ask any more.
func (s *Stack) awaitTurn(over <-chan struct{}) bool {
	for _, l := range s.listeners {
		select {
		case <-l.caughtUp:
		case <-over:
			return false
		case <-s.root.Done():
			return false
		}
	}
	turn := s.turns.Reserve()
	timer := time.NewTimer(turn.Delay())
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-over:
		turn.Cancel()
	case <-s.root.Done():
	}
	return false
}

// doubt asks a phone whether it has the call which has answered another request as though it had not (RFC 5057 §5.1). Some say that of
// methods that they do not have.
func (c *Call) doubt(code int) {
	if code != 481 && code != 408 || c.state != confirmed || c.asking {
		return
	}
	if err := c.refresh(); err != nil {
		c.log.Info("phone not asked", "err", err)
	}
}

// refresh asks at once.
func (c *Call) refresh() error {
	err := c.ask()
	c.asking = err == nil
	return err
}

func (c *Call) ask() error {
	if c.state != confirmed {
		return c.stateError()
	}
	if c.unsure && c.dialog.Transfer.Branch != "" {
		return c.transferAgain()
	}
	if c.hasMoved || !slices.ContainsFunc(c.dialog.PeerAllow, func(m string) bool { return strings.EqualFold(m, "UPDATE") }) {
		return c.reinvite()
	}
	req, err := c.request(gosip.UPDATE)
	if err != nil {
		return err
	}
	c.prolong(req)
	c.asked = time.Now()
	asked := c.id
	c.stack.calls.Go(func() {
		res, err := c.transactFor(req)
		c.inbox.put(func() {
			if c.id != asked {
				return // as in probe
			}
			if err != nil {
				c.refreshed(0, err)
				return
			}
			if res.IsSuccess() {
				c.refreshTarget(res) // RFC 3311 §5.1
				c.prolonged(res)
				c.changed()
			}
			c.refreshedBy(res)
		})
	})
	return nil
}

// reinvite offers the session as it is, unless that is being done.
func (c *Call) reinvite() error {
	if c.offering {
		return nil
	}
	m := c.media.Load()
	if m == nil {
		return ErrState
	}
	own := []byte(c.dialog.Media.LocalSDP)
	if c.hasMoved {
		var n *Negotiated
		own, n = Offer(c.local(m.LocalAddr().Port()))
		c.dialog.Media.LocalSDP, c.dialog.Media.SDPVersion, c.dialog.Media.MediaIndex = string(own), n.SDPVersion, n.MediaIndex
		c.changed() // before the phone can know
	}
	req, err := c.request(gosip.INVITE)
	if err != nil {
		return err
	}
	c.prolong(req)
	c.offering, c.asked = true, time.Now()
	req.AppendHeader(allowHeader())
	req.AppendHeader(gosip.NewHeader("Content-Type", sdpType))
	req.SetBody(own)
	c.stack.calls.Go(func() { c.followReinvite(req, 1) })
	return nil
}

var errNoAnswer = errors.New("no answer")

// followReinvite brings what comes of a re-INVITE to the call, for as long as its 2xx may be repeated. One that gets nothing but
// provisional responses is cancelled, for no other may be sent before it is over (RFC 3261 §14.1), and nothing else ends it.
// It is sent for the sent-th time.
func (c *Call) followReinvite(req *gosip.Request, sent int) {
	tx, err := c.stack.begin(c.stack.root, c.trunk, req)
	if err != nil {
		c.inbox.put(func() { c.refreshed(0, err) })
		return
	}
	defer tx.Terminate()
	var ack *gosip.Request // only run touches it
	take := func(res *gosip.Response) { c.inbox.put(func() { ack = c.reinvited(req, sent, res) }) }
	tx.OnRetransmission(func(*gosip.Response) { // nothing else: what it says may be over, and the dialog another one (RFC 3891)
		c.inbox.put(func() {
			if ack != nil {
				c.write(ack)
			}
		})
	})
	patience := time.NewTimer(transactionTimeout)
	defer patience.Stop()
	answered, cancelled, over := false, false, c.done
	for {
		select {
		case res := <-tx.Responses():
			if !res.IsProvisional() {
				answered = true
				take(res)
			}
		case <-over:
			over, cancelled = nil, true // the BYE ends it
			patience.Reset(transactionTimeout)
		case <-patience.C:
			switch {
			case answered:
			case cancelled:
				c.inbox.put(func() { c.refreshed(0, errNoAnswer) })
				return
			default:
				cancelled = true
				patience.Reset(transactionTimeout)
				c.stack.calls.Go(func() { _, _ = c.stack.exchange(c.trunk, cancelOf(req)) })
			}
		case <-tx.Done():
			if err := cmp.Or(tx.Err(), errNoAnswer); !answered {
				c.inbox.put(func() { c.refreshed(0, err) })
			}
			return
		case <-c.stack.root.Done():
			return
		}
	}
}

// reinvited takes the final response to a re-INVITE. Each 2xx gets an ACK (§13.2.2.4), which is returned for when it comes again.
func (c *Call) reinvited(req *gosip.Request, sent int, res *gosip.Response) (ack *gosip.Request) {
	if code := res.StatusCode; (code == 401 || code == 407 || code == 500) && sent < maxAsk {
		if again := c.retry(req, res); again != nil {
			c.stack.calls.Go(func() { c.followReinvite(again, sent+1) })
			return nil
		}
	}
	c.accepted()
	if res.StatusCode == 487 { // to our CANCEL
		c.refreshed(0, errNoAnswer)
		return nil
	}
	if !res.IsSuccess() || res.CSeq() == nil {
		c.refreshedBy(res) // of refusals sipgo takes care
		return nil
	}
	c.refreshTarget(res)
	ack, err := c.dialog.request(c.stack, gosip.ACK, res.CSeq().SeqNo)
	if err != nil {
		c.log.Warn("no ACK possible", "err", err)
	} else {
		copyCredentials(req, ack)
		c.write(ack)
	}
	if m := c.media.Load(); m != nil && len(res.Body()) > 0 {
		n, err := TakeAnswer(res.Body(), c.local(m.LocalAddr().Port()))
		if err != nil {
			c.log.Info("answer to re-INVITE not usable", "err", err)
		} else {
			c.renegotiated(m, []byte(c.dialog.Media.LocalSDP), res.Body(), n)
		}
	}
	c.hasMoved = false
	c.prolonged(res)
	c.changed()
	c.refreshed(res.StatusCode, nil)
	return ack
}

// refreshedBy is refreshed with the whole answer, which may say how the phone wants to be asked.
func (c *Call) refreshedBy(res *gosip.Response) {
	if c.state != confirmed || !c.asksOtherwise(res) {
		c.refreshed(res.StatusCode, nil)
		c.refreshLater(res)
		return
	}
	c.offering, c.asking = false, false
	if err := c.refresh(); err != nil {
		c.log.Info("phone not asked again", "err", err)
	}
}

// asksOtherwise says that a refusal of a refresh leaves another way: a re-INVITE where UPDATE is not known (any more: the phone may be
// another one), or a longer time (RFC 4028 §7.4), at once only once: who wants ever more would keep us asking as fast as it answers.
func (c *Call) asksOtherwise(res *gosip.Response) bool {
	switch code := res.StatusCode; {
	case code == 422 && c.dialog.Session.Interval > 0:
		least := minSE(res)
		if least <= max(c.dialog.Session.Interval, c.least) || least > longestSession { // it was given that, or wants none
			return false
		}
		again := !c.lengthened
		c.least, c.lengthened = least, true
		return again
	case (code == 405 || code == 501) && res.CSeq() != nil && res.CSeq().MethodName == gosip.UPDATE:
		c.dialog.PeerAllow = slices.DeleteFunc(c.dialog.PeerAllow, func(m string) bool { return strings.EqualFold(m, "UPDATE") })
		return true
	}
	return false
}

// refreshLater tries a refresh again that was refused, while there is time: when the phone asks for it (RFC 3261 §14.2: it has an exchange
// under way), else soon enough for the timer.
func (c *Call) refreshLater(res *gosip.Response) {
	s, now := c.dialog.Session, time.Now()
	switch code := res.StatusCode; {
	case c.state != confirmed || !s.Ours || c.nextRefresh.IsZero() || now.Before(s.next()), // nothing is due
		code < 300, code == 491, code == 408, code == 481, c.hasMoved: // of that refreshed has taken care
		return
	}
	pause := max(refreshRetry, min(s.Interval/8, refreshRetry+transactionTimeout))
	if h := headerOf(res, "Retry-After", ""); h != nil {
		pause = max(retryAfter(h.Value()), time.Second)
	}
	if again := now.Add(pause); again.Before(c.nextRefresh) {
		c.nextRefresh = again
	}
}

// refreshed judges what the phone says to a refresh.
func (c *Call) refreshed(code int, err error) {
	c.offering, c.asking = false, false
	m := c.media.Load()
	switch {
	case c.state != confirmed:
	case err != nil && m != nil && m.silentFor(time.Now()) < heardLately:
		c.log.Info("phone does not answer, but is heard", "err", err)
	case err != nil, code == 408, code == 481:
		c.log.Info("phone has lost the call", "code", code, "err", err)
		c.emit(Failed{Cause{"SIP", 481, "Dialog lost"}})
	case code < 300:
		c.glares, c.rebuffs, c.lengthened = 0, 0, false
	case code == 491 && c.glares < glareTries: // it is offering, too
		c.glares++
		c.refreshIn(c.glarePause())
	case c.hasMoved:
		c.notFollowed(code)
	default:
		c.log.Debug("phone has the call", "code", code)
	}
}

// glarePause is how long who got a 491 waits: whose Call-ID it is longer than the other, so that they do not meet again (§14.1).
func (c *Call) glarePause() time.Duration {
	if c.dialog.Role == UAC {
		return 2100*time.Millisecond + rand.N(1900*time.Millisecond)
	}
	return rand.N(2 * time.Second)
}

// refreshIn asks again after a pause.
func (c *Call) refreshIn(pause time.Duration) {
	c.stack.calls.Go(func() {
		if pauseFor(c.stack.root, pause) {
			c.inbox.put(func() { _ = c.refresh() }) // a call that ended meanwhile needs none
		}
	})
}

const (
	glareTries = 10              // how often a phone may say that it is offering, too
	moveTries  = 3               // how often it is told of our new addresses
	movePause  = 6 * time.Second // between them: longer than heardLately
)

// notFollowed: the phone has the dialog, but not with our new addresses. What it sends goes where nobody is any more, unless it is
// heard all the same (only our Contact has changed, say); then its silence will end the call ([Call.probed]).
func (c *Call) notFollowed(code int) {
	c.rebuffs++
	m := c.media.Load()
	switch {
	case c.rebuffs < moveTries:
		c.refreshIn(movePause)
	case m != nil && m.silentFor(time.Now()) < heardLately:
		c.log.Warn("phone does not take our new addresses, but is heard", "code", code)
	default:
		c.log.Info("phone does not take our new addresses", "code", code)
		c.emit(Failed{Cause{"SIP", code, "New address refused"}})
	}
}
