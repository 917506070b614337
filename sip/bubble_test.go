package sip

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// world is a network in memory for a bubble: datagrams arrive at once, in order, and are never lost unless told so.
type world struct {
	mu    sync.Mutex
	conns map[netip.AddrPort]*memConn
	lose  func(from, to netip.AddrPort, b []byte) bool
}

type memConn struct {
	world  *world
	addr   netip.AddrPort
	in     chan datagram
	closed chan struct{}
	once   sync.Once
}

type datagram struct {
	from netip.AddrPort
	b    []byte
}

func newWorld() *world { return &world{conns: map[netip.AddrPort]*memConn{}} }

func (w *world) listen(addr netip.AddrPort) *memConn {
	c := &memConn{world: w, addr: addr, in: make(chan datagram, 4096), closed: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conns[addr] != nil {
		panic("address in use: " + addr.String())
	}
	w.conns[addr] = c
	return c
}

func (c *memConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	select {
	case d := <-c.in:
		return copy(b, d.b), d.from, nil
	case <-c.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

func (c *memConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	dst := c.world.conns[to]
	if dst == nil || c.world.lose != nil && c.world.lose(c.addr, to, b) {
		return len(b), nil
	}
	select {
	case dst.in <- datagram{c.addr, slices.Clone(b)}:
	default:
	}
	return len(b), nil
}

func (c *memConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	return n, net.UDPAddrFromAddrPort(from), err
}

func (c *memConn) WriteTo(b []byte, to net.Addr) (int, error) {
	return c.WriteToUDPAddrPort(b, addrPortOf(to))
}
func (c *memConn) LocalAddr() net.Addr              { return net.UDPAddrFromAddrPort(c.addr) }
func (c *memConn) SetDeadline(time.Time) error      { return nil }
func (c *memConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memConn) SetWriteDeadline(time.Time) error { return nil }

func (c *memConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.world.mu.Lock()
		delete(c.world.conns, c.addr)
		c.world.mu.Unlock()
	})
	return nil
}

var (
	bridgeAddr = netip.MustParseAddrPort("192.0.2.1:5060")
	peerAddr   = netip.MustParseAddrPort("192.0.2.20:5060")
	peerRTP    = netip.MustParseAddrPort("192.0.2.20:4000")
)

// bubble is a real stack in a world, and a peer that speaks raw SIP.
type bubble struct {
	testing.TB
	world *world
	stack *Stack
	peer  *rawPeer
	began time.Time
	calls chan *Call
	bugs  uint64 // panics the test causes

	answered int // messages that passes has looked at

	saves func() // takes as long as a save of what a phone waits for; nil = it is done at once

	mu     sync.Mutex
	events []timed[Event]
	row    Dialog // what an application that saves at once has saved last
	invite func(*Call)
}

type timed[T any] struct {
	at time.Duration
	v  T
}

func (b *bubble) Invite(c *Call) {
	c.OnEvent(func(e Event) {
		b.mu.Lock()
		b.events = append(b.events, timed[Event]{time.Since(b.began), e})
		switch e := e.(type) {
		case Acked:
			b.row = c.Dialog()
		case DialogChanged:
			if e.Saved == nil {
				b.row = c.Dialog()
				break
			}
			go func() {
				if b.saves != nil {
					b.saves()
				}
				b.mu.Lock()
				b.row = c.Dialog()
				b.mu.Unlock()
				close(e.Saved)
			}()
		}
		b.mu.Unlock()
	})
	select {
	case b.calls <- c:
	default: // a flood: nobody looks at them
	}
	if b.invite != nil {
		go b.invite(c)
	}
}

// said lists what the application heard of, with whole milliseconds.
func (b *bubble) said() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, e := range b.events {
		out = append(out, fmt.Sprintf("%v %s", e.at, strings.TrimPrefix(fmt.Sprintf("%T", e.v), "sip.")))
	}
	return out
}

