package db

import (
	"context"
	"fmt"
	"strings"
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

// membershipColumns names the columns in the order in which they are written and read.
var membershipColumns = strings.Fields(`ghost room_id conf_id device_id session_id created_by_us call_event expires_at leg_id
	owner epoch`)

var (
	selectMembership = "SELECT " + strings.Join(membershipColumns, ", ") + " FROM membership WHERE owner = $1 ORDER BY room_id, ghost"
	upsertMembership = makeUpsert("membership", "ghost, room_id", membershipColumns)
)

// PutMembership writes the membership, before its state event is sent. It returns [ErrFenced] when the owner has no lease,
// or the row another owner or epoch.
func (s *Store) PutMembership(ctx context.Context, m Membership) error {
	return s.putMembership(ctx, m, unnumbered)
}

// putMembership is to PutMembership as putLeg is to PutLeg.
func (s *Store) putMembership(ctx context.Context, m Membership, number int64) error {
	result, err := s.db.Exec(ctx, upsertMembership[s.db.Dialect], m.Ghost, m.RoomID, m.ConfID, m.DeviceID, m.SessionID, m.CreatedByUs,
		m.CallEvent, millis(m.Expires), m.LegID, m.Owner, m.Epoch, number)
	return s.done(ctx, result, err, Hold{m.Owner, m.Epoch}, "membership", "ghost = $3 AND room_id = $4", m.Ghost, m.RoomID)
}

// DeleteMembership forgets it, after the state event is gone. Deleting twice is not an error; the row of another owner or
// epoch stays, which is [ErrFenced].
func (s *Store) DeleteMembership(ctx context.Context, ghost, room string, by Hold) error {
	return s.deleteMembership(ctx, ghost, room, by, unnumbered)
}

// deleteMembership is to DeleteMembership as deleteLeg is to DeleteLeg.
func (s *Store) deleteMembership(ctx context.Context, ghost, room string, by Hold, number int64) error {
	return s.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		if err := s.noEarlier(ctx, by, number); err != nil {
			return err
		}
		return s.remove(ctx, by, "membership", "ghost = $3 AND room_id = $4", ghost, room)
	})
}

// Memberships returns what owner has, by room.
func (s *Store) Memberships(ctx context.Context, owner string) ([]Membership, error) {
	rows, err := s.db.Query(ctx, selectMembership, owner)
	if err != nil {
		return nil, fmt.Errorf("read memberships: %w", err)
	}
	return dbutil.ConvertRowFn[Membership](scanMembership).NewRowIter(rows, nil).AsList()
}

// GhostsElsewhere returns the ghosts that are in calls for other owners than this one.
func (s *Store) GhostsElsewhere(ctx context.Context, owner string) ([]string, error) {
	rows, err := s.db.Query(ctx, "SELECT DISTINCT ghost FROM membership WHERE owner <> $1", owner)
	if err != nil {
		return nil, fmt.Errorf("read ghosts of others: %w", err)
	}
	return dbutil.ConvertRowFn[string](dbutil.ScanSingleColumn[string]).NewRowIter(rows, nil).AsList()
}

func scanMembership(row dbutil.Scannable) (Membership, error) {
	var m Membership
	var expires int64
	err := row.Scan(&m.Ghost, &m.RoomID, &m.ConfID, &m.DeviceID, &m.SessionID, &m.CreatedByUs, &m.CallEvent, &expires,
		&m.LegID, &m.Owner, &m.Epoch)
	m.Expires = instant(expires)
	return m, err
}
