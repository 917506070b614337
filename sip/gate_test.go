package sip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// another is a new call of the peer.
func another(id string, edit ...string) string {
	return request("INVITE", bridgeURI, bridgeTo, id, 1, peerOffer, append([]string{"Call-ID: " + id}, edit...)...)
}

func asksWhat(id string) string {
	return request("OPTIONS", bridgeURI, bridgeTo, "o"+id, 1, "", "Call-ID: o"+id)
}

func (b *bubble) turnedAway(trunk, why string) uint64 {
	return b.stack.Stats().TurnedAway[Turned{trunk, why}]
}

func TestTrunkThatOnlyTakesCallsMayPlaceNone(t *testing.T) {
	change := func(c *Config) { outbound(c); c.Trunks[0].OutOnly = true }
	inBubble(t, change, answerAtOnce, func(b *bubble) {
		var log strings.Builder
		b.stack.gate.log = slog.New(slog.NewTextHandler(&log, nil))
		for range 2 { // our 403 was lost: it is said again
			b.peer.send(invite())
			b.peer.send(request("ACK", bridgeURI, headerIn(b.peer.last(), "To"), "i1", 1, ""))
		}
		time.Sleep(time.Minute) // no transaction repeats it
		synctest.Wait()
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s 403 No calls are taken from this trunk", "0s 403 No calls are taken from this trunk",
		})
		if s := b.stack.Stats(); s.Invites != 0 || s.Calls != 0 || s.Refused[403] != 2 || b.turnedAway("lab", awayDirection) != 2 {
			t.Errorf("stats = %+v", s)
		}
		if want := `msg="a call is turned away" trunk=lab code=403 why="outbound only"`; strings.Count(log.String(), want) != 2 {
			t.Errorf("the log says %q, want twice %s", log.String(), want)
		}
		b.peer.forget()
		_, inv := b.dials() // and ours go on over it, with what the phone says within them
		b.peer.answers(inv, "200 OK", "b1", peerAnswer)
		b.peer.send(b.peer.called(inv, "INVITE", "r1", 1, peerOffer))
		if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 200 ") {
			t.Errorf("the re-INVITE of a phone that we have called got %.40q", got)
		}
		b.peer.send(b.peer.called(inv, "ACK", "r2", 1, ""))
		b.peer.send(b.peer.called(inv, "BYE", "y1", 2, ""))
		b.peer.send(asksWhat("1"))
		if lines := b.peer.lines(); !strings.HasSuffix(lines[len(lines)-2], " 200 OK") || !strings.HasSuffix(lines[len(lines)-1], " 200 OK") {
			t.Errorf("BYE and OPTIONS got %q", lines)
		}
	})
}

func TestTrunkThatOnlyPlacesCallsIsNotCalled(t *testing.T) {
	change := func(c *Config) { outbound(c); c.Trunks[0].InOnly = true }
	inBubble(t, change, answerAtOnce, func(b *bubble) {
		if _, err := b.stack.Dial(t.Context(), DialRequest{Trunk: "lab", Number: "200"}); !errors.Is(err, ErrNoTrunk) {
			t.Errorf("Dial = %v, want %v", err, ErrNoTrunk)
		}
		b.peer.send(invite())
		if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 200 ") {
			t.Errorf("its call got %.40q", got)
		}
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		b.peer.send(b.peer.within("BYE", "b1", 2, ""))
	})
}

// Two trunks at one address, of which one may place no calls: they are all the other's, even those to that one's account.
func TestCallsBesideATrunkThatOnlyTakesThem(t *testing.T) {
	change := func(c *Config) {
		outbound(c)
		c.Trunks[0].OutOnly, c.Trunks[0].Auth = true, Credentials{Username: "1000"}
		c.Trunks = append(c.Trunks, Trunk{Name: "in", Networks: c.Trunks[0].Networks})
	}
	inBubble(t, change, func(c *Call) { _ = c.Reject(486, "") }, func(b *bubble) {
		b.peer.send(invite())
		if got := (<-b.calls).Info().Trunk; got != "in" {
			t.Errorf("the call came over %q, want in", got)
		}
		b.peer.send(request("ACK", bridgeURI, headerIn(b.peer.last(), "To"), "i1", 1, ""))
	})
}

