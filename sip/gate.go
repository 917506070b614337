package sip

import (
	"bytes"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	gosip "github.com/emiago/sipgo/sip"
	"golang.org/x/time/rate"
)

// gate holds back neighbours that send too much, before that becomes work: new calls of a trunk that may have none, or no more this
// second, are refused without a transaction; an address that sends more than any neighbour needs is not heard for the moment, and
// one that keeps failing over connections, and so has proved to be there, is not heard for a while. Who is no neighbour never comes
// this far.
type gate struct {
	*crowd
	neighbours *neighbours
	counters   *counters
	log        *slog.Logger
	refusals   *rate.Sometimes // lets some refusals into the log

	known  func(*gosip.Request) bool // an INVITE of a call that is here
	trunks map[string]*rate.Limiter  // new calls of those with a limit, by name
	shares map[string]*rate.Limiter  // what each may have of all, by name, whatever the others do
	all    *rate.Limiter             // the rest of all; nil = no limit

	regulars regulars
}

func (s *Stack) newGate() *gate {
	limits := s.config.Limits
	g := &gate{
		neighbours: s.neighbours, counters: s.counters, log: s.log, refusals: &s.refusals, known: s.invited,
		trunks: map[string]*rate.Limiter{}, shares: map[string]*rate.Limiter{},
		crowd: &crowd{limits: limits, named: s.neighbours.named, spare: s.spare, log: s.log, sources: map[netip.Prefix]*source{}},
	}
	g.others = g.newPace()
	for _, t := range s.config.Trunks {
		if n := t.InvitesPerSecond; n > 0 {
			g.trunks[t.Name] = rate.NewLimiter(rate.Limit(n), n)
		}
	}
	if n := limits.InvitesPerSecond; n > 0 {
		callers := slices.DeleteFunc(slices.Clone(s.config.Trunks), func(t Trunk) bool { return t.OutOnly })
		for _, t := range callers {
			share := n / 2 / len(callers)
			g.shares[t.Name] = rate.NewLimiter(rate.Limit(share), share)
		}
		n -= n / 2 / max(1, len(callers)) * len(callers)
		g.all = rate.NewLimiter(rate.Limit(n), n)
	}
	return g
}

// Why a call of a trunk is turned away before anybody is told of it.
const (
	awayDirection = "outbound only"
	awayRate      = "calls per second"
	awayTotalRate = "calls per second of all trunks"
	awayCalls     = "calls of the trunk"
	awayFull      = "calls of all trunks"
	awayDraining  = "draining"
)

// admits judges what came from an address and is well formed. Only new calls are of interest: what belongs to one that is here passes.
func (g *gate) admits(m gosip.Message, from netip.Addr) verdict {
	req, ok := m.(*gosip.Request)
	if !ok || !req.IsInvite() || req.To() == nil || req.To().Params.Has("tag") || g.known(req) {
		return verdict{}
	}
	all := g.neighbours.trunksOf(from)
	if len(all) == 0 {
		return verdict{} // it will be told so
	}
	trunks := calling(all)
	if len(trunks) == 0 {
		return g.turnAway(all[0], awayDirection, verdict{code: 403, why: "No calls are taken from this trunk"})
	}
	trunk := addressed(trunks, userPart(&req.Recipient), userPart(&req.To().Address))
	later := verdict{code: 503, why: statusText(503), again: time.Second}
	if pace := g.trunks[trunk.Name]; pace != nil && !pace.Allow() {
		return g.turnAway(trunk, awayRate, later)
	}
	if !g.hasTurn(trunk) { // behind the trunk's own: what that refuses takes nobody else's turn
		return g.turnAway(trunk, awayTotalRate, later)
	}
	return verdict{}
}

// hasTurn says that one more call of a trunk is within the limit of all: within its part, or within the rest.
func (g *gate) hasTurn(trunk *Trunk) bool {
	share := g.shares[trunk.Name]
	return share != nil && share.Allow() || g.all == nil || g.all.Allow()
}

func (g *gate) turnAway(trunk *Trunk, why string, v verdict) verdict {
	g.counters.turnAway(trunk.Name, why)
	g.refusals.Do(func() { g.log.Info("a call is turned away", "trunk", trunk.Name, "code", v.code, "why", why) })
	return v
}

