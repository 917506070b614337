package matrixcall

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// listener writes down what people say and how they react.
type listener struct {
	mu        sync.Mutex
	messages  []RoomMessage
	reactions []RoomReaction
	secrets   []RoomSecret
}

func (l *listener) options() Options {
	return Options{
		OnMessage: func(m RoomMessage) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.messages = append(l.messages, m)
		},
		OnReaction: func(r RoomReaction) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.reactions = append(l.reactions, r)
		},
		OnEncrypted: func(r RoomSecret) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.secrets = append(l.secrets, r)
		},
	}
}

func (l *listener) heard() ([]RoomMessage, []RoomReaction) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.messages), slices.Clone(l.reactions)
}

// TestPeopleAreHeard: what the bot says and what ghosts say is not.
func TestPeopleAreHeard(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		var l listener
		b.opts = l.options()
		s := b.start()
		alice := b.person("alice", false)
		g := b.ghost("_sip_quiet")
		room := alice.room(s.Bot())
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		var wantMessages []RoomMessage
		var wantReactions []RoomReaction
		for n := range 10 {
			notice, err := s.NoticeID(t.Context(), room, nil, "not for the bridge itself")
			if err != nil {
				t.Fatal(err)
			}
			said, err := alice.client.SendText(t.Context(), room, fmt.Sprint(n))
			if err != nil {
				t.Fatal(err)
			}
			wantMessages = append(wantMessages, RoomMessage{room, said.EventID, alice.user, fmt.Sprint(n)})
			if _, err := g.asUser.SendText(t.Context(), room, "a ghost"); err != nil {
				t.Fatal(err)
			}
			shown, err := alice.client.SendReaction(t.Context(), room, notice, "👍️")
			if err != nil {
				t.Fatal(err)
			}
			wantReactions = append(wantReactions, RoomReaction{room, shown.EventID, alice.user, notice, "👍️"})
			if _, err := s.bot.SendReaction(t.Context(), room, said.EventID, "✅"); err != nil {
				t.Fatal(err)
			}
		}
		edit := &event.MessageEventContent{MsgType: event.MsgText, Body: "!correction"}
		edit.SetEdit(wantMessages[0].Event)
		if _, err := alice.client.SendMessageEvent(t.Context(), room, event.EventMessage, edit); err != nil {
			t.Fatal(err)
		}
		last, err := alice.client.SendText(t.Context(), room, "last")
		if err != nil {
			t.Fatal(err)
		}
		wantMessages = append(wantMessages, RoomMessage{room, last.EventID, alice.user, "last"})
		b.eventually(time.Minute, func() string {
			if messages, _ := l.heard(); len(messages) < len(wantMessages) {
				return fmt.Sprintf("%d messages heard, want %d", len(messages), len(wantMessages))
			}
			return ""
		})
		messages, reactions := l.heard()
		if !slices.Equal(messages, wantMessages) {
			t.Errorf("messages %v\nwant %v", messages, wantMessages)
		}
		if !slices.Equal(reactions, wantReactions) {
			t.Errorf("reactions %v\nwant %v", reactions, wantReactions)
		}
	})
}

// TestOnlyLiveSoundMessagesAreHeard hands in what a homeserver could: old
// events after an outage, and contents nobody's client writes.
func TestOnlyLiveSoundMessagesAreHeard(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		var l listener
		b.opts = l.options()
		b.start()
		time.Sleep(time.Hour) // time in a bubble begins in 2000
		number := 0
		put := func(event string) {
			t.Helper()
			number++
			body := fmt.Sprintf(`{"events":[{"event_id":"$%d","room_id":"!r","origin_server_ts":%d,"sender":"@alice:hs.test",%s}]}`,
				number, time.Now().UnixMilli(), event)
			if status, _ := ask(b.service, "PUT", fmt.Sprintf("/_matrix/app/v1/transactions/%d", number), "hs-token-of-the-test", body); status != 200 {
				t.Fatalf("%s: status %d", event, status)
			}
			synctest.Wait()
		}
		text := func(body string) string {
			quoted, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			return `"type":"m.room.message","content":{"msgtype":"m.text","body":` + string(quoted) + `}`
		}
		reaction := func(target, key string) string {
			return fmt.Sprintf(`"type":"m.reaction","content":{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":%q}}`, target, key)
		}
		long := func(n int) string { return strings.Repeat("x", n) }
		old := time.Now().Add(-2 * time.Minute).UnixMilli()
		for _, test := range []struct {
			name, event string
			heard       bool
		}{
			{"text", text("!call"), true},
			{"text of the longest kind", text(long(maxBody)), true},
			{"too long", text(long(maxBody + 1)), false},
			{"empty", text(""), false},
			{"control characters and half a character", text("a\x00\u202e\n\xff"), true},
			{"no content", `"type":"m.room.message"`, false},
			{"content that is no object", `"type":"m.room.message","content":[1]`, false},
			{"body that is no text", `"type":"m.room.message","content":{"msgtype":"m.text","body":7}`, false},
			{"notice", `"type":"m.room.message","content":{"msgtype":"m.notice","body":"x"}`, false},
			{"emote", `"type":"m.room.message","content":{"msgtype":"m.emote","body":"x"}`, false},
			{"edit", `"type":"m.room.message","content":{"msgtype":"m.text","body":"* x","m.relates_to":{"rel_type":"m.replace","event_id":"$1"}}`, false},
			{"edit without a relation", `"type":"m.room.message","content":{"msgtype":"m.text","body":"* x","m.new_content":{}}`, false},
			{"reply", `"type":"m.room.message","content":{"msgtype":"m.text","body":"x","m.relates_to":{"m.in_reply_to":{"event_id":"$1"}}}`, true},
			{"relation that is no object", `"type":"m.room.message","content":{"msgtype":"m.text","body":"x","m.relates_to":"x"}`, true},
			{"state of that type", text("x") + `,"state_key":""`, false},
			{"encrypted", `"type":"m.room.encrypted","content":{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"x"}`, false},
			{"our bot", text("x") + `,"sender":"@phonebot:hs.test"`, false},
			{"our ghost", text("x") + `,"sender":"@_sip_1:hs.test"`, false},
			{"nobody", text("x") + `,"sender":""`, false},
			{"old by its sender's clock", text("x") + fmt.Sprintf(`,"origin_server_ts":%d`, old), false},
			{"old by our homeserver's", text("x") + `,"unsigned":{"age":60001}`, false},
			{"young, from a homeserver whose clock is late", text("x") + fmt.Sprintf(`,"origin_server_ts":%d,"unsigned":{"age":15}`, old), true},
			{"young, from a homeserver whose clock is early", text("x") + fmt.Sprintf(`,"origin_server_ts":%d`, time.Now().Add(time.Hour).UnixMilli()), true},
			{"unsigned that is no object", text("x") + `,"unsigned":"x"`, true},
			{"reaction", reaction("$1", "👍"), true},
			{"longest reaction", reaction("$1", long(maxReaction)), true},
			{"reaction that is too long", reaction("$1", long(maxReaction+1)), false},
			{"reaction to too long an id", reaction("$"+long(maxEventID), "👍"), false},
			{"reaction to nothing", reaction("", "👍"), false},
			{"empty reaction", reaction("$1", ""), false},
			{"old reaction", reaction("$1", "👍") + `,"unsigned":{"age":60001}`, false},
			{"our own reaction", reaction("$1", "👍") + `,"sender":"@phonebot:hs.test"`, false},
			{"reaction without a relation", `"type":"m.reaction","content":{}`, false},
			{"another relation", `"type":"m.reaction","content":{"m.relates_to":{"rel_type":"m.thread","event_id":"$1","key":"x"}}`, false},
			{"text again", text("!call"), true},
		} {
			messages, reactions := l.heard()
			before := len(messages) + len(reactions)
			put(test.event)
			messages, reactions = l.heard()
			if heard := len(messages)+len(reactions) > before; heard != test.heard {
				t.Errorf("%s: heard %v, want %v", test.name, heard, test.heard)
			}
		}
	})
}

