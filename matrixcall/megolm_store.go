package matrixcall

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/id"
)

const (
	// keyLife is how long the key of a room's messages is kept, maxKeys how
	// many of one user's, the newest. Clients take a new one each week, or
	// after a hundred messages.
	keyLife = 30 * 24 * time.Hour
	maxKeys = 64

	// maxAllKeys is how many are kept of everybody: any user of any server
	// may send the bot some.
	maxAllKeys = 20_000

	// peerSessionLife is how long an olm session is kept that nobody uses
	// and whose device we do not know, maxPeerSessions how many of all.
	peerSessionLife = 30 * 24 * time.Hour
	maxPeerSessions = 20_000

	// maxOwnKeys is in how many rooms the bot has a key of its own.
	maxOwnKeys = 512
)

// megolmStore is the bot's callStore: one that has megolm. Keys of others are in mautrix's tables, each user's apart, so that nobody's
// key takes the place of another's. The bot's own are in memory only: a process that dies begins new ones, for a key that is used
// twice at one place, as it would be if the last write were lost, betrays what it hides.
type megolmStore struct {
	*callStore

	mu       sync.Mutex                                 // guards what follows; held while nothing is asked
	outbound map[id.RoomID]*crypto.OutboundGroupSession // the bot's own
	came     chan struct{}                              // closed, and replaced, when a key came
	puts     int
	peers    int // sessions that were made
}

func newMegolmStore(sessions *callStore) *megolmStore {
	return &megolmStore{
		callStore: sessions, outbound: make(map[id.RoomID]*crypto.OutboundGroupSession), came: make(chan struct{}),
	}
}

// speaking is the name under which a context has who sent what is being read.
type speaking struct{}

// saidBy tells the store who has sent what is being read.
func saidBy(ctx context.Context, user id.UserID) context.Context {
	return context.WithValue(ctx, speaking{}, user)
}

// tablesOf are mautrix's tables as if the user's keys were all that we have.
func (m *megolmStore) tablesOf(user id.UserID) *crypto.SQLCryptoStore {
	return crypto.NewSQLCryptoStore(m.DB, nil, m.AccountID+" "+string(user), m.DeviceID, m.PickleKey)
}

// arrival is closed when the next key comes.
func (m *megolmStore) arrival() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.came
}

