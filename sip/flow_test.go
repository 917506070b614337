package sip_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtp"
	"go.uber.org/goleak"

	"trunkline/internal/testbed/phone"
	"trunkline/sip"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bed is a stack on real sockets with an application that echoes the phone's audio to it.
type bed struct {
	testing.TB
	stack  *sip.Stack
	calls  chan *served
	invite func(*served) // what the application does with a call; nil = answer
	source netip.AddrPort
}

// served is a call as the application sees it.
type served struct {
	*sip.Call
	bed    *bed
	events chan sip.Event
	media  *sip.Media

	mu     sync.Mutex
	heard  int
	digits []byte
}

func (s *served) pressed() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.digits)
}

func loopback(t sip.Transport) []sip.Listen {
	return []sip.Listen{{Transport: t, Addr: netip.MustParseAddrPort("127.0.0.1:0")}}
}

func testConfig(t sip.Transport) sip.Config {
	config := sip.Config{
		Listen: loopback(t),
		RTP:    sip.RTPConfig{Addr: netip.MustParseAddr("127.0.0.1"), PortMin: 34000, PortMax: 34999},
		Trunks: []sip.Trunk{{Name: "lab", Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/24")}}},
	}
	if t == sip.TLS {
		theCA := authorityOnce()
		config.TLS = &tls.Config{Certificates: []tls.Certificate{theCA.certificate("bridge")}}
		config.Trunks[0].TLS = &tls.Config{RootCAs: theCA.pool()}
		config.Trunks[0].SRTP = sip.SRTPRequired
	}
	return config
}

func newBed(t testing.TB, config sip.Config, invite func(*served)) *bed {
	t.Helper()
	b := &bed{TB: t, calls: make(chan *served, 4096), invite: invite}
	stack, err := sip.New(config, b, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	b.stack = stack
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- stack.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
		if n := stack.Stats().Panics; n != 0 {
			t.Errorf("%d panics", n)
		}
	})
	return b
}

func (b *bed) Invite(c *sip.Call) {
	s := &served{Call: c, bed: b, events: make(chan sip.Event, 256)}
	c.OnEvent(func(e sip.Event) {
		if d, ok := e.(sip.Digit); ok {
			s.mu.Lock()
			s.digits = append(s.digits, d.Key)
			s.mu.Unlock()
		}
		s.events <- e
	})
	b.calls <- s
	if b.invite != nil {
		go b.invite(s)
		return
	}
	go s.answer()
}

func (s *served) answer() {
	_, m, err := s.Accept()
	if err != nil {
		return
	}
	s.echo(m)
	_ = s.SendAnswer()
}

// hears waits until so many packets of the phone have come.
func (s *served) hears(t *testing.T, packets int) {
	t.Helper()
	await(t, "sound", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.heard >= packets
	})
}

// echo sends back what comes, under our own SSRC.
func (s *served) echo(m *sip.Media) {
	s.media = m
	ssrc := sip.NewSSRC()
	m.OnPacket(func(p *rtp.Packet) {
		s.mu.Lock()
		s.heard++
		s.mu.Unlock()
		out := *p
		out.SSRC = ssrc
		_ = m.WriteRTP(&out)
	})
}

func (b *bed) call() *served {
	b.Helper()
	select {
	case s := <-b.calls:
		return s
	case <-time.After(20 * time.Second):
		b.Fatal("no call arrived")
		return nil
	}
}

// wants waits for an event of the same type as want and compares it.
func (s *served) wants(want sip.Event) sip.Event {
	s.bed.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case got := <-s.events:
			if fmt.Sprintf("%T", got) != fmt.Sprintf("%T", want) {
				continue
			}
			return got
		case <-timeout:
			s.bed.Fatalf("no event %T", want)
			return nil
		}
	}
}

// dial calls out.
func (b *bed) dial(r sip.DialRequest) *served {
	b.Helper()
	c, err := b.stack.Dial(timeout(b, 20*time.Second), r)
	if err != nil {
		b.Fatal(err)
	}
	s := &served{Call: c, bed: b, events: make(chan sip.Event, 256)}
	c.OnEvent(func(e sip.Event) { s.events <- e })
	if err := c.SendInvite(); err != nil {
		b.Fatal(err)
	}
	return s
}

// firstSource is where the first call came from.
func (b *bed) firstSource(now netip.AddrPort) netip.AddrPort {
	if !b.source.IsValid() {
		b.source = now
	}
	return b.source
}

