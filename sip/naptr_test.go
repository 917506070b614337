package sip_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"trunkline/internal/testbed/phone"
	"trunkline/sip"
)

// nameServer is a DNS on a loopback socket, over UDP and TCP, with the records it is given.
type nameServer struct {
	addr  string
	twist func(w dns.ResponseWriter, answer *dns.Msg) bool // says that it has answered; nil = it never has

	mu      sync.Mutex
	records []dns.RR
	asked   []string // like "tcp NAPTR carrier.example."
}

func newNameServer(t testing.TB, twist func(dns.ResponseWriter, *dns.Msg) bool) *nameServer {
	t.Helper()
	n := &nameServer{twist: twist}
	packets, streams := bothSockets(t)
	n.addr = packets.LocalAddr().String()
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: n}, {Listener: streams, Handler: n}} {
		started, ended := make(chan struct{}), make(chan error, 1)
		server.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			if err := server.Shutdown(); err != nil {
				t.Errorf("Shutdown = %v", err)
			}
			if err := <-ended; err != nil {
				t.Errorf("name server: %v", err)
			}
		})
	}
	return n
}

// bothSockets are of the same port.
func bothSockets(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 50 {
		packets, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if streams, err := net.Listen("tcp", packets.LocalAddr().String()); err == nil {
			return packets, streams
		}
		_ = packets.Close() // somebody has that port of TCP
	}
	t.Fatal("no port is free for UDP and TCP")
	return nil, nil
}

// knows adds records as they stand in a zone file.
func (n *nameServer) knows(t testing.TB, records ...string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, line := range records {
		r, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		n.records = append(n.records, r)
	}
}

func (n *nameServer) ServeDNS(w dns.ResponseWriter, question *dns.Msg) {
	q := question.Question[0]
	answer := new(dns.Msg)
	answer.SetReply(question)
	n.mu.Lock()
	n.asked = append(n.asked, fmt.Sprintf("%s %s %s", w.LocalAddr().Network(), dns.TypeToString[q.Qtype], strings.ToLower(q.Name)))
	answer.Rcode = dns.RcodeNameError
	for _, r := range n.records {
		h := r.Header()
		if !strings.EqualFold(h.Name, q.Name) {
			continue
		}
		answer.Rcode = dns.RcodeSuccess
		if h.Rrtype == q.Qtype || h.Rrtype == dns.TypeCNAME {
			answer.Answer = append(answer.Answer, r)
		}
	}
	n.mu.Unlock()
	if n.twist != nil && n.twist(w, answer) {
		return
	}
	if w.LocalAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := question.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		answer.Truncate(size)
	}
	_ = w.WriteMsg(answer)
}

func (n *nameServer) wasAsked(what string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.asked, what)
}

// at are an SRV record and an address record for a place where a phone is.
func at(service string, priority int, host string, where netip.AddrPort) []string {
	return []string{
		fmt.Sprintf("%s SRV %d 1 %d %s", service, priority, where.Port(), host), fmt.Sprintf("%s A %s", host, where.Addr()),
	}
}

// autoBed is a stack that listens on every transport, with a trunk of which only the name is known.
func autoBed(t testing.TB, change func(*sip.Trunk), nameServers ...string) *bed {
	t.Helper()
	config := testConfig(sip.TLS)
	config.Listen = slices.Concat(loopback(sip.TLS), loopback(sip.TCP), loopback(sip.UDP))
	trunk := &config.Trunks[0]
	trunk.Networks, trunk.SRTP = nil, sip.SRTPOff // only DNS says who is heard
	trunk.Proxy, trunk.Transport = "carrier.example", sip.Auto
	if change != nil {
		change(trunk)
	}
	config.AsksDNS(nameServers...)
	return newBed(t, config, nil)
}

// carrierPhone is one that can be called over a transport, at an address of its own.
func carrierPhone(b *bed, tr sip.Transport, local string) *phone.Phone {
	b.Helper()
	c := phone.Config{Transport: string(tr), Local: netip.MustParseAddr(local)}
	if tr == sip.TLS {
		c.TLS = &tls.Config{Certificates: []tls.Certificate{authorityOnce().certificate("carrier.example")}, RootCAs: authorityOnce().pool()}
	}
	return b.phone(c)
}

