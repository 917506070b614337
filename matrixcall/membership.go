package matrixcall

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"trunkline/matrixcall/mesh"
)

// Membership is one ghost in one conference. Its actor (run) owns the mesh and one timer; everything else only puts
// events into its inbox. What the mesh wants done is done by three kinds of helpers, each serial: the signaller, the
// writer of room state, and one goroutine per PeerConnection. None of them outlives the membership.
type Membership struct {
	host  callHost
	ghost *Ghost
	info  MembershipInfo
	opts  CallOptions
	log   *slog.Logger
	track *webrtc.TrackLocalStaticRTP // one payload, written to every peer

	inbox    *inbox[mesh.Event]
	signals  *signaller
	writes   *inbox[func(context.Context)] // of room state; the actor fills, write drains
	stop     context.CancelFunc
	joined   chan error    // capacity 1: how joining went
	done     chan struct{} // closed when everything is over
	forsaken atomic.Bool   // Abandon was called
	wg       sync.WaitGroup

	mu        sync.Mutex       // guards info, but for Ghost, Device and Room, and what follows
	writeErr  error            // of the last write of room state that failed
	speakers  map[PeerKey]bool // who is speaking
	elsewhere *CallState       // as last delivered
	unsaved   bool             // info must be saved before our entry is written

	connected atomic.Int64 // peers

	state mesh.State              // only run touches this
	conns map[mesh.Conn]*peerConn // only run touches this
	tried map[mesh.Device]string  // only run touches this: the session of the last connection to each device
	told  bool                    // only run touches this: joined was answered
	past  []string                // only run touches this: conferences we were in before this one

	leaveErr error // only run writes this; read once done is closed
}

// flushPatience is how long hangups may take after everything else is over, closePatience how long connections may.
const (
	flushPatience = 5 * time.Second
	closePatience = 10 * time.Second
)

// errGivenUp says that nobody waits any more for a membership, which therefore leaves.
var errGivenUp = errors.New("given up")

var errCallLeft = errors.New("left the call before it was joined")

// joinCall joins the room's call or creates one. A membership that comes with an error is still leaving: it has left when
// done is closed. Nobody may wait for that while phones cannot join, for leaving may have to wait for those.
func joinCall(ctx context.Context, host callHost, ghost *Ghost, room id.RoomID, opts CallOptions) (*Membership, error) {
	call, err := callToJoin(ctx, host, ghost, room, opts.Rejoin)
	if err != nil {
		return nil, err
	}
	content := CallContent{Intent: call.Intent, Type: call.Type, Name: call.Name}
	fresh := call.ConfID == ""
	if fresh {
		content = CallContent{
			Intent: cmp.Or(opts.Intent, "m.ring"), Type: cmp.Or(opts.CreateType, "m.voice"), Name: opts.Name,
		}
		call = CallState{ConfID: "sip-" + newID(), Ours: true}
	}
	m, err := newMembership(host, ghost, room, call, fresh, opts)
	if err != nil {
		return nil, err
	}
	if opts.Save != nil { // before anything of it can be seen in the room
		if err := opts.Save(ctx, m.info); err != nil {
			return nil, fmt.Errorf("save membership: %w", err)
		}
	}
	if fresh {
		// Hydrogen forgets a member whose call it does not know: the call must stand first.
		if m.info.CallEvent, err = host.PutCall(ctx, ghost, room, call.ConfID, content); err != nil {
			return nil, fmt.Errorf("create call: %w", err)
		}
	}
	err = m.begin(ctx)
	if err != nil && fresh && ctx.Err() == nil { // else leaving does it
		content.Terminated = callEnded
		_, putErr := host.PutCall(ctx, ghost, room, call.ConfID, content)
		err = errors.Join(err, putErr)
	}
	if m.stop == nil { // not even begun
		return nil, err
	}
	return m, err
}

// callToJoin finds the call to join; its ConfID is "" when one is to be made.
func callToJoin(ctx context.Context, host callHost, ghost *Ghost, room id.RoomID, rejoin *MembershipInfo) (CallState, error) {
	if rejoin == nil {
		return host.activeCall(ctx, ghost, room)
	}
	call, err := host.callState(ctx, ghost, room, rejoin.ConfID)
	if err == nil && (call.ConfID == "" || call.Ended) {
		err = ErrCallOver
	}
	call.Ours = call.Ours || rejoin.Created
	return call, err
}

