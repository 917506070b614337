package sip

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	gosip "github.com/emiago/sipgo/sip"
	"github.com/miekg/dns"
)

func registering(c *Config) {
	outbound(c)
	c.Trunks[0].Register, c.Trunks[0].RegisterFor = true, time.Minute
	c.Trunks[0].Auth = Credentials{Username: "bob", Password: "secret"}
}

// What is on the way may rewrite our Contact, or write its port out.
func TestBindingHoldsAsLongAsTheRegistrarSays(t *testing.T) { // RFC 3261 §10.2.4
	for _, tt := range []struct {
		name, contact string
		want          time.Duration
	}{
		{"ours", "<sip:bob@192.0.2.1:5060>;expires=40", 40 * time.Second},
		{"ours, without its port", "<sip:bob@192.0.2.1>;expires=40, <sip:bob@203.0.113.9>;expires=20", 40 * time.Second},
		{"ours twice", "<sip:bob@192.0.2.1:5060;transport=tcp>;expires=30, <sip:bob@192.0.2.1:5060>;expires=40", 30 * time.Second},
		{"rewritten, beside another phone's", "<sip:bob@198.51.100.1:1024>;expires=20, <sip:bob@203.0.113.9>;expires=3600", 20 * time.Second},
		{"rewritten, beside one that was removed", "<sip:bob@198.51.100.1:1024>;expires=20, <sip:bob@203.0.113.9>;expires=0", 20 * time.Second},
		{"as asked", "<sip:bob@192.0.2.1:5060>", time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, registering, nil, func(b *bubble) {
				b.peer.answers(b.peer.last(), "200 OK", "r", "", "Contact: "+tt.contact)
				if s := b.stack.Trunks(); len(s) != 1 || time.Until(s[0].Registered) != tt.want {
					t.Errorf("registered for %v, want %v", time.Until(s[0].Registered), tt.want)
				}
			})
		})
	}
}

func TestRegistrationIsKept(t *testing.T) { // RFC 3261 §10
	inBubble(t, registering, nil, func(b *bubble) {
		first := b.peer.last()
		for name, want := range map[string]string{
			"To": "<sip:bob@carrier.example>", "Contact": "<sip:bob@192.0.2.1:5060>", "CSeq": "1 REGISTER", "Expires": "60",
		} {
			if got := headerIn(first, name); got != want {
				t.Errorf("REGISTER has %s: %s, want %s", name, got, want)
			}
		}
		if !strings.HasPrefix(first, "REGISTER sip:carrier.example SIP/2.0\r\n") {
			t.Errorf("REGISTER = %q", first)
		}
		b.peer.answers(first, "401 Unauthorized", "r", "", `WWW-Authenticate: Digest realm="carrier", nonce="n1", qop="auth"`)
		second := b.peer.last()
		b.peer.answers(second, "423 Interval Too Brief", "r", "", "Min-Expires: 120")
		third := b.peer.last()
		if headerIn(third, "Expires") != "120" || headerIn(third, "CSeq") != "3 REGISTER" || headerIn(third, "Call-ID") != headerIn(first, "Call-ID") ||
			!strings.Contains(headerIn(third, "Authorization"), "nc=00000002") {
			t.Errorf("after 423: %q", third)
		}
		// Another phone is bound to the same address, for longer.
		b.peer.answers(third, "200 OK", "r", "", "Contact: <sip:bob@203.0.113.9>;expires=3600, <sip:bob@192.0.2.1:5060>;expires=100",
			"Service-Route: <sip:edge.carrier.example;lr>")
		if s := b.stack.Trunks(); len(s) != 1 || time.Until(s[0].Registered) != 100*time.Second || s[0].Target != peerAddr {
			t.Errorf("state = %+v", s)
		}
		refused, inv := b.dials()
		if got := headersIn(inv, "Route"); got != "<sip:edge.carrier.example;lr>" {
			t.Errorf("INVITE has Route %q, want the Service-Route that is in force", got)
		}
		b.peer.answers(inv, "486 Busy Here", "r", "")
		<-refused.Done()
		time.Sleep(75 * time.Second)
		synctest.Wait()
		fourth := b.peer.last()
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s REGISTER", "0s REGISTER", "0s REGISTER", "0s INVITE", "0s ACK", "25s ", "50s ", "1m15s REGISTER",
		})
		b.peer.answers(fourth, "401 Unauthorized", "r", "", `WWW-Authenticate: Digest realm="carrier", nonce="n2", qop="auth", stale=true`)
		b.peer.answers(b.peer.last(), "200 OK", "r", "") // no Contact, no Expires: as asked
		if s := b.stack.Trunks(); time.Until(s[0].Registered) != 120*time.Second {
			t.Errorf("state = %+v", s)
		}
		// Calls go the way the registrar said, and come to our binding.
		b.peer.answers(fourth, "200 OK", "r", "", "Service-Route: <sip:late.example;lr>") // a late copy changes nothing
		call, inv := b.dials()
		if got := headersIn(inv, "Route"); got != "" {
			t.Errorf("INVITE has Route %q, want none: the last answer named none", got)
		}
		_ = call.Hangup(CauseNormal)
		b.peer.send(request("INVITE", "sip:bob@192.0.2.1", "<sip:+4930777@carrier.example>", "i1", 1, peerOffer))
		if got := (<-b.calls).Info().Dialled; got != "+4930777" {
			t.Errorf("dialled %q, want what To says", string(got))
		}
	})
}

