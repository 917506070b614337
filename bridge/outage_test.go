package bridge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"trunkline/bridge/config"
	"trunkline/db"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
	"trunkline/internal/testbed/postgres"
)

// onPostgres moves the bed's bridge to a PostgreSQL of its own.
func (b *bed) onPostgres() *postgres.Cluster {
	b.t.Helper()
	c, address := newDatabase(b.t)
	b.stop()
	b.cfg.Database.Address = address
	b.start()
	b.t.Cleanup(b.stop) // before the cluster goes
	return c
}

func newDatabase(t *testing.T) (*postgres.Cluster, string) {
	t.Helper()
	c := postgres.New(t)
	address, err := c.CreateDatabase("trunkline")
	if err != nil {
		t.Fatal(err)
	}
	return c, address
}

func TestCallsOutliveTheDatabase(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.onPostgres()
	w := b.talkers(member.JSSDK)
	ends := b.dial(b.phone("2"), goodNumber)
	if err := c.StopServer(); err != nil {
		t.Fatal(err)
	}
	b.await("the bridge not to be ready", func() bool { return b.process.bridge.Ready(b.ctx()) != nil })
	begun := time.Now()
	_, err := b.phone("3").Dial(b.ctx(), b.sip, goodNumber)
	if refused, ok := errors.AsType[*phone.StatusError](err); !ok || refused.Code != 503 || refused.RetryAfter == "" {
		t.Errorf("a new call while the database is away = %+v; want 503 with Retry-After", err)
	}
	if took := time.Since(begun); took > databasePatience+patience/4 {
		t.Errorf("it was refused after %v", took)
	}
	if dir, err := w.call.Reinvite(b.ctx(), "sendonly"); err != nil || dir != "recvonly" {
		t.Errorf("hold = %q, %v", dir, err)
	}
	if dir, err := w.call.Reinvite(b.ctx(), "sendrecv"); err != nil || dir != "sendrecv" {
		t.Errorf("back from hold = %q, %v", dir, err)
	}
	if err := ends.Hangup(b.ctx()); err != nil {
		t.Error(err)
	}
	b.await("the ghost of the call that ended to go", func() bool { return len(b.ghosts()) == 1 })
	b.await("both to hear each other", w.hearing)
	bob := b.person("bob", member.Hydrogen, true) // takes encrypted signalling only, in a session that cannot be stored now
	bobHears := func() bool { return loud(bob.Heard(w.ghost).PCM, phoneHz, 48000) }
	b.await("bob to hear the phone", bobHears)
	if err := c.StartServer(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.await("the bridge to be ready again", func() bool { return b.process.bridge.Ready(b.ctx()) == nil })
	b.await("the writes to be done", func() bool { return b.process.bridge.journal.Stats().Waiting == 0 })
	history, err := b.process.bridge.store.History(b.ctx(), 10)
	if err != nil || len(history) == 0 || history[0].Cause != "phone hung up" {
		t.Errorf("history = %+v, %v; want the call that ended during the outage", history, err)
	}
	if n := b.rows(); n != 2 {
		t.Errorf("%d rows, want the leg that is up and its membership", n)
	}
	b.dial(b.phone("3"), goodNumber)
	// What was said in bob's session meanwhile is in the tables, else the next process could not go on in it.
	b.stop()
	bob.Forget()
	b.start()
	b.await("bob to hear the phone again", bobHears)
	w.leave()
}

// Who orders a call meanwhile is told why there is none, and it comes to no phone later.
func TestNoCallIsPlacedWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	c, address := newDatabase(t)
	b, p := dialBed(t, func(c *config.Config) { c.Database.Address = address })
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip who") // so that the bot is in the room
	b.told("There is no phone here.")
	if err := c.StopServer(); err != nil {
		t.Fatal(err)
	}
	b.await("the bridge not to be ready", func() bool { return b.process.bridge.Ready(b.ctx()) != nil })
	b.says(alice, "!sip call 1001")
	b.told("can't reach its database")
	if err := c.StartServer(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.await("the bridge to be ready again", func() bool { return b.process.bridge.Ready(b.ctx()) == nil })
	b.says(alice, "!sip call 1002")
	if to := b.called(p).Invite().Recipient.User; to != "1002" || p.Rung() != 1 {
		t.Errorf("%d calls, one for %s; want the one that was ordered after the outage", p.Rung(), to)
	}
}

// The database goes again when a starting process has opened it, and has not yet read whose calls it resumes.
func TestStartWaitsForADatabaseThatGoesAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.onPostgres()
	w := b.talkers(member.JSSDK)
	b.stop()
	w.silence()
	began := make(chan error, 1)
	b.startWith(func(*Bridge) {
		if err := c.StopServer(); err != nil {
			t.Fatal(err)
		}
		before := b.said.count("waiting for the database")
		go func() {
			for b.said.count("waiting for the database") < before+2 && b.ctx().Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
			began <- c.StartServer(b.ctx())
		}()
	})
	if err := <-began; err != nil {
		t.Fatal(err)
	}
	w.back(time.Now())
	w.clean()
}

