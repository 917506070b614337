package sip

import (
	"crypto/tls"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// carrierAddr is where the second trunk of these tests is.
var carrierAddr = addr("192.0.2.21:5060")

// lanAndCarrier are a PBX in our own network and a carrier on the other side of a NAT, which know us by different addresses.
func lanAndCarrier(c *Config) {
	c.Limits.MediaTimeout = -1
	c.Trunks = []Trunk{
		{
			Name: "lab", Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.20/32")}, Proxy: "192.0.2.20",
			Advertise: "10.0.0.5", AdvertiseRTP: netip.MustParseAddr("10.0.0.6"), Auth: Credentials{Username: "bob"},
		},
		{
			Name: "carrier", Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.21/32")}, Proxy: "192.0.2.21",
			Advertise: "voip.example.org", AdvertiseRTP: netip.MustParseAddr("203.0.113.5"),
		},
		{Name: "plain", Proxy: "192.0.2.22"},
	}
}

// names are our addresses in a message: the hosts of Contact and, in requests, Via, then those in o= and c=.
func names(m string) string {
	contact, _ := routeURI(headerIn(m, "Contact"))
	out := []string{contact.Host}
	if !strings.HasPrefix(m, "SIP/2.0") {
		_, sentBy, _ := strings.Cut(headerIn(m, "Via"), " ")
		host, _, _ := strings.Cut(sentBy, ":")
		out = append(out, host)
	}
	for line := range strings.SplitSeq(m, "\r\n") {
		if strings.HasPrefix(line, "o=") || strings.HasPrefix(line, "c=") {
			out = append(out, line[strings.LastIndexByte(line, ' ')+1:])
		}
	}
	return strings.Join(out, " ")
}

func TestEachTrunkIsToldItsOwnAddresses(t *testing.T) {
	for _, tt := range []struct {
		trunk        string
		at           netip.AddrPort
		signal, rtp  string
		from         string // the host of From, without a domain
		neverMention string
	}{
		{"lab", peerAddr, "10.0.0.5", "10.0.0.6", "10.0.0.5", "203.0.113.5"},
		{"carrier", carrierAddr, "voip.example.org", "203.0.113.5", "voip.example.org", "10.0.0."},
		{"plain", addr("192.0.2.22:5060"), "192.0.2.1", "192.0.2.1", "192.0.2.1", "10.0.0."},
	} {
		t.Run(tt.trunk, func(t *testing.T) {
			inBubble(t, lanAndCarrier, answerAtOnce, func(b *bubble) {
				peer, contact := b.peer, "Contact: <sip:2001@"+tt.at.String()+">"
				if tt.at != peerAddr {
					peer = b.newPeer(tt.at)
					defer peer.close()
				}
				want := func(what string, got string, hosts ...string) {
					t.Helper()
					if got := names(got); got != strings.Join(hosts, " ") {
						t.Errorf("%s names %q, want %q", what, got, hosts)
					}
				}
				peer.send(invite(contact))
				want("the answer", peer.last(), tt.signal, tt.rtp, tt.rtp)
				peer.send(peer.within("ACK", "k1", 1, ""))
				peer.send(peer.within("INVITE", "r1", 2, strings.Replace(peerOffer, "o=- 1 1", "o=- 1 2", 1)+"a=sendonly\n", contact))
				want("the answer to hold", peer.last(), tt.signal, tt.rtp, tt.rtp)
				peer.send(peer.within("ACK", "k2", 2, ""))
				if err := (<-b.calls).Hangup(CauseNormal); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				want("BYE", peer.last(), tt.signal, tt.signal)
				peer.send(replyTo(peer.last(), "200 OK"))

				call, _ := b.dials(func(r *DialRequest) { r.Trunk = tt.trunk })
				inv := peer.last()
				want("INVITE", inv, tt.signal, tt.signal, tt.rtp, tt.rtp)
				if from, _ := routeURI(headerIn(inv, "From")); from.Host != tt.from {
					t.Errorf("From names %q, want %q", from.Host, tt.from)
				}
				peer.answers(inv, "200 OK", "b1", peerAnswer, contact)
				want("ACK", peer.last(), tt.signal, tt.signal)
				if d := call.Dialog().Media.Advertised; d.Addr().String() != tt.rtp {
					t.Errorf("the row has %v as told, want %s", d, tt.rtp)
				}
				_ = call.Hangup(CauseNormal)
				synctest.Wait()
				peer.send(replyTo(peer.last(), "200 OK"))
				for _, m := range peer.messages() {
					if strings.Contains(m, tt.neverMention) {
						t.Errorf("it is told an address of another trunk: %q", m)
					}
				}
			})
		})
	}
}

func TestRegistrationNamesTheTrunksOwnAddress(t *testing.T) {
	change := func(c *Config) {
		lanAndCarrier(c)
		c.Trunks[0].Register, c.Trunks[0].Ping = true, time.Minute
	}
	inBubble(t, change, nil, func(b *bubble) {
		register := b.peer.last()
		if got := headerIn(register, "Contact"); got != "<sip:bob@10.0.0.5:5060>" || names(register) != "10.0.0.5 10.0.0.5" {
			t.Errorf("REGISTER has Contact %s and names %q", got, names(register))
		}
		b.peer.answers(register, "200 OK", "r", "", "Contact: <sip:bob@10.0.0.5:5060>;expires=100", "Expires: 3600")
		if left := time.Until(b.stack.Trunks()[0].Registered); left != 100*time.Second { // our binding among those of the answer
			t.Errorf("registered for %v, want 100s", left)
		}
		if ping := b.peer.last(); !strings.HasPrefix(ping, "OPTIONS ") || names(ping) != "10.0.0.5 10.0.0.5" {
			t.Errorf("the trunk is asked by %q, which names %q", ping, names(ping))
		}
		b.peer.send(replyTo(b.peer.last(), "200 OK"))
	})
}

// A call that goes on has moved when its own trunk is to be told something else, whatever the others are told.
func TestResumedCallFollowsTheAddressesOfItsTrunk(t *testing.T) {
	saved, bye := upBefore(t, lanAndCarrier, "Allow: INVITE, ACK, BYE, UPDATE")
	for _, tt := range []struct {
		name   string
		change func(*Config)
		asks   string // the request
		names  string
	}{
		{"as before", nil, "UPDATE", "10.0.0.5 10.0.0.5"},
		{"another trunk has moved, and the host", func(c *Config) {
			c.Trunks[1].Advertise, c.Trunks[1].AdvertiseRTP = "192.0.2.99", netip.MustParseAddr("192.0.2.99")
			c.Advertise, c.RTP.Advertise = "192.0.2.98", netip.MustParseAddr("192.0.2.98")
		}, "UPDATE", "10.0.0.5 10.0.0.5"},
		{"its signalling has", func(c *Config) { c.Trunks[0].Advertise = "10.0.0.7" }, "INVITE", "10.0.0.7 10.0.0.7 10.0.0.6 10.0.0.6"},
		{"its sound has", func(c *Config) { c.Trunks[0].AdvertiseRTP = netip.MustParseAddr("10.0.0.7") }, "INVITE", "10.0.0.5 10.0.0.5 10.0.0.7 10.0.0.7"},
		{"it is told what all are", func(c *Config) { c.Trunks[0].Advertise, c.Trunks[0].AdvertiseRTP = "", netip.Addr{} }, "INVITE", "192.0.2.1 192.0.2.1 192.0.2.1 192.0.2.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(c *Config) {
				lanAndCarrier(c)
				if tt.change != nil {
					tt.change(c)
				}
			}, nil, func(b *bubble) {
				call := b.resumes(saved)
				if err := call.Refresh(); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				question := b.peer.last()
				if method, _, _ := strings.Cut(question, " "); method != tt.asks || names(question) != tt.names {
					t.Errorf("the phone was asked by %s, which names %q; want %s and %q", method, names(question), tt.asks, tt.names)
				}
				if method := "UPDATE"; tt.asks == method {
					b.peer.send(replyTo(question, "200 OK"))
				} else {
					b.peer.answers(question, "200 OK", "", peerAnswer)
				}
				b.peer.send(bye)
			})
		})
	}
}

