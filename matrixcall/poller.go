package matrixcall

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
)

const (
	// pollWait is how long a poll waits for a message while there is
	// signalling, quietWait after a while without. Synapse sometimes
	// wakes a poll too early and then lets a message lie until the next
	// event for that user. A look that does not wait always finds it.
	// Every request of sliding sync begins with one; by /sync one follows
	// every empty poll, which, like the next one, misses the message. So
	// pollWait is how late a message can be.
	pollWait  = 3 * time.Second
	quietWait = 10 * time.Second
	quietAge  = 2 * time.Minute

	// kickDelay is how long after a ghost got something all of them look:
	// somebody who signals one ghost mostly signals them all.
	kickDelay = 200 * time.Millisecond

	// pollDeadline is how much longer than it waits a poll may take.
	pollDeadline = 20 * time.Second

	savePatience = 5 * time.Second

	// hastyPoll is what no poll takes that waits, maxHasty how many that
	// brought nothing may follow each other.
	hastyPoll = 50 * time.Millisecond
	maxHasty  = 5
)

// poller reads the to-device messages of one ghost while the ghost is in a
// conference, or of the bot: by sliding sync where the homeserver has it, else by /sync (ADR
// 9). Sliding sync has no looks; a kick begins another poll.
//
//	        empty                  empty
//	look ----------> wait 3…10 s ----------> look …
//	  ^ \ messages     | messages              ^
//	  |  `-> handle <--'   |                   |
//	  |          `---------'                   |
//	  `---- kick: another ghost got something -'
type poller struct {
	ghost *Ghost
	end   context.CancelCauseFunc
	done  chan struct{}

	since    string    // only run touches this: next of the last answer
	saved    string    // only run touches this: what the store has
	position string    // only run touches this: pos of the last sliding answer
	heard    time.Time // only run touches this: when the last message came
	missing  int       // only run touches this: sliding answers in a row that said there is no such page
	away     bool      // only run touches this: the last request had no answer

	mu        sync.Mutex
	interrupt context.CancelCauseFunc // ends the poll under way; guarded by mu
	patient   bool                    // that poll waits longer than keyLook; guarded by mu
	kicked    bool                    // a look is due; guarded by mu
}

// errKicked ends a poll so that a look without waiting can be made.
var errKicked = errors.New("kicked")

// errDeviceGone says that the homeserver does not know the ghost's device.
var errDeviceGone = errors.New("the homeserver has lost the ghost's device")

// startPoller starts a poller; it ends with stop or when the service closes.
func startPoller(g *Ghost) *poller {
	ctx, end := context.WithCancelCause(g.service.ctx)
	p := &poller{ghost: g, end: end, done: make(chan struct{}), heard: time.Now()}
	if !p.forBot() { // it has no part in calls, and no look of theirs need be one of its own
		g.service.kicker.add(p)
		g.service.metrics.GhostsPolling.Add(1)
	}
	started := g.service.spawn(func() {
		defer p.finish()
		p.run(ctx)
	})
	if !started {
		p.finish()
	}
	return p
}

func (p *poller) finish() {
	if !p.forBot() {
		p.ghost.service.kicker.remove(p)
		p.ghost.service.metrics.GhostsPolling.Add(-1)
	}
	p.end(errClosed)
	close(p.done)
}

// forBot says whether it is the bot's device that is read for.
func (p *poller) forBot() bool { return p.ghost.user == p.ghost.service.bot.UserID }

// stop ends the poller and returns when it handles nothing any more.
func (p *poller) stop() {
	p.end(errClosed)
	<-p.done
}