func TestRegistrarThatAsksForAWhileIsLeftAlone(t *testing.T) { // RFC 3261 §21.5.4
	for said, wait := range map[string]time.Duration{"Retry-After: 120": 2 * time.Minute, "Retry-After: 5": firstBackoff, "Retry-After: 86400": lastBackoff} {
		inBubble(t, registering, nil, func(b *bubble) {
			b.peer.answers(b.peer.last(), "503 Service Unavailable", "r", "", said)
			b.peer.forget()
			time.Sleep(wait - time.Millisecond)
			wantLines(t, said+": before its time the registrar received", b.peer.lines(), nil)
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if got := b.peer.last(); methodOf(got) != "REGISTER" {
				t.Errorf("%s: after %v came %q", said, wait, got)
			}
		})
	}
}

func TestRegistrationThatFailsIsTriedAgain(t *testing.T) {
	inBubble(t, registering, nil, func(b *bubble) {
		for i, status := range []string{"403 Forbidden", "500 Server Error", "403 Forbidden"} {
			b.peer.answers(b.peer.last(), status, "r", "")
			if s := b.stack.Trunks()[0]; s.Code == 0 || !s.Registered.IsZero() {
				t.Errorf("after %s: %+v", status, s)
			}
			time.Sleep(30 * time.Second << i)
			synctest.Wait()
		}
		b.peer.answers(b.peer.last(), "200 OK", "r", "", "Expires: 40")
		if s := b.stack.Trunks()[0]; s.Code != 0 || s.Registered.IsZero() {
			t.Errorf("in the end: %+v", s)
		}
		wantLines(t, "peer received", b.peer.lines(), []string{"0s REGISTER", "30s REGISTER", "1m30s REGISTER", "3m30s REGISTER"})
		time.Sleep(2*time.Minute - time.Millisecond) // and then it is silent: the binding runs out
		synctest.Wait()
		if s := b.stack.Trunks()[0]; !s.Registered.IsZero() {
			t.Errorf("after silence: %+v", s)
		}
		if n := b.stack.Stats().RegisterFailures; n != 4 { // the pause after the fourth begins when that is over
			t.Errorf("%d failures, want 4", n)
		}
	})
}

func TestRegistrationGoesToTheNextTarget(t *testing.T) { // RFC 3263 §4.3
	change := func(c *Config) {
		registering(c)
		c.Trunks[0].Proxy, c.Trunks[0].Networks = "carrier.example", nil
		c.resolver = zone{
			srv:   map[string][]*net.SRV{"_sip._udp.carrier.example": {{Target: "a.example.", Port: 5060}, {Target: "b.example.", Port: 5060}}},
			hosts: map[string][]string{"a.example": {"192.0.2.20"}, "b.example": {"192.0.2.21"}},
		}
	}
	registers := func(p *rawPeer) (out []string) {
		for _, m := range p.messages() {
			if strings.HasPrefix(m, "REGISTER ") {
				out = append(out, m)
			}
		}
		return out
	}
	for _, status := range []string{"503 Service Unavailable", "408 Request Timeout", ""} {
		t.Run(cmp.Or(status, "silence"), func(t *testing.T) {
			inBubble(t, change, nil, func(b *bubble) {
				other := b.newPeer(addr("192.0.2.21:5060"))
				defer other.close()
				first := b.peer.last()
				if status != "" {
					b.peer.answers(first, status, "r", "")
				} else {
					time.Sleep(32 * time.Second)
					synctest.Wait()
				}
				second := other.last()
				if !strings.HasPrefix(second, "REGISTER sip:carrier.example ") || headerIn(second, "Call-ID") != headerIn(first, "Call-ID") || headerIn(second, "CSeq") != "2 REGISTER" {
					t.Fatalf("after %q from the first, the second got %q", status, second)
				}
				other.answers(second, "200 OK", "r", "")
				if s := b.stack.Trunks()[0]; s.Registered.IsZero() || s.Target != addr("192.0.2.21:5060") || s.Code != 0 {
					t.Errorf("state = %+v", s)
				}
				b.peer.forget()
				time.Sleep(45 * time.Second) // the one that has answered is asked first
				synctest.Wait()
				if n, m := len(registers(b.peer)), len(registers(other)); n != 0 || m != 2 {
					t.Errorf("the first got %d REGISTERs more, the second %d in all; want 0 and 2", n, m)
				}
				other.answers(registers(other)[1], "403 Forbidden", "r", "") // and no other one would say otherwise
				if n := len(registers(b.peer)); n != 0 {
					t.Errorf("after 403 the first got %d REGISTERs", n)
				}
				if s := b.stack.Trunks()[0]; s.Code != 403 || s.Registered.IsZero() {
					t.Errorf("state = %+v, want 403 and the binding as long as it holds", s)
				}
			})
		})
	}
}

