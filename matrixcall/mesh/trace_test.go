package mesh

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

var update = flag.Bool("update", false, "rewrite the effects in testdata/*.trace")

// A trace is a scenario: lines that begin with a word are events, indented lines the effects they have, lines that
// begin with # explain. -update rewrites the indented lines.
func TestTraces(t *testing.T) {
	files, err := filepath.Glob("testdata/*.trace")
	if err != nil || len(files) == 0 {
		t.Fatalf("Glob = %v, %v, want traces", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".trace"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runTrace(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(want) {
				t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
			}
		})
	}
}

var epoch = time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)

type tracer struct {
	t     *testing.T
	state State
	now   time.Time
	out   strings.Builder
	call  string // of the last invite, ours or theirs: $call
}

func runTrace(t *testing.T, script string) string {
	tr := &tracer{t: t, now: epoch}
	tr.state = New(traceConfig())
	for line := range strings.Lines(script) {
		switch {
		case strings.HasPrefix(line, "  "):
		case strings.TrimSpace(line) == "", strings.HasPrefix(line, "#"):
			tr.out.WriteString(line)
		default:
			tr.out.WriteString(line)
			tr.line(strings.Fields(line))
		}
	}
	return tr.out.String()
}

func traceConfig() Config {
	return Config{
		Self: Device{"@_sip:x", "GHOST"}, ConfID: "conf", Session: "g1", CallPrefix: "m", StreamID: "stream",
	}
}

func (tr *tracer) line(words []string) {
	verb, args := words[0], words[1:]
	opts := make(map[string]string)
	var plain []string
	for _, a := range args {
		if k, v, ok := strings.Cut(a, "="); ok {
			opts[k] = v
			continue
		}
		plain = append(plain, a)
	}
	switch verb {
	case "times": // the event that follows, many times; # in it is the number
		n, err := strconv.Atoi(args[0])
		if err != nil {
			tr.t.Fatal(err)
		}
		for i := range n {
			tr.line(strings.Fields(strings.ReplaceAll(strings.Join(args[1:], " "), "#", strconv.Itoa(i))))
		}
		return
	case "config":
		cfg := traceConfig()
		if self := opts["self"]; self != "" {
			cfg.Self = parsePeer(self).Device
		}
		cfg.Created = slices.Contains(plain, "created")
		cfg.Returns = slices.Contains(plain, "returns")
		cfg.Former = opts["former"]
		cfg.MaxPeers, _ = strconv.Atoi(opts["max"])
		cfg.EntryLife, _ = time.ParseDuration(opts["life"])
		tr.state = New(cfg)
		return
	case "after":
		d, err := time.ParseDuration(plain[0])
		if err != nil {
			tr.t.Fatal(err)
		}
		tr.now = tr.now.Add(d)
		tr.step(Tick{})
		return
	case "tick": // everything that is due by itself until then
		d, err := time.ParseDuration(plain[0])
		if err != nil {
			tr.t.Fatal(err)
		}
		end := tr.now.Add(d)
		for n := 0; ; n++ {
			if n > 1000 {
				tr.t.Fatalf("the deadline %v stays due at %v", tr.state.Deadline(), tr.now)
			}
			next := tr.state.Deadline()
			if next.IsZero() || next.After(end) {
				break
			}
			if next.After(tr.now) {
				tr.now = next
			}
			tr.step(Tick{})
		}
		tr.now = end
		return
	}
	tr.step(tr.event(verb, plain, opts))
}

