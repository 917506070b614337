package speech

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"trunkline/internal/testbed/listen"
)

// Espeak speaks text with the named voice of espeak-ng ("en", "en+f3") at the given rate. The error wraps
// [exec.ErrNotFound] where the program is not installed.
func Espeak(ctx context.Context, rate int, voice, text string) ([]int16, error) {
	path, err := exec.LookPath("espeak-ng")
	if err != nil {
		return nil, fmt.Errorf("speak: %w", err)
	}
	cmd := exec.CommandContext(ctx, path, "-v", voice, "--stdout", "--stdin")
	cmd.Stdin = strings.NewReader(text)
	wav, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("speak: %w", err)
	}
	sound, err := listen.ReadWAV(bytes.NewReader(wav))
	if err != nil {
		return nil, fmt.Errorf("speak: %w", err)
	}
	return listen.Resample(sound.PCM, sound.Rate, rate), nil
}