// farRegistrar is where somebody registers over real connections, with a keep-alive every 50 ms and so much patience for the answers.
func farRegistrar(t *testing.T, pong time.Duration) net.Listener {
	t.Helper()
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{
		Listen: []Listen{{TCP, addr("127.0.0.1:0")}}, RTP: RTPConfig{Addr: netip.MustParseAddr("127.0.0.1")},
		Trunks: []Trunk{{
			Name: "lab", Proxy: far.Addr().String(), Transport: TCP, Register: true, RegisterFor: time.Hour,
			Auth: Credentials{Username: "bob"},
		}},
	}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.watches["lab"].keep, s.watches["lab"].pong = 50*time.Millisecond, pong
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	over := make(chan error, 1)
	go func() { over <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
		far.Close()
	})
	return far
}

// registrar is one at the far end of real connections: each REGISTER is taken, and its connection returned.
func registrar(t *testing.T, far net.Listener) (net.Conn, *bufio.Reader, string) {
	t.Helper()
	_ = far.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
	conn, err := far.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	in := bufio.NewReader(conn)
	var register strings.Builder
	for !strings.HasSuffix(register.String(), "\r\n\r\n") {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("after %q: %v", register.String(), err)
		}
		register.WriteString(line)
	}
	if _, err := conn.Write([]byte(crlf(replyTo(register.String(), "200 OK")))); err != nil {
		t.Fatal(err)
	}
	return conn, in, register.String()
}

