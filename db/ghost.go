package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"maunium.net/go/mautrix/id"
)

// GhostDevice returns the device of a ghost, "" when the ghost has none yet.
func (s *Store) GhostDevice(ctx context.Context, user id.UserID) (id.DeviceID, error) {
	var device id.DeviceID
	err := s.db.QueryRow(ctx, "SELECT device_id FROM ghost WHERE user_id = $1", user).Scan(&device)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("read device of %s: %w", user, err)
	}
	return device, nil
}

// SaveGhostDevice records the ghost's device. A new device begins without a sync token.
func (s *Store) SaveGhostDevice(ctx context.Context, user id.UserID, device id.DeviceID) error {
	_, err := s.db.Exec(ctx, `INSERT INTO ghost (user_id, device_id) VALUES ($1, $2)
		ON CONFLICT (user_id) DO UPDATE SET device_id = excluded.device_id, sync_token = ''`, user, device)
	if err != nil {
		return fmt.Errorf("save device of %s: %w", user, err)
	}
	return nil
}

// SyncToken returns where the ghost's /sync goes on, "" = from the beginning.
func (s *Store) SyncToken(ctx context.Context, user id.UserID) (string, error) {
	var token string
	err := s.db.QueryRow(ctx, "SELECT sync_token FROM ghost WHERE user_id = $1", user).Scan(&token)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("read sync token of %s: %w", user, err)
	}
	return token, nil
}

// SaveSyncToken is called after everything before the token has been processed: at least once, never lost.
func (s *Store) SaveSyncToken(ctx context.Context, user id.UserID, token string) error {
	if _, err := s.db.Exec(ctx, "UPDATE ghost SET sync_token = $2 WHERE user_id = $1", user, token); err != nil {
		return fmt.Errorf("save sync token of %s: %w", user, err)
	}
	return nil
}
