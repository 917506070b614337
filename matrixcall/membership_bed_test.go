package matrixcall

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/logging"
	"github.com/pion/rtp"
	"github.com/pion/transport/v4/vnet"
	"github.com/pion/webrtc/v4"
	"maunium.net/go/mautrix/id"
)

// callBed is a room with a call on a virtual network: memberships of ours on one side, scripted browsers on the
// other, and between them a homeserver reduced to what callHost says.
type callBed struct {
	t      testing.TB
	router *vnet.Router
	engine *engine
	log    *slog.Logger

	mu       sync.Mutex
	call     CallState
	members  map[id.UserID][]MemberDevice
	joined   []*Membership // attached
	browsers map[id.UserID]*browser
	sent     []OutMessage
	sending  map[*Ghost]chan struct{} // closed when the last batch of the ghost was delivered
	puts     int
	refuse   error         // PutMember's answer
	delay    time.Duration // of to-device messages
	metrics  Metrics
	relays   []TURNServer
	unsent   id.UserID    // gets no message, and the sender is told
	far      id.UserID    // gets messages after ten seconds; others do not wait for that
	frames   int          // sent by talk
	cut      atomic.Bool  // the network
	off      atomic.Value // string: an address that is cut off from it
}

const bedRoom = id.RoomID("!room")

func newCallBed(t testing.TB, ice ICEConfig) *callBed {
	t.Helper()
	router, err := vnet.NewRouter(&vnet.RouterConfig{
		CIDR: "10.1.0.0/24", LoggerFactory: logging.NewDefaultLoggerFactory(), MinDelay: 10 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	b := &callBed{
		t: t, router: router, log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		members: make(map[id.UserID][]MemberDevice), browsers: make(map[id.UserID]*browser),
		sending: make(map[*Ghost]chan struct{}), delay: 20 * time.Millisecond,
	}
	if testing.Verbose() {
		b.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	ice.network, ice.NoMDNS = b.network("10.1.0.1"), true
	router.AddChunkFilter(b.cutFilter)
	if err := router.Start(); err != nil {
		t.Fatal(err)
	}
	if b.engine, err = newEngine(ice, b.log); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *callBed) network(address string) *vnet.Net {
	b.t.Helper()
	n, err := vnet.NewNet(&vnet.NetConfig{StaticIPs: []string{address}})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.router.AddNet(n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// close ends everything; in a bubble, what is left behind fails the test.
func (b *callBed) close() {
	for _, br := range b.browsers {
		br.close()
	}
	if err := errors.Join(b.engine.Close(), b.router.Stop()); err != nil {
		b.t.Error(err)
	}
}

// phone is a membership of ours with what its owner got.
type phone struct {
	*Membership
	bed     *callBed
	mu      sync.Mutex
	events  []Event
	packets map[id.UserID]int
	level   []byte // as the last packet carried it
}

func (b *callBed) join(user id.UserID) *phone {
	b.t.Helper()
	p := &phone{bed: b, packets: make(map[id.UserID]int)}
	ghost := &Ghost{user: user, device: id.DeviceID("GHOST" + strings.ToUpper(string(user[1:3])))}
	var err error
	p.Membership, err = joinCall(b.t.Context(), b, ghost, bedRoom, CallOptions{Name: "test", OnEvent: p.event, OnPacket: p.packet})
	if err != nil {
		b.t.Fatalf("joinCall(%s) = %v", user, err)
	}
	return p
}

func (p *phone) event(ev Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, ev)
}

func (p *phone) packet(peer PeerKey, packet *rtp.Packet) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if string(packet.Payload) == "voice of "+string(peer.User) {
		p.packets[peer.User]++
	}
	p.level = slices.Clone(packet.GetExtension(LevelExtension))
}

func (p *phone) count(match func(Event) bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, ev := range p.events {
		if match(ev) {
			n++
		}
	}
	return n
}

func isConnected(ev Event) bool { _, ok := ev.(PeerConnected); return ok }
func isGone(ev Event) bool      { _, ok := ev.(PeerGone); return ok }

func (p *phone) people() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ev := range slices.Backward(p.events) {
		if people, ok := ev.(People); ok {
			return people.N
		}
	}
	return 0
}

// counts is how often the phone was told how many people there are.
func (p *phone) counts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, ev := range p.events {
		if _, ok := ev.(People); ok {
			n++
		}
	}
	return n
}

func (p *phone) heard(user id.UserID) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.packets[user]
}

