package matrixcall

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
)

func stateEvent(kind, key string, sender id.UserID, at int64, content string) roomEvent {
	return roomEvent{Type: kind, StateKey: &key, Sender: sender, Time: at, Content: json.RawMessage(content)}
}

// plainService is enough of a service for reading state.
func plainService() *Service { return &Service{cfg: Config{GhostPrefix: "_sip_", Domain: "x"}} }

func TestNewestActiveCall(t *testing.T) {
	call := func(key string, at int64, content string) roomEvent {
		return stateEvent(callType, key, "@alice:x", at, content)
	}
	const active = `{"m.intent":"m.ring","m.type":"m.voice"}`
	for _, test := range []struct {
		name   string
		events []roomEvent
		want   string
	}{
		{"none", nil, ""},
		{"one", []roomEvent{call("a", 1, active)}, "a"},
		{"newest of two", []roomEvent{call("a", 2, active), call("b", 1, active)}, "a"},
		{"newest that has not ended", []roomEvent{
			call("a", 1, active), call("b", 2, `{"m.intent":"m.ring","m.type":"m.voice","m.terminated":"call_ended"}`),
		}, "a"},
		{"ended with true", []roomEvent{call("a", 1, `{"m.intent":"m.ring","m.type":"m.voice","m.terminated":true}`)}, ""},
		{"not ended with false", []roomEvent{call("a", 1, `{"m.intent":"m.ring","m.type":"m.voice","m.terminated":false}`)}, "a"},
		{"not ended with null", []roomEvent{call("a", 1, `{"m.intent":"m.ring","m.type":"m.voice","m.terminated":null}`)}, "a"},
		{"not ended with empty text", []roomEvent{call("a", 1, `{"m.intent":"m.ring","m.type":"m.voice","m.terminated":""}`)}, "a"},
		{"ended with object", []roomEvent{call("a", 1, `{"m.intent":"m.ring","m.type":"m.voice","m.terminated":{}}`)}, ""},
		{"redacted", []roomEvent{call("a", 1, ` { } `)}, ""},
		{"content is no object", []roomEvent{call("a", 1, `"x"`)}, ""},
		{"without intent", []roomEvent{call("a", 1, active), call("b", 2, `{"m.type":"m.voice"}`)}, "a"},
		{"without type", []roomEvent{call("a", 1, active), call("b", 2, `{"m.intent":"m.ring"}`)}, "a"},
		{"intent nobody knows", []roomEvent{call("b", 2, `{"m.intent":"m.shout","m.type":"m.voice"}`)}, ""},
		{"type nobody knows", []roomEvent{call("b", 2, `{"m.intent":"m.ring","m.type":"m.smell"}`)}, ""},
		{"type that is no text", []roomEvent{call("a", 1, active), call("b", 2, `{"m.intent":"m.ring","m.type":7}`)}, "a"},
		{"video conference", []roomEvent{call("b", 2, `{"m.intent":"m.room","m.type":"m.video"}`)}, "b"},
		{"stable name", []roomEvent{stateEvent(callTypeStable, "s", "@alice:x", 1, active)}, "s"},
		{"old event after the new one", []roomEvent{
			call("a", 2, `{"m.intent":"m.ring","m.type":"m.voice","m.terminated":true}`), call("a", 1, active),
		}, ""},
	} {
		state := newSnapshot()
		for _, e := range test.events {
			state.put(e)
		}
		if got := state.activeCall(plainService()).ConfID; got != test.want {
			t.Errorf("%s: newest call %q, want %q", test.name, got, test.want)
		}
	}
}

