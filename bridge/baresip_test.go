package bridge

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"trunkline/bridge/config"
	"trunkline/internal/testbed/listen"
	"trunkline/internal/testbed/member"
)

const baresipConfig = `sip_listen 127.0.0.1:%d
net_interface 127.0.0.1
audio_source aufile,%[2]s/tone.wav
audio_player aubridge,null
audio_alert aubridge,null
ausrc_srate 16000
ausrc_channels 1
auplay_channels 1
snd_path %[2]s
module_path /usr/lib/baresip/modules
module g711.so
module g722.so
module opus.so
module aufile.so
module aubridge.so
module sndfile.so
module uuid.so
module_tmp account.so
module_app menu.so
module_app cons.so
cons_listen 127.0.0.1:%[3]d
`

// softphone is a configuration of baresip that says a tone.
type softphone struct {
	dir           string
	port, console int // of SIP; where it takes commands
}

// softphone writes one. account is what stands behind its address.
func (b *bed) softphone(user, account string, hz float64) softphone {
	b.t.Helper()
	ports := freePorts(b.t, 3) // the one above that of SIP is its TLS port
	s := softphone{b.t.TempDir(), ports[0], ports[2]}
	var tone bytes.Buffer
	if err := listen.WriteWAV(&tone, listen.Sound{Rate: 16000, PCM: sine(hz, 16000, time.Minute)}); err != nil {
		b.t.Fatal(err)
	}
	for name, text := range map[string]string{
		"config": fmt.Sprintf(baresipConfig, s.port, s.dir, s.console), "contacts": "", "tone.wav": tone.String(),
		"accounts": fmt.Sprintf("<sip:%s@127.0.0.1:%d>;regint=0;%s\n", user, s.port, account),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			b.t.Fatal(err)
		}
	}
	return s
}

// run begins it; it ends with the test at the latest.
func (s softphone) run(t *testing.T, out *bytes.Buffer, args ...string) *exec.Cmd {
	t.Helper()
	baresip, err := exec.LookPath("baresip")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(baresip, append([]string{"-f", s.dir, "-t", "30"}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has ended, as a rule
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("baresip says %s", out)
		}
	})
	return cmd
}

// Somebody who uses a telephone of others hands their call over to another one, behind the same trunk.
func TestBaresipHandsItsCallOver(t *testing.T) {
	if os.Getenv("TRUNKLINE_LAB") == "" {
		t.Skip("only make e2e runs this")
	}
	b := makeBed(t)
	target := b.softphone("1001", "answermode=auto;audio_codecs=PCMA", 700)
	trunk := &b.cfg.SIP.Trunks[0]
	trunk.Proxy, trunk.Domain = fmt.Sprintf("127.0.0.1:%d", target.port), "pbx.test"
	trunk.Extensions, trunk.Transfers = []string{"1xxx"}, "trunk"
	b.cfg.Permissions = everybodyCalls(b)
	b.start()
	t.Cleanup(b.stop)
	alice := b.person("alice", member.JSSDK, true)
	var near, far bytes.Buffer
	target.run(t, &far)
	phone := b.softphone("bob", "audio_codecs=PCMA", 1000)
	phone.run(t, &near, "-e", "/dial sip:"+goodNumber+"@"+b.sip)
	hears := func(hz float64) func() bool {
		return func() bool {
			ghosts := b.ghosts()
			return len(ghosts) == 1 && loud(alice.Heard(ghosts[0]).PCM, hz, 48000)
		}
	}
	b.await("alice to hear the phone", hears(1000))
	console, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", phone.console))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	if _, err := console.Write([]byte("/transfer sip:1001@pbx.test\n")); err != nil {
		t.Fatal(err)
	}
	b.await("alice to hear the other one, alone", hears(700))
	b.told("1001 has answered.")
}

// A telephone of others with each wide-band codec: it and a member hear tones of each other above 4 kHz. Debian's baresip
// is in the lab.
func TestBaresipAndMemberHearEachOtherInTheWideBand(t *testing.T) {
	if os.Getenv("TRUNKLINE_LAB") == "" {
		t.Skip("only make e2e runs this")
	}
	for _, codec := range []string{"G722", "opus", "G722;ptime=40"} {
		t.Run(codec, func(t *testing.T) {
			b := newBed(t)
			b.stop()
			trunk := b.cfg.SIP.Trunks[0]
			trunk.Codecs = []string{"opus", "G722", "PCMA"}
			b.cfg.SIP.Trunks = []config.Trunk{trunk}
			b.start()
			alice := b.person("alice", member.JSSDK, true)
			alice.Says(sine(6000, 48000, time.Second))
			var out bytes.Buffer
			phone := b.softphone("bob", "audio_codecs="+codec, 5000)
			cmd := phone.run(t, &out, "-e", "/dial sip:"+goodNumber+"@"+b.sip)
			b.await("the phone's ghost", func() bool { return len(b.ghosts()) == 1 })
			ghost := b.ghosts()[0]
			b.await("alice to hear the phone", func() bool { return loud(alice.Heard(ghost).PCM, 5000, 48000) })
			time.Sleep(2 * time.Second) // that the phone has something to show
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Error(err)
			}
			_ = cmd.Wait() // as it likes
			dumps, _ := filepath.Glob(filepath.Join(phone.dir, "dump-*-dec.wav"))
			if len(dumps) != 1 {
				t.Fatalf("baresip left %v; it says %s", dumps, &out)
			}
			file, err := os.Open(dumps[0])
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			heard, err := listen.ReadWAV(file)
			if err != nil {
				t.Fatal(err)
			}
			last := heard.PCM[max(0, len(heard.PCM)-heard.Rate):]
			if got := listen.Tone(last, heard.Rate, 6000); heard.Rate < 16000 || got < -18 {
				t.Errorf("baresip hears alice's tone of 6 kHz at %.1f dB in sound of %d Hz, want -12; it says %s", got, heard.Rate, &out)
			}
			if got := listen.Tone(last, heard.Rate, 5000); got > -50 {
				t.Errorf("baresip hears itself at %.1f dB", got)
			}
			b.await("rows and ghosts to go", func() bool { return b.rows() == 0 && len(b.ghosts()) == 0 })
		})
	}
}
