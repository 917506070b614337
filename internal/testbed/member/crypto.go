package member

import (
	"context"
	"encoding/json"
	"fmt"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// newMachine makes the device's olm identity and publishes its keys.
func newMachine(ctx context.Context, client *mautrix.Client) (*crypto.OlmMachine, error) {
	mach := crypto.NewOlmMachine(client, nil, crypto.NewMemoryStore(nil), noRooms{})
	if err := mach.Load(ctx); err != nil {
		return nil, fmt.Errorf("make olm account: %w", err)
	}
	if err := mach.ShareKeys(ctx, 0); err != nil {
		return nil, fmt.Errorf("publish device keys: %w", err)
	}
	return mach, nil
}

// noRooms is the machine's room state: members encrypt no room events.
type noRooms struct{}

func (noRooms) IsEncrypted(context.Context, id.RoomID) (bool, error) { return false, nil }

func (noRooms) GetEncryptionEvent(context.Context, id.RoomID) (*event.EncryptionEventContent, error) {
	return nil, nil
}

func (noRooms) GetHistoryVisibility(context.Context, id.RoomID) (*event.HistoryVisibilityEventContent, error) {
	return nil, nil
}

func (noRooms) FindSharedRooms(context.Context, id.UserID) ([]id.RoomID, error) { return nil, nil }

// receive turns one to-device event into a message: decrypted if need be; false if it is none of ours.
func (m *Member) receive(ctx context.Context, evt *event.Event) (message, bool) {
	evt.Type.Class = event.ToDeviceEventType
	if evt.Type.Type != "m.room.encrypted" {
		msg := message{kind: evt.Type.Type, sender: evt.Sender}
		return msg, json.Unmarshal(evt.Content.VeryRaw, &msg.content) == nil
	}
	if m.machine == nil {
		m.complain("olm message from %s to a device that has no keys", evt.Sender)
		return message{}, false
	}
	if err := evt.Content.ParseRaw(evt.Type); err != nil {
		m.complain("encrypted message from %s: %v", evt.Sender, err)
		return message{}, false
	}
	plain := m.machine.HandleEncryptedEvent(ctx, evt)
	if plain == nil {
		m.complain("olm message from %s cannot be decrypted", evt.Sender)
		return message{}, false
	}
	msg := message{kind: plain.Type.Type, sender: plain.Sender, olm: true}
	if err := json.Unmarshal(plain.Content.VeryRaw, &msg.content); err != nil {
		m.complain("%s from %s: %v", msg.kind, msg.sender, err)
		return message{}, false
	}
	msg.owner = m.ownerOfKey(ctx, plain, msg.DeviceID)
	return msg, true
}

// ownerOfKey finds the device of the sender's key as hydrogen does: by key query when it is not in the message.
func (m *Member) ownerOfKey(ctx context.Context, evt *crypto.DecryptedOlmEvent, claimed id.DeviceID) id.DeviceID {
	if evt.SenderDevice != nil {
		return evt.SenderDevice.DeviceID
	}
	dev, err := m.machine.GetOrFetchDevice(ctx, evt.Sender, claimed)
	if err != nil || dev.IdentityKey != evt.SenderKey {
		return ""
	}
	return dev.DeviceID
}

// wrap encrypts a message for one device, or leaves it plain as this kind of client does.
func (m *Member) wrap(ctx context.Context, to peerKey, kind string, body *event.Content) (event.Type, *mautrix.ReqSendToDevice, error) {
	evtType := event.Type{Type: kind, Class: event.ToDeviceEventType}
	req := &mautrix.ReqSendToDevice{Messages: map[id.UserID]map[id.DeviceID]*event.Content{to.user: {to.device: body}}}
	if !m.cfg.Kind.sendsOlm() {
		return evtType, req, nil
	}
	known, err := m.hasKeys(ctx, to)
	if err != nil {
		return evtType, nil, fmt.Errorf("query keys of %s: %w", to.user, err)
	}
	if !known {
		return evtType, req, nil // plain
	}
	encrypted, err := m.machine.EncryptToDevices(ctx, evtType, req)
	if err != nil {
		return evtType, nil, fmt.Errorf("encrypt for %s: %w", to, err)
	}
	if encrypted.Messages[to.user][to.device] == nil {
		m.complain("%s has no one-time key left: %s is lost and its number spent", to, kind)
	}
	return event.ToDeviceEncrypted, encrypted, nil
}

// hasKeys looks into the cache, then asks.
func (m *Member) hasKeys(ctx context.Context, to peerKey) (bool, error) {
	dev, err := m.machine.CryptoStore.GetDevice(ctx, to.user, to.device)
	if err != nil || dev != nil {
		return dev != nil, err
	}
	keys, err := m.machine.FetchKeys(ctx, []id.UserID{to.user}, true)
	return keys[to.user][to.device] != nil, err
}