// talk sends and receives for a while: the phone's voice to all, every browser's voice to the phones.
func (b *callBed) talk(d time.Duration, phones ...*phone) {
	for range int(d / (20 * time.Millisecond)) {
		b.frames++ // never twice: SRTP takes a repeated number for a replay
		i := b.frames
		for _, p := range phones {
			packet := &rtp.Packet{
				Header:  rtp.Header{Version: 2, SequenceNumber: uint16(i), Timestamp: uint32(i * 960)},
				Payload: []byte("voice of " + string(p.info.Ghost)),
			}
			if err := p.WriteRTP(packet); err != nil {
				b.t.Errorf("WriteRTP = %v", err)
			}
		}
		b.mu.Lock()
		browsers := slices.Collect(maps.Values(b.browsers))
		b.mu.Unlock()
		for _, br := range browsers {
			br.speak(i)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// The homeserver.

func (b *callBed) toDevice(ctx context.Context, ghost *Ghost, batch []OutMessage) (sent func(place int) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before, done := b.sending[ghost], make(chan struct{})
	b.sending[ghost] = done
	errs := make([]error, len(batch))
	go func() {
		defer close(done)
		if before != nil {
			<-before
		}
		time.Sleep(b.delay)
		for n, msg := range batch {
			errs[n] = b.carry(ghost, msg)
		}
	}()
	return func(place int) error {
		if batch[place].User == b.far {
			_ = sleep(ctx, 10*time.Second)
		}
		<-done
		return cmp.Or(errs[place], ctx.Err())
	}
}

// carry delivers a message.
func (b *callBed) carry(ghost *Ghost, msg OutMessage) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if msg.User == b.unsent {
		return errTooLarge
	}
	content, err := json.Marshal(msg.Content)
	if err != nil {
		return err
	}
	b.sent = append(b.sent, msg)
	if br := b.browsers[msg.User]; br != nil && br.device == msg.Device {
		br.inbox.put(wire{ghost.user, msg.Type, content})
	}
	return nil
}

func (b *callBed) PutMember(ctx context.Context, ghost *Ghost, _ id.RoomID, edit MemberEdit) error {
	time.Sleep(b.delay)
	b.mu.Lock()
	if err := b.refuse; err != nil {
		b.mu.Unlock()
		return err
	}
	b.puts++
	var devices []MemberDevice
	if d := edit.Add; d != nil {
		devices = append(devices, MemberDevice{
			User: ghost.user, Device: d.DeviceID, Session: d.SessionID, Expires: time.UnixMilli(d.ExpiresTS), Ours: true,
		})
	}
	b.mu.Unlock()
	b.setMember(ghost.user, devices...)
	return ctx.Err()
}

func (b *callBed) PutCall(ctx context.Context, ghost *Ghost, _ id.RoomID, confID string, content CallContent) (id.EventID, error) {
	b.mu.Lock()
	b.call = CallState{
		ConfID: confID, Event: "$call", Type: content.Type, Intent: content.Intent, Name: content.Name, Sender: ghost.user,
		Ours: true, Ended: content.Terminated != "",
	}
	b.mu.Unlock()
	b.spread()
	return "$call", ctx.Err()
}

func (b *callBed) turnServers(context.Context, *Ghost) ([]TURNServer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.relays, nil
}

func (b *callBed) activeCall(context.Context, *Ghost, id.RoomID) (CallState, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.call.Ended {
		return CallState{}, nil
	}
	return b.call, nil
}

func (b *callBed) callState(_ context.Context, _ *Ghost, _ id.RoomID, confID string) (CallState, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.call.ConfID != confID {
		return CallState{}, nil
	}
	return b.call, nil
}

func (b *callBed) attach(_ context.Context, m *Membership) error {
	b.mu.Lock()
	b.joined = append(b.joined, m)
	b.mu.Unlock()
	b.spread()
	return nil
}

func (b *callBed) detach(m *Membership, _ bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.joined = slices.DeleteFunc(b.joined, func(other *Membership) bool { return other == m })
}

func (b *callBed) endEmptyCall(ctx context.Context, ghost *Ghost, info MembershipInfo) error {
	b.mu.Lock()
	content := CallContent{Intent: b.call.Intent, Type: b.call.Type, Name: b.call.Name, Terminated: callEnded}
	empty := info.ConfID == b.call.ConfID
	for _, devices := range b.members {
		empty = empty && len(devices) == 0
	}
	b.mu.Unlock()
	if !empty {
		return nil
	}
	_, err := b.PutCall(ctx, ghost, info.Room, info.ConfID, content)
	return err
}

func (b *callBed) refreshState(*Membership) { b.spread() }
func (b *callBed) Metrics() *Metrics        { return &b.metrics }
func (b *callBed) rtcEngine() *engine       { return b.engine }
func (b *callBed) logger() *slog.Logger     { return b.log }

// setMember writes a user's member entry.
func (b *callBed) setMember(user id.UserID, devices ...MemberDevice) {
	b.mu.Lock()
	b.members[user] = devices
	b.mu.Unlock()
	b.spread()
}

// spread tells everyone what the room's state is.
func (b *callBed) spread() {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []MemberDevice
	for _, user := range slices.Sorted(maps.Keys(b.members)) {
		all = append(all, b.members[user]...)
	}
	for _, m := range b.joined {
		m.deliverState(all, b.call)
	}
	for _, br := range b.browsers {
		br.inbox.put(roster(all))
	}
}

type (
	roster []MemberDevice
	wire   struct {
		from    id.UserID
		evtType string
		content json.RawMessage
	}
)

// browser is a scripted participant with the manners of a client: it trickles candidates after its description,
// answers what it gets, calls who is higher than itself. It speaks to any number of ghosts.
type browser struct {
	bed     *callBed
	user    id.UserID
	device  id.DeviceID
	session string
	api     *webrtc.API
	inbox   *inbox[any]
	ctx     context.Context
	stop    context.CancelFunc
	wg      sync.WaitGroup

	calls  map[id.UserID]*browserCall // only run touches this
	roster roster                     // only run touches this
	silent atomic.Bool                // answers nothing
	noMic  bool                       // joins with a camera only
	mute   bool                       // never calls
	keys   bool                       // its track carries telephone events
	// impolite ignores a crossing offer, as the side that invited does.
	impolite bool
	late     bool // switches its microphone on while it answers, and reads its description too late, as hydrogen does
	mu       sync.Mutex
	tracks   map[id.UserID]*webrtc.TrackLocalStaticRTP
	senders  map[id.UserID]*webrtc.RTPSender
	level    uint8             // of its voice, −dBov; 0: not told
	heardBy  map[id.UserID]int // packets by ghost
	got      []string          // types of messages
}

type browserCall struct {
	id     string
	to     MemberDevice
	seq    int
	pc     *webrtc.PeerConnection
	inSDP  string // the last remote description
	outSDP string
}

func (b *callBed) browser(user id.UserID, address string, script func(*browser)) *browser {
	b.t.Helper()
	var s webrtc.SettingEngine
	s.SetNet(b.network(address))
	s.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	s.LoggerFactory = pionLoggers{b.log}
	s.SetICEMaxBindingRequests(icePatience)
	s.SetICETimeouts(iceLost, iceDead, iceKeepAlive)
	media := &webrtc.MediaEngine{}
	if err := media.RegisterDefaultCodecs(); err != nil {
		b.t.Fatal(err)
	}
	tones := webrtc.RTPCodecParameters{RTPCodecCapability: toneCodec, PayloadType: 110}
	if err := media.RegisterCodec(tones, webrtc.RTPCodecTypeAudio); err != nil {
		b.t.Fatal(err)
	}
	for _, uri := range []string{midURI, audioLevelURI} { // not in our order: the numbers must be those agreed upon
		if err := media.RegisterHeaderExtension(webrtc.RTPHeaderExtensionCapability{URI: uri}, webrtc.RTPCodecTypeAudio); err != nil {
			b.t.Fatal(err)
		}
	}
	br := &browser{
		bed: b, user: user, device: "BROWSER", session: "s-" + newID(),
		api:   webrtc.NewAPI(webrtc.WithSettingEngine(s), webrtc.WithMediaEngine(media)),
		inbox: newInbox[any](), calls: make(map[id.UserID]*browserCall),
		tracks: make(map[id.UserID]*webrtc.TrackLocalStaticRTP), heardBy: make(map[id.UserID]int),
		senders: make(map[id.UserID]*webrtc.RTPSender),
	}
	if script != nil {
		script(br)
	}
	br.ctx, br.stop = context.WithCancel(context.Background())
	b.mu.Lock()
	b.browsers[user] = br
	b.mu.Unlock()
	br.wg.Go(br.run)
	return br
}

// enter writes the browser's member entry.
func (br *browser) enter() {
	br.bed.setMember(br.user, MemberDevice{
		User: br.user, Device: br.device, Session: br.session, Expires: time.Now().Add(time.Hour),
	})
}

func (br *browser) close() {
	br.stop()
	br.wg.Wait()
	for _, call := range br.calls {
		if err := call.pc.GracefulClose(); err != nil {
			br.bed.t.Error(err)
		}
	}
}

func (br *browser) run() {
	for {
		select {
		case <-br.ctx.Done():
			return
		case <-br.inbox.wake:
			for _, item := range br.inbox.take() {
				switch item := item.(type) {
				case roster:
					br.roster = item
					br.callThem()
				case wire:
					if !br.silent.Load() {
						br.receive(item)
					}
				case func():
					item()
				}
			}
		}
	}
}

// do runs f where the browser's state lives, and waits.
func (br *browser) do(f func()) {
	done := make(chan struct{})
	br.inbox.put(func() { f(); close(done) })
	<-done
}

func (br *browser) ghost(user id.UserID) (MemberDevice, bool) {
	i := slices.IndexFunc(br.roster, func(m MemberDevice) bool { return m.User == user && m.Ours })
	if i < 0 {
		return MemberDevice{}, false
	}
	return br.roster[i], true
}

func userNumber(i int) id.UserID { return id.UserID("@user" + string(rune('a'+i)) + ":x") }

// callThem calls the ghosts whose id is higher.
func (br *browser) callThem() {
	if !slices.ContainsFunc(br.roster, func(m MemberDevice) bool { return m.User == br.user }) || br.mute {
		return
	}
	for _, m := range br.roster {
		if call := br.calls[m.User]; !m.Ours || m.User < br.user || call != nil && call.to.Session == m.Session {
			continue
		}
		br.invite(m, "b-"+newID())
	}
}

// invite calls a ghost.
func (br *browser) invite(m MemberDevice, callID string) {
	call := br.newCall(callID, m)
	if br.noMic {
		br.check(addVideo(call.pc))
	} else {
		br.addTrack(call)
	}
	offer, err := call.pc.CreateOffer(nil)
	br.check(err)
	br.check(call.pc.SetLocalDescription(offer))
	call.outSDP = offer.SDP
	br.send(call, "m.call.invite", map[string]any{
		"offer": map[string]any{"type": "offer", "sdp": offer.SDP}, "lifetime": 60000,
		"org.matrix.msc3077.sdp_stream_metadata": br.metadata(),
	})
	br.trickle(call)
}

func addVideo(pc *webrtc.PeerConnection) error {
	_, err := pc.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo,
		webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
	return err
}

func (br *browser) metadata() map[string]any {
	return map[string]any{"mic": map[string]any{"purpose": "m.usermedia", "audio_muted": br.noMic, "video_muted": false}}
}

func (br *browser) newCall(callID string, to MemberDevice) *browserCall {
	if old := br.calls[to.User]; old != nil {
		br.check(old.pc.GracefulClose())
	}
	pc, err := br.api.NewPeerConnection(webrtc.Configuration{})
	br.check(err)
	call := &browserCall{id: callID, to: to, pc: pc}
	br.calls[to.User] = call
	pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		for {
			packet, _, err := track.ReadRTP()
			if err != nil {
				return
			}
			br.mu.Lock()
			if string(packet.Payload) == "voice of "+string(to.User) {
				br.heardBy[to.User]++
			}
			br.mu.Unlock()
		}
	})
	return call
}

