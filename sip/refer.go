package sip

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// sipfrag is what NOTIFYs about a REFER carry (RFC 3515 §2.4.5, RFC 3420): a status line.
const sipfrag = "message/sipfrag"

// referPatience is how long a subscription to what comes of a REFER lasts: as long as a phone may ring.
const referPatience = ringTimeout

// referral is a REFER of the phone, and the subscription it has made.
type referral struct {
	t      *transaction // nil once it is answered
	event  string       // value of the Event header
	silent bool         // RFC 4488: it wants no NOTIFY
	until  time.Time    // the subscription ends
	notes  []int        // status codes to be told; one NOTIFY at a time keeps them in order
	busy   bool         // one is on its way
	over   bool         // the last one is told, or waits in notes
}

// Wish is a REFER of the phone that was accepted, whose outcome it has not been told.
type Wish struct {
	Event string    `json:"event"` // value of the Event header
	Until time.Time `json:"until"` // the subscription ends
}

// Transfer is a REFER of ours whose outcome is not known yet.
type Transfer struct {
	CSeq   uint32    `json:"cseq"`
	Branch string    `json:"branch,omitempty"` // until the phone has answered it, or said something of it
	To     Number    `json:"to,omitempty"`
	Until  time.Time `json:"until"`
	Code   int       `json:"code,omitempty"` // told last
}

// AcceptTransfer tells the phone that its wish ([TransferWanted]) is being followed; [Call.TransferOver] says how it went.
func (c *Call) AcceptTransfer() error { return c.do(c.acceptTransfer) }

// RefuseTransfer refuses the phone's wish; the call goes on as it was.
func (c *Call) RefuseTransfer(code int) error {
	return c.do(func() error {
		r := c.referral
		if r == nil || r.t == nil {
			return c.stateError()
		}
		c.answerRefer(refuse(code, statusText(code)))
		c.referral = nil
		return nil
	})
}

// TransferProgress tells the phone what who is called in its place says before the answer (1xx).
func (c *Call) TransferProgress(code int) error {
	return c.do(func() error {
		r := c.referral
		if r == nil || r.t != nil || r.over || code < 100 || code > 199 {
			return c.stateError()
		}
		c.note(code)
		return nil
	})
}

// TransferOver tells the phone what has come of its wish: 200, the status that a call there would have got, or 100 if nobody knows and
// no more will be said.
func (c *Call) TransferOver(code int) error {
	return c.do(func() error {
		r := c.referral
		if r == nil || r.t != nil || r.over {
			return c.stateError()
		}
		r.over = true
		c.note(code)
		return nil
	})
}

// PrepareTransfer makes ready to ask the phone to call a number of its trunk instead of us (RFC 3515, RFC 5589 §6: a blind
// transfer): [Call.Dialog] names it, and must be saved before [Call.SendTransfer].
func (c *Call) PrepareTransfer(to Number) error {
	return c.do(func() error { return c.prepareTransfer(to) })
}

// SendTransfer asks the phone. What comes of it is told by [Transferring]; the call goes on until somebody hangs up. A call that
// is resumed before the phone was heard to answer asks again, in [Call.Refresh].
func (c *Call) SendTransfer() error { return c.do(c.sendTransfer) }

// handleRefer takes the phone's wish to be elsewhere. Only addresses of ours are considered, unless the trunk's policy says more:
// whoever pays for calls to others has not ordered them. It says whether the transaction must be kept for the application's answer.
func (c *Call) handleRefer(t *transaction) bool {
	wish, r := c.referTarget(t.req)
	switch {
	case c.state == ending:
		r = refuse(481, statusText(481)).because(whyEnding)
	case c.state < answered:
		r = notNow(whyUnanswered)
	case c.referral != nil && !c.referral.over:
		r = refuse(491, statusText(491)).because("another REFER is not done")
	}
	if r != nil {
		c.send(t, r)
		return false
	}
	c.refreshTarget(t.req) // RFC 3515 §2.2, table 2: Contact as in INVITE
	event := "refer"
	if c.dialog.Wished { // §2.4.6: the first needs no id
		event += ";id=" + strconv.FormatUint(uint64(t.req.CSeq().SeqNo), 10)
	}
	c.dialog.Wished = true
	c.changed()
	c.referral = &referral{t: t, event: event, silent: silentRefer(t.req), until: time.Now().Add(referPatience)}
	c.emit(wish)
	return true
}

