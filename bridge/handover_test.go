package bridge

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gosip "github.com/emiago/sipgo/sip"
	"github.com/pion/stun/v4"

	"trunkline/db"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
	"trunkline/sockets"
)

// kept is the bridge as the child of a keeper, which has its sockets while no process runs.
type kept struct {
	*sockets.Keeper
	bed *bed

	log safeText

	mu    sync.Mutex
	child *exec.Cmd // guarded by mu
}

// safeText is what a child writes while others read it.
type safeText struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (s *safeText) Write(text []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(text)
}

func (s *safeText) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// keep has a keeper run the bridge, and waits until it answers phones. After a fault the next process comes after a pause.
func (b *bed) keep(pause time.Duration) *kept {
	b.t.Helper()
	b.stop()
	k := &kept{bed: b}
	var err error
	if k.Keeper, err = sockets.NewKeeper(k.command, b.log); err != nil {
		b.t.Fatal(err)
	}
	k.Pause = pause
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() {
		_, err := k.Run(ctx)
		over <- err
	}()
	b.t.Cleanup(func() {
		stop()
		if err := <-over; err != nil {
			b.t.Error(err)
		}
		if b.t.Failed() {
			b.t.Logf("the log of the children:\n%s", k.log.String())
		}
	})
	b.awaitChild()
	return k
}

func (k *kept) command() *exec.Cmd {
	cmd := k.bed.childCommand()
	cmd.Stderr = &k.log
	k.mu.Lock()
	defer k.mu.Unlock()
	k.child = cmd
	return cmd
}

// kill kills the child and waits until it is gone.
func (k *kept) kill() {
	k.bed.t.Helper()
	k.mu.Lock()
	child := k.child
	k.mu.Unlock()
	k.Signal(syscall.SIGKILL)
	k.bed.await("the child to be gone", func() bool { return child.Process.Signal(syscall.Signal(0)) != nil })
}

// stored counts the rows of legs and memberships, whoever owns them.
func (b *bed) stored() (n int) {
	b.t.Helper()
	store, err := db.Open(b.ctx(), b.cfg.Database.Address, b.log)
	if err != nil {
		b.t.Fatal(err)
	}
	defer store.Close()
	err = store.Shared().QueryRow(b.ctx(), "SELECT (SELECT COUNT(*) FROM leg) + (SELECT COUNT(*) FROM membership)").Scan(&n)
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

// pause is the longest time without the tone in a recording, between its first and its last.
func pause(pcm []int16, hz float64, rate int) time.Duration {
	frame := rate / 50
	longest, silent, begun := 0, 0, false
	for at := 0; at+frame <= len(pcm); at += frame {
		var re, im float64
		for i, s := range pcm[at : at+frame] {
			sin, cos := math.Sincos(2 * math.Pi * hz * float64(i) / float64(rate))
			re, im = re+float64(s)*cos, im+float64(s)*sin
		}
		switch {
		case 2*math.Hypot(re, im)/float64(frame) > 2000:
			if begun {
				longest = max(longest, silent)
			}
			silent, begun = 0, true
		default:
			silent++
		}
	}
	return time.Duration(longest) * 20 * time.Millisecond
}

// logLine takes the time and the message out of a line of slog's text.
var logLine = regexp.MustCompile(`(?m)^time=(\S+) level=\S+ msg=("[^"]*"|\S+)(.*)$`)

// timeline prints what the children logged from then on, for as long as d.
func (k *kept) timeline(from time.Time, d time.Duration) {
	k.bed.t.Helper()
	var text strings.Builder
	for _, m := range logLine.FindAllStringSubmatch(k.log.String(), -1) {
		at, err := time.Parse(time.RFC3339Nano, m[1])
		if since := at.Sub(from); err == nil && since > -5*time.Millisecond && since < d {
			fmt.Fprintf(&text, "%5d ms  %s%.150s\n", since.Milliseconds(), strings.Trim(m[2], `"`), m[3])
		}
	}
	k.bed.t.Logf("what happened after the signal:\n%s", text.String())
}

// shortestPause is more than the sound of a busy machine ever pauses, and less than new connections take.
const shortestPause = 100 * time.Millisecond

// stunServer answers, unlike the homeserver's usual one, for which half a second is waited.
func stunServer(t *testing.T) string {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDP(buf)
			if err != nil {
				return
			}
			question := &stun.Message{Raw: buf[:n]}
			if question.Decode() != nil {
				continue
			}
			answer, err := stun.Build(question, stun.BindingSuccess, &stun.XORMappedAddress{IP: from.IP, Port: from.Port}, stun.Fingerprint)
			if err == nil {
				_, _ = conn.WriteToUDP(answer.Raw, from)
			}
		}
	}()
	return "stun:" + conn.LocalAddr().String()
}

