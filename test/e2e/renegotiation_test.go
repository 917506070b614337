//go:build e2e

package e2e

import (
	"testing"
	"time"

	"trunkline/test/lab"
)

// heardWithin is how soon after a press of the microphone a person must be heard.
const heardWithin = time.Second

// restartGap is how long an ICE restart of a healthy connection may interrupt the sound.
const restartGap = 900 * time.Millisecond

// person is somebody who uses the whole hydrogen application, in a room with a phone.
type person struct {
	*scene
	app   *lab.App
	desk  *lab.Phone
	hears time.Time // when the phone was first heard
}

// newPerson starts a call in the application, which joins with the camera only, and lets a phone dial in.
func newPerson(t *testing.T, name string, voice *lab.Voice) *person {
	t.Helper()
	s, users := newScene(t, lab.RoomOptions{}, name)
	app, err := bed.OpenApp(s.ctx, users[0], voice)
	s.must(err)
	t.Cleanup(app.Close)
	t.Cleanup(func() { // before Close: cleanups run backwards
		if t.Failed() {
			t.Log(app.State(s.ctx))
		}
	})
	p := &person{scene: s, app: app, desk: s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})}
	s.must(app.StartCall(s.ctx))
	s.eventually("the room has a call", 10*time.Second, func() bool {
		calls, members, err := bed.CallState(s.ctx, s.owner, s.room.ID)
		return err == nil && len(calls) == 1 && len(members) == 1
	})
	s.dial(p.desk)
	s.eventually("the application hears the phone", 10*time.Second, func() (ok bool) {
		p.hears, ok = s.heardBy(app.Client).FirstHeard(p.desk.Voice(), s.dialed)
		return ok
	})
	return p
}

// isHeardAfterPressing presses the microphone when the phone has been heard for that long, and judges both directions.
func (p *person) isHeardAfterPressing(t *testing.T, after time.Duration) {
	s := p.in(t)
	time.Sleep(time.Until(p.hears.Add(after)))
	if first, ok := s.heardOn(p.desk).FirstSound(); ok {
		t.Errorf("the phone hears something %s before the microphone was pressed", time.Since(first))
	}
	pressed := time.Now()
	s.must(p.app.PressMicrophone(s.ctx))
	var first time.Time
	s.eventually("the phone hears the person", 10*time.Second, func() (ok bool) {
		first, ok = s.heardOn(p.desk).FirstHeard(p.app.Voice(), pressed)
		return ok
	})
	t.Logf("heard %d ms after the microphone was pressed", first.Sub(pressed).Milliseconds())
	if late := first.Sub(pressed); late > heardWithin+lab.SteadyResolution {
		t.Errorf("heard after %s, want within %s", late, heardWithin)
	}
	s.settled = time.Now()
	time.Sleep(listenFor + 1500*time.Millisecond)
	s.clientHears(p.app.Client, p.desk.Saying())
	s.phoneHears(p.desk, s.said(p.app.Client))
}

// The whole application joins with the camera only. The person hears the phone at once, and is heard after pressing the
// microphone, which makes the application renegotiate: for a minute after its invite it cannot do that by itself if it
// is the inviter. Those who press late are called first, so that their minute passes meanwhile.
func TestPersonInHydrogenPressesMicrophoneAndIsHeard(t *testing.T) {
	const late = 70 * time.Second
	lateCallee := newPerson(t, "alice", bed.Steady(0))
	lateInviter := newPerson(t, "0bob", bed.Steady(1))
	t.Run("callee after 5 s", func(t *testing.T) {
		newPerson(t, "carol", bed.Steady(0)).isHeardAfterPressing(t, 5*time.Second)
	})
	t.Run("inviter after 5 s", func(t *testing.T) {
		newPerson(t, "0dave", bed.Steady(1)).isHeardAfterPressing(t, 5*time.Second)
	})
	t.Run("callee after 70 s", func(t *testing.T) { lateCallee.isHeardAfterPressing(t, late) })
	t.Run("inviter after 70 s", func(t *testing.T) { lateInviter.isHeardAfterPressing(t, late) })
}

// A user adds and takes away camera and screen, and the browser restarts ICE: all of it is negotiated anew, video is
// answered inactive, and nobody notices in the sound.
func TestSoundGoesOnWhileClientRenegotiates(t *testing.T) {
	for _, c := range []struct {
		name, user string
		kind       lab.Kind
	}{
		{"js-sdk as callee", "alice", lab.JSSDK},
		{"js-sdk as inviter", "0alice", lab.JSSDK},
		{"hydrogen as callee", "alice", lab.Hydrogen},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, users := newScene(t, lab.RoomOptions{}, c.user)
			alice := s.pageSaying(c.kind, users[0], bed.Steady(0))
			phone := s.phoneSaying("desk", bed.Steady(1), lab.PhoneOptions{})
			s.startCall(alice)
			s.dial(phone)
			s.allHearAll(phone, 10*time.Second)
			for _, change := range changes(alice) {
				t.Run(change.name, func(t *testing.T) { s.in(t).changesWithoutGap(alice, phone, change) })
			}
		})
	}
}

// change is something that makes a client negotiate.
type change struct {
	name       string
	do         func(*scene) error
	negotiates bool
	gap        time.Duration // allowed
}

func changes(c *lab.Client) []change {
	all := []change{
		{"camera comes", func(s *scene) error { return c.Camera(s.ctx, true) }, true, maxGap},
		{"camera goes", func(s *scene) error { return c.Camera(s.ctx, false) }, false, maxGap}, // js-sdk only mutes it
	}
	if c.Kind == lab.Hydrogen {
		return all
	}
	return append(all,
		change{"screen comes", func(s *scene) error { return c.ShareScreen(s.ctx, true) }, true, maxGap},
		change{"screen goes", func(s *scene) error { return c.ShareScreen(s.ctx, false) }, true, maxGap},
		// The old path is given up before the new one is found, which takes a way through the homeserver.
		change{"ICE restarts", func(s *scene) error { return c.RestartICE(s.ctx) }, true, restartGap},
	)
}

// changesWithoutGap lets the client change something and listens for interruptions on both sides.
func (s *scene) changesWithoutGap(c *lab.Client, phone *lab.Phone, ch change) {
	s.t.Helper()
	before, err := c.Transports(s.ctx)
	s.must(err)
	sent, err := c.Sent(s.ctx, "m.call.negotiate")
	s.must(err)
	from := time.Now()
	s.must(ch.do(s))
	if ch.negotiates {
		s.eventually("the client has negotiated", 5*time.Second, func() bool {
			now, err := c.Sent(s.ctx, "m.call.negotiate")
			return err == nil && now > sent
		})
	}
	if ch.name == "ICE restarts" {
		s.eventually("both ends have new transports", 5*time.Second, func() bool {
			after, err := c.Transports(s.ctx)
			return err == nil && len(before) == 1 && len(after) == 1 && bothDiffer(before[0], after[0])
		})
	}
	time.Sleep(1500 * time.Millisecond)
	s.gapAtMost(ch.gap, phone, from, c)
	s.gapAtMostAt(ch.gap, c, from, phone)
}
