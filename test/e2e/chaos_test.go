//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"trunkline/test/lab"
)

// The bridge is killed at seeded moments, and the next one is started at once. A call that was answered goes on and is heard
// both ways; one that was not, or that somebody was leaving, may have ended, on both sides. Afterwards nothing is left of it.
// `make chaos` asks for more rounds; a seed repeats a run as far as two processes that race can be made to.
func TestCallsSurviveKillsAtAnyMoment(t *testing.T) {
	rounds, seed := number("TRUNKLINE_CHAOS_ROUNDS", len(sooner)), number("TRUNKLINE_CHAOS_SEED", 1)
	some := wanted(t)
	c := newChaos(t, time.Duration(rounds)*20*time.Second+4*time.Minute)
	c.begin()
	all := plan(rounds, uint64(seed), some)
	c.prepare(all)
	began, failed := time.Now(), 0
	for i, k := range all {
		if !t.Run(fmt.Sprintf("%03d %s", i+1, k.phase), func(t *testing.T) { c.round(t, k) }) {
			if failed++; failed == maxFailures {
				break
			}
		}
	}
	t.Logf("%.1f s a round\n%s", time.Since(began).Seconds()/float64(rounds), c.report())
	if failed == 0 {
		c.endure(rounds)
	}
	if median := c.usualGap(); rounds >= manyRounds && median > mostMedian {
		t.Errorf("half of the calls that were up are back after %v or later, want %v at most", median, mostMedian)
	}
	if failed > 0 {
		t.Errorf("%d rounds failed; make chaos SEED=%d ROUNDS=%d repeats them", failed, seed, rounds)
	}
}

// number reads a setting of `make chaos`.
func number(variable string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(variable)); err == nil {
		return n
	}
	return otherwise
}

const (
	maxFailures  = 5                      // no more rounds are tried then
	manyRounds   = 50                     // enough for a median
	mostMedian   = 2 * time.Second        // in the middle of the gaps, the process's start included
	heardAgain   = 15 * time.Second       // everybody hears everybody so soon after the next start, or the call has ended
	clearedAfter = 12 * time.Second       // all of a call is gone so soon after its end
	buffered     = 500 * time.Millisecond // sound of the dead process is not heard for longer
	chaosGap     = 200 * time.Millisecond // allowed in the second that is judged: what is lost to a busy machine
	judgedFor    = 2 * time.Second        // at most, however long it took to get there
	quieter      = 15                     // dB by which the own voice must be below the right one
)

// wanted are the phases that `make chaos` asks for, all if it says nothing.
func wanted(t *testing.T) []phase {
	t.Helper()
	name, err := regexp.Compile(os.Getenv("TRUNKLINE_CHAOS_PHASE"))
	if err != nil {
		t.Fatal(err)
	}
	some := slices.DeleteFunc(slices.Clone(phases), func(p phase) bool { return !name.MatchString(string(p)) })
	if len(some) == 0 {
		t.Fatalf("no phase is called like %s; there are %q", name, phases)
	}
	return some
}

// chaos is one long call of hydrogen and js-sdk to which a phone comes, round by round.
type chaos struct {
	*scene
	desk  *lab.Phone
	phone *lab.Phone // whose call it is: the desk's, a phone's that is called, or the one's behind the carrier
	call  string
	away  map[*lab.Client]bool // clients that are not in the call now
	held  bool                 // the phone was on hold in its last call
	setup time.Duration        // from dialling to the answer, when nobody is killed
	rest  lab.Vitals           // of a bridge without calls
	tally map[phase]*tally

	since  time.Time            // what allHeard looked for last
	first  map[string]time.Time // by line, and when it has heard that
	dead   <-chan struct{}      // closed when this round's process is, or the round is over
	aside  sync.WaitGroup       // what is done meanwhile in this round
	killed time.Time            // when that was
	asking asking
	orders orders
	onward onward
	lobby  lobby
	behind behind
	timers timers
	moves  moves
}

