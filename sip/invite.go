package sip

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// T1 and T2 of RFC 3261 §17.1.1.1 as far as our own retransmissions need them.
const (
	t1 = 500 * time.Millisecond
	t2 = 4 * time.Second
)

// answer is a 2xx to an INVITE that is repeated until its ACK comes (§13.3.1.4), over TCP, too.
type answer struct {
	*transaction
	res      *gosip.Response
	interval time.Duration
	next     time.Time
	giveUp   time.Time
	offer    bool // it carries our offer; the ACK must bring the answer
}

func (a *answer) releaseIfAny() {
	if a != nil {
		a.release()
	}
}

// serveInvite tells the application of the call and stays until the INVITE transaction can be left to sipgo.
func (c *Call) serveInvite(tx *gosip.ServerTx) {
	t := c.invite // sipgo says 100 if the application has said nothing for 200 ms (RFC 3261 §17.2.1)
	if !tx.OnCancel(func(r *gosip.Request) { c.cancel.Store(r); c.inbox.put(c.cancelled) }) {
		c.inbox.put(c.cancelled)
	}
	c.log.Info("call began", "source", c.info.Source, "caller", c.info.Caller.Number, "dialled", c.info.Dialled)
	c.offerToHandler()
	cut := cutOff(tx.Connection())
	for {
		select {
		case <-cut: // the next response would find that, perhaps not before the call is answered
			cut = nil
			c.inbox.put(c.lost)
		case ack := <-tx.Acks(): // one with the branch of the INVITE: wrong for a 2xx, but heard
			c.inbox.put(func() { c.handleAck(ack) })
		case <-t.released:
			return
		case <-tx.Done(): // transport error: the phone cannot be answered this way
			c.inbox.put(c.lost)
			return
		case <-c.done:
			return
		}
	}
}

// offerToHandler survives a panic of the application.
func (c *Call) offerToHandler() {
	defer func() {
		if r := recover(); r != nil {
			c.stack.panicked(r)
			c.inbox.put(c.fail)
		}
	}()
	c.stack.handler.Invite(c)
}

// send answers with a response that needs no state.
func (c *Call) send(t *transaction, r *refusal) {
	res := c.stack.response(t.req, r.code, r.reason, r.headers...)
	if r.code > 100 && r.code < 300 && t.req.IsInvite() {
		res.AppendHeader(gosip.NewHeader("Contact", c.dialog.Contact))
		res.AppendHeader(allowHeader())
	}
	if r.code >= 300 {
		c.stack.counters.refuse(r.code)
		if t != c.invite { // of that one the call's end tells, and who has refused it
			c.stack.refusals.Do(func() {
				c.log.Info("request refused", "method", string(t.req.Method), "code", r.code, "why", r.cause())
			})
		}
	}
	_ = c.respond(t, res) // it is logged; the phone asks again
}

// respond hands a response to sipgo. When a CANCEL was first, sipgo has sent 487 and would now repeat ours in its place:
// the 487 is put back (RFC 3261 §9.2). When the connection is lost, an INVITE is answered over another one.
func (c *Call) respond(t *transaction, res *gosip.Response) error {
	err := t.tx.Respond(res)
	if err == nil {
		return nil
	}
	if errors.Is(err, gosip.ErrTransactionTransport) && c.reroute(t) {
		return t.tx.Respond(res)
	}
	c.log.Debug("response not sent", "code", res.StatusCode, "err", err)
	if t.req.IsInvite() && errors.Is(err, gosip.ErrTransactionCanceled) {
		_ = t.tx.Respond(c.stack.response(t.req, 487, statusText(487))) // it says again that it is cancelled
	}
	return err
}

func (c *Call) stateError() error {
	if c.state == ended || c.state == ending {
		return ErrEnded
	}
	return ErrState
}

// accept negotiates and binds.
func (c *Call) accept() error {
	switch c.state {
	case proceeding:
	case accepted, answered, confirmed:
		return nil
	default:
		return c.stateError()
	}
	if err := c.openMedia(); err != nil {
		return err
	}
	c.state = accepted
	c.dialog.Since = time.Now()
	c.publish()
	return nil
}

// openMedia prepares the answer once; a call whose offer cannot be answered is refused.
func (c *Call) openMedia() error {
	if c.media.Load() != nil {
		return nil
	}
	if r := c.prepare(); r != nil {
		_ = c.reject(r)
		return &ResponseError{r.code, r.reason}
	}
	c.dialog.LocalCSeq = cseqBlock
	c.publish()
	return nil
}

