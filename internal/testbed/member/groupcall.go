package member

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

const (
	validity   = time.Hour        // of the own membership
	renewAfter = 45 * time.Minute // js-sdk's; hydrogen renews a little later
	retryTick  = 5 * time.Second  // js-sdk looks for missing connections this often
	attempts   = 3
)

// peerKey is one device in the mesh.
type peerKey struct {
	user   id.UserID
	device id.DeviceID
}

func (k peerKey) String() string { return string(k.user) + "/" + string(k.device) }

func (k peerKey) compare(o peerKey) int {
	if k.user != o.user {
		return cmpString(string(k.user), string(o.user))
	}
	return cmpString(string(k.device), string(o.device))
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// groupCall is the member's side of one conference. Only run touches it.
type groupCall struct {
	m      *Member
	room   id.RoomID
	conf   string
	joined bool // our member state has been accepted by the server
	left   bool
	muted  bool
	peers  map[peerKey]*peer
	early  map[peerKey][]message // hydrogen: messages of a session that the member state does not show yet
	stop   chan struct{}         // closed on leaving: ends the timers
}

// see takes in what a sync says of rooms.
func (m *Member) see(rooms mautrix.RespSyncRooms) {
	m.synced = true
	for rid, joined := range rooms.Join {
		r := m.room(rid)
		for _, evt := range slices.Concat(joined.State.Events, joined.Timeline.Events) {
			r.see(evt)
			if evt.Type.Type == typeMember && strict(evt.Sender) {
				m.judgeMember(evt.Sender, r.members[evt.Sender])
			}
		}
	}
	if m.call == nil {
		return
	}
	if m.room(m.call.room).calls[m.call.conf].over() {
		m.log.Debug("the call was terminated")
		m.call.end("user_hangup", !m.cfg.Kind.hydrogen())
		m.call = nil
		return
	}
	m.call.reconcile()
}

func (m *Member) room(rid id.RoomID) *roomView {
	if m.rooms[rid] == nil {
		m.rooms[rid] = &roomView{map[id.UserID]bool{}, map[string]callState{}, map[id.UserID]memberContent{}}
	}
	return m.rooms[rid]
}

func (r *roomView) see(evt *event.Event) {
	if evt.StateKey == nil {
		return
	}
	raw := evt.Content.VeryRaw
	switch evt.Type.Type {
	case "m.room.member":
		var c struct{ Membership string }
		_ = json.Unmarshal(raw, &c)
		r.joined[id.UserID(*evt.StateKey)] = c.Membership == "join"
	case typeCall:
		var c callContent
		_ = json.Unmarshal(raw, &c)
		if len(raw) <= 2 {
			c.Terminated = true // redacted
		}
		r.calls[*evt.StateKey] = callState{c, evt.Timestamp}
	case typeMember:
		var c memberContent
		if *evt.StateKey != string(evt.Sender) || json.Unmarshal(raw, &c) != nil {
			return // MatrixRTC's events have the same type and another shape
		}
		r.members[evt.Sender] = c
	}
}

// activeCall returns the newest call that is not over. js-sdk wants intent and type to be there.
func (r *roomView) activeCall() string {
	best, at := "", int64(-1)
	for _, conf := range slices.Sorted(maps.Keys(r.calls)) {
		if c := r.calls[conf]; !c.over() && c.Intent != "" && c.Type != "" && c.at > at {
			best, at = conf, c.at
		}
	}
	return best
}

// device finds a device's entry in a call.
func (c memberContent) device(conf string, device id.DeviceID) (memberDevice, bool) {
	for _, call := range c.Calls {
		for _, d := range call.Devices {
			if call.ID == conf && d.ID == device {
				return d, true
			}
		}
	}
	return memberDevice{}, false
}

// valid says whether this kind of client takes a device entry seriously, now.
func (m *Member) valid(d memberDevice) bool {
	expires, err := d.Expires.Int64()
	if err != nil || !time.UnixMilli(expires).After(time.Now()) {
		return false
	}
	return m.cfg.Kind.hydrogen() || d.Feeds != nil
}

// participants returns the sessions of the other devices that take part.
func (c *groupCall) participants() map[peerKey]string {
	r := c.m.room(c.room)
	list := map[peerKey]string{}
	for user, member := range r.members {
		if !r.joined[user] {
			continue
		}
		for _, call := range member.Calls {
			for _, d := range call.Devices {
				key := peerKey{user, d.ID}
				if call.ID == c.conf && key != c.m.self() && c.m.valid(d) {
					list[key] = d.Session
				}
			}
		}
	}
	return list
}

func (m *Member) self() peerKey { return peerKey{m.cfg.UserID, m.cfg.DeviceID} }

// CreateCall makes a call in a room, without joining it.
func (m *Member) CreateCall(ctx context.Context, room id.RoomID) (conf string, err error) {
	conf = newID("conf-")
	return conf, m.putState(ctx, room, typeCall, conf, callContent{Intent: "m.prompt", Type: "m.voice", Name: "test"})
}

// TerminateCall ends a call for everybody.
func (m *Member) TerminateCall(ctx context.Context, room id.RoomID, conf string) error {
	return m.putState(ctx, room, typeCall, conf,
		callContent{Intent: "m.prompt", Type: "m.voice", Name: "test", Terminated: m.cfg.Kind.terminated()})
}

func (m *Member) putState(ctx context.Context, room id.RoomID, eventType, key string, body any) error {
	_, err := m.client.SendStateEvent(ctx, room, event.Type{Type: eventType, Class: event.StateEventType}, key, body)
	return err
}

// JoinRoom joins a room.
func (m *Member) JoinRoom(ctx context.Context, room id.RoomID) error {
	_, err := m.client.JoinRoomByID(ctx, room)
	return err
}

// Client returns the member's Matrix client, for what a person does besides calls.
func (m *Member) Client() *mautrix.Client { return m.client }

// AwaitCall waits until the room has an active call and returns its id.
func (m *Member) AwaitCall(ctx context.Context, room id.RoomID) (conf string, err error) {
	for {
		m.mu.Lock()
		changed := m.changed
		m.mu.Unlock()
		if err := m.ask(ctx, func() { conf = m.room(room).activeCall() }); err != nil {
			return "", fmt.Errorf("%s waits for a call in %s: %w", m.cfg.UserID, room, err)
		}
		if conf != "" {
			return conf, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", fmt.Errorf("%s waits for a call in %s: %w", m.cfg.UserID, room, context.Cause(ctx))
		}
	}
}

// JoinCall joins the room's call, waiting for one if there is none yet. It returns when the server has accepted the
// membership; connections follow.
func (m *Member) JoinCall(ctx context.Context, room id.RoomID) error {
	conf, err := m.AwaitCall(ctx, room)
	if err != nil {
		return err
	}
	if err := m.checkTURN(ctx); err != nil {
		return err
	}
	var call *groupCall
	err = m.ask(ctx, func() {
		if m.call != nil {
			return
		}
		call = &groupCall{
			m: m, room: room, conf: conf, peers: map[peerKey]*peer{}, early: map[peerKey][]message{}, stop: make(chan struct{}),
		}
		m.call = call
		if !m.cfg.Kind.hydrogen() {
			call.reconcile() // js-sdk invites while its own membership is still on the way
		}
	})
	if err != nil || call == nil {
		return errors.Join(err, errorIf(call == nil, "already in a call"))
	}
	if err := call.writeMembership(ctx, true); err != nil {
		_ = m.ask(ctx, m.abandon)
		return fmt.Errorf("%s joins the call: %w", m.cfg.UserID, err)
	}
	return m.ask(ctx, func() {
		call.joined = true
		call.reconcile()
		m.wg.Go(call.tick)
	})
}

func errorIf(bad bool, text string) error {
	if bad {
		return errors.New(text)
	}
	return nil
}

// checkTURN asks for TURN servers as hydrogen does, which cannot make a connection on an empty answer.
func (m *Member) checkTURN(ctx context.Context) error {
	turn, err := m.client.TurnServer(ctx)
	if m.cfg.Kind.hydrogen() && err == nil && len(turn.URIs) == 0 {
		return errors.New("malformed RTCIceServer: the homeserver has no TURN configured")
	}
	return nil
}

// writeMembership puts our device into the member state, or takes it out, and keeps everything else that is there.
func (c *groupCall) writeMembership(ctx context.Context, in bool) error {
	var next memberContent
	err := c.m.ask(ctx, func() {
		next = c.m.room(c.room).members[c.m.cfg.UserID].without(c.conf, c.m.cfg.DeviceID)
		if in {
			next = next.with(c.conf, memberDevice{
				ID: c.m.cfg.DeviceID, Session: c.m.session, Feeds: &[]feed{{"m.usermedia"}},
				Expires: json.Number(fmt.Sprint(time.Now().Add(validity).UnixMilli())),
			})
		}
		c.m.room(c.room).members[c.m.cfg.UserID] = next
	})
	if err != nil {
		return err
	}
	return c.m.putState(ctx, c.room, typeMember, string(c.m.cfg.UserID), next)
}

// without drops a device, and calls that have no device then.
func (c memberContent) without(conf string, device id.DeviceID) memberContent {
	next := memberContent{Calls: []memberCall{}}
	for _, call := range c.Calls {
		if call.ID == conf {
			call.Devices = slices.DeleteFunc(slices.Clone(call.Devices), func(d memberDevice) bool { return d.ID == device })
		}
		if len(call.Devices) > 0 {
			next.Calls = append(next.Calls, call)
		}
	}
	return next
}

func (c memberContent) with(conf string, d memberDevice) memberContent {
	for i, call := range c.Calls {
		if call.ID == conf {
			c.Calls[i].Devices = append(call.Devices, d)
			return c
		}
	}
	c.Calls = append(c.Calls, memberCall{ID: conf, Devices: []memberDevice{d}})
	return c
}

// LeaveCall leaves in the client's own order: hydrogen takes its membership back first, js-sdk hangs up first.
func (m *Member) LeaveCall(ctx context.Context) error {
	var call *groupCall
	if err := m.ask(ctx, func() { call = m.call }); err != nil || call == nil {
		return err
	}
	hangUp := func() error {
		return m.ask(ctx, func() {
			call.end("user_hangup", true)
			m.call = nil
		})
	}
	if !m.cfg.Kind.hydrogen() {
		return errors.Join(hangUp(), call.writeMembership(ctx, false))
	}
	err := call.writeMembership(ctx, false)
	alone := false
	err = errors.Join(err, m.ask(ctx, func() { alone = len(call.participants()) == 0 }))
	if alone {
		err = errors.Join(err, m.TerminateCall(ctx, call.room, call.conf))
	}
	return errors.Join(err, hangUp())
}

// Reload is the person pressing the browser's reload button and joining again: everything is dropped without a word,
// the session id is new. The device and its keys stay.
func (m *Member) Reload(ctx context.Context) error {
	var room id.RoomID
	err := m.ask(ctx, func() {
		if m.call != nil {
			room = m.call.room
		}
		m.abandon()
		m.session = newID("s")
	})
	if err != nil || room == "" {
		return err
	}
	return m.JoinCall(ctx, room)
}

// abandon drops the call without a word.
func (m *Member) abandon() {
	if m.call != nil {
		m.call.end("", false)
		m.call = nil
	}
}

// end drops all connections, with or without hangup.
func (c *groupCall) end(reason string, say bool) {
	if c.left {
		return
	}
	c.left = true
	close(c.stop)
	for _, key := range c.keys() {
		p := c.peers[key]
		if say {
			p.hangUp(reason)
		}
		p.drop()
		p.outbox.close()
	}
}

func (c *groupCall) keys() []peerKey {
	return slices.SortedFunc(maps.Keys(c.peers), peerKey.compare)
}

// tick renews the membership and, as js-sdk, looks for missing connections; hydrogen only notices expired members.
func (c *groupCall) tick() {
	renew := time.Now().Add(renewAfter)
	timer := time.NewTicker(retryTick)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-c.stop:
			return
		case <-c.m.ctx.Done():
			return
		}
		if time.Now().After(renew) {
			renew = time.Now().Add(renewAfter)
			if err := c.writeMembership(c.m.ctx, true); err != nil {
				c.m.complain("renew membership: %v", err)
			}
		}
		c.m.inbox.put(func() {
			if !c.left {
				c.reconcile()
				c.retryMissing()
			}
		})
	}
}

