package matrixcall

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"trunkline/matrixcall/mesh"
)

// signaller sends the membership's signals: the actor puts, one goroutine sends, in order.
type signaller struct {
	m       *Membership
	queue   *inbox[[]mesh.Send]
	mu      sync.Mutex
	pending map[mesh.Device]int // guarded by mu: signals not yet accepted by the homeserver
	closing chan struct{}
}

func newSignaller(m *Membership) *signaller {
	return &signaller{
		m: m, queue: newInbox[[]mesh.Send](), pending: make(map[mesh.Device]int), closing: make(chan struct{}),
	}
}

// send puts signals that belong together: what is said to all peers at once is one request (per type), however many they
// are. A repetition is left out while the device has not got what was sent before.
func (s *signaller) send(signals []mesh.Send) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var batch []mesh.Send
	for _, e := range signals {
		if e.Repeat && s.pending[e.To] > 0 {
			continue
		}
		if e.Repeat {
			s.m.host.Metrics().InvitesRepeated.Add(1)
		}
		s.pending[e.To]++
		batch = append(batch, e)
	}
	if len(batch) > 0 {
		s.queue.put(batch)
	}
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
	for waiting := s.queue.take(); len(waiting) > 0; waiting = s.queue.take() {
		batch := slices.Concat(waiting...)
		for _, e := range batch {
			s.m.host.Metrics().SignalsSent.Add(e.Signal.Kind.String())
			s.m.log.Debug("signal out", "peer", userName(e.To.User), "device", e.To.ID, "session", e.Signal.DestSession,
				"call_id", e.Signal.CallID, "kind", e.Signal.Kind, "seq", e.Signal.Seq, "reason", e.Signal.Reason)
		}
		messages, cause := s.encode(batch)
		failed := failures(s.m.host.SendToDevice(ctx, s.m.ghost, messages), len(messages))
		s.mu.Lock()
		for _, e := range batch {
			if s.pending[e.To]--; s.pending[e.To] == 0 {
				delete(s.pending, e.To)
			}
		}
		s.mu.Unlock()
		for _, n := range slices.Sorted(maps.Keys(failed)) {
			e := cause[n]
			if ctx.Err() == nil {
				s.m.log.Warn("signal not sent", "peer", userName(e.To.User), "device", e.To.ID, "session", e.Signal.DestSession,
					"call_id", e.Signal.CallID, "kind", e.Signal.Kind, "seq", e.Signal.Seq, "err", failed[n])
			}
			if e.Signal.Kind != mesh.AssertedIdentity { // a name that is not shown is no reason to end a call
				s.m.inbox.put(mesh.SendFailed{To: e.To, CallID: e.Signal.CallID})
			}
		}
	}
}

// encode makes the messages for a batch of signals; cause says which signal each one is of. An identity goes out under
// both its names, for nobody can tell which of them a client knows.
func (s *signaller) encode(batch []mesh.Send) (messages []OutMessage, cause []mesh.Send) {
	for _, e := range batch {
		evtType, content := encodeSignal(e.Signal, s.m.info.Device, newID())
		message := OutMessage{User: e.To.User, Device: e.To.ID, Type: evtType, Content: content}
		messages, cause = append(messages, message), append(cause, e)
		if e.Signal.Kind == mesh.AssertedIdentity {
			message.Type = typeAssertedIDUnstable
			messages, cause = append(messages, message), append(cause, e)
		}
	}
	return messages, cause
}

// failures returns what became of the messages of a batch that were not sent.
func failures(err error, n int) map[int]error {
	if err == nil {
		return nil
	}
	if some, ok := errors.AsType[*SendError](err); ok {
		return some.Failed
	}
	all := make(map[int]error, n)
	for i := range n {
		all[i] = err
	}
	return all
}
