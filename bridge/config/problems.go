package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Problem is one thing that is wrong in the file.
type Problem struct {
	Line int    // 0 = the file as a whole
	Key  string // like sip.trunks[0].networks; "" when the YAML itself is broken
	Text string // what is wrong, and what would be right
}

// Problems is every mistake of one file, by line.
type Problems struct {
	File string // "" = it is not from a file
	List []Problem
}

func (p *Problems) Error() string {
	var b strings.Builder
	for i, problem := range p.List {
		if i > 0 {
			b.WriteByte('\n')
		}
		if p.File != "" {
			fmt.Fprintf(&b, "%s:%d: ", p.File, max(problem.Line, 1))
		}
		if problem.Key != "" {
			fmt.Fprintf(&b, "%s: ", problem.Key)
		}
		b.WriteString(problem.Text)
	}
	return b.String()
}

// Parse decodes text on top of the defaults and checks it. The error, if any, is a *[Problems] naming file.
func Parse(file string, text []byte) (Config, error) {
	c := Default()
	found := &Problems{File: file, List: decode(text, &c)}
	var root yaml.Node
	if yaml.Unmarshal(text, &root) == nil {
		check := checker{lines: linesOf(&root)}
		check.config(&c)
		found.List = append(found.List, check.found...)
	}
	if len(found.List) == 0 {
		return c, nil
	}
	slices.SortStableFunc(found.List, func(a, b Problem) int { return a.Line - b.Line })
	return Config{}, found
}

// The shapes in which yaml.v3 reports a strict decoding error.
var (
	unknownField = regexp.MustCompile(`^line (\d+): field (\S+) not found in type config\.(\w+)$`)
	wrongType    = regexp.MustCompile("^line (\\d+): cannot unmarshal !!\\w+ (`.*`|!!\\w+)? ?into (\\S+)$")
	anyLine      = regexp.MustCompile(`line (\d+): (.*)$`)
)

// decode reads text into c.
func decode(text []byte, c *Config) []Problem {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	return complaints(decoder.Decode(c))
}

// complaints is what a decoder said, one by one.
func complaints(err error) []Problem {
	if err == nil || errors.Is(err, io.EOF) { // an empty file is all defaults
		return nil
	}
	var many *yaml.TypeError
	if !errors.As(err, &many) {
		return []Problem{plain(strings.TrimPrefix(err.Error(), "yaml: "))}
	}
	var list []Problem
	for _, text := range many.Errors {
		list = append(list, plain(text))
	}
	return list
}

// plain turns the library's message into a sentence for an admin.
func plain(message string) Problem {
	if m := unknownField.FindStringSubmatch(message); m != nil {
		return Problem{Line: lineOf(m[1]), Key: m[2], Text: "there is no such option here (see `bridge -e` for all options)"}
	}
	if m := wrongType.FindStringSubmatch(message); m != nil {
		return Problem{Line: lineOf(m[1]), Text: strings.TrimSpace(m[2]) + " is not " + kindOf(m[3])}
	}
	if m := anyLine.FindStringSubmatch(message); m != nil {
		return Problem{Line: lineOf(m[1]), Text: strings.Replace(m[2], "found character that cannot start any token", "indent with spaces, not with tabs", 1)}
	}
	return Problem{Text: message}
}

func kindOf(goType string) string {
	switch {
	case goType == "bool":
		return "true or false"
	case goType == "int":
		return "a whole number"
	case goType == "string":
		return "a text"
	case goType == "time.Duration":
		return "a duration like 30s, 10m or 4h"
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	}
	return "a group of options"
}

func lineOf(digits string) int {
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}

// linesOf maps each key path of the document to its line.
func linesOf(root *yaml.Node) map[string]int {
	lines := map[string]int{}
	var walk func(path string, n *yaml.Node)
	walk = func(path string, n *yaml.Node) {
		lines[path] = n.Line
		switch n.Kind {
		case yaml.DocumentNode:
			for _, child := range n.Content {
				walk(path, child)
			}
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				walk(strings.TrimPrefix(path+"."+n.Content[i].Value, "."), n.Content[i+1])
			}
		case yaml.SequenceNode:
			for i, child := range n.Content {
				walk(fmt.Sprintf("%s[%d]", path, i), child)
			}
		}
	}
	walk("", root)
	return lines
}
