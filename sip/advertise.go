package sip

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	gosip "github.com/emiago/sipgo/sip"
)

// How we name ourselves: to each trunk by the addresses under which it reaches us, to all others by those of the config. They are
// asked for anew whenever something is sent or a call is resumed, so that a call follows a config that says others ([Call.moved]).

// contact is our address for a dialog with this trunk, nil = none that is known, by way of this listener.
func (s *Stack) contact(trunk *Trunk, t Transport, local netip.AddrPort) string {
	uri := "sip:trunkline@" + s.hostPort(trunk, local)
	if t != UDP {
		uri += ";transport=" + string(t)
	}
	return "<" + uri + ">"
}

// secureContact is contact for a phone that wants every hop secure.
func (s *Stack) secureContact(trunk *Trunk, local netip.AddrPort) string {
	return "<sips:trunkline@" + s.hostPort(trunk, local) + ">"
}

// contactFor is our address in answer to a request: secure if it was asked for securely (§12.1.1).
func (s *Stack) contactFor(trunk *Trunk, req *gosip.Request, t Transport, local netip.AddrPort) string {
	if strings.EqualFold(req.Recipient.Scheme, "sips") {
		return s.secureContact(trunk, local)
	}
	return s.contact(trunk, t, local)
}

func (s *Stack) hostPort(trunk *Trunk, local netip.AddrPort) string {
	host, port := s.sentBy(trunk, local)
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(port)
}

// sentBy is the host and port under which a trunk's signalling reaches us by way of this listener.
func (s *Stack) sentBy(trunk *Trunk, local netip.AddrPort) (string, int) {
	host, port := advertised(s.config.Advertise)
	if trunk != nil && trunk.Advertise != "" {
		host, port = advertised(trunk.Advertise)
		if own, err := s.outlet(trunk); err == nil && own.addr.Port() != local.Port() {
			port = 0 // it is another socket's
		}
	}
	return cmp.Or(host, local.Addr().String()), int(cmp.Or(port, local.Port()))
}

// advertised splits an advertised host from its port, 0 = that of the listener.
func advertised(s string) (host string, port uint16) {
	if _, err := netip.ParseAddr(s); err == nil {
		return s, 0
	}
	return hostAndPort(s)
}

// checkAdvertised says what is wrong with an advertised host, or with its port where that would stand for several of these sockets.
func checkAdvertised(s string, sockets []Listen) error {
	host, port := advertised(s)
	_, written, err := net.SplitHostPort(s)
	switch {
	case !validHost(host), err == nil && (host == "" || port == 0 || strconv.Itoa(int(port)) != written):
		return fmt.Errorf("advertise %q is not a host name or address, with a port or without", s)
	case port != 0 && slices.ContainsFunc(sockets, func(l Listen) bool { return l.Addr.Port() != sockets[0].Addr.Port() }):
		return fmt.Errorf("advertise %q: one port cannot stand for sockets of several", s)
	}
	return nil
}

// soundHost is where sound of a trunk's phones reaches us. Its family is the one in which the trunk is spoken to.
func (s *Stack) soundHost(trunk *Trunk) netip.Addr {
	if trunk != nil && trunk.AdvertiseRTP.IsValid() {
		return trunk.AdvertiseRTP
	}
	return s.config.RTP.Advertise
}
