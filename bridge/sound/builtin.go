package sound

import (
	"embed"
	"io/fs"
	"math"
	"sync"
	"time"
)

// Made by scripts/make-sounds.sh; without it there is only a placeholder, and everything is a tone.
//
//go:embed all:fallback
var fallback embed.FS

func builtIn() fs.FS {
	sub, err := fs.Sub(fallback, "fallback")
	if err != nil {
		panic(err) // the name is fixed
	}
	return sub
}

// note is a part of a synthetic sound; without a frequency it is silence.
type note struct {
	hz    float64
	long  time.Duration
	level float64 // of 1
}

// scores are sounds without words. A set of the admin may have better ones.
var scores = map[string][]note{
	"beep":    {{1000, 150 * time.Millisecond, 0.2}, {0, 100 * time.Millisecond, 0}},
	"beeperr": {{440, 150 * time.Millisecond, 0.2}, {330, 200 * time.Millisecond, 0.2}, {0, 150 * time.Millisecond, 0}},
	// A soft chime, and then quiet: who waits should hear that the line lives, not be entertained.
	"hold": {
		{523.25, 400 * time.Millisecond, 0.06},
		{659.26, 400 * time.Millisecond, 0.06},
		{783.99, 800 * time.Millisecond, 0.06},
		{0, 6400 * time.Millisecond, 0},
	},
}

var synthesised = sync.OnceValue(func() map[string][]int16 {
	made := make(map[string][]int16, len(scores))
	for name, score := range scores {
		for _, n := range score {
			made[name] = append(made[name], n.play()...)
		}
	}
	return made
})

// synthetic returns a sound without words, nil if the name has none.
func synthetic(name string) []int16 { return synthesised()[name] }

// play rounds the edges of a note so that they do not click.
func (n note) play() []int16 {
	const edge = Rate / 50
	pcm := make([]int16, int(n.long*Rate/time.Second))
	for i := range pcm {
		fade := float64(min(i, len(pcm)-1-i, edge)) / edge
		pcm[i] = int16(32767 * n.level * fade * math.Sin(2*math.Pi*n.hz*float64(i)/Rate))
	}
	return pcm
}
