package bridge

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/command"
	"trunkline/db"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
	"trunkline/sip"
)

// inPlaceOf is an address that names a dialog, as it stands in Refer-To.
func inPlaceOf(address, dialog string) string {
	return address + "?Replaces=" + url.QueryEscape(dialog)
}

// dialog is the one that is stored.
func (b *bed) dialog() (d sip.Dialog) {
	b.t.Helper()
	store, err := db.Open(b.ctx(), b.cfg.Database.Address, b.log)
	if err != nil {
		b.t.Fatal(err)
	}
	defer store.Close()
	var l db.Leg
	if err := store.Shared().QueryRow(b.ctx(), "SELECT dialog FROM leg").Scan(&l.Dialog); err != nil {
		b.t.Fatal(err)
	}
	if d, err = vaultOf(b.t, b.reg.AppToken).dialogOf(l); err != nil {
		b.t.Fatal(err)
	}
	return d
}

func TestPhoneTakesThePlaceOfItsOtherCall(t *testing.T) {
	t.Parallel()
	b, second := twoRooms(t)
	b.start()
	t.Cleanup(b.stop)
	alice := b.person("alice", member.JSSDK, true)
	var bob *member.Member
	b.in(second, func() { bob = b.person("bob", member.JSSDK, true) })
	call, ghost := b.talkWith(alice)
	other := b.dial(b.phone("+493087654321"), secondNumber)
	gone := b.dial(b.phone("+493087654322"), secondNumber)
	if err := gone.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.await("its leg to end", func() bool { return len(b.process.bridge.liveLegs()) == 2 }) // the BYE is answered before
	if got := b.refers(call, inPlaceOf("trunkline@127.0.0.1", gone.Place())); !slices.Equal(got, []string{"403"}) {
		t.Errorf("for the place of a call that is over the phone was told %q", got)
	}
	call.Play(sine(phoneHz, 8000, time.Minute))
	want := []string{"SIP/2.0 100 Trying", "SIP/2.0 200 OK."}
	if got := b.refers(call, inPlaceOf("trunkline@127.0.0.1", other.Place())); !slices.Equal(got, want) {
		t.Fatalf("the phone was told %q, want %q", got, want)
	}
	b.await("the other call to be let go", func() bool { return other.Ended() != "" })
	if err := alice.AwaitGone(b.ctx(), ghost); err != nil {
		t.Error(err)
	}
	b.in(second, func() {
		b.await("bob to hear the phone, and no other ghost to be there", func() bool {
			ghosts := b.ghosts()
			return len(ghosts) == 1 && loud(bob.Heard(ghosts[0]).PCM, phoneHz, 48000)
		})
	})
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
	b.in(second, func() { b.clear() })
}

const (
	consulted     = "consulted@192.0.2.9;to-tag=far;from-tag=near" // a dialog that only its two ends know
	elsewhere     = "03023456789@pbx.test"
	elsewhereSeen = "+493•••••••89"
)

// handsOver is a bed whose trunk's phones may have somebody called in their place: one that talks with alice, and the one that the
// trunk leads to.
func handsOver(t *testing.T, doomed bool, permissions func(*bed) command.Permissions) (*bed, *member.Member, *phone.Call, *phone.Phone, func()) {
	t.Helper()
	b := makeBed(t)
	target := b.phone("target")
	trunk := &b.cfg.SIP.Trunks[0]
	trunk.Proxy, trunk.Domain, trunk.Transfers = target.Addr().String(), "pbx.test", "trunk"
	trunk.Numbers.Country, trunk.Extensions = "DE", []string{"1xxx"}
	b.cfg.Dialling.Country = "DE"
	b.cfg.Dialling.Expensive = []string{"+4989"}
	b.cfg.Dialling.RingTimeout = 30 * time.Second
	b.cfg.DialIn.RoomNames = !doomed // any name may be a room, then: who is called is none for that
	b.cfg.Permissions = permissions(b)
	end := b.stop
	if doomed {
		child := b.startDoomed()
		end = func() { kill(t, child) }
	} else {
		b.start()
		t.Cleanup(b.stop)
	}
	alice := b.person("alice", member.JSSDK, true)
	call, _ := b.talkWith(alice)
	return b, alice, call, target, end
}

