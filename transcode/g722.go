package transcode

// ITU-T G.722 at 64 kb/s: sound at 16 kHz is split by a quadrature mirror filter into two bands at 8 kHz, the lower of
// which gets six bits a sample, the upper two. The arithmetic is the recommendation's, to the bit; block names in
// comments are its own (§6.2).

// Tables of the recommendation.
var (
	g722Decisions = [32]int{ // table 17: decision levels of the lower band's quantizer
		0, 35, 72, 110, 150, 190, 233, 276, 323, 370, 422, 473, 530, 587, 650, 714,
		786, 858, 940, 1023, 1121, 1219, 1339, 1458, 1612, 1765, 1980, 2195, 2557, 2919, 1 << 30, 1 << 30,
	}
	g722Levels4 = [16]int{ // table 19: outputs of the inverse quantizer, cut to four bits
		0, -20456, -12896, -8968, -6288, -4240, -2584, -1200, 20456, 12896, 8968, 6288, 4240, 2584, 1200, 0,
	}
	g722Levels6 = [64]int{ // table 18: the same with all six
		-136, -136, -136, -136, -24808, -21904, -19008, -16704, -14984, -13512, -12280, -11192, -10232, -9360, -8576, -7856,
		-7192, -6576, -6000, -5456, -4944, -4464, -4008, -3576, -3168, -2776, -2400, -2032, -1688, -1360, -1040, -728,
		24808, 21904, 19008, 16704, 14984, 13512, 12280, 11192, 10232, 9360, 8576, 7856, 7192, 6576, 6000, 5456,
		4944, 4464, 4008, 3576, 3168, 2776, 2400, 2032, 1688, 1360, 1040, 728, 432, 136, -432, -136,
	}
	g722Levels2 = [4]int{-7408, -1616, 7408, 1616} // table 22: of the upper band

	g722LowScale  = [16]int{-60, 3042, 1198, 538, 334, 172, 58, -30, 3042, 1198, 538, 334, 172, 58, -30, -60} // tables 20 and 21
	g722HighScale = [4]int{798, -214, 798, -214}                                                              // table 23
	g722Log       = [32]int{
		2048, 2093, 2139, 2186, 2233, 2282, 2332, 2383, 2435, 2489, 2543, 2599, 2656, 2714, 2774, 2834,
		2896, 2960, 3025, 3091, 3158, 3228, 3298, 3371, 3444, 3520, 3597, 3676, 3756, 3838, 3922, 4008,
	}
)

// Step sizes: what each band begins with, and how far their logarithm may go.
const (
	g722LowFirst, g722HighFirst = 32, 8
	g722LowMost, g722HighMost   = 18432, 22528
	g722LowShift, g722HighShift = 8, 10
)

// g722Band is the adaptive predictor and the step size of one band.
type g722Band struct {
	guess int    // s: what the next sample is predicted to be
	zeros int    // sz: the part of it that the zero section has
	step  int    // det
	log   int    // nb: logarithm of the step
	a1    int    // coefficients of the pole section
	a2    int    //
	b     [6]int // and of the zero section
	r1    int    // twice the sample before, as far as 16 bits go
	d     [6]int // twice the differences before, the youngest first, as far as 16 bits go
	p1    int    // the last two partial reconstructions: only their signs count
	p2    int
}

func clip16(x int) int { return min(max(x, -32768), 32767) }

// apart is −1 when the signs differ, else 0.
func apart(x, y int) int { return (x ^ y) >> 63 }

// negateIf is −x for mask −1 and x for mask 0.
func negateIf(mask, x int) int { return (x ^ mask) - mask }

// rescale adapts the step size (LOGSCL and SCALEL, LOGSCH and SCALEH).
func (b *g722Band) rescale(by, most, shift int) {
	b.log = min(max(b.log*127>>7+by, 0), most)
	mantissa := g722Log[b.log>>6&31]
	if down := shift - b.log>>11; down >= 0 {
		b.step = mantissa >> down << 2
	} else {
		b.step = mantissa << -down << 2
	}
}

// adapt takes the quantized difference d of this sample and predicts the next one (RECONS to PREDIC).
func (b *g722Band) adapt(d int) {
	r := clip16(b.guess + d)
	p := clip16(b.zeros + d)

	first := apart(p, b.p1)
	a2 := min(negateIf(^first, clip16(b.a1<<2)), 32767)>>7 + negateIf(apart(p, b.p2), 128) + b.a2*32512>>15
	a2 = min(max(a2, -12288), 12288)
	limit := clip16(15360 - a2)
	a1 := min(max(clip16(negateIf(first, 192)+b.a1*32640>>15), -limit), limit)

	push := 128
	if d == 0 {
		push = 0
	}
	// These sums stay within 16 bits by themselves.
	b0 := negateIf(apart(d, b.d[0]), push) + b.b[0]*32640>>15
	b1 := negateIf(apart(d, b.d[1]), push) + b.b[1]*32640>>15
	b2 := negateIf(apart(d, b.d[2]), push) + b.b[2]*32640>>15
	b3 := negateIf(apart(d, b.d[3]), push) + b.b[3]*32640>>15
	b4 := negateIf(apart(d, b.d[4]), push) + b.b[4]*32640>>15
	b5 := negateIf(apart(d, b.d[5]), push) + b.b[5]*32640>>15
	b.b = [6]int{b0, b1, b2, b3, b4, b5}

	d0, d1, d2, d3, d4, d5 := clip16(d+d), b.d[0], b.d[1], b.d[2], b.d[3], b.d[4]
	b.d = [6]int{d0, d1, d2, d3, d4, d5}
	r2 := b.r1
	b.r1 = clip16(r + r)
	b.p1, b.p2 = p, b.p1
	b.a1, b.a2 = a1, a2

	poles := clip16(a1*b.r1>>15 + a2*r2>>15)
	zeros := clip16(b5*d5>>15 + b4*d4>>15)
	zeros = clip16(zeros + b3*d3>>15)
	zeros = clip16(zeros + b2*d2>>15)
	zeros = clip16(zeros + b1*d1>>15)
	b.zeros = clip16(zeros + b0*d0>>15)
	b.guess = clip16(poles + b.zeros)
}