func (b *bubble) saved() Dialog {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.row
}

func (b *bubble) event(i int) Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.events[i].v
}

// inBubble runs a test on virtual time with a running stack. invite is what the application does with a call.
func inBubble(t *testing.T, change func(*Config), invite func(*Call), test func(*bubble)) {
	t.Helper()
	inBubbleThatRuns(t, 0, change, invite, test)
}

// inBubbleThatRuns is inBubble with a stack that begins to run after a while.
func inBubbleThatRuns(t *testing.T, after time.Duration, change func(*Config), invite func(*Call), test func(*bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		config := Config{
			Listen: []Listen{{UDP, bridgeAddr}},
			RTP:    RTPConfig{Addr: bridgeAddr.Addr(), PortMin: 20000, PortMax: 20099},
			Trunks: []Trunk{{Name: "lab", Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}},

			resolver: zone{},
		}
		if change != nil {
			change(&config)
		}
		b := &bubble{TB: t, world: newWorld(), began: time.Now(), calls: make(chan *Call, 100), invite: invite}
		b.stack = newStack(config, b, slog.New(slog.DiscardHandler))
		b.stack.addPackets(b.world.listen(bridgeAddr))
		b.stack.ports.listen = func(a netip.AddrPort) (rtpConn, error) { return b.world.listen(a), nil }
		b.peer = b.newPeer(peerAddr)
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() {
			time.Sleep(after)
			ended <- b.stack.Run(ctx)
		}()
		synctest.Wait()
		test(b)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
		b.peer.close()
		if n := b.stack.Stats().Panics; n != b.bugs {
			t.Errorf("%d panics, want %d", n, b.bugs)
		}
	})
}

// rawPeer sends messages as they are written and keeps what it gets.
type rawPeer struct {
	b    *bubble
	conn *memConn
	done chan struct{}

	mu  sync.Mutex
	got []timed[string]
}

func (b *bubble) newPeer(addr netip.AddrPort) *rawPeer {
	p := &rawPeer{b: b, conn: b.world.listen(addr), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		buf := make([]byte, 65536)
		for {
			n, _, err := p.conn.ReadFrom(buf)
			if err != nil {
				return
			}
			p.mu.Lock()
			p.got = append(p.got, timed[string]{time.Since(b.began), string(buf[:n])})
			p.mu.Unlock()
		}
	}()
	return p
}

func (p *rawPeer) close() { _ = p.conn.Close(); <-p.done }

// send writes a message whose lines end in \n and waits until everybody has dealt with it.
func (p *rawPeer) send(m string) {
	_, _ = p.conn.WriteToUDPAddrPort([]byte(crlf(m)), bridgeAddr)
	synctest.Wait()
}

func crlf(m string) string {
	return strings.ReplaceAll(strings.ReplaceAll(m, "\r\n", "\n"), "\n", "\r\n")
}

// lines lists the start lines received, with times.
func (p *rawPeer) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, g := range p.got {
		first, _, _ := strings.Cut(g.v, "\r\n")
		method, _, _ := strings.Cut(first, " ")
		if method != "SIP/2.0" {
			first = method
		}
		out = append(out, fmt.Sprintf("%v %s", g.at, strings.TrimPrefix(first, "SIP/2.0 ")))
	}
	return out
}

// messages lists what was received.
func (p *rawPeer) messages() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, g := range p.got {
		out = append(out, g.v)
	}
	return out
}

// last is the last message received.
func (p *rawPeer) last() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.got) == 0 {
		return ""
	}
	return p.got[len(p.got)-1].v
}

func (p *rawPeer) forget() {
	p.mu.Lock()
	p.got = nil
	p.mu.Unlock()
}

// headerIn returns the value of a header of a raw message.
func headerIn(m, name string) string {
	for line := range strings.SplitSeq(m, "\r\n") {
		if n, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(n, name) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

const peerOffer = `v=0
o=- 1 1 IN IP4 192.0.2.20
s=-
c=IN IP4 192.0.2.20
t=0 0
m=audio 4000 RTP/AVP 0 101
a=rtpmap:101 telephone-event/8000
`

// request writes a request of the peer. edit replaces or adds header lines "Name: value"; "Name:" alone removes one.
func request(method, uri, to, branch string, cseq int, body string, edit ...string) string {
	lines := []string{
		"Via: SIP/2.0/UDP 192.0.2.20:5060;branch=z9hG4bK" + branch + ";rport",
		"Max-Forwards: 70",
		"From: \"Ann\" <sip:2001@192.0.2.20>;tag=a1",
		"To: " + to,
		"Call-ID: call-1",
		fmt.Sprintf("CSeq: %d %s", cseq, method),
		"Contact: <sip:2001@192.0.2.20:5060>",
	}
	body = crlf(body)
	if body != "" {
		lines = append(lines, "Content-Type: application/sdp")
	}
	lines = append(lines, fmt.Sprintf("Content-Length: %d", len(body)))
	for _, e := range edit {
		name, value, _ := strings.Cut(e, ":")
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+":") })
		switch {
		case i >= 0 && value == "":
			lines = slices.Delete(lines, i, i+1)
		case i >= 0:
			lines[i] = e
		default:
			lines = append(lines, e)
		}
	}
	return method + " " + uri + " SIP/2.0\n" + strings.Join(lines, "\n") + "\n\n" + body
}

const (
	bridgeURI = "sip:1000@192.0.2.1"
	bridgeTo  = "<sip:1000@192.0.2.1>"
)

func invite(edit ...string) string {
	return request("INVITE", bridgeURI, bridgeTo, "i1", 1, peerOffer, edit...)
}

// within is a request inside the dialog of the last message received with a To tag.
func (p *rawPeer) within(method, branch string, cseq int, body string, edit ...string) string {
	p.mu.Lock()
	var to string
	for _, g := range slices.Backward(p.got) {
		if strings.HasPrefix(g.v, "SIP/2.0") && strings.Contains(headerIn(g.v, "To"), "tag=") && strings.HasSuffix(headerIn(g.v, "CSeq"), "INVITE") {
			to = headerIn(g.v, "To")
			break
		}
	}
	p.mu.Unlock()
	return request(method, "sip:trunkline@192.0.2.1:5060", to, branch, cseq, body, edit...)
}

func answerAtOnce(c *Call) {
	_, _, _ = c.Answer(context.Background())
}

func wantLines(t testing.TB, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

func TestAnswerIsRepeatedUntilGivenUp(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		b.peer.send(invite())
		time.Sleep(2 * time.Minute)
		wantLines(t, "peer received", b.peer.lines(), []string{
			// RFC 3261 §13.3.1.4: from T1, doubling up to T2, for 64*T1; then BYE, which repeats as §17.1.2 says.
			"0s 200 OK", "500ms 200 OK", "1.5s 200 OK", "3.5s 200 OK", "7.5s 200 OK", "11.5s 200 OK",
			"15.5s 200 OK", "19.5s 200 OK", "23.5s 200 OK", "27.5s 200 OK", "31.5s 200 OK",
			"32s BYE", "32.5s BYE", "33.5s BYE", "35.5s BYE", "39.5s BYE", "43.5s BYE", "47.5s BYE", "51.5s BYE", "55.5s BYE",
			"59.5s BYE", "1m3.5s BYE",
		})
		wantLines(t, "application heard", b.said(), []string{"32s NoAck", "1m4s Ended"})
		if s := b.stack.Stats(); s.NoAck != 1 || s.Calls != 0 || s.RTPPorts != 0 {
			t.Errorf("stats = %+v", s)
		}
	})
}

