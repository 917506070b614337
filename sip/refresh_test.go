package sip

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// upBefore is the dialog of a call that is up, as a process has saved it that is killed then; edit is for the INVITE.
func upBefore(t *testing.T, change func(*Config), edit ...string) (saved Dialog, bye string) {
	inBubble(t, change, answerAtOnce, func(b *bubble) {
		b.peer.send(invite(edit...))
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		saved = (<-b.calls).Dialog()
		bye = b.peer.within("BYE", "b1", 90, "")
	})
	return saved, bye
}

// resumes takes a call over with its media, as another process does.
func (b *bubble) resumes(d Dialog) *Call {
	b.Helper()
	call, err := b.stack.Resume(d)
	if err != nil {
		b.Fatal(err)
	}
	b.Invite(call)
	if _, err := call.OpenMedia(); err != nil {
		b.Fatal(err)
	}
	return call
}

// A phone that refuses to be told of our new address talks to the old one, where nobody is: that must not look like a call.
func TestMovedCallThatIsRefusedHasAnEnd(t *testing.T) {
	for _, tt := range []struct {
		status string // of the answers, the last one for all that follow
		heard  bool
		said   string // of the end; without its time where that is random
		asked  int
	}{
		{"403 Forbidden", false, "12s Failed", 3},
		{"488 Not Acceptable Here", false, "12s Failed", 3},
		{"500 Server Internal Error", false, "13s Failed", 4}, // once more at once: our number may have been too low
		{"481 Call/Transaction Does Not Exist", false, "0s Failed", 1},
		{"491 Request Pending, 491 Request Pending, 403 Forbidden", false, "Failed", 5}, // who is offering, too, has refused nothing yet
		{"403 Forbidden", true, "1m20s MediaTimeout", 3},                                // it is heard for 20 s, then silent, and answers our OPTIONS
	} {
		name := tt.status
		if tt.heard {
			name += ", but it is heard"
		}
		t.Run(name, func(t *testing.T) {
			saved, _ := upBefore(t, nil)
			saved.Contact = "<sip:trunkline@192.0.2.9:5060>" // of another machine
			inBubble(t, nil, nil, func(b *bubble) {
				phone := b.phoneMedia()
				answers := strings.Split(tt.status, ", ")
				call := b.resumes(saved)
				if err := call.Refresh(); err != nil {
					t.Fatal(err)
				}
				asked := 0
				for range 100 {
					synctest.Wait()
					if tt.heard && time.Since(b.began) <= 20*time.Second {
						phone.send(call.media.Load().LocalAddr(), 0)
					}
					switch m := b.peer.last(); {
					case strings.HasPrefix(m, "INVITE "):
						b.peer.answers(m, answers[min(asked, len(answers)-1)], "", "")
						asked++
					case strings.HasPrefix(m, "OPTIONS "):
						b.peer.answers(m, "200 OK", "", "")
					}
					b.peer.forget()
					time.Sleep(time.Second)
				}
				said := append(withoutChanges(b.said()), "")
				if _, what, _ := strings.Cut(said[0], " "); said[0] != tt.said && what != tt.said {
					t.Errorf("application heard %v, want %s first", said, tt.said)
				}
				if asked != tt.asked {
					t.Errorf("the phone was asked %d times, want %d", asked, tt.asked)
				}
			})
		})
	}
}

func TestMovedCallThatIsTakenInTheEndGoesOn(t *testing.T) {
	saved, bye := upBefore(t, nil)
	saved.Contact = "<sip:trunkline@192.0.2.9:5060>"
	inBubble(t, func(c *Config) { c.Limits.MediaTimeout = -1 }, nil, func(b *bubble) {
		if err := b.resumes(saved).Refresh(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.peer.answers(b.peer.last(), "500 Server Internal Error", "", "")
		time.Sleep(movePause)
		synctest.Wait()
		b.peer.answers(b.peer.last(), "200 OK", "", peerAnswer)
		b.peer.forget()
		time.Sleep(time.Minute)
		b.peer.send(bye)
		wantLines(t, "peer received", b.peer.lines(), []string{"1m6s 200 OK"})
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"1m6s Bye", "1m6s Ended"})
	})
}

