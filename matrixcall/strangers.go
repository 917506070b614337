package matrixcall

import (
	"context"
	"sync"
	"time"

	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/id"
)

const (
	// maxStrangers is how many users' messages may wait, maxStrange how
	// many of each: what is more is refused.
	maxStrangers = 64
	maxStrange   = 32

	// strangerPatience is how long a user's homeserver has to tell whose
	// key it is.
	strangerPatience = 30 * time.Second
)

// strangers holds back the messages of devices whose keys we do not know
// while the homeserver is asked for them. Olm reads a message only once, so it
// cannot come again; and whoever else writes to the ghost must not wait.
//
// receive fills a user's queue, one goroutine per user with waiting messages
// drains it and ends when it is empty.
type strangers struct {
	ghost *Ghost

	mu      sync.Mutex
	waiting map[id.UserID][]*crypto.DecryptedOlmEvent // guarded by mu
}

// receive hands on a message if its sender is known, and keeps it until then
// if not. routed says that a conference got it at once.
func (q *strangers) receive(opened *crypto.DecryptedOlmEvent) (routed bool) {
	g, user := q.ghost, opened.Sender
	q.mu.Lock()
	defer q.mu.Unlock()
	queue, waits := q.waiting[user]
	if !waits {
		if device := g.senderOf(opened); device != nil {
			return g.routeOlm(opened, device)
		}
	}
	if len(queue) >= maxStrange || !waits && len(q.waiting) >= maxStrangers {
		g.service.refuse(g, user, "too many olm messages from devices nobody knows")
		return false
	}
	if !waits && !g.service.spawn(func() { q.identify(g.service.ctx, user) }) {
		return false
	}
	if q.waiting == nil {
		q.waiting = make(map[id.UserID][]*crypto.DecryptedOlmEvent)
	}
	q.waiting[user] = append(queue, opened)
	return false
}

// identify asks for the user's devices until all waiting messages have a
// sender, or strangerPatience is over.
func (q *strangers) identify(ctx context.Context, user id.UserID) {
	g := q.ghost
	ctx, cancel := context.WithTimeout(ctx, strangerPatience)
	defer cancel()
	for attempt := 0; q.handOn(user, ctx.Err() != nil); attempt++ {
		if err := g.service.directory.askAgain(ctx, g.keys, user); err != nil && ctx.Err() == nil {
			g.log.Debug("keys of an unknown device", "user", userName(user), "err", tidy(err))
		}
		if !q.handOn(user, ctx.Err() != nil) {
			return
		}
		_ = sleep(ctx, backoff(attempt, time.Second, 8*time.Second)) // handOn is told if ctx has ended
	}
}

// handOn hands on the user's messages up to the first whose sender is still
// unknown, and says whether there is one. At the end those are refused.
func (q *strangers) handOn(user id.UserID, end bool) (more bool) {
	g := q.ghost
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting[user]) > 0 {
		opened := q.waiting[user][0]
		device := g.senderOf(opened)
		switch {
		case device != nil:
			if g.routeOlm(opened, device) {
				g.service.kicker.kick()
			}
		case end:
			g.service.refuse(g, user, "olm message from a device nobody knows")
		default:
			return true
		}
		q.waiting[user] = q.waiting[user][1:]
	}
	delete(q.waiting, user)
	return false
}

// senderOf returns the device that sent an olm message, as far as we know: the
// owner of its curve25519 key, with the ed25519 key the message names.
func (g *Ghost) senderOf(opened *crypto.DecryptedOlmEvent) *id.Device {
	device := opened.SenderDevice
	if device == nil {
		device = g.service.directory.owner(opened.Sender, opened.SenderKey)
	}
	if device == nil || device.SigningKey != opened.Keys.Ed25519 {
		return nil
	}
	return device
}
