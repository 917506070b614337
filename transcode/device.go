package transcode

import "github.com/pion/rtp"

// Fail-over between the copies of one microphone.
const (
	starvedAfter = 3             // packets of another copy while the chosen one brought none
	starvedFor   = 3 * frameTime // and at least for so long: routers send flows in bunches
	widerAfter   = 10            // packets until a copy of a wider band is chosen
	lossEvery    = 250           // packets between two comparisons of loss
	lossMargin   = 0.02          // another copy must lose that much less

	maxPeerPayload = 1500 // bytes held; browsers send a tenth of it
)

// Device is a room device's place at a desk: one microphone, received by every ghost.
type Device struct {
	desk    *Desk
	decoder [wide]*opusDecoder // by band; made when first wanted
	source  source
	voice   voice
	copies  []*peerCopy // by Phone.slot; nil where that ghost receives nothing
	chosen  *peerCopy
	count   uint64 // packets of the chosen copy

	loudness loudness
	stats    DeviceStats
}

// peerCopy is a device's microphone as one ghost receives it.
type peerCopy struct {
	via     *Phone
	stream  stream
	levelID uint8  // of the header extension with the level; 0: none
	fresh   int    // packets since the chosen copy brought one
	seen    uint64 // value of Device.count then
	loss    lossMeter
}

// DeviceStats are the counters of one device.
type DeviceStats struct {
	In       StreamStats // of all copies
	Delay    Delay
	Level    int8 // dBov
	Copies   int
	FailOver uint64 // changes to another copy
	Chosen   bool   // decoded: not among those too quiet for [Options.Loudest]
	Muted    bool
}

func newDevice(b band) (*Device, error) {
	dev := &Device{voice: voice{band: b}}
	if err := dev.prepare(b); err != nil {
		return nil, err
	}
	dev.source.init(dev.decoder[b-1], b)
	dev.voice.hush()
	return dev, nil
}

// prepare makes what is needed to play in a band.
func (dev *Device) prepare(b band) error {
	if dev.decoder[b-1] != nil {
		return nil
	}
	decoder, err := newOpusDecoder(b)
	dev.decoder[b-1] = decoder
	return err
}

// retune goes on in a band it is prepared for.
func (dev *Device) retune(b band) {
	dev.source.retune(dev.decoder[b-1], b)
	dev.voice.band = b
	dev.voice.hush()
}

// Mute makes the device unheard by the phones, or heard again.
func (dev *Device) Mute(mute bool) {
	dev.voice.muted = mute
}

// AnnouncesLevel says that the packets of the copy the ghost of phone via receives carry the device's level (RFC 6464)
// in the header extension of this id, as negotiated there; 0 says that they do not.
func (dev *Device) AnnouncesLevel(via *Phone, id uint8) {
	if via != nil && via.desk != nil && via.desk == dev.desk {
		dev.copyVia(via).levelID = id
	}
}

// Stats returns the counters.
func (dev *Device) Stats() DeviceStats {
	s := dev.stats
	for _, c := range dev.copies {
		if c != nil {
			s.Copies++
			s.In.add(&c.stream)
		}
	}
	s.Delay = dev.source.delay()
	s.Level = dev.voice.level
	s.Chosen = !dev.loudness.out
	s.Muted = dev.voice.muted
	return s
}

// receive checks a packet and files it with its copy.
func (dev *Device) receive(via *Phone, pkt *rtp.Packet, now int64) {
	c := dev.copyVia(via)
	kind, samples := classifyOpus(pkt.Payload)
	if samples == 0 {
		c.stream.stats.Bad++
		return
	}
	if c.stream.put(&pkt.Header, kind, samples, pkt.Payload, now) {
		dev.loudness.announce(&pkt.Header, c.levelID)
		dev.compare(c, kind, now)
	}
}

// copyVia returns the copy a ghost receives, a new one if it is the first time.
func (dev *Device) copyVia(via *Phone) *peerCopy {
	for len(dev.copies) <= via.slot {
		dev.copies = append(dev.copies, nil)
	}
	c := dev.copies[via.slot]
	if c == nil {
		c = &peerCopy{via: via, seen: dev.count}
		c.stream.clock = opusClock
		dev.copies[via.slot] = c
		if dev.chosen == nil {
			dev.choose(c)
		}
	}
	return c
}

// compare decides after each packet whether another copy should be played.
func (dev *Device) compare(c *peerCopy, kind packetKind, now int64) {
	c.loss.add(&c.stream)
	if c == dev.chosen {
		dev.count++
		return
	}
	if c.seen != dev.count {
		c.seen, c.fresh = dev.count, 0
	}
	if kind == kindQuiet {
		return
	}
	c.fresh++
	old := &dev.chosen.stream
	starved := c.fresh >= starvedAfter && now-old.arrived >= max(starvedFor, old.pace.target)
	if starved || c.loss.betterThan(&dev.chosen.loss) || c.widerThan(dev.chosen) {
		dev.stats.FailOver++
		dev.choose(c)
	}
}

// widerThan prefers the copy that came to a wide-band phone: devices send each ghost what its phone can play.
func (c *peerCopy) widerThan(other *peerCopy) bool {
	return c.via.voice.band > other.via.voice.band && c.stream.stats.Packets >= widerAfter
}

func (dev *Device) choose(c *peerCopy) {
	dev.chosen = c
	if c == nil {
		dev.source.use(nil)
		return
	}
	dev.count++
	dev.source.use(&c.stream)
}

// dropCopy forgets a copy; of the others, the one heard last takes its place.
func (dev *Device) dropCopy(via *Phone) {
	if via.slot >= len(dev.copies) || dev.copies[via.slot] == nil {
		return
	}
	c := dev.copies[via.slot]
	dev.copies[via.slot] = nil
	dev.stats.In.add(&c.stream)
	if c != dev.chosen {
		return
	}
	var best *peerCopy
	for _, other := range dev.copies {
		if other != nil && (best == nil || other.stream.arrived > best.stream.arrived) {
			best = other
		}
	}
	if best != nil {
		dev.stats.FailOver++
	}
	dev.choose(best)
}

// pull plays the next frame of the device into its voice.
func (dev *Device) pull(now int64, wanted bool) {
	if dev.voice.muted || dev.loudness.out || !wanted {
		dev.source.pause()
		dev.voice.hush()
		return
	}
	dev.voice.heard = dev.source.pull(now, dev.voice.pcm())
	dev.voice.listen()
}

// lossMeter measures the loss of a copy over stretches of lossEvery packets.
type lossMeter struct {
	packets, lost uint64 // at the start of the stretch
	rate          float64
	known         bool
}

func (m *lossMeter) add(s *stream) {
	packets := s.stats.Packets - m.packets
	if packets < lossEvery {
		return
	}
	lost := s.lost() - m.lost
	m.rate = float64(lost) / float64(lost+packets)
	m.known = true
	m.packets, m.lost = s.stats.Packets, s.lost()
}

func (m *lossMeter) betterThan(other *lossMeter) bool {
	return m.known && other.known && m.rate+lossMargin < other.rate
}
