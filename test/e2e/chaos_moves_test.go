//go:build e2e

package e2e

import (
	"context"
	"slices"
	"strings"
	"time"

	"trunkline/test/lab"
)

// A phone goes to another room (REFER), hands its call over to another phone (REFER, over a trunk with transfers: trunk), or another
// phone takes its call over (Replaces).

// moved tells whether the phone goes to another room.
func moved(p phase) bool { return p == phoneMoves || p == carrierMoves }

// moves is what such rounds need.
type moves struct {
	room  *lab.Room    // the other one: nobody is in its call
	back  bool         // it is the way back that is disturbed
	there time.Time    // since when the phone is in the other room after the kill, zero = it is not
	again time.Time    // when the phone was told to come back after the kill
	pair  []*lab.Phone // who had the call, and who is to have it
	quiet time.Time    // since when it is clear who has it
}

const (
	movedIn      = 600 * time.Millisecond // with time to spare, when nobody is killed
	settledIn    = 2 * time.Second        // the move is over, too: see move
	pickedUpIn   = 250 * time.Millisecond
	handedOverIn = ringsFor + 800*time.Millisecond
)

func (c *chaos) prepareMoves() {
	c.t.Helper()
	var err error
	c.moves.room, err = bed.NewRoom(c.ctx, lab.RoomOptions{Owner: c.owner})
	c.must(err)
}

// move tells the phone to go to the other room, or to come back from there.
func (c *chaos) move() (from, to time.Duration, acted <-chan error) {
	c.t.Helper()
	nothing := make(chan error, 1)
	nothing <- nil
	c.moves.there, c.moves.again = time.Time{}, time.Time{}
	if c.moves.back {
		told := c.counter("trunkline_moves_total")
		c.must(c.goTo(c.moves.room))
		// Its ghost is there a moment before the move is over, and the phone hangs up if it may not go on to yet another room by then.
		c.eventually("the phone is in the other room", heardAgain, func() bool { return c.isIn(c.moves.room) && c.counter("trunkline_moves_total") > told })
		c.must(c.goTo(c.room))
		return 0, movedIn, nothing
	}
	c.must(c.goTo(c.moves.room))
	return 0, movedIn, nothing
}

func (c *chaos) goTo(room *lab.Room) error {
	return c.phone.Transfer(c.ctx, "sip:"+room.Number+"@"+bed.SIPAddress())
}

// isIn tells whether the phone is in the call of this one of its two rooms, and in no other.
func (c *chaos) isIn(room *lab.Room) bool {
	c.t.Helper()
	here, there := len(c.ghosts()), len(c.ghostsIn(c.moves.room.ID))
	return here+there == 1 && (here == 1) == (room == c.room)
}

// isBack tells whether the phone is here for good: what a killed process was told is not told again. One that stays up in the other
// room is told to come.
func (c *chaos) isBack() bool {
	c.t.Helper()
	if time.Since(c.killed) < commandIsLost {
		return false
	}
	if c.phone == c.desk || !c.isIn(c.moves.room) {
		c.moves.there = time.Time{}
		return c.isIn(c.room)
	}
	if c.moves.there.IsZero() {
		c.moves.there = time.Now()
	}
	if time.Since(c.moves.there) > settledIn && time.Since(c.moves.again) > commandIsLost {
		c.moves.again = time.Now()
		c.must(c.goTo(c.room))
	}
	return false
}

// moveIsOver tells whether the phone has no call any more, or one in the other room, which it would hang up on its way back.
func (c *chaos) moveIsOver() bool {
	_, closed := c.came(lab.CallClosed)
	return closed || c.phone == c.desk && time.Since(c.killed) > commandIsLost && c.isIn(c.moves.room)
}

// hasMoved checks that a phone which is not here was told that it is elsewhere, or is there.
func (c *chaos) hasMoved() string {
	c.t.Helper()
	for _, ev := range c.phone.Events() {
		if ev.Type == lab.CallClosed && ev.At.After(c.dialed) {
			if !strings.Contains(strings.ToLower(ev.Param), "transfer") {
				c.t.Errorf("the phone's call has ended: %q", ev.Param)
			}
			return "moved, and hung up as it does"
		}
	}
	c.hangUp()
	return "moved"
}

// prepareHandingOver lets phones place calls from the room.
func (c *chaos) prepareHandingOver() {
	c.t.Helper()
	undo, err := bed.Bridge().RestartWith(c.ctx, "permissions", string(c.room.ID), "call")
	c.must(err)
	c.t.Cleanup(func() {
		if err := undo(context.Background()); err != nil {
			c.t.Error(err)
		}
	})
	c.rests()
}

// handOver tells the phone to hand its call over to the one of orders.
func (c *chaos) handOver() (from, to time.Duration, acted <-chan error) {
	c.t.Helper()
	c.moves.pair, c.moves.quiet = []*lab.Phone{c.phone, c.orders.phone}, time.Time{}
	c.must(c.phone.Transfer(c.ctx, c.orders.phone.Address()))
	return 0, handedOverIn, c.meanwhile(func() error {
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

// pickUpElsewhere lets the other phone behind the carrier take the call over.
func (c *chaos) pickUpElsewhere() (from, to time.Duration, acted <-chan error) {
	c.t.Helper()
	c.moves.pair, c.moves.quiet = []*lab.Phone{c.phone, c.behind.relief}, time.Time{}
	return 0, pickedUpIn, c.meanwhile(func() error { return c.behind.relief.Dial(c.ctx, c.behind.carrier.Reach(c.room.Number)) })
}

// oneIsLeft tells whether one of the two phones has the call, for good: it is the one whose call it is then.
func (c *chaos) oneIsLeft() bool {
	c.t.Helper()
	up := slices.DeleteFunc(slices.Clone(c.moves.pair), func(p *lab.Phone) bool { return !p.InCall() })
	if len(up) == 1 {
		c.phone = up[0]
	}
	return len(up) == 1 && c.staysSo()
}

// noneIsLeft tells whether neither has.
func (c *chaos) noneIsLeft() bool {
	c.t.Helper()
	return !slices.ContainsFunc(c.moves.pair, (*lab.Phone).InCall) && c.staysSo()
}

// staysSo tells whether nobody is on the way to the call, nor will be: what a killed process was told is not told again.
func (c *chaos) staysSo() bool {
	c.t.Helper()
	rings := slices.ContainsFunc(c.moves.pair, func(p *lab.Phone) bool { _, yes := p.Rings(); return yes })
	legs, err := bed.Bridge().Count(c.ctx, "SELECT count(*) FROM leg")
	c.must(err)
	if rings || legs > c.background()+1 {
		c.moves.quiet = time.Time{}
		return false
	}
	if c.moves.quiet.IsZero() {
		c.moves.quiet = time.Now()
	}
	return time.Since(c.moves.quiet) > commandIsLost
}
