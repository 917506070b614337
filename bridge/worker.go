package bridge

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/rtp"

	"trunkline/matrixcall"
	"trunkline/transcode"
)

const (
	slotsPerFrame = 4
	slotDuration  = transcode.FrameDuration / slotsPerFrame
	// maxCatchUp is how many slots are made up for after a hold-up; what is older is skipped, for nobody would hear it.
	maxCatchUp = 10 * slotsPerFrame
	// maxWaiting is the room of an inbox: 40 slots of 200 busy legs. Beyond it packets are dropped and counted.
	maxWaiting = 16384
	// loudest is how many devices of a room are decoded at a time: nobody follows more voices than that.
	loudest = 4
)

// worker mixes some of the conferences in one loop. Readers of sockets fill its inbox, its loop alone touches desks.
type worker struct {
	mu       sync.Mutex // guards what follows, for a few lines at a time
	waiting  []arrival  // filled by readers, swapped out by the loop; full: the packet is dropped and counted
	commands []func()   // from actors, run by the loop in order
	closed   bool

	wake        chan struct{}          // has one token while commands may be waiting
	conferences map[string]*conference // only the loop touches what follows
	spare       []arrival
	nextSlot    int
	slot        int

	late, skipped, overflow atomic.Uint64
	fromPhones, fromDevices tally
	noSeat                  atomic.Uint64
}

// tally is what became of the packets of streams that have ended. The loop adds, everybody may read.
type tally struct{ packets, bad, lost, late, concealed atomic.Uint64 }

func (t *tally) add(s transcode.StreamStats) {
	t.packets.Add(s.Packets)
	t.bad.Add(s.Bad)
	t.lost.Add(s.Lost)
	t.late.Add(s.Late)
	t.concealed.Add(s.Concealed)
}

// arrival is a packet on its way to a desk. Its buffers are used again.
type arrival struct {
	voice  *voice
	device deviceKey // zero: from the phone
	at     time.Time
	packet rtp.Packet
	level  [1]byte // what the packet's header extension points to
}

func newWorker() *worker {
	return &worker{wake: make(chan struct{}, 1), conferences: make(map[string]*conference)}
}

// put copies p into the inbox.
func (w *worker) put(v *voice, device deviceKey, p *rtp.Packet) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.waiting)
	switch {
	case n >= maxWaiting:
		w.overflow.Add(1)
		return
	case n < cap(w.waiting):
		w.waiting = w.waiting[:n+1] // keeps the payload buffer that was there
	default:
		w.waiting = append(w.waiting, arrival{})
	}
	a := &w.waiting[n]
	a.voice, a.device, a.at = v, device, now
	a.packet.Header = rtp.Header{
		Version: 2, Marker: p.Marker, PayloadType: p.PayloadType,
		SequenceNumber: p.SequenceNumber, Timestamp: p.Timestamp, SSRC: p.SSRC,
		Extensions: a.packet.Extensions[:0],
	}
	if level := p.GetExtension(matrixcall.LevelExtension); len(level) > 0 {
		a.level[0] = level[0]
		_ = a.packet.SetExtension(matrixcall.LevelExtension, a.level[:]) // one byte fits
	}
	a.packet.Payload = append(a.packet.Payload[:0], p.Payload...)
}

// post has the loop run f soon, and tells whether it will: after the loop has ended nothing runs any more.
func (w *worker) post(f func()) bool {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return false
	}
	w.commands = append(w.commands, f)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return true
}

// do has the loop run f and waits for it. After the loop has ended it does nothing.
func (w *worker) do(f func()) {
	done := make(chan struct{})
	if w.post(func() { f(); close(done) }) {
		<-done
	}
}

// run is the loop: absolute deadlines, so that a hold-up is made up for and counted, never added up.
func (w *worker) run(ctx context.Context) {
	defer w.close()
	deadline := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-w.wake:
		}
		idle := len(w.conferences) == 0
		w.runCommands()
		if len(w.conferences) == 0 {
			continue // asleep until there is a conference
		}
		now := time.Now()
		if idle {
			deadline = now
		}
		if behind := now.Sub(deadline); behind > maxCatchUp*slotDuration {
			lost := int(behind/slotDuration) - slotsPerFrame
			w.skipped.Add(uint64(lost / slotsPerFrame))
			deadline = deadline.Add(time.Duration(lost) * slotDuration)
			w.slot = (w.slot + lost) % slotsPerFrame
		}
		for !deadline.After(now) {
			w.mix(deadline, now.Sub(deadline) > transcode.FrameDuration)
			deadline = deadline.Add(slotDuration)
		}
		timer.Reset(time.Until(deadline))
	}
}

