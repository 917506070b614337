package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"

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
func ParseTrunk(name, text string) (Trunk, error) {
	var t Trunk
	err := parseStored(text, &t, func(c *checker) {
		t.Name = name
		c.trunk("trunk", t)
		c.trunkNumbers("trunk", t)
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
	if err := decoder.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	c := checker{lines: map[string]int{}}
	check(&c)
	if len(c.found) > 0 {
		return &Problems{File: "database", List: c.found}
	}
	return nil
}