func (p *poller) run(ctx context.Context) {
	g, s := p.ghost, p.ghost.service
	failures, hasty := 0, 0
	for ctx.Err() == nil {
		if p.since == "" {
			token, err := s.store.SyncToken(ctx, s.rowOf(g.user))
			if err != nil {
				g.log.Warn("sync token cannot be read", "err", tidy(err))
				failures++
				sleep(ctx, backoff(failures, 250*time.Millisecond, 5*time.Second))
				continue
			}
			p.since, p.saved = token, token
		}
		began := time.Now()
		messages, err := p.cycle(ctx)
		if err == nil && messages == 0 && time.Since(began) < hastyPoll {
			// A homeserver or proxy that does not let us wait must not be asked without a breath.
			if hasty++; hasty > maxHasty {
				sleep(ctx, kickDelay)
			}
		} else {
			hasty = 0
		}
		switch {
		case err == nil:
			failures = 0
		case ctx.Err() != nil:
		case errors.Is(err, errDeviceGone):
			g.log.Warn("poller ends", "err", tidy(err))
			g.deviceGone()
			return
		default:
			failures++
			s.metrics.PollFailures.Add(1)
			wait := max(backoff(failures, 250*time.Millisecond, 5*time.Second), retryAfter(err))
			level := slog.LevelDebug
			if failures == 1 { // an outage can be long, and the pollers many
				level = slog.LevelWarn
			}
			g.log.Log(ctx, level, "poll", "err", tidy(err), "again_in", wait)
			sleep(ctx, wait)
		}
	}
}

// cycle makes one poll that waits until something comes or another ghost's poller got something. By /sync a look
// without waiting goes before it.
func (p *poller) cycle(ctx context.Context) (messages int, err error) {
	wait := pollWait
	switch {
	case p.forBot() && p.ghost.service.secretary.lacking.Load() > 0:
		wait = keyLook
	case time.Since(p.heard) > quietAge:
		wait = quietWait
	}
	if p.ghost.service.sliding.usable() {
		if p.away {
			wait = 0 // the sooner we know that the homeserver is there again, the better
		}
		return p.poll(ctx, wait)
	}
	first := p.saved == p.since
	messages, err = p.poll(ctx, 0)
	if err != nil || messages > 0 {
		if messages > 0 && !first {
			p.ghost.service.metrics.PollRescues.Add(uint64(messages))
		}
		return messages, err
	}
	for {
		n, err := p.poll(ctx, wait)
		messages += n
		if err != nil || n == 0 {
			return messages, err
		}
	}
}

// poll makes one request, handles what it brings and returns how many messages
// that were. Being kicked is no error.
func (p *poller) poll(ctx context.Context, wait time.Duration) (int, error) {
	answer, err := p.request(ctx, wait)
	switch {
	case errors.Is(err, errKicked): // since has not moved: nothing is lost
		return 0, nil
	case isUnknownDevice(err):
		return 0, errDeviceGone
	case err != nil:
		p.away = true
		return 0, err
	}
	p.answered()
	routed, err := p.handle(ctx, answer)
	if err != nil {
		return 0, err
	}
	if routed { // anybody may send a ghost anything; only signalling is worth a look of all
		p.heard = time.Now()
		p.ghost.service.kicker.kick()
	}
	return len(answer.messages), nil
}

// answered notices that the homeserver is there again. While it was away it may have lost room events, too.
func (p *poller) answered() {
	if !p.away {
		return
	}
	p.away = false
	p.ghost.log.Info("homeserver answers again")
	for _, m := range p.ghost.conferences() {
		p.ghost.service.tracker.homeserverIsBack(m.Info().Room)
	}
}

// request makes one request that a kick can end.
func (p *poller) request(ctx context.Context, wait time.Duration) (*inboxAnswer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if wait > 0 && !p.waiting(wait, cancel) {
		return nil, errKicked
	}
	limited, cancelLimited := context.WithTimeout(ctx, wait+pollDeadline)
	defer cancelLimited()
	read := p.bySync
	if p.ghost.service.sliding.usable() {
		read = p.bySliding
	}
	p.ghost.service.metrics.Polls.Add(1)
	answer, err := read(limited, wait)
	p.mu.Lock()
	p.interrupt = nil
	p.mu.Unlock()
	if err != nil && errors.Is(context.Cause(ctx), errKicked) {
		err = errKicked
	}
	return answer, err
}

