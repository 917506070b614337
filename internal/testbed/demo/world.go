package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/appservice"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
	"trunkline/internal/testbed/ports"
	"trunkline/internal/testbed/synapse"
)

// Which event types members of the demo room must be allowed to send: in a room made with today's defaults they may not.
const (
	callType   = "org.matrix.msc3401.call"
	memberType = "org.matrix.msc3401.call.member"
)

const (
	domain    = "lab.local"
	readiness = time.Minute
)

// world is everything that takes part.
type world struct {
	opts options
	show *progress
	dir  string

	homeserver string // URL
	hostName   string
	register   func(ctx context.Context, name string) (member.Config, error)
	closers    []func() error

	bridge    *exec.Cmd
	bridgeLog string
	sip       string

	alice *member.Member
	phone *phone.Phone
	room  id.RoomID
}

// openWorld starts (or, attached, finds) homeserver and bridge, a room, its member, and a phone.
func openWorld(ctx context.Context, o options, show *progress) (*world, error) {
	w := &world{opts: o, show: show, sip: o.sip}
	var err error
	if w.dir, err = os.MkdirTemp("", "trunkline-demo-"); err != nil {
		return nil, err
	}
	if o.attach {
		err = w.findHomeserver()
	} else {
		err = w.startAll(ctx)
	}
	if err == nil {
		err = w.people(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, w.close(true))
	}
	return w, nil
}

func (w *world) findHomeserver() error {
	w.homeserver = w.opts.homeserver
	w.register = func(ctx context.Context, name string) (member.Config, error) {
		u, err := synapse.RegisterAt(ctx, w.homeserver, w.opts.secret, name)
		_, w.hostName, _ = strings.Cut(string(u.UserID), ":")
		return memberConfig(w.homeserver, u.UserID, u.DeviceID, u.AccessToken), err
	}
	return nil
}

func memberConfig(url string, user id.UserID, device id.DeviceID, token string) member.Config {
	return member.Config{URL: url, UserID: user, DeviceID: device, AccessToken: token, Kind: member.Hydrogen}
}

// startAll starts a homeserver and the bridge with a configuration of their own.
func (w *world) startAll(ctx context.Context) error {
	free, err := ports.Free(4)
	if err != nil {
		return err
	}
	hs, as, sip, media := free[0], free[1], free[2], free[3]
	w.sip = fmt.Sprintf("127.0.0.1:%d", sip)
	w.homeserver, w.hostName = fmt.Sprintf("http://127.0.0.1:%d", hs), domain
	config := filepath.Join(w.dir, "config.yaml")
	text := fmt.Sprintf(configText, w.homeserver, domain, as, as, filepath.Join(w.dir, "trunkline.db"),
		w.sip, w.sip, media, w.opts.number, w.opts.room, domain)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, w.opts.bridge, "-c", config, "-g").CombinedOutput(); err != nil {
		return fmt.Errorf("bridge -g: %w\n%s", err, out)
	}
	registration := filepath.Join(w.dir, "registration.yaml")
	if w.opts.offline {
		err = w.startStandIn(hs, registration)
	} else {
		err = w.startSynapse(ctx, hs, registration)
	}
	if err != nil {
		return err
	}
	return w.startBridge(ctx, config, as)
}

const configText = `homeserver: {address: %q, domain: %s}
appservice: {listen: "127.0.0.1:%d", url: "http://127.0.0.1:%d"}
database: {address: "sqlite:%s"}
sip:
  listen: [{transport: udp, address: %q}, {transport: tcp, address: %q}]
  trunks: [{name: demo, networks: [127.0.0.0/8]}]
rtp: {address: 127.0.0.1}
webrtc: {addresses: [127.0.0.1], loopback: true, port: %d}
admin: {listen: ""}
log: {level: debug}
routes: [{number: %q, room: "#%s:%s"}]
`

func (w *world) startSynapse(ctx context.Context, port int, registration string) error {
	w.show.say("starting Synapse %s on SQLite", synapse.Version)
	s, err := synapse.Start(ctx, synapse.Config{
		ServerName: domain, Port: port, Registrations: []string{registration}, Progress: w.show,
	})
	if err != nil {
		return fmt.Errorf("start Synapse (without Python or PyPI: make demo OFFLINE=1): %w", err)
	}
	w.closers = append(w.closers, s.Close)
	w.register = func(ctx context.Context, name string) (member.Config, error) {
		u, err := s.Register(ctx, name)
		return memberConfig(w.homeserver, u.UserID, u.DeviceID, u.AccessToken), err
	}
	return nil
}

