package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // images without zones: dialling.time_zone must work there, too
	"unicode"
	"unicode/utf8"

	"trunkline/bridge/command"
	"trunkline/bridge/number"
	"trunkline/bridge/quota"
)

// Commands are what people write to the bot.
type Commands struct {
	Prefix string `yaml:"prefix"`
}

// Dialling is about calls from rooms to telephones.
type Dialling struct {
	Stopped      string        `yaml:"stopped"`
	RingTimeout  time.Duration `yaml:"ring_timeout"`
	AloneTimeout time.Duration `yaml:"alone_timeout"`

	number.Policy `yaml:",inline"`

	TimeZone  string     `yaml:"time_zone"`
	Expensive []string   `yaml:"expensive"`
	Limits    DialLimits `yaml:"limits"`
	Alarm     Alarm      `yaml:"alarm"`
}

// Alarm is when and where somebody is told how much of a limit per day is used.
type Alarm struct {
	At   []int  `yaml:"at"` // percent
	Room string `yaml:"room"`
}

// PhonesOf begins the name, before the trunk's, that calls count for which phones of a trunk have placed (transfers: trunk): it stands
// where calls of rooms have a user.
const PhonesOf = "phones of "

// DialLimits are those of each scope, and of some by name.
type DialLimits struct {
	All    DialLimit            `yaml:"all"`
	User   DialLimit            `yaml:"user"`
	Room   DialLimit            `yaml:"room"`
	Trunk  DialLimit            `yaml:"trunk"`
	Users  map[string]DialLimit `yaml:"users"`
	Rooms  map[string]DialLimit `yaml:"rooms"`
	Trunks map[string]DialLimit `yaml:"trunks"`
}

// DialLimit is what one scope may use; 0 = no limit.
type DialLimit struct {
	Calls   int           `yaml:"calls"`
	Talk    time.Duration `yaml:"talk"`
	AtOnce  int           `yaml:"at_once"`
	Longest time.Duration `yaml:"longest"`
}

// CallsNothing says that somebody has the permission to place calls, but that whatever they call is refused.
func (c *Config) CallsNothing() bool {
	return c.Permissions.Somebody(command.LevelCall) && c.Dialling.AllowsNothing() && len(c.Dialling.Domains) == 0 &&
		!slices.ContainsFunc(c.SIP.Trunks, func(t Trunk) bool { return len(t.Extensions) > 0 })
}

// shortestCall: with less than that left a call is not begun at all.
const shortestCall = time.Minute

// longestName is how many characters phones may be shown beside our number: package sip cuts the rest off.
const longestName = 80

// Quotas are the limits in the terms of package quota. The config was checked.
func (d Dialling) Quotas() quota.Rules {
	zone, err := time.LoadLocation(d.TimeZone)
	if err != nil {
		zone = time.UTC
	}
	named := func(limits map[string]DialLimit) map[string]quota.Limits {
		out := make(map[string]quota.Limits, len(limits))
		for name, l := range limits {
			out[name] = l.quota()
		}
		return out
	}
	return quota.Rules{
		Stopped: d.Stopped, Zone: zone, Expensive: d.Expensive, Shortest: shortestCall,
		All: d.Limits.All.quota(), User: d.Limits.User.quota(), Room: d.Limits.Room.quota(), Trunk: d.Limits.Trunk.quota(),
		Users: named(d.Limits.Users), Rooms: named(d.Limits.Rooms), Trunks: named(d.Limits.Trunks),
	}
}

func (l DialLimit) quota() quota.Limits {
	return quota.Limits{Calls: l.Calls, Talk: l.Talk, Running: l.AtOnce, Longest: l.Longest}
}

var (
	numberPrefix = regexp.MustCompile(`^\+[0-9]*$`)
	extension    = regexp.MustCompile(`^[0-9*#x]{1,15}$`)
)

