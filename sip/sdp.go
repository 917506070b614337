package sip

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// SDP is a session description (RFC 8866), read as far as a telephone call needs it and kept otherwise as it came.
type SDP struct {
	Origin string // value of o=, "" if none
	Conn   string // address of the session-level c=, "" if none
	Attrs  []Attr
	Media  []MediaLine
}

// MediaLine is one m= line with what belongs to it.
type MediaLine struct {
	Kind    string // "audio", "video", …
	Port    int
	Proto   string
	Formats []string
	Conn    string // address of its own c=, "" if none
	Attrs   []Attr
}

// Attr is one a= line: a=key or a=key:value.
type Attr struct{ Key, Value string }

// Direction of media as the describing side sees it (RFC 8866 §6.7).
type Direction string

// The four directions; an absent one means SendRecv.
const (
	SendRecv Direction = "sendrecv"
	SendOnly Direction = "sendonly"
	RecvOnly Direction = "recvonly"
	Inactive Direction = "inactive"
)

// Sends and Receives read a direction.
func (d Direction) Sends() bool    { return d == SendRecv || d == SendOnly }
func (d Direction) Receives() bool { return d == SendRecv || d == RecvOnly }

func directionOf(send, recv bool) Direction {
	switch {
	case send && recv:
		return SendRecv
	case send:
		return SendOnly
	case recv:
		return RecvOnly
	}
	return Inactive
}

// Limits of what we read: an offer beyond them is refused, not half understood.
const (
	maxSDPLines = 400
	maxMedia    = 16
	maxFormats  = 64
)

var errSDP = errors.New("malformed SDP")

// ParseSDP reads a session description. Unknown lines are skipped (RFC 8866 §5), a bare LF is accepted as line end.
func ParseSDP(body []byte) (*SDP, error) {
	s := new(SDP)
	var media *MediaLine
	var lines int
	for line := range bytes.Lines(body) {
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			continue
		}
		if lines++; lines > maxSDPLines {
			return nil, fmt.Errorf("%w: more than %d lines", errSDP, maxSDPLines)
		}
		if len(line) < 2 || line[1] != '=' {
			return nil, fmt.Errorf("%w: line %d is not type=value", errSDP, lines)
		}
		if lines == 1 && string(line) != "v=0" {
			return nil, fmt.Errorf("%w: does not begin with v=0", errSDP)
		}
		if err := s.line(&media, line[0], string(line[2:])); err != nil {
			return nil, err
		}
	}
	if lines == 0 {
		return nil, fmt.Errorf("%w: empty", errSDP)
	}
	return s, nil
}

// line takes one line into s; media is the m= line that lines after it belong to.
func (s *SDP) line(media **MediaLine, kind byte, value string) error {
	switch kind {
	case 'o':
		s.Origin = value
	case 'c':
		addr, err := parseConn(value)
		if err != nil {
			return err
		}
		if *media == nil {
			s.Conn = addr
		} else if (*media).Conn == "" { // several c= are layers of a multicast; we want the first
			(*media).Conn = addr
		}
	case 'a':
		key, val, _ := strings.Cut(value, ":")
		a := Attr{strings.TrimSpace(key), strings.TrimSpace(val)}
		if *media == nil {
			s.Attrs = append(s.Attrs, a)
		} else {
			(*media).Attrs = append((*media).Attrs, a)
		}
	case 'm':
		if len(s.Media) == maxMedia {
			return fmt.Errorf("%w: more than %d media", errSDP, maxMedia)
		}
		m, err := parseMedia(value)
		if err != nil {
			return err
		}
		s.Media = append(s.Media, m)
		*media = &s.Media[len(s.Media)-1]
	}
	return nil
}

// parseConn reads "IN IP4 192.0.2.1" and "IN IP4 224.2.1.1/127/3".
func parseConn(value string) (string, error) {
	f := strings.Fields(value)
	switch {
	case len(f) != 3:
		return "", fmt.Errorf("%w: connection %q", errSDP, clip(value))
	case f[0] != "IN":
		return "", &NotAcceptable{300, "Incompatible network protocol, use IN"}
	case f[1] != "IP4" && f[1] != "IP6":
		return "", &NotAcceptable{301, "Incompatible network address format, use IP4 or IP6"}
	}
	addr, _, _ := strings.Cut(f[2], "/")
	return addr, nil
}

func parseMedia(value string) (MediaLine, error) {
	f := strings.Fields(value)
	if len(f) < 4 || len(f) > 3+maxFormats {
		return MediaLine{}, fmt.Errorf("%w: media line %q", errSDP, clip(value))
	}
	port, _, _ := strings.Cut(f[1], "/")
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return MediaLine{}, fmt.Errorf("%w: media port %q", errSDP, clip(f[1]))
	}
	return MediaLine{Kind: f[0], Port: int(n), Proto: f[2], Formats: f[3:]}, nil
}

// attr returns the value of the first attribute with this key.
func attr(attrs []Attr, key string) (string, bool) {
	for _, a := range attrs {
		if strings.EqualFold(a.Key, key) {
			return a.Value, true
		}
	}
	return "", false
}

// direction of media line m: its own attribute, else the session's, else sendrecv.
func (s *SDP) direction(m *MediaLine) Direction {
	for _, attrs := range [][]Attr{m.Attrs, s.Attrs} {
		for _, a := range attrs {
			switch d := Direction(strings.ToLower(a.Key)); d {
			case SendRecv, SendOnly, RecvOnly, Inactive:
				return d
			}
		}
	}
	return SendRecv
}

// addr is the address media line m is received at. The unspecified address is an old way to say hold.
func (s *SDP) addr(m *MediaLine) (netip.Addr, error) {
	host := m.Conn
	if host == "" {
		host = s.Conn
	}
	a, err := netip.ParseAddr(host)
	if err != nil && host != "" && validHost(host) { // allowed by RFC 8866 §5.7; nobody sends it, and a look-up would keep the caller waiting
		return netip.Addr{}, &NotAcceptable{301, "Host name as media address, send an IP address"}
	}
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%w: connection address %q", errSDP, clip(host))
	}
	return a.Unmap(), nil
}

// clip shortens text of others for error messages.
func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}
