// Package speech makes test voices: sound with the properties of speech (pitch that moves, formants, syllables, pauses,
// hiss), the same on every machine, needing no recording and no program.
//
// Different voices have little in common: their correlation stays below 0.16 at any delay. Where espeak-ng is installed
// [Espeak] speaks real words.
package speech

import (
	"math"
	"math/rand/v2"
	"time"

	"trunkline/internal/testbed/listen"
)

// Voice is one speaker. Each has its own pitch, mouth and text.
type Voice struct {
	Name   string
	Pitch  float64 // Hz, on average
	Throat float64 // scales the formants: below 1 a large speaker, above a small one
	Seed   uint64
}

// Some speakers.
var (
	Alice = Voice{Name: "alice", Pitch: 207, Throat: 1.16, Seed: 11}
	Bob   = Voice{Name: "bob", Pitch: 113, Throat: 1.0, Seed: 23}
	Carol = Voice{Name: "carol", Pitch: 181, Throat: 1.09, Seed: 37}
	Dave  = Voice{Name: "dave", Pitch: 94, Throat: 0.93, Seed: 51}
)

const (
	// Level is the level of all voices: root mean square over the whole, in dB below overload.
	Level = -20.0

	// rate and top keep the voices within what a phone carries; higher rates get the same sound.
	rate = 8000
	top  = 3400
)

// PCM returns d of speech at the given rate, 16 bit mono. The same voice says the same at every rate.
func (v Voice) PCM(at int, d time.Duration) []int16 {
	n := int(d.Seconds() * rate)
	out := make([]float64, 0, n+rate)
	m := mouth{throat: v.Throat, rng: rand.New(rand.NewPCG(v.Seed, v.Seed<<7))}
	for len(out) < n {
		out = m.syllable(out, v.Pitch)
	}
	return listen.Resample(normalise(out[:n]), rate, at)
}

// vowels are the first three formants in Hz.
var vowels = [...]formants{
	{730, 1090, 2440},
	{530, 1840, 2480},
	{390, 1990, 2550},
	{270, 2290, 3010},
	{570, 840, 2410},
	{440, 1020, 2240},
	{300, 870, 2240},
	{640, 1190, 2390},
	{490, 1350, 1690},
}

type formants [3]float64

// glide is the mouth on its way from one vowel to another.
func (f formants) glide(to formants, t float64) formants {
	for k := range f {
		f[k] += (to[k] - f[k]) * t
	}
	return f
}

// gain weighs a frequency by its distance to the formants.
func (f formants) gain(hz float64) float64 {
	sum := 0.0
	for k, centre := range f {
		d := (hz - centre) / (60 + 40*float64(k))
		sum += 1 / (1 + d*d) / float64(k+1)
	}
	return sum
}

// mouth speaks.
type mouth struct {
	throat float64
	rng    *rand.Rand
	phase  float64 // of the glottis, in turns
	hiss   [3]float64
}

// syllable appends a consonant that hisses (sometimes), a vowel gliding to another, and a pause (mostly short).
func (m *mouth) syllable(out []float64, pitch float64) []float64 {
	loud := m.between(0.5, 1)
	if m.rng.Float64() < 0.6 {
		out = m.consonant(out, m.between(0.02, 0.08), 0.12*loud)
	}
	out = m.vowel(out, m.between(0.09, 0.25), loud, pitch*m.between(0.8, 1.25))
	pause := m.between(0, 0.02)
	if m.rng.Float64() < 0.12 {
		pause = m.between(0.15, 0.5)
	}
	return append(out, make([]float64, int(pause*rate))...)
}

func (m *mouth) vowel(out []float64, seconds, loud, pitch float64) []float64 {
	slope := m.between(-0.25, 0.25)
	from, to := vowels[m.rng.IntN(len(vowels))], vowels[m.rng.IntN(len(vowels))]
	n := int(seconds * rate)
	shiver := 1.0
	for i := range n {
		t := float64(i) / float64(n)
		if i%40 == 0 {
			shiver = m.between(0.985, 1.015)
		}
		f := pitch * (1 + slope*(t-0.5)) * shiver
		m.phase += f / rate
		m.phase -= math.Floor(m.phase)
		out = append(out, loud*arch(t)*voiced(from.glide(to, t), f/m.throat, m.throat, m.phase))
	}
	return out
}

// voiced sums the harmonics of the glottis through the mouth.
func voiced(mouth formants, pitch, throat, phase float64) float64 {
	x := 0.0
	for i, slope := range slopes {
		h := float64(i + 1)
		if h*pitch*throat >= top {
			break
		}
		x += mouth.gain(h*pitch) * slope * math.Sin(2*math.Pi*h*phase+0.7*h*h)
	}
	return x
}

// slopes is how much weaker each harmonic of the glottis is.
var slopes = func() (s [64]float64) {
	for i := range s {
		s[i] = math.Pow(float64(i+1), -0.7)
	}
	return s
}()

// consonant is three tones whose phases walk at random: noise around a frequency.
func (m *mouth) consonant(out []float64, seconds, loud float64) []float64 {
	centre := m.between(2200, 2900)
	n := int(seconds * rate)
	for i := range n {
		x := 0.0
		for k := range m.hiss {
			m.hiss[k] += (centre+250*float64(k-1))/rate + m.between(-0.1, 0.1)
			x += math.Sin(2 * math.Pi * m.hiss[k])
		}
		out = append(out, loud*arch(float64(i)/float64(n))*x)
	}
	return out
}

func (m *mouth) between(low, high float64) float64 { return low + (high-low)*m.rng.Float64() }

// arch rises and falls: the loudness of a syllable.
func arch(t float64) float64 { return min(1, 5*min(t, 1-t)) }

// normalise brings the sound to Level without clipping.
func normalise(x []float64) []int16 {
	sum := 0.0
	for _, v := range x {
		sum += v * v
	}
	out := make([]int16, len(x))
	if sum == 0 {
		return out
	}
	gain := 32768 * math.Pow(10, Level/20) / math.Sqrt(sum/float64(len(x)))
	for i, v := range x {
		out[i] = int16(math.Round(min(max(v*gain, -32767), 32767)))
	}
	return out
}
