package transcode

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pion/rtp"
)

// The desk works in frames of 20 ms. Media time has 8000 ticks a second, which is also the rate of telephone sound; as
// long as a phone with a wide-band codec is there, sound has two samples for each tick.
const (
	Rate          = 8000
	FrameDuration = 20 * time.Millisecond
	FrameSamples  = Rate / 50
)

// Options of a desk. The zero value is good.
type Options struct {
	// Loudest limits how many devices are decoded at a time, among those that announce their level
	// ([Device.AnnouncesLevel]); 0 decodes all. The others' packets are held, so that who begins to speak is heard from
	// the beginning.
	Loudest int
}

// Sink takes what a tick produces. The packets and their payloads are used again: they are valid during the call only.
type Sink interface {
	// ToPhone is called for every phone, silence included: far ends hang up on quiet media. With the usual packets of 20
	// ms that is once a tick; shorter ones come together, longer ones when they are full.
	ToPhone(*Phone, *rtp.Packet)
	// ToPeers is called with what the peers of this phone's ghost hear: the phone alone. Nothing is sent in pauses
	// but a sign of life every 400 ms. The payload is encoded once, for all peers.
	ToPeers(*Phone, *rtp.Packet)
}

// Desk mixes one conference. It belongs to one goroutine at a time.
type Desk struct {
	options Options
	epoch   time.Time
	phones  []*Phone
	devices []*Device
	ranked  []*Device // the same, by loudness
	slots   []*Phone  // by Phone.slot; nil when free
	band    band      // the widest of the phones
	sum     [wideSamples]int32
	heard   int   // how many sources are in sum
	played  int64 // when the last frame was due; it counts once there is one
	stats   Stats
}

// Stats are the counters of a desk.
type Stats struct {
	Phones, Devices int
	Frames          uint64 // ticks
	Clipped         uint64 // samples cut off because too many spoke too loudly
	Unknown         uint64 // packets of handles that have been dropped
}

// NewDesk returns an empty desk.
func NewDesk(o Options) (*Desk, error) {
	if o.Loudest < 0 {
		return nil, fmt.Errorf("desk: %d loudest devices: %w", o.Loudest, errors.ErrUnsupported)
	}
	return &Desk{options: o, band: narrow}, nil
}

// Stats returns the counters.
func (d *Desk) Stats() Stats {
	s := d.stats
	s.Phones, s.Devices = len(d.phones), len(d.devices)
	return s
}

// AddPhone gives a phone a place at the desk.
func (d *Desk) AddPhone(c PhoneConfig) (*Phone, error) {
	p, err := newPhone(c)
	if err != nil {
		return nil, fmt.Errorf("add phone: %w", err)
	}
	p.desk = d
	p.slot = slices.Index(d.slots, nil)
	if p.slot < 0 {
		p.slot = len(d.slots)
		d.slots = append(d.slots, nil)
	}
	d.slots[p.slot] = p
	d.phones = append(d.phones, p)
	if err := d.retune(); err != nil {
		d.DropPhone(p)
		return nil, fmt.Errorf("add phone: %w", err)
	}
	return p, nil
}

// retune changes the band of the desk to the widest of its phones.
func (d *Desk) retune() error {
	b := narrow
	for _, p := range d.phones {
		b = max(b, p.voice.band)
	}
	if b == d.band {
		return nil
	}
	for _, dev := range d.devices {
		if err := dev.prepare(b); err != nil {
			return fmt.Errorf("change band: %w", err)
		}
	}
	for _, dev := range d.devices {
		dev.retune(b)
	}
	d.band = b
	return nil
}

// DropPhone takes a phone and all copies its ghost received off the desk. Dropping it again does nothing.
func (d *Desk) DropPhone(p *Phone) {
	if p == nil || p.desk != d {
		return
	}
	for _, dev := range d.devices {
		dev.dropCopy(p)
	}
	d.slots[p.slot] = nil
	d.phones = slices.DeleteFunc(d.phones, func(q *Phone) bool { return q == p })
	p.desk = nil
	_ = d.retune() // a decoder that libopus does not give: the desk stays wide
}

// AddDevice gives a device of the room a place at the desk.
func (d *Desk) AddDevice() (*Device, error) {
	dev, err := newDevice(d.band)
	if err != nil {
		return nil, fmt.Errorf("add device: %w", err)
	}
	dev.desk = d
	d.devices = append(d.devices, dev)
	d.ranked = append(d.ranked, dev)
	return dev, nil
}

