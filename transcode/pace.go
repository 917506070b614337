package transcode

import "time"

// How long packets of a source are held. All times inside the package are nanoseconds since the desk's first call.
const (
	minTarget   = int64(10 * time.Millisecond)
	maxTarget   = int64(120 * time.Millisecond)
	firstTarget = int64(20 * time.Millisecond)

	paceBucket   = int64(5 * time.Millisecond)
	paceBuckets  = 32
	paceQuantile = 0.97
	paceForget   = 0.985 // per packet: what was, is half forgotten in a second of speech
	paceWarmUp   = 10    // packets before the histogram is trusted

	paceBunch = int64(3 * time.Millisecond)

	floorSlots   = 8
	floorPackets = 25 // packets in each slot: the floor looks back 4 s of speech
)

// pace learns how unevenly the packets of a stream arrive and says how long to hold them.
//
// The delay of a packet is its arrival minus its media time; both clocks have arbitrary zeros, so only differences
// count: the floor is the least delay of late, and a histogram with forgetting of (delay − floor) gives the target.
// A far clock that drifts moves the floor, which is how drift is seen.
type pace struct {
	packets int64
	came    int64 // when the last packet came, and how late
	late    int64
	floors  [floorSlots]int64
	floor   int64
	origin  int64 // floor that hist counts from, up to a bucket below floor
	hist    [paceBuckets]float64
	weight  float64 // of the next packet; grows instead of shrinking all buckets
	target  int64
}

func (p *pace) reset() { *p = pace{weight: 1, target: firstTarget} }

// add takes note of a packet with media time at that came now. Of a bunch only the first counts: those behind it were
// held up by the same thing, and less.
func (p *pace) add(at, now int64) {
	delay := delayOf(at, now)
	p.lower(delay)
	p.follow()
	late := delay - p.floor
	if p.packets == 0 || now-p.came > paceBunch || late > p.late {
		p.hist[min(late/paceBucket, paceBuckets-1)] += p.weight
		p.weight /= paceForget
	}
	p.came, p.late = now, late
	if p.weight > 1e12 {
		p.rescale()
	}
	p.packets++
	if p.packets >= paceWarmUp && (p.packets%4 == 0 || late > p.target) {
		p.target = p.quantile()
	}
}

// lower keeps the floor: the least delay in each of the last slots.
func (p *pace) lower(delay int64) {
	if p.packets == 0 {
		for i := range p.floors {
			p.floors[i] = delay
		}
		p.floor = delay
		return
	}
	slot := &p.floors[p.packets/floorPackets%floorSlots]
	if p.packets%floorPackets == 0 {
		*slot = delay
	}
	*slot = min(*slot, delay)
	p.floor = p.floors[0]
	for _, f := range p.floors[1:] {
		p.floor = min(p.floor, f)
	}
}

// follow moves the histogram with a floor that has risen: what lay above the old floor lies that much less above the
// new one. A floor that falls says nothing about packets to come, and leaves it alone.
func (p *pace) follow() {
	rise := (p.floor - p.origin) / paceBucket
	if p.packets == 0 || rise < 0 {
		p.origin = p.floor
		return
	}
	if rise == 0 {
		return
	}
	p.origin += rise * paceBucket
	n := int(min(rise, paceBuckets-1))
	low := 0.0
	for _, w := range p.hist[:n] {
		low += w
	}
	copy(p.hist[:], p.hist[n:])
	clear(p.hist[paceBuckets-n:])
	p.hist[0] += low
}

func (p *pace) rescale() {
	for i := range p.hist {
		p.hist[i] /= p.weight
	}
	p.weight = 1
}

func (p *pace) quantile() int64 {
	total := 0.0
	for _, w := range p.hist {
		total += w
	}
	sum := 0.0
	for i, w := range p.hist {
		if sum += w; sum >= total*paceQuantile {
			return min(max(int64(i+1)*paceBucket, minTarget), maxTarget)
		}
	}
	return maxTarget
}
