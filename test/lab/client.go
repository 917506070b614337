package lab

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"maunium.net/go/mautrix/id"
)

// Kind is which Matrix client a page runs.
type Kind string

// The clients, by the name of their page.
const (
	Hydrogen Kind = "hydrogen" // hydrogen-view-sdk 0.3.1: olm only
	JSSDK    Kind = "jssdk"    // matrix-js-sdk 43 with useE2eForGroupCall false: plain only
	JSSDK36  Kind = "jssdk36"  // matrix-js-sdk 36.2 with legacy olm
	// JSSDKRust is matrix-js-sdk 43 with rust crypto: its device has keys, and its call messages are plain all the same.
	JSSDKRust Kind = "jssdk-rust"
)

// page returns the name of the client's page.
func (k Kind) page() string {
	if k == JSSDKRust {
		return string(JSSDK)
	}
	return string(k)
}

// Client is a page with one Matrix client in it, logged in as one user. Use it from one goroutine at a time.
type Client struct {
	Kind  Kind
	User  *User
	voice *Voice
	lab   *Lab
	tab   context.Context
	close func()

	mu      sync.Mutex
	console []string
}

// OpenClient opens a page, logs the user in and waits for the first sync. The voice is the user's microphone.
func (l *Lab) OpenClient(ctx context.Context, kind Kind, user *User, voice *Voice) (*Client, error) {
	tab, closeTab := chromedp.NewContext(l.browser.ctx, chromedp.WithNewBrowserContext())
	c := &Client{Kind: kind, User: user, voice: voice, lab: l, tab: tab, close: closeTab}
	l.own("page of "+user.Name, func() error { closeTab(); return nil })
	if err := c.open(ctx, l); err != nil {
		return nil, fmt.Errorf("open %s for %s: %w; console: %s", kind, user.Name, err, c.Console())
	}
	return c, nil
}

func (c *Client) open(ctx context.Context, l *Lab) error {
	if err := c.navigate(l); err != nil {
		return err
	}
	return c.start(ctx, l)
}

// start logs in, in a page that has just been loaded.
func (c *Client) start(ctx context.Context, l *Lab) error {
	login := map[string]any{
		"homeserver": l.Homeserver(), "user": c.User.UserID, "device": c.User.DeviceID, "token": c.User.AccessToken,
		"crypto": c.Kind == JSSDKRust,
	}
	if c.voice != nil {
		login["voice"] = "/speech/" + c.voice.Name + ".wav"
	}
	if _, err := evaluate[bool](ctx, c, "new Promise((ok) => { const look = () => window.peer ? ok(true) : setTimeout(look, 10); look(); })"); err != nil {
		return err
	}
	return c.do(ctx, "peer.start(%s)", login)
}

// navigate loads the client's page with our ears and mouth in it.
func (c *Client) navigate(l *Lab) error {
	if err := chromedp.Listen(c.tab, c.listen); err != nil {
		return err
	}
	_, err := chromedp.Call(c.tab, page.AddScriptToEvaluateOnNewDocument,
		page.AddScriptToEvaluateOnNewDocumentParams{Source: l.browser.script})
	if err != nil {
		return err
	}
	return chromedp.Do(c.tab, chromedp.Navigate(fmt.Sprintf("%s/%s.html", l.pages.url, c.Kind.page())))
}

// Reload loads the page again, as a person does in mid-call, and logs the same device in. The client is in no call then,
// and what it heard before is forgotten.
func (c *Client) Reload(ctx context.Context) error {
	if err := chromedp.Do(c.tab, chromedp.Reload()); err != nil {
		return fmt.Errorf("reload %s of %s: %w", c.Kind, c.User.Name, err)
	}
	if err := c.start(ctx, c.lab); err != nil {
		return fmt.Errorf("start %s of %s after a reload: %w; console: %s", c.Kind, c.User.Name, err, c.Console())
	}
	return nil
}

// Crash ends the page's process: it can tell nobody. The client is of no use afterwards.
func (c *Client) Crash() {
	ctx, cancel := context.WithTimeout(c.tab, 300*time.Millisecond) // who is dead does not answer
	defer cancel()
	_, _ = chromedp.Call(ctx, page.Crash, cdp.Empty{})
}

// Close closes the page, as a person does: nobody is told.
func (c *Client) Close() { c.close() }

