package sip

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// guardedPackets lets only what the guard passes through to sipgo's read loop. That loop ends at the first error, so
// none is returned but "closed".
type guardedPackets struct {
	net.PacketConn
	guard   *guard
	reading func() // called at each read: sipgo knows the socket by then and can send from it
	deaf    atomic.Bool
	closed  chan struct{}
	once    sync.Once

	empty   chan struct{} // closed when nothing waited in the socket for the first time, and what had was handled
	emptied bool          // only ReadFrom touches it
}

func newGuardedPackets(conn net.PacketConn, g *guard, reading func()) *guardedPackets {
	return &guardedPackets{PacketConn: conn, guard: g, reading: reading, closed: make(chan struct{}), empty: make(chan struct{})}
}

// lookForMore notices when nothing waits in the socket any more. What was read last may need a moment to reach its call.
func (p *guardedPackets) lookForMore() {
	if p.emptied || waits(p.PacketConn) {
		return
	}
	p.emptied = true
	if _, ok := p.PacketConn.(syscall.Conn); !ok { // nothing comes to what is no socket while nobody reads it
		close(p.empty)
		return
	}
	time.AfterFunc(settle, func() { close(p.empty) })
}

// waits tells whether a packet can be read at once.
func waits(conn net.PacketConn) bool {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		_, _, failed = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return err == nil && failed == nil
}

// deafen takes no more messages out of the socket. sipgo goes on with it: it can still send.
func (p *guardedPackets) deafen() {
	p.deaf.Store(true)
	_ = p.SetReadDeadline(time.Unix(1, 0)) // a socket that cannot wake its reader is closed soon
}

func (p *guardedPackets) Close() error {
	p.once.Do(func() { close(p.closed) })
	return p.PacketConn.Close()
}

func (p *guardedPackets) ReadFrom(b []byte) (int, net.Addr, error) {
	p.reading()
	for {
		if p.deaf.Load() {
			<-p.closed
			return 0, nil, net.ErrClosed
		}
		p.lookForMore()
		n, from, err := p.PacketConn.ReadFrom(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return 0, nil, err
			}
			if p.deaf.Load() {
				continue
			}
			time.Sleep(time.Millisecond) // an ICMP error of an earlier write; never spin on a broken socket
			continue
		}
		g := p.guard
		if source := addrPortOf(from); g.trunkOf(source.Addr()) == nil {
			g.stranger(source, b[:n])
			continue
		} else if why := g.gate.drops(source.Addr()); why != "" && !g.gate.regulars.have(b[:n]) {
			g.counters.drop(why)
			continue
		}
		message, v := g.judge(b[:n], from, false)
		switch {
		case v.pass():
			g.counters.messages.Add(1)
			return len(message), from, nil
		case v.code != 0:
			g.refused(from, v)
			if answer := v.refusal(message); answer != nil {
				_, _ = p.WriteTo(answer, from)
			}
		default:
			g.dropped(from, v.drop)
		}
	}
}

// guardedListener accepts connections of trunks only, and only so many.
type guardedListener struct {
	net.Listener
	guard  *guard
	secure func(net.Conn, *Trunk) *tls.Conn // nil = TCP

	mu     sync.Mutex
	conns  map[netip.Addr]int
	total  int
	silent []*guardedConn // those that have brought no message yet, the oldest first
	spoken []*guardedConn // the others
}

func (l *guardedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil, err
			}
			time.Sleep(10 * time.Millisecond) // out of file descriptors, say: sipgo would stop listening for ever
			continue
		}
		host := addrPortOf(conn.RemoteAddr()).Addr()
		trunk := l.guard.trunkOf(host)
		switch {
		case trunk == nil:
			l.guard.counters.drop(dropUnknownSource)
		case l.guard.gate.banned(host):
			l.guard.counters.drop(dropBanned)
		case !l.enter(host):
			l.guard.counters.drop(dropConnections)
		default:
			return l.accepted(conn, trunk, host), nil
		}
		_ = conn.Close()
	}
}

func (l *guardedListener) accepted(conn net.Conn, trunk *Trunk, host netip.Addr) net.Conn {
	c := newGuardedConn(conn, l.guard, nil)
	if l.secure != nil {
		secured := l.secure(conn, trunk)
		c.Conn, c.handshake = secured, secured.HandshakeContext
	}
	c.host, c.since = host, time.Now()
	c.left = func() { l.leave(c) }
	c.spoke = sync.OnceFunc(func() { l.heard(c) })
	l.mu.Lock()
	l.silent = append(l.silent, c)
	l.mu.Unlock()
	return c
}