// prepare answers the offer, or makes one if there is none.
func (c *Call) prepare() *refusal {
	rtpc, rtcpc, err := c.stack.ports.open()
	if err != nil {
		c.log.Warn("no media port", "err", err)
		return refuse(503, statusText(503), gosip.NewHeader("Retry-After", "30"))
	}
	m := c.newMedia(rtpc, rtcpc)
	local := c.local(m.LocalAddr().Port())
	local.SessionID = rand.Uint64N(1 << 62) // an identifier, not a secret
	local.SDPVersion = 0
	body, n, r := c.negotiate(c.invite.req.Body(), local)
	if r != nil {
		m.close(false)
		return r
	}
	c.prepared = body
	c.dialog.Media.SessionID = local.SessionID
	c.take(m, body, c.invite.req.Body(), n)
	c.media.Store(m)
	m.start()
	return nil
}

// newMedia is the media of this call on these sockets.
func (c *Call) newMedia(rtpc, rtcpc rtpConn) *Media {
	m := newMedia(c.stack.ports, rtpc, rtcpc, &c.stack.counters.media)
	m.onDigit = func(key byte) { c.inbox.put(func() { c.pressed(key, FromRTP) }) }
	m.byINFO = func(key byte) { c.inbox.put(func() { c.queueInfo(key) }) }
	m.infoOnly = c.trunk != nil && c.trunk.DTMF == DTMFInfo
	return m
}

// local is our side for the next offer or answer.
func (c *Call) local(port uint16) LocalState { return c.localIn(&c.dialog.Media, port) }

// localIn is our side after these descriptions.
func (c *Call) localIn(d *MediaState, port uint16) LocalState {
	codecs := []string{"PCMU", "PCMA"}
	if c.trunk != nil {
		codecs = c.trunk.codecs()
	}
	mode := SRTPOff
	if c.trunk != nil {
		mode = c.trunk.SRTP
	}
	if c.srtpKeys == nil && mode != SRTPOff {
		c.srtpKeys = newKeys()
		if i := suiteNamed(d.Crypto.Suite); i >= 0 {
			c.srtpKeys[i] = d.Crypto.Local // resumed: RFC 4568 §6.4, the key stays when nothing changes
		}
	}
	return LocalState{
		SRTP: mode, Secure: c.dialog.Transport == TLS, Keys: c.srtpKeys,
		Addr:   netip.AddrPortFrom(c.stack.soundHost(c.trunk), port),
		Codecs: codecs, Current: d.Format, Crypto: d.Crypto, Later: d.RemoteSDP != "",
		SessionID: d.SessionID, SDPVersion: d.SDPVersion, LocalSDP: d.LocalSDP, MediaIndex: d.MediaIndex,
	}
}

// screen refuses what could not be answered, before anybody is told of the call.
func (c *Call) screen() *refusal {
	h := c.invite.req.Contact()
	if h == nil {
		return refuse(400, "Missing Contact")
	}
	// RFC 3261 §8.1.1.8: a SIP address; requests of ours go there.
	if s := strings.ToLower(h.Address.Scheme); h.Address.Host == "" || s != "sip" && s != "sips" {
		return refuse(400, "Bad Contact")
	}
	if r := tooBrief(c.invite.req); r != nil {
		return r
	}
	if len(c.invite.req.Body()) == 0 {
		return nil // the offer will be ours
	}
	_, _, r := c.negotiate(c.invite.req.Body(), c.local(c.stack.config.RTP.PortMin)) // a rehearsal: any port will do
	return r
}

// negotiate answers body, or makes an offer when it is empty.
func (c *Call) negotiate(body []byte, local LocalState) ([]byte, *Negotiated, *refusal) {
	if len(body) == 0 {
		own, n := Offer(local)
		return own, n, nil
	}
	own, n, err := Answer(body, local)
	switch {
	case err == nil:
		return own, n, nil
	case warning(err, "") != "":
		host, _ := c.stack.sentBy(c.trunk, c.dialog.LocalSocket)
		return nil, nil, refuse(488, statusText(488), gosip.NewHeader("Warning", warning(err, host))).because(err.Error())
	default:
		return nil, nil, refuse(400, "Malformed SDP").because(err.Error())
	}
}

// take makes a negotiation result effective.
func (c *Call) take(m *Media, own, theirs []byte, n *Negotiated) {
	d := &c.dialog.Media
	d.Local = m.LocalAddr()
	d.Advertised = netip.AddrPortFrom(c.stack.soundHost(c.trunk), m.LocalAddr().Port())
	d.LocalSDP, d.SDPVersion, d.MediaIndex = string(own), n.SDPVersion, n.MediaIndex
	d.Format, d.Direction, d.RemoteSilent, d.Crypto = n.Format, n.Direction, n.RemoteSilent, n.Crypto
	if len(theirs) > 0 {
		d.RemoteSDP = string(theirs)
		d.PeerOffers++
	}
	m.apply(*n, c.learnable(), time.Now())
}

