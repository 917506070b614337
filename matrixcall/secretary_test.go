package matrixcall

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
)

// confidant is an ordinary user whose client encrypts.
func (b *bed) confidant(name string) *member.Confidant {
	b.Helper()
	u := b.fake.User(name)
	c, err := member.NewConfidant(b.Context(), member.Config{
		URL: b.url, UserID: u.UserID, DeviceID: u.DeviceID, AccessToken: u.AccessToken, HTTP: &http.Client{Transport: b.web},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	return c
}

// secretRoom is an encrypted room with the bot in it, where all know that it is encrypted.
func (b *bed) secretRoom(owner *member.Confidant, others ...*member.Confidant) id.RoomID {
	b.Helper()
	answer, err := owner.Client().CreateRoom(b.Context(), &mautrix.ReqCreateRoom{
		Preset: "private_chat", Invite: []id.UserID{b.service.Bot()},
		InitialState: []*event.Event{{
			Type: event.StateEncryption, Content: event.Content{Parsed: &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1}},
		}},
	})
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range others {
		b.admit(owner, c, answer.RoomID)
	}
	b.eventually(time.Minute, func() string {
		for _, c := range append(others, owner) {
			if !c.Knows(answer.RoomID) {
				return "somebody does not know that the room is encrypted"
			}
		}
		if g := b.service.knownGhost(b.service.Bot()); g == nil || !g.listens() {
			return "the bot has no device"
		}
		members, err := owner.Client().JoinedMembers(b.Context(), answer.RoomID)
		if err != nil {
			b.Fatal(err)
		}
		if _, in := members.Joined[b.service.Bot()]; !in {
			return "the bot is not in the room"
		}
		return ""
	})
	return answer.RoomID
}

func (b *bed) admit(host, guest *member.Confidant, room id.RoomID) {
	b.Helper()
	if _, err := host.Client().InviteUser(b.Context(), room, &mautrix.ReqInviteUser{UserID: guest.Client().UserID}); err != nil {
		b.Fatal(err)
	}
	if _, err := guest.Client().JoinRoomByID(b.Context(), room); err != nil {
		b.Fatal(err)
	}
}

func (b *bed) whispers(who *member.Confidant, room id.RoomID, text string) {
	b.Helper()
	if _, err := who.Say(b.Context(), room, text); err != nil {
		b.Fatal(err)
	}
}

// told is what was read and who was not understood, after a while.
func (l *listener) told() (texts []string, secrets int) {
	time.Sleep(keyPatience + 2*time.Second)
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.messages {
		texts = append(texts, string(m.Sender[:2])+m.Body)
	}
	return texts, len(l.secrets)
}

func (l *listener) want(t *testing.T, secrets int, texts ...string) {
	t.Helper()
	got, unread := l.told()
	if !slices.Equal(got, texts) || unread != secrets {
		t.Errorf("read %q and could not read %d, want %q and %d", got, unread, texts, secrets)
	}
}

// secretly runs a test beside an encrypted room of alice and bob.
func secretly(t *testing.T, test func(t *testing.T, b *bed, l *listener, room id.RoomID, alice, bob *member.Confidant)) {
	t.Helper()
	bubble(t, func(t *testing.T, b *bed) {
		var l listener
		b.opts = l.options()
		b.start()
		alice, bob := b.confidant("alice"), b.confidant("bob")
		test(t, b, &l, b.secretRoom(alice, bob), alice, bob)
	})
}

func TestEncryptedMessagesAreReadAlsoByTheNextProcess(t *testing.T) {
	secretly(t, func(t *testing.T, b *bed, l *listener, room id.RoomID, alice, bob *member.Confidant) {
		b.whispers(alice, room, "one")
		b.whispers(bob, room, "two")
		l.want(t, 0, "@aone", "@btwo")
		b.stop(b.service)
		b.start()
		b.whispers(alice, room, "three") // its key was sent to the process before
		l.want(t, 0, "@aone", "@btwo", "@athree")
		if n := b.service.Metrics().GhostsCreated.Load(); n != 0 {
			t.Errorf("the bot has got %d devices more", n)
		}
	})
}

// withheld encrypts a message with a key that is given to nobody, until give is called.
func withheld(t *testing.T, who *member.Confidant, room id.RoomID, text string) (sealed *event.EncryptedEventContent, give func()) {
	t.Helper()
	store := who.Machine().CryptoStore
	session, err := crypto.NewOutboundGroupSession(room, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	session.Shared = true
	session.ShareContent() // remembers the key as it is before the first message
	if err := store.AddOutboundGroupSession(t.Context(), session); err != nil {
		t.Fatal(err)
	}
	if sealed, err = who.Seal(t.Context(), room, map[string]any{"msgtype": "m.text", "body": text}); err != nil {
		t.Fatal(err)
	}
	return sealed, func() {
		session.Shared = false
		if err := store.AddOutboundGroupSession(t.Context(), session); err != nil { // its client drops it at the news of a device
			t.Fatal(err)
		}
		members, err := who.Client().JoinedMembers(t.Context(), room)
		if err != nil {
			t.Fatal(err)
		}
		var users []id.UserID
		for user := range members.Joined {
			users = append(users, user)
		}
		if err := who.Machine().ShareGroupSession(t.Context(), room, users); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMessageWhoseKeyComesLateIsReadAndOneWithoutIsTold(t *testing.T) {
	secretly(t, func(t *testing.T, b *bed, l *listener, room id.RoomID, alice, _ *member.Confidant) {
		sealed, give := withheld(t, alice, room, "early")
		if _, err := alice.Send(t.Context(), room, sealed); err != nil {
			t.Fatal(err)
		}
		time.Sleep(keyPatience / 2)
		give()
		l.want(t, 0, "@aearly")

		sealed, _ = withheld(t, alice, room, "never")
		if _, err := alice.Send(t.Context(), room, sealed); err != nil {
			t.Fatal(err)
		}
		l.want(t, 1, "@aearly")
	})
}

// A homeserver that shows the bot an order again, as another event, in another's name or in another room, has ordered nothing.
func TestRepeatedAndForgedMessagesAreNotRead(t *testing.T) {
	secretly(t, func(t *testing.T, b *bed, l *listener, room id.RoomID, alice, bob *member.Confidant) {
		sealed, err := alice.Seal(t.Context(), room, map[string]any{"msgtype": "m.text", "body": "call"})
		if err != nil {
			t.Fatal(err)
		}
		other := b.secretRoom(alice, bob)
		for _, said := range []struct {
			by *member.Confidant
			in id.RoomID
		}{{alice, room}, {alice, room}, {bob, room}, {alice, other}} {
			if _, err := said.by.Send(t.Context(), said.in, sealed); err != nil {
				t.Fatal(err)
			}
		}
		l.want(t, 3, "@acall")
		b.stop(b.service)
		b.start()
		if _, err := alice.Send(t.Context(), room, sealed); err != nil {
			t.Fatal(err)
		}
		l.want(t, 4, "@acall")

		// Nor does it by the event itself, which this process has not seen.
		for _, e := range b.fake.Timeline(room) {
			if e.Type == event.EventEncrypted.Type && e.Sender == alice.Client().UserID {
				now := time.Now()
				b.service.secretary.put(roomEvent{
					Type: e.Type, Room: room, Event: e.ID, Sender: e.Sender, Time: e.At, Content: e.Content,
					Unsigned: json.RawMessage(`{"age":0}`), came: now,
				})
			}
		}
		l.want(t, 7, "@acall")
	})
}

// Who gives the bot another's key as their own takes nothing from its owner.
func TestKeyOfAnotherDoesNotTakeItsPlace(t *testing.T) {
	secretly(t, func(t *testing.T, b *bed, l *listener, room id.RoomID, alice, bob *member.Confidant) {
		sealed, give := withheld(t, alice, room, "mine")
		session, err := alice.Machine().CryptoStore.GetOutboundGroupSession(t.Context(), room)
		if err != nil {
			t.Fatal(err)
		}
		b.whispers(bob, room, "hello") // he has an olm session with the bot now
		g := b.service.knownGhost(b.service.Bot())
		content := session.ShareContent()
		device, err := bob.Machine().GetOrFetchDevice(t.Context(), g.user, g.device)
		if err != nil {
			t.Fatal(err)
		}
		if err := bob.Machine().SendEncryptedToDevice(t.Context(), device, event.ToDeviceRoomKey, content); err != nil {
			t.Fatal(err)
		}
		time.Sleep(keyPatience)
		give()
		if _, err := alice.Send(t.Context(), room, sealed); err != nil {
			t.Fatal(err)
		}
		l.want(t, 0, "@bhello", "@amine")
	})
}

func TestEncryptedEditsAndNoticesAreNoOrders(t *testing.T) {
	secretly(t, func(t *testing.T, b *bed, l *listener, room id.RoomID, alice, _ *member.Confidant) {
		first, err := alice.Say(t.Context(), room, "once")
		if err != nil {
			t.Fatal(err)
		}
		for _, content := range []map[string]any{
			{"msgtype": "m.notice", "body": "notice"},
			{
				"msgtype": "m.text", "body": "* edit", "m.new_content": map[string]any{"msgtype": "m.text", "body": "edit"},
				"m.relates_to": map[string]any{"rel_type": "m.replace", "event_id": first},
			},
		} {
			sealed, err := alice.Seal(t.Context(), room, content)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := alice.Send(t.Context(), room, sealed); err != nil {
				t.Fatal(err)
			}
		}
		l.want(t, 0, "@aonce")
	})
}

// keysUsed lists the keys of the bot's encrypted notices, in order.
func (b *bed) keysUsed(room id.RoomID) (keys []id.SessionID) {
	for _, e := range b.fake.Timeline(room) {
		var content struct {
			Session id.SessionID `json:"session_id"`
		}
		if e.Type == event.EventEncrypted.Type && e.Sender == b.service.Bot() && json.Unmarshal(e.Content, &content) == nil {
			keys = append(keys, content.Session)
		}
	}
	return keys
}

func (b *bed) notices(room id.RoomID, text string) id.EventID {
	b.Helper()
	said, err := b.service.NoticeID(b.Context(), room, nil, text)
	if err != nil {
		b.Fatal(err)
	}
	return said
}

// The key changes when somebody has left; who comes, or has a new device, is given it.
func TestNoticesAreReadByThoseWhoAreThere(t *testing.T) {
	secretly(t, func(t *testing.T, b *bed, _ *listener, room id.RoomID, alice, bob *member.Confidant) {
		first := b.notices(room, "first")
		b.notices(room, "second")
		if err := b.service.EditNotice(t.Context(), room, first, "changed"); err != nil {
			t.Fatal(err)
		}
		carol := b.confidant("carol")
		b.admit(alice, carol, room)
		time.Sleep(time.Second)
		b.notices(room, "third")
		if _, err := bob.Client().LeaveRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.notices(room, "fourth")
		time.Sleep(ownKeyLife + time.Second)
		b.notices(room, "fifth")
		time.Sleep(time.Minute)
		read := func(c *member.Confidant) (texts []string) {
			for _, n := range c.Notices(room) {
				texts = append(texts, n.Text)
			}
			return texts
		}
		if got, want := read(alice), []string{"changed", "second", "third", "fourth", "fifth"}; !slices.Equal(got, want) {
			t.Errorf("alice reads %q, want %q", got, want)
		}
		if got, want := read(carol), []string{"third", "fourth", "fifth"}; !slices.Equal(got, want) {
			t.Errorf("carol, who came later, reads %q, want %q", got, want)
		}
		keys := b.keysUsed(room)
		if n := len(slices.Compact(slices.Clone(keys))); len(keys) != 6 || n != 4 || keys[0] != keys[2] {
			t.Errorf("keys %q, want a new one after somebody has come, has left, and when it is old", keys)
		}
		if clear := alice.Clear(room); len(clear) > 0 {
			t.Errorf("said in clear: %q", clear)
		}
	})
}

// Where nobody can be given the key, what is private is not said at all.
func TestNoticesThatCannotBeEncryptedAreNotSaidInClear(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false) // her client has no keys
		room := alice.room(b.service.Bot())
		_, err := alice.client.SendStateEvent(t.Context(), room, event.StateEncryption, "", &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1})
		if err != nil {
			t.Fatal(err)
		}
		said := b.notices(room, "PIN 4711")
		if err := b.service.EditNotice(t.Context(), room, said, "PIN 4712"); err == nil {
			t.Error("an edit that cannot be encrypted is no error")
		}
		g := b.ghost("_sip_herald")
		if err := b.service.HarmlessNotice(t.Context(), room, g, "nobody's secret"); err != nil {
			t.Fatal(err)
		}
		texts := b.said(room)
		for _, e := range b.fake.Timeline(room) {
			if strings.Contains(string(e.Content), "471") {
				t.Errorf("%s betrays the PIN: %s", e.Type, e.Content)
			}
		}
		if want := []string{unsaid, "nobody's secret"}; !slices.Equal(texts, want) {
			t.Errorf("said %q, want %q", texts, want)
		}
		if n := b.service.Metrics().NoticesUnsealed.Load(); n != 3 {
			t.Errorf("counted %d notices that could not be encrypted, want 3", n)
		}
	})
}

