package sip

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// TrunkState is what is known of a trunk that we register with or ask whether it lives.
type TrunkState struct {
	Trunk      string
	Asked      bool      // our first OPTIONS has had its answer, or none
	Down       bool      // it did not answer our last OPTIONS
	DownFor    error     // why it is taken for down; nil = it is not
	Registered time.Time // until when; zero = not, or not wanted
	Code       int       // of the last refused REGISTER, 0 = none
	Refused    error     // why the last REGISTER was in vain; nil = it was not
	Target     netip.AddrPort
}

const (
	registerFor  = 10 * time.Minute
	firstBackoff = 30 * time.Second // RFC 5626 §4.5
	lastBackoff  = 10 * time.Minute
	keepUDP      = 25 * time.Second // most NATs forget after 30 s
	keepStream   = 100 * time.Second
	pongTime     = 10 * time.Second // RFC 5626 §4.4.1
	livelyEnough = 2                // so many answers in a row, and the next one is expected
)

// watch keeps us registered with one trunk, asks it whether it lives, and keeps the way to it open. One goroutine runs
// it; others read state, good and route.
type watch struct {
	stack    *Stack
	trunk    *Trunk
	dialog   Dialog // of our REGISTERs: one Call-ID, rising numbers (RFC 3261 §10.2)
	cseq     uint32
	auth     auth
	expires  time.Duration
	keep     time.Duration // between keep-alives over a connection
	pong     time.Duration // in which each is answered by who answers them
	failures int
	kept     *guardedConn  // over which a keep-alive was sent that may be answered; nil = none
	ponged   uint32        // how many had been by then
	asked    chan struct{} // closed when the first REGISTER has had its answer, or none

	mu    sync.Mutex
	state TrunkState
	good  target   // the one that answered last
	route []string // Service-Route (RFC 3608)
}

func (s *Stack) newWatch(trunk *Trunk) *watch {
	w := &watch{stack: s, trunk: trunk, expires: trunk.RegisterFor, keep: keepStream, pong: pongTime, asked: make(chan struct{})}
	if w.expires <= 0 {
		w.expires = registerFor
	}
	w.state.Trunk = trunk.Name
	return w
}

// begin fills what needs bound sockets.
func (w *watch) begin() error {
	l, err := w.stack.outlet(w.trunk)
	if err != nil {
		return err
	}
	address := gosip.Uri{Scheme: "sip", User: userOf(w.trunk.Auth.Username), Host: w.trunk.domain()}
	domain := gosip.Uri{Scheme: "sip", Host: w.trunk.domain()}
	w.dialog = Dialog{
		CallID: strings.ToLower(newBranch()[7:]), LocalTag: newTag(), LocalURI: "<" + address.String() + ">",
		RemoteURI: "<" + address.String() + ">", RemoteTarget: domain.String(), Transport: l.transport, LocalSocket: l.addr,
		Contact: w.contact(w.stack.contact(w.trunk, l.transport, l.addr)), Info: Info{Trunk: w.trunk.Name},
	}
	w.stack.gate.regulars.come(w.dialog.CallID)
	return nil
}

// contact is one of ours under the name of the account.
func (w *watch) contact(ours string) string {
	return strings.Replace(ours, "sip:trunkline@", "sip:"+userOf(w.trunk.Auth.Username)+"@", 1)
}

// run serves until the stack ends. A binding stays when it does: the next process takes it over.
func (w *watch) run() {
	if err := w.begin(); err != nil {
		w.stack.log.Error("trunk is not watched", "trunk", w.trunk.Name, "err", err)
		return
	}
	registered := sync.OnceFunc(func() { close(w.asked) })
	var register, ping, keep, pong time.Time // when next; zero = never
	now := time.Now()
	if w.trunk.Register {
		register = now
	}
	if w.trunk.Ping > 0 {
		ping = now
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-w.stack.root.Done():
			return
		}
		now = time.Now()
		if !register.IsZero() && !now.Before(register) {
			wait := w.register() // it may take its time, and the wait is counted from its end
			register = time.Now().Add(wait)
			keep = w.nextKeep()
			registered()
		}
		if !ping.IsZero() && !now.Before(ping) {
			w.ping()
			ping = now.Add(w.trunk.Ping)
		}
		if !pong.IsZero() && !now.Before(pong) {
			if pong = (time.Time{}); !w.heardPong() {
				register = now
			}
		}
		if !keep.IsZero() && !now.Before(keep) {
			if keep = w.nextKeep(); !w.keepAlive() {
				register, pong = now, time.Time{} // the connection is gone, and with it the way to us
			} else if pong.IsZero() && w.kept != nil {
				pong = time.Now().Add(w.pong) // since now, much time may have gone by
			}
		}
		timer.Reset(time.Until(earliest(register, ping, keep, pong)))
	}
}

