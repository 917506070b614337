package matrixcall

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/webrtc/v4"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// inBubble runs a test on a virtual network, in virtual time. What is left running when it ends fails it.
func inBubble(t *testing.T, ice ICEConfig, test func(t *testing.T, bed *callBed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bed := newCallBed(t, ice)
		defer bed.close()
		test(t, bed)
	})
}

// hearEachOther checks that the last second of talk arrived on both sides.
func (b *callBed) hearEachOther(p *phone, br *browser) {
	b.t.Helper()
	inBefore, outBefore := p.heard(br.user), br.heard(p.info.Ghost)
	b.talk(time.Second, p)
	time.Sleep(50 * time.Millisecond)
	in, out := p.heard(br.user)-inBefore, br.heard(p.info.Ghost)-outBefore
	if in != 50 || out != 50 {
		b.t.Errorf("phone %s heard %d packets of %s, which heard %d, want 50 each", p.info.Ghost, in, br.user, out)
	}
}

func leave(t *testing.T, p *phone) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Leave(ctx, ""); err != nil {
		t.Errorf("Leave = %v", err)
	}
	synctest.Wait()
}

func TestAGhostAloneIsToldSoOnce(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		p := bed.join("@_sip_1:x")
		time.Sleep(3 * time.Minute) // the room's state is read again every minute
		if p.counts() != 1 || p.people() != 0 {
			t.Errorf("told %d times, last of %d people; want once, of nobody", p.counts(), p.people())
		}
		leave(t, p)
	})
}

func TestGhostInvitesAndBothHear(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		p := bed.join("@_sip_1:x")
		alice.enter()
		time.Sleep(2 * time.Second)
		bed.hearEachOther(p, alice)
		if got := p.people(); got != 1 {
			t.Errorf("people = %d, want 1", got)
		}
		in, _ := alice.sdp("@_sip_1:x")
		for _, want := range []string{"a=inactive", "maxplaybackrate=8000", "a=candidate:", "telephone-event/48000"} {
			if !strings.Contains(in, want) {
				t.Errorf("our offer lacks %q:\n%s", want, in)
			}
		}
		leave(t, p)
		if got := alice.received("m.call.hangup"); got != 1 {
			t.Errorf("alice got %d hangups, want 1", got)
		}
		if connected, gone := p.count(isConnected), p.count(isGone); connected != 1 || gone != 1 {
			t.Errorf("%d PeerConnected and %d PeerGone, want 1 and 1", connected, gone)
		}
		if len(bed.members["@_sip_1:x"]) != 0 || bed.call.Ended {
			t.Errorf("after leaving: entry %v, call ended %t, want none, false", bed.members["@_sip_1:x"], bed.call.Ended)
		}
		leave(t, p)
	})
}

func TestGhostIsInvitedAndBothHear(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		alice.enter()
		p := bed.join("@zed:x")
		time.Sleep(2 * time.Second)
		bed.hearEachOther(p, alice)
		in, _ := alice.sdp("@zed:x")
		if !strings.Contains(in, "a=setup:passive") {
			t.Errorf("our answer does not say passive:\n%s", in)
		}
		leave(t, p)
	})
}

func TestOneSharedPortServesManyPeers(t *testing.T) {
	inBubble(t, ICEConfig{UDPPort: 7000}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		bob := bed.browser("@bob:x", "10.1.0.3", nil)
		alice.enter()
		bob.enter()
		p := bed.join("@_sip_1:x")
		q := bed.join("@azed:x") // alice is inviter of q? no: "@alice:x" < "@azed:x", and bob is not
		time.Sleep(2 * time.Second)
		for _, ph := range []*phone{p, q} {
			bed.hearEachOther(ph, alice)
			bed.hearEachOther(ph, bob)
		}
		in, _ := alice.sdp("@_sip_1:x")
		if got := strings.Count(in, " 7000 typ host"); got == 0 || got != strings.Count(in, "typ host") {
			t.Errorf("candidates are not all on port 7000:\n%s", in)
		}
		leave(t, p)
		leave(t, q)
	})
}

