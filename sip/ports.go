package sip

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// rtpConn is what media needs from a UDP socket; *net.UDPConn has it.
type rtpConn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	LocalAddr() net.Addr
	Close() error
}

// errPortsExhausted: every pair of the range is in use or resting.
var errPortsExhausted = errors.New("no free RTP ports")

// ports hands out RTP/RTCP socket pairs from a range: at random, so that they cannot be guessed, and not again for a
// while after use, so that late packets of one call do not reach another.
type ports struct {
	addr       netip.Addr
	min, max   uint16
	quarantine time.Duration
	listen     func(netip.AddrPort) (rtpConn, error)
	release    func(net.Addr) // a socket is closed for good

	mu   sync.Mutex
	busy map[uint16]time.Time // even port -> when it is free again; zero = in use
}

func newPorts(c RTPConfig, quarantine time.Duration, sockets Sockets) *ports {
	return &ports{
		addr: c.Addr, min: c.PortMin + c.PortMin%2, max: c.PortMax,
		quarantine: quarantine,
		listen:     func(a netip.AddrPort) (rtpConn, error) { return sockets.ListenUDP(a) },
		release:    sockets.Release,
		busy:       map[uint16]time.Time{},
	}
}

// open binds a random free pair: RTP on an even port, RTCP above it (RFC 3550 §11).
func (p *ports) open() (rtp, rtcp rtpConn, err error) {
	pairs := (int(p.max) - int(p.min) + 1) / 2
	start := rand.IntN(pairs) // spread, not secrecy: the source lock is what keeps strangers out
	for i := range pairs {
		port := p.min + uint16((start+i)%pairs)*2
		if !p.take(port) {
			continue
		}
		rtp, rtcp, err = p.bind(port)
		if err == nil {
			return rtp, rtcp, nil
		}
		p.giveBack(port) // another program has it: let it rest, too
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, nil, fmt.Errorf("open RTP ports: %w", err) // no other port would do better
		}
	}
	return nil, nil, errPortsExhausted
}

// reopen binds the pair of a stored call.
func (p *ports) reopen(a netip.AddrPort) (rtp, rtcp rtpConn, err error) {
	p.mu.Lock()
	until, known := p.busy[a.Port()]
	if known && until.IsZero() {
		p.mu.Unlock()
		return nil, nil, fmt.Errorf("RTP port %d is already in use", a.Port())
	}
	p.busy[a.Port()] = time.Time{}
	p.mu.Unlock()
	rtp, rtcp, err = p.bind(a.Port())
	if err != nil {
		p.giveBack(a.Port())
		return nil, nil, fmt.Errorf("reopen RTP port %d: %w", a.Port(), err)
	}
	return rtp, rtcp, nil
}

func (p *ports) bind(port uint16) (rtp, rtcp rtpConn, err error) {
	rtp, err = p.listen(netip.AddrPortFrom(p.addr, port))
	if err != nil {
		return nil, nil, err
	}
	rtcp, err = p.listen(netip.AddrPortFrom(p.addr, port+1))
	if err != nil {
		return nil, nil, errors.Join(err, p.close(rtp))
	}
	return rtp, rtcp, nil
}

// close closes a socket for good.
func (p *ports) close(conn rtpConn) error {
	p.release(conn.LocalAddr())
	return conn.Close()
}

func (p *ports) take(port uint16) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if until, known := p.busy[port]; known && (until.IsZero() || time.Now().Before(until)) {
		return false
	}
	p.busy[port] = time.Time{}
	return true
}

// giveBack lets a port rest.
func (p *ports) giveBack(port uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy[port] = time.Now().Add(max(p.quarantine, 0))
}

// inUse counts the pairs that belong to calls.
func (p *ports) inUse() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, until := range p.busy {
		if until.IsZero() {
			n++
		}
	}
	return n
}