func earliest(times ...time.Time) time.Time {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

// targets finds the trunk, the place that answered last first.
func (w *watch) targets() ([]target, error) {
	ctx, cancel := context.WithTimeout(w.stack.root, lookupTimeout)
	defer cancel()
	return w.stack.locate(ctx, w.trunk)
}

// register makes or renews our binding, and says when to come back.
func (w *watch) register() time.Duration {
	targets, err := w.targets()
	code, asked, why := 0, time.Duration(0), err
	for _, t := range targets {
		var res *gosip.Response
		if res, err = w.ask(t); err != nil {
			why = err
			continue
		}
		if code = res.StatusCode; code < 300 {
			return w.registered(res, t)
		}
		why = &ResponseError{code, clip(res.Reason)}
		if h := headerOf(res, "Retry-After", ""); h != nil {
			asked = retryAfter(h.Value())
		}
		if code != 503 && code != 408 {
			break // another server would say the same
		}
	}
	w.failures++
	w.stack.counters.registerFailures.Add(1)
	wait := min(max(firstBackoff<<min(w.failures-1, 10), asked), lastBackoff) // RFC 3261 §21.5.4
	w.stack.log.Warn("registration refused or unanswered", "trunk", w.trunk.Name, "code", code, "err", err, "again", wait)
	w.mu.Lock()
	w.state.Code, w.state.Refused = code, why
	if time.Now().After(w.state.Registered) {
		w.state.Registered = time.Time{}
	}
	w.mu.Unlock()
	return wait
}

// ask sends REGISTER to one target, and again when it is challenged or the time is too short (§10.2.8, §10.3).
func (w *watch) ask(t target) (*gosip.Response, error) {
	req, err := w.request(gosip.REGISTER, t)
	if err != nil {
		return nil, err
	}
	req.AppendHeader(gosip.NewHeader("Expires", strconv.Itoa(int(w.expires.Seconds()))))
	w.auth.apply(req, w.trunk.Auth)
	for range maxAsk {
		res, err := w.stack.exchange(w.trunk, req)
		if err != nil {
			return nil, err
		}
		switch code := res.StatusCode; {
		case (code == 401 || code == 407) && w.auth.challenged(req, res, w.trunk.Auth):
		case code == 423 && w.longer(res):
			req.RemoveHeader("Expires")
			req.AppendHeader(gosip.NewHeader("Expires", strconv.Itoa(int(w.expires.Seconds()))))
		default:
			return res, nil
		}
		w.cseq++
		req = w.auth.again(req, w.cseq, w.trunk.Auth)
	}
	return nil, fmt.Errorf("REGISTER: asked %d times", maxAsk)
}

func (w *watch) request(method gosip.RequestMethod, t target) (*gosip.Request, error) {
	w.cseq++
	if w.dialog.turnTo(w.stack, t.transport) {
		w.dialog.Contact = w.contact(w.dialog.Contact)
	}
	req, err := w.dialog.request(w.stack, method, w.cseq)
	if err != nil {
		return nil, err
	}
	req.SetDestination(t.addr.String())
	return req, nil
}

// longer takes the time a registrar wants at least.
func (w *watch) longer(res *gosip.Response) bool {
	h := headerOf(res, "Min-Expires", "")
	if h == nil {
		return false
	}
	least := retryAfter(h.Value())
	if least <= w.expires {
		return false
	}
	w.expires = least
	return true
}

// registered reads how long the binding holds: of our own Contact, for others may be bound to the same address.
func (w *watch) registered(res *gosip.Response, t target) time.Duration {
	w.auth.accepted()
	expires := max(w.boundFor(res), 10*time.Second) // whatever it says, no storm
	var route []string
	for _, h := range res.GetHeaders("Service-Route") {
		route = append(route, splitAddresses(h.Value())...)
	}
	w.mu.Lock()
	first := w.state.Registered.IsZero()
	w.state.Registered, w.state.Code, w.state.Refused, w.state.Target = time.Now().Add(expires), 0, nil, t.addr
	w.good, w.route = t, route
	w.mu.Unlock()
	if first {
		w.stack.log.Info("registered", "trunk", w.trunk.Name, "target", t.addr, "expires", expires)
	}
	w.failures = 0
	return expires * 3 / 4
}

// boundFor is how long our binding holds. Others may be bound to the same address; but where none is ours, for something on the way has
// rewritten it, it is one of them, and holds for as long as the briefest at least.
func (w *watch) boundFor(res *gosip.Response) time.Duration {
	expires := w.expires
	if h := headerOf(res, "Expires", ""); h != nil {
		expires = retryAfter(h.Value())
	}
	own, _ := routeURI(w.dialog.Contact)
	port := func(u *gosip.Uri) uint16 { return cmpPort(uint16(u.Port), w.dialog.Transport) }
	var ours, all []time.Duration
	for _, h := range append(res.GetHeaders("Contact"), res.GetHeaders("m")...) {
		for _, one := range splitAddresses(h.Value()) {
			var uri gosip.Uri
			params := gosip.NewParams()
			if _, err := gosip.ParseAddressValue(one, &uri, &params); err != nil {
				continue
			}
			holds := expires
			if v, ok := params.Get("expires"); ok {
				holds = retryAfter(v)
			}
			if holds > 0 { // else it was just removed
				all = append(all, holds)
			}
			if strings.EqualFold(uri.Host, own.Host) && port(&uri) == port(&own) && uri.User == own.User {
				ours = append(ours, holds)
			}
		}
	}
	switch {
	case len(ours) > 0:
		return slices.Min(ours) // the others are of before, over another transport
	case len(all) > 0:
		return slices.Min(all)
	}
	return expires
}

// ping asks whether the trunk lives (RFC 3261 §11): any answer says so, but one that it is full or nobody is behind it.
func (w *watch) ping() {
	targets, err := w.targets()
	for _, t := range targets {
		var res *gosip.Response
		var req *gosip.Request
		if req, err = w.request(gosip.OPTIONS, t); err != nil {
			break
		}
		if res, err = w.stack.exchange(w.trunk, req); err != nil {
			continue
		}
		if code := res.StatusCode; code == 408 || code == 503 {
			err = &ResponseError{code, statusText(code)}
			continue
		}
		w.alive(t, nil)
		return
	}
	w.alive(target{}, err)
}

func (w *watch) alive(t target, err error) {
	down := err != nil
	w.mu.Lock()
	changed := down != w.state.Down
	w.state.Asked, w.state.Down, w.state.DownFor = true, down, err
	if !down {
		w.state.Target, w.good = t.addr, t
	}
	w.mu.Unlock()
	if changed {
		w.stack.log.Warn("trunk state changed", "trunk", w.trunk.Name, "down", down, "err", err)
	}
}

func (w *watch) nextKeep() time.Time {
	if cmp.Or(w.good.transport, w.dialog.Transport) == UDP {
		return time.Now().Add(keepUDP)
	}
	return time.Now().Add(w.keep)
}

// keepAlive sends a double CRLF to where we are registered (RFC 5626 §3.5.1; over UDP it only keeps a NAT's mind). It is
// false when there is no connection any more.
func (w *watch) keepAlive() bool {
	w.mu.Lock()
	to := w.good
	bound := !w.state.Registered.IsZero()
	w.mu.Unlock()
	if !bound || !to.addr.IsValid() {
		return true
	}
	const ping = "\r\n\r\n"
	if to.transport == UDP {
		if l, ok := w.stack.listenerFor(Dialog{Transport: UDP, LocalSocket: w.dialog.LocalSocket}); ok {
			_, _ = l.packets.WriteTo([]byte(ping), net.UDPAddrFromAddrPort(to.addr)) // the next REGISTER will tell
		}
		return true
	}
	conn := w.stack.streamTo(to)
	if conn == nil {
		w.kept = nil
		return false
	}
	if w.kept == nil {
		w.kept, w.ponged = conn, conn.pongs.Load()
	}
	conn.asked.Add(1)
	if _, err := conn.Write([]byte(ping)); err != nil {
		w.kept = nil
		return false
	}
	return true
}

// heardPong looks for the answer to a keep-alive. It is false when there is none although the other side answers them: the connection
// is dead, whatever our socket says, and is given up (RFC 5626 §4.4.1). Many registrars never answer one; of those nothing is expected.
// What answers and what does not is judged of each connection: behind the next one there may be another server.
func (w *watch) heardPong() bool {
	conn := w.kept
	w.kept = nil
	switch {
	case conn == nil || w.stack.streamTo(w.good) != conn: // there is another one by now
		return true
	case conn.pongs.Load() != w.ponged:
		conn.lively++
		return true
	case conn.unasked.Load() || conn.lively < livelyEnough:
		conn.lively = 0
		conn.asked.Store(0) // what comes yet is no answer
		return true
	}
	w.stack.log.Warn("connection to a registrar is dead: a keep-alive got no answer", "trunk", w.trunk.Name, "peer", addrPortOf(conn.RemoteAddr()))
	conn.cut()
	for range 100 { // until sipgo has noticed
		if w.stack.streamTo(w.good) != conn || !pauseFor(w.stack.root, settle) {
			break
		}
	}
	return false
}

// prefer puts the target that answered last first: the others are for when it fails.
func (w *watch) prefer(targets []target) []target {
	w.mu.Lock()
	good := w.good
	w.mu.Unlock()
	if !slices.Contains(targets, good) {
		return targets
	}
	return startingWith(targets, good)
}

// Trunks says how the trunks are that we register with or ask whether they live.
func (s *Stack) Trunks() []TrunkState {
	var out []TrunkState
	for i := range s.config.Trunks {
		if w := s.watches[s.config.Trunks[i].Name]; w != nil {
			w.mu.Lock()
			out = append(out, w.state)
			w.mu.Unlock()
		}
	}
	return out
}

// down says that calls over this trunk would fail; routes are what they must carry.
func (s *Stack) down(trunk *Trunk) (down bool, routes []string) {
	w := s.watches[trunk.Name]
	if w == nil {
		return false, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.Down, w.route
}
