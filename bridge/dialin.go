package bridge

import (
	"context"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"maunium.net/go/mautrix/id"

	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/bridge/menu"
)

// The menu is a machine of its own beside the leg's: it decides what the phone hears and what its keys do, from the answer to
// the end. Where a route asks for a PIN or has a lobby, the phone sits at a desk of its own until the menu lets it in.

// handEvery and handsAtOnce bound the notices that one phone causes by its keys.
const (
	handEvery   = 10 * time.Second
	handsAtOnce = 4
)

// dialin is what a leg must remember for its menu. Only the actor touches it.
type dialin struct {
	menu   menu.State
	hands  *rate.Limiter
	parked bool          // a ghost is reserved for the leg, and it is not in the room
	joined bool          // the room was told that the phone has joined
	spoken chan struct{} // closed when the last notice is in the room; nil = there was none
}

// asks says whether a route wants something before a phone may enter.
func asks(o config.Options) bool { return o.PIN != config.PINNone || *o.Lobby }

// menuRules are what a route with these options wants of the menu.
func menuRules(o config.Options) menu.Rules {
	r := menu.DefaultRules()
	r.PIN, r.Lobby, r.Announce, r.Keys = o.PIN != config.PINNone, *o.Lobby, *o.SayPeople, *o.Keys
	return r
}

// stepMenu lets the menu decide, as step does for the leg.
func (a *actor) stepMenu(ev menu.Event) {
	var effects []menu.Effect
	a.dialin.menu, effects = menu.Step(a.dialin.menu, time.Now(), ev)
	if ev.Kind != menu.Tick || len(effects) > 0 {
		a.log.Debug("menu step", "event", ev, "state", a.dialin.menu)
	}
	for _, e := range effects {
		a.performMenu(e)
	}
}

// key hands the menu a key of the phone. It only puts.
func (a *actor) key(key byte) {
	a.inbox.Put(func() { a.stepMenu(menu.Event{Kind: menu.Digit, Key: menu.Key(key)}) })
}

func (a *actor) performMenu(e menu.Effect) {
	switch e.Kind {
	case menu.Save:
		a.save()
	case menu.Play:
		a.say(e)
	case menu.StopPlaying:
		if v := a.voice.Load(); v != nil {
			v.StopSaying()
		}
	case menu.CheckPIN:
		a.checkPIN(e.PIN)
	case menu.AskAdmission:
		a.askAdmission()
	case menu.Enter:
		if a.state.Phase == leg.Asking { // else the phone is in the call already: it was not asked for anything
			a.tell(leg.Passed)
		}
	case menu.SetMute:
		a.mutePhone()
	case menu.RaiseHand:
		a.raiseHand(e.On)
	case menu.Leave:
		a.tellEvent(leg.Event{Kind: leg.Dismissed, Cause: dismissal(e.Cause)})
	}
}

// dismissal says in the leg's terms why the menu ends the call.
func dismissal(c menu.Cause) leg.Cause {
	switch c {
	case menu.WrongPIN:
		return leg.WrongPIN
	case menu.NoPIN:
		return leg.NoPIN
	case menu.CheckFailed:
		return leg.PINFailed
	case menu.RoomDeclined:
		return leg.Declined
	case menu.NotAdmitted:
		return leg.NotAdmitted
	}
	return leg.LeftByKey
}

// say lets the phone hear prompts, and the menu know when they are over.
func (a *actor) say(e menu.Effect) {
	over := func() { a.inbox.Put(func() { a.stepMenu(menu.Event{Kind: menu.Played, N: e.ID}) }) }
	v := a.voice.Load()
	if v == nil {
		over()
		return
	}
	v.Say(a.bridge.sounds.Prompt(a.options.Language, e.Sounds...), over)
}

// ask seats the phone at a desk of its own and lets the menu begin, or go on after a restart.
func (a *actor) ask() {
	if !a.sit(voiceOptions{Room: id.RoomID("asked " + a.id), ToPeers: nobody}) {
		return
	}
	if a.dialin.menu.Phase == menu.Idle {
		a.stepMenu(menu.Event{Kind: menu.Began})
		return
	}
	a.stepMenu(menu.Event{Kind: menu.Resumed})
	switch phase := a.dialin.menu.Phase; {
	case phase == menu.InCall: // the process before died between the right PIN and the room
		a.tell(leg.Passed)
	case phase == menu.Lobby && a.lobby.posted == nil: // or before it had told the room
		a.askAdmission()
	}
}

