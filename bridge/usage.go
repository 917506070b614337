package bridge

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"trunkline/bridge/quota"
)

// What calls from rooms use is in the database, for all nodes. Who watches over the bill sees it in /metrics, and is told before, and
// when, a limit of the day is reached.

const (
	// alarmSetting is where the database has of what somebody was told today.
	alarmSetting = "dialling.alarms"
	// maxUnsaid bounds what the alarm room has not been told yet, while that can't be.
	maxUnsaid = 20
)

// meter reads what is used. Only watchUsage touches what has no lock of its own.
type meter struct {
	look   chan struct{} // a call was counted; has room for one
	latest atomic.Pointer[usedToday]
	told   toldToday
	unsaid []string // to the alarm room, oldest first
}

// usedToday is what /metrics shows.
type usedToday struct {
	calls, seconds map[string]float64 // by trunk
	most           map[string]float64 // by scope: the largest part of any limit there
}

// toldToday is at how many percent somebody was told, by what of whom.
type toldToday struct {
	Day     string
	Percent map[string]int
}

func newMeter() *meter {
	m := &meter{look: make(chan struct{}, 1)}
	m.latest.Store(&usedToday{})
	return m
}

// counted says that there is something to look at.
func (m *meter) counted() {
	select {
	case m.look <- struct{}{}:
	default:
	}
}

// watchUsage looks after each call that is counted, and each minute.
func (b *Bridge) watchUsage(ctx context.Context) {
	ticker := time.NewTicker(houseKeeping)
	defer ticker.Stop()
	for {
		if !b.journal.Away() {
			if err := b.readUsage(ctx, time.Now()); err != nil && ctx.Err() == nil {
				b.log.Warn("could not read what calls have used", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-b.meter.look:
		}
	}
}

func (b *Bridge) readUsage(ctx context.Context, now time.Time) error {
	rules, m := b.quotas(), b.meter
	day := rules.Day(now)
	attempt, cancel := context.WithTimeout(ctx, databasePatience)
	defer cancel()
	used, err := b.store.UsageOn(attempt, day, now)
	if err != nil {
		return err
	}
	latest := &usedToday{make(map[string]float64), make(map[string]float64), make(map[string]float64)}
	rows := quotaRows(used)
	for _, row := range rows {
		if row.Scope == quota.Trunk {
			latest.calls[row.Name], latest.seconds[row.Name] = float64(row.Calls), row.Talked.Seconds()
		}
	}
	shares := rules.Shares(day, rows)
	for _, s := range slices.Backward(shares) {
		latest.most[string(s.Scope)] = float64(s.Percent) / 100
	}
	m.latest.Store(latest)
	if err := b.alarm(attempt, day, shares); err != nil {
		return err
	}
	b.sayAlarms(ctx)
	return nil
}

// alarm tells of each limit that has come to a percentage at which somebody wants to know, once a day, over restarts, too.
func (b *Bridge) alarm(ctx context.Context, day string, shares []quota.Share) error {
	m, before := b.meter, 0
	if m.told.Day != day {
		text, err := b.store.Setting(ctx, alarmSetting)
		if err != nil {
			return err
		}
		var stored toldToday
		if json.Unmarshal([]byte(text), &stored) != nil || stored.Day != day { // of another day, or none
			stored = toldToday{Day: day}
		}
		m.told = toldToday{day, maps.Clone(stored.Percent)}
	}
	if m.told.Percent == nil {
		m.told.Percent = make(map[string]int)
	}
	before = len(m.unsaid)
	changed := false
	for _, s := range shares {
		at := 0
		for _, percent := range b.cfg.Dialling.Alarm.At {
			if percent <= s.Percent {
				at = max(at, percent)
			}
		}
		key := fmt.Sprintf("%s %s of %s", s.Scope, s.What, s.Name)
		if at <= m.told.Percent[key] {
			continue
		}
		m.told.Percent[key], changed = at, true
		b.metrics.alarms.WithLabelValues(string(s.Scope), s.What, strconv.Itoa(at)).Inc()
		b.log.Warn("a limit of today's calls is being used up", "scope", s.Scope, "name", s.Name, "what", s.What, "used", s.Used, "limit", s.Limit, "percent", s.Percent)
		m.unsaid = append(m.unsaid, alarmText(s))
	}
	if n := len(m.unsaid); n > max(before, maxUnsaid) {
		m.unsaid = m.unsaid[n-maxUnsaid:]
	}
	if !changed {
		return nil
	}
	return b.store.PutSetting(ctx, alarmSetting, encode(m.told), time.Now())
}

func alarmText(s quota.Share) string {
	whose := map[quota.Scope]string{
		quota.User: "Calls of " + s.Name, quota.Room: "Calls of the room " + s.Name, quota.Trunk: "Calls over the line " + s.Name, quota.All: "All calls to telephones together",
	}[s.Scope]
	return fmt.Sprintf("%s have used %d %% of what they may today: %d of %d %s.", whose, s.Percent, s.Used, s.Limit, s.What)
}

// sayAlarms tells the alarm room what it has not been told. What can't be said is tried again at the next look.
func (b *Bridge) sayAlarms(ctx context.Context) {
	m, where := b.meter, b.cfg.Dialling.Alarm.Room
	if where == "" {
		m.unsaid = nil
	}
	for len(m.unsaid) > 0 {
		attempt, cancel := context.WithTimeout(ctx, noticePatience)
		room, err := b.matrix.ResolveRoom(attempt, where)
		if err == nil {
			err = b.matrix.Notice(attempt, room, nil, m.unsaid[0])
		}
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				b.log.Error("the alarm room could not be told of limits that are being used up", "room", where, "waiting", len(m.unsaid), "err", err)
			}
			return
		}
		m.unsaid = m.unsaid[1:]
	}
}
