package sip

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Transport names how SIP messages travel.
type Transport string

// The transports the stack can listen on.
const (
	UDP Transport = "udp"
	TCP Transport = "tcp"
	TLS Transport = "tls"
)

// Auto is a [Trunk.Transport] that is left to the proxy's domain: over those that we listen on, as its NAPTR records say, or else its
// SRV records (RFC 3263 §4.1). Where it has neither, or the proxy is an address or has a port, it is UDP, or without a socket for that
// TCP, or else TLS.
const Auto Transport = "auto"

func (t Transport) known() bool { return t == UDP || t == TCP || t == TLS }

// Listen is one socket on which the stack hears SIP.
type Listen struct {
	Transport Transport
	Addr      netip.AddrPort
}

// Config is everything the stack must know before it opens a socket.
type Config struct {
	Listen    []Listen
	TLS       *tls.Config // of our TLS sockets: at least a certificate
	Advertise string      // host, or host:port, put into Contact and Via; "" = the address of the listener
	RTP       RTPConfig
	Trunks    []Trunk
	UserAgent string // "" = "Trunkline"
	Limits    Limits
	Sockets   Sockets // nil = they end with the stack

	// SaveFirst is how long an answer (2xx) to a phone that changes a call that is up waits for the change to be saved, see
	// [DialogChanged]. 0 = it does not.
	SaveFirst time.Duration

	resolver resolver // nil = the system's
}

// Sockets binds the stack's sockets, and may keep them open beyond the process: then what comes meanwhile waits in them for the
// next one. Its methods may be called from any goroutine.
type Sockets interface {
	// ListenUDP and ListenTCP return the socket bound there that was kept, or bind a new one.
	ListenUDP(netip.AddrPort) (*net.UDPConn, error)
	ListenTCP(netip.AddrPort) (*net.TCPListener, error)
	// Release says that the socket bound there is closed for good, and not for the next process.
	Release(net.Addr)
}

// ownSockets end with the process.
type ownSockets struct{}

func (ownSockets) ListenUDP(a netip.AddrPort) (*net.UDPConn, error) {
	return net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
}

func (ownSockets) ListenTCP(a netip.AddrPort) (*net.TCPListener, error) {
	return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
}

func (ownSockets) Release(net.Addr) {}

// RTPConfig says where media sockets are opened.
type RTPConfig struct {
	Addr      netip.Addr // local address of the media sockets
	PortMin   uint16     // 0 = 20000
	PortMax   uint16     // 0 = 29999, inclusive
	Advertise netip.Addr // put into SDP; zero = Addr
}

// Trunk is a configured SIP neighbour, recognised by the address its messages come from.
type Trunk struct {
	Name     string
	Networks []netip.Prefix
	Codecs   []string // in order of preference; empty = PCMU, PCMA

	// Symmetric allows the phone's media to come from, and to be sent to, another address than its SDP names
	// (a phone behind NAT): the signalling address, Networks or MediaNetworks.
	Symmetric     bool
	MediaNetworks []netip.Prefix

	// TrustIdentity takes the caller's number from P-Asserted-Identity (RFC 3325) or Remote-Party-ID, in the INVITE and later.
	TrustIdentity bool

	// SRTP says whether its sound is encrypted; it needs TLS.
	SRTP SRTPMode

	// CallerID says how it is told who calls.
	CallerID CallerID

	// Transfers says where its phones may ask to be (REFER).
	Transfers Transfers

	// DTMF says how keys are sent to the phone; "" = RFC 4733, or INFO if the phone has no telephone-event.
	DTMF DTMF

	// Proxy is where our calls go: an address or a name, with or without a port; "" = this trunk only calls us. A name
	// without a port is looked up as SRV first. Transport is how; "" = UDP, [Auto] = as DNS says.
	Proxy     string
	Transport Transport
	// Domain is the host part of the addresses in our calls; "" = the proxy's in what we ask for, our own in From.
	Domain string
	// TLS is how connections to it are secured: its CA, our certificate. nil = the system's CAs, no certificate. The name
	// its certificate must have is the proxy's, unless ServerName says another.
	TLS *tls.Config
	// ClientCAs, when set, make it show a certificate of theirs when it connects to us.
	ClientCAs *x509.CertPool

	// Register makes us known to the proxy under Auth's name, so that it calls us there; for RegisterFor at a time, 0 = 10
	// minutes. Ping is how often it is asked whether it lives (OPTIONS), 0 = never; calls are not sent to one that does not.
	Register    bool
	RegisterFor time.Duration
	Ping        time.Duration

	// Advertise is the host under which its signalling reaches us, in Contact and Via; "" = [Config].Advertise. A port is that of the
	// socket for its transport. AdvertiseRTP is the address in our descriptions; zero = that of [RTPConfig].
	Advertise    string
	AdvertiseRTP netip.Addr

	Auth Credentials // what we answer to a 401 or 407
	// Has says whether a number is one of its own. It is asked when calls of several trunks come from one address and neither
	// account is called by name; nil = it has none. It must not block.
	Has func(Number) bool

	// OutOnly refuses its calls with 403. InOnly lets no calls be placed over it, although it has a proxy to register with, say.
	OutOnly, InOnly bool

	MaxCalls         int // both ways; 0 = only Limits.Calls holds
	InvitesPerSecond int // new calls of its; 0 = only Limits.InvitesPerSecond holds
}

