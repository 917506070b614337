package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"maunium.net/go/mautrix/appservice"

	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/db"
	"trunkline/internal/testbed/homeserver"
	"trunkline/sockets"
)

// childSettings, when set, makes this test binary run a bridge until it is killed: what it holds is a child's settings.
const childSettings = "TRUNKLINE_TEST_CHILD"

// childDies, when set, is a number: after so many effects of its legs the child kills itself.
const childDies = "TRUNKLINE_TEST_CHILD_DIES"

func dyingAfter(number string) func(leg.Effect) {
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return nil
	}
	var left atomic.Int64
	left.Store(n)
	return func(e leg.Effect) {
		if left.Add(-1) == 0 {
			fmt.Fprintf(os.Stderr, "the child dies after %q\n", e)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // until the kernel has done it
		}
	}
}

type child struct {
	Config       config.Config
	Registration appservice.Registration
}

func TestMain(m *testing.M) {
	text := os.Getenv(childSettings)
	if text == "" {
		os.Exit(m.Run())
	}
	var c child
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		kept := sockets.FromEnvironment(log)
		var b *Bridge
		if b, err = New(ctx, c.Config, &c.Registration, kept, log); err == nil {
			b.performed = dyingAfter(os.Getenv(childDies))
			err = b.Run(ctx)
		}
		stop()
		err = errors.Join(err, kept.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

// childCommand is the bridge in a process of its own.
func (b *bed) childCommand() *exec.Cmd {
	b.t.Helper()
	settings, err := json.Marshal(child{b.cfg, *b.reg})
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childSettings+"="+string(settings))
	return cmd
}

// startChild runs the bridge in a process of its own, which can be killed.
func (b *bed) startChild() *exec.Cmd {
	b.t.Helper()
	cmd := b.childCommand()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		_ = cmd.Process.Kill() // killed already, as a rule
		_ = cmd.Wait()
		if b.t.Failed() {
			b.t.Logf("the child's log:\n%s", output.String())
		}
	})
	return cmd
}

func TestRunReturnsWhyItCannotStart(t *testing.T) {
	t.Parallel()
	hs := homeserver.StartLoopback(t, homeserver.Config{})
	ports := freePorts(t, 2)
	cfg, err := config.Parse("test", fmt.Appendf(nil, `
homeserver: {address: %q, domain: %s}
appservice: {listen: "127.0.0.1:%d", url: "http://127.0.0.1:%d"}
database: {address: "sqlite:%s/t.db"}
sip: {listen: [{transport: udp, address: "127.0.0.1:%d"}]}
rtp: {address: 127.0.0.1}
admin: {listen: ""}
`, hs.URL(), hs.Domain(), ports[0], ports[0], t.TempDir(), ports[1]))
	if err != nil {
		t.Fatal(err)
	}
	// The homeserver was never given the registration.
	b, err := New(t.Context(), cfg, config.NewRegistration(cfg), nil, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- b.Run(t.Context()) }()
	select {
	case err := <-over:
		if err == nil || !strings.Contains(err.Error(), "as_token") {
			t.Errorf("Run = %v, want what is wrong with as_token", err)
		}
	case <-time.After(patience):
		t.Fatal("Run hangs although the homeserver refuses the token")
	}
}

func TestAPortInUseIsToldWithItsOption(t *testing.T) {
	t.Parallel()
	b := makeBed(t)
	b.cfg.Admin.Listen = fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1)[0])
	for option, address := range map[string]string{"sip.listen": b.sip, "appservice.listen": b.cfg.AppService.Listen, "admin.listen": b.cfg.Admin.Listen} {
		taken, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		made, err := New(t.Context(), b.cfg, b.reg, nil, b.log)
		if err == nil {
			err = made.Run(t.Context())
		}
		taken.Close()
		if got := fmt.Sprint(err); !strings.Contains(got, address) || !strings.Contains(got, "choose another in "+option) {
			t.Errorf("with %s taken: %v, want the address and %s", address, err, option)
		}
	}
}

// Whoever starts the bridge at once again, as systemd does, shall not have it ask many times a second.
func TestBridgeThatTheHomeserverRefusesRestsBeforeItEnds(t *testing.T) {
	t.Parallel()
	b := makeBed(t)
	strange := *b.reg
	strange.AppToken = "another"
	made, err := New(t.Context(), b.cfg, &strange, nil, b.log)
	if err != nil {
		t.Fatal(err)
	}
	made.refusedPause = time.Hour
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	over := make(chan error, 1)
	go func() { over <- made.Run(ctx) }()
	b.await("the refusal to be told", func() bool { return strings.Contains(b.said.String(), "the homeserver refuses us") })
	select {
	case err := <-over:
		t.Fatalf("Run = %v, want it to rest", err)
	default:
	}
	stop()
	select {
	case <-over:
	case <-time.After(patience):
		t.Fatal("a bridge that rests does not end when it is told to")
	}
}