func TestAckStopsRepetition(t *testing.T) {
	inBubble(t, func(c *Config) { c.Limits.MediaTimeout = -1 }, answerAtOnce, func(b *bubble) {
		b.peer.send(invite())
		time.Sleep(2 * time.Second)
		ack := b.peer.within("ACK", "k1", 1, "")
		b.peer.send(ack)
		time.Sleep(time.Hour)
		b.peer.send(ack) // late copies are nothing
		bye := b.peer.within("BYE", "b1", 2, "", `Reason: Q.850;cause=16;text="bye \bye"`)
		b.peer.send(bye)
		b.peer.send(bye) // and a repeated BYE gets the same answer
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s 200 OK", "500ms 200 OK", "1.5s 200 OK", "1h0m2s 200 OK", "1h0m2s 200 OK",
		})
		wantLines(t, "application heard", b.said(), []string{"2s Acked", "1h0m2s Bye", "1h0m2s Ended"})
		if e := b.event(1).(Bye); e.Cause != (Cause{"Q.850", 16, "bye bye"}) {
			t.Errorf("cause of BYE = %+v", e.Cause)
		}
	})
}

func TestHangupWaitsForTheAck(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		b.peer.send(invite())
		call := <-b.calls
		if err := call.Hangup(CauseNormal); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if strings.Contains(strings.Join(b.peer.lines(), " "), "BYE") {
			t.Error("BYE before the ACK (RFC 3261 §15)")
		}
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		bye := b.peer.last()
		if !strings.HasPrefix(bye, "BYE sip:2001@192.0.2.20:5060 SIP/2.0\r\n") {
			t.Fatalf("after the ACK: %q", bye)
		}
		for name, want := range map[string]string{
			"From": headerIn(b.peer.messages()[1], "To"), "To": `"Ann" <sip:2001@192.0.2.20>;tag=a1`,
			"Call-ID": "call-1", "CSeq": "1 BYE", "Reason": `Q.850;cause=16;text="Normal call clearing"`,
			"Contact": "<sip:trunkline@192.0.2.1:5060>",
		} {
			if got := headerIn(bye, name); got != want {
				t.Errorf("BYE has %s: %s, want %s", name, got, want)
			}
		}
		b.peer.send(replyTo(bye, "200 OK"))
		wantLines(t, "application heard", b.said(), []string{"1s Acked", "1s Ended"})
	})
}

// replyTo answers a request of the bridge.
func replyTo(req, status string) string {
	var out strings.Builder
	out.WriteString("SIP/2.0 " + status + "\n")
	for _, name := range []string{"Via", "From", "To", "Call-ID", "CSeq"} {
		out.WriteString(name + ": " + headerIn(req, name) + "\n")
	}
	out.WriteString("Content-Length: 0\n\n")
	return out.String()
}

func TestCancelEndsARingingCall(t *testing.T) {
	inBubble(t, nil, func(c *Call) { _ = c.Ring() }, func(b *bubble) {
		b.peer.send(invite())
		time.Sleep(time.Minute)
		b.peer.send(request("CANCEL", bridgeURI, bridgeTo, "i1", 1, "", `Reason: SIP;cause=200;text="Call completed elsewhere"`))
		ringing, refused := b.peer.messages()[1], ""
		for _, m := range b.peer.messages() {
			if strings.HasPrefix(m, "SIP/2.0 487") {
				refused = m
			}
		}
		if headerIn(ringing, "To") != headerIn(refused, "To") {
			t.Errorf("180 has To %s, 487 has To %s", headerIn(ringing, "To"), headerIn(refused, "To"))
		}
		time.Sleep(time.Second)
		b.peer.send(request("ACK", bridgeURI, headerIn(refused, "To"), "i1", 1, ""))
		time.Sleep(time.Minute)
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s 180 Ringing", "50s 180 Ringing",
			"1m0s 200 OK", "1m0s 487 Request Terminated", "1m0.5s 487 Request Terminated",
		})
		wantLines(t, "application heard", b.said(), []string{"1m0s Cancelled", "1m0s Ended"})
		if e := b.event(0).(Cancelled); e.Cause != (Cause{"SIP", 200, "Call completed elsewhere"}) {
			t.Errorf("cause = %+v", e.Cause)
		}
	})
}

