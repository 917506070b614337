package bridge

import (
	"context"
	"strings"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/leg"
	"trunkline/matrixcall"
	"trunkline/sip"
)

// naming keeps the ghost's name up to date, one request at a time. Only the actor touches it.
type naming struct {
	early *sip.Caller // became known before the ghost was in the call
	busy  bool
	next  string // to be set after the one under way, "" = none
}

// identify tells the room who is on the phone now: after a transfer behind a PBX, or when a name becomes known late.
func (a *actor) identify(caller sip.Caller) {
	if a.state.Room != leg.Up {
		a.naming.early = &caller
		return
	}
	show := a.showsNumber()
	name := ghostName(caller, show)
	if name == a.name {
		return
	}
	a.name = name
	a.log.Info("somebody else is on the phone")
	a.join.membership.AssertIdentity(matrixcall.Identity{
		ID: callerURI(caller, show), DisplayName: name, AvatarURL: id.ContentURIString(a.bridge.cfg.AppService.GhostAvatar),
	})
	a.rename(name)
}

// rename sets the ghost's name in the room. The latest one wins.
func (a *actor) rename(name string) {
	if a.naming.busy {
		a.naming.next = name
		return
	}
	a.naming.busy = true
	ghost := a.join.ghost
	a.wg.Go(func() {
		ctx, cancel := context.WithTimeout(a.ctx, noticePatience)
		defer cancel()
		a.note("rename the ghost", ghost.Rename(ctx, name))
		a.inbox.Put(func() {
			next := a.naming.next
			a.naming.busy, a.naming.next = false, ""
			if next != "" {
				a.rename(next)
			}
		})
	})
}

// callerURI is the caller's number as a URI (RFC 3966), "" where the room may not see it or there is none.
func callerURI(caller sip.Caller, showNumber bool) string {
	number := string(caller.Number)
	if caller.Private || !showNumber || !strings.HasPrefix(number, "+") || len(number) < 2 {
		return ""
	}
	for _, r := range number[1:] {
		if r < '0' || r > '9' {
			return ""
		}
	}
	return "tel:" + number
}
