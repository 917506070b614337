package command

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Level is what somebody may do. Each includes those before it.
type Level uint8

const (
	LevelNone   Level = iota
	LevelView         // who, help
	LevelManage       // hang up, mute, keys, PIN, admit
	LevelCall         // place calls: this costs money
	LevelAdmin
)

var levelNames = [...]string{"none", "view", "manage", "call", "admin"}

func (l Level) String() string {
	if int(l) < len(levelNames) {
		return levelNames[l]
	}
	return fmt.Sprint("unknown ", uint8(l))
}

// MarshalText writes the name.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads a name.
func (l *Level) UnmarshalText(text []byte) error {
	i := slices.Index(levelNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("%q is not one of %s", text, strings.Join(levelNames[:], ", "))
	}
	*l = Level(i)
	return nil
}

// UnmarshalYAML reads a level of the configuration. A wrong one does not keep the rest from being read.
func (l *Level) UnmarshalYAML(node *yaml.Node) error {
	if err := l.UnmarshalText([]byte(node.Value)); err != nil {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: %v", node.Line, err)}}
	}
	return nil
}

// Permissions say who may do what: keys are "*" for everybody, a server (example.org), a room (!room:example.org), a user
// (@user:example.org). The most exact one counts: the user, else the room, else the server, else "*"; so a room's entry
// raises or lowers everybody in it but those who are named. No entry means LevelNone.
type Permissions map[string]Level

// Somebody says whether anybody may do what takes a level.
func (p Permissions) Somebody(level Level) bool {
	for _, l := range p {
		if l >= level {
			return true
		}
	}
	return false
}

// Level is what a user may do in a room.
func (p Permissions) Level(user, room string) Level {
	localpart, server, found := strings.Cut(user, ":")
	if !found || len(localpart) < 2 || localpart[0] != '@' || server == "" {
		return LevelNone // not a user id: nothing below could be meant
	}
	for _, key := range []string{user, room, server, "*"} {
		if level, ok := p[key]; ok && key != "" {
			return level
		}
	}
	return LevelNone
}

// OfRoom is what a room's own entry gives whoever is in it: the level of those who have no user id but one of their own choosing.
func (p Permissions) OfRoom(room string) Level {
	if !strings.HasPrefix(room, "!") {
		return LevelNone
	}
	return p[room]
}

// serverName is a host name or an address, with a port or without.
var serverName = regexp.MustCompile(`^([a-z0-9][a-z0-9.-]*|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$`)

// Check says, in words for an admin, which keys can't be meant.
func (p Permissions) Check() (wrong []string) {
	for _, key := range slices.Sorted(maps.Keys(p)) {
		localpart, server, _ := strings.Cut(key, ":")
		switch {
		case key == "*":
		case strings.HasPrefix(key, "#"):
			wrong = append(wrong, fmt.Sprintf("%q is an alias, which may move; write the room's id (!…)", key))
		case strings.HasPrefix(key, "@"):
			if len(localpart) < 2 || !serverName.MatchString(server) {
				wrong = append(wrong, fmt.Sprintf("%q is not a user id like @user:example.org", key))
			}
		case strings.HasPrefix(key, "!"): // of newer rooms without a server, but then long
			if len(localpart) < 2 || server == "" && len(key) < shortestRoom {
				wrong = append(wrong, fmt.Sprintf("%q is not a room id like !room:example.org", key))
			}
		case !serverName.MatchString(key):
			wrong = append(wrong, fmt.Sprintf("%q is not \"*\", a server, a room id (!…) or a user id (@…)", key))
		}
	}
	return wrong
}

// shortestRoom is the length of a room id without a server: "!" and a hash of 32 octets in base64 (room version 12).
const shortestRoom = 44
