package sip_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"trunkline/sip"
)

// Scenarios for sipp, in which it is the far end and checks what it gets. They are written here as lists of steps.

// sends is a message of sipp; requests are repeated until they are answered.
func sends(message string) string {
	retrans := ` retrans="500"`
	if strings.HasPrefix(message, "SIP/2.0") || strings.HasPrefix(message, "ACK") {
		retrans = ""
	}
	return "<send" + retrans + "><![CDATA[\n\n" + message + "\n]]></send>\n"
}

// gets is a response that sipp must get; each check is a regular expression that must fit: "body" or a header and a colon first.
func gets(status int, checks ...string) string {
	return fmt.Sprintf("<recv response=\"%d\">%s</recv>\n", status, actions(checks))
}

// may is a response that sipp may get.
func may(status int) string {
	return fmt.Sprintf("<recv response=\"%d\" optional=\"true\"/>\n", status)
}

// asked is a request that sipp must get.
func asked(method string, checks ...string) string {
	return fmt.Sprintf("<recv request=\"%s\">%s</recv>\n", method, actions(checks))
}

// rightDigest is a check that the digest is right; [$valid] says so.
const rightDigest = `<verifyauth assign_to="valid" username="bridge" password="secret"/>`

// actions of a check "Header: regexp" or "body: regexp"; "name=Header: regexp" keeps what fits for [$name].
func actions(checks []string) string {
	if len(checks) == 0 {
		return ""
	}
	var b strings.Builder
	for i, check := range checks {
		if check == rightDigest {
			b.WriteString(check)
			continue
		}
		header, expression, _ := strings.Cut(check, ": ")
		name, kept, ok := strings.Cut(header, "=")
		if ok {
			header = kept
		} else {
			name = fmt.Sprint("checked", i)
		}
		where := fmt.Sprintf(`search_in="hdr" header="%s:"`, header)
		if header == "body" {
			where = `search_in="body"`
		}
		fmt.Fprintf(&b, `<ereg regexp="%s" %s check_it="true" assign_to="%s"/>`, expression, where, name)
	}
	return "<action>" + b.String() + "</action>"
}

// asks is a request of sipp as the caller.
func asks(method string, cseq int, body string, headers ...string) string {
	m := fmt.Sprintf(`%s sip:1000@[remote_ip]:[remote_port] SIP/2.0
Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch]
Max-Forwards: 70
From: <sip:2001@[local_ip]>;tag=[pid]c[call_number]
To: <sip:1000@[remote_ip]>[peer_tag_param]
Call-ID: [call_id]
CSeq: %d %[1]s
Contact: <sip:2001@[local_ip]:[local_port]>
`, method, cseq)
	return sends(withBody(m, body, headers))
}

// asksBack is a request of sipp as the called one, which has kept the INVITE's [$uri], [$from] and [$to].
func asksBack(method string, cseq int, body string, headers ...string) string {
	m := fmt.Sprintf(`%s [$uri] SIP/2.0
Via: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch]
Max-Forwards: 70
From:[$to];tag=[pid]s
To:[$from]
Call-ID: [call_id]
CSeq: %d %[1]s
Contact: <sip:200@[local_ip]:[local_port]>
`, method, cseq)
	return sends(withBody(m, body, headers))
}

// answers is a response of sipp as the called one.
func answers(status, body string, headers ...string) string {
	m := "SIP/2.0 " + status + "\n[last_Via:]\n[last_From:]\n[last_To:];tag=[pid]s\n[last_Call-ID:]\n[last_CSeq:]\nContact: <sip:200@[local_ip]:[local_port]>\n"
	return sends(withBody(m, body, headers))
}

// agrees is a response of sipp inside a dialog.
func agrees(status string, headers ...string) string {
	m := "SIP/2.0 " + status + "\n[last_Via:]\n[last_From:]\n[last_To:]\n[last_Call-ID:]\n[last_CSeq:]\nContact: <sip:200@[local_ip]:[local_port]>\n"
	return sends(withBody(m, "", headers))
}

