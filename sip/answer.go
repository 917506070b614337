package sip

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// LocalState is our side of the session when an offer is answered or made.
type LocalState struct {
	Addr    netip.AddrPort // where we receive audio
	Codecs  []string       // by preference; the first that the offer has, too, is taken
	Current Format         // in use: its codec is kept if the offer still has it, and the first in a later offer of ours
	Crypto  Crypto         // in use
	Later   bool           // descriptions went back and forth before

	Hold       bool   // we do not want to hear the phone now
	SessionID  uint64 // of the o= line
	SDPVersion uint64 // of the last description we sent, 0 = none yet
	LocalSDP   string // that description, whole
	MediaIndex int    // the m= line in use; -1 = choose

	SRTP   SRTPMode
	Secure bool     // the signalling is: keys may be in descriptions
	Keys   []string // ours, one for each suite
}

// encrypts says that keys may be offered and taken.
func (l LocalState) encrypts() bool { return l.SRTP != SRTPOff && l.Secure }

// Negotiated is what offer and answer agreed on.
type Negotiated struct {
	Format       Format
	Remote       netip.AddrPort // where the phone receives audio
	RemoteRTCP   netip.AddrPort
	RTCPMux      bool
	Direction    Direction // ours
	RemoteSilent bool      // the phone named address 0.0.0.0: send nothing
	MediaIndex   int
	SDPVersion   uint64
	Crypto       Crypto
}

// off says that the audio stream is switched off.
func (n *Negotiated) off() bool { return !n.Remote.IsValid() }

// talks says that sound goes both ways: nobody is on hold.
func (n *Negotiated) talks() bool { return n.Direction == SendRecv && !n.RemoteSilent }

// NotAcceptable says why an offer cannot be answered; the INVITE gets a 488 with its text in a Warning header.
type NotAcceptable struct {
	Warn int // RFC 3261 §20.43 warn-code
	Text string
}

func (e *NotAcceptable) Error() string {
	return fmt.Sprintf("offer not acceptable: %d %s", e.Warn, e.Text)
}

// Answer answers an offer (RFC 3264). It is a pure function: same offer and state, same answer. The error is a
// *NotAcceptable when the offer is understood but holds nothing for us, else it wraps errSDP.
func Answer(offer []byte, local LocalState) ([]byte, *Negotiated, error) {
	o, err := ParseSDP(offer)
	if err != nil {
		return nil, nil, err
	}
	n, err := local.settle(o)
	if err != nil {
		return nil, nil, err
	}
	return local.answer(o, n), n, nil
}

// Decline answers an offer that has nothing for us where it cannot be refused as a whole, by switching all its streams off
// (RFC 3264 §6).
func Decline(offer []byte, local LocalState) ([]byte, *Negotiated, error) {
	o, err := ParseSDP(offer)
	if err != nil {
		return nil, nil, err
	}
	n := local.switchedOff()
	return local.answer(o, n), n, nil
}

// answer writes what was agreed, and counts its version.
func (l LocalState) answer(o *SDP, n *Negotiated) (body []byte) {
	body, n.SDPVersion = l.render(func(b *strings.Builder) {
		for i := range o.Media {
			if i == n.MediaIndex && !n.off() {
				writeAudio(b, &o.Media[i], n, l.Addr.Port())
			} else {
				writeRejected(b, &o.Media[i])
			}
		}
	})
	return body
}

// settle agrees on what an offer has for us.
func (l LocalState) settle(o *SDP) (*Negotiated, error) {
	if l.Later && o.silent(l.MediaIndex) {
		return l.switchedOff(), nil
	}
	index, err := chooseMedia(o, l)
	if err != nil {
		return nil, err
	}
	return negotiate(o, index, l)
}

// silent says that an offer switches off the i-th stream, which is audio, and has no other that is on: one that is would be left
// without a word by an answer, so that a fax machine would send its pictures to nobody.
func (s *SDP) silent(i int) bool {
	return i >= 0 && i < len(s.Media) && s.Media[i].Kind == "audio" &&
		!slices.ContainsFunc(s.Media, func(m MediaLine) bool { return m.Port != 0 })
}