// listen keeps what the page prints, for failure messages.
func (c *Client) listen(ev any) {
	var line string
	switch ev := ev.(type) {
	case *runtime.EventConsoleAPICalled:
		var parts []string
		for _, a := range ev.Args {
			if parts = append(parts, a.Description); a.Description == "" {
				parts[len(parts)-1] = string(a.Value)
			}
		}
		line = string(ev.Type) + ": " + strings.Join(parts, " ")
	case *runtime.EventExceptionThrown:
		line = "exception: " + ev.ExceptionDetails.Text
		if ev.ExceptionDetails.Exception != nil {
			line += " " + ev.ExceptionDetails.Exception.Description
		}
	default:
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.console = append(c.console, line[:min(len(line), 300)])
	if len(c.console) > 60 {
		c.console = c.console[1:]
	}
}

// Console returns the last lines the page has printed.
func (c *Client) Console() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.console, "\n")
}

// evaluate runs JavaScript as if a person had clicked, waits for a promise, and decodes the result.
func evaluate[T any](ctx context.Context, c *Client, js string, args ...any) (T, error) {
	var zero T
	literals := make([]any, len(args))
	for i, a := range args {
		b, err := json.Marshal(a)
		if err != nil {
			return zero, err
		}
		literals[i] = string(b)
	}
	// The tab's context carries the target, the caller's the deadline.
	run, cancel := context.WithTimeoutCause(c.tab, 60*time.Second, fmt.Errorf("%s: no answer within 60 s", js))
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	yes := true
	result, err := chromedp.Run(run, chromedp.Evaluate[T](fmt.Sprintf(js, literals...), func(p *runtime.EvaluateParams) {
		p.AwaitPromise, p.UserGesture = &yes, &yes
	}))
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return result, err
}

// do runs JavaScript whose result does not matter.
func (c *Client) do(ctx context.Context, js string, args ...any) error {
	_, err := evaluate[chromedp.Void](ctx, c, js, args...)
	if err != nil {
		return fmt.Errorf("%s %s: %s: %w", c.Kind, c.User.Name, js, err)
	}
	return nil
}

// CreateCall starts a call in the room (its state event) and returns its id. The client is not in it yet.
func (c *Client) CreateCall(ctx context.Context, room id.RoomID) (string, error) {
	call, err := evaluate[string](ctx, c, "peer.createCall(%s)", room)
	if err != nil {
		return "", fmt.Errorf("%s creates a call: %w", c.User.Name, err)
	}
	return call, nil
}

// AwaitCall waits until the client knows of a call in the room.
func (c *Client) AwaitCall(ctx context.Context, room id.RoomID) (string, error) {
	call, err := evaluate[string](ctx, c, "peer.waitCall(%s, 20)", room)
	if err != nil {
		return "", fmt.Errorf("%s waits for a call: %w", c.User.Name, err)
	}
	return call, nil
}

// Join enters the call with the microphone.
func (c *Client) Join(ctx context.Context, room id.RoomID, call string) error {
	return c.do(ctx, "peer.join(%s, %s, {audio: true, video: false})", room, call)
}

// JoinWith enters the call with the wanted devices; the hydrogen application joins with camera only.
func (c *Client) JoinWith(ctx context.Context, room id.RoomID, call string, audio, video bool) error {
	return c.do(ctx, "peer.join(%s, %s, {audio: %s, video: %s})", room, call, audio, video)
}

// Mute switches the microphone off or on.
func (c *Client) Mute(ctx context.Context, quiet bool) error {
	return c.do(ctx, "peer.mute(%s)", quiet)
}

// Camera adds the camera to the call or takes it away, which makes the client renegotiate.
func (c *Client) Camera(ctx context.Context, on bool) error {
	return c.do(ctx, "peer.camera(%s)", on)
}

// ShareScreen shows a moving picture as the screen, or ends that.
func (c *Client) ShareScreen(ctx context.Context, on bool) error {
	return c.do(ctx, "peer.shareScreen(%s)", on)
}

// PressDigit presses a key of the call's keypad (RFC 4733). hydrogen has none.
func (c *Client) PressDigit(ctx context.Context, digit rune) error {
	return c.do(ctx, "peer.pressDigit(%s)", string(digit))
}

