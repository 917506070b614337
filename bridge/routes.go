package bridge

import (
	"context"
	"fmt"

	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/db"
)

// routes turn a dialled number into a room: first the config's, then the database's.
type routes struct {
	fixed map[string]string
	store *db.Store
}

func newRoutes(list []config.Route, store *db.Store) *routes {
	r := &routes{fixed: make(map[string]string), store: store}
	for _, route := range list {
		r.fixed[route.Number] = route.Room
	}
	return r
}

// Room returns the alias or id that number leads to, "" when it leads nowhere.
func (r *routes) Room(ctx context.Context, number string) (string, error) {
	if room := r.fixed[number]; room != "" {
		return room, nil
	}
	route, err := r.store.Route(ctx, number)
	if err != nil {
		return "", fmt.Errorf("find route: %w", err)
	}
	return route.Room, nil
}

// route finds the room of the dialled number; a call to nowhere is refused before it becomes a leg.
func (a *actor) route() bool {
	ctx, cancel := context.WithTimeout(a.ctx, databasePatience)
	defer cancel()
	target, err := a.bridge.routes.Room(ctx, string(a.info.Dialled))
	cause := leg.NoSuchRoom
	if err != nil {
		a.log.Error("no route", "err", err)
		cause = leg.NotStored
	}
	if target == "" {
		a.log.Info("number leads nowhere", "dialled", a.info.Dialled)
		a.bridge.refuse(a.call, cause)
		return false
	}
	a.bridge.mu.Lock()
	a.target = target
	a.bridge.mu.Unlock()
	return true
}
