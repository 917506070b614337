package bridge

import (
	"errors"
	"fmt"

	"maunium.net/go/mautrix/id"

	"trunkline/bridge/config"
	"trunkline/bridge/leg"
	"trunkline/transcode"
)

// A phone that is not answered sits at a desk of its own: whatever it hears is ours, and nobody hears it. Its stream goes on
// at the desk of its conference, with the same SSRC and the next numbers.

// errNoSession says that the phone made no offer, so there is nowhere to send sound before the answer (RFC 3261 §13.2.1).
var errNoSession = errors.New("the phone has offered no session yet")

// playTone lets the phone hear a tone instead of the one before.
func (a *actor) playTone(t leg.Tone) {
	if v := a.voice.Load(); v != nil { // it was answered, and sits at a desk of its own
		v.StopSaying()
		v.Play(toneOf(t, a.options.ToneZone))
		return
	}
	if a.early == nil {
		if err := a.openEarly(); err != nil {
			a.note("play a tone", err)
			a.tell(leg.ToneFailed)
			return
		}
	}
	a.early.Play(toneOf(t, a.options.ToneZone))
}

// openEarly opens the phone's media before the answer.
func (a *actor) openEarly() error {
	dialog, media, err := a.call.Progress()
	if err != nil {
		return fmt.Errorf("open early media: %w", err)
	}
	if dialog.Media.RemoteSDP == "" {
		if err := a.call.Ring(); err != nil { // 180 again: the far end is to make its own ringback
			return fmt.Errorf("ring: %w", err)
		}
		return errNoSession
	}
	a.stream = phoneConfig(media.Format())
	a.early, err = a.bridge.studio.Join(voiceOptions{
		Room: id.RoomID("early " + a.id), Phone: a.stream, ToPhone: media.WriteRTP, ToPeers: nobody,
	})
	return err
}

func (a *actor) stopTone() {
	if a.early != nil {
		a.stream = a.early.Leave()
		a.count(a.early)
		a.early = nil
	}
}

// toneOf is the sound of a tone where the caller lives.
func toneOf(t leg.Tone, zone string) transcode.Tone {
	z := transcode.Europe
	if zone == config.ZoneNorthAmerica {
		z = transcode.NorthAmerica
	}
	switch t {
	case leg.Ringback:
		return transcode.Ringback(z)
	case leg.BusyTone:
		return transcode.Busy(z)
	case leg.Congestion:
		return transcode.Congestion(z)
	case leg.Information:
		return transcode.Information()
	}
	return transcode.Tone{}
}
