package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/ports"
)

// The bridge's config routes this many numbers, each to the room with the alias of the same number. Rooms come later:
// a route names its room by alias.
const (
	firstNumber = 1000
	numbers     = 99
)

// ringNumber leads to the same room as the number does, and rings it where the number waits in the call.
func ringNumber(number int) string { return fmt.Sprint("9", number) }

// lobbyNumber leads there through the lobby.
func lobbyNumber(number int) string { return fmt.Sprint("8", number) }

// PINNumber leads to the room whose PIN is typed; see [Bridge.MakePIN].
const PINNumber = "8000"

func aliasName(number int) string { return fmt.Sprintf("line-%d", number) }

const (
	labDomain    = "lab.local"
	botName      = "trunkline"
	ghostName    = "_phone_"
	databaseName = "bridge"
)

// Bridge is the real binary with a config of the lab's.
type Bridge struct {
	lab          *Lab
	binary       string
	config       string   // path
	registration string   // path
	log          string   // path
	host         string   // address of the machine it runs on
	sip          string   // host:port
	as           int      // port of the application service
	admin        int      // port of metrics and profiles
	machine      *Machine // where it runs; nil = here
	process      *process
}

// Bot returns the bridge's bot, which rooms invite.
func (b *Bridge) Bot() id.UserID { return id.NewUserID(botName, labDomain) }

// GhostOf returns the user whose invitation calls a number.
func (b *Bridge) GhostOf(number string) id.UserID { return id.NewUserID(ghostName+number, labDomain) }

// IsGhost reports whether a user is one of the bridge's ghosts.
func (b *Bridge) IsGhost(user id.UserID) bool {
	return len(user) > len(ghostName) && user[1:1+len(ghostName)] == ghostName
}

// prepareBridge builds the binary, writes its config and lets it write its registration.
func (l *Lab) prepareBridge(ctx context.Context, homeserver string) (*Bridge, error) {
	dir := filepath.Join(l.dir, "bridge")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("prepare the bridge: %w", err)
	}
	b := &Bridge{
		lab: l, host: "127.0.0.1", binary: filepath.Join(dir, "bridge"), config: filepath.Join(dir, "config.yaml"),
		registration: filepath.Join(dir, "registration.yaml"), log: filepath.Join(dir, "log"),
	}
	if err := b.build(ctx); err != nil {
		return nil, err
	}
	if err := b.configure(homeserver); err != nil {
		return nil, fmt.Errorf("configure the bridge: %w", err)
	}
	generate := exec.CommandContext(ctx, b.binary, "-c", b.config, "-g")
	generate.Dir = dir
	if out, err := generate.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("bridge -g: %w\n%s", err, out)
	}
	if _, err := os.Stat(b.registration); err != nil {
		return nil, fmt.Errorf("bridge -g wrote no registration: %w", err)
	}
	return b, nil
}

// build makes the binary, unless the caller has one.
func (b *Bridge) build(ctx context.Context) error {
	if b.lab.opts.Binary != "" {
		path, err := filepath.Abs(b.lab.opts.Binary)
		b.binary = path
		return err
	}
	began := time.Now()
	build := exec.CommandContext(ctx, "go", "build", "-tags", "goolm,nolibopusfile", "-o", b.binary, "./cmd/bridge")
	build.Dir = b.lab.root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the bridge: %w\n%s", err, out)
	}
	b.lab.say("Bridge: built in %d ms", time.Since(began).Milliseconds())
	return nil
}