// reconcile compares who is there with whom we are connected to.
func (c *groupCall) reconcile() {
	hydrogen := c.m.cfg.Kind.hydrogen()
	if hydrogen && !c.joined {
		return
	}
	wanted := c.participants()
	for _, key := range slices.SortedFunc(maps.Keys(wanted), peerKey.compare) {
		c.expect(key, wanted[key])
	}
	for _, key := range c.keys() {
		p := c.peers[key]
		if _, ok := wanted[key]; ok {
			continue
		}
		if hydrogen && !p.connectedButExpired() {
			c.forget(p) // without a word
		} else {
			p.allow(false) // js-sdk keeps the leg and only stops sending to it
		}
	}
}

// expect makes sure that there is a connection with a participant, or that one is on the way.
func (c *groupCall) expect(key peerKey, session string) {
	p := c.peers[key]
	if p != nil && p.session != session {
		p = c.renew(p, session)
	}
	if p != nil {
		p.allow(true)
		return
	}
	p = c.newPeer(key, session)
	if c.mustCall(key) {
		p.invite()
	}
	waiting := c.early[key]
	delete(c.early, key)
	for _, msg := range waiting {
		if msg.SenderSession == session {
			p.take(msg)
		}
	}
}

// renew handles a participant with a new session: hydrogen starts clean without a word; js-sdk as caller hangs up and
// invites again, as callee keeps what it has until the invite comes.
func (c *groupCall) renew(p *peer, session string) *peer {
	if c.m.cfg.Kind.hydrogen() {
		c.forget(p)
		return nil
	}
	if c.mustCall(p.key) {
		p.hangUp("new_session")
		c.forget(p)
		return nil
	}
	if p.leg == nil || p.leg.state == stateEnded {
		c.forget(p)
		return nil
	}
	return p
}

