package db

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Usage is what was used on a day within one scope, and what running calls may still use.
type Usage struct {
	UsageKey
	Calls    int
	Talked   time.Duration // by calls that are over
	Running  int
	Reserved time.Duration // by calls that run
}

// UsageKey names what is counted together.
type UsageKey struct {
	Day   string // 2026-11-22
	Scope string
	Name  string
}

// Reserve writes the first row of a leg that somebody wants, if it may be. decide gets what was used under keys, and what calls
// of other days that still run have there; it returns the longest that the call may last (0 = no limit), or why it may not be,
// which Reserve returns. All of it is one transaction, so that two calls can't both take the last minute. The leg counts until
// it is deleted. Keys must always come in the same order, else two processes may wait for each other.
func (s *Store) Reserve(ctx context.Context, l Leg, keys []UsageKey, decide func([]Usage) (time.Duration, error)) (time.Duration, error) {
	var longest time.Duration
	err := s.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		used, err := s.holdUsage(ctx, keys)
		if err != nil {
			return err
		}
		if longest, err = decide(used); err != nil {
			return err
		}
		for _, key := range keys {
			_, err := s.db.Exec(ctx, `UPDATE usage SET calls = calls + 1, running = running + 1, reserved = reserved + $4
				WHERE day = $1 AND scope = $2 AND name = $3`, key.Day, key.Scope, key.Name, longest.Milliseconds())
			if err != nil {
				return fmt.Errorf("count leg %s: %w", l.ID, err)
			}
			l.UsageDay = key.Day
		}
		l.Reserved = longest
		return s.PutLeg(ctx, l)
	})
	return longest, err
}

// MoveLeg writes the row of a leg that Reserve has counted and that goes over another trunk now, if it may: it counts there from now
// on, and no more for the trunk before. decide gets what was used under the new trunk; the error it returns is MoveLeg's, and nothing
// is written then. The result is the longest that the call may last, which is what was reserved before or less. Where the row names
// that trunk already it is only written.
func (s *Store) MoveLeg(ctx context.Context, l Leg, decide func([]Usage) (time.Duration, error)) (time.Duration, error) {
	return s.moveLeg(ctx, l, unnumbered, decide)
}

// moveLeg is to MoveLeg as putLeg is to PutLeg.
func (s *Store) moveLeg(ctx context.Context, l Leg, number int64, decide func([]Usage) (time.Duration, error)) (time.Duration, error) {
	longest := l.Reserved
	err := s.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		var from string
		var reserved int64
		err := s.db.QueryRow(ctx, "SELECT trunk, reserved FROM leg WHERE id = $1 AND owner = $2 AND epoch = $3", l.ID, l.Owner, l.Epoch).Scan(&from, &reserved)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return fmt.Errorf("move leg %s: %w", l.ID, ErrFenced)
		case err != nil:
			return fmt.Errorf("move leg %s: %w", l.ID, err)
		case from == l.Trunk:
			l.Reserved = time.Duration(reserved) * time.Millisecond
			longest = l.Reserved
			return s.putLeg(ctx, l, number)
		}
		keys := []UsageKey{{l.UsageDay, "trunk", from}, {l.UsageDay, "trunk", l.Trunk}}
		slices.SortFunc(keys, func(a, b UsageKey) int { return cmp.Compare(a.Name, b.Name) })
		keys = slices.Concat([]UsageKey{{l.UsageDay, "user", l.DialledBy}, {l.UsageDay, "room", l.RoomID}}, keys, []UsageKey{{l.UsageDay, "all", ""}})
		used, err := s.holdUsage(ctx, keys)
		if err != nil {
			return err
		}
		allowed, err := decide(slices.DeleteFunc(used, func(u Usage) bool { return u.Scope != "trunk" || u.Name != l.Trunk }))
		if err != nil {
			return err
		}
		longest = time.Duration(reserved) * time.Millisecond
		if allowed > 0 && (longest == 0 || allowed < longest) {
			longest = allowed
		}
		for _, key := range keys {
			calls, change := 0, longest.Milliseconds()-reserved
			switch {
			case key.Scope == "trunk" && key.Name == from:
				calls, change = -1, -reserved
			case key.Scope == "trunk":
				calls, change = 1, longest.Milliseconds()
			}
			_, err := s.db.Exec(ctx, `UPDATE usage SET calls = calls + $4, running = running + $4, reserved = reserved + $5
				WHERE day = $1 AND scope = $2 AND name = $3`, key.Day, key.Scope, key.Name, calls, change)
			if err != nil {
				return fmt.Errorf("count leg %s: %w", l.ID, err)
			}
		}
		l.Reserved = longest
		return s.putLeg(ctx, l, number)
	})
	return longest, err
}

