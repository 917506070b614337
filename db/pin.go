package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"
)

// PIN is one that leads to a room. Sum is a keyed hash of it.
type PIN struct {
	Sum       string
	RoomID    string
	CreatedBy string // Matrix user, or "" for an admin
	Created   time.Time
}

// RoomOfPIN returns the room that a PIN leads to, "" if there is none.
func (s *Store) RoomOfPIN(ctx context.Context, sum string) (room string, err error) {
	err = s.db.QueryRow(ctx, "SELECT room_id FROM pin WHERE sum = $1", sum).Scan(&room)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("read PIN: %w", err)
	}
	return room, nil
}

// AddPIN stores a PIN, and tells whether it did: one that leads to a room already is not changed.
func (s *Store) AddPIN(ctx context.Context, p PIN) (added bool, err error) {
	result, err := s.db.Exec(ctx, `INSERT INTO pin (sum, room_id, created_by, created_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (sum) DO NOTHING`, p.Sum, p.RoomID, p.CreatedBy, millis(p.Created))
	if err != nil {
		return false, fmt.Errorf("save PIN: %w", err)
	}
	rows, err := result.RowsAffected()
	if err != nil {
		return false, fmt.Errorf("save PIN: %w", err)
	}
	return rows > 0, nil
}

// ReplacePINs stores a PIN in place of all those that lead to its room. Like [Store.AddPIN] it changes nothing for one that is taken.
func (s *Store) ReplacePINs(ctx context.Context, p PIN) (added bool, err error) {
	err = s.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		added, err = s.AddPIN(ctx, p)
		if err != nil || !added {
			return err
		}
		if _, err := s.db.Exec(ctx, "DELETE FROM pin WHERE room_id = $1 AND sum <> $2", p.RoomID, p.Sum); err != nil {
			return fmt.Errorf("delete the PINs before: %w", err)
		}
		return nil
	})
	return added, err
}

// PINs counts those that lead to a room.
func (s *Store) PINs(ctx context.Context, room string) (n int, err error) {
	if err := s.db.QueryRow(ctx, "SELECT COUNT(*) FROM pin WHERE room_id = $1", room).Scan(&n); err != nil {
		return 0, fmt.Errorf("count PINs: %w", err)
	}
	return n, nil
}

// DeletePINs removes all PINs that lead to a room.
func (s *Store) DeletePINs(ctx context.Context, room string) error {
	if _, err := s.db.Exec(ctx, "DELETE FROM pin WHERE room_id = $1", room); err != nil {
		return fmt.Errorf("delete PINs: %w", err)
	}
	return nil
}

// PINBudget returns what is stored of the limits of guessing under names: when each is as it was before anybody guessed. It asks once,
// for a caller waits.
func (s *Store) PINBudget(ctx context.Context, names []string) (map[string]time.Time, error) {
	if len(names) == 0 {
		return nil, nil
	}
	var places []string
	var wanted []any
	for i, name := range names {
		places, wanted = append(places, fmt.Sprintf("$%d", i+1)), append(wanted, name)
	}
	rows, err := s.db.Query(ctx, "SELECT name, until FROM pin_budget WHERE name IN ("+strings.Join(places, ", ")+")", wanted...)
	if err != nil {
		return nil, fmt.Errorf("read how often PINs were guessed: %w", err)
	}
	defer rows.Close()
	stored := make(map[string]time.Time)
	for rows.Next() {
		var name string
		var until int64
		if err := rows.Scan(&name, &until); err != nil {
			return nil, fmt.Errorf("read how often PINs were guessed: %w", err)
		}
		stored[name] = instant(until)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read how often PINs were guessed: %w", err)
	}
	return stored, nil
}

// SpendPINBudget puts off each name's moment, from now if it is over. Names must always come in the same order.
func (s *Store) SpendPINBudget(ctx context.Context, now time.Time, spend []PINSpending) error {
	err := s.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		for _, one := range spend {
			_, err := s.db.Exec(ctx, `INSERT INTO pin_budget (name, until) VALUES ($1, CAST($2 AS BIGINT) + CAST($3 AS BIGINT))
				ON CONFLICT (name) DO UPDATE SET until = CASE WHEN pin_budget.until > $2 THEN pin_budget.until + $3 ELSE excluded.until END`,
				one.Name, millis(now), one.Later.Milliseconds())
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("save how often PINs were guessed: %w", err)
	}
	return nil
}

// PINSpending is how much later a moment is for one wrong PIN.
type PINSpending struct {
	Name  string
	Later time.Duration
}

// KnownNumber is whose PIN a number has entered, and until when that counts.
type KnownNumber struct {
	Room  string
	Until time.Time
}

// KnownNumber returns what is stored under a name, nothing if there is nothing.
func (s *Store) KnownNumber(ctx context.Context, name string) (known KnownNumber, err error) {
	var until int64
	err = s.db.QueryRow(ctx, "SELECT room, until FROM pin_budget WHERE name = $1", name).Scan(&known.Room, &until)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return KnownNumber{}, nil
	case err != nil:
		return KnownNumber{}, fmt.Errorf("read who knows a PIN: %w", err)
	}
	known.Until = instant(until)
	return known, nil
}

// KnowNumber stores that a number knows a room's PIN, unless as many others as may do, or it knows another's.
func (s *Store) KnowNumber(ctx context.Context, now time.Time, name string, known KnownNumber, most int) error {
	_, err := s.db.Exec(ctx, `INSERT INTO pin_budget (name, until, room) SELECT CAST($1 AS TEXT), CAST($2 AS BIGINT), CAST($3 AS TEXT)
			WHERE (SELECT COUNT(*) FROM pin_budget WHERE room = $3 AND until > $4 AND name <> $1) < $5
		ON CONFLICT (name) DO UPDATE SET until = excluded.until, room = excluded.room
			WHERE pin_budget.room = excluded.room OR pin_budget.until <= $4`,
		name, millis(known.Until), known.Room, millis(now), most)
	if err != nil {
		return fmt.Errorf("save who knows a PIN: %w", err)
	}
	return nil
}
