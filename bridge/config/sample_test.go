package config

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
	"maunium.net/go/mautrix/appservice"
)

const top = "../.." // from this package

func TestSampleRegistrationIsWhatTheBridgeWrites(t *testing.T) {
	c, err := Parse("config.yaml", []byte(smallest))
	if err != nil {
		t.Fatal(err)
	}
	sample, err := appservice.LoadRegistration(filepath.Join(top, "registration.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{sample.AppToken, sample.ServerToken} {
		if !strings.HasPrefix(token, "PLACEHOLDER-") {
			t.Errorf("token %q does not look like a placeholder", token)
		}
	}
	if sample.AppToken == sample.ServerToken {
		t.Error("both tokens are the same")
	}
	written := NewRegistration(c)
	written.AppToken, written.ServerToken, written.SenderLocalpart = sample.AppToken, sample.ServerToken, sample.SenderLocalpart
	asRead := func(r *appservice.Registration) (m map[string]any) { // compiled expressions don't compare
		text, err := yaml.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	if diff := cmp.Diff(asRead(written), asRead(sample)); diff != "" {
		t.Errorf("the sample differs from what bridge -g writes (-written +sample):\n%s", diff)
	}
	if got := Differences(c, sample); len(got) != 0 {
		t.Errorf("Differences = %q, want none", got)
	}
}

// composeDefaults are the values that docker-compose.yml takes where .env is silent.
func composeDefaults(t *testing.T) (compose string, defaults map[string]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(top, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	defaults = map[string]string{}
	for _, m := range regexp.MustCompile(`\$\{(\w+):-([^}]*)\}`).FindAllStringSubmatch(string(text), -1) {
		if before, seen := defaults[m[1]]; seen && before != m[2] {
			t.Errorf("docker-compose.yml has two defaults for %s: %q and %q", m[1], before, m[2])
		}
		defaults[m[1]] = m[2]
	}
	return string(text), defaults
}

func TestTrialDefaultsAreTheDocumentedOnes(t *testing.T) {
	_, defaults := composeDefaults(t)
	delete(defaults, "VERSION") // for builders, not for the trial
	text, err := os.ReadFile(filepath.Join(top, "deploy", "env.example"))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^(\w+)=(.*)$`).FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = m[2]
	}
	if diff := cmp.Diff(defaults, documented); diff != "" {
		t.Errorf("deploy/env.example differs from docker-compose.yml (-compose +documented):\n%s", diff)
	}
}

func TestTrialConfigFitsDockerCompose(t *testing.T) {
	compose, defaults := composeDefaults(t)
	text, err := os.ReadFile(filepath.Join(top, "deploy", "bridge.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	rendered := string(text)
	for name, value := range defaults {
		rendered = strings.ReplaceAll(rendered, "@"+name+"@", value)
	}
	c, err := Parse("deploy/bridge.yaml", []byte(rendered))
	if err != nil {
		t.Fatal(err)
	}
	for what, port := range map[string]string{
		"rtp":    fmt.Sprintf(":%d-%d:%[1]d-%[2]d/udp\n", c.RTP.PortMin, c.RTP.PortMax),
		"webrtc": fmt.Sprintf(":%d:%[1]d/udp\n", c.WebRTC.Port),
	} {
		if !strings.Contains(compose, port) {
			t.Errorf("docker-compose.yml does not publish %s as %q", what, port)
		}
	}
	if !strings.HasSuffix(c.SIP.Listen[0].Address, ":"+defaults["SIP_PORT"]) {
		t.Errorf("SIP listens on %s, but the published port is %s", c.SIP.Listen[0].Address, defaults["SIP_PORT"])
	}
	if c.Homeserver.Domain != defaults["SERVER_NAME"] || c.RTP.Advertise != defaults["PUBLIC_IP"] {
		t.Errorf("domain %s, advertised %s: not what docker-compose.yml says", c.Homeserver.Domain, c.RTP.Advertise)
	}
}
