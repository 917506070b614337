package matrixcall

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

const (
	// maxRound is how many devices one request may name, maxWaiting how
	// many messages of one ghost may wait.
	maxRound   = 50
	maxWaiting = 4096

	// maxMessage is the largest content a homeserver passes on.
	maxMessage = 60 << 10

	sendDeadline = 20 * time.Second

	// plainInviteAge is how long an encrypted invite may stay unanswered
	// before it is repeated plain, for peers that were only heard plain.
	plainInviteAge = 10 * time.Second

	// unheardInviteAge is how long before it is repeated plain, too, for
	// peers that were not heard at all.
	unheardInviteAge = 20 * time.Second

	// maxInvites is how many invites an outbox remembers.
	maxInvites = 1000
)

var (
	errPlainForbidden = errors.New("the device has no keys, and the configuration wants olm")
	errNoOneTimeKey   = errors.New("the device has keys and gives out no one-time key")
	errKeysUnknown    = errors.New("the device's homeserver does not tell whether it has keys")
	errOutboxFull     = errors.New("too many messages are waiting to be sent")
	errTooLarge       = errors.New("message is too large for a homeserver")
)

// toDevice implements signalSender.
func (s *Service) toDevice(ctx context.Context, ghost *Ghost, batch []OutMessage) (sent func(place int) error) {
	return ghost.outbox.send(ctx, batch)
}

// letter is one message waiting in an outbox.
type letter struct {
	to      deviceName
	kind    string
	content json.RawMessage
	ctx     context.Context // of the send it belongs to
	done    chan error      // has room for how it ended
	sealed  *sealing        // set when it was prepared
}

// finish reports how the letter ended, once.
func (l *letter) finish(err error) { l.done <- err }

// outbox sends the messages of one ghost, in order for each device. It works
// in rounds: of every device the oldest message, one request per type, and the
// next round when they are answered. So there are never two requests under way
// for a device (matrix-js-sdk loses messages that overtake each other), and a
// message for many devices is one request.
//
// Devices whose keys must be asked for, or claimed from, are prepared beside
// the rounds, those of each homeserver by themselves: one that is slow holds up
// its own users only. Such a device's messages wait meanwhile.
//
// send fills the queue; one goroutine drains it and ends when nothing can be
// sent. A full queue refuses.
type outbox struct {
	ghost *Ghost

	mu      sync.Mutex
	waiting []*letter                     // guarded by mu
	held    map[deviceName]bool           // being prepared; guarded by mu
	running bool                          // drain is at work; guarded by mu
	invites map[inviteName]*inviteAttempt // ours, as long as they may be repeated or followed; guarded by mu
}

type inviteName struct {
	to   deviceName
	call string
}

// inviteAttempt is how an invite was sent so far.
type inviteAttempt struct {
	first time.Time
	plain bool // the last time
	ever  bool // it was sent plain
}

// send queues the batch; sent waits until the homeserver has the message at that
// place, or it cannot be sent, or ctx ends. It can be asked once for each place.
func (o *outbox) send(ctx context.Context, batch []OutMessage) (sent func(place int) error) {
	all, queued := make([]*letter, len(batch)), make([]*letter, 0, len(batch))
	for place, message := range batch {
		content, err := encodeMessage(message)
		l := &letter{
			to: deviceName{message.User, message.Device}, kind: message.Type, content: content, ctx: ctx, done: make(chan error, 1),
		}
		all[place] = l
		if err != nil {
			o.ghost.service.metrics.MessagesFailed.Add(1)
			l.finish(err)
			continue
		}
		queued = append(queued, l)
	}
	if err := o.put(queued); err != nil {
		for _, l := range queued {
			l.finish(err)
		}
	}
	return func(place int) error {
		select {
		case err := <-all[place].done:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func encodeMessage(message OutMessage) (json.RawMessage, error) {
	content, err := json.Marshal(message.Content)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", message.Type, err)
	}
	if len(content) > maxMessage {
		return nil, fmt.Errorf("%s to %s: %w", message.Type, userName(message.User), errTooLarge)
	}
	return content, nil
}

func (o *outbox) put(letters []*letter) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.waiting)+len(letters) > maxWaiting {
		o.ghost.service.metrics.MessagesFailed.Add(uint64(len(letters)))
		return errOutboxFull
	}
	if len(letters) > 0 && !o.rouse() {
		return errClosed
	}
	o.waiting = append(o.waiting, letters...)
	return nil
}