func TestNewCallsPerSecondOfATrunk(t *testing.T) {
	change := func(c *Config) {
		lanAndCarrier(c)
		c.Trunks[0].InvitesPerSecond, c.Limits.InvitesPerSecond = 2, 5
	}
	inBubble(t, change, answerAtOnce, func(b *bubble) {
		carrier := b.newPeer(carrierAddr)
		defer carrier.close()
		for i := range 50 {
			b.peer.send(another(fmt.Sprint("a", i)))
			if i < 2 {
				b.peer.send(b.peer.within("ACK", fmt.Sprint("k", i), 1, "", fmt.Sprint("Call-ID: a", i)))
			}
		}
		got, last := b.peer.codes()
		if n := strings.Count(strings.Join(got, " "), "200"); n != 2 || len(got) != 50 {
			t.Errorf("%d of %d answers say 200, want 2 of 50", n, len(got))
		}
		if !strings.HasPrefix(last, "SIP/2.0 503 ") || headerIn(last, "Retry-After") != "1" {
			t.Errorf("one too many got %q, want 503 with Retry-After", last)
		}
		for i := range 3 { // what the trunk was refused has taken nobody else's turn
			carrier.send(another(fmt.Sprint("c", i), "Contact: <sip:2001@192.0.2.21>"))
			carrier.send(carrier.within("ACK", fmt.Sprint("l", i), 1, "", fmt.Sprint("Call-ID: c", i)))
		}
		carrier.send(another("c3"))
		if got, _ := carrier.codes(); strings.Join(got, " ") != "200 200 200 503" {
			t.Errorf("the other trunk got %v, want three calls of the five of all", got)
		}
		if own, all := b.turnedAway("lab", awayRate), b.turnedAway("carrier", awayTotalRate); own != 48 || all != 1 {
			t.Errorf("%d and %d turned away, want 48 and 1", own, all)
		}
		b.peer.send(another("a0")) // said again, because our answer was lost, and it belongs to a call that is here
		b.peer.send(request("INVITE", "sip:trunkline@10.0.0.5:5060", headerIn(b.peer.messages()[0], "To"), "r", 2, peerOffer, "Call-ID: a0"))
		if lines := b.peer.lines(); strings.Count(strings.Join(lines[50:], " "), "503") != 0 {
			t.Errorf("what is no new call got %q", lines[50:])
		}
		time.Sleep(time.Second)
		b.peer.forget()
		b.peer.send(another("later"))
		if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 200 ") {
			t.Errorf("a second later, a call got %.40q", got)
		}
		b.hangUpAll()
	})
}

// hangUpAll ends what is up, whatever the phones say.
func (b *bubble) hangUpAll() {
	for len(b.calls) > 0 {
		_ = (<-b.calls).Hangup(CauseNormal)
	}
	time.Sleep(2 * time.Minute)
}

func TestConcurrentCallsOfATrunk(t *testing.T) {
	change := func(c *Config) { outbound(c); c.Trunks[0].MaxCalls = 2 }
	inBubble(t, change, answerAtOnce, func(b *bubble) {
		b.peer.send(another("one"))
		b.peer.send(b.peer.within("ACK", "k1", 1, "", "Call-ID: one"))
		bye := b.peer.within("BYE", "b1", 2, "", "Call-ID: one")
		_, inv := b.dials() // counts, too
		b.peer.send(another("two"))
		if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 503 ") || headerIn(got, "Retry-After") == "" {
			t.Errorf("one call too many got %q, want 503 with Retry-After", got)
		}
		b.peer.send(request("ACK", bridgeURI, headerIn(b.peer.last(), "To"), "two", 1, "", "Call-ID: two"))
		if n := b.turnedAway("lab", awayCalls); n != 1 {
			t.Errorf("%d turned away, want 1", n)
		}
		b.peer.send(bye)
		b.peer.send(another("three"))
		if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 200 ") {
			t.Errorf("when one had ended, the next got %.40q", got)
		}
		b.peer.answers(inv, "486 Busy Here", "b1", "")
		b.hangUpAll()
	})
}

