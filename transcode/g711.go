package transcode

// The tables are small enough to stay in the cache: 16 KiB, 8 KiB and twice 512 bytes.
var (
	ulawEncoder = encoderTable[[1 << 14]byte](2, encodeULaw)
	alawEncoder = encoderTable[[1 << 13]byte](3, encodeALaw)
	ulawDecoder = decoderTable(decodeULaw)
	alawDecoder = decoderTable(decodeALaw)
)

// encoderTable fills a table indexed by the upper bits of a sample seen as unsigned.
func encoderTable[T [1 << 14]byte | [1 << 13]byte](shift int, encode func(int) byte) *T {
	table := new(T)
	for i := range len(*table) {
		(*table)[i] = encode(int(int16(i << shift)))
	}
	return table
}

func decoderTable(decode func(byte) int) *[256]int16 {
	table := new([256]int16)
	for i := range table {
		table[i] = int16(decode(byte(i)))
	}
	return table
}

// encode writes pcm as G.711 into payload, which has the same length.
func (c Codec) encode(payload []byte, pcm []int16) {
	payload = payload[:len(pcm)]
	if c == PCMA {
		for i, x := range pcm {
			payload[i] = alawEncoder[uint16(x)>>3]
		}
		return
	}
	for i, x := range pcm {
		payload[i] = ulawEncoder[uint16(x)>>2]
	}
}

// decode writes a G.711 payload into pcm and returns the number of samples.
func (c Codec) decode(pcm []int16, payload []byte) int {
	n := min(len(pcm), len(payload))
	table := ulawDecoder
	if c == PCMA {
		table = alawDecoder
	}
	for i, b := range payload[:n] {
		pcm[i] = table[b]
	}
	return n
}

// silence is the payload byte of a sample of value zero.
func (c Codec) silence() byte {
	if c == PCMA {
		return 0xD5
	}
	return 0xFF
}

// encodeULaw follows ITU-T G.711 table 2: 14-bit magnitude plus 33, chord and step, all bits inverted.
func encodeULaw(x int) byte {
	x >>= 2
	sign := byte(0)
	if x < 0 {
		x, sign = -x, 0x80
	}
	x = min(x, 8158) + 33
	chord := 0
	for x>>(chord+6) != 0 {
		chord++
	}
	return ^(sign | byte(chord<<4) | byte(x>>(chord+1))&0x0F)
}

func decodeULaw(b byte) int {
	b = ^b
	x := (int(b&0x0F)<<3+0x84)<<(b>>4&7) - 0x84
	if b&0x80 != 0 {
		return -x
	}
	return x
}

// encodeALaw follows ITU-T G.711 table 1: 13-bit magnitude, even bits inverted.
func encodeALaw(x int) byte {
	x >>= 3
	sign := byte(0x80)
	if x < 0 {
		x, sign = -x-1, 0
	}
	chord := 0
	for x>>(chord+5) != 0 {
		chord++
	}
	step := x >> max(chord, 1) & 0x0F
	return (sign | byte(chord<<4) | byte(step)) ^ 0x55
}

func decodeALaw(b byte) int {
	b ^= 0x55
	x := int(b&0x0F)<<4 + 8
	if chord := b >> 4 & 7; chord > 0 {
		x = (x + 0x100) << (chord - 1)
	}
	if b&0x80 == 0 {
		return -x
	}
	return x
}
