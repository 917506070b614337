package bridge

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"trunkline/internal/testbed/member"
	"trunkline/matrixcall"
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
	var metrics string
	b.await("the answer to be counted, which is after it is sent", func() bool {
		metrics = page("/metrics")
		return strings.Contains(metrics, "trunkline_setup_seconds_count 1") && strings.Contains(metrics, "trunkline_sip_answered_total 1")
	})
	for _, want := range []string{
		"trunkline_legs 1", "trunkline_matrix_ghosts_polling 1",
		"trunkline_media_frames_late_total ", "trunkline_database_writes_waiting ", "trunkline_matrix_polls_total ",
		`trunkline_peers{state="connected"} `, "trunkline_peer_connect_seconds_count ", "trunkline_peers_connected_total ",
		"trunkline_peers_retried_total ", "trunkline_peer_packets_received_total ", "trunkline_peer_packets_sent_total ",
		"trunkline_signals_repeated_total ", "trunkline_sessions_rotated_total ", "trunkline_matrix_turn_requests_total ",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %q", want)
		}
	}
	legs := b.process.bridge.liveLegs()
	if len(legs) != 1 {
		t.Fatalf("%d legs", len(legs))
	}
	trace := page("/debug/legs/" + string(legs[0].id) + "/trace")
	for _, want := range []string{" invited\n    do save\n    do join room\n", " room joined\n    do accept phone\n", "    do send answer\n"} {
		if !strings.Contains(trace, want) {
			t.Errorf("the trace lacks %q:\n%s", want, trace)
		}
	}
	if index := page("/"); !strings.Contains(index, "GET /metrics\n") || !strings.Contains(index, "PUT /trunks/{name}\n") {
		t.Errorf("GET / = %s", index)
	}
	if list := page("/debug/legs"); !strings.Contains(list, string(legs[0].id)) || strings.Contains(list, "12345678") {
		t.Errorf("/debug/legs = %s", list)
	}
}

// Every metric the Matrix side counts has a name, and moves under it.
func TestMetricsAreReadUnderTheirNames(t *testing.T) {
	var m matrixcall.Metrics
	m.Polls.Add(3)
	m.Peers[matrixcall.PeerUp].Add(2)
	m.ConnectTime.Add(700 * time.Millisecond)
	m.PeersConnected.Add(4)
	m.PeersFailed.Add("ice_failed")
	m.PeersGone.Add("user_hangup")
	m.PeersRetried.Add(5)
	m.Renegotiations.Add(6)
	m.ICERestarts.Add(7)
	m.PacketsReceived.Add(8)
	m.PacketsSent.Add(9)
	m.SignalsReceived.Add("invite")
	m.SignalsSent.Add("answer")
	m.SignalsDropped.Add("repeated")
	m.InvitesRepeated.Add(10)
	m.SessionsRotated.Add(11)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(homeserverReadings(&m), peerReadings(&m))
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		"trunkline_matrix_polls_total 3", `trunkline_peers{state="connected"} 2`, `trunkline_peers{state="connecting"} 0`,
		`trunkline_peer_connect_seconds_bucket{le="0.5"} 0`, `trunkline_peer_connect_seconds_bucket{le="1"} 1`,
		"trunkline_peer_connect_seconds_sum 0.7", "trunkline_peers_connected_total 4",
		`trunkline_peers_failed_total{reason="ice_failed"} 1`, `trunkline_peers_gone_total{reason="user_hangup"} 1`,
		"trunkline_peers_retried_total 5", "trunkline_peer_renegotiations_total 6", "trunkline_peer_ice_restarts_total 7",
		"trunkline_peer_packets_received_total 8", "trunkline_peer_packets_sent_total 9",
		`trunkline_signals_received_total{kind="invite"} 1`, `trunkline_signals_sent_total{kind="answer"} 1`,
		`trunkline_signals_dropped_total{reason="repeated"} 1`, "trunkline_signals_repeated_total 10", "trunkline_sessions_rotated_total 11",
	} {
		if !strings.Contains(w.Body.String(), want+"\n") {
			t.Errorf("/metrics lacks %q", want)
		}
	}
}
