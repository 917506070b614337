package sip

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// DialRequest says whom to call, and as whom.
type DialRequest struct {
	Trunk  string // by name
	Number Number // what the trunk is asked for
	From   Caller // who is shown; Private shows nobody
	// RingTimeout ends a call that nobody answers; 0 = 3 minutes.
	RingTimeout time.Duration
	// Silence ends a call whose trunk says nothing at all, not even 100, so that another one can be tried: 408, as when nobody answers;
	// should it say something yet, it hears CANCEL, or ACK and BYE. 0 = the INVITE's transaction does, after 32 s. With Silence, a trunk
	// whose servers all rest is not asked for a moment, either: 503.
	Silence time.Duration
	// Redirect judges the number a 3xx names, and says what the trunk is to be asked for then; "" refuses it, and nil refuses
	// them all: who pays for a call must have said where it may go. It must not block.
	Redirect func(Number) Number
	// HoldAck keeps the ACK of the answer back until [Call.Acknowledge], so that the dialog can be saved first: who dies in between
	// is told of the answer again (RFC 3261 §13.3.1.4), for 32 s.
	HoldAck bool
	// Replaces names a dialog of who is called, as [TransferWanted] has it: the call is to take its place (RFC 3891), or to be
	// refused. ReferredBy says who wants that (RFC 3892).
	Replaces, ReferredBy string
}

// Errors of Dial.
var (
	// ErrNoTrunk: no trunk of that name, or none that calls can be sent to.
	ErrNoTrunk = errors.New("no such trunk for outgoing calls")
	// ErrDown: the trunk did not answer when it was last asked.
	ErrDown = errors.New("trunk is down")
	// ErrFull: as many calls as are allowed, or the stack is draining.
	ErrFull = errors.New("no more calls now")
)

const (
	ringTimeout  = 3 * time.Minute // RFC 3261 §16.6 gives proxies at least as much (timer C)
	cancelWait   = 64 * t1         // §9.1: for the 487
	maxRedirects = 5
)

// outgoing is an INVITE of ours and what has become of it. Only run touches it.
type outgoing struct {
	request DialRequest
	trunk   *Trunk
	req     *gosip.Request // the last one sent
	branch  string
	targets []target // where it may go, the first in use; nil = not asked yet
	sent    bool
	resumed bool // a process before us has sent it

	answered  bool // by any response: CANCEL may go (§9.1)
	final     bool // no more is expected from this branch
	cancel    bool // end it as soon as that is possible
	cancelled bool // CANCEL was sent
	giveUp    time.Time
	silence   time.Time // the first response must have come by then; zero = it has, or may take its time
	early     string    // the description of early media that was taken last

	code      int                       // of the last provisional response told
	acks      map[string]*gosip.Request // by remote tag: of the answer and of forks
	heldAck   *gosip.Request            // the one that waits for Acknowledge
	redirects int
	asked     int              // how often it was challenged
	offer     MediaState       // what the INVITE describes
	forks     map[string]*fork // by remote tag
	speaking  *fork            // whose descriptions the dialog has; nil = those of the offer alone
	replaced  *Dialog          // of an INVITE whose place another phone's call has taken
	spent     uint32           // the last sequence number used for that one
	session   time.Duration    // the timer we ask for
	minSE     time.Duration
}

// Dial prepares a call to the phone network: the trunk is chosen, media ports are bound, the offer is made. Nothing is
// sent before [Call.SendInvite], so that [Call.Dialog] can be saved first. ctx is for Dial alone; [Call.Hangup] ends
// the call at any time. What happens then comes as [Provisional], [Answered] or [Refused], and [Ended] last.
func (s *Stack) Dial(ctx context.Context, r DialRequest) (*Call, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	trunk := s.trunkNamed(r.Trunk)
	if trunk == nil || trunk.Proxy == "" || trunk.InOnly {
		return nil, fmt.Errorf("dial over %q: %w", clip(r.Trunk), ErrNoTrunk)
	}
	if r.Number == "" {
		return nil, errors.New("dial: no number")
	}
	l, err := s.outlet(trunk)
	if err != nil {
		return nil, fmt.Errorf("dial over %q: %w", r.Trunk, err)
	}
	down, route := s.down(trunk)
	if down {
		return nil, fmt.Errorf("dial over %q: %w", r.Trunk, ErrDown)
	}
	c := s.newOutgoing(trunk, l, r)
	c.dialog.RouteSet = route // RFC 3608 §6.1
	if err := c.openOffer(); err != nil {
		return nil, fmt.Errorf("dial over %q: %w", r.Trunk, err)
	}
	c.publish()
	if err := s.admitOutgoing(c); err != nil {
		c.media.Load().close(false)
		return nil, fmt.Errorf("dial over %q: %w", r.Trunk, err)
	}
	return c, nil
}