// A registrar that is restarted, or a NAT that forgets, leaves us without a way to be called, long before the binding runs out.
func TestRegistrationFollowsALostConnection(t *testing.T) { // RFC 5626 §3.5.1, §4.4
	far := farRegistrar(t, pongTime)
	conn, in, first := registrar(t, far)
	keep := make([]byte, 8)
	if _, err := io.ReadFull(in, keep); err != nil || string(keep) != "\r\n\r\n\r\n\r\n" {
		t.Fatalf("on the connection came %q, %v; want two keep-alives", keep, err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	again, _, second := registrar(t, far)
	defer again.Close()
	if headerIn(second, "Call-ID") != headerIn(first, "Call-ID") || headerIn(second, "CSeq") != "2 REGISTER" {
		t.Errorf("over the next connection came %q after %q", second, first)
	}
}

// A NAT or a firewall that has forgotten a connection tells nobody: what is sent over it is lost, for minutes. A registrar that has
// answered keep-alives, and does not any more, is registered with anew; of one that never did nothing is expected.
func TestRegistrationFollowsAConnectionThatDiedWithoutAWord(t *testing.T) { // RFC 5626 §4.4.1
	t.Parallel() // it waits
	far := farRegistrar(t, 2*time.Second)
	ping := make([]byte, 4)
	conn, in, _ := registrar(t, far)
	defer conn.Close()
	for began := time.Now(); time.Since(began) < 4*time.Second; { // until it must have been seen to answer twice
		if _, err := io.ReadFull(in, ping); err != nil || string(ping) != "\r\n\r\n" {
			t.Fatalf("on the connection came %q, %v; want a keep-alive", ping, err)
		}
		if _, err := io.WriteString(conn, "\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	again, in, second := registrar(t, far) // the first is open, and says nothing any more
	defer again.Close()
	if headerIn(second, "CSeq") != "2 REGISTER" {
		t.Errorf("over the next connection came %q", second)
	}
	for began := time.Now(); time.Since(began) < 2500*time.Millisecond; { // it never answers, and keeps its connection
		if _, err := io.ReadFull(in, ping); err != nil {
			t.Fatalf("the connection of a registrar that answers no keep-alives: %v", err)
		}
	}
}

// The connection has gone, and there may be another one to the same place: of that nothing was asked yet.
func TestKeepAliveOfAConnectionThatIsGoneIsForgotten(t *testing.T) {
	inBubble(t, registering, nil, func(b *bubble) {
		near, far := net.Pipe()
		defer far.Close()
		w := b.stack.watches["lab"]
		conn := newGuardedConn(near, b.stack.guard(), func() {})
		defer conn.Close()
		w.kept, conn.lively, w.good = conn, livelyEnough, target{peerAddr, TCP}
		if !w.heardPong() || w.kept != nil {
			t.Error("a connection that nobody uses any more is waited for")
		}
		select {
		case <-conn.over:
			t.Error("it was closed")
		default:
		}
	})
}

// pipedRegistrar takes each REGISTER that comes over connections without a network.
type pipedRegistrar struct {
	keep    func(conn, n int) string // what it says to the nth keep-alive of a connection; "end" = it closes that
	options func(n int) time.Duration
	own     time.Duration // it sends an empty line of its own accord as often; 0 = never

	conns, asked int
	serving      sync.WaitGroup
}

func (r *pipedRegistrar) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	r.conns++ // one at a time, for there is one watch
	n := r.conns
	r.serving.Go(func() { r.serve(n, far) })
	if r.own > 0 {
		r.serving.Go(func() {
			for err := error(nil); err == nil; _, err = io.WriteString(far, "\r\n") {
				time.Sleep(r.own)
			}
		})
	}
	return from{near, peerAddr.String()}, nil
}

func (r *pipedRegistrar) serve(conn int, far net.Conn) {
	defer far.Close()
	in := bufio.NewReader(far)
	keeps := 0
	for message := ""; ; {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		message += line
		say := ""
		switch {
		case message == "\r\n\r\n":
			if keeps++; r.keep != nil {
				time.Sleep(time.Millisecond)
				say = r.keep(conn, keeps)
			}
		case message == "\r\n", line != "\r\n":
			continue
		case strings.HasPrefix(message, "REGISTER "):
			say = crlf(strings.Replace(replyTo(message, "200 OK"), "Content-Length", "Expires: 7200\nContent-Length", 1))
		default:
			r.asked++
			time.Sleep(r.options(r.asked))
			say = crlf(replyTo(message, "200 OK"))
		}
		message = ""
		if say == "end" {
			return
		}
		if _, err := io.WriteString(far, say); err != nil {
			return
		}
	}
}

// Who answers keep-alives is expected to; but calls hang on the connection, and our own delays, other servers and lines that answer
// nothing must not cost it.
func TestOnlyDeadConnectionsToRegistrarsAreGivenUp(t *testing.T) { // RFC 5626 §4.4.1
	const answer = "\r\n"
	always := func(_, _ int) string { return answer }
	atOnce := func(int) time.Duration { return 0 }
	slowOnce := func(n int) time.Duration {
		if n == 6 {
			return 15 * time.Second
		}
		return 0
	}
	for _, tt := range []struct {
		name      string
		registrar *pipedRegistrar
		want      int // connections in an hour
	}{
		{"answers", &pipedRegistrar{keep: always, options: atOnce}, 1},
		{"answers, and is slow with a request of ours", &pipedRegistrar{keep: always, options: slowOnce}, 1},
		{"never answers", &pipedRegistrar{options: atOnce}, 1},
		{"sends empty lines of its own", &pipedRegistrar{options: atOnce, own: 37 * time.Second}, 1},
		{"sends what looks like one answer", &pipedRegistrar{options: atOnce, keep: func(_, n int) string {
			return map[int]string{4: answer}[n]
		}}, 1},
		{"dies after ten answers, like all after it", &pipedRegistrar{options: atOnce, keep: func(_, n int) string {
			return strings.Repeat(answer, min(1, max(0, 11-n)))
		}}, 4}, // each lives for 1110 s
		{"closes, and the next one never answers", &pipedRegistrar{options: atOnce, keep: func(conn, n int) string {
			switch {
			case conn > 1:
				return ""
			case n > 5:
				return "end"
			}
			return answer
		}}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				trunk := Trunk{Name: "lab", Proxy: "192.0.2.20", Transport: TCP, Register: true, RegisterFor: 2 * time.Hour, Ping: keepStream}
				s := newStack(Config{Trunks: []Trunk{trunk}, resolver: zone{}}, nil, slog.New(slog.DiscardHandler))
				own := net.TCPAddrFromAddrPort(bridgeAddr)
				s.listeners = []listener{{
					transport: TCP, addr: bridgeAddr, ready: make(chan struct{}), caughtUp: closedChannel(),
					conns: &guardedListener{Listener: newOutgoingConns(own), guard: s.guard()},
				}}
				s.outgoing[TCP] = newOutgoingConns(own)
				r := tt.registrar
				s.dial = r.dial
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				if err := s.Run(ctx); err != nil {
					t.Error(err)
				}
				r.serving.Wait()
				if r.conns != tt.want {
					t.Errorf("%d connections in an hour, want %d", r.conns, tt.want)
				}
			})
		})
	}
}

