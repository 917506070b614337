package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"trunkline/bridge/config"
	"trunkline/db"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

// admin makes a request as an admin would.
func (b *bed) admin(method, path, body string) (int, string) {
	b.t.Helper()
	w := httptest.NewRecorder()
	b.process.bridge.admin().ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

func TestTrunksAndRoutesOfTheDatabaseTakeCalls(t *testing.T) {
	t.Parallel()
	b := makeBed(t)
	b.cfg.SIP.Trunks = nil
	b.start()
	t.Cleanup(b.stop)
	b.awaitBot()
	b.person("alice", member.JSSDK, true)
	for _, put := range []struct{ path, body string }{
		{"/trunks/office", `{"networks": ["127.0.0.0/8"], "codecs": ["PCMA"], "password": "secret", "username": "u"}`},
		{"/trunks/gone", `{"proxy": "pbx.example.org"}`},
		{"/routes/+4930777", `{"room": "` + string(b.room) + `", "intent": "m.prompt"}`},
	} {
		if code, answer := b.admin("PUT", put.path, put.body); code != http.StatusOK {
			t.Fatalf("PUT %s = %d, %s", put.path, code, answer)
		}
	}
	if code, answer := b.admin("DELETE", "/trunks/gone", ""); code != http.StatusOK {
		t.Fatalf("DELETE = %d, %s", code, answer)
	}
	// What an admin wrote with a tool of his own: it must not keep the bridge from starting.
	if err := b.process.bridge.store.PutTrunk(t.Context(), db.Trunk{Name: "broken", Settings: "{"}); err != nil {
		t.Fatal(err)
	}
	b.stop()
	b.start()
	_, list := b.admin("GET", "/trunks", "")
	for _, want := range []string{
		`{"name":"office","networks":["127.0.0.0/8"],"from":"database","used":true,"problem":"","calls":0}`,
		`{"name":"broken","from":"database","used":false,"problem":"read trunk: `,
	} {
		if !strings.Contains(list, want) || strings.Contains(list, "secret") || strings.Contains(list, "gone") {
			t.Errorf("GET /trunks = %s, want %s, and no password", list, want)
		}
	}
	if _, list := b.admin("GET", "/routes", ""); !strings.Contains(list, `{"number":"+4930777","room":"`+string(b.room)+`","options":{"intent":"m.prompt"},"from":"database"}`) {
		t.Errorf("GET /routes = %s", list)
	}
	b.dial(b.phone("+493012345678"), "+4930777")
	if got := b.ghosts(); len(got) != 1 {
		t.Errorf("ghosts in the call: %v", got)
	}
}

// One registrar takes us, it does not know the other account, and nobody is behind the third trunk; a phone of the fourth is in a call.
func TestTrunksTellAnAdminHowTheyAre(t *testing.T) {
	t.Parallel()
	b := makeBed(t)
	p, err := phone.Open(phone.Config{Local: netip.MustParseAddr("127.0.0.1"), Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	nobody := fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)[0])
	b.cfg.SIP.Trunks = append(b.cfg.SIP.Trunks,
		config.Trunk{Name: "carrier", Proxy: p.Addr().String(), Register: true, Username: "u", Password: "secret", Ping: time.Minute},
		config.Trunk{Name: "unpaid", Proxy: p.Addr().String(), Register: true, Username: "u", Password: "wrong"},
		config.Trunk{Name: "gone", Proxy: nobody, Transport: "tcp", Ping: time.Minute})
	b.start()
	t.Cleanup(b.stop)
	b.person("alice", member.JSSDK, true)
	call := b.dial(b.phone("+493012345678"), goodNumber)
	trunks := func() map[string]trunkView {
		code, list := b.admin("GET", "/trunks", "")
		var views []trunkView
		if err := json.Unmarshal([]byte(list), &views); err != nil || code != http.StatusOK {
			t.Fatalf("GET /trunks = %d, %s: %v", code, list, err)
		}
		byName := make(map[string]trunkView)
		for _, v := range views {
			byName[v.Name] = v
		}
		return byName
	}
	b.await("all trunks to be known", func() bool {
		all := trunks()
		return all["carrier"].Up != nil && all["carrier"].RegisteredUntil != nil && all["unpaid"].NotRegistered != "" && all["gone"].Up != nil
	})
	all := trunks()
	if v := all["carrier"]; !*v.Up || v.DownBecause != "" || v.NotRegistered != "" || !v.RegisteredUntil.After(time.Now()) || *v.Calls != 0 {
		t.Errorf("carrier: %+v, want it up and registered", v)
	}
	if v := all["unpaid"]; v.Up != nil || v.RegisteredUntil != nil || v.NotRegistered != "refused with 401 Unauthorized" {
		t.Errorf("unpaid: %+v, want 401", v)
	}
	if v := all["gone"]; *v.Up || !strings.Contains(v.DownBecause, "connection refused") || v.RegisteredUntil != nil || v.NotRegistered != "" {
		t.Errorf("gone: %+v, want it down", v)
	}
	if v := all["lab"]; *v.Calls != 1 || v.Up != nil || v.RegisteredUntil != nil {
		t.Errorf("lab: %+v, want one call, and nothing that nobody has asked", v)
	}
	b.hangUp(call)
	b.await("the call to be gone", func() bool { return *trunks()["lab"].Calls == 0 })
}

func TestStoredTrunkThatOnlyTakesCallsMayPlaceNone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	if code, answer := b.admin("PUT", "/trunks/office", `{"networks": ["127.0.0.0/8"], "proxy": "127.0.0.99", "direction": "out"}`); code != http.StatusOK {
		t.Fatalf("PUT = %d, %s", code, answer)
	}
	b.stop()
	b.cfg.SIP.Trunks = nil
	b.start()
	if _, list := b.admin("GET", "/trunks", ""); !strings.Contains(list, `"proxy":"127.0.0.99","direction":"out","from":"database","used":true`) {
		t.Errorf("GET /trunks = %s", list)
	}
	_, err := b.phone("+493012345678").Dial(b.ctx(), b.sip, goodNumber)
	if status, ok := errors.AsType[*phone.StatusError](err); !ok || status.Code != 403 || b.rows() != 0 {
		t.Errorf("its call = %v, and %d rows; want 403 and none", err, b.rows())
	}
	b.shows(`trunkline_sip_calls_turned_away_total{trunk="office",why="outbound only"} 1`)
	b.shows("trunkline_sip_banned_addresses 0")
}

