package mesh

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// TestEntryRewrittenTenTimesASecondCostsLittle: for minutes, or an hour, somebody rewrites their member entry ten times a second, in every
// way that lets us begin anew, and does what makes us call again soonest. That costs a bounded number of connections and
// messages. A good peer notices nothing: its connection stands, and when it reloads it is called, or answered, at once.
func TestEntryRewrittenTenTimesASecondCostsLittle(t *testing.T) {
	entry := func(device, session any, expires time.Duration) Member {
		return Member{Peer: Peer{Device{"@eve:x", id.DeviceID(fmt.Sprint(device))}, fmt.Sprint(session)}, Expires: epoch.Add(expires)}
	}
	const long = 10 * time.Hour
	ways := map[string]func(n int) []Member{
		"end":     func(n int) []Member { return []Member{entry("E", "s", long+time.Duration(n)*time.Millisecond)} },
		"session": func(n int) []Member { return []Member{entry("E", n, long)} },
		"device":  func(n int) []Member { return []Member{entry(n, "s", long)} },
		"all":     func(n int) []Member { return []Member{entry(n%8, n, long+time.Duration(n))} },
		"gone":    func(n int) []Member { return []Member{entry("E", "s", long)}[:n%2] },
		"expired": func(n int) []Member { return []Member{entry("E", "s", []time.Duration{-time.Hour, long}[n%2])} },
		"many devices": func(n int) []Member {
			return []Member{
				entry(n, n, long), entry(n+1, n, long), entry(n+2, n, long), entry(n+3, n, long), entry(n+4, n, long),
				entry(n+5, n, long), entry(n+6, n, long), entry(n+7, n, long), entry(n+8, n, long), entry(n+9, n, long),
			}
		},
	}
	for _, self := range []id.UserID{"@_sip:x", "@zed:x"} {
		for way, members := range ways {
			t.Run(fmt.Sprint(self, " ", way), func(t *testing.T) {
				c, long := newChurn(t, self), 10*time.Minute
				if way == "all" {
					long = time.Hour
				}
				for n := range int(long / (100 * time.Millisecond)) {
					c.rewrite(members(n))
					c.call(n)
					c.until(c.now.Add(100 * time.Millisecond))
					if n%2000 == 1000 {
						c.reload()
					}
				}
				c.check(long)
			})
		}
	}
}

// churn is a mesh with a good peer and eve. Whatever the mesh asks for is done at once.
type churn struct {
	world
	t      *testing.T
	good   Peer
	eve    []Member
	due    []Event
	opened map[id.UserID]int // connections
	sent   map[id.UserID]int // signals
	lost   int               // connections of the good peer that ended
	calls  int
}

func newChurn(t *testing.T, self id.UserID) *churn {
	c := &churn{
		world: newWorld(Device{self, "GHOST"}), t: t, good: Peer{Device{"@good:x", "G"}, "s"},
		opened: make(map[id.UserID]int), sent: make(map[id.UserID]int),
	}
	c.do(Join{})
	c.rewrite(nil)
	c.callBack()
	return c
}

// do takes a step and all that follow from it at once.
func (c *churn) do(ev Event) {
	c.t.Helper()
	for c.due = append(c.due, ev); len(c.due) > 0; {
		next := c.due[0]
		c.due = c.due[1:]
		var effects []Effect
		c.state, effects = Step(c.state, c.now, next)
		c.obs.now = c.now
		if err := c.obs.observe(effects); err != nil {
			c.t.Fatalf("after %v: %v", c.now.Sub(epoch), err)
		}
		for _, e := range effects {
			c.perform(e)
		}
	}
	err := c.state.bounded()
	if len(c.eve) <= maxUserPeers { // or some devices are no peers
		err = c.holds()
	}
	if err != nil {
		c.t.Fatalf("after %v: %v", c.now.Sub(epoch), err)
	}
}

// perform is the shell, and what the peers reply.
func (c *churn) perform(e Effect) {
	switch e := e.(type) {
	case PutMember:
		c.due = append(c.due, MemberWritten{Session: e.Session})
	case Open:
		c.opened[e.Peer.User]++
	case CreateOffer:
		c.due = append(c.due, OfferReady{e.Conn, "offer"})
	case CreateAnswer:
		c.due = append(c.due, AnswerReady{e.Conn, "answer", Audio{In: true, Out: true}})
	case ApplyAnswer:
		c.due = append(c.due, AnswerApplied{e.Conn, Audio{In: true, Out: true}}, ConnState{e.Conn, Up})
	case PeerGone:
		if e.Peer.User == c.good.User {
			c.lost++
		}
	case Send:
		c.sent[e.To.User]++
		c.reply(e)
	}
}

