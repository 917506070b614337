package sip

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gosip "github.com/emiago/sipgo/sip"
)

func options(edit ...string) string { return other("OPTIONS", edit...) }

func other(method string, edit ...string) string {
	return request(method, bridgeURI, bridgeTo, "o1", 1, "", edit...)
}

// startLine replaces the start line of a message.
func startLine(m, with string) string {
	_, rest, _ := strings.Cut(m, "\n")
	return with + "\n" + rest
}

// The cases of RFC 4475, written anew for our addresses. want is the final answer; "" is silence.
var tortureTests = []struct {
	name, message string
	want          string
	header        string // must be in the answer
}{
	{
		"§3.1.1.1 a tortuous INVITE, which names a dialog", tortuous, "481", "To: <sip:vivekg@chair-dnrc.example.com>;tag=1918181833n\r\n",
	},
	{
		"§3.1.1.1 a tortuous INVITE", strings.Replace(tortuous, "   tag    =", "   nag    =", 1),
		"200", "From: \"J Rosenberg \\\\\\\"\" <sip:jdrosen@example.com>;tag=98asjd8\r\n",
	},
	{"§3.1.1.2 a method of strange characters", other("!interesting-Method0123456789_*+`.%indeed'~"), "501", "Allow"},
	{
		"§3.1.1.3 escaped characters", request("INVITE", "sip:sips%3Auser%40example.com@192.0.2.1", bridgeTo, "o1", 1, peerOffer),
		"200",
		"",
	},
	{"§3.1.1.4 escaped nulls", other("REGISTER", "Contact: <sip:%00@192.0.2.20>"), "405", "Allow"},
	{"§3.1.1.5 percent where it escapes nothing", other("RE%47IST%45R"), "501", ""},
	{"§3.1.1.6 no space before the bracket", options("From: caller<sip:caller@192.0.2.20>;tag=323"), "200", ""},
	{
		"§3.1.1.7 long values", invite("Call-ID: longreq.one"+strings.Repeat("really", 20)+"long", "X-Long: "+strings.Repeat("long", 200)),
		"200",
		"",
	},
	{"§3.1.1.8 octets after the message", options() + "INVITE sip:joe@example.com SIP/2.0\n\n", "200", ""},
	{"§3.1.1.9 semicolons in the user part", startLine(options(), "OPTIONS sip:user;par=u%40example.net@192.0.2.1 SIP/2.0"), "200", ""},
	{
		"§3.1.1.10 transports of all kinds",
		options("Via: SIP/2.0/UDP 192.0.2.20;branch=z9hG4bKkdjuw\nVia: SIP/2.0/SCTP t2.example.com\nVia: SIP/2.0/UNKNOWN t5.example.com;branch=z9hG4bKu"),
		"200",
		"",
	},
	{"§3.1.1.11 several bodies", invite("Content-Type: multipart/mixed;boundary=7a9cbec02ceef655"), "415", "Accept: application/sdp"},
	{"§3.1.1.12 a response with a strange phrase", "SIP/2.0 200 = 2**3 * 5**2 \xd0\xbd\n" + replyTail, "", ""},
	{"§3.1.1.13 a response without phrase", "SIP/2.0 100 \n" + replyTail, "", ""},

	{"§3.1.2.1 stray separators", invite("Contact: \"Joe\" <sip:joe@example.org>;;;;", "Via: SIP/2.0/UDP 192.0.2.15;;,;,,"), "400", ""},
	{"§3.1.2.2 length beyond the message", invite("Content-Length: 9999"), "400", ""},
	{"§3.1.2.3 negative length", invite("Content-Length: -999"), "400", ""},
	{"§3.1.2.4 numbers too large", options("CSeq: 36893488147419103232 OPTIONS"), "400", ""},
	{"§3.1.2.4 too many hops allowed", options("Max-Forwards: 300"), "400", ""},
	{"§3.1.2.5 response with numbers too large", "SIP/2.0 503 Service Unavailable\n" + strings.ReplaceAll(replyTail, "1 OPTIONS", "9292394834772304023312 OPTIONS"), "", ""},
	{"§3.1.2.6 unterminated quote", options("To: \"Mr. J. User <sip:j.user@example.com>"), "400", ""},
	{"§3.1.2.7 brackets round the Request-URI", startLine(options(), "OPTIONS <sip:user@example.com> SIP/2.0"), "400", ""},
	{"§3.1.2.8 space in the Request-URI", startLine(options(), "OPTIONS sip:user@example.com; lr SIP/2.0"), "400", ""},
	{"§3.1.2.9 several spaces in the start line", startLine(options(), "OPTIONS  sip:user@example.com  SIP/2.0"), "400", ""},
	{"§3.1.2.10 space at the end of the start line", startLine(options(), "OPTIONS sip:user@example.com SIP/2.0 "), "200", ""},
	{"§3.1.2.11 headers in the Request-URI", startLine(options(), "OPTIONS sip:user@192.0.2.1?Route=%3Csip:x.example.com%3E SIP/2.0"), "200", ""},
	{"§3.1.2.12 a date in another zone", options("Date: Fri, 01 Jan 2010 16:00:00 EST"), "200", ""},
	{"§3.1.2.13 an address with headers, not in brackets", other("REGISTER", "Contact: sip:user@example.com?Route=%3Csip:sip.example.com%3E"), "405", "Allow"},
	{"§3.1.2.13 the same in a call", invite("Contact: sip:user@192.0.2.20?Route=%3Csip:sip.example.com%3E"), "200", ""}, // what follows it is not used
	{"§3.1.2.14 spaces in the address", options("To: \"Watson, Thomas\" < sip:t.watson@example.org >"), "400", ""},
	{"§3.1.2.15 unquoted display name", options("From: Bell, Alexander <sip:a.g.bell@example.com>;tag=43"), "200", ""},
	{"§3.1.2.16 unknown version", startLine(options(), "OPTIONS sip:t.watson@192.0.2.1 SIP/7.0"), "505", ""},
	{"§3.1.2.17 CSeq of another method", options("CSeq: 8 INVITE"), "400", ""},
	{"§3.1.2.18 unknown method, CSeq of another", other("NEWMETHOD", "CSeq: 8 INVITE"), "400", ""},
	{"§3.1.2.19 an impossible status", "SIP/2.0 4294967301 better not break the receiver\n" + replyTail, "", ""},

	{"§3.2.1 no transaction id", options("Via: SIP/2.0/UDP 192.0.2.20;branch=z9hG4bK"), "200", ""},
	{"§3.3.1 nearly everything missing", "INVITE " + bridgeURI + " SIP/2.0\nCSeq: 193942 INVITE\nVia: SIP/2.0/UDP 192.0.2.95;branch=z9hG4bKkdj.insuf\nContent-Length: 0\n\n", "400", ""},
	{"§3.3.2 unknown scheme", startLine(options(), "OPTIONS nobodyKnowsThisScheme:totallyopaquecontent SIP/2.0"), "416", ""},
	{"§3.3.3 another unknown scheme", startLine(options(), "OPTIONS soap.beep://192.0.2.103:3002 SIP/2.0"), "416", ""},
	{"§3.3.4 unknown schemes in headers", other("REGISTER", "To: <isbn:2983792873>"), "405", ""},
	{
		"§3.3.5 unknown extension required", options("Require: nothingSupportsThis, nothingSupportsThisEither", "Proxy-Require: noProxiesSupportThis"),
		"420",
		"Unsupported: nothingSupportsThis, nothingSupportsThisEither",
	},
	{"preconditions required", invite("Require: 100rel, precondition"), "420", "Unsupported: precondition"},
	{"§3.3.6 unknown content type", invite("Content-Type: application/unknownformat"), "415", "Accept: application/sdp"},
	{"compressed body", invite("Content-Encoding: gzip"), "415", "Accept-Encoding: identity"},
	{"§3.3.7 unknown authorization scheme", other("REGISTER", "Authorization: NoOneKnowsThisScheme opaque-data=here"), "405", "Allow"},
	{"§3.3.7 the same in a call", invite("Authorization: NoOneKnowsThisScheme opaque-data=here"), "200", ""},
	{"§3.3.8 mandatory headers twice", options("Call-ID: a\nCall-ID: b"), "400", ""},
	{"two To headers", options("To: <sip:a@b>\nTo: <sip:c@d>"), "400", ""},
	{"compact and long form of one header", options("From: <sip:a@b>;tag=1\nf: <sip:c@d>;tag=2"), "400", ""},
	{"§3.3.9 two lengths", options("Content-Length: 0\nContent-Length: 8"), "400", ""},
	{
		"§3.3.10 a response for everybody", "SIP/2.0 200 OK\n" + strings.ReplaceAll(replyTail, "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKx",
			"Via: SIP/2.0/UDP 192.0.2.198;branch=z9hG4bK1324923\nVia: SIP/2.0/UDP 255.255.255.255;branch=z9hG4bK1saber23"), "", "",
	},
	{"§3.3.11 no hops left, but it is for us", options("Max-Forwards: 0"), "200", ""},
	{"a call without hops left", invite("Max-Forwards: 0"), "483", ""},
	{"§3.3.12 unknown parameter of a URI", other("REGISTER", "Contact: <sip:+19725552222@gw1.example.net;unknownparam>"), "405", "Allow"},
	{"§3.3.12 the same in a call", invite("Contact: <sip:+19725552222@192.0.2.20;unknownparam>"), "200", ""},
	{"§3.3.13 unknown parameter of a Contact", other("REGISTER", "Contact: <sip:+19725552222@gw1.example.net>;unknownparam"), "405", "Allow"},
	{"§3.3.13 the same in a call", invite("Contact: <sip:+19725552222@192.0.2.20>;unknownparam"), "200", ""},
	{"§3.3.14 a header in a URI", other("REGISTER", "Contact: <sip:user@example.com?Route=%3Csip:sip.example.com%3E>"), "405", "Allow"},
	{"§3.3.14 the same in a call", invite("Contact: <sip:user@192.0.2.20?Route=%3Csip:sip.example.com%3E>"), "200", ""},
	{"§3.3.15 an answer nobody can give", invite("Accept: text/nobodyKnowsThis"), "406", ""},
	// Valid before RFC 3261, which leaves it to us whether to take it: without a Contact there is nobody to send a BYE to.
	{"§3.4.1 an INVITE of RFC 2543", invite("Contact:", "Via: SIP/2.0/UDP 192.0.2.20", "From: <sip:a@192.0.2.20>"), "400", ""},

	// RFC 5118, the torture messages of IPv6.
	{"RFC 5118 §4.1 an address in brackets", startLine(options("Via: SIP/2.0/UDP [2001:db8::9:1];branch=z9hG4bKas3-111"), "OPTIONS sip:1000@[2001:db8::10] SIP/2.0"), "200", ""},
	{"RFC 5118 §4.2 an address without brackets", startLine(options(), "OPTIONS sip:2001:db8::10 SIP/2.0"), "400", ""},
	{"RFC 5118 §4.3 a port that is part of the address", startLine(options(), "OPTIONS sip:[2001:db8::10:5070] SIP/2.0"), "200", ""},
	{"RFC 5118 §4.4 a port beside the address", startLine(options(), "OPTIONS sip:[2001:db8::10]:5070 SIP/2.0"), "200", ""},
	{"RFC 5118 §4.5 received with brackets", options("Via: SIP/2.0/UDP [2001:db8::9:1];received=[2001:db8::9:255];branch=z9hG4bKas3-111"), "200", ""},
	{"RFC 5118 §4.5 received without brackets", options("Via: SIP/2.0/UDP [2001:db8::9:1];received=2001:db8::9:255;branch=z9hG4bKas3"), "200", ""},
	{
		"RFC 5118 §4.6 addresses of both kinds in SDP", request("INVITE", bridgeURI, bridgeTo, "o1", 1, // what we cannot reach is not taken
			strings.Replace(sdpHead, "c=IN IP4 192.0.2.20\n", "", 1)+"m=audio 6000 RTP/AVP 0\nc=IN IP6 2001:db8::20\nm=audio 4000 RTP/AVP 0\nc=IN IP4 192.0.2.20\n"), "200", "m=audio 0 RTP/AVP 0\r\nm=audio 2",
	},
	{"RFC 5118 §4.7 addresses of both kinds in headers", options("Via: SIP/2.0/UDP 192.0.2.20;branch=z9hG4bKx\nVia: SIP/2.0/UDP [2001:db8::9:1];received=[2001:db8::9:255];branch=z9hG4bKy"), "200", "Via: SIP/2.0/UDP [2001:db8::9:1];received=[2001:db8::9:255];branch=z9hG4bKy"},
	{"RFC 5118 §4.8 addresses of both kinds", invite("Contact: <sip:2001@[2001:db8::20]>"), "200", ""},
	{"RFC 5118 §4.9 an IPv4 address in an IPv6 one", startLine(options("Via: SIP/2.0/UDP [::ffff:192.0.2.10]:5060;branch=z9hG4bKbh19"), "OPTIONS sip:1000@[::ffff:192.0.2.2] SIP/2.0"), "200", ""},
	{"RFC 5118 §4.10 a colon too many", options("From: <sip:user@[2001:db8:::192.0.2.1]>;tag=1"), "200", ""},

	{"secure scheme without TLS", startLine(options(), "OPTIONS sips:1000@192.0.2.1 SIP/2.0"), "416", ""},
	{"telephone scheme", startLine(invite(), "INVITE tel:+1-000;phone-context=x SIP/2.0"), "200", ""},
	{
		"SRTP or RTP, without TLS", // keys would be on the wire in clear: the stream without them is taken
		request("INVITE", bridgeURI, bridgeTo, "o1", 1, sdpHead+"m=audio 4002 RTP/SAVP 0\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x\nm=audio 4000 RTP/AVP 0\n"),
		"200", "m=audio 0 RTP/SAVP 0\r\nm=audio 2",
	},
	{"method we know and do not serve", other("SUBSCRIBE"), "405", "Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, INFO, UPDATE"},
	{"lower-case method is another method", startLine(options("CSeq: 1 options"), "options sip:1000@192.0.2.1 SIP/2.0"), "200", ""}, // wrong by RFC 3261 §7.1, and harmless: the parser has made it upper case
	{"CANCEL of nothing", other("CANCEL"), "481", ""},
	{"BYE of nothing", other("BYE"), "481", ""},
	{"BYE of an unknown dialog", request("BYE", bridgeURI, bridgeTo+";tag=x", "o1", 1, ""), "481", ""},
	{"INVITE of an unknown dialog", request("INVITE", bridgeURI, bridgeTo+";tag=x", "o1", 1, peerOffer), "481", ""},
	{"UPDATE of nothing", other("UPDATE"), "481", ""},
	{"ACK of nothing", other("ACK"), "", ""},
	{"malformed ACK", other("ACK", "CSeq: x ACK"), "", ""},
	{"ACK without To", other("ACK", "To:"), "", ""},
	{"INVITE without To", invite("To:"), "400", ""},
	{"INVITE without From", invite("From:"), "400", ""},
	{"INVITE without Call-ID", invite("Call-ID:"), "400", ""},
	{"INVITE without CSeq", invite("CSeq:"), "400", ""},
	{"INVITE without Via", invite("Via:"), "", ""},
	{"INVITE without Contact", invite("Contact:"), "400", ""},
	{"INVITE with broken SDP", request("INVITE", bridgeURI, bridgeTo, "o1", 1, "v=0\nm=audio x\n"), "400", ""},
	{"INVITE with no common codec", request("INVITE", bridgeURI, bridgeTo, "o1", 1, sdpHead+"m=audio 4000 RTP/AVP 18\n"), "488", `Warning: 305 192.0.2.1 "No common codec, offer PCMU or PCMA"`},
	{"INVITE with SRTP only", request("INVITE", bridgeURI, bridgeTo, "o1", 1, sdpHead+"m=audio 4000 RTP/SAVP 0\n"), "488", "Warning: 302"},
	{"a control character in a parameter", options("From: <sip:a@b>;tag=1\x0bX"), "200", ""},
	{"NUL in a header", options("Subject: a\x00b"), "", ""},
	{"one byte", "x", "", ""},
	{"keep-alive", "\n\n", "", ""},
	{"NULs", "\x00\x00\x00\x00", "", ""},
	{"HTTP", "GET / HTTP/1.1\nHost: x\n\n", "", ""},
	{"a start line only", "OPTIONS sip:x@y SIP/2.0\n\n", "", ""},
	{"a header line of 3000 octets", options("X-Long: " + strings.Repeat("a", 3000)), "200", ""}, // RFC 8224: an Identity has as many
	{"a header line of 9000 octets", options("X-Long: " + strings.Repeat("a", 9000)), "513", ""},
	{"200 header lines", options("X: 1" + strings.Repeat("\nX: 1", 200)), "400", ""},
	{"9000 octets", invite("Content-Length: 8500") + strings.Repeat("a", 8300), "513", ""},
	{"9000 octets of an ACK", other("ACK", "X-Long: "+strings.Repeat("a", 9000)), "", ""},
	{"host name as media address", request("INVITE", bridgeURI, bridgeTo, "o1", 1, strings.ReplaceAll(peerOffer, "c=IN IP4 192.0.2.20", "c=IN IP4 media.example.net")), "488", "Warning: 301"},
}

