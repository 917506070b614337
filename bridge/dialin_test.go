package bridge

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/bridge/menu"
	"trunkline/bridge/pin"
	"trunkline/bridge/sound"
	"trunkline/db"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
	"trunkline/transcode"
)

const (
	pinNumber   = "600" // one number for all rooms: the PIN picks
	ownNumber   = "601" // leads to the room of goodNumber, with a PIN
	nowhere     = "602" // with a PIN, leads to a room that does not exist
	lobbyNumber = "603" // leads to the room of goodNumber, which lets phones in
	tellNumber  = "604" // the room is told who comes, callers how many are there
)

func (b *bed) dialInRoutes() []config.Route {
	asked := config.Options{Intent: config.IntentPrompt, PIN: config.PINDatabase}
	return []config.Route{
		{Number: pinNumber, Room: config.AnyRoom, Options: asked},
		{Number: ownNumber, Room: string(b.room), Options: asked},
		{Number: nowhere, Room: "#nowhere:" + b.hs.Domain(), Options: asked},
		{Number: lobbyNumber, Room: string(b.room), Options: config.Options{Lobby: new(true), ShowNumbers: new(true)}},
		{Number: tellNumber, Room: string(b.room), Options: config.Options{Intent: config.IntentPrompt, Announce: new(true), SayPeople: new(true)}},
	}
}

// promptNames are what the tests listen for.
var promptNames = []string{
	"conf-getpin", "conf-invalidpin", "conf-onlyperson", "conf-onlyone", "conf-thereare", "conf-otherinparty", "conf-muted", "conf-unmuted",
	"conf-waitforleader", "vm-goodbye", "please-try-call-later", "hold", "digits/2",
}

// jingle is a sound that is not taken for another one: 24 notes, picked by its name.
func jingle(name string) []int16 {
	seed := fnv.New64a()
	seed.Write([]byte(name))
	dice := rand.New(rand.NewPCG(seed.Sum64(), 1))
	var pcm []int16
	for range 24 {
		hz := 300 + 2700*dice.Float64()
		for i := range sound.Rate / 20 {
			pcm = append(pcm, int16(3000*math.Sin(2*math.Pi*hz*float64(i)/sound.Rate)))
		}
	}
	return pcm
}

