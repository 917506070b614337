package sip

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// reliable is a provisional response of ours that waits for its PRACK (RFC 3262 §3).
type reliable struct {
	res      *gosip.Response
	seq      uint32
	interval time.Duration
	next     time.Time // zero = nothing waits
	giveUp   time.Time
	sdp      bool // it carries a description: no 200 before it has arrived
	offer    bool // which is our offer: the PRACK brings the answer

	late    bool              // the answer left before its PRACK, which may still come
	answer  bool              // SendAnswer was asked for and waits
	after   []*gosip.Response // later ones: one at a time
	settled bool              // offer and answer have arrived for sure: later responses carry neither, and there may be other offers
	agreed  bool              // the 200 carries none either
}

func (r *reliable) waits() bool { return !r.next.IsZero() }

// reliably says that a provisional response must arrive: the phone insists, or it can and there is something to hear.
func (c *Call) reliably(sdp bool) bool {
	for _, tag := range listHeader(c.invite.req, "Require", "") {
		if strings.EqualFold(tag, "100rel") {
			return true
		}
	}
	return sdp && supports(c.invite.req, "100rel")
}

// sendReliably sends a provisional response until PRACK comes, behind one that still waits.
func (c *Call) sendReliably(res *gosip.Response) {
	r := &c.rel
	if r.waits() {
		r.after = append(r.after, res)
		return
	}
	if r.settled {
		res = withoutBody(res)
	}
	if r.seq == 0 {
		r.seq = rand.Uint32N(1 << 30) // §3: below 2^31, and room to count
	}
	r.seq++
	numbered := res.Clone()
	numbered.AppendHeader(gosip.NewHeader("Require", "100rel"))
	numbered.AppendHeader(gosip.NewHeader("RSeq", strconv.FormatUint(uint64(r.seq), 10)))
	now := time.Now()
	r.res, r.interval, r.next, r.giveUp = numbered, t1, now.Add(t1), now.Add(64*t1)
	r.sdp = len(res.Body()) > 0
	r.offer = r.sdp && len(c.invite.req.Body()) == 0 && !r.agreed
	_ = c.respond(c.invite, numbered) // it is repeated
}

// tickReliable repeats, doubling the time, and gives the call up when nothing ever comes (§3).
func (c *Call) tickReliable(now time.Time) {
	r := &c.rel
	if !r.waits() || now.Before(r.next) || c.state != proceeding && c.state != accepted {
		return
	}
	if !now.Before(r.giveUp) {
		c.log.Warn("provisional response never acknowledged")
		r.next = time.Time{}
		c.emit(Failed{Cause{"SIP", 504, "No PRACK"}})
		_ = c.reject(refuse(504, "Server Time-out"))
		return
	}
	r.interval *= 2
	r.next = r.next.Add(r.interval)
	if r.next.After(r.giveUp) {
		r.next = r.giveUp
	}
	_ = c.respond(c.invite, r.res)
}

// handlePrack takes the acknowledgement of a provisional response.
func (c *Call) handlePrack(t *transaction) {
	r := &c.rel
	h := headerOf(t.req, "RAck", "")
	if c.invite == nil || h == nil || !r.waits() && !r.late || strings.Join(strings.Fields(h.Value()), " ") != fmt.Sprintf("%d %d INVITE", r.seq, c.dialog.InviteCSeq) {
		c.send(t, refuse(481, statusText(481)).because("nothing waits for this PRACK"))
		return
	}
	body := t.req.Body()
	if contentType(t.req) != sdpType {
		body = nil
	}
	if r.offer {
		if !c.takeOfferAnswer(body) { // as an ACK with none ends a call: what comes next would have no sound
			r.next = time.Time{}
			c.send(t, refuse(200, statusText(200)))
			c.emit(Failed{Cause{"SIP", 488, "No usable answer in PRACK"}})
			_ = c.reject(refuse(488, statusText(488)))
			return
		}
		r.agreed, r.offer, body = true, false, nil
	}
	late := r.late
	r.next, r.late, r.settled = time.Time{}, false, r.settled || r.sdp
	c.answerPrack(t, body)
	switch {
	case late: // §3: 2xx, also when a final answer has overtaken it; what waited behind is not sent any more
	case r.answer:
		_ = c.sendAnswer() // whoever asked for it was told that it is on its way
	case len(r.after) > 0:
		res := r.after[0]
		r.after = r.after[1:]
		c.sendReliably(res)
	}
}

// answerPrack answers a PRACK that has acknowledged something, and the offer it may bring (§5). §3 wants a 2xx for each: one with an
// offer that has nothing for us can't be refused as an INVITE or UPDATE is (488), but its streams are switched off, until a later offer.
func (c *Call) answerPrack(t *transaction, offer []byte) {
	if len(offer) == 0 {
		c.send(t, refuse(200, statusText(200)))
		return
	}
	m := c.media.Load()
	if !c.rel.settled || m == nil { // an offer inside an offer
		c.send(t, refuse(488, statusText(488)).because("an offer while another waits"))
		return
	}
	own, r := c.answerOffer(m, offer)
	if r != nil {
		declined, n, err := Decline(offer, c.local(m.LocalAddr().Port()))
		if err != nil { // it is no description, and has no answer
			c.send(t, r)
			return
		}
		c.log.Info("offer of a PRACK is answered without sound", "why", r.cause())
		c.agreed(m, declined, offer, n)
		own = declined
	}
	c.send2xx(t, own)
}

// withoutBody is a response that describes nothing.
func withoutBody(res *gosip.Response) *gosip.Response {
	res = res.Clone()
	res.RemoveHeader("Content-Type")
	res.SetBody(nil)
	return res
}

// acknowledgeEarly sends PRACK for a reliable provisional response to our INVITE (§4); false means that it must not be
// looked at: it came before one that is missing, or again.
func (c *Call) acknowledgeEarly(f *fork, res *gosip.Response) bool {
	h := headerOf(res, "RSeq", "")
	if h == nil || !supports(res, "100rel") || res.To() == nil {
		return true
	}
	seq, err := strconv.ParseUint(strings.TrimSpace(h.Value()), 10, 32)
	tag, _ := res.To().Params.Get("tag")
	if err != nil || tag == "" || f.counts && uint32(seq) != f.rseq+1 {
		return false
	}
	f.rseq, f.counts = uint32(seq), true
	d := c.dialog.clone()
	d.establish(res, tag)
	req, err := d.request(c.stack, gosip.PRACK, c.nextCSeq())
	if err != nil {
		c.log.Warn("no PRACK possible", "err", err)
		return true
	}
	req.AppendHeader(gosip.NewHeader("RAck", fmt.Sprintf("%d %d INVITE", seq, res.CSeq().SeqNo)))
	c.auth.apply(req, c.out.trunk.Auth)
	c.stack.calls.Go(func() {
		if code, err := c.transact(req); err != nil || code >= 300 {
			c.log.Info("PRACK not taken", "code", code, "err", err)
		}
	})
	return true
}
