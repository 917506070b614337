package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/appservice"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/bridge/config"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

// patience is how long anything in these tests may take. They run on real sockets, so times are not asserted.
const patience = 20 * time.Second

// bed is the bridge on loopback sockets, between a homeserver stand-in and scripted phones and members.
type bed struct {
	t    *testing.T
	hs   *homeserver.Server
	cfg  config.Config
	reg  *appservice.Registration
	sip  string
	room id.RoomID
	log  *slog.Logger
	said *lines // in the log
	wire wire

	process *process
}

// process is one run of the bridge.
type process struct {
	bridge *Bridge
	stop   context.CancelFunc
	over   chan error
}

const (
	goodNumber  = "100"
	otherNumber = "200" // leads to a room that forbids calls
	ringNumber  = "500" // leads to the room of goodNumber, and rings
	plainNumber = "501" // the same without early media
	lostNumber  = "300" // leads to a room that does not exist
)

func newBed(t *testing.T) *bed { return newBedAt(t, homeserver.Config{}) }

func newBedAt(t *testing.T, hs homeserver.Config) *bed {
	t.Helper()
	b := makeBedAt(t, hs)
	b.start()
	t.Cleanup(b.stop)
	b.awaitBot()
	return b
}

// makeBed is newBed without the bridge running yet.
func makeBed(t *testing.T) *bed { return makeBedAt(t, homeserver.Config{}) }

func makeBedAt(t *testing.T, hs homeserver.Config) *bed {
	t.Helper()
	b := &bed{t: t, hs: homeserver.StartLoopback(t, hs)}
	b.log, b.said = keptLog(t)
	ports, rtp := freePorts(t, 2), firstRTPPort()
	b.sip = fmt.Sprintf("127.0.0.1:%d", ports[1])
	text := fmt.Sprintf(`
homeserver: {address: %q, domain: %s}
appservice: {listen: "127.0.0.1:%d", url: "http://127.0.0.1:%d", ghost_avatar: "mxc://hs.test/phone"}
database: {address: "sqlite:%s"}
sip:
  listen: [{transport: udp, address: %q}, {transport: tcp, address: %q}]
  trunks: [{name: lab, networks: [127.0.0.0/8]}]
rtp: {address: 127.0.0.1, port_min: %d, port_max: %d}
webrtc: {addresses: [127.0.0.1], loopback: true}
calls: {empty_timeout: 300ms, max_legs: 3, refusal_tone: 1500ms}
admin: {listen: ""}
dial_in: {pin_key: %q, sounds: [%q]}
`, b.hs.URL(), b.hs.Domain(), ports[0], ports[0], filepath.Join(t.TempDir(), "t.db"), b.sip, b.sip, rtp, rtp+rtpPorts-1,
		filepath.Join(t.TempDir(), "pin.key"), writePrompts(t))
	var err error
	if b.cfg, err = config.Parse("test", []byte(text)); err != nil {
		t.Fatal(err)
	}
	b.reg = config.NewRegistration(b.cfg)
	b.hs.AppService(b.reg, &http.Client{Timeout: time.Minute, Transport: &b.wire})
	owner := b.hs.User("owner")
	b.room = b.hs.Room(owner.UserID, homeserver.CallRoom(b.bot()))
	strict := b.hs.Room(owner.UserID, homeserver.CreateRoom{Invite: []id.UserID{b.bot()}})
	b.cfg.Routes = []config.Route{
		{Number: goodNumber, Room: string(b.room), Options: config.Options{Intent: config.IntentPrompt}},
		{Number: otherNumber, Room: string(strict)},
		{Number: lostNumber, Room: "#nowhere:" + b.hs.Domain()},
		{Number: ringNumber, Room: string(b.room)},
		{Number: plainNumber, Room: string(b.room), Options: config.Options{EarlyMedia: new(false)}},
	}
	b.cfg.Routes = append(b.cfg.Routes, b.dialInRoutes()...)
	return b
}

func (b *bed) bot() id.UserID { return id.NewUserID(b.cfg.AppService.Bot, b.cfg.Homeserver.Domain) }

// start runs the bridge as a process would.
func (b *bed) start() { b.t.Helper(); b.startWith(func(*Bridge) {}) }

// startWith is start of a bridge with a fault, say.
func (b *bed) startWith(change func(*Bridge)) {
	b.t.Helper()
	made, err := New(b.t.Context(), b.cfg, b.reg, nil, b.log)
	if err != nil {
		b.t.Fatal(err)
	}
	change(made)
	ctx, stop := context.WithCancel(context.Background())
	p := &process{bridge: made, stop: stop, over: make(chan error, 1)}
	b.process = p
	go func() { p.over <- made.Run(ctx) }()
	b.await("the bridge to be ready", func() bool { return made.Ready(b.t.Context()) == nil })
}

// stop ends the bridge as SIGTERM would.
func (b *bed) stop() {
	b.process.stop()
	select {
	case err := <-b.process.over:
		if err != nil {
			b.t.Errorf("Run: %v", err)
		}
		b.process.over <- nil // stopping twice is fine
	case <-time.After(patience):
		b.t.Error("the bridge did not stop")
	}
}