func TestAddressThatFloodsGetsNoAnswerToMoreThanItsShare(t *testing.T) {
	change := func(c *Config) { c.Limits.MessagesPerSecond = 10 }
	inBubble(t, change, answerAtOnce, func(b *bubble) {
		other := b.newPeer(carrierAddr)
		defer other.close()
		for i := range 100 {
			b.peer.send(asksWhat(fmt.Sprint(i)))
		}
		other.send(asksWhat("x"))
		if mine, theirs := len(b.peer.lines()), len(other.lines()); mine != 20 || theirs != 1 {
			t.Errorf("%d answers to 100 messages, and %d to one of another address; want 20 and 1", mine, theirs)
		}
		if n := b.stack.Stats().Dropped[dropFlood]; n != 80 {
			t.Errorf("%d dropped, want 80", n)
		}
		time.Sleep(time.Second)
		b.peer.forget()
		for i := range 100 {
			b.peer.send(asksWhat(fmt.Sprint("later", i)))
		}
		if n := len(b.peer.lines()); n != 10 {
			t.Errorf("%d answers a second later, want 10", n)
		}
	})
}

// A stream loses nothing: its sender has to wait.
func TestConnectionThatFloodsIsReadSlowly(t *testing.T) {
	s := newStack(Config{Limits: Limits{MessagesPerSecond: 10}}, nil, nil)
	for i, want := range map[int]time.Duration{19: 0, 20: 100 * time.Millisecond, 39: 2 * time.Second} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := s.newGate().crowd
				for range i {
					c.slows(peerAddr.Addr())
				}
				if got := c.slows(peerAddr.Addr()); got != want {
					t.Errorf("message %d waits %v, want %v", i+1, got, want)
				}
			})
		})
	}
}

func TestConnectionThatHasToWaitCanBeClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := newGuardedConn(streamed{from: peerAddr, Reader: strings.NewReader(tcpOptions("late"))}, newStack(Config{Limits: Limits{MessagesPerSecond: 1}}, nil, nil).guard(), func() {})
		for range 100 {
			conn.guard.gate.slows(peerAddr.Addr())
		}
		began := time.Now()
		time.AfterFunc(time.Second, func() { _ = conn.Close() })
		if n, err := conn.Read(make([]byte, 32768)); !errors.Is(err, net.ErrClosed) || time.Since(began) != time.Second {
			t.Errorf("Read = %d, %v after %v; want the end when it is closed", n, err, time.Since(began))
		}
	})
}

// Calls in one trunk's name leave the others their part of the limit of all.
func TestEachTrunkHasItsPartOfAllNewCalls(t *testing.T) {
	change := func(c *Config) { lanAndCarrier(c); c.Trunks = c.Trunks[:2]; c.Limits.InvitesPerSecond = 8 }
	inBubble(t, change, func(c *Call) { _ = c.Reject(486, "") }, func(b *bubble) {
		carrier := b.newPeer(carrierAddr)
		defer carrier.close()
		for _, tt := range []struct {
			peer *rawPeer
			want int
		}{{b.peer, 2 + 4}, {carrier, 2}} {
			for i := range 20 {
				tt.peer.send(another(fmt.Sprint(tt.peer.conn.addr.Addr(), i)))
			}
			got, _ := tt.peer.codes()
			if n := strings.Count(strings.Join(got, " "), "486"); n != tt.want {
				t.Errorf("%d of the calls of %v were heard of, want %d", n, tt.peer.conn.addr, tt.want)
			}
		}
	})
}

