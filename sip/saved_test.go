package sip

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const holdOffer = `v=0
o=- 1 2 IN IP4 192.0.2.20
s=-
c=IN IP4 192.0.2.20
t=0 0
m=audio 4000 RTP/AVP 0 101
a=rtpmap:101 telephone-event/8000
a=sendonly
`

// A phone that changes its call hears the answer when the change is saved, and not much later if the database is slow.
func TestAnswerToAChangeWaitsForItsSave(t *testing.T) {
	const limit = 200 * time.Millisecond
	for _, method := range []string{"INVITE", "UPDATE"} {
		for name, c := range map[string]struct {
			takes time.Duration // the save
			want  string
		}{
			"saved at once":    {0, "1s 200 OK"},
			"saved in time":    {150 * time.Millisecond, "1.15s 200 OK"},
			"saved much later": {time.Minute, "1.2s 200 OK"},
		} {
			t.Run(method+" "+name, func(t *testing.T) {
				slow := func(c *Config) { c.SaveFirst = limit }
				inBubble(t, slow, answerAtOnce, func(b *bubble) {
					b.saves = func() { time.Sleep(c.takes) }
					b.peer.send(invite())
					b.peer.send(b.peer.within("ACK", "k1", 1, ""))
					time.Sleep(time.Second - time.Since(b.began))
					hold := b.peer.within(method, "h1", 2, holdOffer)
					b.peer.forget()
					b.peer.send(hold)
					time.Sleep(300 * time.Millisecond)
					if method == "INVITE" {
						b.peer.send(b.peer.within("ACK", "k2", 2, "")) // else the answer comes again
					}
					got := slices.DeleteFunc(b.peer.lines(), func(l string) bool { return l == "1.2s 100 Trying" })
					if !slices.Equal(got, []string{c.want}) {
						t.Errorf("the phone heard %v, want %q", got, c.want)
					}
					if d := b.saved(); d.Media.Direction.Sends() && c.takes < limit {
						t.Errorf("the phone was answered before its hold was saved: %v", d.Media.Direction)
					}
					time.Sleep(time.Minute)
				})
			})
		}
	}
}

// RFC 3261 §14.2: a re-INVITE that is refused changes nothing, and its own CANCEL refuses it while its change is being saved.
func TestReinviteThatIsCancelledChangesNothing(t *testing.T) {
	change := func(c *Config) {
		c.SaveFirst, c.Limits.MediaTimeout, c.Trunks[0].TrustIdentity = 200*time.Millisecond, -1, true
	}
	inBubble(t, change, answerAtOnce, func(b *bubble) {
		far := b.soundAt(peerRTP.String())
		b.peer.send(invite("Supported: timer", "Session-Expires: 600"))
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		call := <-b.calls
		before := call.Dialog()
		b.saves = func() { time.Sleep(150 * time.Millisecond) }
		hold := b.peer.within("INVITE", "h1", 2, holdOffer, "Contact: <sip:elsewhere@192.0.2.20:5060>", "Supported: timer", "Session-Expires: 300",
			"From: \"Bob\" <sip:201@192.0.2.20>;tag=a1", "P-Asserted-Identity: \"Carol\" <sip:202@192.0.2.20>")
		cancel := b.peer.within("CANCEL", "h1", 2, "")
		b.peer.forget()
		b.peer.send(hold)
		time.Sleep(50 * time.Millisecond)
		b.peer.send(cancel)
		time.Sleep(time.Second)
		got := slices.DeleteFunc(b.peer.lines(), func(l string) bool {
			return strings.HasSuffix(l, "487 Request Terminated") && l != "50ms 487 Request Terminated"
		})
		slices.Sort(got)
		wantLines(t, "peer received", slices.Compact(got), []string{"50ms 200 OK", "50ms 487 Request Terminated"})
		now := call.Dialog()
		if now.Media.Direction != before.Media.Direction || now.Media.RemoteSDP != before.Media.RemoteSDP || now.Media.SDPVersion != before.Media.SDPVersion ||
			now.RemoteTarget != before.RemoteTarget || now.RemoteURI != before.RemoteURI || now.Info.Caller != before.Info.Caller || now.Session != before.Session {
			t.Errorf("the call is %+v, before %+v", now, before)
		}
		if saved := b.saved(); saved.Media.RemoteSDP != before.Media.RemoteSDP || saved.Info.Caller != before.Info.Caller {
			t.Errorf("its row has %+v", saved)
		}
		if !far.hears(call.Media()) {
			t.Error("the phone is still on hold")
		}
		events := slices.DeleteFunc(b.said(), func(e string) bool {
			return strings.HasSuffix(e, "DialogChanged") || strings.HasSuffix(e, "MediaChanged")
		})
		if said := strings.Join(events, ", "); said != "0s Acked, 0s IdentityChanged, 0s Hold, 150ms Hold, 150ms IdentityChanged" {
			t.Errorf("said %s", said)
		}
		b.peer.send(request("ACK", bridgeURI, headerIn(b.peer.last(), "To"), "h1", 2, ""))
	})
}