func TestCancelAfterTheAnswerChangesNothing(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		b.peer.send(invite())
		b.peer.send(request("CANCEL", bridgeURI, bridgeTo, "i1", 1, ""))
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		b.peer.send(b.peer.within("BYE", "b1", 2, ""))
		wantLines(t, "peer received", b.peer.lines(), []string{"0s 200 OK", "0s 200 OK", "0s 200 OK"})
		wantLines(t, "application heard", b.said(), []string{"0s Acked", "0s Bye", "0s Ended"})
	})
}

func TestByeBeforeTheAnswerEndsTheInvite(t *testing.T) {
	inBubble(t, nil, func(c *Call) { _ = c.Ring() }, func(b *bubble) {
		b.peer.send(invite())
		b.peer.send(b.peer.within("BYE", "b1", 2, ""))
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s 180 Ringing", "0s 200 OK", "0s 487 Request Terminated",
		})
		wantLines(t, "application heard", b.said(), []string{"0s Cancelled", "0s Ended"})
	})
}

func TestBothHangUpAtOnce(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		call := <-b.calls
		bye := b.peer.within("BYE", "b1", 2, "")
		_ = call.Hangup(CauseNormal)
		synctest.Wait()
		b.peer.send(bye)
		wantLines(t, "peer received", b.peer.lines(), []string{"0s 200 OK", "0s BYE", "0s 200 OK"})
		wantLines(t, "application heard", b.said(), []string{"0s Acked", "0s Ended"})
		time.Sleep(time.Minute)
	})
}

func TestRepeatedAndMergedInvites(t *testing.T) {
	inBubble(t, nil, func(c *Call) { _ = c.Ring() }, func(b *bubble) {
		b.peer.send(invite())
		time.Sleep(500 * time.Millisecond)
		b.peer.send(invite())                                                   // RFC 3261 §17.2.1: the last provisional answer again
		b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i2", 1, peerOffer)) // §8.2.2.2: same request, other path
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s 180 Ringing", "500ms 180 Ringing", "500ms 482 Loop Detected",
		})
		if n := b.stack.Stats().Calls; n != 1 {
			t.Errorf("%d calls, want 1", n)
		}
	})
}

func TestUnansweredRefusalIsRepeated(t *testing.T) {
	inBubble(t, nil, func(c *Call) { _ = c.Reject(486, "") }, func(b *bubble) {
		b.peer.send(invite())
		time.Sleep(2 * time.Second)
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s 486 Busy Here", "500ms 486 Busy Here", "1.5s 486 Busy Here",
		})
	})
}

// The process before has died before the phone heard anything: the INVITE comes again, and is not a new call.
func TestRepeatedInviteOfAResumedCallIsNoNewOne(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		b.peer.send(invite())
		first := <-b.calls
		saved := first.Dialog()
		_ = first.Reject(486, "")
		time.Sleep(time.Minute) // nothing of it is left
		b.peer.forgetAfter(0)
		resumed, err := b.stack.Resume(saved)
		if err != nil {
			t.Fatal(err)
		}
		b.peer.send(invite())
		time.Sleep(500 * time.Millisecond)
		if n := b.stack.Stats().Calls; n != 1 {
			t.Errorf("%d calls, want the resumed one", n)
		}
		if err := resumed.Reject(503, ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		wantLines(t, "peer received", b.peer.lines(), []string{
			"1m0.5s 503 Service Unavailable", "1m1s 503 Service Unavailable", "1m2s 503 Service Unavailable",
		})
	})
}

