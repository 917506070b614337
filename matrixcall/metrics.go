package matrixcall

import (
	"iter"
	"sync/atomic"
)

// Metrics counts what the Matrix side has done since the program started. All
// fields may be read at any time; All gives them with the names Prometheus
// shall know them by.
type Metrics struct {
	Transactions          atomic.Uint64 // transactions taken from the homeserver
	TransactionsRepeated  atomic.Uint64 // seen before, ignored
	TransactionsRefused   atomic.Uint64 // bad token, bad body
	RoomEvents            atomic.Uint64 // room events handled
	RoomEventsRepeated    atomic.Uint64 // event ids seen before, ignored
	RoomEventsDropped     atomic.Uint64 // a room's queue was full; its state is read again
	StateReads            atomic.Uint64 // GET /state
	Polls                 atomic.Uint64 // /sync requests
	PollFailures          atomic.Uint64 // of these, failed
	PollRescues           atomic.Uint64 // messages found only by a look without waiting
	Kicks                 atomic.Uint64 // common looks of all pollers
	MessagesReceived      atomic.Uint64 // call messages handed to a conference
	MessagesRefused       atomic.Uint64 // to-device messages that failed a check
	MessagesUndecryptable atomic.Uint64 // olm could not read them
	MessagesRepeated      atomic.Uint64 // olm replays
	MessagesUnclaimed     atomic.Uint64 // call messages no conference wanted
	SignalsDropped        atomic.Uint64 // call messages a conference had no use for
	MessagesSent          atomic.Uint64 // messages accepted by the homeserver
	MessagesSentPlain     atomic.Uint64 // of these, unencrypted
	MessagesFailed        atomic.Uint64 // given up
	SendRequests          atomic.Uint64 // PUT sendToDevice
	SendRetries           atomic.Uint64 // of these, repeated
	KeyQueries            atomic.Uint64 // users asked for by /keys/query
	OneTimeKeyUploads     atomic.Uint64 // top-ups of one-time keys
	FallbackKeyUploads    atomic.Uint64 // fallback keys published
	GhostsCreated         atomic.Uint64 // devices made
	GhostsPolling         atomic.Int64  // ghosts reading to-device messages now
}

// Kind tells a counter, which only grows, from a gauge.
type Kind uint8

// The kinds of a metric.
const (
	Counter Kind = iota
	Gauge
)

// Metric is one value with what a Prometheus endpoint has to say about it.
type Metric struct {
	Name  string
	Help  string
	Kind  Kind
	Value float64
}

// All yields every metric. The names are an interface to dashboards: they are
// written here and nowhere else.
func (m *Metrics) All() iter.Seq[Metric] {
	counters := []struct {
		name, help string
		value      *atomic.Uint64
	}{
		{"trunkline_matrix_transactions_total", "Transactions taken from the homeserver.", &m.Transactions},
		{"trunkline_matrix_transactions_repeated_total", "Transactions seen before and ignored.", &m.TransactionsRepeated},
		{"trunkline_matrix_transactions_refused_total", "Transactions refused for a bad token or body.", &m.TransactionsRefused},
		{"trunkline_matrix_room_events_total", "Room events handled.", &m.RoomEvents},
		{"trunkline_matrix_room_events_repeated_total", "Room events seen before and ignored.", &m.RoomEventsRepeated},
		{"trunkline_matrix_room_events_dropped_total", "Room events dropped because a room's queue was full.", &m.RoomEventsDropped},
		{"trunkline_matrix_state_reads_total", "Times a room's state was read.", &m.StateReads},
		{"trunkline_matrix_polls_total", "Sync requests for to-device messages.", &m.Polls},
		{"trunkline_matrix_poll_failures_total", "Sync requests that failed.", &m.PollFailures},
		{"trunkline_matrix_poll_rescues_total", "To-device messages found only by a sync that did not wait.", &m.PollRescues},
		{"trunkline_matrix_kicks_total", "Common looks of all pollers.", &m.Kicks},
		{"trunkline_matrix_messages_received_total", "Call messages handed to a conference.", &m.MessagesReceived},
		{"trunkline_matrix_messages_refused_total", "To-device messages that failed a check.", &m.MessagesRefused},
		{"trunkline_matrix_messages_undecryptable_total", "To-device messages olm could not read.", &m.MessagesUndecryptable},
		{"trunkline_matrix_messages_repeated_total", "Replayed olm messages.", &m.MessagesRepeated},
		{"trunkline_matrix_messages_unclaimed_total", "Call messages for no conference of the ghost.", &m.MessagesUnclaimed},
		{"trunkline_matrix_signals_dropped_total", "Call messages a conference had no use for.", &m.SignalsDropped},
		{"trunkline_matrix_messages_sent_total", "Call messages accepted by the homeserver.", &m.MessagesSent},
		{"trunkline_matrix_messages_sent_plain_total", "Call messages sent without encryption.", &m.MessagesSentPlain},
		{"trunkline_matrix_messages_failed_total", "Call messages given up.", &m.MessagesFailed},
		{"trunkline_matrix_send_requests_total", "sendToDevice requests.", &m.SendRequests},
		{"trunkline_matrix_send_retries_total", "sendToDevice requests repeated.", &m.SendRetries},
		{"trunkline_matrix_key_queries_total", "Users whose device keys were asked for.", &m.KeyQueries},
		{"trunkline_matrix_one_time_key_uploads_total", "Top-ups of one-time keys.", &m.OneTimeKeyUploads},
		{"trunkline_matrix_fallback_key_uploads_total", "Fallback keys published.", &m.FallbackKeyUploads},
		{"trunkline_matrix_ghost_devices_created_total", "Ghost devices made.", &m.GhostsCreated},
	}
	return func(yield func(Metric) bool) {
		for _, c := range counters {
			if !yield(Metric{c.name, c.help, Counter, float64(c.value.Load())}) {
				return
			}
		}
		yield(Metric{
			"trunkline_matrix_ghosts_polling", "Ghosts reading to-device messages now.",
			Gauge, float64(m.GhostsPolling.Load()),
		})
	}
}
