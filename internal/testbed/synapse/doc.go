// Package synapse installs and runs a private Synapse, the real homeserver, for tests and for the demonstration.
//
//	server := synapse.New(t, synapse.Config{Registrations: []string{"registration.yaml"}})
//	alice, err := server.Register(t.Context(), "alice")
//
// Install makes a Python virtual environment with a pinned matrix-synapse in the user's cache directory, once; later
// runs reuse it. Start writes a complete homeserver.yaml (loopback only, no federation, no rate limits), on SQLite or
// on a PostgreSQL cluster of package postgres, and waits until the server answers. Stop, Kill, Pause and Restart are
// the homeserver's bad days. The server dies with the process that started it.
package synapse
