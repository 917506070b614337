package matrixcall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

const (
	// rereadEvery is how often the state of a room with a live call is
	// read again: a homeserver that dies loses room events it had accepted
	// for delivery.
	rereadEvery = time.Minute
	// rereadPause is the least time between two reads of a room.
	rereadPause = 500 * time.Millisecond
	// rereadShare bounds what reading may cost: a room whose state takes a
	// second to read is read every 30 seconds at most.
	rereadShare = 30

	// endPatience is how long ending an empty call may take.
	endPatience = 5 * time.Second
)

// tracker holds the call state of the rooms our ghosts have calls in, and
// tells the conferences about it.
type tracker struct {
	service *Service

	mu    sync.Mutex
	rooms map[id.RoomID]*trackedRoom // guarded by mu
}

// trackedRoom is one room with at least one conference. Its goroutine, run,
// reads the state; events come in between.
type trackedRoom struct {
	service *Service
	room    id.RoomID
	end     context.CancelCauseFunc
	done    chan struct{}
	wake    chan struct{} // holds one request to read; filled by anybody, drained by run
	back    chan struct{} // holds one word that the homeserver answers again; filled by pollers, drained by run

	mu          sync.Mutex
	conferences []*tracked    // guarded by mu
	state       *callSnapshot // nil until the first read; guarded by mu
	reading     bool          // a read is under way; guarded by mu
	meanwhile   []roomEvent   // events that came during the read; guarded by mu
	newcomers   []newcomer    // guarded by mu
}

// tracked is one conference in a room. It is told nothing before a read that
// began after it was added: what was read earlier may be from before its ghost
// entered the room.
type tracked struct {
	ghost      *Ghost
	conference conference
	ready      bool
}

// conference is what the service needs of a *Membership. Its deliveries are
// put-only.
type conference interface {
	Info() MembershipInfo
	deliverToDevice(sender id.UserID, device id.DeviceID, kind string, content json.RawMessage, encrypted bool)
	deliverState(members []MemberDevice, call CallState)
}

func newTracker(s *Service) *tracker {
	return &tracker{service: s, rooms: make(map[id.RoomID]*trackedRoom)}
}

func (t *tracker) find(room id.RoomID) *trackedRoom {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rooms[room]
}

// follows says whether the room has a live call of ours.
func (t *tracker) follows(room id.RoomID) bool { return t.find(room) != nil }

// event applies a state event that came by transaction.
func (t *tracker) event(e roomEvent) {
	if room := t.find(e.Room); room != nil {
		room.event(e)
	}
}

// refresh asks for a fresh read of the room's state. It does not block.
func (t *tracker) refresh(room id.RoomID) {
	if r := t.find(room); r != nil {
		r.refresh()
	}
}

// homeserverIsBack asks for a read of the room's state at once, however long the last one that failed made us wait for the next.
func (t *tracker) homeserverIsBack(room id.RoomID) {
	r := t.find(room)
	if r == nil {
		return
	}
	r.refresh()
	select {
	case r.back <- struct{}{}:
	default: // it knows
	}
}

// refreshAll asks for a fresh read of every room with a live call.
func (t *tracker) refreshAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.rooms {
		r.refresh()
	}
}

// lists says whether the room's state, as far as it was read, lists the device
// in the conference.
func (t *tracker) lists(info MembershipInfo, name deviceName) bool {
	r := t.find(info.Room)
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state != nil && slices.ContainsFunc(r.state.devices(r.service, info.ConfID), func(d MemberDevice) bool {
		return d.User == name.User && d.Device == name.Device
	})
}

// add begins to tell the conference about its room.
func (t *tracker) add(g *Ghost, m conference) error {
	room := m.Info().Room
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rooms[room]
	if r == nil {
		ctx, end := context.WithCancelCause(t.service.ctx)
		r = &trackedRoom{
			service: t.service, room: room, end: end,
			done: make(chan struct{}), wake: make(chan struct{}, 1), back: make(chan struct{}, 1),
		}
		r.conferences = []*tracked{{ghost: g, conference: m}}
		if !t.service.spawn(func() { r.run(ctx) }) {
			end(errClosed)
			return errClosed
		}
		t.rooms[room] = r
	} else {
		r.mu.Lock()
		r.conferences = append(r.conferences, &tracked{ghost: g, conference: m})
		r.mu.Unlock()
	}
	r.refresh()
	return nil
}

