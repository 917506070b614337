package sip

import (
	"cmp"
	"net/netip"
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

// sentBy is the host and port under which a trunk's signalling reaches us.
func (s *Stack) sentBy(trunk *Trunk, local netip.AddrPort) (string, int) {
	host := cmp.Or(s.config.Advertise, local.Addr().String())
	if trunk != nil {
		host = cmp.Or(trunk.Advertise, host)
	}
	return strings.Trim(host, "[]"), int(local.Port())
}

// soundHost is where sound of a trunk's phones reaches us. Its family is the one in which the trunk is spoken to.
func (s *Stack) soundHost(trunk *Trunk) netip.Addr {
	if trunk != nil && trunk.AdvertiseRTP.IsValid() {
		return trunk.AdvertiseRTP
	}
	return s.config.RTP.Advertise
}