// everybodyCalls is in the words of the room, for phones may not call by any others.
func everybodyCalls(b *bed) command.Permissions {
	return command.Permissions{string(b.room): command.LevelCall}
}

// asks lets the phone want somebody to be called in its place.
func (b *bed) asks(call *phone.Call, to string) {
	b.t.Helper()
	if code, err := call.Refer(b.ctx(), "sip:"+to); err != nil || code != 202 {
		b.t.Fatalf("REFER: %d, %v", code, err)
	}
}

// isTold waits until the phone was told this of its transfer.
func (b *bed) isTold(call *phone.Call, line string) {
	b.t.Helper()
	b.await("the phone to be told "+line, func() bool { return slices.Contains(call.Notified(), line) })
}

func TestSomebodyIsCalledInThePlaceOfAPhone(t *testing.T) {
	t.Parallel()
	b, alice, call, target, _ := handsOver(t, false, everybodyCalls)
	before := b.ghosts()[0]
	b.asks(call, inPlaceOf(elsewhere, consulted))
	called := b.called(target)
	for name, want := range map[string]string{"Replaces": consulted, "Require": "replaces"} {
		if h := called.Invite().GetHeader(name); h == nil || h.Value() != want {
			t.Errorf("%s of the INVITE is %v, want %q", name, h, want)
		}
	}
	if to := called.Invite().Recipient.User; to != "03023456789" && to != "+493023456789" {
		t.Errorf("the trunk is asked for %s", to)
	}
	b.told("+493•••••••78 hands the call over to " + elsewhereSeen + " …")
	if err := called.Ring(); err != nil {
		t.Fatal(err)
	}
	b.isTold(call, "SIP/2.0 180 Ringing")
	if got := b.refers(call, secondNumber+"@127.0.0.1"); !slices.Equal(got, []string{"491"}) {
		t.Errorf("a second wish got %q, want 491", got)
	}
	if err := called.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.isTold(call, "SIP/2.0 200 OK.")
	b.told(elsewhereSeen + " has answered.")
	called.Play(sine(phoneHz, 8000, time.Minute))
	b.await("the first phone to be let go", func() bool { return call.Ended() != "" })
	b.await("alice to hear the other one, alone", func() bool {
		ghosts := b.ghosts()
		return len(ghosts) == 1 && ghosts[0] != before && loud(alice.Heard(ghosts[0]).PCM, phoneHz, 48000)
	})
	if n, own := b.used("phones of "+id.UserID(b.cfg.SIP.Trunks[0].Name)), b.used(before); n != 1 || own != 0 {
		t.Errorf("%d calls are counted for the phones of the trunk, want 1; and %d for the number that the caller says it has", n, own)
	}
	if err := called.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
	b.told("Call to " + elsewhereSeen + ": over after")
}

// Some phones do not wait for what comes of their transfer.
func TestPhoneThatHangsUpAtOnceHasSomebodyInItsPlace(t *testing.T) {
	t.Parallel()
	b, alice, call, target, _ := handsOver(t, false, everybodyCalls)
	b.asks(call, elsewhere)
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	called := b.called(target)
	if err := called.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	called.Play(sine(phoneHz, 8000, time.Minute))
	b.await("alice to hear who was called", func() bool {
		ghosts := b.ghosts()
		return len(ghosts) == 1 && loud(alice.Heard(ghosts[0]).PCM, phoneHz, 48000)
	})
	if err := called.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
}

