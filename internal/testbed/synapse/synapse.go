package synapse

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"trunkline/internal/testbed/ports"
	"trunkline/internal/testbed/postgres"
)

// Config says what kind of Synapse to start. The zero value works: SQLite, no application service.
type Config struct {
	ServerName    string            // domain in user ids, "" = lab.local; need not resolve
	Registrations []string          // paths of application services' registration files
	Postgres      *postgres.Cluster // nil = SQLite
	Port          int               // on 127.0.0.1; 0 = a free one, kept over Restart
	TURNURIs      []string          // for /voip/turnServer
	Install       string            // Install's dir
	Progress      io.Writer         // told what is done and why; nil = nobody
}

// Server is one Synapse process with its directory.
type Server struct {
	cfg    Config
	python string
	dir    string
	port   int

	mu      sync.Mutex
	process *exec.Cmd     // nil while stopped
	exited  chan struct{} // closed when process has been waited for
}

// dirPrefix marks our directories under os.TempDir for sweep.
const dirPrefix = "trunkline-synapse-"

// New starts a Synapse that lives as long as the test and shows the end of its log when the test failed.
func New(t testing.TB, cfg Config) *Server {
	t.Helper()
	Wanted(t)
	if cfg.Progress == nil {
		cfg.Progress = t.Output()
	}
	s, err := Start(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Synapse's log ends with:\n%s", s.LogTail(4000))
		}
		if err := s.Close(); err != nil {
			t.Errorf("close Synapse: %v", err)
		}
	})
	return s
}

// Wanted skips the test unless TRUNKLINE_SYNAPSE is set, as `make e2e` does: Synapse takes a download and, each time it
// is started, seconds of all cores, which tests that run beside it do not have to spare.
func Wanted(t testing.TB) {
	t.Helper()
	if os.Getenv("TRUNKLINE_SYNAPSE") == "" {
		t.Skip("needs the real Synapse: make e2e, or set TRUNKLINE_SYNAPSE=1")
	}
}

// Start installs Synapse if necessary, starts it in a new temporary directory and waits until it answers. The caller
// must Close it.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	cfg.ServerName = cmp.Or(cfg.ServerName, "lab.local")
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	cfg.Registrations = slices.Clone(cfg.Registrations)
	for i, file := range cfg.Registrations {
		path, err := filepath.Abs(file)
		if err != nil {
			return nil, fmt.Errorf("registration %s: %w", file, err)
		}
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("registration: %w", err)
		}
		cfg.Registrations[i] = path
	}
	python, err := Install(ctx, cfg.Install, cfg.Progress)
	if err != nil {
		return nil, err
	}
	sweep()
	dir, err := os.MkdirTemp("", dirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, fmt.Errorf("make Synapse's directory: %w", err)
	}
	s := &Server{cfg: cfg, python: python, dir: dir}
	if err := s.create(ctx); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return s, nil
}

func (s *Server) create(ctx context.Context) (err error) {
	if s.port, err = choosePort(s.cfg.Port); err != nil {
		return err
	}
	if err := s.writeFiles(); err != nil {
		return err
	}
	fmt.Fprintf(s.cfg.Progress, "Synapse: starting on %s as %s, in %s (removed at the end)\n",
		s.URL(), s.cfg.ServerName, s.dir)
	return s.StartProcess(ctx)
}

// URL returns the base of the client-server API.
func (s *Server) URL() string { return "http://127.0.0.1:" + strconv.Itoa(s.port) }

// ServerName returns the domain of user ids.
func (s *Server) ServerName() string { return s.cfg.ServerName }

// Dir returns the folder of configuration, log and SQLite database.
func (s *Server) Dir() string { return s.dir }

// StartProcess starts Synapse again after Stop or Kill, at the same address with the same data.
func (s *Server) StartProcess(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		return nil
	}
	out, err := os.OpenFile(filepath.Join(s.dir, "output"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open Synapse's output: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(s.python, "-m", "synapse.app.homeserver", "-c", filepath.Join(s.dir, "homeserver.yaml"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start Synapse: %w", err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	if err := s.awaitReady(ctx, exited); err != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-exited
		return err
	}
	s.process, s.exited = cmd, exited
	return nil
}

