package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/bridge/config"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

// tones are the frequencies a phone may hear of us, and toneLevel the least of one that is meant to be heard.
var tones = []float64{425, 950, 1400, 1800}

const toneLevel = -30.0

// cadence lists what was heard in steps of 50 ms, as a frequency and for how long; 0 is silence.
type beat struct {
	hz     float64
	length time.Duration
}

func cadence(pcm []int16) []beat {
	const step = 400 // samples
	var beats []beat
	for ; len(pcm) >= step; pcm = pcm[step:] {
		now := beat{length: 50 * time.Millisecond}
		for _, hz := range tones {
			if listen.Tone(pcm[:step], 8000, hz) > toneLevel {
				now.hz = hz
			}
		}
		if n := len(beats); n > 0 && beats[n-1].hz == now.hz {
			beats[n-1].length += now.length
			continue
		}
		beats = append(beats, now)
	}
	return beats
}

// sounds says whether there is such a beat, 150 ms longer or shorter: the machine may be busy.
func sounds(beats []beat, hz float64, d time.Duration) bool {
	return slices.ContainsFunc(beats, func(b beat) bool { return b.hz == hz && (b.length-d).Abs() <= 150*time.Millisecond })
}

func longest(beats []beat, hz float64) (most time.Duration) {
	for _, b := range beats {
		if b.hz == hz {
			most = max(most, b.length)
		}
	}
	return most
}

// awaitRing waits until the room has been told of so many calls, and returns the last notice.
func (b *bed) awaitRing(calls int) homeserver.Event {
	b.t.Helper()
	var notices []homeserver.Event
	b.await("the room to be told of the call", func() bool {
		notices = nil
		for _, ev := range b.hs.Timeline(b.room) {
			if ev.Type == event.EventMessage.Type && ev.Sender == b.bot() && strings.Contains(string(ev.Content), "!sip decline") {
				notices = append(notices, ev)
			}
		}
		return len(notices) == calls
	})
	return notices[calls-1]
}

// awaitAlert waits until the phone knows that it is heard: before, it has nothing to cancel (RFC 3261 §9.1).
func (b *bed) awaitAlert(call *phone.Call) {
	b.t.Helper()
	b.await("the phone to hear that its call is on its way", func() bool { return len(call.Provisional()) > 0 })
}

// outcome is what the notice of a ring was edited to.
func (b *bed) outcome(notice id.EventID) string {
	b.t.Helper()
	var edits []string
	b.await("the notice to say how it ended", func() bool {
		edits = nil
		for _, ev := range b.hs.Timeline(b.room) {
			var content struct {
				New     struct{ Body string } `json:"m.new_content"`
				Relates struct {
					EventID id.EventID `json:"event_id"`
				} `json:"m.relates_to"`
			}
			if json.Unmarshal(ev.Content, &content) == nil && content.Relates.EventID == notice && content.New.Body != "" {
				edits = append(edits, content.New.Body)
			}
		}
		return len(edits) > 0
	})
	if len(edits) > 1 {
		b.t.Errorf("the notice was edited %d times: %q", len(edits), edits)
	}
	return edits[0]
}

// history is the causes of the calls that ended.
func (b *bed) history() []string {
	b.t.Helper()
	calls, err := b.process.bridge.store.History(b.t.Context(), 100)
	if err != nil {
		b.t.Fatal(err)
	}
	var causes []string
	for _, call := range calls {
		causes = append(causes, call.Cause)
	}
	return causes
}

func (b *bed) react(who *member.Member, target id.EventID, key string) {
	b.t.Helper()
	if _, err := who.Client().SendReaction(b.ctx(), b.room, target, key); err != nil {
		b.t.Fatal(err)
	}
}

func refusedWith(t *testing.T, call *phone.Call, code int) {
	t.Helper()
	var refused *phone.StatusError
	if err := call.Answered(); !errors.As(err, &refused) || refused.Code != code {
		t.Errorf("the phone got %v, want %d", err, code)
	}
}