// formerSessions is how the session ids of the membership before begin: the mesh makes later ones by adding to the first, a [newID].
func formerSessions(rejoin *MembershipInfo) string {
	if rejoin == nil {
		return ""
	}
	return rejoin.SessionID[:min(len(rejoin.SessionID), idLength)]
}

// newID is unique and within the grammar of call ids.
func newID() string { return strings.ToLower(rand.Text()[:idLength]) }

const idLength = 16

func newMembership(host callHost, ghost *Ghost, room id.RoomID, call CallState, fresh bool, opts CallOptions) (*Membership, error) {
	if opts.OnEvent == nil {
		opts.OnEvent = func(Event) {}
	}
	if opts.OnPacket == nil {
		opts.OnPacket = func(PeerKey, *rtp.Packet) {}
	}
	m := &Membership{
		host: host, ghost: ghost, opts: opts,
		info: MembershipInfo{
			Ghost: ghost.UserID(), Device: ghost.DeviceID(), Room: room, ConfID: call.ConfID,
			CallEvent: call.Event, SessionID: newID(), Created: call.Ours,
		},
		inbox: newInbox[mesh.Event](), writes: newInbox[func(context.Context)](),
		joined: make(chan error, 1), done: make(chan struct{}), conns: make(map[mesh.Conn]*peerConn),
		speakers: make(map[PeerKey]bool), tried: make(map[mesh.Device]string),
	}
	m.log = host.logger().With("ghost", userName(m.info.Ghost), "conf_id", call.ConfID)
	m.signals = newSignaller(m)
	stream := "ghost-" + newID()
	var err error
	if m.track, err = webrtc.NewTrackLocalStaticRTP(opusCodec, "audio0", stream); err != nil {
		return nil, err
	}
	m.state = mesh.New(mesh.Config{
		Self: mesh.Device{User: m.info.Ghost, ID: m.info.Device}, ConfID: call.ConfID, Session: m.info.SessionID,
		CallPrefix: "c-" + newID() + "-", StreamID: stream, Created: call.Ours, Fresh: fresh, Returns: opts.Rejoin != nil,
		Former: formerSessions(opts.Rejoin), MaxPeers: host.rtcEngine().maxPeers, EntryLife: opts.EntryLife,
	})
	return m, nil
}

// begin starts the membership and waits until the ghost is a member, or will not be.
func (m *Membership) begin(ctx context.Context) error {
	if err := m.host.attach(ctx, m); err != nil {
		return err
	}
	runCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	m.stop = stop
	m.inbox.put(mesh.Join{})
	go m.run(runCtx)
	select {
	case err := <-m.joined:
		return err
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), ErrAbandoned) {
			m.Abandon()
		} else {
			m.inbox.put(mesh.Leave{})
		}
		return fmt.Errorf("%w: %w", errGivenUp, context.Cause(ctx))
	}
}

// Info describes the membership as it is now.
func (m *Membership) Info() MembershipInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.info
}

// WriteRTP sends one Opus packet to all connected peers. It does not keep the packet. A peer that is just being closed
// is no error.
func (m *Membership) WriteRTP(packet *rtp.Packet) error {
	if err := m.track.WriteRTP(packet); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	m.host.Metrics().PacketsSent.Add(uint64(max(m.connected.Load(), 0)))
	return nil
}

// Mute tells the peers whether the phone can be heard: true while it is on hold. Hydrogen plays nothing of a muted one.
func (m *Membership) Mute(muted bool) { m.inbox.put(mesh.Mute{Muted: muted}) }

// Speakers are the peers whose users are speaking, in no order.
func (m *Membership) Speakers() []PeerKey {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.speakers))
}

// AssertIdentity tells the peers who the phone is now, after a transfer, say (MSC3086). Peers that connect later hear
// it, too. Whether a client shows it is up to the client.
func (m *Membership) AssertIdentity(who Identity) {
	m.inbox.put(mesh.Assert{Identity: mesh.Identity{
		ID: who.ID, DisplayName: who.DisplayName, AvatarURL: string(who.AvatarURL),
	}})
}

// Abandon drops the membership at once and tells nobody: the entry stands, peers hear nothing, the call goes on. It is for
// a process that is being replaced; its successor rejoins (CallOptions.Rejoin). It returns when everything is dropped.
func (m *Membership) Abandon() {
	m.forsake()
	m.inbox.put(mesh.Abandon{})
	<-m.done
}

// forsake ends whatever is being sent or written.
func (m *Membership) forsake() {
	m.forsaken.Store(true)
	m.stop()
}

