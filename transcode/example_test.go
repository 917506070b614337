package transcode_test

import (
	"fmt"
	"time"

	"github.com/pion/rtp"

	"trunkline/transcode"
)

// socket stands for the connections of a phone and its ghost.
type socket struct{ toPhone, toPeers int }

func (s *socket) ToPhone(_ *transcode.Phone, pkt *rtp.Packet) {
	s.toPhone++
	if s.toPhone == 1 {
		fmt.Printf("to the phone: payload type %d, %d bytes, first %#02x\n", pkt.PayloadType, len(pkt.Payload), pkt.Payload[0])
	}
}

func (s *socket) ToPeers(*transcode.Phone, *rtp.Packet) { s.toPeers++ }

// A desk with one phone, played for a second.
func ExampleDesk() {
	desk, err := transcode.NewDesk(transcode.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	phone, err := desk.AddPhone(transcode.PhoneConfig{Codec: transcode.PCMA, PayloadType: 8, PeerPayloadType: 111})
	if err != nil {
		fmt.Println(err)
		return
	}

	var out socket
	deadline := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 50 {
		voice := &rtp.Packet{Header: rtp.Header{
			Version: 2, PayloadType: 8, SequenceNumber: uint16(i), Timestamp: uint32(i * 160),
		}, Payload: make([]byte, 160)}
		for k := range voice.Payload {
			voice.Payload[k] = [2]byte{0x9A, 0x1A}[k/10%2] // a square wave of 400 Hz
		}
		desk.FromPhone(phone, voice, deadline) // whenever a packet arrives
		deadline = deadline.Add(transcode.FrameDuration)
		desk.Tick(deadline, &out) // every 20 ms
	}
	fmt.Println("packets to the phone:", out.toPhone)
	fmt.Println("its peers hear it:", out.toPeers > 40)
	fmt.Println("the phone speaks at", phone.Stats().Level, "dBov")
	// Output:
	// to the phone: payload type 8, 160 bytes, first 0xd5
	// packets to the phone: 50
	// its peers hear it: true
	// the phone speaks at -18 dBov
}