func (c *groupCall) forget(p *peer) {
	p.drop()
	p.outbox.close()
	delete(c.peers, p.key)
}

// mustCall: the lower user id calls; the same user's lower device id.
func (c *groupCall) mustCall(key peerKey) bool { return c.m.self().compare(key) < 0 }

// retryMissing is js-sdk's: every few seconds it calls participants whose leg has ended, three times at most.
func (c *groupCall) retryMissing() {
	if c.m.cfg.Kind.hydrogen() {
		return
	}
	wanted := c.participants()
	for _, key := range c.keys() {
		p := c.peers[key]
		_, there := wanted[key]
		if there && c.mustCall(key) && (p.leg == nil || p.leg.state == stateEnded) && p.attempts < attempts {
			p.invite()
		}
	}
}

func (c *groupCall) stuck() (list []string) {
	for _, key := range c.keys() {
		list = append(list, c.peers[key].queue.stuck()...)
	}
	return list
}

func (c *groupCall) views() (list []PeerView) {
	for _, key := range c.keys() {
		list = append(list, c.peers[key].view())
	}
	return list
}

// handle brings a to-device message to its peer, or loses it where the client would.
func (m *Member) handle(msg message) {
	if !isCallMessage(msg.kind) {
		return
	}
	m.log.Debug("received", "type", msg.kind, "from", msg.sender, "call", msg.CallID, "seq", msg.Seq, "olm", msg.olm)
	if !m.acceptable(msg) {
		return
	}
	c := m.call
	if c == nil || c.conf != msg.ConfID {
		m.log.Debug("message of another call is dropped", "conf", msg.ConfID)
		return
	}
	if msg.DestSession != m.session {
		m.log.Debug("message for another session is dropped", "session", msg.DestSession)
		return
	}
	key := msg.key()
	if m.cfg.Kind.hydrogen() {
		c.handleHydrogen(key, msg)
		return
	}
	p := c.peers[key]
	if p == nil {
		if msg.kind != typeInvite {
			return
		}
		p = c.newPeer(key, msg.SenderSession)
		_, there := c.participants()[key]
		p.allow(there)
	}
	p.take(msg)
}

