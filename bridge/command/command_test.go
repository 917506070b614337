package command

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

func TestCommandsAreRead(t *testing.T) {
	for _, c := range []struct {
		body string
		want Command
	}{
		{"!sip", Command{Verb: Help}},
		{"  !SIP  Help ", Command{Verb: Help}},
		{"!sip help dial", Command{Verb: Help, About: Call}},
		{"!sip call +49 30 123456", Command{Verb: Call, Number: "+4930123456"}},
		{"!sip call +49\u00a030\u2013123\u202f456", Command{Verb: Call, Number: "+4930123456"}},
		{"!sip call \u202a+4930123456\u202c", Command{Verb: Call, Number: "+4930123456"}}, // as copied from an address book
		{"!sip call (030) 123/456-7", Command{Verb: Call, Number: "0301234567"}},
		{"!sip call tel:+4930123456", Command{Verb: Call, Number: "+4930123456"}},
		{"!sip dial *43#", Command{Verb: Call, Number: "*43#"}},
		{"!sip call sip:Anna@Example.org", Command{Verb: Call, Number: "sip:Anna@example.org"}},
		{"!sip call SIPS:anna@[2001:db8::1]:5061", Command{Verb: Call, Number: "sips:anna@[2001:db8::1]:5061"}},
		{"!sip hangup", Command{Verb: HangUp}},
		{"!sip bye 2", Command{Verb: HangUp, Phone: Phone{Index: 2}}},
		{"!sip hangup ALL", Command{Verb: HangUp, Phone: Phone{All: true}}},
		{"!sip mute #1", Command{Verb: Mute, Phone: Phone{Index: 1}}},
		{"!sip unmute", Command{Verb: Unmute}},
		{"!sip who", Command{Verb: Who}},
		{"!sip dtmf 12 3#", Command{Verb: DTMF, Digits: "123#"}},
		{"!sip dtmf @2 1,a", Command{Verb: DTMF, Digits: "1,A", Phone: Phone{Index: 2}}},
		{"!sip dtmf @all 1", Command{Verb: DTMF, Digits: "1", Phone: Phone{All: true}}},
		{"!sip pin", Command{Verb: PIN, PIN: ShowPIN}},
		{"!sip pin new", Command{Verb: PIN, PIN: NewPIN}},
		{"!sip pin remove", Command{Verb: PIN, PIN: RemovePIN}},
		{"!sip let-in", Command{Verb: Admit}},
		{"!sip reject", Command{Verb: Decline}},
		{"!sip yes", Command{Verb: Confirm}},
		{"> <@ben:example.org> !sip call 1\n> more\n\n!sip who", Command{Verb: Who}},
	} {
		got, ok, err := Grammar{}.Parse(c.body)
		if !ok || err != nil {
			t.Errorf("Parse(%q) = %t, %v", c.body, ok, err)
			continue
		}
		if diff := cmp.Diff(fields(c.want), fields(got)); diff != "" {
			t.Errorf("Parse(%q) (-want +got):\n%s", c.body, diff)
		}
	}
}

// fields undoes the masking of String for comparisons.
func fields(c Command) [6]string {
	return [6]string{string(c.Verb), c.Number, c.Digits, fmt.Sprint(c.Phone.All, c.Phone.Index), string(c.PIN), string(c.About)}
}

func TestMistakesAreExplained(t *testing.T) {
	for body, want := range map[string]string{
		"!sip frobnicate":           "!sip help",
		"!sip call":                 "Which number?",
		"!sip call anna":            "not a telephone number",
		"!sip call +":               "not a telephone number",
		"!sip call **":              "not a telephone number",
		"!sip call +49 (0)30 12345": "Leave out the (0)",
		"!sip call 1;ext=2":         "not a telephone number",
		"!sip call ١٢٣٤٥٦":          "not a telephone number",
		"!sip call sip:anna":        "not a SIP address",
		"!sip call sip:anna@example.org;transport=tcp": "not a SIP address",
		"!sip call sip:anna@example.org?X=y":           "not a SIP address",
		"!sip call sip:a@b sip:c@d":                    "not a SIP address",
		"!sip hangup anna":                             "Which phone?",
		"!sip hangup 0":                                "Which phone?",
		"!sip hangup +1":                               "Which phone?",
		"!sip hangup 1 2":                              "One phone at a time",
		"!sip who me":                                  "no more words",
		"!sip dtmf":                                    "Which keys?",
		"!sip dtmf hello":                              "has the keys",
		"!sip dtmf @x 1":                               "Which phone?",
		"!sip pin 1234":                                "myself",
		"!sip help nothing":                            "don't know",
		"!sip who\n!sip who":                           "One command per message",
		"!sip dtmf " + strings.Repeat("1", 33):         "At most",
		"!sip call " + strings.Repeat("1", 500):        "too long",
	} {
		_, ok, err := Grammar{}.Parse(body)
		if wrong := (*Error)(nil); !ok || !errors.As(err, &wrong) || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q) = %t, %v, want %q", body, ok, err, want)
		}
	}
}

