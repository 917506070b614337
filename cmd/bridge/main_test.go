package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// command runs the program with args in a fresh folder and returns its exit code and what it printed.
func command(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e strings.Builder
	code = run(t.Context(), args, &o, &e)
	return code, o.String(), e.String()
}

func inFolder(t *testing.T, config string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFirstStepsOfAnAdmin(t *testing.T) {
	code, example, _ := command(t, "-e")
	if code != 0 || !strings.Contains(example, "homeserver:") {
		t.Fatalf("bridge -e = %d, %q", code, example)
	}
	path := inFolder(t, example)
	code, _, errOut := command(t, "-c", path)
	if code != exitUsage || !strings.Contains(errOut, "homeserver.domain: set your homeserver's name") {
		t.Errorf("the untouched example = %d, %q; want 2 and what to set", code, errOut)
	}
	path = inFolder(t, strings.Replace(example, `domain: ""`, "domain: example.org", 1))
	code, _, errOut = command(t, "-c", path)
	if code != exitUsage || !strings.Contains(errOut, "bridge -g") {
		t.Errorf("without registration = %d, %q; want 2 and how to make one", code, errOut)
	}
	code, out, errOut := command(t, "-c", path, "-g")
	if code != 0 || !strings.Contains(out, "registration.yaml") {
		t.Errorf("bridge -g = %d, %q, %q", code, out, errOut)
	}
	if code, _, errOut = command(t, "-c", path, "-g"); code != exitUsage || !strings.Contains(errOut, "exists already") {
		t.Errorf("a second bridge -g = %d, %q; want 2, for the tokens are in use", code, errOut)
	}
}

func TestWrongConfigExitsWithTwoAndAllProblems(t *testing.T) {
	path := inFolder(t, "homeserver: {domian: x}\nrtp: {port_min: 7}\n")
	code, _, errOut := command(t, "-c", path)
	for _, want := range []string{":1: homeserver.domian: there is no such option", ":2: rtp.port_min: 7 is not a port", "homeserver.domain: set"} {
		if code != exitUsage || !strings.Contains(errOut, want) {
			t.Errorf("exit %d, no word of %q:\n%s", code, want, errOut)
		}
	}
}

func TestWrongFlagsExitWithTwo(t *testing.T) {
	for _, args := range [][]string{{"-nonsense"}, {"stray"}, {"-c", "/no/such/file"}} {
		if code, _, errOut := command(t, args...); code != exitUsage || errOut == "" {
			t.Errorf("bridge %v = %d, %q; want 2 and a word why", args, code, errOut)
		}
	}
	if code, out, _ := command(t, "-v"); code != 0 || !strings.Contains(out, version) {
		t.Errorf("bridge -v = %d, %q", code, out)
	}
}

func TestDoctorNamesTheRemedy(t *testing.T) {
	path := inFolder(t, `
homeserver: {domain: example.org, address: "http://127.0.0.1:1"}
appservice: {listen: "127.0.0.1:1"}
database: {address: "postgres://nobody@127.0.0.1:1/none"}
sip: {listen: [{transport: udp, address: "192.0.2.1:5060"}], advertise: "127.0.0.1"}
rtp: {address: 192.0.2.1}
`)
	code, out, _ := command(t, "-c", path, "-doctor")
	for _, want := range []string{
		"FAIL  registration:", "-> run `bridge -g`",
		"FAIL  homeserver reachable:", "check homeserver.address",
		"skip  token accepted:", "skip  homeserver reaches the bridge:",
		"FAIL  database reachable:", "FAIL  SIP socket udp 192.0.2.1:5060:", "FAIL  RTP ports:",
		"FAIL  sip.advertise: 127.0.0.1 can be reached from this host only", "no trunk is configured",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the doctor does not say %q", want)
		}
	}
	if code != exitFailed {
		t.Errorf("exit %d, want %d", code, exitFailed)
	}
	if t.Failed() {
		t.Log(out)
	}
}

func TestDoctorFindsTakenPortsAndFoldersThatAreNotThere(t *testing.T) {
	var taken [2]string
	for i := range taken {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		taken[i] = l.Addr().String()
	}
	path := inFolder(t, fmt.Sprintf(`
homeserver: {domain: example.org, address: "http://127.0.0.1:1"}
appservice: {listen: %q}
admin: {listen: %q}
sip:
  tls: {certificate: /no/such/cert.pem, key: /no/such/key.pem}
  trunks: [{name: pbx, networks: [10.0.0.0/8], advertise: 203.0.113.5, advertise_rtp: 127.0.0.2}]
database: {address: "sqlite:/no/such/folder/trunkline.db"}
`, taken[0], taken[1]))
	_, out, _ := command(t, "-c", path, "-doctor")
	for _, want := range []string{
		"FAIL  HTTP socket " + taken[0], "FAIL  admin socket " + taken[1],
		"FAIL  sip.tls.certificate /no/such/cert.pem: open /no/such/cert.pem: no such file",
		"ok    advertise of trunk pbx: 203.0.113.5 is not this host's", "FAIL  advertise_rtp of trunk pbx: 127.0.0.2 can be reached from this host only",
		"FAIL  database reachable: make a file in /no/such/folder: no such file or directory",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the doctor does not say %q; it says\n%s", want, out)
		}
	}
}
