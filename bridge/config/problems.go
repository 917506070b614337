package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
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

	twice bool      // an option stands there a second time
	kind  yaml.Kind // of what the library says that it stands there; 0 = a text, which is quoted
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
	switch {
	case slices.ContainsFunc(found.List, func(p Problem) bool { return p.twice }):
		// Which of the two is meant is not known, so nothing that is said of their values would be sure to be true.
		found.List = slices.DeleteFunc(found.List, func(p Problem) bool { return !p.twice })
	case yaml.Unmarshal(text, &root) == nil:
		for i := range found.List {
			found.List[i].place(&root)
		}
		c.Folder = filepath.Dir(file)
		c.locateFiles()
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
	unknownField = regexp.MustCompile(`^line (\d+): field (\S+) not found in type (\w+\.\w+)$`)
	wrongType    = regexp.MustCompile("^line (\\d+): cannot unmarshal !!(\\w+) (`.*`|!!\\w+)? ?into (\\S+)$")
	definedTwice = regexp.MustCompile(`^line (\d+): mapping key "(.*)" already defined at line (\d+)$`)
	foreignTag   = regexp.MustCompile(`^line (\d+): cannot unmarshal (![^! ]\S*) `)
	anyLine      = regexp.MustCompile(`line (\d+): (.*)$`)
)

// decode reads text into c.
func decode(text []byte, c *Config) []Problem {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	list := complaints(decoder.Decode(c))
	lines := strings.Split(string(text), "\n")
	for i := range list {
		list[i].unquoted(lines)
	}
	return list
}

// unquoted says what YAML makes of names that Matrix has and that nobody has quoted. The library speaks of tokens, aliases and tags then,
// and may name the line before.
func (p *Problem) unquoted(lines []string) {
	if p.Key != "" || p.Line == 0 || !strings.Contains(p.Text, "token") && !strings.Contains(p.Text, "alphabetic or numeric") {
		return
	}
	for n := p.Line; n <= min(p.Line+1, len(lines)); n++ {
		line := lines[n-1]
		name := strings.TrimLeft(line, " -")
		switch {
		case strings.HasPrefix(name, "@"), strings.HasPrefix(name, "*"), strings.HasPrefix(name, "`"), strings.HasPrefix(name, "%"):
			p.Line, p.Text = n, fmt.Sprintf("put what begins with %q into quotes", name[:1])
			return
		case strings.Contains(line[:len(line)-len(strings.TrimLeft(line, " \t"))], "\t"):
			p.Line, p.Text = n, "indent with spaces, not with tabs"
			return
		case strings.Contains(line, ": @"):
			p.Line, p.Text = n, "put what begins with \"@\" into quotes"
			return
		}
	}
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
		return Problem{Line: lineOf(m[1]), Key: m[2], Text: "there is no such option here" + meant(m[2], m[3]) + " (see `bridge -e` for all options)"}
	}
	if m := definedTwice.FindStringSubmatch(message); m != nil {
		return Problem{Line: lineOf(m[1]), Text: fmt.Sprintf("%s stands in line %s already: change that", m[2], m[3]), twice: true}
	}
	if m := foreignTag.FindStringSubmatch(message); m != nil {
		return Problem{Line: lineOf(m[1]), Text: fmt.Sprintf("put what begins with \"!\" into quotes: %q", strings.TrimSuffix(m[2], ":"))}
	}
	if m := wrongType.FindStringSubmatch(message); m != nil {
		p, there := Problem{Line: lineOf(m[1])}, strings.TrimSpace(m[3])
		switch m[2] {
		case "seq":
			p.kind, there = yaml.SequenceNode, "a list"
		case "map":
			p.kind, there = yaml.MappingNode, "a group of options"
		}
		p.Text = there + " is not " + kindOf(m[4])
		return p
	}
	if m := anyLine.FindStringSubmatch(message); m != nil {
		return Problem{Line: lineOf(m[1]), Text: m[2]}
	}
	return Problem{Text: message}
}

