package bridge

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/appservice"
	"maunium.net/go/mautrix/id"

	"trunkline/bridge/command"
	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/bridge/sound"
	"trunkline/db"
	"trunkline/matrixcall"
	"trunkline/sip"
	"trunkline/sockets"
)

const (
	shutdownPatience = 12 * time.Second // legs that take longer are left to the next start
	noticePause      = time.Hour        // between two notices in one room
	refusedPause     = 10 * time.Second // who starts the bridge again at once would have it ask many times a second
	pastLegs         = 50               // ended legs whose traces are kept
	houseKeeping     = time.Minute
)

// Bridge is the whole application. Make it with [New], then [Bridge.Run] it.
type Bridge struct {
	cfg          config.Config
	registration *appservice.Registration
	rules        leg.Rules
	run          string // names this process run as owner of rows
	log          *slog.Logger
	metrics      *metrics
	store        *db.Store
	journal      *db.Journal               // what is written goes through it
	rows         legRows                   // of the store
	lease        claim                     // nil until Run has it
	confirmed    atomic.Pointer[time.Time] // when it was last asked for with success
	matrix       *matrixcall.Service
	phones       *sip.Stack
	sockets      *sockets.Store
	studio       *studio
	routes       *routes
	pins         *pins
	sounds       *sound.Library
	plan         *dialPlan
	vault        *vault
	meter        *meter
	grammar      command.Grammar
	ownTrunks    []config.Trunk  // those of the config; cfg has those of the database, too
	showNumbers  map[string]bool // by trunk
	inBand       map[string]bool // trunks whose phones' keys are heard in their sound
	wideBand     map[string]bool // trunks whose phones may play more than 4 kHz

	ctx  context.Context // of everything that runs; ends when the process should stop
	stop context.CancelCauseFunc
	wg   sync.WaitGroup // legs

	drain     drain
	drains    sync.WaitGroup // awaitEmpty
	suspended chan struct{}  // closed when legs must be let go for the next process
	abandoned chan struct{}  // closed when legs must be let go because another process has them

	performed func(leg.Effect) // hears of each effect that was begun; tests only

	awayPatience  time.Duration // at a stop, with a database that is away
	soundPatience time.Duration // at a start, for resumed calls
	refusedPause  time.Duration // before the end of a process that the homeserver refuses

	stopped atomic.Pointer[killSwitch] // nil = calls are placed

	commands sync.WaitGroup // of rooms; none begins once closing is set
	refusals sync.WaitGroup // of calls that never became legs; waited for once no more can come

	mu        sync.Mutex // guards what follows
	legs      map[leg.ID]*actor
	rooms     map[id.RoomID]*gathering
	past      []*actor                  // the last legs that ended, for their traces
	ghosts    map[string]bool           // localparts in use
	elsewhere []string                  // user ids of ghosts in calls of other processes, as last seen
	told      map[id.RoomID]time.Time   // rooms that were told why phones can't come in, and when
	announced map[id.RoomID][]time.Time // when a room was told of a call
	early     map[id.RoomID]*early      // where reactions are held
	orders    orders
	closing   bool
	ready     bool
}

// gathering is who is in one room's conference, as far as legs need to know.
type gathering struct {
	room id.RoomID
	legs map[*actor]bool // true = answered: a phone that rings is no company
}

// errShutdown is the cause of everything that ends because the process does.
var errShutdown = errors.New("shutting down")