// Who speaks has little time. Encrypting that hangs leaves enough of it for the sentence that takes the notice's place.
func TestNoticeWhoseEncryptingHangsIsReplacedInTime(t *testing.T) {
	secretly(t, func(t *testing.T, b *bed, _ *listener, room id.RoomID, alice, _ *member.Confidant) {
		time.Sleep(membersLife + time.Second) // who is there has to be asked anew
		hangs := make(chan struct{})
		defer close(hangs)
		b.fake.Break(&homeserver.Fault{Path: "/joined_members", Hold: hangs})
		ctx, cancel := context.WithTimeout(t.Context(), sealPatience)
		defer cancel()
		if _, err := b.service.NoticeID(ctx, room, nil, "PIN 4711"); err != nil {
			t.Fatal(err)
		}
		if said := b.said(room); !slices.Equal(said, []string{unsaid}) {
			t.Errorf("said %q, want %q", said, unsaid)
		}
	})
}

// One failure of the homeserver to say whether a room is encrypted silences nobody there.
func TestNoticeIsSaidThoughTheHomeserverFailedOnce(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.start()
		room := b.person("alice", false).room(b.service.Bot())
		b.eventually(time.Minute, func() string { return b.inRoom(room) })
		fault := b.fake.Break(&homeserver.Fault{
			Path: "/state/" + event.StateEncryption.Type, Error: &homeserver.Error{Status: http.StatusInternalServerError, Code: "M_UNKNOWN"}, Times: 1,
		})
		b.notices(room, "hello")
		if said := b.said(room); fault.Hits() != 1 || !slices.Equal(said, []string{"hello"}) {
			t.Errorf("after %d failures said %q, want the notice", fault.Hits(), said)
		}
	})
}