func TestWhatIsNotSaidToTheBotIsLeftAlone(t *testing.T) {
	for _, body := range []string{
		"", "hello", "!sipping tea", "say !sip call 110", "* !sip call +4930123456", "> !sip call +4930123456",
		"> <@ben:example.org> !sip hangup\n> all", "> <@ben:example.org> hi\n\nno", "!", "sip call 1",
	} {
		if c, ok, err := (Grammar{}).Parse(body); ok || err != nil {
			t.Errorf("Parse(%q) = %v, %t, %v, want it left alone", body, c, ok, err)
		}
	}
	if _, ok, _ := (Grammar{Prefix: "!tel"}).Parse("!sip who"); ok {
		t.Error("another prefix was taken for ours")
	}
	if c, ok, err := (Grammar{Prefix: "!tel"}).Parse("!tel who"); !ok || err != nil || c.Verb != Who {
		t.Errorf("own prefix: %v %t %v", c, ok, err)
	}
}

func TestEveryCommandIsInTheHelpOfWhoMayUseIt(t *testing.T) {
	for level := LevelNone; level <= LevelAdmin; level++ {
		text := Grammar{}.Help("", level)
		for _, s := range specs() {
			if got, want := strings.Contains(text, "!sip "+s.usage), level >= s.needs; got != want {
				t.Errorf("help for %v: %s listed=%t, want %t", level, s.verb, got, want)
			}
			one := Grammar{}.Help(s.verb, level)
			if !strings.Contains(one, s.does) || strings.Contains(one, "may not") != (level < s.needs) {
				t.Errorf("help of %s for %v: %s", s.verb, level, one)
			}
		}
	}
	for _, s := range specs() { // what the help shows can be typed
		typed := strings.NewReplacer("[", "", "]", "", "1|all", "1", "new|off", "new", "command", "who").Replace(s.usage)
		if c, ok, err := (Grammar{}).Parse("!sip " + typed); !ok || err != nil || c.Verb != s.verb {
			t.Errorf("usage %q: %v, %v", typed, c, err)
		}
	}
}

func TestPhonesArePickedFromTheList(t *testing.T) {
	for _, c := range []struct {
		phone Phone
		n     int
		want  string
		err   string
	}{
		{Phone{}, 0, "[]", "no phone here"},
		{Phone{}, 1, "[0]", ""},
		{Phone{}, 2, "[]", "1 to 2"},
		{Phone{Index: 2}, 2, "[1]", ""},
		{Phone{Index: 3}, 2, "[]", "no phone number 3"},
		{Phone{All: true}, 3, "[0 1 2]", ""},
	} {
		got, err := c.phone.Of(c.n)
		if fmt.Sprint(got) != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%v of %d = %v, %v, want %s %q", c.phone, c.n, got, err, c.want, c.err)
		}
	}
}

func TestTheMostExactPermissionCounts(t *testing.T) {
	var p Permissions
	text := "{'*': none, example.org: view, '!desk:example.org': call, '!QuietRoomOfTheNewestVersionWithoutAServerXX': none, '@anna:example.org': admin, '@evil:example.org': none, '@eve:other.org': manage}"
	if err := yaml.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	if wrong := p.Check(); wrong != nil {
		t.Error(wrong)
	}
	for _, c := range []struct {
		user, room string
		want       Level
	}{
		{"@ben:example.org", "!room:example.org", LevelView},
		{"@ben:example.org", "!desk:example.org", LevelCall},
		{"@ben:example.org", "!QuietRoomOfTheNewestVersionWithoutAServerXX", LevelNone},
		{"@anna:example.org", "!QuietRoomOfTheNewestVersionWithoutAServerXX", LevelAdmin},
		{"@evil:example.org", "!desk:example.org", LevelNone},
		{"@eve:other.org", "!room:example.org", LevelManage},
		{"@mallory:other.org", "!room:example.org", LevelNone},
		{"@mallory:other.org", "!desk:example.org", LevelCall},
		{"@x:evil.example.org", "!room:example.org", LevelNone},
		{"@x:example.org:8448", "!room:example.org", LevelNone},
		{"example.org", "!desk:example.org", LevelNone},
		{"", "", LevelNone},
		{"@:example.org", "!desk:example.org", LevelNone},
	} {
		if got := p.Level(c.user, c.room); got != c.want {
			t.Errorf("Level(%s, %s) = %v, want %v", c.user, c.room, got, c.want)
		}
	}
	for room, want := range map[string]Level{"!desk:example.org": LevelCall, "!QuietRoomOfTheNewestVersionWithoutAServerXX": LevelNone, "!room:example.org": LevelNone, "example.org": LevelNone, "*": LevelNone} {
		if got := p.OfRoom(room); got != want {
			t.Errorf("OfRoom(%s) = %v, want %v", room, got, want)
		}
	}
	if err := yaml.Unmarshal([]byte("{'*': root}"), &p); err == nil {
		t.Error("an unknown level was read")
	}
}

