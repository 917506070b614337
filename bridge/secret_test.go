package bridge

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/bridge/command"
	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/internal/testbed/member"
	"trunkline/matrixcall"
)

// whispers lets a member write something that only devices of the room can read.
func (b *bed) whispers(who *member.Member) {
	b.t.Helper()
	secret := map[string]string{"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgA", "session_id": "s"}
	if _, err := who.Client().SendMessageEvent(b.ctx(), b.room, event.EventEncrypted, secret); err != nil {
		b.t.Fatal(err)
	}
}

// reacts puts an emoji under the notice that reads so now.
func (b *bed) reacts(who *member.Member, key, notice string) {
	b.t.Helper()
	order, texts := b.board()
	i := slices.IndexFunc(order, func(ev id.EventID) bool { return strings.Contains(texts[ev], notice) })
	if i < 0 {
		b.t.Fatalf("no notice reads %q: %q", notice, b.boards())
	}
	b.react(who, order[i], key)
}

const cantRead = "There is an encrypted message here that I can't read"

func (b *bed) toldThatItCantRead() (n int) {
	for _, text := range b.boards() {
		n += strings.Count(text, cantRead)
	}
	return n
}

// Whose messages can't be read calls by an invitation, confirms and hangs up by reactions.
func TestReactionsDoInEncryptedRoomsWhatCommandsCant(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, func(c *config.Config) { c.Dialling.Expensive = []string{"+4930"} })
	alice, bob, eve := b.person("alice", member.JSSDK, true), b.person("bob", member.JSSDK, false), b.person("eve", member.JSSDK, false)
	// An older version had told the room that commands do nothing in it.
	if err := b.process.bridge.store.PutSetting(b.ctx(), "told.encrypted."+string(b.room), "yes", time.Now()); err != nil {
		t.Fatal(err)
	}
	b.whispers(eve) // whose commands would not count
	ghost := id.NewUserID(b.cfg.AppService.GhostPrefix+berlin, b.hs.Domain())
	if _, err := alice.Client().InviteUser(b.ctx(), b.room, &mautrix.ReqInviteUser{UserID: ghost}); err != nil {
		t.Fatal(err)
	}
	b.told("This number is expensive to call.")
	if n := b.toldThatItCantRead(); n != 0 {
		t.Errorf("the room was told %d times because of a stranger that its messages can't be read", n)
	}
	for _, other := range []*member.Member{bob, eve} {
		b.reacts(other, "✅", "This number is expensive")
	}
	b.whispers(bob)
	b.told(cantRead)
	b.told(fmt.Sprintf("invite @%s+4930123456:%s", b.cfg.AppService.GhostPrefix, b.hs.Domain()))
	if n := p.Rung(); n != 0 {
		t.Errorf("the phone has rung %d times without its caller's second word", n)
	}
	b.reacts(alice, "✅", "This number is expensive")
	call := b.called(p)
	if err := call.Ring(); err != nil {
		t.Fatal(err)
	}
	b.told("+493•••••••78 rings.")
	b.reacts(bob, "❌", "rings.") // may look only
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("+493•••••••78 has answered.")
	b.reacts(alice, "❌", "has answered.")
	<-call.Done()
	b.told("hung up in the room.")
	b.clear()
	b.settled(1)
	b.stop()
	b.start()
	b.whispers(alice)
	b.whispers(alice)
	b.says(alice, "!sip who")
	b.told("There is no phone here.")
	if n := b.toldThatItCantRead(); n != 1 {
		t.Errorf("the room was told %d times that its messages can't be read, want once", n)
	}
}

func TestReactionSaysNoToAnExpensiveCall(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, func(c *config.Config) { c.Dialling.Expensive = []string{"+4930"} })
	alice := b.person("alice", member.JSSDK, false)
	b.says(alice, "!sip call "+berlin)
	b.told("This number is expensive to call.")
	b.reacts(alice, "❌", "This number is expensive")
	b.says(alice, "!sip who")
	b.told("There is no phone here.")
	b.says(alice, "!sip confirm")
	b.told("There is no call to confirm.")
	if n := p.Rung(); n != 0 {
		t.Errorf("the phone has rung %d times", n)
	}
}

// While a command is carried out, a few reactions of anybody would else push the next ones out.
func TestReactionsOfWhoMayNotCallWaitForNoTurn(t *testing.T) {
	t.Parallel()
	const room = id.RoomID("!busy:hs.test")
	b := &Bridge{orders: newOrders()}
	b.cfg.Permissions = command.Permissions{"@alice:hs.test": command.LevelCall, "@bob:hs.test": command.LevelView}
	for _, c := range []struct {
		who  id.UserID
		want int
	}{{"@bob:hs.test", 0}, {"@eve:hs.test", 0}, {"@alice:hs.test", 1}} {
		for _, yes := range []bool{true, false} {
			b.orders.waiting[room] = []func(context.Context){}
			b.answerQuestion(matrixcall.RoomReaction{Sender: c.who, Room: room, Target: "$any"}, yes)
			if n := len(b.orders.waiting[room]); n != c.want {
				t.Errorf("%s, %t: %d wait, want %d", c.who, yes, n, c.want)
			}
		}
	}
}