// rouse sees to it that drain is at work, unless the service closes. Called
// with mu held.
func (o *outbox) rouse() bool {
	o.running = o.running || o.ghost.service.spawn(o.drain)
	return o.running
}

// busy says whether anything waits or is under way.
func (o *outbox) busy() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.running || len(o.held) > 0
}

func (o *outbox) drain() {
	ctx := o.ghost.service.ctx
	for {
		round := o.take()
		if len(round) == 0 {
			return
		}
		round = o.sendOff(ctx, round)
		if err := o.deliver(ctx, round); err != nil {
			for _, l := range round {
				o.fail(l, err)
			}
		}
	}
}

// sendOff has those letters prepared that cannot be sealed at once, and returns
// the others.
func (o *outbox) sendOff(ctx context.Context, round []*letter) (ready []*letter) {
	slow := make(map[string][]*letter)
	for _, l := range round {
		if o.isReady(ctx, l) {
			ready = append(ready, l)
		} else {
			server := l.to.User.Homeserver()
			slow[server] = append(slow[server], l)
		}
	}
	for _, letters := range slow {
		o.hold(letters)
		if !o.ghost.service.spawn(func() { o.prepare(ctx, letters) }) {
			o.giveUp(letters, errClosed)
		}
	}
	return ready
}

// isReady says whether a letter can be sealed without asking for keys.
func (o *outbox) isReady(ctx context.Context, l *letter) bool {
	directory := o.ghost.service.directory
	if l.sealed != nil {
		return true
	}
	if !directory.fresh(l.to) {
		return false
	}
	device := directory.list(l.to.User).devices[l.to.Device]
	return device == nil || !o.ghost.keys.needsKey(ctx, device)
}

func (o *outbox) hold(letters []*letter) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held == nil {
		o.held = make(map[deviceName]bool)
	}
	for _, l := range letters {
		o.held[l.to] = true
	}
}

