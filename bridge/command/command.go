// Package command reads what people write to the bot in a room: `!sip call +49 30 123456`, `!sip who`, …
//
// It knows the grammar, the help, and who may say what ([Permissions]). It does not know rooms, phones or calls; a
// [Command] is a wish with checked words, and an error is a sentence that can be sent to the room as it is.
//
//	cmd, ok, err := grammar.Parse(message.Body)
//	switch {
//	case !ok: // not for us
//	case err != nil:
//		notice(err.Error())
//	case permissions.Level(sender, room) < cmd.Needs():
//		notice(grammar.Denied(cmd))
//	default:
//		perform(cmd)
//	}
package command

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Verb is what is wished.
type Verb string

const (
	Call     Verb = "call"
	HangUp   Verb = "hangup"
	Who      Verb = "who"
	Mute     Verb = "mute"
	Unmute   Verb = "unmute"
	DTMF     Verb = "dtmf"
	PIN      Verb = "pin"
	Admit    Verb = "admit"
	Decline  Verb = "decline"
	Confirm  Verb = "confirm"
	Transfer Verb = "transfer"
	Help     Verb = "help"
)

// Command is one wish. Its String shows neither numbers nor digits.
type Command struct {
	Verb   Verb
	Number string // Call, Transfer: as written, without separators; a number or a sip: address
	Phone  Phone  // HangUp, Mute, Unmute, DTMF, Transfer: which
	Digits string // DTMF
	PIN    PINWish
	About  Verb // Help: one command, or empty for all
}

func (c Command) String() string {
	switch c.Verb {
	case HangUp, Mute, Unmute, DTMF, Transfer:
		return string(c.Verb) + " " + c.Phone.String()
	case PIN:
		return string(c.Verb) + " " + string(c.PIN)
	}
	return string(c.Verb)
}

// GoString is String: also %#v must not show digits.
func (c Command) GoString() string { return c.String() }

// LogValue is String, whatever the log's format.
func (c Command) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Phone picks phones of a room. The zero value is the only one there is.
type Phone struct {
	All   bool
	Index int // as `who` counts: 1 is the first
}

func (p Phone) String() string {
	switch {
	case p.All:
		return "all"
	case p.Index > 0:
		return strconv.Itoa(p.Index)
	}
	return "the only one"
}

// Of returns the places in a list of n phones that p means. The error is for the room.
func (p Phone) Of(n int) ([]int, error) {
	switch {
	case n == 0:
		return nil, sentence("There is no phone here.")
	case p.All:
		all := make([]int, n)
		for i := range all {
			all[i] = i
		}
		return all, nil
	case p.Index == 0 && n == 1:
		return []int{0}, nil
	case p.Index == 0:
		return nil, sentence("There are %d phones here. Say which one, 1 to %[1]d, or all; \"who\" lists them.", n)
	case p.Index > n:
		return nil, sentence("There is no phone number %d here; \"who\" lists them.", p.Index)
	}
	return []int{p.Index - 1}, nil
}

// PINWish is what to do with the PIN of the room.
type PINWish string

const (
	ShowPIN   PINWish = "show" // how to dial in, and whether a PIN is set: the PIN itself can't be read back
	NewPIN    PINWish = "new"
	RemovePIN PINWish = "off"
)

// Error is a mistake in a command, in words for who wrote it.
type Error struct{ Text string }

func (e *Error) Error() string { return e.Text }

