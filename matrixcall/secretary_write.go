package matrixcall

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

const (
	// sealPatience is how long a notice may take to be encrypted: asking
	// foreign homeservers for keys, mostly.
	sealPatience = 8 * time.Second

	// sentencePatience is what is kept of a notice's time for the sentence
	// that takes its place.
	sentencePatience = 2 * time.Second

	// secretPause is how long after the homeserver could not say whether a
	// room is encrypted it is asked once more.
	secretPause = time.Second

	// membersLife is how long it is believed who is in a room without word
	// of a change.
	membersLife = 30 * time.Second

	// ownKeyLife is how long the bot uses a key of its own at most. Rooms
	// may ask for less. It says little, so a new one costs little, and
	// devices that gave out no one-time key are tried again with it.
	ownKeyLife = time.Hour
)

var (
	errGhostsWriteClear = errors.New("the bot is not in the room, and ghosts encrypt nothing")
	errStrangeAlgorithm = errors.New("the room wants an encryption that we do not know")
	errNoDevice         = errors.New("the bot has no device")
	errNobodyReads      = errors.New("no device in the room could be given the key")
)

// roomMembers are the people in a room.
type roomMembers struct {
	users []id.UserID
	asked time.Time // zero: they are not known
	moves uint64    // differs after each change
}

// secret says how a room's messages are to be encrypted, as somebody in the room finds out; nil = they are not. Only yes is believed
// without asking: no homeserver takes it back.
func (c *secretary) secret(ctx context.Context, as *mautrix.Client, room id.RoomID) (*event.EncryptionEventContent, error) {
	if how := c.rooms.get(room); how != nil {
		return how, nil
	}
	how := new(event.EncryptionEventContent)
	err := as.StateEvent(ctx, room, event.StateEncryption, "", how)
	if err != nil && !isNotFound(err) && !isForbidden(err) && sleep(ctx, secretPause) == nil {
		how = new(event.EncryptionEventContent)
		err = as.StateEvent(ctx, room, event.StateEncryption, "", how)
	}
	switch {
	case isNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("ask whether %s is encrypted: %w", room, err)
	}
	c.rooms.set(room, how)
	return how, nil
}

