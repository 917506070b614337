package pin

import (
	"container/list"
	"fmt"
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
	Trunk     Rate // by all numbers of a trunk: numbers can be forged; those that know a PIN have as much together, and strangers
	All       Rate // likewise
}

// DefaultRates let an honest person mistype and let a thief try about two thousand PINs a day, of a million or more.
func DefaultRates() Rates {
	return Rates{
		Number:    Rate{Burst: 6, Every: 10 * time.Minute},
		Anonymous: Rate{Burst: 20, Every: 2 * time.Minute},
		Trunk:     Rate{Burst: 60, Every: time.Minute},
		All:       Rate{Burst: 200, Every: 40 * time.Second},
	}
}

// most is how many buckets are remembered. Forging more numbers than that empties the trunk's bucket long before.
const most = 10_000

// KnownFor is how long a number counts as one that knows a PIN.
const KnownFor = 30 * 24 * time.Hour

// Budget limits guessing. All legs share one; its methods may be called from any goroutine. Time is an argument. What it must
// remember when the process dies it says, and is told again: of each bucket when it will be full.
//
//	budget.Learn(now, what is stored under budget.Names(trunk, number))
//	if !budget.Take(now, trunk, number) { … }
//	// wrong: each of budget.Costs(trunk, number) is stored before the caller is told
//	// right: budget.Right(now, trunk, number), and what it returns is stored
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
	known time.Time // until then the number is one that has entered a right PIN
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

// Take takes one try from each bucket that counts, or none if one of them is empty. It is taken before the check, not after
// a wrong answer, so that many calls at once don't get more.
func (b *Budget) Take(now time.Time, trunk, number string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	counting := b.counting(now, trunk, number)
	for _, k := range counting {
		if k.full.Sub(now) > time.Duration(k.rate.Burst-1)*k.rate.Every {
			return false
		}
	}
	for _, k := range counting {
		k.full = later(k.full, now).Add(k.rate.Every)
	}
	return true
}

// Return gives a try back: the PIN could not be checked.
func (b *Budget) Return(now time.Time, trunk, number string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveBack(now, trunk, number)
}

// giveBack is called with mu held.
func (b *Budget) giveBack(now time.Time, trunk, number string) {
	for _, k := range b.counting(now, trunk, number) {
		k.full = k.full.Add(-k.rate.Every)
	}
}

// Right gives a try back and remembers the number: who knew a PIN once is not shut out when a stranger guesses on the
// same trunk. A thief who forges such numbers, or has made many of them known by the one PIN that they have, still has only the buckets of
// those. It returns the name under which the end of that is to be stored, ""
// for nobody's.
func (b *Budget) Right(now time.Time, trunk, number string) (name string, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveBack(now, trunk, number)
	if number == "" {
		return "", time.Time{}
	}
	until = now.Add(KnownFor)
	b.ofNumber(trunk, number).known = until
	return nameOfKnown(trunk, number), until
}

// Costs is what a wrong PIN of a caller takes.
func (b *Budget) Costs(now time.Time, trunk, number string) (costs []Cost) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range b.counting(now, trunk, number) {
		costs = append(costs, Cost{k.name, k.rate.Every})
	}
	return costs
}

// Names are those under which something may be stored that counts for a caller.
func (b *Budget) Names(trunk, number string) []string {
	names := []string{nameOfNumber(trunk, number), nameOfKnown(trunk, number)}
	for _, known := range []bool{false, true} {
		names = append(names, nameOfTrunk(trunk, known), nameOfAll(known))
	}
	return names
}

// Learn takes what is stored under the Names of a caller, by processes before and beside this one. It makes no bucket fuller, and none emptier than empty:
// a clock may have been wrong.
func (b *Budget) Learn(now time.Time, trunk, number string, stored map[string]time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	own := b.ofNumber(trunk, number)
	if until := stored[nameOfKnown(trunk, number)]; number != "" && !until.After(now.Add(KnownFor)) {
		own.known = later(own.known, until)
	}
	for _, k := range append(append(b.common(trunk, false), b.common(trunk, true)...), own) {
		if full, empty := stored[k.name], now.Add(time.Duration(k.rate.Burst)*k.rate.Every); full.After(empty) {
			k.full = later(k.full, empty)
		} else {
			k.full = later(k.full, full)
		}
	}
}

// counting returns the buckets that count for a caller. Called with mu held.
func (b *Budget) counting(now time.Time, trunk, number string) []*bucket {
	own := b.ofNumber(trunk, number)
	return append([]*bucket{own}, b.common(trunk, own.known.After(now))...)
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

// Names are quoted, so that no number that somebody makes up is another trunk's.
func nameOfAll(known bool) string { return fmt.Sprintf("all, known %t", known) }

func nameOfTrunk(trunk string, known bool) string {
	return fmt.Sprintf("trunk %q, known %t", trunk, known)
}

func nameOfNumber(trunk, number string) string { return fmt.Sprintf("number %q %q", trunk, number) }

func nameOfKnown(trunk, number string) string { return fmt.Sprintf("known %q %q", trunk, number) }

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
