package member

import (
	"sync"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"gopkg.in/hraban/opus.v2"
	"maunium.net/go/mautrix/id"
)

// longest is how much is recorded of one peer; what comes later is not kept.
const longest = 10 * time.Minute

// ear records who says what and when: one recording per user, sample 0 at epoch.
type ear struct {
	mu    sync.Mutex // guards the fields below
	epoch time.Time
	users map[id.UserID]*Recording
}

// Recording is what was heard of one user.
type Recording struct {
	PCM     []int16       // 48 kHz mono; silence where nothing came
	Packets int           // RTP packets that arrived
	Missing int           // packets that did not, at the moment when a later one came
	Jumps   int           // times that the sender's clock did not fit the packets' arrival
	Bad     int           // packets that are not Opus
	Late    time.Duration // the most that a packet came after its time
}

func newEar() *ear { return &ear{epoch: time.Now(), users: map[id.UserID]*Recording{}} }

// forget begins new recordings.
func (e *ear) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.epoch, e.users = time.Now(), map[id.UserID]*Recording{}
}

func (e *ear) of(user id.UserID) Recording {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.users[user]; r != nil {
		c := *r
		c.PCM = append([]int16(nil), r.PCM...)
		return c
	}
	return Recording{}
}

// hear records a track until it ends. audible is asked for each packet: hydrogen does not play a stream that says it
// is muted.
func (e *ear) hear(user id.UserID, track *webrtc.TrackRemote, audible func() bool) {
	decoder, err := opus.NewDecoder(Rate, 1)
	if err != nil {
		return
	}
	var clock mediaClock
	pcm := make([]int16, 6*frameSamples)
	for {
		pkt, _, err := track.ReadRTP()
		if err != nil {
			return
		}
		if len(pkt.Payload) == 0 { // padding
			continue
		}
		n, err := decoder.Decode(pkt.Payload, pcm)
		now := time.Now()
		at, missing, jumped := clock.place(&pkt.Header, now)
		e.mu.Lock()
		r := e.users[user]
		if r == nil {
			r = &Recording{}
			e.users[user] = r
		}
		r.Packets++
		r.Late = max(r.Late, now.Sub(at))
		r.Missing += missing
		if jumped {
			r.Jumps++
		}
		if err != nil {
			r.Bad++
		} else if audible() {
			r.put(at.Sub(e.epoch), pcm[:n])
		}
		e.mu.Unlock()
	}
}

func (r *Recording) put(at time.Duration, pcm []int16) {
	if at < 0 || at > longest {
		return
	}
	i := int(at.Seconds()*Rate + 0.5)
	if need := i + len(pcm) - len(r.PCM); need > 0 {
		r.PCM = append(r.PCM, make([]int16, need)...)
	}
	copy(r.PCM[i:], pcm)
}

// mediaClock places packets in time by their timestamps, anchored at the arrival of the first, as a patient jitter
// buffer would. A new SSRC is anchored anew, and so is a sender whose timestamps run away from real time: that is a
// jump. The limit is far above what a busy machine delays.
type mediaClock struct {
	started bool
	origin  time.Time
	first   uint32
	seq     uint16
	ssrc    uint32
}

const runaway = 3 * time.Second

func (c *mediaClock) place(h *rtp.Header, now time.Time) (at time.Time, missing int, jumped bool) {
	at = c.origin.Add(time.Duration(int32(h.Timestamp-c.first)) * time.Second / Rate)
	if off := now.Sub(at).Abs(); !c.started || h.SSRC != c.ssrc || off > runaway {
		jumped = c.started && h.SSRC == c.ssrc
		*c = mediaClock{true, now, h.Timestamp, h.SequenceNumber, h.SSRC}
		return now, 0, jumped
	}
	if step := int16(h.SequenceNumber - c.seq); step > 0 {
		missing = int(step) - 1
		c.seq = h.SequenceNumber
	}
	return at, missing, false
}