// tortuous is a valid INVITE (§3.1.1.1) with white space and folds wherever they may be.
var tortuous = strings.Join([]string{
	"INVITE " + bridgeURI + ";unknownparam SIP/2.0", "TO :", " sip:vivekg@chair-dnrc.example.com ;   tag    = 1918181833n",
	`from   : "J Rosenberg \\\""       <sip:jdrosen@example.com>`, "  ;", "  tag = 98asjd8",
	"MaX-fOrWaRdS: 0068", "Call-ID: wsinv.ndaksdj@192.0.2.20", fmt.Sprintf("Content-Length   : %d", len(crlf(peerOffer))),
	"cseq: 0009", "  INVITE", "Via  : SIP  /   2.0", " /UDP", "    192.0.2.20;branch=390skdjuw", "s :",
	"NewFangledHeader:   newfangled value", " continued newfangled value", "UnknownHeaderWithUnusualValue: ;;,,;;,;",
	"Content-Type: application/sdp", "Route:", " <sip:services.example.com;lr;unknownwith=value;unknown-no-value>",
	"v:  SIP  / 2.0  / TCP     spindle.example.com   ;", "  branch  =   z9hG4bK9ikj8  ,",
	" SIP  /    2.0   / UDP  192.168.255.111   ; branch=", " z9hG4bK30239",
	`m:"Quoted string \"\"" <sip:jdrosen@example.com> ; newparam =`, "      newvalue ;", "  secondparam ; q = 0.33", "", "",
}, "\n") + peerOffer

