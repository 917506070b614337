package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"trunkline/internal/testbed/ports"
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
	found, err := ports.Free(2)
	if err != nil {
		return nil, err
	}
	return l.startSipp(name, scenario, limit, "-s", number, "-i", "127.0.0.1", "-p", fmt.Sprint(found[0]), "-mi", "127.0.0.1", "-mp", fmt.Sprint(found[1]),
		"-rtp_echo", "-m", fmt.Sprint(calls), "-l", fmt.Sprint(calls), "-r", "1", "-rp", fmt.Sprint(every.Milliseconds()),
		"-default_behaviors", "all,-abortunexp") // what comes while it sends is said again; what must not come makes it wait in vain for what must
}

// stranger is an address of this machine that belongs to no trunk of the lab's bridge.
const stranger = "127.0.77.1"

// aloneInvite is all that a flood is made of.
const aloneInvite = `<?xml version="1.0" encoding="UTF-8" ?><scenario name="flood"><send><![CDATA[

INVITE sip:[service]@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch]
Max-Forwards: 70
From: <sip:2001@[local_ip]>;tag=[pid]c[call_number]
To: <sip:[service]@[remote_ip]>
Call-ID: [call_id]
CSeq: 1 INVITE
Contact: <sip:2001@[local_ip]:[local_port]>
Content-Type: application/sdp
Content-Length: [len]

v=0
o=- 1 1 IN IP4 [local_ip]
s=-
c=IN IP4 [local_ip]
t=0 0
m=audio 4000 RTP/AVP 0
]]></send><pause milliseconds="500"/></scenario>`

// Flood sends INVITEs for a number from a stranger's address, so many a second and in all. One that is answered is a fault.
func (l *Lab) Flood(number string, perSecond, calls int) (*Sipp, error) {
	limit := 3*time.Duration(calls/perSecond)*time.Second + 20*time.Second
	return l.startSipp("stranger", aloneInvite, limit, "-s", number, "-i", stranger, "-m", fmt.Sprint(calls), "-l", fmt.Sprint(calls), "-r", fmt.Sprint(perSecond))
}

func (l *Lab) startSipp(name, scenario string, limit time.Duration, args ...string) (*Sipp, error) {
	dir, err := os.MkdirTemp(l.dir, "sipp-")
	if err != nil {
		return nil, fmt.Errorf("make sipp: %w", err)
	}
	file := filepath.Join(dir, "scenario.xml")
	if err := os.WriteFile(file, []byte(scenario), 0o600); err != nil {
		return nil, err
	}
	s := &Sipp{name: name, errors: filepath.Join(dir, "errors"), log: filepath.Join(dir, "logged")}
	cmd := exec.Command("sipp", append([]string{
		l.SIPAddress(), "-sf", file, "-nostdin", "-timeout", fmt.Sprintf("%ds", int(limit.Seconds())), "-timeout_error", "-trace_err", "-error_file", s.errors,
		"-trace_logs", "-log_file", s.log,
	}, args...)...)
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
