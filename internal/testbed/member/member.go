package member

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/transport/v4"
	"github.com/pion/webrtc/v4"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Config says who the member is and what client they use.
type Config struct {
	URL         string // of the homeserver
	UserID      id.UserID
	DeviceID    id.DeviceID
	AccessToken string
	HTTP        *http.Client // nil = an own one
	Kind        Kind
	CameraOnly  bool          // join with camera and no microphone, as hydrogen's user interface always does; see Unmute
	Net         transport.Net // pion's network, for a virtual one; nil = the machine's
	Address     netip.Addr    // where its sound lives on the machine's network; zero = any loopback address
	Log         *slog.Logger  // every message and decision; nil = nothing
}

// Member is one person with one device and one open client.
type Member struct {
	cfg     Config
	log     *slog.Logger
	client  *mautrix.Client
	machine *crypto.OlmMachine // nil: no keys
	mouth   *mouth
	ear     *ear
	inbox   *inbox

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // run, poll, speak and all requests

	mu         sync.Mutex    // guards the fields below, which may be read from outside run
	complaints []string      // see Complaints
	changed    chan struct{} // closed and replaced after each piece of work
	view       View          // copied after each piece of work

	// Only run touches the rest.
	session string // one per page load
	rooms   map[id.RoomID]*roomView
	call    *groupCall // the call this member is in, nil = none
	synced  bool
}

// roomView is what the client has seen of a room.
type roomView struct {
	joined  map[id.UserID]bool
	calls   map[string]callState
	members map[id.UserID]memberContent
}

type callState struct {
	callContent
	at int64
}

// View is what can be seen of a member from outside.
type View struct {
	Synced  bool
	Session string
	Call    string // conf id of the call the member is in, "" = none
	Peers   []PeerView
}

// PeerView is one connection of the mesh.
type PeerView struct {
	User      id.UserID
	Device    id.DeviceID
	Session   string
	CallID    string // of the current leg
	Inviter   bool   // we sent the invite
	State     string // waiting, invited, answered, connected, ended
	Muted     bool   // the peer says that its audio is muted
	Direction string // of the audio line, as we see it
	Attempts  int
}

// New publishes the device's keys if the client has any and begins to sync. Close it.
func New(ctx context.Context, cfg Config) (*Member, error) {
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 20}, Timeout: 3 * time.Minute}
	}
	client, err := mautrix.NewClient(cfg.URL, cfg.UserID, cfg.AccessToken)
	if err != nil {
		return nil, fmt.Errorf("member %s: %w", cfg.UserID, err)
	}
	client.DeviceID, client.Client = cfg.DeviceID, cfg.HTTP
	m := &Member{
		cfg: cfg, client: client, log: cfg.Log, ear: newEar(), inbox: newInbox(), changed: make(chan struct{}),
		session: newID("s"), rooms: map[id.RoomID]*roomView{},
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.log = m.log.With("member", cfg.UserID)
	if cfg.Kind.hasKeys() {
		if m.machine, err = newMachine(ctx, client); err != nil {
			return nil, fmt.Errorf("member %s: %w", cfg.UserID, err)
		}
	}
	if m.mouth, err = newMouth(); err != nil {
		return nil, fmt.Errorf("member %s: %w", cfg.UserID, err)
	}
	m.ctx, m.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	m.wg.Go(m.run)
	m.wg.Go(m.poll)
	m.wg.Go(func() { m.mouth.run(m.ctx.Done()) })
	return m, nil
}

// errClosed is the cause of the end.
var errClosed = errors.New("member closed")

// Close ends everything without a word to anybody, as a crash of the client would.
func (m *Member) Close() {
	_ = m.ask(context.Background(), func() { m.abandon() })
	m.cancel(errClosed)
	m.wg.Wait()
	if m.machine != nil {
		m.machine.Destroy()
	}
	m.cfg.HTTP.CloseIdleConnections()
}

// UserID returns who it is.
func (m *Member) UserID() id.UserID { return m.cfg.UserID }

// run is the owner of the member's state.
func (m *Member) run() {
	for {
		work := m.inbox.take(m.ctx)
		if work == nil {
			return
		}
		work()
		m.publish()
	}
}

// publish shows the state to those who wait outside.
func (m *Member) publish() {
	view := View{Synced: m.synced, Session: m.session}
	if m.call != nil {
		view.Call, view.Peers = m.call.conf, m.call.views()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.view = view
	close(m.changed)
	m.changed = make(chan struct{})
}

// ask lets run do something and waits for it.
func (m *Member) ask(ctx context.Context, work func()) error {
	done := make(chan struct{})
	m.inbox.put(func() { work(); close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-m.ctx.Done():
		return context.Cause(m.ctx)
	}
}

// View returns what can be seen now.
func (m *Member) View() View {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.view
}

// Await waits until the condition holds.
func (m *Member) Await(ctx context.Context, what string, holds func(View) bool) error {
	for {
		m.mu.Lock()
		view, changed := m.view, m.changed
		m.mu.Unlock()
		if holds(view) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s waits for %s: %w; sees %+v; complaints: %q",
				m.cfg.UserID, what, context.Cause(ctx), view, m.Complaints())
		case <-m.ctx.Done():
			return context.Cause(m.ctx)
		}
	}
}