func TestMemberDevices(t *testing.T) {
	member := func(user id.UserID, content string) roomEvent {
		return stateEvent(memberType, string(user), user, 1, content)
	}
	device := func(fields string) string {
		return `{"m.calls":[{"m.call_id":"conf","m.devices":[{"device_id":"D","session_id":"S","feeds":[]` + fields + `}]}]}`
	}
	for _, test := range []struct {
		name  string
		event roomEvent
		want  string // user/device/session/expiry in ms/ours
	}{
		{"ordinary", member("@alice:x", device(`,"expires_ts":5000`)), "@alice:x/D/S/5000/false"},
		{"our ghost", member("@_sip_1:x", device(`,"expires_ts":5000`)), "@_sip_1:x/D/S/5000/true"},
		{"no expiry", member("@alice:x", device(``)), "@alice:x/D/S/-/false"},
		{"expiry with fraction", member("@alice:x", device(`,"expires_ts":5000.5`)), "@alice:x/D/S/-/false"},
		{"expiry as text", member("@alice:x", device(`,"expires_ts":"5000"`)), "@alice:x/D/S/-/false"},
		{"expiry too large", member("@alice:x", device(`,"expires_ts":9007199254740992`)), "@alice:x/D/S/-/false"},
		{"stable name", stateEvent(memberTypeStable, "@alice:x", "@alice:x", 1, device(`,"expires_ts":1`)), "@alice:x/D/S/1/false"},
		{"not in the room", member("@bob:x", device(`,"expires_ts":5000`)), ""},
		{"left the room", member("@gone:x", device(`,"expires_ts":5000`)), ""},
		{"MatrixRTC by state key", stateEvent(memberType, "_@alice:x_D_m.call", "@alice:x", 1, `{"application":"m.call","device_id":"D"}`), ""},
		{"MatrixRTC by content", member("@alice:x", `{"application":"m.call","device_id":"D"}`), ""},
		{"somebody else's key", stateEvent(memberType, "@alice:x", "@mallory:x", 1, device(`,"expires_ts":5000`)), ""},
		{"another call", member("@alice:x", strings.ReplaceAll(device(``), "conf", "other")), ""},
		{"no session", member("@alice:x", strings.ReplaceAll(device(``), `"S"`, `""`)), ""},
		{"calls is no array", member("@alice:x", `{"m.calls":{}}`), ""},
		{"devices is no array", member("@alice:x", `{"m.calls":[{"m.call_id":"conf","m.devices":7}]}`), ""},
		{
			"bad entries beside a good one", member("@alice:x",
				`{"m.calls":[7,null,{"m.call_id":[]},{"m.call_id":"conf","m.devices":["x",{"device_id":7},{"device_id":"D","session_id":"S","expires_ts":5}]}]}`),
			"@alice:x/D/S/5/false",
		},
	} {
		state := newSnapshot()
		for _, user := range []string{"@alice:x", "@_sip_1:x", "@gone:x"} {
			state.put(stateEvent(membershipTypes, user, id.UserID(user), 1, `{"membership":"join"}`))
		}
		state.put(stateEvent(membershipTypes, "@gone:x", "@gone:x", 2, `{"membership":"leave"}`))
		state.put(test.event)
		var got []string
		for _, d := range state.devices(plainService(), "conf") {
			expires := "-"
			if !d.Expires.IsZero() {
				expires = fmt.Sprint(d.Expires.UnixMilli())
			}
			got = append(got, fmt.Sprintf("%s/%s/%s/%s/%v", d.User, d.Device, d.Session, expires, d.Ours))
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: devices %v, want %q", test.name, got, test.want)
		}
	}
}

func TestStateThatIsNoArrayIsAnError(t *testing.T) {
	for _, body := range []string{``, `{}`, `[{"type":"x"}`, `[{]`, `7`} {
		if err := newSnapshot().decode(strings.NewReader(body)); err == nil {
			t.Errorf("decode(%q) = nil, want an error", body)
		}
	}
	if err := newSnapshot().decode(strings.NewReader(`[7,"x",{"type":5},{}]`)); err != nil {
		t.Errorf("events that cannot be read: %v, want them skipped", err)
	}
}

// entryOf is a device in a member event.
func entryOf(device id.DeviceID, session string, life time.Duration) *MemberCallDevice {
	return &MemberCallDevice{
		DeviceID: device, SessionID: session, ExpiresTS: time.Now().Add(life).UnixMilli(),
		Feeds: []MemberFeed{{Purpose: "m.usermedia"}},
	}
}