// remove ends that; after it returns the conference hears nothing more. It
// says whether it was the last one of its room.
func (t *tracker) remove(m conference) (last bool) {
	t.mu.Lock()
	r := t.rooms[m.Info().Room]
	if r == nil {
		t.mu.Unlock()
		return false
	}
	r.mu.Lock() // waits for a delivery under way
	r.conferences = slices.DeleteFunc(r.conferences, func(c *tracked) bool { return c.conference == m })
	r.newcomers = slices.DeleteFunc(r.newcomers, func(n newcomer) bool { return n.conference == m })
	last = len(r.conferences) == 0
	r.mu.Unlock()
	if last {
		delete(t.rooms, r.room)
	}
	t.mu.Unlock()
	if last {
		r.end(errClosed)
		<-r.done
	}
	return last
}

func (r *trackedRoom) refresh() {
	select {
	case r.wake <- struct{}{}:
	default: // one is waiting already
	}
}

// run reads the state when asked to and every rereadEvery.
func (r *trackedRoom) run(ctx context.Context) {
	defer close(r.done)
	timer := time.NewTimer(rereadEvery)
	defer timer.Stop()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-r.wake:
		}
		began := time.Now()
		err := r.read(ctx)
		pause := max(rereadPause, min(rereadShare*time.Since(began), rereadEvery))
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			failures++
			pause = max(backoff(failures, time.Second, 30*time.Second), retryAfter(err))
			r.service.log.Warn("room state cannot be read", "room", r.room, "err", tidy(err), "again_in", pause)
			r.refresh()
			if !r.awaitBack(ctx, pause) {
				return
			}
			continue
		default:
			failures = 0
		}
		if sleep(ctx, pause) != nil {
			return
		}
		timer.Reset(rereadEvery)
	}
}

// awaitBack waits until the homeserver answers somebody again, but no longer than d. It is false when ctx ended.
func (r *trackedRoom) awaitBack(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.back:
	case <-ctx.Done():
		return false
	}
	return true
}