// PutGroupSession implements crypto.Store. Only keys count that come from the device that made them: who forwards one could
// have made it up.
func (m *megolmStore) PutGroupSession(ctx context.Context, session *crypto.InboundGroupSession) error {
	if session.KeySource != id.KeySourceDirect || session.SourceUser == "" {
		return nil
	}
	m.mu.Lock()
	sweep := m.puts%256 == 0
	m.puts++
	m.mu.Unlock()
	m.service.metrics.RoomKeys.Add(1)
	copied := *session
	err := m.service.store.Write(ctx, m.row("room key", string(copied.SourceUser)+" "+string(copied.ID())), func(ctx context.Context) error {
		tables := m.tablesOf(copied.SourceUser)
		if err := tables.PutGroupSession(ctx, &copied); err != nil {
			return fmt.Errorf("write room key: %w", err)
		}
		_, err := m.DB.Exec(ctx, `DELETE FROM crypto_megolm_inbound_session WHERE account_id = $1 AND session_id NOT IN
			(SELECT session_id FROM crypto_megolm_inbound_session WHERE account_id = $1 ORDER BY received_at DESC LIMIT $2)`,
			tables.AccountID, maxKeys)
		if err == nil && sweep {
			err = m.sweep(ctx, time.Now().Add(-keyLife))
		}
		return err
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.came)
	m.came = make(chan struct{})
	return err
}

// sweep forgets the keys that came before then and what would be too many, and what is known of messages that nobody can read
// any more.
func (m *megolmStore) sweep(ctx context.Context, then time.Time) error {
	_, err := m.DB.Exec(ctx, `DELETE FROM crypto_megolm_inbound_session WHERE received_at < $1 OR session_id NOT IN
		(SELECT session_id FROM crypto_megolm_inbound_session ORDER BY received_at DESC LIMIT $2)`, then.UTC(), maxAllKeys)
	if err != nil {
		return fmt.Errorf("forget room keys: %w", err)
	}
	_, err = m.DB.Exec(ctx, `DELETE FROM crypto_message_index WHERE session_id NOT IN
		(SELECT session_id FROM crypto_megolm_inbound_session)`)
	if err != nil {
		return fmt.Errorf("forget message indices: %w", err)
	}
	return nil
}

// AddSession implements crypto.Store. Any user of any server may make one, each with another key.
func (m *megolmStore) AddSession(ctx context.Context, key id.SenderKey, session *crypto.OlmSession) error {
	if err := m.callStore.AddSession(ctx, key, session); err != nil {
		return err
	}
	m.mu.Lock()
	sweep := m.peers%256 == 0
	m.peers++
	m.mu.Unlock()
	if !sweep {
		return nil
	}
	return m.service.store.Write(ctx, m.row("sweep", ""), func(ctx context.Context) error {
		return m.sweepPeers(ctx, time.Now().Add(-peerSessionLife))
	})
}

// sweepPeers forgets the olm sessions of unknown devices that were not used since then, and what would be too many. Those of known
// ones stay: their clients use them on, be it after months, and what they sent by them would be lost.
func (m *megolmStore) sweepPeers(ctx context.Context, then time.Time) error {
	_, err := m.DB.Exec(ctx, `DELETE FROM crypto_olm_session WHERE account_id = $1 AND
		(last_decrypted < $2 AND last_encrypted < $2 AND sender_key NOT IN (SELECT identity_key FROM crypto_device WHERE NOT deleted)
		OR session_id NOT IN (SELECT session_id FROM crypto_olm_session WHERE account_id = $1 ORDER BY last_decrypted DESC LIMIT $3))`,
		m.AccountID, then.UTC(), maxPeerSessions)
	if err != nil {
		return fmt.Errorf("forget olm sessions: %w", err)
	}
	return nil
}

// GetGroupSession implements crypto.Store, for who speaks.
func (m *megolmStore) GetGroupSession(ctx context.Context, room id.RoomID, name id.SessionID) (*crypto.InboundGroupSession, error) {
	user, _ := ctx.Value(speaking{}).(id.UserID)
	if user == "" {
		return nil, nil
	}
	var session *crypto.InboundGroupSession
	_, err := m.ask(ctx, func(ctx context.Context) (err error) {
		session, err = m.tablesOf(user).GetGroupSession(ctx, room, name)
		return err
	})
	return session, err
}

// errIndexUnknown says that a message may be another one's repetition, for all we know.
var errIndexUnknown = errors.New("the database is away, so it is not known whether the message is a repetition")

// reading is the name under which a context says that an event was decrypted before, and nothing came of it.
type reading struct{}

// readAgain lets an event be read that has its place in the key's sequence already.
func readAgain(ctx context.Context) context.Context { return context.WithValue(ctx, reading{}, true) }

// ValidateMessageIndex implements crypto.Store. Other than mautrix's, it takes the same event once only: whether we had it is nothing
// that a homeserver's word could be taken for.
func (m *megolmStore) ValidateMessageIndex(
	ctx context.Context, session id.SessionID, message id.EventID, index uint, at int64,
) (fresh bool, err error) {
	away, err := m.ask(ctx, func(ctx context.Context) (err error) {
		if ctx.Value(reading{}) != nil {
			fresh, err = m.SQLCryptoStore.ValidateMessageIndex(ctx, session, message, index, at)
			return err
		}
		added, err := m.DB.Exec(ctx, `INSERT INTO crypto_message_index (session_id, "index", event_id, timestamp) VALUES ($1, $2, $3, $4)
			ON CONFLICT (session_id, "index") DO NOTHING`, session, index, message, at)
		if err != nil {
			return fmt.Errorf("remember message index: %w", err)
		}
		n, err := added.RowsAffected()
		fresh = n == 1
		return err
	})
	if away {
		return false, errIndexUnknown
	}
	return fresh, err
}

// sharing is the name under which a context says that a key is being given out.
type sharing struct{}

// GetDevices implements crypto.Store. Who gives out a key sees the devices that have an olm session: mautrix would have the others' made
// for all at once, and one homeserver that is away would hold up everybody.
func (m *megolmStore) GetDevices(ctx context.Context, user id.UserID) (map[id.DeviceID]*id.Device, error) {
	if ctx.Value(sharing{}) == nil {
		return m.callStore.GetDevices(ctx, user)
	}
	reachable := make(map[id.DeviceID]*id.Device)
	for name, device := range m.service.directory.list(user).devices {
		if m.HasSession(ctx, device.IdentityKey) {
			reachable[name] = device
		}
	}
	return reachable, nil
}

// AddOutboundGroupSession implements crypto.Store.
func (m *megolmStore) AddOutboundGroupSession(_ context.Context, session *crypto.OutboundGroupSession) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	makeRoom(m.outbound, session.RoomID, maxOwnKeys)
	m.outbound[session.RoomID] = session
	return nil
}

// UpdateOutboundGroupSession implements crypto.Store.
func (*megolmStore) UpdateOutboundGroupSession(context.Context, *crypto.OutboundGroupSession) error {
	return nil // it is the one we have
}

// GetOutboundGroupSession implements crypto.Store.
func (m *megolmStore) GetOutboundGroupSession(_ context.Context, room id.RoomID) (*crypto.OutboundGroupSession, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.outbound[room], nil
}

// RemoveOutboundGroupSession implements crypto.Store.
func (m *megolmStore) RemoveOutboundGroupSession(_ context.Context, room id.RoomID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.outbound, room)
	return nil
}

var _ crypto.Store = (*megolmStore)(nil)
