package bridge

import (
	"github.com/prometheus/client_golang/prometheus"

	"trunkline/matrixcall"
)

// matrixCollector shows the counters of the Matrix side; their names are in matrixcall.
type matrixCollector struct{ metrics *matrixcall.Metrics }

// Describe implements prometheus.Collector.
func (c matrixCollector) Describe(ch chan<- *prometheus.Desc) {
	for m := range c.metrics.All() {
		ch <- prometheus.NewDesc(m.Name, m.Help, nil, nil)
	}
}

// Collect implements prometheus.Collector.
func (c matrixCollector) Collect(ch chan<- prometheus.Metric) {
	for m := range c.metrics.All() {
		kind := prometheus.CounterValue
		if m.Kind == matrixcall.Gauge {
			kind = prometheus.GaugeValue
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(m.Name, m.Help, nil, nil), kind, m.Value)
	}
}
