package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"trunkline/bridge/menu"
	"trunkline/bridge/pin"
	"trunkline/bridge/sound"
)

// transportAuto leaves a trunk's transport to DNS.
const transportAuto = "auto"

// checker collects what is wrong with the values of a config.
type checker struct {
	lines map[string]int
	found []Problem
}

var (
	// localpart is the grammar of user ids (Matrix appendices, "User Identifiers").
	localpart   = regexp.MustCompile(`^[a-z0-9._=/+-]+$`)
	serverName  = regexp.MustCompile(`^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?$`)
	phoneNumber = regexp.MustCompile(`^[A-Za-z0-9+*#_.!~'()&=$,?/-]+$`)    // RFC 3261 §25.1: user, unescaped, no parameters
	separated   = regexp.MustCompile(`^[0-9+*#.()-]*[.()-][0-9+*#.()-]*$`) // a number with visual separators (RFC 3966 §5.1.1)
	contentURI  = regexp.MustCompile(`^mxc://[^/\s]+/[A-Za-z0-9_-]+$`)     // Matrix specification, "Content repository"
	roomName    = regexp.MustCompile(`^(#.+:.+|!.+)$`)                     // ids of rooms of version 12 have no server in them
	hostName    = regexp.MustCompile(`^[A-Za-z0-9.-]+$`)
	language    = regexp.MustCompile(`^[a-z]{2}([_-][A-Za-z]{2,4})?$`)
	pinSum      = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Codecs are those a phone may be offered.
var Codecs = []string{"PCMU", "PCMA", "G722", "opus"}

func (c *checker) wrong(key, format string, args ...any) {
	line := c.lines[key]
	for parent := key; line == 0 && parent != ""; line = c.lines[parent] { // a key that was left out: its group's line
		parent = parent[:max(strings.LastIndexAny(parent, ".["), 0)]
	}
	c.found = append(c.found, Problem{Line: line, Key: key, Text: fmt.Sprintf(format, args...)})
}

func (c *checker) config(cfg *Config) {
	c.homeserver(cfg)
	c.database(cfg.Database.Address)
	c.sip(&cfg.SIP)
	c.rtp(&cfg.RTP)
	c.webrtc(&cfg.WebRTC)
	c.calls(&cfg.Calls)
	c.routes(cfg.Routes, cfg.Calls.Options)
	c.dialIn(&cfg.DialIn)
	c.permissions(cfg)
	c.dialling(&cfg.Dialling, cfg.SIP.Trunks)
	if cfg.Admin.Listen != "" {
		c.addrPort("admin.listen", cfg.Admin.Listen, "127.0.0.1:29401")
		if cfg.Admin.Listen == cfg.AppService.Listen {
			c.wrong("admin.listen", "must differ from appservice.listen")
		}
	}
	c.oneOf("log.level", cfg.Log.Level, "debug", "info", "warn", "error")
	c.oneOf("log.format", cfg.Log.Format, "text", "json")
}

func (c *checker) homeserver(cfg *Config) {
	c.url("homeserver.address", cfg.Homeserver.Address)
	switch domain := cfg.Homeserver.Domain; {
	case domain == "":
		c.wrong("homeserver.domain", "set your homeserver's name: what stands behind the colon in user ids")
	case !serverName.MatchString(domain):
		c.wrong("homeserver.domain", "%q is not a server name like example.org", domain)
	}
	a := &cfg.AppService
	c.url("appservice.url", a.URL)
	c.addrPort("appservice.listen", a.Listen, "127.0.0.1:29400")
	if a.ID == "" || strings.Contains(a.ID, "|") {
		c.wrong("appservice.id", "must not be empty and must not contain |")
	}
	if a.Registration == "" {
		c.wrong("appservice.registration", "name the file that `bridge -g` writes")
	}
	c.localpart("appservice.bot", a.Bot)
	c.localpart("appservice.ghost_prefix", a.GhostPrefix)
	if a.GhostAvatar != "" && !contentURI.MatchString(a.GhostAvatar) {
		c.wrong("appservice.ghost_avatar", "%q is not an address of uploaded content like mxc://example.org/abc", a.GhostAvatar)
	}
	if strings.HasPrefix(a.Bot, a.GhostPrefix) {
		c.wrong("appservice.bot", "must not begin with ghost_prefix %q", a.GhostPrefix)
	}
}

func (c *checker) database(address string) {
	scheme, rest, _ := strings.Cut(address, ":")
	if rest == "" || !slices.Contains([]string{"sqlite", "postgres", "postgresql"}, scheme) {
		c.wrong("database.address", "must be sqlite:PATH or postgres://user:password@host/name")
	}
}

func (c *checker) sip(s *SIP) {
	if len(s.Listen) == 0 {
		c.wrong("sip.listen", "name at least one socket")
	}
	for i, l := range s.Listen {
		key := fmt.Sprintf("sip.listen[%d]", i)
		c.oneOf(key+".transport", l.Transport, "udp", "tcp", "tls")
		if l.Transport == "tls" && s.TLS.Certificate == "" {
			c.wrong("sip.tls.certificate", "a tls socket needs one")
		}
		c.addrPort(key+".address", l.Address, "0.0.0.0:5060")
		if slices.ContainsFunc(s.Listen[:i], func(other Listen) bool {
			return other.Address == l.Address && (other.Transport == "udp") == (l.Transport == "udp")
		}) {
			c.wrong(key+".address", "%s is in this list already; tcp and tls need ports of their own", l.Address)
		}
	}
	c.advertised("sip.advertise", s.Advertise, s.Listen)
	c.pair("sip.tls", s.TLS)
	c.notNegative("sip.limits.invites_per_second", s.Limits.InvitesPerSecond)
	c.notNegative("sip.limits.messages_per_second", s.Limits.MessagesPerSecond)
	c.notNegative("sip.limits.failures_per_minute", s.Limits.FailuresPerMinute)
	names := map[string]bool{}
	for i, t := range s.Trunks {
		key := fmt.Sprintf("sip.trunks[%d]", i)
		if t.Name == "" || names[t.Name] {
			c.wrong(key+".name", "each trunk needs a name of its own")
		}
		names[t.Name] = true
		c.trunk(key, t)
		c.trunkNumbers(key, t)
		c.socketFor(key, s, t)
	}
}

func (c *checker) socketFor(key string, s *SIP, t Trunk) {
	transport := cmp.Or(t.Transport, "udp")
	c.advertised(key+".advertise", t.Advertise, slices.DeleteFunc(slices.Clone(s.Listen), func(l Listen) bool {
		return transport != transportAuto && l.Transport != transport
	}))
	if t.Proxy != "" && transport != transportAuto && !slices.ContainsFunc(s.Listen, func(l Listen) bool { return l.Transport == transport }) {
		c.wrong(key+".transport", "calls to this trunk need a %s socket in sip.listen", transport)
	}
}

// discovered checks a trunk whose transport DNS says.
func (c *checker) discovered(key string, t Trunk) {
	_, _, noPort := net.SplitHostPort(t.Proxy)
	_, noAddress := netip.ParseAddr(strings.Trim(t.Proxy, "[]"))
	if t.Proxy == "" || noPort == nil || noAddress == nil {
		c.wrong(key+".transport", "auto needs a proxy that is a name without a port: DNS says the rest")
	}
	if t.SRTP == "optional" {
		c.wrong(key+".srtp", "needs transport tls: auto may lead to one over which everybody could read its keys")
	}
}

func (c *checker) pair(key string, t TLS) {
	if (t.Certificate == "") != (t.Key == "") {
		c.wrong(key, "certificate and key go together")
	}
}

func (c *checker) trunk(key string, t Trunk) {
	if len(t.Networks) == 0 && t.Proxy == "" {
		c.wrong(key+".networks", "name the networks its signalling comes from, for example [198.51.100.7/32], or a proxy to call")
	}
	c.oneOf(key+".transport", t.Transport, "", "udp", "tcp", "tls", transportAuto)
	c.oneOf(key+".srtp", t.SRTP, "", "off", "optional", "required")
	if t.SRTP == "required" && t.Proxy != "" && t.Transport != "tls" {
		c.wrong(key+".srtp", "needs transport tls, else everybody on the way can read its keys")
	}
	if t.Transport == transportAuto {
		c.discovered(key, t)
	}
	c.oneOf(key+".direction", t.Direction, "", DirectionIn, DirectionOut, DirectionBoth)
	if t.Direction == DirectionOut && t.Proxy == "" {
		c.wrong(key+".proxy", "calls that go out over this trunk need one")
	}
	if t.Direction == DirectionIn && len(t.Dials)+len(t.Extensions) > 0 {
		c.wrong(key+".direction", "in lets no calls be placed over it, but dials or extensions say which are")
	}
	c.oneOf(key+".caller_id", t.CallerID, "", "from", "pai", "ppi", "rpid")
	c.pair(key+".tls", t.TLS)
	if (t.Register || t.Ping > 0) && t.Proxy == "" {
		c.wrong(key+".proxy", "to register or to ping takes one")
	}
	if t.Register && t.Username == "" {
		c.wrong(key+".username", "to register takes one")
	}
	if t.Ping != 0 && t.Ping < time.Second || t.RegisterFor != 0 && t.RegisterFor < 30*time.Second {
		c.wrong(key+".ping", "must be at least 1s, register_for at least 30s")
	}
	c.proxy(key+".proxy", t.Proxy)
	c.host(key+".domain", t.Domain)
	if a, err := netip.ParseAddr(t.AdvertiseRTP); t.AdvertiseRTP != "" && (err != nil || a.IsUnspecified()) {
		c.wrong(key+".advertise_rtp", "%q is not an IP address that sound can be sent to", t.AdvertiseRTP)
	}
	c.notNegative(key+".max_calls", t.MaxCalls)
	c.notNegative(key+".invites_per_second", t.InvitesPerSecond)
	c.networks(key+".networks", t.Networks)
	c.networks(key+".media_networks", t.MediaNetworks)
	if len(t.MediaNetworks) > 0 && !t.SymmetricRTP {
		c.wrong(key+".media_networks", "are for symmetric_rtp: true; else sound comes from where the trunk says")
	}
	if t.AuthUsername != "" && t.Username == "" {
		c.wrong(key+".username", "auth_username takes one, too: the account that is logged in to")
	}
	for i, codec := range t.Codecs {
		c.oneOf(fmt.Sprintf("%s.codecs[%d]", key, i), codec, Codecs...)
	}
	c.oneOf(key+".dtmf", t.DTMF, "", "auto", "info", "inband")
	c.oneOf(key+".transfers", t.Transfers, "", "own_rooms", "trunk", "none")
	if t.Transfers == "trunk" && (t.Proxy == "" || t.Direction == DirectionIn) {
		c.wrong(key+".transfers", "trunk takes one that calls can be placed over: with a proxy, and not only for calls to us")
	}
}

func (c *checker) proxy(key, value string) {
	if scheme, rest, isURI := strings.Cut(value, ":"); isURI && (scheme == "sip" || scheme == "sips") {
		c.wrong(key, "write %q, without %s:", strings.TrimLeft(rest, "/"), scheme)
		return
	}
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		host, port = value, "5060"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		c.wrong(key, "%q is not a port", port)
	}
	c.host(key, host)
}