// memberOf writes the person's member event.
func (p *person) memberOf(room id.RoomID, confID string, life time.Duration) {
	p.bed.Helper()
	content := MemberContent{Calls: []MemberCall{}}
	if confID != "" {
		content.Calls = []MemberCall{{CallID: confID, Devices: []json.RawMessage{entryOf(p.device, "s-"+p.user.Localpart(), life).raw()}}}
	}
	if _, err := p.client.SendStateEvent(p.bed.Context(), room, event.Type{Type: memberType, Class: event.StateEventType}, p.user.String(), content); err != nil {
		p.bed.Fatal(err)
	}
}

// told waits until the conference knows exactly these users.
func (b *bed) told(e *ear, patience time.Duration, users ...id.UserID) {
	b.Helper()
	b.eventually(patience, func() string {
		state, _ := e.state()
		var got []id.UserID
		for _, d := range state.members {
			got = append(got, d.User)
		}
		if !slices.Equal(got, users) {
			return fmt.Sprintf("conference knows %v, want %v", got, users)
		}
		return ""
	})
}

func TestConferenceLearnsWhoIsInTheCall(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice, bob := b.person("alice", false), b.person("bob", false)
		room := alice.room(b.service.Bot(), bob.user)
		if _, err := bob.client.JoinRoomByID(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		startCall(t, alice, room, "conf")
		alice.memberOf(room, "conf", time.Hour)
		g := b.ghost("_sip_member")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		call, err := b.service.activeCall(t.Context(), g, room)
		if err != nil || call.ConfID != "conf" || call.Intent != "m.ring" || call.Sender != alice.user || call.Ours {
			t.Errorf("active call %+v, %v", call, err)
		}
		e := b.attach(g, room, "conf")
		b.told(e, time.Minute, alice.user)
		bob.memberOf(room, "conf", time.Hour)
		b.told(e, time.Minute, alice.user, bob.user)
		if err := b.service.PutMember(t.Context(), g, room, MemberEdit{ConfID: "conf", Add: entryOf(g.device, "x", time.Hour)}); err != nil {
			t.Fatal(err)
		}
		b.told(e, time.Minute, g.user, alice.user, bob.user)
		if state, _ := e.state(); !state.members[0].Ours || state.members[1].Ours {
			t.Errorf("ours: %+v", state.members)
		}
		alice.memberOf(room, "", 0)
		b.told(e, time.Minute, g.user, bob.user)
		if _, err := bob.client.LeaveRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		b.told(e, time.Minute, g.user)
		if err := b.service.PutMember(t.Context(), g, room, MemberEdit{ConfID: "conf", Drop: []id.DeviceID{g.device}}); err != nil {
			t.Fatal(err)
		}
		b.told(e, time.Minute)
		if _, err := b.service.PutCall(t.Context(), g, room, "conf", CallContent{Intent: "m.ring", Type: "m.voice", Terminated: callEnded}); err != nil {
			t.Fatal(err)
		}
		b.eventually(time.Minute, func() string {
			if state, _ := e.state(); !state.call.Ended {
				return "conference does not know that the call has ended"
			}
			return ""
		})
		if _, err := alice.client.KickUser(t.Context(), room, &mautrix.ReqKickUser{UserID: g.user}); err != nil {
			t.Fatal(err)
		}
		b.eventually(time.Minute, func() string {
			if state, _ := e.state(); !state.call.Out {
				return "conference does not know that its ghost was kicked"
			}
			return ""
		})
	})
}

func TestLostRoomEventsAreFoundWithinAMinute(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		p, _, e := oneCall(b)
		time.Sleep(5 * time.Second)
		b.as.LoseTransactions(10)
		p.memberOf(e.info.Room, "conf", time.Hour)
		b.told(e, rereadEvery+time.Second, p.user)
	})
}