// mix feeds what has arrived to the desks and mixes those whose turn it is.
func (w *worker) mix(deadline time.Time, late bool) {
	w.runCommands()
	w.deliver()
	for _, c := range w.conferences {
		if c.slot != w.slot {
			continue
		}
		if late {
			w.late.Add(1)
		}
		c.desk.Tick(deadline, c)
	}
	w.slot = (w.slot + 1) % slotsPerFrame
}

func (w *worker) runCommands() {
	w.mu.Lock()
	commands := w.commands
	w.commands = nil
	w.mu.Unlock()
	for _, f := range commands {
		f()
	}
}

// deliver swaps the inbox out and hands its packets to the desks.
func (w *worker) deliver() {
	w.mu.Lock()
	w.waiting, w.spare = w.spare[:0], w.waiting
	w.mu.Unlock()
	for i := range w.spare {
		a := &w.spare[i]
		switch v := a.voice; {
		case v.conf == nil: // it has left
		case a.device == deviceKey{}:
			v.conf.desk.FromPhone(v.phone, &a.packet, a.at)
		default:
			if device := w.deviceFor(v, a.device); device != nil {
				v.conf.desk.FromPeer(device, v.phone, &a.packet, a.at)
			}
		}
		a.voice = nil
	}
}

// deviceFor finds the device on the desk, and sits it down at its first packet.
func (w *worker) deviceFor(v *voice, key deviceKey) *transcode.Device {
	s := v.conf.devices[key]
	if s == nil {
		device, err := v.conf.desk.AddDevice()
		if err != nil {
			w.noSeat.Add(1)
			return nil
		}
		device.Mute(v.conf.muted[key])
		s = &seat{device: device, copies: make(map[*voice]bool)}
		v.conf.devices[key] = s
	}
	if !v.peers[key] {
		v.peers[key], s.copies[v] = true, true
		s.device.AnnouncesLevel(v.phone, matrixcall.LevelExtension)
	}
	return s.device
}

func (w *worker) join(v *voice) error {
	room := string(v.opts.Room)
	c := w.conferences[room]
	if c == nil {
		desk, err := transcode.NewDesk(transcode.Options{Loudest: loudest})
		if err != nil {
			return fmt.Errorf("set up desk: %w", err)
		}
		c = &conference{
			room: v.opts.Room, desk: desk, slot: w.nextSlot,
			voices: make(map[*transcode.Phone]*voice), devices: make(map[deviceKey]*seat), muted: make(map[deviceKey]bool),
		}
		w.nextSlot = (w.nextSlot + 1) % slotsPerFrame
	}
	phone, err := c.desk.AddPhone(v.opts.Phone)
	if err != nil {
		return err
	}
	w.conferences[room] = c
	v.conf, v.phone = c, phone
	c.voices[phone] = v
	return nil
}

func (w *worker) leave(v *voice) {
	c := v.conf
	if c == nil {
		return
	}
	for key := range v.peers {
		w.dropCopy(v, key)
	}
	v.heard = v.phone.Stats().In
	w.fromPhones.add(v.heard)
	c.desk.DropPhone(v.phone)
	delete(c.voices, v.phone)
	v.conf = nil
	if v.told != nil {
		v.toldAll()
	}
	if len(c.voices) == 0 {
		delete(w.conferences, string(c.room))
	}
}

// dropCopy forgets a device's copy at one ghost, and the device with its last copy.
func (w *worker) dropCopy(v *voice, key deviceKey) {
	if v.conf == nil || !v.peers[key] {
		return
	}
	s := v.conf.devices[key]
	delete(v.peers, key)
	delete(s.copies, v)
	v.conf.desk.DropCopy(s.device, v.phone)
	if len(s.copies) == 0 {
		w.fromDevices.add(s.device.Stats().In)
		v.conf.desk.DropDevice(s.device)
		delete(v.conf.devices, key)
	}
}

func (w *worker) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.runCommands()
}

// ToPhone implements transcode.Sink.
func (c *conference) ToPhone(p *transcode.Phone, packet *rtp.Packet) {
	if v := c.voices[p]; v != nil {
		if on := v.talk.hear(p.Level()); on != v.speaks.Load() {
			v.speaks.Store(on)
		}
		if err := v.opts.ToPhone(packet); err != nil {
			v.unsent.Add(1)
		}
		if v.opts.Sounds != nil {
			v.opts.Sounds()
			v.opts.Sounds = nil
		}
		if v.told != nil && !p.Saying() {
			v.toldAll()
		}
		for digit, ok := p.Digit(); ok; digit, ok = p.Digit() {
			v.opts.Key(digit)
		}
	}
}

// ToPeers implements transcode.Sink.
func (c *conference) ToPeers(p *transcode.Phone, packet *rtp.Packet) {
	if v := c.voices[p]; v != nil {
		if err := v.opts.ToPeers(packet); err != nil {
			v.unsent.Add(1)
		}
	}
}
