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
	s.leavesNothing()
	alice := s.page(lab.JSSDK, users[0])
	s.startCall(alice)
	const (
		each  = 2
		every = 6 * time.Second
	)
	var peers []*lab.Sipp
	for _, k := range timed {
		p, err := bed.NewSipp(k.name, s.room.Number, scenario(k.refresher, strings.Join(k.steps, "")), each, every, 3*time.Minute)
		s.must(err)
		t.Cleanup(p.Close)
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
	{"nobody refreshes", "uac", []string{asked("uas", 60), pause(55), `<recv request="BYE" timeout="10000">` + does(has("Reason", "SIP *;cause=408")) + `</recv>` + agrees("")}},
}

var (
	refreshes = requests("UPDATE", "[peer_tag_param]", wantsTimer("uac"), "") +
		`<recv response="200">` + does(has("Session-Expires", "90;refresher=uac")) + `</recv>`
	bye = requests("BYE", "[peer_tag_param]", "", "") + `<recv response="200"/>`
)

// asked is a refresh by the bridge within some seconds, in which this side of it (of the request) is to refresh.
func asked(refresher string, within int) string {
	return question(fmt.Sprintf(` timeout="%d"`, within*1000), refresher) + agreesTo(refresher)
}

func pause(seconds int) string { return fmt.Sprintf(`<pause milliseconds="%d"/>`, seconds*1000) }
