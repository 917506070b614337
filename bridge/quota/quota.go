// Package quota decides whether a call to the telephone network may be placed and how long it may last. It is pure: the
// database holds the rows, the shell brings them, the time is an argument.
//
// A call counts in four scopes at once: its user, its room, its trunk, and all. Of each the database has one [Row] per day,
// and keeps the books: read, decide, and count is one transaction there (db.Store.Reserve), so that two calls can't both take
// the last minute.
//
//	rows := those of quota.Keys(request, rules.Day(now)), and those of other days with calls that still run
//	decision := quota.Decide(rules, now, request, rows)
//
// Minutes are reserved before they are talked: a call may last no longer than what is left in each of its scopes, less
// what running calls may still use. So no limit of minutes is ever overrun, also by many calls at once, and after a crash
// what was reserved stays taken until the call's record is closed.
package quota

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Scope is whose limit it is.
type Scope string

const (
	User  Scope = "user"
	Room  Scope = "room"
	Trunk Scope = "trunk"
	All   Scope = "all"
)

// Key names a row.
type Key struct {
	Day   string // 2026-11-22, in the time zone of the rules
	Scope Scope
	Name  string // user id, room id, trunk; empty for All
}

// Row is what was used on a day.
type Row struct {
	Key
	Calls    int
	Talked   time.Duration // by calls that are over
	Running  int
	Reserved time.Duration // by calls that run: the longest that each may last
}

// Limits of one scope; zero = no limit.
type Limits struct {
	Calls   int           // per day
	Talk    time.Duration // per day
	Running int           // at once
	Longest time.Duration // of one call
}

// Rules are what the configuration wants.
type Rules struct {
	Stopped string // the kill switch: not empty = no calls, and this is why
	Zone    *time.Location

	All, User, Room, Trunk Limits
	Users                  map[string]Limits // of one user, instead of User
	Rooms                  map[string]Limits
	Trunks                 map[string]Limits

	Expensive []string      // prefixes in E.164 that want a second word: "+882", "+4990"
	Shortest  time.Duration // with less than that left a call is not begun at all
}

// Request is a call that somebody wants.
type Request struct {
	User, Room, Trunk string
	Number            string // E.164
	Confirmed         bool   // the user has said it twice
}

// Verdict is what becomes of a request.
type Verdict uint8

const (
	Refused Verdict = iota
	Confirm         // ask the user, then decide again with Confirmed
	Allowed
)

var verdictNames = [...]string{"refused", "confirm", "allowed"}

func (v Verdict) String() string { return verdictNames[v] }

// Decision is the answer, with words for the room.
type Decision struct {
	Verdict Verdict
	Longest time.Duration // Allowed, Confirm: hang up after that; zero = no limit
	Reason  Reason        // Refused: for metrics
	Scope   Scope         // Refused: whose limit
	Text    string        // Refused, Confirm: plain words, without the number
	RetryAt time.Time     // Refused: when it may work, if that is known
}

// Reason is why a call is refused.
type Reason string

const (
	SwitchedOff    Reason = "switched off"
	TooManyCalls   Reason = "too many calls today"
	TooManyMinutes Reason = "too many minutes today"
	TooManyAtOnce  Reason = "too many calls at once"
)

// Day is the day that a call beginning now counts for, to its end.
func (r *Rules) Day(now time.Time) string { return now.In(r.zone()).Format(time.DateOnly) }

// Keys are the rows to read for a decision.
func Keys(q Request, day string) []Key {
	return []Key{{day, User, q.User}, {day, Room, q.Room}, {day, Trunk, q.Trunk}, {day, All, ""}}
}

