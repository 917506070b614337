package sip

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

func TestDigits(t *testing.T) {
	type packet struct {
		ssrc, ts uint32
		event    byte
		end      bool
		duration uint16
	}
	press := func(ts uint32, event byte) []packet { // RFC 4733: growing duration, three ends
		return []packet{
			{1, ts, event, false, 160},
			{1, ts, event, false, 320},
			{1, ts, event, true, 480},
			{1, ts, event, true, 480},
			{1, ts, event, true, 480},
		}
	}
	join := func(p ...[]packet) (all []packet) {
		for _, x := range p {
			all = append(all, x...)
		}
		return all
	}
	tests := []struct {
		name    string
		packets []packet
		want    string
	}{
		{"one press", press(1000, 5), "5"},
		{"the same key twice", join(press(1000, 5), press(2000, 5)), "55"},
		{"all keys", join(press(1, 0), press(2, 1), press(3, 9), press(4, 10), press(5, 11), press(6, 12), press(7, 15)), "019*#AD"},
		{"ends lost, same key again", join(press(1000, 5)[:2], press(2000, 5)), "55"},
		{"beginning lost", press(1000, 7)[2:3], "7"},
		{"repeated and reordered", join(press(1000, 1), press(2000, 2), press(1000, 1)[3:]), "12"},
		{"the stream begins anew under its SSRC", join(press(900000, 1), press(1000, 2), press(2000, 2)), "122"},
		{"timestamps wrap", join(press(0xffffff00, 1), press(200, 2)), "12"},
		{
			"a long press in segments",
			[]packet{{1, 1000, 3, false, 160}, {1, 1000, 3, false, 0xffff}, {1, 1000 + 0xffff, 3, false, 160}, {1, 1000 + 0xffff, 3, true, 800}},
			"3",
		},
		{
			"a long press in segments, the last packet of the first lost",
			[]packet{{1, 1000, 3, false, 160}, {1, 1000, 3, false, 0xff5f}, {1, 1000 + 0xffff, 3, false, 160}, {1, 1000 + 0xffff, 3, true, 800}},
			"3",
		},
		{
			"timestamp advances in each packet of a press",
			[]packet{{1, 1000, 4, false, 160}, {1, 1160, 4, false, 320}, {1, 1320, 4, false, 480}, {1, 1480, 4, true, 640}},
			"4",
		},
		{"a new source", join(press(5000, 8), []packet{{2, 10, 8, false, 160}}), "88"},
		{"flash and modem tones are no keys", []packet{{1, 1, 16, false, 160}, {1, 2, 200, true, 160}}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r digitReader
			got := ""
			for _, p := range tt.packets {
				flags := byte(10)
				if p.end {
					flags |= 0x80
				}
				if key, ok := r.read(p.ssrc, p.ts, []byte{p.event, flags, byte(p.duration >> 8), byte(p.duration)}); ok {
					got += string(key)
				}
			}
			if got != tt.want {
				t.Errorf("keys = %q, want %q", got, tt.want)
			}
		})
	}
	var r digitReader
	if _, ok := r.read(1, 1, []byte{5, 0, 1}); ok {
		t.Error("a short payload was a key")
	}
}

// Sources of sound: where the description says the phone is, its NAT, another port of its host; and who trusts the NAT.
var (
	sdp     = addr("192.0.2.20:4000")
	nat     = addr("198.51.100.7:31000")
	samePC  = addr("192.0.2.20:4444")
	trusted = func(a netip.Addr) bool { return a == nat.Addr() }
)

// lockStep is a packet and whether it is taken; none of it: a second and a half of silence.
type lockStep struct {
	from netip.AddrPort
	ssrc uint32
	seq  uint16
	ok   bool
}

// lockCase is what a lock takes, and where it ends.
type lockCase struct {
	name    string
	allowed func(netip.Addr) bool
	steps   []lockStep
	locked  netip.AddrPort
}

func (tt lockCase) run(t *testing.T) {
	var l sourceLock
	l.expect(sdp, tt.allowed)
	now := time.Unix(1, 0)
	for i, s := range tt.steps {
		if s == (lockStep{}) {
			now = now.Add(1500 * time.Millisecond)
			continue
		}
		now = now.Add(20 * time.Millisecond)
		if ok, _ := l.accept(s.from, s.ssrc, s.seq, now); ok != s.ok {
			t.Errorf("step %d: accept(%v) = %v, want %v", i, s.from, ok, s.ok)
		}
	}
	if l.locked != tt.locked {
		t.Errorf("locked to %v, want %v", l.locked, tt.locked)
	}
}

