package matrixcall

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"maunium.net/go/mautrix/id"
)

func TestWhoSpeaksIsTold(t *testing.T) {
	for _, ghost := range []id.UserID{"@_sip_1:x", "@zed:x"} { // inviter, invitee
		t.Run(string(ghost[1:4]), func(t *testing.T) {
			inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
				alice := bed.browser("@alice:x", "10.1.0.2", nil)
				alice.enter()
				p := bed.join(ghost)
				time.Sleep(2 * time.Second)
				said := func(level uint8, d time.Duration) {
					alice.mu.Lock()
					alice.level = level
					alice.mu.Unlock()
					bed.talk(d, p)
				}
				said(0, time.Second)               // an old client
				said(127, time.Second)             // digital silence
				said(30, 40*time.Millisecond)      // a click
				said(70, 100*time.Millisecond)     //
				said(30, time.Second)              // speech
				said(70, 300*time.Millisecond)     // a pause for breath
				said(48, time.Second)              // a low voice keeps the floor
				speakers := p.Speakers()           //
				said(70, time.Second)              // listening
				said(30, time.Second)              // speech again, and then
				time.Sleep(450 * time.Millisecond) // nothing at all
				afterwards := p.Speakers()         //
				said(30, 500*time.Millisecond)     //
				leave(t, p)                        // in the middle of a word
				if len(speakers) != 1 || speakers[0].User != alice.user || len(afterwards) != 0 || len(p.Speakers()) != 0 {
					t.Errorf("Speakers = %v while alice spoke, %v when not, %v at last", speakers, afterwards, p.Speakers())
				}
				var got []bool
				for _, ev := range p.events {
					if s, ok := ev.(Speaking); ok {
						got = append(got, s.On)
					}
				}
				if want := []bool{true, false, true, false, true}; !slices.Equal(got, want) {
					t.Errorf("Speaking = %v, want %v", got, want)
				}
				if !slices.Equal(p.level, []byte{30}) {
					t.Errorf("the last packet carried level %v, want 30", p.level)
				}
			})
		})
	}
}

func TestLevelIsReadWithoutAllocation(t *testing.T) {
	sent := &rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 111}, Payload: make([]byte, 60)}
	for n, payload := range [][]byte{{48}, {0x80 | 60}} {
		if err := sent.SetExtension(uint8(4-n), payload); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := sent.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var level uint8
	conn := &peerConn{metrics: new(Metrics), packet: func(_ PeerKey, p *rtp.Packet) { level = p.GetExtension(LevelExtension)[0] & 0x7F }}
	r := &trackReader{conn: conn, levelID: 3}
	r.opus[111] = true
	packet := &rtp.Packet{}
	allocs := testing.AllocsPerRun(100, func() {
		if err := packet.Unmarshal(raw); err != nil {
			t.Fatal(err)
		}
		r.pass(packet)
	})
	if allocs != 0 || level != 60 || len(packet.Extensions) != 1 {
		t.Errorf("%v allocations a packet, level %d, %d extensions, want 0, 60, 1", allocs, level, len(packet.Extensions))
	}
}

// TestOnlyTheAgreedSectionIsHeard: a peer may send what it was asked not to.
func TestOnlyTheAgreedSectionIsHeard(t *testing.T) {
	heard := 0
	conn := &peerConn{metrics: new(Metrics), packet: func(PeerKey, *rtp.Packet) { heard++ }}
	conn.sentCopy("v=0\r\nm=audio 9 x 111\r\na=mid:0\r\na=sendrecv\r\nm=audio 9 x 111\r\na=mid:1\r\na=recvonly\r\n")
	for _, mid := range []string{"0", "1"} {
		r := &trackReader{conn: conn, mid: mid}
		r.opus[111] = true
		r.pass(&rtp.Packet{Header: rtp.Header{PayloadType: 111}})
	}
	if heard != 1 {
		t.Errorf("%d packets of two sections were heard, want the first one's", heard)
	}
}

