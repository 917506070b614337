package transcode

import (
	"math"
	"time"
)

// Tone is what a phone is told without words: frequencies and a cadence.
type Tone struct {
	Beats []Beat
	Times int     // how often the beats are played; 0: until stopped
	Level float64 // dBov of each sounding beat; 0: [ToneLevel]
}

// Beat is a part of a tone: silence when it has no frequency.
type Beat struct {
	Hz  [2]float64
	For time.Duration
}

// ToneLevel is −14 dBm0, in the middle of what ITU-T E.180 §6 asks for.
const ToneLevel = -20.0

// Zone says whose tones callers are used to.
type Zone uint8

// Europe's tones are 425 Hz (ETSI TS 102 971), North America's are pairs (ITU-T E.180 supplement 2).
const (
	Europe Zone = iota
	NorthAmerica
)

// Ringback says that the far end is being called: here, that nobody is in the conference yet.
func Ringback(z Zone) Tone {
	if z == NorthAmerica {
		return onOff(440, 480, 2*time.Second, 4*time.Second)
	}
	return onOff(425, 0, time.Second, 4*time.Second)
}

// Busy says that the far end cannot take the call.
func Busy(z Zone) Tone {
	if z == NorthAmerica {
		return onOff(480, 620, 500*time.Millisecond, 500*time.Millisecond)
	}
	return onOff(425, 0, 500*time.Millisecond, 500*time.Millisecond)
}

// Congestion says that the call failed on its way.
func Congestion(z Zone) Tone {
	if z == NorthAmerica {
		return onOff(480, 620, 250*time.Millisecond, 250*time.Millisecond)
	}
	return onOff(425, 0, 250*time.Millisecond, 250*time.Millisecond)
}

// Information is the special information tone of ITU-T E.180 §7, the same everywhere: the number leads nowhere.
func Information() Tone {
	const third = 330 * time.Millisecond
	return Tone{Beats: []Beat{
		{[2]float64{950}, third}, {[2]float64{1400}, third}, {[2]float64{1800}, third}, {For: time.Second},
	}}
}

func onOff(a, b float64, on, off time.Duration) Tone {
	return Tone{Beats: []Beat{{[2]float64{a, b}, on}, {For: off}}}
}

// Player plays one tone. The zero value is silent and over.
type Player struct {
	tone  Tone
	beat  int
	done  int // samples of the beat
	round int
	phase [2]uint32
	step  [2]uint32
	peak  int
}

// Play starts a tone from its beginning. A tone that lasts no time is over at once.
func (p *Player) Play(t Tone) {
	*p = Player{tone: t}
	total := 0
	for _, b := range t.Beats {
		total += beatSamples(b)
	}
	if total == 0 {
		p.tone = Tone{}
		return
	}
	p.start()
}

// Playing reports whether the tone goes on.
func (p *Player) Playing() bool { return len(p.tone.Beats) > 0 }

// Stop ends the tone.
func (p *Player) Stop() { *p = Player{} }

// Read writes the next samples and reports whether any of them sounds. What follows the end is silence.
func (p *Player) Read(pcm []int16) bool {
	clear(pcm)
	sounds := false
	for len(pcm) > 0 && p.Playing() {
		b := p.tone.Beats[p.beat]
		length := beatSamples(b)
		n := min(len(pcm), length-p.done)
		if p.peak > 0 {
			p.sound(pcm[:n], length)
			sounds = true
		}
		p.done += n
		pcm = pcm[n:]
		if p.done == length {
			p.next()
		}
	}
	return sounds
}

// sound adds the frequencies of the beat, its edges rounded so that they do not click.
func (p *Player) sound(pcm []int16, length int) {
	for i := range pcm {
		x := 0
		for k, step := range p.step {
			if step > 0 {
				x += int(sines[p.phase[k]>>22])
				p.phase[k] += step
			}
		}
		edge := min(p.done+i, length-1-p.done-i, rampSamples)
		pcm[i] = saturate(x * p.peak / 32767 * edge / rampSamples)
	}
}

func (p *Player) next() {
	p.done = 0
	if p.beat++; p.beat == len(p.tone.Beats) {
		p.beat = 0
		if p.round++; p.round == p.tone.Times {
			p.Stop()
			return
		}
	}
	p.start()
}

// start prepares a beat: its frequencies share the level.
func (p *Player) start() {
	voices := 0.0
	for k, hz := range p.tone.Beats[p.beat].Hz {
		p.step[k] = 0
		p.phase[k] = 0
		if hz > 0 && hz < Rate/2 {
			p.step[k] = uint32(hz / Rate * (1 << 32))
			voices++
		}
	}
	p.peak = 0
	if voices > 0 {
		level := p.tone.Level
		if level == 0 {
			level = ToneLevel
		}
		p.peak = int(min(32767, 32768*math.Pow(10, level/20)*math.Sqrt(2/voices)))
	}
}

func beatSamples(b Beat) int { return max(0, int(b.For*Rate/time.Second)) }

var sines = func() *[1024]int16 {
	table := new([1024]int16)
	for i := range table {
		table[i] = int16(math.Round(32767 * math.Sin(2*math.Pi*float64(i)/float64(len(table)))))
	}
	return table
}()
