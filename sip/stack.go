package sip

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	gosip "github.com/emiago/sipgo/sip"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
)

// Handler hears of new calls.
type Handler interface {
	// Invite is called for each new call, on a goroutine of its own. It must not block: the call is answered,
	// rejected or left ringing later, from any goroutine. Set [Call.OnEvent] before returning.
	Invite(*Call)
}

// Stack is the phone world: it listens for SIP, keeps dialogs and opens media.
type Stack struct {
	config   Config
	handler  Handler
	log      *slog.Logger
	counters *counters
	ports    *ports
	gate     *gate
	turns    *rate.Limiter  // to ask phones whether they have their calls
	unknown  rate.Sometimes // lets some calls of strangers into the log
	refusals rate.Sometimes // lets some refusals into the log: a flood must not fill the disk
	deafDNS  rate.Sometimes // lets some searches without NAPTR into the log: each call makes one

	naptrAnswers naptrAnswers

	neighbours *neighbours
	connecting singleflight.Group           // one connection to one address at a time
	outgoing   map[Transport]*outgoingConns // those we open, by transport
	dial       func(ctx context.Context, network, addr string) (net.Conn, error)
	watches    map[string]*watch        // by trunk, of those that are registered with or asked
	sought     map[string]chan struct{} // by trunk, of those whose proxy is a name: closed when it was looked up once
	listeners  []listener
	transports *gosip.TransportLayer
	layer      *gosip.TransactionLayer

	root    context.Context // ends when Run's context did: calls stop without BYE
	stop    context.CancelFunc
	calls   sync.WaitGroup // run goroutines of calls and watches, and their transactions
	serving sync.WaitGroup // handlers called by sipgo
	deafen  sync.Once

	mu       sync.Mutex
	running  bool // Run has begun: it closes what there is to close
	closed   bool
	draining bool
	byID     map[dialogID]*Call
	byInvite map[inviteID]*Call // inbound calls by their INVITE, to know a merged request
	// parted are dialled calls that have ended lately: another phone that rang may still answer. prepare fills the queue of a call,
	// the goroutine of part drains it; what comes while it is full is dropped, for that phone says it again.
	parted map[dialogID]chan *gosip.Response
}

// dialogID names a dialog as its requests do. The remote tag is checked by the call.
type dialogID struct{ callID, localTag string }

// inviteID names an initial INVITE whatever way it came (RFC 3261 §8.2.2.2).
type inviteID struct {
	callID, fromTag string
	cseq            uint32
}

// listener is one bound SIP socket.
type listener struct {
	transport Transport
	addr      netip.AddrPort
	packets   net.PacketConn // UDP
	conns     net.Listener   // TCP
	ready     chan struct{}  // closed when messages can be sent from it: nothing leaves before Run
	caughtUp  chan struct{}  // closed when nothing waits in it that came before it was read
}

// sipgo has package variables that every stack of the process shares, and reads them without a lock: so they are set before any is made.
func init() {
	gosip.SetDefaultLogger(slog.New(slog.DiscardHandler)) // it logs whole messages, with numbers and keys in them
	// sipgo refuses to send UDP messages over this size less 200, responses too, and then nobody is answered. A 200
	// with its Record-Routes may be that long; fragments are better than silence.
	gosip.UDPMTUSize = 8192
}

// New checks the configuration and binds the SIP sockets; nothing is read before Run.
func New(c Config, h Handler, log *slog.Logger) (*Stack, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	s := newStack(c, h, log)
	for _, l := range c.Listen {
		if err := s.bind(l); err != nil {
			return nil, errors.Join(err, s.closeSockets())
		}
	}
	return s, nil
}

