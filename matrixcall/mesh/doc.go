// Package mesh decides who must be connected to whom in a full-mesh group call (MSC3401), and in what order signals
// count. It knows the signalling rules and timers, and the quirks of the clients that exist (hydrogen, matrix-js-sdk).
// It does not know Matrix requests, encryption, JSON or WebRTC: it asks for them by effects and hears of their results
// by events.
//
// Its caller owns one State and one timer per ghost and conference:
//
//	state := mesh.New(config)
//	for {
//		timer.Reset(time.Until(state.Deadline()))
//		select {
//		case <-timer.C:
//			event = mesh.Tick{}
//		case event = <-inbox: // mesh.Join first; then room state, signals, results
//		}
//		state, effects = mesh.Step(state, time.Now(), event)
//		perform(effects) // in order, without blocking; results go to the inbox
//	}
//
// The mesh is a reconciler. Wanted are the valid member devices that are not ours. After every event, peers that are
// not wanted any more are closed and missing ones are opened, by us if our id is lower (MSC3401), else by them.
//
//	wanted      member state: device listed, not expired, user joined
//	peer        one wanted device in one session
//	link        one attempt to reach a peer: one call_id, one PeerConnection (Conn)
//
// Rules that are not in any MSC but decide whether browsers and we understand each other are marked "rule" in
// comments; the main ones:
//
//   - a call_id's seq starts at 0 and counts only the six types that hydrogen knows; a hole freezes hydrogen's queue;
//   - incoming seq is only a hint: hydrogen counts per connection, matrix-js-sdk per call, others not at all;
//   - all candidates travel inside the descriptions: both clients throw away candidates that precede the answer;
//   - the identical invite is repeated until something comes back: hydrogen loses it while its own join is under way;
//   - the identical answer is repeated until it is selected or the connection stands, as long as nothing followed it: Synapse may
//     wake a client's poll too early, and the answer then lies there until the next message;
//   - leaving is hangup and member state, both: each client believes only one of them.
package mesh
