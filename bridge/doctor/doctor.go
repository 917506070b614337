// Package doctor checks, from the host where the bridge runs or will run, what usually goes wrong, and says for each
// fault what to do about it. It changes nothing.
package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/appservice"

	"trunkline/bridge/config"
	"trunkline/db"
)

const patience = 5 * time.Second

// finding is the result of one check.
type finding struct {
	ok     bool
	skip   bool // could not be tried; detail says why
	what   string
	detail string // what was seen
	remedy string // only when not ok
}

// patient is what a check looks at.
type patient struct {
	cfg          config.Config
	configPath   string
	registration *appservice.Registration
	running      bool // the bridge answers: its own sockets are taken rightly
	answers      bool // the homeserver does
	accepted     bool // our token is
	stored       bool // the database does
}

// Examine runs all checks, writes what it finds to out, and tells whether all is well.
func Examine(ctx context.Context, cfg config.Config, configPath string, out io.Writer) bool {
	p := &patient{cfg: cfg, configPath: configPath}
	p.running = Live(ctx, cfg) == nil
	well := true
	for _, check := range []func(context.Context) []finding{
		p.checkRegistration, p.checkHomeserver, p.checkToken, p.checkPing, p.checkDatabase, p.checkHTTP, p.checkSIP, p.checkCertificates, p.checkRTP,
		p.checkAdvertised, p.checkTrunks, p.checkNetworks, p.checkProxies, p.checkRooms, p.checkOutgoing,
	} {
		ctx, cancel := context.WithTimeout(ctx, patience)
		for _, f := range check(ctx) {
			mark := "ok  "
			switch {
			case f.skip:
				mark = "skip"
			case !f.ok:
				mark, well = "FAIL", false
			}
			fmt.Fprintf(out, "%s  %s: %s\n", mark, f.what, f.detail)
			if !f.ok && !f.skip {
				fmt.Fprintf(out, "      -> %s\n", f.remedy)
			}
		}
		cancel()
	}
	return well
}

func one(ok bool, what, detail, remedy string) []finding {
	return []finding{{ok: ok, what: what, detail: detail, remedy: remedy}}
}

func skipped(what, why string) []finding { return []finding{{skip: true, what: what, detail: why}} }

func (p *patient) checkRegistration(context.Context) []finding {
	const what = "registration"
	path := config.RegistrationPath(p.cfg, p.configPath)
	r, err := config.LoadRegistration(p.cfg, p.configPath)
	if err != nil {
		return one(false, what, err.Error(), "run `bridge -g`, name the file in the homeserver's app_service_config_files, restart the homeserver")
	}
	p.registration = r
	var list []finding
	if file, err := os.Stat(path); err == nil && file.Mode().Perm()&0o004 != 0 {
		list = one(false, what, path+" can be read by everybody on this machine, and who has its tokens is the bridge", "chmod o= "+path)
	}
	if differences := config.Differences(p.cfg, r); len(differences) > 0 {
		return append(list, one(false, what, strings.Join(differences, "; "),
			fmt.Sprintf("change the config back, or remove %s, run `bridge -g` and restart the homeserver", path))...)
	}
	return append(list, one(true, what, path+" fits the config", "")...)
}

func (p *patient) client() (*mautrix.Client, error) {
	token := ""
	if p.registration != nil {
		token = p.registration.AppToken
	}
	c, err := mautrix.NewClient(p.cfg.Homeserver.Address, "", token)
	if err != nil {
		return nil, err
	}
	c.Client = &http.Client{Timeout: patience}
	return c, nil
}

func (p *patient) checkHomeserver(ctx context.Context) []finding {
	const what = "homeserver reachable"
	c, err := p.client()
	if err == nil {
		c.AccessToken = "" // an unknown one would be refused: that is the next check's business
		var v *mautrix.RespVersions
		if v, err = c.Versions(ctx); err == nil {
			p.answers = true
			return one(true, what, fmt.Sprintf("%s answers, newest spec %s", p.cfg.Homeserver.Address, v.GetLatest()), "")
		}
	}
	return one(false, what, err.Error(), "check homeserver.address, and that the homeserver runs and can be reached from here")
}

func (p *patient) checkToken(ctx context.Context) []finding {
	const what = "token accepted"
	if p.registration == nil {
		return skipped(what, "there is no registration yet")
	}
	if !p.answers {
		return skipped(what, "the homeserver does not answer")
	}
	c, err := p.client()
	if err == nil {
		var who *mautrix.RespWhoami // without a user_id it says whose the token is, whatever we take our domain for
		if who, err = c.Whoami(ctx); err == nil {
			if server := who.UserID.Homeserver(); server != p.cfg.Homeserver.Domain {
				return one(false, what, fmt.Sprintf("homeserver.domain is %q, but the homeserver's users end in %q", p.cfg.Homeserver.Domain, server),
					"correct homeserver.domain; a registration that was made with the wrong one must be made anew, too (`bridge -g`)")
			}
			p.accepted = true
			return one(true, what, "we are "+string(who.UserID), "")
		}
	}
	return one(false, what, err.Error(), "the homeserver does not know this registration: name it in app_service_config_files and restart the homeserver")
}

