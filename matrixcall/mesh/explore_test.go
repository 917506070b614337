package mesh

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReachableStatesKeepTheInvariants walks breadth first through what can happen to a mesh with one peer (and a
// second one that comes and goes), in every order, and checks after every step:
//
//   - a wanted peer is connected, or has a deadline, or rests until it moves;
//   - an active mesh has a deadline, or a write of its entry under way;
//   - at most one connection per peer, opened and closed in pairs, and nothing is asked of a closed one;
//   - a call's seq begins at 0 and never skips; only an identical invite repeats one;
//   - PeerConnected and PeerGone come in pairs;
//   - after leaving nothing is sent, and Done is said once, last.
func TestReachableStatesKeepTheInvariants(t *testing.T) {
	for _, self := range []Device{{"@_sip:x", "GHOST"}, {"@zed:x", "GHOST"}} {
		t.Run(string(self.User), func(t *testing.T) {
			states, steps := explore(t, self, exploreLimit())
			t.Logf("%d states, %d steps", states, steps)
			if states < 1000 {
				t.Errorf("only %d states reached; the world has become too small to say anything", states)
			}
		})
	}
}

func exploreLimit() int {
	if testing.Short() {
		return 2000
	}
	return 12000
}

// world is a state with what an observer knows: what a real shell and real peers would know too.
type world struct {
	state State
	now   time.Time
	obs   observer
	trail []string
}

// observer sees only effects.
type observer struct {
	open      map[Conn]Device
	pending   map[Conn][]string // results owed by the shell, in order
	entry     []string          // results of state writes owed
	next      map[string]int    // by call: next seq
	first     map[string]string // by call: the invite as sent
	connected map[Peer]bool
	quiet     bool // leaving has begun
	done      bool
	call      string // last invite of ours
	rosters   int    // stays, theirs and ours: no client uses a call id in two
}

func (o observer) clone() observer {
	o.open, o.next, o.first = maps.Clone(o.open), maps.Clone(o.next), maps.Clone(o.first)
	o.connected = maps.Clone(o.connected)
	pending := make(map[Conn][]string, len(o.pending))
	for c, p := range o.pending {
		pending[c] = slices.Clone(p)
	}
	o.pending = pending
	o.entry = slices.Clone(o.entry)
	return o
}

func newWorld(self Device) world {
	return world{
		state: New(Config{Self: self, ConfID: "conf", Session: "g", CallPrefix: "m", StreamID: "stream", Created: true}),
		now:   epoch,
		obs: observer{
			open: map[Conn]Device{}, pending: map[Conn][]string{}, next: map[string]int{}, first: map[string]string{},
			connected: map[Peer]bool{},
		},
	}
}

// observe checks the effects of one step.
func (o *observer) observe(effects []Effect) error {
	for _, e := range effects {
		if o.done {
			return fmt.Errorf("%v after Done", e)
		}
		if err := o.one(e); err != nil {
			return fmt.Errorf("%T%+v: %w", e, e, err)
		}
	}
	return nil
}

func (o *observer) one(e Effect) error {
	switch e := e.(type) {
	case Open:
		for conn, dev := range o.open {
			if dev == e.Peer.Device {
				return fmt.Errorf("connection %d to it is still open", conn)
			}
		}
		o.open[e.Conn] = e.Peer.Device
	case CreateOffer:
		return o.ask(e.Conn, "offer")
	case CreateAnswer:
		return o.ask(e.Conn, "answer")
	case ApplyAnswer:
		return o.ask(e.Conn, "applied")
	case AddCandidates:
		return o.ask(e.Conn, "")
	case Rollback:
		return o.ask(e.Conn, "")
	case Close:
		if err := o.ask(e.Conn, ""); err != nil {
			return err
		}
		delete(o.open, e.Conn)
		delete(o.pending, e.Conn)
	case Send:
		return o.send(e)
	case PutMember:
		o.rosters++
		o.entry = append(o.entry, "put "+e.Session)
	case RemoveMember:
		o.quiet = true
		o.entry = append(o.entry, "remove")
		if len(o.open) > 0 {
			return fmt.Errorf("leaves with open connections %v", o.open)
		}
	case TerminateCall:
		o.entry = append(o.entry, "terminate")
	case PeerConnected:
		if o.connected[e.Peer] {
			return fmt.Errorf("connected twice")
		}
		o.connected[e.Peer] = true
	case PeerGone:
		if !o.connected[e.Peer] {
			return fmt.Errorf("was not connected")
		}
		delete(o.connected, e.Peer)
	case Done:
		o.done = true
		if len(o.open)+len(o.connected) > 0 {
			return fmt.Errorf("open %v, connected %v", o.open, o.connected)
		}
	}
	return nil
}

func (o *observer) ask(conn Conn, result string) error {
	if _, ok := o.open[conn]; !ok {
		return fmt.Errorf("connection %d is not open", conn)
	}
	if result != "" {
		o.pending[conn] = append(o.pending[conn], result)
	}
	return nil
}

func (o *observer) send(e Send) error {
	if o.quiet {
		return fmt.Errorf("sent after leaving")
	}
	sig := e.Signal
	if sig.ConfID != "conf" || sig.SenderSession == "" || sig.DestSession == "" || sig.CallID == "" {
		return fmt.Errorf("incomplete envelope")
	}
	if !sig.Kind.numbered() {
		if sig.Seq != NoSeq {
			return fmt.Errorf("has a seq")
		}
		return nil
	}
	key := sig.CallID
	said := describeSend(Send{To: e.To, Signal: sig}) + sig.SDP.Text
	switch {
	case e.Repeat:
		if o.first[key] != said || o.next[key] != 1 {
			return fmt.Errorf("repeats what is not the only thing said: %q", o.first[key])
		}
		return nil
	case sig.Seq != o.next[key]:
		return fmt.Errorf("seq %d, want %d", sig.Seq, o.next[key])
	}
	o.next[key]++
	if sig.Kind == Invite {
		o.first[key] = said
		o.call = sig.CallID
	}
	return nil
}

// holds checks a state.
func (w world) holds() error {
	s := w.state
	deadline := s.Deadline()
	if (s.active() || s.phase == leaving) && deadline.IsZero() && !s.entry.writing {
		return fmt.Errorf("%s without a deadline", s.phase)
	}
	if !s.active() {
		return nil
	}
	for dev, mem := range s.members {
		if mem.Ours || !mem.Expires.After(w.now) {
			continue
		}
		p := s.peers[dev]
		switch {
		case p == nil:
			return fmt.Errorf("%s is wanted and no peer", dev)
		case p.connected() || p.resting || !p.deadline(true).IsZero():
		default:
			return fmt.Errorf("%s has nothing to wait for", dev)
		}
	}
	return nil
}

func (s State) active() bool { return s.phase == joining || s.phase == joined }

// happening is something that may happen next.
type happening struct {
	name  string
	event Event
	after time.Duration
}

// happenings lists what may happen in a world.
func (w world) happenings() []happening {
	s, o := w.state, w.obs
	var hs []happening
	add := func(name string, ev Event) { hs = append(hs, happening{name: name, event: ev}) }
	if s.phase == idle {
		add("join", Join{})
		return hs
	}
	if d := s.Deadline(); !d.IsZero() {
		hs = append(hs, happening{"tick", Tick{}, max(0, d.Sub(w.now))})
	}
	if len(o.entry) > 0 {
		for _, err := range []string{"", "no"} {
			add(o.entry[0]+" "+err, entryResult(o.entry[0], err))
		}
	}
	if !s.active() {
		return hs
	}
	add("leave", Leave{})
	add("abandon", Abandon{})
	for _, conn := range slices.Sorted(maps.Keys(o.open)) {
		hs = append(hs, connHappenings(conn, o.pending[conn])...)
	}
	return append(hs, w.peerHappenings()...)
}

func entryResult(asked, err string) Event {
	switch asked {
	case "remove":
		return MemberWritten{Removed: true, Err: err}
	case "terminate":
		return CallWritten{Err: err}
	}
	return MemberWritten{Session: strings.TrimPrefix(asked, "put "), Err: err}
}

func connHappenings(conn Conn, pending []string) []happening {
	hs := []happening{
		{name: fmt.Sprint("up ", conn), event: ConnState{conn, Up}},
		{name: fmt.Sprint("disconnected ", conn), event: ConnState{conn, Disconnected}},
		{name: fmt.Sprint("failed ", conn), event: ConnState{conn, Failed}},
	}
	if len(pending) == 0 {
		return hs
	}
	var ev Event
	switch pending[0] {
	case "offer":
		ev = OfferReady{conn, fmt.Sprint("offer ", conn)}
	case "answer":
		ev = AnswerReady{conn, "answer", Audio{Out: true}}
	case "applied":
		ev = AnswerApplied{conn, Audio{Out: true}}
	}
	return append(hs,
		happening{name: fmt.Sprint(pending[0], " ", conn), event: ev},
		happening{name: fmt.Sprint("broken ", conn), event: ConnFailed{conn, "broken"}})
}

var (
	alice = Peer{Device{"@alice:x", "A"}, "s1"}
	again = Peer{Device{"@alice:x", "A"}, "s2"}
	bob   = Peer{Device{"@bob:x", "B"}, "s1"}
)

func (w world) peerHappenings() []happening {
	roster := func(peers ...Peer) RoomState {
		ev := RoomState{Members: []Member{{Peer: Peer{w.state.cfg.Self, w.state.session}, Ours: true}}}
		for _, p := range peers {
			ev.Members = append(ev.Members, Member{Peer: p, Expires: epoch.Add(10 * time.Hour)})
		}
		return ev
	}
	hs := []happening{
		{name: "nobody", event: roster()},
		{name: "alice", event: roster(alice)},
		{name: "alice again", event: roster(again)},
		{name: "alice and bob", event: roster(alice, bob)},
		{name: "ended", event: RoomState{Ended: true}},
		{name: "mute", event: Mute{Muted: true}},
		{name: "unmute", event: Mute{}},
		{name: "assert", event: Assert{Identity{ID: "tel:1"}}},
	}
	stay := fmt.Sprint(w.obs.rosters)
	for _, call := range []string{"a" + stay, "z" + stay, w.obs.call} {
		for _, kind := range []Kind{Invite, Answer, Negotiate, Hangup, Reject, Metadata} {
			if call == "" || kind == Invite && call == w.obs.call || kind == Reject && call != w.obs.call {
				continue
			}
			sig := Signal{
				Kind: kind, ConfID: "conf", CallID: call, SenderSession: "s1", DestSession: w.state.session, Seq: NoSeq,
				SDP: SDP{"offer", "v"}, Reason: "user_busy",
			}
			if kind == Answer {
				sig.SDP.Type = "answer"
			}
			if kind == Hangup {
				sig.Reason = ReasonICEFailed
			}
			hs = append(hs, happening{name: fmt.Sprint(kind, " ", call), event: Received{alice.Device, sig}})
			if kind == Negotiate {
				sig.SDP.Type = "answer"
				hs = append(hs, happening{name: fmt.Sprint(kind, "-answer ", call), event: Received{alice.Device, sig}})
			}
		}
	}
	return hs
}

// TestLongWalksKeepTheInvariants goes where breadth does not reach.
func TestLongWalksKeepTheInvariants(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		self := Device{"@_sip:x", "GHOST"}
		if seed%2 == 1 {
			self.User = "@zed:x"
		}
		walk(t, self, 400, func(n int) int {
			if r.IntN(3) == 0 && n > 1 {
				return 1 // whatever the shell owes, or the clock
			}
			return r.IntN(n)
		})
	}
}

