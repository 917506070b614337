package matrixcall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

const (
	// claimPatience is how long a foreign homeserver may take to give out
	// one-time keys, claimLimit how long ours may take to say that it did not.
	claimPatience = 8 * time.Second
	claimLimit    = 10 * time.Second

	// After a failure a homeserver is not asked for this long, doubled with
	// each further one.
	claimPause    = 15 * time.Second
	maxClaimPause = 5 * time.Minute

	// repairPause is how soon an olm session is made anew again.
	repairPause = time.Hour
)

var errServerAway = errors.New("the device's homeserver does not give out its one-time keys")

// claims remembers which homeservers gave out no one-time keys when asked, for
// all ghosts: each message to a device there would ask again, and wait. The zero
// value works.
type claims struct {
	mu   sync.Mutex
	away map[string]absence // guarded by mu
}

type absence struct {
	failures int
	since    time.Time // of the last failure
	again    time.Time // not asked before then
}

// begin says whether a homeserver may be asked. One that failed before is asked
// by one at a time.
func (c *claims) begin(server string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, away := c.away[server]
	if !away {
		return true
	}
	if now.Before(a.again) {
		return false
	}
	a.again = now.Add(claimLimit)
	c.away[server] = a
	return true
}

// end takes note of how asking went that began then. Several that fail together
// count once.
func (c *claims) end(server string, began time.Time, failed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !failed {
		delete(c.away, server)
		return
	}
	a := c.away[server]
	if a.since.After(began) {
		return
	}
	a.since = time.Now()
	a.again = a.since.Add(backoff(a.failures, claimPause, maxClaimPause))
	a.failures++
	if c.away == nil {
		c.away = make(map[string]absence)
	}
	makeRoom(c.away, server, maxLockedMap)
	c.away[server] = a
}

// hasSession says whether something can be encrypted for the device.
func (k *keyring) hasSession(ctx context.Context, device *id.Device) bool {
	return k.machine.CryptoStore.HasSession(ctx, device.IdentityKey)
}

// needsKey says whether the device's homeserver must be asked for a one-time key
// before.
func (k *keyring) needsKey(ctx context.Context, device *id.Device) bool {
	return k.broken.get(device.IdentityKey) || !k.hasSession(ctx, device)
}

// makeSessions claims one-time keys of devices of one homeserver and makes olm
// sessions. errServerAway is that the homeserver fails, a transient error that
// ours cannot be asked. Who is still without a session gave out no key.
func (k *keyring) makeSessions(ctx context.Context, server string, devices []*id.Device) error {
	remembered, began := &k.service.claims, time.Now()
	if !remembered.begin(server, began) {
		return errServerAway
	}
	request := make(mautrix.OneTimeKeysRequest)
	for _, device := range devices {
		k.broken.remove(device.IdentityKey) // whatever comes: the old session is better than waiting each time
		if request[device.UserID] == nil {
			request[device.UserID] = make(map[id.DeviceID]id.KeyAlgorithm)
		}
		request[device.UserID][device.DeviceID] = id.KeyAlgorithmSignedCurve25519
	}
	k.service.metrics.KeyClaims.Add(uint64(len(devices)))
	answer, err := k.claim(ctx, request)
	foreign := server != k.client.UserID.Homeserver()
	if err != nil {
		if foreign && isUnanswered(err) && ctx.Err() == nil {
			remembered.end(server, began, true)
			return errServerAway
		}
		return fmt.Errorf("claim one-time keys: %w", err)
	}
	if _, failed := answer.Failures[server]; failed && foreign {
		remembered.end(server, began, true)
		return errServerAway
	}
	remembered.end(server, began, false)
	for _, device := range devices {
		for name, key := range answer.OneTimeKeys[device.UserID][device.DeviceID] {
			if err := k.beginSession(ctx, device, name, key); err != nil {
				k.log.Warn("one-time key cannot be used", "user", userName(device.UserID), "device", device.DeviceID, "err", tidy(err))
			}
			break // one was asked for
		}
	}
	return nil
}

