package sip

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"
)

// realStack is a stack on real sockets of the loopback, UDP and TCP.
func realStack(t *testing.T, limits Limits) *Stack { return realStackFor(t, limits, refuser{}) }

func realStackFor(t *testing.T, limits Limits, h Handler) *Stack {
	t.Helper()
	any := netip.MustParseAddrPort("127.0.0.1:0")
	s, err := New(Config{
		Listen: []Listen{{UDP, any}, {TCP, any}},
		RTP:    RTPConfig{Addr: any.Addr(), PortMin: 36000, PortMax: 36999},
		Trunks: []Trunk{{Name: "lab", Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}},
		Limits: limits,
	}, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
		if n := s.Stats().Panics; n != 0 {
			t.Errorf("%d panics", n)
		}
	})
	return s
}

type refuser struct{}

func (refuser) Invite(c *Call) { go func() { _ = c.Reject(480, "") }() }

// line is a TCP connection to a stack.
type line struct {
	*testing.T
	net.Conn
	r *bufio.Reader
}

func dialTCP(t *testing.T, s *Stack) *line {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr(TCP).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &line{t, conn, bufio.NewReader(conn)}
}

// status reads one response and returns its status line; "" when the connection was closed.
func (l *line) status() string {
	l.Helper()
	status, err := l.r.ReadString('\n')
	if err != nil {
		return ""
	}
	for {
		h, err := l.r.ReadString('\n')
		if err != nil || h == "\r\n" {
			return strings.TrimSpace(status)
		}
	}
}

// alive checks that a new connection and a datagram are served.
func alive(t *testing.T, s *Stack) {
	t.Helper()
	l := dialTCP(t, s)
	_, _ = io.WriteString(l, tcpOptions(fmt.Sprint("alive", time.Now().UnixNano())))
	if got := l.status(); got != "SIP/2.0 200 OK" {
		t.Errorf("afterwards OPTIONS over TCP got %q", got)
	}
	u, err := net.Dial("udp", s.Addr(UDP).String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	options := crlf(request("OPTIONS", bridgeURI, bridgeTo, fmt.Sprint("u", time.Now().UnixNano()), 1, ""))
	buf, n := make([]byte, 2000), 0
	for deadline := time.Now().Add(20 * time.Second); n == 0 && time.Now().Before(deadline); { // the kernel drops it while much waits
		_, _ = io.WriteString(u, options)
		_ = u.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		n, err = u.Read(buf)
	}
	if !strings.HasPrefix(string(buf[:n]), "SIP/2.0 200 OK") {
		t.Errorf("afterwards OPTIONS over UDP got %q, %v", buf[:n], err)
	}
}

// grows is by how much the heap has grown in the end, when what was under way is done: less than the limit, or all of it.
func grows(before uint64, limit int64) (grown int64) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if grown = int64(heap()) - int64(before); grown <= limit || time.Now().After(deadline) {
			return grown
		}
	}
}

func tcpOptions(branch string) string {
	return crlf(strings.ReplaceAll(request("OPTIONS", bridgeURI, bridgeTo, branch, 1, "", "Call-ID: "+branch), "SIP/2.0/UDP", "SIP/2.0/TCP"))
}

