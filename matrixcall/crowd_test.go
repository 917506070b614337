package matrixcall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/logging"
	"github.com/pion/transport/v4/vnet"
	"github.com/pion/webrtc/v4"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
)

// crowd is the whole package beside a fake homeserver, with scripted members who have the manners of real clients, all on
// one virtual network and in virtual time.
type crowd struct {
	*bed
	wan     *vnet.Router
	nics    int
	room    id.RoomID
	members map[string]*member.Member
}

func inCrowd(t *testing.T, test func(t *testing.T, c *crowd)) {
	t.Helper()
	inCrowdWith(t, homeserver.Config{}, test)
}

func inCrowdWith(t *testing.T, cfg homeserver.Config, test func(t *testing.T, c *crowd)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		wan, err := vnet.NewRouter(&vnet.RouterConfig{CIDR: "10.0.0.0/16", LoggerFactory: logging.NewDefaultLoggerFactory()})
		if err != nil {
			t.Fatal(err)
		}
		c := &crowd{wan: wan, members: make(map[string]*member.Member)}
		c.bed = fakeBedWith(t, cfg)
		c.network = c.nic()
		if err := wan.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { wan.Stop() })
		c.start()
		host := c.person("host", false)
		c.room = host.room(c.service.Bot())
		test(t, c)
	})
}

func (c *crowd) nic() *vnet.Net {
	c.Helper()
	c.nics++
	nic, err := vnet.NewNet(&vnet.NetConfig{StaticIPs: []string{fmt.Sprintf("10.0.%d.%d", c.nics/200, c.nics%200+1)}})
	if err != nil {
		c.Fatal(err)
	}
	if err := c.wan.AddNet(nic); err != nil {
		c.Fatal(err)
	}
	return nic
}

// enter brings a new member into the room.
func (c *crowd) enter(name string, kind member.Kind) *member.Member {
	c.Helper()
	u := c.fake.User(name)
	c.fake.Join(c.room, u.UserID)
	cfg := member.Config{
		URL: c.url, UserID: u.UserID, DeviceID: u.DeviceID, AccessToken: u.AccessToken, Kind: kind,
		HTTP: c.fake.Net().Client(), Net: c.nic(), Log: testLog(c.TB),
	}
	m, err := member.New(c.Context(), cfg)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(m.Close)
	c.members[name] = m
	c.soon(m.Await(c.shortly(), "the first sync", func(v member.View) bool { return v.Synced }))
	return m
}

// join brings new members into the room and its call.
func (c *crowd) join(kind member.Kind, names ...string) {
	c.Helper()
	for _, name := range names {
		c.soon(c.enter(name, kind).JoinCall(c.shortly(), c.room))
	}
}

func (c *crowd) shortly() context.Context {
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	c.Cleanup(cancel)
	return ctx
}