// answersFrom lets a phone answer the call that comes over this transport, and hangs up.
func answersFrom(b *bed, s *served, p *phone.Phone, tr sip.Transport) {
	b.Helper()
	call, err := p.AwaitCall(timeout(b, 20*time.Second))
	if err != nil {
		b.Fatal(err)
	}
	via := call.Invite().Via()
	if via == nil || via.Transport != strings.ToUpper(string(tr)) {
		b.Errorf("INVITE came with Via %v, want %s", via, tr)
	}
	contact := call.Invite().Contact()
	if got, _ := contact.Address.UriParams.Get("transport"); tr != sip.UDP && got != string(tr) || tr == sip.UDP && got != "" {
		b.Errorf("INVITE has Contact %v over %s", contact, tr)
	}
	if want := b.stack.Addr(tr).Port(); contact.Address.Port != int(want) {
		b.Errorf("INVITE has Contact %v, want port %d", contact, want)
	}
	if err := call.PickUp(timeout(b, 20*time.Second)); err != nil {
		b.Fatal(err)
	}
	s.wants(sip.Answered{})
	if got := s.Dialog().Transport; got != tr {
		b.Errorf("dialog is over %s, want %s", got, tr)
	}
	if err := s.Hangup(sip.CauseNormal); err != nil {
		b.Error(err)
	}
	s.wants(sip.Ended{})
	select {
	case <-call.Done():
	case <-time.After(20 * time.Second):
		b.Error("BYE did not come over the way of the INVITE")
	}
}

func TestNAPTRSaysHowATrunkIsCalled(t *testing.T) { // RFC 3263 §4.1
	udpOver := func(order, preference int) string {
		return fmt.Sprintf(`carrier.example. NAPTR %d %d "s" "SIP+D2U" "" _sip._udp.edge.example.`, order, preference)
	}
	tcpOver := func(order, preference int) string {
		return fmt.Sprintf(`carrier.example. NAPTR %d %d "s" "SIP+D2T" "" _sip._tcp.edge.example.`, order, preference)
	}
	const tlsFirst = `carrier.example. NAPTR 5 1 "s" "SIPS+D2T" "" _sips._tcp.edge.example.`
	for _, tt := range []struct {
		name    string
		records []string
		want    sip.Transport
	}{
		{"preference", []string{udpOver(10, 20), tcpOver(10, 10)}, sip.TCP},
		{"order before preference", []string{udpOver(10, 20), tcpOver(20, 10)}, sip.UDP},
		{"encrypted", []string{udpOver(10, 10), tcpOver(10, 20), tlsFirst}, sip.TLS},
		{"no NAPTR, but SRV", nil, sip.TCP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, far := newNameServer(t, nil), &bed{TB: t}
			phones := map[sip.Transport]*phone.Phone{
				sip.UDP: carrierPhone(far, sip.UDP, "127.0.0.21"), sip.TCP: carrierPhone(far, sip.TCP, "127.0.0.22"), sip.TLS: carrierPhone(far, sip.TLS, "127.0.0.23"),
			}
			n.knows(t, at("_sip._udp.edge.example.", 1, "u.edge.example.", phones[sip.UDP].Addr())...)
			n.knows(t, at("_sip._tcp.edge.example.", 1, "t.edge.example.", phones[sip.TCP].Addr())...)
			n.knows(t, at("_sips._tcp.edge.example.", 1, "s.edge.example.", phones[sip.TLS].Addr())...)
			n.knows(t, at("_sip._tcp.carrier.example.", 1, "t.edge.example.", phones[sip.TCP].Addr())...)
			n.knows(t, tt.records...)
			b := autoBed(t, nil, n.addr) // which asks at once
			answersFrom(b, b.dial(sip.DialRequest{Trunk: "lab", Number: "200"}), phones[tt.want], tt.want)
			if !n.wasAsked("udp NAPTR carrier.example.") {
				t.Error("NAPTR was not asked")
			}
			for tr, p := range phones {
				if tr != tt.want && p.Rung() != 0 {
					t.Errorf("the phone at %s was called, too", tr)
				}
			}
		})
	}
}

