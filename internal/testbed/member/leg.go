package member

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pion/webrtc/v4"
)

const (
	inviteLifetime = time.Minute
	answerDelay    = 200 * time.Millisecond // both clients gather this long before they answer
	offerDelay     = 50 * time.Millisecond  // a browser needs this long for an offer: a peer that joins just now is joined by then
	firstBatch     = 30 * time.Millisecond  // candidates follow the invite after this
	callerBatch    = 2 * time.Second        // and then after this, with the end marker
	calleeBatch    = 500 * time.Millisecond // the callee's, after its answer
	iceGrace       = 30 * time.Second       // of being disconnected
	restartDelay   = 2 * time.Second        // js-sdk's ICE restart
)

// legState is where an attempt is.
//
//	       invite()                 answer in           ICE, DTLS
//	new ------------> invited -----------------> answered -------> connected
//	 |                                               ^                 |
//	 +------- invite in, answer out -----------------+      any -----> ended
type legState int

const (
	stateNew legState = iota
	stateInvited
	stateAnswered
	stateConnected
	stateEnded
)

func (s legState) String() string {
	return [...]string{"new", "invited", "answered", "connected", "ended"}[s]
}

// leg is one attempt to connect: one call id, one PeerConnection. Only run touches it, except where noted.
type leg struct {
	p       *peer
	callID  string
	inviter bool
	state   legState
	pc      *webrtc.PeerConnection
	done    chan struct{} // closed with the leg

	stream     string // id of our stream
	microphone *webrtc.TrackLocalStaticRTP
	seq        int    // js-sdk: next number
	party      string // the peer's, once known
	invitedAt  time.Time
	lostAt     time.Time // when ICE was disconnected, zero: it is not

	local      []candidate // gathered and not yet sent
	gathered   bool
	trickling  bool        // candidates go out as they come, in batches
	early      []candidate // received before the remote description
	remoteRole string      // the peer's DTLS role since the first answer
	streams    metadata    // what the peer says of its streams
	heard      string      // stream id of the peer's audio track
	negotiate  bool        // an own offer is wanted as soon as nothing is pending
	audible    atomic.Bool // the client plays what comes; read by ear
}

func (p *peer) newLeg(callID string, inviter bool) (*leg, error) {
	m := p.c.m
	l := &leg{p: p, callID: callID, inviter: inviter, done: make(chan struct{}), stream: newID("stream")}
	p.leg = l
	api, err := m.newAPI(inviter)
	if err != nil {
		return nil, err
	}
	if l.pc, err = api.NewPeerConnection(webrtc.Configuration{BundlePolicy: webrtc.BundlePolicyMaxBundle}); err != nil {
		return nil, err
	}
	l.audible.Store(!m.cfg.Kind.hydrogen())
	l.pc.OnICECandidate(func(c *webrtc.ICECandidate) { l.run(func() { l.gather(c) }) })
	l.pc.OnConnectionStateChange(func(s webrtc.PeerConnectionState) { l.run(func() { l.transport(s) }) })
	l.pc.OnICEConnectionStateChange(func(s webrtc.ICEConnectionState) { l.run(func() { l.ice(s) }) })
	l.pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		if track.Kind() != webrtc.RTPCodecTypeAudio {
			return
		}
		l.run(func() { l.heard = track.StreamID(); l.listen() })
		m.wg.Go(func() { m.ear.hear(p.key.user, track, l.audible.Load) })
	})
	return l, nil
}

// close ends the leg for ourselves.
func (l *leg) close() {
	if l.state == stateEnded {
		return
	}
	l.state = stateEnded
	close(l.done)
	m := l.p.c.m
	m.mouth.remove(l.microphone)
	if l.pc != nil {
		m.wg.Go(func() { _ = l.pc.GracefulClose() })
	}
}

// addTracks adds what the user has switched on: the microphone, or only the camera.
func (l *leg) addTracks() error {
	if l.p.c.m.cfg.CameraOnly {
		return l.addTrack(webrtc.MimeTypeVP8, "video")
	}
	return l.addTrack(webrtc.MimeTypeOpus, "audio")
}

func (l *leg) addTrack(mime, name string) error {
	track, err := webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: mime}, name, l.stream)
	if err != nil {
		return err
	}
	sender, err := l.pc.AddTrack(track)
	if err != nil {
		return err
	}
	m := l.p.c.m
	m.wg.Go(func() { // interceptors work only while RTCP is read
		buf := make([]byte, 1500)
		for {
			if _, _, err := sender.Read(buf); err != nil {
				return
			}
		}
	})
	if mime == webrtc.MimeTypeOpus {
		l.microphone = track
		m.mouth.enable(track, l.p.allowed)
	}
	return nil
}

