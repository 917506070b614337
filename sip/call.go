package sip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// Call is one call with a phone. Its methods may be used from any goroutine, but not from the event callback: that one
// only puts events somewhere.
type Call struct {
	stack  *Stack
	trunk  *Trunk // nil if a resumed call's trunk is no longer configured
	id     dialogID
	info   Info
	log    *slog.Logger
	inbox  *inbox
	done   chan struct{} // closed when run has returned
	events outbox
	cancel atomic.Pointer[gosip.Request] // the CANCEL that has come

	snapshot atomic.Pointer[Dialog]
	media    atomic.Pointer[Media] // set once
	out      *outgoing             // of a call we dialled; what it holds belongs to run
	heardAt  netip.Addr            // where a resumed call is heard, but a new one need not be; zero = nowhere; run clears it

	// Only run touches what follows.
	state       state
	dialog      Dialog
	cseq        uint32 // last local sequence number used
	invite      *transaction
	prepared    []byte          // our SDP, between Accept and SendAnswer
	answer      *answer         // the 2xx that waits for its ACK
	ringing     time.Time       // when the last 180 or 183 is sent again
	early       *gosip.Response // that 180 or 183
	nextRTCP    time.Time
	silent      bool // the phone was asked whether it is there, or MediaTimeout was said
	nextProbe   time.Time
	hold        bool          // Hold was said
	goodbye     Cause         // why the call ends
	byeWhen     bool          // hang up as soon as the answer is acknowledged
	failed      bool          // Failed was said after a panic
	hasMoved    bool          // resumed with other addresses than the phone knows
	glares      int           // how often in a row the phone was offering, too, when we refreshed (491)
	rebuffs     int           // how often in a row the phone has refused our new addresses
	unheard     bool          // resumed, and nothing has come in the dialog since: the answer to its last request may not have left
	leap        bool          // resumed, and the phone has not taken a sequence number of ours yet
	keys        infoKeys      // keys to be sent as INFO
	keyWay      keyWay        // which of the phone's keys are copies
	rel         reliable      // provisional responses that wait for PRACK
	nextRefresh time.Time     // of the session timer; zero = none
	least       time.Duration // the session timer that the phone wants at least, in this dialog; 0 = it has not said
	lengthened  bool          // it was offered a longer one, and has not taken that yet
	offering    bool          // a re-INVITE of ours is on its way
	asking      bool          // the phone is asked whether it has the call, or will be when its turn comes
	asked       time.Time     // when it was sent that last
	srtpKeys    []string      // ours, one for each suite
	auth        auth          // who has challenged us
	referral    *referral     // the phone's wish to be elsewhere
	referring   bool          // a REFER of ours was sent
	unsure      bool          // resumed, and whether the phone has our REFER is not known
}

// state of a call; the diagram is in doc.go.
type state int

const (
	dialling   state = iota // our INVITE is on its way, or about to be sent
	proceeding              // INVITE received, not answered
	accepted                // answer prepared, ports bound; nothing sent
	answered                // 2xx sent, no ACK yet
	confirmed               // up
	ending                  // our BYE is on its way
	ended
)

func (s state) String() string {
	return [...]string{"dialling", "proceeding", "accepted", "answered", "confirmed", "ending", "ended"}[s]
}

// Errors of a call's methods.
var (
	// ErrEnded: the call is over.
	ErrEnded = errors.New("call has ended")
	// ErrState: the call is not in a state for this.
	ErrState = errors.New("not possible in this state of the call")
)

// ResponseError says that a call was refused with this status.
type ResponseError struct {
	Code   int
	Reason string
}

func (e *ResponseError) Error() string { return fmt.Sprintf("refused with %d %s", e.Code, e.Reason) }

// transaction is a request of the phone that needs a final answer, and sipgo's transaction for it.
type transaction struct {
	req      *gosip.Request
	tx       gosip.ServerTransaction
	released chan struct{} // closed when the handler that waits may let go
	final    bool
}

func newTransaction(req *gosip.Request, tx gosip.ServerTransaction) *transaction {
	return &transaction{req: req, tx: tx, released: make(chan struct{})}
}

// release is called by the run goroutine only.
func (t *transaction) release() {
	select {
	case <-t.released:
	default:
		close(t.released)
	}
}

