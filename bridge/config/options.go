package config

import (
	"time"

	"gopkg.in/yaml.v3"

	"trunkline/bridge/menu"
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

	PIN         string `yaml:"pin"`
	Lobby       *bool  `yaml:"lobby"`
	Language    string `yaml:"language"`
	SayPeople   *bool  `yaml:"say_people"`
	Keys        *Keys  `yaml:"keys"`
	Announce    *bool  `yaml:"announce"`
	ShowNumbers *bool  `yaml:"show_numbers"` // nil = as the trunk says
}

// What an option pin may say besides the sum of one PIN.
const (
	PINNone     = "none"
	PINDatabase = "database" // those that were made for rooms
)

// AnyRoom stands for the room in a route where the PIN picks it.
const AnyRoom = "*"

// Keys are what sequences of keys do during a call.
type Keys map[string]menu.Action

// UnmarshalYAML replaces what was there, so that a default can be taken away.
func (k *Keys) UnmarshalYAML(node *yaml.Node) error {
	var given map[string]menu.Action
	if err := node.Decode(&given); err != nil {
		return err
	}
	*k = given
	return nil
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
		PIN:         first(o.PIN, below.PIN),
		Lobby:       first(o.Lobby, below.Lobby),
		Language:    first(o.Language, below.Language),
		SayPeople:   first(o.SayPeople, below.SayPeople),
		Keys:        first(o.Keys, below.Keys),
		Announce:    first(o.Announce, below.Announce),
		ShowNumbers: first(o.ShowNumbers, below.ShowNumbers),
	}
}

func first[T comparable](a, b T) T {
	var none T
	if a != none {
		return a
	}
	return b
}