func (br *browser) addTrack(call *browserCall) {
	codec := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus}
	if br.keys {
		codec = toneCodec
	}
	track, err := webrtc.NewTrackLocalStaticRTP(codec, "mic-audio", "mic")
	br.check(err)
	sender, err := call.pc.AddTrack(track)
	br.check(err)
	br.mu.Lock()
	br.tracks[call.to.User], br.senders[call.to.User] = track, sender
	br.mu.Unlock()
}

// trickle sends the candidates a little later, as browsers do.
func (br *browser) trickle(call *browserCall) {
	select {
	case <-webrtc.GatheringCompletePromise(call.pc):
	case <-br.ctx.Done():
		return
	case <-time.After(5 * time.Second):
		return // closed meanwhile: pion never says that it is complete
	}
	var candidates []map[string]any
	for line := range strings.Lines(call.pc.LocalDescription().SDP) {
		if c, ok := strings.CutPrefix(strings.TrimSpace(line), "a=candidate:"); ok {
			candidates = append(candidates, map[string]any{"candidate": "candidate:" + c, "sdpMid": "0", "sdpMLineIndex": 0})
		}
	}
	time.Sleep(30 * time.Millisecond)
	br.send(call, "m.call.candidates", map[string]any{"candidates": candidates})
	br.send(call, "m.call.candidates", map[string]any{"candidates": []any{map[string]any{"candidate": ""}}})
}

