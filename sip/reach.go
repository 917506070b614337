package sip

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

const (
	lookupTimeout  = 10 * time.Second
	connectTimeout = 10 * time.Second
)

// target is one place where a trunk may be reached, and how.
type target struct {
	addr      netip.AddrPort
	transport Transport
}

// neighbours knows whose messages are heard: the trunks' networks, the addresses their proxies turned out to have, and where
// resumed calls were heard before.
type neighbours struct {
	trunks []Trunk

	mu    sync.RWMutex
	rests map[server]rest
	lost  map[string]time.Time    // names that led nowhere, and until when that holds
	found map[string][]netip.Addr // by name of the trunk, the latest last
	held  map[netip.Addr][]*Trunk // by where they were heard, the trunks of resumed calls, one for each call
}

// server is where calls go, as one trunk knows it: 503 may be about that trunk's account alone.
type server struct {
	trunk string
	addr  netip.AddrPort
}

// rest is a while in which a server gets no calls of a trunk that can go elsewhere.
type rest struct {
	since, until time.Time
	why          error
}

// maxFound is how many addresses of one trunk's proxy are remembered: a few more than a name has.
const maxFound = 16

// trunkOf is whose messages from an address are: of the first of [neighbours.trunksOf], or else of a resumed call's trunk. It is nil
// when there is none.
func (n *neighbours) trunkOf(a netip.Addr) *Trunk {
	if trunks := n.trunksOf(a); len(trunks) > 0 {
		return trunks[0]
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if held := n.held[a.Unmap()]; len(held) > 0 {
		return held[0]
	}
	return nil
}

// trunksOf are those whose new calls may come from an address: who has it in its networks, then whose proxy was found there.
func (n *neighbours) trunksOf(a netip.Addr) (out []*Trunk) {
	a = a.Unmap()
	for i := range n.trunks {
		if n.trunks[i].contains(a) {
			out = append(out, &n.trunks[i])
		}
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	for i := range n.trunks {
		if t := &n.trunks[i]; slices.Contains(n.found[t.Name], a) && !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// named says that an address was written into the config by itself, or is one of a proxy.
func (n *neighbours) named(a netip.Addr) bool {
	for i := range n.trunks {
		if slices.ContainsFunc(n.trunks[i].Networks, func(p netip.Prefix) bool { return p.IsSingleIP() && p.Contains(a) }) {
			return true
		}
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, found := range n.found {
		if slices.Contains(found, a) {
			return true
		}
	}
	return false
}

func (n *neighbours) find(trunk *Trunk, targets []target) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.found == nil {
		n.found = map[string][]netip.Addr{}
	}
	list := n.found[trunk.Name]
	for _, t := range targets {
		list = slices.DeleteFunc(list, func(a netip.Addr) bool { return a == t.addr.Addr() })
		list = append(list, t.addr.Addr())
	}
	n.found[trunk.Name] = list[max(0, len(list)-maxFound):]
}

// Rests, whatever a server says: who dials would rather be refused once more.
const (
	longestRest = 5 * time.Minute
	trunkRest   = 10 * time.Second // of all servers of a trunk, where another trunk takes the call
	silentRest  = time.Minute
)

// Why a server rests.
var (
	errAsked  = errors.New("it has asked for no calls for a while (503 with Retry-After)")
	errSilent = errors.New("it did not answer the call before")
)

// leave notes that a server is to get no more calls of this trunk for a while.
func (n *neighbours) leave(trunk *Trunk, addr netip.AddrPort, d time.Duration, why error) {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.rests, func(_ server, r rest) bool { return !now.Before(r.until) })
	if n.rests == nil {
		n.rests = map[server]rest{}
	}
	n.rests[server{trunk.Name, addr}] = rest{now, now.Add(min(d, longestRest)), why}
}

// awake are the targets of a trunk that a call is to be sent to: those that do not rest. Where all do, a call that can go elsewhere
// goes there, for trunkRest; any other tries them all the same, the one whose rest ends first before the others, since one answer
// that may have been about one number, or an uplink of ours that was gone, must not take the trunk away.
func (n *neighbours) awake(trunk *Trunk, targets []target, elsewhere bool) ([]target, error) {
	now := time.Now()
	n.mu.RLock()
	defer n.mu.RUnlock()
	of := func(t target) rest { return n.rests[server{trunk.Name, t.addr}] }
	up := slices.DeleteFunc(slices.Clone(targets), func(t target) bool { return now.Before(of(t).until) })
	if len(up) > 0 {
		return up, nil
	}
	tried := slices.DeleteFunc(slices.Clone(targets), func(t target) bool { return elsewhere && now.Before(of(t).since.Add(trunkRest)) })
	if len(tried) == 0 {
		return nil, of(targets[0]).why
	}
	slices.SortStableFunc(tried, func(a, b target) int { return of(a).until.Compare(of(b).until) })
	return tried, nil
}

// Names that lead nowhere.
const (
	namePatience = 3 * time.Second // how long one is looked up for a phone whose address is known
	nameLost     = time.Minute     // how long it is not looked up again
	maxLost      = 1000            // at a time: phones choose them
)

// lose notes that a name leads nowhere.
func (n *neighbours) lose(host string) {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.lost, func(_ string, until time.Time) bool { return !now.Before(until) })
	if n.lost == nil {
		n.lost = map[string]time.Time{}
	}
	if len(n.lost) < maxLost {
		n.lost[host] = now.Add(nameLost)
	}
}

func (n *neighbours) nowhere(host string) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return time.Now().Before(n.lost[host])
}

// hold lets an address be heard for a call of this trunk, until release.
func (n *neighbours) hold(a netip.Addr, trunk *Trunk) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.held == nil {
		n.held = map[netip.Addr][]*Trunk{}
	}
	n.held[a] = append(n.held[a], trunk)
}

