package sip

import (
	"bytes"
	"strings"
)

// spaced are the headers in which white space is taken out, and between what other signs than ; and = it may be: the parser of sipgo
// reads these headers, but takes a " tag" for another parameter than a "tag", and a / in Via for its last one.
var spaced = map[string]string{
	"via": ";=,/:", "v": ";=,/:", "from": ";=", "f": ";=", "to": ";=", "t": ";=", "contact": ";=,", "m": ";=,", "cseq": "",
	"route": ";=,", "record-route": ";=,", "refer-to": ";=", "r": ";=", "referred-by": ";=", "b": ";=",
}

// tidy takes the white space and the folds out of a message that RFC 3261 allows between the parts of a header (§7.3.1, §25.1). It is
// done in place: the message gets shorter. Nothing changes in quotes and in brackets.
func tidy(data []byte) []byte {
	start, end := bytes.Index(data, []byte("\r\n")), bytes.Index(data, []byte("\r\n\r\n"))
	if end <= start {
		return data
	}
	rest := data[start+2 : end+2]
	out := data[:start]
	if !bytes.HasPrefix(out, []byte("SIP/")) { // a response may end with the blank before an empty phrase
		out = bytes.TrimRight(out, " \t")
	}
	out = append(out, "\r\n"...)
	for len(rest) > 0 {
		n := lineEnd(rest)
		out = append(tidyLine(out, rest[:n]), "\r\n"...)
		rest = rest[n+2:]
	}
	return append(out, data[end+2:]...)
}

// lineEnd is where a header line ends with the lines that continue it.
func lineEnd(b []byte) int {
	for at := 0; ; {
		n := bytes.Index(b[at:], []byte("\r\n"))
		if n < 0 {
			return len(b) - 2 // the caller's slice ends with a line
		}
		at += n
		if at+2 >= len(b) || b[at+2] != ' ' && b[at+2] != '\t' {
			return at
		}
		at += 2
	}
}

// tidyLine adds a line to out, which ends before the line begins.
func tidyLine(out, line []byte) []byte {
	name, value, ok := bytes.Cut(line, []byte(":"))
	between, known := spaced[strings.ToLower(string(bytes.TrimSpace(name)))]
	if !ok || !known {
		return append(out, line...)
	}
	out = append(append(out, bytes.TrimSpace(name)...), ':')
	first := len(out)
	quoted, bracketed, space := false, false, false
	for i := 0; i < len(value); i++ {
		c := value[i]
		if isSpace(c) && !quoted && !bracketed {
			space = true
			continue
		}
		if space && (len(out) == first || strings.IndexByte(between, out[len(out)-1]) < 0 && strings.IndexByte(between, c) < 0) {
			out = append(out, ' ')
		}
		space = false
		switch {
		case quoted && c == '\\' && i+1 < len(value):
			out = append(out, c)
			i++
			c = value[i]
		case c == '"' && !bracketed:
			quoted = !quoted
		case c == '<' && !quoted:
			bracketed = true
		case c == '>' && !quoted:
			bracketed = false
		}
		out = append(out, c)
	}
	return out
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }
