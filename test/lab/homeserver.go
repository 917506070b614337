package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/synapse"
)

// The two state events of a group call, whose unstable names are what clients speak.
const (
	callEvent   = "org.matrix.msc3401.call"
	memberEvent = "org.matrix.msc3401.call.member"
)

// User is a user of the homeserver with a name for failure messages.
type User struct {
	Name string
	synapse.User
}

// Room is a room with the number that leads to it.
type Room struct {
	ID     id.RoomID
	Number string // waits in the room's call, as in a conference; "" without a bridge
	Ring   string // another number: rings the room while nobody is in its call
	Lobby  string // and one whose callers wait until the room lets them in
}

// RoomOptions say who is in a room. The zero value needs an owner.
type RoomOptions struct {
	Owner     *User
	Members   []*User // invited and joined
	Encrypted bool
	// Defaults leaves the power levels alone: ordinary members and ghosts may then not take part in calls.
	Defaults bool
}

// Homeserver returns the base URL of the client-server API.
func (l *Lab) Homeserver() string {
	if l.Synapse == nil {
		return ""
	}
	return l.Synapse.URL()
}

// NewUser registers a user whose name starts with name and is used by nobody else; the password is the localpart.
func (l *Lab) NewUser(ctx context.Context, name string) (*User, error) {
	l.mu.Lock()
	l.users++
	local := fmt.Sprintf("%s-%d", name, l.users)
	l.mu.Unlock()
	return l.NewUserNamed(ctx, local)
}

// NewUserNamed registers a user with exactly this localpart, which is the password, too.
func (l *Lab) NewUserNamed(ctx context.Context, localpart string) (*User, error) {
	u, err := l.Synapse.Register(ctx, localpart)
	if err != nil {
		return nil, err
	}
	return &User{Name: localpart, User: u}, nil
}

// NewDevice logs the user in on another device.
func (l *Lab) NewDevice(ctx context.Context, user *User) (*User, error) {
	var login struct {
		DeviceID    id.DeviceID `json:"device_id"`
		AccessToken string      `json:"access_token"`
	}
	body := map[string]any{
		"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": user.Name}, "password": user.Password,
	}
	if err := l.API(ctx, user, http.MethodPost, "/v3/login", body, &login); err != nil {
		return nil, fmt.Errorf("log %s in again: %w", user.Name, err)
	}
	other := *user
	other.DeviceID, other.AccessToken = login.DeviceID, login.AccessToken
	return &other, nil
}

// NewRoom makes a room in which members may hold calls. With a bridge the room gets the next number, by an alias that
// the bridge's routes name, and the bridge's bot is invited.
func (l *Lab) NewRoom(ctx context.Context, opts RoomOptions) (*Room, error) {
	body := map[string]any{"preset": "private_chat", "name": "Lab"}
	if !opts.Defaults {
		// Today's default asks for power 50 to send state events; calls consist of them.
		body["power_level_content_override"] = map[string]any{"events": map[string]int{callEvent: 0, memberEvent: 0}}
	}
	if opts.Encrypted {
		body["initial_state"] = []any{map[string]any{
			"type": "m.room.encryption", "state_key": "", "content": map[string]string{"algorithm": "m.megolm.v1.aes-sha2"},
		}}
	}
	var invite []id.UserID
	for _, u := range opts.Members {
		invite = append(invite, u.UserID)
	}
	room := &Room{}
	if l.bridge != nil {
		l.mu.Lock()
		number := l.number
		l.number++
		l.mu.Unlock()
		if number >= firstNumber+numbers {
			return nil, fmt.Errorf("make a room: the bridge has routes for %d rooms only", numbers)
		}
		room.Number, room.Ring, room.Lobby = fmt.Sprint(number), ringNumber(number), lobbyNumber(number)
		body["room_alias_name"] = aliasName(number)
		invite = append(invite, l.bridge.Bot())
	}
	body["invite"] = invite
	var made struct {
		RoomID id.RoomID `json:"room_id"`
	}
	if err := l.API(ctx, opts.Owner, http.MethodPost, "/v3/createRoom", body, &made); err != nil {
		return nil, fmt.Errorf("make a room: %w", err)
	}
	room.ID = made.RoomID
	for _, u := range opts.Members {
		if err := l.Enter(ctx, u, room.ID); err != nil {
			return nil, err
		}
	}
	return room, nil
}

// CallMember is one device in a call, as the room's state has it.
type CallMember struct {
	User    id.UserID
	Device  id.DeviceID
	Call    string
	Session string
	Expires time.Time
}

// CallState reads the room's state: ids of calls that are not terminated, and the devices in calls.
func (l *Lab) CallState(ctx context.Context, as *User, room id.RoomID) (calls []string, members []CallMember, err error) {
	var state []struct {
		Type     string          `json:"type"`
		StateKey string          `json:"state_key"`
		Sender   id.UserID       `json:"sender"`
		Content  json.RawMessage `json:"content"`
	}
	if err := l.API(ctx, as, http.MethodGet, "/v3/rooms/"+url.PathEscape(string(room))+"/state", nil, &state); err != nil {
		return nil, nil, fmt.Errorf("read the room's state: %w", err)
	}
	for _, ev := range state {
		switch ev.Type {
		case callEvent:
			var content struct {
				Terminated any `json:"m.terminated"`
			}
			_ = json.Unmarshal(ev.Content, &content)
			if over, _ := content.Terminated.(bool); !over && (content.Terminated == nil || content.Terminated == false) {
				calls = append(calls, ev.StateKey)
			}
		case memberEvent:
			var content struct {
				Calls []struct {
					ID      string `json:"m.call_id"`
					Devices []struct {
						DeviceID  id.DeviceID `json:"device_id"`
						SessionID string      `json:"session_id"`
						Expires   int64       `json:"expires_ts"`
					} `json:"m.devices"`
				} `json:"m.calls"`
			}
			_ = json.Unmarshal(ev.Content, &content)
			for _, c := range content.Calls {
				for _, d := range c.Devices {
					members = append(members, CallMember{id.UserID(ev.StateKey), d.DeviceID, c.ID, d.SessionID, time.UnixMilli(d.Expires)})
				}
			}
		}
	}
	return calls, members, nil
}

