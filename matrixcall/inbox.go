package matrixcall

import "sync"

// inbox is an unbounded queue. Any goroutine puts, without ever blocking; one takes. It must be unbounded because
// library callbacks put: what flows through it is bounded by who may send (signals are checked and counted before).
type inbox[T any] struct {
	mu    sync.Mutex
	items []T           // guarded by mu
	wake  chan struct{} // holds one token when there are items
}

func newInbox[T any]() *inbox[T] { return &inbox[T]{wake: make(chan struct{}, 1)} }

func (q *inbox[T]) put(item T) {
	q.mu.Lock()
	q.items = append(q.items, item)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns all items there are, perhaps none.
func (q *inbox[T]) take() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items
	q.items = nil
	return items
}
