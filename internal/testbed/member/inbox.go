package member

import (
	"context"
	"sync"
)

// inbox is an unbounded queue of work for the run loop. Anybody fills it and never waits; only run drains it; nobody
// closes it.
type inbox struct {
	mu   sync.Mutex
	list []func()
	wake chan struct{} // capacity 1
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

func (b *inbox) put(f func()) {
	b.mu.Lock()
	b.list = append(b.list, f)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take waits for the next piece of work; nil when ctx ends.
func (b *inbox) take(ctx context.Context) func() {
	for {
		b.mu.Lock()
		if len(b.list) > 0 {
			f := b.list[0]
			b.list = b.list[1:]
			b.mu.Unlock()
			return f
		}
		b.mu.Unlock()
		select {
		case <-b.wake:
		case <-ctx.Done():
			return nil
		}
	}
}