func TestHostileDatagrams(t *testing.T) {
	s := realStack(t, Limits{})
	u, err := net.Dial("udp", s.Addr(UDP).String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	attack := func() {
		for i := range 200 {
			for _, m := range []string{
				crlf(invite("Content-Length: 2000000000", fmt.Sprint("Call-ID: c", i))),
				crlf(invite("Content-Length: 4294967295")), crlf(invite("Content-Length: 99999999999999999999")),
				crlf(invite("X-Huge: " + strings.Repeat("h", 60000))), crlf(invite("X-Huge: " + strings.Repeat("h", 20000))),
				strings.Repeat("\xff", 65000), "INVITE", "\r\n", "SIP/2.0", " ", ":",
				crlf(invite("To:")), crlf(invite("From:")), crlf(invite("Call-ID:")), crlf(invite("CSeq:")), crlf(invite("Via:")),
			} {
				_, _ = io.WriteString(u, m)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	attack()
	before := heap()
	for range 5 {
		attack()
	}
	if grown := grows(before, 1<<20); grown > 1<<20 {
		t.Errorf("heap grew by %d KiB over 15000 hostile datagrams", grown>>10)
	}
	alive(t, s)
	if st := s.Stats(); st.Refused[400] == 0 || st.Refused[513] == 0 || st.Dropped[dropMalformed] == 0 {
		t.Errorf("counters: %+v", st)
	}
}

// Others keep their NAT's mind with STUN on the SIP port (RFC 5626 §4.4.2), as they do with CRLF; whoever forges it gains nothing.
func TestKeepAlivesAreNoBadMessages(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		request := append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, "twelve bytes"...)
		response := append([]byte{1, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42}, "twelve bytes\x00\x20\x00\x08\x00\x01\x13\xc4\xc0\x00\x02\x01"...)
		for _, m := range [][]byte{request, response, []byte("\r\n\r\n"), []byte("\r\n"), {0}, request[:10]} {
			_, _ = b.peer.conn.WriteToUDPAddrPort(m, bridgeAddr)
		}
		synctest.Wait()
		if d := b.stack.Stats().Dropped; d[dropKeepalive] != 5 || d[dropMalformed] != 1 {
			t.Errorf("dropped %v, want 5 keep-alives and the one that is cut off", d)
		}
		wantLines(t, "peer received", b.peer.lines(), nil)
	})
}

func TestHostileStreams(t *testing.T) {
	s := realStack(t, Limits{})
	for _, tt := range []struct{ name, stream, want string }{
		{"2 GB announced", crlf(invite("Content-Length: 2000000000")), "SIP/2.0 513 Message Too Large"},
		{"negative length", crlf(invite("Content-Length: -1")), "SIP/2.0 400 Bad Content-Length"},
		{"two lengths", crlf(invite("Content-Length: 3\nl: 4")), "SIP/2.0 400 Bad Content-Length"},
		{"no length", crlf(invite("Content-Length:")), "SIP/2.0 400 Missing header content-length"},
		{"a header of 1 MiB", "INVITE sip:x SIP/2.0\r\nX: " + strings.Repeat("a", 1<<20), ""},
		{"1 MiB of headers", "INVITE sip:x SIP/2.0\r\n" + strings.Repeat("X: a\r\n", 1<<18), ""},
		{"garbage", strings.Repeat("\x00\xff\r\n", 20000), ""},
		{"HTTP", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := dialTCP(t, s)
			go func() { _, _ = io.WriteString(l, tt.stream) }()
			if got := l.status(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if _, err := l.r.ReadByte(); err == nil {
				t.Error("the connection was not closed")
			}
			alive(t, s)
		})
	}
	before := heap()
	for range 200 {
		l := dialTCP(t, s)
		_, _ = io.WriteString(l, crlf(invite("Content-Length: 2000000000")))
		_ = l.status()
		_ = l.Close()
	}
	if grown := grows(before, 1<<20); grown > 1<<20 {
		t.Errorf("heap grew by %d KiB over 200 connections that announce 2 GB", grown>>10)
	}
}

func TestStreamsAreCutIntoMessages(t *testing.T) {
	s := realStack(t, Limits{})
	t.Run("byte by byte", func(t *testing.T) {
		l := dialTCP(t, s)
		for _, c := range []byte(tcpOptions("slow")) {
			_, _ = l.Write([]byte{c})
		}
		if got := l.status(); got != "SIP/2.0 200 OK" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("many at once, with keep-alives and a refusal between", func(t *testing.T) {
		l := dialTCP(t, s)
		_, _ = io.WriteString(l, "\r\n"+tcpOptions("p1")+tcpOptions("p2")+"\r\n\r\n"+
			strings.ReplaceAll(tcpOptions("p3"), "To: "+bridgeTo+"\r\n", "")+tcpOptions("p4"))
		var all string
		for strings.Count(all, "SIP/2.0 ") < 4 || !strings.HasSuffix(all, "\r\n\r\n") {
			text, err := l.r.ReadString('\n')
			if all += text; err != nil {
				t.Fatalf("connection after %q: %v", all, err)
			}
		}
		_ = l.SetDeadline(time.Now().Add(200 * time.Millisecond))
		more, _ := io.ReadAll(l.r) // one too many would come now
		all += string(more)
		ok := strings.Count(all, "SIP/2.0 200 OK")
		refused := strings.Count(all, "SIP/2.0 400 Missing header to")
		pong := strings.Count("\r\n\r\n"+all, "\r\n\r\n\r\n")
		if ok != 3 || refused != 1 || pong != 1 {
			t.Errorf("%d answered, %d refused, %d pongs; want 3, 1, 1", ok, refused, pong)
		}
	})
}

// An Identity of RFC 8224 may be 3000 octets long; what is longer than we read is refused, and the next message is served.
func TestLongMessagesAreAnswered(t *testing.T) {
	s := realStack(t, Limits{})
	for _, tt := range []struct {
		name, line, want string
	}{
		{"an Identity", "Identity: " + strings.Repeat("e", 3000), "SIP/2.0 480 Temporarily Unavailable"},
		{"a longer one", "Identity: " + strings.Repeat("e", 9000), "SIP/2.0 513 Message Too Large"},
		{"many lines", "X: 1" + strings.Repeat("\nX: 1", 200), "SIP/2.0 400 Too many header lines"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := dialTCP(t, s)
			id := strings.ReplaceAll(tt.name, " ", "-")
			m := invite(tt.line, "Call-ID: "+id)
			_, _ = io.WriteString(l, crlf(strings.ReplaceAll(m, "SIP/2.0/UDP", "SIP/2.0/TCP"))+tcpOptions("after-"+id)) // else a repeat
			_ = l.SetDeadline(time.Now().Add(10 * time.Second))
			var got []string
			for len(got) < 2 {
				text, err := l.r.ReadString('\n')
				if err != nil {
					t.Fatalf("connection after %v: %v", got, err)
				}
				if strings.HasPrefix(text, "SIP/2.0 ") && !strings.HasPrefix(text, "SIP/2.0 1") {
					got = append(got, strings.TrimSpace(text))
				}
			}
			slices.Sort(got) // the call is served on another goroutine
			if want := []string{"SIP/2.0 200 OK", tt.want}; !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestStackThatNeverRanIsClosed(t *testing.T) {
	any := netip.MustParseAddrPort("127.0.0.1:0")
	config := Config{
		Listen: []Listen{{UDP, any}, {TCP, any}},
		RTP:    RTPConfig{Addr: any.Addr(), PortMin: 36000, PortMax: 36999},
		Trunks: []Trunk{{Name: "lab", Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}},
	}
	s, err := New(config, refuser{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	call, err := s.Resume(Dialog{
		CallID: "c", LocalTag: "l", RemoteTag: "r", RemoteTarget: "sip:2001@127.0.0.1", Transport: UDP,
		LocalSocket: s.Addr(UDP), Remote: netip.MustParseAddrPort("127.0.0.1:9"), Confirmed: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Errorf("Close = %v", err)
	}
	<-call.Done()
	config.Listen = []Listen{{UDP, s.Addr(UDP)}, {TCP, s.Addr(TCP)}}
	again, err := New(config, refuser{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("the sockets are still bound: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if err := again.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run after Close = %v", err)
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	s := realStack(t, Limits{Connections: 6, ConnectionsPerHost: 4})
	lines := make([]*line, 4)
	for i := range lines {
		lines[i] = dialTCP(t, s)
		_, _ = io.WriteString(lines[i], tcpOptions(fmt.Sprint("l", i)))
		if got := lines[i].status(); got != "SIP/2.0 200 OK" {
			t.Fatalf("connection %d: %q", i, got)
		}
	}
	if got := dialTCP(t, s).status(); got != "" {
		t.Errorf("a fifth connection got %q", got)
	}
	stranger := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.77")}}
	if conn, err := stranger.Dial("tcp", s.Addr(TCP).String()); err == nil {
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(conn, tcpOptions("x"))
		if n, err := conn.Read(make([]byte, 100)); err == nil {
			t.Errorf("a stranger got %d bytes", n)
		}
		_ = conn.Close()
	}
	_ = lines[0].Close()
	deadline := time.Now().Add(20 * time.Second)
	for {
		l := dialTCP(t, s)
		_, _ = io.WriteString(l, tcpOptions(fmt.Sprint("again", time.Now().UnixNano())))
		if l.status() == "SIP/2.0 200 OK" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a closed connection was not given back")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if st := s.Stats(); st.Dropped[dropConnections] == 0 || st.Dropped[dropUnknownSource] != 1 {
		t.Errorf("dropped: %v", st.Dropped)
	}
}

func TestLargeAnswersLeaveOverUDP(t *testing.T) { // sipgo alone would be silent beyond 1300 octets
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		var routes []string
		for i := range 20 {
			routes = append(routes, fmt.Sprintf("Record-Route: <sip:proxy-%d.example.com:5060;lr;token=%s>", i, strings.Repeat("x", 80)))
		}
		b.peer.send(invite(strings.Join(routes, "\n")))
		if m := b.peer.last(); !strings.HasPrefix(m, "SIP/2.0 200 OK") || len(m) < 2500 {
			t.Errorf("got %d octets: %.40q", len(m), m)
		}
	})
}

func TestSlowMessagesAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := newCounters()
		left := 0
		conn := newGuardedConn(near, newStack(Config{}, nil, nil).guard(), func() { left++ })
		conn.guard.counters = c
		began := time.Now()
		var sender sync.WaitGroup
		sender.Go(func() {
			time.Sleep(10 * time.Hour) // an idle connection is no crime
			_, _ = io.WriteString(far, tcpOptions("first"))
			_, _ = io.WriteString(far, "OPTIONS sip:x SIP/2.0\r\n")
			for range 100 { // one octet a second never makes a message
				time.Sleep(time.Second)
				if _, err := io.WriteString(far, "X"); err != nil {
					return
				}
			}
		})
		buf := make([]byte, 32768)
		if n, err := conn.Read(buf); err != nil || string(buf[:n]) != tcpOptions("first") {
			t.Errorf("first Read = %q, %v", buf[:n], err)
		}
		if n, err := conn.Read(buf); !errors.Is(err, io.EOF) || time.Since(began) != 10*time.Hour+messageTimeout {
			t.Errorf("second Read = %d, %v after %v, want EOF 30 s after the message began", n, err, time.Since(began))
		}
		_, _ = conn.Close(), conn.Close()
		_ = far.Close()
		sender.Wait()
		if left != 1 || c.stats().Dropped[dropSlow] != 1 {
			t.Errorf("left %d times, dropped %v", left, c.stats().Dropped)
		}
	})
}

func TestCallsOfStrangersAreLoggedButNotAllOfAFlood(t *testing.T) {
	var log strings.Builder
	g := &guard{counters: newCounters(), log: slog.New(slog.NewTextHandler(&log, nil)), unknown: &rate.Sometimes{First: 5, Interval: time.Minute}}
	from := netip.MustParseAddrPort("203.0.113.5:5060")
	for range 100 {
		g.stranger(from, []byte("OPTIONS sip:100@192.0.2.1 SIP/2.0\r\n"))
		g.stranger(from, []byte("INVITE sip:900972@192.0.2.1 SIP/2.0\r\n"))
	}
	if n := strings.Count(log.String(), "a call from an unknown address is not answered"); n != 5 || strings.Count(log.String(), "\n") != 5 {
		t.Errorf("%d lines about 100 calls of strangers, want 5:\n%s", n, log.String())
	}
	if strings.Contains(log.String(), "900972") || !strings.Contains(log.String(), "source=203.0.113.5 ") {
		t.Errorf("the lines should say who called, and not whom: %s", log.String())
	}
	if n := g.counters.droppedFor(dropUnknownSource); n != 200 {
		t.Errorf("%d messages counted, want 200", n)
	}
}
