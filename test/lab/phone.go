package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"trunkline/internal/testbed/ports"
)

// Phone is a baresip: it speaks its voice while a call is up and writes down what it hears.
type Phone struct {
	Name   string
	Number string // what it calls itself
	voice  *Voice
	dir    string
	host   string // address of the machine it runs on
	sip    int    // UDP port
	target string // address of the bridge, with its transport

	process *process
	control *baresipControl
	pace    pace
	watches sync.WaitGroup // until the process ends

	mu     sync.Mutex
	events []PhoneEvent
	came   chan struct{} // closed and replaced at every event
}

// PhoneEvent is one event of baresip, such as CALL_ESTABLISHED.
type PhoneEvent struct {
	Type  string
	Param string // with CALL_CLOSED: why, as baresip says it
	Call  string // its Call-ID
	At    time.Time
}

// Events a test waits for.
const (
	CallIncoming    = "CALL_INCOMING"
	CallRinging     = "CALL_RINGING"
	CallEstablished = "CALL_ESTABLISHED"
	CallRTP         = "CALL_RTPESTAB" // the first packet of the far end
	CallClosed      = "CALL_CLOSED"
	CallDigit       = "CALL_DTMF_START"
)

// PhoneOptions are the unusual wishes.
type PhoneOptions struct {
	Codecs    string   // in baresip's words, "" = PCMU,PCMA
	Transport string   // "udp" (default) or "tcp"
	Number    string   // "" = made from the phone's name
	Called    bool     // it is the one that the bridge's trunk leads to; there can be one in a lab
	Manual    bool     // calls to it ring until PickUp
	Encrypted bool     // speaks and hears encrypted sound only (SDES)
	Machine   *Machine // where it runs; nil = here
}

// parameter returns the transport as a parameter of a SIP URI.
func (o PhoneOptions) parameter() string {
	if o.Transport == "" {
		return ""
	}
	return ";transport=" + o.Transport
}

const phoneConfig = `sip_listen %[1]s:%[2]d
net_interface %[1]s
audio_source aufile,%[3]s
audio_player aubridge,null
audio_alert aubridge,null
ausrc_srate 8000
auplay_srate 8000
ausrc_channels 1
auplay_channels 1
jitter_buffer_delay 0-0
rtp_ports %[4]d-%[5]d
rtp_timeout 60
snd_path %[6]s
module_path %[7]s
module g711.so
module aufile.so
module aubridge.so
module sndfile.so
module uuid.so
module srtp.so
module_tmp account.so
module_app ctrl_tcp.so
module_app menu.so
ctrl_tcp_listen %[1]s:%[8]d
ringback_disabled yes
`

// NewPhone starts a baresip in a folder of its own. It answers calls by itself, unless told otherwise, and dials through the bridge.
func (l *Lab) NewPhone(ctx context.Context, name string, voice *Voice, opts PhoneOptions) (*Phone, error) {
	found, err := ports.Free(3)
	if err != nil {
		return nil, err
	}
	if opts.Called {
		l.calledFree()
		found[0] = l.called
	}
	dir, err := os.MkdirTemp(l.dir, "phone-"+name+"-")
	if err != nil {
		return nil, fmt.Errorf("make phone %s: %w", name, err)
	}
	number := opts.Number
	if number == "" {
		number = fmt.Sprintf("+4930%07d", found[0])
	}
	p := &Phone{Name: name, Number: number, voice: voice, dir: dir, host: opts.Machine.address(), sip: found[0], target: l.SIPAddress() + opts.parameter(), came: make(chan struct{})}
	if err := p.configure(found, opts); err != nil {
		return nil, fmt.Errorf("make phone %s: %w", name, err)
	}
	cmd := opts.Machine.command("baresip", "-f", dir, "-v")
	cmd.Env = append(os.Environ(), "HOME="+dir)
	if p.process, err = startProcess("baresip "+name, filepath.Join(dir, "log"), cmd); err != nil {
		return nil, err
	}
	p.watches.Go(func() { p.pace.watch(p) })
	l.own("phone "+name, p.Close)
	if p.control, err = dialBaresip(ctx, fmt.Sprintf("%s:%d", p.host, found[1]), p.process, p.put); err != nil {
		return nil, fmt.Errorf("phone %s: %w; its output ends with:\n%s", name, err, p.process.tail(2000))
	}
	return p, nil
}