func (b *Bridge) configure(homeserver string) error {
	found, err := ports.Free(2)
	if err != nil {
		return err
	}
	database, err := b.lab.Database.CreateDatabase(databaseName)
	if err != nil {
		return err
	}
	sip, err := b.lab.port(sipPort)
	if err != nil {
		return err
	}
	if b.lab.called, b.lab.calledFree, err = holdPort(); err != nil {
		return err
	}
	b.lab.own("port of the phone to be called", func() error { b.lab.calledFree(); return nil })
	b.as, b.admin = found[0], found[1]
	b.sip = fmt.Sprintf("127.0.0.1:%d", sip)
	rtp := 20000 + (found[1]%100)*100 // a range of this lab's own, most likely
	var routes []map[string]any
	for n := firstNumber; n < firstNumber+numbers; n++ {
		room := "#" + aliasName(n) + ":" + labDomain
		routes = append(routes,
			map[string]any{"number": fmt.Sprint(n), "room": room, "intent": "m.prompt"},
			map[string]any{"number": ringNumber(n), "room": room, "intent": "m.ring", "ring_timeout": "8s", "refusal_tone": "3s"},
			map[string]any{"number": lobbyNumber(n), "room": room, "lobby": true})
	}
	routes = append(routes, map[string]any{"number": PINNumber, "room": "*", "pin": "database"})
	config, err := yaml.Marshal(map[string]any{
		"dial_in":    map[string]any{"pin_key": filepath.Join(filepath.Dir(b.config), "pin.key")},
		"homeserver": map[string]any{"address": homeserver, "domain": labDomain},
		"appservice": map[string]any{
			"registration": b.registration, "id": "trunkline-lab", "bot": botName, "ghost_prefix": ghostName,
			"listen": fmt.Sprintf("127.0.0.1:%d", b.as), "url": fmt.Sprintf("http://127.0.0.1:%d", b.as),
		},
		"database": map[string]any{"address": database},
		"sip": map[string]any{
			"listen": []any{
				map[string]string{"transport": "udp", "address": b.sip},
				map[string]string{"transport": "tcp", "address": b.sip},
			},
			"trunks": []any{map[string]any{
				"name": "lab", "networks": []string{"127.0.0.0/24"}, "proxy": fmt.Sprintf("127.0.0.1:%d", b.lab.called), "extensions": []string{"7xx"},
				"transfers": "trunk", // phones may hand over, in rooms that may call
			}},
		},
		"permissions": map[string]string{labDomain: "call"},
		"rtp":         map[string]any{"address": "127.0.0.1", "port_min": rtp, "port_max": rtp + 98},
		// Chromium offers its loopback addresses, too: no network card is needed.
		"webrtc": map[string]any{"loopback": true},
		"routes": routes,
		"admin":  map[string]any{"listen": fmt.Sprintf("127.0.0.1:%d", b.admin)},
		"log":    map[string]any{"level": "debug"},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(b.config, config, 0o600)
}

// RestartWith stops the bridge and starts it with another value of a setting, and returns what puts the old one back the same
// way.
func (b *Bridge) RestartWith(ctx context.Context, group, key string, value any) (undo func(context.Context) error, err error) {
	return b.restartAfter(ctx, func(config map[string]any) {
		settings, _ := config[group].(map[string]any)
		if settings == nil {
			settings = map[string]any{}
		}
		settings[key] = value
		config[group] = settings
	})
}

// restartAfter is RestartWith for any change.
func (b *Bridge) restartAfter(ctx context.Context, change func(config map[string]any)) (undo func(context.Context) error, err error) {
	before, err := os.ReadFile(b.config)
	if err != nil {
		return nil, err
	}
	config := map[string]any{}
	if err := yaml.Unmarshal(before, &config); err != nil {
		return nil, fmt.Errorf("read the bridge's config: %w", err)
	}
	change(config)
	after, err := yaml.Marshal(config)
	if err != nil {
		return nil, err
	}
	restart := func(ctx context.Context, config []byte) error {
		if err := b.Stop(); err != nil {
			return fmt.Errorf("stop the bridge: %w", err)
		}
		if err := os.WriteFile(b.config, config, 0o600); err != nil {
			return err
		}
		return b.Start(ctx)
	}
	return func(ctx context.Context) error { return restart(ctx, before) }, restart(ctx, after)
}

// Start starts the bridge and waits until it says that it is ready.
func (b *Bridge) Start(ctx context.Context) (err error) {
	cmd := b.machine.command(b.binary, "-c", b.config)
	cmd.Dir = filepath.Dir(b.config)
	began := time.Now()
	if b.process, err = startProcess("bridge", b.log, cmd); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("not ready after 30 s"))
	defer cancel()
	for !b.Ready(ctx) {
		select {
		case <-b.process.exited:
			return fmt.Errorf("the bridge ended at start: %w; its output ends with:\n%s", b.process.err, b.LogTail(4000))
		case <-ctx.Done():
			return fmt.Errorf("start the bridge: %w; its output ends with:\n%s", context.Cause(ctx), b.LogTail(4000))
		case <-time.After(50 * time.Millisecond):
		}
	}
	b.lab.say("Bridge: ready after %d ms, SIP on %s", time.Since(began).Milliseconds(), b.sip)
	return nil
}

// Ready reports whether the bridge says that it would serve a call that came now.
func (b *Bridge) Ready(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d/_matrix/mau/ready", b.host, b.as), nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Stop ends the bridge in an orderly way.
func (b *Bridge) Stop() error { return b.process.stop(15 * time.Second) }

// Kill ends it as a crash would.
func (b *Bridge) Kill() { b.process.kill() }

// HasUnread reports whether the homeserver has said something that the bridge has not read.
func (b *Bridge) HasUnread() (bool, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", b.process.cmd.Process.Pid))
	if err != nil {
		return false, err
	}
	port := fmt.Sprintf(":%04X", b.as)
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line) // sl, local, remote, state, tx_queue:rx_queue …
		if len(fields) < 5 || !strings.HasSuffix(fields[1], port) || fields[3] != "01" {
			continue
		}
		if _, unread, _ := strings.Cut(fields[4], ":"); unread != "00000000" {
			return true, nil
		}
	}
	return false, nil
}

