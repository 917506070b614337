// Package leg decides what one phone in one conference does next. It is pure: it reads no clock, blocks on nothing and
// fails at nothing. The shell around it (package bridge) feeds events, performs effects in order, and sets one timer.
//
//	      Invited          room joined, company, phone up
//	Idle ---------> Setup ------------------------------> Talking --any end--> Ending --both sides gone--> Ended
//	                 |  |                                    ^                   ^  ^
//	                 |  +--room joined, nobody--> Ringing ---+ first one came    |  |
//	                 |                              |                            |  |
//	                 | refused, took too long       | declined, nobody came      |  | cancelled, no tone for it
//	                 +------------------------------+----> Refusing ---tone over-+  |
//	                 +------------------------------+-------------------------------+
//
// A phone that is asked first, for a PIN or in a lobby, is answered before the room (asking.go); the menu decides:
//
//	Idle --Invited--> Answering --saved--> Asking --Passed--> Entering --room joined--> Talking
//	                                         |                   |
//	                                         +--Dismissed--------+--refused, took too long--> Refusing or Ending
//
// A phone that the room wants called is dialled by us (dialling.go):
//
//	      Ordered                     room joined, row saved: INVITE; phone answered
//	Idle ---------> Dialling ---------------------------------------------------------> Talking
//	                   |  ^
//	                   |  +--LineRefused, Rerouted: the same over the next trunk
//	                   +--phone refuses or is silent, room hangs up or empties, shutdown--> Ending
//
// After a restart a leg whose phone was answered begins with Resumed, and is Resuming until its ghost is back in the call:
//
//	Idle --Resumed--> Resuming --room joined--> Talking          Idle --Interrupted--> Ending
//	Idle --ResumedAsking--> Asking
//
// A phone that wants to be in another room (REFER) is handed over to a new leg there:
//
//	Talking --HandedOver--> Ending          Idle --TakesOver--> Entering --room joined--> Talking
//
// What the leg knows are facts, not products of states: is the phone ringing, up or gone; is the room being joined,
// joined or left; does media run. Tearing down is one path for hang-up, failure, shutdown and time-out. Every phase that
// waits has a deadline, and [Forget] is the last effect, exactly once.
//
// Save, then act: in each list of effects [Save] stands before what the outside world can see, and every effect may be
// performed twice. A shell is this loop:
//
//	for ev := range inbox {
//		state, effects = leg.Step(state, time.Now(), ev)
//		for _, e := range effects {
//			perform(e) // results come back as events
//		}
//		timer.Reset(time.Until(state.Deadline)) // zero = none
//	}
package leg
