package transcode_test

import (
	"math"
	"testing"
	"time"

	"github.com/pion/rtp"
	"gopkg.in/hraban/opus.v2"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

func TestPhoneHearsDeviceAndPeersHearPhone(t *testing.T) {
	for _, codec := range []transcode.Codec{transcode.PCMU, transcode.PCMA} {
		b := newBed(t, transcode.Options{})
		phone, device := b.phone(codec), b.device()
		alice, bob := speech.Alice.PCM(48000, 8*time.Second), speech.Bob.PCM(8000, 8*time.Second)
		sent := opusPackets{}.pack(t, alice)
		b.send(link{delay: 30 * time.Millisecond}, sent, 20*time.Millisecond, b.toPeerSide(device, phone))
		b.send(link{delay: 10 * time.Millisecond}, g711(codec, bob, 20*time.Millisecond), 20*time.Millisecond, b.toPhoneSide(phone))
		b.run(8 * time.Second)

		ear := b.heard[phone]
		b.same("phone", ear.phone, decoded(t, sent), 8000, 0.99)
		b.same("peers", ear.peers, bob, 8000, 0.99)
		if ear.n != b.ticks {
			t.Errorf("%d packets to the phone in %d ticks, want one each", ear.n, b.ticks)
		}
		if c := listen.Compare(ear.phone, bob, 8000); c.Correlation >= 0.16 {
			t.Errorf("the phone hears itself: %v", c)
		}
		t.Logf("%v: device %+v", codec, device.Stats())
		t.Logf("%v: phone %+v", codec, phone.Stats())
	}
}

// decoded is what the packets say without a network in between.
func decoded(t testing.TB, packets []*rtp.Packet) []int16 {
	t.Helper()
	dec, err := opus.NewDecoder(8000, 1)
	if err != nil {
		t.Fatal(err)
	}
	var out []int16
	first := packets[0].Timestamp
	for _, pkt := range packets {
		if pkt == nil {
			continue
		}
		out = append(out, make([]int16, max(0, int(pkt.Timestamp-first)/6-len(out)))...)
		pcm := make([]int16, 960)
		n, err := dec.Decode(pkt.Payload, pcm)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, pcm[:n]...)
	}
	return out
}

// same checks that the source was heard: alike, as loud, without gaps.
func (b *bed) same(who string, heard, source []int16, rate int, atLeast float64) listen.Match {
	b.t.Helper()
	m := listen.Compare(heard, source, rate)
	b.t.Logf("%s: %v", who, m)
	if m.Correlation < atLeast || math.Abs(m.Gain) > 1 {
		b.t.Errorf("%s: %v, want correlation above %v and level within 1 dB", who, m, atLeast)
	}
	return m
}
