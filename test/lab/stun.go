package lab

import (
	"errors"
	"fmt"
	"net"

	"github.com/pion/stun/v4"
)

// serveSTUN answers binding requests (RFC 8489), so that nobody waits for a server that does not exist: whoever gathers
// all candidates before it speaks, as the bridge does, would lose seconds per call.
func (l *Lab) serveSTUN() (uri string, err error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return "", fmt.Errorf("serve STUN: %w", err)
	}
	done := make(chan struct{})
	go func() { defer close(done); l.answerBindings(conn) }()
	l.own("STUN", func() error { err := conn.Close(); <-done; return err })
	return "stun:" + conn.LocalAddr().String(), nil
}

// SilenceSTUN makes the STUN server answer nobody, or again. Clients then gather candidates for some ten seconds, and the
// bridge for two.
func (l *Lab) SilenceSTUN(silent bool) { l.stunSilent.Store(silent) }

// answerBindings runs until the socket is closed.
func (l *Lab) answerBindings(conn *net.UDPConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFromUDP(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || !stun.IsMessage(buf[:n]) || l.stunSilent.Load() {
			continue
		}
		request := &stun.Message{Raw: append([]byte(nil), buf[:n]...)}
		if request.Decode() != nil || request.Type != stun.BindingRequest {
			continue
		}
		answer, err := stun.Build(request, stun.BindingSuccess, &stun.XORMappedAddress{IP: from.IP, Port: from.Port}, stun.Fingerprint)
		if err == nil {
			_, _ = conn.WriteToUDP(answer.Raw, from)
		}
	}
}