func withBody(message, body string, headers []string) string {
	for _, h := range headers {
		message += h + "\n"
	}
	if body != "" && !strings.Contains(message, "Content-Type") {
		message += "Content-Type: application/sdp\n"
	}
	return message + "Content-Length: [len]\n\n" + body
}

// media is sipp's description in this direction.
func media(version int, direction string) string {
	return fmt.Sprintf("v=0\no=- 1 %d IN IP4 [local_ip]\ns=-\nc=IN IP4 [local_ip]\nt=0 0\nm=audio [media_port] RTP/AVP 0\na=%s\n", version, direction)
}

var keeps = regexp.MustCompile(`assign_to="([a-z0-9]+)"`)

// plays runs one scenario until it has passed or failed.
func plays(t *testing.T, steps []string, args ...string) (over func()) {
	t.Helper()
	sipp := tool(t, "sipp")
	dir := t.TempDir()
	text := strings.Join(steps, "")
	names := map[string]bool{}
	for _, m := range keeps.FindAllStringSubmatch(text, -1) {
		names[m[1]] = true
	}
	var used []string
	for name := range names {
		used = append(used, name)
	}
	if len(used) > 0 {
		text += `<Reference variables="` + strings.Join(used, ",") + "\"/>\n"
	}
	file := filepath.Join(dir, "scenario.xml")
	if err := os.WriteFile(file, []byte("<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n<scenario name=\"test\">\n"+text+"</scenario>\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(sipp, append([]string{
		"-sf", file, "-i", "127.0.0.1", "-mi", "127.0.0.1", "-m", "1", "-nostdin", "-timeout", "60s", "-timeout_error", "-trace_err", "-error_file", filepath.Join(dir, "errors"),
	}, args...)...)
	cmd.Dir = dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	return func() {
		t.Helper()
		select {
		case err := <-done:
			if err != nil {
				errors, _ := os.ReadFile(filepath.Join(dir, "errors"))
				t.Fatalf("sipp: %v\n%s\n%s", err, tail(string(errors), 3000), tail(out.String(), 1500))
			}
		case <-time.After(70 * time.Second):
			_ = cmd.Process.Kill()
			t.Fatal("sipp does not end")
		}
	}
}