// RFC 3261 §14.1: whose Call-ID it is waits from 2.1 to 4 s, the other one no more than 2 s; UPDATE is like that, too (RFC 3311 §5.1).
func TestPauseAfterOffersThatCross(t *testing.T) {
	between := func(b *bubble, least, most time.Duration) {
		b.Helper()
		b.peer.answers(b.peer.last(), "491 Request Pending", "", "")
		b.peer.forget()
		began := time.Now()
		for b.peer.last() == "" && time.Since(began) < 5*time.Second {
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if d := time.Since(began); d < least || d > most+time.Millisecond {
			b.Errorf("asked again after %v, want %v to %v", d, least, most)
		}
	}
	for _, allow := range []string{"Allow: INVITE, ACK, BYE", "Allow: INVITE, ACK, BYE, UPDATE"} {
		t.Run(allow, func(t *testing.T) {
			inBubble(t, quiet10h, answerAtOnce, func(b *bubble) { // the phone's
				b.peer.send(invite(allow))
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				call := <-b.calls
				for range 5 {
					time.Sleep(time.Second / refreshRate) // its turn comes at once
					_ = call.Refresh()
					synctest.Wait()
					between(b, 0, 2*time.Second)
					b.peer.answers(b.peer.last(), "200 OK", "", peerAnswer)
				}
			})
			inBubble(t, quiet10h, nil, func(b *bubble) { // ours
				call, inv := b.dials()
				b.peer.answers(inv, "200 OK", "b1", peerAnswer, allow)
				for range 5 {
					_ = call.Refresh()
					synctest.Wait()
					between(b, 2100*time.Millisecond, 4*time.Second)
					b.peer.answers(b.peer.last(), "200 OK", "", peerAnswer)
				}
			})
		})
	}
}

// RFC 3261 §12.2.1.2, RFC 3311 §5.1: the Contact of a 2xx to a refresh of ours is where the phone is from now on.
func TestAnswerToOurRefreshMovesTheTarget(t *testing.T) {
	for _, allow := range []string{"Allow: INVITE, ACK, BYE", "Allow: INVITE, ACK, BYE, UPDATE"} {
		t.Run(allow, func(t *testing.T) {
			inBubble(t, quiet10h, answerAtOnce, func(b *bubble) {
				b.peer.send(invite(allow))
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				call := <-b.calls
				_ = call.Refresh()
				synctest.Wait()
				body := ""
				if strings.HasPrefix(b.peer.last(), "INVITE ") {
					body = peerAnswer
				}
				b.peer.answers(b.peer.last(), "200 OK", "", body, "Contact: <sip:edge@192.0.2.20:5060;x=new>")
				if ack := b.peer.last(); body != "" && !strings.HasPrefix(ack, "ACK sip:edge@192.0.2.20:5060;x=new ") {
					t.Errorf("ACK = %q", ack)
				}
				if got, want := b.saved().RemoteTarget, "sip:edge@192.0.2.20:5060;x=new"; got != want {
					t.Errorf("saved target %q, want %q", got, want)
				}
				_ = call.Hangup(CauseNormal)
				synctest.Wait()
				if bye := b.peer.last(); !strings.HasPrefix(bye, "BYE sip:edge@192.0.2.20:5060;x=new ") {
					t.Errorf("BYE = %q", bye)
				}
			})
		})
	}
}

// The process is killed between saving what a re-INVITE or UPDATE has changed and answering it: the phone says it again.
func TestOfferThatWasSavedButNotAnsweredIsAnswered(t *testing.T) {
	for _, method := range []string{"INVITE", "UPDATE"} {
		t.Run(method, func(t *testing.T) {
			var saved Dialog
			var offer, answer, info string
			inBubble(t, quiet10h, answerAtOnce, func(b *bubble) {
				b.peer.send(invite())
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				offer = b.peer.within(method, "r1", 2, peerOffer+"a=sendonly\n")
				info = b.peer.within("INFO", "n1", 2, "")
				b.peer.send(offer)
				_, answer, _ = strings.Cut(b.peer.last(), "\r\n\r\n")
				saved = b.saved()
			})
			if saved.RemoteCSeq != 2 {
				t.Fatalf("saved with CSeq %d, want that of the offer", saved.RemoteCSeq)
			}
			inBubble(t, quiet10h, nil, func(b *bubble) {
				call := b.resumes(saved)
				b.peer.send(info) // only an offer may come again
				if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 500") {
					t.Errorf("INFO with the number of the offer got %.40q, want 500", got)
				}
				b.peer.send(offer)
				got := b.peer.last()
				if _, body, _ := strings.Cut(got, "\r\n\r\n"); !strings.HasPrefix(got, "SIP/2.0 200") || body != answer {
					t.Errorf("the repeated offer got %q, want 200 with %q", got, answer)
				}
				if !call.Dialog().Held() {
					t.Error("the phone is not on hold any more")
				}
				b.peer.send(strings.ReplaceAll(offer, "bKr1", "bKr2")) // the number is used now
				if got := b.peer.last(); !strings.HasPrefix(got, "SIP/2.0 500") {
					t.Errorf("the offer as another transaction got %.40q, want 500", got)
				}
				b.peer.send(strings.NewReplacer("bKr1", "bKk2", "CSeq: 2 "+method, "CSeq: 2 ACK", method+" sip", "ACK sip").Replace(offer))
			})
		})
	}
}

// RFC 4028 §10: a session timer that runs when its process is killed is kept by the next one, whoever is to refresh.
func TestLiveSessionTimerSurvivesARestart(t *testing.T) {
	t.Run("ours to refresh", func(t *testing.T) {
		saved, bye := upBefore(t, quiet10h, "Supported: timer", "Session-Expires: 600;refresher=uas", "Allow: INVITE, ACK, BYE, UPDATE")
		inBubble(t, quiet10h, nil, func(b *bubble) {
			time.Sleep(100 * time.Second) // nobody was there
			call := b.resumes(saved)
			time.Sleep(200*time.Second - time.Millisecond)
			synctest.Wait()
			wantLines(t, "peer received", b.peer.lines(), nil)
			time.Sleep(time.Millisecond)
			synctest.Wait()
			update := b.peer.last()
			if !strings.HasPrefix(update, "UPDATE ") || headerIn(update, "Session-Expires") != "600;refresher=uac" {
				t.Fatalf("at half of the time the phone got %q", update)
			}
			b.peer.answers(update, "200 OK", "", "", "Session-Expires: 600;refresher=uac")
			if s := call.Dialog().Session; time.Until(s.Until) != 600*time.Second {
				t.Errorf("session = %+v", s)
			}
			b.peer.send(bye)
		})
	})
	t.Run("the phone's to refresh", func(t *testing.T) {
		saved, _ := upBefore(t, quiet10h, "Supported: timer", "Session-Expires: 600;refresher=uac")
		inBubble(t, quiet10h, nil, func(b *bubble) {
			time.Sleep(100 * time.Second)
			b.resumes(saved)
			time.Sleep(10 * time.Minute)
			if lines := b.peer.lines(); len(lines) == 0 || lines[0] != "9m28s BYE" { // RFC 4028 §10: min(32 s, 1/3) before the end
				t.Errorf("peer received %v, want BYE at 9m28s", lines)
			}
			b.peer.answers(b.peer.last(), "200 OK", "", "")
		})
	})
}