func TestCallerHearsRingbackUntilTheFirstMemberJoins(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, false)
	call := b.begin(b.phone("+493012345678"), ringNumber)
	notice := b.awaitRing(1)
	if text := string(notice.Content); !strings.Contains(text, "+493•••••••78") || strings.Contains(text, "12345678") {
		t.Errorf("the notice says %s, want the masked number", text)
	}
	if n := b.activeCalls(); n != 1 {
		t.Fatalf("%d calls in the room, want the one that rings", n)
	}
	var heard []beat
	defer func() {
		if t.Failed() {
			t.Logf("while it rang the caller heard %v", heard)
		}
	}()
	b.await("425 Hz for 1 s, and a pause between two rings", func() bool { // not each is whole on a busy machine
		heard = cadence(call.Heard())
		return sounds(heard, 425, time.Second) && longest(heard, 0) >= time.Second
	})
	if got := call.Provisional(); !slices.Contains(got, 180) || !slices.Contains(got, 183) {
		t.Errorf("provisional answers %v, want 180 and 183", got)
	}
	if len(call.Answer()) == 0 || call.Ended() != "" {
		t.Error("no session before the answer")
	}
	joined := time.Now()
	if err := alice.JoinCall(b.ctx(), b.room); err != nil {
		t.Fatal(err)
	}
	if err := call.Answered(); err != nil {
		t.Fatal(err)
	}
	t.Logf("answered %v after alice had joined", time.Since(joined))
	if err := alice.AwaitConnected(b.ctx(), b.ghosts()...); err != nil {
		t.Fatal(err)
	}
	if got := b.outcome(notice.ID); !strings.Contains(got, "answered") {
		t.Errorf("the notice says %q at last", got)
	}
	before := len(call.Heard())
	alice.Says(listen.Sine(48000, 1400, -20, time.Second))
	b.await("the caller to hear alice", func() bool { return longest(cadence(call.Heard()[before:]), 1400) >= 500*time.Millisecond })
	if after := cadence(call.Heard()[before:]); longest(after, 425) > 0 {
		t.Errorf("after the answer the caller heard %v, want no ringback", after)
	}
	if n := call.Streams(); n != 1 {
		t.Errorf("the phone got %d RTP streams, want one from ringback to talk", n)
	}
}

// A caller may move its sound to another machine and codec while it hears ours before the answer (RFC 3311).
func TestCallerHearsRingbackWhereverItGoes(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, false)
	call, err := b.phone("+493012345678").Begin(b.ctx(), b.sip, phone.Invite{Number: ringNumber, Headers: map[string]string{"Supported": "100rel"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.hangUp(call) })
	b.awaitRing(1)
	rings := func() bool { return longest(cadence(call.Heard()), 425) >= 300*time.Millisecond }
	b.await("the caller to hear it ring", rings)
	was := call.Codec()
	if err := call.MoveSound(b.ctx(), map[string]string{"PCMU": "PCMA", "PCMA": "PCMU"}[was]); err != nil {
		t.Fatal(err)
	}
	if got := call.Codec(); got == was {
		t.Errorf("the sound goes on in %s, want the other codec", got)
	}
	b.await("the other machine to hear it ring", rings)
	if err := alice.JoinCall(b.ctx(), b.room); err != nil {
		t.Fatal(err)
	}
	if err := call.Answered(); err != nil {
		t.Fatal(err)
	}
	if err := alice.AwaitConnected(b.ctx(), b.ghosts()...); err != nil {
		t.Fatal(err)
	}
	before := len(call.Heard())
	alice.Says(listen.Sine(48000, 1400, -20, time.Second))
	b.await("the other machine to hear alice", func() bool { return longest(cadence(call.Heard()[before:]), 1400) >= 500*time.Millisecond })
	if n := call.Streams(); n != 1 {
		t.Errorf("the other machine got %d RTP streams, want one from ringback to talk", n)
	}
}

func TestRoomIsToldWhoForwardedTheCall(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, false)
	diverted := map[string]string{"Diversion": "<sip:+493022222222@pbx>;reason=no-answer, <sip:+493011111111@pbx>;reason=unconditional"}
	call, err := b.phone("+493012345678").Begin(b.ctx(), b.sip, phone.Invite{Number: ringNumber, Headers: diverted})
	if err != nil {
		t.Fatal(err)
	}
	notice := b.awaitRing(1)
	const who = "Call from +493•••••••78, forwarded by +493•••••••22: "
	if !strings.Contains(string(notice.Content), who+"join the call") {
		t.Errorf("the notice says %s, want %q", notice.Content, who)
	}
	b.react(alice, notice.ID, "❌")
	refusedWith(t, call, 603)
	if got := b.outcome(notice.ID); !strings.HasPrefix(got, who+"declined by ") {
		t.Errorf("the notice says %q at last", got)
	}
	lobby, err := b.phone("+493012345678").Begin(b.ctx(), b.sip, phone.Invite{Number: lobbyNumber, Headers: diverted})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.hangUp(lobby) })
	const waits = "+493012345678, forwarded by +493022222222 wait"
	notice = b.awaitLobby(1)
	if !strings.Contains(string(notice.Content), waits+"s in the lobby") {
		t.Errorf("the lobby's notice says %s", notice.Content)
	}
	b.react(alice, notice.ID, "❌")
	if got := b.outcome(notice.ID); !strings.HasPrefix(got, waits+"ed in the lobby: sent away by ") {
		t.Errorf("the lobby's notice says %q at last", got)
	}
}

