package sip_test

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtp"

	"trunkline/internal/testbed/phone"
	"trunkline/sip"
)

// stranger is an address of this machine that belongs to no trunk.
const stranger = "127.0.77.1"

func TestScannerFindsNothing(t *testing.T) {
	svmap := tool(t, "svmap")
	for i, method := range []string{"OPTIONS", "INVITE", "REGISTER"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel() // svmap waits for most of the time; each has addresses of its own, for it always takes the same port
			b := newBed(t, testConfig(sip.UDP), nil)
			scan := func(from string) string {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, svmap, "-m", method, "-b", from, "-p", fmt.Sprint(b.stack.Addr(sip.UDP).Port()), "127.0.0.1")
				cmd.Dir = t.TempDir()
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("svmap from %s: %v\n%s", from, err, tail(string(out), 2000))
				}
				return string(out)
			}
			if out := scan(fmt.Sprint("127.0.77.", i+1)); !strings.Contains(out, "found nothing") {
				t.Errorf("a stranger found us:\n%s", out)
			}
			if n := b.stack.Stats().Dropped["unknown source"]; n == 0 {
				t.Error("the scan never reached us")
			}
			if out := scan(fmt.Sprint("127.0.0.", i+9)); !strings.Contains(out, b.addr(sip.UDP)) { // or the scan above has shown nothing
				t.Errorf("the trunk's own address finds nothing:\n%s", out)
			}
		})
	}
}

const (
	floodTime    = 4 * time.Second
	floodRate    = 1000 // INVITEs a second
	floodCalls   = floodRate * int(floodTime/time.Second)
	floodRounds  = 4 // at most
	longestSound = 40 * time.Millisecond
	longestFrame = 20 * time.Millisecond
)

// flooded is the number that a flood calls.
const flooded = "666"

// aloneInvite is what sipp floods with: it dials flooded once, and says nothing else unless it is answered.
func aloneInvite() string {
	return strings.ReplaceAll(strings.Replace(asks("INVITE", 1, media(1, "sendrecv")), ` retrans="500"`, "", 1), "sip:1000@", "sip:"+flooded+"@")
}

// A stranger gets no answer: sipp takes any for a fault.
func TestFloodOfStrangersIsNotHeard(t *testing.T) {
	floodBesideACall(t, testConfig(sip.UDP), stranger, func(s sip.Stats) uint64 { return s.Dropped["unknown source"] })
}

// A PBX that calls in circles: it gets 503 for most, or nothing, and that leaves nothing behind.
func TestFloodOfATrunkIsNotHeard(t *testing.T) {
	config := testConfig(sip.UDP)
	config.Trunks[0].InvitesPerSecond = 5
	floodBesideACall(t, config, "127.0.0.66", func(s sip.Stats) uint64 {
		return s.TurnedAway[sip.Turned{Trunk: "lab", Why: "calls per second"}] + s.Dropped["flood"]
	}, "-default_behaviors", "all,-abortunexp") // answers are no fault
}

// floodBesideACall has sipp make many calls from an address while another phone talks. Nearly all must be held back, as held counts
// them, and nothing may stay in memory. What others do on the machine makes gaps, holds sipp up and has the kernel drop what we are not
// there to read, too: two rounds in which all was well are enough. After one that was not, a while without a flood shows what gaps the
// machine makes by itself; to those, a flood may add a packet's length.
func floodBesideACall(t *testing.T, config sip.Config, from string, held func(sip.Stats) uint64, args ...string) {
	t.Helper()
	inLab(t)
	b := newBed(t, config, func(s *served) {
		if s.Info().Dialled == flooded {
			_ = s.Reject(486, "")
			return
		}
		s.answer()
	})
	call, err := b.phone(phone.Config{}).Dial(timeout(t, 20*time.Second), b.addr(sip.UDP), "1000")
	if err != nil {
		t.Fatal(err)
	}
	s := b.call()
	s.wants(sip.Acked{})
	_, stop := s.talk(s.Media(), 700)
	defer stop()
	var last, longest atomic.Int64
	s.Media().OnPacket(func(*rtp.Packet) {
		now := time.Now().UnixNano()
		if before := last.Swap(now); before != 0 && now-before > longest.Load() {
			longest.Store(now - before)
		}
	})
	during := func(what string, do func()) (took, pause time.Duration, packets int, grown int64) {
		call.Play(tone(440, 3*floodTime))
		time.Sleep(500 * time.Millisecond)
		before := heapInUse()
		_, heard := call.Packets()
		last.Store(0)
		longest.Store(0)
		call.LongestPause()
		began := time.Now()
		do()
		took = time.Since(began)
		in, out := time.Duration(longest.Load()), call.LongestPause() // in what the phone says, and in what it hears
		grown = int64(heapInUse()) - int64(before)
		if _, packets = call.Packets(); last.Load() == 0 {
			packets = heard // it was not heard itself
		}
		t.Logf("%s: %.1f s, longest gap %v from the phone and %v to it, which got %d packets, heap grew by %d KiB", what, took.Seconds(), in, out, packets-heard, grown>>10)
		return took, max(in, out), packets - heard, grown
	}
	flood := func() {
		plays(t, []string{aloneInvite(), `<pause milliseconds="500"/>`}, append([]string{
			b.addr(sip.UDP), "-i", from, "-m", fmt.Sprint(floodCalls), "-r", fmt.Sprint(floodRate), "-l", fmt.Sprint(floodCalls),
		}, args...)...)()
	}
	good, rounds, allowed := 0, 0, longestSound
	for ; good < 2 && rounds < floodRounds; rounds++ {
		before := held(b.stack.Stats())
		took, pause, packets, grown := during("a flood", flood)
		dropped := held(b.stack.Stats()) - before
		t.Logf("of %d INVITEs, %d messages were held back", floodCalls, dropped)
		if dropped >= uint64(floodCalls)*9/10 && grown <= 1<<20 && packets >= int(floodTime/longestFrame)*9/10 && pause <= allowed && took < floodTime*3/2 {
			good++
			continue
		}
		_, quiet, _, _ := during("no flood", func() { time.Sleep(floodTime) })
		allowed = max(allowed, quiet+longestFrame)
	}
	if good < 2 {
		t.Errorf("%d rounds of %d beside a flood of %d INVITEs a second were well, want 2: no gap longer than %v, and of the INVITEs nearly all held back and nothing left", good, rounds, floodRate, allowed)
	}
	if st := b.stack.Stats(); st.Invites > uint64(1+rounds*floodCalls/20) || from == stranger && st.Invites != 1 || st.Calls != 1 {
		t.Errorf("the flood made calls: %+v", st)
	}
	if err := call.Hangup(timeout(t, 20*time.Second)); err != nil {
		t.Error(err)
	}
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
