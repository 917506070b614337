package quota

import (
	"slices"
	"testing"
	"time"
)

func TestSharesOfTheDaysLimits(t *testing.T) {
	const today = "2026-11-22"
	r := Rules{
		All: Limits{Calls: 10, Talk: time.Hour}, User: Limits{Calls: 3}, Users: map[string]Limits{"@boss:x": {}},
		Trunks: map[string]Limits{"carrier": {Talk: 90 * time.Second}},
	}
	got := r.Shares(today, []Row{
		{Key: Key{today, All, ""}, Calls: 8, Talked: 59*time.Minute + 59*time.Second, Reserved: 5 * time.Hour},
		{Key: Key{today, User, "@anna:x"}, Calls: 2},
		{Key: Key{today, User, "@boss:x"}, Calls: 100},
		{Key: Key{today, Room, "!r"}, Calls: 100},
		{Key: Key{today, Trunk, "carrier"}, Talked: 100 * time.Second},
		{Key: Key{"2026-11-21", User, "@anna:x"}, Calls: 3, Running: 1},
	})
	want := []Share{
		{Key{today, Trunk, "carrier"}, OfMinutes, 1, 1, 111},
		{Key{today, All, ""}, OfMinutes, 59, 60, 99},
		{Key{today, All, ""}, OfCalls, 8, 10, 80},
		{Key{today, User, "@anna:x"}, OfCalls, 2, 3, 66},
	}
	if !slices.Equal(got, want) {
		t.Errorf("Shares = %+v\nwant %+v", got, want)
	}
}