func TestSippCallsAndChecks(t *testing.T) {
	talk := func(n int) string { return media(n, "sendrecv") }
	begin := []string{asks("INVITE", 1, talk(1)), may(100), may(180), gets(200, "body: m=audio"), asks("ACK", 1, "")}
	end := func(cseq int) []string { return []string{asks("BYE", cseq, ""), gets(200)} }
	reinvite := func(cseq int, theirs, ours string) []string {
		return []string{asks("INVITE", cseq, media(cseq, theirs)), may(100), gets(200, "body: a="+ours), asks("ACK", cseq, "")}
	}
	join := func(parts ...[]string) (all []string) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	for _, tt := range []struct {
		name  string
		steps []string
		serve func(*served) // nil: answer
	}{
		{
			"hold in all directions", join(begin, reinvite(2, "sendonly", "recvonly"), reinvite(3, "recvonly", "sendonly"),
				reinvite(4, "inactive", "inactive"), reinvite(5, "sendrecv", "sendrecv"), end(6)), nil,
		},
		{
			"late offer", join([]string{
				asks("INVITE", 1, ""), may(100), may(180), gets(200, "body: m=audio [0-9]+ RTP/AVP", "body: a=sendrecv"), asks("ACK", 1, talk(1)),
			}, end(2)), nil,
		},
		{
			"reliable provisional response", join([]string{
				asks("INVITE", 1, talk(1), "Require: 100rel", "Supported: 100rel"), may(100), gets(183, "rseq=RSeq: [0-9]+", "Require: 100rel", "body: m=audio"),
				asks("PRACK", 2, "", "RAck:[$rseq] 1 INVITE"), gets(200), gets(200), asks("ACK", 1, ""),
			}, end(3)), func(s *served) {
				if _, _, err := s.Progress(); err == nil {
					s.answer()
				}
			},
		},
		{
			"it moves its sound before we answer", join([]string{
				asks("INVITE", 1, talk(1), "Require: 100rel", "Supported: 100rel"), may(100), gets(183, "rseq=RSeq: [0-9]+", "body: m=audio"),
				asks("PRACK", 2, "", "RAck:[$rseq] 1 INVITE"), gets(200), asks("UPDATE", 3, strings.Replace(talk(2), "RTP/AVP 0", "RTP/AVP 8", 1)),
				gets(200, "body: m=audio [0-9]+ RTP/AVP 8"), gets(200), asks("ACK", 1, ""),
			}, end(4)), func(s *served) {
				if _, _, err := s.Progress(); err == nil {
					s.wants(sip.MediaChanged{})
					s.answer()
				}
			},
		},
		{
			"session timer", join([]string{
				asks("INVITE", 1, talk(1), "Supported: timer", "Session-Expires: 30"), may(100), gets(422, "Min-SE: 90"), asks("ACK", 1, ""),
				strings.Replace(asks("INVITE", 2, talk(1), "Supported: timer", "Session-Expires: 90;refresher=uac"), "[peer_tag_param]", "", 1), may(100), may(180),
				gets(200, "Session-Expires: 90;refresher=uac", "Require: timer"), asks("ACK", 2, ""),
				asks("UPDATE", 3, "", "Supported: timer", "Session-Expires: 120;refresher=uac"), gets(200, "Session-Expires: 120;refresher=uac"),
			}, end(4)), nil,
		},
		{
			"REFER", join(begin, []string{
				asks("REFER", 2, "", "Refer-To: <sip:200@[remote_ip]>"), gets(202),
				asked("NOTIFY", "Event: refer", "Subscription-State: active", "body: SIP/2.0 100"), agrees("200 OK"),
				asked("NOTIFY", "Event: refer", "Subscription-State: terminated", "body: SIP/2.0 200"), agrees("200 OK"),
			}, end(3)), func(s *served) {
				s.answer()
				s.wants(sip.TransferWanted{})
				_ = s.AcceptTransfer()
				_ = s.TransferOver(200)
			},
		},
		{
			"REFER to somebody else, with whom it talks", join(begin, []string{
				asks("REFER", 2, "", "Refer-To: <sip:300@pbx.test?Replaces=far%40pbx.test%3Bto-tag%3Dt%3Bfrom-tag%3Df>"), gets(202),
				asked("NOTIFY", "Subscription-State: active", "body: SIP/2.0 100"), agrees("200 OK"),
				asked("NOTIFY", "Subscription-State: active", "body: SIP/2.0 180"), agrees("200 OK"),
				asked("NOTIFY", "Subscription-State: terminated", "body: SIP/2.0 420"), agrees("200 OK"),
			}, end(3)), func(s *served) {
				s.answer()
				if e := s.wants(sip.TransferWanted{}).(sip.TransferWanted); e.To != "300" || !e.Outside || e.Replaces != "far@pbx.test;to-tag=t;from-tag=f" {
					s.bed.Errorf("got %+v", e)
				}
				_ = s.AcceptTransfer()
				_ = s.TransferProgress(180)
				_ = s.TransferOver(420)
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := testConfig(sip.UDP)
			config.Trunks[0].Proxy, config.Trunks[0].Domain, config.Trunks[0].Transfers = "127.0.0.3", "pbx.test", sip.TransfersTrunk
			b := newBed(t, config, tt.serve)
			over := plays(t, tt.steps, b.addr(sip.UDP))
			s := b.call()
			over()
			<-s.Done()
			if st := b.stack.Stats(); st.Calls != 0 || st.NoAck != 0 || st.RTPPorts != 0 {
				t.Errorf("stats = %+v", st)
			}
		})
	}
}

// sipp offers in PRACK what we do not have, and then what we have (RFC 3262 §3, §5).
func TestSippOffersInPrack(t *testing.T) {
	talk := func(n int) string { return media(n, "sendrecv") }
	b := newBed(t, testConfig(sip.UDP), func(s *served) {
		if _, _, err := s.Progress(); err == nil {
			s.answer()
		}
	})
	over := plays(t, []string{
		asks("INVITE", 1, talk(1), "Require: 100rel", "Supported: 100rel"), may(100), gets(183, "rseq=RSeq: [0-9]+", "body: m=audio"),
		asks("PRACK", 2, strings.Replace(talk(2), "RTP/AVP 0", "RTP/AVP 18", 1), "RAck:[$rseq] 1 INVITE"), gets(200, "body: m=audio 0 RTP/AVP 18"),
		gets(200), asks("ACK", 1, ""), asks("UPDATE", 3, talk(3)), gets(200, "body: m=audio [1-9][0-9]+ RTP/AVP 0"),
		asks("BYE", 4, ""), gets(200),
	}, b.addr(sip.UDP))
	s := b.call()
	over()
	<-s.Done()
}