// learnable says which hosts may be the phone's media source besides the one in its SDP (design: RTP injection).
func (c *Call) learnable() func(netip.Addr) bool {
	if c.trunk == nil || !c.trunk.Symmetric {
		return nil
	}
	c.dialog.Media.Symmetric = true
	signalling, trunk := c.dialog.Remote.Addr(), c.trunk
	return func(a netip.Addr) bool {
		return a == signalling || trunk.contains(a) || inPrefixes(trunk.MediaNetworks, a)
	}
}

func (c *Call) sendAnswer() error {
	switch c.state {
	case accepted:
	case answered, confirmed:
		return nil
	default:
		return c.stateError()
	}
	if c.rel.waits() {
		if c.rel.sdp {
			c.rel.answer = true // RFC 3262 §3: not before the phone has the description
			return nil
		}
		c.rel.next, c.rel.late = time.Time{}, true
	}
	if !c.respondSDP(c.invite, c.okSDP(c.invite, c.prepared)) {
		c.cancelled()
		return ErrEnded
	}
	c.ringing = time.Time{}
	c.state = answered
	c.invite.final = true
	c.stack.counters.answered.Add(1)
	c.nextRTCP = time.Now().Add(rtcpInterval)
	c.noticeHold() // an INVITE may arrive on hold
	return nil
}

// respondSDP sends a 2xx (okSDP) to an INVITE and keeps it for retransmission. It is false when a CANCEL was first: then no 2xx
// is out, and the ACK that comes with the branch and CSeq of the INVITE is the 487's (§17.1.1.3).
func (c *Call) respondSDP(t *transaction, res *gosip.Response) bool {
	now := time.Now()
	c.answer.releaseIfAny() // of an earlier re-INVITE; its ACK was lost or is still to come
	c.answer = &answer{
		transaction: t, res: res, interval: t1, next: now.Add(t1), giveUp: now.Add(64 * t1),
		offer: len(t.req.Body()) == 0 && !(t == c.invite && c.rel.agreed),
	}
	if errors.Is(c.respond(t, res), gosip.ErrTransactionCanceled) {
		c.answer = nil
		t.release()
		return false
	}
	return true
}

// okSDP is a 200 with our description, and sets the timer it tells of.
func (c *Call) okSDP(t *transaction, body []byte) *gosip.Response {
	res := c.stack.response(t.req, 200, statusText(200),
		gosip.NewHeader("Contact", c.dialog.Contact), allowHeader(), supportedHeader())
	for _, h := range c.timeSession(t.req) {
		res.AppendHeader(h)
	}
	if t == c.invite && c.rel.agreed {
		return res // offer and answer were in provisional responses
	}
	res.AppendHeader(gosip.NewHeader("Content-Type", sdpType))
	res.SetBody(body)
	return res
}

// repeatAnswer sends the 2xx again, at 0.5, 1.5, 3.5, 7.5, 11.5 … s, and ends the call at 32 s.
func (c *Call) repeatAnswer(now time.Time) {
	a := c.answer
	if !now.Before(a.giveUp) {
		c.log.Warn("answer never acknowledged")
		c.stack.counters.noAck.Add(1)
		a.release()
		c.answer = nil
		c.emit(NoAck{})
		c.sendBye(Cause{"SIP", 408, "No ACK"})
		return
	}
	if now.Before(a.next) {
		return
	}
	a.interval = min(2*a.interval, t2)
	a.next = a.next.Add(a.interval)
	_ = c.respond(a.transaction, a.res) // the next one may get through
}

// handleAck takes an ACK of a 2xx.
func (c *Call) handleAck(req *gosip.Request) {
	a := c.answer
	if a == nil || req.CSeq() == nil || req.From() == nil || req.CSeq().SeqNo != a.req.CSeq().SeqNo {
		return // a repeated one
	}
	if tag, _ := req.From().Params.Get("tag"); tag != c.dialog.RemoteTag {
		return
	}
	c.answer = nil
	a.release()
	if a.offer && !c.takeAnswer(req) {
		c.state = confirmed
		cause := Cause{"SIP", 488, "No usable answer in ACK"}
		c.emit(Failed{cause})
		c.sendBye(cause)
		return
	}
	if c.state != answered {
		return // of a re-INVITE
	}
	c.state = confirmed
	c.dialog.Confirmed, c.dialog.Vias = true, nil
	c.publish()
	c.emit(Acked{})
	if c.byeWhen {
		c.sendBye(c.goodbye)
	}
}

