package homeserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix/appservice"
	"maunium.net/go/mautrix/id"
)

// AppService is a registered application service and the queue of room events for it.
type AppService struct {
	server  *Server
	reg     *appservice.Registration
	sender  id.UserID
	users   []*regexp.Regexp
	aliases []*regexp.Regexp
	client  *http.Client
	owned   map[id.UserID]bool // what owns has said; guarded by Server.mu

	mu      sync.Mutex // guards the fields below
	queue   []pushed
	nextTxn int
	last    *transaction // for Repeat
	lose    int
	wake    chan struct{} // capacity 1; push puts, run takes; a full channel is enough
	pinged  chan struct{} // capacity 1; ping puts, pause takes
}

// pushed is an event with what an invite carries along.
type pushed struct {
	event    *Event
	stripped []any
}

// transaction is what one PUT carries. A retry has the same id and events.
type transaction struct {
	id     string
	events []pushed
}

// AppService registers an application service. Transactions go to reg.URL through client; an empty URL gets none.
func (s *Server) AppService(reg *appservice.Registration, client *http.Client) *AppService {
	as := &AppService{
		server: s, reg: reg, sender: id.NewUserID(reg.SenderLocalpart, s.cfg.Domain), client: client,
		owned: make(map[id.UserID]bool), wake: make(chan struct{}, 1), pinged: make(chan struct{}, 1), nextTxn: 1,
	}
	for _, n := range reg.Namespaces.UserIDs {
		as.users = append(as.users, regexp.MustCompile("^(?:"+n.Regex+")"))
	}
	for _, n := range reg.Namespaces.RoomAliases {
		as.aliases = append(as.aliases, regexp.MustCompile("^(?:"+n.Regex+")"))
	}
	s.mu.Lock()
	s.services = append(s.services, as)
	s.addUser(as.sender)
	s.mu.Unlock()
	if reg.URL != "" {
		s.wg.Go(as.run)
	}
	return as
}

// owns is asked of each member of a room at each of its events. Caller holds Server.mu.
func (as *AppService) owns(uid id.UserID) bool {
	owned, asked := as.owned[uid]
	if !asked {
		owned = uid == as.sender || matches(as.users, string(uid)) && uid.Homeserver() == as.server.cfg.Domain
		as.owned[uid] = owned
	}
	return owned
}

func matches(list []*regexp.Regexp, s string) bool {
	return slices.ContainsFunc(list, func(r *regexp.Regexp) bool { return r.MatchString(s) })
}

// interested: the event is by or about one of its users, or one of them is in the room. Caller holds Server.mu.
func (as *AppService) interested(r *room, e *Event) bool {
	if as.owns(e.Sender) || e.Type == "m.room.member" && as.owns(id.UserID(*e.StateKey)) {
		return true
	}
	for k := range r.state {
		if k.eventType == "m.room.member" && as.owns(id.UserID(k.key)) && r.membership(id.UserID(k.key)) == "join" {
			return true
		}
	}
	return false
}

func (as *AppService) push(e *Event, stripped []any) {
	as.mu.Lock()
	as.queue = append(as.queue, pushed{e, stripped})
	as.mu.Unlock()
	nudge(as.wake)
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run sends transactions one after the other; a failed one is repeated after 2, 4, … 512 s or after a ping.
func (as *AppService) run() {
	ctx := as.server.ctx
	for {
		txn := as.take()
		if txn == nil {
			select {
			case <-as.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-as.pinged: // of a time when nothing was waiting
		default:
		}
		for pause := as.server.cfg.RetryFirst; as.put(ctx, txn) != nil; pause = min(2*pause, 512*time.Second) {
			if !as.pause(ctx, pause) {
				return
			}
		}
		as.mu.Lock()
		as.last = txn
		as.mu.Unlock()
	}
}

// take returns the next transaction of at most 100 events, nil when there is nothing to send.
func (as *AppService) take() *transaction {
	as.mu.Lock()
	defer as.mu.Unlock()
	for len(as.queue) > 0 {
		n := min(len(as.queue), 100)
		txn := &transaction{strconv.Itoa(as.nextTxn), slices.Clone(as.queue[:n])}
		as.nextTxn++
		as.queue = as.queue[n:]
		if as.lose == 0 {
			return txn
		}
		as.lose--
	}
	return nil
}

// pause waits, less when pinged; false when the server closes.
func (as *AppService) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-as.pinged:
	case <-ctx.Done():
		return false
	}
	return true
}