func (tr *tracer) event(verb string, plain []string, opts map[string]string) Event {
	conn := func() Conn {
		n, err := strconv.Atoi(plain[0])
		if err != nil {
			tr.t.Fatalf("%s: %v", verb, err)
		}
		return Conn(n)
	}
	audio := Audio{In: slices.Contains(plain, "in"), Out: slices.Contains(plain, "out")}
	switch verb {
	case "join":
		return Join{}
	case "leave":
		return Leave{Reason: opts["reason"]}
	case "abandon":
		return Abandon{}
	case "mute":
		return Mute{Muted: true}
	case "unmute":
		return Mute{}
	case "assert":
		return Assert{Identity{ID: opts["id"], DisplayName: opts["name"], AvatarURL: opts["avatar"]}}
	case "state":
		for _, key := range []string{"elsewhere", "of", "self"} {
			if other, ok := opts[key]; ok {
				plain = append(plain, key+"="+other)
			}
		}
		return tr.roomState(plain)
	case "recv":
		return tr.received(plain, opts)
	case "written":
		return MemberWritten{Session: tr.state.Session(), Err: opts["err"], Fatal: slices.Contains(plain, "fatal")}
	case "removed":
		return MemberWritten{Removed: true, Err: opts["err"]}
	case "terminated":
		return CallWritten{Err: opts["err"]}
	case "offer":
		return OfferReady{Conn: conn(), SDP: "v=0\nm=audio\nm=video\n"}
	case "answer":
		return AnswerReady{Conn: conn(), SDP: "answer" + plain[0], Audio: audio}
	case "applied":
		return AnswerApplied{Conn: conn(), Audio: audio}
	case "broken":
		return ConnFailed{Conn: conn(), Err: opts["err"]}
	case "up":
		return ConnState{Conn: conn(), Now: Up}
	case "disconnected":
		return ConnState{Conn: conn(), Now: Disconnected}
	case "failed":
		return ConnState{Conn: conn(), Now: Failed}
	case "late":
		return AnsweredLate{To: parsePeer(plain[0]).Device, CallID: tr.callID(opts["call"])}
	case "unsent":
		return SendFailed{To: parsePeer(plain[0]).Device, CallID: tr.callID(opts["call"])}
	}
	tr.t.Fatalf("unknown event %q", verb)
	return nil
}

// roomState reads members as user/device/session[,ours][,expires in]. We are among them unless it says unlisted.
func (tr *tracer) roomState(words []string) RoomState {
	own := Member{Peer: Peer{tr.state.cfg.Self, tr.state.Session()}, Expires: tr.state.Expires(), Ours: true}
	ev := RoomState{ConfID: tr.state.cfg.ConfID, Members: []Member{own}}
	for _, w := range words {
		switch w {
		case "unlisted": // we are not in it
			ev.Members = ev.Members[1:]
			continue
		case "ended":
			ev.Ended = true
			continue
		case "out":
			ev.Out = true
			continue
		case "unsure":
			ev.Unsure = true
			continue
		}
		if session, ok := strings.CutPrefix(w, "self="); ok { // what our device is listed with
			ev.Members[0].Session = session
			continue
		}
		if other, ok := strings.CutPrefix(w, "elsewhere="); ok {
			name, ours := strings.CutSuffix(other, ",ours")
			ev.Elsewhere = Conference{ID: name, Ours: ours}
			continue
		}
		if conf, ok := strings.CutPrefix(w, "of="); ok {
			ev.ConfID = conf
			continue
		}
		parts := strings.Split(w, ",")
		mem := Member{Peer: parsePeer(parts[0]), Expires: epoch.Add(time.Hour)}
		for _, p := range parts[1:] {
			if p == "ours" {
				mem.Ours = true
				continue
			}
			d, err := time.ParseDuration(p)
			if err != nil {
				tr.t.Fatal(err)
			}
			mem.Expires = epoch.Add(d)
		}
		ev.Members = append(ev.Members, mem)
	}
	return ev
}

func (tr *tracer) callID(word string) string {
	if word == "" {
		return tr.call
	}
	return word
}

