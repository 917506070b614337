package transcode_test

import (
	"testing"
	"time"

	"github.com/pion/rtp"

	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

const frame = 20 * time.Millisecond

// speakers is a conference of three phones and two devices, each sending a tone of its own.
type speakers struct {
	*bed
	phones  []*transcode.Phone
	devices []*transcode.Device
}

var (
	phoneTones  = []float64{400, 600, 900}
	deviceTones = []float64{1300, 1900}
)

func newSpeakers(t *testing.T, d time.Duration) speakers {
	s := speakers{bed: newBed(t, transcode.Options{})}
	for i, hz := range phoneTones {
		codec := transcode.Codec(i % 2)
		p := s.phone(codec)
		s.phones = append(s.phones, p)
		s.send(link{delay: 5 * time.Millisecond}, g711(codec, listen.Sine(8000, hz, -20, d), frame), frame, s.toPhoneSide(p))
	}
	for _, hz := range deviceTones {
		dev := s.device()
		s.devices = append(s.devices, dev)
		packets := opusPackets{bitrate: 64000}.pack(t, listen.Sine(48000, hz, -20, d))
		for _, p := range s.phones { // a full mesh: every ghost gets a copy
			s.send(link{delay: 5 * time.Millisecond}, packets, frame, s.toPeerSide(dev, p))
		}
	}
	return s
}

// hears checks which tones a phone hears, in the last second.
func (s speakers) hears(p *transcode.Phone, who string, want ...float64) {
	s.t.Helper()
	pcm := s.heard[p].phone
	pcm = pcm[max(0, len(pcm)-8000):]
	s.tones(pcm, 8000, who, want)
}

func (s speakers) tones(pcm []int16, rate int, who string, want []float64) {
	s.t.Helper()
	for _, hz := range append(phoneTones, deviceTones...) {
		got, wanted := listen.Tone(pcm, rate, hz), false
		for _, w := range want {
			wanted = wanted || w == hz
		}
		if wanted && (got < -21 || got > -19) {
			s.t.Errorf("%s hears %v Hz at %.1f dB, want -20 within 1", who, hz, got)
		}
		if !wanted && got > -50 {
			s.t.Errorf("%s hears %v Hz at %.1f dB, want nothing", who, hz, got)
		}
	}
}

func TestEachPhoneHearsAllButItself(t *testing.T) {
	s := newSpeakers(t, 3*time.Second)
	s.run(2900 * time.Millisecond)
	s.hears(s.phones[0], "phone 0", 600, 900, 1300, 1900)
	s.hears(s.phones[1], "phone 1", 400, 900, 1300, 1900)
	s.hears(s.phones[2], "phone 2", 400, 600, 1300, 1900)
	for i, p := range s.phones {
		peers := s.heard[p].peers
		s.tones(peers[len(peers)-8000:], 8000, "a peer of phone", phoneTones[i:i+1])
	}
	for _, d := range s.devices {
		if st := d.Stats(); st.Copies != 3 || st.FailOver != 0 || st.In.Bad+st.In.Lost > 0 || st.Level < -21 || st.Level > -19 {
			t.Errorf("device: %+v, want three copies, none lost, level -20", st)
		}
	}
}

func TestMutedOnesAreNotHeard(t *testing.T) {
	s := newSpeakers(t, 6*time.Second)
	s.phones[0].Mute(true)
	s.devices[0].Mute(true)
	s.run(1900 * time.Millisecond)
	s.hears(s.phones[1], "phone 1", 900, 1900)
	s.hears(s.phones[0], "the muted phone", 600, 900, 1900)
	if n := s.heard[s.phones[0]].sizes; len(n) > 7 || len(n) < 4 {
		t.Errorf("peers of a muted phone got %d packets in 1.9 s, want a sign of life every 400 ms", len(n))
	}
	s.phones[0].Mute(false)
	s.devices[0].Mute(false)
	s.run(2 * time.Second)
	s.hears(s.phones[1], "phone 1", 400, 900, 1300, 1900)
	s.phones[2].Mute(true)
	s.run(1500 * time.Millisecond)
	s.hears(s.phones[1], "phone 1", 400, 1300, 1900)
	if st := s.phones[2].Stats(); !st.Muted || st.Level != -127 {
		t.Errorf("muted phone: %+v, want muted and silent", st)
	}
}

func TestDroppedOnesAreGone(t *testing.T) {
	s := newSpeakers(t, 6*time.Second)
	s.run(time.Second)
	s.desk.DropPhone(s.phones[0])
	s.desk.DropPhone(s.phones[0])
	s.desk.DropDevice(s.devices[0])
	s.desk.DropDevice(s.devices[0])
	n := s.heard[s.phones[0]].n
	s.run(1500 * time.Millisecond)
	s.hears(s.phones[1], "phone 1", 900, 1900)
	if got := s.heard[s.phones[0]].n; got != n {
		t.Errorf("the dropped phone still gets packets: %d, want %d", got, n)
	}
	if st := s.desk.Stats(); st.Phones != 2 || st.Devices != 1 || st.Unknown == 0 {
		t.Errorf("Stats = %+v, want 2 phones, 1 device, and packets of dropped handles counted", st)
	}
	s.desk.DropCopy(s.devices[1], s.phones[0])
	s.desk.DropCopy(s.devices[0], s.phones[1])
	other, err := transcode.NewDesk(transcode.Options{})
	if err != nil {
		t.Fatal(err)
	}
	other.DropPhone(s.phones[1])
	other.FromPhone(s.phones[1], &rtp.Packet{}, s.now)
	other.FromPeer(s.devices[1], s.phones[1], &rtp.Packet{}, s.now)
	s.desk.FromPhone(nil, nil, s.now)
	s.desk.FromPeer(nil, nil, nil, s.now)
	if st := other.Stats(); st.Unknown != 2 {
		t.Errorf("another desk's Stats = %+v, want both packets of foreign handles counted", st)
	}
	p := s.phone(transcode.PCMU) // takes the dropped one's place
	s.run(time.Second)
	s.hears(p, "the new phone", 600, 900, 1900)
}

func TestPhoneAloneHearsDigitalSilence(t *testing.T) {
	for codec, want := range map[transcode.Codec]byte{transcode.PCMU: 0xFF, transcode.PCMA: 0xD5} {
		b := newBed(t, transcode.Options{})
		phone := b.phone(codec)
		b.send(link{}, g711(codec, said(speech.Bob, 8000), frame), frame, b.toPhoneSide(phone))
		b.run(time.Second)
		silence := laws[codec](want)
		for i, x := range b.heard[phone].phone {
			if x != silence {
				t.Fatalf("%v: sample %d is %d, want silence", codec, i, x)
			}
		}
		if b.heard[phone].n != 50 {
			t.Errorf("%v: %d packets in a second, want 50", codec, b.heard[phone].n)
		}
	}
}

func TestManyLoudSpeakersAreClippedNotWrapped(t *testing.T) {
	b := newBed(t, transcode.Options{})
	listener := b.phone(transcode.PCMU)
	tone := listen.Sine(8000, 500, -6, 2*time.Second)
	for range 4 {
		p := b.phone(transcode.PCMU)
		b.send(link{}, g711(transcode.PCMU, tone, frame), frame, b.toPhoneSide(p))
	}
	b.run(1900 * time.Millisecond)
	pcm := b.heard[listener].phone[8000:]
	if got := listen.Tone(pcm, 8000, 500); got < -3 || b.desk.Stats().Clipped == 0 {
		t.Errorf("four at -6 dB: %.1f dB, %+v, want a full-scale square and clipping counted", got, b.desk.Stats())
	}
	if n := listen.Jumps(pcm, 50000); n > 0 {
		t.Errorf("%d jumps from one end of the scale to the other, want none", n)
	}
}