func TestStateIsReadAgainUntilItCan(t *testing.T) {
	bothWays(t, func(t *testing.T, b *bed) {
		p, _, e := oneCall(b)
		sliding := b.fake.Break(&homeserver.Fault{Method: "POST", Path: slidingFeature, Error: &homeserver.Error{Status: 502, Code: "M_UNKNOWN"}})
		outage := b.fake.Break(&homeserver.Fault{Method: "GET", Path: "/state", Error: &homeserver.Error{Status: 502, Code: "M_UNKNOWN"}})
		b.as.LoseTransactions(10)
		p.memberOf(e.info.Room, "conf", time.Hour)
		time.Sleep(3 * time.Minute)
		outage.Mend()
		sliding.Mend()
		b.told(e, 31*time.Second, p.user)
	})
}

func TestEventsDuringAReadAreNotForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := fakeBedWith(t, homeserver.Config{NoSliding: true})
		p, _, e := oneCall(b)
		time.Sleep(2 * time.Second)
		// The homeserver answers with the state of before.
		slow := b.fake.Break(&homeserver.Fault{Method: "GET", Path: "/state", Times: 1, Delay: 2 * time.Second, Late: true})
		b.service.tracker.refresh(e.info.Room)
		synctest.Wait()
		time.Sleep(time.Second)
		p.memberOf(e.info.Room, "conf", time.Hour)
		time.Sleep(5 * time.Second)
		if slow.Hits() != 1 {
			t.Fatalf("the slow read was hit %d times, want once", slow.Hits())
		}
		b.told(e, time.Millisecond, p.user)
	})
}

// An event that looks older than what was read meanwhile may be newer, by another server's clock: what the homeserver says
// then is what counts.
func TestEventOlderThanAReadIsLookedAtAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := fakeBedWith(t, homeserver.Config{NoSliding: true})
		p, _, e := oneCall(b)
		p.memberOf(e.info.Room, "conf", time.Hour)
		b.told(e, 2*time.Second, p.user)
		time.Sleep(2 * time.Second)
		slow := b.fake.Break(&homeserver.Fault{Method: "GET", Path: "/state", Times: 1, Delay: 2 * time.Second})
		b.service.tracker.refresh(e.info.Room)
		synctest.Wait()
		time.Sleep(time.Second)
		r := b.service.tracker.find(e.info.Room)
		r.mu.Lock()
		r.state = nil // so that only the read judges
		r.mu.Unlock()
		old := stateEvent(memberType, string(p.user), p.user, 1, `{"m.calls":[]}`)
		old.Room = e.info.Room
		b.service.tracker.event(old)
		reads := b.service.metrics.StateReads.Load()
		b.eventually(2*time.Minute, func() string {
			if slow.Hits() != 1 || b.service.metrics.StateReads.Load() != reads+1 {
				return fmt.Sprintf("%d reads since the event", b.service.metrics.StateReads.Load()-reads)
			}
			return ""
		})
		b.told(e, time.Second, p.user)
	})
}

// weighed counts the bytes of the answers that tell a room's state.
type weighed struct {
	http.RoundTripper
	reads, bytes atomic.Int64
}

func (w *weighed) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := w.RoundTripper.RoundTrip(r)
	if err != nil || !strings.HasSuffix(r.URL.Path, "/state") && (!strings.HasSuffix(r.URL.Path, slidingFeature+"/sync") || r.URL.Query().Get("timeout") != "0") {
		return response, err
	}
	w.reads.Add(1)
	response.Body = &weighedBody{response.Body, w}
	return response, nil
}

type weighedBody struct {
	io.ReadCloser
	weighed *weighed
}

func (b *weighedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.weighed.bytes.Add(int64(n))
	return n, err
}

