// Package bridge is the application: it owns legs and conferences, routes calls, performs what package leg decides, and
// clears up after a process that died. It is the only package that knows the phone world (sip), the room world
// (matrixcall), the mixing desk (transcode) and the database (db) at once.
//
//	phone --INVITE--> sip.Stack --> Bridge.Invite --> actor (one goroutine a leg) --> leg.Step
//	                                                    |  performs effects in order; results come back as events
//	                                                    +--> sip.Call, matrixcall.Membership, db.Store
//	                                                    +--> studio: the desk of the room's conference
//
// Sound does not pass through actors. Readers of sockets and tracks put packets into the inbox of the worker that owns
// the conference; the worker's one loop, on absolute deadlines, feeds the desks, mixes, and writes packets out.
package bridge
