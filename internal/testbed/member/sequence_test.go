package member

import (
	"slices"
	"testing"
)

func numbered(kind, call string, seq int) message {
	return message{kind: kind, content: content{CallID: call, Seq: &seq}}
}

func TestHydrogenReadsNumbersPerConnection(t *testing.T) {
	type in struct {
		kind, call string
		seq        int
	}
	for name, c := range map[string]struct {
		in    []in
		read  []int
		stuck int
	}{
		"in order":                        {[]in{{typeInvite, "a", 0}, {typeCandidates, "a", 1}, {typeHangup, "a", 2}}, []int{0, 1, 2}, 0},
		"swapped":                         {[]in{{typeInvite, "a", 0}, {typeHangup, "a", 2}, {typeCandidates, "a", 1}}, []int{0, 1, 2}, 0},
		"repeated invite":                 {[]in{{typeInvite, "a", 0}, {typeInvite, "a", 0}, {typeCandidates, "a", 1}}, []int{0, 0, 1}, 0},
		"second call begins anew":         {[]in{{typeInvite, "a", 0}, {typeHangup, "a", 1}, {typeInvite, "b", 0}, {typeCandidates, "b", 1}}, []int{0, 1, 0, 1}, 0},
		"repeat after more sets it back":  {[]in{{typeInvite, "a", 0}, {typeCandidates, "a", 1}, {typeInvite, "a", 0}, {typeHangup, "a", 2}}, []int{0, 1, 0}, 1},
		"first is five":                   {[]in{{typeInvite, "a", 5}}, nil, 1},
		"numbered select_answer: a hole":  {[]in{{typeAnswer, "a", 0}, {typeSelect, "a", 1}, {typeHangup, "a", 2}}, []int{0}, 1},
		"unnumbered reject is not looked": {[]in{{typeInvite, "a", 0}, {typeReject, "a", -1}, {typeHangup, "a", 1}}, []int{0, 1}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			q := &hydrogenQueue{last: -1}
			var read []int
			for _, m := range c.in {
				for _, ready := range q.take(numbered(m.kind, m.call, m.seq)) {
					read = append(read, *ready.Seq)
				}
			}
			if !slices.Equal(read, c.read) || len(q.stuck()) != c.stuck {
				t.Errorf("read %v, stuck %q, want %v and %d stuck", read, q.stuck(), c.read, c.stuck)
			}
		})
	}
}

func TestJSSDKReadsNumbersPerCallAndForgets(t *testing.T) {
	for name, c := range map[string]struct {
		in    []int
		read  []int
		stuck int
	}{
		"in order":            {[]int{0, 1, 2}, []int{0, 1, 2}, 0},
		"neighbours swapped":  {[]int{0, 2, 1}, []int{0, 1, 2}, 0},
		"three before one":    {[]int{0, 3, 1, 2}, []int{0, 1, 2}, 1},
		"duplicate":           {[]int{0, 0, 1}, []int{0, 1}, 0},
		"hydrogen's 2nd call": {[]int{2, 3}, nil, 2},
	} {
		t.Run(name, func(t *testing.T) {
			q := newJSQueue()
			var read []int
			for _, seq := range c.in {
				for _, ready := range q.take(numbered(typeCandidates, "a", seq)) {
					read = append(read, *ready.Seq)
				}
			}
			if !slices.Equal(read, c.read) || len(q.stuck()) != c.stuck {
				t.Errorf("read %v, stuck %q, want %v and %d stuck", read, q.stuck(), c.read, c.stuck)
			}
		})
	}
}
