package sip

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// serve takes a request inside the call's dialog and stays until sipgo may let its transaction go.
func (c *Call) serve(req *gosip.Request, tx *gosip.ServerTx) {
	t := newTransaction(req, tx)
	if !c.inbox.put(func() { c.handle(t) }) {
		c.stack.respond(req, tx, refuse(481, statusText(481)).because(whyEnding))
		return
	}
	c.attend(t, tx)
}

// attend brings ACKs to the call until sipgo may let a transaction go.
func (c *Call) attend(t *transaction, tx *gosip.ServerTx) {
	for {
		select {
		case ack := <-tx.Acks():
			c.inbox.put(func() { c.handleAck(ack) })
		case <-t.released:
			return
		case <-tx.Done():
			return
		case <-c.done:
			return
		}
	}
}

// handle answers a request inside the dialog. INVITE keeps its transaction until the ACK.
func (c *Call) handle(t *transaction) {
	keep := false
	defer func() {
		if !keep {
			t.release()
		}
	}()
	if r := c.checkInDialog(t.req); r != nil {
		c.send(t, r)
		return
	}
	if c.state == dialling {
		c.handleEarly(t)
		return
	}
	if source, err := netip.ParseAddrPort(t.req.Source()); err == nil {
		c.dialog.Remote = source
	}
	c.publish()
	switch t.req.Method {
	case gosip.BYE:
		c.handleBye(t)
	case gosip.INVITE:
		keep = c.handleReinvite(t)
	case gosip.UPDATE:
		c.handleUpdate(t)
	case gosip.PRACK:
		c.handlePrack(t)
	case gosip.INFO:
		c.handleInfo(t)
	case gosip.REFER:
		keep = c.handleRefer(t)
	case gosip.NOTIFY:
		c.handleNotify(t)
	case gosip.OPTIONS:
		c.send(t, capabilities(200))
	default:
		c.send(t, refuse(405, "Method Not Allowed", allowHeader()))
	}
}

// checkInDialog matches the remote tag and the order of requests (RFC 3261 §12.2.2).
func (c *Call) checkInDialog(req *gosip.Request) *refusal {
	tag, _ := req.From().Params.Get("tag")
	if c.state == dialling {
		return c.out.checkEarly(tag, req)
	}
	if c.state == ended || tag != c.dialog.RemoteTag {
		return refuse(481, statusText(481)).because(whyNoDialog)
	}
	seq := req.CSeq().SeqNo
	// What a re-INVITE or UPDATE changes is saved before its answer leaves: who dies in between is asked again (§17.1), and the same
	// offer gets the same answer.
	again := c.unheard && seq == c.dialog.RemoteCSeq && (req.IsInvite() || req.Method == gosip.UPDATE)
	if !follows(seq, c.dialog.RemoteCSeq, c.dialog.RemoteNumbered) && !again {
		return refuse(500, "Out of order")
	}
	c.dialog.RemoteCSeq, c.dialog.RemoteNumbered, c.unheard = seq, true, false
	return nil
}

// follows says that a request with this sequence number may come behind one with that, if there was one: who was called may begin with
// any number, also with 0 (§8.1.1.5).
func follows(seq, last uint32, numbered bool) bool { return seq > last || !numbered }

func (c *Call) handleBye(t *transaction) {
	c.send(t, refuse(200, statusText(200)))
	if c.state == ending {
		c.end() // both hung up at once
		return
	}
	c.goodbye = reasonOf(t.req)
	if c.state == proceeding || c.state == accepted {
		c.emit(Cancelled{c.goodbye}) // §15: BYE ends an early dialog, too; the INVITE gets 487
	} else {
		c.emit(Bye{c.goodbye})
	}
	c.end()
}