func TestTortureMessages(t *testing.T) {
	for _, tt := range tortureTests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, nil, answerAtOnce, func(b *bubble) {
				b.peer.send(tt.message)
				time.Sleep(cancelPatience)
				synctest.Wait()
				got, all := b.peer.codes()
				got = slices.DeleteFunc(got, func(code string) bool { return code == "100" })
				if strings.Join(got, " ") != tt.want {
					t.Errorf("answered %v, want %q", got, tt.want)
				}
				if !strings.Contains(all, tt.header) {
					t.Errorf("no %q in %q", tt.header, all)
				}
				b.peer.forget() // whatever it was: we live, and the next one is served
				b.peer.send(request("OPTIONS", bridgeURI, bridgeTo, "alive", 99, "", "Call-ID: alive"))
				if got, _ := b.peer.codes(); len(got) == 0 || got[0] != "200" {
					t.Errorf("afterwards OPTIONS got %v", got)
				}
			})
		})
	}
}

const replyTail = "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKx\nFrom: <sip:a@b>;tag=1\nTo: <sip:c@d>;tag=2\nCall-ID: r\nCSeq: 1 OPTIONS\nContent-Length: 0\n\n"

// codes lists the statuses received, and the whole text of the last message.
func (p *rawPeer) codes() ([]string, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, g := range p.got {
		if f := strings.Fields(g.v); len(f) > 1 && f[0] == "SIP/2.0" {
			out = append(out, f[1])
		}
	}
	if len(p.got) == 0 {
		return nil, ""
	}
	return out, p.got[len(p.got)-1].v
}

