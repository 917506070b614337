package config

import (
	"errors"
	"strings"
	"testing"
	"time"

	"trunkline/bridge/command"
	"trunkline/bridge/quota"
)

func TestProblemsOfDiallingAreReportedWithTheirLines(t *testing.T) {
	text := smallest + `permissions:
  "#desk:example.org": call
commands: {prefix: "! sip"}
dialling:
  country: Germany
  deny_kinds: [premium]
  ring_timeout: 1h
  alone_timeout: 0s
  time_zone: Berlin
  expensive: ["0900"]
  limits:
    user: {calls: -1}
    trunks: {elsewhere: {calls: 1}}
    users: {anna: {calls: 1}}
  alarm: {at: [80, 101], room: watchers}
sip:
  trunks:
    - name: pbx
      networks: [127.0.0.0/8]
      dials: ["49"]
      extensions: [10xy]
      number: "a b"
      calls_per_second: -1
      numbers: {country: XX}
`
	_, err := Parse("config.yaml", []byte(text))
	var problems *Problems
	if !errors.As(err, &problems) {
		t.Fatalf("Parse = %v, want *Problems", err)
	}
	for _, want := range []string{
		`config.yaml:3: permissions: "#desk:example.org" is an alias`,
		"config.yaml:4: commands.prefix: must be one word",
		`config.yaml:6: dialling.country: "Germany" is not a country like DE`,
		"config.yaml:8: dialling.ring_timeout: must be from 1s to 10m0s",
		"config.yaml:9: dialling.alone_timeout: must be at least 1s",
		`config.yaml:10: dialling.time_zone: "Berlin" is not a time zone`,
		`config.yaml:11: dialling.expensive[0]: "0900" is not the beginning of a number`,
		"config.yaml:13: dialling.limits.user: must not be negative",
		`config.yaml:14: dialling.limits.trunks.elsewhere: "elsewhere" is not one of the trunks`,
		`config.yaml:15: dialling.limits.users.anna: "anna" is not one of the users`,
		"config.yaml:16: dialling.alarm.at[1]: must be from 1 to 100",
		`config.yaml:16: dialling.alarm.room: "watchers" is no room`,
		`config.yaml:21: sip.trunks[0].dials[0]: "49" is not the beginning of a number`,
		`config.yaml:22: sip.trunks[0].extensions[0]: "10xy" is not a pattern`,
		`config.yaml:19: sip.trunks[0].proxy: to call over this trunk takes one`,
		`config.yaml:23: sip.trunks[0].number: "a b" is not a number`,
		"config.yaml:24: sip.trunks[0].calls_per_second: must not be negative",
		`config.yaml:25: sip.trunks[0].numbers: country: "XX" is not a country like DE`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no problem says %q; got:\n%v", want, err)
		}
	}
	if len(problems.List) != 18 {
		t.Errorf("%d problems, want 18:\n%v", len(problems.List), err)
	}
}

func TestDisplayNamesAreCountedInCharacters(t *testing.T) {
	for n, want := range map[int]bool{longestName: true, longestName + 1: false} {
		_, err := Parse("config.yaml", []byte(smallest+`
sip: {trunks: [{name: pbx, networks: [127.0.0.0/8], display_name: `+strings.Repeat("Ж", n)+`}]}
`))
		if got := err == nil; got != want {
			t.Errorf("a name of %d characters is taken: %t, %v", n, got, err)
		}
	}
}

func TestPermissionsAndLimitsAreRead(t *testing.T) {
	c, err := Parse("config.yaml", []byte(smallest+`
permissions: {"*": view, "@anna:example.org": call}
dialling:
  time_zone: Europe/Berlin
  limits: {user: {talk: 2h}, users: {"@boss:example.org": {at_once: 9}, phones of carrier: {at_once: 5}}}
`))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Permissions.Level("@anna:example.org", "!r"); got != command.LevelCall {
		t.Errorf("anna may %v, want call", got)
	}
	rules := c.Dialling.Quotas()
	// What a user's limits leave out is the example's; a user's own limits stand alone.
	if want := (quota.Limits{Calls: 50, Talk: 2 * time.Hour, Running: 2}); rules.User != want {
		t.Errorf("limits of a user %+v, want %+v", rules.User, want)
	}
	if want := (quota.Limits{Running: 5}); rules.Users["phones of carrier"] != want {
		t.Errorf("limits of phones %+v, want %+v", rules.Users["phones of carrier"], want)
	}
	if want := (quota.Limits{Running: 9}); rules.Users["@boss:example.org"] != want {
		t.Errorf("limits of the boss %+v, want %+v", rules.Users["@boss:example.org"], want)
	}
	if got := rules.Zone.String(); got != "Europe/Berlin" {
		t.Errorf("days begin in %s", got)
	}
}