// Whoever may do nothing by commands may decline and admit, if there is somebody to.
func TestReadsOfStrangersWhereSomebodyRingsOrWaits(t *testing.T) {
	t.Parallel()
	const ringing, waiting, quiet = id.RoomID("!ringing:hs.test"), id.RoomID("!waiting:hs.test"), id.RoomID("!quiet:hs.test")
	rings, waits := &actor{ring: ring{on: true}}, &actor{lobby: lobby{on: true, room: waiting}}
	b := &Bridge{
		rooms: map[id.RoomID]*gathering{ringing: {legs: map[*actor]bool{rings: true}}, quiet: {legs: map[*actor]bool{waits: true}}},
		legs:  map[leg.ID]*actor{"1": rings, "2": waits},
	}
	b.cfg.Permissions = command.Permissions{"@bob:hs.test": command.LevelView}
	for _, c := range []struct {
		who  id.UserID
		room id.RoomID
		want bool
	}{
		{"@bob:hs.test", quiet, true},
		{"@bob:hs.test", ringing, true},
		{"@eve:hs.test", quiet, false},
		{"@eve:hs.test", ringing, true},
		{"@eve:hs.test", waiting, true},
		{"@eve:hs.test", "!other:hs.test", false},
	} {
		if got := b.reads(c.who, c.room); got != c.want {
			t.Errorf("%s in %s: %t, want %t", c.who, c.room, got, c.want)
		}
	}
}

// confidant is a member of the room whose client encrypts.
func (b *bed) confidant(name string) *member.Confidant {
	b.t.Helper()
	u := b.hs.User(name)
	b.hs.Join(b.room, u.UserID)
	c, err := member.NewConfidant(b.t.Context(), member.Config{
		URL: b.hs.URL(), UserID: u.UserID, DeviceID: u.DeviceID, AccessToken: u.AccessToken,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(c.Close)
	return c
}

// encrypt has messages encrypted in the room from now on, as one of its admins.
func (b *bed) encrypt(members ...*member.Confidant) {
	b.t.Helper()
	b.hs.SetState(b.room, id.NewUserID("owner", b.hs.Domain()), event.StateEncryption.Type, "", map[string]any{"algorithm": "m.megolm.v1.aes-sha2"})
	for _, m := range members {
		b.await("a client to know that the room is encrypted", func() bool { return m.Knows(b.room) })
	}
	b.await("the bot to have a device", func() bool { return b.process.bridge.matrix.Metrics().GhostsCreated.Load() > 0 })
}

// whispered lets somebody write what only the room can read.
func (b *bed) whispered(who *member.Confidant, text string) {
	b.t.Helper()
	if _, err := who.Say(b.ctx(), b.room, text); err != nil {
		b.t.Fatal(err)
	}
}

// confided waits until a notice that somebody decrypts reads so.
func (b *bed) confided(to *member.Confidant, part string) member.Notice {
	b.t.Helper()
	var found member.Notice
	defer func() {
		if b.t.Failed() {
			b.t.Logf("encrypted notices: %q, in clear: %q", to.Notices(b.room), to.Clear(b.room))
		}
	}()
	b.await(fmt.Sprintf("the room to be told %q in secret", part), func() bool {
		for _, n := range to.Notices(b.room) {
			if strings.Contains(n.Text, part) {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

func TestCommandsAndAnswersAreEncryptedWhereMessagesAre(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice, eve := b.confidant("alice"), b.confidant("eve")
	b.person("carol", member.Hydrogen, true)
	b.encrypt(alice, eve)
	b.whispered(eve, "!sip call "+berlin)
	b.confided(eve, "may not")
	b.whispered(alice, "!sip call "+berlin)
	call := b.called(p)
	if err := call.Ring(); err != nil {
		t.Fatal(err)
	}
	ringing := b.confided(alice, "+493•••••••78 rings.")
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	if answered := b.confided(alice, "+493•••••••78 has answered."); answered.Event != ringing.Event {
		t.Errorf("the answer is another notice (%s) than the ring (%s), want an edit", answered.Event, ringing.Event)
	}
	b.confided(eve, "+493•••••••78 has answered.")
	b.whispered(alice, "!sip who")
	b.confided(alice, "1. +493•••••••78 talks")

	// The next process has the keys that this one was given.
	b.stop()
	b.start()
	b.whispered(alice, "!sip hangup")
	<-call.Done()
	b.confided(alice, "hung up in the room.")
	if said := alice.Clear(b.room); len(said) > 0 {
		t.Errorf("said in clear: %q", said)
	}
}
