package sip

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/rtp"
)

// successor is another phone, which wants the peer's call.
const successorOffer = `v=0
o=- 9 1 IN IP4 192.0.2.21
s=-
c=IN IP4 192.0.2.21
t=0 0
m=audio 5000 RTP/AVP 8 100
a=rtpmap:100 telephone-event/8000
`

func (b *bubble) successor() *rawPeer {
	p := b.newPeer(netip.MustParseAddrPort("192.0.2.21:5060"))
	b.Cleanup(p.close)
	return p
}

// wantsPlace is the successor's INVITE.
func wantsPlace(replaces string, edit ...string) string {
	return request("INVITE", bridgeURI, bridgeTo, "s1", 1, successorOffer, append([]string{
		"Via: SIP/2.0/UDP 192.0.2.21:5060;branch=z9hG4bKs1;rport", "From: \"Bob\" <sip:2002@192.0.2.21>;tag=s", "Call-ID: call-2",
		"Contact: <sip:2002@192.0.2.21:5060>", "Replaces: " + replaces,
	}, edit...)...)
}

// its is a request of the successor inside its dialog.
func (p *rawPeer) its(method, branch string, cseq int) string {
	return p.within(method, branch, cseq, "", "Via: SIP/2.0/UDP 192.0.2.21:5060;branch=z9hG4bK"+branch+";rport",
		"From: \"Bob\" <sip:2002@192.0.2.21>;tag=s", "Call-ID: call-2", "Contact: <sip:2002@192.0.2.21:5060>")
}

// place is what the successor must know of a call of the peer.
func place(c *Call) string {
	d := c.Dialog()
	return fmt.Sprintf("%s;to-tag=%s;from-tag=%s", d.CallID, d.LocalTag, d.RemoteTag)
}

func TestAnotherPhoneTakesTheCallOver(t *testing.T) {
	trusted := func(c *Config) { c.Trunks[0].TrustIdentity, c.Limits.MediaTimeout = true, -1 }
	inBubble(t, trusted, answerAtOnce, func(b *bubble) {
		c := b.up()
		next := b.successor()
		media := b.world.listen(netip.MustParseAddrPort("192.0.2.21:5000"))
		defer media.Close()
		b.peer.forget()
		time.Sleep(time.Second)
		next.send(wantsPlace(place(c), "Require: replaces"))
		if answer := next.last(); !strings.HasPrefix(answer, "SIP/2.0 200 OK") || !strings.Contains(answer, " RTP/AVP 8 100\r\n") {
			t.Fatalf("the successor got %q", answer)
		}
		bye := b.peer.last()
		if !strings.HasPrefix(bye, "BYE ") || headerIn(bye, "Call-ID") != "call-1" || !strings.HasSuffix(headerIn(bye, "To"), ";tag=a1") {
			t.Fatalf("the phone that was replaced got %q", bye)
		}
		b.peer.send(replyTo(bye, "200 OK"))
		if d := c.Dialog(); d.CallID != "call-2" || d.RemoteTag != "s" || d.Confirmed || d.Remote.Addr().String() != "192.0.2.21" {
			t.Errorf("dialog before the ACK: %+v", d)
		}
		next.send(next.its("ACK", "k2", 1))
		next.send(next.its("ACK", "k2", 1))
		if d := c.Dialog(); !d.Confirmed || d.Media.Format.Codec != "PCMA" || d.Media.Format.DTMF != 100 {
			t.Errorf("dialog after the ACK: %+v", d)
		}
		_ = c.Media().WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 8, SSRC: 5}})
		if len(media.in) != 1 {
			t.Errorf("the successor got %d packets, want 1", len(media.in))
		}
		next.send(next.its("OPTIONS", "o2", 2))
		if !strings.HasPrefix(next.last(), "SIP/2.0 200 ") {
			t.Errorf("the successor's dialog: %q", next.last())
		}
		b.peer.send(request("BYE", "sip:trunkline@192.0.2.1:5060", headerIn(bye, "From"), "y1", 9, "")) // crossed ours
		if !strings.HasPrefix(b.peer.last(), "SIP/2.0 481 ") {
			t.Errorf("the old dialog: %q", b.peer.last())
		}
		next.send(next.its("BYE", "b2", 3))
		<-c.Done()
		wantLines(t, "application heard", b.said(), []string{
			"0s Acked", "1s MediaChanged", "1s DialogChanged", "1s IdentityChanged", "1s Acked", "1s Bye", "1s Ended",
		})
		if e := b.event(3).(IdentityChanged); e.Caller.Number != "2002" || e.Caller.DisplayName != "Bob" {
			t.Errorf("who is on the phone now: %+v", e.Caller)
		}
		if s := b.stack.Stats(); s.Replaced != 1 || s.Invites != 1 || s.Calls != 0 || s.RTPPorts != 0 {
			t.Errorf("stats = %+v", s)
		}
		b.stack.mu.Lock()
		defer b.stack.mu.Unlock()
		if len(b.stack.byInvite) != 0 {
			t.Errorf("%d INVITEs are remembered", len(b.stack.byInvite))
		}
	})
}

