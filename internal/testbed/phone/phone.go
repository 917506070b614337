package phone

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emiago/sipgo"
	"github.com/emiago/sipgo/sip"
	"github.com/icholy/digest"
)

// Config says what kind of phone it is. The zero value, with Local set, is a UDP phone that offers PCMU and PCMA.
type Config struct {
	Local     netip.Addr // address it signals and talks from
	Transport string     // "udp" (default), "tcp" or "tls"
	User      string     // its number, default "2001"
	Name      string     // display name
	Codecs    []string   // in order of preference, default PCMU, PCMA
	NoDTMF    bool       // does not offer telephone-event
	WideBand  bool       // plays and hears at 16 kHz; its codec is Opus
	Password  string     // of who registers with it (digest); "" = anybody may

	TLS  *tls.Config // for "tls": its certificate, and whose it believes
	SRTP bool        // encrypts its sound, with keys in the description (RFC 4568)
}

// Phone is one telephone. Close it after use.
type Phone struct {
	config Config
	ua     *sipgo.UserAgent
	server *sipgo.Server
	client *sipgo.Client
	local  netip.AddrPort
	close  func() error
	wg     sync.WaitGroup // listeners, and watchers of INVITE transactions
	deaf   atomic.Bool    // closing

	called chan *Call // calls of the bridge that nobody has taken yet; more are busy

	mu       sync.Mutex
	calls    map[string]*Call // by Call-ID
	rung     int              // calls of the bridge so far
	requests []string         // methods, as they came
}

// Open makes a phone that listens on a free port of its address.
func Open(c Config) (*Phone, error) {
	if c.Transport == "" {
		c.Transport = "udp"
	}
	if c.User == "" {
		c.User = "2001"
	}
	switch {
	case len(c.Codecs) > 0:
	case c.WideBand:
		c.Codecs = []string{"opus"}
	default:
		c.Codecs = []string{"PCMU", "PCMA"}
	}
	p := &Phone{config: c, calls: map[string]*Call{}, called: make(chan *Call, 4)}
	discard := slog.New(slog.DiscardHandler)
	var err error
	p.ua, err = sipgo.NewUA(
		sipgo.WithUserAgent("testbed-phone"),
		sipgo.WithUserAgenTLSConfig(c.TLS),
		sipgo.WithUserAgentTransportLayerOptions(sip.WithTransportLayerLogger(discard)),
		sipgo.WithUserAgentTransactionLayerOptions(sip.WithTransactionLayerLogger(discard),
			sip.WithTransactionLayerUnhandledResponseHandler(p.strayResponse)),
	)
	if err != nil {
		return nil, fmt.Errorf("phone: %w", err)
	}
	if p.server, err = sipgo.NewServer(p.ua, sipgo.WithServerLogger(discard)); err != nil {
		return nil, fmt.Errorf("phone: %w", err)
	}
	if p.client, err = sipgo.NewClient(p.ua, sipgo.WithClientLogger(discard)); err != nil {
		return nil, fmt.Errorf("phone: %w", err)
	}
	p.server.OnBye(p.onBye)
	p.server.OnInvite(p.onInvite)
	p.server.OnAck(p.onAck)
	p.server.OnUpdate(p.onInvite)
	p.server.OnNotify(p.onNotify)
	p.server.OnPrack(p.onPrack)
	p.server.OnRefer(p.onRefer)
	p.server.OnOptions(func(req *sip.Request, tx sip.ServerTransaction) {
		p.note(req)
		_ = tx.Respond(sip.NewResponseFromRequest(req, 200, "OK", nil))
	})
	p.server.OnRegister(p.onRegister)
	if err := p.listen(); err != nil {
		return nil, fmt.Errorf("phone: %w", err)
	}
	return p, nil
}

func (p *Phone) listen() error {
	any := netip.AddrPortFrom(p.config.Local, 0)
	if p.config.Transport != "udp" {
		ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(any))
		if err != nil {
			return err
		}
		p.local, p.close = ln.Addr().(*net.TCPAddr).AddrPort(), ln.Close
		p.wg.Go(func() {
			if p.config.Transport == "tls" {
				_ = p.server.ServeTLS(tls.NewListener(ln, p.config.TLS))
			} else {
				_ = p.server.ServeTCP(ln)
			}
		})
		return nil
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(any))
	if err != nil {
		return err
	}
	p.local, p.close = conn.LocalAddr().(*net.UDPAddr).AddrPort(), conn.Close
	ready := make(chan struct{})
	p.wg.Go(func() {
		_ = p.server.ServeUDP(&readyConn{UDPConn: conn, deaf: &p.deaf, reading: sync.OnceFunc(func() { close(ready) })})
	})
	<-ready
	return nil
}

// readyConn tells when sipgo reads: only then does it send from this socket.
type readyConn struct {
	*net.UDPConn
	reading func()
	deaf    *atomic.Bool
}

