package db

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.mau.fi/util/dbutil"
)

// Leg is one phone in one conference, with all that another process needs to take the call over.
type Leg struct {
	ID    string
	Owner string // the process run that may act on it
	Epoch int64  // counts changes of owner
	Phase string

	Created, Answered, Updated time.Time

	Direction  string // "in" or "out"
	Trunk      string
	Dialled    string
	Caller     string
	CallerName string
	DialledBy  string // Matrix user who placed an outbound call
	RoomID     string
	Ghost      string
	Muted      bool
	PromptStep string
	Digits     string
	EndBy      time.Time

	// CallID and LocalTag name the dialog (RFC 3261 §12). Dialog is all of it, signalling and media, as JSON: it is written
	// and read whole, by one package only, and what that package must remember grows without a migration.
	CallID   string
	LocalTag string
	Dialog   string

	Options string // of its route, JSON
	State   string // what the leg's machine knows, JSON
}

// legColumns names the columns in the order of legFields.
var legColumns = strings.Fields(`id owner epoch phase created_at answered_at updated_at
	direction trunk dialled caller caller_name dialled_by room_id ghost muted prompt_step digits end_by
	call_id local_tag dialog options state`)

var (
	selectLeg = "SELECT " + strings.Join(legColumns, ", ") + " FROM leg"
	upsertLeg = makeUpsert("leg", legColumns)
)

// makeUpsert writes one statement for both databases: insert, or update when the caller owns the row.
func makeUpsert(table string, columns []string) string {
	var values, sets []string
	for i, column := range columns {
		values = append(values, "$"+strconv.Itoa(i+1))
		if column != "id" {
			sets = append(sets, column+" = excluded."+column)
		}
	}
	return fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s) ON CONFLICT (id) DO UPDATE SET %s WHERE %s.owner = excluded.owner",
		table, strings.Join(columns, ", "), strings.Join(values, ", "), strings.Join(sets, ", "), table)
}

func legFields(l *Leg) []any {
	return []any{
		l.ID, l.Owner, l.Epoch, l.Phase, millis(l.Created), millis(l.Answered), millis(l.Updated),
		l.Direction, l.Trunk, l.Dialled, l.Caller, l.CallerName, l.DialledBy, l.RoomID, l.Ghost, l.Muted, l.PromptStep,
		l.Digits, millis(l.EndBy), l.CallID, l.LocalTag, l.Dialog,
		document(l.Options), document(l.State),
	}
}

// document is a JSON column's text: an empty object says nothing.
func document(text string) string { return cmp.Or(text, "{}") }

func scanLeg(row dbutil.Scannable) (Leg, error) {
	var l Leg
	var created, answered, updated, endBy int64
	err := row.Scan(&l.ID, &l.Owner, &l.Epoch, &l.Phase, &created, &answered, &updated,
		&l.Direction, &l.Trunk, &l.Dialled, &l.Caller, &l.CallerName, &l.DialledBy, &l.RoomID, &l.Ghost, &l.Muted,
		&l.PromptStep, &l.Digits, &endBy, &l.CallID, &l.LocalTag, &l.Dialog,
		&l.Options, &l.State)
	if err != nil {
		return Leg{}, fmt.Errorf("read leg: %w", err)
	}
	l.Created, l.Answered, l.Updated, l.EndBy = instant(created), instant(answered), instant(updated), instant(endBy)
	return l, nil
}

// PutLeg writes the leg whole. It returns [ErrNotOwner] when another process has adopted the row.
func (s *Store) PutLeg(ctx context.Context, l Leg) error {
	result, err := s.db.Exec(ctx, upsertLeg, legFields(&l)...)
	if err != nil {
		return fmt.Errorf("save leg %s: %w", l.ID, err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return fmt.Errorf("save leg %s: %w", l.ID, cmp.Or(err, ErrNotOwner))
	}
	return nil
}

// DeleteLeg removes the leg and writes its line of history in one transaction. Deleting twice is not an error, nor is the
// leg of another owner, which stays.
func (s *Store) DeleteLeg(ctx context.Context, id, owner, cause string, now time.Time) error {
	return s.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		_, err := s.db.Exec(ctx, `INSERT INTO history
			(leg_id, direction, trunk, caller, dialled, room_id, ghost, created_at, answered_at, ended_at, cause)
			SELECT id, direction, trunk, caller, dialled, room_id, ghost, created_at, answered_at, $3, $4
			FROM leg WHERE id = $1 AND owner = $2 ON CONFLICT (leg_id) DO NOTHING`, id, owner, millis(now), cause)
		if err != nil {
			return fmt.Errorf("write history of leg %s: %w", id, err)
		}
		if _, err := s.db.Exec(ctx, "DELETE FROM leg WHERE id = $1 AND owner = $2", id, owner); err != nil {
			return fmt.Errorf("delete leg %s: %w", id, err)
		}
		return nil
	})
}

// Adopt makes owner the owner of every leg and membership that belongs to somebody else, and returns those legs.
// It is called once at start; two processes on one database are kept apart by leases, which are not built yet.
func (s *Store) Adopt(ctx context.Context, owner string) ([]Leg, error) {
	var legs []Leg
	err := s.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		for _, table := range []string{"leg", "membership"} {
			_, err := s.db.Exec(ctx, "UPDATE "+table+" SET owner = $1, epoch = epoch + 1 WHERE owner <> $1", owner)
			if err != nil {
				return fmt.Errorf("adopt rows of %s: %w", table, err)
			}
		}
		var err error
		legs, err = s.Legs(ctx, owner)
		return err
	})
	return legs, err
}

// Legs returns the live legs of owner, oldest first.
func (s *Store) Legs(ctx context.Context, owner string) ([]Leg, error) {
	rows, err := s.db.Query(ctx, selectLeg+" WHERE owner = $1 ORDER BY created_at, id", owner)
	if err != nil {
		return nil, fmt.Errorf("read legs: %w", err)
	}
	return dbutil.ConvertRowFn[Leg](scanLeg).NewRowIter(rows, nil).AsList()
}
