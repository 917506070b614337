package transcode_test

import (
	"slices"
	"testing"
	"time"

	"github.com/pion/rtp"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

// copies sends one microphone to two ghosts, as a device does: the same sound, other numbers.
func copies(t *testing.T, first, second func(i int) bool) (*bed, []*transcode.Phone, *transcode.Device, []*rtp.Packet) {
	t.Helper()
	b := newBed(t, transcode.Options{})
	phones := []*transcode.Phone{b.phone(transcode.PCMU), b.phone(transcode.PCMU)}
	device := b.device()
	sent := opusPackets{}.pack(t, said(speech.Alice, 48000))
	for k, keep := range []func(int) bool{first, second} {
		var packets []*rtp.Packet
		for i, p := range sent {
			q := *p
			q.SSRC += uint32(k)
			q.SequenceNumber += uint16(k * 12345)
			q.Timestamp += uint32(k * 987654321)
			packets = append(packets, &q)
			if !keep(i) {
				packets[i] = nil
			}
		}
		delay := time.Duration(10+5*k) * time.Millisecond
		b.send(link{seed: uint64(k), delay: delay, jitter: 5 * time.Millisecond}, packets, frame, b.toPeerSide(device, phones[k]))
	}
	return b, phones, device, sent
}

func TestAnotherCopyIsPlayedWhenOneStarves(t *testing.T) {
	b, phones, device, sent := copies(t,
		func(i int) bool { return i < 200 || i >= 400 },
		func(i int) bool { return i < 500 })
	b.run(talk)
	s := device.Stats()
	t.Logf("%+v", s)
	if s.FailOver != 2 || s.In.Concealed > 6 || s.Copies != 2 {
		t.Errorf("%+v, want two changes and at most six frames concealed", s)
	}
	for _, p := range phones {
		b.same("both phones", b.heard[p].phone, decoded(t, sent), 8000, 0.98)
		if gaps := listen.Gaps(b.heard[p].phone[8000:], 8000, 8, 520*time.Millisecond); len(gaps) > 0 {
			t.Errorf("gaps %v", gaps)
		}
	}
}

// Routers with a queue for each flow send what waited flow by flow; that must not make the desk change to and fro.
func TestBunchesOfCopiesDoNotChangeTheChoice(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phones := []*transcode.Phone{b.phone(transcode.PCMU), b.phone(transcode.PCMU)}
	device := b.device()
	sent := opusPackets{}.pack(t, said(speech.Alice, 48000))
	for k, p := range phones {
		deliver := b.toPeerSide(device, p)
		for i, pkt := range renumber(sent, k) {
			at := b.now.Add(time.Duration(i/5+1) * 100 * time.Millisecond).Add(time.Duration(k) * time.Millisecond)
			b.flight = append(b.flight, arrival{at, pkt, deliver})
		}
	}
	slices.SortStableFunc(b.flight, func(x, y arrival) int { return x.at.Compare(y.at) })
	b.run(talk)
	s := device.Stats()
	t.Logf("%+v", s)
	if s.FailOver > 0 {
		t.Errorf("%+v, want no change", s)
	}
	b.same("phone", b.heard[phones[0]].phone, decoded(t, sent), 8000, 0.95)
}

func TestCopyWithLessLossIsChosen(t *testing.T) {
	b, phones, device, sent := copies(t, func(i int) bool { return i%5 != 1 }, func(int) bool { return true })
	b.run(talk)
	s := device.Stats()
	t.Logf("%+v", s)
	if s.FailOver != 1 {
		t.Errorf("%+v, want one change", s)
	}
	tail := b.heard[phones[0]].phone[7*8000:]
	b.same("after the change", tail, decoded(t, sent), 8000, 0.99)
}

func TestAnotherCopyIsPlayedWhenOneIsDropped(t *testing.T) {
	b, phones, device, sent := copies(t, func(int) bool { return true }, func(int) bool { return true })
	b.run(5 * time.Second)
	b.desk.DropCopy(device, phones[0])
	b.flight = nil
	b.send(link{delay: 10 * time.Millisecond}, renumber(sent[250:], 1), frame, b.toPeerSide(device, phones[1]))
	b.run(5 * time.Second)
	if s := device.Stats(); s.Copies != 1 || s.FailOver != 1 {
		t.Errorf("%+v, want one copy left and one change", s)
	}
	b.same("the other copy", b.heard[phones[0]].phone[6*8000:], decoded(t, sent), 8000, 0.98)
	b.desk.DropPhone(phones[1])
	if s := device.Stats(); s.Copies != 0 || s.In.Packets < 700 {
		t.Errorf("%+v, want no copy left and its packets still counted", s)
	}
	b.run(time.Second)
}

func renumber(packets []*rtp.Packet, k int) []*rtp.Packet {
	var out []*rtp.Packet
	for _, p := range packets {
		q := *p
		q.SSRC += uint32(k)
		q.SequenceNumber += uint16(k * 12345)
		q.Timestamp += uint32(k * 987654321)
		out = append(out, &q)
	}
	return out
}