// FuzzStep lets the fuzzer choose what happens.
func FuzzStep(f *testing.F) {
	f.Add([]byte{0, 1, 3, 4, 5, 6, 7, 8, 9})
	f.Fuzz(func(t *testing.T, choices []byte) {
		walk(t, Device{"@kim:x", "GHOST"}, min(len(choices), 300), func(n int) int {
			choice := int(choices[0]) % n
			choices = choices[1:]
			return choice
		})
	})
}

// walk goes through a number of happenings.
func walk(t *testing.T, self Device, length int, choose func(n int) int) {
	w := newWorld(self)
	for range length {
		hs := slices.DeleteFunc(w.happenings(), func(h happening) bool { return h.name == "leave" || h.name == "abandon" || h.name == "ended" })
		if len(hs) == 0 {
			return
		}
		w = w.take(t, hs[choose(len(hs))])
	}
	if w.state.phase == idle {
		return
	}
	if w.state.active() {
		w = w.take(t, happening{name: "leave", event: Leave{}})
	}
	for range 100 {
		if w.obs.done {
			return
		}
		hs := w.happenings()
		if len(hs) == 0 {
			break
		}
		w = w.take(t, hs[len(hs)-1])
	}
	if !w.obs.done {
		t.Fatalf("%s: never done", strings.Join(w.trail, ", "))
	}
}

