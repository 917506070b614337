package sip

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"slices"
	"strings"

	gosip "github.com/emiago/sipgo/sip"
)

// allow lists the methods we act on; Allow headers say so.
var allow = []gosip.RequestMethod{
	gosip.INVITE, gosip.ACK, gosip.CANCEL, gosip.BYE, gosip.OPTIONS, gosip.INFO, gosip.UPDATE, gosip.PRACK,
	gosip.REFER, gosip.NOTIFY,
}

// known are methods that exist but are not for us: 405 instead of 501 (RFC 3261 §8.2.1).
var known = []gosip.RequestMethod{
	gosip.REGISTER, gosip.SUBSCRIBE, gosip.MESSAGE, gosip.PUBLISH,
}

// supported are the option tags we understand (RFC 3262, 3891, 4028, 4488, 4916); others, like precondition, are refused by name.
var supported = []string{"100rel", "timer", "from-change", "replaces", "norefersub"}

const sdpType = "application/sdp"

// bodyTypes are those of bodies that we find a description in ([describe]).
const bodyTypes = sdpType + ", multipart/mixed"

// refusal is a final answer to a request that is not acted on.
type refusal struct {
	code    int
	reason  string
	headers []gosip.Header
	why     string // for the log, where the phrase does not say it
}

func refuse(code int, reason string, headers ...gosip.Header) *refusal {
	return &refusal{code: code, reason: reason, headers: headers}
}

// because has the log say more than the phone is told.
func (r *refusal) because(why string) *refusal {
	r.why = why
	return r
}

// cause is what the log says.
func (r *refusal) cause() string { return cmp.Or(r.why, r.reason) }

// notNow refuses what may be asked again in a moment (RFC 3261 §14.2, RFC 3311 §5.2).
func notNow(why string) *refusal {
	return refuse(500, statusText(500), gosip.NewHeader("Retry-After", "2")).because(why)
}

// Why requests within a call are refused.
const (
	whyUnanswered = "the call is not answered yet"
	whyNoMedia    = "the call was resumed without its sound"
	whyOurOffer   = "an offer of ours waits for its answer"
	whyEnding     = "the call is being hung up"
	whyNoDialog   = "no such call"
)

func allowHeader() gosip.Header {
	names := make([]string, len(allow))
	for i, m := range allow {
		names[i] = string(m)
	}
	return gosip.NewHeader("Allow", strings.Join(names, ", "))
}

func supportedHeader() gosip.Header {
	return gosip.NewHeader("Supported", strings.Join(supported, ", "))
}

// checkRequest does the checks every user agent owes (RFC 3261 §8.2, RFC 4475), in that order; nil means go on.
// The guard has seen most messages before; those that came over a connection we opened pass only here.
func checkRequest(req *gosip.Request) *refusal {
	if r := checkHeaders(req); r != nil {
		return r
	}
	if !slices.Contains(allow, req.Method) {
		if slices.Contains(known, req.Method) {
			return refuse(405, "Method Not Allowed", allowHeader())
		}
		return refuse(501, "Not Implemented", allowHeader())
	}
	if req.Method == gosip.CANCEL { // §8.2.2.3: Require and bodies do not count here
		return nil
	}
	switch strings.ToLower(req.Recipient.Scheme) {
	case "sip", "tel":
	case "sips": // TLS on every hop (RFC 5630)
		if !strings.EqualFold(req.Transport(), string(TLS)) {
			return refuse(416, "Unsupported URI Scheme")
		}
	default:
		return refuse(416, "Unsupported URI Scheme")
	}
	if missing := unsupported(req); len(missing) > 0 {
		return refuse(420, "Bad Extension", gosip.NewHeader("Unsupported", strings.Join(missing, ", ")))
	}
	if accepted := listHeader(req, "Accept", ""); req.IsInvite() && len(accepted) > 0 && !acceptsSDP(accepted) {
		return refuse(406, "Not Acceptable")
	}
	return checkBody(req)
}

// acceptsSDP reads an Accept header (§20.1).
func acceptsSDP(ranges []string) bool {
	return slices.ContainsFunc(ranges, func(r string) bool {
		r, _, _ = strings.Cut(r, ";")
		switch strings.ToLower(strings.TrimSpace(r)) {
		case sdpType, "application/*", "*/*", "*":
			return true
		}
		return false
	})
}

func checkHeaders(req *gosip.Request) *refusal {
	if !strings.EqualFold(req.SipVersion, "SIP/2.0") {
		return refuse(505, "Version Not Supported")
	}
	if req.Via() == nil || req.From() == nil || req.To() == nil || req.CallID() == nil || req.CSeq() == nil {
		return refuse(400, "Missing header")
	}
	for _, name := range []string{"From", "To", "Call-ID", "CSeq"} {
		if len(req.GetHeaders(name)) > 1 {
			return refuse(400, "Repeated header "+name)
		}
	}
	if !strings.EqualFold(string(req.CSeq().MethodName), string(req.Method)) {
		return refuse(400, "CSeq method does not match")
	}
	if h := req.MaxForwards(); h != nil && h.Val() > 255 {
		return refuse(400, "Bad Max-Forwards")
	} else if h != nil && h.Val() == 0 && req.IsInvite() && !inDialog(req) {
		// We hand calls on to another network: RFC 7332 wants the loop broken here. Other requests end with us.
		return refuse(483, "Too Many Hops")
	}
	return nil
}

// unsupported lists what the request requires and we lack.
func unsupported(req *gosip.Request) []string {
	var missing []string
	for _, tag := range listHeader(req, "Require", "") {
		if !slices.ContainsFunc(supported, func(s string) bool { return strings.EqualFold(s, tag) }) {
			missing = append(missing, plainToken(tag))
		}
	}
	return missing
}