// Whoever floods in a phone's name ends no call of it, whether it rings here or there or is up.
func TestCallIsHeardDuringAFloodInItsName(t *testing.T) {
	change := func(c *Config) { outbound(c); c.Limits.MediaTimeout, c.Limits.MessagesPerSecond = -1, 10 }
	answer := func(c *Call) {
		if c.Info().Dialled == "1000" {
			answerAtOnce(c)
		}
	}
	inBubble(t, change, answer, func(b *bubble) {
		flood := func() {
			for i := range 200 {
				b.peer.send(asksWhat(fmt.Sprint(time.Now().UnixNano(), i)))
			}
			b.peer.forget()
		}
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		bye := b.peer.within("BYE", "b1", 2, "", "Call-ID:", "i: call-1") // the short name is one, too
		ringing := strings.Replace(another("ring"), "sip:1000@", "sip:1001@", 1)
		b.peer.send(ringing)
		called, inv := b.dials()
		flood()
		b.peer.send(another("stranger"))
		if got := b.peer.lines(); len(got) != 0 {
			t.Errorf("a new call beside the flood got %q: there is none", got)
		}
		b.peer.answers(inv, "200 OK", "b1", peerAnswer)
		if ack := b.peer.last(); !strings.HasPrefix(ack, "ACK ") || !called.Dialog().Confirmed {
			t.Errorf("who was called answers, and gets %.40q", ack)
		}
		b.peer.send(request("CANCEL", strings.Fields(ringing)[1], bridgeTo, "ring", 1, "", "Call-ID: ring"))
		b.peer.send(bye)
		got := b.peer.lines()
		for _, want := range []string{"0s 200 OK", "0s 487 Request Terminated"} {
			if !slices.Contains(got, want) {
				t.Errorf("CANCEL and BYE got %q, want %s, too", got, want)
			}
		}
		if got := b.peer.last(); headerIn(got, "CSeq") != "2 BYE" {
			t.Errorf("BYE got %.40q", got)
		}
		b.peer.forget()
		for i := range 200 { // whoever is in a call knows its Call-ID
			b.peer.send(b.peer.called(inv, "OPTIONS", fmt.Sprint("p", i), i+1, ""))
		}
		if n := len(b.peer.lines()); n < callPace || n > 2*callPace {
			t.Errorf("%d of 200 messages of one call were heard in one moment, want no more than %d", n, 2*callPace)
		}
		time.Sleep(10 * time.Second)
		b.peer.send(b.peer.called(inv, "BYE", "y1", 1000, ""))
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(b.stack.gate.regulars.known); n != 0 {
			t.Errorf("%d Call-IDs are kept after the calls", n)
		}
	})
}

func TestWhatIsAnsweredToUsIsHeardDuringAFlood(t *testing.T) {
	change := func(c *Config) {
		registering(c)
		c.Limits.MessagesPerSecond, c.Trunks[0].Networks = 10, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	}
	inBubble(t, change, nil, func(b *bubble) {
		flood := func() {
			for i := range 100 {
				b.peer.send(asksWhat(fmt.Sprint(time.Now().UnixNano(), i)))
			}
		}
		register := b.peer.last()
		call, inv := b.dials()
		b.peer.answers(inv, "180 Ringing", "b1", "")
		flood()
		b.peer.answers(register, "200 OK", "r", "")
		if s := b.stack.Trunks(); len(s) != 1 || time.Until(s[0].Registered) != time.Minute {
			t.Errorf("after the answer to REGISTER: %+v", s)
		}
		_ = call.Hangup(CauseNormal)
		synctest.Wait()
		b.peer.answers(b.peer.last(), "200 OK", "", "")         // to CANCEL
		b.peer.answers(inv, "487 Request Terminated", "b1", "") // and yet
		time.Sleep(time.Second)
		flood()
		b.peer.answers(inv, "200 OK", "b2", peerAnswer) // another phone was faster
		if lines := strings.Join(b.peer.lines(), " "); !strings.HasSuffix(lines, "ACK 1s BYE") {
			t.Errorf("who answers late is not hung up: %s", lines[max(0, len(lines)-100):])
		}
	})
}

// streamed is a connection from an address that brings these octets and ends.
type streamed struct {
	net.Conn
	from netip.AddrPort
	io.Reader
}

func (s streamed) Read(b []byte) (int, error)       { return s.Reader.Read(b) }
func (s streamed) Write(b []byte) (int, error)      { return len(b), nil }
func (s streamed) RemoteAddr() net.Addr             { return net.TCPAddrFromAddrPort(s.from) }
func (s streamed) SetReadDeadline(time.Time) error  { return nil }
func (s streamed) SetWriteDeadline(time.Time) error { return nil }
func (s streamed) Close() error                     { return nil }

// connects has an address open a connection and send a message over it.
func (b *bubble) connects(from netip.AddrPort, message string) {
	conn := newGuardedConn(streamed{from: from, Reader: strings.NewReader(crlf(message))}, b.stack.guard(), func() {})
	_, _ = io.Copy(io.Discard, conn)
}

