package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"trunkline/internal/testbed/ports"
	"trunkline/internal/testbed/postgres"
	"trunkline/internal/testbed/synapse"
)

// Options say which parts of the lab a run needs.
type Options struct {
	Homeserver bool      // Synapse on PostgreSQL
	Browser    bool      // Chromium and the pages
	Pages      bool      // only the pages, for a person's browser
	Bridge     bool      // the bridge's own binary; implies Homeserver
	Binary     string    // a bridge that is built already; "" = build it
	Progress   io.Writer // told what is done and why; nil = nobody
	Keep       bool      // leave the temporary directory behind
	WellKnown  bool      // ports that people know (pages 8010, homeserver 8008, SIP 5060) where they are free
}

// Lab owns everything it has started. Methods may be called from several goroutines.
type Lab struct {
	opts Options
	dir  string
	root string // of the repository

	Synapse  *synapse.Server
	Postgres *postgres.Cluster // of the homeserver
	Database *postgres.Cluster // of the bridge, nil without one: either may fail alone
	pages    *pageServer
	browser  *browser
	bridge   *Bridge
	voices   []*Voice
	steady   []*Voice

	called     int    // UDP port of the phone that the bridge can call
	calledFree func() // lets go of that port
	stunSilent atomic.Bool

	mu     sync.Mutex
	owned  []owned // closed in reverse order
	closed bool
	number int // the next number without a room
	users  int // made so far
}

type owned struct {
	name  string
	close func() error
}

// Start brings the wanted parts up. The caller must Close the lab also when a test fails or a signal arrives.
func Start(ctx context.Context, opts Options) (*Lab, error) {
	if opts.Progress == nil {
		opts.Progress = io.Discard
	}
	opts.Homeserver = opts.Homeserver || opts.Bridge
	root, err := repository()
	if err != nil {
		return nil, err
	}
	sweep()
	dir, err := os.MkdirTemp("", dirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	l := &Lab{opts: opts, dir: dir, root: root, number: firstNumber}
	if err := l.start(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) start(ctx context.Context) error {
	var err error
	if l.voices, l.steady, err = speech(ctx, filepath.Join(l.dir, "speech")); err != nil {
		return err
	}
	if l.opts.Browser || l.opts.Pages {
		if l.pages, err = l.servePages(ctx); err != nil {
			return err
		}
	}
	if l.opts.Browser {
		if err := l.startBrowser(); err != nil {
			return err
		}
	}
	if l.opts.Homeserver {
		if err := l.startHomeserver(ctx); err != nil {
			return err
		}
	}
	if l.opts.Bridge {
		return l.bridge.Start(ctx)
	}
	return nil
}

// startHomeserver starts PostgreSQL and Synapse, which reads the bridge's registration at start.
func (l *Lab) startHomeserver(ctx context.Context) (err error) {
	if l.Postgres, err = postgres.Start(ctx, l.opts.Progress); err != nil {
		return err
	}
	l.own("PostgreSQL", l.Postgres.Close)
	stun, err := l.serveSTUN()
	if err != nil {
		return err
	}
	config := synapse.Config{Postgres: l.Postgres, Progress: l.opts.Progress, TURNURIs: []string{stun}}
	if l.opts.Bridge {
		if l.Database, err = postgres.Start(ctx, l.opts.Progress); err != nil {
			return err
		}
		l.own("the bridge's PostgreSQL", l.Database.Close)
		if config.Port, err = l.port(homeserverPort); err != nil {
			return err
		}
		if l.bridge, err = l.prepareBridge(ctx, fmt.Sprintf("http://127.0.0.1:%d", config.Port)); err != nil {
			return err
		}
		config.Registrations = []string{l.bridge.registration}
	}
	if l.Synapse, err = synapse.Start(ctx, config); err != nil {
		return err
	}
	l.own("Synapse", l.Synapse.Close)
	if l.bridge != nil {
		l.own("bridge", l.bridge.Stop) // closed before Synapse: it takes its ghosts out of calls
	}
	return nil
}

// Ports that people know.
const (
	pagesPort      = 8010
	homeserverPort = 8008
	sipPort        = 5060
)

// port returns the well-known port if the lab should use it and it is free, else any free one.
func (l *Lab) port(known int) (int, error) {
	if l.opts.WellKnown && ports.IsFree(known) {
		return known, nil
	}
	found, err := ports.Free(1)
	if err != nil {
		return 0, err
	}
	return found[0], nil
}

// own remembers what Close must close.
func (l *Lab) own(name string, close func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owned = append(l.owned, owned{name, close})
}

// Close ends all processes, the youngest first, and removes the directory. Calling it again does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	all := l.owned
	l.mu.Unlock()
	var errs []error
	for _, o := range slices.Backward(all) {
		if err := o.close(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", o.name, err))
		}
	}
	if !l.opts.Keep {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}

// Dir returns the lab's folder with logs and recordings.
func (l *Lab) Dir() string { return l.dir }

// Voices returns everybody who can speak.
func (l *Lab) Voices() []*Voice { return l.voices }

// Voice returns one of the voices; there are as many as len(cast).
func (l *Lab) Voice(i int) *Voice { return l.voices[i%len(l.voices)] }

// Steady returns one of the voices that never pause, each in a band of its own; there are as many as len(hums).
func (l *Lab) Steady(i int) *Voice { return l.steady[i%len(l.steady)] }

func (l *Lab) say(format string, args ...any) { fmt.Fprintf(l.opts.Progress, format+"\n", args...) }

// dirPrefix marks our directories under os.TempDir for sweep.
const dirPrefix = "trunkline-lab-"

// sweep removes directories of labs that were killed before they could clean up; their processes died with them.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	for _, d := range dirs {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(d), dirPrefix), "-")
		if pid, err := strconv.Atoi(owner); err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(d)
		}
	}
}

// repository returns the root of the source tree: the nearest folder above with go.mod.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		return "", errors.New("the lab runs inside the source tree: no go.mod found above the current folder")
	}
}
