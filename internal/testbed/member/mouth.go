package member

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"gopkg.in/hraban/opus.v2"
)

// Rate is the sample rate of everything a member says and hears, mono.
const Rate = 48000

const (
	frame        = 20 * time.Millisecond
	frameSamples = Rate / 50
)

// silence is an Opus frame of 20 ms of digital silence.
var silence = []byte{0xf8, 0xff, 0xfe}

// mouth sends one Opus packet every 20 ms on an absolute schedule to all tracks, as a browser's microphone does:
// speech, or silence when there is nothing to say or the microphone is muted.
type mouth struct {
	encoder *opus.Encoder // only run touches it

	mu     sync.Mutex // guards the fields below
	source []int16
	at     int
	loop   bool
	muted  bool
	tracks map[*webrtc.TrackLocalStaticRTP]bool // value: this peer may hear us
}

func newMouth() (*mouth, error) {
	enc, err := opus.NewEncoder(Rate, 1, opus.AppVoIP)
	if err != nil {
		return nil, err
	}
	if err := enc.SetBitrate(32000); err != nil {
		return nil, err
	}
	return &mouth{encoder: enc, tracks: map[*webrtc.TrackLocalStaticRTP]bool{}}, nil
}

func (m *mouth) say(pcm []int16, loop bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.source, m.at, m.loop = pcm, 0, loop
}

func (m *mouth) mute(muted bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.muted = muted
}

// enable opens or closes the microphone for one peer; a new peer is added, remove forgets it.
func (m *mouth) enable(track *webrtc.TrackLocalStaticRTP, on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if track != nil {
		m.tracks[track] = on
	}
}

func (m *mouth) remove(track *webrtc.TrackLocalStaticRTP) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tracks, track)
}

// run speaks until done is closed.
func (m *mouth) run(done <-chan struct{}) {
	header := rtp.Header{
		Version: 2, PayloadType: 111, Marker: true, //nolint:gosec // test voices need no secrecy
		SequenceNumber: uint16(rand.Uint32()), Timestamp: rand.Uint32(), SSRC: 1,
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	next := time.Now()
	for {
		select {
		case <-done:
			return
		case <-timer.C:
		}
		speech, tracks := m.frame()
		for track, on := range tracks {
			payload := silence
			if on && speech != nil {
				payload = speech
			}
			_ = track.WriteRTP(&rtp.Packet{Header: header, Payload: payload}) // a closing peer is no news
		}
		header.Marker = false
		header.SequenceNumber++
		header.Timestamp += frameSamples
		next = next.Add(frame)
		timer.Reset(time.Until(next))
	}
}

// frame encodes the next 20 ms, nil for silence, and lists who gets them.
func (m *mouth) frame() (speech []byte, tracks map[*webrtc.TrackLocalStaticRTP]bool) {
	pcm := make([]int16, frameSamples)
	m.mu.Lock()
	tracks = make(map[*webrtc.TrackLocalStaticRTP]bool, len(m.tracks))
	for t, on := range m.tracks {
		tracks[t] = on
	}
	speaking := len(m.source) > 0 && (m.loop || m.at < len(m.source))
	for i := range pcm {
		if m.at >= len(m.source) && m.loop && speaking {
			m.at = 0
		}
		if m.at < len(m.source) {
			pcm[i] = m.source[m.at]
			m.at++
		}
	}
	muted := m.muted
	m.mu.Unlock()
	if !speaking || muted {
		return nil, tracks
	}
	buf := make([]byte, 1000)
	n, err := m.encoder.Encode(pcm, buf)
	if err != nil {
		return nil, tracks
	}
	return buf[:n], tracks
}