// handleReinvite says whether the transaction must be kept for the ACK.
func (c *Call) handleReinvite(t *transaction) bool {
	switch c.state {
	case dialling, proceeding, accepted: // §14.2: the first INVITE is not answered yet
		c.send(t, notNow(whyUnanswered))
		return false
	case ending:
		c.send(t, refuse(481, statusText(481)).because(whyEnding))
		return false
	}
	if c.offering || c.answer != nil && c.answer.offer { // §14.2: an offer of ours waits for its answer
		c.send(t, refuse(491, statusText(491)).because(whyOurOffer))
		return false
	}
	if r := tooBrief(t.req); r != nil {
		c.send(t, r)
		return false
	}
	m := c.media.Load()
	if m == nil { // resumed without media: we cannot say where we hear
		c.send(t, notNow(whyNoMedia))
		return false
	}
	body, n, r := c.negotiate(t.req.Body(), c.local(m.LocalAddr().Port()))
	if r != nil {
		c.send(t, r) // the session goes on as it was (§14.2)
		return false
	}
	before, refresh := c.dialog.clone(), c.nextRefresh
	m.state(&before.Media)
	c.refreshTarget(t.req)
	c.refreshIdentity(t.req)
	if len(t.req.Body()) > 0 {
		c.renegotiated(m, body, t.req.Body(), n)
	} else {
		c.dialog.Media.LocalSDP, c.dialog.Media.SDPVersion = string(body), n.SDPVersion
	}
	res := c.okSDP(t, body)
	c.saved()
	if !c.respondSDP(t, res) {
		c.undo(before, refresh)
		return false
	}
	return true
}

// undo takes a re-INVITE back that was cancelled while what it changes was being saved: of one that is refused nothing holds (§14.2).
func (c *Call) undo(before Dialog, refresh time.Time) {
	now := c.dialog.Media
	c.dialog.Media, c.dialog.RemoteTarget, c.dialog.Session = before.Media, before.RemoteTarget, before.Session
	c.dialog.RemoteURI = before.RemoteURI
	c.nextRefresh = refresh
	if m := c.media.Load(); m != nil {
		m.apply(c.dialog.Media.negotiated(), c.learnable(), time.Now())
	}
	if now.Format != before.Media.Format || now.Direction != before.Media.Direction {
		c.emit(MediaChanged{before.Media.Format})
	}
	c.noticeHold()
	c.showAs(before.Info.Caller)
	c.changed()
}

// handleUpdate answers UPDATE (RFC 3311), with or without an offer.
func (c *Call) handleUpdate(t *transaction) {
	m := c.media.Load()
	body := t.req.Body()
	if r := tooBrief(t.req); r != nil {
		c.send(t, r)
		return
	}
	switch {
	case len(body) == 0:
		c.refreshTarget(t.req)
		c.refreshIdentity(t.req)
		c.send2xx(t, nil)
		return
	case c.offering, c.answer != nil && c.answer.offer, c.rel.waits() && c.rel.offer: // §5.2: our own offer waits for its answer
		c.send(t, refuse(491, statusText(491)).because(whyOurOffer))
		return
	case c.state < answered && !c.rel.settled: // §5.2: the offer of the INVITE is not answered yet
		c.send(t, notNow(whyUnanswered))
		return
	case m == nil:
		c.send(t, notNow(whyNoMedia))
		return
	}
	own, r := c.answerOffer(m, body)
	if r != nil {
		c.send(t, r)
		return
	}
	c.refreshTarget(t.req)
	c.refreshIdentity(t.req)
	c.send2xx(t, own)
}

// answerOffer answers an offer that is not an INVITE's. Before the call is answered, that leaves the INVITE nothing to describe.
func (c *Call) answerOffer(m *Media, offer []byte) ([]byte, *refusal) {
	own, n, r := c.negotiate(offer, c.local(m.LocalAddr().Port()))
	if r != nil {
		return nil, r
	}
	c.agreed(m, own, offer, n)
	return own, nil
}

// agreed makes the answer to such an offer effective.
func (c *Call) agreed(m *Media, own, offer []byte, n *Negotiated) {
	c.renegotiated(m, own, offer, n)
	if c.state < answered {
		c.prepared, c.rel.agreed = own, true
	}
}

// changed shows the new dialog and asks for it to be saved, before the phone can know that anything changed.
func (c *Call) changed() {
	c.publish()
	c.emit(DialogChanged{})
}

