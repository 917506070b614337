package member

import (
	"context"
	"time"

	"maunium.net/go/mautrix/event"
)

// outbox sends the messages to one peer one after the other, as a browser does: the next request begins when the last
// one was answered. Only run fills it; its own goroutine drains it; run closes it when the peer is forgotten, and what
// is left is still sent.
type outbox struct {
	m     *Member
	to    peerKey
	queue chan outgoing
}

type outgoing struct {
	kind string
	body content
}

// outboxSize is far more than a peer ever gets at once; a full box would be a bug of ours.
const outboxSize = 256

func newOutbox(m *Member, to peerKey) *outbox {
	o := &outbox{m: m, to: to, queue: make(chan outgoing, outboxSize)}
	m.wg.Go(o.run)
	return o
}

func (o *outbox) send(kind string, body content) { o.queue <- outgoing{kind, body} }

func (o *outbox) close() { close(o.queue) }

func (o *outbox) run() {
	for {
		select {
		case out, open := <-o.queue:
			if !open {
				return
			}
			o.deliver(out)
		case <-o.m.ctx.Done():
			return
		}
	}
}

// deliver tries a few times; then the message is lost, as with the clients.
func (o *outbox) deliver(out outgoing) {
	ctx, cancel := context.WithTimeout(o.m.ctx, time.Minute)
	defer cancel()
	for attempt := range 3 {
		if attempt > 0 {
			o.m.pause(time.Duration(attempt) * time.Second)
		}
		evtType, req, err := o.m.wrap(ctx, o.to, out.kind, &event.Content{Parsed: out.body})
		if err == nil {
			_, err = o.m.client.SendToDevice(ctx, evtType, req)
		}
		if err == nil {
			o.m.log.Debug("sent", "type", out.kind, "to", o.to, "call", out.body.CallID, "seq", out.body.Seq, "as", evtType.Type)
			return
		}
		o.m.log.Warn("not sent", "type", out.kind, "to", o.to, "err", err)
	}
}