// Decide compares with all limits. Rows that are not there count as unused; rows of other days are ignored, except that
// calls of yesterday that still run count as running.
func Decide(r Rules, now time.Time, q Request, rows []Row) Decision {
	if r.Stopped != "" {
		return Decision{Reason: SwitchedOff, Scope: All, Text: "Calls to telephones are switched off at present: " + r.Stopped}
	}
	d := Decision{Verdict: Allowed}
	for _, key := range Keys(q, r.Day(now)) {
		limits, used := r.limits(key), usage(rows, key)
		if reason := limits.refuses(used, r.Shortest); reason != "" {
			return r.refuse(now, key.Scope, reason)
		}
		d.atMost(limits.Longest)
		if limits.Talk > 0 {
			d.atMost(limits.Talk - used.Talked - used.Reserved)
		}
	}
	if r.expensive(q.Number) && !q.Confirmed {
		d.Verdict, d.Text = Confirm, "This number is expensive to call."
	}
	return d
}

// ConfirmWithin is how long an expensive call waits for its second word.
const ConfirmWithin = time.Minute

// Pending is an expensive call that waits for its second word.
type Pending struct {
	Request Request
	Asked   time.Time
}

// Confirms says whether the word of a user in a room is that second word: the same user, the same room, in time.
func (p Pending) Confirms(now time.Time, user, room string) bool {
	return p.Request.User == user && p.Request.Room == room && user != "" && now.Sub(p.Asked) <= ConfirmWithin && !now.Before(p.Asked)
}

func (l Limits) refuses(used Row, shortest time.Duration) Reason {
	switch {
	case l.Running > 0 && used.Running >= l.Running:
		return TooManyAtOnce
	case l.Calls > 0 && used.Calls >= l.Calls:
		return TooManyCalls
	case l.Talk > 0 && l.Talk-used.Talked-used.Reserved < max(shortest, time.Second):
		return TooManyMinutes
	}
	return ""
}

func (r *Rules) refuse(now time.Time, scope Scope, reason Reason) Decision {
	d := Decision{Reason: reason, Scope: scope}
	whose := map[Scope]string{User: "You have", Room: "This room has", Trunk: "This line has", All: "This bridge has"}[scope]
	switch reason {
	case TooManyAtOnce:
		d.Text = whose + " as many calls at once as allowed. Try again when one of them is over."
		return d
	case TooManyCalls:
		d.Text = whose + " placed as many calls today as allowed."
	case TooManyMinutes:
		d.Text = whose + " used up the minutes allowed for today, or running calls may still need them."
	}
	y, m, day := now.In(r.zone()).Date()
	d.RetryAt = time.Date(y, m, day+1, 0, 0, 0, 0, r.zone())
	d.Text += fmt.Sprintf(" The count begins anew at midnight (%s).", d.RetryAt.Format("15:04 MST"))
	return d
}

// atMost shortens the call.
func (d *Decision) atMost(longest time.Duration) {
	if longest > 0 && (d.Longest == 0 || longest < d.Longest) {
		d.Longest = longest
	}
}

// limits of a key: its own, else those of its scope.
func (r *Rules) limits(key Key) Limits {
	own, general := map[string]Limits(nil), r.All
	switch key.Scope {
	case User:
		own, general = r.Users, r.User
	case Room:
		own, general = r.Rooms, r.Room
	case Trunk:
		own, general = r.Trunks, r.Trunk
	}
	if l, ok := own[key.Name]; ok {
		return l
	}
	return general
}

// usage finds a row; what runs since other days runs today.
func usage(rows []Row, key Key) Row {
	found := Row{Key: key}
	for _, row := range rows {
		switch {
		case row.Scope != key.Scope || row.Name != key.Name:
		case row.Day == key.Day:
			found.Calls += row.Calls
			found.Talked += row.Talked
			found.Reserved += row.Reserved
			found.Running += row.Running
		default:
			found.Running += row.Running
		}
	}
	return found
}

func (r *Rules) expensive(number string) bool {
	return slices.ContainsFunc(r.Expensive, func(prefix string) bool { return prefix != "" && strings.HasPrefix(number, prefix) })
}

func (r *Rules) zone() *time.Location {
	if r.Zone == nil {
		return time.UTC
	}
	return r.Zone
}
