//go:build e2e

package e2e

import (
	"context"
	"slices"
	"time"

	"trunkline/test/lab"
)

// overCarrier tells whether Kamailio is between.
func overCarrier(p phase) bool {
	return slices.Contains([]phase{carrierCalls, carrierTalks, carrierIsCalled, carrierHangsUp, carrierMoves, carrierPicksUp}, p)
}

// behind is what a round with the carrier needs.
type behind struct {
	carrier *lab.Carrier
	phone   *lab.Phone
	relief  *lab.Phone    // picks up the other one's call
	setup   time.Duration // from dialling to the answer, when nobody is killed
}

// prepareCarrier lets the phone behind it come once, undisturbed.
func (c *chaos) prepareCarrier() {
	c.t.Helper()
	c.behind.phone = c.phoneSaying("branch", bed.Steady(2), lab.PhoneOptions{Number: lab.CarrierNumbers + "02", Encrypted: true, Manual: true})
	c.behind.relief = c.phoneSaying("relief", bed.Steady(2), lab.PhoneOptions{Number: lab.CarrierPickUp, Encrypted: true})
	var err error
	c.behind.carrier, err = bed.NewCarrier(c.ctx, c.behind.phone)
	c.must(err)
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.t.Logf("the carrier's log ends with:\n%s", c.behind.carrier.LogTail(4000))
		}
		if err := c.behind.carrier.Close(context.Background()); err != nil {
			c.t.Error(err)
		}
	})
	c.rests()
	c.assemble()
	c.callThroughCarrier(carrierTalks)
	up, _ := c.came(lab.CallEstablished)
	if n, err := bed.Bridge().Count(c.ctx, "SELECT count(*) FROM leg WHERE trunk = $1", lab.CarrierTrunk); err != nil || n != 1 {
		c.t.Fatalf("%d calls came over the carrier's trunk (%v), want 1", n, err)
	}
	c.behind.setup = up.Sub(c.dialed)
	c.hangUp()
	c.clears(true)
	c.phone = c.desk
	c.t.Logf("undisturbed, a call over TLS is answered %d ms after dialling", c.behind.setup.Milliseconds())
}

// callThroughCarrier brings a call of the phone behind the carrier into its phase.
func (c *chaos) callThroughCarrier(p phase) (from, to time.Duration, acted <-chan error) {
	c.t.Helper()
	nothing := make(chan error, 1)
	nothing <- nil
	c.phone = c.behind.phone
	c.dialed, c.held = time.Now(), false
	c.must(c.phone.Dial(c.ctx, c.behind.carrier.Reach(c.room.Number)))
	if p == carrierCalls {
		return c.behind.setup / 2, c.behind.setup * 12 / 10, nothing
	}
	c.answered(c.phone)
	c.awaitSound(c.dialed)
	switch p {
	case carrierHangsUp:
		return 0, 150 * time.Millisecond, c.meanwhile(func() error { return c.phone.Hangup(c.ctx) })
	case carrierMoves:
		return c.move()
	case carrierPicksUp:
		return c.pickUpElsewhere()
	}
	return 0, time.Second, nothing
}

// isRegistered waits until the next process is: the one before took its connection with it.
func (c *chaos) isRegistered() {
	c.t.Helper()
	c.eventually("the process is registered with the carrier", 5*time.Second, func() bool {
		yes, err := bed.Bridge().Registered(c.ctx)
		c.must(err)
		return yes
	})
}
