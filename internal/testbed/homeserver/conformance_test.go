package homeserver_test

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/appservice"

	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/synapse"
)

const registrationYAML = `id: bridge
url: http://127.0.0.1:1
as_token: as-secret
hs_token: hs-secret
sender_localpart: random-sender
rate_limited: false
io.element.msc4190: true
namespaces: {users: [{regex: '^@_sip_.*:lab\.local$', exclusive: true}]}
`

// question is one request. In path and body {room} is the room made by the last createRoom; ghost and device are put
// into the query.
type question struct {
	who    string // alice, bob, as, none, wrong
	method string
	path   string // below /_matrix/client/
	body   string
}

const (
	ghost     = "?user_id=@_sip_1:lab.local"
	ghostOnD1 = ghost + "&device_id=D1"
	empty     = "{}"

	// noRooms is the filter of a to-device poller, quiet leaves out what the stand-in does not have.
	noRooms = "&timeout=0&set_presence=offline&filter=" +
		"%7B%22room%22%3A%7B%22rooms%22%3A%5B%5D%7D%2C%22presence%22%3A%7B%22types%22%3A%5B%5D%7D%2C%22account_data%22%3A%7B%22types%22%3A%5B%5D%7D%7D"
	poll    = "v3/sync" + ghostOnD1 + noRooms
	sliding = "unstable/org.matrix.simplified_msc3575/sync" + ghostOnD1
	quiet   = "v3/sync?timeout=0&set_presence=offline&filter=" +
		"%7B%22presence%22%3A%7B%22types%22%3A%5B%5D%7D%2C%22account_data%22%3A%7B%22types%22%3A%5B%5D%7D%7D"
)