// A process that has lost its lease while it waits for the homeserver must not hold on to the calls it resumed.
func TestLostLeaseEndsTheWaitForTheHomeserver(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.stop()
	cfg := b.cfg
	cfg.Homeserver.Address = fmt.Sprintf("http://127.0.0.1:%d", freePorts(t, 1)[0])
	waits, err := New(t.Context(), cfg, b.reg, nil, b.log)
	if err != nil {
		t.Fatal(err)
	}
	other, err := db.Open(t.Context(), cfg.Database.Address, b.log)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	over := make(chan error, 1)
	go func() { over <- waits.Run(t.Context()) }()
	b.await("the lease to be taken, and taken away", func() bool {
		result, err := other.Shared().Exec(t.Context(), "DELETE FROM lease WHERE owner = $1", waits.run)
		if err != nil {
			t.Fatal(err)
		}
		n, err := result.RowsAffected()
		return n == 1 && err == nil
	})
	select {
	case err := <-over:
		if !errors.Is(err, db.ErrFenced) {
			t.Errorf("Run = %v, want %v", err, db.ErrFenced)
		}
	case <-time.After(patience):
		t.Fatal("Run waits for the homeserver although another process has the calls")
	}
}

func TestDefaultConfigGivesValidSettings(t *testing.T) {
	settings, err := sipConfig(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	if settings.Advertise == "" || !settings.RTP.Advertise.IsValid() || settings.RTP.Advertise.IsUnspecified() {
		t.Errorf("sockets on all addresses advertise %q and %v", settings.Advertise, settings.RTP.Advertise)
	}
}

func TestTrunksHaveAddressesOfTheirOwn(t *testing.T) {
	cfg := config.Default()
	cfg.SIP.Advertise, cfg.RTP.Advertise = "198.51.100.1", "198.51.100.2"
	for _, tt := range []struct {
		trunk      config.Trunk
		host, told string // "" = as the others
	}{
		{config.Trunk{}, "", ""},
		{config.Trunk{Advertise: "10.0.0.5"}, "10.0.0.5", "10.0.0.5"},
		{config.Trunk{Advertise: "10.0.0.5", AdvertiseRTP: "10.0.0.6"}, "10.0.0.5", "10.0.0.6"},
		{config.Trunk{Advertise: "voip.example.org"}, "voip.example.org", ""},
		{config.Trunk{AdvertiseRTP: "10.0.0.6"}, "", "10.0.0.6"},
		{config.Trunk{Advertise: "10.0.0.5:15060"}, "10.0.0.5:15060", "10.0.0.5"},
		{config.Trunk{Advertise: "voip.example.org:15060"}, "voip.example.org:15060", ""},
	} {
		cfg.SIP.Trunks = []config.Trunk{tt.trunk}
		settings, err := sipConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		got := settings.Trunks[0]
		if told := got.AdvertiseRTP; got.Advertise != tt.host || told.IsValid() != (tt.told != "") || told.IsValid() && told.String() != tt.told {
			t.Errorf("advertise %q and advertise_rtp %q mean %q and %v, want %q and %q",
				tt.trunk.Advertise, tt.trunk.AdvertiseRTP, got.Advertise, got.AdvertiseRTP, tt.host, tt.told)
		}
	}
}

func TestLimitsOfTrunksAreThoseOfTheConfig(t *testing.T) {
	cfg := config.Default()
	cfg.SIP.Limits.MessagesPerSecond = 0
	cfg.SIP.Trunks = []config.Trunk{
		{InvitesPerSecond: 3, MaxCalls: 4, Direction: config.DirectionIn}, {Direction: config.DirectionOut}, {Direction: config.DirectionBoth},
	}
	settings, err := sipConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if l := settings.Limits; l.InvitesPerSecond != 200 || l.MessagesPerSecond != -1 || l.FailuresPerMinute != 20 {
		t.Errorf("limits = %+v; want 200 calls, no limit of messages, 20 failures", l)
	}
	in, out, both := settings.Trunks[0], settings.Trunks[1], settings.Trunks[2]
	if in.InvitesPerSecond != 3 || in.MaxCalls != 4 || !in.InOnly || in.OutOnly || out.InOnly || !out.OutOnly || both.InOnly || both.OutOnly {
		t.Errorf("trunks = %+v", settings.Trunks)
	}
}