func (n *neighbours) release(a netip.Addr, trunk *Trunk) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i := slices.Index(n.held[a], trunk); i >= 0 {
		n.held[a] = slices.Delete(n.held[a], i, i+1)
	}
	if len(n.held[a]) == 0 {
		delete(n.held, a)
	}
}

func (s *Stack) trunkNamed(name string) *Trunk {
	for i := range s.config.Trunks {
		if s.config.Trunks[i].Name == name {
			return &s.config.Trunks[i]
		}
	}
	return nil
}

// ways are the transports that a trunk may be spoken to over, the one that nothing needs to recommend last.
func (s *Stack) ways(trunk *Trunk) []Transport {
	if trunk.Transport != Auto {
		return []Transport{trunk.transport()}
	}
	return slices.DeleteFunc([]Transport{TLS, TCP, UDP}, func(t Transport) bool {
		_, ok := s.listenerFor(Dialog{Transport: t})
		return !ok
	})
}

// outlet is the socket that requests to a trunk leave from until DNS says more.
func (s *Stack) outlet(trunk *Trunk) (listener, error) {
	ways := s.ways(trunk)
	if len(ways) > 0 {
		if l, ok := s.listenerFor(Dialog{Transport: ways[len(ways)-1]}); ok {
			return l, nil
		}
	}
	return listener{}, fmt.Errorf("not listening on %s", trunk.transport())
}

