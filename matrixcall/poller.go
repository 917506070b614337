package matrixcall

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

const (
	// pollWait is how long a poll waits for a message while there is
	// signalling, quietWait after a while without. Synapse sometimes
	// wakes a poll too early and then lets a message lie until the next
	// event for that user; an empty poll and the next one miss it. A look
	// that does not wait always finds it, so one follows every empty poll,
	// and pollWait is how late a message can be.
	pollWait  = 3 * time.Second
	quietWait = 10 * time.Second
	quietAge  = 2 * time.Minute

	// kickDelay is how long after a ghost got something all of them look:
	// somebody who signals one ghost mostly signals them all.
	kickDelay = 200 * time.Millisecond

	// pollDeadline is how much longer than it waits a poll may take.
	pollDeadline = 20 * time.Second
)

// pollFilter leaves everything but to-device messages, key counts and device
// lists out of /sync: 5 ms instead of 600 for a ghost in 50 rooms.
const pollFilter = `{"room":{"rooms":[]},"presence":{"types":[]},"account_data":{"types":[]}}`

// poller reads the to-device messages of one ghost by /sync while the ghost is
// in a conference.
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

	since string    // only run touches this: next_batch of the last answer
	saved string    // only run touches this: what the store has
	heard time.Time // only run touches this: when the last message came

	mu        sync.Mutex
	interrupt context.CancelCauseFunc // ends the poll under way; guarded by mu
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
	g.service.kicker.add(p)
	g.service.metrics.GhostsPolling.Add(1)
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
	p.ghost.service.kicker.remove(p)
	p.ghost.service.metrics.GhostsPolling.Add(-1)
	p.end(errClosed)
	close(p.done)
}

// stop ends the poller and returns when it handles nothing any more.
func (p *poller) stop() {
	p.end(errClosed)
	<-p.done
}

func (p *poller) run(ctx context.Context) {
	g, s := p.ghost, p.ghost.service
	failures := 0
	for ctx.Err() == nil {
		if p.since == "" {
			token, err := s.store.SyncToken(ctx, g.user)
			if err != nil {
				g.log.Warn("sync token cannot be read", "err", tidy(err))
				failures++
				sleep(ctx, backoff(failures, 250*time.Millisecond, 5*time.Second))
				continue
			}
			p.since, p.saved = token, token
		}
		err := p.cycle(ctx)
		switch {
		case err == nil:
			if failures > 0 {
				// While the homeserver was away it may have lost
				// room events, too.
				g.log.Info("homeserver answers again", "failures", failures)
				for _, m := range g.conferences() {
					s.tracker.refresh(m.Info().Room)
				}
			}
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
			g.log.Warn("poll", "err", tidy(err), "again_in", wait)
			sleep(ctx, wait)
		}
	}
}

// cycle makes a look without waiting and, if that was empty, a poll that
// waits until something comes or another ghost's poller got something.
func (p *poller) cycle(ctx context.Context) error {
	first := p.saved == p.since
	n, err := p.poll(ctx, 0)
	if err != nil || n > 0 {
		if n > 0 && !first {
			p.ghost.service.metrics.PollRescues.Add(uint64(n))
		}
		return err
	}
	wait := pollWait
	if time.Since(p.heard) > quietAge {
		wait = quietWait
	}
	for {
		n, err = p.poll(ctx, wait)
		if err != nil || n == 0 {
			return err
		}
	}
}

// poll makes one /sync, handles what it brings and returns how many messages
// that were. Being kicked is no error.
func (p *poller) poll(ctx context.Context, wait time.Duration) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if wait > 0 && !p.waiting(cancel) {
		return 0, nil
	}
	answer, err := p.sync(ctx, wait)
	p.mu.Lock()
	p.interrupt = nil
	p.mu.Unlock()
	switch {
	case errors.Is(context.Cause(ctx), errKicked):
		// If there was an answer it is not lost: since has not moved.
		return 0, nil
	case isUnknownDevice(err):
		return 0, errDeviceGone
	case err != nil:
		return 0, err
	}
	n := len(answer.ToDevice.Events)
	routed, err := p.handle(ctx, answer)
	if err != nil {
		return 0, err
	}
	if routed { // anybody may send a ghost anything; only signalling is worth a look of all
		p.heard = time.Now()
		p.ghost.service.kicker.kick()
	}
	return n, nil
}

// waiting announces a poll that may be ended by a kick; false means that a
// kick came before and the poll should not be made.
func (p *poller) waiting(cancel context.CancelCauseFunc) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kicked {
		p.kicked = false
		return false
	}
	p.interrupt = cancel
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

// syncAnswer is what we read of a /sync answer. Message contents stay raw:
// any client may send anything to a ghost, and one that mautrix cannot parse
// must not make the whole answer unreadable for ever.
type syncAnswer struct {
	NextBatch string `json:"next_batch"`
	ToDevice  struct {
		Events []toDeviceEvent `json:"events"`
	} `json:"to_device"`
	DeviceLists struct {
		Changed []id.UserID `json:"changed"`
		Left    []id.UserID `json:"left"`
	} `json:"device_lists"`
	KeyCounts    *map[string]int `json:"device_one_time_keys_count"`
	FallbackKeys *[]string       `json:"device_unused_fallback_key_types"`
}

type toDeviceEvent struct {
	Type    string          `json:"type"`
	Sender  id.UserID       `json:"sender"`
	Content json.RawMessage `json:"content"`
}

func (p *poller) sync(ctx context.Context, wait time.Duration) (*syncAnswer, error) {
	p.ghost.service.metrics.Polls.Add(1)
	ctx, cancel := context.WithTimeout(ctx, wait+pollDeadline)
	defer cancel()
	query := map[string]string{
		"timeout": strconv.FormatInt(wait.Milliseconds(), 10), "filter": pollFilter, "set_presence": "offline",
	}
	if p.since != "" {
		query["since"] = p.since
	}
	client := p.ghost.asSelf
	var answer syncAnswer
	_, err := client.MakeFullRequest(ctx, mautrix.FullRequest{
		Method: http.MethodGet, URL: client.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "sync"}, query),
		ResponseJSON: &answer, MaxAttempts: 1,
	})
	if err != nil {
		return nil, err
	}
	if answer.NextBatch == "" {
		return nil, errors.New("sync answer without next_batch")
	}
	return &answer, nil
}

// handle processes an answer, then stores where it ended: after a crash a
// message may come twice, but never not at all. The homeserver deletes what
// it delivered when it sees the new token. routed says that a conference got
// something.
func (p *poller) handle(ctx context.Context, answer *syncAnswer) (routed bool, err error) {
	g, s := p.ghost, p.ghost.service
	s.directory.changed(answer.DeviceLists.Changed)
	for _, message := range answer.ToDevice.Events {
		ours, err := g.receive(ctx, message)
		if err != nil {
			return routed, err
		}
		routed = routed || ours
	}
	if len(answer.ToDevice.Events) > 0 {
		if err := s.store.SaveSyncToken(context.WithoutCancel(ctx), g.user, answer.NextBatch); err != nil {
			return routed, err
		}
		p.saved = answer.NextBatch
		g.keys.machine.MarkOlmHashSavePoint(ctx)
	}
	p.since = answer.NextBatch
	if answer.KeyCounts != nil {
		fallbackUsed := answer.FallbackKeys != nil && len(*answer.FallbackKeys) == 0
		if err := g.keys.upkeep(ctx, (*answer.KeyCounts)["signed_curve25519"], fallbackUsed); err != nil {
			// The messages were fine; the next answer tells again.
			g.log.Warn("keys are low and cannot be replaced", "err", tidy(err))
		}
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
