package matrixcall

import (
	"context"
	"slices"
	"sync"
	"time"

	"trunkline/matrixcall/mesh"
)

// lateAnswer is how long an answer may be on its way before the caller may have given up: matrix-js-sdk does after some 4 s
// without a homeserver, hydrogen at once.
const lateAnswer = 3 * time.Second

// signaller sends the membership's signals: the actor puts, one goroutine hands them over, in order. It does not wait for
// what it handed over: one device that cannot be reached yet must not hold up what is for the others.
type signaller struct {
	m       *Membership
	queue   *inbox[[]mesh.Send]
	mu      sync.Mutex
	pending map[mesh.Device]int // guarded by mu: signals not yet accepted by the homeserver
	closing chan struct{}
	waits   sync.WaitGroup // for what was handed over
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
		defer s.waits.Wait()
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
		began, sent := time.Now(), s.m.host.toDevice(ctx, s.m.ghost, messages)
		places := make(map[mesh.Device][]int)
		for n, e := range cause {
			places[e.To] = append(places[e.To], n)
		}
		for to, places := range places {
			s.waits.Go(func() {
				for _, n := range places {
					s.settle(ctx, cause[n], sent(n), time.Since(began))
				}
				s.mu.Lock()
				defer s.mu.Unlock()
				for _, e := range batch {
					if e.To == to {
						s.pending[to]--
					}
				}
				if s.pending[to] == 0 {
					delete(s.pending, to)
				}
			})
		}
	}
}

// settle takes note of how a message ended.
func (s *signaller) settle(ctx context.Context, e mesh.Send, err error, took time.Duration) {
	switch {
	case err == nil && e.Signal.Kind == mesh.Answer && took > lateAnswer:
		s.m.inbox.put(mesh.AnsweredLate{To: e.To, CallID: e.Signal.CallID})
	case err == nil:
	default:
		if ctx.Err() == nil {
			s.m.log.Warn("signal not sent", "peer", userName(e.To.User), "device", e.To.ID, "session", e.Signal.DestSession,
				"call_id", e.Signal.CallID, "kind", e.Signal.Kind, "seq", e.Signal.Seq, "err", err)
		}
		if e.Signal.Kind != mesh.AssertedIdentity { // a name that is not shown is no reason to end a call
			s.m.inbox.put(mesh.SendFailed{To: e.To, CallID: e.Signal.CallID})
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
