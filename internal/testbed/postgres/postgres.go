package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ErrNotInstalled says that no PostgreSQL server was found on this machine.
var ErrNotInstalled = errors.New("no PostgreSQL server found under /usr/lib/postgresql or in PATH " +
	"(Debian, Ubuntu: apt-get install postgresql)")

// port names the socket file. The socket lives in a private directory, so it cannot collide with another server's.
const port = 5432

// dirPrefix marks our directories under os.TempDir for sweep.
const dirPrefix = "trunkline-pg-"

// Cluster is one running server with its directory.
type Cluster struct {
	bin  string // folder of initdb, postgres, createdb
	dir  string // data/, the socket, log
	cred *syscall.Credential

	mu     sync.Mutex
	server *exec.Cmd     // nil while stopped
	exited chan struct{} // closed when server has been waited for
}

// New starts a cluster that lives as long as the test. Where PostgreSQL is not installed the test is skipped, except
// in CI (environment CI=true), where a missing server is a failure.
func New(t testing.TB) *Cluster {
	t.Helper()
	c, err := Start(context.Background(), io.Discard)
	switch {
	case errors.Is(err, ErrNotInstalled) && os.Getenv("CI") != "true":
		t.Skip("reason: ", err) // `make test` installs it
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close PostgreSQL: %v", err)
		}
	})
	return c
}

// Start creates a cluster in a new temporary directory and starts its server. progress is told what is done; it may
// be nil. The caller must Close the cluster.
func Start(ctx context.Context, progress io.Writer) (*Cluster, error) {
	bin, err := findBin()
	if err != nil {
		return nil, err
	}
	if progress == nil {
		progress = io.Discard
	}
	cred, err := unprivileged()
	if err != nil {
		return nil, err
	}
	sweep()
	dir, err := os.MkdirTemp("", dirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, fmt.Errorf("make cluster directory: %w", err)
	}
	c := &Cluster{bin: bin, dir: dir, cred: cred}
	if err := c.create(ctx, progress); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return c, nil
}

func (c *Cluster) create(ctx context.Context, progress io.Writer) error {
	if c.cred != nil {
		if err := os.Chown(c.dir, int(c.cred.Uid), int(c.cred.Gid)); err != nil {
			return fmt.Errorf("give cluster directory away: %w", err)
		}
	}
	fmt.Fprintf(progress, "PostgreSQL: private cluster in %s (no network port, removed at the end)\n", c.dir)
	err := c.run(ctx, "initdb", "-D", c.data(), "-A", "trust", "-E", "UTF8", "--locale=C", "-U", "postgres", "--no-sync")
	if err != nil {
		return err
	}
	return c.StartServer(ctx)
}

// Dir returns the folder of the server's socket.
func (c *Cluster) Dir() string { return c.dir }

// Port returns the number in the socket's name.
func (c *Cluster) Port() int { return port }

// URI returns the connection URI of a database, as pgx and libpq take it.
func (c *Cluster) URI(database string) string {
	q := url.Values{"host": {c.dir}, "port": {strconv.Itoa(port)}, "sslmode": {"disable"}}
	return "postgres://postgres@/" + url.PathEscape(database) + "?" + q.Encode()
}

// CreateDatabase makes an empty database and returns its URI.
func (c *Cluster) CreateDatabase(name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := c.run(ctx, "createdb", "-h", c.dir, "-p", strconv.Itoa(port), "-U", "postgres", "-T", "template0", name)
	return c.URI(name), err
}

// StartServer starts the server again after StopServer or Kill.
func (c *Cluster) StartServer(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil {
		return nil
	}
	log, err := os.OpenFile(c.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open PostgreSQL log: %w", err)
	}
	defer log.Close()
	// synchronous_commit stays on: with fsync off it costs little, and rows must survive Kill.
	cmd := exec.Command(filepath.Join(c.bin, "postgres"), "-D", c.data(), "-p", strconv.Itoa(port), "-k", c.dir,
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=100")
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.dir, log, log
	// SIGQUIT is PostgreSQL's immediate shutdown: with it the server and its children end when we do.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGQUIT, Credential: c.cred}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	if err := c.awaitReady(ctx, exited); err != nil {
		_ = cmd.Process.Kill()
		<-exited
		return err
	}
	c.server, c.exited = cmd, exited
	return nil
}

// awaitReady polls until the server takes connections.
func (c *Cluster) awaitReady(ctx context.Context, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := c.run(ctx, "pg_isready", "-q", "-h", c.dir, "-p", strconv.Itoa(port), "-U", "postgres")
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("PostgreSQL ended at start; its log ends with:\n%s", tail(c.logFile()))
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL not ready: %w; its log ends with:\n%s", ctx.Err(), tail(c.logFile()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// StopServer ends the server in an orderly way (open connections are cut) and keeps the data for StartServer.
func (c *Cluster) StopServer() error { return c.end(syscall.SIGINT) }

// Kill ends the server without a checkpoint, as a power cut would (except that fsync is off).
func (c *Cluster) Kill() error { return c.end(syscall.SIGQUIT) }

func (c *Cluster) end(sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == nil {
		return nil
	}
	cmd, exited := c.server, c.exited
	c.server = nil
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal PostgreSQL: %w", err)
	}
	select {
	case <-exited:
		return nil
	case <-time.After(15 * time.Second):
		_ = cmd.Process.Kill()
		<-exited
		return errors.New("PostgreSQL did not end within 15 s, killed")
	}
}

// Close ends the server and removes its directory.
func (c *Cluster) Close() error {
	return errors.Join(c.end(syscall.SIGQUIT), os.RemoveAll(c.dir))
}

// run runs one of PostgreSQL's programs as the cluster's owner.
func (c *Cluster) run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, program), args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+c.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: c.cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(out))
	}
	return nil
}

func (c *Cluster) data() string    { return filepath.Join(c.dir, "data") }
func (c *Cluster) logFile() string { return filepath.Join(c.dir, "log") }

// findBin returns the folder of the newest installed server.
func findBin() (string, error) {
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(dirs, func(a, b string) int { return version(b) - version(a) })
	if p, err := exec.LookPath("initdb"); err == nil {
		dirs = append(dirs, filepath.Dir(p))
	}
	for _, d := range dirs {
		_, initErr := os.Stat(filepath.Join(d, "initdb"))
		_, serverErr := os.Stat(filepath.Join(d, "postgres"))
		if initErr == nil && serverErr == nil {
			return d, nil
		}
	}
	return "", ErrNotInstalled
}

// version reads 15 from /usr/lib/postgresql/15/bin.
func version(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

// unprivileged returns who runs the server when we are root, nil otherwise.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL refuses to run as root and neither user postgres nor nobody exists")
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

// tail returns the last lines of a log for an error message.
func tail(file string) string {
	b, _ := os.ReadFile(file)
	return string(b[max(0, len(b)-2000):])
}
