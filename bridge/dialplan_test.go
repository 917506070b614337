package bridge

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"trunkline/bridge/config"
	"trunkline/bridge/number"
	"trunkline/sip"
)

func planOf(t *testing.T) *dialPlan {
	t.Helper()
	var c config.Config
	c.Dialling.Policy = number.Policy{Country: "DE", Allow: []string{"DE", "FR"}, Deny: []string{"+4989"}, Domains: []string{"pbx.example.org", "away.example.org"}}
	c.Dialling.Expensive = []string{"+4940"}
	c.SIP.Trunks = []config.Trunk{
		{Name: "inward", Networks: []string{"127.0.0.0/8"}},
		{Name: "registered", Proxy: "away.example.org", Direction: config.DirectionIn},
		{Name: "carrier", Proxy: "sip.example.net", Numbers: number.Rules{Country: "DE", Out: []number.Rule{{Prefix: "+", Replace: "00"}}}},
		{Name: "berlin", Proxy: "192.0.2.1:5060", Dials: []string{"+4930", "+4931"}, Numbers: number.Rules{Out: []number.Rule{{Prefix: "+49", Replace: "0"}}}},
		{Name: "pbx", Proxy: "192.0.2.2", Domain: "pbx.example.org", Dials: []string{"+4930123"}, Extensions: []string{"1xx", "*9x", "90x"}, CallsPerSecond: 1},
	}
	return newDialPlan(c)
}

func TestNumbersGoOverTheTrunkThatFitsBest(t *testing.T) {
	plan := planOf(t)
	for _, c := range []struct {
		typed, number string
		ways          []string // trunk and what it is asked for
	}{
		{"+49 30 1234567", "+49301234567", []string{"pbx +49301234567", "berlin 0301234567", "carrier 0049301234567"}},
		{"030 99887766", "+493099887766", []string{"berlin 03099887766", "carrier 00493099887766"}},
		{"+33 1 70 18 99 00", "+33170189900", []string{"carrier 0033170189900"}},
		{"123", "123", []string{"pbx 123"}},
		{"*97", "*97", []string{"pbx *97"}},
		{"sip:anna@pbx.example.org", "anna@pbx.example.org", []string{"pbx anna"}},
		{"sip:901@pbx.example.org", "901@pbx.example.org", []string{"pbx 901"}}, // the trunk names it
		{"sip:201@pbx.example.org", "201@pbx.example.org", []string{"pbx 201"}},
	} {
		got, err := plan.Find(c.typed)
		if err != nil {
			t.Errorf("Find(%q): %v", c.typed, err)
			continue
		}
		var ways []string
		for _, w := range got.ways {
			ways = append(ways, w.trunk.Name+" "+string(w.dial))
		}
		if got.number != c.number || !slices.Equal(ways, c.ways) {
			t.Errorf("Find(%q) = %q over %q, want %q over %q", c.typed, got.number, ways, c.number, c.ways)
		}
	}
}

func TestWhatMayNotBeCalledSaysWhy(t *testing.T) {
	plan := planOf(t)
	for typed, want := range map[string]string{
		"112":                         "Emergency numbers can't be called from here. Use a telephone.",
		"110":                         "Emergency numbers can't be called from here. Use a telephone.", // although it looks like an extension
		"+49 89 1234567":              "Numbers of this range may not be called.",
		"+44 20 7946 0958":            "Numbers of this country or range may not be called from here.",
		"0900 1234567":                "Numbers of this kind (premium) may not be called.",
		"12":                          "That is not a number that I can call. Write it with its country: +49 30 123456.",
		"+49 30 12":                   "That number is too short or too long, or not one that is known to be in use.",
		"sip:anna@away.example.org":   "No telephone line leads to that address. Ask who runs this bridge.",
		"sip:anna@example.com":        "SIP addresses of this domain may not be called.",
		"sip:112@pbx.example.org":     "Emergency numbers can't be called from here. Use a telephone.",
		"sip:112w@pbx.example.org":    "Emergency numbers can't be called from here. Use a telephone.",
		"sip:011833@pbx.example.org":  "This would lead out of that telephone system. If it is one of its extensions, who runs this bridge must name it.",
		"sip:9112@pbx.example.org":    "This would lead out of that telephone system. If it is one of its extensions, who runs this bridge must name it.",
		"sip:+118.33@pbx.example.org": "This would lead out of that telephone system. If it is one of its extensions, who runs this bridge must name it.",
		"sip:9w110@pbx.example.org":   "This would lead out of that telephone system. If it is one of its extensions, who runs this bridge must name it.",
	} {
		_, err := plan.Find(typed)
		if err == nil {
			t.Errorf("Find(%q) has no objection", typed)
			continue
		}
		if got, ok := plainWords(err); !ok || got != want {
			t.Errorf("Find(%q): %q, want %q", typed, got, want)
		}
	}
}

// However a number is written: nothing about it is at fault.
func TestWhereNoCountryIsSetNumbersAreRefusedForThat(t *testing.T) {
	var c config.Config
	c.SIP.Trunks = []config.Trunk{{Name: "pbx", Proxy: "192.0.2.2", Extensions: []string{"1xx"}}}
	plan := newDialPlan(c)
	for _, typed := range []string{"030 1234567", "+49 30 1234567", "0900 1234567", "12"} {
		_, err := plan.Find(typed)
		if got, _ := plainWords(err); got != "No telephone number may be called from here yet: who runs this bridge has not set dialling.country." || reasonOf(err) != "dialling.country is not set" {
			t.Errorf("Find(%q): %v", typed, err)
		}
	}
	if _, err := plan.Find("123"); err != nil {
		t.Errorf("an extension: %v", err)
	}
	if got, _ := plainWords(plan.policy.Emergency("112")); !strings.HasPrefix(got, "Emergency") {
		t.Errorf("112: %q", got)
	}
}