func TestInDialogRequestsAreChecked(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		for i, tt := range []struct {
			name, message, want string
		}{
			{"OPTIONS inside", b.peer.within("OPTIONS", "x0", 5, ""), "200"},
			{"number used before", b.peer.within("INFO", "x1", 5, ""), "500"},
			{"number going back", b.peer.within("INFO", "x2", 2, ""), "500"},
			{"tag of somebody else", b.peer.within("BYE", "x3", 6, "", "From: <sip:2001@192.0.2.20>;tag=wrong"), "481"},
			{"INFO with nothing", b.peer.within("INFO", "x4", 7, ""), "200"},
			{"INFO of an unknown kind", b.peer.within("INFO", "x5", 8, "hello", "Content-Type: text/plain"), "415"},
			{"INFO with a key", b.peer.within("INFO", "x6", 9, "Signal= *\n", "Content-Type: application/dtmf-relay"), "200"},
			{"INFO with a bare key", b.peer.within("INFO", "x7", 10, "11", "Content-Type: application/dtmf"), "200"},
			{"UPDATE to refresh", b.peer.within("UPDATE", "x8", 11, ""), "200"},
			{"UPDATE to hold", b.peer.within("UPDATE", "x9", 12, peerOffer+"a=sendonly\n"), "200"},
			{"UPDATE nobody can accept", b.peer.within("UPDATE", "x10", 13, sdpHead+"m=audio 4000 RTP/AVP 18\n"), "488"},
			{"re-INVITE nobody can accept", b.peer.within("INVITE", "x11", 14, sdpHead+"m=audio 4000 RTP/AVP 18\n"), "488"},
			{"REFER to somebody else", b.peer.within("REFER", "x12", 15, "", "Refer-To: <sip:x@y>"), "403"},
			{"PRACK", b.peer.within("PRACK", "x13", 16, "", "RAck: 1 1 INVITE"), "481"},
		} {
			b.peer.forgetAfter(1)
			b.peer.send(tt.message)
			if got, _ := b.peer.codes(); len(got) == 0 || got[len(got)-1] != tt.want {
				t.Errorf("%d %s: got %v, want %s", i, tt.name, got, tt.want)
			}
		}
		call := <-b.calls
		if d := call.Dialog(); d.Media.Direction != RecvOnly || d.RemoteCSeq != 16 {
			t.Errorf("dialog: direction %s, remote CSeq %d", d.Media.Direction, d.RemoteCSeq)
		}
		wantLines(t, "application heard", b.said(), []string{
			"0s Acked", "0s Digit", "0s Digit", "0s DialogChanged", "0s MediaChanged", "0s Hold", "0s DialogChanged",
		})
		_ = call.Hangup(CauseNormal)
		synctest.Wait()
		b.peer.send(replyTo(b.peer.last(), "481 Call/Transaction Does Not Exist"))
		<-call.Done()
	})
}

