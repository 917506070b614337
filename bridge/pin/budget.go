package pin

import (
	"container/list"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Rate is a token bucket: so many wrong PINs at once, and one more after each Every.
type Rate struct {
	Burst int
	Every time.Duration // more than 0
}

// Rates are how often PINs may be guessed.
type Rates struct {
	Number Rate // by one number on one trunk
	// Anonymous is by all callers of a trunk without a number: they can't be told apart. It is slower than Trunk, so that they alone never
	// shut out callers with a number.
	Anonymous Rate
	// Trunk is by all numbers of a trunk, which can be forged, and All by those of all trunks. Numbers that know a PIN have as much
	// together as strangers have.
	Trunk, All Rate
	// Room is by all numbers of a trunk that know a PIN of one room: who has that PIN, and makes numbers known by it, shuts out none that
	// know another room's.
	Room Rate
}

// DefaultRates let an honest person mistype. A thief can try about two thousand PINs a day, of a million or more; three hundred more who
// has the PIN of one room, and as many again at most who has those of several.
func DefaultRates() Rates {
	return Rates{
		Number:    Rate{Burst: 6, Every: 10 * time.Minute},
		Anonymous: Rate{Burst: 20, Every: 2 * time.Minute},
		Trunk:     Rate{Burst: 60, Every: time.Minute},
		All:       Rate{Burst: 200, Every: 40 * time.Second},
		Room:      Rate{Burst: 20, Every: 5 * time.Minute},
	}
}

// most is how many buckets are remembered. Forging more numbers than that empties the trunk's bucket long before.
const most = 10_000

// KnownFor is how long a number counts as one that knows a PIN, from the last time it was right.
const KnownFor = 30 * 24 * time.Hour

// MostKnown is how many numbers are kept that know a PIN of one room.
const MostKnown = 100

// Budget limits guessing. All legs share one; its methods may be called from any goroutine. Time is an argument. What it must
// remember when the process dies it says, and is told again: of each bucket when it will be full.
//
//	budget.Learn(now, trunk, number, known, what is stored under budget.Names(trunk, number, known.Room))
//	try := budget.Take(now, trunk, number)
//	if try == nil { … }
//	// wrong: each of budget.Costs(try) is stored before the caller is told
//	// right: budget.Right(now, try, room), and what it returns is stored
type Budget struct {
	rates Rates

	mu      sync.Mutex
	buckets map[string]*list.Element // by name
	used    *list.List               // of *bucket, least lately used first
}

// bucket has what is missing since it was last full as the moment when it will be full.
type bucket struct {
	name  string
	rate  Rate
	full  time.Time
	known Known // of a number
}

// Known is a number that has entered the right PIN of a room, and until when that counts.
type Known struct {
	Room  string
	Until time.Time
}

// Try is one guess that was allowed, and what it was taken from.
type Try struct {
	trunk, number string
	from          []*bucket
}

// Cost is what a wrong PIN takes from a bucket: it will be full so much later.
type Cost struct {
	Name  string
	Later time.Duration
}

// NewBudget is full.
func NewBudget(rates Rates) *Budget {
	return &Budget{rates: rates, buckets: make(map[string]*list.Element), used: list.New()}
}

// Take takes one try from each bucket that counts, or none, and returns nil, if one of them is empty. It is taken before the check, not
// after a wrong answer, so that many calls at once don't get more. Numbers that know a PIN count as such, and as strangers when others like
// them have used that up.
func (b *Budget) Take(now time.Time, trunk, number string) *Try {
	b.mu.Lock()
	defer b.mu.Unlock()
	own := b.ofNumber(trunk, number)
	ways := [][]*bucket{b.common(trunk, false)}
	if own.known.Until.After(now) {
		ways = [][]*bucket{append(b.common(trunk, true), b.ofRoom(trunk, own.known.Room)), ways[0]}
	}
	for _, way := range ways {
		from := append(way, own)
		if slices.ContainsFunc(from, func(k *bucket) bool { return k.empty(now) }) {
			continue
		}
		for _, k := range from {
			k.full = later(k.full, now).Add(k.rate.Every)
		}
		return &Try{trunk, number, from}
	}
	return nil
}

func (k *bucket) empty(now time.Time) bool {
	return k.full.Sub(now) > time.Duration(k.rate.Burst-1)*k.rate.Every
}

// Return gives a try back: the PIN could not be checked.
func (b *Budget) Return(try *Try) {
	b.mu.Lock()
	defer b.mu.Unlock()
	try.giveBack()
}

// giveBack is called with mu held.
func (t *Try) giveBack() {
	for _, k := range t.from {
		k.full = k.full.Add(-k.rate.Every)
	}
}

// Right gives a try back and remembers whose PIN the number knows: it is not shut out when strangers guess on the same trunk, nor when
// somebody does who knows another room's. The first room stays as long as its PIN is entered from time to time. It returns what is to be
// stored under the name of NameOfKnown; ok is false when there is nothing.
func (b *Budget) Right(now time.Time, try *Try, room string) (known Known, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	try.giveBack()
	own := b.ofNumber(try.trunk, try.number)
	if try.number == "" || own.known.Until.After(now) && own.known.Room != room {
		return Known{}, false
	}
	own.known = Known{room, now.Add(KnownFor)}
	return own.known, true
}

// Costs is what a wrong PIN has taken.
func (b *Budget) Costs(try *Try) (costs []Cost) {
	for _, k := range try.from {
		costs = append(costs, Cost{k.name, k.rate.Every})
	}
	return costs
}

// Names are those under which something may be stored that counts for a caller; room is whose PIN it knows, "" for none.
func (b *Budget) Names(trunk, number, room string) []string {
	names := []string{nameOfNumber(trunk, number)}
	for _, known := range []bool{false, true} {
		names = append(names, nameOfTrunk(trunk, known), nameOfAll(known))
	}
	if room != "" {
		names = append(names, nameOfRoom(trunk, room))
	}
	return names
}

// Learn takes what is stored of a caller, and under the Names of it, by processes before and beside this one. It makes no bucket fuller, and
// none emptier than empty: a clock may have been wrong.
func (b *Budget) Learn(now time.Time, trunk, number string, known Known, stored map[string]time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	own := b.ofNumber(trunk, number)
	if number != "" && known.Until.After(own.known.Until) && !known.Until.After(now.Add(KnownFor)) {
		own.known = known
	}
	counting := append(append(b.common(trunk, false), b.common(trunk, true)...), own)
	if known.Room != "" {
		counting = append(counting, b.ofRoom(trunk, known.Room))
	}
	for _, k := range counting {
		if full, empty := stored[k.name], now.Add(time.Duration(k.rate.Burst)*k.rate.Every); full.After(empty) {
			k.full = later(k.full, empty)
		} else {
			k.full = later(k.full, full)
		}
	}
}

// ofNumber returns the bucket of a caller. Called with mu held.
func (b *Budget) ofNumber(trunk, number string) *bucket {
	rate := b.rates.Number
	if number == "" {
		rate = b.rates.Anonymous
	}
	return b.bucket(nameOfNumber(trunk, number), rate)
}

// common returns the buckets that all numbers of a trunk share that know a PIN, or don't. Called with mu held.
func (b *Budget) common(trunk string, known bool) []*bucket {
	return []*bucket{b.bucket(nameOfTrunk(trunk, known), b.rates.Trunk), b.bucket(nameOfAll(known), b.rates.All)}
}

// ofRoom returns the bucket of all numbers of a trunk that know a PIN of a room. Called with mu held.
func (b *Budget) ofRoom(trunk, room string) *bucket {
	return b.bucket(nameOfRoom(trunk, room), b.rates.Room)
}

// Names are quoted, so that no number that somebody makes up is another trunk's.
func nameOfAll(known bool) string { return fmt.Sprintf("all, known %t", known) }

func nameOfTrunk(trunk string, known bool) string {
	return fmt.Sprintf("trunk %q, known %t", trunk, known)
}

func nameOfNumber(trunk, number string) string { return fmt.Sprintf("number %q %q", trunk, number) }

func nameOfRoom(trunk, room string) string { return fmt.Sprintf("room %q %q", trunk, room) }

// NameOfKnown is where it is stored whose PIN a number knows.
func NameOfKnown(trunk, number string) string { return fmt.Sprintf("known %q %q", trunk, number) }

func (b *Budget) bucket(name string, rate Rate) *bucket {
	if e := b.buckets[name]; e != nil {
		b.used.MoveToBack(e)
		return e.Value.(*bucket)
	}
	if b.used.Len() >= most {
		oldest := b.used.Front()
		delete(b.buckets, oldest.Value.(*bucket).name)
		b.used.Remove(oldest)
	}
	k := &bucket{name: name, rate: rate}
	b.buckets[name] = b.used.PushBack(k)
	return k
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
