//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"trunkline/test/lab"
)

// timers is what rounds with session timers need, and the calls that are up through all rounds, in a room of their own.
type timers struct {
	peer         *lab.Sipp // of this round; nil in others
	room         *lab.Room
	theirs, ours *lab.Sipp // who refreshes; nil while those calls are not up
	began        time.Time
}

// background is how many calls are up through all rounds, now.
func (c *chaos) background() int {
	if c.timers.theirs == nil {
		return 0
	}
	return backgroundCalls
}

// What sipp writes down of a call's refreshes.
const (
	sippRefreshed = "we have refreshed" // was answered as it should be
	sippAsked     = "we are asked"      // has answered
	sippPutOff    = "we are put off"
)

const (
	sippRefreshes   = 3 * time.Second // in the background
	backgroundCalls = 2
)

// begin lets two phones talk to each other through all rounds. One refreshes its session, the other one leaves that to us. A round is
// compared with what a process holds on to that has resumed those calls: a leg that it began runs elsewhere.
func (c *chaos) begin() {
	c.t.Helper()
	var err error
	c.timers.room, err = bed.NewRoom(c.ctx, lab.RoomOptions{Owner: c.owner})
	c.must(err)
	number := c.timers.room.Number
	c.timers.began = time.Now()
	c.timers.theirs = c.sipp(number, keepsAlive(sippRefreshes))
	c.timers.ours = c.sipp(number, isKeptAlive(0))
	c.eventually("the calls with session timers are up", heardAgain, func() bool {
		n, err := bed.Bridge().Count(c.ctx, "SELECT count(*) FROM leg WHERE phase = 'talking'")
		c.must(err)
		return n == backgroundCalls && c.timers.theirs.Logged(sippRefreshed) > 0
	})
	bed.Bridge().Kill()
	c.must(bed.Bridge().Start(c.ctx))
	c.rests()
}

func (c *chaos) sipp(number, scenario string) *lab.Sipp {
	c.t.Helper()
	p, err := bed.NewSipp("with a session timer", number, scenario, 1, time.Second, time.Hour)
	c.must(err)
	c.t.Cleanup(p.Close)
	return p
}

// endure checks that the calls of all rounds are up, and are refreshed. In a long run nobody is killed for so long in the end that
// we have to do it, too: before, each next process did that when it asked whether the phone is there.
func (c *chaos) endure(rounds int) {
	c.t.Helper()
	peers := []*lab.Sipp{c.timers.theirs, c.timers.ours}
	before := []int{c.timers.theirs.Logged(sippRefreshed), c.timers.ours.Logged(sippAsked)}
	c.t.Logf("after %.0f s, a phone has refreshed its session %d times, was put off %d times and asked %d times; the other one was asked %d times",
		time.Since(c.timers.began).Seconds(), before[0], peers[0].Logged(sippPutOff), peers[0].Logged(sippAsked), before[1])
	for i, p := range peers {
		if asked := p.Logged(sippAsked); asked < rounds {
			c.t.Errorf("phone %d was asked %d times, want that each of the %d next processes does", i+1, asked, rounds)
		}
	}
	c.eventually("the phone refreshes its session", heardAgain, func() bool { return peers[0].Logged(sippRefreshed) > before[0] })
	if rounds > len(sooner) {
		c.eventually("we refresh a session", time.Minute, func() bool { return peers[1].Logged(sippAsked) > before[1] })
	}
	c.must(bed.Say(c.ctx, c.owner, c.timers.room.ID, "!sip hangup all"))
	for _, p := range peers {
		c.sippEnds(p)
	}
	c.timers.theirs, c.timers.ours = nil, nil
	c.rests() // before the bridge is restarted: a process that finds their rows would hang up on phones that have gone, for half a minute
}

// sippEnds waits until a phone is rid of its call, and checks that all went as it wants.
func (c *chaos) sippEnds(p *lab.Sipp) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, clearedAfter)
	defer cancel()
	c.must(p.Wait(ctx))
}