func (b *bubble) hears(p *rawPeer) bool {
	p.forget()
	p.send(asksWhat(fmt.Sprint(time.Now().UnixNano(), p.conn.addr.Addr())))
	return slices.ContainsFunc(p.lines(), func(line string) bool { return strings.HasSuffix(line, " 200 OK") })
}

func TestAddressThatKeepsFailingIsNotHeardForAWhile(t *testing.T) {
	single := func(c *Config) { c.Trunks[0].Networks = []netip.Prefix{netip.MustParsePrefix("192.0.2.20/32")} }
	malformed := func(i int) string { return another(fmt.Sprint("m", i), "From:") }
	noSIP := func(int) string { return "GET / HTTP/1.1\n\n" }
	for _, tt := range []struct {
		name   string
		change func(*Config)
		sends  func(int) string
		every  time.Duration
		banned bool
	}{
		{"malformed messages", nil, malformed, time.Second, true},
		{"something else", nil, noSIP, time.Second, true},
		{"now and then", nil, malformed, 4 * time.Second, false},
		{"an address that was named", single, malformed, time.Second, false},
		{"the address of a proxy", func(c *Config) { single(c); c.Trunks[0].Networks, c.Trunks[0].Proxy = nil, "192.0.2.20" }, malformed, time.Second, false},
		{"no limit", func(c *Config) { c.Limits.FailuresPerMinute = -1 }, malformed, time.Second, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, tt.change, nil, func(b *bubble) {
				for i := range 20 {
					time.Sleep(tt.every)
					b.connects(peerAddr, tt.sends(i))
				}
				if got := !b.hears(b.peer); got != tt.banned || tt.banned != (b.stack.Stats().Banned == 1) {
					t.Errorf("after 20 failures it is banned: %v (%d in all), want %v", got, b.stack.Stats().Banned, tt.banned)
				}
				time.Sleep(banTime - time.Second)
				if got := !b.hears(b.peer); got != tt.banned {
					t.Errorf("a second before the ban is over: %v, want %v", got, tt.banned)
				}
				time.Sleep(time.Second)
				if !b.hears(b.peer) || b.stack.Stats().Banned != 0 {
					t.Error("it is not heard when the ban is over")
				}
			})
		})
	}
}

// Anybody can write a trunk's address into a datagram, and anybody can dial a number that nobody has.
func TestNobodyIsBannedForWhatOthersSendOrDial(t *testing.T) {
	for name, sends := range map[string]func(*bubble, int){
		"forged, malformed": func(b *bubble, i int) { b.peer.send(another(fmt.Sprint("m", i), "From:")) },
		"forged, no SIP":    func(b *bubble, _ int) { b.peer.send("x\n\n") },
		"forged, unknown methods": func(b *bubble, i int) {
			b.peer.send(request("REGISTER", "sip:x", "<sip:x>", fmt.Sprint("r", i), 1, "", fmt.Sprint("Call-ID: r", i)))
		},
		"numbers nobody has": func(b *bubble, i int) {
			b.peer.send(another(fmt.Sprint("u", i)))
			b.peer.send(request("ACK", bridgeURI, headerIn(b.peer.last(), "To"), fmt.Sprint("u", i), 1, "", fmt.Sprint("Call-ID: u", i)))
		},
		"calls of a trunk that may place none": func(b *bubble, i int) {
			b.connects(addr("198.51.100.7:1"), strings.ReplaceAll(another(fmt.Sprint("d", i)), "SIP/2.0/UDP", "SIP/2.0/TCP"))
		},
		"a load balancer that looks in": func(b *bubble, _ int) {
			conn := newGuardedConn(streamed{from: addr("198.51.100.8:1")}, b.stack.guard(), func() {})
			conn.handshake = func(context.Context) error { return io.EOF }
			_, _ = conn.Read(nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			change := func(c *Config) {
				c.Trunks = append(c.Trunks, Trunk{Name: "out", OutOnly: true, Networks: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}})
			}
			inBubble(t, change, func(c *Call) { _ = c.Reject(404, "") }, func(b *bubble) {
				for i := range 100 {
					sends(b, i)
				}
				if n := b.stack.Stats().Banned; n != 0 || !b.hears(b.peer) {
					t.Errorf("%d are banned", n)
				}
			})
		})
	}
}