// TestMessageThatWaitedTooLongIsNotHeard: a room's queue can stand still while
// the bot joins.
func TestMessageThatWaitedTooLongIsNotHeard(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		var l listener
		b.opts = l.options()
		s := b.start()
		now := time.Now()
		e := roomEvent{
			Type: event.EventMessage.Type, Room: "!r", Event: "$1", Sender: id.NewUserID("alice", "hs.test"),
			Time: now.UnixMilli(), Content: json.RawMessage(`{"msgtype":"m.text","body":"x"}`), Unsigned: json.RawMessage(`{"age":1000}`), came: now,
		}
		time.Sleep(liveAge - time.Second)
		s.handleRoomEvent(e)
		time.Sleep(time.Millisecond)
		s.handleRoomEvent(e)
		if messages, _ := l.heard(); len(messages) != 1 {
			t.Errorf("heard %d times, want once: the second time it was older than %v", len(messages), liveAge)
		}
	})
}

// TestMessageIsHeardOnceOverARestart: the homeserver repeats a transaction
// whose answer it has lost, to the next process if need be.
func TestMessageIsHeardOnceOverARestart(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		var l listener
		b.opts = l.options()
		b.start()
		put := func() {
			t.Helper()
			body := fmt.Sprintf(`{"events":[{"event_id":"$1","room_id":"!r","origin_server_ts":%d,"sender":"@alice:hs.test",`+
				`"type":"m.room.message","content":{"msgtype":"m.text","body":"!call"}}]}`, time.Now().UnixMilli())
			if status, _ := ask(b.service, "PUT", "/_matrix/app/v1/transactions/7", "hs-token-of-the-test", body); status != 200 {
				t.Fatalf("status %d", status)
			}
			synctest.Wait()
		}
		put()
		b.stop(b.service)
		b.start()
		put()
		if messages, _ := l.heard(); len(messages) != 1 {
			t.Errorf("heard %d times, want once", len(messages))
		}
	})
}

// TestEncryptedMessagesAreNoticed: that somebody has said something, not what.
func TestEncryptedMessagesAreNoticed(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		var l listener
		b.opts = l.options()
		s := b.start()
		for _, e := range []roomEvent{
			{Sender: id.NewUserID("alice", "hs.test"), Unsigned: json.RawMessage(`{"age":7}`)},
			{Sender: s.Bot(), Unsigned: json.RawMessage(`{"age":7}`)},
			{Sender: "@_sip_1:hs.test", Unsigned: json.RawMessage(`{"age":7}`)},
			{Sender: id.NewUserID("bob", "hs.test"), Unsigned: json.RawMessage(`{"age":60001}`)},
			{Sender: id.NewUserID("carol", "hs.test"), StateKey: new(string)},
		} {
			e.Type, e.Room, e.Event, e.came = event.EventEncrypted.Type, "!r", "$1", time.Now()
			e.Content = json.RawMessage(`{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"x"}`)
			if s.wanted(e) {
				s.handleRoomEvent(e)
			}
		}
		time.Sleep(devicePatience)
		l.mu.Lock()
		defer l.mu.Unlock()
		if want := []RoomSecret{{"!r", id.NewUserID("alice", "hs.test")}}; !slices.Equal(l.secrets, want) {
			t.Errorf("noticed %v, want %v: nobody else lives, or is a person", l.secrets, want)
		}
	})
}