// Pause freezes it, as a machine does that has no more memory; Resume ends that.
func (b *Bridge) Pause() error  { return b.process.signal(syscall.SIGSTOP) }
func (b *Bridge) Resume() error { return b.process.signal(syscall.SIGCONT) }

// Running reports whether the process is there.
func (b *Bridge) Running() bool { return b.process != nil && b.process.running() }

// Exited is closed when the process has ended.
func (b *Bridge) Exited() <-chan struct{} { return b.process.exited }

// Log returns the path of its output.
func (b *Bridge) Log() string { return b.log }

// LogTail returns the last n bytes of its output.
func (b *Bridge) LogTail(n int) string { return tailFile(b.log, n) }

// Metrics returns where the bridge offers its metrics and profiles.
func (b *Bridge) Metrics() string { return fmt.Sprintf("http://%s:%d", b.host, b.admin) }

// Counters returns the bridge's own metrics that are not zero, for failure messages: late frames and concealed sound
// tell a starved machine from a fault.
func (b *Bridge) Counters(ctx context.Context) string {
	text, err := b.ask(ctx, "/metrics")
	if err != nil {
		return err.Error()
	}
	var lines strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "trunkline_") && !strings.HasSuffix(line, " 0\n") {
			lines.WriteString("  " + line)
		}
	}
	return lines.String()
}

// MakePIN asks the bridge, as an admin does, for a PIN that leads to a room.
func (b *Bridge) MakePIN(ctx context.Context, room id.RoomID) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.Metrics()+"/pins?room="+url.QueryEscape(string(room)), nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("make a PIN: %w", err)
	}
	defer resp.Body.Close()
	var made struct{ PIN string }
	if err := json.NewDecoder(resp.Body).Decode(&made); err != nil || made.PIN == "" {
		return "", fmt.Errorf("make a PIN: status %d, %w", resp.StatusCode, err)
	}
	return made.PIN, nil
}

// Memory returns the bridge's resident memory in bytes.
func (b *Bridge) Memory() (int64, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.process.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return residentBytes(string(content))
}

// residentBytes reads the VmRSS line of a process's status.
func residentBytes(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb * 1024, err
		}
	}
	return 0, errors.New("no VmRSS in the process status")
}

// Bridge returns the bridge, nil if the lab runs without.
func (l *Lab) Bridge() *Bridge { return l.bridge }

// SIPAddress returns where the bridge takes calls, host:port; "" without one.
func (l *Lab) SIPAddress() string {
	if l.bridge == nil {
		return ""
	}
	return l.bridge.sip
}

// SIP returns where this bridge takes calls, host:port.
func (b *Bridge) SIP() string { return b.sip }

// Logged tells whether a line of the bridge's log since then has all these words.
func (b *Bridge) Logged(since time.Time, words ...string) bool {
	content, err := os.ReadFile(b.log)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(content)) {
		stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		if at, err := time.Parse(time.RFC3339Nano, stamp); err != nil || at.Before(since.Truncate(time.Millisecond)) {
			continue
		}
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return true
		}
	}
	return false
}
