package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"trunkline/bridge/menu"
)

const smallest = "homeserver: {domain: example.org}\n"

func TestExampleIsTheDefault(t *testing.T) {
	// The example itself lacks only what has no default: the domain.
	text := strings.Replace(string(Example()), `domain: ""`, "domain: example.org", 1)
	fromExample, err := Parse("example.yaml", []byte(text))
	if err != nil {
		t.Fatalf("the example does not load: %v", err)
	}
	fromNothing, err := Parse("config.yaml", []byte(smallest))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fromNothing, fromExample); diff != "" {
		t.Errorf("the example differs from the defaults (-default +example):\n%s", diff)
	}
}

func TestExampleNamesEveryOption(t *testing.T) {
	var root yaml.Node
	if err := yaml.Unmarshal(Example(), &root); err != nil {
		t.Fatal(err)
	}
	lines := linesOf(&root)
	for _, key := range keysOf(reflect.TypeFor[Config](), "") {
		if _, ok := lines[key]; ok {
			continue
		}
		// Options inside lists stand in the commented example of the list.
		last := key[strings.LastIndex(key, ".")+1:]
		if strings.Contains(key, "[") && strings.Contains(string(Example()), last+":") {
			continue
		}
		t.Errorf("the example does not name %s", key)
	}
}

func keysOf(typ reflect.Type, path string) []string {
	switch typ.Kind() {
	case reflect.Struct:
		var keys []string
		for f := range typ.Fields() {
			name := path
			tag := f.Tag.Get("yaml")
			if tag == "-" { // no option
				continue
			}
			if tag != ",inline" {
				name = strings.TrimPrefix(path+"."+tag, ".")
			}
			keys = append(keys, keysOf(f.Type, name)...)
		}
		return keys
	case reflect.Slice:
		if typ.Elem().Kind() == reflect.Struct {
			return keysOf(typ.Elem(), path+"[0]")
		}
	}
	return []string{path}
}

func TestCommentedExamplesLoad(t *testing.T) {
	text := smallest + `
sip:
  trunks:
    - name: carrier
      networks: [198.51.100.0/24]
      codecs: [PCMU, PCMA]
      symmetric_rtp: true
      media_networks: [203.0.113.0/24]
      username: trunkline
      auth_username: "customer 7"
      display_name: "Café Ltd"
      hide_number: true
      show_numbers: false
      ignore_asserted_identity: true
webrtc:
  servers: [{uris: ["turn:turn.example.org"], username: u, password: p}]
calls: {longest: 90m}
routes:
  - number: "+49301234567"
    room: "#meeting:example.org"
    intent: m.prompt
    ring_timeout: 90s
    ring_notice: false
    early_media: false
    refusal_tone: 0s
    tone_zone: north_america
    pin: none
    lobby: true
    say_people: true
    keys: {}
    show_numbers: true
`
	c, err := Parse("config.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if c.Calls.Longest != 90*time.Minute || c.SIP.Trunks[0].Name != "carrier" || c.Routes[0].Number != "+49301234567" {
		t.Errorf("Parse = %+v", c)
	}
}

