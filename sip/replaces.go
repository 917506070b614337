package sip

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// replaces names the dialog that an INVITE wants to take the place of (RFC 3891 §6.1).
type replaces struct {
	callID, toTag, fromTag string
	earlyOnly              bool
}

// replacesOf reads the Replaces header; nil if there is none.
func replacesOf(req *gosip.Request) (*replaces, *refusal) {
	var values []string
	for _, h := range req.GetHeaders("Replaces") {
		values = append(values, h.Value())
	}
	return parseReplaces(values)
}

// parseReplaces reads the values of Replaces; nil if there are none.
func parseReplaces(values []string) (*replaces, *refusal) {
	if len(values) == 0 {
		return nil, nil
	}
	bad := refuse(400, "Bad Replaces")
	if len(values) > 1 || strings.Contains(values[0], ",") { // §3: one
		return nil, bad
	}
	parts := strings.Split(values[0], ";")
	r := &replaces{callID: strings.TrimSpace(parts[0])}
	for _, p := range parts[1:] {
		name, value, _ := strings.Cut(p, "=")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "to-tag":
			r.toTag = strings.TrimSpace(value)
		case "from-tag":
			r.fromTag = strings.TrimSpace(value)
		case "early-only":
			r.earlyOnly = true
		}
	}
	for _, word := range []string{r.callID, r.toTag, r.fromTag} {
		if word == "" || strings.ContainsFunc(word, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return nil, bad
		}
	}
	if r.fromTag == "0" { // §4: phones of RFC 2543 have none
		r.fromTag = ""
	}
	return r, nil
}

// String is the header's value, in the words of who sends it on to the one at the other end of the dialog.
func (r *replaces) String() string {
	fromTag := r.fromTag
	if fromTag == "" {
		fromTag = "0"
	}
	value := r.callID + ";to-tag=" + r.toTag + ";from-tag=" + fromTag
	if r.earlyOnly {
		value += ";early-only"
	}
	return value
}

// replace serves an INVITE that wants to take the place of a call, and stays until its transaction needs no more care.
func (s *Stack) replace(r *replaces, trunks []*Trunk, source netip.AddrPort, req *gosip.Request, tx *gosip.ServerTx) {
	id := inviteOf(req)
	s.mu.Lock()
	c := s.byID[dialogID{r.callID, r.toTag}]
	switch {
	case s.byInvite[id] != nil: // §8.2.2.2 of RFC 3261
		s.mu.Unlock()
		s.respond(req, tx, refuse(482, "Loop Detected"))
		return
	case c == nil:
		s.mu.Unlock()
		s.respond(req, tx, refuse(481, statusText(481)).because(whyNoDialog))
		return
	}
	s.byInvite[id] = c
	s.mu.Unlock()
	trunk := trunks[0]
	if slices.Contains(trunks, c.trunk) { // whatever number the INVITE calls: it means this dialog
		trunk = c.trunk
	}
	t := newTransaction(req, tx)
	if !c.inbox.put(func() {
		if !c.takeOver(r, trunk, source, t) {
			s.forgetInvite(id, c)
			t.release()
		}
	}) {
		s.forgetInvite(id, c)
		s.respond(req, tx, refuse(603, statusText(603))) // §3: it has ended
		return
	}
	c.attend(t, tx)
}

func (s *Stack) forgetInvite(id inviteID, c *Call) {
	s.mu.Lock()
	if s.byInvite[id] == c {
		delete(s.byInvite, id)
	}
	s.mu.Unlock()
}

// takeOver lets another phone of the trunk have this call: its dialog takes the place of ours, the media stays. false means
// that it was refused.
func (c *Call) takeOver(r *replaces, trunk *Trunk, source netip.AddrPort, t *transaction) bool {
	if no := c.mayReplace(r, trunk, t.req); no != nil {
		c.send(t, no)
		return false
	}
	m := c.media.Load()
	old, oldKeys, oldState := c.dialog, c.srtpKeys, c.state
	info := old.Info
	info.Caller = inviteInfo(trunk, t.req).Caller
	c.dialog = dialogOf(c.stack, trunk, info, t.req, addrPortOf(t.tx.(*gosip.ServerTx).Connection().LocalAddr()), source)
	c.dialog.LocalCSeq, c.dialog.Since = cseqBlock, old.Since
	c.srtpKeys = nil // keys are for one phone
	local := c.local(m.LocalAddr().Port())
	local.SessionID = rand.Uint64N(1 << 62) // an identifier, not a secret
	body, n, no := c.negotiate(t.req.Body(), local)
	if no != nil || t.tx.Err() != nil {
		c.dialog, c.srtpKeys = old, oldKeys
		if no != nil {
			c.send(t, no)
		}
		return false
	}
	c.dialog.Media.SessionID = local.SessionID
	if oldState == dialling {
		c.dropRinging(old)
	} else {
		c.displace(old)
	}
	c.rename(t)
	if c.dialog.Since.IsZero() {
		c.dialog.Since = time.Now()
	}
	c.take(m, body, t.req.Body(), n)
	c.stack.counters.replaced.Add(1)
	c.log.Info("another phone takes the call over")
	c.emit(MediaChanged{n.Format})
	if oldState == dialling {
		c.nextRTCP = time.Now().Add(rtcpInterval)
	}
	c.state = answered
	c.noticeHold()
	res := c.okSDP(t, body)
	c.saved() // before either phone can know: who dies sooner has the call with the one there was, and is asked by the other one again
	c.letGo()
	if !c.respondSDP(t, res) {
		c.cancelledReplacement()
		return true
	}
	if oldState == dialling {
		c.emit(Answered{})
	}
	if info.Caller != old.Info.Caller && trunk.TrustIdentity {
		c.emit(IdentityChanged{info.Caller})
	}
	return true
}

