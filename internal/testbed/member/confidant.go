package member

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Confidant is a person's client that reads and writes encrypted rooms (megolm) as ordinary ones do, and takes part in no call.
type Confidant struct {
	client  *mautrix.Client
	machine *crypto.OlmMachine
	rooms   *knownRooms
	wg      sync.WaitGroup
	cancel  context.CancelFunc

	sealing sync.Mutex // held while olm is at work: mautrix's store in memory is for one goroutine

	mu      sync.Mutex // guards what follows
	sealed  []*event.Event
	notices map[id.RoomID][]Notice
	clear   map[id.RoomID][]string
}

// Notice is what a bot has said, as it reads now.
type Notice struct {
	Event id.EventID
	Text  string
}

// knownRooms is what the client knows of rooms: all are shared with everybody.
type knownRooms struct {
	mu        sync.Mutex
	encrypted map[id.RoomID]*event.EncryptionEventContent // guarded by mu
}

func (r *knownRooms) IsEncrypted(_ context.Context, room id.RoomID) (bool, error) {
	how, err := r.GetEncryptionEvent(context.Background(), room)
	return how != nil, err
}

func (r *knownRooms) GetEncryptionEvent(_ context.Context, room id.RoomID) (*event.EncryptionEventContent, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.encrypted[room], nil
}

func (*knownRooms) GetHistoryVisibility(context.Context, id.RoomID) (*event.HistoryVisibilityEventContent, error) {
	return nil, nil
}

func (r *knownRooms) FindSharedRooms(context.Context, id.UserID) ([]id.RoomID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.encrypted)), nil
}

// NewConfidant publishes the device's keys and begins to sync. Close it.
func NewConfidant(ctx context.Context, cfg Config) (*Confidant, error) {
	client, err := mautrix.NewClient(cfg.URL, cfg.UserID, cfg.AccessToken)
	if err != nil {
		return nil, fmt.Errorf("confidant %s: %w", cfg.UserID, err)
	}
	client.DeviceID, client.Client = cfg.DeviceID, cfg.HTTP
	if client.Client == nil {
		client.Client = &http.Client{Transport: new(http.Transport), Timeout: 3 * time.Minute}
	}
	c := &Confidant{
		client: client, rooms: &knownRooms{encrypted: make(map[id.RoomID]*event.EncryptionEventContent)},
		notices: make(map[id.RoomID][]Notice), clear: make(map[id.RoomID][]string),
	}
	c.machine = crypto.NewOlmMachine(client, nil, crypto.NewMemoryStore(nil), c.rooms)
	if err := c.machine.Load(ctx); err != nil {
		return nil, fmt.Errorf("confidant %s: make olm account: %w", cfg.UserID, err)
	}
	if err := c.machine.ShareKeys(ctx, 0); err != nil {
		return nil, fmt.Errorf("confidant %s: publish device keys: %w", cfg.UserID, err)
	}
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	c.wg.Go(func() { c.sync(live) })
	return c, nil
}

// Close ends the client without a word.
func (c *Confidant) Close() {
	c.cancel()
	c.wg.Wait()
	c.machine.Destroy()
	c.client.Client.CloseIdleConnections()
}

// Client acts as the person, without encryption.
func (c *Confidant) Client() *mautrix.Client { return c.client }

// Machine is the client's olm, which must not be used while it says something.
func (c *Confidant) Machine() *crypto.OlmMachine { return c.machine }

func (c *Confidant) sync(ctx context.Context) {
	for since := ""; ctx.Err() == nil; {
		answer, err := c.client.FullSyncRequest(ctx, mautrix.ReqSync{Timeout: 5000, Since: since})
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		for room, joined := range answer.Rooms.Join {
			for _, e := range append(joined.State.Events, joined.Timeline.Events...) {
				c.take(room, e)
			}
		}
		c.sealing.Lock()
		c.machine.ProcessSyncResponse(ctx, answer, since)
		c.open(ctx)
		c.sealing.Unlock()
		since = answer.NextBatch
	}
}