// What happened while the database was away is not lost because an admin restarts the bridge in the middle of it.
func TestStopWhileTheDatabaseIsAwayWaitsForIt(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	c := b.onPostgres()
	b.process.bridge.awayPatience = time.Minute // a server takes its time to start on a busy machine
	w := b.talkers(member.JSSDK)
	ends := b.dial(b.phone("2"), goodNumber)
	if err := c.StopServer(); err != nil {
		t.Fatal(err)
	}
	b.await("the bridge not to be ready", func() bool { return b.process.bridge.Ready(b.ctx()) != nil })
	if err := ends.Hangup(b.ctx()); err != nil {
		t.Error(err)
	}
	b.await("its ghost to go", func() bool { return len(b.ghosts()) == 1 })
	b.process.stop()
	select {
	case <-b.process.over:
		t.Fatal("the calls were let go although nobody could resume them")
	case <-time.After(time.Second):
	}
	_, before := w.call.Packets()
	b.await("sound for the phone to go on", func() bool { _, n := w.call.Packets(); return n > before+10 })
	if err := c.StartServer(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.stop()
	w.silence()
	begun := time.Now()
	b.start()
	w.back(begun)
	history, err := b.process.bridge.store.History(b.ctx(), 10)
	if err != nil || len(history) != 1 || history[0].Cause != "phone hung up" {
		t.Errorf("history = %+v, %v; want the call that ended during the outage", history, err)
	}
	w.clean()
}

// Who wants calls to end with the process wants it at once. That they are over is written when the database is back.
func TestStopThatEndsCallsDoesSoWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	b := makeBed(t)
	c, address := newDatabase(t)
	b.cfg.Database.Address = address
	b.cfg.Calls.OnStop = config.StopEnds
	b.startWith(func(br *Bridge) { br.awayPatience = time.Minute }) // a server takes its time to start on a busy machine
	t.Cleanup(b.stop)
	w := b.talkers(member.JSSDK)
	if err := c.StopServer(); err != nil {
		t.Fatal(err)
	}
	b.await("the bridge not to be ready", func() bool { return b.process.bridge.Ready(b.ctx()) != nil })
	b.process.stop()
	b.await("the phone to be hung up on", func() bool { return w.call.Ended() != "" })
	if err := w.alice.AwaitGone(b.ctx(), w.ghost); err != nil {
		t.Error(err)
	}
	select {
	case <-b.process.over:
		t.Fatal("the process went although the database does not know that the call is over")
	case <-time.After(time.Second / 2):
	}
	if err := c.StartServer(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.stop()
	b.start()
	if n := len(b.process.bridge.liveLegs()) + b.rows(); n != 0 {
		t.Errorf("%d legs and rows are left of the call that ended", n)
	}
	if got := b.history(); len(got) != 1 || got[0] != "shutdown" {
		t.Errorf("history %q, want the call that ended with the process", got)
	}
}

// leave is clean where other phones are still in the call.
func (w *talkers) leave() {
	w.t.Helper()
	if err := w.call.Hangup(w.ctx()); err != nil {
		w.t.Error(err)
	}
	if err := w.alice.AwaitGone(w.ctx(), w.ghost); err != nil {
		w.t.Error(err)
	}
}

// neighbour is a second bridge of the same application service on another node: other SIP port, same database.
func (b *bed) neighbour(node string) *process {
	b.t.Helper()
	ports := freePorts(b.t, 2)
	cfg := b.cfg
	cfg.Database.Node = node
	cfg.AppService.Listen = fmt.Sprintf("127.0.0.1:%d", ports[0])
	sipAddress := fmt.Sprintf("127.0.0.1:%d", ports[1])
	cfg.SIP.Listen = []config.Listen{{Transport: "udp", Address: sipAddress}}
	made, err := New(b.t.Context(), cfg, b.reg, nil, b.log.With("node", node))
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	p := &process{bridge: made, stop: stop, over: make(chan error, 1)}
	go func() { p.over <- made.Run(ctx) }()
	b.t.Cleanup(func() {
		b.process = p
		b.stop()
	})
	b.await("the neighbour to be ready", func() bool { return made.Ready(b.t.Context()) == nil })
	return p
}

// A process dies and nobody starts it again. One on another node takes its calls over when the lease has lapsed, with
// addresses of its own: the phone is told by re-INVITE.
func TestAnotherNodeTakesOverWhenALeaseLapses(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.onPostgres()
	b.stop()
	doomed := b.startDoomed()
	other := b.neighbour("elsewhere")
	w := b.talkers(member.JSSDK)
	time.Sleep(3 * renewEvery)
	if n := len(other.bridge.liveLegs()); n != 0 {
		t.Fatalf("the neighbour took %d legs of a living process", n)
	}
	kill(t, doomed)
	killed := time.Now()
	w.silence()
	b.process = other // whose rows and ports are looked at from here on
	w.back(killed)
	w.await("the phone to be told the new address", func() bool { return w.call.Reinvited() == 1 })
	w.clean()
}

// A node loses the way to the database, and nothing else. Another one takes its call over; it finds that out in the room, and neither
// fights its successor for the ghost nor says a word to the phone. When it is back it is fenced.
func TestNodeThatIsCutOffFromTheDatabaseLetsItsSuccessorBe(t *testing.T) {
	t.Parallel()
	b := makeBed(t)
	_, address := newDatabase(t)
	wire := postgres.NewProxy(t, address)
	b.cfg.Database.Address = wire.Address
	b.start()
	t.Cleanup(b.stop)
	first := b.process
	t.Cleanup(func() { first.stop(); <-first.over })
	b.cfg.Database.Address = address
	other := b.neighbour("elsewhere")
	w := b.talkers(member.JSSDK)
	entries := func() (n int) {
		for _, ev := range b.hs.Timeline(b.room) {
			if ev.Type == "org.matrix.msc3401.call.member" && ev.StateKey != nil && *ev.StateKey == string(w.ghost) {
				n++
			}
		}
		return n
	}
	before := entries()
	leg := b.onlyLeg()
	wire.Cut()
	cut := time.Now()
	time.Sleep(db.LeaseLife - 2*renewEvery) // it was renewed up to one round before the cut
	if n := len(first.bridge.liveLegs()); n != 1 && !first.bridge.unsure() {
		t.Errorf("the first node has %d legs while its lease stands, want its one", n)
	}
	b.await("its successor to be in the room", func() bool { return entries() > before })
	b.await("the first node to let go of the call", func() bool { return len(first.bridge.liveLegs()) == 0 })
	t.Logf("let go %v after the cut", time.Since(cut))
	<-leg.ctx.Done()
	if n := first.bridge.phones.Stats().RTPPorts; n != 0 {
		t.Errorf("it has %d RTP ports still", n)
	}
	w.silence()
	b.process = other // whose rows and ports are looked at from here on
	w.back(cut)
	w.await("the phone to be told the new address", func() bool { return w.call.Reinvited() == 1 })
	if n := entries(); n != before+1 {
		t.Errorf("the ghost's entry was written %d times after the cut, want once: by the successor", n-before)
	}
	if err := first.bridge.Ready(b.ctx()); err == nil {
		t.Error("the first node says that it is ready")
	}
	streams := w.call.Streams()
	wire.Mend()
	select {
	case err := <-first.over:
		if !errors.Is(err, db.ErrFenced) {
			t.Errorf("Run of the first = %v, want ErrFenced", err)
		}
		first.over <- nil
	case <-time.After(patience):
		t.Fatal("the first node goes on when it is back")
	}
	w.await("both to hear each other still", w.hearing) // the machine may have been too busy for it this very moment
	if n, why := w.call.Streams(), w.call.Ended(); n != streams || why != "" {
		t.Errorf("the call was disturbed: the phone heard %d streams, want %d, and was ended by %q", n, streams, why)
	}
	w.clean()
}

// The phone's side ties the call to the address where it began (docs/deployment.md, Another node): both sides are told that it is over.
func TestCallThatDoesNotFollowToAnotherAddressIsEnded(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	w := b.talkers(member.JSSDK)
	w.call.RefusesOffers(403)
	b.stop()
	b.cfg.SIP.Listen = []config.Listen{{Transport: "udp", Address: fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)[0])}}
	b.cfg.RTP.Address = "127.0.0.2" // where the phone does not send its sound
	b.start()
	select {
	case <-w.call.Done():
	case <-time.After(3 * patience): // it is told of the new address more than once
		t.Fatal("the phone is not hung up on")
	}
	if why := w.call.Ended(); !strings.Contains(why, "cause=41") {
		t.Errorf("the phone was hung up on with %q, want Q.850 41", why)
	}
	if err := w.alice.AwaitGone(b.ctx(), w.ghost); err != nil {
		t.Error(err)
	}
	b.await("rows and ghosts to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
	if got := b.history(); len(got) != 1 || got[0] != "phone lost" {
		t.Errorf("history %q, want the phone lost", got)
	}
}