// writePrompts makes a folder of sounds.
func writePrompts(t *testing.T) string {
	t.Helper()
	top := t.TempDir()
	if err := os.MkdirAll(filepath.Join(top, "en", "digits"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range promptNames {
		file, err := os.Create(filepath.Join(top, "en", name+".wav"))
		if err == nil {
			err = sound.WriteWAV(file, jingle(name))
		}
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
	}
	return top
}

// hears waits for a prompt in what a phone has heard since from, and returns where it ends. Half of it will do: on a busy machine there
// may be a gap in it, and who is hung up on may miss the end.
func (b *bed) hears(call *phone.Call, name string, from int) (end int) {
	b.t.Helper()
	const (
		step = phone.Rate / 8 // that is looked through at a time: each look costs some milliseconds
		late = 3 * phone.Rate // how late sound may come to its place
	)
	source, looked := jingle(name), 0
	half := len(source) / 2
	b.await("the phone to hear "+name, func() bool {
		heard := call.Heard()
		if len(heard) < max(looked+step, from+len(source)) {
			return false
		}
		begin := max(from, looked-len(source)-late)
		looked = len(heard)
		for _, part := range []int{0, half} {
			at, like := listen.Find(heard[begin:], source[part:part+half])
			if end = begin + at + len(source) - part; like > 0.8 && end <= len(heard) {
				return true
			}
		}
		return false
	})
	return end
}

// heardSoFar is from where on the next process is heard. Its first packet is written down where its sound begins, which may be
// some milliseconds before it came.
func heardSoFar(call *phone.Call) int { return max(0, len(call.Heard())-400) }

func (b *bed) pin() string {
	b.t.Helper()
	made, err := b.process.bridge.MakePIN(b.ctx(), b.room, "")
	if err != nil {
		b.t.Fatal(err)
	}
	return made
}

// enters waits until the phone of the call is in the room's call with alice, both heard.
func (b *bed) enters(call *phone.Call, alice *member.Member) id.UserID {
	b.t.Helper()
	b.await("the ghost to be in the call", func() bool { return len(b.ghosts()) == 1 })
	ghost := b.ghosts()[0]
	if err := alice.AwaitConnected(b.ctx(), ghost); err != nil {
		b.t.Fatal(err)
	}
	alice.Says(sine(aliceHz, 48000, time.Second))
	call.Play(sine(phoneHz, 8000, 20*time.Second))
	b.await("both to hear each other", func() bool {
		return loud(call.Heard(), aliceHz, 8000) && loud(alice.Heard(ghost).PCM, phoneHz, 48000)
	})
	return ghost
}

func TestCallerEntersWithAPIN(t *testing.T) {
	t.Parallel()
	for _, number := range []string{pinNumber, ownNumber} {
		t.Run(number, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			alice := b.person("alice", member.JSSDK, true)
			pin := b.pin()
			call := b.dial(b.phone("+493012345678"), number)
			b.hears(call, "conf-getpin", 0)
			if ghosts := b.ghosts(); len(ghosts) > 0 {
				t.Errorf("in the call before the PIN: %v", ghosts)
			}
			call.Press(pin + "#")
			b.enters(call, alice)
			if n := call.Streams(); n != 1 {
				t.Errorf("the phone got %d RTP streams, want one from the prompt to the talk", n)
			}
			if err := call.Hangup(b.ctx()); err != nil {
				t.Fatal(err)
			}
			b.await("everything to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
			if keys := b.said.count("event=digit"); keys < len(pin) || b.said.count(pin) > 0 {
				t.Errorf("the log has %d keys of the PIN's %d, which they are must not be in it", keys, len(pin))
			}
		})
	}
}

func TestWrongPINsEndTheCall(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	call := b.dial(b.phone("+493012345678"), ownNumber)
	at := 0
	for range 3 {
		at = b.hears(call, "conf-getpin", at)
		call.Press("482916357#")
		at = b.hears(call, "conf-invalidpin", at)
	}
	b.hears(call, "vm-goodbye", at)
	b.await("the phone to be hung up on", func() bool { return call.Ended() != "" })
	b.await("the leg to go", func() bool { return b.rows() == 0 })
	if got := b.history(); !slices.Equal(got, []string{"wrong PIN too often"}) {
		t.Errorf("history %q", got)
	}
	for _, ev := range b.hs.Timeline(b.room) {
		if strings.HasPrefix(string(ev.Sender), "@"+b.cfg.AppService.GhostPrefix) {
			t.Errorf("the room has an event of the phone: %s", ev.Type)
		}
	}
}

// A crash gives nobody new tries, nor does another way of writing the same number.
func TestGuessesAreCountedOverARestart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.cfg.SIP.Trunks[0].Numbers.Country = "DE"
	once := func(made *Bridge) {
		one := pin.Rate{Burst: 1, Every: time.Hour}
		made.pins.budget = pin.NewBudget(pin.Rates{Number: one, Trunk: pin.Rate{Burst: 9, Every: time.Hour}, All: pin.Rate{Burst: 9, Every: time.Hour}})
	}
	b.stop()
	b.startWith(once)
	right := b.pin()
	guess := b.dial(b.phone("+493012345678"), pinNumber)
	b.hears(guess, "conf-getpin", 0)
	guess.Press("482915#")
	b.hears(guess, "conf-invalidpin", 0)
	b.hangUp(guess)
	b.clear()
	b.stop()
	b.startWith(once)
	thief := b.dial(b.phone("03012345678"), pinNumber)
	b.hears(thief, "conf-getpin", 0)
	thief.Press(right + "#")
	b.hears(thief, "conf-invalidpin", 0)
	honest := b.dial(b.phone("+493087654321"), pinNumber)
	b.hears(honest, "conf-getpin", 0)
	honest.Press(right + "#")
	b.await("another caller to come in", func() bool { return len(b.ghosts()) == 1 })
}

// Who hangs up at the last key has guessed all the same, for the next process, too.
func TestAGuessIsCountedThoughTheCallerHangsUp(t *testing.T) {
	t.Parallel()
	store, err := db.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "t.db"), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	p := newPINs(config.DialIn{}, store)
	left, hangUp := context.WithCancel(t.Context())
	a := &actor{bridge: &Bridge{store: store, pins: p, journal: db.NewJournal(store, "run", testLog(t))}, ctx: left, log: testLog(t)}
	try := p.budget.Take(time.Now(), "lab", "+493012345678")
	hangUp()
	a.keepAccount(func(ctx context.Context) error { return p.wrong(ctx, try) })
	names := p.budget.Names("lab", "+493012345678", "")
	if stored, err := store.PINBudget(t.Context(), names[:1]); len(stored) != 1 || err != nil {
		t.Errorf("stored of the number: %v, %v, want when it has its tries back", stored, err)
	}
}

