package bridge

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"trunkline/internal/testbed/member"
	"trunkline/internal/testbed/phone"
)

func TestDrainLetsCallsEndAndTakesNoNewOnes(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	w := b.talkers(member.JSSDK)
	admin := httptest.NewServer(b.process.bridge.admin())
	defer admin.Close()
	res, err := http.Post(admin.URL+"/drain", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		t.Errorf("POST /drain = %s", res.Status)
	}
	_, err = b.phone("2").Dial(b.ctx(), b.sip, goodNumber)
	var refused *phone.StatusError
	if !errors.As(err, &refused) || refused.Code != 503 {
		t.Errorf("a new call while draining = %v, want 503", err)
	}
	if err := b.process.bridge.Ready(b.ctx()); err == nil {
		t.Error("ready while draining")
	}
	view := httptest.NewRecorder()
	b.process.bridge.showDrain(view, nil)
	if !strings.Contains(view.Body.String(), `"draining":true`) || !strings.Contains(view.Body.String(), `"legs":1`) {
		t.Errorf("progress = %s", view.Body.String())
	}
	time.Sleep(300 * time.Millisecond)
	if !w.hearing() {
		t.Error("the call that is up is disturbed by the drain")
	}
	if err := w.call.Hangup(b.ctx()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-b.process.over:
		if err != nil {
			t.Errorf("Run = %v", err)
		}
		b.process.over <- nil
	case <-time.After(patience):
		t.Error("the last call has ended and the process stays")
	}
}