// usedUp is the row of a call that is up, and the last sequence number that its process has used, most of them not in the row.
func usedUp(t *testing.T, unsaved int) (saved Dialog, last uint32) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		b.peer.send(invite("Allow: INVITE, UPDATE"))
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		saved = b.saved()
		call := <-b.calls
		_ = call.do(func() error { // the database is away
			for range unsaved {
				last = call.nextCSeq()
			}
			return nil
		})
		b.peer.send(b.peer.within("BYE", "y1", 9, ""))
	})
	return saved, last
}

func cseqOf(t *testing.T, m string) uint32 {
	t.Helper()
	var n uint32
	if _, err := fmt.Sscan(headerIn(m, "CSeq"), &n); err != nil {
		t.Fatalf("CSeq of %q: %v", m, err)
	}
	return n
}

func TestResumedCallStartsAboveNumbersWhoseReservationIsLost(t *testing.T) {
	saved, last := usedUp(t, 120)
	inBubble(t, nil, nil, func(b *bubble) { // another process
		call, err := b.stack.Resume(saved)
		if err != nil {
			t.Fatal(err)
		}
		if now := call.Dialog().LocalCSeq; now < last+cseqBlock {
			t.Errorf("the successor reserves up to %d, want a block after %d", now, last)
		}
		_ = call.Hangup(CauseNormal)
		synctest.Wait()
		if got := cseqOf(t, b.peer.last()); got <= last {
			t.Errorf("the successor uses %d, but the process before has used up to %d", got, last)
		}
		b.peer.send(replyTo(b.peer.last(), "200 OK"))
	})
}

func TestNumbersAreReservedLongBeforeTheyAreUsed(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		call := <-b.calls
		for range 500 {
			var used uint32
			_ = call.do(func() error { used = call.nextCSeq(); return nil })
			if ahead := call.Dialog().LocalCSeq - used; ahead < cseqBlock/2 || ahead > 2*cseqBlock {
				t.Fatalf("%d numbers are reserved after %d, want half a block or more", ahead, used)
			}
		}
		b.peer.send(b.peer.within("BYE", "y1", 9, ""))
	})
}

// The process before had used more numbers than its row says, so the phone finds ours out of order (RFC 3261 §12.2.2).
func TestPhoneThatFindsANumberTooLowIsAskedOnceMore(t *testing.T) {
	saved, _ := usedUp(t, 1000)
	for method, ask := range map[string]func(*Call) error{
		"UPDATE": (*Call).Refresh,
		"INVITE": func(c *Call) error {
			if _, err := c.OpenMedia(); err != nil {
				return err
			}
			return c.do(c.reinvite)
		},
		"BYE": func(c *Call) error { return c.Hangup(CauseNormal) },
	} {
		t.Run(method, func(t *testing.T) {
			inBubble(t, nil, nil, func(b *bubble) {
				call, err := b.stack.Resume(saved)
				if err == nil {
					err = ask(call)
				}
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				asked := func() (out []string) {
					for _, m := range b.peer.messages() {
						if strings.HasPrefix(m, method+" ") {
							out = append(out, m)
						}
					}
					return out
				}
				b.peer.send(replyTo(asked()[0], "500 Out of order"))
				again := asked()
				if len(again) != 2 || cseqOf(t, again[1]) < cseqOf(t, again[0])+cseqLeap {
					t.Fatalf("after a 500 the phone was asked %d times, want once more with a much higher number", len(again))
				}
				if d := call.Dialog(); d.LocalCSeq < cseqOf(t, again[1]) {
					t.Errorf("the row reserves up to %d, below the %d just used", d.LocalCSeq, cseqOf(t, again[1]))
				}
				b.peer.send(replyTo(again[1], "500 Internal Error")) // whatever that means, it is not the number
				if n := len(asked()); n != 2 {
					t.Errorf("the phone was asked %d times, want twice", n)
				}
				if method != "BYE" {
					_ = call.Hangup(CauseNormal)
					synctest.Wait()
					b.peer.send(replyTo(b.peer.last(), "200 OK"))
				}
			})
		})
	}
}