// refresh calls with a phone whose session is being refreshed again and again: by itself or by us. Ours is
// what a next process asks at once, and the phone takes its time to answer: so it is killed, too.
func (c *chaos) refresh(k kill) (from, to time.Duration, acted <-chan error) {
	c.t.Helper()
	nothing := make(chan error, 1)
	nothing <- nil
	scenario := isKeptAlive(slowAnswer)
	if k.phase == phoneRefreshes {
		scenario = keepsAlive(often)
	}
	c.dialed, c.held = time.Now(), false
	c.timers.peer = c.sipp(c.room.Number, scenario)
	c.awaitSound(c.dialed)
	if k.phase == phoneRefreshes {
		c.eventually("the phone refreshes its session", heardAgain, func() bool { return c.timers.peer.Logged(sippRefreshed) > 0 })
		return 0, time.Second, nothing
	}
	bed.Bridge().Kill()
	c.must(bed.Bridge().Start(c.ctx))
	return 0, 2 * slowAnswer, nothing
}

const (
	often      = 50 * time.Millisecond  // a refresh, after the answer to the last one
	slowAnswer = 400 * time.Millisecond // below T1: nothing is said again meanwhile
)

// isRefreshed checks that the session of a call which goes on is refreshed.
func (c *chaos) isRefreshed(p phase) string {
	c.t.Helper()
	peer, words := c.timers.peer, sippRefreshed
	if p == weRefresh {
		words = sippAsked
	}
	n := peer.Logged(words)
	if p == phoneRefreshes {
		c.eventually("the session is refreshed", heardAgain, func() bool { return peer.Logged(words) > n })
	} else if n == 0 {
		c.t.Error("the session was not refreshed")
	}
	return fmt.Sprintf("; refreshed %d times, put off %d times", n, peer.Logged(sippPutOff))
}

// echoes are the lines of a call whose phone says back what it hears: who hears the other one's voice from the ghost is heard by it.
func (c *chaos) echoes(since time.Time) (all []line) {
	for i, p := range c.pages {
		all = append(all, line{string(p.Kind), func() lab.Recording {
			tracks, err := p.Heard(c.ctx, since)
			c.must(err)
			return lab.Mix(slices.DeleteFunc(tracks, func(r lab.Recording) bool { return !bed.Bridge().IsGhost(id.UserID(r.From)) })...)
		}, c.pages[1-i].Voice(), bed.Steady(2)})
	}
	return all
}

// The scenarios of sipp. Their calls end when the room ends them. A message that comes where sipp does not wait for one
// is lost to it: nothing but sending is between two places where it waits. Of a wait for one of several messages the first counts the time.

// keepsAlive is a phone that refreshes its session a while after the answer to its last refresh. What a killed process did not answer
// it asks anew: sipp says nothing else while it repeats a request.
func keepsAlive(every time.Duration) string {
	refresh := strings.Replace(requests("UPDATE", "[peer_tag_param]", wantsTimer("uac"), ""), ` retrans="500"`, "", 1)
	return scenario("uac", label(1)+waits(every, 2)+question("", "uas")+leadsTo(1, agreesTo("uas"))+
		label(2)+refresh+
		label(3)+waits(500*time.Millisecond, 2)+question(` optional="true" next="4"`, "uas")+
		`<recv response="491" optional="true" next="1">`+does(logs(sippPutOff))+`</recv>`+
		`<recv response="500" optional="true" next="1">`+does(logs(sippPutOff))+`</recv>`+
		`<recv response="200" next="1">`+does(has("Session-Expires", "90;refresher=uac")+logs(sippRefreshed))+`</recv>`+
		label(4)+leadsTo(3, agreesTo("uas"))+ends)
}

// isKeptAlive is a phone that leaves it to us, and takes that long to answer.
func isKeptAlive(after time.Duration) string {
	wait := ""
	if after > 0 {
		wait = label(2) + waits(after, 3) + question(` next="2"`, "uac") + label(3)
	}
	return scenario("uas", label(1)+waits(0, 0)+question("", "uac")+wait+leadsTo(1, agreesTo("uac"))+ends)
}

