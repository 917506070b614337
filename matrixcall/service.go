package matrixcall

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.mau.fi/util/dbutil"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/sql_store_upgrade"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Config says which homeserver the service belongs to and who it is there.
// The tokens and names are those of the registration file.
type Config struct {
	HomeserverURL string // where the client-server API answers, e.g. http://localhost:8008
	Domain        string // the part of user ids behind the colon
	ASToken       string
	HSToken       string
	ID            string // the registration's id
	BotLocalpart  string // the user who invites ghosts and speaks for the bridge
	BotName       string // its display name; "" leaves it as it is
	GhostAvatar   string // the picture of all ghosts, an mxc:// address; "" leaves it as it is
	GhostPrefix   string // how the localparts of all ghosts begin, e.g. _sip_
	Node          string // names the place of this process among several; the bot has a device at each

	// AllowPlain lets call messages be sent to and taken from devices
	// without olm. matrix-js-sdk since version 37 speaks no other way.
	AllowPlain bool

	ICE ICEConfig

	// Transport carries all requests to the homeserver; nil means a pool
	// of connections made for many pollers.
	Transport http.RoundTripper
}

// Store is what the service remembers beside olm's tables. Its methods may be
// called from many goroutines.
type Store interface {
	// GhostDevice returns the ghost's device, "" when it has none yet.
	GhostDevice(ctx context.Context, user id.UserID) (id.DeviceID, error)
	SaveGhostDevice(ctx context.Context, user id.UserID, device id.DeviceID) error
	// SyncToken returns how far the ghost's to-device messages were read,
	// "" when they never were.
	SyncToken(ctx context.Context, user id.UserID) (string, error)
	SaveSyncToken(ctx context.Context, user id.UserID, token string) error
	// MarkTransaction remembers a transaction and says whether it is new.
	MarkTransaction(ctx context.Context, txnID string) (fresh bool, err error)
	// Write writes something of olm's tables. While the database is away it
	// is done later, after what waits already; of several writes with one
	// name that wait only the last. An error says that it will not be done.
	Write(ctx context.Context, name string, do func(context.Context) error) error
	// Away says whether the database does not answer.
	Away() bool
}

// Options are what the owner of a service may want to hear. All of it may be
// nil; what is there must not block and must not call back.
type Options struct {
	OnMessage   func(RoomMessage)
	OnReaction  func(RoomReaction)
	OnInvite    func(GhostInvite)
	OnEncrypted func(RoomSecret)

	// Reads says whether what a user says in a room may count. The encrypted
	// messages of others wait for their keys in a few places of their own.
	Reads func(user id.UserID, room id.RoomID) bool
}

// Service is the application service. Its methods may be called from many
// goroutines.
type Service struct {
	cfg     Config
	store   Store
	db      *dbutil.Database
	opts    Options
	log     *slog.Logger
	metrics Metrics
	engine  *engine
	bot     *mautrix.Client
	owner   *mautrix.Client // acts as nobody: as the application service itself
	http    *http.Client

	// ctx ends with Close; everything that runs on its own hangs on it.
	ctx  context.Context
	stop context.CancelCauseFunc
	wg   sync.WaitGroup

	kicker    *kicker
	tracker   *tracker
	rooms     *roomQueues
	seen      seenEvents
	order     transactionOrder
	directory *directory
	secretary *secretary
	claims    claims

	// ghostNotices are the notices a ghost has sent in the bot's place.
	ghostNotices lockedMap[id.EventID, *Ghost]
	turn         turnCache
	states       keyedLocks[stateSlot]

	making   keyedLocks[id.UserID]
	joining  keyedLocks[id.RoomID]
	session  string        // makes transaction ids differ from those of earlier runs
	requests atomic.Uint64 // sendToDevice requests of this run
	sliding  slidingSync

	mu       sync.Mutex // guards the fields below
	closed   bool       // nothing may be spawned any more
	ghosts   map[id.UserID]*Ghost
	attached map[conference]*Ghost
}

// errClosed is the cause of everything that ends because the service does.
var errClosed = errors.New("matrix service closed")

