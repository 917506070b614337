package bridge

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"maunium.net/go/mautrix/id"

	"trunkline/bridge/leg"
)

const headerPatience = 10 * time.Second

// listenHTTP opens the application service's socket, and the admin's if there is one.
func (b *Bridge) listenHTTP() ([]*server, error) {
	type place struct {
		option, address string
		handler         http.Handler
	}
	handlers := []place{{"appservice.listen", b.cfg.AppService.Listen, b.appService()}}
	if b.cfg.Admin.Listen != "" {
		handlers = append(handlers, place{"admin.listen", b.cfg.Admin.Listen, b.admin()})
	}
	var servers []*server
	for _, h := range handlers {
		l, err := b.listenTCP(h.address)
		if err != nil {
			for _, s := range servers {
				s.listener.Close()
			}
			return nil, fmt.Errorf("listen for http: %w", withRemedy(h.option, err))
		}
		servers = append(servers, &server{
			Server: http.Server{Handler: h.handler, ReadHeaderTimeout: headerPatience}, listener: l,
		})
	}
	return servers, nil
}

// listenTCP binds a listener that is kept for the next process: what the homeserver sends meanwhile waits a moment instead of
// failing, after which Synapse would wait for longer.
func (b *Bridge) listenTCP(address string) (net.Listener, error) {
	at, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	return b.sockets.ListenTCP(at.AddrPort())
}

// appService is what the homeserver talks to, with the two health questions in front.
func (b *Bridge) appService() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_matrix/mau/live", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "{}") })
	mux.HandleFunc("GET /_matrix/mau/ready", func(w http.ResponseWriter, r *http.Request) {
		if err := b.Ready(r.Context()); err != nil {
			http.Error(w, `{"error":"not ready"}`, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "{}")
	})
	mux.Handle("/", b.matrix.HTTPHandler())
	return mux
}

// admin is for the people who run the bridge: metrics, profiles, legs and their traces.
func (b *Bridge) admin() http.Handler {
	places := []struct {
		pattern string
		serve   http.HandlerFunc
	}{
		{"GET /metrics", promhttp.HandlerFor(b.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP},
		{"GET /debug/pprof/", pprof.Index},
		{"GET /debug/pprof/profile", pprof.Profile},
		{"GET /debug/pprof/trace", pprof.Trace},
		{"GET /debug/legs", b.listLegs},
		{"GET /debug/legs/{id}/trace", b.showTrace},
		{"GET /pins", b.adminPINs},
		{"POST /pins", b.adminPINs},
		{"DELETE /pins", b.adminPINs},
		{"GET /trunks", b.listTrunks},
		{"PUT /trunks/{name}", b.putTrunk},
		{"DELETE /trunks/{name}", b.dropTrunk},
		{"GET /routes", b.listRoutes},
		{"PUT /routes/{name}", b.putRoute},
		{"DELETE /routes/{name}", b.dropRoute},
		{"GET /dialling", func(w http.ResponseWriter, _ *http.Request) { b.showDialling(w, 0) }},
		{"POST /dialling/stop", b.stopDialling},
		{"POST /dialling/start", b.startDialling},
		{"POST /drain", b.startDrain},
		{"GET /debug/drain", b.showDrain},
	}
	mux := http.NewServeMux()
	for _, p := range places {
		mux.HandleFunc(p.pattern, p.serve)
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		for _, p := range places {
			fmt.Fprintln(w, p.pattern)
		}
	})
	return mux
}

// legView is a leg as an admin sees it.
type legView struct {
	ID       leg.ID      `json:"id"`
	Trunk    string      `json:"trunk"`
	CallID   string      `json:"call_id"`
	Room     string      `json:"room"`
	Phase    string      `json:"phase"`
	Seconds  int         `json:"seconds"`
	Speaking bool        `json:"speaking"` // the phone
	Speakers []id.UserID `json:"speakers"` // people whom its ghost hears speaking
}

// view is the leg as an admin sees it; called with the bridge's mutex held.
func (a *actor) view() legView {
	v := legView{
		ID: a.id, Trunk: a.info.Trunk, CallID: a.info.CallID, Room: a.target, Phase: a.phase.String(),
		Seconds: int(time.Since(a.begun).Seconds()), Speakers: []id.UserID{},
	}
	if voice := a.voice.Load(); voice != nil {
		v.Speaking = voice.speaks.Load()
	}
	for device := range a.speaking {
		v.Speakers = append(v.Speakers, device.User)
	}
	slices.Sort(v.Speakers)
	v.Speakers = slices.Compact(v.Speakers)
	return v
}

func (b *Bridge) listLegs(w http.ResponseWriter, _ *http.Request) {
	views := []legView{}
	legs := b.liveLegs()
	b.mu.Lock()
	for _, a := range legs {
		views = append(views, a.view())
	}
	b.mu.Unlock()
	b.show(w, views)
}

func (b *Bridge) showTrace(w http.ResponseWriter, r *http.Request) {
	a := b.findLeg(leg.ID(r.PathValue("id")))
	if a == nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if _, err := a.trace.WriteTo(w); err != nil {
		b.log.Debug("admin went away", "err", err)
	}
}

// findLeg returns a live leg or one that ended not long ago, nil if there is none.
func (b *Bridge) findLeg(id leg.ID) *actor {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.legs[id]; a != nil {
		return a
	}
	i := slices.IndexFunc(b.past, func(a *actor) bool { return a.id == id })
	if i < 0 {
		return nil
	}
	return b.past[i]
}

// liveLegs returns the legs, oldest first.
func (b *Bridge) liveLegs() []*actor {
	b.mu.Lock()
	legs := slices.Collect(maps.Values(b.legs))
	b.mu.Unlock()
	slices.SortFunc(legs, func(x, y *actor) int { return x.begun.Compare(y.begun) })
	return legs
}
