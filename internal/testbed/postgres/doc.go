// Package postgres runs a private PostgreSQL cluster for tests and for the demonstration.
//
// It is a test double of a production database only in its durability: the server is the real one from
// /usr/lib/postgresql/*/bin, with fsync off, in a directory of its own, reachable only through a Unix socket in that
// directory. Nothing of it is meant to survive.
//
//	cluster := postgres.New(t)               // stopped and removed when the test ends
//	uri, err := cluster.CreateDatabase("a")  // postgres://postgres@/a?host=…
//
// initdb and postgres refuse to run as root; a root caller therefore starts them as the user postgres (or nobody).
// The server dies with the process that started it, however that process ends; a directory left behind by a killed
// process is removed by the next Start.
package postgres