func (c *readyConn) ReadFrom(b []byte) (int, net.Addr, error) {
	c.reading()
	for {
		n, from, err := c.UDPConn.ReadFrom(b)
		if err != nil || !c.deaf.Load() {
			return n, from, err
		}
	}
}

// Close hangs nothing up: it vanishes, as a phone whose battery was taken out.
func (p *Phone) Close() error {
	p.mu.Lock()
	calls := make([]*Call, 0, len(p.calls))
	for _, c := range p.calls {
		calls = append(calls, c)
	}
	p.mu.Unlock()
	for _, c := range calls {
		c.end("phone closed")
	}
	p.deaf.Store(true)
	time.Sleep(10 * time.Millisecond) // sipgo opens a new socket for a message whose own was closed before it looks
	err := errors.Join(p.close(), p.ua.Close())
	p.wg.Wait()
	return err
}

// Addr is where the phone listens for SIP.
func (p *Phone) Addr() netip.AddrPort { return p.local }

// Invite says how a call is made where it is not made in the ordinary way.
type Invite struct {
	Number    string            // who is called
	SDP       []byte            // instead of the phone's own offer
	LateOffer bool              // no offer in the INVITE
	NoACK     bool              // acknowledge only when told so
	GivesUp   string            // the Reason (RFC 3326) of its CANCEL; "" = none
	Headers   map[string]string // added to the INVITE
	CallID    string
	OnStatus  func(code int) // hears of every provisional answer
}

// StatusError is a refusal of a call.
type StatusError struct {
	Code       int
	Reason     string
	Warning    string
	Cause      string // the Reason header (RFC 3326)
	RetryAfter string
}

func (e *StatusError) Error() string { return fmt.Sprintf("%d %s %s", e.Code, e.Reason, e.Warning) }

// Dial calls a number at a bridge (host:port) and returns when it has answered. When ctx ends first, it cancels.
func (p *Phone) Dial(ctx context.Context, bridge, number string) (*Call, error) {
	return p.DialWith(ctx, bridge, Invite{Number: number})
}

// DialWith is Dial with a choice of manners.
func (p *Phone) DialWith(ctx context.Context, bridge string, inv Invite) (*Call, error) {
	c, err := p.Begin(ctx, bridge, inv)
	if err != nil {
		return nil, err
	}
	if err := c.Answered(); err != nil {
		return nil, err
	}
	return c, nil
}

// Begin is DialWith for who wants to hear what comes before the answer: it returns when the INVITE is on its way. When ctx
// ends before the answer, the call is cancelled.
func (p *Phone) Begin(ctx context.Context, bridge string, inv Invite) (*Call, error) {
	c, err := p.newCall(bridge, inv)
	if err != nil {
		return nil, err
	}
	tx, err := p.client.TransactionRequest(context.WithoutCancel(ctx), c.invite, buildAsIs)
	if err != nil {
		c.end("not sent")
		return nil, fmt.Errorf("phone: dial: %w", err)
	}
	p.wg.Go(func() {
		defer close(c.tried)
		if c.failure = c.await(ctx, tx, inv); c.failure != nil {
			c.end("not answered")
		}
	})
	return c, nil
}

// buildAsIs sends a request as it is.
func buildAsIs(*sipgo.Client, *sip.Request) error { return nil }

