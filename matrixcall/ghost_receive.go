package matrixcall

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// callPrefix is how the types of all call messages begin, the unstable
// metadata change and asserted identity excepted.
const (
	callPrefix         = "m.call."
	unstableCallPrefix = "org.matrix.call."
)

// receive handles one to-device message. It returns an error only when the
// message could not be looked at and must come again; whatever is wrong with
// the message itself is counted and forgotten. routed says that a conference got
// it.
func (g *Ghost) receive(ctx context.Context, message toDeviceEvent) (routed bool, err error) {
	s := g.service
	if message.Type != event.ToDeviceEncrypted.Type {
		if !isCallType(message.Type) {
			return false, nil
		}
		if !s.cfg.AllowPlain {
			s.refuse(g, message.Sender, "plain message, and the configuration wants olm")
			return false, nil
		}
		return g.route(callMessage{sender: message.Sender, kind: message.Type, content: message.Content}), nil
	}
	opened, err := g.keys.open(ctx, message)
	switch {
	case errors.Is(err, errRepeated):
		s.metrics.MessagesRepeated.Add(1)
		return false, nil
	case errors.Is(err, errUnreadable):
		s.metrics.MessagesUndecryptable.Add(1)
		g.repair(ctx, message)
		g.log.Debug("olm message cannot be read", "sender", userName(message.Sender), "err", err)
		return false, nil
	case errors.Is(err, errOlmsOwn):
		return false, nil
	case err != nil:
		return false, err
	case !isCallType(opened.Type.Type):
		return false, nil
	}
	return g.strangers.receive(opened), nil
}

// routeOlm hands on an olm message whose sender is known.
func (g *Ghost) routeOlm(opened *crypto.DecryptedOlmEvent, device *id.Device) bool {
	return g.route(callMessage{
		sender: opened.Sender, device: device.DeviceID, kind: opened.Type.Type,
		content: opened.Content.VeryRaw, encrypted: true,
	})
}

// maxDeviceID is how long a device id may be; homeservers take no longer ones.
const maxDeviceID = 255

// readPatience is how long reading one message may take.
const readPatience = 10 * time.Second

func isCallType(kind string) bool {
	return strings.HasPrefix(kind, callPrefix) || strings.HasPrefix(kind, unstableCallPrefix)
}

// callMessage is a readable call message. device is empty until route has
// read it from a plain message's content.
type callMessage struct {
	sender    id.UserID
	device    id.DeviceID
	kind      string
	content   json.RawMessage
	encrypted bool
}

// route hands a call message to the conference it is for, and says whether
// there is one that got it at once.
func (g *Ghost) route(m callMessage) bool {
	s := g.service
	var envelope struct {
		ConfID   string      `json:"conf_id"`
		DeviceID id.DeviceID `json:"device_id"`
	}
	if err := json.Unmarshal(m.content, &envelope); err != nil || envelope.ConfID == "" || envelope.DeviceID == "" {
		s.refuse(g, m.sender, "not a group call message")
		return false
	}
	if m.encrypted && envelope.DeviceID != m.device {
		// The device that owns the keys must be the one that is named,
		// or one device could hang up for another.
		s.refuse(g, m.sender, "olm message names another device than its sender")
		return false
	}
	if len(envelope.DeviceID) > maxDeviceID {
		s.refuse(g, m.sender, "device id is too long")
		return false
	}
	g.routing.Lock()
	defer g.routing.Unlock()
	for _, conference := range g.conferences() {
		if conference.Info().ConfID == envelope.ConfID {
			// Anybody can name any device, but only members of the call are worth remembering.
			name := deviceName{m.sender, envelope.DeviceID}
			if !s.directory.knows(name, m.encrypted) && s.tracker.lists(conference.Info(), name) {
				s.directory.heard(name, m.encrypted)
			}
			m.device = envelope.DeviceID
			return s.tracker.deliver(g, conference, m)
		}
	}
	s.metrics.MessagesUnclaimed.Add(1)
	return false
}

