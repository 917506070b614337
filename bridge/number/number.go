// Package number knows telephone numbers: E.164 with the help of Google's metadata, what trunks want to see instead, what
// may be shown of a number, and which numbers may be called.
//
// It does not know who calls, nor how often (that is package quota). A call out takes these steps:
//
//	if err := policy.Emergency(typed); err != nil { … }   // before anything else: 112 has no E.164
//	n, err := number.Parse(typed, policy.Country)
//	err = policy.Check(n)
//	user := rules.ToTrunk(n)                              // "00493012345", "3012345", …
//
// and a call in this one: caller := rules.FromTrunk(user).
package number

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/nyaruka/phonenumbers"
)

// E164 is a number like +493012345. It shows itself masked in logs; string(n) is the number.
type E164 string

// String masks the number.
func (n E164) String() string { return Mask(string(n)) }

// GoString masks the number.
func (n E164) GoString() string { return Mask(string(n)) }

// ErrNotANumber is what Parse says of anything else.
var ErrNotANumber = errors.New("not a telephone number")

// Parse reads a number as people write it: +49 30 123456, 0049…, or as dialled at home in the country (ISO 3166, "DE").
// What can't exist there is an error; whether it does exist is for Policy.
func Parse(text, country string) (E164, error) {
	n, err := parse(text, country)
	if err != nil {
		return "", err
	}
	return E164(phonenumbers.Format(n, phonenumbers.E164)), nil
}

const longest = 40 // characters of a written number; more is not even tried

func parse(text, country string) (*phonenumbers.PhoneNumber, error) {
	if len(text) > longest || strings.Trim(text, "+0123456789 ()-./") != "" || strings.LastIndexByte(text, '+') > 0 {
		return nil, ErrNotANumber // no letters: the library would dial 1-800-FLOWERS and extensions
	}
	// The library drops a zero after the country's code, as in +49 (0) 30; of +49000… one at each reading. Only what stays
	// as it is counts: the number that was checked must be the number that is called.
	for range 3 {
		n, err := phonenumbers.Parse(text, country)
		if err != nil || phonenumbers.IsPossibleNumberWithReason(n) != phonenumbers.IS_POSSIBLE { // nor one without its area code
			return nil, ErrNotANumber // its error quotes the number
		}
		written := phonenumbers.Format(n, phonenumbers.E164)
		if written == text {
			return n, nil
		}
		text = written
	}
	return nil, ErrNotANumber
}

// Mask keeps the first four characters and the last two: enough to recognise a caller one knows. Short numbers are
// extensions and shown whole. What is not a digit or + is shown as it is, so that addresses are masked in their digits.
func Mask(text string) string {
	const head, tail = 4, 2
	digits := 0
	for _, r := range text {
		if unicode.IsDigit(r) {
			digits++
		}
	}
	if digits <= head+tail {
		return text
	}
	first := head
	if strings.HasPrefix(text, "+") {
		first--
	}
	seen := 0
	return strings.Map(func(r rune) rune {
		if !unicode.IsDigit(r) {
			return r
		}
		seen++
		if seen > first && seen <= digits-tail {
			return '•'
		}
		return r
	}, text)
}

func isDigit(r rune) bool { return r >= '0' && r <= '9' }

// Rule replaces the beginning of a number.
type Rule struct {
	Prefix  string `yaml:"prefix"`
	Replace string `yaml:"replace"`
}

// Rules are how one trunk writes numbers. The longest prefix that fits counts, and only that one.
type Rules struct {
	Country string `yaml:"country"` // of numbers written without one; empty = such numbers stay as they are
	In      []Rule `yaml:"in"`      // from the trunk to E.164, before Country is thought of: {prefix: "9", replace: ""}
	Out     []Rule `yaml:"out"`     // from E.164 to the trunk: {prefix: "+49", replace: "0"}, {prefix: "+", replace: "00"}
}

// FromTrunk makes E.164 of what stands before the @. What is no number of the world (an extension, a name) is returned as
// it is and is not ok.
func (r Rules) FromTrunk(user string) (text string, ok bool) {
	user, _, _ = strings.Cut(user, ";") // RFC 3261 §19.1.6: tel parameters
	changed := apply(r.In, user)
	if r.Country == "" && !strings.HasPrefix(changed, "+") {
		return changed, false
	}
	n, err := parse(changed, r.Country)
	if err != nil || !strings.HasPrefix(changed, "+") && !phonenumbers.IsValidNumber(n) { // 101 is an extension, not a number in Berlin
		return changed, false
	}
	return phonenumbers.Format(n, phonenumbers.E164), true
}

// ToTrunk writes a number as the trunk wants it.
func (r Rules) ToTrunk(n E164) string { return apply(r.Out, string(n)) }

// Check says what is wrong with the rules.
func (r Rules) Check() error {
	if r.Country != "" && !knownCountry(r.Country) {
		return fmt.Errorf("country: %q is not a country like DE", r.Country)
	}
	for name, list := range map[string][]Rule{"in": r.In, "out": r.Out} {
		seen := map[string]bool{}
		for _, rule := range list {
			if strings.Trim(rule.Prefix+rule.Replace, "+0123456789*#") != "" {
				return fmt.Errorf("%s: %q to %q: only digits, + * # can stand in a number", name, rule.Prefix, rule.Replace)
			}
			if seen[rule.Prefix] {
				return fmt.Errorf("%s: there are two rules for %q", name, rule.Prefix)
			}
			seen[rule.Prefix] = true
		}
	}
	return nil
}

func apply(rules []Rule, text string) string {
	best := -1
	for i, rule := range rules {
		if strings.HasPrefix(text, rule.Prefix) && (best < 0 || len(rule.Prefix) > len(rules[best].Prefix)) {
			best = i
		}
	}
	if best < 0 {
		return text
	}
	return rules[best].Replace + strings.TrimPrefix(text, rules[best].Prefix)
}

func knownCountry(code string) bool { return phonenumbers.GetSupportedRegions()[code] }

// kinds are the number types of the metadata that a policy can name.
var kinds = map[string]phonenumbers.PhoneNumberType{
	"fixed": phonenumbers.FIXED_LINE, "mobile": phonenumbers.MOBILE, "fixed_or_mobile": phonenumbers.FIXED_LINE_OR_MOBILE,
	"toll_free": phonenumbers.TOLL_FREE, "premium": phonenumbers.PREMIUM_RATE, "shared_cost": phonenumbers.SHARED_COST,
	"voip": phonenumbers.VOIP, "personal": phonenumbers.PERSONAL_NUMBER, "pager": phonenumbers.PAGER, "company": phonenumbers.UAN,
	"voicemail": phonenumbers.VOICEMAIL, "unknown": phonenumbers.UNKNOWN,
}

// kindOf names the type of a number.
func kindOf(n *phonenumbers.PhoneNumber) string {
	typ := phonenumbers.GetNumberType(n)
	for name, t := range kinds {
		if t == typ {
			return name
		}
	}
	return unknownKind
}

// unknownKind is that of numbers that the metadata does not know.
const unknownKind = "unknown"

// Kinds are what a policy can name.
func Kinds() []string {
	var names []string
	for name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
