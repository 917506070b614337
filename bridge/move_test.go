package bridge

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/config"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

const (
	secondNumber  = "700" // leads to a second room
	guardedNumber = "701" // leads there with a PIN
)

// twoRooms is a bed with a second room, which two more numbers lead to.
func twoRooms(t *testing.T) (b *bed, second id.RoomID) {
	t.Helper()
	b = makeBed(t)
	second = b.hs.Room(b.hs.User("owner2").UserID, homeserver.CallRoom(b.bot()))
	b.cfg.Routes = append(b.cfg.Routes,
		config.Route{Number: secondNumber, Room: string(second), Options: config.Options{Intent: config.IntentPrompt}},
		config.Route{Number: guardedNumber, Room: string(second), Options: config.Options{PIN: config.PINDatabase}})
	return b, second
}

// in does something with another room.
func (b *bed) in(room id.RoomID, do func()) {
	was := b.room
	b.room = room
	defer func() { b.room = was }()
	do()
}

// refers lets the phone ask for a number of the bridge and waits for the last it is told; a refusal is told at once.
func (b *bed) refers(call *phone.Call, to string) []string {
	b.t.Helper()
	before := len(call.Notified())
	code, err := call.Refer(b.ctx(), "sip:"+to)
	if err != nil {
		b.t.Fatal(err)
	}
	if code != 202 {
		return []string{strconv.Itoa(code)}
	}
	b.await("the phone to be told how its move went", func() bool {
		notes := call.Notified()[before:]
		return len(notes) > 0 && notes[len(notes)-1] != "SIP/2.0 100 Trying"
	})
	return call.Notified()[before:]
}

// Not parallel: it judges sound made in real time.
func TestPhoneMovesToAnotherRoomAndBack(t *testing.T) {
	b, second := twoRooms(t)
	b.start()
	t.Cleanup(b.stop)
	var bob *member.Member
	b.in(second, func() { bob = b.person("bob", member.JSSDK, true) })
	alice := b.person("alice", member.Hydrogen, true)
	call, ghost := b.talkWith(alice)
	call.Play(sine(phoneHz, 8000, longTone))
	moved := []string{"SIP/2.0 100 Trying", "SIP/2.0 200 OK."}
	if got := b.refers(call, secondNumber+"@127.0.0.1"); !slices.Equal(got, moved) {
		t.Fatalf("the phone was told %q, want %q", got, moved)
	}
	if err := alice.AwaitGone(b.ctx(), ghost); err != nil {
		t.Error(err)
	}
	b.in(second, func() {
		ghosts := b.ghosts()
		if len(ghosts) != 1 {
			t.Fatalf("ghosts in the other room: %v, want one", ghosts)
		}
		if err := bob.AwaitConnected(b.ctx(), ghosts...); err != nil {
			t.Fatal(err)
		}
		b.await("bob to hear the phone", func() bool { return loud(bob.Heard(ghosts[0]).PCM, phoneHz, 48000) })
		bob.Says(sine(aliceHz, 48000, time.Second))
		b.await("the phone to hear bob", func() bool { return loud(call.Heard(), aliceHz, 8000) })
	})
	if got := b.refers(call, goodNumber+"@127.0.0.1"); !slices.Equal(got, moved) {
		t.Fatalf("on its way back the phone was told %q, want %q", got, moved)
	}
	ghosts := b.ghosts()
	if len(ghosts) != 1 {
		t.Fatalf("ghosts: %v, want one", ghosts)
	}
	if err := alice.AwaitConnected(b.ctx(), ghosts...); err != nil {
		t.Fatal(err)
	}
	if call.Streams() != 1 {
		t.Errorf("the phone heard %d streams, want one that goes on", call.Streams())
	}
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
	b.in(second, func() { b.clear() })
}

func TestPhoneThatMayNotMoveStays(t *testing.T) {
	t.Parallel()
	b, _ := twoRooms(t)
	b.start()
	t.Cleanup(b.stop)
	alice := b.person("alice", member.JSSDK, true)
	call, ghost := b.talkWith(alice)
	for _, tt := range []struct {
		to   string
		want []string
	}{
		{secondNumber + "@example.org", []string{"403"}},                                       // somebody else's
		{guardedNumber + "@127.0.0.1", []string{"403"}},                                        // behind a PIN
		{"799@127.0.0.1", []string{"404"}},                                                     // leads nowhere
		{otherNumber + "@127.0.0.1", []string{"SIP/2.0 100 Trying", "SIP/2.0 403 Forbidden."}}, // allows no calls
		{lostNumber + "@127.0.0.1", []string{"SIP/2.0 100 Trying", "SIP/2.0 404 Not Found."}},  // does not exist
	} {
		if got := b.refers(call, tt.to); !slices.Equal(got, tt.want) {
			t.Errorf("%s: the phone was told %q, want %q", tt.to, got, tt.want)
		}
	}
	if got := b.ghosts(); len(got) != 1 || got[0] != ghost || call.Ended() != "" {
		t.Errorf("ghosts %v, call ended %q: the phone should have stayed", got, call.Ended())
	}
	b.process.bridge.mu.Lock()
	held := len(b.process.bridge.ghosts)
	b.process.bridge.mu.Unlock()
	if held != 1 {
		t.Errorf("%d ghosts are reserved, want one", held)
	}
}

