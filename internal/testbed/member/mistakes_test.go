package member_test

import (
	"context"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/webrtc/v4"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"trunkline/internal/testbed/homeserver"
	"trunkline/internal/testbed/member"
)

// bungler is a ghost that signals by hand, and not well.
type bungler struct {
	client *mautrix.Client
	to     *member.Member
	device id.DeviceID
	conf   string
}

func (b *bungler) send(t *testing.T, kind string, fields map[string]any) {
	t.Helper()
	body := map[string]any{
		"call_id": "c1", "conf_id": b.conf, "version": "1", "party_id": string(b.client.DeviceID),
		"device_id": string(b.client.DeviceID), "sender_session_id": "bungle", "dest_session_id": b.to.View().Session,
		"seq": 0,
	}
	for k, v := range fields {
		if v == nil {
			delete(body, k)
		} else {
			body[k] = v
		}
	}
	_, err := b.client.SendToDevice(context.Background(), event.Type{Type: kind, Class: event.ToDeviceEventType},
		&mautrix.ReqSendToDevice{Messages: map[id.UserID]map[id.DeviceID]*event.Content{
			b.to.UserID(): {b.device: {Raw: body}},
		}})
	must(t, err)
}

// goodOffer is an offer as the bridge should send it.
func goodOffer(t *testing.T) map[string]any {
	t.Helper()
	pc, err := webrtc.NewPeerConnection(webrtc.Configuration{})
	must(t, err)
	defer func() { must(t, pc.GracefulClose()) }()
	track, err := webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus}, "audio0", "ghost")
	must(t, err)
	_, err = pc.AddTrack(track)
	must(t, err)
	offer, err := pc.CreateOffer(nil)
	must(t, err)
	sdp := offer.SDP + "a=candidate:1 1 udp 2130706431 127.0.0.1 9 typ host\r\n"
	md := map[string]any{"ghost": map[string]any{"purpose": "m.usermedia", "audio_muted": false, "video_muted": true}}
	return map[string]any{
		"lifetime": 60000, "offer": map[string]any{"type": "offer", "sdp": sdp},
		"sdp_stream_metadata": md, "org.matrix.msc3077.sdp_stream_metadata": md,
	}
}

func TestMistakesOfAGhostAreComplainedAbout(t *testing.T) {
	good := goodOffer(t)
	invite := func(change map[string]any) map[string]any {
		m := maps.Clone(good)
		maps.Copy(m, change)
		return m
	}
	wrongStream := map[string]any{"other": map[string]any{"purpose": "m.usermedia"}}
	for name, c := range map[string]struct {
		kind   member.Kind
		msg    string
		fields map[string]any
		want   string // part of the complaint, "" = none
	}{
		"nothing wrong":     {member.JSSDK, "m.call.invite", good, ""},
		"plain to hydrogen": {member.Hydrogen, "m.call.invite", good, "not encrypted"},
		"no seq":            {member.JSSDK, "m.call.invite", invite(map[string]any{"seq": nil}), "seq on the six types"},
		"seq begins at 1":   {member.JSSDK, "m.call.invite", invite(map[string]any{"seq": 1}), "is never read"},
		"numbered reject":   {member.JSSDK, "m.call.reject", map[string]any{}, "seq on the six types"},
		"no lifetime":       {member.JSSDK, "m.call.invite", invite(map[string]any{"lifetime": nil}), "no lifetime"},
		"no version":        {member.JSSDK, "m.call.invite", invite(map[string]any{"version": nil}), "no version"},
		"no party":          {member.JSSDK, "m.call.invite", invite(map[string]any{"party_id": nil}), "no party_id"},
		"no session":        {member.JSSDK, "m.call.invite", invite(map[string]any{"sender_session_id": nil}), "part of the envelope"},
		"for somebody else": {member.JSSDK, "m.call.invite", invite(map[string]any{"invitee": "@bob:hs.test"}), "is for @bob"},
		"one metadata key":  {member.JSSDK, "m.call.invite", invite(map[string]any{"org.matrix.msc3077.sdp_stream_metadata": nil}), "one of the two"},
		"unknown stream":    {member.JSSDK, "m.call.invite", invite(map[string]any{"sdp_stream_metadata": wrongStream}), `stream "ghost" is not`},
		"no candidates": {member.JSSDK, "m.call.invite", invite(map[string]any{"offer": map[string]any{
			"type": "offer", "sdp": strings.ReplaceAll(good["offer"].(map[string]any)["sdp"].(string), "a=candidate", "a=x"),
		}}), "no candidate"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hs, members := bubble(t, c.kind, "alice")
				alice := members[0]
				room := callRoom(t, alice)
				b := newBungler(t, hs, room, alice)
				must(t, alice.JoinCall(t.Context(), room))
				time.Sleep(time.Second)
				b.send(t, c.msg, c.fields)
				time.Sleep(time.Second)
				got := strings.Join(alice.Complaints(), "; ")
				if c.want == "" && got != "" || !strings.Contains(got, c.want) {
					t.Errorf("complaints %q, want %q", got, c.want)
				}
			})
		})
	}
}

func newBungler(t *testing.T, hs *homeserver.Server, room id.RoomID, alice *member.Member) *bungler {
	t.Helper()
	u := hs.User("_sip_1")
	hs.Join(room, u.UserID)
	client, err := mautrix.NewClient(hs.URL(), u.UserID, u.AccessToken)
	must(t, err)
	client.DeviceID, client.Client = u.DeviceID, hs.Net().Client()
	conf, err := alice.AwaitCall(t.Context(), room)
	must(t, err)
	hs.SetState(room, u.UserID, "org.matrix.msc3401.call.member", string(u.UserID), map[string]any{
		"m.calls": []any{map[string]any{"m.call_id": conf, "m.devices": []any{map[string]any{
			"device_id": u.DeviceID, "session_id": "bungle", "expires_ts": time.Now().Add(time.Hour).UnixMilli(),
			"feeds": []any{map[string]any{"purpose": "m.usermedia"}},
		}}}},
	})
	return &bungler{client, alice, alice.Client().DeviceID, conf}
}