// Say writes a message to the room.
func (c *Client) Say(ctx context.Context, room id.RoomID, text string) error {
	return c.do(ctx, "peer.say(%s, %s)", room, text)
}

// Notices returns the notices of a room as this client shows them, the oldest first: decrypted, with what they were edited to.
func (c *Client) Notices(ctx context.Context, room id.RoomID) ([]Notice, error) {
	notices, err := evaluate[[]Notice](ctx, c, "peer.notices(%s)", room)
	if err != nil {
		return nil, fmt.Errorf("notices that %s reads: %w", c.User.Name, err)
	}
	return notices, nil
}

// React reacts to an event in the room.
func (c *Client) React(ctx context.Context, room id.RoomID, target id.EventID, key string) error {
	return c.do(ctx, "peer.react(%s, %s, %s)", room, target, key)
}

// MemberName returns the name under which the client shows a member of the room.
func (c *Client) MemberName(ctx context.Context, room id.RoomID, user id.UserID) (string, error) {
	return evaluate[string](ctx, c, "peer.memberName(%s, %s)", room, user)
}

// Concealed returns how much sound the page has made up so far for what did not come in time.
func (c *Client) Concealed(ctx context.Context) (time.Duration, error) {
	stats, err := evaluate[[]struct {
		In struct{ Concealed int }
	}](ctx, c, "lab.stats()")
	if err != nil {
		return 0, fmt.Errorf("client %s: %w", c.User.Name, err)
	}
	samples := 0
	for _, connection := range stats {
		samples += connection.In.Concealed
	}
	return time.Duration(samples) * time.Second / 48000, nil // Opus always has that rate (RFC 7587 §4.1)
}

// RestartICE makes every live connection of the page restart ICE, as a browser does that has changed networks.
func (c *Client) RestartICE(ctx context.Context) error {
	return c.do(ctx, "lab.restartICE()")
}

// Transports names the transports of the page's live connections, ours and the far end's: an ICE restart changes both.
func (c *Client) Transports(ctx context.Context) ([]string, error) {
	return evaluate[[]string](ctx, c, "lab.transports()")
}

// CrossInvites makes the client call the ghost that calls it, so that the two invites cross. hydrogen does so with this call
// id, js-sdk with one of its own, which begins with a digit. The client must be in the call, and the ghost not yet.
func (c *Client) CrossInvites(ctx context.Context, call string) error {
	return c.do(ctx, "peer.crossInvites(%s)", call)
}

// PressWhileAnswering makes hydrogen switch the microphone on in the moment in which it answers the ghost's call. The client
// must be in the room's call, and the ghost not yet.
func (c *Client) PressWhileAnswering(ctx context.Context) error {
	return c.do(ctx, "peer.pressWhileAnswering()")
}

// Hangups returns the call ids of the hangups that the client has sent for a reason since it was opened.
func (c *Client) Hangups(ctx context.Context, reason string) ([]string, error) {
	return evaluate[[]string](ctx, c, `peer.capturedMessages().filter((m) => m.direction === ">" && m.type === "m.call.hangup" &&
		m.content.reason === %s).map((m) => m.content.call_id)`, reason)
}

// AnswerTypes returns what the client's answers said they were: "answer", or "offer" by a fault of hydrogen's.
func (c *Client) AnswerTypes(ctx context.Context) ([]string, error) {
	return evaluate[[]string](ctx, c, `peer.capturedMessages().filter((m) => m.direction === ">" && m.type === "m.call.answer")
		.map((m) => m.content.answer.type)`)
}

// Sent counts the call messages of a type that the client has sent to others than its own user since it was opened.
func (c *Client) Sent(ctx context.Context, messageType string) (int, error) {
	return evaluate[int](ctx, c, `peer.capturedMessages().filter((m) => m.direction === ">" && m.type === %s && m.user !== %s).length`,
		messageType, c.User.UserID)
}

// Leave leaves the call.
func (c *Client) Leave(ctx context.Context) error { return c.do(ctx, "peer.leave()") }

// End terminates the call for everyone.
func (c *Client) End(ctx context.Context) error { return c.do(ctx, "peer.end()") }

// Voice returns what the user's microphone plays.
func (c *Client) Voice() *Voice { return c.voice }

