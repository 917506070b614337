//go:build e2e

package e2e

import (
	"net/netip"
	"testing"
	"time"

	testphone "trunkline/internal/testbed/phone"
	"trunkline/test/lab"
)

const (
	floodRate    = 1000 // INVITEs a second
	floodCalls   = 4 * floodRate
	floodTakes   = 6 * time.Second // for a flood that was one; sipp makes up for what it could not send in time
	longestSound = 40 * time.Millisecond
	longestFrame = 20 * time.Millisecond
	floodMemory  = 8 << 20
	floodRounds  = 5 // at most
)

// A stranger's sipp floods the bridge with INVITEs while a client and a phone talk. They hear no gap, sipp hears nothing, and the process
// does not grow. A second phone measures when packets come: a recording forgives what was late and made up for. What else runs on the
// machine (browser, homeserver, databases) makes pauses, holds sipp up and has the kernel drop what the bridge is not there to read, too:
// two rounds in which all was well are enough, and as a rule they are the first two. After one that was not, a while without a flood
// shows what pauses the machine makes by itself; to those, a flood may add a packet's length.
func TestFloodOfStrangersIsNotHeardInTheRoom(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "alice")
	alice := s.pageSaying(lab.JSSDK, users[0], bed.Steady(0))
	phone := s.phoneSaying("desk", bed.Steady(1), lab.PhoneOptions{})
	s.startCall(alice)
	s.dial(phone)
	s.allHearAll(phone, 10*time.Second)
	exact, err := testphone.Open(testphone.Config{Local: netip.MustParseAddr("127.0.0.1"), User: "2002"})
	s.must(err)
	t.Cleanup(func() { exact.Close() })
	call, err := exact.Dial(s.ctx, bed.SIPAddress(), s.room.Number)
	s.must(err)
	time.Sleep(time.Second) // until jitter buffers know the line
	flood := func() {
		sipp, err := bed.Flood(s.room.Number, floodRate, floodCalls)
		s.must(err)
		if err := sipp.Wait(s.ctx); err != nil {
			t.Errorf("a stranger's flood was answered, or did not end: %v", err)
		}
	}
	good, rounds, allowed := 0, 0, quality{pause: longestSound, madeUp: longestSound}
	for ; good < 2 && rounds < floodRounds; rounds++ {
		q := s.during("a flood", alice, phone, call, flood)
		if q.dropped >= floodCalls*9/10 && q.grown <= floodMemory && q.took < floodTakes && q.pause <= allowed.pause && q.madeUp <= allowed.madeUp {
			good++
			continue
		}
		quiet := s.during("no flood", alice, phone, call, func() { time.Sleep(floodCalls / floodRate * time.Second) })
		allowed.pause, allowed.madeUp = max(allowed.pause, quiet.pause+longestFrame), max(allowed.madeUp, quiet.madeUp+longestFrame)
	}
	if good < 2 {
		t.Errorf("%d rounds of %d beside a flood of %d INVITEs a second were well, want 2: nothing missing for longer than %v, %v made up at most, grown by %d KiB at most, and of the INVITEs nearly all dropped",
			good, rounds, floodRate, allowed.pause, allowed.madeUp, floodMemory>>10)
	}
	if len(s.ghosts()) != 2 || !phone.InCall() || call.Ended() != "" {
		t.Errorf("ghosts after the flood: %v, the phone is in its call: %t, the other one's has ended: %q", s.ghosts(), phone.InCall(), call.Ended())
	}
	s.must(call.Hangup(s.ctx))
}

// quality is what a while was like for who talks, and for the bridge.
type quality struct {
	took    time.Duration
	pause   time.Duration // the longest, in recordings of both directions and between packets
	madeUp  time.Duration // by the client, in sum
	dropped int           // messages
	grown   int64         // octets
}

// during tells what it was like while something was done.
func (s *scene) during(what string, alice *lab.Client, phone *lab.Phone, exact *testphone.Call, do func()) quality {
	s.t.Helper()
	dropped := func() int {
		n, err := bed.Bridge().Metric(s.ctx, "trunkline_sip_dropped_total")
		s.must(err)
		return int(n)
	}
	memory := func() int64 {
		n, err := bed.Bridge().Memory()
		s.must(err)
		return n
	}
	concealed := func() time.Duration {
		d, err := alice.Concealed(s.ctx)
		s.must(err)
		return d
	}
	before, heldBefore, madeUpBefore := memory(), dropped(), concealed()
	exact.LongestPause()
	began := time.Now()
	do()
	over := time.Now()
	pause, madeUp := exact.LongestPause(), concealed()-madeUpBefore
	grown, held := memory()-before, dropped()-heldBefore
	until := judgeable(over.Add(-time.Second))
	if until.After(over) {
		until = over
	}
	heard, err := phone.HeardByClock()
	s.must(err)
	out, _ := heard.LongestGap(alice.Voice(), began, until)
	in, _ := s.heardBy(alice).LongestGap(phone.Voice(), began, until)
	s.t.Logf("%s: %.1f s, %d messages dropped, longest gap %d ms from the phone and %d ms to it, longest pause between packets %d ms, %d ms made up by the client, resident memory %d MiB, grown by %d KiB",
		what, over.Sub(began).Seconds(), held, in.Milliseconds(), out.Milliseconds(), pause.Milliseconds(), madeUp.Milliseconds(), before>>20, grown>>10)
	return quality{took: over.Sub(began), pause: max(in, out, pause), madeUp: madeUp, dropped: held, grown: grown}
}