// A flood in the name of a banned address must not have all calls looked at for each datagram.
func TestFloodFromABannedAddressIsCheap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newStack(Config{}, nil, nil).newGate().crowd
		c.log = slog.New(slog.DiscardHandler)
		looks, call := 0, false
		c.spare = func(netip.Addr) bool { looks++; return call }
		from := peerAddr.Addr()
		for range c.limits.FailuresPerMinute {
			c.failed(from)
		}
		looks = 0
		for range 1000 {
			if !c.banned(from) {
				t.Fatal("a banned address is heard")
			}
			time.Sleep(time.Millisecond)
		}
		if looks != 10 {
			t.Errorf("looked %d times at all calls for 1000 datagrams in a second, want 10", looks)
		}
		c.banned(from)
		call = true
		c.calls.Add(1)
		if c.banned(from) {
			t.Error("a call that has just come is not heard")
		}
		call = false
		if time.Sleep(sparedFor); !c.banned(from) {
			t.Error("it is heard although its call is over")
		}
	})
}

// What a phone says of its call is heard, whatever was sent from its address or from a neighbour's.
func TestCallIsHeardWhoeverWasBanned(t *testing.T) {
	for name, answer := range map[string]func(*Call){"ringing": func(*Call) {}, "up": answerAtOnce} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(c *Config) { c.Limits.MediaTimeout = -1 }, answer, func(b *bubble) {
				other := b.newPeer(carrierAddr) // another machine of the trunk
				defer other.close()
				fails := func(from netip.AddrPort) {
					for i := range 100 {
						b.connects(from, another(fmt.Sprint("n", i), "From:"))
					}
				}
				fails(carrierAddr)
				if b.hears(other) {
					t.Fatal("the other machine is heard before there is a call")
				}
				b.peer.send(invite())
				if name == "up" {
					b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				}
				bye := b.peer.within("BYE", "b1", 2, "")
				fails(peerAddr)
				for i := range 100 { // and in the phone's name
					b.peer.send(another(fmt.Sprint("m", i), "From:"))
				}
				if !b.hears(other) {
					t.Error("the trunk's other machine is not heard during a call")
				}
				switch name {
				case "ringing":
					b.peer.send(request("CANCEL", bridgeURI, bridgeTo, "i1", 1, ""))
				case "up":
					other.send(bye)
				}
				time.Sleep(2 * time.Minute)
				if st := b.stack.Stats(); st.Calls != 0 {
					t.Errorf("the call goes on: %+v", st)
				}
				if b.hears(other) {
					t.Error("the other machine is heard when there is no call")
				}
			})
		})
	}
}

