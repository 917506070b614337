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
	floodMemory  = 8 << 20
	floodRounds  = 5 // at most
)

// A stranger's sipp floods the bridge with INVITEs while a client and a phone talk. They hear no gap, sipp hears nothing, and the process
// does not grow. A second phone measures when packets come: a recording forgives what was late and made up for. What else runs on the
// machine (browser, homeserver, databases) makes pauses, too: two rounds without are enough, and as a rule they are the first two.
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
	good, rounds := 0, 0
	for ; good < 2 && rounds < floodRounds; rounds++ {
		if s.flood(alice, phone, call, rounds) {
			good++
		}
	}
	if good < 2 {
		t.Errorf("%d rounds of %d without a gap longer than %v beside a flood of %d INVITEs a second, want 2", good, rounds, longestSound, floodRate)
	}
	if len(s.ghosts()) != 2 || !phone.InCall() || call.Ended() != "" {
		t.Errorf("ghosts after the flood: %v, the phone is in its call: %t, the other one's has ended: %q", s.ghosts(), phone.InCall(), call.Ended())
	}
	s.must(call.Hangup(s.ctx))
}

// flood is one round, and tells whether it was as fast as it should be and not heard.
func (s *scene) flood(alice *lab.Client, phone *lab.Phone, exact *testphone.Call, round int) bool {
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
	sipp, err := bed.Flood(s.room.Number, floodRate, floodCalls)
	s.must(err)
	if err := sipp.Wait(s.ctx); err != nil {
		s.t.Errorf("a stranger's flood was answered, or did not end: %v", err)
	}
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
	s.t.Logf("round %d: %d INVITEs in %.1f s, %d dropped, longest gap %d ms from the phone and %d ms to it, longest pause between packets %d ms, %d ms made up by the client, resident memory %d MiB, grown by %d KiB",
		round, floodCalls, over.Sub(began).Seconds(), held, in.Milliseconds(), out.Milliseconds(), pause.Milliseconds(), madeUp.Milliseconds(), before>>20, grown>>10)
	if held < floodCalls*9/10 {
		s.t.Errorf("only %d of %d INVITEs reached the bridge and were dropped", held, floodCalls)
	}
	if grown > floodMemory {
		s.t.Errorf("the process grew by %d KiB, want %d at most", grown>>10, floodMemory>>10)
	}
	return max(in, out, pause, madeUp) <= longestSound && over.Sub(began) < floodTakes
}