func (c *checker) networks(key string, list []string) {
	for i, network := range list {
		if _, err := netip.ParsePrefix(network); err != nil {
			c.wrong(fmt.Sprintf("%s[%d]", key, i), "%q is not a network like 198.51.100.0/24; a single address is written with /32 (IPv6: /128)", network)
		}
	}
}

func (c *checker) rtp(r *RTP) {
	if _, err := netip.ParseAddr(r.Address); err != nil {
		c.wrong("rtp.address", "%q is not an IP address", r.Address)
	}
	if _, err := netip.ParseAddr(r.Advertise); r.Advertise != "" && err != nil {
		c.wrong("rtp.advertise", "%q is not an IP address", r.Advertise)
	}
	if r.PortMin < 1024 || r.PortMin > 65534 {
		c.wrong("rtp.port_min", "%d is not a port from 1024 to 65534", r.PortMin)
	}
	if r.PortMax < r.PortMin+3 || r.PortMax > 65535 {
		c.wrong("rtp.port_max", "%d is not a port at least 3 above port_min and below 65536", r.PortMax)
	}
}

func (c *checker) webrtc(w *WebRTC) {
	if w.Port < 0 || w.Port > 65535 {
		c.wrong("webrtc.port", "%d is not a port", w.Port)
	}
	if (w.PortMin != 0 || w.PortMax != 0) && (w.PortMin < 1024 || w.PortMax < w.PortMin || w.PortMax > 65535) {
		c.wrong("webrtc.port_min", "%d to %d is no range of ports from 1024 to 65535; 0 and 0 take any", w.PortMin, w.PortMax)
	}
	for i, address := range w.Addresses {
		if _, err := netip.ParseAddr(address); err != nil {
			c.wrong(fmt.Sprintf("webrtc.addresses[%d]", i), "%q is not an IP address", address)
		}
	}
	if _, err := netip.ParseAddr(w.Advertise); w.Advertise != "" && err != nil {
		c.wrong("webrtc.advertise", "%q is not an IP address", w.Advertise)
	}
	for i, server := range w.Servers {
		for j, uri := range server.URIs {
			scheme, _, _ := strings.Cut(uri, ":")
			if !slices.Contains([]string{"stun", "stuns", "turn", "turns"}, scheme) {
				c.wrong(fmt.Sprintf("webrtc.servers[%d].uris[%d]", i, j), "%q is not an address like turn:turn.example.org", uri)
			}
		}
	}
}

