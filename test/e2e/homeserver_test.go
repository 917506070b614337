//go:build e2e && chaos

package e2e

import (
	"strings"
	"testing"
	"time"

	"trunkline/test/lab"
)

// The homeserver dies in the middle of a transaction, stays away under a call, and comes back. Sound goes on all the time, the
// phone may hold and return, the ghost's entry stays valid, nothing is done twice, and who joins then is in the call.
func TestCallsOutliveAStoppedHomeserver(t *testing.T) {
	away := awayFor()
	c, phone := newOutage(t, away+3*time.Minute)
	time.Sleep(15 * time.Second) // clients send candidates until then, and give up connections when those fail
	before, entries := c.ghosts(), c.ghostEvents()
	repeated := c.counter("trunkline_matrix_transactions_repeated_total")

	t.Cleanup(func() { _ = bed.Bridge().Resume() }) // who explains why it failed asks it
	c.must(bed.Bridge().Pause())                    // takes the transaction, and does not answer it in time
	c.must(c.pages[1].Say(c.ctx, c.room.ID, "Hello?"))
	c.eventually("the transaction waits to be read", 10*time.Second, func() bool {
		waits, err := bed.Bridge().HasUnread()
		c.must(err)
		return waits
	})
	c.must(bed.Synapse.Kill())
	c.must(bed.Bridge().Resume())
	stopped := time.Now()
	time.Sleep(away / 2)
	c.goesOn("without the homeserver", stopped.Add(time.Second))
	c.hold()
	time.Sleep(time.Second)
	resumed := time.Now()
	c.must(phone.Resume(c.ctx))
	c.awaitSound(resumed)
	heard := time.Now()
	time.Sleep(time.Until(stopped.Add(away)))
	c.goesOn("still without the homeserver", heard)

	c.must(bed.Synapse.StartProcess(c.ctx))
	back := time.Now()
	carol, err := bed.NewUser(c.ctx, "carol")
	c.must(err)
	c.must(bed.Invite(c.ctx, c.owner, c.room.ID, carol.UserID))
	c.must(bed.Enter(c.ctx, carol, c.room.ID))
	late := c.scene.page(lab.JSSDK, carol)
	c.pages = c.pages[:2] // its voice is no steady one
	t.Cleanup(late.Close)
	joined := time.Now()
	c.must(late.Join(c.ctx, c.room.ID, c.call))
	t.Logf("who joins after the homeserver's return hears the phone after %.1f s", c.clientHearsAgain(late, phone, joined, 20*time.Second).Seconds())
	c.goesOn("with the homeserver again", back)
	after := c.ghosts()
	if len(after) != 1 || len(before) != 1 || after[0].Session != before[0].Session || time.Until(after[0].Expires) < 10*time.Minute {
		t.Errorf("the ghost's entries are %v, and were %v: want the same, valid", after, before)
	}
	if n := c.ghostEvents(); n > entries+1 { // one renewal may have been due
		t.Errorf("the ghost wrote %d entries after the outage, want one at most", n-entries)
	}
	notice, err := bed.LastNotice(c.ctx, c.owner, c.room.ID)
	if err != nil || notice.Body != "" {
		t.Errorf("the bot says %q (%v), want nothing", notice.Body, err)
	}
	again := c.counter("trunkline_matrix_transactions_repeated_total") - repeated
	t.Logf("%.0f s away; transactions that came again: %g", back.Sub(stopped).Seconds(), again)
	c.hangUp()
	c.clears(false) // hydrogen looks for its homeserver again only after as long as that was away
}

// ghostEvents counts how often a ghost has written its entry.
func (c *chaos) ghostEvents() int {
	c.t.Helper()
	timeline, err := bed.CallTimeline(c.ctx, c.owner, c.room.ID)
	c.must(err)
	return strings.Count(timeline, " call.member "+string(c.ghosts()[0].User))
}
