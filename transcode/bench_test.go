package transcode_test

import (
	"slices"
	"testing"
	"time"

	"github.com/pion/rtp"
	"gopkg.in/hraban/opus.v2"

	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

// treadmill is a conference that runs for ever on the same packets, their headers counted up in place.
type treadmill struct {
	desk    *transcode.Desk
	now     time.Time
	phones  []*transcode.Phone
	devices []*transcode.Device
	voice   [][]*rtp.Packet // of each phone
	clocks  []int           // RTP ticks in its frame
	mic     []*rtp.Packet
	n       int
}

type nowhere struct{ phone, peers int }

func (s *nowhere) ToPhone(*transcode.Phone, *rtp.Packet) { s.phone++ }
func (s *nowhere) ToPeers(*transcode.Phone, *rtp.Packet) { s.peers++ }

func newTreadmill(tb testing.TB, phones, devices int, o opusPackets) *treadmill {
	tb.Helper()
	return newTreadmillOf(tb, slices.Repeat([]transcode.Codec{transcode.PCMA}, phones), devices, o)
}

func newTreadmillOf(tb testing.TB, phones []transcode.Codec, devices int, o opusPackets) *treadmill {
	tb.Helper()
	desk, err := transcode.NewDesk(transcode.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	m := &treadmill{desk: desk, now: time.Unix(0, 0)}
	for _, codec := range phones {
		p, err := desk.AddPhone(transcode.PhoneConfig{Codec: codec, PayloadType: payloadTypes[codec]})
		if err != nil {
			tb.Fatal(err)
		}
		m.phones = append(m.phones, p)
		m.clocks = append(m.clocks, map[bool]int{false: 160, true: 960}[codec == transcode.Opus])
		m.voice = append(m.voice, packPhone(tb, codec, said(speech.Bob, rateOf(codec)), frame))
	}
	for range devices {
		d, err := desk.AddDevice()
		if err != nil {
			tb.Fatal(err)
		}
		m.devices = append(m.devices, d)
	}
	m.mic = o.pack(tb, said(speech.Alice, 48000))
	return m
}

// step is one frame: a packet from each phone, a packet from each device for each ghost, a tick.
func (m *treadmill) step(out transcode.Sink) {
	mic := m.mic[m.n%len(m.mic)]
	mic.SequenceNumber, mic.Timestamp = uint16(m.n), uint32(m.n*960)
	for i, p := range m.phones {
		voice := m.voice[i][m.n%len(m.voice[i])]
		voice.SequenceNumber, voice.Timestamp = uint16(m.n), uint32(m.n*m.clocks[i])
		m.desk.FromPhone(p, voice, m.now)
		for _, d := range m.devices {
			m.desk.FromPeer(d, p, mic, m.now)
		}
	}
	m.n++
	m.now = m.now.Add(frame)
	m.desk.Tick(m.now, out)
}

func TestFramesAreMadeWithoutAllocating(t *testing.T) {
	for _, phones := range [][]transcode.Codec{{transcode.PCMA, transcode.PCMA, transcode.PCMA}, allCodecs} {
		m, out := newTreadmillOf(t, phones, 2, opusPackets{fec: true}), &nowhere{}
		for range 600 {
			m.step(out)
		}
		if got := testing.AllocsPerRun(1000, func() { m.step(out) }); got != 0 {
			t.Errorf("%v: %v allocations a frame, want 0", phones, got)
		}
		if s := m.devices[0].Stats().In; s.Concealed > 0 || out.peers == 0 || s.Packets == 0 {
			t.Errorf("%v: %+v, %+v: the frames measured were no sound", phones, s, out)
		}
	}
}

// BenchmarkCall reports what a phone costs in each 20 ms: decode, mix, encode, jitter buffers. The unit is the ratio to
// decoding one frame a browser sends at 8 kHz in the same process, because machines and neighbours differ.
func BenchmarkCall(b *testing.B) {
	for _, c := range []struct {
		name    string
		phones  []transcode.Codec
		devices int
		opus    opusPackets
	}{
		{"1phone1device", allCodecs[1:2], 1, opusPackets{fec: true}},
		{"1phone1deviceNarrow", allCodecs[1:2], 1, opusPackets{rate: 8000, bitrate: 24000, fec: true}},
		{"4phones3devices", slices.Repeat(allCodecs[1:2], 4), 3, opusPackets{fec: true}},
		{"2phonesAlone", slices.Repeat(allCodecs[1:2], 2), 0, opusPackets{}},
		{"1phone1deviceG722", []transcode.Codec{transcode.G722}, 1, opusPackets{fec: true}},
		{"1phone1deviceOpus", []transcode.Codec{transcode.Opus}, 1, opusPackets{fec: true}},
		{"mixed4phones3devices", allCodecs, 3, opusPackets{fec: true}},
	} {
		b.Run(c.name, func(b *testing.B) {
			if c.opus.rate == 8000 {
				c.opus.rate = 0 // the treadmill's sound is at 48 kHz; the bit rate alone makes it narrow enough
				c.opus.bitrate = 12000
			}
			m, out := newTreadmillOf(b, c.phones, c.devices, c.opus), &nowhere{}
			for range 100 {
				m.step(out)
			}
			unit := calibrate(b)
			b.ReportAllocs()
			for b.Loop() {
				m.step(out)
			}
			perCall := float64(b.Elapsed().Nanoseconds()) / float64(b.N) / float64(len(c.phones))
			b.ReportMetric(perCall, "ns/call-frame")
			b.ReportMetric(perCall/unit, "decodes/call-frame")
			b.ReportMetric(20e6/perCall, "calls/core")
		})
	}
}

// calibrate is what one decode of a browser's frame at 8 kHz takes here and now, in ns.
func calibrate(tb testing.TB) float64 {
	tb.Helper()
	packets := opusPackets{fec: true}.pack(tb, said(speech.Alice, 48000))
	dec, err := opus.NewDecoder(8000, 1)
	if err != nil {
		tb.Fatal(err)
	}
	pcm := make([]int16, 160)
	start := time.Now()
	for range 3 {
		for _, p := range packets {
			if _, err := dec.Decode(p.Payload, pcm); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return float64(time.Since(start).Nanoseconds()) / float64(3*len(packets))
}

// BenchmarkTickSilent is a desk where nobody speaks.
func BenchmarkTickSilent(b *testing.B) {
	m, out := newTreadmill(b, 4, 0, opusPackets{}), &nowhere{}
	b.ReportAllocs()
	for b.Loop() {
		m.now = m.now.Add(frame)
		m.desk.Tick(m.now, out)
	}
}

// BenchmarkStandbyCopy is a packet of a copy that is not played.
func BenchmarkStandbyCopy(b *testing.B) {
	m, out := newTreadmill(b, 2, 1, opusPackets{}), &nowhere{}
	for range 100 {
		m.step(out)
	}
	pkt := *m.mic[0]
	b.ReportAllocs()
	n := m.n
	for b.Loop() {
		n++
		pkt.SequenceNumber, pkt.Timestamp = uint16(n), uint32(n*960)
		m.now = m.now.Add(frame)
		m.desk.FromPeer(m.devices[0], m.phones[0], &pkt, m.now)
	}
}
