package matrixcall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

const (
	// keyPatience is how long a message waits for its key, and keyLook how
	// often the homeserver is asked for it meanwhile.
	keyPatience = 8 * time.Second
	keyLook     = time.Second

	// maxSecretive is how many people's messages may be on their way to be
	// read at once, maxSecrets how many of each: what is more is not read.
	maxSecretive = 64
	maxSecrets   = 16

	// maxRoomsOf is in how many rooms messages of one user may wait, strangePlaces
	// for how many of those that nothing need count of, beside maxSecretive.
	maxRoomsOf    = 8
	strangePlaces = 8

	// devicePatience is how long the bot's device may take to be made.
	devicePatience = 15 * time.Second
)

// secretary reads and writes for the bot where messages are encrypted (megolm). The bot has a device for that, which is made when
// the first encrypted room is met, one on each node: so each node reads for itself, whichever of them the homeserver's
// transactions go to, and nobody shares an olm account.
//
// put fills a person's queue, one goroutine per person with waiting messages drains it and ends when it is empty.
type secretary struct {
	service *Service

	rooms    lockedMap[id.RoomID, *event.EncryptionEventContent] // that are known to be encrypted, and how
	members  lockedMap[id.RoomID, roomMembers]
	writers  lockedMap[id.UserID, bool] // who has written something encrypted in a room of ours
	sealing  keyedLocks[id.RoomID]
	starting atomic.Bool  // the device is being made, beside everything else
	lacking  atomic.Int32 // how many messages wait for a key

	// begun is closed when the device may be used: the process that had it before may be there until its lease is ours.
	begun chan struct{}
	begin func()

	mu        sync.Mutex
	waiting   map[speakerIn][]roomEvent // guarded by mu
	strangers map[speakerIn]bool        // those of waiting that began as strangers; guarded by mu
	moves     uint64                    // of people in and out of rooms; guarded by mu, as is what is stored in members
}

// speakerIn is somebody in a room.
type speakerIn struct {
	user id.UserID
	room id.RoomID
}

func newSecretary(s *Service) *secretary {
	begun := make(chan struct{})
	return &secretary{
		service: s, waiting: make(map[speakerIn][]roomEvent), strangers: make(map[speakerIn]bool),
		begun: begun, begin: sync.OnceFunc(func() { close(begun) }),
	}
}

// rowOf is the name that the store knows a user of ours by: the bot has a device on each node.
func (s *Service) rowOf(user id.UserID) id.UserID {
	if user == s.bot.UserID {
		return user + "/" + id.UserID(s.cfg.Node)
	}
	return user
}

// errNotBegun says that the bot's device is perhaps another process's still.
var errNotBegun = errors.New("the service has not started yet")

// device returns the bot with its device, which listens.
func (c *secretary) device(ctx context.Context) (*Ghost, error) {
	select {
	case <-c.begun:
	case <-ctx.Done():
		return nil, errNotBegun
	}
	s := c.service
	bot := s.bot.UserID
	release, err := s.making.acquire(ctx, bot)
	if err != nil {
		return nil, err
	}
	defer release()
	if g := s.knownGhost(bot); g != nil && g.listens() {
		return g, nil
	}
	g, err := s.ghost(ctx, bot, s.cfg.BotLocalpart)
	if err != nil {
		return nil, fmt.Errorf("device of the bot: %w", tidy(err))
	}
	g.listen()
	return g, nil
}

// listens says whether the device's messages are being read.
func (g *Ghost) listens() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.poller != nil && !g.gone
}

// listen reads the device's messages from now on, call or not.
func (g *Ghost) listen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.poller == nil {
		g.poller = startPoller(g)
	}
}

// wake has the device made, soon. It does not block.
func (c *secretary) wake() {
	s := c.service
	if g := s.knownGhost(s.bot.UserID); g != nil && g.listens() || !c.starting.CompareAndSwap(false, true) {
		return
	}
	started := s.spawn(func() {
		defer c.starting.Store(false)
		select {
		case <-c.begun:
		case <-s.ctx.Done():
		}
		for attempt := 0; s.ctx.Err() == nil; attempt++ {
			ctx, cancel := context.WithTimeout(s.ctx, devicePatience)
			_, err := c.device(ctx)
			cancel()
			if err == nil {
				return
			}
			wait := backoff(attempt, time.Second, time.Minute)
			s.log.Warn("the bot has no device yet, so it reads no encrypted messages", "err", tidy(err), "again_in", wait)
			_ = sleep(s.ctx, wait)
		}
	})
	if !started {
		c.starting.Store(false)
	}
}

