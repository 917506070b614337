package sip

import "sync"

// inbox is the unbounded queue in front of one call. Handlers and the application fill it, the call's run goroutine
// drains it; nobody who fills it ever blocks. What arrives after close is refused.
type inbox struct {
	ready chan struct{} // holds one token while items wait

	mu     sync.Mutex
	items  []func()
	closed bool
}

func newInbox() *inbox { return &inbox{ready: make(chan struct{}, 1)} }

// put returns false when the call is over and f will never run.
func (b *inbox) put(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.items = append(b.items, f)
	select {
	case b.ready <- struct{}{}:
	default:
	}
	return true
}

func (b *inbox) take() []func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	items := b.items
	b.items = nil
	return items
}

// close refuses further items and returns those nobody ran.
func (b *inbox) close() []func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	items := b.items
	b.items = nil
	return items
}