func (br *browser) send(call *browserCall, evtType string, content map[string]any) {
	br.bed.mu.Lock()
	conf := br.bed.call.ConfID
	joined := slices.Clone(br.bed.joined)
	br.bed.mu.Unlock()
	maps.Copy(content, map[string]any{
		"call_id": call.id, "conf_id": conf, "version": 1, "party_id": br.device, "device_id": br.device,
		"sender_session_id": br.session, "dest_session_id": call.to.Session, "seq": call.seq,
	})
	call.seq++
	raw, err := json.Marshal(content)
	br.check(err)
	for _, m := range joined {
		if m.info.Ghost == call.to.User {
			m.deliverToDevice(br.user, br.device, evtType, raw, true)
		}
	}
}

func (br *browser) receive(msg wire) {
	var c signalContent
	br.check(json.Unmarshal(msg.content, &c))
	br.mu.Lock()
	br.got = append(br.got, msg.evtType)
	br.mu.Unlock()
	to, known := br.ghost(msg.from)
	if c.DestSession != br.session || !known || to.Session != c.SenderSession {
		return
	}
	call := br.calls[msg.from]
	if msg.evtType == "m.call.invite" {
		switch {
		case call != nil && call.id == c.CallID:
		case call != nil && call.inSDP == "" && call.id < c.CallID: // both are calling: the lower call id wins
			br.refuse(to, c.CallID)
		case call != nil && call.inSDP == "":
			br.send(call, "m.call.hangup", map[string]any{"reason": "replaced"})
			br.accept(to, c)
		default:
			br.accept(to, c)
		}
		return
	}
	if call == nil || call.id != c.CallID {
		return
	}
	switch msg.evtType {
	case "m.call.answer":
		call.inSDP = c.Answer.SDP
		br.check(call.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: c.Answer.SDP}))
	case "m.call.negotiate":
		call.inSDP = c.Description.SDP
		br.negotiate(call, c.Description)
	case "m.call.hangup":
		br.check(call.pc.GracefulClose())
		delete(br.calls, msg.from)
	}
}

