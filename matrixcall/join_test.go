package matrixcall

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
)

// TestCancelledJoinDoesNotHoldUpTheRoom: the homeserver stalls on one ghost's entry, and its caller gives up.
func TestCancelledJoinDoesNotHoldUpTheRoom(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		alice, _, e := oneCall(b)
		b.service.detachConference(e)
		room := e.info.Room
		startCall(t, alice, room, "standing")
		stuck, free := b.ghost("_sip_stuck"), b.ghost("_sip_free")
		for _, g := range []*Ghost{stuck, free} {
			if err := g.EnterRoom(t.Context(), room); err != nil {
				t.Fatal(err)
			}
		}
		outage := b.fake.Break(&homeserver.Fault{
			Method: http.MethodPut, Path: "call.member", User: stuck.user, Error: &homeserver.Error{Status: 503, Code: "M_UNKNOWN"},
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := stuck.JoinCall(ctx, room, CallOptions{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("join of the stuck ghost = %v, want its deadline", err)
			}
			if stuck.isIn(room) {
				t.Error("JoinCall returned while the ghost is still busy")
			}
		})
		time.Sleep(2 * time.Second)
		if !stuck.isIn(room) {
			t.Error("the stuck ghost is free before it has left")
		}
		began := time.Now()
		m, err := free.JoinCall(t.Context(), room, CallOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 5*time.Second { // state is written one event after the other
			t.Errorf("the other phone joined after %v", took)
		}
		outage.Mend()
		wg.Wait()
		if err := m.Leave(t.Context(), ""); err != nil {
			t.Error(err)
		}
	})
}

// Whoever is in the call may signal a ghost as soon as it sees its entry. The homeserver's answer that the entry stands has
// not even come by then: it got lost on the way.
func TestInviteIsAnsweredBeforeOurEntryIsConfirmed(t *testing.T) {
	for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK} {
		t.Run(kind.String(), func(t *testing.T) {
			inCrowd(t, func(t *testing.T, c *crowd) {
				alice := c.enter("0alice", kind) // the lower id, who invites
				_, err := alice.CreateCall(t.Context(), c.room)
				c.soon(err)
				c.soon(alice.JoinCall(c.shortly(), c.room))
				g := c.phone("_sip_first")
				lost := c.fake.Break(&homeserver.Fault{
					Method: http.MethodPut, Path: "/state/" + memberType, User: g.user, Late: true, Drop: true, Times: 1,
				})
				m := c.call(g, CallOptions{})
				if heard, lost := c.service.metrics.SignalsReceived.Load(), lost.Hits(); heard == 0 || lost != 1 {
					t.Errorf("%d signals were heard before our entry was confirmed, %d answers were lost; want some, and one", heard, lost)
				}
				c.connected(m, "0alice")
				if n := c.service.metrics.MessagesUnclaimed.Load(); n != 0 {
					t.Errorf("%d messages were for no call", n)
				}
				c.noComplaints()
				c.soon(m.Leave(c.shortly(), ""))
			})
		})
	}
}

// TestPhonesThatDialTogetherShareOneCall runs the whole package: ghosts with
// PeerConnections in one room, none of which finds a call.
func TestPhonesThatDialTogetherShareOneCall(t *testing.T) {
	everywhere(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false)
		room := alice.room(b.service.Bot())
		var wg sync.WaitGroup
		var mu sync.Mutex
		var joined []*Membership
		for n := range 5 {
			wg.Go(func() {
				g, err := b.service.Ghost(t.Context(), fmt.Sprintf("_sip_together%d", n), "Phone")
				if err != nil {
					t.Error(err)
					return
				}
				if err := g.EnterRoom(t.Context(), room); err != nil {
					t.Error(err)
					return
				}
				m, err := g.JoinCall(t.Context(), room, CallOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := g.JoinCall(t.Context(), room, CallOptions{}); !errors.Is(err, ErrGhostBusy) {
					t.Errorf("second JoinCall of a ghost = %v, want ErrGhostBusy", err)
				}
				mu.Lock()
				defer mu.Unlock()
				joined = append(joined, m)
			})
		}
		wg.Wait()
		if len(joined) != 5 {
			t.Fatalf("%d of 5 ghosts joined", len(joined))
		}
		g := b.service.knownGhost(joined[0].Info().Ghost)
		state, err := b.service.readState(t.Context(), g, room)
		if err != nil {
			t.Fatal(err)
		}
		if len(state.calls) != 1 {
			t.Errorf("%d calls in the room, want 1", len(state.calls))
		}
		if got := len(state.devices(b.service, joined[0].Info().ConfID)); got != 5 {
			t.Errorf("%d devices in the call, want 5", got)
		}
		for _, m := range joined {
			wg.Go(func() {
				if err := m.Leave(t.Context(), "user_hangup"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		b.eventually(time.Minute, func() string {
			state, err := b.service.readState(t.Context(), g, room)
			if err != nil {
				t.Fatal(err)
			}
			if call := state.activeCall(b.service); call.ConfID != "" {
				return fmt.Sprintf("call %+v has not ended although all have left", call)
			}
			return ""
		})
		if n := b.service.metrics.GhostsPolling.Load(); n != 0 {
			t.Errorf("%d ghosts still poll", n)
		}
	})
}

// TestRedialFindsALiveCall: the next phone has chosen the call to join and is not in it yet when the last one leaves it.
func TestRedialFindsALiveCall(t *testing.T) {
	bubble(t, func(t *testing.T, b *bed) {
		b.start()
		alice := b.person("alice", false)
		room := alice.room(b.service.Bot())
		first, second := b.ghost("_sip_first"), b.ghost("_sip_second")
		for _, g := range []*Ghost{first, second} {
			if err := g.EnterRoom(t.Context(), room); err != nil {
				t.Fatal(err)
			}
		}
		m, err := first.JoinCall(t.Context(), room, CallOptions{})
		if err != nil {
			t.Fatal(err)
		}
		release, err := b.service.joining.acquire(t.Context(), room) // as JoinCall of the second phone does
		if err != nil {
			t.Fatal(err)
		}
		call, err := b.service.activeCall(t.Context(), second, room)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := m.Leave(t.Context(), ""); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Second)
		entry := &MemberCallDevice{DeviceID: second.device, SessionID: "s", ExpiresTS: time.Now().Add(time.Hour).UnixMilli()}
		if err := b.service.PutMember(t.Context(), second, room, MemberEdit{ConfID: call.ConfID, Add: entry}); err != nil {
			t.Fatal(err)
		}
		release()
		wg.Wait()
		state, err := b.service.readState(t.Context(), second, room)
		if err != nil {
			t.Fatal(err)
		}
		if state.call(b.service, call.ConfID).Ended {
			t.Error("the call was ended under the phone that was joining it")
		}
		left := MembershipInfo{Ghost: second.user, Device: second.device, Room: room, ConfID: call.ConfID, Created: true}
		if _, err := b.service.SweepMembership(t.Context(), left); err != nil {
			t.Fatal(err)
		}
		if state, err = b.service.readState(t.Context(), second, room); err != nil {
			t.Fatal(err)
		}
		if !state.call(b.service, call.ConfID).Ended {
			t.Error("the call goes on without anybody")
		}
	})
}