// Transfers is where phones of a trunk may ask to be.
type Transfers string

// What [Trunk.Transfers] may be.
const (
	TransfersOwn   Transfers = ""      // at numbers and in calls of ours
	TransfersTrunk Transfers = "trunk" // and where the trunk leads to: somebody there is called in the phone's place
	TransfersNone  Transfers = "none"
)

// DTMF is a way to send keys.
type DTMF string

// The ways of [Trunk.DTMF].
const (
	DTMFAuto DTMF = ""
	DTMFInfo DTMF = "info" // always INFO, application/dtmf-relay
)

// Limits keep a flood from becoming our problem. The zero value means the defaults.
type Limits struct {
	Calls              int           // concurrent calls; 0 = 1000
	InvitesPerSecond   int           // over all trunks; 0 = 200, negative = no limit
	MessagesPerSecond  int           // of one address; more are not heard, or wait over TCP; 0 = 1000, negative = no limit
	FailuresPerMinute  int           // of one address, over connections; then it is not heard for 5 minutes; 0 = 20, negative = no limit
	MessageBytes       int           // one SIP message; 0 = 8192
	HeaderLines        int           // 0 = 128
	Connections        int           // TCP connections that come in, and as many that we open; 0 = 256
	ConnectionsPerHost int           // the same of one address; 0 = 32
	MediaTimeout       time.Duration // after so much silence (RTP and RTCP) the phone is asked whether it lives; 0 = 60 s, negative = never
	PortQuarantine     time.Duration // an RTP port rests this long after a call; 0 = 30 s, negative = not at all
}

func (l Limits) withDefaults() Limits {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&l.Calls, 1000)
	def(&l.InvitesPerSecond, 200)
	def(&l.MessagesPerSecond, 1000)
	def(&l.FailuresPerMinute, 20)
	def(&l.MessageBytes, 8192)
	def(&l.HeaderLines, 128)
	def(&l.Connections, 256)
	def(&l.ConnectionsPerHost, 32)
	if l.MediaTimeout == 0 {
		l.MediaTimeout = time.Minute
	}
	if l.PortQuarantine == 0 {
		l.PortQuarantine = 30 * time.Second
	}
	return l
}