func (b *bed) addr(t sip.Transport) string { return b.stack.Addr(t).String() }

func (b *bed) phone(c phone.Config) *phone.Phone {
	b.Helper()
	if !c.Local.IsValid() {
		c.Local = netip.MustParseAddr("127.0.0.20")
	}
	p, err := phone.Open(c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := p.Close(); err != nil {
			b.Errorf("phone.Close = %v", err)
		}
	})
	return p
}

func timeout(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func tone(hz float64, d time.Duration) []int16 {
	pcm := make([]int16, int(d*phone.Rate/time.Second))
	for i := range pcm {
		pcm[i] = int16(8000 * math.Sin(2*math.Pi*hz*float64(i)/phone.Rate))
	}
	return pcm
}

// power of a frequency in pcm (Goertzel), relative to the power of a full tone of amplitude 8000.
func power(pcm []int16, hz float64) float64 {
	if len(pcm) == 0 {
		return 0
	}
	w := 2 * math.Cos(2*math.Pi*hz/phone.Rate)
	var a, b float64
	for _, s := range pcm {
		a, b = float64(s)+w*a-b, a
	}
	p := a*a + b*b - w*a*b
	n := float64(len(pcm))
	return p / (n * n / 4 * 8000 * 8000)
}

// echoes lets the phone play a tone until so much of it has come back as it was played, at one go: a machine that is held up may
// swallow some. What was heard before does not count.
func echoes(t *testing.T, call *phone.Call, before int, d time.Duration) {
	t.Helper()
	call.Play(tone(440, 30*time.Second))
	n := int(d * phone.Rate / time.Second)
	await(t, "our tone to come back", func() bool {
		heard := call.Heard()[before:]
		for ; len(heard) >= n; heard = heard[phone.Rate/20:] {
			if p := power(heard[:n], 440); p > 0.8 && p < 1.2 && slices.Max(heard[:n]) < 9000 { // once, and not twice
				return true
			}
		}
		return false
	})
}

func TestPhoneCallsTalksAndHangsUp(t *testing.T) {
	for _, tr := range []sip.Transport{sip.UDP, sip.TCP} {
		for _, codec := range []string{"PCMU", "PCMA"} {
			t.Run(string(tr)+" "+codec, func(t *testing.T) {
				b := newBed(t, testConfig(tr), nil)
				p := b.phone(phone.Config{Transport: string(tr), Codecs: []string{codec}, Name: "Ann Other", User: "4915112345"})
				call, err := p.Dial(timeout(t, 20*time.Second), b.addr(tr), "1000")
				if err != nil {
					t.Fatal(err)
				}
				s := b.call()
				s.wants(sip.Acked{})
				if i := s.Info(); i.Dialled != "1000" || i.Caller.Number != "4915112345" || i.Caller.DisplayName != "Ann Other" || i.Trunk != "lab" {
					t.Errorf("Info() = %+v", i)
				}
				if f := s.media.Format(); f.Codec != codec || f.DTMF != 97 || f.ClockRate != 8000 {
					t.Errorf("Format() = %+v, want %s with telephone-event 97", f, codec)
				}
				echoes(t, call, 0, 500*time.Millisecond)
				if err := call.Hangup(timeout(t, 20*time.Second)); err != nil {
					t.Fatal(err)
				}
				s.wants(sip.Bye{})
				s.wants(sip.Ended{})
				<-s.Done()
				if st := b.stack.Stats(); st.Calls != 0 || st.RTPPorts != 0 {
					t.Errorf("after the call: %d calls, %d ports in use", st.Calls, st.RTPPorts)
				}
			})
		}
	}
}

func TestBridgeHangsUp(t *testing.T) {
	for _, tr := range []sip.Transport{sip.UDP, sip.TCP} {
		t.Run(string(tr), func(t *testing.T) {
			b := newBed(t, testConfig(tr), nil)
			call, err := b.phone(phone.Config{Transport: string(tr)}).Dial(timeout(t, 20*time.Second), b.addr(tr), "1000")
			if err != nil {
				t.Fatal(err)
			}
			s := b.call()
			s.wants(sip.Acked{})
			if err := s.Hangup(sip.CauseNormal); err != nil {
				t.Fatal(err)
			}
			if err := s.Hangup(sip.CauseNormal); err != nil {
				t.Errorf("second Hangup = %v", err)
			}
			<-call.Done()
			if got, want := call.Ended(), `Q.850;cause=16;text="Normal call clearing"`; got != want {
				t.Errorf("reason of BYE = %q, want %q", got, want)
			}
			if e := s.wants(sip.Ended{}); e.(sip.Ended).Cause != sip.CauseNormal {
				t.Errorf("got %+v, want cause normal", e)
			}
			if err := s.Hangup(sip.CauseNormal); err != nil {
				t.Errorf("Hangup of an ended call = %v", err)
			}
		})
	}
}

func TestPhoneCancelsWhileRinging(t *testing.T) {
	for _, tr := range []sip.Transport{sip.UDP, sip.TCP} {
		t.Run(string(tr), func(t *testing.T) {
			b := newBed(t, testConfig(tr), func(s *served) { _ = s.Ring() })
			ctx, cancel := context.WithCancel(t.Context())
			_, err := b.phone(phone.Config{Transport: string(tr)}).DialWith(ctx, b.addr(tr), phone.Invite{
				Number: "1000",
				OnStatus: func(code int) {
					if code == 180 {
						cancel()
					}
				},
			})
			if e, ok := errors.AsType[*phone.StatusError](err); !ok || e.Code != 487 {
				t.Fatalf("cancelled INVITE = %v, want 487", err)
			}
			s := b.call()
			s.wants(sip.Cancelled{})
			s.wants(sip.Ended{})
			if err := s.Ring(); !errors.Is(err, sip.ErrEnded) {
				t.Errorf("Ring after CANCEL = %v, want ErrEnded", err)
			}
		})
	}
}

func TestCallIsRejected(t *testing.T) {
	b := newBed(t, testConfig(sip.UDP), func(s *served) {
		_ = s.Reject(404, "No such\r\nX-Evil: room", "X-Room: none")
	})
	_, err := b.phone(phone.Config{}).Dial(timeout(t, 20*time.Second), b.addr(sip.UDP), "9")
	if e, ok := errors.AsType[*phone.StatusError](err); !ok || e.Code != 404 || e.Reason != "No suchX-Evil: room" {
		t.Fatalf("rejected call = %v, want 404 in one line", err)
	}
}

func TestKeysArriveOnceEach(t *testing.T) {
	b := newBed(t, testConfig(sip.UDP), nil)
	call, err := b.phone(phone.Config{}).Dial(timeout(t, 20*time.Second), b.addr(sip.UDP), "1000")
	if err != nil {
		t.Fatal(err)
	}
	s := b.call()
	s.wants(sip.Acked{})
	call.Press("11224#*A")
	if err := call.Wait(timeout(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	await(t, "these keys, which come another way", func() bool { return len(s.pressed()) >= 8 })
	info := call.Request("INFO")
	info.AppendHeader(header("Content-Type", "application/dtmf-relay"))
	info.SetBody([]byte("Signal=7\r\nDuration=160\r\n"))
	if res, err := call.Do(timeout(t, 20*time.Second), info); err != nil || res.StatusCode != 200 {
		t.Fatalf("INFO = %v, %v", res, err)
	}
	await(t, "the last key", func() bool { return len(s.pressed()) >= 9 })
	time.Sleep(50 * time.Millisecond) // one too many would come now
	if got := s.pressed(); got != "11224#*A7" {
		t.Errorf("digits = %q, want 11224#*A7", got)
	}
}

func TestPhoneHoldsAndReturns(t *testing.T) {
	b := newBed(t, testConfig(sip.UDP), nil)
	call, err := b.phone(phone.Config{}).Dial(timeout(t, 20*time.Second), b.addr(sip.UDP), "1000")
	if err != nil {
		t.Fatal(err)
	}
	s := b.call()
	s.wants(sip.Acked{})
	for _, step := range []struct {
		offer, answer string
		hold          bool
	}{{"sendonly", "recvonly", true}, {"sendrecv", "sendrecv", false}, {"inactive", "inactive", true}, {"sendrecv", "sendrecv", false}} {
		got, err := call.Reinvite(timeout(t, 20*time.Second), step.offer)
		if err != nil {
			t.Fatal(err)
		}
		if got != step.answer {
			t.Errorf("offer %s answered %s, want %s", step.offer, got, step.answer)
		}
		if e := s.wants(sip.Hold{}); e.(sip.Hold).On != step.hold {
			t.Errorf("after offer %s: %+v, want on=%v", step.offer, e, step.hold)
		}
	}
	if got, err := call.Reinvite(timeout(t, 20*time.Second), "recvonly"); err != nil || got != "sendonly" {
		t.Errorf("offer recvonly answered %q, %v, want sendonly", got, err)
	}
	if d := s.Dialog(); d.Media.SDPVersion != 6 || d.RemoteCSeq != 6 {
		t.Errorf("dialog has SDP version %d and remote CSeq %d, want 6 and 6", d.Media.SDPVersion, d.RemoteCSeq)
	}
}

func TestLateOffer(t *testing.T) {
	b := newBed(t, testConfig(sip.UDP), nil)
	call, err := b.phone(phone.Config{}).DialWith(timeout(t, 20*time.Second), b.addr(sip.UDP), phone.Invite{Number: "1000", LateOffer: true})
	if err != nil {
		t.Fatal(err)
	}
	s := b.call()
	s.wants(sip.Acked{})
	echoes(t, call, 0, 350*time.Millisecond)
	call.Press("5")
	if d := s.wants(sip.Digit{}); d.(sip.Digit).Key != '5' {
		t.Errorf("digit = %c, want 5", d.(sip.Digit).Key)
	}
	if err := call.Hangup(timeout(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
}

func TestCallSurvivesRestart(t *testing.T) {
	for _, tr := range []sip.Transport{sip.UDP, sip.TCP} {
		t.Run(string(tr), func(t *testing.T) { callSurvivesRestart(t, tr) })
	}
}

func callSurvivesRestart(t *testing.T, tr sip.Transport) {
	config := testConfig(tr)
	first := &bed{TB: t, calls: make(chan *served, 1)}
	stack, err := sip.New(config, first, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	config.Listen[0].Addr = stack.Addr(tr)
	ctx, crash := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- stack.Run(ctx) }()
	p := first.phone(phone.Config{Transport: string(tr)})
	call, err := p.Dial(timeout(t, 20*time.Second), stack.Addr(tr).String(), "1000")
	if err != nil {
		t.Fatal(err)
	}
	s := first.call()
	s.wants(sip.Acked{})
	echoes(t, call, 0, 100*time.Millisecond)
	saved, err := json.Marshal(s.Dialog()) // as a database would keep it
	if err != nil {
		t.Fatal(err)
	}
	crash()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}

	var d sip.Dialog
	if err := json.Unmarshal(saved, &d); err != nil {
		t.Fatal(err)
	}
	b := newBed(t, config, nil)
	resumed, err := b.stack.Resume(d)
	if err != nil {
		t.Fatal(err)
	}
	again := &served{Call: resumed, bed: b, events: make(chan sip.Event, 64)}
	resumed.OnEvent(func(e sip.Event) { again.events <- e })
	m, err := resumed.OpenMedia()
	if err != nil {
		t.Fatal(err)
	}
	if m.LocalAddr() != d.Media.Local {
		t.Errorf("media reopened at %v, want %v", m.LocalAddr(), d.Media.Local)
	}
	again.echo(m)
	before := len(call.Heard())
	echoes(t, call, before, 400*time.Millisecond)
	if dir, err := call.Reinvite(timeout(t, 20*time.Second), "sendonly"); err != nil || dir != "recvonly" {
		t.Errorf("re-INVITE after restart = %q, %v", dir, err)
	}
	if _, err := b.stack.Resume(d); err == nil {
		t.Error("a dialog was resumed twice")
	}
	if err := resumed.Hangup(sip.CauseShutdown); err != nil {
		t.Fatal(err)
	}
	again.wants(sip.Ended{})
	<-call.Done()
	if got, want := call.Ended(), `SIP;cause=503;text="Service shutting down"`; got != want {
		t.Errorf("reason of BYE = %q, want %q", got, want)
	}
}

func TestStrangersAreNotAnswered(t *testing.T) {
	config := testConfig(sip.UDP)
	b := newBed(t, config, nil)
	p := b.phone(phone.Config{Local: netip.MustParseAddr("127.0.1.1")}) // not in 127.0.0.0/24
	ctx, giveUp := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() {
		_, err := p.DialWith(ctx, b.addr(sip.UDP), phone.Invite{Number: "1000", OnStatus: func(code int) { t.Errorf("a stranger got %d", code) }})
		answered <- err
	}()
	await(t, "the INVITE and a copy to be dropped", func() bool { return b.stack.Stats().Dropped["unknown source"] >= 2 })
	giveUp()
	if err := <-answered; err == nil || errors.As(err, new(*phone.StatusError)) {
		t.Errorf("a stranger was answered: %v", err)
	}
}

func TestOneAddressPerCall(t *testing.T) { // many at once: ports are distinct, all end
	b := newBed(t, testConfig(sip.UDP), nil)
	p := b.phone(phone.Config{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var ports []string
	for range 20 {
		wg.Go(func() {
			call, err := p.Dial(timeout(t, 20*time.Second), b.addr(sip.UDP), "1000")
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			ports = append(ports, call.Answer())
			mu.Unlock()
			if err := call.Hangup(timeout(t, 20*time.Second)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Sort(ports)
	if n := len(slices.Compact(ports)); n != 20 {
		t.Errorf("%d different answers, want 20", n)
	}
}

func TestOrphanIsHungUpAtOnce(t *testing.T) { // after a crash, before Run has begun to serve
	config := testConfig(sip.UDP)
	b := newBed(t, config, nil)
	call, err := b.phone(phone.Config{}).Dial(timeout(t, 20*time.Second), b.addr(sip.UDP), "1000")
	if err != nil {
		t.Fatal(err)
	}
	s := b.call()
	s.wants(sip.Acked{})
	d := s.Dialog()
	other, err := sip.New(config, b, slog.New(slog.DiscardHandler)) // the first process still has its ports
	if err != nil {
		t.Fatal(err)
	}
	resumed, err := other.Resume(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := resumed.Hangup(sip.CauseFailure); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- other.Run(ctx) }()
	<-call.Done()
	<-resumed.Done()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got, want := call.Ended(), `SIP;cause=500;text="Bridge failure"`; got != want {
		t.Errorf("reason of BYE = %q, want %q", got, want)
	}
}

// A process whose sockets are bound to all addresses, and two neighbours that reach it by different ones: each sends its ACK, its
// later requests and its sound to what it was told.
func TestTwoTrunksKnowUsByDifferentAddresses(t *testing.T) {
	phones := &bed{TB: t}
	config := testConfig(sip.UDP)
	config.Listen[0].Addr = netip.MustParseAddrPort("0.0.0.0:0")
	config.RTP.Addr, config.RTP.Advertise, config.Advertise = netip.IPv4Unspecified(), netip.MustParseAddr("127.0.0.99"), "127.0.0.98"
	config.Trunks = nil
	lines := map[string]*phone.Phone{}
	told := map[string]string{"pbx": "127.0.0.5", "carrier": "127.0.0.6"}
	for name, at := range map[string]string{"pbx": "127.0.0.20", "carrier": "127.0.0.21"} {
		host := netip.MustParseAddr(at)
		lines[name] = phones.phone(phone.Config{Local: host})
		config.Trunks = append(config.Trunks, sip.Trunk{
			Name: name, Networks: []netip.Prefix{netip.PrefixFrom(host, 32)}, Proxy: lines[name].Addr().String(),
			Advertise: told[name], AdvertiseRTP: netip.MustParseAddr(told[name]),
		})
	}
	b := newBed(t, config, nil)
	talk := func(what, name string, call *phone.Call, s *served) {
		t.Helper()
		first := call.Answer()
		if _, err := call.Reinvite(timeout(t, 20*time.Second), "sendrecv"); err != nil {
			t.Fatalf("%s: re-INVITE: %v", what, err)
		}
		for _, sdp := range []string{first, call.Answer()} {
			if want := "c=IN IP4 " + told[name] + "\r\n"; !strings.Contains(sdp, want) {
				t.Errorf("%s is described by %q, want %q", what, sdp, want)
			}
		}
		await(t, "sound of "+what, func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			_, received := call.Packets()
			return s.heard > 10 && received > 10
		})
		if err := call.Hangup(timeout(t, 20*time.Second)); err != nil {
			t.Errorf("%s: BYE: %v", what, err)
		}
		s.wants(sip.Ended{})
	}
	for name, p := range lines {
		bridge := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), b.stack.Addr(sip.UDP).Port()).String()
		call, err := p.Dial(timeout(t, 20*time.Second), bridge, "1000")
		if err != nil {
			t.Fatal(err)
		}
		s := b.call()
		s.wants(sip.Acked{})
		if got := s.Info().Trunk; got != name {
			t.Errorf("the call came over %q, want %q", got, name)
		}
		talk("the call from "+name, name, call, s)

		s = b.dial(sip.DialRequest{Trunk: name, Number: "200"})
		if call, err = p.AwaitCall(timeout(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := call.PickUp(timeout(t, 20*time.Second)); err != nil {
			t.Fatal(err)
		}
		s.wants(sip.Answered{})
		s.echo(s.Media())
		talk("the call to "+name, name, call, s)
	}
}
