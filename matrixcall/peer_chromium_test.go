package matrixcall

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"trunkline/matrixcall/mesh"
)

// chromiumPage is an empty page of a real browser with one PeerConnection in it.
type chromiumPage struct {
	t   *testing.T
	tab context.Context
}

// openChromium starts the browser of the lab; the test is skipped unless the lab is wanted.
func openChromium(t *testing.T) *chromiumPage {
	t.Helper()
	if os.Getenv("TRUNKLINE_SYNAPSE") == "" {
		t.Skip("set TRUNKLINE_SYNAPSE=1 to try it with a real browser")
	}
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	alloc, stop := chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox,
		chromedp.Flag("autoplay-policy", "no-user-gesture-required"),
		chromedp.Flag("allow-loopback-in-peer-connection", true),
		chromedp.Flag("disable-features", "Translate,BlinkGenPropertyTrees,WebRtcHideLocalIpsWithMdns"),
	)...)
	tab, closeTab := chromedp.NewContext(alloc)
	t.Cleanup(func() { closeTab(); stop(); cancel() })
	if err := chromedp.Do(tab, chromedp.Navigate("about:blank")); err != nil {
		t.Fatal(err)
	}
	return &chromiumPage{t, tab}
}

// run evaluates the body of an async function that returns a string.
func (p *chromiumPage) run(body string, args ...any) string {
	p.t.Helper()
	yes := true
	result, err := chromedp.Run(p.tab, chromedp.Evaluate[string]("(async () => {"+fmt.Sprintf(body, args...)+"})()",
		func(e *runtime.EvaluateParams) { e.AwaitPromise, e.UserGesture = &yes, &yes }))
	if err != nil {
		p.t.Fatalf("%s: %v", body, err)
	}
	return result
}

const (
	// A tone that can be switched off: no microphone, so no permission is needed.
	chromiumMicrophone = `
		window.pc = new RTCPeerConnection({bundlePolicy: "max-bundle"});
		const ctx = new AudioContext(), tone = ctx.createOscillator(), out = ctx.createMediaStreamDestination();
		tone.connect(out); tone.start();
		window.track = out.stream.getAudioTracks()[0]; window.stream = out.stream;
		return "";`
	chromiumGathered = `
		await new Promise((ok) => {
			const look = () => pc.iceGatheringState === "complete" && ok();
			pc.onicegatheringstatechange = look; look();
		});
		return pc.localDescription.sdp;`
)

// js-sdk's key pad is the browser's: RTCDTMFSender.
func TestKeypadAndVoiceOfARealBrowser(t *testing.T) {
	page := openChromium(t)
	e, err := newEngine(ICEConfig{Loopback: true, Addresses: []string{"127.0.0.1"}}, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, inviter := range []bool{true, false} {
		t.Run(fmt.Sprint("inviter ", inviter), func(t *testing.T) {
			page.t = t
			c, events := chromiumPeer(t, e)
			defer c.hangUp()
			page.run(chromiumMicrophone)
			c.connect(page, inviter)
			for _, keys := range []struct {
				press string // arguments of insertDTMF
				wait  time.Duration
				want  string
			}{
				{`"1155*#A", 100, 70`, 3 * time.Second, "1155*#A"}, // as js-sdk presses them, and closer together
				{`"7", 500, 70`, time.Second, "7"},
				{`"8", 3000, 70`, 4 * time.Second, "8"},
				{`"7"`, time.Second, "7"},
			} {
				page.run(`sender.dtmf.insertDTMF(%s); return "";`, keys.press)
				time.Sleep(keys.wait)
				if got := events.takeDigits(); got != keys.want {
					t.Errorf("insertDTMF(%s) gave %q, want %q", keys.press, got, keys.want)
				}
			}
			events.takeSpeaking() // while a key is down there is no sound
			page.run(`track.enabled = false; return "";`)
			time.Sleep(time.Second)
			page.run(`track.enabled = true; return "";`)
			time.Sleep(500 * time.Millisecond)
			if got, want := events.takeSpeaking(), []bool{false, true}; !slices.Equal(got, want) {
				t.Errorf("speaking = %v, want %v: a tone was switched off and on", got, want)
			}
			page.run(`pc.close(); return "";`)
		})
	}
}

// chromiumTold is what one of our connections reported.
type chromiumTold struct {
	mesh     chan mesh.Event
	mu       sync.Mutex
	digits   []rune
	speaking []bool
}

func (c *chromiumTold) takeDigits() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	digits := string(c.digits)
	c.digits = nil
	return digits
}