func TestPhoneStaysWhereNobodyComesInItsPlace(t *testing.T) {
	t.Parallel()
	b, _, call, target, _ := handsOver(t, false, everybodyCalls)
	for to, want := range map[string][]string{
		"+12125550123@pbx.test": {"403"}, // not an allowed country
		"0900123456@pbx.test":   {"403"}, // a premium number
		"110@pbx.test":          {"403"},
		"carol@pbx.test":        {"403"},                                          // dialling.domains does not name it
		"1001@198.51.100.1":     {"403"},                                          // not behind the trunk
		"08923456789@pbx.test":  {"SIP/2.0 100 Trying", "SIP/2.0 403 Forbidden."}, // expensive: nobody says it twice
	} {
		if got := b.refers(call, to); !slices.Equal(got, want) {
			t.Errorf("%s: the phone was told %q, want %q", to, got, want)
		}
	}
	if n := target.Rung(); n != 0 {
		t.Fatalf("%d calls were placed", n)
	}
	b.asks(call, "1001@pbx.test")
	if err := b.called(target).Refuse(486, "Busy Here"); err != nil {
		t.Fatal(err)
	}
	b.isTold(call, "SIP/2.0 486 Busy Here.")
	b.told("Call to 1001: busy.")
	b.asks(call, "1002@pbx.test") // and it may try again
	if err := b.called(target).Refuse(404, "Not Found"); err != nil {
		t.Fatal(err)
	}
	b.isTold(call, "SIP/2.0 404 Not Found.")
	b.await("the ghost of who did not come to go", func() bool { return len(b.ghosts()) == 1 })
	b.process.bridge.Drain()
	if got, want := b.refers(call, elsewhere), []string{"SIP/2.0 100 Trying", "SIP/2.0 503 Service Unavailable."}; !slices.Equal(got, want) {
		t.Errorf("in a drain the phone was told %q, want %q", got, want)
	}
	if call.Ended() != "" {
		t.Errorf("the call ended (%q): the phone should have stayed", call.Ended())
	}
	b.hangUp(call)
	b.endsByItself()
}

func TestPhonesNeedPermissionToHaveOthersCalled(t *testing.T) {
	t.Parallel()
	b, _, call, target, _ := handsOver(t, false, func(b *bed) command.Permissions {
		ghost := "@" + ghostLocalpart(b.cfg.AppService.GhostPrefix, b.reg.AppToken, sip.Caller{Number: "+493012345678"}, b.cfg.SIP.Trunks[0].Name, 0)
		return command.Permissions{ // the ghost is named after the number that the caller says it has
			"*": command.LevelCall, b.hs.Domain(): command.LevelCall, "@alice:" + b.hs.Domain(): command.LevelCall, ghost + ":" + b.hs.Domain(): command.LevelCall,
		}
	})
	if got := b.ghosts(); b.cfg.Permissions[string(got[0])] != command.LevelCall {
		t.Fatalf("the phone's ghost is %v, whom %v does not name", got, b.cfg.Permissions)
	}
	if got := b.refers(call, elsewhere); !slices.Equal(got, []string{"403"}) || target.Rung() != 0 {
		t.Errorf("the phone was told %q, and %d calls were placed", got, target.Rung())
	}
}

// Whose place is taken has a wish of its own, of which it must not be told that it was fulfilled.
func TestPhoneWhosePlaceIsTakenIsNotToldThatItsWishWasFulfilled(t *testing.T) {
	t.Parallel()
	b, _, call, target, _ := handsOver(t, false, everybodyCalls)
	other := b.dial(b.phone("+493087654321"), goodNumber)
	b.asks(other, elsewhere)
	called := b.called(target)
	want := []string{"SIP/2.0 100 Trying", "SIP/2.0 200 OK."}
	if got := b.refers(call, inPlaceOf("trunkline@127.0.0.1", other.Place())); !slices.Equal(got, want) {
		t.Fatalf("the phone was told %q, want %q", got, want)
	}
	b.await("the other call to be let go", func() bool { return other.Ended() != "" })
	if got := other.Notified(); slices.Contains(got, "SIP/2.0 200 OK.") {
		t.Errorf("the phone whose place was taken was told %q", got)
	}
	if err := called.Refuse(486, "Busy Here"); err != nil {
		t.Fatal(err)
	}
	b.hangUp(call)
	b.clear()
}

