package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	gosip "github.com/emiago/sipgo/sip"
	"golang.org/x/time/rate"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/bridge/command"
	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/bridge/number"
	"trunkline/db"
	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
	"trunkline/matrixcall"
)

const (
	berlin   = "+493012345678" // a number of no expensive kind, which nobody has
	berlinAs = "03012345678"   // as the trunk is asked for it
)

// dialBed is a bed whose trunk leads to one phone, and whose alice may call it.
func dialBed(t *testing.T, edit func(*config.Config)) (*bed, *phone.Phone) {
	t.Helper()
	b := makeBed(t)
	p := b.phone(berlin)
	trunk := &b.cfg.SIP.Trunks[0]
	trunk.Proxy, trunk.Number = p.Addr().String(), "+4930999"
	trunk.Extensions = []string{"1xxx"}
	trunk.Numbers = number.Rules{Out: []number.Rule{{Prefix: "+49", Replace: "0"}}}
	b.cfg.Dialling.Country = "DE"
	b.cfg.Dialling.RingTimeout = 30 * time.Second
	b.cfg.Permissions = command.Permissions{
		"@alice:" + b.hs.Domain(): command.LevelCall, "@bob:" + b.hs.Domain(): command.LevelView,
	}
	if edit != nil {
		edit(&b.cfg)
	}
	b.start()
	t.Cleanup(b.stop)
	b.awaitBot()
	return b, p
}

// awaitBot waits until the bot is in the room: it joins when it hears of its invitation, which may be after the bridge is ready. A
// process that is stopped before has taken the invitation, and the next one hears nothing of it.
func (b *bed) awaitBot() {
	b.t.Helper()
	b.await("the bot to be in the room", func() bool { return b.membership(b.bot()) == "join" })
}

// says lets a member write into the room, once the bot is there to read it.
func (b *bed) says(who *member.Member, text string) {
	b.t.Helper()
	b.awaitBot()
	if _, err := who.Client().SendText(b.ctx(), b.room, text); err != nil {
		b.t.Fatal(err)
	}
}

// board is the bot's notices in the order they were posted, and how they read now.
func (b *bed) board() (order []id.EventID, texts map[id.EventID]string) {
	texts = map[id.EventID]string{}
	for _, ev := range b.hs.Timeline(b.room) {
		var content struct {
			Body    string                `json:"body"`
			New     struct{ Body string } `json:"m.new_content"`
			Relates struct {
				EventID id.EventID `json:"event_id"`
			} `json:"m.relates_to"`
		}
		if ev.Type != event.EventMessage.Type || ev.Sender != b.bot() || json.Unmarshal(ev.Content, &content) != nil {
			continue
		}
		if content.New.Body != "" {
			texts[content.Relates.EventID] = content.New.Body
			continue
		}
		order = append(order, ev.ID)
		texts[ev.ID] = content.Body
	}
	return order, texts
}

// boards are the texts of these notices.
func (b *bed) boards() []string {
	order, texts := b.board()
	list := make([]string, 0, len(order))
	for _, ev := range order {
		list = append(list, texts[ev])
	}
	return list
}

// told waits until some notice of the bot reads so.
func (b *bed) told(part string) {
	b.t.Helper()
	defer func() {
		if b.t.Failed() {
			b.t.Logf("the bot's notices: %q", b.boards())
		}
	}()
	b.await(fmt.Sprintf("the room to be told %q", part), func() bool {
		return slices.ContainsFunc(b.boards(), func(text string) bool { return strings.Contains(text, part) })
	})
}

// membership is a user's in the room, by its state.
func (b *bed) membership(user id.UserID) string {
	var content struct {
		Membership string `json:"membership"`
	}
	if json.Unmarshal(b.hs.State(b.room, event.StateMember.Type, string(user)), &content) != nil {
		return ""
	}
	return content.Membership
}

// called waits until the bridge calls the phone.
func (b *bed) called(p *phone.Phone) *phone.Call {
	b.t.Helper()
	call, err := p.AwaitCall(b.ctx())
	if err != nil {
		b.t.Fatalf("%v; the bot's notices: %q", err, b.boards())
	}
	b.t.Cleanup(call.Forget)
	return call
}