func TestRedirectionsAreJudgedLikeOrders(t *testing.T) {
	plan := planOf(t)
	for to, want := range map[sip.Number]sip.Number{
		"+49301234567": "0049301234567", "030 1234567": "0049301234567", "0301234567": "0049301234567", "+49(0)301234567": "0049301234567",
		"+49891234567": "", "+49401234567": "", "112": "", "123": "", "+442079460958": "", "anna": "",
	} {
		if got := plan.Redirected("carrier", to); got != want {
			t.Errorf("Redirected(%s) = %q, want %q", to, got, want)
		}
	}
	for _, c := range []struct{ trunk, to, want sip.Number }{
		{"berlin", "+493099887766", "03099887766"},
		{"berlin", "+49211234567", ""}, // nobody could have ordered that over this trunk
		{"pbx", "+49301234567", "+49301234567"},
		{"pbx", "+493099887766", ""},
		{"inward", "+49301234567", ""}, // no calls are placed over these
		{"nowhere", "+49301234567", ""},
	} {
		if got := plan.Redirected(string(c.trunk), c.to); got != c.want {
			t.Errorf("%s: Redirected(%s) = %q, want %q", c.trunk, c.to, got, c.want)
		}
	}
}

// What is judged is what is called, also where a trunk's rules make another number of what it writes.
func TestRedirectedNumbersAreCalledAsTheyWereJudged(t *testing.T) {
	plan := planOf(t)
	plan.policy.Deny = nil
	plan.trunks[0].Numbers.In = []number.Rule{{Prefix: "0", Replace: "+49"}}
	plan.rules["carrier"] = plan.trunks[0].Numbers
	const worldwide = "008821300000" // read by these rules it is a number in Garmisch, and that is what is called
	if got := plan.Redirected("carrier", worldwide); got != "00498821300000" {
		t.Errorf("Redirected(%s) = %q", worldwide, got)
	}
}

// A number that may not be called is refused in whatever way it is written: by a person, by a trunk that redirects a call, and by a phone
// that hands its call over. What is let through anyhow asks the trunk for a number that may be called.
func TestNumbersInDisguiseAreRefused(t *testing.T) {
	plan := planOf(t)
	const premium, denied, abroad = "9001234567", "891234567", "2079460958" // of a kind, of a range, of a country
	var written []string
	for code, national := range map[string]string{"49": premium, "49 ": denied, "44": abroad} {
		code = strings.TrimSpace(code)
		international := code + national
		written = append(written, "+"+international, "00"+international, "00 "+code+" (0) "+national, "+"+code+"0"+national, "+"+code+"00"+national,
			"0000"+international, "011"+international, "+00"+international, "++"+international, "+"+code+"/"+national, "tel:+"+international,
			"*67"+"00"+international, "*31#00"+international, "#31#+"+international, "*#00"+international, "00"+international+"#",
			"010330"+"0"+international, "0101300"+international, "101033300"+international, "+4901033"+"00"+international, "9,00"+international, "9p00"+international, "9w00"+international,
			"+"+international+";ext=1", "+"+international+";phone-context=+49", "00"+international+";isub=7", "+"+international+" ext. 1", "+"+international+"x1",
			"%2B"+international, "%30"+"0"+international, "+"+strings.Map(fullWidth, international), strings.Map(fullWidth, "00"+international),
			"+"+strings.Map(arabic, international), "+\u200b"+international, "+"+code+"\u00a0"+national, "+"+code+"\t"+national, "0\r\n0"+international)
		if code == "49" {
			written = append(written, "0"+national, "(0)"+national, "0-"+national, "0."+national, "*31#0"+national, "010330"+national, "01013 0"+national)
		}
	}
	for _, w := range written {
		check := func(how string, to destination, err error) {
			for _, over := range to.ways {
				t.Errorf("%s %q asks %s for %q, as %q", how, w, over.trunk.Name, over.dial, to.number)
			}
			if (err == nil) != (len(to.ways) > 0) {
				t.Errorf("%s %q: %v", how, w, err)
			}
		}
		to, err := plan.Find(w)
		check("ordered as", to, err)
		for _, domain := range []string{"pbx.example.org", "PBX.example.org", "pbx.example.org:5060", "192.0.2.2", "pbx.example.org;user=phone", "pbx.example.org?Replaces=a"} {
			to, err = plan.Find("sip:" + w + "@" + domain)
			check("ordered at "+domain+" as", to, err)
		}
		for _, trunk := range []string{"carrier", "berlin", "pbx"} {
			to, err = plan.Referred(trunk, sip.Number(w))
			check("referred to "+trunk+" as", to, err)
			if dial := plan.Redirected(trunk, sip.Number(w)); dial != "" {
				t.Errorf("redirected by %s as %q asks for %q", trunk, w, dial)
			}
		}
	}
}

func fullWidth(digit rune) rune { return digit - '0' + '０' }

func arabic(digit rune) rune { return digit - '0' + '٠' }

func TestTrunkTakesOnlySoManyCallsPerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plan, begun := planOf(t), time.Now()
		var taken atomic.Int64
		var group sync.WaitGroup
		for range 5 { // one at once, one after a second, one after two
			group.Go(func() {
				if plan.AwaitTurn(t.Context(), "pbx") {
					taken.Add(1)
				}
			})
		}
		group.Wait()
		if n, took := taken.Load(), time.Since(begun); n != 3 || took != longestTurn {
			t.Errorf("%d of five calls taken in %v, want three in %v", n, took, longestTurn)
		}
		if !plan.AwaitTurn(t.Context(), "carrier") || time.Since(begun) != longestTurn {
			t.Error("a trunk without a limit makes wait")
		}
	})
}
