package bridge

import (
	"cmp"
	"net/http"

	"trunkline/bridge/leg"
	"trunkline/bridge/quota"
)

// stoppedByAdmin is what rooms are told when an admin gives no reason.
const stoppedByAdmin = "who runs this bridge has switched them off."

// quotas are the limits of calls as they are now: an admin may have switched all calls off.
func (b *Bridge) quotas() quota.Rules {
	rules := b.plan.quotas
	b.mu.Lock()
	defer b.mu.Unlock()
	rules.Stopped = cmp.Or(rules.Stopped, b.stopped)
	return rules
}

// diallingView is the kill switch as an admin sees it.
type diallingView struct {
	Stopped string `json:"stopped"` // what rooms are told; "" = calls are placed
	Config  bool   `json:"config"`  // the config says so, and only it can undo that
	Ended   int    `json:"ended"`   // calls of rooms that were up or rang, and are ended by this request
}

// stopDialling places no calls from now on, until the next start or [Bridge.startDialling]. Those that rooms have placed end if the
// admin wants that.
func (b *Bridge) stopDialling(w http.ResponseWriter, r *http.Request) {
	b.setStopped(cmp.Or(r.FormValue("why"), stoppedByAdmin))
	ended := 0
	if r.FormValue("calls") == "end" {
		for _, a := range b.liveLegs() {
			if a.order != nil {
				a.tellEvent(leg.Event{Kind: leg.Dismissed, Cause: leg.SwitchedOff})
				ended++
			}
		}
	}
	b.log.Warn("an admin switches calls to telephones off", "from", r.RemoteAddr, "ended", ended)
	b.showDialling(w, ended)
}

func (b *Bridge) startDialling(w http.ResponseWriter, r *http.Request) {
	b.setStopped("")
	b.log.Warn("an admin switches calls to telephones on", "from", r.RemoteAddr)
	b.showDialling(w, 0)
}

func (b *Bridge) setStopped(why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = why
}

func (b *Bridge) showDialling(w http.ResponseWriter, ended int) {
	b.show(w, diallingView{Stopped: b.quotas().Stopped, Config: b.plan.quotas.Stopped != "", Ended: ended})
}
