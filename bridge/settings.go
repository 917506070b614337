package bridge

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"

	"maunium.net/go/mautrix/appservice"

	"trunkline/bridge/config"
	"trunkline/matrixcall"
	"trunkline/sip"
)

// matrixConfig says in matrixcall's terms what the admin configured.
func matrixConfig(c config.Config, r *appservice.Registration, node string) matrixcall.Config {
	ice := matrixcall.ICEConfig{
		UDPPort: c.WebRTC.Port, PortMin: uint16(c.WebRTC.PortMin), PortMax: uint16(c.WebRTC.PortMax),
		Interfaces: c.WebRTC.Interfaces, Addresses: c.WebRTC.Addresses, Loopback: c.WebRTC.Loopback,
	}
	if c.WebRTC.Advertise != "" {
		ice.NAT1To1 = []string{c.WebRTC.Advertise}
	}
	for _, s := range c.WebRTC.Servers {
		ice.ExtraServers = append(ice.ExtraServers, matrixcall.TURNServer{URIs: s.URIs, Username: s.Username, Password: s.Password})
	}
	return matrixcall.Config{
		HomeserverURL: c.Homeserver.Address, Domain: c.Homeserver.Domain,
		ASToken: r.AppToken, HSToken: r.ServerToken, ID: r.ID,
		BotLocalpart: c.AppService.Bot, BotName: c.AppService.BotName, GhostPrefix: c.AppService.GhostPrefix, GhostAvatar: c.AppService.GhostAvatar,
		Node:       node,
		AllowPlain: c.Calls.AllowPlain, ICE: ice,
	}
}

// sipConfig says in sip's terms what the admin configured. The config was checked; errors here name what slipped through.
func sipConfig(c config.Config) (sip.Config, error) {
	out := sip.Config{Advertise: c.SIP.Advertise, UserAgent: c.SIP.UserAgent, SaveFirst: saveFirst}
	own := config.OwnAddress()
	for _, l := range c.SIP.Listen {
		addr, err := netip.ParseAddrPort(l.Address)
		if err != nil {
			return out, fmt.Errorf("sip.listen: %w", err)
		}
		out.Listen = append(out.Listen, sip.Listen{Transport: sip.Transport(l.Transport), Addr: addr})
		if addr.Addr().IsUnspecified() && out.Advertise == "" {
			out.Advertise = own.String()
		}
	}
	var err error
	if out.TLS, err = tlsConfig(c.SIP.TLS); err != nil {
		return out, fmt.Errorf("sip.tls: %w", err)
	}
	addr, err := netip.ParseAddr(c.RTP.Address)
	if err != nil {
		return out, fmt.Errorf("rtp.address: %w", err)
	}
	out.RTP = sip.RTPConfig{Addr: addr, PortMin: uint16(c.RTP.PortMin), PortMax: uint16(c.RTP.PortMax)}
	switch {
	case c.RTP.Advertise != "":
		if out.RTP.Advertise, err = netip.ParseAddr(c.RTP.Advertise); err != nil {
			return out, fmt.Errorf("rtp.advertise: %w", err)
		}
	case addr.IsUnspecified():
		out.RTP.Advertise = own
		if public, err := netip.ParseAddr(config.HostOf(c.SIP.Advertise)); err == nil { // else a name, which is no address of sound
			out.RTP.Advertise = public
		}
	}
	for _, t := range c.SIP.Trunks {
		trunk, err := sipTrunk(t, out.TLS)
		if err != nil {
			return out, err
		}
		if told := trunk.AdvertiseRTP; told.IsValid() && !addr.IsUnspecified() && told.Unmap().Is4() != addr.Unmap().Is4() {
			return out, fmt.Errorf("advertise_rtp of trunk %s: no sound that is sent to %v comes to rtp.address %v", t.Name, told, addr)
		}
		out.Trunks = append(out.Trunks, trunk)
	}
	out.Limits.Calls = c.Calls.MaxLegs + 50 // the bridge itself says busy first, with a count
	for limit, n := range map[*int]int{
		&out.Limits.InvitesPerSecond:  c.SIP.Limits.InvitesPerSecond,
		&out.Limits.MessagesPerSecond: c.SIP.Limits.MessagesPerSecond,
		&out.Limits.FailuresPerMinute: c.SIP.Limits.FailuresPerMinute,
	} {
		if *limit = n; n == 0 {
			*limit = -1 // sip's word for no limit
		}
	}
	return out, nil
}

