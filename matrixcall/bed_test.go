package matrixcall

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pion/transport/v4/vnet"
	"github.com/rs/zerolog"
	"go.mau.fi/util/dbutil"
	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/appservice"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
	_ "modernc.org/sqlite"

	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/postgres"
	"trunkline/internal/testbed/synapse"
)

// memory is a Store that forgets with the test, not with the service.
type memory struct {
	mu      sync.Mutex
	devices map[id.UserID]id.DeviceID
	tokens  map[id.UserID]string
	txns    map[string]bool

	patient bool                          // set before use
	waiting []func(context.Context) error // guarded by mu
}

func newMemory() *memory {
	return &memory{devices: map[id.UserID]id.DeviceID{}, tokens: map[id.UserID]string{}, txns: map[string]bool{}}
}

func (m *memory) GhostDevice(_ context.Context, user id.UserID) (id.DeviceID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.devices[user], nil
}

func (m *memory) SaveGhostDevice(_ context.Context, user id.UserID, device id.DeviceID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.devices[user] = device
	return nil
}

func (m *memory) SyncToken(_ context.Context, user id.UserID) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tokens[user], nil
}

func (m *memory) SaveSyncToken(_ context.Context, user id.UserID, token string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[user] = token
	return nil
}

func (m *memory) MarkTransaction(_ context.Context, txnID string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fresh := !m.txns[txnID]
	m.txns[txnID] = true
	return fresh, nil
}

// Write lets a patient memory's writes wait when they fail.
func (m *memory) Write(ctx context.Context, _ string, do func(context.Context) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	if len(m.waiting) == 0 {
		err = do(ctx)
	}
	if m.patient && (err != nil || len(m.waiting) > 0) {
		m.waiting, err = append(m.waiting, do), nil
	}
	return err
}

func (m *memory) Away() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.waiting) > 0
}

// catchUp does what waits.
func (m *memory) catchUp(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ; len(m.waiting) > 0; m.waiting = m.waiting[1:] {
		if err := m.waiting[0](ctx); err != nil {
			return err
		}
	}
	return nil
}

// openOlm opens an empty database for olm.
func openOlm(t testing.TB) *dbutil.Database {
	t.Helper()
	path := filepath.Join(t.TempDir(), "olm.db")
	raw, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)&_pragma=foreign_keys(1)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	raw.SetMaxOpenConns(1)
	db, err := dbutil.NewWithDB(raw, "sqlite")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// bed is a homeserver, real or fake, with our service beside it.
type bed struct {
	testing.TB
	fake    *homeserver.Server // nil with Synapse
	as      *homeserver.AppService
	synapse *synapse.Server // nil with the fake
	url     string
	domain  string
	suffix  string            // of users' names
	web     http.RoundTripper // nil: the ordinary network
	store   *memory
	olm     *dbutil.Database
	handler *swappable
	service *Service
	opts    Options
	plain   bool
	node    string
	network *vnet.Net // of the service's PeerConnections; nil: loopback
}

// swappable is the bridge's listener, whose handler changes with restarts.
type swappable struct {
	mu      sync.Mutex
	handler http.Handler
}

func (s *swappable) set(h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handler = h
}

func (s *swappable) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	h := s.handler
	s.mu.Unlock()
	if h == nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	h.ServeHTTP(w, r)
}

func registration(url, domain string) *appservice.Registration {
	yes := false
	return &appservice.Registration{
		ID: "trunkline", URL: url, AppToken: "as-token-of-the-test", ServerToken: "hs-token-of-the-test",
		SenderLocalpart: "trunkline-sender", RateLimited: &yes, MSC4190: true,
		Namespaces: appservice.Namespaces{UserIDs: appservice.NamespaceList{
			{Regex: `^@phonebot:` + domain + `$`, Exclusive: true},
			{Regex: `^@_sip_.*:` + domain + `$`, Exclusive: true},
		}},
	}
}

// fakeBed is a bed with the fake homeserver: on a network in memory inside a
// synctest bubble, or wherever.
func fakeBed(t testing.TB) *bed {
	t.Helper()
	return fakeBedWith(t, homeserver.Config{})
}

func fakeBedWith(t testing.TB, cfg homeserver.Config) *bed {
	t.Helper()
	b := &bed{TB: t, store: newMemory(), olm: openOlm(t), handler: new(swappable), plain: true}
	b.fake = homeserver.Start(t, cfg)
	b.url, b.domain, b.web = b.fake.URL(), b.fake.Domain(), b.fake.Net().Client().Transport
	l, err := b.fake.Net().Listen("bridge:80")
	if err != nil {
		t.Fatal(err)
	}
	b.serve(l)
	b.as = b.fake.AppService(registration("http://bridge", b.domain), b.fake.Net().Client())
	return b
}