func newOutgoingState(r DialRequest, trunk *Trunk) *outgoing {
	return &outgoing{
		request: r, trunk: trunk, acks: map[string]*gosip.Request{}, forks: map[string]*fork{},
		session: sessionInterval, minSE: minSession,
	}
}

func (s *Stack) newOutgoing(trunk *Trunk, l listener, r DialRequest) *Call {
	id := dialogID{strings.ToLower(crand.Text()), newTag()}
	c := &Call{
		stack: s, trunk: trunk, id: id, inbox: newInbox(), done: make(chan struct{}), state: dialling,
		out: newOutgoingState(r, trunk),
	}
	c.info = Info{Trunk: trunk.Name, Dialled: r.Number, Caller: r.From, CallID: id.callID}
	c.log = s.log.With("call", shortID(id.callID), "trunk", trunk.Name)
	target := gosip.Uri{Scheme: "sip", User: userOf(string(r.Number)), Host: trunk.domain()}
	c.dialog = Dialog{
		CallID: id.callID, LocalTag: id.localTag, Role: UAC,
		LocalURI: s.callingParty(trunk, l.addr, r.From), RemoteURI: "<" + target.String() + ">", RemoteTarget: target.String(),
		LocalCSeq: cseqBlock, InviteCSeq: 1, InviteBranch: newBranch(),
		Transport: l.transport, LocalSocket: l.addr, Contact: s.contact(trunk, l.transport, l.addr), Info: c.info,
		Replaces: r.Replaces, ReferredBy: r.ReferredBy,
	}
	c.dialog.Media.MediaIndex = -1
	c.cseq = 1
	return c
}

func bracketed(host string) string {
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		return "[" + host + "]"
	}
	return host
}

// userOf makes text fit for the user part of a SIP address (RFC 3261 §25.1).
func userOf(s string) string {
	var b strings.Builder
	for _, r := range []byte(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.IndexByte("-_.!~*'()&=+$,;?/", r) >= 0:
			b.WriteByte(r)
		default:
			fmt.Fprintf(&b, "%%%02X", r)
		}
	}
	return b.String()
}

// openOffer binds the media ports and makes our offer.
func (c *Call) openOffer() error {
	rtpc, rtcpc, err := c.stack.ports.open()
	if err != nil {
		return err
	}
	m := c.newMedia(rtpc, rtcpc)
	local := c.local(m.LocalAddr().Port())
	local.SessionID = rand.Uint64N(1 << 62) // an identifier, not a secret
	body, n := Offer(local)
	c.dialog.Media.SessionID = local.SessionID
	c.take(m, body, nil, n)
	c.out.offer = c.dialog.Media
	c.media.Store(m)
	m.start()
	return nil
}

func (s *Stack) admitOutgoing(c *Call) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.draining || len(s.byID) >= s.config.Limits.Calls || s.busy(c.trunk) {
		return ErrFull
	}
	s.counters.dialled.Add(1)
	s.enter(c)
	s.calls.Go(c.run)
	return nil
}

// SendInvite sends the INVITE of a call made with [Stack.Dial]. It does not wait for an answer. A resumed call that was
// not answered goes on with it, too: the INVITE is the same as before the restart, so the other side takes it for a
// repeated one and says again what it said.
func (c *Call) SendInvite() error { return c.do(c.sendInvite) }