// clear waits until nothing of the call is left.
func (b *bed) clear() {
	b.t.Helper()
	b.await("rows and ghosts to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
}

// Not parallel: it judges sound made in real time.
func TestRoomCallsAPhoneAndBothHearEachOther(t *testing.T) {
	for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			b, p := dialBed(t, nil)
			alice := b.person("alice", kind, true)
			b.says(alice, "!sip call +49 30 12345678")
			call := b.called(p)
			if got := call.Invite().Recipient.User; got != berlinAs {
				t.Errorf("the trunk is asked for %s, want %s", got, berlinAs)
			}
			if got := call.Invite().From().Address.User; got != "+4930999" {
				t.Errorf("the call is from %s, want the trunk's number", got)
			}
			b.told("Calling +493•••••••78 …")
			if err := call.Ring(); err != nil {
				t.Fatal(err)
			}
			b.told("+493•••••••78 rings.")
			if err := call.PickUp(b.ctx()); err != nil {
				t.Fatal(err)
			}
			b.told("+493•••••••78 has answered.")
			b.converse(alice, call)
			b.endsCleanly(alice, call)
			b.told("the phone hung up.")
			if n := len(b.boards()); n != 1 {
				t.Errorf("the bot has posted %d notices, want one that is edited: %q", n, b.boards())
			}
			for _, text := range b.notices(string(b.room)) {
				if strings.Contains(text, "12345678") {
					t.Errorf("the number is not masked: %s", text)
				}
			}
		})
	}
}

// Not parallel: it judges sound made in real time.
func TestRoomHearsTheLineBeforeTheAnswer(t *testing.T) {
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.Progress(); err != nil {
		t.Fatal(err)
	}
	b.told("the line can be heard")
	ghosts := b.ghosts()
	if err := alice.AwaitConnected(b.ctx(), ghosts...); err != nil {
		t.Fatal(err)
	}
	call.Play(sine(phoneHz, 8000, longTone))
	b.await("alice to hear the announcement", func() bool { return loud(alice.Heard(ghosts[0]).PCM, phoneHz, 48000) })
	if err := call.Refuse(404, "Not Found", "Reason: Q.850;cause=1"); err != nil {
		t.Fatal(err)
	}
	b.told("Call to 1001: the number is not in use; check it.")
	b.clear()
}

// Carriers make the ringback in one machine and announcements in another; UPDATE says which (RFC 3311). Not parallel: it judges sound made
// in real time.
func TestRoomHearsTheMachineThatMakesTheRingback(t *testing.T) {
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.ProgressReliably(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("the line can be heard")
	ghosts := b.ghosts()
	if err := alice.AwaitConnected(b.ctx(), ghosts...); err != nil {
		t.Fatal(err)
	}
	hears := func(hz float64) func() bool {
		return func() bool { return loud(alice.Heard(ghosts[0]).PCM, hz, 48000) }
	}
	call.Play(sine(phoneHz, 8000, longTone))
	b.await("alice to hear the ringback", hears(phoneHz))
	was := call.Codec()
	other := map[string]string{"PCMU": "PCMA", "PCMA": "PCMU"}[was]
	if err := call.MoveSound(b.ctx(), other); err != nil {
		t.Fatal(err)
	}
	call.Play(sine(2*phoneHz, 8000, longTone))
	b.await("alice to hear the announcement of another machine", hears(2*phoneHz))
	b.await("the other machine to hear the room", func() bool { _, received := call.Packets(); return received > 10 })
	if got := call.Codec(); other == "" || got != other {
		t.Errorf("the announcement comes in %q, want %q after %q", got, other, was)
	}
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("1001 has answered.")
	b.await("alice to hear the phone", hears(2*phoneHz))
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
}

func TestPhoneIsShownWhatTheTrunkSays(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edit                func(*config.Trunk)
		from, asserts, said string
	}{
		"name":        {func(t *config.Trunk) { t.DisplayName = "Café \u00a7 Ltd" }, `"Café § Ltd" <sip:+4930999@`, "", ""},
		"long name":   {func(t *config.Trunk) { t.DisplayName = strings.Repeat("Ж", 80) }, `"` + strings.Repeat("Ж", 80) + `" <`, "", ""}, // the longest that config takes
		"hidden":      {func(t *config.Trunk) { t.HideNumber = true }, `"Anonymous" <sip:anonymous@anonymous.invalid>`, "", "id"},
		"only to pai": {func(t *config.Trunk) { t.HideNumber, t.CallerID = true, "pai" }, `"Anonymous" <sip:anonymous@`, "<sip:+4930999@", "id"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, p := dialBed(t, func(cfg *config.Config) { c.edit(&cfg.SIP.Trunks[0]) })
			alice := b.person("alice", member.JSSDK, true)
			b.says(alice, "!sip call 1001")
			call := b.called(p)
			for header, want := range map[string]string{"From": c.from, "P-Asserted-Identity": c.asserts, "Privacy": c.said} {
				got := ""
				if h := call.Invite().GetHeader(header); h != nil {
					got = h.Value()
				}
				if !strings.HasPrefix(got, want) || want == "" && got != "" {
					t.Errorf("%s: %s, want %q", header, got, want)
				}
			}
			if err := call.Refuse(486, "Busy Here"); err != nil {
				t.Fatal(err)
			}
			b.clear()
		})
	}
}