// realBed is a bed with a Synapse of its own; the test is skipped unless
// TRUNKLINE_SYNAPSE is set.
func realBed(t testing.TB) *bed {
	t.Helper()
	return realBedWith(t, nil)
}

// realBedWith is a realBed whose Synapse uses a cluster of PostgreSQL, if one is given.
func realBedWith(t testing.TB, cluster *postgres.Cluster) *bed {
	t.Helper()
	synapse.Wanted(t)
	b := &bed{TB: t, store: newMemory(), olm: openOlm(t), handler: new(swappable), plain: true, domain: realDomain}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.serve(l)
	b.synapse = synapse.New(t, synapse.Config{
		Registrations: []string{writeRegistration(t, l)}, ServerName: b.domain, Progress: io.Discard, Postgres: cluster,
	})
	b.url = b.synapse.URL()
	return b
}

const realDomain = "lab.local"

// commonSynapse serves all tests that do it no harm: a start takes seconds.
// Each test's users have names of their own, its ghosts new devices.
var commonSynapse struct {
	server  *synapse.Server // nil until somebody wants it
	handler swappable
	beds    int
	used    sync.Mutex // by one test at a time
}

func TestMain(m *testing.M) {
	code := m.Run()
	if commonSynapse.server != nil {
		if err := commonSynapse.server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

// commonBed is a bed with the common Synapse. Its tests run one after the
// other.
func commonBed(t testing.TB) *bed {
	t.Helper()
	synapse.Wanted(t)
	c := &commonSynapse
	c.used.Lock()
	t.Cleanup(c.used.Unlock)
	if c.server == nil {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go http.Serve(l, &c.handler) // until the process ends
		c.server, err = synapse.Start(context.Background(), synapse.Config{
			Registrations: []string{writeRegistration(t, l)}, ServerName: realDomain, Progress: io.Discard,
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	c.beds++
	// Between tests somebody must take what Synapse sends, or it would wait longer and longer before the next try.
	t.Cleanup(func() {
		c.handler.set(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, struct{}{}) }))
		if t.Failed() {
			t.Logf("Synapse's log ends with:\n%s", c.server.LogTail(4000))
		}
	})
	return &bed{
		TB: t, store: newMemory(), olm: openOlm(t), handler: &c.handler, plain: true, domain: realDomain,
		synapse: c.server, url: c.server.URL(), suffix: fmt.Sprintf("_%d", c.beds),
	}
}

// writeRegistration writes the registration of a bridge that listens there. Synapse reads it when it starts.
func writeRegistration(t testing.TB, l net.Listener) string {
	t.Helper()
	content, err := yaml.Marshal(registration("http://"+l.Addr().String(), realDomain))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "registration.yaml")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (b *bed) serve(l net.Listener) {
	server := &http.Server{Handler: b.handler}
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(l) })
	b.Cleanup(func() { server.Close(); wg.Wait() })
}

func (b *bed) config() Config {
	ice := ICEConfig{Loopback: true, Addresses: []string{"127.0.0.1"}}
	if b.network != nil {
		ice = ICEConfig{network: b.network, NoMDNS: true}
	}
	return Config{
		HomeserverURL: b.url, Domain: b.domain, ASToken: "as-token-of-the-test", HSToken: "hs-token-of-the-test",
		ID: "trunkline", BotLocalpart: "phonebot", GhostPrefix: "_sip_", AllowPlain: b.plain, Transport: b.web, Node: b.node,
		ICE: ice,
	}
}

func testLog(t testing.TB) *slog.Logger {
	level := slog.LevelInfo
	if os.Getenv("TRUNKLINE_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))
}

// start makes and starts the service; stop ends it. Both may be done again.
func (b *bed) start() *Service {
	b.Helper()
	s, err := New(b.config(), b.store, b.olm, b.opts, testLog(b))
	if err != nil {
		b.Fatal(err)
	}
	b.handler.set(s.HTTPHandler())
	b.service = s
	if err := s.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { b.stop(s) })
	return s
}

func (b *bed) stop(s *Service) {
	if b.service == s {
		b.service = nil
		b.handler.set(nil)
		s.Close()
	}
}