func (s *Service) refuse(g *Ghost, sender id.UserID, why string) {
	s.metrics.MessagesRefused.Add(1)
	g.log.Debug("message refused", "sender", userName(sender), "why", why)
}

var (
	errUnreadable = errors.New("olm message cannot be read")
	errRepeated   = errors.New("olm message was read before")
	errOlmsOwn    = errors.New("olm message is for olm itself")
)

// open decrypts an olm message and checks what the specification wants
// checked (mautrix does): sender, recipient, both ed25519 keys and
// sender_device_keys. What fails that, or cannot be read at all, is
// errUnreadable for ever, a repeat is errRepeated, a room key or the like
// errOlmsOwn; any other error is ours, and the message must come again.
func (k *keyring) open(ctx context.Context, message toDeviceEvent) (*crypto.DecryptedOlmEvent, error) {
	sealed := &event.Event{Sender: message.Sender, Type: event.ToDeviceEncrypted}
	if err := json.Unmarshal(message.Content, &sealed.Content); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	if err := sealed.Content.ParseRaw(event.ToDeviceEncrypted); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	content, ok := sealed.Content.Parsed.(*event.EncryptedEventContent)
	if !ok || content.Algorithm != id.AlgorithmOlmV1 {
		return nil, fmt.Errorf("%w: not olm", errUnreadable)
	}
	ctx, cancel := context.WithTimeout(ctx, readPatience)
	defer cancel()
	if err := k.account.acquire(ctx); err != nil {
		return nil, err
	}
	defer k.account.release()
	switch known, err := k.seen(ctx, content); {
	case err != nil:
		return nil, err
	case known:
		return nil, errRepeated
	}
	opened, failed := k.unseal(ctx, sealed)
	if opened == nil && failed && ctx.Err() == nil {
		// If that was because the tables cannot be read, it must come again; and at once if they could not be read only then.
		if err := k.service.storeAway(ctx); err != nil {
			return nil, err
		}
		opened, failed = k.unseal(ctx, sealed)
	}
	switch {
	case opened != nil:
		return opened, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case failed:
		return nil, errUnreadable
	}
	return nil, errOlmsOwn
}

// unseal is HandleEncryptedEvent for input that is not trusted. mautrix
// returns nothing for what it keeps to itself, like room keys, and nothing for
// what it refuses; that it logs as an error.
func (k *keyring) unseal(ctx context.Context, sealed *event.Event) (opened *crypto.DecryptedOlmEvent, failed bool) {
	var complained atomic.Bool // a session that is repaired complains from another goroutine
	defer func() {
		if r := recover(); r != nil {
			k.log.Warn("olm stumbled over a message", "sender", userName(sealed.Sender), "panic", fmt.Sprint(r))
			opened, failed = nil, true
		}
	}()
	log := k.machine.Log.Hook(zerolog.HookFunc(func(_ *zerolog.Event, level zerolog.Level, _ string) {
		if level >= zerolog.ErrorLevel {
			complained.Store(true)
		}
	}))
	opened = k.machine.HandleEncryptedEvent(saidBy(log.WithContext(ctx), sealed.Sender), sealed)
	return opened, complained.Load()
}

// seen says whether the message was decrypted before: the olm store keeps the
// hashes of ciphertexts, over a restart, too.
func (k *keyring) seen(ctx context.Context, content *event.EncryptedEventContent) (bool, error) {
	ours, ok := content.OlmCiphertext[k.machine.OwnIdentity().IdentityKey]
	if !ok {
		return false, nil
	}
	ciphertext, err := base64.RawStdEncoding.DecodeString(ours.Body)
	if err != nil {
		return false, nil
	}
	at, err := k.machine.CryptoStore.GetOlmHash(ctx, sha256.Sum256(ciphertext))
	return !at.IsZero(), err
}