func (c *Call) sendInvite() error {
	o := c.out
	if c.state != dialling || o.sent {
		return c.stateError()
	}
	if o.resumed && c.media.Load() == nil {
		if err := c.reopenMedia(); err != nil {
			return err
		}
	}
	o.sent = true
	o.giveUp = time.Now().Add(cmp.Or(o.request.RingTimeout, ringTimeout))
	c.log.Info("call began", "dialled", c.info.Dialled)
	c.locate()
	return nil
}

// locate asks where the trunk is and sends the INVITE there. Names may take their time.
func (c *Call) locate() {
	c.stack.calls.Go(func() {
		ctx, cancel := context.WithTimeout(c.stack.root, lookupTimeout)
		defer cancel()
		targets, err := c.stack.locate(ctx, c.out.trunk)
		c.inbox.put(func() {
			if c.out.resumed && c.dialog.Remote.IsValid() { // where the process before has sent it, whatever DNS says by now
				targets, err = startingWith(targets, target{c.dialog.Remote, c.dialog.Transport}), nil
			} else if err == nil {
				targets, err = c.stack.neighbours.awake(c.out.trunk, targets, c.out.request.Silence > 0)
			}
			switch {
			case c.state != dialling:
			case err != nil:
				c.log.Warn("trunk is not called", "err", err)
				c.refused(503, "", nil)
			default:
				c.out.targets = targets
				c.invitePhone()
			}
		})
	})
}

// invitePhone sends the INVITE to the first target.
func (c *Call) invitePhone() {
	o := c.out
	if o.cancel && !o.resumed {
		c.end()
		return
	}
	if t := o.targets[0]; c.dialog.turnTo(c.stack, t.transport) || c.dialog.Remote != t.addr {
		c.dialog.Remote = t.addr
		c.log.Info("call is sent", "target", t.addr, "transport", c.dialog.Transport)
		c.changed() // who goes on with it must send it there again
	}
	req, err := c.inviteRequest()
	if err != nil {
		c.log.Warn("no INVITE possible", "err", err)
		c.refused(500, "", nil)
		return
	}
	branch := c.dialog.InviteBranch
	o.req, o.branch, o.answered, o.final = req, branch, false, false
	if o.request.Silence > 0 && len(o.targets) == 1 { // else the next target is tried, of which phones behind both know nothing
		o.silence = time.Now().Add(o.request.Silence)
	}
	c.stack.calls.Go(func() {
		tx, err := c.stack.begin(c.stack.root, c.out.trunk, req)
		if err != nil {
			c.inbox.put(func() { c.unanswered(branch, err) })
			return
		}
		tx.OnRetransmission(func(res *gosip.Response) { c.inbox.put(func() { c.handleResponse(branch, res) }) })
		c.follow(tx, branch)
	})
}

// inviteRequest builds the INVITE from the dialog, the same again after a restart.
func (c *Call) inviteRequest() (*gosip.Request, error) {
	d := &c.dialog
	req, err := d.request(c.stack, gosip.INVITE, d.InviteCSeq)
	if err != nil {
		return nil, err
	}
	req.Via().Params.Add("branch", d.InviteBranch)
	req.SetDestination(d.Remote.String())
	req.AppendHeader(allowHeader())
	req.AppendHeader(supportedHeader())
	for _, h := range sessionHeaders(c.out.session, c.out.minSE) {
		req.AppendHeader(h)
	}
	for _, h := range c.stack.identityHeaders(c.out.trunk, d.LocalSocket, c.out.request.From) {
		req.AppendHeader(h)
	}
	if d.Replaces != "" {
		req.AppendHeader(gosip.NewHeader("Replaces", d.Replaces))
		req.AppendHeader(gosip.NewHeader("Require", "replaces")) // RFC 3891 §6: who does not know it would take a call more
	}
	if d.ReferredBy != "" {
		req.AppendHeader(gosip.NewHeader("Referred-By", d.ReferredBy))
	}
	req.AppendHeader(gosip.NewHeader("Content-Type", sdpType))
	req.SetBody([]byte(c.out.offer.LocalSDP))
	c.auth.apply(req, c.out.trunk.Auth)
	return req, nil
}