func (c *chromiumTold) takeSpeaking() []bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	speaking := c.speaking
	c.speaking = nil
	return speaking
}

// chromiumConn is one of our connections, to the browser.
type chromiumConn struct {
	*peerConn
	told *chromiumTold
	wg   sync.WaitGroup
}

func chromiumPeer(t *testing.T, e *engine) (*chromiumConn, *chromiumTold) {
	t.Helper()
	track, err := webrtc.NewTrackLocalStaticRTP(opusCodec, "audio0", "s")
	if err != nil {
		t.Fatal(err)
	}
	told := &chromiumTold{mesh: make(chan mesh.Event, 100)}
	c := &chromiumConn{told: told, peerConn: &peerConn{
		id: 1, engine: e, log: testLog(t), metrics: new(Metrics), track: track,
		report: func(ev mesh.Event) { told.mesh <- ev },
		event: func(ev Event) {
			told.mu.Lock()
			defer told.mu.Unlock()
			if d, ok := ev.(Digit); ok {
				told.digits = append(told.digits, d.Digit)
			}
		},
		speaks: func(on bool) {
			told.mu.Lock()
			defer told.mu.Unlock()
			told.speaking = append(told.speaking, on)
		},
		packet: func(PeerKey, *rtp.Packet) {},
		turn:   func(context.Context) []TURNServer { return nil },
	}}
	c.start(t.Context(), &c.wg)
	return c, told
}

func (c *chromiumConn) hangUp() {
	c.cancel(nil)
	c.wg.Wait()
}

// connect negotiates with the page in one of the two roles, and waits until the connection stands.
func (c *chromiumConn) connect(page *chromiumPage, inviter bool) {
	t := page.t
	t.Helper()
	c.do("open", func() error { return c.open(inviter) })
	if inviter {
		c.do("offer", func() error { return c.createOffer(false) })
		offer := c.next(t).(mesh.OfferReady)
		answer := page.run(`await pc.setRemoteDescription({type: "offer", sdp: %q});
			window.sender = pc.addTrack(track, stream);
			await pc.setLocalDescription(await pc.createAnswer());`+chromiumGathered, offer.SDP)
		c.wants(t, "answer", answer)
		c.do("apply", func() error { return c.applyAnswer(answer) })
	} else {
		offer := page.run(`window.sender = pc.addTrack(track, stream);
			await pc.setLocalDescription(await pc.createOffer());` + chromiumGathered)
		c.do("answer", func() error { return c.createAnswer(offer) })
		answer := c.next(t).(mesh.AnswerReady)
		c.wants(t, "our answer", answer.SDP)
		page.run(`await pc.setRemoteDescription({type: "answer", sdp: %q}); return "";`, answer.SDP)
	}
	for {
		if s, ok := c.next(t).(mesh.ConnState); ok && s.Now == mesh.Up {
			break
		}
	}
	page.run(`for (let n = 0; !sender.dtmf.canInsertDTMF && n < 100; n++) await new Promise((ok) => setTimeout(ok, 50)); return "";`)
}

func (c *chromiumConn) wants(t *testing.T, what, sdp string) {
	t.Helper()
	for _, want := range []string{"telephone-event/48000", "telephone-event/8000", audioLevelURI} {
		if !strings.Contains(sdp, want) {
			t.Errorf("%s lacks %s:\n%s", what, want, sdp)
		}
	}
}

func (c *chromiumConn) next(t *testing.T) mesh.Event {
	t.Helper()
	select {
	case ev := <-c.told.mesh:
		return ev
	case <-time.After(15 * time.Second):
		t.Fatal("nothing was reported for 15 s")
		return nil
	}
}