// Members who have nothing to do with the call are not loaded.
func TestStateOfALargeRoomCostsLittle(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		crowd := 2000
		if b.fake == nil {
			crowd = 40 // each is a request
			b.web = http.DefaultTransport
		}
		scale := &weighed{RoundTripper: b.web}
		b.web = scale
		b.start()
		alice, bob := b.person("alice", false), b.person("bob", false)
		room := alice.room(b.service.Bot(), bob.user)
		if _, err := bob.client.JoinRoomByID(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		for n := range crowd {
			user := id.UserID(fmt.Sprintf("@crowd%d%s:%s", n, b.suffix, b.domain))
			if b.fake != nil {
				b.fake.SetState(room, alice.user, membershipTypes, user.String(), map[string]string{"membership": "join", "displayname": "One of many"})
			} else if _, err := alice.client.InviteUser(t.Context(), room, &mautrix.ReqInviteUser{UserID: user}); err != nil {
				t.Fatal(err)
			}
		}
		g := b.ghost("_sip_crowd")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		startCall(t, alice, room, "conf")
		alice.memberOf(room, "conf", time.Hour)
		bob.memberOf(room, "conf", time.Hour)
		read := func(how string) (state *callSnapshot, bytes int64) {
			t.Helper()
			reads, before := scale.reads.Load(), scale.bytes.Load()
			state, err := b.service.readState(t.Context(), g, room)
			if err != nil {
				t.Fatal(err)
			}
			bytes = scale.bytes.Load() - before
			t.Logf("%s: %d bytes in %d answers, a room of %d", how, bytes, scale.reads.Load()-reads, crowd+4)
			var users []id.UserID
			for _, d := range state.devices(b.service, "conf") {
				users = append(users, d.User)
			}
			if !slices.Equal(users, []id.UserID{alice.user, bob.user}) || state.activeCall(b.service).ConfID != "conf" || state.isOut(g.user) {
				t.Errorf("%s: %v are in call %q, want alice and bob, and the ghost in the room", how, users, state.activeCall(b.service).ConfID)
			}
			if err := state.rights.check(room, g.user, []string{memberType, callType}); err != nil {
				t.Errorf("%s: %v", how, err)
			}
			return state, bytes
		}
		_, little := read("by sliding sync")
		if little > 12<<10 {
			t.Errorf("a read takes %d bytes, want a few thousand", little)
		}
		if _, err := bob.client.LeaveRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		state, err := b.service.readState(t.Context(), g, room)
		if err != nil || len(state.devices(b.service, "conf")) != 1 || state.joined[bob.user] != event.MembershipLeave {
			t.Errorf("who left is still in the call: %+v, %v", state.devices(b.service, "conf"), err)
		}
		if _, err := alice.client.InviteUser(t.Context(), room, &mautrix.ReqInviteUser{UserID: bob.user}); err != nil {
			t.Fatal(err)
		}
		if _, err := bob.client.JoinRoomByID(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		b.service.sliding.without(time.Hour)
		if _, all := read("whole state"); all < 2*little {
			t.Errorf("the whole state is %d bytes, by sliding sync it is %d", all, little)
		}
	})
}

func TestRedactedCallHasEnded(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false)
		room := alice.room(b.service.Bot())
		g := b.ghost("_sip_red")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		answer, err := alice.client.SendStateEvent(t.Context(), room, event.Type{Type: callType, Class: event.StateEventType}, "conf",
			CallContent{Intent: "m.ring", Type: "m.voice"})
		if err != nil {
			t.Fatal(err)
		}
		e := b.attach(g, room, "conf")
		time.Sleep(2 * time.Second)
		if state, _ := e.state(); state.call.ConfID != "conf" || state.call.Ended {
			t.Fatalf("call before: %+v", state.call)
		}
		if _, err := alice.client.RedactEvent(t.Context(), room, answer.EventID); err != nil {
			t.Fatal(err)
		}
		b.eventually(2*time.Second, func() string {
			if state, _ := e.state(); !state.call.Ended {
				return "conference does not know that the call was redacted"
			}
			return ""
		})
	})
}

