package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/db"
	"trunkline/matrixcall"
	"trunkline/sip"
)

// routes turn a dialled number into a room: first the config's, then the database's.
type routes struct {
	fixed    map[string]config.Route
	defaults config.Options // of numbers whose route leaves something out
	domain   string         // of rooms that are dialled by their name; "" = they can't be
	store    *db.Store
}

// route is where a number leads, and how calls to it are treated. All its options are set.
type route struct {
	room    string // alias or id, "" when the number leads nowhere
	options config.Options
}

func newRoutes(cfg config.Config, store *db.Store) *routes {
	r := &routes{
		fixed: make(map[string]config.Route), store: store,
		defaults: cfg.Calls.Options.Over(config.Default().Calls.Options),
	}
	if cfg.DialIn.RoomNames {
		r.domain = cfg.Homeserver.Domain
	}
	for _, route := range cfg.Routes {
		r.fixed[route.Number] = route
	}
	return r
}

// Find returns the route of a number, however it is written: that of the first way of writing it that has one, else the room that
// has the first as its name. With an error that is about its options only, the room is there and the defaults hold.
func (r *routes) Find(ctx context.Context, written ...string) (route, error) {
	for _, number := range written {
		if found, err := r.made(ctx, number); err != nil || found.room != "" {
			return found, err
		}
	}
	named := route{options: r.defaults}
	if name := written[0]; r.domain != "" && name != "" {
		named.room = "#" + name + ":" + r.domain
	}
	return named, nil
}

// made is the route that somebody has made for a number.
func (r *routes) made(ctx context.Context, number string) (route, error) {
	if fixed, ok := r.fixed[number]; ok {
		return route{room: fixed.Room, options: fixed.Options.Over(r.defaults)}, nil
	}
	stored, err := r.store.Route(ctx, number)
	if err != nil {
		return route{}, fmt.Errorf("find route: %w", err)
	}
	options, err := config.ParseOptions(stored.Options)
	return route{room: stored.Room, options: options.Over(r.defaults)}, err
}

// askPINs says whether a number of the config asks for one.
func (r *routes) askPINs() bool {
	for _, route := range r.fixed {
		if route.Options.Over(r.defaults).PIN != config.PINNone {
			return true
		}
	}
	return r.defaults.PIN != config.PINNone
}

// forPINs are the routes that ask for PINs made for rooms.
func (r *routes) forPINs(ctx context.Context) (list []config.Route, err error) {
	stored, err := r.store.Routes(ctx)
	if err != nil {
		return nil, fmt.Errorf("find routes with PINs: %w", err)
	}
	for _, s := range stored {
		if _, hidden := r.fixed[s.Number]; !hidden {
			options, _ := config.ParseOptions(s.Options) // where they make no sense the defaults hold, as in Find
			list = append(list, config.Route{Number: s.Number, Room: s.Room, Options: options})
		}
	}
	list = slices.AppendSeq(list, maps.Values(r.fixed))
	return slices.DeleteFunc(list, func(route config.Route) bool {
		return route.Options.Over(r.defaults).PIN != config.PINDatabase
	}), nil
}

// aliasPatience is how long other servers may take to say where all aliases lead that routes have of them.
const aliasPatience = 10 * time.Second

// numbersWithPINs are the numbers that ask for PINs made for the room. Those whose route has an alias of a server that is away are
// left out; it is an error if there are no others, for then nobody knows.
func (b *Bridge) numbersWithPINs(ctx context.Context, room id.RoomID) (numbers []string, err error) {
	list, err := b.routes.forPINs(ctx)
	if err != nil {
		return nil, err
	}
	names, err := b.matrix.Aliases(ctx, room)
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, aliasPatience)
	defer cancel()
	var away error
	leads := map[string]bool{config.AnyRoom: true, string(room): true} // by what a route says
	for _, name := range names {
		leads[string(name)] = true
	}
	for _, route := range list {
		if _, known := leads[route.Room]; !known {
			there, err := b.leadsTo(asking, route.Room, room)
			leads[route.Room], away = there, errors.Join(away, err)
		}
		if leads[route.Room] {
			numbers = append(numbers, route.Number)
		}
	}
	named, err := b.namesWithPINs(ctx, names)
	if err != nil {
		return nil, err
	}
	numbers = append(numbers, named...)
	switch {
	case away != nil && len(numbers) == 0:
		return nil, away
	case away != nil:
		b.log.Warn("numbers with PINs are left out", "room", room, "err", away)
	}
	slices.Sort(numbers)
	return slices.Compact(numbers), nil
}

// leadsTo says whether what a route says is another server's name of the room.
func (b *Bridge) leadsTo(ctx context.Context, target string, room id.RoomID) (bool, error) {
	if !strings.HasPrefix(target, "#") || strings.HasSuffix(target, ":"+b.cfg.Homeserver.Domain) {
		return false, nil
	}
	found, err := b.matrix.ResolveRoom(ctx, target)
	if _, unknown := errors.AsType[*matrixcall.RoomError](err); unknown {
		return false, nil
	}
	return found == room, err
}

