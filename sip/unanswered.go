package sip

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// revive gives a resumed call its INVITE back, which the process before had not answered, or whose answer was not
// acknowledged: responses find their way by the Via headers alone (RFC 3261 §18.2.2). The call can be refused, or answered
// with the same description as before; a phone that had that answer acknowledges it again (§13.2.2.4).
func (c *Call) revive() error {
	req, err := c.dialog.invite()
	if err != nil {
		return err
	}
	l, _ := c.stack.listenerFor(c.dialog)
	c.invite = newTransaction(req, &statelessTx{stack: c.stack, trunk: c.trunk, listener: l, request: req})
	c.state, c.prepared = proceeding, nil
	if sdp := c.dialog.Media.LocalSDP; sdp != "" {
		c.state, c.prepared = accepted, []byte(sdp)
	}
	return nil
}

// invite is the INVITE of a dialog as far as responses need it.
func (d *Dialog) invite() (*gosip.Request, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "INVITE sip:trunkline@invalid SIP/2.0\r\n")
	for _, via := range d.Vias {
		fmt.Fprintf(&b, "Via: %s\r\n", via)
	}
	for _, route := range d.RouteSet {
		fmt.Fprintf(&b, "Record-Route: %s\r\n", route)
	}
	fmt.Fprintf(&b, "From: %s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: %d INVITE\r\nContent-Length: 0\r\n\r\n",
		withTag(d.RemoteURI, d.RemoteTag), withTag(d.LocalURI, d.LocalTag), d.CallID, d.InviteCSeq)
	message, err := newParser(Limits{}.withDefaults()).ParseSIP([]byte(b.String()))
	if err != nil {
		return nil, fmt.Errorf("stored INVITE: %w", err)
	}
	req, ok := message.(*gosip.Request)
	if !ok || req.Via() == nil {
		return nil, fmt.Errorf("stored INVITE: no Via")
	}
	req.SetTransport(strings.ToUpper(string(d.Transport)))
	req.SetSource(d.Remote.String())
	if d.Media.PeerOffers > 0 {
		req.SetBody([]byte(d.Media.RemoteSDP)) // says that the offer was theirs
	}
	return req, nil
}

// viasOf are the Via headers of a request, top first.
func viasOf(req *gosip.Request) []string {
	var vias []string
	for _, h := range req.GetHeaders("Via") {
		vias = append(vias, h.Value())
	}
	return vias
}

// statelessTx answers a request whose transaction died with its process, or with its connection.
type statelessTx struct {
	gosip.ServerTransaction // nil: the rest has nobody to ask
	stack                   *Stack
	trunk                   *Trunk
	listener                listener
	request                 *gosip.Request
	unreachable             func(error) // hears that there is no way; nil = nobody asks
	answering               atomic.Bool // a 2xx is on its way, perhaps over a connection that is being opened
	final                   atomic.Bool // a final response has been said: one that is not comes too late behind it
}

// resend is when a refusal goes out: nobody hears its ACK, and over UDP one copy may be lost.
var resend = []time.Duration{0, t1, 2 * t1}

func (tx *statelessTx) Respond(res *gosip.Response) error {
	pauses := resend[:1] // a 2xx is repeated by the call
	if res.IsSuccess() && !tx.answering.CompareAndSwap(false, true) {
		return nil // the next one: a phone that does not listen is not called twice at a time
	}
	if res.StatusCode >= 300 && tx.listener.transport == UDP {
		pauses = resend
	}
	if !res.IsProvisional() {
		tx.final.Store(true)
	}
	tx.stack.calls.Go(func() {
		if res.IsSuccess() {
			defer tx.answering.Store(false)
		}
		for _, pause := range pauses {
			if !pauseFor(tx.stack.root, pause) {
				return
			}
			if err := tx.write(res); err != nil {
				tx.stack.log.Debug("response not sent", "code", res.StatusCode, "err", err)
				if tx.unreachable != nil {
					tx.unreachable(err)
				}
			}
		}
	})
	return nil
}

// write sends from the listener's own socket: sipgo knows the way back only to who has sent something to this process. A
// connection of another transport died with the process before: unless the phone has opened it again, one is opened to where its
// request says that it listens (RFC 3261 §18.2.2).
func (tx *statelessTx) write(res *gosip.Response) error {
	to, err := netip.ParseAddrPort(res.Destination())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(tx.stack.root, connectTimeout)
	defer cancel()
	select {
	case <-tx.listener.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if tx.listener.transport == UDP {
		_, err = tx.listener.packets.WriteTo([]byte(res.String()), net.UDPAddrFromAddrPort(to))
		return err
	}
	if !tx.stack.joined(tx.listener.transport, to.String()) {
		if to, err = tx.joinAgain(ctx, to.Addr()); err != nil {
			return err
		}
	}
	if res.IsProvisional() && tx.final.Load() {
		return nil
	}
	return tx.stack.transports.WriteMsgTo(res, to.String(), string(tx.listener.transport))
}

// joinAgain opens a connection to the port that the request names: at the address that it came from, else, if that is the trunk's, too, at
// the one that it names, which has half the time then.
func (tx *statelessTx) joinAgain(ctx context.Context, from netip.Addr) (to netip.AddrPort, err error) {
	via := tx.request.Via()
	port := cmpPort(uint16(via.Port), tx.listener.transport)
	places := []netip.AddrPort{netip.AddrPortFrom(from, port)}
	if named, err := netip.ParseAddr(strings.Trim(via.Host, "[]")); err == nil && named != from && tx.trunk != nil && tx.trunk.contains(named.Unmap()) {
		places = append(places, netip.AddrPortFrom(named.Unmap(), port))
	}
	for _, to = range places {
		joining, cancel := context.WithTimeout(ctx, connectTimeout/time.Duration(len(places)))
		err = tx.stack.join(joining, tx.trunk, tx.listener.transport, to)
		cancel()
		if err == nil {
			break
		}
	}
	return to, err
}

func pauseFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// moved says that the phone knows us by other addresses than we have now.
func (c *Call) moved(before Dialog) bool {
	now := netip.AddrPortFrom(c.stack.soundHost(c.trunk), before.Media.Local.Port())
	return c.dialog.Contact != before.Contact || before.Media.Advertised.IsValid() && now != before.Media.Advertised
}