func TestKeysThatNobodyCanMeanAreReported(t *testing.T) {
	for key, ok := range map[string]bool{
		"*": true, "example.org": true, "example.org:8448": true, "[2001:db8::1]": true, "@a:b": true, "!a:b": true, "!QuietRoomOfTheNewestVersionWithoutAServerXX": true,
		"": false, "#a:b": false, "@a": false, "@:b": false, "!": false, "*.example.org": false, "https://example.org": false, "Example.org": false,
		"!desk": false, "anna:example.org": false, "example.org:port": false, "@a:b c": false, "exa mple.org": false,
	} {
		if wrong := (Permissions{key: LevelCall}).Check(); (wrong == nil) != ok {
			t.Errorf("Check(%q) = %q, want ok=%t", key, wrong, ok)
		}
	}
	if wrong := (Permissions{"#a:b": LevelCall, "!desk": LevelView, "example.org": LevelCall}).Check(); len(wrong) != 2 {
		t.Errorf("of two keys that can't be meant it says %q", wrong)
	}
}

func TestNumbersAndKeysDoNotShowInLogs(t *testing.T) {
	for _, body := range []string{"!sip call +4930123456", "!sip dtmf 8675309", "!sip dtmf @1 8675309"} {
		c, _, err := Grammar{}.Parse(body)
		if err != nil {
			t.Fatal(err)
		}
		var logged strings.Builder
		slog.New(slog.NewJSONHandler(&logged, nil)).Info("command", "command", c)
		for _, text := range []string{fmt.Sprint(c), fmt.Sprintf("%+v %#v %s", c, c, c), logged.String()} {
			if strings.Contains(text, "123456") || strings.Contains(text, "8675") {
				t.Errorf("%q shows in %q", body, text)
			}
		}
	}
}

// FuzzParse reads anything: it never fails otherwise than in words, and what it accepts carries nothing dangerous onwards.
func FuzzParse(f *testing.F) {
	for _, s := range specs() {
		f.Add("!sip " + s.usage)
	}
	f.Add("> <@a:b> x\n\n!sip call +49 (0) 30")
	f.Add("!sip call sip:a%00@b")
	f.Add("!sip dtmf @all 1,2")
	f.Fuzz(func(t *testing.T, body string) {
		c, ok, err := Grammar{}.Parse(body)
		if !ok {
			if err != nil || c != (Command{}) {
				t.Fatalf("not for us, and yet %v, %v", c, err)
			}
			return
		}
		if err != nil {
			if text := err.Error(); text == "" || !utf8.ValidString(text) || len(text) > 400 {
				t.Fatalf("error %q", text)
			}
			return
		}
		if find(string(c.Verb)) == nil {
			t.Fatalf("unknown verb in %v", c)
		}
		for _, r := range c.Number {
			if r <= ' ' || r > 126 || strings.ContainsRune("<>\"\\;?", r) {
				t.Fatalf("%q in a number", r)
			}
		}
		if strings.Trim(c.Digits, "0123456789*#ABCD,") != "" || len(c.Digits) > longestDigits || len(c.Number) > longestNumber {
			t.Fatalf("number %q digits %q", c.Number, c.Digits)
		}
		if (c.Verb == Call) != (c.Number != "") || (c.Verb == DTMF) != (c.Digits != "") || c.Phone.Index < 0 {
			t.Fatalf("%v is not whole: %v", c.Verb, fields(c))
		}
	})
}