func TestNextTargetOfNAPTRWhenOneFails(t *testing.T) { // RFC 3263 §4.3
	n, far := newNameServer(t, nil), &bed{TB: t}
	full, last := carrierPhone(far, sip.TCP, "127.0.0.22"), carrierPhone(far, sip.UDP, "127.0.0.21")
	n.knows(t,
		`carrier.example. NAPTR 10 10 "s" "SIP+D2T" "" _sip._tcp.edge.example.`,
		`carrier.example. NAPTR 10 20 "s" "SIP+D2U" "" _sip._udp.edge.example.`,
	)
	n.knows(t, at("_sip._tcp.edge.example.", 1, "refuses.edge.example.", last.Addr())...) // it listens for UDP only
	n.knows(t, at("_sip._tcp.edge.example.", 2, "full.edge.example.", full.Addr())...)
	n.knows(t, at("_sip._udp.edge.example.", 1, "last.edge.example.", last.Addr())...)
	b := autoBed(t, nil, n.addr)
	s := b.dial(sip.DialRequest{Trunk: "lab", Number: "200"})
	call, err := full.AwaitCall(timeout(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if err := call.Refuse(503, "Service Unavailable"); err != nil {
		t.Fatal(err)
	}
	answersFrom(b, s, last, sip.UDP)
}

func TestRegistrationGoesWhereNAPTRSays(t *testing.T) {
	n := newNameServer(t, nil)
	p, err := phone.Open(phone.Config{Transport: "tcp", Local: netip.MustParseAddr("127.0.0.22")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	n.knows(t, `carrier.example. NAPTR 10 10 "s" "SIP+D2T" "" _sip._tcp.edge.example.`)
	n.knows(t, at("_sip._tcp.edge.example.", 1, "t.edge.example.", p.Addr())...)
	b := autoBed(t, func(trunk *sip.Trunk) {
		trunk.Register, trunk.Auth = true, sip.Credentials{Username: "bob", Password: "secret"}
	}, n.addr)
	await(t, "the registration", func() bool { return !b.stack.Trunks()[0].Registered.IsZero() })
	if got := b.stack.Trunks()[0].Target; got != p.Addr() {
		t.Errorf("registered at %v, want %v", got, p.Addr())
	}
	answersFrom(b, b.dial(sip.DialRequest{Trunk: "lab", Number: "200"}), p, sip.TCP)
	if got := p.Requests(); !slices.Equal(got, []string{"REGISTER", "INVITE"}) {
		t.Errorf("the phone was asked %v", got)
	}
}

func TestHostileNAPTRAnswersAreHarmless(t *testing.T) {
	flood := func(format string, n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf(format, i))
		}
		return out
	}
	isNAPTR := func(m *dns.Msg) bool { return m.Question[0].Qtype == dns.TypeNAPTR }
	raw := func(f func(*dns.Msg) []byte) func(dns.ResponseWriter, *dns.Msg) bool {
		return func(w dns.ResponseWriter, m *dns.Msg) bool {
			if isNAPTR(m) {
				_, _ = w.Write(f(m))
			}
			return isNAPTR(m)
		}
	}
	says := func(change func(*dns.Msg)) func(dns.ResponseWriter, *dns.Msg) bool {
		return raw(func(m *dns.Msg) []byte {
			change(m)
			b, _ := m.Pack()
			return b
		})
	}
	const good = `carrier.example. NAPTR 1 1 "s" "SIP+D2T" "" _sip._tcp.edge.example.`
	fallen, followed := []string{"udp 127.0.0.9:7001"}, []string{"tcp 127.0.0.9:7002"}
	for _, tt := range []struct {
		name    string
		records []string
		twist   func(dns.ResponseWriter, *dns.Msg) bool
		want    []string
	}{
		{"too many for a datagram", flood(`carrier.example. NAPTR 9 %d "s" "E2U+sip" "" x.example.`, 1000), nil, fallen},
		{"a flood, and one of use", append(flood(`carrier.example. NAPTR 9 %d "s" "SIP+D2U" "" x%[1]d.example.`, 1000), good), nil, followed},
		{"a flood that leads nowhere", flood(`carrier.example. NAPTR 1 %d "s" "SIP+D2U" "" x%[1]d.example.`, 1000), nil, fallen},
		{"nowhere", []string{`carrier.example. NAPTR 1 1 "s" "SIP+D2U" "" .`}, nil, fallen},
		{"itself", []string{`carrier.example. NAPTR 1 1 "s" "SIP+D2U" "" carrier.example.`}, nil, fallen},
		{"a circle", []string{`carrier.example. NAPTR 1 1 "" "SIP+D2U" "" a.example.`, `a.example. NAPTR 1 1 "" "SIP+D2U" "" carrier.example.`}, nil, fallen},
		{"an alias of itself", []string{`carrier.example. NAPTR 1 1 "s" "SIP+D2U" "" a.example.`, "a.example. CNAME b.example.", "b.example. CNAME a.example."}, nil, fallen},
		{"an expression", []string{`carrier.example. NAPTR 1 1 "u" "SIP+D2U" "!(.*)*!sip:\\1@x!" .`}, nil, fallen},
		{"noise", []string{good}, raw(func(*dns.Msg) []byte { return []byte(strings.Repeat("\xc0\x0c", 100)) }), fallen},
		{"a name that points to itself", []string{good}, raw(func(m *dns.Msg) []byte {
			b, _ := m.Pack()
			return append(b[:12], 0xc0, 12, 0, 35, 0, 1)
		}), fallen},
		{"another question", []string{good}, says(func(m *dns.Msg) {
			m.Question[0].Name, m.Answer[0] = "other.example.", dns.Copy(m.Answer[0])
			m.Answer[0].Header().Name = "other.example."
		}), fallen},
		{"a question", []string{good}, says(func(m *dns.Msg) { m.Response = false }), fallen},
		{"refused", []string{good}, says(func(m *dns.Msg) { m.Rcode = dns.RcodeRefused }), fallen},
		{"silence", []string{good}, func(_ dns.ResponseWriter, m *dns.Msg) bool { return isNAPTR(m) }, fallen},
		{"cut off, also over TCP", []string{good}, says(func(m *dns.Msg) { m.Truncated, m.Answer = true, nil }), fallen},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newNameServer(t, tt.twist)
			n.knows(t, tt.records...)
			n.knows(t, at("_sip._udp.carrier.example.", 1, "u.example.", netip.MustParseAddrPort("127.0.0.9:7001"))...)
			n.knows(t, at("_sip._tcp.edge.example.", 1, "t.example.", netip.MustParseAddrPort("127.0.0.9:7002"))...)
			b := autoBed(t, nil, n.addr)
			got, err := b.stack.Targets(timeout(t, 30*time.Second), "lab")
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("targets (-want +got):\n%s", d)
			}
			if asked := n.wasAsked("tcp NAPTR carrier.example."); asked != (len(tt.records) > 100 || strings.HasPrefix(tt.name, "cut off")) {
				t.Errorf("NAPTR asked over TCP: %v", asked)
			}
		})
	}
}

