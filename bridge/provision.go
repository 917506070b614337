package bridge

import (
	"cmp"
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
	"trunkline/sip"
)

// longestSettings is more than any trunk or route needs, octets.
const longestSettings = 64 << 10

// withStoredTrunks returns cfg with the trunks of the database behind its own. One that cannot be used is left out and told of:
// a row must not keep the others from their calls. Passwords that stand there in clear are sealed; one that the database does not let be
// sealed is told of, and its trunk used.
func withStoredTrunks(ctx context.Context, cfg config.Config, store *db.Store, v *vault, complain func(name string, err error)) (config.Config, error) {
	stored, err := store.Trunks(ctx)
	if err != nil {
		return config.Config{}, err
	}
	own := cfg.SIP.Trunks
	cfg.SIP.Trunks = slices.Clone(own)
	for _, row := range stored {
		trunk, err := storedTrunk(cfg, own, v, row)
		if err != nil {
			complain(row.Name, err)
		}
		if sealed, unread := v.sealTrunk(row.Name, row.Settings); unread == nil && sealed != row.Settings {
			err := store.ReplaceTrunk(ctx, row.Name, row.Settings, sealed)
			if errors.Is(err, db.ErrAway) {
				return config.Config{}, err
			}
			if err != nil {
				complain(row.Name, fmt.Errorf("seal its password, which stays in clear: %w", err))
			}
		}
		if err != nil {
			continue
		}
		cfg.SIP.Trunks = append(cfg.SIP.Trunks, trunk)
	}
	return cfg, nil
}

var errInConfig = errors.New("the config has one of that name, and it counts")

func named(trunks []config.Trunk, name string) bool {
	return slices.ContainsFunc(trunks, func(t config.Trunk) bool { return t.Name == name })
}

// storedTrunk is usableTrunk for a row. With an error it is as much of the trunk as can be shown.
func storedTrunk(cfg config.Config, own []config.Trunk, v *vault, row db.Trunk) (config.Trunk, error) {
	settings, locked := v.openTrunk(row.Name, row.Settings)
	trunk, err := usableTrunk(cfg, own, row.Name, settings)
	return trunk, cmp.Or(locked, err)
}

// usableTrunk reads the settings of a stored trunk, and tells what keeps it from being used beside those of the config.
func usableTrunk(cfg config.Config, own []config.Trunk, name, settings string) (config.Trunk, error) {
	if named(own, name) {
		return config.Trunk{}, errInConfig
	}
	trunk, err := config.ParseTrunk(name, settings, cfg.SIP)
	if err != nil {
		return config.Trunk{}, err
	}
	cfg.LocateFiles(&trunk)
	cfg.SIP.Trunks = []config.Trunk{trunk}
	if _, err := sipConfig(cfg); err != nil { // its certificates, for one
		return config.Trunk{}, err
	}
	return trunk, nil
}

// trunkView is a trunk as an admin sees it; passwords stay where they are.
type trunkView struct {
	Name      string   `json:"name"`
	Networks  []string `json:"networks,omitempty"`
	Proxy     string   `json:"proxy,omitempty"`
	Direction string   `json:"direction,omitempty"`
	From      string   `json:"from"`    // config or database
	Used      bool     `json:"used"`    // by this process; a stored one is from the next start on
	Problem   string   `json:"problem"` // why a stored one cannot be used

	// Of those that are used:
	Calls           *int       `json:"calls,omitempty"`                  // that are there, in this process
	Up              *bool      `json:"up,omitempty"`                     // whether it has answered the last OPTIONS; left out: it was not asked
	DownBecause     string     `json:"down_because,omitempty"`           // what came in place of an answer
	RegisteredUntil *time.Time `json:"registered_until,omitempty"`       // left out: we are not registered with it
	NotRegistered   string     `json:"not_registered_because,omitempty"` // why the last REGISTER failed; the one before may still hold
}

// now adds how the trunk is doing, of which the stack knows if it registers with it or asks whether it lives.
func (v *trunkView) now(states []sip.TrunkState, calls map[string]int) {
	v.Calls = new(calls[v.Name])
	i := slices.IndexFunc(states, func(t sip.TrunkState) bool { return t.Trunk == v.Name })
	if i < 0 {
		return
	}
	t := states[i]
	if t.Asked {
		v.Up = new(!t.Down)
	}
	if t.DownFor != nil {
		v.DownBecause = t.DownFor.Error()
	}
	if until := t.Registered.UTC().Truncate(time.Second); until.After(time.Now()) {
		v.RegisteredUntil = &until
	}
	if t.Refused != nil {
		v.NotRegistered = t.Refused.Error()
	}
}

// callsByTrunk counts the legs that are there.
func (b *Bridge) callsByTrunk() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	calls := make(map[string]int)
	for _, a := range b.legs {
		calls[a.info.Trunk]++
	}
	return calls
}