func TestSippIsCalledAndChecks(t *testing.T) {
	const digest = `Digest realm="lab", nonce="6d5f", qop="auth", algorithm=MD5`
	// verified takes the INVITE's digest apart, which the check before cannot.
	const verified = `<nop next="1" test="valid"/><nop><action><error message="the digest is wrong"/></action></nop><label id="1"/>` + "\n"
	begin := []string{asked("INVITE", "body: m=audio"), answers("180 Ringing", ""), answers("200 OK", media(1, "sendrecv")), asked("ACK")}
	end := []string{asked("BYE"), agrees("200 OK")}
	known := `uri=Contact: sip:[^&gt;]*`
	notify := func(cseq int, state, fragment string) string {
		return asksBack("NOTIFY", cseq, fragment+"\n", "Event: refer", "Subscription-State: "+state, "Content-Type: message/sipfrag;version=2.0")
	}
	for _, tt := range []struct {
		name  string
		steps []string
		call  func(*served)
	}{
		{"it rings and answers", append(begin, end...), func(s *served) {
			s.wants(sip.Answered{})
			_ = s.Hangup(sip.CauseNormal)
		}},
		{"it asks for a password", []string{
			asked("INVITE"), answers("401 Unauthorized", "", "WWW-Authenticate: "+digest), asked("ACK"),
			asked("INVITE", "Authorization: username=.bridge., .*qop=auth, .*nc=00000001", rightDigest), verified, answers("200 OK", media(1, "sendrecv")), asked("ACK"),
			asked("BYE", "Authorization: nc=00000002"), agrees("200 OK"),
		}, func(s *served) {
			s.wants(sip.Answered{})
			_ = s.Hangup(sip.CauseNormal)
		}},
		{"it sends a reliable provisional response", []string{
			asked("INVITE", "Supported: 100rel", "via=Via: .*"), answers("183 Session Progress", media(1, "sendrecv"), "Require: 100rel", "RSeq: 7"),
			asked("PRACK", "RAck: 7 1 INVITE"), agrees("200 OK"),
			sends("SIP/2.0 200 OK\nVia:[$via]\n[last_From:]\n[last_To:]\n[last_Call-ID:]\nCSeq: 1 INVITE\nContact: <sip:200@[local_ip]:[local_port]>\nContent-Length: 0\n"),
			asked("ACK"), asked("BYE"), agrees("200 OK"),
		}, func(s *served) {
			if e := s.wants(sip.Provisional{}).(sip.Provisional); !e.Early {
				s.bed.Errorf("got %+v, want early media", e)
			}
			s.wants(sip.Answered{})
			_ = s.Hangup(sip.CauseNormal)
		}},
		{"its ringback moves before it answers", []string{
			asked("INVITE", known, "from=From: .*", "to=To: .*", "via=Via: .*"), answers("183 Session Progress", media(1, "sendrecv"), "Require: 100rel", "RSeq: 7"),
			asked("PRACK", "RAck: 7 1 INVITE"), agrees("200 OK"),
			asksBack("UPDATE", 1, strings.Replace(media(2, "sendonly"), "RTP/AVP 0", "RTP/AVP 8", 1)), gets(200, "body: m=audio [0-9]+ RTP/AVP 8", "body: a=recvonly"),
			sends("SIP/2.0 200 OK\nVia:[$via]\nFrom:[$from]\nTo:[$to];tag=[pid]s\n[last_Call-ID:]\nCSeq: 1 INVITE\nContact: <sip:200@[local_ip]:[local_port]>\nContent-Length: 0\n"),
			asked("ACK"), asked("BYE"), agrees("200 OK"),
		}, func(s *served) {
			s.wants(sip.Provisional{})
			if got := s.wants(sip.MediaChanged{}).(sip.MediaChanged).Format.Codec; got != "PCMA" {
				s.bed.Errorf("the ringback comes in %s, want PCMA", got)
			}
			s.wants(sip.Answered{})
			_ = s.Hangup(sip.CauseNormal)
		}},
		{"it talks with somebody whose place we want", []string{ // as after its REFER
			asked("INVITE", "Replaces: far@198.51.100.1;to-tag=t;from-tag=f", "Require: replaces", "Referred-By: sip:anna@carrier.example"),
			answers("180 Ringing", ""), answers("200 OK", media(1, "sendrecv")), asked("ACK"), asked("BYE"), agrees("200 OK"),
		}, func(s *served) {
			s.wants(sip.Answered{})
			_ = s.Hangup(sip.CauseNormal)
		}},
		{"it is transferred", []string{
			asked("INVITE", known, "from=From: .*", "to=To: .*"), answers("200 OK", media(1, "sendrecv")), asked("ACK"),
			asked("REFER", "Refer-To: sip:300@", "Referred-By: sip:"), agrees("202 Accepted"),
			notify(1, "active;expires=60", "SIP/2.0 180 Ringing"), gets(200), notify(2, "terminated;reason=noresource", "SIP/2.0 200 OK"), gets(200),
			asked("BYE"), agrees("200 OK"),
		}, func(s *served) {
			s.wants(sip.Answered{})
			if err := errors.Join(s.PrepareTransfer("300"), s.SendTransfer()); err != nil {
				s.bed.Fatal(err)
			}
			for _, want := range []int{180, 200} {
				if got := s.wants(sip.Transferring{}).(sip.Transferring).Code; got != want {
					s.bed.Errorf("transferring: %d, want %d", got, want)
				}
			}
			_ = s.Hangup(sip.CauseNormal)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port := freePort(t)
			over := plays(t, tt.steps, "-p", fmt.Sprint(port))
			config := testConfig(sip.UDP)
			config.Trunks[0].Proxy = fmt.Sprint("127.0.0.1:", port)
			config.Trunks[0].Auth = sip.Credentials{Username: "bridge", Password: "secret"}
			b := newBed(t, config, nil)
			request := sip.DialRequest{Trunk: "lab", Number: "200", From: sip.Caller{Number: "1000"}}
			if strings.Contains(tt.steps[0], "Replaces") {
				request.Replaces, request.ReferredBy = "far@198.51.100.1;to-tag=t;from-tag=f", "<sip:anna@carrier.example>"
			}
			s := b.dial(request)
			tt.call(s)
			over()
			s.wants(sip.Ended{})
		})
	}
}