// namesWithPINs are those names of a room that can be dialled and ask for PINs made for it.
func (b *Bridge) namesWithPINs(ctx context.Context, names []id.RoomAlias) (numbers []string, err error) {
	if b.routes.domain == "" || b.routes.defaults.PIN != config.PINDatabase {
		return nil, nil
	}
	for _, alias := range names {
		name, isOurs := strings.CutSuffix(strings.TrimPrefix(string(alias), "#"), ":"+b.routes.domain)
		if !isOurs {
			continue
		}
		found, err := b.routes.Find(ctx, name)
		switch {
		case found.room == string(alias) && found.options.PIN == config.PINDatabase: // an error is about other options
			numbers = append(numbers, name)
		case err != nil && found.room == "":
			return nil, err
		}
	}
	return numbers, nil
}

// routeOf is the route of a number as a trunk writes it. A route in E.164 goes before a room's name: with room names any number
// may be one.
func (b *Bridge) routeOf(ctx context.Context, trunk string, dialled sip.Number) (route, error) {
	written := []string{string(dialled), string(b.plan.Local(trunk, dialled))}
	return b.routes.Find(ctx, slices.Compact(written)...)
}

// route finds the room of the dialled number; a call to nowhere is refused before it becomes a leg.
func (a *actor) route() bool {
	ctx, cancel := context.WithTimeout(a.ctx, databasePatience)
	defer cancel()
	found, err := a.bridge.routeOf(ctx, a.info.Trunk, a.info.Dialled)
	cause := leg.NoSuchRoom
	switch {
	case err != nil && found.room == "":
		a.log.Error("no route", "err", err)
		cause = leg.NotStored
	case err != nil:
		a.log.Warn("route has options that make no sense; the defaults hold", "err", err)
	}
	if found.room == config.AnyRoom && found.options.PIN != config.PINDatabase {
		a.log.Warn("the route leads to the room of a PIN and asks for none", "dialled", a.info.Dialled)
		found.room = ""
	}
	if found.room == "" {
		a.log.Info("number leads nowhere", "dialled", form(a.info.Dialled), "characters", len(a.info.Dialled))
		if cause == leg.NoSuchRoom && a.bridge.routes.otherwise(a.info.Dialled) {
			a.log.Warn("a route has that number written otherwise: write it there as the trunk does, or say by the trunk's option numbers what it means")
		}
		a.bridge.refuse(a.call, cause)
		return false
	}
	a.follow(found)
	return true
}

// form shows how a number is written, which is what a route must have too, but not the number: "+493…67".
func form(n sip.Number) string {
	head, tail := min(4, len(n)/2), 0
	if len(n) > 6 {
		tail = 2
	}
	return string(n[:head]) + "…" + string(n[len(n)-tail:])
}

// leastDigits of two numbers must agree, from their ends, to be called the same: as many as the numbers of subscribers have.
const leastDigits = 6

// otherwise says whether the config has a route of the same number in another way of writing it: with another prefix, or with none.
func (r *routes) otherwise(dialled sip.Number) bool {
	digits := func(s string) string {
		return strings.TrimLeft(strings.Map(func(r rune) rune {
			if r < '0' || r > '9' {
				return -1
			}
			return r
		}, s), "0")
	}
	want := digits(string(dialled))
	for number := range r.fixed {
		have := digits(number)
		if min(len(want), len(have)) >= leastDigits && (strings.HasSuffix(want, have) || strings.HasSuffix(have, want)) {
			return true
		}
	}
	return false
}

// follow takes a route's options and room.
func (a *actor) follow(found route) {
	a.options = found.options
	a.state.Rules = a.bridge.rulesFor(found.options)
	a.dialin.menu.Rules = menuRules(found.options)
	a.name = ghostName(a.party, a.showsNumber())
	a.setTarget(found.room)
}

// setTarget says which room the leg is for.
func (a *actor) setTarget(room string) {
	a.bridge.mu.Lock()
	defer a.bridge.mu.Unlock()
	a.target = room
}

// showsNumber says whether the room may see the caller's whole number.
func (a *actor) showsNumber() bool {
	if show := a.options.ShowNumbers; show != nil {
		return *show
	}
	return a.bridge.showNumbers[a.info.Trunk]
}

// rulesFor are the limits of a leg whose route has these options.
func (b *Bridge) rulesFor(o config.Options) leg.Rules {
	r := b.rules
	r.Ring, r.Asks = 0, asks(o)
	if o.Intent == config.IntentRing && !r.Asks {
		r.Ring = *o.RingTimeout
	}
	r.Tones, r.Refusal = *o.EarlyMedia, *o.RefusalTone
	return r
}
