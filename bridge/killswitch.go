package bridge

import (
	"cmp"
	"fmt"
	"net/http"

	"trunkline/bridge/leg"
	"trunkline/bridge/quota"
)

// stoppedByAdmin is what rooms are told when an admin gives no reason.
const stoppedByAdmin = "who runs this bridge has switched them off."

// quotas are the limits of calls as they are now: an admin may have switched all calls off. It takes no lock, for calls ask it from
// their own goroutines.
func (b *Bridge) quotas() quota.Rules {
	rules := b.plan.quotas
	if stopped, _ := b.stopped.Load().(string); rules.Stopped == "" {
		rules.Stopped = stopped
	}
	return rules
}

// diallingView is the kill switch as an admin sees it.
type diallingView struct {
	Stopped string `json:"stopped"` // what rooms are told; "" = calls are placed
	Config  bool   `json:"config"`  // the config says so, and only it can undo that
	Ended   int    `json:"ended"`   // calls of rooms that were up, rang or were about to, and are ended by this request
}

// stopDialling places no calls from now on, until the next start or [Bridge.startDialling]. Those that rooms have placed end if the
// admin wants that.
func (b *Bridge) stopDialling(w http.ResponseWriter, r *http.Request) {
	end, err := wantsEnd(r)
	if err != nil {
		http.Error(w, err.Error()+"; nothing is switched off", http.StatusBadRequest)
		return
	}
	b.stopped.Store(cmp.Or(r.FormValue("why"), stoppedByAdmin))
	var ended []*actor
	if end {
		b.mu.Lock() // takeIn has looked at the switch under it
		ended = b.oldestFirst(func(a *actor) bool { return a.order != nil })
		b.mu.Unlock()
	}
	for _, a := range ended {
		a.tellEvent(leg.Event{Kind: leg.Dismissed, Cause: leg.SwitchedOff})
	}
	b.log.Warn("an admin switches calls to telephones off", "from", r.RemoteAddr, "ended", len(ended))
	b.showDialling(w, len(ended))
}

// wantsEnd tells whether calls shall end that are there. Who is in a hurry learns of a slip of the pen: it must not look as if they had
// ended.
func wantsEnd(r *http.Request) (bool, error) {
	if err := r.ParseForm(); err != nil {
		return false, fmt.Errorf("read what is wanted: %w", err)
	}
	calls := r.FormValue("calls") // reads the other kind of form, too
	for name := range r.Form {
		if name != "why" && name != "calls" {
			return false, fmt.Errorf("%q is not known here; there are why and calls", name)
		}
	}
	if calls != "" && calls != "end" {
		return false, fmt.Errorf("calls can only be %q", "end")
	}
	return calls == "end", nil
}

func (b *Bridge) startDialling(w http.ResponseWriter, r *http.Request) {
	b.stopped.Store("")
	b.log.Warn("an admin switches calls to telephones on", "from", r.RemoteAddr)
	b.showDialling(w, 0)
}

func (b *Bridge) showDialling(w http.ResponseWriter, ended int) {
	b.show(w, diallingView{Stopped: b.quotas().Stopped, Config: b.plan.quotas.Stopped != "", Ended: ended})
}
