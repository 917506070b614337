package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"gopkg.in/yaml.v3"
)

// Options say how a call is treated. They stand in calls, for all numbers, and in a route, for its number; what a route
// leaves out is as in calls. The zero value leaves out everything.
type Options struct {
	Intent      string         `yaml:"intent"`
	RingTimeout *time.Duration `yaml:"ring_timeout"`
	RingNotice  *bool          `yaml:"ring_notice"`
	EarlyMedia  *bool          `yaml:"early_media"`
	RefusalTone *time.Duration `yaml:"refusal_tone"`
	ToneZone    string         `yaml:"tone_zone"`
}

// The intents of a call (MSC3401).
const (
	IntentRing   = "m.ring"
	IntentPrompt = "m.prompt"
)

// The zones whose tones we have.
const (
	ZoneEurope       = "europe"
	ZoneNorthAmerica = "north_america"
)

// Over returns o, completed by what stands below it.
func (o Options) Over(below Options) Options {
	return Options{
		Intent:      first(o.Intent, below.Intent),
		RingTimeout: first(o.RingTimeout, below.RingTimeout),
		RingNotice:  first(o.RingNotice, below.RingNotice),
		EarlyMedia:  first(o.EarlyMedia, below.EarlyMedia),
		RefusalTone: first(o.RefusalTone, below.RefusalTone),
		ToneZone:    first(o.ToneZone, below.ToneZone),
	}
}

func first[T comparable](a, b T) T {
	var none T
	if a != none {
		return a
	}
	return b
}

// ParseOptions reads the options of a route in the database: a JSON object with the names they have in the file.
func ParseOptions(text string) (Options, error) {
	var o Options
	decoder := yaml.NewDecoder(bytes.NewReader([]byte(text))) // JSON is YAML
	decoder.KnownFields(true)
	if err := decoder.Decode(&o); err != nil && !errors.Is(err, io.EOF) {
		return Options{}, fmt.Errorf("read route options: %w", err)
	}
	check := checker{lines: map[string]int{}}
	check.options("options", &o)
	if len(check.found) > 0 {
		return Options{}, fmt.Errorf("read route options: %w", &Problems{File: "database", List: check.found})
	}
	return o, nil
}