func newStack(c Config, h Handler, log *slog.Logger) *Stack {
	c.Limits = c.Limits.withDefaults()
	c.RTP = c.RTP.withDefaults()
	if c.UserAgent == "" {
		c.UserAgent = "Trunkline"
	}
	if c.Sockets == nil {
		c.Sockets = ownSockets{}
	}
	if c.resolver == nil {
		c.resolver = newSystemDNS()
	}
	s := &Stack{
		config: c, handler: h, log: log, counters: newCounters(), ports: newPorts(c.RTP, c.Limits.PortQuarantine, c.Sockets),
		refusals:   rate.Sometimes{First: 20, Interval: time.Second},
		unknown:    rate.Sometimes{First: 5, Interval: time.Minute},
		deafDNS:    rate.Sometimes{Interval: time.Minute},
		neighbours: &neighbours{trunks: c.Trunks},
		outgoing:   map[Transport]*outgoingConns{},
		dial:       new(net.Dialer).DialContext,
		byID:       map[dialogID]*Call{}, byInvite: map[inviteID]*Call{}, parted: map[dialogID]chan *gosip.Response{},
	}
	s.seekers()
	s.watches = map[string]*watch{}
	for i := range s.config.Trunks {
		if t := &s.config.Trunks[i]; t.Proxy != "" && (t.Register || t.Ping > 0) {
			s.watches[t.Name] = s.newWatch(t)
		}
	}
	s.root, s.stop = context.WithCancel(context.Background())
	s.turns = rate.NewLimiter(refreshRate, 1)
	s.gate = s.newGate()
	parser := newParser(c.Limits)
	discard := slog.New(slog.DiscardHandler)
	s.transports = gosip.NewTransportLayer(net.DefaultResolver, parser, nil, gosip.WithTransportLayerLogger(discard),
		gosip.WithTransportLayerTransports(gosip.TransportsConfig{
			TCP: &gosip.TransportTCP{DialerCreate: s.neverDials},
			TLS: &gosip.TransportTLS{TransportTCP: &gosip.TransportTCP{DialerCreate: s.neverDials}},
		}))
	s.transports.OnMessage(s.prepare) // before the transaction layer's own
	s.layer = gosip.NewTransactionLayer(s.transports,
		gosip.WithTransactionLayerLogger(discard),
		gosip.WithTransactionLayerUnhandledResponseHandler(s.stray))
	s.layer.OnRequest(s.serve)
	return s
}

// newParser reads Record-Route as it is written: sipgo keeps of an address there what is between the brackets, but parameters behind it
// must come back in our responses and in the routes of our requests (RFC 3261 §12.1.1).
func newParser(l Limits) *gosip.Parser {
	parsers := maps.Clone(gosip.DefaultHeadersParser())
	delete(parsers, "record-route")
	parser := gosip.NewParser(gosip.WithHeadersParsers(parsers))
	parser.MaxMessageLength = l.MessageBytes
	return parser
}

// errNoDial is what sipgo gets that would open a connection.
var errNoDial = errors.New("sip: the connection is gone")

// neverDials keeps sipgo from opening connections by itself, as it does for the answer to a request whose connection is gone already: what
// comes over them passes no guard, and nothing bounds what goes. Those that we need are opened by [Stack.open].
func (s *Stack) neverDials(net.Addr) net.Dialer {
	return net.Dialer{Control: func(_, _ string, _ syscall.RawConn) error {
		s.counters.drop(dropUnanswerable)
		return errNoDial
	}}
}

func (s *Stack) bind(l Listen) error {
	switch l.Transport {
	case UDP:
		conn, err := s.config.Sockets.ListenUDP(l.Addr)
		if err != nil {
			return fmt.Errorf("sip: listen: %w", err)
		}
		s.addPackets(conn)
	case TCP, TLS:
		ln, err := s.config.Sockets.ListenTCP(l.Addr)
		if err != nil {
			return fmt.Errorf("sip: listen: %w", err)
		}
		s.listeners = append(s.listeners, listener{
			transport: l.Transport, addr: addrPortOf(ln.Addr()), ready: make(chan struct{}),
			caughtUp: closedChannel(), conns: &guardedListener{Listener: ln, guard: s.guard(), secure: s.securer(l.Transport)},
		})
		if s.outgoing[l.Transport] == nil {
			s.outgoing[l.Transport] = newOutgoingConns(ln.Addr())
		}
	}
	return nil
}

// addPackets takes a ready packet socket.
func (s *Stack) addPackets(conn net.PacketConn) {
	ready := make(chan struct{})
	packets := newGuardedPackets(conn, s.guard(), sync.OnceFunc(func() { close(ready) }))
	s.listeners = append(s.listeners, listener{
		transport: UDP, addr: addrPortOf(conn.LocalAddr()), ready: ready, caughtUp: packets.empty, packets: packets,
	})
}

func closedChannel() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func (s *Stack) guard() *guard {
	parser := newParser(s.config.Limits)
	return &guard{neighbours: s.neighbours, gate: s.gate, limits: s.config.Limits, counters: s.counters, log: s.log, parser: parser, calls: s.callAt, unknown: &s.unknown}
}

// callAt says that there is a call with who is at an address.
func (s *Stack) callAt(a netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.byID {
		if c.snapshot.Load().Remote == a {
			return true
		}
	}
	return false
}

