package bridge

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
	"trunkline/internal/testbed/speech"
	"trunkline/matrixcall"
)

// onlyLeg is the one leg of the bridge.
func (b *bed) onlyLeg() *actor {
	b.t.Helper()
	legs := b.process.bridge.liveLegs()
	if len(legs) != 1 {
		b.t.Fatalf("%d legs, want one", len(legs))
	}
	return legs[0]
}

// seated waits until the leg's phone sits at its desk: that comes after the answer.
func (b *bed) seated(a *actor) *voice {
	b.t.Helper()
	b.await("the phone to sit at its desk", func() bool { return a.voice.Load() != nil })
	return a.voice.Load()
}

// talkWith dials in and waits until all members are connected to the phone's ghost.
func (b *bed) talkWith(members ...*member.Member) (*phone.Call, id.UserID) {
	b.t.Helper()
	call := b.dial(b.phone("+493012345678"), goodNumber)
	ghost := b.ghosts()
	if len(ghost) != 1 {
		b.t.Fatalf("ghosts in the call: %v, want one", ghost)
	}
	for _, m := range members {
		if err := m.AwaitConnected(b.ctx(), ghost[0]); err != nil {
			b.t.Fatal(err)
		}
	}
	return call, ghost[0]
}

func TestKeysThatMembersPressReachThePhone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice, bob := b.person("alice", member.JSSDK, true), b.person("bob", member.JSSDK, true)
	call, _ := b.talkWith(alice, bob)
	a := b.onlyLeg()
	b.seated(a)
	for _, digit := range "42#" {
		a.fromRoom(matrixcall.Digit{Peer: matrixcall.PeerKey{User: alice.UserID()}, Digit: digit})
	}
	a.fromRoom(matrixcall.Digit{Peer: matrixcall.PeerKey{User: bob.UserID()}, Digit: '7'})
	b.await("the keys to arrive", func() bool { return call.Keys() == "42#7" })
}

func TestPhoneOnHoldIsMutedForAllPeersInOneRequest(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	members := []*member.Member{b.person("alice", member.JSSDK, true), b.person("bob", member.JSSDK, true), b.person("carol", member.Hydrogen, true)}
	call, ghost := b.talkWith(members...)
	requests := func() (n int) {
		for _, r := range b.hs.Requests() {
			if r.User == ghost && strings.Contains(r.Path, "sendToDevice") {
				n++
			}
		}
		return n
	}
	last, since := requests(), time.Now()
	b.await("nothing of joining to be on its way", func() bool {
		if n := requests(); n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) >= time.Second
	})
	for _, hold := range []struct {
		direction, answer string
		muted             bool
	}{{"sendonly", "recvonly", true}, {"sendrecv", "sendrecv", false}} {
		before := requests()
		if answer, err := call.Reinvite(b.ctx(), hold.direction); err != nil || answer != hold.answer {
			t.Fatalf("re-INVITE %s answered %q, %v", hold.direction, answer, err)
		}
		for _, m := range members {
			err := m.Await(b.ctx(), "the ghost to be muted or not", func(v member.View) bool {
				for _, p := range v.Peers {
					if p.User == ghost {
						return p.Muted == hold.muted
					}
				}
				return false
			})
			if err != nil {
				t.Error(err)
			}
		}
		// Plain and encrypted messages are of different types, and a request carries one type.
		n := requests() - before
		t.Logf("%s: %d requests for three peers", hold.direction, n)
		if n > 2 {
			t.Errorf("%s: %d requests for three peers, want one for each event type", hold.direction, n)
		}
	}
}

func TestSpeechIsProtectedWhileAnyPeerLosesPackets(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, true)
	call, _ := b.talkWith(alice)
	a := b.onlyLeg()
	v := b.seated(a)
	protected := func() (fec bool) {
		v.worker.do(func() { fec = v.phone.Stats().PeerFEC })
		return fec
	}
	b.await("alice's client to report", func() (told bool) {
		v.worker.do(func() { told = len(v.losses) == 1 })
		return told
	})
	if protected() {
		t.Error("protected although nothing is lost")
	}
	call.Play(speech.Bob.PCM(8000, 4*time.Second))
	a.fromRoom(matrixcall.PeerLoss{Peer: matrixcall.PeerKey{User: "@far:away", Device: "D"}, Fraction: 0.1})
	b.await("forward error correction", protected)
	a.fromRoom(matrixcall.PeerGone{Peer: matrixcall.PeerKey{User: "@far:away", Device: "D"}})
	b.await("the lossy peer to be forgotten", func() (forgotten bool) {
		v.worker.do(func() { forgotten = len(v.losses) == 1 })
		return forgotten
	})
}

func TestMembersWhoMuteThemselvesAreLeftOutOfTheMix(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, true)
	b.talkWith(alice)
	alice.Says(speech.Alice.PCM(48000, 2*time.Second))
	v := b.seated(b.onlyLeg())
	muted := func() (found, muted bool) {
		v.worker.do(func() {
			for key, seat := range v.conf.devices {
				if key.User == alice.UserID() {
					found, muted = true, seat.device.Stats().Muted
				}
			}
		})
		return found, muted
	}
	b.await("alice's device at the desk", func() bool { found, muted := muted(); return found && !muted })
	for _, mute := range []bool{true, false} {
		if err := alice.Mute(mute); err != nil {
			t.Fatal(err)
		}
		b.await("the desk to know", func() bool { _, is := muted(); return is == mute })
	}
}

