package matrixcall

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// backoff is how long to wait after the given number of failures: first,
// doubled each time up to most, a quarter of it by chance so that many
// waiters do not return together.
func backoff(failures int, first, most time.Duration) time.Duration {
	wait := most
	if failures < 16 {
		wait = min(first<<failures, most)
	}
	return wait - wait/4 + rand.N(wait/4+1)
}

// sleep waits, or returns why ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// slot is a lock that can be waited for with a context and held across calls
// to the homeserver. The zero value is not usable; newSlot makes one.
type slot chan struct{}

func newSlot() slot { return make(slot, 1) }

func (s slot) acquire(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s slot) release() { <-s }

// keyedLocks is a family of slots, one per key in use. The zero value works.
type keyedLocks[K comparable] struct {
	mu    sync.Mutex
	slots map[K]*countedSlot
}

type countedSlot struct {
	slot  slot
	users int // guarded by keyedLocks.mu
}

// acquire waits for the lock of key and returns what gives it back.
func (l *keyedLocks[K]) acquire(ctx context.Context, key K) (release func(), err error) {
	l.mu.Lock()
	if l.slots == nil {
		l.slots = make(map[K]*countedSlot)
	}
	c := l.slots[key]
	if c == nil {
		c = &countedSlot{slot: newSlot()}
		l.slots[key] = c
	}
	c.users++
	l.mu.Unlock()
	err = c.slot.acquire(ctx)
	if err != nil {
		l.leave(key, c)
		return nil, err
	}
	return func() { c.slot.release(); l.leave(key, c) }, nil
}

func (l *keyedLocks[K]) leave(key K, c *countedSlot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.users--; c.users == 0 {
		delete(l.slots, key)
	}
}

// lockedMap is a map that many goroutines may use. From 10,000 keys on it
// forgets any one for each new one: what is in it is worth knowing, not vital.
// The zero value works.
type lockedMap[K comparable, V any] struct {
	mu     sync.Mutex
	values map[K]V // guarded by mu
}

const maxLockedMap = 10_000

func (m *lockedMap[K, V]) get(key K) V {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.values[key]
}

func (m *lockedMap[K, V]) set(key K, value V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.values == nil {
		m.values = make(map[K]V)
	}
	makeRoom(m.values, key, maxLockedMap)
	m.values[key] = value
}

// makeRoom drops any one of the others when a new key would be one too many.
func makeRoom[K comparable, V any](values map[K]V, key K, most int) {
	if _, known := values[key]; known || len(values) < most {
		return
	}
	for other := range values {
		delete(values, other)
		return
	}
}

func (m *lockedMap[K, V]) remove(key K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.values, key)
}
