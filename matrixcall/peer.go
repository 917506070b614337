package matrixcall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"trunkline/matrixcall/mesh"
)

// peerConn is one PeerConnection. Its goroutine does what is asked of it, one thing after the other; results go back
// as events. It never sends candidates later: descriptions leave when gathering is complete.
type peerConn struct {
	id      mesh.Conn
	peer    PeerKey
	engine  *engine
	log     *slog.Logger
	metrics *Metrics
	report  func(mesh.Event)           // puts
	event   func(Event)                // puts
	packet  func(PeerKey, *rtp.Packet) // puts
	speaks  func(bool)                 // puts
	track   webrtc.TrackLocal          // shared by all connections of the ghost
	turn    func(context.Context) []TURNServer

	wideBand bool // see CallOptions

	ctx    context.Context // ends when the connection shall close
	cancel context.CancelCauseFunc
	tasks  *inbox[func()]

	// Only run touches what follows.
	wait    time.Duration // for candidates
	pc      *webrtc.PeerConnection
	offer   *webrtc.SessionDescription // an offer of ours the peer has not answered
	inviter bool
	unborn  bool // it could not be opened: nothing more can be done with it
	state   PeerState
	times   peerTimes
	pairs   candidatePairs // as seen last
	closing atomic.Bool    // pion closes it by itself, because the peer did

	voice   atomic.Pointer[string] // mid of the one audio section we listen to; nil before there is a description
	readers sync.WaitGroup
	mu      sync.Mutex
	closed  bool // guarded by mu: no reader may begin any more
}

// start runs the connection in wg until close.
func (c *peerConn) start(ctx context.Context, wg *sync.WaitGroup) {
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.tasks = newInbox[func()]()
	c.times.opened = time.Now()
	c.metrics.Peers[c.state].Add(1)
	wg.Go(c.run)
}

func (c *peerConn) run() {
	defer c.shut()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.tasks.wake:
			for _, task := range c.tasks.take() {
				if c.ctx.Err() != nil {
					return
				}
				task()
			}
		}
	}
}

func (c *peerConn) shut() {
	c.cancel(nil)
	c.ended()
	c.metrics.Peers[c.state].Add(-1)
	if c.pc == nil {
		return
	}
	if err := c.pc.GracefulClose(); err != nil {
		c.log.Debug("close connection", "err", err)
	}
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.readers.Wait()
}

// read runs a reader that ends by itself when the PeerConnection closes. pion calls OnTrack in a goroutine of its own
// that its closing does not wait for, hence the check.
func (c *peerConn) read(reader func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.readers.Go(reader)
	}
}

// do puts a task. A failure is reported and leaves what to do to the mesh.
func (c *peerConn) do(what string, task func() error) {
	c.tasks.put(func() {
		if c.unborn {
			return
		}
		err := survive(c.log, task)
		c.unborn = c.pc == nil
		if err != nil && c.ctx.Err() == nil {
			c.report(mesh.ConnFailed{Conn: c.id, Err: what + ": " + err.Error()})
		}
	})
}

// try puts a task whose failure does not matter much.
func (c *peerConn) try(what string, task func() error) {
	c.tasks.put(func() {
		if c.unborn {
			return
		}
		if err := survive(c.log, task); err != nil {
			c.log.Debug("connection", "doing", what, "err", err)
		}
	})
}

// survive turns a panic into an error: what pion makes of a stranger's description must not end the bridge.
func survive(log *slog.Logger, task func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			log.Error("a connection panics", "panic", tame(fmt.Sprint(r)), "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return task()
}

// open makes the PeerConnection. The inviter's has an audio and a video section from the beginning; the invitee's
// sections come from the peer's offer, ours is added if that has no audio.
func (c *peerConn) open(inviter bool) error {
	pc, err := c.engine.api.NewPeerConnection(webrtc.Configuration{
		ICEServers: c.servers(), BundlePolicy: webrtc.BundlePolicyMaxBundle,
	})
	if err != nil {
		return err
	}
	c.pc, c.inviter = pc, inviter
	pc.OnConnectionStateChange(c.stateChanged)
	pc.OnICEConnectionStateChange(c.iceChanged)
	pc.OnTrack(c.trackAdded)
	sender, err := pc.AddTrack(c.track)
	if err != nil {
		return err
	}
	c.read(func() { c.readReports(sender) })
	if !inviter {
		return nil
	}
	_, err = pc.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo,
		webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly})
	return err
}

// servers are the STUN and TURN servers as they are now.
func (c *peerConn) servers() (servers []webrtc.ICEServer) {
	for _, s := range c.turn(c.ctx) {
		if len(s.URIs) > 0 {
			servers = append(servers, webrtc.ICEServer{URLs: s.URIs, Username: s.Username, Credential: s.Password})
		}
	}
	c.wait = gatherPatience(servers)
	return servers
}

// renewServers has the next ICE restart use the servers as they are then: a relay's credentials may have expired since
// the connection began.
func (c *peerConn) renewServers() {
	if err := c.pc.SetConfiguration(webrtc.Configuration{ICEServers: c.servers()}); err != nil {
		c.log.Debug("TURN servers not renewed", "err", err)
	}
}