func TestWhoWasMutedBeforeTheAnswerIsMutedAfterIt(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, false)
	call := b.begin(b.phone("1"), plainNumber)
	b.awaitRing(1)
	a := b.onlyLeg()
	device := func(name string) matrixcall.PeerKey {
		return matrixcall.PeerKey{User: id.UserID("@" + name + ":away"), Device: "D"}
	}
	for _, name := range []string{"mute", "loud", "gone"} {
		a.fromRoom(matrixcall.PeerMuted{Peer: device(name), Muted: true})
	}
	a.fromRoom(matrixcall.PeerMuted{Peer: device("loud"), Muted: false})
	a.fromRoom(matrixcall.PeerGone{Peer: device("gone")})
	if err := alice.JoinCall(b.ctx(), b.room); err != nil {
		t.Fatal(err)
	}
	if err := call.Answered(); err != nil {
		t.Fatal(err)
	}
	b.await("the phone at the desk", func() bool { return a.voice.Load() != nil })
	var muted map[deviceKey]bool
	b.await("the desk to know who is muted", func() bool {
		v := a.voice.Load()
		v.worker.do(func() { muted = maps.Clone(v.conf.muted) })
		return muted[deviceOf(device("mute"))]
	})
	if len(muted) != 1 {
		t.Errorf("muted at the desk: %v, want one device", muted)
	}
}

func TestPhoneStaysWithAMemberWhomAnotherPhoneHasLost(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.Hydrogen, true)
	lost := b.dial(b.phone("1"), goodNumber)
	first := b.onlyLeg()
	stays := b.dial(b.phone("2"), goodNumber)
	if err := alice.AwaitConnected(b.ctx(), b.ghosts()...); err != nil {
		t.Fatal(err)
	}
	first.fromRoom(matrixcall.People{N: 0}) // its ghost cannot reach alice
	if err := lost.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.await("the first leg to end", func() bool { return len(b.process.bridge.liveLegs()) == 1 })
	second, company := b.onlyLeg(), make(chan int, 1)
	second.inbox.Put(func() { company <- second.state.Company })
	if n := <-company; n != 1 {
		t.Errorf("the phone that stays has the company of %d, want alice's", n)
	}
	time.Sleep(3 * b.cfg.Calls.EmptyTimeout)
	if why := stays.Ended(); why != "" {
		t.Errorf("it was hung up on while alice was there: %s", why)
	}
}

func TestTheRoomLearnsWhoIsOnThePhoneAfterATransfer(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, true)
	call, ghost := b.talkWith(alice)
	name := func() string {
		var content struct {
			Name   string `json:"displayname"`
			Avatar string `json:"avatar_url"`
		}
		if err := json.Unmarshal(b.hs.State(b.room, "m.room.member", string(ghost)), &content); err != nil {
			t.Fatal(err)
		}
		if content.Avatar != b.cfg.AppService.GhostAvatar {
			t.Errorf("the ghost has the picture %q, want the configured one", content.Avatar)
		}
		return content.Name
	}
	if got := name(); got != "+493•••••••78" {
		t.Errorf("before the transfer the ghost is called %q", got)
	}
	if err := call.Assert(b.ctx(), `"Carla" <sip:+493087654321@pbx.example>`); err != nil {
		t.Fatal(err)
	}
	const want = "Carla (+493•••••••21)"
	b.await("the ghost's new name", func() bool { return name() == want })
	b.await("alice's client to be told", func() bool {
		for _, m := range b.hs.ToDevice() {
			if m.To == alice.UserID() && strings.Contains(m.Type, "asserted_identity") {
				if strings.Contains(string(m.Content), "87654321") {
					t.Fatalf("the number is not masked: %s", m.Content)
				}
				return strings.Contains(string(m.Content), want)
			}
		}
		return false
	})
}

func TestAdminsSeeWhoSpeaks(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, true)
	call, _ := b.talkWith(alice)
	a := b.onlyLeg()
	view := func() legView {
		b.process.bridge.mu.Lock()
		defer b.process.bridge.mu.Unlock()
		return a.view()
	}
	if v := view(); v.Speaking || v.Phase != "talking" {
		t.Errorf("a silent phone is shown as %+v", v)
	}
	call.Play(listen.Sine(8000, 440, -20, 2*time.Second))
	b.await("the phone to be shown, and counted, as speaking", func() bool {
		phones, _ := b.process.bridge.speakers()
		return view().Speaking && phones == 1
	})
	b.await("the phone to fall silent", func() bool { return !view().Speaking })
	peer := matrixcall.PeerKey{User: alice.UserID(), Device: "A"}
	a.fromRoom(matrixcall.Speaking{Peer: peer, On: true})
	if v := view(); len(v.Speakers) != 1 || v.Speakers[0] != alice.UserID() {
		t.Errorf("speakers %v, want alice", v.Speakers)
	}
	a.fromRoom(matrixcall.PeerGone{Peer: peer})
	if _, devices := b.process.bridge.speakers(); devices != 0 {
		t.Errorf("%d devices speak after the only one has gone", devices)
	}
}

func TestClicksAndShortPausesAreNoSpeech(t *testing.T) {
	var m talk
	on := false
	for i, level := range []int8{-60, -20, -60, -20, -20} {
		if on = m.hear(level); on != (i == 4) {
			t.Errorf("frame %d: speaks = %t", i, on)
		}
	}
	for i := range talkHang {
		if on = m.hear(-90); on != (i < talkHang-1) {
			t.Errorf("silent frame %d: speaks = %t", i, on)
		}
	}
}
