package sip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// naptrs reads records without the name they belong to: `10 50 "s" "SIP+D2U" "" _sip._udp.example.`.
func naptrs(t *testing.T, lines ...string) []*dns.NAPTR {
	t.Helper()
	var out []*dns.NAPTR
	for _, line := range lines {
		r, err := dns.NewRR("carrier.example. NAPTR " + line)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r.(*dns.NAPTR))
	}
	return out
}

func TestServicesOfNAPTR(t *testing.T) { // RFC 3263 §4.1, RFC 3403 §4.1
	all := []Transport{TLS, TCP, UDP}
	many := make([]string, 5000)
	for i := range many {
		many[i] = fmt.Sprintf(`%d 1 "s" "SIP+D2U" "" s%[1]d.example.`, i)
	}
	for _, tt := range []struct {
		name    string
		ways    []Transport
		records []string
		want    []string
	}{
		{"none", all, nil, nil},
		{"the example of the RFC", all, []string{
			`90 50 "s" "SIP+D2T" "" _sip._tcp.example.com.`, `100 50 "s" "SIP+D2U" "" _sip._udp.example.com.`, `50 50 "s" "SIPS+D2T" "" _sips._tcp.example.com.`,
		}, []string{"50 tls _sips._tcp.example.com.", "90 tcp _sip._tcp.example.com.", "100 udp _sip._udp.example.com."}},
		{"not what we don't listen on", []Transport{UDP}, []string{
			`50 50 "s" "SIPS+D2T" "" _sips._tcp.example.com.`, `90 50 "s" "SIP+D2T" "" _sip._tcp.example.com.`, `100 50 "s" "SIP+D2U" "" _sip._udp.example.com.`,
		}, []string{"100 udp _sip._udp.example.com."}},
		{"order, then preference, then the safest", all, []string{
			`20 1 "s" "SIP+D2U" "" d.`, `10 7 "s" "SIP+D2U" "" c.`, `10 7 "s" "SIPS+D2T" "" b.`, `10 2 "s" "SIP+D2T" "" a.`,
		}, []string{"10 tcp a.", "10 tls b.", "10 udp c.", "20 udp d."}},
		{"letters of either case", all, []string{`1 1 "S" "sip+d2t" "" A.Example.`}, []string{"1 tcp a.example."}},
		{"said twice", all, []string{`1 1 "s" "SIP+D2T" "" a.`, `1 2 "s" "SIP+D2T" "" A.`, `1 3 "s" "SIP+D2U" "" a.`}, []string{"1 tcp a.", "1 udp a."}},
		{"not terminal, or otherwise", all, []string{`1 1 "" "SIP+D2T" "" a.`, `1 1 "a" "SIP+D2T" "" a.`, `1 1 "u" "SIP+D2T" "" a.`, `1 1 "p" "SIP+D2T" "" a.`, `1 1 "ss" "SIP+D2T" "" a.`}, nil},
		{"other services", all, []string{
			`1 1 "s" "E2U+sip" "" a.`, `1 1 "s" "SIP+D2S" "" a.`, `1 1 "s" "SIPS+D2U" "" a.`, `1 1 "s" "SIP+D2W" "" a.`, `1 1 "s" "" "" a.`,
			`1 1 "s" "SIP+D2U:x" "" a.`, `1 1 "s" "SIP+D2U\000" "" a.`,
		}, nil},
		{"an expression", all, []string{`1 1 "s" "SIP+D2U" "!^.*$!sip:a@b!" .`, `1 1 "s" "SIP+D2U" "!^.*$!sip:a@b!" a.`}, nil},
		{"nowhere, or no host", all, []string{`1 1 "s" "SIP+D2U" "" .`, `1 1 "s" "SIP+D2U" "" a\013\010b.`, `1 1 "s" "SIP+D2U" "" \000.`}, nil},
		{"a flood", all, many, []string{
			"0 udp s0.example.", "1 udp s1.example.", "2 udp s2.example.", "3 udp s3.example.", "4 udp s4.example.", "5 udp s5.example.", "6 udp s6.example.", "7 udp s7.example.",
		}},
	} {
		var got []string
		for _, s := range chooseServices(naptrs(t, tt.records...), tt.ways) {
			got = append(got, fmt.Sprintf("%d %s %s", s.order, s.transport, s.name))
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}

func TestRecordsOfAnAlias(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		answer     []string
	}{
		{"its own", "[10]", []string{`Carrier.example. NAPTR 10 1 "s" "SIP+D2U" "" a.`, `other.example. NAPTR 20 1 "s" "SIP+D2U" "" a.`}},
		{"of an alias", "[20]", []string{`b.example. NAPTR 20 1 "s" "SIP+D2U" "" a.`, `carrier.example. 60 CNAME a.example.`, `a.example. CNAME B.example.`}},
		{"aliases in a circle", "[]", []string{`carrier.example. CNAME a.example.`, `a.example. CNAME b.example.`, `b.example. CNAME a.example.`, `c.example. NAPTR 20 1 "s" "SIP+D2U" "" a.`}},
		{"for longer than there is time", "[10]", []string{`carrier.example. 4294967295 NAPTR 10 1 "s" "SIP+D2U" "" a.`}},
		{"of an alias for longer than there is time", "[20]", []string{`carrier.example. 2147483648 CNAME a.example.`, `a.example. 60 NAPTR 20 1 "s" "SIP+D2U" "" a.`}},
	} {
		m := new(dns.Msg)
		m.SetQuestion("carrier.example.", dns.TypeNAPTR)
		for _, line := range tt.answer {
			r, err := dns.NewRR(line)
			if err != nil {
				t.Fatal(err)
			}
			m.Answer = append(m.Answer, r)
		}
		got := []uint16{}
		for _, n := range naptrsOf(m) {
			got = append(got, n.Order)
			if want := map[string]uint32{"its own": 3600, "of an alias": 60}[tt.name]; n.Hdr.Ttl != want {
				t.Errorf("%s: it holds for %d s, want %d", tt.name, n.Hdr.Ttl, want)
			}
		}
		if fmt.Sprint(got) != tt.want {
			t.Errorf("%s: orders %v, want %s", tt.name, got, tt.want)
		}
	}
}

// countingZone counts how often NAPTR is asked.
type countingZone struct {
	zone
	asked   int
	records []*dns.NAPTR
	err     error
}

func (z *countingZone) LookupNAPTR(context.Context, string) ([]*dns.NAPTR, error) {
	z.asked++
	return z.records, z.err
}

func TestNAPTRIsAskedAgainWhenItsRecordsHoldNoLonger(t *testing.T) {
	record := func(ttl uint32) *dns.NAPTR {
		n := naptrs(t, `10 10 "s" "SIP+D2T" "" _sip._tcp.edge.example.`)[0]
		n.Hdr.Ttl = ttl
		return n
	}
	deaf := errors.New("no answer")
	for _, tt := range []struct {
		name    string
		records []*dns.NAPTR
		err     error
		asked   map[time.Duration]int // by then, asked once a second
	}{
		{"for a minute", []*dns.NAPTR{record(3600), record(60)}, nil, map[time.Duration]int{59 * time.Second: 1, 60 * time.Second: 2, 121 * time.Second: 3}},
		{"not at all", []*dns.NAPTR{record(0)}, nil, map[time.Duration]int{9 * time.Second: 10}},
		{"nonsense", []*dns.NAPTR{record(1 << 31), record(60)}, nil, map[time.Duration]int{9 * time.Second: 10}},
		{"for a week", []*dns.NAPTR{record(7 * 86400)}, nil, map[time.Duration]int{3599 * time.Second: 1, 3600 * time.Second: 2}},
		{"there are none", nil, nil, map[time.Duration]int{9 * time.Second: 10}},
		{"no answer", nil, deaf, map[time.Duration]int{29 * time.Second: 1, 30 * time.Second: 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				z := &countingZone{records: tt.records, err: tt.err}
				s := newStack(Config{resolver: z}, nil, slog.New(slog.DiscardHandler))
				last := slices.Max(slices.Collect(maps.Keys(tt.asked)))
				for began := time.Now(); time.Since(began) <= last; time.Sleep(time.Second) {
					got, _ := s.naptrs(t.Context(), "carrier.example")
					if len(got) != len(tt.records) {
						t.Fatalf("after %v: %v", time.Since(began), got)
					}
					if want, ok := tt.asked[time.Since(began)]; ok && z.asked != want {
						t.Errorf("asked %d times in %v, want %d", z.asked, time.Since(began), want)
					}
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A name server that has gone silent changes nothing: what it said last goes on to hold.
func TestNAPTRHoldsWhileNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &countingZone{records: naptrs(t, `10 10 "s" "SIP+D2T" "" _sip._tcp.edge.example.`)}
		s := newStack(Config{resolver: z}, nil, slog.New(slog.DiscardHandler))
		for range 5 {
			if got, _ := s.naptrs(t.Context(), "carrier.example"); len(got) != 1 {
				t.Errorf("%d records, want 1", len(got))
			}
			time.Sleep(2 * time.Hour)
			z.records, z.err = nil, errors.New("no answer")
		}
		z.err = nil // it answers that there are none any more
		if got, err := s.naptrs(t.Context(), "carrier.example"); len(got) != 0 || err != nil {
			t.Errorf("in the end %v, %v", got, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestNameServersOfTheSystem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	for text, want := range map[string]string{
		"": "[127.0.0.1:53]", "search example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n": "[192.0.2.53:53 [2001:db8::53]:53]",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := nameServers(path); err != nil || fmt.Sprint(got) != want {
			t.Errorf("nameServers(%q) = %v, %v, want %s", text, got, err, want)
		}
	}
	if _, err := nameServers(path + ".gone"); err == nil {
		t.Error("a file that is not there has name servers")
	}
}

// deafZone is a DNS that has no answer to NAPTR, not even that there is none.
type deafZone struct{ zone }

func (deafZone) LookupNAPTR(ctx context.Context, _ string) ([]*dns.NAPTR, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestNAPTRThatIsNotAnsweredHoldsUpItsOwnCallOnly(t *testing.T) {
	change := func(c *Config) {
		outbound(c)
		other := c.Trunks[0]
		other.Name = "other"
		c.Trunks[0].Proxy, c.Trunks[0].Transport = "carrier.example", Auto
		c.Trunks = append(c.Trunks, other)
		c.resolver = deafZone{zone{hosts: map[string][]string{"carrier.example": {"192.0.2.20"}}}}
	}
	inBubble(t, change, nil, func(b *bubble) {
		held, _ := b.dials()
		_, inv := b.dials(func(r *DialRequest) { r.Trunk = "other" })
		b.peer.answers(inv, "486 Busy Here", "b1", "")
		time.Sleep(naptrTimeout)
		synctest.Wait()
		inv = b.peer.last()
		wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "0s ACK", "5s INVITE"})
		b.peer.answers(inv, "200 OK", "b2", peerAnswer)
		if ack := b.peer.last(); !strings.HasPrefix(ack, "ACK ") || !held.Dialog().Confirmed {
			t.Errorf("after the answer: %q, dialog %+v", ack, held.Dialog())
		}
	})
}

// Calls that begin while a name server is asked wait for the same answer, also when the first of them is given up.
func TestNAPTRIsAskedOnceAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &slowZone{records: naptrs(t, `10 10 "s" "SIP+D2T" "" _sip._tcp.edge.example.`)}
		s := newStack(Config{resolver: z}, nil, slog.New(slog.DiscardHandler))
		var wg sync.WaitGroup
		given, giveUp := context.WithCancel(t.Context())
		wg.Go(func() {
			if got, err := s.naptrs(given, "carrier.example"); len(got) != 0 || !errors.Is(err, context.Canceled) {
				t.Errorf("the call that was given up has %v, %v", got, err)
			}
		})
		time.Sleep(time.Second)
		giveUp()
		for range 10 {
			wg.Go(func() {
				if got, err := s.naptrs(t.Context(), "carrier.example"); len(got) != 1 || err != nil {
					t.Errorf("a call that waited has %v, %v", got, err)
				}
			})
		}
		wg.Wait()
		if n := z.asked.Load(); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// slowZone answers after three seconds.
type slowZone struct {
	zone
	records []*dns.NAPTR
	asked   atomic.Int32
}

func (z *slowZone) LookupNAPTR(ctx context.Context, _ string) ([]*dns.NAPTR, error) {
	z.asked.Add(1)
	if !pauseFor(ctx, 3*time.Second) {
		return nil, ctx.Err()
	}
	return z.records, nil
}

func TestDeafNameServerIsLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		s := newStack(Config{resolver: deafZone{}}, nil, slog.New(slog.NewTextHandler(&log, nil)))
		for began := time.Now(); time.Since(began) < 100*time.Second; time.Sleep(time.Second) {
			s.delegated(t.Context(), &Trunk{Name: "lab"}, "carrier.example", []Transport{UDP})
		}
		if n := strings.Count(log.String(), "no answer to NAPTR"); n != 2 {
			t.Errorf("%d lines, want 2:\n%s", n, log.String())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
