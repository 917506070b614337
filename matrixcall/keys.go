package matrixcall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/goolm/account"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

const (
	// fullPool is how many one-time keys a top-up leaves at the homeserver,
	// lowPool when one is due. Each new olm session towards the ghost takes
	// one; with none left hydrogen loses messages without a word.
	fullPool = 50
	lowPool  = 45

	// tendPatience is how long a top-up may take.
	tendPatience = 30 * time.Second

	// fallbackLife is how long a fallback key that replaced a used one
	// stays at least: whoever claimed the one before must still be
	// understood.
	fallbackLife = 5 * time.Minute
)

// pickleKey encrypts olm data in the database. It keeps nothing secret from
// who can read database and program; it is there because the store wants one.
var pickleKey = []byte("trunkline")

// errDeviceUnusable says that a ghost's device is gone, or its keys do not
// match any more, so that it needs another device.
var errDeviceUnusable = errors.New("device cannot be used any more")

// keyring is the olm identity of one ghost device.
type keyring struct {
	service *Service
	log     *slog.Logger
	client  *mautrix.Client
	machine *crypto.OlmMachine
	megolm  *megolmStore // the bot's only

	// account guards what changes the olm account: reading messages (which
	// uses one-time keys up) and publishing keys. mautrix locks each of the
	// two, but not one against the other.
	account slot
	tending atomic.Bool // an upkeep is under way
	existed bool        // the account came from the database
	// newestSession is when the last session with a device was made.
	newestSession func(context.Context, id.SenderKey) (time.Time, error)
	replaced      time.Time // when the fallback key was last replaced; guarded by account

	broken    lockedMap[id.SenderKey, bool]      // whose olm session must be made anew
	repaired  lockedMap[id.SenderKey, time.Time] // when that was last done
	repairing atomic.Bool
}

func newKeyring(ctx context.Context, s *Service, client *mautrix.Client, log *slog.Logger) (*keyring, error) {
	// The account's name holds the device: a new device starts anew.
	name := client.UserID.String() + "/" + client.DeviceID.String()
	sessions := newCallStore(s, crypto.NewSQLCryptoStore(s.db, nil, name, client.DeviceID, pickleKey))
	logger := zerologTo(log, slog.LevelDebug)
	k := &keyring{service: s, log: log, client: client, account: newSlot(), newestSession: sessions.newest}
	if client.UserID == s.bot.UserID {
		k.megolm = newMegolmStore(sessions)
		k.machine = crypto.NewOlmMachine(client, &logger, k.megolm, secretRooms{rooms: s.secretary})
		k.machine.DontStoreOutboundKeys, k.machine.DisableSharedGroupSessionTracking = true, true
		k.machine.DisableRatchetTracking, k.machine.IgnorePostDecryptionParseErrors = true, true
	} else {
		k.machine = crypto.NewOlmMachine(client, &logger, sessions, noRooms{})
	}
	k.machine.SetBackgroundCtx(s.ctx)
	k.machine.DisableDeviceChangeKeyRotation = true // ghosts have no group sessions; the bot's looks at devices itself
	k.machine.DisableDecryptKeyFetching = true      // strangers does that, without stopping the others
	stored, err := k.machine.CryptoStore.GetAccount(ctx)
	if err != nil {
		return nil, err
	}
	k.existed = stored != nil
	return k, k.machine.Load(ctx)
}

// publish uploads the keys of a new device: device keys and one-time keys,
// then a fallback key. In this order, because mautrix's upload marks every
// key it finds as published.
func (k *keyring) publish(ctx context.Context) error {
	if err := k.account.acquire(ctx); err != nil {
		return err
	}
	defer k.account.release()
	if err := k.machine.ShareKeys(ctx, 0); err != nil {
		return err
	}
	k.service.metrics.OneTimeKeyUploads.Add(1)
	return k.newFallback(ctx)
}

