package sip

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// ours is the local side in the tables.
func ours() LocalState {
	return LocalState{
		Addr: netip.MustParseAddrPort("192.0.2.1:20000"), Codecs: []string{"PCMU", "PCMA"}, SessionID: 7, MediaIndex: -1,
	}
}

const (
	sdpHead = "v=0\no=- 1 1 IN IP4 192.0.2.20\ns=-\nc=IN IP4 192.0.2.20\nt=0 0\n"
	ownHead = "v=0\no=- 7 1 IN IP4 192.0.2.1\ns=-\nc=IN IP4 192.0.2.1\nt=0 0\n"
)

// ownPCMU is our ordinary answer.
const ownPCMU = ownHead + "m=audio 20000 RTP/AVP 0\na=rtpmap:0 PCMU/8000\na=ptime:20\na=sendrecv\n"

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

var netipEqual = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

// usual is what most offers of the table lead to; with changes it.
var usual = Negotiated{
	Format: Format{Codec: "PCMU", PayloadType: 0, ClockRate: 8000, Ptime: 20},
	Remote: addr("192.0.2.20:4000"), RemoteRTCP: addr("192.0.2.20:4001"), Direction: SendRecv, SDPVersion: 1,
}

func with(f func(*Negotiated)) *Negotiated {
	n := usual
	f(&n)
	return &n
}

