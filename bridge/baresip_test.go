package bridge

import (
	"bytes"
	"fmt"
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
module g722.so
module opus.so
module aufile.so
module aubridge.so
module sndfile.so
module uuid.so
module_tmp account.so
module_app menu.so
`

// A telephone of others with each wide-band codec: it and a member hear tones of each other above 4 kHz. Debian's baresip
// is in the lab.
func TestBaresipAndMemberHearEachOtherInTheWideBand(t *testing.T) {
	if os.Getenv("TRUNKLINE_LAB") == "" {
		t.Skip("only make e2e runs this")
	}
	baresip, err := exec.LookPath("baresip")
	if err != nil {
		t.Fatal(err)
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
			dir, port := t.TempDir(), freePorts(t, 1)[0]
			var tone bytes.Buffer
			if err := listen.WriteWAV(&tone, listen.Sound{Rate: 16000, PCM: sine(5000, 16000, time.Minute)}); err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{
				"config": fmt.Sprintf(baresipConfig, port, dir), "contacts": "", "tone.wav": tone.String(),
				"accounts": fmt.Sprintf("<sip:bob@127.0.0.1:%d>;regint=0;audio_codecs=%s\n", port, codec),
			} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			cmd := exec.Command(baresip, "-f", dir, "-t", "30", "-e", "/dial sip:"+goodNumber+"@"+b.sip)
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			b.await("the phone's ghost", func() bool { return len(b.ghosts()) == 1 })
			ghost := b.ghosts()[0]
			b.await("alice to hear the phone", func() bool { return loud(alice.Heard(ghost).PCM, 5000, 48000) })
			time.Sleep(2 * time.Second) // that the phone has something to show
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Error(err)
			}
			_ = cmd.Wait() // as it likes
			dumps, _ := filepath.Glob(filepath.Join(dir, "dump-*-dec.wav"))
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