// check makes sure that the homeserver has the device with these keys, and
// tops up what is low. It returns an error that is errDeviceUnusable when
// only a new device helps.
func (k *keyring) check(ctx context.Context) error {
	if !k.existed && !k.machine.GetAccount().Shared {
		return fmt.Errorf("%w: its keys are not in the database", errDeviceUnusable)
	}
	// An empty upload answers the counts, and whether the device is there.
	answer, err := k.client.UploadKeys(ctx, &mautrix.ReqUploadKeys{})
	switch {
	case isUnknownDevice(err), errors.Is(err, mautrix.MForbidden), isNotFound(err):
		return fmt.Errorf("%w: %w", errDeviceUnusable, err)
	case err != nil:
		return fmt.Errorf("count one-time keys: %w", err)
	}
	if err := k.checkPublished(ctx); err != nil {
		return err
	}
	if err := k.account.acquire(ctx); err != nil {
		return err
	}
	defer k.account.release()
	err = k.topUp(ctx, answer.OneTimeKeyCounts.SignedCurve25519)
	var refused mautrix.HTTPError
	if errors.As(err, &refused) && refused.IsStatus(400) {
		// The homeserver has another key of the same name: our database
		// is older than the keys it has.
		return fmt.Errorf("%w: %w", errDeviceUnusable, err)
	}
	return err
}

// checkPublished compares the device keys the homeserver gives out with ours.
func (k *keyring) checkPublished(ctx context.Context) error {
	own := k.machine.OwnIdentity()
	answer, err := k.client.QueryKeys(ctx, &mautrix.ReqQueryKeys{
		DeviceKeys: mautrix.DeviceKeysRequest{own.UserID: {own.DeviceID}}, Timeout: 10_000,
	})
	if err != nil {
		return fmt.Errorf("query own keys: %w", err)
	}
	published, found := answer.DeviceKeys[own.UserID][own.DeviceID]
	switch {
	case !found && k.machine.GetAccount().Shared:
		return fmt.Errorf("%w: the homeserver has lost its keys", errDeviceUnusable)
	case found && published.Keys.GetCurve25519(own.DeviceID) != own.IdentityKey,
		found && published.Keys.GetEd25519(own.DeviceID) != own.SigningKey:
		return fmt.Errorf("%w: the homeserver has other keys for it", errDeviceUnusable)
	}
	return nil
}

// tend is told after each poll what the homeserver has left, and sees to it
// that there is enough. It does not block, and does not end with the poller:
// calls can be shorter than an upload.
func (k *keyring) tend(count int, fallbackUsed bool) {
	if count >= lowPool && !fallbackUsed || !k.tending.CompareAndSwap(false, true) {
		return
	}
	started := k.service.spawn(func() {
		defer k.tending.Store(false)
		ctx, cancel := context.WithTimeout(k.service.ctx, tendPatience)
		defer cancel()
		if err := k.upkeep(ctx, fallbackUsed); err != nil && k.service.ctx.Err() == nil {
			k.log.Warn("keys are low and cannot be replaced", "err", tidy(err)) // the next poll tells again
		}
	})
	if !started {
		k.tending.Store(false)
	}
}

// upkeep is topUp and, when the homeserver no longer lists the fallback key as
// unused, a new one. It counts for itself: what a poll said may be from before
// the last upload, and olm forgets the oldest of more than a hundred keys.
func (k *keyring) upkeep(ctx context.Context, fallbackUsed bool) error {
	if err := k.account.acquire(ctx); err != nil {
		return err
	}
	defer k.account.release()
	if fallbackUsed && time.Since(k.replaced) > fallbackLife {
		if err := k.newFallback(ctx); err != nil {
			return err
		}
		k.replaced = time.Now()
	}
	answer, err := k.client.UploadKeys(ctx, &mautrix.ReqUploadKeys{})
	if err != nil {
		return fmt.Errorf("count one-time keys: %w", err)
	}
	return k.topUp(ctx, answer.OneTimeKeyCounts.SignedCurve25519)
}