// ownStreams describes our stream: no microphone counts as muted.
func (l *leg) ownStreams() metadata {
	silent := l.microphone == nil || l.p.c.muted
	return metadata{l.stream: {Purpose: "m.usermedia", AudioMuted: silent, VideoMuted: !l.p.c.m.cfg.CameraOnly}}
}

// envelope begins a message with the client's number: hydrogen counts per connection and only six types, js-sdk counts
// everything per call.
func (l *leg) envelope(kind string) content {
	m := l.p.c.m
	c := content{
		CallID: l.callID, ConfID: l.p.c.conf, PartyID: string(m.cfg.DeviceID), DeviceID: m.cfg.DeviceID,
		SenderSession: m.session, DestSession: l.p.session, Version: "1",
	}
	counter := &l.seq
	if m.cfg.Kind.hydrogen() {
		c.Version, counter = 1, &l.p.seq
	}
	if (message{kind: kind}).known() || !m.cfg.Kind.hydrogen() {
		c.Seq = new(*counter)
		*counter++
	}
	return c
}

func (l *leg) send(kind string, fill func(*content)) {
	c := l.envelope(kind)
	fill(&c)
	l.p.outbox.send(kind, c)
}

// invite sends the offer as browsers have it at that moment, without candidates; these follow.
func (l *leg) invite() error {
	if err := l.addTracks(); err != nil {
		return err
	}
	offer, err := l.pc.CreateOffer(nil)
	if err != nil {
		return err
	}
	if err := l.pc.SetLocalDescription(offer); err != nil {
		return err
	}
	l.state, l.invitedAt = stateInvited, time.Now()
	l.after(offerDelay, func() { l.sendInvite(offer.SDP) })
	return nil
}

func (l *leg) sendInvite(sdp string) {
	l.send(typeInvite, func(c *content) {
		c.Offer = &webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: withoutCandidates(sdp)}
		c.Lifetime = int(inviteLifetime.Milliseconds())
		c.setStreams(l.p.c.m.cfg.Kind, l.ownStreams())
		if !l.p.c.m.cfg.Kind.hydrogen() {
			c.Invitee = &l.p.key.user
			c.Capable = map[string]bool{"m.call.transferee": false, "m.call.dtmf": false}
		}
	})
	l.after(firstBatch, l.flush)
	l.after(callerBatch, func() { l.flush(); l.trickling = true })
	l.after(inviteLifetime, func() {
		if l.state == stateInvited {
			l.p.hangUp("invite_timeout")
			l.p.ended("invite_timeout")
		}
	})
}

// gather collects own candidates; nil is the end.
func (l *leg) gather(c *webrtc.ICECandidate) {
	if c == nil {
		l.gathered = true
		return
	}
	j := c.ToJSON()
	l.local = append(l.local, candidate{Candidate: j.Candidate, SDPMid: j.SDPMid, SDPMLineIndex: j.SDPMLineIndex, Ufrag: j.UsernameFragment})
	if l.trickling && len(l.local) == 1 { // of an ICE restart
		l.after(map[bool]time.Duration{true: callerBatch, false: calleeBatch}[l.inviter], l.flush)
	}
}

// flush sends the candidates gathered since the last time. js-sdk sends the end marker only with a real one.
func (l *leg) flush() {
	batch := l.local
	l.local = nil
	if l.gathered && (len(batch) > 0 || l.p.c.m.cfg.Kind.hydrogen()) {
		l.gathered = false
		batch = append(batch, candidate{})
	}
	if len(batch) > 0 {
		l.send(typeCandidates, func(c *content) { c.Candidates = batch })
	}
}

// accept answers an invite, after the time in which browsers gather.
func (l *leg) accept(msg message) error {
	l.party = msg.PartyID
	l.describe(msg.streams(l.p.c.m.cfg.Kind))
	if err := l.setRemote(*msg.Offer); err != nil {
		return err
	}
	if err := l.addTracks(); err != nil {
		return err
	}
	answer, err := l.pc.CreateAnswer(nil)
	if err != nil {
		return err
	}
	if err := l.pc.SetLocalDescription(answer); err != nil {
		return err
	}
	l.remoteRole = "passive" // a browser answers active
	l.state = stateAnswered
	own := map[bool]string{true: "video", false: "audio"}[l.p.c.m.cfg.CameraOnly]
	fits := hasMedia(msg.Offer.SDP, own)
	l.after(answerDelay, func() { l.sendAnswer(!fits) })
	l.after(iceGrace, func() {
		if l.state == stateAnswered {
			l.p.hangUp("ice_failed")
			l.p.ended("ice_failed")
		}
	})
	return nil
}

