package sip

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	gosip "github.com/emiago/sipgo/sip"
	"golang.org/x/time/rate"
)

// guard judges what comes from the network before the parser of sipgo sees it.
type guard struct {
	*neighbours
	gate     *gate
	limits   Limits
	counters *counters
	log      *slog.Logger
	parser   *gosip.Parser
	calls    func(netip.AddrPort) bool // somebody is spoken with there
	unknown  *rate.Sometimes           // lets some calls of strangers into the log, of all sockets together
}

// stranger counts what comes from an address of no trunk. A call is worth a line now and then: it may be the admin's own trunk,
// whose address is missing in the config.
func (g *guard) stranger(from netip.AddrPort, data []byte) {
	g.counters.drop(dropUnknownSource)
	if bytes.HasPrefix(data, []byte("INVITE ")) {
		g.unknown.Do(func() {
			g.log.Warn("a call from an unknown address is not answered", "source", from.Addr(), "dropped", g.counters.droppedFor(dropUnknownSource))
		})
	}
}

// refused counts a message that is answered by the guard itself.
func (g *guard) refused(from net.Addr, v verdict) {
	g.counters.refuse(v.code)
	if !v.told {
		g.gate.refusals.Do(func() { g.log.Info("message refused", "code", v.code, "why", v.why, "source", addrPortOf(from)) })
	}
	if failing(v.code) {
		g.failed(from)
	}
}

// dropped counts what gets no answer.
func (g *guard) dropped(from net.Addr, why string) {
	g.counters.drop(why)
	if why != dropKeepalive {
		g.failed(from)
	}
}

func (g *guard) failed(from net.Addr) {
	if _, anybody := from.(*net.UDPAddr); !anybody {
		g.gate.failed(addrPortOf(from).Addr())
	}
}

// verdict of the guard about one message.
type verdict struct {
	drop  string        // not "": drop without an answer, for this reason
	code  int           // not 0: refuse with this status
	why   string        // reason phrase of the refusal; ours, never text of others
	fatal bool          // on a stream: no message boundary to go on from
	again time.Duration // when the sender may try again; 0 = it is not told
	told  bool          // the log has it, with the trunk
}

// tooLarge is about a message that is whole, or whose end is known.
var tooLarge = verdict{code: 513, why: "Message Too Large"}

func (v verdict) pass() bool { return v.drop == "" && v.code == 0 }

// judge decides on one whole message of an address, and returns it as the parser can read it, in the same place. stream says that it
// came over TCP, where Content-Length is mandatory.
func (g *guard) judge(data []byte, from net.Addr, stream bool) ([]byte, verdict) {
	data, m, v := g.inspect(data, stream)
	if v.pass() {
		v = g.gate.admits(m, addrPortOf(from).Addr())
		v.told = true
	}
	return data, v
}

// inspect says whether a message is well formed, tidies it, and reads it.
func (g *guard) inspect(data []byte, stream bool) (tidied []byte, m gosip.Message, v verdict) {
	if len(bytes.Trim(data, "\r\n\x00 ")) == 0 || isSTUN(data) {
		return data, nil, verdict{drop: dropKeepalive}
	}
	h, ok := readHead(data)
	if !ok {
		return data, nil, verdict{drop: dropMalformed, fatal: true}
	}
	switch {
	case len(data) > g.limits.MessageBytes:
		v = tooLarge
	case h.physical > g.limits.HeaderLines:
		v = verdict{code: 400, why: "Too many header lines"}
	default:
		v = h.check(len(data)-h.bodyAt, stream)
	}
	if v.pass() {
		data = tidy(data)
		if m, ok = g.parse(data); !ok {
			v = verdict{code: 400, why: "Malformed header"}
		}
	}
	if v.code != 0 && !h.answerable() {
		return data, nil, verdict{drop: dropMalformed}
	}
	return data, m, v
}

// isSTUN says that something is a STUN message (RFC 8489 §5): with those, too, a way through a NAT is kept open (RFC 5626 §4.4.2). We
// ask for none and answer none, but who sends them does nothing wrong.
func isSTUN(data []byte) bool {
	return len(data) >= 20 && data[0]&0xc0 == 0 && bytes.Equal(data[4:8], []byte{0x21, 0x12, 0xa4, 0x42})
}

// parse asks the parser itself; a message that makes it panic must not reach its read loop.
func (g *guard) parse(data []byte) (m gosip.Message, ok bool) {
	defer func() {
		if recover() != nil {
			g.counters.panics.Add(1)
			ok = false
		}
	}()
	m, err := g.parser.ParseSIP(data)
	return m, err == nil
}

// head is the start line and headers of a message, read only as far as judging and refusing it needs.
type head struct {
	request bool
	method  string
	scheme  string         // of the Request-URI, lower case
	count   map[string]int // by long lower-case name, only those we know
	length  string         // value of the last Content-Length
	lines   []string       // unfolded, without the start line
	bodyAt  int

	physical int // lines before unfolding
}

// longNames are the headers the guard looks at, by every name they have.
var longNames = map[string]string{
	"via": "via", "v": "via", "from": "from", "f": "from", "to": "to", "t": "to", "call-id": "call-id", "i": "call-id",
	"cseq": "cseq", "content-length": "content-length", "l": "content-length", "max-forwards": "max-forwards",
	"contact": "contact", "m": "contact", "content-type": "content-type", "c": "content-type",
}

