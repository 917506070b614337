package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"trunkline/bridge/config"
	"trunkline/db"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
	"trunkline/internal/testbed/speech"
	"trunkline/matrixcall"
)

const talkTime = 5 * time.Second

// Not parallel: it judges sound made in real time, and the others would steal the time.
func TestPhoneAndMemberHearEachOther(t *testing.T) {
	for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			alice := b.person("alice", kind, true)
			call := b.dial(b.phone("+493012345678"), goodNumber)
			b.converse(alice, call)
			b.endsCleanly(alice, call)
		})
	}
}

// mostRepeats is how often what was misheard is said again. Sound that we lose now and then must not hide behind a busy machine.
const mostRepeats = 2

// converse lets a member and a phone talk, and judges whose voice each of them hears. Where the machine had no time for this process
// meanwhile, they say it again: that sound which nobody computes cannot be heard is no news.
func (b *bed) converse(alice *member.Member, call *phone.Call) {
	b.t.Helper()
	ghost := b.ghosts()
	if len(ghost) != 1 {
		b.t.Fatalf("ghosts in the call: %v, want one", ghost)
	}
	if err := alice.AwaitConnected(b.ctx(), ghost...); err != nil {
		b.t.Fatal(err)
	}
	aliceSays, phoneSays := speech.Alice.PCM(48000, talkTime), speech.Bob.PCM(8000, talkTime)
	for repeats := 0; ; repeats++ {
		alice.Forget()
		before, heldUp := len(call.Heard()), b.heldUp()
		alice.Says(aliceSays)
		call.Play(phoneSays)
		time.Sleep(talkTime + time.Second)
		complaints := append(
			misheard("phone", call.Heard()[before:], 8000, listen.Resample(aliceSays, 48000, 8000), phoneSays),
			misheard("alice", alice.Heard(ghost[0]).PCM, 48000, listen.Resample(phoneSays, 8000, 48000), aliceSays)...)
		late := heldUp()
		if len(complaints) == 0 {
			return
		}
		if late < tolerable || repeats == mostRepeats {
			b.t.Errorf("%s; this process was held up for %v, after %d repeats", strings.Join(complaints, "; "), late, repeats)
			return
		}
		b.t.Logf("again, since this process was held up for %v: %s", late, strings.Join(complaints, "; "))
	}
}

// tolerable is how long a process may be held up at a time before sound is lost that no jitter buffer has.
const tolerable = 20 * time.Millisecond

// heldUp begins to watch how punctually this process wakes; what it returns ends that, and tells by how much it was late at the worst.
func (b *bed) heldUp() (worst func() time.Duration) {
	const nap = 5 * time.Millisecond
	over, result := make(chan struct{}), make(chan time.Duration, 1)
	go func() {
		var late time.Duration
		for {
			due := time.Now().Add(nap)
			select {
			case <-over:
				result <- late
				return
			case <-time.After(nap):
				late = max(late, time.Since(due))
			}
		}
	}()
	return func() time.Duration { close(over); return <-result }
}

// endsCleanly hangs the phone up, and sees that nothing stays and that the member's client has nothing to complain of.
func (b *bed) endsCleanly(alice *member.Member, call *phone.Call) {
	b.t.Helper()
	ghost := b.ghosts()
	if err := call.Hangup(b.ctx()); err != nil {
		b.t.Fatal(err)
	}
	for _, g := range ghost {
		if err := alice.AwaitGone(b.ctx(), g); err != nil {
			b.t.Error(err)
		}
	}
	b.clear()
	if complaints := alice.Complaints(); len(complaints) > 0 {
		b.t.Errorf("alice's client complains: %q", complaints)
	}
}

// misheard judges whose voice it is, on a machine that may be busy: unrelated voices stay below 0.16. How good it is, is judged
// on a virtual clock (studio_test.go, package transcode).
func misheard(who string, heard []int16, rate int, other, own []int16) (complaints []string) {
	if m := listen.Compare(heard, other, rate); m.Correlation < 0.6 || m.Gain < -2 || m.Gain > 2 {
		complaints = append(complaints, fmt.Sprintf("%s hears the other: %v", who, m))
	}
	if m := listen.Compare(heard, own, rate); m.Correlation > 0.25 {
		complaints = append(complaints, fmt.Sprintf("%s hears itself: %v", who, m))
	}
	return complaints
}