// Who has entered a room's PIN is not shut out when strangers guess, nor by a restart.
func TestWhoKnowsAPINIsKnownOverARestart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	right := b.pin()
	anna := b.dial(b.phone("+493012345678"), pinNumber)
	b.hears(anna, "conf-getpin", 0)
	anna.Press(right + "#")
	b.await("anna to come in", func() bool { return len(b.ghosts()) == 1 })
	b.hangUp(anna)
	b.await("anna to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
	b.clear()
	b.stop()
	b.start()
	budget := b.process.bridge.pins.budget
	for i := range pin.DefaultRates().Trunk.Burst {
		if budget.Take(time.Now(), "lab", fmt.Sprint("thief", i)) == nil {
			t.Fatalf("guess %d is refused", i+1)
		}
	}
	stranger := b.dial(b.phone("+493087654321"), pinNumber)
	b.hears(stranger, "conf-getpin", 0)
	stranger.Press(right + "#")
	b.hears(stranger, "conf-invalidpin", 0)
	anna = b.dial(b.phone("+493012345678"), pinNumber)
	b.hears(anna, "conf-getpin", 0)
	anna.Press(right + "#")
	b.await("anna to come in again", func() bool { return len(b.ghosts()) == 1 })
}

// Nobody can tell a room that does not exist, or a PIN that leads elsewhere, from a wrong PIN.
func TestARoomThatDoesNotExistSoundsLikeAWrongPIN(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	call := b.dial(b.phone("+493012345678"), nowhere)
	at := b.hears(call, "conf-getpin", 0)
	call.Press(b.pin() + "#")
	b.hears(call, "conf-getpin", b.hears(call, "conf-invalidpin", at))
}

func TestWhoHasGuessedTooOftenIsNotLetInByTheRightPIN(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	pin, budget := b.pin(), b.process.bridge.pins.budget
	for budget.Take(time.Now(), "lab", "+493012345678") != nil {
	}
	call := b.dial(b.phone("+493012345678"), pinNumber)
	b.hears(call, "conf-getpin", 0)
	call.Press(pin + "#")
	b.hears(call, "conf-invalidpin", 0)
	other := b.dial(b.phone("+493087654321"), pinNumber)
	b.hears(other, "conf-getpin", 0)
	other.Press(pin + "#")
	b.await("another caller to come in", func() bool { return len(b.ghosts()) == 1 })
}

func TestPINEntryOutlivesAKilledProcess(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, true)
	pin := b.pin()
	b.stop()
	doomed := b.startDoomed()
	call := b.dial(b.phone("+493012345678"), pinNumber)
	b.hears(call, "conf-getpin", 0)
	call.Press(pin[:4])
	if err := call.Wait(b.ctx()); err != nil {
		t.Fatal(err)
	}
	kill(t, doomed)
	before := heardSoFar(call)
	b.start()
	b.hears(call, "conf-getpin", before)
	call.Press(pin + "#")
	b.enters(call, alice)
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.await("everything to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
}

// Some phones behind gateways have no other way than the tones themselves.
func TestKeysAreHeardInTheSound(t *testing.T) {
	t.Parallel()
	for _, lateOffer := range []bool{false, true} { // with one, how keys come is known from the ACK on
		t.Run(map[bool]string{false: "offered", true: "late offer"}[lateOffer], func(t *testing.T) {
			t.Parallel()
			keysInSound(t, lateOffer)
		})
	}
}

