package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"go.mau.fi/util/dbutil"
	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // driver "sqlite"
)

// Errors that callers compare with errors.Is.
var (
	ErrNewer  = errors.New("the database was written by a newer version of the program")
	ErrFenced = errors.New("another process has taken over")
	ErrTaken  = errors.New("another process runs here")
	ErrScheme = errors.New("database address must be postgres://user:password@host/name or sqlite:PATH")
)

// Pool sizes. SQLite has one writer, so one connection avoids SQLITE_BUSY altogether.
const (
	maxConnections   = 20
	maxIdle          = 5
	idleTime         = 5 * time.Minute
	sqliteParameters = "?_pragma=foreign_keys(1)&_pragma=journal_mode(wal)&_pragma=synchronous(normal)" +
		"&_pragma=busy_timeout(5000)&_txlock=immediate"
)

// Store is the bridge's database. It is safe for use by several goroutines.
type Store struct {
	db   *dbutil.Database
	path string // of the SQLite file
	now  string // see clockOf
	log  *slog.Logger
}

// Open connects to address, either "postgres://user:pass@host/name" or "sqlite:path/to/file", and migrates it.
func Open(ctx context.Context, address string, log *slog.Logger) (*Store, error) {
	raw, dialect, err := connect(address)
	if err != nil {
		return nil, err
	}
	wrapped, err := dbutil.NewWithDB(raw, dialect)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wrap database: %w", err), raw.Close())
	}
	s := &Store{db: wrapped, path: sqlitePath(address), now: clockOf(wrapped.Dialect), log: log}
	if err := raw.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("reach database: %w", err), raw.Close())
	}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("migrate database: %w", err), raw.Close())
	}
	return s, nil
}

// OpenPatiently is Open that waits for a PostgreSQL server that does not answer yet, and says so. Errors that waiting does
// not cure come back at once.
func OpenPatiently(ctx context.Context, address string, log *slog.Logger) (s *Store, err error) {
	err = patiently(ctx, sqlitePath(address) == "", log, func(attempt context.Context) error {
		s, err = Open(attempt, address, log)
		return err
	})
	return s, err
}

// Patiently asks the database something that must be answered for the process to start: while it is away, f is called again. Errors
// that waiting does not cure come back at once.
func (s *Store) Patiently(ctx context.Context, f func(context.Context) error) error {
	return patiently(ctx, s.path == "", s.log, f)
}

// openPatience is how long one attempt of patiently may take, migrations included.
const openPatience = time.Minute

// patiently asks once if the database is not a server.
func patiently(ctx context.Context, server bool, log *slog.Logger, f func(context.Context) error) error {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		attempt, cancel := context.WithTimeout(ctx, openPatience)
		err := f(attempt)
		cancel()
		if !server || !isAway(err) {
			return err
		}
		log.Warn("waiting for the database", "err", err, "again_in", pause)
		if sleep(ctx, pause) != nil {
			return err
		}
	}
}

// Check tells whether Open would find a database it can use, and changes nothing: no schema is made or migrated. Of a
// SQLite file that does not exist yet it looks only whether its folder is there and may be written to.
func Check(ctx context.Context, address string) error {
	if path := sqlitePath(address); path != "" {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if err := unix.Access(filepath.Dir(path), unix.W_OK|unix.X_OK); err != nil {
				return fmt.Errorf("make a file in %s: %w", filepath.Dir(path), err)
			}
			return nil
		}
	}
	raw, dialect, err := connect(address)
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := raw.PingContext(ctx); err != nil {
		return fmt.Errorf("reach database: %w", err)
	}
	wrapped, err := dbutil.NewWithDB(raw, dialect)
	if err != nil {
		return fmt.Errorf("wrap database: %w", err)
	}
	return (&Store{db: wrapped}).checkVersion(ctx)
}

// CountTrunks counts the stored trunks of a database that [Check] found well, and changes nothing; one without a schema has none.
func CountTrunks(ctx context.Context, address string) (n int) {
	if path := sqlitePath(address); path != "" {
		if _, err := os.Stat(path); err != nil {
			return 0
		}
	}
	raw, _, err := connect(address)
	if err != nil {
		return 0
	}
	defer raw.Close()
	if err := raw.QueryRowContext(ctx, "SELECT COUNT(*) FROM trunk").Scan(&n); err != nil {
		return 0 // an older schema
	}
	return n
}

func connect(address string) (*sql.DB, string, error) {
	switch scheme, _, _ := strings.Cut(address, ":"); scheme {
	case "postgres", "postgresql":
		options, err := pgx.ParseConfig(address)
		if err != nil {
			return nil, "", fmt.Errorf("open database: %w", err)
		}
		raw := stdlib.OpenDB(*options, stdlib.OptionAfterConnect(limitAbsence))
		raw.SetMaxOpenConns(maxConnections)
		raw.SetMaxIdleConns(maxIdle)
		raw.SetConnMaxIdleTime(idleTime)
		return raw, "pgx", nil
	case "sqlite":
		if err := private(sqlitePath(address)); err != nil {
			return nil, "", err
		}
		raw, err := sql.Open("sqlite", "file:"+sqlitePath(address)+sqliteParameters)
		if err != nil {
			return nil, "", fmt.Errorf("open database: %w", err)
		}
		raw.SetMaxOpenConns(1)
		return raw, "sqlite", nil
	}
	return nil, "", ErrScheme
}

// limitAbsence lets the server give up a client that froze, lost its power or its network, with all that it holds: a row
// locked in the middle of a transaction would keep others from adopting it, or from counting a call. The limits are set when
// the connection is there, for a pooler between may refuse to begin with them.
func limitAbsence(ctx context.Context, conn *pgx.Conn) error {
	const limits = `SET idle_in_transaction_session_timeout = '5s'; SET tcp_user_timeout = '20s';
		SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 2`
	if _, err := conn.PgConn().Exec(ctx, limits).ReadAll(); err != nil {
		return fmt.Errorf("limit a client's absence: %w", err)
	}
	return nil
}

// private makes a SQLite file that only its owner may read: it holds the ghosts' keys. The library would make it
// readable to all; one that exists stays as its admin left it.
func private(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make database: %w", err)
	}
	return file.Close()
}

// sqlitePath is the file of a SQLite address, "" for another one.
func sqlitePath(address string) string {
	path, ok := strings.CutPrefix(address, "sqlite:")
	if !ok {
		return ""
	}
	return strings.TrimPrefix(path, "//")
}

// Shared returns the connection for the olm stores, which live in the same database.
func (s *Store) Shared() *dbutil.Database { return s.db }

// Ping tells whether the database answers.
func (s *Store) Ping(ctx context.Context) error { return s.db.RawDB.PingContext(ctx) }

// Close waits for running queries and closes the connections.
func (s *Store) Close() error { return s.db.Close() }

// millis stores instants as integers: the same in both databases, and the unit of every Matrix time stamp.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func instant(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
