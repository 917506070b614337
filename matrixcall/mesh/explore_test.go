package mesh

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// TestReachableStatesKeepTheInvariants walks breadth first through what can happen to a mesh with one peer (and a
// second one that comes and goes), in every order, and checks after every step:
//
//   - a wanted peer is connected, or has a deadline, or rests until it moves;
//   - an active mesh has a deadline, or a write of its entry under way;
//   - at most one connection per peer, opened and closed in pairs, and nothing is asked of a closed one;
//   - at most one live call id per peer: while a connection is open, the peer gets its call id and no other, but for the
//     refusal of another;
//   - a call's seq begins at 0 and never skips; only an identical invite or answer repeats one;
//   - PeerConnected and PeerGone come in pairs;
//   - what waits (early signals, gaps, orphans, queues, candidates) stays within its bounds;
//   - a call is never terminated while the last known state lists somebody who is not ours and has not expired;
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
	live      map[Device]string // the call id of the open connection, once it was used
	pending   map[Conn][]string // results owed by the shell, in order
	entry     []string          // results of state writes owed
	next      map[Conn]int      // next seq
	first     map[Conn]string   // the invite as sent
	connected map[Peer]bool
	conf      string
	quiet     bool // leaving has begun
	done      bool
	call      string // last invite of ours
	rosters   int    // stays, theirs and ours: no client uses a call id in two
	roster    RoomState
	now       time.Time
}

func (o observer) clone() observer {
	o.open, o.next, o.first = maps.Clone(o.open), maps.Clone(o.next), maps.Clone(o.first)
	o.connected, o.live = maps.Clone(o.connected), maps.Clone(o.live)
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
			open: map[Conn]Device{}, pending: map[Conn][]string{}, next: map[Conn]int{}, first: map[Conn]string{},
			connected: map[Peer]bool{}, live: map[Device]string{}, conf: "conf",
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
		delete(o.live, o.open[e.Conn])
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
	case Moved:
		if e.From != o.conf || len(o.open) > 0 {
			return fmt.Errorf("moves from %s with %d connections open, was in %s", e.From, len(o.open), o.conf)
		}
		o.conf = e.To.ID
		o.roster = RoomState{}
	case TerminateCall:
		for _, mem := range o.roster.Members {
			if !mem.Ours && mem.Expires.After(o.now) {
				return fmt.Errorf("%s is in the call", mem.Peer)
			}
		}
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
	if sig.ConfID != o.conf || sig.SenderSession == "" || sig.DestSession == "" || sig.CallID == "" {
		return fmt.Errorf("incomplete envelope")
	}
	if err := o.oneCall(e); err != nil {
		return err
	}
	if !sig.Kind.numbered() {
		if sig.Seq != NoSeq {
			return fmt.Errorf("has a seq")
		}
		return nil
	}
	conn, open := o.connOf(e.To)
	if live := o.live[e.To]; !open || live != "" && live != sig.CallID {
		if sig.Seq != 0 {
			return fmt.Errorf("a refusal with seq %d, want 0", sig.Seq)
		}
		return nil
	}
	said := describeSend(Send{To: e.To, Signal: sig}) + sig.SDP.Text
	switch {
	case e.Repeat:
		if o.first[conn] != said || o.next[conn] != 1 {
			return fmt.Errorf("repeats what is not the only thing said: %q", o.first[conn])
		}
		return nil
	case sig.Seq != o.next[conn]:
		return fmt.Errorf("seq %d, want %d", sig.Seq, o.next[conn])
	}
	o.next[conn]++
	if sig.Kind == Invite || sig.Kind == Answer {
		o.first[conn] = said
	}
	if sig.Kind == Invite {
		o.call = sig.CallID
	}
	return nil
}

func (o *observer) connOf(dev Device) (Conn, bool) {
	for conn, other := range o.open {
		if other == dev {
			return conn, true
		}
	}
	return 0, false
}

// oneCall checks that a device hears of one call at a time. Hangup and Reject of another are refusals.
func (o *observer) oneCall(e Send) error {
	if k := e.Signal.Kind; k == Hangup || k == Reject {
		return nil
	}
	_, open := o.connOf(e.To)
	switch live := o.live[e.To]; {
	case !open:
		return fmt.Errorf("sent without a connection")
	case live == "":
		o.live[e.To] = e.Signal.CallID
	case live != e.Signal.CallID:
		return fmt.Errorf("the call with it is %s", live)
	}
	return nil
}

