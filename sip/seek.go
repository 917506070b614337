package sip

import (
	"context"
	"net/netip"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

const (
	seekAgain    = 5 * time.Minute  // Go's resolver does not say how long an address holds; carriers' hold a few minutes
	seekSoon     = 30 * time.Second // after a search that found nothing
	seekPatience = 3 * time.Second  // how long a request waits for the first search
)

// seekers prepares the search for the trunks' proxies. Those that are addresses are known, and heard, at once.
func (s *Stack) seekers() {
	s.sought = map[string]chan struct{}{}
	for i := range s.config.Trunks {
		t := &s.config.Trunks[i]
		host, _ := hostAndPort(t.Proxy)
		if addr, err := netip.ParseAddr(host); err == nil {
			s.neighbours.find(t, []target{{addr: netip.AddrPortFrom(addr.Unmap(), 0)}})
		} else if t.Proxy != "" {
			s.sought[t.Name] = make(chan struct{})
		}
	}
}

// seek looks a proxy up now and then, for as long as the stack runs: who calls from it must be heard although we have never
// called it, and its addresses change. What was found before stays while DNS has no answer.
func (s *Stack) seek(trunk *Trunk, first chan struct{}) {
	down := false
	for pause := time.Duration(0); pauseFor(s.root, pause); {
		ctx, cancel := context.WithTimeout(s.root, lookupTimeout)
		_, err := s.locate(ctx, trunk)
		cancel()
		if s.root.Err() != nil {
			return
		}
		pause = seekAgain
		if err != nil {
			pause = seekSoon
		}
		if (err != nil) != down {
			down = !down
			s.log.Warn("trunk looked up", "trunk", trunk.Name, "found", !down, "err", err)
		}
		if first != nil {
			close(first)
			first = nil
		}
	}
}

// awaitFound lets the first requests wait a little for where their trunk is, for what answers from elsewhere is not heard.
func (s *Stack) awaitFound(ctx context.Context, trunk *Trunk, req *gosip.Request) {
	if trunk == nil || s.sought[trunk.Name] == nil || req.Method == gosip.REGISTER { // that one was looked up just now
		return
	}
	patience := time.NewTimer(seekPatience)
	defer patience.Stop()
	select {
	case <-s.sought[trunk.Name]:
	case <-patience.C:
	case <-ctx.Done():
	}
}
