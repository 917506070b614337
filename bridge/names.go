package bridge

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"trunkline/bridge/number"
	"trunkline/sip"
)

const (
	maxName   = 60 // characters of a display name; callers choose it
	anonymous = "Anonymous caller"
)

// ghostLocalpart names the ghost of a caller: the same caller is the same ghost, yet the number can't be read from it.
// The key is the application service's token, so that nobody else can try numbers. turn is 0 for the first call of a
// caller at a time, and counts up while earlier ones last.
func ghostLocalpart(prefix, key string, caller sip.Caller, trunk string, turn int) string {
	who := "number " + string(caller.Number)
	if caller.Private || caller.Number == "" {
		who = "anonymous"
	}
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(trunk + "\x00" + who))
	sum := mac.Sum(nil)
	name := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:8]))
	if turn > 0 {
		name += "." + strconv.Itoa(turn+1)
	}
	return prefix + name
}

// ghostName is what the room sees: the caller's name, and the number with its middle masked unless the trunk shows it.
func ghostName(caller sip.Caller, showNumber bool) string {
	if caller.Private {
		return anonymous
	}
	shown := cleanName(string(caller.Number))
	name := cleanName(caller.DisplayName)
	if sameNumber(name, shown) {
		name = ""
	}
	if !showNumber {
		shown, name = number.Mask(shown), number.Mask(name) // a name may be a number, too
	}
	switch {
	case name == "" && shown == "":
		return anonymous
	case name == "":
		return shown
	case shown == "":
		return name
	}
	return name + " (" + shown + ")"
}

// caller is who calls, as the room sees it, and who has sent the call on to us, if somebody has.
func (a *actor) caller() string {
	n := len(a.info.Diverted)
	if n == 0 {
		return a.name
	}
	by := sip.Caller{Number: a.bridge.plan.Local(a.info.Trunk, a.info.Diverted[n-1])}
	return a.name + ", forwarded by " + ghostName(by, a.showsNumber())
}

// cleanName removes what a caller could use to disturb the room: control and bidirectional characters, endless length.
func cleanName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return -1
		}
		return r
	}, name)
	name = strings.Join(strings.Fields(name), " ")
	if runes := []rune(name); len(runes) > maxName {
		name = string(runes[:maxName]) + "…"
	}
	return name
}

func sameNumber(a, b string) bool {
	digits := func(s string) string {
		return strings.Map(func(r rune) rune {
			if unicode.IsDigit(r) {
				return r
			}
			return -1
		}, s)
	}
	return digits(a) != "" && digits(a) == digits(b)
}