// put sends a transaction: https://spec.matrix.org/v1.17/application-service-api/#put_matrixappv1transactionstxnid
func (as *AppService) put(ctx context.Context, txn *transaction) error {
	list := []*Event{}
	as.server.mu.Lock()
	for _, p := range txn.events {
		e := p.event.forClient()
		if p.stripped != nil {
			e.Unsigned["invite_room_state"] = p.stripped
		}
		list = append(list, e)
	}
	as.server.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := as.request(ctx, http.MethodPut, "transactions/"+txn.id, map[string]any{"events": list})
	return err
}

// statusError is an answer of the application service other than 200.
type statusError struct {
	status int
	body   string
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d: %s", e.status, e.body) }

func (as *AppService) request(ctx context.Context, method, path string, body any) ([]byte, error) {
	content, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	target := strings.TrimSuffix(as.reg.URL, "/") + "/_matrix/app/v1/" + path
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+as.reg.ServerToken)
	req.Header.Set("Content-Type", "application/json")
	resp, err := as.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &statusError{resp.StatusCode, string(answer)}
	}
	return answer, nil
}

// ping asks the application service for a sign of life and, if it gives one, retries at once.
func (s *Server) ping(c *call) (any, error) {
	var req map[string]any
	if err := c.decode(&req, true); err != nil {
		return nil, err
	}
	as := c.from.service
	switch {
	case as == nil:
		return nil, forbidden("Only application services can use the /appservice/ping endpoint")
	case as.reg.ID != c.PathValue("id"):
		return nil, forbidden("Mismatching application service ID in path")
	case as.reg.URL == "":
		return nil, bad("M_URL_NOT_SET", "The application service does not have a URL set")
	}
	started := time.Now()
	_, err := as.request(c.Context(), http.MethodPost, "ping", req)
	if status, ok := errors.AsType[*statusError](err); ok {
		return nil, &Error{Status: http.StatusBadGateway, Code: "M_BAD_STATUS", Text: status.Error()}
	}
	if err != nil {
		return nil, &Error{Status: http.StatusBadGateway, Code: "M_CONNECTION_FAILED", Text: err.Error()}
	}
	nudge(as.pinged)
	return map[string]any{"duration_ms": time.Since(started).Milliseconds()}, nil
}

// queryUser asks the service that owns a user id that does not exist; it may register it then. Called without mu.
func (s *Server) queryUser(uid id.UserID) {
	s.mu.Lock()
	i := slices.IndexFunc(s.services, func(as *AppService) bool { return s.users[uid] == nil && as.owns(uid) && as.reg.URL != "" })
	s.mu.Unlock()
	if i >= 0 {
		_, _ = s.services[i].request(s.ctx, http.MethodGet, "users/"+url.PathEscape(string(uid)), nil)
	}
}

// queryAlias does the same for a room alias that does not exist.
func (s *Server) queryAlias(alias id.RoomAlias) {
	s.mu.Lock()
	i := slices.IndexFunc(s.services, func(as *AppService) bool {
		return s.aliases[alias] == "" && matches(as.aliases, string(alias)) && as.reg.URL != ""
	})
	s.mu.Unlock()
	if i >= 0 {
		_, _ = s.services[i].request(s.ctx, http.MethodGet, "rooms/"+url.PathEscape(string(alias)), nil)
	}
}

// LoseTransactions drops the next n transactions, as a Synapse does that dies while they wait.
func (as *AppService) LoseTransactions(n int) {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.lose += n
}

// Repeat sends the last transaction again with its id, as after a lost answer.
func (as *AppService) Repeat(ctx context.Context) error {
	as.mu.Lock()
	last := as.last
	as.mu.Unlock()
	if last == nil {
		return errors.New("no transaction yet")
	}
	return as.put(ctx, last)
}

// Pending returns how many events wait for a transaction.
func (as *AppService) Pending() int {
	as.mu.Lock()
	defer as.mu.Unlock()
	return len(as.queue)
}
