package transcode_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtp"
	"gopkg.in/hraban/opus.v2"

	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

// bed is a desk, a network and a clock.
type bed struct {
	t      testing.TB
	desk   *transcode.Desk
	now    time.Time
	flight []arrival
	heard  map[*transcode.Phone]*earpiece
	ticks  int
}

// arrival is a packet on its way.
type arrival struct {
	at      time.Time
	pkt     *rtp.Packet
	deliver func(*rtp.Packet, time.Time)
}

// earpiece collects what a phone and its peers hear.
type earpiece struct {
	t       testing.TB
	rate    int // of phone and peers: 16000 for wide-band phones
	codec   transcode.Codec
	ptime   int
	opus    *opus.Decoder
	phone   []int16
	coded   []byte // the payloads whence phone is, of G.722
	last    rtp.Header
	step    uint32 // from the last packet's timestamp to the next one's
	n       int
	peers   []int16 // pauses filled with zeros
	decoder *opus.Decoder
	first   uint32
	sent    []rtp.Header
	sizes   []int
	fec     []bool // SILK with the LBRR flag set
}

func newBed(t testing.TB, o transcode.Options) *bed {
	t.Helper()
	desk, err := transcode.NewDesk(o)
	if err != nil {
		t.Fatal(err)
	}
	return &bed{t: t, desk: desk, now: time.Unix(1_000_000, 0), heard: map[*transcode.Phone]*earpiece{}}
}

// payloadTypes are those of RFC 3551, and one for Opus.
var payloadTypes = map[transcode.Codec]uint8{transcode.PCMA: 8, transcode.G722: 9, transcode.Opus: 107}

func (b *bed) phone(codec transcode.Codec) *transcode.Phone {
	b.t.Helper()
	return b.phoneWith(transcode.PhoneConfig{Codec: codec})
}

