package sip

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// handleInfo takes keys sent as INFO (RFC 6086 and what came before it). Other bodies are refused by type.
func (c *Call) handleInfo(t *transaction) {
	body := t.req.Body()
	typ := contentType(t.req)
	if len(body) == 0 {
		c.send(t, refuse(200, statusText(200)))
		return
	}
	key, ok := infoDigit(typ, string(body))
	if !ok {
		c.send(t, refuse(415, "Unsupported Media Type",
			gosip.NewHeader("Accept", "application/dtmf-relay, application/dtmf")))
		return
	}
	c.pressed(key, FromINFO)
	c.send(t, refuse(200, statusText(200)))
}

// infoDigit reads "Signal= 5\r\nDuration= 160" and a bare "5"; names of events by number are known, too.
func infoDigit(typ, body string) (byte, bool) {
	value := strings.TrimSpace(body)
	switch typ {
	case "application/dtmf-relay":
		value = ""
		for line := range strings.Lines(body) {
			name, v, ok := strings.Cut(line, "=")
			if ok && strings.EqualFold(strings.TrimSpace(name), "signal") {
				value = strings.TrimSpace(v)
			}
		}
	case "application/dtmf":
	default:
		return 0, false
	}
	value = strings.ToUpper(value)
	if len(value) == 1 && strings.Contains(dtmfKeys, value) {
		return value[0], true
	}
	if n, err := strconv.Atoi(value); err == nil && n >= 10 && n < len(dtmfKeys) {
		return dtmfKeys[n], true
	}
	return 0, false
}

// infoKeys are the keys waiting to be sent as INFO, one request at a time: nothing else keeps them in order over UDP.
type infoKeys struct {
	waiting []byte
	busy    bool      // a request is on its way
	next    time.Time // when the next may leave; zero = nothing waits
}

func (c *Call) queueInfo(key byte) {
	if len(c.keys.waiting) == maxDigits || c.state == ending || c.state == ended {
		return
	}
	c.keys.waiting = append(c.keys.waiting, key)
	if !c.keys.busy && c.keys.next.IsZero() {
		c.keys.next = time.Now()
	}
}

// tickInfo sends the key that is due.
func (c *Call) tickInfo(now time.Time) {
	k := &c.keys
	if k.next.IsZero() || now.Before(k.next) {
		return
	}
	k.next = time.Time{}
	if len(k.waiting) == 0 || c.state != confirmed {
		return // in an early dialog the phone may know no INFO yet (RFC 3261 §12.1 allows it, PBXs answer 481)
	}
	key := k.waiting[0]
	k.waiting = k.waiting[1:]
	req, err := c.request(gosip.INFO)
	if err != nil {
		c.log.Warn("no INFO possible", "err", err)
		return
	}
	req.AppendHeader(gosip.NewHeader("Content-Type", "application/dtmf-relay"))
	req.SetBody(fmt.Appendf(nil, "Signal=%c\r\nDuration=%d\r\n", key, digitLength.Milliseconds()))
	k.busy = true
	c.stack.calls.Go(func() {
		code, err := c.transact(req)
		c.inbox.put(func() { c.infoAnswered(now, code, err) })
	})
}

// infoAnswered lets the next key go, when the one sent at began and its pause are over.
func (c *Call) infoAnswered(began time.Time, code int, err error) {
	if err != nil || code >= 300 {
		c.log.Info("key sent as INFO was not taken", "code", code, "err", err)
		c.doubt(code)
	}
	c.keys.busy = false
	c.keys.next = began.Add(digitLength + digitPause)
}
