package bridge

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"trunkline/bridge/config"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

// spareBed is a dialBed with a second trunk, which leads to another phone, and is asked where the first one can't be.
func spareBed(t *testing.T, edit func(*config.Config)) (b *bed, best, spare *phone.Phone) {
	t.Helper()
	spare, err := phone.Open(phone.Config{Local: netip.MustParseAddr("127.0.0.1"), User: "spare"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { spare.Close() })
	b, best = dialBed(t, func(c *config.Config) {
		c.SIP.Trunks[0].Dials = []string{"+4930"}
		c.SIP.Trunks = append(c.SIP.Trunks, config.Trunk{
			Name: "spare", Networks: []string{"127.0.0.0/8"}, Proxy: spare.Addr().String(), Dials: []string{"+49"}, MaxCalls: 1,
		})
		if edit != nil {
			edit(c)
		}
	})
	return b, best, spare
}

// turnsAway refuses each call of a phone.
func (b *bed) turnsAway(p *phone.Phone, code int, header ...string) {
	var group sync.WaitGroup
	b.t.Cleanup(group.Wait)
	group.Go(func() {
		for {
			call, err := p.AwaitCall(b.t.Context())
			if err != nil {
				return
			}
			_ = call.Refuse(code, "Not Today", header...) // or the bridge is gone
		}
	})
}

// books are the calls that count for a trunk, and those of them that run.
func (b *bed) books(trunk string) (calls, running int) {
	b.t.Helper()
	row := b.process.bridge.store.Shared().QueryRow(b.t.Context(),
		"SELECT COALESCE(SUM(calls), 0), COALESCE(SUM(running), 0) FROM usage WHERE scope = 'trunk' AND name = $1", trunk)
	if err := row.Scan(&calls, &running); err != nil {
		b.t.Fatal(err)
	}
	return calls, running
}

func TestCallGoesOverTheNextTrunkWhenTheBestOneCantPlaceIt(t *testing.T) {
	t.Parallel()
	b, best, spare := spareBed(t, nil)
	b.turnsAway(best, 503)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call "+berlin)
	call := b.called(spare)
	if got := call.Invite().Recipient.User; got != berlin { // the spare trunk writes numbers in its own way
		t.Errorf("the next trunk is asked for %s", got)
	}
	b.told("Calling +493•••••••78 over another line …")
	if err := call.Ring(); err != nil {
		t.Fatal(err)
	}
	b.told("+493•••••••78 rings.")
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("+493•••••••78 has answered.")
	b.says(alice, "!sip who")
	b.told("1. +493•••••••78 talks for 0:")
	for trunk, want := range map[string]int{"lab": 0, "spare": 1} {
		if calls, running := b.books(trunk); calls != want || running != want {
			t.Errorf("%d calls count for trunk %s, %d run, want %d", calls, trunk, running, want)
		}
	}
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
	b.told("the phone hung up.")
	b.settled(1)
	b.shows(`trunkline_calls_rerouted_total{trunk="lab"} 1`)
	if n := best.Rung(); n != 1 {
		t.Errorf("the first trunk was asked %d times", n)
	}
	if n := b.process.bridge.phones.Stats().RTPPorts; n != 0 {
		t.Errorf("%d RTP ports are still in use", n)
	}
	var trunk string
	if err := b.process.bridge.store.Shared().QueryRow(t.Context(), "SELECT trunk FROM history").Scan(&trunk); err != nil || trunk != "spare" {
		t.Errorf("the history says that the call went over %q, %v", trunk, err)
	}
}

// A ghost's sound is settled before it is known which trunk places the call.
func TestGhostIsWideWhereATrunkThatMayTakeTheCallIs(t *testing.T) {
	t.Parallel()
	b := &Bridge{wideBand: map[string]bool{"spare": true}}
	spare := []way{{trunk: config.Trunk{Name: "spare"}}}
	for _, c := range []struct {
		trunk string
		order *order
		want  bool
	}{{"best", nil, false}, {"best", &order{}, false}, {"best", &order{ways: spare}, true}, {"spare", &order{}, true}} {
		a := &actor{bridge: b, order: c.order}
		a.info.Trunk = c.trunk
		if got := a.mayBeWide(); got != c.want {
			t.Errorf("over %s, order %+v: wide %t, want %t", c.trunk, c.order, got, c.want)
		}
	}
}

// Long before its INVITE is given up: nobody waits that long for a phone to ring.
func TestCallGoesOverTheNextTrunkWhenTheBestOneIsDead(t *testing.T) {
	t.Parallel()
	dead, err := net.ListenPacket("udp", "127.0.0.1:0") // there, and deaf
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dead.Close() })
	b, best, spare := spareBed(t, func(c *config.Config) { c.SIP.Trunks[0].Proxy = dead.LocalAddr().String() })
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call "+berlin)
	call := b.called(spare) // within the bed's patience, which is less than the 32 s of a transaction
	b.told("Calling +493•••••••78 over another line …")
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("+493•••••••78 has answered.")
	b.says(alice, "!sip hangup")
	<-call.Done()
	b.clear()
	b.settled(1)
	if n := best.Rung(); n != 0 {
		t.Errorf("a phone that is no trunk has rung %d times", n)
	}
}