func TestMovedPhoneOutlivesAKilledProcess(t *testing.T) {
	b, second := twoRooms(t)
	var bob *member.Member
	b.in(second, func() { bob = b.person("bob", member.JSSDK, true) })
	child := b.startDoomed()
	call := b.dial(b.phone("+493012345678"), goodNumber)
	if got := b.refers(call, secondNumber+"@127.0.0.1"); len(got) != 2 {
		t.Fatalf("the phone was told %q", got)
	}
	kill(t, child)
	b.start()
	t.Cleanup(b.stop)
	call.Play(sine(phoneHz, 8000, longTone))
	b.in(second, func() {
		b.await("the phone to be heard in the room it has moved to", func() bool {
			ghosts := b.ghosts()
			return len(ghosts) == 1 && loud(bob.Heard(ghosts[0]).PCM, phoneHz, 48000)
		})
	})
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.in(second, func() { b.clear() })
}

// The process dies after some effect of the two legs, from before the phone has left the one room to after it is in the other. The
// phone is in one of them then, and hears and is heard; nothing is left in either.
func TestPhoneThatMovesWhenTheProcessDies(t *testing.T) {
	t.Parallel()
	b, second := twoRooms(t)
	for _, n := range []int{9, 12, 14, 18} { // in the third both legs have a row
		alice := b.person("alice", member.JSSDK, true)
		var bob *member.Member
		b.in(second, func() { bob = b.person("bob", member.JSSDK, true) })
		cmd := b.childCommand()
		cmd.Env = append(cmd.Env, fmt.Sprint(childDies, "=", n))
		var output safeText
		cmd.Stderr = &output
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		dead := make(chan struct{})
		go func() { defer close(dead); _ = cmd.Wait() }()
		b.awaitChild()
		call := b.dial(b.phone("+493012345678"), goodNumber)
		var accepted atomic.Bool
		go func() { // a dead process answers nothing
			code, _ := call.Refer(b.t.Context(), "sip:"+secondNumber+"@127.0.0.1")
			accepted.Store(code == 202)
		}()
		select {
		case <-dead:
		case <-b.ctx().Done():
			_ = cmd.Process.Kill()
			t.Fatalf("%d effects were too many", n)
		}
		b.start()
		call.Play(sine(phoneHz, 8000, longTone))
		heard := func(room id.RoomID, m *member.Member) (by bool) {
			b.in(room, func() {
				ghosts := b.ghosts()
				by = len(ghosts) == 1 && loud(m.Heard(ghosts[0]).PCM, phoneHz, 48000)
			})
			return by
		}
		where := ""
		b.await("the phone to be heard somewhere", func() bool {
			switch {
			case heard(b.room, alice):
				where = "in its old room"
			case heard(second, bob):
				where = "in its new room"
			case call.Ended() != "":
				where = "hung up"
				t.Errorf("the child dies after %d effects: the phone hears %q", n, call.Ended())
			}
			return where != ""
		})
		t.Logf("%s: the phone is %s", diesAfter.FindString(output.String()), where)
		if accepted.Load() {
			b.await("the phone to be told how its move went", func() bool { return strings.HasSuffix(strings.Join(call.Notified(), ""), ".") })
			told := call.Notified()[len(call.Notified())-1]
			if where == "in its old room" && told == "SIP/2.0 200 OK." { // the dead process had not heard its wish, which came again to this one
				b.await("the phone to be heard in its new room", func() bool { return heard(second, bob) })
				where = "in its new room"
			}
			if want := map[string]string{"in its old room": "SIP/2.0 100 Trying.", "in its new room": "SIP/2.0 200 OK."}[where]; told != want {
				t.Errorf("the phone is %s, and was told %q, want %q", where, told, want)
			}
		}
		b.hangUp(call)
		b.clear()
		b.in(second, func() { b.clear() })
		b.stop()
		alice.Close()
		bob.Close()
	}
}
