package bridge

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

// The process is killed after the first effect of a call's leg, after the second, and so on, through whole calls: set-up,
// answer, hold, back from hold, and either end. Whatever was begun by then: the call is refused, goes on, or is over on both
// sides, and nothing stays.
func TestKilledAfterEachEffectUntilTheCallGoes(t *testing.T) {
	t.Parallel()
	if n := killAfterEachEffect(t, 1, commonEffects, (*story).endInRoom); n < commonEffects {
		t.Errorf("the call had %d effects, want %d at least", n, commonEffects)
	}
}

func TestKilledAfterEachEffectWhenTheRoomEnds(t *testing.T) {
	t.Parallel()
	if n := killAfterEachEffect(t, commonEffects, lastEffect, (*story).endInRoom); n < commonEffects+3 {
		t.Errorf("the call had %d effects, want %d at least", n, commonEffects+3)
	}
}

func TestKilledAfterEachEffectWhenThePhoneHangsUp(t *testing.T) {
	t.Parallel()
	hangup := func(s *story, ctx context.Context) { _ = s.call.Hangup(ctx) } // a dead process cannot confirm it
	if n := killAfterEachEffect(t, commonEffects, lastEffect, hangup); n < commonEffects+3 {
		t.Errorf("the call had %d effects, want %d at least", n, commonEffects+3)
	}
}

const (
	commonEffects = 11  // before the ends differ
	lastEffect    = 100 // far more than a call has
)

// killAfterEachEffect tells the story of a call again and again, until its process outlives it or has died after effect "to".
// It returns how many effects there were.
func killAfterEachEffect(t *testing.T, from, to int, end func(*story, context.Context)) int {
	t.Helper()
	b := newBed(t)
	alice := b.person("alice", member.Hydrogen, true)
	alice.Says(sine(aliceHz, 48000, time.Second))
	for n := from; n <= to; n++ {
		s := &story{talkers: b.pairWith(alice), end: end, ringing: make(chan *phone.Call, 1)}
		if !s.tellUntil(n) {
			return n - 1
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	return to
}

// story is a call from beginning to end, in whose midst the process dies.
type story struct {
	*talkers
	end func(*story, context.Context)

	dead    chan struct{}    // closed when the process is
	ringing chan *phone.Call // has it once the INVITE is out
	refuse  error            // what the phone got instead of an answer
}

var diesAfter = regexp.MustCompile(`the child dies after .*`)

// tellUntil tells the story to a process that dies after n effects, and sees how the next one goes on. It is false when the
// story was over before.
func (s *story) tellUntil(n int) bool {
	b := s.bed
	b.stop()
	if b.activeCalls() == 0 { // the last story has ended it
		if _, err := s.alice.CreateCall(b.ctx(), b.room); err != nil {
			b.t.Fatal(err)
		}
		b.await("alice to be in a new call", func() bool { return s.alice.JoinCall(b.ctx(), b.room) == nil })
	}
	var output safeText
	cmd := b.childCommand()
	cmd.Env = append(cmd.Env, fmt.Sprint(childDies, "=", n))
	cmd.Stderr = &output
	s.run(cmd)
	b.awaitChild()
	over := make(chan struct{})
	go func() {
		defer close(over)
		s.tell()
	}()
	select {
	case <-s.dead:
	case <-over:
		b.await("the end of the child, or of everything", func() bool {
			return s.isDead() || len(b.ghosts())+b.stored() == 0 && strings.Contains(output.String(), "leg ended")
		})
		time.Sleep(100 * time.Millisecond) // forgetting is an effect, too, after which it may die
		if !s.isDead() {
			_ = cmd.Process.Kill()
			<-s.dead
			b.start()
			return false
		}
	}
	moment := diesAfter.FindString(output.String())
	b.start()
	if s.endsUnknown(over) { // a phone whose row was not written yet has heard nothing: its INVITE comes again
		b.t.Errorf("%s: nobody knows the call, and the phone rings on", moment)
	}
	s.outcome(moment)
	if b.t.Failed() {
		b.t.Logf("%d: %s. Its log:\n%s", n, moment, output.String())
	}
	return true
}

// endsUnknown waits for the end of the story. A phone that rings although the next process has no row is put away, which it says.
func (s *story) endsUnknown(over <-chan struct{}) bool {
	for known := time.Now(); time.Since(known) < patience; { // an INVITE that nobody has answered comes again ever less often
		select {
		case <-over:
			return false
		case <-time.After(20 * time.Millisecond):
		}
		if s.bed.rows() > 0 {
			known = time.Now()
		}
	}
	select {
	case call := <-s.ringing:
		call.Forget()
		<-over
		return true
	case <-over:
		return false
	}
}

func (s *story) run(cmd *exec.Cmd) {
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.dead = make(chan struct{})
	go func() {
		_ = cmd.Wait() // "signal: killed"
		close(s.dead)
	}()
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); <-s.dead })
}