var answerTests = []struct {
	name  string
	offer string
	local func(*LocalState)
	want  string
	neg   *Negotiated
}{
	{"plain", sdpHead + "m=audio 4000 RTP/AVP 0\n", nil, ownPCMU, &usual},
	{"our preference decides", sdpHead + "m=audio 4000 RTP/AVP 8 0\n", nil, ownPCMU, &usual},
	{
		"PCMA only", sdpHead + "m=audio 4000 RTP/AVP 8\n", nil,
		strings.ReplaceAll(ownPCMU, "AVP 0\na=rtpmap:0 PCMU", "AVP 8\na=rtpmap:8 PCMA"),
		with(func(n *Negotiated) { n.Format.Codec, n.Format.PayloadType = "PCMA", 8 }),
	},
	{
		"codec by dynamic number", sdpHead + "m=audio 4000 RTP/AVP 96\na=rtpmap:96 pcma/8000/1\n", nil,
		strings.ReplaceAll(ownPCMU, "AVP 0\na=rtpmap:0 PCMU", "AVP 96\na=rtpmap:96 PCMA"),
		with(func(n *Negotiated) { n.Format.Codec, n.Format.PayloadType = "PCMA", 96 }),
	},
	{
		"telephone-event with the offer's number", // RFC 3264 §6.1
		sdpHead + "m=audio 4000 RTP/AVP 18 97 0\na=rtpmap:97 telephone-event/8000\na=fmtp:97 0-16\n", nil,
		ownHead + "m=audio 20000 RTP/AVP 0 97\na=rtpmap:0 PCMU/8000\na=rtpmap:97 telephone-event/8000\na=fmtp:97 0-15\na=ptime:20\na=sendrecv\n",
		with(func(n *Negotiated) { n.Format.DTMF, n.Format.DTMFRate = 97, 8000 }),
	},
	{
		"telephone-event of another clock is not ours",
		sdpHead + "m=audio 4000 RTP/AVP 0 98\na=rtpmap:98 telephone-event/48000\n", nil, ownPCMU, &usual,
	},
	{"two channels are not ours", sdpHead + "m=audio 4000 RTP/AVP 96 0\na=rtpmap:96 PCMU/8000/2\n", nil, ownPCMU, &usual},
	{
		"ptime is what the phone wants to get", sdpHead + "m=audio 4000 RTP/AVP 0\na=ptime:30\n", nil, ownPCMU,
		with(func(n *Negotiated) { n.Format.Ptime = 30 }),
	},
	{"absurd ptime is ignored", sdpHead + "m=audio 4000 RTP/AVP 0\na=ptime:9000\n", nil, ownPCMU, &usual},
	{
		"sendonly is answered recvonly", sdpHead + "m=audio 4000 RTP/AVP 0\na=sendonly\n", nil,
		strings.ReplaceAll(ownPCMU, "sendrecv", "recvonly"), with(func(n *Negotiated) { n.Direction = RecvOnly }),
	},
	{
		"recvonly is answered sendonly", sdpHead + "m=audio 4000 RTP/AVP 0\na=recvonly\n", nil,
		strings.ReplaceAll(ownPCMU, "sendrecv", "sendonly"), with(func(n *Negotiated) { n.Direction = SendOnly }),
	},
	{
		"inactive stays inactive", sdpHead + "m=audio 4000 RTP/AVP 0\na=inactive\n", nil,
		strings.ReplaceAll(ownPCMU, "sendrecv", "inactive"), with(func(n *Negotiated) { n.Direction = Inactive }),
	},
	{
		"direction of the session", sdpHead + "a=sendonly\nm=audio 4000 RTP/AVP 0\n", nil,
		strings.ReplaceAll(ownPCMU, "sendrecv", "recvonly"), with(func(n *Negotiated) { n.Direction = RecvOnly }),
	},
	{"direction of the media wins", sdpHead + "a=sendonly\nm=audio 4000 RTP/AVP 0\na=sendrecv\n", nil, ownPCMU, &usual},
	{
		"we hold: sendrecv is answered sendonly", sdpHead + "m=audio 4000 RTP/AVP 0\n",
		func(l *LocalState) { l.Hold = true },
		strings.ReplaceAll(ownPCMU, "sendrecv", "sendonly"), with(func(n *Negotiated) { n.Direction = SendOnly }),
	},
	{
		"both hold: sendonly is answered inactive", sdpHead + "m=audio 4000 RTP/AVP 0\na=sendonly\n",
		func(l *LocalState) { l.Hold = true },
		strings.ReplaceAll(ownPCMU, "sendrecv", "inactive"), with(func(n *Negotiated) { n.Direction = Inactive }),
	},
	{
		"hold of the old kind", // RFC 3264 §8.4
		strings.ReplaceAll(sdpHead, "c=IN IP4 192.0.2.20", "c=IN IP4 0.0.0.0") + "m=audio 4000 RTP/AVP 0\n", nil, ownPCMU,
		with(func(n *Negotiated) {
			n.Remote, n.RemoteRTCP, n.RemoteSilent = addr("0.0.0.0:4000"), addr("0.0.0.0:4001"), true
		}),
	},
	{
		"address of the media wins", sdpHead + "m=audio 4000 RTP/AVP 0\nc=IN IP4 198.51.100.9\n", nil, ownPCMU,
		with(func(n *Negotiated) {
			n.Remote, n.RemoteRTCP = addr("198.51.100.9:4000"), addr("198.51.100.9:4001")
		}),
	},
	{
		"address of the media alone", "v=0\no=- 1 1 IN IP4 x\ns=-\nt=0 0\nm=audio 4000 RTP/AVP 0\nc=IN IP4 192.0.2.20\n", nil,
		ownPCMU, &usual,
	},
	{
		"other streams keep their place with port 0", // RFC 3264 §6
		sdpHead + "m=video 4002 RTP/AVP 96\na=rtpmap:96 VP8/90000\nm=audio 4000 RTP/AVP 0\nm=audio 4004 RTP/AVP 8\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\n", nil,
		ownHead + "m=video 0 RTP/AVP 96\nm=audio 20000 RTP/AVP 0\na=rtpmap:0 PCMU/8000\na=ptime:20\na=sendrecv\nm=audio 0 RTP/AVP 8\nm=application 0 UDP/DTLS/SCTP webrtc-datachannel\n",
		with(func(n *Negotiated) { n.MediaIndex = 1 }),
	},
	{
		"SRTP first, RTP second: RTP", // RFC 6337 §5.3
		sdpHead + "m=audio 4002 RTP/SAVP 0\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x\nm=audio 4000 RTP/AVP 0\n", nil,
		ownHead + "m=audio 0 RTP/SAVP 0\nm=audio 20000 RTP/AVP 0\na=rtpmap:0 PCMU/8000\na=ptime:20\na=sendrecv\n",
		with(func(n *Negotiated) { n.MediaIndex = 1 }),
	},
	{
		"a stream for each kind of address", // RFC 5118 §4.6
		sdpHead + "m=audio 4002 RTP/AVP 0\nc=IN IP6 2001:db8::20\nm=audio 4000 RTP/AVP 0\n", nil,
		ownHead + "m=audio 0 RTP/AVP 0\nm=audio 20000 RTP/AVP 0\na=rtpmap:0 PCMU/8000\na=ptime:20\na=sendrecv\n",
		with(func(n *Negotiated) { n.MediaIndex = 1 }),
	},
	{
		"a disabled stream is not taken", sdpHead + "m=audio 0 RTP/AVP 8\nm=audio 4000 RTP/AVP 0\n", nil,
		ownHead + "m=audio 0 RTP/AVP 8\nm=audio 20000 RTP/AVP 0\na=rtpmap:0 PCMU/8000\na=ptime:20\na=sendrecv\n",
		with(func(n *Negotiated) { n.MediaIndex = 1 }),
	},
	{
		"attributes of browsers are ignored",
		sdpHead + "a=group:BUNDLE 0\na=ice-lite\na=fingerprint:sha-256 AA\nm=audio 4000 RTP/AVP 0\na=mid:0\na=ice-ufrag:x\na=candidate:1 1 udp 1 10.0.0.1 5 typ host\na=crypto:1 x y\nb=AS:64\nk=clear:x\ni=info\n",
		nil, ownPCMU, &usual,
	},
	{
		"rtcp-mux", sdpHead + "m=audio 4000 RTP/AVP 0\na=rtcp-mux\n", nil, ownPCMU + "a=rtcp-mux\n",
		with(func(n *Negotiated) { n.RTCPMux, n.RemoteRTCP = true, n.Remote }),
	},
	{
		"rtcp elsewhere", sdpHead + "m=audio 4000 RTP/AVP 0\na=rtcp:4711\n", nil, ownPCMU,
		with(func(n *Negotiated) { n.RemoteRTCP = addr("192.0.2.20:4711") }),
	},
	{
		"rtcp at a third party is not sent", sdpHead + "m=audio 4000 RTP/AVP 0\na=rtcp:53 IN IP4 198.51.100.1\n", nil, ownPCMU,
		with(func(n *Negotiated) { n.RemoteRTCP = netip.AddrPort{} }),
	},
	{
		"codec in use is kept", sdpHead + "m=audio 4000 RTP/AVP 0 8\n", func(l *LocalState) { l.Current.Codec = "PCMA" },
		strings.ReplaceAll(ownPCMU, "AVP 0\na=rtpmap:0 PCMU", "AVP 8\na=rtpmap:8 PCMA"),
		with(func(n *Negotiated) { n.Format.Codec, n.Format.PayloadType = "PCMA", 8 }),
	},
	{"codec in use is gone", sdpHead + "m=audio 4000 RTP/AVP 0\n", func(l *LocalState) { l.Current.Codec = "PCMA" }, ownPCMU, &usual},
	{
		"nothing changed: same version", sdpHead + "m=audio 4000 RTP/AVP 0\n",
		func(l *LocalState) {
			l.SDPVersion, l.LocalSDP = 4, crlf(strings.ReplaceAll(ownPCMU, "o=- 7 1", "o=- 7 4"))
		},
		strings.ReplaceAll(ownPCMU, "o=- 7 1", "o=- 7 4"), with(func(n *Negotiated) { n.SDPVersion = 4 }),
	},
	{
		"something changed: next version", sdpHead + "m=audio 4000 RTP/AVP 0\na=sendonly\n",
		func(l *LocalState) {
			l.SDPVersion, l.LocalSDP = 4, crlf(strings.ReplaceAll(ownPCMU, "o=- 7 1", "o=- 7 4"))
		},
		strings.NewReplacer("o=- 7 1", "o=- 7 5", "sendrecv", "recvonly").Replace(ownPCMU),
		with(func(n *Negotiated) { n.SDPVersion, n.Direction = 5, RecvOnly }),
	},
	{
		"a later offer adds a stream", sdpHead + "m=audio 4000 RTP/AVP 0\nm=video 4002 RTP/AVP 96\n", before(0, "m=audio 20000 RTP/AVP 0\n"),
		strings.ReplaceAll(ownPCMU, "o=- 7 1", "o=- 7 5") + "m=video 0 RTP/AVP 96\n", with(func(n *Negotiated) { n.SDPVersion = 5 }),
	},
	{ // RFC 3264 §8.1: a stream that is added may not take the place of ours
		"a later offer adds audio", sdpHead + "m=video 0 RTP/AVP 96\nm=audio 4000 RTP/AVP 0\nm=audio 4010 RTP/AVP 8\n",
		before(1, "m=video 0 RTP/AVP 96\nm=audio 20000 RTP/AVP 0\n"),
		strings.NewReplacer("o=- 7 1", "o=- 7 5", "m=audio", "m=video 0 RTP/AVP 96\nm=audio").Replace(ownPCMU) + "m=audio 0 RTP/AVP 8\n",
		with(func(n *Negotiated) { n.SDPVersion, n.MediaIndex = 5, 1 }),
	},
	{ // §8.2: ours is switched off, and another one is on in its stead
		"a later offer replaces our stream", sdpHead + "m=audio 0 RTP/AVP 0\nm=audio 4000 RTP/AVP 0\n", before(0, "m=audio 20000 RTP/AVP 0\n"),
		strings.NewReplacer("o=- 7 1", "o=- 7 5", "m=audio", "m=audio 0 RTP/AVP 0\nm=audio").Replace(ownPCMU),
		with(func(n *Negotiated) { n.SDPVersion, n.MediaIndex = 5, 1 }),
	},
	{ // §8.2: nothing is sent any more, but the call stays
		"a later offer switches our stream off", sdpHead + "m=audio 0 RTP/AVP 0\n", before(0, "m=audio 20000 RTP/AVP 0\n"),
		strings.NewReplacer("o=- 7 1", "o=- 7 5").Replace(ownHead) + "m=audio 0 RTP/AVP 0\n", switchedOff(0),
	},
	{
		"a later offer switches everything off", sdpHead + "m=video 0 RTP/AVP 96\nm=audio 0 RTP/AVP 8 0\nm=audio 0 RTP/AVP 0\n",
		before(1, "m=video 0 RTP/AVP 96\nm=audio 20000 RTP/AVP 0\n"),
		strings.NewReplacer("o=- 7 1", "o=- 7 5").Replace(ownHead) + "m=video 0 RTP/AVP 96\nm=audio 0 RTP/AVP 8\nm=audio 0 RTP/AVP 0\n", switchedOff(1),
	},
	{
		"it was off already: same version", sdpHead + "m=audio 0 RTP/AVP 0\n", before(0, "m=audio 0 RTP/AVP 0\n"),
		strings.NewReplacer("o=- 7 1", "o=- 7 4").Replace(ownHead) + "m=audio 0 RTP/AVP 0\n",
		with(func(n *Negotiated) { *n = *switchedOff(0); n.SDPVersion = 4 }),
	},
	{ // §8.1: the place of a stream that is off may be used again
		"a later offer switches our stream on again", sdpHead + "m=audio 4000 RTP/AVP 0\n", before(0, "m=audio 0 RTP/AVP 0\n"),
		strings.ReplaceAll(ownPCMU, "o=- 7 1", "o=- 7 5"), with(func(n *Negotiated) { n.SDPVersion = 5 }),
	},
	{ // §8 forbids it; who does it has sound all the same
		"a later offer leaves streams out", sdpHead + "m=audio 4000 RTP/AVP 0\n", before(1, "m=video 0 RTP/AVP 96\nm=audio 20000 RTP/AVP 0\n"),
		strings.ReplaceAll(ownPCMU, "o=- 7 1", "o=- 7 5"), with(func(n *Negotiated) { n.SDPVersion = 5 }),
	},
	{ // §8 forbids that, too
		"a later offer turns the streams round", sdpHead + "m=audio 4000 RTP/AVP 0\nm=video 4002 RTP/AVP 96\n",
		before(1, "m=video 0 RTP/AVP 96\nm=audio 20000 RTP/AVP 0\n"),
		strings.ReplaceAll(ownPCMU, "o=- 7 1", "o=- 7 5") + "m=video 0 RTP/AVP 96\n", with(func(n *Negotiated) { n.SDPVersion = 5 }),
	},
	{ // §8.3.1
		"a later offer moves the sound", sdpHead + "m=audio 4100 RTP/AVP 0\nc=IN IP4 198.51.100.9\n", before(0, "m=audio 20000 RTP/AVP 0\n"),
		strings.ReplaceAll(ownPCMU, "o=- 7 1", "o=- 7 5"),
		with(func(n *Negotiated) {
			n.SDPVersion, n.Remote, n.RemoteRTCP = 5, addr("198.51.100.9:4100"), addr("198.51.100.9:4101")
		}),
	},
	{
		"IPv6", "v=0\no=- 1 1 IN IP6 2001:db8::2\ns=-\nc=IN IP6 2001:db8::2\nt=0 0\nm=audio 4000 RTP/AVP 0\n",
		func(l *LocalState) { l.Addr = addr("[2001:db8::1]:20000") },
		strings.NewReplacer("IP4", "IP6", "192.0.2.1", "2001:db8::1").Replace(ownPCMU),
		with(func(n *Negotiated) {
			n.Remote, n.RemoteRTCP = addr("[2001:db8::2]:4000"), addr("[2001:db8::2]:4001")
		}),
	},
}