// New opens the database and the sockets, those that kept has from the process before as they are; nil keeps none. Nothing is
// answered before [Bridge.Run].
func New(
	ctx context.Context, cfg config.Config, registration *appservice.Registration, kept *sockets.Store, log *slog.Logger,
) (*Bridge, error) {
	b := &Bridge{
		cfg: cfg, registration: registration, run: rand.Text(), log: log, sockets: kept,
		rules: leg.Rules{
			Setup: cfg.Calls.SetupTimeout, Alone: cfg.Calls.AloneTimeout, Empty: cfg.Calls.EmptyTimeout,
			Longest: cfg.Calls.Longest, Release: leg.DefaultRules().Release,
		},
		studio: newStudio(runtime.GOMAXPROCS(0)), showNumbers: make(map[string]bool), inBand: make(map[string]bool),
		wideBand:  make(map[string]bool),
		ownTrunks: cfg.SIP.Trunks,
		legs:      make(map[leg.ID]*actor), rooms: make(map[id.RoomID]*gathering), ghosts: make(map[string]bool),
		told: make(map[id.RoomID]time.Time), announced: make(map[id.RoomID][]time.Time), early: make(map[id.RoomID]*early),
		abandoned: make(chan struct{}), suspended: make(chan struct{}),
		drain: drain{over: make(chan struct{})}, awayPatience: awayPatience, soundPatience: soundPatience,
		orders: newOrders(), meter: newMeter(),
		grammar: command.Grammar{Prefix: cfg.Commands.Prefix},
	}
	b.ctx, b.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	var err error
	if b.vault, err = newVault(registration.AppToken); err != nil {
		return nil, err
	}
	if b.store, err = db.OpenPatiently(ctx, cfg.Database.Address, log); err != nil {
		return nil, err
	}
	b.rows = b.store
	own := cfg
	err = b.store.Patiently(ctx, func(ctx context.Context) (err error) {
		cfg, err = withStoredTrunks(ctx, own, b.store, b.vault, func(name string, err error) {
			log.Error("something is wrong with a trunk of the database", "trunk", name, "err", err)
		})
		if err != nil {
			return err
		}
		return b.followSwitch(ctx)
	})
	if err != nil {
		return nil, errors.Join(err, b.store.Close())
	}
	b.cfg, b.plan = cfg, newDialPlan(cfg)
	for _, t := range cfg.SIP.Trunks {
		b.showNumbers[t.Name], b.inBand[t.Name] = t.ShowNumbers, t.DTMF == "inband"
		b.wideBand[t.Name] = slices.ContainsFunc(t.Codecs, func(c string) bool { return codecs[c].WideBand() })
	}
	b.journal = db.NewJournal(b.store, b.run, log)
	b.routes, b.pins = newRoutes(cfg, b.store), newPINs(cfg.DialIn, b.store)
	b.sounds = sound.Open(sound.Options{Folders: cfg.DialIn.Sounds})
	b.checkLanguages()
	if cfg.CallsNothing() {
		log.Warn("somebody has the permission to place calls, but no number may be called: set dialling.country, or dialling.allow")
	}
	if kept.Kept() {
		b.refusedPause = refusedPause
	}
	if b.routes.askPINs() { // better now than at the first call
		if _, err := b.pins.key(); err != nil {
			return nil, errors.Join(err, b.store.Close())
		}
	}
	heard := matrixcall.Options{OnMessage: b.message, OnReaction: b.reaction, OnInvite: b.invited, OnEncrypted: b.unreadable, Reads: b.reads}
	if b.matrix, err = matrixcall.New(matrixConfig(cfg, registration, b.node()), b.journal, b.store.Shared(), heard, log); err != nil {
		return nil, errors.Join(fmt.Errorf("set up Matrix side: %w", err), b.store.Close())
	}
	phoneSide, err := sipConfig(cfg)
	if err == nil {
		phoneSide.Sockets = kept
		b.phones, err = sip.New(phoneSide, b, log)
	}
	if err != nil {
		b.matrix.Close()
		return nil, errors.Join(fmt.Errorf("set up phone side: %w", withRemedy("sip.listen", err)), b.store.Close())
	}
	b.metrics = newMetrics(b)
	return b, nil
}

// withRemedy adds to the error of a socket what can be done about it.
func withRemedy(option string, err error) error {
	if remedy := config.SocketRemedy(option, err); remedy != "" {
		return fmt.Errorf("%w; %s", err, remedy)
	}
	return err
}

