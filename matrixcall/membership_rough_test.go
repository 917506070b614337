package matrixcall

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/transport/v4/vnet"
	"github.com/pion/webrtc/v4"
	"maunium.net/go/mautrix/id"
)

// Rough weather: offers that cross, networks that go away, peers that are silent or send nonsense.

func TestCrossingOffersDoNotStopTheCall(t *testing.T) {
	for _, script := range []struct {
		name  string
		after time.Duration // of the metadata: our own offer leaves after 500 ms
	}{{"before ours", 480 * time.Millisecond}, {"after ours", 505 * time.Millisecond}} {
		t.Run(script.name, func(t *testing.T) {
			inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
				alice := bed.browser("@alice:x", "10.1.0.2", func(br *browser) { br.noMic = true })
				alice.enter()
				p := bed.join("@zed:x")
				time.Sleep(3 * time.Second)
				// As hydrogen does it: metadata first, the offer a moment later. We are the polite side.
				alice.do(func() {
					alice.noMic = false
					call := alice.calls["@zed:x"]
					alice.addTrack(call)
					alice.impolite = true
					alice.send(call, typeMetadata, map[string]any{"sdp_stream_metadata": alice.metadata()})
				})
				time.Sleep(script.after)
				alice.offer("@zed:x", false)
				time.Sleep(3 * time.Second)
				bed.hearEachOther(p, alice)
				if got := p.count(isGone); got != 0 {
					t.Errorf("%d PeerGone, want none", got)
				}
				leave(t, p)
			})
		})
	}
}

func TestShortOutageIsSurvived(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		alice.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(2 * time.Second)
		bed.cut.Store(true)
		time.Sleep(12 * time.Second)
		bed.cut.Store(false)
		time.Sleep(8 * time.Second)
		bed.hearEachOther(p, alice)
		if got := p.count(isGone); got != 0 {
			t.Errorf("%d PeerGone, want none", got)
		}
		if got := alice.received(typeNegotiate); got == 0 {
			t.Error("no ICE restart was offered")
		}
		leave(t, p)
	})
}

func TestLongOutageEndsTheLinkAndAnotherFollows(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		alice.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(2 * time.Second)
		bed.cut.Store(true)
		time.Sleep(60 * time.Second)
		bed.cut.Store(false)
		time.Sleep(60 * time.Second)
		bed.hearEachOther(p, alice)
		if got := p.count(isGone); got != 1 {
			t.Errorf("%d PeerGone, want 1", got)
		}
		leave(t, p)
	})
}

func TestLeavingDoesNotWaitForSilentPeers(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		for i := range 5 {
			br := bed.browser(userNumber(i), fmt.Sprintf("10.1.0.%d", 10+i), nil)
			br.silent.Store(true)
			br.enter()
		}
		p := bed.join("@_sip_1:x")
		time.Sleep(time.Second)
		began := time.Now()
		leave(t, p)
		if took := time.Since(began); took > time.Second {
			t.Errorf("leaving took %v", took)
		}
		hangups, rejects := 0, 0
		for _, msg := range bed.sent {
			switch msg.Type {
			case typeHangup:
				hangups++
			case typeReject:
				rejects++
			}
		}
		if hangups != 5 || rejects != 5 {
			t.Errorf("%d hangups and %d rejects, want 5 and 5", hangups, rejects)
		}
	})
}

// A mute is one batch to both peers: that one of the messages fails must not end the other's link.
func TestPeerThatCannotBeReachedCostsNobodyElse(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		bob := bed.browser("@bob:x", "10.1.0.3", nil)
		p := bed.join("@_sip_1:x")
		alice.enter()
		bob.enter()
		time.Sleep(3 * time.Second)
		bed.hearEachOther(p, alice)
		bed.hearEachOther(p, bob)
		bed.unsent = bob.user
		p.Mute(true)
		time.Sleep(time.Second)
		synctest.Wait()
		for user, want := range map[id.UserID]int{alice.user: 0, bob.user: 1} {
			gone := p.count(func(ev Event) bool { g, ok := ev.(PeerGone); return ok && g.Peer.User == user })
			if gone != want {
				t.Errorf("%s went %d times, want %d", user, gone, want)
			}
		}
		bed.unsent = ""
		leave(t, p)
	})
}

func TestUselessSignalsAreCounted(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		p := bed.join("@_sip_1:x")
		p.deliverToDevice("@alice:x", "A", "m.call.invite", json.RawMessage(`{"call_id":"c","conf_id":"another"}`), false)
		synctest.Wait()
		if n := bed.metrics.SignalsDropped.Load(); n != 1 {
			t.Errorf("%d signals dropped, want 1", n)
		}
		leave(t, p)
	})
}