// A second process with the name of the first does not start, and the first is not disturbed.
func TestSecondProcessOnANodeRefusesToStart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	w := b.talkers(member.JSSDK)
	ports := freePorts(t, 2)
	cfg := b.cfg
	cfg.AppService.Listen = fmt.Sprintf("127.0.0.1:%d", ports[0])
	cfg.SIP.Listen = []config.Listen{{Transport: "udp", Address: fmt.Sprintf("127.0.0.1:%d", ports[1])}}
	second, err := New(t.Context(), cfg, b.reg, nil, b.log)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- second.Run(t.Context()) }()
	select {
	case err := <-over:
		if err == nil || !strings.Contains(err.Error(), "another process runs here") {
			t.Errorf("Run = %v", err)
		}
	case <-time.After(2 * patience):
		t.Fatal("the second process goes on")
	}
	w.await("both to hear each other still", w.hearing) // the machine may have been too busy for it this very moment
	if n, why := w.call.Streams(), w.call.Ended(); n != 1 || why != "" {
		t.Errorf("the first is disturbed: the phone heard %d streams, and was ended by %q", n, why)
	}
	w.clean()
}

// fence lets the bridge find out that its rows are another process's, and waits until it has let go of them.
func (b *bed) fence() {
	b.t.Helper()
	p := b.process
	if _, err := p.bridge.store.Shared().Exec(b.ctx(), "DELETE FROM lease WHERE owner = $1", p.bridge.run); err != nil {
		b.t.Fatal(err)
	}
	select {
	case err := <-p.over:
		if !errors.Is(err, db.ErrFenced) {
			b.t.Errorf("Run = %v, want ErrFenced", err)
		}
		p.over <- nil
	case <-time.After(patience):
		b.t.Fatal("the fenced process goes on")
	}
}

