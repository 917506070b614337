package sip

import (
	"strconv"
	"strings"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

// SessionTimer says until when a call lives without a sign of the other side (RFC 4028). The zero value is for ever.
type SessionTimer struct {
	Interval time.Duration `json:"interval,omitempty"`
	Ours     bool          `json:"ours,omitempty"` // we refresh it, at half
	Until    time.Time     `json:"until,omitzero"`
}

const (
	sessionInterval = 30 * time.Minute // what we ask for (RFC 4028 §4)
	minSession      = 90 * time.Second // the least we take (§5)
	longestSession  = 24 * time.Hour   // the most that a phone may want at least: longer ones would find no call that is dead
	refreshRetry    = 10 * time.Second // a refresh that was refused is tried again, while there is time
	askedPause      = time.Second      // between looks whether the phone has answered
	timeToAnswer    = 10 * time.Second // what a phone that is there takes at the longest
)

// sessionHeaders ask for a timer in an INVITE of ours.
func sessionHeaders(interval, least time.Duration) []gosip.Header {
	return []gosip.Header{
		gosip.NewHeader("Session-Expires", seconds(interval)), gosip.NewHeader("Min-SE", seconds(least)),
	}
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d.Seconds())) }

// sessionExpires reads "1800;refresher=uas"; 0 = none.
func sessionExpires(m gosip.Message) (interval time.Duration, refresher string) {
	h := headerOf(m, "Session-Expires", "x")
	if h == nil {
		return 0, ""
	}
	for i, part := range strings.Split(h.Value(), ";") {
		if i == 0 {
			interval = retryAfter(strings.TrimSpace(part))
		} else if name, v, _ := strings.Cut(part, "="); strings.EqualFold(strings.TrimSpace(name), "refresher") {
			refresher = strings.ToLower(strings.TrimSpace(v))
		}
	}
	return interval, refresher
}

// minSE is the shortest timer that who sends m takes; 0 = it does not say.
func minSE(m gosip.Message) time.Duration {
	h := headerOf(m, "Min-SE", "")
	if h == nil {
		return 0
	}
	return retryAfter(h.Value())
}

func supports(m gosip.Message, tag string) bool {
	for _, t := range append(listHeader(m, "Supported", "k"), listHeader(m, "Require", "")...) {
		if strings.EqualFold(t, tag) {
			return true
		}
	}
	return false
}

// tooBrief refuses a timer that would keep both sides busy with refreshing (§9); nil if req has none such.
func tooBrief(req *gosip.Request) *refusal {
	interval, _ := sessionExpires(req)
	if interval == 0 || interval >= minSession || !supports(req, "timer") {
		return nil // who does not know timers could do nothing with a 422: a proxy has put it there
	}
	return refuse(422, "Session Interval Too Small", gosip.NewHeader("Min-SE", seconds(minSession)))
}

// timeSession answers an INVITE's or UPDATE's wish for a timer: sets it, and returns the headers of the 2xx.
func (c *Call) timeSession(req *gosip.Request) []gosip.Header {
	interval, refresher := sessionExpires(req)
	knows := supports(req, "timer")
	switch {
	case !knows && interval == 0:
		c.untime()
		return nil
	case interval == 0:
		interval = sessionInterval
	case interval < minSession:
		interval = minSession
	}
	least := minSE(req)
	c.least = max(c.least, min(least, longestSession))
	interval = max(min(interval, sessionInterval), least, minSession)
	if refresher == "" || !knows {
		refresher = map[bool]string{true: "uac", false: "uas"}[knows] // §9, table 2
	}
	c.setSession(interval, refresher == "uas")
	headers := []gosip.Header{gosip.NewHeader("Session-Expires", seconds(interval)+";refresher="+refresher)}
	if knows {
		headers = append(headers, gosip.NewHeader("Require", "timer"))
	}
	return headers
}