// Leave leaves the conference: hangups to all peers, our member entry removed, the call terminated if it is ours and
// nobody is left. It returns when that is done, or when ctx ends; then the leaving goes on. Leaving twice is no error, but
// not being able to remove the entry is.
func (m *Membership) Leave(ctx context.Context, reason string) error {
	m.inbox.put(mesh.Leave{Reason: reason})
	select {
	case <-m.done:
		return m.leaveErr
	case <-ctx.Done():
		return fmt.Errorf("leave call in %s: %w", m.info.Room, context.Cause(ctx))
	}
}

func (m *Membership) deliverToDevice(sender id.UserID, senderDevice id.DeviceID, evtType string, content json.RawMessage, encrypted bool) {
	sig, claimed, err := decodeSignal(evtType, content)
	if err == nil && encrypted && claimed != "" && claimed != senderDevice {
		err = errors.New("content names another device than olm")
	}
	if err != nil {
		m.host.Metrics().SignalsDropped.Add("malformed")
		m.log.Debug("signal refused", "peer", userName(sender), "device", senderDevice, "type", evtType, "err", err)
		return
	}
	m.host.Metrics().SignalsReceived.Add(sig.Kind.String())
	m.log.Debug("signal in", "peer", userName(sender), "device", senderDevice, "session", sig.SenderSession,
		"call_id", sig.CallID, "kind", sig.Kind, "seq", sig.Seq, "reason", sig.Reason)
	m.inbox.put(mesh.Received{From: mesh.Device{User: sender, ID: senderDevice}, Signal: sig})
}

func (m *Membership) deliverState(members []MemberDevice, call CallState) {
	ev := mesh.RoomState{ConfID: call.ConfID, Ended: call.Ended, Out: call.Out, Unsure: m.opts.Unsure != nil && m.opts.Unsure()}
	m.mu.Lock()
	m.elsewhere = call.Elsewhere
	m.mu.Unlock()
	if other := call.Elsewhere; other != nil {
		ev.Elsewhere = mesh.Conference{ID: other.ConfID, Ours: other.Ours}
	}
	for _, mem := range members {
		ev.Members = append(ev.Members, mesh.Member{
			Peer:    mesh.Peer{Device: mesh.Device{User: mem.User, ID: mem.Device}, Session: mem.Session},
			Expires: mem.Expires, Ours: mem.Ours,
		})
	}
	m.inbox.put(ev)
}

// run is the actor.
func (m *Membership) run(ctx context.Context) {
	defer close(m.done)
	defer func() { m.host.detach(m, m.forsaken.Load()) }()
	flushed := m.signals.start(ctx)
	m.wg.Go(func() { m.write(ctx) })
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for !m.state.Left() {
		timer.Stop()
		if deadline := m.state.Deadline(); !deadline.IsZero() {
			timer.Reset(time.Until(deadline))
		}
		select {
		case <-timer.C:
			m.step(ctx, mesh.Tick{})
		case <-m.inbox.wake:
			for _, ev := range m.inbox.take() {
				m.step(ctx, ev)
			}
		}
	}
	m.signals.finish()
	select {
	case <-flushed:
	case <-time.After(flushPatience):
		m.log.Warn("hangups were not sent in time")
	}
	m.stop()
	m.waitForHelpers()
}

// waitForHelpers waits for everything the membership started. It would be a bug in a library if that took long, but no
// reason for the phone to hang on.
func (m *Membership) waitForHelpers() {
	ended := make(chan struct{})
	go func() {
		m.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closePatience):
		m.log.Error("connections do not close; their memory is lost until the bridge restarts")
	}
}

// step lets the mesh decide, and does what it says.
func (m *Membership) step(ctx context.Context, ev mesh.Event) {
	state, effects := mesh.Step(m.state, time.Now(), ev)
	m.state = state
	m.mu.Lock()
	if state.Session() != m.info.SessionID {
		m.host.Metrics().SessionsRotated.Add(1)
	}
	m.info.SessionID, m.info.Expires = state.Session(), state.Expires()
	m.mu.Unlock()
	var signals []mesh.Send
	for _, effect := range effects {
		if send, ok := effect.(mesh.Send); ok {
			signals = append(signals, send)
		} else if !m.performConn(ctx, effect) {
			m.perform(effect)
		}
	}
	m.signals.send(signals)
}

