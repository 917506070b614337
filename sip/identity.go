package sip

import (
	"net/url"
	"strings"

	gosip "github.com/emiago/sipgo/sip"
)

// inviteInfo reads who calls whom.
func inviteInfo(trunk *Trunk, req *gosip.Request) Info {
	i := Info{
		Trunk: trunk.Name, Dialled: userPart(&req.Recipient), CallID: req.CallID().Value(), Source: req.Source(),
	}
	from := req.From()
	i.Caller = Caller{Number: userPart(&from.Address), DisplayName: displayName(from.DisplayName)}
	for _, p := range listHeader(req, "Privacy", "") { // RFC 3323 §4.2, RFC 3325 §9.3
		for v := range strings.SplitSeq(p, ";") {
			switch strings.ToLower(strings.TrimSpace(v)) {
			case "id", "user", "header":
				i.Caller.Private = true
			}
		}
	}
	if strings.EqualFold(from.Address.User, "anonymous") || strings.HasSuffix(strings.ToLower(from.Address.Host), "anonymous.invalid") {
		i.Caller.Private = true
	}
	if trunk.TrustIdentity {
		assertedIdentity(req, &i.Caller)
	}
	if i.Caller.Private {
		i.Caller.Number, i.Caller.DisplayName = "", ""
	}
	return i
}

// assertedIdentity takes number and name from P-Asserted-Identity (RFC 3325 §9.1): a sip and a tel URI at most.
func assertedIdentity(req *gosip.Request, c *Caller) {
	for _, h := range req.GetHeaders("P-Asserted-Identity") {
		var uri gosip.Uri
		var params gosip.HeaderParams
		name, err := gosip.ParseAddressValue(firstOf(h.Value()), &uri, &params)
		if err != nil {
			continue
		}
		if n := userPart(&uri); n != "" {
			c.Number = n
			if name = displayName(name); name != "" {
				c.DisplayName = name
			}
			return
		}
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
