package sound

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrFormat says that a file holds no sound that can be read.
var ErrFormat = errors.New("not a WAV file of PCM, A-law or µ-law")

const (
	longest     = 120 * Rate // samples of one sound: two minutes
	largestFile = 32 << 20
)

// Format tags of WAVE (RFC 2361).
const (
	tagPCM        = 1
	tagALaw       = 6
	tagULaw       = 7
	tagExtensible = 0xfffe
)

// format is the "fmt " chunk.
type format struct{ tag, channels, rate, bits int }

// ReadWAV reads a file of any rate from 4 to 192 kHz: 8 or 16 bit PCM, A-law, µ-law. Of several channels it takes the
// first. A file that ends early, or whose lengths are those of a pipe, is read as far as it goes. What is longer than two
// minutes is cut.
func ReadWAV(r io.Reader) ([]int16, error) {
	data, err := io.ReadAll(io.LimitReader(r, largestFile))
	if err != nil {
		return nil, fmt.Errorf("read wav: %w", err)
	}
	if len(data) < 12 || string(data[:4]) != "RIFF" || string(data[8:12]) != "WAVE" {
		return nil, fmt.Errorf("read wav: %w", ErrFormat)
	}
	var f format
	for data = data[12:]; len(data) >= 8; {
		id, size := string(data[:4]), uint64(binary.LittleEndian.Uint32(data[4:]))
		data = data[8:]
		body := data[:min(size, uint64(len(data)))]
		switch id {
		case "fmt ":
			f = readFormat(body)
		case "data":
			if !f.known() {
				return nil, fmt.Errorf("read wav: %w", ErrFormat)
			}
			return resample(f.samples(body), f.rate, longest), nil
		}
		data = data[min(size+size%2, uint64(len(data))):] // chunks are padded to even lengths
	}
	return nil, fmt.Errorf("read wav: no sound: %w", ErrFormat)
}

func readFormat(body []byte) format {
	if len(body) < 16 {
		return format{}
	}
	u16 := func(at int) int { return int(binary.LittleEndian.Uint16(body[at:])) }
	f := format{tag: u16(0), channels: u16(2), rate: int(binary.LittleEndian.Uint32(body[4:])), bits: u16(14)}
	if f.tag == tagExtensible && len(body) >= 26 {
		f.tag = u16(24) // the sub-format begins with the tag that is meant
	}
	return f
}

func (f format) known() bool {
	return f.rate >= 4000 && f.rate <= 192_000 && f.channels >= 1 && f.channels <= 8 &&
		(f.tag == tagPCM && (f.bits == 8 || f.bits == 16) || (f.tag == tagALaw || f.tag == tagULaw) && f.bits == 8)
}

// samples decodes the first channel.
func (f format) samples(body []byte) []int16 {
	width := f.bits / 8
	step := width * f.channels
	n := min(len(body)/step, longest/Rate*f.rate)
	pcm := make([]int16, n)
	for i := range pcm {
		b := body[i*step:]
		switch {
		case f.tag == tagALaw:
			pcm[i] = fromALaw(b[0])
		case f.tag == tagULaw:
			pcm[i] = fromULaw(b[0])
		case width == 1:
			pcm[i] = (int16(b[0]) - 128) << 8 // unsigned
		default:
			pcm[i] = int16(binary.LittleEndian.Uint16(b))
		}
	}
	return pcm
}

// fromULaw decodes ITU-T G.711 µ-law.
func fromULaw(b byte) int16 {
	b = ^b
	x := (int16(b&15)<<3+0x84)<<(b>>4&7) - 0x84
	if b&0x80 != 0 {
		return -x
	}
	return x
}

// fromALaw decodes ITU-T G.711 A-law.
func fromALaw(b byte) int16 {
	b ^= 0x55
	x := int16(b&15)<<4 + 8
	if exponent := b >> 4 & 7; exponent > 0 {
		x = (x + 0x100) << (exponent - 1)
	}
	if b&0x80 == 0 {
		return -x
	}
	return x
}

// toULaw encodes ITU-T G.711 µ-law.
func toULaw(x int16) byte {
	sign, v := byte(0), int(x)
	if v < 0 {
		sign, v = 0x80, -v
	}
	v = min(v, 32635) + 0x84
	exponent := byte(7)
	for mask := 0x4000; exponent > 0 && v&mask == 0; mask >>= 1 {
		exponent--
	}
	return ^(sign | exponent<<4 | byte(v>>(exponent+3))&15)
}

// WriteWAV writes 8 kHz µ-law: half the size of PCM, and what most phones hear anyway.
func WriteWAV(w io.Writer, pcm []int16) error {
	b := make([]byte, 0, 58+len(pcm))
	b = append(b, "RIFF"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(4+26+8+len(pcm)+len(pcm)%2))
	b = append(b, "WAVEfmt "...)
	b = binary.LittleEndian.AppendUint32(b, 18)
	b = binary.LittleEndian.AppendUint16(b, tagULaw)
	b = binary.LittleEndian.AppendUint16(b, 1) // channel
	b = binary.LittleEndian.AppendUint32(b, Rate)
	b = binary.LittleEndian.AppendUint32(b, Rate) // bytes per second
	b = binary.LittleEndian.AppendUint16(b, 1)    // bytes per sample
	b = binary.LittleEndian.AppendUint16(b, 8)    // bits
	b = binary.LittleEndian.AppendUint16(b, 0)    // no more format
	b = append(b, "data"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(pcm)))
	for _, x := range pcm {
		b = append(b, toULaw(x))
	}
	if len(pcm)%2 == 1 {
		b = append(b, 0)
	}
	_, err := w.Write(b)
	return err
}