// switchedOff is a call whose audio has port 0 from now on (RFC 3264 §8.2): nothing is sent, until a later offer brings it back.
func (l LocalState) switchedOff() *Negotiated {
	return &Negotiated{
		Format: l.Current, Crypto: l.Crypto, Direction: Inactive, RemoteSilent: true, MediaIndex: max(l.MediaIndex, 0), SDPVersion: l.SDPVersion,
	}
}

// chooseMedia finds the audio stream we take: the one in use if it is still there, else the first encrypted one, else
// the first usable one.
func chooseMedia(o *SDP, local LocalState) (int, error) {
	secure := func(m *MediaLine) bool { return local.encrypts() && cryptoOf(m, local.Keys).on() }
	usable := func(m *MediaLine) bool {
		switch {
		case m.Kind != "audio" || m.Port == 0:
			return false
		case m.Proto == "RTP/SAVP", local.SRTP == SRTPRequired && m.Proto == "RTP/AVP":
			return secure(m)
		}
		return m.Proto == "RTP/AVP"
	}
	if i := local.MediaIndex; i >= 0 && i < len(o.Media) && usable(&o.Media[i]) {
		return i, nil
	}
	plain, far, audio, secured := -1, -1, false, false
	for i := range o.Media {
		switch m := &o.Media[i]; {
		case usable(m) && !local.reaches(o, m):
			far = max(far, i)
		case usable(m) && secure(m):
			return i, nil
		case usable(m) && plain < 0:
			plain = i
		default:
			here := m.Kind == "audio" && m.Port != 0
			audio, secured = audio || here, secured || here && strings.Contains(m.Proto, "SAVP")
		}
	}
	switch {
	case plain >= 0:
		return plain, nil
	case far >= 0: // its refusal says why
		return far, nil
	case audio && local.SRTP == SRTPRequired:
		return 0, &NotAcceptable{302, "SRTP is required here, with keys in SDP over TLS"}
	case audio && !secured:
		return 0, &NotAcceptable{302, "Incompatible transport protocol, use RTP/AVP"}
	case audio:
		// RFC 3264 §6 would let us answer port 0; with no other stream a clear refusal serves the caller better.
		return 0, &NotAcceptable{302, "SRTP is not offered here, use RTP/AVP"}
	}
	return 0, &NotAcceptable{304, "No audio stream over RTP/AVP"}
}

// reaches says that a stream's address is of the family that we have: phones of both offer a stream for each.
func (l LocalState) reaches(o *SDP, m *MediaLine) bool {
	addr, err := o.addr(m)
	return err != nil || addr.IsUnspecified() || addr.Is4() == l.Addr.Addr().Unmap().Is4()
}

// negotiate agrees on one audio stream.
func negotiate(o *SDP, index int, local LocalState) (*Negotiated, error) {
	m := &o.Media[index]
	addr, err := o.addr(m)
	if err != nil {
		return nil, err
	}
	if addr.IsMulticast() {
		return nil, &NotAcceptable{330, "Multicast is not available"}
	}
	if !local.reaches(o, m) {
		return nil, &NotAcceptable{301, "Incompatible network address format"}
	}
	f, err := chooseFormat(m, local)
	if err != nil {
		return nil, err
	}
	n := &Negotiated{
		Format:       f,
		MediaIndex:   index,
		Remote:       netip.AddrPortFrom(addr, uint16(m.Port)),
		RemoteSilent: addr.IsUnspecified(),
	}
	theirs := o.direction(m)
	n.Direction = directionOf(theirs.Receives(), theirs.Sends() && !local.Hold) // RFC 3264 §6.1
	n.RemoteRTCP, n.RTCPMux = rtcpAddr(m, n.Remote)
	if local.encrypts() {
		n.Crypto = cryptoOf(m, local.Keys)
	}
	return n, nil
}

// rtcpAddr finds where the phone hears RTCP: the same port if it can multiplex (RFC 5761), where a=rtcp says
// (RFC 3605), else one port above.
func rtcpAddr(m *MediaLine, rtp netip.AddrPort) (netip.AddrPort, bool) {
	if _, ok := attr(m.Attrs, "rtcp-mux"); ok {
		return rtp, true
	}
	if v, ok := attr(m.Attrs, "rtcp"); ok {
		f := strings.Fields(v)
		if port, err := strconv.ParseUint(first(f), 10, 16); err == nil && port != 0 {
			addr := rtp.Addr()
			if len(f) == 4 {
				// Only the host that also gets the audio: RTCP must not be a way to send packets to a third party.
				if a, err := netip.ParseAddr(f[3]); err != nil || a != addr {
					return netip.AddrPort{}, false
				}
			}
			return netip.AddrPortFrom(addr, uint16(port)), false
		}
	}
	if rtp.Port() == 65535 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(rtp.Addr(), rtp.Port()+1), false
}