// resume has the bot listen at once if somebody may give it keys already. It does not block.
func (c *secretary) resume() {
	s := c.service
	s.spawn(func() {
		known, err := c.knownToMany(s.ctx)
		if err != nil && s.ctx.Err() == nil {
			s.log.Warn("it is not known whether the bot is in encrypted rooms", "err", tidy(err))
		}
		if known {
			c.wake()
		}
	})
}

// knownToMany says whether the bot has had a device, here or on another node, or is in an encrypted room, as it may have been before
// it had any.
func (c *secretary) knownToMany(ctx context.Context) (bool, error) {
	s := c.service
	asked, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	device, lost := s.store.GhostDevice(asked, s.rowOf(s.bot.UserID))
	if device != "" {
		return true, nil
	}
	var elsewhere bool
	accounts := s.bot.UserID.String() + "/" // see newKeyring
	err := s.db.QueryRow(asked, "SELECT EXISTS(SELECT 1 FROM crypto_account WHERE substr(account_id, 1, $1) = $2)",
		len(accounts), accounts).Scan(&elsewhere)
	if elsewhere {
		return true, nil
	}
	lost = errors.Join(lost, err)
	in, err := s.bot.JoinedRooms(ctx)
	if err != nil {
		return false, errors.Join(lost, fmt.Errorf("list rooms of the bot: %w", err))
	}
	for _, room := range in.JoinedRooms {
		how, err := c.secret(ctx, s.bot, room)
		if how != nil {
			return true, nil
		}
		if ctx.Err() != nil || err != nil && isTransient(err) { // else the room is met when somebody writes there
			return false, errors.Join(lost, err)
		}
	}
	return false, lost
}

// encryption hears that a room's messages are to be encrypted from now on.
func (c *secretary) encryption(e roomEvent) {
	var how event.EncryptionEventContent
	if json.Unmarshal(e.Content, &how) != nil {
		how = event.EncryptionEventContent{} // encrypted all the same
	}
	c.rooms.set(e.Room, &how)
	c.wake()
}

// beforeJoining makes the device before the bot enters a room that says it is encrypted: who writes there at once finds it.
func (c *secretary) beforeJoining(ctx context.Context, e roomEvent) {
	var unsigned struct {
		State []roomEvent `json:"invite_room_state"`
	}
	if json.Unmarshal(e.Unsigned, &unsigned) != nil {
		return
	}
	for _, state := range unsigned.State {
		if state.Type != event.StateEncryption.Type {
			continue
		}
		select {
		case <-c.begun:
		default: // who invites does not wait for that
			c.wake()
			return
		}
		ctx, cancel := context.WithTimeout(ctx, devicePatience) // joining needs time, too
		defer cancel()
		if _, err := c.device(ctx); err != nil {
			c.service.log.Warn("bot enters an encrypted room without a device", "room", e.Room, "err", err)
			c.wake()
		}
		return
	}
}

// put has a message read. It does not block.
func (c *secretary) put(e roomEvent) {
	who := speakerIn{e.Sender, e.Room}
	c.writers.set(e.Sender, true)
	reads := c.service.opts.Reads
	stranger := reads != nil && !reads(e.Sender, e.Room)
	c.mu.Lock()
	queue, busy := c.waiting[who]
	full := busy && len(queue) >= maxSecrets || !busy && !c.place(who.user, stranger)
	if !full {
		c.waiting[who] = append(queue, e)
		if !busy && stranger {
			c.strangers[who] = true
		}
	}
	c.mu.Unlock()
	switch {
	case full:
		c.unread(e, errors.New("too many messages wait"))
	case !busy:
		c.service.spawn(func() { c.drain(who) })
	}
}

// place says whether there is one for messages of a user in another room. Called with mu held.
func (c *secretary) place(user id.UserID, stranger bool) bool {
	rooms := 0
	for who := range c.waiting {
		if who.user == user {
			rooms++
		}
	}
	if stranger {
		return rooms < maxRoomsOf && len(c.strangers) < strangePlaces
	}
	return rooms < maxRoomsOf && len(c.waiting)-len(c.strangers) < maxSecretive
}