func (c *checker) calls(k *Calls) {
	if k.MaxLegs < 1 {
		c.wrong("calls.max_legs", "must be at least 1")
	}
	c.oneOf("calls.on_stop", k.OnStop, StopSuspends, StopEnds)
	for _, d := range []struct {
		key   string
		value time.Duration
		least time.Duration
	}{
		{"setup_timeout", k.SetupTimeout, time.Second},
		{"alone_timeout", k.AloneTimeout, time.Second},
		{"empty_timeout", k.EmptyTimeout, 0},
		{"longest", k.Longest, time.Second},
		{"entry_life", k.EntryLife, 10 * time.Second},
		{"keep_history", k.KeepHistory, 0},
	} {
		if d.value < d.least {
			c.wrong("calls."+d.key, "must be at least %v", d.least)
		}
	}
	c.options("calls", &k.Options)
}

func (c *checker) dialIn(d *DialIn) {
	if d.PINKey == "" {
		c.wrong("dial_in.pin_key", "name the file of the key; it is made when it is first needed")
	}
	if d.PINDigits < pin.Least || d.PINDigits > pin.Longest {
		c.wrong("dial_in.pin_digits", "must be from %d to %d", pin.Least, pin.Longest)
	}
	for i, folder := range d.Sounds {
		if err := (sound.Options{Folders: []string{folder}}).Check(); err != nil {
			c.wrong(fmt.Sprintf("dial_in.sounds[%d]", i), "%v", err)
		}
	}
}