// The end that a call is told by a process whose config has its trunk no more as one that is called.
func TestDismissedCallIsToldFromItsTrunksAddress(t *testing.T) {
	saved, _ := upBefore(t, lanAndCarrier)
	inBubble(t, func(c *Config) { lanAndCarrier(c); c.Trunks[0].Proxy = "" }, nil, func(b *bubble) {
		if err := b.stack.Dismiss(saved, CauseNormal); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := b.peer.last(); !strings.HasPrefix(got, "BYE ") || names(got) != "10.0.0.5 10.0.0.5" {
			t.Errorf("the phone was told %q", got)
		}
		b.peer.send(replyTo(b.peer.last(), "200 OK"))
	})
}

func TestAdvertisedAddressesOfTrunksAreChecked(t *testing.T) {
	for _, tt := range []struct {
		trunk Trunk
		want  string
	}{
		{Trunk{Advertise: "a b"}, `advertise "a b" is not a host name or address`},
		{Trunk{AdvertiseRTP: netip.IPv6Unspecified()}, "no sound that is sent to ::"},
		{Trunk{AdvertiseRTP: netip.MustParseAddr("2001:db8::1")}, "no sound that is sent to 2001:db8::1 comes to rtp address 127.0.0.1"},
		{Trunk{Advertise: "2001:db8::1", AdvertiseRTP: netip.MustParseAddr("203.0.113.1")}, ""},
		{Trunk{Advertise: "203.0.113.1:15060"}, ""},
		{Trunk{Advertise: "voip.example.org:15060"}, ""},
		{Trunk{Advertise: "[2001:db8::1]:15060"}, ""},
		{Trunk{Advertise: "voip.example.org:15061", Transport: TLS}, ""},
		{Trunk{Advertise: "voip.example.org:0"}, `advertise "voip.example.org:0" is not a host name`},
		{Trunk{Advertise: "voip.example.org:70000"}, `advertise "voip.example.org:70000" is not a host name`},
		{Trunk{Advertise: "voip.example.org:sip"}, `advertise "voip.example.org:sip" is not a host name`},
		{Trunk{Advertise: ":15060"}, `advertise ":15060" is not a host name`},
		{Trunk{Advertise: "voip.example.org:15060", Transport: Auto}, "one port cannot stand for sockets of several"},
	} {
		tt.trunk.Name, tt.trunk.Proxy = "x", "192.0.2.1"
		err := Config{
			Listen: []Listen{{UDP, addr("127.0.0.1:5060")}, {TCP, addr("127.0.0.1:5060")}, {TLS, addr("127.0.0.1:5061")}},
			TLS:    &tls.Config{Certificates: make([]tls.Certificate, 1)}, RTP: RTPConfig{Addr: netip.MustParseAddr("127.0.0.1")}, Trunks: []Trunk{tt.trunk},
		}.check()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("check of %+v = %v, want %q", tt.trunk, err, tt.want)
		}
	}
}

