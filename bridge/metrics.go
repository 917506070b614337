package bridge

import (
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"trunkline/bridge/sound"
	"trunkline/db"
	"trunkline/matrixcall"
	"trunkline/sip"
)

// The names of all metrics are in this file: they are an interface to dashboards. Most are counted elsewhere and read
// here when somebody asks.

// metrics are what the bridge itself counts.
type metrics struct {
	registry *prometheus.Registry
	ended    *prometheus.CounterVec
	refused  *prometheus.CounterVec
	setup    prometheus.Histogram
	resumed  prometheus.Counter

	commands   *prometheus.CounterVec
	rings      prometheus.Counter
	ringsEnded *prometheus.CounterVec
	pins       *prometheus.CounterVec
	moves      *prometheus.CounterVec
	transfers  *prometheus.CounterVec

	ordersRefused *prometheus.CounterVec
	rerouted      *prometheus.CounterVec
	alarms        *prometheus.CounterVec
}

func newMetrics(b *Bridge) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trunkline_legs_ended_total", Help: "Legs that ended, by cause.",
		}, []string{"cause"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trunkline_calls_refused_total", Help: "Calls that were not answered but refused, by reason.",
		}, []string{"reason"}),
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trunkline_commands_total", Help: "Commands of people in rooms, by verb; inviting the ghost of a number is a call.",
		}, []string{"verb"}),
		ordersRefused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trunkline_orders_refused_total", Help: "Calls and transfers that people wanted and were refused, by reason.",
		}, []string{"reason"}),
		rerouted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trunkline_calls_rerouted_total", Help: "Calls of rooms that a trunk could not place and that the next one was tried for, by the first one.",
		}, []string{"trunk"}),
		alarms: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trunkline_limit_alarms_total", Help: "Limits of calls per day that came to a percentage of dialling.alarm, by scope, what is limited, and that.",
		}, []string{"scope", "what", "percent"}),
		rings: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trunkline_rings_total", Help: "Rooms rung because nobody was in the call.",
		}),
		ringsEnded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trunkline_rings_ended_total", Help: "Rings that ended, by how: answered, or why not.",
		}, []string{"how"}),
		pins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trunkline_pins_total", Help: "PINs that callers entered, by result.",
		}, []string{"result"}),
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trunkline_moves_total", Help: "Phones that wanted to be moved to another room, or somebody to be called in their place, by the status they were told in the end.",
		}, []string{"code"}),
		transfers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "trunkline_transfers_total", Help: "Phones that a room has transferred to another number, by the status they told in the end.",
		}, []string{"code"}),
		resumed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "trunkline_legs_resumed_total", Help: "Legs taken over from a process that is gone.",
		}),
		setup: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "trunkline_setup_seconds", Help: "From INVITE to answer, the time that people need to come included.",
			Buckets: []float64{.1, .2, .4, .8, 1.5, 3, 6, 12, 30},
		}),
	}
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.ended, m.refused, m.setup, m.resumed, m.rings, m.ringsEnded, m.pins, m.commands, m.moves, m.transfers, m.ordersRefused, m.rerouted, m.alarms, usageReadings(b.meter),
		mediaReadings(b), soundReadings(b.sounds), sipReadings(b.phones), databaseReadings(b.journal),
		homeserverReadings(b.matrix.Metrics()), peerReadings(b.matrix.Metrics()),
	)
	return m
}

