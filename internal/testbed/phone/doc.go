// Package phone is a scripted SIP phone for tests and demonstrations. It dials over UDP or TCP, talks G.711 in real
// time, presses keys (RFC 4733), can be put on hold, hangs up, is hung up on, and keeps a recording of everything it
// heard in which a gap is as long as it was.
//
//	p, err := phone.Open(phone.Config{Local: netip.MustParseAddr("127.0.0.20")})
//	defer p.Close()
//	call, err := p.Dial(ctx, "127.0.0.1:5060", "1000")
//	call.Play(speech)                 // 8 kHz PCM, sent in real time; 16 kHz for WideBand
//	call.Press("42#")
//	err = call.Hangup(ctx)
//	heard := call.Heard()             // 8 kHz PCM since the answer
//
// It answers calls of the bridge, too:
//
//	call, err := p.AwaitCall(ctx)
//	err = call.Ring()                 // or Progress, Refuse
//	err = call.PickUp(ctx)
//
// It shares no code with the bridge: what both believe was written twice.
package phone