// readReports tells how much of what we send the peer has lost. Read they must be anyway: only then do they reach the
// interceptors.
func (c *peerConn) readReports(sender *webrtc.RTPSender) {
	for {
		packets, _, err := sender.ReadRTCP()
		if err != nil {
			return
		}
		if c.ctx.Err() != nil {
			return // what would come after PeerGone would be kept for ever
		}
		for _, p := range packets {
			for _, report := range receptionReports(p) {
				c.event(PeerLoss{Peer: c.peer, Fraction: float64(report.FractionLost) / 256}) // RFC 3550 §6.4.1
			}
		}
	}
}

// receptionReports are what a packet of the peer's says of streams it receives. Ours is the only one we send it.
func receptionReports(p rtcp.Packet) []rtcp.ReceptionReport {
	switch p := p.(type) {
	case *rtcp.ReceiverReport:
		return p.Reports
	case *rtcp.SenderReport:
		return p.Reports
	}
	return nil
}

// createOffer makes an offer. The first one is set at once, which starts the gathering. Later ones are only kept until
// the peer answers: pion cannot take back an offer that was set, and one that is not set needs no taking back.
func (c *peerConn) createOffer(restart bool) error {
	if restart {
		c.renewServers()
	}
	offer, err := c.pc.CreateOffer(&webrtc.OfferOptions{ICERestart: restart})
	if err != nil {
		return err
	}
	first := c.pc.CurrentLocalDescription() == nil
	if !first {
		c.metrics.Renegotiations.Add(1)
	}
	if restart {
		c.metrics.ICERestarts.Add(1)
	}
	if first || restart {
		gathered := webrtc.GatheringCompletePromise(c.pc)
		if first {
			if err := c.pc.SetLocalDescription(offer); err != nil {
				return err
			}
		}
		if err := c.await(gathered); err != nil {
			return err
		}
	}
	if first {
		offer = *c.pc.LocalDescription()
	} else {
		if restart { // with the new candidates
			if offer, err = c.pc.CreateOffer(nil); err != nil {
				return err
			}
		}
		c.offer = &offer
	}
	c.report(mesh.OfferReady{Conn: c.id, SDP: c.sentCopy(offer.SDP)})
	return nil
}

// await waits for the candidates, but not for those of a server that is slow or down.
func (c *peerConn) await(gathered <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(c.ctx, c.wait)
	defer cancel()
	select {
	case <-gathered:
	case <-ctx.Done():
		if c.ctx.Err() == nil {
			c.log.Debug("gathering candidates was cut short", "after", c.wait)
		}
	}
	return c.ctx.Err()
}

// gatherPatience is how long to wait for candidates with these servers.
func gatherPatience(servers []webrtc.ICEServer) time.Duration {
	for _, server := range servers {
		for _, uri := range server.URLs {
			if strings.HasPrefix(uri, "turn:") || strings.HasPrefix(uri, "turns:") {
				return relayCap
			}
		}
	}
	return gatherCap
}

// sentCopy is the description as the peer gets it. It settles which of its audio sections we listen to.
func (c *peerConn) sentCopy(sdp string) string {
	sdp, mid := mesh.OneVoice(mesh.VideoInactive(sdp))
	c.voice.Store(&mid)
	return mesh.OpusWish(sdp, opusWish(c.wideBand))
}

// createAnswer answers the peer's offer. An unanswered one of ours is forgotten.
func (c *peerConn) createAnswer(offer string) error {
	c.offer = nil
	if c.pc.CurrentLocalDescription() != nil {
		c.renewServers()
	}
	if err := c.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: offer}); err != nil {
		return err
	}
	answer, err := c.pc.CreateAnswer(nil)
	if err != nil {
		return err
	}
	gathered := webrtc.GatheringCompletePromise(c.pc)
	if err := c.pc.SetLocalDescription(answer); err != nil {
		return err
	}
	if err := c.await(gathered); err != nil {
		return err
	}
	c.isDescribed()
	sdp := c.sentCopy(c.pc.LocalDescription().SDP)
	c.report(mesh.AnswerReady{Conn: c.id, SDP: sdp, Audio: mesh.LocalAudio(sdp)})
	return nil
}

// applyAnswer takes the peer's answer to our offer.
func (c *peerConn) applyAnswer(answer string) error {
	if offer := c.offer; offer != nil {
		c.offer = nil
		if err := c.pc.SetLocalDescription(*offer); err != nil {
			return err
		}
	}
	if err := c.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: answer}); err != nil {
		return err
	}
	c.isDescribed()
	c.report(mesh.AnswerApplied{Conn: c.id, Audio: mesh.RemoteAudio(answer)})
	return nil
}

func (c *peerConn) rollback() error {
	c.offer = nil
	return nil
}

// addCandidates adds those that are of use; one that is not does not spoil the others.
func (c *peerConn) addCandidates(candidates []mesh.Candidate) error {
	var errs []error
	for _, cand := range candidates {
		if cand.Line == "" {
			continue // the end marker; nobody waits for it, it often never comes
		}
		errs = append(errs, c.pc.AddICECandidate(webrtc.ICECandidateInit{
			Candidate: cand.Line, SDPMid: cand.Mid, SDPMLineIndex: cand.MLine, UsernameFragment: cand.Ufrag,
		}))
	}
	return errors.Join(errs...)
}

func (c *peerConn) String() string { return fmt.Sprintf("conn %d to %s", c.id, c.peer) }
