package matrixcall

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"trunkline/matrixcall/mesh"
)

// FuzzOfferOfAStranger gives offers and answers to a real connection: each is used or refused, in time, and the
// connection closes.
func FuzzOfferOfAStranger(f *testing.F) {
	for _, sdp := range strangersOffers(f) {
		f.Add(sdp, sdp)
	}
	f.Add("v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\n", "")
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	e, err := newEngine(ICEConfig{Loopback: true, Addresses: []string{"127.0.0.1"}, NoMDNS: true}, log)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, offer, answer string) {
		stranger(t, e, log, false, func(c *peerConn) {
			c.do("answer", func() error { return c.createAnswer(offer) })
			c.do("answer again", func() error { return c.createAnswer(answer) })
		})
		stranger(t, e, log, true, func(c *peerConn) {
			c.do("offer", func() error { return c.createOffer(false) })
			c.do("apply", func() error { return c.applyAnswer(mesh.AnswerFromOffer(answer, 2)) })
		})
	})
}

// stranger runs tasks on a connection and waits until it has closed.
func stranger(t *testing.T, e *engine, log *slog.Logger, inviter bool, tasks func(*peerConn)) {
	track, err := webrtc.NewTrackLocalStaticRTP(opusCodec, "audio0", "stream")
	if err != nil {
		t.Fatal(err)
	}
	c := &peerConn{
		engine: e, log: log, metrics: new(Metrics), track: track, report: func(mesh.Event) {}, event: func(Event) {},
		packet: func(PeerKey, *rtp.Packet) {}, turn: func(context.Context) []TURNServer { return nil },
	}
	var wg sync.WaitGroup
	c.start(t.Context(), &wg)
	c.do("open", func() error { return c.open(inviter) })
	tasks(c)
	done := make(chan struct{})
	c.tasks.put(func() { close(done) })
	for _, wait := range []func(){func() { <-done }, func() { c.cancel(nil); wg.Wait() }} {
		waited := make(chan struct{})
		go func() { wait(); close(waited) }()
		select {
		case <-waited:
		case <-time.After(20 * time.Second):
			t.Fatal("the connection hangs")
		}
	}
}

// strangersOffers are offers as pion makes them with all its codecs, and parts of them.
func strangersOffers(f *testing.F) []string {
	f.Helper()
	pc, err := webrtc.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		f.Fatal(err)
	}
	defer func() {
		if err := pc.GracefulClose(); err != nil {
			f.Error(err)
		}
	}()
	var offers []string
	for _, kind := range []webrtc.RTPCodecType{webrtc.RTPCodecTypeVideo, webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeAudio} {
		if _, err := pc.AddTransceiverFromKind(kind); err != nil {
			f.Fatal(err)
		}
		offer, err := pc.CreateOffer(nil)
		if err != nil {
			f.Fatal(err)
		}
		offers = append(offers, offer.SDP, strings.ReplaceAll(offer.SDP, "a=mid:", "a=mud:"),
			strings.ReplaceAll(offer.SDP, "sendrecv", "inactive"), strings.ReplaceAll(offer.SDP, "a=ice-", "a=ace-"))
	}
	return offers
}
