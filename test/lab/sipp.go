package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Sipp plays a scenario in some calls at once, and says back what it hears.
type Sipp struct {
	name    string
	errors  string // file
	log     string // file
	process *process
}

// NewSipp starts one that calls a number of the bridge that often, a call every so often. It gives up after the limit.
func (l *Lab) NewSipp(name, number, scenario string, calls int, every, limit time.Duration) (*Sipp, error) {
	dir, err := os.MkdirTemp(l.dir, "sipp-")
	if err != nil {
		return nil, fmt.Errorf("make sipp: %w", err)
	}
	file := filepath.Join(dir, "scenario.xml")
	if err := os.WriteFile(file, []byte(scenario), 0o600); err != nil {
		return nil, err
	}
	ports, err := freePortsThat(2, func(port int) bool { return port%2 == 0 }) // as RTP has them
	if err != nil {
		return nil, err
	}
	s := &Sipp{name: name, errors: filepath.Join(dir, "errors"), log: filepath.Join(dir, "logged")}
	cmd := exec.Command("sipp", l.SIPAddress(), "-sf", file, "-s", number, "-i", "127.0.0.1", "-p", fmt.Sprint(ports[0]), "-mi", "127.0.0.1",
		"-mp", fmt.Sprint(ports[1]), "-rtp_echo", "-m", fmt.Sprint(calls), "-l", fmt.Sprint(calls), "-r", "1", "-rp", fmt.Sprint(every.Milliseconds()), "-nostdin",
		"-timeout", fmt.Sprintf("%ds", int(limit.Seconds())), "-timeout_error", "-trace_err", "-error_file", s.errors,
		"-trace_logs", "-log_file", s.log,
		"-default_behaviors", "all,-abortunexp") // what comes while it sends is said again; what must not come makes it wait in vain for what must
	cmd.Dir = dir
	if s.process, err = startProcess("sipp", filepath.Join(dir, "log"), cmd); err != nil {
		return nil, err
	}
	l.own("sipp "+name, func() error { s.process.kill(); return nil })
	return s, nil
}

// Logged counts how often its scenario has written down these words.
func (s *Sipp) Logged(words string) int {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return 0 // nothing yet
	}
	return strings.Count(string(text), words)
}

// Running tells whether a call is not over yet.
func (s *Sipp) Running() bool { return s.process.running() }

// Close ends it without a word to the bridge.
func (s *Sipp) Close() { s.process.kill() }

// Wait waits until all calls are over, and fails if one of them did not go as the scenario wants.
func (s *Sipp) Wait(ctx context.Context) error {
	select {
	case <-s.process.exited:
	case <-ctx.Done():
		return fmt.Errorf("sipp %s: %w", s.name, context.Cause(ctx))
	}
	if s.process.err != nil {
		return fmt.Errorf("sipp %s: %w; %s\nits output ends with:\n%s", s.name, s.process.err, tailFile(s.errors, 3000), s.process.tail(2000))
	}
	return nil
}
