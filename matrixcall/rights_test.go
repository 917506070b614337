package matrixcall

import (
	"errors"
	"math"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

func TestPowerLevels(t *testing.T) {
	const (
		old      = `{"room_version":"11"}`
		ancient  = `{}`
		twelve   = `{"room_version":"12"}`
		two      = `{"room_version":"12","additional_creators":["@_sip_1:x"]}`
		oldTwo   = `{"room_version":"10","additional_creators":["@_sip_1:x"]}`
		unstable = `{"room_version":"org.matrix.hydra.11","additional_creators":["@_sip_1:x"]}`
	)
	for _, test := range []struct {
		name, create, levels string
		have, need           int
	}{
		{"no power levels at all", old, "", 0, 0},
		{"defaults", old, `{}`, 0, 50},
		{"state_default", old, `{"state_default":20}`, 0, 20},
		{"state_default as text", old, `{"state_default":" 20"}`, 0, 20},
		{"state_default of zero", old, `{"state_default":0}`, 0, 0},
		{"event level", old, `{"events":{"org.matrix.msc3401.call.member":10}}`, 0, 10},
		{"event level as text", old, `{"events":{"org.matrix.msc3401.call.member":"10"}}`, 0, 10},
		{"users_default", old, `{"users_default":50}`, 50, 50},
		{"user", old, `{"users":{"@_sip_1:x":100},"users_default":5}`, 100, 50},
		{"negative user", old, `{"users":{"@_sip_1:x":-1},"users_default":5}`, -1, 50},
		{"creator in version 12", two, `{}`, math.MaxInt, 50},
		{"creator in version 12 who is also listed", two, `{"users":{"@_sip_1:x":0}}`, math.MaxInt, 50},
		{"additional creators mean nothing before 12", oldTwo, `{}`, 0, 50},
		{"unstable name of version 12", unstable, `{}`, math.MaxInt, 50},
		{"other creator in version 12", twelve, `{}`, 0, 50},
		{"room of version 1", ancient, `{}`, 0, 50},
		{"nonsense levels", old, `{"users":{"@_sip_1:x":null},"state_default":"high"}`, 0, 0},
		{"huge level", old, `{"state_default":1e300}`, 0, math.MaxInt32},
		{"content is no object", old, `[]`, 0, 0},
	} {
		rights := roomRights{create: &roomEvent{Sender: "@alice:x", Content: []byte(test.create)}}
		if test.levels != "" {
			rights.powerLevels = &roomEvent{Content: []byte(test.levels)}
		}
		levels := rights.levels()
		if got := levels.of("@_sip_1:x"); got != test.have {
			t.Errorf("%s: level of the ghost %d, want %d", test.name, got, test.have)
		}
		if got := levels.toSend(memberType); got != test.need {
			t.Errorf("%s: level to send %d, want %d", test.name, got, test.need)
		}
		if err := rights.check("!r", "@_sip_1:x", []string{memberType}); (err == nil) != (test.have >= test.need) {
			t.Errorf("%s: check = %v with level %d of %d", test.name, err, test.have, test.need)
		}
	}
	creator := roomRights{create: &roomEvent{Sender: "@_sip_1:x", Content: []byte(old)}}
	if got := creator.levels().of("@_sip_1:x"); got != 100 {
		t.Errorf("creator without power levels: %d, want 100", got)
	}
}

func TestRightsErrorIsOneSentence(t *testing.T) {
	err := error(&RightsError{Room: "!r", Ghost: id.UserID("@_sip_1:x"), Types: []string{callType, memberType}, Have: 0, Need: 50})
	text := err.Error()
	if strings.Count(text, ".\n") > 0 || !strings.HasSuffix(text, ".") || !strings.Contains(text, "administrator") {
		t.Errorf("%q: want one sentence with a remedy", text)
	}
	var rights *RightsError
	if !errors.As(tidy(err), &rights) || tidy(err).Error() != text {
		t.Errorf("tidy changed the sentence to %q", tidy(err))
	}
}
