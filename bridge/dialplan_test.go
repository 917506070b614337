package bridge

import (
	"slices"
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
		{Name: "pbx", Proxy: "192.0.2.2", Domain: "pbx.example.org", Dials: []string{"+4930123"}, Extensions: []string{"1xx", "*9x"}, CallsPerSecond: 1},
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
		"112":                       "Emergency numbers can't be called from here. Use a telephone.",
		"110":                       "Emergency numbers can't be called from here. Use a telephone.", // although it looks like an extension
		"+49 89 1234567":            "Numbers of this range may not be called.",
		"+44 20 7946 0958":          "Numbers of this country or range may not be called from here.",
		"0900 1234567":              "Numbers of this kind (premium) may not be called.",
		"12":                        "That is not a number that I can call. Write it with its country: +49 30 123456.",
		"sip:anna@away.example.org": "No telephone line leads to that address. Ask who runs this bridge.",
		"sip:anna@example.com":      "SIP addresses of this domain may not be called.",
		"sip:112@pbx.example.org":   "Emergency numbers can't be called from here. Use a telephone.",
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

func TestRedirectionsAreJudgedLikeOrders(t *testing.T) {
	plan := planOf(t)
	for to, want := range map[string]bool{
		"+49301234567": true, "030 1234567": true, "0301234567": true,
		"+49891234567": false, "+49401234567": false, "112": false, "123": false, "+442079460958": false, "anna": false,
	} {
		if got := plan.MayRedirect("carrier", sip.Number(to)); got != want {
			t.Errorf("MayRedirect(%s) = %t, want %t", to, got, want)
		}
	}
}

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