// sendAnswer sends the local description as it is after 200 ms. more: our track did not fit into the offer, so the
// browser wants to negotiate. js-sdk does so after its answer. hydrogen reads the new offer where it expects its answer,
// sends that with type "offer", and then the same as m.call.negotiate. (hydrogen src/matrix/calls/PeerCall.ts)
func (l *leg) sendAnswer(more bool) {
	m := l.p.c.m
	description := l.pc.LocalDescription()
	if more && m.cfg.Kind.hydrogen() {
		offer, err := l.pc.CreateOffer(nil)
		if err == nil {
			err = l.pc.SetLocalDescription(offer)
		}
		if err != nil {
			m.complain("own offer to %s: %v", l.p.key, err)
			return
		}
		description = l.pc.LocalDescription()
	}
	l.local, l.gathered, l.trickling = nil, false, true // those so far are in the description
	l.send(typeAnswer, func(c *content) {
		c.Answer = description
		c.setStreams(m.cfg.Kind, l.ownStreams())
	})
	switch {
	case more && m.cfg.Kind.hydrogen():
		l.sendNegotiate(description)
	case more:
		l.negotiate = true
		l.offerIfWanted()
	}
}

// answered applies the answer to our invite.
func (l *leg) answered(msg message) {
	m, who := l.p.c.m, "answer from "+l.p.key.String()
	if !l.inviter || l.state != stateInvited {
		return
	}
	if msg.Answer == nil || msg.Answer.Type != webrtc.SDPTypeAnswer {
		m.complain("%s has no answer", who)
		return
	}
	if !l.p.knownStreams(who, msg, msg.Answer.SDP) {
		l.close() // without a word
		return
	}
	l.party = msg.PartyID
	l.describe(msg.streams(m.cfg.Kind))
	if err := l.setRemote(*msg.Answer); err != nil {
		m.complain("%s: %v", who, err)
		l.close()
		return
	}
	l.remoteRole = setupOf(msg.Answer.SDP)
	l.state = stateAnswered
	if !m.cfg.Kind.hydrogen() {
		l.send(typeSelect, func(c *content) { c.Selected = l.party })
	}
	l.after(iceGrace, func() {
		if l.state == stateAnswered {
			l.p.hangUp("ice_failed")
			l.p.ended("ice_failed")
		}
	})
}

// setRemote applies a description and the candidates that waited for it.
func (l *leg) setRemote(d webrtc.SessionDescription) error {
	if err := l.pc.SetRemoteDescription(d); err != nil {
		return err
	}
	early := l.early
	l.early = nil
	for _, c := range early {
		l.addCandidate(c)
	}
	return nil
}

// candidates: browsers refuse them before the answer, and both clients swallow the refusal.
func (l *leg) candidates(msg message) {
	if l.otherParty(msg) {
		return
	}
	if l.inviter && l.state == stateInvited {
		l.p.c.m.complain("candidates from %s before the answer are lost", l.p.key)
		return
	}
	for _, c := range msg.Candidates {
		if l.pc.RemoteDescription() == nil {
			l.early = append(l.early, c)
		} else {
			l.addCandidate(c)
		}
	}
}

func (l *leg) addCandidate(c candidate) {
	if c.Candidate == "" {
		return // end marker
	}
	err := l.pc.AddICECandidate(webrtc.ICECandidateInit{
		Candidate: c.Candidate, SDPMid: c.SDPMid, SDPMLineIndex: c.SDPMLineIndex, UsernameFragment: c.Ufrag,
	})
	if err != nil {
		l.p.c.m.complain("candidate from %s: %v", l.p.key, err)
	}
}

// otherParty: js-sdk ignores candidates and hangups of another party than the one that invited or answered.
func (l *leg) otherParty(msg message) bool {
	if l.p.c.m.cfg.Kind.hydrogen() || l.party == "" || l.party == msg.PartyID {
		return false
	}
	l.p.c.m.complain("%s from %s has party_id %q, was %q", msg.kind, l.p.key, msg.PartyID, l.party)
	return true
}