// topUp fills the pool of one-time keys. A fallback key that was made but not
// uploaded goes first: the upload of the others would mark it as published.
// Called with account held.
func (k *keyring) topUp(ctx context.Context, count int) error {
	inside, err := k.goolm()
	if err != nil {
		return err
	}
	if inside.NumFallbackKeys == 0 {
		err = k.newFallback(ctx)
	} else if len(inside.FallbackKeyUnpublished()) > 0 {
		err = k.uploadFallback(ctx, inside)
	}
	if err != nil || (count >= lowPool && k.machine.GetAccount().Shared) {
		return err
	}
	// Keys whose upload failed before are uploaded as well: count them in.
	pending, err := inside.OneTimeKeys()
	if err != nil {
		return err
	}
	if err := k.machine.ShareKeys(ctx, count+len(pending)); err != nil {
		return fmt.Errorf("upload one-time keys: %w", err)
	}
	k.service.metrics.OneTimeKeyUploads.Add(1)
	return nil
}

// newFallback makes and uploads a fallback key. The one before stays valid.
// Called with account held.
func (k *keyring) newFallback(ctx context.Context) error {
	inside, err := k.goolm()
	if err != nil {
		return err
	}
	if err := inside.GenFallbackKey(); err != nil {
		return fmt.Errorf("make fallback key: %w", err)
	}
	return k.uploadFallback(ctx, inside)
}

// uploadFallback uploads the current fallback key, which mautrix cannot.
// Saved before and after: an upload whose answer was lost is repeated with
// the same key.
func (k *keyring) uploadFallback(ctx context.Context, inside *account.Account) error {
	olm := k.machine.GetAccount()
	keys := make(map[id.KeyID]mautrix.OneTimeKey)
	for name, public := range inside.FallbackKey() {
		key := mautrix.OneTimeKey{Key: public, Fallback: true, IsSigned: true}
		signature, err := olm.SignJSON(&key)
		if err != nil {
			return fmt.Errorf("sign fallback key: %w", err)
		}
		key.Signatures = signatures.NewSingleSignature(k.client.UserID, id.KeyAlgorithmEd25519, k.client.DeviceID.String(), signature)
		keys[id.NewKeyID(id.KeyAlgorithmSignedCurve25519, name)] = key
	}
	if err := k.machine.CryptoStore.PutAccount(ctx, olm); err != nil {
		return fmt.Errorf("save olm account: %w", err)
	}
	_, err := k.client.MakeRequest(ctx, "POST", k.client.BuildClientURL("v3", "keys", "upload"),
		map[string]any{"fallback_keys": keys}, nil)
	if err != nil {
		return fmt.Errorf("upload fallback key: %w", err)
	}
	// Not MarkKeysAsPublished, which would mark one-time keys as well that
	// may not have reached the homeserver.
	inside.CurrentFallbackKey.Published = true
	k.service.metrics.FallbackKeyUploads.Add(1)
	if err := k.machine.CryptoStore.PutAccount(ctx, olm); err != nil {
		return fmt.Errorf("save olm account: %w", err)
	}
	return nil
}

// goolm reaches through mautrix to the account: its interface has no fallback
// keys.
func (k *keyring) goolm() (*account.Account, error) {
	inside, ok := k.machine.GetAccount().Internal.(*account.Account)
	if !ok {
		return nil, errors.New("built without the goolm tag: fallback keys need it")
	}
	return inside, nil
}

// encrypt makes olm messages of one type for the devices. Devices it has no
// session for and that gave out no key are missing in what it returns.
func (k *keyring) encrypt(ctx context.Context, evtType string, contents map[deviceName]*event.Content) (sealed map[deviceName]*event.Content, err error) {
	// mautrix panics when olm or JSON fail in places where it thinks they
	// cannot.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("olm: %v", r)
		}
	}()
	request := &mautrix.ReqSendToDevice{Messages: make(map[id.UserID]map[id.DeviceID]*event.Content)}
	for name, content := range contents {
		if request.Messages[name.User] == nil {
			request.Messages[name.User] = make(map[id.DeviceID]*event.Content)
		}
		request.Messages[name.User][name.Device] = content
	}
	answer, err := k.machine.EncryptToDevices(ctx, event.Type{Type: evtType, Class: event.ToDeviceEventType}, request)
	if err != nil {
		return nil, err
	}
	sealed = make(map[deviceName]*event.Content, len(contents))
	for user, devices := range answer.Messages {
		for device, content := range devices {
			sealed[deviceName{user, device}] = content
		}
	}
	return sealed, nil
}

