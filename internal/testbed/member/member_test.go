package member_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/speech"
	"trunkline/internal/testbed/synapse"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a homeserver, the real one or the stand-in.
type world struct {
	url  string
	user func(name string) (id.UserID, id.DeviceID, string)
}

func fake(t *testing.T) world {
	hs := homeserver.StartLoopback(t, homeserver.Config{Domain: "lab.local"})
	return world{hs.URL(), func(name string) (id.UserID, id.DeviceID, string) {
		u := hs.User(name)
		return u.UserID, u.DeviceID, u.AccessToken
	}}
}

func genuine(t *testing.T) world {
	hs := synapse.New(t, synapse.Config{})
	return world{hs.URL(), func(name string) (id.UserID, id.DeviceID, string) {
		u, err := hs.Register(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return u.UserID, u.DeviceID, u.AccessToken
	}}
}

func (w world) member(t *testing.T, name string, cfg member.Config) *member.Member {
	t.Helper()
	cfg.URL = w.url
	cfg.UserID, cfg.DeviceID, cfg.AccessToken = w.user(name)
	cfg.Log = slog.New(slog.NewTextHandler(logWriter(t), &slog.HandlerOptions{Level: slog.LevelDebug}))
	m, err := member.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func logWriter(t *testing.T) io.Writer {
	if os.Getenv("MEMBER_LOG") != "" {
		return t.Output()
	}
	return io.Discard
}

// callRoom is a room of all members in which one of them has made a call.
func callRoom(t *testing.T, members ...*member.Member) id.RoomID {
	t.Helper()
	host := members[0]
	var invite []id.UserID
	for _, m := range members[1:] {
		invite = append(invite, m.UserID())
	}
	resp, err := host.Client().CreateRoom(t.Context(), &mautrix.ReqCreateRoom{
		Preset: "private_chat", Invite: invite,
		PowerLevelOverride: &event.PowerLevelsEventContent{Events: map[string]int{
			"org.matrix.msc3401.call": 0, "org.matrix.msc3401.call.member": 0,
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members[1:] {
		if err := m.JoinRoom(t.Context(), resp.RoomID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := host.CreateCall(t.Context(), resp.RoomID); err != nil {
		t.Fatal(err)
	}
	return resp.RoomID
}

func join(t *testing.T, room id.RoomID, members ...*member.Member) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, m := range members {
		if err := m.JoinCall(ctx, room); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range members {
		for _, b := range members {
			if a == b {
				continue
			}
			if err := a.AwaitConnected(ctx, b.UserID()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

var voices = []speech.Voice{speech.Alice, speech.Bob, speech.Carol}

// hearEachOther lets everybody speak and proves by correlation that everybody hears each of the others, and nobody
// themselves in place of another.
func hearEachOther(t *testing.T, members ...*member.Member) {
	t.Helper()
	sources := make([][]int16, len(members))
	for i, m := range members {
		sources[i] = voices[i].PCM(member.Rate, 4*time.Second)
		m.Says(sources[i])
	}
	time.Sleep(300 * time.Millisecond)
	for _, m := range members {
		m.Forget()
	}
	time.Sleep(5 * time.Second)
	for _, m := range members {
		for j, other := range members {
			if m == other {
				continue
			}
			r := m.Heard(other.UserID())
			match := listen.Compare(r.PCM, sources[j], member.Rate)
			if match.Correlation < 0.9 || r.Bad+r.Jumps > 0 {
				t.Errorf("%s hears of %s: %v, %d packets, %d missing, %d jumps, %d bad; want correlation ≥ 0.9",
					m.UserID(), other.UserID(), match, r.Packets, r.Missing, r.Jumps, r.Bad)
			}
			for i, self := range members {
				if self == m {
					if own := listen.Compare(r.PCM, sources[i], member.Rate); own.Correlation > 0.2 {
						t.Errorf("%s hears herself in %s: %v", m.UserID(), other.UserID(), own)
					}
				}
			}
		}
	}
	noComplaints(t, members...)
}

func noComplaints(t *testing.T, members ...*member.Member) {
	t.Helper()
	for _, m := range members {
		for _, c := range m.Complaints() {
			t.Errorf("%s complains: %s", m.UserID(), c)
		}
	}
}

func TestTwoOfAKindHearEachOther(t *testing.T) {
	for name, start := range map[string]func(*testing.T) world{"fake": fake, "synapse": genuine} {
		for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK, member.JSSDKLegacy} {
			t.Run(fmt.Sprintf("%s/%s", name, kind), func(t *testing.T) {
				t.Parallel()
				w := start(t)
				alice := w.member(t, "alice", member.Config{Kind: kind})
				bob := w.member(t, "bob", member.Config{Kind: kind})
				room := callRoom(t, alice, bob)
				join(t, room, alice, bob)
				hearEachOther(t, alice, bob)
			})
		}
	}
}

func TestThreeInOneMesh(t *testing.T) {
	t.Parallel()
	w := fake(t)
	members := []*member.Member{
		w.member(t, "alice", member.Config{Kind: member.Hydrogen}),
		w.member(t, "bob", member.Config{Kind: member.Hydrogen}),
		w.member(t, "carol", member.Config{Kind: member.Hydrogen}),
	}
	room := callRoom(t, members...)
	join(t, room, members...)
	hearEachOther(t, members...)
}

// As measured with the real clients: hydrogen drops plain messages, js-sdk 43 sends nothing else.
func TestHydrogenAndCurrentJSSDKNeverConnect(t *testing.T) {
	t.Parallel()
	w := fake(t)
	alice := w.member(t, "alice", member.Config{Kind: member.Hydrogen})
	bob := w.member(t, "bob", member.Config{Kind: member.JSSDKKeys})
	room := callRoom(t, alice, bob)
	for _, m := range []*member.Member{alice, bob} {
		if err := m.JoinCall(t.Context(), room); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := alice.AwaitConnected(ctx, bob.UserID()); err == nil {
		t.Error("hydrogen connected with a js-sdk that answers plain")
	}
	if len(alice.Complaints()) == 0 {
		t.Error("hydrogen does not complain about plain messages")
	}
}

func TestMutedMemberIsSilentUntilUnmuted(t *testing.T) {
	for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			w := fake(t)
			alice := w.member(t, "alice", member.Config{Kind: kind})
			bob := w.member(t, "bob", member.Config{Kind: kind})
			join(t, callRoom(t, alice, bob), alice, bob)
			alice.Says(listen.Sine(member.Rate, 440, -20, time.Second))
			for _, muted := range []bool{false, true, false} {
				if err := alice.Mute(muted); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				err := bob.Await(ctx, "the mute", func(v member.View) bool { return v.Peers[0].Muted == muted })
				cancel()
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(200 * time.Millisecond)
				level := listen.Level(bob.Listen(alice.UserID(), time.Second))
				if muted != (level < -60) {
					t.Errorf("muted %v: bob hears %.1f dB", muted, level)
				}
			}
			noComplaints(t, alice, bob)
		})
	}
}

func TestLeaveRejoinReloadAndTerminate(t *testing.T) {
	for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			w := fake(t)
			alice := w.member(t, "alice", member.Config{Kind: kind})
			bob := w.member(t, "bob", member.Config{Kind: kind})
			carol := w.member(t, "carol", member.Config{Kind: kind}) // keeps hydrogen's call from ending
			room := callRoom(t, alice, bob, carol)
			join(t, room, alice, bob, carol)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			for _, m := range []*member.Member{alice, bob} { // the inviter and the invited one
				other := map[*member.Member]*member.Member{alice: bob, bob: alice}[m]
				must(t, m.LeaveCall(ctx))
				must(t, other.AwaitGone(ctx, m.UserID()))
				must(t, m.JoinCall(ctx, room))
				must(t, m.AwaitConnected(ctx, other.UserID()))
				session := m.View().Session
				must(t, m.Reload(ctx))
				if m.View().Session == session {
					t.Error("the session id is that of before the reload")
				}
				must(t, m.AwaitConnected(ctx, other.UserID()))
				must(t, other.Await(ctx, "the new session", func(v member.View) bool {
					return v.Peers[0].Session == m.View().Session && v.Peers[0].State == "connected"
				}))
			}
			noComplaints(t, alice, bob, carol)
			conf := alice.View().Call
			must(t, carol.TerminateCall(ctx, room, conf))
			for _, m := range []*member.Member{alice, bob, carol} {
				must(t, m.Await(ctx, "the end", func(v member.View) bool { return v.Call == "" }))
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// hydrogen's user interface joins with the camera only; the microphone comes later.
func TestCameraOnlyMemberIsHeardAfterUnmuting(t *testing.T) {
	t.Parallel()
	w := fake(t)
	alice := w.member(t, "alice", member.Config{Kind: member.Hydrogen, CameraOnly: true})
	bob := w.member(t, "bob", member.Config{Kind: member.Hydrogen, CameraOnly: true})
	join(t, callRoom(t, bob, alice), bob, alice)
	bob.Says(listen.Sine(member.Rate, 440, -20, time.Second))
	if level := listen.Level(alice.Listen(bob.UserID(), time.Second)); level > -60 {
		t.Errorf("before unmuting alice hears %.1f dB", level)
	}
	must(t, bob.Mute(false))
	time.Sleep(time.Second)
	if level := listen.Level(alice.Listen(bob.UserID(), time.Second)); level < -30 {
		t.Errorf("after unmuting alice hears %.1f dB", level)
	}
	noComplaints(t, alice, bob)
}

// An offer of sound alone makes a camera-only hydrogen answer with an offer. The bridge must cope; another hydrogen
// cannot.
func TestCameraOnlyHydrogenAnswersSoundWithAnOffer(t *testing.T) {
	t.Parallel()
	w := fake(t)
	alice := w.member(t, "alice", member.Config{Kind: member.Hydrogen})
	bob := w.member(t, "bob", member.Config{Kind: member.Hydrogen, CameraOnly: true})
	room := callRoom(t, alice, bob)
	for _, m := range []*member.Member{alice, bob} {
		must(t, m.JoinCall(t.Context(), room))
	}
	time.Sleep(2 * time.Second)
	got := alice.Complaints()
	if len(got) == 0 || !strings.Contains(got[0], "has no answer") {
		t.Errorf("complaints %q, want one about the answer", got)
	}
}
