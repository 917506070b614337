package matrixcall

import (
	"log/slog"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"
)

// candidatesOf are the host candidates that a connection of a machine configured like this offers.
func candidatesOf(t *testing.T, cfg ICEConfig) (found []*webrtc.ICECandidate) {
	t.Helper()
	e, err := newEngine(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	pc, err := e.api.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	gathered := make(chan struct{})
	pc.OnICECandidate(func(c *webrtc.ICECandidate) {
		if c == nil {
			close(gathered)
			return
		}
		found = append(found, c)
	})
	if _, err = pc.AddTransceiverFromKind(webrtc.RTPCodecTypeAudio); err == nil {
		var offer webrtc.SessionDescription
		if offer, err = pc.CreateOffer(nil); err == nil {
			err = pc.SetLocalDescription(offer)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-gathered:
	case <-time.After(10 * time.Second):
		t.Fatal("no end of candidates")
	}
	return found
}

func TestConnectionsUseThePortsAndInterfacesThatAreAllowed(t *testing.T) {
	cfg := ICEConfig{Loopback: true, PortMin: 41000, PortMax: 41400, Interfaces: []string{"lo"}, NoMDNS: true}
	all := candidatesOf(t, cfg)
	if len(all) == 0 {
		t.Fatal("no candidates on lo")
	}
	for _, c := range all {
		if c.Port < cfg.PortMin || c.Port > cfg.PortMax || c.Address != "127.0.0.1" && c.Address != "::1" {
			t.Errorf("candidate %s:%d, want lo and a port from %d to %d", c.Address, c.Port, cfg.PortMin, cfg.PortMax)
		}
	}
	cfg.Interfaces = []string{"nosuch0"}
	if got := candidatesOf(t, cfg); len(got) != 0 {
		t.Errorf("candidates %v of an interface that is not there", got)
	}
}
