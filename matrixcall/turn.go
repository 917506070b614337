package matrixcall

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	turnPause    = time.Minute      // how soon a homeserver without TURN is asked again
	turnMargin   = 10 * time.Minute // how long before their end credentials are renewed
	turnDeadline = 5 * time.Second  // how long a conference waits for the answer
)

// turnCache is the homeserver's last answer about TURN. The zero value works.
type turnCache struct {
	mu      sync.Mutex
	servers []TURNServer // guarded by mu
	renewAt time.Time    // guarded by mu
}

// turnServers implements callHost: the homeserver's TURN servers and those of
// the configuration. A homeserver that has none answers `200 {}`; one that
// cannot be asked leaves the configured ones.
func (s *Service) turnServers(ctx context.Context, _ *Ghost) ([]TURNServer, error) {
	s.turn.mu.Lock()
	servers, fresh := s.turn.servers, time.Now().Before(s.turn.renewAt)
	s.turn.mu.Unlock()
	if !fresh {
		var life time.Duration
		servers, life = s.askTURN(ctx)
		s.turn.mu.Lock()
		s.turn.servers, s.turn.renewAt = servers, time.Now().Add(life)
		s.turn.mu.Unlock()
	}
	return slices.Concat(servers, s.cfg.ICE.ExtraServers), nil
}

// askTURN asks the homeserver and returns for how long the answer is good.
func (s *Service) askTURN(ctx context.Context) ([]TURNServer, time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, turnDeadline)
	defer cancel()
	answer, err := s.bot.TurnServer(ctx)
	if err != nil {
		s.log.Warn("no TURN servers from the homeserver", "err", tidy(err))
		return nil, turnPause
	}
	server := TURNServer{Username: answer.Username, Password: answer.Password}
	for _, uri := range answer.URIs {
		scheme, _, _ := strings.Cut(uri, ":")
		switch scheme {
		case "stun", "stuns":
			server.URIs = append(server.URIs, uri)
		case "turn", "turns":
			if answer.Username != "" && answer.Password != "" {
				server.URIs = append(server.URIs, uri)
			}
		}
	}
	if len(server.URIs) == 0 {
		return nil, turnPause
	}
	return []TURNServer{server}, turnLife(time.Duration(answer.TTL) * time.Second)
}

// turnLife is when to renew credentials that live for ttl: well before their
// end, because a leg that begins now needs them for a while.
func turnLife(ttl time.Duration) time.Duration {
	return max(ttl-turnMargin, ttl/2, turnPause)
}