// locate finds where a trunk's proxy is (RFC 3263 §4.1, §4.2): an address as it is, a name with a port by A and AAAA, a name
// alone by SRV and then by A and AAAA. NAPTR is asked first where no transport is configured.
func (s *Stack) locate(ctx context.Context, trunk *Trunk) ([]target, error) {
	host, port := hostAndPort(trunk.Proxy)
	ways := s.ways(trunk)
	if len(ways) == 0 {
		return nil, fmt.Errorf("locate trunk %s: not listening on %s", trunk.Name, trunk.transport())
	}
	plain := ways[len(ways)-1]
	var out []target
	if addr, err := netip.ParseAddr(host); err == nil {
		out = []target{{netip.AddrPortFrom(addr.Unmap(), cmpPort(port, plain)), plain}}
	} else if port == 0 && trunk.Transport == Auto {
		out = s.discover(ctx, trunk, host, ways)
	} else if port == 0 {
		out = s.services(ctx, trunk, nil, plain, host)
	}
	if len(out) == 0 {
		addrs, err := s.addresses(ctx, trunk, host)
		if err != nil {
			return nil, fmt.Errorf("locate trunk %s: %w", trunk.Name, err)
		}
		for _, a := range addrs {
			out = oneMore(out, target{netip.AddrPortFrom(a, cmpPort(port, plain)), plain})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("locate trunk %s: %s has no address for us", trunk.Name, clip(host))
	}
	s.neighbours.find(trunk, out)
	if w := s.watches[trunk.Name]; w != nil {
		out = w.prefer(out)
	}
	return out, nil
}

// services asks for the SRV records of SIP over one transport.
func (s *Stack) services(ctx context.Context, trunk *Trunk, out []target, t Transport, host string) []target {
	if t == TLS {
		return s.servers(ctx, trunk, out, t, "sips", "tcp", host)
	}
	return s.servers(ctx, trunk, out, t, "sip", string(t), host)
}

// servers adds those that SRV records name; the resolver sorts them by priority and weight (RFC 2782). Without a service, name is
// that of the records.
func (s *Stack) servers(ctx context.Context, trunk *Trunk, out []target, t Transport, service, proto, name string) []target {
	_, records, err := s.config.resolver.LookupSRV(ctx, service, proto, name)
	if err != nil {
		return out // most names have none
	}
	for _, r := range records[:min(len(records), maxFound)] {
		if len(out) == maxFound {
			break
		}
		addrs, err := s.addresses(ctx, trunk, strings.TrimSuffix(r.Target, "."))
		if err != nil {
			continue
		}
		for _, a := range addrs {
			out = oneMore(out, target{netip.AddrPortFrom(a, r.Port), t})
		}
	}
	return out
}

// oneMore adds a target that is not among them; more than we would hear answers of are none to ask.
func oneMore(targets []target, t target) []target {
	if len(targets) == maxFound || slices.Contains(targets, t) {
		return targets
	}
	return append(targets, t)
}

// startingWith puts a target first, be it among them or not.
func startingWith(targets []target, first target) []target {
	others := slices.DeleteFunc(slices.Clone(targets), func(t target) bool { return t == first })
	return append([]target{first}, others...)
}

// turnTo takes the dialog of a request that is yet to be sent to a socket of this transport, and says whether it was at another.
func (d *Dialog) turnTo(s *Stack, t Transport) bool {
	l, ok := s.listenerFor(Dialog{Transport: t, LocalSocket: d.LocalSocket})
	if t == d.Transport || !ok {
		return false
	}
	d.Transport, d.LocalSocket, d.Contact = t, l.addr, s.contact(s.trunkNamed(d.Info.Trunk), t, l.addr)
	return true
}

func (s *Stack) addresses(ctx context.Context, trunk *Trunk, host string) ([]netip.Addr, error) {
	addrs, err := s.config.resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	ours := s.soundHost(trunk).Unmap()
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool { return a.Is4() != ours.Is4() }), nil
}

func hostAndPort(s string) (string, uint16) {
	if host, port, err := net.SplitHostPort(s); err == nil {
		n, _ := strconv.ParseUint(port, 10, 16)
		return host, uint16(n)
	}
	return strings.Trim(s, "[]"), 0
}

func cmpPort(port uint16, t Transport) uint16 {
	switch {
	case port != 0:
		return port
	case t == TLS:
		return 5061
	}
	return 5060
}

// begin sends a request as a client transaction.
func (s *Stack) begin(ctx context.Context, trunk *Trunk, req *gosip.Request) (*gosip.ClientTx, error) {
	connecting, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	s.awaitFound(connecting, trunk, req)
	s.awaitRegistered(connecting, trunk, req)
	if err := s.connect(connecting, trunk, req); err != nil {
		return nil, fmt.Errorf("%s: %w", req.Method, err)
	}
	tx, err := s.layer.Request(connecting, req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.Method, err)
	}
	return tx, nil
}

// registerPatience is how long anything else waits for the first REGISTER.
const registerPatience = 5 * time.Second

// awaitRegistered lets nothing be sent before the first REGISTER of this process is answered, where a registration belongs to a
// connection: that of the process before is gone, and the registrar knows us by ours only (RFC 5626 §5.3).
func (s *Stack) awaitRegistered(ctx context.Context, trunk *Trunk, req *gosip.Request) {
	if trunk == nil || !trunk.Register || strings.EqualFold(req.Transport(), string(UDP)) || req.Method == gosip.REGISTER {
		return
	}
	w := s.watches[trunk.Name]
	if w == nil {
		return
	}
	patience := time.NewTimer(registerPatience)
	defer patience.Stop()
	select {
	case <-w.asked:
	case <-patience.C:
	case <-ctx.Done():
	}
}

