package matrixcall

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

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
		b.eventually(5*time.Second, func() string {
			state, err := b.service.readState(t.Context(), g, room)
			if err != nil {
				t.Fatal(err)
			}
			if call := state.newestCall(b.service); call.ConfID != "" {
				return fmt.Sprintf("call %+v has not ended although all have left", call)
			}
			return ""
		})
		if n := b.service.metrics.GhostsPolling.Load(); n != 0 {
			t.Errorf("%d ghosts still poll", n)
		}
	})
}
