//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/test/lab"
)

// What counts as heard. Through G.711, the mixer and Opus the right voice reaches 0.8 to 0.97; unrelated voices stay
// below 0.2.
const (
	rightVoice = 0.7
	wrongVoice = 0.3
	maxDelay   = 400 * time.Millisecond
	listenFor  = 7 * time.Second // judged, after the first second of sound
)

// scene is one case: a room with its number, and everybody who takes part.
type scene struct {
	t       *testing.T
	ctx     context.Context
	owner   *lab.User
	room    *lab.Room
	pages   []*lab.Client
	phones  []*lab.Phone
	voices  int
	dialed  time.Time // when the phones dialled last
	told    *bool     // explained already
	settled time.Time // when everybody had heard somebody: what is judged begins a second later
}

// newScene makes a room for the named users; the first one owns it.
func newScene(t *testing.T, opts lab.RoomOptions, names ...string) (*scene, []*lab.User) {
	t.Helper()
	return newSceneFor(t, 5*time.Minute, opts, names...)
}

// newSceneFor is newScene for a case of another length.
func newSceneFor(t *testing.T, limit time.Duration, opts lab.RoomOptions, names ...string) (*scene, []*lab.User) {
	t.Helper()
	if !bed.Bridge().Running() {
		t.Fatal("the bridge has ended in an earlier case")
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	s := &scene{t: t, ctx: ctx, told: new(bool)}
	var users []*lab.User
	for _, name := range names {
		u, err := bed.NewUser(ctx, name)
		s.must(err)
		users = append(users, u)
	}
	opts.Owner, opts.Members = users[0], users[1:]
	s.owner = users[0]
	var err error
	s.room, err = bed.NewRoom(ctx, opts)
	s.must(err)
	t.Cleanup(s.clear)
	t.Cleanup(s.explain) // before clear: cleanups run backwards
	return s, users
}

// in is the scene in a subtest.
func (s *scene) in(t *testing.T) *scene {
	sub := *s
	sub.t, sub.told = t, new(bool)
	t.Cleanup(func() { *s.told = *s.told || *sub.told })
	t.Cleanup(sub.explain)
	return &sub
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// page opens a client for a user, who has a voice of their own.
func (s *scene) page(kind lab.Kind, user *lab.User) *lab.Client {
	s.t.Helper()
	return s.pageSaying(kind, user, s.voice())
}

func (s *scene) pageSaying(kind lab.Kind, user *lab.User, voice *lab.Voice) *lab.Client {
	s.t.Helper()
	c, err := bed.OpenClient(s.ctx, kind, user, voice)
	s.must(err)
	s.pages = append(s.pages, c)
	return c
}

func (s *scene) voice() *lab.Voice {
	s.voices++
	return bed.Voice(s.voices - 1)
}

// phone starts a baresip with a voice of its own.
func (s *scene) phone(name string, opts lab.PhoneOptions) *lab.Phone {
	s.t.Helper()
	return s.phoneSaying(name, s.voice(), opts)
}

func (s *scene) phoneSaying(name string, voice *lab.Voice, opts lab.PhoneOptions) *lab.Phone {
	s.t.Helper()
	p, err := bed.NewPhone(s.ctx, name, voice, opts)
	s.must(err)
	s.phones = append(s.phones, p)
	return p
}

// startCall makes the client create the room's call and join it.
func (s *scene) startCall(c *lab.Client) (call string) {
	s.t.Helper()
	call, err := c.CreateCall(s.ctx, s.room.ID)
	s.must(err)
	s.must(c.Join(s.ctx, s.room.ID, call))
	return call
}

// joinCall makes the client join the call that somebody else has created.
func (s *scene) joinCall(c *lab.Client) {
	s.t.Helper()
	call, err := c.AwaitCall(s.ctx, s.room.ID)
	s.must(err)
	s.must(c.Join(s.ctx, s.room.ID, call))
}

// dial makes the phones dial the room's number at the same time and waits until all are answered.
func (s *scene) dial(phones ...*lab.Phone) {
	s.t.Helper()
	s.dialed = time.Now()
	for _, p := range phones {
		s.must(p.Dial(s.ctx, s.room.Number))
	}
	s.answered(phones...)
}

// ring makes the phone dial the number that rings the room while nobody is in its call.
func (s *scene) ring(phone *lab.Phone) {
	s.t.Helper()
	s.dialed = time.Now()
	s.must(phone.Dial(s.ctx, s.room.Ring))
}

// answered waits until the phones that dialled are answered.
func (s *scene) answered(phones ...*lab.Phone) {
	s.t.Helper()
	for _, p := range phones {
		s.await(p, lab.CallEstablished, s.dialed, 15*time.Second)
	}
}

// await waits for an event of a phone.
func (s *scene) await(p *lab.Phone, event string, since time.Time, within time.Duration) lab.PhoneEvent {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, within)
	defer cancel()
	ev, err := p.Await(ctx, event, since)
	s.must(err)
	return ev
}

// listen lets time pass until everybody has heard enough. Clients are connected to this many ghosts.
func (s *scene) listen(ghosts int) {
	s.t.Helper()
	s.eventually("all clients are connected to the ghosts and hear them", 15*time.Second, func() bool {
		for _, c := range s.pages {
			if _, ok := s.heardBy(c).FirstSound(); !ok || s.legs(c) != ghosts {
				return false
			}
		}
		return true
	})
	s.settled = time.Now()
	time.Sleep(listenFor + 1500*time.Millisecond)
}

// heardBy returns everything that a page has heard since the phones dialled, mixed as an ear does.
func (s *scene) heardBy(c *lab.Client) lab.Recording {
	s.t.Helper()
	tracks, err := c.Heard(s.ctx, s.dialed)
	s.must(err)
	return lab.Mix(tracks...)
}

// heardOn returns what a phone has heard in its call so far.
func (s *scene) heardOn(p *lab.Phone) lab.Recording {
	s.t.Helper()
	heard, err := p.Heard()
	s.must(err)
	return heard
}

func (s *scene) said(c *lab.Client) lab.Saying {
	s.t.Helper()
	said, err := c.Saying(s.ctx)
	s.must(err)
	return said
}

// clientHears checks that a client has heard each of these voices in one of its tracks, and not its own in any. Ghosts
// come one by one, so no track mixes voices.
func (s *scene) clientHears(c *lab.Client, voices ...lab.Saying) {
	s.t.Helper()
	tracks, err := c.Heard(s.ctx, s.dialed)
	s.must(err)
	first, ok := lab.Mix(tracks...).FirstSound()
	if !ok {
		s.t.Errorf("%s hears nothing in %d tracks", c.User.Name, len(tracks))
		return
	}
	own := s.said(c)
	matches := make([]lab.Match, len(voices))
	wrong := 0.0
	for _, track := range tracks {
		piece := track.Cut(s.settled.Add(time.Second), listenFor)
		for i, v := range voices {
			if m := piece.Match(v); m.Correlation >= matches[i].Correlation {
				matches[i] = m
			}
		}
		wrong = max(wrong, piece.Match(own).Correlation)
	}
	s.judge(c.User.Name, first, wrong, matches)
}

// clientDoesNotHear checks that a voice is in none of a client's tracks.
func (s *scene) clientDoesNotHear(c *lab.Client, voice lab.Saying) {
	s.t.Helper()
	tracks, err := c.Heard(s.ctx, s.dialed)
	s.must(err)
	for _, track := range tracks {
		if m := track.Cut(s.settled.Add(time.Second), listenFor).Match(voice); m.Correlation > wrongVoice {
			s.t.Errorf("%s hears %s, want that it cannot", c.User.Name, m)
		}
	}
}

// phoneHears checks that a phone has heard one or two voices, mixed, and not its own.
func (s *scene) phoneHears(p *lab.Phone, voices ...lab.Saying) {
	s.t.Helper()
	heard, err := p.Heard()
	s.must(err)
	first, ok := heard.FirstSound()
	if !ok {
		s.t.Errorf("%s hears nothing", p.Name)
		return
	}
	piece := heard.Cut(s.settled.Add(time.Second), listenFor)
	if piece.Duration() < 3*time.Second {
		s.t.Errorf("%s has only %s of sound, want %s", p.Name, piece.Duration(), listenFor)
		return
	}
	var matches []lab.Match
	if len(voices) == 2 {
		a, b := piece.MatchMixed(voices[0], voices[1])
		matches = []lab.Match{a, b}
	} else {
		matches = []lab.Match{piece.Match(voices[0])}
	}
	s.judge(p.Name, first, piece.Match(p.Saying()).Correlation, matches)
}

// judge holds what a listener has heard against the thresholds.
func (s *scene) judge(listener string, first time.Time, own float64, matches []lab.Match) {
	s.t.Helper()
	for _, m := range matches {
		s.t.Logf("%s hears %s; first sound %d ms after the INVITE; own voice %.2f", listener, m,
			first.Sub(s.dialed).Milliseconds(), own)
		if m.Correlation < rightVoice {
			s.t.Errorf("%s hears %s with correlation %.2f, want at least %.2f", listener, m.Voice, m.Correlation, rightVoice)
		}
		if m.Delay < 0 || m.Delay > maxDelay {
			s.t.Errorf("%s hears %s %s late, want at most %s", listener, m.Voice, m.Delay, maxDelay)
		}
	}
	if own > wrongVoice {
		s.t.Errorf("%s hears its own voice with correlation %.2f, want at most %.2f", listener, own, wrongVoice)
	}
}

// ghosts returns the devices of ghosts in the room's call, from the room's state.
func (s *scene) ghosts() []lab.CallMember {
	s.t.Helper()
	return s.ghostsIn(s.room.ID)
}

// ghostsIn returns those of another room.
func (s *scene) ghostsIn(room id.RoomID) []lab.CallMember {
	s.t.Helper()
	_, members, err := bed.CallState(s.ctx, s.owner, room)
	s.must(err)
	var ghosts []lab.CallMember
	for _, m := range members {
		if bed.Bridge().IsGhost(m.User) {
			ghosts = append(ghosts, m)
		}
	}
	return ghosts
}

// inCall counts a user's devices in the room's call, from the room's state.
func (s *scene) inCall(user *lab.User) (n int) {
	s.t.Helper()
	_, members, err := bed.CallState(s.ctx, s.owner, s.room.ID)
	s.must(err)
	for _, m := range members {
		if m.User == user.UserID {
			n++
		}
	}
	return n
}

// legs counts a page's connected legs to ghosts.
func (s *scene) legs(c *lab.Client) (n int) {
	s.t.Helper()
	state, err := c.Call(s.ctx)
	s.must(err)
	for _, m := range state.Members {
		if m.Connected && bed.Bridge().IsGhost(id.UserID(m.User)) {
			n++
		}
	}
	return n
}

// members counts the ghosts that a page knows in its call, connected or not.
func (s *scene) members(c *lab.Client) (n int) {
	s.t.Helper()
	state, err := c.Call(s.ctx)
	s.must(err)
	for _, m := range state.Members {
		if bed.Bridge().IsGhost(id.UserID(m.User)) {
			n++
		}
	}
	return n
}

// eventually polls until it is so.
func (s *scene) eventually(what string, limit time.Duration, so func() bool) (after time.Duration) {
	s.t.Helper()
	began := time.Now()
	if !within(limit, so) {
		s.t.Fatalf("not within %s: %s", limit, what)
	}
	return time.Since(began)
}

// within polls until it is so, and tells whether that was in time.
func within(limit time.Duration, so func() bool) bool {
	for began := time.Now(); !so(); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > limit {
			return false
		}
	}
	return true
}

