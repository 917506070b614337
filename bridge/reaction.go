package bridge

import (
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"trunkline/matrixcall"
)

// maxEarly bounds the reactions that are held for one room.
const maxEarly = 32

// early is what a room has reacted with while notices to it were under way.
type early struct {
	notices int
	heard   []matrixcall.RoomReaction
}

// reaction hears of every reaction in every room. It must not block.
func (b *Bridge) reaction(r matrixcall.RoomReaction) {
	r.Key = strings.ReplaceAll(r.Key, "\ufe0f", "")
	if !declineKeys[r.Key] && !admitKeys[r.Key] {
		return
	}
	b.mu.Lock()
	if e := b.early[r.Room]; e != nil && len(e.heard) < maxEarly {
		e.heard = append(e.heard, r)
	}
	b.mu.Unlock()
	b.react(r)
}

// react lets a reaction, whose key is one of ours, do what it means to the notice that it is for.
func (b *Bridge) react(r matrixcall.RoomReaction) {
	yes := admitKeys[r.Key]
	if !yes {
		b.decline(r.Room, r.Sender, func(ring *ring) bool { return r.Target == ring.notice || r.Target == ring.call })
		b.endOrder(r)
	}
	b.answerQuestion(r, yes)
	b.attend(r.Room, r.Sender, yes, func(l *lobby) bool { return r.Target == l.notice })
}

// holdReactions keeps what a room reacts with until release, and hears it again then. A notice can be read, and answered, before its
// sender is told which one it is. That a reaction is heard twice does no harm: what it was for is over.
func (b *Bridge) holdReactions(room id.RoomID) (release func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.early[room]
	if e == nil {
		e = &early{}
		b.early[room] = e
	}
	e.notices++
	return func() {
		b.mu.Lock()
		heard := slices.Clone(e.heard)
		if e.notices--; e.notices == 0 {
			delete(b.early, room)
		}
		b.mu.Unlock()
		for _, r := range heard {
			b.react(r)
		}
	}
}