// prepare seals letters for one homeserver's users and puts them back where
// they were: before all others for their devices.
func (o *outbox) prepare(ctx context.Context, letters []*letter) {
	sealed, err := o.sealWithStore(ctx, letters)
	if err != nil {
		o.giveUp(letters, err)
		return
	}
	for _, l := range letters {
		result, hasKeys := sealed[l.to]
		result.plain = !hasKeys
		l.sealed = &result
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting = slices.Concat(letters, o.waiting)
	o.release(letters)
}

// giveUp fails letters that were held.
func (o *outbox) giveUp(letters []*letter, err error) {
	for _, l := range letters {
		o.fail(l, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.release(letters)
}

// release lets the devices of letters have messages again. Called with mu held.
func (o *outbox) release(letters []*letter) {
	for _, l := range letters {
		delete(o.held, l.to)
	}
	if len(o.waiting) > 0 && !o.rouse() {
		for _, l := range o.waiting {
			o.fail(l, errClosed)
		}
		o.waiting = nil
	}
}

// take removes the next round from the queue: of each device the oldest
// message, unless the device is being prepared. Messages nobody waits for any
// more are dropped.
func (o *outbox) take() []*letter {
	o.mu.Lock()
	defer o.mu.Unlock()
	var round, rest []*letter
	named := make(map[deviceName]bool, len(o.held))
	maps.Copy(named, o.held)
	for _, l := range o.waiting {
		switch {
		case l.ctx.Err() != nil:
			o.fail(l, context.Cause(l.ctx))
		case named[l.to] || len(round) == maxRound:
			named[l.to] = true // what is behind stays behind
			rest = append(rest, l)
		default:
			named[l.to] = true
			round = append(round, l)
		}
	}
	o.waiting = rest
	o.running = len(round) > 0
	return round
}

func (o *outbox) fail(l *letter, err error) {
	o.ghost.service.metrics.MessagesFailed.Add(1)
	l.finish(fmt.Errorf("send %s to %s %s: %w", l.kind, userName(l.to.User), l.to.Device, tidy(err)))
}

// deliver sends a round. The error, if any, is for all letters of the round.
func (o *outbox) deliver(ctx context.Context, round []*letter) error {
	unsealed := slices.DeleteFunc(slices.Clone(round), func(l *letter) bool { return l.sealed != nil })
	sealed, err := o.sealWithStore(ctx, unsealed)
	if err != nil {
		return err
	}
	groups := make(map[string]*parcel)
	for _, l := range round {
		result, hasKeys := sealed[l.to]
		if l.sealed != nil {
			result, hasKeys = *l.sealed, !l.sealed.plain
		}
		if result.err != nil {
			o.ghost.log.Warn("message cannot be encrypted", "user", userName(l.to.User), "device", l.to.Device, "err", tidy(result.err))
			o.fail(l, result.err)
			continue
		}
		kind, content := event.ToDeviceEncrypted.Type, result.content
		if !hasKeys {
			if !o.ghost.service.cfg.AllowPlain || l.kind == event.ToDeviceDummy.Type {
				o.fail(l, errPlainForbidden)
				continue
			}
			kind, content = l.kind, l.content
		}
		if groups[kind] == nil {
			groups[kind] = &parcel{kind: kind}
		}
		groups[kind].add(l, content)
	}
	for _, kind := range slices.Sorted(maps.Keys(groups)) {
		o.post(ctx, groups[kind])
	}
	return nil
}

// sealing is what became of encrypting a message.
type sealing struct {
	content json.RawMessage
	err     error
	plain   bool // there is nothing to encrypt for; only of a letter that was prepared
}

// sealWithStore is seal, again if need be until olm's tables can be read:
// calls outlive the absence of the database, and what they say waits for it.
// A database that answers now may not have a moment ago, so the last word has
// an attempt that began after it answered.
func (o *outbox) sealWithStore(ctx context.Context, round []*letter) (map[deviceName]sealing, error) {
	answered := false
	for attempt := 0; ; attempt++ {
		sealed, err := o.seal(ctx, round)
		if err != nil {
			return nil, err
		}
		broken := slices.ContainsFunc(slices.Collect(maps.Values(sealed)), func(s sealing) bool { return s.err != nil })
		if !broken {
			return sealed, nil
		}
		away := o.ghost.service.storeAway(ctx)
		if away == nil && answered {
			return sealed, nil // it was something else
		}
		if answered = away == nil; answered {
			continue
		}
		if err := o.pause(ctx, round, attempt, away); err != nil {
			return nil, err
		}
	}
}

// seal encrypts the round's messages for all devices that have published keys.
// Who is missing in the result gets a plain message: devices without keys, and
// those that cannot read olm although they have some (see wantsPlain) or give
// out no one-time key and were only ever heard plain. Nobody else does, whatever
// goes wrong: whoever waits for the message hears of it and tries again.
func (o *outbox) seal(ctx context.Context, round []*letter) (map[deviceName]sealing, error) {
	names := make([]deviceName, 0, len(round))
	for _, l := range round {
		names = append(names, l.to)
	}
	known, err := o.lookUp(ctx, round, names)
	if err != nil {
		return nil, err
	}
	directory := o.ghost.service.directory
	sealed := make(map[deviceName]sealing)
	wanted := make(map[deviceName]*letter)
	for _, l := range round {
		switch {
		case known[l.to] == nil && directory.unsure(l.to) && !directory.speaksPlainOnly(l.to):
			sealed[l.to] = sealing{err: errKeysUnknown}
		case known[l.to] != nil && !o.wantsPlain(l):
			wanted[l.to] = l
		}
	}
	if err := o.beginSessions(ctx, round, known, wanted, sealed); err != nil {
		return nil, err
	}
	kinds := make(map[string]map[deviceName]*event.Content)
	for to, l := range wanted {
		if kinds[l.kind] == nil {
			kinds[l.kind] = make(map[deviceName]*event.Content)
		}
		kinds[l.kind][to] = &event.Content{VeryRaw: l.content}
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		contents, err := o.ghost.keys.encrypt(ctx, kind, kinds[kind])
		for to, content := range kinds[kind] {
			one, err := contents[to], err
			if err != nil { // one device can spoil it for all: try them one by one
				one, err = o.encryptOne(ctx, kind, to, content)
			}
			if err == nil && one == nil {
				err = errNoOneTimeKey // its session went meanwhile
			}
			if err != nil {
				sealed[to] = sealing{err: err}
				continue
			}
			text, err := json.Marshal(one)
			sealed[to] = sealing{content: text, err: err}
		}
	}
	return sealed, nil
}

// beginSessions makes olm sessions with those devices among the wanted that have
// none, one homeserver after the other; there is more than one only if a session
// went after isReady saw it. Whoever stays without a session is wanted no more:
// what was only ever heard plain gets plain, the others' letters fail.
func (o *outbox) beginSessions(
	ctx context.Context, round []*letter, known map[deviceName]*id.Device, wanted map[deviceName]*letter, sealed map[deviceName]sealing,
) error {
	keys, service := o.ghost.keys, o.ghost.service
	lacking := make(map[string][]*id.Device)
	for to := range wanted {
		if keys.needsKey(ctx, known[to]) {
			lacking[to.User.Homeserver()] = append(lacking[to.User.Homeserver()], known[to])
		}
	}
	for server, devices := range lacking {
		var err error
		for attempt := 0; ; attempt++ {
			if err = keys.makeSessions(ctx, server, devices); err == nil || errors.Is(err, errServerAway) || !isTransient(err) {
				break
			}
			if err := o.pause(ctx, round, attempt, err); err != nil {
				return err
			}
		}
		for _, device := range devices {
			to := deviceName{device.UserID, device.DeviceID}
			if keys.hasSession(ctx, device) {
				continue
			}
			delete(wanted, to)
			if !service.cfg.AllowPlain || !service.directory.speaksPlainOnly(to) {
				sealed[to] = sealing{err: cmp.Or(err, errNoOneTimeKey)}
			}
		}
	}
	return nil
}

func (o *outbox) encryptOne(ctx context.Context, kind string, to deviceName, content *event.Content) (*event.Content, error) {
	sealed, err := o.ghost.keys.encrypt(ctx, kind, map[deviceName]*event.Content{to: content})
	return sealed[to], err
}

// lookUp finds the devices' keys. While our homeserver cannot be asked it
// tries again (a foreign one only fails its own users' messages): sending plain to somebody who has keys would be wrong, and
// nothing else could be sent either.
func (o *outbox) lookUp(ctx context.Context, round []*letter, names []deviceName) (map[deviceName]*id.Device, error) {
	for attempt := 0; ; attempt++ {
		known, err := o.ghost.service.directory.find(ctx, o.ghost.keys, names)
		if err == nil || !isTransient(err) {
			return known, err
		}
		if err := o.pause(ctx, round, attempt, err); err != nil {
			return nil, err
		}
	}
}

// wantsPlain says whether a message should go plain although the device has
// keys. They can be those of an earlier life: matrix-js-sdk without crypto
// keeps the device and cannot read olm. It shows when an invite stays
// unanswered, so repeated invites go plain to a device that was only ever heard
// plain, and after twice as long by turns both ways to a device that was not
// heard at all. If it then speaks plain, the rest of that call goes plain, too.
func (o *outbox) wantsPlain(l *letter) bool {
	directory := o.ghost.service.directory
	if !o.ghost.service.cfg.AllowPlain || directory.knows(l.to, true) {
		return false
	}
	var content struct {
		CallID string `json:"call_id"`
	}
	if json.Unmarshal(l.content, &content) != nil {
		return false
	}
	onlyPlain := directory.speaksPlainOnly(l.to)
	o.mu.Lock()
	defer o.mu.Unlock()
	name := inviteName{l.to, content.CallID}
	sent := o.invites[name]
	switch {
	case l.kind != typeInvite:
		return sent != nil && sent.ever && onlyPlain
	case sent == nil:
		if o.invites == nil {
			o.invites = make(map[inviteName]*inviteAttempt)
		}
		makeRoom(o.invites, name, maxInvites)
		o.invites[name] = &inviteAttempt{first: time.Now()}
		return false
	}
	age := time.Since(sent.first)
	sent.plain = age >= plainInviteAge && onlyPlain || age >= unheardInviteAge && !sent.plain
	sent.ever = sent.ever || sent.plain
	return sent.plain
}

// parcel is one sendToDevice request: messages of one type for some devices.
type parcel struct {
	kind     string
	letters  []*letter
	messages map[id.UserID]map[id.DeviceID]json.RawMessage
}

func (p *parcel) add(l *letter, content json.RawMessage) {
	p.letters = append(p.letters, l)
	if p.messages == nil {
		p.messages = make(map[id.UserID]map[id.DeviceID]json.RawMessage)
	}
	if p.messages[l.to.User] == nil {
		p.messages[l.to.User] = make(map[id.DeviceID]json.RawMessage)
	}
	p.messages[l.to.User][l.to.Device] = content
}

// post sends a parcel and finishes its letters. A request that got no answer
// is repeated with the same transaction id and the same content, so that the
// homeserver takes it once.
func (o *outbox) post(ctx context.Context, p *parcel) {
	s := o.ghost.service
	txn := s.transactionID()
	for attempt := 0; ; attempt++ {
		s.metrics.SendRequests.Add(1)
		err := o.ghost.putToDevice(ctx, p.kind, txn, p.messages)
		switch {
		case err == nil:
			o.ghost.nudger.follow(p.letters)
			s.metrics.MessagesSent.Add(uint64(len(p.letters)))
			if p.kind != event.ToDeviceEncrypted.Type {
				s.metrics.MessagesSentPlain.Add(uint64(len(p.letters)))
			}
			for _, l := range p.letters {
				l.finish(nil)
			}
			return
		case isTransient(err):
			if err = o.pause(ctx, p.letters, attempt, err); err == nil {
				s.metrics.SendRetries.Add(1)
				continue
			}
		case isUnknownDevice(err):
			o.ghost.deviceGone()
			err = errDeviceGone
		case len(p.letters) > 1:
			// The homeserver minds one of them and does not say which.
			for _, l := range p.letters {
				single := &parcel{kind: p.kind}
				single.add(l, p.messages[l.to.User][l.to.Device])
				o.post(ctx, single)
			}
			return
		}
		for _, l := range p.letters {
			o.fail(l, err)
		}
		return
	}
}

// pause waits before another attempt. It returns an error when there is to be
// none: the service closes, or nobody waits for any of the letters any more.
func (o *outbox) pause(ctx context.Context, letters []*letter, attempt int, cause error) error {
	wanted := slices.ContainsFunc(letters, func(l *letter) bool { return l.ctx.Err() == nil })
	if !wanted {
		return cause
	}
	wait := max(backoff(attempt, 250*time.Millisecond, 8*time.Second), retryAfter(cause))
	if attempt == 2 {
		o.ghost.log.Warn("messages are stuck", "messages", len(letters), "err", tidy(cause))
	}
	return sleep(ctx, wait)
}

// transactionID returns an id no request of this application service has used
// before. Synapse tells requests apart by path and application service, not by
// ghost: a second ghost's request with a used id is swallowed with a 200.
func (s *Service) transactionID() string {
	return fmt.Sprintf("%s.%d", s.session, s.requests.Add(1))
}