func (c *crowd) soon(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// phone makes a ghost that is in the room.
func (c *crowd) phone(name string) *Ghost {
	c.Helper()
	g := c.ghost(name)
	c.soon(g.EnterRoom(c.Context(), c.room))
	return g
}

func (c *crowd) call(g *Ghost, opts CallOptions) *Membership {
	c.Helper()
	m, err := g.JoinCall(c.shortly(), c.room, opts)
	c.soon(err)
	c.Cleanup(m.Abandon) // when the test has left, this does nothing
	return m
}

// connected waits until the members are connected to the ghost in its present session.
func (c *crowd) connected(m *Membership, names ...string) {
	c.Helper()
	for _, name := range names {
		c.soon(c.members[name].Await(c.shortly(), "the ghost's present session", func(v member.View) bool {
			for _, p := range v.Peers {
				if p.User == m.info.Ghost && p.State == "connected" && (p.Session == m.Info().SessionID || p.Session == "") {
					return true
				}
			}
			return false
		}))
	}
}

// noComplaints checks that no member got from a ghost what would have broken its client. That the clients do not
// understand each other is another matter.
func (c *crowd) noComplaints() {
	c.Helper()
	for name, m := range c.members {
		for _, complaint := range m.Complaints() {
			if strings.Contains(complaint, "@_") {
				c.Errorf("%s complains: %s", name, complaint)
			}
		}
	}
}

// entries lists the ghost's entries in the room as call/device/session.
func (c *crowd) entries(user id.UserID) (list []string) {
	for _, call := range memberCalls(c.fake.State(c.room, memberType, user.String())) {
		for _, d := range call.Devices {
			list = append(list, fmt.Sprintf("%s/%s/%s", call.CallID, d.DeviceID, d.SessionID))
		}
	}
	return list
}

// requests counts what a ghost has written since a moment: state and to-device messages.
func (c *crowd) requests(g *Ghost, since time.Time) (list []string) {
	for _, r := range c.fake.Requests() {
		written := r.Method != "GET" && (strings.Contains(r.Path, "/state/") || strings.Contains(r.Path, "/sendToDevice/"))
		if written && r.User == g.user && !r.At.Before(since) {
			list = append(list, r.Method+" "+r.Path)
		}
	}
	return list
}

// A process is replaced: it drops its call without a word, and its successor goes on with a new session.
func TestSuccessorTakesACallOver(t *testing.T) {
	inCrowd(t, takeOver)
}

func takeOver(t *testing.T, c *crowd) {
	everybody := []string{"0alice", "alice", "0bob", "bob"} // the lower ids call the ghost, the others are called
	g := c.phone("_sip_first")
	first := c.call(g, CallOptions{})
	c.join(member.Hydrogen, everybody[:2]...)
	c.join(member.JSSDK, everybody[2:]...)
	c.connected(first, everybody...)
	before := first.Info()
	if event := c.stateEvent(callType, before.ConfID); before.CallEvent == "" || before.CallEvent != event {
		t.Errorf("CallEvent = %q, want the call's state event %q", before.CallEvent, event)
	}
	c.putForeign(g, before)
	time.Sleep(time.Second)
	abandoned := time.Now()
	first.Abandon()
	if took := time.Since(abandoned); took > time.Second {
		t.Errorf("Abandon took %v", took)
	}
	c.stop(c.service)
	time.Sleep(3 * time.Second)
	if sent := c.requests(g, abandoned); len(sent) != 0 {
		t.Errorf("sent after Abandon: %v", sent)
	}
	if got := c.entries(g.user); len(got) != 2 {
		t.Errorf("entries after Abandon: %v, want the ghost's and the foreign one", got)
	}

	c.start()
	g = c.ghost("_sip_first")
	rejoined := time.Now()
	saved := false
	second := c.call(g, CallOptions{Rejoin: &before, Save: func(_ context.Context, i MembershipInfo) error {
		saved = i.ConfID == before.ConfID && i.SessionID != before.SessionID && i.CallEvent == before.CallEvent
		return nil
	}})
	if !saved {
		c.Error("Save was not told of the same call with another session")
	}
	c.connected(second, everybody...)
	puts := 0
	for _, r := range c.requests(g, rejoined) {
		if strings.Contains(r, "/state/") {
			puts++
		}
	}
	after := second.Info()
	want := []string{before.ConfID + "/FOREIGN/f", fmt.Sprintf("%s/%s/%s", before.ConfID, g.device, after.SessionID)}
	if got := c.entries(g.user); puts != 1 || strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%d state events written, entries %v, want 1 and %v", puts, got, want)
	}
	if after.Created != before.Created {
		t.Errorf("Created = %t, was %t", after.Created, before.Created)
	}
	c.noComplaints()
	c.soon(second.Leave(c.shortly(), ""))
}

// putForeign adds an entry of another device of the ghost's user.
func (c *crowd) putForeign(g *Ghost, info MembershipInfo) {
	c.Helper()
	c.soon(c.service.PutMember(c.Context(), g, c.room, MemberEdit{ConfID: info.ConfID, Add: entryOf("FOREIGN", "f", time.Hour)}))
	content := c.fake.State(c.room, memberType, g.user.String())
	if devices := memberCalls(content)[0].Devices; len(devices) != 2 {
		c.Fatalf("entries %s, want two", content)
	}
}

// stateEvent is the id of the room's present state event.
func (c *crowd) stateEvent(kind, key string) (found id.EventID) {
	for _, e := range c.fake.Timeline(c.room) {
		if e.Type == kind && e.StateKey != nil && *e.StateKey == key {
			found = e.ID
		}
	}
	return found
}

