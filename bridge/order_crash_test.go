package bridge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"trunkline/bridge/config"
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

func TestCalledPhoneThatTalksOutlivesAKilledProcess(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	b.stop()
	doomed := b.startDoomed()
	w := &talkers{bed: b, alice: b.person("alice", member.JSSDK, true)}
	b.says(w.alice, "!sip call 1001")
	w.call = b.called(p)
	if err := w.call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("1001 has answered.")
	w.ghost = b.ghosts()[0]
	w.alice.Says(sine(aliceHz, 48000, talkTime))
	w.call.Play(sine(phoneHz, 8000, 12*talkTime))
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

// Before the INVITE, the phone must not hear of a call that is over.
func TestOrderOfAProcessKilledBeforeTheInviteIsForgotten(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	b.stop()
	doomed := b.startDoomed()
	alice := b.person("alice", member.Hydrogen, true)
	slow := b.hs.Break(&homeserver.Fault{Path: "/join", Delay: patience}) // the ghost does not get into the room
	b.says(alice, "!sip call 1001")
	b.told("Calling 1001 …")
	b.await("the ghost to be on its way", func() bool { return slow.Hits() > 0 })
	kill(t, doomed)
	slow.Mend()
	b.start()
	b.told("Call to 1001: the bridge was restarted; try again.")
	b.clear()
	b.settled(1)
	if n := p.Rung(); n != 0 {
		t.Errorf("the phone has heard of %d calls", n)
	}
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
	b.says(alice, "!sip hangup all")
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
