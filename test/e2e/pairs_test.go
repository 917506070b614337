//go:build e2e

package e2e

import (
	"testing"

	"trunkline/test/lab"
)

// Every pair of clients meets with the phone in the middle. hydrogen takes only olm, matrix-js-sdk 43 sends only plain:
// they cannot hear each other, and the phone is in a call with both.
func TestPhoneHearsAndIsHeardByEveryPairOfClients(t *testing.T) {
	plain, encrypted := lab.RoomOptions{}, lab.RoomOptions{Encrypted: true}
	for _, pair := range []struct {
		name    string
		room    lab.RoomOptions
		clients []lab.Kind
		deaf    bool // each to the other, which is judged
	}{
		{"js-sdk 36", plain, []lab.Kind{lab.JSSDK36}, false},
		{"hydrogen and js-sdk 36", plain, []lab.Kind{lab.Hydrogen, lab.JSSDK36}, false},
		{"hydrogen and js-sdk 43", plain, []lab.Kind{lab.Hydrogen, lab.JSSDK}, true},
		{"hydrogen and js-sdk 43 in an encrypted room", encrypted, []lab.Kind{lab.Hydrogen, lab.JSSDKRust}, false},
		{"js-sdk 36 and js-sdk 43 in an encrypted room", encrypted, []lab.Kind{lab.JSSDK36, lab.JSSDKRust}, false},
	} {
		t.Run(pair.name, func(t *testing.T) {
			s, users := newScene(t, pair.room, []string{"alice", "bob"}[:len(pair.clients)]...)
			phone := s.phone("desk", lab.PhoneOptions{})
			for i, kind := range pair.clients {
				s.page(kind, users[i])
			}
			s.startCall(s.pages[0])
			for _, c := range s.pages[1:] {
				s.joinCall(c)
			}
			s.dial(phone)
			s.listen(1)
			var said []lab.Saying
			for _, c := range s.pages {
				s.clientHears(c, phone.Saying())
				said = append(said, s.said(c))
			}
			s.phoneHears(phone, said...)
			if pair.deaf {
				s.clientDoesNotHear(s.pages[0], said[1])
				s.clientDoesNotHear(s.pages[1], said[0])
			}
		})
	}
}