func TestSourceLockFollowsAPhoneThatIsMoved(t *testing.T) {
	for _, tt := range []lockCase{
		{
			"a NAT gives the phone another port", nil,
			[]lockStep{
				{sdp, 1, 1, true},
				{samePC, 1, 2, false},
				{},
				{samePC, 1, 3, false},
				{samePC, 1, 4, false},
				{samePC, 1, 5, false},
				{samePC, 1, 6, true},
				{sdp, 1, 7, false},
			},
			samePC,
		},
		{
			"another port while the phone is heard: never", trusted,
			[]lockStep{
				{sdp, 1, 1, true},
				{samePC, 1, 2, false},
				{samePC, 1, 3, false},
				{sdp, 1, 2, true},
				{samePC, 1, 4, false},
				{samePC, 1, 5, false},
				{samePC, 1, 6, false},
			},
			sdp,
		},
		{
			"another stream, or another host, after silence: never", trusted,
			[]lockStep{
				{sdp, 1, 1, true},
				{},
				{samePC, 2, 2, false},
				{samePC, 2, 3, false},
				{samePC, 2, 4, false},
				{samePC, 2, 5, false},
				{nat, 1, 2, false},
				{nat, 1, 3, false},
				{nat, 1, 4, false},
				{nat, 1, 5, false},
			},
			sdp,
		},
	} {
		t.Run(tt.name, tt.run)
	}
}

func TestSourceLockComesToThePhoneAfterAnothersRingback(t *testing.T) {
	for _, tt := range []lockCase{
		{
			"the phone itself, after a machine beside it made the ringback", nil,
			[]lockStep{
				{samePC, 1, 1, false},
				{samePC, 1, 2, false},
				{samePC, 1, 3, false},
				{samePC, 1, 4, true},
				{sdp, 2, 1, false}, // while that is heard: not yet
				{sdp, 2, 2, false},
				{samePC, 1, 5, true},
				{},
				{sdp, 2, 3, false},
				{sdp, 2, 4, false},
				{sdp, 2, 5, false},
				{sdp, 2, 6, true},
				{samePC, 1, 6, false},
			},
			sdp,
		},
		{
			"the phone itself, after another host made the ringback", trusted,
			[]lockStep{
				{nat, 1, 1, false},
				{nat, 1, 2, false},
				{nat, 1, 3, false},
				{nat, 1, 4, true},
				{},
				{sdp, 2, 1, false},
				{sdp, 2, 2, false},
				{sdp, 2, 3, false},
				{sdp, 2, 4, true},
			},
			sdp,
		},
	} {
		t.Run(tt.name, tt.run)
	}
}

func TestSourceLockGoesBackToThePhoneAfterAnAnnouncement(t *testing.T) {
	announced := func(phone netip.AddrPort, then ...lockStep) []lockStep {
		return append([]lockStep{
			{phone, 1, 1, false},
			{phone, 1, 2, false},
			{phone, 1, 3, false},
			{phone, 1, 4, true},
			{},
			{sdp, 2, 1, false},
			{sdp, 2, 2, false},
			{sdp, 2, 3, false},
			{sdp, 2, 4, true},
			{phone, 1, 5, false}, // while that is heard: not yet
			{sdp, 2, 5, true},
			{},
		}, then...)
	}
	for _, tt := range []lockCase{
		{
			"from another port of the described host", nil,
			announced(samePC, lockStep{samePC, 1, 80, false}, lockStep{samePC, 1, 81, false}, lockStep{samePC, 1, 82, false}, lockStep{samePC, 1, 83, true}),
			samePC,
		},
		{
			"from behind its NAT", trusted,
			announced(nat, lockStep{nat, 1, 80, false}, lockStep{nat, 1, 81, false}, lockStep{nat, 1, 82, false}, lockStep{nat, 1, 83, true}),
			nat,
		},
		{
			"another stream from there: never", trusted,
			announced(nat, lockStep{nat, 3, 80, false}, lockStep{nat, 3, 81, false}, lockStep{nat, 3, 82, false}, lockStep{nat, 3, 83, false}),
			sdp,
		},
		{
			"its stream from elsewhere: never", trusted,
			announced(nat, lockStep{samePC, 1, 80, false}, lockStep{samePC, 1, 81, false}, lockStep{samePC, 1, 82, false}, lockStep{samePC, 1, 83, false}),
			sdp,
		},
		{
			"and another announcement", nil,
			append(announced(samePC, lockStep{samePC, 1, 80, false}, lockStep{samePC, 1, 81, false}, lockStep{samePC, 1, 82, false}, lockStep{samePC, 1, 83, true}),
				lockStep{}, lockStep{sdp, 5, 1, false}, lockStep{sdp, 5, 2, false}, lockStep{sdp, 5, 3, false}, lockStep{sdp, 5, 4, true}),
			sdp,
		},
	} {
		t.Run(tt.name, tt.run)
	}
}