// noRooms is the state store of somebody who does not encrypt for rooms.
type noRooms struct{}

func (noRooms) IsEncrypted(context.Context, id.RoomID) (bool, error) { return false, nil }

func (noRooms) GetEncryptionEvent(context.Context, id.RoomID) (*event.EncryptionEventContent, error) {
	return nil, nil
}

func (noRooms) GetHistoryVisibility(context.Context, id.RoomID) (*event.HistoryVisibilityEventContent, error) {
	return nil, nil
}

func (noRooms) FindSharedRooms(context.Context, id.UserID) ([]id.RoomID, error) { return nil, nil }

var _ crypto.StateStore = noRooms{}

// deviceName names a device of anybody.
type deviceName struct {
	User   id.UserID
	Device id.DeviceID
}

const (
	deviceListLife  = time.Hour        // how long a device list is trusted without word of a change
	deviceListPause = 10 * time.Second // how soon it is asked for again because a device is missing in it
	maxDeviceLists  = 10_000

	// awayPatience is how long messages wait for a foreign homeserver to
	// tell its users' keys, awayLimit how long it has in all, and awayPause
	// how soon it is asked again when it did not.
	awayPatience = 3 * time.Second
	awayLimit    = 20 * time.Second
	awayPause    = 15 * time.Second
)

// directory remembers whose device keys were asked for, for all ghosts
// together: their olm stores share the tables of other people's devices. It
// also remembers how each device speaks.
type directory struct {
	metrics *Metrics
	asking  keyedLocks[string] // by homeserver: one query at a time, and a slow one holds up nobody else
	mu      sync.Mutex
	lists   map[id.UserID]deviceList // guarded by mu

	spoken lockedMap[deviceName, speech]
	// stale are users whose devices have changed since.
	stale lockedMap[id.UserID, bool]
}

type deviceList struct {
	devices map[id.DeviceID]*id.Device
	asked   time.Time
	away    bool // the user's homeserver did not answer: devices is what we knew before
}

// speech is how a device has spoken to a ghost.
type speech struct{ plain, olm bool }

func newDirectory(metrics *Metrics) *directory {
	return &directory{metrics: metrics, lists: make(map[id.UserID]deviceList)}
}

// find returns the devices among names that have published keys. Whoever is
// not known well enough is asked for, in one query per homeserver.
func (d *directory) find(ctx context.Context, k *keyring, names []deviceName) (map[deviceName]*id.Device, error) {
	ask := make(map[string][]deviceName)
	for _, name := range names {
		if !d.fresh(name) {
			ask[name.User.Homeserver()] = append(ask[name.User.Homeserver()], name)
		}
	}
	var wg sync.WaitGroup
	errs := make(chan error, len(ask))
	for server, names := range ask {
		wg.Go(func() { errs <- d.askServer(ctx, k, server, names) })
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return nil, err
		}
	}
	found := make(map[deviceName]*id.Device, len(names))
	for _, name := range names {
		if device := d.list(name.User).devices[name.Device]; device != nil {
			found[name] = device
		}
	}
	return found, nil
}

func (d *directory) list(user id.UserID) deviceList {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lists[user]
}

// unsure says whether the device may have keys that its homeserver could not
// tell us.
func (d *directory) unsure(name deviceName) bool {
	list := d.list(name.User)
	return list.away && list.devices[name.Device] == nil
}

func (d *directory) fresh(name deviceName) bool {
	list := d.list(name.User)
	age := time.Since(list.asked)
	switch {
	case list.away:
		return age < awayPause
	case list.asked.IsZero() || d.stale.get(name.User):
		return false
	case list.devices[name.Device] != nil:
		return age < deviceListLife
	case d.spoken.get(name).olm:
		return age < time.Second // it has keys, we know
	}
	return age < deviceListPause
}