// saved is changed that gives the application the time to save, so that who goes on with the call after a crash knows what the phone
// was told. A database that does not answer must not hold the call up for long.
func (c *Call) saved() {
	limit := c.stack.config.SaveFirst
	if limit <= 0 {
		c.changed()
		return
	}
	c.publish()
	saved := make(chan struct{})
	c.emit(DialogChanged{Saved: saved})
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-saved:
	case <-late.C:
		c.log.Debug("phone is answered before the change is saved")
	case <-c.stack.root.Done():
	}
}

// send2xx answers an UPDATE, or a PRACK with an offer. What it has changed is saved first.
func (c *Call) send2xx(t *transaction, body []byte) {
	res := c.stack.response(t.req, 200, statusText(200), gosip.NewHeader("Contact", c.dialog.Contact), allowHeader(), supportedHeader())
	if t.req.Method == gosip.UPDATE && (c.state == confirmed || c.state == answered) { // the ACK of the INVITE may come behind
		for _, h := range c.timeSession(t.req) {
			res.AppendHeader(h)
		}
	}
	c.saved()
	if body != nil {
		res.AppendHeader(gosip.NewHeader("Content-Type", sdpType))
		res.SetBody(body)
	}
	if err := t.tx.Respond(res); err != nil {
		c.log.Debug("response not sent", "code", 200, "err", err)
	}
}

// refreshTarget takes the phone's new Contact, of a request (§12.2.2) or of a 2xx to one of ours (§12.2.1.2).
func (c *Call) refreshTarget(m interface{ Contact() *gosip.ContactHeader }) {
	if h := m.Contact(); h != nil && h.Address.Host != "" {
		c.dialog.RemoteTarget = h.Address.String()
	}
}

// renegotiated makes a later offer effective and tells what changed.
func (c *Call) renegotiated(m *Media, own, theirs []byte, n *Negotiated) {
	before := c.dialog.Media.Format
	direction := c.dialog.Media.Direction
	c.take(m, own, theirs, n)
	c.keyWay = keyWay{}
	if n.Format != before || n.Direction != direction {
		c.emit(MediaChanged{n.Format})
	}
	c.noticeHold()
}

// noticeHold: a phone that does not want to hear us has put us on hold (RFC 3264 §8.4). Who has not been answered is not on hold.
func (c *Call) noticeHold() {
	if c.state < answered {
		return
	}
	on := c.dialog.Media.RemoteSilent || !c.dialog.Media.Direction.Sends()
	if on != c.hold {
		c.hold = on
		c.emit(Hold{on})
	}
}

// reasonOf reads the Reason header (RFC 3326), the first value of several.
func reasonOf(m gosip.Message) Cause {
	h := headerOf(m, "Reason", "")
	if h == nil {
		return Cause{}
	}
	var c Cause
	for i, part := range strings.Split(firstOf(h.Value()), ";") {
		part = strings.TrimSpace(part)
		if i == 0 {
			c.Protocol = plainToken(part)
			continue
		}
		switch name, value, _ := strings.Cut(part, "="); strings.ToLower(strings.TrimSpace(name)) {
		case "cause":
			c.Code, _ = strconv.Atoi(strings.TrimSpace(value))
		case "text":
			c.Text = plainText(value)
		}
	}
	return c
}

// sendBye ends a confirmed call.
func (c *Call) sendBye(cause Cause) {
	if c.state == ending || c.state == ended {
		return
	}
	c.releaseAck() // §15: BYE only in a dialog that the phone holds for confirmed
	c.state, c.goodbye = ending, cause
	c.nextRTCP = time.Time{}
	c.answer.releaseIfAny()
	c.answer = nil
	req, err := c.request(gosip.BYE)
	if err != nil {
		c.log.Warn("no BYE possible", "err", err)
		c.end()
		return
	}
	if v := cause.header(); v != "" {
		req.AppendHeader(gosip.NewHeader("Reason", v))
	}
	c.stack.calls.Go(func() {
		code, err := c.transact(req)
		c.inbox.put(func() {
			if err != nil {
				c.log.Info("BYE unanswered", "err", err)
			} else {
				c.log.Debug("BYE answered", "code", code)
			}
			c.end()
		})
	})
}

// transact sends a request inside the dialog and waits for its final answer's status.
func (c *Call) transact(req *gosip.Request) (int, error) {
	res, err := c.transactFor(req)
	if err != nil {
		return 0, err
	}
	return res.StatusCode, nil
}

