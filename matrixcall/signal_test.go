package matrixcall

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"trunkline/matrixcall/mesh"
)

const envelope = `"call_id":"c1","conf_id":"conf","party_id":"D","device_id":"D","sender_session_id":"s","dest_session_id":"g"`

func TestSignalsOfBothClientsAreRead(t *testing.T) {
	base := mesh.Signal{ConfID: "conf", CallID: "c1", SenderSession: "s", DestSession: "g", Seq: mesh.NoSeq}
	with := func(change func(*mesh.Signal)) mesh.Signal {
		sig := base
		change(&sig)
		return sig
	}
	for _, test := range []struct {
		name, evtType, fields string
		want                  mesh.Signal
	}{
		{
			"invite of hydrogen", typeInvite,
			`"version":1,"seq":0,"lifetime":60000,"offer":{"type":"offer","sdp":"v=0"},
			 "org.matrix.msc3077.sdp_stream_metadata":{"a":{"purpose":"m.usermedia","audio_muted":true,"video_muted":false}}`,
			with(func(s *mesh.Signal) {
				s.Kind, s.Seq, s.SDP = mesh.Invite, 0, mesh.SDP{Type: "offer", Text: "v=0"}
				s.Streams = map[string]mesh.Stream{"a": {Purpose: "m.usermedia", AudioMuted: new(true), VideoMuted: new(false)}}
			}),
		},
		{
			"invite of matrix-js-sdk", typeInvite,
			`"version":"1","seq":0,"lifetime":"60000","invitee":"@g:x","offer":{"type":"offer","sdp":"v=0"},
			 "capabilities":{"m.call.transferee":false,"m.call.dtmf":false},"sdp_stream_metadata":{"b":{"purpose":"m.usermedia"}}`,
			with(func(s *mesh.Signal) {
				s.Kind, s.Seq, s.SDP = mesh.Invite, 0, mesh.SDP{Type: "offer", Text: "v=0"}
				s.Invitee, s.Streams = "@g:x", map[string]mesh.Stream{"b": {Purpose: "m.usermedia"}}
			}),
		},
		{
			"answer", typeAnswer, `"seq":3,"answer":{"type":"offer","sdp":"v=0"}`,
			with(func(s *mesh.Signal) { s.Kind, s.Seq, s.SDP = mesh.Answer, 3, mesh.SDP{Type: "offer", Text: "v=0"} }),
		},
		{
			"candidates", typeCandidates,
			`"candidates":[{"candidate":"candidate:1","sdpMid":"0","sdpMLineIndex":0,"usernameFragment":"u"},{"candidate":""}]`,
			with(func(s *mesh.Signal) {
				s.Kind = mesh.Candidates
				s.Candidates = []mesh.Candidate{{Line: "candidate:1", Mid: new("0"), MLine: new(uint16(0)), Ufrag: new("u")}, {}}
			}),
		},
		{
			"metadata of hydrogen", typeMetadataUnstable,
			`"org.matrix.msc3077.sdp_stream_metadata":{"a":{"purpose":"m.screenshare"}}`,
			with(func(s *mesh.Signal) {
				s.Kind, s.Streams = mesh.Metadata, map[string]mesh.Stream{"a": {Purpose: "m.screenshare"}}
			}),
		},
		{
			"hangup", typeHangup, `"reason":"ice_failed","seq":"7"`,
			with(func(s *mesh.Signal) { s.Kind, s.Seq, s.Reason = mesh.Hangup, 7, "ice_failed" }),
		},
		{
			"select answer", typeSelectAnswer, `"selected_party_id":"X","seq":1.5`,
			with(func(s *mesh.Signal) { s.Kind, s.Selected = mesh.SelectAnswer, "X" }),
		},
		{"unknown", "m.call.ping", `"seq":{}`, with(func(s *mesh.Signal) { s.Kind = mesh.Other })},
		{"negative", typeReject, `"seq":-4`, with(func(s *mesh.Signal) { s.Kind = mesh.Reject })},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, device, err := decodeSignal(test.evtType, json.RawMessage("{"+envelope+","+test.fields+"}"))
			if err != nil || device != "D" {
				t.Fatalf("decodeSignal = %v, %q", err, device)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMonstrousSignalsAreRefused(t *testing.T) {
	long := strings.Repeat("x", maxSDP+1)
	for _, content := range []string{
		`null and void`, `{`, ``, `{"call_id":"` + long + `"}`,
		`{"offer":{"type":"offer","sdp":"` + long + `"}}`,
		`{"candidates":[` + strings.TrimSuffix(strings.Repeat(`{"candidate":"c"},`, maxSignalCandidates+1), ",") + `]}`,
		`{"candidates":[{"candidate":"` + long + `"}]}`,
	} {
		if sig, _, err := decodeSignal(typeInvite, json.RawMessage(content)); err == nil {
			t.Errorf("decodeSignal(%.60q) = %+.60v, want an error", content, sig)
		}
	}
}

// A field of the wrong type costs only itself.
func TestWrongTypesAreLeftOut(t *testing.T) {
	fields := []string{
		"call_id", "conf_id", "version", "party_id", "device_id", "sender_session_id", "dest_session_id", "seq", "lifetime",
		"invitee", "offer", "answer", "description", "capabilities", "candidates", "reason", "selected_party_id",
		"sdp_stream_metadata", "org.matrix.msc3077.sdp_stream_metadata", "org.matrix.msgid", "asserted_identity",
	}
	for _, field := range fields {
		for _, value := range []string{`7`, `-1e400`, `1.5`, `"x"`, `true`, `null`, `[]`, `[7]`, `{}`, `{"sdp":7,"type":[]}`, `{"a":7}`, `[{"candidate":7}]`} {
			content := fmt.Sprintf(`{%q:%s,"reason":"why","conf_id":"conf"}`, field, value)
			for evtType := range signalKinds {
				sig, _, err := decodeSignal(evtType, json.RawMessage(content))
				if err != nil && value != `-1e400` {
					t.Errorf("decodeSignal(%s, %s) = %v", evtType, content, err)
				}
				if err == nil && (sig.ConfID != "conf" || sig.Reason != "why") {
					t.Errorf("decodeSignal(%s, %s) lost the other fields: %+v", evtType, content, sig)
				}
			}
		}
	}
	for _, content := range []string{`[]`, `"x"`, `7`, `null`, `{}`} {
		if sig, _, err := decodeSignal(typeInvite, json.RawMessage(content)); err != nil || sig.CallID != "" {
			t.Errorf("decodeSignal(%s) = %+v, %v, want a signal without call id", content, sig, err)
		}
	}
}

// Every client gets what it looks for: both metadata keys, party and device id, version "1", lifetime, capabilities.
func TestInviteIsWrittenForEveryClient(t *testing.T) {
	evtType, content := encodeSignal(mesh.Signal{
		Kind: mesh.Invite, ConfID: "conf", CallID: "c1", SenderSession: "g", DestSession: "s", Seq: 0, Invitee: "@a:x",
		SDP:     mesh.SDP{Type: "offer", Text: "v=0"},
		Streams: map[string]mesh.Stream{"st": {Purpose: "m.usermedia", AudioMuted: new(false), VideoMuted: new(true)}},
	}, "GHOST", "msg")
	want := `{"call_id":"c1","conf_id":"conf","version":"1","party_id":"GHOST","device_id":"GHOST",` +
		`"sender_session_id":"g","dest_session_id":"s","seq":0,"org.matrix.msgid":"msg","lifetime":60000,"invitee":"@a:x",` +
		`"offer":{"type":"offer","sdp":"v=0"},"capabilities":{"m.call.transferee":false,"m.call.dtmf":true},` +
		`"sdp_stream_metadata":{"st":{"purpose":"m.usermedia","audio_muted":false,"video_muted":true}},` +
		`"org.matrix.msc3077.sdp_stream_metadata":{"st":{"purpose":"m.usermedia","audio_muted":false,"video_muted":true}}}`
	got, err := json.Marshal(content)
	if err != nil || evtType != typeInvite || string(got) != want {
		t.Errorf("encodeSignal = %s, %v\n%s\nwant\n%s", evtType, err, got, want)
	}
}

func TestOnlyNumberedSignalsHaveASeq(t *testing.T) {
	for kind, evtType := range signalTypes {
		seq := mesh.NoSeq
		if kind != mesh.Reject {
			seq = 5
		}
		gotType, content := encodeSignal(mesh.Signal{Kind: kind, Seq: seq}, "GHOST", "")
		got, err := json.Marshal(content)
		if err != nil || gotType != evtType || strings.Contains(string(got), `"seq"`) != (kind != mesh.Reject) {
			t.Errorf("encodeSignal(%s) = %s %s, %v", kind, gotType, got, err)
		}
	}
}

func FuzzDecodeSignal(f *testing.F) {
	f.Add(typeInvite, []byte(`{`+envelope+`,"seq":0,"offer":{"type":"offer","sdp":"v=0"}}`))
	f.Add(typeCandidates, []byte(`{"candidates":[{"candidate":"x","sdpMLineIndex":65536}]}`))
	f.Add(typeMetadata, []byte(`{"sdp_stream_metadata":{"a":null}}`))
	f.Fuzz(func(t *testing.T, evtType string, content []byte) {
		sig, _, err := decodeSignal(evtType, content)
		if err != nil {
			return
		}
		if sig.Seq < mesh.NoSeq || tooBig(sig) {
			t.Errorf("decodeSignal(%q) = %+v", content, sig)
		}
		if _, content := encodeSignal(sig, "GHOST", "msg"); content == nil {
			t.Error("encodeSignal = nil")
		}
	})
}

// matrix-js-sdk's applications show a key pad only to who says that it understands one.
func TestInviteAndAnswerSayWhatWeCanDo(t *testing.T) {
	for _, kind := range []mesh.Kind{mesh.Invite, mesh.Answer} {
		_, content := encodeSignal(mesh.Signal{Kind: kind, Seq: mesh.NoSeq}, "GHOST", "m")
		got, err := json.Marshal(content.Capabilities)
		if want := `{"m.call.transferee":false,"m.call.dtmf":true}`; err != nil || string(got) != want {
			t.Errorf("capabilities of %s = %s, %v, want %s", kind, got, err, want)
		}
	}
}