// perform does what does not concern a connection. Nothing in it blocks.
func (m *Membership) perform(effect mesh.Effect) {
	switch e := effect.(type) {
	case mesh.PutMember:
		m.putMember(m.entry(e), mesh.MemberWritten{Session: e.Session})
	case mesh.RemoveMember:
		m.putMember(nil, mesh.MemberWritten{Removed: true})
	case mesh.TerminateCall:
		m.terminate()
	case mesh.Moved:
		m.moved(e)
	case mesh.EndEmpty:
		m.endEmpty(e)
	case mesh.ReadState:
		m.host.refreshState(m)
	case mesh.Joined:
		m.told = true
		m.joined <- nil
	case mesh.Done:
		m.doneJoining(e.Err)
	case mesh.PeerConnected:
		m.connected.Add(1)
		m.opts.OnEvent(PeerConnected{Peer: peerKey(e.Peer)})
	case mesh.PeerGone:
		m.connected.Add(-1)
		m.opts.OnEvent(PeerGone{Peer: peerKey(e.Peer), Reason: e.Reason})
	case mesh.PeerMuted:
		m.opts.OnEvent(PeerMuted{Peer: peerKey(e.Peer), Muted: e.Muted})
	case mesh.People:
		m.opts.OnEvent(People{N: e.N})
	case mesh.CallEnded:
		m.opts.OnEvent(CallEnded{Reason: e.Reason})
	case mesh.CannotStay:
		m.opts.OnEvent(Failed{Err: m.explain(e.Err)})
	case mesh.Displaced:
		m.log.Warn("another process is our device in the call", "session", tame(e.Session))
		m.forsake()
		m.opts.OnEvent(Displaced{})
	case mesh.Note:
		m.log.Info("call", "peer", userName(e.Device.User), "device", e.Device.ID, "note", tame(e.Text))
	case mesh.Dropped:
		m.host.Metrics().SignalsDropped.Add(e.Why)
		m.log.Debug("signal dropped", "peer", userName(e.From.User), "device", e.From.ID, "kind", e.Kind, "reason", e.Why)
	}
}

// doneJoining answers JoinCall if it still waits.
func (m *Membership) doneJoining(why string) {
	err := m.explain(why)
	switch {
	case !m.told:
		m.joined <- cmp.Or(err, errCallLeft)
	case err != nil:
		m.leaveErr = fmt.Errorf("remove member entry in %s: %w", m.info.Room, err)
	}
	m.told = true
}

// explain returns what went wrong: the error of the last write itself, when there is one, says more than its text.
func (m *Membership) explain(why string) error {
	if why == "" {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return cmp.Or(m.writeErr, errors.New(why))
}

func peerKey(p mesh.Peer) PeerKey { return PeerKey{User: p.User, Device: p.ID, Session: p.Session} }

// entry is our device in the member event.
func (m *Membership) entry(e mesh.PutMember) *MemberCallDevice {
	return &MemberCallDevice{
		DeviceID: m.info.Device, SessionID: e.Session, ExpiresTS: e.Expires.UnixMilli(),
		Feeds: []MemberFeed{{Purpose: mesh.UserMedia}},
	}
}

// putMember writes our entry in place of the one that is there; nil removes it.
func (m *Membership) putMember(device *MemberCallDevice, result mesh.MemberWritten) {
	edit := MemberEdit{ConfID: m.Info().ConfID, Former: m.past, Drop: []id.DeviceID{m.info.Device}, Add: device}
	if before := m.opts.Rejoin; before != nil {
		edit.Drop = append(edit.Drop, before.Device) // the ghost may have had to take a new device since
	}
	renewal := device != nil && m.told // the mesh knows better than a client's back-off when to try again
	m.writes.put(func(ctx context.Context) {
		if renewal {
			ctx = mautrix.WithMaxRetries(ctx, 0)
		}
		err := m.saveMove(ctx)
		if err == nil {
			err = m.host.PutMember(ctx, m.ghost, m.info.Room, edit)
		}
		if err != nil {
			m.mu.Lock()
			m.writeErr = err
			m.mu.Unlock()
			_, noRights := errors.AsType[*RightsError](err)
			result.Err, result.Fatal = err.Error(), noRights || errors.Is(err, mautrix.MForbidden)
		}
		m.inbox.put(result)
	})
}

// moved takes note that we are in another call now.
func (m *Membership) moved(e mesh.Moved) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.past = append(m.past, e.From)
	m.info.ConfID, m.info.Created, m.info.CallEvent = e.To.ID, e.To.Ours, ""
	if call := m.elsewhere; call != nil && call.ConfID == e.To.ID {
		m.info.CallEvent = call.Event
	}
	m.unsaved = true
	m.log.Info("moved to the call that people are in", "from", e.From, "to", e.To.ID)
}