// read replaces the state by what the homeserver says and tells all
// conferences. Events that came during the read are applied to the result:
// the homeserver may have answered before them.
func (r *trackedRoom) read(ctx context.Context) error {
	r.mu.Lock()
	if len(r.conferences) == 0 {
		r.mu.Unlock()
		return nil
	}
	reader, present := r.conferences[0].ghost, slices.Clone(r.conferences)
	r.reading, r.meanwhile = true, nil
	began := time.Now()
	users := r.concerned()
	r.mu.Unlock()

	state, err := r.service.readState(ctx, reader, r.room, users...)

	r.mu.Lock()
	defer r.mu.Unlock()
	r.reading = false
	if isForbidden(err) {
		// The ghost we read as is not in the room any more.
		r.ghostOut(reader)
		r.refresh()
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range r.meanwhile {
		if state.putLive(e) {
			// Older than what was read, by its server's clock. Clocks of servers differ, so it may be newer all the same.
			r.refresh()
		}
	}
	r.meanwhile, r.state = nil, state
	for _, c := range present {
		c.ready = true
	}
	r.tell()
	r.admit(began)
	return nil
}

// maxRemembered is how many users' memberships are read again only because they were known.
const maxRemembered = 256

// concerned returns whose membership a read must tell, besides that of whoever is in a call: our ghosts, who waits to be
// heard, and who is known to be in the room or in a call, which saves a request. Called with mu held.
func (r *trackedRoom) concerned() (users []id.UserID) {
	for _, c := range r.conferences {
		users = append(users, c.ghost.user)
	}
	for _, n := range r.newcomers {
		users = append(users, n.message.sender)
	}
	if r.state == nil {
		return users
	}
	if len(r.state.joined) <= maxRemembered {
		users = slices.AppendSeq(users, maps.Keys(r.state.joined))
	}
	return append(users, r.state.callers()...)
}

// ghostOut tells a ghost's conferences that it is not in the room any more,
// and asks the next ghost first in future. Called with mu held.
func (r *trackedRoom) ghostOut(g *Ghost) {
	slices.SortStableFunc(r.conferences, func(a, b *tracked) int {
		switch {
		case a.ghost == g && b.ghost != g:
			return 1
		case a.ghost != g && b.ghost == g:
			return -1
		}
		return 0
	})
	for _, c := range r.conferences {
		if c.ghost == g {
			c.conference.deliverState(nil, CallState{ConfID: c.conference.Info().ConfID, Out: true})
		}
	}
}

// event applies one state event. A late one means that the homeserver was
// away: better to read all again.
func (r *trackedRoom) event(e roomEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reading {
		r.meanwhile = append(r.meanwhile, e)
	}
	if r.state == nil {
		return
	}
	if r.state.putLive(e) {
		r.refresh()
		return
	}
	r.tell()
	r.admit(time.Time{})
}

// tell hands every conference its part of the state. Called with mu held:
// deliverState only puts.
func (r *trackedRoom) tell() {
	s := r.service
	devices := make(map[string][]MemberDevice)
	for _, c := range r.conferences {
		if !c.ready {
			continue
		}
		confID := c.conference.Info().ConfID
		if devices[confID] == nil {
			devices[confID] = r.state.devices(s, confID)
		}
		call := r.state.call(s, confID)
		call.ConfID = confID // even when there is no such call
		call.Out = r.state.isOut(c.ghost.user)
		call.Elsewhere = r.state.elsewhere(s, confID)
		c.conference.deliverState(devices[confID], call)
	}
}

// attach implements callHost.
func (s *Service) attach(ctx context.Context, m *Membership) error {
	return s.attachConference(ctx, m)
}

func (s *Service) attachConference(ctx context.Context, m conference) error {
	info := m.Info()
	g := s.knownGhost(info.Ghost)
	switch {
	case g == nil:
		return fmt.Errorf("ghost %s: %w", userName(info.Ghost), errGhostForgotten)
	case g.device != info.Device:
		return fmt.Errorf("ghost %s: %w", userName(info.Ghost), errDeviceGone)
	}
	if err := g.begin(ctx, m); err != nil {
		return err
	}
	s.mu.Lock()
	s.attached[m] = g
	s.mu.Unlock()
	if err := s.tracker.add(g, m); err != nil {
		s.detachConference(m)
		return err
	}
	return nil
}

// detach implements callHost.
func (s *Service) detach(m *Membership, forsaken bool) {
	if g, last := s.detachConference(m); g != nil && last && !forsaken && m.Info().Created {
		s.tryEndEmptyCall(s.ctx, g, m.Info())
	}
}

// detachConference returns the ghost, and whether it was the last one of ours in its room.
func (s *Service) detachConference(m conference) (g *Ghost, last bool) {
	last = s.tracker.remove(m)
	s.mu.Lock()
	g = s.attached[m]
	delete(s.attached, m)
	s.mu.Unlock()
	if g != nil {
		g.finish(m)
	}
	return g, last
}

// tryEndEmptyCall is endEmptyCall, once. Each leaving ghost ends the call if it sees
// itself alone, but ghosts that leave together still see each other.
func (s *Service) tryEndEmptyCall(ctx context.Context, g *Ghost, info MembershipInfo) {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	if err := s.endEmptyCall(mautrix.WithMaxRetries(ctx, 0), g, info); err != nil && !isForbidden(err) {
		g.log.Warn("call may stay behind without anybody in it", "room", info.Room, "err", tidy(err))
	}
}

// endEmptyCall implements callHost. No phone of ours may join meanwhile: it would find itself in a call that has ended. And
// only what the homeserver says now counts, for somebody may have joined a moment ago.
func (s *Service) endEmptyCall(ctx context.Context, g *Ghost, info MembershipInfo) error {
	release, err := s.joining.acquire(ctx, info.Room)
	if err != nil {
		return fmt.Errorf("end call in %s: %w", info.Room, err)
	}
	defer release()
	state, err := s.readState(ctx, g, info.Room)
	if err != nil {
		return fmt.Errorf("read state of %s: %w", info.Room, tidy(err))
	}
	return s.endIfEmpty(ctx, g, info, state)
}

// ReadCalls has the state of every room with a live call of ours read again, soon. It does not block.
func (s *Service) ReadCalls() { s.tracker.refreshAll() }

// refreshState implements callHost.
func (s *Service) refreshState(m *Membership) { s.tracker.refresh(m.Info().Room) }

func isForbidden(err error) bool { return errors.Is(err, mautrix.MForbidden) }