func mediaReadings(b *Bridge) readings {
	studio := func(value func(studioStats) uint64) func() uint64 {
		return func() uint64 { return value(b.studio.Stats()) }
	}
	return readings{
		gauge("trunkline_legs", "Live legs.", func() float64 { return float64(len(b.liveLegs())) }),
		gauge("trunkline_phones_speaking", "Phones that are speaking now.", func() float64 {
			phones, _ := b.speakers()
			return float64(phones)
		}),
		gauge("trunkline_devices_speaking", "Devices in rooms whose users are speaking to phones now.", func() float64 {
			_, devices := b.speakers()
			return float64(devices)
		}),
		counter("trunkline_media_frames_late_total", "Frames mixed late because the loop was held up.",
			studio(func(s studioStats) uint64 { return s.Late })),
		counter("trunkline_media_frames_skipped_total", "Frames given up after a longer hold-up.",
			studio(func(s studioStats) uint64 { return s.Skipped })),
		counter("trunkline_media_inbox_overflow_total", "Packets dropped because a worker's inbox was full.",
			studio(func(s studioStats) uint64 { return s.Overflow })),
		counter("trunkline_media_no_seat_total", "Packets dropped because no decoder was to be had for their device.",
			studio(func(s studioStats) uint64 { return s.NoSeat })),
		counters("trunkline_media_from_phones_total", "What phones that have left had sent: packets taken, bad, lost and late ones, "+
			"and frames made up because nothing was there.", "what",
			func() map[string]uint64 { return b.studio.Streams(func(w *worker) *tally { return &w.fromPhones }) }),
		counters("trunkline_media_from_devices_total", "The same of devices in rooms.", "what",
			func() map[string]uint64 { return b.studio.Streams(func(w *worker) *tally { return &w.fromDevices }) }),
	}
}

func usageReadings(m *meter) readings {
	return readings{
		gauges("trunkline_dialled_today_calls", "Calls from rooms on this day of the bridge's time zone, of all nodes, a minute ago at most.", "trunk",
			func() map[string]float64 { return m.latest.Load().calls }),
		gauges("trunkline_dialled_today_seconds", "Time talked in them, in those that are up, too.", "trunk",
			func() map[string]float64 { return m.latest.Load().seconds }),
		gauges("trunkline_limit_used_ratio", "The most that is used of any limit per day in a scope: 1 = all of it.", "scope",
			func() map[string]float64 { return m.latest.Load().most }),
	}
}

func soundReadings(l *sound.Library) readings {
	stat := func(value func(sound.Stats) uint64) func() uint64 {
		return func() uint64 { return value(l.Stats()) }
	}
	return readings{
		counter("trunkline_sounds_missing_total", "Prompts that were a tone because no language has them.",
			stat(func(s sound.Stats) uint64 { return s.Missing })),
		counter("trunkline_sounds_broken_total", "Sound files that could not be read.", stat(func(s sound.Stats) uint64 { return s.Broken })),
	}
}

func sipReadings(stack *sip.Stack) readings {
	stat := func(value func(sip.Stats) uint64) func() uint64 {
		return func() uint64 { return value(stack.Stats()) }
	}
	return readings{
		gauge("trunkline_sip_calls", "Calls in any state.", func() float64 { return float64(stack.Stats().Calls) }),
		gauge("trunkline_sip_rtp_port_pairs", "RTP port pairs in use.", func() float64 { return float64(stack.Stats().RTPPorts) }),
		counter("trunkline_sip_messages_total", "SIP messages let through to the parser.",
			stat(func(s sip.Stats) uint64 { return s.Messages })),
		counters("trunkline_sip_dropped_total", "Messages dropped without an answer.", "reason",
			func() map[string]uint64 { return stack.Stats().Dropped }),
		counters("trunkline_sip_refused_total", "Requests refused.", "code",
			func() map[string]uint64 { return byCode(stack.Stats().Refused) }),
		turnedAway(stack),
		gauge("trunkline_sip_banned_addresses", "Addresses of trunks that are not heard for a while because they kept failing.",
			func() float64 { return float64(stack.Stats().Banned) }),
		counter("trunkline_sip_invites_total", "New calls.", stat(func(s sip.Stats) uint64 { return s.Invites })),
		counter("trunkline_sip_dialled_total", "Calls we began.", stat(func(s sip.Stats) uint64 { return s.Dialled })),
		counter("trunkline_sip_dial_answered_total", "Of these, answered.", stat(func(s sip.Stats) uint64 { return s.DialAnswered })),
		counters("trunkline_sip_dial_refused_total", "Of these, refused or never answered.", "code",
			func() map[string]uint64 { return byCode(stack.Stats().DialRefused) }),
		trunkGauge(stack, "trunkline_sip_trunk_up", "Whether the trunk answered when it was last asked (OPTIONS).",
			func(t sip.TrunkState) bool { return !t.Down }),
		trunkGauge(stack, "trunkline_sip_trunk_registered", "Whether we are registered with the trunk.",
			func(t sip.TrunkState) bool { return !t.Registered.IsZero() }),
		counter("trunkline_sip_register_failures_total", "REGISTERs refused or not answered.",
			stat(func(s sip.Stats) uint64 { return s.RegisterFailures })),
		counter("trunkline_sip_answered_total", "Calls answered.", stat(func(s sip.Stats) uint64 { return s.Answered })),
		counter("trunkline_sip_replaced_total", "Calls that another phone has taken over (Replaces).",
			stat(func(s sip.Stats) uint64 { return s.Replaced })),
		counter("trunkline_sip_transfers_refused_total", "Wishes of phones to be moved to addresses that are not ours.",
			stat(func(s sip.Stats) uint64 { return s.TransfersRefused })),
		counter("trunkline_sip_no_ack_total", "Answers never acknowledged.", stat(func(s sip.Stats) uint64 { return s.NoAck })),
		counter("trunkline_sip_panics_total", "Bugs that ended one call.", stat(func(s sip.Stats) uint64 { return s.Panics })),
		counter("trunkline_rtp_strangers_total", "RTP packets from sources that are not the phone.",
			stat(func(s sip.Stats) uint64 { return s.MediaStrangers })),
		counter("trunkline_rtp_forged_total", "SRTP packets that are not authentic, or come again.",
			stat(func(s sip.Stats) uint64 { return s.MediaForged })),
		counter("trunkline_rtp_malformed_total", "RTP packets that could not be read.",
			stat(func(s sip.Stats) uint64 { return s.MediaMalformed })),
		counter("trunkline_rtp_send_failures_total", "RTP packets that could not be sent.",
			stat(func(s sip.Stats) uint64 { return s.MediaSendFails })),
	}
}

