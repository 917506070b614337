package sip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pion/rtp"
)

// Media is the RTP side of one call: a socket pair towards the phone. Audio packets of the phone go to the callback of
// [Media.OnPacket]; telephone-events become [Digit] events of the call.
type Media struct {
	ports    *ports
	rtp      rtpConn
	rtcp     rtpConn
	local    netip.AddrPort
	readers  sync.WaitGroup // readRTP, readRTCP
	closing  sync.Once
	onPacket atomic.Pointer[func(*rtp.Packet)]
	stale    atomic.Bool  // what is read now waited while no process ran
	onDigit  func(byte)   // set before start, like the next two
	byINFO   func(byte)   // sends a key by signalling
	infoOnly bool         // the trunk wants keys as INFO
	stats    *mediaTotals // of the stack

	mu     sync.Mutex // guards what follows; held while a packet is written
	neg    Negotiated
	lock   sourceLock
	sendTo netip.AddrPort // zero: do not send
	kept   time.Time      // when keepAlive sent last
	buf    [1500]byte
	tx     sentStats
	rx     receivedStats
	digits digitReader // only readRTP uses it
	keys   digitWriter
	secure protection
	closed bool
}

// mediaTotals count over all calls of a stack.
type mediaTotals struct {
	forged    atomic.Uint64 // SRTP that is not authentic, or a replay
	strangers atomic.Uint64 // packets from sources that are not the phone
	malformed atomic.Uint64 // not RTP, or a payload type nobody agreed on
	held      atomic.Uint64 // packets of ours not sent because of hold
	sendFails atomic.Uint64
}

// maxRTP leaves room for the tag of SRTP.
const maxRTP = 1460

// readPause follows a failed read. ICMP errors of earlier writes come back as such, one each; but an error that stays must
// not take a processor from the other calls.
const readPause = time.Millisecond

// errMediaClosed is returned by WriteRTP after the call ended.
var errMediaClosed = fmt.Errorf("media: %w", net.ErrClosed)

func newMedia(p *ports, rtpc, rtcpc rtpConn, stats *mediaTotals) *Media {
	return &Media{
		ports: p, rtp: rtpc, rtcp: rtcpc, stats: stats,
		local: addrPortOf(rtpc.LocalAddr()),
	}
}

// start begins to read; apply must have been called.
func (m *Media) start() {
	m.readers.Go(m.readRTP)
	m.readers.Go(m.readRTCP)
}

// apply takes a negotiation result. allowed says which hosts besides the one in the SDP may be learned.
func (m *Media) apply(n Negotiated, allowed func(netip.Addr) bool, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !n.RemoteSilent { // 0.0.0.0 is no address of a phone: it is where it was
		m.lock.expect(n.Remote, allowed)
	}
	if !m.neg.talks() && n.talks() {
		m.lock.reopen()
	}
	if m.rx.lastHeard.IsZero() {
		m.rx.lastHeard = now
	}
	m.neg = n
	err := m.secure.use(n.Crypto)
	m.sendTo = n.Remote
	if at := m.lock.learned(); at.IsValid() {
		m.sendTo = at
	}
	if n.RemoteSilent || !n.Remote.Addr().IsValid() || !n.Direction.Sends() || err != nil { // keys were checked when read; if ever, silence is better than sound in clear
		m.sendTo = netip.AddrPort{}
	}
}

// OnPacket sets who gets the phone's audio. The packet is only valid during the call; the callback must not block.
// nil means nobody.
func (m *Media) OnPacket(f func(*rtp.Packet)) {
	if f == nil {
		m.onPacket.Store(nil)
		return
	}
	m.onPacket.Store(&f)
}

// Format says what goes over the wire.
func (m *Media) Format() Format {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.neg.Format
}

// LocalAddr is our RTP socket.
func (m *Media) LocalAddr() netip.AddrPort { return m.local }