// handleHydrogen: a message of a session that the member state does not show is kept; one that comes before our own
// join request has returned is lost.
func (c *groupCall) handleHydrogen(key peerKey, msg message) {
	if c.participants()[key] != msg.SenderSession && c.peers[key] == nil {
		c.early[key] = append(c.early[key], msg)
		return
	}
	p := c.peers[key]
	if p == nil || !c.joined {
		c.m.log.Debug("message is lost: member not connected", "type", msg.kind)
		return
	}
	if p.session != msg.SenderSession {
		c.early[key] = append(c.early[key], msg)
		return
	}
	p.take(msg)
}

func isCallMessage(kind string) bool {
	switch kind {
	case typeReject, typeSelect, typeIdentity:
		return true
	}
	return message{kind: kind}.known()
}

// acceptable checks the envelope. What a client would silently drop is a complaint.
func (m *Member) acceptable(msg message) bool {
	who := fmt.Sprintf("%s from %s", msg.kind, msg.sender)
	if !msg.olm && !m.cfg.Kind.readsPlain() {
		m.complain("%s is not encrypted: hydrogen does not read it", who)
		return false
	}
	if msg.olm && msg.owner != msg.DeviceID {
		m.complain("%s says device %q but the key belongs to %q", who, msg.DeviceID, msg.owner)
		return false
	}
	if strict(msg.sender) {
		m.judge(who, msg)
	}
	if msg.CallID == "" || msg.ConfID == "" || msg.DeviceID == "" || msg.SenderSession == "" || msg.DestSession == "" {
		m.complain("%s lacks a part of the envelope", who)
		return false
	}
	if msg.PartyID == string(m.cfg.DeviceID) {
		m.complain("%s has our own party_id: js-sdk takes it for an echo", who)
		return false
	}
	return true
}