func (p *Phone) configure(found []int, opts PhoneOptions) error {
	modules := ""
	for _, m := range []string{"/usr/lib/baresip/modules", "/usr/local/lib/baresip/modules"} {
		if _, err := os.Stat(m); err == nil {
			modules = m
			break
		}
	}
	if modules == "" {
		return errors.New("baresip's modules are not installed (apt-get install baresip-core)")
	}
	codecs := opts.Codecs
	if codecs == "" {
		codecs = "PCMU,PCMA"
	}
	// Two RTP ports per stream out of a range of this phone's own.
	rtp := found[2] // even
	config := fmt.Sprintf(phoneConfig, p.host, p.sip, p.voice.Long, rtp, rtp+40, p.dir, modules, found[1])
	answers := "auto"
	if opts.Manual {
		answers = "manual"
	}
	account := fmt.Sprintf("%q <sip:%s@%s:%d%s>;regint=0;answermode=%s;audio_codecs=%s",
		"Phone "+p.Name, p.Number, p.host, p.sip, opts.parameter(), answers, codecs)
	if opts.Encrypted {
		account += ";mediaenc=srtp-mand"
	}
	return errors.Join(
		os.WriteFile(filepath.Join(p.dir, "config"), []byte(config), 0o600),
		os.WriteFile(filepath.Join(p.dir, "accounts"), []byte(account+"\n"), 0o600),
	)
}

// Address returns where the phone can be called.
func (p *Phone) Address() string { return fmt.Sprintf("sip:%s@%s:%d", p.Number, p.host, p.sip) }

// Dial calls a number of the bridge, or any SIP address. It returns when the INVITE is on its way.
func (p *Phone) Dial(ctx context.Context, number string) error {
	if !strings.HasPrefix(number, "sip:") {
		number = "sip:" + number + "@" + p.target
	}
	return p.command(ctx, "dial", number)
}

// PickUp answers the call that rings.
func (p *Phone) PickUp(ctx context.Context) error { return p.command(ctx, "accept", "") }

// Hangup ends the call, the newest one if there are two.
func (p *Phone) Hangup(ctx context.Context) error { return p.command(ctx, "hangup", "") }

// Hold puts the far end on hold; Resume ends that.
func (p *Phone) Hold(ctx context.Context) error   { return p.command(ctx, "hold", "") }
func (p *Phone) Resume(ctx context.Context) error { return p.command(ctx, "resume", "") }

// Transfer asks the far end, by REFER, to have its call with somebody else. baresip hangs up as soon as it hears that this has worked.
func (p *Phone) Transfer(ctx context.Context, to string) error { return p.command(ctx, "transfer", to) }

// SendDigit presses a key for a quarter of a second (RFC 4733).
func (p *Phone) SendDigit(ctx context.Context, digit rune) error {
	if err := p.command(ctx, "sndcode", string(digit)); err != nil {
		return err
	}
	time.Sleep(250 * time.Millisecond)
	return p.command(ctx, "sndcode", "") // key up
}

func (p *Phone) command(ctx context.Context, command, params string) error {
	if err := p.control.command(ctx, command, params); err != nil {
		return fmt.Errorf("phone %s: %s: %w", p.Name, command, err)
	}
	return nil
}

// put takes an event from the control connection.
func (p *Phone) put(ev PhoneEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, ev)
	close(p.came)
	p.came = make(chan struct{})
}

