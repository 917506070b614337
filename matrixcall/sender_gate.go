package matrixcall

import (
	"bytes"
	"io"
	"net/http"
	"strings"
)

// sendGate lets one sendToDevice request pass at a time, whoever makes it.
// When two such requests finish in the wrong order, Synapse can leave a
// client's long poll asleep for its whole time-out (seen: 20 s); one at a
// time, none of 1800 messages was late. The gate sits below everything that
// sends, mautrix's own repair messages included, and goes round: waiting
// requests pass in the order they came.
type sendGate struct {
	next http.RoundTripper
	slot slot
}

func newSendGate(next http.RoundTripper) *sendGate { return &sendGate{next: next, slot: newSlot()} }

// RoundTrip implements http.RoundTripper.
func (g *sendGate) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/sendToDevice/") {
		return g.next.RoundTrip(r)
	}
	if err := g.slot.acquire(r.Context()); err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	defer g.slot.release()
	response, err := g.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	// The request is over when its answer is here, not when somebody has
	// read it. The answer is `{}` or an error.
	body, err := io.ReadAll(io.LimitReader(response.Body, maxSmallBody))
	response.Body.Close()
	if err != nil {
		return nil, err
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	return response, nil
}

// CloseIdleConnections lets http.Client close the connections below.
func (g *sendGate) CloseIdleConnections() {
	if closer, ok := g.next.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}
