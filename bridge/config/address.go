package config

import (
	"net"
	"net/netip"
)

// OwnAddress is the address that the rest of the world most likely knows this machine by: that of the interface with
// the default route, else any that is not loopback, else loopback. It is what an empty "advertise" means for a socket
// on all addresses.
func OwnAddress() netip.Addr {
	// Connecting a UDP socket sends nothing; it only asks the kernel for a route (to an address for documentation, RFC 5737).
	if conn, err := net.Dial("udp4", "192.0.2.1:9"); err == nil {
		defer conn.Close()
		if own, ok := netip.AddrFromSlice(conn.LocalAddr().(*net.UDPAddr).IP); ok {
			return own.Unmap()
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Is4() && !prefix.Addr().IsLoopback() {
			return prefix.Addr()
		}
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// HostOf is an advertised address without its port, where it has one.
func HostOf(advertised string) string {
	if _, err := netip.ParseAddr(advertised); err == nil {
		return advertised
	}
	if host, _, err := net.SplitHostPort(advertised); err == nil {
		return host
	}
	return advertised
}
