package listen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Sound is 16 bit mono at a rate.
type Sound struct {
	Rate int
	PCM  []int16
}

// ErrFormat says that a file is not 16 bit PCM in WAV.
var ErrFormat = errors.New("not a 16 bit PCM WAV file")

const maxWAV = 256 << 20

// ReadWAV reads a 16 bit PCM file. Of several channels it takes the first. Files written to a pipe, whose lengths are
// wrong, are read to their end.
func ReadWAV(r io.Reader) (Sound, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxWAV))
	if err != nil {
		return Sound{}, fmt.Errorf("read wav: %w", err)
	}
	if len(data) < 12 || string(data[:4]) != "RIFF" || string(data[8:12]) != "WAVE" {
		return Sound{}, fmt.Errorf("read wav: %w", ErrFormat)
	}
	var rate, channels int
	for data = data[12:]; len(data) >= 8; {
		id, size := string(data[:4]), int(binary.LittleEndian.Uint32(data[4:]))
		body := data[8:]
		body = body[:min(size, len(body))]
		switch id {
		case "fmt ":
			if len(body) < 16 || binary.LittleEndian.Uint16(body[14:]) != 16 {
				return Sound{}, fmt.Errorf("read wav: %w", ErrFormat)
			}
			channels = int(binary.LittleEndian.Uint16(body[2:]))
			rate = int(binary.LittleEndian.Uint32(body[4:]))
		case "data":
			if rate <= 0 || channels <= 0 {
				return Sound{}, fmt.Errorf("read wav: %w", ErrFormat)
			}
			return Sound{Rate: rate, PCM: samples(body, channels)}, nil
		}
		data = data[8+len(body):]
		if size%2 == 1 && len(data) > 0 {
			data = data[1:]
		}
	}
	return Sound{}, fmt.Errorf("read wav: no sound: %w", ErrFormat)
}

func samples(body []byte, channels int) []int16 {
	pcm := make([]int16, len(body)/2/channels)
	for i := range pcm {
		pcm[i] = int16(binary.LittleEndian.Uint16(body[2*channels*i:]))
	}
	return pcm
}

// WriteWAV writes a mono file.
func WriteWAV(w io.Writer, s Sound) error {
	b := make([]byte, 0, 44+2*len(s.PCM))
	b = append(b, "RIFF"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(36+2*len(s.PCM)))
	b = append(b, "WAVEfmt "...)
	b = binary.LittleEndian.AppendUint32(b, 16)
	b = binary.LittleEndian.AppendUint16(b, 1) // PCM
	b = binary.LittleEndian.AppendUint16(b, 1) // mono
	b = binary.LittleEndian.AppendUint32(b, uint32(s.Rate))
	b = binary.LittleEndian.AppendUint32(b, uint32(2*s.Rate))
	b = binary.LittleEndian.AppendUint16(b, 2)
	b = binary.LittleEndian.AppendUint16(b, 16)
	b = append(b, "data"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(2*len(s.PCM)))
	for _, x := range s.PCM {
		b = binary.LittleEndian.AppendUint16(b, uint16(x))
	}
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("write wav: %w", err)
	}
	return nil
}
