package matrixcall

import (
	"slices"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

const (
	// maxNewcomers is how many messages of newcomers wait for one phone,
	// maxNewcomer how many of one user, maxNewcomerBytes how long they are
	// together. A client that joins signals every phone of the room.
	maxNewcomers     = 256
	maxNewcomer      = 24
	maxNewcomerBytes = 1 << 20
)

// newcomer is a message of a user who is not known to be in the room. Anybody
// may write to a ghost, but who is not in the room has no business in its call,
// and must not take the place of a client whose invite is faster than its
// member entry. Yet a user can enter the room and call in one breath. So the
// message waits for a reading of the room's state that began after it came.
type newcomer struct {
	ghost      *Ghost
	conference conference
	message    callMessage
	came       time.Time
}

// deliver hands a message to a conference, now or when its sender is known to
// be in the room; now says which. It does not block.
func (t *tracker) deliver(g *Ghost, c conference, m callMessage) (now bool) {
	r := t.find(c.Info().Room)
	if r == nil || !r.keep(newcomer{ghost: g, conference: c, message: m}) { // nil: the conference begins or ends
		g.handOver(c, m)
		return true
	}
	return false
}

// keep keeps a message unless its sender is known to be in the room, or refuses
// it if there are too many; false means that it can be handed over.
func (r *trackedRoom) keep(n newcomer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.knows(n.message.sender) {
		return false
	}
	all, same, bytes := 0, 0, len(n.message.content)
	for _, other := range r.newcomers {
		if other.conference != n.conference {
			continue
		}
		all++
		bytes += len(other.message.content)
		if other.message.sender == n.message.sender {
			same++
		}
	}
	if all >= maxNewcomers || same >= maxNewcomer || bytes > maxNewcomerBytes {
		n.ghost.service.refuse(n.ghost, n.message.sender, "too many messages from users who are not known to be in the room")
		return true
	}
	n.came = time.Now() // with mu held: a read under way either asks for the sender or began before
	r.newcomers = append(r.newcomers, n)
	r.refresh()
	return true
}

// handOver is the delivery itself; conferences only put.
func (g *Ghost) handOver(c conference, m callMessage) {
	g.service.metrics.MessagesReceived.Add(1)
	c.deliverToDevice(m.sender, m.device, m.kind, m.content, m.encrypted)
}

// knows says whether a user is in the room, as far as its state was read. Called
// with mu held.
func (r *trackedRoom) knows(user id.UserID) bool {
	return r.state != nil && r.state.joined[user] == event.MembershipJoin
}

// joined is knows for others.
func (r *trackedRoom) joined(user id.UserID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.knows(user)
}

// admit hands on the messages of newcomers who are in the room, and refuses
// those of others that had come by then. Called with mu held.
func (r *trackedRoom) admit(by time.Time) {
	r.newcomers = slices.DeleteFunc(r.newcomers, func(n newcomer) bool {
		switch {
		case r.knows(n.message.sender):
			n.ghost.handOver(n.conference, n.message)
			n.ghost.service.kicker.kick()
			return true
		case n.came.Before(by):
			n.ghost.service.refuse(n.ghost, n.message.sender, "not in the room")
			return true
		}
		return false
	})
}
