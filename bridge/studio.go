package bridge

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/pion/rtp"
	"maunium.net/go/mautrix/id"

	"trunkline/sip"
	"trunkline/transcode"
)

// studio holds the desks of all conferences, spread over workers. Each room's conference belongs to one worker, and
// nothing on the path of sound is shared between workers but counters.
type studio struct {
	workers []*worker
	seed    maphash.Seed
}

func newStudio(workers int) *studio {
	s := &studio{seed: maphash.MakeSeed()}
	for range max(workers, 1) {
		s.workers = append(s.workers, newWorker())
	}
	return s
}

// Run drives all workers until ctx ends.
func (s *studio) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, w := range s.workers {
		wg.Go(func() { w.run(ctx) })
	}
}

// Stats adds up what the workers counted.
func (s *studio) Stats() studioStats {
	var total studioStats
	for _, w := range s.workers {
		total.Late += w.late.Load()
		total.Skipped += w.skipped.Load()
		total.Overflow += w.overflow.Load()
		total.NoSeat += w.noSeat.Load()
	}
	return total
}

// Streams adds up what became of the packets of streams that have ended.
func (s *studio) Streams(pick func(*worker) *tally) map[string]uint64 {
	total := map[string]uint64{}
	for _, w := range s.workers {
		t := pick(w)
		total["packets"] += t.packets.Load()
		total["bad"] += t.bad.Load()
		total["lost"] += t.lost.Load()
		total["late"] += t.late.Load()
		total["concealed"] += t.concealed.Load()
	}
	return total
}

// studioStats are counters since the start.
type studioStats struct {
	Late     uint64 // frames mixed late, because the loop was held up
	Skipped  uint64 // frames given up after a longer hold-up
	Overflow uint64 // packets dropped because a worker's inbox was full
	NoSeat   uint64 // packets dropped because their device could not be put on the desk: no decoder was to be had
}

// voiceOptions connect one phone with its conference.
type voiceOptions struct {
	Room    id.RoomID
	Phone   transcode.PhoneConfig
	ToPhone func(*rtp.Packet) error // called by the worker every 20 ms, or as the phone likes its packets
	ToPeers func(*rtp.Packet) error // Opus, while the phone is heard
	Sounds  func()                  // called by the worker once ToPhone was; nil = nobody waits for it
	Press   func(digit rune)        // presses a key for the phone; must not block
	Key     func(digit rune)        // takes keys that are heard in the phone's sound; must not block; nil = nobody listens for them
}

// voice is one phone on a desk.
type voice struct {
	worker *worker
	conf   *conference
	phone  *transcode.Phone
	opts   voiceOptions

	losses map[deviceKey]float64 // of what each peer was sent, as last reported; only the worker touches it
	peers  map[deviceKey]bool    // devices with a copy of their microphone at this ghost; only the worker touches it

	talk   talk                  // only the worker touches it
	heard  transcode.StreamStats // of what the phone sent, once it has left
	told   func()                // called when what the phone is told is over; nil = nothing; only the worker touches it
	speaks atomic.Bool           // the phone is speaking, as it comes to the desk
	unsent atomic.Uint64         // packets that ToPhone or ToPeers could not send
}

// deviceKey names a device in a room: its copies at all ghosts carry the same microphone.
type deviceKey struct {
	User   id.UserID
	Device id.DeviceID
}

// conference is the desk of one room and who sits at it. Only its worker touches it.
type conference struct {
	room    id.RoomID
	desk    *transcode.Desk
	voices  map[*transcode.Phone]*voice
	devices map[deviceKey]*seat
	muted   map[deviceKey]bool // whose users muted the microphone, perhaps before its first packet
	slot    int                // which quarter of the 20 ms frame it is mixed in
}

// seat is a device on a desk, with the voices that receive a copy of it.
type seat struct {
	device *transcode.Device
	copies map[*voice]bool
}

// A phone speaks that has been louder than talkLevel (dBov) for talkOnset frames, until it has not been for talkHang.
const (
	talkLevel = -45
	talkOnset = 2
	talkHang  = 20
)

// talk tells speech from clicks and short pauses, by levels.
type talk struct {
	on     bool
	frames int // in a row that contradict on
}

// hear takes the level of a frame and says whether somebody speaks.
func (t *talk) hear(level int8) bool {
	if (level > talkLevel) == t.on {
		t.frames = 0
		return t.on
	}
	limit := talkOnset
	if t.on {
		limit = talkHang
	}
	if t.frames++; t.frames >= limit {
		t.on, t.frames = !t.on, 0
	}
	return t.on
}

// errStudioClosed says that the studio's workers have ended.
var errStudioClosed = errors.New("the studio is closed")