func TestLastMemberLeavesAndThePhoneIsHungUpOn(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.Hydrogen, true)
	call := b.dial(b.phone("1"), goodNumber)
	if err := alice.AwaitConnected(b.ctx(), b.ghosts()...); err != nil {
		t.Fatal(err)
	}
	if err := alice.LeaveCall(b.ctx()); err != nil {
		t.Fatal(err)
	}
	overByBye(t, call)
	b.await("rows and ghosts to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
}

func overByBye(t *testing.T, call *phone.Call) {
	t.Helper()
	select {
	case <-call.Done():
		t.Logf("the phone's call ended: %s", call.Ended())
	case <-time.After(patience):
		t.Error("the phone got no BYE")
	}
}

func TestPhoneCreatesTheCallAndEndsIt(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	call := b.dial(b.phone("1"), goodNumber)
	if n := b.activeCalls(); n != 1 {
		t.Errorf("%d calls in the room, want the one that the phone created", n)
	}
	alice := b.person("alice", member.Hydrogen, true)
	if err := alice.AwaitConnected(b.ctx(), b.ghosts()...); err != nil {
		t.Error(err)
	}
	if err := alice.LeaveCall(b.ctx()); err != nil {
		t.Fatal(err)
	}
	overByBye(t, call)
	b.await("the call to be terminated", func() bool { return b.activeCalls() == 0 })
}

func TestRefusalsHaveTheRightCode(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	p := b.phone("1")
	keepAlive, err := net.Dial("udp", b.sip)
	if err == nil {
		_, err = keepAlive.Write([]byte("\r\n\r\n")) // read before the calls that come to the same socket
	}
	if err != nil {
		t.Fatal(err)
	}
	defer keepAlive.Close()
	for number, want := range map[string]struct {
		code  int
		cause string
	}{
		"999": {404, "Q.850;cause=1;"}, lostNumber: {404, "Q.850;cause=1;"}, otherNumber: {403, "Q.850;cause=57;"},
	} {
		_, err := p.Dial(b.ctx(), b.sip, number)
		var refused *phone.StatusError
		if !errors.As(err, &refused) {
			t.Errorf("dialling %s = %v, want %v", number, err, want)
		} else if refused.Code != want.code || !strings.HasPrefix(refused.Cause, want.cause) {
			t.Errorf("dialling %s = %v, Reason %q; want %v", number, err, refused.Cause, want)
		}
	}
	strict := b.cfg.Routes[1].Room
	b.await("a notice in the strict room", func() bool { return len(b.notices(strict)) > 0 })
	if said := b.notices(strict); len(said) != 1 || !strings.Contains(said[0], "org.matrix.msc3401.call.member") {
		t.Errorf("the bot said %q, want one sentence that names the missing right", said)
	}
	b.await("rows to go", func() bool { return b.rows() == 0 })
	b.shows(`trunkline_sip_refused_total{code="403"} 1`)
	b.shows(`trunkline_sip_refused_total{code="404"} 2`)
	b.shows(`trunkline_sip_dropped_total{reason="keepalive"} 1`)
}

func TestNoticeThatCouldNotBeSentIsSentAtTheNextCall(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	p, strict := b.phone("1"), b.cfg.Routes[1].Room
	dial := func() {
		t.Helper()
		var refused *phone.StatusError
		if _, err := p.Dial(b.ctx(), b.sip, otherNumber); !errors.As(err, &refused) || refused.Code != 403 {
			t.Errorf("Dial = %v, want 403", err)
		}
	}
	broken := b.hs.Break(&homeserver.Fault{
		Method: "PUT", Path: "/send/m.room.message", Error: &homeserver.Error{Status: 400, Code: "M_UNKNOWN", Text: "not now"},
	})
	dial()
	b.await("the notice to fail and the leg to end", func() bool { // until the bridge knows of it, another call says nothing
		return b.said.count("could not tell the room which rights phones lack") > 0 && len(b.process.bridge.liveLegs()) == 0
	})
	broken.Mend()
	dial()
	b.await("a notice in the strict room", func() bool { return len(b.notices(strict)) > 0 })
	dial()
	b.await("the leg to end", func() bool { return len(b.process.bridge.liveLegs()) == 0 })
	if said := b.notices(strict); len(said) != 1 {
		t.Errorf("the bot said %q, want it once an hour", said)
	}
}

