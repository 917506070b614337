package matrixcall

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// Ghost is a Matrix user with one device that stands for a phone.
type Ghost struct {
	service   *Service
	log       *slog.Logger
	user      id.UserID
	device    id.DeviceID
	asUser    *mautrix.Client // acts as the user: rooms, state, profile
	asSelf    *mautrix.Client // acts as the user's device: keys, /sync, to-device
	keys      *keyring
	outbox    outbox
	nudger    nudger
	strangers strangers
	routing   sync.Mutex // held while a message is handed to a conference
	calling   slot       // held while a conference begins or ends

	mu          sync.Mutex // guards the fields below
	memberships []conference
	poller      *poller   // nil while in no conference
	name        string    // display name as last set
	avatar      string    // picture as last set
	gone        bool      // the device is gone from the homeserver
	used        time.Time // when somebody asked for the ghost, or its last conference ended
	forgotten   bool      // the service does not know this Ghost any more; another may stand for the user
}

// UserID returns the ghost's user id.
func (g *Ghost) UserID() id.UserID { return g.user }

// DeviceID returns the id of the ghost's only device.
func (g *Ghost) DeviceID() id.DeviceID { return g.device }

func (g *Ghost) host() callHost { return g.service }

// localpartGrammar is what the specification allows in new user ids.
var localpartGrammar = regexp.MustCompile(`^[a-z0-9._=/+-]+$`)

// Ghost returns the ghost with that localpart, complete: the user registered,
// its device made, device keys, one-time keys and a fallback key published,
// the display name set. All of it survives a restart; asking again finds what
// is there and repairs what is not. The localpart gets the configured prefix
// if it lacks it.
func (s *Service) Ghost(ctx context.Context, localpart, displayName string) (*Ghost, error) {
	if !strings.HasPrefix(localpart, s.cfg.GhostPrefix) {
		localpart = s.cfg.GhostPrefix + localpart
	}
	user := id.NewUserID(localpart, s.cfg.Domain)
	if !localpartGrammar.MatchString(localpart) || len(user) > id.UserIDMaxLength {
		return nil, fmt.Errorf("ghost %s: not a valid user id", userName(user))
	}
	release, err := s.making.acquire(ctx, user)
	if err != nil {
		return nil, err
	}
	defer release()
	g, err := s.ghost(ctx, user, localpart)
	if err != nil {
		return nil, fmt.Errorf("ghost %s: %w", userName(user), tidy(err))
	}
	if err := g.Rename(ctx, displayName); err != nil {
		return nil, err
	}
	if err := g.picture(ctx, s.cfg.GhostAvatar); err != nil {
		s.log.Warn("ghost has no picture", "ghost", userName(user), "err", tidy(err))
	}
	return g, nil
}

// ghost finds or makes the ghost; its caller holds the lock of the user.
func (s *Service) ghost(ctx context.Context, user id.UserID, localpart string) (*Ghost, error) {
	if s.ctx.Err() != nil {
		return nil, errClosed
	}
	g := s.knownGhost(user)
	if g == nil || !g.touch() {
		g = nil
		device, err := s.store.GhostDevice(ctx, s.rowOf(user))
		if err != nil {
			return nil, fmt.Errorf("look up device: %w", err)
		}
		if device != "" {
			if g, err = s.newGhost(ctx, user, device); err != nil {
				return nil, err
			}
		}
	}
	if g != nil {
		err := g.keys.check(ctx)
		if err == nil {
			s.keep(g)
			return g, nil
		}
		if !errors.Is(err, errDeviceUnusable) {
			return nil, err
		}
		s.log.Warn("ghost needs a new device", "ghost", userName(user), "device", g.device, "err", tidy(err))
		s.abandon(ctx, g)
	}
	g, err := s.makeGhost(ctx, user, localpart)
	if err != nil {
		return nil, err
	}
	s.keep(g)
	return g, nil
}

func (s *Service) knownGhost(user id.UserID) *Ghost {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ghosts[user]
}

// keep remembers a ghost and forgets those nobody needs. Each phone that ever
// called would stay otherwise.
func (s *Service) keep(g *Ghost) {
	s.mu.Lock()
	s.ghosts[g.user] = g
	all := slices.Collect(maps.Values(s.ghosts))
	s.mu.Unlock()
	s.forgetIdle(all, time.Now())
}

const (
	// idleLife is how long a ghost without a conference is kept at hand:
	// who calls again soon is answered without reading olm's tables.
	idleLife = 30 * time.Minute

	// maxGhosts is how many are kept; beyond that idleLife is idleLeast.
	maxGhosts = 256
	idleLeast = time.Minute
)

