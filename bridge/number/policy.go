package number

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nyaruka/phonenumbers"
)

// Policy says which numbers may be called. The zero value with a Country allows ordinary numbers of that country and
// nothing else.
type Policy struct {
	Country string   `yaml:"country"` // where the trunks are: whose numbers are dialled without a prefix
	Allow   []string `yaml:"allow"`   // prefixes (+49) and countries (FR); empty = Country
	Deny    []string `yaml:"deny"`    // prefixes and countries; they win over Allow
	// DenyKinds are kinds of numbers, see [Kinds]; nil = [DefaultDenyKinds]. A prefix in Allow that is longer than its
	// country's code allows its numbers whatever their kind: who writes "+49900123" means it.
	DenyKinds []string `yaml:"deny_kinds"`
	Domains   []string `yaml:"domains"` // whose SIP addresses may be called; empty = none
}

// DefaultDenyKinds are numbers that cost the caller more than a call, and such as the metadata does not know: thieves like
// both.
func DefaultDenyKinds() []string {
	return []string{"premium", "shared_cost", "personal", "pager", "company", "voicemail", "unknown"}
}

// satellites and global services: E.164 country codes without a country, all expensive. They need a prefix of their own.
var worldwide = []string{"+800", "+808", "+870", "+878", "+881", "+882", "+883", "+888", "+979"}

// Reason is why a number may not be called: for metrics.
type Reason string

const (
	EmergencyNumber Reason = "emergency number"
	NotAllowed      Reason = "not in an allowed range"
	Denied          Reason = "in a denied range"
	DeniedKind      Reason = "of a denied kind"
	NothingAllowed  Reason = "dialling.country is not set"
)

// Refusal is a number that may not be called, with words for the room. It does not quote the number.
type Refusal struct {
	Reason Reason
	Text   string
}

func (r *Refusal) Error() string { return r.Text }

// ErrNothingAllowed refuses every number: nobody has said yet which may be called.
var ErrNothingAllowed = &Refusal{NothingAllowed, "No telephone number may be called from here yet: who runs this bridge has not set dialling.country."}

// AllowsNothing says that the policy refuses every number.
func (p Policy) AllowsNothing() bool { return p.Country == "" && len(p.Allow) == 0 }

// Emergency refuses what reaches the police or a fire brigade, as typed: this bridge does not know where the caller is and
// may be down.
func (p Policy) Emergency(typed string) error {
	return p.emergency(typed, phonenumbers.ConnectsToEmergencyNumber)
}

// emergency is Emergency with what says whether digits reach one in a country.
func (p Policy) emergency(typed string, reaches func(number, region string) bool) error {
	digits := strings.Map(func(r rune) rune {
		if isDigit(r) {
			return r
		}
		return -1
	}, typed)
	refusal := &Refusal{EmergencyNumber, "Emergency numbers can't be called from here. Use a telephone."}
	if slices.Contains([]string{"112", "911", "999", "000"}, digits) {
		return refusal // whatever the country: 112 works in every mobile network, the others are known from films
	}
	bare := digits
	if n, err := phonenumbers.Parse(typed, p.Country); err == nil { // +49 112, 0 112
		bare = phonenumbers.GetNationalSignificantNumber(n)
		region := phonenumbers.GetRegionCodeForCountryCode(int(n.GetCountryCode()))
		if phonenumbers.IsEmergencyNumber(bare, region) {
			return refusal
		}
	}
	for _, country := range append([]string{p.Country}, p.countries()...) {
		if country == "" {
			continue
		}
		withoutZeros := strings.TrimLeft(digits, "0") // a trunk's rules or an exchange may take them away
		if reaches(digits, country) || phonenumbers.IsEmergencyNumber(bare, country) ||
			phonenumbers.IsEmergencyNumber(withoutZeros, country) {
			return refusal
		}
	}
	return nil
}

// Check refuses a number that the policy does not allow.
func (p Policy) Check(n E164) error {
	if err := p.Emergency(string(n)); err != nil {
		return err
	}
	parsed, err := parse(string(n), "")
	if err != nil {
		return &Refusal{NotAllowed, "That is not a telephone number."}
	}
	if p.AllowsNothing() {
		return ErrNothingAllowed
	}
	if longestMatch(p.Deny, parsed) != "" {
		return &Refusal{Denied, "Numbers of this range may not be called."}
	}
	allow := p.Allow
	if len(allow) == 0 && p.Country != "" {
		allow = []string{p.Country}
	}
	match := longestMatch(allow, parsed)
	code := fmt.Sprintf("+%d", parsed.GetCountryCode())
	switch {
	case match == "":
		return &Refusal{NotAllowed, "Numbers of this country or range may not be called from here."}
	case strings.HasPrefix(match, "+") && len(match) > len(code):
		return nil
	case slices.Contains(worldwide, code) && match != code:
		return &Refusal{NotAllowed, "Satellite and worldwide numbers may not be called from here."}
	}
	if kind := kindOf(parsed); kind == unknownKind && slices.Contains(p.denyKinds(), kind) {
		return &Refusal{DeniedKind, "That number is too short or too long, or not one that is known to be in use."}
	} else if slices.Contains(p.denyKinds(), kind) {
		return &Refusal{DeniedKind, fmt.Sprintf("Numbers of this kind (%s) may not be called.", strings.ReplaceAll(kind, "_", " "))}
	}
	return nil
}

