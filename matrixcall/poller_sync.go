package matrixcall

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix"
)

// pollFilter leaves everything but to-device messages, key counts and device
// lists out of /sync: 5 ms instead of 600 for a ghost in 50 rooms.
const pollFilter = `{"room":{"rooms":[]},"presence":{"types":[]},"account_data":{"types":[]}}`

// bySync asks with /sync.
func (p *poller) bySync(ctx context.Context, wait time.Duration) (*inboxAnswer, error) {
	query := map[string]string{
		"timeout": strconv.FormatInt(wait.Milliseconds(), 10), "filter": pollFilter, "set_presence": "offline",
	}
	if p.since != "" && !strings.HasPrefix(p.since, slidingMark) {
		query["since"] = p.since
	}
	client := p.ghost.asSelf
	var answer struct {
		NextBatch string `json:"next_batch"`
		ToDevice  struct {
			Events []toDeviceEvent `json:"events"`
		} `json:"to_device"`
		DeviceLists  deviceLists     `json:"device_lists"`
		KeyCounts    *map[string]int `json:"device_one_time_keys_count"`
		FallbackKeys *[]string       `json:"device_unused_fallback_key_types"`
	}
	_, err := client.MakeFullRequest(ctx, mautrix.FullRequest{
		Method: http.MethodGet, URL: client.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "sync"}, query),
		ResponseJSON: &answer, MaxAttempts: 1,
	})
	switch {
	case err != nil:
		return nil, err
	case answer.NextBatch == "":
		return nil, errors.New("sync answer without next_batch")
	}
	return &inboxAnswer{
		next: answer.NextBatch, messages: answer.ToDevice.Events, deviceLists: answer.DeviceLists,
		keyCounts: answer.KeyCounts, fallbackKeys: answer.FallbackKeys,
	}, nil
}

const (
	// slidingFeature is how /versions announces simplified sliding sync.
	slidingFeature = "org.matrix.simplified_msc3575"

	// slidingMark tells tokens of sliding sync from those of /sync, which
	// are not understood there. Whoever has the wrong one asks without and
	// gets what is not confirmed.
	slidingMark = "sliding:"
)

// bySliding asks with simplified sliding sync (MSC4186) for no rooms at all,
// only for to-device messages (MSC3885) and what concerns keys (MSC3884).
// Without rooms the homeserver stores nothing about the connection, so there
// is nothing that could expire. The first request, which has no position, is
// answered at once.
func (p *poller) bySliding(ctx context.Context, wait time.Duration) (*inboxAnswer, error) {
	query := map[string]string{"timeout": strconv.FormatInt(wait.Milliseconds(), 10)}
	if p.position != "" {
		query["pos"] = p.position
	}
	toDevice := map[string]any{"enabled": true, "limit": 100}
	if since, ours := strings.CutPrefix(p.since, slidingMark); ours {
		toDevice["since"] = since
	}
	client := p.ghost.asSelf
	var answer struct {
		Position   string `json:"pos"`
		Extensions struct {
			ToDevice struct {
				NextBatch string          `json:"next_batch"`
				Events    []toDeviceEvent `json:"events"`
			} `json:"to_device"`
			Keys struct {
				DeviceLists  deviceLists     `json:"device_lists"`
				KeyCounts    *map[string]int `json:"device_one_time_keys_count"`
				FallbackKeys *[]string       `json:"device_unused_fallback_key_types"`
			} `json:"e2ee"`
		} `json:"extensions"`
	}
	_, err := client.MakeFullRequest(ctx, mautrix.FullRequest{
		Method: http.MethodPost, URL: client.BuildURLWithQuery(mautrix.ClientURLPath{"unstable", slidingFeature, "sync"}, query),
		RequestJSON: map[string]any{"conn_id": "phone", "extensions": map[string]any{
			"to_device": toDevice, "e2ee": map[string]any{"enabled": true},
		}},
		ResponseJSON: &answer, MaxAttempts: 1,
	})
	var refused mautrix.HTTPError
	switch {
	case errors.As(err, &refused) && refused.Response != nil && !isUnknownDevice(err):
		p.position = "" // M_UNKNOWN_POS, or after an upgrade; a new one costs a request
		return nil, p.slidingRefused(err, refused)
	case err != nil:
		return nil, err
	case answer.Position == "" || answer.Extensions.ToDevice.NextBatch == "":
		return nil, p.noSliding(errors.New("answer without pos or next_batch"))
	}
	p.position, p.missing = answer.Position, 0
	found := answer.Extensions
	return &inboxAnswer{
		next: slidingMark + found.ToDevice.NextBatch, messages: found.ToDevice.Events,
		deviceLists: found.Keys.DeviceLists, keyCounts: found.Keys.KeyCounts, fallbackKeys: found.Keys.FallbackKeys,
	}, nil
}

// maxMissing is how many answers in a row may say that there is no such page
// before we believe it. Only M_UNRECOGNIZED is the homeserver's own word; a
// proxy may say 404 for a moment because what is behind it starts, or always
// because it knows only the paths of the specification.
const maxMissing = 3

// slidingRetry is how long all pollers go on by /sync before they try again.
const slidingRetry = time.Hour

// slidingRefused takes an error of a homeserver that has answered.
func (p *poller) slidingRefused(err error, answer mautrix.HTTPError) error {
	switch {
	case errors.Is(err, mautrix.MUnrecognized):
		return p.noSliding(err)
	case !answer.IsStatus(http.StatusNotFound) && !answer.IsStatus(http.StatusMethodNotAllowed):
		p.missing = 0
		return err
	}
	if p.missing++; p.missing < maxMissing {
		return err
	}
	return p.noSliding(err)
}

// noSliding lets all pollers go on by /sync for a while.
func (p *poller) noSliding(err error) error {
	p.missing = 0
	p.ghost.service.sliding.without(slidingRetry)
	return fmt.Errorf("homeserver announces sliding sync and has it not, going on by /sync: %w", err)
}

// slidingSync says whether to ask by sliding sync. The zero value says no.
type slidingSync struct {
	announced atomic.Bool
	again     atomic.Int64 // not before then, in Unix nanoseconds
}

func (s *slidingSync) usable() bool {
	return s.announced.Load() && time.Now().UnixNano() >= s.again.Load()
}

// without makes it unusable for a while.
func (s *slidingSync) without(d time.Duration) { s.again.Store(time.Now().Add(d).UnixNano()) }
