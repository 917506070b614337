package phone

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/emiago/sipgo/sip"
)

// Call is one call of a phone.
type Call struct {
	phone   *Phone
	audio   *audio
	done    chan struct{}
	tried   chan struct{} // closed when the call is answered, or will not be
	failure error         // why not; read once tried is closed
	callID  string
	tag     string
	number  string
	bridge  string
	invite  *sip.Request
	final   *sip.Response // the 200; read once tried is closed
	in      *incoming     // nil for a call of ours

	mu        sync.Mutex
	target    sip.Uri
	to        string // To header value, with the tag once there is one
	routes    []string
	cseq      uint32
	direction string
	version   int
	ended     string
	answer    string // the bridge's last SDP
	codec     codec
	dtmf      uint8
	remote    netip.AddrPort
	ackBody   []byte
	seen2xx   int
	reinvited int
	statuses  []int // provisional ones
	notified  []string
	refuses   int // status for REFERs; 0 = they are taken
	declines  int // status for re-INVITEs and UPDATEs; 0 = they are taken
	referred  chan string
}

// Done is closed when the call is over, whoever ended it.
func (c *Call) Done() <-chan struct{} { return c.done }

// Answered waits for the answer; its error is why there is none, a [*StatusError] when the bridge refused.
func (c *Call) Answered() error {
	<-c.tried
	return c.failure
}

// Provisional are the statuses that came before the answer.
func (c *Call) Provisional() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.statuses)
}

// Ended says why the call is over; "" while it is not.
func (c *Call) Ended() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// CallID names the call.
func (c *Call) CallID() string { return c.callID }

// Place names the call for who is to take its place, as Replaces does (RFC 3891).
func (c *Call) Place() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, tag, _ := strings.Cut(c.to, "tag=")
	return c.callID + ";to-tag=" + tag + ";from-tag=" + c.tag
}

// Acknowledge sends the ACK of an answer that came to an [Invite] with NoACK.
func (c *Call) Acknowledge() { c.ack(c.final) }

// Play queues PCM at 8 kHz, of a wide-band phone at 16; it is sent in real time. Wait waits for it.
func (c *Call) Play(pcm []int16) { c.audio.play(pcm) }

// Press queues keys as RFC 4733 events.
func (c *Call) Press(keys string) { c.audio.pressKeys(keys) }

// Wait returns when everything queued has been sent.
func (c *Call) Wait(ctx context.Context) error {
	c.audio.mu.Lock()
	idle := c.audio.idle
	c.audio.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-c.done:
		return fmt.Errorf("phone: call ended: %s", c.Ended())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Heard is everything since the answer, or since early media began, as PCM of the same rate; where nothing came there is silence.
func (c *Call) Heard() []int16 {
	c.audio.mu.Lock()
	defer c.audio.mu.Unlock()
	return c.audio.rec.heard(time.Now())
}

// Keys are those that the bridge has pressed for us, as RFC 4733 events.
func (c *Call) Keys() string {
	c.audio.mu.Lock()
	defer c.audio.mu.Unlock()
	return string(c.audio.keypad.keys)
}

// Streams counts the RTP streams (SSRCs) that came one after another.
func (c *Call) Streams() int {
	c.audio.mu.Lock()
	defer c.audio.mu.Unlock()
	return c.audio.rec.streams
}

// Packets counts RTP packets sent and received.
func (c *Call) Packets() (sent, received int) {
	c.audio.mu.Lock()
	defer c.audio.mu.Unlock()
	return c.audio.sent, c.audio.received
}

// LongestPause is the longest time between two packets received since it was asked last, or since the first.
func (c *Call) LongestPause() time.Duration {
	a := c.audio
	a.mu.Lock()
	defer a.mu.Unlock()
	pause := a.pause
	a.pause = 0
	return pause
}

// Answer is the bridge's last session description.
func (c *Call) Answer() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answer
}