// newChaos begins the call and lets the phone come once, undisturbed.
func newChaos(t *testing.T, limit time.Duration) *chaos {
	t.Helper()
	s, users := newSceneFor(t, limit, lab.RoomOptions{}, "alice", "0bob")
	s.leavesNothing()
	c := &chaos{scene: s, away: map[*lab.Client]bool{}, tally: map[phase]*tally{}}
	s.must(bed.Bridge().Stop())
	s.must(bed.Bridge().Start(s.ctx))
	c.rests()
	for i, kind := range []lab.Kind{lab.Hydrogen, lab.JSSDK} {
		c.away[s.pageSaying(kind, users[i], bed.Steady(i))] = true
	}
	c.desk = s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
	c.phone = c.desk
	c.assemble()
	c.dialIn()
	c.setup = s.await(c.phone, lab.CallEstablished, s.dialed, heardAgain).At.Sub(s.dialed)
	c.awaitSound(s.dialed)
	c.hangUp()
	c.clears(true)
	t.Logf("undisturbed, a call is answered %d ms after dialling", c.setup.Milliseconds())
	return c
}

// prepare lets each kind of call that is wanted come once, undisturbed.
func (c *chaos) prepare(all []kill) {
	c.t.Helper()
	wanted := func(so func(phase) bool) bool {
		return slices.ContainsFunc(all, func(k kill) bool { return so(k.phase) })
	}
	is := func(one phase) func(phase) bool { return func(p phase) bool { return p == one } }
	if wanted(is(typesPIN)) {
		c.prepareAsking()
	}
	if wanted(func(p phase) bool { return isCalled(p) || p == isTransferred || p == handsOver }) {
		c.prepareOrders()
	}
	if wanted(is(waitsInLobby)) {
		c.prepareLobby()
	}
	if wanted(is(handsOver)) {
		c.prepareHandingOver()
	}
	if wanted(moved) {
		c.prepareMoves()
	}
	if wanted(overCarrier) {
		c.prepareCarrier()
	}
}

// rests notes what the bridge holds on to while nobody is in the call: the calls of the background.
func (c *chaos) rests() {
	c.t.Helper()
	c.eventually("nothing changes any more", heardAgain, func() bool {
		before := c.rest
		var err error
		c.rest, err = bed.Bridge().Vitals(c.ctx)
		c.must(err)
		time.Sleep(300 * time.Millisecond)
		return areUp(c.rest, c.background()) && c.rest.Beyond(before) == "" && before.Beyond(c.rest) == ""
	})
}

// areUp tells whether so many calls are all that there is: each with a row, a ghost and a pair of ports.
func areUp(v lab.Vitals, calls int) bool {
	return v.Rows["leg"] == calls && v.Rows["membership"] == calls && v.Gauges["trunkline_sip_rtp_port_pairs"] == float64(calls)
}

// round is one kill and what comes of it.
func (c *chaos) round(t *testing.T, k kill) {
	defer func(all *scene) { c.scene = all }(c.scene)
	c.scene = c.in(t)
	dead := make(chan struct{})
	died := sync.OnceFunc(func() { close(dead) })
	c.phone, c.dead, c.timers.peer = c.desk, dead, nil
	defer c.tidy()
	defer c.aside.Wait()
	defer died() // if the round ends before
	from, to, acted := c.act(k)
	at := from + time.Duration(k.moment*float64(to-from))
	time.Sleep(at)
	killed := time.Now()
	c.killed = killed
	up, ok := c.came(lab.CallEstablished)
	answered := ok && up.Before(killed) || c.timers.peer != nil
	bed.Bridge().Kill()
	died()
	c.must(bed.Bridge().Start(c.ctx))
	ready := time.Since(killed)
	c.must(<-acted)
	since := killed
	if k.phase == onHold {
		time.Sleep(time.Until(killed.Add(buffered)))
		since = time.Now()
		c.must(c.phone.Resume(c.ctx))
	}
	alive, since := c.awaitFate(k.phase, since)
	sound := "ended"
	if k.phase == renegotiates {
		defer c.renew(c.pages[1])
	}
	switch {
	case alive:
		sound = c.judge(k.phase, since)
		c.isThereOnce()
		if overCarrier(k.phase) {
			c.isRegistered()
		}
		if c.timers.peer != nil {
			sound += c.isRefreshed(k.phase)
		}
		c.hangUp()
	case k.phase == isTransferred:
		sound = c.talksElsewhere()
	case k.phase == phoneMoves:
		sound = c.hasMoved()
	case answered && k.phase != phoneHangsUp && k.phase != carrierHangsUp && len(c.present()) > 0:
		t.Errorf("the call was answered %s before the kill, and has ended", killed.Sub(up))
		if c.timers.peer != nil {
			c.sippEnds(c.timers.peer)
		}
	}
	c.count(k.phase, alive)
	c.clears(alive)
	t.Logf("killed %d ms into it, the next one was ready %d ms later: %s", at.Milliseconds(), ready.Milliseconds(), sound)
}

