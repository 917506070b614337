//go:build e2e

package e2e

import (
	"strings"
	"time"

	"trunkline/test/lab"
)

// lobby is what a round with it needs.
type lobby struct {
	let    time.Duration // from dialling until somebody lets the phone in, when nobody is killed
	before lab.Notice    // the room's latest one before that
	again  time.Time     // when the phone may be let in again
	waited time.Time     // when it was last seen to wait
}

// readsFor is how long somebody takes to answer for the lobby.
const readsFor = 600 * time.Millisecond

// prepareLobby lets a phone in once, undisturbed.
func (c *chaos) prepareLobby() {
	c.t.Helper()
	c.phone = c.desk
	_, _, letIn := c.enterLobby()
	c.must(<-letIn)
	c.lobby.let = time.Since(c.dialed)
	c.awaitSound(c.dialed)
	c.hangUp()
	c.clears(true)
	c.t.Logf("undisturbed, the room lets a phone in %d ms after dialling", c.lobby.let.Milliseconds())
}

// enterLobby dials the number with a lobby; somebody lets the phone in soon after the room is told.
func (c *chaos) enterLobby() (from, to time.Duration, acted <-chan error) {
	c.t.Helper()
	before, err := bed.LastNotice(c.ctx, c.owner, c.room.ID)
	c.must(err)
	c.lobby = lobby{let: c.lobby.let, before: before}
	c.dialed, c.held = time.Now(), false
	c.must(c.phone.Dial(c.ctx, c.room.Lobby))
	return 0, c.lobby.let + 1500*time.Millisecond, c.meanwhile(func() error {
		var since time.Time
		for since.IsZero() || time.Since(since) < readsFor {
			if since.IsZero() {
				told, err := c.knowsWhoWaits()
				if err != nil {
					return err
				}
				if told {
					since = time.Now()
				}
			}
			select {
			case <-c.dead:
				return nil
			case <-time.After(50 * time.Millisecond):
			}
		}
		return c.letIn()
	})
}

// knowsWhoWaits tells whether the room has been told.
func (c *chaos) knowsWhoWaits() (bool, error) {
	notices, err := bed.Notices(c.ctx, c.owner, c.room.ID)
	for _, n := range notices {
		if n.ID == c.lobby.before.ID {
			break
		}
		if strings.Contains(n.Body, "waits in the lobby") {
			return true, err
		}
	}
	return false, err
}

func (c *chaos) letIn() error { return bed.Say(c.ctx, c.owner, c.room.ID, "!sip admit") }

// letInAgain says that once more if the phone waits in the lobby of the next process.
func (c *chaos) letInAgain() {
	c.t.Helper()
	waits, err := bed.Bridge().Count(c.ctx, "SELECT count(*) FROM leg WHERE phase = 'asking'")
	c.must(err)
	if waits == 0 {
		return
	}
	c.lobby.waited = time.Now()
	if c.lobby.waited.Before(c.lobby.again) {
		return
	}
	told, err := c.knowsWhoWaits()
	c.must(err)
	if told {
		c.must(c.letIn())
		c.lobby.again = time.Now().Add(3 * time.Second)
	}
}