// Run serves until ctx ends, then ends all legs and returns.
func (b *Bridge) Run(ctx context.Context) error {
	defer b.stop(errShutdown)
	servers, err := b.listenHTTP()
	if err != nil {
		return errors.Join(err, b.close())
	}
	var group sync.WaitGroup
	failed := make(chan error, 10) // one place for each goroutine below
	beginCtx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	startIn := func(group *sync.WaitGroup, what string, f func() error) {
		group.Go(func() {
			if err := f(); err != nil {
				err = fmt.Errorf("%s: %w", what, err)
				failed <- err
				giveUp(err)
			}
		})
	}
	start := func(what string, f func() error) { startIn(&group, what, f) }
	for _, s := range servers {
		start("serve http", s.serve)
	}
	mediaCtx, stopMedia := context.WithCancel(b.ctx)
	group.Go(func() { b.studio.Run(mediaCtx) })
	upkeepCtx, stopUpkeep := context.WithCancel(b.ctx)
	var upkeep sync.WaitGroup // what judges rows by the legs that are there, so it is over before legs are let go
	writesCtx, stopWrites := context.WithCancel(b.ctx)
	start("write to database", func() error { return b.journal.Run(writesCtx) })

	phonesCtx, stopPhones := context.WithCancel(b.ctx)
	orphans, err := b.takeLease(ctx)
	if err == nil {
		start("keep lease", func() error { return b.keepLease(b.ctx, b.matrix.ReadCalls) })
		if err = b.resumeLegs(beginCtx, orphans); err != nil {
			err = cmp.Or(context.Cause(beginCtx), err)
		}
	}
	if err == nil {
		b.sockets.Sweep() // what calls need was asked for
		startIn(&upkeep, "adopt legs", func() error { return b.adoptLegs(upkeepCtx) })
		upkeep.Go(func() { b.keepHouse(upkeepCtx) })
		b.awaitSound(beginCtx)
		// Phones first: those of resumed calls should not wait for the homeserver. New calls get 503 until the bridge is ready.
		start("serve phones", func() error { return b.phones.Run(phonesCtx) })
		// The homeserver may be away for long. Should the lease be lost meanwhile, the resumed calls must be let go at once.
		if err = b.begin(beginCtx); err != nil {
			err = cmp.Or(context.Cause(beginCtx), err)
			b.rest(beginCtx, err)
		}
	}
	if err == nil {
		upkeep.Go(func() { b.watchUsage(upkeepCtx) })
		b.setReady(true)
		b.sockets.Ready()
		b.log.Info("bridge is up", "run", b.run, "sip", b.cfg.SIP.Listen, "trunks", len(b.cfg.SIP.Trunks), "routes", len(b.cfg.Routes),
			"database", databaseName(b.cfg.Database.Address))
		select {
		case <-ctx.Done():
		case err = <-failed:
		case <-b.drain.over:
		}
	}
	b.log.Info("bridge goes down", "cause", cmp.Or(err, context.Cause(ctx), errShutdown))
	b.setReady(false)
	stopUpkeep()
	upkeep.Wait()
	err = b.whyDown(ctx, err, failed)
	b.letGo(err)
	stopWrites()
	stopPhones()
	stopMedia()
	for _, s := range servers {
		s.stop()
	}
	b.stop(errShutdown)
	group.Wait()
	b.commands.Wait()
	b.refusals.Wait()
	b.drains.Wait()
	return errors.Join(err, b.close())
}

// databaseName is an address without its password.
func databaseName(address string) string {
	if u, err := url.Parse(address); err == nil && u.User != nil {
		u.RawQuery = "" // which may have one, too
		return u.Redacted()
	}
	scheme, path, _ := strings.Cut(address, ":")
	if scheme == "sqlite" {
		return path
	}
	return scheme
}

