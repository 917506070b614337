package transcode

import (
	"fmt"

	"github.com/pion/rtp"
)

// When to encode with forward error correction, and when no longer.
const (
	lossyAbove   = 0.03
	cleanBelow   = 0.01
	calmFrames   = 500 // of little loss: 10 s
	hastyFrames  = 100 // wait so long for a pause to change in
	lossyAtLeast = 5   // percent told to the encoder
	lossyAtMost  = 25
)

// PeerLoss tells how much of what this phone says is lost on the way to its peers: the worst fraction of the latest
// receiver reports (RFC 3550 §6.4.1), from 0 to 1. Above 3 % the phone is encoded with forward error correction, until
// the loss has stayed below 1 % for ten seconds. The change is made in a pause of speech if one comes soon.
func (p *Phone) PeerLoss(fraction float64) error {
	p.loss = fraction
	if fraction < lossyAbove {
		return nil
	}
	p.calm = 0
	if p.lossy == nil {
		e, err := newLossyEncoder(p.voice.band)
		if err != nil {
			return fmt.Errorf("encode against loss: %w", err)
		}
		p.lossy = e
	}
	p.wantLossy = true
	if err := p.lossy.expect(min(max(int(fraction*100), lossyAtLeast), lossyAtMost)); err != nil {
		return fmt.Errorf("encode against loss: %w", err)
	}
	return nil
}

// encoder returns the one to be used for this frame.
func (p *Phone) encoder() *opusEncoder {
	if p.loss < cleanBelow {
		p.calm++
	} else {
		p.calm = 0
	}
	if p.calm >= calmFrames {
		p.wantLossy = false
	}
	if p.wantLossy == p.usingLossy {
		p.waited = 0
	} else if p.waited++; p.quiet > 0 || p.waited >= hastyFrames {
		p.usingLossy = p.wantLossy
	}
	if p.usingLossy {
		return p.lossy
	}
	return p.clean
}

// toPeers packs the frame just pulled for the phone's peers, nil when there is nothing to send. Time goes on in pauses
// and sequence numbers do not; the marker says where sound begins again (RFC 3551 §4.1).
func (p *Phone) toPeers() *rtp.Packet {
	p.peerPacket.Timestamp += FrameSamples * opusClock
	if p.audible() {
		p.quiet = 0
	} else {
		p.quiet++
	}
	encoder := p.encoder()
	n := 0
	switch {
	case p.quiet < gateHangover:
		if n = encoder.encode(p.peerPayload[:], p.voice.pcm()); n == 0 {
			return nil
		}
		p.peerPacket.Marker = p.resting
		p.resting = false
	case !p.resting || p.quiet%keepAlive == 0:
		p.peerPayload[0] = opusQuietByte(p.voice.band)
		n = 1
		p.peerPacket.Marker = false
		p.resting = true
	default:
		p.stats.Gated++
		return nil
	}
	p.peerPacket.SequenceNumber++
	p.peerPacket.Payload = p.peerPayload[:n]
	p.stats.PeerFrames++
	return &p.peerPacket
}

// audible reports whether the frame is more than the noise of an idle line.
func (p *Phone) audible() bool {
	pcm := p.voice.pcm()
	return p.voice.heard && energy(pcm) > gateRMS*gateRMS*int64(len(pcm))
}

// firstPeerHeader steps the header back by one frame, because toPeers steps before it sends.
func firstPeerHeader(c PhoneConfig) rtp.Header {
	return rtp.Header{
		Version: 2, PayloadType: c.PeerPayloadType, SSRC: c.PeerSSRC,
		SequenceNumber: c.PeerFirstSeq - 1,
		Timestamp:      c.PeerFirstTimestamp - FrameSamples*opusClock,
	}
}
