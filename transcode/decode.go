package transcode

// phoneDecoder turns what a phone sends into sound of the band of the codec agreed on. Neither law nor G.722 has a
// concealment of its own: they share one.
type phoneDecoder struct {
	codec  Codec
	band   band
	g722   g722Decoder
	opus   *opusDecoder // nil unless agreed on
	last   packetKind   // of the packet decoded last
	waves  concealer
	widen  widener
	narrow [maxOpusSamples]int16
}

// agree prepares for a codec.
func (d *phoneDecoder) agree(c Codec) error {
	var lib *opusDecoder
	if c == Opus {
		var err error
		if lib, err = newOpusDecoder(wide); err != nil {
			return err
		}
	}
	*d = phoneDecoder{codec: c, band: c.band(), opus: lib, waves: concealer{band: c.band()}}
	d.g722.reset()
	return nil
}

func (d *phoneDecoder) decode(pcm []int16, p *packet) int {
	d.last = p.kind
	switch p.kind {
	case kindG722:
		return d.g722.decode(pcm, p.payload)
	case kindOpus:
		return d.opus.decode(pcm, p)
	}
	law := PCMU
	if p.kind == kindALaw {
		law = PCMA
	}
	if d.band == narrow {
		return law.decode(pcm, p.payload)
	}
	n := law.decode(d.narrow[:], p.payload) // a law while G.722 is agreed on
	d.widen.widen(pcm, d.narrow[:n])
	return 2 * n
}

func (d *phoneDecoder) recover(pcm []int16, next *packet) bool {
	return next.kind == kindOpus && d.opus.recover(pcm, next)
}

func (d *phoneDecoder) conceal(pcm []int16) {
	if d.last == kindOpus {
		d.opus.conceal(pcm)
		return
	}
	d.waves.conceal(pcm)
}

func (d *phoneDecoder) heard(pcm []int16) {
	if d.last != kindOpus {
		d.waves.heard(pcm)
	}
}

func (d *phoneDecoder) bridge(pcm []int16) {
	if d.last != kindOpus { // libopus smooths the return from its own concealment
		d.waves.bridge(pcm)
	}
}