// mayReplace judges an INVITE with Replaces (§3).
func (c *Call) mayReplace(r *replaces, trunk *Trunk, req *gosip.Request) *refusal {
	early := c.state == dialling && c.out.forks[r.fromTag] != nil && !c.out.cancel
	switch h := req.Contact(); {
	case !early && r.fromTag != c.dialog.RemoteTag, c.state == dialling && !early:
		return refuse(481, statusText(481)).because(whyNoDialog)
	case c.state == ending, c.state == ended:
		return refuse(603, statusText(603)).because(whyEnding)
	case c.trunk != trunk: // who sends from elsewhere is not the one who is replaced
		return refuse(403, statusText(403)).because("a call of another trunk is not replaced")
	case c.state == proceeding, c.state == accepted: // §3: an early dialog that we did not begin
		return refuse(481, statusText(481)).because(whyUnanswered)
	case r.earlyOnly && c.state != dialling:
		return refuse(486, statusText(486)).because("only an early dialog was to be replaced")
	case c.state == answered, c.answer != nil, c.offering:
		return notNow("an exchange of ours is not done")
	case h == nil || h.Address.Host == "":
		return refuse(400, "Missing Contact")
	case c.media.Load() == nil:
		return notNow(whyNoMedia)
	}
	return tooBrief(req)
}

// rename gives the call the identity of its new dialog, whose INVITE t is.
func (c *Call) rename(t *transaction) {
	s, was := c.stack, c.id
	c.id = dialogID{c.dialog.CallID, c.dialog.LocalTag}
	s.mu.Lock()
	if s.leave(c, was) {
		s.enter(c)
	}
	if c.invite != nil {
		delete(s.byInvite, inviteOf(c.invite.req))
	}
	s.mu.Unlock()
	c.invite.releaseIfAny()
	c.invite = t
	t.final = true
	c.cseq = 0
	c.rel, c.keys, c.keyWay, c.prepared, c.early, c.ringing = reliable{}, infoKeys{}, keyWay{}, nil, nil, time.Time{}
	c.hasMoved, c.referring, c.unsure, c.asking, c.unheard = false, false, false, false, false
	c.nextRefresh, c.least, c.lengthened = time.Time{}, 0, false
}

// dropRinging ends the dialog of a phone that has not answered yet, and is replaced.
func (c *Call) dropRinging(old Dialog) {
	c.dropReferral()
	c.out.replaced, c.out.spent = &old, c.cseq
	c.goodbye = Cause{}
	c.sendCancel()
	c.out.final, c.out.giveUp = true, time.Time{}
}

// displace remembers the dialog that is replaced: its phone gets BYE.
func (c *Call) displace(old Dialog) {
	c.dropReferral()
	c.releaseAck() // RFC 3261 §15: no BYE before it
	c.cseq++
	old.LocalCSeq, old.Media, old.Displaced = c.cseq, MediaState{}, nil
	c.dialog.Displaced = &old
}

// letGo sends BYE to the phone whose place another one has taken, if it has not been told.
func (c *Call) letGo() {
	old := c.dialog.Displaced
	if old == nil {
		return
	}
	c.hangUpBeside(old, old.LocalCSeq, func() { // the next write of the row says so: it needs none of its own
		if c.dialog.Displaced == old {
			c.dialog.Displaced = nil
			c.publish()
		}
	})
}

// cancelledReplacement: who wanted the call has given up in the moment it got it, and who had it is gone.
func (c *Call) cancelledReplacement() {
	c.goodbye = Cause{"SIP", 487, statusText(487)}
	c.emit(Bye{c.goodbye})
	c.end()
}
