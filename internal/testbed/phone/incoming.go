package phone

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/emiago/sipgo/sip"
)

// incoming is what a call of the bridge to the phone has beyond one that the phone makes.
type incoming struct {
	invite   *sip.Request
	tx       sip.ServerTransaction
	released chan struct{} // closed when sipgo may let the transaction go
	acked    chan struct{} // closed by the bridge's ACK of our 200
	pracked  chan struct{} // closed by its PRACK
}

// AwaitCall waits for the bridge to call the phone. Nothing has been answered then but 100.
func (p *Phone) AwaitCall(ctx context.Context) (*Call, error) {
	select {
	case c := <-p.called:
		return c, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("phone: nobody calls: %w", context.Cause(ctx))
	}
}

// Rung counts the calls of the bridge to the phone.
func (p *Phone) Rung() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rung
}

// Busy tells whether a call is up, or on its way.
func (p *Phone) Busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.calls) > 0
}

// takeInvite makes a call of an INVITE, and stays until its transaction may go.
func (p *Phone) takeInvite(req *sip.Request, tx sip.ServerTransaction) {
	refuse := func(code int, reason string) { _ = tx.Respond(sip.NewResponseFromRequest(req, code, reason, nil)) }
	a, err := openAudio(p.config.Local)
	if err != nil {
		refuse(500, "No Audio")
		return
	}
	c := &Call{
		phone: p, audio: a, done: make(chan struct{}), tried: make(chan struct{}), referred: make(chan string, 1), tag: rand.Text(), number: req.Recipient.User,
		bridge: req.Source(), direction: "sendrecv", callID: req.CallID().Value(), invite: req, to: headerValue(req, "From"),
		in: &incoming{invite: req, tx: tx, released: make(chan struct{}), acked: make(chan struct{}), pracked: make(chan struct{})},
	}
	if h := req.Contact(); h != nil {
		c.target = *h.Address.Clone()
	}
	for _, h := range req.GetHeaders("Record-Route") {
		c.routes = append(c.routes, h.Value())
	}
	req.To().Params.Add("tag", c.tag) // so all responses have it
	if err := c.takeSDP(req.Body()); err != nil {
		refuse(488, "Not Acceptable Here")
		return
	}
	p.mu.Lock()
	p.calls[c.callID] = c
	p.rung++
	p.mu.Unlock()
	gone := func(*sip.Request) { c.missed(errCancelled) }
	if !tx.OnCancel(gone) {
		gone(nil)
	}
	_ = tx.Respond(sip.NewResponseFromRequest(req, 100, "Trying", nil))
	select {
	case p.called <- c:
	default:
		refuse(486, "Busy Here")
		return
	}
	select {
	case <-c.in.released:
	case <-c.done:
	case <-tx.Done():
	}
}

// errCancelled says that the bridge gave up before the phone answered.
var errCancelled = errors.New("phone: cancelled")

// missed ends a call that was not answered.
func (c *Call) missed(why error) {
	c.mu.Lock()
	select {
	case <-c.tried:
		c.mu.Unlock()
		return
	default:
	}
	c.failure = why
	close(c.tried)
	c.mu.Unlock()
	c.end(why.Error())
}

// Invite is the INVITE of the bridge.
func (c *Call) Invite() *sip.Request { return c.in.invite }

// Ring tells the bridge that the phone rings (180).
func (c *Call) Ring() error { return c.in.tx.Respond(c.response(180, "Ringing", nil)) }

// Progress lets the bridge hear the phone's side before the answer (183); what is played from now on is early media.
func (c *Call) Progress() error {
	res := c.response(183, "Session Progress", c.answerSDP())
	c.startAudio()
	return c.in.tx.Respond(res)
}

// ProgressReliably is Progress with a response that the bridge has to acknowledge (RFC 3262); it waits for that.
func (c *Call) ProgressReliably(ctx context.Context) error {
	res := c.response(183, "Session Progress", c.answerSDP())
	res.AppendHeader(sip.NewHeader("Require", "100rel"))
	res.AppendHeader(sip.NewHeader("RSeq", "1"))
	c.startAudio()
	if err := c.in.tx.Respond(res); err != nil {
		return fmt.Errorf("phone: progress: %w", err)
	}
	select {
	case <-c.in.pracked:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("phone: no PRACK: %w", context.Cause(ctx))
	}
}

