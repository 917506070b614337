package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// baresipControl speaks to baresip's ctrl_tcp module: JSON objects in netstrings, commands with a token out, their
// responses and unasked events in.
type baresipControl struct {
	conn   net.Conn
	events func(PhoneEvent)
	done   chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	next    int
	waiting map[string]chan controlMessage // by token; the reader sends once, the channel has room for it
}

// controlMessage is either a response or an event.
type controlMessage struct {
	Response bool   `json:"response"`
	OK       bool   `json:"ok"`
	Data     string `json:"data"`
	Token    string `json:"token"`
	Event    bool   `json:"event"`
	Type     string `json:"type"`
	Param    string `json:"param"`
	ID       string `json:"id"` // of the call
}

// maxNetstring bounds what we believe from the control connection.
const maxNetstring = 1 << 20

// dialBaresip connects as soon as baresip listens.
func dialBaresip(ctx context.Context, address string, p *process, events func(PhoneEvent)) (*baresipControl, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("baresip does not listen for commands after 10 s"))
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			c := &baresipControl{conn: conn, events: events, done: make(chan struct{}), waiting: map[string]chan controlMessage{}}
			go c.read()
			return c, nil
		}
		select {
		case <-p.exited:
			return nil, fmt.Errorf("baresip ended at start: %w", p.err)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// command sends one command and waits for its response.
func (c *baresipControl) command(ctx context.Context, command, params string) error {
	answer := make(chan controlMessage, 1)
	c.mu.Lock()
	c.next++
	token := strconv.Itoa(c.next)
	c.waiting[token] = answer
	c.mu.Unlock()
	body, err := json.Marshal(map[string]string{"command": command, "params": params, "token": token})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c.conn, "%d:%s,", len(body), body); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, errors.New("no response within 5 s"))
	defer cancel()
	select {
	case m := <-answer:
		if !m.OK {
			return fmt.Errorf("refused: %s", m.Data)
		}
		return nil
	case <-c.done:
		return errors.New("baresip closed the control connection")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// read serves the connection until it ends.
func (c *baresipControl) read() {
	defer close(c.done)
	r := bufio.NewReader(c.conn)
	for {
		body, err := readNetstring(r)
		if err != nil {
			return
		}
		var m controlMessage
		if json.Unmarshal(body, &m) != nil {
			continue
		}
		if m.Event {
			if m.Type == "TRANSFER_FAILED" { // baresip hangs up then, and says nothing more of the call
				m.Type, m.Param = CallClosed, "Transfer failed: "+m.Param
			}
			c.events(PhoneEvent{Type: m.Type, Param: m.Param, Call: m.ID, At: time.Now()})
			continue
		}
		c.mu.Lock()
		answer := c.waiting[m.Token]
		delete(c.waiting, m.Token)
		c.mu.Unlock()
		if answer != nil {
			answer <- m
		}
	}
}

// readNetstring reads "LENGTH:BYTES,".
func readNetstring(r *bufio.Reader) ([]byte, error) {
	head, err := r.ReadString(':')
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(head, ":"))
	if err != nil || n < 0 || n > maxNetstring {
		return nil, fmt.Errorf("netstring length %q", head)
	}
	body := make([]byte, n+1)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	return body[:n], nil
}

func (c *baresipControl) close() {
	c.conn.Close()
	<-c.done
}
