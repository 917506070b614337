package bridge

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"trunkline/sip"
)

// sipCollector shows the counters of the phone side.
type sipCollector struct{ stack *sip.Stack }

var (
	sipCalls    = prometheus.NewDesc("trunkline_sip_calls", "Calls in any state.", nil, nil)
	sipPorts    = prometheus.NewDesc("trunkline_sip_rtp_port_pairs", "RTP port pairs in use.", nil, nil)
	sipMessages = prometheus.NewDesc("trunkline_sip_messages_total", "SIP messages let through to the parser.", nil, nil)
	sipDropped  = prometheus.NewDesc("trunkline_sip_dropped_total", "Messages dropped without an answer.", []string{"reason"}, nil)
	sipRefused  = prometheus.NewDesc("trunkline_sip_refused_total", "Requests refused.", []string{"code"}, nil)
	sipInvites  = prometheus.NewDesc("trunkline_sip_invites_total", "New calls.", nil, nil)
	sipDialled  = prometheus.NewDesc("trunkline_sip_dialled_total", "Calls we began.", nil, nil)
	sipReached  = prometheus.NewDesc("trunkline_sip_dial_answered_total", "Of these, answered.", nil, nil)
	sipUnhappy  = prometheus.NewDesc("trunkline_sip_dial_refused_total", "Of these, refused or never answered.", []string{"code"}, nil)
	sipAnswered = prometheus.NewDesc("trunkline_sip_answered_total", "Calls answered.", nil, nil)
	sipNoAck    = prometheus.NewDesc("trunkline_sip_no_ack_total", "Answers never acknowledged.", nil, nil)
	sipPanics   = prometheus.NewDesc("trunkline_sip_panics_total", "Bugs that ended one call.", nil, nil)
	rtpForged   = prometheus.NewDesc("trunkline_rtp_forged_total", "SRTP packets that are not authentic, or come again.", nil, nil)
	rtpStranger = prometheus.NewDesc("trunkline_rtp_strangers_total", "RTP packets from sources that are not the phone.", nil, nil)
	rtpBad      = prometheus.NewDesc("trunkline_rtp_malformed_total", "RTP packets that could not be read.", nil, nil)
	rtpUnsent   = prometheus.NewDesc("trunkline_rtp_send_failures_total", "RTP packets that could not be sent.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c sipCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		sipCalls, sipPorts, sipMessages, sipDropped, sipRefused, sipInvites, sipDialled, sipReached, sipUnhappy, sipAnswered, sipNoAck, sipPanics, rtpStranger, rtpForged, rtpBad, rtpUnsent,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c sipCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.stack.Stats()
	gauge := func(d *prometheus.Desc, v int) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(sipCalls, s.Calls)
	gauge(sipPorts, s.RTPPorts)
	count(sipMessages, s.Messages)
	for reason, n := range s.Dropped {
		count(sipDropped, n, reason)
	}
	for code, n := range s.Refused {
		count(sipRefused, n, strconv.Itoa(code))
	}
	count(sipInvites, s.Invites)
	count(sipDialled, s.Dialled)
	count(sipReached, s.DialAnswered)
	for code, n := range s.DialRefused {
		count(sipUnhappy, n, strconv.Itoa(code))
	}
	count(sipAnswered, s.Answered)
	count(sipNoAck, s.NoAck)
	count(sipPanics, s.Panics)
	count(rtpForged, s.MediaForged)
	count(rtpStranger, s.MediaStrangers)
	count(rtpBad, s.MediaMalformed)
	count(rtpUnsent, s.MediaSendFails)
}
