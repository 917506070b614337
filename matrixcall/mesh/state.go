package mesh

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"
)

// Config is what a mesh is told once.
type Config struct {
	Self       Device
	ConfID     string
	Session    string // our first session id; later ones are made from it
	CallPrefix string // call ids are made from it; unique for this mesh
	StreamID   string // the msid of our audio track: the key of the stream metadata (rule)
	Created    bool   // the call is ours to terminate
	Fresh      bool   // … and was made a moment ago: nobody else can be in it unseen
	Returns    bool   // a predecessor of ours was in the call: who is listed was there with it
	Former     string // how the predecessor's session ids begin: what it has written may come to light late; "" = there was none
	MaxPeers   int    // 0 means 64

	EntryLife time.Duration // how long our member entry is valid when it is written; 0 means an hour, as clients have it
}

// The timers. Those that clients have too are theirs (hydrogen, matrix-js-sdk) unless said otherwise.
const (
	entryLife       = time.Hour
	entryRetry      = 30 * time.Second
	sessionRetry    = 3 * time.Second
	entrySettles    = 5 * time.Second // after it was written: what the room says by then may be from before
	inviteLifetime  = 60 * time.Second
	repeatPause     = 4 * time.Second
	shellPatience   = 15 * time.Second // for offers and answers to be made; gathering candidates takes 2 s of it at most
	connectPatience = 30 * time.Second
	lostPatience    = 30 * time.Second // ICE disconnected
	restartAfter    = 3 * time.Second  // ICE disconnected, and we are the inviter
	gapPatience     = 2 * time.Second
	reofferAfter    = 500 * time.Millisecond
	reofferPatience = 30 * time.Second
	reofferPause    = 15 * time.Second // after a re-offer that nothing came back for in time
	steadyAfter     = 60 * time.Second // of connection: earlier failures are forgotten
	earlyPatience   = 30 * time.Second
	readAgainAfter  = 2 * time.Second
	calleeWarning   = 20 * time.Second
	calleePatience  = 75 * time.Second
	gaveUpWarning   = 5 * time.Second  // after a caller closed a link that carried sound, and
	gaveUpReturns   = 6 * time.Second  // since the homeserver was heard of after that: matrix-js-sdk looks every 5 s
	calleeReturns   = 25 * time.Second // after a link broke: both clients call again within 5 s, if they will at all
	rotatePause     = 2 * time.Minute
	unsentPause     = 2 * time.Minute // between tries when nothing can be sent to the peer
	leavePatience   = 30 * time.Second
	lostCounts      = 60 * time.Second // how long a peer whose connection broke is still counted among the people
	proofPatience   = 3 * time.Second  // for the first sign of life of somebody who was there before us: an answer takes 0.5 s
)

var backoff = [...]time.Duration{time.Second, 5 * time.Second, 15 * time.Second}

type phase uint8

// The phases of a membership:
//
//	      Join           entry written          Leave, call ended        entry removed
//	idle ------> joining -------------> joined ------------------> leaving -----------> left
const (
	idle phase = iota
	joining
	joined
	leaving
	left
)

func (p phase) String() string {
	return [...]string{"idle", "joining", "joined", "leaving", "left"}[p]
}

// State is a ghost's view of its conference. It is a value: Step returns a new one and leaves the old one as it was.
type State struct {
	cfg   Config
	phase phase
	muted bool

	identity Identity // asserted last

	session   string // our present session id
	entry     entry
	until     time.Time // leaving: give up
	rotated   int       // rotations in all
	fruitless int       // rotations since a connection was last steady
	rotation  time.Time // of the last rotation

	met        bool     // somebody was in this conference with us
	moves      int      // to other conferences
	leftBehind []string // calls of ours that we moved away from, until our entry there is gone

	known    bool // a room state was read
	members  map[Device]Member
	peers    map[Device]*peer
	early    []early
	readNext time.Time // not earlier than this ask for the state again
	lastCall int
	lastConn Conn
	people   int
	counted  bool          // People was said
	proof    time.Time     // end of the wait for signs of life, before people are counted for the first time
	lost     map[Peer]loss // peers that were connected and are not now, or that nothing but their entry speaks for
	refused  map[Peer]int  // how often members were told that there is no room for them
	accounts map[id.UserID]*account
}