// check returns every problem of the configuration at once.
func (c Config) check() error {
	var errs []error
	if len(c.Listen) == 0 {
		errs = append(errs, errors.New("sip: no listen address"))
	}
	for _, l := range c.Listen {
		if !l.Transport.known() {
			errs = append(errs, fmt.Errorf("sip: unknown transport %q", l.Transport))
		}
		if l.Transport == TLS && (c.TLS == nil || len(c.TLS.Certificates) == 0 && c.TLS.GetCertificate == nil) {
			errs = append(errs, errors.New("sip: listening for TLS needs a certificate"))
		}
		if !l.Addr.Addr().IsValid() {
			errs = append(errs, fmt.Errorf("sip: listen address %q is not an IP address and port", l.Addr))
		} else if l.Addr.Addr().IsUnspecified() && c.Advertise == "" {
			errs = append(errs, fmt.Errorf("sip: listening on %v needs an advertised host", l.Addr))
		}
	}
	if err := checkAdvertised(c.Advertise, c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("sip: %w", err))
	}
	errs = append(errs, c.RTP.check()...)
	names := map[string]bool{}
	for _, t := range c.Trunks {
		if t.Name == "" || names[t.Name] {
			errs = append(errs, fmt.Errorf("sip: trunk name %q is empty or used twice", t.Name))
		}
		names[t.Name] = true
		if len(t.Networks) == 0 && t.Proxy == "" {
			errs = append(errs, fmt.Errorf("sip: trunk %q has neither networks nor a proxy: nobody could call", t.Name))
		}
		if host, _ := hostAndPort(t.Proxy); !validHost(host) || !validHost(t.Domain) {
			errs = append(errs, fmt.Errorf("sip: trunk %q: proxy %q or domain %q is not a host name or address", t.Name, t.Proxy, t.Domain))
		}
		own := slices.DeleteFunc(slices.Clone(c.Listen), func(l Listen) bool { return t.Transport != Auto && l.Transport != t.transport() })
		if err := checkAdvertised(t.Advertise, own); err != nil {
			errs = append(errs, fmt.Errorf("sip: trunk %q: %w", t.Name, err))
		}
		if a := t.AdvertiseRTP; a.IsUnspecified() || a.IsValid() && !c.RTP.Addr.IsUnspecified() && a.Unmap().Is4() != c.RTP.Addr.Unmap().Is4() {
			errs = append(errs, fmt.Errorf("sip: trunk %q: no sound that is sent to %v comes to rtp address %v", t.Name, a, c.RTP.Addr))
		}
		if t.Transport != "" && t.Transport != Auto && !t.Transport.known() {
			errs = append(errs, fmt.Errorf("sip: trunk %q: unknown transport %q", t.Name, t.Transport))
		}
		if t.OutOnly && (t.InOnly || t.Proxy == "") {
			errs = append(errs, fmt.Errorf("sip: trunk %q: no calls could go either way", t.Name))
		}
		if (t.Register || t.Ping > 0) && t.Proxy == "" || t.Register && t.Auth.Username == "" {
			errs = append(errs, fmt.Errorf("sip: trunk %q: to register takes a proxy and a user name, to ping a proxy", t.Name))
		}
		switch {
		case t.SRTP != SRTPOff && t.SRTP != SRTPOptional && t.SRTP != SRTPRequired:
			errs = append(errs, fmt.Errorf("sip: trunk %q: unknown srtp mode %q", t.Name, t.SRTP))
		case t.SRTP != SRTPOff && t.Transport == Auto, t.SRTP == SRTPRequired && t.Proxy != "" && t.Transport != TLS:
			errs = append(errs, fmt.Errorf("sip: trunk %q: srtp needs transport tls, else everybody on the way can read its keys", t.Name))
		}
		switch t.CallerID.Header {
		case NoIdentity, AssertedIdentity, PreferredIdentity, RemoteParty:
		default:
			errs = append(errs, fmt.Errorf("sip: trunk %q: unknown identity header %q", t.Name, t.CallerID.Header))
		}
		if t.Transfers != TransfersOwn && t.Transfers != TransfersTrunk && t.Transfers != TransfersNone {
			errs = append(errs, fmt.Errorf("sip: trunk %q: unknown policy for transfers %q", t.Name, t.Transfers))
		}
		if t.DTMF != DTMFAuto && t.DTMF != DTMFInfo {
			errs = append(errs, fmt.Errorf("sip: trunk %q: unknown dtmf mode %q", t.Name, t.DTMF))
		}
		for _, name := range t.Codecs {
			if _, ok := codecNamed(name); !ok {
				errs = append(errs, fmt.Errorf("sip: trunk %q: unknown codec %q", t.Name, name))
			}
		}
	}
	return errors.Join(errs...)
}

func (r RTPConfig) check() []error {
	var errs []error
	r = r.withDefaults()
	if !r.Addr.IsValid() {
		errs = append(errs, errors.New("sip: rtp address is missing"))
	} else if r.Addr.IsUnspecified() && !r.Advertise.IsValid() {
		errs = append(errs, fmt.Errorf("sip: rtp address %v needs an advertised address", r.Addr))
	}
	if r.PortMax < r.PortMin+3 {
		errs = append(errs, fmt.Errorf("sip: rtp ports %d to %d hold no pair", r.PortMin, r.PortMax))
	}
	return errs
}

func (r RTPConfig) withDefaults() RTPConfig {
	if r.PortMin == 0 {
		r.PortMin = 20000
	}
	if r.PortMax == 0 {
		r.PortMax = 29999
	}
	if !r.Advertise.IsValid() && r.Addr.IsValid() && !r.Addr.IsUnspecified() {
		r.Advertise = r.Addr
	}
	return r
}

func (t *Trunk) codecs() []string {
	if len(t.Codecs) == 0 {
		return []string{"PCMU", "PCMA"}
	}
	return t.Codecs
}

func (t *Trunk) transport() Transport { return cmp.Or(t.Transport, UDP) }

// domain is the host part of the addresses we call.
func (t *Trunk) domain() string {
	if t.Domain != "" {
		return bracketed(t.Domain)
	}
	host, _ := hostAndPort(t.Proxy)
	return bracketed(host)
}

func (t *Trunk) contains(a netip.Addr) bool { return inPrefixes(t.Networks, a) }

func inPrefixes(nets []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap()
	for _, n := range nets {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// validHost refuses what could break a header line; "" is allowed.
func validHost(h string) bool {
	return !strings.ContainsFunc(h, func(r rune) bool {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return false
		}
		return !strings.ContainsRune(".-:[]_", r)
	})
}
