package member_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/logging"
	"github.com/pion/transport/v4/vnet"

	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/speech"
)

// bubble starts members on a virtual network with a homeserver in memory.
func bubble(t *testing.T, kind member.Kind, names ...string) (*homeserver.Server, []*member.Member) {
	t.Helper()
	hs, members, _ := bubbleOf(t, func(string) member.Config { return member.Config{Kind: kind} }, names...)
	return hs, members
}

// bubbleOf starts members of different configurations; cut holds back all media while it is true.
func bubbleOf(t *testing.T, configOf func(name string) member.Config, names ...string) (hs *homeserver.Server, members []*member.Member, cut *atomic.Bool) {
	t.Helper()
	hs = homeserver.Start(t, homeserver.Config{})
	cut = &atomic.Bool{}
	wan, err := vnet.NewRouter(&vnet.RouterConfig{CIDR: "10.0.0.0/24", LoggerFactory: logging.NewDefaultLoggerFactory()})
	must(t, err)
	wan.AddChunkFilter(func(vnet.Chunk) bool { return !cut.Load() })
	for i, name := range names {
		nic, err := vnet.NewNet(&vnet.NetConfig{StaticIPs: []string{fmt.Sprintf("10.0.0.%d", i+1)}})
		must(t, err)
		must(t, wan.AddNet(nic))
		u := hs.User(name)
		cfg := configOf(name)
		cfg.URL, cfg.UserID, cfg.DeviceID, cfg.AccessToken = hs.URL(), u.UserID, u.DeviceID, u.AccessToken
		cfg.HTTP, cfg.Net = hs.Net().Client(), nic
		cfg.Log = debugLog(t)
		m, err := member.New(t.Context(), cfg)
		must(t, err)
		t.Cleanup(m.Close)
		members = append(members, m)
	}
	must(t, wan.Start())
	t.Cleanup(func() { must(t, wan.Stop()) })
	return hs, members, cut
}

func TestSpeechInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, members := bubble(t, member.Hydrogen, "alice", "bob")
		alice, bob := members[0], members[1]
		join(t, callRoom(t, alice, bob), alice, bob)
		voice := speech.Alice.PCM(member.Rate, 4*time.Second)
		alice.Says(voice)
		heard := bob.Listen(alice.UserID(), 5*time.Second)
		if m := listen.Compare(heard, voice, member.Rate); m.Correlation < 0.9 || m.Drift != 0 {
			t.Errorf("bob hears %v, want correlation ≥ 0.9 and no drift", m)
		}
		if gaps := listen.Gaps(heard, member.Rate, 30, time.Second); len(gaps) > 0 {
			t.Errorf("gaps %v, want none", gaps)
		}
		noComplaints(t, alice, bob)
	})
}

func TestCrashedPeerIsGivenUpAndCalledAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, members := bubble(t, member.Hydrogen, "alice", "bob")
		alice, bob := members[0], members[1]
		join(t, callRoom(t, alice, bob), alice, bob)
		call := alice.View().Peers[0].CallID
		began := time.Now()
		bob.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		must(t, alice.Await(ctx, "a new attempt", func(v member.View) bool { return v.Peers[0].CallID != call }))
		if d := time.Since(began); d < 25*time.Second || d > 45*time.Second {
			t.Errorf("alice called again after %v, want 25 s to 45 s", d)
		}
	})
}

func TestMembershipIsRenewedBeforeItExpires(t *testing.T) {
	if testing.Short() {
		t.Skip("an hour takes a while, even in a bubble")
	}
	synctest.Test(t, func(t *testing.T) {
		hs, members := bubble(t, member.JSSDK, "alice", "bob")
		alice, bob := members[0], members[1]
		room := callRoom(t, alice, bob)
		join(t, room, alice, bob)
		call := alice.View().Peers[0].CallID
		time.Sleep(65 * time.Minute)
		if p := alice.View().Peers[0]; p.CallID != call || p.State != "connected" {
			t.Errorf("after 65 minutes: %+v, want the first call connected", p)
		}
		alice.Says(speech.Alice.PCM(member.Rate, 2*time.Second))
		if level := listen.Level(bob.Listen(alice.UserID(), 4*time.Second)); level < -30 {
			t.Errorf("after 65 minutes bob hears %.1f dB", level)
		}
		written := 0
		for _, e := range hs.Timeline(room) {
			if e.Type == "org.matrix.msc3401.call.member" {
				written++
			}
		}
		if written != 4 {
			t.Errorf("%d member events, want 4: two joins, two renewals", written)
		}
	})
}

// hears says whether m hears of other at least for a second from now on.
func hears(m, other *member.Member) bool {
	return listen.Level(m.Listen(other.UserID(), time.Second)) > -40
}

// hydrogen as inviter cannot offer its microphone before its invite has run out; as the invited one it can at once.
func TestCameraOnlyInviterIsHeardAMinuteLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, members, _ := bubbleOf(t, cameraOnly, "alice", "bob")
		alice, bob := members[0], members[1]
		join(t, callRoom(t, alice, bob), alice, bob)
		began := time.Now()
		for _, m := range members {
			m.Says(listen.Sine(member.Rate, 440, -20, time.Second))
		}
		time.Sleep(5 * time.Second)
		must(t, alice.Mute(false))
		time.Sleep(5 * time.Second)
		if hears(bob, alice) {
			t.Error("the inviter is heard at once")
		}
		time.Sleep(time.Minute - time.Since(began) + time.Second)
		if !hears(bob, alice) {
			t.Error("the inviter is not heard a minute later")
		}
		must(t, bob.Mute(false))
		time.Sleep(500 * time.Millisecond)
		if !hears(alice, bob) {
			t.Error("the invited one is not heard at once")
		}
		noComplaints(t, members...)
	})
}

func TestJSSDKRestartsICEAndHydrogenWaits(t *testing.T) {
	for _, kind := range []member.Kind{member.JSSDK, member.Hydrogen} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hs, members, cut := bubbleOf(t, func(string) member.Config { return member.Config{Kind: kind} }, "alice", "bob")
				alice, bob := members[0], members[1]
				join(t, callRoom(t, alice, bob), alice, bob)
				call := alice.View().Peers[0].CallID
				alice.Says(listen.Sine(member.Rate, 440, -20, time.Second))
				time.Sleep(10 * time.Second)
				sent := len(hs.ToDevice())
				cut.Store(true)
				time.Sleep(15 * time.Second)
				cut.Store(false)
				time.Sleep(10 * time.Second)
				if !hears(bob, alice) || alice.View().Peers[0].CallID != call {
					t.Errorf("after a cut of 15 s: %+v, want the same call and sound", alice.View().Peers)
				}
				if restarted := len(hs.ToDevice()) > sent; restarted != (kind == member.JSSDK) {
					t.Errorf("%d messages during the cut", len(hs.ToDevice())-sent)
				}
				noComplaints(t, members...)
			})
		})
	}
}
