package sip

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

// rtcpInterval is how often the phone gets a report (RFC 3550 §6.2 with two members: the minimum).
const rtcpInterval = 5 * time.Second

// sentStats is what a sender report says.
type sentStats struct {
	ssrc      uint32
	packets   uint32
	octets    uint32
	timestamp uint32
	at        time.Time
}

// receivedStats is what a receiver report says (RFC 3550 §6.4.1, appendix A).
type receivedStats struct {
	lastHeard time.Time // RTP or RTCP
	ssrc      uint32
	packets   uint32
	base, max uint32 // extended sequence numbers
	jitter    float64
	clock     int    // of the timestamps
	transit   uint32 // arrival minus timestamp, modulo 2^32: only differences mean anything

	priorExpected, priorPackets uint32
	lastSR                      uint32
	lastSRAt                    time.Time
}

// packet counts a packet of a codec with the given clock.
func (r *receivedStats) packet(p *rtp.Packet, now time.Time, clock int) {
	r.lastHeard = now
	seq := uint32(p.SequenceNumber)
	t := transitOf(p, now, clock)
	if r.packets == 0 || p.SSRC != r.ssrc {
		*r = receivedStats{lastHeard: now, ssrc: p.SSRC, base: seq, max: seq, packets: 1, clock: clock, transit: t}
		return
	}
	r.packets++
	if ahead := uint16(seq - r.max); ahead < 0x8000 { // modulo 2^16
		r.max += uint32(ahead)
	}
	d := float64(int32(t - r.transit))
	r.transit = t
	if clock != r.clock { // another codec: what was measured was in other units
		r.clock, r.jitter = clock, 0
		return
	}
	r.jitter += (max(d, -d) - r.jitter) / 16
}

func transitOf(p *rtp.Packet, now time.Time, clock int) uint32 {
	return uint32(now.UnixMicro()*int64(clock/1000)/1000) - p.Timestamp
}

// report is the reception report of the interval since the last one; false if nothing came yet.
func (r *receivedStats) report(now time.Time) (rtcp.ReceptionReport, bool) {
	if r.packets == 0 {
		return rtcp.ReceptionReport{}, false
	}
	expected := r.max - r.base + 1
	lost := int32(expected - r.packets)
	expectedNow, packetsNow := expected-r.priorExpected, r.packets-r.priorPackets
	r.priorExpected, r.priorPackets = expected, r.packets
	var fraction uint8
	if lostNow := int32(expectedNow - packetsNow); lostNow > 0 && expectedNow > 0 {
		fraction = uint8(min(255, uint64(lostNow)*256/uint64(expectedNow)))
	}
	rr := rtcp.ReceptionReport{
		SSRC: r.ssrc, FractionLost: fraction, TotalLost: uint32(min(max(lost, 0), 0x7fffff)),
		LastSequenceNumber: r.max, Jitter: uint32(r.jitter), LastSenderReport: r.lastSR,
	}
	if !r.lastSRAt.IsZero() {
		rr.Delay = uint32(now.Sub(r.lastSRAt).Seconds() * 65536)
	}
	return rr, true
}

// sendReport sends SR or RR with SDES, and BYE at the end. RFC 3550 §6.1: always a compound packet.
func (m *Media) sendReport(now time.Time, bye bool) {
	m.mu.Lock()
	to, conn := m.neg.RemoteRTCP, m.rtcp
	if m.neg.RTCPMux {
		conn = m.rtp
		if at := m.lock.learned(); at.IsValid() {
			to = at
		} else if m.sendTo.IsValid() {
			to = m.sendTo
		}
	} else if at := m.lock.learned(); at.IsValid() && at != m.neg.Remote {
		to = netip.AddrPortFrom(at.Addr(), at.Port()+1) // symmetric RTP: its RTCP beside it
	}
	if m.closed || m.tx.ssrc == 0 || m.neg.RemoteSilent || !to.IsValid() || to.Addr().IsUnspecified() {
		m.mu.Unlock()
		return
	}
	b, err := rtcp.Marshal(m.compound(now, bye))
	if err == nil {
		b, err = m.secure.sealRTCP(b)
	}
	m.mu.Unlock()
	if err != nil {
		return
	}
	_, _ = conn.WriteToUDPAddrPort(b, to) // the phone may not listen for RTCP at all
}

// compound is called with mu held.
func (m *Media) compound(now time.Time, bye bool) []rtcp.Packet {
	var reports []rtcp.ReceptionReport
	if rr, ok := m.rx.report(now); ok {
		reports = append(reports, rr)
	}
	ssrc := m.tx.ssrc
	var head rtcp.Packet = &rtcp.ReceiverReport{SSRC: ssrc, Reports: reports}
	if m.tx.packets > 0 {
		since := now.Sub(m.tx.at)
		head = &rtcp.SenderReport{
			SSRC: ssrc, NTPTime: ntpTime(now),
			RTPTime:     m.tx.timestamp + uint32(since.Seconds()*float64(m.neg.Format.ClockRate)),
			PacketCount: m.tx.packets, OctetCount: m.tx.octets, Reports: reports,
		}
	}
	out := []rtcp.Packet{head, rtcp.NewCNAMESourceDescription(ssrc, "trunkline")}
	if bye {
		out = append(out, &rtcp.Goodbye{Sources: []uint32{ssrc}})
	}
	return out
}

func ntpTime(t time.Time) uint64 {
	const unixToNTP = 2208988800
	frac := uint64(t.Nanosecond()) << 32 / 1_000_000_000
	return uint64(t.Unix()+unixToNTP)<<32 | frac
}

func (m *Media) readRTCP() {
	buf := make([]byte, 2048)
	for {
		n, from, err := m.rtcp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(readPause)
			continue
		}
		m.receivedRTCP(buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	}
}

// receivedRTCP notes that the phone lives and when its last sender report came; everything else is of no use to us.
// Only the host whose audio we take is believed.
func (m *Media) receivedRTCP(b []byte, from netip.AddrPort) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	defer func() {
		if recover() != nil { // the parser of pion has had such bugs; a report is never worth a call
			m.stats.malformed.Add(1)
		}
	}()
	host := m.neg.Remote.Addr()
	if m.lock.locked.IsValid() {
		host = m.lock.locked.Addr()
	}
	if from.Addr() != host {
		m.stats.strangers.Add(1)
		return
	}
	b, authentic := m.secure.openRTCP(b)
	if !authentic {
		m.stats.forged.Add(1)
		return
	}
	packets, err := rtcp.Unmarshal(b)
	if err != nil {
		m.stats.malformed.Add(1)
		return
	}
	m.rx.lastHeard = now
	for _, p := range packets {
		if sr, ok := p.(*rtcp.SenderReport); ok && sr.SSRC == m.rx.ssrc {
			m.rx.lastSR, m.rx.lastSRAt = uint32(sr.NTPTime>>16), now
		}
	}
}