// The longest that options may ask for. Callers of most trunks are cut off after three minutes of ringing.
const (
	longestRing    = 10 * time.Minute
	longestRefusal = 30 * time.Second
)

func (c *checker) options(key string, o *Options) {
	if o.Intent != "" {
		c.oneOf(key+".intent", o.Intent, IntentRing, IntentPrompt)
	}
	if d := o.RingTimeout; d != nil && (*d < time.Second || *d > longestRing) {
		c.wrong(key+".ring_timeout", "must be from 1s to %v", longestRing)
	}
	if d := o.RefusalTone; d != nil && (*d < 0 || *d > longestRefusal) {
		c.wrong(key+".refusal_tone", "must be from 0s to %v", longestRefusal)
	}
	if o.ToneZone != "" {
		c.oneOf(key+".tone_zone", o.ToneZone, ZoneEurope, ZoneNorthAmerica)
	}
	if o.PIN != "" && o.PIN != PINNone && o.PIN != PINDatabase && !pinSum.MatchString(o.PIN) {
		c.wrong(key+".pin", "must be %s, %s, or the 64 characters that `bridge -pin` prints; never the PIN itself", PINNone, PINDatabase)
	}
	if o.Language != "" && !language.MatchString(o.Language) {
		c.wrong(key+".language", "%q is not a language like en or es_MX", o.Language)
	}
	if o.Keys != nil {
		if err := menu.CheckKeys(*o.Keys); err != nil {
			c.wrong(key+".keys", "%v", err)
		}
	}
}

