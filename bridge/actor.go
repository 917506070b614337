package bridge

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/rtp"
	"golang.org/x/time/rate"

	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/bridge/menu"
	"trunkline/matrixcall"
	"trunkline/sip"
	"trunkline/transcode"
)

// actor is one leg: a goroutine that owns the leg's state and its one timer. Everything else sends it events.
type actor struct {
	id     leg.ID
	bridge *Bridge
	log    *slog.Logger
	call   *sip.Call
	info   sip.Info
	party  sip.Caller     // who is on the phone: the caller, or who is called
	order  *order         // nil if the phone called us
	epoch  int64          // of its rows
	inbox  *inbox[func()] // run does what comes, in order
	trace  *trace
	begun  time.Time

	ctx  context.Context // ends when the leg is forgotten
	stop context.CancelCauseFunc
	wg   sync.WaitGroup // goroutines of this leg: joining, leaving

	sounding <-chan struct{} // closed once a phone that was answered by the process before is sent sound again; nil = it is not

	voice  atomic.Pointer[voice]                 // set by the actor, read by whoever brings packets
	outlet atomic.Pointer[matrixcall.Membership] // where sound for the room goes; nil while the ghost is on its way

	join   joining // the attempt to enter the room's call
	ring   ring
	lobby  lobby
	naming naming
	move   move
	away   *away // the phone was asked to call somebody else; nil = it was not

	// The bridge's mutex guards these. The actor itself may read target, for it alone writes it.
	target   string // the room's alias or id, once routed
	phase    leg.Phase
	people   int
	counted  chan struct{} // closed once people is known
	gathered *gathering
	speaking map[deviceKey]bool // devices that this ghost hears speaking
	muted    map[deviceKey]bool // devices whose users muted the microphone, perhaps before the phone was answered

	// Only run and what it calls touch what follows, and joinRoom reads the first two.
	options   config.Options // of the route, all set
	name      string         // of the caller, as the room sees it
	state     leg.State
	dialin    dialin
	media     *sip.Media
	sounds    func()                     // called when the phone is sent its first packet; nil = nobody waits for it
	early     *voice                     // at a desk of its own, while the phone hears tones of ours
	before    *matrixcall.MembershipInfo // of the process before; nil = the leg is ours from the beginning
	held      bool                       // the phone is on hold
	displaced bool                       // another process has taken the leg over
	unsaved   []func()                   // each called once the next save is done, for the phone waits
	stream    transcode.PhoneConfig      // towards the phone, when it has begun
	answered  time.Time
	saves     int    // how many were begun
	unsent    uint64 // packets that could be sent neither to the phone nor to peers
	lost      uint64 // packets of the phone that never came, or came too late
	concealed uint64 // frames of 20 ms made up in their place
}

// errForgotten is the cause of a leg's context.
var errForgotten = errors.New("leg is over")

// newActor makes the leg of a new call.
func newActor(b *Bridge, id leg.ID, call *sip.Call) *actor {
	a := makeActor(b, id, call)
	a.tell(leg.Invited) // before anything that the phone may report
	return a
}

func makeActor(b *Bridge, id leg.ID, call *sip.Call) *actor {
	info := call.Info()
	party := info.Caller
	party.Number = b.plan.Local(info.Trunk, party.Number)
	ctx, stop := context.WithCancelCause(context.WithoutCancel(b.ctx))
	return &actor{
		id: id, bridge: b, call: call, info: info, party: party, epoch: 1,
		log:   b.log.With("leg", id, "trunk", info.Trunk, "call", info.CallID),
		inbox: newInbox[func()](), trace: newTrace(), begun: time.Now(),
		ctx: ctx, stop: stop, counted: make(chan struct{}), speaking: make(map[deviceKey]bool), muted: make(map[deviceKey]bool),
		state: leg.State{Rules: b.rules}, join: joining{over: make(chan struct{})},
		dialin: dialin{hands: rate.NewLimiter(rate.Every(handEvery), handsAtOnce)},
		name:   ghostName(party, b.showNumbers[info.Trunk]),
	}
}

// tell puts an event into the inbox; it never blocks.
func (a *actor) tell(kind leg.EventKind) { a.tellEvent(leg.Event{Kind: kind}) }

func (a *actor) tellEvent(ev leg.Event) { a.inbox.Put(func() { a.step(ev) }) }

// do does something in the actor's goroutine, and waits for what comes of it.
func (a *actor) do(f func() error) error {
	done := make(chan error, 1)
	a.inbox.Put(func() { done <- f() })
	select {
	case err := <-done:
		return err
	case <-a.ctx.Done():
		return errPhoneLeft
	}
}

var errPhoneLeft = &refusal{text: "That phone has just left."}

// run is the actor's loop; it returns when the leg is forgotten.
func (a *actor) run() {
	defer a.wg.Wait()
	defer a.stop(errForgotten)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for a.state.Phase != leg.Ended {
		select {
		case <-a.bridge.suspended:
			a.suspend()
			return
		case <-a.bridge.abandoned:
			a.abandon()
			return
		case <-a.inbox.Some():
			for _, do := range a.inbox.Take() {
				do()
				if a.displaced {
					a.yield()
					return
				}
			}
		case <-timer.C:
			a.step(leg.Event{Kind: leg.Tick})
			a.stepMenu(menu.Event{Kind: menu.Tick})
		}
		if due := a.deadline(); !due.IsZero() {
			timer.Reset(time.Until(due))
		}
	}
}

