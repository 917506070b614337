package matrixcall

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// callStore is the olm store of one ghost device: mautrix's tables, and in front of them what this process has read and written.
// Nobody else writes a ghost's sessions, so what is here is right, and while the database is away it is all there is: writes wait
// in the service's Store then, in order, and what was never read counts as not there. A session that was made for want of an
// older one is only one more, later.
//
// It has no megolm: a ghost reads no room messages, but everybody who writes one in an encrypted room sends the ghost its key. Nor
// has it cross-signing, of which no call depends.
type callStore struct {
	*crypto.SQLCryptoStore
	service *Service

	mu       sync.Mutex // guards what follows; held while tables are read, never while they are written
	sessions map[id.SenderKey]*knownSessions
	hashes   [maxHashes]olmHash // ring of the last messages that were read
	next     int
}

// knownSessions are the sessions with one device.
type knownSessions struct {
	list crypto.OlmSessionList
	read bool      // those of the tables are in it
	used time.Time // when the newest was made that was used
	seen time.Time // when somebody last asked for them
}

// olmHash names a message that was read.
type olmHash struct {
	sum [32]byte
	at  time.Time
}

// maxHashes is how many messages are remembered here: more than come while the database is away for some minutes.
const maxHashes = 512

const (
	// maxPeers is how many devices' sessions are at hand. From there on
	// those are read again that nobody wanted for peerLife, which is longer
	// than anything that holds one goes on. Whoever sends us a message
	// chooses the key it is asked by.
	maxPeers = 2048
	peerLife = time.Minute
)

func newCallStore(s *Service, tables *crypto.SQLCryptoStore) *callStore {
	return &callStore{SQLCryptoStore: tables, service: s, sessions: make(map[id.SenderKey]*knownSessions)}
}

// ask reads tables. It says whether that could not be because the database is away.
func (c *callStore) ask(ctx context.Context, read func(context.Context) error) (away bool, err error) {
	if c.service.store.Away() {
		return true, nil
	}
	attempt, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	if err = read(attempt); err != nil && c.service.storeAway(ctx) != nil {
		return true, nil
	}
	return false, err
}

// known returns the sessions with a device. Called with mu held.
func (c *callStore) known(ctx context.Context, key id.SenderKey) (*knownSessions, error) {
	k := c.sessions[key]
	if k == nil {
		c.makeRoom()
		k = new(knownSessions)
		c.sessions[key] = k
	}
	k.seen = time.Now()
	if k.read {
		return k, nil
	}
	away, err := c.ask(ctx, func(ctx context.Context) error {
		// Tables of their own, for mautrix's keep all that was ever read.
		list, err := crypto.NewSQLCryptoStore(c.DB, nil, c.AccountID, c.DeviceID, c.PickleKey).GetSessions(ctx, key)
		if err != nil {
			return err
		}
		for _, session := range list {
			if k.find(session.ID()) != nil {
				continue
			}
			k.list = append(k.list, session)
			if !session.LastEncryptedTime.Equal(session.CreationTime) || !session.LastDecryptedTime.Equal(session.CreationTime) {
				k.uses(session)
			}
		}
		return nil
	})
	k.read = err == nil && !away
	return k, err
}

// makeRoom forgets what can be read again, if there is much: of devices without a session, and those that nobody wants now. What was
// written while the database is away stays. Called with mu held.
func (c *callStore) makeRoom() {
	if len(c.sessions) < maxPeers {
		return
	}
	away := c.service.store.Away()
	for key, k := range c.sessions {
		if len(k.list) == 0 || !away && time.Since(k.seen) > peerLife {
			delete(c.sessions, key)
		}
	}
}

func (k *knownSessions) uses(session *crypto.OlmSession) {
	if session.CreationTime.After(k.used) {
		k.used = session.CreationTime
	}
}

func (k *knownSessions) find(name id.SessionID) *crypto.OlmSession {
	for _, session := range k.list {
		if session.ID() == name {
			return session
		}
	}
	return nil
}

// HasSession implements crypto.Store.
func (c *callStore) HasSession(ctx context.Context, key id.SenderKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, err := c.known(ctx, key)
	return err == nil && len(k.list) > 0
}

// GetSessions implements crypto.Store: the one last heard on comes first.
func (c *callStore) GetSessions(ctx context.Context, key id.SenderKey) (crypto.OlmSessionList, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, err := c.known(ctx, key)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(k.list, func(a, b *crypto.OlmSession) int {
		return cmp.Or(b.LastDecryptedTime.Compare(a.LastDecryptedTime), b.CreationTime.Compare(a.CreationTime))
	})
	return slices.Clone(k.list), nil
}