// waiting announces a poll that may be ended by a kick; false means that a
// kick came before and the poll should not be made.
func (p *poller) waiting(wait time.Duration, cancel context.CancelCauseFunc) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kicked {
		p.kicked = false
		return false
	}
	p.interrupt, p.patient = cancel, wait > keyLook
	return true
}

// kick makes the poller look at once. Safe for any goroutine.
func (p *poller) kick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.interrupt != nil {
		p.interrupt(errKicked)
		p.interrupt = nil
		return
	}
	p.kicked = true
}

// hurry ends a poll that waits longer than keyLook. While somebody lacks a key the next ones don't, so they are left alone: however
// many hurry it, each poll that is ended is followed by one that is not. Safe for any goroutine.
func (p *poller) hurry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.interrupt != nil && p.patient {
		p.interrupt(errKicked)
		p.interrupt = nil
	}
}

// inboxAnswer is what we read of an answer. Message contents stay raw: any
// client may send anything to a ghost, and one that mautrix cannot parse must
// not make the whole answer unreadable for ever.
type inboxAnswer struct {
	next         string // confirms the messages when it is asked with
	messages     []toDeviceEvent
	deviceLists  deviceLists
	keyCounts    *map[string]int
	fallbackKeys *[]string // unused ones
}

type toDeviceEvent struct {
	Type    string          `json:"type"`
	Sender  id.UserID       `json:"sender"`
	Content json.RawMessage `json:"content"`
}

type deviceLists struct {
	Changed []id.UserID `json:"changed"`
}

// handle processes an answer, then stores where it ended: after a crash a
// message may come twice, but never not at all. The homeserver deletes what
// it delivered when it sees the new token. A poller that is stopped meanwhile
// finishes the answer first, or its successor would read half of it again.
// routed says that a conference got something.
func (p *poller) handle(ctx context.Context, answer *inboxAnswer) (routed bool, err error) {
	g, s := p.ghost, p.ghost.service
	s.directory.changed(answer.deviceLists.Changed)
	whole := context.WithoutCancel(ctx)
	for _, message := range answer.messages {
		ours, err := g.receive(whole, message)
		if err != nil {
			return routed, err
		}
		routed = routed || ours
	}
	if len(answer.messages) > 0 {
		limited, cancel := context.WithTimeout(whole, savePatience)
		defer cancel()
		if err := s.store.SaveSyncToken(limited, s.rowOf(g.user), answer.next); err != nil {
			return routed, err
		}
		p.saved = answer.next
		g.keys.machine.MarkOlmHashSavePoint(limited)
	}
	p.since = answer.next
	if answer.keyCounts != nil {
		fallbackUsed := answer.fallbackKeys != nil && len(*answer.fallbackKeys) == 0
		g.keys.tend((*answer.keyCounts)["signed_curve25519"], fallbackUsed)
	}
	return routed, nil
}

// kicker makes all pollers look a short while after one got something.
type kicker struct {
	metrics *Metrics

	mu      sync.Mutex
	pollers map[*poller]bool // guarded by mu
	timer   *time.Timer      // pending kick, or nil; guarded by mu
}

func newKicker(s *Service) *kicker {
	return &kicker{metrics: &s.metrics, pollers: make(map[*poller]bool)}
}

func (k *kicker) add(p *poller) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pollers[p] = true
}

func (k *kicker) remove(p *poller) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pollers, p)
	if len(k.pollers) == 0 && k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
}

// kick asks for a common look; asking again before it happens changes nothing.
// A lone poller needs none: it looks after every answer anyway.
func (k *kicker) kick() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer == nil && len(k.pollers) > 1 {
		k.timer = time.AfterFunc(kickDelay, k.fire)
	}
}

func (k *kicker) fire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer == nil {
		return
	}
	k.timer = nil
	k.metrics.Kicks.Add(1)
	for p := range k.pollers {
		p.kick()
	}
}
