package bridge

import (
	"path/filepath"
	"testing"

	"trunkline/bridge/config"
	"trunkline/bridge/number"
	"trunkline/db"
	"trunkline/sip"
)

func TestRouteOfANumberIsFoundHoweverTheTrunkWritesIt(t *testing.T) {
	t.Parallel()
	store, err := db.Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "t.db"), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	for number, room := range map[string]string{"+493012345671": "!stored:x", "+493012345672": "!world:x"} {
		if err := store.PutRoute(t.Context(), db.Route{Number: number, Room: room}); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config.Default()
	cfg.Homeserver.Domain = "x"
	cfg.SIP.Trunks = []config.Trunk{{Name: "carrier", Numbers: number.Rules{Country: "DE"}}, {Name: "pbx"}}
	cfg.Routes = []config.Route{
		{Number: "+493012345670", Room: "!fixed:x"}, {Number: "03012345672", Room: "!dialled:x"}, {Number: "101", Room: "!extension:x"},
	}
	for _, c := range []struct {
		trunk, dialled string
		room, named    string // where it leads without and with room names
	}{
		{"carrier", "+493012345670", "!fixed:x", "!fixed:x"},
		{"carrier", "03012345670", "!fixed:x", "!fixed:x"},
		{"carrier", "00493012345670", "!fixed:x", "!fixed:x"},
		{"carrier", "03012345671", "!stored:x", "!stored:x"},
		{"carrier", "00493012345671", "!stored:x", "!stored:x"},
		{"carrier", "03012345672", "!dialled:x", "!dialled:x"}, // both are there: as it was dialled
		{"carrier", "00493012345672", "!world:x", "!world:x"},
		{"carrier", "101", "!extension:x", "!extension:x"},
		{"carrier", "03012345679", "", "#03012345679:x"},
		{"carrier", "meeting", "", "#meeting:x"},
		{"carrier", "", "", ""},
		{"pbx", "03012345670", "", "#03012345670:x"}, // whose country nobody has said
		{"pbx", "meeting", "", "#meeting:x"},
	} {
		for roomNames, want := range map[bool]string{false: c.room, true: c.named} {
			cfg.DialIn.RoomNames = roomNames
			b := &Bridge{routes: newRoutes(cfg, store), plan: newDialPlan(cfg)}
			if got, err := b.routeOf(t.Context(), c.trunk, sip.Number(c.dialled)); got.room != want || err != nil {
				t.Errorf("%s dials %q, room names %t: %q, %v; want %q", c.trunk, c.dialled, roomNames, got.room, err, want)
			}
		}
	}
}

func TestNumberThatLeadsNowhereIsShownAsItIsWritten(t *testing.T) {
	t.Parallel()
	r := &routes{fixed: map[string]config.Route{"+49301234567": {}, "1000": {}}}
	for dialled, want := range map[sip.Number]struct {
		form      string
		otherwise bool
	}{
		"0301234567":    {"0301…67", true},
		"0049301234567": {"0049…67", true},
		"49301234567":   {"4930…67", true},
		"+49301234568":  {"+493…68", false},
		"01000":         {"01…", false}, // too short to be sure
		"1001":          {"10…", false},
		"meeting":       {"mee…ng", false},
		"":              {"…", false},
	} {
		if got := form(dialled); got != want.form || r.otherwise(dialled) != want.otherwise {
			t.Errorf("%s is shown as %s, otherwise written: %t; want %v", dialled, got, r.otherwise(dialled), want)
		}
	}
}
