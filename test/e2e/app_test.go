//go:build e2e

package e2e

import (
	"testing"
	"time"

	"trunkline/test/lab"
)

// The whole application joins with the camera only. The person hears the phone at once, and is heard after pressing the
// microphone, which makes the application renegotiate.
func TestPersonInHydrogenPressesMicrophoneAndIsHeard(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "alice")
	alice, err := bed.OpenApp(s.ctx, users[0], s.voice())
	s.must(err)
	t.Cleanup(alice.Close)
	t.Cleanup(func() { // before Close: cleanups run backwards
		if t.Failed() {
			t.Log(alice.State(s.ctx))
		}
	})
	phone := s.phone("desk", lab.PhoneOptions{})
	s.must(alice.StartCall(s.ctx))
	s.eventually("the room has a call", 10*time.Second, func() bool {
		calls, members, err := bed.CallState(s.ctx, s.owner, s.room.ID)
		return err == nil && len(calls) == 1 && len(members) == 1
	})
	s.dial(phone)
	s.eventually("alice hears the phone", 10*time.Second, func() bool {
		_, ok := s.heardBy(alice.Client).FirstSound()
		return ok
	})
	s.must(alice.PressMicrophone(s.ctx))
	pressed := time.Now()
	s.eventually("the phone hears alice", 10*time.Second, func() bool {
		heard, err := phone.Heard()
		_, ok := heard.FirstSound()
		return err == nil && ok
	})
	t.Logf("the phone hears alice %d ms after she pressed the microphone", time.Since(pressed).Milliseconds())
	s.settled = time.Now()
	time.Sleep(listenFor + 1500*time.Millisecond)
	s.clientHears(alice.Client, phone.Saying())
	s.phoneHears(phone, s.said(alice.Client))
}