func keysInSound(t *testing.T, lateOffer bool) {
	b := newBed(t)
	b.stop()
	b.cfg.SIP.Trunks[0].DTMF = "inband"
	b.start()
	pin := b.pin()
	p, err := phone.Open(phone.Config{Local: netip.MustParseAddr("127.0.0.1"), User: "+493012345678", NoDTMF: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	call, err := p.DialWith(b.ctx(), b.sip, phone.Invite{Number: pinNumber, LateOffer: lateOffer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.hangUp(call) })
	asked := b.hears(call, "conf-getpin", 0)
	press := func(keys string) {
		t.Helper()
		for _, key := range keys {
			tone, ok := transcode.DTMF(key, 120*time.Millisecond)
			if !ok {
				t.Fatalf("%c is no key", key)
			}
			var player transcode.Player
			player.Play(tone)
			pcm := make([]int16, sound.Rate/4) // a quarter of a second, most of it a pause
			player.Read(pcm)
			call.Play(pcm)
		}
	}
	for wrong := 0; ; wrong++ { // keys are lost where the machine has no time for this process, see converse
		heldUp := b.heldUp()
		press(pin + "#")
		misheard := func() bool { return b.said.count(`msg="wrong PIN"`) > wrong }
		b.await("the phone to come in, or to be misheard", func() bool { return len(b.ghosts()) == 1 || misheard() })
		late := heldUp()
		if !misheard() {
			break
		}
		if late < tolerable || wrong == mostRepeats {
			t.Fatalf("the keys were misheard; this process was held up for %v, after %d repeats", late, wrong)
		}
		asked = b.hears(call, "conf-getpin", asked)
	}
	b.await("the leg to talk", func() bool { return b.onlyLeg().talksNow() })
	press("*6")
	at := b.hears(call, "conf-muted", 0)
	press("*6") // the room does not hear it now, the menu does
	b.hears(call, "conf-unmuted", at)
}

// talksNow asks the actor.
func (a *actor) talksNow() bool {
	answer := make(chan bool, 1)
	a.inbox.Put(func() { answer <- a.state.Phase == leg.Talking })
	return <-answer
}

func TestPromptsAreInTheLanguageOfTheRoute(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.stop()
	folder := filepath.Join(b.cfg.DialIn.Sounds[0], "it")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := sound.WriteWAV(&file, jingle("it/conf-getpin")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "conf-getpin.wav"), file.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range b.cfg.Routes {
		if b.cfg.Routes[i].Number == pinNumber {
			b.cfg.Routes[i].Language = "it"
		}
	}
	b.start()
	italian, english := b.dial(b.phone("1"), pinNumber), b.dial(b.phone("2"), ownNumber)
	b.hears(italian, "it/conf-getpin", 0)
	b.hears(english, "conf-getpin", 0)
}

// awaitLobby waits until the room has been told of so many phones in its lobby, and returns the last notice.
func (b *bed) awaitLobby(phones int) homeserver.Event {
	b.t.Helper()
	var notices []homeserver.Event
	b.await("the room to be told who waits", func() bool {
		notices = nil
		for _, ev := range b.hs.Timeline(b.room) {
			if ev.Type == event.EventMessage.Type && ev.Sender == b.bot() && strings.Contains(string(ev.Content), "!sip admit") {
				notices = append(notices, ev)
			}
		}
		return len(notices) == phones
	})
	return notices[phones-1]
}

func TestTheRoomLetsAPhoneIn(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, true)
	call := b.dial(b.phone("+493012345678"), lobbyNumber)
	notice := b.awaitLobby(1)
	if !strings.Contains(string(notice.Content), "+493012345678 waits") {
		t.Errorf("the notice says %s, want the whole number", notice.Content)
	}
	b.hears(call, "hold", b.hears(call, "conf-waitforleader", 0))
	if ghosts := b.ghosts(); len(ghosts) > 0 {
		t.Errorf("in the call before it was let in: %v", ghosts)
	}
	b.react(alice, notice.ID, "🎉")
	b.react(alice, notice.ID, "✅")
	b.enters(call, alice)
	if got := b.outcome(notice.ID); !strings.Contains(got, "let in by @alice") {
		t.Errorf("the notice says %q", got)
	}
}

func TestTheRoomSendsAPhoneAway(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, true)
	call := b.dial(b.phone("+493012345678"), lobbyNumber)
	notice := b.awaitLobby(1)
	if _, err := alice.Client().SendText(b.ctx(), b.room, "!sip decline"); err != nil {
		t.Fatal(err)
	}
	b.hears(call, "vm-goodbye", 0)
	b.await("the phone to be hung up on", func() bool { return call.Ended() != "" })
	if got := b.outcome(notice.ID); !strings.Contains(got, "sent away by @alice") {
		t.Errorf("the notice says %q", got)
	}
	b.await("the leg to go", func() bool { return b.rows() == 0 })
	b.await("its ghost to be free again", func() bool {
		bridge := b.process.bridge
		bridge.mu.Lock()
		defer bridge.mu.Unlock()
		return len(bridge.ghosts) == 0
	})
}