// forgetAfter keeps the first n messages: those that name the dialog.
func (p *rawPeer) forgetAfter(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got = p.got[:n]
}

// A phone behind NAT names a Contact that only its own network knows.
func TestPhoneBehindNATIsReachedWhereItIs(t *testing.T) {
	for _, tt := range []struct {
		name, contact, source string
		symmetric, atSource   bool
	}{
		{"private, heard from a public address", "192.168.7.7:5060", "203.0.113.5:61234", false, true},
		{"carrier's NAT, heard from a public address", "100.64.3.3:5060", "203.0.113.5:61234", false, true},
		{"private, heard from another private network", "172.17.0.2:5060", "192.168.1.5:61234", true, true},
		{"the same, but its trunk has no such phones", "172.17.0.2:5060", "192.168.1.5:61234", false, false},
		{"another public address", "198.51.100.3:5060", "203.0.113.5:61234", true, false},
		{"another port of the same host", "192.168.1.5:5070", "192.168.1.5:61234", true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(c *Config) {
				c.Trunks[0].Symmetric = tt.symmetric
				c.Trunks[0].Networks = []netip.Prefix{netip.PrefixFrom(addr(tt.source).Addr(), 32), netip.PrefixFrom(peerAddr.Addr(), 32)}
			}, answerAtOnce, func(b *bubble) {
				source, contact := b.newPeer(addr(tt.source)), b.newPeer(addr(tt.contact))
				b.Cleanup(func() { source.close(); contact.close() })
				source.send(invite("Contact: <sip:2001@" + tt.contact + ">"))
				source.send(source.within("ACK", "k1", 1, ""))
				source.forget()
				_ = (<-b.calls).Hangup(Cause{})
				synctest.Wait()
				for p, want := range map[*rawPeer]bool{source: tt.atSource, contact: !tt.atSource} {
					if got := strings.HasPrefix(p.last(), "BYE sip:2001@"+tt.contact+" SIP/2.0\r\n"); got != want {
						t.Errorf("at %v: %q, want BYE: %v", p.conn.addr, p.last(), want)
					}
				}
			})
		})
	}
}

