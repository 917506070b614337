package menu

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Action is what keys do during the call.
type Action string

const (
	ToggleMute Action = "mute"
	ToggleHand Action = "hand"
	SayPeople  Action = "people"
	LeaveCall  Action = "leave"
)

// Actions are those that a configuration may give keys to.
var Actions = []Action{ToggleMute, ToggleHand, SayPeople, LeaveCall}

// Rules are what a route wants of the menu.
type Rules struct {
	PIN      bool              `json:"pin"`      // ask for one
	Lobby    bool              `json:"lobby"`    // the room must let the phone in
	Announce bool              `json:"announce"` // say how many others are there, after entering
	Keys     map[string]Action `json:"keys"`     // during the call

	Tries     int `json:"tries"`
	MaxDigits int `json:"max_digits"` // a PIN of that length ends without #

	FirstDigit    time.Duration `json:"first_digit"`    // of silence after the prompt; then the prompt again
	BetweenDigits time.Duration `json:"between_digits"` // a longer pause ends a PIN, or a sequence of keys in the call
	Entry         time.Duration `json:"entry"`          // all tries together
	Verdict       time.Duration `json:"verdict"`        // the grid of times at which a verdict is told
	Check         time.Duration `json:"check"`          // the longest a check may take
	Penalty       time.Duration `json:"penalty"`        // after the first wrong PIN; doubles with each
	LobbyLongest  time.Duration `json:"lobby_longest"`
	Settle        time.Duration `json:"settle"`        // from entering to counting the others
	LongestSound  time.Duration `json:"longest_sound"` // a Play that has not ended by then is taken for ended
}

// DefaultRules ask for nothing and give the usual keys.
func DefaultRules() Rules {
	return Rules{
		Keys:  map[string]Action{"*6": ToggleMute, "*5": ToggleHand, "*4": SayPeople, "*0": LeaveCall},
		Tries: 3, MaxDigits: 16,
		FirstDigit: 10 * time.Second, BetweenDigits: 5 * time.Second, Entry: 2 * time.Minute,
		Verdict: 500 * time.Millisecond, Check: 10 * time.Second, Penalty: 2 * time.Second,
		LobbyLongest: 10 * time.Minute, Settle: 1500 * time.Millisecond, LongestSound: 30 * time.Second,
	}
}

// longestSequence of keys in the call.
const longestSequence = 4

// CheckKeys says, in words for an admin, what is wrong with a map of keys.
func CheckKeys(keys map[string]Action) error {
	for _, keys := range slices.Sorted(maps.Keys(keys)) {
		if keys == "" || len(keys) > longestSequence || strings.Trim(keys, "0123456789*#ABCD") != "" {
			return fmt.Errorf("%q is not a sequence of 1 to %d keys 0-9 * # A-D", keys, longestSequence)
		}
	}
	for keys, action := range keys {
		if !slices.Contains(Actions, action) {
			return fmt.Errorf("keys %q: %q is not one of %s", keys, action, strings.Join(actionNames(), ", "))
		}
	}
	return nil
}

func actionNames() (names []string) {
	for _, action := range Actions {
		names = append(names, string(action))
	}
	return names
}

// action finds what a sequence means; more says that a longer one begins with it.
func (r *Rules) action(typed string) (exact Action, more bool) {
	for keys := range r.Keys {
		more = more || len(keys) > len(typed) && strings.HasPrefix(keys, typed)
	}
	return r.Keys[typed], more
}
