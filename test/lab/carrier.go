package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"trunkline/internal/testbed/certificate"
	"trunkline/internal/testbed/ports"
)

// Carrier is a Kamailio, as carriers have one: the bridge registers with it over TLS and has its calls encrypted (SDES), and
// one phone is behind it.
type Carrier struct {
	tls, udp int // ports
	files    certificate.Files
	process  *process
	undo     func(context.Context) error // takes the trunk out of the bridge's config
}

// CarrierTrunk is the bridge's name of its trunk to the carrier. It takes and places calls over TLS with encrypted sound only.
const CarrierTrunk = "carrier"

// What the bridge is to a carrier.
const (
	carrierDomain  = "carrier.test"
	carrierAccount = "bridge"
	carrierSecret  = "secret"
)

// CarrierNumbers is how numbers begin that are called over the carrier.
const CarrierNumbers = "6"

// CarrierPickUp is the phone behind the carrier which takes over the latest call from there when it dials (Replaces). So do the
// extensions of PBXs that pick a call up.
const CarrierPickUp = CarrierNumbers + "03"

// It stays on the way of all calls (Record-Route). Who asks for a transfer there stays in the call, as a PBX does: it wants no news
// of it (RFC 4488). Calls of the phone are the account's, as a carrier's are: the
// Request-URI is its binding, and who was called stands in To.
const carrierConfig = `
debug=1
log_stderror=yes
children=2
tcp_children=2
auto_aliases=no
enable_tls=yes
alias="%[1]s"
listen=udp:127.0.0.1:%[2]d
listen=tls:127.0.0.1:%[3]d
mpath="%[4]s/"
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
loadmodule "tls.so"
modparam("pv", "shvset", "call=s:")
modparam("tls", "certificate", "%[5]s")
modparam("tls", "private_key", "%[6]s")
modparam("tls", "tls_method", "TLSv1.2+")
request_route {
	if (!mf_process_maxfwd_header("10")) { sl_send_reply("483", "Too Many Hops"); exit; }
	if (is_method("CANCEL")) { if (t_check_trans()) { t_relay(); } exit; }
	if (has_totag()) {
		if (loose_route()) {
			if (is_method("REFER")) { append_hf("Refer-Sub: false\r\n"); }
			t_relay(); exit;
		}
		if (is_method("ACK")) { if (t_check_trans()) { t_relay(); } exit; }
		sl_send_reply("404", "Not here"); exit;
	}
	if (is_method("REGISTER")) {
		if (!pv_www_authenticate("%[1]s", "%[8]s", "0")) { www_challenge("%[1]s", "1"); exit; }
		save("location"); exit;
	}
	if (is_method("OPTIONS")) { sl_send_reply("200", "OK"); exit; }
	if (proto == TLS) {
		if (!pv_proxy_authenticate("%[1]s", "%[8]s", "0")) { proxy_challenge("%[1]s", "1"); exit; }
		consume_credentials();
		$ru = "%[9]s";
	} else {
		$rU = "%[7]s";
		if (!lookup("location")) { sl_send_reply("480", "Not registered"); exit; }
		if ($fU == "%[10]s") {
			append_hf("Replaces: $shv(call);to-tag=$shv(theirs);from-tag=$shv(ours)\r\nRequire: replaces\r\n");
		} else {
			t_on_reply("taken");
		}
	}
	record_route();
	t_relay();
}
onreply_route[taken] {
	if (status == "200") { $shv(call) = $ci; $shv(ours) = $ft; $shv(theirs) = $tt; }
}
`

