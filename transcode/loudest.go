package transcode

import (
	"cmp"
	"slices"

	"github.com/pion/rtp"
)

// How devices are chosen for decoding by the level they announce.
const (
	levelFall    = 1   // dB a frame: a speaker is remembered through short pauses
	levelBonus   = 6   // dB: who is chosen stays so against those not much louder
	levelHold    = 13  // frames: who is chosen stays so for a quarter of a second
	levelNothing = -90 // dBov: not worth decoding
)

// loudness is what a device says of its own level, RFC 6464. A device that says nothing is always decoded.
type loudness struct {
	known bool
	level int // dBov, falling slowly
	held  int // frames the device stays chosen
	out   bool
}

// announce takes the level in a packet's header extension of the given id; 0 is none.
func (l *loudness) announce(h *rtp.Header, id uint8) {
	if id == 0 || !h.Extension {
		return
	}
	ext := h.GetExtension(id)
	if len(ext) == 0 {
		return
	}
	if !l.known {
		l.known, l.level = true, minLevel
	}
	l.level = max(l.level, -int(ext[0]&0x7F)) // RFC 6464 §3: the other bit is a guess whether it is voice
}

func (l *loudness) fall() {
	l.level = max(l.level-levelFall, minLevel)
	l.held = max(l.held-1, 0)
}

// rank is the level with which a device competes.
func (l *loudness) rank() int {
	switch {
	case !l.known || l.held > 0:
		return 1
	case l.out:
		return l.level
	}
	return l.level + levelBonus
}

// chooseLoudest marks who is not decoded in this frame: all but the loudest, and those that say they are silent.
func (d *Desk) chooseLoudest() {
	if d.options.Loudest <= 0 {
		return
	}
	slices.SortStableFunc(d.ranked, func(a, b *Device) int { return cmp.Compare(b.loudness.rank(), a.loudness.rank()) })
	chosen := 0
	for _, dev := range d.ranked {
		l := &dev.loudness
		if l.known {
			out := chosen >= d.options.Loudest || l.level <= levelNothing
			if l.out && !out {
				l.held = levelHold
			}
			l.out = out
			if !out {
				chosen++
			}
		}
		l.fall()
	}
}