// Saying tells what the user says: the file runs since the page has opened.
func (c *Client) Saying(ctx context.Context) (Saying, error) {
	v, err := evaluate[*struct{ StartMS float64 }](ctx, c, "lab.voice()")
	if err != nil || v == nil {
		return Saying{}, fmt.Errorf("%s says nothing: %w", c.User.Name, err)
	}
	return Saying{Voice: c.voice, Start: fromMS(v.StartMS)}, nil
}

// Heard returns what the user has heard since then, one recording per remote track, named by the user it came from
// as far as the client knows.
func (c *Client) Heard(ctx context.Context, since time.Time) ([]Recording, error) {
	type track struct {
		User    string
		Rate    int
		StartMS float64
		PCM     string
	}
	tracks, err := evaluate[[]track](ctx, c, "(window.peer?.voices(), lab.heard(%s))", float64(since.UnixMicro())/1000)
	if err != nil {
		return nil, fmt.Errorf("what %s heard: %w", c.User.Name, err)
	}
	var all []Recording
	for _, t := range tracks {
		raw, err := base64.StdEncoding.DecodeString(t.PCM)
		if err != nil {
			return nil, fmt.Errorf("what %s heard: %w", c.User.Name, err)
		}
		r := Recording{From: t.User, Rate: t.Rate, Start: fromMS(t.StartMS), PCM: make([]int16, len(raw)/2)}
		for i := range r.PCM {
			r.PCM[i] = int16(binary.LittleEndian.Uint16(raw[2*i:]))
		}
		all = append(all, r)
	}
	return all, nil
}

// Forget forgets what the user has heard so far: pages that listen for long keep it all.
func (c *Client) Forget(ctx context.Context) error { return c.do(ctx, "lab.forget()") }

// Peer is how one remote device looks from the client.
type Peer struct {
	User      string `json:"user"`
	Device    string `json:"device"`
	Session   string `json:"session"`
	Connected bool   `json:"connected"`
	Muted     bool   `json:"muted"` // as that device says of its microphone
	Error     string `json:"error"`

	// What only js-sdk keeps for its application.
	Asserted     *AssertedIdentity `json:"asserted"`
	DTMF         bool              `json:"dtmf"`         // the application may show a keypad
	Transferable bool              `json:"transferable"` // the application may offer to transfer the peer
}

// AssertedIdentity is who a peer says that it is (MSC3086).
type AssertedIdentity struct {
	ID          string `json:"id"`
	DisplayName string `json:"displayName"`
}

// CallState is the client's view of its call.
type CallState struct {
	Call       string `json:"call"`
	Intent     string `json:"intent"` // what the call's maker wanted: m.ring or m.prompt
	State      any    `json:"state"`
	Terminated bool   `json:"terminated"`
	Members    []Peer `json:"members"`
}

// Call returns the client's view of its call.
func (c *Client) Call(ctx context.Context) (CallState, error) {
	return evaluate[CallState](ctx, c, "peer.state(true)")
}

// Levels returns how loud each remote track was in the last half second (0 to 32767), by user.
func (c *Client) Levels(ctx context.Context) (map[string]int, error) {
	type level struct {
		User string
		Peak int
	}
	levels, err := evaluate[[]level](ctx, c, "lab.levels()")
	if err != nil {
		return nil, err
	}
	byUser := map[string]int{}
	for _, v := range levels {
		byUser[v.User] = max(byUser[v.User], v.Peak)
	}
	return byUser, nil
}

// State describes the page for a failure message.
func (c *Client) State(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	state, err := evaluate[[]byte](ctx, c, "(window.peer ? peer.state() : lab.stats()).then((s) => JSON.stringify(s, null, 1))")
	text := string(state)
	if err != nil {
		text = err.Error()
	} else if plain := ""; json.Unmarshal(state, &plain) == nil {
		text = plain
	}
	return fmt.Sprintf("%s %s: %s\nconsole of %s:\n%s\n", c.Kind, c.User.Name, text, c.User.Name, c.Console())
}

// Captured returns the call messages of the page with their whole content, as JSON.
func (c *Client) Captured(ctx context.Context) (string, error) {
	return evaluate[string](ctx, c, "JSON.stringify(peer.capturedMessages(), null, 1)")
}

func fromMS(ms float64) time.Time { return time.UnixMicro(int64(ms * 1000)) }