// checkBody: bodies of INVITE and UPDATE must be session descriptions, uncompressed (§8.2.3).
func checkBody(req *gosip.Request) *refusal {
	if len(req.Body()) == 0 || !req.IsInvite() && req.Method != gosip.UPDATE {
		return nil
	}
	accept := gosip.NewHeader("Accept", bodyTypes)
	for _, enc := range listHeader(req, "Content-Encoding", "e") {
		if !strings.EqualFold(enc, "identity") {
			return refuse(415, "Unsupported Media Type", accept, gosip.NewHeader("Accept-Encoding", "identity"))
		}
	}
	if contentType(req) != sdpType {
		return refuse(415, "Unsupported Media Type", accept)
	}
	return nil
}

// contentType is the media type of the body in lower case, without parameters.
func contentType(m gosip.Message) string {
	var v string
	if h := headerOf(m, "Content-Type", "c"); h != nil {
		v, _, _ = strings.Cut(h.Value(), ";")
	}
	return strings.ToLower(strings.TrimSpace(v))
}

// describe leaves of a body the session description: carriers send signalling of their own beside it or in its place (ISUP), or where
// the caller is, of which we have no use. Everybody else finds what others send alone. What is beside a description is never looked at, not
// even where it says that it must be understood: who sends that wants the call. Where there is no description, such a body stays, to be
// refused; a response cannot be.
func describe(m interface {
	gosip.Message
	RemoveHeader(name string) bool
},
) {
	kind := contentType(m)
	if kind == "" || kind == sdpType || m.CSeq() == nil || !slices.Contains(describing, m.CSeq().MethodName) {
		return
	}
	_, response := m.(*gosip.Response)
	body, needless := descriptionIn(headerOf(m, "Content-Type", "c").Value(), m.Body(), maxNested)
	if h := headerOf(m, "Content-Disposition", ""); h != nil && optional(h.Value()) || response {
		needless = true
	}
	if body == nil && !needless {
		return
	}
	m.RemoveHeader("Content-Type")
	m.RemoveHeader("c")
	if body != nil {
		m.AppendHeader(gosip.NewHeader("Content-Type", sdpType))
	}
	m.SetBody(body)
}

// describing are the methods whose messages may have a description.
var describing = []gosip.RequestMethod{gosip.INVITE, gosip.ACK, gosip.PRACK, gosip.UPDATE}

const (
	maxParts  = 16 // of a body are looked at
	maxNested = 2  // of them within each other
)

// descriptionIn finds the description in a body of several parts (RFC 5621 §3.1); without one, needless says that none of them must be
// understood.
func descriptionIn(contentType string, body []byte, depth int) (description []byte, needless bool) {
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil || !strings.HasPrefix(kind, "multipart/") || params["boundary"] == "" || depth == 0 {
		return nil, false
	}
	parts := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	needless = true
	for i := range maxParts {
		part, err := parts.NextRawPart()
		if err != nil {
			return nil, needless && i > 0 && errors.Is(err, io.EOF)
		}
		content, err := io.ReadAll(part)
		if err != nil {
			return nil, false
		}
		of := part.Header.Get("Content-Type")
		if kind, _, _ := strings.Cut(of, ";"); strings.EqualFold(strings.TrimSpace(kind), sdpType) {
			return content, false
		}
		inner, inside := descriptionIn(of, content, depth-1)
		if inner != nil {
			return inner, false
		}
		needless = needless && (inside || optional(part.Header.Get("Content-Disposition")))
	}
	return nil, false
}

// optional says that a body may be left alone (RFC 3261 §20.11).
func optional(disposition string) bool {
	_, params, err := mime.ParseMediaType(disposition)
	return err == nil && strings.EqualFold(params["handling"], "optional")
}

// headerOf finds a header by its long or compact name; sipgo keeps names as they came.
func headerOf(m gosip.Message, name, compact string) gosip.Header {
	if h := m.GetHeaders(name); len(h) > 0 {
		return h[0]
	}
	if compact != "" {
		if h := m.GetHeaders(compact); len(h) > 0 {
			return h[0]
		}
	}
	return nil
}

// listHeader reads all values of a comma-separated header.
func listHeader(m gosip.Message, name, compact string) []string {
	all := m.GetHeaders(name)
	if compact != "" {
		all = append(all, m.GetHeaders(compact)...)
	}
	var out []string
	for _, h := range all {
		for v := range strings.SplitSeq(h.Value(), ",") {
			if v = strings.TrimSpace(v); v != "" {
				out = append(out, v)
			}
		}
	}
	return out
}

// statusText is the phrase for a status we send; phrases never carry text from elsewhere.
func statusText(code int) string {
	switch code {
	case 100:
		return "Trying"
	case 180:
		return "Ringing"
	case 183:
		return "Session Progress"
	case 200:
		return "OK"
	case 202:
		return "Accepted"
	case 400:
		return "Bad Request"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 408:
		return "Request Timeout"
	case 480:
		return "Temporarily Unavailable"
	case 481:
		return "Call/Transaction Does Not Exist"
	case 482:
		return "Loop Detected"
	case 484:
		return "Address Incomplete"
	case 486:
		return "Busy Here"
	case 487:
		return "Request Terminated"
	case 488:
		return "Not Acceptable Here"
	case 491:
		return "Request Pending"
	case 500:
		return "Server Internal Error"
	case 503:
		return "Service Unavailable"
	case 600:
		return "Busy Everywhere"
	case 603:
		return "Decline"
	}
	return "Refused"
}
