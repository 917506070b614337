package db

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
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

	UsageDay string        // on which it counts in the table usage, see [Store.Reserve]; "" = it does not
	Reserved time.Duration // the longest it may last, as counted there
}

// legColumns names the columns in the order of legFields.
var legColumns = strings.Fields(`id owner epoch phase created_at answered_at updated_at
	direction trunk dialled caller caller_name dialled_by room_id ghost muted prompt_step digits end_by
	call_id local_tag dialog options state usage_day reserved`)

var (
	columnList = strings.Join(legColumns, ", ")
	selectLeg  = "SELECT " + columnList + " FROM leg"
	upsertLeg  = makeUpsert("leg", "id", legColumns)
)

// upserts are statements that write a row, for each database.
type upserts map[dbutil.Dialect]string

// makeUpsert writes the statements: insert while the owner has a lease, or update what the owner has in this epoch. The key is a list
// of columns. The last parameter is the write's number: unless that is unnumbered, it does nothing if a later one was there before it.
// In PostgreSQL it waits for a removal that is under way: what it saw of that when it began may be out of date when it writes.
func makeUpsert(table, key string, columns []string) upserts {
	var values, sets []string
	var owner string
	for i, column := range columns {
		value := "$" + strconv.Itoa(i+1)
		values = append(values, value)
		if column == "owner" {
			owner = value
		}
		if !slices.Contains(strings.Split(key, ", "), column) {
			sets = append(sets, column+" = excluded."+column)
		}
	}
	number := "CAST($" + strconv.Itoa(len(columns)+1) + " AS BIGINT)"
	statement := fmt.Sprintf(`WITH removed AS (SELECT version FROM removal WHERE removal.owner = %[4]s {lock})
		INSERT INTO %[1]s (%[2]s, version) SELECT %[3]s, %[7]s WHERE EXISTS (SELECT 1 FROM lease WHERE lease.owner = %[4]s)
			AND (%[7]s = 0 OR NOT EXISTS (SELECT 1 FROM removed WHERE removed.version > %[7]s))
		ON CONFLICT (%[5]s) DO UPDATE SET %[6]s, version = CASE excluded.version WHEN 0 THEN %[1]s.version ELSE excluded.version END
			WHERE %[1]s.owner = excluded.owner AND %[1]s.epoch = excluded.epoch AND (excluded.version = 0 OR %[1]s.version <= excluded.version)`,
		table, strings.Join(columns, ", "), strings.Join(values, ", "), owner, key, strings.Join(sets, ", "), number)
	return upserts{
		dbutil.Postgres: strings.Replace(statement, "{lock}", "FOR SHARE", 1),
		dbutil.SQLite:   strings.Replace(statement, "{lock}", "", 1), // which writes one at a time
	}
}

func legFields(l *Leg) []any {
	return []any{
		l.ID, l.Owner, l.Epoch, l.Phase, millis(l.Created), millis(l.Answered), millis(l.Updated),
		l.Direction, l.Trunk, l.Dialled, l.Caller, l.CallerName, l.DialledBy, l.RoomID, l.Ghost, l.Muted, l.PromptStep,
		l.Digits, millis(l.EndBy), l.CallID, l.LocalTag, l.Dialog,
		document(l.Options), document(l.State), l.UsageDay, l.Reserved.Milliseconds(),
	}
}

// document is a JSON column's text: an empty object says nothing.
func document(text string) string { return cmp.Or(text, "{}") }

func scanLeg(row dbutil.Scannable) (Leg, error) {
	var l Leg
	var created, answered, updated, endBy, reserved int64
	err := row.Scan(&l.ID, &l.Owner, &l.Epoch, &l.Phase, &created, &answered, &updated,
		&l.Direction, &l.Trunk, &l.Dialled, &l.Caller, &l.CallerName, &l.DialledBy, &l.RoomID, &l.Ghost, &l.Muted,
		&l.PromptStep, &l.Digits, &endBy, &l.CallID, &l.LocalTag, &l.Dialog,
		&l.Options, &l.State, &l.UsageDay, &reserved)
	if err != nil {
		return Leg{}, fmt.Errorf("read leg: %w", err)
	}
	l.Created, l.Answered, l.Updated, l.EndBy = instant(created), instant(answered), instant(updated), instant(endBy)
	l.Reserved = time.Duration(reserved) * time.Millisecond
	return l, nil
}

// Adopted tells whether the leg was begun by another process than its owner.
func (l *Leg) Adopted() bool { return l.Epoch > 1 }

func (l *Leg) hold() Hold { return Hold{l.Owner, l.Epoch} }

// unnumbered is the number of a write that may be done whenever it comes.
const unnumbered = 0

// PutLeg writes the leg whole. It returns [ErrFenced] when the owner has no lease, or the row another owner or epoch.
func (s *Store) PutLeg(ctx context.Context, l Leg) error { return s.putLeg(ctx, l, unnumbered) }