// meant guesses which option of a group was meant by a name that it has not; "" = none that is alike.
func meant(name, group string) string {
	best, likest := 3, "" // two slips of the pen
	for _, option := range optionsOf(reflect.TypeFor[Config](), group) {
		if d := slips(strings.ToLower(name), option); d < best && d < len(option) {
			best, likest = d, option
		}
	}
	if likest != "" {
		return "; did you mean " + likest + "?"
	}
	if at := placesOf(reflect.TypeFor[Config](), strings.ToLower(name), ""); len(at) == 1 || len(at) == 2 {
		return "; did you mean " + strings.Join(at, " or ") + "?"
	}
	return ""
}

// optionsOf are the names in a group of options, which is a type like config.Trunk somewhere within typ.
func optionsOf(typ reflect.Type, group string) (out []string) {
	switch typ.Kind() {
	case reflect.Slice, reflect.Map, reflect.Pointer:
		return optionsOf(typ.Elem(), group)
	case reflect.Struct:
	default:
		return nil
	}
	here := typ.String() == group
	for f := range typ.Fields() {
		name, how, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case here && how == "inline":
			out = append(out, optionsOf(f.Type, f.Type.String())...)
		case here && name != "":
			out = append(out, name)
		case !here && out == nil:
			out = optionsOf(f.Type, group)
		}
	}
	return out
}

// placesOf are the options of this name, wherever they are.
func placesOf(typ reflect.Type, name, path string) (out []string) {
	switch typ.Kind() {
	case reflect.Pointer:
		return placesOf(typ.Elem(), name, path)
	case reflect.Slice:
		return placesOf(typ.Elem(), name, path+"[0]")
	case reflect.Struct:
	default:
		return nil
	}
	for f := range typ.Fields() {
		own, how, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		at := strings.TrimPrefix(path+"."+own, ".")
		switch {
		case how == "inline":
			out = append(out, placesOf(f.Type, name, path)...)
		case own == name:
			out = append(out, at)
		case own != "" && own != "-":
			out = append(out, placesOf(f.Type, name, at)...)
		}
	}
	return out
}

// slips is how many letters must be added, left out, changed or swapped with their neighbours to make one word of another.
func slips(a, b string) int {
	before, row := []int{}, make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			change := row[j]
			if a[i] != b[j] {
				change++
			}
			next[j+1] = min(row[j+1]+1, next[j]+1, change)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

// place says where in the document a problem is of which the library has told the line only: the option on that line which has the name
// or the value in question. Where several have, the line must do.
func (p *Problem) place(root *yaml.Node) {
	var found []string
	var walk func(path string, n *yaml.Node)
	walk = func(path string, n *yaml.Node) {
		for i, child := range n.Content {
			switch n.Kind {
			case yaml.MappingNode:
				if i%2 == 0 {
					continue
				}
				key := n.Content[i-1]
				at := strings.TrimPrefix(path+"."+key.Value, ".")
				if p.Key != "" && key.Line == p.Line && key.Value == p.Key || p.Key == "" && p.isOf(child) {
					found = append(found, at)
				}
				walk(at, child)
			case yaml.SequenceNode:
				at := fmt.Sprintf("%s[%d]", path, i)
				if p.Key == "" && p.isOf(child) {
					found = append(found, at)
				}
				walk(at, child)
			default:
				walk(path, child)
			}
		}
	}
	walk("", root)
	if len(found) == 1 {
		p.Key = found[0]
	}
}

// isOf says that a problem is about this value. The library quotes the first letters of long ones.
func (p *Problem) isOf(n *yaml.Node) bool {
	if p.kind != 0 {
		return n.Kind == p.kind && n.Line == p.Line
	}
	return n.Kind == yaml.ScalarNode && n.Line == p.Line && len(p.Text) > 0 && strings.HasPrefix(strings.Trim(p.Text, "`\""), n.Value[:min(len(n.Value), 7)])
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
		return "a list, each of whose entries begins with \"- \""
	case goType == "command.Permissions":
		return "names with what they may do, like \"@anna:example.org\": call"
	}
	return "a group of options, each with its name and a colon before it"
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