func (p *patient) checkPing(ctx context.Context) []finding {
	const what = "homeserver reaches the bridge"
	if p.registration == nil {
		return skipped(what, "there is no registration yet")
	}
	if !p.accepted {
		return skipped(what, "the homeserver does not take our token")
	}
	if !p.running {
		stop, err := p.answerPing()
		if err != nil {
			return skipped(what, "the bridge does not run, and its port is taken; start it and ask again")
		}
		defer stop()
	}
	c, err := p.client()
	if err == nil {
		var answer *mautrix.RespAppservicePing
		if answer, err = c.AppservicePing(ctx, p.registration.ID, "doctor"); err == nil {
			return one(true, what, fmt.Sprintf("ping came back in %d ms", answer.DurationMS), "")
		}
	}
	return one(false, what, err.Error(), fmt.Sprintf("the homeserver must be able to open %s (appservice.url): check the address, firewalls, "+
		"and in containers that it is not localhost", p.cfg.AppService.URL))
}

func (p *patient) checkDatabase(ctx context.Context) []finding {
	const what = "database reachable"
	if err := db.Check(ctx, p.cfg.Database.Address); errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return one(false, what, err.Error(), "make the folder, and let the bridge's user write there; or put another path into database.address")
	} else if err != nil {
		return one(false, what, err.Error(), "check database.address, that the server runs, and that the user may create tables")
	}
	p.stored = true
	scheme, path, _ := strings.Cut(p.cfg.Database.Address, ":")
	if scheme == "sqlite" {
		scheme += " at " + path
	}
	return one(true, what, scheme+" answers, and its schema is none or one we know", "")
}

func (p *patient) checkCertificates(context.Context) []finding {
	var list []finding
	look := func(what string, files config.TLS) {
		if files.Certificate != "" {
			_, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
			list = append(list, readable(what+".certificate "+files.Certificate, err))
		}
		if files.CA != "" {
			_, err := os.ReadFile(files.CA)
			list = append(list, readable(what+".ca "+files.CA, err))
		}
	}
	look("sip.tls", p.cfg.SIP.TLS)
	for _, t := range p.cfg.SIP.Trunks {
		look("tls of trunk "+t.Name, t.TLS)
		if t.ClientCA != "" {
			_, err := os.ReadFile(t.ClientCA)
			list = append(list, readable("client_ca of trunk "+t.Name, err))
		}
	}
	return list
}

func readable(what string, err error) finding {
	if err != nil {
		return finding{what: what, detail: err.Error(), remedy: "name files in PEM that the bridge's user may read, and a key that belongs to its certificate"}
	}
	return finding{ok: true, what: what, detail: "readable"}
}

func (p *patient) checkHTTP(context.Context) []finding {
	list := []finding{p.socket("HTTP socket "+p.cfg.AppService.Listen, "tcp", p.cfg.AppService.Listen,
		"appservice.listen (in appservice.url then, too, and run `bridge -g` again)")}
	if p.cfg.Admin.Listen != "" {
		f := p.socket("admin socket "+p.cfg.Admin.Listen, "tcp", p.cfg.Admin.Listen, "admin.listen")
		if at, err := netip.ParseAddrPort(p.cfg.Admin.Listen); err == nil && f.ok && !at.Addr().IsLoopback() {
			f.detail += "; it asks for no password, so nobody else may reach it"
		}
		list = append(list, f)
	}
	return list
}

func (p *patient) checkSIP(context.Context) []finding {
	var list []finding
	for _, l := range p.cfg.SIP.Listen {
		list = append(list, p.socket("SIP socket "+l.Transport+" "+l.Address, l.Transport, l.Address, "sip.listen"))
	}
	return list
}

// socket tells whether a socket of ours is free, or is taken by the bridge itself. Option is what has its address.
func (p *patient) socket(what, transport, address, option string) finding {
	err := bindable(transport, address)
	switch {
	case err == nil:
		return finding{ok: true, what: what, detail: "free"}
	case p.running:
		return finding{ok: true, what: what, detail: "taken, by the running bridge as it should be"}
	}
	return finding{what: what, detail: err.Error(), remedy: cmp.Or(config.SocketRemedy(option, err), "choose another address in "+option)}
}