// A NAT, or Docker, leads another port of the outer address to our socket: who is told the inner one reaches nobody.
func TestPortsOfSignallingMayBeOthersOutside(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"of all": func(c *Config) { c.Advertise = "203.0.113.5:15060" },
		"of the trunk": func(c *Config) {
			c.Advertise = "203.0.113.9:19999"
			c.Trunks[0].Advertise = "203.0.113.5:15060"
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(c *Config) {
				registering(c)
				c.Trunks[0].Ping = time.Hour
				change(c)
			}, answerAtOnce, func(b *bubble) {
				const uri, via = "sip:trunkline@203.0.113.5:15060", "SIP/2.0/UDP 203.0.113.5:15060;"
				register := b.peer.last()
				if headerIn(register, "Contact") != "<sip:bob@203.0.113.5:15060>" || !strings.HasPrefix(headerIn(register, "Via"), via) {
					t.Errorf("REGISTER = %q", register)
				}
				b.peer.answers(register, "200 OK", "r", "", "Contact: <sip:bob@203.0.113.5:15060>;expires=100", "Expires: 3600")
				if left := time.Until(b.stack.Trunks()[0].Registered); left != 100*time.Second {
					t.Errorf("registered for %v, want 100s: that binding is ours", left)
				}
				b.peer.answers(b.peer.last(), "200 OK", "o", "") // the ping
				_, inv := b.dials()
				if headerIn(inv, "Contact") != "<"+uri+">" || !strings.HasPrefix(headerIn(inv, "Via"), via) || !strings.Contains(headerIn(inv, "From"), "@carrier.example>") {
					t.Errorf("INVITE = %q", inv)
				}
				b.peer.answers(inv, "486 Busy Here", "b1", "")

				b.peer.forget()
				b.peer.send(invite())
				ok := b.peer.last()
				if headerIn(ok, "Contact") != "<"+uri+">" || !strings.Contains(ok, "c=IN IP4 192.0.2.1\r\n") {
					t.Errorf("200 = %q", ok)
				}
				b.peer.send(request("ACK", uri, headerIn(ok, "To"), "k1", 1, ""))
				b.peer.send(request("INVITE", uri, headerIn(ok, "To"), "r1", 2, peerOffer))
				if again := b.peer.last(); headerIn(again, "Contact") != "<"+uri+">" {
					t.Errorf("answer to a re-INVITE = %q", again)
				}
				b.peer.send(request("ACK", uri, headerIn(ok, "To"), "k2", 2, ""))
				b.peer.send(request("BYE", uri, headerIn(ok, "To"), "y1", 3, ""))
			})
		})
	}
	t.Run("of one of several sockets", func(t *testing.T) {
		s := &Stack{
			config:    Config{Advertise: "198.51.100.1"},
			listeners: []listener{{transport: UDP, addr: addr("192.0.2.1:5060")}, {transport: TLS, addr: addr("192.0.2.1:5061")}},
		}
		trunk := &Trunk{Transport: TLS, Advertise: "[2001:db8::1]:15061"}
		for _, tt := range []struct {
			trunk *Trunk
			local string
			want  string
		}{
			{trunk, "192.0.2.1:5061", "[2001:db8::1]:15061"},
			{trunk, "192.0.2.1:5060", "[2001:db8::1]:5060"}, // its calls over UDP: no port outside is known for that
			{&Trunk{}, "192.0.2.1:5061", "198.51.100.1:5061"},
			{nil, "192.0.2.1:5060", "198.51.100.1:5060"},
		} {
			if got := s.hostPort(tt.trunk, addr(tt.local)); got != tt.want {
				t.Errorf("by way of %s we are %s, want %s", tt.local, got, tt.want)
			}
		}
	})
}
