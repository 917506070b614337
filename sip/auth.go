package sip

import (
	"bytes"
	"cmp"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/icholy/digest"

	gosip "github.com/emiago/sipgo/sip"
)

// Credentials are what a trunk knows us by (RFC 3261 §22, RFC 8760).
type Credentials struct {
	Username string // our account: in From, Contact and the address that is registered
	Login    string // what a challenge is answered with, where that is another name; "" = Username
	Password string
}

// login is the name in the answers to challenges.
func (c Credentials) login() string { return cmp.Or(c.Login, c.Username) }

// LogValue keeps the password out of logs.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.Username) }

// String keeps the password out of logs written with fmt, too.
func (c Credentials) String() string { return c.Username }

// auth keeps what others have challenged us with, so that later requests carry an answer from the start. Its zero value
// is ready; one goroutine uses it.
type auth struct{ challenges []*challenge }

// challenge is one realm's, of the far end (WWW-Authenticate) or of a proxy.
type challenge struct {
	*digest.Challenge
	proxy bool
	count int // uses of the nonce (nc)
	tries int // refused in a row
}

// clone is what is known now, for another goroutine.
func (a *auth) clone() *auth {
	known := &auth{challenges: make([]*challenge, len(a.challenges))}
	for i, c := range a.challenges {
		known.challenges[i] = new(*c)
	}
	return known
}

// maxTries: a second challenge of one realm is an expired nonce, the third is a wrong password.
const maxTries = 2

// maxAsk is how often one request is sent because of challenges (and, a REGISTER, because of a 423), whichever realms they name:
// a proxy, the far end, and a stale nonce of each need five.
const maxAsk = 6

// challenged takes a 401 or 407 to a request and says whether it is worth to ask again.
func (a *auth) challenged(req *gosip.Request, res *gosip.Response, who Credentials) bool {
	if who.login() == "" {
		return false
	}
	name, proxy := "WWW-Authenticate", false
	if res.StatusCode == 407 {
		name, proxy = "Proxy-Authenticate", true
	}
	usable := false
	seen := map[string]bool{}
	for _, h := range res.GetHeaders(name) { // RFC 8760 §2.4: the first we know is the best
		chal, err := digest.ParseChallenge(h.Value())
		if err != nil || seen[chal.Realm] {
			continue
		}
		for i := range chal.QOP {
			chal.QOP[i] = strings.TrimSpace(chal.QOP[i])
		}
		if !digest.CanDigest(chal) {
			continue
		}
		seen[chal.Realm] = true
		usable = a.note(chal, proxy, nonceIn(req, chal.Realm, proxy)) || usable
	}
	return usable
}

// nonceIn is the nonce that a request has answered for a realm, "" if none.
func nonceIn(req *gosip.Request, realm string, proxy bool) string {
	name := "Authorization"
	if proxy {
		name = "Proxy-Authorization"
	}
	for _, h := range req.GetHeaders(name) {
		if cred, err := digest.ParseCredentials(h.Value()); err == nil && cred.Realm == realm {
			return cred.Nonce
		}
	}
	return ""
}

// note remembers a challenge; it is false when the answer to the one before, with that nonce, was just refused. A refusal of an older
// answer says nothing of us: the request was on its way when another one brought the newer challenge.
func (a *auth) note(chal *digest.Challenge, proxy bool, nonce string) bool {
	for _, old := range a.challenges {
		if old.proxy != proxy || old.Realm != chal.Realm {
			continue
		}
		if old.Nonce == nonce {
			if old.tries++; old.tries > maxTries || old.count == 1 && !chal.Stale {
				return false // a fresh nonce was answered, and that was not good enough
			}
		}
		if old.Nonce != chal.Nonce { // else its uses are counted on: a number that comes again is a replay (RFC 7616 §3.4)
			old.count = 0
		}
		old.Challenge = chal
		return true
	}
	if len(a.challenges) == maxAsk { // who names ever new realms must not make our requests ever longer
		a.challenges = slices.Delete(a.challenges, 0, 1)
	}
	a.challenges = append(a.challenges, &challenge{Challenge: chal, proxy: proxy})
	return true
}

// accepted: the answers were good.
func (a *auth) accepted() {
	for _, c := range a.challenges {
		c.tries = 0
	}
}

// apply answers the known challenges in req.
func (a *auth) apply(req *gosip.Request, who Credentials) {
	for _, c := range a.challenges {
		c.count++
		cred, err := digest.Digest(c.Challenge, digest.Options{
			Method: string(req.Method), URI: req.Recipient.String(), Count: c.count,
			Username: who.login(), Password: who.Password,
			GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(req.Body())), nil }, // auth-int, where auth is not offered
		})
		if err != nil {
			continue // a challenge is kept only if it can be answered
		}
		name := "Authorization"
		if c.proxy {
			name = "Proxy-Authorization"
		}
		req.AppendHeader(gosip.NewHeader(name, cred.String()))
	}
}

// again is req with answers to the challenges, as a new transaction with this sequence number.
func (a *auth) again(req *gosip.Request, cseq uint32, who Credentials) *gosip.Request {
	next := req.Clone()
	for _, name := range []string{"Authorization", "Proxy-Authorization"} {
		for next.RemoveHeader(name) {
		}
	}
	next.Via().Params.Add("branch", newBranch())
	next.CSeq().SeqNo = cseq
	a.apply(next, who)
	return next
}