func TestNonsenseFromAPeerIsAnswered(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", func(br *browser) { br.mute = true })
		alice.enter()
		p := bed.join("@zed:x")
		time.Sleep(time.Second)
		for i, sdp := range []string{
			"", "v=0", "v=0\r\nm=audio", strings.Repeat("a=x\r\n", 9000), "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n",
			"v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=rtpmap:111 opus/48000/2\r\n",
		} {
			content, err := json.Marshal(map[string]any{
				"call_id": fmt.Sprint("n", i), "conf_id": bed.call.ConfID, "device_id": alice.device, "seq": 0,
				"sender_session_id": alice.session, "dest_session_id": p.Info().SessionID,
				"offer": map[string]any{"type": "offer", "sdp": sdp},
			})
			if err != nil {
				t.Fatal(err)
			}
			p.deliverToDevice(alice.user, alice.device, typeInvite, content, true)
			time.Sleep(3 * time.Second)
		}
		synctest.Wait()
		if got := alice.received(typeHangup); got < 5 {
			t.Errorf("%d hangups, want one for each piece of nonsense", got)
		}
		alice.do(func() { alice.mute = false; alice.callThem() })
		time.Sleep(3 * time.Second)
		bed.hearEachOther(p, alice)
		leave(t, p)
	})
}

func TestPressedKeysBecomeDigits(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		alice := bed.browser("@alice:x", "10.1.0.2", func(br *browser) { br.keys = true })
		alice.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(2 * time.Second)
		for i, event := range []byte{1, 1, 11, 200} {
			for n := range uint16(5) {
				alice.press(event, uint32(i*4000), uint16(i)*10+n)
			}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		var got []rune
		for _, ev := range p.events {
			if d, ok := ev.(Digit); ok {
				got = append(got, d.Digit)
			}
		}
		if string(got) != "11#" {
			t.Errorf("digits = %q, want 11#", string(got))
		}
		leave(t, p)
	})
}

func TestPeersBeyondTheLimitAreTurnedAway(t *testing.T) {
	inBubble(t, ICEConfig{MaxPeers: 2}, func(t *testing.T, bed *callBed) {
		var browsers []*browser
		for i := range 3 {
			br := bed.browser(userNumber(i), fmt.Sprintf("10.1.0.%d", 10+i), nil)
			br.enter()
			browsers = append(browsers, br)
			time.Sleep(time.Second)
		}
		p := bed.join("@zed:x")
		time.Sleep(3 * time.Second)
		if got := p.count(isConnected); got != 2 {
			t.Errorf("%d peers connected, want 2", got)
		}
		if got := p.people(); got != 3 {
			t.Errorf("people = %d, want 3", got)
		}
		refused := slices.ContainsFunc(browsers, func(br *browser) bool { return br.received(typeReject) == 1 })
		if !refused {
			t.Error("nobody was told that the ghost is busy")
		}
		leave(t, p)
	})
}

// cutFilter lets nothing through while the network is cut, and nothing from or to an address that is off it.
func (b *callBed) cutFilter(c vnet.Chunk) bool {
	off, _ := b.off.Load().(string)
	return !b.cut.Load() && (off == "" || !strings.HasPrefix(c.SourceAddr().String(), off+":") &&
		!strings.HasPrefix(c.DestinationAddr().String(), off+":"))
}

// press sends a packet of a telephone event (RFC 4733) to every ghost.
func (br *browser) press(event byte, timestamp uint32, seq uint16) {
	br.mu.Lock()
	defer br.mu.Unlock()
	for _, track := range br.tracks {
		packet := &rtp.Packet{
			Header:  rtp.Header{Version: 2, SequenceNumber: seq, Timestamp: timestamp},
			Payload: []byte{event, 10, 0, 160},
		}
		br.check(track.WriteRTP(packet))
	}
}

var toneCodec = webrtc.RTPCodecCapability{MimeType: mimeTelephone, ClockRate: 48000}

// TestPeerThatCannotBeReachedHoldsUpNoOther: what is for somebody on a foreign homeserver takes ten seconds to be given up, and
// what is for alice goes out meanwhile.
func TestPeerThatCannotBeReachedHoldsUpNoOther(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		bed.far = "@fay:far"
		bed.setMember(bed.far, MemberDevice{User: bed.far, Device: "FAR", Session: "s", Expires: time.Now().Add(time.Hour)})
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		p := bed.join("@_sip_1:x")
		time.Sleep(2500 * time.Millisecond) // the invite to fay is under way
		alice.enter()
		time.Sleep(2500 * time.Millisecond)
		bed.hearEachOther(p, alice)
		p.Mute(true)
		time.Sleep(100 * time.Millisecond)
		if got := alice.received(typeMetadata); got != 1 {
			t.Errorf("alice was told %d times that the phone is muted, want once, at once", got)
		}
		leave(t, p)
	})
}
