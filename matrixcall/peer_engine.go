package matrixcall

import "log/slog"

// ICEConfig says on which addresses the ghosts' PeerConnections live.
type ICEConfig struct {
	UDPPort      int          `yaml:"udp_port"` // one port shared by all peers; 0 means a port per peer
	PortMin      uint16       `yaml:"port_min"` // range of the ports per peer and of relayed ones; 0 means any
	PortMax      uint16       `yaml:"port_max"`
	Interfaces   []string     `yaml:"interfaces"`    // names; empty means all
	Addresses    []string     `yaml:"addresses"`     // addresses or networks (CIDR); empty means all
	NAT1To1      []string     `yaml:"nat_1to1"`      // public addresses to put in place of the local ones
	Loopback     bool         `yaml:"loopback"`      // offer loopback addresses, for trials on one machine
	MaxPeers     int          `yaml:"max_peers"`     // per ghost; 0 means 64
	ExtraServers []TURNServer `yaml:"extra_servers"` // STUN and TURN servers beside the homeserver's
}

type engine struct{}

func newEngine(cfg ICEConfig, log *slog.Logger) (*engine, error) { return &engine{}, nil }

// Close gives the shared port back. Every membership must have left before.
func (e *engine) Close() error { return nil }