// NewCarrier starts one with a phone behind it, and restarts the bridge with a trunk to it.
func (l *Lab) NewCarrier(ctx context.Context, phone *Phone) (*Carrier, error) {
	found, err := ports.Free(3)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(l.dir, "carrier-")
	if err != nil {
		return nil, fmt.Errorf("make a carrier: %w", err)
	}
	c := &Carrier{udp: found[0], tls: found[1]}
	if c.files, err = certificate.Make(dir); err != nil {
		return nil, err
	}
	modules, err := filepath.Glob("/usr/lib/*/kamailio/modules/tls.so")
	if err != nil || len(modules) == 0 {
		return nil, errors.New("make a carrier: Kamailio with TLS is not installed (apt-get install kamailio kamailio-tls-modules)")
	}
	config := fmt.Sprintf(carrierConfig, carrierDomain, c.udp, c.tls, filepath.Dir(modules[0]), c.files.Certificate, c.files.Key,
		carrierAccount, carrierSecret, phone.Address(), CarrierPickUp)
	file := filepath.Join(dir, "kamailio.cfg")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	program, err := exec.LookPath("kamailio")
	if err != nil {
		program = "/usr/sbin/kamailio" // servers: not on everybody's path
	}
	cmd := exec.Command(program, "-DD", "-E", "-m", "32", "-M", "8", "-f", file, "-P", filepath.Join(dir, "pid"), "-Y", dir)
	if c.process, err = startProcess("carrier", filepath.Join(dir, "log"), cmd); err != nil {
		return nil, err
	}
	l.own("carrier", func() error { c.process.kill(); return nil })
	if err := c.awaitListening(ctx); err != nil {
		return nil, err
	}
	return c, l.bridge.register(ctx, c, found[2])
}

func (c *Carrier) awaitListening(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("it does not listen after 10 s"))
	defer cancel()
	for {
		if conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", c.tls)); err == nil {
			return conn.Close()
		}
		select {
		case <-c.process.exited:
			return fmt.Errorf("the carrier ended at start: %w; its output ends with:\n%s", c.process.err, c.process.tail(3000))
		case <-ctx.Done():
			return fmt.Errorf("start the carrier: %w; its output ends with:\n%s", context.Cause(ctx), c.process.tail(3000))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Reach returns what a phone dials to call a number of the bridge through the carrier.
func (c *Carrier) Reach(number string) string {
	return fmt.Sprintf("sip:%s@127.0.0.1:%d", number, c.udp)
}

// LogTail returns the last n bytes of its output.
func (c *Carrier) LogTail(n int) string { return c.process.tail(n) }

// Close restarts the bridge without the trunk, and ends the carrier.
func (c *Carrier) Close(ctx context.Context) error {
	defer c.process.kill()
	return c.undo(ctx)
}

// register restarts the bridge with a trunk that it registers with over TLS, listening there, too, and waits until it has.
func (b *Bridge) register(ctx context.Context, c *Carrier, listen int) error {
	own := map[string]any{"certificate": c.files.Certificate, "key": c.files.Key, "ca": c.files.Certificate}
	var err error
	c.undo, err = b.restartAfter(ctx, func(config map[string]any) {
		sip := config["sip"].(map[string]any)
		sip["tls"] = own
		sip["listen"] = append(sip["listen"].([]any), map[string]any{"transport": "tls", "address": fmt.Sprint("127.0.0.1:", listen)})
		sip["trunks"] = append(sip["trunks"].([]any), map[string]any{
			"name": CarrierTrunk, "networks": []string{"127.0.0.0/8"}, "proxy": fmt.Sprint("127.0.0.1:", c.tls), "transport": "tls", "srtp": "required",
			"domain": carrierDomain, "username": carrierAccount, "password": carrierSecret, "register": true,
			"extensions": []string{CarrierNumbers + "xx"},
		})
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("not registered after 10 s"))
	defer cancel()
	for {
		yes, err := b.Registered(ctx)
		if yes || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("register with the carrier: %w; its output ends with:\n%s", context.Cause(ctx), c.LogTail(3000))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Registered reports whether the bridge is registered with the carrier.
func (b *Bridge) Registered(ctx context.Context) (bool, error) {
	text, err := b.ask(ctx, "/metrics")
	return strings.Contains(text, fmt.Sprintf("trunkline_sip_trunk_registered{trunk=%q} 1\n", CarrierTrunk)), err
}