func (p *Phone) newCall(bridge string, inv Invite) (*Call, error) {
	a, err := openAudio(p.config.Local)
	if err == nil && p.config.SRTP {
		err = a.encrypt()
	}
	if err != nil {
		return nil, fmt.Errorf("phone: %w", err)
	}
	host, portText, err := net.SplitHostPort(bridge)
	if err != nil {
		return nil, fmt.Errorf("phone: bridge address: %w", err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fmt.Errorf("phone: bridge address: %w", err)
	}
	c := &Call{phone: p, audio: a, done: make(chan struct{}), tried: make(chan struct{}), referred: make(chan string, 1), tag: rand.Text(), cseq: 1, number: inv.Number, bridge: bridge, direction: "sendrecv"}
	c.callID = inv.CallID
	if c.callID == "" {
		c.callID = rand.Text()
	}
	c.target = sip.Uri{Scheme: "sip", User: inv.Number, Host: host, Port: port}
	if p.config.Transport != "udp" {
		c.target.UriParams.Add("transport", p.config.Transport)
	}
	c.to = "<sip:" + inv.Number + "@" + bracketed(host) + ">"
	c.invite = c.request(sip.INVITE)
	for name, value := range inv.Headers {
		c.invite.AppendHeader(sip.NewHeader(name, value))
	}
	body := inv.SDP
	if body == nil && !inv.LateOffer {
		body = c.offer()
	}
	c.setSDP(c.invite, body)
	p.mu.Lock()
	p.calls[c.callID] = c
	p.mu.Unlock()
	return c, nil
}

func (p *Phone) callOf(m sip.Message) *Call {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := m.CallID(); h != nil {
		return p.calls[h.Value()]
	}
	return nil
}

func (p *Phone) onBye(req *sip.Request, tx sip.ServerTransaction) {
	c := p.callOf(req)
	if c == nil {
		_ = tx.Respond(sip.NewResponseFromRequest(req, 481, "Call/Transaction Does Not Exist", nil))
		return
	}
	_ = tx.Respond(sip.NewResponseFromRequest(req, 200, "OK", nil))
	reason := "BYE"
	if h := req.GetHeader("Reason"); h != nil {
		reason = h.Value()
	}
	c.end(reason)
}

// onRegister takes every binding, for as long as is asked, of who knows the password.
func (p *Phone) onRegister(req *sip.Request, tx sip.ServerTransaction) {
	p.note(req)
	if !p.knows(req) {
		res := sip.NewResponseFromRequest(req, 401, "Unauthorized", nil)
		chal := digest.Challenge{Realm: "testbed", Nonce: rand.Text(), Algorithm: "SHA-256", QOP: []string{"auth"}}
		res.AppendHeader(sip.NewHeader("WWW-Authenticate", chal.String()))
		_ = tx.Respond(res)
		return
	}
	res := sip.NewResponseFromRequest(req, 200, "OK", nil)
	for _, name := range []string{"Contact", "Expires"} {
		if h := req.GetHeader(name); h != nil {
			res.AppendHeader(sip.HeaderClone(h))
		}
	}
	_ = tx.Respond(res)
}

// knows tells whether a request was made with the phone's password.
func (p *Phone) knows(req *sip.Request) bool {
	if p.config.Password == "" {
		return true
	}
	h := req.GetHeader("Authorization")
	if h == nil {
		return false
	}
	said, err := digest.ParseCredentials(h.Value())
	if err != nil {
		return false
	}
	want, err := digest.Digest(&digest.Challenge{Realm: said.Realm, Nonce: said.Nonce, Algorithm: said.Algorithm, QOP: []string{said.QOP}}, digest.Options{
		Method: string(req.Method), URI: said.URI, Count: said.Nc, Cnonce: said.Cnonce, Username: said.Username, Password: p.config.Password,
	})
	return err == nil && want.Response == said.Response
}

func (p *Phone) note(req *sip.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = append(p.requests, string(req.Method))
}

// Requests are the methods of what the bridge has asked the phone, in order: REGISTER, OPTIONS, UPDATE and INVITE.
func (p *Phone) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.requests)
}

// onInvite takes a call of the bridge, and answers a re-INVITE or UPDATE with what we have.
func (p *Phone) onInvite(req *sip.Request, tx sip.ServerTransaction) {
	p.note(req)
	c := p.callOf(req)
	if _, within := req.To().Params.Get("tag"); c == nil && !within && req.IsInvite() && len(req.Body()) > 0 {
		p.takeInvite(req, tx)
		return
	}
	if c == nil {
		_ = tx.Respond(sip.NewResponseFromRequest(req, 481, "Call/Transaction Does Not Exist", nil))
		return
	}
	c.mu.Lock()
	declines := c.declines
	c.mu.Unlock()
	if declines != 0 {
		_ = tx.Respond(sip.NewResponseFromRequest(req, declines, "Refused", nil))
		return
	}
	res := sip.NewResponseFromRequest(req, 200, "OK", nil)
	res.AppendHeader(sip.NewHeader("Contact", p.contact()))
	switch {
	case len(req.Body()) > 0:
		if err := c.takeSDP(req.Body()); err != nil {
			_ = tx.Respond(sip.NewResponseFromRequest(req, 488, "Not Acceptable Here", nil))
			return
		}
		res.AppendHeader(sip.NewHeader("Content-Type", "application/sdp"))
		res.SetBody(c.answerSDP())
	case req.IsInvite():
		res.AppendHeader(sip.NewHeader("Content-Type", "application/sdp"))
		res.SetBody(c.offer())
	}
	c.mu.Lock()
	c.reinvited++
	c.follow(req)
	c.mu.Unlock()
	_ = tx.Respond(res)
}

// follow takes a new Contact of the bridge (RFC 3261 §12.2.2); called with mu held.
func (c *Call) follow(req *sip.Request) {
	h := req.Contact()
	if h == nil || len(c.routes) > 0 {
		return
	}
	c.target = *h.Address.Clone()
	if port := c.target.Port; port != 0 {
		c.bridge = net.JoinHostPort(c.target.Host, strconv.Itoa(port))
	}
}

// strayResponse acknowledges answers that come again after their transaction ended.
func (p *Phone) strayResponse(res *sip.Response) {
	c := p.callOf(res)
	if c == nil || !res.IsSuccess() || res.CSeq() == nil || res.CSeq().MethodName != sip.INVITE {
		return
	}
	c.ack(res)
}

