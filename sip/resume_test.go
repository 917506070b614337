package sip_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"trunkline/internal/testbed/phone"
	"trunkline/sip"
)

// doomed is a stack whose process dies before the phone knows more than until does.
type doomed struct {
	*bed
	config sip.Config
	crash  func()
	told   chan int // provisional statuses that the phone has heard
}

func newDoomed(t *testing.T, tr sip.Transport, until func(*served)) *doomed {
	t.Helper()
	config := testConfig(tr)
	d := &doomed{bed: &bed{TB: t, calls: make(chan *served, 1), invite: until}, told: make(chan int, 64)}
	stack, err := sip.New(config, d.bed, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d.stack = stack
	config.Listen[0].Addr = stack.Addr(tr)
	d.config = config
	ctx, crash := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- stack.Run(ctx) }()
	d.crash = func() {
		crash()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended <- nil
	}
	t.Cleanup(d.crash)
	return d
}

// successor starts a stack on the same address with the call of a dead one, as its database had it.
func (d *doomed) successor(saved sip.Dialog, change func(*sip.Dialog)) *served {
	d.Helper()
	text, err := json.Marshal(saved)
	if err != nil {
		d.Fatal(err)
	}
	var dialog sip.Dialog
	if err := json.Unmarshal(text, &dialog); err != nil {
		d.Fatal(err)
	}
	if change != nil {
		change(&dialog)
	}
	d.crash()
	b := newBed(d, d.config, nil)
	call, err := b.stack.Resume(dialog)
	if err != nil {
		d.Fatal(err)
	}
	again := &served{Call: call, bed: b, events: make(chan sip.Event, 64)}
	call.OnEvent(func(e sip.Event) { again.events <- e })
	return again
}

// dialled is how a Dial in the background went.
type dialled struct {
	call *phone.Call
	err  error
}

func (d *doomed) dial(p *phone.Phone, tr sip.Transport) chan dialled {
	to := d.stack.Addr(tr).String()
	result := make(chan dialled, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		call, err := p.DialWith(ctx, to, phone.Invite{Number: "1000", OnStatus: func(code int) { d.told <- code }})
		result <- dialled{call, err}
	}()
	return result
}

// tells waits until the phone has heard this, or something later, and so repeats nothing any more.
func (d *doomed) tells(status int) {
	d.Helper()
	for patience := time.After(20 * time.Second); ; {
		select {
		case code := <-d.told:
			if code >= status {
				return
			}
		case <-patience:
			d.Fatalf("the phone has not heard %d", status)
		}
	}
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestRefreshAsksThePhoneWhetherItHasTheCall(t *testing.T) {
	for name, change := range map[string]func(*sip.Dialog){
		"UPDATE":    func(d *sip.Dialog) { d.PeerAllow = []string{"INVITE", "update"} },
		"re-INVITE": func(d *sip.Dialog) { d.PeerAllow = nil },
		"moved": func(d *sip.Dialog) { // from another address, by a process that used these ports for itself
			d.PeerAllow, d.Contact = []string{"UPDATE"}, "<sip:trunkline@127.0.0.9:5060>"
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDoomed(t, sip.UDP, nil)
			p := d.phone(phone.Config{})
			call, err := p.Dial(timeout(t, 20*time.Second), d.addr(sip.UDP), "1000")
			if err != nil {
				t.Fatal(err)
			}
			s := d.call()
			s.wants(sip.Acked{})
			again := d.successor(s.Dialog(), change)
			m, err := again.OpenMedia()
			if err != nil {
				t.Fatal(err)
			}
			again.echo(m)
			if err := again.Refresh(); err != nil {
				t.Fatal(err)
			}
			await(t, "the phone to be asked", func() bool { return call.Reinvited() == 1 })
			time.Sleep(700 * time.Millisecond) // a 200 without ACK would come again
			if n := call.Reinvited(); n != 1 {
				t.Errorf("the phone was asked %d times", n)
			}
			echoes(t, call, len(call.Heard()), 300*time.Millisecond)
			if err := call.Hangup(timeout(t, 20*time.Second)); err != nil {
				t.Error(err)
			}
			again.wants(sip.Bye{})
		})
	}
}

func TestCallThatThePhoneHasLostFails(t *testing.T) {
	for name, allow := range map[string][]string{"UPDATE": {"UPDATE"}, "re-INVITE": nil} {
		t.Run(name, func(t *testing.T) {
			d := newDoomed(t, sip.UDP, nil)
			p := d.phone(phone.Config{})
			if _, err := p.Dial(timeout(t, 20*time.Second), d.addr(sip.UDP), "1000"); err != nil {
				t.Fatal(err)
			}
			s := d.call()
			s.wants(sip.Acked{})
			again := d.successor(s.Dialog(), func(d *sip.Dialog) { d.CallID, d.PeerAllow = d.CallID+"x", allow })
			if _, err := again.OpenMedia(); err != nil {
				t.Fatal(err)
			}
			if err := again.Refresh(); err != nil {
				t.Fatal(err)
			}
			again.wants(sip.Failed{})
		})
	}
}

// Over TCP and TLS the connection has died, too: the refusal goes to where the phone listens.
func TestUnansweredCallIsRefusedAfterARestart(t *testing.T) {
	for _, tr := range []sip.Transport{sip.UDP, sip.TCP} {
		t.Run(string(tr), func(t *testing.T) {
			d := newDoomed(t, tr, func(s *served) { _ = s.Ring() })
			result := d.dial(d.phone(phone.Config{Transport: string(tr)}), tr)
			s := d.call()
			d.tells(180)
			again := d.successor(s.Dialog(), nil)
			if err := again.Reject(503, "", "Retry-After: 10"); err != nil {
				t.Fatal(err)
			}
			again.wants(sip.Ended{})
			var refused *phone.StatusError
			if got := <-result; !errors.As(got.err, &refused) || refused.Code != 503 {
				t.Errorf("Dial = %v, want 503", got.err)
			}
		})
	}
}

// The process may die between saving and sending, or before it knows that the answer got through: the successor answers
// (again), and the phone is up either way.
func TestAnswerIsSentAgainAfterARestart(t *testing.T) {
	for name, tt := range map[string]struct {
		transport sip.Transport
		sent      bool
	}{
		"never sent": {sip.UDP, false}, "sent": {sip.UDP, true}, "never sent, TCP": {sip.TCP, false}, "sent, TCP": {sip.TCP, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDoomed(t, tt.transport, func(s *served) { _, _, _ = s.Accept() })
			result := d.dial(d.phone(phone.Config{Transport: string(tt.transport)}), tt.transport)
			s := d.call()
			await(t, "the answer to be made", func() bool { return s.Dialog().Media.LocalSDP != "" })
			saved := s.Dialog()
			if saved.Confirmed {
				t.Fatal("the dialog is confirmed too early for this test")
			}
			if tt.sent {
				if err := s.SendAnswer(); err != nil {
					t.Fatal(err)
				}
				s.wants(sip.Acked{})
			} else {
				d.tells(100)
			}
			again := d.successor(saved, nil)
			m, err := again.OpenMedia()
			if err != nil {
				t.Fatal(err)
			}
			again.echo(m)
			if err := again.SendAnswer(); err != nil {
				t.Fatal(err)
			}
			again.wants(sip.Acked{})
			got := <-result
			if got.err != nil {
				t.Fatal(got.err)
			}
			if err := again.Hangup(sip.CauseNormal); err != nil {
				t.Fatal(err)
			}
			again.wants(sip.Ended{})
			<-got.call.Done()
		})
	}
}
