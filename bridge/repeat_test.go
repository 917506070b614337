package bridge

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

// wire is the way from the homeserver to the bridge. The zero value loses nothing.
type wire struct {
	mu   sync.Mutex
	word string // the answer to the transaction with it is lost, and no other one comes through until mend; "" = none; guarded by mu
	cut  bool   // guarded by mu
}

var errLost = errors.New("lost on the way")

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	w.mu.Lock()
	cut, word := w.cut, w.word
	w.mu.Unlock()
	if cut && strings.Contains(req.URL.Path, "/transactions/") {
		return nil, errLost
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err == nil && word != "" && bytes.Contains(body, []byte(word)) {
		_ = res.Body.Close()
		w.mu.Lock()
		w.cut = true
		w.mu.Unlock()
		return nil, errLost
	}
	return res, err
}

// loses lets the bridge take the transaction with that word, and the homeserver not hear of it.
func (w *wire) loses(word string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.word = word
}

func (w *wire) isCut() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut
}

func (w *wire) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.word, w.cut = "", false
}

// repeated is how many transactions have come to this process that were taken before, by it or the one before.
func (b *bed) repeated() uint64 { return b.process.bridge.matrix.Metrics().TransactionsRepeated.Load() }

// The process is killed when it has carried out a command, but the homeserver has not heard that it took it: the homeserver repeats it to
// the next one, and nobody is called twice.
func TestCommandThatComesAgainAfterAKillIsCarriedOutOnce(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	b.stop()
	doomed := b.startDoomed()
	alice := b.person("alice", member.JSSDK, true)
	b.wire.loses("!sip call 1001")
	b.says(alice, "!sip call 1001")
	call := b.called(p)
	if err := call.PickUp(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.told("1001 has answered.")
	b.await("the answer to be lost", b.wire.isCut)
	kill(t, doomed)
	b.start()
	b.comesAgain(alice, p, 1)
	if call.Ended() != "" {
		t.Errorf("the call ended: %q", call.Ended())
	}
	if n := len(b.boards()); n != 2 {
		t.Errorf("the bot has posted %q, want one notice of each of two calls", b.boards())
	}
	if err := call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	b.clear()
	b.settled(2)
}

// comesAgain lets the homeserver repeat the order, after before calls were made, and sees that only what is ordered then is carried out.
func (b *bed) comesAgain(who *member.Member, p *phone.Phone, before int) {
	b.t.Helper()
	b.wire.mend()
	b.await("the transaction to come again", func() bool { return b.repeated() > 0 })
	b.says(who, "!sip call 1002") // what is said in a room is done in turn
	call := b.called(p)
	if got, n := call.Invite().Recipient.User, p.Rung(); got != "1002" || n != before+1 {
		b.t.Errorf("%s was called, and %d calls made; want what was said last alone, and %d", got, n, before+1)
	}
	if err := call.Refuse(486, "Busy Here"); err != nil {
		b.t.Fatal(err)
	}
	b.told("Call to 1002: busy.")
}

// The process dies between taking a command and carrying it out: the repeat counts as taken. Nobody is called, and who says it again
// is heard (docs/resilience.md, What is not covered).
func TestCommandTakenByAProcessThatDiesIsNotCarriedOutLater(t *testing.T) {
	t.Parallel()
	b, p := dialBed(t, nil)
	alice := b.person("alice", member.JSSDK, true)
	b.says(alice, "!sip who") // the bot is in the room
	b.told("There is no phone here.")
	first := b.process.bridge
	first.mu.Lock()
	first.closing = true // from here on it takes what comes and does nothing about it, as if it were dead
	first.mu.Unlock()
	b.wire.loses("!sip call 1001")
	b.says(alice, "!sip call 1001")
	b.await("the answer to be lost", b.wire.isCut)
	b.fence()
	b.start()
	b.comesAgain(alice, p, 0)
	b.clear()
	b.settled(1)
}
