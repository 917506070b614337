package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

// settled sees that nothing runs any more by the books, and how many calls were counted.
func (b *bed) settled(calls int) {
	b.t.Helper()
	var counted, running int
	row := b.process.bridge.store.Shared().QueryRow(b.t.Context(), "SELECT SUM(calls), SUM(running) + SUM(reserved) FROM usage WHERE scope = 'user'")
	if err := row.Scan(&counted, &running); err != nil {
		b.t.Fatal(err)
	}
	if counted != calls || running != 0 {
		b.t.Errorf("%d calls counted, %d running or reserved; want %d and none", counted, running, calls)
	}
}

func TestRingingPhoneOfAKilledProcessIsCancelledAndTheRoomTold(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	b.stop()
	doomed := b.startDoomed()
	alice := b.person("alice", member.Hydrogen, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.Ring(); err != nil {
		t.Fatal(err)
	}
	b.told("1001 rings.")
	kill(t, doomed)
	b.start()
	<-call.Done()
	if why := call.Ended(); !strings.Contains(why, "cancelled") {
		t.Errorf("the phone was ended by %q, want CANCEL", why)
	}
	b.told("Call to 1001: the bridge was restarted; try again.")
	b.clear()
	b.settled(1)
}

// The admin takes a trunk away while a phone rings there.
func TestRoomIsToldOfARingingPhoneWhoseTrunkIsGone(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	b.stop()
	doomed := b.startDoomed()
	alice := b.person("alice", member.Hydrogen, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.Ring(); err != nil {
		t.Fatal(err)
	}
	b.told("1001 rings.")
	kill(t, doomed)
	b.cfg.SIP.Trunks[0].Name = "another"
	b.start()
	b.told("Call to 1001: the bridge was restarted; try again.")
	b.clear()
	b.settled(1)
}

func TestCalledPhoneThatTalksOutlivesAKilledProcess(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	b.stop()
	doomed := b.startDoomed()
	w := b.pairWith(b.person("alice", member.JSSDK, true))
	b.says(w.alice, "!sip call 1001")
	w.call = b.called(p)
	if err := w.call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("1001 has answered.")
	w.ghost = b.ghosts()[0]
	w.alice.Says(sine(aliceHz, 48000, time.Second))
	w.call.Play(sine(phoneHz, 8000, longTone))
	w.await("both to hear each other", w.hearing)
	kill(t, doomed)
	w.silence()
	b.start()
	w.await("both to hear each other again", w.hearing)
	b.says(w.alice, "!sip who")
	b.told("1. 1001 talks for ")
	b.says(w.alice, "!sip hangup")
	<-w.call.Done()
	b.told("Call to 1001: over after ")
	b.clear()
	b.settled(1)
}

// forgotten sees that the room is told of an order that came to nothing, and that the phone never heard of it.
func (b *bed) forgotten(p *phone.Phone) {
	b.t.Helper()
	b.told("Call to 1001: the bridge was restarted; try again.")
	b.clear()
	b.settled(1)
	if n := p.Rung(); n != 0 {
		b.t.Errorf("the phone has heard of %d calls", n)
	}
}

// Before the INVITE, the phone must not hear of a call that is over.
func TestOrderOfAProcessKilledBeforeTheInviteIsForgotten(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	b.stop()
	doomed := b.startDoomed()
	alice := b.person("alice", member.Hydrogen, true)
	slow := b.hs.Break(&homeserver.Fault{Method: "POST", Path: "/join", Delay: patience}) // the ghost does not get into the room
	b.says(alice, "!sip call 1001")
	b.told("Calling 1001 …")
	b.await("the ghost to be on its way", func() bool { return slow.Hits() > 0 })
	kill(t, doomed)
	slow.Mend()
	b.start()
	b.forgotten(p)
}

// The row is there, and the notice is not: the room hears all the same what became of its wish.
func TestOrderOfAProcessKilledBeforeItsNoticeIsTold(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	b.stop()
	doomed := b.startDoomed()
	alice := b.person("alice", member.Hydrogen, true)
	b.says(alice, "!sip help") // so that the child knows the room
	b.told("!sip help")
	slow := b.hs.Break(&homeserver.Fault{Path: "/send/m.room.message", User: b.bot(), Delay: patience})
	b.says(alice, "!sip call 1001")
	b.await("the notice to be on its way", func() bool { return slow.Hits() > 0 })
	kill(t, doomed)
	slow.Mend()
	b.start()
	b.forgotten(p)
}

// TestOrderKilledAtAnyMoment kills the process at seeded moments between the command and some time of ringing. Whatever the
// moment, the phone is either not called or cancelled; nothing stays, and the books are right.
func TestOrderKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	rounds := 4
	if n, err := strconv.Atoi(os.Getenv("TRUNKLINE_ROUNDS")); err == nil {
		rounds = n
	}
	b, p := dialBed(t, func(c *config.Config) { c.Dialling.Limits = config.DialLimits{} })
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	t.Cleanup(func() { cancel(); group.Wait() })
	group.Go(func() {
		for ctx.Err() == nil {
			call, err := p.AwaitCall(ctx)
			if err != nil {
				return
			}
			_ = call.Ring() // or it was cancelled
		}
	})
	alice := b.person("alice", member.Hydrogen, true)
	chance := rand.New(rand.NewPCG(7, 11))
	for round := range rounds {
		at := time.Duration(round%4*400+chance.IntN(400)) * time.Millisecond // what leads to the INVITE takes about 700 ms
		if !t.Run(fmt.Sprint(round, " after ", at), func(t *testing.T) { b.orderKilledAfter(t, alice, p, at) }) {
			return
		}
	}
}

func (b *bed) orderKilledAfter(t *testing.T, alice *member.Member, p *phone.Phone, at time.Duration) {
	b.stop()
	doomed := b.startDoomed()
	rung := p.Rung()
	b.says(alice, "!sip call 1001")
	time.Sleep(at)
	kill(t, doomed)
	b.start()
	// The homeserver may deliver the command to this process only; then the phone is called by it, before this is done.
	answers := func() (n int) {
		for _, text := range b.boards() {
			if text == "There is no phone here." || strings.HasPrefix(text, "Phone 1 is hung up") {
				n++
			}
		}
		return n
	}
	before := answers()
	b.says(alice, "!sip hangup all")
	b.await("all commands to be carried out", func() bool { return answers() > before })
	b.clear()
	b.await("the phone to be free", func() bool { return !p.Busy() })
	t.Logf("the phone was called %d times", p.Rung()-rung)
	if n := b.process.bridge.phones.Stats().RTPPorts; n != 0 {
		t.Errorf("%d RTP ports are still in use", n)
	}
	var running int
	row := b.process.bridge.store.Shared().QueryRow(b.t.Context(), "SELECT COALESCE(SUM(running) + SUM(reserved), 0) FROM usage")
	if err := row.Scan(&running); err != nil || running != 0 {
		t.Errorf("%d running or reserved by the books, %v", running, err)
	}
}

// TestOrderKilledAfterEachEffect kills the process after the first effect of an order's leg, after the second, and so on, until
// the phone talks, which it does over its second trunk: the first one is full. Whenever that was: the phone is not called, or is let
// go, or talks on. None is up with nobody behind it, and the books of both trunks are right.
func TestOrderKilledAfterEachEffect(t *testing.T) {
	t.Parallel()
	b, full, p := spareBed(t, func(c *config.Config) { c.Dialling.Limits = config.DialLimits{} })
	b.turnsAway(full, 503)
	alice := b.person("alice", member.JSSDK, true)
	alice.Says(sine(aliceHz, 48000, time.Second))
	answered := b.picksUp(p)
	for n, confirmed := 1, false; !confirmed; n++ {
		confirmed = b.orderKilledAfterEffect(n, alice, p, answered)
		if t.Failed() {
			return
		}
		if n > 18 {
			t.Fatal("the answer of the phone was never confirmed")
		}
	}
}

// picksUp answers each call of the phone. The latest one is in what it returns.
func (b *bed) picksUp(p *phone.Phone) *atomic.Pointer[phone.Call] {
	var latest atomic.Pointer[phone.Call]
	ctx, cancel := context.WithCancel(b.t.Context())
	var group sync.WaitGroup
	b.t.Cleanup(func() { cancel(); group.Wait() })
	group.Go(func() {
		for ctx.Err() == nil {
			call, err := p.AwaitCall(ctx)
			if err != nil {
				return
			}
			latest.Store(call)
			group.Go(func() {
				if call.Ring() == nil && call.PickUp(ctx) == nil { // else it was cancelled
					call.Play(sine(phoneHz, 8000, longTone))
				}
			})
		}
	})
	return &latest
}

// orderKilledAfterEffect tells whether the process has lived to confirm the phone's answer.
func (b *bed) orderKilledAfterEffect(n int, alice *member.Member, p *phone.Phone, answered *atomic.Pointer[phone.Call]) (confirmed bool) {
	b.t.Helper()
	b.stop()
	answered.Store(nil)
	s := &story{talkers: b.pairWith(alice)}
	var output safeText
	cmd := b.childCommand()
	cmd.Env = append(cmd.Env, fmt.Sprint(childDies, "=", n))
	cmd.Stderr = &output
	s.run(cmd)
	defer func() {
		if b.t.Failed() {
			b.t.Logf("%d: the child's log:\n%s", n, output.String())
		}
	}()
	b.awaitChild()
	b.says(alice, "!sip call "+berlin)
	hears := func() bool {
		s.call = answered.Load()
		return s.call != nil && s.hearsAlice()
	}
	b.await("the child to die, or the phone to talk", func() bool { return s.isDead() || hears() })
	select {
	case <-s.dead:
	case <-time.After(2 * time.Second): // what is left to be done once the phone hears takes milliseconds
	}
	moment := diesAfter.FindString(output.String())
	confirmed = strings.Contains(moment, leg.AckPhone.String())
	if !s.isDead() { // it had less to do than the one before, whose row was written more often
		moment, confirmed = "the child dies after all effects", true
		_ = cmd.Process.Kill()
		<-s.dead
	}
	b.start()
	how := "the phone is free"
	b.await(moment+": talk, or a free phone and a told room", func() bool {
		s.call = answered.Load()
		if s.call == nil || s.call.Ended() != "" {
			return !p.Busy() && b.rows() == 0
		}
		ghosts := b.ghosts()
		if len(ghosts) != 1 {
			return false
		}
		if s.ghost = ghosts[0]; s.hearing() {
			how = "they talk"
			return true
		}
		return false
	})
	b.t.Logf("%d: %s: %s", n, moment, how)
	if confirmed && how != "they talk" {
		b.t.Errorf("%s: the phone was let go after its answer was confirmed", moment)
	}
	// The homeserver may deliver the command to this process only; then the phone is called by it, before this is done. Nothing
	// may be left that it would deliver to the next one.
	answers := func() (n int) {
		for _, text := range b.boards() {
			n += strings.Count(text, "There is no phone here.")
		}
		return n
	}
	b.says(alice, "!sip hangup all")
	b.clear()
	before := answers()
	b.says(alice, "!sip who")
	b.await("all commands to be carried out", func() bool { return answers() > before })
	b.await("the phone to be free", func() bool { return !p.Busy() })
	for _, trunk := range []string{"lab", "spare"} {
		if _, running := b.books(trunk); running != 0 {
			b.t.Errorf("%s: %d calls run over trunk %s by the books", moment, running, trunk)
		}
	}
	return confirmed
}