// readHead splits a message. It is false when the bytes are no SIP message at all.
func readHead(data []byte) (head, bool) {
	end := bytes.Index(data, []byte("\r\n\r\n"))
	if end < 0 {
		return head{}, false
	}
	h := head{count: map[string]int{}, bodyAt: end + 4}
	start, rest, _ := strings.Cut(string(data[:end]), "\r\n")
	if !h.startLine(start) {
		return head{}, false
	}
	for rest != "" {
		var line string
		line, rest, _ = strings.Cut(rest, "\r\n")
		if strings.ContainsAny(line, "\r\n\x00") {
			return head{}, false
		}
		h.physical++
		if line != "" && (line[0] == ' ' || line[0] == '\t') { // RFC 3261 §7.3.1: folding
			if len(h.lines) == 0 {
				return head{}, false
			}
			h.lines[len(h.lines)-1] += " " + strings.TrimSpace(line)
			continue
		}
		h.lines = append(h.lines, line)
	}
	for _, line := range h.lines {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			continue // the parser will refuse it
		}
		long := longNames[strings.ToLower(strings.TrimSpace(name))]
		if long != "" {
			h.count[long]++
		}
		if long == "content-length" {
			h.length = strings.TrimSpace(value)
		}
	}
	return h, true
}

// answerable is false when there is nobody to answer, or the message is none that may be answered.
func (h *head) answerable() bool { return h.request && h.method != "ACK" && h.count["via"] > 0 }

func (h *head) startLine(line string) bool {
	if strings.ContainsAny(line, "\r\n\x00") {
		return false
	}
	if strings.HasPrefix(line, "SIP/") {
		return true
	}
	line = strings.TrimRight(line, " \t") // RFC 4475 §3.1.2.10: tidy cuts it, too
	method, rest, ok := strings.Cut(line, " ")
	i := strings.LastIndexByte(rest, ' ')
	if !ok || method == "" || i < 0 || !strings.HasPrefix(strings.ToUpper(rest[i+1:]), "SIP/") {
		return false
	}
	h.request, h.method = true, method
	scheme, _, _ := strings.Cut(rest, ":")
	h.scheme = strings.ToLower(scheme)
	return true
}

// check applies the rules every message must meet: RFC 3261 §8.1.1 (mandatory headers), §20 (once), §18.3 (length).
func (h *head) check(body int, stream bool) verdict {
	for _, name := range []string{"via", "from", "to", "call-id", "cseq"} {
		switch n := h.count[name]; {
		case n == 0:
			return verdict{code: 400, why: "Missing header " + name}
		case n > 1 && name != "via":
			return verdict{code: 400, why: "Repeated header " + name}
		}
	}
	for _, name := range []string{"content-length", "max-forwards", "content-type"} {
		if h.count[name] > 1 {
			return verdict{code: 400, why: "Repeated header " + name, fatal: true}
		}
	}
	if h.request && h.method != "CANCEL" && foreignScheme(h.scheme) {
		return verdict{code: 416, why: "Unsupported URI Scheme"} // before the parser, which knows few of them
	}
	if h.count["content-length"] == 0 {
		if stream {
			return verdict{code: 400, why: "Missing header content-length", fatal: true}
		}
		return verdict{}
	}
	n, err := strconv.ParseUint(h.length, 10, 31)
	if err != nil {
		return verdict{code: 400, why: "Bad Content-Length", fatal: true}
	}
	if int(n) > body {
		return verdict{code: 400, why: "Content-Length exceeds message", fatal: true}
	}
	return verdict{}
}

// foreignScheme says that a Request-URI is well begun, but not for telephones (RFC 3986 §3.1, RFC 3261 §8.2.2.1).
func foreignScheme(scheme string) bool {
	switch scheme {
	case "", "sip", "sips", "tel":
		return false
	}
	return strings.Trim(scheme, "abcdefghijklmnopqrstuvwxyz0123456789+-.") == ""
}

// refusal writes an answer to a message that sipgo is not shown. The lines it repeats hold no line ends (readHead).
func (v verdict) refusal(data []byte) []byte {
	h, ok := readHead(data)
	if !ok || !h.answerable() {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "SIP/2.0 %d %s\r\n", v.code, v.why)
	seen := map[string]bool{}
	for _, line := range h.lines {
		name, value, _ := strings.Cut(line, ":")
		long := longNames[strings.ToLower(strings.TrimSpace(name))]
		switch long {
		case "via":
		case "from", "to", "call-id", "cseq":
			if seen[long] {
				continue
			}
			seen[long] = true
		default:
			continue
		}
		b.WriteString(line)
		if long == "to" && !strings.Contains(strings.ToLower(value), "tag=") {
			b.WriteString(";tag=" + newTag()) // §8.2.6.2
		}
		b.WriteString("\r\n")
	}
	if v.again > 0 {
		fmt.Fprintf(&b, "Retry-After: %d\r\n", int(v.again.Seconds()))
	}
	b.WriteString("Content-Length: 0\r\n\r\n")
	return []byte(b.String())
}
