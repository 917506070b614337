package sip_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"trunkline/sip"
)

// A registrar and proxy that asks everybody for a password, and stays on the way of calls (Record-Route).
const kamailioConfig = `
debug=2
log_stderror=yes
children=2
auto_aliases=no
alias="lab.test"
listen=udp:127.0.0.1:%d
mpath="/usr/lib/x86_64-linux-gnu/kamailio/modules/"
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "maxfwd.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
loadmodule "auth.so"
modparam("registrar", "min_expires", 90)
request_route {
	if (!mf_process_maxfwd_header("10")) { sl_send_reply("483", "Too Many Hops"); exit; }
	if (has_totag()) {
		if (loose_route()) { t_relay(); exit; }
		if (is_method("ACK")) { if (t_check_trans()) { t_relay(); } exit; }
		sl_send_reply("404", "Not here"); exit;
	}
	if (is_method("CANCEL")) { if (t_check_trans()) { t_relay(); } exit; }
	if (is_method("REGISTER")) {
		if (!pv_www_authenticate("lab.test", "secret", "0")) { www_challenge("lab.test", "1"); exit; }
		save("location"); exit;
	}
	if (is_method("OPTIONS")) { sl_send_reply("200", "OK"); exit; }
	if (!pv_proxy_authenticate("lab.test", "secret", "0")) { proxy_challenge("lab.test", "1"); exit; }
	consume_credentials();
	record_route();
	if (!lookup("location")) { sl_send_reply("404", "Not Found"); exit; }
	t_relay();
}
`

func startKamailio(t *testing.T) (port int) {
	t.Helper()
	path := tool(t, "kamailio")
	dir := t.TempDir()
	port = freePort(t)
	file := filepath.Join(dir, "k.cfg")
	if err := os.WriteFile(file, fmt.Appendf(nil, kamailioConfig, port), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-DD", "-E", "-m", "16", "-M", "4", "-f", file, "-P", filepath.Join(dir, "pid"), "-Y", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it has children
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("kamailio: %s", tail(out.String(), 2000))
		}
	})
	return port
}

// dialsWhoRegisters calls somebody until the registrar knows where he is, and he has answered.
func dialsWhoRegisters(b *bed, r sip.DialRequest) *served {
	b.Helper()
	for patience := time.After(30 * time.Second); ; {
		s := b.dial(r)
		for waits := true; waits; {
			select {
			case e := <-s.events:
				switch e := e.(type) {
				case sip.Answered:
					return s
				case sip.Refused:
					if e.Code != 404 {
						b.Fatalf("refused with %+v", e)
					}
					waits = false
				}
			case <-patience:
				b.Fatal("he is not to be had")
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestRegisteredWithKamailio(t *testing.T) {
	port := startKamailio(t)
	config := testConfig(sip.UDP)
	lab := &config.Trunks[0]
	lab.Proxy, lab.Domain = fmt.Sprint("127.0.0.1:", port), "lab.test"
	lab.Auth = sip.Credentials{Username: "bridge", Password: "secret"}
	lab.Register, lab.RegisterFor, lab.Ping = true, time.Minute, 10*time.Second // it wants 90 s at least: 423
	dir := baresipFolder(t, "", "")
	account := fmt.Sprintf("<sip:bob@lab.test>;regint=120;outbound=\"sip:127.0.0.1:%d\";auth_user=bob;auth_pass=secret;answermode=auto;audio_codecs=PCMA\n", port)
	if err := os.WriteFile(filepath.Join(dir, "accounts"), []byte(account), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBed(t, config, nil)
	await(t, "the registration", func() bool { return !b.stack.Trunks()[0].Registered.IsZero() })
	if left := time.Until(b.stack.Trunks()[0].Registered); left < 80*time.Second || left > 90*time.Second {
		t.Errorf("registered for %v, want 90 s", left)
	}
	stop := startBaresip(t, dir) // now, for Kamailio listens
	s := dialsWhoRegisters(b, sip.DialRequest{Trunk: "lab", Number: "bob", From: sip.Caller{Number: "bridge", DisplayName: "Room"}})
	d := s.Dialog()
	if len(d.RouteSet) != 1 || !strings.Contains(d.RouteSet[0], fmt.Sprint(port)) {
		t.Errorf("route set = %v", d.RouteSet)
	}
	s.echo(s.Media())
	s.hears(t, 75) // a second and a half
	_ = s.Hangup(sip.CauseNormal)
	s.wants(sip.Ended{})
	out := stop()
	if !strings.Contains(out, "terminated (duration") && !strings.Contains(out, "session closed") {
		t.Errorf("baresip did not hear of the end:\n%s", tail(out, 2000))
	}
	dumps, _ := filepath.Glob(filepath.Join(dir, "dump-*-dec.wav"))
	if len(dumps) != 1 {
		t.Fatalf("baresip left %v\n%s", dumps, tail(out, 3000))
	}
	if pcm := readWAV(t, dumps[0]); len(pcm) < 8000 || power(pcm[3000:7000], 440) < 0.7 {
		t.Errorf("baresip heard %d samples", len(pcm))
	}
	// And it calls us at our binding: here ourselves.
	s = b.dial(sip.DialRequest{Trunk: "lab", Number: "bridge", From: sip.Caller{Number: "bridge"}})
	s.wants(sip.Answered{})
	c := b.call()
	c.wants(sip.Acked{})
	_ = c.Hangup(sip.CauseNormal)
	s.wants(sip.Bye{})
	c.wants(sip.Ended{})
	s = b.dial(sip.DialRequest{Trunk: "lab", Number: "nobody"})
	if e := s.wants(sip.Refused{}).(sip.Refused); e.Code != 404 {
		t.Errorf("refused with %+v, want 404", e)
	}
}