// SendToDevice sends a batch and waits for all of it. The error is a *SendError.
func (s *Service) SendToDevice(ctx context.Context, g *Ghost, batch []OutMessage) error {
	sent, failed := s.toDevice(ctx, g, batch), make(map[int]error)
	for place := range batch {
		if err := sent(place); err != nil {
			failed[place] = err
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return &SendError{failed}
}

// SendError says which messages of a batch did not reach the homeserver, by
// their place in it.
type SendError struct{ Failed map[int]error }

func (e *SendError) Error() string { return errors.Join(e.Unwrap()...).Error() }

// Unwrap returns the errors in the order of the messages.
func (e *SendError) Unwrap() []error {
	errs := make([]error, 0, len(e.Failed))
	for _, n := range slices.Sorted(maps.Keys(e.Failed)) {
		errs = append(errs, e.Failed[n])
	}
	return errs
}

func (b *bed) ghost(name string) *Ghost {
	b.Helper()
	g, err := b.service.Ghost(b.Context(), name, "Phone "+name)
	if err != nil {
		b.Fatal(err)
	}
	return g
}

// person is an ordinary user with an ordinary client.
type person struct {
	bed    *bed
	user   id.UserID
	device id.DeviceID
	client *mautrix.Client
	olm    *crypto.OlmMachine // nil: a client without encryption
	poll   time.Duration      // how long a long poll lasts

	// sealing is held while olm is at work: mautrix's store in memory is
	// for one goroutine.
	sealing sync.Mutex

	mu    sync.Mutex
	heard []heard
}

type heard struct {
	sender    id.UserID
	kind      string
	content   json.RawMessage
	encrypted bool
	at        time.Time
}

// person makes a user. With olm the client has device keys and encrypts.
func (b *bed) person(name string, withOlm bool) *person {
	b.Helper()
	p := &person{bed: b, poll: 5 * time.Second}
	var token string
	if b.fake != nil {
		u := b.fake.User(name)
		p.user, p.device, token = u.UserID, u.DeviceID, u.AccessToken
	} else {
		u, err := b.synapse.Register(b.Context(), name+b.suffix)
		if err != nil {
			b.Fatal(err)
		}
		p.user, p.device, token = u.UserID, u.DeviceID, u.AccessToken
	}
	var err error
	if p.client, err = mautrix.NewClient(b.url, p.user, token); err != nil {
		b.Fatal(err)
	}
	p.client.DeviceID = p.device
	p.client.Log = zerolog.Nop()
	p.client.Client = &http.Client{Transport: b.web}
	if b.web == nil {
		p.client.Client.Transport = &http.Transport{MaxIdleConnsPerHost: 32}
		b.Cleanup(p.client.Client.CloseIdleConnections)
	}
	if withOlm {
		store := crypto.NewMemoryStore(nil)
		nop := zerolog.Nop()
		p.olm = crypto.NewOlmMachine(p.client, &nop, store, noRooms{})
		if err := p.olm.Load(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := p.olm.ShareKeys(b.Context(), 0); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(p.olm.Destroy)
	}
	return p
}

// listen reads the person's to-device messages until the test ends.
func (p *person) listen() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { p.sync(ctx) })
	p.bed.Cleanup(func() { cancel(); wg.Wait() })
}

func (p *person) sync(ctx context.Context) {
	since := ""
	for ctx.Err() == nil {
		answer, err := p.client.FullSyncRequest(ctx, mautrix.ReqSync{Timeout: int(p.poll.Milliseconds()), Since: since, FilterID: pollFilter})
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		for _, e := range answer.ToDevice.Events {
			p.take(ctx, e)
		}
		since = answer.NextBatch
	}
}

func (p *person) take(ctx context.Context, e *event.Event) {
	if e.Type.Type == "m.dummy" {
		return // clients ignore it
	}
	h := heard{sender: e.Sender, kind: e.Type.Type, content: e.Content.VeryRaw, at: time.Now()}
	e.Type.Class = event.ToDeviceEventType
	_ = e.Content.ParseRaw(e.Type)
	if e.Type == event.ToDeviceEncrypted {
		if p.olm == nil {
			return
		}
		p.sealing.Lock()
		opened := p.olm.HandleEncryptedEvent(ctx, e)
		p.sealing.Unlock()
		if opened == nil {
			return
		}
		h = heard{opened.Sender, opened.Type.Type, opened.Content.VeryRaw, true, time.Now()}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard = append(p.heard, h)
}

func (p *person) hears() []heard {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.heard)
}

// signal sends one call message to the ghosts, each in its own request, all at
// the same moment: what a client does that joins a call with several phones.
func (p *person) signal(conf string, n int, ghosts ...*Ghost) {
	var wg sync.WaitGroup
	for _, g := range ghosts {
		wg.Go(func() {
			if err := p.send(g, conf, n); err != nil {
				p.bed.Errorf("%s to %s: %v", p.user, g.user, err)
			}
		})
	}
	wg.Wait()
}

func (p *person) send(g *Ghost, conf string, n int) error {
	content := map[string]any{
		"conf_id": conf, "device_id": p.device, "sender_session_id": "s", "call_id": "c", "seq": n,
	}
	ctx := p.bed.Context()
	if p.olm == nil {
		_, err := p.client.SendToDevice(ctx, event.Type{Type: "m.call.candidates", Class: event.ToDeviceEventType},
			&mautrix.ReqSendToDevice{Messages: map[id.UserID]map[id.DeviceID]*event.Content{
				g.user: {g.device: {Raw: content}},
			}})
		return err
	}
	sealed, err := p.seal(g, content)
	if err != nil {
		return err
	}
	_, err = p.client.SendToDevice(ctx, event.ToDeviceEncrypted, sealed)
	return err
}

func (p *person) seal(g *Ghost, content map[string]any) (*mautrix.ReqSendToDevice, error) {
	p.sealing.Lock()
	defer p.sealing.Unlock()
	return p.olm.EncryptToDevices(p.bed.Context(), event.Type{Type: "m.call.candidates", Class: event.ToDeviceEventType},
		&mautrix.ReqSendToDevice{Messages: map[id.UserID]map[id.DeviceID]*event.Content{g.user: {g.device: {Raw: content}}}})
}

// room makes a room where everybody may send call events.
func (p *person) room(invite ...id.UserID) id.RoomID {
	p.bed.Helper()
	answer, err := p.client.CreateRoom(p.bed.Context(), &mautrix.ReqCreateRoom{
		Preset: "private_chat", Invite: invite,
		PowerLevelOverride: &event.PowerLevelsEventContent{Events: map[string]int{callType: 0, memberType: 0}},
	})
	if err != nil {
		p.bed.Fatal(err)
	}
	return answer.RoomID
}

// enter makes the person a member of a room that host has made.
func (p *person) enter(host *person, room id.RoomID) {
	p.bed.Helper()
	if _, err := host.client.InviteUser(p.bed.Context(), room, &mautrix.ReqInviteUser{UserID: p.user}); err != nil {
		p.bed.Fatal(err)
	}
	if _, err := p.client.JoinRoomByID(p.bed.Context(), room); err != nil {
		p.bed.Fatal(err)
	}
}

// ear is a conference that writes down what it is told.
type ear struct {
	info MembershipInfo

	mu       sync.Mutex
	messages []heard
	devices  []id.DeviceID
	states   []toldState
}

type toldState struct {
	members []MemberDevice
	call    CallState
}

func (e *ear) Info() MembershipInfo { return e.info }

func (e *ear) deliverToDevice(sender id.UserID, device id.DeviceID, kind string, content json.RawMessage, encrypted bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.messages = append(e.messages, heard{sender, kind, content, encrypted, time.Now()})
	e.devices = append(e.devices, device)
}

func (e *ear) deliverState(members []MemberDevice, call CallState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.states = append(e.states, toldState{members, call})
}

func (e *ear) heard() []heard {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.messages)
}

