package bridge

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/config"
	"trunkline/bridge/menu"
	"trunkline/bridge/pin"
	"trunkline/db"
	"trunkline/matrixcall"
)

// pinScope is where PINs count: at every number that asks for one. A route with a room of its own takes only those that lead there.
const pinScope = "dial-in"

// pinAttempts is how many PINs are drawn before it counts as an error that all of them are taken.
const pinAttempts = 5

// pins are the bridge's PINs: made, checked, and how often somebody may guess.
type pins struct {
	key    func() (pin.Key, error) // read, or made, when first wanted
	digits int
	budget *pin.Budget
	store  *db.Store
}

func newPINs(c config.DialIn, store *db.Store) *pins {
	return &pins{
		key:    sync.OnceValues(func() (pin.Key, error) { return pin.LoadKey(c.PINKey) }),
		digits: c.PINDigits, budget: pin.NewBudget(pin.DefaultRates()), store: store,
	}
}

// sum is what is stored of a PIN.
func (p *pins) sum(typed string) (string, error) {
	key, err := p.key()
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(key.Sum(pinScope, typed)), nil
}

// room returns where a PIN leads from a route with the option asked for, "" for nowhere. Its work is the same for every PIN.
func (p *pins) room(ctx context.Context, asked, target, typed string) (string, error) {
	key, err := p.key()
	if err != nil {
		return "", err
	}
	if asked == config.PINDatabase {
		return p.store.RoomOfPIN(ctx, hex.EncodeToString(key.Sum(pinScope, typed)))
	}
	stored, err := hex.DecodeString(asked)
	if err != nil {
		return "", fmt.Errorf("read the option pin: %w", err)
	}
	if key.Matches(stored, pinScope, typed) {
		return target, nil
	}
	return "", nil
}

// NewPIN makes a PIN, and what an option pin must say for it to be taken, under the key of this config.
func NewPIN(c config.Config) (made, option string, err error) {
	made = pin.New(c.DialIn.PINDigits)
	option, err = newPINs(c.DialIn, nil).sum(made)
	return made, option, err
}

// checkPIN asks whether the PIN leads to a room; the answer is the menu's next event. Who may not guess hears that it is wrong.
func (a *actor) checkPIN(typed menu.Secret) {
	b, trunk := a.bridge, a.info.Trunk
	number := string(b.plan.Local(trunk, a.info.Caller.Number)) // however the trunk has written it this time
	a.bridge.mu.Lock()
	target := a.target
	a.bridge.mu.Unlock()
	verdict := func(kind menu.EventKind, result string) {
		b.metrics.pins.WithLabelValues(result).Inc()
		a.inbox.Put(func() { a.stepMenu(menu.Event{Kind: kind}) })
	}
	a.wg.Go(func() {
		ctx, cancel := context.WithTimeout(a.ctx, databasePatience)
		defer cancel()
		a.keepAccount(func(ctx context.Context) error { return b.pins.recall(ctx, trunk, number) })
		try := b.pins.budget.Take(time.Now(), trunk, number)
		if try == nil {
			a.log.Warn("a PIN is not even checked: too many wrong ones")
			verdict(menu.PINWrong, "over budget")
			return
		}
		room, err := a.roomOfPIN(ctx, target, typed.Reveal())
		switch {
		case err != nil:
			a.log.Error("a PIN can't be checked", "err", err)
			b.pins.budget.Return(try)
			verdict(menu.PINFailed, "failed")
		case room == "":
			a.log.Info("wrong PIN")
			a.keepAccount(func(ctx context.Context) error { return b.pins.wrong(ctx, try) }) // first: a crash must not give the try back
			verdict(menu.PINWrong, "wrong")
		default:
			if known, ok := b.pins.budget.Right(time.Now(), try, room); ok {
				a.keepAccount(func(ctx context.Context) error {
					return b.store.KnowNumber(ctx, time.Now(), pin.NameOfKnown(trunk, number), db.KnownNumber(known), pin.MostKnown)
				})
			}
			a.inbox.Put(func() { a.setTarget(room) })
			verdict(menu.PINRight, "right")
		}
	})
}

// accountPatience is how long the account of who guesses may take: the PIN itself has to be checked, too.
const accountPatience = time.Second

// keepAccount does what keeps account in the database of who guesses, also of one who hangs up meanwhile. While that is away this process
// alone knows.
func (a *actor) keepAccount(do func(context.Context) error) {
	if a.bridge.journal.Away() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), accountPatience)
	defer cancel()
	a.note("keep account of PINs", do(ctx))
}