// saveMove stores a move before the room can see it.
func (m *Membership) saveMove(ctx context.Context) error {
	m.mu.Lock()
	info, unsaved := m.info, m.unsaved
	m.mu.Unlock()
	if !unsaved || m.opts.Save == nil {
		return nil
	}
	if err := m.opts.Save(ctx, info); err != nil {
		return fmt.Errorf("save membership in %s: %w", info.Room, err)
	}
	m.mu.Lock()
	m.unsaved = false
	m.mu.Unlock()
	return nil
}

// endEmpty ends a call of ours that we moved away from, unless somebody is in it. It may outlive the membership's other
// work, not the membership.
func (m *Membership) endEmpty(e mesh.EndEmpty) {
	info := m.Info()
	info.ConfID = e.ConfID
	m.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), endPatience)
		defer cancel()
		if err := m.host.endEmptyCall(ctx, m.ghost, info); err != nil {
			m.log.Warn("call may stay behind without anybody in it", "other", e.ConfID, "err", err)
		}
	})
}

func (m *Membership) terminate() {
	info := m.Info()
	m.writes.put(func(ctx context.Context) {
		var result mesh.CallWritten
		if err := m.host.endEmptyCall(ctx, m.ghost, info); err != nil {
			result.Err = err.Error()
		}
		m.inbox.put(result)
	})
}

// write writes room state, one thing after the other.
func (m *Membership) write(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.writes.wake:
			for _, job := range m.writes.take() {
				job(ctx)
			}
		}
	}
}

// performConn does what concerns a connection and says whether it did.
func (m *Membership) performConn(ctx context.Context, effect mesh.Effect) bool {
	switch e := effect.(type) {
	case mesh.Open:
		if m.tried[e.Peer.Device] == e.Peer.Session {
			m.host.Metrics().PeersRetried.Add(1)
		}
		m.tried[e.Peer.Device] = e.Peer.Session
		c := m.newConn(e)
		m.conns[e.Conn] = c
		c.start(ctx, &m.wg)
		c.do("open", func() error { return c.open(e.Inviter) })
	case mesh.CreateOffer:
		c := m.conns[e.Conn]
		c.do("offer", func() error { return c.createOffer(e.RestartICE) })
	case mesh.CreateAnswer:
		c := m.conns[e.Conn]
		c.do("answer", func() error { return c.createAnswer(e.Offer) })
	case mesh.ApplyAnswer:
		c := m.conns[e.Conn]
		c.do("apply answer", func() error { return c.applyAnswer(e.Answer) })
	case mesh.Rollback:
		c := m.conns[e.Conn]
		c.try("rollback", c.rollback)
	case mesh.AddCandidates:
		c := m.conns[e.Conn]
		c.try("candidates", func() error { return c.addCandidates(e.Candidates) })
	case mesh.Close:
		c := m.conns[e.Conn]
		c.cancel(closeReason(e.Reason))
		delete(m.conns, e.Conn)
		m.mu.Lock()
		delete(m.speakers, c.peer)
		m.mu.Unlock()
	default:
		return false
	}
	return true
}

func (m *Membership) newConn(e mesh.Open) *peerConn {
	c := &peerConn{
		id: e.Conn, peer: peerKey(e.Peer), engine: m.host.rtcEngine(), track: m.track, metrics: m.host.Metrics(),
		log:    m.log.With("peer", userName(e.Peer.User), "device", e.Peer.ID, "session", e.Peer.Session, "call_id", e.Call),
		report: m.inbox.put, event: m.opts.OnEvent, packet: m.opts.OnPacket, wideBand: m.opts.WideBand,
		turn: func(ctx context.Context) []TURNServer {
			servers, err := m.host.turnServers(ctx, m.ghost)
			if err != nil {
				m.log.Debug("no TURN servers", "err", err)
			}
			return servers
		},
	}
	c.speaks = func(on bool) { m.speaks(c, on) }
	return c
}

// speaks takes note of who speaks, unless the connection is being closed.
func (m *Membership) speaks(c *peerConn, on bool) {
	m.mu.Lock()
	gone := c.ctx.Err() != nil
	switch {
	case gone:
	case on:
		m.speakers[c.peer] = true
	default:
		delete(m.speakers, c.peer)
	}
	m.mu.Unlock()
	if !gone {
		m.opts.OnEvent(Speaking{Peer: c.peer, On: on})
	}
}
