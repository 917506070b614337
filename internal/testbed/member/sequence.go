package member

import (
	"fmt"
	"slices"
)

// sequencer decides when a numbered message is read. Both clients are stricter than the MSC; one wrong number silences
// a connection for good.
type sequencer interface {
	take(msg message) (ready []message)
	stuck() []string // what waits for ever, unless something comes yet
}

// hydrogenQueue is one sorted queue per connection: the head is read when its number is at most the last one plus one.
// (hydrogen src/matrix/calls/group/Member.ts)
type hydrogenQueue struct {
	last    int // −1 before the first
	waiting []message
}

func (q *hydrogenQueue) take(msg message) (ready []message) {
	if !msg.known() {
		return nil
	}
	if msg.Seq == nil {
		q.waiting = append(q.waiting, msg) // never comes first
		return nil
	}
	i := slices.IndexFunc(q.waiting, func(w message) bool { return w.Seq == nil || *w.Seq > *msg.Seq })
	if i < 0 {
		i = len(q.waiting)
	}
	q.waiting = slices.Insert(q.waiting, i, msg)
	for len(q.waiting) > 0 && q.waiting[0].Seq != nil && *q.waiting[0].Seq <= q.last+1 {
		q.last = *q.waiting[0].Seq
		ready = append(ready, q.waiting[0])
		q.waiting = q.waiting[1:]
	}
	return ready
}

func (q *hydrogenQueue) stuck() []string { return describe(q.waiting) }

// jsQueue expects per call id the next number, from 0, over all types. After the expected message it takes the lowest
// waiting one out of the buffer, and forgets it if that is not the next either. (js-sdk src/webrtc/callEventHandler.ts)
type jsQueue struct {
	next    map[string]int
	waiting map[string][]message
	lost    []message
}

func newJSQueue() *jsQueue { return &jsQueue{map[string]int{}, map[string][]message{}, nil} }

func (q *jsQueue) take(msg message) (ready []message) {
	if msg.Seq == nil {
		return []message{msg}
	}
	call := msg.CallID
	if *msg.Seq != q.next[call] {
		list := append(q.waiting[call], msg)
		slices.SortStableFunc(list, func(a, b message) int { return *a.Seq - *b.Seq })
		q.waiting[call] = list
		return nil
	}
	for {
		ready = append(ready, msg)
		q.next[call]++
		if len(q.waiting[call]) == 0 {
			return ready
		}
		msg = q.waiting[call][0]
		q.waiting[call] = q.waiting[call][1:]
		if *msg.Seq != q.next[call] {
			if *msg.Seq > q.next[call] { // a duplicate is no loss
				q.lost = append(q.lost, msg)
			}
			return ready
		}
	}
}

func (q *jsQueue) stuck() []string {
	list := describe(q.lost)
	for call, waiting := range q.waiting {
		beyond := slices.DeleteFunc(slices.Clone(waiting), func(m message) bool { return *m.Seq < q.next[call] })
		list = append(list, describe(beyond)...)
	}
	return list
}

func describe(list []message) (out []string) {
	for _, m := range list {
		seq := "none"
		if m.Seq != nil {
			seq = fmt.Sprint(*m.Seq)
		}
		out = append(out, fmt.Sprintf("%s from %s, call %s, seq %s, is never read", m.kind, m.sender, m.CallID, seq))
	}
	return out
}