// takeAnswer completes our own offer.
func (c *Call) takeAnswer(ack *gosip.Request) bool {
	if !c.takeOfferAnswer(ack.Body()) {
		return false
	}
	c.changed()
	return true
}

// takeOfferAnswer makes the phone's answer to an offer of ours effective.
func (c *Call) takeOfferAnswer(body []byte) bool {
	m := c.media.Load()
	n, err := TakeAnswer(body, c.local(m.LocalAddr().Port()))
	if err != nil {
		c.log.Info("answer not usable", "err", err)
		return false
	}
	c.renegotiated(m, []byte(c.dialog.Media.LocalSDP), body, n)
	return true
}

// cancelled: sipgo has answered the CANCEL with 200 and the INVITE with 487.
func (c *Call) cancelled() {
	if c.state != proceeding && c.state != accepted {
		return // too late: the phone gets our 200, acknowledges it and sends BYE (§9.1)
	}
	c.invite.final = true
	var cause Cause
	if r := c.cancel.Load(); r != nil {
		cause = reasonOf(r)
	}
	c.goodbye = cause
	c.emit(Cancelled{cause})
	c.end()
}

// reroute lets an INVITE be answered over another connection, for the one that it came over is lost: RFC 3261 §18.2.2 has one opened to
// where it says that the phone listens. It is false where there are no connections.
func (c *Call) reroute(t *transaction) bool {
	transport := Transport(strings.ToLower(t.req.Transport()))
	l, ok := c.stack.listenerFor(Dialog{Transport: transport, LocalSocket: c.dialog.LocalSocket})
	if !ok || transport == UDP || !t.req.IsInvite() {
		return false
	}
	c.log.Info("connection lost, the phone is answered over another one")
	t.tx = &statelessTx{
		stack: c.stack, trunk: c.trunk, listener: l, request: t.req,
		unreachable: func(err error) { c.inbox.put(func() { c.unreachable(err) }) },
	}
	return true
}

// withdrawn takes a CANCEL for which sipgo knows no transaction: that died with its connection, or came to be behind it.
func (c *Call) withdrawn(cancel *gosip.Request) {
	if c.state != proceeding && c.state != accepted {
		return
	}
	c.cancel.Store(cancel)
	c.send(c.invite, refuse(487, statusText(487)))
	c.cancelled()
}

// lost: the connection of the INVITE is gone, or its transaction died under us. What was said last is said again over another connection:
// a caller that is dead must not keep a room ringing. sipgo's transaction ends, so that a CANCEL comes to [Stack.withdraw], whose answers
// find the new way.
func (c *Call) lost() {
	if c.state != proceeding && c.state != accepted {
		return
	}
	before := c.invite.tx
	if _, rerouted := before.(*statelessTx); rerouted {
		return
	}
	if !c.reroute(c.invite) {
		c.unreachable(before.Err())
		return
	}
	before.Terminate()
	switch cancel := c.cancel.Load(); {
	case cancel != nil: // it was the last thing to come, and sipgo cannot answer it
		c.withdrawn(cancel)
	case c.rel.waits():
		_ = c.respond(c.invite, c.rel.res)
	case c.early != nil:
		c.repeatEarly(time.Now())
	default:
		_ = c.respond(c.invite, c.stack.response(c.invite.req, 100, statusText(100)))
	}
}

// unreachable: nobody hears what we answer.
func (c *Call) unreachable(err error) {
	if c.state != proceeding && c.state != accepted {
		return
	}
	c.log.Info("caller cannot be reached any more", "err", err)
	c.invite.final = true
	c.goodbye = Cause{"SIP", 500, "Transport failure"}
	c.emit(Cancelled{c.goodbye})
	c.end()
}

// reject refuses an unanswered call.
func (c *Call) reject(r *refusal) error {
	if c.state != proceeding && c.state != accepted {
		return c.stateError()
	}
	c.invite.final = true
	c.send(c.invite, r)
	c.goodbye = Cause{"SIP", r.code, r.reason}
	c.end()
	return nil
}

func (c *Call) hangup(cause Cause) error {
	switch c.state {
	case proceeding, accepted:
		code := 480
		if cause.Protocol == "SIP" && cause.Code >= 400 && cause.Code < 700 {
			code = cause.Code
		}
		return c.reject(refuse(code, statusText(code)))
	case dialling:
		c.giveUpDialling(cause)
	case answered: // §15: not before the ACK came or the 2xx timed out
		c.byeWhen, c.goodbye = true, cause
	case confirmed:
		c.sendBye(cause)
	case ending, ended:
	}
	return nil
}