// Join puts a phone on the desk of its room, setting the desk up if it is the first.
func (s *studio) Join(opts voiceOptions) (*voice, error) {
	index := maphash.String(s.seed, string(opts.Room)) % uint64(len(s.workers))
	w := s.workers[index]
	v := &voice{worker: w, opts: opts, peers: make(map[deviceKey]bool), losses: make(map[deviceKey]float64)}
	err := errStudioClosed
	w.do(func() { err = w.join(v) })
	if err != nil {
		return nil, fmt.Errorf("put phone on the desk: %w", err)
	}
	return v, nil
}

// nobody takes what the peers of a phone would hear where there are none.
func nobody(*rtp.Packet) error { return nil }

// Leave takes the phone off the desk, and returns the config with which its streams can go on at another one. Packets that
// arrive later are dropped.
func (v *voice) Leave() (next transcode.PhoneConfig) {
	next = v.opts.Phone
	v.worker.do(func() {
		if v.phone != nil {
			next = v.phone.Next()
		}
		v.worker.leave(v)
	})
	return next
}

// Play lets the phone, and nobody else, hear a tone instead of the one before.
func (v *voice) Play(t transcode.Tone) {
	v.worker.post(func() {
		if v.conf != nil {
			v.phone.Play(t)
		}
	})
}

// Say lets the phone, and nobody else, hear recorded sound instead of what it was told before. over is called once it has
// ended, or the phone has left; not when it was stopped or replaced. It must not block.
func (v *voice) Say(pieces [][]int16, over func()) {
	said := v.worker.post(func() {
		if v.conf == nil {
			over()
			return
		}
		v.phone.Say(pieces)
		v.told = over
	})
	if !said {
		over()
	}
}

// StopSaying ends that.
func (v *voice) StopSaying() {
	v.worker.post(func() {
		v.told = nil
		if v.conf != nil {
			v.phone.StopSaying()
		}
	})
}

// toldAll reports the end of what the phone was told.
func (v *voice) toldAll() {
	over := v.told
	v.told = nil
	over()
}

// SetFormat changes how the phone is talked to.
func (v *voice) SetFormat(c transcode.PhoneConfig) {
	v.worker.post(func() {
		if v.conf != nil {
			_ = v.phone.SetFormat(c) // a codec that libopus does not give: it goes on with the one it has
		}
	})
}

// Mute silences the phone for everybody else.
func (v *voice) Mute(on bool) {
	v.worker.post(func() {
		if v.conf != nil {
			v.phone.Mute(on)
		}
	})
}

// FromPhone hands in a packet of the phone. It copies what it needs and never blocks.
func (v *voice) FromPhone(p *rtp.Packet) { v.worker.put(v, deviceKey{}, p) }

// FromPeer hands in a device's packet as this ghost received it. It copies what it needs and never blocks.
func (v *voice) FromPeer(key deviceKey, p *rtp.Packet) { v.worker.put(v, key, p) }

// PeerGone drops the copy of the device's microphone at this ghost.
func (v *voice) PeerGone(key deviceKey) {
	v.worker.post(func() {
		delete(v.losses, key)
		v.worker.dropCopy(v, key)
		if v.conf != nil && v.conf.devices[key] == nil {
			delete(v.conf.muted, key)
		}
	})
}

// PeerLoss tells how much of what the phone says a peer has lost. All peers get the same packets, so the worst decides.
func (v *voice) PeerLoss(key deviceKey, fraction float64) {
	v.worker.post(func() {
		if v.conf == nil {
			return
		}
		v.losses[key] = fraction
		worst := slices.Max(slices.Collect(maps.Values(v.losses)))
		_ = v.phone.PeerLoss(worst) // an encoder that libopus does not give: it goes on with the one it has
	})
}

// PeerMuted tells the desk that the device's user muted the microphone.
func (v *voice) PeerMuted(key deviceKey, muted bool) {
	v.worker.post(func() {
		if v.conf == nil {
			return
		}
		if v.conf.muted[key] = true; !muted {
			delete(v.conf.muted, key)
		}
		if seat := v.conf.devices[key]; seat != nil {
			seat.device.Mute(muted)
		}
	})
}

// codecs of the desk by their names in SDP.
var codecs = map[string]transcode.Codec{
	"PCMU": transcode.PCMU, "PCMA": transcode.PCMA, "G722": transcode.G722, "opus": transcode.Opus,
}

// phoneConfig says how a phone is talked to. It fills in what a stream needs at random (RFC 3550 §5.1); sequence numbers start low so that SRTP's
// roll-over counter cannot be guessed wrong (RFC 3711 §3.3.1).
func phoneConfig(f sip.Format) transcode.PhoneConfig {
	return transcode.PhoneConfig{
		Codec: codecs[f.Codec], PayloadType: f.PayloadType, Ptime: f.Ptime,
		SSRC: rand.Uint32(), FirstSeq: uint16(rand.Uint32N(1 << 15)), FirstTimestamp: rand.Uint32(),
		PeerPayloadType: 111, PeerSSRC: rand.Uint32(), PeerFirstSeq: uint16(rand.Uint32N(1 << 15)), PeerFirstTimestamp: rand.Uint32(),
	}
}