func (b *bed) await(what string, holds func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// person is a member of the room with a client, in the room's call when joined is set.
func (b *bed) person(name string, kind member.Kind, joined bool) *member.Member {
	b.t.Helper()
	u := b.hs.User(name)
	b.hs.Join(b.room, u.UserID)
	m, err := member.New(b.t.Context(), member.Config{
		URL: b.hs.URL(), UserID: u.UserID, DeviceID: u.DeviceID, AccessToken: u.AccessToken, Kind: kind,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(m.Close)
	if !joined {
		return m
	}
	ctx := b.ctx()
	if b.activeCalls() == 0 {
		if _, err := m.CreateCall(ctx, b.room); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := m.JoinCall(ctx, b.room); err != nil {
		b.t.Fatal(err)
	}
	return m
}

func (b *bed) ctx() context.Context {
	ctx, cancel := context.WithTimeoutCause(b.t.Context(), patience, errors.New("the test lost its patience"))
	b.t.Cleanup(cancel)
	return ctx
}

func (b *bed) phone(number string) *phone.Phone {
	b.t.Helper()
	p, err := phone.Open(phone.Config{Local: netip.MustParseAddr("127.0.0.1"), User: number})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { p.Close() })
	return p
}

// begin dials without waiting for the answer.
func (b *bed) begin(p *phone.Phone, number string) *phone.Call {
	b.t.Helper()
	call, err := p.Begin(b.ctx(), b.sip, phone.Invite{Number: number})
	if err != nil {
		b.t.Fatalf("dial %s: %v", number, err)
	}
	b.t.Cleanup(func() { b.hangUp(call) })
	return call
}

// hangUp ends a call that the test left open, so that the bridge need not find out that the phone is gone.
func (b *bed) hangUp(call *phone.Call) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.t.Context()), patience)
	defer cancel()
	if err := call.Hangup(ctx); err != nil {
		b.t.Logf("hang up: %v", err)
	}
}

func (b *bed) dial(p *phone.Phone, number string) *phone.Call {
	b.t.Helper()
	call, err := p.Dial(b.ctx(), b.sip, number)
	if err != nil {
		b.t.Fatalf("dial %s: %v", number, err)
	}
	b.t.Cleanup(func() { b.hangUp(call) })
	return call
}

// ghosts are the users of the bridge that are in a call of the room, by its state.
func (b *bed) ghosts() []id.UserID {
	var found []id.UserID
	seen := map[string]bool{}
	for _, ev := range b.hs.Timeline(b.room) {
		if ev.Type != "org.matrix.msc3401.call.member" || ev.StateKey == nil || seen[*ev.StateKey] {
			continue
		}
		seen[*ev.StateKey] = true
		content := string(b.hs.State(b.room, ev.Type, *ev.StateKey))
		if strings.HasPrefix(*ev.StateKey, "@"+b.cfg.AppService.GhostPrefix) && strings.Contains(content, "m.call_id") {
			found = append(found, id.UserID(*ev.StateKey))
		}
	}
	return found
}

func (b *bed) activeCalls() int {
	n := 0
	seen := map[string]bool{}
	for _, ev := range b.hs.Timeline(b.room) {
		if ev.Type != "org.matrix.msc3401.call" || seen[*ev.StateKey] {
			continue
		}
		seen[*ev.StateKey] = true
		if !strings.Contains(string(b.hs.State(b.room, ev.Type, *ev.StateKey)), "m.terminated") {
			n++
		}
	}
	return n
}

// notices are what the bot has said in a room.
func (b *bed) notices(room string) []string {
	var said []string
	for _, ev := range b.hs.Timeline(id.RoomID(room)) {
		if ev.Type == event.EventMessage.Type && ev.Sender == b.bot() {
			said = append(said, string(ev.Content))
		}
	}
	return said
}

// rows counts what the database still holds of live legs.
func (b *bed) rows() int {
	b.t.Helper()
	store := b.process.bridge.store
	legs, err1 := store.Legs(b.t.Context(), b.process.bridge.run)
	memberships, err2 := store.Memberships(b.t.Context(), b.process.bridge.run)
	if err := errors.Join(err1, err2); err != nil {
		b.t.Fatal(err)
	}
	return len(legs) + len(memberships)
}

// testLog shows the bridge's log when the test fails.
func testLog(t *testing.T) *slog.Logger {
	log, _ := keptLog(t)
	return log
}

// keptLog is testLog, and what it has said.
func keptLog(t *testing.T) (*slog.Logger, *lines) {
	said := &lines{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the bridge's log:\n%s", said)
		}
	})
	return slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: slog.LevelDebug})), said
}

// freePorts returns n ports of 127.0.0.1 that are free for TCP and UDP now. They are below those that the system gives to
// whoever asks for any port (else a connection made meanwhile may get one), and below those of RTP.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range 1000 {
		if len(ports) == n {
			return ports
		}
		address := fmt.Sprintf("127.0.0.1:%d", 12000+int(nextPort.Add(1)%8000))
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		l.Close()
		c, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		c.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	t.Fatal("no free ports")
	return nil
}

// rtpPorts is how many ports of RTP a bed has for itself, until a hundred others have got theirs: those of a call whose process was
// killed must be free for the next one.
const rtpPorts = 100

func firstRTPPort() int { return 20000 + rtpPorts*int(nextRange.Add(1)%100) }

// These begin somewhere else in each run, so that runs side by side seldom meet.
var nextPort, nextRange = somewhere(8000), somewhere(100)

func somewhere(below uint32) *atomic.Uint32 {
	n := new(atomic.Uint32)
	n.Store(rand.Uint32N(below))
	return n
}

func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), patience)
}
