package member

import (
	"github.com/pion/interceptor"
	"github.com/pion/webrtc/v4"
)

type codec struct {
	params webrtc.RTPCodecParameters
	kind   webrtc.RTPCodecType
}

// codecs are those of Chromium's offer, as far as they matter here.
func codecs() []codec {
	audio := func(pt webrtc.PayloadType, mime string, clock uint32, channels uint16, fmtp string) codec {
		return codec{webrtc.RTPCodecParameters{
			PayloadType:        pt,
			RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: mime, ClockRate: clock, Channels: channels, SDPFmtpLine: fmtp},
		}, webrtc.RTPCodecTypeAudio}
	}
	vp8 := webrtc.RTPCodecParameters{
		PayloadType:        96,
		RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000},
	}
	return []codec{
		audio(111, webrtc.MimeTypeOpus, 48000, 2, "minptime=10;useinbandfec=1"),
		audio(0, webrtc.MimeTypePCMU, 8000, 1, ""),
		audio(8, webrtc.MimeTypePCMA, 8000, 1, ""),
		audio(110, "audio/telephone-event", 48000, 1, ""),
		audio(126, "audio/telephone-event", 8000, 1, ""),
		{vp8, webrtc.RTPCodecTypeVideo},
	}
}

func interceptorsOf(media *webrtc.MediaEngine) (*interceptor.Registry, error) {
	registry := &interceptor.Registry{}
	return registry, webrtc.RegisterDefaultInterceptors(media, registry)
}