// askServer asks for those devices of one homeserver that are still not known
// well enough. One that is not ours and is slow is no error: its users count as
// away until its answer comes.
func (d *directory) askServer(ctx context.Context, k *keyring, server string, names []deviceName) error {
	if server == k.client.UserID.Homeserver() {
		return d.askInTurn(ctx, k, server, names)
	}
	began, done := time.Now(), make(chan error, 1)
	started := k.service.spawn(func() {
		limited, cancel := context.WithTimeout(k.service.ctx, awayLimit)
		defer cancel()
		done <- d.askInTurn(limited, k, server, names)
	})
	if !started {
		return errClosed
	}
	patience := time.NewTimer(awayPatience)
	defer patience.Stop()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-patience.C:
	}
	var slow []id.UserID
	for _, name := range names {
		if d.list(name.User).asked.Before(began) {
			slow = append(slow, name.User)
		}
	}
	return d.put(ctx, k, slow, nil)
}

// askInTurn lets one query at a time go to a homeserver, and asks only for
// what the ones before have not answered.
func (d *directory) askInTurn(ctx context.Context, k *keyring, server string, names []deviceName) error {
	release, err := d.asking.acquire(ctx, server)
	if err != nil {
		return err
	}
	defer release()
	users := make(map[id.UserID]bool)
	for _, name := range names {
		if !d.fresh(name) {
			users[name.User] = true
		}
	}
	return d.ask(ctx, k, slices.Sorted(maps.Keys(users)))
}

// ask queries keys.
func (d *directory) ask(ctx context.Context, k *keyring, users []id.UserID) error {
	if len(users) == 0 {
		return nil
	}
	for _, user := range users {
		d.stale.remove(user)
	}
	d.metrics.KeyQueries.Add(uint64(len(users)))
	answer, err := k.machine.FetchKeys(ctx, users, true)
	if err != nil {
		d.changed(users) // still
		return err
	}
	return d.put(ctx, k, users, answer)
}

// put takes note of an answer. Whoever is missing in it has a homeserver that
// is away: what we knew is still right.
func (d *directory) put(ctx context.Context, k *keyring, users []id.UserID, answer map[id.UserID]map[id.DeviceID]*id.Device) error {
	for _, user := range users {
		devices, answered := answer[user]
		if !answered {
			if devices = d.list(user).devices; devices == nil {
				var err error
				if devices, err = k.machine.CryptoStore.GetDevices(ctx, user); err != nil {
					return err
				}
			}
		}
		d.mu.Lock()
		makeRoom(d.lists, user, maxDeviceLists)
		d.lists[user] = deviceList{devices, time.Now(), !answered}
		d.mu.Unlock()
	}
	return nil
}

// owner returns the device of user that has the given curve25519 key, nil if
// none is known.
func (d *directory) owner(user id.UserID, key id.SenderKey) *id.Device {
	for _, device := range d.list(user).devices {
		if device.IdentityKey == key {
			return device
		}
	}
	return nil
}

// askAgain asks for the devices of a user of whom one is not known.
func (d *directory) askAgain(ctx context.Context, k *keyring, user id.UserID) error {
	d.stale.set(user, true)
	return d.askServer(ctx, k, user.Homeserver(), []deviceName{{User: user}})
}

// changed says that the devices of users are not as they were.
func (d *directory) changed(users []id.UserID) {
	for _, user := range users {
		d.stale.set(user, true)
	}
}

// knows says whether it is known that a device speaks in that way.
func (d *directory) knows(name deviceName, encrypted bool) bool {
	how := d.spoken.get(name)
	return encrypted && how.olm || !encrypted && how.plain
}

// heard remembers how a device speaks.
func (d *directory) heard(name deviceName, encrypted bool) {
	how := d.spoken.get(name)
	if encrypted {
		how.olm = true
	} else {
		how.plain = true
	}
	d.spoken.set(name, how)
}

// speaksPlainOnly says whether a device was heard, and never with olm.
func (d *directory) speaksPlainOnly(name deviceName) bool {
	how := d.spoken.get(name)
	return how.plain && !how.olm
}