// What one trunk says of the phone, the next one would say, too; and what has rung must not ring again.
func TestCallStaysWithItsTrunkWhenThePhoneIsTheReason(t *testing.T) {
	t.Parallel()
	b, best, spare := spareBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	for i, c := range []struct {
		code   int
		header []string
		rings  bool
		told   string
	}{
		{486, nil, false, "busy"},
		{603, nil, false, "declined"},
		{503, []string{"Reason: Q.850;cause=17"}, false, "busy"},
		{503, nil, true, "the telephone network is busy"},
	} {
		b.says(alice, fmt.Sprintf("!sip call +49 30 1234567%d", i))
		call := b.called(best)
		if c.rings {
			if err := call.Ring(); err != nil {
				t.Fatal(err)
			}
			b.told("rings.")
		}
		if err := call.Refuse(c.code, "Refused", c.header...); err != nil {
			t.Fatal(err)
		}
		b.told(fmt.Sprintf("Call to +493•••••••7%d: %s", i, c.told))
		b.clear()
	}
	if n := spare.Rung(); n != 0 {
		t.Errorf("the next trunk was asked %d times", n)
	}
}

// However busy its leg is, and however soon after its sound a phone is turned away.
func TestCallStaysWithItsTrunkWhenRefusedRightAfterItsSound(t *testing.T) {
	t.Parallel()
	b, best, spare := spareBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call "+berlin)
	call := b.called(best)
	a, busy, free := b.onlyLeg(), make(chan struct{}), make(chan struct{})
	a.inbox.Put(func() { close(busy); <-free })
	<-busy
	ours := a.call // nobody writes it now
	if err := call.ProgressReliably(b.ctx()); err != nil {
		t.Error(err)
	}
	if err := call.Refuse(503, "Service Unavailable"); err != nil {
		t.Error(err)
	}
	<-ours.Done()
	close(free)
	b.told("Call to +493•••••••78: the telephone network is busy")
	b.clear()
	if n := spare.Rung(); n != 0 {
		t.Errorf("the next trunk was asked %d times", n)
	}
}

func TestRoomIsToldWhenNoTrunkCanPlaceItsCall(t *testing.T) {
	t.Parallel()
	b, best, spare := spareBed(t, nil)
	b.turnsAway(best, 503)
	b.turnsAway(spare, 500)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call "+berlin)
	b.told("Call to +493•••••••78: the telephone network failed; try again later.")
	b.clear()
	b.settled(1)
	if best.Rung() != 1 || spare.Rung() != 1 {
		t.Errorf("the trunks were asked %d and %d times, want once each", best.Rung(), spare.Rung())
	}
}

// A trunk whose day is used up is passed over, as it is when the call is ordered.
func TestTrunkWithoutCallsLeftIsNotTheNextOne(t *testing.T) {
	t.Parallel()
	b, best, spare := spareBed(t, func(c *config.Config) {
		c.Dialling.Limits.Trunks = map[string]config.DialLimit{"spare": {Calls: 1}}
	})
	b.turnsAway(best, 503)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call "+berlin)
	call := b.called(spare)
	if err := call.Refuse(486, "Busy Here"); err != nil {
		t.Fatal(err)
	}
	b.told("Call to +493•••••••78: busy.")
	b.clear()
	b.says(alice, "!sip call +49 30 12345679")
	b.told("Call to +493•••••••79: the telephone network is busy; try again later.")
	b.clear()
	b.settled(2)
	if n := spare.Rung(); n != 1 {
		t.Errorf("the next trunk was asked %d times, want once", n)
	}
	if n := b.process.bridge.phones.Stats().RTPPorts; n != 0 {
		t.Errorf("%d RTP ports are still in use", n)
	}
}

// The row must name the trunk that rings, else nobody ends that.
func TestPhoneThatRingsOverTheNextTrunkIsCancelledAfterAKill(t *testing.T) {
	t.Parallel()
	b, best, spare := spareBed(t, nil)
	b.turnsAway(best, 503)
	b.stop()
	doomed := b.startDoomed()
	alice := b.person("alice", member.Hydrogen, true)
	b.says(alice, "!sip call "+berlin)
	call := b.called(spare)
	if err := call.Ring(); err != nil {
		t.Fatal(err)
	}
	b.told("+493•••••••78 rings.")
	kill(t, doomed)
	b.start()
	<-call.Done()
	if why := call.Ended(); !strings.Contains(why, "cancelled") {
		t.Errorf("the phone was ended by %q, want CANCEL", why)
	}
	b.told("Call to +493•••••••78: the bridge was restarted; try again.")
	b.clear()
	b.settled(1)
	for trunk, want := range map[string]int{"lab": 0, "spare": 1} {
		if calls, running := b.books(trunk); calls != want || running != 0 {
			t.Errorf("%d calls count for trunk %s, %d run, want %d and none", calls, trunk, running, want)
		}
	}
}
