package quota

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const today = "2026-11-22"

var anna = Request{User: "@anna:example.org", Room: "!room:example.org", Trunk: "carrier", Number: "+4930123456"}

func row(scope Scope, name string, calls int, talked time.Duration, running int, reserved time.Duration) Row {
	return Row{Key{today, scope, name}, calls, talked, running, reserved}
}

func TestEachLimitRefusesWithItsReasonAndScope(t *testing.T) {
	rules := Rules{
		User:     Limits{Calls: 3, Talk: time.Hour, Running: 1},
		Room:     Limits{Calls: 10},
		Trunk:    Limits{Running: 2},
		All:      Limits{Talk: 10 * time.Hour, Longest: 2 * time.Hour},
		Users:    map[string]Limits{"@boss:example.org": {}},
		Shortest: time.Minute,
	}
	boss := anna
	boss.User = "@boss:example.org"
	for _, c := range []struct {
		name    string
		request Request
		rows    []Row
		verdict Verdict
		reason  Reason
		scope   Scope
		longest time.Duration
	}{
		{"nothing used", anna, nil, Allowed, "", "", time.Hour},
		{"some minutes used", anna, []Row{row(User, anna.User, 2, 50*time.Minute, 0, 0)}, Allowed, "", "", 10 * time.Minute},
		{"calls used up", anna, []Row{row(User, anna.User, 3, 0, 0, 0)}, Refused, TooManyCalls, User, 0},
		{"minutes used up", anna, []Row{row(User, anna.User, 1, time.Hour-59*time.Second, 0, 0)}, Refused, TooManyMinutes, User, 0},
		{"minutes just enough", anna, []Row{row(User, anna.User, 1, 59*time.Minute, 0, 0)}, Allowed, "", "", time.Minute},
		{"one runs", anna, []Row{row(User, anna.User, 1, 0, 1, time.Minute)}, Refused, TooManyAtOnce, User, 0},
		{"room's calls used up", anna, []Row{row(Room, anna.Room, 10, 0, 0, 0)}, Refused, TooManyCalls, Room, 0},
		{"another room's calls used up", anna, []Row{row(Room, "!other:example.org", 10, 0, 0, 0)}, Allowed, "", "", time.Hour},
		{"trunk busy", anna, []Row{row(Trunk, "carrier", 2, 0, 2, 0)}, Refused, TooManyAtOnce, Trunk, 0},
		{"running calls hold the minutes", boss, []Row{row(All, "", 5, 4*time.Hour, 1, 6*time.Hour)}, Refused, TooManyMinutes, All, 0},
		{"a limit of his own", boss, []Row{row(User, boss.User, 99, 9*time.Hour, 1, 0)}, Allowed, "", "", 2 * time.Hour},
		{"yesterday is over", anna, []Row{{Key{"2026-11-21", User, anna.User}, 3, time.Hour, 0, 0}}, Allowed, "", "", time.Hour},
		{"a call of yesterday still runs", anna, []Row{{Key{"2026-11-21", User, anna.User}, 1, 0, 1, time.Hour}}, Refused, TooManyAtOnce, User, 0},
	} {
		got := Decide(rules, noon, c.request, c.rows)
		if got.Verdict != c.verdict || got.Reason != c.reason || got.Scope != c.scope || got.Longest != c.longest {
			t.Errorf("%s: %+v, want %v %q %q %v", c.name, got, c.verdict, c.reason, c.scope, c.longest)
		}
		if got.Verdict == Refused && (got.Text == "" || strings.Contains(got.Text, anna.Number)) {
			t.Errorf("%s: text %q", c.name, got.Text)
		}
	}
}

func TestTheKillSwitchStopsEverybody(t *testing.T) {
	rules := Rules{User: Limits{Calls: 50}}
	rules.Stopped = "we look into a bill"
	got := Decide(rules, noon, anna, nil)
	if got.Verdict != Refused || got.Reason != SwitchedOff || !strings.Contains(got.Text, "we look into a bill") {
		t.Errorf("%+v", got)
	}
}