func TestRoomIsToldWhyTheCallerGaveUp(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	p := b.phone("+493012345678")
	for i, c := range []struct{ reason, told string }{
		{"", "missed, the caller hung up."},
		{"SIP;cause=487;text=\"Request terminated\"", "missed, the caller hung up."},
		{"SIP;cause=200;text=\"Call completed elsewhere\"", "answered elsewhere."},
		{"SIP;cause=200;text=\"Call completed elsewhere\", Q.850;cause=16", "answered elsewhere."},
		{"SIP;cause=603;text=\"Declined\"", "declined elsewhere."},
		{"Q.850;cause=17", "missed, another phone was busy."},
		{"Q.850;cause=41", "failed, telephone network failed."},
	} {
		ctx, giveUp := context.WithCancel(b.ctx())
		call, err := p.Begin(ctx, b.sip, phone.Invite{Number: ringNumber, GivesUp: c.reason})
		if err != nil {
			t.Fatal(err)
		}
		notice := b.awaitRing(i + 1)
		b.awaitAlert(call)
		giveUp()
		refusedWith(t, call, 487)
		if got := b.outcome(notice.ID); !strings.HasSuffix(got, ": "+c.told) {
			t.Errorf("Reason %q: the notice says %q, want %q", c.reason, got, c.told)
		}
		b.await("the call to be cleared up", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
	}
}

// A PBX that dies closes its connections, and sends no CANCEL.
func TestRoomRingsNoLongerForACallerThatIsGone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	p := phoneOver(t, "tcp")
	b.begin(p, ringNumber)
	notice := b.awaitRing(1)
	_ = p.Close()
	if got := b.outcome(notice.ID); !strings.HasSuffix(got, ": failed, telephone network failed.") {
		t.Errorf("the notice says %q", got)
	}
	b.await("the call to be cleared up", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
}

func TestNobodyAnswersAndTheCallerIsToldByBusyTone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.stop()
	b.cfg.Calls.RingTimeout, b.cfg.Calls.RefusalTone = new(1200*time.Millisecond), new(4*time.Second) // the room is looked at meanwhile
	b.start()
	call := b.begin(b.phone("1"), ringNumber)
	notice := b.awaitRing(1)
	b.await("the call to be terminated", func() bool { return b.activeCalls() == 0 && len(b.ghosts()) == 0 })
	if call.Ended() != "" {
		t.Error("the phone was refused before the tone")
	}
	refusedWith(t, call, 480)
	if heard := cadence(call.Heard()); !sounds(heard, 425, 500*time.Millisecond) {
		t.Errorf("the caller heard %v, want busy tone of 0.5 s beats", heard)
	}
	if got := b.outcome(notice.ID); !strings.Contains(got, "nobody answered") {
		t.Errorf("the notice says %q", got)
	}
	b.await("rows to go", func() bool { return b.rows() == 0 })
	if got := b.history(); !slices.Equal(got, []string{"nobody answered"}) {
		t.Errorf("history: %q", got)
	}
}

func TestMembersDeclineByReactionAndCommand(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.Hydrogen, false)
	for i, decline := range []func(notice id.EventID){
		func(notice id.EventID) { b.react(alice, notice, "❌") },
		func(id.EventID) { // on the call itself
			for _, ev := range slices.Backward(b.hs.Timeline(b.room)) {
				if ev.Type == "org.matrix.msc3401.call" {
					b.react(alice, ev.ID, "👎\ufe0f")
					return
				}
			}
			t.Error("no call in the room")
		},
		func(id.EventID) {
			if _, err := alice.Client().SendText(b.ctx(), b.room, " !SIP  decline"); err != nil {
				t.Error(err)
			}
		},
	} {
		number, early := ringNumber, true
		if i == 2 {
			number, early = plainNumber, false
		}
		call := b.begin(b.phone("1"), number)
		notice := b.awaitRing(i + 1)
		b.react(alice, notice.ID, "👍")
		decline(notice.ID)
		refusedWith(t, call, 603)
		if got := b.outcome(notice.ID); !strings.Contains(got, "declined by @alice") {
			t.Errorf("the notice says %q", got)
		}
		if _, packets := call.Packets(); (packets > 0) != early {
			t.Errorf("number %s: %d packets before the refusal", number, packets)
		}
		if has183 := slices.Contains(call.Provisional(), 183); has183 != early {
			t.Errorf("number %s: provisional answers %v", number, call.Provisional())
		}
		b.await("the leg to go", func() bool { return b.activeCalls() == 0 && b.rows() == 0 })
	}
	if got, want := b.history(), slices.Repeat([]string{"declined in the room"}, 3); !slices.Equal(got, want) {
		t.Errorf("history: %q", got)
	}
}