// hungUp ends the leg. js-sdk does not read a hangup before the answer: it has not chosen a party yet.
func (l *leg) hungUp(msg message) {
	if !l.p.c.m.cfg.Kind.hydrogen() && l.inviter && l.state == stateInvited || l.otherParty(msg) {
		return
	}
	reason := msg.Reason
	if reason == "" {
		reason = "user_hangup"
	}
	l.p.ended(reason)
}

// negotiated is perfect negotiation with the callee as the polite side (MSC2746).
func (l *leg) negotiated(msg message) {
	m := l.p.c.m
	d := msg.Description
	if d == nil || d.SDP == "" {
		m.complain("negotiate from %s has no description", l.p.key)
		return
	}
	if msg.streams(m.cfg.Kind) != nil {
		l.p.knownStreams("negotiate from "+l.p.key.String(), msg, d.SDP)
		l.describe(msg.streams(m.cfg.Kind))
	}
	var err error
	if d.Type == webrtc.SDPTypeAnswer {
		err = l.applyAnswer(*d)
	} else {
		err = l.answerOffer(*d)
	}
	if err != nil {
		m.complain("negotiate from %s: %v", l.p.key, err)
	}
	l.offerIfWanted()
}

func (l *leg) applyAnswer(d webrtc.SessionDescription) error {
	if l.pc.SignalingState() != webrtc.SignalingStateHaveLocalOffer {
		return nil
	}
	if role := setupOf(d.SDP); l.remoteRole != "" && role != l.remoteRole {
		return fmt.Errorf("the answer changes the DTLS role from %s to %s: Chromium refuses it", l.remoteRole, role)
	}
	return l.setRemote(d)
}

func (l *leg) answerOffer(d webrtc.SessionDescription) error {
	if l.pc.SignalingState() != webrtc.SignalingStateStable {
		if l.inviter {
			return nil // impolite: theirs is ignored, ours will be answered
		}
		if err := l.pc.SetLocalDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeRollback}); err != nil {
			return fmt.Errorf("rollback: %w", err)
		}
		l.negotiate = true
	}
	if err := l.setRemote(d); err != nil {
		return err
	}
	answer, err := l.pc.CreateAnswer(nil)
	if err != nil {
		return err
	}
	if err := l.pc.SetLocalDescription(answer); err != nil {
		return err
	}
	l.sendNegotiate(&answer)
	return nil
}

func (l *leg) sendNegotiate(d *webrtc.SessionDescription) {
	l.send(typeNegotiate, func(c *content) {
		c.Description, c.Lifetime = d, int(inviteLifetime.Milliseconds())
		c.setStreams(l.p.c.m.cfg.Kind, l.ownStreams())
	})
}

// offerIfWanted sends an own offer when nothing is pending.
func (l *leg) offerIfWanted() {
	if !l.negotiate || l.pc.SignalingState() != webrtc.SignalingStateStable {
		return
	}
	l.negotiate = false
	if err := l.offer(nil); err != nil {
		l.p.c.m.complain("own offer to %s: %v", l.p.key, err)
	}
}

func (l *leg) offer(options *webrtc.OfferOptions) error {
	offer, err := l.pc.CreateOffer(options)
	if err != nil {
		return err
	}
	if err := l.pc.SetLocalDescription(offer); err != nil {
		return err
	}
	l.sendNegotiate(l.pc.LocalDescription())
	return nil
}

// describe merges metadata key by key: streams that are not named stay.
func (l *leg) describe(md metadata) {
	if md == nil {
		return
	}
	if l.streams == nil {
		l.streams = metadata{}
	}
	for id, info := range md {
		l.streams[id] = info
	}
	l.listen()
}

// listen decides whether the client plays the peer's sound: hydrogen only a stream that it knows and that is not muted.
func (l *leg) listen() {
	info, known := l.streams[l.heard]
	if l.p.c.m.cfg.Kind.hydrogen() {
		l.audible.Store(known && !info.AudioMuted)
	} else {
		l.audible.Store(known || l.streams == nil)
	}
}

func (l *leg) peerMuted() bool {
	for _, info := range l.streams {
		if info.Purpose == "m.usermedia" && info.AudioMuted {
			return true
		}
	}
	return false
}