// Codec is the name of the codec agreed on.
func (c *Call) Codec() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.codec.name
}

// Answers counts how often the 200 was received beyond the first time.
func (c *Call) Answers() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen2xx
}

// Reinvited counts re-INVITEs and UPDATEs of the bridge.
func (c *Call) Reinvited() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reinvited
}

func (c *Call) count2xx() {
	c.mu.Lock()
	c.seen2xx++
	c.mu.Unlock()
}

// Hangup sends BYE and waits for its answer.
func (c *Call) Hangup(ctx context.Context) error {
	if c.Ended() != "" {
		return nil
	}
	res, err := c.Do(ctx, c.Request(sip.BYE))
	c.end("hung up")
	if err != nil {
		return err
	}
	if res.StatusCode != 200 {
		return fmt.Errorf("phone: BYE answered with %d", res.StatusCode)
	}
	return nil
}

// Reinvite offers another direction ("sendonly" is hold) and returns the direction of the answer.
func (c *Call) Reinvite(ctx context.Context, direction string) (string, error) {
	c.mu.Lock()
	c.direction = direction
	c.mu.Unlock()
	req := c.Request(sip.INVITE)
	c.setSDP(req, c.offer())
	res, err := c.Do(ctx, req)
	if err != nil {
		return "", err
	}
	if res.StatusCode != 200 {
		return "", fmt.Errorf("phone: re-INVITE answered with %d", res.StatusCode)
	}
	c.ack(res)
	if err := c.takeSDP(res.Body()); err != nil {
		return "", err
	}
	return directionOf(res.Body()), nil
}

// RefusesOffers lets the phone answer re-INVITEs and UPDATEs with this status; 0 lets it take them.
func (c *Call) RefusesOffers(code int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.declines = code
}

// Assert tells the bridge who is on the phone now, as a trusted PBX does after a transfer: an UPDATE with
// P-Asserted-Identity (RFC 3325, RFC 4916).
func (c *Call) Assert(ctx context.Context, identity string) error {
	req := c.Request(sip.UPDATE)
	req.AppendHeader(sip.NewHeader("P-Asserted-Identity", identity))
	res, err := c.Do(ctx, req)
	if err == nil && res.StatusCode != 200 {
		err = fmt.Errorf("phone: UPDATE answered with %d", res.StatusCode)
	}
	return err
}

// Request makes a request inside the call; Do sends it.
func (c *Call) Request(method sip.RequestMethod) *sip.Request {
	c.mu.Lock()
	c.cseq++
	c.mu.Unlock()
	return c.request(method)
}

// Do sends a request and waits for the final answer.
func (c *Call) Do(ctx context.Context, req *sip.Request) (*sip.Response, error) {
	res, err := c.phone.client.Do(ctx, req, buildAsIs)
	if err != nil {
		return nil, fmt.Errorf("phone: %s: %w", req.Method, err)
	}
	return res, nil
}

// SetSDP puts a session description into a request.
func (c *Call) SetSDP(req *sip.Request, body []byte) { c.setSDP(req, body) }

// Offer is the phone's session description now.
func (c *Call) Offer() []byte { return c.offer() }