func TestNextTrunkIsTakenWhenTheBestOneIsFull(t *testing.T) {
	t.Parallel()
	b, best, spare := spareBed(t, func(c *config.Config) { c.SIP.Trunks[0].MaxCalls = 1 })
	alice := b.person("alice", member.JSSDK, true)
	var calls []*phone.Call
	for i, p := range []*phone.Phone{best, spare} {
		b.says(alice, fmt.Sprintf("!sip call +49 30 1234567%d", i))
		calls = append(calls, b.called(p))
	}
	for i, want := range []string{"03012345670", "+493012345671"} { // each trunk writes numbers in its own way
		if got := calls[i].Invite().Recipient.User; got != want {
			t.Errorf("call %d asks for %s, want %s", i, got, want)
		}
	}
	b.says(alice, "!sip hangup all")
	for _, call := range calls {
		<-call.Done()
	}
	b.clear()
}

func TestRoomIsToldWhyAPhoneIsNotToBeHad(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.Hydrogen, true)
	for _, c := range []struct {
		code   int
		header []string
		told   string
	}{
		{486, nil, "busy"},
		{603, nil, "declined"},
		{480, []string{"Reason: Q.850;cause=19"}, "no answer"},
		{404, nil, "the number is not in use"},
		{503, []string{"Reason: Q.850;cause=34"}, "the telephone network is busy"},
	} {
		b.says(alice, fmt.Sprintf("!sip call 1%d", c.code))
		call := b.called(p)
		if err := call.Refuse(c.code, "Refused", c.header...); err != nil {
			t.Fatal(err)
		}
		b.told(fmt.Sprintf("Call to 1%d: %s", c.code, c.told))
		b.clear()
	}
	want := []string{"telephone network busy", "number not in use", "phone not answered", "phone declined", "phone busy"}
	if got := b.history(); !slices.Equal(got, want) {
		t.Errorf("history %q, want %q", got, want)
	}
	for _, code := range []int{404, 480, 486, 503, 603} {
		b.shows(fmt.Sprintf(`trunkline_sip_dial_refused_total{code="%d"} 1`, code))
	}
}

func TestRoomIsToldWhyThePhoneIsGone(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	for i, c := range []struct{ reason, told string }{
		{"Q.850;cause=16;text=\"Normal call clearing\"", "the phone hung up."},
		{"Q.850;cause=38", "the telephone network failed; try again later."},
		{"SIP;cause=200;text=\"Call completed elsewhere\"", "another phone has the call."},
	} {
		b.says(alice, fmt.Sprintf("!sip call 100%d", i))
		call := b.called(p)
		if err := call.PickUp(b.ctx()); err != nil {
			t.Fatal(err)
		}
		b.told(fmt.Sprintf("100%d has answered.", i))
		bye := call.Request("BYE")
		bye.AppendHeader(gosip.NewHeader("Reason", c.reason))
		if res, err := call.Do(b.ctx(), bye); err != nil || res.StatusCode != 200 {
			t.Fatalf("BYE: %v, %v", res, err)
		}
		call.Forget()
		b.await("the room to be told "+c.told, func() bool {
			return slices.ContainsFunc(b.boards(), func(text string) bool {
				return strings.HasPrefix(text, fmt.Sprintf("Call to 100%d: over after", i)) && strings.HasSuffix(text, c.told)
			})
		})
		b.clear()
	}
	if got, want := b.history(), []string{"answered elsewhere", "telephone network failed", "phone hung up"}; !slices.Equal(got, want) {
		t.Errorf("history %q, want %q", got, want)
	}
}

