//go:build e2e && chaos

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"trunkline/test/lab"
)

// The shortest session timer that there may be (RFC 4028 §5) is in force in some calls when the process is killed before the first
// refresh. Each call outlives the time that was left of it, and the time that the next process has asked for: that refreshes at half,
// takes the refreshes of those who do it themselves, and hangs up on those who do not.
func TestCallsOutliveAKillBetweenRefreshes(t *testing.T) {
	s, users := newSceneFor(t, 4*time.Minute, lab.RoomOptions{}, "alice")
	alice := s.page(lab.JSSDK, users[0])
	s.startCall(alice)
	const (
		each  = 2
		every = 6 * time.Second
	)
	var peers []*lab.Sipp
	for _, k := range timed {
		p, err := bed.NewSipp(k.name, s.room.Number, k.scenario(), each, every, 3*time.Minute)
		s.must(err)
		peers = append(peers, p)
	}
	calls := each * len(timed)
	s.eventually("all calls are up", 30*time.Second, func() bool {
		up, err := bed.Bridge().Count(s.ctx, `SELECT count(*) FROM leg WHERE dialog LIKE '%"interval":90000000000%' AND phase = 'talking'`)
		s.must(err)
		return up == calls
	})
	time.Sleep(5 * time.Second) // in the middle of everything
	bed.Bridge().Kill()
	s.must(bed.Bridge().Start(s.ctx))
	for i, p := range peers {
		if err := p.Wait(s.ctx); err != nil {
			t.Errorf("%s: %v", timed[i].name, err)
		}
	}
	s.eventually("all legs are gone", clearedAfter, func() bool {
		left, err := bed.Bridge().Count(s.ctx, "SELECT count(*) FROM leg")
		s.must(err)
		return left == 0
	})
}

// timer is who keeps a call alive.
type timer struct {
	name      string
	refresher string // as the caller wants: uac is itself
	steps     []string
}

// The next process asks at once, by UPDATE, and from then on time counts anew. Who falls silent is told 30 s before the end (§10).
var timed = []timer{
	{"we refresh", "uas", []string{asked("uac", 60), asked("uac", 50), asked("uac", 50), bye}},
	{"the phone refreshes", "uac", []string{asked("uas", 60), pause(44), refreshes, pause(50), bye}},
	{"nobody refreshes", "uac", []string{asked("uas", 60), pause(55), `<recv request="BYE" timeout="10000">` + has("Reason", "SIP *;cause=408") + `</recv>` + agrees("")}},
}

func (k timer) scenario() string {
	return `<?xml version="1.0" encoding="UTF-8" ?><scenario name="timer">` +
		requests("INVITE", 1, "", fmt.Sprintf("Supported: timer\nSession-Expires: 90;refresher=%s\nAllow: INVITE, ACK, BYE, CANCEL, UPDATE, OPTIONS\nContent-Type: application/sdp\n", k.refresher),
			"v=0\no=- 1 1 IN IP4 [local_ip]\ns=-\nc=IN IP4 [media_ip]\nt=0 0\nm=audio [media_port] RTP/AVP 0\na=sendrecv\n") +
		`<recv response="100" optional="true"/><recv response="180" optional="true"/><recv response="183" optional="true"/>` +
		`<recv response="200">` + has("Session-Expires", "90;refresher="+k.refresher) + `</recv>` +
		requests("ACK", 1, "[peer_tag_param]", "", "") + strings.Join(k.steps, "") +
		`<Reference variables="found"/></scenario>`
}

var (
	refreshes = requests("UPDATE", 2, "[peer_tag_param]", "Supported: timer\nSession-Expires: 90;refresher=uac\n", "") +
		`<recv response="200">` + has("Session-Expires", "90;refresher=uac") + `</recv>`
	bye = requests("BYE", 9, "[peer_tag_param]", "", "") + `<recv response="200"/>`
)

// asked is a refresh by the bridge within some seconds, in which this side of it (of the request) is to refresh.
func asked(refresher string, within int) string {
	return fmt.Sprintf(`<recv request="UPDATE" timeout="%d">`, within*1000) + has("Session-Expires", "90;refresher="+refresher) + `</recv>` +
		agrees("Supported: timer\nRequire: timer\nSession-Expires: 90;refresher="+refresher+"\n")
}

func agrees(headers string) string {
	return "<send><![CDATA[\nSIP/2.0 200 OK\n[last_Via:]\n[last_From:]\n[last_To:]\n[last_Call-ID:]\n[last_CSeq:]\nContact: <sip:200@[local_ip]:[local_port]>\n" +
		headers + "Content-Length: 0\n\n]]></send>"
}

func pause(seconds int) string { return fmt.Sprintf(`<pause milliseconds="%d"/>`, seconds*1000) }

// has checks a header of what was received.
func has(header, expression string) string {
	return fmt.Sprintf(`<action><ereg regexp="%s" search_in="hdr" header="%s:" check_it="true" assign_to="found"/></action>`, expression, header)
}

func requests(method string, cseq int, tag, headers, body string) string {
	retrans := ` retrans="500"`
	if method == "ACK" {
		retrans = ""
	}
	return fmt.Sprintf("<send%[1]s><![CDATA[\n%[2]s sip:[service]@[remote_ip]:[remote_port] SIP/2.0\nVia: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch]\n"+
		"Max-Forwards: 70\nFrom: <sip:+4930200[call_number]@[local_ip]>;tag=[pid]c[call_number]\nTo: <sip:[service]@[remote_ip]>%[3]s\nCall-ID: [call_id]\n"+
		"CSeq: %[4]d %[2]s\nContact: <sip:+4930200[call_number]@[local_ip]:[local_port]>\n%[5]sContent-Length: [len]\n\n%[6]s\n]]></send>",
		retrans, method, tag, cseq, headers, body)
}
