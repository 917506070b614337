package bridge

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"trunkline/bridge/command"
	"trunkline/bridge/config"
	"trunkline/bridge/number"
	"trunkline/bridge/quota"
	"trunkline/sip"
)

// dialPlan says where a number that somebody wrote leads, over which trunks, and how these write it.
type dialPlan struct {
	policy number.Policy
	quotas quota.Rules
	trunks []config.Trunk           // that calls can be sent to
	rules  map[string]number.Rules  // of all trunks
	paces  map[string]*rate.Limiter // of trunks with a limit per second
}

func newDialPlan(cfg config.Config) *dialPlan {
	p := &dialPlan{
		policy: cfg.Dialling.Policy, quotas: cfg.Dialling.Quotas(),
		rules: make(map[string]number.Rules), paces: make(map[string]*rate.Limiter),
	}
	for _, t := range cfg.SIP.Trunks {
		p.rules[t.Name] = t.Numbers
		if t.Proxy != "" && t.Direction != config.DirectionIn {
			p.trunks = append(p.trunks, t)
		}
		if t.CallsPerSecond > 0 {
			p.paces[t.Name] = rate.NewLimiter(rate.Limit(t.CallsPerSecond), t.CallsPerSecond)
		}
	}
	return p
}

// destination is a number that may be called: what it is called by us, and the ways there, the best first.
type destination struct {
	number string // in E.164, or an extension, or an address without "sip:"
	ways   []way
}

// way is one trunk that leads to a number, and what the trunk is to be asked for.
type way struct {
	trunk                config.Trunk
	dial                 sip.Number
	replaces, referredBy string // of a call that a phone has asked for (see [sip.DialRequest])
}

// Find judges what somebody wrote. Its error is in words for the room.
func (p *dialPlan) Find(typed string) (destination, error) {
	if scheme, _, isAddress := strings.Cut(typed, ":"); isAddress && (scheme == "sip" || scheme == "sips") {
		return p.address(typed)
	}
	if err := p.policy.Emergency(typed); err != nil { // first: it has no E.164, and may look like an extension
		return destination{}, err
	}
	extension := destination{number: typed}
	for _, t := range p.trunks {
		if hasExtension(t, typed) {
			extension.ways = append(extension.ways, way{trunk: t, dial: sip.Number(typed)})
		}
	}
	if len(extension.ways) > 0 {
		return extension, nil
	}
	n, err := number.Parse(typed, p.policy.Country)
	if err != nil && p.policy.AllowsNothing() {
		return destination{}, number.ErrNothingAllowed // how it should be written does not matter yet
	}
	if err != nil {
		return destination{}, &command.Error{Text: "That is not a number that I can call. Write it with its country: +49 30 123456."}
	}
	if err := p.policy.Check(n); err != nil {
		return destination{}, err
	}
	d := destination{number: string(n)}
	type candidate struct {
		way
		fit int
	}
	var found []candidate
	for _, t := range p.trunks {
		if fit := longestPrefix(t.Dials, string(n)); fit >= 0 {
			found = append(found, candidate{way{trunk: t, dial: sip.Number(t.Numbers.ToTrunk(n))}, fit})
		}
	}
	slices.SortStableFunc(found, func(a, b candidate) int { return cmp.Compare(b.fit, a.fit) })
	for _, c := range found {
		d.ways = append(d.ways, c.way)
	}
	if len(d.ways) == 0 {
		return destination{}, &command.Error{Text: "No telephone line leads to that number. Ask who runs this bridge."}
	}
	return d, nil
}

// address finds the trunk that has the domain of a SIP address.
func (p *dialPlan) address(uri string) (destination, error) {
	if err := p.policy.CheckAddress(uri); err != nil {
		return destination{}, err
	}
	_, address, _ := strings.Cut(uri, ":")
	user, domain, _ := strings.Cut(address, "@")
	d := destination{number: address}
	var refused error = &command.Error{Text: "No telephone line leads to that address. Ask who runs this bridge."}
	for _, t := range p.trunks {
		if !strings.EqualFold(domain, t.Domain) && !strings.EqualFold(domain, hostOf(t)) {
			continue
		}
		if number.LeadsOut(user) && !hasExtension(t, user) {
			refused = errLeadsOut
			continue
		}
		d.ways = append(d.ways, way{trunk: t, dial: sip.Number(user)})
	}
	if len(d.ways) > 0 {
		return d, nil
	}
	return destination{}, refused
}

// errLeadsOut refuses what a PBX would take for 0 or 9 and a number behind it: what that costs, nothing here has judged.
var errLeadsOut = &number.Refusal{
	Reason: number.NotAllowed,
	Text:   "This would lead out of that telephone system. If it is one of its extensions, who runs this bridge must name it.",
}

