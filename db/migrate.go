package db

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migration is one file "NNNN_name.sql"; its number is the version it leads to.
type migration struct {
	version int
	name    string
	sql     string
}

// migrate brings the schema to this program's version: all missing steps in one transaction, so that a crash half-way
// leaves the old schema. On PostgreSQL an advisory lock keeps two starting processes apart.
func (s *Store) migrate(ctx context.Context) error {
	steps, err := readMigrations()
	if err != nil {
		return err
	}
	return s.migrateTo(ctx, steps)
}

// migrateTo does those of steps that the schema lacks.
func (s *Store) migrateTo(ctx context.Context, steps []migration) error {
	return s.db.DoTxn(ctx, nil, func(ctx context.Context) error {
		if s.db.Dialect.String() == "postgres" {
			if _, err := s.db.Exec(ctx, "SELECT pg_advisory_xact_lock(7248765)"); err != nil {
				return fmt.Errorf("lock schema: %w", err)
			}
		}
		have, err := s.schemaVersion(ctx)
		if err != nil {
			return err
		}
		if err := newer(have, steps); err != nil {
			return err
		}
		for _, step := range steps {
			if step.version <= have {
				continue
			}
			if err := s.apply(ctx, step); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkVersion compares the schema with this program's without touching it.
func (s *Store) checkVersion(ctx context.Context) error {
	steps, err := readMigrations()
	if err != nil {
		return err
	}
	if exists, err := s.db.TableExists(ctx, "schema_version"); err != nil || !exists {
		return err
	}
	have, err := s.readVersion(ctx)
	if err != nil {
		return err
	}
	return newer(have, steps)
}

// newer is an error if the database is newer than the program.
func newer(have int, steps []migration) error {
	if newest := steps[len(steps)-1].version; have > newest {
		return fmt.Errorf("%w: it has schema %d, this program knows up to %d", ErrNewer, have, newest)
	}
	return nil
}

func (s *Store) schemaVersion(ctx context.Context) (int, error) {
	if _, err := s.db.Exec(ctx, "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)"); err != nil {
		return 0, fmt.Errorf("create version table: %w", err)
	}
	return s.readVersion(ctx)
}

func (s *Store) readVersion(ctx context.Context) (int, error) {
	var version int
	err := s.db.QueryRow(ctx, "SELECT COALESCE(MAX(version), 0) FROM schema_version").Scan(&version)
	if err != nil {
		return 0, fmt.Errorf("read schema version: %w", err)
	}
	return version, nil
}

func (s *Store) apply(ctx context.Context, step migration) error {
	for _, statement := range strings.Split(step.sql, ";\n") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := s.db.Exec(ctx, statement); err != nil {
			return fmt.Errorf("apply %s: %w", step.name, err)
		}
	}
	if _, err := s.db.Exec(ctx, "INSERT INTO schema_version (version) VALUES ($1)", step.version); err != nil {
		return fmt.Errorf("record %s: %w", step.name, err)
	}
	s.log.Info("database migrated", "step", step.name)
	return nil
}

func readMigrations() ([]migration, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var steps []migration
	for i, path := range names {
		name := strings.TrimPrefix(path, "migrations/")
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != i+1 {
			return nil, fmt.Errorf("migration %s: files must be numbered 0001, 0002, … without gaps", name)
		}
		text, err := migrations.ReadFile(path)
		if err != nil {
			return nil, err
		}
		steps = append(steps, migration{version: version, name: name, sql: string(text)})
	}
	return steps, nil
}