// act brings the call into its phase, and says between which moments from now to kill. What it has begun by then is over
// when the channel has said how it went.
func (c *chaos) act(k kill) (from, to time.Duration, acted <-chan error) {
	nothing := make(chan error, 1)
	nothing <- nil
	if k.phase == roomIsRung {
		c.leave(c.present()...)
		c.dialed = time.Now()
		c.must(c.phone.Dial(c.ctx, c.room.Ring))
		return 0, 2 * time.Second, nothing
	}
	c.assemble()
	c.moves.back = k.phase == carrierMoves && k.who > 0
	switch k.phase {
	case typesPIN:
		return c.typePIN()
	case waitsInLobby:
		return c.enterLobby()
	case isOrdered, calleeRings, calleeAnswers, calleeTalks, carrierIsCalled:
		return c.order(k.phase)
	case phoneRefreshes, weRefresh:
		return c.refresh(k)
	case carrierCalls, carrierTalks, carrierHangsUp, carrierMoves, carrierPicksUp:
		return c.callThroughCarrier(k.phase)
	}
	c.dialIn()
	switch k.phase {
	case beforeAnswer:
		return 0, c.setup * 9 / 10, nothing
	case whileAnswer:
		return c.setup * 9 / 10, c.setup*12/10 + 50*time.Millisecond, nothing
	}
	c.answered(c.phone)
	c.awaitSound(c.dialed)
	clients := c.pages
	if k.who < len(clients) {
		clients = clients[k.who : k.who+1]
	}
	switch k.phase {
	case onHold:
		c.hold()
		return 0, 700 * time.Millisecond, nothing
	case renegotiates:
		return 0, 500 * time.Millisecond, c.meanwhile(func() error { return c.pages[1].Camera(c.ctx, true) })
	case phoneHangsUp:
		return 0, 150 * time.Millisecond, c.meanwhile(func() error { return c.phone.Hangup(c.ctx) })
	case isTransferred:
		return c.transfer()
	case phoneMoves:
		return c.move()
	case handsOver:
		return c.handOver()
	case clientHangsUp:
		return 0, 400 * time.Millisecond, c.meanwhile(func() error { c.leave(clients...); return nil })
	}
	return 0, time.Second, nothing
}

// present returns the clients that are in the call.
func (c *chaos) present() []*lab.Client {
	return slices.DeleteFunc(slices.Clone(c.pages), func(p *lab.Client) bool { return c.away[p] })
}

// assemble lets all clients be in one call, a new one if the last one is over.
func (c *chaos) assemble() {
	c.t.Helper()
	for _, p := range c.pages {
		c.must(p.Forget(c.ctx))
		if !c.away[p] {
			continue
		}
		c.awaitOut(p)
		calls, _, err := bed.CallState(c.ctx, c.owner, c.room.ID)
		c.must(err)
		if !slices.Contains(calls, c.call) {
			c.call, err = p.CreateCall(c.ctx, c.room.ID)
			c.must(err)
		}
		c.must(p.Join(c.ctx, c.room.ID, c.call))
		delete(c.away, p)
	}
}

// renew loads the page of a client again that had its camera on: js-sdk lets go of no clone of that, and encoding them all takes a
// processor after some rounds.
func (c *chaos) renew(p *lab.Client) {
	c.t.Helper()
	c.leave(p)
	c.awaitOut(p)
	c.must(p.Reload(c.ctx))
}

