// Package transcode is the mixing desk of one conference.
//
// It knows jitter buffers, G.711, G.722, Opus, mixing, tones and levels. It does not know sockets, SIP, Matrix, time or
// goroutines: packets and the time come in as arguments, packets go out through a [Sink]. A [Desk] is therefore a
// plain value that belongs to one goroutine at a time; whoever owns it takes a lock or, better, owns it alone.
//
//	phone A --G.711--> [jitter buffer]--+                 +--(sum − A)--G.711--> phone A
//	phone B --G.711--> [jitter buffer]--+--> sum (int32) -+--(sum − B)--G.711--> phone B
//	                                    |
//	device x --Opus--> [copy via A]-+   |        A alone --Opus--> the peers of ghost A
//	                   [copy via B]-+---+        B alone --Opus--> the peers of ghost B
//	                    one is decoded
//
// Every device of the room sends the same microphone to each of our ghosts. The desk decodes one copy of each device
// and keeps the others as fail-over, at the price of copying their packets. Phones of one conference hear each other
// through the desk; no device is ever sent another device's sound, because in a full mesh it has that already. A phone
// is encoded once; the caller hands the packet to every peer of its ghost.
//
// Sound is at 8 kHz. While a phone with a wide-band codec (G.722, Opus) is there, the desk works at 16 kHz, and the
// others' sound goes through a filter between the two: a phone with G.711 costs the same as ever in a room without.
// Media time is counted in ticks of 1/8000 s either way.
//
// What a desk does about a bad network: packets are put in order and held for 10 to 120 ms, as their arrivals ask for;
// what is lost is recovered from forward error correction or concealed, at most three frames, then faded; drift and a
// changing delay are answered by cutting or stretching sound, in silence if possible; a source that starts its numbers,
// its clock or its SSRC anew is followed, a second source beside it is not. What it does not do: echo cancellation,
// gain control, noise reduction.
//
// What it never does: decode a pause, encode a silent phone, allocate in a frame, or fail on a packet. What is wrong is
// counted ([StreamStats]).
//
// The caller's loop, one per worker, on absolute deadlines:
//
//	for deadline := start; ; deadline = deadline.Add(transcode.FrameDuration) {
//		sleepUntil(deadline)
//		mu.Lock()
//		desk.Tick(deadline, sink) // sink.ToPhone for every phone, sink.ToPeers while a phone is heard
//		mu.Unlock()
//	}
//
// and, whenever a packet arrives, under the same lock:
//
//	desk.FromPhone(phone, pkt, time.Now())
//	desk.FromPeer(device, ghostOfPhone, pkt, time.Now())
//
// A loop that was held up calls Tick once for each missed deadline; arrivals and ticks must come from the same clock.
// Receiver reports go to [Phone.PeerLoss], tones to [Phone.Play], recorded words to [Phone.Say].
//
// Followed: RFC 3550 (RTP), RFC 3551 (G.711 and G.722 payloads), RFC 3389 (comfort noise from phones), RFC 6716 and RFC
// 7587 (Opus), RFC 7160 (streams that change their clock), RFC 6464 (levels), ITU-T G.711 and its Appendix I
// (concealment), ITU-T G.722 (bit-exact at 64 kb/s), ITU-T E.180 and ETSI TS 102 971 (tones),
// ITU-T Q.23 and Q.24 (digits).
package transcode
