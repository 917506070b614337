package doctor

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/bridge/command"
	"trunkline/bridge/config"
)

// What the first call needs beyond a bridge that runs: a way from the homeserver, trunks that can be found, rooms that let phones in, and
// for calls of rooms somebody who may place them, and numbers that may be called.

// callEvents are the state events that a phone's ghost must be allowed to send (MSC3401).
var callEvents = []string{"org.matrix.msc3401.call", "org.matrix.msc3401.call.member"}

// answerPing serves what the homeserver asks at a ping until stop is called, in place of a bridge that does not run.
func (p *patient) answerPing() (stop func(), err error) {
	l, err := net.Listen("tcp", p.cfg.AppService.Listen)
	if err != nil {
		return nil, err
	}
	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		switch {
		case r.URL.Path != "/_matrix/app/v1/ping":
			w.WriteHeader(http.StatusServiceUnavailable) // transactions: the homeserver sends them again, to the bridge
		case subtle.ConstantTimeCompare([]byte(token), []byte(p.registration.ServerToken)) != 1:
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"errcode": "M_FORBIDDEN", "error": "the homeserver's hs_token is another one than that of the registration here"}`)
		default:
			fmt.Fprint(w, "{}")
		}
	})}
	over := make(chan struct{})
	go func() { _ = server.Serve(l); close(over) }()
	return func() { server.Close(); l.Close(); <-over }, nil
}

// checkNetworks finds networks that are written like an address: they let in more than somebody may have meant.
func (p *patient) checkNetworks(context.Context) []finding {
	var list []finding
	for _, t := range p.cfg.SIP.Trunks {
		for _, text := range t.Networks {
			if n, err := netip.ParsePrefix(text); err == nil && n != n.Masked() {
				list = append(list, finding{
					ok: true, what: "networks of trunk " + t.Name,
					detail: fmt.Sprintf("%s is all of %v; one address is written %v/%d", text, n.Masked(), n.Addr(), n.Addr().BitLen()),
				})
			}
		}
	}
	return list
}

func (p *patient) checkProxies(ctx context.Context) []finding {
	var list []finding
	for _, t := range p.cfg.SIP.Trunks {
		host := t.Proxy
		if h, _, err := net.SplitHostPort(t.Proxy); err == nil {
			host = h
		}
		if _, err := netip.ParseAddr(strings.Trim(host, "[]")); t.Proxy == "" || err == nil {
			continue
		}
		what := "proxy of trunk " + t.Name
		if err := resolves(ctx, host, host == t.Proxy); err != nil {
			list = append(list, finding{what: what, detail: err.Error(), remedy: "the name must be in DNS: check how it is spelt, and this machine's name servers"})
			continue
		}
		list = append(list, finding{ok: true, what: what, detail: host + " is in DNS"})
	}
	return list
}

// resolves looks a name up as calls do: by SRV where no port is written, else by its addresses.
func resolves(ctx context.Context, host string, services bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := net.DefaultResolver.LookupHost(ctx, host)
	if err == nil || !services {
		return err
	}
	for _, service := range []struct{ name, proto string }{{"sip", "udp"}, {"sip", "tcp"}, {"sips", "tcp"}} {
		if _, found, srv := net.DefaultResolver.LookupSRV(ctx, service.name, service.proto, host); srv == nil && len(found) > 0 {
			return nil
		}
	}
	return err
}

// checkRooms looks at the rooms that the config's routes name.
func (p *patient) checkRooms(ctx context.Context) []finding {
	if p.registration == nil || !p.accepted {
		return nil // said above
	}
	c, err := p.client()
	if err != nil {
		return nil
	}
	bot := id.NewUserID(p.cfg.AppService.Bot, p.cfg.Homeserver.Domain)
	c.SetAppServiceUserID, c.UserID = true, bot
	var list []finding
	seen := map[string]bool{}
	for _, r := range p.cfg.Routes {
		if r.Room == config.AnyRoom || seen[r.Room] {
			continue
		}
		if seen[r.Room] = true; len(seen) > 20 {
			list = append(list, finding{skip: true, what: "other rooms", detail: "twenty of them were looked at"})
			break
		}
		list = append(list, p.checkRoom(ctx, c, bot, r.Room))
	}
	return list
}

func (p *patient) checkRoom(ctx context.Context, c *mautrix.Client, bot id.UserID, name string) finding {
	f := finding{what: "room " + name}
	room := id.RoomID(name)
	if strings.HasPrefix(name, "#") {
		found, err := c.ResolveAlias(ctx, id.RoomAlias(name))
		if err != nil {
			f.detail, f.remedy = told(err), "make the room, or give an existing one that address (in its settings); or correct the route"
			return f
		}
		room = found.RoomID
	}
	var own event.MemberEventContent
	err := c.StateEvent(ctx, room, event.StateMember, string(bot), &own)
	if err != nil || own.Membership != event.MembershipJoin {
		f.detail, f.remedy = fmt.Sprintf("%s is not in it", bot), fmt.Sprintf("invite %s to the room; it joins if the bridge runs", bot)
		return f
	}
	var levels event.PowerLevelsEventContent
	if err := c.StateEvent(ctx, room, event.StatePowerLevels, "", &levels); errors.Is(err, mautrix.MNotFound) { // nobody has any, so all may
		f.ok, f.detail = true, "is there, and has no power levels"
		return f
	} else if err != nil {
		f.detail, f.remedy = told(err), "ask again"
		return f
	}
	for _, kind := range callEvents {
		needed := levels.GetEventLevel(event.Type{Type: kind, Class: event.StateEventType})
		if needed > levels.UsersDefault {
			f.detail = fmt.Sprintf("%s takes power level %d there, and phones have %d", kind, needed, levels.UsersDefault)
			f.remedy = "docs/deployment.md says under \"Rooms\" how to set it"
			return f
		}
	}
	f.ok, f.detail = true, "is there, and phones may take part in its calls"
	return f
}

// told is what a homeserver says of an error, without the request.
func told(err error) string {
	if answer, ok := errors.AsType[mautrix.HTTPError](err); ok && answer.RespError != nil {
		return answer.RespError.ErrCode + ": " + answer.RespError.Err
	}
	return err.Error()
}

// checkOutgoing looks whether what is needed for calls of rooms is there as a whole, or nothing of it.
func (p *patient) checkOutgoing(context.Context) []finding {
	const what = "calls of rooms"
	var foreign []string
	for _, key := range slices.Sorted(maps.Keys(p.cfg.Permissions)) {
		_, server, _ := strings.Cut(key, ":")
		if !strings.ContainsAny(key, "@!*") {
			server = key
		}
		if server != "" && server != p.cfg.Homeserver.Domain {
			foreign = append(foreign, fmt.Sprintf("%q", key))
		}
	}
	var list []finding
	if len(foreign) > 0 {
		list = append(list, finding{ok: true, what: "permissions", detail: "of another server than " + p.cfg.Homeserver.Domain + ": " + strings.Join(foreign, ", ")})
	}
	if !p.cfg.Permissions.Somebody(command.LevelCall) {
		return append(list, finding{skip: true, what: what, detail: "nobody has the permission \"call\""})
	}
	dials := slices.IndexFunc(p.cfg.SIP.Trunks, func(t config.Trunk) bool { return t.Proxy != "" && t.Direction != config.DirectionIn })
	switch {
	case dials < 0:
		list = append(list, finding{what: what, detail: "somebody may place calls, but no trunk of the config has a proxy that takes them", remedy: "set proxy of a trunk"})
	case p.cfg.CallsNothing():
		list = append(list, finding{what: what, detail: "somebody may place calls, but to no number", remedy: "set dialling.country, or dialling.allow"})
	case p.cfg.SIP.Trunks[dials].Number == "" && p.cfg.SIP.Trunks[dials].Username == "":
		list = append(list, finding{ok: true, what: what, detail: fmt.Sprintf("somebody may place them; trunk %s is not told who calls (number), which carriers refuse", p.cfg.SIP.Trunks[dials].Name)})
	default:
		list = append(list, finding{ok: true, what: what, detail: "somebody may place them, a trunk takes them, and numbers are allowed"})
	}
	return list
}