// A PBX in a container names itself as its own network knows it. Whoever could not tell it that a call is over would leave it up.
func TestPhoneWhoseNameLeadsNowhereIsReachedWhereItIs(t *testing.T) {
	inBubble(t, func(c *Config) { c.resolver = zone{hosts: map[string][]string{"pbx.example": {"192.0.2.30"}}} }, answerAtOnce, func(b *bubble) {
		other := b.newPeer(addr("192.0.2.30:5070"))
		defer other.close()
		b.peer.send(invite("Contact: <sip:2001@asterisk-7d9f.pbx.svc:5060>"))
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		first := <-b.calls
		_ = first.Hangup(CauseNormal)
		synctest.Wait()
		bye := b.peer.last()
		if !strings.HasPrefix(bye, "BYE sip:2001@asterisk-7d9f.pbx.svc:5060 ") {
			t.Fatalf("the phone got %q, want BYE", bye)
		}
		b.peer.send(replyTo(bye, "200 OK"))
		b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i2", 1, peerOffer, "Call-ID: c2", "Contact: <sip:2001@pbx.example:5070>"))
		b.peer.send(b.peer.within("ACK", "k2", 1, "", "Call-ID: c2"))
		second := <-b.calls
		_ = second.Hangup(CauseNormal)
		synctest.Wait()
		if bye := other.last(); methodOf(bye) != "BYE" { // a name that leads somewhere counts
			t.Fatalf("where its name leads, the phone got %q, want BYE", bye)
		}
		other.send(replyTo(other.last(), "200 OK"))
	})
}

