package sip

import (
	"context"
	"fmt"
	"net"
)

// AsksDNS makes a stack ask these name servers, which have ports of their own.
func (c *Config) AsksDNS(servers ...string) {
	c.resolver = systemDNS{
		&net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, servers[len(servers)-1])
		}},
		func() ([]string, error) { return servers, nil },
	}
}

// Targets says where requests to a trunk go, in order.
func (s *Stack) Targets(ctx context.Context, trunk string) (out []string, err error) {
	targets, err := s.locate(ctx, s.trunkNamed(trunk))
	for _, t := range targets {
		out = append(out, fmt.Sprintf("%s %v", t.transport, t.addr))
	}
	return out, err
}
