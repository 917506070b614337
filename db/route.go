package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Route returns the room (alias or id) that a dialled number leads to, "" when the database has no such route.
func (s *Store) Route(ctx context.Context, number string) (string, error) {
	var room string
	err := s.db.QueryRow(ctx, "SELECT room FROM route WHERE number = $1", number).Scan(&room)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("read route: %w", err)
	}
	return room, nil
}

// PutRoute makes number lead to room; an empty room removes the route.
func (s *Store) PutRoute(ctx context.Context, number, room string, now time.Time) error {
	query, args := `INSERT INTO route (number, room, created_at) VALUES ($1, $2, $3)
		ON CONFLICT (number) DO UPDATE SET room = excluded.room`, []any{number, room, millis(now)}
	if room == "" {
		query, args = "DELETE FROM route WHERE number = $1", []any{number}
	}
	if _, err := s.db.Exec(ctx, query, args...); err != nil {
		return fmt.Errorf("save route: %w", err)
	}
	return nil
}