// WriteRTP sends a packet to the phone. Nothing is sent while the phone does not want to hear us. It does not
// allocate, and the packet is not kept.
func (m *Media) WriteRTP(p *rtp.Packet) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errMediaClosed
	}
	if m.tx.ssrc != p.SSRC {
		m.tx = sentStats{ssrc: p.SSRC}
	}
	if !m.sendTo.IsValid() {
		m.stats.held.Add(1)
		m.keys.clear() // a key pressed on hold must not arrive minutes later
		return nil
	}
	timestamp := p.Timestamp
	if m.keys.active() {
		p = m.keys.replace(p, m.neg.Format)
	}
	n, err := p.MarshalTo(m.buf[:maxRTP])
	if err != nil {
		return fmt.Errorf("write RTP: %w", err)
	}
	sealed, err := m.secure.seal(m.buf[:], n)
	if err != nil {
		return fmt.Errorf("write RTP: %w", err)
	}
	if _, err := m.rtp.WriteToUDPAddrPort(sealed, m.sendTo); err != nil {
		m.stats.sendFails.Add(1) // the phone's port may be closed for a moment (ICMP): the next packet may get through
		return fmt.Errorf("write RTP to phone: %w", err)
	}
	m.tx.packets++
	m.tx.octets += uint32(len(p.Payload))
	m.tx.timestamp, m.tx.at = timestamp, time.Now()
	return nil
}

// keepInterval is how often a packet keeps a NAT's mind (RFC 6263 §7).
const keepInterval = 15 * time.Second

// keepAlive sends an empty datagram (§4.1) to a phone behind NAT while it is on hold, so that the NAT goes on to know it.
func (m *Media) keepAlive(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	to := m.lock.learned()
	if m.closed || m.neg.off() || m.sendTo.IsValid() || !to.IsValid() || now.Sub(m.kept) < keepInterval {
		return
	}
	m.kept = now
	_, _ = m.rtp.WriteToUDPAddrPort(nil, to) // the next one may get through
}

// SendDigit presses a key for the phone: 0–9, *, #, A–D; others are ignored. It returns at once. Keys are RFC 4733 events
// of 100 ms with at least 50 ms between them, in place of the voice packets of that time, so they leave while
// [Media.WriteRTP] is called every 20 ms. They are INFO requests when the trunk wants that or the phone has no
// telephone-event.
func (m *Media) SendDigit(key byte) {
	if key >= 'a' && key <= 'd' {
		key -= 'a' - 'A'
	}
	event := strings.IndexByte(dtmfKeys, key)
	if event < 0 {
		return
	}
	m.mu.Lock()
	info := m.infoOnly || m.neg.Format.DTMF == 0
	if !info && !m.closed {
		m.keys.put(byte(event))
	}
	m.mu.Unlock()
	if info {
		m.byINFO(key)
	}
}

// readRTP hands on the phone's packets until the socket is closed. It alone uses buf and packet.
func (m *Media) readRTP() {
	buf := make([]byte, 2048)
	var packet rtp.Packet
	m.readStale(&packet, buf)
	for {
		n, from, err := m.rtp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(readPause)
			continue
		}
		m.received(&packet, buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	}
}

// maxStale is how many packets may wait in a kept socket: more than its buffer holds.
const maxStale = 4096

// readStale takes out what waits in a socket that was kept while no process ran. Sound is of no use any more, and played late
// would make the call late from then on; keys that were pressed count, whenever.
func (m *Media) readStale(packet *rtp.Packet, buf []byte) {
	conn, ok := m.rtp.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return // closed already
	}
	m.stale.Store(true)
	defer m.stale.Store(false)
	for range maxStale {
		var n int
		var from syscall.Sockaddr
		var failed error
		err := raw.Control(func(fd uintptr) { n, from, failed = syscall.Recvfrom(int(fd), buf, syscall.MSG_DONTWAIT) })
		if err != nil || errors.Is(failed, syscall.EAGAIN) {
			return
		}
		if source := addrPortOfSockaddr(from); failed == nil && source.IsValid() {
			m.received(packet, buf[:n], source)
		}
	}
}