func TestAnExpensiveNumberWantsASecondWordOfTheSameUser(t *testing.T) {
	rules := Rules{User: Limits{Calls: 50}}
	rules.Expensive = []string{"+882", ""}
	dear := anna
	dear.Number = "+88213123456"
	if got := Decide(rules, noon, anna, nil); got.Verdict != Allowed {
		t.Errorf("a cheap number: %+v", got)
	}
	if got := Decide(rules, noon, dear, nil); got.Verdict != Confirm || got.Text == "" {
		t.Errorf("a dear number: %+v", got)
	}
	p := Pending{dear, noon}
	for _, c := range []struct {
		after      time.Duration
		user, room string
		want       bool
	}{
		{time.Second, anna.User, anna.Room, true},
		{time.Minute, anna.User, anna.Room, true},
		{61 * time.Second, anna.User, anna.Room, false},
		{-time.Second, anna.User, anna.Room, false},
		{time.Second, "@ben:example.org", anna.Room, false},
		{time.Second, anna.User, "!other:example.org", false},
	} {
		if got := p.Confirms(noon.Add(c.after), c.user, c.room); got != c.want {
			t.Errorf("Confirms(%v, %s, %s) = %t, want %t", c.after, c.user, c.room, got, c.want)
		}
	}
	dear.Confirmed = true
	if got := Decide(rules, noon, dear, nil); got.Verdict != Allowed {
		t.Errorf("confirmed: %+v", got)
	}
}

func TestTheDayEndsAtMidnightOfTheRulesZone(t *testing.T) {
	berlin := time.FixedZone("CET", 3600)
	rules := Rules{Zone: berlin, User: Limits{Calls: 1}}
	late := time.Date(2026, 11, 22, 23, 30, 0, 0, time.UTC) // half past midnight in Berlin
	if got, want := rules.Day(late), "2026-11-23"; got != want {
		t.Errorf("Day = %s, want %s", got, want)
	}
	used := []Row{{Key{"2026-11-23", User, anna.User}, 1, 0, 0, 0}}
	got := Decide(rules, late, anna, used)
	if want := time.Date(2026, 11, 24, 0, 0, 0, 0, berlin); !got.RetryAt.Equal(want) {
		t.Errorf("RetryAt = %v, want %v", got.RetryAt, want)
	}
}

// FuzzNoLimitIsEverOverrun places and ends calls in any order. However they overlap, no scope uses more than its limits.
func FuzzNoLimitIsEverOverrun(f *testing.F) {
	f.Add(uint64(1))
	f.Add(uint64(77))
	f.Fuzz(func(t *testing.T, seed uint64) {
		chance := rand.New(rand.NewPCG(seed, 1))
		limits := func() Limits {
			return Limits{
				Calls: chance.IntN(30), Talk: time.Duration(chance.IntN(240)) * time.Minute,
				Running: chance.IntN(5), Longest: time.Duration(chance.IntN(90)) * time.Minute,
			}
		}
		rules := Rules{User: limits(), Room: limits(), Trunk: limits(), All: limits(), Shortest: time.Minute}
		table := map[Key]Row{}
		read := func(keys []Key) (rows []Row) {
			for _, key := range keys {
				r := table[key]
				r.Key = key
				rows = append(rows, r)
			}
			return rows
		}
		write := func(rows []Row) {
			for _, r := range rows {
				table[r.Key] = r
			}
		}
		type call struct {
			keys    []Key
			longest time.Duration
		}
		var running []call
		for range 200 {
			q := Request{User: string('a' + rune(chance.IntN(3))), Room: string('r' + rune(chance.IntN(3))), Trunk: "t", Number: "+49"}
			keys := Keys(q, rules.Day(noon))
			if d := Decide(rules, noon, q, read(keys)); d.Verdict == Allowed {
				write(began(read(keys), d.Longest))
				running = append(running, call{keys, d.Longest})
			}
			for len(running) > 0 && chance.IntN(3) == 0 {
				i := chance.IntN(len(running))
				c := running[i]
				running = append(running[:i], running[i+1:]...)
				talked := c.longest // to the last second, or less
				if chance.IntN(2) == 0 && talked > 0 {
					talked = time.Duration(chance.Int64N(int64(talked)))
				}
				write(over(read(c.keys), c.longest, talked))
			}
			for key, r := range table {
				l := rules.limits(key)
				if l.Calls > 0 && r.Calls > l.Calls || l.Running > 0 && r.Running > l.Running || l.Talk > 0 && r.Talked+r.Reserved > l.Talk {
					t.Fatalf("%+v is over %+v", r, l)
				}
			}
		}
		for _, c := range running {
			write(over(read(c.keys), c.longest, 0))
		}
		for _, r := range table {
			if r.Running != 0 || r.Reserved != 0 {
				t.Errorf("all calls are over, and still %+v", r)
			}
		}
	})
}

// began and over keep the books as the database does.
func began(rows []Row, longest time.Duration) []Row {
	rows = slices.Clone(rows)
	for i := range rows {
		rows[i].Calls++
		rows[i].Running++
		rows[i].Reserved += longest
	}
	return rows
}

func over(rows []Row, longest, talked time.Duration) []Row {
	rows = slices.Clone(rows)
	for i := range rows {
		rows[i].Running = max(0, rows[i].Running-1)
		rows[i].Reserved = max(0, rows[i].Reserved-longest)
		rows[i].Talked += max(0, talked)
	}
	return rows
}