func TestRoomHangsUpWhileThePhoneRings(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.Ring(); err != nil {
		t.Fatal(err)
	}
	b.told("1001 rings.")
	b.says(alice, "!sip hangup")
	<-call.Done()
	if why := call.Ended(); !strings.Contains(why, "cancelled") {
		t.Errorf("the phone was ended by %q, want CANCEL", why)
	}
	b.told("Call to 1001: hung up in the room.")
	b.clear()
}

func TestNobodyAnswersAndThePhoneIsCancelled(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, func(c *config.Config) { c.Dialling.RingTimeout = 2 * time.Second })
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.Ring(); err != nil {
		t.Fatal(err)
	}
	<-call.Done()
	b.told("Call to 1001: no answer.")
	b.clear()
}

func TestRoomHangsUpATalkAndPressesKeysAndMutes(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("1001 has answered.")
	ghost := b.ghosts()[0]
	if err := alice.AwaitConnected(b.ctx(), ghost); err != nil {
		t.Fatal(err)
	}
	b.says(alice, "!sip who")
	b.told("1. 1001 talks for 0:")
	b.says(alice, "!sip dtmf 42,#")
	b.await("the keys to arrive", func() bool { return call.Keys() == "42#" })
	for _, muted := range []bool{true, false} {
		b.says(alice, map[bool]string{true: "!sip mute", false: "!sip unmute"}[muted])
		err := alice.Await(b.ctx(), "the ghost to be muted or not", func(v member.View) bool {
			return slices.ContainsFunc(v.Peers, func(peer member.PeerView) bool { return peer.User == ghost && peer.Muted == muted })
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	b.says(alice, "!sip hangup 1")
	<-call.Done()
	if why := call.Ended(); !strings.Contains(why, "cause=16") {
		t.Errorf("the phone was hung up on with %q, want Q.850 16", why)
	}
	b.told("hung up in the room.")
	b.told("Phone 1 is hung up.")
	b.clear()
}

func TestOnlyWhoMayCallCalls(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, func(c *config.Config) {
		c.Dialling.Deny = []string{"+4989"}
		c.Dialling.Expensive = []string{"+4940"}
	})
	alice, bob, eve := b.person("alice", member.JSSDK, false), b.person("bob", member.JSSDK, false), b.person("eve", member.JSSDK, false)
	for _, c := range []struct {
		who  *member.Member
		says string
		told string
	}{
		{bob, "!sip call 1001", `You may not use "!sip call" here. Ask who runs this bridge.`},
		{bob, "!sip who", "There is no phone here."},
		{bob, "!sip help", "!sip who – lists the phones in this room and its lobby\n!sip admit – "},
		{eve, "!sip help", `You may not use "!sip help" here. Ask who runs this bridge.`},
		{alice, "!sip call 112", "Emergency numbers can't be called from here. Use a telephone."},
		{alice, "!sip call +49 89 1234567", "Numbers of this range may not be called."},
		{alice, "!sip call +33 1 70 18 99 00", "Numbers of this country or range may not be called from here."},
		{alice, "!sip call 12", "That is not a number that I can call. Write it with its country: +49 30 123456."},
		{alice, "!sip call sip:a@elsewhere.example", "SIP addresses of this domain may not be called."},
		{alice, "!sip call", "Which number?"},
		{alice, "!sip frobnicate", `I don't know that command. Write "!sip help" for a list.`},
		{alice, "!sip pin off", "No PIN leads into this room any more."},
		{alice, "!sip hangup", "There is no phone here."},
		{alice, "!sip confirm", `There is no call to confirm. Write "!sip call" and the number first.`},
	} {
		before := len(b.boards())
		b.says(c.who, c.says)
		b.await("an answer", func() bool { return len(b.boards()) > before })
		if got := b.boards()[before]; !strings.HasPrefix(got, c.told) {
			t.Errorf("%q is answered with %q, want %q", c.says, got, c.told)
		}
	}
	b.says(alice, "!sip call +49 40 1234567")
	b.told(`This number is expensive to call. Write "!sip confirm", or react to this with ✅, within a minute if you want to call it.`)
	b.says(bob, "!sip confirm")
	b.told(`You may not use "!sip confirm" here.`)
	if b.rows() != 0 || p.Rung() != 0 {
		t.Error("a call that was refused has a row, or rang")
	}
	for reason, n := range map[string]int{"not permitted": 2, "emergency number": 1, "in a denied range": 1, "not in an allowed range": 2} {
		b.shows(fmt.Sprintf("trunkline_orders_refused_total{reason=%q} %d", reason, n))
	}
	b.says(alice, "!sip confirm")
	call := b.called(p)
	if got := call.Invite().Recipient.User; got != "0401234567" {
		t.Errorf("the trunk is asked for %s", got)
	}
	if err := call.Refuse(486, "Busy Here"); err != nil {
		t.Fatal(err)
	}
	b.clear()
}

func TestExpensiveCallIsNotPendingWhereTheRoomMayNotBeAsked(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, func(c *config.Config) { c.Dialling.Expensive = []string{"+4940"} })
	alice := b.person("alice", member.JSSDK, true)
	b.mayRead(0)
	b.does(alice, "!sip call +49 40 1234567")
	b.does(alice, "!sip call +49 40 1234567")
	want := "This number is expensive to call. This room has had too many answers to be asked about that now. Try again in a minute."
	if got := b.boards(); !slices.Equal(got, []string{want}) {
		t.Errorf("the room was told %q, want %q once", got, want)
	}
	b.does(alice, "!sip confirm")
	if n := p.Rung(); n != 0 || b.rows() != 0 {
		t.Errorf("%d calls rang, %d rows", n, b.rows())
	}
}

func TestRoomMakesAPINForItself(t *testing.T) {
	t.Parallel()
	b, _ := dialBed(t, func(c *config.Config) {
		c.Routes = append(c.Routes, config.Route{Number: "900", Room: config.AnyRoom, Options: config.Options{PIN: config.PINDatabase}})
	})
	alice := b.person("alice", member.JSSDK, false)
	b.says(alice, "!sip pin")
	b.told(`No PIN leads into this room. Write "!sip pin new" to have one made.`)
	b.says(alice, "!sip pin new")
	b.told("Everybody who can read this can dial in; it is not shown again.")
	b.says(alice, "!sip pin")
	b.told("and enter the PIN. 1 lead here")
	boards := b.boards()
	_, made, _ := strings.Cut(boards[1], "and enter ")
	made, _, _ = strings.Cut(made, "#")
	room, err := b.process.bridge.pins.room(b.ctx(), config.PINDatabase, "", made)
	if err != nil || room != string(b.room) {
		t.Errorf("the PIN that was told (%d digits) leads to %q, %v", len(made), room, err)
	}
	b.says(alice, "!sip pin off")
	b.told("No PIN leads into this room any more.")
	if room, err := b.process.bridge.pins.room(b.ctx(), config.PINDatabase, "", made); err != nil || room != "" {
		t.Errorf("a PIN that was taken away leads to %q, %v", room, err)
	}
}

// madePIN reads the PIN in the bot's last notice.
func (b *bed) madePIN() string {
	b.t.Helper()
	boards := b.boards()
	_, made, found := strings.Cut(boards[len(boards)-1], "and enter ")
	made, _, whole := strings.Cut(made, "#")
	if !found || !whole {
		b.t.Fatalf("no PIN in %q", boards[len(boards)-1])
	}
	return made
}

// does lets the bridge hear what a member says, and waits until it has done what that is.
func (b *bed) does(who *member.Member, text string) {
	b.t.Helper()
	done := make(chan struct{})
	b.process.bridge.message(matrixcall.RoomMessage{Room: b.room, Sender: who.UserID(), Body: text})
	b.process.bridge.inTurn(b.room, func(context.Context) { close(done) })
	select {
	case <-done:
	case <-b.ctx().Done():
		b.t.Fatalf("waited %v for %q to be carried out", patience, text)
	}
}

// mayRead says how much more the room may be told in answer to commands.
func (b *bed) mayRead(replies int) {
	b.process.bridge.mu.Lock()
	defer b.process.bridge.mu.Unlock()
	b.process.bridge.orders.replies[b.room] = rate.NewLimiter(0, replies)
}

// leads tells whether a PIN leads to the room.
func (b *bed) leads(pin string) bool {
	b.t.Helper()
	room, err := b.process.bridge.pins.room(b.ctx(), config.PINDatabase, "", pin)
	if err != nil {
		b.t.Fatal(err)
	}
	return room == string(b.room)
}

func TestANewPINTakesThePlaceOfTheOldOneOnceItCanBeTold(t *testing.T) {
	t.Parallel()
	b, _ := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, false)
	byAdmin := b.pin()
	b.says(alice, "!sip pin new")
	b.told("it is not shown again.")
	first := b.madePIN()
	if b.leads(byAdmin) || !b.leads(first) {
		t.Error("the new PIN has not taken the place of the admin's")
	}
	b.mayRead(0)
	b.does(alice, "!sip pin new")
	b.does(alice, "!sip pin new")
	if n := len(b.boards()); n != 1 || !b.leads(first) {
		t.Errorf("a room that has read enough has been told %d PINs, want its first, which still leads to it (%t)", n, b.leads(first))
	}
	b.mayRead(1)
	b.does(alice, "!sip pin new")
	if n := len(b.boards()); n != 2 {
		t.Fatalf("the room has been told %d PINs, want its second", n)
	}
	if b.leads(first) || !b.leads(b.madePIN()) {
		t.Error("the second PIN has not taken the place of the first")
	}
	b.does(alice, "!sip pin off")
	if n, err := b.process.bridge.PINs(b.ctx(), b.room); n != 0 || err != nil {
		t.Errorf("%d PINs are left, %v", n, err)
	}
	if boards := b.boards(); len(boards) != 2 {
		t.Errorf("a room that has read enough is told %q", boards[2:])
	}
}