func newCall(s *Stack, trunk *Trunk, req *gosip.Request, tx *gosip.ServerTx, source netip.AddrPort) *Call {
	tag, _ := req.To().Params.Get("tag")
	c := &Call{
		stack: s, trunk: trunk, id: dialogID{req.CallID().Value(), tag}, inbox: newInbox(), done: make(chan struct{}),
		info: inviteInfo(trunk, req), invite: newTransaction(req, tx), state: proceeding,
	}
	c.log = s.log.With("call", shortID(c.id.callID), "trunk", trunk.Name)
	c.dialog = dialogOf(s, trunk, c.info, req, addrPortOf(tx.Connection().LocalAddr()), source)
	c.publish()
	return c
}

// dialogOf is the dialog an INVITE begins (RFC 3261 §12.1.1).
func dialogOf(s *Stack, trunk *Trunk, info Info, req *gosip.Request, local, source netip.AddrPort) Dialog {
	t := Transport(strings.ToLower(req.Transport()))
	localTag, _ := req.To().Params.Get("tag")
	remoteTag, _ := req.From().Params.Get("tag")
	branch, _ := req.Via().Params.Get("branch")
	d := Dialog{
		CallID: req.CallID().Value(), LocalTag: localTag, RemoteTag: remoteTag, Role: UAS,
		LocalURI: addressOf(req.To()), RemoteURI: addressOf(req.From()),
		Vias: viasOf(req), RemoteCSeq: req.CSeq().SeqNo, RemoteNumbered: true, Transport: t, LocalSocket: local, Remote: source,
		Contact: s.contactFor(trunk, req, t, local), InviteBranch: branch, InviteCSeq: req.CSeq().SeqNo, Info: info,
		PeerAllow: listHeader(req, "Allow", ""), PeerSupported: listHeader(req, "Supported", "k"),
	}
	if h := req.Contact(); h != nil {
		d.RemoteTarget = h.Address.String()
	}
	for _, h := range req.GetHeaders("Record-Route") {
		d.RouteSet = append(d.RouteSet, splitAddresses(h.Value())...)
	}
	d.Media.MediaIndex = -1
	return d
}

// addressOf is the value of From or To without its tag.
func addressOf(h gosip.Header) string {
	switch h := h.(type) {
	case *gosip.FromHeader:
		c := *h
		c.Params = c.Params.Clone()
		c.Params.Remove("tag")
		return c.Value()
	case *gosip.ToHeader:
		c := *h
		c.Params = c.Params.Clone()
		c.Params.Remove("tag")
		return c.Value()
	}
	return ""
}