// loss is a peer whose connection ended while its member entry stands, or that was listed when we came and has not been
// heard of: a client that crashed leaves an entry for an hour.
type loss struct {
	expires time.Time // of the entry then: a client that moves it is alive
	until   time.Time // counted among the people until then; zero: not any more, or not yet
	unheard bool      // no signal of it has arrived
}

// entry is our own member entry in the room.
type entry struct {
	writing bool      // a PutMember or RemoveMember is under way
	session string    // the session id last written with success
	expires time.Time // of what was last asked to be written
	written time.Time // when the last write succeeded
	stands  time.Time // end of what was last written with success
	next    time.Time // write again
	tries   int
	failed  time.Time // when the last renewal failed; zero = it did not, or another one is being written
}

// early is a signal from a device that is not (yet) a member with that session.
type early struct {
	from  Device
	sig   Signal
	until time.Time
}

// peer is a wanted device.
type peer struct {
	Peer
	former  string    // its session before this one: what still comes from it is late
	expires time.Time // as last seen in its entry
	invites bool      // we invite
	tries   int       // links that ended since the peer was last steadily connected
	next    time.Time // open a link then
	resting bool      // no more attempts of ours until it moves
	spoke   bool      // it has said something since its tries began
	silent  bool      // it rests because it did not: a word of it is reason to try again
	gaveUp  bool      // it is the caller, has closed a link that carried sound, and has not called since
	warn    time.Time // we are the callee: when to wonder, and
	watch   time.Time // when to reset our session
	tracks  []track
	link    *link

	signals, calls, offers allowance
}

// track is the order of one call_id's incoming signals.
type track struct {
	call    string
	started bool
	next    int
	seen    []string
	held    []Signal  // sorted by Seq
	gap     time.Time // process held then
	orphans []Signal  // arrived before the invite
	over    bool
}

type linkPhase uint8

// The phases of a link:
//
//	inviter   offering --> invited ---+
//	                                  +--> connecting --> connected
//	invitee   answering --------------+
const (
	offering linkPhase = iota
	invited
	answering
	connecting
	connected
)

func (p linkPhase) String() string {
	return [...]string{"offering", "invited", "answering", "connecting", "connected"}[p]
}

type negotiation uint8

const (
	stable       negotiation = iota
	makingOffer              // asked the shell
	offerSent                // waiting for the peer
	makingAnswer             // asked the shell
)

func (n negotiation) String() string {
	return [...]string{"stable", "making-offer", "offer-sent", "making-answer"}[n]
}

// link is one attempt to reach a peer.
type link struct {
	conn       Conn
	call       string
	inviter    bool // ours is the invite
	phase      linkPhase
	deadline   time.Time // of the phase; when connected, of a disconnection
	repeat     time.Time // when to say it again, while the peer does not show that it knows
	said       Signal    // our invite or answer, as sent
	seq        int       // of our next signal
	waiting    []Candidate
	candidates int      // that the peer sent since it last began to gather
	inAll      int      // candidates of the connection
	ufrag      string   // of the peer's last description
	described  []uint64 // hashes of the candidates in the peer's descriptions
	queue      []Signal // signals for after makingAnswer

	neg       negotiation
	negUntil  time.Time
	audio     Audio
	streams   map[string]Stream
	reoffer   time.Time
	reoffers  int
	asked     bool      // our re-offer changed nothing; wait for news
	restart   time.Time // ICE
	dirty     bool      // mute changed while we could not say so
	announced bool      // PeerConnected was said
	since     time.Time // connected
	late      bool      // our answer was: an outage kept it from the peer
	toldMuted bool
}