func TestSourceLock(t *testing.T) {
	var (
		sdp     = addr("192.0.2.20:4000")
		nat     = addr("198.51.100.7:31000")
		evil    = addr("203.0.113.66:9")
		samePC  = addr("192.0.2.20:4444")
		trusted = func(a netip.Addr) bool { return a == nat.Addr() }
	)
	type step struct {
		from netip.AddrPort
		ssrc uint32
		seq  uint16
		ok   bool
	}
	tests := []struct {
		name    string
		allowed func(netip.Addr) bool
		steps   []step
		locked  netip.AddrPort
	}{
		{"the SDP address at once", nil, []step{{sdp, 1, 9, true}, {samePC, 1, 10, false}, {sdp, 1, 11, true}}, sdp},
		{
			"another port of the same host, after four", nil,
			[]step{{samePC, 1, 9, false}, {samePC, 1, 10, false}, {samePC, 1, 11, false}, {samePC, 1, 12, true}, {sdp, 1, 13, false}},
			samePC,
		},
		{
			"behind NAT on a symmetric trunk", trusted,
			[]step{{nat, 1, 65534, false}, {nat, 1, 65535, false}, {nat, 1, 0, false}, {nat, 1, 1, true}, {evil, 1, 2, false}},
			nat,
		},
		{
			"behind NAT on another trunk: never", nil,
			[]step{{nat, 1, 1, false}, {nat, 1, 2, false}, {nat, 1, 3, false}, {nat, 1, 4, false}, {nat, 1, 5, false}},
			netip.AddrPort{},
		},
		{
			"a stranger on a symmetric trunk: never", trusted,
			[]step{{evil, 1, 1, false}, {evil, 1, 2, false}, {evil, 1, 3, false}, {evil, 1, 4, false}, {evil, 1, 5, false}},
			netip.AddrPort{},
		},
		{
			"changing SSRC is not sane", trusted,
			[]step{{nat, 1, 1, false}, {nat, 2, 2, false}, {nat, 3, 3, false}, {nat, 4, 4, false}, {nat, 5, 5, false}},
			netip.AddrPort{},
		},
		{
			"jumping and repeated sequence numbers are not sane", trusted,
			[]step{{nat, 1, 1, false}, {nat, 1, 100, false}, {nat, 1, 100, false}, {nat, 1, 7, false}, {nat, 1, 6000, false}},
			netip.AddrPort{},
		},
		{
			"the SDP address comes first, then nobody is learned", trusted,
			[]step{{nat, 1, 1, false}, {nat, 1, 2, false}, {nat, 1, 3, false}, {sdp, 1, 4, true}, {nat, 1, 4, false}, {nat, 1, 5, false}},
			sdp,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var l sourceLock
			l.expect(sdp, tt.allowed)
			for i, s := range tt.steps {
				if ok, _ := l.accept(s.from, s.ssrc, s.seq, time.Unix(1, 0)); ok != s.ok {
					t.Errorf("step %d: accept(%v) = %v, want %v", i, s.from, ok, s.ok)
				}
			}
			if l.locked != tt.locked {
				t.Errorf("locked to %v, want %v", l.locked, tt.locked)
			}
			before := l
			if l.expect(sdp, tt.allowed); l.locked != before.locked {
				t.Error("the same address again unlocked")
			}
			if l.expect(nat, tt.allowed); l.locked.IsValid() {
				t.Error("a new address did not unlock")
			}
		})
	}
}

// The end of a hold is when a phone may come from elsewhere; it is where it was until it does, and once it speaks, nobody else is it.
func TestSourceLockAfterAHold(t *testing.T) {
	old, fresh := addr("192.0.2.20:50000"), addr("192.0.2.20:51000")
	for _, tt := range []struct {
		first, second netip.AddrPort
		before        int // packets of the first that are dropped
	}{{old, fresh, 0}, {fresh, old, learnPackets - 1}} {
		now := time.Now()
		var l sourceLock
		l.expect(old, nil)
		_, _ = l.accept(old, 1, 1, now)
		l.reopen()
		if l.locked != old {
			t.Errorf("after a hold it is at %v, want %v", l.locked, old)
		}
		for i := range 8 {
			if ok, _ := l.accept(tt.first, 2, uint16(i), now); ok != (i >= tt.before) {
				t.Errorf("packet %d from %v: accept = %v", i, tt.first, ok)
			}
		}
		for i := range 8 {
			if ok, _ := l.accept(tt.second, 2, uint16(i), now); ok {
				t.Errorf("packet %d from %v was taken beside %v", i, tt.second, tt.first)
			}
		}
	}
}

func TestPortsRestAfterUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		p := newPorts(RTPConfig{Addr: bridgeAddr.Addr(), PortMin: 20001, PortMax: 20007}, 30*time.Second, ownSockets{})
		p.listen = func(a netip.AddrPort) (rtpConn, error) { return w.listen(a), nil }
		seen := map[uint16]bool{}
		for range 3 { // 20002, 20004, 20006
			rtp, rtcp, err := p.open()
			if err != nil {
				t.Fatal(err)
			}
			port := addrPortOf(rtp.LocalAddr()).Port()
			if port%2 != 0 || port < 20002 || port > 20006 || addrPortOf(rtcp.LocalAddr()).Port() != port+1 || seen[port] {
				t.Errorf("port %d after %v", port, seen)
			}
			seen[port] = true
			_, _ = rtp.Close(), rtcp.Close()
		}
		if _, _, err := p.open(); err == nil {
			t.Error("a fourth pair was found in a range of three")
		}
		p.giveBack(20004)
		if n := p.inUse(); n != 2 {
			t.Errorf("%d pairs in use, want 2", n)
		}
		time.Sleep(30*time.Second - 1)
		if _, _, err := p.open(); err == nil {
			t.Error("a port was handed out while it rests")
		}
		time.Sleep(time.Nanosecond)
		rtp, rtcp, err := p.open()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = rtp.Close(), rtcp.Close()
	})
}

// phoneMedia is the media of a phone in a bubble.
type phoneMedia struct {
	rtp, rtcp *memConn
	seq       uint16
}

func (b *bubble) phoneMedia() *phoneMedia {
	m := &phoneMedia{rtp: b.world.listen(peerRTP), rtcp: b.world.listen(addr("192.0.2.20:4001"))}
	b.Cleanup(func() { _, _ = m.rtp.Close(), m.rtcp.Close() })
	return m
}

func (m *phoneMedia) send(to netip.AddrPort, pt uint8) {
	m.seq++
	p := rtp.Packet{
		Header:  rtp.Header{Version: 2, PayloadType: pt, SSRC: 77, SequenceNumber: m.seq, Timestamp: uint32(m.seq) * 160},
		Payload: make([]byte, 160),
	}
	b, _ := p.Marshal()
	_, _ = m.rtp.WriteToUDPAddrPort(b, to)
}

// press sends the first packet of a telephone-event, which is all that a key needs.
func (m *phoneMedia) press(to netip.AddrPort, key byte, timestamp uint32) {
	m.seq++
	p := rtp.Packet{
		Header:  rtp.Header{Version: 2, PayloadType: 101, SSRC: 77, SequenceNumber: m.seq, Timestamp: timestamp},
		Payload: []byte{byte(strings.IndexByte(dtmfKeys, key)), 10, 0, 160},
	}
	b, _ := p.Marshal()
	_, _ = m.rtp.WriteToUDPAddrPort(b, to)
}