// exchange sends a request other than INVITE and waits for its final answer, or for timer F.
func (s *Stack) exchange(trunk *Trunk, req *gosip.Request) (*gosip.Response, error) {
	ctx, cancel := context.WithTimeout(s.root, transactionTimeout)
	defer cancel()
	tx, err := s.begin(ctx, trunk, req)
	if err != nil {
		return nil, err
	}
	defer tx.Terminate()
	for {
		select {
		case res := <-tx.Responses():
			if !res.IsProvisional() {
				return res, nil
			}
		case <-tx.Done():
			return nil, fmt.Errorf("%s: %w", req.Method, tx.Err())
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", req.Method, ctx.Err())
		}
	}
}

// connect makes sure that a request can leave: that the UDP socket is known to sipgo (a call may be resumed and ended
// before Run has begun), or that there is a connection to where it goes.
func (s *Stack) connect(ctx context.Context, trunk *Trunk, req *gosip.Request) error {
	t := Transport(strings.ToLower(req.Transport()))
	l, ok := s.listenerFor(Dialog{Transport: t, LocalSocket: addrPortOf(&net.UDPAddr{IP: req.Laddr.IP, Port: req.Laddr.Port})})
	if !ok {
		return fmt.Errorf("not listening on %s", t)
	}
	select {
	case <-l.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	addr, err := s.destination(ctx, trunk, req, t)
	if err != nil || t == UDP {
		return err
	}
	return s.join(ctx, trunk, t, addr)
}

// join makes sure that there is a connection to an address.
func (s *Stack) join(ctx context.Context, trunk *Trunk, t Transport, addr netip.AddrPort) error {
	if s.joined(t, addr.String()) {
		return nil
	}
	_, err, _ := s.connecting.Do(string(t)+addr.String(), func() (any, error) {
		if s.joined(t, addr.String()) { // by one that was not done yet
			return nil, nil
		}
		return nil, s.open(ctx, trunk, t, addr)
	})
	return err
}

func (s *Stack) joined(t Transport, addr string) bool {
	conn, err := s.transports.GetConnection(string(t), addr)
	if err != nil {
		return false
	}
	_, _ = conn.TryClose() // only asked whether it lives
	select {
	case <-cutOff(conn): // sipgo is about to notice
		return false
	default:
		return true
	}
}

// streamTo is the connection over which a target is reached, nil if there is none.
func (s *Stack) streamTo(t target) *guardedConn {
	conn, err := s.transports.GetConnection(string(t.transport), t.addr.String())
	if err != nil {
		return nil
	}
	_, _ = conn.TryClose() // it gives back what GetConnection took
	return streamOf(conn)
}

// streamOf is what sipgo has a connection over, nil for a socket of datagrams.
func streamOf(conn gosip.Connection) *guardedConn {
	stream, ok := conn.(*gosip.TCPConnection)
	if !ok {
		return nil
	}
	guarded, _ := stream.Conn.(*guardedConn)
	return guarded
}

// cutOff is closed when a connection is; nil for a socket of datagrams.
func cutOff(conn gosip.Connection) <-chan struct{} {
	if stream := streamOf(conn); stream != nil {
		return stream.over
	}
	return nil
}

// destination resolves where a request goes. A name that leads nowhere is one of the phone's own network (PBXs and session border
// controllers in containers put such into Contact): it is where it was last heard from. The name is not looked up for each request then:
// what the call does next waits behind this one.
func (s *Stack) destination(ctx context.Context, trunk *Trunk, req *gosip.Request, t Transport) (netip.AddrPort, error) {
	host, port := hostAndPort(req.Destination())
	if a, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(a.Unmap(), cmpPort(port, t)), nil
	}
	source, _ := netip.ParseAddrPort(req.MessageData.Source())
	if source.IsValid() {
		if s.neighbours.nowhere(host) {
			req.SetDestination(source.String())
			return source, nil
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, namePatience)
		defer cancel()
	}
	addr := source
	if addrs, err := s.addresses(ctx, trunk, host); err == nil && len(addrs) > 0 {
		addr = netip.AddrPortFrom(addrs[0], cmpPort(port, t))
	} else if !source.IsValid() {
		return netip.AddrPort{}, cmp.Or(err, fmt.Errorf("%s has no address for us", clip(host)))
	} else if s.root.Err() == nil {
		s.neighbours.lose(host)
	}
	req.SetDestination(addr.String())
	return addr, nil
}

