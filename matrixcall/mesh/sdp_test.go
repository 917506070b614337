package mesh

import (
	"strings"
	"testing"
)

const sampleSDP = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1 2\r\n" +
	"m=audio 9 UDP/TLS/RTP/SAVPF 111 110\r\na=mid:0\r\na=setup:actpass\r\na=sendrecv\r\na=rtpmap:111 opus/48000/2\r\n" +
	"a=fmtp:111 minptime=10;stereo=1\r\na=rtpmap:110 telephone-event/48000\r\na=fmtp:110 0-15\r\n" +
	"m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=recvonly\r\na=rtpmap:96 VP8/90000\r\n" +
	"m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:2\r\na=setup:actpass\r\n"

func TestVideoInactiveTouchesOnlyVideo(t *testing.T) {
	want := strings.Replace(sampleSDP, "a=recvonly", "a=inactive", 1)
	if got := VideoInactive(sampleSDP); got != want {
		t.Errorf("VideoInactive = %q, want %q", got, want)
	}
}

func TestOneVoiceAsksForOneAudioSection(t *testing.T) {
	audio := func(mid, port, direction string) string {
		return "m=audio " + port + " UDP/TLS/RTP/SAVPF 111\r\na=mid:" + mid + "\r\na=" + direction + "\r\n"
	}
	for _, test := range []struct{ sdp, want, mid string }{
		{sampleSDP, sampleSDP, "0"},
		{audio("0", "9", "sendrecv") + audio("1", "9", "recvonly"), audio("0", "9", "sendrecv") + audio("1", "9", "inactive"), "0"},
		{audio("0", "9", "recvonly") + audio("1", "9", "sendrecv"), audio("0", "9", "recvonly") + audio("1", "9", "sendonly"), "0"},
		{audio("0", "9", "inactive") + audio("1", "9", "recvonly"), audio("0", "9", "inactive") + audio("1", "9", "recvonly"), "1"},
		{audio("0", "0", "sendrecv") + audio("1", "9", "sendrecv"), audio("0", "0", "sendrecv") + audio("1", "9", "sendrecv"), "1"},
		{audio("0", "9", "sendonly"), audio("0", "9", "sendonly"), ""},
	} {
		session := ""
		if !strings.HasPrefix(test.sdp, "v=") {
			session = "v=0\r\n"
		}
		if got, mid := OneVoice(session + test.sdp); got != session+test.want || mid != test.mid {
			t.Errorf("OneVoice(%q) = %q, %q, want %q, %q", session+test.sdp, got, mid, session+test.want, test.mid)
		}
	}
}

func TestOpusWishReplacesTheParametersOfOpus(t *testing.T) {
	want := strings.Replace(sampleSDP, "minptime=10;stereo=1", "usedtx=1", 1)
	if got := OpusWish(sampleSDP, "usedtx=1"); got != want {
		t.Errorf("OpusWish = %q, want %q", got, want)
	}
}

func TestAnswerFromOfferKeepsWhatWasOffered(t *testing.T) {
	got := AnswerFromOffer(sampleSDP, 2)
	if countMedia(got) != 2 || !strings.Contains(got, "a=group:BUNDLE 0 1\r\n") ||
		strings.Contains(got, "actpass") || !strings.Contains(got, "a=setup:active") {
		t.Errorf("AnswerFromOffer = %q", got)
	}
}

func TestAudioDirections(t *testing.T) {
	session := "v=0\nt=0 0\n"
	for _, test := range []struct {
		sdp   string
		local Audio
	}{
		{sampleSDP, Audio{In: true, Out: true}},
		{session + "m=audio 9 x\na=recvonly\n", Audio{In: true}},
		{session + "m=audio 9 x\na=sendonly\n", Audio{Out: true}},
		{session + "m=audio 9 x\na=inactive\n", Audio{}},
		{session + "m=audio 0 x\n", Audio{}},
		{session + "m=audio 9 x\n", Audio{In: true, Out: true}},
		{session + "a=recvonly\nm=audio 9 x\n", Audio{In: true}},
		{session + "m=video 9 x\na=sendrecv\n", Audio{}},
		{session + "m=video 9 x\na=inactive\nm=audio 9 x\na=inactive\nm=audio 9 x\na=sendonly\n", Audio{Out: true}},
		{"", Audio{}},
	} {
		if got := LocalAudio(test.sdp); got != test.local {
			t.Errorf("LocalAudio(%q) = %v, want %v", test.sdp, got, test.local)
		}
		if got, want := RemoteAudio(test.sdp), (Audio{In: test.local.Out, Out: test.local.In}); got != want {
			t.Errorf("RemoteAudio(%q) = %v, want %v", test.sdp, got, want)
		}
	}
}

func TestLowerIDCallsByUTF16(t *testing.T) {
	for _, test := range []struct {
		self, peer Device
		want       bool
	}{
		{Device{"@_sip:x", "Z"}, Device{"@alice:x", "A"}, true},
		{Device{"@alice:x", "A"}, Device{"@_sip:x", "Z"}, false},
		{Device{"@alice:x", "A"}, Device{"@alice:x", "B"}, true},
		{Device{"@alice:x", "B"}, Device{"@alice:x", "A"}, false},
		{Device{"@a:x", "A"}, Device{"@ab:x", "A"}, true},
		{Device{"@\U0001F600:x", "A"}, Device{"@\uFFEE:x", "A"}, true}, // by bytes it would be false
	} {
		if got := invites(test.self, test.peer); got != test.want {
			t.Errorf("invites(%s, %s) = %t, want %t", test.self, test.peer, got, test.want)
		}
	}
}

func FuzzSDP(f *testing.F) {
	f.Add(sampleSDP, 2)
	f.Add("m=\n", 0)
	f.Add("m=audio\nm=audio 0 \r\r\n", 100)
	f.Fuzz(func(t *testing.T, sdp string, media int) {
		media &= 0xff
		answer := AnswerFromOffer(sdp, media)
		if got := countMedia(answer); got > media {
			t.Errorf("AnswerFromOffer(%q, %d) has %d sections", sdp, media, got)
		}
		inactive := VideoInactive(sdp)
		if countMedia(inactive) != countMedia(sdp) || VideoInactive(inactive) != inactive {
			t.Errorf("VideoInactive(%q) = %q", sdp, inactive)
		}
		if wish := OpusWish(sdp, "x=1"); OpusWish(wish, "x=1") != wish {
			t.Errorf("OpusWish(%q) = %q, again %q", sdp, wish, OpusWish(wish, "x=1"))
		}
		LocalAudio(sdp)
	})
}
