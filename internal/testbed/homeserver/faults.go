package homeserver

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"
)

// Request is one line of the server's log.
type Request struct {
	At     time.Time
	Method string
	Path   string
	User   id.UserID   // the masqueraded one, "" when only the token says who asks
	Device id.DeviceID // the masqueraded one
}

// Fault is a bad day that Break orders: which requests it hits and what becomes of them.
type Fault struct {
	Method string        // "" = any
	Path   string        // part of the path, "" = any
	User   id.UserID     // masqueraded user or "" = any
	Times  int           // how many requests; 0 = all until Mend
	Delay  time.Duration // before anything else happens
	Hold   chan struct{} // the same until it is closed; nil = no
	Slow   chan struct{} // do it at once, and answer when it is closed; nil = no
	Drop   bool          // cut the connection instead of answering
	Error  *Error        // answer instead of doing; nil with Drop false: only the delay
	Late   bool          // do it, also when the client is gone by then, and lose the answer (Drop or Error)

	hits   atomic.Int64
	mended atomic.Bool
}

// Hits returns how many requests the fault has hit.
func (f *Fault) Hits() int { return int(f.hits.Load()) }

// Mend ends the fault.
func (f *Fault) Mend() { f.mended.Store(true) }

// Break orders a fault and returns it. The first matching fault takes a request.
func (s *Server) Break(f *Fault) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f)
	return f
}

// LoseWakeUps lets the next n sendToDevice requests wake no long poll, as Synapse does when two writes end in the
// wrong order: an open poll and the next ones miss the message until another one comes; a poll with timeout=0 finds it.
func (s *Server) LoseWakeUps(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lostWakes += n
}

// record logs the request and returns the fault that takes it, if any.
func (s *Server) record(r *http.Request) *Fault {
	query := r.URL.Query()
	req := Request{
		At: time.Now(), Method: r.Method, Path: r.URL.Path,
		User: id.UserID(query.Get("user_id")), Device: id.DeviceID(query.Get("device_id")),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	const keep = 10000
	if len(s.requests) >= keep {
		s.requests = append(s.requests[:0], s.requests[keep/2:]...)
	}
	s.requests = append(s.requests, req)
	for _, f := range s.faults {
		if f.takes(req) {
			f.hits.Add(1)
			return f
		}
	}
	return nil
}

func (f *Fault) takes(r Request) bool {
	return !f.mended.Load() && (f.Times == 0 || f.Hits() < f.Times) &&
		(f.Method == "" || f.Method == r.Method) && strings.Contains(r.Path, f.Path) &&
		(f.User == "" || f.User == r.User)
}

// serve answers as the fault says, with the help of the healthy server.
func (f *Fault) serve(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	if f.Late {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r = r.WithContext(context.WithoutCancel(r.Context()))
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-r.Context().Done():
			return
		}
	}
	if f.Hold != nil {
		select {
		case <-f.Hold:
		case <-r.Context().Done():
			return
		}
	}
	if f.Late {
		healthy.ServeHTTP(httptest.NewRecorder(), r)
	}
	if f.Slow != nil {
		f.serveSlowly(w, r, healthy)
		return
	}
	switch {
	case f.Drop:
		panic(http.ErrAbortHandler) // net/http's way to cut the connection
	case f.Error != nil:
		answer(w, nil, f.Error)
	default:
		healthy.ServeHTTP(w, r)
	}
}

// serveSlowly lets everybody see what was asked for before who asked has the answer.
func (f *Fault) serveSlowly(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	done := httptest.NewRecorder()
	healthy.ServeHTTP(done, r)
	select {
	case <-f.Slow:
	case <-r.Context().Done():
		return
	}
	for name, values := range done.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(done.Code)
	_, _ = w.Write(done.Body.Bytes()) // to a client that is gone
}