// before is our side when we have sent a description with these streams, ours being the i-th.
func before(i int, media string) func(*LocalState) {
	return func(l *LocalState) {
		l.SDPVersion, l.MediaIndex, l.Current, l.Later = 4, i, usual.Format, true
		l.LocalSDP = crlf(strings.ReplaceAll(ownHead, "o=- 7 1", "o=- 7 4") + media)
	}
}

// switchedOff is what is left of our i-th stream.
func switchedOff(i int) *Negotiated {
	return &Negotiated{Format: usual.Format, Direction: Inactive, RemoteSilent: true, MediaIndex: i, SDPVersion: 5}
}

func TestAnswer(t *testing.T) {
	for _, tt := range answerTests {
		t.Run(tt.name, func(t *testing.T) {
			for _, offer := range []string{crlf(tt.offer), tt.offer} { // bare LF is read, too
				local := ours()
				if tt.local != nil {
					tt.local(&local)
				}
				body, n, err := Answer([]byte(offer), local)
				if err != nil {
					t.Fatalf("Answer(%q) = %v", offer, err)
				}
				if d := cmp.Diff(crlf(tt.want), string(body)); d != "" {
					t.Errorf("answer (-want +got):\n%s", d)
				}
				if d := cmp.Diff(tt.neg, n, netipEqual); d != "" {
					t.Errorf("negotiated (-want +got):\n%s", d)
				}
				if _, err := ParseSDP(body); err != nil {
					t.Errorf("our own answer does not parse: %v", err)
				}
			}
		})
	}
}