// New makes a service and brings the olm tables of cryptoDB up to date. It
// does not talk to the homeserver yet.
func New(cfg Config, store Store, cryptoDB *dbutil.Database, opts Options, log *slog.Logger) (*Service, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	transport := cfg.Transport
	if transport == nil {
		pool := http.DefaultTransport.(*http.Transport).Clone()
		// One connection per poller stays open; the default keeps two.
		pool.MaxIdleConns, pool.MaxIdleConnsPerHost = 0, 512
		transport = pool
	}
	ctx, stop := context.WithCancelCause(context.Background())
	s := &Service{
		cfg: cfg, store: store, db: cryptoDB, opts: opts, log: log,
		http: &http.Client{Transport: newSendGate(transport), Timeout: 40 * time.Second},
		ctx:  ctx, stop: stop,
		session: rand.Text()[:12],
		ghosts:  make(map[id.UserID]*Ghost), attached: make(map[conference]*Ghost),
	}
	s.kicker = newKicker(s)
	s.tracker = newTracker(s)
	s.directory = newDirectory(&s.metrics)
	s.secretary = newSecretary(s)
	s.rooms = newRoomQueues(s)
	var err error
	if s.bot, err = s.client(id.NewUserID(cfg.BotLocalpart, cfg.Domain)); err != nil {
		return nil, err
	}
	if s.owner, err = s.client(s.bot.UserID); err != nil {
		return nil, err
	}
	s.owner.SetAppServiceUserID = false
	tables := cryptoDB.Child(sql_store_upgrade.VersionTableName, sql_store_upgrade.Table, nil)
	if err := tables.Upgrade(ctx); err != nil {
		return nil, fmt.Errorf("upgrade olm tables: %w", err)
	}
	if s.engine, err = newEngine(cfg.ICE, log); err != nil {
		return nil, err
	}
	return s, nil
}

func (c Config) check() error {
	var missing []string
	for _, field := range []struct{ name, value string }{
		{"homeserver address", c.HomeserverURL},
		{"homeserver domain", c.Domain},
		{"as_token", c.ASToken},
		{"hs_token", c.HSToken},
		{"id", c.ID},
		{"bot", c.BotLocalpart},
		{"ghost_prefix", c.GhostPrefix},
	} {
		if field.value == "" {
			missing = append(missing, field.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("matrix configuration lacks %s", strings.Join(missing, ", "))
	}
	if strings.HasPrefix(c.BotLocalpart, c.GhostPrefix) {
		return fmt.Errorf("the bot %q must not begin like a ghost (%q)", c.BotLocalpart, c.GhostPrefix)
	}
	if address, err := url.Parse(c.HomeserverURL); err != nil || address.Host == "" || (address.Scheme != "http" && address.Scheme != "https") {
		return fmt.Errorf("homeserver address %q is not an http or https URL", c.HomeserverURL)
	}
	return nil
}

// client makes a client that acts as user, without a device.
func (s *Service) client(user id.UserID) (*mautrix.Client, error) {
	client, err := mautrix.NewClient(s.cfg.HomeserverURL, user, s.cfg.ASToken)
	if err != nil {
		return nil, fmt.Errorf("matrix client for %s: %w", hideDigits(user.String()), err)
	}
	client.Client = s.http
	client.Log = zerologTo(s.log, slog.LevelDebug)
	client.UserAgent = "trunkline"
	client.SetAppServiceUserID = true
	client.DefaultHTTPRetries = 3
	client.DefaultHTTPBackoff = 500 * time.Millisecond
	client.MaxHTTPBackoff = 8 * time.Second
	return client, nil
}

// Start makes sure that the homeserver is there, knows this application
// service and reaches it, and that the bot exists. It waits for a homeserver
// that is not up yet and returns an error when waiting cannot help. The
// service's HTTPHandler must be served before.
func (s *Service) Start(ctx context.Context) error {
	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"ask for versions", s.checkVersions},
		{"authenticate", s.checkIdentity},
		{"register the bot", s.registerBot},
		{"ping", s.ping},
	}
	s.log.Info("asking the homeserver", "homeserver", s.cfg.HomeserverURL)
	for _, step := range steps {
		if err := s.retry(ctx, step.name, step.run); err != nil {
			return fmt.Errorf("homeserver %s: %s: %w", s.cfg.HomeserverURL, step.name, tidy(err))
		}
	}
	s.secretary.begin()
	s.secretary.resume()
	s.log.Info("matrix side is ready", "homeserver", s.cfg.HomeserverURL, "bot", s.bot.UserID)
	return nil
}

