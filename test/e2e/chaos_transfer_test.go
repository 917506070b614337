//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"time"

	"trunkline/test/lab"
)

const (
	ringsFor  = 700 * time.Millisecond // the other phone, before somebody picks up
	arrivedIn = time.Second            // from the command, with time to spare, when nobody is killed
)

// onward is what a round with a transfer needs.
type onward struct {
	call  string    // Call-ID of the phone's call with us
	quiet time.Time // since when nothing has come of the command, and nothing is about to
}

// transfer tells the phone to call the other one.
func (c *chaos) transfer() (from, to time.Duration, acted <-chan error) {
	c.t.Helper()
	c.onward = onward{call: c.phone.Calls()[0]}
	c.must(bed.Say(c.ctx, c.owner, c.room.ID, "!sip transfer "+c.orders.phone.Number))
	return 0, arrivedIn, c.meanwhile(func() error {
		for {
			c.pickUpLate()
			select {
			case <-c.dead:
				return nil
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
}

// pickUpLate picks up at the other phone when it has rung for a while.
func (c *chaos) pickUpLate() {
	if since, rings := c.orders.phone.Rings(); rings && time.Since(since) > ringsFor {
		_ = c.orders.phone.PickUp(c.ctx) // it may have picked up already, and not said so yet
	}
}

// transferIsOver tells whether the phone has no call with us any more.
func (c *chaos) transferIsOver() bool { return !slices.Contains(c.phone.Calls(), c.onward.call) }

// staysHere tells whether nothing comes of the command any more: no phone calls the other, no row says that one is to, and the
// homeserver does not say it again.
func (c *chaos) staysHere() bool {
	c.t.Helper()
	_, rings := c.orders.phone.Rings()
	begun, err := bed.Bridge().Count(c.ctx, `SELECT count(*) FROM leg WHERE dialog LIKE '%"transfer":%' OR state LIKE '%"Away":%'`)
	c.must(err)
	if rings || begun > 0 || c.orders.phone.InCall() || len(c.phone.Calls()) > 1 {
		c.onward.quiet = time.Time{}
		return false
	}
	if c.onward.quiet.IsZero() {
		c.onward.quiet = time.Now()
	}
	return time.Since(c.onward.quiet) > commandIsLost
}

// talksElsewhere checks that the phone and the one it was sent to hear each other, and nobody else, and ends their call.
func (c *chaos) talksElsewhere() string {
	c.t.Helper()
	pair := []*lab.Phone{c.phone, c.orders.phone}
	if len(c.phone.Calls()) != 1 || !c.orders.phone.InCall() {
		c.t.Fatalf("the phone's call has ended, and it is in %d others; the phone it was sent to is in a call: %t",
			len(c.phone.Calls()), c.orders.phone.InCall())
	}
	c.eventually("the phone and the one it was sent to hear each other", heardAgain, func() bool {
		for i, p := range pair {
			heard, err := p.HeardByClock()
			to := time.Now().Add(-buffered)
			hole, _ := heard.LongestGap(pair[1-i].Voice(), to.Add(-time.Second), to)
			if err != nil || hole > chaosGap {
				return false
			}
		}
		return true
	})
	heard, err := c.phone.HeardByClock()
	c.must(err)
	to := time.Now().Add(-buffered)
	from := to.Add(-time.Second)
	right := heard.VoiceLevel(c.orders.phone.Voice(), from, to)
	for _, p := range c.present() {
		if level := heard.VoiceLevel(p.Voice(), from, to); level > right-quieter {
			c.t.Errorf("the phone still hears %s, with %.0f dB", p.Kind, level)
		}
	}
	c.must(c.phone.Hangup(c.ctx))
	c.eventually("both phones are free", clearedAfter, func() bool { return !c.phone.InCall() && !c.orders.phone.InCall() })
	closed, _ := c.came(lab.CallClosed)
	return fmt.Sprintf("transferred, let go %d ms after the kill", closed.Sub(c.killed).Milliseconds())
}