func (c *checker) dialling(d *Dialling, trunks []Trunk) {
	if err := d.CheckPolicy(); err != nil {
		key, text, _ := strings.Cut(err.Error(), ": ")
		c.wrong("dialling."+key, "%s", text)
	}
	if d.RingTimeout < time.Second || d.RingTimeout > longestRing {
		c.wrong("dialling.ring_timeout", "must be from 1s to %v", longestRing)
	}
	if d.AloneTimeout < time.Second {
		c.wrong("dialling.alone_timeout", "must be at least 1s")
	}
	if _, err := time.LoadLocation(d.TimeZone); err != nil {
		c.wrong("dialling.time_zone", "%q is not a time zone like Europe/Berlin", d.TimeZone)
	}
	for i, prefix := range d.Expensive {
		c.prefix(fmt.Sprintf("dialling.expensive[%d]", i), prefix)
	}
	for i, percent := range d.Alarm.At {
		if percent < 1 || percent > 100 {
			c.wrong(fmt.Sprintf("dialling.alarm.at[%d]", i), "must be from 1 to 100, percent")
		}
	}
	if r := d.Alarm.Room; r != "" && !strings.HasPrefix(r, "!") && !strings.HasPrefix(r, "#") {
		c.wrong("dialling.alarm.room", "%q is no room like !id:example.org or #admins:example.org", r)
	}
	l := &d.Limits
	for name, limit := range map[string]DialLimit{"all": l.All, "user": l.User, "room": l.Room, "trunk": l.Trunk} {
		c.limit("dialling.limits."+name, limit)
	}
	for group, limits := range map[string]map[string]DialLimit{"users": l.Users, "rooms": l.Rooms, "trunks": l.Trunks} {
		for _, name := range slices.Sorted(maps.Keys(limits)) {
			key := "dialling.limits." + group + "." + name
			c.limit(key, limits[name])
			known := map[string]bool{
				"users": strings.HasPrefix(name, "@") || strings.HasPrefix(name, PhonesOf), "rooms": strings.HasPrefix(name, "!"),
				"trunks": slices.ContainsFunc(trunks, func(t Trunk) bool { return t.Name == name }),
			}
			written := map[string]string{
				"users": `"@anna:example.org", or "` + PhonesOf + `" and the name of a trunk`, "rooms": `"!id:example.org"`, "trunks": "the name of a trunk",
			}
			if !known[group] {
				c.wrong(key, "%q is not one of the %s that can be meant: write %s", name, group, written[group])
			}
		}
	}
}

func (c *checker) limit(key string, l DialLimit) {
	if l.Calls < 0 || l.AtOnce < 0 || l.Talk < 0 || l.Longest < 0 {
		c.wrong(key, "must not be negative")
	}
}

func (c *checker) prefix(key, prefix string) {
	if !numberPrefix.MatchString(prefix) {
		c.wrong(key, "%q is not the beginning of a number like +49", prefix)
	}
}

// trunkNumbers checks what of a trunk is about numbers and calls to it.
func (c *checker) trunkNumbers(key string, t Trunk) {
	if err := t.Numbers.Check(); err != nil {
		c.wrong(key+".numbers", "%s", err)
	}
	for i, prefix := range t.Dials {
		c.prefix(fmt.Sprintf("%s.dials[%d]", key, i), prefix)
	}
	for i, pattern := range t.Extensions {
		if !extension.MatchString(pattern) {
			c.wrong(fmt.Sprintf("%s.extensions[%d]", key, i), "%q is not a pattern like 10xx (x is any digit)", pattern)
		}
	}
	if (len(t.Dials) > 0 || len(t.Extensions) > 0) && t.Proxy == "" {
		c.wrong(key+".proxy", "to call over this trunk takes one")
	}
	if t.Number != "" && !phoneNumber.MatchString(t.Number) {
		c.wrong(key+".number", "%q is not a number as it stands before the @ of a SIP address", t.Number)
	}
	if strings.ContainsFunc(t.DisplayName, unicode.IsControl) || strings.ContainsAny(t.DisplayName, "\"\\") || utf8.RuneCountInString(t.DisplayName) > longestName {
		c.wrong(key+".display_name", "must have at most %d characters, without quotes, backslashes and control characters", longestName)
	}
	if t.CallsPerSecond < 0 {
		c.wrong(key+".calls_per_second", "must not be negative")
	}
}

func (c *checker) permissions(cfg *Config) {
	for _, problem := range cfg.Permissions.Check() {
		c.wrong("permissions", "%s", problem)
	}
	if p := cfg.Commands.Prefix; p == "" || strings.ContainsAny(p, " \t\r\n") || len(p) > 20 {
		c.wrong("commands.prefix", "must be one word of at most 20 characters")
	}
}
