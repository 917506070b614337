package sip

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// codec is one we can pass on.
type codec struct {
	name    string
	number  uint8 // payload type: static (RFC 3551 §6), or the one of our own offers
	rate    int   // of the RTP clock
	wide    bool  // it carries more than 4 kHz
	written string
	fmtp    string
}

// G.722 has 16000 samples a second and a clock of 8000 (RFC 3551 §4.5.2). Opus is written with two channels, whatever is
// sent (RFC 7587 §7); what we play ends at 8 kHz.
var (
	pcmu = codec{name: "PCMU", number: 0, rate: 8000}
	pcma = codec{name: "PCMA", number: 8, rate: 8000}
	g722 = codec{name: "G722", number: 9, rate: 8000, wide: true}
	opus = codec{
		name: "opus", number: 107, rate: 48000, wide: true,
		written: "opus/48000/2", fmtp: "minptime=10;useinbandfec=1;maxplaybackrate=16000",
	}

	codecs = []codec{pcmu, pcma, g722, opus}
)

func codecNamed(name string) (codec, bool) {
	i := slices.IndexFunc(codecs, func(c codec) bool { return strings.EqualFold(name, c.name) })
	if i < 0 {
		return codec{}, false
	}
	return codecs[i], true
}

// rtpmap describes the codec under a payload type.
func (c codec) rtpmap(b *strings.Builder, number uint8) {
	written := c.written
	if written == "" {
		written = fmt.Sprintf("%s/%d", c.name, c.rate)
	}
	fmt.Fprintf(b, "a=rtpmap:%d %s\r\n", number, written)
	if c.fmtp != "" {
		fmt.Fprintf(b, "a=fmtp:%d %s\r\n", number, c.fmtp)
	}
}

// telephoneEvent is the name keys have in SDP (RFC 4733).
const telephoneEvent = "telephone-event"

func eventsMap(b *strings.Builder, number uint8, rate int) {
	fmt.Fprintf(b, "a=rtpmap:%[1]d %[2]s/%[3]d\r\na=fmtp:%[1]d 0-15\r\n", number, telephoneEvent, rate)
}

const (
	ourPtime       = 20  // ms per packet we send and like to get
	ourDTMFPayload = 101 // in our own offers
	firstDynamic   = 96  // RFC 3551 §3
	lastDynamic    = 127
	comfortNoise   = 13 // RFC 3389; phones send it without asking
)

// payload is one format of an m= line with its rtpmap.
type payload struct {
	pt   uint8
	name string
	rate int
}

func (p payload) is(name string, rate int) bool {
	return p.rate == rate && strings.EqualFold(p.name, name)
}

// payloads reads the formats of m; numbers without rtpmap have their static meaning (RFC 3551).
func payloads(m *MediaLine) []payload {
	var out []payload
	for _, f := range m.Formats {
		pt, err := strconv.ParseUint(f, 10, 7)
		if err != nil {
			continue
		}
		p := payload{pt: uint8(pt)}
		for _, c := range codecs {
			if c.number == p.pt && p.pt < firstDynamic {
				p.name, p.rate = c.name, c.rate
			}
		}
		if p.pt == comfortNoise {
			p.name, p.rate = "CN", pcmu.rate
		}
		for _, a := range m.Attrs {
			if num, enc, ok := strings.Cut(a.Value, " "); ok && strings.EqualFold(a.Key, "rtpmap") && num == f {
				p.name, p.rate = encoding(enc)
				break
			}
		}
		if p.pt == g722.number && strings.EqualFold(p.name, g722.name) {
			p.rate = g722.rate // some phones write the 16000 that it really has
		}
		if p.name != "" {
			out = append(out, p)
		}
	}
	return out
}

// encoding reads name/clock/channels. More than one channel is not ours, but for Opus, which always says two.
func encoding(s string) (name string, rate int) {
	parts := strings.Split(strings.TrimSpace(s), "/")
	if len(parts) > 1 {
		rate, _ = strconv.Atoi(parts[1])
	}
	if len(parts) > 2 && parts[2] != "1" && !strings.EqualFold(parts[0], opus.name) {
		return "", 0
	}
	return parts[0], rate
}