func TestSweepRemovesWhatACrashLeft(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false)
		room := alice.room(b.service.Bot())
		g := b.ghost("_sip_crashed")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		info := MembershipInfo{Ghost: g.user, Device: g.device, Room: room, ConfID: "conf", SessionID: "s", Created: true}
		join := func() {
			t.Helper()
			if _, err := b.service.PutCall(t.Context(), g, room, "conf", CallContent{Intent: "m.ring", Type: "m.voice", Name: "Call"}); err != nil {
				t.Fatal(err)
			}
			if err := b.service.PutMember(t.Context(), g, room, MemberEdit{ConfID: "conf", Add: entryOf(g.device, "s", time.Hour)}); err != nil {
				t.Fatal(err)
			}
		}
		check := func(what string, devices int, ended bool) {
			t.Helper()
			state, err := b.service.readState(t.Context(), g, room)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(state.devices(b.service, "conf")); got != devices {
				t.Errorf("%s: %d devices left, want %d", what, got, devices)
			}
			if got := state.call(b.service, "conf"); got.Ended != ended || got.Name != "Call" {
				t.Errorf("%s: call %+v, want ended %v", what, got, ended)
			}
		}
		join()
		other := info
		other.Device = "ANOTHER"
		if _, err := b.service.SweepMembership(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		check("sweep of another device", 1, false)
		alice.memberOf(room, "conf", time.Hour)
		info.SessionID = "an earlier one: it was renewed after it was stored"
		if _, err := b.service.SweepMembership(t.Context(), info); err != nil {
			t.Fatal(err)
		}
		check("sweep beside a person", 1, false)
		join()
		alice.memberOf(room, "conf", -time.Minute)
		if _, err := b.service.SweepMembership(t.Context(), info); err != nil {
			t.Fatal(err)
		}
		check("sweep beside an expired entry", 1, true)
		if _, err := b.service.SweepMembership(t.Context(), info); err != nil {
			t.Errorf("second sweep: %v", err)
		}
		if _, err := alice.client.KickUser(t.Context(), room, &mautrix.ReqKickUser{UserID: g.user}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.service.SweepMembership(t.Context(), info); err != nil {
			t.Errorf("sweep of a ghost that was kicked: %v", err)
		}
		info.Ghost = alice.user
		if _, err := b.service.SweepMembership(t.Context(), info); err == nil {
			t.Error("sweep of a person's entry did not fail")
		}
	})
}

// A ghost that has lost its rights can remove nothing, today as in an hour.
func TestSweepGivesUpWhereTheGhostMayNotWrite(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false)
		room := alice.room(b.service.Bot())
		g := b.ghost("_sip_mute")
		if err := g.EnterRoom(t.Context(), room); err != nil {
			t.Fatal(err)
		}
		if _, err := b.service.PutCall(t.Context(), g, room, "conf", CallContent{Intent: "m.ring", Type: "m.voice", Name: "Call"}); err != nil {
			t.Fatal(err)
		}
		if err := b.service.PutMember(t.Context(), g, room, MemberEdit{ConfID: "conf", Add: entryOf(g.device, "s", time.Hour)}); err != nil {
			t.Fatal(err)
		}
		var levels event.PowerLevelsEventContent
		if err := alice.client.StateEvent(t.Context(), room, event.StatePowerLevels, "", &levels); err != nil {
			t.Fatal(err)
		}
		levels.Events[callType], levels.Events[memberType] = 100, 100
		if _, err := alice.client.SendStateEvent(t.Context(), room, event.StatePowerLevels, "", &levels); err != nil {
			t.Fatal(err)
		}
		info := MembershipInfo{Ghost: g.user, Device: g.device, Room: room, ConfID: "conf", SessionID: "s", Created: true}
		if _, err := b.service.SweepMembership(t.Context(), info); err != nil {
			t.Errorf("sweep = %v, want nothing to be tried again", err)
		}
	})
}

