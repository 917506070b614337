package sip_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtp"

	"trunkline/internal/testbed/phone"
	"trunkline/internal/testbed/ports"
	"trunkline/sip"
)

// lab says that this is `make e2e`: every program is there, and nothing else judges sound at the same time.
var lab = os.Getenv("TRUNKLINE_LAB") != ""

// inLab is for tests that need a machine of their own.
func inLab(t *testing.T) {
	t.Helper()
	if !lab {
		t.Skip("only make e2e runs this")
	}
}

// tool is one of Debian's baresip, sip-tester, sipsak, kamailio and sipvicious, which only the lab installs.
func tool(t *testing.T, name string) string {
	t.Helper()
	inLab(t)
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name) // servers: not on everybody's path
	}
	if err != nil && name == "svmap" && os.Getenv("CI") == "" { // not every Debian has that one; the one that CI runs on does
		t.Skipf("%s is not installed", name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// talk sends a tone to the phone and keeps what it says, both µ-law.
func (s *served) talk(m *sip.Media, hz float64) (heard func() []int16, stop func()) {
	var mu sync.Mutex
	var pcm []int16
	m.OnPacket(func(p *rtp.Packet) {
		mu.Lock()
		for _, b := range p.Payload {
			pcm = append(pcm, muLaw(b))
		}
		mu.Unlock()
	})
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		wave := tone(hz, time.Second)
		next := time.Now()
		p := &rtp.Packet{Header: rtp.Header{Version: 2, SSRC: sip.NewSSRC()}, Payload: make([]byte, 160)}
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-time.After(time.Until(next)):
			}
			next = next.Add(20 * time.Millisecond)
			for j := range p.Payload {
				p.Payload[j] = toMuLaw(wave[(i*160+j)%len(wave)])
			}
			p.SequenceNumber++
			p.Timestamp += 160
			_ = m.WriteRTP(p)
		}
	})
	return func() []int16 { mu.Lock(); defer mu.Unlock(); return append([]int16(nil), pcm...) }, func() { close(done); wg.Wait() }
}

func muLaw(b byte) int16 {
	b = ^b
	v := (int(b&0x0f)<<3+0x84)<<(b>>4&7) - 0x84
	if b&0x80 != 0 {
		v = -v
	}
	return int16(v)
}

func toMuLaw(s int16) byte { // nearest by search: slow and surely right
	best, dist := byte(0), 1<<20
	for b := range 256 {
		if d := int(muLaw(byte(b))) - int(s); max(d, -d) < dist {
			best, dist = byte(b), max(d, -d)
		}
	}
	return best
}

