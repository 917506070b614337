package matrixcall

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"
)

// logbook keeps what is logged, one line each.
type logbook struct {
	mu    *sync.Mutex
	lines *[]string
	attrs string
}

func newLogbook() logbook { return logbook{mu: new(sync.Mutex), lines: new([]string)} }

func (logbook) Enabled(context.Context, slog.Level) bool { return true }
func (l logbook) WithGroup(string) slog.Handler          { return l }

func (l logbook) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		l.attrs += " " + a.String()
	}
	return l
}

func (l logbook) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message + l.attrs
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	*l.lines = append(*l.lines, line)
	return nil
}

// find returns the lines with a message.
func (l logbook) find(message string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range *l.lines {
		if strings.Contains(line, message) {
			found = append(found, line)
		}
	}
	return found
}

// says checks that there is one line with the message, with all these words in it.
func (l logbook) says(t *testing.T, message string, words ...string) {
	t.Helper()
	lines := l.find(message)
	if len(lines) != 1 {
		t.Errorf("%d lines %q, want 1: %q", len(lines), message, lines)
		return
	}
	for _, word := range words {
		if !strings.Contains(lines[0], word) {
			t.Errorf("%q lacks %q", lines[0], word)
		}
	}
}

func TestConnectionsBeginningAndEndAreOneLineEach(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		book := newLogbook()
		bed.log = slog.New(book)
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		alice.enter()
		p := bed.join("@_sip_493012345678:x")
		time.Sleep(2 * time.Second)
		bed.hearEachOther(p, alice)
		about := []string{
			"peer=@alice:x", "device=BROWSER", "session=" + alice.session, "call_id=c-", "conf_id=" + p.info.ConfID, "ghost=@_sip_…678:x",
		}
		book.says(t, "INFO peer connected", append(about, "state=connected", "inviter=true", "total=", "ice=", "dtls=",
			"pair=host private IPv4 > ", " private IPv4")...)
		bed.cut.Store(true)
		time.Sleep(40 * time.Second)
		bed.cut.Store(false)
		book.says(t, "WARN peer lost", append(about, "reason=ice_failed", "after=4", "pair=host private IPv4 > ", "rtt 20 ms", "pairs=[host private IPv4 > ", "in-progress")...)
		for _, line := range book.find("peer") {
			if strings.Contains(line, "10.1.0.") || strings.Contains(line, "12345678") {
				t.Errorf("%q tells an address or a number", line)
			}
		}
		time.Sleep(10 * time.Second)
		leave(t, p)
		if lines := book.find("INFO peer gone"); len(lines) != 1 || !strings.Contains(lines[0], "reason=user_hangup") {
			t.Errorf("leaving said %q, want one line with the reason", lines)
		}
		if len(book.find("signal out")) == 0 || len(book.find("seq=0")) == 0 || len(book.find("signal in")) == 0 {
			t.Error("no line about signals")
		}
	})
}

func TestConnectionThatNeverStoodTellsWhatWasTried(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		book := newLogbook()
		bed.log = slog.New(book)
		bed.cut.Store(true)
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		alice.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(31 * time.Second)
		book.says(t, "WARN peer lost", "reason=ice_failed", "state=connecting", "ice=checking", "pairs=[host private IPv4 > host private IPv4 in-progress", "0 answered")
		if n := bed.metrics.PeersFailed.Snapshot()["ice_failed"]; n != 1 || bed.metrics.PeersConnected.Load() != 0 {
			t.Errorf("%d failed, %d connected, want 1 and 0", n, bed.metrics.PeersConnected.Load())
		}
		leave(t, p)
	})
}