// awaitOut waits until the homeserver knows that a client has left. One that joins before may be out for good: js-sdk does not wait.
func (c *chaos) awaitOut(p *lab.Client) {
	c.t.Helper()
	c.eventually("the client has left", 10*time.Second, func() bool { return c.inCall(p.User) == 0 })
}

func (c *chaos) leave(clients ...*lab.Client) {
	for _, p := range clients {
		c.away[p] = true
		if err := p.Leave(c.ctx); err != nil {
			c.t.Error(err)
		}
	}
}

func (c *chaos) dialIn() {
	c.t.Helper()
	c.dialed, c.held = time.Now(), false
	c.must(c.phone.Dial(c.ctx, c.room.Number))
}

// hold puts the call on hold, from the phone.
func (c *chaos) hold() {
	c.t.Helper()
	c.held = true
	c.must(c.phone.Hold(c.ctx))
}

// came returns when an event of the phone's last call came.
func (c *chaos) came(event string) (at time.Time, ok bool) {
	for _, ev := range c.phone.Events() {
		if ev.Type == event && ev.At.After(c.dialed) {
			return ev.At, true
		}
	}
	return at, false
}

func (c *chaos) hangUp() {
	c.t.Helper()
	now := time.Now()
	if c.timers.peer != nil {
		c.must(bed.Say(c.ctx, c.owner, c.room.ID, "!sip hangup"))
		c.sippEnds(c.timers.peer)
		return
	}
	c.must(c.phone.Hangup(c.ctx))
	c.await(c.phone, lab.CallClosed, now, 5*time.Second)
}

// line is one direction in which sound goes.
type line struct {
	to    string // who hears
	heard func() lab.Recording
	right *lab.Voice
	own   *lab.Voice
}

// lines are all lines of the call now; what is older than that moment need not be heard. baresip writes nothing down after a
// hold: that the phone hears again then is for the tests with a scripted phone.
func (c *chaos) lines(since time.Time) (all []line) {
	if c.timers.peer != nil {
		return c.echoes(since)
	}
	phone := func() lab.Recording {
		heard, err := c.phone.HeardByClock()
		if err != nil {
			return lab.Recording{} // nothing yet
		}
		return heard.Cut(since, time.Hour)
	}
	for _, p := range c.present() {
		page := func() lab.Recording {
			tracks, err := p.Heard(c.ctx, since)
			c.must(err)
			return lab.Mix(tracks...)
		}
		all = append(all, line{string(p.Kind), page, c.phone.Voice(), p.Voice()})
		if !c.held {
			all = append(all, line{"phone", phone, p.Voice(), c.phone.Voice()})
		}
	}
	return all
}

// allHeard returns when each line was heard that had been silent then, or soon after, if all were. After a hold it has been silent
// for long: a track that begins with the phone's voice has no silence of its own. A line is not listened to again: pages and we have
// better things to do than to go through long recordings for ever.
func (c *chaos) allHeard(since time.Time) (first []time.Time, ok bool) {
	if !c.since.Equal(since) {
		c.since, c.first = since, map[string]time.Time{}
	}
	for _, l := range c.lines(since) {
		name := l.to + " " + l.right.Name
		if _, known := c.first[name]; !known {
			again := lab.Recording.HeardAgain
			if c.held {
				again = lab.Recording.FirstHeard
			}
			at, ok := again(l.heard(), l.right, since)
			if !ok {
				return nil, false
			}
			c.first[name] = at
		}
		first = append(first, c.first[name])
	}
	return first, true
}

func (c *chaos) awaitSound(since time.Time) {
	c.t.Helper()
	c.eventually("all hear each other", heardAgain, func() bool { _, ok := c.allHeard(since); return ok })
}