// Whoever writes IPv6 addresses of a host's network into datagrams, or has one, harms nobody there whom the config has by name.
func TestNeighboursInIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(Config{Trunks: []Trunk{
			{Name: "x", Networks: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64"), netip.MustParsePrefix("2001:db8:1::/128")}, Proxy: "2001:db8:1::10"},
		}}, nil, slog.New(slog.DiscardHandler))
		bad, same, proxy, first := netip.MustParseAddr("2001:db8:1::66"), netip.MustParseAddr("2001:db8:1::67"), netip.MustParseAddr("2001:db8:1::10"), netip.MustParseAddr("2001:db8:1::")
		s.neighbours.find(&s.config.Trunks[0], []target{{addr: netip.AddrPortFrom(proxy, 5060)}})
		for range 20 {
			s.gate.failed(bad)
		}
		for range 5000 {
			s.gate.drops(bad)
		}
		for _, tt := range []struct {
			from  netip.Addr
			drops string
		}{{bad, dropFlood}, {same, dropFlood}, {proxy, ""}, {first, ""}} {
			if got := s.gate.drops(tt.from); got != tt.drops {
				t.Errorf("drops(%v) = %q, want %q", tt.from, got, tt.drops)
			}
		}
		time.Sleep(time.Second)
		if a, b := s.gate.drops(bad), s.gate.drops(same); a != dropBanned || b != dropBanned {
			t.Errorf("a host that failed is dropped as %q, under its other address as %q; want %s", a, b, dropBanned)
		}
		for range 100 {
			s.gate.failed(proxy)
			s.gate.failed(first)
		}
		if a, b := s.gate.drops(proxy), s.gate.drops(first); a != "" || b != "" {
			t.Errorf("who was named is dropped: %q and %q", a, b)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestWhatCountsAsFailing(t *testing.T) {
	for _, code := range []int{403, 404, 480, 481, 484, 486, 488, 503} {
		if failing(code) {
			t.Errorf("%d counts, and people can dial that", code)
		}
	}
	for _, code := range []int{400, 405} {
		if !failing(code) {
			t.Errorf("%d does not count", code)
		}
	}
}

// However many addresses send, in whoever's name, the table of them stays small, and those of the config have room in it.
func TestCrowdDoesNotGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		single := netip.MustParseAddr("192.0.2.20")
		s := newStack(Config{
			Limits: Limits{MessagesPerSecond: 10},
			Trunks: []Trunk{{Name: "x", Networks: []netip.Prefix{netip.PrefixFrom(single, 32), netip.MustParsePrefix("10.0.0.0/8")}}},
		}, nil, slog.New(slog.DiscardHandler))
		c := s.gate.crowd
		dropped := 0
		forged := netip.MustParseAddr("10.0.0.0")
		for range 100_000 {
			forged = forged.Next()
			c.failed(forged)
			if c.drops(forged) != "" {
				dropped++
			}
		}
		if n := len(c.sources); n != maxSources || dropped < 90_000 {
			t.Errorf("%d addresses are kept, and %d messages were dropped", n, dropped)
		}
		for range 20 {
			if why := c.drops(single); why != "" {
				t.Errorf("the address of the config is dropped: %s", why)
			}
		}
		time.Sleep(time.Minute)
		if why := c.drops(forged); why != "" || len(c.sources) > 2 {
			t.Errorf("a minute later the last one is dropped: %q, and %d are kept", why, len(c.sources))
		}
		six := netip.MustParseAddr("2001:db8::1")
		before := len(c.sources)
		for range 1000 {
			six = six.Next()
			c.drops(six)
		}
		if n := len(c.sources) - before; n != 1 {
			t.Errorf("a host with a thousand IPv6 addresses counts as %d", n)
		}
	})
}

func TestBannedAddressMayNotConnect(t *testing.T) {
	s := newStack(Config{
		Limits: Limits{FailuresPerMinute: 3},
		Trunks: []Trunk{{Name: "x", Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/24")}}},
	}, nil, slog.New(slog.DiscardHandler))
	defer s.Close()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &guardedListener{Listener: inner, guard: s.guard()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, conn) // judges what comes, and ends at the first that is no message
			_ = conn.Close()
		}
	}()
	for i := range 5 {
		conn, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "no such thing\r\nContent-Length: 0\r\n\r\n")
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, net.ErrClosed) {
			t.Errorf("connection %d: %v", i, err)
		}
		_ = conn.Close()
	}
	_ = inner.Close()
	<-done
	if d := s.Stats().Dropped; d[dropMalformed] != 3 || d[dropBanned] != 2 {
		t.Errorf("dropped %v, want three messages and two connections", d)
	}
}

// fakeListener accepts what a test gives it.
type fakeListener struct {
	net.Listener
	conns chan net.Conn
}

func (f *fakeListener) Accept() (net.Conn, error) {
	if c, ok := <-f.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

// from is a connection that comes from an address.
type from struct {
	net.Conn
	addr string
}

func (f from) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(addr(f.addr)) }

