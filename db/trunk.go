package db

import (
	"context"
	"fmt"
	"time"
)

// Trunk is one that an admin added without editing the config.
type Trunk struct {
	Name     string
	Settings string // a JSON object with the options the trunk has in the config; a password is sealed by who writes it
	Created  time.Time
}

// Trunks returns all, by name.
func (s *Store) Trunks(ctx context.Context) ([]Trunk, error) {
	rows, err := s.db.Query(ctx, "SELECT name, settings, created_at FROM trunk ORDER BY name")
	if err != nil {
		return nil, fmt.Errorf("read trunks: %w", err)
	}
	defer rows.Close()
	var list []Trunk
	for rows.Next() {
		var t Trunk
		var created int64
		if err := rows.Scan(&t.Name, &t.Settings, &created); err != nil {
			return nil, fmt.Errorf("read trunks: %w", err)
		}
		t.Created = instant(created)
		list = append(list, t)
	}
	return list, rows.Err()
}

// PutTrunk writes the trunk whole, except for when it was made; one without settings is removed.
func (s *Store) PutTrunk(ctx context.Context, t Trunk) error {
	query, args := `INSERT INTO trunk (name, settings, created_at) VALUES ($1, $2, $3)
		ON CONFLICT (name) DO UPDATE SET settings = excluded.settings`,
		[]any{t.Name, t.Settings, millis(t.Created)}
	if t.Settings == "" {
		query, args = "DELETE FROM trunk WHERE name = $1", []any{t.Name}
	}
	if _, err := s.db.Exec(ctx, query, args...); err != nil {
		return fmt.Errorf("save trunk: %w", err)
	}
	return nil
}

// ReplaceTrunk writes settings in place of those that were read, unless somebody has stored others meanwhile. An error that may pass is
// ErrAway.
func (s *Store) ReplaceTrunk(ctx context.Context, name, was, settings string) error {
	if _, err := s.db.Exec(ctx, "UPDATE trunk SET settings = $1 WHERE name = $2 AND settings = $3", settings, name, was); isAway(err) {
		return fmt.Errorf("save trunk: %w: %w", ErrAway, err)
	} else if err != nil {
		return fmt.Errorf("save trunk: %w", err)
	}
	return nil
}