// follow hands on the responses of a client transaction for as long as it lasts: it also acknowledges repeated refusals.
func (c *Call) follow(tx *gosip.ClientTx, branch string) {
	defer tx.Terminate()
	for {
		select {
		case res := <-tx.Responses():
			c.inbox.put(func() { c.handleResponse(branch, res) })
		case <-tx.Done():
			c.inbox.put(func() { c.unanswered(branch, tx.Err()) })
			return
		case <-c.stack.root.Done():
			return
		}
	}
}

// handleResponse takes a response to the INVITE.
func (c *Call) handleResponse(branch string, res *gosip.Response) {
	o := c.out
	code := res.StatusCode
	if code >= 200 && code < 300 {
		c.phoneAnswered(res)
		return
	}
	if o == nil || c.state != dialling || branch != o.branch || o.final {
		return
	}
	o.answered, o.silence = true, time.Time{}
	switch {
	case code < 200:
		f := o.heard(res)
		if o.cancel {
			c.sendCancel()
		}
		if code > 100 && c.acknowledgeEarly(f, res) {
			c.provisional(f, res)
		}
	default:
		o.final = true
		c.phoneRefused(res)
	}
}

// phoneAnswered takes a 2xx: the first makes the call, a repeated one wants its ACK again, another one is from a phone
// that a proxy had ring, too, and is hung up (§13.2.2.4).
func (c *Call) phoneAnswered(res *gosip.Response) {
	if res.To() == nil || res.CSeq() == nil || c.out == nil {
		return
	}
	tag, _ := res.To().Params.Get("tag")
	if ack := c.out.acks[tag]; ack != nil {
		if ack != c.out.heldAck {
			c.write(ack)
		}
		return
	}
	if c.state != dialling {
		c.endFork(res, tag)
		return
	}
	c.out.final = true
	c.auth.accepted()
	f := c.out.fork(tag)
	c.dialog.establish(res, tag)
	c.dialog.RemoteCSeq, c.dialog.RemoteNumbered = f.cseq, f.numbered
	c.dialog.Since = time.Now()
	if c.out.heldAck = c.ackOf(&c.dialog, res); !c.out.request.HoldAck {
		c.releaseAck()
	}
	c.state = confirmed
	c.stack.counters.dialAnswered.Add(1)
	c.nextRTCP = time.Now().Add(rtcpInterval)
	switch {
	case c.out.cancel: // our CANCEL was too late
		c.changed()
		c.sendBye(c.goodbye)
	case !c.settle(f, res.Body()):
		cause := Cause{"SIP", 488, "No usable answer"}
		c.emit(Failed{cause})
		c.sendBye(cause)
	default:
		c.sessionAnswered(res)
		c.changed()
		c.emit(Answered{})
		c.noticeHold()
	}
}

// establish completes the dialog with what a 2xx says (§12.1.2).
func (d *Dialog) establish(res *gosip.Response, tag string) {
	d.RemoteTag, d.Confirmed = tag, true
	if h := res.Contact(); h != nil && h.Address.Host != "" {
		d.RemoteTarget = h.Address.String()
	}
	d.RouteSet = nil
	for _, h := range res.GetHeaders("Record-Route") {
		d.RouteSet = append(d.RouteSet, splitAddresses(h.Value())...)
	}
	slices.Reverse(d.RouteSet)
	d.PeerAllow, d.PeerSupported = listHeader(res, "Allow", ""), listHeader(res, "Supported", "k")
}

// splitAddresses cuts a comma-separated list of addresses.
func splitAddresses(list string) []string {
	var out []string
	for list != "" {
		one := firstOf(list)
		out = append(out, strings.TrimSpace(one))
		list = strings.TrimPrefix(list[len(one):], ",")
	}
	return out
}

// ackOf makes the ACK of a 2xx to our INVITE, and keeps it for when that comes again. It is nil when none is possible.
func (c *Call) ackOf(d *Dialog, res *gosip.Response) *gosip.Request {
	ack, err := d.request(c.stack, gosip.ACK, res.CSeq().SeqNo)
	if err != nil {
		c.log.Warn("no ACK possible", "err", err)
		return nil
	}
	if c.out.req != nil {
		copyCredentials(c.out.req, ack)
	}
	c.out.acks[d.RemoteTag] = ack
	return ack
}