func TestEntriesThatExpiredAreNotLive(t *testing.T) {
	now := time.Now()
	info := MembershipInfo{Ghost: "@_sip_1:x", Device: "D"}
	for _, c := range []struct {
		device MemberDevice
		want   bool
	}{
		{MemberDevice{User: info.Ghost, Device: info.Device, Expires: now.Add(time.Second)}, true},
		{MemberDevice{User: info.Ghost, Device: info.Device, Expires: now.Add(-time.Second)}, false},
		{MemberDevice{User: info.Ghost, Device: "OTHER", Expires: now.Add(time.Second)}, false},
	} {
		if got := info.live([]MemberDevice{c.device}, now); got != c.want {
			t.Errorf("live with %+v = %t", c.device, got)
		}
	}
}

// The member event is one for all devices and calls of a user: what is not of the membership must stay.
func TestPutMemberKeepsWhatIsNotOurs(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, g, e := oneCall(b)
		put := func(edit MemberEdit, want string) {
			t.Helper()
			if err := b.service.PutMember(t.Context(), g, e.info.Room, edit); err != nil {
				t.Fatal(err)
			}
			if got := b.fake.State(e.info.Room, memberType, g.user.String()); !sameJSON(got, []byte(want)) {
				t.Errorf("member event after %+v:\n%s\nwant\n%s", edit, got, want)
			}
		}
		own := []id.DeviceID{g.device}
		put(MemberEdit{ConfID: "conf", Drop: own}, `{"m.calls":[]}`) // the array, as clients write it
		later, past := time.Now().Add(time.Hour).UnixMilli(), time.Now().Add(-time.Hour).UnixMilli()
		foreign := fmt.Sprintf(`{"device_id":"OTHER","session_id":"x","expires_ts":%d,"feeds":[{"purpose":"m.usermedia","id":"f"}],"extra":1}`, later)
		elsewhere := fmt.Sprintf(`{"m.call_id":"another","m.devices":[{"device_id":%q,"session_id":"y","expires_ts":%d}]}`, g.device, later)
		before := fmt.Sprintf(`{"m.calls":[7,%s,{"m.call_id":"conf","m.devices":[{"device_id":"GONE","expires_ts":%d},%s,{"device_id":%q,"expires_ts":%d}]}]}`,
			elsewhere, past, foreign, g.device, later)
		_, err := g.asUser.SendStateEvent(t.Context(), e.info.Room, event.Type{Type: memberType, Class: event.StateEventType}, g.user.String(), json.RawMessage(before))
		if err != nil {
			t.Fatal(err)
		}
		mine := entryOf(g.device, "s", time.Hour)
		put(MemberEdit{ConfID: "conf", Drop: own, Add: mine},
			fmt.Sprintf(`{"m.calls":[%s,{"m.call_id":"conf","m.devices":[%s,%s]}]}`, elsewhere, foreign, mine.raw()))
		put(MemberEdit{ConfID: "conf", Drop: own}, fmt.Sprintf(`{"m.calls":[%s,{"m.call_id":"conf","m.devices":[%s]}]}`, elsewhere, foreign))
	})
}

// FuzzMemberContent edits member events that anybody may have written: ours is in it once afterwards, what has expired is
// not, and doing it again changes nothing.
func FuzzMemberContent(f *testing.F) {
	for _, content := range []string{
		``, `{}`, `{"m.calls":{}}`, `{"m.calls":[7,{"m.call_id":"conf","m.devices":[{"device_id":"D","expires_ts":1}]}]}`,
		`{"m.calls":[{"m.call_id":"conf","m.devices":[{"device_id":"X","expires_ts":9007199254740991},{"device_id":"X"}]}]}`,
		`{"m.calls":[{"m.call_id":"other","m.devices":[{"device_id":"D","expires_ts":9007199254740991}]}]}`,
	} {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		now := time.UnixMilli(1 << 40)
		edit := MemberEdit{ConfID: "conf", Drop: []id.DeviceID{"D"}, Add: &MemberCallDevice{DeviceID: "D", ExpiresTS: 1 << 41}}
		once, _ := edit.apply(content, now)
		text, err := json.Marshal(once)
		if err != nil {
			t.Fatalf("content after %q: %v", content, err)
		}
		again, found := edit.apply(text, now)
		if second, err := json.Marshal(again); err != nil || !found || !sameJSON(second, text) {
			t.Errorf("%q became\n%s and then\n%s, %v", content, text, second, err)
		}
		ours := 0
		for _, call := range memberCalls(text) {
			for _, d := range call.Devices {
				if call.CallID == "conf" && d.DeviceID == "D" {
					ours++
				}
				if !d.expires().After(now) {
					t.Errorf("%q: an expired device stays: %s", content, text)
				}
			}
		}
		if ours != 1 {
			t.Errorf("%q: our entry is %d times in %s", content, ours, text)
		}
		state := newSnapshot()
		state.put(stateEvent(callType, "conf", "@a:x", 1, string(content)))
		state.call(plainService(), "conf")
	})
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