// trunkGauge is 1 or 0 for each trunk that is registered with or asked.
func trunkGauge(stack *sip.Stack, name, help string, is func(sip.TrunkState) bool) reading {
	return reading{prometheus.NewDesc(name, help, []string{"trunk"}, nil), func(d *prometheus.Desc, ch chan<- prometheus.Metric) {
		for _, t := range stack.Trunks() {
			v := 0.0
			if is(t) {
				v = 1
			}
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, t.Trunk)
		}
	}}
}

func turnedAway(stack *sip.Stack) reading {
	const help = "Calls of a trunk that were refused before anybody was told of them, by why."
	desc := prometheus.NewDesc("trunkline_sip_calls_turned_away_total", help, []string{"trunk", "why"}, nil)
	return reading{desc, func(d *prometheus.Desc, ch chan<- prometheus.Metric) {
		for t, n := range stack.Stats().TurnedAway {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), t.Trunk, t.Why)
		}
	}}
}

func byCode(counts map[int]uint64) map[string]uint64 {
	named := make(map[string]uint64, len(counts))
	for code, n := range counts {
		named[strconv.Itoa(code)] = n
	}
	return named
}

func databaseReadings(journal *db.Journal) readings {
	return readings{
		gauge("trunkline_database_writes_waiting", "Writes that are not in the database yet.",
			func() float64 { return float64(journal.Stats().Waiting) }),
		gauge("trunkline_database_away_seconds", "For how long the database has not answered; 0 = it does.",
			func() float64 { return journal.Stats().Away.Seconds() }),
		counters("trunkline_database_writes_total",
			"Writes by what became of them: written, merged into a later one, rejected by the database, refused because too many waited.",
			"result", func() map[string]uint64 {
				s := journal.Stats()
				return map[string]uint64{"written": s.Written, "merged": s.Merged, "rejected": s.Rejected, "refused": s.Refused}
			}),
		counter("trunkline_database_outages_total", "How often the database did not answer.",
			func() uint64 { return journal.Stats().Outages }),
	}
}

