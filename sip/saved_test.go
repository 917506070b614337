package sip

import (
	"slices"
	"testing"
	"time"
)

const holdOffer = `v=0
o=- 1 2 IN IP4 192.0.2.20
s=-
c=IN IP4 192.0.2.20
t=0 0
m=audio 4000 RTP/AVP 0 101
a=rtpmap:101 telephone-event/8000
a=sendonly
`

// A phone that changes its call hears the answer when the change is saved, and not much later if the database is slow.
func TestAnswerToAChangeWaitsForItsSave(t *testing.T) {
	const limit = 200 * time.Millisecond
	for _, method := range []string{"INVITE", "UPDATE"} {
		for name, c := range map[string]struct {
			takes time.Duration // the save
			want  string
		}{
			"saved at once":    {0, "1s 200 OK"},
			"saved in time":    {150 * time.Millisecond, "1.15s 200 OK"},
			"saved much later": {time.Minute, "1.2s 200 OK"},
		} {
			t.Run(method+" "+name, func(t *testing.T) {
				slow := func(c *Config) { c.SaveFirst = limit }
				inBubble(t, slow, answerAtOnce, func(b *bubble) {
					b.saves = func() { time.Sleep(c.takes) }
					b.peer.send(invite())
					b.peer.send(b.peer.within("ACK", "k1", 1, ""))
					time.Sleep(time.Second - time.Since(b.began))
					hold := b.peer.within(method, "h1", 2, holdOffer)
					b.peer.forget()
					b.peer.send(hold)
					time.Sleep(300 * time.Millisecond)
					if method == "INVITE" {
						b.peer.send(b.peer.within("ACK", "k2", 2, "")) // else the answer comes again
					}
					got := slices.DeleteFunc(b.peer.lines(), func(l string) bool { return l == "1.2s 100 Trying" })
					if !slices.Equal(got, []string{c.want}) {
						t.Errorf("the phone heard %v, want %q", got, c.want)
					}
					if d := b.saved(); d.Media.Direction.Sends() && c.takes < limit {
						t.Errorf("the phone was answered before its hold was saved: %v", d.Media.Direction)
					}
					time.Sleep(time.Minute)
				})
			})
		}
	}
}
