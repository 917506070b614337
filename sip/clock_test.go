package sip

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

// One press takes 100 ms and a pause, whatever the clock of the codec, the clock of the events and the length of packets.
func TestKeysHaveTheClockOfTheCodec(t *testing.T) {
	for _, tt := range []struct {
		name   string
		format Format
		want   string
	}{
		{"Opus", formatOf("opus", 111, 48000, 20, 101, 48000), "960 1920 2880 3840 4800e 4800e 4800e voice 960 1920 2880 3840 4800e 4800e 4800e voice voice"},
		{"Opus, keys at 8000", formatOf("opus", 111, 48000, 20, 101, 8000), "160 320 480 640 800e 800e 800e voice 160 320 480 640 800e 800e 800e voice voice"},
		{"G.722, keys at 16000", formatOf("G722", 9, 8000, 20, 101, 16000), "320 640 960 1280 1600e 1600e 1600e voice 320 640 960 1280 1600e 1600e 1600e voice voice"},
		{"packets of 60 ms", formatOf("PCMU", 0, 8000, 60, 101, 8000), "480 800e 800e 800e 480 800e 800e 800e voice"},
		{"packets of 10 ms", formatOf("PCMU", 0, 8000, 10, 101, 8000), "80 160 240 320 400 480 560 640 720 800e 800e 800e voice voice voice 80 160 240 320 400 480 560 640 720 800e 800e 800e voice"},
		{"saved before keys had a clock of their own", formatOf("PCMU", 0, 8000, 20, 101, 0), "160 320 480 640 800e 800e 800e voice 160 320 480 640 800e 800e 800e voice voice"},
	} {
		var w digitWriter
		var r digitReader
		w.put(4)
		w.put(11)
		var got, keys []string
		voice := rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: tt.format.PayloadType, SSRC: 9, Timestamp: 1 << 31}}
		for range len(strings.Fields(tt.want)) {
			voice.SequenceNumber++
			voice.Timestamp += uint32(tt.format.ClockRate / 1000 * tt.format.Ptime)
			p := &voice
			if w.active() {
				p = w.replace(&voice, tt.format)
			}
			if p == &voice {
				got = append(got, "voice")
				continue
			}
			if key, pressed := r.read(p.SSRC, p.Timestamp, p.Payload); pressed {
				keys = append(keys, string(key))
			}
			end := map[byte]string{0x80: "e"}[p.Payload[1]&0x80]
			got = append(got, fmt.Sprint(int(p.Payload[2])<<8|int(p.Payload[3]), end))
		}
		if line := strings.Join(got, " "); line != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, line, tt.want)
		}
		if line := strings.Join(keys, ""); line != "4#" {
			t.Errorf("%s: keys %q are read, want 4#", tt.name, line)
		}
	}
}

// RFC 3550 §6.4.1: timestamps of sender reports and jitter are in units of the codec's clock, which is not the rate of
// G.722's samples (RFC 3551 §4.5.2).
func TestReportsHaveTheClockOfTheCodec(t *testing.T) {
	for _, tt := range []struct {
		format Format
		clock  uint32
	}{
		{Format{Codec: "PCMU", ClockRate: 8000}, 8000},
		{Format{Codec: "G722", PayloadType: 9, ClockRate: 8000}, 8000},
		{Format{Codec: "opus", PayloadType: 111, ClockRate: 48000}, 48000},
	} {
		m := &Media{stats: new(mediaTotals)}
		m.neg.Format = tt.format
		begin := time.Unix(1_700_000_000, 0)
		m.tx = sentStats{ssrc: 5, packets: 1, timestamp: 1000, at: begin}
		frame := tt.clock / 50
		for i := range uint32(500) { // every second packet is 5 ms late
			late := time.Duration(i%2) * 5 * time.Millisecond
			m.rx.packet(&rtp.Packet{Header: rtp.Header{
				SSRC: 7, SequenceNumber: uint16(i), Timestamp: i * frame,
			}}, begin.Add(time.Duration(i)*20*time.Millisecond+late), tt.format.ClockRate)
		}
		sr := m.compound(begin.Add(250*time.Millisecond), false)[0].(*rtcp.SenderReport)
		if want := 1000 + tt.clock/4; sr.RTPTime != want {
			t.Errorf("%s: a quarter of a second later the timestamp is %d, want %d", tt.format.Codec, sr.RTPTime, want)
		}
		if got, want := sr.Reports[0].Jitter, tt.clock*5/1000; got < want*95/100 || got > want*105/100 {
			t.Errorf("%s: jitter of 5 ms is %d, want %d", tt.format.Codec, got, want)
		}
		m.rx.packet(&rtp.Packet{Header: rtp.Header{SSRC: 7, SequenceNumber: 500}}, begin.Add(10*time.Second), tt.format.ClockRate*2)
		if r, _ := m.rx.report(begin); r.Jitter != 0 {
			t.Errorf("%s: jitter %d is reported after a change of the clock, want 0", tt.format.Codec, r.Jitter)
		}
	}
}

// RFC 5761 §5.1.1 and RFC 3605: where reports go.
func TestWhereReportsGo(t *testing.T) {
	for _, tt := range []struct {
		attrs string
		want  string
		mux   bool
	}{
		{"", "192.0.2.20:4001", false},
		{"a=rtcp-mux\n", "192.0.2.20:4000", true},
		{"a=rtcp-mux\na=rtcp:4007\n", "192.0.2.20:4000", true},
		{"a=rtcp:4007\n", "192.0.2.20:4007", false},
		{"a=rtcp:4007 IN IP4 192.0.2.20\n", "192.0.2.20:4007", false},
		{"a=rtcp:4007 IN IP4 203.0.113.1\n", netip.AddrPort{}.String(), false}, // nobody else's host
	} {
		body, n, err := Answer([]byte(crlf(sdpHead+"m=audio 4000 RTP/AVP 0\n"+tt.attrs)), ours())
		if err != nil {
			t.Fatal(err)
		}
		if n.RemoteRTCP.String() != tt.want || n.RTCPMux != tt.mux || strings.Contains(string(body), "a=rtcp-mux") != tt.mux {
			t.Errorf("%q: reports to %v, mux %t, answer %q; want %s, %t", tt.attrs, n.RemoteRTCP, n.RTCPMux, body, tt.want, tt.mux)
		}
		got, err := TakeAnswer([]byte(crlf(sdpHead+"m=audio 4000 RTP/AVP 0\n"+tt.attrs)), ours()) // to an offer with a=rtcp-mux
		if err != nil || got.RemoteRTCP.String() != tt.want || got.RTCPMux != tt.mux {
			t.Errorf("%q as an answer: %+v, %v; want %s, %t", tt.attrs, got, err, tt.want, tt.mux)
		}
	}
}