// GetLatestSession implements crypto.Store.
func (c *callStore) GetLatestSession(ctx context.Context, key id.SenderKey) (*crypto.OlmSession, error) {
	list, err := c.GetSessions(ctx, key)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[0], nil
}

// GetNewestSessionCreationTS implements crypto.Store. mautrix asks only before
// it repairs a session, and does not if there is a new one: Ghost.repair does.
func (*callStore) GetNewestSessionCreationTS(context.Context, id.SenderKey) (time.Time, error) {
	return time.Now(), nil
}

// newest is when the last of the sessions with a device was made that were used. Unlike GetSessions it may be called while others
// use them.
func (c *callStore) newest(ctx context.Context, key id.SenderKey) (time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, err := c.known(ctx, key)
	if err != nil {
		return time.Time{}, err
	}
	return k.used, nil
}

// AddSession implements crypto.Store.
func (c *callStore) AddSession(ctx context.Context, key id.SenderKey, session *crypto.OlmSession) error {
	c.mu.Lock()
	k, err := c.known(ctx, key)
	if err == nil && k.find(session.ID()) == nil {
		k.list = append(k.list, session)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return c.put(ctx, key, session)
}

// UpdateSession implements crypto.Store. It is called after each use of a session.
func (c *callStore) UpdateSession(ctx context.Context, key id.SenderKey, session *crypto.OlmSession) error {
	c.mu.Lock()
	if k := c.sessions[key]; k != nil {
		k.uses(session)
	}
	c.mu.Unlock()
	return c.put(ctx, key, session)
}

// put writes a session as it is now, be it new or not: of several writes that wait only the last is done.
func (c *callStore) put(ctx context.Context, key id.SenderKey, session *crypto.OlmSession) error {
	pickle, err := session.Internal.Pickle(c.PickleKey)
	if err != nil {
		return fmt.Errorf("write olm session: %w", err)
	}
	values := []any{session.ID(), key, pickle, session.CreationTime, session.LastEncryptedTime, session.LastDecryptedTime, c.AccountID}
	return c.service.store.Write(ctx, c.row("session", string(session.ID())), func(ctx context.Context) error {
		_, err := c.DB.Exec(ctx, `INSERT INTO crypto_olm_session
			(session_id, sender_key, session, created_at, last_encrypted, last_decrypted, account_id) VALUES ($1, $2, $3, $4, $5, $6, $7)
			ON CONFLICT (account_id, session_id) DO UPDATE SET session = excluded.session,
				last_encrypted = excluded.last_encrypted, last_decrypted = excluded.last_decrypted`, values...)
		return err
	})
}

// row names what is written.
func (c *callStore) row(kind, name string) string {
	return "olm " + kind + " " + c.AccountID + " " + name
}

// DeleteSession implements crypto.Store.
func (c *callStore) DeleteSession(ctx context.Context, key id.SenderKey, session *crypto.OlmSession) error {
	c.mu.Lock()
	if k := c.sessions[key]; k != nil {
		k.list = slices.DeleteFunc(k.list, func(s *crypto.OlmSession) bool { return s.ID() == session.ID() })
	}
	c.mu.Unlock()
	return c.service.store.Write(ctx, c.row("session", string(session.ID())), func(ctx context.Context) error {
		return c.SQLCryptoStore.DeleteSession(ctx, key, session)
	})
}

// PutAccount implements crypto.Store.
func (c *callStore) PutAccount(ctx context.Context, account *crypto.OlmAccount) error {
	c.SQLCryptoStore.Account = account
	pickle, err := account.Internal.Pickle(c.PickleKey)
	if err != nil {
		return fmt.Errorf("write olm account: %w", err)
	}
	values := []any{c.DeviceID, account.Shared, c.SyncToken, pickle, c.AccountID, account.KeyBackupVersion}
	return c.service.store.Write(ctx, c.row("account", ""), func(ctx context.Context) error {
		_, err := c.DB.Exec(ctx, `INSERT INTO crypto_account
			(device_id, shared, sync_token, account, account_id, key_backup_version) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (account_id) DO UPDATE SET shared = excluded.shared, sync_token = excluded.sync_token,
				account = excluded.account, key_backup_version = excluded.key_backup_version`, values...)
		return err
	})
}

// PutOlmHash implements crypto.Store.
func (c *callStore) PutOlmHash(ctx context.Context, sum [32]byte, at time.Time) error {
	c.mu.Lock()
	c.hashes[c.next] = olmHash{sum, at}
	c.next = (c.next + 1) % maxHashes
	c.mu.Unlock()
	return c.service.store.Write(ctx, c.row("hash", hex.EncodeToString(sum[:])), func(ctx context.Context) error {
		return c.SQLCryptoStore.PutOlmHash(ctx, sum, at)
	})
}

// GetOlmHash implements crypto.Store.
func (c *callStore) GetOlmHash(ctx context.Context, sum [32]byte) (at time.Time, err error) {
	c.mu.Lock()
	i := slices.IndexFunc(c.hashes[:], func(h olmHash) bool { return h.sum == sum && !h.at.IsZero() })
	if i >= 0 {
		at = c.hashes[i].at
	}
	c.mu.Unlock()
	if i >= 0 {
		return at, nil
	}
	_, err = c.ask(ctx, func(ctx context.Context) error {
		at, err = c.SQLCryptoStore.GetOlmHash(ctx, sum)
		return err
	})
	return at, err
}

// PutDevices implements crypto.Store. The tables of devices are shared by all ghosts.
func (c *callStore) PutDevices(ctx context.Context, user id.UserID, devices map[id.DeviceID]*id.Device) error {
	return c.service.store.Write(ctx, "olm devices "+string(user), func(ctx context.Context) error {
		return c.SQLCryptoStore.PutDevices(ctx, user, devices)
	})
}

// GetDevices implements crypto.Store.
func (c *callStore) GetDevices(ctx context.Context, user id.UserID) (devices map[id.DeviceID]*id.Device, err error) {
	away, err := c.ask(ctx, func(ctx context.Context) error {
		devices, err = c.SQLCryptoStore.GetDevices(ctx, user)
		return err
	})
	if away {
		return c.service.directory.list(user).devices, nil
	}
	return devices, err
}

// GetDevice implements crypto.Store.
func (c *callStore) GetDevice(ctx context.Context, user id.UserID, name id.DeviceID) (device *id.Device, err error) {
	away, err := c.ask(ctx, func(ctx context.Context) error {
		device, err = c.SQLCryptoStore.GetDevice(ctx, user, name)
		return err
	})
	if away {
		return c.service.directory.list(user).devices[name], nil
	}
	return device, err
}

// FindDeviceByKey implements crypto.Store.
func (c *callStore) FindDeviceByKey(ctx context.Context, user id.UserID, key id.IdentityKey) (device *id.Device, err error) {
	away, err := c.ask(ctx, func(ctx context.Context) error {
		device, err = c.SQLCryptoStore.FindDeviceByKey(ctx, user, key)
		return err
	})
	if away {
		return c.service.directory.owner(user, key), nil
	}
	return device, err
}

// PutGroupSession implements crypto.Store.
func (*callStore) PutGroupSession(context.Context, *crypto.InboundGroupSession) error { return nil }

// PutWithheldGroupSession implements crypto.Store.
func (*callStore) PutWithheldGroupSession(context.Context, event.RoomKeyWithheldEventContent) error {
	return nil
}

// PutSecret implements crypto.Store.
func (*callStore) PutSecret(context.Context, id.Secret, string) error { return nil }

// PutCrossSigningKey implements crypto.Store.
func (*callStore) PutCrossSigningKey(context.Context, id.UserID, id.CrossSigningUsage, id.Ed25519) error {
	return nil
}

// GetCrossSigningKeys implements crypto.Store.
func (*callStore) GetCrossSigningKeys(context.Context, id.UserID) (map[id.CrossSigningUsage]id.CrossSigningKey, error) {
	return nil, nil
}

// PutSignature implements crypto.Store.
func (*callStore) PutSignature(context.Context, id.UserID, id.Ed25519, id.UserID, id.Ed25519, string) error {
	return nil
}

// IsKeySignedBy implements crypto.Store.
func (*callStore) IsKeySignedBy(context.Context, id.UserID, id.Ed25519, id.UserID, id.Ed25519) (bool, error) {
	return false, nil
}

// DropSignaturesByKey implements crypto.Store.
func (*callStore) DropSignaturesByKey(context.Context, id.UserID, id.Ed25519) (int64, error) {
	return 0, nil
}

var _ crypto.Store = (*callStore)(nil)
