package sip_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
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
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
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
	floodTime    = 5 * time.Second
	floodRate    = 1000 // INVITEs a second
	longestSound = 40 * time.Millisecond
)

func TestFloodOfStrangersIsNotHeard(t *testing.T) {
	floodBesideACall(t, testConfig(sip.UDP), stranger, func(s sip.Stats) uint64 { return s.Dropped["unknown source"] })
}

// A PBX that calls in circles: it gets 503 for most, and that leaves nothing behind.
func TestFloodOfATrunkIsNotHeard(t *testing.T) {
	config := testConfig(sip.UDP)
	config.Trunks[0].InvitesPerSecond = 5
	floodBesideACall(t, config, "127.0.0.66", func(s sip.Stats) uint64 {
		return s.TurnedAway[sip.Turned{Trunk: "lab", Why: "calls per second"}] + s.Dropped["flood"]
	})
}

// floodBesideACall sends many calls from an address while another phone talks. Nearly all must be held back, as held counts them. What
// others do on the machine makes gaps, too; a round without them shows that the flood makes none.
func floodBesideACall(t *testing.T, config sip.Config, from string, held func(sip.Stats) uint64) {
	t.Helper()
	inLab(t)
	b := newBed(t, config, func(s *served) {
		if s.Info().Dialled == flooded {
			_ = s.Reject(486, "")
			return
		}
		s.answer()
	})
	call, err := b.phone(phone.Config{}).Dial(timeout(t, 5*time.Second), b.addr(sip.UDP), "1000")
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
	var in, out time.Duration // the longest gaps in what the phone says, and in what it hears
	for round := range 3 {
		call.Play(tone(440, floodTime+2*time.Second))
		time.Sleep(500 * time.Millisecond)
		before, dropped := heapInUse(), held(b.stack.Stats())
		_, heard := call.Packets()
		last.Store(0)
		longest.Store(0)
		call.LongestPause()
		sent := flood(t, from, b.stack.Addr(sip.UDP))
		in, out = time.Duration(longest.Load()), call.LongestPause()
		grown := int64(heapInUse()) - int64(before)
		dropped = held(b.stack.Stats()) - dropped
		t.Logf("round %d: %d INVITEs sent, %d held back, longest gap %v from the phone and %v to it, heap grew by %d KiB", round, sent, dropped, in, out, grown>>10)
		if dropped < uint64(sent)*9/10 {
			t.Errorf("only %d of %d INVITEs were held back", dropped, sent)
		}
		if grown > 1<<20 {
			t.Errorf("heap grew by %d KiB", grown>>10)
		}
		if _, now := call.Packets(); last.Load() == 0 || now-heard < int(floodTime/(20*time.Millisecond))*9/10 {
			t.Fatalf("the phone was heard: %t, and has received %d packets", last.Load() != 0, now-heard)
		}
		if max(in, out) <= longestSound {
			break
		}
	}
	if max(in, out) > longestSound {
		t.Errorf("longest gap %v from the phone and %v to it in the last of three rounds, want at most %v in one of them", in, out, longestSound)
	}
	if st := b.stack.Stats(); st.Invites > 1+3*floodRate/20 || from == stranger && st.Invites != 1 || st.Calls != 1 {
		t.Errorf("the flood made calls: %+v", st)
	}
	if err := call.Hangup(timeout(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
}

// flooded is the number that a flood calls.
const flooded = "666"

// flood sends INVITEs from an address for floodTime, and says how many. A stranger gets no answer.
func flood(t *testing.T, from string, to netip.AddrPort) int {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sdp := "v=0\r\no=- 1 1 IN IP4 " + from + "\r\ns=-\r\nc=IN IP4 " + from + "\r\nt=0 0\r\nm=audio 4000 RTP/AVP 0\r\n"
	sent := 0
	for began := time.Now(); time.Since(began) < floodTime; time.Sleep(5 * time.Millisecond) {
		for due := int(time.Since(began).Seconds() * floodRate); sent < due; sent++ {
			m := fmt.Sprintf("INVITE sip:"+flooded+"@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bK%d\r\nMax-Forwards: 70\r\n"+
				"From: <sip:x@%[1]s>;tag=%[2]d\r\nTo: <sip:"+flooded+"@127.0.0.1>\r\nCall-ID: flood-%[2]d\r\nCSeq: 1 INVITE\r\nContact: <sip:x@%[1]s>\r\n"+
				"Content-Type: application/sdp\r\nContent-Length: %[3]d\r\n\r\n%[4]s", conn.LocalAddr(), sent, len(sdp), sdp)
			if _, err := conn.WriteToUDPAddrPort([]byte(m), to); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 1500)); err == nil && from == stranger {
		t.Errorf("a stranger was answered with %d octets", n)
	}
	return sent
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