func TestMetricsOfPeersMove(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		m := &bed.metrics
		states := func() (n [peerStates]int64) {
			synctest.Wait()
			for s := range n {
				n[s] = m.Peers[s].Load()
			}
			return n
		}
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		alice.silent.Store(true)
		alice.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(5 * time.Second)
		if got, want := states(), [peerStates]int64{PeerNegotiating: 1}; got != want {
			t.Errorf("peers = %v while alice is silent, want %v", got, want)
		}
		alice.silent.Store(false)
		time.Sleep(5 * time.Second)
		bed.hearEachOther(p, alice)
		if got, want := states(), [peerStates]int64{PeerUp: 1}; got != want {
			t.Errorf("peers = %v, want %v", got, want)
		}
		count, sum, buckets := m.ConnectTime.Snapshot()
		if count != 1 || sum < 5 || sum > 10 || buckets[4] != 0 || buckets[15] != 1 {
			t.Errorf("time to connect: %d, %v s, %v, want one of 5 to 10 s", count, sum, buckets)
		}
		bed.cut.Store(true)
		time.Sleep(9 * time.Second)
		if got, want := states(), [peerStates]int64{PeerDisconnected: 1}; got != want {
			t.Errorf("peers = %v while the network is cut, want %v", got, want)
		}
		bed.cut.Store(false)
		time.Sleep(5 * time.Second)
		if got, want := states(), [peerStates]int64{PeerUp: 1}; got != want {
			t.Errorf("peers = %v when it is back, want %v", got, want)
		}
		bed.cut.Store(true)
		time.Sleep(38 * time.Second)
		bed.cut.Store(false)
		time.Sleep(20 * time.Second)
		leave(t, p)
		if got, want := states(), ([peerStates]int64{}); got != want {
			t.Errorf("peers = %v after leaving, want none", got)
		}
		for name, got := range map[string]uint64{
			"connected": m.PeersConnected.Load() - 2, "gone by mishap": m.PeersGone.Snapshot()["ice_failed"] - 1,
			"gone at leave": m.PeersGone.Snapshot()["user_hangup"] - 1, "retried": m.PeersRetried.Load() - 1,
			"failed": m.PeersFailed.Load(), "packets in": m.PacketsReceived.Load() - 50, "packets out": m.PacketsSent.Load() - 50,
		} {
			if got != 0 {
				t.Errorf("%s is off by %d", name, int64(got))
			}
		}
		for name, got := range map[string]uint64{
			"repeated invites": m.InvitesRepeated.Load(), "ICE restarts": m.ICERestarts.Load(), "renegotiations": m.Renegotiations.Load(),
			"invites out": m.SignalsSent.Snapshot()["invite"], "answers in": m.SignalsReceived.Snapshot()["answer"],
		} {
			if got == 0 {
				t.Errorf("no %s", name)
			}
		}
	})
}

func TestReasonsOfPeersDoNotBecomeLabels(t *testing.T) {
	for reason, want := range map[string]string{
		"ice_failed": "ice_failed", "user_hangup": "user_hangup", "given_up": "given_up", "no_user_media": "no_user_media",
		"rm -rf": "other",
	} {
		if got := reasonLabel(reason); got != want {
			t.Errorf("reasonLabel(%q) = %q, want %q", reason, got, want)
		}
	}
}

// A peer that dies without a word: its silence is noticed after seven seconds, and its connection given up half a minute
// later, as both clients do it, whoever invited.
func TestDeadPeerIsNoticedAndGivenUp(t *testing.T) {
	for _, ghost := range []id.UserID{"@_sip_1:x", "@zed:x"} { // inviter, invitee
		t.Run(string(ghost[1:4]), func(t *testing.T) {
			inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
				alice := bed.browser("@alice:x", "10.1.0.2", nil)
				alice.enter()
				p := bed.join(ghost)
				time.Sleep(2 * time.Second)
				bed.hearEachOther(p, alice)
				alice.silent.Store(true)
				bed.cut.Store(true)
				died := time.Now()
				var noticed, gone time.Duration
				for gone == 0 && time.Since(died) < time.Minute {
					time.Sleep(100 * time.Millisecond)
					synctest.Wait()
					if noticed == 0 && bed.metrics.Peers[PeerDisconnected].Load() == 1 {
						noticed = time.Since(died)
					}
					if p.count(isGone) == 1 {
						gone = time.Since(died)
					}
				}
				t.Logf("noticed after %v, given up after %v", noticed, gone)
				if noticed < 5*time.Second || noticed > 9*time.Second || gone < 30*time.Second || gone > 38*time.Second {
					t.Errorf("noticed after %v, given up after %v, want about 7 s, and 30 to 38 s", noticed, gone)
				}
				leave(t, p)
			})
		})
	}
}

func TestConnectionThatCannotBeOpenedFailsOnce(t *testing.T) {
	inBubble(t, ICEConfig{}, func(t *testing.T, bed *callBed) {
		bed.relays = []TURNServer{{URIs: []string{"no server"}}} // pion refuses to begin
		book := newLogbook()
		bed.log = slog.New(book)
		alice := bed.browser("@alice:x", "10.1.0.2", nil)
		alice.enter()
		p := bed.join("@_sip_1:x")
		time.Sleep(500 * time.Millisecond)
		book.says(t, "WARN peer lost", "reason=create_offer", "state=negotiating")
		book.says(t, "INFO call", "note=open: ")
		if lines := book.find("panic"); len(lines) > 0 {
			t.Errorf("%q", lines)
		}
		bed.mu.Lock()
		bed.relays = nil
		bed.mu.Unlock()
		time.Sleep(4 * time.Second)
		bed.hearEachOther(p, alice)
		leave(t, p)
	})
}