// g722Reach is how many samples before the newest pair the mirror filter looks at.
const g722Reach = 22

// mirror is the filter that parts the bands and joins them (table 11). It is written out because a loop takes twice the
// time.
func mirror(x *[g722Reach + 2]int32) (odd, even int) {
	a := 3*x[0] - 11*x[2] + 12*x[4] + 32*x[6] - 210*x[8] + 951*x[10] +
		3876*x[12] - 805*x[14] + 362*x[16] - 156*x[18] + 53*x[20] - 11*x[22]
	b := 3*x[23] - 11*x[21] + 12*x[19] + 32*x[17] - 210*x[15] + 951*x[13] +
		3876*x[11] - 805*x[9] + 362*x[7] - 156*x[5] + 53*x[3] - 11*x[1]
	return int(a), int(b)
}

// g722Encoder encodes sound at 16 kHz. The zero value must be reset.
type g722Encoder struct {
	low, high g722Band
	past      [g722Reach + 2*FrameSamples]int32 // the last samples, and a frame after them
}

func (e *g722Encoder) reset() {
	*e = g722Encoder{low: g722Band{step: g722LowFirst}, high: g722Band{step: g722HighFirst}}
}

// encode writes a byte for each two samples, of a frame at most.
func (e *g722Encoder) encode(payload []byte, pcm []int16) {
	for i, x := range pcm {
		e.past[g722Reach+i] = int32(x)
	}
	for i := range payload[:len(pcm)/2] {
		odd, even := mirror((*[g722Reach + 2]int32)(e.past[2*i:]))
		payload[i] = e.lower((even+odd)>>14) | e.upper((even-odd)>>14)
	}
	copy(e.past[:g722Reach], e.past[len(pcm):])
}

func (e *g722Encoder) lower(x int) byte {
	b := &e.low
	difference := clip16(x - b.guess)
	negative := difference >> 63
	size := difference ^ negative // QUANTL: of a negative one, one less
	i := 0
	for _, half := range [5]int{16, 8, 4, 2, 1} { // the greatest level that size reaches
		if size >= g722Decisions[i+half]*b.step>>12 {
			i += half
		}
	}
	code := 61 - i
	if negative != 0 {
		code = 33 - i
		if i < 2 {
			code = 63 - i
		}
	}
	four := code >> 2
	quantized := b.step * g722Levels4[four] >> 15
	b.rescale(g722LowScale[four], g722LowMost, g722LowShift)
	b.adapt(quantized)
	return byte(code)
}

func (e *g722Encoder) upper(x int) byte {
	b := &e.high
	difference := clip16(x - b.guess)
	negative := difference >> 63
	code := 3
	if difference^negative >= 564*b.step>>12 {
		code = 2
	}
	code += 2 * negative
	quantized := b.step * g722Levels2[code] >> 15
	b.rescale(g722HighScale[code], g722HighMost, g722HighShift)
	b.adapt(quantized)
	return byte(code << 6)
}

// g722Decoder decodes to sound at 16 kHz. The zero value must be reset.
type g722Decoder struct {
	low, high g722Band
	past      [g722Reach + 2*FrameSamples]int32 // sums and differences of the bands
}

func (d *g722Decoder) reset() {
	*d = g722Decoder{low: g722Band{step: g722LowFirst}, high: g722Band{step: g722HighFirst}}
}

// decode writes two samples for each byte and returns their number.
func (d *g722Decoder) decode(pcm []int16, payload []byte) int {
	done := 0
	for len(payload) > 0 && done+2 <= len(pcm) {
		n := min(len(payload), FrameSamples, (len(pcm)-done)/2)
		d.decodeFrame(pcm[done:], payload[:n])
		payload = payload[n:]
		done += 2 * n
	}
	return done
}

func (d *g722Decoder) decodeFrame(pcm []int16, payload []byte) {
	for i, code := range payload {
		low, high := d.lower(int(code&0x3F)), d.upper(int(code>>6))
		d.past[g722Reach+2*i], d.past[g722Reach+2*i+1] = int32(low+high), int32(low-high)
		odd, even := mirror((*[g722Reach + 2]int32)(d.past[2*i:]))
		pcm[2*i], pcm[2*i+1] = saturate(even>>11), saturate(odd>>11)
	}
	copy(d.past[:g722Reach], d.past[2*len(payload):])
}

func (d *g722Decoder) lower(code int) int {
	b := &d.low
	sound := b.guess + b.step*g722Levels6[code]>>15
	four := code >> 2
	quantized := b.step * g722Levels4[four] >> 15
	b.rescale(g722LowScale[four], g722LowMost, g722LowShift)
	b.adapt(quantized)
	return min(max(sound, -16384), 16383)
}

func (d *g722Decoder) upper(code int) int {
	b := &d.high
	quantized := b.step * g722Levels2[code] >> 15
	sound := b.guess + quantized
	b.rescale(g722HighScale[code], g722HighMost, g722HighShift)
	b.adapt(quantized)
	return min(max(sound, -16384), 16383)
}