func (s *Service) forgetIdle(ghosts []*Ghost, now time.Time) {
	life := idleLife
	if len(ghosts) > maxGhosts {
		life = idleLeast
	}
	for _, g := range ghosts {
		if !g.forget(now.Add(-life)) {
			continue
		}
		s.mu.Lock()
		if s.ghosts[g.user] == g {
			delete(s.ghosts, g.user)
		}
		s.mu.Unlock()
		g.keys.machine.Destroy()
	}
}

// touch says that the ghost is needed now; false means that it is too late.
func (g *Ghost) touch() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used = time.Now()
	return !g.forgotten
}

// forget ends the life of a Ghost that has had nothing to do since then, and
// says whether it did. The user and its device stay as they are.
func (g *Ghost) forget(since time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.forgotten || len(g.memberships) > 0 || g.poller != nil || !g.used.Before(since) || g.outbox.busy() {
		return false
	}
	g.forgotten = true
	return true
}

// newGhost builds the ghost around a device that is thought to exist.
func (s *Service) newGhost(ctx context.Context, user id.UserID, device id.DeviceID) (*Ghost, error) {
	asUser, err := s.client(user)
	if err != nil {
		return nil, err
	}
	asSelf, err := s.client(user)
	if err != nil {
		return nil, err
	}
	asSelf.DeviceID, asSelf.SetAppServiceDeviceID = device, true
	g := &Ghost{
		service: s, log: s.log.With("ghost", userName(user)), user: user, device: device,
		asUser: asUser, asSelf: asSelf, calling: newSlot(), used: time.Now(),
	}
	g.outbox.ghost, g.strangers.ghost, g.nudger.ghost = g, g, g
	if g.keys, err = newKeyring(ctx, s, asSelf, g.log); err != nil {
		return nil, fmt.Errorf("load olm account: %w", err)
	}
	return g, nil
}

// makeGhost registers the user and gives it a new device with new keys. The
// device's name in the store comes first: should we die on the way, the next
// try finds a device without keys and makes another.
func (s *Service) makeGhost(ctx context.Context, user id.UserID, localpart string) (*Ghost, error) {
	if err := s.registerUser(ctx, localpart); err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	device := id.DeviceID("TL" + rand.Text()[:10])
	row := s.rowOf(user)
	if err := s.store.SaveGhostDevice(ctx, row, device); err != nil {
		return nil, fmt.Errorf("save device: %w", err)
	}
	// A token of another device's inbox means nothing to this one.
	if err := s.store.SaveSyncToken(ctx, row, ""); err != nil {
		return nil, fmt.Errorf("save sync token: %w", err)
	}
	g, err := s.newGhost(ctx, user, device)
	if err != nil {
		return nil, err
	}
	if err := g.asUser.CreateDeviceMSC4190(ctx, device, "Phone bridge"); err != nil {
		return nil, fmt.Errorf("make device: %w", err)
	}
	// CreateDeviceMSC4190 turns the client into one that acts as the device.
	g.asUser.DeviceID, g.asUser.SetAppServiceDeviceID = "", false
	if err := g.keys.publish(ctx); err != nil {
		return nil, fmt.Errorf("publish keys: %w", err)
	}
	s.metrics.GhostsCreated.Add(1)
	return g, nil
}

// abandon gives up a device that cannot be used any more. Keys of a device
// must never change (clients keep the first ones they saw), so the only way
// on is another device.
func (s *Service) abandon(ctx context.Context, g *Ghost) {
	g.deviceGone()
	if err := g.asUser.DeleteDevice(ctx, g.device, &mautrix.ReqDeleteDevice[any]{}); err != nil && !isNotFound(err) {
		s.log.Warn("old device of ghost stays behind", "ghost", userName(g.user), "device", g.device, "err", tidy(err))
	}
}

// deviceGone ends what the ghost is doing: it cannot be reached any more.
func (g *Ghost) deviceGone() {
	g.mu.Lock()
	first := !g.gone
	g.gone = true
	memberships := slices.Clone(g.memberships)
	g.mu.Unlock()
	if !first {
		return
	}
	s := g.service
	s.mu.Lock()
	if s.ghosts[g.user] == g {
		delete(s.ghosts, g.user)
	}
	s.mu.Unlock()
	for _, m := range memberships {
		m.deliverState(nil, CallState{ConfID: m.Info().ConfID, Out: true})
	}
	if g.keys.megolm != nil {
		s.secretary.wake()
	}
}

