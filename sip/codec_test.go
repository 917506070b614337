package sip

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/rtp"
)

// every is the local side of a trunk with all codecs.
func every() LocalState {
	l := ours()
	l.Codecs = []string{"opus", "G722", "PCMU", "PCMA"}
	return l
}

const (
	opusMap  = "a=rtpmap:%d opus/48000/2\na=fmtp:%d minptime=10;useinbandfec=1;maxplaybackrate=16000\n"
	softAll  = sdpHead + "m=audio 4000 RTP/AVP 0 9 111 101 110\na=rtpmap:111 OPUS/48000/2\na=fmtp:111 useinbandfec=1\n" + softKeys
	softKeys = "a=rtpmap:101 telephone-event/8000\na=rtpmap:110 telephone-event/48000\n"
)

func formatOf(codec string, number uint8, clock, ptime int, keys uint8, keysClock int) Format {
	return Format{Codec: codec, PayloadType: number, ClockRate: clock, Ptime: ptime, DTMF: keys, DTMFRate: keysClock}
}

func opusAs(number string) string { return strings.ReplaceAll(opusMap, "%d", number) }

func TestAnswerChoosesCodecAndItsKeys(t *testing.T) {
	for _, tt := range []struct {
		name  string
		offer string
		local func(*LocalState)
		lines string // of our answer, after the head
		want  Format
	}{
		{
			"Opus first on this trunk, keys at its clock", softAll, nil,
			"m=audio 20000 RTP/AVP 111 110\n" + opusAs("111") + "a=rtpmap:110 telephone-event/48000\na=fmtp:110 0-15\n",
			formatOf("opus", 111, 48000, 20, 110, 48000),
		},
		{
			"the order is the trunk's", softAll, func(l *LocalState) { l.Codecs = []string{"g722", "opus"} },
			"m=audio 20000 RTP/AVP 9 101\na=rtpmap:9 G722/8000\na=rtpmap:101 telephone-event/8000\na=fmtp:101 0-15\n",
			formatOf("G722", 9, 8000, 20, 101, 8000),
		},
		{
			"the codec in use stays while it is offered", softAll, func(l *LocalState) { l.Current.Codec = "PCMU" },
			"m=audio 20000 RTP/AVP 0 101\na=rtpmap:0 PCMU/8000\na=rtpmap:101 telephone-event/8000\na=fmtp:101 0-15\n",
			formatOf("PCMU", 0, 8000, 20, 101, 8000),
		},
		{
			"a codec in use that is offered no more is left", sdpHead + "m=audio 4000 RTP/AVP 9\n", func(l *LocalState) { l.Current.Codec = "opus" },
			"m=audio 20000 RTP/AVP 9\na=rtpmap:9 G722/8000\n",
			formatOf("G722", 9, 8000, 20, 0, 0),
		},
		{
			"Opus written with one channel", sdpHead + "m=audio 4000 RTP/AVP 96\na=rtpmap:96 opus/48000\n", nil,
			"m=audio 20000 RTP/AVP 96\n" + opusAs("96"),
			formatOf("opus", 96, 48000, 20, 0, 0),
		},
		{
			"G.722 at 16000 is something else", sdpHead + "m=audio 4000 RTP/AVP 96 8\na=rtpmap:96 G722/16000\n", nil,
			"m=audio 20000 RTP/AVP 8\na=rtpmap:8 PCMA/8000\n",
			formatOf("PCMA", 8, 8000, 20, 0, 0),
		},
		{
			"Opus with keys at 8000 only", sdpHead + "m=audio 4000 RTP/AVP 111 97\na=rtpmap:111 opus/48000/2\na=rtpmap:97 telephone-event/8000\n", nil,
			"m=audio 20000 RTP/AVP 111 97\n" + opusAs("111") + "a=rtpmap:97 telephone-event/8000\na=fmtp:97 0-15\n",
			formatOf("opus", 111, 48000, 20, 97, 8000),
		},
		{
			"G.722 with keys at 16000 only", sdpHead + "m=audio 4000 RTP/AVP 9 100\na=rtpmap:100 telephone-event/16000\n", nil,
			"m=audio 20000 RTP/AVP 9 100\na=rtpmap:9 G722/8000\na=rtpmap:100 telephone-event/16000\na=fmtp:100 0-15\n",
			formatOf("G722", 9, 8000, 20, 100, 16000),
		},
		{
			"comfort noise", sdpHead + "m=audio 4000 RTP/AVP 0 13\n", nil, // RFC 3389 §4
			"m=audio 20000 RTP/AVP 0 13\na=rtpmap:0 PCMU/8000\na=rtpmap:13 CN/8000\n", formatOf("PCMU", 0, 8000, 20, 0, 0),
		},
		{
			"comfort noise has another clock than Opus", sdpHead + "m=audio 4000 RTP/AVP 111 13\na=rtpmap:111 opus/48000/2\n", nil,
			"m=audio 20000 RTP/AVP 111\n" + opusAs("111"),
			formatOf("opus", 111, 48000, 20, 0, 0),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			local := every()
			if tt.local != nil {
				tt.local(&local)
			}
			body, n, err := Answer([]byte(crlf(tt.offer)), local)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(crlf(ownHead+tt.lines+"a=ptime:20\na=sendrecv\n"), string(body)); d != "" {
				t.Errorf("answer (-want +got):\n%s", d)
			}
			if n.Format != tt.want {
				t.Errorf("format %+v, want %+v", n.Format, tt.want)
			}
		})
	}
}

