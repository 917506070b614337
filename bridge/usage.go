package bridge

import (
	"context"
	"encoding/json"
	"fmt"
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
	unkept bool     // the database does not know all of that yet
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
	err = b.alarm(attempt, day, shares)
	b.sayAlarms(ctx)
	return err
}

// alarm tells of each limit that has come to a percentage at which somebody wants to know, once a day, over restarts and by one node,
// unless two look in the same moment.
func (b *Bridge) alarm(ctx context.Context, day string, shares []quota.Share) error {
	m := b.meter
	if m.told.Day != day {
		m.told, m.unkept = toldToday{day, make(map[string]int)}, false
	}
	due := func() bool {
		return slices.ContainsFunc(shares, func(s quota.Share) bool { return b.alarmAt(s) > m.told.Percent[alarmKey(s)] })
	}
	if due() || m.unkept {
		if err := b.readTold(ctx); err != nil {
			return err
		}
	}
	before := len(m.unsaid)
	for _, s := range shares {
		at, key := b.alarmAt(s), alarmKey(s)
		if at <= m.told.Percent[key] {
			continue
		}
		m.told.Percent[key], m.unkept = at, true
		b.metrics.alarms.WithLabelValues(string(s.Scope), s.What, strconv.Itoa(at)).Inc()
		b.log.Warn("a limit of today's calls is being used up", "scope", s.Scope, "name", s.Name, "what", s.What, "used", s.Used, "limit", s.Limit, "percent", s.Percent)
		m.unsaid = append(m.unsaid, alarmText(s))
	}
	if n := len(m.unsaid); n > max(before, maxUnsaid) {
		m.unsaid = m.unsaid[n-maxUnsaid:]
	}
	if !m.unkept {
		return nil
	}
	if err := b.store.SetNow(ctx, alarmSetting, encode(m.told), time.Now()); err != nil {
		return err
	}
	m.unkept = false
	return nil
}

// alarmAt is the highest percentage at which somebody wants to know and that a limit has come to, 0 for none.
func (b *Bridge) alarmAt(s quota.Share) (at int) {
	for _, percent := range b.cfg.Dialling.Alarm.At {
		if percent <= s.Percent {
			at = max(at, percent)
		}
	}
	return at
}

func alarmKey(s quota.Share) string { return fmt.Sprintf("%s %s of %s", s.Scope, s.What, s.Name) }

// readTold learns what was told today by the process before, or by another node.
func (b *Bridge) readTold(ctx context.Context) error {
	m := b.meter
	text, err := b.store.Setting(ctx, alarmSetting)
	if err != nil {
		return err
	}
	var stored toldToday
	if json.Unmarshal([]byte(text), &stored) != nil || stored.Day != m.told.Day {
		return nil // of another day, or none
	}
	for key, percent := range stored.Percent {
		m.told.Percent[key] = max(m.told.Percent[key], percent)
	}
	return nil
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