// referTarget is where a REFER wants the phone to be, or why it cannot be followed.
func (c *Call) referTarget(req *gosip.Request) (TransferWanted, *refusal) {
	var wish TransferWanted
	targets := append(req.GetHeaders("Refer-To"), req.GetHeaders("r")...)
	if len(targets) != 1 { // §2.4.2
		return wish, refuse(400, "One Refer-To wanted")
	}
	uri, err := routeURI(targets[0].Value())
	if err != nil {
		return wish, refuse(400, "Bad Refer-To")
	}
	place, bad := placeIn(&uri)
	if bad != nil {
		return wish, bad
	}
	wish.To = userPart(&uri)
	method, named := uri.UriParams.Get("method")
	if wish.To == "" || named && !strings.EqualFold(method, "INVITE") || !c.considered(&uri, place, &wish) {
		c.stack.counters.transfersRefused.Add(1)
		c.log.Info("phone may not be transferred there", "to", wish.To)
		return wish, refuse(403, statusText(403))
	}
	if h := headerOf(req, "Referred-By", "b"); h != nil { // RFC 3892 §2.2: it goes on to who is called
		if by, err := routeURI(h.Value()); err == nil {
			by.Headers = nil
			wish.ReferredBy = "<" + by.String() + ">"
		}
	}
	return wish, nil
}

// placeIn reads the dialog that an address of a REFER names (RFC 3891 §4); nil if it names none.
func placeIn(uri *gosip.Uri) (*replaces, *refusal) {
	var named []string
	for _, h := range uri.Headers {
		value, err := url.PathUnescape(h.V)
		switch {
		case err != nil:
			return nil, refuse(400, "Bad Refer-To")
		case strings.EqualFold(h.K, "Replaces"):
			named = append(named, value)
		case !strings.EqualFold(h.K, "Require"): // nobody else writes our requests (RFC 3261 §19.1.5)
			return nil, refuse(403, statusText(403))
		}
	}
	return parseReplaces(named)
}

// considered says whether the application may be asked about an address, and completes the phone's wish.
func (c *Call) considered(uri *gosip.Uri, place *replaces, wish *TransferWanted) bool {
	policy := TransfersOwn
	if c.trunk != nil {
		policy = c.trunk.Transfers
	}
	if policy == TransfersNone {
		return false
	}
	if place != nil {
		wish.Place = c.stack.placeOf(place, c)
		if wish.Place != nil {
			return c.ours(uri)
		}
		wish.Replaces = place.String()
	}
	wish.Outside = policy == TransfersTrunk && c.beyond(uri)
	return wish.Outside || place == nil && c.ours(uri)
}

// placeOf is the call of a dialog whose place by may have: another one of the same trunk that is up. nil = there is none.
func (s *Stack) placeOf(place *replaces, by *Call) *Call {
	s.mu.Lock()
	other := s.byID[dialogID{place.callID, place.toTag}]
	s.mu.Unlock()
	if other == nil || other == by || other.info.Trunk != by.info.Trunk || place.earlyOnly {
		return nil
	}
	if d := other.snapshot.Load(); !d.Confirmed || d.RemoteTag != place.fromTag {
		return nil
	}
	return other
}