func TestPacketsAreAsLongAsThePhoneAsksFor(t *testing.T) {
	for _, tt := range []struct {
		format, attrs string
		want          int
	}{
		{"0", "", 20},
		{"0", "a=ptime:10\n", 10},
		{"0", "a=ptime:60\n", 60},
		{"0", "a=ptime:5\n", 20},
		{"0", "a=ptime:x\n", 20},
		{"0", "a=ptime:35\n", 30},
		{"0", "a=ptime:61\n", 20},
		{"0", "a=maxptime:10\n", 10},
		{"0", "a=maxptime:60\n", 20},
		{"0", "a=ptime:40\na=maxptime:30\n", 30},
		{"0", "a=maxptime:3\n", 10},
		{"9", "a=ptime:30\n", 30},
		{"111", "a=ptime:30\n", 20},
		{"111", "a=ptime:50\n", 40},
		{"111", "a=ptime:60\n", 60},
		{"111", "a=ptime:10\n", 10},
	} {
		_, n, err := Answer([]byte(crlf(sdpHead+"m=audio 4000 RTP/AVP "+tt.format+"\na=rtpmap:111 opus/48000/2\n"+tt.attrs)), every())
		if err != nil {
			t.Fatal(err)
		}
		if n.Format.Ptime != tt.want {
			t.Errorf("format %s with %q: packets of %d ms, want %d", tt.format, tt.attrs, n.Format.Ptime, tt.want)
		}
	}
}

func TestOffersOfEveryCodec(t *testing.T) {
	local := every()
	body, n := Offer(local)
	const statics = "a=rtpmap:9 G722/8000\na=rtpmap:0 PCMU/8000\na=rtpmap:8 PCMA/8000\n"
	want := crlf(ownHead + "m=audio 20000 RTP/AVP 107 9 0 8 101 102\n" + opusAs("107") + statics +
		"a=rtpmap:101 telephone-event/48000\na=fmtp:101 0-15\na=rtpmap:102 telephone-event/8000\na=fmtp:102 0-15\n" +
		"a=ptime:20\na=sendrecv\na=rtcp-mux\n")
	if d := cmp.Diff(want, string(body)); d != "" {
		t.Errorf("offer (-want +got):\n%s", d)
	}
	if want := formatOf("opus", 107, 48000, 20, 101, 48000); n.Format != want {
		t.Errorf("format until the answer: %+v, want %+v", n.Format, want)
	}
	local.LocalSDP, local.SDPVersion, local.MediaIndex = string(body), n.SDPVersion, 0
	for _, tt := range []struct {
		answer string
		want   Format
	}{
		{"m=audio 4000 RTP/AVP 107 101\na=rtpmap:107 opus/48000/2\na=rtpmap:101 telephone-event/48000\n", formatOf("opus", 107, 48000, 20, 101, 48000)},
		{"m=audio 4000 RTP/AVP 9 102\na=rtpmap:102 telephone-event/8000\na=ptime:40\n", formatOf("G722", 9, 8000, 40, 102, 8000)},
		{"m=audio 4000 RTP/AVP 8 0 107\na=rtpmap:107 opus/48000/2\n", formatOf("PCMA", 8, 8000, 20, 0, 0)}, // the first is the phone's choice
		{
			"m=audio 4000 RTP/AVP 111 96\na=rtpmap:111 opus/48000/2\na=rtpmap:96 telephone-event/48000\n", // other numbers: for what it gets
			Format{Codec: "opus", PayloadType: 111, ClockRate: 48000, Ptime: 20, DTMF: 96, DTMFRate: 48000, HeardAs: 107, DTMFHeardAs: 101},
		},
	} {
		got, err := TakeAnswer([]byte(crlf(sdpHead+tt.answer)), local)
		if err != nil || got.Format != tt.want {
			t.Errorf("answer %q: %+v, %v; want %+v", tt.answer, got, err, tt.want)
		}
	}
}