func (a *actor) step(ev leg.Event) {
	now := time.Now()
	before := a.state.Phase
	var effects []leg.Effect
	a.state, effects = leg.Step(a.state, now, ev)
	a.trace.add(now, ev, effects, a.state)
	a.log.Debug("leg step", "event", ev, "state", a.state)
	if a.state.Phase != before {
		if a.state.Phase == leg.Talking && a.answered.IsZero() {
			a.answered = now
		}
		a.bridge.entered(a, a.state.Phase)
	}
	for _, e := range effects {
		a.perform(e)
		if a.bridge.performed != nil {
			a.bridge.performed(e)
		}
	}
	a.menuFollows(before, ev)
	a.moveFollows()
	if caller := a.naming.early; caller != nil && a.state.Room == leg.Up {
		a.naming.early = nil
		a.identify(*caller)
	}
}

// listen takes what the call reports.
func (a *actor) listen() {
	call := a.call
	call.OnEvent(func(ev sip.Event) { a.hear(call, ev) })
}

// hear takes an event, as long as the call is the leg's: a trunk that has refused it goes on to report its end. What is reported when the
// leg has been let go is not read any more. Either way nobody waits for it.
func (a *actor) hear(call *sip.Call, ev sip.Event) {
	saved := func() {}
	if changed, ok := ev.(sip.DialogChanged); ok && changed.Saved != nil {
		done := sync.OnceFunc(func() { close(changed.Saved) })
		forget := context.AfterFunc(a.ctx, done)
		saved = func() { forget(); done() }
	}
	a.inbox.Put(func() {
		if a.order != nil && a.order.over == call {
			saved()
			return
		}
		a.fromPhone(ev, saved)
	})
}

// fromPhone translates what the call reports; saved is to be called when a change is in the row, or can't be. The actor calls it, and
// it puts nothing into the inbox again: what is reported later would overtake that.
func (a *actor) fromPhone(ev sip.Event, saved func()) {
	switch ev := ev.(type) {
	case sip.Provisional, sip.Answered, sip.Refused:
		a.fromDialled(ev)
	case sip.Acked:
		a.step(leg.Event{Kind: leg.PhoneAcked})
	case sip.Cancelled:
		a.step(leg.Event{Kind: leg.PhoneCancelled, Cause: leg.WhyLeft(codes(ev.Cause))})
	case sip.Bye:
		a.step(leg.Event{Kind: leg.PhoneHungUp, Cause: leg.WhyLeft(codes(ev.Cause))})
	case sip.NoAck, sip.MediaTimeout, sip.Failed:
		a.step(leg.Event{Kind: leg.PhoneFailed})
	case sip.Ended:
		a.step(leg.Event{Kind: leg.PhoneReleased})
	case sip.Digit:
		a.stepMenu(menu.Event{Kind: menu.Digit, Key: menu.Key(ev.Key)})
	case sip.DialogChanged:
		a.dialogChanged(saved)
	case sip.TransferWanted:
		a.wantsMove(ev)
	case sip.Transferring:
		a.transferring(ev.Code)
	case sip.IdentityChanged:
		a.identify(ev.Caller)
	case sip.MediaChanged:
		a.setFormat(ev.Format)
		a.step(leg.Event{Kind: leg.DialogChanged})
	case sip.Hold:
		a.hold(ev.On)
		a.step(leg.Event{Kind: leg.DialogChanged})
	}
}

// fromRoom translates what the membership reports. It is called by the matrixcall package; it holds a lock for a few
// lines at most, and never calls back.
func (a *actor) fromRoom(ev matrixcall.Event) {
	switch ev := ev.(type) {
	case matrixcall.People:
		a.bridge.people(a, ev.N)
	case matrixcall.PeerGone:
		a.bridge.unseat(a, deviceOf(ev.Peer))
		if v := a.voice.Load(); v != nil {
			v.PeerGone(deviceOf(ev.Peer))
		}
	case matrixcall.PeerMuted:
		a.bridge.mutes(a, deviceOf(ev.Peer), ev.Muted)
	case matrixcall.PeerLoss:
		if v := a.voice.Load(); v != nil {
			v.PeerLoss(deviceOf(ev.Peer), ev.Fraction)
		}
	case matrixcall.Speaking:
		a.bridge.speaks(a, deviceOf(ev.Peer), ev.On)
	case matrixcall.Digit:
		if v := a.voice.Load(); v != nil {
			v.opts.Press(ev.Digit)
		}
	case matrixcall.CallEnded:
		a.tell(leg.CallEnded)
	case matrixcall.Displaced:
		a.inbox.Put(func() { a.displaced = true })
	case matrixcall.Failed:
		a.log.Warn("membership lost", "err", ev.Err)
		a.inbox.Put(func() { a.wg.Go(func() { a.complain(ev.Err) }) })
		a.tell(leg.RoomFailed)
	}
}

// fromPeer brings a device's sound to the desk.
func (a *actor) fromPeer(peer matrixcall.PeerKey, p *rtp.Packet) {
	if v := a.voice.Load(); v != nil {
		v.FromPeer(deviceOf(peer), p)
	}
}

func deviceOf(peer matrixcall.PeerKey) deviceKey {
	return deviceKey{User: peer.User, Device: peer.Device}
}
