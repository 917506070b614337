// Package member is a scripted member of a Matrix room who takes part in full-mesh group calls (MSC3401) as hydrogen and
// matrix-js-sdk do: same messages, same timers, same intolerance. It is the bridge's opposite in tests and shares no
// code with it, so that the two cannot be wrong in the same way.
//
//	alice, err := member.New(ctx, member.Config{URL: hs.URL(), UserID: …, Kind: member.Hydrogen})
//	defer alice.Close()
//	err = alice.JoinCall(ctx, room)
//	alice.Says(voice)                                  // 48 kHz mono, looped
//	err = alice.AwaitConnected(ctx, ghost)
//	pcm := alice.Listen(ghost, 5*time.Second)          // what she heard of the ghost
//	complaints := alice.Complaints()                   // what would have broken her client
//
// Where a real client silently drops, freezes or gives up, the member does the same and also writes a complaint. A test
// that ends without complaints has proved more than one that ends with sound.
//
// What it knows: the call events, olm by mautrix's OlmMachine, pion for media, Opus. What it does not: megolm, video
// pictures (a camera is only an m-line), screen sharing, the user interface.
package member