// beyond says that an address is behind this phone's trunk, and calls to it go there.
func (c *Call) beyond(uri *gosip.Uri) bool {
	host, _ := hostAndPort(c.trunk.Proxy)
	if host == "" {
		return false
	}
	switch strings.ToLower(uri.Scheme) {
	case "tel":
		return true
	case "sip", "sips":
	default:
		return false
	}
	named := strings.Trim(uri.Host, "[]")
	if strings.EqualFold(named, host) || strings.EqualFold(named, strings.Trim(c.trunk.domain(), "[]")) {
		return true
	}
	a, err := netip.ParseAddr(named) // of a phone, say
	advertised, _ := c.stack.sentBy(c.trunk, c.dialog.LocalSocket)
	return err == nil && c.trunk.contains(a) && a != c.dialog.LocalSocket.Addr() && named != advertised
}

// ours says that an address is one at which this phone's calls reach us.
func (c *Call) ours(uri *gosip.Uri) bool {
	switch strings.ToLower(uri.Scheme) {
	case "tel":
		return true
	case "sip", "sips":
	default:
		return false
	}
	advertised, _ := c.stack.sentBy(c.trunk, c.dialog.LocalSocket)
	known := []string{advertised, c.dialog.LocalSocket.Addr().String()}
	if local, err := routeURI(c.dialog.LocalURI); err == nil {
		known = append(known, local.Host)
	}
	if c.trunk != nil {
		known = append(known, c.trunk.domain())
	}
	host := strings.Trim(uri.Host, "[]")
	for _, k := range known {
		if k = strings.Trim(k, "[]"); k != "" && strings.EqualFold(k, host) {
			return true
		}
	}
	return false
}

func silentRefer(m gosip.Message) bool {
	h := headerOf(m, "Refer-Sub", "")
	return h != nil && strings.EqualFold(strings.TrimSpace(h.Value()), "false")
}

func (c *Call) acceptTransfer() error {
	r := c.referral
	if r == nil || r.t == nil {
		return c.stateError()
	}
	accepted := refuse(202, statusText(202), gosip.NewHeader("Contact", c.dialog.Contact))
	if r.silent {
		accepted.headers = append(accepted.headers, gosip.NewHeader("Refer-Sub", "false")) // RFC 4488 §4
	}
	if !r.silent {
		c.dialog.Wish = Wish{r.event, r.until}
		c.saved() // the phone is to hear how it went, whoever knows that
	}
	c.answerRefer(accepted)
	c.note(100)
	return nil
}

// resumeReferral takes up the subscription of the process before: what came of the phone's wish is told by [Call.TransferOver].
func (c *Call) resumeReferral() {
	if w := c.dialog.Wish; w.Event != "" && time.Now().Before(w.Until) {
		c.referral = &referral{event: w.Event, until: w.Until}
	}
}

// answerRefer ends the transaction of the phone's REFER.
func (c *Call) answerRefer(a *refusal) {
	t := c.referral.t
	c.referral.t = nil
	c.send(t, a)
	t.release()
}

// note tells the phone how its transfer is getting on, after what it was told before.
func (c *Call) note(code int) {
	if r := c.referral; !r.silent {
		r.notes = append(r.notes, code)
		c.sendNote()
	}
}

func (c *Call) sendNote() {
	r := c.referral
	if r == nil || r.busy || len(r.notes) == 0 {
		return
	}
	code := r.notes[0]
	r.notes = r.notes[1:]
	req, err := c.request(gosip.NOTIFY)
	if err != nil {
		c.log.Warn("no NOTIFY possible", "err", err)
		return
	}
	left := max(1, int(time.Until(r.until).Seconds()))
	state := "active;expires=" + strconv.Itoa(left)
	last := r.over && len(r.notes) == 0
	if last {
		state = "terminated;reason=noresource"
	}
	req.AppendHeader(gosip.NewHeader("Event", r.event))
	req.AppendHeader(gosip.NewHeader("Subscription-State", state))
	req.AppendHeader(gosip.NewHeader("Content-Type", sipfrag+";version=2.0"))
	req.SetBody(fmt.Appendf(nil, "SIP/2.0 %d %s\r\n", code, statusText(code)))
	r.busy = true
	c.stack.calls.Go(func() {
		code, err := c.transact(req)
		c.inbox.put(func() {
			r.busy = false
			if last && c.dialog.Wish.Event == r.event {
				c.dialog.Wish = Wish{}
				c.changed()
			}
			if err != nil || code >= 300 { // RFC 6665 §4.2.2: it does not want to know more
				c.log.Info("NOTIFY not taken", "code", code, "err", err)
				r.notes = nil
				return
			}
			if r == c.referral {
				c.sendNote()
			}
		})
	})
}