// enter counts a connection of this host. Where there is no room for it, one that has said nothing for a while makes some: it costs
// nothing to open connections and hold them.
func (l *guardedListener) enter(host netip.Addr) bool {
	for {
		l.mu.Lock()
		full, ownFull := l.total >= l.guard.limits.Connections, l.conns[host] >= l.guard.limits.ConnectionsPerHost
		if !full && !ownFull {
			if l.conns == nil {
				l.conns = map[netip.Addr]int{}
			}
			l.conns[host]++
			l.total++
			l.mu.Unlock()
			return true
		}
		rival := func(c *guardedConn) bool { return !ownFull || c.host == host }
		var idle *guardedConn
		if i := slices.IndexFunc(l.silent, func(c *guardedConn) bool { return time.Since(c.since) >= silentTime && rival(c) }); i >= 0 {
			idle = l.silent[i]
		}
		candidates := slices.DeleteFunc(slices.Clone(l.spoken), func(c *guardedConn) bool { return c.silence() < idleTime || !rival(c) })
		l.mu.Unlock()
		if idle == nil {
			slices.SortFunc(candidates, func(a, b *guardedConn) int { return cmp.Compare(b.silence(), a.silence()) })
			i := slices.IndexFunc(candidates, func(c *guardedConn) bool { return !l.guard.calls(addrPortOf(c.RemoteAddr())) })
			if i < 0 {
				return false
			}
			idle = candidates[i]
		}
		l.guard.counters.drop(dropSilent)
		idle.cut()
	}
}

// heard says that a connection has brought its first message.
func (l *guardedListener) heard(c *guardedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Contains(l.silent, c) { // else it is closed already
		l.silent = without(l.silent, c)
		l.spoken = append(l.spoken, c)
	}
}

func without(list []*guardedConn, c *guardedConn) []*guardedConn {
	return slices.DeleteFunc(list, func(other *guardedConn) bool { return other == c })
}

func (l *guardedListener) leave(c *guardedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silent, l.spoken = without(l.silent, c), without(l.spoken, c)
	l.total--
	if l.conns[c.host]--; l.conns[c.host] == 0 {
		delete(l.conns, c.host)
	}
}

// Where there is no room, connections give way to others: those that have not said anything for silentTime since they were made, then
// those without a call that have been idle for idleTime. Where there is room, all stay: PBXs keep theirs between two calls.
const (
	silentTime = 10 * time.Second
	idleTime   = 5 * time.Minute
)

// messageTimeout is how long a begun message may take to arrive over TCP.
const messageTimeout = 30 * time.Second

// writeTimeout is how long a peer may leave a message of ours in its socket. A call's goroutine waits for that.
const writeTimeout = 5 * time.Second

// guardedConn cuts the stream into messages and gives sipgo one whole, judged message per Read. Memory per connection
// is bounded by longestMessage whatever Content-Length says.
type guardedConn struct {
	net.Conn
	guard *guard
	left  func()
	once  sync.Once
	over  chan struct{} // closed by once, like the connection

	host  netip.Addr // at the other end; since when one is here that came in
	since time.Time
	last  atomic.Int64 // when something came last, in Unix nanoseconds
	spoke func()       // called for each message it brings; nil for one that we have opened

	reading   func()                      // called at each read: sipgo knows the connection by then
	handshake func(context.Context) error // still to be made, by the first read; nil = none

	asked   atomic.Int32  // keep-alives of ours that wait for their answer
	pongs   atomic.Uint32 // answers: single CRLFs while one waits
	unasked atomic.Bool   // there were others, so they are no answers here
	lively  int           // how many in a row were answered in time; only its watch touches it

	turn chan struct{} // cap 1, full during a write: one that waits must not get the next one's deadline

	skip    int       // bytes still to come of a refused message
	pending []byte    // only Read touches it, like skip
	begun   time.Time // when the first byte of pending came
}

func newGuardedConn(conn net.Conn, g *guard, left func()) *guardedConn {
	return &guardedConn{Conn: conn, guard: g, left: left, over: make(chan struct{}), turn: make(chan struct{}, 1)}
}

// silence is for how long nothing has come.
func (c *guardedConn) silence() time.Duration { return time.Since(time.Unix(0, c.last.Load())) }

func (c *guardedConn) Close() error {
	c.once.Do(c.leave)
	return c.Conn.Close()
}

// leave is called once, whoever ends the connection.
func (c *guardedConn) leave() {
	close(c.over)
	c.left()
}

// cut ends the connection without a word, and at once: TLS would take its leave.
func (c *guardedConn) cut() {
	c.once.Do(c.leave)
	conn := c.Conn
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	_ = conn.Close()
}

// Write closes the connection when the peer does not take b in time: part of a message may be out, no other can follow.
func (c *guardedConn) Write(b []byte) (int, error) {
	c.turn <- struct{}{} // for writeTimeout at most
	defer func() { <-c.turn }()
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		return n, errors.Join(err, c.Close())
	}
	return n, nil
}

