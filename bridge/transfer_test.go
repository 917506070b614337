package bridge

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
	"trunkline/sip"
)

// transferBed is a bed with a phone that alice has called and that talks. Its trunk leads to more numbers.
func transferBed(t *testing.T, edit func(*config.Config)) (*bed, *member.Member, *phone.Call) {
	t.Helper()
	b, p := dialBed(t, edit)
	alice, call := b.aliceCalls(p)
	return b, alice, call
}

// aliceCalls has alice call a phone that answers.
func (b *bed) aliceCalls(p *phone.Phone) (*member.Member, *phone.Call) {
	b.t.Helper()
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip call "+berlin)
	call := b.called(p)
	if err := call.PickUp(b.ctx()); err != nil {
		b.t.Fatal(err)
	}
	b.told("has answered.")
	return alice, call
}

// referred waits for the bridge's REFER.
func (b *bed) referred(call *phone.Call) string {
	b.t.Helper()
	to, err := call.Referred(b.ctx())
	if err != nil {
		b.t.Fatalf("%v; the bot's notices: %q", err, b.boards())
	}
	return to
}

func TestRoomSendsAPhoneOn(t *testing.T) {
	t.Parallel()
	b, alice, call := transferBed(t, nil)
	b.says(alice, "!sip transfer +49 30 23456789")
	if to := b.referred(call); !strings.HasPrefix(to, "sip:03023456789@") {
		t.Errorf("the phone is sent to %s", to)
	}
	b.told("Transferring +493•••••••78 to +493•••••••89 …")
	for _, n := range []struct {
		status string
		last   bool
		told   string
	}{
		{"100 Trying", false, "Transferring +493•••••••78 to +493•••••••89 …"},
		{"180 Ringing", false, "Transferring +493•••••••78: +493•••••••89 rings."},
		{"200 OK", true, "+493•••••••78 was transferred to +493•••••••89."},
	} {
		if err := call.Notify(b.ctx(), n.status, n.last); err != nil {
			t.Fatalf("%s: %v", n.status, err)
		}
		b.told(n.told)
	}
	select {
	case <-call.Done():
	case <-b.ctx().Done():
		t.Fatal("a phone that was transferred is not let go")
	}
	b.told("the phone was transferred.")
	b.clear()
	if n := len(b.boards()); n != 2 {
		t.Errorf("the bot has posted %d notices, want one of the call and one of the transfer: %q", n, b.boards())
	}
}

func TestPhoneThatCannotBeSentOnStays(t *testing.T) {
	t.Parallel()
	b, alice, call := transferBed(t, func(c *config.Config) { c.Dialling.Expensive = []string{"+4989"} })
	bob := b.person("bob", member.JSSDK, true)
	b.says(bob, "!sip transfer +49 30 23456789")
	b.told("You may not use \"!sip transfer\" here.")
	b.says(alice, "!sip transfer +1 212 5550123")
	b.told("may not be called from here")
	b.says(alice, "!sip transfer +49 89 23456789")
	b.told("That number is expensive; phones are not transferred there.")
	b.says(alice, "!sip transfer @2 +49 30 23456789")
	b.told("There is no phone number 2 here")

	b.says(alice, "!sip transfer @1 +49 30 23456789")
	b.referred(call)
	b.says(alice, "!sip transfer +49 30 34567890")
	b.told("That phone is being transferred already.")
	if err := call.Notify(b.ctx(), "486 Busy Here", true); err != nil {
		t.Fatal(err)
	}
	b.told("could not be transferred to +493•••••••89 and stays: busy.")
	call.RefusesTransfers(405)
	b.says(alice, "!sip transfer 1002")
	b.told("could not be transferred to 1002 and stays: the telephone line does not permit it")
	if call.Ended() != "" || len(b.ghosts()) != 1 {
		t.Errorf("the call ended (%q), ghosts %v: the phone should have stayed", call.Ended(), b.ghosts())
	}
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
}

// used is how many calls a user has placed today.
func (b *bed) used(user id.UserID) (calls int) {
	b.t.Helper()
	err := b.process.bridge.store.Shared().
		QueryRow(b.ctx(), "SELECT COALESCE(SUM(calls), 0) FROM usage WHERE scope = 'user' AND name = $1", user).Scan(&calls)
	if err != nil {
		b.t.Fatal(err)
	}
	return calls
}

func TestTransferThatIsRefusedIsNotCounted(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	user := id.NewUserID("alice", b.hs.Domain())
	b.says(alice, "!sip call "+berlin)
	call := b.called(p)
	if err := call.Ring(); err != nil {
		t.Fatal(err)
	}
	b.told("rings.")
	b.says(alice, "!sip transfer +49 30 23456789")
	b.told("That phone does not talk yet")
	if n := b.used(user); n != 1 {
		t.Errorf("%d calls are counted while the phone rings, want 1", n)
	}
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("has answered.")
	b.says(alice, "!sip transfer +49 30 23456789")
	b.referred(call)
	b.says(alice, "!sip transfer +49 30 34567890")
	b.told("That phone is being transferred already.")
	if n := b.used(user); n != 2 {
		t.Errorf("%d calls are counted, want the call and one transfer", n)
	}
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
}

func TestTransferGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		t.Run(map[bool]string{false: "planned", true: "killed"}[killed], func(t *testing.T) {
			t.Parallel()
			b, p := dialBed(t, nil)
			end := b.stop
			if killed {
				b.stop()
				doomed := b.startDoomed()
				end = func() { kill(t, doomed) }
			}
			alice, call := b.aliceCalls(p)
			b.says(alice, "!sip transfer +49 30 23456789")
			b.referred(call)
			if !strings.Contains(b.storedLeg("dialog"), `"transfer":`) {
				t.Error("the phone is asked, and the row does not name the transfer")
			}
			end()
			b.start()
			if err := call.Notify(b.ctx(), "200 OK", true); err != nil {
				t.Fatal(err)
			}
			b.told("was transferred to +493•••••••89.")
			select {
			case <-call.Done():
			case <-b.ctx().Done():
				t.Fatal("a phone that was transferred is not let go")
			}
			b.clear()
		})
	}
}

// amend changes a document in the one row of a leg.
func (b *bed) amend(column, key string, value any) {
	b.t.Helper()
	document := map[string]json.RawMessage{}
	if err := json.Unmarshal([]byte(b.storedLeg(column)), &document); err != nil {
		b.t.Fatal(err)
	}
	document[key] = json.RawMessage(encode(value))
	b.sql("UPDATE leg SET "+column+" = $1", encode(document))
}

// What the rows of a killed process say of a transfer that it had begun.
func TestTransferIsTakenUpWhereAKilledProcessLeftIt(t *testing.T) {
	t.Parallel()
	const again = "!sip transfer 1002"
	for name, tt := range map[string]struct {
		arrived bool
		dialog  *sip.Transfer
		then    func(*bed, *phone.Phone, *member.Member, *phone.Call)
	}{
		"before it asked the phone": {false, nil, func(b *bed, _ *phone.Phone, alice *member.Member, call *phone.Call) {
			b.told("could not be transferred to 1002 and stays: the bridge was restarted.")
			b.says(alice, again)
			b.referred(call)
		}},
		"when it was about to ask": {
			false, &sip.Transfer{CSeq: 5, Branch: "z9hG4bKbefore", To: "1002"},
			func(b *bed, p *phone.Phone, alice *member.Member, call *phone.Call) {
				if to := b.referred(call); to != "sip:1002@"+p.Addr().String() {
					b.t.Errorf("the phone is sent to %s", to)
				}
				b.says(alice, again)
				b.told("That phone is being transferred already.")
			},
		},
		"when it knew that the phone had arrived": {true, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, p := dialBed(t, nil)
			alice, call := b.aliceCalls(p)
			b.stop()
			b.amend("state", "Away", storedAway{Room: b.room, To: "1002", Arrived: tt.arrived})
			if tt.dialog != nil {
				tt.dialog.Until = time.Now().Add(time.Minute) // from now on: other tests went first
				b.amend("dialog", "transfer", tt.dialog)
			}
			b.start()
			if tt.then != nil {
				b.await("the phone to talk again", func() bool {
					phones := b.process.bridge.phonesIn(b.room)
					b.process.bridge.mu.Lock()
					defer b.process.bridge.mu.Unlock()
					return len(phones) == 1 && phones[0].phase == leg.Talking
				})
				tt.then(b, p, alice, call)
				if call.Ended() != "" {
					t.Errorf("the call ended: %q", call.Ended())
				}
				held := b.holds("/send/m.room.message") // so that the end is known before the room has read anything
				for _, status := range []string{"180 Ringing", "200 OK"} {
					if err := call.Notify(b.ctx(), status, status == "200 OK"); err != nil {
						t.Fatal(err)
					}
				}
				b.await("the phone to be let go", func() bool { return call.Ended() != "" })
				b.await("a notice to be on its way", func() bool { return held.Hits() == 1 })
				close(held.Hold)
				b.told("was transferred to 1002.")
			}
			select {
			case <-call.Done():
			case <-b.ctx().Done():
				t.Fatal("a phone that was transferred is not let go")
			}
			b.clear()
			b.stop() // now all is said
			if slices.ContainsFunc(b.boards(), func(text string) bool { return strings.HasSuffix(text, "1002 rings.") }) {
				t.Errorf("the room still reads that the transfer is under way: %q", b.boards())
			}
		})
	}
}
