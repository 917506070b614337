package phone

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"
)

// Rate is the sample rate of everything a phone plays and hears, WideRate that of a wide-band phone.
const (
	Rate     = 8000
	WideRate = 16000
)

const frame = 20 * time.Millisecond

// audio is the RTP socket of one call: a sender on an absolute 20 ms schedule and a recorder.
type audio struct {
	conn *net.UDPConn
	wg   sync.WaitGroup // send, receive
	stop chan struct{}  // closed with mu held

	mu       sync.Mutex
	started  time.Time
	codec    coder
	dtmf     uint8
	remote   netip.AddrPort // zero: do not send
	queue    []int16        // to be played
	keys     []byte         // to be pressed
	press    *press
	rec      recorder
	keypad   keypad
	sent     int
	received int
	arrived  time.Time     // the last packet
	pause    time.Duration // the longest between two
	idle     chan struct{} // closed when queue and keys are empty

	key     string        // ours, as it is written in a description; "" = nothing is encrypted
	out, in *srtp.Context // nil = in clear; in is nil, too, until the far end's key is known
	farKey  string
}

func openAudio(local netip.Addr) (*audio, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
	if err != nil {
		return nil, err
	}
	idle := make(chan struct{})
	close(idle)
	return &audio{conn: conn, stop: make(chan struct{}), idle: idle}, nil
}

// cryptoSuite is the one that a phone with SRTP speaks.
const cryptoSuite = "AES_CM_128_HMAC_SHA1_80"

// keyLength is that of master key and salt together, and of the key alone.
const (
	keyLength    = 30
	masterLength = 16
)

// encrypt makes a key. Nothing is sent in clear from then on.
func (a *audio) encrypt() error {
	own := make([]byte, keyLength)
	_, _ = rand.Read(own) // it never fails
	a.key = base64.StdEncoding.EncodeToString(own)
	var err error
	a.out, err = srtp.CreateContext(own[:masterLength], own[masterLength:], srtp.ProtectionProfileAes128CmHmacSha1_80)
	return err
}