// New returns the state of a mesh that has not joined.
func New(cfg Config) State {
	cfg.MaxPeers = cmp.Or(cfg.MaxPeers, 64)
	cfg.EntryLife = cmp.Or(cfg.EntryLife, entryLife)
	return State{cfg: cfg, session: cfg.Session}
}

// Session is our present session id, Expires the end of our member entry.
func (s State) Session() string { return s.session }

// Expires is when our member entry as last written ends.
func (s State) Expires() time.Time { return s.entry.expires }

// Left says that Done was said.
func (s State) Left() bool { return s.phase == left }

// Deadline is when the caller must send Tick; zero means never.
func (s State) Deadline() time.Time {
	var d deadline
	switch s.phase {
	case idle, left:
		return time.Time{}
	case leaving:
		d.add(s.until, s.entry.next)
		return d.at
	}
	d.add(s.entry.next, s.entry.stands)
	if !s.counted {
		d.add(s.proof)
	}
	for _, l := range s.lost {
		d.add(l.until)
	}
	for _, e := range s.early {
		d.add(e.until)
	}
	for dev, m := range s.members {
		if p := s.peers[dev]; p != nil && !p.connected() && !m.Ours {
			d.add(m.Expires)
		}
	}
	for _, p := range s.peers {
		d.add(p.deadline(s.entry.session == s.session))
	}
	return d.at
}

// deadline collects the earliest of some times.
type deadline struct{ at time.Time }

func (d *deadline) add(times ...time.Time) {
	for _, t := range times {
		if !t.IsZero() && (d.at.IsZero() || t.Before(d.at)) {
			d.at = t
		}
	}
}

// deadline is when something is due for the peer; we invite only while our own entry stands.
func (p *peer) deadline(mayInvite bool) time.Time {
	var d deadline
	d.add(p.warn, p.watch)
	if mayInvite {
		d.add(p.next)
	}
	for i := range p.tracks {
		d.add(p.tracks[i].gap)
	}
	if l := p.link; l != nil {
		d.add(l.deadline, l.repeat, l.negUntil, l.reoffer, l.restart)
	}
	return d.at
}

func (p *peer) connected() bool { return p.link != nil && p.link.phase == connected }

// clone copies all that Step changes. Signals, candidates and stream maps are never changed in place.
func (s State) clone() State {
	s.members = maps.Clone(s.members)
	s.early = slices.Clone(s.early)
	s.leftBehind = slices.Clip(s.leftBehind)
	s.lost = maps.Clone(s.lost)
	s.refused = maps.Clone(s.refused)
	accounts := make(map[id.UserID]*account, len(s.accounts))
	for user, a := range s.accounts {
		accounts[user] = new(*a)
	}
	s.accounts = accounts
	peers := make(map[Device]*peer, len(s.peers))
	for dev, p := range s.peers {
		q := *p
		q.tracks = slices.Clone(p.tracks)
		for i := range q.tracks {
			t := &q.tracks[i]
			t.seen = slices.Clip(t.seen)
			t.held = slices.Clone(t.held)
			t.orphans = slices.Clip(t.orphans)
		}
		if p.link != nil {
			l := *p.link
			l.waiting = slices.Clip(l.waiting)
			l.queue = slices.Clip(l.queue)
			l.described = slices.Clip(l.described)
			q.link = &l
		}
		peers[dev] = &q
	}
	s.peers = peers
	return s
}

func (s State) sortedPeers() []*peer {
	return slices.SortedFunc(maps.Values(s.peers), func(a, b *peer) int { return compareDevices(a.Device, b.Device) })
}

func (s State) sortedMembers() []Member {
	return slices.SortedFunc(maps.Values(s.members), func(a, b Member) int { return compareDevices(a.Device, b.Device) })
}

func (s *State) newCallID() string {
	s.lastCall++
	return s.cfg.CallPrefix + strconv.Itoa(s.lastCall)
}

func (s *State) newConn() Conn {
	s.lastConn++
	return s.lastConn
}
