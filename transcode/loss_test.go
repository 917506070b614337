package transcode_test

import (
	"testing"
	"time"

	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

func TestPhoneIsEncodedWithFECWhilePeersReportLoss(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone := b.phone(transcode.PCMU)
	bob := repeat(said(speech.Bob, 8000), 3)
	b.send(link{delay: 5 * time.Millisecond}, g711(transcode.PCMU, bob, frame), frame, b.toPhoneSide(phone))
	report := func(loss float64) {
		if err := phone.PeerLoss(loss); err != nil {
			t.Fatal(err)
		}
	}
	report(0.02)
	b.run(4 * time.Second)
	if phone.Stats().PeerFEC {
		t.Error("FEC at 2 % loss")
	}
	report(0.1)
	b.run(4 * time.Second)
	if !phone.Stats().PeerFEC {
		t.Error("no FEC at 10 % loss")
	}
	report(0.02)
	b.run(12 * time.Second)
	if !phone.Stats().PeerFEC {
		t.Error("FEC ended although 2 % are still lost")
	}
	report(0)
	b.run(8 * time.Second)
	if !phone.Stats().PeerFEC {
		t.Error("FEC ended after 8 s without loss")
	}
	b.run(5 * time.Second)
	if phone.Stats().PeerFEC {
		t.Error("FEC goes on 13 s after the loss ended")
	}
	ear := b.heard[phone]
	with := 0
	for _, fec := range ear.fec[300:390] {
		if fec {
			with++
		}
	}
	if with < 45 {
		t.Errorf("%d of 90 packets carry FEC, want most", with)
	}
	// SILK is not wave-exact and adds 4 ms
	b.same("peers", ear.peers, bob, 8000, 0.85)
	b.same("peers at the end", ear.peers[31*8000:], bob, 8000, 0.98)
}
