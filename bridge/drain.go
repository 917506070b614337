package bridge

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"
)

// drainReport is how often a drain says how far it is.
const drainReport = 10 * time.Second

// drain is the way to stop without ending a call: no new ones, and Run returns when the last one is over.
type drain struct {
	once sync.Once
	over chan struct{} // closed when no leg is left

	since time.Time // guarded by the bridge's mutex; zero = not draining
}

// Drain takes no new calls from now on, and ends [Bridge.Run] when those that are up have ended. Phones that call are told
// to try again; a trunk that asks (OPTIONS) hears 503 and goes elsewhere.
func (b *Bridge) Drain() {
	b.drain.once.Do(func() {
		b.mu.Lock()
		b.drain.since = time.Now()
		b.mu.Unlock()
		b.phones.Drain(true)
		b.drains.Go(b.awaitEmpty)
	})
}

// awaitEmpty waits for the last leg and for the rooms whose commands are being carried out: who ordered a call is told that there will
// be none. Now and then it says how many legs are left.
func (b *Bridge) awaitEmpty() {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	var said time.Time
	for {
		p := b.drainProgress()
		if p.Legs == 0 && !b.hasCommands() {
			b.log.Info("drained", "after", (time.Duration(p.Seconds) * time.Second).String())
			close(b.drain.over)
			return
		}
		if time.Since(said) >= drainReport {
			b.log.Info("draining", "legs", p.Legs)
			said = time.Now()
		}
		select {
		case <-b.ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// handOver lets the process of any node have what is left of a drain that was cut short, at once: who drains a node does not mean to
// start it again. Without a drain the calls wait for the next process here, and others take them only when the lease has lapsed.
func (b *Bridge) handOver() error {
	if !b.drainProgress().Draining {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), databasePatience)
	defer cancel()
	return b.lease.HandOver(ctx)
}

// hasCommands says whether some room's command is not carried out yet.
func (b *Bridge) hasCommands() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.orders.waiting) > 0
}

// drainView is how far a drain is, as an admin sees it.
type drainView struct {
	Draining bool `json:"draining"`
	Seconds  int  `json:"seconds"`
	Legs     int  `json:"legs"`
}

func (b *Bridge) drainProgress() drainView {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := drainView{Draining: !b.drain.since.IsZero(), Legs: len(b.legs)}
	if v.Draining {
		v.Seconds = int(time.Since(b.drain.since).Seconds())
	}
	return v
}

func (b *Bridge) startDrain(w http.ResponseWriter, r *http.Request) {
	b.log.Info("an admin asks to drain", "from", r.RemoteAddr)
	b.Drain()
	w.WriteHeader(http.StatusAccepted)
	b.showDrain(w, r)
}

func (b *Bridge) showDrain(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(b.drainProgress()); err != nil {
		b.log.Debug("admin went away", "err", err)
	}
}