// Where DNS says nothing at all, a call does not wait for it with each of its requests.
func TestPhoneWhoseNameLeadsNowhereIsNotWaitedForTwice(t *testing.T) {
	dns := &changingZone{}
	inBubble(t, func(c *Config) { c.resolver = dns }, answerAtOnce, func(b *bubble) {
		asks := func(id string) {
			b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i"+id, 1, peerOffer, "Contact: <sip:2001@asterisk-7d9f.pbx.svc:5060>", "Call-ID: "+id))
			b.peer.send(b.peer.within("ACK", "k"+id, 1, "", "Call-ID: "+id))
			call := <-b.calls
			b.peer.forget()
			if err := call.Hangup(CauseNormal); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		got := func(want ...string) {
			t.Helper()
			wantLines(t, "the phone received", b.peer.lines(), want)
			b.peer.send(replyTo(b.peer.last(), "200 OK"))
		}
		asks("c1")
		time.Sleep(namePatience)
		synctest.Wait()
		got("3s BYE")
		asks("c2")
		got("3s BYE")
		other := b.newPeer(addr("192.0.2.30:5060"))
		defer other.close()
		dns.now.Store(&zone{hosts: map[string][]string{"asterisk-7d9f.pbx.svc": {"192.0.2.30"}}})
		time.Sleep(nameLost)
		asks("c3")
		wantLines(t, "where its name leads by then, the phone received", other.lines(), []string{"1m3s BYE"})
		other.send(replyTo(other.last(), "200 OK"))
	})
}

func TestTargetRefreshAndRoutes(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		proxy := b.newPeer(addr("192.0.2.9:5070"))
		defer proxy.close()
		const recorded = `<sip:192.0.2.9:5070;lr>;ftag="a,1";hop, <sip:192.0.2.8;lr;x=y>`
		b.peer.send(invite("Record-Route: " + recorded))
		if rr := b.peer.last(); headersIn(rr, "Record-Route") != strings.Replace(recorded, ", ", ",", 1) { // §12.1.1: all of it
			t.Errorf("answer without the Record-Routes: %q", rr)
		}
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		b.peer.send(b.peer.within("INVITE", "r1", 2, peerOffer, "Contact: <sip:new@192.0.2.77:5099;transport=udp>"))
		b.peer.send(b.peer.within("ACK", "k2", 2, ""))
		call := <-b.calls
		_ = call.Hangup(CauseNormal)
		synctest.Wait()
		bye := proxy.last()
		if !strings.HasPrefix(bye, "BYE sip:new@192.0.2.77:5099;transport=udp SIP/2.0\r\n") {
			t.Fatalf("the first router got %q", bye)
		}
		if got, want := headersIn(bye, "Route"), strings.Replace(recorded, ", ", "|", 1); got != want {
			t.Errorf("routes of BYE: %s, want %s", got, want)
		}
		proxy.send(replyTo(bye, "200 OK"))
		<-call.Done()
	})
}

func TestTargetRefreshByUpdate(t *testing.T) { // RFC 3311 §5.2
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		b.peer.send(b.peer.within("UPDATE", "u1", 2, "", "Contact: <sip:new@192.0.2.20:5060?Route=%3Csip:x.example%3E>"))
		if got, want := b.saved().RemoteTarget, "sip:new@192.0.2.20:5060?Route=%3Csip:x.example%3E"; got != want {
			t.Errorf("saved target %q, want %q", got, want)
		}
		call := <-b.calls
		_ = call.Hangup(CauseNormal)
		synctest.Wait()
		if bye := b.peer.last(); !strings.HasPrefix(bye, "BYE sip:new@192.0.2.20:5060 SIP/2.0\r\n") || headersIn(bye, "Route") != "" {
			t.Errorf("BYE = %q", bye) // RFC 3261 §19.1.1: headers of a URI do not go into a Request-URI
		}
		b.peer.send(replyTo(b.peer.last(), "200 OK"))
		<-call.Done()
	})
}

func TestStrictRouter(t *testing.T) { // RFC 3261 §12.2.1.1
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		proxy := b.newPeer(addr("192.0.2.9:5070"))
		defer proxy.close()
		b.peer.send(invite("Record-Route: <sip:192.0.2.9:5070>"))
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		_ = (<-b.calls).Hangup(CauseNormal)
		synctest.Wait()
		bye := proxy.last()
		if !strings.HasPrefix(bye, "BYE sip:192.0.2.9:5070 SIP/2.0\r\n") || headerIn(bye, "Route") != "<sip:2001@192.0.2.20:5060>" {
			t.Errorf("BYE through a strict router: %q", bye)
		}
		proxy.send(replyTo(bye, "200 OK"))
		synctest.Wait()
	})
}