// DropDevice takes a device off the desk. Dropping it again does nothing.
func (d *Desk) DropDevice(dev *Device) {
	if dev == nil || dev.desk != d {
		return
	}
	same := func(e *Device) bool { return e == dev }
	d.devices = slices.DeleteFunc(d.devices, same)
	d.ranked = slices.DeleteFunc(d.ranked, same)
	dev.desk = nil
}

// FromPhone takes a packet of the phone, of any length from 10 to 60 ms. What is kept of it is copied.
func (d *Desk) FromPhone(p *Phone, pkt *rtp.Packet, now time.Time) {
	if p == nil || p.desk != d || pkt == nil {
		d.stats.Unknown++
		return
	}
	p.receive(pkt, d.clock(now))
}

// FromPeer takes a packet of the device's microphone in Opus, as the ghost of phone via received it.
func (d *Desk) FromPeer(dev *Device, via *Phone, pkt *rtp.Packet, now time.Time) {
	if dev == nil || dev.desk != d || via == nil || via.desk != d || pkt == nil {
		d.stats.Unknown++
		return
	}
	dev.receive(via, pkt, d.clock(now))
}

// DropCopy forgets the copy of the device's microphone that the ghost of phone via received: their connection is gone.
func (d *Desk) DropCopy(dev *Device, via *Phone) {
	if dev != nil && dev.desk == d && via != nil && via.desk == d {
		dev.dropCopy(via)
	}
}

// clock turns a time into nanoseconds since the first one seen.
func (d *Desk) clock(now time.Time) int64 {
	if d.epoch.IsZero() {
		d.epoch = now
	}
	return int64(now.Sub(d.epoch))
}

// Tick plays one frame: now is the deadline of the frame, not the time the loop got round to it. Frames whose deadlines have been left out
// are missing in what is sent, but their time is not.
func (d *Desk) Tick(now time.Time, out Sink) {
	t := d.clock(now)
	if missed := (t-d.played)/int64(FrameDuration) - 1; missed > 0 && d.stats.Frames > 0 {
		for _, p := range d.phones {
			p.skip(uint32(missed))
		}
	}
	d.played = t
	d.stats.Frames++
	d.heard = 0
	clear(d.sum[:])
	for _, p := range d.phones {
		p.pull(t)
		d.add(&p.voice)
	}
	d.chooseLoudest()
	for _, dev := range d.devices {
		dev.pull(t, len(d.phones) > 0)
		d.add(&dev.voice)
	}
	for _, p := range d.phones {
		p.toPhone(d.mix(p))
		for pkt := p.outlet.next(); pkt != nil; pkt = p.outlet.next() {
			p.stats.Frames++
			out.ToPhone(p, pkt)
		}
	}
	for _, p := range d.phones {
		if pkt := p.toPeers(); pkt != nil {
			out.ToPeers(p, pkt)
		}
	}
}

func (d *Desk) add(v *voice) {
	if !v.heard {
		return
	}
	d.heard++
	if v.band < d.band {
		v.widen.widen(v.wide[:], v.pcm())
	}
	for i, x := range v.in(d.band) {
		d.sum[i] += int32(x)
	}
}

// mix returns everything but the phone itself, its tone, and what it is told, in the phone's band; nil when that is
// nothing.
func (d *Desk) mix(p *Phone) []int16 {
	told := p.told()
	toned := p.player.Playing() && p.player.Read(p.tone.pcm[:])
	others := d.heard
	own := noSound[:]
	if p.voice.heard {
		others--
		own = p.voice.in(d.band)
	}
	if others == 0 && !toned && !told {
		return nil
	}
	mixed := p.mixed[:FrameSamples*int(d.band)]
	own = own[:len(mixed)]
	for i, x := range d.sum[:len(mixed)] {
		x -= int32(own[i])
		y := min(max(x, -32768), 32767)
		if y != x {
			d.stats.Clipped++
		}
		mixed[i] = int16(y)
	}
	if p.voice.band < d.band {
		p.ear.narrow(mixed[:FrameSamples], mixed)
		mixed = mixed[:FrameSamples]
	}
	if toned {
		d.stats.Clipped += lay(mixed, p.tone.in(p.voice.band))
	}
	if told {
		d.stats.Clipped += p.duck(mixed)
	}
	return mixed
}

// lay adds sound and returns how many samples were cut off.
func lay(pcm, over []int16) (clipped uint64) {
	for i, x := range over[:len(pcm)] {
		sum := int(pcm[i]) + int(x)
		pcm[i] = saturate(sum)
		if int(pcm[i]) != sum {
			clipped++
		}
	}
	return clipped
}

var noSound [wideSamples]int16