func TestStoredTrunksAndRoutesAreChecked(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, c := range []struct {
		path, body string
		code       int
		says       string
	}{
		{"/trunks/lab", `{"networks": ["192.0.2.0/24"]}`, 409, "the config has one of that name"},
		{"/trunks/new", `{"proxy": "192.0.2.1", "transport": "tls"}`, 400, "trunk.transport: calls to this trunk need a tls socket"},
		{"/trunks/new", `{"networks": ["192.0.2.1"]}`, 400, "is not a network like"},
		{"/trunks/new", `{"networks": ["192.0.2.0/24"], "colour": "red"}`, 400, "colour"},
		{"/trunks/new", `{"networks": ["192.0.2.0/24"], "tls": {"certificate": "/no/such", "key": "/no/such"}}`, 400, "no such file"},
		{"/trunks/new", `networks: 1`, 400, "JSON object"},
		{"/trunks/new", `"` + strings.Repeat("x", longestSettings) + `"`, 400, "too large"},
		{"/routes/" + goodNumber, `{"room": "#a:example.org"}`, 409, "the config has one of that name"},
		{"/routes/12", `{"room": "#a"}`, 400, "is not a room alias"},
		{"/routes/12", `{"room": "#a:example.org", "intent": "m.dance"}`, 400, "is not one of m.ring, m.prompt"},
	} {
		if code, answer := b.admin("PUT", c.path, c.body); code != c.code || !strings.Contains(answer, c.says) {
			t.Errorf("PUT %s %.60s = %d, %s; want %d, %q", c.path, c.body, code, answer, c.code, c.says)
		}
	}
	for path, want := range map[string]int{"/trunks/lab": 409, "/trunks/new": 404, "/routes/" + goodNumber: 409, "/routes/12": 404} {
		if code, answer := b.admin("DELETE", path, ""); code != want {
			t.Errorf("DELETE %s = %d, %s; want %d", path, code, answer, want)
		}
	}
	if _, list := b.admin("GET", "/trunks", ""); strings.Contains(list, "new") {
		t.Errorf("a trunk that was refused is there: %s", list)
	}
}

func TestAStoredTrunkThatCannotBeUsedHarmsNoOther(t *testing.T) {
	own := []config.Trunk{{Name: "carrier"}}
	var cfg config.Config
	cfg.RTP.Address = "127.0.0.1"
	cfg.SIP.Listen = []config.Listen{{Transport: "udp", Address: "127.0.0.1:5060"}}
	for _, c := range []struct {
		name, settings string
		good           bool
	}{
		{"pbx", `{"networks": ["192.0.2.0/24"], "proxy": "192.0.2.1", "ping": "30s"}`, true},
		{"carrier", `{"networks": ["192.0.2.0/24"]}`, false},
		{"empty", `{}`, false},
		{"broken", `{`, false},
		{"nat", `{"networks": ["192.0.2.0/24"], "advertise": "203.0.113.5"}`, true},
		{"six", `{"networks": ["192.0.2.0/24"], "advertise": "2001:db8::5"}`, false}, // sound comes to an IPv4 address
		{"six", `{"networks": ["192.0.2.0/24"], "advertise_rtp": "sip.example.org"}`, false},
	} {
		if _, err := usableTrunk(cfg, own, c.name, c.settings); (err == nil) != c.good {
			t.Errorf("usableTrunk(%s, %s) = %v", c.name, c.settings, err)
		}
	}
}

func TestRoomsAreDialledByTheirNames(t *testing.T) {
	t.Parallel()
	b := makeBed(t)
	b.cfg.DialIn.RoomNames = true
	b.cfg.Calls.Intent = config.IntentPrompt
	named := homeserver.CallRoom(b.bot())
	named.Alias = "meeting"
	b.room = b.hs.Room(b.hs.User("host").UserID, named)
	b.start()
	t.Cleanup(b.stop)
	b.person("alice", member.JSSDK, true)
	b.dial(b.phone("+493012345678"), "meeting")
	if got := b.ghosts(); len(got) != 1 {
		t.Errorf("ghosts in the call of #meeting: %v", got)
	}
	if _, err := b.phone("+493012345679").Dial(b.ctx(), b.sip, "nowhere"); err == nil {
		t.Error("a room that is not there took a call")
	}
}