func TestARouteTakesFromCallsWhatItLeavesOut(t *testing.T) {
	c, err := Parse("config.yaml", []byte(smallest+`
calls: {ring_timeout: 20s, early_media: false, pin: database, announce: true}
routes: [{number: "1", room: "*", intent: m.prompt, refusal_tone: 0s, language: en_GB, keys: {"#": leave}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	got := c.Routes[0].Options.Over(c.Calls.Options)
	want := Options{
		Intent: IntentPrompt, RingTimeout: new(20 * time.Second), RingNotice: new(true), EarlyMedia: new(false),
		RefusalTone: new(time.Duration(0)), ToneZone: ZoneEurope,
		PIN: PINDatabase, Lobby: new(false), Language: "en_GB", SayPeople: new(false), Announce: new(true),
		Keys: &Keys{"#": menu.LeaveCall},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
}

func TestOptionsOfTheDatabaseAreJSON(t *testing.T) {
	got, err := ParseOptions(`{"intent": "m.prompt", "ring_timeout": "90s", "early_media": false}`)
	want := Options{Intent: IntentPrompt, RingTimeout: new(90 * time.Second), EarlyMedia: new(false)}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("ParseOptions (-want +got):\n%s%v", diff, err)
	}
	for _, empty := range []string{"", "{}"} {
		if got, err := ParseOptions(empty); !cmp.Equal(got, Options{}) || err != nil {
			t.Errorf("ParseOptions(%q) = %+v, %v", empty, got, err)
		}
	}
	for _, bad := range []string{"[", `{"intent": "m.room"}`, `{"ring": 1}`, `{"ring_timeout": "0s"}`, `[]`} {
		if _, err := ParseOptions(bad); err == nil {
			t.Errorf("ParseOptions(%q) has no complaint", bad)
		}
	}
}

func TestAdvertisedPortsStandForOneSocket(t *testing.T) {
	const udpAndTLS = "listen: [{transport: udp, address: '0.0.0.0:5060'}, {transport: tls, address: '0.0.0.0:5061'}], tls: {certificate: a, key: b}"
	for _, tt := range []struct{ sip, want string }{
		{"advertise: 203.0.113.5:15060", ""}, // the default has one port
		{"advertise: 'voip.example.org:15060'", ""},
		{"advertise: '[2001:db8::1]:15060'", ""},
		{"advertise: '2001:db8::1'", ""},
		{"advertise: 'voip.example.org:'", `sip.advertise: "" is not a port`},
		{"advertise: 'voip.example.org:99999'", `sip.advertise: "99999" is not a port`},
		{"advertise: ':15060'", `sip.advertise: ":15060" has no host`},
		{"advertise: 203.0.113.5:15060, " + udpAndTLS, "sip.advertise: one port cannot stand for the sockets of several"},
		{udpAndTLS + ", trunks: [{name: x, proxy: 192.0.2.1, transport: tls, advertise: '203.0.113.5:15061'}]", ""},
		{udpAndTLS + ", trunks: [{name: x, proxy: example.org, transport: auto, advertise: '203.0.113.5:15061'}]", "sip.trunks[0].advertise: one port cannot"},
	} {
		_, err := Parse("config.yaml", []byte("sip: {"+tt.sip+"}\n"))
		about := "" // the homeserver is missing, too
		for line := range strings.SplitSeq(fmt.Sprint(err), "\n") {
			if strings.Contains(line, "advertise") {
				about += line
			}
		}
		if !strings.Contains(about, tt.want) || (about == "") != (tt.want == "") {
			t.Errorf("%s: %q, want %q", tt.sip, about, tt.want)
		}
	}
}

func TestAllProblemsAreReportedAtOnce(t *testing.T) {
	text := `homeserver:
  address: matrix.example.org
  domian: example.org
calls:
  longest: forever
  max_legs: many
sip:
  listen: [{transport: sctp, address: "5060"}]
  trunks:
    - {networks: [carrier.example.org], media_networks: [192.0.2.1], auth_username: u, display_name: "a\tb", direction: out, invites_per_second: -1, advertise: "a b", advertise_rtp: x}
  limits: {messages_per_second: -1}
rtp: {port_min: 80, port_max: 70}
webrtc: {port_min: 30000}
routes:
  - {number: "1 2", room: meeting, intent: m.room, ring_timeout: 1h}
  - {number: "3", room: "*", pin: "1234"}
  - {number: "4", room: "*", language: german, keys: {"*6": explode}}
  - {number: "5", room: "#meeting"}
log: {level: loud}
dial_in:
  pin_digits: 4
  sounds: [/nowhere]
permissions: {"example.org": veiw}
admin: {listen: "127.0.0.1:29400"}
`
	_, err := Parse("config.yaml", []byte(text))
	var problems *Problems
	if !errors.As(err, &problems) {
		t.Fatalf("Parse = %v, want *Problems", err)
	}
	for _, want := range []string{
		"config.yaml:2: homeserver.address: \"matrix.example.org\" is not an address like",
		"config.yaml:3: homeserver.domian: there is no such option here; did you mean domain? (see",
		": homeserver.domain: set your homeserver's name",
		"config.yaml:5: calls.longest: `forever` is not a duration like",
		"config.yaml:6: calls.max_legs: `many` is not a whole number",
		"config.yaml:8: sip.listen[0].transport: \"sctp\" is not one of udp, tcp",
		"config.yaml:8: sip.listen[0].address: \"5060\" is not an IP address with a port",
		"config.yaml:10: sip.trunks[0].name: each trunk needs a name",
		"config.yaml:10: sip.trunks[0].networks[0]: \"carrier.example.org\" is not a network",
		"config.yaml:10: sip.trunks[0].media_networks[0]: \"192.0.2.1\" is not a network",
		"config.yaml:10: sip.trunks[0].media_networks: are for symmetric_rtp",
		"config.yaml:10: sip.trunks[0].username: auth_username takes one, too",
		"config.yaml:10: sip.trunks[0].display_name: must have at most 80 characters",
		"config.yaml:10: sip.trunks[0].proxy: calls that go out over this trunk need one",
		"config.yaml:10: sip.trunks[0].invites_per_second: must not be negative",
		"config.yaml:10: sip.trunks[0].advertise: \"a b\" is not a host name or IP address",
		"config.yaml:10: sip.trunks[0].advertise_rtp: \"x\" is not an IP address that sound can be sent to",
		"config.yaml:11: sip.limits.messages_per_second: must not be negative",
		"config.yaml:12: rtp.port_min: 80 is not a port",
		"config.yaml:13: webrtc.port_min: 30000 to 0 is no range",
		"config.yaml:12: rtp.port_max: 70 is not a port",
		"config.yaml:15: routes[0].number: \"1 2\" is not a number",
		"config.yaml:15: routes[0].room: \"meeting\" is not a room alias",
		"config.yaml:15: routes[0].intent: \"m.room\" is not one of m.ring, m.prompt",
		"config.yaml:15: routes[0].ring_timeout: must be from 1s to 10m0s",
		"config.yaml:16: routes[1].pin: must be none, database, or the 64 characters",
		"config.yaml:16: routes[1].room: \"*\" is for routes with pin: database",
		"config.yaml:17: routes[2].room: \"*\" is for routes with pin: database",
		"config.yaml:17: routes[2].language: \"german\" is not a language",
		"config.yaml:18: routes[3].room: \"#meeting\" is not a room alias like",
		"config.yaml:17: routes[2].keys: keys \"*6\": \"explode\" is not one of",
		"config.yaml:21: dial_in.pin_digits: must be from 6 to 16",
		"config.yaml:22: dial_in.sounds[0]: there is no folder /nowhere",
		"config.yaml:23: permissions.example.org: \"veiw\" is not one of none, view, manage, call, admin",
		"config.yaml:24: admin.listen: must differ from appservice.listen",
		"config.yaml:19: log.level: \"loud\" is not one of debug, info, warn, error",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no problem says %q; got:\n%v", want, err)
		}
	}
	if len(problems.List) != 36 {
		t.Errorf("%d problems, want 36:\n%v", len(problems.List), err)
	}
}

func TestBrokenYAMLSaysWhere(t *testing.T) {
	_, err := Parse("config.yaml", []byte("homeserver:\n  address: [\n"))
	if err == nil || !strings.Contains(err.Error(), "config.yaml:") {
		t.Errorf("Parse = %v", err)
	}
}

func TestTheSampleRegistrationIsNotUsed(t *testing.T) {
	c, err := Parse("config.yaml", []byte(smallest))
	if err != nil {
		t.Fatal(err)
	}
	// The sample stands where a config in the root of the source tree would look for its registration.
	if _, err := LoadRegistration(c, "../../config.yaml"); err == nil || !strings.Contains(err.Error(), "sample") {
		t.Errorf("LoadRegistration of the sample = %v, want a refusal: everybody knows its tokens", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Example())
	f.Add([]byte(smallest))
	f.Add([]byte("sip: {trunks: [{}]}\nroutes: {}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := Parse("f", text); err != nil && err.Error() == "" {
			t.Error("an error without words")
		}
	})
}

func TestPathsBeginInTheFolderOfTheConfig(t *testing.T) {
	c, err := Parse("/etc/trunkline/config.yaml", []byte(smallest+`
sip:
  tls: {certificate: cert.pem, key: /keys/key.pem}
  trunks: [{name: a, networks: [192.0.2.0/24], client_ca: ../ca.pem, tls: {ca: ca.pem}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	stored := Trunk{ClientCA: "b.pem", TLS: TLS{CA: "/b.pem"}}
	c.LocateFiles(&stored)
	for got, want := range map[string]string{
		c.Database.Address: "sqlite:/etc/trunkline/trunkline.db", c.DialIn.PINKey: "/etc/trunkline/pin.key",
		c.SIP.TLS.Certificate: "/etc/trunkline/cert.pem", c.SIP.TLS.Key: "/keys/key.pem", c.SIP.TLS.CA: "",
		c.SIP.Trunks[0].ClientCA: "/etc/ca.pem", c.SIP.Trunks[0].TLS.CA: "/etc/trunkline/ca.pem",
		stored.ClientCA: "/etc/trunkline/b.pem", stored.TLS.CA: "/b.pem",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestFilesThatWereLeftWhereTheBridgeWasStartedAreNotMadeAnew(t *testing.T) {
	folder, started := t.TempDir(), t.TempDir()
	t.Chdir(started)
	path := filepath.Join(folder, "config.yaml")
	write := func(name string) {
		if err := os.WriteFile(name, []byte(smallest), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(path)
	if _, err := Load(path); err != nil {
		t.Errorf("with no files at all: %v", err)
	}
	for _, name := range []string{"trunkline.db", "pin.key"} {
		write(name)
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), filepath.Join(folder, name)) || !strings.Contains(err.Error(), filepath.Join(started, name)) {
			t.Errorf("with %s where the bridge was started: %v, want both paths", name, err)
		}
		write(filepath.Join(folder, name))
		if _, err := Load(path); err != nil {
			t.Errorf("with %s at both places: %v", name, err)
		}
	}
}

func TestRegistrationFitsTheConfigItCameFrom(t *testing.T) {
	c, err := Parse("config.yaml", []byte(smallest))
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	path := RegistrationPath(c, config)
	if err := WriteRegistration(path, NewRegistration(c)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("registration has mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := WriteRegistration(path, NewRegistration(c)); err == nil {
		t.Error("a second registration was written over the first")
	}
	r, err := LoadRegistration(c, config)
	if err != nil {
		t.Fatal(err)
	}
	if got := Differences(c, r); len(got) != 0 {
		t.Errorf("Differences = %q, want none", got)
	}
	c.AppService.URL, c.Homeserver.Domain = "http://elsewhere:1", "other.org"
	if got := Differences(c, r); len(got) != 3 {
		t.Errorf("Differences = %q, want url and two namespaces", got)
	}
}

func TestTransportIsFoundByANameOnly(t *testing.T) {
	for proxy, ok := range map[string]bool{
		"carrier.example.org": true, `"carrier.example.org:5060"`: false, "192.0.2.1": false, `"2001:db8::1"`: false, `"[2001:db8::1]:5060"`: false, `""`: false,
	} {
		text := fmt.Sprintf(`
homeserver: {address: "http://127.0.0.1:8008", domain: example.org}
sip: {trunks: [{name: carrier, networks: [192.0.2.0/24], proxy: %s, transport: auto}]}
`, proxy)
		_, err := Parse("config.yaml", []byte(text))
		if got := fmt.Sprint(err); ok != (err == nil) || !ok && !strings.Contains(got, "sip.trunks[0].transport: auto needs a proxy that is a name without a port") {
			t.Errorf("proxy %s: %v, want ok %v", proxy, err, ok)
		}
	}
}

func TestTrunksNeedASocketOfTheirTransport(t *testing.T) {
	for transport, want := range map[string]string{
		"tls": "calls to this trunk need a tls socket in sip.listen", "tcp": "calls to this trunk need a tcp socket in sip.listen",
		"udp": "", `""`: "", "auto": "", "auto, ping: 30s": "",
		"auto, srtp: optional": "srtp: needs transport tls", "auto, srtp: required": "srtp: needs transport tls",
	} {
		text := fmt.Sprintf(`
homeserver: {address: "http://127.0.0.1:8008", domain: example.org}
sip: {listen: [{transport: udp, address: "127.0.0.1:5060"}], trunks: [{name: carrier, proxy: carrier.example.org, transport: %s}]}
`, transport)
		_, err := Parse("config.yaml", []byte(text))
		if got := fmt.Sprint(err); (want == "") != (err == nil) || !strings.Contains(got, want) {
			t.Errorf("transport %s: %v, want %q", transport, err, want)
		}
	}
}

func TestDirectionsAndTransfersOfTrunks(t *testing.T) {
	for options, want := range map[string]string{
		"direction: both": "", "direction: in": "", "direction: in, proxy: 192.0.2.1, register: true, username: u": "", "direction: out, proxy: 192.0.2.1": "",
		"direction: out": "proxy: calls that go out over this trunk need one", "direction: up": "direction: \"up\" is not one of in, out, both",
		`direction: in, proxy: 192.0.2.1, dials: ["+49"]`: "direction: in lets no calls be placed over it",
		"transfers: none": "", "transfers: own_rooms": "", "transfers: trunk, proxy: 192.0.2.1": "", "transfers: all": "transfers: \"all\" is not one of",
		"transfers: trunk": "transfers: trunk takes one that calls can be placed over", "transfers: trunk, direction: in, proxy: 192.0.2.1": "transfers: trunk takes one",
	} {
		text := fmt.Sprintf(`
homeserver: {address: "http://127.0.0.1:8008", domain: example.org}
sip: {trunks: [{name: carrier, networks: [192.0.2.0/24], %s}]}
`, options)
		_, err := Parse("config.yaml", []byte(text))
		if got := fmt.Sprint(err); (want == "") != (err == nil) || !strings.Contains(got, want) {
			t.Errorf("%s: %v, want %q", options, err, want)
		}
	}
}

func TestWhatYAMLMakesOfMatrixNamesIsToldInWords(t *testing.T) {
	const head = "homeserver: {address: \"http://127.0.0.1:8008\", domain: example.org}\n"
	for text, want := range map[string]string{
		"permissions:\n  example.org: view\n  @anna:example.org: call": "config.yaml:4: put what begins with \"@\" into quotes",
		"permissions:\n  *: call":                                      "config.yaml:3: put what begins with \"*\" into quotes",
		"permissions:\n  !desk:example.org: call":                      "config.yaml:3: put what begins with \"!\" into quotes",
		"dialling:\n  alarm:\n    room: @anna:example.org":             "config.yaml:4: put what begins with \"@\" into quotes",
		"rtp:\n\tport_min: 5000":                                       "config.yaml:3: indent with spaces, not with tabs",
		"permissions: {anna: call, \"#a:example.org\": call, \"!desk\": view, \"b:example.org\": call}": "config.yaml:2: permissions: \"b:example.org\" is not",
		"rtp: {port_min: 30000}\nhomeserver: {domain: example.com}":                                     "config.yaml:3: homeserver stands in line 1 already: change that",
		"sip: {trunks: [{name: a, proxy: \"sip:pbx.example.org\"}]}":                                    "sip.trunks[0].proxy: write \"pbx.example.org\", without sip:",
		"sip: {trunks: [{name: a, proxy: \"pbx.example.org:http\"}]}":                                   "sip.trunks[0].proxy: \"http\" is not a port",
	} {
		_, err := Parse("config.yaml", []byte(head+text))
		got := fmt.Sprint(err)
		if !strings.Contains(got, want) {
			t.Errorf("%s\nis refused with %s\nwant %s", text, got, want)
		}
		if strings.Contains(want, "already") && strings.Contains(got, "\n") {
			t.Errorf("%s\nis refused with more than what stands there twice: %s", text, got)
		}
	}
	_, err := Parse("config.yaml", []byte("homeserver: {domain: example.org}\nsip: {trunks: [{name: a, proxy: \"[2001:db8::1]:5070\"}, {name: b, proxy: \"2001:db8::1\"}]}"))
	if err != nil {
		t.Errorf("addresses of IPv6: %v", err)
	}
}

func TestWhatStandsInAWrongPlaceIsTold(t *testing.T) {
	const head = "homeserver: {address: \"http://127.0.0.1:8008\", domain: example.org}\n"
	for text, want := range map[string]string{
		"permissions: [call]":                                    "config.yaml:2: permissions: a list is not names with what they may do, like",
		"permissions:\n  - call":                                 "config.yaml:3: permissions: a list is not names with what they may do, like",
		"routes: {number: \"1\"}":                                "config.yaml:2: routes: a group of options is not a list, each of whose entries begins with",
		"routes:\n  number: \"1\"\n  room: x":                    "config.yaml:3: routes: a group of options is not a list, each of whose entries begins with",
		"sip:\n  trunks:\n    - name: a\n      networks: {a: b}": "config.yaml:5: sip.trunks[0].networks: a group of options is not a list",
		"rtp: {port_min: [1]}":                                   "config.yaml:2: rtp.port_min: a list is not a whole number",
		"sip: [udp]":                                             "config.yaml:2: sip: a list is not a group of options",
		"trunks: [{name: a}]":                                    "config.yaml:2: trunks: there is no such option here; did you mean sip.trunks or dialling.limits.trunks?",
		"max_legs: 7":                                            "config.yaml:2: max_legs: there is no such option here; did you mean calls.max_legs?",
		"appservice: {listen: \"29400\"}":                        "appservice.listen: \"29400\" is not an IP address with a port like 127.0.0.1:29400",
		"admin: {listen: localhost}":                             "admin.listen: \"localhost\" is not an IP address with a port like 127.0.0.1:29401",
		"dialling: {limits: {users: {anna: {}}}}":                "\"anna\" is not one of the users that can be meant: write \"@anna:example.org\"",
		"dialling: {limits: {rooms: {desk: {}}}}":                "\"desk\" is not one of the rooms that can be meant: write \"!id:example.org\"",
		"calls: {keys: {\"*1\": sing}}":                          "\"sing\" is not one of mute, hand, people, leave",
	} {
		_, err := Parse("config.yaml", []byte(head+text))
		if got := fmt.Sprint(err); !strings.Contains(got, want) {
			t.Errorf("%s\nis refused with %s\nwant %s", text, got, want)
		}
	}
}

func TestWhatIsNoRegistrationIsTold(t *testing.T) {
	c, err := Parse("config.yaml", []byte(smallest))
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.yaml")
	path := RegistrationPath(c, config)
	if err := os.WriteFile(path, []byte("as_token-secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = LoadRegistration(c, config)
	if got := fmt.Sprint(err); !strings.HasPrefix(got, path+" is not a registration") || !strings.Contains(got, "bridge -g") || strings.Contains(got, "secret") {
		t.Errorf("LoadRegistration = %v", err)
	}
}

func TestUnknownOptionsAreGuessed(t *testing.T) {
	const head = "homeserver: {address: \"http://127.0.0.1:8008\", domain: example.org}\n"
	for text, want := range map[string]string{
		"sip: {trunks: [{name: a, network: [192.0.2.0/24]}]}":                        "sip.trunks[0].network: there is no such option here; did you mean networks?",
		"sip: {trunks: [{name: a, networks: [192.0.2.0/24], Porxy: x}]}":             "sip.trunks[0].Porxy: there is no such option here; did you mean proxy?",
		"routes: [{number: \"1\", room: \"#a:example.org\", ring_timout: 5s}]":       "routes[0].ring_timout: there is no such option here; did you mean ring_timeout?",
		"sip: {trunks: [{name: a, networks: [192.0.2.0/24], numbers: {contry: D}}]}": "sip.trunks[0].numbers.contry: there is no such option here; did you mean country?",
		"dialling:\n  limits:\n    user: {cals: 5}":                                  "dialling.limits.user.cals: there is no such option here; did you mean calls?",
		"loging:\n  level: info":                                                     "config.yaml:2: loging: there is no such option here",
		"colour: red":                                                                "config.yaml:2: colour: there is no such option here (see `bridge -e`",
		"permissions:\n  example.org: call\n  \"@a:example.org\": cal":               "config.yaml:4: permissions.@a:example.org: \"cal\" is not one of",
		"rtp: {port_min: low, port_max: high}":                                       "config.yaml:2: rtp.port_max: `high` is not a whole number",
		"rtp: {port_min: low, port_max: low}":                                        "config.yaml:2: `low` is not a whole number",
	} {
		_, err := Parse("config.yaml", []byte(head+text))
		if got := fmt.Sprint(err); !strings.Contains(got, want) {
			t.Errorf("%s\nis refused with %s\nwant %s", text, got, want)
		}
	}
	_, err := ParseTrunk("a", `{"networks": ["192.0.2.0/24"], "proxi": "192.0.2.1"}`, SIP{})
	if got := fmt.Sprint(err); !strings.Contains(got, "proxi: there is no such option here; did you mean proxy?") {
		t.Errorf("a stored trunk: %s", got)
	}
}