// Another process has adopted the rows of this one, which hung, say: it lets go without a word, and the call goes on there.
func TestFencedProcessLetsGoWithoutAWord(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	w := b.talkers(member.JSSDK)
	b.fence()
	if why := w.call.Ended(); why != "" || len(b.ghosts()) != 1 {
		t.Errorf("the fenced process ended the call (%q) or left the room: %d ghosts", why, len(b.ghosts()))
	}
	w.silence()
	begun := time.Now()
	b.start()
	w.back(begun)
	w.clean()
}

// A process was frozen, another one has adopted its calls, and it is told to stop as it thaws.
func TestFencedProcessThatIsToldToStopSaysNothing(t *testing.T) {
	t.Parallel()
	for _, how := range []string{config.StopEnds, config.StopSuspends} {
		t.Run(how, func(t *testing.T) {
			b := makeBed(t)
			b.cfg.Calls.OnStop = how
			b.start()
			t.Cleanup(b.stop)
			w := b.talkers(member.JSSDK)
			b.sql("DELETE FROM lease WHERE owner = $1", b.process.bridge.run)
			b.process.stop()
			select {
			case err := <-b.process.over:
				if !errors.Is(err, db.ErrFenced) {
					t.Errorf("Run = %v, want ErrFenced", err)
				}
				b.process.over <- nil
			case <-time.After(patience):
				t.Fatal("the fenced process goes on")
			}
			if why := w.call.Ended(); why != "" || len(b.ghosts()) != 1 {
				t.Errorf("the fenced process ended the call (%q) or left the room: %d ghosts", why, len(b.ghosts()))
			}
			w.silence()
			begun := time.Now()
			b.start()
			w.back(begun)
			w.clean()
		})
	}
}

func TestCallIsResumedAlthoughTheHomeserverComesLater(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	w := b.talkers(member.JSSDK)
	b.stop()
	away := b.hs.Break(&homeserver.Fault{Drop: true})
	made, err := New(b.t.Context(), b.cfg, b.reg, nil, b.log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	b.process = &process{bridge: made, stop: stop, over: make(chan error, 1)}
	over := b.process.over
	go func() { over <- made.Run(ctx) }()
	_, before := w.call.Packets()
	b.await("silence for the phone while the homeserver is away", func() bool { _, n := w.call.Packets(); return n > before+50 })
	w.alice.Forget()
	begun := time.Now()
	away.Mend()
	w.back(begun)
	w.clean()
}
