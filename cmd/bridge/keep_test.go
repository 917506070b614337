package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/config"
	"trunkline/bridge/doctor"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/phone"
	"trunkline/internal/testbed/ports"
)

// asProgram, when set, makes this test binary the program.
const asProgram = "TRUNKLINE_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// program is this program running, with a homeserver and a room beside it.
type program struct {
	*testing.T
	cfg  config.Config
	cmd  *exec.Cmd
	over chan error // gets one value: how it ended
	log  safeBuffer
}

// safeBuffer is what a program writes while others read it.
type safeBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

const goodNumber = "100" // leads to the room

// begin starts the program, which is killed at the test's end if it still runs.
func begin(t *testing.T, flags ...string) *program {
	t.Helper()
	hs := homeserver.StartLoopback(t, homeserver.Config{})
	bot := id.NewUserID("trunkline", hs.Domain())
	room := hs.Room(hs.User("owner").UserID, homeserver.CallRoom(bot))
	free, err := ports.Free(3)
	if err != nil {
		t.Fatal(err)
	}
	path := inFolder(t, fmt.Sprintf(`
homeserver: {address: %q, domain: %s}
appservice: {listen: "127.0.0.1:%d", url: "http://127.0.0.1:%[3]d", bot: trunkline}
sip:
  listen: [{transport: udp, address: "127.0.0.1:%d"}]
  trunks: [{name: lab, networks: [127.0.0.0/8]}]
rtp: {address: 127.0.0.1}
admin: {listen: "127.0.0.1:%d"}
routes: [{number: %q, room: %q, intent: m.prompt}]
`, hs.URL(), hs.Domain(), free[0], free[1], free[2], goodNumber, room))
	p := &program{T: t, over: make(chan error, 1)}
	if p.cfg, err = config.Load(path); err != nil {
		t.Fatal(err)
	}
	registration := config.NewRegistration(p.cfg)
	if err := config.WriteRegistration(config.RegistrationPath(p.cfg, path), registration); err != nil {
		t.Fatal(err)
	}
	hs.AppService(registration, &http.Client{Timeout: time.Minute})
	p.cmd = exec.Command(os.Args[0], append([]string{"-c", path}, flags...)...)
	p.cmd.Dir, p.cmd.Env = filepath.Dir(path), append(os.Environ(), asProgram+"=1")
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.over <- p.cmd.Wait() }()
	t.Cleanup(func() {
		select {
		case err := <-p.over:
			p.over <- err
		default:
			_ = p.cmd.Process.Kill()
			<-p.over
		}
		if t.Failed() {
			t.Logf("its log:\n%s", p.log.String())
		}
	})
	return p
}

func (p *program) await(what string, holds func() bool) {
	p.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.Fatalf("waited in vain for %s", what)
		}
	}
}

func (p *program) isReady() bool { return doctor.Healthy(p.Context(), p.cfg) == nil }

func (p *program) signal(sig os.Signal) {
	p.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.Fatal(err)
	}
}

// endsWell waits for its end, with exit code 0.
func (p *program) endsWell() {
	p.Helper()
	select {
	case err := <-p.over:
		p.over <- err
		if err != nil {
			p.Errorf("the end: %v, want exit code 0", err)
		}
	case <-time.After(30 * time.Second):
		p.Fatal("it does not end")
	}
}

// bridge -keep: the bridge dies, and is there again; it is restarted on request, and ends when asked.
func TestKeptBridge(t *testing.T) {
	p := begin(t, "-keep")
	before := 0
	isReady := func() bool {
		child := childOf(p.cmd.Process.Pid)
		return child != 0 && child != before && p.isReady()
	}
	p.await("the bridge", isReady)
	for what, end := range map[string]func(){
		"the next one after a kill":    func() { _ = syscall.Kill(before, syscall.SIGKILL) },
		"the next one after a restart": func() { p.signal(syscall.SIGHUP) },
	} {
		before = childOf(p.cmd.Process.Pid)
		end()
		p.await(what, isReady)
	}
	before = childOf(p.cmd.Process.Pid)
	p.signal(syscall.SIGTERM)
	p.endsWell()
	if err := syscall.Kill(before, 0); err == nil {
		t.Error("the child outlives its parent")
	}
}

// SIGUSR1: the call that is up goes on, a new one is told to come again, the admin and the log see how far it is, and when the last
// call is over the program ends by itself. A keeper passes the signal on, and starts nothing after that.
func TestSignalDrains(t *testing.T) {
	for _, flags := range [][]string{nil, {"-keep"}} {
		t.Run(fmt.Sprint(flags), func(t *testing.T) {
			p := begin(t, flags...)
			p.await("the bridge", p.isReady)
			sip := p.cfg.SIP.Listen[0].Address
			call, err := dial(t, sip)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.drain(); got != (drainView{Legs: 1}) {
				t.Errorf("before the drain: %+v", got)
			}
			p.signal(syscall.SIGUSR1)
			p.await("the drain to begin", func() bool { return p.drain().Draining })
			_, err = dial(t, sip)
			if refused, ok := errors.AsType[*phone.StatusError](err); !ok || refused.Code != 503 || refused.RetryAfter == "" {
				t.Errorf("a new call = %v, want 503 with Retry-After", err)
			}
			p.await("the drain to be a second old", func() bool { return p.drain().Seconds >= 1 })
			if got := p.drain(); got.Legs != 1 || call.Ended() != "" {
				t.Errorf("while the call is up: %+v, and the call ended: %q", got, call.Ended())
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := call.Hangup(ctx); err != nil {
				t.Fatal(err)
			}
			p.endsWell()
			for _, want := range []string{"msg=draining legs=1\n", "msg=drained after="} {
				if !strings.Contains(p.log.String(), want) {
					t.Errorf("the log does not say %q", want)
				}
			}
		})
	}
}

// drainView is what an admin sees of a drain.
type drainView struct {
	Draining bool
	Seconds  int
	Legs     int
}

func (p *program) drain() (v drainView) {
	p.Helper()
	res, err := http.Get("http://" + p.cfg.Admin.Listen + "/debug/drain")
	if err != nil {
		p.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil {
		p.Fatal(err)
	}
	return v
}

// dial calls the room from a phone of its own.
func dial(t *testing.T, sip string) (*phone.Call, error) {
	t.Helper()
	p, err := phone.Open(phone.Config{Local: netip.MustParseAddr("127.0.0.1"), User: "1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return p.Dial(ctx, sip, goodNumber)
}

// childOf finds a process's child; 0 = none.
func childOf(parent int) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		_, rest, _ := strings.Cut(string(text), ") ") // the name before may hold anything
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(parent) && f[0] != "Z" {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err == nil {
				return pid
			}
		}
	}
	return 0
}