// calling are those trunks that may call us.
func calling(trunks []*Trunk) (out []*Trunk) {
	for _, t := range trunks {
		if !t.OutOnly {
			out = append(out, t)
		}
	}
	return out
}

// invited says that an INVITE is one of a call that is here: it has had its turn.
func (s *Stack) invited(req *gosip.Request) bool {
	if req.From() == nil || req.CallID() == nil || req.CSeq() == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byInvite[inviteOf(req)] != nil
}

// spare says that an address must go on being heard, whatever it does: it was named one by one, or there is a call, in whatever
// state, of its host or of a trunk it belongs to: what comes next of that call may come from another of the trunk's machines.
func (s *Stack) spare(a netip.Addr) bool {
	if s.neighbours.named(a.Unmap()) {
		return true
	}
	trunks := s.neighbours.trunksOf(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.byID {
		if slices.Contains(trunks, c.trunk) || hostOf(c.snapshot.Load().Remote.Addr()) == hostOf(a) {
			return true
		}
	}
	return false
}

// callPace is how many messages a second are heard of a call whatever comes from its address: more than a call has.
const callPace = 20

// regulars are the Call-IDs of the calls that are here, and of our own REGISTERs and OPTIONS. A datagram that has one of them is heard
// also where too much comes from its address: whoever writes a trunk's address into datagrams does not know them.
type regulars struct {
	mu    sync.Mutex
	known map[string]*regular
}

type regular struct {
	calls int // that have the Call-ID: each leg of one that came by two ways is one
	pace  *rate.Limiter
}

func (r *regulars) come(callID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = map[string]*regular{}
	}
	one := r.known[callID]
	if one == nil {
		one = &regular{pace: rate.NewLimiter(callPace, 2*callPace)}
		r.known[callID] = one
	}
	one.calls++
}

func (r *regulars) leave(callID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if one := r.known[callID]; one != nil {
		if one.calls--; one.calls == 0 {
			delete(r.known, callID)
		}
	}
}

// have says that a message is of one of them, and not one of too many.
func (r *regulars) have(message []byte) bool {
	id := callIDIn(message)
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.known[string(id)]
	return one != nil && one.pace.Allow()
}