// TestSharedScreenWithSoundIsNotMixedIntoTheVoice: the browser adds a second audio section to the call.
func TestSharedScreenWithSoundIsNotMixedIntoTheVoice(t *testing.T) {
	for _, ghost := range []id.UserID{"@_sip_1:x", "@zed:x"} { // inviter, invitee
		t.Run(string(ghost[1:4]), func(t *testing.T) {
			inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
				alice := bed.browser("@alice:x", "10.1.0.2", nil)
				alice.enter()
				p := bed.join(ghost)
				time.Sleep(2 * time.Second)
				bed.hearEachOther(p, alice)
				screen, err := webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus}, "tab-audio", "screen")
				if err != nil {
					t.Fatal(err)
				}
				alice.do(func() {
					_, err := alice.calls[ghost].pc.AddTransceiverFromTrack(screen, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
					alice.check(err)
				})
				alice.offer(ghost, false)
				time.Sleep(time.Second)
				in, _ := alice.sdp(ghost)
				if !strings.HasSuffix(strings.Join(directions(in), " "), "a=sendrecv a=inactive") {
					t.Errorf("answer to a shared screen with sound has %v:\n%s", directions(in), in)
				}
				before := p.heard(alice.user)
				for n := range 50 {
					alice.check(screen.WriteRTP(&rtp.Packet{
						Header: rtp.Header{Version: 2, SequenceNumber: uint16(n), Timestamp: uint32(n * 960)}, Payload: []byte("voice of " + string(alice.user)),
					}))
					bed.talk(20*time.Millisecond, p)
				}
				time.Sleep(50 * time.Millisecond)
				if got := p.heard(alice.user) - before; got != 50 {
					t.Errorf("%d packets heard of alice, want her 50", got)
				}
				leave(t, p)
			})
		})
	}
}

// directions are those of the audio sections.
func directions(sdp string) (found []string) {
	for _, section := range strings.Split(sdp, "\r\nm=")[1:] {
		for line := range strings.Lines(section) {
			switch line = strings.TrimSpace(line); line {
			case "a=sendrecv", "a=sendonly", "a=recvonly", "a=inactive":
				if strings.HasPrefix(section, "audio") {
					found = append(found, line)
				}
			}
		}
	}
	return found
}

// tonePackets writes packets of telephone events as event@timestamp+duration, with ! for a marker.
func tonePackets(t *testing.T, script string) []*rtp.Packet {
	var packets []*rtp.Packet
	for _, word := range strings.Fields(script) {
		var event byte
		var timestamp uint32
		var duration uint16
		if _, err := fmt.Sscanf(strings.TrimSuffix(word, "!"), "%d@%d+%d", &event, &timestamp, &duration); err != nil {
			t.Fatal(word, err)
		}
		packets = append(packets, &rtp.Packet{
			Header:  rtp.Header{Timestamp: timestamp, Marker: strings.HasSuffix(word, "!")},
			Payload: []byte{event, 10, byte(duration >> 8), byte(duration)},
		})
	}
	return packets
}

func TestEachPressIsOneDigit(t *testing.T) {
	for name, test := range map[string]struct{ packets, want string }{
		// As Chromium sends the shortest key: nothing but the end, three times, every one with a marker.
		"Chromium, short":       {"1@100+960! 1@100+960! 1@100+960! 1@11620+960! 1@11620+960! 1@11620+960!", "11"},
		"Chromium, longer":      {"7@500+960! 7@500+1920 7@500+2880 7@500+3840 7@500+4800 7@500+4800 7@500+4800", "7"},
		"first packets lost":    {"7@500+2880 7@500+3840 3@9000+4800", "73"},
		"late end":              {"1@100+960! 1@100+1920 2@20000+960! 1@100+1920 2@20000+1920", "12"},
		"same key, marker lost": {"5@100+4800! 5@100+4800 5@9700+960 5@9700+1920", "55"},
		"held for two seconds":  {"9@1000+960! 9@1000+64600 9@1000+65535 9@66535+960 9@66535+30000", "9"},
		"held, segment's end":   {"9@1000+960! 9@1000+65535 9@67000+960! 9@67000+30000", "99"},
		"wrapped timestamp":     {"1@4294967000+960! 1@4294967000+1920 2@11000+960!", "12"},
		"clock began anew":      {"1@4000000+960! 2@500+960!", "12"},
		"no digits":             {"16@100+960! 200@5000+960!", ""},
		"all keys":              {"0@1+1! 9@2+1! 10@3+1! 11@4+1! 12@5+1! 15@6+1!", "09*#AD"},
	} {
		var reader toneReader
		var got []rune
		for _, packet := range tonePackets(t, test.packets) {
			if digit, ok := reader.read(packet); ok {
				got = append(got, digit)
			}
		}
		if string(got) != test.want {
			t.Errorf("%s: %s gave %q, want %q", name, test.packets, string(got), test.want)
		}
	}
	var reader toneReader
	if _, ok := reader.read(&rtp.Packet{Payload: []byte{1, 2, 3}}); ok {
		t.Error("three bytes gave a digit")
	}
}