// CallTimeline returns the room's call events in their order, a line each, for failure messages.
func (l *Lab) CallTimeline(ctx context.Context, as *User, room id.RoomID) (string, error) {
	var messages struct {
		Chunk []struct {
			Type     string          `json:"type"`
			StateKey string          `json:"state_key"`
			At       int64           `json:"origin_server_ts"`
			Content  json.RawMessage `json:"content"`
		} `json:"chunk"`
	}
	path := "/v3/rooms/" + url.PathEscape(string(room)) + "/messages?dir=b&limit=100"
	if err := l.API(ctx, as, http.MethodGet, path, nil, &messages); err != nil {
		return "", err
	}
	var b strings.Builder
	for _, ev := range slices.Backward(messages.Chunk) {
		if ev.Type == callEvent || ev.Type == memberEvent {
			fmt.Fprintf(&b, "  %s %s %s %s\n", time.UnixMilli(ev.At).UTC().Format("15:04:05.000"), strings.TrimPrefix(ev.Type, "org.matrix.msc3401."),
				ev.StateKey, ev.Content[:min(len(ev.Content), 400)])
		}
	}
	return b.String(), nil
}

// Notice is a message of the bridge to people.
type Notice struct {
	ID        id.EventID `json:"id"`
	Body      string     `json:"body"`
	Encrypted bool       `json:"encrypted"` // as a client says
}

// LastNotice returns the newest notice in the room, a zero one if there is none. An edited one has its new text.
func (l *Lab) LastNotice(ctx context.Context, as *User, room id.RoomID) (Notice, error) {
	notices, err := l.Notices(ctx, as, room)
	if err != nil || len(notices) == 0 {
		return Notice{}, err
	}
	return notices[0], nil
}

// Notices returns the latest notices in the room, the newest first. Edits are notices, too.
func (l *Lab) Notices(ctx context.Context, as *User, room id.RoomID) (notices []Notice, err error) {
	var messages struct {
		Chunk []struct {
			ID      id.EventID `json:"event_id"`
			Content struct {
				MsgType string `json:"msgtype"`
				Body    string `json:"body"`
			} `json:"content"`
		} `json:"chunk"`
	}
	path := "/v3/rooms/" + url.PathEscape(string(room)) + "/messages?dir=b&limit=20"
	if err := l.API(ctx, as, http.MethodGet, path, nil, &messages); err != nil {
		return nil, err
	}
	for _, m := range messages.Chunk {
		if m.Content.MsgType == "m.notice" {
			notices = append(notices, Notice{ID: m.ID, Body: m.Content.Body})
		}
	}
	return notices, nil
}

// Say writes a message into a room.
func (l *Lab) Say(ctx context.Context, as *User, room id.RoomID, text string) error {
	path := fmt.Sprintf("/v3/rooms/%s/send/m.room.message/%s", url.PathEscape(string(room)), rand.Text())
	return l.API(ctx, as, http.MethodPut, path, map[string]string{"msgtype": "m.text", "body": text}, nil)
}

// Invite invites a user to a room.
func (l *Lab) Invite(ctx context.Context, as *User, room id.RoomID, user id.UserID) error {
	path := fmt.Sprintf("/v3/rooms/%s/invite", url.PathEscape(string(room)))
	return l.API(ctx, as, http.MethodPost, path, map[string]id.UserID{"user_id": user}, nil)
}

// Enter makes a user a member of a room into which they are invited.
func (l *Lab) Enter(ctx context.Context, user *User, room id.RoomID) error {
	if err := l.API(ctx, user, http.MethodPost, "/v3/join/"+url.PathEscape(string(room)), map[string]any{}, nil); err != nil {
		return fmt.Errorf("%s joins: %w", user.Name, err)
	}
	return nil
}

// React sends a reaction to an event.
func (l *Lab) React(ctx context.Context, as *User, room id.RoomID, target id.EventID, key string) error {
	path := fmt.Sprintf("/v3/rooms/%s/send/m.reaction/%s", url.PathEscape(string(room)), rand.Text())
	return l.API(ctx, as, http.MethodPut, path, map[string]any{
		"m.relates_to": map[string]any{"rel_type": "m.annotation", "event_id": target, "key": key},
	}, nil)
}

// PutCallMember writes a member event of the calls' type, as other software does that has its own idea of it.
func (l *Lab) PutCallMember(ctx context.Context, as *User, room id.RoomID, key string, content any) error {
	path := fmt.Sprintf("/v3/rooms/%s/state/%s/%s", url.PathEscape(string(room)), memberEvent, url.PathEscape(key))
	return l.API(ctx, as, http.MethodPut, path, content, nil)
}

// API sends a request of the client-server API as a user; path begins after /_matrix/client.
func (l *Lab) API(ctx context.Context, as *User, method, path string, body, answer any) error {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, l.Homeserver()+"/_matrix/client"+path, content)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+as.AccessToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(b, answer)
}