// copyCredentials gives an ACK those of its INVITE (§13.2.2.4), which nobody may challenge (§22.1).
func copyCredentials(invite, ack *gosip.Request) {
	for _, name := range []string{"Authorization", "Proxy-Authorization"} {
		for _, h := range invite.GetHeaders(name) {
			ack.AppendHeader(gosip.NewHeader(name, h.Value()))
		}
	}
}

// releaseAck sends the ACK that was held back, if one is.
func (c *Call) releaseAck() {
	if c.out == nil || c.out.heldAck == nil {
		return
	}
	ack := c.out.heldAck
	c.out.heldAck = nil
	c.write(ack)
}

// Acknowledge sends the ACK that was held back ([DialRequest].HoldAck). In a resumed call that we dialled it sends the one which
// the process before may have owed; a phone that had it takes no notice. It does not wait.
func (c *Call) Acknowledge() error { return c.do(c.acknowledge) }

func (c *Call) acknowledge() error {
	if c.dialog.Role != UAC || c.state != confirmed {
		return c.stateError()
	}
	if c.out != nil {
		c.releaseAck()
		return nil
	}
	return c.acknowledgeAgain(c.dialog.InviteCSeq)
}

// acknowledgeAgain sends an ACK of which no copy is left, because the process before was to send it or has sent it.
func (c *Call) acknowledgeAgain(cseq uint32) error {
	ack, err := c.dialog.request(c.stack, gosip.ACK, cseq)
	if err != nil {
		return fmt.Errorf("acknowledge: %w", err)
	}
	c.write(ack)
	return nil
}

// answeredBefore takes a 2xx to an INVITE of the process before: the phone says it until it hears an ACK (§13.3.1.4).
func (c *Call) answeredBefore(res *gosip.Response) {
	if tag, _ := res.To().Params.Get("tag"); c.state == ended || tag != c.dialog.RemoteTag {
		return
	}
	if err := c.acknowledgeAgain(res.CSeq().SeqNo); err != nil {
		c.log.Warn("no ACK possible", "err", err)
	}
}

// write sends a request that gets no response. What is sent next comes behind it.
func (c *Call) write(req *gosip.Request) {
	ctx, cancel := context.WithTimeout(c.stack.root, connectTimeout)
	defer cancel()
	if err := c.stack.connect(ctx, c.trunk, req); err != nil {
		c.log.Info("request not sent", "method", string(req.Method), "err", err)
		return
	}
	if err := c.stack.transports.WriteMsg(req.Clone()); err != nil { // it is a copy: a transport may fill in what misses
		c.log.Info("request not sent", "method", string(req.Method), "err", err)
	}
}

// endFork acknowledges and hangs up one answer too many. Its dialog has had the INVITE, and perhaps PRACKs; but whichever of ours it had
// last, a later number is no repeated one (§12.2.2).
func (c *Call) endFork(res *gosip.Response, tag string) {
	d := c.dialog.clone()
	if c.out.replaced != nil {
		d = c.out.replaced.clone()
	}
	d.establish(res, tag)
	if ack := c.ackOf(&d, res); ack != nil {
		c.write(ack)
	}
	c.log.Info("a second phone answered")
	c.stack.counters.forks.Add(1)
	c.hangUpBeside(&d, max(res.CSeq().SeqNo, c.cseq, c.out.spent)+1, func() {})
}

// hangUpBeside ends a dialog that is not the call's, or not any more. The call may be over before it is: so challenges are answered
// with a copy of what the call knows. Then is called by the call when that is over.
func (c *Call) hangUpBeside(d *Dialog, cseq uint32, then func()) {
	bye, err := d.request(c.stack, gosip.BYE, cseq)
	if err != nil {
		c.log.Warn("no BYE possible", "err", err)
		return
	}
	var who Credentials
	if c.trunk != nil {
		who = c.trunk.Auth
	}
	c.auth.apply(bye, who)
	known := c.auth.clone()
	c.stack.calls.Go(func() {
		defer c.inbox.put(then)
		for range maxAsk {
			res, err := c.stack.exchange(c.trunk, bye)
			switch {
			case err != nil:
				c.log.Info("BYE to another phone is unanswered", "err", err)
				return
			case res.StatusCode != 401 && res.StatusCode != 407, !known.challenged(bye, res, who):
				c.log.Debug("BYE to another phone answered", "code", res.StatusCode)
				return
			}
			bye = known.again(bye, bye.CSeq().SeqNo+1, who)
		}
	})
}