func (c *Call) prepareTransfer(to Number) error {
	if c.state != confirmed || c.dialog.Transfer.CSeq != 0 {
		return c.stateError()
	}
	if at := c.numbersAt(); to == "" || at.Host == "" {
		return ErrNoTrunk
	}
	c.dialog.Transfer = Transfer{CSeq: c.nextCSeq(), Branch: newBranch(), To: to, Until: time.Now().Add(referPatience)}
	c.changed()
	return nil
}

// sendTransfer sends our REFER. One that cannot be sent is not under way.
func (c *Call) sendTransfer() error {
	req, err := c.referRequest()
	if err != nil {
		if c.dialog.Transfer.Branch != "" {
			c.dialog.Transfer = Transfer{}
			c.changed()
		}
		return err
	}
	c.referring = true
	c.stack.calls.Go(func() {
		res, err := c.transactFor(req)
		c.inbox.put(func() { c.transferAnswered(res, err) })
	})
	return nil
}

// transferAgain sends the REFER of the process before, which may have died before it could, and then asks the phone what else
// there is to ask: later requests have later numbers. A phone that has had it answers as it did then (RFC 3261 §17.2.2), or
// that the number is old. Challenges are not answered: with another number it would be another transfer.
func (c *Call) transferAgain() error {
	c.unsure = false
	req, err := c.referRequest()
	if err != nil {
		return err
	}
	c.stack.calls.Go(func() {
		res, err := c.stack.exchange(c.trunk, req)
		c.inbox.put(func() {
			if err == nil && (res.StatusCode == 500 || res.StatusCode == 401 || res.StatusCode == 407) {
				c.transferTaken()
			} else {
				c.transferAnswered(res, err)
			}
			_ = c.refresh() // a call that ended meanwhile needs none
		})
	})
	return nil
}

// referRequest builds our REFER from the dialog, the same again after a restart.
func (c *Call) referRequest() (*gosip.Request, error) {
	d := &c.dialog
	if c.state != confirmed || d.Transfer.Branch == "" {
		return nil, c.stateError()
	}
	req, err := d.request(c.stack, gosip.REFER, d.Transfer.CSeq)
	if err != nil {
		return nil, err
	}
	req.Via().Params.Add("branch", d.Transfer.Branch)
	target := c.numbersAt()
	target.User = userOf(string(d.Transfer.To))
	req.AppendHeader(gosip.NewHeader("Refer-To", "<"+target.String()+">"))
	req.AppendHeader(gosip.NewHeader("Referred-By", d.LocalURI)) // RFC 3892
	req.AppendHeader(gosip.NewHeader("Accept", sipfrag))
	req.AppendHeader(supportedHeader())
	if c.trunk != nil {
		c.auth.apply(req, c.trunk.Auth)
	}
	return req, nil
}

// numbersAt is where numbers of the call's trunk are called: at its domain, at its proxy, or where the phone is if it only
// calls us.
func (c *Call) numbersAt() gosip.Uri {
	if c.trunk != nil && c.trunk.domain() != "" {
		at := gosip.Uri{Scheme: "sip", Host: c.trunk.domain()}
		if c.trunk.Domain == "" {
			_, port := hostAndPort(c.trunk.Proxy)
			at.Port = int(port)
		}
		return at
	}
	uri, err := routeURI("<" + c.dialog.RemoteTarget + ">")
	if err != nil {
		return gosip.Uri{}
	}
	return gosip.Uri{Scheme: "sip", Host: uri.Host, Port: uri.Port}
}