func TestPINsAreMadeHoweverARouteNamesTheRoom(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		edit func(*config.Config)
		want string
	}{
		"routes": {func(c *config.Config) {
			asked := config.Options{PIN: config.PINDatabase}
			c.Routes = []config.Route{
				{Number: "900", Room: "#meeting:" + c.Homeserver.Domain, Options: asked},
				{Number: "901", Room: "#meeting:" + c.Homeserver.Domain},
				{Number: "902", Room: "#nowhere:" + c.Homeserver.Domain, Options: asked},
				{Number: "903", Room: "!elsewhere", Options: asked},
			}
		}, "Dial 900 or 910 or 911 and enter "},
		"room names": {func(c *config.Config) {
			c.DialIn.RoomNames, c.Calls.PIN = true, config.PINDatabase
			c.Routes = []config.Route{{Number: "standup", Room: "!elsewhere"}}
		}, "Dial 910 or 911 or 912 or 913 or meeting and enter "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, _ := dialBed(t, c.edit)
			alice := b.person("alice", member.JSSDK, false)
			for _, alias := range []string{"meeting", "standup"} {
				if _, err := alice.Client().CreateAlias(b.ctx(), id.NewRoomAlias(alias, b.hs.Domain()), b.room); err != nil {
					t.Fatal(err)
				}
			}
			for _, r := range []db.Route{
				{Number: "900", Room: "!elsewhere", Options: `{"pin":"database"}`}, // the config's counts
				{Number: "910", Room: string(b.room), Options: `{"pin":"database"}`},
				{Number: "911", Room: "#standup:" + b.hs.Domain(), Options: `{"pin":"database"}`},
				{Number: "912", Room: string(b.room)},
				{Number: "913", Room: string(b.room), Options: `{"pin":7}`}, // makes no sense: the defaults hold
			} {
				if err := b.process.bridge.store.PutRoute(b.ctx(), r); err != nil {
					t.Fatal(err)
				}
			}
			asked := b.hs.Break(&homeserver.Fault{Method: "GET", Path: "/directory/room/", Drop: true})
			b.says(alice, "!sip pin new")
			b.told(c.want)
			if n := asked.Hits(); n != 0 {
				t.Errorf("the homeserver was asked %d times where its own aliases lead, although it has told the room's", n)
			}
		})
	}
}