func (e *ear) state() (toldState, int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.states) == 0 {
		return toldState{}, 0
	}
	return e.states[len(e.states)-1], len(e.states)
}

// attach puts an ear into the ghost's call.
func (b *bed) attach(g *Ghost, room id.RoomID, conf string) *ear {
	b.Helper()
	e := &ear{info: MembershipInfo{Ghost: g.user, Device: g.device, Room: room, ConfID: conf}}
	s := g.service
	if err := s.attachConference(b.Context(), e); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.detachConference(e) })
	return e
}

// eventually waits until check says nothing is missing.
func (b *bed) eventually(patience time.Duration, check func() string) {
	b.Helper()
	end := time.Now().Add(patience)
	for {
		missing := check()
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			b.Fatalf("after %v: %s", patience, missing)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// sequence says how messages deviate from each number of 0…n-1 once and in
// order, per sender.
func sequence(messages []heard, senders []id.UserID, n int) string {
	next := make(map[id.UserID]int)
	for _, m := range messages {
		var content struct{ Seq int }
		if err := json.Unmarshal(m.content, &content); err != nil {
			return err.Error()
		}
		if content.Seq != next[m.sender] {
			return fmt.Sprintf("from %s: got message %d, want %d", m.sender, content.Seq, next[m.sender])
		}
		next[m.sender]++
	}
	for _, sender := range senders {
		if next[sender] != n {
			return fmt.Sprintf("from %s: got %d messages, want %d", sender, next[sender], n)
		}
	}
	return ""
}

// everywhere runs a test beside the fake homeserver and, if asked for, beside
// a real Synapse.
func everywhere(t *testing.T, test func(t *testing.T, b *bed)) {
	t.Parallel()
	t.Run("fake", func(t *testing.T) { test(t, fakeBed(t)) })
	t.Run("synapse", func(t *testing.T) { test(t, commonBed(t)) })
}
