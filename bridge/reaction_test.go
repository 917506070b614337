package bridge

import (
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

// heldReactions says how many reactions the bridge keeps for later, -1 where it keeps none.
func (b *bed) heldReactions() int {
	bridge := b.process.bridge
	bridge.mu.Lock()
	defer bridge.mu.Unlock()
	e := bridge.early[b.room]
	if e == nil {
		return -1
	}
	return len(e.heard)
}

// reactsEarly lets a member react to a notice before the bridge is told its name, which is returned.
func (b *bed) reactsEarly(who *member.Member, key string, begin func(), posted func() id.EventID) id.EventID {
	b.t.Helper()
	slow := b.hs.Break(&homeserver.Fault{Method: "PUT", Path: "/send/m.room.message", User: b.bot(), Times: 1, Slow: make(chan struct{})})
	begin()
	notice := posted()
	b.react(who, notice, key)
	b.await("the bridge to hear of the reaction", func() bool { return b.heldReactions() == 1 })
	close(slow.Slow)
	b.await("held reactions to be let go", func() bool { return b.heldReactions() < 0 })
	return notice
}

// Who reads a notice may react to it before its sender is told which one it is.
func TestReactionToARingThatIsUnderWayDeclinesIt(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.Hydrogen, false)
	var call *phone.Call
	notice := b.reactsEarly(alice, "❌", func() { call = b.begin(b.phone("1"), ringNumber) }, func() id.EventID { return b.awaitRing(1).ID })
	refusedWith(t, call, 603)
	if got := b.outcome(notice); !strings.Contains(got, "declined by @alice") {
		t.Errorf("the notice says %q", got)
	}
}

func TestReactionToALobbyThatIsUnderWayLetsIn(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, true)
	var call *phone.Call
	notice := b.reactsEarly(alice, "✅", func() { call = b.dial(b.phone("+493012345678"), lobbyNumber) }, func() id.EventID { return b.awaitLobby(1).ID })
	b.enters(call, alice)
	if got := b.outcome(notice); !strings.Contains(got, "let in by @alice") {
		t.Errorf("the notice says %q", got)
	}
}

// An order's notice is there before its leg is.
func TestReactionToAnOrderThatIsNotTakenInYetEndsIt(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, false)
	b.reactsEarly(alice, "❌", func() { b.says(alice, "!sip call "+berlin) }, func() id.EventID {
		b.told("Calling ")
		order, _ := b.board()
		return order[len(order)-1]
	})
	b.told("hung up in the room.")
	b.clear()
	b.settled(1)
	if n := p.Rung(); n > 1 {
		t.Errorf("the phone has rung %d times", n)
	}
}