// A call whose row is there, but that cannot go on here, is ended for the phone, too.
func TestSavedCallThatCannotGoOnIsDismissed(t *testing.T) {
	gone := Cause{"SIP", 503, "gone"}
	for name, tt := range map[string]struct {
		save func(*bubble) Dialog
		want []string
	}{
		"up, and nobody listens on its transport": {func(b *bubble) Dialog {
			b.peer.send(invite())
			b.peer.send(b.peer.within("ACK", "k1", 1, ""))
			d := b.saved()
			d.Transport = TCP
			return d
		}, []string{"0s BYE"}},
		"not answered, and nobody listens on its transport": {func(b *bubble) Dialog {
			b.peer.send(invite())
			d := (<-b.calls).Dialog()
			d.Transport, d.Media.LocalSDP = TCP, ""
			return d
		}, []string{"0s 503 Service Unavailable"}},
		"ours, and its trunk is gone": {func(b *bubble) Dialog {
			call, inv := b.dials()
			b.peer.answers(inv, "180 Ringing", "b1", "")
			d := call.Dialog()
			d.Info.Trunk = "gone"
			return d
		}, []string{"0s INVITE", "0s CANCEL"}},
	} {
		t.Run(name, func(t *testing.T) {
			answer := answerAtOnce
			if !strings.HasPrefix(name, "up") {
				answer = func(*Call) {}
			}
			var saved Dialog
			inBubble(t, outbound, answer, func(b *bubble) { saved = tt.save(b) })
			inBubble(t, outbound, nil, func(b *bubble) { // another process
				if _, err := b.stack.Resume(saved); err == nil {
					t.Error("it was resumed")
				}
				if err := b.stack.Dismiss(saved, gone); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if inv := b.peer.last(); strings.HasPrefix(inv, "INVITE") {
					b.peer.answers(inv, "180 Ringing", "b1", "")
				}
				wantLines(t, "peer received", b.peer.lines(), tt.want)
			})
		})
	}
}

func TestResumedCallIsDismissedOnce(t *testing.T) {
	saved, _ := usedUp(t, 1)
	inBubble(t, nil, nil, func(b *bubble) {
		if _, err := b.stack.Resume(saved); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := b.stack.Dismiss(saved, CauseFailure); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		wantLines(t, "peer received", b.peer.lines(), []string{"0s BYE"})
	})
}

// A phone that does not listen is called once at a time, however often the answer is due; what refuses it is never left out.
func TestAnswerWaitsForOneConnectionAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		s := newStack(Config{}, nil, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		message, err := gosip.NewParser().ParseSIP([]byte(crlf(invite())))
		if err != nil {
			t.Fatal(err)
		}
		req := message.(*gosip.Request)
		req.SetTransport("TCP")
		req.SetSource(peerAddr.String())
		tx := &statelessTx{stack: s, request: req, listener: listener{transport: TCP, ready: make(chan struct{})}} // which no connection can be opened from
		failed := func() int { return strings.Count(log.String(), "response not sent") }
		for i, want := range []int{1, 2} {
			for range 10 {
				if err := tx.Respond(gosip.NewResponseFromRequest(req, 200, "OK", nil)); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(connectTimeout)
			synctest.Wait()
			if n := failed(); n != want {
				t.Errorf("round %d: %d attempts in all, want %d", i, n, want)
			}
		}
		_ = tx.Respond(gosip.NewResponseFromRequest(req, 200, "OK", nil))
		_ = tx.Respond(gosip.NewResponseFromRequest(req, 503, "Service Unavailable", nil))
		time.Sleep(connectTimeout)
		synctest.Wait()
		if n := failed(); n != 4 {
			t.Errorf("%d attempts in all, want 4: the refusal is sent beside an answer", n)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