func TestReportsAndMediaTimeout(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		phone := b.phoneMedia()
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		call := <-b.calls
		m := call.media.Load()
		heard := 0
		m.OnPacket(func(p *rtp.Packet) { heard++ })
		for range 250 { // 5 s of talk both ways; every tenth packet of the phone is lost
			if phone.seq++; phone.seq%10 != 0 {
				phone.seq--
				phone.send(m.LocalAddr(), 0)
			}
			_ = m.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5, Timestamp: 1000}, Payload: make([]byte, 160)})
			time.Sleep(20 * time.Millisecond)
		}
		synctest.Wait()
		if heard != 225 {
			t.Errorf("heard %d packets, want 225", heard)
		}
		sr := rtcpOf(t, phone.rtcp)
		if len(sr) != 2 {
			t.Fatalf("report = %v, want SR and SDES", sr)
		}
		s := sr[0].(*rtcp.SenderReport)
		if s.SSRC != 5 || s.PacketCount != 250 || s.OctetCount != 250*160 || len(s.Reports) != 1 {
			t.Errorf("sender report = %+v", s)
		} else if r := s.Reports[0]; r.SSRC != 77 || r.TotalLost < 23 || r.TotalLost > 25 || r.FractionLost < 23 || r.FractionLost > 27 {
			t.Errorf("reception report = %+v, want 24 lost, fraction 25/256", r)
		}
		// RTCP alone keeps the call alive: a phone on mute with silence suppression.
		rr, _ := rtcp.Marshal([]rtcp.Packet{&rtcp.SenderReport{SSRC: 77, NTPTime: 3 << 32}})
		for range 12 {
			time.Sleep(10 * time.Second)
			_, _ = phone.rtcp.WriteToUDPAddrPort(rr, netip.AddrPortFrom(m.LocalAddr().Addr(), m.LocalAddr().Port()+1))
		}
		time.Sleep(time.Minute)
		b.peer.forgetAfter(1)
		// Then nothing at all, but the phone answers: it is there.
		for i := range 3 {
			time.Sleep(10 * time.Second)
			if i > 0 { // it is asked again a minute after its answer
				time.Sleep(time.Minute)
			}
			probe := b.peer.last()
			if !strings.HasPrefix(probe, "OPTIONS sip:2001@192.0.2.20:5060 SIP/2.0") {
				t.Fatalf("silent phone got %q", probe)
			}
			b.peer.send(replyTo(probe, []string{"405 Method Not Allowed", "501 Not Implemented", "200 OK"}[i]))
			again := b.peer.last()
			if !strings.HasPrefix(again, "INVITE sip:2001@192.0.2.20:5060 SIP/2.0") || !strings.HasSuffix(again, "\r\n\r\n"+call.Dialog().Media.LocalSDP) {
				t.Fatalf("a silent phone that may know nothing of the call got %q", again)
			}
			b.peer.answers(again, "200 OK", "", peerOffer, "Contact: <sip:2001@192.0.2.20:5060>")
			if ack := b.peer.last(); !strings.HasPrefix(ack, "ACK ") {
				t.Fatalf("after its answer it got %q", ack)
			}
		}
		wantLines(t, "application heard", withoutChanges(b.said()), []string{"0s Acked"})
		time.Sleep(2 * time.Minute) // and now it does not answer
		if said := withoutChanges(b.said()); len(said) != 2 || !strings.HasSuffix(said[1], "MediaTimeout") {
			t.Errorf("said %v, want one MediaTimeout", said)
		}
		phone.send(m.LocalAddr(), 0)
		time.Sleep(3 * time.Minute)
		if n := len(withoutChanges(b.said())); n != 3 {
			t.Errorf("said %v, want another MediaTimeout", b.said())
		}
		rtcpOf(t, phone.rtcp)
		b.peer.send(b.peer.within("BYE", "b1", 2, ""))
		last := rtcpOf(t, phone.rtcp)
		if _, ok := last[len(last)-1].(*rtcp.Goodbye); !ok {
			t.Errorf("last report = %v, want BYE", last)
		}
		if err := m.WriteRTP(&rtp.Packet{}); err == nil {
			t.Error("WriteRTP after the end worked")
		}
	})
}

// rtcpOf returns the last compound packet that came.
func rtcpOf(t *testing.T, c *memConn) []rtcp.Packet {
	t.Helper()
	var last []byte
	for {
		select {
		case d := <-c.in:
			last = d.b
			continue
		default:
		}
		break
	}
	if last == nil {
		t.Fatal("no RTCP")
	}
	p, err := rtcp.Unmarshal(last)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOnlyThePhoneIsHeard(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		phone := b.phoneMedia()
		evil := &phoneMedia{rtp: b.world.listen(addr("192.0.2.66:7"))}
		defer evil.rtp.Close()
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		m := (<-b.calls).media.Load()
		heard := 0
		m.OnPacket(func(*rtp.Packet) { heard++ })
		for range 20 {
			evil.send(m.LocalAddr(), 0)
			_, _ = evil.rtp.WriteToUDPAddrPort([]byte{0x80, 200, 0, 1, 0, 0, 0, 0}, m.LocalAddr())
		}
		phone.send(m.LocalAddr(), 0)
		phone.send(m.LocalAddr(), 13)                                         // comfort noise: how loud its silence is
		phone.send(m.LocalAddr(), 18)                                         // a codec that was not agreed
		_, _ = phone.rtp.WriteToUDPAddrPort([]byte("garbage"), m.LocalAddr()) // and not RTP
		_, _ = phone.rtp.WriteToUDPAddrPort(nil, m.LocalAddr())
		synctest.Wait()
		if heard != 2 {
			t.Errorf("heard %d packets, want the phone's two", heard)
		}
		s := b.stack.Stats()
		if s.MediaStrangers != 40 || s.MediaMalformed != 3 {
			t.Errorf("strangers %d, malformed %d, want 40 and 3", s.MediaStrangers, s.MediaMalformed)
		}
		_ = m.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5}})
		if len(evil.rtp.in) != 0 || len(phone.rtp.in) != 1 {
			t.Errorf("sent %d packets to the stranger, %d to the phone", len(evil.rtp.in), len(phone.rtp.in))
		}
	})
}

