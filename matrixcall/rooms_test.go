package matrixcall

import (
	"errors"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// problem returns the problem of a RoomError.
func problem(err error) RoomProblem {
	var e *RoomError
	if errors.As(err, &e) {
		return e.Problem
	}
	return 0
}

func TestGhostEntersRooms(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false)
		g := b.ghost("_sip_visitor")

		public, err := alice.client.CreateRoom(t.Context(), &mautrix.ReqCreateRoom{Preset: "public_chat"})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.EnterRoom(t.Context(), public.RoomID); err != nil {
			t.Errorf("public room: %v", err)
		}
		if err := g.EnterRoom(t.Context(), public.RoomID); err != nil {
			t.Errorf("again: %v", err)
		}

		invited := alice.room(g.user)
		if err := g.EnterRoom(t.Context(), invited); err != nil {
			t.Errorf("room the ghost was invited to: %v", err)
		}

		withBot := alice.room(b.service.Bot())
		if err := g.EnterRoom(t.Context(), withBot); err != nil {
			t.Errorf("private room the bot was invited to: %v", err)
		}

		closed := alice.room()
		if err := g.EnterRoom(t.Context(), closed); problem(err) != BotNotInRoom {
			t.Errorf("private room without the bot: %v, want BotNotInRoom", err)
		} else if !strings.Contains(err.Error(), b.service.Bot().String()) {
			t.Errorf("%q does not say whom to invite", err)
		}

		unknown := id.RoomID("!u4KkfdyvLDmXhBxcTs9dTXcGNYoRkv0o8rrNS5gG2oA")
		if err := g.EnterRoom(t.Context(), unknown); problem(err) != RoomUnknown {
			t.Errorf("unknown room: %v, want RoomUnknown", err)
		}

		if _, err := alice.client.BanUser(t.Context(), withBot, &mautrix.ReqBanUser{UserID: g.user}); err != nil {
			t.Fatal(err)
		}
		if err := g.EnterRoom(t.Context(), withBot); problem(err) != GhostBanned {
			t.Errorf("room the ghost is banned from: %v, want GhostBanned", err)
		}
	})
}

func TestBotThatMayNotInviteIsNamed(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false)
		fifty := 50
		answer, err := alice.client.CreateRoom(t.Context(), &mautrix.ReqCreateRoom{
			Preset: "private_chat", Invite: []id.UserID{b.service.Bot()},
			PowerLevelOverride: &event.PowerLevelsEventContent{InvitePtr: &fifty},
		})
		if err != nil {
			t.Fatal(err)
		}
		g := b.ghost("_sip_uninvited")
		if err := g.EnterRoom(t.Context(), answer.RoomID); problem(err) != BotMayNotInvite {
			t.Errorf("EnterRoom = %v, want BotMayNotInvite", err)
		}
	})
}

func TestBotAcceptsInvitations(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false)
		room := alice.room(b.service.Bot())
		b.eventually(time.Minute, func() string {
			members, err := alice.client.JoinedMembers(t.Context(), room)
			if err != nil {
				t.Fatal(err)
			}
			if _, joined := members.Joined[b.service.Bot()]; !joined {
				return "the bot has not joined"
			}
			return ""
		})
		if err := b.service.Notice(t.Context(), room, nil, "hello"); err != nil {
			t.Errorf("Notice: %v", err)
		}
	})
}

// TestNoticesReachRoomsTheBotIsNotIn: the bot comes in if it can, else the
// ghost speaks, and edits what it has said.
func TestNoticesReachRoomsTheBotIsNotIn(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false)
		g := b.ghost("_sip_herald")
		fifty := 50
		bot := b.service.Bot()
		for _, test := range []struct {
			name   string
			create mautrix.ReqCreateRoom
			ghost  *Ghost
			want   id.UserID // the author, "" = nobody
		}{
			{"public", mautrix.ReqCreateRoom{Preset: "public_chat", Invite: []id.UserID{g.user}}, nil, bot},
			{"private, the ghost may invite", mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{g.user}}, g, bot},
			{"private, the ghost may not invite", mautrix.ReqCreateRoom{
				Preset: "private_chat", Invite: []id.UserID{g.user},
				PowerLevelOverride: &event.PowerLevelsEventContent{InvitePtr: &fifty},
			}, g, g.user},
			{"private, no ghost", mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{g.user}}, nil, ""},
			{"nobody may speak", mautrix.ReqCreateRoom{
				Preset: "private_chat", Invite: []id.UserID{g.user, bot},
				PowerLevelOverride: &event.PowerLevelsEventContent{EventsDefault: 50},
			}, g, ""},
		} {
			room, err := alice.client.CreateRoom(t.Context(), &test.create)
			if err != nil {
				t.Fatal(err)
			}
			if err := g.EnterRoom(t.Context(), room.RoomID); err != nil {
				t.Fatal(err)
			}
			notice, err := b.service.NoticeID(t.Context(), room.RoomID, test.ghost, "hello")
			if test.want == "" {
				if !isForbidden(err) {
					t.Errorf("%s: notice = %v, want forbidden", test.name, err)
				}
				continue
			}
			if err == nil {
				err = b.service.EditNotice(t.Context(), room.RoomID, notice, "goodbye")
			}
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
				continue
			}
			said, err := alice.client.GetEvent(t.Context(), room.RoomID, notice)
			if err != nil {
				t.Fatal(err)
			}
			authors := []id.UserID{said.Sender}
			if b.fake != nil { // which shows us the edit
				timeline := b.fake.Timeline(room.RoomID)
				authors = append(authors, timeline[len(timeline)-1].Sender)
			}
			for _, author := range authors {
				if author != test.want {
					t.Errorf("%s: notice and edit are by %v, want %s", test.name, authors, test.want)
				}
			}
		}
	})
}