// decrypt takes the far end's key from its line in a description. What was counted with the same key goes on.
func (a *audio) decrypt(line string) error {
	_, key, _ := strings.Cut(line, " inline:")
	key, _, _ = strings.Cut(key, "|")
	theirs, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(theirs) != keyLength || !strings.Contains(line, " "+cryptoSuite+" ") {
		return fmt.Errorf("no usable key: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if key == a.farKey {
		return nil
	}
	a.farKey = key
	a.in, err = srtp.CreateContext(theirs[:masterLength], theirs[masterLength:], srtp.ProtectionProfileAes128CmHmacSha1_80)
	return err
}

// beforeRollover is how many packets an encrypting phone sends before its sequence numbers begin anew and a count that no packet
// carries matters (RFC 3711 §3.3.1): less than two seconds' worth.
const beforeRollover = 90

func (a *audio) port() uint16 { return a.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// agree takes what was agreed on; called with mu held. A codec goes on that did not change.
func (a *audio) agree(c codec, dtmf uint8, remote netip.AddrPort) {
	if a.codec.name != c.name {
		var err error
		if a.codec, err = c.start(); err != nil {
			panic(err) // libopus has no memory left
		}
	}
	a.codec.pt = c.pt
	a.dtmf, a.remote = dtmf, remote
}

// start may meet close: a BYE comes when it likes.
func (a *audio) start(c codec, dtmf uint8, remote netip.AddrPort) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.agree(c, dtmf, remote)
	if !a.started.IsZero() || a.closed() {
		return
	}
	a.started = time.Now()
	a.rec.began, a.rec.rate = a.started, c.rate
	a.wg.Go(a.send)
	a.wg.Go(a.receive)
}

func (a *audio) closed() bool {
	select {
	case <-a.stop:
		return true
	default:
		return false
	}
}

func (a *audio) close() {
	a.mu.Lock() // so that nothing begins while it waits
	if !a.closed() {
		close(a.stop)
	}
	a.mu.Unlock()
	_ = a.conn.Close()
	a.wg.Wait()
}

// send puts one packet on the wire every 20 ms, whether there is something to say or not.
func (a *audio) send() {
	seq, ts, ssrc := uint16(time.Now().UnixNano()), uint32(0), uint32(time.Now().UnixNano()>>7)|1
	if a.out != nil {
		seq = -beforeRollover & 0xffff
	}
	next := a.started
	for {
		next = next.Add(frame)
		select {
		case <-a.stop:
			return
		case <-time.After(time.Until(next)): // absolute: lateness does not add up
		}
		a.mu.Lock()
		packets := a.nextPackets(ts)
		remote, step := a.remote, a.codec.frameTicks()
		a.mu.Unlock()
		for _, p := range packets {
			p.Version, p.SSRC, p.SequenceNumber = 2, ssrc, seq
			seq++
			b, err := p.Marshal()
			if err == nil && a.out != nil {
				b, err = a.out.EncryptRTP(nil, b, nil)
			}
			if err != nil || !remote.IsValid() {
				continue
			}
			if _, err := a.conn.WriteToUDPAddrPort(b, remote); err == nil {
				a.mu.Lock()
				a.sent++
				a.mu.Unlock()
			}
		}
		ts += step
	}
}

// press is one key going over the wire (RFC 4733): 100 ms, then three end packets, then a pause.
type press struct {
	event byte
	ts    uint32
	tick  int
}

const (
	pressTicks = 5 // 100 ms
	pauseTicks = 4 // between keys
)

// nextPackets is called with mu held; ts is the timestamp of this frame.
func (a *audio) nextPackets(ts uint32) []*rtp.Packet {
	defer a.signalIdle()
	if a.press == nil && len(a.keys) > 0 && a.dtmf != 0 {
		a.press = &press{event: a.keys[0], ts: ts}
		a.keys = a.keys[1:]
	}
	if p := a.press; p != nil {
		p.tick++
		switch {
		case p.tick <= pressTicks:
			return []*rtp.Packet{a.pressed(false, p.tick == 1)}
		case p.tick == pressTicks+1:
			return []*rtp.Packet{a.pressed(true, false), a.pressed(true, false), a.pressed(true, false)}
		case p.tick >= pressTicks+1+pauseTicks:
			a.press = nil
		}
	}
	pcm := make([]int16, a.codec.frameSamples())
	a.queue = a.queue[copy(pcm, a.queue):]
	return []*rtp.Packet{{Header: rtp.Header{PayloadType: a.codec.pt, Timestamp: ts}, Payload: a.codec.pack(pcm)}}
}

// pressed is the next packet of the key being pressed.
func (a *audio) pressed(end, marker bool) *rtp.Packet {
	p := a.press
	duration := min(p.tick, pressTicks+1) * int(a.codec.frameTicks())
	flags := byte(10) // volume −10 dBm0
	if end {
		flags |= 0x80
	}
	return &rtp.Packet{
		Header:  rtp.Header{PayloadType: a.dtmf, Timestamp: p.ts, Marker: marker},
		Payload: []byte{p.event, flags, byte(duration >> 8), byte(duration)},
	}
}

// signalIdle is called with mu held.
func (a *audio) signalIdle() {
	if len(a.queue) == 0 && len(a.keys) == 0 && a.press == nil {
		select {
		case <-a.idle:
		default:
			close(a.idle)
		}
	}
}

// busy is called with mu held.
func (a *audio) busy() {
	select {
	case <-a.idle:
		a.idle = make(chan struct{})
	default:
	}
}

func (a *audio) play(pcm []int16) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.queue = append(a.queue, pcm...)
	a.busy()
}

func (a *audio) pressKeys(keys string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range strings.ToUpper(keys) {
		if i := strings.IndexRune("0123456789*#ABCD", k); i >= 0 {
			a.keys = append(a.keys, byte(i))
		}
	}
	a.busy()
}

