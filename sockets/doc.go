// Package sockets lets sockets outlive the process that bound them, so that what comes while none runs waits in the kernel for
// the next one: a BYE is read late instead of never, and nobody is told that the port is closed.
//
// Somebody beside the process holds a copy of each socket: systemd's file descriptor store, or a [Keeper], which speaks the
// same protocol (sd_notify(3) with FDSTORE, FDSTOREREMOVE, FDNAME, FDPOLL, READY, BARRIER; sd_listen_fds(3) with LISTEN_FDS and
// LISTEN_FDNAMES). The process sees a [Store], and asks it for sockets by address; it does not matter to it whether one is new.
//
//	store := sockets.FromEnvironment(log)
//	conn, err := store.ListenUDP(addr)    // the one that was kept, or a new one, which is kept from now on
//	…
//	store.Release(conn.LocalAddr())       // it is closed for good, not for the next process
//	store.Sweep()                         // everything is bound: what nobody asked for is of an older configuration
//	store.Ready()
//
// It knows nothing of what the sockets carry. Connections that were accepted are not kept: of a half-read stream, or a TLS
// session, the next process could make nothing.
package sockets