func TestTrunkThatDoesNotAnswerIsDown(t *testing.T) {
	pinged := func(c *Config) { outbound(c); c.Trunks[0].Ping = time.Minute }
	inBubble(t, pinged, nil, func(b *bubble) {
		b.peer.answers(b.peer.last(), "404 Not Found", "o", "") // an answer is an answer
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := b.stack.Trunks()[0]; s.Down {
			t.Errorf("state = %+v", s)
		}
		time.Sleep(32 * time.Second)
		synctest.Wait()
		if s := b.stack.Trunks()[0]; !s.Down {
			t.Errorf("after silence: %+v", s)
		}
		if _, err := b.stack.Dial(t.Context(), DialRequest{Trunk: "lab", Number: "1"}); !errors.Is(err, ErrDown) {
			t.Errorf("Dial over a trunk that is down = %v", err)
		}
		b.peer.forget()
		time.Sleep(28 * time.Second)
		synctest.Wait()
		wantLines(t, "peer received", b.peer.lines(), []string{"2m0s OPTIONS"})
		b.peer.answers(b.peer.last(), "200 OK", "o", "")
		if _, err := b.stack.Dial(t.Context(), DialRequest{Trunk: "lab", Number: "1"}); err != nil {
			t.Errorf("Dial over a trunk that is up again = %v", err)
		}
	})
}

// zone is a DNS.
type zone struct {
	srv   map[string][]*net.SRV // by _service._proto.name
	hosts map[string][]string
	naptr []*dns.NAPTR // of every name
}

func (z zone) LookupNAPTR(context.Context, string) ([]*dns.NAPTR, error) { return z.naptr, nil }

func (z zone) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	full := strings.TrimSuffix(name, ".")
	if service != "" {
		full = "_" + service + "._" + proto + "." + full
	}
	if r := z.srv[full]; r != nil {
		return name, r, nil
	}
	return "", nil, &net.DNSError{Name: name, IsNotFound: true}
}

func (z zone) LookupNetIP(_ context.Context, _, host string) (out []netip.Addr, err error) {
	for _, a := range z.hosts[host] {
		out = append(out, netip.MustParseAddr(a))
	}
	if out == nil {
		err = &net.DNSError{Name: host, IsNotFound: true}
	}
	return out, err
}

