package pin

import (
	"container/list"
	"sync"
	"time"
)

// Rate is a token bucket: so many wrong PINs at once, and one more after each Every.
type Rate struct {
	Burst int
	Every time.Duration
}

// Rates are how often PINs may be guessed.
type Rates struct {
	Number Rate // by one number on one trunk; callers without a number are one
	Trunk  Rate // by all numbers of a trunk: numbers can be forged
	All    Rate
}

// DefaultRates let an honest person mistype and let a thief try about two thousand PINs a day, of a million or more.
func DefaultRates() Rates {
	return Rates{
		Number: Rate{Burst: 6, Every: 10 * time.Minute},
		Trunk:  Rate{Burst: 60, Every: time.Minute},
		All:    Rate{Burst: 200, Every: 40 * time.Second},
	}
}

// most is how many buckets are remembered. Forging more numbers than that empties the trunk's bucket long before.
const most = 10_000

// Budget limits guessing. All legs share one; its methods may be called from any goroutine. Time is an argument.
type Budget struct {
	rates Rates

	mu      sync.Mutex
	buckets map[source]*list.Element
	used    *list.List // of *bucket, least lately used first
}

type source struct{ trunk, number string }

type bucket struct {
	source source
	rate   Rate
	tokens float64
	at     time.Time
	known  bool // the number has entered a right PIN
}

// NewBudget is full.
func NewBudget(rates Rates) *Budget {
	return &Budget{rates: rates, buckets: make(map[source]*list.Element), used: list.New()}
}

// Take takes one try from each bucket that counts, or none if one of them is empty. It is taken before the check, not after
// a wrong answer, so that many calls at once don't get more.
func (b *Budget) Take(now time.Time, trunk, number string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	counting := b.counting(now, trunk, number)
	for _, k := range counting {
		if k.tokens < 1 {
			return false
		}
	}
	for _, k := range counting {
		k.tokens--
	}
	return true
}

// Return gives a try back: the PIN could not be checked.
func (b *Budget) Return(now time.Time, trunk, number string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range b.counting(now, trunk, number) {
		k.tokens = min(k.tokens+1, float64(k.rate.Burst))
	}
}

// Right gives a try back and remembers the number: who knew a PIN once is not shut out when somebody else guesses on the
// same trunk. A thief who forges that number still has only its bucket.
func (b *Budget) Right(now time.Time, trunk, number string) {
	b.Return(now, trunk, number)
	b.mu.Lock()
	defer b.mu.Unlock()
	if number != "" {
		b.ofNumber(now, trunk, number).known = true
	}
}

// counting returns the buckets that count for a caller, refilled. Called with mu held.
func (b *Budget) counting(now time.Time, trunk, number string) []*bucket {
	own := b.ofNumber(now, trunk, number)
	if own.known {
		return []*bucket{own}
	}
	return []*bucket{
		own,
		b.bucket(now, source{"trunk " + trunk, ""}, b.rates.Trunk),
		b.bucket(now, source{"all", ""}, b.rates.All),
	}
}

func (b *Budget) ofNumber(now time.Time, trunk, number string) *bucket {
	return b.bucket(now, source{"number " + trunk, number}, b.rates.Number)
}

func (b *Budget) bucket(now time.Time, of source, rate Rate) *bucket {
	if e := b.buckets[of]; e != nil {
		b.used.MoveToBack(e)
		k := e.Value.(*bucket)
		k.refill(now)
		return k
	}
	if b.used.Len() >= most {
		oldest := b.used.Front()
		delete(b.buckets, oldest.Value.(*bucket).source)
		b.used.Remove(oldest)
	}
	k := &bucket{source: of, rate: rate, tokens: float64(rate.Burst), at: now}
	b.buckets[of] = b.used.PushBack(k)
	return k
}

// refill adds what time brought. Calls may be a little out of order; the same time never fills a bucket twice.
func (k *bucket) refill(now time.Time) {
	since := now.Sub(k.at)
	if since <= 0 || k.rate.Every <= 0 {
		return
	}
	k.tokens = min(k.tokens+float64(since)/float64(k.rate.Every), float64(k.rate.Burst))
	k.at = now
}
