package matrixcall

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/transport/v4"
	"github.com/pion/webrtc/v4"
)

// ICEConfig says on which addresses the ghosts' PeerConnections live.
type ICEConfig struct {
	UDPPort      int          // one port shared by all peers; 0 means a port per peer
	PortMin      uint16       // range of the ports per peer and of relayed ones; 0 means any
	PortMax      uint16       //
	Interfaces   []string     // names; empty means all
	Addresses    []string     // addresses or networks (CIDR); empty means all
	NAT1To1      []string     // public addresses to put in place of the local ones
	Loopback     bool         // offer loopback addresses, for trials on one machine
	NoMDNS       bool         // do not look up the .local names some browsers hide behind
	MaxPeers     int          // per ghost; 0 means 64
	ExtraServers []TURNServer // STUN and TURN servers beside the homeserver's

	network transport.Net // the tests' virtual network
}

// The transports' timers. Lost is when ICE says disconnected, dead is how much later it says failed.
// A STUN server that answers at all does so well within gatherCap, a relay, which takes several round trips and perhaps
// a TLS handshake, within relayCap; one that is down must not delay every call for longer.
const (
	iceLost      = 7 * time.Second
	iceDead      = 25 * time.Second
	iceKeepAlive = 2 * time.Second
	gatherCap    = 500 * time.Millisecond
	relayCap     = 2 * time.Second
	icePatience  = 150 // checks of a pair, one each 200 ms; pion's 7 give a pair up before a slow answer is there
)

// opusWish is what we tell browsers about the Opus we like to get: most phones play 8 kHz, some 16, and anything above is
// wasted; libwebrtc and Firefox obey these (RFC 7587 §6.1).
func opusWish(wideBand bool) string {
	const always = "minptime=10;useinbandfec=1;usedtx=1;stereo=0;"
	if wideBand {
		return always + "maxplaybackrate=16000;maxaveragebitrate=32000"
	}
	return always + "maxplaybackrate=8000;maxaveragebitrate=24000"
}

const (
	opusPayload       = 111
	tone48Payload     = 110
	tone8Payload      = 126
	videoPayload      = 96
	mimeTelephone     = "audio/telephone-event"
	audioLevelURI     = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
	midURI            = "urn:ietf:params:rtp-hdrext:sdes:mid"
	telephoneEvents16 = "0-15"
)

// opusCodec is what our audio track carries. Two channels is how Opus is always written (RFC 7587 §7). The rest of our
// wish is put into the sent descriptions: pion compares these parameters with the peer's.
var opusCodec = webrtc.RTPCodecCapability{
	MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2, SDPFmtpLine: "minptime=10;useinbandfec=1",
}

// engine makes PeerConnections. One serves all ghosts: they share a port.
type engine struct {
	api      *webrtc.API
	mux      ice.UDPMux // nil: a port per connection
	maxPeers int
}

func newEngine(cfg ICEConfig, log *slog.Logger) (*engine, error) {
	for _, server := range cfg.ExtraServers {
		for _, uri := range server.URIs {
			if err := server.takes(uri); err != nil {
				return nil, fmt.Errorf("extra_servers: %w", err)
			}
		}
	}
	e := &engine{maxPeers: cfg.MaxPeers}
	settings, err := e.settings(cfg, log)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("webrtc: %w", err), e.Close())
	}
	media, err := newMediaEngine()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("webrtc: %w", err), e.Close())
	}
	registry := &interceptor.Registry{}
	// Reports only: no NACK (a repeated packet of speech comes too late), no transport-cc (we do not adapt).
	if err := webrtc.ConfigureRTCPReports(registry); err != nil {
		return nil, errors.Join(fmt.Errorf("webrtc: %w", err), e.Close())
	}
	e.api = webrtc.NewAPI(
		webrtc.WithSettingEngine(settings), webrtc.WithMediaEngine(media), webrtc.WithInterceptorRegistry(registry),
	)
	return e, nil
}

// Close gives the shared port back. Every membership must have left before.
func (e *engine) Close() error {
	if e.mux == nil {
		return nil
	}
	return e.mux.Close()
}