// Close ends all pollers and queues and waits for them. Memberships should
// have left before.
func (s *Service) Close() {
	s.stop(errClosed)
	s.mu.Lock()
	s.closed = true
	ghosts := make([]*Ghost, 0, len(s.ghosts))
	for _, g := range s.ghosts {
		ghosts = append(ghosts, g)
	}
	s.mu.Unlock()
	for _, g := range ghosts {
		g.close()
	}
	s.wg.Wait()
	if err := s.engine.Close(); err != nil {
		s.log.Warn("close engine", "err", tidy(err))
	}
	s.http.CloseIdleConnections()
}

// spawn runs work until it returns; Close waits for it. After Close it runs
// nothing and says so.
func (s *Service) spawn(work func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.wg.Go(work)
	}
	return !s.closed
}

// storeAway returns why olm's database does not answer, nil if it does.
func (s *Service) storeAway(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	if err := s.db.RawDB.PingContext(ctx); err != nil {
		return fmt.Errorf("olm's database does not answer: %w", err)
	}
	return nil
}

// storePatience is how long the database may take to answer a ping.
const storePatience = 2 * time.Second

// Metrics returns the counters of the service.
func (s *Service) Metrics() *Metrics { return &s.metrics }

// Bot returns the user id of the bot.
func (s *Service) Bot() id.UserID { return s.bot.UserID }

// OwnGhost says whether user is a ghost of this bridge.
func (s *Service) OwnGhost(user id.UserID) bool {
	localpart, domain, found := strings.Cut(strings.TrimPrefix(string(user), "@"), ":")
	return found && domain == s.cfg.Domain && strings.HasPrefix(localpart, s.cfg.GhostPrefix)
}

func (s *Service) rtcEngine() *engine { return s.engine }