// phoneRefused decides on a final refusal: try otherwise, or give up.
func (c *Call) phoneRefused(res *gosip.Response) {
	o := c.out
	if h := headerOf(res, "Retry-After", ""); h != nil && res.StatusCode == 503 && reasonOf(res).Protocol != "Q.850" { // else it is about the number
		if d := retryAfter(h.Value()); d > 0 {
			c.stack.neighbours.leave(o.trunk, o.targets[0].addr, d, errAsked)
		}
	}
	switch code := res.StatusCode; {
	case o.cancel:
		c.end()
	case (code == 401 || code == 407) && o.asked < maxAsk-1 && c.auth.challenged(o.req, res, o.trunk.Auth):
		o.asked++
		c.inviteAgain()
	case code == 422 && o.asked < maxAsk-1 && o.longer(res):
		o.asked++
		c.inviteAgain()
	case (code == 300 || code == 301 || code == 302) && c.redirected(res): // 305 names a proxy, 380 something else than this call
		c.inviteAgain()
	case code == 503 && len(o.targets) > 1: // RFC 3263 §4.3
		o.targets = o.targets[1:]
		c.inviteAgain()
	default:
		c.refused(code, res.Reason, res)
	}
}

// longer takes the session interval the other side wants at least (RFC 4028 §7.4).
func (o *outgoing) longer(res *gosip.Response) bool {
	least := minSE(res)
	if least <= o.minSE || least > longestSession {
		return false
	}
	o.minSE, o.session = least, max(o.session, least)
	return true
}

// inviteAgain sends a new INVITE for the same call: it is not yet a dialog (§8.1.3.4, §22.2).
func (c *Call) inviteAgain() {
	c.out.forget(&c.dialog)
	c.dialog.InviteCSeq, c.dialog.InviteBranch = c.nextCSeq(), newBranch()
	c.changed()
	c.invitePhone()
}

// redirected says that a 3xx names a number this call may go to.
func (c *Call) redirected(res *gosip.Response) bool {
	o := c.out
	contact := res.Contact()
	if contact == nil || o.request.Redirect == nil || o.redirects == maxRedirects {
		return false
	}
	number := userPart(&contact.Address)
	if number != "" {
		number = o.request.Redirect(number)
	}
	if number == "" {
		return false
	}
	o.redirects++
	c.log.Info("call redirected", "code", res.StatusCode, "number", number)
	target := gosip.Uri{Scheme: "sip", User: userOf(string(number)), Host: o.trunk.domain()}
	c.dialog.RemoteTarget = target.String()
	return true
}

// unanswered: a transaction ended without a final response.
func (c *Call) unanswered(branch string, err error) {
	o := c.out
	if c.state != dialling || branch != o.branch || o.final {
		return
	}
	o.final = true
	timeout := errors.Is(err, gosip.ErrTransactionTimeout)
	c.log.Info("INVITE unanswered", "err", err, "target", o.targets[0].addr)
	switch {
	case o.cancel:
		c.end()
	case len(o.targets) > 1:
		if silent(err) {
			c.stack.neighbours.leave(o.trunk, o.targets[0].addr, silentRest, errSilent)
		}
		o.targets = o.targets[1:]
		c.inviteAgain()
	case timeout:
		c.refused(408, "", nil)
	default:
		c.refused(503, "", nil)
	}
}

// silent says that nobody answers at a target. Whatever else fails may be our own fault: no route, a certificate, an end of ours.
func silent(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" && op.Timeout() {
		return true
	}
	return errors.Is(err, gosip.ErrTransactionTimeout) || errors.Is(err, syscall.ECONNREFUSED)
}