func TestTargetsOfAName(t *testing.T) { // RFC 3263 §4.1, §4.2
	z := zone{
		srv: map[string][]*net.SRV{
			"_sip._udp.carrier.example":  {{Target: "a.carrier.example.", Port: 5070}, {Target: "gone.example.", Port: 1}, {Target: "b.carrier.example.", Port: 5080}},
			"_sips._tcp.carrier.example": {{Target: "b.carrier.example.", Port: 5090}},
			"_sip._tcp.edge.example":     {{Target: "edge.example.", Port: 5071}, {Target: "edge.example.", Port: 5071}},
		},
		hosts: map[string][]string{
			"edge.example": {"198.51.100.4"}, "far.example": {"2001:db8::2"},
			"a.carrier.example": {"198.51.100.1", "2001:db8::1", "198.51.100.2"}, "b.carrier.example": {"198.51.100.3"}, "carrier.example": {"198.51.100.9"},
		},
	}
	tcpFirst := []string{`10 1 "s" "SIP+D2T" "" _sip._tcp.edge.example.`, `10 2 "s" "SIP+D2U" "" _sip._udp.carrier.example.`, `20 1 "s" "SIPS+D2T" "" _sips._tcp.carrier.example.`}
	const viaUDP = "udp 198.51.100.1:5070, udp 198.51.100.2:5070, udp 198.51.100.3:5080"
	for _, tt := range []struct {
		proxy     string
		transport Transport
		naptr     []string
		want      string
	}{
		{"carrier.example", UDP, nil, viaUDP},
		{"carrier.example", "", tcpFirst, viaUDP}, // a transport is configured: NAPTR is not asked
		{"carrier.example", TLS, tcpFirst, "tls 198.51.100.3:5090"},
		{"carrier.example", TCP, nil, "tcp 198.51.100.9:5060"}, // no SRV for it
		{"carrier.example:5999", UDP, nil, "udp 198.51.100.9:5999"},
		{"192.0.2.7", TLS, nil, "tls 192.0.2.7:5061"},
		{"192.0.2.7:5060", UDP, nil, "udp 192.0.2.7:5060"},
		{"nowhere.example", UDP, nil, "error"},
		{"far.example", UDP, nil, "error"},                                      // IPv6 only, we are not
		{"carrier.example", Auto, tcpFirst, "tcp 198.51.100.4:5071, " + viaUDP}, // and not the order above
		{"carrier.example", Auto, tcpFirst[1:], viaUDP},
		{"carrier.example", Auto, []string{`1 1 "s" "SIP+D2U" "" gone.example.`, tcpFirst[2]}, "tls 198.51.100.3:5090"}, // leads nowhere: the next
		{"carrier.example", Auto, nil, "tls 198.51.100.3:5090, " + viaUDP},                                              // every SRV there is
		{"edge.example", Auto, nil, "tcp 198.51.100.4:5071"},
		{"edge.example", Auto, []string{`1 1 "s" "SIP+D2U" "" gone.example.`}, "tcp 198.51.100.4:5071"},
		{"a.carrier.example", Auto, nil, "udp 198.51.100.1:5060, udp 198.51.100.2:5060"}, // neither: UDP
		{"carrier.example:5999", Auto, tcpFirst, "udp 198.51.100.9:5999"},
		{"192.0.2.7", Auto, tcpFirst, "udp 192.0.2.7:5060"},
		{"nowhere.example", Auto, nil, "error"},
	} {
		z.naptr = naptrs(t, tt.naptr...)
		s := &Stack{
			config: Config{RTP: RTPConfig{Advertise: bridgeAddr.Addr()}, resolver: z}, neighbours: &neighbours{trunks: []Trunk{{Name: "x"}}},
			listeners: []listener{{transport: UDP}, {transport: TCP}, {transport: TLS}}, log: slog.New(slog.DiscardHandler), root: t.Context(),
		}
		targets, err := s.locate(t.Context(), &Trunk{Name: "x", Proxy: tt.proxy, Transport: tt.transport})
		var got []string
		for _, t := range targets {
			got = append(got, fmt.Sprintf("%s %v", t.transport, t.addr))
			if s.neighbours.trunkOf(t.addr.Addr()) == nil {
				panic("its answers would not be heard")
			}
		}
		text := strings.Join(got, ", ")
		if err != nil {
			text = "error"
		}
		if text != tt.want {
			t.Errorf("locate(%s, %s) with NAPTR %q = %s, want %s", tt.proxy, tt.transport, tt.naptr, text, tt.want)
		}
	}
}

func TestNextTargetWhenOneFails(t *testing.T) { // RFC 3263 §4.3
	change := func(c *Config) {
		outbound(c)
		c.Trunks[0].Proxy, c.Trunks[0].Networks = "carrier.example", nil // only DNS says whose answers are heard
		c.resolver = zone{
			srv:   map[string][]*net.SRV{"_sip._udp.carrier.example": {{Target: "a.example.", Port: 5060}, {Target: "b.example.", Port: 5060}}},
			hosts: map[string][]string{"a.example": {"192.0.2.20"}, "b.example": {"192.0.2.21"}},
		}
	}
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprint("silent ", silent), func(t *testing.T) {
			inBubble(t, change, nil, func(b *bubble) {
				other := b.newPeer(addr("192.0.2.21:5060"))
				defer other.close()
				_, inv := b.dials()
				if silent {
					time.Sleep(32 * time.Second)
					synctest.Wait()
				} else {
					b.peer.answers(inv, "503 Service Unavailable", "b1", "")
				}
				second := other.last()
				if !strings.HasPrefix(second, "INVITE") || headerIn(second, "CSeq") != "2 INVITE" || headerIn(second, "Call-ID") != headerIn(inv, "Call-ID") {
					t.Fatalf("the other got %q", second)
				}
				other.answers(second, "200 OK", "b2", peerAnswer, "Contact: <sip:200@192.0.2.21:5060>")
				if ack := other.last(); !strings.HasPrefix(ack, "ACK sip:200@192.0.2.21:5060") {
					t.Errorf("the other got %q", ack)
				}
				if silent { // the next call does not wait for it
					b.peer.forget()
					b.dials()
					wantLines(t, "the silent one received", b.peer.lines(), nil)
					if got := other.last(); !strings.HasPrefix(got, "INVITE") || headerIn(got, "Call-ID") == headerIn(inv, "Call-ID") {
						t.Errorf("of the next call the other got %q", got)
					}
				}
			})
		})
	}
}