// retry runs step until it succeeds, ctx ends or the error is one that will
// not go away by waiting.
func (s *Service) retry(ctx context.Context, name string, step func(context.Context) error) error {
	for attempt := 0; ; attempt++ {
		err := step(ctx)
		var final *permanentError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return cmp.Or(context.Cause(ctx), err)
		case errors.As(err, &final):
			return final
		}
		wait := backoff(attempt, 500*time.Millisecond, 10*time.Second)
		s.log.Warn("the homeserver cannot be reached or refuses; phones are not served until it does", "step", name, "err", tidy(err), "again_in", wait)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// ErrRefused is what Start returns when waiting does not cure it: the homeserver does not know us, or not as we are.
var ErrRefused = errors.New("the homeserver refuses us")

// permanentError marks an error that waiting does not cure.
type permanentError struct{ err error }

func (e *permanentError) Error() string   { return e.err.Error() }
func (e *permanentError) Unwrap() []error { return []error{e.err, ErrRefused} }

func permanent(format string, args ...any) error { return &permanentError{fmt.Errorf(format, args...)} }

func (s *Service) checkVersions(ctx context.Context) error {
	// Without a token: whether that is right is the next question.
	anybody, err := mautrix.NewClient(s.cfg.HomeserverURL, "", "")
	if err != nil {
		return permanent("%w", err)
	}
	anybody.Client = s.http
	versions, err := anybody.Versions(mautrix.WithMaxRetries(ctx, 0))
	if err != nil {
		return err
	}
	if len(versions.Versions) == 0 {
		return permanent("%s/_matrix/client/versions is not answered like a Matrix homeserver would", s.cfg.HomeserverURL)
	}
	s.sliding.announced.Store(versions.UnstableFeatures[slidingFeature])
	return nil
}

func (s *Service) checkIdentity(ctx context.Context) error {
	// Without user_id the homeserver says who the token's owner is: the
	// sender_localpart of the registration, which need not be the bot.
	who, err := s.owner.Whoami(mautrix.WithMaxRetries(ctx, 0))
	switch {
	case errors.Is(err, mautrix.MUnknownToken):
		return permanent("the homeserver does not know as_token: put the registration file into app_service_config_files and restart the homeserver: %w", err)
	case errors.Is(err, mautrix.MForbidden):
		return permanent("the homeserver refuses as_token: %w", err)
	case err != nil:
		return err
	}
	if _, domain, err := who.UserID.Parse(); err != nil || domain != s.cfg.Domain {
		return permanent("homeserver domain is %q in the configuration, but the homeserver's users end in %q", s.cfg.Domain, who.UserID.Homeserver())
	}
	return nil
}

func (s *Service) registerBot(ctx context.Context) error {
	if err := s.registerUser(ctx, s.cfg.BotLocalpart); err != nil || s.cfg.BotName == "" {
		return err
	}
	return setName(ctx, s.bot, s.cfg.BotName)
}

// registerUser makes sure that a user of ours exists.
func (s *Service) registerUser(ctx context.Context, localpart string) error {
	_, _, err := s.owner.Register(mautrix.WithMaxRetries(ctx, 0), &mautrix.ReqRegister[any]{
		Type: mautrix.AuthTypeAppservice, Username: localpart, InhibitLogin: true,
	})
	switch {
	case err == nil, errors.Is(err, mautrix.MUserInUse):
		return nil
	case errors.Is(err, mautrix.MExclusive), errors.Is(err, mautrix.MInvalidUsername):
		return permanent("the registration file does not cover user %q: its namespaces.users must: %w", hideDigits(localpart), err)
	case errors.Is(err, mautrix.MForbidden), errors.Is(err, mautrix.MUnknownToken):
		return permanent("%w", err)
	}
	return err
}

// maxPings is how often the homeserver may fail to reach us before Start
// gives up: about half a minute.
const maxPings = 8

func (s *Service) ping(ctx context.Context) error {
	var err error
	for attempt := range maxPings {
		_, err = s.owner.AppservicePing(ctx, s.cfg.ID, s.bot.TxnID())
		switch {
		case err == nil:
			return nil
		case errors.Is(err, mautrix.MUnrecognized):
			s.log.Warn("homeserver cannot ping application services; it may not reach the bridge")
			return nil
		case errors.Is(err, mautrix.MURLNotSet):
			return permanent("the registration file has no url: the homeserver cannot reach the bridge: %w", err)
		case errors.Is(err, mautrix.MForbidden):
			return permanent("the homeserver knows another id than %q for as_token: %w", s.cfg.ID, err)
		case errors.Is(err, mautrix.MBadStatus) && refusedHere(err):
			return permanent("hs_token in the registration file the homeserver has read differs from the configuration")
		}
		if attempt < maxPings-1 {
			wait := backoff(attempt, 500*time.Millisecond, 8*time.Second)
			s.log.Warn("homeserver does not reach the bridge yet", "err", tidy(err), "again_in", wait)
			if err := sleep(ctx, wait); err != nil {
				return err
			}
		}
	}
	return permanent("the homeserver cannot reach the bridge at the url in the registration file: %w", err)
}

// refusedHere says whether a ping came back and we have refused it: the
// homeserver tells the status and body of our answer.
func refusedHere(err error) bool {
	var response mautrix.HTTPError
	if !errors.As(err, &response) || response.RespError == nil {
		return false
	}
	status, _ := response.RespError.ExtraData["status"].(float64)
	return status == http.StatusForbidden || strings.Contains(response.RespError.Err, badToken)
}

// Notice says something in the room, as the bot. Where the bot is not in the
// room and cannot be brought in by ghost, which is, the ghost says it; ghost may
// be nil.
func (s *Service) Notice(ctx context.Context, room id.RoomID, ghost *Ghost, text string) error {
	_, err := s.NoticeID(ctx, room, ghost, text)
	return err
}

// NoticeID is Notice for who wants to know reactions to it: it returns the
// event's id.
func (s *Service) NoticeID(ctx context.Context, room id.RoomID, ghost *Ghost, text string) (id.EventID, error) {
	return s.announce(ctx, room, ghost, notice{text: text})
}

// HarmlessNotice is Notice of what tells nobody's business: where messages are
// encrypted and that is not possible, it is said in clear all the same.
func (s *Service) HarmlessNotice(ctx context.Context, room id.RoomID, ghost *Ghost, text string) error {
	_, err := s.announce(ctx, room, ghost, notice{text: text, harmless: true})
	return err
}

func (s *Service) announce(ctx context.Context, room id.RoomID, ghost *Ghost, n notice) (id.EventID, error) {
	said, err := s.say(ctx, s.bot, room, n)
	if isForbidden(err) && s.bringBot(ctx, room, ghost) {
		said, err = s.say(ctx, s.bot, room, n)
	}
	if isForbidden(err) && ghost != nil {
		if said, err = s.say(ctx, ghost.asUser, room, n); err == nil {
			s.ghostNotices.set(said, ghost)
		}
	}
	if err != nil {
		return "", fmt.Errorf("notice in %s: %w", room, tidy(err))
	}
	return said, nil
}

// EditNotice lets a notice say something else; one that a ghost has sent, once.
// Clients that know no edits show the new text below.
func (s *Service) EditNotice(ctx context.Context, room id.RoomID, edited id.EventID, text string) error {
	author := s.bot // clients take edits only from who wrote it
	if ghost := s.ghostNotices.get(edited); ghost != nil {
		author = ghost.asUser
		s.ghostNotices.remove(edited)
	}
	if _, err := s.say(ctx, author, room, notice{text: text, edits: edited}); err != nil {
		return fmt.Errorf("edit notice in %s: %w", room, tidy(err))
	}
	return nil
}

// notice is something that is said in a room.
type notice struct {
	text     string
	edits    id.EventID // the one that shall say this instead; "" = none
	harmless bool
}

func (n notice) content() map[string]any {
	content := map[string]any{"msgtype": "m.notice", "body": n.text, "m.mentions": struct{}{}}
	if n.edits != "" {
		content["m.new_content"] = map[string]any{"msgtype": "m.notice", "body": n.text, "m.mentions": struct{}{}}
		content["body"] = "* " + n.text
		content["m.relates_to"] = map[string]any{"rel_type": event.RelReplace, "event_id": n.edits}
	}
	return content
}

// unsaid is said in clear in place of what must not be. It can be reacted to like that.
const unsaid = "I have something to say here, but could not encrypt it, so I keep it to myself. Reactions to this count as they would to that."

// inClear is what may be said of the notice where it cannot be encrypted. Of an edit that is nothing, for
// clients take none in clear of what is encrypted.
func (n notice) inClear() (notice, bool) {
	if !n.harmless {
		n.text = unsaid
	}
	return n, n.edits == ""
}

// say sends a notice, encrypted where messages are.
func (s *Service) say(ctx context.Context, as *mautrix.Client, room id.RoomID, n notice) (id.EventID, error) {
	how, err := s.secretary.secret(ctx, as, room)
	if err != nil {
		return "", err
	}
	kind, content := eventMessage, any(n.content())
	if how != nil {
		sealed, err := (*event.EncryptedEventContent)(nil), errGhostsWriteClear
		if as == s.bot {
			sealed, err = s.secretary.seal(ctx, room, n.content())
		}
		kind, content = event.EventEncrypted, any(sealed)
		if isForbidden(err) {
			return "", err // the bot is not there: others may speak for it
		}
		if err != nil {
			s.metrics.NoticesUnsealed.Add(1)
			s.log.Warn("a notice cannot be encrypted", "room", room, "err", tidy(err))
			clear, possible := n.inClear()
			if !possible {
				return "", fmt.Errorf("encrypt: %w", err)
			}
			kind, content = eventMessage, any(clear.content())
		} else {
			s.metrics.NoticesSealed.Add(1)
		}
	}
	answer, err := as.SendMessageEvent(ctx, room, kind, content, mautrix.ReqSendEvent{TransactionID: s.transactionID()})
	if err != nil {
		return "", err
	}
	return answer.EventID, nil
}

// bringBot gets the bot into a room: it joins if it may, or after the ghost,
// which is in the room, has invited it.
func (s *Service) bringBot(ctx context.Context, room id.RoomID, ghost *Ghost) bool {
	if _, err := s.bot.JoinRoomByID(ctx, room); err == nil {
		return true
	}
	if ghost == nil {
		return false
	}
	_, err := ghost.asUser.InviteUser(ctx, room, &mautrix.ReqInviteUser{UserID: s.bot.UserID})
	if err == nil {
		_, err = s.bot.JoinRoomByID(ctx, room)
	}
	if err != nil {
		ghost.log.Debug("bot stays outside", "room", room, "err", tidy(err))
	}
	return err == nil
}
