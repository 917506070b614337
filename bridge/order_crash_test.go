package bridge

import (
	"strings"
	"testing"

	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
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