func TestWhoMayNotTakePartMayNotDecline(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice, mallory := b.person("alice", member.Hydrogen, false), b.person("mallory", member.Hydrogen, false)
	var levels map[string]any
	if err := json.Unmarshal(b.hs.State(b.room, "m.room.power_levels", ""), &levels); err != nil {
		t.Fatal(err)
	}
	set := func(group, key string, level int) {
		m, _ := levels[group].(map[string]any)
		if m == nil {
			m = map[string]any{}
		}
		m[key] = level
		levels[group] = m
	}
	set("users", string(mallory.UserID()), -1)
	set("events", event.EventReaction.Type, -1)
	owner := b.hs.User("owner")
	b.hs.SetState(b.room, owner.UserID, "m.room.power_levels", "", levels)

	call := b.begin(b.phone("1"), ringNumber)
	notice := b.awaitRing(1)
	for range 3 * maxAsked {
		b.react(mallory, notice.ID, "❌")
	}
	time.Sleep(time.Second)
	if call.Ended() != "" {
		t.Fatal("the call was declined by somebody who may not be in it")
	}
	b.await("the rightful one to be heard", func() bool {
		b.react(alice, notice.ID, "❌")
		time.Sleep(100 * time.Millisecond)
		return b.activeCalls() == 0
	})
	refusedWith(t, call, 603)
	if got := b.outcome(notice.ID); !strings.Contains(got, "declined by @alice") {
		t.Errorf("the notice says %q", got)
	}
}

func TestPhonesThatRingAreNoCompanyForEachOther(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.Hydrogen, false)
	first, second := b.begin(b.phone("1"), plainNumber), b.begin(b.phone("2"), plainNumber)
	b.awaitRing(2)
	time.Sleep(300 * time.Millisecond)
	if n := b.activeCalls(); n != 1 {
		t.Errorf("%d calls in the room, want one for both phones", n)
	}
	for _, call := range []*phone.Call{first, second} {
		if call.Answer() != "" {
			t.Error("a phone was answered although only another one rings")
		}
	}
	if err := alice.JoinCall(b.ctx(), b.room); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.Answered(), second.Answered()); err != nil {
		t.Error(err)
	}
}

func TestAPhoneBesideAnAnsweredOneIsAnsweredAtOnce(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.dial(b.phone("1"), goodNumber) // a conference: it waits in the call
	b.dial(b.phone("2"), ringNumber)
	for _, ev := range b.hs.Timeline(b.room) {
		if ev.Sender == b.bot() && strings.Contains(string(ev.Content), "!sip decline") {
			t.Errorf("the room was rung: %s", ev.Content)
		}
	}
}

func TestCallerWhoGivesUpLeavesNothing(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	p := b.phone("1")
	ctx, giveUp := contextOf(t)
	call, err := p.Begin(ctx, b.sip, phone.Invite{Number: ringNumber})
	if err != nil {
		t.Fatal(err)
	}
	notice := b.awaitRing(1)
	b.awaitAlert(call)
	giveUp()
	refusedWith(t, call, 487)
	if got := b.outcome(notice.ID); !strings.Contains(got, "hung up") {
		t.Errorf("the notice says %q", got)
	}
	b.await("everything to go", func() bool { return b.rows() == 0 && b.activeCalls() == 0 && len(b.ghosts()) == 0 })
}

func TestRoomIsToldThatTheBridgeWasStoppedWhileAPhoneRang(t *testing.T) {
	t.Parallel()
	b := makeBed(t)
	b.cfg.Calls.OnStop = config.StopEnds
	b.start()
	t.Cleanup(b.stop)
	call := b.begin(b.phone("1"), ringNumber)
	notice := b.awaitRing(1)
	b.stop()
	refusedWith(t, call, 503)
	if got := b.outcome(notice.ID); !strings.HasSuffix(got, ": missed, the bridge was restarted.") {
		t.Errorf("the notice says %q", got)
	}
}

func TestMissingRightsAreHeardBeforeTheRefusal(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for repeats := 0; ; repeats++ {
		heldUp := b.heldUp()
		call := b.begin(b.phone("1"), otherNumber)
		refusedWith(t, call, 403)
		heard, late := cadence(call.Heard()), heldUp()
		missing := slices.DeleteFunc([]float64{950, 1400, 1800}, func(hz float64) bool { return sounds(heard, hz, 330*time.Millisecond) })
		if len(missing) == 0 {
			return
		}
		if late < tolerable || repeats == mostRepeats {
			t.Errorf("the caller heard %v, want the information tone, with %v Hz; this process was held up for %v, after %d repeats", heard, missing, late, repeats)
			return
		}
		t.Logf("again, since this process was held up for %v: the caller heard %v", late, heard)
	}
}