// strict: users whose name begins with an underscore are ghosts of the bridge. They must suit all kinds of clients,
// ours and the others.
func strict(user id.UserID) bool { return strings.HasPrefix(string(user), "@_") }

// judge complains about what some kind of client would not take.
func (m *Member) judge(who string, msg message) {
	if msg.Version == nil {
		m.complain("%s has no version", who)
	}
	if msg.known() == (msg.Seq == nil) {
		m.complain("%s: hydrogen wants seq on the six types it knows and on no others", who)
	}
	if msg.PartyID == "" {
		m.complain("%s has no party_id", who)
	}
}

// judgeMember complains about entries that some kind of client would not count.
func (m *Member) judgeMember(user id.UserID, c memberContent) {
	if c.Calls == nil {
		m.complain("member state of %s has no m.calls", user)
	}
	for _, call := range c.Calls {
		if call.Foci != nil {
			m.complain("member state of %s names foci: hydrogen does not join", user)
		}
		for _, d := range call.Devices {
			if d.ID == "" || d.Session == "" || d.Feeds == nil {
				m.complain("member state of %s: entry %+v lacks a part", user, d)
			}
			if _, err := d.Expires.Int64(); err != nil {
				m.complain("member state of %s: expires_ts is %q", user, d.Expires)
			}
		}
	}
}