func (c *checker) routes(routes []Route, below Options) {
	seen := map[string]bool{}
	for i, r := range routes {
		key := fmt.Sprintf("routes[%d]", i)
		switch {
		case !phoneNumber.MatchString(r.Number):
			c.wrong(key+".number", "%q is not a number as it stands before the @ of a SIP address; quote it: \"+49…\"", r.Number)
		case separated.MatchString(r.Number):
			c.wrong(key+".number", "%q has separators; write digits, + * # only, as \"+49301234567\"", r.Number)
		case seen[r.Number]:
			c.wrong(key+".number", "%q leads to a room already", r.Number)
		}
		seen[r.Number] = true
		switch asks := r.Options.Over(below).PIN; {
		case r.Room == AnyRoom && asks != PINDatabase:
			c.wrong(key+".room", "%q is for routes with pin: %s, where the PIN picks the room", r.Room, PINDatabase)
		case r.Room != AnyRoom && !roomName.MatchString(r.Room):
			c.wrong(key+".room", "%q is not a room alias like \"#meeting:example.org\" (quoted, with the server) or a room id (!…)", r.Room)
		}
		c.options(key, &r.Options)
	}
}

func (c *checker) localpart(key, value string) {
	if !localpart.MatchString(value) {
		c.wrong(key, "%q may contain only a-z 0-9 . _ = - / +", value)
	}
}

func (c *checker) url(key, value string) {
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		c.wrong(key, "%q is not an address like http://127.0.0.1:8008", value)
	}
}

func (c *checker) addrPort(key, value, like string) {
	if a, err := netip.ParseAddrPort(value); err != nil || a.Port() == 0 {
		c.wrong(key, "%q is not an IP address with a port like %s", value, like)
	}
}

func (c *checker) host(key, value string) {
	if _, err := netip.ParseAddr(value); value != "" && err != nil && !hostName.MatchString(value) {
		c.wrong(key, "%q is not a host name or IP address", value)
	}
}

// advertised checks a host that signalling is to be sent to. Its port, if it has one, stands for that of the sockets.
func (c *checker) advertised(key, value string, sockets []Listen) {
	host := HostOf(value)
	if value != "" && host == "" {
		c.wrong(key, "%q has no host", value)
		return
	}
	c.host(key, host)
	if host == value {
		return
	}
	_, port, _ := net.SplitHostPort(value)
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		c.wrong(key, "%q is not a port", port)
	}
	ports := map[string]bool{}
	for _, l := range sockets {
		if _, own, err := net.SplitHostPort(l.Address); err == nil {
			ports[own] = true
		}
	}
	if len(ports) > 1 {
		c.wrong(key, "one port cannot stand for the sockets of several; name it at each trunk, whose transport has one")
	}
}

// SocketRemedy says what an admin can do about a socket that could not be opened; option has its address. "" = nothing is known.
func SocketRemedy(option string, err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "another program has the port (often a PBX, or a bridge that runs already): stop it, or choose another in " + option
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "this machine has no such address: put one of its own into " + option + ", or 0.0.0.0 for all"
	case errors.Is(err, syscall.EACCES):
		return "the bridge's user may not have that port: choose one above 1023 in " + option
	}
	return ""
}

func (c *checker) notNegative(key string, n int) {
	if n < 0 {
		c.wrong(key, "must not be negative")
	}
}

func (c *checker) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		allowed = slices.DeleteFunc(slices.Clone(allowed), func(name string) bool { return name == "" }) // left out
		c.wrong(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}