func TestRightsLostInMidCallAreToldAndTheGhostIsNotSweptForEver(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.person("alice", member.JSSDK, true)
	call := b.dial(b.phone("1"), goodNumber)
	ghost, a := b.ghosts()[0], b.onlyLeg()
	var levels map[string]any
	if err := json.Unmarshal(b.hs.State(b.room, "m.room.power_levels", ""), &levels); err != nil {
		t.Fatal(err)
	}
	levels["events"] = map[string]any{"org.matrix.msc3401.call.member": 100}
	b.hs.SetState(b.room, b.hs.User("owner").UserID, "m.room.power_levels", "", levels)
	// As reported when the entry cannot be renewed, three quarters of an hour later.
	a.fromRoom(matrixcall.Failed{Err: fmt.Errorf("renew entry: %w", &matrixcall.RightsError{
		Room: b.room, Ghost: ghost, Types: []string{"org.matrix.msc3401.call.member"}, Need: 100,
	})})
	overByBye(t, call)
	b.await("a notice", func() bool {
		said := b.notices(string(b.room))
		return len(said) == 1 && strings.Contains(said[0], "org.matrix.msc3401.call.member")
	})
	b.await("the leg to end", func() bool { return len(b.process.bridge.liveLegs()) == 0 })
	b.await("the leg's row to go, and the membership's to stay", func() bool { return b.rows() == 1 })
	if err := b.process.bridge.sweepRooms(b.ctx()); err != nil {
		t.Error(err)
	}
	b.await("the row to go: trying again would help nobody", func() bool { return b.rows() == 0 })
}

func TestRouteInTheDatabaseLeadsToItsRoom(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	if err := b.process.bridge.store.PutRoute(t.Context(), db.Route{Number: "400", Room: string(b.room), Options: `{"intent": "m.prompt"}`}); err != nil {
		t.Fatal(err)
	}
	b.dial(b.phone("1"), "400")
	if n := len(b.ghosts()); n != 1 {
		t.Errorf("%d ghosts in the route's room, want one", n)
	}
}

func TestOneCallTooManyIsTold503(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.person("alice", member.Hydrogen, true)
	for range b.cfg.Calls.MaxLegs {
		b.dial(b.phone("1"), goodNumber) // the same caller each time: each call has a ghost of its own
	}
	if n := len(b.ghosts()); n != b.cfg.Calls.MaxLegs {
		t.Errorf("%d ghosts for %d calls of one caller", n, b.cfg.Calls.MaxLegs)
	}
	_, err := b.phone("2").Dial(b.ctx(), b.sip, goodNumber)
	var refused *phone.StatusError
	if !errors.As(err, &refused) || refused.Code != 503 || refused.RetryAfter == "" || !strings.HasPrefix(refused.Cause, "Q.850;cause=42;") {
		t.Errorf("one too many = %v (%+v), want 503 with Retry-After and a Reason", err, refused)
	}
}

func TestStoppingEndsCallsOnBothSides(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.process.bridge.cfg.Calls.OnStop = config.StopEnds
	alice := b.person("alice", member.JSSDK, true)
	call := b.dial(b.phone("1"), goodNumber)
	ghost := b.ghosts()
	if err := alice.AwaitConnected(b.ctx(), ghost...); err != nil {
		t.Fatal(err)
	}
	b.stop()
	overByBye(t, call)
	if err := alice.AwaitGone(b.ctx(), ghost[0]); err != nil {
		t.Error(err)
	}
}
