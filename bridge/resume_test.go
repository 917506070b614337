package bridge

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/config"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

// doomedBed is a bed whose bridge runs in a process of its own, which can be killed.
func doomedBed(t *testing.T) (*bed, *exec.Cmd) {
	t.Helper()
	b := newBed(t)
	b.stop()
	return b, b.startDoomed()
}

// startDoomed runs the bridge in a process of its own and waits until it answers phones.
func (b *bed) startDoomed() *exec.Cmd {
	b.t.Helper()
	doomed := b.startChild()
	b.await("the child to answer phones", func() bool {
		ctx, cancel := context.WithTimeout(b.t.Context(), time.Second)
		defer cancel()
		_, err := b.phone("0").Dial(ctx, b.sip, "999") // leads nowhere
		var refused *phone.StatusError
		return errors.As(err, &refused) && refused.Code == 404
	})
	return doomed
}

func kill(t *testing.T, doomed *exec.Cmd) {
	t.Helper()
	if err := doomed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = doomed.Wait() // "signal: killed"
}

func sine(hz float64, rate int, d time.Duration) []int16 {
	pcm := make([]int16, int(d.Seconds()*float64(rate)))
	for i := range pcm {
		pcm[i] = int16(8000 * math.Sin(2*math.Pi*hz*float64(i)/float64(rate)))
	}
	return pcm
}

// loud tells whether the last tenth of a second of a recording has the tone in it.
func loud(pcm []int16, hz float64, rate int) bool {
	n := rate / 10
	if len(pcm) < n {
		return false
	}
	var re, im float64
	for i, s := range pcm[len(pcm)-n:] {
		sin, cos := math.Sincos(2 * math.Pi * hz * float64(i) / float64(rate))
		re, im = re+float64(s)*cos, im+float64(s)*sin
	}
	return 2*math.Hypot(re, im)/float64(n) > 2000
}

const (
	aliceHz = 440
	phoneHz = 700
)

// talkers are a phone and a member who make a tone each, for as long as anybody listens.
type talkers struct {
	*bed
	alice *member.Member
	call  *phone.Call
	ghost id.UserID
}

func (b *bed) talkers(kind member.Kind) *talkers {
	b.t.Helper()
	return b.talkersWith(kind, b.phone("+493012345678"))
}

func (b *bed) talkersWith(kind member.Kind, p *phone.Phone) *talkers {
	b.t.Helper()
	w := &talkers{bed: b, alice: b.person("alice", kind, true)}
	w.call = b.dial(p, goodNumber)
	ghosts := b.ghosts()
	if len(ghosts) != 1 {
		b.t.Fatalf("ghosts in the call: %v, want one", ghosts)
	}
	w.ghost = ghosts[0]
	w.alice.Says(sine(aliceHz, 48000, time.Second))
	w.call.Play(sine(phoneHz, 8000, time.Minute))
	w.await("both to hear each other", w.hearing)
	return w
}

func (w *talkers) phoneHears() bool { return loud(w.call.Heard(), aliceHz, 8000) }
func (w *talkers) aliceHears() bool { return loud(w.alice.Heard(w.ghost).PCM, phoneHz, 48000) }
func (w *talkers) hearing() bool    { return w.phoneHears() && w.aliceHears() }

// silence waits until nobody hears anything any more.
func (w *talkers) silence() {
	w.t.Helper()
	time.Sleep(200 * time.Millisecond)
	w.alice.Forget()
	w.await("silence", func() bool { return !w.phoneHears() && !w.aliceHears() })
}

// back measures how long after begun each side hears the other again.
func (w *talkers) back(begun time.Time) {
	w.t.Helper()
	var phoneAfter, aliceAfter time.Duration
	w.await("both to hear each other again", func() bool {
		if phoneAfter == 0 && w.phoneHears() {
			phoneAfter = time.Since(begun)
		}
		if aliceAfter == 0 && w.aliceHears() {
			aliceAfter = time.Since(begun)
		}
		return phoneAfter > 0 && aliceAfter > 0
	})
	w.t.Logf("after the start: the phone hears alice after %v, alice the phone after %v", phoneAfter, aliceAfter)
}

