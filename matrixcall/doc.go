// Package matrixcall is the room world of the bridge: an application service
// whose ghosts join a room's full-mesh group call (MSC3401) and speak Opus in
// it.
//
// It knows the homeserver, ghosts and their devices and keys, room state about
// calls, to-device signalling and PeerConnections. It does not know phones,
// numbers, routes or databases: whoever uses it brings a Store, a database for
// olm, and functions that hear what happens.
//
// A program uses it like this:
//
//	service, err := matrixcall.New(config, store, cryptoDB, options, log)
//	go http.Serve(listener, service.HTTPHandler()) // before Start: the homeserver is asked to call back
//	err = service.Start(ctx)
//	defer service.Close()
//
//	ghost, err := service.Ghost(ctx, "_sip_15550100", "+1 555 0100")
//	room, err := service.ResolveRoom(ctx, "#team:example.org")
//	err = ghost.EnterRoom(ctx, room)
//	err = service.CheckRights(ctx, ghost, room)
//	membership, err := ghost.JoinCall(ctx, room, matrixcall.CallOptions{OnEvent: put, OnPacket: play})
//	membership.WriteRTP(packet) // every 20 ms
//	err = membership.Leave(ctx, "user_hangup")
//
// # How messages travel
//
// Room events come by application service transaction: stored as seen,
// answered at once, handled in order per room. Transactions can be lost with
// the homeserver, so the state of a room with a live call is read again when a
// ghost joins, after a gap and every minute.
//
// To-device messages come by sliding sync or, where there is none, by /sync,
// one poller per ghost that is in a call, never by transaction: Synapse loses messages there as soon as one client
// signals two ghosts at once. They leave through one gate that lets a single
// sendToDevice request pass at a time, because parallel ones reach some
// clients late. Devices with keys get olm, others plain messages if the
// configuration allows.
//
// Followed are the application service and client-server APIs of the Matrix
// specification v1.17, MSC3401 (group calls), MSC3077 (streams), MSC2746
// (version 1 calls), MSC4190 and MSC4326 (devices of ghosts), MSC4147 (device
// keys inside olm messages) and MSC4186 (sliding sync).
package matrixcall
