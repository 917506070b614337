package mesh

import (
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"
)

// Bounds of what others can make us keep.
const (
	maxEarly        = 128 // signals from devices that are no members yet
	maxEarlyUser    = 24
	maxEarlyBytes   = 1 << 20
	maxUserPeers    = 8 // devices of one user that we connect to
	maxTracks       = 4 // call ids per peer
	maxHeld         = 16
	maxOrphans      = 8
	maxSeen         = 64
	maxCandidates   = 128 // per gathering of the peer's
	maxConnection   = 512 // candidates of one connection; more are its end
	maxQueue        = 16
	maxBufferedPeer = 256 << 10 // bytes of all signals of a peer that wait for something
	maxStreams      = 16
	maxMedia        = 16 // media sections of a description; a browser with everything switched on has four
	maxReoffers     = 5
	maxRotations    = 3 // without a steady connection in between
	maxMoves        = 3 // to other calls of the room
	maxRefusals     = 3 // times we tell one session that there is no room
)

// Paces: so many at once, then one per interval. Above what either client does at its worst (matrix-js-sdk calls again
// every 5 s, hydrogen three times in a second), far below what would cost the other peers anything: an invite is a
// PeerConnection, an offer a negotiation and a message back.
var (
	signalPace = pace{burst: 100, every: 200 * time.Millisecond}
	invitePace = pace{burst: 8, every: 5 * time.Second}
	offerPace  = pace{burst: 12, every: 2 * time.Second}

	// Paces of a user, by whatever devices and in whatever sessions: those cost nothing to make up, an entry can name new
	// ones ten times a second. Eight devices may each be tried three times at once; and who makes us take a new session
	// costs everybody else a second of sound.
	linkPace  = pace{burst: 24, every: 15 * time.Second}
	resetPace = pace{burst: 3, every: time.Hour}
)

type pace struct {
	burst int
	every time.Duration
}

// allowance is how much of a pace has been used up: until when the sender is busy by it. The zero value is unused.
type allowance struct{ busy time.Time }

// take says whether one more is within the pace, and counts it if so.
func (a *allowance) take(p pace, now time.Time) bool {
	busy := a.busy
	if busy.Before(now) {
		busy = now
	}
	if busy.Sub(now) > time.Duration(p.burst-1)*p.every {
		return false
	}
	a.busy = busy.Add(p.every)
	return true
}

// from is when one more will be within the pace.
func (a allowance) from(p pace) time.Time { return a.busy.Add(-time.Duration(p.burst-1) * p.every) }

// account is what a user has used up. It outlives the user's peers and entries.
type account struct {
	links  allowance // connections, whoever called, and refusals of them
	resets allowance // sessions of ours
}

// account finds or opens a user's account.
func (m *machine) account(user id.UserID) *account {
	if m.accounts[user] == nil {
		if m.accounts == nil {
			m.accounts = make(map[id.UserID]*account)
		}
		m.accounts[user] = new(account)
	}
	return m.accounts[user]
}

func (m *machine) mayLink(user id.UserID) bool { return m.account(user).links.take(linkPace, m.now) }

// closeAccounts forgets those that are even again.
func (m *machine) closeAccounts() {
	maps.DeleteFunc(m.accounts, func(_ id.UserID, a *account) bool {
		return !a.links.busy.After(m.now) && !a.resets.busy.After(m.now)
	})
}

// size is about how many bytes a signal keeps in memory.
func (sig Signal) size() int {
	const envelope = 512
	n := envelope + len(sig.SDP.Text)
	for _, c := range sig.Candidates {
		n += 64 + len(c.Line)
	}
	for key := range sig.Streams {
		n += 64 + len(key)
	}
	return n
}

// describe takes note of the candidates in a description of the peer's and says whether they are still within bounds. A
// description repeats those that went before; new credentials mean that the peer gathers anew.
func (l *link) describe(sdp string) bool {
	ufrag, lines := iceOf(sdp)
	if ufrag != "" && ufrag != l.ufrag {
		l.ufrag, l.candidates = ufrag, 0
	}
	for _, line := range lines {
		h := fnv.New64a()
		h.Write([]byte(line))
		if sum := h.Sum64(); !slices.Contains(l.described, sum) {
			l.described = append(l.described, sum)
			l.inAll++
		}
		if l.inAll > maxConnection {
			return false
		}
	}
	return true
}

// mayKeep says whether another signal of the peer may wait for something.
func (p *peer) mayKeep(sig Signal) bool { return p.buffered()+sig.size() <= maxBufferedPeer }

// buffered is the size of all signals of the peer that wait for something.
func (p *peer) buffered() (bytes int) {
	add := func(signals []Signal) {
		for _, sig := range signals {
			bytes += sig.size()
		}
	}
	for _, t := range p.tracks {
		add(t.held)
		add(t.orphans)
	}
	if p.link != nil {
		add(p.link.queue)
	}
	return bytes
}

// roomFor says whether another device of the user may become a peer.
func (m *machine) roomFor(user id.UserID) bool {
	same := 0
	for dev := range m.peers {
		if dev.User == user {
			same++
		}
	}
	return len(m.peers) < m.cfg.MaxPeers && same < maxUserPeers
}

// evictEarly keeps the early signals within bounds: the greediest user's oldest go first, so that a stranger with many
// messages cannot crowd out a client whose invite is faster than its member entry.
func (m *machine) evictEarly() {
	for {
		total, bytes := len(m.early), 0
		perUser := make(map[id.UserID]int)
		for _, e := range m.early {
			bytes += e.sig.size()
			perUser[e.from.User] += e.sig.size()
		}
		if total <= maxEarly && bytes <= maxEarlyBytes {
			return
		}
		victim := 0
		for i, e := range m.early {
			if perUser[e.from.User] > perUser[m.early[victim].from.User] {
				victim = i
			}
		}
		m.drop(m.early[victim].from, m.early[victim].sig, "too many early signals")
		m.early = append(m.early[:victim:victim], m.early[victim+1:]...)
	}
}