// take is what follows from a happening.
func (w world) take(t *testing.T, h happening) world {
	next := world{now: w.now.Add(h.after), obs: w.obs.clone(), trail: append(slices.Clip(w.trail), h.name)}
	next.settle(h.event)
	var effects []Effect
	next.state, effects = Step(w.state, next.now, h.event)
	if err := next.obs.observe(effects); err != nil {
		t.Fatalf("%s: %v", strings.Join(next.trail, ", "), err)
	}
	if err := next.holds(); err != nil {
		t.Fatalf("%s: %v", strings.Join(next.trail, ", "), err)
	}
	return next
}

func explore(t *testing.T, self Device, limit int) (states, steps int) {
	start := newWorld(self)
	seen := map[string]bool{fingerprint(start): true}
	queue := []world{start}
	for len(queue) > 0 && len(seen) < limit {
		w := queue[0]
		queue = queue[1:]
		before := fingerprint(w)
		for _, h := range w.happenings() {
			steps++
			next := w.take(t, h)
			if fp := fingerprint(next); !seen[fp] {
				seen[fp] = true
				queue = append(queue, next)
			}
		}
		if after := fingerprint(w); after != before {
			t.Fatalf("%s: Step changed the state it was given:\n%s\n%s", strings.Join(w.trail, ", "), before, after)
		}
	}
	return len(seen), steps
}

