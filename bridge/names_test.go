package bridge

import (
	"strings"
	"testing"

	"trunkline/sip"
)

func TestGhostNameShowsWhoCallsAndMasksTheNumber(t *testing.T) {
	for _, c := range []struct {
		caller sip.Caller
		show   bool
		want   string
	}{
		{sip.Caller{Number: "+493012345656", DisplayName: "Alice"}, false, "Alice (+493•••••••56)"},
		{sip.Caller{Number: "+493012345656", DisplayName: "Alice"}, true, "Alice (+493012345656)"},
		{sip.Caller{Number: "+493012345656", DisplayName: "+49 30 12345656"}, false, "+493•••••••56"},
		{sip.Caller{Number: "200", DisplayName: "Front desk"}, false, "Front desk (200)"},
		{sip.Caller{Number: "200", DisplayName: "0301234567"}, false, "0301••••67 (200)"},
		{sip.Caller{DisplayName: "Bob"}, false, "Bob"},
		{sip.Caller{}, false, anonymous},
		{sip.Caller{Number: "+493012345656", DisplayName: "Alice", Private: true}, true, anonymous},
		{sip.Caller{Number: "1", DisplayName: "a\u202eb\r\n\x00c  d"}, false, "abc d (1)"},
		{sip.Caller{DisplayName: strings.Repeat("x", 1000)}, false, strings.Repeat("x", maxName) + "…"},
	} {
		if got := ghostName(c.caller, c.show); got != c.want {
			t.Errorf("ghostName(%+v, %t) = %q, want %q", c.caller, c.show, got, c.want)
		}
	}
}

func TestGhostLocalpartIsStableAndHidesTheNumber(t *testing.T) {
	alice := sip.Caller{Number: "+493012345656"}
	first := ghostLocalpart("_sip_", "key", alice, "carrier", 0)
	if again := ghostLocalpart("_sip_", "key", alice, "carrier", 0); again != first {
		t.Errorf("the same caller became %q, then %q", first, again)
	}
	others := map[string]string{
		"another number": ghostLocalpart("_sip_", "key", sip.Caller{Number: "+493012345657"}, "carrier", 0),
		"another key":    ghostLocalpart("_sip_", "other", alice, "carrier", 0),
		"a second call":  ghostLocalpart("_sip_", "key", alice, "carrier", 1),
		"no number":      ghostLocalpart("_sip_", "key", sip.Caller{Number: "+493012345656", Private: true}, "carrier", 0),
	}
	for what, other := range others {
		if other == first {
			t.Errorf("%s gives the same ghost %q", what, first)
		}
	}
	if strings.Contains(first, "30123") || !strings.HasPrefix(first, "_sip_") {
		t.Errorf("localpart %q", first)
	}
}

func TestAddressOfTheDatabaseIsShownWithoutItsPassword(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"postgres://tl:secret@host/name":                     "postgres://tl:xxxxx@host/name",
		"postgres://tl@host/name?password=secret":            "postgres://tl@host/name",
		"postgres://host/name?user=tl&password=secret":       "postgres",
		"postgres://tl:se%zzcret@host/name":                  "postgres",
		"sqlite:/var/lib/trunkline/trunkline.db":             "/var/lib/trunkline/trunkline.db",
		"postgres:///name?host=/run/postgresql&password=xyz": "postgres",
	} {
		if got := databaseName(address); got != want {
			t.Errorf("%s is shown as %s, want %s", address, got, want)
		}
	}
}