func writeWAV(t *testing.T, path string, pcm []int16) {
	t.Helper()
	b := fmt.Appendf(nil, "RIFF%sWAVEfmt ", binary.LittleEndian.AppendUint32(nil, uint32(36+2*len(pcm))))
	for _, v := range []any{uint32(16), uint16(1), uint16(1), uint32(8000), uint32(16000), uint16(2), uint16(16)} {
		b, _ = binary.Append(b, binary.LittleEndian, v)
	}
	b = append(b, "data"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(2*len(pcm)))
	b, _ = binary.Append(b, binary.LittleEndian, pcm)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func readWAV(t *testing.T, path string) []int16 {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || len(b) < 44 {
		t.Fatalf("%s: %d bytes, %v", path, len(b), err)
	}
	pcm := make([]int16, (len(b)-44)/2)
	_, _ = binary.Decode(b[44:], binary.LittleEndian, pcm)
	return pcm
}

const baresipConfig = `sip_listen 127.0.0.1:%d
net_interface 127.0.0.1
audio_source aufile,%[2]s/tone.wav
audio_player aubridge,null
audio_alert aubridge,null
ausrc_srate 8000
auplay_srate 8000
ausrc_channels 1
auplay_channels 1
rtp_ports 37000-37100
snd_path %[2]s
module_path /usr/lib/baresip/modules
module g711.so
module aufile.so
module aubridge.so
module sndfile.so
module uuid.so
module srtp.so
module_tmp account.so
module_app menu.so
`

// baresipFolder is the configuration of one baresip: uri and account parameters of its account, and a 440 Hz tone.
func baresipFolder(t *testing.T, uri, account string) string {
	t.Helper()
	dir, port := t.TempDir(), freePort(t)
	config := fmt.Sprintf(baresipConfig, port, dir)
	if strings.Contains(uri, "tls") {
		files := authorityOnce().files(t, dir, "baresip")
		config += "sip_certificate " + files.both + "\nsip_cafile " + files.ca + "\n"
	}
	writeWAV(t, filepath.Join(dir, "tone.wav"), tone(440, 30*time.Second))
	files := map[string]string{
		"config":   config,
		"accounts": fmt.Sprintf("<sip:bob@127.0.0.1:%d%s>;regint=0;%s\n", port, uri, account),
		"contacts": "",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func freePort(t *testing.T) int {
	t.Helper()
	free, err := ports.Free(1)
	if err != nil {
		t.Fatal(err)
	}
	return free[0]
}

func TestBaresipTalks(t *testing.T) {
	baresip := tool(t, "baresip")
	for _, tr := range []sip.Transport{sip.UDP, sip.TCP, sip.TLS} {
		t.Run(string(tr), func(t *testing.T) {
			var heard func() []int16
			var stop func()
			b := newBed(t, testConfig(tr), func(s *served) {
				_ = s.Ring()
				_, m, err := s.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				s.mu.Lock()
				heard, stop = s.talk(m, 700)
				s.mu.Unlock()
				_ = s.SendAnswer()
			})
			account := "audio_codecs=PCMU"
			if tr == sip.TLS {
				account += ";mediaenc=srtp-mand"
			}
			dir := baresipFolder(t, ";transport="+string(tr), account)
			cmd := exec.Command(baresip, "-f", dir, "-v", "-t", "4", "-e", fmt.Sprintf("/dial sip:1000@%s;transport=%s", b.addr(tr), tr))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Logf("baresip: %v", err)
			}
			s := b.call()
			s.wants(sip.Acked{})
			if crypto := s.Dialog().Media.Crypto; (crypto.Suite != "") != (tr == sip.TLS) {
				t.Errorf("encrypted with %q", crypto.Suite)
			}
			s.wants(sip.Bye{})
			stop()
			if n := heard(); len(n) < 16000 || power(n[4000:12000], 440) < 0.7 {
				t.Errorf("heard %d samples of baresip, power of its tone %.2f\n%s", len(n), power(n[min(len(n), 4000):min(len(n), 12000)], 440), out)
			}
			dumps, _ := filepath.Glob(filepath.Join(dir, "dump-*-dec.wav"))
			if len(dumps) != 1 {
				t.Fatalf("baresip left %v\n%s", dumps, out)
			}
			if pcm := readWAV(t, dumps[0]); len(pcm) < 16000 || power(pcm[4000:12000], 700) < 0.7 {
				t.Errorf("baresip heard %d samples, power of our tone %.2f", len(pcm), power(pcm[min(len(pcm), 4000):min(len(pcm), 12000)], 700))
			}
		})
	}
}

// startBaresip runs baresip until the test ends and returns what it said by then.
func startBaresip(t *testing.T, dir string) (stop func() string) {
	t.Helper()
	cmd := exec.Command(tool(t, "baresip"), "-f", dir, "-v")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe() // without one it ends at once
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceValue(func() string {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = in.Close()
		kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		_ = cmd.Wait()
		return out.String()
	})
	t.Cleanup(func() { stop() })
	return stop
}

func TestBaresipIsCalled(t *testing.T) {
	tool(t, "baresip")
	for _, tr := range []sip.Transport{sip.UDP, sip.TCP, sip.TLS} {
		t.Run(string(tr), func(t *testing.T) {
			account := "answermode=auto;audio_codecs=PCMA"
			if tr == sip.TLS {
				account += ";mediaenc=srtp-mand"
			}
			dir := baresipFolder(t, ";transport="+string(tr), account)
			stop := startBaresip(t, dir)
			config := testConfig(tr)
			config.Trunks[0].Proxy, config.Trunks[0].Transport = listeningAt(t, dir, tr), tr
			b := newBed(t, config, nil)
			s := b.dial(sip.DialRequest{Trunk: "lab", Number: "bob", From: sip.Caller{Number: "1000", DisplayName: "Room"}})
			s.wants(sip.Answered{})
			m := s.Media()
			if crypto := s.Dialog().Media.Crypto; (crypto.Suite != "") != (tr == sip.TLS) {
				t.Errorf("encrypted with %q", crypto.Suite)
			}
			if f := m.Format(); f.Codec != "PCMA" || f.DTMF == 0 {
				t.Errorf("format = %+v", f)
			}
			s.echo(m)
			s.hears(t, 75) // a second and a half
			m.SendDigit('7')
			time.Sleep(500 * time.Millisecond)
			_ = s.Hangup(sip.CauseNormal)
			s.wants(sip.Ended{})
			out := stop()
			if !strings.Contains(out, "received event: '7' (end=1)") {
				t.Errorf("baresip heard no key:\n%s", tail(out, 3000))
			}
			dumps, _ := filepath.Glob(filepath.Join(dir, "dump-*-dec.wav"))
			if len(dumps) != 1 {
				t.Fatalf("baresip left %v\n%s", dumps, tail(out, 3000))
			}
			if pcm := readWAV(t, dumps[0]); len(pcm) < 8000 || power(pcm[3000:7000], 440) < 0.7 { // its own tone, echoed
				t.Errorf("baresip heard %d samples, power of its tone %.2f", len(pcm), power(pcm[min(len(pcm), 3000):min(len(pcm), 7000)], 440))
			}
		})
	}
}

func listeningAt(t *testing.T, dir string, tr sip.Transport) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "config"))
	if err != nil {
		t.Fatal(err)
	}
	addr, _, _ := strings.Cut(strings.TrimPrefix(string(b), "sip_listen "), "\n")
	if ap := netip.MustParseAddrPort(addr); tr == sip.TLS {
		addr = netip.AddrPortFrom(ap.Addr(), ap.Port()+1).String()
	}
	await(t, "baresip to listen on "+addr, func() bool { // UDP or TCP: it binds both
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
	return addr
}

func TestBaresipHearsKeys(t *testing.T) {
	baresip := tool(t, "baresip")
	b := newBed(t, testConfig(sip.UDP), func(s *served) {
		_, m, err := s.Progress() // it is early media, too
		if err != nil {
			t.Error(err)
			return
		}
		_, stop := s.talk(m, 700)
		time.Sleep(300 * time.Millisecond)
		if _, _, err := s.Answer(t.Context()); err != nil {
			t.Error(err)
		}
		for _, key := range "1#55D0" {
			m.SendDigit(byte(key))
		}
		<-s.Done()
		stop()
	})
	dir := baresipFolder(t, "", "audio_codecs=PCMU")
	out, _ := exec.Command(baresip, "-f", dir, "-v", "-t", "5", "-e", "/dial sip:1000@"+b.addr(sip.UDP)).CombinedOutput()
	b.call().wants(sip.Ended{})
	var got string
	for line := range strings.Lines(string(out)) {
		if _, event, ok := strings.Cut(line, "received event: '"); ok && strings.Contains(event, "(end=1)") {
			got += event[:1]
		}
	}
	if got != "1#55D0" || !strings.Contains(string(out), "SIP Progress: 183 Session Progress (application/sdp)") {
		t.Errorf("baresip heard keys %q, want 1#55D0, and a 183 with media\n%s", got, tail(string(out), 3000))
	}
}

func TestSippCallsMany(t *testing.T) {
	sipp := tool(t, "sipp")
	for _, tr := range []struct {
		transport sip.Transport
		flag      string
	}{{sip.UDP, "u1"}, {sip.TCP, "t1"}} {
		t.Run(string(tr.transport), func(t *testing.T) {
			b := newBed(t, testConfig(tr.transport), func(s *served) {
				if _, m, err := s.Accept(); err == nil {
					s.echo(m)
					_ = s.SendAnswer()
				}
			})
			cmd := exec.Command(sipp, "-sn", "uac", b.addr(tr.transport), "-i", "127.0.0.1", "-t", tr.flag,
				"-r", "100", "-m", "300", "-d", "500", "-nostdin", "-timeout", "60s", "-timeout_error")
			cmd.Dir = t.TempDir()
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("sipp: %v\n%s", err, tail(string(out), 2000))
			}
			await(t, "the last call to end", func() bool { return b.stack.Stats().Calls == 0 })
			if st := b.stack.Stats(); st.Invites != 300 || st.Answered != 300 || st.Calls != 0 || st.NoAck != 0 || st.RTPPorts != 0 {
				t.Errorf("stats = %+v", st)
			}
		})
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func TestSipsakIsAnswered(t *testing.T) {
	sipsak := tool(t, "sipsak")
	b := newBed(t, testConfig(sip.UDP), nil)
	// Without -H it looks its own name up, which a machine need not have in its hosts.
	out, err := exec.Command(sipsak, "-vv", "-H", "127.0.0.1", "-s", "sip:test@"+b.addr(sip.UDP)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "200 OK") {
		t.Errorf("sipsak: %v\n%s", err, out)
	}
}

func TestPhonesMayCallOverIPv6(t *testing.T) {
	if c, err := net.ListenPacket("udp6", "[::1]:0"); err != nil {
		t.Skip("no IPv6 here")
	} else {
		_ = c.Close()
	}
	config := testConfig(sip.UDP)
	config.Listen[0].Addr = netip.MustParseAddrPort("[::1]:0")
	config.RTP.Addr = netip.MustParseAddr("::1")
	config.Trunks[0].Networks = []netip.Prefix{netip.MustParsePrefix("::1/128")}
	b := newBed(t, config, nil)
	call, err := b.phone(phone.Config{Local: netip.MustParseAddr("::1")}).Dial(timeout(t, 20*time.Second), b.addr(sip.UDP), "1000")
	if err != nil {
		t.Fatal(err)
	}
	s := b.call()
	s.wants(sip.Acked{})
	echoes(t, call, 0, 350*time.Millisecond)
	_ = s.Hangup(sip.CauseNormal)
	<-call.Done()
}
