package db

import (
	"context"
	"fmt"
	"time"
)

// Ended is one line of the call history.
type Ended struct {
	LegID, Direction, Trunk, Caller, Dialled, RoomID, Ghost string
	Created, Answered, Ended                                time.Time
	Cause                                                   string
}

// History returns the newest ended legs, at most limit.
func (s *Store) History(ctx context.Context, limit int) ([]Ended, error) {
	rows, err := s.db.Query(ctx, `SELECT leg_id, direction, trunk, caller, dialled, room_id, ghost, created_at,
		answered_at, ended_at, cause FROM history ORDER BY ended_at DESC, leg_id LIMIT $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	defer rows.Close()
	var list []Ended
	for rows.Next() {
		var e Ended
		var created, answered, ended int64
		err := rows.Scan(&e.LegID, &e.Direction, &e.Trunk, &e.Caller, &e.Dialled, &e.RoomID, &e.Ghost,
			&created, &answered, &ended, &e.Cause)
		if err != nil {
			return nil, fmt.Errorf("read history: %w", err)
		}
		e.Created, e.Answered, e.Ended = instant(created), instant(answered), instant(ended)
		list = append(list, e)
	}
	return list, rows.Err()
}