// That nobody can say now where a route leads is not the same as that it leads elsewhere.
func TestAServerThatIsAwayDoesNotHideNumbersWithPINs(t *testing.T) {
	t.Parallel()
	asked := config.Options{PIN: config.PINDatabase}
	far := []config.Route{{Number: "920", Room: "#far:elsewhere.test", Options: asked}, {Number: "921", Room: "#far:elsewhere.test", Options: asked}}
	b, _ := dialBed(t, func(c *config.Config) { c.Routes = far })
	alice := b.person("alice", member.JSSDK, false)
	b.says(alice, "!sip pin")
	b.told("No telephone number asks for PINs of this room.")
	away := b.hs.Break(&homeserver.Fault{Path: "/directory/room/#far", Error: &homeserver.Error{Status: 500, Code: "M_UNKNOWN"}})
	b.says(alice, "!sip pin")
	b.told("That did not work")
	if n := away.Hits(); n != 1 {
		t.Errorf("the server was asked %d times where one alias leads", n)
	}
	near := db.Route{Number: "910", Room: string(b.room), Options: `{"pin":"database"}`}
	if err := b.process.bridge.store.PutRoute(b.ctx(), near); err != nil {
		t.Fatal(err)
	}
	b.says(alice, "!sip pin new")
	b.told("Dial 910 and enter ")
	away.Mend()
	if _, err := alice.Client().CreateAlias(b.ctx(), "#far:elsewhere.test", b.room); err != nil {
		t.Fatal(err)
	}
	b.says(alice, "!sip pin new")
	b.told("Dial 910 or 920 or 921 and enter ")
}