func (c *secretary) drain(who speakerIn) {
	select {
	case <-c.begun:
	case <-c.service.ctx.Done():
	}
	for {
		c.mu.Lock()
		queue := c.waiting[who]
		if len(queue) == 0 || c.service.ctx.Err() != nil {
			delete(c.waiting, who)
			delete(c.strangers, who)
			c.mu.Unlock()
			return
		}
		e := queue[0]
		c.waiting[who] = queue[1:]
		c.mu.Unlock()
		if err := c.read(e); err != nil {
			c.unread(e, err)
		}
	}
}

// unread tells of a message that cannot be read.
func (c *secretary) unread(e roomEvent, why error) {
	s := c.service
	if s.ctx.Err() != nil {
		return
	}
	s.metrics.RoomMessagesUnread.Add(1)
	s.log.Debug("encrypted message is not read", "room", e.Room, "sender", userName(e.Sender), "err", tidy(why))
	if s.opts.OnEncrypted != nil && s.fromPerson(e) {
		s.opts.OnEncrypted(RoomSecret{Room: e.Room, Sender: e.Sender})
	}
}

// errNotTheirs says that a message's key is not one of a device of its sender.
var errNotTheirs = errors.New("the message's key belongs to no device of its sender that we know")

// read reads a message, and waits for its key if need be.
func (c *secretary) read(e roomEvent) error {
	ctx, cancel := context.WithTimeout(c.service.ctx, keyPatience)
	defer cancel()
	g, err := c.device(ctx)
	if err != nil {
		c.wake()
		return err
	}
	asked, lacks := false, false
	for {
		came := g.keys.megolm.arrival()
		opened, err := g.keys.openRoom(ctx, e)
		switch {
		case err == nil:
			c.service.metrics.RoomMessagesRead.Add(1)
			c.hear(*opened)
			return nil
		case errors.Is(err, errNotTheirs) && !asked:
			asked = true
			ctx = readAgain(ctx)
			if err := c.service.directory.askAgain(ctx, g.keys, e.Sender); err != nil {
				return err
			}
			continue
		case !errors.Is(err, crypto.ErrNoSessionFound):
			return err
		}
		if !lacks {
			lacks = true
			c.lacking.Add(1)
			defer c.lacking.Add(-1)
		}
		g.look()
		select {
		case <-came:
		case <-time.After(keyLook):
		case <-ctx.Done():
			return err
		}
	}
}

// look has the poller look at once, if it would wait longer than whoever lacks a key may.
func (g *Ghost) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.poller != nil {
		g.poller.hurry()
	}
}

// hear handles what was encrypted like what was not.
func (c *secretary) hear(e roomEvent) {
	s := c.service
	switch {
	case e.Type == event.EventMessage.Type && s.opts.OnMessage != nil:
		s.message(e)
	case e.Type == event.EventReaction.Type && s.opts.OnReaction != nil:
		s.reaction(e)
	}
}

// openRoom decrypts a message of a room. What mautrix checks: the room, and that nobody has sent the same before. What is checked
// here: that the key came from the device it names, which is its sender's. Nobody need have verified that device.
func (k *keyring) openRoom(ctx context.Context, e roomEvent) (opened *roomEvent, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("megolm: %v", r)
		}
	}()
	sealed := &event.Event{ID: e.Event, RoomID: e.Room, Sender: e.Sender, Timestamp: e.Time, Type: event.EventEncrypted}
	if err := json.Unmarshal(e.Content, &sealed.Content); err != nil {
		return nil, err
	}
	if err := sealed.Content.ParseRaw(event.EventEncrypted); err != nil {
		return nil, err
	}
	plain, err := k.machine.DecryptMegolmEvent(saidBy(ctx, e.Sender), sealed)
	if err != nil {
		return nil, err
	}
	switch plain.Mautrix.TrustState {
	case id.TrustStateUnset, id.TrustStateCrossSignedUntrusted, id.TrustStateCrossSignedTOFU, id.TrustStateCrossSignedVerified, id.TrustStateVerified:
	default:
		return nil, errNotTheirs
	}
	if device := plain.Mautrix.TrustSource; device == nil || device.UserID != e.Sender || device.Deleted {
		return nil, errNotTheirs
	}
	inside := e
	inside.Type, inside.Content = plain.Type.Type, plain.Content.VeryRaw
	return &inside, nil
}