func (c *guardedConn) Read(b []byte) (int, error) {
	if c.reading != nil {
		c.reading()
	}
	if c.handshake != nil {
		if err := c.shakeHands(); err != nil {
			return 0, io.EOF
		}
	}
	for {
		if c.skip > 0 {
			n := min(c.skip, len(c.pending))
			c.consume(n)
			if c.skip -= n; c.skip > 0 {
				if err := c.fill(); err != nil {
					return 0, err
				}
				continue
			}
		}
		c.keepAlive()
		size, v := c.guard.frame(c.pending)
		if v.fatal || v.drop != "" {
			c.refuse(v)
			return 0, io.EOF
		}
		if !v.pass() {
			c.refuse(v)
			c.skip = size
			continue
		}
		if size == 0 || size > len(c.pending) {
			if err := c.fill(); err != nil {
				return 0, err
			}
			continue
		}
		if wait := c.guard.gate.slows(addrPortOf(c.RemoteAddr()).Addr()); wait > 0 && !c.pause(wait) {
			return 0, net.ErrClosed
		}
		message, v := c.guard.judge(c.pending[:size], c.RemoteAddr(), true)
		n := copy(b, message)
		if v.pass() {
			c.last.Store(time.Now().UnixNano())
			if c.spoke != nil {
				c.spoke()
			}
			c.consume(size)
			c.guard.counters.messages.Add(1)
			return n, nil
		}
		c.refuse(v)
		if v.fatal {
			return 0, io.EOF
		}
		c.consume(size)
	}
}

// pause is false when the connection was closed meanwhile.
func (c *guardedConn) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.over:
		return false
	}
}

// handshakeTimeout is how long a TLS handshake may take.
const handshakeTimeout = 10 * time.Second

// shakeHands is done here and not in Accept, which has others to attend to.
func (c *guardedConn) shakeHands() error {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	err := c.handshake(ctx)
	c.handshake = nil
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, context.DeadlineExceeded), errors.Is(err, net.ErrClosed):
		c.guard.counters.drop(dropHandshake) // it has said nothing wrong: load balancers look in so
	default:
		c.guard.dropped(c.RemoteAddr(), dropHandshake)
	}
	c.guard.log.Info("TLS handshake failed", "peer", c.RemoteAddr().String(), "err", err)
	return err
}

// fill reads more of a message. Between messages it may wait for ever: a connection may be silent for a whole call.
func (c *guardedConn) fill() error {
	var deadline time.Time
	if len(c.pending) > 0 {
		deadline = c.begun.Add(messageTimeout)
	}
	if err := c.SetReadDeadline(deadline); err != nil {
		return err
	}
	var chunk [4096]byte
	n, err := c.Conn.Read(chunk[:])
	if n > 0 {
		if len(c.pending) == 0 {
			c.begun = time.Now()
		}
		c.pending = append(c.pending, chunk[:n]...)
	}
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		c.guard.counters.drop(dropSlow)
		return io.EOF
	}
	if n > 0 {
		return nil
	}
	return err
}

func (c *guardedConn) consume(n int) {
	c.pending = append(c.pending[:0], c.pending[n:]...)
	c.begun = time.Now()
}

// keepAlive answers a double CRLF with one, and counts single ones, which answer ours (RFC 5626 §3.5.1). Some send them unasked: to keep
// the way open themselves, or behind each message.
func (c *guardedConn) keepAlive() {
	for bytes.HasPrefix(c.pending, []byte("\r\n")) {
		c.last.Store(time.Now().UnixNano())
		n := 2
		switch {
		case bytes.HasPrefix(c.pending, []byte("\r\n\r\n")):
			n = 4
			_, _ = c.Write([]byte("\r\n"))
		case c.asked.Add(-1) >= 0:
			c.pongs.Add(1)
		default:
			c.asked.Add(1)
			c.unasked.Store(true)
		}
		c.consume(n)
	}
}

// refuse answers or counts what is not passed on.
func (c *guardedConn) refuse(v verdict) {
	if v.code == 0 {
		c.guard.dropped(c.RemoteAddr(), v.drop)
		return
	}
	c.guard.refused(c.RemoteAddr(), v)
	if answer := v.refusal(c.pending); answer != nil {
		_, _ = c.Write(answer)
	}
}

// longestMessage is what UDP could bring. A message between [Limits.MessageBytes] and this is refused and read past; what
// goes on for longer, or announces more, is an attack, and closing the connection is cheaper.
const longestMessage = 65535

// frame finds how long the message at the beginning of a stream is; 0 means that its head is not complete yet.
func (g *guard) frame(pending []byte) (int, verdict) {
	end := bytes.Index(pending, []byte("\r\n\r\n"))
	if end < 0 {
		if len(pending) > longestMessage {
			return 0, verdict{drop: dropOversize}
		}
		return 0, verdict{}
	}
	length := -1
	for line := range strings.SplitSeq(string(pending[:end]), "\r\n") {
		name, value, ok := strings.Cut(line, ":")
		if !ok || longNames[strings.ToLower(strings.TrimSpace(name))] != "content-length" {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 31)
		if err != nil || length >= 0 {
			return 0, verdict{code: 400, why: "Bad Content-Length", fatal: true}
		}
		length = int(n)
	}
	switch {
	case length < 0:
		return 0, verdict{code: 400, why: "Missing header content-length", fatal: true}
	case end+4+length > longestMessage:
		v := tooLarge
		v.fatal = true
		return 0, v
	case end+4+length > g.limits.MessageBytes:
		return end + 4 + length, tooLarge
	}
	return end + 4 + length, verdict{}
}