func (br *browser) accept(to MemberDevice, c signalContent) {
	call := br.newCall(c.CallID, to)
	call.inSDP = c.Offer.SDP
	br.check(call.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: c.Offer.SDP}))
	if !br.noMic {
		br.addTrack(call)
	}
	if br.late {
		br.answerLate(call)
		return
	}
	br.answer(call, "m.call.answer", "answer")
	br.trickle(call)
}

// refuse declines an invite that crossed our own.
func (br *browser) refuse(to MemberDevice, callID string) {
	br.send(&browserCall{id: callID, to: to}, "m.call.hangup", map[string]any{"reason": "replaced"})
}

// answerLate answers, and is overtaken by the microphone: the offer that adds it goes out in place of the answer, and then
// once more as what it is.
func (br *browser) answerLate(call *browserCall) {
	answer, err := call.pc.CreateAnswer(nil)
	br.check(err)
	br.check(call.pc.SetLocalDescription(answer))
	br.noMic = false
	br.addTrack(call)
	offer, err := call.pc.CreateOffer(nil)
	br.check(err)
	br.check(call.pc.SetLocalDescription(offer))
	call.outSDP = offer.SDP
	description := map[string]any{"type": "offer", "sdp": offer.SDP}
	br.send(call, "m.call.answer", map[string]any{"answer": description, "sdp_stream_metadata": br.metadata()})
	br.send(call, "m.call.negotiate", map[string]any{"description": description, "sdp_stream_metadata": br.metadata()})
	br.trickle(call)
}

