package bridge

import (
	"github.com/prometheus/client_golang/prometheus"

	"trunkline/db"
)

// journalCollector shows how it is with the database.
type journalCollector struct{ journal *db.Journal }

var (
	dbWaiting = prometheus.NewDesc("trunkline_database_writes_waiting", "Writes that are not in the database yet.", nil, nil)
	dbAway    = prometheus.NewDesc("trunkline_database_away_seconds", "For how long the database has not answered; 0 = it does.", nil, nil)
	dbWrites  = prometheus.NewDesc("trunkline_database_writes_total", "Writes by what became of them: written, merged into a later one, rejected by the database, refused because too many waited.", []string{"result"}, nil)
	dbOutages = prometheus.NewDesc("trunkline_database_outages_total", "How often the database did not answer.", nil, nil)
)

// Describe implements prometheus.Collector.
func (journalCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{dbWaiting, dbAway, dbWrites, dbOutages} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c journalCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.journal.Stats()
	ch <- prometheus.MustNewConstMetric(dbWaiting, prometheus.GaugeValue, float64(s.Waiting))
	ch <- prometheus.MustNewConstMetric(dbAway, prometheus.GaugeValue, s.Away.Seconds())
	ch <- prometheus.MustNewConstMetric(dbOutages, prometheus.CounterValue, float64(s.Outages))
	for result, n := range map[string]uint64{"written": s.Written, "merged": s.Merged, "rejected": s.Rejected, "refused": s.Refused} {
		ch <- prometheus.MustNewConstMetric(dbWrites, prometheus.CounterValue, float64(n), result)
	}
}
