//go:build e2e

package e2e

import (
	"slices"
	"testing"
	"time"

	"trunkline/bridge/sound"
	"trunkline/internal/testbed/listen"
	"trunkline/test/lab"
)

// One number for all rooms: baresip hears the prompt, types the PIN (RFC 4733), and is in the call with hydrogen.
func TestPhoneComesInWithAPIN(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "alice")
	alice, phone := s.pageSaying(lab.Hydrogen, users[0], bed.Steady(0)), s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
	s.startCall(alice)
	pin, err := bed.Bridge().MakePIN(s.ctx, s.room.ID)
	s.must(err)
	s.dialed = time.Now()
	s.must(phone.Dial(s.ctx, lab.PINNumber))
	s.answered(phone)
	prompt := slices.Concat(sound.Open(sound.Options{}).Prompt("en", "conf-getpin")...)
	s.eventually("the phone has heard the prompt", 15*time.Second, func() bool {
		heard, err := phone.Heard() // there is no file at first
		if err != nil {
			return false
		}
		_, like := listen.Find(heard.PCM, prompt)
		return like > rightVoice
	})
	if n := len(s.ghosts()); n > 0 {
		t.Errorf("%d ghosts in the call before the PIN", n)
	}
	for _, key := range pin + "#" {
		s.must(phone.SendDigit(s.ctx, key))
		time.Sleep(100 * time.Millisecond)
	}
	s.allHearAll(phone, 15*time.Second)
}
