package sip

import (
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// fork is a far end of a call of ours that has said something before any of them has answered. Each has a dialog of its own
// (RFC 3261 §12.1.2), with its own numbers, offers and answers; one of these dialogs becomes the call's. Only run touches it.
//
//	INVITE: our offer --> 183: its answer --PRACK--> UPDATE: its offer --> 200: our answer, and the sound is another
//	                      (agreed)                   (updated)
type fork struct {
	tag      string
	cseq     uint32 // of its last request
	numbered bool   // there was one
	rseq     uint32 // of its last reliable provisional response
	counts   bool   // there was one

	sdp     string // its last description
	agreed  bool   // that came for sure: it may make offers (RFC 3311 §5.1)
	updated bool   // it has: what its responses describe is of before
	media   MediaState
}

// maxForks is how many far ends of one call are remembered. Others may ring and answer, but make no offers.
const maxForks = 64

// fork is the far end with this tag.
func (o *outgoing) fork(tag string) *fork {
	f := o.forks[tag]
	if f == nil {
		f = &fork{tag: tag, media: o.offer}
		if len(o.forks) < maxForks {
			o.forks[tag] = f
		}
	}
	return f
}

// heard is who sends a provisional response: it may send requests now, and another phone's call may take the place of its own
// (RFC 3891 §3).
func (o *outgoing) heard(res *gosip.Response) *fork {
	if to := res.To(); to != nil {
		if tag, ok := to.Params.Get("tag"); ok {
			return o.fork(tag)
		}
	}
	return &fork{media: o.offer} // an old phone, or a proxy that speaks for none
}

// forget is for an INVITE that is sent anew: all who heard of the one before are out.
func (o *outgoing) forget(d *Dialog) {
	if o.speaking != nil {
		d.Media, d.EarlyTag = o.offer, ""
	}
	o.forks, o.speaking, o.early = map[string]*fork{}, nil, ""
}

// resume takes over what the process before has said and heard.
func (o *outgoing) resume(d Dialog) {
	o.resumed, o.offer = true, d.Media
	o.offer.RemoteSDP = "" // no answer to an INVITE is a later one
	if d.EarlyTag == "" {
		return
	}
	f := o.fork(d.EarlyTag)
	f.media, f.sdp, f.agreed, f.updated = d.Media, d.Media.RemoteSDP, true, true
	o.speaking, o.early = f, f.sdp
}

// turnTo makes a far end's descriptions those of the call.
func (c *Call) turnTo(f *fork) {
	o := c.out
	if o.speaking == f {
		return
	}
	if before := o.speaking; before != nil {
		before.media = c.dialog.Media
		c.media.Load().state(&before.media)
	}
	c.dialog.Media, o.speaking = f.media, f
	c.dialog.EarlyTag = ""
	if f.updated {
		c.dialog.EarlyTag = f.tag
	}
}

// described is what a far end and we know of each other.
func (c *Call) described(f *fork) *MediaState {
	if c.out.speaking == f {
		return &c.dialog.Media
	}
	return &f.media
}

// provisional: it rings, or there is something to hear before the answer.
func (c *Call) provisional(f *fork, res *gosip.Response) {
	o := c.out
	body := string(res.Body())
	if contentType(res) == sdpType && !f.updated {
		if (body != o.early || f.tag != "" && f.sdp != body) && c.takePhoneAnswer(f, res.Body()) {
			o.code = 0 // say it, even after another 183
			if c.nextRTCP.IsZero() {
				c.nextRTCP = time.Now().Add(rtcpInterval)
			}
		}
		f.agreed = f.agreed || f.sdp == body && headerOf(res, "RSeq", "") != nil && supports(res, "100rel")
	}
	if res.StatusCode != o.code && !o.cancel {
		o.code = res.StatusCode
		c.emit(Provisional{res.StatusCode, o.early != ""})
	}
}

// takePhoneAnswer makes the description effective with which a far end answers the offer of the INVITE.
func (c *Call) takePhoneAnswer(f *fork, body []byte) bool {
	m := c.media.Load()
	if m == nil {
		return false
	}
	n, err := TakeAnswer(body, c.localIn(&c.out.offer, m.LocalAddr().Port()))
	if err != nil {
		c.log.Info("answer not usable", "err", err)
		return false
	}
	before := c.dialog.EarlyTag
	c.turnTo(f)
	c.heardEarly(m, f, []byte(c.out.offer.LocalSDP), body, n)
	if c.dialog.EarlyTag != before {
		c.changed() // a process that goes on must not mix them up
	}
	return true
}

// heardEarly makes what was agreed with a far end effective.
func (c *Call) heardEarly(m *Media, f *fork, own, theirs []byte, n *Negotiated) {
	before := m.Format()
	c.take(m, own, theirs, n)
	f.sdp = string(theirs)
	c.keyWay = keyWay{}
	if c.out.early != "" && n.Format != before { // another one than was heard before
		c.emit(MediaChanged{n.Format})
	}
	c.out.early = f.sdp
}

// settle makes the descriptions of who has answered the call's, with that of the answer, "" if it has none. It is false when there is
// nothing to go by.
func (c *Call) settle(f *fork, body []byte) bool {
	o, m := c.out, c.media.Load()
	defer func() { c.dialog.EarlyTag = "" }()
	switch {
	case len(body) > 0 && !f.updated: // RFC 3261 §13.2.1: after its first description no other counts; but some far ends mean it
		return c.takePhoneAnswer(f, body)
	case f.sdp == "": // some change their tag between 183 and 200
		return o.early != ""
	case o.speaking != f && m != nil: // another one was heard last
		c.turnTo(f)
		m.apply(c.dialog.Media.negotiated(), c.learnable(), time.Now())
		c.emit(MediaChanged{c.dialog.Media.Format})
	}
	return true
}

// checkEarly is checkInDialog before the answer.
func (o *outgoing) checkEarly(tag string, req *gosip.Request) *refusal {
	f := o.forks[tag]
	if tag == "" || f == nil {
		return refuse(481, statusText(481)).because(whyNoDialog)
	}
	seq := req.CSeq().SeqNo
	if !follows(seq, f.cseq, f.numbered) {
		return refuse(500, "Out of order")
	}
	f.cseq, f.numbered = seq, true
	return nil
}

// handleEarly answers a far end that has not answered us yet. A 481 would end its dialog, and the call (RFC 5057 §5.1). Nothing
// of our own dialog but the sound follows it: that is made by the answer, which may be another's.
func (c *Call) handleEarly(t *transaction) {
	switch t.req.Method {
	case gosip.UPDATE:
		c.handleEarlyUpdate(t)
	case gosip.OPTIONS:
		c.send(t, capabilities(200))
	case gosip.INFO:
		c.handleInfo(t)
	case gosip.INVITE, gosip.REFER: // §14.2: later
		c.send(t, notNow(whyUnanswered))
	case gosip.BYE, gosip.PRACK, gosip.NOTIFY: // §15: not from who is called; and we have sent nothing they could be about
		c.send(t, refuse(481, statusText(481)).because(whyUnanswered))
	default:
		c.send(t, refuse(405, "Method Not Allowed", allowHeader()))
	}
}

// handleEarlyUpdate answers UPDATE (RFC 3311): with an offer, another machine of the carrier makes the ringback from now on.
func (c *Call) handleEarlyUpdate(t *transaction) {
	m := c.media.Load()
	tag, _ := t.req.From().Params.Get("tag")
	f := c.out.forks[tag] // checkEarly has found it
	offer := t.req.Body()
	if r := tooBrief(t.req); r != nil {
		c.send(t, r)
		return
	}
	switch {
	case len(offer) == 0:
		c.send2xx(t, nil)
		return
	case !f.agreed: // §5.2: our offer waits for an answer that comes for sure; what an unreliable 183 says is none yet
		c.send(t, refuse(491, statusText(491)).because(whyOurOffer))
		return
	case m == nil: // resumed without media
		c.send(t, notNow(whyNoMedia))
		return
	}
	own, n, r := c.negotiate(offer, c.localIn(c.described(f), m.LocalAddr().Port()))
	if r != nil {
		c.send(t, r)
		return
	}
	c.turnTo(f)
	f.updated, c.dialog.EarlyTag = true, f.tag
	c.heardEarly(m, f, own, offer, n)
	c.send2xx(t, own)
}