// putLeg is PutLeg, unless the owner has done a later write of the leg, or removed something, since: then the leg is as it should be.
// [Store.Reserve] holds rows of usage when it writes, so its put must stay unnumbered: a numbered one waits for removals, which wait for
// those rows.
func (s *Store) putLeg(ctx context.Context, l Leg, number int64) error {
	result, err := s.db.Exec(ctx, upsertLeg[s.db.Dialect], append(legFields(&l), number)...)
	return s.done(ctx, result, err, l.hold(), "leg", "id = $3", l.ID)
}

// DeleteLeg removes the leg, settles what it has used, and writes its line of history in one transaction. Deleting twice is not an error. A leg that
// has another owner or epoch stays, which is [ErrFenced].
func (s *Store) DeleteLeg(ctx context.Context, id string, by Hold, cause string, now time.Time) error {
	return s.deleteLeg(ctx, id, by, cause, now, unnumbered)
}

// deleteLeg is DeleteLeg after which no put of the owner with a smaller number is done any more.
func (s *Store) deleteLeg(ctx context.Context, id string, by Hold, cause string, now time.Time, number int64) error {
	return s.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		if err := s.noEarlier(ctx, by, number); err != nil {
			return err
		}
		_, err := s.db.Exec(ctx, `INSERT INTO history
			(leg_id, direction, trunk, caller, dialled, room_id, ghost, created_at, answered_at, ended_at, cause)
			SELECT id, direction, trunk, caller, dialled, room_id, ghost, created_at, answered_at, $4, $5
			FROM leg WHERE id = $1 AND owner = $2 AND epoch = $3 ON CONFLICT (leg_id) DO NOTHING`,
			id, by.Owner, by.Epoch, millis(now), cause)
		if err != nil {
			return fmt.Errorf("write history of leg %s: %w", id, err)
		}
		if err := s.settle(ctx, id, by, now); err != nil {
			return err
		}
		return s.remove(ctx, by, "leg", "id = $3", id)
	})
}

// Hold names who may write a row: its owner, and since which adoption.
type Hold struct {
	Owner string
	Epoch int64
}

// noEarlier lets no put of the owner with a smaller number be done any more. It is the first thing of a transaction that removes: puts
// wait for its end.
func (s *Store) noEarlier(ctx context.Context, by Hold, number int64) error {
	if number == unnumbered {
		return nil
	}
	_, err := s.db.Exec(ctx, `INSERT INTO removal (owner, version) VALUES ($1, $2)
		ON CONFLICT (owner) DO UPDATE SET version = excluded.version WHERE removal.version < excluded.version`, by.Owner, number)
	if err != nil {
		return fmt.Errorf("note a removal: %w", err)
	}
	return nil
}

// remove deletes a row that by holds. None is no error, one that another holds is.
func (s *Store) remove(ctx context.Context, by Hold, table, where string, keys ...any) error {
	args := append([]any{by.Owner, by.Epoch}, keys...)
	_, err := s.db.Exec(ctx, "DELETE FROM "+table+" WHERE owner = $1 AND epoch = $2 AND "+where, args...)
	if err == nil {
		err = s.heldByOther(ctx, by, table, where, keys...)
	}
	if err != nil {
		return fmt.Errorf("delete %s %v: %w", table, keys, err)
	}
	return nil
}

// done says how a put went. One that changed nothing was not allowed to, which is ErrFenced, or came too late to matter.
func (s *Store) done(ctx context.Context, result sql.Result, err error, by Hold, table, where string, keys ...any) error {
	err = affected(result, err, "write")
	if errors.Is(err, ErrFenced) {
		err = s.whileLeased(ctx, by.Owner, func(ctx context.Context) error { return s.heldByOther(ctx, by, table, where, keys...) })
	}
	if err != nil {
		return fmt.Errorf("save %s %v: %w", table, keys, err)
	}
	return nil
}

// heldByOther is ErrFenced if another than by holds the row.
func (s *Store) heldByOther(ctx context.Context, by Hold, table, where string, keys ...any) error {
	var rows int
	args := append([]any{by.Owner, by.Epoch}, keys...)
	err := s.db.QueryRow(ctx, "SELECT COUNT(*) FROM "+table+" WHERE (owner <> $1 OR epoch <> $2) AND "+where, args...).Scan(&rows)
	if err == nil && rows > 0 {
		err = ErrFenced
	}
	return err
}

// Legs returns the live legs of owner, oldest first.
func (s *Store) Legs(ctx context.Context, owner string) ([]Leg, error) {
	rows, err := s.db.Query(ctx, selectLeg+" WHERE owner = $1 ORDER BY created_at, id", owner)
	if err != nil {
		return nil, fmt.Errorf("read legs: %w", err)
	}
	return dbutil.ConvertRowFn[Leg](scanLeg).NewRowIter(rows, nil).AsList()
}