// recall learns what was guessed before this process, or beside it.
func (p *pins) recall(ctx context.Context, trunk, number string) error {
	known, err := p.store.KnownNumber(ctx, pin.NameOfKnown(trunk, number))
	if err != nil {
		return err
	}
	stored, err := p.store.PINBudget(ctx, p.budget.Names(trunk, number, known.Room))
	if err == nil {
		p.budget.Learn(time.Now(), trunk, number, pin.Known(known), stored)
	}
	return err
}

// wrong stores what a wrong PIN has cost.
func (p *pins) wrong(ctx context.Context, try *pin.Try) error {
	var spend []db.PINSpending
	for _, c := range p.budget.Costs(try) {
		spend = append(spend, db.PINSpending(c))
	}
	return p.store.SpendPINBudget(ctx, time.Now(), spend)
}

// roomOfPIN finds where a PIN leads from the leg's route, "" for nowhere. The route's own room is looked up for every PIN, so that
// the time says nothing.
func (a *actor) roomOfPIN(ctx context.Context, target, typed string) (string, error) {
	if target == config.AnyRoom {
		return a.bridge.pins.room(ctx, a.options.PIN, target, typed)
	}
	own, err := a.bridge.matrix.ResolveRoom(ctx, target)
	if _, unknown := errors.AsType[*matrixcall.RoomError](err); err != nil && !unknown {
		return "", err
	}
	leads, err := a.bridge.pins.room(ctx, a.options.PIN, string(own), typed)
	if err != nil || leads != string(own) {
		return "", err
	}
	return leads, nil
}

// MakePIN makes a PIN that leads to a room, beside those it has. It can't be read again. by is who wants it, "" for an admin.
func (b *Bridge) MakePIN(ctx context.Context, room id.RoomID, by id.UserID) (string, error) {
	return b.makePIN(ctx, room, by, b.store.AddPIN)
}

// renewPIN makes one in place of those that the room has: whoever knows them only is shut out.
func (b *Bridge) renewPIN(ctx context.Context, room id.RoomID, by id.UserID) (string, error) {
	return b.makePIN(ctx, room, by, b.store.ReplacePINs)
}

func (b *Bridge) makePIN(ctx context.Context, room id.RoomID, by id.UserID, put func(context.Context, db.PIN) (bool, error)) (string, error) {
	for range pinAttempts {
		made := pin.New(b.pins.digits)
		sum, err := b.pins.sum(made)
		if err != nil {
			return "", err
		}
		added, err := put(ctx, db.PIN{Sum: sum, RoomID: string(room), CreatedBy: string(by), Created: time.Now()})
		if err != nil {
			return "", err
		}
		if added {
			b.log.Info("a PIN was made", "room", room, "by", by)
			return made, nil
		}
	}
	return "", fmt.Errorf("%d PINs in a row are taken: make them longer", pinAttempts)
}

// RemovePINs takes all PINs of a room away.
func (b *Bridge) RemovePINs(ctx context.Context, room id.RoomID) error {
	b.log.Info("the PINs of a room are taken away", "room", room)
	return b.store.DeletePINs(ctx, string(room))
}

// PINs counts the PINs of a room.
func (b *Bridge) PINs(ctx context.Context, room id.RoomID) (int, error) {
	return b.store.PINs(ctx, string(room))
}

// pinView is what an admin sees.
type pinView struct {
	Room id.RoomID `json:"room"`
	PIN  string    `json:"pin,omitempty"`
	PINs int       `json:"pins"` // that lead to the room

	Numbers []string `json:"numbers"`           // that ask for them
	Problem string   `json:"problem,omitempty"` // why nobody can dial in with them
}

// adminPINs makes a PIN (POST), counts a room's (GET), or takes them away (DELETE).
func (b *Bridge) adminPINs(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	room, err := b.matrix.ResolveRoom(ctx, r.URL.Query().Get("room"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	view := pinView{Room: room}
	switch r.Method {
	case http.MethodPost:
		view.PIN, err = b.MakePIN(ctx, room, "")
	case http.MethodDelete:
		err = b.RemovePINs(ctx, room)
	}
	if err == nil {
		view.PINs, err = b.PINs(ctx, room)
	}
	if err != nil {
		b.failed(w, "PINs of "+string(room), err)
		return
	}
	switch view.Numbers, err = b.numbersWithPINs(ctx, room); {
	case err != nil:
		view.Problem = err.Error()
	case len(view.Numbers) == 0:
		view.Problem = "no number with pin: " + config.PINDatabase + " leads to this room"
	}
	w.Header().Set("Cache-Control", "no-store")
	b.show(w, view)
}
