//go:build e2e && chaos

package e2e

import (
	"strings"
	"testing"
	"time"

	"trunkline/test/lab"
)

// The database stops under two calls. One phone hangs up, the other one goes on hold, a third one is refused: all as if the
// database were there. When it is back it knows of both, and so does the process that comes after this one.
func TestCallsOutliveAStoppedDatabase(t *testing.T) {
	away := awayFor()
	c, stays := newOutage(t, away+2*time.Minute)
	leaves, late := c.scene.phone("hall", lab.PhoneOptions{}), c.scene.phone("late", lab.PhoneOptions{})
	c.dial(leaves)
	c.eventually("two ghosts are in the call", heardAgain, func() bool { return len(c.ghosts()) == 2 })

	stopped := time.Now()
	c.must(bed.Database.StopServer())
	c.eventually("the bridge says that it is not ready", 10*time.Second, func() bool { return !bed.Bridge().Ready(c.ctx) })
	c.must(leaves.Hangup(c.ctx))
	c.eventually("one ghost has left", heardAgain, func() bool { return len(c.ghosts()) == 1 })
	dialed := time.Now()
	c.must(late.Dial(c.ctx, c.room.Number))
	if refused := c.await(late, lab.CallClosed, dialed, heardAgain); !strings.Contains(refused.Param, "503") {
		t.Errorf("a phone that calls meanwhile hears %q, want 503", refused.Param)
	}
	quiet := time.Now() // only the one phone speaks from here on
	time.Sleep(time.Until(stopped.Add(away)))
	c.goesOn("without the database", quiet)
	c.hold()
	plain := c.pages[1] // hydrogen needs an olm session that cannot be stored now
	c.eventually("the client sees the phone muted", 10*time.Second, func() bool { return c.seesMuted(plain) })
	c.must(bed.Database.StartServer(c.ctx))
	back := time.Now()
	c.eventually("the bridge is ready, and has written all", 30*time.Second, func() bool {
		waiting, err := bed.Bridge().Metric(c.ctx, "trunkline_database_writes_waiting")
		return err == nil && waiting == 0 && bed.Bridge().Ready(c.ctx)
	})
	t.Logf("%.1f s away; ready %.1f s after its return", back.Sub(stopped).Seconds(), time.Since(back).Seconds())
	for query, want := range map[string]int{
		"SELECT count(*) FROM leg":                          1,
		"SELECT count(*) FROM membership":                   1,
		"SELECT count(*) FROM leg WHERE updated_at >= $1":   1, // on hold
		"SELECT count(*) FROM history WHERE ended_at >= $1": 1, // hung up
	} {
		var args []any
		if strings.Contains(query, "$1") {
			args = append(args, stopped.UnixMilli())
		}
		if n, err := bed.Bridge().Count(c.ctx, query, args...); err != nil || n != want {
			t.Errorf("%s: %d (%v), want %d", query, n, err, want)
		}
	}
	bed.Bridge().Kill()
	c.must(bed.Bridge().Start(c.ctx))
	for _, p := range c.pages {
		c.eventually("the client sees the phone muted by the next process, too", heardAgain, func() bool { return c.seesMuted(p) })
	}
	resumed := time.Now()
	c.must(stays.Resume(c.ctx))
	c.awaitSound(resumed)
	c.hangUp()
	c.clears(true)
}

// awayFor is how long a server is away.
func awayFor() time.Duration { return time.Duration(number("TRUNKLINE_CHAOS_AWAY", 60)) * time.Second }

// newOutage is a steady call with its phone, on a bridge that knows no other.
func newOutage(t *testing.T, limit time.Duration) (c *chaos, phone *lab.Phone) {
	t.Helper()
	c = newChaos(t, limit)
	c.dialIn()
	c.answered(c.phone)
	c.awaitSound(c.dialed)
	return c, c.phone
}