func TestRejoinOfACallThatHasEndedSaysSo(t *testing.T) {
	inCrowd(t, func(t *testing.T, c *crowd) {
		g := c.phone("_sip_late")
		m := c.call(g, CallOptions{})
		info := m.Info()
		m.Abandon()
		if err := m.Leave(t.Context(), ""); err != nil {
			t.Errorf("Leave after Abandon = %v", err)
		}
		if _, err := c.service.PutCall(t.Context(), g, c.room, info.ConfID, CallContent{Intent: "m.ring", Type: "m.voice", Terminated: callEnded}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		began := time.Now()
		if _, err := g.JoinCall(t.Context(), c.room, CallOptions{Rejoin: &info}); !errors.Is(err, ErrCallOver) {
			t.Errorf("rejoin of an ended call = %v, want ErrCallOver", err)
		}
		info.ConfID = "never-was"
		if _, err := g.JoinCall(t.Context(), c.room, CallOptions{Rejoin: &info}); !errors.Is(err, ErrCallOver) {
			t.Errorf("rejoin of a call that never was = %v, want ErrCallOver", err)
		}
		if sent := c.requests(g, began); len(sent) != 0 {
			t.Errorf("written although there is no call: %v", sent)
		}
	})
}

// A process that is replaced while it rejoins must leave the entry alone: its successor stands for it by now.
func TestAbandonedRejoinLeavesTheEntryAlone(t *testing.T) {
	inCrowd(t, func(t *testing.T, c *crowd) {
		g := c.phone("_sip_twice")
		m := c.call(g, CallOptions{})
		info := m.Info()
		m.Abandon()
		before := c.entries(g.user)
		outage := c.fake.Break(&homeserver.Fault{
			Method: http.MethodPut, Path: "call.member", User: g.user, Error: &homeserver.Error{Status: 503, Code: "M_UNKNOWN"},
		})
		ctx, abandon := context.WithCancelCause(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := g.JoinCall(ctx, c.room, CallOptions{Rejoin: &info}); !errors.Is(err, ErrAbandoned) {
				t.Errorf("JoinCall = %v, want %v", err, ErrAbandoned)
			}
		})
		time.Sleep(time.Second)
		abandon(ErrAbandoned)
		outage.Mend()
		wg.Wait()
		time.Sleep(time.Minute)
		if after := c.entries(g.user); len(before) != 1 || !slices.Equal(before, after) {
			t.Errorf("entries %v before, %v after, want the same one", before, after)
		}
		if g.isIn(c.room) {
			t.Error("the ghost is still busy")
		}
	})
}

// Two phones and a member create calls in the same moment. Her client looks at no second call, so the phones must come to
// hers.
func TestPhonesGoToTheCallThatPeopleAreIn(t *testing.T) {
	for _, kind := range []member.Kind{member.Hydrogen, member.JSSDK} {
		t.Run(kind.String(), func(t *testing.T) {
			inCrowd(t, func(t *testing.T, c *crowd) { twoCallsAtOnce(t, c, kind) })
		})
	}
}

func twoCallsAtOnce(t *testing.T, c *crowd, kind member.Kind) {
	alice := c.enter("alice", kind)
	var saved []string
	opts := CallOptions{Save: func(_ context.Context, i MembershipInfo) error {
		saved = append(saved, i.ConfID)
		return nil
	}}
	first := c.call(c.phone("_sip_first"), opts)
	ours := first.Info().ConfID
	hers, err := alice.CreateCall(t.Context(), c.room)
	c.soon(err)
	second := c.call(c.phone("_sip_second"), CallOptions{})
	if ours == hers || second.Info().ConfID == "" {
		t.Fatalf("calls %s and %s, want two", ours, hers)
	}
	time.Sleep(time.Second)
	c.soon(alice.JoinCall(c.shortly(), c.room))
	time.Sleep(time.Second)
	c.connected(first, "alice")
	c.connected(second, "alice")
	for _, m := range []*Membership{first, second} {
		if i := m.Info(); i.ConfID != hers || i.CallEvent != c.stateEvent(callType, hers) || i.Created {
			t.Errorf("a phone is in %+v, want it in %s", i, hers)
		}
		if got := c.entries(m.info.Ghost); len(got) != 1 || !strings.HasPrefix(got[0], hers) {
			t.Errorf("its entries are %v", got)
		}
	}
	if want := []string{ours, hers}; strings.Join(saved, " ") != strings.Join(want, " ") {
		t.Errorf("saved %v, want %v", saved, want)
	}
	if content := string(c.fake.State(c.room, callType, ours)); !strings.Contains(content, callEnded) {
		t.Errorf("our call stands although it is empty: %s", content)
	}
	c.soon(first.Leave(c.shortly(), ""))
	c.soon(second.Leave(c.shortly(), ""))
	if content := string(c.fake.State(c.room, callType, hers)); strings.Contains(content, callEnded) {
		t.Errorf("we ended her call: %s", content)
	}
	c.noComplaints()
}

