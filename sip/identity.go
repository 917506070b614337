package sip

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"

	gosip "github.com/emiago/sipgo/sip"
)

// inviteInfo reads who calls whom.
func inviteInfo(trunk *Trunk, req *gosip.Request) Info {
	i := Info{
		Trunk: trunk.Name, Dialled: userPart(&req.Recipient), CallID: req.CallID().Value(), Source: req.Source(),
	}
	if trunk.Register && string(i.Dialled) == trunk.Auth.Username {
		if to := userPart(&req.To().Address); to != "" {
			i.Dialled = to // the Request-URI is our binding: who was called stands in To
		}
	}
	i.Caller = callerOf(trunk, req)
	// A proxy of RFC 7044 adds an entry for each hop: who was dialled has forwarded nothing.
	i.Diverted = slices.DeleteFunc(diverted(req), func(n Number) bool { return n == i.Dialled })
	return i
}

// addressed finds over which of several trunks behind one address a call has come, by what it calls: the user of its Request-URI,
// which is our Contact where we are registered, and of To. An account that is called by its name wins, then whose number it is,
// then the first. A trunk whose certificate was not asked for when the connection was made is none of them.
func addressed(trunks []*Trunk, called ...Number) *Trunk {
	first := trunks[0]
	for _, mine := range []func(*Trunk, Number) bool{
		func(t *Trunk, n Number) bool { return string(n) == t.Auth.Username },
		func(t *Trunk, n Number) bool { return t.Has != nil && t.Has(n) },
	} {
		for _, n := range called {
			for _, t := range trunks {
				if n != "" && mine(t, n) && (t.ClientCAs == nil || t.ClientCAs.Equal(first.ClientCAs)) {
					return t
				}
			}
		}
	}
	return first
}

// maxDiverted is how many stations of a call are kept.
const maxDiverted = 10

// diverted reads the way a call has come: History-Info tells it from the beginning, its last entry being where the call
// is now; Diversion from the end.
func diverted(req *gosip.Request) []Number {
	entries := func(name string) (out []string) {
		for _, h := range req.GetHeaders(name) {
			out = append(out, splitAddresses(h.Value())...)
		}
		return out
	}
	list := entries("Diversion")
	slices.Reverse(list)
	if len(list) == 0 && !wantsPrivacy(req, "history", "session", "header") { // RFC 7044 §10.1
		list = entries("History-Info")
		list = list[:max(0, len(list)-1)]
	}
	var out []Number
	for _, one := range list {
		var uri gosip.Uri
		params := gosip.NewParams()
		if _, err := gosip.ParseAddressValue(one, &uri, &params); err != nil || hidden(params) || hidden(uri.Headers) {
			continue
		}
		if n := party(&uri); n != "" {
			out = append(out, n)
		}
	}
	return out[max(0, len(out)-maxDiverted):]
}

// hidden tells by the parameters of an address whether its owner wants not to be named: those of Diversion (RFC 5806 §5) and
// Remote-Party-ID, or of History-Info the headers in the address (RFC 7044 §10.1).
func hidden(params gosip.HeaderParams) bool {
	privacy, ok := paramOf(params, "privacy")
	return ok && privacy != "off" && privacy != "none"
}

// paramOf reads a parameter as ParseAddressValue leaves it: in letters of either case, with blanks and quotes around it.
func paramOf(params gosip.HeaderParams, name string) (string, bool) {
	for _, p := range params {
		if strings.EqualFold(strings.TrimSpace(p.K), name) {
			return strings.ToLower(strings.Trim(p.V, "\" \t")), true
		}
	}
	return "", false
}

// wantsPrivacy says that the Privacy of a request has one of these values (RFC 3323 §4.2).
func wantsPrivacy(req *gosip.Request, values ...string) bool {
	for _, p := range listHeader(req, "Privacy", "") {
		for v := range strings.SplitSeq(p, ";") {
			if slices.Contains(values, strings.ToLower(strings.TrimSpace(v))) {
				return true
			}
		}
	}
	return false
}

// callerOf reads who speaks: From, and on a trusted trunk what the network asserts. Who wants not to be shown is believed on any trunk.
func callerOf(trunk *Trunk, req *gosip.Request) Caller {
	from := req.From()
	c := Caller{Number: party(&from.Address), DisplayName: displayName(from.DisplayName)}
	c.Private = wantsPrivacy(req, "id", "user", "header") || hiddenParty(req) // RFC 3325 §9.3
	if withheld[strings.ToLower(from.Address.User)] || strings.HasSuffix(strings.ToLower(from.Address.Host), "anonymous.invalid") {
		c.Private = true
	}
	if trunk.TrustIdentity {
		assertedIdentity(req, &c)
	}
	if untold(c.DisplayName) {
		c.DisplayName = ""
	}
	if c.Private {
		c.Number, c.DisplayName = "", ""
	}
	return c
}

// withheld are the words that gateways write in place of a number that the network has not told: true, because its owner wants that.
var withheld = map[string]bool{"anonymous": true, "restricted": true, "unavailable": false, "unknown": false}

func untold(name string) bool {
	_, is := withheld[strings.ToLower(name)]
	return is
}

// party is who an address is of, "" for nobody in particular.
func party(u *gosip.Uri) Number {
	n := userPart(u)
	if untold(string(n)) {
		return ""
	}
	return n
}

// hiddenParty says that a Remote-Party-ID wants its caller hidden.
func hiddenParty(req *gosip.Request) bool {
	for _, h := range req.GetHeaders("Remote-Party-ID") {
		for _, one := range splitAddresses(h.Value()) {
			var uri gosip.Uri
			params := gosip.NewParams()
			if _, err := gosip.ParseAddressValue(one, &uri, &params); err != nil {
				continue
			}
			if of, ok := paramOf(params, "party"); (!ok || of == "calling") && hidden(params) {
				return true
			}
		}
	}
	return false
}