func TestCameraOnlyInviterHearsThePhoneAndUnmutesLater(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", func(br *browser) { br.noMic = true })
		alice.enter()
		p := bed.join("@zed:x")
		time.Sleep(3 * time.Second)
		before := alice.heard("@zed:x")
		bed.talk(time.Second, p)
		time.Sleep(50 * time.Millisecond)
		if got := alice.heard("@zed:x") - before; got != 50 {
			in, out := alice.sdp("@zed:x")
			t.Errorf("alice heard %d packets, want 50\n%s\n%s", got, in, out)
		}
		// The microphone is switched on; the client says so, but does not offer for a while.
		alice.do(func() {
			alice.noMic = false
			call := alice.calls["@zed:x"]
			alice.addTrack(call)
			alice.send(call, "org.matrix.call.sdp_stream_metadata_changed",
				map[string]any{"org.matrix.msc3077.sdp_stream_metadata": alice.metadata()})
		})
		time.Sleep(2 * time.Second)
		bed.hearEachOther(p, alice)
		leave(t, p)
	})
}

func TestRestartedPeerIsCalledAgain(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		alice.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(2 * time.Second)
		alice.do(func() { alice.session = "s-second" })
		alice.enter()
		time.Sleep(2 * time.Second)
		bed.hearEachOther(p, alice)
		if connected, gone := p.count(isConnected), p.count(isGone); connected != 2 || gone != 1 {
			t.Errorf("%d PeerConnected and %d PeerGone, want 2 and 1", connected, gone)
		}
		leave(t, p)
	})
}

func TestRenegotiationsOfThePeerAreAnswered(t *testing.T) {
	for _, ghost := range []id.UserID{"@_sip_1:x", "@zed:x"} {
		t.Run(string(ghost[1:4]), func(t *testing.T) {
			inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
				alice := bed.browser("@alice:x", "10.1.0.2", nil)
				alice.enter()
				p := bed.join(ghost)
				time.Sleep(2 * time.Second)
				alice.do(func() { alice.check(addVideo(alice.calls[ghost].pc)) })
				alice.offer(ghost, false)
				time.Sleep(time.Second)
				bed.hearEachOther(p, alice)
				in, _ := alice.sdp(ghost)
				if !strings.Contains(in, "a=setup:passive") || !strings.Contains(in, "a=inactive") {
					t.Errorf("answer to a re-offer with video:\n%s", in)
				}
				alice.offer(ghost, true) // ICE restart
				time.Sleep(2 * time.Second)
				bed.hearEachOther(p, alice)
				if got := p.count(isGone); got != 0 {
					t.Errorf("%d PeerGone, want none", got)
				}
				leave(t, p)
			})
		})
	}
}

func TestLostInviteIsRepeated(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		alice.silent.Store(true)
		alice.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(5 * time.Second)
		alice.silent.Store(false)
		time.Sleep(5 * time.Second)
		bed.hearEachOther(p, alice)
		leave(t, p)
	})
}

func TestLastToLeaveOwnCallTerminatesIt(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		p, q := bed.join("@_sip_1:x"), bed.join("@_sip_2:x")
		leave(t, p)
		if bed.call.Ended {
			t.Error("call ended while a ghost was in it")
		}
		leave(t, q)
		if !bed.call.Ended {
			t.Error("call not ended when the last ghost left")
		}
	})
}

func TestEndedCallEndsTheMembership(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		alice.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(2 * time.Second)
		bed.mu.Lock()
		bed.call.Ended = true
		bed.mu.Unlock()
		bed.spread()
		<-p.done
		synctest.Wait()
		if got := p.count(func(ev Event) bool { _, ok := ev.(CallEnded); return ok }); got != 1 {
			t.Errorf("%d CallEnded, want 1", got)
		}
		leave(t, p)
	})
}

func TestMembershipIsRenewedForHours(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		p := bed.join("@_sip_1:x")
		for range 10 {
			time.Sleep(20 * time.Minute)
			if left := time.Until(p.Info().Expires); left < 10*time.Minute {
				t.Errorf("entry has %v left", left)
			}
		}
		synctest.Wait()
		if bed.puts < 4 || bed.puts > 7 {
			t.Errorf("entry written %d times in 200 minutes, want every 40 to 45", bed.puts)
		}
		leave(t, p)
	})
}