func (tr *tracer) received(plain []string, opts map[string]string) Received {
	from := parsePeer(plain[0])
	kind := Kind(slices.Index(kindNames[:], plain[1]))
	seq, err := strconv.Atoi(opts["seq"])
	if err != nil {
		seq = NoSeq
	}
	sig := Signal{
		Kind: kind, ConfID: tr.state.cfg.ConfID, CallID: tr.callID(opts["call"]), SenderSession: from.Session,
		DestSession: tr.state.Session(), Seq: seq, Reason: opts["reason"], Selected: opts["selected"],
		Invitee: id.UserID(opts["invitee"]),
	}
	if v, ok := opts["conf"]; ok {
		sig.ConfID = v
	}
	if v, ok := opts["dest"]; ok {
		sig.DestSession = v
	}
	switch kind {
	case Invite, Answer, Negotiate:
		sig.SDP = SDP{Type: "offer", Text: "their-" + plain[1]}
		if kind == Answer || slices.Contains(plain, "answer-sdp") {
			sig.SDP.Type = "answer"
		}
		if n, err := strconv.Atoi(opts["media"]); err == nil {
			sig.SDP.Text = strings.Repeat("m=video\n", n)
		}
		if n, err := strconv.Atoi(opts["candidates"]); err == nil { // none of them seen before
			sig.SDP.Text = "v=0\na=ice-ufrag:" + opts["ufrag"] + "\n"
			for i := range n {
				sig.SDP.Text += fmt.Sprintf("a=candidate:%d %s\n", i, opts["ufrag"])
			}
		}
		if t := opts["type"]; t != "" {
			sig.SDP = SDP{Type: t, Text: "v=0\na=group:BUNDLE 0 1 2\nm=audio\na=mid:0\na=setup:actpass\nm=video\na=mid:1\nm=x\na=mid:2\n"}
		}
	case Candidates:
		n, err := strconv.Atoi(opts["n"])
		if err != nil {
			n = 1
		}
		sig.Candidates = slices.Repeat([]Candidate{{Line: "candidate"}}, n)
	}
	if v, ok := opts["audio"]; ok {
		key := "theirs"
		if other := opts["stream"]; other != "" {
			key = other
		}
		sig.Streams = map[string]Stream{key: {Purpose: UserMedia, AudioMuted: new(v == "muted")}}
	}
	if _, ok := opts["screen"]; ok {
		if sig.Streams == nil {
			sig.Streams = make(map[string]Stream)
		}
		sig.Streams["screen"] = Stream{Purpose: "m.screenshare"} // without flags, as hydrogen writes it
	}
	if kind == Invite {
		tr.call = sig.CallID
	}
	return Received{From: from.Device, Signal: sig}
}

func parsePeer(s string) Peer {
	parts := strings.SplitN(s, "/", 3)
	for len(parts) < 3 {
		parts = append(parts, "")
	}
	return Peer{Device{id.UserID(parts[0]), id.DeviceID(parts[1])}, parts[2]}
}

func (tr *tracer) step(ev Event) {
	state, effects := Step(tr.state, tr.now, ev)
	tr.state = state
	for _, e := range effects {
		if s, ok := e.(Send); ok && s.Signal.Kind == Invite {
			tr.call = s.Signal.CallID
		}
		fmt.Fprintf(&tr.out, "  %s %s\n", tr.now.Sub(epoch), describe(e))
	}
}

// describe writes an effect on one line.
func describe(e Effect) string {
	switch e := e.(type) {
	case PutMember:
		return fmt.Sprintf("put member session=%s until=%s", e.Session, e.Expires.Sub(epoch))
	case Send:
		return describeSend(e)
	case Open: // its call id is in the invite, the reason of a Close in the hangup
		return fmt.Sprintf("open {Conn:%d Peer:%s Inviter:%t}", e.Conn, e.Peer, e.Inviter)
	case Close:
		return fmt.Sprintf("close {Conn:%d}", e.Conn)
	case CreateAnswer:
		if n := strings.Count(e.Offer, "a=candidate:"); n > 0 {
			e.Offer = fmt.Sprint(n, " candidates")
		}
		return fmt.Sprintf("createanswer %+v", e)
	case AddCandidates:
		return fmt.Sprintf("add %d candidates to %d", len(e.Candidates), e.Conn)
	case ApplyAnswer:
		return fmt.Sprintf("apply answer to %d: %q", e.Conn, e.Answer)
	}
	return strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", e), "mesh.")) + fmt.Sprintf(" %+v", e)
}

func describeSend(e Send) string {
	sig := e.Signal
	var b strings.Builder
	fmt.Fprintf(&b, "send %s %s call=%s to-session=%s", e.To, sig.Kind, sig.CallID, sig.DestSession)
	if sig.Seq != NoSeq {
		fmt.Fprintf(&b, " seq=%d", sig.Seq)
	}
	if sig.SDP.Type != "" {
		fmt.Fprintf(&b, " sdp=%s", sig.SDP.Type)
	}
	for key, s := range sig.Streams {
		fmt.Fprintf(&b, " %s(%s) audio-muted=%v video-muted=%v", key, s.Purpose, *s.AudioMuted, *s.VideoMuted)
	}
	if sig.Identity != (Identity{}) {
		fmt.Fprintf(&b, " identity=%v", sig.Identity)
	}
	if sig.Reason != "" {
		fmt.Fprintf(&b, " reason=%s", sig.Reason)
	}
	if e.Repeat {
		b.WriteString(" repeat")
	}
	return b.String()
}