var questions = []question{
	{"none", "GET", "v3/account/whoami", ""},
	{"wrong", "GET", "v3/account/whoami", ""},
	{"alice", "GET", "v3/account/whoami", ""},
	{"alice", "GET", "v3/nonsense", ""},
	{"as", "GET", "v3/account/whoami", ""},
	{"as", "GET", "v3/account/whoami?user_id=@_sip_9:lab.local", ""},
	{"as", "GET", "v3/account/whoami?user_id=@alice:lab.local", ""},
	{"as", "POST", "v3/register", `{"type":"m.login.application_service","username":"_sip_1","inhibit_login":true}`},
	{"as", "POST", "v3/register", `{"type":"m.login.application_service","username":"_sip_1","inhibit_login":true}`},
	{"as", "POST", "v3/register", `{"type":"m.login.application_service","username":"carl","inhibit_login":true}`},
	{"as", "POST", "v3/register", `{"type":"m.login.application_service","username":"_sip_2"}`},
	{"as", "GET", "v3/account/whoami" + ghost, ""},
	{"as", "GET", "v3/account/whoami" + ghostOnD1, ""},
	{"as", "PUT", "v3/devices/D1" + ghost, `{"display_name":"x"}`},
	{"as", "PUT", "v3/devices/D1" + ghost, `{"display_name":"x"}`},
	{"as", "GET", "v3/account/whoami" + ghostOnD1, ""},
	{"as", "GET", "v3/devices/D2" + ghost, ""},
	{"alice", "PUT", "v3/devices/NEW", `{"display_name":"x"}`},
	{"as", "DELETE", "v3/devices/D9" + ghost, empty},

	{"as", "POST", "v3/keys/upload" + ghost, empty},
	{"as", "POST", "v3/keys/upload" + ghostOnD1, empty},
	{"as", "POST", "v3/keys/upload" + ghostOnD1, `{"device_keys":{"user_id":"@x:y","device_id":"D1","algorithms":[],"keys":{},"signatures":{}}}`},
	{"as", "POST", "v3/keys/upload" + ghostOnD1, `{"one_time_keys":{"signed_curve25519:A":{"key":"a"}}}`},
	{"as", "POST", "v3/keys/upload" + ghostOnD1, `{
		"device_keys":{"user_id":"@_sip_1:lab.local","device_id":"D1","algorithms":["x"],"keys":{"ed25519:D1":"a"},"signatures":{}},
		"one_time_keys":{"signed_curve25519:A":{"key":"a","signatures":{}}},
		"fallback_keys":{"signed_curve25519:F":{"key":"f","fallback":true,"signatures":{}}}}`},
	{"as", "POST", "v3/keys/upload" + ghostOnD1, `{"one_time_keys":{"signed_curve25519:A":{"key":"b","signatures":{}}}}`},
	{"as", "POST", "v3/keys/upload" + ghostOnD1, `{"one_time_keys":{"signed_curve25519:A":{"key":"a","signatures":{}}}}`},
	{"alice", "POST", "v3/keys/query", `{"device_keys":{"@_sip_1:lab.local":[],"@bob:lab.local":[],"@nobody:lab.local":[]}}`},
	{"alice", "POST", "v3/keys/claim", `{"one_time_keys":{"@_sip_1:lab.local":{"D1":"signed_curve25519","D7":"signed_curve25519"}}}`},
	{"alice", "POST", "v3/keys/claim", `{"one_time_keys":{"@_sip_1:lab.local":{"D1":"signed_curve25519"}}}`},
	{"alice", "POST", "v3/keys/claim", `{"one_time_keys":{"@_sip_1:lab.local":{"D1":"signed_curve25519"}}}`},
	{"as", "POST", "v3/keys/upload" + ghostOnD1, empty},

	{"as", "GET", "v3/sync" + ghostOnD1 + "&since=xx", ""},
	{"alice", "PUT", "v3/sendToDevice/m.x/1", `{"messages":{"@_sip_1:lab.local":{"D1":{"a":1},"NONE":{}}}}`},
	{"as", "GET", poll, ""}, // {since} is from here on the next_batch of the last answer to the same asker that …
	{"as", "GET", poll, ""}, // … was followed by "advance": the message is there twice, …
	{"as", "GET", "advance", ""},
	{"as", "GET", poll + "&since={since}", ""}, // … and now no more
	{"as", "GET", poll, ""},
	{"alice", "PUT", "v3/sendToDevice/m.x/4", `{"messages":{"@_sip_1:lab.local":{"*":{"a":2}}}}`},
	{"alice", "PUT", "v3/sendToDevice/m.x/4", `{"messages":{"@_sip_1:lab.local":{"*":{"a":3}}}}`},
	{"as", "GET", "v3/sync" + ghost + noRooms, ""}, // without device: nothing
	{"as", "GET", poll + "&since={since}", ""},
	{"as", "GET", poll + "&since={since}", ""},
	{"as", "GET", "advance", ""},
	{"as", "GET", poll + "&since={since}", ""},

	{"as", "POST", sliding, `{"conn_id":"phone","extensions":{"to_device":{"enabled":true},"e2ee":{"enabled":true}}}`},
	{"as", "POST", "advance", ""},
	{"alice", "PUT", "v3/sendToDevice/m.x/5", `{"messages":{"@_sip_1:lab.local":{"D1":{"a":5}}}}`},
	{"as", "POST", sliding + "&timeout=2000&pos={pos}", `{"conn_id":"phone","extensions":{"to_device":{"enabled":true,"since":"{since}"},"e2ee":{"enabled":true}}}`},
	{"as", "POST", sliding + "&timeout=0&pos={pos}", `{"conn_id":"phone","extensions":{"to_device":{"enabled":true,"since":"{since}"}}}`}, // again
	{"as", "POST", "advance", ""},
	{"as", "POST", sliding + "&timeout=10&pos={pos}", `{"conn_id":"phone","extensions":{"to_device":{"enabled":true,"since":"{since}"},"e2ee":{"enabled":true}}}`},
	{"as", "POST", sliding + "&timeout=0", `{"conn_id":"phone","extensions":{"to_device":{"enabled":true}}}`},
	{"as", "POST", sliding + "&pos=x", `{"conn_id":"phone"}`},
	{"as", "POST", sliding, `{"conn_id":"phone","extensions":{"to_device":{"enabled":true,"since":"x"}}}`},
	{"as", "POST", "unstable/org.matrix.simplified_msc3575/sync" + ghost + "&device_id=D9", `{}`},

	{"alice", "PUT", "v3/sendToDevice/m.x/2", "broken"},
	{"alice", "PUT", "v3/sendToDevice/m.x/3", empty},
	{"alice", "GET", "v3/voip/turnServer", ""},
	{"alice", "POST", "v3/user/@alice:lab.local/filter", `{"room":{"rooms":[]}}`},

	{"alice", "POST", "v3/createRoom", `{"preset":"private_chat","name":"Stand-up","invite":["@bob:lab.local"],
		"room_alias_name":"standup","power_level_content_override":{"events":{"org.matrix.msc3401.call":0}}}`},
	{"alice", "GET", "v3/rooms/{room}/state/m.room.power_levels/", ""},
	{"alice", "GET", "v3/rooms/{room}/state/m.room.create/", ""},
	{"alice", "GET", "v3/rooms/{room}/state/m.room.member/@bob:lab.local", ""},
	{"bob", "GET", "v3/rooms/{room}/state", ""},
	{"alice", "GET", "v3/rooms/{room}/state/m.room.name", ""},
	{"alice", "GET", "v3/rooms/{room}/state/m.nope/x", ""},
	{"alice", "GET", "v3/rooms/!nope/state/m.nope/x", ""},
	{"bob", "PUT", "v3/rooms/{room}/state/m.nope/x", empty},
	{"as", "POST", "v3/rooms/{room}/join" + ghost, empty},
	{"bob", "GET", quiet, ""},
	{"bob", "GET", "advance", ""},
	{"bob", "POST", "v3/join/{room}", empty},
	{"bob", "GET", quiet + "&since={since}", ""},
	{"bob", "GET", "advance", ""},
	{"bob", "POST", "v3/join/{room}", empty},
	{"bob", "PUT", "v3/rooms/{room}/state/m.nope/x", empty},
	{"bob", "PUT", "v3/rooms/{room}/state/org.matrix.msc3401.call/x", `{"a":1}`},
	{"bob", "PUT", "v3/rooms/{room}/state/org.matrix.msc3401.call.member/@bob:lab.local", `{"a":1}`},
	{"bob", "PUT", "v3/rooms/{room}/state/org.matrix.msc3401.call/@alice:lab.local", `{"a":1}`},
	{"alice", "PUT", "v3/rooms/{room}/state/org.matrix.msc3401.call.member/@alice:lab.local", `{"a":1}`},
	{"bob", "GET", quiet + "&since={since}", ""},
	{"bob", "POST", "v3/rooms/{room}/invite", `{"user_id":"@_sip_1:lab.local"}`},
	{"bob", "POST", "v3/rooms/{room}/invite", `{"user_id":"@alice:lab.local"}`},
	{"as", "PUT", "v3/profile/@_sip_1:lab.local/displayname" + ghost, `{"displayname":"Phone"}`},
	{"as", "POST", "v3/join/%23standup:lab.local" + ghost, empty},
	{"bob", "GET", "v3/directory/room/%23standup:lab.local", ""},
	{"bob", "GET", "v3/directory/room/%23nope:lab.local", ""},
	{"bob", "GET", "v3/rooms/{room}/aliases", ""},
	{"bob", "GET", "v3/rooms/{room}/joined_members", ""},
	{"bob", "POST", "v3/rooms/{room}/kick", `{"user_id":"@_sip_1:lab.local"}`},
	{"bob", "GET", "v3/rooms/{room}/state/m.room.member/@_sip_1:lab.local", ""},
	{"as", "PUT", "v3/rooms/{room}/state/m.room.member/@_sip_1:lab.local" + ghost, `{"membership":"join","displayname":"Here"}`},
	{"bob", "GET", "v3/rooms/{room}/state/m.room.member/@_sip_1:lab.local", ""},
	{"alice", "POST", "v3/rooms/{room}/kick", `{"user_id":"@_sip_1:lab.local"}`},
	{"alice", "POST", "v3/rooms/{room}/kick", `{"user_id":"@_sip_1:lab.local"}`},
	{"as", "PUT", "v3/rooms/{room}/send/m.room.message/1" + ghost, `{"body":"x","msgtype":"m.text"}`},
	{"as", "POST", "v3/rooms/{room}/leave" + ghost, empty},
	{"bob", "PUT", "v3/rooms/{room}/send/m.room.message/1", `{"body":"x","msgtype":"m.text"}`},
	{"bob", "GET", "v3/profile/@_sip_1:lab.local", ""},
	{"bob", "GET", "v3/profile/@nobody:lab.local", ""},
	{"bob", "PUT", "v3/profile/@alice:lab.local/displayname", `{"displayname":"x"}`},
	{"as", "POST", "v1/appservice/bridge/ping", `{"transaction_id":"a"}`},
	{"alice", "POST", "v1/appservice/bridge/ping", `{"transaction_id":"a"}`},
	{"alice", "POST", "v3/createRoom", `{"power_level_content_override":{"users":{"@alice:lab.local":100}}}`},
	{"alice", "POST", "v3/createRoom", `{"room_alias_name":"standup"}`},
	{"bob", "POST", "v3/rooms/{room}/leave", empty},
	{"bob", "GET", "v3/rooms/{room}/state/m.room.name/", ""},
	{"alice", "POST", "v3/createRoom", `{"preset":"public_chat","room_version":"10"}`},
	{"alice", "GET", "v3/rooms/{room}/state/m.room.power_levels/", ""},
	{"bob", "POST", "v3/join/{room}", empty},
}

