// Package sip is the phone world: it listens for SIP over UDP, TCP and TLS, keeps the dialogs of calls, answers offers and
// carries RTP to and from phones. It knows nothing of rooms, codecs' insides or databases; its caller decides what
// happens to a call, and saves its [Dialog].
//
// From sipgo it takes the parser, the transports and the transactions. Everything above is written here: a dialog of
// sipgo cannot be rebuilt after a restart (ADR 3).
//
// # A call
//
// Each call has one goroutine, [Call.run], the only one that touches its state. Requests of the phone and wishes of the
// application are put into its inbox; they never wait for each other's locks.
//
//	 INVITE                       Accept:               SendAnswer:
//	   |                          codec chosen,         200, again at
//	   v          Ring: 180       ports bound           0.5, 1.5, 3.5 … s
//	proceeding ---------------> accepted ------------> answered -------ACK------> confirmed
//	   |  ^  |    Progress: 183,   |                      |                       |      |
//	   |  |  |    ports bound      |                      |                       |      |
//	   |  +--+ again every 50 s    |                      | no ACK for 32 s       |      | BYE of the phone
//	   |                           |                      | or Hangup + ACK       |      | (200)
//	   | CANCEL (487), Reject,     |                      v                       |      |
//	   | Hangup (480), BYE (487)   |                    ending <-----Hangup-------+      |
//	   |                           |                      | our BYE answered,            |
//	   +-----------+---------------+                      | or 32 s                      |
//	               v                                      v                              v
//	             ended <----------------------------------+------------------------------+
//
// A call of ours ([Stack.Dial]) is dialling from its INVITE to the first 2xx, which is acknowledged there and then; CANCEL
// leaves only after a response, and an answer that crosses it is hung up:
//
//	dialling --2xx: ACK--> confirmed          dialling --Hangup: CANCEL--> dialling --487--> ended
//	    |  401, 407, 3xx by policy, 503 with another target: INVITE again   |
//	    +--other refusals, 32 s without a response---> ended                +--2xx: ACK, BYE--> ending
//
// A re-INVITE or UPDATE of the phone in confirmed is answered there and then (RFC 3264 directions, o= version), its 200
// is repeated like the first. So are an UPDATE before that, and a PRACK, once offer and answer of the INVITE have arrived for sure;
// what our own INVITE has led to by then is kept for each far end (see fork). The caller's loop:
//
//	func (b *Bridge) Invite(c *sip.Call) {      // must not block
//		c.OnEvent(func(e sip.Event) { inbox.Put(e) }) // only puts
//	}
//	…                                           // later, from any goroutine
//	dialog, media, err := c.Accept()            // 488 and 503 are already sent when err is not nil
//	store.Save(dialog)                          // before the phone can know that it is connected
//	media.OnPacket(func(p *rtp.Packet) { … })
//	c.SendAnswer()
//	…
//	c.Hangup(sip.CauseNormal)                   // then Ended comes, once, last
//
// Ended does not come when Run's context ends: calls are then dropped without a word, and may be resumed.
//
// # What is kept out
//
//	network -> guard (allow-list, size, framing, mandatory headers, white space, a trial parse) -> sipgo -> checkRequest -> Call
//
// Unknown addresses are never answered. Over TCP the guard cuts the stream into messages itself, so that a Content-Length
// costs no memory. What the trunks send wrongly is refused as RFC 3261 §8.2 and RFC 4475 say, and counted ([Stats]).
//
// # Media
//
// RTP ports are random and rest after use. The source lock lets nobody but the phone be heard, and sends to nobody else
// (see sourceLock). Keys come as RFC 4733 events or INFO and become [Digit] events, once per press; [Media.SendDigit]
// sends them the same two ways. RTCP reports go out every 5 s.
//
// Sessions are timed (RFC 4028) when the phone knows how, and provisional responses with something to hear in them travel
// reliably (RFC 3262) when it can.
//
// A phone may be sent elsewhere ([Call.SendTransfer]) and may wish to be ([TransferWanted]), by REFER (RFC 3515); another phone
// may take its place (Replaces, RFC 3891): the [Call] and its media go on, its [Dialog] is another one.
//
// RFCs: 3261, 3262, 3263, 3264, 3403, 3515, 3608, 3891, 3892, 3711, 4028, 4568, 5806, 7044, 6337, 8866, 3581, 6026, 3311, 3326, 3325, 4916, 3550, 3551, 4733, 5761, 6086, 4475, 5118.
package sip