// chooseFormat takes the codec in use if still offered, else our first that is offered, and telephone-event.
func chooseFormat(m *MediaLine, local LocalState) (Format, error) {
	offered := payloads(m)
	wanted := local.Codecs
	if local.Current.Codec != "" {
		wanted = append([]string{local.Current.Codec}, wanted...)
	}
	for _, name := range wanted {
		c, ok := codecNamed(name)
		if !ok {
			continue
		}
		i := slices.IndexFunc(offered, func(p payload) bool { return p.is(c.name, c.rate) })
		if i < 0 {
			continue
		}
		f := Format{Codec: c.name, PayloadType: offered[i].pt, ClockRate: c.rate, Ptime: ptime(m, c)}
		f.DTMF, f.DTMFRate = events(offered, c, f.PayloadType) // RFC 3264 §6.1: dynamic numbers are the offer's
		return f, nil
	}
	return Format{}, &NotAcceptable{305, "No common codec, offer " + strings.Join(local.Codecs, " or ")}
}

// events finds telephone-event. Its clock must be the codec's (RFC 4733 §2.1); but phones with a wide-band codec are known
// to have it at 8000 or 16000 only, and the meaning of a key does not depend on it.
func events(offered []payload, c codec, taken uint8) (number uint8, rate int) {
	rates := []int{c.rate}
	if c.wide {
		rates = []int{c.rate, 8000, 16000}
	}
	for _, rate := range rates {
		for _, p := range offered {
			if p.is(telephoneEvent, rate) && p.pt != taken {
				return p.pt, rate
			}
		}
	}
	return 0, 0
}

// heardAs notes the numbers of our last description where the phone has answered with others.
func (f *Format) heardAs(local LocalState) {
	before, index := local.described()
	for _, p := range payloads(&before[index]) {
		if p.is(f.Codec, f.ClockRate) && p.pt != f.PayloadType {
			f.HeardAs = p.pt
		}
		if f.DTMF != 0 && p.is(telephoneEvent, f.DTMFRate) && p.pt != f.DTMF {
			f.DTMFHeardAs = p.pt
		}
	}
}

// offersNoise says that the phone may send comfort noise in pauses.
func offersNoise(m *MediaLine) bool {
	return slices.Contains(payloads(m), payload{comfortNoise, "CN", pcmu.rate})
}

// ptime is what the phone would like to receive, and no more than it can (RFC 8866 §6.4), as near as we can send: from 10
// to 60 ms in steps of ten, for Opus the frames it has.
func ptime(m *MediaLine, c codec) int {
	ms := ourPtime
	if v, ok := attr(m.Attrs, "ptime"); ok {
		if n, err := strconv.Atoi(v); err == nil && n >= 10 && n <= 60 {
			ms = n
		}
	}
	if v, ok := attr(m.Attrs, "maxptime"); ok {
		if n, err := strconv.Atoi(v); err == nil && n > 0 {
			ms = max(min(ms, n), 10)
		}
	}
	ms -= ms % 10
	if c.name == opus.name && (ms == 30 || ms == 50) {
		ms -= 10
	}
	return ms
}

// numbering gives out payload types for an offer: what had one in the description before keeps it (RFC 3264 §8.3.2).
type numbering struct {
	before []payload
	taken  []uint8
}

func (n *numbering) of(name string, rate int, wish uint8) uint8 {
	i := slices.IndexFunc(n.before, func(p payload) bool { return p.is(name, rate) && !slices.Contains(n.taken, p.pt) })
	if i >= 0 {
		wish = n.before[i].pt
	}
	for wish >= firstDynamic && (slices.Contains(n.taken, wish) ||
		i < 0 && slices.ContainsFunc(n.before, func(p payload) bool { return p.pt == wish })) {
		if wish++; wish > lastDynamic {
			wish = firstDynamic
		}
	}
	n.taken = append(n.taken, wish)
	return wish
}
