package sip

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// passes lets time go by. Meanwhile the peer answers, within a hundredth of a second, each request that says has a status for.
func (b *bubble) passes(d time.Duration, says func(method string) (status string, headers []string)) {
	b.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		synctest.Wait()
		for _, m := range b.peer.messages()[b.answered:] {
			b.answered++
			method, _, _ := strings.Cut(m, " ")
			status, body, headers := "", "", []string(nil)
			if status, headers = says(method); status == "" {
				continue
			}
			if method == "INVITE" && strings.HasPrefix(status, "200") {
				body = peerAnswer
			}
			b.peer.answers(m, status, "", body, headers...)
		}
	}
}

// After a restart all phones are to be asked, and all session timers may be due, or over: each phone is asked once, twenty in a second,
// and no call is given up while its phone waits to be asked.
func TestPhonesOfResumedCallsAreAskedInTurn(t *testing.T) {
	const calls = 300 // the last one is asked after more than hearingTime
	timed := []string{"Supported: timer", "Session-Expires: 600;refresher=uas", "Allow: INVITE, ACK, BYE, UPDATE"}
	for name, left := range map[string]time.Duration{"timers are due": 200 * time.Second, "timers are over": -time.Second} {
		t.Run(name, func(t *testing.T) {
			saved, _ := upBefore(t, quiet10h, timed...)
			inBubble(t, quiet10h, nil, func(b *bubble) {
				for i := range calls {
					d := saved.clone()
					d.CallID, d.LocalTag = fmt.Sprintf("call-%d", i), fmt.Sprintf("ours-%d", i)
					d.Session.Until = time.Now().Add(left)
					call, err := b.stack.Resume(d)
					if err != nil {
						t.Fatal(err)
					}
					b.Invite(call)
					if err := call.Refresh(); err != nil {
						t.Fatal(err)
					}
				}
				b.passes(100*time.Second, func(string) (string, []string) {
					return "200 OK", []string{"Session-Expires: 600;refresher=uac"}
				})
				got := b.peer.lines()
				if len(got) != calls {
					t.Errorf("peer received %d messages, want %d", len(got), calls)
				}
				for i, line := range got {
					when, what, _ := strings.Cut(line, " ")
					at, err := time.ParseDuration(when)
					if want := time.Duration(i) * 50 * time.Millisecond; err != nil || at.Round(time.Millisecond) != want || what != "UPDATE" {
						t.Errorf("message %d: %s, want UPDATE at %v", i, line, want)
						break
					}
				}
				asked := map[string]bool{}
				for _, m := range b.peer.messages() {
					asked[headerIn(m, "Call-ID")] = true
				}
				if len(asked) != calls {
					t.Errorf("%d phones were asked, want each of %d", len(asked), calls)
				}
			})
		})
	}
}

// A timer that is due while the phone is being asked asks for nothing more; one that is over waits for what the phone says.
func TestTimerOfACallWhosePhoneIsBeingAskedWaits(t *testing.T) {
	for _, allow := range []string{"INVITE, ACK, BYE", "INVITE, ACK, BYE, UPDATE"} {
		for _, over := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, over: %t", allow, over), func(t *testing.T) {
				saved, bye := upBefore(t, quiet10h, "Supported: timer", "Session-Expires: 600;refresher=uas", "Allow: "+allow)
				inBubble(t, quiet10h, nil, func(b *bubble) {
					saved.Session.Until = time.Now().Add(map[bool]time.Duration{false: 200 * time.Second, true: 0}[over])
					call := b.resumes(saved)
					if err := call.Refresh(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(25 * time.Second)
					synctest.Wait()
					numbers := map[string]bool{}
					for _, m := range b.peer.messages() {
						numbers[headerIn(m, "CSeq")] = true
					}
					if len(numbers) != 1 {
						t.Errorf("in 25 s the phone was sent %v, want one request, again and again", b.peer.lines())
					}
					body := ""
					if strings.HasPrefix(b.peer.last(), "INVITE ") {
						body = peerAnswer
					}
					b.peer.answers(b.peer.last(), "200 OK", "", body, "Session-Expires: 600;refresher=uac")
					if s := call.Dialog().Session; time.Until(s.Until) != 600*time.Second {
						t.Errorf("session = %+v, want ten minutes from now", s)
					}
					b.peer.forget()
					time.Sleep(5*time.Minute - time.Millisecond)
					synctest.Wait()
					wantLines(t, "peer received", b.peer.lines(), nil)
					b.peer.send(bye)
					wantLines(t, "application heard", withoutChanges(b.said()), []string{"5m24.999s Bye", "5m24.999s Ended"})
				})
			})
		}
	}
}

