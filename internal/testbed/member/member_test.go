package member_test

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/speech"
	"trunkline/internal/testbed/synapse"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func debugLog(t *testing.T) *slog.Logger {
	w := io.Discard
	if os.Getenv("MEMBER_LOG") != "" {
		w = t.Output()
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
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

// The proof that the rest may use virtual time: the same on the real homeserver, real sockets and the real clock.
func TestTwoOfAKindHearEachOtherThroughSynapse(t *testing.T) {
	hs := synapse.New(t, synapse.Config{})
	for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK, member.JSSDKLegacy} {
		t.Run(kind.String(), func(t *testing.T) {
			var members []*member.Member
			for _, name := range []string{"alice", "bob"} {
				u, err := hs.Register(t.Context(), name+strings.ReplaceAll(kind.String(), " ", ""))
				must(t, err)
				m, err := member.New(t.Context(), member.Config{
					URL: hs.URL(), UserID: u.UserID, DeviceID: u.DeviceID, AccessToken: u.AccessToken,
					Kind: kind, Log: debugLog(t),
				})
				must(t, err)
				t.Cleanup(m.Close)
				members = append(members, m)
			}
			join(t, callRoom(t, members...), members...)
			hearEachOther(t, members...)
		})
	}
}

func TestThreeOfAKindHearEachOther(t *testing.T) {
	for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK, member.JSSDKLegacy} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, members := bubble(t, kind, "alice", "bob", "carol")
				join(t, callRoom(t, members...), members...)
				hearEachOther(t, members...)
			})
		})
	}
}

// As measured with the real clients: hydrogen drops plain messages, js-sdk 43 sends nothing else.
func TestHydrogenAndCurrentJSSDKNeverConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, members, _ := bubbleOf(t, func(name string) member.Config {
			return member.Config{Kind: map[string]member.Kind{"alice": member.Hydrogen, "bob": member.JSSDKKeys}[name]}
		}, "alice", "bob")
		alice, bob := members[0], members[1]
		room := callRoom(t, alice, bob)
		for _, m := range members {
			must(t, m.JoinCall(t.Context(), room))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		if err := alice.AwaitConnected(ctx, bob.UserID()); err == nil {
			t.Error("hydrogen connected with a js-sdk that answers plain")
		}
		if len(alice.Complaints()) == 0 {
			t.Error("hydrogen does not complain about plain messages")
		}
	})
}

func TestMutedMemberIsSilentUntilUnmuted(t *testing.T) {
	for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, members := bubble(t, kind, "alice", "bob")
				alice, bob := members[0], members[1]
				join(t, callRoom(t, alice, bob), alice, bob)
				alice.Says(listen.Sine(member.Rate, 440, -20, time.Second))
				for _, muted := range []bool{false, true, false} {
					must(t, alice.Mute(muted))
					time.Sleep(200 * time.Millisecond)
					if got := bob.View().Peers[0].Muted; got != muted {
						t.Errorf("bob sees muted %v, want %v", got, muted)
					}
					if hears(bob, alice) == muted {
						t.Errorf("muted %v: bob hears %v", muted, !muted)
					}
				}
				noComplaints(t, members...)
			})
		})
	}
}

func TestLeaveRejoinReloadAndTerminate(t *testing.T) {
	for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { leaveRejoinReloadAndTerminate(t, kind) })
		})
	}
}

func leaveRejoinReloadAndTerminate(t *testing.T, kind member.Kind) {
	_, members := bubble(t, kind, "alice", "bob", "carol") // carol keeps hydrogen's call from ending
	alice, bob, carol := members[0], members[1], members[2]
	room := callRoom(t, members...)
	join(t, room, members...)
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
	hearEachOther(t, members...)
	must(t, carol.TerminateCall(ctx, room, alice.View().Call))
	for _, m := range members {
		must(t, m.Await(ctx, "the end", func(v member.View) bool { return v.Call == "" }))
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
	synctest.Test(t, func(t *testing.T) {
		_, members, _ := bubbleOf(t, cameraOnly, "alice", "bob")
		alice, bob := members[0], members[1]
		join(t, callRoom(t, bob, alice), bob, alice)
		bob.Says(listen.Sine(member.Rate, 440, -20, time.Second))
		if hears(alice, bob) {
			t.Error("bob is heard without a microphone")
		}
		must(t, bob.Mute(false))
		time.Sleep(500 * time.Millisecond)
		if !hears(alice, bob) {
			t.Error("bob is not heard after unmuting")
		}
		noComplaints(t, alice, bob)
	})
}

func cameraOnly(string) member.Config { return member.Config{Kind: member.Hydrogen, CameraOnly: true} }

// An offer of sound alone makes a camera-only hydrogen answer with an offer. The bridge must cope; another hydrogen
// cannot.
func TestCameraOnlyHydrogenAnswersSoundWithAnOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, members, _ := bubbleOf(t, func(name string) member.Config {
			return member.Config{Kind: member.Hydrogen, CameraOnly: name == "bob"}
		}, "alice", "bob")
		room := callRoom(t, members...)
		for _, m := range members {
			must(t, m.JoinCall(t.Context(), room))
		}
		time.Sleep(2 * time.Second)
		got := members[0].Complaints()
		if len(got) == 0 || !strings.Contains(got[0], "has no answer") {
			t.Errorf("complaints %q, want one about the answer", got)
		}
	})
}
