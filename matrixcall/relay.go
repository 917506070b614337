package matrixcall

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/pion/transport/v4"
	"github.com/pion/transport/v4/stdnet"
)

// Limits of a TCP connection to a relay. Who writes to it is a worker that mixes for many: it may wait for two frames at
// most. What fits into the buffer is seconds of sound already.
const (
	relayStall  = 40 * time.Millisecond
	relayBuffer = 64 << 10
)

// relayNet is the network of the PeerConnections. They open TCP connections to relays only, and those give up when the
// relay stops reading.
type relayNet struct {
	transport.Net
	virtual bool
	log     *slog.Logger
}

// newRelayNet puts it on top of a virtual network, or of the machine's if there is none.
func newRelayNet(virtual transport.Net, log *slog.Logger) (*relayNet, error) {
	if virtual != nil {
		return &relayNet{Net: virtual, virtual: true, log: log}, nil
	}
	machine, err := stdnet.NewNet()
	if err != nil {
		return nil, fmt.Errorf("look at the network: %w", err)
	}
	return &relayNet{Net: machine, log: log}, nil
}

// Interfaces lists those that are there now: stdnet remembers the ones it began with.
func (n *relayNet) Interfaces() ([]*transport.Interface, error) {
	if n.virtual {
		return n.Net.Interfaces()
	}
	machine, err := stdnet.NewNet()
	if err != nil {
		return nil, err
	}
	return machine.Interfaces()
}

// DialTCP connects to a relay.
func (n *relayNet) DialTCP(network string, local, remote *net.TCPAddr) (transport.TCPConn, error) {
	conn, err := n.Net.DialTCP(network, local, remote)
	if err != nil {
		return nil, err
	}
	if err := conn.SetWriteBuffer(relayBuffer); err != nil {
		n.log.Debug("the buffer to a relay stays as it is", "err", err)
	}
	return &relayConn{TCPConn: conn, log: n.log}, nil
}

// relayConn closes itself when a write does not go through in time: half of a message is in it then, so the relay could
// not understand what follows. ICE notices, and the peer is reached anew.
type relayConn struct {
	transport.TCPConn
	log *slog.Logger
}

func (c *relayConn) Write(p []byte) (written int, err error) {
	for range 2 { // who is held up before Write finds its time over although the relay has room: that says nothing about the relay
		if err := c.SetWriteDeadline(time.Now().Add(relayStall / 2)); err != nil {
			return written, err
		}
		var n int
		n, err = c.TCPConn.Write(p[written:])
		if written += n; written > 0 || !errors.Is(err, os.ErrDeadlineExceeded) { // somebody else may write behind what is in it
			break
		}
	}
	if err != nil && c.Close() == nil { // closed already: it has been said
		c.log.Warn("a relay takes nothing any more", "err", tame(err.Error()))
	}
	return written, err
}