// A killed process leaves the phone where it was, as long as nobody is there in its place.
func TestHandingOverOutlivesAKilledProcess(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"ringing", "answered", "offered something else", "stopped"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			answered := when != "ringing"
			b, alice, call, target, end := handsOver(t, when != "stopped", everybodyCalls) // stopped as by SIGTERM, else killed
			b.asks(call, elsewhere)
			called := b.called(target)
			if err := called.Ring(); err != nil {
				t.Fatal(err)
			}
			b.isTold(call, "SIP/2.0 180 Ringing")
			stays, goes := call, called
			if answered {
				if err := called.PickUp(b.ctx()); err != nil {
					t.Fatal(err)
				}
				b.isTold(call, "SIP/2.0 200 OK.")
				stays, goes = called, call
			}
			if when == "offered something else" { // as PBXs do after an attended transfer: the row is written again
				if _, err := called.Reinvite(b.ctx(), "sendrecv"); err != nil {
					t.Fatal(err)
				}
			}
			end() // before the phone, which does not hang up by itself, is let go
			b.start()
			t.Cleanup(b.stop)
			stays.Play(sine(phoneHz, 8000, time.Minute))
			b.await("one phone to be let go", func() bool { return goes.Ended() != "" })
			b.await("alice to hear the other one, alone", func() bool {
				ghosts := b.ghosts()
				return len(ghosts) == 1 && loud(alice.Heard(ghosts[0]).PCM, phoneHz, 48000)
			})
			if stays.Ended() != "" {
				t.Errorf("the other one ended, too: %q", stays.Ended())
			}
			if !answered {
				b.told("Call to " + elsewhereSeen + ": the bridge was restarted; try again.")
				b.isTold(call, "SIP/2.0 100 Trying.") // by the next process: it stays, and nothing more comes
			}
			b.hangUp(stays)
			b.clear()
		})
	}
}

// The process dies after some effect of the two legs. Then there is one phone in the room, the first or the one in its place, and it is
// heard; the other one is up with nobody.
func TestHandingOverKilledAfterEffects(t *testing.T) {
	t.Parallel()
	b, alice, call, target, _ := handsOver(t, false, everybodyCalls)
	b.hangUp(call)
	b.clear()
	b.stop()
	b.cfg.DialIn.RoomNames = false
	placed := b.picksUp(target)
	for n := 14; n <= 20; n += 3 { // from the ringing of the other one to the end of the first
		placed.Store(nil)
		cmd := b.childCommand()
		cmd.Env = append(cmd.Env, fmt.Sprint(childDies, "=", n))
		var output safeText
		cmd.Stderr = &output
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		dead := make(chan struct{})
		go func() { defer close(dead); _ = cmd.Wait() }()
		b.awaitChild()
		call := b.dial(b.phone("+493012345678"), goodNumber)
		call.Play(sine(aliceHz, 8000, time.Minute))
		go func() { _, _ = call.Refer(b.t.Context(), "sip:"+elsewhere) }() // a dead process answers nothing
		select {
		case <-dead:
		case <-b.ctx().Done():
			_ = cmd.Process.Kill()
			t.Fatalf("%d effects were too many", n)
		}
		b.start()
		where := ""
		b.await(diesAfter.FindString(output.String())+": one phone, and that is heard", func() bool {
			ghosts, next := b.ghosts(), placed.Load()
			if len(ghosts) != 1 {
				return false
			}
			heard := alice.Heard(ghosts[0]).PCM
			switch {
			case (next == nil || next.Ended() != "") && call.Ended() == "" && loud(heard, aliceHz, 48000):
				where = "the first"
			case next != nil && next.Ended() == "" && call.Ended() != "" && loud(heard, phoneHz, 48000):
				where = "the one in its place"
			}
			return where != ""
		})
		t.Logf("%d: %s: %s stays", n, diesAfter.FindString(output.String()), where)
		b.hangUp(call)
		if next := placed.Load(); next != nil {
			b.hangUp(next)
		}
		b.clear()
		b.stop()
	}
}

