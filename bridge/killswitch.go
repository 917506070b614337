package bridge

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"time"

	"trunkline/bridge/leg"
	"trunkline/bridge/quota"
)

// stoppedByAdmin is what rooms are told when an admin gives no reason.
const stoppedByAdmin = "who runs this bridge has switched them off."

// switchSetting is where the database has what rooms are told while calls are switched off.
const switchSetting = "dialling.stopped"

// killSwitch is how it stands. It is never changed, but replaced.
type killSwitch struct {
	why  string    // what rooms are told; "" = calls are placed
	said time.Time // when an admin did
	kept bool      // the database says the same, or something that was said later
}

// quotas are the limits of calls as they are now: an admin may have switched all calls off. It takes no lock, for calls ask it from
// their own goroutines.
func (b *Bridge) quotas() quota.Rules {
	rules := b.plan.quotas
	if s := b.stopped.Load(); s != nil && rules.Stopped == "" {
		rules.Stopped = s.why
	}
	return rules
}

// keepSwitch brings the switch into the database, for the next process and for other nodes, which look when somebody there wants a
// call. Where it was thrown again meanwhile, the last word must be there. put is [db.Store.SetNow], or PutSetting of a word that had to
// wait: who has spoken since elsewhere has the last one.
func (b *Bridge) keepSwitch(ctx context.Context, put func(ctx context.Context, name, value string, said time.Time) error) error {
	ctx, cancel := context.WithTimeout(ctx, databasePatience)
	defer cancel()
	for {
		s := b.stopped.Load()
		if err := put(ctx, switchSetting, s.why, s.said); err != nil {
			return err
		}
		if b.stopped.CompareAndSwap(s, &killSwitch{why: s.why, said: s.said, kept: true}) {
			return nil
		}
	}
}

// followSwitch does as the database says, unless an admin's word to this process has not got there yet.
func (b *Bridge) followSwitch(ctx context.Context) error {
	if s := b.stopped.Load(); s != nil && !s.kept {
		if err := b.keepSwitch(ctx, b.store.PutSetting); err != nil {
			return err
		}
	}
	s := b.stopped.Load()
	why, err := b.store.Setting(ctx, switchSetting)
	if err != nil {
		return err
	}
	if (s != nil && s.why != why || s == nil && why != "") && b.stopped.CompareAndSwap(s, &killSwitch{why: why, kept: true}) {
		b.log.Warn("calls to telephones are switched as the database says", "off", why != "")
	}
	return nil
}

// diallingView is the kill switch as an admin sees it.
type diallingView struct {
	Stopped string `json:"stopped"` // what rooms are told; "" = calls are placed
	Config  bool   `json:"config"`  // the config says so, and only it can undo that
	Ended   int    `json:"ended"`   // calls of rooms that were up, rang or were about to, and are ended by this request
	Problem string `json:"problem"` // that only this process knows; it tells the database as soon as it can
}

// stopDialling places no calls from now on, until [Bridge.startDialling]. Those that rooms have placed end if the
// admin wants that.
func (b *Bridge) stopDialling(w http.ResponseWriter, r *http.Request) {
	end, err := wantsEnd(r)
	if err != nil {
		http.Error(w, err.Error()+"; nothing is switched off", http.StatusBadRequest)
		return
	}
	b.stopped.Store(&killSwitch{why: cmp.Or(r.FormValue("why"), stoppedByAdmin), said: time.Now()})
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
	b.switched(w, r, len(ended))
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
	b.stopped.Store(&killSwitch{said: time.Now()})
	b.log.Warn("an admin switches calls to telephones on", "from", r.RemoteAddr)
	b.switched(w, r, 0)
}

// switched stores what an admin has done, and shows it.
func (b *Bridge) switched(w http.ResponseWriter, r *http.Request, ended int) {
	if err := b.keepSwitch(context.WithoutCancel(r.Context()), b.store.SetNow); err != nil {
		b.log.Error("the database does not know how calls to telephones are switched; it is told when it is back", "err", err)
	}
	b.showDialling(w, ended)
}

func (b *Bridge) showDialling(w http.ResponseWriter, ended int) {
	v := diallingView{Stopped: b.quotas().Stopped, Config: b.plan.quotas.Stopped != "", Ended: ended}
	if s := b.stopped.Load(); s != nil && !s.kept {
		v.Problem = "only this process knows so far: the database does not answer"
	}
	b.show(w, v)
}
