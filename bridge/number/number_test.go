package number

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nyaruka/phonenumbers"
)

func TestNumbersAreReadAsPeopleWriteThem(t *testing.T) {
	for _, c := range []struct{ text, country, want string }{
		{"+49 30 123456", "", "+4930123456"},
		{"+49 (30) 123-456", "US", "+4930123456"},
		{"030 123456", "DE", "+4930123456"},
		{"0049 30/123456", "DE", "+4930123456"},
		{"011 49 30 123456", "US", "+4930123456"},
		{"(212) 555-2368", "US", "+12125552368"},
		{"06 698 12345", "IT", "+390669812345"}, // Italy keeps its zero
		{"+39 06 698 12345", "DE", "+390669812345"},
		{"8 (495) 123-45-67", "RU", "+74951234567"},
		{"030 123456", "", ""},
		{"", "DE", ""},
		{"+", "DE", ""},
		{"110", "DE", ""},
		{"1-800-FLOWERS", "US", ""},
		{"+49 30 123456 ext. 7", "DE", ""},
		{"+4930123456;ext=7", "DE", ""},
		{"+49+30123456", "DE", ""},
		{strings.Repeat("1", 41), "DE", ""},
		{"+999123456789", "DE", ""},
		{"anna", "DE", ""},
	} {
		got, err := Parse(c.text, c.country)
		if string(got) != c.want || (err == nil) != (c.want != "") || err != nil && !errors.Is(err, ErrNotANumber) {
			t.Errorf("Parse(%q, %q) = %q, %v, want %q", c.text, c.country, string(got), err, c.want)
		}
	}
}

func TestNumbersAreShownMasked(t *testing.T) {
	for text, want := range map[string]string{
		"+4930123456": "+493•••••56", "101": "101", "123456": "123456", "1234567": "1234•67", "": "", "anna": "anna",
		"sip:+4930123456@example.org": "sip:+4930••••56@example.org",
	} {
		if got := Mask(text); got != want {
			t.Errorf("Mask(%q) = %q, want %q", text, got, want)
		}
	}
	n := E164("+4930123456")
	if text := fmt.Sprintf("%v %+v %#v %s", n, n, n, n); strings.Contains(text, "0123") {
		t.Errorf("a number shows itself: %s", text)
	}
}