// What the phone of a resumed call says to the question whether it has the call, and what follows, to the millisecond.
func TestPhoneOfAResumedCallIsAsked(t *testing.T) {
	const update, invite = "Allow: INVITE, ACK, BYE, UPDATE", "Allow: INVITE, ACK, BYE"
	lines := func(method string, at ...string) (all []string) {
		for _, when := range at {
			all = append(all, when+" "+method)
		}
		return all
	}
	for name, tt := range map[string]struct {
		allow, status string // status "" = it says nothing
		heard         bool   // its sound comes all the time
		got           []string
		said          []string
	}{
		"UPDATE":               {update, "200 OK", false, lines("UPDATE", "0s"), nil},
		"re-INVITE":            {invite, "200 OK", false, []string{"0s INVITE", "0s ACK"}, nil},
		"UPDATE, lost":         {update, "481 Call/Transaction Does Not Exist", false, lines("UPDATE", "0s"), []string{"0s Failed"}},
		"re-INVITE, lost":      {invite, "481 Call/Transaction Does Not Exist", false, []string{"0s INVITE", "0s ACK"}, []string{"0s Failed"}},
		"UPDATE, timed out":    {update, "408 Request Timeout", false, lines("UPDATE", "0s"), []string{"0s Failed"}},
		"UPDATE, refused":      {update, "403 Forbidden", false, lines("UPDATE", "0s"), nil}, // it has the call, and our addresses
		"re-INVITE, refused":   {invite, "488 Not Acceptable Here", false, []string{"0s INVITE", "0s ACK"}, nil},
		"UPDATE, no answer":    {update, "", false, lines("UPDATE", "0s", "500ms", "1.5s", "3.5s", "7.5s", "11.5s", "15.5s", "19.5s", "23.5s", "27.5s", "31.5s"), []string{"32s Failed"}},
		"re-INVITE, no answer": {invite, "", false, lines("INVITE", "0s", "500ms", "1.5s", "3.5s", "7.5s", "15.5s", "31.5s"), []string{"32s Failed"}},
		"UPDATE, no answer, but it is heard": {
			update, "", true, lines("UPDATE", "0s", "500ms", "1.5s", "3.5s", "7.5s", "11.5s", "15.5s", "19.5s", "23.5s", "27.5s", "31.5s"), nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			saved, bye := upBefore(t, quiet10h, tt.allow)
			inBubble(t, quiet10h, nil, func(b *bubble) {
				phone := b.phoneMedia()
				call := b.resumes(saved)
				if err := call.Refresh(); err != nil {
					t.Fatal(err)
				}
				for range 60 {
					if tt.heard {
						phone.send(call.media.Load().LocalAddr(), 0)
					}
					b.passes(time.Second, func(method string) (string, []string) {
						if method == "ACK" {
							return "", nil
						}
						return tt.status, nil
					})
				}
				wantLines(t, "peer received", b.peer.lines(), tt.got)
				wantLines(t, "application heard", withoutChanges(b.said()), tt.said)
				b.peer.send(bye)
			})
		})
	}
}