func TestSymmetricTrunkLearnsWhereThePhoneIs(t *testing.T) {
	symmetric := func(c *Config) { c.Trunks[0].Symmetric = true }
	inBubble(t, symmetric, answerAtOnce, func(b *bubble) {
		nat := &phoneMedia{rtp: b.world.listen(addr("192.0.2.20:61000"))} // the signalling host
		defer nat.rtp.Close()
		b.peer.send(strings.ReplaceAll(invite(), "c=IN IP4 192.0.2.20", "c=IN IP4 10.99.99.9")) // same length: a private one
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		call := <-b.calls
		m := call.media.Load()
		ours := &rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5}}
		_ = m.WriteRTP(ours)
		if len(nat.rtp.in) != 0 {
			t.Error("sent to an address nobody named")
		}
		for range 4 {
			nat.send(m.LocalAddr(), 0)
		}
		synctest.Wait()
		_ = m.WriteRTP(ours)
		if len(nat.rtp.in) != 1 {
			t.Errorf("sent %d packets to the learned address, want 1", len(nat.rtp.in))
		}
		if d := call.Dialog().Media; d.Learned != nat.rtp.addr || d.Remote.Addr().String() != "10.99.99.9" {
			t.Errorf("dialog: remote %v, learned %v", d.Remote, d.Learned)
		}
	})
}

// A room may ring for long while the phone hears early media, and a phone may be muted when it is answered: one behind NAT
// sends its first packet only then, and must be found all the same.
func TestPhoneBehindNATIsFoundHoweverLate(t *testing.T) {
	const signalling = "192.0.2.20:61000" // its host
	symmetric := func(c *Config) {
		c.Trunks[0].Symmetric, c.Trunks[0].MediaNetworks = true, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/28")}
	}
	for name, tt := range map[string]struct {
		ringing, muted time.Duration
		from           string
	}{
		"answered at once":              {0, 0, signalling},
		"rung for two minutes":          {2 * time.Minute, 0, signalling},
		"muted for half a minute":       {0, 30 * time.Second, signalling},
		"media of a network of its own": {0, 0, "198.51.100.9:61000"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, symmetric, nil, func(b *bubble) {
				nat := &phoneMedia{rtp: b.world.listen(addr(tt.from))}
				evil := &phoneMedia{rtp: b.world.listen(addr("203.0.113.66:9"))}
				b.Cleanup(func() { _, _ = nat.rtp.Close(), evil.rtp.Close() })
				b.peer.send(strings.ReplaceAll(invite(), "c=IN IP4 192.0.2.20", "c=IN IP4 10.99.99.9"))
				call := <-b.calls
				if _, _, err := call.Progress(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(tt.ringing)
				_, m, err := call.Accept()
				if err != nil || call.SendAnswer() != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				heard := 0
				m.OnPacket(func(*rtp.Packet) { heard++ })
				time.Sleep(tt.muted)
				for range 50 {
					evil.send(m.LocalAddr(), 0)
					nat.send(m.LocalAddr(), 0)
					_ = m.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5}})
					time.Sleep(20 * time.Millisecond)
				}
				synctest.Wait()
				if heard != 47 || len(nat.rtp.in) < 46 || len(evil.rtp.in) != 0 {
					t.Errorf("heard %d of 50, sent the phone %d and the stranger %d; want 47, 46 or 47, 0", heard, len(nat.rtp.in), len(evil.rtp.in))
				}
			})
		})
	}
}

