// Package db holds what survives a restart: legs, memberships, ghosts, routes, seen transactions and the call history.
//
// It knows SQL and nothing else of the bridge: rows are plain structs. A [Leg] carries all that a new process
// needs in order to take over a phone's dialog (RFC 3261 §12) and its media. PostgreSQL 13 or newer is the
// database for production, SQLite the embedded default. Both speak the same SQL here; the migrations in
// db/migrations are applied in one transaction at start, and a database that is newer than the program is refused
// ([ErrNewer]).
//
// Ownership. Each row that names a live leg carries an owner (one process run) and an epoch. Only the owner may act
// on a leg: writing a row of somebody else returns [ErrNotOwner], deleting it does nothing.
//
//	store, err := db.Open(ctx, "sqlite:trunkline.db", log)
//	…
//	err = store.PutLeg(ctx, leg)          // before the 200 OK leaves
//	legs, err := store.Adopt(ctx, run)    // at start: what a dead process left behind
//	err = store.DeleteLeg(ctx, leg.ID, run, "phone hung up", time.Now())
package db