func (b *bed) phoneWith(c transcode.PhoneConfig) *transcode.Phone {
	b.t.Helper()
	p, err := b.desk.AddPhone(transcode.PhoneConfig{
		Codec: c.Codec, PayloadType: payloadTypes[c.Codec], Ptime: c.Ptime, InBandDigits: c.InBandDigits, SSRC: 0x1000, FirstSeq: 65530, FirstTimestamp: 1<<32 - 100,
		PeerPayloadType: 111, PeerSSRC: 0x2000, PeerFirstSeq: 65530, PeerFirstTimestamp: 1<<32 - 5000,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	e := &earpiece{t: b.t, rate: 8000, first: 1<<32 - 5000}
	if c.Codec > transcode.PCMA {
		e.rate = 16000
	}
	if e.decoder, err = opus.NewDecoder(e.rate, 1); err != nil {
		b.t.Fatal(err)
	}
	if e.opus, err = opus.NewDecoder(16000, 1); err != nil {
		b.t.Fatal(err)
	}
	e.agree(c.Codec, c.Ptime)
	b.heard[p] = e
	return p
}

func (b *bed) device() *transcode.Device {
	b.t.Helper()
	d, err := b.desk.AddDevice()
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

// send puts packets into the network.
func (b *bed) send(link link, packets []*rtp.Packet, ptime time.Duration, deliver func(*rtp.Packet, time.Time)) {
	link.start(b.now)
	for i, pkt := range packets {
		if pkt == nil {
			continue
		}
		for _, at := range link.carry(i, b.now.Add(time.Duration(i+1)*ptime)) {
			b.flight = append(b.flight, arrival{at, pkt, deliver})
		}
	}
	slices.SortStableFunc(b.flight, func(x, y arrival) int { return x.at.Compare(y.at) })
}

func (b *bed) toPhoneSide(p *transcode.Phone) func(*rtp.Packet, time.Time) {
	return func(pkt *rtp.Packet, now time.Time) { b.desk.FromPhone(p, pkt, now) }
}

func (b *bed) toPeerSide(d *transcode.Device, via *transcode.Phone) func(*rtp.Packet, time.Time) {
	return func(pkt *rtp.Packet, now time.Time) { b.desk.FromPeer(d, via, pkt, now) }
}

// run lets time pass. Ticks fall 7 ms after the senders' frames.
func (b *bed) run(d time.Duration) {
	for end := b.now.Add(d); b.now.Before(end); {
		next := b.now.Add(transcode.FrameDuration)
		deadline := b.now.Add(7 * time.Millisecond)
		b.deliver(deadline)
		b.desk.Tick(deadline, b)
		b.ticks++
		b.deliver(next)
		b.now = next
	}
}

func (b *bed) deliver(until time.Time) {
	n := 0
	for ; n < len(b.flight) && !b.flight[n].at.After(until); n++ {
		a := b.flight[n]
		a.deliver(a.pkt, a.at)
	}
	b.flight = b.flight[n:]
}

func (b *bed) ToPhone(p *transcode.Phone, pkt *rtp.Packet) { b.heard[p].hearPhone(pkt) }
func (b *bed) ToPeers(p *transcode.Phone, pkt *rtp.Packet) { b.heard[p].hearPeers(pkt) }

// agree says what the phone expects.
func (e *earpiece) agree(codec transcode.Codec, ptime int) {
	e.codec, e.ptime, e.coded = codec, cmp.Or(ptime, 20), nil
}

func (e *earpiece) hearPhone(pkt *rtp.Packet) {
	if e.codec != transcode.Opus && len(pkt.Payload) != 8*e.ptime {
		e.t.Fatalf("packet to the phone has %d bytes, want %d", len(pkt.Payload), 8*e.ptime)
	}
	if pkt.PayloadType != payloadTypes[e.codec] {
		e.t.Fatalf("packet to the phone has payload type %d, want that of %v", pkt.PayloadType, e.codec)
	}
	if e.n > 0 && (pkt.SequenceNumber != e.last.SequenceNumber+1 || pkt.Timestamp != e.last.Timestamp+e.step || pkt.Marker) {
		e.t.Fatalf("packet to the phone %v does not follow %v", pkt.Header, e.last)
	}
	e.n++
	e.last = pkt.Header
	if e.step = uint32(8 * e.ptime); e.codec == transcode.Opus {
		e.step *= 6
	}
	switch e.codec {
	case transcode.Opus:
		pcm := make([]int16, 5760)
		n, err := e.opus.Decode(pkt.Payload, pcm)
		if err != nil || n != 16*e.ptime {
			e.t.Fatalf("packet to the phone has %d samples, want %d: %v", n, 16*e.ptime, err)
		}
		e.phone = append(e.phone, pcm[:n]...)
	case transcode.G722:
		e.coded = append(e.coded, pkt.Payload...)
	default:
		for _, x := range pkt.Payload {
			e.phone = append(e.phone, laws[e.codec](x))
		}
	}
}

// pcm is what the phone has heard.
func (e *earpiece) pcm() []int16 {
	return slices.Concat(e.phone, transcode.DecodeG722(e.coded))
}

func (e *earpiece) hearPeers(pkt *rtp.Packet) {
	at := int(pkt.Timestamp-e.first) * e.rate / 48000
	if len(e.sent) > 0 && pkt.SequenceNumber != e.sent[len(e.sent)-1].SequenceNumber+1 {
		e.t.Fatalf("packet to peers %v does not follow %v", pkt.Header, e.sent[len(e.sent)-1])
	}
	e.sent = append(e.sent, pkt.Header)
	e.sizes = append(e.sizes, len(pkt.Payload))
	e.fec = append(e.fec, pkt.Payload[0]>>3 < 12 && len(pkt.Payload) > 2 && pkt.Payload[1]&0x40 != 0)
	if at < len(e.peers) {
		e.t.Fatalf("packet to peers at %d overlaps the one before, which ended at %d", at, len(e.peers))
	}
	e.peers = append(e.peers, make([]int16, at-len(e.peers))...)
	if len(pkt.Payload) <= 2 {
		return
	}
	pcm := make([]int16, 1920)
	n, err := e.decoder.Decode(pkt.Payload, pcm)
	if err != nil {
		e.t.Fatal(err)
	}
	e.peers = append(e.peers, pcm[:n]...)
}

// link is a path through a network, with a seed.
type link struct {
	seed    uint64
	delay   time.Duration
	jitter  time.Duration // uniform from zero
	loss    float64
	twice   float64 // duplicates
	ppm     float64 // of the sender's clock: positive is fast
	stall   time.Duration
	stallAt time.Duration
	ordered bool

	rng   *rand.Rand
	begun time.Time
	last  time.Time
}

func (l *link) start(now time.Time) {
	l.rng = rand.New(rand.NewPCG(l.seed, 1))
	l.begun = now
}

// carry returns when the packet arrives: never, once or twice.
func (l *link) carry(_ int, sent time.Time) []time.Time {
	age := sent.Sub(l.begun)
	at := l.begun.Add(time.Duration(float64(age) / (1 + l.ppm/1e6))).Add(l.delay)
	at = at.Add(time.Duration(l.rng.Float64() * float64(l.jitter)))
	lost, again := l.rng.Float64() < l.loss, l.rng.Float64() < l.twice
	if l.stall > 0 && age > l.stallAt && age < l.stallAt+l.stall {
		at = l.begun.Add(l.stallAt + l.stall + l.delay)
	}
	if l.ordered && at.Before(l.last) {
		at = l.last
	}
	l.last = at
	switch {
	case lost:
		return nil
	case again:
		return []time.Time{at, at.Add(time.Millisecond)}
	}
	return []time.Time{at}
}

// said is twelve seconds of a voice, made once.
func said(v speech.Voice, rate int) []int16 {
	key := fmt.Sprint(v.Name, rate)
	if pcm, ok := spoken.Load(key); ok {
		return pcm.([]int16)
	}
	pcm := v.PCM(rate, talk)
	spoken.Store(key, pcm)
	return pcm
}

var spoken sync.Map

func repeat(pcm []int16, n int) []int16 { return slices.Concat(slices.Repeat([][]int16{pcm}, n)...) }

// g711 packs sound as a phone does.
func g711(codec transcode.Codec, pcm []int16, ptime time.Duration) []*rtp.Packet {
	n := int(ptime * transcode.Rate / time.Second)
	var out []*rtp.Packet
	for i := 0; i+n <= len(pcm); i += n {
		pkt := &rtp.Packet{Header: rtp.Header{
			Version: 2, SSRC: 0xA, SequenceNumber: uint16(65500 + i/n), Timestamp: uint32(1<<32 - 8000 + i),
			PayloadType: uint8(codec) * 8, Marker: i == 0,
		}}
		for _, x := range pcm[i : i+n] {
			pkt.Payload = append(pkt.Payload, unlaw(codec, x))
		}
		out = append(out, pkt)
	}
	return out
}

// opusPackets says how a browser packs sound.
type opusPackets struct {
	rate, channels int
	ptime          time.Duration
	bitrate        int
	fec, dtx       bool
	ssrc           uint32
}

// pack returns packets of one's own: the encoder runs once for each sound.
func (o opusPackets) pack(t testing.TB, pcm []int16) []*rtp.Packet {
	t.Helper()
	key := fmt.Sprint(o, len(pcm), hash(pcm))
	packets, ok := packed.Load(key)
	if !ok {
		packets = o.encode(t, pcm)
		packed.Store(key, packets)
	}
	var out []*rtp.Packet
	for _, p := range packets.([]*rtp.Packet) {
		if p != nil {
			p = p.Clone()
		}
		out = append(out, p)
	}
	return out
}

var packed sync.Map

// hash is FNV-1a over samples.
func hash(pcm []int16) uint64 {
	h := uint64(14695981039346656037)
	for _, x := range pcm {
		h = (h ^ uint64(uint16(x))) * 1099511628211
	}
	return h
}

func (o opusPackets) encode(t testing.TB, pcm []int16) []*rtp.Packet {
	t.Helper()
	o.rate, o.channels = cmp.Or(o.rate, 48000), cmp.Or(o.channels, 1)
	o.ptime, o.bitrate = cmp.Or(o.ptime, 20*time.Millisecond), cmp.Or(o.bitrate, 32000)
	enc, err := opus.NewEncoder(o.rate, o.channels, opus.AppVoIP)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		enc.SetBitrate(o.bitrate), enc.SetComplexity(5), enc.SetInBandFEC(o.fec), enc.SetDTX(o.dtx), enc.SetPacketLossPerc(map[bool]int{true: 20}[o.fec]),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	n := int(o.ptime * time.Duration(o.rate) / time.Second)
	var out []*rtp.Packet
	seq, resting := uint16(65000), false
	for i := 0; i+n <= len(pcm); i += n {
		frame := pcm[i : i+n]
		if o.channels == 2 {
			var both []int16
			for _, x := range frame {
				both = append(both, x, x)
			}
			frame = both
		}
		data := make([]byte, 1500)
		size, err := enc.Encode(frame, data)
		if err != nil {
			t.Fatal(err)
		}
		if size <= 2 && resting { // as libwebrtc: the first packet of a pause goes out, the others do not
			out = append(out, nil)
			continue
		}
		resting = size <= 2
		out = append(out, &rtp.Packet{Payload: data[:size], Header: rtp.Header{
			Version: 2, SSRC: o.ssrc, SequenceNumber: seq, PayloadType: 111,
			Timestamp: 1<<32 - 90000 + uint32(i*48000/o.rate), Marker: i == 0,
		}})
		seq++
	}
	return out
}

// The tests' own G.711, by search: slow and obviously right.

var laws = map[transcode.Codec]func(byte) int16{transcode.PCMU: ulaw, transcode.PCMA: alaw}

func ulaw(b byte) int16 {
	b = ^b
	x := ((int(b&15)*2 + 33) << (b >> 4 & 7)) - 33
	if b&128 != 0 {
		x = -x
	}
	return int16(x * 4)
}

func alaw(b byte) int16 {
	b ^= 0x55
	chord, step := b>>4&7, int(b&15)
	x := step*2 + 1
	if chord > 0 {
		x = (step*2 + 33) << (chord - 1)
	}
	if b&128 == 0 {
		x = -x
	}
	return int16(x * 8)
}

var nearest = map[transcode.Codec]*[65536]byte{transcode.PCMU: search(ulaw), transcode.PCMA: search(alaw)}

func unlaw(c transcode.Codec, x int16) byte { return nearest[c][uint16(x)] }

func search(law func(byte) int16) *[65536]byte {
	order := make([]byte, 256)
	for i := range order {
		order[i] = byte(i)
	}
	slices.SortFunc(order, func(a, b byte) int { return int(law(a)) - int(law(b)) })
	table, k := new([65536]byte), 0
	for x := -32768; x <= 32767; x++ {
		for k < 255 && abs(int(law(order[k+1]))-x) <= abs(int(law(order[k]))-x) {
			k++
		}
		table[uint16(int16(x))] = order[k]
	}
	return table
}

func abs(x int) int { return max(x, -x) }