// shortID is enough of a Call-ID to follow a call in a log.
func shortID(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// Info is what the INVITE said.
func (c *Call) Info() Info { return c.info }

// OnEvent sets who hears of events, in order, one at a time. What happened before is told first, within OnEvent; later
// events come on the call's own goroutine. The callback must only put them somewhere: it must not block and not call
// back.
func (c *Call) OnEvent(f func(Event)) { c.events.listen(f) }

// Done is closed when the call is over and everything it held is given back.
func (c *Call) Done() <-chan struct{} { return c.done }

// Dialog is the state that must be saved to let the call survive a restart.
func (c *Call) Dialog() Dialog {
	d := c.snapshot.Load().clone()
	if m := c.media.Load(); m != nil {
		m.state(&d.Media)
	}
	return d
}

// Media is the call's sound: nil before Progress or Accept, there from the beginning in a call we dialled.
func (c *Call) Media() *Media { return c.media.Load() }

// Ring tells the phone that it rings (180).
func (c *Call) Ring() error { return c.do(c.ring) }

// Progress opens the media before the answer and tells the phone so (183 with the SDP answer): announcements and ringback
// of ours are heard, and nobody pays yet. [Call.Accept] then returns the same media. Errors are like Accept's.
func (c *Call) Progress() (Dialog, *Media, error) {
	if err := c.do(c.progress); err != nil {
		return Dialog{}, nil, err
	}
	return c.Dialog(), c.media.Load(), nil
}

// Accept prepares the answer: it negotiates the codec, binds the media ports and returns what must be saved before the
// answer leaves with [Call.SendAnswer]. If the offer cannot be accepted the phone is told so (488, 503) and the error
// is a *ResponseError. A second Accept returns the same.
func (c *Call) Accept() (Dialog, *Media, error) {
	if err := c.do(c.accept); err != nil {
		return Dialog{}, nil, err
	}
	return c.Dialog(), c.media.Load(), nil
}

// SendAnswer sends the 200 and repeats it until the phone acknowledges it, or for 32 s; see [Acked] and [NoAck]. It is
// ErrEnded when the phone's CANCEL was first.
func (c *Call) SendAnswer() error { return c.do(c.sendAnswer) }

// Answer is Accept and SendAnswer in one.
func (c *Call) Answer(ctx context.Context) (Dialog, *Media, error) {
	if err := ctx.Err(); err != nil {
		return Dialog{}, nil, err
	}
	d, m, err := c.Accept()
	if err != nil {
		return d, nil, err
	}
	if err := c.SendAnswer(); err != nil {
		return d, nil, err
	}
	return c.Dialog(), m, nil
}

// Reject refuses the call before it is answered. Headers are "Name: value" lines; the phrase of reason is replaced by
// the standard one if empty.
func (c *Call) Reject(code int, reason string, headers ...string) error {
	extra := make([]gosip.Header, 0, len(headers))
	for _, line := range headers {
		name, value, ok := strings.Cut(line, ":")
		if !ok || strings.ContainsAny(line, "\r\n\x00") {
			return fmt.Errorf("reject: header %q is not Name: value", clip(line))
		}
		extra = append(extra, gosip.NewHeader(strings.TrimSpace(name), strings.TrimSpace(value)))
	}
	if code < 300 || code > 699 {
		return fmt.Errorf("reject: status %d is not a refusal", code)
	}
	if reason = plainText(reason); reason == "" {
		reason = statusText(code)
	}
	return c.do(func() error { return c.reject(refuse(code, reason, extra...)) })
}

// Hangup ends the call in whatever state it is: BYE when it is up, a refusal before that. It does not wait; [Ended]
// tells when it is done. Repeating it does nothing.
func (c *Call) Hangup(cause Cause) error {
	err := c.do(func() error { return c.hangup(cause) })
	if errors.Is(err, ErrEnded) {
		return nil
	}
	return err
}

// Abandon lets go of the call without a word to the phone, because another process carries it on. When it returns, nothing of the
// call is left here. An INVITE that is under way is not cancelled.
func (c *Call) Abandon() {
	_ = c.do(func() error { c.abandon(); return nil }) // one that is over has nothing to let go
	<-c.done
}

// do runs f on the call's goroutine and waits for it.
func (c *Call) do(f func() error) error {
	result := make(chan error, 1)
	if !c.inbox.put(func() {
		err := ErrEnded // if f panics
		defer func() { result <- err }()
		err = f()
	}) {
		return ErrEnded
	}
	select {
	case err := <-result:
		return err
	case <-c.done:
		select { // run may have done it last
		case err := <-result:
			return err
		default:
			return ErrEnded
		}
	}
}

// run is the only goroutine that touches the call's state.
func (c *Call) run() {
	defer close(c.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for c.state != ended {
		timer.Reset(max(0, time.Until(c.deadline())))
		select {
		case <-c.inbox.ready:
			for _, f := range c.inbox.take() {
				c.safely(f)
			}
		case <-timer.C:
			c.safely(func() { c.tick(time.Now()) })
		case <-c.stack.root.Done():
			c.abandon()
			return
		}
	}
	for _, f := range c.inbox.close() {
		c.safely(f) // requests that came too late are still answered
	}
	c.survives(func() { c.emit(Ended{c.goodbye}) }) // if end panicked half-way
}

// safely turns a panic into the end of this call only.
func (c *Call) safely(f func()) {
	if !c.survives(f) && !c.survives(c.fail) {
		c.survives(c.end)
	}
}

// survives is false when f panicked.
func (c *Call) survives(f func()) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			c.stack.panicked(r)
		}
	}()
	f()
	return true
}

// fail ends the call because of a bug of ours: the first time as the phone expects it, then without a word to it.
func (c *Call) fail() {
	if c.failed || c.state == ending {
		c.goodbye = CauseFailure
		c.end()
		return
	}
	c.failed = true
	c.emit(Failed{CauseFailure})
	_ = c.hangup(CauseFailure) // it is nil: every state is known
}

// deadline is when tick must run next.
func (c *Call) deadline() time.Time {
	at := time.Now().Add(time.Hour)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	sooner(c.ringing)
	sooner(c.nextRTCP)
	sooner(c.keys.next)
	sooner(c.rel.next)
	if c.state == confirmed {
		sooner(c.nextRefresh)
		sooner(c.dialog.Transfer.Until)
	}
	if c.state == dialling {
		sooner(c.out.giveUp)
		sooner(c.out.silence)
	}
	if c.answer != nil {
		sooner(c.answer.next)
		sooner(c.answer.giveUp)
	}
	return at
}

