//go:build e2e && chaos

package e2e

import (
	"context"
	"errors"
	"testing"
	"time"

	"trunkline/test/lab"
)

const (
	takesOver = 25 * time.Second // a lease's 10 s, the next look, the ghost's return, on a busy machine
	fencesIn  = 15 * time.Second
)

// Two nodes on machines of their own, one database, one homeserver, and a phone on a third machine. The node that has the
// call is killed: the other one takes it over, from its own address. The first one comes back and leaves the call alone.
// Then the second one freezes and the first one takes the call back; when the second one thaws it lets go without a word.
// At last the first one is killed, and a node of another name takes over on its machine, with its addresses.
func TestNodesTakeOverFromEachOther(t *testing.T) {
	s, users := newSceneFor(t, 4*time.Minute, lab.RoomOptions{}, "alice", "0bob")
	s.leavesNothing()
	s.must(bed.Bridge().Stop())
	network, err := bed.NewNetwork()
	if errors.Is(err, lab.ErrNoNetwork) {
		s.must(bed.Bridge().Start(s.ctx))
		t.Skip(err)
	}
	s.must(err)
	n := newNodes(s, network)
	c := &chaos{scene: s, away: map[*lab.Client]bool{}}
	for i, kind := range []lab.Kind{lab.Hydrogen, lab.JSSDK} {
		c.away[s.pageSaying(kind, users[i], bed.Steady(i))] = true
	}
	machine, err := network.NewMachine("phone")
	s.must(err)
	c.phone = s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{Machine: machine})
	c.assemble()
	c.dialed = time.Now()
	s.must(c.phone.Dial(s.ctx, "sip:"+s.room.Number+"@"+n.one.SIP()))
	c.awaitSound(c.dialed)

	died := time.Now()
	n.one.Kill()
	network.Node.To(n.two.Application())
	c.comesBack("the other node", died)
	n.owns("two")

	s.must(n.one.Start(s.ctx))
	back := time.Now()
	time.Sleep(2 * leaseRenewed)
	c.goesOn("while the dead node is back", back)
	n.owns("two")
	if legs, err := n.one.Metric(s.ctx, "trunkline_legs"); err != nil || legs != 0 {
		t.Errorf("the node that came back has %g legs (%v), want none", legs, err)
	}

	froze := time.Now()
	s.must(n.two.Pause())
	network.Node.To(n.one.Application())
	c.comesBack("the first node", froze)
	n.owns("one")
	thawed := time.Now()
	s.must(n.two.Resume())
	select {
	case <-n.two.Exited():
		t.Logf("the fenced node ends %.1f s after it has thawed", time.Since(thawed).Seconds())
	case <-time.After(fencesIn):
		t.Errorf("the fenced node still runs after %s", fencesIn)
	}
	c.goesOn("while the fenced node thaws", thawed)
	n.owns("one")

	died = time.Now()
	n.one.Kill()
	s.must(n.heir.Start(s.ctx))
	c.comesBack("a node with the same addresses", died)
	n.owns("heir")

	c.hangUp()
	s.eventually("rows and ghosts are gone", clearedAfter, func() bool {
		legs, err := n.heir.Count(s.ctx, "SELECT count(*) FROM leg")
		s.must(err)
		return legs == 0 && len(s.ghosts()) == 0
	})
}

// leaseRenewed is how often a process looks after leases, with some room.
const leaseRenewed = 3 * time.Second

// nodes are the two bridges.
type nodes struct {
	*scene
	one, two *lab.Bridge
	heir     *lab.Bridge // on the machine of the first one
}

func newNodes(s *scene, network *lab.Network) *nodes {
	s.t.Helper()
	n := &nodes{scene: s}
	s.t.Cleanup(func() { // the lab's own bridge is there again for the next case
		for _, node := range []*lab.Bridge{n.one, n.two, n.heir} {
			if node != nil {
				node.Kill()
			}
		}
		if err := errors.Join(network.Node.Close(), bed.Bridge().Start(context.Background())); err != nil {
			s.t.Error(err)
		}
	})
	node := func(name string, m *lab.Machine) *lab.Bridge {
		b, err := network.NewNode(name, m)
		s.must(err)
		return b
	}
	machines := make([]*lab.Machine, 2)
	for i, name := range []string{"first", "second"} {
		var err error
		machines[i], err = network.NewMachine(name)
		s.must(err)
	}
	n.one, n.two, n.heir = node("one", machines[0]), node("two", machines[1]), node("heir", machines[0])
	network.Node.To(n.one.Application())
	s.t.Cleanup(func() {
		if s.t.Failed() {
			for _, node := range []*lab.Bridge{n.one, n.two, n.heir} {
				s.t.Logf("log of %s:\n%s", node.Log(), node.LogTail(6000))
			}
		}
	})
	s.must(n.one.Start(s.ctx))
	s.must(n.two.Start(s.ctx))
	return n
}

// owns checks that the call's rows belong to that node.
func (n *nodes) owns(node string) {
	n.t.Helper()
	for _, table := range []string{"leg", "membership"} {
		rows, err := n.one.Count(n.ctx, "SELECT count(*) FROM "+table+" JOIN lease USING (owner) WHERE node = $1", node)
		n.must(err)
		if rows != 1 {
			n.t.Errorf("node %s has %d rows in %s, want the call's", node, rows, table)
		}
	}
}

// comesBack waits for sound both ways after a node fell silent.
func (c *chaos) comesBack(by string, silent time.Time) {
	c.t.Helper()
	var first []time.Time
	c.eventually("all hear each other by "+by, takesOver, func() (ok bool) {
		first, ok = c.allHeard(silent)
		return ok
	})
	for i, l := range c.lines(silent) {
		c.t.Logf("by %s: %s hears %s again after %.1f s", by, l.to, l.right.Name, first[i].Sub(silent).Seconds())
	}
}

// goesOn checks that nobody's sound has stopped since then.
func (c *chaos) goesOn(when string, since time.Time) {
	c.t.Helper()
	until := judgeable(since)
	for _, l := range c.lines(since) {
		if hole, at := l.heard().LongestGap(l.right, since, until); hole > chaosGap {
			c.t.Errorf("%s: %s does not hear %s for %s, %s after it began", when, l.to, l.right.Name, hole, at.Sub(since))
		}
	}
	if !c.phone.InCall() {
		c.t.Errorf("%s: the phone is in no call", when)
	}
}
