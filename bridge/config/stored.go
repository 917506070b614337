package config

import (
	"bytes"
	"fmt"

	"gopkg.in/yaml.v3"
)

// ParseOptions reads the options of a route in the database: a JSON object with the names they have in the file.
func ParseOptions(text string) (Options, error) {
	var o Options
	err := parseStored(text, &o, func(c *checker) { c.options("options", &o) })
	if err != nil {
		return Options{}, fmt.Errorf("read route options: %w", err)
	}
	return o, nil
}

// ParseRoute reads a route as it stands in the file, but as a JSON object and without its number, and checks it like one there.
// defaults are the options of calls.
func ParseRoute(number, text string, defaults Options) (Route, error) {
	var r Route
	err := parseStored(text, &r, func(c *checker) {
		r.Number = number
		c.routes([]Route{r}, defaults)
	})
	if err != nil {
		return Route{}, fmt.Errorf("read route: %w", err)
	}
	return r, nil
}

// ParseTrunk reads a trunk as it stands in the file, but as a JSON object and without its name, and checks it like one there.
// beside is the file's group sip.
func ParseTrunk(name, text string, beside SIP) (Trunk, error) {
	var t Trunk
	err := parseStored(text, &t, func(c *checker) {
		t.Name = name
		c.trunk("trunk", t)
		c.trunkNumbers("trunk", t)
		c.socketFor("trunk", &beside, t)
	})
	if err != nil {
		return Trunk{}, fmt.Errorf("read trunk: %w", err)
	}
	return t, nil
}

// parseStored decodes text strictly and has it checked.
func parseStored(text string, into any, check func(*checker)) error {
	decoder := yaml.NewDecoder(bytes.NewReader([]byte(text))) // JSON is YAML
	decoder.KnownFields(true)
	found := complaints(decoder.Decode(into))
	if len(found) == 0 {
		c := checker{lines: map[string]int{}}
		check(&c)
		found = c.found
	}
	if len(found) > 0 {
		return &Problems{List: found}
	}
	return nil
}