// tick does what is due.
func (c *Call) tick(now time.Time) {
	if !c.ringing.IsZero() && !now.Before(c.ringing) {
		c.repeatEarly(now)
	}
	c.tickInfo(now)
	c.tickDial(now)
	c.tickReliable(now)
	c.tickSession(now)
	if c.state == confirmed {
		c.tickRefer(now)
	}
	if c.answer != nil {
		c.repeatAnswer(now)
	}
	if !c.nextRTCP.IsZero() && !now.Before(c.nextRTCP) {
		c.nextRTCP = now.Add(rtcpInterval)
		c.watchMedia(now)
	}
}

// watchMedia sends the RTCP report and notices silence.
func (c *Call) watchMedia(now time.Time) {
	m := c.media.Load()
	m.sendReport(now, false)
	m.keepAlive(now)
	limit := c.patience()
	silence := m.silentFor(now)
	switch {
	case limit < 0, c.state < answered: // early media is allowed to be silent, and nobody can be asked
	case silence < limit:
		c.silent = false
	case !c.silent && !now.Before(c.nextProbe):
		c.silent = true
		c.probe()
	}
}

// holdPatience: silence is what hold is, so a phone on hold is asked that many times less often. It is asked, though:
// one that lost power on hold would occupy its call for ever.
const holdPatience = 5

// patience is the silence after which the phone is asked; negative = never.
func (c *Call) patience() time.Duration {
	limit := c.stack.config.Limits.MediaTimeout
	if c.hold {
		limit *= holdPatience
	}
	return limit
}

// probe asks a silent phone whether it still has the call: one that is muted and saves bandwidth is not gone. OPTIONS finds most
// that are; but some answer it without a look at the dialog (405, 501, or 200: RFC 5057 §5.3), so who answers is asked once more, with
// UPDATE or a re-INVITE, which nobody takes who does not have the call.
func (c *Call) probe() {
	req, err := c.request(gosip.OPTIONS)
	if err != nil {
		c.probed(0, err)
		return
	}
	req.AppendHeader(gosip.NewHeader("Accept", sdpType))
	asked := c.id
	c.stack.calls.Go(func() {
		code, err := c.transact(req)
		c.inbox.put(func() {
			if c.id == asked { // else the dialog has been replaced meanwhile: its end says nothing of the new one
				c.probed(code, err)
			}
		})
	})
}

func (c *Call) probed(code int, err error) {
	now := time.Now()
	silence := c.media.Load().silentFor(now)
	limit := c.patience()
	switch {
	case c.state != confirmed || silence < limit:
	case err != nil || code == 408 || code == 481, // RFC 3261 §12.2.1.2: the dialog is over
		c.hasMoved: // or what it says goes where nobody is any more
		c.log.Info("phone is gone", "silence", silence, "code", code)
		c.emit(MediaTimeout{silence})
	default:
		c.silent, c.nextProbe = false, now.Add(limit)
		if c.asking {
			return // that says it, too
		}
		if err := c.refresh(); err != nil {
			c.log.Warn("silent phone is not asked further", "err", err)
		}
	}
}

func (c *Call) emit(e Event) { c.events.put(e) }

// publish makes the dialog visible to others.
func (c *Call) publish() {
	d := c.dialog.clone()
	c.snapshot.Store(&d)
}

// abandon lets go of everything without a word to the phone: another process may carry the call on.
func (c *Call) abandon() {
	_ = c.inbox.close() // those who wait see done
	c.state = ended
	c.invite.releaseIfAny()
	c.answer.releaseIfAny()
	if c.referral != nil {
		c.referral.t.releaseIfAny()
	}
	if m := c.media.Load(); m != nil {
		m.abandon()
	}
	c.stack.forget(c)
}

func (t *transaction) releaseIfAny() {
	if t != nil {
		t.release()
	}
}

// end is the one way a call is over.
func (c *Call) end() {
	if c.state == ended {
		return
	}
	was := c.state
	c.state = ended
	c.ringing, c.nextRTCP, c.rel.next = time.Time{}, time.Time{}, time.Time{}
	if c.invite != nil {
		if !c.invite.final {
			c.invite.final = true
			c.send(c.invite, refuse(487, statusText(487)))
		}
		c.invite.release()
	}
	c.answer.releaseIfAny()
	c.answer = nil
	c.dropReferral()
	if m := c.media.Load(); m != nil {
		m.close(was >= answered)
	}
	c.publish()
	if c.out != nil && c.out.req != nil {
		c.stack.part(c)
	}
	c.stack.forget(c)
	c.log.Info("call ended", "state", was.String(), "cause", c.goodbye.String())
	c.emit(Ended{c.goodbye})
}
