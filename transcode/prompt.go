package transcode

// While a prompt sounds the others are turned down to a quarter (12 dB), smoothly, so that both can be followed.
const (
	fullGain   = 256
	duckedGain = fullGain / 4
	duckStep   = 2 // per sample: 12 ms from one to the other
)

// Prompter plays recorded sound: pieces of PCM at the desk's rate, one after the other. The zero value is silent.
type Prompter struct {
	pieces [][]int16
	at     int // sample of the first piece
}

// Play starts from the beginning. The pieces are read while they play; nobody may change them.
func (p *Prompter) Play(pieces [][]int16) { *p = Prompter{pieces: pieces} }

// Playing reports whether there is more to come.
func (p *Prompter) Playing() bool { return len(p.pieces) > 0 }

// Stop ends it.
func (p *Prompter) Stop() { *p = Prompter{} }

// Read writes the next samples. What follows the end is silence.
func (p *Prompter) Read(pcm []int16) {
	for len(pcm) > 0 && len(p.pieces) > 0 {
		n := copy(pcm, p.pieces[0][p.at:])
		pcm = pcm[n:]
		if p.at += n; p.at == len(p.pieces[0]) {
			p.pieces, p.at = p.pieces[1:], 0
		}
	}
	clear(pcm)
}

// Say lets the phone, and nobody else, hear recorded sound in front of all others; it replaces what it was told before.
func (p *Phone) Say(pieces [][]int16) { p.prompter.Play(pieces) }

// Saying reports whether the phone is being told something.
func (p *Phone) Saying() bool { return p.prompter.Playing() }

// StopSaying ends it.
func (p *Phone) StopSaying() { p.prompter.Stop() }

// duck turns the frame that the phone is about to hear down while it is being told something, and adds that.
func (p *Phone) duck(pcm []int16) (clipped uint64) {
	target := fullGain
	if p.prompter.Playing() {
		target = duckedGain
	}
	p.prompter.Read(p.prompt.pcm[:])
	prompt := p.prompt.in(p.voice.band)
	for i, x := range pcm {
		switch {
		case i%int(p.voice.band) != 0: // as fast in the wide band
		case p.gain < target:
			p.gain += duckStep
		case p.gain > target:
			p.gain -= duckStep
		}
		sum := int(x)*p.gain/fullGain + int(prompt[i])
		pcm[i] = saturate(sum)
		if int(pcm[i]) != sum {
			clipped++
		}
	}
	return clipped
}

// told reports whether duck has something to do.
func (p *Phone) told() bool { return p.gain != fullGain || p.prompter.Playing() }