func (w *world) startStandIn(port int, registration string) error {
	w.show.say("starting the homeserver stand-in")
	r, err := appservice.LoadRegistration(registration)
	if err != nil {
		return err
	}
	hs := homeserver.New(homeserver.Config{Domain: domain})
	hs.AppService(r, &http.Client{Timeout: time.Minute})
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: hs, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }() // ends with Close
	w.closers = append(w.closers, func() error { hs.Close(); return server.Close() })
	w.register = func(_ context.Context, name string) (member.Config, error) {
		u := hs.User(name)
		return memberConfig(w.homeserver, u.UserID, u.DeviceID, u.AccessToken), nil
	}
	return nil
}

func (w *world) startBridge(ctx context.Context, config string, port int) error {
	w.show.say("starting the bridge")
	w.bridgeLog = filepath.Join(w.dir, "bridge.log")
	log, err := os.Create(w.bridgeLog)
	if err != nil {
		return err
	}
	defer log.Close()
	w.bridge = exec.Command(w.opts.bridge, "-c", config)
	w.bridge.Stdout, w.bridge.Stderr = log, log
	w.bridge.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := w.bridge.Start(); err != nil {
		return fmt.Errorf("start bridge: %w", err)
	}
	w.closers = append(w.closers, w.stopBridge)
	return await(ctx, readiness, "the bridge to be ready", func() bool {
		r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/_matrix/mau/ready", port))
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}

func (w *world) stopBridge() error {
	if err := w.bridge.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop bridge: %w", err)
	}
	if err := w.bridge.Wait(); err != nil {
		return fmt.Errorf("the bridge did not stop cleanly: %w", err)
	}
	return nil
}

// people makes the member with a room, and the phone.
func (w *world) people(ctx context.Context) error {
	local, err := addressTowards(w.sip)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("alice%d", time.Now().UnixNano()%1e9)
	cfg, err := w.register(ctx, name)
	if err != nil {
		return err
	}
	cfg.Address = local
	if w.alice, err = member.New(ctx, cfg); err != nil {
		return fmt.Errorf("log alice in: %w", err)
	}
	w.closers = append(w.closers, func() error { w.alice.Close(); return nil })
	answer, err := w.alice.Client().CreateRoom(ctx, &mautrix.ReqCreateRoom{
		Preset: "private_chat", RoomAliasName: w.opts.room, Invite: []id.UserID{id.NewUserID(w.opts.bot, w.hostName)},
		PowerLevelOverride: &event.PowerLevelsEventContent{Events: map[string]int{callType: 0, memberType: 0}},
	})
	if err != nil {
		return fmt.Errorf("create room: %w", err)
	}
	w.room = answer.RoomID
	w.show.say("room #%s:%s: %s has invited @%s", w.opts.room, w.hostName, name, w.opts.bot)
	if w.opts.attach { // the deployment stays: leave the alias to the next call
		alias := id.NewRoomAlias(w.opts.room, w.hostName)
		w.closers = append(w.closers, func() error {
			_, err := w.alice.Client().DeleteAlias(context.WithoutCancel(ctx), alias)
			return err
		})
	}
	w.phone, err = phone.Open(phone.Config{Local: local, User: "+493012345678", Name: "Phil Phone"})
	if err != nil {
		return err
	}
	w.closers = append(w.closers, w.phone.Close)
	return nil
}

// addressTowards is this machine's address on the way to the bridge: what phone and member say in SIP and SDP.
func addressTowards(sip string) (netip.Addr, error) {
	conn, err := net.Dial("udp", sip) // sends nothing
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr(), nil
}

// close ends everything in reverse order. The bridge's log is shown when something failed.
func (w *world) close(failed bool) error {
	var errs []error
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	if failed && w.bridgeLog != "" {
		if log, err := os.ReadFile(w.bridgeLog); err == nil {
			fmt.Fprintf(os.Stderr, "\nThe bridge's log:\n%s\n", log[max(0, len(log)-8000):])
		}
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

func await(ctx context.Context, patience time.Duration, what string, holds func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("waited %v for %s", patience, what))
	defer cancel()
	for !holds() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}
