package member_test

import (
	"context"
	"fmt"
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
	hs := homeserver.Start(t, homeserver.Config{})
	wan, err := vnet.NewRouter(&vnet.RouterConfig{CIDR: "10.0.0.0/24", LoggerFactory: logging.NewDefaultLoggerFactory()})
	must(t, err)
	var members []*member.Member
	for i, name := range names {
		nic, err := vnet.NewNet(&vnet.NetConfig{StaticIPs: []string{fmt.Sprintf("10.0.0.%d", i+1)}})
		must(t, err)
		must(t, wan.AddNet(nic))
		u := hs.User(name)
		m, err := member.New(t.Context(), member.Config{
			URL: hs.URL(), UserID: u.UserID, DeviceID: u.DeviceID, AccessToken: u.AccessToken,
			HTTP: hs.Net().Client(), Kind: kind, Net: nic,
		})
		must(t, err)
		t.Cleanup(m.Close)
		members = append(members, m)
	}
	must(t, wan.Start())
	t.Cleanup(func() { must(t, wan.Stop()) })
	return hs, members
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