func (p *Phone) onPrack(req *sip.Request, tx sip.ServerTransaction) {
	c := p.callOf(req)
	if c == nil || c.in == nil || headerValue(req, "RAck") != fmt.Sprintf("1 %d INVITE", c.in.invite.CSeq().SeqNo) {
		_ = tx.Respond(sip.NewResponseFromRequest(req, 481, "Call/Transaction Does Not Exist", nil))
		return
	}
	c.mu.Lock()
	select {
	case <-c.in.pracked:
	default:
		close(c.in.pracked)
	}
	c.mu.Unlock()
	_ = tx.Respond(sip.NewResponseFromRequest(req, 200, "OK", nil))
}

// MoveSound lets another machine sound and hear in this call, with the first of these codecs that the bridge takes: it tells so by
// UPDATE (RFC 3311), before or after the answer. The machine before is switched off.
func (c *Call) MoveSound(ctx context.Context, names ...string) error {
	next, err := openAudio(c.phone.config.Local)
	if err != nil {
		return fmt.Errorf("phone: %w", err)
	}
	var offered []codec
	for _, name := range names {
		if k, ok := codecOf(name); ok {
			offered = append(offered, k)
		}
	}
	c.mu.Lock()
	before := c.audio
	c.audio = next
	c.mu.Unlock()
	before.close()
	req := c.Request(sip.UPDATE)
	c.setSDP(req, c.describe(offered, 0))
	res, err := c.Do(ctx, req)
	if err != nil {
		return err
	}
	if res.StatusCode != 200 {
		return fmt.Errorf("phone: UPDATE answered with %d", res.StatusCode)
	}
	if err := c.takeSDP(res.Body()); err != nil {
		return err
	}
	c.startAudio()
	return nil
}

// repeatAnswer is when a 200 without ACK is sent again (RFC 3261 §13.3.1.4, T1).
const repeatAnswer = 500 * time.Millisecond

// PickUp answers, again and again until the ACK comes.
func (c *Call) PickUp(ctx context.Context) error {
	res := c.response(200, "OK", c.answerSDP())
	c.mu.Lock()
	select {
	case <-c.tried:
		c.mu.Unlock()
		return c.failure
	default:
		close(c.tried)
	}
	c.mu.Unlock()
	c.startAudio()
	if err := c.in.tx.Respond(res); err != nil {
		return fmt.Errorf("phone: pick up: %w", err)
	}
	defer close(c.in.released)
	ticker := time.NewTicker(repeatAnswer)
	defer ticker.Stop()
	for {
		select {
		case <-c.in.acked:
			return nil
		case <-ticker.C:
			_ = c.in.tx.Respond(res) // the bridge may be gone for a moment
		case <-c.done:
			return fmt.Errorf("phone: pick up: %s", c.Ended())
		case <-ctx.Done():
			return fmt.Errorf("phone: pick up: no ACK: %w", context.Cause(ctx))
		}
	}
}

// Refuse ends the call before the answer. Headers are "Name: value".
func (c *Call) Refuse(code int, reason string, headers ...string) error {
	res := c.response(code, reason, nil)
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		res.AppendHeader(sip.NewHeader(name, value))
	}
	err := c.in.tx.Respond(res)
	close(c.in.released)
	c.missed(fmt.Errorf("phone: refused with %d", code))
	return err
}

// response answers the INVITE with our tag.
func (c *Call) response(code int, reason string, body []byte) *sip.Response {
	res := sip.NewResponseFromRequest(c.in.invite, code, reason, nil)
	res.AppendHeader(sip.NewHeader("Contact", c.phone.contact()))
	if body != nil {
		res.AppendHeader(sip.NewHeader("Content-Type", "application/sdp"))
		res.SetBody(body)
	}
	return res
}

// onAck hears of the bridge's ACK.
func (p *Phone) onAck(req *sip.Request, _ sip.ServerTransaction) {
	c := p.callOf(req)
	if c == nil || c.in == nil || req.CSeq() == nil || req.CSeq().SeqNo != c.in.invite.CSeq().SeqNo {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.in.acked:
	default:
		close(c.in.acked)
	}
}
