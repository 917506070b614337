package phone

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/emiago/sipgo/sip"
)

// Refer asks the bridge to let the call be somewhere else (RFC 3515), and returns the status of its answer. What comes of it is
// [Call.Notified].
func (c *Call) Refer(ctx context.Context, to string) (int, error) {
	req := c.Request(sip.REFER)
	req.AppendHeader(sip.NewHeader("Refer-To", "<"+to+">"))
	res, err := c.Do(ctx, req)
	if err != nil {
		return 0, err
	}
	return res.StatusCode, nil
}

// Notified are the status lines of the bridge's NOTIFYs, with a full stop behind the one that is the last of its REFER.
func (c *Call) Notified() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.notified)
}

func (p *Phone) onNotify(req *sip.Request, tx sip.ServerTransaction) {
	c := p.callOf(req)
	if c == nil {
		_ = tx.Respond(sip.NewResponseFromRequest(req, 481, "Call/Transaction Does Not Exist", nil))
		return
	}
	line := strings.TrimSpace(string(req.Body()))
	if strings.HasPrefix(headerValue(req, "Subscription-State"), "terminated") {
		line += "."
	}
	c.mu.Lock()
	c.notified = append(c.notified, line)
	c.mu.Unlock()
	_ = tx.Respond(sip.NewResponseFromRequest(req, 200, "OK", nil))
}

// RefusesTransfers lets the phone answer REFERs with this status; 0 lets it take them.
func (c *Call) RefusesTransfers(code int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuses = code
}

// Referred waits until the bridge asks the phone to call somebody else, and returns whom.
func (c *Call) Referred(ctx context.Context) (string, error) {
	select {
	case to := <-c.referred:
		return to, nil
	case <-c.done:
		return "", errors.New("phone: the call ended without a REFER")
	case <-ctx.Done():
		return "", fmt.Errorf("phone: no REFER: %w", context.Cause(ctx))
	}
}

// Notify tells the bridge how the transfer it asked for is getting on, or how it ended.
func (c *Call) Notify(ctx context.Context, status string, last bool) error {
	req := c.Request(sip.NOTIFY)
	state := "active;expires=60"
	if last {
		state = "terminated;reason=noresource"
	}
	req.AppendHeader(sip.NewHeader("Event", "refer"))
	req.AppendHeader(sip.NewHeader("Subscription-State", state))
	req.AppendHeader(sip.NewHeader("Content-Type", "message/sipfrag;version=2.0"))
	req.SetBody([]byte("SIP/2.0 " + status + "\r\n"))
	res, err := c.Do(ctx, req)
	if err == nil && res.StatusCode != 200 {
		err = fmt.Errorf("phone: NOTIFY answered with %d", res.StatusCode)
	}
	return err
}

func (p *Phone) onRefer(req *sip.Request, tx sip.ServerTransaction) {
	c := p.callOf(req)
	if c == nil {
		_ = tx.Respond(sip.NewResponseFromRequest(req, 481, "Call/Transaction Does Not Exist", nil))
		return
	}
	c.mu.Lock()
	refuses := c.refuses
	c.mu.Unlock()
	if refuses != 0 {
		_ = tx.Respond(sip.NewResponseFromRequest(req, refuses, "Refused", nil))
		return
	}
	res := sip.NewResponseFromRequest(req, 202, "Accepted", nil)
	res.AppendHeader(sip.NewHeader("Contact", p.contact()))
	_ = tx.Respond(res)
	select {
	case c.referred <- strings.Trim(headerValue(req, "Refer-To"), "<>"):
	default:
	}
}
