package postgres_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"trunkline/internal/testbed/postgres"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRowsSurviveKillAndStart(t *testing.T) {
	cluster := postgres.New(t)
	uri, err := cluster.CreateDatabase("calls")
	if err != nil {
		t.Fatal(err)
	}
	exec(t, uri, "CREATE TABLE leg (id text); INSERT INTO leg VALUES ('a')")
	if err := cluster.Kill(); err != nil {
		t.Fatal(err)
	}
	if conn, err := pgx.Connect(t.Context(), uri); err == nil {
		conn.Close(t.Context())
		t.Error("the killed server still takes connections")
	}
	if err := cluster.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := exec(t, uri, "SELECT 1 FROM pg_tables WHERE tablename = 'leg'"); got != 1 {
		t.Errorf("after kill and start: %d tables leg, want 1", got)
	}
}

func exec(t *testing.T, uri, sql string) int64 {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, uri)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	tag, err := conn.Exec(ctx, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return tag.RowsAffected()
}