func (e *engine) settings(cfg ICEConfig, log *slog.Logger) (s webrtc.SettingEngine, err error) {
	s.LoggerFactory = pionLoggers{log}
	s.SetICETimeouts(iceLost, iceDead, iceKeepAlive)
	s.SetICEMaxBindingRequests(icePatience)
	s.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4, webrtc.NetworkTypeUDP6})
	s.DisableActiveTCP(true)
	s.SetHostAcceptanceMinWait(0)
	// A browser's checks come before its candidates do, from addresses we do not know yet. Until we choose one it keeps
	// to its old path, which after an ICE restart leads nowhere: pion's second of waiting is a second of silence.
	s.SetPrflxAcceptanceMinWait(100 * time.Millisecond)
	s.SetIncludeLoopbackCandidate(cfg.Loopback)
	s.SetICEMulticastDNSMode(ice.MulticastDNSModeQueryOnly)
	if cfg.NoMDNS {
		s.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	}
	// The fast profile first: the DTLS server chooses.
	s.SetSRTPProtectionProfiles(dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AES128_CM_HMAC_SHA1_80)
	// We are always the DTLS server. A browser's answer to our offer makes us that anyhow; in answers to its offers,
	// first or later, the role must be the one we had (RFC 8842 §5.3: else Chromium is stuck), and pion would say
	// active.
	if err := s.SetAnsweringDTLSRole(webrtc.DTLSRoleServer); err != nil {
		return s, err
	}
	network, err := newRelayNet(cfg.network, log)
	if err != nil {
		return s, err
	}
	s.SetNet(network)
	byName := func(name string) bool { return len(cfg.Interfaces) == 0 || slices.Contains(cfg.Interfaces, name) }
	byAddress, err := addressFilter(cfg.Addresses)
	if err != nil {
		return s, err
	}
	s.SetInterfaceFilter(byName)
	s.SetIPFilter(byAddress)
	if cfg.PortMin != 0 || cfg.PortMax != 0 {
		if err := s.SetEphemeralUDPPortRange(cfg.PortMin, cfg.PortMax); err != nil {
			return s, fmt.Errorf("ports %d-%d: %w", cfg.PortMin, cfg.PortMax, err)
		}
	}
	if len(cfg.NAT1To1) > 0 {
		rule := webrtc.ICEAddressRewriteRule{External: cfg.NAT1To1, AsCandidateType: webrtc.ICECandidateTypeHost}
		if err := s.SetICEAddressRewriteRules(rule); err != nil {
			return s, fmt.Errorf("nat_1to1: %w", err)
		}
	}
	if cfg.UDPPort != 0 {
		if err := e.listen(cfg, byName, byAddress, log); err != nil {
			return s, err
		}
		s.SetICEUDPMux(e.mux)
	}
	return s, nil
}

func (e *engine) listen(cfg ICEConfig, byName func(string) bool, byAddress func(net.IP) bool, log *slog.Logger) error {
	options := []ice.UDPMuxFromPortOption{
		ice.UDPMuxFromPortWithInterfaceFilter(byName),
		ice.UDPMuxFromPortWithIPFilter(byAddress),
		ice.UDPMuxFromPortWithLogger(pionLoggers{log}.NewLogger("udpmux")),
	}
	if cfg.Loopback {
		options = append(options, ice.UDPMuxFromPortWithLoopback())
	}
	if cfg.network != nil {
		options = append(options, ice.UDPMuxFromPortWithNet(cfg.network))
	}
	mux, err := ice.NewMultiUDPMuxFromPort(cfg.UDPPort, options...)
	if err != nil {
		return fmt.Errorf("udp port %d: %w", cfg.UDPPort, err)
	}
	if len(mux.GetListenAddresses()) == 0 {
		return errors.Join(fmt.Errorf("udp port %d: no address is allowed by interfaces and addresses", cfg.UDPPort), mux.Close())
	}
	e.mux = mux
	return nil
}

// addressFilter keeps the listed addresses and networks; all if none is listed.
func addressFilter(list []string) (func(net.IP) bool, error) {
	var allowed []netip.Prefix
	for _, s := range list {
		if addr, err := netip.ParseAddr(s); err == nil {
			allowed = append(allowed, netip.PrefixFrom(addr, addr.BitLen()))
			continue
		}
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("addresses: %q is neither an address nor a network", s)
		}
		allowed = append(allowed, prefix)
	}
	return func(ip net.IP) bool {
		addr, ok := netip.AddrFromSlice(ip)
		inside := func(p netip.Prefix) bool { return p.Contains(addr.Unmap()) }
		return ok && (len(allowed) == 0 || slices.ContainsFunc(allowed, inside))
	}, nil
}

// newMediaEngine knows Opus, telephone events for the peers' key pads, and one video codec: a video section has to be
// offered although it stays inactive. The desk eats Opus only, so nothing else is offered for audio.
func newMediaEngine() (*webrtc.MediaEngine, error) {
	m := &webrtc.MediaEngine{}
	audio := []webrtc.RTPCodecParameters{
		{RTPCodecCapability: opusCodec, PayloadType: opusPayload},
		{
			RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: mimeTelephone, ClockRate: 48000, SDPFmtpLine: telephoneEvents16},
			PayloadType:        tone48Payload,
		},
		{
			RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: mimeTelephone, ClockRate: 8000, SDPFmtpLine: telephoneEvents16},
			PayloadType:        tone8Payload,
		},
	}
	for _, codec := range audio {
		if err := m.RegisterCodec(codec, webrtc.RTPCodecTypeAudio); err != nil {
			return nil, err
		}
	}
	video := webrtc.RTPCodecParameters{
		RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000},
		PayloadType:        videoPayload,
	}
	if err := m.RegisterCodec(video, webrtc.RTPCodecTypeVideo); err != nil {
		return nil, err
	}
	for _, uri := range []string{audioLevelURI, midURI} {
		ext := webrtc.RTPHeaderExtensionCapability{URI: uri}
		if err := m.RegisterHeaderExtension(ext, webrtc.RTPCodecTypeAudio); err != nil {
			return nil, err
		}
	}
	return m, nil
}
