package transcode

import "github.com/pion/rtp"

// toPeers packs the frame just pulled for the phone's peers, nil when there is nothing to send. Time goes on in pauses
// and sequence numbers do not; the marker says where sound begins again (RFC 3551 §4.1).
func (p *Phone) toPeers() *rtp.Packet {
	p.peerPacket.Timestamp += FrameSamples * opusClock
	if p.audible() {
		p.quiet = 0
	} else {
		p.quiet++
	}
	n := 0
	switch {
	case p.quiet < gateHangover:
		if n = p.encoder.encode(p.peerPayload[:], p.voice.pcm[:]); n == 0 {
			return nil
		}
		p.peerPacket.Marker = p.resting
		p.resting = false
	case !p.resting || p.quiet%keepAlive == 0:
		p.peerPayload[0] = opusQuietByte
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
	return p.voice.heard && energy(p.voice.pcm[:]) > gateRMS*gateRMS*FrameSamples
}

// firstPeerHeader steps the header back by one frame, because toPeers steps before it sends.
func firstPeerHeader(c PhoneConfig) rtp.Header {
	return rtp.Header{
		Version: 2, PayloadType: c.PeerPayloadType, SSRC: c.PeerSSRC,
		SequenceNumber: c.PeerFirstSeq - 1,
		Timestamp:      c.PeerFirstTimestamp - FrameSamples*opusClock,
	}
}
