package matrixcall

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// TestHostilePeerHarmsNobodyElse: one member of three floods the ghost with ten thousand messages of all kinds. The two
// others hear every packet, and the ghost hears theirs; what is kept is bounded; what is refused is counted.
func TestHostilePeerHarmsNobodyElse(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		bob := bed.browser("@bob:x", "10.1.0.3", nil)
		alice.enter()
		bob.enter()
		p := bed.join("@azed:x") // alice calls it, it calls bob and eve
		time.Sleep(3 * time.Second)
		bed.hearEachOther(p, alice)
		bed.hearEachOther(p, bob)

		eve := newHostile(bed, p, alice)
		before, goroutines := heapNow(), runtime.NumGoroutine()
		heard := []int{alice.heard("@azed:x"), bob.heard("@azed:x"), p.heard("@alice:x"), p.heard("@bob:x")}
		const frames, perFrame = 500, 20
		var most uint64
		for n := range frames {
			for range perFrame {
				eve.strike()
			}
			bed.talk(20*time.Millisecond, p)
			if n%50 == 49 {
				most = max(most, heapNow())
			}
		}
		time.Sleep(50 * time.Millisecond)
		for i, got := range []int{alice.heard("@azed:x"), bob.heard("@azed:x"), p.heard("@alice:x"), p.heard("@bob:x")} {
			if got -= heard[i]; got != frames {
				t.Errorf("link %d carried %d of %d packets during the storm", i, got, frames)
			}
		}
		if n := p.count(func(ev Event) bool { g, ok := ev.(PeerGone); return ok && g.Peer.User != "@eve:x" }); n != 0 {
			t.Errorf("%d PeerGone of the good peers", n)
		}
		if opened := eve.answered(); opened > 20 {
			t.Errorf("%d of eve's invites were answered in 10 s", opened)
		}
		dropped := bed.metrics.SignalsDropped.Load()
		if dropped < frames*perFrame*8/10 {
			t.Errorf("%d of %d messages were counted as dropped, want most", dropped, frames*perFrame)
		}
		if grown := int64(most) - int64(before); grown > 24<<20 {
			t.Errorf("the heap grew by %d KiB, want at most 24 MiB", grown>>10)
		}
		t.Logf("%d messages, %d dropped, heap at most +%d KiB, %d goroutines before and %d after",
			frames*perFrame, dropped, (int64(most)-int64(before))>>10, goroutines, runtime.NumGoroutine())
		bed.hearEachOther(p, alice)
		bed.hearEachOther(p, bob)
		leave(t, p)
	})
}

func heapNow() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// hostile sends anything to a phone, as itself, from devices it does not have, and as a stranger.
type hostile struct {
	bed      *callBed
	phone    *phone
	random   *rand.Rand
	offer    string   // that a connection can be made of
	calls    []string // call ids: its own, and those of others
	sessions []string
	n        int
}

func newHostile(bed *callBed, p *phone, victim *browser) *hostile {
	bed.setMember("@eve:x", MemberDevice{User: "@eve:x", Device: "E", Session: "s-eve", Expires: time.Now().Add(time.Hour)})
	time.Sleep(time.Second)
	h := &hostile{
		bed: bed, phone: p, random: rand.New(rand.NewPCG(1, 1)), sessions: []string{"s-eve", "s-eve", "s-eve", "s-other", "", victim.session},
	}
	_, h.offer = victim.sdp(p.info.Ghost)
	h.calls = []string{"e1", "e2", strings.Repeat("e", 255), ""}
	bed.mu.Lock()
	defer bed.mu.Unlock()
	for _, msg := range bed.sent {
		if content, ok := msg.Content.(*signalContent); ok {
			h.calls = append(h.calls, content.CallID)
		}
	}
	return h
}

// answered is how many answers eve got.
func (h *hostile) answered() (n int) {
	h.bed.mu.Lock()
	defer h.bed.mu.Unlock()
	for _, msg := range h.bed.sent {
		if msg.User == "@eve:x" && msg.Type == typeAnswer {
			n++
		}
	}
	return n
}

func one[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// strike sends one message.
func (h *hostile) strike() {
	r := h.random
	h.n++
	calls := append(h.calls[:len(h.calls):len(h.calls)], fmt.Sprint("new", h.n))
	sdp := one(r, h.offer, h.offer, "", "v=0")
	if r.IntN(20) == 0 {
		sdp = one(r, strings.Repeat("m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n", 1000), strings.Repeat("a=x\r\n", 8000), strings.Repeat("x", maxSDP+1))
	}
	session := map[string]any{"type": one(r, "offer", "offer", "answer", "pranswer", ""), "sdp": sdp}
	candidates := make([]any, max(0, r.IntN(200)-120))
	for i := range candidates {
		candidates[i] = map[string]any{
			"candidate": fmt.Sprintf("candidate:%d 1 udp 2130706431 10.1.0.%d %d typ host", i, r.IntN(250)+1, r.IntN(60000)+1024), "sdpMid": "0", "sdpMLineIndex": 0,
		}
	}
	streams := make(map[string]any)
	for i := range r.IntN(20) {
		streams[fmt.Sprint(i)] = map[string]any{"purpose": "m.usermedia", "audio_muted": r.IntN(2) == 0}
	}
	content := map[string]any{
		"call_id": one(r, calls...), "conf_id": one[any](r, h.bed.call.ConfID, h.bed.call.ConfID, h.bed.call.ConfID, "other", 7),
		"device_id": "E", "party_id": one(r, "E", "BROWSER"), "version": one[any](r, 0, 1, "1", "x", nil),
		"sender_session_id": one(r, h.sessions...), "dest_session_id": one(r, h.phone.Info().SessionID, h.phone.Info().SessionID, "old"),
		"offer": session, "answer": session, "description": session, "candidates": candidates, "sdp_stream_metadata": streams,
		"reason": one[any](r, "ice_failed", "user_hangup", "", 7), "selected_party_id": one(r, "GHOST", "OTHER"), "lifetime": one[any](r, 60000, -1, "x"),
	}
	if seq := r.IntN(8); seq < 7 {
		content["seq"] = one[any](r, seq, h.n, -1, 1.5, "0", 1<<31-1, []int{})
	}
	if r.IntN(20) == 0 {
		content[one(r, "call_id", "offer", "candidates", "sdp_stream_metadata", "sender_session_id")] = one[any](r, 7, []int{1}, map[string]any{}, nil, "x")
	}
	text, err := json.Marshal(content)
	if err != nil {
		h.bed.t.Fatal(err)
	}
	kind := one(r, append(slices.Sorted(maps.Keys(signalKinds)), typeInvite, typeNegotiate, "m.call.ping")...)
	sender, device := id.UserID("@eve:x"), id.DeviceID("E")
	switch r.IntN(10) {
	case 0:
		device = id.DeviceID(fmt.Sprint("E", r.IntN(1000)))
	case 1:
		sender = id.UserID(fmt.Sprintf("@stranger%d:x", r.IntN(1000)))
	}
	h.phone.deliverToDevice(sender, device, kind, text, r.IntN(2) == 0)
}