func TestAnswerRefuses(t *testing.T) {
	tests := []struct {
		name, offer string
		warn        int // 0: malformed
	}{
		{"SRTP only", sdpHead + "m=audio 4000 RTP/SAVP 0\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x\n", 302},
		{"DTLS-SRTP of a browser", sdpHead + "m=audio 9 UDP/TLS/RTP/SAVPF 111 0\na=setup:actpass\n", 302},
		{"RTP with feedback only", sdpHead + "m=audio 4000 RTP/AVPF 0\n", 302},
		{"video only", sdpHead + "m=video 4000 RTP/AVP 96\n", 304},
		{"no media", sdpHead, 304},
		{"no common codec", sdpHead + "m=audio 4000 RTP/AVP 18 9 101\na=rtpmap:101 telephone-event/8000\n", 305},
		{"0 renamed to something else", sdpHead + "m=audio 4000 RTP/AVP 0\na=rtpmap:0 L16/44100\n", 305},
		{"IPv6 to an IPv4 bridge", "v=0\no=- 1 1 IN IP6 ::1\ns=-\nc=IN IP6 2001:db8::2\nt=0 0\nm=audio 4000 RTP/AVP 0\n", 301},
		{"multicast", strings.ReplaceAll(sdpHead, "c=IN IP4 192.0.2.20", "c=IN IP4 224.2.1.1/127") + "m=audio 4000 RTP/AVP 0\n", 330},
		{"empty", "", 0},
		{"not SDP", "hello", 0},
		{"JSON", `{"v":0}`, 0},
		{"no version", "o=- 1 1 IN IP4 192.0.2.20\n", 0},
		{"no address", "v=0\nm=audio 4000 RTP/AVP 0\n", 0},
		{"host name as address", strings.ReplaceAll(sdpHead, "c=IN IP4 192.0.2.20", "c=IN IP4 phone.example") + "m=audio 4000 RTP/AVP 0\n", 301}, // RFC 8866 §5.7 allows it
		{"address of another network", strings.ReplaceAll(sdpHead, "c=IN IP4 192.0.2.20", "c=ATM NSAP 47.0091") + "m=audio 4000 RTP/AVP 0\n", 300},
		{"address of another kind", strings.ReplaceAll(sdpHead, "c=IN IP4 192.0.2.20", "c=IN IP5 192.0.2.20") + "m=audio 4000 RTP/AVP 0\n", 301},
		{"no address at all", strings.ReplaceAll(sdpHead, "c=IN IP4 192.0.2.20", "c=IN IP4 <>") + "m=audio 4000 RTP/AVP 0\n", 0},
		{"bad port", sdpHead + "m=audio 70000 RTP/AVP 0\n", 0},
		{"negative port", sdpHead + "m=audio -1 RTP/AVP 0\n", 0},
		{"no formats", sdpHead + "m=audio 4000 RTP/AVP\n", 0},
		{"too many streams", sdpHead + strings.Repeat("m=audio 4000 RTP/AVP 0\n", 17), 0},
		{"too many lines", sdpHead + strings.Repeat("a=x\n", 400), 0},
		{"too many formats", sdpHead + "m=audio 4000 RTP/AVP" + strings.Repeat(" 0", 65) + "\n", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body, n, err := Answer([]byte(crlf(tt.offer)), ours())
			if err == nil {
				t.Fatalf("Answer = %q, %+v, want an error", body, n)
			}
			na, ok := errors.AsType[*NotAcceptable](err)
			switch {
			case tt.warn == 0 && !errors.Is(err, errSDP):
				t.Errorf("Answer = %v, want malformed", err)
			case tt.warn != 0 && (!ok || na.Warn != tt.warn):
				t.Errorf("Answer = %v, want warning %d", err, tt.warn)
			}
		})
	}
}