func (br *browser) answer(call *browserCall, evtType, key string) {
	answer, err := call.pc.CreateAnswer(nil)
	br.check(err)
	br.check(call.pc.SetLocalDescription(answer))
	call.outSDP = answer.SDP
	br.send(call, evtType, map[string]any{
		key: map[string]any{"type": "answer", "sdp": answer.SDP}, "sdp_stream_metadata": br.metadata(),
	})
}

func (br *browser) negotiate(call *browserCall, d *sessionContent) {
	if d.Type == "answer" {
		br.check(call.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: d.SDP}))
		return
	}
	if br.impolite && call.pc.SignalingState() != webrtc.SignalingStateStable {
		return
	}
	br.check(call.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: d.SDP}))
	br.answer(call, "m.call.negotiate", "description")
	br.trickle(call)
}

// offer renegotiates the call with a ghost.
func (br *browser) offer(ghost id.UserID, restart bool) {
	br.do(func() {
		call := br.calls[ghost]
		offer, err := call.pc.CreateOffer(&webrtc.OfferOptions{ICERestart: restart})
		br.check(err)
		br.check(call.pc.SetLocalDescription(offer))
		call.outSDP = offer.SDP
		br.send(call, "m.call.negotiate", map[string]any{
			"description": map[string]any{"type": "offer", "sdp": offer.SDP}, "sdp_stream_metadata": br.metadata(),
		})
		if restart {
			br.trickle(call)
		}
	})
}

func (br *browser) speak(i int) {
	br.mu.Lock()
	defer br.mu.Unlock()
	for ghost, track := range br.tracks {
		packet := &rtp.Packet{
			Header:  rtp.Header{Version: 2, SequenceNumber: uint16(i), Timestamp: uint32(i * 960)},
			Payload: []byte("voice of " + string(br.user)),
		}
		for _, ext := range br.senders[ghost].GetParameters().HeaderExtensions {
			if ext.URI == audioLevelURI && br.level > 0 {
				br.check(packet.SetExtension(uint8(ext.ID), []byte{br.level}))
			}
		}
		_ = track.WriteRTP(packet) // its connection may be gone
	}
}

func (br *browser) heard(ghost id.UserID) int {
	br.mu.Lock()
	defer br.mu.Unlock()
	return br.heardBy[ghost]
}

func (br *browser) received(evtType string) int {
	br.mu.Lock()
	defer br.mu.Unlock()
	n := 0
	for _, got := range br.got {
		if got == evtType {
			n++
		}
	}
	return n
}

// sdp returns the last descriptions of the call with a ghost, theirs and ours.
func (br *browser) sdp(ghost id.UserID) (in, out string) {
	br.do(func() { in, out = br.calls[ghost].inSDP, br.calls[ghost].outSDP })
	return in, out
}

func (br *browser) check(err error) {
	br.bed.t.Helper()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		br.bed.t.Errorf("browser %s: %v", br.user, err)
	}
}