func (c *Call) request(method sip.RequestMethod) *sip.Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.phone
	req := sip.NewRequest(method, c.target)
	via := &sip.ViaHeader{
		ProtocolName: "SIP", ProtocolVersion: "2.0", Transport: strings.ToUpper(p.config.Transport),
		Host: p.local.Addr().String(), Port: int(p.local.Port()),
	}
	via.Params.Add("branch", sip.RFC3261BranchMagicCookie+rand.Text())
	via.Params.Add("rport", "")
	req.AppendHeader(via)
	for _, r := range c.routes {
		req.AppendHeader(sip.NewHeader("Route", r))
	}
	maxForwards, callID := sip.MaxForwardsHeader(70), sip.CallIDHeader(c.callID)
	req.AppendHeader(&maxForwards)
	from := "<sip:" + p.config.User + "@" + bracketed(p.local.Addr().String()) + ">;tag=" + c.tag
	if p.config.Name != "" {
		from = strconv.Quote(p.config.Name) + " " + from
	}
	req.AppendHeader(sip.NewHeader("From", from))
	req.AppendHeader(sip.NewHeader("To", c.to))
	req.AppendHeader(&callID)
	req.AppendHeader(&sip.CSeqHeader{SeqNo: c.cseq, MethodName: method})
	req.AppendHeader(sip.NewHeader("Contact", p.contact()))
	req.AppendHeader(sip.NewHeader("User-Agent", "testbed-phone"))
	req.SetBody(nil)
	req.SetTransport(strings.ToUpper(p.config.Transport))
	req.SetDestination(c.bridge)
	if p.config.Transport == "udp" {
		req.Laddr = sip.Addr{IP: p.local.Addr().AsSlice(), Port: int(p.local.Port())}
	}
	return req
}

func (c *Call) setSDP(req *sip.Request, body []byte) {
	if len(body) == 0 {
		return
	}
	req.AppendHeader(sip.NewHeader("Content-Type", "application/sdp"))
	req.SetBody(body)
}

// cancel sends CANCEL for the INVITE: same branch, same sequence number (RFC 3261 §9.1).
func (c *Call) cancel(reason string) {
	req := c.request(sip.CANCEL)
	req.RemoveHeader("Via")
	req.PrependHeader(c.invite.Via().Clone())
	if reason != "" {
		req.AppendHeader(sip.NewHeader("Reason", reason))
	}
	c.phone.wg.Go(func() { // its answer does not matter
		ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
		defer stop()
		_, _ = c.phone.client.Do(ctx, req, buildAsIs)
	})
}

// establish takes dialog state from the 2xx; called with mu held.
func (c *Call) establish(res *sip.Response) {
	c.to = headerValue(res, "To")
	if h := res.Contact(); h != nil {
		c.target = *h.Address.Clone()
	}
	for _, h := range res.GetHeaders("Record-Route") {
		c.routes = append(c.routes, h.Value())
	}
	slices.Reverse(c.routes)
}

// ack acknowledges a 2xx; one without our offer before it gets our answer along.
func (c *Call) ack(res *sip.Response) {
	if c.phone.deaf.Load() {
		return
	}
	req := c.request(sip.ACK)
	req.CSeq().SeqNo = res.CSeq().SeqNo
	c.mu.Lock()
	body := c.ackBody
	c.mu.Unlock()
	if res.CSeq().SeqNo == c.invite.CSeq().SeqNo {
		c.setSDP(req, body)
	}
	_ = c.phone.client.WriteRequest(req, buildAsIs)
}

func (c *Call) offer() []byte {
	var offered []codec
	for _, name := range c.phone.config.Codecs {
		if k, ok := codecOf(name); ok {
			offered = append(offered, k)
		}
	}
	if c.phone.config.NoDTMF {
		return c.describe(offered, 0)
	}
	return c.describe(offered, 97)
}

// answerSDP answers the bridge's description taken last, with its numbers.
func (c *Call) answerSDP() []byte {
	c.mu.Lock()
	k, dtmf := c.codec, c.dtmf
	c.mu.Unlock()
	if c.phone.config.NoDTMF {
		dtmf = 0
	}
	return c.describe([]codec{k}, dtmf)
}