// rest waits before the end of a process that the homeserver refuses, if it is started again at once then. Resumed calls go on meanwhile.
func (b *Bridge) rest(ctx context.Context, refused error) {
	if !errors.Is(refused, matrixcall.ErrRefused) || b.refusedPause == 0 {
		return
	}
	b.log.Error("the homeserver refuses us; the bridge ends, to be started again", "err", refused, "in", b.refusedPause)
	timer := time.NewTimer(b.refusedPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// begin connects the Matrix side and clears up after the process before.
func (b *Bridge) begin(ctx context.Context) error {
	if err := b.matrix.Start(ctx); err != nil {
		return fmt.Errorf("connect to homeserver: %w", err)
	}
	b.flush(flushPatience) // the rows of legs that cannot go on must be gone, else their memberships stay until the next sweep
	if err := b.sweepRooms(ctx); err != nil {
		b.log.Warn("could not sweep rooms", "err", err) // the house-keeping does it again
	}
	return nil
}

// whyDown is what Run's end is to be judged by: nil when it was asked to stop, unless the legs are another process's by now. A process
// that was frozen may be told both as it thaws, or only to stop, so the lease is asked before anything is said to phones and rooms.
func (b *Bridge) whyDown(ctx context.Context, err error, failed <-chan error) error {
	for {
		select {
		case other := <-failed:
			err = errors.Join(err, other)
			continue
		default:
		}
		break
	}
	if b.lease != nil && !errors.Is(err, db.ErrFenced) {
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastQuestion)
		defer cancel()
		if lost := b.lease.Renew(attempt); errors.Is(lost, db.ErrFenced) {
			err = errors.Join(err, lost)
		} else {
			b.journal.Report(lost) // so that it is known now whether the database is away
		}
	}
	if ctx.Err() != nil && !errors.Is(err, db.ErrFenced) {
		return nil
	}
	return err
}

// letGo parts with all legs, as becomes the reason.
func (b *Bridge) letGo(err error) {
	switch {
	case errors.Is(err, db.ErrFenced):
		b.abandonLegs() // they are somebody else's
		return
	case b.cfg.Calls.OnStop == config.StopEnds:
		b.endLegs()
		b.flush(b.awayPatience) // nobody waits for the database any more but us
	default:
		b.awaitDatabase()
		b.suspendLegs()
		b.flush(flushPatience)
	}
}

// endLegs tells every leg to end and waits for it.
func (b *Bridge) endLegs() {
	b.mu.Lock()
	b.closing = true
	for _, a := range b.legs {
		a.tell(leg.Shutdown)
	}
	b.mu.Unlock()
	over := make(chan struct{})
	go func() { b.wg.Wait(); close(over) }() // outlives this function only when legs hang, which ends the process
	select {
	case <-over:
	case <-time.After(shutdownPatience):
		b.log.Error("legs did not end in time; the next start sweeps them")
	}
}

// abandonLegs lets go of every leg without a word to anybody: another process acts on them.
func (b *Bridge) abandonLegs() {
	b.mu.Lock()
	b.closing = true
	b.mu.Unlock()
	close(b.abandoned)
	b.wg.Wait()
}

func (b *Bridge) close() error {
	b.matrix.Close()
	err := b.phones.Close() // it may never have come to run
	if b.lease != nil {
		err = errors.Join(err, b.handOver(), b.lease.Release())
	}
	return errors.Join(err, b.store.Close())
}

func (b *Bridge) isClosing() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closing
}

func (b *Bridge) setReady(ready bool) {
	b.mu.Lock()
	b.ready = ready
	b.mu.Unlock()
}

// Ready tells whether a call that came now could be served.
func (b *Bridge) Ready(ctx context.Context) error {
	b.mu.Lock()
	ready, draining := b.ready, !b.drain.since.IsZero()
	b.mu.Unlock()
	switch {
	case !ready:
		return errors.New("starting or stopping")
	case draining:
		return errors.New("draining")
	case b.journal.Away():
		return db.ErrAway
	}
	return b.store.Ping(ctx)
}

// Invite takes a new call of a phone. It is called by the sip package and does not block.
func (b *Bridge) Invite(call *sip.Call) {
	b.mu.Lock()
	defer b.mu.Unlock()
	away := b.journal.Away()
	going := b.closing || !b.ready || !b.drain.since.IsZero()
	if going || away || len(b.legs) >= b.cfg.Calls.MaxLegs {
		cause := leg.Busy
		switch {
		case going:
			cause = leg.ShuttingDown
		case away:
			cause = leg.NotStored
		}
		b.refusals.Go(func() { b.refuse(call, cause) })
		return
	}
	a := newActor(b, newLegID(), call)
	a.listen()
	b.legs[a.id] = a
	b.wg.Go(func() {
		if !a.route() {
			b.drop(a)
			a.stop(errForgotten)
			return
		}
		a.run()
	})
}

// newLegID names a leg: 60 bits of chance.
func newLegID() leg.ID { return leg.ID(strings.ToLower(rand.Text()[:12])) }