// SIGTERM and the next start, sockets kept: the pause is that of the new connections in the room.
func TestPauseOfAPlannedRestart(t *testing.T) {
	most := 5 * time.Second
	if alone() {
		most = 500 * time.Millisecond
	}
	for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK} {
		t.Run(kind.String(), func(t *testing.T) {
			longest := time.Hour
			for n := 0; n < triesAlone && longest > most; n++ {
				longest = restartedAsPlanned(t, kind)
			}
			if longest > most {
				t.Errorf("the pause is %v and more, want %v at most", longest, most)
			}
		})
	}
}

// restartedAsPlanned is one restart in mid-call. It returns the longer of both pauses.
func restartedAsPlanned(t *testing.T, kind member.Kind) time.Duration {
	t.Helper()
	b := newBedAt(t, homeserver.Config{TURN: map[string]any{"ttl": 3600, "uris": []string{stunServer(t)}}})
	k := b.keep(0)
	w := b.talkers(kind)
	if n := k.Held(); n != 5 {
		t.Errorf("%d sockets are kept, want SIP twice, HTTP, RTP and RTCP", n)
	}
	begun := time.Now()
	k.Restart()
	var toPhone, toRoom time.Duration
	w.await("both to hear each other again", func() bool {
		toPhone, toRoom = pause(w.call.Heard(), aliceHz, 8000), pause(w.alice.Heard(w.ghost).PCM, phoneHz, 48000)
		return min(toPhone, toRoom) > shortestPause && w.hearing()
	})
	w.await("the phone to be asked", func() bool { return w.call.Reinvited() == 1 })
	t.Logf("the pause: the phone %v, alice %v", toPhone, toRoom)
	if testing.Verbose() {
		k.timeline(begun, max(toPhone, toRoom)+200*time.Millisecond)
	}
	if err := w.call.Hangup(b.ctx()); err != nil {
		t.Error(err)
	}
	b.await("ghosts and rows to go", func() bool { return len(b.ghosts()) == 0 && b.stored() == 0 })
	b.await("the call's sockets to be kept no more", func() bool { return k.Held() == 3 })
	return max(toPhone, toRoom)
}

// once sends a request in a single datagram, from a socket that hears when the port is closed, and returns the answers.
func once(t *testing.T, call *phone.Call, req *gosip.Request, to string) net.Conn {
	t.Helper()
	conn, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	own := netip.MustParseAddrPort(conn.LocalAddr().String())
	req.Via().Host, req.Via().Port = own.Addr().String(), int(own.Port())
	if _, err := conn.Write([]byte(req.String())); err != nil {
		t.Fatal(err)
	}
	return conn
}

func answerTo(t *testing.T, conn net.Conn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for {
		buf := make([]byte, 8192)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("no answer: %v", err)
		}
		if status, _, _ := strings.Cut(string(buf[:n]), "\r\n"); !strings.HasPrefix(status, "SIP/2.0 1") {
			return status
		}
	}
}

// What the phone says while no process runs is said once and heard all the same: hold, back from hold, the end.
func TestPhoneIsHeardAlthoughNoProcessRuns(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	k := b.keep(400 * time.Millisecond) // time enough to speak; twice as much after each fault
	w := b.talkers(member.Hydrogen)
	meanwhile := func(method gosip.RequestMethod, direction string) *gosip.Request {
		k.kill()
		req := w.call.Request(method)
		if direction != "" {
			w.call.SetSDP(req, []byte(strings.Replace(string(w.call.Offer()), "a=sendrecv", "a="+direction, 1)))
		}
		if got := answerTo(t, once(t, w.call, req, b.sip)); got != "SIP/2.0 200 OK" {
			t.Fatalf("%s %s while no process ran: %s", method, direction, got)
		}
		return req
	}
	meanwhile("UPDATE", "sendonly")
	b.await("alice to be told that the phone is on hold, and the ghost's new session",
		func() bool { return w.alice.AwaitConnected(b.ctx(), w.ghost) == nil })
	meanwhile("UPDATE", "sendrecv")
	b.await("both to hear each other", w.hearing)
	meanwhile("BYE", "")
	w.call.Forget()
	b.await("ghosts and rows to go", func() bool { return len(b.ghosts()) == 0 && b.stored() == 0 })
	b.await("the call's sockets to be kept no more", func() bool { return k.Held() == 3 })
}