// sipTrunk says a trunk in sip's terms; ours are the certificates of those that name none.
func sipTrunk(t config.Trunk, ours *tls.Config) (sip.Trunk, error) {
	trunk := sip.Trunk{Name: t.Name, Codecs: t.Codecs, Symmetric: t.SymmetricRTP, TrustIdentity: !t.IgnoreAssertedIdentity}
	trunk.Proxy, trunk.Domain, trunk.Transport = t.Proxy, t.Domain, sip.Transport(t.Transport)
	trunk.Auth = sip.Credentials{Username: t.Username, Login: t.AuthUsername, Password: t.Password}
	if own := t.Number; own != "" {
		trunk.Has = func(n sip.Number) bool {
			text, _ := t.Numbers.FromTrunk(string(n))
			return text == own || string(n) == own
		}
	}
	trunk.OutOnly, trunk.InOnly = t.Direction == config.DirectionOut, t.Direction == config.DirectionIn
	trunk.MaxCalls, trunk.InvitesPerSecond = t.MaxCalls, t.InvitesPerSecond
	trunk.CallerID = sip.CallerID{AccountInFrom: t.AccountInFrom, Header: map[string]sip.IdentityHeader{
		"pai": sip.AssertedIdentity, "ppi": sip.PreferredIdentity, "rpid": sip.RemoteParty,
	}[t.CallerID]}
	trunk.Register, trunk.RegisterFor, trunk.Ping = t.Register, t.RegisterFor, t.Ping
	if t.SRTP != "off" {
		trunk.SRTP = sip.SRTPMode(t.SRTP)
	}
	var err error
	if trunk.TLS, trunk.ClientCAs, err = trunkTLS(t, ours); err != nil {
		return trunk, fmt.Errorf("tls of trunk %s: %w", t.Name, err)
	}
	trunk.Transfers = map[string]sip.Transfers{"trunk": sip.TransfersTrunk, "none": sip.TransfersNone}[t.Transfers]
	if t.DTMF == "info" {
		trunk.DTMF = sip.DTMFInfo
	}
	if trunk.Networks, err = prefixes(t.Networks); err != nil {
		return trunk, fmt.Errorf("networks of trunk %s: %w", t.Name, err)
	}
	if trunk.MediaNetworks, err = prefixes(t.MediaNetworks); err != nil {
		return trunk, fmt.Errorf("media_networks of trunk %s: %w", t.Name, err)
	}
	trunk.Advertise = t.Advertise
	where := t.AdvertiseRTP
	host := config.HostOf(t.Advertise)
	if _, err := netip.ParseAddr(host); err == nil {
		where = cmp.Or(where, host) // a name is no address of sound
	}
	if where != "" {
		if trunk.AdvertiseRTP, err = netip.ParseAddr(where); err != nil {
			return trunk, fmt.Errorf("advertise_rtp of trunk %s: %w", t.Name, err)
		}
	}
	return trunk, nil
}

func prefixes(networks []string) (list []netip.Prefix, err error) {
	for _, network := range networks {
		prefix, err := netip.ParsePrefix(network)
		if err != nil {
			return nil, err
		}
		list = append(list, prefix)
	}
	return list, nil
}

// tlsConfig reads certificate, key and CA.
func tlsConfig(files config.TLS) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if files.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	var err error
	c.RootCAs, err = authorities(files.CA)
	return c, err
}

// authorities reads CA certificates; nil without a file.
func authorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return pool, nil
}

// trunkTLS is how connections to a trunk are secured, and who must have signed its certificate when it connects.
func trunkTLS(t config.Trunk, ours *tls.Config) (*tls.Config, *x509.CertPool, error) {
	own, err := tlsConfig(t.TLS)
	if err != nil {
		return nil, nil, err
	}
	if own.Certificates == nil {
		own.Certificates = ours.Certificates
	}
	own.RootCAs = cmp.Or(own.RootCAs, ours.RootCAs)
	theirs, err := authorities(t.ClientCA)
	return own, theirs, err
}