// scenario is a call with a session timer.
func scenario(refresher, steps string) string {
	return `<?xml version="1.0" encoding="UTF-8" ?><scenario name="timer">` + invites(refresher) + steps +
		`<Reference variables="found"/></scenario>`
}

// waits begins a wait, in which the bridge may end the call, and says where it leads after that time, if it does not last.
func waits(limit time.Duration, then int) string {
	timeout := ""
	if limit > 0 {
		timeout = fmt.Sprintf(` timeout="%d" ontimeout="%d"`, limit.Milliseconds(), then)
	}
	return `<recv request="BYE" optional="true" next="9"` + timeout + `/>`
}

// question is a refresh by the bridge.
func question(attributes, refresher string) string {
	return `<recv request="UPDATE"` + attributes + `>` + does(has("Session-Expires", "90;refresher="+refresher)+logs(sippAsked)) + `</recv>`
}

func agreesTo(refresher string) string { return agrees("Require: timer\n" + wantsTimer(refresher)) }

var ends = label(9) + agrees("")

func label(n int) string { return fmt.Sprintf(`<label id="%d"/>`, n) }
func leadsTo(to int, send string) string {
	return strings.Replace(send, "<send", fmt.Sprintf(`<send next="%d"`, to), 1)
}
func does(actions string) string { return `<action>` + actions + `</action>` }
func logs(words string) string   { return `<log message="` + words + `"/>` }
func wantsTimer(refresher string) string {
	return "Supported: timer\nSession-Expires: 90;refresher=" + refresher + "\n"
}

const sippMedia = "v=0\no=- 1 1 IN IP4 [local_ip]\ns=-\nc=IN IP4 [media_ip]\nt=0 0\nm=audio [media_port] RTP/AVP 0\na=sendrecv\n"

// invites calls with the shortest session timer that there may be.
func invites(refresher string) string {
	return requests("INVITE", "", wantsTimer(refresher)+"Allow: INVITE, ACK, BYE, CANCEL, UPDATE, OPTIONS\n", sippMedia) +
		`<recv response="100" optional="true"/><recv response="180" optional="true"/><recv response="183" optional="true"/>` +
		`<recv response="200">` + does(has("Session-Expires", "90;refresher="+refresher)) + `</recv>` + requests("ACK", "[peer_tag_param]", "", "")
}

func agrees(headers string) string {
	return "<send><![CDATA[\nSIP/2.0 200 OK\n[last_Via:]\n[last_From:]\n[last_To:]\n[last_Call-ID:]\n[last_CSeq:]\nContact: <sip:200@[local_ip]:[local_port]>\n" +
		headers + "Content-Length: 0\n\n]]></send>"
}

// has checks a header of what was received.
func has(header, expression string) string {
	return fmt.Sprintf(`<ereg regexp="%s" search_in="hdr" header="%s:" check_it="true" assign_to="found"/>`, expression, header)
}

func requests(method, tag, headers, body string) string {
	if body != "" {
		headers += "Content-Type: application/sdp\n"
	}
	retrans := ` retrans="500"`
	if method == "ACK" {
		retrans = ""
	}
	return fmt.Sprintf("<send%[1]s><![CDATA[\n%[2]s sip:[service]@[remote_ip]:[remote_port] SIP/2.0\nVia: SIP/2.0/UDP [local_ip]:[local_port];branch=[branch]\n"+
		"Max-Forwards: 70\nFrom: <sip:+4930[local_port]@[local_ip]>;tag=[pid]c[call_number]\nTo: <sip:[service]@[remote_ip]>%[3]s\nCall-ID: [call_id]\n"+
		"CSeq: [cseq] %[2]s\nContact: <sip:+4930[local_port]@[local_ip]:[local_port]>\n%[4]sContent-Length: [len]\n\n%[5]s\n]]></send>",
		retrans, method, tag, headers, body)
}