// A mute, and a goodbye, are one request per type for everybody: for those who read olm, and for the others. The peers answer
// as far as signalling goes, all with one description: thirty connections that never stand, and look for no server that tells
// their address, are enough for one test.
func TestThirtyPeersCostAsManyRequestsAsOne(t *testing.T) {
	inCrowdWith(t, homeserver.Config{TURN: struct{}{}}, func(t *testing.T, c *crowd) {
		g := c.phone("_sip_first")
		m := c.call(g, CallOptions{})
		var people []*person
		for i := range 30 {
			p := c.person(fmt.Sprintf("person%02d", i), i%2 == 0)
			c.fake.Join(c.room, p.user)
			p.listen()
			people = append(people, p)
		}
		time.Sleep(time.Second) // the ghost hears that their keys are new; whoever's are asked for anew costs a request more
		for _, p := range people {
			p.memberOf(c.room, m.Info().ConfID, time.Hour)
		}
		time.Sleep(3 * time.Second)
		answer := people[0].describe(g)
		for _, p := range people {
			p.answer(g, answer)
		}
		time.Sleep(2 * time.Second)
		sent := func(what string, most int, do func()) {
			t.Helper()
			time.Sleep(100 * time.Millisecond)
			began := time.Now()
			do()
			time.Sleep(2 * time.Second)
			toDevice := slices.DeleteFunc(c.requests(g, began), func(r string) bool { return !strings.Contains(r, "/sendToDevice/") })
			if len(toDevice) > most {
				t.Errorf("%s took %d requests, want at most %d: %v", what, len(toDevice), most, toDevice)
			}
		}
		sent("mute", 2, func() { m.Mute(true) })
		sent("unmute", 2, func() { m.Mute(false) })
		sent("leave", 2, func() { c.soon(m.Leave(c.shortly(), "")) })
		for _, p := range people {
			if mutes, hangups := len(p.heardOf(g, typeMetadata)), len(p.heardOf(g, typeHangup)); mutes != 2 || hangups != 1 {
				t.Errorf("%s heard %d mutes and %d hangups, want 2 and 1", p.user, mutes, hangups)
			}
		}
		seen := make(map[string]bool)
		for _, r := range c.fake.Requests() {
			if !strings.Contains(r.Path, "/sendToDevice/") || !c.service.OwnGhost(r.User) {
				continue
			}
			txn := r.Path[strings.LastIndex(r.Path, "/"):]
			if seen[txn] {
				t.Errorf("transaction id %s was used twice", txn)
			}
			seen[txn] = true
		}
		t.Logf("%d requests of a phone with 30 peers", len(seen))
	})
}

// heardOf is what a person heard of one kind from a ghost.
func (p *person) heardOf(g *Ghost, kind string) (contents []signalContent) {
	for _, h := range p.hears() {
		var c signalContent
		if h.sender == g.user && h.kind == kind && json.Unmarshal(h.content, &c) == nil {
			contents = append(contents, c)
		}
	}
	return contents
}

// invited returns the ghost's invite.
func (p *person) invited(g *Ghost) signalContent {
	p.bed.Helper()
	invites := p.heardOf(g, typeInvite)
	if len(invites) == 0 {
		p.bed.Fatalf("%s heard no invite", p.user)
	}
	return invites[0]
}

// describe makes the SDP of an answer to the ghost's invite.
func (p *person) describe(g *Ghost) string {
	p.bed.Helper()
	pc, err := webrtc.NewPeerConnection(webrtc.Configuration{})
	if err == nil {
		err = pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: p.invited(g).Offer.SDP})
	}
	var answer webrtc.SessionDescription
	if err == nil {
		answer, err = pc.CreateAnswer(nil)
	}
	if err == nil {
		err = pc.Close()
	}
	if err != nil {
		p.bed.Fatal(err)
	}
	return answer.SDP
}

// answer answers the ghost's invite, as far as signalling goes.
func (p *person) answer(g *Ghost, sdp string) {
	p.bed.Helper()
	invite := p.invited(g)
	_, err := p.client.SendToDevice(p.bed.Context(), event.Type{Type: typeAnswer, Class: event.ToDeviceEventType},
		&mautrix.ReqSendToDevice{Messages: map[id.UserID]map[id.DeviceID]*event.Content{g.user: {g.device: {Raw: map[string]any{
			"call_id": invite.CallID, "conf_id": invite.ConfID, "device_id": p.device, "sender_session_id": invite.DestSession,
			"dest_session_id": invite.SenderSession, "answer": map[string]any{"type": "answer", "sdp": sdp},
		}}}}})
	if err != nil {
		p.bed.Fatal(err)
	}
}
