package matrixcall

import (
	"context"
	"sync"

	"trunkline/matrixcall/mesh"
)

// signaller sends the membership's signals: the actor puts, one goroutine sends, in order.
type signaller struct {
	m       *Membership
	queue   *inbox[mesh.Send]
	mu      sync.Mutex
	pending map[mesh.Device]int // guarded by mu: signals not yet accepted by the homeserver
	closing chan struct{}
}

func newSignaller(m *Membership) *signaller {
	return &signaller{
		m: m, queue: newInbox[mesh.Send](), pending: make(map[mesh.Device]int), closing: make(chan struct{}),
	}
}

// send puts a signal. A repetition is left out while the device has not got what was sent before.
func (s *signaller) send(e mesh.Send) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Repeat && s.pending[e.To] > 0 {
		return
	}
	s.pending[e.To]++
	s.queue.put(e)
}

// finish makes run end after what was put before.
func (s *signaller) finish() { close(s.closing) }

// start runs the signaller in the membership's group; the result closes when it ended by finish or ctx.
func (s *signaller) start(ctx context.Context) <-chan struct{} {
	ended := make(chan struct{})
	s.m.wg.Go(func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.closing:
				s.sendAll(ctx)
				return
			case <-s.queue.wake:
				s.sendAll(ctx)
			}
		}
	})
	return ended
}

func (s *signaller) sendAll(ctx context.Context) {
	for batch := s.queue.take(); len(batch) > 0; batch = s.queue.take() {
		messages := make([]OutMessage, 0, len(batch))
		for _, e := range batch {
			evtType, content := encodeSignal(e.Signal, s.m.info.Device, newID())
			messages = append(messages, OutMessage{User: e.To.User, Device: e.To.ID, Type: evtType, Content: content})
		}
		err := s.m.host.SendToDevice(ctx, s.m.ghost, messages)
		if err != nil && ctx.Err() == nil {
			s.m.log.Warn("signals not sent", "n", len(batch), "err", err)
		}
		s.mu.Lock()
		for _, e := range batch {
			if s.pending[e.To]--; s.pending[e.To] == 0 {
				delete(s.pending, e.To)
			}
		}
		s.mu.Unlock()
		if err != nil {
			for _, e := range batch {
				s.m.inbox.put(mesh.SendFailed{To: e.To, CallID: e.Signal.CallID})
			}
		}
	}
}