func first(f []string) string {
	if len(f) == 0 {
		return ""
	}
	return f[0]
}

// Offer describes what we want: all our codecs, the preferred one first, which is the format until the answer says
// otherwise. The phone may be another one than before (a transfer), so that a later offer names all of them again.
func Offer(local LocalState) ([]byte, *Negotiated) {
	codecs := local.Codecs
	if current := local.Current.Codec; current != "" {
		others := slices.DeleteFunc(slices.Clone(codecs), func(c string) bool { return strings.EqualFold(c, current) })
		codecs = append([]string{current}, others...)
	}
	before, index := local.described()
	lines, f := describeCodecs(codecs, payloads(&before[index]))
	n := &Negotiated{Format: f, Direction: directionOf(true, !local.Hold), MediaIndex: index}
	body, version := local.render(func(b *strings.Builder) {
		for i := range before {
			if i == index {
				local.writeOffer(b, before[i].Proto, lines, n.Direction)
			} else {
				writeRejected(b, &before[i])
			}
		}
	})
	n.SDPVersion = version
	return body, n
}

// described returns the m= lines of our last description, and which one is in use: a later one has as many, in the same
// order (RFC 3264 §8).
func (l LocalState) described() ([]MediaLine, int) {
	if s, err := ParseSDP([]byte(l.LocalSDP)); err == nil && l.MediaIndex >= 0 && l.MediaIndex < len(s.Media) {
		return s.Media, l.MediaIndex
	}
	return make([]MediaLine, 1), 0
}

// describeCodecs writes what an offer says of its codecs: the end of the m= line and the lines of their meaning. Keys come
// at the clock of each codec. f is the format that holds until the answer is here.
func describeCodecs(names []string, before []payload) (lines string, f Format) {
	numbers := numbering{before: before}
	var formats, maps strings.Builder
	var rates []int
	for i, name := range names {
		c, _ := codecNamed(name)
		number := numbers.of(c.name, c.rate, c.number)
		fmt.Fprintf(&formats, " %d", number)
		c.rtpmap(&maps, number)
		if i == 0 {
			f = Format{Codec: c.name, PayloadType: number, ClockRate: c.rate, Ptime: ourPtime}
		}
		if !slices.Contains(rates, c.rate) {
			rates = append(rates, c.rate)
		}
	}
	for _, rate := range rates {
		number := numbers.of(telephoneEvent, rate, ourDTMFPayload)
		fmt.Fprintf(&formats, " %d", number)
		eventsMap(&maps, number, rate)
		if rate == f.ClockRate {
			f.DTMF, f.DTMFRate = number, rate
		}
	}
	return formats.String() + "\r\n" + maps.String(), f
}

// writeOffer writes the m= line of an offer; before is the protocol of the one it follows, "" if there is none.
func (l LocalState) writeOffer(b *strings.Builder, before, codecs string, d Direction) {
	proto := "RTP/AVP" // with a=crypto, too: who knows no SRTP does without
	if l.SRTP == SRTPRequired && before != proto || l.encrypts() && before == "RTP/SAVP" {
		proto = "RTP/SAVP"
	}
	fmt.Fprintf(b, "m=audio %d %s%sa=ptime:%d\r\na=%s\r\na=rtcp-mux\r\n", l.Addr.Port(), proto, codecs, ourPtime, d)
	if l.encrypts() {
		for i, key := range l.Keys {
			writeCrypto(b, i+1, suites[i].name, key)
		}
	}
}