// shows looks for a line of the metrics.
func (b *bed) shows(line string) {
	b.t.Helper()
	if !b.counts(line) {
		b.t.Errorf("/metrics lacks %q", line)
	}
}

// counts tells whether /metrics has a line.
func (b *bed) counts(line string) bool {
	b.t.Helper()
	_, text := b.admin("GET", "/metrics", "")
	return strings.Contains(text, "\n"+line+"\n")
}

func TestQuotaIsCountedAndRefuses(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, func(c *config.Config) {
		c.Dialling.Limits.User = config.DialLimit{Calls: 2, AtOnce: 1}
	})
	alice := b.person("alice", member.JSSDK, true)
	for range 2 {
		b.says(alice, "!sip call 1001")
		call := b.called(p)
		if err := call.Ring(); err != nil {
			t.Fatal(err)
		}
		b.says(alice, "!sip call 1002")
		b.told("You have as many calls at once as allowed. Try again when one of them is over.")
		b.says(alice, "!sip hangup")
		<-call.Done()
		b.clear()
	}
	b.says(alice, "!sip call 1003")
	b.told("You have placed as many calls today as allowed. The count begins anew at midnight (00:00 UTC).")
	if b.rows() != 0 {
		t.Error("a call that was refused has a row")
	}
	b.shows(`trunkline_orders_refused_total{reason="user: too many calls at once"} 2`)
	b.shows(`trunkline_orders_refused_total{reason="user: too many calls today"} 1`)
}

func TestLongestCallIsEndedAndTold(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, func(c *config.Config) { c.Dialling.Limits.All.Longest = 3 * time.Second })
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	begun := time.Now() // the bridge counts from the answer, of which it hears before PickUp knows that
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	<-call.Done()
	if after := time.Since(begun); after < 3*time.Second {
		t.Errorf("hung up after %v, want 3 s", after)
	}
	b.told("it has lasted as long as a call may.")
	b.clear()
}

