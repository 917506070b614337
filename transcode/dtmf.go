package transcode

import (
	"math"
	"time"
)

// digits in the order of ITU-T Q.23: four rows of low, four columns of high frequencies.
const digits = "123A456B789C*0#D"

var dtmfHz = [8]float64{697, 770, 852, 941, 1209, 1336, 1477, 1633}

// DTMF is a digit of ITU-T Q.23, sounding as long as told; false when the rune is no digit.
func DTMF(digit rune, d time.Duration) (Tone, bool) {
	for i, r := range digits {
		if r == digit {
			pair := [2]float64{dtmfHz[i/4], dtmfHz[4+i%4]}
			return Tone{Beats: []Beat{{pair, d}, {For: 40 * time.Millisecond}}, Times: 1}, true
		}
	}
	return Tone{}, false
}

// How a digit is told from speech, after ITU-T Q.24: a digit lasts at least 40 ms, of which two whole blocks are heard.
const (
	dtmfBlock = 102 // samples: 78 Hz wide
	dtmfLeast = 1e4 // mean square of each of the two frequencies: −50 dBFS
	dtmfTwist = 8.0 // one of the two may be that much stronger: 9 dB
	dtmfPeak  = 5.0 // and must be that much stronger than its neighbours: 7 dB
	dtmfPure  = 0.8 // of all power is in the two
	dtmfKeep  = 0.6 // as long as the digit is being pressed
	dtmfCalm  = 1.6 // the power may change by that much from block to block: 2 dB; voices do not stand so still
	dtmfHits  = 2   // blocks in a row begin a digit
	dtmfMiss  = 2   // blocks in a row end it
)

// DigitDetector hears digits in sound at the desk's rate, for trunks that carry them in no better way. The zero value
// is ready.
type DigitDetector struct {
	state  [8][2]float64 // Goertzel
	power  float64
	n      int
	last   byte // digit of the block before, 0: none
	low    float64
	high   float64 // powers of the block before
	hits   int
	misses int
	held   byte // digit being pressed
}

// Hear takes the next samples, at most a frame, and returns a digit that has just begun.
func (d *DigitDetector) Hear(pcm []int16) (digit rune, ok bool) {
	for _, x := range pcm {
		v := float64(x)
		d.power += v * v
		for k := range d.state {
			s := &d.state[k]
			s[0], s[1] = v+dtmfTurns[k]*s[0]-s[1], s[0]
		}
		if d.n++; d.n == dtmfBlock {
			if b := d.begins(d.block()); b != 0 {
				digit, ok = rune(b), true
			}
		}
	}
	return digit, ok
}

// begins follows the digits of the blocks and returns one when it begins.
func (d *DigitDetector) begins(now byte, steady bool) byte {
	if now == d.last && steady {
		d.hits++
	} else {
		d.last, d.hits = now, 1
	}
	if now == d.held && now != 0 {
		d.misses = 0
		return 0
	}
	if d.misses++; d.misses >= dtmfMiss {
		d.held = 0
	}
	if now != 0 && d.hits >= dtmfHits {
		d.held, d.misses = now, 0
		return now
	}
	return 0
}

// block returns the digit of a block, 0 when there is none, and whether it is as strong as the one before.
func (d *DigitDetector) block() (digit byte, steady bool) {
	var p [8]float64
	for k, s := range d.state {
		p[k] = (s[0]*s[0] + s[1]*s[1] - dtmfTurns[k]*s[0]*s[1]) * 2 / (dtmfBlock * dtmfBlock)
	}
	total := d.power / dtmfBlock
	d.state, d.power, d.n = [8][2]float64{}, 0, 0

	row, low := strongest(p[:4])
	column, high := strongest(p[4:])
	pure := dtmfPure
	if d.held != 0 {
		pure = dtmfKeep
	}
	steady = near(low, d.low) && near(high, d.high)
	d.low, d.high = low, high
	switch {
	case low < dtmfLeast || high < dtmfLeast,
		low > high*dtmfTwist || high > low*dtmfTwist,
		low+high < total*pure,
		row < 0 || column < 0:
		return 0, steady
	}
	return digits[4*row+column], steady
}

func near(a, b float64) bool { return a < b*dtmfCalm && b < a*dtmfCalm }

// strongest returns the index of the strongest frequency, −1 when another is nearly as strong.
func strongest(p []float64) (index int, power float64) {
	for k, v := range p {
		if v > power {
			index, power = k, v
		}
	}
	for k, v := range p {
		if k != index && v*dtmfPeak > power {
			return -1, power
		}
	}
	return index, power
}

var dtmfTurns = func() (t [8]float64) {
	for k, hz := range dtmfHz {
		t[k] = 2 * math.Cos(2*math.Pi*hz/Rate)
	}
	return t
}()