// Redirected judges the number that a trunk says a call should go to instead, and writes it for that trunk: it must be one that could
// be called over it, and without a second word; else it is "". What is asked for is the number that was judged, not what was written.
func (p *dialPlan) Redirected(trunk string, to sip.Number) sip.Number {
	t, err := p.trunk(trunk)
	if err != nil {
		return ""
	}
	text, ok := t.Numbers.FromTrunk(string(to))
	if !ok || longestPrefix(p.quotas.Expensive, text) > 0 {
		return ""
	}
	dial, err := p.over(t, number.E164(text))
	if err != nil {
		return ""
	}
	return dial
}

// trunk finds one that calls can be sent to.
func (p *dialPlan) trunk(name string) (config.Trunk, error) {
	i := slices.IndexFunc(p.trunks, func(t config.Trunk) bool { return t.Name == name })
	if i < 0 {
		return config.Trunk{}, fmt.Errorf("trunk %s: %w", name, sip.ErrNoTrunk)
	}
	return p.trunks[i], nil
}

// over judges a number that is to be called over one trunk and no other, and writes it for that.
func (p *dialPlan) over(t config.Trunk, n number.E164) (sip.Number, error) {
	if err := p.policy.Check(n); err != nil {
		return "", err
	}
	if longestPrefix(t.Dials, string(n)) < 0 {
		return "", &number.Refusal{Reason: number.NotAllowed, Text: "That telephone line does not lead to this number."}
	}
	return sip.Number(t.Numbers.ToTrunk(n)), nil
}

// Referred is where a call goes that a phone of a trunk asks for: over that trunk, to a number, written as that does, to an
// extension there, or an address in its domain. What nobody in a room could order, it may not, either.
func (p *dialPlan) Referred(trunk string, to sip.Number) (destination, error) {
	t, err := p.trunk(trunk)
	if err != nil {
		return destination{}, err
	}
	if err := p.policy.Emergency(string(to)); err != nil {
		return destination{}, err
	}
	if hasExtension(t, string(to)) {
		return destination{string(to), []way{{trunk: t, dial: to}}}, nil
	}
	if text, ok := t.Numbers.FromTrunk(string(to)); ok {
		dial, err := p.over(t, number.E164(text))
		if err != nil {
			return destination{}, err
		}
		return destination{text, []way{{trunk: t, dial: dial}}}, nil
	}
	address := string(to) + "@" + cmp.Or(t.Domain, hostOf(t))
	if err := p.policy.CheckAddress("sip:" + address); err != nil {
		return destination{}, err
	}
	if number.LeadsOut(string(to)) {
		return destination{}, errLeadsOut
	}
	return destination{address, []way{{trunk: t, dial: to}}}, nil
}

// Local writes a number of a trunk as the bridge does: in E.164 if the trunk's rules say how.
func (p *dialPlan) Local(trunk string, n sip.Number) sip.Number {
	rules := p.rules[trunk]
	if rules.Country == "" && len(rules.In) == 0 {
		return n
	}
	text, _ := rules.FromTrunk(string(n))
	return sip.Number(text)
}

// AwaitTurn waits a little until the trunk takes another call, and is false when too many want that, or ctx ends.
func (p *dialPlan) AwaitTurn(ctx context.Context, trunk string) bool {
	pace := p.paces[trunk]
	if pace == nil {
		return true
	}
	r := pace.Reserve()
	wait := r.Delay()
	if !r.OK() || wait > longestTurn {
		r.Cancel()
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		r.Cancel()
		return false
	}
}

// longestTurn is how long an order may wait for a trunk that takes only so many calls per second.
const longestTurn = 2 * time.Second

// hostOf is where the trunk's proxy is, without its port.
func hostOf(t config.Trunk) string {
	host, _, err := net.SplitHostPort(t.Proxy)
	if err != nil {
		return t.Proxy
	}
	return host
}

func hasExtension(t config.Trunk, typed string) bool {
	return slices.ContainsFunc(t.Extensions, func(pattern string) bool { return fits(pattern, typed) })
}

// fits compares an extension with its pattern, in which x is any digit.
func fits(pattern, typed string) bool {
	if len(pattern) != len(typed) {
		return false
	}
	for i := range len(pattern) {
		if pattern[i] != typed[i] && (pattern[i] != 'x' || typed[i] < '0' || typed[i] > '9') {
			return false
		}
	}
	return true
}

// longestPrefix is how much of a number the best of prefixes takes, 0 if there are no prefixes at all, -1 if none fits.
func longestPrefix(prefixes []string, n string) int {
	if len(prefixes) == 0 {
		return 0
	}
	best := -1
	for _, prefix := range prefixes {
		if prefix != "" && strings.HasPrefix(n, prefix) {
			best = max(best, len(prefix))
		}
	}
	return best
}