func (c *Call) describe(offered []codec, dtmf uint8) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	p := c.phone
	family := "IP4"
	if p.config.Local.Is6() {
		family = "IP6"
	}
	var pts, maps strings.Builder
	for _, k := range offered {
		fmt.Fprintf(&pts, " %d", k.pt)
		fmt.Fprintf(&maps, "a=rtpmap:%d %s\r\n", k.pt, k.rtpmap)
	}
	if dtmf != 0 {
		fmt.Fprintf(&pts, " %d", dtmf)
		fmt.Fprintf(&maps, "a=rtpmap:%d telephone-event/%d\r\na=fmtp:%d 0-15\r\n", dtmf, offered[0].clock, dtmf)
	}
	profile := "RTP/AVP"
	if p.config.SRTP {
		profile = "RTP/SAVP"
		fmt.Fprintf(&maps, "a=crypto:1 %s inline:%s\r\n", cryptoSuite, c.audio.key)
	}
	return fmt.Appendf(nil, "v=0\r\no=- 1 %d IN %s %s\r\ns=call\r\nc=IN %s %s\r\nt=0 0\r\nm=audio %d %s%s\r\n%sa=ptime:20\r\na=%s\r\n",
		c.version, family, p.config.Local, family, p.config.Local, c.audio.port(), profile, pts.String(), maps.String(), c.direction)
}

// takeSDP reads what a description of the bridge says about our stream.
func (c *Call) takeSDP(body []byte) error {
	var host string
	var k codec
	var port, dtmf int
	var first string // payload type
	for line := range bytes.Lines(body) {
		l := strings.TrimSpace(string(line))
		switch {
		case strings.HasPrefix(l, "c=IN IP"):
			host = l[len("c=IN IP4 "):]
		case strings.HasPrefix(l, "m=audio "):
			f := strings.Fields(l)
			port, _ = strconv.Atoi(f[1])
			first = f[3]
		case strings.HasPrefix(l, "a=rtpmap:"+first+" "):
			name, _, _ := strings.Cut(strings.Fields(l)[1], "/")
			k, _ = codecOf(name)
			pt, _ := strconv.ParseUint(first, 10, 7)
			k.pt = uint8(pt)
		case strings.HasPrefix(l, "a=rtpmap:") && strings.Contains(l, "telephone-event") && dtmf == 0:
			dtmf, _ = strconv.Atoi(strings.Fields(l[len("a=rtpmap:"):])[0])
		case strings.HasPrefix(l, "a=crypto:"):
			if err := c.audio.decrypt(l); err != nil {
				return fmt.Errorf("phone: %q: %w", l, err)
			}
		}
	}
	if c.phone.config.SRTP != strings.Contains(string(body), "RTP/SAVP") {
		return fmt.Errorf("phone: encrypted is %t, but the answer is %q", c.phone.config.SRTP, body)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || port == 0 || k.name == "" {
		return fmt.Errorf("phone: no usable answer: %q", body)
	}
	c.mu.Lock()
	c.answer, c.codec, c.dtmf, c.remote = string(body), k, uint8(dtmf), netip.AddrPortFrom(addr, uint16(port))
	c.mu.Unlock()
	c.audio.mu.Lock()
	if !c.audio.started.IsZero() {
		c.audio.agree(k, uint8(dtmf), netip.AddrPortFrom(addr, uint16(port)))
	}
	c.audio.mu.Unlock()
	return nil
}

func (c *Call) startAudio() {
	c.mu.Lock()
	k, dtmf, remote := c.codec, c.dtmf, c.remote
	c.mu.Unlock()
	c.audio.start(k, dtmf, remote) // once; early media goes on
}

// Forget ends the call without a word, as a phone that lost power does. Requests of the bridge get 481 from then on.
func (c *Call) Forget() { c.end("forgotten") }

func (c *Call) end(why string) {
	c.mu.Lock()
	if c.ended != "" {
		c.mu.Unlock()
		return
	}
	c.ended = why
	close(c.done)
	c.mu.Unlock()
	c.audio.close()
	c.phone.mu.Lock()
	delete(c.phone.calls, c.callID)
	c.phone.mu.Unlock()
}

func directionOf(body []byte) string {
	for line := range bytes.Lines(body) {
		switch l := strings.TrimSpace(string(line)); l {
		case "a=sendrecv", "a=sendonly", "a=recvonly", "a=inactive":
			return l[2:]
		}
	}
	return "sendrecv"
}
