package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"trunkline/bridge/config"
	"trunkline/db"
)

// longestSettings is more than any trunk or route needs, octets.
const longestSettings = 64 << 10

// withStoredTrunks returns cfg with the trunks of the database behind its own. One that cannot be used is left out and told of:
// a row must not keep the others from their calls.
func withStoredTrunks(ctx context.Context, cfg config.Config, store *db.Store, complain func(name string, err error)) (config.Config, error) {
	stored, err := store.Trunks(ctx)
	if err != nil {
		return config.Config{}, err
	}
	own := cfg.SIP.Trunks
	cfg.SIP.Trunks = slices.Clone(own)
	for _, row := range stored {
		trunk, err := usableTrunk(cfg, own, row.Name, row.Settings)
		if err != nil {
			complain(row.Name, err)
			continue
		}
		cfg.SIP.Trunks = append(cfg.SIP.Trunks, trunk)
	}
	return cfg, nil
}

// usableTrunk reads the settings of a stored trunk, and tells what keeps it from being used beside those of the config.
func usableTrunk(cfg config.Config, own []config.Trunk, name, settings string) (config.Trunk, error) {
	if slices.ContainsFunc(own, func(t config.Trunk) bool { return t.Name == name }) {
		return config.Trunk{}, errors.New("the config has a trunk of that name")
	}
	trunk, err := config.ParseTrunk(name, settings)
	if err != nil {
		return config.Trunk{}, err
	}
	cfg.SIP.Trunks = []config.Trunk{trunk}
	if _, err := sipConfig(cfg); err != nil { // its certificates, for one
		return config.Trunk{}, err
	}
	return trunk, nil
}

// trunkView is a trunk as an admin sees it; passwords stay where they are.
type trunkView struct {
	Name     string   `json:"name"`
	Networks []string `json:"networks,omitempty"`
	Proxy    string   `json:"proxy,omitempty"`
	From     string   `json:"from"`    // config or database
	Used     bool     `json:"used"`    // by this process; a stored one is from the next start on
	Problem  string   `json:"problem"` // why a stored one cannot be used
}

func (b *Bridge) listTrunks(w http.ResponseWriter, r *http.Request) {
	stored, err := b.store.Trunks(r.Context())
	if err != nil {
		b.failed(w, "list trunks", err)
		return
	}
	views := []trunkView{}
	for _, t := range b.ownTrunks {
		views = append(views, trunkView{Name: t.Name, Networks: t.Networks, Proxy: t.Proxy, From: "config", Used: true})
	}
	for _, row := range stored {
		v := trunkView{Name: row.Name, From: "database"}
		trunk, err := usableTrunk(b.cfg, b.ownTrunks, row.Name, row.Settings)
		if err != nil {
			v.Problem = err.Error()
		}
		v.Networks, v.Proxy = trunk.Networks, trunk.Proxy
		v.Used = err == nil && slices.ContainsFunc(b.cfg.SIP.Trunks, func(t config.Trunk) bool { return t.Name == row.Name })
		views = append(views, v)
	}
	b.show(w, views)
}

// putTrunk stores a trunk, or takes it away (DELETE). The next start, which ends no call, uses it.
func (b *Bridge) putTrunk(w http.ResponseWriter, r *http.Request) {
	name, settings, ok := b.settings(w, r)
	if !ok {
		return
	}
	if settings != "" {
		if _, err := usableTrunk(b.cfg, b.ownTrunks, name, settings); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	if err := b.store.PutTrunk(r.Context(), db.Trunk{Name: name, Settings: settings, Created: time.Now()}); err != nil {
		b.failed(w, "store trunk", err)
		return
	}
	b.log.Info("an admin changed a stored trunk", "trunk", name, "removed", settings == "")
	fmt.Fprintln(w, "stored; restart the bridge to use it, which ends no call")
}

// routeView is a route as an admin sees it.
type routeView struct {
	Number  string          `json:"number"`
	Room    string          `json:"room"`
	Options json.RawMessage `json:"options,omitempty"` // of stored ones
	From    string          `json:"from"`              // config or database
}

func (b *Bridge) listRoutes(w http.ResponseWriter, r *http.Request) {
	stored, err := b.store.Routes(r.Context())
	if err != nil {
		b.failed(w, "list routes", err)
		return
	}
	views := []routeView{}
	for _, route := range b.cfg.Routes {
		views = append(views, routeView{Number: route.Number, Room: route.Room, From: "config"})
	}
	for _, route := range stored {
		views = append(views, routeView{route.Number, route.Room, json.RawMessage(route.Options), "database"})
	}
	b.show(w, views)
}

// putRoute stores a route, or takes it away (DELETE). The next call uses it.
func (b *Bridge) putRoute(w http.ResponseWriter, r *http.Request) {
	number, settings, ok := b.settings(w, r)
	if !ok {
		return
	}
	route := db.Route{Number: number, Created: time.Now()}
	if settings != "" {
		if slices.ContainsFunc(b.cfg.Routes, func(r config.Route) bool { return r.Number == number }) {
			http.Error(w, "the config has a route of that number, and it counts", http.StatusConflict)
			return
		}
		checked, err := config.ParseRoute(number, settings, b.routes.defaults)
		if err == nil {
			route.Room = checked.Room
			route.Options, err = withoutRoom(settings)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	if err := b.store.PutRoute(r.Context(), route); err != nil {
		b.failed(w, "store route", err)
		return
	}
	b.log.Info("an admin changed a stored route", "removed", settings == "")
	fmt.Fprintln(w, "stored; it counts from the next call on")
}

// withoutRoom is a route's JSON object without its room, which has a column of its own.
func withoutRoom(settings string) (string, error) {
	var options map[string]json.RawMessage
	if err := json.Unmarshal([]byte(settings), &options); err != nil {
		return "", err
	}
	delete(options, "room")
	text, err := json.Marshal(options)
	return string(text), err
}

// settings are what a request wants stored under which name; "" takes it away. Not ok: the request was answered.
func (b *Bridge) settings(w http.ResponseWriter, r *http.Request) (name, text string, ok bool) {
	name = r.PathValue("name")
	if r.Method == http.MethodDelete {
		return name, "", true
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, longestSettings))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return "", "", false
	}
	if !json.Valid(body) {
		http.Error(w, "this takes a JSON object with the names that the options have in the config", http.StatusBadRequest)
		return "", "", false
	}
	return name, string(body), true
}

// show answers an admin with JSON.
func (b *Bridge) show(w http.ResponseWriter, what any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(what); err != nil {
		b.log.Debug("admin went away", "err", err)
	}
}

func (b *Bridge) failed(w http.ResponseWriter, what string, err error) {
	b.log.Error("an admin's wish failed", "wish", what, "err", err)
	http.Error(w, err.Error(), http.StatusInternalServerError)
}
