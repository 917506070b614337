package matrixcall

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

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
	case err != nil:
		return false, err
	case opened == nil || !isCallType(opened.Type.Type):
		return false, nil
	}
	device, err := g.senderOf(ctx, opened)
	switch {
	case err != nil:
		return false, err
	case device == nil:
		s.refuse(g, message.Sender, "olm message from a device nobody knows")
		return false, nil
	}
	return g.route(callMessage{
		sender: message.Sender, device: device.DeviceID, kind: opened.Type.Type,
		content: opened.Content.VeryRaw, encrypted: true,
	}), nil
}

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
// there is one.
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
	s.directory.heard(deviceName{m.sender, envelope.DeviceID}, m.encrypted)
	g.routing.Lock()
	defer g.routing.Unlock()
	for _, conference := range g.conferences() {
		if conference.Info().ConfID == envelope.ConfID {
			s.metrics.MessagesReceived.Add(1)
			conference.deliverToDevice(m.sender, envelope.DeviceID, m.kind, m.content, m.encrypted)
			return true
		}
	}
	s.metrics.MessagesUnclaimed.Add(1)
	return false
}

func (s *Service) refuse(g *Ghost, sender id.UserID, why string) {
	s.metrics.MessagesRefused.Add(1)
	g.log.Debug("message refused", "sender", userName(sender), "why", why)
}

// open decrypts an olm message and checks what the specification wants
// checked (mautrix does): sender, recipient, both ed25519 keys and
// sender_device_keys. nil without an error means there is nothing to do: not
// readable, a repeat, or something of olm's own.
func (k *keyring) open(ctx context.Context, message toDeviceEvent) (*crypto.DecryptedOlmEvent, error) {
	sealed := &event.Event{Sender: message.Sender, Type: event.ToDeviceEncrypted}
	metrics := &k.service.metrics
	if err := json.Unmarshal(message.Content, &sealed.Content); err != nil {
		metrics.MessagesUndecryptable.Add(1)
		return nil, nil
	}
	if err := sealed.Content.ParseRaw(event.ToDeviceEncrypted); err != nil {
		metrics.MessagesUndecryptable.Add(1)
		return nil, nil
	}
	content, ok := sealed.Content.Parsed.(*event.EncryptedEventContent)
	if !ok || content.Algorithm != id.AlgorithmOlmV1 {
		metrics.MessagesUndecryptable.Add(1)
		return nil, nil
	}
	if err := k.account.acquire(ctx); err != nil {
		return nil, err
	}
	defer k.account.release()
	// A message that is half read when the call ends would be lost: olm
	// reads everything once.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readPatience)
	defer cancel()
	known, err := k.seen(ctx, content)
	if err != nil {
		return nil, err
	}
	if known {
		metrics.MessagesRepeated.Add(1)
		return nil, nil
	}
	opened := k.unseal(ctx, sealed)
	if opened != nil {
		return opened, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if known, err = k.seen(ctx, content); err != nil {
		return nil, err
	}
	if !known {
		metrics.MessagesUndecryptable.Add(1)
		k.log.Debug("olm message cannot be read", "sender", userName(message.Sender))
	}
	return nil, nil
}

// unseal is HandleEncryptedEvent for input that is not trusted.
func (k *keyring) unseal(ctx context.Context, sealed *event.Event) (opened *crypto.DecryptedOlmEvent) {
	defer func() {
		if r := recover(); r != nil {
			k.log.Warn("olm stumbled over a message", "sender", userName(sealed.Sender), "panic", fmt.Sprint(r))
			opened = nil
		}
	}()
	return k.machine.HandleEncryptedEvent(ctx, sealed)
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

// senderOf returns the device that sent an olm message: the owner of its
// curve25519 key, with the ed25519 key the message names. mautrix lets
// messages of unknown devices pass and asks for keys only once; a client that
// has just logged in deserves another try.
func (g *Ghost) senderOf(ctx context.Context, opened *crypto.DecryptedOlmEvent) (*id.Device, error) {
	if opened.SenderDevice != nil {
		return opened.SenderDevice, nil
	}
	device, err := g.service.directory.owner(ctx, g.keys, opened.Sender, opened.SenderKey)
	if err != nil || device == nil || device.SigningKey != opened.Keys.Ed25519 {
		return nil, err
	}
	return device, nil
}
