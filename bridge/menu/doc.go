// Package menu decides what one phone hears and what its keys do: the PIN before the conference, the lobby, and the keys
// during the call. It is pure: it reads no clock, blocks on nothing and fails at nothing.
//
//	       Began           # or pause            verdict: right             Admitted
//	Idle --------> Asking ------------> Checking ---------------> Lobby -------------> InCall
//	   \             ^                   |    \ wrong                 \                  | key "leave"
//	    \            | delay, growing    |     v                       \ Declined        v
//	     \           +-------------------|-- Refused                    +------------> Leaving --> Over
//	      \ no PIN                       | wrong too often, no verdict                   ^
//	       +--> Lobby or InCall          +-----------------------------------------------+
//
// What it does not know: rooms, PINs, SIP, and how a name becomes sound. Names are those of Asterisk's sound sets
// (conf-getpin …), so that any such set fits; "number/12" is the number said in words, and "hold" the sound of waiting.
//
// A PIN is checked by the shell, which answers [CheckPIN] with [PINRight], [PINWrong] or [PINFailed]. An unknown room must be
// asked for a PIN like any other and answered with PINWrong: then the caller can't tell one from the other, not by the
// words and not by the time, because a verdict is told only at whole multiples of Rules.Verdict after the last digit.
//
// Keys are secrets. What was typed is masked in every format (%v, %#v, JSON), so neither logs nor traces nor the
// database can hold it; after a restart [Resumed] asks anew. [Save] stands before what follows from a state that must
// survive. A shell is this loop:
//
//	for ev := range inbox {
//		state, effects = menu.Step(state, time.Now(), ev)
//		for _, e := range effects {
//			perform(e) // results come back as events
//		}
//		timer.Reset(time.Until(state.Deadline)) // zero = none
//	}
package menu