func TestAnswersAreThoseOfSynapse(t *testing.T) {
	fake := homeserver.StartLoopback(t, homeserver.Config{Domain: "lab.local"})
	fake.AppService(readRegistration(t), http.DefaultClient)
	genuine := synapse.New(t, synapse.Config{Registrations: []string{writeRegistration(t)}})
	fakeTokens, realTokens := map[string]string{}, map[string]string{}
	for _, name := range []string{"alice", "bob"} {
		fakeTokens[name] = fake.User(name).AccessToken
		user, err := genuine.Register(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		realTokens[name] = user.AccessToken
	}
	ours := asker{base: fake.URL(), tokens: fakeTokens, since: map[string]string{}}
	theirs := asker{base: genuine.URL(), tokens: realTokens, since: map[string]string{}}
	for _, q := range questions {
		got, want := ours.ask(t, q), theirs.ask(t, q)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s %s %s %s: answer differs from Synapse's (-Synapse +ours):\n%s", q.who, q.method, q.path, q.body, diff)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// asker asks one server.
type asker struct {
	base   string
	tokens map[string]string
	room   string            // of the last createRoom
	last   string            // next_batch of the last answer
	since  map[string]string // {since} of each asker

	pos, lastPos string // {pos} of sliding sync, and that of the last answer
}

// ask returns status and body. Ids, times and free text, which may differ, are replaced by a word.
func (a *asker) ask(t *testing.T, q question) map[string]any {
	t.Helper()
	if q.path == "advance" {
		a.since[q.who], a.pos = a.last, a.lastPos
		return nil
	}
	words := strings.NewReplacer("{room}", a.room, "{since}", a.since[q.who], "{pos}", url.QueryEscape(a.pos))
	target := a.base + "/_matrix/client/" + words.Replace(q.path)
	req, err := http.NewRequestWithContext(t.Context(), q.method, target, strings.NewReader(words.Replace(q.body)))
	if err != nil {
		t.Fatal(err)
	}
	switch q.who {
	case "none":
	case "as":
		req.Header.Set("Authorization", "Bearer as-secret")
	default:
		req.Header.Set("Authorization", "Bearer "+a.tokens[q.who])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var body any
	if err := json.Unmarshal(content, &body); err != nil {
		t.Fatalf("%s %s: %v: %s", q.method, q.path, err, content)
	}
	if m, ok := body.(map[string]any); ok {
		if room, ok := m["room_id"].(string); ok && strings.HasSuffix(q.path, "createRoom") {
			a.room = room
		}
		if next, ok := m["next_batch"].(string); ok {
			a.last = next
		}
		if pos, ok := m["pos"].(string); ok {
			a.lastPos = pos
			a.last = m["extensions"].(map[string]any)["to_device"].(map[string]any)["next_batch"].(string)
		}
	}
	return map[string]any{"status": resp.StatusCode, "body": plain(body)}
}

// plain replaces what may differ.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if strings.HasPrefix(k, "!") {
				v["…"] = plain(v[k])
				delete(v, k)
				continue
			}
			switch k {
			case "room_id", "next_batch", "pos", "origin_server_ts", "event_id", "error", "device_id", "uris", "username", "password", "filter_id", "body":
				v[k] = "…"
			case "changed":
				slices.SortFunc(v[k].([]any), func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
			case "avatar_url", "last_seen_ts", "last_seen_ip":
				delete(v, k)
			case "unsigned", "signatures", "prev_batch", "limited", "summary", "unread_notifications", "account_data", "ephemeral":
				delete(v, k)
			default:
				v[k] = plain(v[k])
			}
		}
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	}
	return v
}

func writeRegistration(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "registration.yaml")
	if err := os.WriteFile(file, []byte(registrationYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func readRegistration(t *testing.T) *appservice.Registration {
	t.Helper()
	reg, err := appservice.LoadRegistration(writeRegistration(t))
	if err != nil {
		t.Fatal(err)
	}
	return reg
}