// refuse answers a call that will not be: with the status that fits the cause, and for passing ones when to try again.
func (b *Bridge) refuse(call *sip.Call, cause leg.Cause) {
	code, reason := cause.Refusal()
	q850, text := cause.Q850()
	headers := []string{fmt.Sprintf("Reason: Q.850;cause=%d;text=%q", q850, text)} // RFC 6432
	if code == 503 {
		headers = append(headers, "Retry-After: "+strconv.Itoa(retryAfter))
	}
	b.metrics.refused.WithLabelValues(string(cause)).Inc()
	err := call.Reject(code, reason, headers...)
	if errors.Is(err, sip.ErrState) { // a resumed one of which it was not known that it is up
		err = call.Hangup(sip.Cause{Protocol: "Q.850", Code: q850, Text: text})
	}
	if err != nil {
		b.log.Warn("could not refuse phone", "err", err)
	}
}

// gather enters a leg into its room's conference and tells everybody there how many they are.
func (b *Bridge) gather(a *actor, room id.RoomID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.rooms[room]
	if g == nil {
		g = &gathering{room: room, legs: make(map[*actor]bool)}
		b.rooms[room] = g
	}
	g.legs[a] = a.phase == leg.Talking || a.phase == leg.Resuming
	a.gathered = g
	g.tell()
}

// scatter takes a leg out of its room's conference.
func (b *Bridge) scatter(a *actor) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := a.gathered
	if g == nil {
		return
	}
	a.gathered = nil
	delete(g.legs, a)
	if len(g.legs) == 0 {
		delete(b.rooms, g.room)
	}
	g.tell()
}

// people is told by each membership, and never again while the number stays the same.
func (b *Bridge) people(a *actor, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a.people = n
	select {
	case <-a.counted:
	default:
		close(a.counted)
	}
	if g := a.gathered; g != nil {
		g.tell()
	}
}

// entered notes that a leg is in another phase: one that is answered is company for the others.
func (b *Bridge) entered(a *actor, phase leg.Phase) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a.phase = phase
	up := phase == leg.Talking || phase == leg.Resuming
	if g := a.gathered; g != nil && g.legs[a] != up {
		g.legs[a] = up
		g.tell()
	}
}

// tell puts the number of others to each leg. A ghost may have lost somebody for good whom another one hears, so who sees most
// is right about the people.
func (g *gathering) tell() {
	answered, people := 0, 0
	for a, up := range g.legs {
		people = max(people, a.people)
		if up {
			answered++
		}
	}
	for a, up := range g.legs {
		others := people + answered
		if up {
			others--
		}
		a.tellEvent(leg.Event{Kind: leg.CompanyIs, N: others})
	}
}

// speaks notes that a device began or ceased to speak, as one ghost hears it.
func (b *Bridge) speaks(a *actor, device deviceKey, on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if on {
		a.speaking[device] = true
	} else {
		delete(a.speaking, device)
	}
}

// mutes notes that a device's user muted the microphone, and tells the desk if the phone sits there. Both are one step, as in
// [Bridge.seat]: else the desk might keep what was true before.
func (b *Bridge) mutes(a *actor, device deviceKey, on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if on {
		a.muted[device] = true
	} else {
		delete(a.muted, device)
	}
	if v := a.voice.Load(); v != nil {
		v.PeerMuted(device, on)
	}
}

// seat lets the phone's voice have what comes from the room from now on, and tells the desk who was muted before.
func (b *Bridge) seat(a *actor, v *voice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a.voice.Store(v)
	for device := range a.muted {
		v.PeerMuted(device, true)
	}
}

// unseat forgets what was known of a device's microphone.
func (b *Bridge) unseat(a *actor, device deviceKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(a.speaking, device)
	delete(a.muted, device)
}

// speakers counts the phones and the devices of rooms that are speaking now.
func (b *Bridge) speakers() (phones, devices int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	type speaker struct {
		room   *gathering
		device deviceKey
	}
	distinct := make(map[speaker]bool)
	for _, a := range b.legs {
		if v := a.voice.Load(); v != nil && v.speaks.Load() {
			phones++
		}
		for device := range a.speaking {
			distinct[speaker{a.gathered, device}] = true
		}
	}
	return phones, len(distinct)
}

// errCrowded says that a caller has as many calls at once as one may have.
var errCrowded = errors.New("too many calls of one caller at a time")