func sentence(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

const (
	longestBody   = 400 // bytes; more is no command but a text
	longestNumber = 120
	longestDigits = 32
)

// Grammar reads commands that begin with its prefix.
type Grammar struct{ Prefix string }

// DefaultPrefix is what commands begin with.
const DefaultPrefix = "!sip"

func (g Grammar) prefix() string {
	if g.Prefix == "" {
		return DefaultPrefix
	}
	return g.Prefix
}

// Parse reads a message. ok says that it is meant for us at all. What is quoted, corrected ("* …") or follows other words is
// not: nobody shall place a call by citing one.
func (g Grammar) Parse(body string) (c Command, ok bool, err error) {
	words := strings.Fields(strings.Map(plain, withoutReply(body)))
	if len(words) == 0 || !strings.EqualFold(words[0], g.prefix()) {
		return Command{}, false, nil
	}
	if len(body) > longestBody || !utf8.ValidString(body) {
		return Command{}, true, sentence("That is too long for a command.")
	}
	if strings.ContainsRune(strings.TrimSpace(withoutReply(body)), '\n') {
		return Command{}, true, sentence("One command per message, please.")
	}
	if len(words) == 1 {
		return Command{Verb: Help}, true, nil
	}
	s := find(words[1])
	if s == nil {
		return Command{}, true, sentence("I don't know that command. Write \"%s help\" for a list.", g.prefix())
	}
	c = Command{Verb: s.verb}
	if err := s.read(&c, words[2:]); err != nil {
		return Command{}, true, sentence("%s\nUsage: %s %s", err, g.prefix(), s.usage)
	}
	return c, true, nil
}

// plain makes of all kinds of spaces and dashes one, and drops what can't be seen.
func plain(r rune) rune {
	switch {
	case unicode.IsSpace(r):
		return ' '
	case unicode.Is(unicode.Pd, r) || r == '−':
		return '-'
	case unicode.IsControl(r), unicode.Is(unicode.Cf, r):
		return -1
	}
	return r
}

// withoutReply drops the quotation that older clients put before a reply (Matrix 1.12, "Fallbacks for rich replies").
func withoutReply(body string) string {
	rest := body
	for strings.HasPrefix(rest, "> ") || strings.HasPrefix(rest, ">\n") {
		_, after, more := strings.Cut(rest, "\n")
		if !more {
			return ""
		}
		rest = after
	}
	if rest != body {
		rest = strings.TrimPrefix(rest, "\n")
	}
	return rest
}

func readNothing(_ *Command, words []string) error {
	if len(words) > 0 {
		return sentence("That command takes no more words.")
	}
	return nil
}

func readCall(c *Command, words []string) error {
	if len(words) == 0 {
		return sentence("Which number?")
	}
	if uri := words[0]; isSIP(uri) {
		if len(words) > 1 || len(uri) > longestNumber {
			return sentence("That is not a SIP address like sip:anna@example.org.")
		}
		return readURI(c, uri)
	}
	number := strings.Map(func(r rune) rune {
		if strings.ContainsRune(" ().-/", r) { // visual separators, RFC 3966 §5.1.1
			return -1
		}
		return r
	}, strings.TrimPrefix(strings.Join(words, " "), "tel:"))
	digits := strings.TrimPrefix(number, "+")
	if digits == "" || len(number) > longestNumber || strings.Trim(digits, "0123456789*#") != "" || strings.Trim(digits, "*#") == "" {
		return sentence("That is not a telephone number. Write it as +49 30 123456.")
	}
	if strings.Contains(strings.Join(words, " "), "(0)") && strings.HasPrefix(number, "+") {
		return sentence("Leave out the (0): with +49 and the like it is not dialled.")
	}
	c.Number = number
	return nil
}

func isSIP(word string) bool {
	scheme, _, found := strings.Cut(word, ":")
	return found && (strings.EqualFold(scheme, "sip") || strings.EqualFold(scheme, "sips"))
}

// readURI takes an address without parameters or headers: those could carry anything into an INVITE.
func readURI(c *Command, uri string) error {
	scheme, rest, _ := strings.Cut(uri, ":")
	user, host, found := strings.Cut(rest, "@")
	const userChars = "-_.!~*'()&=+$," // RFC 3261 §25.1, less what needs thought
	if !found || user == "" || host == "" || !consistsOf(user, userChars) || !consistsOf(host, ".-:[]") {
		return sentence("That is not a SIP address like sip:anna@example.org.")
	}
	c.Number = strings.ToLower(scheme) + ":" + user + "@" + strings.ToLower(host)
	return nil
}

func consistsOf(s, others string) bool {
	for _, r := range s {
		if r > 126 || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(others, r) {
			return false
		}
	}
	return true
}

func readPhone(c *Command, words []string) error {
	if len(words) > 1 {
		return sentence("One phone at a time, or all.")
	}
	if len(words) == 1 {
		return c.Phone.read(words[0])
	}
	return nil
}

func (p *Phone) read(word string) error {
	word = strings.TrimPrefix(word, "#")
	if strings.EqualFold(word, "all") {
		p.All = true
		return nil
	}
	n, err := strconv.Atoi(word)
	if err != nil || n < 1 || n > 9999 || word[0] == '+' {
		return sentence("Which phone? Say its place in the list of \"who\": 1, 2 … or all.")
	}
	p.Index = n
	return nil
}

// readAt takes the phone off the beginning: "@2 123#", because digits alone may well begin with a 2.
func (p *Phone) readAt(words []string) ([]string, error) {
	for len(words) > 1 && strings.HasPrefix(words[0], "@") {
		if err := p.read(words[0][1:]); err != nil {
			return nil, err
		}
		words = words[1:]
	}
	return words, nil
}

func readTransfer(c *Command, words []string) error {
	words, err := c.Phone.readAt(words)
	switch {
	case err != nil:
		return err
	case c.Phone.All:
		return sentence("One phone at a time.")
	}
	return readCall(c, words)
}

func readDTMF(c *Command, words []string) error {
	words, err := c.Phone.readAt(words)
	if err != nil {
		return err
	}
	digits := strings.ToUpper(strings.Join(words, ""))
	switch {
	case digits == "":
		return sentence("Which keys?")
	case len(digits) > longestDigits:
		return sentence("At most %d keys at once.", longestDigits)
	case strings.Trim(digits, "0123456789*#ABCD,") != "":
		return sentence("A telephone has the keys 0-9 * # A-D; a comma waits.")
	}
	c.Digits = digits
	return nil
}

func readPIN(c *Command, words []string) error {
	c.PIN = ShowPIN
	switch {
	case len(words) == 0:
	case len(words) == 1 && strings.EqualFold(words[0], "new"):
		c.PIN = NewPIN
	case len(words) == 1 && (strings.EqualFold(words[0], "off") || strings.EqualFold(words[0], "remove")):
		c.PIN = RemovePIN
	case len(words) == 1 && strings.EqualFold(words[0], "show"):
	default: // a PIN that everybody has read is none
		return sentence("I choose the PIN myself.")
	}
	return nil
}

func readHelp(c *Command, words []string) error {
	if len(words) == 0 {
		return nil
	}
	s := find(words[0])
	if s == nil || len(words) > 1 {
		return sentence("I don't know that command.")
	}
	c.About = s.verb
	return nil
}
