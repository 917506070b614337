package sip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	naptrTimeout = 5 * time.Second         // for NAPTR and what it leads to, of the lookupTimeout
	srvTimeout   = 2500 * time.Millisecond // for SRV where there was no NAPTR; the rest is for addresses
	askTimeout   = 1500 * time.Millisecond // for one name server
	leastAsked   = 2                       // a datagram may be lost
	mostAsked    = 3                       // resolv.conf(5) has no more servers
	naptrBytes   = 1232                    // a UDP answer of that size is not cut into fragments anywhere
	maxAliases   = 8                       // CNAMEs of one answer
	maxServices  = 8                       // that are followed of one answer
	longestHeld  = time.Hour               // an answer is asked for anew, whatever its records say
	failureHeld  = 30 * time.Second        // so that a name server which says nothing holds up one call in that time
)

// resolver finds servers and addresses; systemDNS has it.
type resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
	LookupNAPTR(ctx context.Context, name string) ([]*dns.NAPTR, error)
}

// systemDNS is Go's resolver, and asks the same name servers for NAPTR, which Go's cannot.
type systemDNS struct {
	*net.Resolver
	servers func() ([]string, error) // addresses with ports
}

func newSystemDNS() systemDNS {
	return systemDNS{net.DefaultResolver, func() ([]string, error) { return nameServers("/etc/resolv.conf") }}
}

// nameServers reads a file each time it is asked, for it changes with the network.
func nameServers(path string) ([]string, error) {
	c, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, server := range c.Servers {
		out = append(out, net.JoinHostPort(server, c.Port))
	}
	if len(out) == 0 {
		out = []string{"127.0.0.1:53"} // resolv.conf(5)
	}
	return out, nil
}