// assertedIdentity takes number and name from P-Asserted-Identity (RFC 3325 §9.1: a sip and a tel URI at most), or from
// the older Remote-Party-ID, which many PBXs send instead.
func assertedIdentity(req *gosip.Request, c *Caller) {
	for _, name := range []string{"P-Asserted-Identity", "Remote-Party-ID"} {
		for _, h := range req.GetHeaders(name) {
			var uri gosip.Uri
			params := gosip.NewParams()
			display, err := gosip.ParseAddressValue(firstOf(h.Value()), &uri, &params)
			if err != nil {
				continue
			}
			n := party(&uri)
			if of, ok := paramOf(params, "party"); n == "" || ok && of != "calling" {
				continue
			}
			c.Number = n
			if display = displayName(display); display != "" {
				c.DisplayName = display
			}
			return
		}
	}
}

// refreshIdentity notices in a re-INVITE or UPDATE that the phone's side is somebody else now. A From that changed is
// used from now on (RFC 4916 §4.4.4); who is shown changes only on a trunk whose word we take.
func (c *Call) refreshIdentity(req *gosip.Request) {
	from := addressOf(req.From())
	renamed := from != c.dialog.RemoteURI
	if renamed {
		c.dialog.RemoteURI = from
	}
	asserted := len(req.GetHeaders("P-Asserted-Identity")) > 0 || len(req.GetHeaders("Remote-Party-ID")) > 0
	if c.trunk == nil || !c.trunk.TrustIdentity || !renamed && !asserted {
		return
	}
	c.showAs(callerOf(c.trunk, req))
}

// showAs says who the phone's side is, if that is somebody else now.
func (c *Call) showAs(who Caller) {
	if who != c.dialog.Info.Caller {
		c.dialog.Info.Caller = who
		c.emit(IdentityChanged{who})
	}
}

// firstOf cuts a comma-separated list of addresses after its first.
func firstOf(list string) string {
	quoted, angled := false, false
	for i, r := range list {
		switch {
		case r == '"':
			quoted = !quoted
		case quoted:
		case r == '<':
			angled = true
		case r == '>':
			angled = false
		case r == ',' && !angled:
			return list[:i]
		}
	}
	return list
}

// userPart is the number or name an address is for, without the parameters of RFC 3966 and visual separators.
func userPart(u *gosip.Uri) Number {
	user := u.User
	if strings.EqualFold(u.Scheme, "tel") {
		user = u.Raw()
	}
	if s, err := url.PathUnescape(user); err == nil {
		user = s
	}
	user, _, _ = strings.Cut(user, ";")
	user = plainText(user)
	if isNumber(user) {
		user = strings.Map(func(r rune) rune {
			if strings.ContainsRune("-.() ", r) {
				return -1
			}
			return r
		}, user)
	}
	return Number(user)
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789+-.()*# ") == ""
}

func displayName(s string) string { return plainText(strings.Trim(strings.TrimSpace(s), `"`)) }

// IdentityHeader is where a trunk wants the caller's number besides From, or instead.
type IdentityHeader string

// The ways of [CallerID].
const (
	NoIdentity        IdentityHeader = ""
	AssertedIdentity  IdentityHeader = "P-Asserted-Identity"  // RFC 3325: it trusts us
	PreferredIdentity IdentityHeader = "P-Preferred-Identity" // RFC 3325: it checks us
	RemoteParty       IdentityHeader = "Remote-Party-ID"      // older, for PBXs
)

// CallerID is how a trunk is told who calls.
type CallerID struct {
	Header IdentityHeader
	// AccountInFrom puts the account's name into From, which some carriers insist on; the number then needs Header.
	AccountInFrom bool
}

// callingParty is our From.
func (s *Stack) callingParty(trunk *Trunk, local netip.AddrPort, from Caller) string {
	if from.Private { // RFC 3323 §4.1.1.3
		return `"Anonymous" <sip:anonymous@anonymous.invalid>`
	}
	if from.Number == "" || trunk.CallerID.AccountInFrom {
		from.Number = Number(trunk.Auth.Username)
	}
	return s.nameAddress(trunk, local, from)
}

// nameAddress is who with an address of this trunk.
func (s *Stack) nameAddress(trunk *Trunk, local netip.AddrPort, who Caller) string {
	host, _ := s.sentBy(trunk, local)
	if trunk.Domain != "" {
		host = trunk.Domain
	}
	uri := gosip.Uri{Scheme: "sip", User: userOf(string(who.Number)), Host: bracketed(host)}
	if name := plainText(who.DisplayName); name != "" {
		return `"` + name + `" <` + uri.String() + ">"
	}
	return "<" + uri.String() + ">"
}

// identityHeaders tell the trunk who calls, and whether the called may know. Without an identity header a private number
// does not leave us at all.
func (s *Stack) identityHeaders(trunk *Trunk, local netip.AddrPort, from Caller) []gosip.Header {
	var out []gosip.Header
	if h := trunk.CallerID.Header; h != NoIdentity && from.Number != "" {
		value := s.nameAddress(trunk, local, from)
		if h == RemoteParty {
			privacy := "off"
			if from.Private {
				privacy = "full"
			}
			value += ";party=calling;screen=no;privacy=" + privacy
		}
		out = append(out, gosip.NewHeader(string(h), value))
	}
	if from.Private {
		out = append(out, gosip.NewHeader("Privacy", "id")) // RFC 3325 §9.3
	}
	return out
}
