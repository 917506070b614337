//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"time"

	"trunkline/test/lab"
)

// isCalled tells whether the room has called the phone.
func isCalled(p phase) bool {
	return slices.Contains([]phase{isOrdered, calleeRings, calleeAnswers, calleeTalks, carrierIsCalled}, p)
}

// orders is what a round with a called phone needs.
type orders struct {
	phone      *lab.Phone
	ringsAfter time.Duration // the command, when nobody is killed
	before     lab.Notice    // the room's latest one before the command
	over       time.Time     // since when the phone is free and the room was told nothing
}

// commandIsLost is how long nothing comes of a command whose process died: the homeserver has delivered it again by then, or it
// counts as delivered and nobody carries it out.
const commandIsLost = 5 * time.Second

// prepareOrders lets the room call the phone once, undisturbed.
func (c *chaos) prepareOrders() {
	c.t.Helper()
	c.orders.phone = c.phoneSaying("callee", bed.Steady(2), lab.PhoneOptions{Number: "702", Called: true, Manual: true})
	c.order(calleeTalks)
	c.orders.ringsAfter = c.await(c.phone, lab.CallIncoming, c.dialed, heardAgain).At.Sub(c.dialed)
	c.hangUp()
	c.clears(true)
	c.phone = c.desk
	c.t.Logf("undisturbed, a phone rings %d ms after the command", c.orders.ringsAfter.Milliseconds())
}

// order brings the call of the called phone into its phase.
func (c *chaos) order(p phase) (from, to time.Duration, acted <-chan error) {
	c.t.Helper()
	nothing := make(chan error, 1)
	nothing <- nil
	var err error
	c.orders.before, err = bed.LastNotice(c.ctx, c.owner, c.room.ID)
	c.must(err)
	c.phone, c.held, c.orders.over = c.orders.phone, false, time.Time{}
	if p == carrierIsCalled {
		c.phone = c.behind.phone
	}
	c.dialed = time.Now()
	c.must(bed.Say(c.ctx, c.owner, c.room.ID, "!sip call "+c.phone.Number))
	if p == isOrdered {
		return 0, c.orders.ringsAfter, nothing
	}
	c.await(c.phone, lab.CallIncoming, c.dialed, heardAgain)
	switch p {
	case calleeRings:
		return 0, 700 * time.Millisecond, nothing
	case calleeAnswers:
		return 0, 150 * time.Millisecond, c.meanwhile(func() error { return c.phone.PickUp(c.ctx) })
	}
	c.must(c.phone.PickUp(c.ctx))
	c.answered(c.phone)
	c.awaitSound(c.dialed)
	return 0, time.Second, nothing
}

// orderIsOver tells whether the phone is free and the room knows that nothing comes of its call, or has never heard that
// something would. A phone that rings after the kill is picked up: the homeserver has delivered the command again.
func (c *chaos) orderIsOver() bool {
	c.t.Helper()
	since, rings := c.phone.Rings()
	if rings && since.After(c.killed) {
		_ = c.phone.PickUp(c.ctx) // it may stop ringing at this very moment
	}
	if rings || c.phone.InCall() {
		c.orders.over = time.Time{}
		return false
	}
	notices, err := bed.Notices(c.ctx, c.owner, c.room.ID)
	c.must(err)
	begun := false
	for _, n := range notices {
		if n.ID == c.orders.before.ID {
			break
		}
		if strings.Contains(n.Body, "Call to "+c.phone.Number+":") {
			return true
		}
		begun = true
	}
	if begun {
		c.orders.over = time.Time{}
		return false
	}
	if c.orders.over.IsZero() {
		c.orders.over = time.Now()
	}
	return time.Since(c.orders.over) > commandIsLost
}