func (a *audio) receive() {
	buf := make([]byte, 2048)
	var p rtp.Packet
	for {
		n, err := a.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n > 1 && buf[1] >= 192 && buf[1] <= 223 {
			continue
		}
		packet := buf[:n]
		a.mu.Lock()
		if a.out != nil {
			if a.in == nil {
				a.mu.Unlock()
				continue
			}
			packet, err = a.in.DecryptRTP(nil, packet, nil)
		}
		if err != nil || p.Unmarshal(packet) != nil {
			a.mu.Unlock()
			continue
		}
		a.received++
		now := time.Now()
		if !a.arrived.IsZero() {
			a.pause = max(a.pause, now.Sub(a.arrived))
		}
		a.arrived = now
		if p.PayloadType == a.codec.pt {
			a.rec.write(&p, a.codec, now)
		} else if a.dtmf != 0 && p.PayloadType == a.dtmf {
			a.keypad.hear(&p)
		}
		a.mu.Unlock()
	}
}

// keypad reads the keys that the far end presses (RFC 4733): all packets of one press have its timestamp.
type keypad struct {
	keys []byte
	ssrc uint32
	ts   uint32
	last bool // an event was heard before
}

func (k *keypad) hear(p *rtp.Packet) {
	if len(p.Payload) < 4 || p.Payload[0] > 15 || k.last && k.ssrc == p.SSRC && k.ts == p.Timestamp {
		return
	}
	k.last, k.ssrc, k.ts = true, p.SSRC, p.Timestamp
	k.keys = append(k.keys, "0123456789*#ABCD"[p.Payload[0]])
}

// recorder lays packets out by their timestamps on a line that began with the call.
type recorder struct {
	began time.Time
	rate  int // of pcm
	pcm   []int16
	ssrc  uint32
	ts    uint32 // timestamp that belongs at sample at
	at    int
	known bool
	next  int       // where the packet after the last one belongs
	seq   uint16    // of the last one
	late  time.Time // since when packets are later than slack; zero = they are not

	streams int
}

// slack is how far timestamps and arrival may disagree before arrival is believed: a restarted or paused sender. Packets that follow one
// another without a gap are believed for a while longer: who sends them, or who reads them here, was held up and will catch up. Those
// that are too early because the first one was read late are believed for good.
const (
	slack      = 300 * time.Millisecond
	catchingUp = 2 * time.Second
)

func (r *recorder) write(p *rtp.Packet, c coder, now time.Time) {
	pcm := c.unpack(p.Payload)
	slack := int(slack * time.Duration(r.rate) / time.Second)
	arrival := int(now.Sub(r.began)*time.Duration(r.rate)/time.Second) - len(pcm)
	at := r.at + int(int32(p.Timestamp-r.ts))*r.rate/c.clock
	same := r.known && p.SSRC == r.ssrc
	if !same {
		r.streams++
	}
	if arrival-at <= slack {
		r.late = time.Time{}
	} else if r.late.IsZero() {
		r.late = now
	}
	follows := same && p.SequenceNumber == r.seq+1 && at == r.next
	if !same || at-arrival > slack && !follows || arrival-at > slack && !(follows && now.Sub(r.late) < catchingUp) {
		r.known, r.ssrc, r.ts, r.at = true, p.SSRC, p.Timestamp, max(arrival, 0)
		at, r.late = r.at, time.Time{}
	}
	r.seq, r.next = p.SequenceNumber, at+len(pcm)
	if at < 0 {
		return
	}
	if end := at + len(pcm); end > len(r.pcm) {
		r.pcm = slices.Grow(r.pcm, end-len(r.pcm))[:end] // grown memory is zero: silence
	}
	copy(r.pcm[at:], pcm)
}

// heard is the recording up to now, with the silence at its end.
func (r *recorder) heard(now time.Time) []int16 {
	n := max(int(now.Sub(r.began)*time.Duration(r.rate)/time.Second), len(r.pcm))
	out := make([]int16, n)
	copy(out, r.pcm)
	return out
}
