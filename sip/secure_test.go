package sip

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/rtp"
)

var testKeys = []string{base64.StdEncoding.EncodeToString([]byte(strings.Repeat("a", 30))), base64.StdEncoding.EncodeToString([]byte(strings.Repeat("b", 30)))}

func TestAnswerWithKeys(t *testing.T) { // RFC 4568
	theirs := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("z", 30)))
	crypto := func(tag, suite, key string) string { return "a=crypto:" + tag + " " + suite + " inline:" + key + "\n" }
	const s80, s32 = "AES_CM_128_HMAC_SHA1_80", "AES_CM_128_HMAC_SHA1_32"
	savp := sdpHead + "m=audio 4000 RTP/SAVP 0\n"
	avp := sdpHead + "m=audio 4000 RTP/AVP 0\n"
	for _, tt := range []struct {
		name, offer string
		mode        SRTPMode
		insecure    bool // signalling without TLS
		want        string
		crypto      Crypto
		warn        int
	}{
		{"off", savp + crypto("1", s80, theirs), SRTPOff, false, "", Crypto{}, 302},
		{"keys without TLS are not taken", savp + crypto("1", s80, theirs), SRTPOptional, true, "", Crypto{}, 302},
		{"required, no TLS", avp, SRTPRequired, true, "", Crypto{}, 302},
		{"optional, plain offer", avp, SRTPOptional, false, "RTP/AVP", Crypto{}, 0},
		{"required, plain offer", avp, SRTPRequired, false, "", Crypto{}, 302},
		{"SAVP", savp + crypto("4", s80, theirs+"|2^20"), SRTPOptional, false, "RTP/SAVP", Crypto{s80, 4, testKeys[0], theirs}, 0},
		{"short tag first", savp + crypto("1", s32, theirs) + crypto("2", s80, theirs), SRTPRequired, false, "RTP/SAVP", Crypto{s32, 1, testKeys[1], theirs}, 0},
		{"best effort: AVP with keys", avp + crypto("1", s80, theirs), SRTPRequired, false, "RTP/AVP", Crypto{s80, 1, testKeys[0], theirs}, 0},
		{"unknown suites are passed over", savp + crypto("1", "AEAD_AES_256_GCM", theirs) + crypto("2", s80, theirs), SRTPOptional, false, "RTP/SAVP", Crypto{s80, 2, testKeys[0], theirs}, 0},
		{"no usable key", savp + crypto("1", s80, "short") + crypto("2", s80, theirs+"|1:4") + crypto("3", s80, theirs+" UNENCRYPTED_SRTP") + "a=crypto:x\n", SRTPOptional, false, "", Crypto{}, 302},
		{"keys win over plain", avp + "m=audio 4002 RTP/SAVP 0\n" + crypto("1", s80, theirs), SRTPOptional, false, "RTP/SAVP", Crypto{s80, 1, testKeys[0], theirs}, 0},
		{"DTLS-SRTP is not ours", sdpHead + "m=audio 9 UDP/TLS/RTP/SAVPF 0\n" + crypto("1", s80, theirs), SRTPRequired, false, "", Crypto{}, 302},
	} {
		t.Run(tt.name, func(t *testing.T) {
			local := ours()
			local.SRTP, local.Secure, local.Keys = tt.mode, !tt.insecure, testKeys
			body, n, err := Answer([]byte(crlf(tt.offer)), local)
			if na, ok := errors.AsType[*NotAcceptable](err); tt.warn != 0 {
				if !ok || na.Warn != tt.warn {
					t.Errorf("Answer = %v, want warning %d", err, tt.warn)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.crypto, n.Crypto); d != "" {
				t.Errorf("crypto (-want +got):\n%s", d)
			}
			want := ""
			if tt.crypto.on() {
				want = fmt.Sprintf("a=crypto:%d %s inline:%s\r\n", tt.crypto.Tag, tt.crypto.Suite, tt.crypto.Local)
			}
			if !strings.Contains(string(body), " "+tt.want+" 0\r\n") || strings.Contains(string(body), "crypto") != tt.crypto.on() || !strings.Contains(string(body), want) {
				t.Errorf("answer = %q", body)
			}
		})
	}
}

func TestOfferOfKeysAndItsAnswer(t *testing.T) {
	theirs := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("z", 30)))
	const key = "a=crypto:2 AES_CM_128_HMAC_SHA1_32 inline:"
	for _, tt := range []struct {
		name   string
		mode   SRTPMode
		proto  string
		answer string
		crypto bool
		ok     bool
	}{
		{"required", SRTPRequired, "RTP/SAVP", "m=audio 4000 RTP/SAVP 0\n" + key + theirs + "\n", true, true},
		{"required, answered in clear", SRTPRequired, "RTP/SAVP", "m=audio 4000 RTP/AVP 0\n", false, false},
		{"required, no key", SRTPRequired, "RTP/SAVP", "m=audio 4000 RTP/SAVP 0\n", false, false},
		{"optional, taken", SRTPOptional, "RTP/AVP", "m=audio 4000 RTP/AVP 0\n" + key + theirs + "\n", true, true},
		{"optional, not taken", SRTPOptional, "RTP/AVP", "m=audio 4000 RTP/AVP 0\n", false, true},
		{"off, but answered so", SRTPOff, "RTP/AVP", "m=audio 4000 RTP/SAVP 0\n" + key + theirs + "\n", false, false},
	} {
		local := ours()
		local.SRTP, local.Secure, local.Keys = tt.mode, true, testKeys
		body, _ := Offer(local)
		if !strings.Contains(string(body), "m=audio 20000 "+tt.proto+" 0 8 101\r\n") || strings.Count(string(body), "a=crypto:") != map[SRTPMode]int{SRTPOptional: 2, SRTPRequired: 2}[tt.mode] {
			t.Errorf("%s: offer = %q", tt.name, body)
		}
		n, err := TakeAnswer([]byte(crlf(sdpHead+tt.answer)), local)
		if (err == nil) != tt.ok {
			t.Errorf("%s: TakeAnswer = %v", tt.name, err)
		} else if tt.ok && n.Crypto.on() != tt.crypto || tt.crypto && n.Crypto.Local != testKeys[1] {
			t.Errorf("%s: TakeAnswer = %+v", tt.name, n)
		}
	}
}