// homeserverReadings are about what goes to and comes from the homeserver.
func homeserverReadings(m *matrixcall.Metrics) readings {
	return readings{
		load("trunkline_matrix_transactions_total", "Transactions taken from the homeserver.", &m.Transactions),
		load("trunkline_matrix_transactions_repeated_total", "Transactions seen before and ignored.", &m.TransactionsRepeated),
		load("trunkline_matrix_transactions_refused_total", "Transactions refused for a bad token or body.", &m.TransactionsRefused),
		load("trunkline_matrix_room_events_total", "Room events handled.", &m.RoomEvents),
		load("trunkline_matrix_room_events_repeated_total", "Room events seen before and ignored.", &m.RoomEventsRepeated),
		load("trunkline_matrix_room_events_dropped_total", "Room events dropped because a room's queue was full.", &m.RoomEventsDropped),
		load("trunkline_matrix_state_reads_total", "Times a room's state was read.", &m.StateReads),
		load("trunkline_matrix_polls_total", "Sync requests for to-device messages.", &m.Polls),
		load("trunkline_matrix_poll_failures_total", "Sync requests that failed.", &m.PollFailures),
		load("trunkline_matrix_poll_rescues_total", "To-device messages found only by a sync that did not wait.", &m.PollRescues),
		load("trunkline_matrix_kicks_total", "Common looks of all pollers.", &m.Kicks),
		load("trunkline_matrix_messages_received_total", "Call messages handed to a conference.", &m.MessagesReceived),
		load("trunkline_matrix_messages_refused_total", "To-device messages that failed a check.", &m.MessagesRefused),
		load("trunkline_matrix_messages_undecryptable_total", "To-device messages olm could not read.", &m.MessagesUndecryptable),
		load("trunkline_matrix_messages_repeated_total", "Replayed olm messages.", &m.MessagesRepeated),
		load("trunkline_matrix_messages_unclaimed_total", "Call messages for no conference of the ghost.", &m.MessagesUnclaimed),
		load("trunkline_matrix_messages_sent_total", "Call messages accepted by the homeserver.", &m.MessagesSent),
		load("trunkline_matrix_messages_sent_plain_total", "Call messages sent without encryption.", &m.MessagesSentPlain),
		load("trunkline_matrix_messages_failed_total", "Call messages given up.", &m.MessagesFailed),
		load("trunkline_matrix_send_requests_total", "sendToDevice requests.", &m.SendRequests),
		load("trunkline_matrix_send_retries_total", "sendToDevice requests repeated.", &m.SendRetries),
		load("trunkline_matrix_nudges_total", "sendToDevice requests that only wake clients.", &m.Nudges),
		load("trunkline_matrix_key_queries_total", "Users whose device keys were asked for.", &m.KeyQueries),
		load("trunkline_matrix_key_claims_total", "Devices that a one-time key was asked of.", &m.KeyClaims),
		load("trunkline_matrix_one_time_key_uploads_total", "Top-ups of one-time keys.", &m.OneTimeKeyUploads),
		load("trunkline_matrix_fallback_key_uploads_total", "Fallback keys published.", &m.FallbackKeyUploads),
		load("trunkline_matrix_ghost_devices_created_total", "Ghost devices made.", &m.GhostsCreated),
		load("trunkline_matrix_room_keys_total", "Keys of encrypted rooms that members' devices gave the bot.", &m.RoomKeys),
		load("trunkline_matrix_encrypted_messages_read_total", "Encrypted messages of rooms that were read.", &m.RoomMessagesRead),
		load("trunkline_matrix_encrypted_messages_unread_total", "Encrypted messages of rooms that could not be read.", &m.RoomMessagesUnread),
		load("trunkline_matrix_notices_encrypted_total", "Notices sent encrypted.", &m.NoticesSealed),
		load("trunkline_matrix_notices_withheld_total", "Notices that could not be encrypted where they had to be; a sentence without content was sent instead, or nothing.", &m.NoticesUnsealed),
		load("trunkline_matrix_turn_requests_total", "Questions for TURN servers.", &m.TURNRequests),
		load("trunkline_matrix_turn_failures_total", "Questions for TURN servers without an answer that can be used.", &m.TURNFailures),
		gauge("trunkline_matrix_ghosts_polling", "Ghosts reading to-device messages now.",
			func() float64 { return float64(m.GhostsPolling.Load()) }),
	}
}

