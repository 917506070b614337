package phone

// G.711 (ITU-T), written from the tables of the recommendation: µ-law with bias 33 on 14 bits, A-law on 13 bits.

func encodeMuLaw(s int16) byte {
	const bias, clip = 0x84, 32635
	v, sign := int(s), byte(0)
	if v < 0 {
		v, sign = -v, 0x80
	}
	v = min(v, clip) + bias
	exp := 7
	for mask := 0x4000; exp > 0 && v&mask == 0; mask >>= 1 {
		exp--
	}
	return ^(sign | byte(exp<<4) | byte(v>>(exp+3)&0x0f))
}

func decodeMuLaw(b byte) int16 {
	b = ^b
	v := (int(b&0x0f)<<3+0x84)<<(b>>4&7) - 0x84
	if b&0x80 != 0 {
		v = -v
	}
	return int16(v)
}

func encodeALaw(s int16) byte {
	v, sign := int(s), byte(0x80)
	if v < 0 {
		v, sign = -v-1, 0
	}
	exp := 7
	for mask := 0x4000; exp > 0 && v&mask == 0; mask >>= 1 {
		exp--
	}
	var b byte
	if exp == 0 {
		b = byte(v >> 4 & 0x0f)
	} else {
		b = byte(exp<<4) | byte(v>>(exp+3)&0x0f)
	}
	return (sign | b) ^ 0x55
}

func decodeALaw(b byte) int16 {
	b ^= 0x55
	exp, mant := int(b>>4&7), int(b&0x0f)
	v := mant<<4 + 8
	if exp > 0 {
		v = (v + 0x100) << (exp - 1)
	}
	if b&0x80 == 0 {
		v = -v
	}
	return int16(v)
}