// A NAT forgets a phone that is silent, and gives it another port when it speaks again: after a hold, which keep-alives prolong,
// and in the middle of a call.
func TestPhoneBehindNATIsHeardFromItsNewPort(t *testing.T) {
	offer := strings.ReplaceAll(peerOffer, "192.0.2.20", "10.99.99.9")
	for name, tt := range map[string]struct {
		hold  string // its description; "" = none
		lost  int    // packets until it is believed
		symm  bool
		keeps int // empty datagrams in five minutes of hold
	}{
		"after inactive":            {offer + "a=inactive\n", 3, true, 20},
		"after 0.0.0.0":             {strings.ReplaceAll(offer, "10.99.99.9", "0.0.0.0"), 3, true, 20},
		"after sendonly":            {offer + "a=sendonly\n", 3, true, 20},
		"in mid-call":               {"", 49 + 3, true, 0},
		"on a trunk without NAT":    {peerOffer + "a=inactive\n", 3, false, 0},
		"in mid-call without a NAT": {"", 49 + 3, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(c *Config) { quiet10h(c); c.Trunks[0].Symmetric = tt.symm }, answerAtOnce, func(b *bubble) {
				offer := map[bool]string{true: offer, false: peerOffer}[tt.symm]
				b.peer.send(request("INVITE", bridgeURI, bridgeTo, "i1", 1, offer))
				b.peer.send(b.peer.within("ACK", "k1", 1, ""))
				m := (<-b.calls).media.Load()
				heard := 0
				m.OnPacket(func(*rtp.Packet) { heard++ })
				phone := &phoneMedia{rtp: b.world.listen(addr("192.0.2.20:50000"))}
				evil := &phoneMedia{rtp: b.world.listen(addr("203.0.113.66:9"))}
				talk := func(packets int) {
					for range packets {
						evil.send(m.LocalAddr(), 0)
						phone.send(m.LocalAddr(), 0)
						_ = m.WriteRTP(&rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5}})
						time.Sleep(20 * time.Millisecond)
					}
					synctest.Wait()
				}
				talk(50)
				if tt.hold != "" {
					drain(phone.rtp)
					b.peer.send(b.peer.within("INVITE", "i2", 2, tt.hold))
					b.peer.send(b.peer.within("ACK", "k2", 2, ""))
					time.Sleep(5 * time.Minute)
					synctest.Wait()
					if n := len(drain(phone.rtp)); n != tt.keeps {
						t.Errorf("%d packets kept the NAT's mind, want %d", n, tt.keeps)
					}
					b.peer.send(b.peer.within("INVITE", "i3", 3, offer))
					b.peer.send(b.peer.within("ACK", "k3", 3, ""))
				}
				_ = phone.rtp.Close()
				phone.rtp = b.world.listen(addr("192.0.2.20:51000"))
				before := heard
				talk(500)
				if heard -= before; heard != 500-tt.lost {
					t.Errorf("heard %d of 500 packets from the new port, want %d", heard, 500-tt.lost)
				}
				if n := len(drain(phone.rtp)); tt.symm && n < 500-tt.lost-1 || !tt.symm && n > 0 {
					t.Errorf("sent %d packets to the new port", n)
				}
				if n := len(evil.rtp.in); n != 0 {
					t.Errorf("sent %d packets to a stranger", n)
				}
				_, _ = phone.rtp.Close(), evil.rtp.Close()
				b.peer.send(b.peer.within("BYE", "b1", 9, ""))
			})
		})
	}
}

// drain takes out what has come.
func drain(c *memConn) (packets [][]byte) {
	for len(c.in) > 0 {
		packets = append(packets, (<-c.in).b)
	}
	return packets
}

// However long the phone was silent, what is not authentic does not come as far as the lock.
func TestForgedSoundDoesNotMoveTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		p := newPorts(RTPConfig{Addr: bridgeAddr.Addr(), PortMin: 20000, PortMax: 20009}, 0, ownSockets{})
		p.listen = func(a netip.AddrPort) (rtpConn, error) { return w.listen(a), nil }
		rtpc, rtcpc, err := p.open()
		if err != nil {
			t.Fatal(err)
		}
		old, fresh := addr("192.0.2.20:50000"), addr("192.0.2.20:51000")
		m := newMedia(p, rtpc, rtcpc, &mediaTotals{})
		anywhere := func(netip.Addr) bool { return true }
		m.apply(Negotiated{Remote: old, Direction: SendRecv, Format: Format{ClockRate: 8000}, Crypto: testCrypto(1, 0)}, anywhere, time.Now())
		defer m.close(false)
		var phone, forger protection
		if phone.use(testCrypto(0, 1)) != nil || forger.use(testCrypto(1, 1)) != nil {
			t.Fatal("no keys")
		}
		seq := uint16(0)
		say := func(who *protection, from netip.AddrPort, packets int) {
			for range packets {
				seq++
				buf := make([]byte, 1500)
				b, err := who.seal(buf, copy(buf, packet(7, seq)))
				if err != nil {
					t.Fatal(err)
				}
				m.received(&rtp.Packet{}, b, from)
			}
		}
		say(&phone, old, 10)
		time.Sleep(time.Hour)
		say(&forger, fresh, 100)
		if m.lock.locked != old || m.sendTo != old || m.stats.forged.Load() != 100 {
			t.Errorf("after forged packets: at %v, sent to %v, %d counted", m.lock.locked, m.sendTo, m.stats.forged.Load())
		}
		say(&phone, fresh, learnPackets)
		if m.lock.locked != fresh || m.sendTo != fresh {
			t.Errorf("after the phone's own: at %v, sent to %v, want %v", m.lock.locked, m.sendTo, fresh)
		}
	})
}