// transactFor is transact with the whole answer. Challenges are answered (§22).
func (c *Call) transactFor(req *gosip.Request) (*gosip.Response, error) {
	for sent := 1; ; sent++ {
		res, err := c.stack.exchange(c.trunk, req)
		if err != nil {
			return nil, err
		}
		switch res.StatusCode {
		case 401, 407, 500:
		default:
			c.inbox.put(c.accepted)
			return res, nil
		}
		if sent == maxAsk {
			return res, nil
		}
		next := make(chan *gosip.Request, 1)
		if !c.inbox.put(func() {
			var again *gosip.Request
			defer func() { next <- again }()
			again = c.retry(req, res)
		}) {
			return res, nil
		}
		select {
		case req = <-next:
		case <-c.done:
			return res, nil
		}
		if req == nil {
			return res, nil
		}
	}
}

// retry is req again in a way that may suit who answered res; nil if there is none.
func (c *Call) retry(req *gosip.Request, res *gosip.Response) *gosip.Request {
	if res.StatusCode == 500 && res.GetHeader("Retry-After") == nil { // with it: not now (§14.2)
		return c.leapOver(req)
	}
	return c.authorise(req, res)
}

// accepted: nobody minds our credentials and our sequence numbers.
func (c *Call) accepted() {
	c.auth.accepted()
	c.leap = false
}

// authorise is req again with an answer to the challenge in res; nil if we have none.
func (c *Call) authorise(req *gosip.Request, res *gosip.Response) *gosip.Request {
	if c.trunk == nil || !c.auth.challenged(req, res, c.trunk.Auth) {
		return nil
	}
	return c.auth.again(req, c.nextCSeq(), c.trunk.Auth)
}

// request builds a request inside the dialog (§12.2.1.1).
func (c *Call) request(method gosip.RequestMethod) (*gosip.Request, error) {
	req, err := c.dialog.request(c.stack, method, c.nextCSeq())
	if err == nil && c.trunk != nil {
		c.auth.apply(req, c.trunk.Auth)
	}
	return req, err
}

// nextCSeq takes a sequence number, and reserves more long before the last one is used: the row is written some time later.
func (c *Call) nextCSeq() uint32 {
	c.cseq++
	if c.cseq+cseqBlock/2 > c.dialog.LocalCSeq {
		c.dialog.LocalCSeq += cseqBlock
		c.changed()
	}
	return c.cseq
}

// cseqLeap is more than a process uses while its database is away.
const cseqLeap = 10_000

// leapOver is req again, far ahead, after the phone refused one of a resumed call with 500: it may have heard higher numbers from the
// process before (RFC 3261 §12.2.2). Once is enough, whatever the phone meant.
func (c *Call) leapOver(req *gosip.Request) *gosip.Request {
	if !c.leap {
		return nil
	}
	c.leap = false
	c.cseq += cseqLeap
	c.dialog.LocalCSeq = max(c.dialog.LocalCSeq, c.cseq)
	var who Credentials
	if c.trunk != nil {
		who = c.trunk.Auth
	}
	return c.auth.again(req, c.nextCSeq(), who)
}

// request builds a request inside dialog d with this sequence number.
func (d *Dialog) request(s *Stack, method gosip.RequestMethod, cseq uint32) (*gosip.Request, error) {
	var target gosip.Uri
	if err := gosip.ParseUri(d.RemoteTarget, &target); err != nil {
		return nil, fmt.Errorf("remote target: %w", err)
	}
	target.Headers = nil // §19.1.1: not in a Request-URI
	routes, target, err := d.routes(target)
	if err != nil {
		return nil, err
	}
	req := gosip.NewRequest(method, target)
	host, port := s.sentBy(s.trunkNamed(d.Info.Trunk), d.LocalSocket)
	via := &gosip.ViaHeader{
		ProtocolName: "SIP", ProtocolVersion: "2.0", Transport: strings.ToUpper(string(d.Transport)), Host: host, Port: port,
	}
	via.Params.Add("branch", newBranch())
	via.Params.Add("rport", "") // RFC 3581
	req.AppendHeader(via)
	maxForwards := gosip.MaxForwardsHeader(70)
	callID := gosip.CallIDHeader(d.CallID)
	for _, r := range routes {
		req.AppendHeader(gosip.NewHeader("Route", r))
	}
	req.AppendHeader(&maxForwards)
	req.AppendHeader(gosip.NewHeader("From", withTag(d.LocalURI, d.LocalTag)))
	req.AppendHeader(gosip.NewHeader("To", withTag(d.RemoteURI, d.RemoteTag)))
	req.AppendHeader(&callID)
	req.AppendHeader(&gosip.CSeqHeader{SeqNo: cseq, MethodName: method})
	req.AppendHeader(gosip.NewHeader("Contact", d.Contact))
	req.AppendHeader(gosip.NewHeader("User-Agent", s.config.UserAgent))
	req.SetBody(nil)
	req.SetTransport(strings.ToUpper(string(d.Transport)))
	d.address(s, req, target, routes)
	return req, nil
}