// Addr is the bound address of the first listener with this transport.
func (s *Stack) Addr(t Transport) netip.AddrPort {
	for _, l := range s.listeners {
		if l.transport == t {
			return l.addr
		}
	}
	return netip.AddrPort{}
}

// Run serves until ctx ends, then closes the sockets and returns when every goroutine of the stack has. Calls are
// dropped without BYE: they may go on in another process (see [Stack.Resume]). Hang up first to end them.
func (s *Stack) Run(ctx context.Context) error {
	s.mu.Lock()
	closed := s.closed
	s.running = true
	s.mu.Unlock()
	if closed {
		return fmt.Errorf("sip: %w", net.ErrClosed)
	}
	var listening sync.WaitGroup
	failed := make(chan error, len(s.listeners)) // each listener fills at most one
	for _, l := range s.listeners {
		if l.conns != nil { // that of datagrams is when the first one is read
			close(l.ready)
		}
		listening.Go(func() {
			if err := s.listen(l); err != nil && !errors.Is(err, net.ErrClosed) {
				failed <- fmt.Errorf("sip: %s %v: %w", l.transport, l.addr, err)
			}
		})
	}
	for t, own := range s.outgoing {
		listening.Go(func() { _ = s.listen(listener{transport: t, conns: own}) }) // it ends with its Close
	}
	for name, first := range s.sought {
		s.calls.Go(func() { s.seek(s.trunkNamed(name), first) })
	}
	for _, w := range s.watches {
		s.calls.Go(w.run)
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.Deafen()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.calls.Wait()
	s.closeTransports(&listening)
	s.serving.Wait()
	return err
}

// Close gives back the sockets of a stack that never came to [Stack.Run], and lets go of the calls it has resumed, without
// a word to their phones. Once Run was called there is nothing left to close, and Close does nothing.
func (s *Stack) Close() error {
	s.mu.Lock()
	if s.running || s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.calls.Wait()
	err := s.closeSockets()
	s.layer.Close()
	return errors.Join(err, s.transports.Close())
}

// settle is how long sipgo may need to find the connection for a message it has already read. When the connection is
// gone by then, it would open a new socket that nobody closes.
const settle = 10 * time.Millisecond

// Deafen ends the reading of UDP messages, and gives those that were read the time to be handled. What comes from now on stays
// in the socket, for the next process if it gets it (see [Sockets]).
func (s *Stack) Deafen() {
	s.deafen.Do(func() {
		for _, l := range s.listeners {
			if p, ok := l.packets.(*guardedPackets); ok {
				p.deafen()
			}
		}
		time.Sleep(settle)
	})
}

// closeTransports ends the read loops and everything sipgo holds. Messages must not be read any more.
func (s *Stack) closeTransports(listening *sync.WaitGroup) {
	_ = s.closeSockets() // they are going anyway
	listening.Wait()
	s.layer.Close()
	_ = s.transports.Close()
}

func (s *Stack) listen(l listener) error {
	switch l.transport {
	case UDP:
		return s.transports.ServeUDP(l.packets)
	case TLS:
		return s.transports.ServeTLS(l.conns) // what it accepts is secured already
	}
	return s.transports.ServeTCP(l.conns)
}

func (s *Stack) closeSockets() error {
	var errs []error
	for _, own := range s.outgoing {
		errs = append(errs, own.Close())
	}
	for _, l := range s.listeners {
		if l.packets != nil {
			errs = append(errs, l.packets.Close())
		}
		if l.conns != nil {
			errs = append(errs, l.conns.Close())
		}
	}
	return errors.Join(errs...)
}

// Drain refuses new calls with 503 while those that are up go on.
func (s *Stack) Drain(on bool) {
	s.mu.Lock()
	s.draining = on
	s.mu.Unlock()
}

// Stats returns the counters.
func (s *Stack) Stats() Stats {
	st := s.counters.stats()
	s.mu.Lock()
	st.Calls = len(s.byID)
	s.mu.Unlock()
	st.RTPPorts = s.ports.inUse()
	st.Banned = s.gate.bans()
	return st
}

// unmarked tells the tag we put on a new INVITE from one the phone sent: sipgo keeps this field for outgoing requests.
const unmarked = "new"

// prepare runs on the read loop before a transaction sees the message; later changes would race with it. It adds the
// tag of our side to requests outside a dialog, so that sipgo's own 487 carries the same one as our 180 (§8.2.6.2), and
// the received parameter (§18.2.1), and leaves of a body what is for us.
func (s *Stack) prepare(m gosip.Message) {
	if res, ok := m.(*gosip.Response); ok {
		describe(res)
		s.tooLate(res)
		return
	}
	req, ok := m.(*gosip.Request)
	if !ok {
		return
	}
	describe(req)
	req.Laddr = gosip.Addr{}
	if to := req.To(); to != nil && !req.IsAck() && req.Method != gosip.CANCEL && !to.Params.Has("tag") {
		to.Params.Add("tag", newTag())
		req.Laddr.Hostname = unmarked
	}
	if via := req.Via(); via != nil {
		if host, _, err := net.SplitHostPort(req.Source()); err == nil && strings.Trim(via.Host, "[]") != host {
			via.Params.Add("received", host)
		}
	}
	if req.Method == gosip.CANCEL {
		s.cancelling(req)
	}
}

// inDialog says whether the request came with a To tag.
func inDialog(req *gosip.Request) bool {
	return req.Laddr.Hostname != unmarked && req.To() != nil && req.To().Params.Has("tag")
}

// serve is called by sipgo for each request that opens a transaction, on a goroutine of its own.
func (s *Stack) serve(req *gosip.Request, tx *gosip.ServerTx) {
	defer tx.TerminateGracefully()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.serving.Add(1)
	s.mu.Unlock()
	defer s.serving.Done()
	defer func() {
		if r := recover(); r != nil {
			s.panicked(r)
			if !req.IsAck() {
				s.respond(req, tx, refuse(500, statusText(500)))
			}
		}
	}()
	s.route(req, tx)
}

func (s *Stack) panicked(r any) {
	s.counters.panics.Add(1)
	s.log.Error("sip handler panicked", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
}

// route finds who answers a request.
func (s *Stack) route(req *gosip.Request, tx *gosip.ServerTx) {
	if req.IsAck() {
		if c := s.callOf(req); c != nil {
			c.inbox.put(func() { c.handleAck(req) })
		}
		return
	}
	if r := checkRequest(req); r != nil {
		s.respond(req, tx, r)
		return
	}
	switch c := s.callOf(req); {
	case c != nil:
		c.serve(req, tx)
	case inDialog(req):
		s.respond(req, tx, refuse(481, statusText(481)).because(whyNoDialog))
	case req.IsInvite():
		s.newCall(req, tx)
	case req.Method == gosip.OPTIONS:
		s.respond(req, tx, s.options())
	case req.Method == gosip.REFER: // to make calls that nobody here has ordered
		s.respond(req, tx, refuse(403, statusText(403)))
	case req.Method == gosip.CANCEL && s.withdraw(req):
		s.respond(req, tx, refuse(200, statusText(200)))
	default: // CANCEL of nothing (§9.2), BYE, INFO and UPDATE outside a dialog
		s.respond(req, tx, refuse(481, statusText(481)))
	}
}

// cancelPatience is how long a CANCEL of nothing waits for its INVITE: each message has a goroutine of its own, and those of messages
// that came together may run in any order.
const cancelPatience = 100 * time.Millisecond

// withdraw ends the call of a CANCEL for which sipgo has found no transaction. It is false when there is no such call.
func (s *Stack) withdraw(cancel *gosip.Request) bool {
	for _, pause := range []time.Duration{0, cancelPatience} {
		if !pauseFor(s.root, pause) {
			break
		}
		if c := s.cancelling(cancel); c != nil {
			return c.inbox.put(func() { c.withdrawn(cancel) })
		}
	}
	return false
}

// cancelling is the call of a CANCEL, which remembers it: sipgo drops one that it cannot answer, because the connection was closed
// behind it. It is nil when there is no such call.
func (s *Stack) cancelling(cancel *gosip.Request) *Call {
	if cancel.CallID() == nil || cancel.From() == nil || cancel.CSeq() == nil || cancel.Via() == nil {
		return nil
	}
	s.mu.Lock()
	c := s.byInvite[inviteOf(cancel)]
	s.mu.Unlock()
	if branch, _ := cancel.Via().Params.Get("branch"); c == nil || c.snapshot.Load().InviteBranch != branch {
		return nil
	}
	c.cancel.Store(cancel)
	return c
}

// options answers a capability query or a trunk's keep-alive (§11.2). Who asks within a call asks for that one ([capabilities] 200): it
// goes on however full or near its end the process is.
func (s *Stack) options() *refusal {
	if s.full() {
		return capabilities(503)
	}
	return capabilities(200)
}

// capabilities are what an INVITE may make use of.
func capabilities(code int) *refusal {
	return refuse(code, statusText(code), allowHeader(), supportedHeader(), gosip.NewHeader("Accept", bodyTypes),
		gosip.NewHeader("Accept-Encoding", "identity"), gosip.NewHeader("Accept-Language", "en"))
}

func (s *Stack) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining || len(s.byID) >= s.config.Limits.Calls
}

// callOf finds the call of an in-dialog request.
func (s *Stack) callOf(req *gosip.Request) *Call {
	if !inDialog(req) || req.CallID() == nil {
		return nil
	}
	tag, _ := req.To().Params.Get("tag")
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byID[dialogID{req.CallID().Value(), tag}]
}

// respond sends a final answer that is not about a call.
func (s *Stack) respond(req *gosip.Request, tx gosip.ServerTransaction, r *refusal) {
	if r.code >= 300 {
		s.counters.refuse(r.code)
		if source, err := netip.ParseAddrPort(req.Source()); err == nil && failing(r.code) && req.Transport() != "UDP" {
			s.gate.failed(source.Addr())
		}
		s.refusals.Do(func() {
			s.log.Info("request refused", "method", string(req.Method), "code", r.code, "why", r.cause(), "source", req.Source())
		})
	}
	if err := tx.Respond(s.response(req, r.code, r.reason, r.headers...)); err != nil {
		s.log.Debug("response not sent", "code", r.code, "err", err)
	}
}

// response builds a response of ours; the reason phrase must be ours, too.
func (s *Stack) response(req *gosip.Request, code int, reason string, headers ...gosip.Header) *gosip.Response {
	res := gosip.NewResponseFromRequest(req, code, reason, nil)
	res.SipVersion = "SIP/2.0" // not the request's, which a 505 answers
	for _, h := range headers {
		res.AppendHeader(h)
	}
	res.AppendHeader(gosip.NewHeader("Server", s.config.UserAgent))
	return res
}

// newCall takes an INVITE outside a dialog. It returns when the INVITE transaction needs no more care.
func (s *Stack) newCall(req *gosip.Request, tx *gosip.ServerTx) {
	source, err := netip.ParseAddrPort(req.Source())
	if err != nil {
		s.respond(req, tx, refuse(400, statusText(400)))
		return
	}
	trunks := calling(s.neighbours.trunksOf(source.Addr()))
	if len(trunks) == 0 { // somebody who is no trunk any more: of a resumed call, or over a connection that we have opened
		s.respond(req, tx, refuse(403, statusText(403)))
		return
	}
	trunk := addressed(trunks, userPart(&req.Recipient), userPart(&req.To().Address))
	if s.repeated(req) {
		return
	}
	if r, bad := replacesOf(req); bad != nil {
		s.respond(req, tx, bad)
		return
	} else if r != nil {
		s.replace(r, trunks, source, req, tx)
		return
	}
	c := newCall(s, trunk, req, tx, source)
	if r := c.screen(); r != nil {
		s.respond(req, tx, r)
		return
	}
	if r := s.admit(c, req); r != nil {
		s.respond(req, tx, r)
		return
	}
	c.serveInvite(tx)
}

// repeated says that an INVITE is the one of a call that is here, although its transaction is not: the process before had it, and
// the phone has heard nothing of that. What becomes of the call it hears anyway.
func (s *Stack) repeated(req *gosip.Request) bool {
	s.mu.Lock()
	known := s.byInvite[inviteOf(req)]
	s.mu.Unlock()
	if known == nil {
		return false
	}
	branch, _ := req.Via().Params.Get("branch")
	return known.snapshot.Load().InviteBranch == branch
}

// admit enters a new call into the tables, or says why not.
func (s *Stack) admit(c *Call, req *gosip.Request) *refusal {
	retry := gosip.NewHeader("Retry-After", "10")
	id := inviteOf(req)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byInvite[id] != nil {
		return refuse(482, "Loop Detected") // §8.2.2.2: the same request by another path
	}
	why := ""
	switch {
	case s.closed, s.draining:
		why = awayDraining
	case s.busy(c.trunk):
		why = awayCalls
	case len(s.byID) >= s.config.Limits.Calls:
		why = awayFull
	}
	if why != "" {
		s.counters.turnAway(c.trunk.Name, why)
		return refuse(503, statusText(503), retry)
	}
	s.counters.invites.Add(1)
	s.enter(c)
	s.byInvite[id] = c
	s.calls.Go(c.run)
	return nil
}

// busy says that a trunk has all the calls it may have; called with mu held.
func (s *Stack) busy(trunk *Trunk) bool {
	n := 0
	for _, other := range s.byID {
		if other.trunk == trunk {
			n++
		}
	}
	return trunk.MaxCalls > 0 && n >= trunk.MaxCalls
}

// stray takes a response nobody waits for any more: a 2xx that another phone sends late must still be hung up, one to an INVITE of
// the process before must still be acknowledged.
func (s *Stack) stray(res *gosip.Response) {
	if res.CSeq() == nil || res.CSeq().MethodName != gosip.INVITE || res.CallID() == nil || res.From() == nil || res.Via() == nil {
		return
	}
	tag, _ := res.From().Params.Get("tag")
	branch, _ := res.Via().Params.Get("branch")
	s.mu.Lock()
	c := s.byID[dialogID{res.CallID().Value(), tag}]
	s.mu.Unlock()
	switch {
	case c == nil:
	case c.out != nil:
		c.inbox.put(func() { c.handleResponse(branch, res) })
	case res.IsSuccess() && res.To() != nil:
		c.inbox.put(func() { c.answeredBefore(res) })
	}
}

// tooLate takes a 2xx to the INVITE of a call that has ended: that phone must hear so (RFC 3261 §13.2.2.4). It looks before the
// transaction does, which drops every 2xx behind the refusal that has ended the call.
func (s *Stack) tooLate(res *gosip.Response) {
	if !res.IsSuccess() || res.CSeq() == nil || res.CSeq().MethodName != gosip.INVITE || res.CallID() == nil || res.From() == nil {
		return
	}
	tag, _ := res.From().Params.Get("tag")
	s.mu.Lock()
	late := s.parted[dialogID{res.CallID().Value(), tag}]
	s.mu.Unlock()
	select {
	case late <- res:
	default: // no such call, or its queue is full
	}
}

// lateAnswers is how many answers to a call that has ended may wait for their turn.
const lateAnswers = 8

// part keeps a dialled call that has ended for as long as others may answer its INVITE.
func (s *Stack) part(c *Call) {
	id, late := c.id, make(chan *gosip.Response, lateAnswers)
	s.mu.Lock()
	s.parted[id] = late
	s.gate.regulars.come(id.callID)
	s.mu.Unlock()
	s.calls.Go(func() {
		over := time.NewTimer(64 * t1)
		defer over.Stop()
		<-c.done // nobody else touches it any more
		c.answerLate(late, over.C)
		s.mu.Lock()
		delete(s.parted, id)
		s.gate.regulars.leave(id.callID)
		s.mu.Unlock()
	})
}

// answerLate serves the phones that answer a call which has ended. It runs when run has returned, and owns the call then.
func (c *Call) answerLate(late <-chan *gosip.Response, over <-chan time.Time) {
	for {
		select {
		case res := <-late:
			c.survives(func() { c.phoneAnswered(res) })
		case <-over:
			return
		case <-c.stack.root.Done():
			return
		}
	}
}

func inviteOf(req *gosip.Request) inviteID {
	tag, _ := req.From().Params.Get("tag")
	return inviteID{req.CallID().Value(), tag, req.CSeq().SeqNo}
}

// enter makes a call known by its dialog; called with mu held.
func (s *Stack) enter(c *Call) {
	s.byID[c.id] = c
	s.gate.crowd.calls.Add(1)
	s.gate.regulars.come(c.id.callID)
}

// leave undoes that. It is false when the dialog is another call's, or nobody's; called with mu held.
func (s *Stack) leave(c *Call, id dialogID) bool {
	if s.byID[id] != c {
		return false
	}
	delete(s.byID, id)
	s.gate.regulars.leave(id.callID)
	return true
}

// forget drops a call that has ended.
func (s *Stack) forget(c *Call) {
	s.mu.Lock()
	s.leave(c, c.id)
	if c.invite != nil {
		delete(s.byInvite, inviteOf(c.invite.req))
	}
	s.mu.Unlock()
	if c.heardAt.IsValid() {
		s.neighbours.release(c.heardAt, c.trunk)
		c.heardAt = netip.Addr{}
	}
}

func newTag() string { return strings.ToLower(rand.Text()[:20]) }

func newBranch() string { return gosip.RFC3261BranchMagicCookie + rand.Text() }

// transactionTimeout is a little more than a client transaction of sipgo takes to give up (64*T1).
const transactionTimeout = 33 * time.Second
