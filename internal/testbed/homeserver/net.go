package homeserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"
)

// Net is a network in memory: listeners by name, connections by net.Pipe, no sockets, no system time. All parts of a
// synctest bubble that talk HTTP share one.
type Net struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
	client    *http.Client
}

// NewNet returns an empty network.
func NewNet() *Net { return &Net{listeners: map[string]*pipeListener{}} }

// Listen takes connections for addr, "host:port". Any host name will do.
func (n *Net) Listen(addr string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, fmt.Errorf("listen %s: %w", addr, syscall.EADDRINUSE)
	}
	l := &pipeListener{net: n, addr: pipeAddr(addr), conns: make(chan net.Conn), closed: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

// DialContext connects to a listener; without one the connection is refused. It fits http.Transport.DialContext.
func (n *Net) DialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[addr]
	n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("dial %s: %w", addr, syscall.ECONNREFUSED)
	}
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
	case <-ctx.Done():
	}
	ours.Close()
	theirs.Close()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("dial %s: %w", addr, syscall.ECONNREFUSED)
}

// Client returns the network's HTTP client. Its idle connections are closed with it: CloseIdleConnections.
func (n *Net) Client() *http.Client {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.client == nil {
		n.client = &http.Client{Transport: &http.Transport{DialContext: n.DialContext, MaxIdleConnsPerHost: 100}}
	}
	return n.client
}

// pipeListener hands net.Pipe ends from DialContext (fills conns) to Accept (drains it). Nobody closes conns; closed
// ends both.
type pipeListener struct {
	net    *Net
	addr   pipeAddr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.net.mu.Lock()
		defer l.net.mu.Unlock()
		delete(l.net.listeners, string(l.addr))
	})
	return nil
}

func (l *pipeListener) Addr() net.Addr { return l.addr }

type pipeAddr string

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return string(a) }
