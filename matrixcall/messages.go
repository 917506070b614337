package matrixcall

import (
	"encoding/json"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// RoomMessage is a text message of a person in a room the bridge is in, as it
// was written: edits, notices and state events of that type are none.
type RoomMessage struct {
	Room   id.RoomID
	Event  id.EventID
	Sender id.UserID
	Body   string // anything up to maxBody, line breaks and control characters, too
}

// RoomReaction is what a person has put under an event.
type RoomReaction struct {
	Room   id.RoomID
	Event  id.EventID
	Sender id.UserID
	Target id.EventID
	Key    string // an emoji, often with a variation selector (U+FE0F) behind it, or anything else
}

// RoomSecret is what a person has sent encrypted and the bridge can't read:
// perhaps a message, perhaps something else.
type RoomSecret struct {
	Room   id.RoomID
	Sender id.UserID
}

const (
	// liveAge is how old a message or reaction may be: what a homeserver
	// delivers after an outage must not do now what was wanted then.
	liveAge = time.Minute

	// maxBody, maxReaction and maxEventID are in bytes. Longer messages
	// and reactions are nobody's command and go unheard. The specification
	// ends ids at 255.
	maxBody     = 4 << 10
	maxReaction = 256
	maxEventID  = 255
)

// fromPerson says whether an event can be a message of somebody who is not us.
func (s *Service) fromPerson(e roomEvent) bool {
	return e.StateKey == nil && e.Event != "" && e.Sender != "" && e.Sender != s.bot.UserID && !s.OwnGhost(e.Sender) &&
		e.age(time.Now()) <= liveAge
}

// age is how long ago an event was sent. Our homeserver's word for it counts
// (unsigned.age): origin_server_ts is by the clock of the sender's homeserver.
func (e roomEvent) age(now time.Time) time.Duration {
	var unsigned struct {
		Age *int64 `json:"age"` // ms
	}
	if json.Unmarshal(e.Unsigned, &unsigned) == nil && unsigned.Age != nil {
		return now.Sub(e.came) + time.Duration(*unsigned.Age)*time.Millisecond
	}
	return now.Sub(time.UnixMilli(e.Time))
}

// relation is m.relates_to.
type relation struct {
	Type  string     `json:"rel_type"`
	Event id.EventID `json:"event_id"`
	Key   string     `json:"key"`
}

func (s *Service) message(e roomEvent) {
	var content struct {
		Kind       string          `json:"msgtype"`
		Body       string          `json:"body"`
		Relation   json.RawMessage `json:"m.relates_to"`
		NewContent json.RawMessage `json:"m.new_content"`
	}
	if json.Unmarshal(e.Content, &content) != nil || content.Kind != string(event.MsgText) ||
		content.Body == "" || len(content.Body) > maxBody {
		return
	}
	// The body of an edit is there for clients that know no edits; whoever
	// corrects a command does not give it twice.
	var related relation
	if content.NewContent != nil || json.Unmarshal(content.Relation, &related) == nil && related.Type == string(event.RelReplace) {
		return
	}
	if s.fromPerson(e) { // it may have waited in the room's queue
		s.opts.OnMessage(RoomMessage{Room: e.Room, Event: e.Event, Sender: e.Sender, Body: content.Body})
	}
}

func (s *Service) reaction(e roomEvent) {
	var content struct {
		Relation relation `json:"m.relates_to"`
	}
	if json.Unmarshal(e.Content, &content) != nil {
		return
	}
	r := content.Relation
	if r.Type != string(event.RelAnnotation) || r.Key == "" || len(r.Key) > maxReaction || r.Event == "" || len(r.Event) > maxEventID {
		return
	}
	if s.fromPerson(e) {
		s.opts.OnReaction(RoomReaction{Room: e.Room, Event: e.Event, Sender: e.Sender, Target: r.Event, Key: r.Key})
	}
}
