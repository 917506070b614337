package transcode_test

import (
	"testing"
	"time"

	"github.com/pion/rtp"

	"trunkline/internal/testbed/listen"
	"trunkline/transcode"
)

func TestSourceThatChangesIsHeardOn(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(i int, h *rtp.Header) // from packet 100 on
		lost   time.Duration              // silence at most
	}{
		{"new SSRC", func(_ int, h *rtp.Header) { h.SSRC = 7; h.SequenceNumber += 20000; h.Timestamp += 1 << 30 }, 150 * time.Millisecond},
		{"new SSRC, numbers go on", func(_ int, h *rtp.Header) { h.SSRC = 7 }, 150 * time.Millisecond},
		{"sequence restarts", func(_ int, h *rtp.Header) { h.SequenceNumber += 30000 }, 100 * time.Millisecond},
		{"sequence steps back a little", func(_ int, h *rtp.Header) { h.SequenceNumber -= 40 }, 200 * time.Millisecond},
		{"timestamp jumps far ahead", func(_ int, h *rtp.Header) { h.Timestamp += 1 << 28 }, 100 * time.Millisecond},
		{"timestamp jumps far back", func(_ int, h *rtp.Header) { h.Timestamp -= 1 << 28 }, 100 * time.Millisecond},
		{"timestamp jumps 300ms ahead", func(_ int, h *rtp.Header) { h.Timestamp += 2400 }, 100 * time.Millisecond},
		{"timestamp jumps 300ms back", func(_ int, h *rtp.Header) { h.Timestamp -= 2400 }, 200 * time.Millisecond},
		{"timestamp starts at zero", func(i int, h *rtp.Header) { h.Timestamp = uint32(i-100) * 160 }, 150 * time.Millisecond},
		{"one timestamp is nonsense", func(i int, h *rtp.Header) {
			if i == 120 {
				h.Timestamp = 0xDEAD
			}
		}, 30 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t, transcode.Options{})
			phone, other := b.phone(transcode.PCMU), b.phone(transcode.PCMU)
			packets := g711(transcode.PCMU, listen.Sine(8000, 425, -20, 4*time.Second), frame)
			for i := 100; i < len(packets); i++ {
				c.change(i, &packets[i].Header)
			}
			b.send(link{delay: 5 * time.Millisecond, jitter: 2 * time.Millisecond}, packets, frame, b.toPhoneSide(phone))
			b.run(4 * time.Second)
			s := phone.Stats()
			t.Logf("%+v", s)
			pcm := b.heard[other].phone
			if got := listen.Tone(pcm[3*8000:31*800], 8000, 425); got < -21 || got > -19 {
				t.Errorf("a second later the tone is heard at %.1f dB, want -20 within 1", got)
			}
			var silence time.Duration
			for _, g := range listen.Gaps(pcm, 8000, 100, 5*time.Millisecond) {
				silence += g.Length
			}
			if silence > c.lost {
				t.Errorf("%v of silence, want at most %v", silence, c.lost)
			}
			if s.Delay.Held > 60*time.Millisecond {
				t.Errorf("delay is %v in the end, want at most 60ms", s.Delay.Held)
			}
		})
	}
}

// Someone who sends RTP to our port while the phone is being heard must not be able to take its place.
func TestSecondSourceDoesNotDisplaceTheFirst(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone, other := b.phone(transcode.PCMU), b.phone(transcode.PCMU)
	b.send(link{delay: 5 * time.Millisecond}, g711(transcode.PCMU, listen.Sine(8000, 425, -20, 3*time.Second), frame), frame, b.toPhoneSide(phone))
	stranger := g711(transcode.PCMU, listen.Sine(8000, 1500, -20, 3*time.Second), frame)
	for _, p := range stranger {
		p.SSRC = 0xBAD
	}
	b.send(link{delay: 13 * time.Millisecond}, stranger, frame, b.toPhoneSide(phone))
	b.run(2900 * time.Millisecond)
	pcm := b.heard[other].phone[8000:]
	if a, s := listen.Tone(pcm, 8000, 425), listen.Tone(pcm, 8000, 1500); a < -21 || s > -60 {
		t.Errorf("phone at %.1f dB, stranger at %.1f dB; want the phone alone", a, s)
	}
	if s := phone.Stats().In; s.Stray < 100 || s.Lost > 0 {
		t.Errorf("%+v, want the stranger's packets counted as stray", s)
	}
}