// Rename sets the display name unless the homeserver has it already: every
// change is an event in each of the ghost's rooms.
func (g *Ghost) Rename(ctx context.Context, name string) error {
	g.mu.Lock()
	known := g.name
	g.mu.Unlock()
	if name == "" || name == known {
		return nil
	}
	if err := setName(ctx, g.asUser, name); err != nil {
		return fmt.Errorf("ghost %s: set display name: %w", userName(g.user), tidy(err))
	}
	g.mu.Lock()
	g.name = name
	g.mu.Unlock()
	return nil
}

// picture sets the avatar unless the homeserver has it already.
func (g *Ghost) picture(ctx context.Context, avatar string) error {
	g.mu.Lock()
	known := g.avatar
	g.mu.Unlock()
	if avatar == "" || avatar == known {
		return nil
	}
	uri, err := id.ParseContentURI(avatar)
	if err != nil {
		return fmt.Errorf("picture: %w", err)
	}
	current, err := g.asUser.GetOwnAvatarURL(ctx)
	if err != nil && !isNotFound(err) {
		return err
	}
	if current != uri {
		if err := g.asUser.SetAvatarURL(ctx, uri); err != nil {
			return err
		}
	}
	g.mu.Lock()
	g.avatar = avatar
	g.mu.Unlock()
	return nil
}

// setName sets a user's display name if it is another one.
func setName(ctx context.Context, client *mautrix.Client, name string) error {
	current, err := client.GetOwnDisplayName(ctx)
	if err != nil && !isNotFound(err) {
		return err
	}
	if current != nil && current.DisplayName == name {
		return nil
	}
	return client.SetDisplayName(ctx, name)
}

// close ends the ghost's poller.
func (g *Ghost) close() {
	g.mu.Lock()
	p := g.poller
	g.poller = nil
	g.mu.Unlock()
	if p != nil {
		p.stop()
	}
	g.keys.machine.Destroy()
}

// begin adds a conference and sees to it that there is a poller.
func (g *Ghost) begin(ctx context.Context, m conference) error {
	if err := g.calling.acquire(ctx); err != nil {
		return err
	}
	defer g.calling.release()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.forgotten {
		return errGhostForgotten
	}
	g.memberships = append(g.memberships, m)
	if g.poller == nil {
		g.poller = startPoller(g)
	}
	return nil
}

// finish removes a conference, and stops the poller with the last one. The
// poller first: what it has taken from the homeserver is still delivered.
func (g *Ghost) finish(m conference) {
	g.calling <- struct{}{}
	defer g.calling.release()
	others := func(c conference) bool { return c != m }
	g.mu.Lock()
	var p *poller
	if !slices.ContainsFunc(g.memberships, others) {
		p, g.poller = g.poller, nil
	}
	g.mu.Unlock()
	if p != nil {
		p.stop()
	}
	g.routing.Lock() // waits for a delivery under way
	defer g.routing.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.memberships = slices.DeleteFunc(g.memberships, func(c conference) bool { return c == m })
	g.used = time.Now()
}

// conferences returns the memberships the ghost has now.
func (g *Ghost) conferences() []conference {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.memberships)
}

// ErrGhostBusy says that a ghost is in the room's call already: a ghost has one
// device, so it stands for one phone per room.
var ErrGhostBusy = errors.New("the ghost is in this room's call already")

// errGhostForgotten says that a Ghost was held too long without being in a
// call, or has lost its device; Service.Ghost makes another.
var errGhostForgotten = errors.New("the ghost was idle for too long or lost its device, and must be asked for again")

func (g *Ghost) isIn(room id.RoomID) bool {
	return slices.ContainsFunc(g.conferences(), func(c conference) bool { return c.Info().Room == room })
}

// isNotFound says whether the homeserver knows no such thing.
func isNotFound(err error) bool { return errors.Is(err, mautrix.MNotFound) }

// isUnknownDevice says whether the homeserver does not know the ghost's
// device: M_UNKNOWN_DEVICE, with a prefix before the MSC was merged.
func isUnknownDevice(err error) bool {
	var response mautrix.HTTPError
	return errors.As(err, &response) && response.RespError != nil &&
		strings.HasSuffix(response.RespError.ErrCode, "M_UNKNOWN_DEVICE")
}

// isTransient says whether the same request may succeed later.
func isTransient(err error) bool {
	var response mautrix.HTTPError
	if !errors.As(err, &response) || response.Response == nil {
		return true // no answer at all
	}
	status := response.Response.StatusCode
	return status >= 500 || status == 429
}

// retryAfter returns how long the homeserver asks us to wait, 0 if it does not.
func retryAfter(err error) time.Duration {
	var response mautrix.HTTPError
	if !errors.As(err, &response) || response.RespError == nil {
		return 0
	}
	ms, _ := response.RespError.ExtraData["retry_after_ms"].(float64)
	return min(time.Duration(ms)*time.Millisecond, time.Minute)
}