// packet is a packet of 160 octets with this number.
func packet(ssrc uint32, seq uint16) []byte {
	p := rtp.Packet{Header: rtp.Header{Version: 2, SSRC: ssrc, SequenceNumber: seq}, Payload: []byte(strings.Repeat("v", 160))}
	b, _ := p.Marshal()
	return b
}

func TestRolloverCounterIsFoundAgain(t *testing.T) { // RFC 3711 §3.3.1: it is in no packet
	phone, bridge := testCrypto(0, 1), testCrypto(1, 0)
	var sender protection
	if err := sender.use(phone); err != nil {
		t.Fatal(err)
	}
	sealed := func(seq uint16) []byte {
		buf := make([]byte, 1500)
		b, err := sender.seal(buf, copy(buf, packet(7, seq)))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for turn := range 3 { // three times round
		for _, seq := range []uint16{100, 30000, 60000} {
			_ = sealed(seq + uint16(turn))
		}
	}
	for _, tt := range []struct {
		rollovers uint32
		ok        bool
	}{{0, false}, {1, false}, {4, true}} {
		again := protection{rollovers: tt.rollovers, tries: 10}
		if err := again.use(bridge); err != nil {
			t.Fatal(err)
		}
		stranger := protection{}
		_ = stranger.use(testCrypto(1, 1))
		buf := make([]byte, 1500)
		forged, _ := stranger.seal(buf, copy(buf, packet(7, 60100)))
		if _, ok := again.open(forged); ok {
			t.Error("a forged packet was taken")
		}
		for seq := uint16(60100); seq < 60104; seq++ {
			b, ok := again.open(sealed(seq))
			if ok != tt.ok || ok && string(b) != string(packet(7, seq)) {
				t.Errorf("after up to %d turns: packet %d opened: %v", tt.rollovers, seq, ok)
			}
		}
		if replay := sealed(60105); tt.ok {
			copied := append([]byte(nil), replay...)
			if _, ok := again.open(replay); !ok {
				t.Error("a packet was not taken")
			}
			if _, ok := again.open(copied); ok {
				t.Error("a packet was taken twice")
			}
		}
	}
	var lost protection // too many forgeries: no more searching
	_ = lost.use(bridge)
	lost.rollovers, lost.tries = 4, 1
	_, _ = lost.open(make([]byte, 200))
	if _, ok := lost.open(sealed(60200)); ok {
		t.Error("it searched for ever")
	}
}

func TestRolloverSearchHasAnEndWhateverTheClock(t *testing.T) {
	for _, tt := range []struct {
		age  time.Duration
		want uint32
	}{
		{0, 1},
		{11 * time.Minute, 2},
		{100 * time.Hour, 550},
		{1000 * time.Hour, 1001},
		{-11 * time.Minute, 1}, // the clock of the next process is behind
		{-22 * time.Minute, 1},
		{-40 * time.Minute, 1},
		{-1000 * time.Hour, 1},
	} {
		var m Media
		m.searchRollover(tt.age)
		if got := m.secure.rollovers; got != tt.want {
			t.Errorf("a call that began %v ago: up to %d turns are tried, want %d", tt.age, got, tt.want)
		}
	}
}

func testCrypto(local, remote int) Crypto {
	return Crypto{Suite: suites[0].name, Tag: 1, Local: testKeys[local], Remote: testKeys[remote]}
}

func TestUnchangedKeysGoOn(t *testing.T) { // a re-INVITE must not reset counters: same key and number twice is the two-time pad
	var p protection
	_ = p.use(testCrypto(0, 1))
	out, in := p.out, p.in
	_ = p.use(testCrypto(0, 1))
	if p.out != out || p.in != in {
		t.Error("the same keys made new contexts")
	}
	_ = p.use(testCrypto(0, 0))
	if p.out != out || p.in == in {
		t.Error("a new key of the phone must change its context, and only that")
	}
}

func TestWriteSRTPDoesNotAllocateBuffers(t *testing.T) {
	p := newPorts(RTPConfig{Addr: netip.MustParseAddr("127.0.0.1"), PortMin: 35000, PortMax: 35999}, 0, ownSockets{})
	rtpc, rtcpc, err := p.open()
	if err != nil {
		t.Fatal(err)
	}
	sink, err := net.ListenPacket("udp4", "127.0.0.1:0") // not our own port: what is read there allocates, and all of the process is counted
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	m := newMedia(p, rtpc, rtcpc, &mediaTotals{})
	m.apply(Negotiated{Remote: addrPortOf(sink.LocalAddr()), Direction: SendRecv, Crypto: testCrypto(0, 1)}, nil, time.Now())
	m.start()
	defer m.close(false)
	packet := &rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5}, Payload: make([]byte, 160)}
	n := testing.AllocsPerRun(100, func() { packet.SequenceNumber++; _ = m.WriteRTP(packet) })
	t.Logf("%v allocations", n)
	if n > 0 {
		t.Errorf("WriteRTP allocates %v times", n)
	}
}