// awaitReady polls until the client-server API answers.
func (s *Server) awaitReady(ctx context.Context, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for {
		if s.answers(ctx) {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("homeserver ended at start; its output and log end with:\n%s", s.LogTail(3000))
		case <-ctx.Done():
			return fmt.Errorf("homeserver not ready: %w; its output and log end with:\n%s", ctx.Err(), s.LogTail(3000))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (s *Server) answers(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+"/_matrix/client/versions", nil)
	if err != nil {
		return false
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Stop ends Synapse in an orderly way and keeps its data.
func (s *Server) Stop() error { return s.end(syscall.SIGTERM) }

// Kill ends Synapse as a crash would and keeps its data.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

// Restart stops and starts Synapse.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	return s.StartProcess(ctx)
}

// WithoutTURN restarts Synapse so that /voip/turnServer answers {}, or again what was configured.
func (s *Server) WithoutTURN(ctx context.Context, without bool) error {
	path := filepath.Join(s.dir, "homeserver.yaml")
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read Synapse's configuration: %w", err)
	}
	from, to := "\nturn_uris:", "\nx_turn_uris:" // Synapse ignores keys that it does not know
	if !without {
		from, to = to, from
	}
	if err := os.WriteFile(path, bytes.Replace(content, []byte(from), []byte(to), 1), 0o600); err != nil {
		return fmt.Errorf("write Synapse's configuration: %w", err)
	}
	return s.Restart(ctx)
}

// Pause freezes Synapse: connections are taken by the kernel, nothing is answered.
func (s *Server) Pause() error { return s.signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT) }

// Close ends Synapse and removes its directory. A database in a PostgreSQL cluster goes with the cluster.
func (s *Server) Close() error {
	return errors.Join(s.Kill(), os.RemoveAll(s.dir))
}

// CPU returns how much processor time the running process has used (proc_pid_stat(5)).
func (s *Server) CPU() (time.Duration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return 0, errors.New("the homeserver is not running")
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.process.Process.Pid))
	if err != nil {
		return 0, err
	}
	// Fields are counted from behind the program's name, which may hold anything: utime and stime are the 14th and 15th.
	_, after, _ := strings.Cut(string(stat), ") ")
	var ticks int
	for _, field := range strings.Fields(after)[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, fmt.Errorf("read processor time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / clockTicks, nil
}

// clockTicks is USER_HZ, the unit of /proc/PID/stat, the same on every Linux that Go runs on.
const clockTicks = 100

func (s *Server) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return errors.New("the homeserver is not running")
	}
	return syscall.Kill(-s.process.Process.Pid, sig)
}

// end signals the process group and waits; an orderly end has 15 s.
func (s *Server) end(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	pid, exited := s.process.Process.Pid, s.exited
	s.process = nil
	if err := syscall.Kill(-pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal Synapse: %w", err)
	}
	_ = syscall.Kill(-pid, syscall.SIGCONT) // it may be paused
	select {
	case <-exited:
		return nil
	case <-time.After(15 * time.Second):
		_ = syscall.Kill(-pid, syscall.SIGKILL)
		<-exited
		return errors.New("the homeserver did not end within 15 s, killed")
	}
}

// LogTail returns the last n bytes of what Synapse printed and logged.
func (s *Server) LogTail(n int) string {
	var b strings.Builder
	for _, file := range []string{filepath.Join(s.dir, "output"), s.logFile()} {
		content, _ := os.ReadFile(file)
		b.Write(content[max(0, len(content)-n):])
	}
	return b.String()
}

func (s *Server) logFile() string { return filepath.Join(s.dir, "homeserver.log") }

// choosePort returns want, or a port that is free.
func choosePort(want int) (int, error) {
	if want != 0 {
		return want, nil // Synapse says so if it is not free
	}
	free, err := ports.Free(1)
	if err != nil {
		return 0, fmt.Errorf("port for Synapse: %w", err)
	}
	return free[0], nil
}

// sweep removes directories of processes that were killed before they could clean up. Their servers are gone
// (Pdeathsig).
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	for _, d := range dirs {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(d), dirPrefix), "-")
		pid, err := strconv.Atoi(owner)
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(d)
		}
	}
}