// The bot takes an invitation, device or not: a homeserver that hangs over the device's keys does not use up the time for joining.
func TestBotJoinsThoughItsDeviceIsNotMade(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.confidant("alice")
		hangs := make(chan struct{})
		defer close(hangs)
		b.fake.Break(&homeserver.Fault{Path: "/keys/upload", Hold: hangs})
		answer, err := alice.Client().CreateRoom(t.Context(), &mautrix.ReqCreateRoom{
			Preset: "private_chat", Invite: []id.UserID{b.service.Bot()},
			InitialState: []*event.Event{{
				Type: event.StateEncryption, Content: event.Content{Parsed: &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1}},
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		b.eventually(time.Minute, func() string { return b.inRoom(answer.RoomID) })
	})
}

// said is what was said in a room in clear.
func (b *bed) said(room id.RoomID) (texts []string) {
	for _, e := range b.fake.Timeline(room) {
		var content struct{ Body string }
		if e.Type == event.EventMessage.Type && json.Unmarshal(e.Content, &content) == nil {
			texts = append(texts, content.Body)
		}
	}
	return texts
}

// inRoom complains while the bot is not in a room.
func (b *bed) inRoom(room id.RoomID) string {
	if state := b.fake.State(room, event.StateMember.Type, b.service.Bot().String()); !strings.Contains(string(state), `"join"`) {
		return "the bot is not in the room"
	}
	return ""
}

// A homeserver that has lost the bot's device gets another, whose key clients find.
func TestBotGetsAnotherDeviceWhenItsOwnIsGone(t *testing.T) {
	secretly(t, func(t *testing.T, b *bed, l *listener, room id.RoomID, alice, _ *member.Confidant) {
		b.whispers(alice, room, "one")
		l.want(t, 0, "@aone")
		b.fake.RemoveDevice(b.service.Bot(), b.service.knownGhost(b.service.Bot()).device)
		time.Sleep(time.Minute)
		b.whispers(alice, room, "two")
		l.want(t, 0, "@aone", "@atwo")
	})
}

// A process that is not started yet may have another one beside it that uses the bot's device still: it keeps its hands off, and reads
// what came meanwhile when it is started.
func TestBotsDeviceIsNotTouchedBeforeTheStart(t *testing.T) {
	secretly(t, func(t *testing.T, b *bed, l *listener, room id.RoomID, alice, bob *member.Confidant) {
		b.stop(b.service)
		s, err := New(b.config(), b.store, b.olm, b.opts, testLog(b))
		if err != nil {
			t.Fatal(err)
		}
		b.service = s
		b.Cleanup(func() { b.stop(s) })
		b.handler.set(s.HTTPHandler())
		b.whispers(alice, room, "call")
		_, err = bob.Client().CreateRoom(t.Context(), &mautrix.ReqCreateRoom{
			Preset: "private_chat", Invite: []id.UserID{s.Bot()}, InitialState: []*event.Event{{
				Type: event.StateEncryption, Content: event.Content{Parsed: &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1}},
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		l.want(t, 0)
		if g := s.knownGhost(s.Bot()); g != nil {
			t.Error("the bot's device is in use before the start")
		}
		if n := s.metrics.Polls.Load(); n != 0 {
			t.Errorf("%d requests for the bot's keys before the start", n)
		}
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.want(t, 0, "@acall")
	})
}

// Anybody may write to the bot's device, each time by another key. What is at hand of that is bounded, and what it leaves behind goes;
// whom we know is understood as before.
func TestOlmSessionsAreBounded(t *testing.T) {
	secretly(t, func(t *testing.T, b *bed, l *listener, room id.RoomID, alice, bob *member.Confidant) {
		b.whispers(alice, room, "one")
		l.want(t, 0, "@aone")
		sessions := b.service.knownGhost(b.service.Bot()).keys.megolm.callStore
		time.Sleep(peerLife)
		for n := range maxPeers + 100 {
			sessions.HasSession(t.Context(), id.SenderKey(fmt.Sprintf("nobody's key %d", n)))
		}
		sessions.mu.Lock()
		if n := len(sessions.sessions); n > maxPeers {
			t.Errorf("the sessions of %d devices are at hand, want %d at most", n, maxPeers)
		}
		sessions.mu.Unlock()

		b.whispers(alice, room, "two") // by a session that is read again
		l.want(t, 0, "@aone", "@atwo")
		for _, change := range []string{
			`UPDATE crypto_olm_session SET last_decrypted = $1, last_encrypted = $1`,
			`INSERT INTO crypto_olm_session (account_id, session_id, sender_key, session, created_at, last_decrypted, last_encrypted)
				SELECT account_id, 'stranger', 'stranger', session, $1, $1, $1 FROM crypto_olm_session LIMIT 1`,
		} {
			if _, err := b.olm.Exec(t.Context(), change, time.Now().Add(-peerSessionLife-time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		b.stop(b.service)
		b.start()
		b.whispers(bob, room, "three")
		l.want(t, 0, "@aone", "@atwo", "@bthree")
		b.whispers(alice, room, "four")
		l.want(t, 0, "@aone", "@atwo", "@bthree", "@afour")
		var left, strange int
		err := b.olm.QueryRow(t.Context(), `SELECT COUNT(*), COUNT(CASE WHEN sender_key = 'stranger' THEN 1 END) FROM crypto_olm_session`).Scan(&left, &strange)
		if err != nil {
			t.Fatal(err)
		}
		if strange != 0 || left < 2 {
			t.Errorf("%d sessions are left, %d of them of a device that nobody knows", left, strange)
		}
	})
}

// lateMembers is the way to a homeserver whose answers who is in a room arrive late.
type lateMembers struct{ http.RoundTripper }

func (l lateMembers) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := l.RoundTripper.RoundTrip(r)
	if strings.HasSuffix(r.URL.Path, "/joined_members") {
		time.Sleep(2 * time.Second)
	}
	return answer, err
}

// Who leaves while it is asked who is there is given no key afterwards.
func TestWhoHasLeftIsNotBelievedToBeThere(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.web = lateMembers{b.web}
		s := b.start()
		alice, bob := b.confidant("alice"), b.confidant("bob")
		room := b.secretRoom(alice, bob)
		time.Sleep(membersLife)
		asked := make(chan error, 1)
		go func() {
			_, err := s.secretary.people(t.Context(), room)
			asked <- err
		}()
		time.Sleep(time.Second)
		if _, err := bob.Client().LeaveRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		if err := <-asked; err != nil {
			t.Fatal(err)
		}
		users, err := s.secretary.people(t.Context(), room)
		if want := []id.UserID{alice.Client().UserID}; err != nil || !slices.Equal(users, want) {
			t.Errorf("people are %v (%v), want %v", users, err, want)
		}
	})
}

// Anybody may send the bot keys. Those of one user are few, and none stays for ever.
func TestRoomKeysAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		s := b.start()
		g, err := s.secretary.device(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		put := func(user id.UserID, n int) {
			for range n {
				out, err := crypto.NewOutboundGroupSession("!room", nil, nil)
				if err != nil {
					t.Fatal(err)
				}
				in, err := crypto.NewInboundGroupSession("curve", "ed", "!room", out.Internal.Key(), 0, 0, nil, false)
				if err != nil {
					t.Fatal(err)
				}
				in.SourceUser = user
				if err := g.keys.megolm.PutGroupSession(t.Context(), in); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
		}
		count := func(table string) (n int) {
			if err := b.olm.QueryRow(t.Context(), fmt.Sprintf("SELECT COUNT(*) FROM %s", table)).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		put("@eve:hs.test", maxKeys+20)
		put("@alice:hs.test", 1)
		if n := count("crypto_megolm_inbound_session"); n != maxKeys+1 {
			t.Errorf("%d keys are kept, want %d of who sends many, and 1", n, maxKeys)
		}
		if _, err := g.keys.megolm.ValidateMessageIndex(t.Context(), "gone", "$1", 1, 1); err != nil {
			t.Fatal(err)
		}
		if err := g.keys.megolm.sweep(context.Background(), time.Now()); err != nil { // as if it were that late

			t.Fatal(err)
		}
		if n := count("crypto_megolm_inbound_session") + count("crypto_message_index"); n != 0 {
			t.Errorf("%d rows are left when all are old", n)
		}
	})
}

// garbled is a message whose key nobody has.
func garbled(sender id.UserID, room id.RoomID) roomEvent {
	return roomEvent{
		Type: event.EventEncrypted.Type, Sender: sender, Room: room, Event: id.EventID("$" + newID()),
		Time: time.Now().UnixMilli(), came: time.Now(),
		Content: json.RawMessage(fmt.Sprintf(`{"algorithm":"m.megolm.v1.aes-sha2","session_id":%q,"ciphertext":%q}`,
			strings.Repeat("s", 43), strings.Repeat("c", 100))),
	}
}

// babble lets a person a beat write in rooms what can't be read, one after the other, until stop is called.
func babble(s *Service, beat time.Duration, who func(n int) (id.UserID, id.RoomID)) (stop func()) {
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; sleep(ctx, beat) == nil; n++ {
			s.secretary.put(garbled(who(n)))
		}
	}()
	return func() { cancel(); <-done }
}

// However many messages wait for their keys, the poller gets on that brings them.
func TestManyWhoWaitForKeysDoNotKeepThemAway(t *testing.T) {
	secretly(t, func(t *testing.T, b *bed, l *listener, room id.RoomID, alice, _ *member.Confidant) {
		before := b.service.metrics.Polls.Load()
		stop := babble(b.service, 25*time.Millisecond, func(n int) (id.UserID, id.RoomID) {
			return id.UserID(fmt.Sprintf("@user%d:hs.test", n%40)), room
		})
		defer stop()
		time.Sleep(20 * time.Second)
		if n := b.service.metrics.Polls.Load() - before; n < 10 || n > 60 {
			t.Errorf("%d requests for keys in 20 s, want about one each second", n)
		}
		sealed, give := withheld(t, alice, room, "call")
		give()
		if _, err := alice.Send(t.Context(), room, sealed); err != nil {
			t.Fatal(err)
		}
		if texts, _ := l.told(); !slices.Equal(texts, []string{"@acall"}) {
			t.Errorf("read %q, want alice's message", texts)
		}
	})
}

// Whoever invites the bot to many rooms, and whoever may do nothing, leave room for the others.
func TestWhoBabblesShutsNobodyOut(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		var l listener
		b.opts = l.options()
		b.opts.Reads = func(user id.UserID, _ id.RoomID) bool { return !strings.HasPrefix(string(user), "@stranger") }
		s := b.start()
		alice := b.confidant("alice")
		room := b.secretRoom(alice)
		for _, c := range []struct {
			name string
			who  func(n int) (id.UserID, id.RoomID)
		}{
			{"one in many rooms", func(n int) (id.UserID, id.RoomID) { return "@eve:hs.test", id.RoomID(fmt.Sprintf("!%d", n%100)) }},
			{"many strangers", func(n int) (id.UserID, id.RoomID) { return id.UserID(fmt.Sprintf("@stranger%d:hs.test", n%100)), room }},
		} {
			stop := babble(s, 20*time.Millisecond, c.who)
			time.Sleep(keyPatience)
			b.whispers(alice, room, c.name)
			time.Sleep(time.Second)
			heard, _ := l.heard()
			if n := len(heard); n == 0 || heard[n-1].Body != c.name {
				t.Errorf("%s: alice is not read", c.name)
			}
			stop()
			time.Sleep(3 * keyPatience * maxSecrets)
			s.secretary.mu.Lock()
			if len(s.secretary.waiting) > 0 {
				t.Errorf("%s: %d queues are left", c.name, len(s.secretary.waiting))
			}
			s.secretary.mu.Unlock()
		}
	})
}

// On a node that has met no encrypted room, and after the update to the version that reads them, the first message is read, too.
func TestFirstMessageIsReadWhereRoomsWereEncryptedBefore(t *testing.T) {
	secretly(t, func(t *testing.T, b *bed, l *listener, room id.RoomID, alice, _ *member.Confidant) {
		for _, c := range []struct{ node, forget string }{
			{"two", ""},
			{"three", "DELETE FROM crypto_account"},
		} {
			b.stop(b.service)
			if c.forget != "" {
				if _, err := b.olm.Exec(t.Context(), c.forget); err != nil {
					t.Fatal(err)
				}
			}
			b.node = c.node
			b.start()
			time.Sleep(5 * time.Second) // its client hears of the device
			b.whispers(alice, room, c.node)
			time.Sleep(keyPatience) // it is read before the next process begins
		}
		l.want(t, 0, "@atwo", "@athree")
	})
}