func TestEverybodyLeavesWhileThePhoneRings(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.Hydrogen, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.Ring(); err != nil {
		t.Fatal(err)
	}
	if err := alice.LeaveCall(b.ctx()); err != nil {
		t.Fatal(err)
	}
	<-call.Done()
	b.told("Call to 1001: everybody has left the room's call.")
	b.clear()
}

func TestInvitingTheGhostOfANumberCallsIt(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice, bob, eve := b.person("alice", member.JSSDK, true), b.person("bob", member.JSSDK, false), b.person("eve", member.JSSDK, false)
	ghost := id.NewUserID(b.cfg.AppService.GhostPrefix+berlin, b.hs.Domain())
	other := id.NewUserID(b.cfg.AppService.GhostPrefix+"+493099999999", b.hs.Domain())
	invite := func(who *member.Member, ghost id.UserID) {
		t.Helper()
		if _, err := who.Client().InviteUser(b.ctx(), b.room, &mautrix.ReqInviteUser{UserID: ghost}); err != nil {
			t.Fatal(err)
		}
	}
	invite(eve, other)
	invite(bob, ghost)
	b.told(`You may not use "!sip call" here.`)
	b.await("the invitation to be declined", func() bool { return b.membership(ghost) == "leave" })
	invite(alice, ghost)
	call := b.called(p)
	if got := call.Invite().Recipient.User; got != berlinAs {
		t.Errorf("the trunk is asked for %s, want %s", got, berlinAs)
	}
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	if ghosts := b.ghosts(); len(ghosts) != 1 || strings.Contains(string(ghosts[0]), "12345678") {
		t.Errorf("ghosts in the call: %v, want one that hides the number", ghosts)
	}
	b.await("the invited ghost to be gone", func() bool { return b.membership(ghost) == "leave" })
	if got := b.membership(other); got != "invite" {
		t.Errorf("a stranger's invitation was answered: the ghost's membership is %q", got)
	}
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
}

// A phone that is called back by its room is the same ghost as when it called.
func TestPhoneIsTheSameGhostInBothDirections(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, func(c *config.Config) { c.SIP.Trunks[0].Numbers.Country = "DE" })
	alice := b.person("alice", member.JSSDK, true)
	in := b.dial(b.phone(berlinAs), goodNumber)
	came := b.ghosts()
	if err := in.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
	b.says(alice, "!sip call "+berlin)
	call := b.called(p)
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	if called := b.ghosts(); len(called) != 1 || !slices.Equal(called, came) {
		t.Errorf("the caller was %v, and is %v when called", came, called)
	}
	b.says(alice, "!sip hangup")
	<-call.Done()
	b.clear()
}

func TestStopCancelsAPhoneThatRings(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.Ring(); err != nil {
		t.Fatal(err)
	}
	b.told("1001 rings.")
	b.stop()
	<-call.Done()
	b.told("Call to 1001: the bridge is being restarted; try again in a minute.")
	if ghosts := b.ghosts(); len(ghosts) != 0 {
		t.Errorf("ghosts in the call: %v", ghosts)
	}
}

func TestEveryEndHasWordsForTheRoom(t *testing.T) {
	for status := 300; status < 700; status++ {
		for q850 := range 128 {
			if cause := leg.WhyRefused(status, q850); overWords[cause] == "" {
				t.Fatalf("%d, Q.850 %d: no words for %q", status, q850, cause)
			}
		}
	}
	for _, cause := range []leg.Cause{
		leg.TrunkAway, leg.HungUp, leg.PhoneElsewhere, leg.SwitchedOff, leg.PhoneLeft, leg.PhoneLost, leg.RoomEmptied, leg.NobodyCame, leg.EndedInRoom, leg.RoomLost, leg.NoRights,
		leg.NoSuchRoom, leg.NoHomeserver, leg.NotStored, leg.TookTooLong, leg.LongestReached, leg.ShuttingDown, leg.ProcessDied, leg.Busy,
	} {
		if overWords[cause] == "" {
			t.Errorf("no words for %q", cause)
		}
	}
	if got, want := callOver("Anna", leg.PhoneLeft, 63*time.Minute+5*time.Second), "Call to Anna: over after 1:03:05, the phone hung up."; got != want {
		t.Errorf("callOver = %q, want %q", got, want)
	}
}