// LookupNAPTR returns the NAPTR records of a name, as they came; none is no error. The name is taken as a full one.
func (d systemDNS) LookupNAPTR(ctx context.Context, name string) ([]*dns.NAPTR, error) {
	servers, err := d.servers()
	if err != nil {
		return nil, fmt.Errorf("NAPTR of %s: %w", clip(name), err)
	}
	question := new(dns.Msg)
	question.SetQuestion(dns.Fqdn(name), dns.TypeNAPTR)
	question.SetEdns0(naptrBytes, false)
	var errs []error
	for i := range max(leastAsked, min(len(servers), mostAsked)) {
		answer, err := askServer(ctx, servers[i%len(servers)], question)
		if err == nil {
			return naptrsOf(answer), nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
		question.Id = dns.Id()
		question.Extra = nil // some old servers refuse what has EDNS in it
	}
	return nil, fmt.Errorf("NAPTR of %s: %w", clip(name), errors.Join(errs...))
}

// askServer asks once over UDP, and once more over TCP when the answer has no room there.
func askServer(ctx context.Context, server string, question *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answer, err := exchangeDNS(ctx, "udp", server, question)
	if err == nil && answer.Truncated {
		answer, err = exchangeDNS(ctx, "tcp", server, question)
	}
	switch {
	case err != nil:
		return nil, err
	case answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError:
		return nil, fmt.Errorf("%s says %s", server, dns.RcodeToString[answer.Rcode])
	}
	return answer, nil
}

func exchangeDNS(ctx context.Context, network, server string, question *dns.Msg) (*dns.Msg, error) {
	client := dns.Client{Net: network, Timeout: askTimeout}
	conn, err := client.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // the library heeds deadlines, not the end of the stack
	answer, _, err := client.ExchangeWithConnContext(ctx, question, conn)
	if err != nil {
		return nil, err
	}
	if q := answer.Question; !answer.Response || len(q) != 1 || q[0].Qtype != dns.TypeNAPTR || !strings.EqualFold(q[0].Name, question.Question[0].Name) {
		return nil, fmt.Errorf("%s answers another question", server)
	}
	return answer, nil
}

// naptrsOf are the records of the name that was asked for, or of the one it is an alias of; none holds longer than the way to it.
func naptrsOf(answer *dns.Msg) []*dns.NAPTR {
	owner, holds := answer.Question[0].Name, uint32(math.MaxUint32)
	for range maxAliases {
		i := slices.IndexFunc(answer.Answer, func(r dns.RR) bool {
			alias, ok := r.(*dns.CNAME)
			return ok && strings.EqualFold(alias.Hdr.Name, owner)
		})
		if i < 0 {
			break
		}
		alias := answer.Answer[i].(*dns.CNAME)
		owner, holds = alias.Target, min(holds, ttlOf(alias))
	}
	var out []*dns.NAPTR
	for _, r := range answer.Answer {
		if n, ok := r.(*dns.NAPTR); ok && strings.EqualFold(n.Hdr.Name, owner) {
			n.Hdr.Ttl = min(holds, ttlOf(n))
			out = append(out, n)
		}
	}
	return out
}

// ttlOf is how long a record holds, in seconds; RFC 2181 §8: what is no time is none.
func ttlOf(r dns.RR) uint32 {
	if ttl := r.Header().Ttl; ttl <= math.MaxInt32 {
		return ttl
	}
	return 0
}

// naptrAnswers are what the domains of trunks said: as many as trunks have proxies.
type naptrAnswers struct {
	mu    sync.Mutex
	said  map[string]naptrAnswer    // by name
	asked map[string]*naptrQuestion // those that are out
}

type naptrAnswer struct {
	records []*dns.NAPTR
	err     error     // nobody answered: the records are of before
	until   time.Time // it is asked again
}

// naptrQuestion is asked once for all who want to know.
type naptrQuestion struct {
	before naptrAnswer
	answer naptrAnswer   // set when done is closed
	done   chan struct{} // closed by who asks
}

// naptrs are the records of a name: what was said before, as long as they hold, and while nobody answers, which the error says.
// That there are none is not remembered.
func (s *Stack) naptrs(ctx context.Context, name string) ([]*dns.NAPTR, error) {
	said, q := s.naptrQuestion(name)
	if q == nil {
		return said.records, said.err
	}
	select {
	case <-q.done:
		return q.answer.records, q.answer.err
	case <-ctx.Done():
		return said.records, ctx.Err()
	}
}

// naptrQuestion is what was said of a name, and the question that is out, nil while that holds. It goes on when the call it was asked
// for is given up: others wait for it.
func (s *Stack) naptrQuestion(name string) (naptrAnswer, *naptrQuestion) {
	a := &s.naptrAnswers
	a.mu.Lock()
	defer a.mu.Unlock()
	said, q := a.said[name], a.asked[name]
	if q != nil || time.Now().Before(said.until) {
		return said, q
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		said.err = net.ErrClosed
		return said, nil
	}
	if a.said == nil {
		a.said, a.asked = map[string]naptrAnswer{}, map[string]*naptrQuestion{}
	}
	q = &naptrQuestion{before: said, done: make(chan struct{})}
	a.asked[name] = q
	s.calls.Go(func() { s.askNAPTR(name, q) })
	return said, q
}

func (s *Stack) askNAPTR(name string, q *naptrQuestion) {
	ctx, cancel := context.WithTimeout(s.root, naptrTimeout)
	defer cancel()
	records, err := s.config.resolver.LookupNAPTR(ctx, name)
	q.answer = naptrAnswer{records, nil, time.Now().Add(held(records))}
	if err != nil {
		q.answer = naptrAnswer{q.before.records, err, time.Now().Add(failureHeld)}
	}
	a := &s.naptrAnswers
	a.mu.Lock()
	a.said[name] = q.answer
	delete(a.asked, name)
	a.mu.Unlock()
	close(q.done)
}

// held is how long an answer may be used.
func held(records []*dns.NAPTR) time.Duration {
	if len(records) == 0 {
		return 0
	}
	least := longestHeld
	for _, n := range records {
		least = min(least, time.Duration(ttlOf(n))*time.Second)
	}
	return least
}

// service is what a NAPTR record of SIP says: servers are found by SRV under that name, and spoken to over that transport.
type service struct {
	transport Transport
	name      string
	order     uint16
}

// transportOf are the services we know (RFC 3263 §4.1).
var transportOf = map[string]Transport{"SIP+D2U": UDP, "SIP+D2T": TCP, "SIPS+D2T": TLS}

// chooseServices picks the records that lead to SRV over one of these transports, in the order of the domain (RFC 3403 §4.1);
// what the domain finds equal, in ours. Everything else is passed over: terminal records of other kinds, other services,
// expressions (RFC 3263 has none).
func chooseServices(records []*dns.NAPTR, ways []Transport) []service {
	usable := slices.DeleteFunc(slices.Clone(records), func(n *dns.NAPTR) bool {
		return !strings.EqualFold(n.Flags, "s") || n.Regexp != "" || strings.Trim(n.Replacement, ".") == "" || !validHost(n.Replacement) ||
			!slices.Contains(ways, transportOf[strings.ToUpper(n.Service)])
	})
	rank := func(n *dns.NAPTR) int { return slices.Index(ways, transportOf[strings.ToUpper(n.Service)]) }
	slices.SortStableFunc(usable, func(a, b *dns.NAPTR) int {
		return cmp.Or(cmp.Compare(a.Order, b.Order), cmp.Compare(a.Preference, b.Preference), rank(a)-rank(b))
	})
	var out []service
	for _, n := range usable {
		if len(out) == maxServices {
			break
		}
		one := service{transportOf[strings.ToUpper(n.Service)], strings.ToLower(n.Replacement), n.Order}
		if !slices.ContainsFunc(out, func(o service) bool { return o.transport == one.transport && o.name == one.name }) {
			out = append(out, one)
		}
	}
	return out
}

// discover finds the servers of a name and how they are spoken to (RFC 3263 §4.1): as NAPTR says, else over each of these
// transports that has SRV records.
func (s *Stack) discover(ctx context.Context, trunk *Trunk, host string, ways []Transport) []target {
	if out := s.delegated(ctx, trunk, host, ways); len(out) > 0 {
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, srvTimeout)
	defer cancel()
	var out []target
	for _, t := range ways {
		out = s.services(ctx, trunk, out, t, host)
	}
	return out
}

// delegated follows NAPTR. Once records of one order have led somewhere, those of a higher one are not for us (RFC 3403 §4.1): a
// domain that prefers TLS so is not spoken to in clear because somebody on the way lets no TLS through.
func (s *Stack) delegated(ctx context.Context, trunk *Trunk, host string, ways []Transport) []target {
	ctx, cancel := context.WithTimeout(ctx, naptrTimeout)
	defer cancel()
	records, err := s.naptrs(ctx, host)
	if err != nil {
		s.deafDNS.Do(func() { s.log.Warn("no answer to NAPTR, going on without", "trunk", trunk.Name, "err", err) })
	}
	var out []target
	order := uint16(0)
	for _, one := range chooseServices(records, ways) {
		if len(out) > 0 && one.order != order {
			break
		}
		order = one.order
		out = s.servers(ctx, trunk, out, one.transport, "", "", one.name)
	}
	return out
}