// A process that dies before the row names the successor leaves the call with the phone that had it; one that dies after that has the
// next one tell that phone to go.
func TestPhoneWhosePlaceIsTakenIsToldAfterTheSave(t *testing.T) {
	const takes = 100 * time.Millisecond
	var saved Dialog
	inBubble(t, func(c *Config) { c.SaveFirst, c.Limits.MediaTimeout = 2*takes, -1 }, answerAtOnce, func(b *bubble) {
		c := b.up()
		next := b.successor()
		b.peer.forget()
		b.saves = func() { time.Sleep(takes) }
		next.send(wantsPlace(place(c)))
		time.Sleep(takes - time.Millisecond)
		synctest.Wait()
		if told, answered := b.peer.lines(), next.lines(); len(told) > 0 || len(answered) > 0 {
			t.Fatalf("before the save one phone got %v, the other one %v", told, answered)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		saved = b.saved()
		bye := b.peer.last()
		if !strings.HasPrefix(bye, "BYE ") || !strings.HasPrefix(next.last(), "SIP/2.0 200 ") {
			t.Fatalf("after the save one phone got %q, the other one %q", bye, next.last())
		}
		if d := saved.Displaced; saved.CallID != "call-2" || d == nil || d.CallID != "call-1" || cseqOf(t, bye) > d.LocalCSeq || d.Media.LocalSDP != "" {
			t.Fatalf("the row says %+v, displaced %+v", saved, d)
		}
		b.peer.send(replyTo(bye, "200 OK"))
		if d := c.Dialog().Displaced; d != nil {
			t.Errorf("displaced although that was answered: %+v", d)
		}
		next.send(next.its("ACK", "k2", 1))
		next.send(next.its("BYE", "b2", 2))
		<-c.Done()
	})
	inBubble(t, nil, nil, func(b *bubble) { // another process
		c, err := b.stack.Resume(saved)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		bye := b.peer.last()
		if !strings.HasPrefix(bye, "BYE ") || headerIn(bye, "Call-ID") != "call-1" || cseqOf(t, bye) <= saved.Displaced.LocalCSeq {
			t.Fatalf("the phone that was replaced got %q", bye)
		}
		b.peer.send(replyTo(bye, "481 Call/Transaction Does Not Exist"))
		if d := c.Dialog(); d.CallID != "call-2" || d.Displaced != nil {
			t.Errorf("the call that goes on: %+v", d)
		}
		c.Abandon()
	})
}

func TestAnotherPhoneTakesOverWhereItRings(t *testing.T) {
	inBubble(t, outbound, answerAtOnce, func(b *bubble) {
		next := b.successor()
		c, inv := b.dials()
		b.peer.answers(inv, "180 Ringing", "b1", "")
		d := c.Dialog()
		early := fmt.Sprintf("%s;to-tag=%s;from-tag=b1;early-only", d.CallID, d.LocalTag)
		next.send(wantsPlace(strings.Replace(early, "=b1", "=b2", 1)))
		if !strings.HasPrefix(next.last(), "SIP/2.0 481 ") {
			t.Errorf("the place of a phone that does not ring: %q, want 481", next.last())
		}
		next.forget()
		next.send(strings.ReplaceAll(wantsPlace(early), "branch=z9hG4bKs1", "branch=z9hG4bKs2"))
		if !strings.HasPrefix(next.last(), "SIP/2.0 200 ") || !strings.HasPrefix(b.peer.last(), "CANCEL ") {
			t.Fatalf("the successor got %q, the phone that rang %q", next.last(), b.peer.last())
		}
		b.peer.answers(b.peer.last(), "200 OK", "b1", "")
		next.send(next.its("ACK", "k2", 1))
		b.peer.forget()
		b.peer.answers(inv, "200 OK", "b1", peerAnswer) // it had picked up already
		if got := b.peer.lines(); len(got) != 2 || !strings.HasSuffix(got[0], "ACK") || !strings.HasSuffix(got[1], "BYE") {
			t.Errorf("the phone that picked up too late got %v, want ACK and BYE", got)
		}
		bye := b.peer.last()
		if headerIn(bye, "Call-ID") != headerIn(inv, "Call-ID") {
			t.Errorf("BYE = %q", bye)
		}
		b.peer.send(replyTo(bye, "200 OK"))
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Provisional", "0s Answered", "0s Acked"})
		_ = c.Hangup(CauseNormal)
		synctest.Wait()
		if !strings.HasPrefix(next.last(), "BYE sip:2002@192.0.2.21:5060 ") {
			t.Errorf("our BYE: %q", next.last())
		}
		next.send(replyTo(next.last(), "200 OK"))
		<-c.Done()
	})
}

func TestReplacesIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		invite func(*Call) string
		before func(*bubble, *Call) // nil: the call is up
		want   string
	}{
		{"an unknown call", func(*Call) string { return wantsPlace("nothing;to-tag=1;from-tag=2") }, nil, "481"},
		{"another tag of the phone", func(c *Call) string {
			return wantsPlace(strings.Replace(place(c), "from-tag=a1", "from-tag=a2", 1))
		}, nil, "481"},
		{"no dialog", func(*Call) string { return wantsPlace("call-1") }, nil, "400"},
		{"early only, and it is up", func(c *Call) string { return wantsPlace(place(c) + ";early-only") }, nil, "486"},
		{"nothing to talk with", func(c *Call) string {
			return strings.Replace(wantsPlace(place(c)), "RTP/AVP 8 100", "RTP/AVP 3 100", 1)
		}, nil, "488"},
		{"a stranger to the trunk", func(c *Call) string { return wantsPlace(place(c)) }, func(b *bubble, _ *Call) {
			b.stack.neighbours.trunks = append([]Trunk{{Name: "other", Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.21/32")}}}, b.stack.neighbours.trunks...)
		}, "403"},
		{"a call that is being hung up", func(c *Call) string { return wantsPlace(place(c)) }, func(_ *bubble, c *Call) { _ = c.Hangup(CauseNormal) }, "603"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, nil, answerAtOnce, func(b *bubble) {
				c := b.up()
				next := b.successor()
				invite := tt.invite(c)
				if tt.before != nil {
					tt.before(b, c)
				}
				next.send(invite)
				if got, _ := next.codes(); got[len(got)-1] != tt.want {
					t.Errorf("got %v, want %s", got, tt.want)
				}
				if c.Dialog().CallID != "call-1" || b.stack.Stats().Replaced != 0 {
					t.Error("the call was taken over")
				}
			})
		})
	}
	t.Run("a call that is not answered", func(t *testing.T) {
		inBubble(t, nil, func(c *Call) { _ = c.Ring() }, func(b *bubble) {
			b.peer.send(invite())
			next := b.successor()
			next.send(wantsPlace(place(<-b.calls)))
			if got, _ := next.codes(); got[len(got)-1] != "481" {
				t.Errorf("got %v, want 481", got)
			}
		})
	})
}