// explain shows how all sides look when the case has failed.
func (s *scene) explain() {
	if !s.t.Failed() || *s.told {
		return
	}
	*s.told = true
	var b strings.Builder
	busy, _ := os.ReadFile("/proc/loadavg") // a starved machine has poor sound
	fmt.Fprintf(&b, "load average %sroom %s, number %s\n", busy, s.room.ID, s.room.Number)
	calls, members, err := bed.CallState(s.ctx, s.owner, s.room.ID)
	fmt.Fprintf(&b, "room's state: calls %v, members %v, %v\n", calls, members, err)
	timeline, err := bed.CallTimeline(s.ctx, s.owner, s.room.ID)
	fmt.Fprintf(&b, "room's call events: %v\n%s", err, timeline)
	for _, c := range s.pages {
		b.WriteString(c.State(s.ctx))
	}
	for _, p := range s.phones {
		b.WriteString(p.State())
	}
	fmt.Fprintf(&b, "bridge's counters:\n%s", bed.Bridge().Counters(s.ctx))
	fmt.Fprintf(&b, "bridge's log ends with:\n%s\n", bed.Bridge().LogTail(6000))
	if !bed.Bridge().Running() {
		b.WriteString("THE BRIDGE HAS ENDED\n")
	}
	s.t.Log(b.String())
}

// clear ends what the case has started, so that cases do not compete for the machine.
func (s *scene) clear() {
	for _, p := range s.phones {
		_ = p.Close()
	}
	for _, c := range s.pages {
		c.Close()
	}
}

// leavesNothing sees to it that the next case finds all servers and no call, however this one ends. To leave a call behind is a fault.
func (s *scene) leavesNothing() {
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if !s.t.Failed() {
			left := ""
			if within(clearedAfter, func() bool { left = bed.Bridge().Calls(ctx); return left == "" }) {
				return
			}
			s.t.Errorf("left to the next case: %s", left)
		}
		s.explain()
		if err := errors.Join(bed.Database.StartServer(ctx), bed.Synapse.StartProcess(ctx), bed.Bridge().Forget(ctx)); err != nil {
			s.t.Error(err)
		}
	})
}
