package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
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