// RFC 3891: another phone behind the PBX has the call now.
func TestRoomHearsThePhoneThatTakesTheCallOver(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		t.Run(map[bool]string{false: "running", true: "killed"}[killed], func(t *testing.T) {
			t.Parallel()
			b := makeBed(t)
			b.cfg.SIP.Trunks[0].IgnoreAssertedIdentity = false
			end := func() {}
			if killed {
				doomed := b.startDoomed()
				end = func() { kill(t, doomed) }
			} else {
				b.start()
				t.Cleanup(b.stop)
			}
			alice := b.person("alice", member.Hydrogen, true)
			call, ghost := b.talkWith(alice)
			carla := b.phone("+493087654321")
			next, err := carla.DialWith(b.ctx(), b.sip, phone.Invite{
				Number: goodNumber, NoACK: true, Headers: map[string]string{"Replaces": call.Place(), "Require": "replaces"},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.hangUp(next) })
			b.await("the phone that was replaced to be let go", func() bool { return call.Ended() != "" })
			b.await("the row to name the new dialog", func() bool { return b.dialog().CallID == next.CallID() })
			if d := b.dialog(); d.Confirmed || !strings.Contains(next.Place(), d.LocalTag) {
				t.Errorf("before its ACK the row says %+v", d)
			}
			if killed {
				end()
				before := next.Answers()
				b.start()
				t.Cleanup(b.stop)
				b.await("the next process to answer again", func() bool { return next.Answers() > before })
			}
			next.Acknowledge()
			b.await("the row to say that the call is up", func() bool { return b.dialog().Confirmed })
			next.Play(sine(phoneHz, 8000, time.Minute))
			b.await("alice to hear who has taken the call over", func() bool { return loud(alice.Heard(ghost).PCM, phoneHz, 48000) })
			b.await("the ghost to be called like who is on the phone", func() bool {
				return strings.Contains(string(b.hs.State(b.room, "m.room.member", string(ghost))), `"+493•••••••21"`)
			})
			if got := b.ghosts(); len(got) != 1 || got[0] != ghost {
				t.Errorf("ghosts %v, want %v", got, ghost)
			}
			if err := next.Hangup(b.ctx()); err != nil {
				t.Fatal(err)
			}
			b.clear()
		})
	}
}

// RFC 5589 calls it pick-up: the phone that the room calls rings, and another one behind the PBX takes the call.
func TestAnotherPhonePicksUpTheCallOfARoom(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		t.Run(map[bool]string{false: "running", true: "killed"}[killed], func(t *testing.T) {
			t.Parallel()
			b, p := dialBed(t, nil)
			end := b.stop
			if killed {
				b.stop()
				doomed := b.startDoomed()
				end = func() { kill(t, doomed) }
			}
			alice := b.person("alice", member.JSSDK, true)
			b.says(alice, "!sip call "+berlin)
			rings := b.called(p)
			if err := rings.Ring(); err != nil {
				t.Fatal(err)
			}
			b.told("rings.")
			next, err := b.phone("+493087654321").DialWith(b.ctx(), b.sip, phone.Invite{
				Number: "1", NoACK: true, Headers: map[string]string{"Replaces": rings.Place() + ";early-only"},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.hangUp(next) })
			b.await("the phone that rang to be cancelled", func() bool { return rings.Ended() != "" })
			b.told("has answered.")
			b.await("the row to name the new dialog", func() bool { return b.dialog().CallID == next.CallID() })
			if killed {
				end()
				before := next.Answers()
				b.start()
				b.await("the next process to answer again", func() bool { return next.Answers() > before })
			}
			next.Acknowledge()
			b.await("the row to say that the call is up", func() bool { return b.dialog().Confirmed })
			next.Play(sine(phoneHz, 8000, time.Minute))
			b.await("alice to hear who has picked up", func() bool {
				ghosts := b.ghosts()
				return len(ghosts) == 1 && loud(alice.Heard(ghosts[0]).PCM, phoneHz, 48000)
			})
			b.says(alice, "!sip hangup")
			b.await("that phone to be hung up", func() bool { return next.Ended() != "" })
			b.clear()
		})
	}
}
