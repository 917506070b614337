package transcode_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/pion/rtp"

	"trunkline/internal/testbed/speech"
	"trunkline/transcode"
)

// script turns fuzz bytes into packets and ticks: each step is a kind, a time to pass, header bytes and a payload.
func script(data []byte, step func(kind, pause byte, pkt *rtp.Packet)) {
	for steps := 0; len(data) >= 8 && steps < 300; steps++ {
		kind, pause, n := data[0], data[1], int(data[7])
		pkt := &rtp.Packet{Header: rtp.Header{
			Version: 2, PayloadType: kind >> 1 & 15, SSRC: uint32(kind >> 7),
			SequenceNumber: binary.BigEndian.Uint16(data[2:]),
			Timestamp:      uint32(int32(int16(binary.BigEndian.Uint16(data[4:]))) * 80),
			Marker:         data[6]&1 == 1,
		}}
		data = data[8:]
		pkt.Payload = data[:min(n, len(data))]
		data = data[len(pkt.Payload):]
		step(kind, pause, pkt)
	}
}

// FuzzDesk feeds any packets in any order at any time and checks what must always hold.
func FuzzDesk(f *testing.F) {
	for _, p := range (opusPackets{fec: true, bitrate: 24000}).pack(f, said(speech.Alice, 48000)[:9600]) {
		seed := []byte{1, 20, 0, 1, 0, 12, 0, byte(len(p.Payload))}
		f.Add(append(seed, p.Payload...))
	}
	for _, p := range g711(transcode.PCMU, said(speech.Bob, 8000)[:800], 20*time.Millisecond) {
		f.Add(append([]byte{0, 20, 0, 2, 0, 2, 0, 160}, p.Payload...))
	}
	f.Add([]byte{1, 0, 0, 1, 0, 0, 0, 0, 1, 255, 255, 255, 128, 0, 1, 1, 7})
	f.Fuzz(func(t *testing.T, data []byte) {
		b := newBed(t, transcode.Options{})
		phones := []*transcode.Phone{b.phone(transcode.PCMU), b.phone(transcode.PCMA)}
		device := b.device()
		accepted := uint64(0)
		script(data, func(kind, pause byte, pkt *rtp.Packet) {
			via := phones[kind>>6&1]
			if kind&1 == 0 {
				b.desk.FromPhone(via, pkt, b.now)
			} else {
				b.desk.FromPeer(device, via, pkt, b.now)
			}
			accepted++
			for range min(pause, 60) / 20 {
				b.run(20 * time.Millisecond)
			}
			b.now = b.now.Add(time.Duration(pause%20) * time.Millisecond)
		})
		for range 10 { // the earpieces check order, length and timestamps
			b.run(20 * time.Millisecond)
		}
		counted := device.Stats().In.Packets + phones[0].Stats().In.Packets + phones[1].Stats().In.Packets
		if counted > accepted {
			t.Errorf("%d packets accepted of %d", counted, accepted)
		}
		// whatever happened, half a second later a voice must be heard again
		for i := range 100 {
			pkt := &rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 77, SequenceNumber: uint16(i), Timestamp: uint32(i * 160)}}
			pkt.Payload = make([]byte, 160)
			for k := range pkt.Payload {
				pkt.Payload[k] = byte(0x90 + k%5<<5)
			}
			b.desk.FromPhone(phones[0], pkt, b.now)
			b.run(20 * time.Millisecond)
		}
		if s := phones[0].Stats(); s.Level < -60 || s.Delay.Held > 200*time.Millisecond {
			t.Errorf("a steady voice is not heard after it all: %+v", s)
		}
	})
}