func TestServersOfNAPTRAreBounded(t *testing.T) {
	n := newNameServer(t, nil)
	n.knows(t, `carrier.example. NAPTR 1 1 "s" "SIP+D2U" "" _sip._udp.edge.example.`, `carrier.example. NAPTR 1 2 "s" "SIP+D2T" "" _sip._udp.edge.example.`)
	for i := range 300 {
		n.knows(t, fmt.Sprintf("_sip._udp.edge.example. SRV %d 1 %d many.example.", i, 7000+i), fmt.Sprintf("many.example. A 127.0.1.%d", i%250))
	}
	got, err := autoBed(t, nil, n.addr).stack.Targets(timeout(t, 30*time.Second), "lab")
	if err != nil || len(got) != 16 || !strings.HasPrefix(got[0], "udp ") || !strings.HasSuffix(got[15], ":7000") {
		t.Errorf("Targets = %q, %v, want 16 addresses of the first server", got, err)
	}
}

func TestNextNameServerIsAsked(t *testing.T) {
	refuses := newNameServer(t, func(w dns.ResponseWriter, m *dns.Msg) bool {
		m.Rcode, m.Answer = dns.RcodeServerFailure, nil
		_ = w.WriteMsg(m)
		return true
	})
	n := newNameServer(t, nil)
	n.knows(t, `carrier.example. NAPTR 1 1 "s" "SIP+D2T" "" _sip._tcp.edge.example.`)
	n.knows(t, at("_sip._tcp.edge.example.", 1, "t.example.", netip.MustParseAddrPort("127.0.0.9:7002"))...)
	b := autoBed(t, nil, refuses.addr, n.addr)
	got, err := b.stack.Targets(timeout(t, 30*time.Second), "lab")
	if err != nil || !slices.Equal(got, []string{"tcp 127.0.0.9:7002"}) || !refuses.wasAsked("udp NAPTR carrier.example.") {
		t.Errorf("Targets = %q, %v", got, err)
	}
}
