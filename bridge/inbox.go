package bridge

import "sync"

// inbox is an unbounded queue with many writers and one reader. Put never blocks: library callbacks must not. It holds
// signalling only, a few events per call, so its growth is bounded by what the far ends are allowed to send.
type inbox[T any] struct {
	mu    sync.Mutex // guards items
	items []T
	some  chan struct{} // has one token while items may be waiting
}

func newInbox[T any]() *inbox[T] { return &inbox[T]{some: make(chan struct{}, 1)} }

// Put appends v.
func (in *inbox[T]) Put(v T) {
	in.mu.Lock()
	in.items = append(in.items, v)
	in.mu.Unlock()
	select {
	case in.some <- struct{}{}:
	default:
	}
}

// Some tells when Take may return something.
func (in *inbox[T]) Some() <-chan struct{} { return in.some }

// Take removes and returns everything that waits, in order.
func (in *inbox[T]) Take() []T {
	in.mu.Lock()
	defer in.mu.Unlock()
	items := in.items
	in.items = nil
	return items
}
