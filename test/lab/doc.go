// Package lab runs real clients on one machine: a real Synapse on a private PostgreSQL, the bridge's own binary,
// hydrogen and matrix-js-sdk in headless Chromium, and baresip as the phone. Nothing in it is a stand-in.
//
//	l, err := lab.Start(ctx, lab.Options{Bridge: true})
//	defer l.Close()
//	alice, err := l.NewUser(ctx, "alice")
//	room, err := l.NewRoom(ctx, lab.RoomOptions{Owner: alice})
//	page, err := l.OpenClient(ctx, lab.Hydrogen, alice, l.Voice(0))
//	call, err := page.CreateCall(ctx, room.ID)
//	err = page.Join(ctx, room.ID, call)
//	phone, err := l.NewPhone(ctx, "desk", l.Voice(1))
//	err = phone.Dial(ctx, room.Number)
//	heard, err := page.Heard(ctx, since)     // PCM with the time of its first sample
//	match := heard[0].Match(phone.Saying())  // correlation, delay, level
//
// The lab knows how clients are driven and how sound is judged. It does not know what is right: test/e2e does.
//
// Everything listens on loopback, on ports that were free, in one temporary directory. The lab owns every process it
// starts: each has its own process group and dies with the lab, however the lab ends.
package lab
