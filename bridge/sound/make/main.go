// Command make speaks the built-in prompts with espeak-ng. Run it through scripts/make-sounds.sh.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"trunkline/bridge/sound"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: make FOLDER")
		os.Exit(2)
	}
	if err := makeAll(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "make sounds:", err)
		os.Exit(1)
	}
}

func makeAll(folder string) error {
	count := 0
	for _, set := range sets() {
		for name, text := range set.prompts {
			path := filepath.Join(folder, set.language, name+".wav")
			if err := makeOne(path, set.voice, text); err != nil {
				return fmt.Errorf("%s/%s: %w", set.language, name, err)
			}
			count++
		}
	}
	fmt.Printf("spoke %d sounds in %d languages\n", count, len(sets()))
	return nil
}

func makeOne(path, voice, text string) error {
	var spoken, why bytes.Buffer
	speak := exec.Command("espeak-ng", "-v", voice, "-s", "150", "--stdout", text)
	speak.Stdout, speak.Stderr = &spoken, &why
	if err := speak.Run(); err != nil {
		return fmt.Errorf("espeak-ng: %w: %s", err, strings.TrimSpace(why.String()))
	}
	pcm, err := sound.ReadWAV(&spoken)
	if err != nil {
		return err
	}
	if pcm = trim(pcm); len(pcm) == 0 {
		return errors.New("espeak-ng said nothing")
	}
	loudly(pcm)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	var file bytes.Buffer
	if err := sound.WriteWAV(&file, pcm); err != nil {
		return err
	}
	return os.WriteFile(path, file.Bytes(), 0o644)
}

// trim leaves 20 ms of what is quiet before and 80 ms after the words: numbers are put together from several sounds.
func trim(pcm []int16) []int16 {
	loud := func(x int16) bool { return x > 300 || x < -300 }
	first := slices.IndexFunc(pcm, loud)
	if first < 0 {
		return nil
	}
	last := len(pcm) - 1
	for !loud(pcm[last]) {
		last--
	}
	return pcm[max(0, first-sound.Rate/50):min(len(pcm), last+sound.Rate*8/100)]
}

// loudly brings words to −19 dBov, as loud as Asterisk's, and rounds the peaks that this takes too high.
func loudly(pcm []int16) {
	const target, knee = 0.112, 0.6 // of full scale
	sum := 0.0
	for _, x := range pcm {
		sum += float64(x) * float64(x)
	}
	gain := target / max(1e-6, math.Sqrt(sum/float64(len(pcm)))/32768)
	for i, x := range pcm {
		v := gain * float64(x) / 32768
		if over := math.Abs(v) - knee; over > 0 {
			v = math.Copysign(knee+(1-knee)*math.Tanh(over/(1-knee)), v)
		}
		pcm[i] = int16(32767 * v)
	}
}
