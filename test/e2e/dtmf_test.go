//go:build e2e

package e2e

import (
	"testing"
	"time"

	"trunkline/test/lab"
)

// A js-sdk user presses keys; the browser sends them as RTP events (RFC 4733), and so does the bridge to the phone.
func TestKeysPressedInJSSDKReachThePhone(t *testing.T) {
	s, users := newScene(t, lab.RoomOptions{}, "alice")
	alice, phone := s.pageSaying(lab.JSSDK, users[0], bed.Steady(0)), s.phoneSaying("desk", bed.Steady(2), lab.PhoneOptions{})
	s.startCall(alice)
	s.dial(phone)
	s.allHearAll(phone, 10*time.Second)
	const pressed = "15#*0"
	began := time.Now()
	for _, key := range pressed {
		s.must(alice.PressDigit(s.ctx, key))
		time.Sleep(400 * time.Millisecond)
	}
	arrived := ""
	s.eventually("all keys have reached the phone", 5*time.Second, func() bool {
		arrived = ""
		for _, ev := range phone.Events() {
			if ev.Type == lab.CallDigit && ev.At.After(began) {
				arrived += ev.Param
			}
		}
		return len(arrived) >= len(pressed)
	})
	time.Sleep(500 * time.Millisecond) // for one that comes twice
	if arrived != pressed {
		t.Errorf("the phone got %q, want %q", arrived, pressed)
	}
	s.noGapAt(alice, began, phone)
}
