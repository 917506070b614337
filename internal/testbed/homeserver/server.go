package homeserver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// Config says what differs from the usual homeserver. The zero value works.
type Config struct {
	Domain     string        // of user ids; "" = hs.test
	TURN       any           // answer of /voip/turnServer; nil = a STUN address nobody answers; TURN: struct{}{} = Synapse without TURN
	RetryFirst time.Duration // first pause after a failed transaction, doubled each time up to 512 s; 0 = 2 s as in Synapse
	Net        *Net          // Start's network; nil = a new one
	NoSliding  bool          // without simplified sliding sync, as homeservers other than Synapse may be
}

// Server is the homeserver.
type Server struct {
	cfg Config
	mux *http.ServeMux
	url string

	ctx    context.Context // ends with Close; transactions stop then
	cancel context.CancelFunc
	wg     sync.WaitGroup // pushers

	mu        sync.Mutex    // guards everything below, and what it points to
	position  int64         // of the last event, to-device message or key change: one counter for all streams
	changed   chan struct{} // closed and replaced when position moves: wakes the long polls
	lostWakes int           // to-device writes that will wake nobody
	users     map[id.UserID]*user
	tokens    map[string]session
	rooms     map[id.RoomID]*room
	aliases   map[id.RoomAlias]id.RoomID
	services  []*AppService
	filters   []syncFilter
	memos     map[string]syncMemo // answers of /sync of the last minutes
	done      map[string]any      // answers of finished transactions, by idempotency key
	faults    []*Fault
	requests  []Request
	sent      []ToDevice
}

// session is what an access token stands for.
type session struct {
	user   id.UserID
	device id.DeviceID
}

// New returns a homeserver that is only an http.Handler. Close it.
func New(cfg Config) *Server {
	cfg.Domain = cmp.Or(cfg.Domain, "hs.test")
	cfg.RetryFirst = cmp.Or(cfg.RetryFirst, 2*time.Second)
	if cfg.TURN == nil {
		cfg.TURN = map[string]any{"username": "u", "password": "p", "ttl": 3600, "uris": []string{"stun:127.0.0.1:9"}}
	}
	s := &Server{
		cfg:     cfg,
		changed: make(chan struct{}),
		users:   map[id.UserID]*user{},
		tokens:  map[string]session{},
		rooms:   map[id.RoomID]*room{},
		aliases: map[id.RoomAlias]id.RoomID{},
		done:    map[string]any{},
		memos:   map[string]syncMemo{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.routes()
	return s
}

// Start serves a homeserver on cfg.Net under the name of its domain, port 80, until the test ends. It works inside a
// synctest bubble.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	if cfg.Net == nil {
		cfg.Net = NewNet()
	}
	s := New(cfg)
	l, err := cfg.Net.Listen(s.cfg.Domain + ":80")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + s.cfg.Domain
	s.serveUntilEnd(t, l)
	return s
}

// StartLoopback serves a homeserver on a free port of 127.0.0.1 until the test ends.
func StartLoopback(t testing.TB, cfg Config) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(cfg)
	s.url = "http://" + l.Addr().String()
	s.serveUntilEnd(t, l)
	return s
}

func (s *Server) serveUntilEnd(t testing.TB, l net.Listener) {
	// Requests that a fault delays end with the server, whether or not it noticed that their connection is closed.
	server := &http.Server{
		Handler: s, ErrorLog: log.New(io.Discard, "", 0), BaseContext: func(net.Listener) context.Context { return s.ctx },
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() {
		s.Close()
		_ = server.Close()
		if s.cfg.Net != nil {
			s.cfg.Net.Client().CloseIdleConnections()
		}
		wg.Wait()
	})
}

// Close ends the transactions to application services and the long polls.
func (s *Server) Close() {
	s.cancel()
	s.wg.Wait()
}

// URL returns the base of the client-server API after Start and StartLoopback.
func (s *Server) URL() string { return s.url }

// Domain returns the server part of user ids.
func (s *Server) Domain() string { return s.cfg.Domain }

// Net returns the network of Start, nil otherwise.
func (s *Server) Net() *Net { return s.cfg.Net }

// requester is who asks.
type requester struct {
	user    id.UserID
	device  id.DeviceID // "" = none
	service *AppService // nil = ordinary user
	token   string
}

// call is one authenticated request on its way through a handler.
type call struct {
	*http.Request
	from requester
}

// handler answers a call with a JSON body or an *Error. It is called without mu.
type handler func(c *call) (any, error)

