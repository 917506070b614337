package mesh

import (
	"slices"
	"strings"
)

// Session descriptions are handled here as text: whole lines of whole sections, nothing else is touched.

// sections cuts a description into the session part and the media sections, each a list of lines without ends.
func sections(sdp string) [][]string {
	parts := [][]string{nil}
	for line := range strings.Lines(sdp) {
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			continue
		}
		if strings.HasPrefix(line, "m=") {
			parts = append(parts, nil)
		}
		parts[len(parts)-1] = append(parts[len(parts)-1], line)
	}
	return parts
}

func joinSections(parts [][]string) string {
	var b strings.Builder
	for _, part := range parts {
		for _, line := range part {
			b.WriteString(line)
			b.WriteString("\r\n")
		}
	}
	return b.String()
}

// countMedia is the number of media sections.
func countMedia(sdp string) int { return len(sections(sdp)) - 1 }

// iceOf returns the first user fragment of a description, and its candidates.
func iceOf(sdp string) (ufrag string, candidates []string) {
	for line := range strings.Lines(sdp) {
		line = strings.TrimRight(line, "\r\n")
		if value, ok := strings.CutPrefix(line, "a=ice-ufrag:"); ok && ufrag == "" {
			ufrag = value
		} else if strings.HasPrefix(line, "a=candidate:") {
			candidates = append(candidates, line)
		}
	}
	return ufrag, candidates
}

// AnswerFromOffer makes an answer of the offer that hydrogen sends in its place: only as many media sections as the
// answered offer had, only their mids in the bundle, and a setup that is an answer.
func AnswerFromOffer(sdp string, media int) string {
	parts := sections(sdp)
	parts = parts[:min(len(parts), media+1)]
	var mids []string
	for _, part := range parts[1:] {
		for i, line := range part {
			if mid, ok := strings.CutPrefix(line, "a=mid:"); ok {
				mids = append(mids, mid)
			}
			if line == "a=setup:actpass" {
				part[i] = "a=setup:active"
			}
		}
	}
	for i, line := range parts[0] {
		switch {
		case strings.HasPrefix(line, "a=group:BUNDLE"):
			parts[0][i] = strings.Join(append([]string{"a=group:BUNDLE"}, mids...), " ")
		case line == "a=setup:actpass":
			parts[0][i] = "a=setup:active"
		}
	}
	return joinSections(parts)
}

// VideoInactive makes every section but the audio ones and data channels inactive, and changes nothing else. WebRTC
// libraries cannot be told to offer a video section that carries nothing; browsers want one (rule: with audio alone
// hydrogen's answer is broken and matrix-js-sdk negotiates again at once).
func VideoInactive(sdp string) string {
	parts := sections(sdp)
	for _, part := range parts[1:] {
		if !strings.HasPrefix(part[0], "m=video ") {
			continue
		}
		for i, line := range part {
			switch line {
			case "a=sendrecv", "a=recvonly", "a=sendonly":
				part[i] = "a=inactive"
			}
		}
	}
	return joinSections(parts)
}

// OneVoice asks for the sound of one audio section only, the first that we receive at all: browsers that share a screen
// with its sound add another, and two streams cannot be one peer's voice. Mid is that section's; "" if there is none.
func OneVoice(sdp string) (text, mid string) {
	parts := sections(sdp)
	found := false
	for _, part := range parts[1:] {
		if !strings.HasPrefix(part[0], "m=audio ") || strings.HasPrefix(part[0], "m=audio 0 ") {
			continue
		}
		receives := false
		for i, line := range part {
			switch line {
			case "a=sendrecv", "a=recvonly":
				receives = true
				if found && line == "a=sendrecv" {
					part[i] = "a=sendonly"
				} else if found {
					part[i] = "a=inactive"
				}
			}
		}
		if !receives || found {
			continue
		}
		found = true
		for _, line := range part {
			if name, ok := strings.CutPrefix(line, "a=mid:"); ok {
				mid = name
			}
		}
	}
	return joinSections(parts), mid
}

// OpusWish replaces the parameters of Opus: what we would like to receive. Libraries echo the peer's instead.
func OpusWish(sdp, parameters string) string {
	parts := sections(sdp)
	for i, part := range parts[1:] {
		payloads := make(map[string]bool)
		for _, line := range part {
			if payload, ok := strings.CutPrefix(line, "a=rtpmap:"); ok {
				payload, codec, _ := strings.Cut(payload, " ")
				payloads[payload] = strings.HasPrefix(strings.ToLower(codec), "opus/48000")
			}
		}
		opus := func(line, attribute string) bool {
			rest, ok := strings.CutPrefix(line, attribute)
			payload, _, _ := strings.Cut(rest, " ")
			return ok && payloads[payload]
		}
		var lines []string
		for _, line := range part {
			if opus(line, "a=fmtp:") {
				continue
			}
			lines = append(lines, line)
			if opus(line, "a=rtpmap:") {
				payload, _, _ := strings.Cut(strings.TrimPrefix(line, "a=rtpmap:"), " ")
				lines = append(lines, "a=fmtp:"+payload+" "+parameters)
			}
		}
		parts[i+1] = lines
	}
	return joinSections(parts)
}

// LocalAudio reads the directions of audio from a description of ours, RemoteAudio from one of the peer's. The first
// audio section that is not rejected counts.
func LocalAudio(sdp string) Audio {
	switch direction(sdp) {
	case "a=sendrecv":
		return Audio{In: true, Out: true}
	case "a=sendonly":
		return Audio{Out: true}
	case "a=recvonly":
		return Audio{In: true}
	}
	return Audio{}
}

// RemoteAudio reads the directions of audio, seen from us, from a description of the peer's.
func RemoteAudio(sdp string) Audio {
	a := LocalAudio(sdp)
	return Audio{In: a.Out, Out: a.In}
}

func direction(sdp string) string {
	parts := sections(sdp)
	found := ""
	for _, part := range parts[1:] {
		if !strings.HasPrefix(part[0], "m=audio ") || strings.HasPrefix(part[0], "m=audio 0 ") {
			continue
		}
		dir := "a=sendrecv" // RFC 8866 §6.7: the default
		for _, line := range slices.Concat(parts[0], part) {
			switch line {
			case "a=sendrecv", "a=sendonly", "a=recvonly", "a=inactive":
				dir = line
			}
		}
		if dir != "a=inactive" {
			return dir
		}
		found = dir
	}
	return found
}