// idleOnesGiveWay goes on with connections of a phone (192.0.2.1), and of a2, a4 and again, which fill the listener.
func idleOnesGiveWay(t *testing.T, s *Stack, open map[string]net.Conn, opens func(name, address string), speaks func(string), isOpen func(map[string]bool)) {
	s.mu.Lock() // the phone has a call
	call := &Call{}
	call.snapshot.Store(&Dialog{Remote: addr("192.0.2.1:1")})
	s.byID[dialogID{"c", "t"}] = call
	s.mu.Unlock()
	for _, name := range []string{"a4", "again"} {
		_ = open[name].Close()
	}
	synctest.Wait()
	opens("b1", "192.0.2.3:1")
	speaks("b1")
	time.Sleep(idleTime - time.Second)
	opens("b2", "192.0.2.3:2")
	speaks("b2")
	opens("b3", "192.0.2.3:3") // a2 has been idle for longest
	speaks("b3")
	isOpen(map[string]bool{"phone": true, "a2": false, "b1": true, "b2": true, "b3": true})
	opens("b4", "192.0.2.4:1") // nobody else has been idle for long but the phone
	isOpen(map[string]bool{"phone": true, "b1": true, "b2": true, "b3": true, "b4": false})
	_ = open["b1"].SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(open["b1"], "\r\n"); err != nil {
		t.Error(err)
	}
	time.Sleep(time.Second)
	opens("b5", "192.0.2.4:2") // b1 has been kept alive
	isOpen(map[string]bool{"phone": true, "b1": true, "b2": true, "b3": true, "b5": false})
	time.Sleep(idleTime)
	opens("b6", "192.0.2.4:3") // and b2 is the oldest now
	isOpen(map[string]bool{"phone": true, "b1": true, "b2": false, "b3": true, "b6": true})
	s.mu.Lock()
	delete(s.byID, dialogID{"c", "t"})
	s.mu.Unlock()
	opens("b7", "192.0.2.4:4")
	isOpen(map[string]bool{"phone": false, "b1": true, "b3": true, "b6": true, "b7": true})
}

// Whoever opens connections and says nothing keeps nobody else out for long; who has said something stays, however idle, while there is
// room, and where there is none, as long as there is a call.
func TestSilentConnectionsGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(Config{
			Limits: Limits{Connections: 4, ConnectionsPerHost: 3},
			Trunks: []Trunk{{Name: "x", Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}},
		}, nil, slog.New(slog.DiscardHandler))
		defer s.Close()
		fake := &fakeListener{conns: make(chan net.Conn)}
		l := &guardedListener{Listener: fake, guard: s.guard()}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(io.Discard, conn)
					_ = conn.Close()
				}()
			}
		}()
		open := map[string]net.Conn{}
		opens := func(name, address string) {
			near, far := net.Pipe()
			open[name] = far
			fake.conns <- from{near, address}
			synctest.Wait()
		}
		speaks := func(name string) {
			_ = open[name].SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(open[name], tcpOptions(name))
			synctest.Wait()
		}
		isOpen := func(want map[string]bool) {
			t.Helper()
			for name, up := range want {
				_ = open[name].SetReadDeadline(time.Now().Add(time.Millisecond))
				_, err := open[name].Read(make([]byte, 1))
				if got := !errors.Is(err, io.EOF); got != up {
					t.Errorf("after %v connection %s is open: %v, want %v", time.Since(time.Unix(946684800, 0)), name, got, up)
				}
			}
		}
		opens("phone", "192.0.2.1:1")
		speaks("phone")
		opens("a1", "192.0.2.66:1")
		opens("a2", "192.0.2.66:2")
		opens("a3", "192.0.2.66:3")
		opens("late", "192.0.2.2:1") // they have not been silent for long
		isOpen(map[string]bool{"phone": true, "a1": true, "a2": true, "a3": true, "late": false})
		time.Sleep(5 * time.Second)
		speaks("a2")
		time.Sleep(5 * time.Second)
		opens("again", "192.0.2.2:2")
		isOpen(map[string]bool{"phone": true, "a1": false, "a2": true, "a3": true, "again": true})
		opens("a4", "192.0.2.66:4") // the oldest silent one is a3 now
		isOpen(map[string]bool{"phone": true, "a2": true, "a3": false, "a4": true, "again": true})
		time.Sleep(10 * time.Hour)
		isOpen(map[string]bool{"phone": true, "a2": true})
		idleOnesGiveWay(t, s, open, opens, speaks, isOpen)
		if d := s.Stats().Dropped; d[dropSilent] != 5 || d[dropConnections] != 3 {
			t.Errorf("dropped %v", d)
		}
		for _, conn := range open {
			_ = conn.Close()
		}
		close(fake.conns)
		<-done
		synctest.Wait()
		if l.total != 0 || len(l.conns) != 0 || len(l.silent) != 0 || len(l.spoken) != 0 {
			t.Errorf("%d connections are counted, %v, %d silent, %d others", l.total, l.conns, len(l.silent), len(l.spoken))
		}
	})
}