// RFC 3264 §8.3.2: a number that had a meaning keeps it, and what is new gets one that had none.
func TestLaterOfferKeepsTheNumbers(t *testing.T) {
	local := every()
	local.Codecs = []string{"G722", "opus"}
	first := sdpHead + "m=audio 4000 RTP/AVP 9 107\na=rtpmap:107 telephone-event/8000\n"
	body, n, err := Answer([]byte(crlf(first)), local)
	if err != nil {
		t.Fatal(err)
	}
	local.LocalSDP, local.SDPVersion, local.MediaIndex, local.Current = string(body), n.SDPVersion, 0, n.Format
	offer, n := Offer(local)
	want := crlf(strings.ReplaceAll(ownHead, "o=- 7 1", "o=- 7 2") + "m=audio 20000 RTP/AVP 9 108 107 101\na=rtpmap:9 G722/8000\n" +
		opusAs("108") + "a=rtpmap:107 telephone-event/8000\na=fmtp:107 0-15\na=rtpmap:101 telephone-event/48000\na=fmtp:101 0-15\n" +
		"a=ptime:20\na=sendrecv\na=rtcp-mux\n")
	if d := cmp.Diff(want, string(offer)); d != "" {
		t.Errorf("later offer (-want +got):\n%s", d)
	}
	if want := formatOf("G722", 9, 8000, 20, 107, 8000); n.Format != want {
		t.Errorf("format %+v, want %+v", n.Format, want)
	}
}

// RFC 3264 §8.3.2; and the row of the call has the last format, not the first (docs/adr/0005).
func TestCodecChangesByReinviteAndStaysSoAfterARestart(t *testing.T) {
	all := func(c *Config) { c.Trunks[0].Codecs = every().Codecs }
	offer := func(version, formats, attrs string) string {
		return strings.ReplaceAll(sdpHead, "o=- 1 1", "o=- 1 "+version) + "m=audio 4000 RTP/AVP " + formats + "\n" +
			"a=rtpmap:111 opus/48000/2\na=rtpmap:110 telephone-event/48000\na=rtpmap:100 telephone-event/8000\n" + attrs
	}
	want := formatOf("G722", 9, 8000, 40, 100, 8000)
	var saved []byte
	inBubble(t, all, answerAtOnce, func(b *bubble) {
		phone := b.phoneMedia()
		b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, offer("1", "0 9 111 110 100", "")))
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		call := <-b.calls
		if got, want := call.Media().Format(), formatOf("opus", 111, 48000, 20, 110, 48000); got != want {
			t.Errorf("at first %+v, want %+v", got, want)
		}
		b.peer.send(b.peer.within("INVITE", "r1", 2, offer("2", "9 100", "a=ptime:40\n")))
		b.peer.send(b.peer.within("ACK", "k2", 2, ""))
		if got := call.Media().Format(); got != want {
			t.Errorf("after the re-INVITE %+v, want %+v", got, want)
		}
		wantLines(t, "application heard", b.said(), []string{"0s Acked", "0s MediaChanged", "0s DialogChanged"})
		b.peer.send(b.peer.within("INVITE", "r2", 3, offer("3", "18", "")))
		if answer := b.peer.last(); !strings.HasPrefix(answer, "SIP/2.0 488 ") || call.Media().Format() != want {
			t.Errorf("an offer without a codec of ours got %q, and the format is %+v; want 488 and no change", answer, call.Media().Format())
		}
		b.peer.send(b.peer.within("ACK", "r2", 3, ""))
		heard := 0
		call.Media().OnPacket(func(*rtp.Packet) { heard++ })
		for _, pt := range []uint8{9, 111, 13} {
			phone.send(call.Media().LocalAddr(), pt)
		}
		synctest.Wait()
		if heard != 2 {
			t.Errorf("heard %d packets of G.722, Opus, comfort noise; want the first and the last", heard)
		}
		saved, _ = json.Marshal(call.Dialog())
	})
	inBubble(t, all, nil, func(b *bubble) {
		var d Dialog
		if err := json.Unmarshal(saved, &d); err != nil {
			t.Fatal(err)
		}
		call, err := b.stack.Resume(d)
		if err != nil {
			t.Fatal(err)
		}
		media, err := call.OpenMedia()
		if err != nil {
			t.Fatal(err)
		}
		if got := media.Format(); got != want {
			t.Errorf("after the restart %+v, want %+v", got, want)
		}
	})
}

// RFC 3264 §6.1: numbers in an answer are for what the phone receives; what it sends still has those of our offer.
func TestPhoneMayAnswerWithOtherNumbers(t *testing.T) {
	inBubble(t, func(c *Config) { c.Trunks[0].Codecs = every().Codecs }, answerAtOnce, func(b *bubble) {
		phone := b.phoneMedia()
		b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, ""))
		call := <-b.calls
		b.peer.send(b.peer.within("ACK", "k1", 1, sdpHead+"m=audio 4000 RTP/AVP 101 107\n"+
			"a=rtpmap:101 opus/48000/2\na=rtpmap:107 telephone-event/48000\n")) // as in our offer, but the other way round
		var heard []uint8
		call.Media().OnPacket(func(p *rtp.Packet) { heard = append(heard, p.PayloadType) })
		phone.send(call.Media().LocalAddr(), 107)
		phone.send(call.Media().LocalAddr(), 101)
		synctest.Wait()
		if len(heard) != 1 || heard[0] != 101 {
			t.Errorf("the desk gets payload types %v, want 101 once, as agreed", heard)
		}
		if said := b.said(); len(said) == 0 || said[len(said)-1] != "0s Digit" {
			t.Errorf("application heard %v, want a digit at last", said)
		}
	})
}