// A re-INVITE that somebody is trying to deliver for ever holds up neither the timer's end nor the next offer.
func TestProvisionalResponsesToReinvitesAreNoAnswers(t *testing.T) {
	t.Run("a session timer runs out", func(t *testing.T) {
		inBubble(t, quiet10h, answerAtOnce, func(b *bubble) {
			b.peer.send(invite("Supported: timer", "Session-Expires: 90;refresher=uas", "Allow: INVITE, ACK, BYE"))
			b.peer.send(b.peer.within("ACK", "k1", 1, ""))
			b.peer.forget()
			time.Sleep(45 * time.Second)
			synctest.Wait()
			b.peer.answers(b.peer.last(), "100 Trying", "", "")
			time.Sleep(15 * time.Second)
			synctest.Wait()
			b.peer.answers(b.peer.last(), "200 OK", "", "")
			time.Sleep(2 * time.Minute)
			wantLines(t, "peer received", b.peer.lines(), []string{"45s INVITE", "1m0s BYE"})
			wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Acked", "1m0s Failed", "1m0s Ended"})
		})
	})
	for name, heard := range map[string]bool{"the phone is silent": false, "the phone is heard": true} {
		t.Run(name, func(t *testing.T) {
			saved, bye := upBefore(t, quiet10h, "Allow: INVITE, ACK, BYE")
			inBubble(t, quiet10h, nil, func(b *bubble) {
				phone := b.phoneMedia()
				call := b.resumes(saved)
				if err := call.Refresh(); err != nil {
					t.Fatal(err)
				}
				offer := ""
				time.Sleep(300 * time.Millisecond) // not to look at the moment in which something is done
				for range 40 {
					if heard {
						phone.send(call.media.Load().LocalAddr(), 0)
					}
					b.passes(time.Second, func(method string) (string, []string) {
						return map[string]string{"INVITE": "100 Trying", "CANCEL": "200 OK"}[method], nil
					})
					switch last := b.peer.last(); {
					case strings.HasPrefix(last, "INVITE "):
						offer = last
					case strings.HasPrefix(last, "CANCEL ") && headerIn(last, "Via") == headerIn(offer, "Via") &&
						headerIn(last, "CSeq") == strings.Replace(headerIn(offer, "CSeq"), "INVITE", "CANCEL", 1):
						b.peer.answers(offer, "487 Request Terminated", "", "")
					}
				}
				wantLines(t, "peer received", b.peer.lines(), []string{"0s INVITE", "33s CANCEL", "33.3s ACK"})
				want := []string{"33.3s Failed"}
				if heard {
					want = nil
				}
				wantLines(t, "application heard", withoutChanges(b.said()), want)
				b.peer.send(bye)
			})
		})
	}
}

