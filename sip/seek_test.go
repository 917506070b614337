package sip

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// changingZone is a DNS whose answers are replaced; a nil one is a DNS that is down and says nothing at all.
type changingZone struct {
	zone
	now atomic.Pointer[zone]
}

func (z *changingZone) LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error) {
	if now := z.now.Load(); now != nil {
		return now.LookupSRV(ctx, service, proto, name)
	}
	<-ctx.Done()
	return "", nil, ctx.Err()
}

func (z *changingZone) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if now := z.now.Load(); now != nil {
		return now.LookupNetIP(ctx, network, host)
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func zoneWith(addresses ...string) *zone {
	return &zone{hosts: map[string][]string{"carrier.example": addresses}}
}

// proxyAlone makes the lab trunk one of which only the proxy says whose messages are heard.
func proxyAlone(proxy string, dns *changingZone) func(*Config) {
	return func(c *Config) {
		c.Trunks[0].Proxy, c.Trunks[0].Networks, c.Limits.MediaTimeout = proxy, nil, -1
		c.resolver = dns
	}
}

func TestProxyIsHeardBeforeWeEverCalledIt(t *testing.T) {
	t.Run("an address", func(t *testing.T) {
		inBubble(t, proxyAlone("192.0.2.20", &changingZone{}), answerAtOnce, func(b *bubble) {
			b.peer.send(invite())
			wantLines(t, "peer received", b.peer.lines(), []string{"0s 200 OK"})
		})
	})
	t.Run("a name", func(t *testing.T) {
		dns := &changingZone{}
		dns.now.Store(zoneWith("192.0.2.20"))
		inBubble(t, proxyAlone("carrier.example", dns), answerAtOnce, func(b *bubble) {
			b.peer.send(invite())
			wantLines(t, "peer received", b.peer.lines(), []string{"0s 200 OK"})
		})
	})
	t.Run("a name whose address changes", func(t *testing.T) {
		dns := &changingZone{}
		dns.now.Store(zoneWith("192.0.2.99"))
		inBubble(t, proxyAlone("carrier.example", dns), func(c *Call) { _ = c.Reject(486, "") }, func(b *bubble) {
			b.peer.send(invite())
			dns.now.Store(zoneWith("192.0.2.20"))
			time.Sleep(seekAgain)
			synctest.Wait()
			b.peer.send(invite("Call-ID: later"))
			wantLines(t, "peer received", b.peer.lines(), []string{"5m0s 486 Busy Here"})
		})
	})
	t.Run("a name while DNS is down", func(t *testing.T) {
		dns := &changingZone{}
		inBubble(t, proxyAlone("carrier.example", dns), func(c *Call) { _ = c.Reject(486, "") }, func(b *bubble) {
			b.peer.send(invite()) // nobody can know who that is, but the start did not wait
			time.Sleep(lookupTimeout)
			dns.now.Store(zoneWith("192.0.2.20"))
			time.Sleep(seekSoon)
			synctest.Wait()
			b.peer.send(invite("Call-ID: later"))
			wantLines(t, "peer received", b.peer.lines(), []string{"40s 486 Busy Here"})
		})
	})
}

// A call over such a trunk outlives its process: what the phone says is heard, and so is its answer to our question.
func TestProxyIsHeardInAResumedCall(t *testing.T) {
	for name, up := range map[string]bool{"DNS answers": true, "DNS is down": false} {
		t.Run(name, func(t *testing.T) {
			dns := &changingZone{}
			dns.now.Store(zoneWith("192.0.2.20"))
			var saved Dialog
			var bye string
			inBubble(t, proxyAlone("carrier.example", dns), answerAtOnce, func(b *bubble) {
				b.peer.send(invite("Allow: INVITE, ACK, BYE, UPDATE"))
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				saved = (<-b.calls).Dialog()
				bye = b.peer.within("BYE", "b1", 2, "")
			})
			if !up {
				dns.now.Store(nil)
			}
			inBubble(t, proxyAlone("carrier.example", dns), nil, func(b *bubble) { // another process
				call, err := b.stack.Resume(saved)
				if err != nil {
					t.Fatal(err)
				}
				b.Invite(call)
				if err := call.Refresh(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(seekPatience) // no longer than that
				synctest.Wait()
				question := b.peer.last()
				if !strings.HasPrefix(question, "UPDATE ") {
					t.Fatalf("the phone was asked %q", question)
				}
				b.peer.send(replyTo(question, "200 OK"))
				b.peer.forget()
				time.Sleep(time.Minute)
				b.peer.send(bye)
				wantLines(t, "peer received", b.peer.lines(), []string{"1m3s 200 OK"})
				wantLines(t, "application heard", withoutChanges(b.said()), []string{"1m3s Bye", "1m3s Ended"})
			})
		})
	}
}

func TestStrangersBesideAProxyAreNotHeard(t *testing.T) {
	inBubble(t, proxyAlone("192.0.2.21", &changingZone{}), answerAtOnce, func(b *bubble) {
		b.peer.send(invite())
		wantLines(t, "peer received", b.peer.lines(), nil)
	})
}

// A call that goes on makes its address no trunk's: no new call may come from there, and nothing at all when it has ended.
func TestAddressOfAResumedCallIsHeardForThatCallAlone(t *testing.T) {
	before, after := &changingZone{}, &changingZone{}
	before.now.Store(zoneWith("192.0.2.20"))
	after.now.Store(zoneWith("192.0.2.99"))
	elsewhere := func(c *Config) { c.Trunks[0].Networks = []netip.Prefix{netip.MustParsePrefix("192.0.2.99/32")} }
	resume := func(b *bubble, saved Dialog) error { _, err := b.stack.Resume(saved); return err }
	dismiss := func(b *bubble, saved Dialog) error { return b.stack.Dismiss(saved, CauseNormal) }
	for _, tt := range []struct {
		name          string
		before, after func(*Config)
		begin         func(*bubble, Dialog) error
	}{
		{"resumed, and the proxy is elsewhere", proxyAlone("carrier.example", before), proxyAlone("carrier.example", after), resume},
		{"dismissed, and the proxy is elsewhere", proxyAlone("carrier.example", before), proxyAlone("carrier.example", after), dismiss},
		{"dismissed, and the networks are others", nil, elsewhere, dismiss},
	} {
		t.Run(tt.name, func(t *testing.T) {
			saved, _ := upBefore(t, tt.before)
			inBubble(t, tt.after, nil, func(b *bubble) { // another process
				if err := tt.begin(b, saved); err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // for a BYE
				b.peer.send(invite("Call-ID: new"))
				got := b.peer.last()
				if !strings.HasPrefix(got, "SIP/2.0 403 ") {
					t.Errorf("a new call got %q, want 403", got)
				}
				b.peer.send(request("ACK", bridgeURI, headerIn(got, "To"), "i1", 1, "", "Call-ID: new"))
				if err := b.stack.Dismiss(saved, CauseNormal); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				for _, m := range b.peer.messages() {
					if strings.HasPrefix(m, "BYE ") {
						b.peer.send(replyTo(m, "200 OK"))
					}
				}
				if n := b.stack.Stats().Calls; n != 0 {
					t.Fatalf("%d calls: the answer to our BYE was not heard", n)
				}
				b.peer.forget()
				b.peer.send(invite("Call-ID: later"))
				wantLines(t, "peer received", b.peer.lines(), nil)
			})
		})
	}
}