// seal encrypts what the bot says in a room for all devices of the people there. Nobody need have verified them, nor the bot.
func (c *secretary) seal(ctx context.Context, room id.RoomID, content map[string]any) (*event.EncryptedEventContent, error) {
	patience := sealPatience
	if end, bounded := ctx.Deadline(); bounded {
		left := time.Until(end)
		patience = min(patience, max(left-sentencePatience, left/2))
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if how := c.rooms.get(room); how != nil && how.Algorithm != id.AlgorithmMegolmV1 {
		return nil, errStrangeAlgorithm
	}
	g, err := c.device(ctx)
	if err != nil {
		c.wake()
		return nil, fmt.Errorf("%w: %v", errNoDevice, tidy(err))
	}
	release, err := c.sealing.acquire(ctx, room)
	if err != nil {
		return nil, err
	}
	defer release()
	users, err := c.people(ctx, room)
	if err != nil {
		return nil, err
	}
	if err := c.service.directory.update(ctx, g.keys, users); err != nil {
		return nil, fmt.Errorf("ask for devices: %w", tidy(err))
	}
	return g.keys.sealRoom(ctx, room, users, content)
}

// people lists who must be able to read what is said in a room: all in it but us.
func (c *secretary) people(ctx context.Context, room id.RoomID) ([]id.UserID, error) {
	known := c.members.get(room)
	if time.Since(known.asked) < membersLife {
		return known.users, nil
	}
	asked := time.Now()
	answer, err := c.service.bot.JoinedMembers(ctx, room)
	if err != nil {
		return nil, fmt.Errorf("list members of %s: %w", room, tidy(err))
	}
	var users []id.UserID
	for _, user := range slices.Sorted(maps.Keys(answer.Joined)) {
		if user != c.service.bot.UserID && !c.service.OwnGhost(user) {
			users = append(users, user)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.members.get(room).moves == known.moves { // else the answer is perhaps from before somebody left
		c.members.set(room, roomMembers{users, asked, known.moves})
	}
	return users, nil
}

// moved hears that somebody came or went.
func (c *secretary) moved(room id.RoomID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moves++
	c.members.set(room, roomMembers{moves: c.moves})
}

// update sees to it that the devices of users are known as well as can be.
func (d *directory) update(ctx context.Context, k *keyring, users []id.UserID) error {
	ask := make(map[string][]deviceName)
	for _, user := range users {
		list, life := d.list(user), deviceListLife
		if list.away {
			life = awayPause
		}
		if time.Since(list.asked) >= life || d.stale.get(user) {
			ask[user.Homeserver()] = append(ask[user.Homeserver()], deviceName{User: user})
		}
	}
	errs := make(chan error, len(ask))
	for server, names := range ask {
		if !k.service.spawn(func() { errs <- d.askServer(ctx, k, server, names) }) {
			return errClosed
		}
	}
	for range ask {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

// sealRoom encrypts with the bot's own key for the room. It makes a new one, and gives it out, when somebody has come or gone, or has
// another device: whoever has left reads no more, and whoever comes does not read what was said before, as mautrix gives a key to
// all as it was in the beginning. Called with the room's slot of sealing held.
func (k *keyring) sealRoom(
	ctx context.Context, room id.RoomID, users []id.UserID, content map[string]any,
) (sealed *event.EncryptedEventContent, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("megolm: %v", r)
		}
		if err != nil { // it is not known who has the key
			_ = k.megolm.RemoveOutboundGroupSession(ctx, room)
		}
	}()
	wanted := make(map[crypto.UserDevice]*id.Device)
	for _, user := range users {
		for name, device := range k.service.directory.list(user).devices {
			wanted[crypto.UserDevice{UserID: user, DeviceID: name}] = device
		}
	}
	session, err := k.megolm.GetOutboundGroupSession(ctx, room)
	if err != nil {
		return nil, err
	}
	if session == nil || !keyFits(session, wanted) {
		if session, err = k.giveKey(ctx, room, users, wanted); err != nil {
			return nil, err
		}
	}
	readers := 0
	for name := range wanted {
		if session.Users[name] == crypto.OGSAlreadyShared {
			readers++
		} else {
			session.Users[name] = crypto.OGSIgnored // until the next key
		}
	}
	if readers == 0 {
		return nil, errNobodyReads
	}
	return k.machine.EncryptMegolmEvent(ctx, room, event.EventMessage, content)
}

// keyFits says whether a key may be used on: it is not too old, and was made for just these devices.
func keyFits(session *crypto.OutboundGroupSession, wanted map[crypto.UserDevice]*id.Device) bool {
	for name := range session.Users {
		if wanted[name] == nil {
			return false
		}
	}
	return len(session.Users) == len(wanted) && !session.Expired()
}

// giveKey gives a new key for the room to the devices.
func (k *keyring) giveKey(
	ctx context.Context, room id.RoomID, users []id.UserID, wanted map[crypto.UserDevice]*id.Device,
) (*crypto.OutboundGroupSession, error) {
	if err := k.megolm.RemoveOutboundGroupSession(ctx, room); err != nil {
		return nil, err
	}
	k.reach(ctx, wanted)
	if err := k.machine.ShareGroupSession(context.WithValue(ctx, sharing{}, true), room, users); err != nil {
		return nil, fmt.Errorf("give out room key: %w", tidy(err))
	}
	session, err := k.megolm.GetOutboundGroupSession(ctx, room)
	if err == nil && session == nil {
		err = errNobodyReads
	}
	if err != nil {
		return nil, err
	}
	session.MaxAge = min(session.MaxAge, ownKeyLife)
	return session, nil
}

// reach makes olm sessions with the devices that have none, all homeservers at once, and does not wait long for the slow.
func (k *keyring) reach(ctx context.Context, wanted map[crypto.UserDevice]*id.Device) {
	servers := make(map[string][]*id.Device)
	for _, device := range wanted {
		if k.needsKey(ctx, device) {
			server := device.UserID.Homeserver()
			servers[server] = append(servers[server], device)
		}
	}
	made := make(chan error, len(servers))
	for server, devices := range servers {
		started := k.service.spawn(func() {
			ctx, cancel := context.WithTimeout(k.service.ctx, claimLimit)
			defer cancel()
			made <- k.makeSessions(ctx, server, devices)
		})
		if !started {
			return
		}
	}
	patience := time.NewTimer(awayPatience)
	defer patience.Stop()
	for range servers {
		select {
		case err := <-made:
			if err != nil {
				k.log.Debug("no one-time keys for a room key", "err", tidy(err))
			}
			continue
		case <-ctx.Done():
		case <-patience.C:
		}
		return
	}
}

// secretRooms tells mautrix how rooms want their messages encrypted.
type secretRooms struct {
	noRooms
	rooms *secretary
}

func (r secretRooms) GetEncryptionEvent(_ context.Context, room id.RoomID) (*event.EncryptionEventContent, error) {
	return r.rooms.rooms.get(room), nil
}

var _ crypto.StateStore = secretRooms{}