func TestOverloadIsRefused(t *testing.T) {
	limited := func(c *Config) { c.Limits.Calls = 2; c.Limits.InvitesPerSecond = 5 }
	inBubble(t, limited, answerAtOnce, func(b *bubble) {
		for i := range 4 {
			b.peer.send(request("INVITE", bridgeURI, bridgeTo, fmt.Sprint("n", i), 1, peerOffer, fmt.Sprint("Call-ID: n", i)))
		}
		got, last := b.peer.codes()
		tagged := headerIn(b.peer.messages()[0], "To")
		if want := []string{"200", "200", "503", "503"}; !slices.Equal(got, want) || headerIn(last, "Retry-After") == "" {
			t.Errorf("got %v, want %v with Retry-After", got, want)
		}
		b.stack.Drain(true)
		b.peer.send(request("OPTIONS", bridgeURI, bridgeTo, "o", 1, "", "Call-ID: o"))
		if got, _ := b.peer.codes(); got[len(got)-1] != "503" {
			t.Errorf("OPTIONS while draining got %v", got)
		}
		b.peer.send(request("OPTIONS", "sip:trunkline@192.0.2.1:5060", tagged, "p", 2, "", "Call-ID: n0")) // a session border controller looks whether its call is up
		if got, last := b.peer.codes(); got[len(got)-1] != "200" || !strings.Contains(headerIn(last, "Supported"), "timer") {
			t.Errorf("OPTIONS within a call while draining got %v: %q", got, last)
		}
	})
}

func TestFloodLeavesNothingBehind(t *testing.T) {
	unlimited := func(c *Config) {
		c.Limits.InvitesPerSecond, c.Limits.MessagesPerSecond, c.Limits.FailuresPerMinute = -1, -1, -1
	}
	inBubble(t, unlimited, func(c *Call) { _ = c.Reject(486, "") }, func(b *bubble) {
		flood := func(round int) {
			for i := range 500 {
				id := fmt.Sprintf("%d.%d", round, i)
				_, _ = b.peer.conn.WriteToUDPAddrPort([]byte(crlf(request("INVITE", bridgeURI, bridgeTo, id, 1, peerOffer, "Call-ID: "+id))), bridgeAddr)
				_, _ = b.peer.conn.WriteToUDPAddrPort([]byte(crlf(invite("To:", "Call-ID: "+id))), bridgeAddr)
				_, _ = b.peer.conn.WriteToUDPAddrPort([]byte(strings.Repeat(id, 500)), bridgeAddr)
			}
			time.Sleep(2 * time.Minute) // every transaction has given up
			b.peer.forget()
			for len(b.calls) > 0 {
				<-b.calls
			}
			b.mu.Lock()
			b.events = nil
			b.mu.Unlock()
		}
		flood(0)
		before := heap()
		for round := range 5 {
			flood(round + 1)
		}
		if grown := int64(heap()) - int64(before); grown > 1<<20 {
			t.Errorf("heap grew by %d KiB over 7500 hostile messages", grown>>10)
		}
		if s := b.stack.Stats(); s.Calls != 0 || s.RTPPorts != 0 {
			t.Errorf("left behind: %d calls, %d ports", s.Calls, s.RTPPorts)
		}
	})
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func FuzzGuard(f *testing.F) {
	f.Add([]byte(crlf(invite())), false)
	f.Add([]byte(crlf(invite("Content-Length: 2000000000"))), true)
	f.Add([]byte("SIP/2.0 200 OK\r\n\r\n"), false)
	f.Add([]byte(crlf("OPTIONS sip:x SIP/2.0\nv: x\n folded\nf: a\nt: b\ni: c\nCSeq: 1 OPTIONS\n\n")), false)
	s := newStack(Config{}, nil, nil)
	g := s.guard()
	f.Fuzz(func(t *testing.T, data []byte, stream bool) {
		data, _, v := g.inspect(bytes.Clone(data), stream)
		if v.code != 0 {
			answer := string(v.refusal(data))
			if !strings.HasPrefix(answer, "SIP/2.0 4") && !strings.HasPrefix(answer, "SIP/2.0 5") || strings.Count(answer, "\r\n\r\n") != 1 || strings.ContainsAny(strings.ReplaceAll(answer, "\r\n", ""), "\r\n\x00") {
				t.Fatalf("refusal %q", answer)
			}
		}
		if size, fv := g.frame(data); size > longestMessage || size > 0 && !fv.pass() && (fv != tooLarge || size <= g.limits.MessageBytes) {
			t.Fatalf("frame = %d, %+v", size, fv)
		}
		if n := s.counters.panics.Load(); n != 0 {
			t.Fatal("the parser panicked")
		}
		if !v.pass() {
			return
		}
		m, err := g.parser.ParseSIP(data)
		if err != nil {
			t.Fatalf("passed what does not parse: %v", err)
		}
		s.prepare(m)
		checkAny(m)
	})
}

// checkAny does to a parsed message what serving it does first.
func checkAny(m gosip.Message) {
	req, ok := m.(*gosip.Request)
	if !ok || checkRequest(req) != nil {
		return
	}
	_ = inviteInfo(&Trunk{TrustIdentity: true}, req)
	_ = reasonOf(req)
	_ = inviteOf(req)
	_, _ = infoDigit(contentType(req), string(req.Body()))
}