func TestServerThatAsksForAWhileIsLeftAlone(t *testing.T) { // RFC 3261 §21.5.4
	for _, tt := range []struct {
		status string
		said   []string
		rests  time.Duration
	}{
		{"503 Service Unavailable", []string{"Retry-After: 60 (maintenance)"}, time.Minute},
		{"503 Service Unavailable", []string{"Retry-After: 86400"}, longestRest},
		{"503 Service Unavailable", []string{"Retry-After: soon"}, 0},
		{"503 Service Unavailable", nil, 0},
		{"503 Service Unavailable", []string{"Retry-After: 60", "Reason: Q.850;cause=17"}, 0}, // who is called is busy, not the server
		{"480 Temporarily Unavailable", []string{"Retry-After: 60"}, 0},
	} {
		t.Run(fmt.Sprint(tt.status[:3], tt.said), func(t *testing.T) {
			inBubble(t, twoServers, nil, func(b *bubble) {
				other := b.newPeer(addr("192.0.2.21:5060"))
				defer other.close()
				_, inv := b.dials()
				b.peer.answers(inv, tt.status, "b1", "", tt.said...)
				b.peer.forget()
				if tt.rests > 0 {
					time.Sleep(tt.rests - time.Millisecond)
					other.answers(other.last(), "486 Busy Here", "b2", "")
					other.forget()
					b.dials()
					wantLines(t, "who has asked for a while received", b.peer.lines(), nil)
					if got := other.last(); methodOf(got) != "INVITE" {
						t.Errorf("the other got %q, want the call", got)
					}
					time.Sleep(time.Millisecond)
				}
				if _, inv := b.dials(); methodOf(inv) != "INVITE" {
					t.Errorf("after %v the peer got %q, want the next call", tt.rests, inv)
				}
			})
		})
	}
}

// twoServers makes the trunk one of two servers of the same rank.
func twoServers(c *Config) {
	outbound(c)
	c.Trunks[0].Proxy = "carrier.example"
	c.resolver = &turningZone{zone: zone{
		srv:   map[string][]*net.SRV{"_sip._udp.carrier.example": {{Target: "a.example.", Port: 5060}, {Target: "b.example.", Port: 5060}}},
		hosts: map[string][]string{"a.example": {"192.0.2.20"}, "b.example": {"192.0.2.21"}},
	}}
}

// turningZone is a DNS that may name the servers of a service the other way round.
type turningZone struct {
	zone
	turned atomic.Bool
}

func (z *turningZone) LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error) {
	cname, records, err := z.zone.LookupSRV(ctx, service, proto, name)
	if records = slices.Clone(records); z.turned.Load() {
		slices.Reverse(records)
	}
	return cname, records, err
}

// One answer may have been about one number or one account: where nobody else takes the call, the server is asked all the same.
func TestRestOfAServerTakesNoTrunkAway(t *testing.T) {
	couldGoElsewhere := func(r *DialRequest) { r.Silence = 6 * time.Second }
	inBubble(t, outbound, nil, func(b *bubble) {
		_, inv := b.dials()
		b.peer.answers(inv, "503 Service Unavailable", "b1", "", "Retry-After: 300")
		_, again := b.dials()
		if methodOf(again) != "INVITE" || headerIn(again, "Call-ID") == headerIn(inv, "Call-ID") {
			t.Errorf("the only server of the only trunk got %q, want the next call", again)
		}
		b.peer.answers(again, "486 Busy Here", "b2", "")
		time.Sleep(trunkRest - time.Millisecond)
		b.peer.forget()
		before := len(b.said())
		b.dials(couldGoElsewhere)
		wantLines(t, "peer received", b.peer.lines(), nil)
		if got, ok := b.event(before).(Refused); !ok || got.Code != 503 || !got.Local { // so that the other trunk is tried
			t.Errorf("said %v", b.said()[before:])
		}
		time.Sleep(time.Millisecond)
		if _, inv := b.dials(couldGoElsewhere); methodOf(inv) != "INVITE" {
			t.Errorf("after %v the peer got %q, want the next call", trunkRest, inv)
		}
	})
	inBubble(t, func(c *Config) { // another account with the same server
		outbound(c)
		c.Trunks = append(c.Trunks, c.Trunks[0])
		c.Trunks[1].Name = "other"
	}, nil, func(b *bubble) {
		_, inv := b.dials()
		b.peer.answers(inv, "503 Service Unavailable", "b1", "", "Retry-After: 300")
		b.peer.forget()
		if _, inv := b.dials(func(r *DialRequest) { r.Trunk = "other" }, couldGoElsewhere); methodOf(inv) != "INVITE" {
			t.Errorf("of the other trunk's call the peer got %q", inv)
		}
	})
}