func TestPhoneHearsWhenItMayNotStay(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		p := bed.join("@_sip_1:x")
		rights := &RightsError{Room: bedRoom, Types: []string{memberType}, Need: 50}
		bed.mu.Lock()
		bed.refuse = rights
		bed.mu.Unlock()
		time.Sleep(46 * time.Minute)
		synctest.Wait()
		if n := p.count(func(ev Event) bool { f, ok := ev.(Failed); return ok && errors.Is(f.Err, rights) }); n != 1 {
			t.Errorf("%d Failed with %v, want 1", n, rights)
		}
		select {
		case <-p.done:
		default:
			t.Error("the membership has not ended")
		}
	})
}

func TestRelaysGetMoreTimeToAnswer(t *testing.T) {
	for uri, want := range map[string]time.Duration{
		"stun:s:3478": gatherCap, "turn:s:3478": relayCap, "turns:s:443?transport=tcp": relayCap,
	} {
		if got := gatherPatience([]webrtc.ICEServer{{URLs: []string{"stun:x"}}, {URLs: []string{uri}}}); got != want {
			t.Errorf("gatherPatience(%s) = %v, want %v", uri, got, want)
		}
	}
	if got := gatherPatience(nil); got != gatherCap {
		t.Errorf("gatherPatience without servers = %v, want %v", got, gatherCap)
	}
}

func TestRefusedJoinIsAnErrorAndLeavesNoCall(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		bed.refuse = mautrix.MForbidden
		ghost := &Ghost{user: "@_sip_1:x", device: "GHOST"}
		_, err := joinCall(t.Context(), bed, ghost, bedRoom, CallOptions{})
		synctest.Wait()
		if err == nil || !bed.call.Ended || len(bed.joined) != 0 {
			t.Errorf("joinCall = %v, call ended %t, %d attached, want error, true, 0", err, bed.call.Ended, len(bed.joined))
		}
	})
}

func TestJoinGivesUpWithItsContext(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		bed.refuse = errors.New("later")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		m, err := joinCall(ctx, bed, &Ghost{user: "@_sip_1:x", device: "GHOST"}, bedRoom, CallOptions{})
		if !errors.Is(err, context.DeadlineExceeded) || m == nil {
			t.Fatalf("joinCall = %v, %v, want deadline exceeded and what is still leaving", m, err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(bed.joined) != 0 {
			t.Errorf("still attached: %d", len(bed.joined))
		}
	})
}

func TestPeersHearWhoThePhoneIs(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		bob := bed.browser("@bob:x", "10.1.0.3", nil)
		alice.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(2 * time.Second)
		p.AssertIdentity(Identity{ID: "tel:+15550100", DisplayName: "Carol", AvatarURL: "mxc://x/carol"})
		time.Sleep(time.Second)
		bob.enter()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		for _, user := range []id.UserID{alice.user, bob.user} {
			var types []string
			for _, msg := range bed.sent {
				if msg.User != user || !strings.HasSuffix(msg.Type, "asserted_identity") {
					continue
				}
				types = append(types, msg.Type)
				content, err := json.Marshal(msg.Content)
				if err != nil {
					t.Fatal(err)
				}
				var got map[string]any
				if err := json.Unmarshal(content, &got); err != nil {
					t.Fatal(err)
				}
				want := map[string]any{"id": "tel:+15550100", "display_name": "Carol", "avatar_url": "mxc://x/carol"}
				if who, _ := got["asserted_identity"].(map[string]any); !maps.Equal(who, want) || got["seq"] != nil {
					t.Errorf("%s got %s, want %v and no seq", user, content, want)
				}
			}
			if want := []string{typeAssertedID, typeAssertedIDUnstable}; !slices.Equal(types, want) {
				t.Errorf("%s got %v, want %v", user, types, want)
			}
		}
		bed.hearEachOther(p, alice)
		bed.hearEachOther(p, bob)
		leave(t, p)
	})
}