// sessionAnswered takes the timer of a 2xx to our own INVITE or UPDATE.
func (c *Call) sessionAnswered(res *gosip.Response) {
	interval, refresher := sessionExpires(res)
	if interval == 0 {
		c.untime() // §7.2: without the header the session has no expiry
		return
	}
	c.setSession(max(interval, minSession), refresher != "uas")
}

func (c *Call) setSession(interval time.Duration, ours bool) {
	c.dialog.Session = SessionTimer{Interval: interval, Ours: ours, Until: time.Now().Add(interval)}
	c.nextRefresh = c.dialog.Session.next()
}

// untime lets the call live for ever.
func (c *Call) untime() {
	c.dialog.Session, c.nextRefresh = SessionTimer{}, time.Time{}
}

// next is when something must be done about the timer: half of it for who refreshes; else the BYE, before the other side
// and the proxies between have given up (§10).
func (s SessionTimer) next() time.Time {
	switch {
	case s.Interval == 0:
		return time.Time{}
	case s.Ours:
		return s.Until.Add(-s.Interval / 2)
	}
	return s.expiry()
}

func (s SessionTimer) expiry() time.Time { return s.Until.Add(-min(32*time.Second, s.Interval/3)) }

// patience is until when a phone that was asked then may answer: to the timer's end, unless it was asked so late, after a restart,
// that it could not in time.
func (s SessionTimer) patience(asked time.Time) time.Time {
	if end := s.expiry(); end.Sub(asked) >= timeToAnswer {
		return end
	}
	return asked.Add(transactionTimeout)
}

// tickSession refreshes, or ends a call that nobody has refreshed.
func (c *Call) tickSession(now time.Time) {
	s := c.dialog.Session
	if c.nextRefresh.IsZero() || now.Before(c.nextRefresh) || c.state != confirmed {
		return
	}
	if s.Interval == 0 {
		c.nextRefresh = time.Time{}
		return
	}
	if c.asking && (c.asked.IsZero() || now.Before(s.patience(c.asked))) {
		// Whoever asks whether the phone has the call asks for its time, too; that may have begun before the time was due, and
		// after a restart it may take a while until its turn comes.
		c.nextRefresh = now.Add(askedPause)
		return
	}
	if now.Before(s.expiry()) {
		c.nextRefresh = s.expiry()
		if again := now.Add(refreshRetry + transactionTimeout); again.Before(c.nextRefresh) {
			c.nextRefresh = again // if nothing comes of this one
		}
		ask := c.refresh // the pace is not for timers: those of many calls would never have their turn
		if c.leap {
			ask = c.refreshInTurn // after a restart all may be due at once
		}
		if err := ask(); err != nil {
			c.log.Info("session not refreshed", "err", err)
		}
		return
	}
	c.nextRefresh = time.Time{}
	c.log.Info("session timer expired", "interval", s.Interval, "ours", s.Ours)
	cause := Cause{"SIP", 408, "Session timer expired"}
	c.emit(Failed{cause})
	c.sendBye(cause)
}

// prolong asks in a request inside the dialog for the timer to go on (§7.4): of this request we are the uac.
func (c *Call) prolong(req *gosip.Request) {
	req.AppendHeader(supportedHeader())
	s := c.dialog.Session
	if s.Interval == 0 {
		return
	}
	refresher := ";refresher=uas"
	if s.Ours {
		refresher = ";refresher=uac"
	}
	req.AppendHeader(gosip.NewHeader("Session-Expires", seconds(max(s.Interval, c.least))+refresher))
	req.AppendHeader(gosip.NewHeader("Min-SE", seconds(max(minSession, c.least)))) // the largest that was named
}

// prolonged takes the timer of a 2xx to such a request.
func (c *Call) prolonged(res *gosip.Response) {
	if c.state == confirmed && c.dialog.Session.Interval > 0 {
		c.sessionAnswered(res)
		c.changed()
	}
}