// TakeAnswer completes an offer of local's codecs with the phone's answer. The first codec of the answer that we offered
// is the one it prefers (RFC 3264 §6.1).
func TakeAnswer(answer []byte, local LocalState) (*Negotiated, error) {
	a, err := ParseSDP(answer)
	if err != nil {
		return nil, err
	}
	index := max(local.MediaIndex, 0) // where our offer had it
	if index < len(a.Media) && a.Media[index].Port == 0 && local.Later {
		return local.switchedOff(), nil
	}
	if index >= len(a.Media) || a.Media[index].Port == 0 {
		return nil, &NotAcceptable{304, "The answer refuses audio"}
	}
	audio := &a.Media[index]
	proto := audio.Proto
	if audio.Kind != "audio" || proto != "RTP/AVP" && (proto != "RTP/SAVP" || !local.encrypts()) {
		return nil, fmt.Errorf("%w: the answer is not to our offer", errSDP)
	}
	var common []string
	for _, p := range payloads(audio) {
		if slices.ContainsFunc(local.Codecs, func(c string) bool { return strings.EqualFold(c, p.name) }) {
			common = append(common, p.name)
		}
	}
	if len(common) == 0 {
		return nil, &NotAcceptable{305, "The answer has no codec of the offer"}
	}
	local.Current, local.Codecs = Format{}, common
	n, err := negotiate(a, index, local)
	if err != nil {
		return nil, err
	}
	if !n.Crypto.on() && (proto == "RTP/SAVP" || local.SRTP == SRTPRequired) {
		return nil, &NotAcceptable{302, "The answer has no usable key"}
	}
	n.SDPVersion = local.SDPVersion
	n.Format.heardAs(local)
	return n, nil
}

// render writes a description of ours. RFC 3264 §8: the version in o= grows by one exactly when something changed.
func (l LocalState) render(media func(*strings.Builder)) ([]byte, uint64) {
	addr := l.Addr.Addr().Unmap()
	family := "IP4"
	if addr.Is6() {
		family = "IP6"
	}
	text := func(version uint64) string {
		var b strings.Builder
		fmt.Fprintf(&b, "v=0\r\no=- %d %d IN %s %s\r\ns=-\r\nc=IN %s %s\r\nt=0 0\r\n",
			l.SessionID, version, family, addr, family, addr)
		media(&b)
		return b.String()
	}
	if l.SDPVersion == 0 {
		return []byte(text(1)), 1
	}
	if same := text(l.SDPVersion); same == l.LocalSDP {
		return []byte(same), l.SDPVersion
	}
	return []byte(text(l.SDPVersion + 1)), l.SDPVersion + 1
}

func writeAudio(b *strings.Builder, offered *MediaLine, n *Negotiated, port uint16) {
	f := n.Format
	c, _ := codecNamed(f.Codec)
	noise := f.ClockRate == pcmu.rate && offersNoise(offered)
	fmt.Fprintf(b, "m=audio %d %s %d", port, offered.Proto, f.PayloadType)
	if f.DTMF != 0 {
		fmt.Fprintf(b, " %d", f.DTMF)
	}
	if noise {
		fmt.Fprintf(b, " %d", comfortNoise)
	}
	b.WriteString("\r\n")
	c.rtpmap(b, f.PayloadType)
	if f.DTMF != 0 {
		eventsMap(b, f.DTMF, f.DTMFRate)
	}
	if noise {
		fmt.Fprintf(b, "a=rtpmap:%d CN/%d\r\n", comfortNoise, pcmu.rate)
	}
	fmt.Fprintf(b, "a=ptime:%d\r\na=%s\r\n", ourPtime, n.Direction)
	if n.RTCPMux {
		b.WriteString("a=rtcp-mux\r\n")
	}
	if n.Crypto.on() {
		writeCrypto(b, n.Crypto.Tag, n.Crypto.Suite, n.Crypto.Local)
	}
}

// writeRejected answers a stream we do not take: RFC 3264 §6, same media type and protocol, port 0, some format.
func writeRejected(b *strings.Builder, m *MediaLine) {
	fmt.Fprintf(b, "m=%s 0 %s %s\r\n", plainToken(m.Kind), plainToken(m.Proto), plainToken(m.Formats[0]))
}

// plainToken keeps what others wrote from becoming more than a word of ours.
func plainToken(s string) string {
	s = strings.Map(func(r rune) rune {
		if r <= 0x20 || r >= 0x7f {
			return -1
		}
		return r
	}, s)
	if s == "" {
		return "-"
	}
	return s[:min(len(s), 60)]
}

// warning returns the value of the Warning header for a refused offer, "" if err is none.
func warning(err error, host string) string {
	if na, ok := errors.AsType[*NotAcceptable](err); ok {
		return fmt.Sprintf(`%d %s "%s"`, na.Warn, host, plainText(na.Text))
	}
	return ""
}