// What a later offer may not do to a call; its caller gets 488, and the call goes on as it was.
func TestAnswerRefusesLaterOffers(t *testing.T) {
	for _, tt := range []struct {
		name, offer string
		warn        int
	}{
		{"a fax beside our stream that is off", sdpHead + "m=audio 0 RTP/AVP 0\nm=image 4002 udptl t38\n", 304},
		{"a fax in place of our stream", sdpHead + "m=image 4002 udptl t38\n", 304}, // RFC 3264 §8.3.3
		{"no streams at all", sdpHead, 304},
		{"no codec of ours any more", sdpHead + "m=audio 4000 RTP/AVP 18\n", 305},
		{"another protocol", sdpHead + "m=audio 4000 RTP/SAVP 0\n", 302},
		{"a stream that is off is another kind of stream", sdpHead + "m=image 0 udptl t38\n", 304},
	} {
		local := ours()
		before(0, "m=audio 20000 RTP/AVP 0\n")(&local)
		body, _, err := Answer([]byte(crlf(tt.offer)), local)
		if na, ok := errors.AsType[*NotAcceptable](err); !ok || na.Warn != tt.warn {
			t.Errorf("%s: Answer = %q, %v, want warning %d", tt.name, body, err, tt.warn)
		}
	}
}

// Answers to an offer of ours in a call that is up.
func TestLaterOfferAndItsAnswer(t *testing.T) {
	local := ours()
	before(0, "m=audio 20000 RTP/AVP 0\n")(&local)
	body, n := Offer(local)
	local.LocalSDP, local.SDPVersion = string(body), n.SDPVersion
	for _, tt := range []struct {
		name, answer string
		want         *Negotiated // nil: it is none
	}{
		{"as before", sdpHead + "m=audio 4000 RTP/AVP 0\n", with(func(n *Negotiated) { n.SDPVersion = 5 })},
		{"another codec of the offer", sdpHead + "m=audio 4000 RTP/AVP 8\n", with(func(n *Negotiated) {
			n.SDPVersion, n.Format.Codec, n.Format.PayloadType = 5, "PCMA", 8
		})},
		{"on hold", sdpHead + "m=audio 4000 RTP/AVP 0\na=sendonly\n", with(func(n *Negotiated) { n.SDPVersion, n.Direction = 5, RecvOnly })},
		{"it listens only", sdpHead + "m=audio 4000 RTP/AVP 0\na=recvonly\n", with(func(n *Negotiated) { n.SDPVersion, n.Direction = 5, SendOnly })},
		{"on hold for both", sdpHead + "m=audio 4000 RTP/AVP 0\na=inactive\n", with(func(n *Negotiated) { n.SDPVersion, n.Direction = 5, Inactive })},
		{"on hold of the old kind", strings.ReplaceAll(sdpHead, "c=IN IP4 192.0.2.20", "c=IN IP4 0.0.0.0") + "m=audio 4000 RTP/AVP 0\n", with(func(n *Negotiated) {
			n.SDPVersion, n.RemoteSilent, n.Remote, n.RemoteRTCP = 5, true, addr("0.0.0.0:4000"), addr("0.0.0.0:4001")
		})},
		{"switched off", sdpHead + "m=audio 0 RTP/AVP 0\n", switchedOff(0)},
		{"no codec of the offer", sdpHead + "m=audio 4000 RTP/AVP 18\n", nil},
		{"a fax", sdpHead + "m=image 4002 udptl t38\n", nil},
		{"no streams at all", sdpHead, nil},
		{"nothing", "", nil},
	} {
		got, err := TakeAnswer([]byte(crlf(tt.answer)), local)
		if (err == nil) != (tt.want != nil) {
			t.Errorf("%s: TakeAnswer = %v", tt.name, err)
		}
		if d := cmp.Diff(tt.want, got, netipEqual); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}

func TestOfferAndItsAnswer(t *testing.T) {
	local := ours()
	local.Codecs = local.Codecs[:1]
	body, n := Offer(local)
	want := crlf(ownHead + "m=audio 20000 RTP/AVP 0 101\na=rtpmap:0 PCMU/8000\na=rtpmap:101 telephone-event/8000\n" +
		"a=fmtp:101 0-15\na=ptime:20\na=sendrecv\na=rtcp-mux\n")
	if d := cmp.Diff(want, string(body)); d != "" {
		t.Errorf("offer (-want +got):\n%s", d)
	}
	local.SDPVersion = n.SDPVersion
	for _, tt := range []struct {
		name, answer string
		ok           bool
		dtmf         uint8
		direction    Direction
	}{
		{"full", sdpHead + "m=audio 4000 RTP/AVP 0 101\na=rtpmap:101 telephone-event/8000\n", true, 101, SendRecv},
		{"without keys, on hold", sdpHead + "m=audio 4000 RTP/AVP 0\na=sendonly\n", true, 0, RecvOnly},
		{"on hold for both", sdpHead + "m=audio 4000 RTP/AVP 0\na=inactive\n", true, 0, Inactive},
		{"it listens only", sdpHead + "m=audio 4000 RTP/AVP 0\na=recvonly\n", true, 0, SendOnly},
		{"it is nowhere", strings.ReplaceAll(sdpHead, "c=IN IP4 192.0.2.20", "c=IN IP4 0.0.0.0") + "m=audio 4000 RTP/AVP 0\n", true, 0, SendRecv},
		{"one stream more than offered", sdpHead + "m=audio 4000 RTP/AVP 0\nm=video 4002 RTP/AVP 96\n", true, 0, SendRecv}, // wrong by §6, and harmless
		{"refused", sdpHead + "m=audio 0 RTP/AVP 0\n", false, 0, ""},
		{"other codec", sdpHead + "m=audio 4000 RTP/AVP 8\n", false, 0, ""},
		{"other protocol", sdpHead + "m=audio 4000 RTP/SAVP 0\n", false, 0, ""},
		{"nothing", "", false, 0, ""},
	} {
		got, err := TakeAnswer([]byte(crlf(tt.answer)), local)
		if (err == nil) != tt.ok {
			t.Errorf("%s: TakeAnswer = %v", tt.name, err)
			continue
		}
		if err == nil && got.RemoteSilent != (tt.name == "it is nowhere") {
			t.Errorf("%s: the phone is silent: %v", tt.name, got.RemoteSilent)
		}
		if err == nil && (got.Format.DTMF != tt.dtmf || got.Direction != tt.direction || got.Format.Codec != "PCMU") {
			t.Errorf("%s: TakeAnswer = %+v", tt.name, got)
		}
	}
}

// RFC 3264 §8: a later offer has the streams of the descriptions before it, in their places, and our audio where it was.
func TestLaterOfferKeepsTheStreams(t *testing.T) {
	first := sdpHead + "m=video 4002 RTP/AVP 96\na=rtpmap:96 VP8/90000\nm=audio 4000 RTP/AVP 8 97\na=rtpmap:97 telephone-event/8000\nm=image 4004 udptl t38\n"
	local := ours()
	body, n, err := Answer([]byte(crlf(first)), local)
	if err != nil {
		t.Fatal(err)
	}
	local.LocalSDP, local.SDPVersion, local.MediaIndex = string(body), n.SDPVersion, n.MediaIndex
	local.Current = n.Format
	offer, own := Offer(local)
	want := crlf(strings.ReplaceAll(ownHead, "o=- 7 1", "o=- 7 2") + "m=video 0 RTP/AVP 96\n" +
		"m=audio 20000 RTP/AVP 8 0 97\na=rtpmap:8 PCMA/8000\na=rtpmap:0 PCMU/8000\na=rtpmap:97 telephone-event/8000\n" +
		"a=fmtp:97 0-15\na=ptime:20\na=sendrecv\na=rtcp-mux\nm=image 0 udptl t38\n")
	if d := cmp.Diff(want, string(offer)); d != "" {
		t.Errorf("later offer (-want +got):\n%s", d)
	}
	local.LocalSDP, local.SDPVersion, local.MediaIndex = string(offer), own.SDPVersion, own.MediaIndex
	got, err := TakeAnswer([]byte(crlf(sdpHead+"m=video 0 RTP/AVP 96\nm=audio 4000 RTP/AVP 0\nm=image 0 udptl t38\n")), local)
	if err != nil || got.MediaIndex != 1 || got.Format.Codec != "PCMU" || got.Remote != addr("192.0.2.20:4000") {
		t.Errorf("its answer: %+v, %v; want PCMU from the second stream", got, err)
	}
	if _, err := TakeAnswer([]byte(crlf(sdpHead+"m=audio 4000 RTP/AVP 0\n")), local); err == nil {
		t.Error("an answer with too few streams was taken")
	}
}

func TestLaterOfferKeepsTheProtocol(t *testing.T) { // of a stream that has keys, or has none
	for _, tt := range []struct {
		mode          SRTPMode
		before, after string
	}{
		{SRTPOptional, "", "RTP/AVP"},
		{SRTPOptional, "RTP/AVP", "RTP/AVP"},
		{SRTPOptional, "RTP/SAVP", "RTP/SAVP"},
		{SRTPRequired, "", "RTP/SAVP"},
		{SRTPRequired, "RTP/AVP", "RTP/AVP"},
		{SRTPRequired, "RTP/SAVP", "RTP/SAVP"},
		{SRTPOff, "RTP/SAVP", "RTP/AVP"},
	} {
		local := ours()
		local.SRTP, local.Secure, local.Keys, local.MediaIndex = tt.mode, true, newKeys(), 0
		if tt.before != "" {
			local.LocalSDP, local.SDPVersion = crlf(ownHead+"m=audio 20000 "+tt.before+" 0\n"), 1
		}
		body, _ := Offer(local)
		if !strings.Contains(string(body), "m=audio 20000 "+tt.after+" 0 8 101\r\n") {
			t.Errorf("SRTP %q after %q: offered %q", tt.mode, tt.before, body)
		}
	}
}

func TestDirectionsAreMirrored(t *testing.T) { // RFC 3264 §6.1: what we send, they receive
	for _, d := range []Direction{SendRecv, SendOnly, RecvOnly, Inactive} {
		for _, hold := range []bool{false, true} {
			local := ours()
			local.Hold = hold
			_, n, err := Answer([]byte(crlf(sdpHead+"m=audio 4000 RTP/AVP 0\na="+string(d)+"\n")), local)
			if err != nil {
				t.Fatal(err)
			}
			if n.Direction.Sends() != d.Receives() || n.Direction.Receives() != (d.Sends() && !hold) {
				t.Errorf("offer %s, hold %v: answered %s", d, hold, n.Direction)
			}
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(crlf(peerOffer)), uint8(0))
	f.Add([]byte(crlf(sdpHead+"m=video 1/2 X 1\nm=audio 4000 RTP/AVP 96\na=rtpmap:96 PCMA/8000\na=rtcp:1 IN IP4 1.2.3.4\n")), uint8(1))
	f.Add([]byte("v=0\nm=audio 1 RTP/AVP 0\nc=IN IP6 ::1%eth0\n"), uint8(2))
	f.Add([]byte(crlf(sdpHead+"m=video 0 RTP/AVP 96\nm=audio 0 RTP/AVP 0\n")), uint8(0x17))
	f.Fuzz(func(t *testing.T, offer []byte, kind uint8) {
		local := ours()
		if kind&1 != 0 {
			local.MediaIndex = int(kind >> 4)
		}
		if kind&2 != 0 {
			local.Current.Codec = "PCMA"
		}
		local.Later = kind&4 != 0
		if n, err := TakeAnswer(offer, local); err == nil && !n.off() && !slices.Contains(local.Codecs, n.Format.Codec) {
			t.Fatalf("TakeAnswer = %+v, which was not offered", n)
		}
		body, n, err := Answer(offer, local)
		again, n2, err2 := Answer(offer, local)
		if string(body) != string(again) || (err == nil) != (err2 == nil) || !cmp.Equal(n, n2, netipEqual, cmpopts.EquateEmpty()) {
			t.Fatal("same offer, different answers")
		}
		if err != nil {
			return
		}
		o, err := ParseSDP(offer)
		if err != nil {
			t.Fatal(err)
		}
		a, err := ParseSDP(body)
		if err != nil {
			t.Fatalf("our answer %q: %v", body, err)
		}
		if len(a.Media) != len(o.Media) { // RFC 3264 §6
			t.Fatalf("%d streams offered, %d answered: %q", len(o.Media), len(a.Media), body)
		}
		for i, m := range a.Media {
			if (m.Port != 0) != (i == n.MediaIndex && !n.off()) {
				t.Fatalf("stream %d has port %d, ours is %d", i, m.Port, n.MediaIndex)
			}
		}
		if strings.ContainsAny(string(body), "\x00") {
			t.Fatalf("NUL in %q", body)
		}
	})
}