// open makes a connection and gives it to sipgo as though it had come in: so the guard cuts and judges what comes over
// it, too.
func (s *Stack) open(ctx context.Context, trunk *Trunk, t Transport, addr netip.AddrPort) error {
	own := s.outgoing[t]
	if !own.room(addr.Addr(), s.config.Limits, s.callAt) {
		s.counters.drop(dropConnections)
		return fmt.Errorf("%v has too many connections of ours", addr.Addr())
	}
	conn, err := s.dial(ctx, "tcp", addr.String())
	if err != nil {
		return err
	}
	if t == TLS {
		secured := tls.Client(conn, s.clientTLS(trunk, addr))
		if err := secured.HandshakeContext(ctx); err != nil {
			return errors.Join(fmt.Errorf("TLS with %v: %w", addr, err), conn.Close())
		}
		conn = secured
	}
	began := make(chan struct{})
	guarded := newGuardedConn(conn, s.guard(), nil)
	guarded.left = func() { own.leave(guarded) }
	guarded.host = addr.Addr()
	guarded.last.Store(time.Now().UnixNano())
	guarded.reading = sync.OnceFunc(func() { close(began) })
	own.enter(guarded)
	select {
	case own.conns <- guarded:
	case <-own.closed:
		return errors.Join(net.ErrClosed, guarded.Close())
	case <-ctx.Done():
		return errors.Join(ctx.Err(), guarded.Close())
	}
	select {
	case <-began:
		return nil
	case <-ctx.Done():
		return errors.Join(ctx.Err(), guarded.Close())
	}
}

// clientTLS is how we secure a connection to a trunk.
func (s *Stack) clientTLS(trunk *Trunk, addr netip.AddrPort) *tls.Config {
	c := &tls.Config{}
	name := addr.Addr().String()
	if trunk != nil {
		if trunk.TLS != nil {
			c = trunk.TLS.Clone()
		}
		if host, _ := hostAndPort(trunk.Proxy); host != "" {
			name = host // RFC 5922 §7.1: the name asked for, whatever records it led to
		}
	}
	c.ServerName = cmp.Or(c.ServerName, name)
	c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	return c
}

// securer secures connections that come in; nil for a transport that is not.
func (s *Stack) securer(t Transport) func(net.Conn, *Trunk) *tls.Conn {
	if t != TLS {
		return nil
	}
	return func(conn net.Conn, trunk *Trunk) *tls.Conn {
		c := s.config.TLS.Clone()
		c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
		if trunk.ClientCAs != nil {
			c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, trunk.ClientCAs
		}
		return tls.Server(conn, c)
	}
}

// outgoingConns is a listener whose connections are those we have opened ourselves.
type outgoingConns struct {
	conns  chan net.Conn // open fills it, Accept drains it
	closed chan struct{}
	once   sync.Once
	addr   net.Addr

	mu   sync.Mutex
	live []*guardedConn
}

func newOutgoingConns(addr net.Addr) *outgoingConns {
	return &outgoingConns{conns: make(chan net.Conn), closed: make(chan struct{}), addr: addr}
}

func (o *outgoingConns) Accept() (net.Conn, error) {
	select {
	case c := <-o.conns:
		return c, nil
	case <-o.closed:
		return nil, net.ErrClosed
	}
}

func (o *outgoingConns) Close() error {
	o.once.Do(func() { close(o.closed) })
	return nil
}

func (o *outgoingConns) Addr() net.Addr { return o.addr }

func (o *outgoingConns) enter(c *guardedConn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.live = append(o.live, c)
}

func (o *outgoingConns) leave(c *guardedConn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.live = without(o.live, c)
}

// room says whether one more may be opened to a host: there may be as many as come in. Where there is no room, the one without a call that
// has been silent for longest gives way: who calls names the place that we open one to, and may hold it for as long as it likes.
func (o *outgoingConns) room(host netip.Addr, limits Limits, calls func(netip.AddrPort) bool) bool {
	for {
		o.mu.Lock()
		all := slices.Clone(o.live)
		o.mu.Unlock()
		rivals := slices.DeleteFunc(slices.Clone(all), func(c *guardedConn) bool { return c.host != host })
		if len(rivals) < limits.ConnectionsPerHost {
			if len(all) < limits.Connections {
				return true
			}
			rivals = all
		}
		slices.SortFunc(rivals, func(a, b *guardedConn) int { return cmp.Compare(b.silence(), a.silence()) })
		i := slices.IndexFunc(rivals, func(c *guardedConn) bool { return !calls(addrPortOf(c.RemoteAddr())) })
		if i < 0 {
			return false
		}
		rivals[i].cut()
	}
}
