//go:build e2e

package e2e

import (
	"time"

	"trunkline/test/lab"
)

// asking is what a round with a PIN needs.
type asking struct {
	pin   string
	again time.Time // when the PIN may be typed again
	typed time.Time // when its last key was pressed for the next process
}

const (
	perKey    = 350 * time.Millisecond
	keyIsOver = 500 * time.Millisecond // a key that was down when the process died is up by then
)

func (c *chaos) prepareAsking() {
	c.t.Helper()
	var err error
	c.asking.pin, err = bed.Bridge().MakePIN(c.ctx, c.room.ID)
	c.must(err)
}

// typePIN dials the number that asks, and types as soon as it is answered.
func (c *chaos) typePIN() (from, to time.Duration, acted <-chan error) {
	c.t.Helper()
	c.dialed, c.held, c.asking.again = time.Now(), false, time.Time{}
	c.asking.typed = time.Time{}
	c.must(c.phone.Dial(c.ctx, lab.PINNumber))
	return 0, c.setup + time.Duration(len(c.asking.pin)+1)*perKey + time.Second, c.meanwhile(func() error {
		for {
			if _, up := c.came(lab.CallEstablished); up {
				return c.press(c.asking.pin + "#")
			}
			select {
			case <-c.dead:
				return nil
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
}

// press presses keys for as long as this round's process lives.
func (c *chaos) press(keys string) error {
	for _, key := range keys {
		select {
		case <-c.dead:
			return nil
		default:
		}
		if err := c.phone.SendDigit(c.ctx, key); err != nil {
			return err
		}
		time.Sleep(perKey - 250*time.Millisecond)
	}
	return nil
}

// typeAgain types the PIN for the next process, if that asks: the star wipes out what it may have heard of the last key.
func (c *chaos) typeAgain() {
	c.t.Helper()
	now := time.Now()
	if c.asking.again.IsZero() {
		c.asking.again = now.Add(keyIsOver)
	}
	if now.Before(c.asking.again) || !c.phone.InCall() {
		return
	}
	asked, err := bed.Bridge().Count(c.ctx, "SELECT count(*) FROM leg WHERE phase = 'asking'")
	c.must(err)
	if asked == 0 {
		return
	}
	for _, key := range "*" + c.asking.pin + "#" {
		c.asking.typed = time.Now()
		c.must(c.phone.SendDigit(c.ctx, key))
		time.Sleep(perKey - 250*time.Millisecond)
	}
	c.asking.again = time.Now().Add(3 * time.Second)
}
