package doctor

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"trunkline/bridge/config"
	"trunkline/internal/testbed/homeserver"
)

// freeAddress is free for TCP and UDP, and stays so: it is below those that the system gives to whoever asks for any.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		address := fmt.Sprint("127.0.0.1:", 12000+rand.IntN(8000))
		streams, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		streams.Close()
		packets, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		packets.Close()
		return address
	}
	t.Fatal("no free address")
	return ""
}

// examine has a bridge looked at that does not run: text is its config beyond what every one has, and token what the homeserver
// takes for its own, if it is not that of the registration.
func examine(t *testing.T, hs *homeserver.Server, text string, token string) (out string, well bool) {
	t.Helper()
	listen := freeAddress(t)
	folder := t.TempDir()
	path := filepath.Join(folder, "config.yaml")
	cfg, err := config.Parse(path, fmt.Appendf(nil, `
homeserver: {address: %q, domain: %s}
appservice: {listen: %q, url: "http://%[3]s", bot: trunkline}
database: {address: "sqlite:%[4]s/t.db"}
admin: {listen: ""}
rtp: {address: 127.0.0.1, advertise: 192.0.2.9}
%[5]s`, hs.URL(), hs.Domain(), listen, folder, strings.ReplaceAll(text, "SOCKET", listen)))
	if err != nil {
		t.Fatal(err)
	}
	registration := config.NewRegistration(cfg)
	if err := config.WriteRegistration(config.RegistrationPath(cfg, path), registration); err != nil {
		t.Fatal(err)
	}
	if token != "" {
		registration.ServerToken = token
	}
	hs.AppService(registration, &http.Client{Timeout: time.Minute})
	var b strings.Builder
	well = Examine(t.Context(), cfg, path, &b)
	return b.String(), well
}

func TestDoctorLooksForWhatTheFirstCallNeeds(t *testing.T) {
	hs := homeserver.StartLoopback(t, homeserver.Config{})
	owner, bot := hs.User("owner").UserID, hs.User("trunkline").UserID
	good, strange, closed := hs.Room(owner, homeserver.CallRoom()), hs.Room(owner, homeserver.CallRoom()), hs.Room(owner, homeserver.CreateRoom{})
	hs.Join(good, bot)
	hs.Join(closed, bot)

	out, well := examine(t, hs, fmt.Sprintf(`
sip:
  listen: [{transport: udp, address: "SOCKET"}]
  trunks: [{name: pbx, networks: [192.0.2.0/24], proxy: nosuch.invalid}]
permissions: {exmaple.org: call}
routes: [{number: "1", room: %q}, {number: "2", room: %q}, {number: "3", room: %q}, {number: "4", room: "#nowhere:%s"}]
`, good, strange, closed, hs.Domain()), "")
	for _, want := range []string{
		"ok    homeserver reaches the bridge: ping came back",
		"ok    room " + string(good) + ": is there",
		"FAIL  room " + string(strange) + ": " + string(bot) + " is not in it",
		"FAIL  room " + string(closed) + ": org.matrix.msc3401.call takes power level 50 there, and phones have 0",
		"FAIL  room #nowhere:" + hs.Domain() + ": M_NOT_FOUND",
		"FAIL  proxy of trunk pbx: lookup nosuch.invalid",
		`ok    permissions: of another server than ` + hs.Domain() + `: "exmaple.org"`,
		"FAIL  calls of rooms: somebody may place calls, but to no number",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the doctor does not say %q", want)
		}
	}
	if well {
		t.Error("the doctor says that all is well")
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestDoctorFindsNothingWhereACallWouldWork(t *testing.T) {
	hs := homeserver.StartLoopback(t, homeserver.Config{})
	room := hs.Room(hs.User("owner").UserID, homeserver.CallRoom())
	hs.Join(room, hs.User("trunkline").UserID)
	out, well := examine(t, hs, fmt.Sprintf(`
sip:
  listen: [{transport: udp, address: "SOCKET"}]
  advertise: 192.0.2.9
  trunks: [{name: pbx, networks: [192.0.2.0/24], proxy: 192.0.2.1, number: "+49301234567"}]
permissions: {%s: call}
dialling: {country: DE}
routes: [{number: "1", room: %q}]
`, hs.Domain(), room), "")
	if !well || !strings.Contains(out, "ok    calls of rooms: somebody may place them") {
		t.Errorf("well: %t\n%s", well, out)
	}
}

func TestDoctorSaysWhatLetsInMoreThanIsMeant(t *testing.T) {
	hs := homeserver.StartLoopback(t, homeserver.Config{})
	out, _ := examine(t, hs, `
sip: {listen: [{transport: udp, address: "SOCKET"}], trunks: [{name: pbx, networks: [198.51.100.7/24, 192.0.2.0/24]}]}`, "")
	if want := "ok    networks of trunk pbx: 198.51.100.7/24 is all of 198.51.100.0/24; one address is written 198.51.100.7/32"; !strings.Contains(out, want) || strings.Contains(out, "192.0.2.0/24 is") {
		t.Errorf("the doctor does not say %q alone:\n%s", want, out)
	}
	cfg, path := config.Default(), filepath.Join(t.TempDir(), "config.yaml")
	registration := config.RegistrationPath(cfg, path)
	if err := config.WriteRegistration(registration, config.NewRegistration(cfg)); err != nil {
		t.Fatal(err)
	}
	for mode, well := range map[os.FileMode]bool{0o600: true, 0o640: true, 0o644: false} {
		if err := os.Chmod(registration, mode); err != nil {
			t.Fatal(err)
		}
		p := &patient{cfg: cfg, configPath: path}
		if f := p.checkRegistration(t.Context())[0]; f.ok != well {
			t.Errorf("a registration of mode %v: %+v", mode, f)
		}
	}
}

func TestDoctorKnowsWhatTheHomeserversUsersEndIn(t *testing.T) {
	hs := homeserver.StartLoopback(t, homeserver.Config{})
	cfg := config.Default()
	cfg.Homeserver.Address, cfg.Homeserver.Domain = hs.URL(), "exmaple.org"
	p := &patient{cfg: cfg, registration: config.NewRegistration(cfg), answers: true}
	hs.AppService(p.registration, &http.Client{Timeout: time.Minute})
	f := p.checkToken(t.Context())[0]
	if want := `homeserver.domain is "exmaple.org", but the homeserver's users end in "` + hs.Domain() + `"`; f.ok || f.detail != want || p.accepted {
		t.Errorf("the doctor says %+v, want %s", f, want)
	}
}

func TestDoctorFindsAnotherTokenBeforeTheBridgeRuns(t *testing.T) {
	hs := homeserver.StartLoopback(t, homeserver.Config{})
	out, _ := examine(t, hs, `
sip: {listen: [{transport: udp, address: "SOCKET"}], trunks: [{name: pbx, networks: [192.0.2.0/24]}]}`, "another")
	if !strings.Contains(out, "FAIL  homeserver reaches the bridge:") || !strings.Contains(out, "hs_token") {
		t.Errorf("the doctor does not find that the homeserver has another token:\n%s", out)
	}
}