// awaitFate waits until everybody hears everybody since that moment, or the phone's call has ended. Who is at the phone does
// what the next process asks for. A phone that is asked or waits before it may enter hears nobody until then, which is
// the moment that is returned.
func (c *chaos) awaitFate(p phase, since time.Time) (alive bool, from time.Time) {
	c.t.Helper()
	ended := func() bool { _, closed := c.came(lab.CallClosed); return closed }
	lives := func() bool { return len(c.present()) > 0 }
	if c.timers.peer != nil {
		ended = func() bool { return !c.timers.peer.Running() }
	}
	during, limit := func() {}, heardAgain
	switch {
	case isCalled(p):
		ended = c.orderIsOver
	case p == typesPIN:
		during = func() {
			c.typeAgain()
			if c.asking.typed.After(since) {
				since = c.asking.typed
			}
		}
	case p == waitsInLobby:
		during = func() {
			c.letInAgain()
			if c.lobby.waited.After(since) {
				since = c.lobby.waited
			}
		}
	case p == handsOver:
		during, ended, lives, limit = c.pickUpLate, c.noneIsLeft, c.oneIsLeft, heardAgain+2*commandIsLost
	case p == carrierPicksUp:
		ended, lives, limit = c.noneIsLeft, c.oneIsLeft, heardAgain+2*commandIsLost
	case moved(p):
		ended, lives, limit = c.moveIsOver, c.isBack, heardAgain+2*commandIsLost
		during = func() {
			if c.moves.again.After(since) {
				since = c.moves.again
			}
		}
	case p == isTransferred:
		during, ended, lives, limit = c.pickUpLate, c.transferIsOver, c.staysHere, heardAgain+2*commandIsLost
	}
	c.eventually("all hear each other, or the call has ended", limit, func() bool {
		during()
		if ended() {
			return true
		}
		if lives() {
			_, alive = c.allHeard(since)
		}
		return alive
	})
	return alive, since
}

// judge listens for a second or two and notes how long each line was dead.
func (c *chaos) judge(p phase, since time.Time) string {
	c.t.Helper()
	first, _ := c.allHeard(since)
	from := slices.MaxFunc(first, time.Time.Compare)
	until := judgeable(from)
	if longest := from.Add(judgedFor); until.After(longest) {
		until = longest
	}
	var all []string
	for i, l := range c.lines(from.Add(-time.Second)) {
		heard := l.heard()
		gap := first[i].Sub(since)
		all = append(all, fmt.Sprintf("%s hears %s after %d ms", l.to, l.right.Name, gap.Milliseconds()))
		c.at(p).gaps[l.to] = append(c.at(p).gaps[l.to], gap)
		if hole, at := heard.LongestGap(l.right, from, until); hole > chaosGap {
			c.t.Errorf("%s does not hear %s for %s, %s after it was back", l.to, l.right.Name, hole, at.Sub(from))
		}
		right, own, dirt := heard.VoiceLevel(l.right, from, until), heard.VoiceLevel(l.own, from, until), heard.DirtLevel(from, until)
		if own > right-quieter && own > dirt+quieter {
			c.t.Errorf("%s hears itself with %.0f dB and %s with %.0f dB", l.to, own, l.right.Name, right)
		}
		if dirt > right-quieter {
			c.t.Logf("%s hears %s with %.0f dB, and %.0f dB of what is no voice", l.to, l.right.Name, right, dirt)
		}
	}
	return strings.Join(all, ", ")
}

// counter is one of the bridge's metrics, of one with labels the sum.
func (c *chaos) counter(name string) float64 {
	c.t.Helper()
	n, err := bed.Bridge().Metric(c.ctx, name)
	c.must(err)
	return n
}

// isThereOnce checks that the call which goes on is one leg, one ghost and one pair of ports.
func (c *chaos) isThereOnce() {
	c.t.Helper()
	v, err := bed.Bridge().Vitals(c.ctx)
	c.must(err)
	if ghosts := len(c.ghosts()); !areUp(v, c.background()+1) || ghosts != 1 {
		c.t.Errorf("rows %v, gauges %v, %d ghosts; want one of each, beside the %d calls of the background", v.Rows, v.Gauges, ghosts, c.background())
	}
}