// transferAnswered takes the phone's answer to our REFER. What comes of it follows in NOTIFYs, unless it wants to send none.
func (c *Call) transferAnswered(res *gosip.Response, err error) {
	switch {
	case c.dialog.Transfer.CSeq == 0: // a NOTIFY has told the end already
	case err != nil:
		c.log.Info("REFER unanswered", "err", err)
		c.transferEnds(408)
	case !res.IsSuccess():
		c.transferEnds(res.StatusCode)
		c.doubt(res.StatusCode)
	case silentRefer(res):
		c.transferEnds(202)
	default:
		c.transferTaken()
	}
}

// transferTaken notes that the phone has our REFER.
func (c *Call) transferTaken() {
	if c.dialog.Transfer.Branch != "" {
		c.dialog.Transfer.Branch = ""
		c.changed()
	}
}

// handleNotify takes what the phone says about a REFER of ours.
func (c *Call) handleNotify(t *transaction) {
	event, state := headerOf(t.req, "Event", "o"), headerOf(t.req, "Subscription-State", "")
	name := ""
	if event != nil {
		name, _, _ = strings.Cut(event.Value(), ";")
	}
	switch {
	case !strings.EqualFold(strings.TrimSpace(name), "refer"):
		c.send(t, refuse(489, "Bad Event", gosip.NewHeader("Allow-Events", "refer"))) // RFC 6665 §8.3.2
		return
	case !c.referring:
		c.send(t, refuse(481, statusText(481)).because("no REFER of ours"))
		return
	case state == nil:
		c.send(t, refuse(400, "Missing Subscription-State"))
		return
	}
	c.send(t, refuse(200, statusText(200)))
	if c.dialog.Transfer.CSeq == 0 {
		return // its end was told before
	}
	code := 0
	if contentType(t.req) == sipfrag {
		code = fragStatus(string(t.req.Body()))
	}
	ended, _, _ := strings.Cut(state.Value(), ";")
	switch {
	case code >= 200:
		c.transferEnds(code)
	case strings.EqualFold(strings.TrimSpace(ended), "terminated"): // and nobody said how
		c.transferEnds(480)
	case code != 0 && code != c.dialog.Transfer.Code:
		c.dialog.Transfer.Code = code
		c.transferTaken()
		c.emit(Transferring{code})
	}
}

// fragStatus reads the status line of a sipfrag; 0 = there is none.
func fragStatus(body string) int {
	line, _, _ := strings.Cut(body, "\n")
	version, rest, ok := strings.Cut(strings.TrimSpace(line), " ")
	if !ok || !strings.EqualFold(version, "SIP/2.0") {
		return 0
	}
	status, _, _ := strings.Cut(rest, " ")
	code, err := strconv.Atoi(status)
	if err != nil || code < 100 || code > 699 {
		return 0
	}
	return code
}

// transferEnds says what has come of our REFER, and then that the dialog does not name it any more: who saves both loses
// neither.
func (c *Call) transferEnds(code int) {
	c.dialog.Transfer = Transfer{}
	c.publish()
	c.emit(Transferring{code})
	c.changed()
}

// tickRefer ends transfers nobody says the end of.
func (c *Call) tickRefer(now time.Time) {
	if u := c.dialog.Transfer.Until; !u.IsZero() && !now.Before(u) {
		c.transferEnds(408)
	}
}

// dropReferral lets go of a REFER that will not be followed any more.
func (c *Call) dropReferral() {
	if r := c.referral; r != nil && r.t != nil {
		c.answerRefer(refuse(481, statusText(481)).because(whyEnding))
	}
	c.referral, c.dialog.Wish = nil, Wish{}
}