func withTag(address, tag string) string {
	if tag == "" { // RFC 2543 phones
		return address
	}
	return address + ";tag=" + tag
}

// routes applies the route set. A first router without lr is a strict one: §12.2.1.1 puts it into the Request-URI and
// the target at the end.
func (d *Dialog) routes(target gosip.Uri) ([]string, gosip.Uri, error) {
	if len(d.RouteSet) == 0 {
		return nil, target, nil
	}
	top, err := routeURI(d.RouteSet[0])
	if err != nil {
		return nil, target, err
	}
	if top.UriParams.Has("lr") {
		return d.RouteSet, target, nil
	}
	rest := append([]string{}, d.RouteSet[1:]...)
	return append(rest, "<"+target.String()+">"), top, nil
}

func routeURI(route string) (gosip.Uri, error) {
	var uri gosip.Uri
	var params gosip.HeaderParams
	if _, err := gosip.ParseAddressValue(route, &uri, &params); err != nil {
		return uri, fmt.Errorf("route: %w", err)
	}
	return uri, nil
}

// address says over which socket, and to where, a request leaves: from the one the call came to; to the first route or
// the target. Over TCP the connection the phone uses is taken while it lives. A target that cannot be reached from here is
// a phone behind NAT: it is where it was last heard from.
func (d *Dialog) address(s *Stack, req *gosip.Request, target gosip.Uri, routes []string) {
	next := target
	if len(routes) > 0 {
		if uri, err := routeURI(routes[0]); err == nil && uri.UriParams.Has("lr") {
			next = uri
		}
	}
	port := cmpPort(uint16(next.Port), d.Transport)
	req.SetSource(d.Remote.String()) // where the phone is, should the name lead nowhere ([Stack.destination])
	req.SetDestination(strings.Trim(next.Host, "[]") + ":" + strconv.Itoa(int(port)))
	if a, err := netip.ParseAddr(strings.Trim(next.Host, "[]")); err == nil {
		req.SetDestination(netip.AddrPortFrom(a, port).String())
		if d.Remote.IsValid() && d.behindNAT(a) {
			req.SetDestination(d.Remote.String())
		}
	}
	if d.Transport == UDP {
		req.Laddr = gosip.Addr{IP: d.LocalSocket.Addr().AsSlice(), Port: int(d.LocalSocket.Port())}
		return
	}
	if d.Remote.IsValid() {
		if conn, err := s.transports.GetConnection(string(d.Transport), d.Remote.String()); err == nil {
			_, _ = conn.TryClose() // only asked whether it lives
			req.SetDestination(d.Remote.String())
		}
	}
}

// behindNAT says that an address the phone gave is one of a network behind the one it is heard from: a private address
// heard from a public one, and on a symmetric trunk, which is for such phones, from another private one, too.
func (d *Dialog) behindNAT(a netip.Addr) bool {
	a, heard := a.Unmap(), d.Remote.Addr().Unmap()
	switch {
	case a == heard || !unroutable(a) || heard.IsLoopback():
		return false
	}
	return d.Media.Symmetric || !unroutable(heard)
}

// sharedSpace is what carriers use between their NAT and their customers (RFC 6598).
var sharedSpace = netip.MustParsePrefix("100.64.0.0/10")

func unroutable(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLinkLocalUnicast() || sharedSpace.Contains(a)
}