// Each call rests the server that it was sent to first; when the uplink is back there must be one to ask.
func TestCallsGoOnAfterAnOutageThatMetEveryServer(t *testing.T) {
	var dns *turningZone
	inBubble(t, func(c *Config) { twoServers(c); dns = c.resolver.(*turningZone) }, nil, func(b *bubble) {
		other := b.newPeer(addr("192.0.2.21:5060"))
		defer other.close()
		b.dials()
		dns.turned.Store(true)
		b.dials()
		time.Sleep(40 * time.Second) // the first two have rested for 8 s by then
		b.peer.forget()
		other.forget()
		before := len(b.said())
		b.dials()
		wantLines(t, "the one that DNS names first received", other.lines(), []string{"40s INVITE"})
		wantLines(t, "application heard", withoutChanges(b.said()[before:]), nil)
	})
}

func TestOnlySilenceRestsAServer(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("INVITE: %w", gosip.ErrTransactionTimeout), true},
		{fmt.Errorf("INVITE: %w", refused), true},
		{fmt.Errorf("INVITE: %w", &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}), true},
		{fmt.Errorf("INVITE: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}), false},
		{fmt.Errorf("INVITE: TLS: %w", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}), false},
		{context.Canceled, false},
		{context.DeadlineExceeded, false},
	} {
		if got := silent(tt.err); got != tt.want {
			t.Errorf("silent(%v) = %v, want %v", tt.err, got, tt.want)
		}
	}
}

// Anybody else would take it for another call, and DNS names servers of one rank in any order.
func TestResumedCallGoesToTheTargetItWasSentTo(t *testing.T) {
	named := func(hosts ...string) func(*Config) {
		z := zone{srv: map[string][]*net.SRV{}, hosts: map[string][]string{"a.example": {"192.0.2.20"}, "b.example": {"192.0.2.21"}}}
		for _, h := range hosts {
			z.srv["_sip._udp.carrier.example"] = append(z.srv["_sip._udp.carrier.example"], &net.SRV{Target: h, Port: 5060})
		}
		return func(c *Config) {
			outbound(c)
			c.Trunks[0].Proxy, c.Trunks[0].Transport, c.Trunks[0].Networks = "carrier.example", Auto, nil
			c.resolver = z
		}
	}
	for _, tt := range []struct {
		name    string
		refused bool // by the first
		then    []string
	}{
		{"the second, after a refusal", true, []string{"a.example.", "b.example."}},
		{"the first, which is named last by now", false, []string{"b.example.", "a.example."}},
		{"the first, which is not named any more", false, []string{"b.example."}},
		{"the first, and DNS has no answer", false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var saved Dialog
			var first string
			inBubble(t, named("a.example.", "b.example."), nil, func(b *bubble) {
				other := b.newPeer(addr("192.0.2.21:5060"))
				defer other.close()
				_, first = b.dials()
				if tt.refused {
					b.peer.answers(first, "503 Service Unavailable", "b1", "")
					first = other.last()
					other.answers(first, "180 Ringing", "b2", "")
				} else {
					b.peer.answers(first, "180 Ringing", "b2", "")
				}
				saved = b.saved()
			})
			inBubble(t, named(tt.then...), nil, func(b *bubble) { // another process
				other := b.newPeer(addr("192.0.2.21:5060"))
				defer other.close()
				asked, spared := b.peer, other
				if tt.refused {
					asked, spared = other, b.peer
				}
				call, err := b.stack.Resume(saved)
				if err != nil {
					t.Fatal(err)
				}
				if err := call.SendInvite(); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				got := asked.last()
				if !strings.HasPrefix(first, "INVITE ") || headerIn(got, "Via") != headerIn(first, "Via") || len(spared.lines()) != 0 {
					t.Errorf("it got %q, want %q again; the other got %q", got, first, spared.lines())
				}
				asked.answers(got, "486 Busy Here", "b2", "")
				select {
				case <-call.Done():
				default:
					t.Error("its answer was not heard")
				}
			})
		})
	}
}
