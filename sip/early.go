package sip

import (
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// earlyInterval keeps the proxies on the way from giving up (RFC 3261 §13.3.1.1: every minute).
const earlyInterval = 50 * time.Second

func (c *Call) ring() error {
	if c.state != proceeding {
		return c.stateError()
	}
	c.sendEarly(180, nil)
	return nil
}

// progress opens the media and says so with a 183.
func (c *Call) progress() error {
	switch c.state {
	case proceeding, accepted:
	default:
		return c.stateError()
	}
	if err := c.openMedia(); err != nil {
		return err
	}
	body := c.prepared
	if len(c.invite.req.Body()) == 0 && !c.reliably(true) {
		body = nil // §13.2.1: an offer of ours must travel reliably, so it waits for the 200
	}
	c.sendEarly(183, body)
	if c.nextRTCP.IsZero() {
		c.nextRTCP = time.Now().Add(rtcpInterval)
	}
	return nil
}

// sendEarly sends a provisional response with our tag, and again every so often.
func (c *Call) sendEarly(code int, body []byte) {
	res := c.stack.response(c.invite.req, code, statusText(code),
		gosip.NewHeader("Contact", c.dialog.Contact), allowHeader())
	if body != nil {
		res.AppendHeader(gosip.NewHeader("Content-Type", sdpType))
		res.SetBody(body)
	}
	c.early = res
	c.repeatEarly(time.Now())
}

// repeatEarly: a lost one is no reason to end the call.
func (c *Call) repeatEarly(now time.Time) {
	c.ringing = now.Add(earlyInterval)
	if c.reliably(len(c.early.Body()) > 0) {
		c.sendReliably(c.early)
		return
	}
	_ = c.respond(c.invite, c.early)
}
