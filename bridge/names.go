package bridge

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"trunkline/sip"
)

const (
	maxName    = 60 // characters of a display name; callers choose it
	anonymous  = "Anonymous caller"
	maskedTail = 2 // digits shown at the end of a masked number
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
	number := cleanName(string(caller.Number))
	name := cleanName(caller.DisplayName)
	if sameNumber(name, number) {
		name = ""
	}
	if !showNumber {
		number, name = maskNumber(number), maskDigits(name)
	}
	switch {
	case name == "" && number == "":
		return anonymous
	case name == "":
		return number
	case number == "":
		return name
	}
	return name + " (" + number + ")"
}

// maskNumber keeps the first four characters and the last two: enough to recognise a caller one knows. Short numbers
// are extensions and shown whole.
func maskNumber(number string) string {
	const head = 4
	runes := []rune(number)
	if len(runes) <= head+maskedTail {
		return number
	}
	return string(runes[:head]) + strings.Repeat("•", len(runes)-head-maskedTail) + string(runes[len(runes)-maskedTail:])
}

// maskDigits masks a display name that is itself a long number.
func maskDigits(name string) string {
	digits := 0
	for _, r := range name {
		if unicode.IsDigit(r) {
			digits++
		}
	}
	if digits >= 7 {
		return maskNumber(name)
	}
	return name
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