func TestTheLobbyOutlivesAKilledProcess(t *testing.T) {
	t.Parallel()
	b, doomed := doomedBed(t)
	alice := b.person("alice", member.JSSDK, true)
	call := b.dial(b.phone("+493012345678"), lobbyNumber)
	notice := b.awaitLobby(1)
	b.hears(call, "conf-waitforleader", 0)
	b.awaitStored("state", string(notice.ID))
	kill(t, doomed)
	before := heardSoFar(call)
	b.start()
	b.hears(call, "conf-waitforleader", before)
	b.react(alice, notice.ID, "👍")
	b.enters(call, alice)
	if got := b.outcome(notice.ID); !strings.Contains(got, "let in by @alice") {
		t.Errorf("the notice says %q", got)
	}
}

// mutedFor waits until a member's client knows whether the phone is muted.
func (b *bed) mutedFor(m *member.Member, ghost id.UserID, muted bool) {
	b.t.Helper()
	err := m.Await(b.ctx(), "the phone to be muted or not", func(v member.View) bool {
		return slices.ContainsFunc(v.Peers, func(p member.PeerView) bool { return p.User == ghost && p.Muted == muted })
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func TestKeysDuringTheCall(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.person("alice", member.JSSDK, true)
	call, ghost := b.talkWith(alice)
	call.Press("*6")
	at := b.hears(call, "conf-muted", 0)
	b.mutedFor(alice, ghost, true)
	v := b.seated(b.onlyLeg())
	b.await("the desk to know", func() (muted bool) {
		v.worker.do(func() { muted = v.phone.Stats().Muted })
		return muted
	})
	call.Press("*6")
	at = b.hears(call, "conf-unmuted", at)
	b.mutedFor(alice, ghost, false)
	call.Press("*4")
	at = b.hears(call, "conf-onlyone", at)
	call.Press("*5")
	b.await("the room to see the hand", func() bool {
		return strings.Contains(strings.Join(b.notices(string(b.room)), "\n"), "has raised their hand")
	})
	call.Press("*0")
	b.hears(call, "vm-goodbye", at)
	b.await("the phone to be hung up on", func() bool { return call.Ended() != "" })
	b.await("the leg to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
	if got := b.history(); !slices.Equal(got, []string{"left by key"}) {
		t.Errorf("history %q", got)
	}
}

func TestKeysAreThoseOfTheRoute(t *testing.T) {
	t.Parallel()
	b := makeBed(t)
	b.cfg.Routes[0].Keys = &config.Keys{"#": menu.LeaveCall}
	b.start()
	t.Cleanup(b.stop)
	call, _ := b.talkWith(b.person("alice", member.JSSDK, true))
	b.await("the leg to talk", func() bool { return b.onlyLeg().talksNow() })
	call.Press("*6#") // of these, *6 is of the routes that say nothing about keys
	b.hears(call, "vm-goodbye", 0)
	b.await("the phone to be hung up on", func() bool { return call.Ended() != "" })
	if _, like := listen.Find(call.Heard(), jingle("conf-muted")); like > 0.8 {
		t.Error("a key of other routes has muted the phone")
	}
	b.await("the leg to go", func() bool { return b.rows() == 0 })
	if got := b.history(); !slices.Equal(got, []string{"left by key"}) {
		t.Errorf("history %q", got)
	}
}

func TestAPhoneThatMutedItselfStaysMutedOverAKill(t *testing.T) {
	t.Parallel()
	b, doomed := doomedBed(t)
	w := b.talkers(member.JSSDK)
	w.call.Press("*6")
	b.hears(w.call, "conf-muted", 0)
	b.mutedFor(w.alice, w.ghost, true)
	kill(t, doomed)
	b.start()
	b.await("the phone to hear alice", w.phoneHears)
	b.await("the leg to talk", func() bool { return b.onlyLeg().silencedNow() })
	w.alice.Forget()
	time.Sleep(500 * time.Millisecond)
	if w.aliceHears() {
		t.Error("after the restart alice hears a phone that had muted itself")
	}
}

// silencedNow asks the actor.
func (a *actor) silencedNow() bool {
	answer := make(chan bool, 1)
	a.inbox.Put(func() { answer <- a.silenced() && a.voice.Load() != nil })
	return <-answer
}

func TestTheRoomAndTheCallerAreTold(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	said := func(what string) func() bool {
		return func() bool { return strings.Contains(strings.Join(b.notices(string(b.room)), "\n"), what) }
	}
	call := b.dial(b.phone("+493012345678"), tellNumber)
	b.hears(call, "conf-onlyperson", 0)
	b.await("the room to be told", said("+493•••••••78 has joined the call by telephone."))
	second := b.dial(b.phone("+493087654321"), tellNumber)
	b.hears(second, "conf-onlyone", 0)
	third := b.dial(b.phone("+493011223344"), tellNumber)
	asks := 5 * sound.Rate
	b.await("the third to hear that there are two", func() bool {
		heard := third.Heard()
		if len(heard) > asks { // what stutters on a busy machine can't be told from others
			third.Press("*4")
			asks += 5 * sound.Rate
		}
		_, like := listen.Find(heard, jingle("digits/2"))
		return like > 0.8
	})
	if err := second.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.await("the room to be told", said("+493•••••••21 has left the call."))
}

func TestAdminsMakePINs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	ask := func(method, room string, want int) pinView {
		t.Helper()
		answer := httptest.NewRecorder()
		b.process.bridge.admin().ServeHTTP(answer, httptest.NewRequest(method, "/pins?room="+room, nil))
		if answer.Code != want {
			t.Fatalf("%s: %d %s, want %d", method, answer.Code, answer.Body, want)
		}
		var v pinView
		if want == http.StatusOK {
			if err := json.Unmarshal(answer.Body.Bytes(), &v); err != nil {
				t.Fatal(err)
			}
		}
		return v
	}
	room := string(b.room)
	ask(http.MethodPost, "meeting", http.StatusBadRequest)
	first, second := ask(http.MethodPost, room, http.StatusOK), ask(http.MethodPost, room, http.StatusOK)
	if len(first.PIN) != b.cfg.DialIn.PINDigits || first.PIN == second.PIN || second.PINs != 2 {
		t.Errorf("made %+v and %+v", first, second)
	}
	if first.Problem != "" || len(first.Numbers) == 0 {
		t.Errorf("a PIN of a room that numbers lead to: %+v", first)
	}
	if strange := ask(http.MethodPost, "!nobody:"+b.hs.Domain(), http.StatusOK); strange.Problem == "" {
		t.Errorf("a PIN of a room that nobody can dial: %+v", strange)
	}
	if v := ask(http.MethodGet, room, http.StatusOK); v.PIN != "" || v.PINs != 2 {
		t.Errorf("GET shows %+v", v)
	}
	if v := ask(http.MethodDelete, room, http.StatusOK); v.PINs != 0 {
		t.Errorf("after DELETE there are %+v", v)
	}
	if info, err := os.Stat(b.cfg.DialIn.PINKey); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info, err)
	}
}

func TestAPINOfTheConfigIsTaken(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.stop()
	made, option, err := NewPIN(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.cfg.Routes = []config.Route{{Number: ownNumber, Room: string(b.room), Options: config.Options{PIN: option}}}
	b.start()
	call := b.dial(b.phone("1"), ownNumber)
	b.hears(call, "conf-getpin", 0)
	call.Press(made + "#")
	b.await("the phone to come in", func() bool { return len(b.ghosts()) == 1 })
}

func TestWhoListsPhonesInTheLobby(t *testing.T) {
	t.Parallel()
	b, _ := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.dial(b.phone("+493012345678"), lobbyNumber)
	b.awaitLobby(1)
	b.says(alice, "!sip who")
	b.told("+493012345678 waits in the lobby")
	b.says(alice, "!sip hangup")
	b.told("There is no phone here.")
	b.says(alice, "!sip admit")
	b.await("the phone to come in", func() bool { return len(b.ghosts()) == 1 })
	b.await("the leg to talk", func() bool { return b.onlyLeg().talksNow() })
	b.says(alice, "!sip who")
	b.told("1. +493012345678 talks for 0:")
}
