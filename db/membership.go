package db

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"go.mau.fi/util/dbutil"
)

// Membership is one ghost's entry in a room's call (MSC3401 m.call.member), kept so that a new process can remove it.
type Membership struct {
	Ghost, RoomID, ConfID string
	DeviceID, SessionID   string
	CreatedByUs           bool   // the call event is ours to terminate
	CallEvent             string // the event that began the call, once known
	Expires               time.Time
	LegID                 string
	Owner                 string
	Epoch                 int64
}

const selectMembership = `SELECT ghost, room_id, conf_id, device_id, session_id, created_by_us, call_event, expires_at, leg_id, owner,
	epoch FROM membership WHERE owner = $1 ORDER BY room_id, ghost`

// PutMembership writes the membership, before its state event is sent. It returns [ErrNotOwner] when another process has
// adopted the row.
func (s *Store) PutMembership(ctx context.Context, m Membership) error {
	result, err := s.db.Exec(ctx, `INSERT INTO membership
		(ghost, room_id, conf_id, device_id, session_id, created_by_us, call_event, expires_at, leg_id, owner, epoch)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		ON CONFLICT (ghost, room_id) DO UPDATE SET conf_id = excluded.conf_id, device_id = excluded.device_id,
			session_id = excluded.session_id, created_by_us = excluded.created_by_us,
			call_event = excluded.call_event, expires_at = excluded.expires_at, leg_id = excluded.leg_id, epoch = excluded.epoch
		WHERE membership.owner = excluded.owner`,
		m.Ghost, m.RoomID, m.ConfID, m.DeviceID, m.SessionID, m.CreatedByUs, m.CallEvent, millis(m.Expires), m.LegID, m.Owner, m.Epoch)
	if err != nil {
		return fmt.Errorf("save membership of %s in %s: %w", m.Ghost, m.RoomID, err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return fmt.Errorf("save membership of %s in %s: %w", m.Ghost, m.RoomID, cmp.Or(err, ErrNotOwner))
	}
	return nil
}

// DeleteMembership forgets it, after the state event is gone. The row of another owner stays, which is no error.
func (s *Store) DeleteMembership(ctx context.Context, ghost, room, owner string) error {
	_, err := s.db.Exec(ctx, "DELETE FROM membership WHERE ghost = $1 AND room_id = $2 AND owner = $3", ghost, room, owner)
	if err != nil {
		return fmt.Errorf("delete membership of %s in %s: %w", ghost, room, err)
	}
	return nil
}

// Memberships returns what owner has, by room.
func (s *Store) Memberships(ctx context.Context, owner string) ([]Membership, error) {
	rows, err := s.db.Query(ctx, selectMembership, owner)
	if err != nil {
		return nil, fmt.Errorf("read memberships: %w", err)
	}
	return dbutil.ConvertRowFn[Membership](scanMembership).NewRowIter(rows, nil).AsList()
}

func scanMembership(row dbutil.Scannable) (Membership, error) {
	var m Membership
	var expires int64
	err := row.Scan(&m.Ghost, &m.RoomID, &m.ConfID, &m.DeviceID, &m.SessionID, &m.CreatedByUs, &m.CallEvent, &expires,
		&m.LegID, &m.Owner, &m.Epoch)
	m.Expires = instant(expires)
	return m, err
}
