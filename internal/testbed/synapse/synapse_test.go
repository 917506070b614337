package synapse_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/postgres"
	"trunkline/internal/testbed/synapse"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const registration = `id: bridge
url: null
as_token: as-secret
hs_token: hs-secret
sender_localpart: random-sender
rate_limited: false
namespaces: {users: [{regex: '^@_sip_.*:lab\.local$', exclusive: true}]}
`

func TestUserSurvivesRestartAndPauseOnSQLite(t *testing.T) {
	server := synapse.New(t, synapse.Config{})
	survives(t, server)
}

func TestUserSurvivesRestartAndPauseOnPostgres(t *testing.T) {
	server := synapse.New(t, synapse.Config{Postgres: postgres.New(t)})
	survives(t, server)
}

func survives(t *testing.T, server *synapse.Server) {
	t.Helper()
	ctx := t.Context()
	alice, err := server.Register(ctx, "alice")
	if err != nil {
		t.Fatal(err)
	}
	if want := id.UserID("@alice:lab.local"); alice.UserID != want {
		t.Errorf("user id %s, want %s", alice.UserID, want)
	}
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	whoami(t, server, alice)
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := server.Register(short, "bob"); err == nil {
		t.Error("the paused server answers")
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	whoami(t, server, alice)
}

func TestGhostActsThroughRegistration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "registration.yaml")
	if err := os.WriteFile(file, []byte(registration), 0o600); err != nil {
		t.Fatal(err)
	}
	server := synapse.New(t, synapse.Config{Registrations: []string{file}})
	client, err := mautrix.NewClient(server.URL(), "", "as-secret")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Client.CloseIdleConnections()
	resp, _, err := client.Register(t.Context(), &mautrix.ReqRegister[any]{
		Username: "_sip_1", Type: mautrix.AuthTypeAppservice, InhibitLogin: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := id.UserID("@_sip_1:lab.local"); resp.UserID != want {
		t.Errorf("ghost %s, want %s", resp.UserID, want)
	}
}

func TestStartSaysWhyItFailed(t *testing.T) {
	synapse.Wanted(t)
	file := filepath.Join(t.TempDir(), "registration.yaml")
	if err := os.WriteFile(file, []byte("id: nothing-else\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := synapse.Start(t.Context(), synapse.Config{Registrations: []string{file}})
	if err == nil {
		server.Close()
		t.Fatal("Synapse started with a broken registration")
	}
	if !strings.Contains(err.Error(), "as_token") {
		t.Errorf("the error does not name the missing as_token: %v", err)
	}
}

func whoami(t *testing.T, server *synapse.Server, user synapse.User) {
	t.Helper()
	client, err := mautrix.NewClient(server.URL(), user.UserID, user.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Client.CloseIdleConnections()
	resp, err := client.Whoami(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if resp.DeviceID != user.DeviceID {
		t.Errorf("whoami says device %s, want %s", resp.DeviceID, user.DeviceID)
	}
}