// CheckAddress refuses a SIP address (sip:anna@example.org) whose domain is not named, or that is a telephone number in
// disguise: the other side might well dial it.
func (p Policy) CheckAddress(uri string) error {
	scheme, rest, _ := strings.Cut(uri, ":")
	user, domain, found := strings.Cut(rest, "@")
	if !found || user == "" || scheme != "sip" && scheme != "sips" || strings.ContainsFunc(user, notInUser) {
		return &Refusal{NotAllowed, "That is not a SIP address."}
	}
	if dialled := keysOf(user); dialled != "" {
		for _, part := range append(strings.FieldsFunc(dialled, isKey), dialled) { // *31# hides who calls, and the rest is dialled
			if err := p.Emergency(part); err != nil {
				return err
			}
		}
	} else if name := strings.TrimLeft(user, pauses); count(name, isLetter) <= 2 {
		// aa112: a gateway may leave the letters out. Only the number itself, for ab1123 is a name.
		if err := p.emergency(onTelephone(name), phonenumbers.IsEmergencyNumber); err != nil {
			return err
		}
	}
	if count(user, isDigit) > longestExtension {
		return &Refusal{NotAllowed, "Write the telephone number without sip: and domain."}
	}
	if !slices.Contains(p.Domains, domain) {
		return &Refusal{NotAllowed, "SIP addresses of this domain may not be called."}
	}
	return nil
}

// longestExtension is how many digits an address may have; with more it is a telephone number, whatever else stands there: some gateways
// cut it at the first letter, some leave letters out, and to some they are pauses.
const longestExtension = 6

// notInUser finds what makes of the beginning of an address another one than is read here: parameters (RFC 3261 §19.1.6: 0900…;ext=1 is a
// telephone number), passwords, what is escaped, digits of other scripts, and what means something in a dial plan.
func notInUser(r rune) bool {
	return !isDigit(r) && !isLetter(r) && !strings.ContainsRune("-_.*+#", r)
}

// keysOf is what a switch may dial of the beginning of an address: nothing of a name, that is of what begins with two letters that are
// no pauses (w, p), else whatever there is on a telephone.
func keysOf(user string) string {
	name := strings.TrimLeft(user, pauses)
	if len(name) > 1 && isLetter(rune(name[0])) && isLetter(rune(name[1])) {
		return ""
	}
	return onTelephone(user)
}

// pauses may come first without being a name's beginning.
const pauses = "-_.*+#wWpP"

// onTelephone is what there is on a telephone of the beginning of an address.
func onTelephone(user string) string {
	return strings.Map(func(r rune) rune {
		if isDigit(r) || isKey(r) || r == '+' {
			return r
		}
		return -1
	}, user)
}

// LeadsOut says that the beginning of an address looks like a way out of a PBX (0, 9, +) and not like one of its extensions.
func LeadsOut(user string) bool { return strings.IndexAny(keysOf(user), "+09") == 0 }

func isLetter(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' }

// isKey finds the keys of a telephone that are no digits.
func isKey(r rune) bool { return r == '*' || r == '#' }

func count(text string, is func(rune) bool) (n int) {
	for _, r := range text {
		if is(r) {
			n++
		}
	}
	return n
}

// CheckPolicy says, in words for an admin, what is wrong with the policy.
func (p Policy) CheckPolicy() error {
	if p.Country != "" && !knownCountry(p.Country) {
		return fmt.Errorf("country: %q is not a country like DE", p.Country)
	}
	for name, list := range map[string][]string{"allow": p.Allow, "deny": p.Deny} {
		for _, entry := range list {
			digits, isPrefix := strings.CutPrefix(entry, "+")
			if isPrefix && strings.Trim(digits, "0123456789") != "" || !isPrefix && !knownCountry(entry) {
				return fmt.Errorf("%s: %q is neither a prefix like +49 nor a country like DE", name, entry)
			}
		}
	}
	for _, kind := range p.DenyKinds {
		if _, ok := kinds[kind]; !ok {
			return fmt.Errorf("deny_kinds: %q is not one of %s", kind, strings.Join(Kinds(), ", "))
		}
	}
	return nil
}

func (p Policy) denyKinds() []string {
	if p.DenyKinds == nil {
		return DefaultDenyKinds()
	}
	return p.DenyKinds
}

// countries are those that the policy names.
func (p Policy) countries() (list []string) {
	for _, entry := range slices.Concat(p.Allow, p.Deny) {
		if !strings.HasPrefix(entry, "+") {
			list = append(list, entry)
		}
	}
	return list
}

// longestMatch is the entry that fits a number best, "" if none: the longest prefix, else a country.
func longestMatch(entries []string, n *phonenumbers.PhoneNumber) string {
	number := phonenumbers.Format(n, phonenumbers.E164)
	best := ""
	for _, entry := range entries {
		prefix := strings.HasPrefix(entry, "+")
		switch {
		case prefix && strings.HasPrefix(number, entry) && (len(entry) > len(best) || !strings.HasPrefix(best, "+")):
			best = entry
		case !prefix && best == "" && belongs(n, entry):
			best = entry
		}
	}
	return best
}

// belongs says whether a number is one of a country. Countries that share a code share some numbers, such as +1 800.
func belongs(n *phonenumbers.PhoneNumber, country string) bool {
	if phonenumbers.IsValidNumber(n) {
		return phonenumbers.IsValidNumberForRegion(n, country)
	}
	return phonenumbers.GetRegionCodeForCountryCode(int(n.GetCountryCode())) == country
}