func addrPortOfSockaddr(a syscall.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *syscall.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

func (m *Media) received(p *rtp.Packet, b []byte, from netip.AddrPort) {
	if len(b) >= 2 && b[1] >= 192 && b[1] <= 223 { // RFC 5761 §4: RTCP on the RTP port
		m.receivedRTCP(b, from)
		return
	}
	now := time.Now()
	m.mu.Lock()
	b, authentic := m.secure.open(b)
	if !authentic {
		m.mu.Unlock()
		m.stats.forged.Add(1)
		return
	}
	if err := p.Unmarshal(b); err != nil || p.Version != 2 {
		m.mu.Unlock()
		m.stats.malformed.Add(1)
		return
	}
	ok, learned := m.lock.accept(from, p.SSRC, p.SequenceNumber, now)
	if learned && m.lock.allowed != nil && m.sendTo.IsValid() {
		m.sendTo = from // symmetric RTP (RFC 4961)
	}
	if ok {
		m.rx.packet(p, now, m.neg.Format.ClockRate)
	}
	f, closed := m.neg.Format, m.closed
	receives := m.neg.Direction.Receives()
	m.mu.Unlock()
	switch {
	case p.PayloadType == 0:
	case p.PayloadType == f.HeardAs:
		p.PayloadType = f.PayloadType
	case p.PayloadType == f.DTMFHeardAs:
		p.PayloadType = f.DTMF
	}
	switch {
	case closed:
	case !ok:
		m.stats.strangers.Add(1)
	case f.DTMF != 0 && p.PayloadType == f.DTMF:
		if key, pressed := m.digits.read(p.SSRC, p.Timestamp, p.Payload); pressed {
			m.onDigit(key)
		}
	case p.PayloadType != f.PayloadType && p.PayloadType != pcmu.number && p.PayloadType != pcma.number && p.PayloadType != comfortNoise:
		// The other law is read like the agreed one: RFC 3264 §6.1 lets a phone that has answered with both change between
		// them, and one that has our offer may send before its answer is here (§5.1).
		m.stats.malformed.Add(1) // a codec that was not agreed
	case receives && !m.stale.Load():
		if f := m.onPacket.Load(); f != nil {
			(*f)(p)
		}
	}
}

// silentFor is how long nothing was heard from the phone.
func (m *Media) silentFor(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return now.Sub(m.rx.lastHeard)
}

// state fills the media half of a dialog.
func (m *Media) state(s *MediaState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Local = m.local
	s.Remote, s.RemoteRTCP, s.RTCPMux = m.neg.Remote, m.neg.RemoteRTCP, m.neg.RTCPMux
	s.Format, s.Direction, s.RemoteSilent = m.neg.Format, m.neg.Direction, m.neg.RemoteSilent
	s.MediaIndex = m.neg.MediaIndex
	s.LocalSSRC, s.RemoteSSRC = m.tx.ssrc, m.rx.ssrc
	s.Learned = m.lock.locked
}

// close says goodbye in RTCP if bye, closes the sockets for good, waits for the readers and gives the ports back.
func (m *Media) close(bye bool) {
	m.closing.Do(func() {
		if bye {
			m.sendReport(time.Now(), true)
		}
		m.shut(m.ports.close)
	})
}

// abandon is close for a call that another process may carry on, with these sockets if they are kept.
func (m *Media) abandon() {
	m.closing.Do(func() { m.shut(func(conn rtpConn) error { return conn.Close() }) })
}

func (m *Media) shut(end func(rtpConn) error) {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	_ = end(m.rtp) // nothing of ours waits in them
	_ = end(m.rtcp)
	m.readers.Wait()
	m.ports.giveBack(m.local.Port())
}

func addrPortOf(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