// AwaitConnected waits for a working connection with each of the users.
func (m *Member) AwaitConnected(ctx context.Context, users ...id.UserID) error {
	for _, user := range users {
		err := m.Await(ctx, "a connection with "+string(user), func(v View) bool { return v.peer(user).State == "connected" })
		if err != nil {
			return err
		}
	}
	return nil
}

// AwaitGone waits until there is no connection with the user any more.
func (m *Member) AwaitGone(ctx context.Context, user id.UserID) error {
	return m.Await(ctx, string(user)+" to go", func(v View) bool {
		s := v.peer(user).State
		return s == "" || s == "ended"
	})
}

// peer returns the view of a user's connection, the zero value if there is none.
func (v View) peer(user id.UserID) PeerView {
	for _, p := range v.Peers {
		if p.User == user {
			return p
		}
	}
	return PeerView{}
}

// complain writes down what would have broken the client, or did.
func (m *Member) complain(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	m.log.Warn("complaint", "text", text)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.complaints = append(m.complaints, text)
}

// Complaints returns what the others did wrong so far, together with messages that wait for a number that did not
// come.
func (m *Member) Complaints() []string {
	var stuck []string
	_ = m.ask(context.Background(), func() {
		if m.call != nil {
			stuck = m.call.stuck()
		}
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	return append(append([]string(nil), m.complaints...), stuck...)
}

// Says speaks the sound over and over: 48 kHz mono. nil is silence.
func (m *Member) Says(pcm []int16) { m.mouth.say(pcm, true) }

// SaysOnce speaks the sound once.
func (m *Member) SaysOnce(pcm []int16) { m.mouth.say(pcm, false) }

// Heard returns what came from a user since the last Forget or since New.
func (m *Member) Heard(user id.UserID) Recording { return m.ear.of(user) }

// Forget throws all recordings away; new ones begin now.
func (m *Member) Forget() { m.ear.forget() }

// Listen records for d and returns what came from one user in that time, silence included.
func (m *Member) Listen(user id.UserID, d time.Duration) []int16 {
	m.ear.forget()
	select {
	case <-time.After(d):
	case <-m.ctx.Done():
	}
	pcm := m.ear.of(user).PCM
	return append(pcm, make([]int16, max(0, int(d.Seconds()*Rate)-len(pcm)))...)
}

// poll is the client's sync loop. Like js-sdk it reads to-device messages before rooms.
func (m *Member) poll() {
	since := ""
	for m.ctx.Err() == nil {
		resp, err := m.client.SyncRequest(m.ctx, 30000, since, "", false, event.PresenceOffline)
		if err != nil {
			m.pause(2 * time.Second)
			continue
		}
		m.keepKeys(resp, since)
		for _, evt := range resp.ToDevice.Events {
			if msg, ok := m.receive(m.ctx, evt); ok {
				m.inbox.put(func() { m.handle(msg) })
			}
		}
		m.inbox.put(func() { m.see(resp.Rooms) })
		since = resp.NextBatch
	}
}

// pause sleeps unless the member is closed.
func (m *Member) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.ctx.Done():
	}
}

func (m *Member) keepKeys(resp *mautrix.RespSync, since string) {
	if m.machine == nil {
		return
	}
	m.machine.HandleDeviceLists(m.ctx, &resp.DeviceLists, since)
	m.machine.HandleOTKCounts(m.ctx, &resp.DeviceOTKCount)
}

// newID returns an id as the clients make them.
func newID(prefix string) string { return prefix + rand.Text()[:14] }

// newAPI returns pion set up as a browser is: Opus, phone codecs, DTMF, VP8. inviter says who sends the first offer:
// a browser keeps the DTLS role of the first answer in later ones, pion only when told.
func (m *Member) newAPI(inviter bool) (*webrtc.API, error) {
	var media webrtc.MediaEngine
	for _, c := range codecs() {
		if err := media.RegisterCodec(c.params, c.kind); err != nil {
			return nil, err
		}
	}
	var s webrtc.SettingEngine
	if m.cfg.Net != nil {
		s.SetNet(m.cfg.Net)
	} else {
		s.SetIncludeLoopbackCandidate(true)
		s.SetIPFilter(func(ip net.IP) bool {
			if m.cfg.Address.IsValid() {
				return ip.Equal(m.cfg.Address.AsSlice())
			}
			return ip.IsLoopback()
		})
	}
	s.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	s.DisableCloseByDTLS(true) // browsers wait for ICE
	s.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	s.SetICETimeouts(5*time.Second, 25*time.Second, 2*time.Second)
	s.SetICEMaxBindingRequests(150) // browsers go on checking for half a minute, pion by itself for a second and a half
	role := webrtc.DTLSRoleClient
	if inviter {
		role = webrtc.DTLSRoleServer
	}
	if err := s.SetAnsweringDTLSRole(role); err != nil {
		return nil, err
	}
	interceptors, err := interceptorsOf(&media)
	if err != nil {
		return nil, err
	}
	return webrtc.NewAPI(webrtc.WithMediaEngine(&media), webrtc.WithSettingEngine(s), webrtc.WithInterceptorRegistry(interceptors)), nil
}
