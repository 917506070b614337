// Package db holds what survives a restart: legs, memberships, ghosts, routes, seen transactions and the call history.
//
// It knows SQL and nothing else of the bridge: rows are plain structs. A [Leg] carries all that a new process
// needs in order to take over a phone's dialog (RFC 3261 §12) and its media. PostgreSQL 13 or newer is the
// database for production, SQLite the embedded default. Both speak the same SQL here; the migrations in
// db/migrations are applied in one transaction at start, and a database that is newer than the program is refused
// ([ErrNewer]).
//
// Ownership. Each row that names a live leg carries an owner (one process run) and an epoch, which counts adoptions. Only
// the owner may act on a leg, and only while it has a [Lease]: every write names owner and epoch, and is [ErrFenced] when
// another process has adopted the row.
//
//	store, err := db.Open(ctx, "sqlite:trunkline.db", log)
//	lease, err := store.Acquire(ctx, db.LeaseOptions{Run: run, Node: host})
//	legs, err := lease.Adopt(ctx)         // at start, and then now and again: what a dead process left behind
//	…
//	err = store.PutLeg(ctx, leg)          // before the 200 OK leaves
//	err = lease.Renew(ctx)                // several times in a LeaseLife
//	err = store.DeleteLeg(ctx, leg.ID, hold, "phone hung up", time.Now())
package db