func TestResolveRoom(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false)
		room := alice.room()
		alias := id.RoomAlias("#team:" + b.domain)
		if _, err := alice.client.CreateAlias(t.Context(), alias, room); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{string(alias), string(room)} {
			if got, err := b.service.ResolveRoom(t.Context(), name); got != room || err != nil {
				t.Errorf("ResolveRoom(%q) = %q, %v, want %q", name, got, err, room)
			}
		}
		if _, err := b.service.Aliases(t.Context(), room); err == nil {
			t.Error("the bot, which is not in the room, was told its aliases")
		}
		if _, err := b.service.ResolveRoom(t.Context(), "#nobody:"+b.domain); problem(err) != RoomUnknown {
			t.Errorf("unknown alias: %v, want RoomUnknown", err)
		}
		for _, bad := range []string{"", "!", "#", "team", "@alice:" + b.domain, "#team"} {
			if got, err := b.service.ResolveRoom(t.Context(), bad); err == nil {
				t.Errorf("ResolveRoom(%q) = %q, want an error", bad, got)
			}
		}
	})
}

func TestRightsAreCheckedAndExplained(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false)
		g := b.ghost("_sip_rights")
		check := func(room id.RoomID) error {
			t.Helper()
			if err := g.EnterRoom(t.Context(), room); err != nil {
				t.Fatal(err)
			}
			return b.service.CheckRights(t.Context(), g, room)
		}
		create := func(req *mautrix.ReqCreateRoom) id.RoomID {
			t.Helper()
			answer, err := alice.client.CreateRoom(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			return answer.RoomID
		}
		if err := check(alice.room(g.user)); err != nil {
			t.Errorf("room made for calls: %v", err)
		}

		ordinary := create(&mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{g.user}})
		var missing *RightsError
		if err := check(ordinary); !errors.As(err, &missing) {
			t.Fatalf("room with today's defaults: %v, want a RightsError", err)
		}
		if missing.Have != 0 || missing.Need != 50 || len(missing.Types) != 2 {
			t.Errorf("RightsError %+v, want level 50 missing for two types", missing)
		}
		t.Log(missing)
		err := b.service.PutMember(t.Context(), g, ordinary, MemberEdit{ConfID: "conf", Add: entryOf(g.device, "s", time.Hour)})
		if !errors.As(err, &missing) {
			t.Errorf("PutMember without the right: %v, want a RightsError inside", err)
		}

		// With a call to join the right to make one is not needed.
		memberOnly := create(&mautrix.ReqCreateRoom{
			Preset: "private_chat", Invite: []id.UserID{g.user},
			PowerLevelOverride: &event.PowerLevelsEventContent{Events: map[string]int{memberType: 0}},
		})
		if err := check(memberOnly); !errors.As(err, &missing) || len(missing.Types) != 1 || missing.Types[0] != callType {
			t.Errorf("room without call: %v, want the right to make one missing", err)
		}
		startCall(t, alice, memberOnly, "call1")
		if err := check(memberOnly); err != nil {
			t.Errorf("room with a call: %v", err)
		}

		trusted := create(&mautrix.ReqCreateRoom{Preset: "trusted_private_chat", Invite: []id.UserID{g.user}})
		if err := check(trusted); err != nil {
			t.Errorf("room where the ghost is a creator: %v", err)
		}
	})
}

func startCall(t *testing.T, p *person, room id.RoomID, confID string) {
	t.Helper()
	if _, err := p.client.SendStateEvent(t.Context(), room, event.Type{Type: callType, Class: event.StateEventType}, confID,
		CallContent{Intent: "m.ring", Type: "m.voice"}); err != nil {
		t.Fatal(err)
	}
}

// Transactions come as soon as somebody listens, and that is before the bot is registered.
func TestBotThatIsInvitedBeforeItExistsJoins(t *testing.T) {
	b := fakeBed(t)
	s, err := New(b.config(), b.store, b.olm, b.opts, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	b.service = s
	t.Cleanup(func() { b.stop(s) })
	b.handler.set(s.HTTPHandler())
	alice := b.person("alice", false)
	room := alice.room(s.Bot())
	b.eventually(time.Minute, func() string {
		members, err := alice.client.JoinedMembers(t.Context(), room)
		if err != nil {
			return err.Error()
		}
		if _, joined := members.Joined[s.Bot()]; !joined {
			return "the bot is not in the room"
		}
		return ""
	})
}
