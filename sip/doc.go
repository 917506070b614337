// Package sip is the phone world: it listens for SIP over UDP and TCP, keeps the dialogs of calls, answers offers and
// carries RTP to and from phones. It knows nothing of rooms; its caller decides what to do with a call.
package sip
