package quota

import (
	"cmp"
	"slices"
	"time"
)

// Share is how much of one day's limit is used.
type Share struct {
	Key
	What    string // "calls" or "minutes"
	Used    int
	Limit   int
	Percent int // of the limit; more than 100 if that was higher once
}

// What shares are of.
const (
	OfCalls   = "calls"
	OfMinutes = "minutes"
)

// Shares lists what is used of all limits per day that rows of that day have, the largest first. Talked must have the time of calls that
// still run in it: what they have reserved is not spent yet.
func (r *Rules) Shares(day string, rows []Row) []Share {
	var list []Share
	for _, row := range rows {
		if row.Day != day {
			continue
		}
		l := r.limits(row.Key)
		if l.Calls > 0 {
			list = append(list, Share{row.Key, OfCalls, row.Calls, l.Calls, row.Calls * 100 / l.Calls})
		}
		if l.Talk > 0 {
			minutes := func(d time.Duration) int { return int(d / time.Minute) }
			list = append(list, Share{row.Key, OfMinutes, minutes(row.Talked), minutes(l.Talk), int(row.Talked * 100 / l.Talk)})
		}
	}
	slices.SortStableFunc(list, func(a, b Share) int {
		return cmp.Or(cmp.Compare(b.Percent, a.Percent), cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Name, b.Name), cmp.Compare(a.What, b.What))
	})
	return list
}