func TestEachTrunkWritesNumbersItsOwnWay(t *testing.T) {
	german := Rules{Country: "DE", Out: []Rule{{"+49", "0"}, {"+", "00"}}}
	centrex := Rules{Country: "DE", In: []Rule{{"9", ""}, {"90", "0"}}, Out: []Rule{{"+", "9+"}}}
	plain := Rules{Out: []Rule{{"+", ""}}, In: []Rule{{"", "+"}}}
	for _, c := range []struct {
		rules Rules
		from  string
		want  string
		ok    bool
	}{
		{german, "030123456", "+4930123456", true},
		{german, "0049 30 123456", "+4930123456", true},
		{german, "+4930123456", "+4930123456", true},
		{german, "+4930123456;phone-context=x", "+4930123456", true},
		{german, "004312345678", "+4312345678", true},
		{german, "101", "101", false},
		{german, "anonymous", "anonymous", false},
		{german, "", "", false},
		{centrex, "9030123456", "+4930123456", true},
		{plain, "4930123456", "+4930123456", true},
		{Rules{}, "030123456", "030123456", false},
	} {
		if got, ok := c.rules.FromTrunk(c.from); got != c.want || ok != c.ok {
			t.Errorf("FromTrunk(%q) = %q, %t, want %q, %t", c.from, got, ok, c.want, c.ok)
		}
	}
	for _, c := range []struct {
		rules Rules
		to    E164
		want  string
	}{
		{german, "+4930123456", "030123456"},
		{german, "+4312345678", "004312345678"},
		{centrex, "+4930123456", "9+4930123456"},
		{plain, "+4930123456", "4930123456"},
		{Rules{}, "+4930123456", "+4930123456"},
	} {
		if got := c.rules.ToTrunk(c.to); got != c.want {
			t.Errorf("ToTrunk(%q) = %q, want %q", string(c.to), got, c.want)
		}
		if back, ok := c.rules.FromTrunk(c.rules.ToTrunk(c.to)); c.rules.Country == "DE" && len(c.rules.In) == 0 && (!ok || back != string(c.to)) {
			t.Errorf("%q came back as %q", string(c.to), back)
		}
	}
	for _, bad := range []Rules{
		{Country: "Germany"}, {In: []Rule{{"a", "1"}}}, {Out: []Rule{{"+", "0 0"}}}, {Out: []Rule{{"+", "0"}, {"+", "1"}}},
	} {
		if bad.Check() == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func TestOnlyAllowedNumbersMayBeCalled(t *testing.T) {
	german := Policy{Country: "DE"}
	travel := Policy{Country: "DE", Allow: []string{"DE", "US", "+33", "+4990012"}, Deny: []string{"+4930999", "+1212555"}}
	world := Policy{Country: "DE", Allow: []string{"+"}}
	for _, c := range []struct {
		policy Policy
		number E164
		want   Reason
	}{
		{german, "+4930123456", ""},
		{german, "+4915112345678", ""},
		{german, "+498001234567", ""},
		{german, "+499001234567", DeniedKind}, // premium
		{german, "+491801234567", DeniedKind}, // shared cost
		{german, "+43123456789", NotAllowed},
		{german, "+881612345678", NotAllowed},
		{travel, "+12125552368", Denied},
		{travel, "+12122345678", ""},
		{travel, "+19002345678", DeniedKind},
		{travel, "+18762345678", NotAllowed}, // Jamaica shares +1
		{travel, "+33123456789", ""},
		{travel, "+33899123456", DeniedKind},
		{travel, "+4930999123", Denied},
		{travel, "+499001234567", ""}, // named on purpose
		{world, "+43123456789", ""},
		{world, "+882131234567", NotAllowed},
		{world, "+979123456789", NotAllowed},
		{Policy{Allow: []string{"+881"}, DenyKinds: []string{}}, "+881612345678", ""},
		{Policy{}, "+4930123456", NothingAllowed},
		{Policy{Deny: []string{"+49"}}, "+4930123456", NothingAllowed},
		{german, "", NotAllowed},
		{german, "+49110", EmergencyNumber},
	} {
		err := c.policy.Check(c.number)
		refusal := (*Refusal)(nil)
		if errors.As(err, &refusal); (err == nil) != (c.want == "") || err != nil && refusal.Reason != c.want {
			t.Errorf("Check(%q) by %+v = %v, want %q", string(c.number), c.policy, err, c.want)
		}
		if err != nil && len(c.number) > 7 && strings.Contains(err.Error(), string(c.number[1:])) {
			t.Errorf("%v quotes the number", err)
		}
	}
	for _, bad := range []Policy{
		{Country: "XX"}, {Allow: []string{"49"}}, {Deny: []string{"+49x"}}, {DenyKinds: []string{"funny"}},
	} {
		if bad.CheckPolicy() == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	for _, good := range []Policy{german, travel, world, {DenyKinds: DefaultDenyKinds()}} {
		if err := good.CheckPolicy(); err != nil {
			t.Error(err)
		}
	}
}

// In every country of the metadata, ordinary numbers of the country may be called by default, and those that cost more may
// not; and each is read as it would be dialled at home.
func TestEveryCountryMayCallItself(t *testing.T) {
	countries, numbers := 0, 0
	for country := range phonenumbers.GetSupportedRegions() {
		countries++
		p := Policy{Country: country}
		if err := p.CheckPolicy(); err != nil {
			t.Errorf("%s: %v", country, err)
		}
		for kind, allowed := range map[string]bool{"fixed": true, "mobile": true, "toll_free": true, "premium": false, "shared_cost": false} {
			example := phonenumbers.GetExampleNumberForType(country, kinds[kind])
			if example == nil || example.GetNationalNumber() == 0 {
				continue
			}
			numbers++
			n := E164(phonenumbers.Format(example, phonenumbers.E164))
			if err := p.Check(n); (err == nil) != allowed && kindOf(example) == kind {
				t.Errorf("%s %s %s: %v, want allowed=%t", country, kind, string(n), err, allowed)
			}
			if country == "AR" && kind == "mobile" {
				continue // its mobiles are dialled with a 15 that the library puts in the wrong place when it writes them
			}
			home := phonenumbers.Format(example, phonenumbers.NATIONAL)
			if got, err := Parse(home, country); err != nil && strings.Trim(home, "+0123456789 ()-./") == "" || err == nil && got != n {
				t.Errorf("%s %s: %q read as %q, %v, want %q", country, kind, home, string(got), err, string(n))
			}
		}
	}
	t.Logf("%d numbers of %d countries", numbers, countries)
	if countries < 200 || numbers < 500 {
		t.Errorf("only %d numbers of %d countries", numbers, countries)
	}
}

func TestEmergencyNumbersAreRefusedHoweverWritten(t *testing.T) {
	german := Policy{Country: "DE", Allow: []string{"DE", "US"}}
	for _, typed := range []string{"112", "110", "1 1 0", "+49112", "+49 110", "0112", "911", "999", "+1911", "00 49 110", "112#", "000"} {
		if german.Emergency(typed) == nil {
			t.Errorf("%q may be called", typed)
		}
	}
	for _, typed := range []string{"030123456", "+4930112112", "+4930110", "115", "0110123456", "sip:anna@example.org", "", "+12129112345"} {
		if err := german.Emergency(typed); err != nil {
			t.Errorf("%q: %v", typed, err)
		}
	}
	if (Policy{Country: "GB"}).Emergency("999") == nil || (Policy{Country: "AU"}).Emergency("000") == nil || (Policy{Country: "FR"}).Emergency("15") == nil {
		t.Error("the emergency numbers of other countries may be called")
	}
}

func TestSIPAddressesOfNamedDomainsMayBeCalled(t *testing.T) {
	p := Policy{Country: "DE", Domains: []string{"example.org", "pbx.example.org:5061"}}
	for uri, want := range map[string]Reason{
		"sip:anna@example.org": "", "sips:anna@pbx.example.org:5061": "", "sip:101@example.org": "",
		"sip:anna@pbx.example.org": NotAllowed, "sip:anna@evil.org": NotAllowed, "sip:anna@example.org.evil.org": NotAllowed,
		"sip:+499001234567@example.org": NotAllowed, "sip:00499001234567@example.org": NotAllowed, "sip:9*0900-1234567@example.org": NotAllowed,
		"sip:112@example.org": EmergencyNumber, "sip:110@example.org": EmergencyNumber, "sip:*31#112@example.org": EmergencyNumber, "sip:#31#110@example.org": EmergencyNumber,
		"sip:anna.1234567@example.org": NotAllowed, "sip:anna.123456@example.org": "", "sip:anna15@example.org": "", "sip:*97@example.org": "",
		// What a switch dials of these once it has cut them, or taken their letters for pauses, is a number.
		"sip:0900123456w@example.org": NotAllowed, "sip:0900123456,@example.org": NotAllowed, "sip:000882131234567!@example.org": NotAllowed,
		"sip:w0900123456@example.org": NotAllowed, "sip:ww.0900.123456@example.org": NotAllowed, "sip:anna-0900123456@example.org": NotAllowed,
		"sip:112w@example.org": EmergencyNumber, "sip:w112@example.org": EmergencyNumber, "sip:pW1-1-0@example.org": EmergencyNumber, "sip:a112@example.org": EmergencyNumber,
		"sip:.112.@example.org": EmergencyNumber, "sip:+112@example.org": EmergencyNumber, "sip:1w12@example.org": EmergencyNumber, "sip:*31#112w@example.org": EmergencyNumber,
		"sip:aa112@example.org": EmergencyNumber, "sip:.ab-1.1.0@example.org": EmergencyNumber, "sip:paa112@example.org": EmergencyNumber, "sip:AA0112@example.org": EmergencyNumber,
		"sip:room112@example.org": "", "sip:abc112@example.org": "", "sip:ab1123@example.org": "", "sip:ab@example.org": "", "sip:ab101@example.org": "",
		"sip:110,@example.org": NotAllowed, "sip:anna(1)@example.org": NotAllowed, "sip:101&102@example.org": NotAllowed, "sip:101!@example.org": NotAllowed, "sip:10'1@example.org": NotAllowed, "sip:anna;ext=1@example.org": NotAllowed, "sip:anna:secret@example.org": NotAllowed,
		"tel:101": NotAllowed, "sip:@example.org": NotAllowed, "sip:example.org": NotAllowed, "": NotAllowed,
	} {
		err := p.CheckAddress(uri)
		refusal := (*Refusal)(nil)
		if errors.As(err, &refusal); (err == nil) != (want == "") || err != nil && refusal.Reason != want {
			t.Errorf("CheckAddress(%q) = %v, want %q", uri, err, want)
		}
	}
	if err := (Policy{}).CheckAddress("sip:anna@example.org"); err == nil {
		t.Error("no domain is named, and yet one may be called")
	}
}

// FuzzParse reads anything: what it takes for a number is one, and every policy has an answer.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"+49 30 123456", "030/123456", "0049112", "(0)", "+", "11", "+979123456789", "+1 (212) 555-2368"} {
		f.Add(text)
	}
	policies := []Policy{{}, {Country: "DE"}, {Country: "US", Allow: []string{"+"}}}
	f.Fuzz(func(t *testing.T, text string) {
		for _, p := range policies {
			_ = p.Emergency(text)
			n, err := Parse(text, p.Country)
			if err != nil {
				continue
			}
			digits, plus := strings.CutPrefix(string(n), "+")
			if !plus || len(digits) < 3 || len(digits) > 17 || strings.Trim(digits, "0123456789") != "" {
				t.Fatalf("Parse(%q, %q) = %q", text, p.Country, string(n))
			}
			if again, err := Parse(string(n), ""); err != nil || again != n {
				t.Fatalf("%q read again: %q, %v", string(n), string(again), err)
			}
			_ = p.Check(n)
			Rules{Country: p.Country}.FromTrunk(text)
		}
	})
}