// enter takes the phone from there to the desk of its room.
func (a *actor) enter() {
	a.stopMedia()
	a.startMedia()
}

// menuFollows tells the menu what the leg's last step means for it.
func (a *actor) menuFollows(before leg.Phase, ev leg.Event) {
	now := a.state.Phase
	switch {
	case now == leg.Talking && before != leg.Talking:
		a.menuBegins()
	case now == leg.Talking && ev.Kind == leg.CompanyIs:
		a.stepMenu(menu.Event{Kind: menu.PeopleAre, N: a.state.Company})
	case now > leg.Talking && before <= leg.Talking:
		a.stepMenu(menu.Event{Kind: menu.HungUp})
		a.lobbyOver(a.state.Cause)
		if a.dialin.joined {
			a.dialin.joined = false
			a.tellRoom(a.name + " has left the call.")
		}
	}
}

// menuBegins is for phones that talk now.
func (a *actor) menuBegins() {
	switch {
	case a.dialin.menu.Phase == menu.Idle:
		a.stepMenu(menu.Event{Kind: menu.Began})
	case a.before != nil:
		a.stepMenu(menu.Event{Kind: menu.Resumed})
	}
	if a.silenced() {
		a.mutePhone()
	}
	a.stepMenu(menu.Event{Kind: menu.PeopleAre, N: a.state.Company})
	if a.before == nil && *a.options.Announce && a.bridge.mayAnnounce(a.room()) {
		a.dialin.joined = true
		a.tellRoom(a.name + " has joined the call by telephone.")
	}
}

// silenced says whether the room must not hear the phone.
func (a *actor) silenced() bool { return a.held || a.dialin.menu.Muted }

// mutePhone lets the desk and the room's call know.
func (a *actor) mutePhone() {
	v := a.voice.Load()
	if v == nil {
		return
	}
	v.Mute(a.silenced())
	if m := a.outlet.Load(); m != nil {
		m.Mute(a.silenced())
	}
}

func (a *actor) raiseHand(up bool) {
	if !a.dialin.hands.Allow() {
		return
	}
	text := a.name + " has raised their hand."
	if !up {
		text = a.name + " has lowered their hand."
	}
	a.tellRoom(text)
}

// tellRoom says something about the phone in its room, in the order in which it is called.
func (a *actor) tellRoom(text string) {
	before, spoken := a.dialin.spoken, make(chan struct{})
	a.dialin.spoken = spoken
	ghost, room := a.join.ghost, a.room()
	a.wg.Go(func() {
		defer close(spoken)
		if before != nil {
			<-before
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), noticePatience)
		defer cancel()
		a.note("tell the room about the phone", a.bridge.matrix.Notice(ctx, room, ghost, text))
	})
}

// deadline is when the leg's or the menu's next tick is due; zero = never.
func (a *actor) deadline() time.Time {
	ofLeg, ofMenu := a.state.Deadline, a.dialin.menu.Deadline
	if ofLeg.IsZero() || !ofMenu.IsZero() && ofMenu.Before(ofLeg) {
		return ofMenu
	}
	return ofLeg
}

// resumeMenu goes on with the menu of the process before.
func (a *actor) resumeMenu(state storedState) {
	a.name = ghostName(a.party, a.showsNumber())
	a.dialin.menu, a.dialin.joined = state.Menu, state.Joined
	if state.Menu.Phase == menu.Idle {
		a.dialin.menu.Rules = menuRules(a.options)
	}
	if a.target == "" {
		a.target = state.Target
	}
	a.resumeLobby(state.Lobby)
}

// checkLanguages warns of languages in which callers would hear English.
func (b *Bridge) checkLanguages() {
	wanted := map[string]bool{b.routes.defaults.Language: true}
	for _, r := range b.routes.fixed {
		wanted[r.Options.Over(b.routes.defaults).Language] = true
	}
	for language := range wanted {
		if !b.sounds.Speaks(language) {
			b.log.Warn("there are no spoken prompts in this language; callers hear English or tones", "language", language,
				"there_are", strings.Join(b.sounds.Languages(), " "))
		}
	}
}