func TestSippIsRegisteredWith(t *testing.T) {
	port := freePort(t)
	over := plays(t, []string{
		asked("REGISTER", "Contact: sip:.*@127.0.0.1"), answers("401 Unauthorized", "", `WWW-Authenticate: Digest realm="lab", nonce="a1", qop="auth", algorithm=MD5`),
		asked("REGISTER", "Authorization: username=.bridge.", "CSeq: 2 REGISTER"), answers("423 Interval Too Brief", "", "Min-Expires: 90"),
		asked("REGISTER", "CSeq: 3 REGISTER", "name=Expires: 90"), sends("SIP/2.0 200 OK\n[last_Via:]\n[last_From:]\n[last_To:];tag=[pid]s\n[last_Call-ID:]\n[last_CSeq:]\n[last_Contact:];expires=90\nContent-Length: 0\n"),
	}, "-p", fmt.Sprint(port))
	config := testConfig(sip.UDP)
	lab := &config.Trunks[0]
	lab.Proxy, lab.Auth = fmt.Sprint("127.0.0.1:", port), sip.Credentials{Username: "bridge", Password: "secret"}
	lab.Register, lab.RegisterFor = true, time.Minute
	b := newBed(t, config, nil)
	over()
	await(t, "the registration to be known", func() bool { return !b.stack.Trunks()[0].Registered.IsZero() })
}
