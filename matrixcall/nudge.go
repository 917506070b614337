package matrixcall

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

// nudgeAfter is how long after a message its receivers are nudged. Requests of clients that could finish in the wrong order
// with ours are over by then.
const nudgeAfter = 300 * time.Millisecond

// nudged are the messages for which somebody waits: a client that gets one late has no sound meanwhile. (A hangup is not
// among them: the member entry that goes with it wakes clients, too.)
var nudged = map[string]bool{
	"m.call.invite": true, "m.call.answer": true, "m.call.select_answer": true, "m.call.negotiate": true,
}

// nudger wakes clients whose homeserver may have left them asleep. When two sendToDevice requests finish in the wrong order,
// Synapse wakes a long poll too early, and it sleeps on, for up to half a minute, although there is a message; any later one
// wakes it (seen with a client whose candidates passed our answer). [sendGate] keeps our own requests apart, but clients send,
// too. So who was sent something that matters is sent an m.dummy a moment later: the type that clients ignore (Matrix
// client-server API, m.dummy). One request does for all of a ghost's peers.
type nudger struct {
	ghost *Ghost

	mu  sync.Mutex
	due map[deviceName]time.Time // nil when nothing runs; guarded by mu
}

// follow sees to it that the devices which were just sent letters are nudged if these matter.
func (n *nudger) follow(letters []*letter) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range letters {
		if !nudged[l.kind] {
			continue
		}
		if n.due == nil {
			if !n.ghost.service.spawn(n.run) {
				return
			}
			n.due = make(map[deviceName]time.Time)
		}
		n.due[l.to] = time.Now().Add(nudgeAfter)
	}
}

// run nudges until nobody is left.
func (n *nudger) run() {
	ctx := n.ghost.service.ctx
	for sleep(ctx, nudgeAfter) == nil {
		now, over := n.take()
		if len(now) > 0 {
			n.send(ctx, now)
		}
		if over {
			return
		}
	}
}

// take removes whose time has come, and says whether nobody is left, in which case run ends.
func (n *nudger) take() (now []deviceName, over bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for device, at := range n.due {
		if !time.Now().Before(at) {
			now = append(now, device)
			delete(n.due, device)
		}
	}
	if len(n.due) == 0 {
		n.due = nil
	}
	return now, n.due == nil
}

// send makes one attempt. One that fails is no loss: the message is there, and the client finds it with its next poll.
func (n *nudger) send(ctx context.Context, devices []deviceName) {
	s := n.ghost.service
	for some := range slices.Chunk(devices, maxRound) {
		messages := make(map[id.UserID]map[id.DeviceID]json.RawMessage)
		for _, d := range some {
			if messages[d.User] == nil {
				messages[d.User] = make(map[id.DeviceID]json.RawMessage)
			}
			messages[d.User][d.Device] = json.RawMessage("{}")
		}
		if err := n.ghost.putToDevice(ctx, "m.dummy", s.transactionID(), messages); err != nil {
			n.ghost.log.Debug("could not nudge", "users", len(messages), "err", tidy(err))
			continue
		}
		s.metrics.Nudges.Add(1)
	}
}

// putToDevice makes one sendToDevice request.
func (g *Ghost) putToDevice(ctx context.Context, kind, txn string, messages map[id.UserID]map[id.DeviceID]json.RawMessage) error {
	ctx, cancel := context.WithTimeout(ctx, sendDeadline)
	defer cancel()
	client := g.asSelf
	_, err := client.MakeFullRequest(ctx, mautrix.FullRequest{
		Method: http.MethodPut, URL: client.BuildClientURL("v3", "sendToDevice", kind, txn),
		RequestJSON: map[string]any{"messages": messages}, MaxAttempts: 1,
	})
	return err
}