// Events returns all events so far.
func (p *Phone) Events() []PhoneEvent {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

// Await waits for an event of this type that came after `since`, and returns it.
func (p *Phone) Await(ctx context.Context, event string, since time.Time) (PhoneEvent, error) {
	for {
		p.mu.Lock()
		came := p.came
		for _, ev := range p.events {
			if ev.Type == event && ev.At.After(since) {
				p.mu.Unlock()
				return ev, nil
			}
		}
		p.mu.Unlock()
		select {
		case <-came:
		case <-p.process.exited:
			return PhoneEvent{}, fmt.Errorf("phone %s ended while waiting for %s", p.Name, event)
		case <-ctx.Done():
			return PhoneEvent{}, fmt.Errorf("phone %s: no %s: %w", p.Name, event, context.Cause(ctx))
		}
	}
}

// last returns the latest event of a type.
func (p *Phone) last(event string) (PhoneEvent, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ev := range slices.Backward(p.events) {
		if ev.Type == event {
			return ev, true
		}
	}
	return PhoneEvent{}, false
}

// InCall reports whether a call is established now.
func (p *Phone) InCall() bool { return len(p.Calls()) > 0 }

// Calls returns the calls that are established now, the oldest first: a phone that is transferred has two for a while.
func (p *Phone) Calls() (ids []string) {
	for _, ev := range p.Events() {
		switch ev.Type {
		case CallEstablished:
			ids = append(ids, ev.Call)
		case CallClosed:
			ids = slices.DeleteFunc(ids, func(id string) bool { return id == ev.Call })
		}
	}
	return ids
}

// Rings reports whether a call to it rings now, and since when.
func (p *Phone) Rings() (since time.Time, yes bool) {
	in, ok := p.last(CallIncoming)
	up, answered := p.last(CallEstablished)
	down, ended := p.last(CallClosed)
	return in.At, ok && (!answered || up.At.Before(in.At)) && (!ended || down.At.Before(in.At))
}

// Voice returns what the phone plays in calls.
func (p *Phone) Voice() *Voice { return p.voice }

// Saying tells what the phone says in the call: the file starts with the call. baresip opens the file for the sent
// sound just before it takes the first frame from the source, so the birth of that file is the moment.
func (p *Phone) Saying() Saying {
	s := Saying{Voice: p.voice}
	if file, err := p.dump("enc"); err == nil {
		s.Start, _ = birth(file)
	}
	return s
}

// Heard returns what the phone heard in its latest call so far. Frames that did not arrive are missing in it, so times
// hold as long as the far end sends without a break.
func (p *Phone) Heard() (Recording, error) {
	file, err := p.dump("dec")
	if err != nil {
		return Recording{}, fmt.Errorf("phone %s heard nothing: %w", p.Name, err)
	}
	r, err := ReadWAV(file)
	if err != nil {
		return Recording{}, err
	}
	if first, ok := p.last(CallRTP); ok {
		r.Start = first.At
	} else if r.Start, err = birth(file); err != nil {
		return Recording{}, err
	}
	return r, nil
}

// HeardByClock is Heard with silence where nothing came, so that times hold whatever happens to the line.
func (p *Phone) HeardByClock() (Recording, error) {
	file, err := p.dump("dec")
	if err != nil {
		return Recording{}, fmt.Errorf("phone %s heard nothing: %w", p.Name, err)
	}
	r, err := p.Heard()
	if err != nil {
		return Recording{}, err
	}
	return p.pace.stretch(r, file), nil
}

// dump returns the newest file of the sndfile module in one direction.
func (p *Phone) dump(direction string) (string, error) {
	files, err := filepath.Glob(filepath.Join(p.dir, "dump-*-"+direction+".wav"))
	if err != nil {
		return "", err
	}
	if len(files) == 0 {
		return "", os.ErrNotExist
	}
	return slices.Max(files), nil
}

// birth returns when a file was made.
func birth(path string) (time.Time, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_BTIME, &st); err != nil {
		return time.Time{}, fmt.Errorf("birth of %s: %w", path, err)
	}
	return time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)), nil
}

// State describes the phone for a failure message.
func (p *Phone) State() string {
	var b strings.Builder
	fmt.Fprintf(&b, "phone %s (%s), in call: %t\n", p.Name, p.Address(), p.InCall())
	for _, ev := range p.Events() {
		fmt.Fprintf(&b, "  %s %s %s\n", ev.At.Format("15:04:05.000"), ev.Type, ev.Param)
	}
	fmt.Fprintf(&b, "  output ends with:\n%s\n", p.process.tail(1500))
	return b.String()
}

// Close ends the phone, hanging up first so that nobody waits for its packets.
func (p *Phone) Close() error {
	if p.control != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if p.InCall() && p.process.running() {
			_ = p.Hangup(ctx)
			_, _ = p.Await(ctx, CallClosed, time.Now().Add(-time.Second))
		}
		p.control.close()
	}
	p.process.kill() // baresip 1.0.0 may hang at SIGTERM with a call up; nothing of it is worth an orderly end
	p.watches.Wait()
	return nil
}
