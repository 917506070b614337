package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Route says where a dialled number leads.
type Route struct {
	Number  string
	Room    string // alias or id
	Options string // what else it asks for, JSON; "" is stored as an empty object
	Created time.Time
}

// Route returns the route of a dialled number; its Room is "" when the database has none.
func (s *Store) Route(ctx context.Context, number string) (Route, error) {
	r := Route{Number: number}
	var created int64
	err := s.db.QueryRow(ctx, "SELECT room, options, created_at FROM route WHERE number = $1", number).
		Scan(&r.Room, &r.Options, &created)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Route{}, fmt.Errorf("read route: %w", err)
	}
	r.Created = instant(created)
	return r, nil
}

// Routes returns all routes, by number.
func (s *Store) Routes(ctx context.Context) ([]Route, error) {
	rows, err := s.db.Query(ctx, "SELECT number, room, options, created_at FROM route ORDER BY number")
	if err != nil {
		return nil, fmt.Errorf("read routes: %w", err)
	}
	defer rows.Close()
	var list []Route
	for rows.Next() {
		var r Route
		var created int64
		if err := rows.Scan(&r.Number, &r.Room, &r.Options, &created); err != nil {
			return nil, fmt.Errorf("read routes: %w", err)
		}
		r.Created = instant(created)
		list = append(list, r)
	}
	return list, rows.Err()
}

// PutRoute writes the route whole, except for when it was made; one without a room is removed.
func (s *Store) PutRoute(ctx context.Context, r Route) error {
	query, args := `INSERT INTO route (number, room, options, created_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (number) DO UPDATE SET room = excluded.room, options = excluded.options`,
		[]any{r.Number, r.Room, document(r.Options), millis(r.Created)}
	if r.Room == "" {
		query, args = "DELETE FROM route WHERE number = $1", []any{r.Number}
	}
	if _, err := s.db.Exec(ctx, query, args...); err != nil {
		return fmt.Errorf("save route: %w", err)
	}
	return nil
}
