package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Setting returns what was stored under a name, "" for nothing.
func (s *Store) Setting(ctx context.Context, name string) (string, error) {
	var value string
	err := s.db.QueryRow(ctx, "SELECT value FROM setting WHERE name = $1", name).Scan(&value)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("read setting %s: %w", name, err)
	}
	return value, nil
}

// PutSetting stores a value that was set then under a name, "" too, unless one is there that was set later.
func (s *Store) PutSetting(ctx context.Context, name, value string, set time.Time) error {
	_, err := s.db.Exec(ctx, `INSERT INTO setting (name, value, updated_at) VALUES ($1, $2, $3)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at
			WHERE setting.updated_at <= excluded.updated_at`, name, value, millis(set))
	if err != nil {
		return fmt.Errorf("save setting %s: %w", name, err)
	}
	return nil
}

// SetNow is PutSetting of what is set at this moment: it replaces what a clock that was ahead has dated later, too.
func (s *Store) SetNow(ctx context.Context, name, value string, now time.Time) error {
	_, err := s.db.Exec(ctx, `INSERT INTO setting (name, value, updated_at) VALUES ($1, $2, $3)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated_at = CASE
			WHEN setting.updated_at < excluded.updated_at THEN excluded.updated_at ELSE setting.updated_at + 1 END`, name, value, millis(now))
	if err != nil {
		return fmt.Errorf("save setting %s: %w", name, err)
	}
	return nil
}