func (p *Phone) contact() string {
	v := "<sip:" + p.config.User + "@" + p.local.String()
	if p.config.Transport != "udp" {
		v += ";transport=" + p.config.Transport
	}
	return v + ">"
}

// await follows the INVITE transaction until the answer.
func (c *Call) await(ctx context.Context, tx sip.ClientTransaction, inv Invite) error {
	cancelled, heard := false, false
	done := ctx.Done()
	var patience <-chan time.Time
	for {
		select {
		case <-done:
			if !heard { // RFC 3261 §9.1: nothing to cancel before a provisional answer
				tx.Terminate()
				return fmt.Errorf("phone: dial: no answer at all: %w", ctx.Err())
			}
			done, cancelled = nil, true
			patience = time.After(5 * time.Second)
			c.cancel(inv.GivesUp)
		case <-patience:
			tx.Terminate()
			return fmt.Errorf("phone: dial: CANCEL without effect: %w", ctx.Err())
		case <-tx.Done():
			return fmt.Errorf("phone: dial: %w", tx.Err())
		case <-c.done:
			tx.Terminate()
			return fmt.Errorf("phone: dial: %s", c.Ended())
		case res := <-tx.Responses():
			switch {
			case res.StatusCode < 200:
				heard = true
				if err := c.early(ctx, res); err != nil {
					return err
				}
				if inv.OnStatus != nil {
					inv.OnStatus(res.StatusCode)
				}
			case res.StatusCode >= 300:
				e := &StatusError{Code: res.StatusCode, Reason: res.Reason}
				for header, into := range map[string]*string{"Warning": &e.Warning, "Reason": &e.Cause, "Retry-After": &e.RetryAfter} {
					if h := res.GetHeader(header); h != nil {
						*into = h.Value()
					}
				}
				tx.Terminate()
				return errors.Join(e, ctx.Err())
			default:
				return c.answered(tx, res, inv, cancelled)
			}
		}
	}
}

// early begins to listen, and to send silence, when a provisional answer brings the bridge's description. One that wants to be
// acknowledged is (RFC 3262), if the INVITE said that the phone can do that.
func (c *Call) early(ctx context.Context, res *sip.Response) error {
	defer func() { // who sees the status has what came with it
		c.mu.Lock()
		c.statuses = append(c.statuses, res.StatusCode)
		c.mu.Unlock()
	}()
	if rseq := headerValue(res, "RSeq"); rseq != "" {
		c.mu.Lock()
		c.to, c.target = headerValue(res, "To"), *res.Contact().Address.Clone()
		c.mu.Unlock()
		req := c.Request(sip.PRACK)
		req.AppendHeader(sip.NewHeader("RAck", fmt.Sprintf("%s %d INVITE", rseq, res.CSeq().SeqNo)))
		if ack, err := c.Do(ctx, req); err != nil {
			return err
		} else if ack.StatusCode != 200 {
			return fmt.Errorf("phone: PRACK answered with %d", ack.StatusCode)
		}
	}
	if len(res.Body()) == 0 {
		return nil
	}
	if err := c.takeSDP(res.Body()); err != nil {
		return err
	}
	c.startAudio()
	return nil
}

// answered takes the 200: it acknowledges it, again whenever it comes again, and begins to talk.
func (c *Call) answered(tx sip.ClientTransaction, res *sip.Response, inv Invite, cancelled bool) error {
	c.final = res
	c.mu.Lock()
	c.establish(res)
	c.mu.Unlock()
	tx.OnRetransmission(func(again *sip.Response) {
		if again.IsSuccess() {
			c.count2xx()
			if !inv.NoACK {
				c.ack(again)
			}
		}
	})
	c.phone.wg.Go(func() {
		select {
		case <-tx.Done():
		case <-c.done:
			tx.Terminate()
		}
	})
	if len(res.Body()) > 0 || c.Answer() == "" { // else both have said all before
		if err := c.takeSDP(res.Body()); err != nil {
			return err
		}
	}
	if inv.LateOffer {
		own := c.answerSDP()
		c.mu.Lock()
		c.ackBody = own
		c.mu.Unlock()
	}
	if !inv.NoACK {
		c.ack(res)
	}
	c.startAudio()
	if cancelled { // the CANCEL lost the race (RFC 3261 §9.1)
		ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
		defer stop()
		return errors.Join(context.Canceled, c.Hangup(ctx))
	}
	return nil
}

func headerValue(m sip.Message, name string) string {
	if h := m.GetHeaders(name); len(h) > 0 {
		return strings.TrimSpace(h[0].Value())
	}
	return ""
}

// bracketed writes an IPv6 address as a URI wants it.
func bracketed(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}
