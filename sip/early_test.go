package sip

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/rtp"
)

func TestProgressOpensMediaBeforeTheAnswer(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		phone := b.phoneMedia()
		b.peer.send(invite())
		call := <-b.calls
		dialog, early, err := call.Progress()
		if err != nil {
			t.Fatal(err)
		}
		if dialog.Confirmed || dialog.Media.LocalSDP == "" || dialog.LocalCSeq == 0 {
			t.Errorf("dialog of early media = %+v", dialog)
		}
		_ = early.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5}})
		if n := len(phone.rtp.in); n != 1 {
			t.Errorf("sent %d packets of early media, want 1", n)
		}
		heard := 0
		early.OnPacket(func(*rtp.Packet) { heard++ })
		phone.send(early.LocalAddr(), 0)
		time.Sleep(2*time.Minute - time.Second)
		synctest.Wait()
		_, media, err := call.Accept()
		if err != nil || media != early || heard != 1 {
			t.Errorf("Accept = %p, %v after heard %d; want the same media %p and 1", media, err, heard, early)
		}
		time.Sleep(2 * time.Minute) // the application is slow: the 183 goes on
		if err := call.SendAnswer(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		bodies := map[string]string{}
		for _, m := range b.peer.messages() {
			line, _, _ := strings.Cut(m, "\r\n")
			_, bodies[line], _ = strings.Cut(m, "\r\n\r\n")
		}
		if sdp := bodies["SIP/2.0 183 Session Progress"]; sdp == "" || sdp != bodies["SIP/2.0 200 OK"] {
			t.Errorf("183 has %q, 200 has %q; want the same description", sdp, bodies["SIP/2.0 200 OK"])
		}
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		b.peer.send(b.peer.within("BYE", "b1", 2, ""))
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s 183 Session Progress", "50s 183 Session Progress", "1m40s 183 Session Progress",
			"2m30s 183 Session Progress", "3m20s 183 Session Progress", "3m59s 200 OK", "3m59s 200 OK",
		})
		wantLines(t, "application heard", b.said(), []string{"3m59s Acked", "3m59s Bye", "3m59s Ended"})
	})
}

func TestProgressAndHowItEnds(t *testing.T) {
	for _, tt := range []struct {
		name  string
		end   func(*bubble, *Call)
		lines []string
		said  []string
	}{
		{
			"the phone gives up", func(b *bubble, _ *Call) { b.peer.send(cancelRequest()) },
			[]string{"0s 200 OK", "0s 487 Request Terminated"},
			[]string{"0s Cancelled", "0s Ended"},
		},
		{
			"we refuse", func(_ *bubble, c *Call) { _ = c.Reject(486, "") },
			[]string{"0s 486 Busy Here"},
			[]string{"0s Ended"},
		},
		{
			"we hang up", func(_ *bubble, c *Call) { _ = c.Hangup(CauseNormal) },
			[]string{"0s 480 Temporarily Unavailable"},
			[]string{"0s Ended"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, nil, nil, func(b *bubble) {
				b.peer.send(invite())
				call := <-b.calls
				if _, _, err := call.Progress(); err != nil {
					t.Fatal(err)
				}
				tt.end(b, call)
				synctest.Wait()
				wantLines(t, "peer received", b.peer.lines(), append([]string{"0s 183 Session Progress"}, tt.lines...))
				wantLines(t, "application heard", b.said(), tt.said)
				if n := b.stack.Stats().RTPPorts; n != 0 {
					t.Errorf("%d port pairs in use", n)
				}
			})
		})
	}
}

func TestRingbackAfterProgressAndTheOtherWayRound(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, "")) // no offer: the 183 has no description
		call := <-b.calls
		_ = call.Ring()
		synctest.Wait()
		time.Sleep(10 * time.Second)
		if _, _, err := call.Progress(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if m := b.peer.last(); strings.Contains(m, "v=0") {
			t.Errorf("an offer left unreliably: %q", m)
		}
		time.Sleep(55 * time.Second)
		wantLines(t, "peer received", b.peer.lines(), []string{
			"0s 180 Ringing", "10s 183 Session Progress", "1m0s 183 Session Progress",
		})
		_ = call.Hangup(CauseNormal)
		if _, _, err := call.Progress(); err == nil {
			t.Error("Progress after the end worked")
		}
	})
}
