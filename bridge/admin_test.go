package bridge

import (
	"net/http/httptest"
	"strings"
	"testing"

	"trunkline/internal/testbed/member"
)

func TestAdminSeesLegsTracesAndMetrics(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.person("alice", member.JSSDK, true)
	b.dial(b.phone("+493012345678"), goodNumber)
	page := func(path string) string {
		w := httptest.NewRecorder()
		b.process.bridge.admin().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 200 {
			t.Errorf("GET %s = %d", path, w.Code)
		}
		return w.Body.String()
	}
	metrics := page("/metrics")
	for _, want := range []string{"trunkline_legs 1", "trunkline_sip_answered_total 1", "trunkline_matrix_ghosts_polling 1", "trunkline_setup_seconds_count 1"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %q", want)
		}
	}
	legs := b.process.bridge.liveLegs()
	if len(legs) != 1 {
		t.Fatalf("%d legs", len(legs))
	}
	trace := page("/debug/legs/" + string(legs[0].id) + "/trace")
	for _, want := range []string{" invited\n    do ring\n    do join room\n", " room joined\n    do accept phone\n", "    do send answer\n"} {
		if !strings.Contains(trace, want) {
			t.Errorf("the trace lacks %q:\n%s", want, trace)
		}
	}
	if list := page("/debug/legs"); !strings.Contains(list, string(legs[0].id)) || strings.Contains(list, "12345678") {
		t.Errorf("/debug/legs = %s", list)
	}
}