// bounded checks that what waits stays within its bounds.
func (s State) bounded() error {
	bytes := 0
	for _, e := range s.early {
		bytes += e.sig.size()
	}
	if len(s.early) > maxEarly || bytes > maxEarlyBytes {
		return fmt.Errorf("%d early signals, %d bytes", len(s.early), bytes)
	}
	if len(s.peers) > s.cfg.MaxPeers || len(s.refused) > len(s.members) || len(s.lost) > len(s.members) {
		return fmt.Errorf("%d peers, %d refused, %d lost of %d members", len(s.peers), len(s.refused), len(s.lost), len(s.members))
	}
	for _, p := range s.peers {
		if n := p.buffered(); n > maxBufferedPeer || len(p.tracks) > maxTracks {
			return fmt.Errorf("%s: %d bytes wait, %d tracks", p.Peer, n, len(p.tracks))
		}
		for _, t := range p.tracks {
			if len(t.held) > maxHeld || len(t.orphans) > maxOrphans || len(t.seen) > maxSeen {
				return fmt.Errorf("%s: held %d, orphans %d, seen %d", p.Peer, len(t.held), len(t.orphans), len(t.seen))
			}
		}
		if l := p.link; l != nil && (len(l.waiting) > maxCandidates || len(l.queue) > maxQueue || len(l.streams) > maxStreams) {
			return fmt.Errorf("%s: %d candidates, %d queued, %d streams", p.Peer, len(l.waiting), len(l.queue), len(l.streams))
		}
	}
	return nil
}