// callIDIn finds the Call-ID of a message that may be anything.
func callIDIn(message []byte) []byte {
	for line := range bytes.SplitSeq(message, []byte("\r\n")) {
		if len(line) == 0 {
			return nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if name = bytes.TrimSpace(name); bytes.EqualFold(name, []byte("call-id")) || bytes.EqualFold(name, []byte("i")) {
			return bytes.TrimSpace(value)
		}
	}
	return nil
}

const (
	maxSources  = 1024             // addresses that are told apart
	sourceRests = 10 * time.Second // then it may be forgotten: its limiter is full again
	failingTime = time.Minute      // in which failures add up
	banTime     = 5 * time.Minute
)

// crowd is what single addresses have sent. However many there are, it does not grow.
type crowd struct {
	limits Limits
	named  func(netip.Addr) bool // the config has that address: there is room for it
	spare  func(netip.Addr) bool // that address is heard although it is banned; looks at all calls; called without mu
	log    *slog.Logger
	calls  atomic.Uint64 // have come so far

	mu      sync.Mutex
	sources map[netip.Prefix]*source
	others  *rate.Limiter // of all for which there is no room; nil = no limit
	swept   time.Time
}

// source is one host, or one address that the config has.
type source struct {
	pace   *rate.Limiter // messages; nil = no limit
	heard  time.Time
	failed int
	since  time.Time // the first of these
	until  time.Time // it is not heard

	spared bool // what spare has said, at that time, when so many calls had come
	asked  time.Time
	calls  uint64
}

func (c *crowd) newPace() *rate.Limiter {
	if n := c.limits.MessagesPerSecond; n > 0 {
		return rate.NewLimiter(rate.Limit(n), 2*n) // a process that comes back finds many at once
	}
	return nil
}

// hostOf is an address; of IPv6, a /64: one host has that many.
func hostOf(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	if p, err := a.Prefix(64); a.Is6() && err == nil {
		return p
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// key is what an address is counted under. One that the config has does not answer for its neighbours.
func (c *crowd) key(a netip.Addr) netip.Prefix {
	if a = a.Unmap(); c.named(a) {
		return netip.PrefixFrom(a, a.BitLen())
	}
	return hostOf(a)
}

// source finds an address, or makes room for it. It is nil where there is none; called with mu held.
func (c *crowd) source(a netip.Addr, now time.Time) *source {
	key := c.key(a)
	if s := c.sources[key]; s != nil {
		return s
	}
	if len(c.sources) >= maxSources && now.Sub(c.swept) >= time.Second {
		c.swept = now
		for k, s := range c.sources {
			if now.Sub(s.heard) > sourceRests && now.After(s.until) {
				delete(c.sources, k)
			}
		}
	}
	if len(c.sources) >= maxSources && !c.named(a.Unmap()) {
		return nil
	}
	s := &source{pace: c.newPace(), heard: now}
	c.sources[key] = s
	return s
}

// drops says why a datagram of this address is not heard now; "" = it is.
func (c *crowd) drops(a netip.Addr) string {
	switch {
	case !c.mayHear(a):
		return dropFlood
	case c.banned(a):
		return dropBanned
	}
	return ""
}

func (c *crowd) mayHear(a netip.Addr) bool {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	s, pace := c.source(a, now), c.others
	if s != nil {
		s.heard, pace = now, s.pace
	}
	return pace == nil || pace.AllowN(now, 1)
}

// slows says how long a connection waits before its next message is read: what is not read, its sender has to keep.
func (c *crowd) slows(a netip.Addr) time.Duration {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	s, pace := c.source(a, now), c.others
	if s != nil {
		s.heard, pace = now, s.pace
	}
	if pace == nil {
		return 0
	}
	return pace.ReserveN(now, 1).DelayFrom(now)
}

// sparedFor is how long an address goes on being heard, or not, whatever calls end. One that comes counts at once.
const sparedFor = 100 * time.Millisecond

// banned is asked for each datagram, and the address of one may be forged: it does not look at all calls each time.
func (c *crowd) banned(a netip.Addr) bool {
	now, calls := time.Now(), c.calls.Load()
	c.mu.Lock()
	s := c.sources[c.key(a)]
	if s == nil || !now.Before(s.until) {
		c.mu.Unlock()
		return false
	}
	spared, known := s.spared, s.calls == calls && now.Sub(s.asked) < sparedFor
	c.mu.Unlock()
	if known {
		return !spared
	}
	spared = c.spare(a)
	c.mu.Lock()
	s.spared, s.asked, s.calls = spared, now, calls
	c.mu.Unlock()
	return !spared
}

// failed counts a message or handshake that a neighbour does not send: one now and then is nothing, many are somebody who searches.
// It is for what came over a connection: in a datagram, anybody can write anybody's address.
func (c *crowd) failed(a netip.Addr) {
	if c.limits.FailuresPerMinute < 0 || !a.IsValid() || !c.tooOften(a) || c.spare(a) {
		return
	}
	c.mu.Lock()
	if s := c.sources[c.key(a)]; s != nil {
		s.until = time.Now().Add(banTime)
	}
	c.mu.Unlock()
	c.log.Warn("an address that keeps failing is not heard for a while", "source", a, "for", banTime)
}

func (c *crowd) tooOften(a netip.Addr) bool {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.source(a, now)
	if s == nil {
		return false
	}
	if now.Sub(s.since) >= failingTime {
		s.failed, s.since = 0, now
	}
	s.failed++
	if s.failed < c.limits.FailuresPerMinute {
		return false
	}
	s.failed = 0
	return true
}

// bans is how many addresses are not heard now.
func (c *crowd) bans() (n int) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sources {
		if now.Before(s.until) {
			n++
		}
	}
	return n
}

// failing are the refusals of what searchers send: what is no SIP, and what we do not offer. Numbers that nobody has are not among
// them: those a trunk sends us were dialled by people whom it does not know.
func failing(code int) bool {
	switch code {
	case 400, 405, 416, 505:
		return true
	}
	return false
}