// Calls that were not answered when their process was killed: the next one refuses them, or says again that they are answered.
func TestUnansweredCallOfAKilledProcess(t *testing.T) {
	before := func(do func(*Call)) (saved Dialog) {
		inBubble(t, quiet10h, do, func(b *bubble) {
			b.peer.send(invite())
			saved = (<-b.calls).Dialog()
		})
		return saved
	}
	t.Run("rang", func(t *testing.T) {
		saved := before(func(c *Call) { _ = c.Ring() })
		inBubble(t, quiet10h, nil, func(b *bubble) {
			call, err := b.stack.Resume(saved)
			if err != nil {
				t.Fatal(err)
			}
			b.Invite(call)
			time.Sleep(time.Second)
			if err := call.Reject(503, "", "Retry-After: 10"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			refused := b.peer.last()
			if got := headerIn(refused, "Retry-After"); got != "10" {
				t.Errorf("Retry-After = %q, want 10", got)
			}
			b.peer.send(request("ACK", bridgeURI, headerIn(refused, "To"), "i1", 1, ""))
			time.Sleep(time.Minute)
			wantLines(t, "peer received", b.peer.lines(), []string{
				"1s 503 Service Unavailable", "1.5s 503 Service Unavailable", "2.5s 503 Service Unavailable",
			})
			wantLines(t, "application heard", b.said(), []string{"1s Ended"})
		})
	})
	t.Run("was about to be answered", func(t *testing.T) {
		saved := before(func(c *Call) { _, _, _ = c.Accept() })
		if saved.Confirmed || saved.Media.LocalSDP == "" {
			t.Fatalf("saved %+v, want an answer that was not acknowledged", saved)
		}
		inBubble(t, quiet10h, nil, func(b *bubble) {
			call := b.resumes(saved)
			if err := call.SendAnswer(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			b.peer.send(b.peer.within("ACK", "k1", 1, ""))
			time.Sleep(time.Minute)
			b.peer.send(b.peer.within("BYE", "y1", 2, ""))
			wantLines(t, "peer received", b.peer.lines(), []string{"0s 200 OK", "500ms 200 OK", "1.5s 200 OK", "1m2s 200 OK"})
			wantLines(t, "application heard", withoutChanges(b.said()), []string{"2s Acked", "1m2s Bye", "1m2s Ended"})
		})
	})
	t.Run("never acknowledges", func(t *testing.T) {
		saved := before(func(c *Call) { _, _, _ = c.Accept() })
		inBubble(t, quiet10h, nil, func(b *bubble) {
			if err := b.resumes(saved).SendAnswer(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(33 * time.Second)
			synctest.Wait()
			if got := b.peer.lines(); !slices.Contains(got, "32s BYE") {
				t.Errorf("peer received %v, want BYE at 32s", got)
			}
			b.peer.send(replyTo(b.peer.last(), "200 OK"))
			wantLines(t, "application heard", withoutChanges(b.said()), []string{"32s NoAck", "33s Ended"})
		})
	})
}

// The application lets phones hear something before it has the stack run: until then they get no message of ours.
func TestNothingIsSaidBeforeTheStackRuns(t *testing.T) {
	var rang Dialog
	inBubble(t, quiet10h, func(c *Call) { _ = c.Ring() }, func(b *bubble) {
		b.peer.send(invite())
		rang = (<-b.calls).Dialog()
	})
	answered, _ := usedUp(t, 1)
	for _, tt := range []struct {
		name  string
		saved Dialog
		does  func(*Call) error
		want  string
	}{
		{"a refusal", rang, func(c *Call) error { return c.Reject(503, "") }, "3s 503 Service Unavailable"},
		{"BYE", answered, func(c *Call) error { return c.Hangup(CauseNormal) }, "3s BYE"},
		{"whether it has the call", answered, func(c *Call) error { return c.Refresh() }, "3s UPDATE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubbleThatRuns(t, 3*time.Second, quiet10h, nil, func(b *bubble) {
				call, err := b.stack.Resume(tt.saved)
				if err == nil {
					b.Invite(call)
					err = tt.does(call)
				}
				if err != nil {
					t.Error(err)
				}
				time.Sleep(3 * time.Second)
				synctest.Wait()
				wantLines(t, "peer received", b.peer.lines(), []string{tt.want})
			})
		})
	}
}

func TestNoConnectionIsOpenedBeforeTheStackRuns(t *testing.T) {
	phone, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer phone.Close()
	s, err := New(Config{
		Listen: []Listen{{TCP, netip.MustParseAddrPort("127.0.0.1:0")}}, RTP: RTPConfig{Addr: netip.MustParseAddr("127.0.0.1")},
		Trunks: []Trunk{{Name: "lab", Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/24")}}},
	}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	call, err := s.Resume(Dialog{
		CallID: "c", LocalTag: "l", RemoteTag: "r", LocalURI: "<sip:1000@127.0.0.1>", RemoteURI: "<sip:x@127.0.0.1>",
		RemoteTarget: fmt.Sprintf("sip:x@%v;transport=tcp", phone.Addr()), Transport: TCP, Role: UAS, Confirmed: true, Info: Info{Trunk: "lab"},
	})
	if err == nil {
		err = call.Hangup(CauseNormal)
	}
	if err != nil {
		t.Fatal(err)
	}
	accept := func(within time.Duration) error {
		_ = phone.SetDeadline(time.Now().Add(within))
		conn, err := phone.Accept()
		if err != nil {
			return err
		}
		return conn.Close()
	}
	if err := accept(100 * time.Millisecond); err == nil {
		t.Error("connected before the stack runs")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	if err := accept(20 * time.Second); err != nil {
		t.Errorf("not connected although the stack runs: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