// bindable tries to open the socket of a transport (udp, tcp, tls) and closes it again.
func bindable(transport, address string) error {
	if transport == "udp" {
		conn, err := net.ListenPacket(transport, address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return l.Close()
}

// rtpSamples is how many ports of the range are tried; a few that are taken don't matter.
const rtpSamples = 50

func (p *patient) checkRTP(context.Context) []finding {
	const what = "RTP ports"
	r := p.cfg.RTP
	step := max((r.PortMax-r.PortMin)/rtpSamples, 1)
	tried, free := 0, 0
	var last error
	for port := r.PortMin; port <= r.PortMax; port += step {
		tried++
		if err := bindable("udp", net.JoinHostPort(r.Address, fmt.Sprint(port))); err != nil {
			last = err
			continue
		}
		free++
	}
	if free*2 < tried {
		return one(false, what, fmt.Sprintf("only %d of %d tried are free: %v", free, tried, last),
			"choose another range in rtp.port_min and rtp.port_max, or an address of this host in rtp.address")
	}
	calls := (r.PortMax - r.PortMin + 1) / 2
	return one(true, what, fmt.Sprintf("%d of %d tried are free, enough for %d calls", free, tried, calls), "")
}

func (p *patient) checkAdvertised(context.Context) []finding {
	var list []finding
	own := ownAddresses()
	signalling, sound := hostOf(p.cfg.SIP.Listen[0].Address), p.cfg.RTP.Address
	list = append(list,
		plausible("sip.advertise", config.HostOf(p.cfg.SIP.Advertise), signalling, own),
		plausible("rtp.advertise", p.cfg.RTP.Advertise, sound, own),
		plausible("webrtc.advertise", p.cfg.WebRTC.Advertise, "", own))
	for _, t := range p.cfg.SIP.Trunks { // those of the others hold where a trunk names none
		if t.Advertise != "" {
			list = append(list, plausible("advertise of trunk "+t.Name, config.HostOf(t.Advertise), signalling, own))
		}
		if t.AdvertiseRTP != "" {
			list = append(list, plausible("advertise_rtp of trunk "+t.Name, t.AdvertiseRTP, sound, own))
		}
	}
	return list
}

// plausible judges an advertised address: it should not be one that nobody else can reach.
func plausible(key, value, bound string, own []netip.Addr) finding {
	if value == "" {
		if a, err := netip.ParseAddr(bound); err == nil && a.IsUnspecified() {
			return finding{ok: true, what: key, detail: fmt.Sprintf("empty: phones are told %v, this machine's address on its default route", config.OwnAddress())}
		}
		if bound == "" {
			return finding{ok: true, what: key, detail: "empty: Matrix devices are offered this machine's own addresses"}
		}
		return finding{ok: true, what: key, detail: "empty: the address of the socket is told"}
	}
	addr, err := netip.ParseAddr(value)
	if err != nil {
		if _, err := net.LookupHost(value); err != nil {
			return finding{ok: false, what: key, detail: err.Error(), remedy: "the name must resolve; or put an IP address there"}
		}
		return finding{ok: true, what: key, detail: value + " resolves"}
	}
	boundTo, _ := netip.ParseAddr(bound)
	switch {
	case addr.IsUnspecified():
		return finding{ok: false, what: key, detail: value + " is no address that can be reached", remedy: "put this host's own or public address there"}
	case addr.IsLoopback() && !boundTo.IsLoopback():
		return finding{ok: false, what: key, detail: value + " can be reached from this host only", remedy: "put this host's own or public address there"}
	}
	for _, o := range own {
		if o == addr {
			return finding{ok: true, what: key, detail: value + " is this host's"}
		}
	}
	return finding{ok: true, what: key, detail: value + " is not this host's: right if a NAT forwards to it"}
}

func ownAddresses() []netip.Addr {
	var list []netip.Addr
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil // then nothing is called ours, which is only a softer sentence
	}
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			list = append(list, prefix.Addr())
		}
	}
	return list
}

func hostOf(hostPort string) string {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return ""
	}
	return host
}

func (p *patient) checkTrunks(ctx context.Context) []finding {
	const what = "trunks and routes"
	stored := 0
	if p.stored {
		stored = db.CountTrunks(ctx, p.cfg.Database.Address)
	}
	trunks := fmt.Sprintf("trunks: %d, and %d in the database", len(p.cfg.SIP.Trunks), stored)
	switch {
	case len(p.cfg.SIP.Trunks)+stored == 0:
		return one(false, what, "no trunk is configured: every phone is ignored", "name your carrier or PBX in sip.trunks")
	case len(p.cfg.Routes) == 0 && !p.cfg.DialIn.RoomNames:
		return one(true, what, trunks+"; no routes in the config, so all must be in the database", "")
	}
	return one(true, what, fmt.Sprintf("%s; routes: %d", trunks, len(p.cfg.Routes)), "")
}

// Live asks the running bridge whether it serves at all.
func Live(ctx context.Context, cfg config.Config) error { return ask(ctx, cfg, "live") }

// Healthy asks the running bridge whether it is ready for calls.
func Healthy(ctx context.Context, cfg config.Config) error { return ask(ctx, cfg, "ready") }

func ask(ctx context.Context, cfg config.Config, question string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	address, err := netip.ParseAddrPort(cfg.AppService.Listen)
	if err != nil {
		return err
	}
	if address.Addr().IsUnspecified() {
		address = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), address.Port())
	}
	target := url.URL{Scheme: "http", Host: address.String(), Path: "/_matrix/mau/" + question}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var answer struct{ Error string }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return fmt.Errorf("another program answers at %s: %w", target.Host, err)
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(answer.Error)
	}
	return nil
}