// holds checks a state.
func (w world) holds() error {
	s := w.state
	if err := s.bounded(); err != nil {
		return err
	}
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
	if s.phase == leaving {
		return append(hs, w.rosters()...)
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

// rosters lists what the room's state may say.
func (w world) rosters() []happening {
	roster := func(peers ...Peer) RoomState {
		ev := RoomState{ConfID: w.state.cfg.ConfID, Members: []Member{{Peer: Peer{w.state.cfg.Self, w.state.session}, Ours: true}}}
		for _, p := range peers {
			ev.Members = append(ev.Members, Member{Peer: p, Expires: epoch.Add(10 * time.Hour)})
		}
		return ev
	}
	return []happening{
		{name: "nobody", event: roster()},
		{name: "alice", event: roster(alice)},
		{name: "alice again", event: roster(again)},
		{name: "alice and bob", event: roster(alice, bob)},
		{name: "ended", event: RoomState{ConfID: w.state.cfg.ConfID, Ended: true}},
		{name: "elsewhere", event: RoomState{ConfID: w.state.cfg.ConfID, Elsewhere: Conference{ID: "conf" + strconv.Itoa(w.state.moves)}}},
	}
}

func (w world) peerHappenings() []happening {
	hs := append(
		w.rosters(),
		happening{name: "mute", event: Mute{Muted: true}},
		happening{name: "unmute", event: Mute{}},
		happening{name: "assert", event: Assert{Identity{ID: "tel:1"}}},
	)
	stay := fmt.Sprint(w.obs.rosters)
	hs = append(hs, happening{name: "late a", event: AnsweredLate{alice.Device, "a" + stay}})
	for _, call := range []string{"a" + stay, "z" + stay, w.obs.call} {
		for _, kind := range []Kind{Invite, Answer, Negotiate, Hangup, Reject, Metadata} {
			if call == "" || kind == Invite && call == w.obs.call || kind == Reject && call != w.obs.call {
				continue
			}
			sig := Signal{
				Kind: kind, ConfID: w.state.cfg.ConfID, CallID: call, SenderSession: "s1", DestSession: w.state.session, Seq: NoSeq,
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

// FuzzHostileSignals lets the fuzzer say what two members and a stranger send, field by field: any kind, call, session,
// number, size. The shell keeps its part. Four bytes make one signal.
func FuzzHostileSignals(f *testing.F) {
	f.Add([]byte("\x01\x02\x03\x04\x01\x00\x00\x00\x02\x10\x20\x30"))
	f.Add([]byte(strings.Repeat("\x11\x00\x07\xff", 200)))
	f.Fuzz(func(t *testing.T, script []byte) {
		hostileWalk(t, script[:min(len(script), 4*400)])
	})
}

func TestHostileSignalsKeepTheInvariants(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 2))
		script := make([]byte, 4*400)
		for i := range script {
			script[i] = byte(r.IntN(256))
		}
		hostileWalk(t, script)
	}
}

func hostileWalk(t *testing.T, script []byte) {
	w := newWorld(Device{"@kim:x", "GHOST"})
	w = w.take(t, happening{name: "join", event: Join{}})
	w = w.take(t, happening{name: "written", event: entryResult(w.obs.entry[0], "")})
	w = w.take(t, happening{name: "members", event: RoomState{ConfID: "conf", Members: []Member{
		{Peer: alice, Expires: epoch.Add(10 * time.Hour)},
		{Peer: bob, Expires: epoch.Add(10 * time.Hour)},
		{Peer: Peer{Device{"@zoe:x", "Z"}, "s1"}, Expires: epoch.Add(10 * time.Hour)},
	}}})
	for ; len(script) >= 4; script = script[4:] {
		w = w.take(t, happening{name: "hostile", event: hostileSignal([4]byte(script), w.state.session)})
		switch next := w.happenings(); {
		case len(next) == 0:
			return
		case script[3]&0xf0 == 0: // the shell does what it owes, or time passes
			i := int(script[3]&0xf) % len(next)
			if name := next[i].name; name != "leave" && name != "abandon" && name != "ended" {
				w = w.take(t, next[i])
			}
		case script[3]&0xf0 == 0x10:
			w.now = w.now.Add(time.Duration(script[3]&0xf) * time.Second)
		}
	}
}

// hostileSignal makes a signal of four bytes: who and what, which call and session, which number and size, the rest.
func hostileSignal(b [4]byte, session string) Received {
	from := []Device{alice.Device, bob.Device, {"@zoe:x", "Z"}, {"@eve:x", "E" + fmtDevice(b[1])}}[b[0]&3]
	calls := []string{"a1", "a2", "m1", "m2", "z1", "z2", "", strings.Repeat("c", 255)}
	sig := Signal{
		Kind: Kind(b[0]>>2) % (Replaces + 1), ConfID: "conf", CallID: calls[b[1]&7],
		SenderSession: []string{"s1", "s1", "s2", ""}[b[1]>>3&3], DestSession: []string{session, session, "", "other"}[b[1]>>5&3],
		Seq:        []int{NoSeq, 0, 1, 2, 3, 7, 1 << 30, int(b[3])}[b[2]&7],
		Candidates: make([]Candidate, int(b[2]>>3&3)*21), Reason: []string{"", ReasonICEFailed, ReasonReplaced, "?"}[b[3]&3],
		Selected: []string{"", "GHOST", "OTHER"}[int(b[3])%3],
		SDP:      SDP{Type: []string{"offer", "answer", "", "pranswer"}[b[3]>>2&3]},
	}
	sig.SDP.Text = []string{"", "v=0\nm=audio\n", strings.Repeat("m=audio\n", 40), strings.Repeat("a=x\n", 12000)}[b[2]>>5&3]
	if b[2]&0x80 != 0 {
		sig.Streams = make(map[string]Stream)
		for n := range int(b[3]) % 20 {
			sig.Streams[strconv.Itoa(n)] = Stream{Purpose: UserMedia, AudioMuted: new(n%2 == 0)}
		}
	}
	return Received{From: from, Signal: sig}
}

func fmtDevice(b byte) id.DeviceID { return id.DeviceID(strconv.Itoa(int(b))) }

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
	for n := range 100 {
		if w.obs.done {
			return
		}
		hs := w.happenings()
		if n%2 == 1 { // every other time the shell does what it owes
			hs = slices.DeleteFunc(hs, func(h happening) bool { _, roster := h.event.(RoomState); return roster })
		}
		if len(hs) == 0 {
			break
		}
		w = w.take(t, hs[(n/2+len(hs)-1)%len(hs)])
	}
	if !w.obs.done {
		t.Fatalf("%s: never done", strings.Join(w.trail, ", "))
	}
}

// take is what follows from a happening.
func (w world) take(t *testing.T, h happening) world {
	next := world{now: w.now.Add(h.after), obs: w.obs.clone(), trail: append(slices.Clip(w.trail), h.name)}
	next.obs.now = next.now
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
		if ev.ConfID == w.obs.conf {
			w.obs.roster = ev
		}
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
		fmt.Fprintf(&b, "lost %v %s %v\n", lost, in(l.until), l.unheard)
	}
	for _, p := range s.sortedPeers() {
		fmt.Fprintf(&b, "peer %s %d %s %v %v %v %s %s\n", p.Peer, p.tries, in(p.next), p.resting, p.spoke, p.silent, in(p.warn), in(p.watch))
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
	fmt.Fprintf(&b, "counted %v %s\n", s.counted, in(s.proof))
	fmt.Fprintf(&b, "entry %v %v %d %v\n", w.obs.entry, s.met, s.moves, len(s.leftBehind))
	return b.String()
}