// routes lists what the server understands. Paths are those of Synapse, v3 only.
func (s *Server) routes() {
	s.mux = http.NewServeMux()
	s.mux.HandleFunc("GET /_matrix/client/versions", s.versions)
	s.mux.HandleFunc("POST /_matrix/client/v3/register", s.public(s.register))
	s.mux.HandleFunc("POST /_matrix/client/v3/login", s.public(s.login))
	for pattern, h := range map[string]handler{
		"GET account/whoami":                       s.whoami,
		"GET devices":                              s.listDevices,
		"GET devices/{device}":                     s.getDevice,
		"PUT devices/{device}":                     s.putDevice,
		"DELETE devices/{device}":                  s.deleteDevice,
		"GET profile/{user}":                       s.getProfile,
		"GET profile/{user}/{field}":               s.getProfile,
		"PUT profile/{user}/{field}":               s.putProfile,
		"POST createRoom":                          s.createRoom,
		"POST join/{room}":                         s.join,
		"POST rooms/{room}/join":                   s.join,
		"POST rooms/{room}/leave":                  s.leave,
		"POST rooms/{room}/invite":                 s.invite,
		"POST rooms/{room}/kick":                   s.kick,
		"POST rooms/{room}/ban":                    s.ban,
		"GET joined_rooms":                         s.joinedRooms,
		"GET rooms/{room}/joined_members":          s.joinedMembers,
		"GET rooms/{room}/members":                 s.members,
		"GET rooms/{room}/state":                   s.getAllState,
		"GET rooms/{room}/state/{type}":            s.getState,
		"GET rooms/{room}/state/{type}/{key...}":   s.getState,
		"PUT rooms/{room}/state/{type}":            s.putState,
		"PUT rooms/{room}/state/{type}/{key...}":   s.putState,
		"GET rooms/{room}/event/{event}":           s.getEvent,
		"PUT rooms/{room}/send/{type}/{txn}":       s.send,
		"PUT rooms/{room}/redact/{event}/{txn}":    s.redact,
		"GET directory/room/{alias}":               s.getAlias,
		"PUT directory/room/{alias}":               s.putAlias,
		"GET rooms/{room}/aliases":                 s.getAliases,
		"POST user/{user}/filter":                  s.postFilter,
		"GET sync":                                 s.sync,
		"PUT sendToDevice/{type}/{txn}":            s.sendToDevice,
		"POST keys/upload":                         s.keysUpload,
		"POST keys/query":                          s.keysQuery,
		"POST keys/claim":                          s.keysClaim,
		"POST keys/device_signing/upload":          s.crossSigningUpload,
		"POST keys/signatures/upload":              s.signaturesUpload,
		"GET voip/turnServer":                      s.turnServer,
		"PUT presence/{user}/status":               s.empty,
		"PUT rooms/{room}/typing/{user}":           s.empty,
		"POST rooms/{room}/receipt/{type}/{event}": s.empty,
	} {
		method, path, _ := strings.Cut(pattern, " ")
		s.mux.HandleFunc(method+" /_matrix/client/v3/"+path, s.authenticated(h))
	}
	s.mux.HandleFunc("POST /_matrix/client/v1/appservice/{id}/ping", s.authenticated(s.ping))
	if !s.cfg.NoSliding {
		s.mux.HandleFunc("POST /_matrix/client/unstable/"+slidingFeature+"/sync", s.authenticated(s.slidingSync))
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, nil, unrecognized(http.StatusNotFound))
	})
}

// ServeHTTP records the request, lets a fault have it, and answers.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fault := s.record(r)
	if fault == nil {
		s.mux.ServeHTTP(w, r)
		return
	}
	fault.serve(w, r, s.mux)
}

// authenticated finds out who asks: https://spec.matrix.org/v1.17/application-service-api/#identity-assertion
func (s *Server) authenticated(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		from, err := s.identify(r)
		s.mu.Unlock()
		if err != nil {
			answer(w, nil, err)
			return
		}
		body, err := h(&call{Request: r, from: from})
		answer(w, body, err)
	}
}

// public is for the two requests that may come without a token.
func (s *Server) public(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := h(&call{Request: r})
		answer(w, body, err)
	}
}

func answer(w http.ResponseWriter, body any, err error) {
	var refusal *Error
	switch {
	case err == nil && body == nil:
		writeJSON(w, http.StatusOK, struct{}{})
	case err == nil:
		status := http.StatusOK
		if c, ok := body.(created); ok {
			status, body = http.StatusCreated, struct{}(c)
		}
		writeJSON(w, status, body)
	case errors.As(err, &refusal):
		writeJSON(w, refusal.Status, refusal)
	default:
		writeJSON(w, http.StatusInternalServerError, &Error{Code: "M_UNKNOWN", Text: err.Error()})
	}
}

// created is the empty answer with status 201.
type created struct{}

// decode reads a JSON object into v. Like Synapse it takes an empty body only where optional says so.
func (c *call) decode(v any, optional bool) error {
	b, err := io.ReadAll(io.LimitReader(c.Body, 1<<20))
	if err != nil {
		return err
	}
	if len(b) == 0 && optional {
		return nil
	}
	if !json.Valid(b) {
		return bad("M_NOT_JSON", "Content not JSON.")
	}
	if err := json.Unmarshal(b, v); err != nil {
		return bad("M_BAD_JSON", "%v", err)
	}
	return nil
}

// advance moves the stream on and wakes the long polls. Caller holds mu.
func (s *Server) advance() int64 {
	s.position++
	close(s.changed)
	s.changed = make(chan struct{})
	return s.position
}

func (s *Server) empty(*call) (any, error) { return nil, nil }

func (s *Server) turnServer(*call) (any, error) { return s.cfg.TURN, nil }

func (s *Server) versions(w http.ResponseWriter, _ *http.Request) {
	versions := []string{"r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12", "v1.13", "v1.14", "v1.15"}
	features := map[string]bool{"fi.mau.msc2659.stable": true, "org.matrix.msc4140": false, slidingFeature: !s.cfg.NoSliding}
	writeJSON(w, http.StatusOK, map[string]any{"versions": versions, "unstable_features": features})
}

// once answers a repeated transaction with the first answer. Synapse's key for an application service is the path and
// the service, without the masqueraded user: two ghosts with one transaction id are one request.
// (synapse/rest/client/transactions.py)
func (s *Server) once(c *call, do func() (any, error)) (any, error) {
	key := c.URL.Path + "\x00" + c.from.token
	if c.from.service == nil {
		key += "\x00" + string(c.from.device)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if body, ok := s.done[key]; ok {
		return body, nil
	}
	body, err := do()
	if err == nil {
		s.done[key] = body
	}
	return body, err
}

// Requests returns what was asked so far, oldest first.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}
