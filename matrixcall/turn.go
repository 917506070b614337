package matrixcall

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pion/stun/v4"
)

const (
	turnPause    = time.Minute      // how soon a homeserver without TURN is asked again
	turnMargin   = 10 * time.Minute // how long before their end credentials are renewed
	turnDeadline = 5 * time.Second  // how long a conference waits for the answer
)

// turnCache is the homeserver's last answer about TURN. The zero value works.
type turnCache struct {
	asking keyedLocks[struct{}] // held while the homeserver is asked: one question at a time

	mu      sync.Mutex
	servers []TURNServer // guarded by mu
	renewAt time.Time    // guarded by mu
	expires time.Time    // guarded by mu: of the credentials
}

// turnServers implements callHost: the homeserver's TURN servers and those of
// the configuration. A homeserver that has none answers `200 {}`; one that
// cannot be asked leaves what it said before while that is good, and the
// configured ones. They are for connections that begin now: those that stand
// keep theirs.
func (s *Service) turnServers(ctx context.Context, _ *Ghost) ([]TURNServer, error) {
	servers, fresh := s.turn.get()
	if !fresh {
		servers = s.renewTURN(ctx)
	}
	return slices.Concat(servers, s.cfg.ICE.ExtraServers), nil
}

// get returns the servers that can be used, and whether there is no need to ask for others.
func (c *turnCache) get() ([]TURNServer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !now.Before(c.expires) {
		c.servers = nil
	}
	return c.servers, now.Before(c.renewAt)
}

func (s *Service) renewTURN(ctx context.Context) []TURNServer {
	c := &s.turn
	release, err := c.asking.acquire(ctx, struct{}{})
	if err != nil { // the connection that wanted to know is gone
		return nil
	}
	defer release()
	if servers, fresh := c.get(); fresh { // another conference has asked meanwhile
		return servers
	}
	servers, ttl, err := s.askTURN(ctx)
	if ctx.Err() != nil { // whoever asked has gone; that says nothing of the homeserver
		servers, _ = c.get()
		return servers
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil: // go on with what is still good
		s.metrics.TURNFailures.Add(1)
		s.log.Warn("no TURN servers from the homeserver", "err", tidy(err))
		c.renewAt = now.Add(turnPause)
	case len(servers) == 0:
		c.servers, c.renewAt = nil, now.Add(turnPause)
	default:
		c.servers, c.renewAt, c.expires = servers, now.Add(turnLife(ttl)), now.Add(ttl)
	}
	return c.servers
}

// askTURN asks the homeserver and returns for how long the answer is good.
func (s *Service) askTURN(ctx context.Context) ([]TURNServer, time.Duration, error) {
	s.metrics.TURNRequests.Add(1)
	ctx, cancel := context.WithTimeout(ctx, turnDeadline)
	defer cancel()
	answer, err := s.bot.TurnServer(ctx)
	if err != nil {
		return nil, 0, err
	}
	server := TURNServer{Username: answer.Username, Password: answer.Password}
	for _, uri := range answer.URIs {
		if err := server.takes(uri); err != nil {
			s.log.Debug("TURN server of the homeserver left out", "err", err)
			continue
		}
		server.URIs = append(server.URIs, uri)
	}
	if len(server.URIs) == 0 {
		return nil, 0, nil
	}
	ttl := time.Duration(answer.TTL) * time.Second
	if ttl <= 0 {
		ttl = turnPause
	}
	return []TURNServer{server}, ttl, nil
}

// takes says whether a server of these credentials can have the URI. One that pion does not like would cost the whole
// connection.
func (t TURNServer) takes(uri string) error {
	parsed, err := stun.ParseURI(uri)
	switch {
	case err != nil:
		return fmt.Errorf("%q: %w", uri, err)
	case strings.HasPrefix(parsed.Scheme.String(), "turn") && (t.Username == "" || t.Password == ""):
		return fmt.Errorf("%q: %w", uri, errNoTURNCredentials)
	}
	return nil
}

var errNoTURNCredentials = errors.New("a relay needs a user name and a password")

// turnLife is when to renew credentials that live for ttl: well before their
// end, because a leg that begins now needs them for a while.
func turnLife(ttl time.Duration) time.Duration { return max(ttl-turnMargin, ttl/2) }