// settle takes the results that an event is from what the shell owes.
func (w *world) settle(ev Event) {
	pop := func(conn Conn) { w.obs.pending[conn] = w.obs.pending[conn][1:] }
	switch ev := ev.(type) {
	case OfferReady:
		pop(ev.Conn)
	case AnswerReady:
		pop(ev.Conn)
	case AnswerApplied:
		pop(ev.Conn)
	case ConnFailed:
		pop(ev.Conn)
	case RoomState:
		w.obs.rosters++
	case MemberWritten, CallWritten:
		w.obs.entry = w.obs.entry[1:]
	}
}

// fingerprint is a state without what only grows: times count from now, calls and connections from the last.
func fingerprint(w world) string {
	var b strings.Builder
	s := w.state
	in := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.Sub(w.now).String()
	}
	fmt.Fprintf(&b, "%s %v %s %s %v %s %s %d %d\n", s.phase, s.muted, in(s.until), in(s.entry.next), s.entry.writing,
		s.entry.session, s.session, s.entry.tries, s.people)
	for _, e := range s.early {
		fmt.Fprintf(&b, "early %s %s %s %s\n", e.from, e.sig.Kind, e.sig.CallID, in(e.until))
	}
	for _, mem := range s.sortedMembers() {
		fmt.Fprintf(&b, "member %s\n", mem.Peer)
	}
	for _, mem := range s.sortedMembers() {
		l, lost := s.lost[mem.Peer]
		fmt.Fprintf(&b, "lost %v %s\n", lost, in(l.until))
	}
	for _, p := range s.sortedPeers() {
		fmt.Fprintf(&b, "peer %s %d %s %v %s %s\n", p.Peer, p.tries, in(p.next), p.resting, in(p.warn), in(p.watch))
		if l := p.link; l != nil {
			fmt.Fprintf(&b, "link %s %v %s %s %s %s %s %v %v %d %v %s %d %v\n", l.phase, l.inviter, in(l.deadline),
				in(l.repeat), l.neg, in(l.negUntil), in(l.reoffer), l.asked, l.audio, len(l.queue), l.dirty,
				in(l.restart), l.seq, strings.HasPrefix(l.call, "m"))
			fmt.Fprintf(&b, "owed %v\n", w.obs.pending[l.conn])
		}
		for _, t := range p.tracks {
			fmt.Fprintf(&b, "track %v %d %d\n", t.over, len(t.orphans), len(t.held))
		}
	}
	fmt.Fprintf(&b, "entry %v\n", w.obs.entry)
	return b.String()
}
