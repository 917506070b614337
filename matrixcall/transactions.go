package matrixcall

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
)

const (
	maxTransaction = 64 << 20 // a homeserver sends at most 100 events of 64 KiB and some more
	maxSmallBody   = 64 << 10

	badToken = "bad access token"
)

// HTTPHandler answers the homeserver: transactions, user and alias queries and
// ping. Every path needs hs_token.
func (s *Service) HTTPHandler() http.Handler {
	mux := http.NewServeMux()
	route := func(method, pattern string, handle http.HandlerFunc) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case !s.fromHomeserver(w, r):
			case r.Method != method:
				w.Header().Set("Allow", method)
				answerError(w, http.StatusMethodNotAllowed, "M_UNRECOGNIZED", "wrong method")
			default:
				handle(w, r)
			}
		})
	}
	route(http.MethodPut, "/_matrix/app/v1/transactions/{txn}", s.putTransaction)
	route(http.MethodGet, "/_matrix/app/v1/users/{user}", s.getUser)
	route(http.MethodGet, "/_matrix/app/v1/rooms/{alias}", s.getAlias)
	route(http.MethodPost, "/_matrix/app/v1/ping", s.postPing)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		answerError(w, http.StatusNotFound, "M_UNRECOGNIZED", "no such endpoint")
	})
	return mux
}

// fromHomeserver checks hs_token, in the header as Synapse sends it. A token
// in the query must be right as well if there is one; alone it is not
// accepted (application service API, "Authorization").
func (s *Service) fromHomeserver(w http.ResponseWriter, r *http.Request) bool {
	token, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !found {
		s.metrics.TransactionsRefused.Add(1)
		answerError(w, http.StatusUnauthorized, "M_MISSING_TOKEN", "no access token")
		return false
	}
	right := sameToken(token, s.cfg.HSToken)
	if query := r.URL.Query(); query.Has("access_token") {
		right = sameToken(query.Get("access_token"), s.cfg.HSToken) && right
	}
	if !right {
		s.metrics.TransactionsRefused.Add(1)
		answerError(w, http.StatusForbidden, "M_FORBIDDEN", badToken)
	}
	return right
}

// sameToken compares digests: neither content nor length shows in its time.
func sameToken(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// transaction is what of a transaction we read. To-device messages are left
// out on purpose: Synapse loses some there, so they are read by polling, and
// reading both ways would only bring them twice.
type transaction struct {
	Events []json.RawMessage `json:"events"`
}

// roomEvent is a room event as the homeserver sends it.
type roomEvent struct {
	Type     string          `json:"type"`
	StateKey *string         `json:"state_key"`
	Room     id.RoomID       `json:"room_id"`
	Event    id.EventID      `json:"event_id"`
	Sender   id.UserID       `json:"sender"`
	Time     int64           `json:"origin_server_ts"` // ms
	Content  json.RawMessage `json:"content"`
	Unsigned json.RawMessage `json:"unsigned"`

	came time.Time // when we got it; zero for what was read from room state
}

func (s *Service) putTransaction(w http.ResponseWriter, r *http.Request) {
	body, ok := s.readBody(w, r, maxTransaction)
	if !ok {
		return
	}
	var txn transaction
	if err := json.Unmarshal(body, &txn); err != nil {
		s.metrics.TransactionsRefused.Add(1)
		answerError(w, http.StatusBadRequest, "M_NOT_JSON", "transaction is not JSON")
		return
	}
	events, came := make([]roomEvent, 0, len(txn.Events)), time.Now()
	for _, raw := range txn.Events {
		var event roomEvent
		// A bad event must never turn the transaction down: the
		// homeserver would send it again for ever.
		if err := json.Unmarshal(raw, &event); err == nil && event.Room != "" {
			event.came = came
			events = append(events, event)
		}
	}
	// A homeserver that hangs up now will send it again. Were the mark given up half-way it might have been made, and the
	// repeat would count as seen although nobody has handled it.
	fresh, err := s.store.MarkTransaction(context.WithoutCancel(r.Context()), transactionKey(r.PathValue("txn"), events))
	if err != nil {
		s.log.Warn("transaction not taken: it cannot be remembered", "err", tidy(err))
		answerError(w, http.StatusInternalServerError, "M_UNKNOWN", "try again")
		return
	}
	if !fresh {
		s.metrics.TransactionsRepeated.Add(1)
	} else {
		s.metrics.Transactions.Add(1)
		for _, event := range events {
			s.rooms.put(event)
		}
		if s.order.gap(r.PathValue("txn")) {
			s.tracker.refreshAll()
		}
	}
	answer(w, struct{}{})
}

// transactionKey is what a transaction is remembered by: its id and which
// events it brought. The id alone is not enough, because a homeserver that
// was set up anew counts from 1 again; the body is too much, because ages in
// it change with every try and a retry leaves to-device messages out.
func transactionKey(txnID string, events []roomEvent) string {
	digest := sha256.New()
	for _, event := range events {
		io.WriteString(digest, string(event.Event)+"\n")
	}
	return txnID + " " + base64.RawURLEncoding.EncodeToString(digest.Sum(nil)[:9])
}

// transactionOrder notices transactions that never came. Synapse numbers them;
// other homeservers need not, and then there is nothing to notice. The zero
// value works.
type transactionOrder struct {
	mu   sync.Mutex
	last int64 // number of the last transaction, 0 if there was none; guarded by mu
}

// gap takes note of a transaction and says whether one before it is missing.
func (o *transactionOrder) gap(txnID string) bool {
	n, err := strconv.ParseInt(txnID, 10, 64)
	o.mu.Lock()
	defer o.mu.Unlock()
	missing := err == nil && o.last != 0 && n != o.last+1
	o.last = n
	return missing
}

// getUser answers whether a user of our namespace exists. Ghosts are made
// when a phone needs one, never because somebody typed a name.
func (s *Service) getUser(w http.ResponseWriter, r *http.Request) {
	user := id.UserID(r.PathValue("user"))
	known := user == s.bot.UserID
	if !known && s.OwnGhost(user) {
		device, err := s.store.GhostDevice(r.Context(), user)
		if err != nil {
			s.log.Warn("homeserver asked for a ghost", "ghost", userName(user), "err", tidy(err))
			answerError(w, http.StatusInternalServerError, "M_UNKNOWN", "try again")
			return
		}
		known = device != ""
	}
	if !known {
		answerError(w, http.StatusNotFound, "M_NOT_FOUND", "no such user")
		return
	}
	answer(w, struct{}{})
}

func (s *Service) getAlias(w http.ResponseWriter, _ *http.Request) {
	answerError(w, http.StatusNotFound, "M_NOT_FOUND", "no such room alias")
}

func (s *Service) postPing(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.readBody(w, r, maxSmallBody); ok {
		answer(w, struct{}{})
	}
}

func (s *Service) readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		return body, true
	}
	s.metrics.TransactionsRefused.Add(1)
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		answerError(w, http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "body is too large")
	} else {
		answerError(w, http.StatusBadRequest, "M_NOT_JSON", "body cannot be read")
	}
	return nil, false
}

func answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(body)
}

func answerError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"errcode": code, "error": message})
}

// maxQueuedEvents is how many events of one room may wait. A room that brings
// more faster than they are handled loses the oldest and is read again.
const maxQueuedEvents = 2048

// roomQueues keeps room events in order per room: put fills a room's queue,
// one goroutine per room with waiting events drains it and ends when it is
// empty. Nobody closes a queue; when the service closes what waits is dropped.
type roomQueues struct {
	service *Service

	mu    sync.Mutex
	rooms map[id.RoomID]*roomQueue // rooms being worked on; guarded by mu
}

type roomQueue struct {
	waiting []roomEvent // guarded by roomQueues.mu
	gap     bool        // events were dropped; guarded by roomQueues.mu
}

func newRoomQueues(s *Service) *roomQueues {
	return &roomQueues{service: s, rooms: make(map[id.RoomID]*roomQueue)}
}

func (q *roomQueues) put(event roomEvent) {
	s := q.service
	if !s.wanted(event) {
		return
	}
	if !s.seen.add(event.Event) {
		s.metrics.RoomEventsRepeated.Add(1)
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	room := q.rooms[event.Room]
	if room == nil {
		room = new(roomQueue)
		if !s.spawn(func() { q.drain(event.Room, room) }) {
			return
		}
		q.rooms[event.Room] = room
	}
	if len(room.waiting) >= maxQueuedEvents {
		room.waiting, room.gap = room.waiting[1:], true
		s.metrics.RoomEventsDropped.Add(1)
	}
	room.waiting = append(room.waiting, event)
}

func (q *roomQueues) drain(name id.RoomID, room *roomQueue) {
	for {
		q.mu.Lock()
		events, gap := room.waiting, room.gap
		room.waiting, room.gap = nil, false
		if len(events) == 0 || q.service.ctx.Err() != nil {
			delete(q.rooms, name)
			q.mu.Unlock()
			return
		}
		q.mu.Unlock()
		for _, event := range events {
			q.service.handleRoomEvent(event)
		}
		if gap {
			q.service.tracker.refresh(name)
		}
	}
}

// maxSeenEvents is how many event ids are kept to know repeats by.
const maxSeenEvents = 8192

// seenEvents knows the last event ids. Synapse has delivered an event in two
// transactions before (matrix-org/synapse#11447). The zero value works.
type seenEvents struct {
	mu    sync.Mutex
	known map[id.EventID]bool // guarded by mu
	order []id.EventID        // ring of the ids in known; guarded by mu
	next  int                 // guarded by mu
}

// add says whether event is new, and remembers it.
func (s *seenEvents) add(event id.EventID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = make(map[id.EventID]bool)
	}
	if s.known[event] {
		return false
	}
	s.known[event] = true
	if len(s.order) < maxSeenEvents {
		s.order = append(s.order, event)
		return true
	}
	delete(s.known, s.order[s.next])
	s.order[s.next] = event
	s.next = (s.next + 1) % maxSeenEvents
	return true
}
