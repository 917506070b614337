package bridge

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// metrics are what the bridge itself counts. The other names are in metrics_sip.go and matrixcall/metrics.go.
type metrics struct {
	registry *prometheus.Registry
	ended    *prometheus.CounterVec
	refused  *prometheus.CounterVec
	setup    prometheus.Histogram
}

func newMetrics(b *Bridge) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trunkline_legs_ended_total", Help: "Legs that ended, by cause.",
		}, []string{"cause"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trunkline_calls_refused_total", Help: "Calls refused before they became a leg, by reason.",
		}, []string{"reason"}),
		setup: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "trunkline_setup_seconds", Help: "From INVITE to answer.",
			Buckets: []float64{.1, .2, .4, .8, 1.5, 3, 6, 12, 30},
		}),
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	counter := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value)
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.ended, m.refused, m.setup,
		gauge("trunkline_legs", "Live legs.", func() float64 { return float64(len(b.liveLegs())) }),
		counter("trunkline_media_frames_late_total", "Frames mixed late because the loop was held up.",
			func() float64 { return float64(b.studio.Stats().Late) }),
		counter("trunkline_media_frames_skipped_total", "Frames given up after a longer hold-up.",
			func() float64 { return float64(b.studio.Stats().Skipped) }),
		counter("trunkline_media_inbox_overflow_total", "Packets dropped because a worker's inbox was full.",
			func() float64 { return float64(b.studio.Stats().Overflow) }),
		sipCollector{b.phones}, journalCollector{b.journal}, matrixCollector{b.matrix.Metrics()},
	)
	return m
}
