package synapse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Version is the Synapse that Install installs and that the bridge is tested with.
const Version = "1.163.2"

// requirements are given to pip. The marker file holds them: other requirements, another installation.
var requirements = []string{"matrix-synapse==" + Version, "psycopg2-binary"}

// ErrNoPython says that the machine lacks what is needed to install Synapse.
var ErrNoPython = errors.New("needs python3 (3.10 or newer) with the venv module " +
	"(Debian, Ubuntu: apt-get install python3 python3-venv)")

// CacheDir returns where Install puts Synapse: trunkline/synapse-VERSION in the user's cache directory, which
// XDG_CACHE_HOME moves.
func CacheDir() string {
	base, err := os.UserCacheDir()
	if err != nil { // neither HOME nor XDG_CACHE_HOME, as under some service managers
		base = filepath.Join(os.TempDir(), "cache-"+strconv.Itoa(os.Getuid()))
	}
	return filepath.Join(base, "trunkline", "synapse-"+Version)
}

// Install makes sure that Synapse is in dir ("" = CacheDir) and returns the path of its Python. progress is told what
// is done and why; it may be nil. Processes that install at the same time wait for each other.
func Install(ctx context.Context, dir string, progress io.Writer) (python string, err error) {
	if dir == "" {
		dir = CacheDir()
	}
	if progress == nil {
		progress = io.Discard
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make Synapse's directory: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(dir, "lock"), progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	venv, marker := filepath.Join(dir, "venv"), filepath.Join(dir, "complete")
	python = filepath.Join(venv, "bin", "python")
	if complete(marker, python) {
		return python, nil
	}
	started := time.Now()
	fmt.Fprintf(progress, "Synapse %s, the Matrix homeserver of this run, is not here yet.\n"+
		"Installing it with pip into %s (about 260 MB, a minute; once).\n", Version, venv)
	if err := install(ctx, venv, python); err != nil {
		return "", fmt.Errorf("install Synapse %s: %w", Version, err)
	}
	if err := os.WriteFile(marker, []byte(strings.Join(requirements, "\n")), 0o644); err != nil {
		return "", fmt.Errorf("mark Synapse's installation complete: %w", err)
	}
	fmt.Fprintf(progress, "Synapse %s installed in %d s.\n", Version, int(time.Since(started).Seconds()))
	return python, nil
}

func install(ctx context.Context, venv, python string) error {
	system, err := findPython(ctx)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(venv); err != nil { // what an interrupted installation left
		return err
	}
	if err := run(ctx, system, "-m", "venv", venv); err != nil {
		return err
	}
	// Wheels only for the two that would need a compiler: without one a clear refusal beats a page of Rust errors.
	args := []string{
		"-m", "pip", "install", "--quiet", "--disable-pip-version-check",
		"--only-binary", "matrix-synapse,psycopg2-binary",
	}
	if err := run(ctx, python, append(args, requirements...)...); err != nil {
		return fmt.Errorf("pip (needs a reachable PyPI or a configured index): %w", err)
	}
	return run(ctx, python, "-c", "import synapse.app.homeserver, psycopg2")
}

// findPython returns a system Python that can make virtual environments.
func findPython(ctx context.Context) (string, error) {
	const check = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))"
	for _, name := range []string{"python3", "python3.13", "python3.12", "python3.11", "python3.10"} {
		path, err := exec.LookPath(name)
		if err == nil && run(ctx, path, "-c", check) == nil {
			return path, nil
		}
	}
	return "", ErrNoPython
}

// complete reports whether an earlier Install ended well and nobody has removed its result since.
func complete(marker, python string) bool {
	got, err := os.ReadFile(marker)
	if err != nil || string(got) != strings.Join(requirements, "\n") {
		return false
	}
	_, err = os.Stat(python)
	return err == nil
}

// lock takes the lock file, which the kernel frees when its holder ends.
func lock(ctx context.Context, path string, progress io.Writer) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	for said := false; ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !said {
			fmt.Fprintf(progress, "Waiting for another process that installs Synapse (%s).\n", path)
			said = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for %s: %w", path, context.Cause(ctx))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// run runs a program that must succeed; its output is only told when it does not.
func run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.CombinedOutput()
	if err != nil {
		out = bytes.TrimSpace(out)
		return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, out[max(0, len(out)-1500):])
	}
	return nil
}