// refused ends a call that did not come about. res is nil when the refusal is our own.
func (c *Call) refused(code int, reason string, res *gosip.Response) {
	if reason = plainText(reason); reason == "" {
		reason = statusText(code)
	}
	e := Refused{Code: code, Reason: reason, Local: res == nil}
	if res != nil {
		e.Cause = reasonOf(res)
		if h := headerOf(res, "Retry-After", ""); h != nil {
			e.RetryAfter = retryAfter(h.Value())
		}
	}
	c.log.Info("call refused", "code", code, "cause", e.Cause.String(), "local", e.Local)
	if res != nil && (code == 401 || code == 407) {
		c.log.Warn("the trunk takes calls of those it has an account for: username or password is missing, or not what it expects",
			"code", code, "username_set", c.out.trunk.Auth.Username != "")
	}
	c.stack.counters.dialRefused(code)
	c.goodbye = Cause{"SIP", code, reason}
	c.emit(e)
	c.end()
}

// retryAfter reads "18000;duration=3600" and "120 (in a meeting)".
func retryAfter(v string) time.Duration {
	n := strings.IndexFunc(v, func(r rune) bool { return r < '0' || r > '9' })
	if n >= 0 {
		v = v[:n]
	}
	seconds, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// giveUpDialling ends a call we dialled and that is not up: CANCEL, when a response has come (§9.1).
func (c *Call) giveUpDialling(cause Cause) {
	o := c.out
	if o.cancel {
		return
	}
	o.cancel, o.silence = true, time.Time{}
	c.goodbye = cause
	switch {
	case !o.sent && o.resumed: // CANCEL needs the transaction that died with the process before us
		o.sent = true
		o.giveUp = time.Now().Add(cancelWait)
		c.locate()
	case !o.sent, o.targets == nil && !o.resumed:
		c.end()
	case o.answered:
		c.sendCancel()
	default:
		o.giveUp = time.Now().Add(cancelWait)
	}
}

// sendCancel ends the INVITE on its way; the refusal it brings, or an answer that crossed it, decides what comes next.
func (c *Call) sendCancel() {
	o := c.out
	if o.final || o.cancelled {
		return
	}
	o.cancelled = true
	o.giveUp = time.Now().Add(cancelWait)
	cancel := cancelOf(o.req)
	if v := c.goodbye.header(); v != "" {
		cancel.AppendHeader(gosip.NewHeader("Reason", v))
	}
	c.stack.calls.Go(func() {
		if _, err := c.stack.exchange(c.out.trunk, cancel); err != nil {
			c.log.Info("CANCEL unanswered", "err", err)
		}
	})
}

// cancelOf is the CANCEL of an INVITE that was sent (RFC 3261 §9.1).
func cancelOf(invite *gosip.Request) *gosip.Request {
	cancel := gosip.NewRequest(gosip.CANCEL, *invite.Recipient.Clone())
	for _, name := range []string{"Via", "Route", "From", "To", "Call-ID"} {
		gosip.CopyHeaders(name, invite, cancel)
	}
	maxForwards := gosip.MaxForwardsHeader(70)
	cancel.AppendHeader(&maxForwards)
	cancel.AppendHeader(&gosip.CSeqHeader{SeqNo: invite.CSeq().SeqNo, MethodName: gosip.CANCEL})
	cancel.SetBody(nil)
	cancel.SetTransport(invite.Transport())
	cancel.SetDestination(invite.Destination())
	cancel.Laddr = invite.Laddr
	return cancel
}

// tickDial: nobody answers, or nothing comes of a CANCEL.
func (c *Call) tickDial(now time.Time) {
	o := c.out
	if c.state != dialling {
		return
	}
	over := !o.giveUp.IsZero() && !now.Before(o.giveUp)
	silent := !o.silence.IsZero() && !now.Before(o.silence)
	switch {
	case !over && !silent:
		return
	case o.cancel:
		if over {
			c.end()
		}
		return
	}
	c.log.Info("nobody answers")
	c.stack.counters.dialRefused(408)
	c.emit(Refused{Code: 408, Reason: statusText(408), Local: true})
	c.giveUpDialling(Cause{"SIP", 408, "No answer"})
}
