package sip

import (
	"slices"
	"time"
)

// keyWay tells keys from their copies: a gateway may send each as an RFC 4733 event and as INFO. A key is a copy when the same one
// came the other way shortly before. Where one was, the trunk's way counts alone from then on, until the phone has described
// itself anew, for it may be another one. Its zero value is for a trunk whose keys are events.
type keyWay struct {
	info   bool // INFO is the trunk's way
	both   bool // keys come both ways
	recent []countedKey
}

// countedKey has counted, and no copy of it has come.
type countedKey struct {
	key  byte
	from DigitSource
	at   time.Time
}

// copyWithin is how far behind a copy may be: an event begins with the press, INFO leaves at its end, and may be repeated.
const copyWithin = 2 * time.Second

// counts says whether a key is a press of its own.
func (w *keyWay) counts(key byte, from DigitSource, now time.Time) bool {
	w.recent = slices.DeleteFunc(w.recent, func(c countedKey) bool { return now.Sub(c.at) >= copyWithin })
	if i := slices.IndexFunc(w.recent, func(c countedKey) bool { return c.key == key && c.from != from }); i >= 0 {
		w.recent = slices.Delete(w.recent, i, i+1)
		w.both = true
		return false
	}
	if w.both && (from == FromINFO) != w.info {
		return false
	}
	w.recent = append(w.recent, countedKey{key, from, now})
	return true
}

// pressed tells of a key of the phone.
func (c *Call) pressed(key byte, from DigitSource) {
	c.keyWay.info = c.trunk != nil && c.trunk.DTMF == DTMFInfo
	if c.keyWay.counts(key, from, time.Now()) {
		c.emit(Digit{key, from})
	}
}