func (b *Bridge) listTrunks(w http.ResponseWriter, r *http.Request) {
	stored, err := b.store.Trunks(r.Context())
	if err != nil {
		b.failed(w, "list trunks", err)
		return
	}
	views := []trunkView{}
	for _, t := range b.ownTrunks {
		views = append(views, trunkView{Name: t.Name, Networks: t.Networks, Proxy: t.Proxy, Direction: t.Direction, From: "config", Used: true})
	}
	for _, row := range stored {
		v := trunkView{Name: row.Name, From: "database"}
		trunk, err := storedTrunk(b.cfg, b.ownTrunks, b.vault, row)
		if err != nil {
			v.Problem = err.Error()
		}
		v.Networks, v.Proxy, v.Direction = trunk.Networks, trunk.Proxy, trunk.Direction
		v.Used = err == nil && named(b.cfg.SIP.Trunks, row.Name)
		views = append(views, v)
	}
	states, calls := b.phones.Trunks(), b.callsByTrunk()
	for i := range views {
		if views[i].Used {
			views[i].now(states, calls)
		}
	}
	b.show(w, views)
}

// putTrunk stores a trunk. The next start, which ends no call, uses it.
func (b *Bridge) putTrunk(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	settings, ok := settingsOf(w, r)
	if !ok {
		return
	}
	if _, err := usableTrunk(b.cfg, b.ownTrunks, name, settings); err != nil {
		refuseSettings(w, err)
		return
	}
	settings, err := b.vault.sealTrunk(name, settings)
	if err != nil {
		refuseSettings(w, err)
		return
	}
	if err := b.store.PutTrunk(r.Context(), db.Trunk{Name: name, Settings: settings, Created: time.Now()}); err != nil {
		b.failed(w, "store trunk", err)
		return
	}
	b.log.Info("an admin stored a trunk", "trunk", name)
	fmt.Fprintln(w, "stored; restart the bridge to use it, which ends no call")
}

// dropTrunk takes a stored trunk away; the process goes on with it until it is restarted.
func (b *Bridge) dropTrunk(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	stored, err := b.store.Trunks(r.Context())
	there := slices.ContainsFunc(stored, func(t db.Trunk) bool { return t.Name == name })
	if err == nil && there {
		err = b.store.PutTrunk(r.Context(), db.Trunk{Name: name})
	}
	b.dropped(w, "trunk "+name, there, named(b.ownTrunks, name), err)
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

// putRoute stores a route. The next call uses it.
func (b *Bridge) putRoute(w http.ResponseWriter, r *http.Request) {
	number := r.PathValue("name")
	settings, ok := settingsOf(w, r)
	if !ok {
		return
	}
	route := db.Route{Number: number, Created: time.Now()}
	checked, err := config.ParseRoute(number, settings, b.routes.defaults)
	if _, own := b.routes.fixed[number]; own {
		err = errInConfig
	}
	if err == nil {
		route.Room = checked.Room
		route.Options, err = withoutRoom(settings)
	}
	if err != nil {
		refuseSettings(w, err)
		return
	}
	if err := b.store.PutRoute(r.Context(), route); err != nil {
		b.failed(w, "store route", err)
		return
	}
	b.log.Info("an admin stored a route")
	fmt.Fprintln(w, "stored; it counts from the next call on")
}

// dropRoute takes a stored route away.
func (b *Bridge) dropRoute(w http.ResponseWriter, r *http.Request) {
	number := r.PathValue("name")
	stored, err := b.store.Route(r.Context(), number)
	if err == nil && stored.Room != "" {
		err = b.store.PutRoute(r.Context(), db.Route{Number: number})
	}
	_, own := b.routes.fixed[number]
	b.dropped(w, "route", stored.Room != "", own, err)
}

// dropped tells an admin what became of a wish to take something out of the database.
func (b *Bridge) dropped(w http.ResponseWriter, what string, there, own bool, err error) {
	switch {
	case err != nil:
		b.failed(w, "take away "+what, err)
	case there:
		b.log.Info("an admin took something out of the database", "what", what)
		fmt.Fprintln(w, "removed")
	case own:
		http.Error(w, "it is in the config: remove it there", http.StatusConflict)
	default:
		http.Error(w, "there is none in the database", http.StatusNotFound)
	}
}

// refuseSettings tells an admin what is wrong with what should have been stored.
func refuseSettings(w http.ResponseWriter, err error) {
	code := http.StatusBadRequest
	if errors.Is(err, errInConfig) {
		code = http.StatusConflict
	}
	http.Error(w, err.Error(), code)
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

// settingsOf reads a JSON object that is to be stored. Not ok: the request was answered.
func settingsOf(w http.ResponseWriter, r *http.Request) (text string, ok bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, longestSettings))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return "", false
	}
	if !json.Valid(body) {
		http.Error(w, "this takes a JSON object with the names that the options have in the config", http.StatusBadRequest)
		return "", false
	}
	return string(body), true
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