func (s *story) isDead() bool {
	select {
	case <-s.dead:
		return true
	default:
		return false
	}
}

// tell is the story. What needs a living process is given up when that dies; what the next one answers is not.
func (s *story) tell() {
	b := s.bed
	whole, stop := context.WithTimeout(b.t.Context(), 3*patience) // the next process must be found not to know the call before
	defer stop()
	alive, cancel := context.WithCancel(whole)
	defer cancel()
	go func() {
		select {
		case <-s.dead:
			cancel()
		case <-alive.Done():
		}
	}()
	p, err := phone.Open(phone.Config{Local: netip.MustParseAddr("127.0.0.1"), User: "+493012345678"})
	if err != nil {
		s.refuse = err
		return
	}
	b.t.Cleanup(func() { p.Close() })
	if s.call, s.refuse = p.Begin(whole, b.sip, phone.Invite{Number: goodNumber}); s.refuse != nil {
		return
	}
	s.ringing <- s.call
	if s.refuse = s.call.Answered(); s.refuse != nil {
		return
	}
	s.call.Play(sine(phoneHz, 8000, longTone))
	for alive.Err() == nil && !s.hearsAlice() {
		time.Sleep(10 * time.Millisecond)
	}
	for _, direction := range []string{"sendonly", "sendrecv"} {
		if alive.Err() == nil {
			_, _ = s.call.Reinvite(alive, direction) // it fails when the process dies
		}
	}
	if alive.Err() == nil {
		s.end(s, whole)
	}
}

func (s *story) hearsAlice() bool { return loud(s.call.Heard(), aliceHz, 8000) }

func (s *story) endInRoom(ctx context.Context) {
	if conf, err := s.alice.AwaitCall(ctx, s.room); err == nil {
		_ = s.alice.TerminateCall(ctx, s.room, conf) // tellUntil sees whether it is over
	}
	select {
	case <-s.call.Done():
	case <-s.dead:
	case <-ctx.Done():
	}
}

// outcome sees that the call goes on or is over, and ends it in the first case.
func (s *story) outcome(moment string) {
	b := s.bed
	b.t.Helper()
	how := "refused: " + fmt.Sprint(s.refuse)
	if s.refuse == nil {
		b.await(moment+": the phone to be off hold, or a clean end", func() bool {
			if s.call.Ended() != "" {
				return true
			}
			_, err := s.call.Reinvite(b.ctx(), "sendrecv") // 491 while the bridge asks the phone
			return err == nil
		})
		b.await(moment+": both to hear each other, or a clean end", func() bool {
			ghosts := b.ghosts()
			if len(ghosts) == 1 {
				s.ghost = ghosts[0]
			}
			return s.call.Ended() != "" || len(ghosts) == 1 && s.hearing()
		})
		if how = s.call.Ended(); how == "" {
			how = "went on"
			b.hangUp(s.call)
		}
	}
	b.await(moment+": rows and ghosts to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
	b.await(moment+": ports and calls to go", func() bool {
		n := b.process.bridge.phones.Stats()
		return n.RTPPorts == 0 && n.Calls == 0
	})
	b.t.Logf("%s: %s", moment, how)
}