func TestHeldPhoneHearsNothing(t *testing.T) {
	inBubble(t, nil, answerAtOnce, func(b *bubble) {
		phone := b.phoneMedia()
		b.peer.send(invite())
		b.peer.send(b.peer.within("ACK", "k1", 1, ""))
		call := <-b.calls
		m := call.media.Load()
		ours := &rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5}}
		for i, step := range []struct {
			offer, answer string
			packets       int
		}{
			{peerOffer + "a=sendonly\n", "recvonly", 0},
			{peerOffer, "sendrecv", 1},
			{strings.ReplaceAll(peerOffer, "c=IN IP4 192.0.2.20", "c=IN IP4 0.0.0.0"), "sendrecv", 0},
			{peerOffer + "a=recvonly\n", "sendonly", 1},
			{peerOffer + "a=inactive\n", "inactive", 0},
		} {
			b.peer.send(b.peer.within("INVITE", fmt.Sprint("r", i), 2+i, step.offer))
			b.peer.send(b.peer.within("ACK", fmt.Sprint("k", i), 2+i, ""))
			if body := b.peer.last(); !strings.Contains(body, "a="+step.answer+"\r\n") {
				t.Errorf("offer %d answered with %q, want %s", i, body, step.answer)
			}
			_ = m.WriteRTP(ours)
			if n := len(phone.rtp.in); n != step.packets {
				t.Errorf("offer %d: sent %d packets, want %d", i, n, step.packets)
			}
			for len(phone.rtp.in) > 0 {
				<-phone.rtp.in
			}
		}
		b.peer.forget()
		time.Sleep(5*time.Minute - 6*time.Second) // held calls are allowed to be silent
		wantLines(t, "peer received", b.peer.lines(), nil)
		if s := strings.Join(b.said(), " "); strings.Contains(s, "MediaTimeout") {
			t.Errorf("said %s", s)
		}
	})
}

func TestWriteRTPDoesNotAllocate(t *testing.T) {
	p := newPorts(RTPConfig{Addr: netip.MustParseAddr("127.0.0.1"), PortMin: 35000, PortMax: 35999}, 0, ownSockets{})
	rtpc, rtcpc, err := p.open()
	if err != nil {
		t.Fatal(err)
	}
	m := newMedia(p, rtpc, rtcpc, &mediaTotals{})
	m.apply(Negotiated{Remote: addrPortOf(rtpc.LocalAddr()), Direction: SendRecv}, nil, time.Now())
	m.start()
	defer m.close(false)
	packet := &rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 5}, Payload: make([]byte, 160)}
	if n := testing.AllocsPerRun(100, func() { _ = m.WriteRTP(packet) }); n != 0 {
		t.Errorf("WriteRTP allocates %v times", n)
	}
}

// Sound that waited in a kept socket while no process ran is not played late; keys that were pressed meanwhile count.
func TestWhatWaitedInAKeptSocket(t *testing.T) {
	listen := func() *net.UDPConn {
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	rtpc, rtcpc, phone := listen(), listen(), listen()
	defer phone.Close()
	m := newMedia(newPorts(RTPConfig{}, 0, ownSockets{}), rtpc, rtcpc, &mediaTotals{})
	m.apply(Negotiated{
		Remote: addrPortOf(phone.LocalAddr()), Direction: SendRecv, Format: Format{PayloadType: 0, DTMF: 101},
	}, nil, time.Now())
	played, keys := make(chan uint16, 100), make(chan byte, 100)
	m.onDigit = func(key byte) { keys <- key }
	m.OnPacket(func(p *rtp.Packet) { played <- p.SequenceNumber })
	say := func(seq uint16, kind uint8, payload []byte) {
		p := rtp.Packet{Header: rtp.Header{Version: 2, SSRC: 7, SequenceNumber: seq, Timestamp: uint32(seq) * 160, PayloadType: kind}, Payload: payload}
		b, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := phone.WriteToUDPAddrPort(b, addrPortOf(rtpc.LocalAddr())); err != nil {
			t.Fatal(err)
		}
	}
	for seq := range uint16(50) {
		say(seq, 0, make([]byte, 160))
	}
	say(50, 101, []byte{7, 0x80, 3, 0x20})
	m.start()
	defer m.close(false)
	if key := <-keys; key != '7' {
		t.Errorf("key = %q, want 7", key)
	}
	for m.stale.Load() {
		time.Sleep(time.Millisecond)
	}
	say(51, 0, make([]byte, 160))
	if seq := <-played; seq != 51 {
		t.Errorf("packet %d was played, want 51, the first that came in time", seq)
	}
}
