package sip

import "sync"

// outboxSize is how many events wait for somebody to listen; an INVITE makes two or three before that.
const outboxSize = 64

// outbox carries the events of one call to its listener. The call's run goroutine fills it. While nobody listens events
// wait, the oldest dropped when full; after that whoever comes first drains it: run, or [Call.OnEvent] for what waited.
// Nothing follows Ended.
type outbox struct {
	mu     sync.Mutex
	hear   func(Event)
	items  []Event
	busy   bool // somebody is draining: order needs one at a time
	closed bool // Ended is in
}

func (o *outbox) listen(hear func(Event)) {
	o.mu.Lock()
	o.hear = hear
	o.mu.Unlock()
	o.drain()
}

func (o *outbox) put(e Event) {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		drop(e)
		return
	}
	_, o.closed = e.(Ended)
	if o.hear == nil && len(o.items) == outboxSize {
		drop(o.items[0])
		o.items = o.items[1:]
	}
	o.items = append(o.items, e)
	o.mu.Unlock()
	o.drain()
}

// drop lets nobody wait for an event that is not heard.
func drop(e Event) {
	if changed, ok := e.(DialogChanged); ok && changed.Saved != nil {
		close(changed.Saved)
	}
}

// drain hands events over without holding the lock. A listener that panics loses this event, not the next.
func (o *outbox) drain() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy || o.hear == nil {
		return
	}
	o.busy = true
	defer func() { o.busy = false }() // with mu held
	for len(o.items) > 0 {
		e, hear := o.items[0], o.hear
		o.items = o.items[1:]
		o.say(hear, e)
	}
}

// say is called with mu held and lets go of it for the call out.
func (o *outbox) say(hear func(Event), e Event) {
	o.mu.Unlock()
	defer o.mu.Lock()
	hear(e)
}