// reply is what a peer says to an invite or an answer: the good one what it should, eve what makes us try again.
func (c *churn) reply(e Send) {
	sig := Signal{
		Kind: Answer, ConfID: "conf", CallID: e.Signal.CallID, SenderSession: e.Signal.DestSession, DestSession: e.Signal.SenderSession,
		Seq: NoSeq, SDP: SDP{"answer", "v"},
	}
	conn, _ := c.obs.connOf(e.To)
	switch good := e.To == c.good.Device; {
	case e.Signal.Kind == Answer && good:
		c.due = append(c.due, ConnState{conn, Up})
	case e.Signal.Kind == Answer && c.calls%2 == 0:
		c.due = append(c.due, ConnState{conn, Up}, ConnState{conn, Failed})
	case e.Signal.Kind == Invite && !good && c.opened["@eve:x"]%4 == 0: // no answer at all
	case e.Signal.Kind == Invite && !good && c.opened["@eve:x"]%4 == 1:
		sig.Kind, sig.Reason = Hangup, ReasonICEFailed
		c.due = append(c.due, Received{e.To, sig})
	case e.Signal.Kind == Invite && !good && c.opened["@eve:x"]%4 == 2:
		sig.Kind, sig.Reason = Hangup, ReasonUserHangup
		c.due = append(c.due, Received{e.To, sig})
	case e.Signal.Kind == Invite:
		c.due = append(c.due, Received{e.To, sig})
	}
}

// rewrite is a new state of the room.
func (c *churn) rewrite(eve []Member) {
	c.t.Helper()
	c.eve = eve
	members := append([]Member{
		{Peer: Peer{c.state.cfg.Self, c.state.session}, Expires: c.state.Expires(), Ours: true},
		{Peer: c.good, Expires: epoch.Add(10 * time.Hour)},
	}, eve...)
	c.do(RoomState{ConfID: "conf", Members: members})
}

// call has all of eve's devices call us, whoever should.
func (c *churn) call(n int) {
	c.t.Helper()
	c.calls++
	for _, mem := range c.eve {
		c.do(Received{mem.Device, Signal{
			Kind: Invite, ConfID: "conf", CallID: fmt.Sprint("e", n), SenderSession: mem.Session, DestSession: c.state.session, Seq: NoSeq,
			SDP: SDP{"offer", "v"},
		}})
	}
}

// callBack has the good peer call us if it should, and checks that it is connected.
func (c *churn) callBack() {
	c.t.Helper()
	if !invites(c.state.cfg.Self, c.good.Device) {
		c.calls++
		c.do(Received{c.good.Device, Signal{
			Kind: Invite, ConfID: "conf", CallID: fmt.Sprint("g", c.calls), SenderSession: c.good.Session, DestSession: c.state.session,
			Seq: NoSeq, SDP: SDP{"offer", "v"},
		}})
	}
	if !c.obs.connected[c.good] {
		c.t.Fatalf("after %v the good peer's session %q is not connected at once, but %v", c.now.Sub(epoch), c.good.Session,
			slices.Collect(maps.Keys(c.obs.connected)))
	}
}

func (c *churn) reload() {
	c.t.Helper()
	c.good.Session += "'"
	c.rewrite(c.eve)
	c.lost-- // it has thrown that away itself
	c.callBack()
}

func (c *churn) until(end time.Time) {
	c.t.Helper()
	for n := 0; ; n++ {
		next := c.state.Deadline()
		if next.IsZero() || next.After(end) {
			break
		}
		if n > 100 {
			c.t.Fatalf("the deadline %v stays due at %v", next, c.now)
		}
		if next.After(c.now) {
			c.now = next
		}
		c.do(Tick{})
	}
	c.now = end
}

func (c *churn) check(long time.Duration) {
	links := linkPace.burst + int(long/linkPace.every) + 1
	c.t.Logf("connections %v, signals %v, %d accounts", c.opened, c.sent, len(c.state.accounts))
	if got := c.opened["@eve:x"]; got > links || got < links/2 {
		c.t.Errorf("%d connections for eve, want at most %d and not much less", got, links)
	}
	if got := c.sent["@eve:x"]; got > 6*links {
		c.t.Errorf("%d signals to eve, want at most six for each of %d connections", got, links)
	}
	if c.lost != 0 {
		c.t.Errorf("the good peer lost its connection %d times", c.lost)
	}
	if len(c.state.accounts) > 2 {
		c.t.Errorf("%d accounts for two users", len(c.state.accounts))
	}
}