// clean ends the call and sees that nothing stays behind.
func (w *talkers) clean() {
	w.t.Helper()
	if err := w.call.Hangup(w.ctx()); err != nil {
		w.t.Error(err)
	}
	w.await("rows and ghosts to go", func() bool { return w.rows() == 0 && len(w.ghosts()) == 0 })
	if n := w.process.bridge.phones.Stats().RTPPorts; n != 0 {
		w.t.Errorf("%d RTP ports are still in use", n)
	}
	if err := w.alice.AwaitGone(w.ctx(), w.ghost); err != nil {
		w.t.Error(err)
	}
}

func TestCallOutlivesAKilledProcess(t *testing.T) {
	for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK} {
		t.Run(kind.String(), func(t *testing.T) {
			b, doomed := doomedBed(t)
			w := b.talkers(kind)
			kill(t, doomed)
			w.silence()
			begun := time.Now()
			b.start()
			w.back(begun)
			if got := b.ghosts(); len(got) != 1 || got[0] != w.ghost {
				t.Errorf("ghosts after the restart: %v, want %s alone", got, w.ghost)
			}
			w.await("the phone to be asked", func() bool { return w.call.Reinvited() == 1 })
			w.clean()
		})
	}
}

// Over TCP the connection dies with the process; the successor opens one to the phone.
func TestCallOverTCPOutlivesAKilledProcess(t *testing.T) {
	b, doomed := doomedBed(t)
	p, err := phone.Open(phone.Config{Local: netip.MustParseAddr("127.0.0.1"), User: "+493012345678", Transport: "tcp"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	w := b.talkersWith(member.Hydrogen, p)
	kill(t, doomed)
	w.silence()
	begun := time.Now()
	b.start()
	w.back(begun)
	w.await("the phone to be asked", func() bool { return w.call.Reinvited() == 1 })
	w.clean()
}

func TestCallOnHoldOutlivesAKilledProcess(t *testing.T) {
	b, doomed := doomedBed(t)
	w := b.talkers(member.JSSDK)
	if dir, err := w.call.Reinvite(b.ctx(), "sendonly"); err != nil || dir != "recvonly" {
		t.Fatalf("hold = %q, %v", dir, err)
	}
	w.silence()
	kill(t, doomed)
	b.start()
	b.await("the ghost's new session", func() bool { return w.alice.AwaitConnected(b.ctx(), w.ghost) == nil })
	time.Sleep(500 * time.Millisecond)
	if w.phoneHears() || w.aliceHears() {
		t.Errorf("on hold after the restart: phone hears %t, alice hears %t", w.phoneHears(), w.aliceHears())
	}
	begun := time.Now()
	if dir, err := w.call.Reinvite(b.ctx(), "sendrecv"); err != nil || dir != "sendrecv" {
		t.Fatalf("resume = %q, %v", dir, err)
	}
	w.back(begun)
	w.clean()
}

// The phone's call was in set-up or rang: it is told to try again, and nothing stays in the room.
func TestUnansweredCallOfAKilledProcessIsRefused(t *testing.T) {
	b, doomed := doomedBed(t)
	p := b.phone("1")
	dialled := make(chan error, 1)
	ctx := b.ctx()
	go func() {
		_, err := p.Dial(ctx, b.sip, ringNumber)
		dialled <- err
	}()
	b.await("the ghost to ring", func() bool { return len(b.ghosts()) == 1 })
	time.Sleep(300 * time.Millisecond)
	kill(t, doomed)
	b.start()
	var refused *phone.StatusError
	if err := <-dialled; !errors.As(err, &refused) || refused.Code != 503 {
		t.Errorf("Dial = %v, want 503", err)
	}
	b.await("rows, ghosts and the call to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 && b.activeCalls() == 0 })
}

// The process died while the room was rung: its successor takes back what the notice says.
func TestNoticeOfARingIsEditedAfterTheProcessDied(t *testing.T) {
	b := newBed(t)
	call := b.begin(b.phone("1"), plainNumber)
	notice := b.awaitRing(1)
	first := b.process
	b.await("the row to name the notice", func() bool {
		legs, err := first.bridge.store.Legs(b.ctx(), first.bridge.run)
		if err != nil {
			t.Fatal(err)
		}
		return len(legs) == 1 && strings.Contains(legs[0].State, string(notice.ID))
	})
	b.fence()
	b.start()
	refusedWith(t, call, 503)
	if got := b.outcome(notice.ID); !strings.Contains(got, "restarted") {
		t.Errorf("the notice says %q", got)
	}
	b.await("rows, ghosts and the call to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 && b.activeCalls() == 0 })
}

func TestPhoneThatHungUpMeanwhileIsNotResumed(t *testing.T) {
	b, doomed := doomedBed(t)
	w := b.talkers(member.Hydrogen) // js-sdk stays on a dead peer until ICE notices
	kill(t, doomed)
	w.call.Forget()
	b.start()
	b.await("rows and ghosts to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
	if err := w.alice.AwaitGone(b.ctx(), w.ghost); err != nil {
		t.Error(err)
	}
}

func TestCallThatEndedInTheRoomMeanwhileIsHungUp(t *testing.T) {
	b, doomed := doomedBed(t)
	w := b.talkers(member.JSSDK)
	kill(t, doomed)
	conf, err := w.alice.AwaitCall(b.ctx(), b.room)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.alice.TerminateCall(b.ctx(), b.room, conf); err != nil {
		t.Fatal(err)
	}
	b.start()
	overByBye(t, w.call)
	b.await("rows and ghosts to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
}

// SIGTERM and the next start: nobody is told, both hear a short pause.
func TestPlannedRestartIsAPause(t *testing.T) {
	b := newBed(t)
	w := b.talkers(member.JSSDK)
	stopping := time.Now()
	b.stop()
	stopped := time.Since(stopping)
	if n := len(b.ghosts()); n != 1 {
		t.Errorf("%d ghosts while suspended, want the one", n)
	}
	w.silence()
	begun := time.Now()
	b.start()
	w.back(begun)
	t.Logf("stopping took %v", stopped)
	w.clean()
}

func TestStopByConfigEndsCalls(t *testing.T) {
	b := newBed(t)
	b.process.bridge.cfg.Calls.OnStop = config.StopEnds
	w := b.talkers(member.JSSDK)
	b.stop()
	overByBye(t, w.call)
}

// TestKilledAtAnyMoment kills the process at seeded moments between the INVITE and a little after the answer. Whatever the
// moment: the call is refused, or both hear each other; afterwards nothing stays. TRUNKLINE_ROUNDS asks for more rounds.
func TestKilledAtAnyMoment(t *testing.T) {
	rounds := 4
	if n, err := strconv.Atoi(os.Getenv("TRUNKLINE_ROUNDS")); err == nil {
		rounds = n
	}
	b := newBed(t)
	alice := b.person("alice", member.Hydrogen, true)
	alice.Says(sine(aliceHz, 48000, time.Second))
	chance := rand.New(rand.NewPCG(7, 11))
	for round := range rounds {
		at := time.Duration(chance.IntN(400)) * time.Millisecond
		if !t.Run(fmt.Sprint(round, " after ", at), func(t *testing.T) { b.killedAfter(t, alice, at) }) {
			return
		}
	}
}

func (b *bed) killedAfter(t *testing.T, alice *member.Member, at time.Duration) {
	b.stop()
	doomed := b.startDoomed()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	type outcome struct {
		call *phone.Call
		err  error
	}
	dialled := make(chan outcome, 1)
	p := b.phone("+493012345678")
	go func() {
		call, err := p.Dial(ctx, b.sip, goodNumber)
		dialled <- outcome{call, err}
	}()
	time.Sleep(at)
	kill(t, doomed)
	b.start()
	got := <-dialled
	if got.err != nil {
		t.Logf("not answered: %v", got.err)
	} else {
		w := &talkers{bed: b, alice: alice, call: got.call}
		w.call.Play(sine(phoneHz, 8000, time.Minute))
		b.await("both to hear each other, or a clean end", func() bool {
			ghosts := b.ghosts()
			if len(ghosts) == 1 {
				w.ghost = ghosts[0]
			}
			return w.call.Ended() != "" || len(ghosts) == 1 && w.hearing()
		})
		t.Logf("answered; ended: %q", w.call.Ended())
		if err := w.call.Hangup(b.ctx()); err != nil {
			t.Error(err)
		}
	}
	b.await("rows and ghosts to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
	if n := b.process.bridge.phones.Stats().RTPPorts; n != 0 {
		t.Errorf("%d RTP ports are still in use", n)
	}
}