func TestPhoneMayChangeTheLaw(t *testing.T) {
	b := newBed(t, transcode.Options{})
	phone, other := b.phone(transcode.PCMU), b.phone(transcode.PCMU)
	tone := listen.Sine(8000, 425, -20, 2*time.Second)
	packets := append(g711(transcode.PCMU, tone, frame)[:50], g711(transcode.PCMA, tone, frame)[50:]...)
	b.send(link{delay: 5 * time.Millisecond}, packets, frame, b.toPhoneSide(phone))
	b.run(1900 * time.Millisecond)
	pcm := b.heard[other].phone
	if got := listen.Tone(pcm[12*800:18*800], 8000, 425); got < -21 || got > -19 {
		t.Errorf("A-law from a µ-law phone sounds at %.1f dB, want -20 within 1", got)
	}
}

// headers keeps the last header of each stream of one phone.
type headers struct{ phone, peers rtp.Header }

func (h *headers) ToPhone(_ *transcode.Phone, pkt *rtp.Packet) { h.phone = pkt.Header }
func (h *headers) ToPeers(_ *transcode.Phone, pkt *rtp.Packet) { h.peers = pkt.Header }

func TestStreamsGoOnAtAnotherDesk(t *testing.T) {
	config := transcode.PhoneConfig{
		SSRC: 1, FirstSeq: 65534, FirstTimestamp: 1<<32 - 200, PeerSSRC: 2, PeerFirstSeq: 65535, PeerFirstTimestamp: 1<<32 - 1000,
	}
	now := time.Unix(1_000_000, 0)
	var last headers
	for desk := range 3 {
		d, err := transcode.NewDesk(transcode.Options{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := d.AddPhone(config)
		if err != nil {
			t.Fatal(err)
		}
		if desk == 1 { // taken away before it was played
			if config = p.Next(); config.FirstSeq != last.phone.SequenceNumber+1 {
				t.Errorf("a desk that was not played turns sequence number %d into %d", last.phone.SequenceNumber, config.FirstSeq)
			}
			continue
		}
		before := last
		for i := range 45 { // the peers get a sign of life in the 1st, 21st and 41st
			d.Tick(now, &last)
			now = now.Add(transcode.FrameDuration)
			if desk == 0 || i > 0 {
				continue
			}
			if h := last.phone; h.SSRC != 1 || h.SequenceNumber != before.phone.SequenceNumber+1 || h.Timestamp != before.phone.Timestamp+160 {
				t.Errorf("to the phone %+v follows %+v", h, before.phone)
			}
			if h := last.peers; h.SSRC != 2 || h.SequenceNumber != before.peers.SequenceNumber+1 || h.Timestamp != before.peers.Timestamp+5*960 {
				t.Errorf("to the peers %+v follows %+v", h, before.peers)
			}
		}
		config = p.Next()
	}
}

// A loop that was held up leaves frames out. What it sends then is not late for ever: its time is that of its frame.
func TestTimeGoesOnWhereFramesAreLeftOut(t *testing.T) {
	for codec, clock := range map[transcode.Codec]uint32{transcode.PCMA: 8, transcode.G722: 8, transcode.Opus: 48} {
		t.Run(codec.String(), func(t *testing.T) {
			d, err := transcode.NewDesk(transcode.Options{})
			if err != nil {
				t.Fatal(err)
			}
			now := time.Unix(1_000_000, 0)
			var last headers
			d.Tick(now, &last) // nobody is there yet
			now = now.Add(time.Minute)
			p, err := d.AddPhone(transcode.PhoneConfig{Codec: codec, FirstSeq: 7, FirstTimestamp: 1<<32 - 100, PeerFirstTimestamp: 1<<32 - 1000})
			if err != nil {
				t.Fatal(err)
			}
			d.Tick(now, &last)
			first := last
			if first.phone.Timestamp != 1<<32-100 || !first.phone.Marker || first.peers.Timestamp != 1<<32-1000 {
				t.Errorf("the streams begin with %+v", first)
			}
			for i, ms := range []uint32{20, 320, 340} { // after the first
				d.Tick(now.Add(time.Duration(ms)*time.Millisecond), &last)
				h := last.phone
				if h.SequenceNumber != 8+uint16(i) || h.Timestamp != first.phone.Timestamp+clock*ms || h.Marker != (ms == 320) {
					t.Errorf("after %d ms the phone is sent %+v, the first was %+v", ms, h, first.phone)
				}
			}
			if next, want := p.Next(), first.peers.Timestamp+48*360; next.PeerFirstTimestamp != want || next.FirstTimestamp != first.phone.Timestamp+clock*360 {
				t.Errorf("streams go on with %+v, want the peers' with %d", next, want)
			}
		})
	}
}