// clears waits until nothing is left of the call: no process has forgotten anything. Clients are told that the phone has
// gone by the process that served it to the end, else they notice by themselves, later.
func (c *chaos) clears(told bool) {
	c.t.Helper()
	left := ""
	defer func() {
		if left != "" {
			c.t.Logf("left behind: %s", left)
		}
	}()
	c.eventually("all of the call is gone", clearedAfter, func() bool {
		v, err := bed.Bridge().Vitals(c.ctx)
		c.must(err)
		left = v.Beyond(c.rest)
		if n := len(c.ghosts()); n > 0 {
			left += fmt.Sprintf("; %d ghosts in the room's call", n)
		}
		if c.moves.room != nil {
			if n := len(c.ghostsIn(c.moves.room.ID)); n > 0 {
				left += fmt.Sprintf("; %d ghosts in the other room's call", n)
			}
		}
		for _, p := range c.present() {
			if told && c.legs(p) > 0 {
				left += "; the ghost as " + string(p.Kind) + " sees it"
			}
		}
		return left == ""
	})
}

// meanwhile does something beside the round, which does not end before it, and hands over how it went.
func (c *chaos) meanwhile(do func() error) <-chan error {
	done := make(chan error, 1)
	c.aside.Go(func() { done <- do() })
	return done
}

// tidy makes the lab fit for the next round, however this one went.
func (c *chaos) tidy() {
	if !c.t.Failed() {
		return
	}
	c.explain()
	for _, p := range c.phones {
		_, _ = p.Hangup(c.ctx), p.Hangup(c.ctx) // there may be no call, or two
	}
	if c.timers.peer != nil { // does not hang up by itself
		_ = bed.Say(c.ctx, c.owner, c.room.ID, "!sip hangup all")
	}
	within(clearedAfter, func() bool {
		legs, err := bed.Bridge().Count(c.ctx, "SELECT count(*) FROM leg")
		return err == nil && legs <= c.background()
	})
	bed.Bridge().Kill()
	if err := bed.Bridge().Start(c.ctx); err != nil {
		c.t.Error(err)
	}
}

// tally is what became of the rounds of a phase.
type tally struct {
	alive, ended int
	gaps         map[string][]time.Duration // by who hears
}

func (c *chaos) at(p phase) *tally {
	if c.tally[p] == nil {
		c.tally[p] = &tally{gaps: map[string][]time.Duration{}}
	}
	return c.tally[p]
}

func (c *chaos) count(p phase, alive bool) {
	if alive {
		c.at(p).alive++
	} else {
		c.at(p).ended++
	}
}

// report is the distribution of the gaps: from the kill to sound again, or on hold from its end.
func (c *chaos) report() string {
	listeners := []string{"phone", string(lab.Hydrogen), string(lab.JSSDK)}
	var b strings.Builder
	fmt.Fprintf(&b, "%-21s %5s %5s", "gaps in ms", "alive", "ended")
	for _, who := range listeners {
		fmt.Fprintf(&b, " | %-9s p50   p95   max", who)
	}
	b.WriteString("\n")
	all := &tally{gaps: map[string][]time.Duration{}}
	row := func(name string, t *tally) {
		fmt.Fprintf(&b, "%-21s %5d %5d", name, t.alive, t.ended)
		for _, who := range listeners {
			if len(t.gaps[who]) == 0 {
				fmt.Fprintf(&b, " | %13s %5s %5s", "–", "–", "–")
				continue
			}
			ms := func(share float64) int64 { return quantile(t.gaps[who], share).Milliseconds() }
			fmt.Fprintf(&b, " | %13d %5d %5d", ms(0.5), ms(0.95), ms(1))
		}
		b.WriteString("\n")
	}
	for _, p := range phases {
		t := c.at(p)
		all.alive, all.ended = all.alive+t.alive, all.ended+t.ended
		for who, gaps := range t.gaps {
			all.gaps[who] = append(all.gaps[who], gaps...)
		}
		row(string(p), t)
	}
	row("all", all)
	return b.String()
}

// usualGap is the median of everybody's gaps in calls that were simply up.
func (c *chaos) usualGap() time.Duration {
	var all []time.Duration
	for _, p := range []phase{talking, renegotiates, calleeTalks, carrierTalks, carrierIsCalled} {
		for _, gaps := range c.at(p).gaps {
			all = append(all, gaps...)
		}
	}
	return quantile(all, 0.5)
}

// quantile is the smallest gap that so many of all do not exceed, 0 if there are none.
func quantile(gaps []time.Duration, share float64) time.Duration {
	if len(gaps) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(gaps))
	return sorted[max(0, int(share*float64(len(sorted))+0.999)-1)]
}