func (k *keyring) claim(ctx context.Context, keys mautrix.OneTimeKeysRequest) (answer mautrix.RespClaimKeys, err error) {
	ctx, cancel := context.WithTimeout(ctx, claimLimit)
	defer cancel()
	_, err = k.client.MakeFullRequest(ctx, mautrix.FullRequest{
		Method: http.MethodPost, URL: k.client.BuildClientURL("v3", "keys", "claim"),
		RequestJSON:  &mautrix.ReqClaimKeys{OneTimeKeys: keys, Timeout: claimPatience.Milliseconds()},
		ResponseJSON: &answer, MaxAttempts: 1,
	})
	return answer, err
}

func (k *keyring) beginSession(ctx context.Context, device *id.Device, name id.KeyID, key mautrix.OneTimeKey) error {
	if algorithm, _ := name.Parse(); algorithm != id.KeyAlgorithmSignedCurve25519 {
		return fmt.Errorf("its algorithm is %q", algorithm)
	}
	signed, err := signatures.VerifySignatureJSON(key.RawData, device.UserID, device.DeviceID.String(), device.SigningKey)
	switch {
	case err != nil:
		return fmt.Errorf("check its signature: %w", err)
	case !signed:
		return errors.New("it is not signed by the device")
	}
	session, err := k.machine.GetAccount().Internal.NewOutboundSession(device.IdentityKey, key.Key)
	if err != nil {
		return fmt.Errorf("begin olm session: %w", err)
	}
	now := time.Now()
	return k.machine.CryptoStore.AddSession(ctx, device.IdentityKey, &crypto.OlmSession{
		Internal: session,
		ExpirationMixin: crypto.ExpirationMixin{TimeMixin: crypto.TimeMixin{
			CreationTime: now, LastEncryptedTime: now, LastDecryptedTime: now,
		}},
	})
}

// isUnanswered says whether a request was not answered in time: by the homeserver,
// or by a proxy in its place.
func isUnanswered(err error) bool {
	var response mautrix.HTTPError
	return errors.Is(err, context.DeadlineExceeded) ||
		errors.As(err, &response) && response.Response != nil && response.IsStatus(http.StatusGatewayTimeout)
}

// repair makes a new olm session with a device of which a message could not be
// read, and tells it so by an empty message: until then it goes on in the old
// one. mautrix would do that by itself, and claim the key in the middle of
// whatever is being encrypted for somebody else (see callStore). Anybody can
// send what cannot be read: only people of our rooms are worth it, one at a time.
func (g *Ghost) repair(ctx context.Context, message toDeviceEvent) {
	var sealed struct {
		Key id.SenderKey `json:"sender_key"`
	}
	if json.Unmarshal(message.Content, &sealed) != nil || !g.meets(message.Sender) {
		return
	}
	k, key := g.keys, sealed.Key
	newest, err := k.newestSession(ctx, key)
	if err != nil || time.Since(newest) < repairPause || time.Since(k.repaired.get(key)) < repairPause || !k.repairing.CompareAndSwap(false, true) {
		return
	}
	started := g.service.spawn(func() {
		defer k.repairing.Store(false)
		ctx, cancel := context.WithTimeout(g.service.ctx, strangerPatience)
		defer cancel()
		// No device has an empty name: this asks for the user's, unless that was done a moment ago.
		if _, err := g.service.directory.find(ctx, k, []deviceName{{User: message.Sender}}); err != nil {
			return
		}
		device := g.service.directory.owner(message.Sender, key)
		if device == nil {
			return
		}
		k.repaired.set(key, time.Now())
		k.broken.set(key, true)
		err := g.outbox.send(ctx, []OutMessage{{
			User: message.Sender, Device: device.DeviceID, Type: event.ToDeviceDummy.Type, Content: struct{}{},
		}})(0)
		g.log.Info("olm session made anew", "user", userName(message.Sender), "device", device.DeviceID, "err", tidy(err))
	})
	if !started {
		k.repairing.Store(false)
	}
}

// meets says whether a user is in the room of one of the ghost's calls, or has
// written to the bot.
func (g *Ghost) meets(user id.UserID) bool {
	if g.keys.megolm != nil {
		return g.service.secretary.writers.get(user)
	}
	return slices.ContainsFunc(g.conferences(), func(c conference) bool {
		r := g.service.tracker.find(c.Info().Room)
		return r != nil && r.joined(user)
	})
}