func TestAttachRefusesAGhostWhoseDeviceIsGone(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		_, g, e := oneCall(b)
		old := e.info
		old.Device = "OLD"
		if err := g.service.attachConference(t.Context(), &ear{info: old}); !errors.Is(err, errDeviceGone) {
			t.Errorf("attach with another device: %v, want %v", err, errDeviceGone)
		}
	})
}

func TestTURNServers(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		s := b.start()
		s.cfg.ICE.ExtraServers = []TURNServer{{URIs: []string{"stun:extra"}}}
		servers, err := s.turnServers(t.Context(), nil)
		if err != nil || len(servers) != 2 || servers[0].Username == "" || servers[1].URIs[0] != "stun:extra" {
			t.Errorf("servers %+v, %v: want the homeserver's and the configured one", servers, err)
		}
	})
}

func TestTURNAnswersThatAreNoServers(t *testing.T) {
	for _, answer := range []any{
		struct{}{},
		map[string]any{"uris": []string{"turn:x"}},
		map[string]any{"uris": []string{"http://x", "", "javascript:x"}, "username": "u", "password": "p", "ttl": 60},
		map[string]any{"uris": "turn:x"},
		[]int{1},
	} {
		synctest.Test(t, func(t *testing.T) {
			hs := homeserver.Start(t, homeserver.Config{TURN: answer})
			config := Config{
				HomeserverURL: hs.URL(), Domain: hs.Domain(), ASToken: "as-token-of-the-test", HSToken: "h", ID: "i",
				BotLocalpart: "phonebot", GhostPrefix: "_sip_", Transport: hs.Net().Client().Transport,
				ICE: ICEConfig{ExtraServers: []TURNServer{{URIs: []string{"stun:extra"}}}},
			}
			hs.AppService(registration("", hs.Domain()), hs.Net().Client())
			s, err := New(config, newMemory(), openOlm(t), Options{}, testLog(t))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if err := s.registerBot(t.Context()); err != nil {
				t.Fatal(err)
			}
			servers, err := s.turnServers(t.Context(), nil)
			if err != nil || len(servers) != 1 || servers[0].URIs[0] != "stun:extra" {
				t.Errorf("answer %v: servers %+v, %v, want the configured one only", answer, servers, err)
			}
		})
	}
}

func TestStableMemberEventWithoutCallsHidesNothing(t *testing.T) {
	user := "@alice:x"
	unstable := roomEvent{
		Type: memberType, StateKey: &user, Sender: "@alice:x", Time: 1,
		Content: json.RawMessage(`{"m.calls":[{"m.call_id":"conf","m.devices":[{"device_id":"A","session_id":"s","expires_ts":1}]}]}`),
	}
	other := roomEvent{Type: memberTypeStable, StateKey: &user, Sender: "@alice:x", Time: 2, Content: json.RawMessage(`{"memberships":[]}`)}
	for name, order := range map[string][]roomEvent{"after": {unstable, other}, "before": {other, unstable}} {
		state := newSnapshot()
		state.joined["@alice:x"] = event.MembershipJoin
		for _, e := range order {
			state.put(e)
		}
		if got := len(state.devices(&Service{}, "conf")); got != 1 {
			t.Errorf("a stable event without calls that came %s: %d devices, want 1", name, got)
		}
	}
}