// direction of the audio line as negotiated, from our side.
func (l *leg) direction() string {
	if l.pc == nil || l.state == stateEnded {
		return ""
	}
	for _, t := range l.pc.GetTransceivers() {
		if t.Kind() == webrtc.RTPCodecTypeAudio {
			return t.Direction().String()
		}
	}
	return ""
}

// transport waits for ICE and DTLS.
func (l *leg) transport(s webrtc.PeerConnectionState) {
	l.p.c.m.log.Debug("transport", "peer", l.p.key, "call", l.callID, "state", s)
	if s != webrtc.PeerConnectionStateConnected {
		return
	}
	l.state = stateConnected
	if !l.p.c.m.cfg.Kind.hydrogen() {
		l.p.attempts = 0
	}
}

// ice is what both clients look at later on: a peer is gone when ICE says so, not DTLS.
func (l *leg) ice(s webrtc.ICEConnectionState) {
	l.p.c.m.log.Debug("ice", "peer", l.p.key, "call", l.callID, "state", s)
	hydrogen := l.p.c.m.cfg.Kind.hydrogen()
	switch {
	case s == webrtc.ICEConnectionStateDisconnected:
		lost := time.Now()
		l.lostAt = lost
		if !hydrogen {
			l.after(restartDelay, l.restartUnlessBack)
		}
		l.after(iceGrace, func() {
			if l.lostAt.Equal(lost) {
				l.p.hangUp("ice_failed")
				l.p.ended("ice_failed")
			}
		})
	case s == webrtc.ICEConnectionStateFailed && hydrogen:
		l.p.hangUp("ice_failed")
		l.p.ended("ice_failed")
	case s == webrtc.ICEConnectionStateFailed:
		l.restartUnlessBack()
	case s == webrtc.ICEConnectionStateConnected || s == webrtc.ICEConnectionStateCompleted:
		l.lostAt = time.Time{}
	}
}

// restartUnlessBack is js-sdk's ICE restart, an ordinary negotiation with new credentials.
func (l *leg) restartUnlessBack() {
	if l.lostAt.IsZero() || l.pc.SignalingState() != webrtc.SignalingStateStable {
		return
	}
	if err := l.offer(&webrtc.OfferOptions{ICERestart: true}); err != nil {
		l.p.c.m.complain("ICE restart with %s: %v", l.p.key, err)
	}
}

// addMicrophone is a camera-only user pressing the microphone: metadata first, then an offer. hydrogen as inviter cannot
// send that offer before its invite's lifetime is over: the wait sits in the same chain of promises.
func (l *leg) addMicrophone() error {
	if l.microphone != nil {
		return nil
	}
	if err := l.addTrack(webrtc.MimeTypeOpus, "audio"); err != nil {
		return err
	}
	l.announce()
	wait := time.Duration(0)
	if l.inviter && l.p.c.m.cfg.Kind.hydrogen() {
		wait = max(0, inviteLifetime-time.Since(l.invitedAt))
	}
	l.after(wait, func() { l.negotiate = true; l.offerIfWanted() })
	return nil
}

// announce tells the peer what is muted now. hydrogen writes the unstable type.
func (l *leg) announce() {
	kind := typeMetadata
	if l.p.c.m.cfg.Kind.hydrogen() {
		kind = typeMetadataU
	}
	l.send(kind, func(c *content) { c.setStreams(l.p.c.m.cfg.Kind, l.ownStreams()) })
}

// Mute switches the microphone off or on. A member who joined with the camera only gets a microphone by unmuting.
func (m *Member) Mute(muted bool) error {
	m.mouth.mute(muted)
	var errs []error
	err := m.ask(m.ctx, func() {
		if m.call == nil {
			return
		}
		m.call.muted = muted
		for _, key := range m.call.keys() {
			l := m.call.peers[key].leg
			if l == nil || l.state == stateEnded || l.state == stateNew {
				continue
			}
			if !muted && l.microphone == nil {
				errs = append(errs, l.addMicrophone())
			} else {
				l.announce()
			}
		}
	})
	return errors.Join(append(errs, err)...)
}

// SDP returns the remote description of the current leg with a user, for assertions.
func (m *Member) SDP(user string) (sdp string) {
	_ = m.ask(m.ctx, func() {
		if m.call == nil {
			return
		}
		for _, p := range m.call.peers {
			if strings.EqualFold(string(p.key.user), user) && p.leg != nil && p.leg.pc != nil && p.leg.pc.RemoteDescription() != nil {
				sdp = p.leg.pc.RemoteDescription().SDP
			}
		}
	})
	return sdp
}