// take notes an event of a room.
func (c *Confidant) take(room id.RoomID, e *event.Event) {
	e.RoomID = room
	c.mu.Lock()
	defer c.mu.Unlock()
	switch e.Type.Type {
	case event.StateEncryption.Type:
		how := new(event.EncryptionEventContent)
		if json.Unmarshal(e.Content.VeryRaw, how) == nil {
			c.rooms.mu.Lock()
			c.rooms.encrypted[room] = how
			c.rooms.mu.Unlock()
		}
	case event.EventEncrypted.Type:
		c.sealed = append(c.sealed, e)
	case event.EventMessage.Type:
		var content struct{ Body string }
		if json.Unmarshal(e.Content.VeryRaw, &content) == nil {
			c.clear[room] = append(c.clear[room], content.Body)
		}
	}
}

// open reads what can be read of the encrypted events that came.
func (c *Confidant) open(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sealed = slices.DeleteFunc(c.sealed, func(e *event.Event) bool {
		e.Type.Class = event.MessageEventType
		if e.Content.Parsed == nil && e.Content.ParseRaw(e.Type) != nil {
			return true
		}
		plain, err := c.machine.DecryptMegolmEvent(ctx, e)
		if errors.Is(err, crypto.ErrNoSessionFound) {
			return false // its key may follow
		}
		if err == nil {
			c.note(plain)
		}
		return true
	})
}

// note notes a notice, or the edit of one. Called with mu held.
func (c *Confidant) note(plain *event.Event) {
	content, ok := plain.Content.Parsed.(*event.MessageEventContent)
	if !ok || content.MsgType != event.MsgNotice {
		return
	}
	list := c.notices[plain.RoomID]
	if content.NewContent != nil {
		i := slices.IndexFunc(list, func(n Notice) bool { return n.Event == content.RelatesTo.GetReplaceID() })
		if i >= 0 {
			list[i].Text = content.NewContent.Body
		}
		return
	}
	c.notices[plain.RoomID] = append(list, Notice{plain.ID, content.Body})
}

// Notices are the encrypted notices of the room that the client can read.
func (c *Confidant) Notices(room id.RoomID) []Notice {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.notices[room])
}

// Clear are the messages of the room that were not encrypted.
func (c *Confidant) Clear(room id.RoomID) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.clear[room])
}

// Knows says whether the client has heard that the room is encrypted.
func (c *Confidant) Knows(room id.RoomID) bool {
	known, _ := c.rooms.IsEncrypted(context.Background(), room)
	return known
}

// Say writes something into an encrypted room.
func (c *Confidant) Say(ctx context.Context, room id.RoomID, text string) (id.EventID, error) {
	sealed, err := c.Seal(ctx, room, map[string]any{"msgtype": "m.text", "body": text})
	if err != nil {
		return "", err
	}
	return c.Send(ctx, room, sealed)
}

// Seal encrypts a message, after its key was given to all devices in the room.
func (c *Confidant) Seal(ctx context.Context, room id.RoomID, content map[string]any) (*event.EncryptedEventContent, error) {
	c.sealing.Lock()
	defer c.sealing.Unlock()
	sealed, err := c.machine.EncryptMegolmEvent(ctx, room, event.EventMessage, content)
	if !crypto.IsShareError(err) {
		return sealed, err
	}
	members, err := c.client.JoinedMembers(ctx, room)
	if err != nil {
		return nil, err
	}
	if err := c.machine.ShareGroupSession(ctx, room, slices.Collect(maps.Keys(members.Joined))); err != nil {
		return nil, err
	}
	return c.machine.EncryptMegolmEvent(ctx, room, event.EventMessage, content)
}

// Send sends what is encrypted.
func (c *Confidant) Send(ctx context.Context, room id.RoomID, sealed *event.EncryptedEventContent) (id.EventID, error) {
	answer, err := c.client.SendMessageEvent(ctx, room, event.EventEncrypted, sealed)
	if err != nil {
		return "", err
	}
	return answer.EventID, nil
}