// reserveGhost picks a localpart for the caller that no live leg uses, here or in another process. Callers without a number
// share theirs.
func (b *Bridge) reserveGhost(party sip.Caller, trunk string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for turn := range b.cfg.Calls.MaxLegs + len(b.elsewhere) {
		name := ghostLocalpart(b.cfg.AppService.GhostPrefix, b.registration.AppToken, party, trunk, turn)
		if !b.ghosts[name] && !slices.Contains(b.elsewhere, string(id.NewUserID(name, b.cfg.Homeserver.Domain))) {
			b.ghosts[name] = true
			return name, nil
		}
	}
	return "", errCrowded
}

// claimGhost reserves a localpart that a leg had in the process before, and says whether it was free.
func (b *Bridge) claimGhost(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	free := !b.ghosts[name]
	b.ghosts[name] = true
	return free
}

func (b *Bridge) releaseGhost(name string) {
	b.mu.Lock()
	delete(b.ghosts, name)
	b.mu.Unlock()
}

// forget is the end of a leg.
func (b *Bridge) forget(a *actor, cause leg.Cause) {
	b.drop(a)
	if a.dialin.parked {
		b.releaseGhost(a.join.localpart)
	}
	b.metrics.ended.WithLabelValues(string(cause)).Inc()
	a.log.Info("leg ended", "cause", cause, "talk", a.talked().Round(time.Millisecond), "dur", time.Since(a.begun).Round(time.Millisecond),
		"unsent", a.unsent, "lost", a.lost, "concealed", a.concealed)
}

// drop takes the leg off the list and keeps its trace for a while: it is wanted after something went wrong.
func (b *Bridge) drop(a *actor) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.legs, a.id)
	b.past = append(b.past, a)
	if len(b.past) > pastLegs {
		b.past = b.past[1:]
	}
}

// tellOnce tells a room why phones can't come in, or be called, unless it was told lately: a caller who tries all day is no reason to fill
// the room with notices. What could not be said may be tried at the next call. It must be harmless, see [matrixcall.Service.HarmlessNotice].
func (b *Bridge) tellOnce(ctx context.Context, room id.RoomID, ghost *matrixcall.Ghost, text string) error {
	b.mu.Lock()
	last := b.told[room]
	if !last.IsZero() && time.Since(last) < noticePause {
		b.mu.Unlock()
		return nil
	}
	b.told[room] = time.Now() // calls that come while it is being said need not say it, too
	b.mu.Unlock()
	err := b.matrix.HarmlessNotice(ctx, room, ghost, text)
	if err != nil {
		b.mu.Lock()
		b.told[room] = last
		b.mu.Unlock()
	}
	return err
}

// forgetNotices drops what tellOnce and mayAnnounce need not know any more.
func (b *Bridge) forgetNotices(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.orders.forget(now)
	maps.DeleteFunc(b.told, func(_ id.RoomID, at time.Time) bool { return now.Sub(at) >= noticePause })
	maps.DeleteFunc(b.announced, func(_ id.RoomID, at []time.Time) bool { return now.Sub(at[len(at)-1]) >= ringNoticePeriod })
}

// keepHouse sweeps what legs could not clear up themselves, and forgets what is old.
func (b *Bridge) keepHouse(ctx context.Context) {
	ticker := time.NewTicker(houseKeeping)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		b.forgetNotices(time.Now())
		if b.journal.Away() {
			continue
		}
		if err := b.sweepRooms(ctx); err != nil && ctx.Err() == nil {
			b.log.Warn("could not sweep rooms", "err", err)
		}
		if err := b.followSwitch(ctx); err != nil && ctx.Err() == nil {
			b.log.Warn("could not ask whether calls to telephones are switched off", "err", err)
		}
		if err := b.store.Forget(ctx, time.Now().Add(-b.cfg.Calls.KeepHistory), time.Now()); err != nil && ctx.Err() == nil {
			b.log.Warn("could not forget what is old", "err", err)
		}
	}
}

// server is one HTTP server of the bridge.
type server struct {
	http.Server
	listener net.Listener
}

func (s *server) serve() error {
	if err := s.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *server) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		_ = s.Close() // what is still open is cut off
	}
}