// Count is Reserve for a call that is placed by somebody else, so that nobody will see how long it lasts: it counts as one that
// was placed.
func (s *Store) Count(ctx context.Context, keys []UsageKey, decide func([]Usage) error) error {
	return s.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		used, err := s.holdUsage(ctx, keys)
		if err != nil {
			return err
		}
		if err := decide(used); err != nil {
			return err
		}
		for _, key := range keys {
			_, err := s.db.Exec(ctx, `UPDATE usage SET calls = calls + 1 WHERE day = $1 AND scope = $2 AND name = $3`, key.Day, key.Scope, key.Name)
			if err != nil {
				return fmt.Errorf("count a call: %w", err)
			}
		}
		return nil
	})
}

// holdUsage holds the rows of keys until the end of the transaction, and reads what counts under them.
func (s *Store) holdUsage(ctx context.Context, keys []UsageKey) ([]Usage, error) {
	for _, key := range keys {
		_, err := s.db.Exec(ctx, `INSERT INTO usage (day, scope, name, calls, talked, running, reserved) VALUES ($1, $2, $3, 0, 0, 0, 0)
			ON CONFLICT (day, scope, name) DO UPDATE SET calls = usage.calls`, key.Day, key.Scope, key.Name)
		if err != nil {
			return nil, fmt.Errorf("hold usage: %w", err)
		}
	}
	var used []Usage
	for _, key := range keys {
		rows, err := s.usage(ctx, key)
		if err != nil {
			return nil, err
		}
		used = append(used, rows...)
	}
	return used, nil
}

// usage reads what counts under a key: the day's row, and those of other days with calls that still run.
func (s *Store) usage(ctx context.Context, key UsageKey) ([]Usage, error) {
	return s.readUsage(ctx, "scope = $2 AND name = $3 AND (day = $1 OR running > 0)", key.Day, key.Scope, key.Name)
}

func (s *Store) readUsage(ctx context.Context, where string, args ...any) ([]Usage, error) {
	rows, err := s.db.Query(ctx, "SELECT day, scope, name, calls, talked, running, reserved FROM usage WHERE "+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	defer rows.Close()
	var list []Usage
	for rows.Next() {
		var u Usage
		var talked, reserved int64
		if err := rows.Scan(&u.Day, &u.Scope, &u.Name, &u.Calls, &talked, &u.Running, &reserved); err != nil {
			return nil, fmt.Errorf("read usage: %w", err)
		}
		u.Talked, u.Reserved = time.Duration(talked)*time.Millisecond, time.Duration(reserved)*time.Millisecond
		list = append(list, u)
	}
	return list, rows.Err()
}

// UsageOn reads what was used on a day, until now by calls that still run, by scope and name. A call that ends while it reads may be
// missing, but counts never twice.
func (s *Store) UsageOn(ctx context.Context, day string, now time.Time) ([]Usage, error) {
	used, err := s.readUsage(ctx, "day = $1 ORDER BY scope, name", day)
	if err != nil {
		return nil, err
	}
	running := make(map[UsageKey]time.Duration)
	rows, err := s.db.Query(ctx, "SELECT dialled_by, room_id, trunk, answered_at FROM leg WHERE usage_day = $1 AND answered_at > 0", day)
	if err != nil {
		return nil, fmt.Errorf("read calls that run: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var user, room, trunk string
		var answered int64
		if err := rows.Scan(&user, &room, &trunk, &answered); err != nil {
			return nil, fmt.Errorf("read calls that run: %w", err)
		}
		talked := max(0, now.Sub(instant(answered)))
		for _, key := range []UsageKey{{day, "user", user}, {day, "room", room}, {day, "trunk", trunk}, {day, "all", ""}} {
			running[key] += talked
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read calls that run: %w", err)
	}
	for i := range used {
		used[i].Talked += running[used[i].UsageKey]
	}
	return used, nil
}

// settle takes a leg that is about to be deleted out of what runs, and counts what it has talked. It is part of the deletion:
// a leg is settled once, whichever process ends it.
func (s *Store) settle(ctx context.Context, id string, by Hold, now time.Time) error {
	_, err := s.db.Exec(ctx, `UPDATE usage SET
			running = CASE WHEN usage.running > 0 THEN usage.running - 1 ELSE 0 END,
			reserved = CASE WHEN usage.reserved > leg.reserved THEN usage.reserved - leg.reserved ELSE 0 END,
			talked = usage.talked + CASE WHEN leg.answered_at > 0 AND leg.answered_at < $4 THEN $4 - leg.answered_at ELSE 0 END
		FROM leg
		WHERE leg.id = $1 AND leg.owner = $2 AND leg.epoch = $3 AND leg.usage_day <> '' AND usage.day = leg.usage_day AND (
			usage.scope = 'user' AND usage.name = leg.dialled_by OR
			usage.scope = 'room' AND usage.name = leg.room_id OR
			usage.scope = 'trunk' AND usage.name = leg.trunk OR
			usage.scope = 'all' AND usage.name = '')`, id, by.Owner, by.Epoch, millis(now))
	if err != nil {
		return fmt.Errorf("settle leg %s: %w", id, err)
	}
	return nil
}