// peerReadings are about the connections of all ghosts.
func peerReadings(m *matrixcall.Metrics) readings {
	return readings{
		{
			prometheus.NewDesc("trunkline_peers", "PeerConnections now, by what they are doing.", []string{"state"}, nil),
			func(d *prometheus.Desc, ch chan<- prometheus.Metric) {
				for s := range m.Peers {
					ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(m.Peers[s].Load()), matrixcall.PeerState(s).String())
				}
			},
		},
		{
			prometheus.NewDesc("trunkline_peer_connect_seconds", "From the first look at a peer to a connection that stands.", nil, nil),
			func(d *prometheus.Desc, ch chan<- prometheus.Metric) {
				count, sum, buckets := m.ConnectTime.Snapshot()
				ch <- prometheus.MustNewConstHistogram(d, count, sum, buckets)
			},
		},
		load("trunkline_peers_connected_total", "Connections that came to stand.", &m.PeersConnected),
		counters("trunkline_peers_failed_total", "Connections that ended without ever standing, by reason.", "reason", m.PeersFailed.Snapshot),
		counters("trunkline_peers_gone_total", "Connections that stood and ended, by reason.", "reason", m.PeersGone.Snapshot),
		load("trunkline_peers_retried_total", "Further attempts to reach the same session of a peer.", &m.PeersRetried),
		load("trunkline_peer_renegotiations_total", "Later offers of ours.", &m.Renegotiations),
		load("trunkline_peer_ice_restarts_total", "Later offers of ours with new ICE credentials.", &m.ICERestarts),
		load("trunkline_peer_packets_received_total", "RTP packets of peers, sound and keys.", &m.PacketsReceived),
		load("trunkline_peer_packets_sent_total", "RTP packets to peers.", &m.PacketsSent),
		counters("trunkline_signals_received_total", "Call signals received, by kind.", "kind", m.SignalsReceived.Snapshot),
		counters("trunkline_signals_sent_total", "Call signals sent, by kind.", "kind", m.SignalsSent.Snapshot),
		counters("trunkline_signals_dropped_total", "Call signals a conference had no use for, by reason.", "reason", m.SignalsDropped.Snapshot),
		load("trunkline_signals_repeated_total", "Invites and answers repeated because the peer did not stir.", &m.InvitesRepeated),
		load("trunkline_sessions_rotated_total", "Times a ghost took a new session id to be called again.", &m.SessionsRotated),
	}
}

// reading is one metric that is counted elsewhere.
type reading struct {
	desc *prometheus.Desc
	read func(*prometheus.Desc, chan<- prometheus.Metric)
}

func gauge(name, help string, value func() float64) reading {
	return reading{prometheus.NewDesc(name, help, nil, nil), func(d *prometheus.Desc, ch chan<- prometheus.Metric) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value())
	}}
}

func gauges(name, help, label string, values func() map[string]float64) reading {
	return reading{prometheus.NewDesc(name, help, []string{label}, nil), func(d *prometheus.Desc, ch chan<- prometheus.Metric) {
		for value, n := range values() {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, value)
		}
	}}
}

func counter(name, help string, value func() uint64) reading {
	return reading{prometheus.NewDesc(name, help, nil, nil), func(d *prometheus.Desc, ch chan<- prometheus.Metric) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value()))
	}}
}

func load(name, help string, value *atomic.Uint64) reading { return counter(name, help, value.Load) }

func counters(name, help, label string, values func() map[string]uint64) reading {
	return reading{prometheus.NewDesc(name, help, []string{label}, nil), func(d *prometheus.Desc, ch chan<- prometheus.Metric) {
		for value, n := range values() {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), value)
		}
	}}
}

// readings are a prometheus.Collector.
type readings []reading

// Describe implements prometheus.Collector.
func (all readings) Describe(ch chan<- *prometheus.Desc) {
	for _, r := range all {
		ch <- r.desc
	}
}

// Collect implements prometheus.Collector.
func (all readings) Collect(ch chan<- prometheus.Metric) {
	for _, r := range all {
		r.read(r.desc, ch)
	}
}
